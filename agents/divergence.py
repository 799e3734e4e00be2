"""The end of a run whose numbers are no longer numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping


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
