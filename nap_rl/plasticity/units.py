"""Hidden units: which layer computes them, which layers read them, and how one of them is made new.

      incoming            norms            activation          outgoing
x ──► Linear / Conv ──► LayerNorm ... ──► ReLU ──► h [B, U, ...] ──► Linear / Conv, one or several
      row u of the       entry u of                              columns of u: a channel that was
      weight and bias    gain, offset                            flattened owns several
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.nap.groups import is_weight_layer
from nap_rl.nap.trace import is_activation, trace_forward
from nap_rl.plasticity.fresh import fresh_parameters


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


def hidden_units(network: nn.Module, example_input: Tensor) -> list[Units]:
    """The hidden units of `network` in the order of its forward pass, found by following tensors through one.

    Every activation must be a submodule that is used once in a pass.
    """
    modules = dict(network.named_modules())
    origins = trace_forward(network, example_input).origins
    readers = _readers(origins)
    found = []
    for name, runs in origins.items():
        if not is_activation(modules[name]):
            continue
        if len(runs) > 1:
            raise ValueError(f"The activation {name!r} is used twice in one pass; give each use its own module.")
        sources = [each for path, each in modules.items() if path in runs[0]]  # in the order of registration
        incoming = tuple(m for m in sources if is_weight_layer(m))
        outgoing = tuple(modules[reader] for reader in readers[name])
        alone = len(incoming) == 1 and [readers[path] for path in runs[0] if modules[path] is incoming[0]] == [[name]]
        plain = bool(outgoing) and not any(is_activation(m) for m in (*sources, *outgoing))
        norms = tuple(m for m in sources if not is_activation(m) and not is_weight_layer(m))
        found.append(Units(name, modules[name], incoming, norms, outgoing, alone and plain))
    return found


def output_layers(network: nn.Module, example_input: Tensor) -> list[nn.Module]:
    """The weight layers whose output reaches no other layer and no activation, in the order of the forward pass."""
    origins = trace_forward(network, example_input).origins
    readers = _readers(origins)
    layers = [network.get_submodule(name) for name in origins if not readers[name]]
    return [layer for layer in layers if is_weight_layer(layer)]


def _readers(origins: Mapping[str, list[frozenset[str]]]) -> dict[str, list[str]]:
    """For each module the activations and weight layers that its output reaches past no other, in order."""
    readers: dict[str, list[str]] = {name: [] for name in origins}
    for name, runs in origins.items():
        for run in runs:
            for origin in run:
                readers.setdefault(origin, []).append(name)
    return readers


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
