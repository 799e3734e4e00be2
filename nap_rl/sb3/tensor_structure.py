"""What a .pth file is made of, judged without torch: a zip of torch.save whose pickle names nothing but tensors."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

STRUCTURE_BYTES = 4 << 20  # of data.pkl, a few kB in practice

_RECORD = re.compile(
    r"data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)
_TENSOR = "torch._utils _rebuild_tensor_v2"
_CALLABLE = {"collections OrderedDict", _TENSOR} | {
    f"torch {kind}Storage" for kind in ("Float", "Double", "Long", "Int", "Byte", "Bool")
}
_PUSHED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSHING = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "GLOBAL"}
_NAMING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}  # protocol 2 has GLOBAL


class TensorError(ValueError):
    """The file is no state dict; ends a sentence that begins with the zip's name."""


def check(data: bytes, open_small: Callable[[BinaryIO], Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a state dict; {} where its pickle holds other values.

    Args:
        open_small: wraps a file so that no length in a header makes its reader take more than a little.

    Raises:
        TensorError: it names something else than tensors, or holds other records than torch writes.
        KeyError, ValueError, zipfile.BadZipFile: it is no zip of torch.save.
    """
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
        opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(archive.read(structure))]
        for opcode, argument in opcodes:
            if opcode in _NAMING or (opcode == "GLOBAL" and argument not in _CALLABLE):
                name = argument if isinstance(argument, str) else opcode
                raise TensorError(f"has a .pth that names {name[:60]!r}, which no state dict does")
    try:
        state = _walk(opcodes)
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}
    return {name: shape for name, shape in state.items() if isinstance(name, str) and _is_shape(shape)}


def _walk(opcodes: Iterable[tuple[str, Any]]) -> Mapping[Any, Any]:
    """What the pickle of a state dict leaves on the stack, each tensor as its shape. Nothing is called.

    Raises LookupError, TypeError, ValueError or AttributeError for what is no state dict.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    marks: list[int] = []

    def since_mark() -> tuple[Any, ...]:
        start = marks.pop()
        values = tuple(stack[start:])
        del stack[start:]
        return values

    for opcode, argument in opcodes:
        if opcode == "MARK":
            marks.append(len(stack))
        elif opcode in _PUSHED:
            stack.append(_PUSHED[opcode])
        elif opcode == "EMPTY_DICT":
            stack.append({})
        elif opcode in _PUSHING:
            stack.append(argument)
        elif opcode == "TUPLE":
            stack.append(since_mark())
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(opcode[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif opcode == "REDUCE":  # _rebuild_tensor_v2(storage, offset, size, ...) or OrderedDict()
            arguments = stack.pop()
            stack[-1] = arguments[2] if stack[-1] == _TENSOR else {}
        elif opcode == "SETITEMS":
            items = since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif opcode == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif opcode == "BUILD":  # a state dict's _metadata
            stack.pop()
        elif opcode not in ("PROTO", "BINPERSID", "STOP"):
            raise ValueError(opcode)
    (state,) = stack
    if not isinstance(state, dict):
        raise TypeError(type(state))
    return state


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(size) is int and size >= 0 for size in value)
