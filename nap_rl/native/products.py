"""The products of `products.cpp` as torch operators, which compiled graphs can call. On the CPU, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from nap_rl.native.build import has, operator


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_product(n_in: int, n_out: int, dtype: torch.dtype) -> bool:
    """Whether this CPU has code for a layer of this size in this dtype. It takes AVX-512, for bfloat16 its BF16 too."""
    return has("has_product", n_in, n_out, dtype=dtype)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, in], weight [out, in], both float32 or both bfloat16 -> x weight^T [B, out]."""
    y: Tensor = torch.ops.nap_rl.product(x, weight)
    return y


def weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """dy [B, out], x [B, in], both float32 or both bfloat16 -> dy^T x [out, in] float32, summed in float32."""
    dw: Tensor = torch.ops.nap_rl.weight_gradient(dy, x)
    return dw


def few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """`product` in float32 on any CPU and for weights of any size; made for B up to 8."""
    y: Tensor = torch.ops.nap_rl.few_rows(x, weight)
    return y


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """dy [B, out], weight [out, in], both float32 or both bfloat16 -> dy weight [B, in]."""
    dx: Tensor = torch.ops.nap_rl.input_gradient(dy, weight)
    return dx


def _product_shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _input_gradient_shape(dy: Tensor, weight: Tensor) -> Tensor:
    return dy.new_empty(len(dy), weight.shape[1])


def _weight_gradient_shape(dy: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(dy.shape[1], x.shape[1], dtype=torch.float32)


operator("product", "(Tensor x, Tensor weight) -> Tensor", _product_shape)
operator("few_rows", "(Tensor x, Tensor weight) -> Tensor", _product_shape)
operator("input_gradient", "(Tensor dy, Tensor weight) -> Tensor", _input_gradient_shape)
operator("weight_gradient", "(Tensor dy, Tensor x) -> Tensor", _weight_gradient_shape)
