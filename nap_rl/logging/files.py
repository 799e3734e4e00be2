"""Files that only grow, by whole pieces, and lose nothing to a full disk."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, final


@final
class GrowingFile:
    """A file that gets one piece after another. The operating system has a piece when `append` returns.

    A piece that cannot be written stays in memory and is written with the next one. Whatever stands behind the last
    whole piece (half a piece, or what a killed process wrote) is cut off first. The first piece makes the file.

    Args:
        state: from an earlier process's `state_dict`: goes on from there.

    Raises:
        ValueError: the file does not begin with what `state` says.
    """

    def __init__(self, path: Path, state: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.size = 0 if state is None else int(state["bytes"])  # bytes of whole pieces in the file
        self._digest = hashlib.sha256()
        self._waiting = b""
        if self.size:
            try:
                with open(path, "rb") as file:
                    self._digest.update(file.read(self.size))
            except FileNotFoundError:
                raise ValueError(f"{path} is missing") from None
        if state is not None and self._digest.hexdigest() != state["sha256"]:
            raise ValueError(f"{path} has been changed: it does not begin with what the run had written")

    def append(self, piece: bytes) -> None:
        """Raises OSError if the piece has to wait."""
        self._waiting += piece
        if not self._waiting and not self.path.exists():
            return
        file = os.open(self.path, os.O_WRONLY | (0 if self.size else os.O_CREAT), 0o666)
        try:
            if os.fstat(file).st_size != self.size:
                os.ftruncate(file, self.size)
            os.lseek(file, self.size, os.SEEK_SET)
            rest = memoryview(self._waiting)
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, self.size)
            raise
        finally:
            os.close(file)
        self.size += len(self._waiting)
        self._digest.update(self._waiting)
        self._waiting = b""

    def sync(self) -> None:
        """Returns when everything is on the disk. Raises OSError if that is impossible."""
        self.append(b"")
        if not self.path.exists():
            return
        file = os.open(self.path, os.O_WRONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def state_dict(self) -> dict[str, Any]:
        """Length and hash of the file so far."""
        return {"bytes": self.size, "sha256": self._digest.hexdigest()}


def row(cells: Sequence[object]) -> bytes:
    """One row of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
