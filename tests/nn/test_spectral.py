"""Spectral normalisation and adaptive max pooling of IMPALA's torso, each against a plain computation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from nap_rl.nap import Projector, normalize, scale_invariance
from nap_rl.nn import ImpalaTorso, NetworkSpec, SpectralConv2d, iterate_spectral_norms


def pair(seed: int = 0) -> tuple[SpectralConv2d, nn.Conv2d]:
    """A convolution of ours and torch's with the same weights and singular vectors."""
    torch.manual_seed(seed)
    ours = SpectralConv2d(3, 6, kernel_size=3, padding=1)
    plain = nn.Conv2d(3, 6, kernel_size=3, padding=1)
    plain.load_state_dict({"weight": ours.weight, "bias": ours.bias})
    theirs = spectral_norm(plain)
    theirs.parametrizations.weight[0]._u.copy_(ours.left)  # type: ignore[index, union-attr, operator]
    theirs.parametrizations.weight[0]._v.copy_(ours.right)  # type: ignore[index, union-attr, operator]
    return ours, theirs


def test_a_pass_and_its_gradients_are_those_of_torchs_parametrisation() -> None:
    ours, theirs = pair()
    x = torch.randn(2, 3, 5, 5)
    theirs.eval()
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    (ours(x) ** 3).sum().backward()
    (theirs(x) ** 3).sum().backward()
    original = theirs.parametrizations.weight.original  # type: ignore[union-attr]
    assert ours.weight.grad is not None and original.grad is not None  # type: ignore[union-attr]
    assert torch.allclose(ours.weight.grad, original.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr, arg-type]


def test_it_learns_as_torchs_parametrisation_does_with_a_pass_an_update() -> None:
    ours, theirs = pair()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (ours, theirs)]
    ours.iterate()  # torch's does so in its first pass
    for step in range(20):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        outputs = [ours(x), theirs(x)]
        assert torch.allclose(*outputs, rtol=1e-3, atol=1e-4), step
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
        ours.iterate()


def test_sigma_is_the_largest_singular_value_and_follows_the_weight() -> None:
    torch.manual_seed(1)
    layer = SpectralConv2d(4, 8, kernel_size=3)
    for _ in range(2):
        layer.iterate(300)
        largest = np.linalg.svd(layer.weight.detach().flatten(1).numpy(), compute_uv=False)[0]
        assert float(layer.sigma().detach()) == pytest.approx(largest, rel=1e-4)
        nn.init.normal_(layer.weight)


def test_a_pass_moves_nothing_and_only_the_weights_learn() -> None:
    layer = SpectralConv2d(2, 3, kernel_size=3)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.train()(torch.randn(1, 2, 4, 4)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


def test_copies_state_and_bfloat16_keep_it() -> None:
    layer, x = SpectralConv2d(3, 4, kernel_size=3), torch.randn(2, 3, 6, 6)
    again = copy.deepcopy(layer)
    iterate_spectral_norms(again, 7)
    assert not torch.equal(again.left, layer.left)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    low = again.to(torch.bfloat16)(x.bfloat16())
    assert low.dtype is torch.bfloat16 and torch.allclose(low.float(), layer(x), atol=0.05)


@pytest.mark.parametrize("sizes", [(84, 84), (50, 60), (10, 10)])
def test_the_last_images_are_pooled_to_one_size_by_plain_maxima(sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pooled, plain = ImpalaTorso(2, max_pool=3), ImpalaTorso(2)
    plain.load_state_dict(pooled.state_dict())
    x = torch.rand(2, 2, *sizes)
    images = nn.Sequential(*list(plain)[:-1])(x).detach().numpy()  # [B, 32, H, W]
    height, width = images.shape[2:]
    expected = np.zeros((2, 32, 3, 3), dtype=np.float32)
    for i in range(3):
        for j in range(3):  # windows floor(i H / 3) .. ceil((i + 1) H / 3)
            rows = slice(i * height // 3, -(-(i + 1) * height // 3))
            columns = slice(j * width // 3, -(-(j + 1) * width // 3))
            expected[:, :, i, j] = images[:, :, rows, columns].max(axis=(2, 3))
    assert np.array_equal(pooled(x).detach().numpy(), expected.reshape(2, -1))


def test_width_multiplies_channels_and_spectral_norms_are_in_the_branches_alone() -> None:
    torso = ImpalaTorso(4, width=2, max_pool=6, spectral_norm=True)
    convolutions = [layer for layer in torso.modules() if isinstance(layer, nn.Conv2d)]
    branches = [type(layer) is SpectralConv2d for layer in convolutions]
    assert [layer.out_channels for layer in convolutions] == [32] * 5 + [64] * 10
    assert branches == ([False] + [True] * 4) * 3
    spec = NetworkSpec(torso="impala", width=2, max_pool=6, spectral_norm=True, hidden=8)
    assert spec.shapes((84, 84), 4, 3)["streams.advantage.hidden.weight_mu"] == (8, 64 * 6 * 6)
    assert NetworkSpec.from_plain(spec.plain()) == spec
    older = {name: value for name, value in NetworkSpec(torso="impala").plain().items() if name not in ADDED}
    assert NetworkSpec.from_plain(older) == NetworkSpec(torso="impala")


ADDED = ("width", "max_pool", "spectral_norm", "priority", "activation")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"torso": "nature", "width": 2}, "width=2 is for torso='impala', and torso='nature'"),
        ({"torso": "mlp", "spectral_norm": True}, "spectral_norm=True is for torso='impala'"),
        ({"torso": "impala", "width": 0}, "a layer of 0 units"),
        ({"torso": "impala", "priority": "size"}, "priority='size' is none of loss, td_error"),
    ],
)
def test_other_values_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NetworkSpec(**values)  # type: ignore[arg-type]


def test_nap_projects_the_weight_that_a_spectral_norm_divides() -> None:
    """The rule: W / sigma(W) has no scale, so W needs no norm behind it, and the projection holds ||W||."""
    torch.manual_seed(0)
    spec = NetworkSpec(torso="impala", spectral_norm=True, hidden=8, dueling=False, noisy_sigma0=None, norm="layer")
    network = spec.build((12, 12), 1, 2)
    example = spec.example_input((12, 12), 1)
    network = normalize(network, example, **spec.norms)  # type: ignore[assignment]
    layers = {name: each for name, each in network.named_modules() if isinstance(each, SpectralConv2d)}
    assert len(layers) == 12 and all(each.nap_role == "invariant" for each in layers.values())
    assert not any(hasattr(each, "nap_norm") for each in layers.values())
    changes = scale_invariance(network, example)
    assert all(changes[name] < 1e-6 for name in layers)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    norms = {name: float(layer.weight.detach().norm()) for name, layer in layers.items()}
    directions = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    projector = Projector(network, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        network(example).square().mean().backward()
        optimizer.step()
        iterate_spectral_norms(network, 50)
    assert set(layers) <= set(projector.groups)
    for name, layer in layers.items():
        assert float(layer.weight.detach().norm()) == pytest.approx(norms[name], rel=1e-5)
        assert cosine(layer.weight, directions[name]) < 0.9999
        largest = float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2))
        assert float(layer.sigma().detach()) == pytest.approx(largest, rel=1e-2)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.detach().flatten(), b.flatten(), dim=0))
