"""An episode as an MP4 in the console's colours, played again from its seed and its actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from nap_rl.envs.atari import FRAME_SKIP, Protocol, import_cv2, vector_env

FPS = 60 / FRAME_SKIP  # one picture an agent step, at the console's pace
SCALE = 2
SIZE = (160 * SCALE, 210 * SCALE)  # width, height


def check_video() -> ModuleType:
    """OpenCV, which writes the file. Raises ValueError where it cannot be imported."""
    return import_cv2("video=true")


def write_video(path: Path, game: str, protocol: Protocol, seed: int, actions: Sequence[int]) -> float:
    """Write the episode that began with the emulator's `seed` and took `actions`; returns its raw score.

    One picture before each action; the last action leads to the end, of which ale-py shows no picture.

    Raises:
        ValueError: OpenCV cannot be imported.
        OSError: the file cannot be written.
    """
    cv2 = check_video()
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FPS, SIZE)
    if not writer.isOpened():
        raise OSError(
            f"cannot write the video {path}: OpenCV has no MPEG-4 encoder here, or the folder is not writable"
        )
    envs = vector_env(game, 1, protocol, threads=1, colour=True)
    score = 0.0
    try:
        frames, _ = envs.reset(seed=np.array([seed]))
        for action in actions:
            picture = cv2.resize(frames[0, 0], SIZE, interpolation=cv2.INTER_NEAREST)
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            frames, rewards, *_ = envs.step(np.array([action]))
            score += float(rewards[0])
    finally:
        envs.close()
        writer.release()
    return score
