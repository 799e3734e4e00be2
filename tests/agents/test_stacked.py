"""Runs of several seeds in one process are the runs alone: to the bit what they draw, to rounding what they learn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nap_rl.agents import Trainer
from nap_rl.agents.stacked import StackedAgents, play_together
from nap_rl.agents.trainer import Act, Learn
from nap_rl.agents.whole_update import refusal
from nap_rl.cli import compose
from nap_rl.conf import build
from nap_rl.conf.check import to_config
from nap_rl.conf.environments import Observations
from nap_rl.logging import Progress, RunLog
from tests.agents.small_agents import (
    ENVS,
    INPUTS,
    INSIDE,
    SETTINGS,
    fill,
    largest_difference,
    small_agent,
)

SEEDS = (0, 1, 2)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_each_agent_is_the_agent_alone(settings: dict[str, Any]) -> None:
    alone, together = ([small_agent(seed, **settings) for seed in SEEDS] for _ in range(2))
    assert [refusal(agent) for agent in together] == [None] * len(SEEDS)
    stacked = StackedAgents(together, compiled=False)
    for k in range(6):
        rng = np.random.default_rng(k)
        stacks = [rng.normal(size=(ENVS, 1, INPUTS)).astype(np.float32) for _ in SEEDS]
        actions = stacked.act([Act(each, 0.3) for each in stacks])
        updates = stacked.update([Learn(0.5 + 0.1 * seed) for seed in SEEDS])
        for seed, agent in enumerate(alone):
            assert np.array_equal(agent.act(stacks[seed], 0.3), actions[seed])
            torch.testing.assert_close(agent.update(0.5 + 0.1 * seed), updates[seed], atol=1e-5, rtol=1e-5)
        for agent in (*alone, *together):
            fill(agent, k, steps=1)
    for one, other in zip(alone, together, strict=True):
        assert largest_difference(one.state_dict(), other.state_dict()) < 1e-5
        assert largest_difference(one.replay.state_dict(), other.replay.state_dict()) < 1e-5


@pytest.mark.parametrize(("name", "options"), INSIDE.items())
def test_each_agents_method_acts_inside_its_own_updates(name: str, options: dict[str, float]) -> None:
    alone, together = (
        [small_agent(seed, **SETTINGS["dqn, gains pulled back"], method=name, options=options) for seed in SEEDS]
        for _ in range(2)
    )
    stacked = StackedAgents(together, compiled=False)
    for k in range(4):
        stacked.update([Learn(0.5)] * len(SEEDS))
        for one, other in zip(alone, together, strict=True):
            one.update(0.5)
            assert one.intervene() == other.intervene()
        for agent in (*alone, *together):
            fill(agent, k, steps=1)
    for one, other in zip(alone, together, strict=True):
        assert largest_difference(one.state_dict(), other.state_dict()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["dqn, gains pulled back", "dqn, prioritised", "qr-dqn", "rainbow", "rainbow, units projected", "dqn, batch norm"],
)
def test_compiled_they_are_the_agents_alone_after_200_updates(name: str) -> None:
    alone, together = ([small_agent(seed, **SETTINGS[name]) for seed in SEEDS] for _ in range(2))
    stacked = StackedAgents(together, compiled=True)
    for _ in range(200):
        stacked.update([Learn(0.5)] * len(SEEDS))
        for agent in alone:
            agent.update(0.5)
    for one, other in zip(alone, together, strict=True):
        assert largest_difference(one.state_dict(), other.state_dict()) < 1e-5


def test_an_agent_that_diverges_leaves_the_others_alone() -> None:
    alone, together = ([small_agent(seed) for seed in SEEDS] for _ in range(2))
    stacked = StackedAgents(together, compiled=False)
    together[1].replay.rewards.fill_(float("nan"))
    first = stacked.update([Learn(0.0)] * 3)
    assert "loss is nan at update 1" in str(first[1])
    stacked.update([Learn(0.0), None, Learn(0.0)])
    for seed in (0, 2):
        alone[seed].update(0.0)
        alone[seed].update(0.0)
        assert largest_difference(alone[seed].state_dict(), together[seed].state_dict()) < 1e-5
    assert together[1].updates == 1


def test_answers_of_different_kinds_are_given_one_by_one() -> None:
    alone, together = ([small_agent(seed) for seed in SEEDS[:2]] for _ in range(2))
    stacked = StackedAgents(together, compiled=False)
    stacks = np.zeros((ENVS, 1, INPUTS), dtype=np.float32)
    actions, update = stacked.one_by_one([Act(stacks, 0.5), Learn(0.5)])
    assert np.array_equal(actions, alone[0].act(stacks, 0.5))
    torch.testing.assert_close(update, alone[1].update(0.5))
    stacked.update([Learn(0.5)] * 2)
    for agent in alone:
        agent.update(0.5)
    for one, other in zip(alone, together, strict=True):
        assert largest_difference(one.state_dict(), other.state_dict()) < 1e-5
        gradients = [
            (p.grad, q.grad) for p, q in zip(one.network.parameters(), other.network.parameters(), strict=True)
        ]
        assert all(torch.allclose(p, q, atol=1e-5) for p, q in gradients if p is not None and q is not None)


def trainer_of(seed: int, folder: Path, settings: tuple[str, ...]) -> Trainer:
    config = to_config(compose("config", [*settings, f"seed={seed}"]))
    env = build.build_env(config)
    observations = Observations.of(env)
    agent, _ = build.build_agent(config, env.num_actions, torch.device("cpu"), observations, stacked=True)
    return Trainer(
        env,
        agent,
        build.build_trainer_config(config),
        log=RunLog(folder / str(seed), tensorboard=False),
        display=Progress(stream=io.StringIO()),
        renew=build.build_renewal(config, observations),
    )


def test_runs_together_play_and_log_as_alone(tiny: object, tiny_catch: tuple[str, ...], tmp_path: Path) -> None:
    together = [trainer_of(seed, tmp_path / "together", tiny_catch) for seed in (3, 4)]
    stacked = StackedAgents([trainer.agent for trainer in together], compiled=False)
    ended = list(play_together(together, stacked, [lambda: False] * 2))
    assert ended == [(0, None), (1, None)]
    for seed, trainer in zip((3, 4), together, strict=True):
        alone = trainer_of(seed, tmp_path / "alone", tiny_catch)
        alone.run()
        assert largest_difference(alone.agent.state_dict(), trainer.agent.state_dict()) < 1e-5
        one, other = (tmp_path / name / str(seed) / "episodes.csv" for name in ("alone", "together"))
        assert one.read_text() == other.read_text()
        assert alone.records.visits[-1].returns == trainer.records.visits[-1].returns
