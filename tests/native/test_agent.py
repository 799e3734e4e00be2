"""An accelerated agent against the plain one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

from nap_rl.agents import ValueAgent
from nap_rl.nap import Projector
from nap_rl.native import accelerate, library
from nap_rl.native.adam import NativeAdam, NativeProjector
from nap_rl.native.agent import NativeValueAgent
from nap_rl.native.layers import NativeConv2d, NativeNoisyLinear, NativeQNetwork

Make = Callable[..., ValueAgent]
pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


def native(agent: ValueAgent) -> ValueAgent:
    accelerated = accelerate(agent)
    assert accelerated is agent and isinstance(agent, NativeValueAgent)
    assert isinstance(agent.optimizer, NativeAdam) and isinstance(agent.projector, NativeProjector)
    for network in (agent.network, agent.target):
        assert isinstance(network, NativeQNetwork) and isinstance(network.torso[0], NativeConv2d)
        assert all(isinstance(layer, NativeNoisyLinear) for layer in network.streams.noisy_layers())
    return agent


def assert_same(found: ValueAgent, expected: ValueAgent, rtol: float = 1e-4) -> None:
    for (name, p), (_, q) in zip(found.network.named_parameters(), expected.network.named_parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4 * float(q.grad.abs().max()), msg=name)
        torch.testing.assert_close(p, q, rtol=rtol, atol=1e-6, msg=name)


@pytest.mark.parametrize("max_grad_norm", [1e-2, 10.0, None])
@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_its_updates_are_the_plain_ones(compile: str, max_grad_norm: float | None, rainbow: Make) -> None:
    plain, mine = rainbow(), native(rainbow(f"compile={compile}"))
    plain.max_grad_norm = mine.max_grad_norm = max_grad_norm
    for _ in range(4):
        a, b = plain.update(0.5), mine.update(0.5)
        torch.testing.assert_close(b.loss, a.loss, rtol=1e-4, atol=0.0)
        torch.testing.assert_close(b.grad_norm, a.grad_norm, rtol=1e-4, atol=0.0)
    assert_same(mine, plain)
    assert mine.projector is not None and mine.projector.updates == 4
    assert float(mine.projector.max_relative_drift()) < 1e-6


def test_the_step_projects_and_its_hook_does_not_but_project_always_does(
    rainbow: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = native(rainbow())
    assert agent.projector is not None
    plain: list[bool] = []
    monkeypatch.setattr(Projector, "project_whole", lambda projector: plain.append(True))
    agent.update(0.5)
    assert not plain and float(agent.projector.max_relative_drift()) < 1e-6
    monkeypatch.undo()
    with torch.no_grad():
        torch._foreach_mul_([*agent.network.parameters()], 2.0)
    assert float(agent.projector.max_relative_drift()) > 0.9
    agent.projector.project()  # asked for, it projects: as after a plasticity method
    assert float(agent.projector.max_relative_drift()) < 1e-6


def test_frozen_weights_stay_and_are_projected_once_thawed(rainbow: Make) -> None:
    plain, mine = rainbow(), native(rainbow())
    for agent in (plain, mine):
        layer = agent.network.streams.noisy_layers()[0]
        layer.weight_sigma.requires_grad_(False)
        before = layer.weight_sigma.clone()
        agent.update(0.5)
        assert torch.equal(layer.weight_sigma, before)
        layer.weight_sigma.requires_grad_(True)
        agent.update(0.5)
    assert_same(mine, plain)


def test_a_penalty_of_a_method_is_in_its_gradients(rainbow: Make) -> None:
    plain, mine = rainbow(), native(rainbow())
    for agent in (plain, mine):
        sigma = agent.network.streams.noisy_layers()[0].weight_sigma
        agent.method.penalty = lambda sigma=sigma: sigma.square().sum()  # type: ignore[method-assign]
        agent.update(0.5)
    assert_same(mine, plain)


def test_its_state_is_the_plain_ones(rainbow: Make) -> None:
    plain, mine = rainbow(), native(rainbow())
    plain.update(0.5), mine.update(0.5)
    state = copy.deepcopy(mine.state_dict())
    plain.load_state_dict(state)
    mine.load_state_dict(copy.deepcopy(state))  # an optimiser takes over the tensors themselves
    mine.replay.load_state_dict(plain.replay.state_dict())
    plain.update(0.5), mine.update(0.5)
    assert_same(mine, plain)


def test_its_network_can_be_pickled_and_copied(rainbow: Make) -> None:
    network = native(rainbow()).network
    x = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(x), network(x))


def test_another_optimiser_than_adam_stays_and_so_does_the_agent(rainbow: Make) -> None:
    agent = rainbow()
    agent.optimizer = torch.optim.SGD(agent.network.parameters(), lr=1e-3)
    accelerate(agent)
    assert type(agent) is ValueAgent and type(agent.optimizer) is torch.optim.SGD
    assert type(agent.projector) is Projector and isinstance(agent.network, NativeQNetwork)
    agent.update(0.5)


def test_without_a_library_nothing_is_replaced(rainbow: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nap_rl.native.agent.library", lambda: None)
    agent = accelerate(rainbow())
    assert type(agent) is ValueAgent and type(agent.optimizer) is torch.optim.Adam
