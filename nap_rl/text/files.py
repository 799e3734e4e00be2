"""Lines and JSON lines of plain, gzipped (.gz) and zstd (.zst) text files. What is broken is named in one sentence."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 1 << 20  # bytes


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, with their line ends.

    Raises:
        ValueError: the file is truncated, damaged or not UTF-8; the lines before that place have been given by then.
        ModuleNotFoundError: a .zst file, and zstandard is not installed.
    """
    number = 0
    try:
        with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as text:
            for line in text:
                number += 1
                yield line
    except EOFError as error:
        raise ValueError(f"{path} ends too early, after line {number}: copy or download it again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text after line {number}: {error.reason}.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged after line {number} ({error}): copy or download it again.") from error


def read_text(path: Path) -> str:
    """The whole file; errors as `read_lines`."""
    return "".join(read_lines(path))


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; blank lines are passed over.

    Raises ValueError for a line that is no JSON object, naming it, and as `read_lines`.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield parse_record(path, number, line)


def parse_record(path: Path, number: int, line: str) -> dict[str, Any]:
    """The object on line `number` of `path`; ValueError names the line."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}, is no JSON ({error.msg}): mend or delete the line.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}, is no JSON object: mend or delete the line.")
    return record


def text_field(path: Path, number: int, record: dict[str, Any], key: str = "text") -> str:
    """record[key], which must be text; ValueError names the line."""
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{path}, line {number}, has no text under {key!r}: mend or delete the line.")
    return value


def _open(path: Path) -> io.BufferedReader:
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"), CHUNK)
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstd(path), CHUNK)
    return open(path, "rb")


class _Zstd(io.RawIOBase):
    """A zstd file, frame after frame. Unlike zstandard's own reader it raises EOFError for a file cut in a frame."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{path} needs zstandard: pip install -e '.[language]'.") from error
        self.zstandard = zstandard
        self.path = path
        self.file = open(path, "rb")  # noqa: SIM115  (closed by close)
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.begun = False  # whether bytes of the present frame were read
        self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            rest = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame, self.begun = self.zstandard.ZstdDecompressor().decompressobj(), False
            data = rest or self.file.read(CHUNK)
            if not data:
                if self.begun:
                    raise EOFError
                return 0
            self.begun = True
            try:
                self.ready = self.frame.decompress(data)
            except self.zstandard.ZstdError as error:
                raise zlib.error(str(error)) from error
        count = min(len(buffer), len(self.ready))
        buffer[:count] = self.ready[:count]
        self.ready = self.ready[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()
