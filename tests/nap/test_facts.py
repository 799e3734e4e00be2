"""Facts that Normalize-and-Project rests on, checked against closed forms in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize
from nap_rl.nap.layers import RMSNorm


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_dead_units_get_a_gradient_through_the_norm(kind: str) -> None:
    """g: gradient at the norm's output y. Where ReLU is dead, g_j = 0, and yet with sigma the divisor

    dL/da_j = -(mean(g) + y_j mean(g y)) / sigma for LayerNorm, and -y_j mean(g y) / sigma for RMSNorm.
    """
    torch.manual_seed(0)
    a = torch.randn(3, 40, requires_grad=True)
    norm = nn.LayerNorm(40, eps=0.0) if kind == "layer" else RMSNorm(40)
    norm.eps = 0.0
    y = norm(a)
    y.retain_grad()
    loss = (torch.relu(y) * torch.randn(3, 40)).sum()
    loss.backward()
    g = y.grad
    assert g is not None and a.grad is not None
    dead = y < 0
    assert (g[dead] == 0).all() and dead.any()
    centred = a - a.mean(1, keepdim=True) if kind == "layer" else a
    sigma = centred.square().mean(1, keepdim=True).sqrt()
    mean_g = g.mean(1, keepdim=True) if kind == "layer" else torch.zeros(3, 1)
    expected = -(mean_g + y * (g * y).mean(1, keepdim=True)) / sigma
    torch.testing.assert_close(a.grad[dead], expected[dead], rtol=1e-12, atol=1e-14)
    assert a.grad[dead].abs().min() > 0


def test_gradient_at_scaled_weights_shrinks_by_the_scale() -> None:
    """f(c W) = f(W) implies grad f(c W) = grad f(W) / c, and that W and its gradient are orthogonal."""
    module, x, y = task()
    weight = module[0].weight
    gradients = []
    for scale in (1.0, 10.0):
        weight.data *= scale
        gradients.append(torch.autograd.grad(F.cross_entropy(module(x), y), weight)[0])
    torch.testing.assert_close(gradients[1], gradients[0] / 10, rtol=1e-10, atol=1e-16)
    cosine = (weight * gradients[1]).sum() / weight.norm() / gradients[1].norm()
    assert abs(cosine.item()) < 1e-13


def task() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    x = torch.randn(24, 5)
    normalize(module, x)
    for each in module.modules():
        if isinstance(each, nn.LayerNorm):
            each.eps = 0.0  # the facts are about exact invariance
    return module, x, torch.randint(0, 4, (24,))


HIDDEN = (0, 2)


def follow_twin(twin: nn.Module, held: nn.Module, x: Tensor, y: Tensor, kind: str, updates: int) -> float:
    """Train a free twin, and a projected net (`held`) on the twin's implicit schedule.

    kind: "sgd", "adam" (learning rates alone), or "adam exact" (gradients rescaled as well).

    Returns the largest distance between the unit vectors of their hidden weights, over all updates.
    """

    def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
        layers = [{"params": module[n].weight} for n in HIDDEN]
        rest = [p for p in module.parameters() if all(p is not module[n].weight for n in HIDDEN)]
        groups = [*layers, {"params": rest}]
        return torch.optim.SGD(groups, lr=0.1) if kind == "sgd" else torch.optim.Adam(groups, lr=1e-2, eps=1.5e-4)

    free_optimizer, optimizer = make_optimizer(twin), make_optimizer(held)
    Projector(held, optimizer, affine="free")
    rho = [held[n].weight.norm().item() for n in HIDDEN]
    rate = optimizer.param_groups[0]["lr"]
    worst = 0.0
    for _ in range(updates):
        for module in (twin, held):
            module.zero_grad()
            F.cross_entropy(module(x), y).backward()
        for index, layer in enumerate(HIDDEN):
            ratio = rho[index] / twin[layer].weight.norm().item()
            optimizer.param_groups[index]["lr"] = rate * ratio ** (2 if kind == "sgd" else 1)
            if kind == "adam exact":
                held[layer].weight.grad *= ratio
        free_optimizer.step()
        optimizer.step()
        for layer in HIDDEN:
            directions = [F.normalize(m[layer].weight.detach().flatten(), dim=0) for m in (twin, held)]
            worst = max(worst, (directions[0] - directions[1]).norm().item())
    return worst


@pytest.mark.parametrize("updates", [1000, pytest.param(3000, marks=pytest.mark.slow)])
def test_sgd_with_the_twins_implicit_schedule_follows_it(updates: int) -> None:
    """lr_l(t) = eta (rho_l / ||theta_l(t)||)^2, theta_l(t) the free twin's weights."""
    module, x, y = task()
    twin = copy.deepcopy(module)
    assert follow_twin(twin, module, x, y, "sgd", updates) < 1e-12
    # The twin's norms did move, so that there was a schedule to follow.
    assert max(twin[n].weight.norm() / module[n].weight.norm() for n in HIDDEN) > 1.2


def test_adam_is_exact_when_gradients_are_rescaled_too() -> None:
    """lr_l(t) = eta rho_l / ||theta_l(t)|| and g <- g rho_l / ||theta_l(t)||; epsilon is Rainbow's."""
    module, x, y = task()
    twin, other = copy.deepcopy(module), copy.deepcopy(module)
    assert follow_twin(twin, module, x, y, "adam exact", 500) < 1e-12
    assert max(twin[n].weight.norm() / module[n].weight.norm() for n in HIDDEN) > 1.1
    # The learning rate alone is an approximation.
    assert follow_twin(task()[0], other, x, y, "adam", 100) > 1e-6


def test_wrong_power_of_the_norm_does_not_follow() -> None:
    module, x, y = task()
    twin = copy.deepcopy(module)
    for n in HIDDEN:
        twin[n].weight.data *= 2  # same function, so the same directions at first
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    held = torch.optim.SGD(module.parameters(), lr=0.1 / 2)  # eta / ||theta||: Adam's rule, wrong for SGD
    Projector(module, held, affine="free")
    for m, o in ((twin, optimizer), (module, held)):
        F.cross_entropy(m(x), y).backward()
        o.step()
    directions = [F.normalize(m[0].weight.detach().flatten(), dim=0) for m in (twin, module)]
    assert (directions[0] - directions[1]).norm() > 1e-4
