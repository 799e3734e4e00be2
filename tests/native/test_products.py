"""Products of a large layer with a small batch, against double precision; and who takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from nap_rl.native.products import (
    convolution_weight_gradient,
    has_product,
    input_gradient,
    product,
    weight_gradient,
)
from nap_rl.nn import NoisyLinear
from nap_rl.nn.conv import Conv2d
from nap_rl.nn.linear import Linear

pytestmark = pytest.mark.skipif(not has_product(32, 8, torch.float32), reason="needs a C++ compiler and AVX-512")
PRECISIONS = [torch.float32, torch.bfloat16]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), blocks_in=st.integers(1, 6), blocks_out=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_products_of_every_shape_are_those_of_double_precision(
    rows: int, blocks_in: int, blocks_out: int, seed: int
) -> None:
    x, weight = normal(rows, 32 * blocks_in, seed=seed), normal(8 * blocks_out, 32 * blocks_in, seed=seed + 1)
    torch.testing.assert_close(product(x, weight).double(), x.double() @ weight.double().t(), rtol=0.0, atol=1e-3)
    dy = normal(rows, len(weight), seed=seed + 2)
    torch.testing.assert_close(input_gradient(dy, weight).double(), dy.double() @ weight.double(), rtol=0.0, atol=1e-3)
    for dtype in PRECISIONS:
        if has_product(x.shape[1], len(weight), dtype):
            dy, cast = dy.to(dtype), x.to(dtype)
            found = weight_gradient(dy, cast)
            assert found.dtype is torch.float32
            torch.testing.assert_close(found.double(), dy.double().t() @ cast.double(), rtol=0.0, atol=1e-3)


def test_products_take_any_layout() -> None:
    x, weight, dy = normal(64, 5, seed=0).t(), normal(64, 16, seed=1).t(), normal(16, 5, seed=2).t()
    torch.testing.assert_close(product(x, weight), x @ weight.t(), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(input_gradient(dy, weight), dy @ weight, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(weight_gradient(dy, x), dy.t() @ x, rtol=0.0, atol=1e-4)


def test_any_count_of_threads_gives_the_same_bits() -> None:
    x, weight, dy = normal(33, 96, seed=0), normal(40, 96, seed=1), normal(33, 40, seed=2)
    pixels, pixels_dy = normal(7, 4, 20, 20, seed=3), normal(7, 8, 4, 4, seed=4)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            convolution = convolution_weight_gradient(pixels_dy, pixels, kernel=8, stride=4)
            results.append((product(x, weight), input_gradient(dy, weight), weight_gradient(dy, x), convolution))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@settings(max_examples=30, deadline=None)
@given(
    images=st.integers(1, 19),
    shape=st.sampled_from([(4, 8, 4), (32, 4, 2), (32, 3, 1), (16, 2, 2), (64, 1, 1)]),  # channels, kernel, stride
    blocks_out=st.integers(1, 3),
    size=st.tuples(st.integers(8, 13), st.integers(8, 13)),
    seed=st.integers(0, 2**16),
)
def test_gradients_of_convolutions_are_those_of_double_precision(
    images: int, shape: tuple[int, int, int], blocks_out: int, size: tuple[int, int], seed: int
) -> None:
    channels, kernel, stride = shape
    x, weight = normal(images, channels, *size, seed=seed), torch.zeros(8 * blocks_out, channels, kernel, kernel)
    out = F.conv2d(x, weight, stride=stride).shape
    for dtype in PRECISIONS:
        if has_product(kernel * channels, len(weight), dtype):
            dy, cast = normal(*out, seed=seed + 1).to(dtype), x.to(dtype)
            exact = conv2d_weight(cast.double(), weight.shape, dy.double(), stride=stride)
            for layout in (torch.channels_last, torch.contiguous_format):
                laid = [t.contiguous(memory_format=layout) for t in (dy, cast)]
                found = convolution_weight_gradient(*laid, kernel, stride)
                assert found.dtype is torch.float32
                torch.testing.assert_close(found.double(), exact, rtol=0.0, atol=2e-3)


def test_layers_that_do_not_fit_are_known() -> None:
    assert has_product(3136, 512, torch.float32)
    assert not has_product(3137, 512, torch.float32)
    assert not has_product(3136, 511, torch.float32)
    assert not has_product(3136, 512, torch.float16)
    assert has_product(8 * 4, 32, torch.float32)
    assert not has_product(5 * 4, 32, torch.float32)


Function = Callable[[Tensor], Tensor]


def gradients(function: Function, x: Tensor, dy: Tensor, layer: nn.Module) -> tuple[list[Tensor], set[str]]:
    """The output, its gradients to x and to what `layer` learns; and which native operators ran."""
    with torch.profiler.profile() as profile:
        y = function(x)
        found = [y.detach(), *torch.autograd.grad((y.float() * dy).sum(), [x, *layer.parameters()])]
    return found, {event.key for event in profile.key_averages() if event.key.startswith("nap_rl::")}


def check_layer(layer: nn.Module, run: Function, x: Tensor, dy: Tensor, precision: torch.dtype) -> set[str]:
    """Compiled with native code `layer` gives what it gives without; the operators that it took for that."""

    def in_precision(x: Tensor) -> Tensor:
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            return run(x)

    plain, none = gradients(in_precision, x, dy, layer)
    layer.native_code = True  # type: ignore[assignment]
    torch._dynamo.reset()
    compiled, taken = gradients(torch.compile(in_precision, backend="aot_eager", fullgraph=True), x, dy, layer)
    _, uncompiled = gradients(in_precision, x, dy, layer)
    assert none == uncompiled == set()
    for a, b in zip(compiled, plain, strict=True):
        assert a.dtype is b.dtype
        bound = 1e-5 if precision is torch.float32 else 3e-2
        torch.testing.assert_close(a, b, rtol=0.0, atol=bound * float(b.abs().max()))
    return taken


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", [Linear, NoisyLinear])
def test_linear_layers_take_them_in_compiled_graphs_alone(
    kind: type[Linear] | type[NoisyLinear], precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer, noise = kind(1024, 512), (torch.randn(1024), torch.randn(512))
    x, dy = torch.randn(20, 1024, requires_grad=True), torch.randn(20, 512)
    run = partial(layer, noise=noise) if isinstance(layer, NoisyLinear) else layer
    taken = check_layer(layer, run, x, dy, precision)
    if not has_product(1024, 512, precision):
        assert taken == set()
    elif precision is torch.float32:
        assert taken == {"nap_rl::product", "nap_rl::input_gradient", "nap_rl::weight_gradient"}
    else:
        assert taken == {"nap_rl::weight_gradient"}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolutions_take_them_in_compiled_graphs_alone(precision: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    layer = Conv2d(4, 32, kernel=8, stride=4)
    if not bias:
        layer.register_parameter("bias", None)
    x, dy = torch.randn(5, 4, 20, 24, requires_grad=True), torch.randn(5, 32, 4, 5)
    taken = check_layer(layer, layer, x, dy, precision)
    known = has_product(8 * 4, 32, precision)
    assert taken == ({"nap_rl::convolution_weight_gradient"} if known else set())
