"""Hidden units: which layer computes them, which layers read them, and how one of them is made new.

      incoming            norms            activation          outgoing
x ──► Linear / Conv ──► LayerNorm ... ──► ReLU ──► h [B, U, ...] ──► Linear / Conv, one or several
      row u of the       entry u of                              columns of u: a channel that was
      weight and bias    gain, offset                            flattened owns several
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from nap_rl.plasticity.fresh import fresh_parameters

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh)


@dataclass(frozen=True)
class Units:
    """The U units of one activation. `recyclable` is False where a unit cannot be made new without touching
    others: its input or its output takes part in a skip connection."""

    name: str
    activation: nn.Module
    incoming: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    outgoing: tuple[nn.Module, ...]
    recyclable: bool

    @property
    def width(self) -> int:
        """U: the rows of the incoming weight."""
        return matrices(self.incoming[0])[0].shape[0]


def is_weight_layer(module: nn.Module) -> bool:
    """Linear and convolutional layers, ours and torch's: they say how many features or channels they read."""
    return hasattr(module, "in_features") or hasattr(module, "in_channels")


def hidden_units(network: nn.Module, example_input: Tensor) -> list[Units]:
    """The hidden units of `network` in the order of its forward pass, found by following tensors through one.

    Every activation must be a submodule of a class in ACTIVATIONS that is used once in a pass.
    """
    names = {module: name for name, module in network.named_modules()}
    sources, readers = _trace(network, example_input)
    found = []
    for activation, origins in sources.items():
        incoming = tuple(m for m in origins if is_weight_layer(m))
        outgoing = tuple(readers[activation])
        alone = len(incoming) == 1 and readers[incoming[0]] == [activation]
        plain = bool(outgoing) and not any(isinstance(m, ACTIVATIONS) for m in (*origins, *outgoing))
        norms = tuple(m for m in origins if not isinstance(m, ACTIVATIONS) and not is_weight_layer(m))
        found.append(Units(names[activation], activation, incoming, norms, outgoing, alone and plain))
    return found


def output_layers(network: nn.Module, example_input: Tensor) -> list[nn.Module]:
    """The weight layers whose output reaches no other layer and no activation, in the order of the forward pass."""
    _, readers = _trace(network, example_input)
    return [layer for layer, reached in readers.items() if is_weight_layer(layer) and not reached]


def _trace(
    network: nn.Module, example_input: Tensor
) -> tuple[dict[nn.Module, list[nn.Module]], dict[nn.Module, list[nn.Module]]]:
    """(activation -> modules that its input comes from, layer or activation -> those that its output reaches)."""
    names = {module: name for name, module in network.named_modules()}
    sources: dict[nn.Module, list[nn.Module]] = {}
    readers: dict[nn.Module, list[nn.Module]] = {}

    def enter(module: nn.Module, origins: frozenset[nn.Module]) -> frozenset[nn.Module]:
        if not (isinstance(module, ACTIVATIONS) or is_weight_layer(module)):
            has_parameters = any(True for _ in module.parameters(recurse=False))
            return origins | {module} if has_parameters else origins
        if module in sources:
            raise ValueError(
                f"The activation {names[module]!r} is used twice in one pass; give each use its own module."
            )
        if isinstance(module, ACTIVATIONS):
            sources[module] = [m for m in names if m in origins]  # a set has no order of its own
        for origin in origins:
            readers.setdefault(origin, []).append(module)
        readers.setdefault(module, [])
        return frozenset({module, *(m for m in module.modules() if any(True for _ in m.parameters(recurse=False)))})

    with torch.no_grad(), _follow(network, enter):
        network(example_input)
    return sources, readers


