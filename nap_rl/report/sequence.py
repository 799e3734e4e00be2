"""Where a run changed its game. Frames are emulator frames of the run.

The run's configuration plans its visits; logged rows and episodes say which of them have begun. Without a
configuration, a switch is placed at the first row or episode that shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nap_rl.report.curves import Columns, Episodes


@dataclass(frozen=True)
class Switch:
    """The beginning of a visit; `game` is None if only the logged index of the task says that it changed."""

    frame: float
    game: str | None


@dataclass(frozen=True)
class Stay:
    """The episodes that ended in one visit to a game.

    Attributes:
        visit: counts the visits to this game from 1.
        begin: frame at which the visit began.
        after: the game before it, None for the first.
    """

    game: str
    visit: int
    begin: float
    after: str | None
    episodes: Episodes


def plan(run: Path) -> list[Switch]:
    """The visits that the newest checkpoint's configuration plans, the first included; [] without a sequence."""
    from nap_rl import checkpoint  # imports torch, which takes a second

    meta = checkpoint.latest_meta(Path(run) / "checkpoints") or {}
    env = meta.get("config", {}).get("env", {})
    if "games" not in env:
        return []
    games = list(env["games"]) * int(env["cycles"])
    return [Switch(float(i * env["frames_per_game"]), game) for i, game in enumerate(games)]


def switches(columns: Columns, planned: list[Switch]) -> list[Switch]:
    """Every switch that the rows of metrics.csv show, at its planned frame; [] for a run of one task."""
    if "task/index" not in columns:
        return []
    known = np.isfinite(columns["task/index"])
    frames, index = columns["frames"][known], columns["task/index"][known]
    found: list[Switch] = []
    for row in np.flatnonzero(np.diff(index)):
        before, after = frames[row], frames[row + 1]
        between = [switch for switch in planned[1:] if before <= switch.frame <= after]
        found += between or [Switch(float(after), None)]
    return found


def stays(episodes: Episodes, planned: list[Switch]) -> list[Stay]:
    """The episodes by visit, in order. A visit in which no episode ended is left out."""
    keys = list(zip(episodes.games, episodes.cycles, strict=True))
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    found: list[Stay] = []
    for first, end in zip(starts, [*starts[1:], len(keys)], strict=True):
        game = episodes.games[first]
        begins = [switch.frame for switch in planned if switch.game == game and switch.frame < episodes.frames[first]]
        before = float(episodes.frames[first - 1]) if first else 0.0
        found.append(
            Stay(
                game=game,
                visit=1 + sum(stay.game == game for stay in found),
                begin=max(begins) if begins else before,
                after=found[-1].game if found else None,
                episodes=episodes[first:end],
            )
        )
    return found
