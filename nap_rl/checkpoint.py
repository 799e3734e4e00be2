"""Checkpoints that a crash cannot spoil: directories of safetensors, .npy and JSON files, never a pickle.

    parent/
      step-000000120000/     whole, or not there at all
        network.safetensors  one file a mapping of tensors
        optimizer.safetensors
        rewards.npy          one file an array
        meta.json            counters, RNG states, names
        manifest.json        size and SHA-256 of each file above, and of itself
      .tmp.<host>.<pid>.<tokens>.step-000000160000/   being written (or left by a dead writer)

Order of events: files written and fsynced -> manifest likewise -> directory fsynced -> one rename to the
final name -> parent fsynced -> older checkpoints renamed away, then deleted: none is ever half there under
its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import socket
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

SCHEMA = 1
MANIFEST = "manifest.json"
META = "meta.json"
CHUNK_BYTES = 1 << 22
HOST = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "host"
PROCESS = secrets.token_hex(4)  # tells us from an earlier process of our number, as in a restarted container

_NAME = re.compile(r"(?P<kind>[A-Za-z][A-Za-z0-9_-]*?)(?P<step>[0-9]{1,18})")  # step-000000120000
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_FILE = re.compile(r"meta\.json|[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(safetensors|npy)")
_TEMPORARY = re.compile(r"\.tmp\.(?P<host>[\w-]+)\.(?P<pid>[0-9]+)\.(?P<process>[0-9a-f]+)\.[0-9a-f]+\..+")


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete or of another format; names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: CPU tensors by file and name (in the order of names), arrays by name, and `meta`."""

    tensors: dict[str, dict[str, Tensor]]
    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]


