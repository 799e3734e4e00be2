"""Each diagnostic against a case worked out by hand or a slower formula; `Diagnostics` against those functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from nap_rl import diagnostics as d
from nap_rl.nap import LayerMonitor, normalize
from nap_rl.nn.noisy import NoisyLinear


def test_dormant_dead_and_linearised_units() -> None:
    # columns are units: dead; weak (mean 0.1); sometimes on (mean 1.45); always on (mean 2.45). Layer mean 1.
    h = torch.tensor([[0.0, 0.0, 2.9, 2.0], [0.0, 0.2, 0.0, 2.9]])
    assert float(d.dormant_fraction(h, 0.0)) == 0.25
    assert float(d.dormant_fraction(h, 0.099)) == 0.25
    assert float(d.dormant_fraction(h, 0.101)) == 0.5
    assert float(d.dead_fraction(h)) == 0.25
    assert float(d.linearised_fraction(h)) == 0.25


def test_a_feature_map_is_one_unit() -> None:
    h = torch.zeros(2, 3, 4, 4)
    h[1, 1, 2, 2] = 1.0  # alive in one place of one image
    h[:, 2] = 5.0
    assert float(d.dead_fraction(h)) == pytest.approx(1 / 3)
    assert float(d.linearised_fraction(h)) == pytest.approx(1 / 3)


def test_a_silent_layer_is_dormant_and_not_nan() -> None:
    assert float(d.dormant_fraction(torch.zeros(4, 3), 0.025)) == 1.0


def test_three_ranks_differ_and_each_is_its_own_formula() -> None:
    s = torch.tensor([8.0, 1.0, 0.5, 0.5])
    p = [0.8, 0.1, 0.05, 0.05]
    assert float(d.srank(s, 0.15)) == 2.0  # 0.8 < 0.85 <= 0.9
    assert float(d.srank(s, 0.01)) == 4.0
    assert float(d.stable_rank(s)) == pytest.approx((64 + 1 + 0.25 + 0.25) / 64)
    assert float(d.effective_rank(s)) == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)))


def test_equal_singular_values_have_full_rank_and_one_has_rank_one() -> None:
    for rank in (d.srank, d.stable_rank, d.effective_rank):
        assert float(rank(torch.ones(5))) == pytest.approx(5.0)
        assert float(rank(torch.tensor([3.0, 0.0, 0.0]))) == pytest.approx(1.0)


def test_churn_and_feature_norm() -> None:
    assert float(d.churn(torch.zeros(2, 2), torch.tensor([[1.0, -1.0], [0.0, 2.0]]))) == 1.0
    assert float(d.feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))) == 3.0


def test_ntk_of_a_linear_map_is_the_gram_matrix_of_its_inputs() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    gram = d.ntk(nn.Linear(3, 1), x)
    assert torch.allclose(gram, x @ x.T + 1.0, atol=1e-5)  # d/dW = x, d/db = 1
    assert float(d.ntk_rank(gram)) == 4.0
    assert float(d.ntk_rank(d.ntk(nn.Linear(3, 1, bias=False), x))) == 3.0


def test_ntk_condition() -> None:
    assert float(d.ntk_condition(torch.diag(torch.tensor([2.0, 8.0])))) == 4.0
    assert float(d.ntk_condition(torch.diag(torch.tensor([0.0, 8.0])))) == math.inf


class Pixels(nn.Module):
    """Bytes in, two outputs an action: the shape of a value network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), NoisyLinear(12, 5), nn.ReLU(), NoisyLinear(5, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.float() / 255.0).view(-1, 2, 2)
        return out


def pixels(count: int) -> Tensor:
    return torch.randint(256, (count, 1, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_one_pass_gives_what_the_formulas_give() -> None:
    network, x = Pixels(), pixels(6)
    measure = d.Diagnostics(network, x)
    network(x).square().sum().backward()
    with torch.no_grad():
        network.body[0].bias += 2.0
    found = measure.measure()
    with torch.no_grad():
        h1 = network.body[:2](x.float() / 255)
        h2 = network.body[:5](x.float() / 255)
    s = torch.linalg.svdvals(h2)
    expected = {
        "dormant_0.1/body.1": d.dormant_fraction(h1, 0.1),
        "dead/body.4": d.dead_fraction(h2),
        "linearised/body.1": d.linearised_fraction(h1),
        "srank": d.srank(s),
        "stable_rank": d.stable_rank(s),
        "effective_rank": d.effective_rank(s),
        "feature_norm": d.feature_norm(h2),
        "distance/body.0.bias": torch.tensor(2.0 * 3**0.5),
        "distance/body.0.weight": torch.tensor(0.0),
        "weight_norm/body.3.weight_mu": network.body[3].weight_mu.detach().norm(),
        "grad_norm/body.5.bias_mu": network.body[5].bias_mu.grad.norm(),
        "churn": torch.tensor(0.0),
    }
    for name, value in expected.items():
        assert found[f"plasticity/{name}"] == pytest.approx(float(value), rel=1e-5, abs=1e-7), name


def test_the_monitors_measures_and_the_kernel_come_along() -> None:
    network, x = Pixels(), pixels(6)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    measure = d.Diagnostics(network, x, monitor=LayerMonitor(network, optimizer), ntk_inputs=4)
    twin = LayerMonitor(network, optimizer)
    for monitor in (measure.monitor, twin):
        assert monitor is not None
        monitor.snapshot()
    network(x).square().sum().backward()
    optimizer.step()
    found, expected = measure.measure(), twin.measure()
    for layer, row in expected.items():
        for name, value in row.items():
            assert found[f"plasticity/{name}/{layer}"] == value
    assert {"effective_lr", "update_ratio", "rotation"} <= set(row)
    gram = d.ntk(network, x[:4].float())
    assert found["plasticity/ntk_rank"] == float(d.ntk_rank(gram))
    assert found["plasticity/ntk_condition"] == pytest.approx(float(d.ntk_condition(gram)), rel=1e-3)


def test_churn_is_measured_since_the_last_call() -> None:
    network, x = Pixels(), pixels(6)
    measure = d.Diagnostics(network, x)
    assert measure.measure()["plasticity/churn"] == 0.0
    with torch.no_grad():
        network.body[5].bias_mu += 0.5
    assert measure.measure()["plasticity/churn"] == pytest.approx(0.5, rel=1e-5)
    assert measure.measure()["plasticity/churn"] == 0.0


def test_jacobian_estimate_is_unbiased_also_through_normalisations() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    network = normalize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), x)
    exact = vmap(jacrev(network))(x).detach().square().sum((1, 2)).mean()
    measure = d.Diagnostics(network, x)
    estimates = torch.tensor([measure.measure()["plasticity/jacobian_norm"] for _ in range(100)]).square()
    assert float(estimates.mean()) == pytest.approx(float(exact), rel=0.1)


def test_measuring_leaves_no_hook_and_changes_nothing() -> None:
    network, x = Pixels(), pixels(4)
    before = {name: p.clone() for name, p in network.named_parameters()}
    state = torch.get_rng_state()
    d.Diagnostics(network, x).measure()
    assert all(not module._forward_hooks for module in network.modules())
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_without_activations_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="no activation submodule"):
        d.Diagnostics(nn.Linear(2, 2), torch.randn(3, 2)).measure()
