"""What each layer is to the output of its network, and so what a projection may do to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from math import isnan, prod
from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from nap_rl.nap.groups import is_transposed, layer_weights, weight_groups, weight_layers, within
from nap_rl.nap.invariance import INVARIANT, scale_ratios
from nap_rl.nap.layers import Axes, NormKind
from nap_rl.nap.trace import Example, Layout, trace_forward

Role = Literal["invariant", "output", "hidden", "narrow", "unreached", "free"]


def assign_roles(module: nn.Module, example: Example, free: Collection[str] = ()) -> dict[str, Role]:
    """The role of each group of `weight_groups(module)`; layers that the example never uses are left out.

    - "free": named so, here or in `normalize`.
    - "unreached": no gradient comes back to it from the output, so nothing is known of it.
    - "invariant": the scale of its weights does not change the output.
    - "output": it does, and it reaches the output past no norm and no other weight layer.
    - "narrow": it does, and a norm behind it would leave nothing of its output (see `is_narrow`).
    - "hidden": it does in any other way.

    Raises:
        ValueError: the module multiplies by a parameter that is no weight layer's: it would be overlooked.
    """
    trace = trace_forward(module, example)
    for name in sorted(trace.strangers):
        if not within(name, free):
            kind = type(module.get_submodule(name.rpartition(".")[0])).__name__
            raise ValueError(
                f"the module multiplies by parameter '{name}' of {kind}, which belongs to no Linear, convolution or "
                "layer with `joint_scale`: give its layer one that lists it, or leave it out with free=[...]."
            )
    layers = weight_layers(module)
    users = defaultdict(set)  # by tensor: tied weights are one group with several users
    for name, layer in layers.items():
        for parameter in layer.parameters(recurse=False):
            users[parameter].add(name)
    freed = {name for name, layer in layers.items() if within(name, free) or getattr(layer, "nap_role", "") == "free"}
    roles: dict[str, Role] = dict.fromkeys(freed, "free")
    judged = {}
    for name, tensors in weight_groups(module, free=free).items():
        if users[tensors[0]] & freed:
            roles[name] = "free"
        elif users[tensors[0]] & trace.used:
            judged[name] = tensors
    for name, ratio in scale_ratios(module, example, judged).items():
        layer = layers[name]
        if ratio <= INVARIANT:
            roles[name] = "invariant"
        elif users[judged[name][0]] & trace.outputs and not isnan(ratio):
            roles[name] = "output"
        elif getattr(layer, "nap_role", "") == "narrow" or is_narrow(layer, trace.layouts.get(name)):
            roles[name] = "narrow"
        else:
            roles[name] = "unreached" if isnan(ratio) else "hidden"
    return roles


def is_narrow(layer: nn.Module | None, layout: Layout | None, kind: NormKind = "layer", axes: Axes = "all") -> bool:
    """Whether a norm of what `layer` gives would leave a constant or a sign of it, and nothing else.

    It would if it is taken over one number or two, or over c w_1, ..., c w_n with one number c for each sample.

    Args:
        layer: None for what comes from no single layer.
        layout: of the norm's input.
    """
    if layout is None or kind == "batch":
        return False
    shape, convolutional = layout
    channels = shape[1] if convolutional else shape[-1]
    positions = prod(shape[2:]) if convolutional and (axes == "all" or kind == "group") else 1
    return channels * positions <= 2 or (positions == 1 and layer is not None and _inputs(layer) == 1)


def _inputs(layer: nn.Module) -> int:
    """How many numbers each output of the layer is computed from."""
    weight = next((tensor for tensor in layer_weights(layer) if tensor.ndim > 1), None)
    if weight is None:
        return 0
    transposed = is_transposed(layer) or isinstance(layer, _ConvTransposeNd)
    return (weight.transpose(0, 1) if transposed else weight)[0].numel()
