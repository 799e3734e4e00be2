"""The measures of one update, against their formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nap_rl.nap import LayerMonitor, normalize, normalize_and_project, weight_groups
from nap_rl.nn import NoisyLinear


def vector(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def noisy() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), NoisyLinear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    return module, torch.randn(16, 6)


@pytest.mark.parametrize(("kind", "power"), [(torch.optim.SGD, 2), (torch.optim.Adam, 1), (torch.optim.RMSprop, 1)])
def test_measures_are_their_formulas(kind: Any, power: int) -> None:
    module, x = noisy()
    optimizer = kind([{"params": module[:2].parameters(), "lr": 0.05}, {"params": module[2:].parameters()}], lr=0.02)
    monitor = LayerMonitor(module, optimizer)
    groups = weight_groups(module)
    initial = {name: vector(ts) for name, ts in groups.items()}
    for _ in range(3):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        before = {name: vector(ts) for name, ts in groups.items()}
        monitor.snapshot()
        optimizer.step()
        measures = monitor.measure()
    assert list(measures) == list(groups) == ["0", "2", "4"]
    for name, tensors in groups.items():
        w, w_, w0 = vector(tensors), before[name], initial[name]
        gradients = tuple(torch.zeros_like(t) if t.grad is None else t.grad for t in tensors)
        cosine = (w @ w_ / w.norm() / w_.norm()).clamp(max=1)
        expected = {
            "param_norm": w.norm(),
            "grad_norm": vector(gradients).norm(),
            "effective_lr": (0.05 if name == "0" else 0.02) * (w0.norm() / w_.norm()) ** power,
            "update_ratio": (w - w_).norm() / w_.norm(),
            "rotation": torch.rad2deg(torch.acos(cosine)),
            "relative_drift": w.norm() / w0.norm() - 1,
        }
        assert measures[name].keys() == expected.keys()
        for key, value in expected.items():
            tolerance = {"rel": 1e-4, "abs": 1e-6}
            assert measures[name][key] == pytest.approx(value.item(), **tolerance), (name, key)


@pytest.mark.parametrize("angle", [1e-5, 1e-3, 1.0, 179.0])
def test_small_and_large_rotations_are_both_seen(angle: float) -> None:
    module = nn.Linear(2, 500, bias=False).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    monitor = LayerMonitor(module, optimizer)
    monitor.snapshot()
    w = module.weight.detach()
    side = torch.randn_like(w)
    side -= w * (side * w).sum() / (w * w).sum()
    side *= w.norm() / side.norm()
    radians = math.radians(angle)
    module.weight.data = 1.3 * (math.cos(radians) * w + math.sin(radians) * side)
    assert monitor.measure()[""]["rotation"] == pytest.approx(angle, rel=1e-6)


def test_effective_rate_falls_without_projection_and_stays_with_it() -> None:
    rates = []
    for projected in (False, True):
        module, x = noisy()
        if projected:
            _, optimizer, _ = normalize_and_project(module, lambda p: torch.optim.Adam(p, lr=0.01), x)
        else:
            optimizer = torch.optim.Adam(normalize(module, x).parameters(), lr=0.01)
        monitor = LayerMonitor(module, optimizer)
        for _ in range(40):
            optimizer.zero_grad()
            (module(x) - torch.randn(16, 3)).square().mean().backward()
            monitor.snapshot()
            optimizer.step()
        rates.append(monitor.measure()["0"]["effective_lr"])
    assert rates[0] < 0.0098
    assert rates[1] == pytest.approx(0.01, rel=1e-6)


def test_one_host_sync_for_the_whole_net(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = noisy()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    module(x).mean().backward()
    syncs: list[str] = []

    def counted(name: str) -> None:
        original = getattr(Tensor, name)

        def wrapper(self: Tensor, *args: Any) -> Any:
            syncs.append(name)
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, wrapper)

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        counted(name)
    monitor = LayerMonitor(module, optimizer)
    monitor.snapshot()
    optimizer.step()
    syncs.clear()
    monitor.snapshot()
    assert syncs == []
    monitor.measure()
    assert syncs == ["tolist"]


def test_layers_of_another_optimizer_are_left_out_and_none_is_an_error() -> None:
    module, _ = noisy()
    assert LayerMonitor(module, torch.optim.SGD(module[4].parameters(), lr=0.1)).names == ["4"]
    with pytest.raises(ValueError, match="owns no weight"):
        LayerMonitor(module, torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1))


def test_measuring_without_a_snapshot_is_an_error() -> None:
    module, _ = noisy()
    monitor = LayerMonitor(module, torch.optim.SGD(module.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="snapshot"):
        monitor.measure()


def test_resumed_monitor_drifts_from_the_first_start() -> None:
    module, _ = noisy()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    state = LayerMonitor(module, optimizer).state_dict()
    module[0].weight.data *= 2
    resumed = LayerMonitor(module, optimizer)
    resumed.load_state_dict(state)
    resumed.snapshot()
    measures = resumed.measure()["0"]
    assert measures["relative_drift"] == pytest.approx(1.0)
    assert measures["effective_lr"] == pytest.approx(0.1 / 4)
    with pytest.raises(ValueError, match="'4' is in this monitor alone"):
        resumed.load_state_dict({name: norm for name, norm in state.items() if name != "4"})
