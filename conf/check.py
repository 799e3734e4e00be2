"""Rules that types cannot say: whatever cannot run is refused in one sentence before anything is started."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nap_rl import threads
from nap_rl.conf import environments, init_from, learning_rates, optimizers
from nap_rl.conf.agent_schema import Activation, AgentConfig, CategoricalHead, HeadConfig, ImplicitQuantileHead
from nap_rl.conf.env_schema import AtariConfig, OnSwitch, ProtocolConfig, SequenceConfig, SequentialConfig
from nap_rl.conf.environments import ATARI, ATARI_ACTIONS, Observations
from nap_rl.conf.intervals import parse_every
from nap_rl.conf.ranges import check_ranges
from nap_rl.conf.schema import Affine, Config, Injection, Norm
from nap_rl.conf.updates import updates_of
from nap_rl.dotted import import_object
from nap_rl.envs import Resize, check_game, check_games
from nap_rl.envs.atari import FRAME_SKIP, import_cv2
from nap_rl.machine import free_space
from nap_rl.plasticity import METHODS, method_named, options_of
from nap_rl.plasticity.method import option

TORSOS = ("nature", "data_efficient", "impala", "mlp", "minatar")
ATARI_TORSOS = ("nature", "data_efficient", "impala", "mlp")  # fit Atari's frames: nothing to compute
ANY_TORSOS = ("mlp",)
PRIORITIES = ("loss", "td_error")
MOST_LAYERS = 64
COMPRESSION = 10  # frames shrink at least so far on disk; by 13 to 50 in the games tried


def to_config(config: DictConfig, *, begins: bool = True) -> Config:
    """The checked, plain and typed configuration of a training run, `frames` filled in.

    What needs no torch is checked first, so that most slips are answered before it is imported.

    Args:
        begins: check the source of the first weights too; a run that goes on reads none.

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
    check_ranges(plain)
    observations, num_actions = _check_env(plain)
    if plain.frames is None:
        plain.frames = environments.default_frames(plain.env)
    _check_numbers(plain)
    _check_seeds(plain)
    _check_head(plain.agent.head)
    _check_munchausen(plain.agent)
    _check_nap(plain, config)
    parse_every(plain.checkpoint.every)
    _check_logger(plain)
    threads.count(plain.threads, default=1)
    optimizers.check(plain)
    _check_plasticity(plain)
    _check_torso(plain.agent)
    _check_what_torch_reads(plain, observations, num_actions, begins)
    return plain


def _check_what_torch_reads(config: Config, observations: Observations, num_actions: int, begins: bool) -> None:
    if begins and config.agent.init_from is not None:
        init_from.check(config.agent.init_from, config, observations)
    made_for_them = ATARI_TORSOS if observations == ATARI else ANY_TORSOS
    if config.agent.torso not in made_for_them:
        from nap_rl.conf.networks import check_network

        check_network(config, num_actions, observations)
    optimizers.check_custom(config, observations, num_actions)
    if begins:
        learning_rates.check(config, observations, num_actions)
    from nap_rl.conf.memory import check_replay

    check_replay(config, observations)


def _check_groups(settings: Any, path: str = "") -> None:
    """An interpolation may put anything in the place of a group of settings, and OmegaConf does not look."""
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not is_dataclass(kind):
            continue
        if not isinstance(value, kind):  # type: ignore[arg-type]
            raise ValueError(f"{path}{name}={value}, expected a group of settings and not one value or another group")
        _check_groups(value, f"{path}{name}.")


def _check_env(config: Config) -> tuple[Observations, int]:
    """What the environments show, and the number of actions. Those of gymnasium are opened once, to know it."""
    env = config.env
    if isinstance(env, (SequentialConfig, SequenceConfig)):
        _check_on_switch(config, env.on_switch)
    if isinstance(env, (AtariConfig, SequentialConfig)):
        _check_atari(env)
        return ATARI, ATARI_ACTIONS
    return environments.check(env, config.seed)


def _check_atari(env: AtariConfig | SequentialConfig) -> None:
    _check_protocol(env.protocol)
    if env.protocol.resize is Resize.linear:
        import_cv2("env.protocol.resize=linear")
    if isinstance(env, AtariConfig):
        check_game(env.game)
    else:
        check_games(env.games)
        _at_least("env.frames_per_game", env.frames_per_game, env.num_envs * FRAME_SKIP)


def _check_protocol(protocol: ProtocolConfig) -> None:
    if protocol.noop_max > protocol.max_episode_frames:
        raise ValueError(
            f"env.protocol.noop_max={protocol.noop_max}, expected {protocol.max_episode_frames} or less: "
            "env.protocol.max_episode_frames ends an episode"
        )


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
    """Numbers that bound each other; what each can be by itself stands in ranges.py."""
    agent, env = config.agent, config.env
    assert config.frames is not None
    step = environments.frame_skip(env) * env.num_envs
    _at_least("frames", config.frames, step)
    check_ranges(config)  # once more: a whole sequence may be longer than anybody plays
    whole = environments.sequence_frames(env)
    if whole is not None and config.frames > whole:
        length = "env.frames_per_game" if isinstance(env, SequentialConfig) else "env.frames_per_task"
        raise ValueError(
            f"frames={config.frames} is more than the whole sequence, {whole}: raise env.cycles or {length}"
        )
    _at_least("agent.min_replay_steps", agent.min_replay_steps, env.num_envs * (agent.n_steps + 1))
    _at_least("agent.update_every_steps", agent.update_every_steps, 1e-3)  # a thousand updates a step
    _at_least("replay.capacity", config.replay.capacity, agent.min_replay_steps)
    if config.eval.every is not None:
        _at_least("eval.every", config.eval.every, step)
    learning_rates.check_warmup(config)