def save(
    parent: Path,
    name: str,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    arrays: Mapping[str, NDArray[Any]] | None = None,
    meta: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Writes the checkpoint `parent/name` and returns its path; afterwards `keep` of its kind are left.

    `name` is a kind and a step, zero-padded: "step-000000120000". The `keep - 1` newest others of the same
    kind stay beside it. `tensors` maps a file's key to its tensors, on any device and of any strides; those
    that share memory are written out each in full. `meta` is JSON: text, numbers, lists, dicts with text keys
    (tuples come back as lists).

    Raises ValueError or TypeError for what cannot be stored, FileExistsError if a sound checkpoint has that
    name (a damaged one gives way), OSError if the disk fails. Whatever is raised, earlier checkpoints are
    untouched and no half-made one has a final name.
    """
    arrays = {} if arrays is None else arrays
    kind, _ = _kind_and_step(name)
    if keep < 2:
        raise ValueError(f"keep must be at least 2, so that one survives a damaged one; got {keep}.")
    _check_keys(tensors, arrays)
    text = _encode_meta(meta)
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    final = parent / name
    if os.path.lexists(final) and not _is_damaged(final):
        raise FileExistsError(f"{final} exists already: a checkpoint is never written over.")

    temporary = _temporary(parent, name)
    try:
        os.mkdir(temporary)
        files = {}
        for key, group in tensors.items():
            file = f"{key}.safetensors"
            files[file] = _write(temporary / file, _encode_tensors(key, group))
        for key, array in arrays.items():
            file = f"{key}.npy"
            files[file] = _write(temporary / file, np.asarray(array))
        files[META] = _write(temporary / META, text)
        _write(temporary / MANIFEST, _encode_manifest(files))
        _fsync_directory(temporary)
        if os.path.lexists(final):
            _retire(final)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync_directory(parent)
    try:
        _prune(parent, final, kind, keep)
    except OSError as error:
        warnings.warn(f"Older checkpoints in {parent} could not be removed: {error}.", stacklevel=2)
    return final


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint after checking every byte of it against its manifest. Tensors come to the CPU.

    Raises FileNotFoundError if `path` is no directory, CheckpointError if a file is missing or altered.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no checkpoint directory {path}.")
    found = Checkpoint({}, {}, {})
    for name in _verified(path):
        file = path / name
        try:
            if name == META:
                found.meta.update(json.loads(file.read_bytes()))
            elif name.endswith(".safetensors"):
                group = safetensors.torch.load(file.read_bytes())
                found.tensors[name.removesuffix(".safetensors")] = {key: group[key] for key in sorted(group)}
            else:
                found.arrays[name.removesuffix(".npy")] = np.load(file, allow_pickle=False)
        except (ValueError, TypeError, EOFError, RecursionError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}.") from error
    return found


def latest(parent: Path) -> Path | None:
    """The newest sound checkpoint in `parent` (highest step, then the later modified), or None.

    A damaged one is named in a warning and passed over.
    """
    for path in _newest_first(Path(parent)):
        try:
            _verified(path)
        except CheckpointError as error:
            warnings.warn(f"A damaged checkpoint is passed over: {error}", stacklevel=2)
        else:
            return path
    return None


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over names, dtypes, shapes and bytes of `tensors`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_keys(tensors: Mapping[str, Mapping[str, Tensor]], arrays: Mapping[str, NDArray[Any]]) -> None:
    for key in (*tensors, *arrays):
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot name a file: use letters, digits, '_', '-' and '.'.")
    for key, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"The array {key!r} holds Python objects, which only a pickle could store.")


def _encode_tensors(key: str, group: Mapping[str, Tensor]) -> bytes:
    storages = set()
    plain = {}
    for name, tensor in group.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{key!r}: {name!r} is a {type(tensor).__name__}; only tensors belong here.")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise TypeError(f"{key!r}: the tensor {name!r} is sparse or has no memory and cannot be stored.")
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses two names over one storage (tied weights, views): the second gets its own.
        plain[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    try:
        return safetensors.torch.save(plain)
    except (RuntimeError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"The tensors {key!r} cannot be stored: {error}.") from error


def _encode_meta(meta: Mapping[str, Any]) -> bytes:
    plain = dict(meta)
    _check_json(plain, "meta")
    return (json.dumps(plain, indent=1) + "\n").encode()


def _check_json(value: Any, where: str) -> None:
    """json.dumps would turn the key 3 into "3" without a word; a restored run would then not find it."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: only text keys come back as they were.")
            _check_json(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_json(item, f"{where}[{i}]")
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise TypeError(f"{where} is a {type(value).__name__}: meta holds text, numbers, lists and dicts.")


def _encode_manifest(files: Mapping[str, Mapping[str, Any]]) -> bytes:
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

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        written = 0
        while written < len(view):  # a write may take less than it was given
            written += os.write(self.fd, view[written : written + CHUNK_BYTES])
        self.digest.update(view)
        self.size += written
        return written


def _write(path: Path, content: bytes | NDArray[Any]) -> dict[str, Any]:
    """Writes and fsyncs one new file; returns its manifest entry."""
    file = _HashedFile(path)
    try:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.lib.format.write_array(cast(Any, file), content, allow_pickle=False)
        os.fsync(file.fd)
    finally:
        os.close(file.fd)
    return {"bytes": file.size, "sha256": file.digest.hexdigest()}


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _temporary(parent: Path, name: str) -> Path:
    return parent / f".tmp.{HOST}.{os.getpid()}.{PROCESS}.{secrets.token_hex(4)}.{name}"


def _verified(path: Path) -> list[str]:
    """The names of the checkpoint's files, each compared with the manifest. Raises CheckpointError."""
    files = _read_manifest(path / MANIFEST)
    for name, entry in files.items():
        file = path / name
        try:
            status = os.lstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{file} is not a regular file.")
            if status.st_size != entry["bytes"]:
                raise CheckpointError(f"{file} has {status.st_size} bytes instead of {entry['bytes']}.")
            if _sha256_of_file(file) != entry["sha256"]:
                raise CheckpointError(f"{file} has been altered: its SHA-256 is not the manifest's.")
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing.") from None
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error}.") from error
    return list(files)


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
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


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _is_damaged(path: Path) -> bool:
    """Whether a directory stands there whose bytes are not those of its manifest."""
    if path.is_symlink() or not path.is_dir():
        return False
    try:
        _verified(path)
    except CheckpointError:
        return True
    return False


def _kind_and_step(name: str) -> tuple[str, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no checkpoint name (a kind and a step), such as 'step-000120000'.")
    return match["kind"], int(match["step"])


def _newest_first(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    found = []
    for path in parent.iterdir():
        if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with suppress(FileNotFoundError):  # pruned by its writer while we look
                found.append((_kind_and_step(path.name)[1], path.stat().st_mtime_ns, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def _prune(parent: Path, newest: Path, kind: str, keep: int) -> None:
    same_kind = [path for path in _newest_first(parent) if _kind_and_step(path.name)[0] == kind]
    others = [path for path in same_kind if path != newest]  # the new one stays, even beside higher steps
    for path in others[keep - 1 :]:
        _retire(path)
    for path in parent.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["host"] == HOST and not _is_alive(int(match["pid"]), match["process"]):
            shutil.rmtree(path)


def _retire(path: Path) -> None:
    """Deletes a checkpoint; its final name is gone before its first file is."""
    aside = _temporary(path.parent, path.name)
    os.rename(path, aside)
    shutil.rmtree(aside)


def _is_alive(pid: int, process: str) -> bool:
    if pid == os.getpid():
        return process == PROCESS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it exists and belongs to somebody else
    return True
