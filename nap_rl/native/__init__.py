"""Native code for what torch does in several passes over memory; plain torch does without it."""

from nap_rl.native.adam import Adam, Factors, Groups, Outer
from nap_rl.native.build import library

__all__ = ["Adam", "Factors", "Groups", "Outer", "library"]
