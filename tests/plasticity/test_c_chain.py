"""The churn penalty against outputs worked out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD

from nap_rl.nap import Projector, normalize
from nap_rl.plasticity.c_chain import CChain

ONE = torch.zeros(1, 1)


def line() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(1, 1))
    with torch.no_grad():
        network[0].weight.fill_(2.0)
        network[0].bias.fill_(1.0)
    return network


def stepped(network: nn.Sequential, method: CChain, update: int, weight: float, reference: torch.Tensor) -> None:
    with torch.no_grad():
        network[0].weight.fill_(weight)
    assert not method.after_update(update, lambda: reference)


def test_it_is_the_mean_squared_change_by_the_last_update_in_states_drawn_after_it() -> None:
    network = line()
    method = CChain(network, SGD(network.parameters(), lr=1.0), example_input=ONE, coefficient=10.0)
    first = method.penalty()
    first.backward()
    assert first.item() == 0.0 == float(network[0].weight.grad.abs().sum() + network[0].bias.grad.abs().sum())
    stepped(network, method, 1, 5.0, torch.tensor([[1.0], [2.0]]))
    penalty = method.penalty()  # 3 x: 3 and 6
    assert penalty.item() == pytest.approx(10 * (9 + 36) / 2)
    penalty.backward()
    # d/dw (3 x)^2 = 2 * 3 x * x: 6 and 24; the earlier weights have no gradient
    assert float(network[0].weight.grad) == pytest.approx(10 * (6 + 24) / 2)
    assert float(network[0].bias.grad) == pytest.approx(10 * 2 * (3 + 6) / 2)
    stepped(network, method, 2, 4.0, torch.tensor([[3.0]]))
    assert float(method.penalty()) == pytest.approx(10 * 9.0)  # from 5 to 4, and no longer from 2


def test_a_network_that_did_not_change_has_none_and_its_state_is_resumed() -> None:
    network = line()
    method = CChain(network, SGD(network.parameters(), lr=1.0), example_input=ONE, coefficient=1.0)
    stepped(network, method, 1, 2.0, torch.ones(3, 1))
    assert float(method.penalty()) == 0.0
    stepped(network, method, 2, 4.0, torch.ones(3, 1))
    other = line()
    other.load_state_dict(network.state_dict())
    resumed = CChain(other, SGD(other.parameters(), lr=1.0), example_input=ONE, coefficient=1.0)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    assert float(resumed.penalty()) == float(method.penalty()) == pytest.approx(4.0)
    for each, module in ((method, network), (resumed, other)):
        stepped(module, each, 3, 5.0, torch.full((1, 1), 2.0))
    assert float(resumed.penalty()) == float(method.penalty()) == pytest.approx(4.0)


def test_under_nap_an_update_changes_what_the_network_says_by_less() -> None:
    changes = []
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(3))
    for coefficient in (1e-9, 2.0):
        torch.manual_seed(0)
        network = normalize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), x)
        optimizer = SGD(network.parameters(), lr=0.01)
        projector = Projector(network, optimizer)
        method = CChain(network, optimizer, example_input=x, coefficient=coefficient)
        for update in (1, 2, 3, 4):
            optimizer.zero_grad()
            loss = (network(x) - 1.0).square().mean()
            (loss + method.penalty()).backward()
            optimizer.step()
            method.after_update(update, lambda: x)
        assert float(projector.max_relative_drift()) < 1e-6
        with torch.no_grad():
            changes.append(float((network(x) - method.previous(x)).square().mean()))
    assert changes[1] < changes[0]
