"""ReDo, continual backprop and head resets against cases worked out by hand."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from nap_rl.nap import Projector, normalize
from nap_rl.plasticity.continual_backprop import ContinualBackprop
from nap_rl.plasticity.redo import ReDo
from nap_rl.plasticity.reset_head import ResetHead
from nap_rl.plasticity.units import moments

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(3))


def network_with_two_dead_units() -> nn.Sequential:
    """Units 1 and 3 of the first hidden layer are 0 on every input."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        network[0].bias[[1, 3]] = -100.0
    return network


def step(network: nn.Module, optimizer: Optimizer, x: Tensor = X) -> None:
    optimizer.zero_grad()
    network(x).square().mean().backward()
    optimizer.step()


def test_redo_leaves_the_function_unchanged_for_truly_dormant_units() -> None:
    network = network_with_two_dead_units()
    optimizer = Adam(network.parameters())
    before = network(X)
    assert ReDo(network, optimizer, example_input=X, tau=0.0, every=1).after_update(1, lambda: X)
    assert torch.allclose(network(X), before, atol=1e-6)
    assert (network[0](X)[:, [1, 3]] > 0).any()  # alive again


def test_redo_touches_the_dormant_units_weights_and_moments_and_no_others() -> None:
    network = network_with_two_dead_units()
    optimizer = Adam(network.parameters(), lr=1e-3)
    for _ in range(3):
        step(network, optimizer)
    old = copy.deepcopy(network)
    kept = {p: [m.clone() for m in moments(optimizer, p)] for p in network.parameters()}
    ReDo(network, optimizer, example_input=X, tau=0.0, every=1).after_update(1, lambda: X)

    dead, alive = [1, 3], [0, 2, 4, 5]
    first, second = network[0], network[2]
    assert not torch.equal(first.weight[dead], old[0].weight[dead])
    assert torch.equal(first.weight[alive], old[0].weight[alive])
    assert torch.equal(first.bias[dead], torch.zeros(2))
    assert torch.equal(first.bias[alive], old[0].bias[alive])
    assert torch.equal(second.weight[:, dead], torch.zeros(5, 2))
    assert torch.equal(second.weight[:, alive], old[2].weight[:, alive])
    assert torch.equal(second.bias, old[2].bias)
    for parameter, rows in ((first.weight, dead), (first.bias, dead)):
        for moment, was in zip(moments(optimizer, parameter), kept[parameter], strict=True):
            assert torch.equal(moment[rows], torch.zeros_like(moment[rows]))
            assert torch.equal(moment[alive], was[alive])
    for moment, was in zip(moments(optimizer, second.weight), kept[second.weight], strict=True):
        assert torch.equal(moment[:, dead], torch.zeros(5, 2))
        assert torch.equal(moment[:, alive], was[:, alive])
        assert moment[:, alive].abs().sum() > 0


def test_redo_score_is_relative_to_the_layer_mean() -> None:
    network = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[10.0], [10.0], [3.0], [1.0]]))  # mean 6: s = 1.67, 1.67, 0.5, 0.17
    method = ReDo(network, SGD(network.parameters(), lr=1.0), example_input=torch.ones(1, 1), tau=0.2, every=1)
    method.after_update(1, lambda: torch.ones(8, 1))
    assert network[0].weight[:3, 0].tolist() == [10.0, 10.0, 3.0]
    assert network[0].weight[3, 0] != 1.0


def test_redo_acts_only_every_so_many_updates() -> None:
    network = network_with_two_dead_units()
    method = ReDo(network, SGD(network.parameters(), lr=1.0), example_input=X, every=3)
    assert [method.after_update(n, lambda: X) for n in range(1, 7)] == [False, False, True] * 2


def test_redo_treats_a_convolution_channel_as_one_unit() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 9, 2))
    x = torch.randn(8, 1, 4, 4)
    with torch.no_grad():
        network[0].bias[1] = -100.0
    before = network(x)
    ReDo(network, SGD(network.parameters(), lr=1.0), example_input=x, tau=0.0, every=1).after_update(1, lambda: x)
    assert torch.allclose(network(x), before, atol=1e-6)
    assert torch.equal(network[3].weight[:, 9:18], torch.zeros(2, 9))
    assert (network[3].weight[:, :9] != 0).all() and (network[3].weight[:, 18:] != 0).all()


