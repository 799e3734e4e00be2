"""`scale_invariance` finds the layers that are scale-invariant and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nap_rl.nap import scale_invariance
from nap_rl.nn import NoisyLinear


def test_change_is_the_relative_distance_of_outputs() -> None:
    module = nn.Linear(5, 3, bias=False)
    x = torch.randn(4, 5)
    assert scale_invariance(module, x, factors=(3.0,))[""] == pytest.approx(2.0, rel=1e-6)
    assert scale_invariance(module, x, factors=(0.5, 1.0))[""] == pytest.approx(0.5, rel=1e-6)


def test_plain_relu_net_is_not_invariant_and_a_normed_one_is() -> None:
    plain = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 3))
    x = torch.randn(8, 5)
    assert scale_invariance(plain, x)["0"] > 0.5
    normed = nn.Sequential(nn.Linear(5, 32, bias=False), nn.LayerNorm(32, eps=0), nn.ReLU(), nn.Linear(32, 3))
    assert scale_invariance(normed, x)["0"] < 1e-5


@pytest.mark.parametrize("hiding", ["zero bias", "zero output layer", "zero gate"])
def test_zeros_do_not_hide_what_is_not_invariant(hiding: str) -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.alpha * x

    first = nn.Linear(5, 32, bias=hiding == "zero bias")
    norm = nn.LayerNorm(32, eps=0) if hiding == "zero bias" else nn.Identity()
    gate = Gate() if hiding == "zero gate" else nn.Identity()
    last = nn.Linear(32, 3)
    if first.bias is not None:
        nn.init.zeros_(first.bias)
    if hiding == "zero output layer":
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    module = nn.Sequential(first, norm, nn.ReLU(), gate, last)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    assert scale_invariance(module, torch.randn(8, 5))["0"] > 1e-2
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_noisy_tensors_are_scaled_together_under_noise() -> None:
    module = nn.Sequential(NoisyLinear(5, 32), nn.LayerNorm(32, eps=0), nn.ReLU(), nn.Linear(32, 3))

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, x: Tensor) -> Tensor:
            layer = self.net[0]
            return self.net[1:](layer(x, layer.sample_noise()))

    changes = scale_invariance(Noisy(), torch.randn(8, 5))
    assert set(changes) == {"net.0", "net.3"}  # one entry for mu and sigma, of weight and bias
    assert changes["net.0"] < 1e-5 < changes["net.3"]


def test_several_outputs_count_by_the_worst() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.big, self.little = nn.Linear(5, 3, bias=False), nn.Linear(5, 3, bias=False)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": 1e6 * self.big(x), "b": self.little(x), "greedy": self.big(x).argmax(1)}

    changes = scale_invariance(Two(), torch.randn(8, 5), factors=(2.0,))
    assert changes["little"] == pytest.approx(1.0, rel=1e-5)


def test_weights_come_back_even_when_the_forward_fails() -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.first(x)
            if out.abs().max() > 50:
                raise RuntimeError("too large")
            return out

    module = Fragile()
    weight = module.first.weight.detach().clone()
    with pytest.raises(RuntimeError, match="too large"):
        scale_invariance(module, torch.randn(8, 5), factors=(1e4,))
    assert torch.equal(module.first.weight, weight)


def test_infinite_output_is_an_error_and_no_number() -> None:
    module = nn.Linear(5, 3)
    with pytest.raises(ValueError, match="finite"):
        scale_invariance(module, torch.full((1, 5), float("inf")))
