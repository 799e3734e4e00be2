"""What studies of stationary training share: types and checks. Images and language add their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, ClassVar

from nap_rl import threads
from nap_rl.studies import ranks

METRICS, EVALUATIONS = "metrics.csv", "evaluations.csv"  # files of a run's folder
CHOICES = {
    "variant": ("baseline", "norm", "project", "nap"),
    "norm": ("layer", "rms", "group", "batch"),
    "axes": ("all", "channels"),
    "existing": ("keep", "replace"),
    "affine": ("regularize", "project", "free", "omit"),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "linear", "constant"),
    "precision": ("fp32", "bf16"),
    "device": ("auto", "cpu", "cuda"),
}
POSITIVE = ("learning_rate", "adam_eps", "regularize_coefficient", "max_grad_norm")
NOT_NEGATIVE = ("weight_decay",)
SHARES = ("momentum", "adam_beta1", "adam_beta2", "label_smoothing")  # in [0, 1)
AT_LEAST_ONE = ("batch_size", "eval_batch_size", "project_every", "log_every", "eval_every", "save_every", "jobs")
COUNTS = ("warmup_updates", "seed")
MOST = 10**15  # exact in float64


@dataclass
class TrainingConfig:
    """Types and defaults of what `studies/stationary.py` reads."""

    study: str = ""
    variant: str = "nap"  # baseline | norm: normalize | project: what has norms already | nap: normalize, then project

    norm: str = "layer"  # what normalize puts in: layer | rms | group | batch
    axes: str = "all"  # of norms of images: all | channels
    existing: str = "keep"  # the network's own norms: keep | replace
    affine: str = (
        "regularize"  # scale, offset: regularize | project (not with norm) | free | omit (new norms lack them)
    )
    regularize_coefficient: float = 0.1  # k of affine=regularize
    project_every: int = 1  # updates

    optimizer: str = "sgd"  # sgd | adamw
    learning_rate: float = 0.1
    momentum: float = 0.9  # of sgd
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 5e-4  # of matrices and kernels; vectors such as biases, scales and offsets have none
    max_grad_norm: float | None = None  # clips the global norm
    label_smoothing: float = 0.0

    schedule: str = "cosine"  # cosine | linear, to final_share of the rate | constant
    final_share: float = 0.0
    warmup_updates: int = 0  # a line from 0

    batch_size: int = 128  # of all processes together
    eval_batch_size: int = 500  # of one process
    log_every: int = 50  # updates between two rows of metrics.csv
    eval_every: int | None = None  # updates between two rows of evaluations.csv; None: as the study says
    save_every: int = 500  # updates between two checkpoints

    precision: str = "fp32"  # fp32 | bf16: autocast of the forward pass
    device: str = "auto"  # auto | cpu | cuda
    threads: str = "auto"  # a number, or what torch takes
    seed: int = 0
    jobs: int = 1  # processes of `study.py -m`

    NOT_COMPARED: ClassVar[tuple[str, ...]] = ("jobs", "threads", "save_every", "workers", "eval_batch_size")
    """Settings that a run may be given anew when it goes on."""

    def validate(self) -> None:
        """Raises ValueError, one sentence, for settings that cannot run. Subclasses add theirs."""
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"{key}={getattr(self, key)} is not one of {', '.join(choices)}")
        for key, value in numbers(asdict(self)):
            if not isfinite(value) or abs(value) > MOST:
                raise ValueError(f"{key}={value} must be a number of at most {MOST:.0e}")
        check_numbers(self, POSITIVE, "above 0", lambda value: value > 0)
        check_numbers(self, NOT_NEGATIVE, "of 0 or more", lambda value: value >= 0)
        check_numbers(self, SHARES, "in [0, 1)", lambda value: 0 <= value < 1)
        check_numbers(self, ("final_share",), "in [0, 1]", lambda value: 0 <= value <= 1)
        check_numbers(self, AT_LEAST_ONE, "of 1 or more", lambda value: value >= 1)
        check_numbers(self, COUNTS, "of 0 or more", lambda value: value >= 0)
        if self.affine == "project" and self.variant == "norm":
            raise ValueError("affine=project is a projection, which variant=norm leaves out: take affine=regularize")
        if self.batch_size % (processes := ranks.here().processes):
            raise ValueError(f"batch_size={self.batch_size} cannot be shared evenly by {processes} processes")
        threads.count(self.threads, 1)

    def check_data(self) -> None:
        """Look at the data. Raises ValueError or OSError, one sentence, for what cannot be read."""


def check_numbers(config: Any, keys: tuple[str, ...], expected: str, is_right: Any) -> None:
    """Raises ValueError for the first of `keys` whose value is not right; None is."""
    for key in keys:
        value = getattr(config, key)
        if value is not None and not is_right(value):
            raise ValueError(f"{key}={value}, expected a number {expected}")


def numbers(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, value) of every number."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
