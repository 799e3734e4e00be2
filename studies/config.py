"""The settings of a study: types of conf/study/study.yaml, and checks that types cannot express."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nap_rl.plasticity import method_named, options_of
from nap_rl.plasticity.method import option


@dataclass
class DataConfig:
    name: str = "mnist5k"  # mnist5k | digits | cifar10
    root: str | None = None  # a folder of your own in place of the package's file
    images: int = 128  # how many; the seed decides which


@dataclass
class StudyConfig:
    study: str = "random_labels"  # random_labels | dead_units | schedule_replay
    data: DataConfig = field(default_factory=DataConfig)

    model: str = "mlp"  # mlp | cnn | resnet
    width: int = 64
    depth: int = 2
    norm: str = "layer"  # none | layer | rms
    affine: str = "omit"  # scale and offset of the normalisation: omit | free, and with nap: project | regularize

    regularize_coefficient: float = 0.1  # with affine=regularize; times the learning rate, an update
    affine_rate: float = 1.0  # learning rate of scale and offset, relative to that of the weights

    nap: bool = True
    project_every: int = 1  # updates between two projections
    method: str = "none"
    options: dict[str, Any] = field(default_factory=dict)  # options of the method; an option left out has its default

    optimizer: str = "adam"  # adam | sgd | momentum
    learning_rate: float = 1e-3
    batch_size: int = 64
    tasks: int = 300
    steps_per_task: int = 30  # updates
    measure_every: int = 0  # updates between two rows of steps.csv; 0: no such file

    seed: int = 0
    save_every: int = 100  # tasks between two checkpoints
    jobs: int = 1  # processes of `study.py -m`


TASKS, STEPS, SUMMARY = "tasks.csv", "steps.csv", "summary.json"  # files of a study's folder

CHOICES = {
    "study": ("random_labels", "dead_units", "schedule_replay"),
    "model": ("mlp", "cnn", "resnet"),
    "norm": ("none", "layer", "rms"),
    "affine": ("omit", "free", "project", "regularize"),
    "optimizer": ("adam", "sgd", "momentum"),
}
MOST = 10**15  # exact in float64, far from the end of int64 and float32
AT_MOST = {"width": 1 << 20, "depth": 1000, "batch_size": 1 << 20, "jobs": 4096, "seed": 2**63 - 1}
AT_LEAST_ONE = (
    "width",
    "depth",
    "project_every",
    "batch_size",
    "tasks",
    "steps_per_task",
    "save_every",
    "jobs",
)


def validate(config: StudyConfig) -> None:
    """Raises ValueError, one sentence, for settings that cannot run."""
    for key, choices in CHOICES.items():
        if getattr(config, key) not in choices:
            raise ValueError(f"{key}={getattr(config, key)} is not one of {', '.join(choices)}.")
    options = {f"options.{key}": value for key, value in config.options.items()}
    for key, value in {**asdict(config), **options}.items():
        most = AT_MOST.get(key, MOST)
        if isinstance(value, (int, float)) and not -most <= value <= most:  # NaN too
            raise ValueError(f"{key} must be a number of at most {most:.0e}; got {value}.")
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            raise ValueError(f"{key} must be at least 1; got {getattr(config, key)}.")
    if config.learning_rate <= 0:
        raise ValueError(f"learning_rate must be greater than 0; got {config.learning_rate}.")
    if not config.regularize_coefficient > 0:
        raise ValueError(f"regularize_coefficient must be greater than 0; got {config.regularize_coefficient}.")
    if not config.affine_rate > 0:
        raise ValueError(f"affine_rate must be greater than 0; got {config.affine_rate}.")
    if config.affine_rate != 1 and (config.norm == "none" or config.affine == "omit"):
        raise ValueError(
            f"affine_rate={config.affine_rate} needs scale and offset: a normalisation, and not affine=omit."
        )
    if config.measure_every < 0:
        raise ValueError(f"measure_every must be 0 or more updates; got {config.measure_every}.")
    if config.nap and config.norm == "none":
        raise ValueError("nap=true needs a normalisation, norm=layer or norm=rms; got norm=none.")
    if config.affine in ("project", "regularize") and not config.nap:
        raise ValueError(f"affine={config.affine} is done by the projection, so it needs nap=true.")
    known = options_of(config.method)
    for key, value in config.options.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"method={config.method} has no option {key!r}; it has: {listed}.")
        option(key, value)
    if method_named(config.method).value_networks_only:
        raise ValueError(
            f"method={config.method} changes the streams of a value network, and no study has one: use train.py."
        )
    needed = method_named(config.method).norm
    if needed and config.norm != needed:
        raise ValueError(f"method={config.method} needs norm={needed}; got norm={config.norm}.")


def root_of(data: DataConfig) -> Path | None:
    return Path(data.root) if data.root else None
