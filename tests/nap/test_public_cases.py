"""Situations from public issue trackers: networks, copies and optimisers that Normalize-and-Project must survive."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nap import LayerMonitor, Projector, normalize, normalize_and_project, scale_invariance, weight_groups

Triple = tuple[nn.Module, torch.optim.Optimizer, Projector]


class Residual(nn.Module):
    """Its second activation stands on a sum, so its forward is rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.o(torch.relu(x + self.b(torch.relu(self.a(x)))))
        return y


class Images(nn.Module):
    """Convolutions with functional activations, one of them on a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d, self.o = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.c(x))
        y: Tensor = self.o(torch.relu(h + self.d(h)).flatten(1))
        return y


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def fit(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, updates: int = 20) -> None:
    for _ in range(updates):
        optimizer.zero_grad()
        (module(x) - 1).square().mean().backward()
        optimizer.step()


def made(module: nn.Module, x: Tensor) -> Triple:
    return normalize_and_project(module, lambda p: torch.optim.Adam(p, lr=1e-2), x, affine="project")


# Norms over one number or two.


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.out = nn.Linear(8, 32), nn.Linear(8, 1), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.relu(self.body(x)) * torch.sigmoid(self.gate(x)))
        return y


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1)
        self.ex, self.o = nn.Conv2d(1, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        g = torch.sigmoid(self.ex(torch.relu(self.gate(h.mean((2, 3), keepdim=True)))))
        y: Tensor = self.o((h * g).mean((2, 3)))
        return y


@pytest.mark.parametrize("norm", ["layer", "rms", "group"])
@pytest.mark.parametrize(("make", "shape"), [(Gate, (64, 8)), (SqueezeExcite, (64, 3, 8, 8))])
def test_gate_of_one_unit_gets_no_norm_and_is_not_projected(
    make: Callable[[], nn.Module], shape: tuple[int, ...], norm: Any
) -> None:
    module, x = make(), torch.randn(shape)
    module, _, projector = normalize_and_project(module, torch.optim.Adam, x, norm=norm)
    gate = module.get_submodule("gate")
    outputs: list[Tensor] = []
    gate.register_forward_hook(lambda layer, args, out: outputs.append(out))
    module(x)
    assert outputs[0].std(0).max() > 1e-2
    assert gate.nap_role == "narrow" and gate.bias is not None and "gate" not in projector.groups


@pytest.mark.parametrize("width", [1, 2])
def test_bottleneck_of_one_or_two_units_passes_numbers_and_no_signs(width: int) -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 3))
    x = torch.randn(64, 8)
    normalize(module, x)
    assert len(torch.unique(module[:4](x)[:, 0])) == 64
    assert [module[n].nap_role for n in (0, 2, 4)] == ["invariant", "narrow", "output"]


def test_norm_that_one_number_reaches_is_refused_by_name() -> None:
    layers = [nn.Linear(8, 1), nn.ReLU(), nn.Linear(1, 16, bias=False), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()]
    with pytest.raises(ValueError, match=r"leave '[45]' out with free"):
        normalize(nn.Sequential(*layers, nn.Linear(16, 2)), torch.randn(64, 8))


# Output layers.


@pytest.mark.parametrize(
    "end", [nn.Softplus(), nn.ReLU(), nn.ELU(), nn.Sigmoid(), nn.Softmax(-1), nn.LogSigmoid(), nn.GLU()], ids=repr
)
def test_last_weight_layer_is_the_output_whatever_activation_follows(end: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4), end)
    _, _, projector = made(module, torch.randn(32, 8))
    assert set(projector.groups) == {"0", "1.norm"}
    assert module[3] is end and module[2].bias is not None and module[2].nap_role == "output"


def test_relu_and_pooling_at_the_end_and_two_heads_with_exp_and_softplus_stay_free() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.mean, self.std = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.first(x))
            return F.adaptive_avg_pool2d(torch.relu(self.mean(h)), 1), F.softplus(self.std(h)).exp()

    module = Ends()
    normalize(module, torch.randn(4, 3, 6, 6))
    assert (module.first.nap_role, module.mean.nap_role, module.std.nap_role) == ("invariant", "output", "output")
    assert not hasattr(module.mean, "nap_norm") and not hasattr(module.std, "nap_norm")


# Copies, pickles, optimisers made anew.


def saved(triple: Triple) -> Any:
    buffer = io.BytesIO()
    torch.save(triple, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Triple], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda triple: pickle.loads(pickle.dumps(triple)),
    "torch.save": saved,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("make", [mlp, Residual])
def test_copies_of_net_optimizer_and_projector_project(make: Callable[[], nn.Module], way: str) -> None:
    x = torch.randn(32, 8)
    original = made(make(), x)
    fit(original[0], original[1], x, 3)
    module, optimizer, projector = COPIES[way](original)
    before = [parameter.detach().clone() for parameter in original[0].parameters()]
    fit(module, optimizer, x)
    assert projector.module is module and projector.updates == 23 and projector.max_relative_drift() < 1e-6
    assert original[2].updates == 3
    assert all(torch.equal(p, q) for p, q in zip(original[0].parameters(), before, strict=True))


def test_removed_projector_stays_removed_in_copies() -> None:
    x = torch.randn(32, 8)
    triple = made(mlp(), x)
    triple[2].remove()
    module, optimizer, projector = copy.deepcopy(triple)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(module, optimizer, x)
    assert projector.updates == 0


def test_optimizer_copied_without_its_projector_says_so() -> None:
    x = torch.randn(32, 8)
    module, optimizer, _ = made(mlp(), x)
    copied = copy.deepcopy((module, optimizer))
    with pytest.warns(UserWarning, match="copy of one that a Projector follows"):
        fit(*copied, x, 1)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("options", [{}, {"every": None, "affine": "regularize"}])
def test_copy_of_the_network_alone_says_once_that_nothing_projects_it(way: str, options: dict[str, Any]) -> None:
    x = torch.randn(32, 8)
    module = normalize(Residual(), x)
    projector = Projector(module, torch.optim.Adam(module.parameters(), lr=1e-2), **options)
    copied: Any = COPIES[way](module)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(copied.parameters(), lr=1e-2)
    LayerMonitor(copied, optimizer)
    with pytest.warns(UserWarning, match=r"no Projector follows it: build Projector\(network, optimizer\)") as told:
        fit(copied, optimizer, x)
    assert len(told) == 1
    own = Projector(copied, optimizer, **options)
    own.load_state_dict(projector.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(copied, optimizer, x)
        fit(module, projector.optimizer, x)
    assert own.updates == projector.updates == 20 and own.max_relative_drift() < 1e-6


def test_network_whose_projector_is_gone_says_so() -> None:
    x = torch.randn(32, 8)
    module, optimizer, projector = made(mlp(), x)
    del optimizer, projector
    gc.collect()
    with pytest.warns(UserWarning, match="no Projector follows it"):
        fit(module, torch.optim.Adam(module.parameters()), x, 1)


def test_copies_that_nothing_trains_and_copies_without_projection_are_no_matter() -> None:
    x = torch.randn(32, 8)
    module, optimizer, projector = made(mlp(), x)
    target = copy.deepcopy(module).requires_grad_(False)
    average = torch.optim.swa_utils.AveragedModel(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(module, optimizer, x, 2)
        average.update_parameters(module)
        target.load_state_dict(module.state_dict())
        projector.remove()
        free = copy.deepcopy(module)
        fit(free, torch.optim.Adam(free.parameters()), x, 1)


def test_optimizers_of_other_weights_do_not_take_over_a_projector_that_only_regularizes() -> None:
    x = torch.randn(32, 8)
    module, other = normalize(mlp(), x), mlp()
    optimizer = torch.optim.Adam(module.parameters())
    projector = Projector(module, optimizer, every=None, affine="regularize")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(other, torch.optim.Adam(other.parameters()), x, 1)
    assert projector.optimizer is optimizer


def test_optimizer_made_anew_is_followed_with_a_warning() -> None:
    x = torch.randn(32, 8)
    module, optimizer, projector = made(mlp(), x)
    monitor = LayerMonitor(module, optimizer)
    fit(module, optimizer, x)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    with pytest.warns(UserWarning, match="has taken over all weights"):
        fit(module, optimizer, x, 1)
    fit(module, optimizer, x)
    assert projector.updates == 41 and projector.max_relative_drift() < 1e-6
    monitor.snapshot()
    fit(module, optimizer, x, 1)
    assert monitor.measure()["0"]["effective_lr"] == pytest.approx(5e-3, rel=1e-4)


def test_rebind_follows_a_new_optimizer_without_a_warning() -> None:
    x = torch.randn(32, 8)
    module, optimizer, projector = made(mlp(), x)
    norms = {name: norm.clone() for name, norm in projector.groups.items()}
    fit(module, optimizer, x, 2)
    new = torch.optim.SGD(module.parameters(), lr=0.1)
    projector.rebind(new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(module, new, x)
    assert projector.updates == 22 and projector.max_relative_drift() < 1e-6
    assert all(torch.equal(norm, norms[name]) for name, norm in projector.groups.items())
    with pytest.raises(ValueError, match="does not own '0'"):
        projector.rebind(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1))


def test_optimizers_of_other_weights_and_wrapped_optimizers_are_no_matter() -> None:
    class Lookahead(torch.optim.Optimizer):
        """Steps another optimiser inside its own step."""

        def __init__(self, base: torch.optim.Optimizer) -> None:
            super().__init__(base.param_groups, {})
            self.base = base

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.base.step()

    x = torch.randn(32, 8)
    module = normalize(mlp(), x)
    outer = Lookahead(torch.optim.Adam(module.parameters(), lr=1e-2))
    projector = Projector(module, outer)
    other = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(module, outer, x)
        fit(other, torch.optim.Adam(other.parameters()), x)
    assert projector.updates == 20 and projector.max_relative_drift() < 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_grad_scaler_skips_are_not_counted(fused: bool) -> None:
    x = torch.randn(32, 8)
    module = normalize(mlp(), x)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, fused=fused)
    projector = Projector(module, optimizer, affine="regularize", every=3)
    module[1].norm.weight.data.fill_(2.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        gains = module[1].norm.weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(module(x).square().mean() * (float("inf") if step < 2 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(gains, module[1].norm.weight) is (step < 2)
    assert projector.updates == 2


# free=[...].


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    return layer


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    "spectral_norm, old": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)),
    "pruned": pruned,
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_layers_that_compute_their_weight_can_be_left_free(kind: str) -> None:
    x = torch.randn(16, 8)
    layers = [COMPUTED[kind](), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)]
    module = nn.Sequential(*layers)
    assert list(weight_groups(module, free=["0"])) == ["2", "4"]
    assert list(scale_invariance(module, x, free=["0"])) == ["2", "4"]
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    assert LayerMonitor(module, optimizer, free=["0"]).names == ["2", "4"]
    projector = Projector(module, optimizer, example_input=x, free=["0"], unnormalized="project", affine="free")
    assert set(projector.groups) == {"2"}
    projector.remove()
    module, optimizer, projector = normalize_and_project(module, torch.optim.Adam, x, affine="project", free=["0"])
    assert not hasattr(layers[0], "nap_norm") and set(projector.groups) == {"1.norm", "2", "3.norm"}
    assert LayerMonitor(module, optimizer).names == ["2", "4"]
    fit(module, optimizer, x, 3)
    assert projector.max_relative_drift() < 1e-6


def test_function_behind_a_free_layer_gets_its_norm_elsewhere() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(F.relu(self.first(x)))
            return y

    module = Functional()
    normalize(module, torch.randn(16, 8), free=["first"])
    assert not hasattr(module.first, "nap_norm") and module.first.bias is not None and hasattr(module, "nap_norm_0")


# What torch does with modules.


@pytest.mark.parametrize("norm", ["layer", "rms", "group", "batch"])
@pytest.mark.parametrize(("make", "shape"), [(mlp, (16, 8)), (Residual, (16, 8)), (Images, (4, 3, 6, 6))])
def test_normalized_networks_are_scripted_traced_pickled_and_stacked(
    make: Callable[[], nn.Module], shape: tuple[int, ...], norm: Any
) -> None:
    x = torch.randn(shape)
    nets = [normalize(make(), x, norm=norm).eval() for _ in range(2)]
    for net in nets:
        Projector(net, torch.optim.Adam(net.parameters()))
    expected = nets[1](x)
    loaded = pickle.loads(pickle.dumps(nets[1]))
    assert type(loaded) is type(nets[1]) and torch.equal(loaded(x), expected)
    torch.testing.assert_close(torch.jit.script(nets[1])(x), expected)
    torch.testing.assert_close(torch.jit.trace(nets[1], x)(x), expected)  # type: ignore[no-untyped-call]
    parameters, buffers = torch.func.stack_module_state(nets)  # type: ignore[arg-type]
    base = copy.deepcopy(nets[0]).to("meta")
    outputs = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(outputs[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "shape"), [(mlp, (16, 8)), (Residual, (16, 8)), (Images, (4, 3, 6, 6))])
def test_normalized_networks_are_exported(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    module = normalize(make(), x).eval()
    Projector(module, torch.optim.Adam(module.parameters()))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


# Layers and modules of others.


class Conv1D(nn.Module):
    """A linear layer as transformers' GPT-2 has it: weight [inputs, outputs]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.2), nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


