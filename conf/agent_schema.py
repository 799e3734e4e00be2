"""Types of `agent=...`: what is learnt and how. Units and values: see `nap_rl.conf.schema`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import List  # noqa: UP035  (OmegaConf reads these at run time, also on Python 3.10)

from omegaconf import MISSING


@dataclass
class HeadConfig:
    """What the network's outputs mean; one of those below."""


@dataclass
class ExpectedHead(HeadConfig):
    pass


@dataclass
class CategoricalHead(HeadConfig):
    atoms: int = MISSING
    v_min: float = MISSING
    v_max: float = MISSING


@dataclass
class QuantileHead(HeadConfig):
    quantiles: int = MISSING
    kappa: float = MISSING


@dataclass
class ImplicitQuantileHead(HeadConfig):
    samples: int = MISSING
    target_samples: int = MISSING
    acting_samples: int = MISSING
    cosines: int = MISSING
    kappa: float = MISSING
    priority: str = MISSING  # loss | td_error


HEADS = (ExpectedHead, CategoricalHead, QuantileHead, ImplicitQuantileHead)


@dataclass
class MunchausenConfig:
    """See `nap_rl.losses.Munchausen`."""

    alpha: float | None = MISSING  # null: Q-learning, and nothing reads the other two
    temperature: float = MISSING
    clip: float = MISSING


@dataclass
class Anneal:
    """A straight line over the whole run."""

    start: float = MISSING
    end: float = MISSING


@dataclass
class Epsilon:
    """Uniformly random actions: a line from start to end over the first over_frames; none from until_frames on."""

    start: float = MISSING
    end: float = MISSING
    over_frames: int = MISSING
    until_frames: int | None = MISSING  # null: to the end of the run


class Activation(Enum):
    """See `nap_rl.nn.ACTIVATIONS`."""

    relu = "relu"
    leaky_relu = "leaky_relu"
    elu = "elu"
    gelu = "gelu"
    silu = "silu"
    tanh = "tanh"


@dataclass
class AgentConfig:
    name: str = MISSING
    nap: bool = MISSING
    torso: str = MISSING  # a name of nap_rl/nn/spec.py, or the dotted path of a class of the user's
    net_arch: List[int] = MISSING  # noqa: UP006  (widths of fully connected layers behind the torso)
    width: int = MISSING  # this and the next two: of torso=impala, see `nap_rl.nn.ImpalaTorso`
    max_pool: int | None = MISSING  # null: no pooling
    spectral_norm: bool = MISSING
    hidden: int = MISSING
    activation: Activation = MISSING
    head: HeadConfig = MISSING
    double: bool = MISSING
    dueling: bool = MISSING
    noisy_sigma0: float | None = MISSING  # null: no noisy layers
    n_steps: int = MISSING
    discount: float = MISSING
    reward_clip: float | None = MISSING  # null: raw rewards
    batch_size: int = MISSING
    update_every_steps: float = MISSING
    target_every_updates: int = MISSING
    min_replay_steps: int = MISSING
    max_grad_norm: float | None = MISSING  # null: no clipping
    learning_rate: float = MISSING
    adam_eps: float = MISSING
    epsilon: Epsilon = field(default_factory=Epsilon)
    priority_exponent: float = MISSING  # 0: uniform replay
    uniform_probability: float = MISSING
    importance_exponent: Anneal = field(default_factory=Anneal)
    munchausen: MunchausenConfig = field(default_factory=MunchausenConfig)
    init_from: str | None = MISSING  # a run's folder, a checkpoint or an SB3 zip: begin with its weights
