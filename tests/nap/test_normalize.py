"""Where norms are put, and what they compute."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nap import normalize, scale_invariance, weight_groups
from nap_rl.nap.layers import OverChannels, RMSNorm, build_norm, group_count
from nap_rl.nap.normalize import assign_roles
from nap_rl.nn import NoisyLinear

Build = Callable[[str], tuple[nn.Module, Tensor]]


class Functional(nn.Module):
    """Layers whose activations are functions; `activation` maps (self, x) to the hidden state."""

    def __init__(self, activation: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.activation(self, self.first(x))).relu())


class Residual(nn.Module):
    """A nonlinearity on a sum: its input is no weight layer's output, so only torch.fx can reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.last = (nn.Linear(*s) for s in ((6, 24), (24, 24), (24, 24), (24, 3)))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = self.first(x)
        x = F.dropout(torch.relu(x + self.b(F.gelu(self.a(x)))), 0.5, self.training)
        return self.last(x if scale is None else x * scale)


# What the norms compute.


def test_norm_of_convolutions_is_layer_norm_over_channels_and_positions() -> None:
    x, gain, offset = torch.randn(4, 6, 5, 3), torch.randn(6), torch.randn(6)
    norm = build_norm("layer", (4, 6, 5, 3), True, "all", True)
    norm.weight.data, norm.bias.data = gain, offset  # type: ignore[union-attr]
    mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), unbiased=False, keepdim=True)
    expected = (x - mean) / var.sqrt() * gain.view(6, 1, 1) + offset.view(6, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_of_convolutions_divides_by_one_number_an_image() -> None:
    x, gain, offset = torch.randn(4, 6, 5, 3), torch.randn(6), torch.randn(6)
    norm = RMSNorm(6, positions=2)
    norm.weight.data, norm.bias.data = gain, offset  # type: ignore[union-attr]
    rms = x.square().mean((1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(norm(x), x / rms * gain.view(6, 1, 1) + offset.view(6, 1, 1))


def test_channel_norm_sees_one_position_only() -> None:
    norm = build_norm("layer", (2, 16, 4, 4), True, "channels", True)
    assert isinstance(norm, OverChannels)
    x = torch.randn(2, 16, 4, 4)
    y = norm(x)
    torch.testing.assert_close(y[:, :, 1, 2], F.layer_norm(x[:, :, 1, 2], (16,), eps=1e-8))
    assert y.shape == x.shape


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_tokens_do_not_see_each_other(kind: str) -> None:
    norm = build_norm(kind, (2, 5, 32), False, "all", True)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 32)
    future = x.clone()
    future[:, 3:] = 7 * torch.randn(2, 2, 32)
    assert torch.equal(norm(x)[:, :3], norm(future)[:, :3])


def test_group_norm_never_has_groups_of_a_few_channels() -> None:
    assert [group_count(c) for c in (10, 16, 24, 32, 64, 512, 1024, 2048)] == [1, 1, 1, 2, 4, 32, 32, 32]


# Where they stand.


def test_biases_before_norms_go_and_the_output_keeps_its_own(build: Build) -> None:
    module, x = build("nature")
    normalize(module, x)
    biased = {n for n in weight_groups(module) if module.get_submodule(n).bias is not None}
    assert biased == {"1"}


def test_noisy_layer_loses_all_its_bias_tensors_and_its_output_layer_none() -> None:
    module = nn.Sequential(NoisyLinear(6, 32), nn.ReLU(), NoisyLinear(32, 3))
    normalize(module, torch.randn(8, 6))
    assert {name for name, _ in module.named_parameters() if "bias" in name and "norm" not in name} == {
        "2.bias_mu",
        "2.bias_sigma",
    }


def test_own_convolution_with_a_joint_scale_is_normalised_as_an_image() -> None:
    class NoisyConv(nn.Module):
        joint_scale = ("mu", "sigma")

        def __init__(self) -> None:
            super().__init__()
            self.mu, self.sigma = (nn.Parameter(torch.randn(32, 3, 3, 3)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.mu + self.sigma * torch.randn(32, 3, 3, 3))

    module = nn.Sequential(NoisyConv(), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 3))
    x = torch.randn(4, 3, 6, 6)
    normalize(module, x)
    assert isinstance(module[1].norm, nn.GroupNorm)
    assert scale_invariance(module, x)["0"] < 1e-4


def test_omit_builds_norms_without_gain_and_offset(build: Build) -> None:
    module, x = build("mlp")
    normalize(module, x, affine=False)
    assert {name for name, _ in module.named_parameters()} == {"0.weight", "2.weight", "4.weight", "4.bias"}


def test_norm_stands_before_the_activation_and_not_behind() -> None:
    module = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    normalize(module, torch.randn(8, 6))
    hidden = module[1](torch.randn(50, 32))
    assert hidden.min() == 0  # a norm behind the ReLU would give negative values
    assert [type(each) for each in module[1]] == [nn.LayerNorm, nn.ReLU]


ACTIVATIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "F.relu": lambda self, x: F.relu(x),
    "torch.relu": lambda self, x: torch.relu(x),
    "Tensor.relu": lambda self, x: x.relu(),
    "in place": lambda self, x: F.relu(x, inplace=True),
    "relu_": lambda self, x: x.relu_(),
    "gelu": lambda self, x: F.gelu(x, approximate="tanh"),
    "tanh": lambda self, x: torch.tanh(x),
    "Tensor.tanh": lambda self, x: x.tanh(),
    "silu": lambda self, x: F.silu(input=x),
    "leaky": lambda self, x: F.leaky_relu(x, 0.2),
    "sigmoid gate": lambda self, x: x * torch.sigmoid(x),
    "crelu": lambda self, x: torch.relu(x) - torch.relu(-x),
    "unknown sine": lambda self, x: torch.sin(x),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_functional_activations_get_a_norm(activation: str) -> None:
    module = Functional(ACTIVATIONS[activation])
    x = torch.randn(16, 6)
    normalize(module, x)
    assert hasattr(module.first, "nap_norm") and hasattr(module.second, "nap_norm")
    changes = scale_invariance(module, x)
    assert max(changes["first"], changes["second"]) < 1e-4 < changes["last"]


def test_functional_activation_of_a_sum_gets_a_norm_inside_the_forward() -> None:
    module = Residual()
    x = torch.randn(16, 6)
    normalize(module, x)
    seen: list[Tensor] = []
    module.nap_norm_0.register_forward_hook(lambda norm, args, out: seen.append(out))  # type: ignore[union-attr]
    module(x)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0].mean(-1), torch.zeros(16), atol=1e-5, rtol=0)
    changes = scale_invariance(module, x)
    assert max(changes[name] for name in ("first", "a", "b")) < 1e-4 < changes["last"]
    assert isinstance(module, Residual)