class NewGELU(nn.Module):
    """An activation written out, as transformers has it."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * x**3)))


def test_transposed_linear_layers_are_weight_layers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln, self.fc, self.act, self.proj = nn.LayerNorm(16), Conv1D(32, 16), NewGELU(), Conv1D(16, 32)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.proj(self.act(self.fc(self.ln(x))))
            return y

    x = torch.randn(4, 5, 8)
    module = nn.Sequential(Conv1D(16, 8), Block(), Block(), nn.LayerNorm(16), nn.Linear(16, 3))
    module, optimizer, projector = made(module, x)
    changes = scale_invariance(module, x)
    assert changes.pop("4") > 0.5 and max(changes.values()) < 1e-4
    assert set(changes) < set(projector.groups)
    assert isinstance(module.get_submodule("1.act"), nn.Sequential)
    assert not [name for name, _ in module.named_parameters() if name.endswith("fc.bias")]
    fit(module, optimizer, x, 5)
    assert projector.max_relative_drift() < 1e-6
    with pytest.raises(ValueError, match="transposed weight"):
        Projector(module, optimizer, scope="unit")


def test_agent_without_forward_is_told_what_to_pass_and_projected_as_a_whole() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic, self.actor = mlp(), mlp()

    agent, x = Agent(), torch.randn(32, 8)
    with pytest.raises(ValueError, match=r"no forward\(\) .* one by one \(critic, actor\)"):
        normalize(agent, x)
    normalize(agent.critic, x)
    normalize(agent.actor, x)
    projector = Projector(agent, torch.optim.Adam(agent.parameters()))
    assert {"critic.0", "actor.0"} == set(projector.groups)


def test_complex_and_sharded_weights_are_refused_in_one_sentence() -> None:
    module = nn.Sequential(nn.Linear(4, 16, dtype=torch.complex64), nn.Tanh(), nn.Linear(16, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="layer '0' has complex weights"):
        normalize(module, torch.randn(8, 4, dtype=torch.complex64))

    class Sharded(nn.Parameter):
        def full_tensor(self) -> Tensor:
            return self.data

    net = mlp()
    normalize(net, torch.randn(8, 8))
    net[0].weight = Sharded(torch.randn(32, 8))  # type: ignore[index]
    with pytest.raises(ValueError, match="layer '0' is sharded .* use DistributedDataParallel"):
        Projector(net, torch.optim.Adam(net.parameters()))
