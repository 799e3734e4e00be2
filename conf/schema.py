"""Types of the configuration, so that `agent.nap=ture`, `seed=3.5` and a misspelt key are errors.

Units are in the names: frames are emulator frames summed over the environments, 4 to an agent step; steps are agent
steps (transitions); updates are steps of the optimiser. The values stand in the YAML files, with their sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, List  # noqa: UP035  (OmegaConf reads these at run time, also on Python 3.10)

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from nap_rl.conf import earlier_versions
from nap_rl.conf.agent_schema import (
    HEADS,
    AgentConfig,
    CategoricalHead,
    ExpectedHead,
    ImplicitQuantileHead,
    QuantileHead,
)
from nap_rl.conf.env_schema import (
    ENVS,
    AtariConfig,
    EnvConfig,
    GymnasiumConfig,
    MinAtarConfig,
    SequenceConfig,
    SequentialConfig,
)
from nap_rl.conf.optimizer_schema import OPTIMIZERS, OptimizerConfig
from nap_rl.conf.schedule_schema import SCHEDULES, ScheduleConfig


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class EvalTasks(Enum):
    current = "current"
    seen = "seen"
    all = "all"


class Precision(Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Compile(Enum):
    auto = "auto"
    on = "on"
    off = "off"


class Native(Enum):
    auto = "auto"
    on = "on"
    off = "off"


class Norm(Enum):
    layer = "layer"
    rms = "rms"
    group = "group"
    batch = "batch"


class Axes(Enum):
    all = "all"
    channels = "channels"


class Affine(Enum):
    project = "project"
    regularize = "regularize"
    free = "free"
    omit = "omit"


class Output(Enum):
    free = "free"
    project = "project"


class Scope(Enum):
    tensor = "tensor"
    unit = "unit"


@dataclass
class NapConfig:
    """Read only with agent.nap=true."""

    normalize: bool = MISSING
    project: bool = MISSING
    norm: Norm = MISSING
    axes: Axes = MISSING
    affine: Affine = MISSING
    regularize_coefficient: float = MISSING
    output: Output = MISSING
    scope: Scope = MISSING
    every: int = MISSING


@dataclass
class PlasticityConfig:
    """A method of `nap_rl.plasticity` and its options: one of those below."""

    name: str = MISSING


@dataclass
class PlainMethod(PlasticityConfig):
    """A method without options."""


@dataclass
class CoefficientMethod(PlasticityConfig):
    coefficient: float = MISSING


@dataclass
class Redo(PlasticityConfig):
    tau: float = MISSING
    every: int = MISSING  # updates


@dataclass
class ShrinkPerturb(PlasticityConfig):
    shrink: float = MISSING
    every: int = MISSING  # updates


@dataclass
class NoisyUpdates(PlasticityConfig):
    scale: float = MISSING


@dataclass
class ResetHead(PlasticityConfig):
    every: int = MISSING  # updates


@dataclass
class ContinualBackprop(PlasticityConfig):
    rate: float = MISSING
    decay: float = MISSING
    maturity: int = MISSING  # updates


@dataclass
class WeightClipping(PlasticityConfig):
    kappa: float = MISSING


@dataclass
class Fire(PlasticityConfig):
    iterations: int = MISSING


@dataclass
class Parseval(PlasticityConfig):
    coefficient: float = MISSING
    scale: float = MISSING


@dataclass
class HareTortoise(PlasticityConfig):
    decay: float = MISSING
    every: int = MISSING  # updates


@dataclass
class Injection(PlasticityConfig):
    at: int | None = MISSING  # updates; null: a quarter of the run's


METHODS: dict[str, type[PlasticityConfig]] = {
    "plain": PlainMethod,
    "coefficient": CoefficientMethod,
    "redo": Redo,
    "shrink_perturb": ShrinkPerturb,
    "noisy_updates": NoisyUpdates,
    "reset_head": ResetHead,
    "continual_backprop": ContinualBackprop,
    "weight_clipping": WeightClipping,
    "fire": Fire,
    "parseval": Parseval,
    "hare_tortoise": HareTortoise,
    "injection": Injection,
}


@dataclass
class ReplayConfig:
    capacity: int = MISSING
    device: Device = MISSING


@dataclass
class LoggerConfig:
    every_updates: int = MISSING
    diagnostics_every_updates: int | None = MISSING
    tensorboard: bool = MISSING
    wandb: bool = MISSING
    mlflow: bool = MISSING


@dataclass
class EvalConfig:
    """Evaluation during training; see `agents/evaluation.py`."""

    every: int | None = MISSING  # frames; null: none
    tasks: EvalTasks = MISSING
    episodes: int = MISSING
    num_envs: int = MISSING
    epsilon: float = MISSING
    noisy: bool = MISSING


@dataclass
class CheckpointConfig:
    every: str | None = MISSING  # "20min", or emulator frames; null: only at the start and at the end
    keep: int = MISSING
    max_failures: int = MISSING
    replay: bool = MISSING


@dataclass
class Config:
    name: str = MISSING
    seed: int = MISSING
    seeds: List[int] | None = MISSING  # noqa: UP006  (one run each, together in one process; null: one run of `seed`)
    frames: int | None = MISSING
    device: Device = MISSING
    precision: Precision = MISSING
    compile: Compile = MISSING
    native: Native = MISSING
    threads: str = MISSING  # auto, or a number
    agent: AgentConfig = field(default_factory=AgentConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    nap: NapConfig = field(default_factory=NapConfig)
    plasticity: PlasticityConfig = field(default_factory=PlasticityConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


# What runs of one experiment may differ in, by dotted key or section: averaging over it is what an aggregate is for,
# or it leaves the weights as they are.
VARIES = {
    "name",
    "seed",
    "seeds",
    "device",
    "compile",
    "native",
    "threads",
    "env.game",
    "replay.device",
    "checkpoint",
    "eval",
    "logger",
}


def register() -> None:
    """Make the types known to Hydra under the names that the YAML files' defaults lists use."""
    store = ConfigStore.instance()
    nodes: list[tuple[str | None, str, Any]] = [
        (None, "schema", Config),
        ("agent/head", "expected_schema", ExpectedHead),
        ("agent/head", "categorical_schema", CategoricalHead),
        ("agent/head", "quantile_schema", QuantileHead),
        ("agent/head", "implicit_quantile_schema", ImplicitQuantileHead),
        ("env", "atari_schema", AtariConfig),
        ("env", "sequential_schema", SequentialConfig),
        ("env", "gymnasium_schema", GymnasiumConfig),
        ("env", "minatar_schema", MinAtarConfig),
        ("env", "sequence_schema", SequenceConfig),
        # Not in the groups themselves: studies, which may run in the same process, have plain keys of these names.
        *(("types/optimizer", name, node) for name, node in OPTIMIZERS.items()),
        *(("types/schedule", name, node) for name, node in SCHEDULES.items()),
        *(("plasticity", f"{name}_schema", node) for name, node in METHODS.items()),
    ]
    for group, name, node in nodes:
        store.store(group=group, name=name, node=node)


