"""Clipping, orthogonal weights and averages against matrices worked out by hand, without NaP and with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from nap_rl.nap import Projector, normalize
from nap_rl.nn import NoisyLinear
from nap_rl.plasticity import make_method
from nap_rl.plasticity.fire import Fire, polar
from nap_rl.plasticity.hare_tortoise import HareTortoise
from nap_rl.plasticity.parseval import Parseval
from nap_rl.plasticity.weight_clipping import WeightClipping

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(3))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def sgd(network: nn.Module) -> SGD:
    return SGD(network.parameters(), lr=0.1)


# Weight clipping


def test_entries_beyond_kappa_initial_bounds_are_clipped_biases_too() -> None:
    network = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[0.9, 1.1, -3.0, 0.2], [-1.0, 1.0, 0.0, 5.0]]))
        network[0].bias.copy_(torch.tensor([2.0, -0.5]))
        network[1].weight.fill_(7.0)
    method = WeightClipping(network, sgd(network), kappa=2.0)  # 2 / sqrt(4) = 1
    assert method.after_update(1, lambda: X)
    assert network[0].weight.tolist() == [pytest.approx([0.9, 1.0, -1.0, 0.2]), [-1.0, 1.0, 0.0, 1.0]]
    assert network[0].bias.tolist() == [1.0, -0.5]
    assert network[1].weight.tolist() == [7.0, 7.0]  # scale and offset are no weights


def test_the_fan_in_of_a_convolution_is_channels_times_positions_and_noise_scales_are_clipped() -> None:
    convolution, noisy = nn.Conv2d(4, 3, 2), NoisyLinear(4, 3)
    network = nn.ModuleList([convolution, noisy])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(10.0)
    WeightClipping(network, sgd(network), kappa=1.0).after_update(1, lambda: X)
    assert {float(value) for p in convolution.parameters() for value in p.detach().flatten()} == {0.25}
    assert {float(value) for p in noisy.parameters() for value in p.detach().flatten()} == {0.5}


def test_clipped_weights_go_back_to_their_norm_under_nap_in_another_direction() -> None:
    network = normalize(mlp(), X)
    projector = Projector(network, sgd(network))
    first = next(m for m in network.modules() if isinstance(m, nn.Linear))
    before = first.weight.detach().clone()
    bound = 0.5 / 4**0.5
    WeightClipping(network, projector.optimizer, kappa=0.5).after_update(1, lambda: X)
    projector.project()
    expected = before.clamp(-bound, bound)
    assert torch.allclose(first.weight, expected * before.norm() / expected.norm(), atol=1e-6)


# FIRE


def rotation(angle: float) -> torch.Tensor:
    a = torch.tensor(angle, dtype=torch.float64)
    return torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])])


def test_the_nearest_orthogonal_matrix_keeps_both_rotations_and_forgets_the_singular_values() -> None:
    u, v = rotation(0.3), rotation(-1.1)
    w = u @ torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)) @ v
    assert torch.allclose(polar(w[None], 30)[0], u @ v, atol=1e-10)
    assert torch.allclose(polar(w[None], 10)[0], u @ v, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_of_a_matrix_that_is_not_square_the_shorter_side_becomes_orthonormal(shape: tuple[int, int]) -> None:
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = polar(w[None], 40)[0]
    gram = q @ q.T if shape[0] < shape[1] else q.T @ q
    assert torch.allclose(gram, torch.eye(3, dtype=torch.float64), atol=1e-8)
    u, _, vt = torch.linalg.svd(w, full_matrices=False)
    assert torch.allclose(q, u @ vt, atol=1e-8)


def test_at_a_switch_and_at_no_update_a_layer_becomes_orthogonal_times_the_root_of_out_over_in() -> None:
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        network[0].weight[:] = 0.0
        network[0].weight[0, 0], network[0].weight[1, 1] = 4.0, -2.0
    method, bias = Fire(network, sgd(network)), network[0].bias.detach().clone()
    assert not method.after_update(1, lambda: X)
    assert method.at_switch()
    expected = torch.zeros(8, 2)
    expected[0, 0], expected[1, 1] = 2.0, -2.0  # sqrt(8 / 2)
    assert torch.allclose(network[0].weight, expected, atol=1e-4)
    assert torch.equal(network[0].bias, bias)


def test_a_convolution_has_an_orthogonal_matrix_for_each_position() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 2))
    old = network[0].weight.detach().double()
    Fire(network, sgd(network), iterations=40).at_switch()
    for i in range(2):
        for j in range(2):
            u, _, vt = torch.linalg.svd(old[:, :, i, j])
            assert torch.allclose(network[0].weight[:, :, i, j].double(), u @ vt / 4, atol=1e-4)


def test_orthogonal_weights_keep_the_initial_norm_under_nap() -> None:
    network = normalize(mlp(), X)
    projector = Projector(network, sgd(network))
    hidden = [m for m in network.modules() if isinstance(m, nn.Linear)][1]  # [5, 6]
    norm = hidden.weight.norm()
    assert Fire(network, projector.optimizer, iterations=40).at_switch()
    projector.project()
    gram = hidden.weight @ hidden.weight.T
    assert torch.allclose(gram, norm**2 / 5 * torch.eye(5), atol=1e-4)


# Parseval


def test_the_penalty_is_the_distance_of_the_rows_products_from_scale_times_one() -> None:
    network = mlp()
    with torch.no_grad():
        network[0].weight.zero_()
        network[2].weight.zero_()
        network[0].weight[0, 0], network[0].weight[1, 0] = 2.0, 1.0
    optimizer = sgd(network)
    method = Parseval(network, optimizer, example_input=X, coefficient=0.1, scale=3.0)
    # Layer 0: products 4, 2, 2, 1 against 3 on the diagonal, and four rows of 0. Layer 2: five rows of 0.
    expected = 0.1 * ((4 - 3) ** 2 + 2 * 2**2 + (1 - 3) ** 2 + 4 * 9 + 5 * 9)
    assert float(method.penalty()) == pytest.approx(expected)
    with torch.no_grad():
        network[4].weight.fill_(100.0)  # gives the output
    assert float(method.penalty()) == pytest.approx(expected)


def test_its_gradient_is_4_times_the_deviation_times_the_weights_and_its_part_with_scale_lies_along_them() -> None:
    gradients = []
    for scale in (1.0, 2.5):
        network = mlp()
        method = Parseval(network, sgd(network), example_input=X, coefficient=0.5, scale=scale)
        method.penalty().backward()
        w = network[2].weight.detach()
        assert torch.allclose(network[2].weight.grad, 0.5 * 4 * (w @ w.T - scale * torch.eye(5)) @ w, atol=1e-5)
        gradients.append(network[2].weight.grad)
    assert torch.allclose(gradients[0] - gradients[1], 0.5 * 4 * 1.5 * w, atol=1e-5)  # so a projection undoes it


def test_with_nap_rows_become_orthogonal_whatever_the_scale() -> None:
    cosines = []
    for scale in (1.0, 9.0):
        network = normalize(mlp(), X, affine=False)
        optimizer = SGD(network.parameters(), lr=0.05)
        Projector(network, optimizer, affine="free")
        method = Parseval(network, optimizer, example_input=X, coefficient=0.2, scale=scale)
        for _ in range(400):
            optimizer.zero_grad()
            method.penalty().backward()
            optimizer.step()
        hidden = [m for m in network.modules() if isinstance(m, nn.Linear)][1]
        rows = nn.functional.normalize(hidden.weight.detach())
        cosines.append(float((rows @ rows.T - torch.eye(5)).abs().max()))
    assert max(cosines) < 0.02


# Hare & Tortoise


def test_the_network_goes_back_to_its_average_every_third_update() -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    weight = network[0].weight
    with torch.no_grad():
        weight.fill_(8.0)
    method = HareTortoise(network, sgd(network), decay=0.5, every=3)
    values = []
    for update, value in enumerate([0.0, 16.0, 4.0, 0.0], start=1):
        with torch.no_grad():
            weight.fill_(value)
        changed = method.after_update(update, lambda: X)
        values.append((changed, float(weight)))
    # The average: 8, 4, 10, 7, 3.5.
    assert values == [(False, 0.0), (False, 16.0), (True, 7.0), (False, 0.0)]
    assert float(method.tortoise["0.weight"]) == 3.5


def test_a_tortoise_is_resumed_and_keeps_running_statistics() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    method = HareTortoise(network, sgd(network), decay=0.75, every=2)
    with torch.no_grad():
        network[1].running_mean.fill_(4.0)
    method.after_update(1, lambda: X)
    resumed = HareTortoise(network, sgd(network), decay=0.75, every=2)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    assert resumed.after_update(2, lambda: X)
    assert network[1].running_mean.tolist() == pytest.approx([4 * (1 - 0.75**2)] * 3)


def test_under_nap_the_hare_goes_back_to_the_sphere_and_the_tortoise_stays_inside() -> None:
    network = normalize(mlp(), X)
    optimizer = Adam(network.parameters(), lr=0.1)
    projector = Projector(network, optimizer)
    method = HareTortoise(network, optimizer, decay=0.5, every=4)
    for update in range(1, 5):
        optimizer.zero_grad()
        network(X).square().mean().backward()
        optimizer.step()
        if method.after_update(update, lambda: X):
            projector.project()
    assert float(projector.max_relative_drift()) < 1e-5
    name, first = next((n, p) for n, p in network.named_parameters() if p.ndim == 2)
    tortoise = method.tortoise[name]
    assert float(tortoise.norm()) < 0.999 * float(first.norm())
    assert float(torch.cosine_similarity(tortoise.flatten(), first.flatten(), dim=0)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("weight_clipping", {"kappa": 0.0}, "kappa must be a number greater than 0; got 0.0"),
        ("fire", {"iterations": 0}, "iterations must be a whole number of 1 or more; got 0"),
        ("hare_tortoise", {"decay": 1.5}, "decay must lie between 0 and 1; got 1.5"),
        ("parseval", {"scale": -1.0}, "scale must be a number greater than 0; got -1.0"),
    ],
)
def test_options_out_of_range_are_one_sentence(name: str, options: dict[str, float], sentence: str) -> None:
    network = mlp()
    with pytest.raises(ValueError, match=sentence):
        make_method(name, network, sgd(network), example_input=X, options=options)
