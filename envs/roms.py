"""Which of ale-py's ROMs play: games.csv, the table that ships, and how its rows are found out.

ale-py ends the whole process where it cannot play a ROM: exit(1) in C++, which no `except` catches. So a game counts as
playable only after a child process has opened it and has taken every action once. `python -m nap_rl.envs` does that for
all ROMs and writes the table anew.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import ale_py

from nap_rl.files import write_atomic

OPEN = """
import sys
import numpy as np
from ale_py.vector_env import AtariVectorEnv
envs = AtariVectorEnv(sys.argv[1], 1, num_threads=1)
actions = len(envs.ale.get_action_set())
_, info = envs.reset(seed=np.array([0]))
for action in range(actions):
    envs.step(np.array([action]))
print("opened", actions, info["lives"][0])
"""
LONGEST_TRY = 60.0  # seconds; opening takes one


class Game(NamedTuple):
    """A row of games.csv: what came of opening one ROM."""

    game: str  # ale-py's name
    plays: bool
    actions: int | None  # in the game's own set; None where it does not play
    lives: int | None  # at the start; 0 where the game does not count them
    reason: str  # why it does not play, else ""
    ale_py: str  # version that was tried


@cache
def table() -> dict[str, Game]:
    """games.csv by name."""
    with files("nap_rl.envs").joinpath("games.csv").open(encoding="utf-8") as file:
        return {row["game"]: _game(row) for row in csv.DictReader(file)}


@cache
def open_once(game: str) -> Game:
    """Opens `game` in a child process, which takes about a second, and says what came of it."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", OPEN, game], capture_output=True, text=True, errors="replace", timeout=LONGEST_TRY
        )
    except subprocess.TimeoutExpired:
        return Game(game, False, None, None, f"its emulator hangs for {LONGEST_TRY:.0f} s", ale_py.__version__)
    said = child.stdout.split()
    if child.returncode == 0 and "opened" in said:
        return Game(game, True, int(said[-2]), int(said[-1]), "", ale_py.__version__)
    return Game(game, False, None, None, _reason(child), ale_py.__version__)


def _reason(child: subprocess.CompletedProcess[str]) -> str:
    if "Attempt to wrap ROM" in child.stderr:
        return "ale-py has its ROM, but not its rules (rewards and the end of a game)"
    if child.returncode < 0:
        return f"its emulator ends by signal {-child.returncode}"
    lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"its emulator ends with exit code {child.returncode}"


def _game(row: dict[str, str]) -> Game:
    actions, lives = (int(row[name]) if row[name] else None for name in ("actions", "lives"))
    return Game(row["game"], row["plays"] == "yes", actions, lives, row["reason"], row["ale_py"])


def write_table(path: Path, games: Iterable[Game]) -> None:
    """Writes games.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, Game._fields, lineterminator="\n")
    writer.writeheader()
    for game in games:
        writer.writerow({**game._asdict(), "plays": "yes" if game.plays else "no"})
    write_atomic(path, text.getvalue())
