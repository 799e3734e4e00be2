"""What an update computed, and the end of a run whose numbers are no longer numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Update(NamedTuple):
    """What one update computed: tensors of no dimension on the agent's device, so that nobody waits for them."""

    loss: Tensor  # mean over the batch, importance weights included, without a method's penalty
    grad_norm: Tensor  # global, before clipping


class Diverged(RuntimeError):
    """A loss, gradient, weight, observation or reward is NaN or infinite; says which, and at which update or step."""


def check_finite(values: Mapping[str, float], when: str) -> None:
    """Raise Diverged for the first value that is NaN or infinite, by its name, such as "loss".

    Args:
        when: ends the sentence, such as "at update 17".
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(f"the {name} is {value} {when}")
