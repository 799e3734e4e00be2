"""Rules that types cannot say: whatever cannot run is refused in one sentence before anything is started."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nap_rl.conf import build, environments, init_from
from nap_rl.conf.networks import ATARI, Observations, check_network
from nap_rl.conf.schema import (
    AgentConfig,
    AtariConfig,
    CategoricalHead,
    Config,
    CosineSchedule,
    HeadConfig,
    ImplicitQuantileHead,
    Norm,
    OnSwitch,
    QuantileHead,
    SequenceConfig,
    SequentialConfig,
)
from nap_rl.envs import Resize, check_game, check_games
from nap_rl.envs.atari import FRAME_SKIP, import_cv2
from nap_rl.machine import available_memory, free_space, pick_device
from nap_rl.plasticity import make_method, method_named, options_of
from nap_rl.replay import Replay

COMPRESSION = 10  # frames shrink at least so far on disk; by 13 to 50 in the games tried


def to_config(config: DictConfig) -> Config:
    """The checked, plain and typed configuration of a training run, `frames` filled in.

    Raises:
        ValueError: a setting that cannot run; names it, its value and what would be right.
    """
    node = config.copy()
    with open_dict(node):
        node.pop("hydra", None)
    try:
        missing = OmegaConf.missing_keys(node) | {field.name for field in fields(Config) if field.name not in node}
        if missing:
            raise ValueError(f"{sorted(missing)[0]} has no value")
        plain: Config = OmegaConf.to_object(node)  # type: ignore[assignment]
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    _check_groups(plain)
    observations, num_actions = _check_env(plain)
    if plain.frames is None:
        plain.frames = environments.default_frames(plain.env)
    _check_numbers(plain)
    _check_head(plain.agent.head)
    _check_munchausen(plain.agent)
    _check_nap(plain, config)
    _check_plasticity(plain)
    check_network(plain, num_actions, observations)
    _check_replay(plain, observations)
    _check_init_from(plain)
    _check_checkpoint(plain)
    _check_nan(plain)
    return plain


def _check_groups(settings: Any, path: str = "") -> None:
    """An interpolation may put anything in the place of a group of settings, and OmegaConf does not look."""
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not is_dataclass(kind):
            continue
        if not isinstance(value, kind):  # type: ignore[arg-type]
            raise ValueError(f"{path}{name}={value}, expected a group of settings and not one value or another group")
        _check_groups(value, f"{path}{name}.")


def _check_nan(settings: Any, path: str = "") -> None:
    """Also of settings that nothing reads: a configuration equals itself."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{path}{field.name}=nan, expected a number")
        if is_dataclass(value):
            _check_nan(value, f"{path}{field.name}.")


def _check_env(config: Config) -> tuple[Observations, int]:
    """What the environments show, and the number of actions. Those of gymnasium are opened once, to know it."""
    env = config.env
    _at_least("env.num_envs", env.num_envs, 1)
    if isinstance(env, (SequentialConfig, SequenceConfig)):
        _at_least("env.cycles", env.cycles, 1)
        _check_on_switch(config, env.on_switch)
    if isinstance(env, (AtariConfig, SequentialConfig)):
        _check_atari(env)
        return ATARI, 18
    return environments.check(env, config.seed)


def _check_atari(env: AtariConfig | SequentialConfig) -> None:
    protocol = env.protocol
    _between("env.protocol.sticky_actions", protocol.sticky_actions, 0.0, 1.0)
    _at_least("env.protocol.noop_max", protocol.noop_max, 1)
    _at_least("env.protocol.max_episode_frames", protocol.max_episode_frames, FRAME_SKIP)
    if protocol.resize is Resize.linear:
        import_cv2("env.protocol.resize=linear")
    if isinstance(env, AtariConfig):
        check_game(env.game)
    else:
        check_games(env.games)
        _at_least("env.frames_per_game", env.frames_per_game, env.num_envs * FRAME_SKIP)


def _check_on_switch(config: Config, on_switch: OnSwitch) -> None:
    for name in ("schedule", "exploration"):
        if (value := getattr(on_switch, name)) not in ("continue", "restart"):
            raise ValueError(f"env.on_switch.{name}={value} is none of [continue, restart]")
    if on_switch.schedule == "restart" and getattr(config.schedule, "over_frames", None) is not None:
        raise ValueError(
            "schedule.over_frames is given, but env.on_switch.schedule=restart runs the schedule over each visit: "
            "leave one of them out"
        )


