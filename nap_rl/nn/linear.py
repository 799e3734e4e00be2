"""Linear layers whose products are taken in the order that is fast for a small batch on the CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.native import Factors
from nap_rl.native.products import few_rows, has_product, input_gradient, product, weight_gradient

FEW, LARGE = 16, 1 << 18
"""Rows and elements of a weight for which native code is faster: acting in a few environments, with a hidden layer."""


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    native_code = False

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_features] -> [B, out_features]."""
        return linear(x, self.weight, self.bias, self.native_code)


def leaves_factors(weight: Tensor, rows: int, dtype: torch.dtype) -> bool:
    """Whether `linear` with `native_code` can leave the factors of its gradient, of so many rows, in this type."""
    n_out, n_in = weight.shape
    large = rows < n_out and n_out * n_in >= LARGE
    return weight.device.type == "cpu" and large and n_out % 16 == 0 and has_product(n_in, n_out, dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    native_code: bool = False,
    factors: Factors | None = None,
) -> Tensor:
    """F.linear: x [B, in], weight [out, in], bias [out] -> [B, out].

    On the CPU and in float32, for a batch smaller than the layer, y^T = W x^T and dx^T = W^T dy^T stand for y = x W^T
    and dx = dy W: the same numbers up to rounding. Two threads share a product better by the rows of W, of which there
    are many, than by those of a batch: with 32 rows and a weight of 512 x 3136 the output takes 0.7 ms for 1.0, its
    gradient to x 0.8 for 1.4 (two cores of a Zen 4; nothing is won in bfloat16). Elsewhere it is F.linear itself.

    Args:
        native_code: large weights by `nap_rl.native`, in two cases: few rows in inference mode, which is how an agent
            acts, and in compiled graphs, which is how it learns (also under autocast).
        factors: get their `.grad` in the backward pass, and the weight none. For what `leaves_factors`.
    """
    device = x.device.type
    if device != "cpu" or x.dim() != 2 or len(x) >= len(weight):
        return F.linear(x, weight, bias)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    native_code = native_code and weight.numel() >= LARGE
    # A graph would break where it is asked for inference mode, but not where it is asked for gradients.
    compiling = torch.compiler.is_compiling()
    acting = not torch.is_grad_enabled() if compiling else torch.is_inference_mode_enabled()
    y: Tensor
    if native_code and acting and len(x) <= FEW and dtype is torch.float32:
        y = few_rows(x, weight)
    elif native_code and (compiling or factors is not None) and has_product(weight.shape[1], weight.shape[0], dtype):
        y = _NativeProduct.apply(x.to(dtype), weight, *(factors or (None, None)))  # type: ignore[no-untyped-call]
    elif dtype is not torch.float32:
        return F.linear(x, weight, bias)
    else:
        y = (_Product if compiling else _UncompiledProduct).apply(x, weight).t()  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias.to(y.dtype)


class _NativeProduct(torch.autograd.Function):
    """x W^T, [B, out], in the type of x, for compiled graphs; the gradient to W is float32, as W is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dy: Tensor | None, factor: Tensor | None) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        ctx.in_factors = dy is not None
        return product(x, cast)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = input_gradient(dy, weight)
        return (dx, None, dy, x) if ctx.in_factors else (dx, weight_gradient(dy, x), None, None)


class _Product(torch.autograd.Function):
    """W x^T, [out, B], with W the first factor also of the gradient to x."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(weight, x.t())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return torch.mm(weight.t(), dy).t(), torch.mm(dy, x)


class _UncompiledProduct(torch.autograd.Function):
    """The same for torch.func's transforms too: torch.compile traces no function that has a forward mode."""

    generate_vmap_rule = True
    forward, backward = staticmethod(_Product.forward), staticmethod(_Product.backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, weight_tangent: Tensor) -> Tensor:
        x, weight = ctx.saved_tensors
        return torch.mm(weight, x_tangent.t()) + torch.mm(weight_tangent, x.t())
