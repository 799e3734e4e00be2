"""What cannot be normalised is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from nap_rl.nap import Projector, normalize, weight_groups

Build = Callable[[str], tuple[nn.Module, Tensor]]


@pytest.mark.parametrize(
    ("closed", "example"),
    [(nn.LSTM(6, 8), torch.randn(3, 2, 6)), (nn.TransformerEncoderLayer(8, 2), torch.randn(3, 2, 8))],
)
def test_modules_with_nonlinearities_inside_one_call_are_named(closed: nn.Module, example: Tensor) -> None:
    module = nn.Sequential(nn.Identity(), closed)
    with pytest.raises(ValueError, match="module '1(.self_attn)?' "):
        normalize(module, example)


def test_activation_that_torch_fx_cannot_reach_is_named() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x) + self.b(x)
            return self.last(torch.relu(h if x.sum() > 0 else 2 * h))

    with pytest.raises(ValueError, match=r"module 'core' \(Branching\) calls relu .* torch.fx cannot"):
        module = nn.Sequential()
        module.add_module("core", Branching())
        normalize(module, torch.randn(8, 6))


def test_activation_module_used_at_two_widths_is_named_where_fx_cannot_help() -> None:
    class Wrapped(nn.Module):
        def __init__(self, relu: nn.Module) -> None:
            super().__init__()
            self.relu = relu

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(x) if bool((x == x).all()) else x

    module = nn.Sequential(nn.Linear(6, 24), Wrapped(nn.ReLU()), nn.Linear(24, 12))
    module.extend([module[1], nn.Linear(12, 3)])
    with pytest.raises(ValueError, match=r"module '1.relu': its relu is called on shapes \(8, 24\) and \(8, 12\)"):
        normalize(module, torch.randn(8, 6))


def test_layer_whose_weight_is_used_elsewhere_too_is_named() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x))) + self.first.weight.square().sum()

    with pytest.raises(ValueError, match="layer 'first' .* its weight is used elsewhere"):
        normalize(Penalised(), torch.randn(8, 6))


@pytest.mark.parametrize("computed", [False, True])
def test_weight_that_is_no_layers_is_named_and_not_overlooked(computed: bool) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.gain = nn.Parameter(torch.randn(6, 24)), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.gain * self.matrix if computed else self.matrix)

    class Declared(Own):
        joint_scale = ("matrix",)

    x = torch.randn(8, 6)
    with pytest.raises(ValueError, match="multiplies by parameter '0.(gain|matrix)'"):
        normalize(nn.Sequential(Own(), nn.ReLU(), nn.Linear(24, 3)), x)
    normalize(nn.Sequential(Own(), nn.ReLU(), nn.Linear(24, 3)), x, free=["0"])
    module = nn.Sequential(Declared(), nn.ReLU(), nn.Linear(24, 3))
    normalize(module, x)
    assert module[0].nap_role == "invariant"


def test_parametrised_and_lazy_layers_are_named() -> None:
    module = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    nn.utils.parametrizations.weight_norm(module[0])
    with pytest.raises(ValueError, match="layer '0' .* computes its weight"):
        normalize(module, torch.randn(8, 6))
    with pytest.raises(ValueError, match="layer '0' is lazy"):
        weight_groups(nn.Sequential(nn.LazyLinear(4)))


def test_output_that_is_no_tensor_is_an_error_and_not_a_silent_answer() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> torch.distributions.Categorical:
            return torch.distributions.Categorical(logits=self.last(torch.relu(self.first(x))))

    with pytest.raises(ValueError, match="finite floating-point tensors"):
        normalize(Odd(), torch.randn(8, 6))


def test_misspelt_options_and_paths_are_refused(build: Build) -> None:
    module, x = build("mlp")
    with pytest.raises(ValueError, match="norm='lyer' is not one of layer, rms, group, batch"):
        normalize(module, x, norm="lyer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="free names 'hed'"):
        normalize(module, x, free=["hed"])


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("module", "example", "kind", "sentence"),
    [
        (plain(), np.zeros((5, 4), np.float32), TypeError, r"the example holds numpy.ndarray and no tensor"),
        (plain(), [[1.0, 2.0, 3.0, 4.0]], TypeError, r"the example holds builtins.float and no tensor"),
        (plain(), None, TypeError, r"the example holds builtins.NoneType and no tensor"),
        (
            plain(),
            torch.zeros(5, 4, dtype=torch.int64),
            ValueError,
            r"does not run on the example, int64 \[5, 4\]: .*dtype",
        ),
        (plain(), torch.randn(5, 3), ValueError, r"does not run on the example, float32 \[5, 3\]: .*shapes"),
        (plain(), (torch.randn(5, 4),) * 2, ValueError, r"float32 \[5, 4\], float32 \[5, 4\]: .*positional arguments"),
        ([nn.Linear(4, 2)], torch.randn(5, 4), TypeError, r"takes a torch.nn.Module, but this is a list"),
        (nn.Linear, torch.randn(5, 4), TypeError, r"takes a torch.nn.Module, but this is a type"),
    ],
    ids=["numpy", "list", "none", "integers", "shape", "arguments", "no module", "class"],
)
def test_what_is_no_module_or_no_example_for_it_is_named(
    module: Any, example: Any, kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        normalize(module, example)


def test_a_bilinear_layer_is_named() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.last = nn.Bilinear(4, 4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.relu(self.both(x, x)))
            return out

    with pytest.raises(ValueError, match="multiplies by parameter 'both.bias' of Bilinear"):
        normalize(Product(), torch.randn(5, 4))


def test_an_output_without_tensors_is_said_where_no_gradient_comes_from_it() -> None:
    class Actor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.torso, self.mean, self.value = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> tuple[Normal, Tensor]:
            hidden = torch.relu(self.torso(x))
            return Normal(self.mean(hidden), 1.0), self.value(hidden)

    module = normalize(Actor(), torch.randn(5, 4))
    with pytest.raises(ValueError, match="layer 'mean' .*an output that holds no tensor"):
        Projector(module, torch.optim.Adam(module.parameters()))
