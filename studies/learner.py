"""One network and all that trains it: normalisation, optimiser, projection, plasticity method."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from nap_rl.images import CLASSES
from nap_rl.nap import Projector, normalize
from nap_rl.nap.layers import NormKind, RMSNorm
from nap_rl.nap.project import Affine
from nap_rl.plasticity import make_method, method_named
from nap_rl.studies.config import StudyConfig
from nap_rl.studies.models import build_model


class Learner:
    """A network, its optimiser, projector and method. `config.seed` decides the initial weights.

    Args:
        images: [N, C, H, W], float32 or float64; the network has their dtype.
    """

    def __init__(self, config: StudyConfig, images: Tensor) -> None:
        self.images = images
        example = images[: config.batch_size]
        torch.manual_seed(config.seed)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        network = build_model(config.model, shape, CLASSES, config.width, config.depth).to(images.dtype)
        network = method_named(config.method).prepare(network, example)
        if config.norm != "none":
            kind = cast(NormKind, config.norm)
            network = normalize(network, example, norm=kind, affine=config.affine != "omit")
        self.network = network
        self.optimizer = make_optimizer(config, network)
        self.projector: Projector | None = None
        if config.nap:
            affine = cast(Affine, config.affine if config.affine != "omit" else "free")
            self.projector = Projector(
                network,
                self.optimizer,
                every=config.project_every,
                affine=affine,
                regularize_coefficient=config.regularize_coefficient,
            )
        self.method = make_method(
            config.method,
            network,
            self.optimizer,
            example_input=example,
            seed=config.seed,
            options=config.options,
        )
        self.updates = 0

    def update(self, x: Tensor, y: Tensor) -> Tensor:
        """Updates on images x [B, C, H, W] and labels y [B] int64; returns the logits before it, [B, classes]."""
        logits: Tensor = self.network(x)
        loss: Tensor = F.cross_entropy(logits, y)
        if (penalty := self.method.penalty()) is not None:
            loss = loss + penalty
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.updates += 1
        self._project_if(self.method.after_update(self.updates, lambda: self.images))
        return logits.detach()

    def at_switch(self) -> None:
        """What the method does where a new task begins."""
        self._project_if(self.method.at_switch())

    def _project_if(self, changed: bool) -> None:
        if changed and self.projector is not None:
            self.projector.project()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Returns what a checkpoint holds: part -> name -> tensor. It decides all later updates."""
        state = {
            "network": dict(self.network.state_dict()),
            "optimizer": _optimizer_tensors(self.optimizer),
            "method": self.method.state_dict(),
        }
        if self.projector is not None:
            projector = self.projector.state_dict()
            state["projector"] = {**projector["norms"], "updates": torch.tensor(projector["updates"])}
        return state

    def load_state(self, state: dict[str, dict[str, Tensor]], updates: int) -> None:
        self.network.load_state_dict(state["network"])
        _load_optimizer(self.optimizer, state["optimizer"])
        self.method.load_state_dict(state["method"])
        if self.projector is not None:
            norms = dict(state["projector"])
            self.projector.load_state_dict({"updates": int(norms.pop("updates")), "norms": norms})
        self.updates = updates


def make_optimizer(config: StudyConfig, network: nn.Module) -> Optimizer:
    """Returns Adam, SGD or SGD with momentum 0.9. They are fused: with weights this small, Python takes the time."""
    rate = config.learning_rate
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if config.affine_rate != 1:
        affine = [p for pair in gains_and_offsets(network) for p in pair]
        rest = [p for p in network.parameters() if all(p is not a for a in affine)]
        groups = [{"params": rest}, {"params": affine, "lr": rate * config.affine_rate}]
    if config.optimizer == "adam":
        return Adam(groups, lr=rate, fused=True)
    momentum = {"sgd": 0.0, "momentum": 0.9}[config.optimizer]
    return SGD(groups, lr=rate, momentum=momentum, fused=True)


def gains_and_offsets(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Returns (scale, offset) of every normalisation that has both."""
    norms = [m for m in network.modules() if isinstance(m, (nn.LayerNorm, nn.GroupNorm, RMSNorm))]
    return [(m.weight, m.bias) for m in norms if m.weight is not None and m.bias is not None]


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Returns Adam's moments and step counts, or SGD's momentum. "3.exp_avg" belongs to the fourth parameter."""
    return {
        f"{number}.{key}": value
        for number, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    whole: dict[str, Any] = optimizer.state_dict()
    whole["state"] = {}
    for name, value in tensors.items():
        number, key = name.split(".")
        whole["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(whole)