def _check_head(head: HeadConfig) -> None:
    if isinstance(head, ImplicitQuantileHead) and head.priority not in PRIORITIES:
        raise ValueError(f"agent.head.priority={head.priority} is none of {', '.join(PRIORITIES)}")
    if isinstance(head, CategoricalHead) and not head.v_min < head.v_max:
        raise ValueError(
            f"agent.head.v_min={head.v_min} and agent.head.v_max={head.v_max}, expected numbers with v_min < v_max"
        )


def _check_munchausen(agent: AgentConfig) -> None:
    if agent.munchausen.alpha is None:
        return
    if isinstance(agent.head, CategoricalHead):
        raise ValueError(
            "agent.munchausen.alpha mixes returns over actions, which a categorical head cannot: use "
            "agent/head=expected, quantile or implicit_quantile"
        )
    if agent.double:
        raise ValueError("agent.munchausen.alpha with agent.double=true: its policy is the target network's, use false")


def _check_seeds(config: Config) -> None:
    if config.seeds is None:
        return
    if len(config.seeds) < 2 or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise ValueError(f"seeds={config.seeds}, expected two different numbers of 0 or more, or more of them")


def _check_nap(config: Config, node: DictConfig) -> None:
    chosen = OmegaConf.select(node, "hydra.runtime.choices.nap") or "full"
    if not config.agent.nap and chosen != "full":
        raise ValueError(f"nap={chosen} was asked for, but agent.nap=false: add agent.nap=true")
    if config.agent.nap and not (config.nap.normalize or config.nap.project):
        raise ValueError(
            "agent.nap=true with nap.normalize=false and nap.project=false does nothing: use agent.nap=false"
        )
    if config.agent.nap and not config.nap.project and config.nap.affine is Affine.project:
        raise ValueError("nap.affine=project with nap.project=false: use nap.affine=regularize, free or omit")


def _check_torso(agent: AgentConfig) -> None:
    if agent.torso not in TORSOS and "." not in agent.torso:
        raise ValueError(f"agent.torso={agent.torso} is none of {', '.join(TORSOS)}, and no dotted path of a class")
    if "." in agent.torso:
        try:
            import_object(agent.torso)
        except ValueError as error:
            raise ValueError(f"agent.torso={agent.torso}: {error}") from None
    for name, plain in (("width", 1), ("max_pool", None), ("spectral_norm", False)):
        if agent.torso != "impala" and getattr(agent, name) != plain:
            raise ValueError(
                f"agent.{name}={getattr(agent, name)} is for agent.torso=impala, and agent.torso={agent.torso}: use "
                f"agent.{name}={'null' if plain is None else str(plain).lower()}"
            )
    if len(agent.net_arch) > MOST_LAYERS:
        raise ValueError(f"agent.net_arch has {len(agent.net_arch)} layers, expected {MOST_LAYERS} or fewer")


def _check_plasticity(config: Config) -> None:
    options = asdict(config.plasticity)
    name = options.pop("name")
    if name not in METHODS:
        method_named(name)
    if name == "none" and not options:
        return
    if isinstance(config.plasticity, Injection):
        options["at"] = _injection_at(config, config.plasticity)
    for key, value in options.items():
        try:
            option(key, value)
        except ValueError as error:
            raise ValueError(f"plasticity.{error}") from None
    if set(options) != set(options_of(name)):
        raise ValueError(f"plasticity.name={name} has other options than {sorted(options)}: choose plasticity={name}")
    layer_norm = config.agent.nap and config.nap.normalize and config.nap.norm is Norm.layer
    if method_named(name).norm == "layer" and not layer_norm:
        raise ValueError(f"plasticity={name} needs LayerNorm: add agent.nap=true and nap=norm_only or nap=full")
    if method_named(name).only_at_switches and environments.sequence_frames(config.env) is None:
        raise ValueError(
            f"plasticity={name} acts at task switches, and env={config.env.name} has one task: use a sequence"
        )
    if name in ("leaky_relu", "crelu") and config.agent.activation is not Activation.relu:
        activation = config.agent.activation.name
        raise ValueError(f"plasticity={name} changes ReLUs, and agent.activation={activation} has none: use relu")
    if name == "crelu" and config.agent.torso == "impala":
        raise ValueError("plasticity=crelu doubles what a ReLU gives, which skip connections of agent.torso=impala add")


def _injection_at(config: Config, injection: Injection) -> int:
    """The update of the injection; where it is null, it becomes a quarter of the run's updates."""
    updates = max(updates_of(config), 1)
    if injection.at is None:
        injection.at = max(updates // 4, 1)
    if injection.at > updates:
        raise ValueError(f"plasticity.at={injection.at}, expected {updates} or less: this run has no more updates")
    return injection.at


def _check_logger(config: Config) -> None:
    for name in ("tensorboard", "wandb", "mlflow"):
        spec = find_spec(name) if getattr(config.logger, name) else None
        installed = spec is not None and spec.origin is not None  # a folder of that name is no package
        if getattr(config.logger, name) and not installed:
            extra = "" if name == "tensorboard" else f" (pip install -e '.[{name}]')"
            raise ValueError(f"logger.{name}=true, but {name} is not installed{extra}: add logger.{name}=false")


def check_space(config: Config, folder: Path) -> None:
    """Raises ValueError where the disk under `folder` cannot take the run's checkpoints."""
    from nap_rl.replay import Replay

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
