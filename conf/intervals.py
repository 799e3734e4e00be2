"""Intervals that settings give as text: minutes, or emulator frames."""

from __future__ import annotations

import re


def parse_every(every: str | None) -> tuple[int | None, float | None]:
    """(emulator frames, seconds) between two checkpoints; one of them or both are None.

    Raises:
        ValueError: it is neither a number of frames nor of minutes.
    """
    if every is None:
        return None, None
    if re.fullmatch(r"[0-9]{1,15}", every) and int(every) > 0:
        return int(every), None
    if (minutes := re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?min", every)) and float(minutes[1]) > 0:
        return None, 60 * float(minutes[1])
    raise ValueError(
        f"checkpoint.every={every}, expected minutes such as 20min, emulator frames such as 1000000, or null"
    )