def test_rewritten_forward_still_drops_in_training_and_only_there() -> None:
    module = normalize(Residual(), torch.randn(16, 6))
    x = torch.randn(4, 6)
    module.train()
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_rewritten_forward_refuses_the_branch_it_was_not_traced_on() -> None:
    module = normalize(Residual(), torch.randn(16, 6))
    with pytest.raises(AssertionError, match="scale"):
        module(torch.randn(4, 6), torch.ones(1))


def test_copies_of_a_normalized_module_are_independent() -> None:
    module = normalize(Residual(), torch.randn(16, 6))
    x = torch.randn(4, 6)
    target = copy.deepcopy(module).eval()
    before = target(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(target(x), before)
    target.load_state_dict(module.state_dict())
    assert torch.equal(target(x), module.eval()(x))


def test_one_activation_module_in_two_places_gets_two_norms(build: Build) -> None:
    module, x = build("resnet")
    normalize(module, x)
    block = module.get_submodule("layer1.0")
    assert isinstance(block.relu, nn.ReLU)
    # The first use follows bn1. The second is on the sum, and gets a norm of its own.
    assert [name for name, _ in block.named_children() if "nap" in name] == ["nap_norm_0"]


def test_shared_trunk_called_twice_gets_one_norm() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(6, 24), nn.ReLU())
            self.last = nn.Linear(24, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.last(self.trunk(x) - self.trunk(y))

    module = Siamese()
    normalize(module, (torch.randn(8, 6), torch.randn(5, 6)[:1]))
    assert sum(isinstance(each, nn.LayerNorm) for each in module.modules()) == 1


def test_policys_final_tanh_keeps_its_range_but_a_hidden_tanh_gets_a_norm() -> None:
    module = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2), nn.Tanh())
    normalize(module, torch.randn(8, 6))
    assert isinstance(module[1], nn.Sequential) and isinstance(module[3], nn.Tanh)
    assert module[2].nap_role == "output"


