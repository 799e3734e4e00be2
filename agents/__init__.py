"""What decides and learns: one value agent, and the loop that trains it."""

from nap_rl.agents.checkpointer import Checkpointer, CheckpointRhythm, CheckpointsFailed
from nap_rl.agents.divergence import Diverged, Update
from nap_rl.agents.frame_stack import FrameStack
from nap_rl.agents.trainer import Trainer
from nap_rl.agents.trainer_config import OnSwitch, TrainerConfig
from nap_rl.agents.value_agent import ValueAgent

__all__ = [
    "CheckpointRhythm",
    "Checkpointer",
    "CheckpointsFailed",
    "Diverged",
    "FrameStack",
    "OnSwitch",
    "Trainer",
    "TrainerConfig",
    "Update",
    "ValueAgent",
]