def to_dict(config: Config) -> dict[str, Any]:
    """JSON-ready dictionaries; `from_dict` is the inverse."""
    plain: dict[str, Any] = _plain(config)
    return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested configuration by dotted keys."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def from_dict(plain: Mapping[str, Any]) -> Config:
    """The typed configuration again, also of a run of an earlier version."""
    config: Config = OmegaConf.to_object(to_node(plain))  # type: ignore[assignment]
    return config


def to_node(plain: Mapping[str, Any]) -> DictConfig:
    """As `from_dict`, for Hydra. Which env, head, schedule, optimiser and method it has shows in their keys.

    Raises:
        ValueError: a section has the keys of none of its types.
    """

    def kind(node: Mapping[str, Any], *candidates: type[Any]) -> Any:
        for candidate in candidates:
            if set(node) == {f.name for f in fields(candidate)}:
                return OmegaConf.structured(candidate)
        raise ValueError(f"a configuration with the keys {sorted(node)} is of another version of nap_rl")

    plain = earlier_versions.complete({"native": "auto", **plain})
    base = OmegaConf.structured(Config)
    base.env = kind(plain["env"], *ENVS)
    base.agent.head = kind(plain["agent"]["head"], *HEADS)
    base.schedule = kind(plain["schedule"], *SCHEDULES.values())
    base.optimizer = kind(plain["optimizer"], *OPTIMIZERS.values())
    base.plasticity = kind(plain["plasticity"], *METHODS.values())
    node = OmegaConf.merge(base, dict(plain))
    assert isinstance(node, DictConfig)
    return node
