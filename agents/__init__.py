"""What decides and learns: one value agent, and the loop that trains it."""

from nap_rl.agents.frame_stack import FrameStack
from nap_rl.agents.trainer import Diverged, OnSwitch, Trainer, TrainerConfig
from nap_rl.agents.value_agent import Update, ValueAgent

__all__ = ["Diverged", "FrameStack", "OnSwitch", "Trainer", "TrainerConfig", "Update", "ValueAgent"]
