"""The files of one run: metrics.csv, episodes.csv, evaluations.csv, TensorBoard events and summary.json; trackers."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, final

from nap_rl.files import write_atomic
from nap_rl.logging.events import EventFile
from nap_rl.logging.files import GrowingFile, row
from nap_rl.logging.trackers import Tracker

CLOCKS = ("updates", "agent_steps", "frames")
EPISODE_COLUMNS = ("frames", "game", "cycle", "env", "return", "length_frames")
EVALUATION_COLUMNS = ("frames", "game", "cycle", "episode", "seed", "return", "length_frames")


@final
class RunLog:
    """Writes one run's numbers into `folder`, which it makes if it is missing. `nap_rl.logging.tags` explains the tags.

    The operating system has a row when its call returns. While the disk is full or gone, rows wait in memory, and
    `warn` is told once. TensorBoard's step axis is frames.

    Args:
        state: from an earlier process's `state_dict`: the files go on from there, and what stands behind is cut off.
        frames: the run's clock at `state`. TensorBoard forgets what came later.

    Raises:
        FileExistsError: the folder holds rows of another run.
        ValueError: the files do not begin with what `state` says.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = True,
        state: Mapping[str, Any] | None = None,
        frames: int = 0,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._warn = warn
        self._broken: set[str] = set()  # files that could not be written last time
        metrics, episodes = self.folder / "metrics.csv", self.folder / "episodes.csv"
        if state is None:
            for path in (metrics, episodes):
                if path.exists() and path.read_bytes() not in (b"", row(EPISODE_COLUMNS)):
                    raise FileExistsError(f"{path} exists already: a new run needs a folder of its own.")
            metrics.touch()
            state = {}
        self._metrics = GrowingFile(metrics, state.get("metrics"))
        self._episodes = GrowingFile(episodes, state.get("episodes"))
        self._evaluations = GrowingFile(self.folder / "evaluations.csv", state.get("evaluations"))
        self._tags: tuple[str, ...] | None = None if state.get("tags") is None else tuple(state["tags"])
        if self._episodes.size == 0:
            self._episodes.append(row(EPISODE_COLUMNS))
        self._events: EventFile | None = None
        if tensorboard:
            self._events = EventFile(self.folder, purge_step=frames + 1 if state else None)
        self._trackers: list[Tracker] = [] if self._events is None else [self._events]

    @property
    def tags(self) -> tuple[str, ...] | None:
        """Columns of metrics.csv behind the three clocks; None before the first row."""
        return self._tags

    def add_tracker(self, tracker: Tracker) -> None:
        """From now on `tracker` gets the same numbers, and at the end the files."""
        self._trackers.append(tracker)

    def metrics(self, updates: int, agent_steps: int, frames: int, values: Mapping[str, float | None]) -> None:
        """Write one row of metrics.csv, and give the trackers the same numbers at step `frames`.

        The first call fixes the columns: updates, agent_steps, frames, then its tags in their order. A tag that is None
        or left out later has an empty cell and no scalar. Floats are written so that they read back exactly.

        Raises:
            ValueError: a tag is not among the columns. Nothing is written then.
        """
        numbers = {tag: None if value is None else float(value) for tag, value in values.items()}
        if self._tags is None:
            clash = [tag for tag in numbers if tag in CLOCKS]
            if clash:
                raise ValueError(f"{clash[0]!r} is a column of its own in metrics.csv: name the tag otherwise.")
            self._tags = tuple(numbers)
            self._append(self._metrics, row((*CLOCKS, *self._tags)))
        unknown = [tag for tag in numbers if tag not in self._tags]
        if unknown:
            raise ValueError(
                f"The tag {unknown[0]!r} is new: metrics.csv got its columns from the first row, "
                "which must name every tag (None where there is no number yet)."
            )
        known = {tag: number for tag, number in numbers.items() if number is not None}
        cells = [repr(known[tag]) if tag in known else "" for tag in self._tags]
        self._append(self._metrics, row((int(updates), int(agent_steps), int(frames), *cells)))
        self._track(int(frames), known)

    def episode(
        self, *, frames: int, game: str, cycle: int, episode_return: float, length: int, env_index: int
    ) -> None:
        """Write one finished episode as a row of episodes.csv.

        Args:
            frames: the run's clock at the end of the episode.
            game, cycle: task and cycle of the visit.
            episode_return: sum of unclipped rewards.
            length: in frames.
            env_index: the environment's place in the vector.
        """
        cells = (int(frames), game, int(cycle), int(env_index), repr(float(episode_return)), int(length))
        self._append(self._episodes, row(cells))

    def evaluation(
        self,
        *,
        frames: int,
        game: str,
        cycle: int,
        episodes: Sequence[tuple[int, float, int]],
        frame_skip: int,
        scalars: Mapping[str, float],
        current: bool = True,
    ) -> None:
        """Write one evaluation: a row an episode in evaluations.csv, and its means to the trackers.

        Args:
            frames: the run's clock.
            game: the task that was played for it.
            cycle: of the visit.
            episodes: (seed, unclipped return, length in frames) of each episode.
            frame_skip: frames to an agent step.
            scalars: more for the trackers.
            current: whether it is the visit's task; only then it is eval/mean_reward too.
        """
        rows = [] if self._evaluations.size else [row(EVALUATION_COLUMNS)]
        for number, (seed, score, length) in enumerate(episodes):
            rows.append(row((int(frames), game, int(cycle), number, int(seed), repr(float(score)), int(length))))
        self._append(self._evaluations, b"".join(rows))
        mean = sum(each for _, each, _ in episodes) / len(episodes)
        mean_steps = sum(each for *_, each in episodes) / len(episodes) / frame_skip
        values: dict[str, float] = {f"eval/{game}/mean_return": mean}
        if current:
            values |= {"eval/mean_reward": mean, "eval/mean_ep_length": mean_steps}
        self._track(int(frames), {**values, **scalars})

    def describe(self, config: Mapping[str, Any]) -> None:
        """Give TensorBoard the charts of its custom-scalars page, and `config` as text and HParams. Once a run."""
        if self._events is not None:
            with self._kept_if_it_fails("TensorBoard's events"):
                self._events.describe(config)

    def summary(self, values: Mapping[str, Any]) -> Path:
        """Write summary.json, keys in the given order, and return its path. The file is replaced whole or not at all.

        Non-finite floats become null, tuples lists, paths text, scalars of numpy or torch plain numbers.

        Raises:
            TypeError: a value is of another type.
        """
        text = json.dumps(_plain(values, "summary"), indent=2, allow_nan=False) + "\n"
        path = write_atomic(self.folder / "summary.json", text)
        for tracker in self._trackers:
            tracker.artifact(path)
        return path

    def sync(self) -> None:
        """Returns when everything is on the disk, also what was waiting. Raises OSError if that is impossible."""
        for file in (self._metrics, self._episodes, self._evaluations, self._events):
            if file is not None:
                file.sync()

    def state_dict(self) -> dict[str, Any]:
        """Length and hash of each table, and the columns. Call `sync` before."""
        return {
            "metrics": self._metrics.state_dict(),
            "episodes": self._episodes.state_dict(),
            "evaluations": self._evaluations.state_dict(),
            "tags": None if self._tags is None else list(self._tags),
        }

    def close(self) -> None:
        """Try once more to write what is waiting, and finish the trackers. Closing twice is harmless."""
        for file in (self._metrics, self._episodes, self._evaluations):
            self._append(file, b"")
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            for file in (self._metrics, self._episodes, self._evaluations):
                if file.path.exists():
                    tracker.artifact(file.path)
            tracker.finish()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _track(self, frames: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            with self._kept_if_it_fails("TensorBoard's events"):  # no other tracker raises
                tracker.log(frames, values)

    def _append(self, file: GrowingFile, piece: bytes) -> None:
        with self._kept_if_it_fails(file.path.name):
            file.append(piece)

    @contextmanager
    def _kept_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if name not in self._broken:
                self._warn(f"{name} cannot be written now and is kept in memory: {error}")
            self._broken.add(name)
        else:
            self._broken.discard(name)


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON can hold it; `where` is its name in the error."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: give numbers, text, lists or mappings."
    )