def test_nonlinearities_of_inputs_or_parameters_alone_are_left_alone() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(24))
            self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.relu(self.first(torch.tanh(x))) * torch.sigmoid(self.gate))

    module = Gated()
    normalize(module, torch.randn(8, 6))
    assert {name for name, each in module.named_modules() if isinstance(each, nn.LayerNorm)} == {"relu.norm"}


def test_existing_norms_are_kept_or_replaced_as_asked(build: Build) -> None:
    for existing, kind in (("keep", nn.BatchNorm2d), ("replace", nn.GroupNorm)):
        module, x = build("resnet")
        normalize(module, x, existing=existing)  # type: ignore[arg-type]
        assert type(module.get_submodule("layer2.0.bn1")) is kind
        assert type(module.get_submodule("layer2.0.downsample.1")) is kind


def test_kept_norms_lose_the_epsilon_that_breaks_invariance(build: Build) -> None:
    module, x = build("resnet")
    assert max(v for n, v in scale_invariance(module, x).items() if n != "fc") > 1e-4
    normalize(module, x)
    assert max(v for n, v in scale_invariance(module, x).items() if n != "fc") < 1e-4


def test_zero_initialised_last_layer_does_not_hide_the_layers_before(build: Build) -> None:
    module, x = build("impala")
    nn.init.zeros_(module.get_submodule("1").weight)  # type: ignore[arg-type]
    normalize(module, x)
    roles = {name: module.get_submodule(name).nap_role for name in weight_groups(module)}
    assert roles.pop("1") == "output"
    assert set(roles.values()) == {"invariant"}
    assert hasattr(module.get_submodule("0.0"), "nap_norm")  # the first layer of the residual stream


@pytest.mark.parametrize("gain", [1e-3, 1e3])
def test_tiny_or_huge_output_layer_does_not_hide_the_layers_before(gain: float) -> None:
    module = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
    module[4].weight.data *= gain  # PPO's usual policy head starts at 0.01
    module[4].bias.data.fill_(1.0)
    roles = assign_roles(module, torch.randn(8, 6))
    assert roles == {"0": "hidden", "2": "hidden", "4": "output"}


def test_tied_weights_are_one_group_and_follow_their_use_as_output() -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    module[4].weight = module[0].weight
    normalize(module, torch.randn(8, 16))
    assert list(weight_groups(module)) == ["0", "2"]
    assert (module[0].nap_role, module[2].nap_role) == ("output", "invariant")


def test_tied_embedding_of_a_transformer_is_an_output(transformer: Callable[..., nn.Module]) -> None:
    module = transformer(tied=True)
    normalize(module, torch.randint(0, 11, (4, 8)))
    assert module.head.nap_role == "output"  # type: ignore[union-attr]


def test_free_modules_are_left_as_they_are(build: Build) -> None:
    module, x = build("transformer")
    free = ["blocks.0", "blocks.1.down"]
    text = repr(module.get_submodule("blocks.0"))
    normalize(module, x, free=free)
    assert repr(module.get_submodule("blocks.0")) == text
    assert module.get_submodule("blocks.0.up").nap_role == "free"
    assert module.get_submodule("blocks.1.down").nap_role == "free"
    assert module.get_submodule("blocks.1.up").nap_role == "invariant"


def test_half_precision_modules_are_judged_rightly() -> None:
    module = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    x = torch.randn(8, 16)
    normalize(module.bfloat16(), x.bfloat16())
    assert module[1].norm.weight.dtype == torch.bfloat16
    assert [module[n].nap_role for n in (0, 2, 4)] == ["invariant", "invariant", "output"]
