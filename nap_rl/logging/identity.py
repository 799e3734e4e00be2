"""Which run of a tracker a folder's run is, so that a resumed run goes on in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nap_rl.files import write_atomic


def identity(folder: Path, name: str, new: Callable[[], str]) -> tuple[str, bool]:
    """(the run's id at the tracker `name`, whether it is known from an earlier process); `new` makes one."""
    path = folder / ".trackers" / name
    if path.is_file():
        return path.read_text(encoding="utf-8").strip(), True
    made = new()
    write_atomic(path, made + "\n")
    return made, False
