"""Penalties, perturbations and activations against closed forms, without NaP and with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from nap_rl.nap import Projector, normalize
from nap_rl.nn.torsos import ImpalaTorso
from nap_rl.plasticity import METHODS, make_method, method_named, options_of
from nap_rl.plasticity.activations import CReLU, LeakyReLU
from nap_rl.plasticity.l2 import L2, LayerNormL2, WeightDecay
from nap_rl.plasticity.noisy_updates import NoisyUpdates
from nap_rl.plasticity.regenerative import Regenerative
from nap_rl.plasticity.shrink_perturb import ShrinkPerturb

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(3))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def test_l2_gradient_is_twice_the_coefficient_times_the_weight_and_spares_biases() -> None:
    network = mlp()
    penalty = L2(network, SGD(network.parameters(), lr=1.0), coefficient=0.3).penalty()
    assert isinstance(penalty, torch.Tensor)
    penalty.backward()
    assert torch.allclose(network[0].weight.grad, 0.6 * network[0].weight)
    assert network[0].bias.grad is None


def test_layer_norm_l2_says_that_it_needs_a_layer_norm() -> None:
    assert LayerNormL2.norm == "layer"
    assert all(method_named(name).norm is None for name in METHODS if name != "layer_norm_l2")


def test_weight_decay_multiplies_by_one_minus_rate_times_coefficient_per_group() -> None:
    network = mlp()
    old = copy.deepcopy(network)
    optimizer = SGD([{"params": network[0].parameters(), "lr": 0.5}, {"params": network[2].parameters(), "lr": 0.1}])
    assert WeightDecay(network, optimizer, coefficient=0.2).after_update(1, lambda: X)
    assert torch.allclose(network[0].weight, 0.9 * old[0].weight)
    assert torch.allclose(network[2].weight, 0.98 * old[2].weight)
    assert torch.equal(network[0].bias, old[0].bias)


def test_weight_decay_under_nap_changes_no_projected_weight() -> None:
    network = normalize(mlp(), X)
    optimizer = SGD(network.parameters(), lr=0.1)
    projector = Projector(network, optimizer)
    hidden, output = [m for m in network.modules() if isinstance(m, nn.Linear)][1:]
    before, free = hidden.weight.clone(), output.weight.clone()
    WeightDecay(network, optimizer, coefficient=0.5).after_update(1, lambda: X)
    projector.project()
    assert torch.allclose(hidden.weight, before, atol=1e-7)
    assert torch.allclose(output.weight, 0.95 * free)


def test_regenerative_pulls_towards_the_initial_parameters_and_not_towards_zero() -> None:
    network = mlp()
    method = Regenerative(network, SGD(network.parameters(), lr=1.0), coefficient=0.25)
    assert float(method.penalty()) == 0.0
    with torch.no_grad():
        network[0].weight += 2.0
        network[0].bias -= 1.0
    assert float(method.penalty()) == pytest.approx(0.25 * (24 * 4 + 6 * 1), rel=1e-6)
    method.penalty().backward()
    assert torch.allclose(network[0].weight.grad, torch.full((6, 4), 0.25 * 2 * 2.0))


def test_regenerative_resumed_remembers_the_first_parameters() -> None:
    network = mlp()
    method = Regenerative(network, SGD(network.parameters(), lr=1.0), coefficient=1.0)
    with torch.no_grad():
        network[4].bias += 3.0
    resumed = Regenerative(network, SGD(network.parameters(), lr=1.0), coefficient=1.0)
    resumed.load_state_dict(method.state_dict())
    assert float(resumed.penalty()) == pytest.approx(2 * 9.0)


def test_regenerative_under_nap_is_the_cosine_with_the_initial_weights() -> None:
    network = normalize(mlp(), X, affine=False)
    optimizer = SGD(network.parameters(), lr=0.1)
    projector = Projector(network, optimizer, affine="free")
    method = Regenerative(network, optimizer, coefficient=1.0)
    first = [m for m in network.modules() if isinstance(m, nn.Linear)][0]
    start = first.weight.detach().clone()
    with torch.no_grad():
        first.weight += torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    projector.project()
    cosine = torch.cosine_similarity(first.weight.flatten(), start.flatten(), dim=0)
    assert float(method.penalty()) == pytest.approx(float(2 * start.square().sum() * (1 - cosine)), rel=1e-4)


def test_shrink_perturb_mixes_with_a_fresh_sample_that_is_not_the_initial_one() -> None:
    network = mlp()
    old = copy.deepcopy(network)
    method = ShrinkPerturb(network, SGD(network.parameters(), lr=1.0), shrink=0.7, every=2, seed=5)
    assert not method.after_update(1, lambda: X)
    assert method.after_update(2, lambda: X)
    psi = (network[0].weight - 0.7 * old[0].weight) / 0.3
    assert float(psi.abs().max()) <= 0.5 + 1e-5  # torch's U(-1/sqrt(4), 1/sqrt(4))
    assert not torch.allclose(psi, old[0].weight, atol=0.1)
    again = ShrinkPerturb(old, SGD(old.parameters(), lr=1.0), shrink=0.7, every=2, seed=5)
    again.after_update(2, lambda: X)
    assert torch.equal(old[0].weight, network[0].weight)  # decided by the method's own seed


def test_shrink_perturb_ends_are_no_change_and_a_full_reset() -> None:
    kept, reset = mlp(), mlp()
    ShrinkPerturb(kept, SGD(kept.parameters(), lr=1.0), shrink=1.0, every=1).after_update(1, lambda: X)
    ShrinkPerturb(reset, SGD(reset.parameters(), lr=1.0), shrink=0.0, every=1).after_update(1, lambda: X)
    assert torch.equal(kept[0].weight, mlp()[0].weight)
    cosine = torch.cosine_similarity(reset[2].weight.flatten(), mlp()[2].weight.flatten(), dim=0)
    assert abs(float(cosine)) < 0.6


def test_noisy_updates_add_gaussian_noise_of_the_scale() -> None:
    network = nn.Linear(200, 200)
    old = copy.deepcopy(network)
    method = NoisyUpdates(network, SGD(network.parameters(), lr=1.0), scale=0.01, seed=1)
    assert method.after_update(1, lambda: X)
    noise = network.weight - old.weight
    assert float(noise.std()) == pytest.approx(0.01, rel=0.02)
    assert abs(float(noise.mean())) < 5 * 0.01 / 200
    method.after_update(2, lambda: X)
    assert not torch.equal(network.weight - old.weight, 2 * noise)


def test_method_state_carries_the_random_stream() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.load_state_dict(a.state_dict())
    first = NoisyUpdates(a, SGD(a.parameters(), lr=1.0), scale=1.0, seed=1)
    first.after_update(1, lambda: X)
    b.load_state_dict(a.state_dict())
    second = NoisyUpdates(b, SGD(b.parameters(), lr=1.0), scale=1.0, seed=2)
    second.load_state_dict(first.state_dict())
    first.after_update(2, lambda: X)
    second.after_update(2, lambda: X)
    assert torch.equal(a.weight, b.weight)


def test_leaky_relu_passes_a_hundredth_of_what_is_negative() -> None:
    network = LeakyReLU.prepare(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), torch.ones(1, 1))
    with torch.no_grad():
        network.get_submodule("0").weight.fill_(1.0)
        network.get_submodule("0").bias.fill_(0.0)
    assert network(torch.tensor([[-3.0], [2.0]])).flatten().tolist() == pytest.approx([-0.03, 2.0])


def test_crelu_gives_both_halves_and_doubles_what_reads_them() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4, 3), nn.ReLU(), nn.Linear(3, 2)
    )
    x = torch.randn(5, 1, 3, 3)
    pre = network[0](x)
    network = CReLU.prepare(network, x)
    h = network[1](network[0](x))
    assert torch.equal(h, torch.cat([pre.clamp(min=0), (-pre).clamp(min=0)], dim=1))
    assert network[3].weight.shape == (3, 16) and network[5].weight.shape == (2, 6)
    assert network(x).shape == (5, 2)
    assert float(network[5].weight.abs().max()) <= 6**-0.5  # drawn afresh for six inputs


def test_crelu_refuses_a_skip_connection_with_a_sentence() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.relu_a = nn.Linear(4, 4), nn.ReLU()
            self.b, self.relu_b, self.c = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.relu_a(self.a(x))
            y: torch.Tensor = self.c(self.relu_b(h + self.b(h)))
            return y

    with pytest.raises(ValueError, match="'relu_a' gives, but its output is also added to a skip connection"):
        CReLU.prepare(Skip(), X)


def test_crelu_widens_residual_blocks_whose_skips_are_not_activated() -> None:
    network = nn.Sequential(ImpalaTorso(), nn.Linear(3872, 2))
    x = torch.randn(1, 4, 84, 84)
    assert CReLU.prepare(network, x)(x).shape == (1, 2)


@pytest.mark.parametrize("name", sorted(name for name in METHODS if not method_named(name).value_networks_only))
@pytest.mark.parametrize("nap", [False, True])
def test_every_method_trains_and_ends_on_the_initial_norms_with_nap(name: str, nap: bool) -> None:
    network = method_named(name).prepare(mlp(), X)
    if nap:
        network = normalize(network, X)
    optimizer = Adam(network.parameters(), lr=1e-2)
    projector = Projector(network, optimizer) if nap else None
    options = {"every": 2} if "every" in options_of(name) else {}
    method = make_method(name, network, optimizer, example_input=X, options=options)
    for update in range(1, 5):
        optimizer.zero_grad()
        loss = network(X).square().mean()
        if (penalty := method.penalty()) is not None:
            loss = loss + penalty
        loss.backward()
        optimizer.step()
        if method.after_update(update, lambda: X) and projector is not None:
            projector.project()
    assert all(bool(p.isfinite().all()) for p in network.parameters())
    if projector is not None:
        assert float(projector.max_relative_drift()) < 1e-5


def test_unknown_method_and_option_are_one_sentence() -> None:
    network = mlp()
    optimizer = SGD(network.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="no plasticity method 'reddo'; the nearest is 'redo'"):
        make_method("reddo", network, optimizer, example_input=X)
    with pytest.raises(ValueError, match="'l2' has no option 'tau'; it has: coefficient"):
        make_method("l2", network, optimizer, example_input=X, options={"tau": 1})
    with pytest.raises(ValueError, match="coefficient must be a number greater than 0; got -1"):
        make_method("l2", network, optimizer, example_input=X, options={"coefficient": -1})
