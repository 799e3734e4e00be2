"""What a .pth file is made of, judged without torch: a zip of torch.save whose pickle names nothing but tensors."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

STRUCTURE_BYTES = 4 << 20  # of data.pkl, a few kB in practice

_RECORD = re.compile(
    r"data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)
_CALLABLE = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"} | {
    f"torch {kind}Storage" for kind in ("Float", "Double", "Long", "Int", "Byte", "Bool")
}
_NAMING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}  # protocol 2 has GLOBAL


class TensorError(ValueError):
    """The file is no state dict; ends a sentence that begins with the zip's name."""


def check(data: bytes, open_small: Callable[[BinaryIO], Any]) -> set[str]:
    """The texts in its pickle, the names of its tensors among them.

    Args:
        open_small: wraps a file so that no length in a header makes its reader take more than a little.

    Raises:
        TensorError: it names something else than tensors, or holds other records than torch writes.
        KeyError, ValueError, zipfile.BadZipFile: it is no zip of torch.save.
    """
    texts: set[str] = set()
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
            if isinstance(argument, str) and opcode.name.endswith("UNICODE"):
                texts.add(argument)
    return texts
