"""From a checked configuration to objects: the one place that knows both the names in the YAML and the constructors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch

from nap_rl.agents import CheckpointRhythm, OnSwitch, TrainerConfig, ValueAgent
from nap_rl.agents.evaluation import Evaluator
from nap_rl.agents.stacked import StackedAgents
from nap_rl.agents.whole_update import MOST_PARAMETERS, is_small, learn_whole, refusal
from nap_rl.agents.wrapping import capture_agent, compile_agent
from nap_rl.compilation import pick_compile, pick_precision
from nap_rl.conf import environments, init_from, learning_rates, optimizers
from nap_rl.conf.agent_schema import AgentConfig
from nap_rl.conf.env_schema import AtSwitch, SequenceConfig, SequentialConfig
from nap_rl.conf.environments import ATARI, Observations, open_envs
from nap_rl.conf.environments import build_env as build_env
from nap_rl.conf.intervals import parse_every
from nap_rl.conf.memory import replay_device
from nap_rl.conf.networks import build_network, example_input, network_spec
from nap_rl.conf.optimizer_schema import power
from nap_rl.conf.schema import Affine, Config
from nap_rl.conf.seeds import seeds
from nap_rl.conf.updates import updates_of
from nap_rl.envs import TaskStream
from nap_rl.losses import Munchausen
from nap_rl.machine import pick_device
from nap_rl.nap import Projector, project
from nap_rl.nn import QNetwork
from nap_rl.plasticity import Method, make_method, method_named
from nap_rl.replay import Replay
from nap_rl.schedules import Linear


def build_agent(
    config: Config,
    num_actions: int,
    device: torch.device,
    observations: Observations = ATARI,
    *,
    begins: bool = True,
    stacked: bool = False,
) -> tuple[ValueAgent, Projector | None]:
    """The agent with its replay, and what projects its weights (None where nothing does).

    Args:
        stacked: leave the agent plain, neither compiled nor native: it will be one of several that learn together.
        begins: read the weights of agent.init_from. False for a run that goes on: its checkpoint has all weights.
    """
    agent, seed = config.agent, seeds(config.seed)
    network = build_network(config, num_actions, observations)
    if begins and agent.init_from is not None:
        init_from.initialize(agent.init_from, network, lambda: build_env(config))
    network = network.to(device)
    compiled = not stacked and pick_compile(config.compile.name, updates_of(config))
    native = not stacked and native_wanted(config, compiled, device)
    memory = replay_device(config, device, observations)
    captured = (
        compiled
        and device.type == memory.type == "cuda"
        and method_named(config.plasticity.name) is Method
        and config.nap.every == 1
        and optimizers.can_be_captured(config)
    )
    optimizer = _optimizer(config, network, captured)
    example = example_input(network_spec(config), observations).to(device)
    projector = _projector(config, network, optimizer, example)
    replay = Replay(
        config.replay.capacity,
        config.env.num_envs,
        frame_shape=observations.shape,
        frame_dtype=getattr(torch, observations.dtype),
        stack=observations.stack,
        n_steps=agent.n_steps,
        discount=agent.discount,
        reward_clip=agent.reward_clip,
        exponent=agent.priority_exponent,
        uniform_probability=agent.uniform_probability,
        seed=seed.replay,
        device=memory,
    )
    built = ValueAgent(
        network,
        optimizer,
        replay,
        projector=projector,
        double=agent.double,
        batch_size=agent.batch_size,
        target_every_updates=agent.target_every_updates,
        max_grad_norm=agent.max_grad_norm,
        seed=seed.noise,
        munchausen=_munchausen(agent),
        method=_method(config, network, optimizer, example),
        precision=pick_precision(config.precision.name),
        effective_lr_power=power(config.optimizer),
    )
    if begins and agent.init_from is not None:
        init_from.continue_learning(agent.init_from, built)
    whole = compiled and device.type == "cpu" and config.native.name != "on" and learns_whole(built)
    if compiled and not whole:
        compile_agent(built)
    if captured:
        capture_agent(built)
    if native and not whole:
        import_module("nap_rl.native").accelerate(built)
    return built, projector


def stack(config: Config, agents: Sequence[ValueAgent]) -> StackedAgents:
    """The agents of several seeds, built with `stacked`, as agents that act and learn by one call."""
    return StackedAgents(agents, compiled=pick_compile(config.compile.name, len(agents) * updates_of(config)))


def stack_refusal(config: Config) -> str | None:
    """Why runs that differ from `config` in their seed alone cannot be stacked, as the end of a sentence, or None."""
    device = pick_device(config.device.name)
    if device.type != "cpu":
        return f"the learner is on {device.type}"
    observations, actions = environments.shown(config.env, config.seed)
    shapes = network_spec(config).shapes(observations.shape, observations.stack, actions)
    if (weights := sum(map(math.prod, shapes.values()))) > MOST_PARAMETERS:
        return f"the network has {weights:,} weights, more than {MOST_PARAMETERS:,}"
    small = replace(config, replay=replace(config.replay, capacity=config.agent.min_replay_steps))
    agent, _ = build_agent(small, actions, device, observations, begins=False, stacked=True)
    return refusal(agent)


def learns_whole(agent: ValueAgent) -> bool:
    """Make the updates of a small network on a CPU one compiled function each; whether that was done.

    Says why not, where the network is small and only something else is in the way.
    """
    if not is_small(agent):
        return False
    reason = learn_whole(agent)
    if reason is not None:
        warnings.warn(f"updates are compiled in parts, which is slower for a small network: {reason}", stacklevel=3)
    return reason is None


def native_wanted(config: Config, compiled: bool, device: torch.device) -> bool:
    """Whether the agent gets native code. ValueError: `native=on` for a learner on a GPU."""
    name = config.native.name
    if name == "on" and device.type != "cpu":
        raise ValueError(f"native=on, but the learner is on {device.type} and native code is for CPUs: use native=auto")
    return name == "on" or (name == "auto" and compiled and device.type == "cpu")


def _optimizer(config: Config, network: QNetwork, captured: bool) -> torch.optim.Optimizer:
    rate = None
    if captured:  # a number would stay what it was when captured
        rate = torch.tensor(config.agent.learning_rate, device=next(network.parameters()).device)
    return optimizers.build(config, network, rate=rate, captured=captured)


def build_renewal(config: Config, observations: Observations) -> Callable[[ValueAgent, int], None]:
    """What gives an agent fresh weights at a visit, and with them all that is learnt: see `ValueAgent.renew`."""

    def renew(agent: ValueAgent, visit: int) -> None:
        seed = int(np.random.SeedSequence([seeds(config.seed).network, visit]).generate_state(1)[0])
        agent.renew(build_network(config, agent.network.streams.actions, observations, seed=seed))
        example = example_input(network_spec(config), observations).to(agent.device)
        agent.method = _method(config, agent.network, agent.optimizer, example)

    return renew


def build_evaluator(config: Config, env: TaskStream) -> Evaluator | None:
    """What scores the network during training, in tasks as `env` plays them; None if nothing does."""
    settings = config.eval
    if settings.every is None:
        return None
    return Evaluator(
        every=settings.every,
        episodes=settings.episodes,
        num_envs=settings.num_envs,
        open_envs=open_envs(config),
        epsilon=settings.epsilon,
        noisy=settings.noisy,
        seed=seeds(config.seed).evaluation,
        tasks=settings.tasks.name,
    )


def build_rhythm(config: Config) -> CheckpointRhythm:
    """When checkpoints are written, and how many stay."""
    settings = config.checkpoint
    frames, seconds = parse_every(settings.every)
    return CheckpointRhythm(frames, seconds, settings.keep, settings.max_failures, settings.replay)


def build_trainer_config(config: Config, span_frames: int | None = None, folder: Path | None = None) -> TrainerConfig:
    """Length and rhythm of a run.

    Args:
        span_frames: emulator frames that lines over the whole run take; None for `config.frames`. A run that goes on
            beyond its end keeps the span that it began with.
        folder: of the run, with the rates that `learning_rates.keep` put there; None reads them where they are.
    """
    agent, env, schedule = config.agent, config.env, config.schedule
    assert config.frames is not None
    span_frames = span_frames or config.frames
    rates = learning_rates.build(config, span_frames, folder)
    return TrainerConfig(
        frames=config.frames,
        update_every_steps=agent.update_every_steps,
        min_replay_steps=agent.min_replay_steps,
        learning_rate=rates.schedule,
        layer_factors=rates.layer_factors,
        rewarming=rates.rewarming,
        schedule_frames=getattr(schedule, "over_frames", None) or span_frames,
        epsilon=Linear(agent.epsilon.start, agent.epsilon.end),
        epsilon_frames=agent.epsilon.over_frames,
        epsilon_until_frames=agent.epsilon.until_frames,
        importance=Linear(agent.importance_exponent.start, agent.importance_exponent.end),
        importance_frames=span_frames,
        log_every_updates=config.logger.every_updates,
        diagnostics_every_updates=config.logger.diagnostics_every_updates,
        on_switch=_on_switch(env) if isinstance(env, (SequentialConfig, SequenceConfig)) else OnSwitch(),
    )


def _on_switch(env: SequentialConfig | SequenceConfig) -> OnSwitch:
    return OnSwitch(
        reset_replay=env.on_switch.replay is AtSwitch.reset,
        reset_optimizer=env.on_switch.optimizer is AtSwitch.reset,
        reset_target=env.on_switch.target is AtSwitch.reset,
        restart_schedule=env.on_switch.schedule == "restart",
        restart_exploration=env.on_switch.exploration == "restart",
        reset_network=env.on_switch.network is AtSwitch.reset,
    )


def _projector(
    config: Config, network: QNetwork, optimizer: torch.optim.Optimizer, example: torch.Tensor
) -> Projector | None:
    nap = config.nap
    if not config.agent.nap or not (nap.project or nap.affine is Affine.regularize):
        return None
    return Projector(
        network,
        optimizer,
        every=nap.every if nap.project else None,
        affine=cast(project.Affine, "free" if nap.affine is Affine.omit else nap.affine.name),
        output=cast(Literal["free", "project"], nap.output.name),
        scope=cast(Literal["tensor", "unit"], nap.scope.name),
        regularize_coefficient=nap.regularize_coefficient,
        unnormalized="error" if nap.normalize else "project",
        example_input=None if nap.normalize else example,
    )


def _method(config: Config, network: QNetwork, optimizer: torch.optim.Optimizer, example: torch.Tensor) -> Method:
    options = asdict(config.plasticity)
    return make_method(
        options.pop("name"),
        network,
        optimizer,
        example_input=example,
        seed=seeds(config.seed).plasticity,
        options=options,
    )


def _munchausen(agent: AgentConfig) -> Munchausen | None:
    settings = agent.munchausen
    return None if settings.alpha is None else Munchausen(settings.alpha, settings.temperature, settings.clip)
