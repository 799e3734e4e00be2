"""Noisy layers against explicit weight matrices."""

from __future__ import annotations

import math

import pytest
import torch

from nap_rl.nn import NoisyLinear
from nap_rl.nn.noisy import scale_noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(bias: bool = True, sigma0: float = 0.5) -> NoisyLinear:
    torch.manual_seed(0)
    made = NoisyLinear(7, 5, sigma0=sigma0, bias=bias)
    with torch.no_grad():  # sigmas that differ from weight to weight, as after training
        made.weight_sigma.uniform_(0.1, 1.0)
        if made.bias_sigma is not None:
            made.bias_sigma.uniform_(0.1, 1.0)
    return made


def test_noise_is_an_argument_train_and_eval_change_nothing() -> None:
    noisy, x = layer(), torch.randn(3, 7)
    noise = noisy.sample_noise(generator())
    assert torch.equal(noisy.train()(x, noise), noisy.eval()(x, noise))
    assert torch.equal(noisy.train()(x), noisy.eval()(x))
    assert not torch.allclose(noisy.train()(x, noise), noisy.train()(x))


def test_noise_is_factorised_the_weights_noise_has_rank_one() -> None:
    noisy = layer(bias=False)
    noise = noisy.sample_noise(generator())
    weight = noisy(torch.eye(7), noise).T  # column j is the layer's answer to unit vector j
    eps = ((weight - noisy.weight_mu) / noisy.weight_sigma).double()
    assert torch.linalg.matrix_rank(eps, rtol=1e-5) == 1
    assert eps.std() > 0.1
    assert torch.allclose(eps.float(), torch.outer(noise[1], noise[0]), atol=1e-5)


def test_one_draw_for_the_batch_is_one_weight_matrix_for_all_its_rows() -> None:
    noisy, x = layer(), torch.randn(6, 7)
    eps_in, eps_out = noisy.sample_noise(generator())
    assert noisy.bias_mu is not None and noisy.bias_sigma is not None
    weight = noisy.weight_mu + noisy.weight_sigma * torch.outer(eps_out, eps_in)
    expected = x @ weight.T + noisy.bias_mu + noisy.bias_sigma * eps_out
    assert torch.allclose(noisy(x, (eps_in, eps_out)), expected, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_noise_for_each_row_is_a_weight_matrix_for_each_row(bias: bool) -> None:
    noisy, x = layer(bias), torch.randn(6, 7)
    eps_in, eps_out = noisy.sample_noise(generator(), rows=6)
    assert eps_in.shape == (6, 7) and eps_out.shape == (6, 5)
    rows = []
    for b in range(6):
        weight = noisy.weight_mu + noisy.weight_sigma * torch.outer(eps_out[b], eps_in[b])
        y = weight @ x[b]
        if noisy.bias_mu is not None and noisy.bias_sigma is not None:
            y = y + noisy.bias_mu + noisy.bias_sigma * eps_out[b]
        rows.append(y)
    assert torch.allclose(noisy(x, (eps_in, eps_out)), torch.stack(rows), atol=1e-5)


def test_the_draws_of_different_rows_are_independent() -> None:
    noisy = NoisyLinear(40, 60)
    eps = torch.cat(noisy.sample_noise(generator(), rows=50), dim=1)
    correlations = torch.corrcoef(eps) - torch.eye(50)
    assert correlations.abs().max() < 0.5  # of 100 numbers each: 5 standard deviations
    assert torch.linalg.matrix_rank(eps) == 50


def test_f_is_the_signed_square_root_and_its_moments_are_those_of_the_normal_distribution() -> None:
    assert scale_noise(torch.tensor([-4.0, 0.0, 2.25])).tolist() == [-2.0, 0.0, 1.5]
    eps_in, eps_out = NoisyLinear(1_000, 20).sample_noise(generator(), 100)  # 100,000 and 2,000 numbers
    assert float(eps_in.mean()) == pytest.approx(0.0, abs=0.015)
    assert float(eps_in.square().mean()) == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)  # E|x|
    assert float(eps_in.pow(4).mean()) == pytest.approx(1.0, abs=0.03)  # E x^2
    assert float(eps_out.square().mean()) == pytest.approx(math.sqrt(2 / math.pi), abs=0.06)


def test_zero_noise_and_no_noise_are_the_mean_weights() -> None:
    noisy, x = layer(), torch.randn(3, 7)
    assert noisy.bias_mu is not None
    mean = x @ noisy.weight_mu.T + noisy.bias_mu
    assert torch.allclose(noisy(x), mean, atol=1e-6)
    assert torch.allclose(noisy(x, (torch.zeros(7), torch.zeros(5))), mean, atol=1e-6)
    assert torch.allclose(noisy(x, (torch.zeros(3, 7), torch.zeros(3, 5))), mean, atol=1e-6)


@pytest.mark.parametrize("rows", [None, 3])
def test_without_its_biases_the_layer_is_linear_in_its_input(rows: int | None) -> None:
    noisy, x = layer(), torch.randn(3, 7)
    noise = noisy.sample_noise(generator(), rows)
    with_bias = noisy(x, noise)
    noisy.remove_bias()
    assert [name for name, _ in noisy.named_parameters()] == ["weight_mu", "weight_sigma"]
    assert torch.allclose(noisy(2 * x, noise), 2 * noisy(x, noise), atol=1e-5)
    assert not torch.allclose(noisy(x, noise), with_bias)
    assert torch.allclose(noisy(x), x @ noisy.weight_mu.T, atol=1e-6)


@pytest.mark.parametrize("rows", [None, 3])
def test_one_common_factor_on_all_of_joint_scale_scales_the_output(rows: int | None) -> None:
    noisy, x = layer(), torch.randn(3, 7)
    noise = noisy.sample_noise(generator(), rows)
    before = noisy(x, noise)
    with torch.no_grad():
        for name in NoisyLinear.joint_scale:
            getattr(noisy, name).mul_(3.0)
    assert torch.allclose(noisy(x, noise), 3.0 * before, atol=1e-5)
    assert set(NoisyLinear.joint_scale) == {name for name, _ in noisy.named_parameters()}


def test_initial_values_are_the_factorised_ones_of_section_3_2() -> None:
    noisy = NoisyLinear(100, 300, sigma0=0.5)
    assert noisy.bias_mu is not None and noisy.bias_sigma is not None
    for mu in (noisy.weight_mu, noisy.bias_mu):
        assert float(mu.detach().abs().max()) <= 0.1
        assert float(mu.detach().std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.15)
    for sigma in (noisy.weight_sigma, noisy.bias_sigma):
        assert torch.allclose(sigma, torch.tensor(0.05))


def test_the_draw_is_a_function_of_the_generator() -> None:
    noisy = NoisyLinear(4, 3)
    first, again, other = (torch.cat(noisy.sample_noise(generator(seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("rows", [None, 3])
def test_both_mean_and_sigma_get_their_gradients(rows: int | None) -> None:
    noisy, x = layer(), torch.randn(3, 7)
    eps_in, eps_out = noise = noisy.sample_noise(generator(), rows)
    noisy(x, noise).sum().backward()
    assert noisy.weight_mu.grad is not None and noisy.weight_sigma.grad is not None
    ones = torch.ones(3, 5)
    assert torch.allclose(noisy.weight_mu.grad, ones.T @ x, atol=1e-5)
    expected = (ones * eps_out).T @ (x * eps_in)
    assert torch.allclose(noisy.weight_sigma.grad, expected, atol=1e-5)
