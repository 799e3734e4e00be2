"""Types of `optimizer=...`: what steps the weights. Units and values: see `nap_rl.conf.schema`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class OptimizerConfig:
    """One of those below."""

    name: str = MISSING


@dataclass
class AdamOptimizer(OptimizerConfig):
    """Its epsilon is agent.adam_eps."""

    beta1: float = MISSING
    beta2: float = MISSING


@dataclass
class AdamWOptimizer(AdamOptimizer):
    weight_decay: float = MISSING


@dataclass
class MuonOptimizer(OptimizerConfig):
    """beta1 and beta2 are those of the AdamW that takes what is no hidden matrix."""

    momentum: float = MISSING
    nesterov: bool = MISSING
    ns_steps: int = MISSING
    weight_decay: float = MISSING
    beta1: float = MISSING
    beta2: float = MISSING


@dataclass
class RMSpropOptimizer(OptimizerConfig):
    alpha: float = MISSING
    eps: float = MISSING
    momentum: float = MISSING
    centered: bool = MISSING


@dataclass
class SGDOptimizer(OptimizerConfig):
    momentum: float = MISSING
    nesterov: bool = MISSING


@dataclass
class CustomOptimizer(OptimizerConfig):
    """`name` is the dotted path of a class."""

    power: int = MISSING  # k of nap/effective_lr: 1 if a step's size does not depend on the gradient's, else 2
    options: Any = MISSING  # further arguments of the class, by name; null: none


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adam": AdamOptimizer,
    "adamw": AdamWOptimizer,
    "muon": MuonOptimizer,
    "rmsprop": RMSpropOptimizer,
    "sgd": SGDOptimizer,
    "custom": CustomOptimizer,
}


def power(settings: OptimizerConfig) -> int:
    """The k of the effective learning rate, eta (||W_0|| / ||W||)^k: 2 for SGD, 1 where a step's size is its own."""
    if isinstance(settings, CustomOptimizer):
        return settings.power
    return 2 if isinstance(settings, SGDOptimizer) else 1
