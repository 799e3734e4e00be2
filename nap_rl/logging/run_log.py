"""The files of one run: metrics.csv, episodes.csv, evaluations.csv, TensorBoard events and summary.json."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, final

from nap_rl.files import write_atomic
from nap_rl.logging.files import EventFile, GrowingFile, row

CLOCKS = ("updates", "agent_steps", "frames")
EPISODE_COLUMNS = ("frames", "game", "cycle", "env", "return", "length_frames")
EVALUATION_COLUMNS = ("frames", "game", "cycle", "episode", "seed", "return", "length_frames")
LAYER_KINDS = ("param_norm", "grad_norm", "effective_lr", "rotation", "update_ratio")


@final
class RunLog:
    """Writes one run's numbers into `folder` (made if it is missing).

    Where the disk is full or gone, rows are kept in memory and written later, and `warn` is told once.

    Two clocks stand beside `updates` (optimiser steps): `agent_steps`, and `frames` = emulator frames, 4 to
    an agent step. TensorBoard's step axis is `frames`. A row is with the operating system when its call
    returns.

    Args:
        state: of an earlier process: the files go on from what they held then, the rest is cut off.
        frames: emulator frames at that state: TensorBoard forgets what came later.

    Raises FileExistsError if the folder already holds rows of another run: two runs never share one.
    Raises ValueError if they no longer begin with what they held at `state`.
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
        self._broken: set[str] = set()  # what could not be written last time
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

    def metrics(self, updates: int, agent_steps: int, frames: int, values: Mapping[str, float]) -> None:
        """Writes one row of metrics.csv and the same numbers as TensorBoard scalars at step `frames`.

        The first call fixes the columns: updates, agent_steps, frames, then its tags in their order. A later
        call may leave tags out (an empty cell, no scalar). Floats are written so that they read back exactly,
        NaN as nan. Raises ValueError for a tag that the first call did not have; nothing is written then.
        """
        numbers = {tag: float(value) for tag, value in values.items()}
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
                "which must name every tag (nan where there is no number yet)."
            )
        cells = [repr(numbers[tag]) if tag in numbers else "" for tag in self._tags]
        self._append(self._metrics, row((int(updates), int(agent_steps), int(frames), *cells)))
        if self._events is not None:
            with self._kept_if_it_fails("TensorBoard's events"):
                self._events.scalars(int(frames), numbers)

    def episode(
        self, *, frames: int, game: str, cycle: int, episode_return: float, length: int, env_index: int
    ) -> None:
        """Writes one finished episode as a row of episodes.csv.

        `frames` is the run's clock at its end and `length` its own length, both in emulator frames;
        `episode_return` is the sum of unclipped rewards of the whole game; `cycle` counts the passes through
        the sequence of games; `env_index` is the environment's place in the vector.
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
        scalars: Mapping[str, float],
    ) -> None:
        """Writes one evaluation, made when the run's clock showed `frames`: a row an episode in evaluations.csv.

        `episodes` holds (seed of the emulator, unclipped return of the whole game, length in emulator frames).
        TensorBoard gets SB3's eval/mean_reward and eval/mean_ep_length (agent steps), eval/<game>/mean_return, and
        `scalars`.
        """
        rows = [] if self._evaluations.size else [row(EVALUATION_COLUMNS)]
        for number, (seed, score, length) in enumerate(episodes):
            rows.append(row((int(frames), game, int(cycle), number, int(seed), repr(float(score)), int(length))))
        self._append(self._evaluations, b"".join(rows))
        if self._events is None:
            return
        mean = sum(each for _, each, _ in episodes) / len(episodes)
        mean_steps = sum(each for *_, each in episodes) / len(episodes) / 4
        values: dict[str, float] = {
            "eval/mean_reward": mean,
            "eval/mean_ep_length": mean_steps,
            f"eval/{game}/mean_return": mean,
        }
        with self._kept_if_it_fails("TensorBoard's events"):
            self._events.scalars(int(frames), {**values, **scalars})

    def layout(self, layers: Sequence[str]) -> None:
        """Asks TensorBoard's custom-scalars page for one chart a kind, with all `layers` in it."""
        if self._events is None:
            return
        from torch.utils.tensorboard.summary import custom_scalars  # a second to import: only where it is wanted

        charts = {
            # The plugin matches tags as regular expressions from their beginning: hence escapes and the $.
            kind: ["Multiline", [re.escape(f"nap/{kind}/{layer}") + "$" for layer in layers]]
            for kind in LAYER_KINDS
        }
        with self._kept_if_it_fails("TensorBoard's events"):
            self._events.summary(custom_scalars({"nap": charts}))  # type: ignore[no-untyped-call]

    def summary(self, values: Mapping[str, Any]) -> Path:
        """Writes summary.json, keys in the given order, and returns its path.

        The file is replaced whole or not at all. Non-finite floats become null, tuples lists, paths text, scalars of
        numpy or torch plain numbers. Raises TypeError for anything else.
        """
        text = json.dumps(_plain(values, "summary"), indent=2, allow_nan=False) + "\n"
        return write_atomic(self.folder / "summary.json", text)

    def sync(self) -> None:
        """Everything is on the disk when this returns, what was waiting too. Raises OSError otherwise."""
        for file in (self._metrics, self._episodes, self._evaluations, self._events):
            if file is not None:
                file.sync()

    def state_dict(self) -> dict[str, Any]:
        """Where the tables are; to be taken after `sync`."""
        return {
            "metrics": self._metrics.state_dict(),
            "episodes": self._episodes.state_dict(),
            "evaluations": self._evaluations.state_dict(),
            "tags": None if self._tags is None else list(self._tags),
        }

    def close(self) -> None:
        """Tries once more to write what is waiting (files are never left open). Closing twice is harmless."""
        for file in (self._metrics, self._episodes, self._evaluations):
            self._append(file, b"")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
    """The value as JSON can hold it; `where` names it in the error."""
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
