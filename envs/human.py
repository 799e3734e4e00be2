"""Scores of a random player and of a human on the 57 games, and the scale between them.

`atari57.csv`: mean scores under no-op starts, episodes of at most 108,000 frames, as Wang et al. 2016
(arXiv 1511.06581, appendix) tabulate them and dqn_zoo's atari_data.py lists them. Papers since then normalise with
these.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Reference(NamedTuple):
    """Raw scores between which a game's scale runs."""

    random: float
    human: float


@cache
def references() -> dict[str, Reference]:
    """Returns the 57 games by ale-py's names."""
    with files("nap_rl.envs").joinpath("atari57.csv").open(encoding="utf-8") as file:
        return {row["game"]: Reference(float(row["random"]), float(row["human"])) for row in csv.DictReader(file)}


def human_normalized(game: str, score: float) -> float | None:
    """(score - random) / (human - random): 0 is random play, 1 the human; None for a game outside the 57."""
    if game not in references():
        return None
    random, human = references()[game]
    return (score - random) / (human - random)
