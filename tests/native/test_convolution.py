"""Convolutions by Winograd's algorithm, against double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from nap_rl.native.convolution import (
    convolution,
    convolution_input_gradient,
    convolution_weight_gradient,
    has_convolution,
)

PRECISIONS = [torch.float32, torch.bfloat16]
SHAPES = [(4, 8, 4), (32, 4, 2), (32, 3, 1), (16, 2, 2), (64, 1, 1), (32, 2, 1), (16, 6, 2), (4, 12, 4)]  # C, k, s
pytestmark = pytest.mark.skipif(
    not has_convolution(32, 32, 3, 1, torch.float32), reason="needs a C++ compiler and AVX-512"
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(found: Tensor, exact: Tensor, dtype: torch.dtype, strides: int = 2) -> None:
    """Errors, over what elements are on average: of each, and on their own average; for a kernel of so many strides."""
    assert found.shape == exact.shape
    scale = float(exact.square().mean().sqrt())
    error = (found.double() - exact) / scale
    worst, typical = 6e-2, 1e-2
    if dtype is torch.float32:
        worst, typical = (1e-4, 5e-6) if strides == 3 else (2e-5, 2e-6)
    assert float(error.abs().max()) < worst and float(error.square().mean().sqrt()) < typical


@pytest.mark.parametrize("dtype", PRECISIONS)
@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 19),
    shape=st.sampled_from(SHAPES),
    blocks_out=st.integers(1, 3),
    size=st.tuples(st.integers(12, 17), st.integers(12, 17)),
    last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_convolutions_and_their_gradients_are_those_of_double_precision(
    dtype: torch.dtype,
    images: int,
    shape: tuple[int, int, int],
    blocks_out: int,
    size: tuple[int, int],
    last: bool,
    seed: int,
) -> None:
    (channels, kernel, stride), outputs = shape, 32 * blocks_out
    if not has_convolution(channels, outputs, kernel, stride, dtype):
        pytest.skip("this CPU does not multiply bfloat16")
    x, weight = normal(images, channels, *size, seed=seed).to(dtype), normal(outputs, channels, kernel, kernel, seed=1)
    exact = F.conv2d(x.double(), weight.double(), stride=stride)
    dy = normal(*exact.shape, seed=seed + 1).to(dtype)
    if last:
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    y, dx = convolution(x, weight, stride, dtype), convolution_input_gradient(dy, weight, *size, stride)
    dw = convolution_weight_gradient(dy, x, kernel, stride)
    assert y.dtype is dx.dtype is dtype and dw.dtype is torch.float32
    assert all(t.permute(0, 2, 3, 1).is_contiguous() for t in (y, dx))
    check(y, exact, dtype, kernel // stride)
    check(dx, conv2d_input(x.shape, weight.double(), dy.double(), stride=stride), dtype, kernel // stride)
    exact = conv2d_weight(x.double(), weight.shape, dy.double(), stride=stride)
    check(dw, exact, dtype, kernel // stride)
    if dtype is torch.float32:
        torch.testing.assert_close(dw.double(), exact, rtol=0.0, atol=2e-3)


@pytest.mark.parametrize("dtype", PRECISIONS)
@settings(max_examples=20, deadline=None)
@given(
    images=st.integers(1, 9),
    shape=st.sampled_from([(4, 8, 4), (1, 8, 8), (2, 16, 8), (3, 16, 16), (4, 12, 4), (4, 4, 4)]),
    seed=st.integers(0, 2**16),
)
def test_pixels_are_read_as_they_are(dtype: torch.dtype, images: int, shape: tuple[int, int, int], seed: int) -> None:
    channels, kernel, stride = shape
    if not has_convolution(channels, 32, kernel, stride, dtype, pixels=True):
        assert dtype is torch.bfloat16 or stride * channels % 16 != 0
        return
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, channels, 34, 37), dtype=torch.uint8, generator=generator)
    x, weight = pixels.double() / 255, normal(32, channels, kernel, kernel, seed=1)
    exact = F.conv2d(x, weight.double(), stride=stride)
    dy = normal(*exact.shape, seed=seed + 1).to(dtype)
    check(convolution(pixels, weight, stride, dtype), exact, dtype, kernel // stride)
    dw = convolution_weight_gradient(dy, pixels, kernel, stride)
    check(dw, conv2d_weight(x, weight.shape, dy.double(), stride=stride), dtype, kernel // stride)


@pytest.mark.parametrize("shape", [(4, 8, 4), (32, 4, 2), (16, 2, 2)])
def test_sums_of_small_integers_are_exact(shape: tuple[int, int, int]) -> None:
    channels, kernel, stride = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (5, channels, 16, 16), generator=generator).float()
    weight = 4.0 * torch.randint(-8, 9, (32, channels, kernel, kernel), generator=generator).float()
    y = F.conv2d(x, weight, stride=stride)
    dy = torch.randint(-8, 9, y.shape, generator=generator).float()
    assert torch.equal(convolution(x, weight, stride, torch.float32), y)
    dx = convolution_input_gradient(dy, weight, 16, 16, stride)
    assert torch.equal(dx, conv2d_input(x.shape, weight, dy, stride=stride))
    dw = convolution_weight_gradient(dy, x, kernel, stride)
    assert torch.equal(dw, conv2d_weight(x, weight.shape, dy, stride=stride))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(4, 8, 4), (32, 3, 1)])
def test_any_count_of_threads_gives_the_same_bits(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    channels, kernel, stride = shape
    if not has_convolution(channels, 64, kernel, stride, dtype):
        pytest.skip("this CPU does not multiply bfloat16")
    x, weight = normal(7, channels, 21, 22, seed=0).to(dtype), normal(64, channels, kernel, kernel, seed=1)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            y = convolution(x, weight, stride, dtype)
            dx = convolution_input_gradient(y, weight, 21, 22, stride)
            results.append((y, dx, convolution_weight_gradient(y, x, kernel, stride)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_a_number_that_is_none_stays_in_its_image() -> None:
    x, weight = normal(6, 32, 9, 9, seed=0), normal(64, 32, 3, 3, seed=1)
    dy = normal(6, 64, 7, 7, seed=2)
    x[2, 3, 4, 4], dy[4, 5, 3, 3] = float("nan"), float("inf")
    y, dx = convolution(x, weight, 1, torch.float32), convolution_input_gradient(dy, weight, 9, 9, 1)
    for found, broken in ((y, 2), (dx, 4)):
        finite = found.isfinite().flatten(1).all(dim=1)
        assert finite.tolist() == [image != broken for image in range(6)]
    assert not convolution_weight_gradient(dy, x, 3, 1).isfinite().all()


def test_layers_that_do_not_fit_are_known() -> None:
    assert all(has_convolution(channels, 32, kernel, stride, torch.float32) for channels, kernel, stride in SHAPES)
    assert not has_convolution(4, 32, 5, 5, torch.float32)  # a line of a block: 20 numbers
    assert not has_convolution(32, 48, 3, 1, torch.float32)
    assert not has_convolution(32, 32, 5, 2, torch.float32)
    assert not has_convolution(32, 32, 8, 2, torch.float32)
    assert not has_convolution(32, 32, 3, 1, torch.float16)
    assert has_convolution(4, 32, 8, 4, torch.float32, pixels=True)
    assert not has_convolution(32, 32, 4, 2, torch.float32, pixels=True)
