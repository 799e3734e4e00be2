"""What a task switch keeps and resets: every combination of `env.on_switch`, against the state before the switch."""

from __future__ import annotations

import itertools
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nap_rl import cli
from nap_rl.agents import Trainer
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.env_schema import AtSwitch, SequenceConfig
from nap_rl.conf.environments import Observations
from nap_rl.conf.networks import build_network
from nap_rl.conf.schema import Config
from nap_rl.conf.seeds import seeds
from nap_rl.logging import Progress, RunLog

VISIT = 96  # frames of a visit: 24 steps of 4 environments
TINY = [
    "env=permuted_catch",
    "env.visits=2",
    f"env.frames_per_task={VISIT}",
    "env.num_envs=4",
    "agent=dqn_small",
    "agent.nap=true",
    "agent.net_arch=[6]",
    "agent.hidden=5",
    "agent.min_replay_steps=16",
    "agent.target_every_updates=1000",
    "agent.epsilon={start: 1.0, end: 0.0, over_frames: 40}",
    "schedule=linear",
    "replay.capacity=400",
    "compile=off",
    "device=cpu",
    "logger.tensorboard=false",
    "logger.diagnostics_every_updates=null",
]
RESETS = ("replay", "optimizer", "target", "network")
RESTARTS = ("schedule", "exploration")


@cache
def base() -> Config:
    schema.register()
    cli.register_resolvers()
    return to_config(cli.compose("config", TINY))


def trainer(folder: Path, visits: int = 2, **on_switch: Any) -> Trainer:
    config = deepcopy(base())
    assert isinstance(config.env, SequenceConfig) and config.frames is not None
    config.env.visits, config.frames = visits, visits * VISIT
    for name, value in on_switch.items():
        setattr(config.env.on_switch, name, value)
    env = build.build_env(config)
    observations = Observations.of(env)
    agent, _ = build.build_agent(config, env.num_actions, torch.device("cpu"), observations)
    return Trainer(
        env,
        agent,
        build.build_trainer_config(config),
        log=RunLog(folder, tensorboard=False),
        display=Progress(),
        renew=build.build_renewal(config, observations),
    )


def play(run: Trainer, frames: int) -> None:
    run.run(lambda: run.frames >= frames)


def copy(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def combinations() -> list[Any]:
    """All 64. Those that name none, one, all but one or all run by default; they hold every pair of answers."""
    return [
        pytest.param(
            chosen, id="".join(map(str, map(int, chosen))), marks=[pytest.mark.slow] if 1 < sum(chosen) < 5 else []
        )
        for chosen in itertools.product((False, True), repeat=6)
    ]


@pytest.mark.parametrize("chosen", combinations())
def test_a_switch_resets_exactly_what_is_named(tmp_path: Path, chosen: tuple[bool, ...]) -> None:
    names = (*RESETS, *RESTARTS)
    on = dict(zip(names, chosen, strict=True))
    resets = {name: AtSwitch.reset if on[name] else AtSwitch.keep for name in RESETS}
    restarts = {name: "restart" if on[name] else "continue" for name in RESTARTS}
    run = trainer(tmp_path, **resets, **restarts)
    agent = run.agent
    seen: dict[str, Any] = {}
    switch = run._switch

    def observed() -> None:
        seen["network"], seen["target"] = copy(agent.network.state_dict()), copy(agent.target.state_dict())
        seen["moments"] = [copy(state) for state in agent.optimizer.state.values()]
        seen["size"], seen["updates"] = len(agent.replay), agent.updates
        switch()
        # An update may follow in the step after: what holds at once is looked at here.
        network, target = agent.network.state_dict(), agent.target.state_dict()
        assert equal(seen["network"], network) != on["network"]
        if on["network"]:
            assert equal(network, fresh_weights(visit=1))
        if on["network"] or on["target"]:
            assert equal(network, target)
        else:
            assert equal(seen["target"], target)
        if on["network"] or on["optimizer"]:
            assert not agent.optimizer.state
        else:
            assert all(equal(a, b) for a, b in zip(seen["moments"], agent.optimizer.state.values(), strict=True))
        assert len(agent.replay) == (0 if on["replay"] else seen["size"])
        assert agent.updates == seen["updates"]
        assert float(agent.projector.max_relative_drift()) < 1e-6  # type: ignore[union-attr]

    run._switch = observed  # type: ignore[method-assign]
    play(run, VISIT)
    assert seen and run.env.visit.number == 1 and seen["updates"] > 0 and seen["moments"]
    assert not equal(seen["network"], seen["target"])
    assert run._epsilon() == pytest.approx(1.0 if on["exploration"] else 0.0)
    # The rate falls from 1e-3 to the end of the run, or of the visit; it waits while the replay fills.
    begin = VISIT + 16 if on["replay"] else VISIT
    frames = VISIT + 40
    play(run, frames)
    rate = run._learning_rate() / run.config.learning_rate(0.0)
    last = run.config.learning_rate(1.0) / run.config.learning_rate(0.0)
    share = (frames - begin) / (2 * VISIT - begin) if on["schedule"] else (frames - 16) / (2 * VISIT - 16)
    assert rate == pytest.approx(1.0 + (last - 1.0) * share)
    if on["replay"]:  # learning waits for 16 new steps, then goes on at one update for each 4 steps
        assert agent.updates == seen["updates"] + (frames - VISIT - 16) // 4
    else:
        assert agent.updates == (frames - 16) // 4


def fresh_weights(visit: int) -> dict[str, torch.Tensor]:
    seed = int(np.random.SeedSequence([seeds(0).network, visit]).generate_state(1)[0])
    return build_network(base(), 3, Observations((10, 5), "float32", 1), seed=seed).state_dict()


def test_each_visit_of_a_reset_network_has_other_weights_and_its_norms_are_its_own(tmp_path: Path) -> None:
    run = trainer(tmp_path, visits=3, network=AtSwitch.reset)
    norms = []
    for visit in range(3):
        play(run, VISIT * visit + 4)
        norms.append({name: float(norm) for name, norm in run.agent.projector.groups.items()})  # type: ignore[union-attr]
    weights = [name for name in norms[0] if norms[0][name] != norms[1][name]]
    assert weights and all(norms[1][name] != norms[2][name] for name in weights)


def test_episodes_of_the_last_three_tenths_of_a_visit_are_late(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    play(run, 2 * VISIT)
    for record in run.records.visits:
        assert record.frames == VISIT and len(record.returns) == 8  # 24 steps in 4 environments, 9 steps an episode
        assert record.ends == [36] * 4 + [72] * 4
        assert record.late_return == sum(record.returns[4:]) / 4  # 72 > 0.7 * 96 = 67.2
