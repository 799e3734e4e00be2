"""Checkpoints that a crash cannot spoil: directories of safetensors and JSON files, never a pickle.

    parent/
      step-000000120000/     whole, or not there at all
        network.safetensors  one file a mapping of tensors
        optimizer.safetensors
        replay-3fb1.bin      one file a blob: opaque bytes that never change, shared with earlier checkpoints
        meta.json            counters, RNG states, names
        manifest.json        size and SHA-256 of each file above, and of itself
      .tmp.<host>.<pid>.<tokens>.step-000000160000/   being written (or left by a dead writer)

Order of events: files written and fsynced -> manifest likewise -> directory fsynced -> one rename to the
final name -> parent fsynced -> older checkpoints renamed away, then deleted: none is ever half there under
its name.

A blob that an earlier checkpoint holds is not written again but linked: only what is new costs time and space. The two
newest checkpoints never share a blob, so that no damage reaches both: a blob is written twice, and linked from then on.

    blob        a   b   c   d         w written from the program   c copied from the newest   l linked to the one before
    step 100    w
    step 200    c   w
    step 300    l   c   w
    step 400    l   l   c   w
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_rl.checkpoint.manifest import (
    MANIFEST,
    META,
    CheckpointError,
    encode_manifest,
    fsync_directory,
    read_manifest,
    verified,
    verify_file,
    write_file,
)

if TYPE_CHECKING:  # whether a run is there, and its counters, are read before torch is imported
    from torch import Tensor

HOST = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "host"
PROCESS = secrets.token_hex(4)  # tells us from an earlier process of our number, as in a restarted container

_NAME = re.compile(r"(?P<kind>[A-Za-z][A-Za-z0-9_-]*?)(?P<step>[0-9]{1,18})")  # step-000000120000
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_TEMPORARY = re.compile(r"\.tmp\.(?P<host>[\w-]+)\.(?P<pid>[0-9]+)\.(?P<process>[0-9a-f]+)\.[0-9a-f]+\..+")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: CPU tensors by file and name (in the order of names), `meta`, and where each blob lies."""

    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]
    blobs: dict[str, Path] = field(default_factory=dict)


def save(
    parent: Path,
    name: str,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    blobs: Mapping[str, Callable[[], bytes]] | None = None,
    keep: int = 2,
) -> Path:
    """Writes the checkpoint `parent/name` and returns its path; afterwards `keep` of its kind are left.

    `name` is a kind and a step, zero-padded: "step-000000120000". The `keep - 1` newest others of the same
    kind stay beside it. `tensors` maps a file's key to its tensors, on any device and of any strides; those
    that share memory are written out each in full. `meta` is JSON: text, numbers, lists, dicts with text keys
    (tuples come back as lists). `blobs` gives for each key what makes its bytes; it is called only if no earlier
    checkpoint of the kind holds a blob of that key, so a key must stand for the same bytes forever.

    Raises ValueError or TypeError for what cannot be stored, FileExistsError if a sound checkpoint has that
    name (a damaged one gives way), OSError if the disk fails. Whatever is raised, earlier checkpoints are
    untouched and no half-made one has a final name.
    """
    blobs = {} if blobs is None else blobs
    kind, _ = _kind_and_step(name)
    if keep < 2:
        raise ValueError(f"keep must be at least 2, so that one survives a damaged one; got {keep}.")
    _check_keys((*tensors, *blobs))
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
            files[file] = write_file(temporary / file, _encode_tensors(key, group))
        earlier = list(_earlier(parent, kind, final)) if blobs else []
        for key, make in blobs.items():
            file = f"{key}.bin"
            files[file] = _share(temporary / file, earlier) or write_file(temporary / file, make())
        files[META] = write_file(temporary / META, text)
        write_file(temporary / MANIFEST, encode_manifest(files))
        fsync_directory(temporary)
        if os.path.lexists(final):
            _retire(final)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(parent)
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
    found = Checkpoint({}, {})
    for name in verified(path):
        file = path / name
        try:
            if name == META:
                found.meta.update(json.loads(file.read_bytes()))
            elif name.endswith(".safetensors"):
                found.tensors[name.removesuffix(".safetensors")] = _decode_tensors(file)
            else:
                found.blobs[name.removesuffix(".bin")] = file
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}.") from error
    return found