@contextmanager
def _follow(
    network: nn.Module, enter: Callable[[nn.Module, frozenset[nn.Module]], frozenset[nn.Module]]
) -> Iterator[None]:
    """Labels every tensor of a forward pass with the modules it comes from; `enter` says how a module
    relabels."""
    labels: dict[int, frozenset[nn.Module]] = {}
    alive: list[Tensor] = []  # an id may be reused once its tensor is gone
    nothing: frozenset[nn.Module] = frozenset()

    def read(values: Any) -> frozenset[nn.Module]:
        return nothing.union(*(labels.get(id(tensor), nothing) for tensor in _tensors(values)))

    def write(values: Any, sources: frozenset[nn.Module]) -> None:
        for tensor in _tensors(values):
            labels[id(tensor)] = sources
            alive.append(tensor)

    class Follow(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = function(*args, **(kwargs or {}))
            write(output, read((args, kwargs)))
            return output

    def after(module: nn.Module, args: Any, output: Any) -> None:
        write(output, enter(module, read(args)))

    # A normalisation may hang on a weight layer as its child, applied by a hook that ran before ours.
    watched = [m for m in network.modules() if is_weight_layer(m) or not any(True for _ in m.children())]
    handles = [module.register_forward_hook(after) for module in watched]
    try:
        with Follow():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


@contextmanager
def recorded(units: list[Units], into: dict[str, Tensor]) -> Iterator[None]:
    """Within it every forward pass writes E|h_u| of each activation, [U] float32, into `into` by name.

    The mean is over the batch and, for feature maps, over space (Sokar et al. 2023, section 3).
    """

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def write(module: nn.Module, args: Any, h: Tensor) -> None:
            into[name] = mean_activity(h.detach())

        return write

    handles = [u.activation.register_forward_hook(hook(u.name)) for u in units]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_activity(h: Tensor) -> Tensor:
    """E|h_u|: [B, U] or [B, U, H, W] -> [U]."""
    return h.abs().transpose(0, 1).flatten(1).mean(1)


def outgoing_columns(weight: Tensor, units: int) -> Tensor:
    """The weights that read each unit: [out, U * k, ...] -> view [out, U, k'], for Linear, Conv and flattened
    maps.

    Linear          [out, U]            -> [out, U, 1]
    Conv            [out, U, kh, kw]    -> [out, U, kh * kw]
    flatten, Linear [out, U * H * W]    -> [out, U, H * W]      flatten puts channel u at u * H * W and after
    """
    if weight.shape[1:].numel() % units:
        raise ValueError(f"A weight of shape {tuple(weight.shape)} does not read {units} units evenly.")
    return weight.view(weight.shape[0], units, -1)


def matrices(layer: nn.Module) -> list[nn.Parameter]:
    """The weight tensors of a layer: one for Linear and Conv, mean and deviation for a noisy layer."""
    return [p for p in layer.parameters(recurse=False) if p.ndim >= 2]


@torch.no_grad()
def recycle(units: Units, mask: Tensor, optimizer: Optimizer, generator: torch.Generator) -> None:
    """Makes the units in `mask` ([U] bool) new: incoming weights drawn afresh, bias 0, gain 1 and offset 0 of
    their normalisation, outgoing weights 0, and the optimiser's moments of all of these 0.

    Source: Sokar et al. 2023 (arXiv 2302.12902), section 4; the normalisation's entries are our addition: a
    unit that its own offset holds below zero would stay dormant with any weights.
    """
    for layer in (*units.incoming, *units.norms):
        drawn = fresh_parameters(layer, generator)
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.shape[0] != len(mask):
                continue  # a scale that all units share
            new = drawn[name]
            if is_weight_layer(layer) and name in ("bias", "bias_mu"):
                new = torch.zeros_like(new)
            rows = mask.view(-1, *[1] * (parameter.ndim - 1))
            parameter.copy_(torch.where(rows, new, parameter))
            for moment in moments(optimizer, parameter):
                moment.masked_fill_(rows, 0.0)
    for layer in units.outgoing:
        for parameter in matrices(layer):
            for tensor in (parameter, *moments(optimizer, parameter)):
                outgoing_columns(tensor, len(mask)).masked_fill_(mask.view(1, -1, 1), 0.0)


def moments(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """The optimiser's tensors of the parameter's own shape: Adam's two moments, SGD's momentum."""
    state = optimizer.state.get(parameter, {})
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]
