"""A norm and its ReLU, native, against torch in double precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nap_rl.nap import normalize
from nap_rl.nap.normalized import Normalized
from nap_rl.native.norm import has_norm_relu, norm_relu, norm_relu_gradient

PRECISIONS = [torch.float32, torch.bfloat16]
pytestmark = pytest.mark.skipif(not has_norm_relu(32, torch.bfloat16), reason="needs AVX-512 with bfloat16")


def images(shape: tuple[int, ...], precision: torch.dtype, seed: int, mean: float = 0.0) -> Tensor:
    found = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return found.to(precision).contiguous(memory_format=torch.channels_last)


def affine(channels: int, seed: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, generator=generator) + 1.0, torch.randn(channels, generator=generator)


def all_of(x: Tensor, gain: Tensor, offset: Tensor, dy: Tensor) -> list[Tensor]:
    y, statistics = norm_relu(x, gain, offset, 1e-5)
    return [y, *norm_relu_gradient(dy, x, gain, offset, statistics)]


def exact(x: Tensor, gain: Tensor, offset: Tensor, dy: Tensor) -> list[Tensor]:
    of = [tensor.double().requires_grad_() for tensor in (x, gain, offset)]
    y = F.relu(F.group_norm(of[0], 1, of[1], of[2], 1e-5))
    return [y.detach(), *torch.autograd.grad((y * dy.double()).sum(), of)]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 5), st.sampled_from([32, 64, 96]), st.integers(1, 9), st.integers(1, 9),
    st.sampled_from(PRECISIONS), st.sampled_from([0.0, 3.0]), st.integers(0, 99),
)  # fmt: skip
def test_outputs_and_gradients_are_exact_to_rounding(
    count: int, channels: int, height: int, width: int, precision: torch.dtype, mean: float, seed: int
) -> None:
    shape = (count, channels, height, width)
    x, dy = images(shape, precision, seed, mean), images(shape, precision, seed + 1)
    gain, offset = affine(channels)
    for mine, right in zip(all_of(x, gain, offset, dy), exact(x, gain, offset, dy), strict=True):
        assert mine.shape == right.shape
        # Rounded once, at the end, but for sums, which are float32.
        bound = 4e-3 if mine.dtype is torch.bfloat16 else 1e-5
        near = (mine.double() - right).abs() <= bound * (right.abs() + right.abs().max() / 16)
        flipped = right.abs() < 1e-5  # a ReLU opens at zero, where rounding decides
        assert bool((near | flipped).all())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_count_of_threads_gives_the_same_bits(precision: torch.dtype) -> None:
    x, dy, (gain, offset) = images((7, 32, 9, 9), precision, 0), images((7, 32, 9, 9), precision, 1), affine(32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(all_of(x, gain, offset, dy))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_is_not_lost_and_stays_in_its_image(precision: torch.dtype) -> None:
    x, dy, (gain, offset) = images((3, 32, 4, 4), precision, 0), images((3, 32, 4, 4), precision, 1), affine(32)
    x[1, 0, 0, 0] = float("nan")
    y, dx, dgain, _ = all_of(x, gain, offset, dy)
    for each in (y, dx):
        assert each.isnan().flatten(1).all(dim=1).tolist() == [False, True, False]
        assert each.isnan().flatten(1).any(dim=1).tolist() == [False, True, False]
    assert bool(dgain.isnan().any())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_compiled_network_gives_what_it_gives_without(
    check_layer: Callable[..., set[str]], precision: torch.dtype
) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU())
    module = normalize(plain, torch.randn(2, 3, 9, 9))
    assert sum(isinstance(layer, Normalized) for layer in module.modules()) == 2
    x = torch.randn(4, 3, 9, 9, requires_grad=True)
    dy = torch.randn(4, 64, 5, 5)
    taken = check_layer(module, module, x, dy, precision)
    assert taken == {"nap_rl::norm_relu", "nap_rl::norm_relu_gradient"}


@pytest.mark.parametrize(
    "other",
    [
        Normalized(nn.GroupNorm(2, 32), nn.ReLU()),
        Normalized(nn.GroupNorm(1, 32, affine=False), nn.ReLU()),
        Normalized(nn.GroupNorm(1, 32), nn.LeakyReLU()),
        Normalized(nn.GroupNorm(1, 48), nn.ReLU()),
    ],
    ids=["two groups", "no gain", "another activation", "channels that fill no register"],
)
def test_others_are_left_to_torch(check_layer: Callable[..., set[str]], other: Normalized) -> None:
    assert isinstance(other.norm, nn.GroupNorm)
    shape = (2, other.norm.num_channels, 4, 4)
    x, dy = images(shape, torch.float32, 0).requires_grad_(), images(shape, torch.float32, 1)
    assert check_layer(other, other, x, dy, torch.float32) == set()
