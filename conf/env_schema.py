"""Types of `env=...`: what is played, and what a switch of tasks does. Units and values: see `nap_rl.conf.schema`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, List  # noqa: UP035  (OmegaConf reads these at run time, also on Python 3.10)

from omegaconf import MISSING

from nap_rl.envs.atari import Resize


class Order(Enum):
    fixed = "fixed"
    drawn = "drawn"


class AtSwitch(Enum):
    keep = "keep"
    reset = "reset"


@dataclass
class ProtocolConfig:
    name: str = MISSING
    sticky_actions: float = MISSING
    noop_max: int = MISSING
    full_action_set: bool = MISSING
    life_loss_ends_value: bool = MISSING
    max_episode_frames: int = MISSING
    fire_on_reset: bool = MISSING
    resize: Resize = MISSING


@dataclass
class EnvConfig:
    """One of those below."""

    name: str = MISSING
    num_envs: int = MISSING


@dataclass
class AtariConfig(EnvConfig):
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    game: str = MISSING


@dataclass
class GymnasiumConfig(EnvConfig):
    id: str = MISSING
    kwargs: Any = MISSING  # {name: value} of its constructor, or null
    module: str | None = MISSING
    wrappers: List[str] = MISSING  # noqa: UP006
    stack: int = MISSING
    channels_first: bool = MISSING
    max_episode_steps: int = MISSING


@dataclass
class MinAtarConfig(EnvConfig):
    game: str = MISSING
    sticky_actions: float = MISSING
    difficulty_ramping: bool = MISSING
    max_episode_steps: int = MISSING


@dataclass
class OnSwitch:
    """What happens to the agent when the game changes; it is never told of the change itself."""

    replay: AtSwitch = MISSING
    optimizer: AtSwitch = MISSING
    schedule: str = MISSING  # continue | restart
    target: AtSwitch = MISSING
    exploration: str = MISSING  # continue | restart
    network: AtSwitch = MISSING


@dataclass
class SequentialConfig(EnvConfig):
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    games: List[str] = MISSING  # noqa: UP006
    frames_per_game: int = MISSING
    cycles: int = MISSING
    on_switch: OnSwitch = field(default_factory=OnSwitch)


@dataclass
class SequenceConfig(EnvConfig):
    tasks: List[Any] = MISSING  # noqa: UP006  (ids of gymnasium, or {id, name, kwargs, frames})
    module: str | None = MISSING
    wrappers: List[str] = MISSING  # noqa: UP006
    stack: int = MISSING
    channels_first: bool = MISSING
    max_episode_steps: int = MISSING
    redraw: List[str] = MISSING  # noqa: UP006
    offset_std: float = MISSING
    frames_per_task: int = MISSING
    visits: int | None = MISSING
    cycles: int = MISSING
    order: Order = MISSING
    on_switch: OnSwitch = field(default_factory=OnSwitch)


ENVS = (AtariConfig, SequentialConfig, GymnasiumConfig, MinAtarConfig, SequenceConfig)
