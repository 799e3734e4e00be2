"""Clipping, Adam and the projection in one pass over float32 weights in the CPU's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from nap_rl.nap import Projector
from nap_rl.nap.project import Group
from nap_rl.native.build import kernels

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
FIELDS = 8
"""Of a tensor in the table that `adam.cpp` reads: gradient, weight, 2 moments, step, size, row length, group."""


class NativeProjector(Projector):
    """A `Projector` that skips what the optimiser's step has projected already."""

    projected_by_step = False

    def project_whole(self) -> None:
        """`Projector.project_whole`, unless the step before has done it."""
        if not self.projected_by_step:
            super().project_whole()
        self.projected_by_step = False


class NativeAdam(Adam):
    """torch.optim.Adam with the same state, whose step also clips the gradients and projects the weights.

    Made by `of` from a torch.optim.Adam with one group of contiguous float32 parameters.

    Attributes:
        max_norm: global norm that a step clips the gradients to; None for no clipping.
        projector: its `whole_groups` are projected in the step, where it is due.
        grad_norm: global norm of the last step's gradients, before clipping.
    """

    max_norm: float | None = None
    projector: NativeProjector | None = None
    grad_norm = 0.0
    _layout: object = None

    @staticmethod
    def can_replace(optimizer: Optimizer) -> bool:
        """Whether it is torch.optim.Adam with options that the native step has: lr, betas and eps."""
        if type(optimizer) is not Adam or len(optimizer.param_groups) != 1:
            return False
        (group,) = optimizer.param_groups
        plain = not (group["weight_decay"] or group["amsgrad"] or group["maximize"] or group["capturable"])
        return plain and not isinstance(group["lr"], Tensor)

    @classmethod
    def of(cls, optimizer: Optimizer) -> NativeAdam:
        """Turn `optimizer` into a NativeAdam: the same object, so its hooks and those who hold it stay."""
        optimizer.__class__ = cls
        assert isinstance(optimizer, cls)
        optimizer._patch_step_function()  # makes a class's step run the hooks, once a class
        return optimizer

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """ValueError: it would be the second one."""
        raise ValueError("the native Adam has one group of parameters: use native=off")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all parameters that have a gradient; `.grad` is clipped afterwards, as clip_grad_norm_ does it.

        Raises:
            ValueError: a parameter or a gradient is not contiguous float32 on the CPU.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return loss
        groups = self._due_groups(parameters)
        self._lay_out(parameters, groups)
        gradients = [p.grad for p in parameters]
        for row, gradient in enumerate(gradients):
            self._table[FIELDS * row] = _address(gradient, "gradient")
        beta1, beta2 = group["betas"]
        limit = float("inf") if self.max_norm is None else self.max_norm
        self.grad_norm = kernels().adam_update(
            ctypes.c_int64(len(parameters)),
            self._table,
            ctypes.c_int64(len(groups)),
            self._norms,
            *map(ctypes.c_double, (group["lr"], beta1, beta2, group["eps"], limit)),
            ctypes.c_int(torch.get_num_threads()),
        )
        if self.grad_norm > limit:
            torch._foreach_mul_(gradients, limit / (self.grad_norm + 1e-6))
        if groups and self.projector is not None:
            self.projector.projected_by_step = True
        return loss

    def _due_groups(self, parameters: Sequence[Tensor]) -> tuple[Group, ...]:
        """What this step projects: nothing where a tensor has no gradient, since only stepped tensors are summed."""
        if self.projector is None or not self.projector.due:
            return ()
        groups, stepped = self.projector.whole_groups(), set(parameters)
        return groups if all(tensor in stepped for group in groups for tensor in group.tensors) else ()

    def _lay_out(self, parameters: list[Tensor], groups: tuple[Group, ...]) -> None:
        """Write all but the gradients into the table, where something moved in memory since the last step."""
        states = [self._state_of(p) for p in parameters]
        addresses = [tensor.data_ptr() for tensor in parameters]
        moments = [state[name].data_ptr() for state in states for name in MOMENTS]
        layout = (list(map(id, parameters)), addresses, [p.stride() for p in parameters], moments, id(groups))
        if layout == self._layout:
            return
        group_of: dict[Tensor, int] = {
            tensor: number for number, group in enumerate(groups) for tensor in group.tensors
        }
        table: list[int] = []
        for k, p in enumerate(parameters):
            row_length = p.shape[1] if p.dim() == 2 else 1
            sizes = (p.numel(), row_length, group_of.get(p, -1))
            table += [0, _address(p, "weight"), *moments[3 * k : 3 * k + 3], *sizes]
        self._layout = layout
        self._laid_out = (parameters, groups)  # kept alive, so that no other object gets one of their ids
        self._table = (ctypes.c_int64 * len(table))(*table)
        self._norms = (ctypes.c_double * len(groups))(*(group.norm for group in groups))

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _address(tensor: Tensor, name: str) -> int:
    if tensor.dtype is not torch.float32 or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"a {name} {list(tensor.shape)} is {tensor.dtype}, expected contiguous float32 on the CPU")
    return tensor.data_ptr()
