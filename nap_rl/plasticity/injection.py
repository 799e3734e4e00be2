"""Plasticity injection (Nikishin et al. 2023, arXiv 2305.15555)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nap_rl.nap.groups import is_weight_layer, layer_weights
from nap_rl.nap.norms import scale, unit_norms
from nap_rl.plasticity.fresh import fresh_parameters
from nap_rl.plasticity.method import Inputs, Method, option


class Injection(Method):
    """After update `at`, once: the head learns on with fresh weights, and the network's output stays what it was.

        before   h(x)
        after    h_old(x) + h_fresh(x) - h_initial(x)

    h is the streams of a value network, h_old its weights until then and h_initial those that h_fresh begins with. Old
    and initial weights are frozen, so as many weights are trained as before. The torso learns on, through all three.
    The moments of the fresh weights begin anew, as for new parameters; those of the torso are kept.

    The network has the frozen weights from the start (see `nap_rl.nn.InjectedStream`): an injection changes values,
    neither names nor shapes. It happens once, since the sum of two injections is no network of this shape. The source
    injects after a quarter of a run, whatever the task: so does this one, at an update and not at a task switch.

    With NaP the fresh weights have the norm of the first ones, unit by unit. A projection leaves them as drawn.

    Args:
        at: number of the update after which to inject.

    Raises:
        ValueError: the network has no streams; or, at update `at`, its weights were injected already.
    """

    value_networks_only = True
    renews_parameters = True

    def __init__(self, network: nn.Module, optimizer: Optimizer, *, at: int = 1000, seed: int = 0) -> None:
        super().__init__(network, optimizer, seed=seed)
        self.at: int = option("at", at)
        self.streams: list[Any] = list(_streams(network).children())
        for stream in self.streams:
            for frozen in (stream.old, stream.initial):
                frozen.requires_grad_(False)  # the norms as well, which came after `prepare`

    @staticmethod
    def prepare(network: nn.Module, example_input: Tensor) -> nn.Module:
        _streams(network).keep_copies()
        return network

    @torch.no_grad()
    def after_update(self, update: int, inputs: Inputs) -> bool:
        if update != self.at:
            return False
        if any(stream.is_injected for stream in self.streams):
            raise ValueError("plasticity injection happens once, and these weights were injected already")
        for stream in self.streams:
            own, initial = stream.own_tensors(), stream.initial.state_dict()
            for name, tensor in stream.old.state_dict().items():
                tensor.copy_(own[name])
            self._draw_anew(stream.initial)
            for name, tensor in own.items():
                tensor.copy_(initial[name])
            for parameter in stream.parameters():
                self.optimizer.state.pop(parameter, None)
        return True

    def _draw_anew(self, initial: nn.Module) -> None:
        """Fresh parameters in place of the first ones, with their norms."""
        layers = [layer for layer in initial.modules() if is_weight_layer(layer)]
        norms = [unit_norms(layer_weights(layer)) for layer in layers]
        fresh = fresh_parameters(initial, self.generator)
        for name, parameter in initial.named_parameters():
            parameter.copy_(fresh[name])
        for layer, norm in zip(layers, norms, strict=True):
            weights = layer_weights(layer)
            factors = norm / unit_norms(weights).clamp_min(1e-30)
            scale(weights, [factors.to(w.dtype).view(-1, *[1] * (w.ndim - 1)) for w in weights])


def _streams(network: nn.Module) -> Any:
    """ValueError: the network has no streams."""
    streams = getattr(network, "streams", None)
    if not hasattr(streams, "keep_copies"):
        raise ValueError(
            f"plasticity injection freezes the streams of a value network, and {type(network).__name__} has none"
        )
    return streams