def _check_numbers(config: Config) -> None:
    agent, env = config.agent, config.env
    assert config.frames is not None
    step = environments.frame_skip(env) * env.num_envs
    _at_least("frames", config.frames, step)
    whole = environments.sequence_frames(env)
    if whole is not None and config.frames > whole:
        length = "env.frames_per_game" if isinstance(env, SequentialConfig) else "env.frames_per_task"
        raise ValueError(
            f"frames={config.frames} is more than the whole sequence, {whole}: raise env.cycles or {length}"
        )
    _at_least("seed", config.seed, 0)
    for name in ("hidden", "n_steps", "batch_size", "target_every_updates"):
        _at_least(f"agent.{name}", getattr(agent, name), 1)
    _at_least("agent.min_replay_steps", agent.min_replay_steps, env.num_envs * (agent.n_steps + 1))
    _between("agent.discount", agent.discount, 0.0, 1.0)
    _between("agent.uniform_probability", agent.uniform_probability, 0.0, 1.0)
    _between("agent.priority_exponent", agent.priority_exponent, 0.0, float("inf"))
    for name in ("update_every_steps", "learning_rate", "adam_eps", "max_grad_norm", "reward_clip"):
        value = getattr(agent, name)
        if value is not None and not value > 0:
            raise ValueError(f"agent.{name}={value}, expected a number above 0")
    if agent.noisy_sigma0 is not None:
        _between("agent.noisy_sigma0", agent.noisy_sigma0, 0.0, math.inf)
    for name in ("start", "end"):
        _between(f"agent.epsilon.{name}", getattr(agent.epsilon, name), 0.0, 1.0)
        _between(f"agent.importance_exponent.{name}", getattr(agent.importance_exponent, name), 0.0, 1.0)
        rate = getattr(config.schedule, name, 0.0)
        _between(f"schedule.{name}", rate, 0.0, 1.0)
    _at_least("agent.epsilon.over_frames", agent.epsilon.over_frames, 1)
    over = getattr(config.schedule, "over_frames", None)
    if over is not None:
        _at_least("schedule.over_frames", over, 1)
    _check_warmup(config)
    _at_least("logger.every_updates", config.logger.every_updates, 1)
    if config.logger.diagnostics_every_updates is not None:
        _at_least("logger.diagnostics_every_updates", config.logger.diagnostics_every_updates, 1)
    if config.eval.every is not None:
        _at_least("eval.every", config.eval.every, step)
    _at_least("eval.episodes", config.eval.episodes, 1)
    _at_least("eval.num_envs", config.eval.num_envs, 1)
    _between("eval.epsilon", config.eval.epsilon, 0.0, 1.0)


def _check_warmup(config: Config) -> None:
    schedule, env = config.schedule, config.env
    if not isinstance(schedule, CosineSchedule):
        return
    _between("schedule.warmup_start", schedule.warmup_start, 0.0, 1.0)
    _at_least("schedule.warmup_frames", schedule.warmup_frames, 0)
    span = schedule.over_frames or config.frames
    if isinstance(env, (SequentialConfig, SequenceConfig)) and env.on_switch.schedule == "restart":
        span = environments.visit_frames(env)
    if span is not None and schedule.warmup_frames >= span:
        raise ValueError(
            f"schedule.warmup_frames={schedule.warmup_frames}, expected less than the schedule's own length of {span}"
        )


def _check_head(head: HeadConfig) -> None:
    if isinstance(head, CategoricalHead):
        _at_least("agent.head.atoms", head.atoms, 2)
        if not -math.inf < head.v_min < head.v_max < math.inf:
            raise ValueError(
                f"agent.head.v_min={head.v_min} and agent.head.v_max={head.v_max}, expected numbers with v_min < v_max"
            )
    if isinstance(head, QuantileHead):
        _at_least("agent.head.quantiles", head.quantiles, 1)
    if isinstance(head, ImplicitQuantileHead):
        for name in ("samples", "target_samples", "acting_samples", "cosines"):
            _at_least(f"agent.head.{name}", getattr(head, name), 1)
    if isinstance(head, (QuantileHead, ImplicitQuantileHead)) and not head.kappa > 0:
        raise ValueError(f"agent.head.kappa={head.kappa}, expected a number above 0")


