"""The arms of stationary training, and what trains them: norms, projection, optimiser, schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from nap_rl import schedules
from nap_rl.nap import Projector, normalize
from nap_rl.studies.stationary_config import TrainingConfig

Example = Tensor | tuple[Any, ...]


def build_arm(
    config: TrainingConfig, model: nn.Module, example: Example, device: torch.device
) -> tuple[nn.Module, Optimizer, Projector | None]:
    """The network on its device, with norms and projection as `config.variant` says.

    variant=norm with affine=regularize pulls scale and offset as nap does: the arms differ in the projection alone.

    Raises:
        ValueError: variant=project, and a hidden layer of the network has no norm behind it; names the layer.
    """
    if config.variant in ("norm", "nap"):
        options: dict[str, Any] = {"norm": config.norm, "axes": config.axes, "existing": config.existing}
        model = normalize(model, example, affine=config.affine != "omit", **options)
    model = model.to(device)
    optimizer = build_optimizer(config, model)
    affine: Any = "free" if config.affine == "omit" else config.affine
    every = config.project_every if config.variant in ("project", "nap") else None
    if config.variant == "baseline" or (every is None and affine == "free"):
        return model, optimizer, None
    coefficient = config.regularize_coefficient
    shown = _on(device, example) if config.variant == "project" else None  # normalize has left its marks
    projector = Projector(
        model, optimizer, every=every, affine=affine, regularize_coefficient=coefficient, example_input=shown
    )
    return model, optimizer, projector


def _on(device: torch.device, example: Example) -> Example:
    if isinstance(example, Tensor):
        return example.to(device)
    return tuple(part.to(device) if isinstance(part, Tensor) else part for part in example)


def build_optimizer(config: TrainingConfig, model: nn.Module) -> Optimizer:
    """SGD with momentum, or AdamW. Vectors (biases, scales, offsets) have no weight decay (He et al. 2019, 3.1)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    if config.optimizer == "sgd":
        return SGD(groups, lr=rate, momentum=config.momentum, fused=True)
    betas = (config.adam_beta1, config.adam_beta2)
    return AdamW(groups, lr=rate, betas=betas, eps=config.adam_eps, fused=True)


def build_schedule(config: TrainingConfig, updates: int) -> schedules.Schedule:
    """Share of the updates -> learning rate: a warm-up line from 0, then cosine, line or constant.

    Raises:
        ValueError: the warm-up takes all updates.
    """
    rate, end = config.learning_rate, config.learning_rate * config.final_share
    after: schedules.Schedule
    if config.schedule == "constant":
        after = schedules.Constant(rate)
    else:
        after = schedules.Cosine(rate, end) if config.schedule == "cosine" else schedules.Linear(rate, end)
    if config.warmup_updates >= updates:
        raise ValueError(f"warmup_updates={config.warmup_updates} leaves nothing of the run's {updates} updates")
    return schedules.Warmup(after, 0.0, config.warmup_updates / updates) if config.warmup_updates else after


def moments_of(optimizer: Optimizer) -> dict[str, Any]:
    """What the optimiser knows of each parameter, by the parameter's number as text."""
    return {str(number): value for number, value in optimizer.state_dict()["state"].items()}


def load_moments(optimizer: Optimizer, moments: Mapping[str, Any]) -> None:
    """Take over `moments_of` another optimiser; rates and decays stay."""
    whole = optimizer.state_dict()
    whole["state"] = {int(number): value for number, value in moments.items()}
    optimizer.load_state_dict(whole)
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                # Fused steps pair numbers by their place in memory, which channels_last changes.
                state[name] = torch.empty_like(weight).copy_(value)
