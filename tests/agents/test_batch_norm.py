"""An agent with BatchNorm acts by what it has learnt of batches; its statistics come from updates alone."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from nap_rl.agents.diagnostics import Diagnostics
from nap_rl.nap import LayerMonitor
from tests.agents.small_agents import INPUTS, largest_difference, small_agent


def test_what_it_does_in_one_environment_does_not_depend_on_the_others() -> None:
    agent = small_agent(norm="batch")
    for _ in range(20):
        agent.update()
    stacks = np.random.default_rng(0).normal(size=(40, 1, INPUTS)).astype(np.float32)
    expected = copy.deepcopy(agent.network).eval().q_values(torch.from_numpy(stacks)).argmax(1).numpy()
    assert np.array_equal(agent.act(stacks), expected) and len({*expected}) > 1
    assert np.array_equal(np.concatenate([agent.act(stacks[i : i + 1]) for i in range(len(stacks))]), expected)


def test_acting_leaves_its_statistics_alone_and_updates_move_them() -> None:
    agent = small_agent(norm="batch")
    stacks = np.random.default_rng(0).normal(size=(4, 1, INPUTS)).astype(np.float32)
    before = copy.deepcopy(agent.network.state_dict())
    agent.act(stacks, noisy=False)
    assert largest_difference(before, agent.network.state_dict()) == 0.0
    assert all(module.training for module in agent.network.modules())
    agent.network.eval()
    agent.act(stacks, noisy=False)
    assert not any(module.training for module in agent.network.modules())
    agent.network.train()
    agent.update()
    norms = [name for name, module in agent.network.named_modules() if isinstance(module, nn.BatchNorm1d)]
    moved = agent.network.state_dict()
    assert norms and all(not torch.equal(before[f"{n}.running_mean"], moved[f"{n}.running_mean"]) for n in norms)


def test_dropout_of_ones_own_torso_is_off_in_acting_and_on_in_updates() -> None:
    dropout = nn.Dropout(0.5)
    seen: list[bool] = []
    dropout.register_forward_hook(lambda module, args, output: seen.append(module.training))
    agent = small_agent(torso_end=dropout)
    seen.clear()  # of the pass that put in the norms
    agent.act(np.ones((2, 1, INPUTS), dtype=np.float32))
    assert seen == [False]
    agent.update()
    assert all(seen[1:]) and len(seen) > 1


def test_diagnostics_leave_its_statistics_alone() -> None:
    plain, measured = (small_agent(norm="batch") for _ in range(2))
    for agent in (plain, measured):
        for k in range(5):
            agent.act(np.full((2, 1, INPUTS), k, dtype=np.float32))
    diagnostics = Diagnostics(measured, LayerMonitor(measured.network, measured.optimizer).names)
    for _ in range(3):
        plain.update()
        diagnostics.before_update()
        measured.update()
        assert np.isfinite([*diagnostics.after_update().values()]).all()
    assert largest_difference(plain.state_dict(), measured.state_dict()) == 0.0
