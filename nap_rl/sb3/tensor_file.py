"""A .pth file that need not be trusted: the tensors of a state dict, and nothing else that a pickle could hold.

First `tensor_structure` refuses whatever names more than tensors. Then `torch.load(weights_only=True)` on the meta
device gives names, shapes and offsets without a byte of data. The numbers are copied from those offsets, within bounds.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from nap_rl.sb3 import tensor_structure
from nap_rl.sb3.tensor_structure import TensorError

MOST_VALUES = 100_000  # in one file: lists that hold each other many times over would unfold without end

_DTYPES: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


def parse(data: bytes, open_small: Callable[[BinaryIO], Any]) -> Any:
    """Dictionaries and lists of tensors (on the CPU, finite), numbers and texts.

    Args:
        open_small: wraps a file so that no length in a header makes its reader take more than a little.

    Raises:
        TensorError: it holds, or names, something else.
    """
    tensor_structure.check(data, open_small)
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