def _check_munchausen(agent: AgentConfig) -> None:
    if agent.munchausen.alpha is None:
        return
    _between("agent.munchausen.alpha", agent.munchausen.alpha, 0.0, 1.0)
    if not 0.0 < agent.munchausen.temperature < math.inf:
        raise ValueError(f"agent.munchausen.temperature={agent.munchausen.temperature}, expected a number above 0")
    _between("agent.munchausen.clip", agent.munchausen.clip, -math.inf, 0.0)
    if isinstance(agent.head, CategoricalHead):
        raise ValueError(
            "agent.munchausen.alpha mixes returns over actions, which a categorical head cannot: use "
            "agent/head=expected, quantile or implicit_quantile"
        )
    if agent.n_steps != 1:
        raise ValueError(
            f"agent.munchausen.alpha with agent.n_steps={agent.n_steps}: only a one-step return has its reward, use 1"
        )
    if agent.double:
        raise ValueError("agent.munchausen.alpha with agent.double=true: its policy is the target network's, use false")


def _check_nap(config: Config, node: DictConfig) -> None:
    _at_least("nap.every", config.nap.every, 1)
    _between("nap.regularize_coefficient", config.nap.regularize_coefficient, 0.0, float("inf"))
    chosen = OmegaConf.select(node, "hydra.runtime.choices.nap") or "full"
    if not config.agent.nap and chosen != "full":
        raise ValueError(f"nap={chosen} was asked for, but agent.nap=false: add agent.nap=true")
    if config.agent.nap and not (config.nap.normalize or config.nap.project):
        raise ValueError(
            "agent.nap=true with nap.normalize=false and nap.project=false does nothing: use agent.nap=false"
        )


def _check_plasticity(config: Config) -> None:
    options = asdict(config.plasticity)
    name = options.pop("name")
    if set(options) != set(options_of(name)):
        raise ValueError(f"plasticity.name={name} has other options than {sorted(options)}: choose plasticity={name}")
    layer_norm = config.agent.nap and config.nap.normalize and config.nap.norm is Norm.layer
    if method_named(name).norm == "layer" and not layer_norm:
        raise ValueError(f"plasticity={name} needs LayerNorm: add agent.nap=true and nap=norm_only or nap=full")
    if name == "crelu" and config.agent.torso == "impala":
        raise ValueError("plasticity=crelu doubles what a ReLU gives, which skip connections of agent.torso=impala add")
    if not options:
        return
    with torch.random.fork_rng(devices=[]):
        tiny = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
    try:  # the constructor knows what its options may be
        make_method(name, tiny, torch.optim.SGD(tiny.parameters()), example_input=torch.zeros(1, 1), options=options)
    except ValueError as error:
        raise ValueError(f"plasticity.{error}") from None


def _check_init_from(config: Config) -> None:
    """Whether there are weights and the torsos agree; the number of actions has no part in that."""
    if config.agent.init_from is None:
        return
    init_from.check(config.agent.init_from, config)


def _check_replay(config: Config, observations: Observations) -> None:
    capacity = config.replay.capacity
    _at_least("replay.capacity", capacity, config.agent.min_replay_steps)
    if build.replay_device(config, pick_device(config.device.name), observations).type != "cpu":
        return
    size = build.frame_bytes(observations)
    needed, available = Replay.nbytes(capacity, size), available_memory()
    if available is not None and needed > available:
        fits = int(available * 0.9) // Replay.nbytes(1, size)
        raise ValueError(
            f"replay.capacity={capacity} needs {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free: "
            f"replay.capacity={fits} would fit"
        )


def _check_checkpoint(config: Config) -> None:
    build.parse_every(config.checkpoint.every)
    _at_least("checkpoint.keep", config.checkpoint.keep, 2)
    _at_least("checkpoint.max_failures", config.checkpoint.max_failures, 1)


def check_space(config: Config, folder: Path) -> None:
    """Raises ValueError where the disk under `folder` cannot take the run's checkpoints."""
    assert config.frames is not None
    weights = 4 * 3136 * config.agent.hidden * (2 if config.agent.dueling else 1)
    weights *= 1 if config.agent.noisy_sigma0 is None else 2
    needed = 4 * weights * (config.checkpoint.keep + 1)  # online, target, two moments
    if config.checkpoint.replay:
        slots = min(config.replay.capacity, config.frames // environments.frame_skip(config.env))
        needed += 2 * Replay.nbytes(slots) // COMPRESSION
    free = free_space(folder)
    if free is not None and needed > free:
        raise ValueError(
            f"checkpoints of this run take about {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free under "
            f"{folder}: choose another folder (hydra.run.dir=), a smaller replay.capacity, or checkpoint.replay=false"
        )


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name}={value}, expected {least} or more")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}={value}, expected a number in [{low:g}, {high:g}]")
