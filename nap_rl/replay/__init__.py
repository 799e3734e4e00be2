"""Replay: a ring of single frames and two-level priorities; everything else is derived when sampled."""

from nap_rl.replay.buffer import Replay, Transitions
from nap_rl.replay.priorities import Priorities

__all__ = ["Priorities", "Replay", "Transitions"]
