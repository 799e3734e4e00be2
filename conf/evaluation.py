"""Types and rules of `evaluate.py`'s settings; null means as in the run's own configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf, open_dict

from nap_rl import cli
from nap_rl.conf.schema import VARIES, Config, Device, SequentialConfig, leaves, to_dict
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
    for name in ("episodes", "num_envs"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name}={getattr(settings, name)}, expected 1 or more")
    if settings.seed < 0:
        raise ValueError(f"seed={settings.seed}, expected 0 or more")
    check_epsilon("epsilon", settings.epsilon)
    sticky, noop = settings.env.protocol.sticky_actions, settings.env.protocol.noop_max
    if sticky is not None and not 0.0 <= sticky <= 1.0:
        raise ValueError(f"env.protocol.sticky_actions={sticky}, expected a number in [0, 1]")
    if noop is not None and noop < 1:
        raise ValueError(f"env.protocol.noop_max={noop}, expected 1 or more")
    cap = settings.env.protocol.max_episode_frames
    if cap is not None and cap < 4:
        raise ValueError(f"env.protocol.max_episode_frames={cap}, expected 4 or more")
    if settings.env.game is not None:
        check_game(settings.env.game)
    pick_device(settings.device.name)
    return settings


def check_epsilon(name: str, epsilon: float) -> None:
    """ValueError unless it is a probability."""
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"{name}={epsilon}, expected a number in [0, 1]")


def protocol_of(run: Config | None, overrides: ProtocolOverrides) -> Protocol:
    """The run's protocol (that of `Protocol`'s defaults, Hessel et al. 2018, where there is no run), overridden."""
    protocol = Protocol() if run is None else run_protocol(run)
    changed = {f.name: getattr(overrides, f.name) for f in fields(Protocol)}
    return replace(protocol, **{name: value for name, value in changed.items() if value is not None})


def experiment(run: Config) -> dict[str, Any]:
    """The settings by dotted key in which runs have to agree if one number is to stand for them."""
    settings = leaves(to_dict(run))
    return {key: value for key, value in settings if key not in VARIES and key.split(".")[0] not in VARIES}


def run_protocol(run: Config) -> Protocol:
    """How a run was trained; a sequence of several games is played with all 18 actions."""
    protocol = Protocol(**{f.name: getattr(run.env.protocol, f.name) for f in fields(Protocol)})
    several = isinstance(run.env, SequentialConfig) and len(set(run.env.games)) > 1
    return replace(protocol, full_action_set=several or protocol.full_action_set)
