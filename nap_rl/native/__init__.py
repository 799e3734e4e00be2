"""C++ for CPUs, behind one door: `accelerate` puts it in place. Nothing else of the project knows that it is there."""

from nap_rl.native.agent import accelerate
from nap_rl.native.build import library

__all__ = ["accelerate", "library"]
