"""Which tensors of a network are weights, which of them share one scale, and their norms."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Weights = tuple[nn.Parameter, ...]


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel and torch.compile, so that names stay the same."""
    while True:
        inner = getattr(module, "module" if type(module).__name__ == "DistributedDataParallel" else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def within(path: str, free: Collection[str]) -> bool:
    """Whether `path` is one of the submodules in `free`, or inside one."""
    return any(path == name or path.startswith(f"{name}.") for name in free)


def check_paths(module: nn.Module, free: Collection[str]) -> None:
    """ValueError: `free` names something that is neither a submodule nor a parameter of `module`."""
    names = {name for name, _ in (*module.named_modules(), *module.named_parameters())}
    for path in free:
        if path not in names:
            raise ValueError(f"free names '{path}', but the module has no submodule of that path.")


def check_forward(module: nn.Module) -> None:
    """ValueError: the module has no forward through which an example could run."""
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        parts = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
        raise ValueError(
            f"{type(module).__name__} has no forward() for the example: normalize its networks one by one "
            f"({', '.join(parts)}), each with its own example. A Projector then takes the whole, without an example."
        )


def is_transposed(layer: nn.Module) -> bool:
    """Whether `layer` is a `Conv1D` as transformers has it: a linear layer whose weight is [inputs, outputs]."""
    return type(layer).__name__ == "Conv1D" and getattr(getattr(layer, "weight", None), "ndim", 0) == 2


def is_weight_layer(layer: nn.Module) -> bool:
    """Whether it is a Linear, a convolution, a transposed linear layer, or one with `joint_scale`."""
    return isinstance(layer, (nn.Linear, _ConvNd)) or is_transposed(layer) or hasattr(layer, "joint_scale")


def weight_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every weight layer, by module path."""
    return {name: layer for name, layer in module.named_modules() if is_weight_layer(layer)}


def weight_groups(module: nn.Module, *, free: Collection[str] = ()) -> dict[str, Weights]:
    """The weight tensors of every weight layer, those with one common scale together, by module path.

    A plain Linear or convolution gives `(weight,)` and leaves its bias out. A layer with `joint_scale`, such
    as a noisy one, gives all tensors listed there, biases included. Tensors that several layers share belong
    to the first of them.

    Args:
        free: paths of submodules to leave out. What `normalize` was told to leave free is left out where it has
            no weight of its own.

    Raises:
        ValueError: naming the layer. Its weight is computed from others (parametrised), not yet shaped (lazy),
            complex or sharded, or two layers share some of their tensors, but not all.
    """
    module = unwrap(module)
    check_paths(module, free)
    groups: dict[str, Weights] = {}
    owner: dict[nn.Parameter, str] = {}
    for name, layer in weight_layers(module).items():
        if within(name, free):
            continue
        tensors = layer_weights(layer)
        if problem := _problem(layer, tensors):
            if getattr(layer, "nap_role", None) == "free":
                continue
            raise ValueError(f"layer '{name}' {problem}, or leave it out with free=[...].")
        earlier = {owner[tensor] for tensor in tensors if tensor in owner}
        if not earlier:
            groups[name] = tensors
            owner.update(dict.fromkeys(tensors, name))
        elif len(earlier) > 1 or set(groups[min(earlier)]) != set(tensors):
            raise ValueError(f"layers '{name}' and '{min(earlier)}' share some of their tensors, but not all.")
    return groups


def layer_weights(layer: nn.Module) -> Weights:
    """The tensors of one weight layer that share one scale: its `weight`, or what its `joint_scale` lists."""
    attributes: tuple[str, ...] = getattr(layer, "joint_scale", ("weight",))
    return tuple(tensor for tensor in (getattr(layer, each) for each in attributes) if tensor is not None)


def _problem(layer: nn.Module, tensors: Weights) -> str | None:
    """Why these tensors have no norm that could be projected, and what to do; None if they have one."""
    for tensor in tensors:
        if isinstance(tensor, nn.parameter.UninitializedParameter):
            return "is lazy and has no weight yet: run the module once before"
        if not isinstance(tensor, nn.Parameter):
            return (
                f"({type(layer).__name__}) computes its weight from other tensors (weight_norm or another "
                "parametrisation), so it has no norm of its own to project: remove that first"
            )
        if tensor.is_complex():
            return "has complex weights, which are not supported: use real ones"
        if hasattr(tensor, "full_tensor"):
            return (
                "is sharded over processes (a DTensor, as from fully_shard), so that no process has its whole norm: "
                "use DistributedDataParallel"
            )
    return None


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
