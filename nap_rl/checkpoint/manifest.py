"""A directory of files whose manifest states the size and SHA-256 of each, and of itself."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

SCHEMA = 1
MANIFEST = "manifest.json"
META = "meta.json"
CHUNK_BYTES = 1 << 22

_FILE = re.compile(r"meta\.json|[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(safetensors|bin)")


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete or of another format; names the file and the reason."""


def encode_manifest(files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The manifest of `files`, by name {"bytes": size, "sha256": hexadecimal}."""
    manifest = {
        "schema": SCHEMA,
        "files": files,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "safetensors", "torch")},
        },
    }
    return _canonical({**manifest, "sha256": hashlib.sha256(_canonical(manifest)).hexdigest()})


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


class _HashedFile:
    """A new file that is hashed as it is written: what was meant, not what the disk made of it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        written = 0
        while written < len(view):  # a write may take less than it was given
            written += os.write(self.fd, view[written : written + CHUNK_BYTES])
        self.digest.update(view)
        self.size += written


def write_file(path: Path, content: bytes) -> dict[str, Any]:
    """Writes and fsyncs one new file; returns its manifest entry."""
    file = _HashedFile(path)
    try:
        file.write(content)
        os.fsync(file.fd)
    finally:
        os.close(file.fd)
    return {"bytes": file.size, "sha256": file.digest.hexdigest()}


def fsync_directory(path: Path) -> None:
    """Makes names that were made or renamed in it outlast a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def verified(path: Path) -> list[str]:
    """The names of the checkpoint's files, each compared with the manifest. Raises CheckpointError."""
    files = read_manifest(path / MANIFEST)
    for name, entry in files.items():
        verify_file(path / name, entry)
    return list(files)


def verify_file(file: Path, entry: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless `file` is what its manifest entry says."""
    try:
        status = os.lstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{file} is not a regular file.")
        if status.st_size != entry["bytes"]:
            raise CheckpointError(f"{file} has {status.st_size} bytes instead of {entry['bytes']}.")
        if sha256_of_file(file) != entry["sha256"]:
            raise CheckpointError(f"{file} has been altered: its SHA-256 is not the manifest's.")
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing.") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of the manifest file `path`, by file name. Raises CheckpointError unless it is whole and ours."""
    try:
        data = path.read_bytes()
        manifest = json.loads(data)
        if not isinstance(manifest, dict) or _canonical(manifest) != data:
            raise ValueError("it is not written as this library writes it")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    claimed = manifest.pop("sha256", None)
    if claimed != hashlib.sha256(_canonical(manifest)).hexdigest():
        raise CheckpointError(f"{path} has been altered: it does not have the SHA-256 that it states.")
    if type(manifest.get("schema")) is not int or manifest["schema"] != SCHEMA:
        raise CheckpointError(f"{path} has schema {manifest.get('schema')!r}; known is {SCHEMA}.")
    files = manifest.get("files")
    if not isinstance(files, dict) or META not in files:
        raise CheckpointError(f"{path} does not list {META}.")
    for name, entry in files.items():
        if not _FILE.fullmatch(name):
            raise CheckpointError(f"{path} lists {name!r}, which is no file name of a checkpoint.")
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or "sha256" not in entry:
            raise CheckpointError(f"{path} describes {name!r} by {entry!r}, not by its bytes and SHA-256.")
    return files


def sha256_of_file(path: Path) -> str:
    """Hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
