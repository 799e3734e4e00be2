"""Products of few rows against double precision, and which layers use them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_rl.native import library
from nap_rl.native.products import few_rows
from nap_rl.nn import NoisyLinear
from nap_rl.nn import linear as module
from nap_rl.nn.linear import Linear

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


@pytest.mark.parametrize("kind", [Linear, NoisyLinear])
def test_layers_take_them_in_inference_mode_alone(
    kind: type[Linear] | type[NoisyLinear], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = kind(1024, 512)
    x, noise = torch.randn(8, 1024), (torch.randn(8, 1024), torch.randn(8, 512))
    arguments = (x, noise) if isinstance(layer, NoisyLinear) else (x,)
    plain = layer(*arguments)
    calls = []
    monkeypatch.setattr(module, "few_rows", lambda x, weight: calls.append(len(x)) or few_rows(x, weight))
    layer.native_code = True
    with torch.no_grad():
        layer(*arguments)
    assert not calls
    with torch.inference_mode():
        found = layer(*arguments)
        layer(torch.randn(17, 1024))
    assert calls == [8] * (2 if isinstance(layer, NoisyLinear) else 1)
    torch.testing.assert_close(found, plain.detach(), rtol=1e-4, atol=1e-4)
