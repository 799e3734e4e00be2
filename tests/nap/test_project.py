"""What the projection does to tensors, when it acts, and what it leaves alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize
from nap_rl.nap.norms import GroupNorms
from nap_rl.nn import NoisyLinear

Build = Callable[[str], tuple[nn.Module, Tensor]]
Small = Callable[[], tuple[nn.Sequential, Tensor]]
Push = Callable[..., None]
NormOf = Callable[..., float]


# The arithmetic.


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=4),
    st.floats(1e-6, 1e6),
    st.integers(1, 3),
)
def test_group_norms_are_those_of_the_concatenation(shapes: list[list[int]], scale: float, members: int) -> None:
    groups = [[scale * torch.randn(shape) for _ in range(members)] for shape in shapes]
    vectors = [torch.cat([tensor.double().flatten() for tensor in group]) for group in groups]
    expected = torch.stack([vector.norm() for vector in vectors])
    torch.testing.assert_close(GroupNorms(groups)(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(512, 3136), (1531, 1009)])
def test_norms_of_millions_of_equal_elements_keep_seven_digits(shape: tuple[int, int]) -> None:
    sigma = torch.full(shape, 0.1 / math.sqrt(3136))
    exact = math.sqrt(sigma.numel()) * sigma[0, 0].double().item()
    assert abs(GroupNorms([[sigma]])().item() / exact - 1) < 2e-7
    # torch's own kernel, for which the detour is taken:
    assert abs(torch.linalg.vector_norm(sigma).item() / exact - 1) > 1e-5


def test_projection_is_rho_w_over_norm_and_keeps_the_direction(small: Small, norm_of: NormOf) -> None:
    module, _ = small()
    weight = module[0].weight
    rho = norm_of(weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    projector = Projector(module, optimizer)
    moved = weight.detach() + 0.3 * torch.randn_like(weight)
    weight.data = moved.clone()
    projector.project()
    torch.testing.assert_close(weight.detach(), moved * (rho / norm_of(moved)), rtol=1e-6, atol=0)


def test_one_norm_a_tensor_and_not_one_a_unit(small: Small, push: Push) -> None:
    for scope in ("tensor", "unit"):
        module, _ = small()
        rows = module[0].weight.detach().norm(dim=1)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        projector = Projector(module, optimizer, scope=scope)  # type: ignore[arg-type]
        push(optimizer)
        change = (module[0].weight.detach().norm(dim=1) / rows - 1).abs().max().item()
        assert change > 1e-3 if scope == "tensor" else change < 1e-6
        assert projector.max_relative_drift() < 1e-6
        assert projector.groups["0"].shape == (() if scope == "tensor" else (24,))


def test_noisy_layers_are_projected_by_one_common_factor(norm_of: NormOf) -> None:
    module = nn.Sequential(NoisyLinear(6, 24), nn.ReLU(), NoisyLinear(24, 3))
    normalize(module, torch.randn(16, 6))
    module.append(NoisyLinear(3, 3))  # a hidden noisy layer with biases, invariant by decree
    for layer in (module[2], module[3]):
        layer.nap_role = "invariant"
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    projector = Projector(module, optimizer)
    for name in ("0", "2", "3"):
        layer = module.get_submodule(name)
        tensors = [layer.weight_mu, layer.weight_sigma]
        tensors += [t for t in (layer.bias_mu, layer.bias_sigma) if t is not None]
        assert len(tensors) == (2 if name == "0" else 4)
        before = [t.detach().clone() for t in tensors]
        rho = norm_of(*tensors)
        for tensor in tensors:
            tensor.data *= 1 + torch.rand_like(tensor)
        stretched = [t.detach().clone() for t in tensors]
        projector.project()
        factors = {round(norm_of(t) / norm_of(s), 6) for t, s in zip(tensors, stretched, strict=True)}
        assert len(factors) == 1
        assert norm_of(*tensors) == pytest.approx(rho, rel=1e-6)
        assert norm_of(layer.weight_sigma) != pytest.approx(norm_of(before[1]), rel=1e-4)


def test_scale_and_offset_are_projected_jointly_to_sqrt_d(small: Small) -> None:
    module, _ = small()
    norm = module[1].norm
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    Projector(module, optimizer, affine="project")
    with torch.no_grad():
        norm.weight.copy_(3 * torch.rand(24))
        norm.bias.copy_(torch.randn(24))
    before = torch.cat([norm.weight, norm.bias]).detach()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = torch.cat([norm.weight, norm.bias]).detach()
    assert after.norm().item() == pytest.approx(math.sqrt(24), rel=1e-6)
    torch.testing.assert_close(after, before * math.sqrt(24) / before.norm())
    assert norm.bias.norm() > 0.1  # jointly: the offset is scaled and not reset


def test_initial_gain_and_offset_have_their_projected_norm_already(small: Small) -> None:
    module, _ = small()
    projector = Projector(module, torch.optim.SGD(module.parameters(), lr=0.0))
    assert projector.max_relative_drift() < 1e-7
    projector.project()
    torch.testing.assert_close(module[1].norm.weight.detach(), torch.ones(24))


@pytest.mark.parametrize("affine", ["free", "regularize"])
def test_gains_are_not_projected_as_if_they_were_weights(small: Small, push: Push, affine: str) -> None:
    module, _ = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    projector = Projector(module, optimizer, affine=affine, regularize_coefficient=0.5)  # type: ignore[arg-type]
    assert set(projector.groups) == {"0", "2"}
    gain, offset = module[1].norm.weight, module[1].norm.bias
    before = (gain.detach().clone(), offset.detach().clone())
    push(optimizer)
    stepped = (before[0] - 0.1 * gain.grad, before[1] - 0.1 * offset.grad)
    pull = 0.1 * 0.5 if affine == "regularize" else 0.0
    torch.testing.assert_close(gain.detach(), stepped[0] - pull * (stepped[0] - 1))
    torch.testing.assert_close(offset.detach(), stepped[1] - pull * stepped[1])


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_regularize_uses_each_param_groups_own_learning_rate(small: Small, push: Push, lr: float | Tensor) -> None:
    module, _ = small()
    groups = [{"params": module[:2].parameters(), "lr": lr}, {"params": module[2:].parameters(), "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    Projector(module, optimizer, affine="regularize", regularize_coefficient=2.0)
    gains = (module[1].norm.weight, module[3].norm.weight)
    for gain in gains:
        gain.data.fill_(3.0)
    push(optimizer, size=0.0)
    torch.testing.assert_close(gains[0].detach(), torch.full((24,), 3.0 - 0.2 * 2.0))
    torch.testing.assert_close(gains[1].detach(), torch.full((24,), 3.0))


def test_regularized_gain_settles_where_adam_and_pull_balance(small: Small) -> None:
    module, _ = small()
    gain = module[1].norm.weight
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    Projector(module, optimizer, affine="regularize", regularize_coefficient=2.0)
    for _ in range(600):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    torch.testing.assert_close(gain.detach(), torch.full((24,), 1 - 1 / 2.0), atol=2e-2, rtol=0)


def test_output_layer_is_projected_only_on_request(small: Small, push: Push, norm_of: NormOf) -> None:
    for output in ("free", "project"):
        module, _ = small()
        rho, bias = norm_of(module[4].weight), module[4].bias.detach().clone()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        Projector(module, optimizer, output=output)  # type: ignore[arg-type]
        push(optimizer)
        ratio = norm_of(module[4].weight) / rho
        assert abs(ratio - 1) < 1e-6 if output == "project" else abs(ratio - 1) > 1e-3
        torch.testing.assert_close(module[4].bias.detach(), bias - 0.1 * module[4].bias.grad)


# When it acts.


def test_every_counts_updates_of_the_optimizer(small: Small, push: Push) -> None:
    module, _ = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    projector = Projector(module, optimizer, every=3)
    drifts = []
    for _ in range(7):
        push(optimizer)
        drifts.append(projector.max_relative_drift().item() < 1e-6)
    assert drifts == [False, False, True, False, False, True, False]
    assert projector.updates == 7


def test_without_projection_the_pull_on_gains_acts_alone(small: Small, push: Push) -> None:
    module, _ = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    projector = Projector(module, optimizer, every=None, affine="regularize", regularize_coefficient=0.5)
    before = copy.deepcopy(module)
    push(optimizer)
    for name, old in before.named_parameters():
        now = module.get_parameter(name)
        stepped = old - 0.1 * now.grad
        is_gain = isinstance(module.get_submodule(name.rpartition(".")[0]), nn.LayerNorm) and name.endswith("weight")
        is_offset = isinstance(module.get_submodule(name.rpartition(".")[0]), nn.LayerNorm) and name.endswith("bias")
        expected = stepped - 0.05 * (stepped - 1) if is_gain else 0.95 * stepped if is_offset else stepped
        torch.testing.assert_close(now.detach(), expected.detach())
    projector.project()  # nothing, also by hand
    assert projector.state_dict() == {"updates": 1, "norms": {}}


def test_without_projection_and_pull_a_projector_is_refused(small: Small) -> None:
    module, _ = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="every=None with affine='free' does nothing"):
        Projector(module, optimizer, every=None, affine="free")


def test_gradient_accumulation_projects_once_an_update(small: Small) -> None:
    module, x = small()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    projector = Projector(module, optimizer)
    before = [p.detach().clone() for p in module.parameters()]
    for part in x.split(4):
        module(part).square().mean().backward()
        assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    optimizer.step()
    assert projector.updates == 1 and projector.max_relative_drift() < 1e-6


def test_removed_projector_lets_weights_go(small: Small, push: Push) -> None:
    module, _ = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    projector = Projector(module, optimizer)
    projector.remove()
    push(optimizer)
    assert projector.max_relative_drift() > 1e-3
    assert projector.updates == 0


# What it leaves alone.


def test_second_optimizers_neither_project_nor_are_projected(small: Small, push: Push) -> None:
    """As in SAC: an actor, a critic and an entropy coefficient, each with its optimiser."""
    actor, x = small()
    critic, _ = small()
    both = nn.ModuleDict({"actor": actor, "critic": critic})
    log_alpha = nn.Parameter(torch.zeros(()))
    optimizers = [torch.optim.SGD(p, lr=0.1) for p in (actor.parameters(), critic.parameters(), [log_alpha])]
    projector = Projector(both, optimizers[0])
    assert {name.split(".")[0] for name in projector.groups} == {"actor"}
    before = [p.detach().clone() for p in actor.parameters()]
    push(optimizers[1])
    push(optimizers[2])
    assert all(torch.equal(p, old) for p, old in zip(actor.parameters(), before, strict=True))
    assert projector.updates == 0
    free = [p.detach().clone() for p in critic.parameters()]
    loss = critic(x).mean() + actor(x).mean() * log_alpha
    push(optimizers[0])  # in place on the actor alone: the critic's graph is still good
    assert all(torch.equal(p, old) for p, old in zip(critic.parameters(), free, strict=True))
    torch.autograd.grad(loss, list(critic.parameters()))


def test_optimizer_state_and_weight_decay_are_not_touched(small: Small) -> None:
    module, x = small()
    twin = copy.deepcopy(module)
    optimizer, plain = (torch.optim.AdamW(m.parameters(), lr=0.01) for m in (module, twin))
    Projector(module, optimizer)
    for m, o in ((module, optimizer), (twin, plain)):
        m(x).square().mean().backward()
        o.step()
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], plain.state[q]["exp_avg"])
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], plain.state[q]["exp_avg_sq"])


def test_frozen_layer_is_untouched_to_the_bit_and_returns_to_its_norm_when_thawed(
    small: Small, push: Push, norm_of: NormOf
) -> None:
    module, _ = small()
    weight = module[0].weight
    rho = norm_of(weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    projector = Projector(module, optimizer)
    weight.data.mul_(1.7)
    weight.requires_grad_(False)
    before = weight.detach().clone()
    push(optimizer, size=0.0)
    assert torch.equal(weight, before)
    assert projector.max_relative_drift() < 1e-6  # of the layers that are projected
    weight.requires_grad_(True)
    push(optimizer, size=0.0)
    assert norm_of(weight) == pytest.approx(rho, rel=1e-6)


def test_norms_within_free_modules_keep_their_gains(build: Build) -> None:
    module, x = build("transformer")
    normalize(module, x, free=["blocks.0"])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for free in ((), ("blocks.1",)):
        names = Projector(module, optimizer, free=free).groups.keys()
        assert not [name for name in names if name.startswith(("blocks.0", *free))]
        assert bool([name for name in names if name.startswith("blocks.1")]) is not bool(free)


def test_shared_weight_is_projected_once(push: Push, norm_of: NormOf) -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    module[2].weight = module[0].weight
    normalize(module, torch.randn(8, 16))
    rho = norm_of(module[0].weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert "2" not in Projector(module, optimizer).groups
    push(optimizer)
    assert norm_of(module[0].weight) == pytest.approx(rho, rel=1e-6)


def test_target_network_is_copied_and_never_projected(small: Small, push: Push) -> None:
    module, _ = small()
    target = copy.deepcopy(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    Projector(module, optimizer)
    target[0].weight.data.mul_(2)
    before = target[0].weight.detach().clone()
    push(optimizer)
    assert torch.equal(target[0].weight, before)
