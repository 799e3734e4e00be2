"""Layers with native code beside the same without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


def gradients(function: Function, x: Tensor, dy: Tensor, layer: nn.Module) -> tuple[list[Tensor], set[str]]:
    """The output, its gradients to x, if it has one, and to what `layer` learns; and which native operators ran."""
    learnt = [x, *layer.parameters()] if x.requires_grad else [*layer.parameters()]
    with torch.profiler.profile() as profile:
        y = function(x)
        found = [y.detach(), *torch.autograd.grad((y.float() * dy).sum(), learnt)]
    return found, {event.key for event in profile.key_averages() if event.key.startswith("nap_rl::")}


def _check(layer: nn.Module, run: Function, x: Tensor, dy: Tensor, precision: torch.dtype) -> set[str]:
    def in_precision(x: Tensor) -> Tensor:
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            return run(x)

    plain, none = gradients(in_precision, x, dy, layer)
    for module in layer.modules():
        module.native_code = True  # type: ignore[assignment]
    torch._dynamo.reset()
    compiled, taken = gradients(torch.compile(in_precision, backend="aot_eager", fullgraph=True), x, dy, layer)
    _, uncompiled = gradients(in_precision, x, dy, layer)
    assert none == uncompiled == set()
    for a, b in zip(compiled, plain, strict=True):
        assert a.dtype is b.dtype
        bound = 1e-5 if precision is torch.float32 else 3e-2
        torch.testing.assert_close(a, b, rtol=0.0, atol=bound * float(b.abs().max()))
    return taken


@pytest.fixture
def check_layer() -> Callable[[nn.Module, Function, Tensor, Tensor, torch.dtype], set[str]]:
    """Compiled with native code a layer gives what it gives without; the operators that it took for that."""
    return _check
