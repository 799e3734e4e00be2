"""Reading a Stable-Baselines3 zip that nobody vouches for: nothing in it is unpickled, run or believed. And writing.

    model.zip
      data                   JSON; objects stand in it as base64 pickles under ":serialized:", which are dropped unread
      policy.pth             state dict, itself a zip of torch.save: data.pkl (its structure) and one record a storage
      policy.optimizer.pth   state dict of the optimiser
      pytorch_variables.pth  further tensors
      _stable_baselines3_version, system_info.txt

Sizes are capped before anything is read. Of a .pth, first the opcodes of data.pkl are looked through for names that no
state dict calls; `torch.load(weights_only=True)` on the meta device then gives names, shapes and offsets without a byte
of data, and the numbers are copied from those offsets, within bounds.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.save_util import save_to_zip_file
from torch import Tensor

from nap_rl.files import write_atomic

MIB = 1 << 20
# Member -> the most bytes that it may have. A Rainbow with NaP, hidden layers of 512 and both networks has 54 MB.
MEMBERS = {
    "data": 8 * MIB,
    "policy.pth": 128 * MIB,
    "policy.optimizer.pth": 128 * MIB,
    "pytorch_variables.pth": 32 * MIB,
    "_stable_baselines3_version": MIB,
    "system_info.txt": MIB,
}
REQUIRED = ("data", "policy.pth")
# Fields of `data` that SB3 never pickles; of our own zips, no field is.
PLAIN = {
    *("verbose", "seed", "start_time", "n_envs", "use_sde", "sde_sample_freq", "use_sde_at_warmup", "nap_rl"),
    *("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates", "_n_calls"),
    *("_current_progress_remaining", "_stats_window_size", "buffer_size", "batch_size", "learning_starts", "tau"),
    *("gamma", "gradient_steps", "optimize_memory_usage", "n_steps", "exploration_initial_eps", "exploration_rate"),
    *("exploration_final_eps", "exploration_fraction", "target_update_interval", "max_grad_norm", "n_quantiles"),
}
LONGEST_READ = MIB
STRUCTURE_BYTES = 4 * MIB  # of data.pkl, a few kB in practice
MOST_VALUES = 100_000  # in one .pth: lists that hold each other many times over would unfold without end

_RECORD = re.compile(
    r"data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)
_CALLABLE = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"} | {
    f"torch {kind}Storage" for kind in ("Float", "Double", "Long", "Int", "Byte", "Bool")
}
_NAMING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}  # protocol 2 has GLOBAL
_DTYPES: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


class ZipError(ValueError):
    """A zip that is damaged, hostile, or of no kind that is read here; one sentence that names the file."""


class Archive(NamedTuple):
    """What a zip holds: tensors on the CPU, finite; and the plain part of `data`, as hints to be checked."""

    path: Path
    hints: dict[str, Any]
    policy: dict[str, Tensor]
    optimizer: dict[str, Any]  # {} where there is none
    variables: dict[str, Any]


def read(path: str | Path) -> Archive:
    """Read an SB3 zip.

    Raises:
        FileNotFoundError: there is no such file.
        ZipError: it is no SB3 zip, or not a sound one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    try:
        with open(path, "rb") as file, zipfile.ZipFile(_SmallReads(file)) as archive:
            sizes = _check_members(archive)
            hints = _plain_json(_member(archive, "data"))
            trees = {name: _tensors(_member(archive, name)) for name in sizes if name.endswith(".pth")}
    except ZipError as error:
        raise ZipError(f"{path} {error}") from None
    except zipfile.BadZipFile as error:
        raise ZipError(f"{path} is not a sound zip: {str(error).rstrip('.')}") from None
    except Exception as error:  # whatever the readers of a hostile file come upon
        what = " ".join(str(error).split())[:100] or type(error).__name__
        raise ZipError(f"{path} cannot be read as an SB3 zip: {what}") from None
    policy = trees["policy.pth"]
    if not isinstance(policy, dict) or not all(isinstance(value, Tensor) for value in policy.values()):
        raise ZipError(f"{path} has a policy.pth that is no state dict")
    optimizer, variables = (trees.get(name) or {} for name in ("policy.optimizer.pth", "pytorch_variables.pth"))
    if not isinstance(optimizer, dict) or not isinstance(variables, dict):
        raise ZipError(f"{path} has an optimizer or variables that are no dictionaries")
    return Archive(path, hints, policy, optimizer, variables)


