"""Memory for the replay: where it stands, and whether it fits."""

from __future__ import annotations

import math

import numpy as np
import torch

from nap_rl.conf.environments import ATARI, Observations
from nap_rl.conf.schema import Config
from nap_rl.machine import available_memory, free_device_memory, pick_device
from nap_rl.replay import Replay


def check_replay(config: Config, observations: Observations) -> None:
    """Raises ValueError where the replay does not fit the memory that is free."""
    capacity, size = config.replay.capacity, frame_bytes(observations)
    if replay_device(config, pick_device(config.device.name), observations).type != "cpu":
        return
    needed, available = Replay.nbytes(capacity, size), available_memory()
    if available is not None and needed > available:
        fits = int(available * 0.9) // Replay.nbytes(1, size)
        raise ValueError(
            f"replay.capacity={capacity} needs {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free: "
            f"replay.capacity={fits} would fit"
        )


def frame_bytes(observations: Observations) -> int:
    """Of one observation in the replay."""
    return math.prod(observations.shape) * np.dtype(observations.dtype).itemsize


def replay_device(config: Config, learner: torch.device, observations: Observations = ATARI) -> torch.device:
    """Where the replay stands: beside the learner, or in the host's memory.

    Raises:
        ValueError: `replay.device=cuda`, and the learner is on the CPU or the GPU's memory does not hold it.
    """
    name, capacity = config.replay.device.name, config.replay.capacity
    if learner.type == "cpu" and name == "cuda":
        raise ValueError("replay.device=cuda, but the learner is on the CPU: use replay.device=auto")
    if learner.type == "cpu" or name == "cpu":
        return torch.device("cpu")
    size = frame_bytes(observations)
    needed, free = Replay.nbytes(capacity, size), free_device_memory(learner)
    if needed <= free:
        return learner
    if name == "auto":
        return torch.device("cpu")
    raise ValueError(
        f"replay.device=cuda with replay.capacity={capacity} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of "
        f"the GPU's memory are free beside the learner: replay.capacity={free // Replay.nbytes(1, size)} would fit, or "
        "use replay.device=cpu"
    )
