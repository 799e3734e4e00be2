"""The network in float64, for a while: to be scaled and differentiated without touching a weight of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nap_rl.nap.trace import Example, positional, undisturbed

Doubles = dict[Tensor, nn.Parameter]


@contextmanager
def doubled(module: nn.Module, value: Callable[[Tensor], Tensor]) -> Iterator[Doubles]:
    """Within it, every parameter p of `module` is `value(p)` in float64, and every buffer is in float64.

    The originals are out of the module meanwhile: nothing writes to the parameters, and none of their hooks is called.

    Yields:
        What stands in for each parameter.
    """
    doubles: Doubles = {}
    put: list[tuple[dict[str, Any], str, Tensor]] = []
    modules = list(module.modules())
    try:
        with torch.no_grad():
            for each in modules:
                for name, parameter in each._parameters.items():
                    if parameter is not None:
                        put.append((each._parameters, name, parameter))
                        if parameter not in doubles:
                            doubles[parameter] = nn.Parameter(_double(value(parameter.detach()), copy=True), False)
                        each._parameters[name] = doubles[parameter]
                for name, buffer in each._buffers.items():
                    if buffer is not None:
                        put.append((each._buffers, name, buffer))
                        each._buffers[name] = _double(buffer)
            _refresh_rnns(modules)
        yield doubles
    finally:
        for holder, name, tensor in put:
            holder[name] = tensor
        _refresh_rnns(modules)


def double_outputs(module: nn.Module, example: Example) -> list[Tensor]:
    """The floating-point tensors in the output of a `doubled` module, with their graph where gradients are on.

    Raises ValueError where there is none, or one that is not finite.
    """
    inputs = tree_map_only(Tensor, lambda tensor: _double(tensor.detach(), copy=True), positional(example))
    with undisturbed(module), torch.backends.cudnn.flags(enabled=False), _InDouble():  # cuDNN's RNNs: no eval backward
        leaves = tree_leaves(module(*inputs))
    outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not outputs or not all(bool(out.isfinite().all()) for out in outputs):
        raise ValueError("the module's output for the example must hold finite floating-point tensors.")
    return outputs


class _InDouble(TorchFunctionMode):
    """Every floating-point tensor that a function takes or gives is float64, also where a forward asks for another."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _all_double(func(*_all_double(args), **_all_double(kwargs or {})))


def _all_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _double(value)
    if type(value) in (tuple, list):
        return type(value)(map(_all_double, value))
    if type(value) is dict:
        return {key: _all_double(each) for key, each in value.items()}
    return value


def _double(tensor: Tensor, copy: bool = False) -> Tensor:
    return tensor.to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=copy)


def _refresh_rnns(modules: list[nn.Module]) -> None:
    """RNNs keep a second list of their parameters."""
    for each in modules:
        if isinstance(each, nn.RNNBase):
            each._flat_weights = [getattr(each, name, None) for name in each._flat_weights_names]
