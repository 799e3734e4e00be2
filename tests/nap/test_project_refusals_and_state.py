"""What the projector refuses, and what it saves and restores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize, normalize_and_project
from nap_rl.nn import NoisyLinear

Train = Callable[..., None]
Small = Callable[[], tuple[nn.Sequential, Tensor]]
Push = Callable[..., None]


# What it refuses.


def test_hidden_layer_without_norm_raises_and_names_it(push: Push) -> None:
    module = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x = torch.randn(8, 6)
    with pytest.raises(ValueError, match="hidden layer '0' is not scale-invariant"):
        Projector(module, optimizer, example_input=x)
    with pytest.raises(ValueError, match="nothing says which layers"):
        Projector(module, optimizer)
    projector = Projector(module, optimizer, example_input=x, unnormalized="project")
    assert set(projector.groups) == {"0", "2"}
    push(optimizer)
    assert projector.max_relative_drift() < 1e-6


def test_layer_with_a_norm_but_a_kept_bias_raises() -> None:
    module = nn.Sequential(nn.Linear(6, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 3))
    with pytest.raises(ValueError, match="hidden layer '0' .* or it kept its bias"):
        Projector(module, torch.optim.SGD(module.parameters(), lr=0.1), example_input=torch.randn(8, 6))


def test_norm_that_only_a_residual_sum_sees_does_not_count() -> None:
    """conv -> + -> norm: scaling one summand is not undone, so the layer must not pass for normalised."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 24, bias=False), nn.Linear(6, 24, bias=False)
            self.norm, self.last = nn.LayerNorm(24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.norm(self.a(x) + self.b(x))))

    module = Sum()
    with pytest.raises(ValueError, match="hidden layer 'a'"):
        Projector(module, torch.optim.SGD(module.parameters(), lr=0.1), example_input=torch.randn(8, 6))


def test_layers_added_later_raise_and_name_them(small: Small, push: Push) -> None:
    module, x = small()
    module.append(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="nothing is known of layer '5'"):
        Projector(module, torch.optim.SGD(module.parameters(), lr=0.1))
    module, x = small()
    optimizer = torch.optim.SGD(module[2:].parameters(), lr=0.1)
    projector = Projector(module, optimizer)
    assert "0" not in projector.groups
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})  # of no layer: no matter
    push(optimizer)
    optimizer.add_param_group({"params": [module[0].weight]})
    with pytest.raises(ValueError, match="layer '0' joined the optimizer after"):
        push(optimizer)


def test_layer_that_the_example_never_uses_raises_unless_freed() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.spare, self.last = nn.Linear(6, 24), nn.Linear(6, 24), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    module = Spare()
    normalize(module, torch.randn(8, 6))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="nothing is known of layer 'spare'"):
        Projector(module, optimizer)
    assert set(Projector(module, optimizer, free=["spare"], affine="free").groups) == {"first"}


def test_partly_owned_groups_raise() -> None:
    module = nn.Sequential(NoisyLinear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    normalize(module, torch.randn(8, 6))
    with pytest.raises(ValueError, match="owns 1 of the 2 tensors of '0'"):
        Projector(module, torch.optim.SGD([module[0].weight_mu], lr=0.1))


@pytest.mark.parametrize("scope", ["tensor", "unit"])
def test_zero_weights_raise_since_projection_would_pin_them(small: Small, scope: str) -> None:
    module, _ = small()
    module[2].weight.data[1 if scope == "unit" else slice(None)] = 0
    with pytest.raises(ValueError, match="layer '2' starts at norm 0"):
        Projector(module, torch.optim.SGD(module.parameters(), lr=0.1), scope=scope)  # type: ignore[arg-type]


def test_optimizer_that_owns_nothing_raises(small: Small) -> None:
    module, _ = small()
    with pytest.raises(ValueError, match="owns nothing of this module"):
        Projector(module, torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 0}, "every=0 must be"),
        ({"affine": "omit"}, "affine='omit' is not one of regularize, project, free"),
        ({"output": "yes"}, "output='yes'"),
        ({"scope": "row"}, "scope='row'"),
        ({"free": ["hed"]}, "free names 'hed'"),
    ],
)
def test_bad_options_are_refused(small: Small, options: dict[str, Any], sentence: str) -> None:
    module, _ = small()
    with pytest.raises(ValueError, match=sentence):
        Projector(module, torch.optim.SGD(module.parameters(), lr=0.1), **options)


# State.


@pytest.mark.parametrize("scope", ["tensor", "unit"])
def test_state_brings_back_norms_and_the_count_of_updates(small: Small, push: Push, scope: Any) -> None:
    module, _ = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    projector = Projector(module, optimizer, every=4, scope=scope)
    for _ in range(5):
        push(optimizer)
    state = projector.state_dict()
    assert set(state["norms"]) == {"0", "2"}
    resumed = copy.deepcopy(module)  # two updates away from its initial norms
    again = torch.optim.SGD(resumed.parameters(), lr=0.1)
    restored = Projector(resumed, again, every=4, scope=scope)
    assert not torch.equal(restored.groups["0"], projector.groups["0"])
    restored.load_state_dict(state)
    for _ in range(3):
        torch.manual_seed(7)
        push(optimizer)
        torch.manual_seed(7)
        push(again)
    assert restored.updates == 8 and restored.max_relative_drift() < 1e-6
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), resumed.parameters(), strict=True))


def test_state_of_another_net_is_refused_by_name_and_shape(small: Small) -> None:
    module, _ = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    projector = Projector(module, optimizer)
    state = projector.state_dict()
    with pytest.raises(ValueError, match="'2' is in this Projector alone"):
        projector.load_state_dict({"updates": 1, "norms": {"0": state["norms"]["0"]}})
    with pytest.raises(ValueError, match="'9' is in the state alone"):
        projector.load_state_dict({"updates": 1, "norms": {**state["norms"], "9": torch.ones(())}})
    with pytest.raises(ValueError, match=r"layer '0' has shape \[24\] in the state, but \[\] here"):
        projector.load_state_dict({"updates": 1, "norms": {**state["norms"], "0": torch.ones(24)}})
    assert projector.updates == 0


def test_omit_projects_weights_alone(train: Train) -> None:
    module = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    x = torch.randn(8, 6)
    _, optimizer, projector = normalize_and_project(module, torch.optim.Adam, x, affine="omit")
    assert set(projector.groups) == {"0"}
    assert {name for name, _ in module.named_parameters()} == {"0.weight", "2.weight", "2.bias"}
    train(module, optimizer, x, 3)
    assert projector.max_relative_drift() < 1e-6
