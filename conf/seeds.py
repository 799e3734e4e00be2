"""From a run's one seed to all of its seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Seeds(NamedTuple):
    """Independent seeds for everything that draws at random."""

    network: int
    noise: int
    replay: int
    env: int
    plasticity: int
    evaluation: int


def seeds(seed: int) -> Seeds:
    """All of a run's seeds from its one."""
    return Seeds(*(int(word) for word in np.random.SeedSequence(seed).generate_state(len(Seeds._fields))))