def load_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, on the CPU. Only that file and the manifest are read and checked.

    Raises CheckpointError if it is missing or altered.
    """
    return _decode_tensors(verified_tensors(path, key))


def verified_tensors(path: Path, key: str) -> Path:
    """The file of a checkpoint that holds the tensors `key`, its bytes checked.

    Raises CheckpointError if it is missing or altered.
    """
    file = Path(path) / f"{key}.safetensors"
    files = read_manifest(Path(path) / MANIFEST)
    if file.name not in files:
        raise CheckpointError(f"{path} holds no {file.name}.")
    verify_file(file, files[file.name])
    return file


def latest(parent: Path) -> Path | None:
    """The newest sound checkpoint in `parent` (highest step, then the later modified), or None.

    A damaged one is named in a warning and passed over.
    """
    for path in _newest_first(Path(parent)):
        try:
            verified(path)
        except CheckpointError as error:
            warnings.warn(f"A damaged checkpoint is passed over: {error}", stacklevel=2)
        else:
            return path
    return None


def newest_of_run(path: Path) -> Path:
    """The newest sound checkpoint of a run's folder, or `path` itself if that is a checkpoint's folder.

    Raises FileNotFoundError if there is none.
    """
    path = Path(path)
    folder = latest(path / "checkpoints") if (path / "checkpoints").is_dir() else path
    if folder is None or not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{path} holds no checkpoint: expected a run's folder or a folder in its checkpoints/")
    return folder


def load_newest(parent: Path) -> tuple[Path, Checkpoint] | None:
    """The newest sound checkpoint in `parent` and what it holds, or None.

    A damaged one is named in a warning and renamed to `<name>.damaged`: whoever goes on from an earlier one will write
    others of its step. For the process that owns `parent` only.
    """
    for path in _newest_first(Path(parent)):
        try:
            return path, load(path)
        except CheckpointError as error:
            warnings.warn(f"A damaged checkpoint is passed over: {error}", stacklevel=2)
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
    return None


def latest_meta(parent: Path) -> dict[str, Any] | None:
    """`meta` of the newest checkpoint in `parent` that has a sound one, or None. No other file is read."""
    for path in _newest_first(Path(parent)):
        with suppress(CheckpointError):
            return read_meta(path)
    return None


def read_meta(path: Path) -> dict[str, Any]:
    """`meta` of a checkpoint alone, checked; the other files are not read. Raises CheckpointError."""
    file = Path(path) / META
    verify_file(file, read_manifest(Path(path) / MANIFEST)[META])
    meta: dict[str, Any] = json.loads(file.read_bytes())
    return meta


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over names, dtypes, shapes and bytes of `tensors`, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_keys(keys: Iterable[str]) -> None:
    for key in keys:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot name a file: use letters, digits, '_', '-' and '.'.")


def _decode_tensors(file: Path) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        group = safetensors.torch.load(file.read_bytes())
    except (ValueError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error
    return {name: group[name] for name in sorted(group)}


def _encode_tensors(key: str, group: Mapping[str, Tensor]) -> bytes:
    import safetensors.torch
    import torch

    storages = set()
    plain = {}
    for name, tensor in group.items():
        if not isinstance(tensor, torch.Tensor):
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


def _earlier(parent: Path, kind: str, final: Path) -> Iterator[tuple[Path, dict[str, dict[str, Any]]]]:
    """Checkpoints of a kind, newest first, with what their manifests list."""
    for path in _newest_first(parent):
        if path != final and _kind_and_step(path.name)[0] == kind:
            with suppress(CheckpointError):
                yield path, read_manifest(path / MANIFEST)


def _share(file: Path, earlier: list[tuple[Path, dict[str, dict[str, Any]]]]) -> dict[str, Any] | None:
    """Takes a blob over from an earlier checkpoint: its manifest entry, or None if none holds it undamaged.

    Linked from any but the newest, from which it is copied: see the picture above.
    """
    for folder, files in earlier[1:]:
        if file.name in files:
            with suppress(CheckpointError, OSError):  # damaged, or a file system without links
                verify_file(folder / file.name, files[file.name])
                os.link(folder / file.name, file)
                return files[file.name]
    for folder, files in earlier[:1]:
        if file.name in files:
            data = b""
            with suppress(OSError):
                data = (folder / file.name).read_bytes()
            if hashlib.sha256(data).hexdigest() == files[file.name]["sha256"]:
                return write_file(file, data)
    return None


def _temporary(parent: Path, name: str) -> Path:
    return parent / f".tmp.{HOST}.{os.getpid()}.{PROCESS}.{secrets.token_hex(4)}.{name}"


def _is_damaged(path: Path) -> bool:
    """Whether a directory stands there whose bytes are not those of its manifest."""
    if path.is_symlink() or not path.is_dir():
        return False
    try:
        verified(path)
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
