"""Clipping, Adam and the projection as one native call over float32 weights in the CPU's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nap_rl.native.build import kernels
from nap_rl.native.products import has_product


class Outer(NamedTuple):
    """A gradient that is `of.grad * outer(rows, columns)`, and is never written to memory.

    So is that of a noisy layer's sigma: of w = mu + sigma * outer(eps_out, eps_in), where d loss / d mu = d loss / d w.
    """

    of: Tensor
    rows: Tensor  # [rows of `of`] float32
    columns: Tensor  # [columns of `of`] float32; both contiguous


class Factors(NamedTuple):
    """A gradient dy^T x that is never written to memory: that of a layer x -> x w^T, where dy is its output's gradient.

    The two are the `.grad` of these tensors, where a backward pass leaves them (see `nap_rl.nn.linear.linear`). The
    tensors' own numbers nobody reads.
    """

    dy: Tensor  # [B, rows of w]
    x: Tensor  # [B, columns of w]; both bfloat16 or float32

    @classmethod
    def of(cls, weight: Tensor, batch: int, dtype: torch.dtype) -> Factors:
        """Of this weight's gradient, yet to be left there."""
        return cls(*(torch.empty(batch, n, dtype=dtype, requires_grad=True) for n in weight.shape))


class Groups(NamedTuple):
    """Weights that are scaled to a norm after the step: those of one group together."""

    of: Mapping[Tensor, int]  # the group of each weight that has one
    norms: Sequence[float]


NOTHING = Groups({}, ())
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
FIELDS = 15
"""Of a tensor in the table that `adam.cpp` reads: gradient, rows, columns, dy, x, weight, moments, size, length, base,
group, batch, bfloat16; the first five are written at each step, and the last two."""


