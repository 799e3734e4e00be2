"""Roles of layers: the architecture decides them, and not how large a branch happens to be."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize, scale_invariance, weight_groups
from nap_rl.nap.invariance import scale_ratios
from nap_rl.nap.roles import assign_roles


class Branches(nn.Module):
    """A residual network whose branches are scaled by parameters that start at `scale`."""

    def __init__(self, scale: float, depth: int = 2, width: int = 24) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, width, bias=False), nn.Linear(width, 3)
        self.ups = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.downs = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.acts = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.ReLU()) for _ in range(depth))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width,), scale)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, up, act, down, scale in zip(self.norms, self.ups, self.acts, self.downs, self.scales, strict=True):
            x = x + scale * down(act(up(norm(x))))
        y: Tensor = self.head(self.norm(x))
        return y


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-6, 0.0])
def test_branches_that_start_near_zero_hide_no_layer(scale: float) -> None:
    roles = assign_roles(Branches(scale), torch.randn(8, 6))
    assert roles == {
        "stem": "hidden",
        "head": "output",
        **{f"ups.{n}": "invariant" for n in (0, 1)},
        **{f"downs.{n}": "hidden" for n in (0, 1)},
    }


@pytest.mark.parametrize("gain", [1e-3, 1e-6])
def test_branches_whose_last_weights_start_tiny_hide_no_layer(gain: float) -> None:
    module = Branches(1.0)
    for down in module.downs:
        down.weight.data *= gain  # type: ignore[union-attr, operator]
    module, x = normalize(module, torch.randn(8, 6)), torch.randn(8, 6)
    assert {module.get_submodule(name).nap_role for name in weight_groups(module)} == {"invariant", "output"}
    for down, scale in zip(module.downs, module.scales, strict=True):  # type: ignore[arg-type]
        down.weight.data /= gain
        scale.data.uniform_(0.5, 2)
    changes = scale_invariance(module, x)
    assert changes.pop("head") > 0.5 and max(changes.values()) < 1e-4


def test_ratios_are_far_from_the_threshold_on_both_sides() -> None:
    module, x = Branches(1e-6, depth=6), torch.randn(8, 6)
    ratios = scale_ratios(module, x, weight_groups(module))
    invariant = {name for name in ratios if name.startswith("ups")}
    assert max(ratios[name] for name in invariant) < 1e-4
    assert min(ratio for name, ratio in ratios.items() if name not in invariant) > 0.1


@pytest.mark.parametrize("how", ["detached", "dead", "times zero", "constant norm"])
def test_layer_that_no_gradient_reaches_fails_the_check_and_is_named(how: str) -> None:
    class Unreached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.dead, self.last = (
                nn.Linear(6, 8),
                nn.Linear(6, 8),
                nn.Linear(8, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            h = self.dead(x)
            if how == "detached":
                h = h.detach()
            elif how == "dead":
                h = torch.relu(h - 1e6)
            elif how == "times zero":
                h = 0 * h
            else:
                h = nn.functional.layer_norm(h.unsqueeze(-1), (1,)).squeeze(-1)
            y: Tensor = self.last(torch.relu(nn.functional.layer_norm(self.first(x), (8,))) + h)
            return y

    module, x = Unreached(), torch.randn(16, 6)
    assert assign_roles(module, x)["dead"] == "unreached"
    assert scale_invariance(module, x)["dead"] == float("inf")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no gradient reaches layer 'dead'"):
        Projector(module, optimizer, example_input=x, unnormalized="project")
    Projector(module, optimizer, example_input=x, unnormalized="project", free=["dead"], affine="free")


def test_what_no_gradient_sees_is_found_by_scaling() -> None:
    class Straight(nn.Module):
        """Its gradient is that of an invariant layer; its value is not."""

        def __init__(self) -> None:
            super().__init__()
            self.odd, self.last = nn.Linear(6, 8, bias=False), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.odd(x)
            y: Tensor = self.last(nn.functional.layer_norm(h, (8,), eps=1e-8) + h.norm().floor().detach())
            return y

    assert assign_roles(Straight(), torch.randn(8, 6))["odd"] != "invariant"


def test_integers_in_place_functions_and_several_outputs_are_judged() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            self.count += 1
            x = x.float().div_(255)
            q = self.last(nn.functional.relu(self.first(x), inplace=True))
            return q.argmax(1), q, {"greedy": q.detach().max(1).values}

    module, x = Mixed(), torch.randint(0, 256, (8, 6), dtype=torch.uint8)
    before = x.clone()
    normalize(module, x)
    assert (module.first.nap_role, module.last.nap_role) == ("invariant", "output")
    assert torch.equal(x, before) and module.count == 0


def test_parameters_their_hooks_and_gradients_are_not_touched() -> None:
    module, x = Branches(1e-3), torch.randn(8, 6)
    called: list[Tensor] = []
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.register_hook(called.append)
        parameter.register_post_accumulate_grad_hook(called.append)
    frozen = module.stem.weight.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    objects = dict(module.named_parameters())
    with torch.no_grad():
        assign_roles(module, x)
        scale_invariance(module, x)
    assert not called and not frozen.requires_grad
    for name, parameter in module.named_parameters():
        assert parameter is objects[name] and torch.equal(parameter, before[name])
        assert parameter.grad is not None and bool((parameter.grad == 1).all())


@pytest.mark.slow
def test_four_times_the_depth_takes_at_most_six_times_the_time() -> None:
    def seconds(depth: int) -> float:
        module = Branches(1e-3, depth)
        start = time.process_time()
        normalize(module, torch.randn(8, 6))
        Projector(module, torch.optim.SGD(module.parameters(), lr=0.1))
        return time.process_time() - start

    seconds(2)
    assert min(seconds(32) for _ in range(2)) <= 6 * min(seconds(8) for _ in range(2))
