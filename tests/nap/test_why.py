"""The statements of docs/why.md about growth and rotation, on weights whose gradient is noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize

NUMBERS = 400
"""Entries of the weight tensor, of length 1 at first."""
Q = math.sqrt((1 - 0.9) / (1 + 0.9))
"""Length of one step of Adam under noise, over rate x sqrt(numbers); beta1 is 0.9."""


class Walk(NamedTuple):
    norms: Tensor  # after each update
    rotations: Tensor  # of each update, in radians

    @property
    def late_rotation(self) -> float:
        return self.rotations[-300:].mean().item()


def walk(rate: float, updates: int = 1000, every: int | None = None, decay: float = 0.0) -> Walk:
    """Adam on the gradient of a scale-invariant function that is noise: upright on W, of length ~ 1 / ||W||."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(NUMBERS, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(start / start.norm())
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=decay, eps=1e-30)
    norms, rotations = torch.empty(updates), torch.empty(updates)
    for update in range(updates):
        before = weight.detach().clone()
        noise = torch.randn(NUMBERS, generator=generator, dtype=torch.float64)
        weight.grad = (noise - before * (before @ noise) / (before @ before)) / before.norm()
        optimizer.step()
        now = weight.detach()
        norms[update] = now.norm()
        rotations[update] = torch.acos((F.normalize(now, dim=0) @ F.normalize(before, dim=0)).clamp(max=1.0))
        if every is not None and (update + 1) % every == 0:
            now /= now.norm()
    return Walk(norms, rotations)


def test_an_sgd_step_lengthens_by_pythagoras() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x = torch.randn(32, 6, dtype=torch.float64)
    normalize(net, x)
    for norm in (m for m in net.modules() if isinstance(m, nn.LayerNorm)):
        norm.eps = 0.0
    weight = net.get_parameter("0.weight")
    before = weight.detach().clone()
    net(x).square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert weight.grad is not None and weight.grad.norm() > 1e-4
    expected = before.square().sum() + 0.01 * weight.grad.square().sum()
    torch.testing.assert_close(weight.detach().square().sum(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rate", [1e-3, 3e-3])
def test_noise_lengthens_weights_as_a_random_walk(rate: float) -> None:
    norm = walk(rate).norms[-1].item()
    assert norm == pytest.approx(math.sqrt(1 + rate**2 * NUMBERS * 1000), rel=0.15)


def test_late_rotation_does_not_depend_on_the_learning_rate() -> None:
    late = [walk(rate, updates=1000).late_rotation for rate in (1e-2, 1e-1)]
    assert late[1] == pytest.approx(late[0], rel=0.25)  # the rate is ten times as high
    assert late[0] == pytest.approx(Q / math.sqrt(1000), rel=0.25)


@pytest.mark.parametrize("rate", [1e-3, 3e-3])
def test_projected_rotation_is_set_by_the_rate(rate: float) -> None:
    rotations = walk(rate, every=1).rotations
    expected = Q * rate * math.sqrt(NUMBERS)
    assert rotations[200:500].mean().item() == pytest.approx(expected, rel=0.1)
    assert rotations[-300:].mean().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("every", [10, 100, 500])
def test_growth_between_projections(every: int) -> None:
    longest = walk(3e-3, every=every).norms.max().item()
    assert longest == pytest.approx(math.sqrt(1 + every * 3e-3**2 * NUMBERS), rel=0.1)


def test_the_equivalent_decay_gives_naps_norm_and_rotation() -> None:
    rate = 3e-3
    decayed, projected = walk(rate, decay=rate * NUMBERS / 2), walk(rate, every=1)
    assert decayed.norms[-500:].mean().item() == pytest.approx(1.0, rel=0.1)
    assert decayed.late_rotation == pytest.approx(projected.late_rotation, rel=0.1)


@pytest.mark.parametrize("ratio", [1e-6, 1.0, 1e6])
def test_adams_epsilon_turns_the_exponent_from_one_to_two(ratio: float) -> None:
    """First step of Adam at weights c W, whose gradient is g / c; `ratio` is epsilon / |g|."""

    def rotation(scale: float) -> float:
        weight = nn.Parameter(torch.tensor([scale, 0.0], dtype=torch.float64))
        optimizer = torch.optim.Adam([weight], lr=1e-5, eps=ratio)
        weight.grad = torch.tensor([0.0, 1.0 / scale], dtype=torch.float64)
        optimizer.step()
        return math.atan2(weight[1].item(), weight[0].item())

    exponent = -math.log(abs(rotation(1.001) / rotation(1.0))) / math.log(1.001)
    assert exponent == pytest.approx(1 + ratio / (1 + ratio), abs=1e-3)


def test_layer_norm_without_offset_leaves_no_row_dead() -> None:
    rows = torch.randn(1000, 16) * torch.logspace(-3, 3, 1000)[:, None] + torch.randn(1000, 1)
    assert bool((F.layer_norm(rows, (16,), eps=1e-8).relu().amax(dim=1) > 0).all())


@pytest.mark.parametrize("units", [2, 3, 64])
def test_no_normalised_value_exceeds_its_bound(units: int) -> None:
    single = torch.zeros(units, dtype=torch.float64)
    single[0] = 1.0  # one unit differs from all others: the extreme case
    rows = torch.cat([single[None], torch.randn(5000, units, dtype=torch.float64)])
    values = F.layer_norm(rows, (units,), eps=0.0)
    assert values[0, 0].item() == pytest.approx(math.sqrt(units - 1))
    assert values.max() <= math.sqrt(units - 1) * (1 + 1e-12)


def test_projected_gain_and_offset_can_still_kill_every_unit() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(64, 6)
    normalize(net, x)
    norm = next(m for m in net.modules() if isinstance(m, nn.LayerNorm))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    projector = Projector(net, optimizer, affine="project")
    with torch.no_grad():
        norm.weight.fill_(0.1)
        norm.bias.fill_(-0.5)  # below -0.1 sqrt(15)
        projector.project()
    assert projector.max_relative_drift() < 1e-6  # gain and offset have the length that NaP gives them
    net(x).square().mean().backward()
    assert all(not p.grad.any() for p in (norm.weight, norm.bias, net.get_parameter("0.weight")) if p.grad is not None)
