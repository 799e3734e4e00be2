"""Operators read memory by the shapes that they are given: what does not fit is refused, and nothing is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nap_rl.native import library
from nap_rl.native.convolution import convolution, convolution_input_gradient, convolution_weight_gradient
from nap_rl.native.products import few_rows, has_product, input_gradient, product, weight_gradient

pytestmark = pytest.mark.skipif(
    library() is None or not has_product(32, 8, torch.float32), reason="needs a C++ compiler and AVX-512"
)
floats = torch.zeros


def images(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "call",
    [
        lambda: product(floats(4, 64), floats(8, 32)),
        lambda: product(floats(4, 32), floats(9, 32)),
        lambda: product(floats(4, 32).bfloat16(), floats(8, 32)),
        lambda: product(floats(4, 32).double(), floats(8, 32).double()),
        lambda: few_rows(floats(4, 64), floats(8, 32)),
        lambda: few_rows(floats(4, 32).bfloat16(), floats(8, 32).bfloat16()),
        lambda: input_gradient(floats(4, 16), floats(8, 32)),
        lambda: weight_gradient(floats(4, 8), floats(5, 32)),
        lambda: convolution(images(2, 32, 8, 8), floats(32, 64, 4, 4), 2, torch.float32),
        lambda: convolution(images(2, 32, 8, 8), floats(32, 32, 5, 5), 2, torch.float32),
        lambda: convolution(images(2, 32, 8, 8), floats(32, 32, 4, 4).double(), 2, torch.float32),
        lambda: convolution_input_gradient(images(2, 32, 3, 3), floats(32, 32, 4, 4), 10, 8, 2),
        lambda: convolution_weight_gradient(images(2, 32, 3, 3), images(3, 32, 8, 8), 4, 2),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="no native|no product|no gradient|expected"):
        call()
