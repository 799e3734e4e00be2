"""An episode as an MP4 in the console's colours, played again from its seed and its actions.

Beside the game stands what the agent expects (see `film.py`), where that is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nap_rl.envs.atari import FRAME_SKIP, Protocol, import_cv2, vector_env
from nap_rl.envs.film import Expected, Panel, Rate

FPS = 60 / FRAME_SKIP  # one picture an agent step, at the console's pace
SCALE = 2
SIZE = (160 * SCALE, 210 * SCALE)  # width, height


def check_video() -> None:
    """Writes a film of one picture into a temporary folder.

    Raises:
        ValueError: OpenCV cannot be imported, or has no VP9 encoder here.
    """
    cv2 = import_cv2("video=true")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _film(cv2, Path(folder) / "film.mp4", SIZE) as writer:
                writer.write(np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8))
        except OSError:
            raise ValueError(
                f"video=true needs OpenCV with a VP9 encoder, which OpenCV {cv2.__version__} has not here: install "
                "opencv-python or opencv-python-headless as a wheel, or leave video=true out"
            ) from None


@contextmanager
def _film(cv2: ModuleType, path: Path, size: tuple[int, int]) -> Iterator[Any]:
    """OpenCV's writer of a VP9 film, which every browser plays. Raises OSError if it cannot be opened."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"vp09"), FPS, size)
    try:
        if not writer.isOpened():
            raise OSError(f"cannot write the video {path}: OpenCV has no VP9 encoder here, or the folder is read-only")
        yield writer
    finally:
        writer.release()


def write_video(
    path: Path,
    game: str,
    protocol: Protocol,
    seed: int,
    actions: Sequence[int],
    expected: Sequence[Expected] = (),
    rate: Rate | None = None,
) -> float:
    """Writes the episode that began with the emulator's `seed` and took `actions`; returns its raw score.

    One picture before each action. The last action leads to the end, of which ale-py shows no picture.

    Args:
        expected: what the agent expected before each of the actions; without it the film is the game alone.
        rate: of the agent's training.

    Raises:
        ValueError: OpenCV cannot be imported.
        OSError: the file cannot be written.
    """
    cv2 = import_cv2("video=true")
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    with _film(cv2, path, (2 * width if expected else width, height)) as writer:
        envs = vector_env(game, 1, protocol, threads=1, colour=True)
        names = [action.name for action in envs.ale.get_action_set()]
        panel = Panel(cv2, SIZE, names, expected, rate) if expected else None
        score = 0.0
        try:
            frames, _ = envs.reset(seed=np.array([seed]))
            for step, action in enumerate(actions):
                screen = cv2.resize(frames[0, 0], SIZE, interpolation=cv2.INTER_NEAREST)
                picture = cv2.cvtColor(screen, cv2.COLOR_RGB2BGR)
                writer.write(picture if panel is None else np.hstack([picture, panel.draw(step, action, score)]))
                frames, rewards, *_ = envs.step(np.array([action]))
                score += float(rewards[0])
        finally:
            envs.close()
    return score