def test_redo_with_nap_goes_back_to_the_initial_norms_and_the_zeros_stay() -> None:
    torch.manual_seed(0)
    network: nn.Module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    network = normalize(network, X)
    optimizer = Adam(network.parameters(), lr=1e-2)
    projector = Projector(network, optimizer)
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    rho = [float(m.weight.detach().norm()) for m in linear]
    step(network, optimizer)
    norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
    with torch.no_grad():
        norms[0].bias[2] = -100.0
    method = ReDo(network, optimizer, example_input=X, tau=0.0, every=1)
    assert method.after_update(1, lambda: X)
    assert float(linear[1].weight.detach().norm()) < rho[1] * 0.999  # a column is gone
    projector.project()
    assert torch.equal(linear[1].weight[:, 2], torch.zeros(5))
    for layer, norm in zip(linear[:2], rho[:2], strict=True):
        assert abs(float(layer.weight.norm()) / norm - 1) < 1e-6


def test_reset_head_draws_the_last_layer_afresh_and_nothing_else() -> None:
    network = network_with_two_dead_units()
    optimizer = Adam(network.parameters())
    step(network, optimizer)
    old = copy.deepcopy(network)
    method = ResetHead(network, optimizer, example_input=X, every=2)
    assert not method.after_update(1, lambda: X)
    assert method.after_update(2, lambda: X)
    assert torch.equal(network[0].weight, old[0].weight) and torch.equal(network[2].weight, old[2].weight)
    assert not torch.equal(network[4].weight, old[4].weight)
    assert not torch.equal(network[4].bias, old[4].bias)
    assert all(float(m.abs().sum()) == 0 for p in network[4].parameters() for m in moments(optimizer, p))
    assert all(float(m.abs().sum()) > 0 for m in moments(optimizer, network[2].weight))


def test_continual_backprop_replaces_the_least_useful_mature_unit() -> None:
    network = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [2.0], [4.0]]))
        network[2].weight.copy_(torch.tensor([[8.0, 1.0, 1.0]]))
    optimizer = SGD(network.parameters(), lr=0.0)
    x = torch.ones(2, 1)
    # Utilities |h| |w_out|: 8, 2, 4. From the fourth update on 3 units are mature: owed 0.6, then 1.2.
    method = ContinualBackprop(network, optimizer, example_input=x, rate=0.2, decay=0.5, maturity=3)
    changed = []
    for update in range(1, 6):
        step(network, optimizer, x)
        changed.append(method.after_update(update, lambda: x))
    assert changed == [False, False, False, False, True]
    assert network[2].weight.tolist() == [[8.0, 0.0, 1.0]]
    assert network[0].weight[[0, 2], 0].tolist() == [1.0, 4.0]
    assert method.age["1"].tolist() == [5.0, 0.0, 5.0]
    assert abs(method.owed["1"] - 0.2) < 1e-9
    # u_5 = (1 - 0.5^5) * 8, and the bias correction gives 8 back.
    assert torch.allclose(method.utility["1"], torch.tensor([8.0, 0.0, 4.0]) * (1 - 0.5**5))


def test_continual_backprop_ignores_passes_without_gradient() -> None:
    network = network_with_two_dead_units()
    method = ContinualBackprop(network, SGD(network.parameters(), lr=0.0), example_input=X)
    network(X)
    seen = method.observed["1"].clone()
    with torch.no_grad():
        network(100 * X)
    assert torch.equal(method.observed["1"], seen)


def test_continual_backprop_resumes_from_its_state() -> None:
    def trained(updates: int, state: dict[str, Tensor] | None, start: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        network = copy.deepcopy(start)
        optimizer = SGD(network.parameters(), lr=0.1)
        method = ContinualBackprop(network, optimizer, example_input=X, rate=0.05, maturity=2, seed=4)
        if state is not None:
            method.load_state_dict(state)
        for update in range(updates):
            step(network, optimizer)
            method.after_update(update, lambda: X)
        return network, {name: tensor.clone() for name, tensor in method.state_dict().items()}

    def bare(network: nn.Module) -> nn.Module:
        clean = network_with_two_dead_units()
        clean.load_state_dict(network.state_dict())
        return clean

    start = network_with_two_dead_units()
    whole, _ = trained(12, None, start)
    half, state = trained(5, None, start)
    resumed, _ = trained(7, state, bare(half))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
