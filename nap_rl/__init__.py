"""nap_rl: value-based deep reinforcement learning with Normalize-and-Project (arXiv 2407.01800)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nap-rl")
except PackageNotFoundError:  # a plain clone that was never installed
    __version__ = "0.0.0"
