"""What `products.cpp` multiplies faster than torch, as torch operators that a compiled graph can call; on the CPU."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from nap_rl.native.build import call, library, operator, type_name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_product(n_in: int, n_out: int, dtype: torch.dtype) -> bool:
    """Whether there is code for a layer of this size, multiplied in this type, on this CPU (AVX-512, with bfloat16)."""
    return n_in % 32 == 0 and n_out % 8 == 0 and hasattr(library(), f"weight_gradient_{type_name(dtype)}")


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, in], weight [out, in], both float32 or both bfloat16 -> x weight^T [B, out]; without a gradient."""
    y: Tensor = torch.ops.nap_rl.product(x, weight)
    return y


def weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """dy [B, out], x [B, in], both float32 or both bfloat16 -> dy^T x [out, in] float32, summed in float32."""
    dw: Tensor = torch.ops.nap_rl.weight_gradient(dy, x)
    return dw


def few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """`product` in float32 for weights of any size; fastest for B of 8 or a little less."""
    y: Tensor = torch.ops.nap_rl.few_rows(x, weight)
    return y


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """dy [B, out], weight [out, in], both float32 or both bfloat16 -> dy weight [B, in]."""
    dx: Tensor = torch.ops.nap_rl.input_gradient(dy, weight)
    return dx


def _product_shape(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = x.new_empty(len(x), len(weight))
    return y


def _weight_gradient_shape(dy: Tensor, x: Tensor) -> Tensor:
    dw: Tensor = x.new_empty(dy.shape[1], x.shape[1], dtype=torch.float32)
    return dw


def _product(x: Tensor, weight: Tensor) -> Tensor:
    x, weight, y = x.contiguous(), weight.contiguous(), _product_shape(x, weight)
    call(*_checked("product", *weight.shape, weight.dtype, len(x), x.dtype), (x, weight, y))
    return y


def _few_rows(x: Tensor, weight: Tensor) -> Tensor:
    assert x.dtype is weight.dtype is torch.float32
    x, weight, y = x.contiguous(), weight.contiguous(), _product_shape(x, weight)
    call("few_rows", (len(x), x.shape[1], len(weight)), (x, weight, y))
    return y


def _input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    dy, weight, dx = dy.contiguous(), weight.contiguous(), _input_gradient_shape(dy, weight)
    call(*_checked("input_gradient", *weight.shape, weight.dtype, len(dy), dy.dtype), (dy, weight, dx))
    return dx


def _input_gradient_shape(dy: Tensor, weight: Tensor) -> Tensor:
    dx: Tensor = dy.new_empty(len(dy), weight.shape[1])
    return dx


def _weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    dy, x, dw = dy.contiguous(), x.contiguous(), _weight_gradient_shape(dy, x)
    call(*_checked("weight_gradient", *dw.shape, x.dtype, len(dy), dy.dtype), (dy, x, dw))
    return dw


@functools.cache
def _checked(
    name: str, n_out: int, n_in: int, dtype: torch.dtype, rows: int, of_rows: torch.dtype
) -> tuple[str, tuple[int, int, int]]:
    """The function's name and sizes. Of sizes that were seen before nothing is asked again, which takes as long."""
    assert of_rows is dtype and has_product(n_in, n_out, dtype)
    return f"{name}_{type_name(dtype)}", (rows, n_in, n_out)


operator("product", "(Tensor x, Tensor weight) -> Tensor", _product, _product_shape)
operator("few_rows", "(Tensor x, Tensor weight) -> Tensor", _few_rows, _product_shape)
operator("input_gradient", "(Tensor dy, Tensor weight) -> Tensor", _input_gradient, _input_gradient_shape)
operator("weight_gradient", "(Tensor dy, Tensor x) -> Tensor", _weight_gradient, _weight_gradient_shape)
