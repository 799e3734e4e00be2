"""What the projection does to tensors, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize, normalize_and_project, weight_groups
from nap_rl.nap.groups import GroupNorms
from nap_rl.nn import NoisyLinear

Build = Callable[[str], tuple[nn.Module, Tensor]]
Train = Callable[..., None]


def norm_of(*tensors: Tensor) -> float:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors]).norm().item()


def small() -> tuple[nn.Module, Tensor]:
    """Linear 0 and 2 are hidden, 4 is the output; norms are 1.norm and 3.norm."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    x = torch.randn(16, 6)
    normalize(module, x)
    return module, x


def push(optimizer: torch.optim.Optimizer, size: float = 1.0) -> None:
    """One update on random gradients for everything that the optimiser owns."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = size * torch.randn_like(parameter)
    optimizer.step()


# The arithmetic.


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=4),
    st.floats(1e-6, 1e6),
    st.integers(1, 3),
)
def test_group_norms_are_those_of_the_concatenation(shapes: list[list[int]], scale: float, members: int) -> None:
    groups = [[scale * torch.randn(shape) for _ in range(members)] for shape in shapes]
    expected = torch.tensor([norm_of(*group) for group in groups], dtype=torch.float64)
    torch.testing.assert_close(GroupNorms(groups)(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(512, 3136), (1531, 1009)])
def test_norms_of_millions_of_equal_elements_keep_seven_digits(shape: tuple[int, int]) -> None:
    sigma = torch.full(shape, 0.1 / math.sqrt(3136))
    exact = math.sqrt(sigma.numel()) * sigma[0, 0].double().item()
    assert abs(GroupNorms([[sigma]])().item() / exact - 1) < 2e-7
    # torch's own kernel, for which the detour is taken:
    assert abs(torch.linalg.vector_norm(sigma).item() / exact - 1) > 1e-5


def test_projection_is_rho_w_over_norm_and_keeps_the_direction() -> None:
    module, _ = small()
    weight = module[0].weight
    rho = norm_of(weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    projector = Projector(module, optimizer)
    moved = weight.detach() + 0.3 * torch.randn_like(weight)
    weight.data = moved.clone()
    projector.project()
    torch.testing.assert_close(weight.detach(), moved * (rho / norm_of(moved)), rtol=1e-6, atol=0)


def test_one_norm_a_tensor_and_not_one_a_unit() -> None:
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


def test_noisy_layers_are_projected_by_one_common_factor() -> None:
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


def test_scale_and_offset_are_projected_jointly_to_sqrt_d() -> None:
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


def test_initial_gain_and_offset_have_their_projected_norm_already() -> None:
    module, _ = small()
    projector = Projector(module, torch.optim.SGD(module.parameters(), lr=0.0))
    assert projector.max_relative_drift() < 1e-7
    projector.project()
    torch.testing.assert_close(module[1].norm.weight.detach(), torch.ones(24))


@pytest.mark.parametrize("affine", ["free", "regularize"])
def test_gains_are_not_projected_as_if_they_were_weights(affine: str) -> None:
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
def test_regularize_uses_each_param_groups_own_learning_rate(lr: float | Tensor) -> None:
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


def test_regularized_gain_settles_where_adam_and_pull_balance() -> None:
    module, _ = small()
    gain = module[1].norm.weight
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    Projector(module, optimizer, affine="regularize", regularize_coefficient=2.0)
    for _ in range(600):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    torch.testing.assert_close(gain.detach(), torch.full((24,), 1 - 1 / 2.0), atol=2e-2, rtol=0)


def test_output_layer_is_projected_only_on_request() -> None:
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


def test_every_counts_updates_of_the_optimizer() -> None:
    module, _ = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    projector = Projector(module, optimizer, every=3)
    drifts = []
    for _ in range(7):
        push(optimizer)
        drifts.append(projector.max_relative_drift().item() < 1e-6)
    assert drifts == [False, False, True, False, False, True, False]
    assert projector.updates == 7


def test_gradient_accumulation_projects_once_an_update() -> None:
    module, x = small()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    projector = Projector(module, optimizer)
    before = [p.detach().clone() for p in module.parameters()]
    for part in x.split(4):
        module(part).square().mean().backward()
        assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    optimizer.step()
    assert projector.updates == 1 and projector.max_relative_drift() < 1e-6


def test_removed_projector_lets_weights_go() -> None:
    module, _ = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    projector = Projector(module, optimizer)
    projector.remove()
    push(optimizer)
    assert projector.max_relative_drift() > 1e-3
    assert projector.updates == 0


# What it leaves alone.


def test_second_optimizers_neither_project_nor_are_projected() -> None:
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


def test_optimizer_state_and_weight_decay_are_not_touched() -> None:
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


def test_frozen_layer_is_untouched_to_the_bit_and_returns_to_its_norm_when_thawed() -> None:
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


def test_shared_weight_is_projected_once() -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    module[2].weight = module[0].weight
    normalize(module, torch.randn(8, 16))
    rho = norm_of(module[0].weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert "2" not in Projector(module, optimizer).groups
    push(optimizer)
    assert norm_of(module[0].weight) == pytest.approx(rho, rel=1e-6)


def test_target_network_is_copied_and_never_projected() -> None:
    module, _ = small()
    target = copy.deepcopy(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    Projector(module, optimizer)
    target[0].weight.data.mul_(2)
    before = target[0].weight.detach().clone()
    push(optimizer)
    assert torch.equal(target[0].weight, before)


# Optimisers and precisions.

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adam tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=2),
}


@pytest.mark.parametrize("affine", ["project", "regularize"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_projection_holds_with_every_optimizer(name: str, affine: str) -> None:
    module, x = small()
    rho = {layer: norm_of(*ts) for layer, ts in weight_groups(module).items()}
    optimizer = OPTIMIZERS[name](module.parameters())
    projector = Projector(module, optimizer, affine=affine)  # type: ignore[arg-type]
    for _ in range(5):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (module(x) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert max(abs(norm_of(module[n].weight) / rho[str(n)] - 1) for n in (0, 2)) < 1e-6
    assert abs(norm_of(module[4].weight) / rho["4"] - 1) > 1e-6
    assert projector.updates == 5


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"capturable": True}, {"fused": True}, {"fused": True, "capturable": True}])
def test_projection_holds_on_cuda_within_a_captured_update(options: dict[str, bool]) -> None:
    module, x = small()
    module, x = module.cuda(), x.cuda()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, **options)  # type: ignore[arg-type]
    projector = Projector(module, optimizer)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        (module(x) - 1).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # type: ignore[no-untyped-call]
        for _ in range(3):
            update()
        assert projector.max_relative_drift() < 1e-6
        if "capturable" in options:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                update()
            for _ in range(10):
                graph.replay()
    torch.cuda.synchronize()
    assert projector.max_relative_drift() < 1e-6


def test_autocast_updates_are_projected_in_full_precision() -> None:
    module, x = small()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    projector = Projector(module, optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.mse_loss(module(x).float(), torch.ones(16, 3))
        loss.backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.step()
    assert projector.max_relative_drift() < 1e-6
    assert module[0].weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_measured_and_scaled_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 4)).to(dtype)
    normalize(module, torch.randn(8, 256).to(dtype))
    rho = norm_of(module[0].weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    Projector(module, optimizer)
    for factor in (1.5, 1.02):  # 1 / 1.02 is a factor that bfloat16 itself would round by 1e-3
        module[0].weight.data.mul_(factor)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert norm_of(module[0].weight) == pytest.approx(rho, rel=2e-4)


def test_projection_makes_no_host_sync_and_one_multiplication_call_for_any_depth() -> None:
    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    for depth in (2, 12):
        layers = [each for _ in range(depth) for each in (nn.Linear(64, 64), nn.ReLU())]
        module = nn.Sequential(*layers, nn.Linear(64, 2))
        normalize(module, torch.randn(4, 64))
        projector = Projector(module, torch.optim.SGD(module.parameters(), lr=0.1))
        with Counter() as counter:
            projector.project()
            projector.max_relative_drift()
        assert not [name for name in counter.names if "local_scalar" in name or "is_nonzero" in name]
        assert sum("_foreach_mul_" in name for name in counter.names) == 1


# What it refuses.


def test_hidden_layer_without_norm_raises_and_names_it() -> None:
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


def test_layers_added_later_raise_and_name_them() -> None:
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
def test_zero_weights_raise_since_projection_would_pin_them(scope: str) -> None:
    module, _ = small()
    module[2].weight.data[1 if scope == "unit" else slice(None)] = 0
    with pytest.raises(ValueError, match="layer '2' starts at norm 0"):
        Projector(module, torch.optim.SGD(module.parameters(), lr=0.1), scope=scope)  # type: ignore[arg-type]


def test_optimizer_that_owns_nothing_raises() -> None:
    module, _ = small()
    with pytest.raises(ValueError, match="owns nothing of this module"):
        Projector(module, torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 0}, "every=0 must be"),
        ({"affine": "omit"}, "affine='omit' is not one of project, regularize, free"),
        ({"output": "yes"}, "output='yes'"),
        ({"scope": "row"}, "scope='row'"),
        ({"free": ["hed"]}, "free names 'hed'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    module, _ = small()
    with pytest.raises(ValueError, match=sentence):
        Projector(module, torch.optim.SGD(module.parameters(), lr=0.1), **options)


# State.


@pytest.mark.parametrize("scope", ["tensor", "unit"])
def test_state_brings_back_norms_and_the_count_of_updates(scope: Any) -> None:
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


def test_state_of_another_net_is_refused_by_name_and_shape() -> None:
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
    train(module, optimizer, x, 3)
    assert projector.max_relative_drift() < 1e-6
