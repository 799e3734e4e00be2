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
    the same time and keep seven digits, so large CPU tensors are cut into such rows. All others go through one call.

    Args:
        groups: for each group its tensors; all on one device, else ValueError.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]]) -> None:
        pairs = [(tensor, number) for number, group in enumerate(groups) for tensor in group]
        pairs.sort(key=lambda pair: _row_length(pair[0]) == 0)  # those that are cut into rows come first
        # [tensors]: the tensors of all groups, and in `owner` the number of their group.
        self.tensors: list[Tensor] = [tensor for tensor, _ in pairs]
        if len(devices := {tensor.device for tensor in self.tensors}) > 1:
            raise ValueError(f"the weights lie on {len(devices)} devices, but their norms are taken on one.")
        device = self.tensors[0].device
        self.owner = torch.tensor([number for _, number in pairs], device=device)
        # [groups, tensors]: 1 where the tensor belongs to the group.
        numbers = torch.arange(len(groups), device=device)
        self._members = (numbers[:, None] == self.owner).double()
        self._rows = [length for length in map(_row_length, self.tensors) if length]
        wide = any(tensor.dtype == torch.float64 for tensor in self.tensors)
        self.dtype = torch.float64 if wide else torch.float32  # what the tensors are to be scaled in
        self._norm_dtype = torch.float64 if device.type == "cpu" else self.dtype

    def __call__(self, tensors: Iterable[Tensor] | None = None) -> Tensor:
        """[groups] float64: the norms of `tensors` (None: the groups' own). One read of the memory, no host sync.

        Args:
            tensors: in the order and shapes of `self.tensors`.
        """
        rest = iter(self.tensors if tensors is None else tensors)
        norms = [_norm_by_rows(next(rest), length) for length in self._rows]
        if others := list(rest):
            norms += torch._foreach_norm(others, 2, self._norm_dtype)
        # A sum of products and no matmul, which may run in reduced precision.
        return (self._members * torch.stack(norms).double().square()).sum(1).sqrt()


def _row_length(tensor: Tensor) -> int:
    """How long the rows are into which a tensor is cut for its norm; 0 if it is not."""
    if tensor.device.type != "cpu" or tensor.dtype == torch.float64 or tensor.numel() <= 4096:
        return 0
    return next((length for length in range(512, 63, -1) if tensor.numel() % length == 0), 0)


def _norm_by_rows(tensor: Tensor, length: int) -> Tensor:
    rows = torch.linalg.vector_norm(tensor.reshape(-1, length), dim=1, dtype=torch.float32)
    norm: Tensor = torch.linalg.vector_norm(rows, dtype=torch.float64)
    return norm
