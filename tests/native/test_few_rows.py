"""Products of few rows against double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_rl.native import library
from nap_rl.native.products import few_rows

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 20), n_in=st.integers(1, 100), n_out=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_products_of_every_shape_are_those_of_double_precision(rows: int, n_in: int, n_out: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, n_in, generator=generator), torch.randn(n_out, n_in, generator=generator)
    exact = x.double() @ weight.double().t()
    torch.testing.assert_close(few_rows(x, weight).double(), exact, rtol=0.0, atol=1e-5 * n_in**0.5 * 4)
    transposed = torch.randn(n_in, rows, generator=generator).t()
    torch.testing.assert_close(
        few_rows(transposed, weight).double(),
        transposed.double() @ weight.double().t(),
        rtol=0.0,
        atol=4e-5 * n_in**0.5,
    )
