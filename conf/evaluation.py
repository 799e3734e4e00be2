"""Types and rules of `evaluate.py`'s settings; null means as in the run's own configuration."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf, open_dict

from nap_rl import cli
from nap_rl.conf import environments, schema
from nap_rl.conf.env_schema import AtariConfig, SequentialConfig
from nap_rl.conf.ranges import RANGES, numbers
from nap_rl.conf.schema import VARIES, Config, Device, EvalTasks, leaves, to_dict
from nap_rl.envs import Protocol, Resize, check_game
from nap_rl.machine import pick_device

CONFIG_NAME = "evaluate"


@dataclass
class ProtocolOverrides:
    """As `ProtocolConfig`, each value optional."""

    name: str | None = None
    sticky_actions: float | None = None
    noop_max: int | None = None
    full_action_set: bool | None = None
    life_loss_ends_value: bool | None = None
    max_episode_frames: int | None = None
    fire_on_reset: bool | None = None
    resize: Resize | None = None


@dataclass
class EvaluationEnv:
    game: str | None = MISSING
    protocol: ProtocolOverrides = field(default_factory=ProtocolOverrides)


@dataclass
class EvaluationConfig:
    episodes: int = MISSING  # of each game of each run
    tasks: EvalTasks = MISSING
    num_envs: int = MISSING
    seed: int = MISSING
    epsilon: float = MISSING
    noisy: bool = MISSING
    video: bool = MISSING
    mix: bool = MISSING
    out: str | None = MISSING
    device: Device = MISSING
    env: EvaluationEnv = field(default_factory=EvaluationEnv)


def register() -> None:
    """Make the types known to Hydra."""
    ConfigStore.instance().store(name="evaluation_schema", node=EvaluationConfig)


def read_settings(overrides: list[str]) -> EvaluationConfig:
    """The checked settings of one call of evaluate.py from `key=value` arguments.

    Raises:
        ValueError: an unknown key or a value that cannot be; one sentence.
    """
    node = cli.compose(CONFIG_NAME, overrides)
    with open_dict(node):
        node.pop("hydra", None)
    settings: EvaluationConfig = OmegaConf.to_object(node)  # type: ignore[assignment]
    for key, value in numbers(settings):
        bounds = RANGES[key if key in RANGES else f"eval.{key}"]
        if (expected := bounds.refusal(value)) is not None:
            raise ValueError(f"{key}={value}, {expected}")
    if settings.device is Device.cuda:
        pick_device(settings.device.name)
    return settings


def protocol_of(run: Config, overrides: ProtocolOverrides) -> Protocol | None:
    """The run's protocol, overridden; None for a run that plays no Atari, whose protocol cannot be overridden."""
    if isinstance(run.env, (AtariConfig, SequentialConfig)):
        return atari_protocol(run.env, overrides)
    if any(getattr(overrides, f.name) is not None for f in fields(ProtocolOverrides)):
        raise ValueError(f"env.protocol is of Atari games, but the run plays {run.env.name}")
    return None


def atari_protocol(env: AtariConfig | SequentialConfig | None, overrides: ProtocolOverrides) -> Protocol:
    """The protocol of `env`, overridden; where there is none, Hessel et al.'s of 2018, the defaults of `Protocol`."""
    protocol = Protocol() if env is None else run_protocol(env)
    changed = {f.name: getattr(overrides, f.name) for f in fields(Protocol)}
    return replace(protocol, **{name: value for name, value in changed.items() if value is not None})


def tasks_of(run: Config, asked: str | None, tasks: EvalTasks = EvalTasks.all, frames: int = 0) -> list[str]:
    """What a run is scored in: `asked`, or its tasks that `tasks` names `frames` after its beginning.

    ValueError: it has no such task.
    """
    if asked is None:
        from nap_rl.agents.evaluation import evaluated_tasks

        visits = environments.planned(run)
        now = next((visit for visit in visits if frames <= visit.end), visits[-1])
        chosen = evaluated_tasks(tasks.name, visits, now)
        return [name for name in environments.task_names(run) if name in chosen]
    if isinstance(run.env, (AtariConfig, SequentialConfig)):
        return [check_game(asked)]
    names = environments.task_names(run)
    if asked not in names:
        near = difflib.get_close_matches(asked, names, n=1, cutoff=0.0)
        raise ValueError(f"env.game={asked} is no task of the run: did you mean '{near[0]}'?")
    return [asked]


def experiment(run: Config) -> dict[str, Any]:
    """The settings by dotted key in which runs have to agree if one number is to stand for them."""
    settings = leaves(to_dict(run))
    return {key: value for key, value in settings if key not in VARIES and key.split(".")[0] not in VARIES}


def seed_and_settings(run: Path, *, with_game: bool = False) -> tuple[int, dict[str, Any]]:
    """Seed and `experiment` of a run, as its newest checkpoint says; `with_game` adds "env.game", where it has one.

    Raises:
        ValueError: it has no sound checkpoint.
    """
    from nap_rl import checkpoint  # imports torch, which takes a second

    meta = checkpoint.latest_meta(run / "checkpoints")
    if meta is None:
        raise ValueError(f"{run} has no sound checkpoint, where its settings stand.")
    config = schema.from_dict(meta["config"])
    game = {"env.game": config.env.game} if with_game and hasattr(config.env, "game") else {}
    return config.seed, {**experiment(config), **game}


def run_protocol(env: AtariConfig | SequentialConfig) -> Protocol:
    """How a run was trained; a sequence of several games is played with all 18 actions."""
    protocol = Protocol(**{f.name: getattr(env.protocol, f.name) for f in fields(Protocol)})
    several = isinstance(env, SequentialConfig) and len(set(env.games)) > 1
    return replace(protocol, full_action_set=several or protocol.full_action_set)
