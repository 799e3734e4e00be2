"""The network with other parameters, in high precision: to scale and differentiate it without touching the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nap_rl.nap.trace import Example, positional, undisturbed

# Above so many parameters, float64 would take more time and memory than it is worth.
LARGE = 100_000_000

StandIns = dict[Tensor, nn.Parameter]


def precision(module: nn.Module) -> torch.dtype:
    """float64; float32 for networks of more than 100 million parameters and for devices without float64."""
    parameters = list(module.parameters())
    small = sum(parameter.numel() for parameter in parameters) <= LARGE
    return torch.float64 if small and all(p.device.type != "mps" for p in parameters) else torch.float32


@contextmanager
def stand_ins(module: nn.Module, value: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Iterator[StandIns]:
    """Within it, `value(p)` stands for every parameter p of `module`, and all floating-point tensors are in `dtype`.

    The parameters are out of the module meanwhile, so nothing writes to them and none of their hooks is called.

    Args:
        value: may give p itself, which is then shared if it has the right dtype.

    Yields:
        The stand-in of each parameter, without gradients.
    """
    found: StandIns = {}
    put: list[tuple[dict[str, Any], str, Tensor]] = []
    modules = list(module.modules())
    try:
        with torch.no_grad():
            for each in modules:
                for name, parameter in each._parameters.items():
                    if parameter is not None:
                        put.append((each._parameters, name, parameter))
                        if parameter not in found:
                            found[parameter] = nn.Parameter(_cast(value(parameter.detach()), dtype), False)
                        each._parameters[name] = found[parameter]
                for name, buffer in each._buffers.items():
                    if buffer is not None:
                        put.append((each._buffers, name, buffer))
                        each._buffers[name] = _cast(buffer, dtype)
            _refresh_rnns(modules)
        yield found
    finally:
        for holder, name, tensor in put:
            holder[name] = tensor
        _refresh_rnns(modules)


def outputs(module: nn.Module, example: Example, dtype: torch.dtype) -> list[Tensor]:
    """The floating-point tensors in the output of a module with stand-ins in `dtype`.

    Raises ValueError where there is none, or one that is not finite.
    """
    # Copies, since a forward may work on its input in place.
    inputs = tree_map_only(Tensor, lambda tensor: _cast(tensor.detach().clone(), dtype), positional(example))
    with undisturbed(module), torch.backends.cudnn.flags(enabled=False), _In(dtype):  # cuDNN's RNNs: no eval backward
        leaves = tree_leaves(module(*inputs))
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not found or not all(bool(out.isfinite().all()) for out in found):
        raise ValueError("the module's output for the example must hold finite floating-point tensors.")
    return found


class _In(TorchFunctionMode):
    """Floating-point tensors that a function takes or gives are in one dtype, also where a forward asks for another."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _cast(func(*_cast(args, self.dtype), **_cast(kwargs or {}, self.dtype)), self.dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_cast(each, dtype) for each in value)
    if type(value) is dict:
        return {key: _cast(each, dtype) for key, each in value.items()}
    return value


def _refresh_rnns(modules: list[nn.Module]) -> None:
    """RNNs keep a second list of their parameters."""
    for each in modules:
        if isinstance(each, nn.RNNBase):
            each._flat_weights = [getattr(each, name, None) for name in each._flat_weights_names]
