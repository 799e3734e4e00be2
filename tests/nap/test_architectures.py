"""Scale invariance and constant norms on every architecture that NaP must work on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize, normalize_and_project, scale_invariance, weight_groups

Build = Callable[[str], tuple[nn.Module, Tensor]]
Train = Callable[..., None]

HIDDEN_OUTPUTS = {
    "mlp": {"4"},
    "nature": {"1"},
    "impala": {"1"},
    "resnet": {"fc"},
    "transformer": {"head"},
    "dueling": {"streams.advantage.output", "streams.value.output"},
}

SLOW_WITH_IMPALA = [pytest.param(n, marks=pytest.mark.slow) if n == "impala" else n for n in HIDDEN_OUTPUTS]


def exact_norms(module: nn.Module) -> dict[str, float]:
    """The oracle: every group as one float64 vector."""
    groups = weight_groups(module).items()
    return {name: torch.cat([t.detach().double().flatten() for t in ts]).norm().item() for name, ts in groups}


@pytest.mark.parametrize("name", HIDDEN_OUTPUTS)
def test_every_projected_tensor_is_scale_invariant_and_outputs_are_not_projected(build: Build, name: str) -> None:
    module, x = build(name)
    module, _, projector = normalize_and_project(module, torch.optim.Adam, x)
    changes = scale_invariance(module, x, factors=(0.1, 10.0))
    projected = set(projector.groups) & set(changes)
    assert set(changes) - projected == HIDDEN_OUTPUTS[name]
    assert max(changes[layer] for layer in projected) < 1e-4
    assert min(changes[layer] for layer in HIDDEN_OUTPUTS[name]) > 0.5


NORMS = ["rms", "group", "batch"]
QUICK = ("mlp", "nature", "transformer")  # a layer of each kind; LayerNorm has every architecture


@pytest.mark.parametrize(
    ("name", "norm", "axes", "existing"),
    [
        *product(HIDDEN_OUTPUTS, ["layer"], ["all"], ["replace"]),
        *product(QUICK, NORMS, ["all"], ["replace"]),
        *(
            pytest.param(name, norm, "all", "replace", marks=pytest.mark.slow)
            for name, norm in product([each for each in HIDDEN_OUTPUTS if each not in QUICK], NORMS)
        ),
        *product(["nature", "resnet"], ["layer", "rms"], ["channels"], ["replace"]),
        *product(["resnet", "transformer"], ["rms", "batch"], ["all"], ["keep"]),
    ],
)
def test_every_norm_gives_invariance(build: Build, name: str, norm: str, axes: str, existing: str) -> None:
    module, x = build(name)
    normalize(module, x, norm=norm, axes=axes, existing=existing)  # type: ignore[arg-type]
    changes = scale_invariance(module, x)
    assert max(change for layer, change in changes.items() if layer not in HIDDEN_OUTPUTS[name]) < 1e-4


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "mlp" else pytest.mark.slow) for n in HIDDEN_OUTPUTS],
)
def test_norms_stay_for_500_updates_and_grow_without_projection(build: Build, train: Train, name: str) -> None:
    module, x = build(name)
    module, optimizer, projector = normalize_and_project(module, lambda p: torch.optim.Adam(p, lr=1e-3), x)
    layers = projector.groups.keys() & weight_groups(module).keys()
    before = exact_norms(module)
    train(module, optimizer, x, 500)
    after = exact_norms(module)
    assert max(abs(after[layer] / before[layer] - 1) for layer in layers) < 1e-6
    free, x = build(name)
    normalize(free, x)
    assert exact_norms(free) == before
    train(free, torch.optim.Adam(free.parameters(), lr=1e-3), x, 100)
    grown = exact_norms(free)
    assert min(grown[layer] / before[layer] for layer in layers) > 1.0003


@pytest.mark.parametrize("name", SLOW_WITH_IMPALA)
def test_normalizing_twice_changes_nothing(build: Build, name: str) -> None:
    for existing in ("keep", "replace"):
        module, x = build(name)
        normalize(module, x, existing=existing)  # type: ignore[arg-type]
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # what was learnt must survive, gains included
        text, state = repr(module), {key: value.clone() for key, value in module.state_dict().items()}
        normalize(module, x, existing=existing)  # type: ignore[arg-type]
        assert repr(module) == text
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", HIDDEN_OUTPUTS)
def test_names_and_values_of_weights_survive(build: Build, name: str) -> None:
    module, x = build(name)
    before = {name: [t.detach().clone() for t in ts] for name, ts in weight_groups(module).items()}
    parameters = {layer: ts[0] for layer, ts in weight_groups(module).items()}
    normalize(module, x)
    for layer, tensors in weight_groups(module).items():
        assert tensors[0] is parameters[layer]
        assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before[layer], strict=False))
    assert set(before) == set(weight_groups(module))


@pytest.mark.parametrize("name", SLOW_WITH_IMPALA)
def test_state_buffers_and_randomness_are_not_disturbed(build: Build, name: str) -> None:
    module, x = build(name)
    module.train()
    for dropped in [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)][:1]:
        dropped.eval()
    flags = {each: each.training for each in module.modules()}
    buffers = {key: value.clone() for key, value in module.named_buffers()}
    random = torch.get_rng_state()
    normalize(module, x)
    parameters = {key: value.detach().clone() for key, value in module.named_parameters()}
    scale_invariance(module, x)
    Projector(module, torch.optim.SGD(module.parameters(), lr=0.1), example_input=x)
    assert torch.equal(random, torch.get_rng_state())
    assert all(each.training == flag for each, flag in flags.items())
    assert all(torch.equal(dict(module.named_buffers())[key], value) for key, value in buffers.items())
    assert all(torch.equal(value, parameters[key]) for key, value in module.named_parameters())
    assert all(value.grad is None for value in module.parameters())
