"""Each formula against a case worked out by hand or a slower way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from nap_rl import diagnostics as d
from nap_rl.nap import normalize, weight_groups
from nap_rl.nn import ExpectedValue, ImpalaTorso, NatureTorso, QNetwork, Streams
from nap_rl.nn.noisy import NoisyLinear


def test_dormant_and_dead_units() -> None:
    # columns are units: dead; weak (mean 0.1); sometimes on (mean 1.45); always on (mean 2.45). Layer mean 1.
    h = torch.tensor([[0.0, 0.0, 2.9, 2.0], [0.0, 0.2, 0.0, 2.9]])
    assert float(d.dormant_fraction(h, 0.0)) == 0.25
    assert float(d.dormant_fraction(h, 0.099)) == 0.25
    assert float(d.dormant_fraction(h, 0.101)) == 0.5
    assert float(d.dead_fraction(h)) == 0.25


def test_a_feature_map_is_one_unit() -> None:
    h = torch.zeros(2, 3, 4, 4)
    h[1, 1, 2, 2] = 1.0  # alive in one place of one image
    h[:, 2] = 5.0
    assert float(d.dead_fraction(h)) == pytest.approx(1 / 3)


def test_a_silent_layer_is_dormant_and_not_nan() -> None:
    assert float(d.dormant_fraction(torch.zeros(4, 3), 0.025)) == 1.0


@pytest.mark.parametrize("wide", [True, False])
def test_the_rank_is_the_number_of_singular_values_that_hold_the_share(wide: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(6, 4, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(5, 4, generator=generator))
    h = left @ torch.diag(torch.tensor([8.0, 1.0, 0.5, 0.5])) @ right.T
    h = h.T if wide else h
    assert float(d.feature_rank(h, 0.15)) == 2.0  # 0.8 < 0.85 <= 0.9
    assert float(d.feature_rank(h, 0.01)) == 4.0


def test_equal_directions_have_full_rank_and_one_direction_rank_one() -> None:
    assert float(d.feature_rank(torch.eye(5))) == 5.0
    assert float(d.feature_rank(torch.ones(7, 2, 3, 3))) == 1.0


def test_churn_and_feature_norm() -> None:
    assert float(d.churn(torch.zeros(2, 2), torch.tensor([[1.0, -1.0], [0.0, 2.0]]))) == 1.0
    assert float(d.feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))) == 3.0


@pytest.mark.parametrize(
    ("eigenvalues", "largest"), [([5.0, 1.0, -2.0], 5.0), ([-9.0, 4.0, 1.0], 4.0), ([-3.0, -1.0, -7.0], -1.0)]
)
def test_the_largest_eigenvalue_is_found_whatever_the_sign_of_the_dominant_one(
    eigenvalues: list[float], largest: float
) -> None:
    basis, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    matrix = basis @ torch.diag(torch.tensor(eigenvalues)) @ basis.T
    a, b = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    point = torch.cat([a, b])
    loss = point @ matrix @ point / 2
    found = d.hessian_max(loss, [a, b], torch.Generator().manual_seed(0), iterations=50)
    assert float(found) == pytest.approx(largest, rel=1e-3)


def test_the_largest_eigenvalue_of_a_network_is_that_of_its_whole_hessian() -> None:
    torch.manual_seed(0)
    network, x, y = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(16, 3), torch.randn(16, 1)
    parameters = [*network.parameters()]
    shapes = [p.shape for p in parameters]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        w1, b1, w2, b2 = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return (torch.tanh(x @ w1.T + b1) @ w2.T + b2 - y).square().mean()

    flat = torch.cat([p.detach().flatten() for p in parameters])
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1]
    found = d.hessian_max((network(x) - y).square().mean(), parameters, torch.Generator().manual_seed(0), 100)
    assert float(found) == pytest.approx(float(exact), rel=0.01)
    assert all(p.grad is None for p in parameters)


def test_a_linear_loss_has_no_curvature() -> None:
    w = torch.ones(3, requires_grad=True)
    assert float(d.hessian_max((2 * w).sum(), [w], torch.Generator())) == 0.0


def test_the_jacobian_estimate_is_unbiased_also_through_normalisations() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 4, generator=generator)
    torch.manual_seed(0)
    network = normalize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), x)
    exact = vmap(jacrev(network))(x).detach().square().sum((1, 2)).mean()
    with torch.no_grad():
        tangents = [d.jvp(network, x, torch.randn(x.shape, generator=generator))[1] for _ in range(100)]
    estimates = torch.stack([d.jacobian_norm(tangent) for tangent in tangents]).square()
    assert float(estimates.mean()) == pytest.approx(float(exact), rel=0.1)


def test_activations_are_those_of_the_pass_and_no_hook_stays() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), NoisyLinear(12, 5), nn.ReLU())
    x = torch.rand(2, 1, 3, 3)
    with d.activations(network) as hidden:
        output = network(x)
    assert list(hidden) == ["1", "4"]
    assert torch.equal(hidden["4"], output) and torch.equal(hidden["1"], network[:2](x))
    assert all(not module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("nap", [False, True])
def test_activations_are_named_by_their_layers(nap: bool) -> None:
    network: nn.Module = QNetwork(NatureTorso(), Streams(3136, 3, 1, 8, True, 0.5), ExpectedValue())
    if nap:
        network = normalize(network, torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8))
    names = d.layers_of_activations(network, list(weight_groups(network)))
    assert [*names.values()] == ["torso.0", "torso.2", "torso.4", "streams.advantage.hidden", "streams.value.hidden"]


def test_every_activation_has_a_name_of_its_own() -> None:
    network = QNetwork(ImpalaTorso(), Streams(ImpalaTorso.features, 3, 1, 8, True, None), ExpectedValue())
    names = d.layers_of_activations(network, list(weight_groups(network)))
    assert len(set(names.values())) == len(names) == 15
