"""The end of a run whose numbers are no longer numbers."""

from __future__ import annotations


class Diverged(RuntimeError):
    """A loss, gradient, weight, observation or reward is NaN or infinite; says which, and at which update or step."""
