"""Files that only grow, by whole pieces, and lose nothing to a full disk: tables and TensorBoard's events."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, final


@final
class GrowingFile:
    """A file that gets one piece after another. A piece is with the operating system when `append` returns.

    A piece that cannot be written is kept in memory and written with the next one. What stands beyond the last whole
    piece, half of another or what a killed process wrote, is cut off before that. The first piece makes the file.

    Args:
        state: of an earlier process: goes on from there. Raises ValueError if the file does not begin with that.
    """

    def __init__(self, path: Path, state: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.size = 0 if state is None else int(state["bytes"])  # bytes that are in the file, in whole pieces
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
        """Raises OSError if it has to wait."""
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
        """Everything is on the disk when this returns. Raises OSError otherwise."""
        self.append(b"")
        if not self.path.exists():
            return
        file = os.open(self.path, os.O_WRONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def state_dict(self) -> dict[str, Any]:
        """Length and hash, to find the place again."""
        return {"bytes": self.size, "sha256": self._digest.hexdigest()}


def row(cells: Sequence[object]) -> bytes:
    """One row of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


@final
class EventFile:
    """TensorBoard's events, each written at once and by this thread: errors are raised where they happen.

    `purge_step`: where an earlier file of the folder went on to this step or beyond, readers forget that.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        self._folder = folder
        self._purge_step = purge_step
        self._file: GrowingFile | None = None  # made by the first write

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Raises OSError if they have to wait."""
        from tensorboard.compat.proto.event_pb2 import Event  # slow to import: only where it is wanted
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def summary(self, summary: Any) -> None:
        """A tensorboard Summary of no step. Raises OSError if it has to wait."""
        from tensorboard.compat.proto.event_pb2 import Event

        self._write(Event(wall_time=time.time(), summary=summary))

    def sync(self) -> None:
        """As `GrowingFile.sync`."""
        if self._file is not None:
            self._file.sync()

    def _write(self, event: Any) -> None:
        if self._file is None:
            self._file = GrowingFile(_new_event_file(self._folder))
            self._file.append(b"".join(_record(each) for each in self._opening()))
        self._file.append(_record(event))

    def _opening(self) -> list[Any]:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        version = Event(wall_time=time.time(), step=self._purge_step or 0, file_version="brain.Event:2")
        if self._purge_step is None:
            return [version]
        start = SessionLog(status=SessionLog.START)
        return [version, Event(wall_time=time.time(), step=self._purge_step, session_log=start)]


def _record(event: Any) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()


def _new_event_file(folder: Path) -> Path:
    """Readers take files in the order of their names, so a new one has a later second than all before it."""
    names = [path.name.split(".") for path in folder.glob("events.out.tfevents.*")]
    seconds = [int(parts[3]) for parts in names if len(parts) > 3 and parts[3].isdigit()]
    second = max([int(time.time()), *(before + 1 for before in seconds)])
    return folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
