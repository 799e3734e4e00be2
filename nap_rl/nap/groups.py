"""Which tensors of a network are weights, and which of them share one scale."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from nap_rl.nap.layers import is_norm

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


def frozen_paths(module: nn.Module) -> tuple[str, ...]:
    """Submodules with parameters of which none is trained (`requires_grad` off)."""
    own = {name: list(each.parameters()) for name, each in module.named_modules() if name}
    return tuple(name for name, tensors in own.items() if tensors and not any(t.requires_grad for t in tensors))


def check_choice(name: str, value: str, *choices: str) -> None:
    """ValueError: the option `name` has a value that is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name}='{value}' is not one of {', '.join(choices)}.")


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


def gains_and_offsets(module: nn.Module, free: Collection[str]) -> dict[str, Weights]:
    """(gain, offset), or (gain,), of every norm that is not free; of norms that share them, the first."""
    pairs: dict[str, Weights] = {}
    gains: set[nn.Parameter] = set()
    for name, each in module.named_modules():
        if not is_norm(each) or within(name, free) or getattr(each, "nap_role", None) == "free":
            continue
        pair = (getattr(each, "weight", None), getattr(each, "bias", None))
        parameters = tuple(tensor for tensor in pair if isinstance(tensor, nn.Parameter))
        if parameters and parameters[0] not in gains:
            gains.add(parameters[0])
            pairs[name] = parameters
    return pairs


def layer_weights(layer: nn.Module) -> Weights:
    """The tensors of one weight layer that share one scale: its `weight`, or what its `joint_scale` lists."""
    attributes: tuple[str, ...] = getattr(layer, "joint_scale", ("weight",))
    return tuple(tensor for tensor in (getattr(layer, each) for each in attributes) if tensor is not None)


def split_groups(optimizer: Optimizer, layers: Mapping[str, Sequence[Tensor]]) -> None:
    """Give each layer parameter groups of its own, so that it can have a learning rate of its own.

    Such a group has the layer's name under the key "layer". The parameters keep their order, and so their places in the
    optimiser's state dict.
    """
    owner = {tensor: name for name, tensors in layers.items() for tensor in tensors}
    groups = optimizer.param_groups
    optimizer.param_groups = []
    for group in groups:
        for name, tensors in groupby(group["params"], key=owner.get):
            rate = group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]
            label = {} if name is None else {"layer": name}
            optimizer.add_param_group({**group, "params": list(tensors), "lr": rate, **label})


def _problem(layer: nn.Module, tensors: Sequence[object]) -> str | None:
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
