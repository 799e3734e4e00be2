"""A .pth file that need not be trusted: the tensors of a state dict, and nothing else that a pickle could hold.

First the opcodes of data.pkl are searched for names that no state dict calls. Then `torch.load(weights_only=True)` on
the meta device gives names, shapes and offsets without a byte of data. The numbers are copied from those offsets,
within bounds.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

STRUCTURE_BYTES = 4 << 20  # of data.pkl, a few kB in practice
MOST_VALUES = 100_000  # in one file: lists that hold each other many times over would unfold without end

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


class TensorError(ValueError):
    """The file is no state dict; ends a sentence that begins with the zip's name."""


def parse(data: bytes, open_small: Callable[[BinaryIO], Any]) -> Any:
    """Dictionaries and lists of tensors (on the CPU, finite), numbers and texts.

    Args:
        open_small: wraps a file so that no length in a header makes its reader take more than a little.

    Raises:
        TensorError: it holds, or names, something else.
    """
    _check(data, open_small)
    tree = torch.load(io.BytesIO(data), map_location="meta", weights_only=True)
    values, left = 0, len(data)
    copies: dict[tuple[int, int, torch.dtype], Tensor] = {}  # by place: policies hold shared layers several times

    def copy(value: Any) -> Any:
        nonlocal values, left
        values += 1
        if values > MOST_VALUES:
            raise TensorError("has a .pth with more values than any SB3 zip")
        if isinstance(value, Tensor):
            if value.dtype not in _DTYPES or not value.is_contiguous():
                raise TensorError(f"has a tensor of shape {list(value.shape)} that its bytes do not give")
            storage: Any = value.untyped_storage()
            offset = storage._checkpoint_offset + value.storage_offset() * value.element_size()
            place = (offset, value.numel(), value.dtype)
            if place not in copies:
                left -= value.nbytes
                if left < 0:
                    raise TensorError(f"has a tensor of shape {list(value.shape)} that its bytes do not give")
                numbers = np.frombuffer(data, _DTYPES[value.dtype], value.numel(), offset)
                if not np.isfinite(numbers).all():
                    raise TensorError("has a tensor with NaN or infinite numbers")
                copies[place] = torch.tensor(numbers)
            return copies[place].view(value.shape)
        if isinstance(value, Mapping):
            return {key: copy(item) for key, item in value.items() if isinstance(key, (str, int))}
        if isinstance(value, (list, tuple)):
            return [copy(item) for item in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TensorError(f"has a .pth with a {type(value).__name__} in it")

    return copy(tree)


def _check(data: bytes, open_small: Callable[[BinaryIO], Any]) -> None:
    """TensorError unless this is a zip of torch.save whose structure names nothing but tensors."""
    with zipfile.ZipFile(open_small(io.BytesIO(data))) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        roots = {name.split("/", 1)[0] for name in infos}
        if len(infos) != len(archive.infolist()) or len(roots) != 1:
            raise TensorError("has a .pth with double names")
        root = roots.pop()
        for name, info in infos.items():
            if not _RECORD.fullmatch(name[len(root) + 1 :]):
                raise TensorError(f"has a .pth with a record {name[:60]!r}, which no state dict has")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                raise TensorError("has a .pth with compressed records, which torch never writes")
        if f"{root}/byteorder" in infos and archive.read(f"{root}/byteorder") != b"little":
            raise TensorError("has tensors in big-endian order, which is not read here")
        structure = archive.getinfo(f"{root}/data.pkl")
        if structure.file_size > STRUCTURE_BYTES:
            raise TensorError("has a .pth with a longer structure than any state dict")
        for opcode, argument, _ in pickletools.genops(archive.read(structure)):
            if opcode.name in _NAMING or (opcode.name == "GLOBAL" and argument not in _CALLABLE):
                name = argument if isinstance(argument, str) else opcode.name
                raise TensorError(f"has a .pth that names {name[:60]!r}, which no state dict does")