class Adam(torch.optim.Adam):
    """torch.optim.Adam with the same state. `library()` must not be None.

    Args:
        parameters: one group of them, contiguous float32.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, eps: float) -> None:
        super().__init__(parameters, lr=lr, eps=eps, fused=True)
        self.outer: dict[Tensor, Outer] = {}
        """Parameters whose gradient is not in their `.grad`, but given so; for whoever computes gradients to set."""
        self.factors: dict[Tensor, Factors] = {}
        """Parameters whose gradient is given so."""
        self.max_norm: float | None = None
        """The global norm that a step clips the gradients to."""
        self.projected: Groups | None = None
        """What the next step is to project, None again once it has; a `Projector` says so before each."""
        self.gradient_norm = 0.0
        """The global norm of the last step's gradients, before clipping."""
        self._scale = 1.0
        self._layout: object = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """ValueError: it is the second one."""
        if self.param_groups:
            raise ValueError("the native Adam has one group of parameters: use torch.optim.Adam, or compile=off")
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim.Adam's."""
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all parameters that have a gradient. ValueError: one is not contiguous float32 on the CPU."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        factors = {p: (_given(found.dy), _given(found.x)) for p, found in self.factors.items()}
        outer = {p: found for p, found in self.outer.items() if found.of.grad is not None or found.of in factors}
        parameters = [p for p in group["params"] if p.grad is not None or p in outer or p in factors]
        if not parameters:
            return loss
        groups = self._take_projected(parameters)
        self._lay_out(parameters, outer, groups)
        self._write_gradients(parameters, outer, factors)
        beta1, beta2 = group["betas"]
        limit = float("inf") if self.max_norm is None else self.max_norm
        self.gradient_norm = norm = kernels().adam_update(
            ctypes.c_int64(len(parameters)),
            self._table,
            ctypes.c_int64(len(groups.norms)),
            self._norms,
            *map(ctypes.c_double, (group["lr"], beta1, beta2, group["eps"], limit)),
            ctypes.c_int(torch.get_num_threads()),
        )
        self._scale = 1.0 if self.max_norm is None or norm <= limit else limit / (norm + 1e-6)
        return loss

    def _lay_out(self, parameters: list[Tensor], outer: Mapping[Tensor, Outer], groups: Groups) -> None:
        """Write what stays as it is from step to step into the table, where it is not as it was."""
        states = [self._state_of(p) for p in parameters]
        places = [tensor.data_ptr() for tensor in parameters]
        moments = [state[name].data_ptr() for state in states for name in MOMENTS]
        pairs = [(id(p), id(found.of)) for p, found in outer.items()]
        layout = (list(map(id, parameters)), places, [p.stride() for p in parameters], moments, pairs, id(groups))
        if layout == self._layout:
            return
        row = {p: k for k, p in enumerate(parameters)}
        table: list[int] = []
        for k, p in enumerate(parameters):
            if p.dtype is not torch.float32 or not p.is_contiguous():
                raise ValueError(f"a weight {list(p.shape)} is {p.dtype}, expected contiguous float32 on the CPU")
            length = p.shape[1] if p.dim() == 2 else 1
            base = row[outer[p].of] if p in outer else -1
            sizes = (p.numel(), length, base, groups.of.get(p, -1))
            table += [0, 0, 0, 0, 0, places[k], *moments[3 * k : 3 * k + 3], *sizes, 0, 0]
        self._layout = layout
        self._laid_out = (parameters, groups)  # kept, so that nothing else gets an id of theirs
        self._outer_rows = [row[p] for p in outer]
        self._table = (ctypes.c_int64 * len(table))(*table)
        self._norms = (ctypes.c_double * len(groups.norms))(*groups.norms)

    def _write_gradients(
        self,
        parameters: list[Tensor],
        outer: Mapping[Tensor, Outer],
        factors: Mapping[Tensor, tuple[Tensor, Tensor]],
    ) -> None:
        table = self._table
        for at, p in zip(range(0, len(table), FIELDS), parameters, strict=True):
            if p in factors:
                dy, x = factors[p]
                assert dy.shape == (len(x), p.shape[0]) and x.shape[1] == p.shape[1] and dy.dtype is x.dtype
                assert p.shape[0] % 16 == 0 and has_product(p.shape[1], p.shape[0], x.dtype)
                table[at] = 0
                table[at + 3 : at + 5] = [_place(dy), _place(x)]
                table[at + FIELDS - 2 : at + FIELDS] = [len(x), x.dtype is torch.bfloat16]
            elif p.grad is not None:
                table[at] = _place(p.grad)
                table[at + 3 : at + 5] = [0, 0]
        for row, (of, rows, columns) in zip(self._outer_rows, outer.values(), strict=True):
            gradient = 0 if of.grad is None else _place(of.grad)
            table[FIELDS * row : FIELDS * row + 3] = [gradient, _place(rows), _place(columns)]

    @torch.no_grad()
    def complete_gradients(self) -> None:
        """Put into every `.grad` what the last step took: those not written yet, and all clipped. For whoever looks."""
        for parameter, (dy, x) in self.factors.items():
            parameter.grad = _given(dy).float().t() @ _given(x).float()
        for parameter, (of, rows, columns) in self.outer.items():
            if of.grad is not None:
                parameter.grad = of.grad * torch.outer(rows, columns)
        if self._scale != 1.0:
            torch._foreach_mul_([p.grad for p in self.param_groups[0]["params"] if p.grad is not None], self._scale)
        self.outer, self.factors, self._scale = {}, {}, 1.0

    def _take_projected(self, parameters: Sequence[Tensor]) -> Groups:
        """None of it where a weight of it gets no gradient: norms are summed over the weights that are stepped."""
        if self.projected is None or not self.projected.of.keys() <= set(parameters):
            return NOTHING
        projected, self.projected = self.projected, None
        return projected

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _given(factor: Tensor) -> Tensor:
    assert factor.grad is not None, "the factors of a gradient are set, but no backward pass left them"
    return factor.grad


def _place(tensor: Tensor) -> int:
    if not tensor.is_contiguous():
        raise ValueError(f"a gradient {list(tensor.shape)} is not contiguous, as the native Adam reads it")
    return tensor.data_ptr()
