"""How a sweep runs: the settings `sweep.*`, and what else `sweep.py` takes beside the settings of a run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nap_rl.cli import key_of

PREFIX = "sweep."
ENGINES = ("ray", "local")
CHOICES = {"search": ("grid", "random", "optuna"), "stop": ("none", "asha")}
RESUME, NAMED, ADDRESS = "resume", "sweep", "ray.address"


@dataclass
class SweepSettings:
    """
    Attributes:
        dir: the sweep's folder; None: a new one below runs/sweeps/.
        engine: ray | local; None: ray where it is installed.
        parallel: runs at a time; None: as many as cores, GPUs and memory take.
        cpus_per_run: cores for each run, which computes with as many threads.
        seeds_per_process: runs that differ in their seed alone and share a process; None: where they can be stacked,
            as many as keep all cores at work, and no more than `sharing.MOST`.
        search: grid | random | optuna.
        samples: draws of a search; each runs with every seed.
        search_seed: of the draws.
        stop: none | asha, which ends the worse runs early.
        metric: column of metrics.csv by which asha judges; more is better.
        grace_frames: frames that asha gives each run; None: a sixteenth of the longest.
        gpus_per_run: 0.25 lets four runs share a GPU; None: one each where there are GPUs.
    """

    dir: str | None = None
    engine: str | None = None
    parallel: int | None = None
    cpus_per_run: int = 1
    seeds_per_process: int | None = None
    gpus_per_run: float | None = None
    search: str = "grid"
    samples: int = 20
    search_seed: int = 0
    stop: str = "none"
    metric: str = "rollout/ep_rew_mean"
    grace_frames: int | None = None


class Asked(NamedTuple):
    """What was typed, sorted: the sweep's settings, the runs' settings, and the three words of `sweep.py` itself."""

    settings: SweepSettings
    overrides: tuple[str, ...]
    given: Mapping[str, Any]  # the sweep's settings that were typed
    resume: Path | None
    named: str | None
    address: str | None


def sort(typed: Sequence[str], defaults: Mapping[str, Any] | None = None) -> Asked:
    """Tell the sweep's settings from those of its runs.

    Args:
        defaults: settings that what is typed overrides.

    Raises:
        ValueError: a setting of the sweep that does not exist, or a value that it cannot have.
    """
    given: dict[str, Any] = {}
    words: dict[str, str] = {}
    overrides = []
    for text in typed:
        key, value = key_of(text), text.partition("=")[2]
        if key in (RESUME, NAMED, ADDRESS):
            words[key] = value.strip("'\"")
        elif key.startswith(PREFIX):
            given[_known(key)] = value
        else:
            overrides.append(text)
    settings = _typed({**(defaults or {}), **given})
    _check(settings)
    plain = {key: value for key, value in asdict(settings).items() if key in {**(defaults or {}), **given}}
    resume = Path(words[RESUME]) if RESUME in words else None
    return Asked(settings, tuple(overrides), plain, resume, words.get(NAMED), words.get(ADDRESS))


def _known(key: str) -> str:
    names = [each.name for each in fields(SweepSettings)]
    name = key.removeprefix(PREFIX)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        meant = f"did you mean '{PREFIX}{near[0]}'?" if near else f"there are {', '.join(PREFIX + n for n in names)}"
        raise ValueError(f"there is no key '{key}': {meant}")
    return name


def _typed(values: Mapping[str, Any]) -> SweepSettings:
    node = OmegaConf.structured(SweepSettings)
    for name, value in values.items():
        try:
            node[name] = None if value in ("null", "auto", "") else value
        except OmegaConfBaseException:
            kind = next(str(each.type) for each in fields(SweepSettings) if each.name == name)
            expected = {"int": "a whole number", "float": "a number"}.get(kind.split(" ")[0], "a word")
            raise ValueError(f"{PREFIX}{name}={value} is not {expected}") from None
    settings: SweepSettings = OmegaConf.to_object(node)  # type: ignore[assignment]
    return settings


def _check(settings: SweepSettings) -> None:
    if settings.engine not in (None, *ENGINES):
        raise ValueError(f"{PREFIX}engine={settings.engine}, expected auto or one of {', '.join(ENGINES)}")
    for name, choices in CHOICES.items():
        if getattr(settings, name) not in choices:
            raise ValueError(f"{PREFIX}{name}={getattr(settings, name)}, expected one of {', '.join(choices)}")
    if settings.search_seed < 0:
        raise ValueError(f"{PREFIX}search_seed={settings.search_seed}, expected 0 or more")
    for name in ("parallel", "cpus_per_run", "seeds_per_process", "samples", "grace_frames"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{PREFIX}{name}={value}, expected 1 or more")
    if settings.stop == "asha":
        _check_metric(settings.metric)
        if (settings.seeds_per_process or 1) > 1:
            raise ValueError(
                f"sweep.stop=asha ends single runs: leave out {PREFIX}seeds_per_process={settings.seeds_per_process}"
            )
    gpus = settings.gpus_per_run
    if gpus is not None and not (gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
        raise ValueError(f"{PREFIX}gpus_per_run={gpus}, expected a share of one GPU, such as 0.25, or whole GPUs")


def _check_metric(name: str) -> None:
    from nap_rl.logging.tags import METRICS

    if not any(re.fullmatch(re.sub(r"<\w+>", ".+", tag), name) for tag in METRICS):
        near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
        raise ValueError(f"{PREFIX}metric={name} is no column of metrics.csv: did you mean {near}?")
