"""Which tensors of a network are weights, which of them share one scale, and their norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel

Weights = tuple[nn.Parameter, ...]


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel and torch.compile, so that names stay the same."""
    while True:
        if isinstance(module, DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def weight_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every Linear, convolution and layer with `joint_scale`, by module path, in order of registration."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, _ConvNd)) or hasattr(layer, "joint_scale")
    }


def weight_groups(module: nn.Module) -> dict[str, Weights]:
    """The weight tensors of every weight layer, those with one common scale together, by module path.

    A plain Linear or convolution gives `(weight,)` and leaves its bias out. A layer with `joint_scale`, such
    as a noisy one, gives all tensors listed there, biases included. Tensors that several layers share belong
    to the first of them.

    Raises:
        ValueError: a layer's weight is computed from others (parametrised) or not yet shaped (lazy), or two
            layers share some of their tensors, but not all.
    """
    groups: dict[str, Weights] = {}
    owner: dict[nn.Parameter, str] = {}
    for name, layer in weight_layers(unwrap(module)).items():
        tensors = layer_weights(layer, name)
        earlier = {owner[tensor] for tensor in tensors if tensor in owner}
        if not earlier:
            groups[name] = tensors
            owner.update(dict.fromkeys(tensors, name))
        elif len(earlier) > 1 or set(groups[min(earlier)]) != set(tensors):
            raise ValueError(f"layers '{name}' and '{min(earlier)}' share some of their tensors, but not all.")
    return groups


def layer_weights(layer: nn.Module, name: str) -> Weights:
    """The tensors of one weight layer that share one scale: its `weight`, or what its `joint_scale` lists."""
    attributes: tuple[str, ...] = getattr(layer, "joint_scale", ("weight",))
    tensors = tuple(tensor for tensor in (getattr(layer, each) for each in attributes) if tensor is not None)
    for tensor in tensors:
        if isinstance(tensor, nn.parameter.UninitializedParameter):
            raise ValueError(f"layer '{name}' is lazy and has no weight yet: run the module once before.")
        if not isinstance(tensor, nn.Parameter):
            raise ValueError(
                f"layer '{name}' ({type(layer).__name__}) computes its weight from other tensors (weight_norm or "
                "another parametrisation), so it has no norm of its own to project: remove that first."
            )
    return tensors


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
