"""Norms of weights, several tensors as one vector, and the scaling to other norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class GroupNorms:
    """Norms of groups of tensors, each group taken as one vector.

    torch's CPU kernel for the norm of a whole tensor adds float32 squares one after the other: on 3.2M equal elements,
    which is how a noisy layer's sigma starts, it is off by 8e-4. The norms of rows of at most 512 elements take
    the same time and keep seven digits, so on the CPU large tensors are cut into such rows and small ones are taken
    element by element; what is left to do, for however many tensors, is one sum over segments of one vector:

        parts      rows of W_0 | gain_0 | offset_0 | rows of W_1 | gain_1 | ...      norms, elements: squared, float64
        segments   group 0     | group 1           | group 2     | group 3 ...       summed, square root

    Args:
        groups: for each group its tensors; all on one device, else ValueError.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]]) -> None:
        # [tensors]: the tensors of all groups, and in `owner` the number of their group.
        self.tensors: list[Tensor] = [tensor for group in groups for tensor in group]
        if len(devices := {tensor.device for tensor in self.tensors}) > 1:
            raise ValueError(f"the weights lie on {len(devices)} devices, but their norms are taken on one.")
        device = self.tensors[0].device
        self.owner = torch.tensor([n for n, group in enumerate(groups) for _ in group], device=device)
        wide = any(tensor.dtype == torch.float64 for tensor in self.tensors)
        self.dtype = torch.float64 if wide else torch.float32  # what the tensors are to be scaled in
        self._by_rows = device.type == "cpu"
        self._rows = [_row_length(tensor) for tensor in self.tensors]
        parts = [tensor.numel() // length for tensor, length in zip(self.tensors, self._rows, strict=True)]
        counts = torch.tensor(parts if self._by_rows else [1] * len(parts), device=device)
        self._segments = torch.zeros(len(groups), dtype=torch.int64, device=device).index_add_(0, self.owner, counts)

    def __call__(self, tensors: Iterable[Tensor] | None = None) -> Tensor:
        """[groups] float64: the norms of `tensors` (None: the groups' own). One read of the memory, no host sync.

        Args:
            tensors: in the order and shapes of `self.tensors`.
        """
        tensors = list(self.tensors if tensors is None else tensors)
        if self._by_rows:
            parts = torch.cat([_row_norms(*pair) for pair in zip(tensors, self._rows, strict=True)])
        else:
            parts = torch.stack(torch._foreach_norm(tensors, 2, self.dtype))
        # A sum over segments and no matmul, which may run in reduced precision; unsafe: no check of the lengths.
        squares = torch.segment_reduce(parts.double().square(), "sum", lengths=self._segments, unsafe=True)
        return squares.sqrt()


def unit_norms(tensors: Sequence[Tensor]) -> Tensor:
    """[units] float64: for each output unit of a layer the norm of its rows of all `tensors` [units, ...]."""
    rows = [tensor.reshape(len(tensor), -1) for tensor in tensors]
    squares = [torch.linalg.vector_norm(row, dim=1, dtype=torch.float64).square() for row in rows]
    return torch.stack(squares).sum(0).sqrt()


def scale(tensors: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    """Multiply in place. Half precision would round a factor near 1 to 1, so it is left for the product."""
    if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors):
        exact = torch._foreach_mul([tensor.float() for tensor in tensors], [factor.float() for factor in factors])
        torch._foreach_copy_(list(tensors), exact)
    else:
        torch._foreach_mul_(list(tensors), list(factors))


def _row_length(tensor: Tensor) -> int:
    """How long the rows are into which a tensor is cut for its norm; 1 if it is taken element by element."""
    if tensor.numel() <= 4096:
        return 1
    return next((length for length in range(512, 63, -1) if tensor.numel() % length == 0), 1)


def _row_norms(tensor: Tensor, length: int) -> Tensor:
    """[rows] float32 or float64; the elements themselves for rows of one."""
    if length == 1:
        return tensor.reshape(-1)
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    rows: Tensor = torch.linalg.vector_norm(tensor.reshape(-1, length), dim=1, dtype=dtype)
    return rows
