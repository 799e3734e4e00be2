"""Adam in one pass over the CPU's memory, with what an update wants beside it: norms, clipping, sigma's gradients."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nap_rl.native.build import library


class Outer(NamedTuple):
    """A gradient that is `of.grad * outer(rows, columns)`, and is never written to memory.

    So is that of a noisy layer's sigma: of w = mu + sigma * outer(eps_out, eps_in), where d loss / d mu = d loss / d w.
    """

    of: Tensor
    rows: Tensor  # [rows of `of`] float32
    columns: Tensor  # [columns of `of`] float32; both contiguous


class Adam(torch.optim.Adam):
    """torch.optim.Adam with the same state, whose step is one pass over float32 weights on the CPU.

    The pass sums the squares of the new weights too, so that a `Projector` need not read them for their norms.
    `library()` must not be None.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, eps: float) -> None:
        super().__init__(parameters, lr=lr, eps=eps, fused=True)
        self.outer: dict[Tensor, Outer] = {}
        """Parameters whose gradient is not in their `.grad`, but given so; for whoever computes gradients to set."""
        self.scale = 1.0
        """What the next steps multiply the gradients by: the factor of a clipping."""
        self.squares: dict[Tensor, float] = {}
        """Of each weight that the last step changed, the sum of its squares."""

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """Global norm of the gradients, those in `outer` included, before `scale`."""
        call = _Call(self._trained(), self.outer)
        assert (kernels := library()) is not None
        kernels.gradient_squares(*call.arguments)
        return math.sqrt(sum(call.squares))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all parameters that have a gradient. ValueError: a parameter is not contiguous float32."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        assert (kernels := library()) is not None
        self.squares = {}
        for group in self.param_groups:
            parameters = self._trained(group["params"])
            call = _Call(parameters, self.outer)
            states = [self._state_of(p) for p in parameters]
            beta1, beta2 = group["betas"]
            kernels.adam(
                *call.arguments,
                _pointers(parameters),
                *(_pointers([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq", "step")),
                *(ctypes.c_double(value) for value in (group["lr"], beta1, beta2)),
                *(ctypes.c_float(value) for value in (group["eps"], self.scale)),
            )
            self.squares.update(zip(parameters, call.squares, strict=True))
        return loss

    @torch.no_grad()
    def complete_gradients(self) -> None:
        """Put into every `.grad` what a step takes: those of `outer`, and all scaled. For whoever looks at them."""
        for parameter, (of, rows, columns) in self.outer.items():
            if of.grad is not None:
                parameter.grad = of.grad * torch.outer(rows, columns)
        if self.scale != 1.0:
            torch._foreach_mul_([p.grad for p in self._trained() if p.grad is not None], self.scale)
        self.outer, self.scale = {}, 1.0

    def _trained(self, parameters: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Those with a gradient, in order; of all groups unless told otherwise."""
        if parameters is None:
            parameters = [p for group in self.param_groups for p in group["params"]]
        return [p for p in parameters if p.grad is not None or (p in self.outer and self.outer[p].of.grad is not None)]

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class _Call:
    """The arguments that both kernels begin with, and the sums of squares that they fill in."""

    def __init__(self, parameters: Sequence[Tensor], outer: Mapping[Tensor, Outer]) -> None:
        factors = [outer.get(p) for p in parameters]
        gradients = [p.grad if f is None else f.of.grad for p, f in zip(parameters, factors, strict=True)]
        for p, gradient in zip(parameters, gradients, strict=True):
            assert gradient is not None
            if p.dtype is not torch.float32 or not p.is_contiguous() or not gradient.is_contiguous():
                raise ValueError(f"a weight {list(p.shape)} is {p.dtype}, expected contiguous float32 on the CPU")
        self.squares = (ctypes.c_double * len(parameters))()
        base = [-1] * len(parameters)
        if outer:
            index = {p: i for i, p in enumerate(parameters)}
            base = [-1 if f is None else index[f.of] for f in factors]
        self.arguments = (
            ctypes.c_int64(len(parameters)),
            _integers([p.numel() for p in parameters]),
            _integers([p.shape[1] if p.dim() == 2 else 1 for p in parameters]),
            _integers(base),
            _pointers(gradients),
            _pointers([None if f is None else f.rows for f in factors]),
            _pointers([None if f is None else f.columns for f in factors]),
            ctypes.c_int(torch.get_num_threads()),
            self.squares,
        )


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])
