"""Signs that a layer learns no more, found in rows of the log and told once a run."""

from __future__ import annotations

from collections.abc import Mapping

STILL = 1e-6
"""Degrees an update. Adam turns a layer that learns by 1e-3 and more, at rates above `SLOW`."""
SLOW = 1e-6


class Signs:
    """What a user should hear of while a run goes on."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def new(self, row: Mapping[str, float | None]) -> list[str]:
        """A sentence for each sign in `row`, by tag as in `nap_rl.logging.tags`, that was not told before."""
        rate = row.get("train/learning_rate") or 0.0
        found: dict[str, str] = {}
        for tag, value in row.items():
            layer = tag.rpartition("/")[2]
            if tag.startswith("plasticity/dormant/") and value == 1.0:
                found[tag] = (
                    f"layer {layer}: all units are dead, so no gradient comes to it or past it. Offsets do this; "
                    "nap.affine=omit or nap.affine=regularize prevents it"
                )
            elif tag.startswith("nap/rotation/") and value is not None and value < STILL and rate > SLOW:
                found[tag] = f"layer {layer}: the update turned its weights by {value:.1e} degrees: it learns no more"
        fresh = {tag: sentence for tag, sentence in found.items() if tag not in self._told}
        self._told |= fresh.keys()
        return [*fresh.values()]
