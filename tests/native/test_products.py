"""Products of a large layer with a small batch, against double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nap_rl.native.products import has_product, input_gradient, product, weight_gradient

pytestmark = pytest.mark.skipif(not has_product(32, 8, torch.float32), reason="needs a C++ compiler and AVX-512")
PRECISIONS = [torch.float32, torch.bfloat16]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", PRECISIONS)
@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), blocks_in=st.integers(1, 6), blocks_out=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_products_of_every_shape_are_those_of_double_precision(
    dtype: torch.dtype, rows: int, blocks_in: int, blocks_out: int, seed: int
) -> None:
    n_in, n_out = 32 * blocks_in, 8 * blocks_out
    if not has_product(n_in, n_out, dtype):
        pytest.skip("this CPU does not multiply bfloat16")
    x, weight = normal(rows, n_in, seed=seed).to(dtype), normal(n_out, n_in, seed=seed + 1).to(dtype)
    dy = normal(rows, n_out, seed=seed + 2).to(dtype)
    for found, exact in (
        (product(x, weight), x.double() @ weight.double().t()),
        (input_gradient(dy, weight), dy.double() @ weight.double()),
        (weight_gradient(dy, x), dy.double().t() @ x.double()),
    ):
        # A product in bfloat16 is rounded at its end.
        rounding = 2**-8 if found.dtype is torch.bfloat16 else 0.0
        torch.testing.assert_close(found.double(), exact, rtol=rounding, atol=1e-3)
    assert weight_gradient(dy, x).dtype is torch.float32


def test_products_take_any_layout() -> None:
    x, weight, dy = normal(64, 5, seed=0).t(), normal(64, 16, seed=1).t(), normal(16, 5, seed=2).t()
    torch.testing.assert_close(product(x, weight), x @ weight.t(), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(input_gradient(dy, weight), dy @ weight, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(weight_gradient(dy, x), dy.t() @ x, rtol=0.0, atol=1e-4)


def test_any_count_of_threads_gives_the_same_bits() -> None:
    x, weight, dy = normal(33, 96, seed=0), normal(40, 96, seed=1), normal(33, 40, seed=2)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((product(x, weight), input_gradient(dy, weight), weight_gradient(dy, x)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_layers_that_do_not_fit_are_known() -> None:
    assert has_product(3136, 512, torch.float32)
    assert not has_product(3137, 512, torch.float32)
    assert not has_product(3136, 511, torch.float32)
    assert not has_product(3136, 512, torch.float16)