class _SmallReads:
    """A file of which one call reads 1 MiB at most, so that no length in a header makes its reader take more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(LONGEST_READ + 1 if size < 0 else min(size, LONGEST_READ + 1))
        if len(data) > LONGEST_READ:
            raise ZipError("has a longer directory than any SB3 zip")
        return data


def _check_members(archive: zipfile.ZipFile) -> dict[str, int]:
    """Sizes by name, after what no SB3 zip has was refused: other or double names, members beyond their cap."""
    sizes: dict[str, int] = {}
    for info in archive.infolist():
        name = info.filename
        if name not in MEMBERS:
            raise ZipError(f"is no SB3 zip: it has a member {name[:60]!r}")
        if name in sizes:
            raise ZipError(f"has the member {name!r} twice")
        if info.file_size > MEMBERS[name]:
            raise ZipError(f"has a {name} of {info.file_size:,} bytes; up to {MEMBERS[name]:,} are read")
        sizes[name] = info.file_size
    for name in REQUIRED:
        if name not in sizes:
            raise ZipError(f"is no SB3 zip: it has no member {name!r}")
    return sizes


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Its bytes: what its header promises, however much a compressed stream would give."""
    left, chunks = archive.getinfo(name).file_size, []
    with archive.open(name) as member:
        while left and (chunk := member.read(min(left, LONGEST_READ))):
            left -= len(chunk)
            chunks.append(chunk)
        if left or member.read(1):
            raise ZipError(f"has a {name} that is not as long as it says")
    return b"".join(chunks)


def _plain_json(text: bytes) -> dict[str, Any]:
    """The fields of `data` without its pickles; of a pickled object, the texts that SB3 wrote beside it are kept."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ZipError("has a member 'data' that is no JSON object")
    for name, value in fields.items():
        if isinstance(value, dict) and ":serialized:" in value:
            if name in PLAIN or "nap_rl" in fields:
                raise ZipError(f"has a pickle as {name[:60]}, which is written as plain JSON")
            del value[":serialized:"]
    return fields


def _tensors(data: bytes) -> Any:
    """What torch.save wrote: dictionaries and lists of tensors, numbers and texts."""
    _check_pth(data)
    tree = torch.load(io.BytesIO(data), map_location="meta", weights_only=True)
    values, left = 0, len(data)

    def copy(value: Any) -> Any:
        nonlocal values, left
        values += 1
        if values > MOST_VALUES:
            raise ZipError("has a .pth with more values than any SB3 zip")
        if isinstance(value, Tensor):
            left -= value.nbytes
            if left < 0 or value.dtype not in _DTYPES or not value.is_contiguous():
                raise ZipError(f"has a tensor of shape {list(value.shape)} that its bytes do not give")
            storage: Any = value.untyped_storage()
            offset = storage._checkpoint_offset + value.storage_offset() * value.element_size()
            numbers = np.frombuffer(data, _DTYPES[value.dtype], value.numel(), offset)
            if not np.isfinite(numbers).all():
                raise ZipError("has a tensor with NaN or infinite numbers")
            return torch.tensor(numbers).view(value.shape)
        if isinstance(value, Mapping):
            return {key: copy(item) for key, item in value.items() if isinstance(key, (str, int))}
        if isinstance(value, (list, tuple)):
            return [copy(item) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise ZipError(f"has a .pth with a {type(value).__name__} in it")

    return copy(tree)


def _check_pth(data: bytes) -> None:
    """ZipError unless this is a zip of torch.save whose structure names nothing but tensors."""
    with zipfile.ZipFile(_SmallReads(io.BytesIO(data))) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        roots = {name.split("/", 1)[0] for name in infos}
        if len(infos) != len(archive.infolist()) or len(roots) != 1:
            raise ZipError("has a .pth with double names")
        root = roots.pop()
        for name, info in infos.items():
            if not _RECORD.fullmatch(name[len(root) + 1 :]):
                raise ZipError(f"has a .pth with a record {name[:60]!r}, which no state dict has")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                raise ZipError("has a .pth with compressed records, which torch never writes")
        if f"{root}/byteorder" in infos and archive.read(f"{root}/byteorder") != b"little":
            raise ZipError("has tensors in big-endian order, which is not read here")
        if archive.getinfo(f"{root}/data.pkl").file_size > STRUCTURE_BYTES:
            raise ZipError("has a .pth with a longer structure than any state dict")
        for opcode, argument, _ in pickletools.genops(_member(archive, f"{root}/data.pkl")):
            if opcode.name in _NAMING or (opcode.name == "GLOBAL" and argument not in _CALLABLE):
                name = argument if isinstance(argument, str) else opcode.name
                raise ZipError(f"has a .pth that names {name[:60]!r}, which no state dict does")


def number(hints: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A hint that is a number in [low, high]; `default` where there is none or it is null. ZipError for all else."""
    value = hints.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ZipError(f"has {name}={value!r:.60}, expected a number in [{low:g}, {high:g}]")
    return value


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """ZipErrors of what is done within begin with the file's name."""
    try:
        yield
    except ZipError as error:
        raise ZipError(f"{path} {error}") from None


def write(
    path: Any,
    data: Mapping[str, Any],
    policy: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    variables: Mapping[str, Any],
) -> None:
    """A zip with SB3's members; `data` is plain JSON. A path without suffix gets ".zip"; a binary file will do."""
    zipped = io.BytesIO()
    params = {"policy": policy, "policy.optimizer": optimizer}
    save_to_zip_file(zipped, data=dict(data), params=params, pytorch_variables=dict(variables))
    if isinstance(path, (str, Path)) and not Path(path).suffix:
        path = f"{path}.zip"
    write_whole(path, zipped.getvalue())


def write_whole(path: Any, content: bytes) -> None:
    """Writes `content` into a binary file, or to a path."""
    if isinstance(path, (str, Path)):
        write_atomic(path, content)
    else:
        path.write(content)
