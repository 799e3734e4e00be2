"""Products in the order that is fast for a small batch, against F.linear."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.diagnostics import jvp, ntk
from nap_rl.nap import normalize
from nap_rl.nn.linear import Linear, linear


def gradients(function: object, tensors: list[Tensor | None], dy: Tensor) -> list[Tensor]:
    """Output and gradients of all that is there."""
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    y = function(*leaves)  # type: ignore[operator]
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("rows", [5, 9])
def test_it_gives_the_output_and_gradients_of_f_linear(
    bias: bool, precision: torch.dtype, compiled: bool, rows: int
) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(rows, 24), torch.randn(7, 24), torch.randn(7) if bias else None]
    dy = torch.randn(rows, 7)

    def run(x: Tensor, weight: Tensor, b: Tensor | None) -> Tensor:
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            return linear(x, weight, b)

    torch._dynamo.reset()
    found = gradients(torch.compile(run, dynamic=False, fullgraph=True) if compiled else run, tensors, dy)
    exact = gradients(F.linear, [None if t is None else t.double() for t in tensors], dy.double())
    assert len(found) == len(exact) == 3 + bias
    assert found[0].dtype is precision and all(gradient.dtype is torch.float32 for gradient in found[1:])
    tolerance = 1e-5 if precision is torch.float32 else 3e-2
    for a, b in zip(found, exact, strict=True):
        assert torch.allclose(a.double(), b, atol=tolerance * float(b.abs().max()), rtol=0)


def test_a_large_batch_is_left_to_f_linear() -> None:
    torch.manual_seed(0)
    layer, x = Linear(24, 7), torch.randn(9, 24)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_diagnostics_go_through_it_as_through_nn_linear() -> None:
    def measured(kind: type[nn.Linear]) -> list[Tensor]:
        torch.manual_seed(0)
        module, x = nn.Sequential(kind(24, 16), nn.ReLU(), kind(16, 8)), torch.randn(5, 24)
        return [ntk(module, x), *jvp(module, x, torch.randn(5, 24))]

    for a, b in zip(measured(Linear), measured(nn.Linear), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_projection_sees_through_it_as_through_nn_linear() -> None:
    def roles(kind: type[nn.Linear]) -> list[str]:
        torch.manual_seed(0)
        module = nn.Sequential(kind(24, 16), nn.ReLU(), kind(16, 12), nn.ReLU(), kind(12, 8))
        normalize(module, torch.randn(3, 24))
        return [layer.nap_role for layer in module.modules() if isinstance(layer, nn.Linear)]

    assert roles(Linear) == roles(nn.Linear) == ["invariant", "invariant", "output"]
