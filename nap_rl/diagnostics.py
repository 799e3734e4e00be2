"""Signs of lost plasticity: formulas on tensors. They return tensors and never wait for a GPU.

    h   activations of one layer, [B, U] or [B, U, H, W]; a unit of a convolution is a feature map

`nap_rl.nap.LayerMonitor` has norms, effective learning rate and rotation of each layer; `nap_rl.agents.diagnostics`
measures a run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from nap_rl.nap.groups import within

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh)

# Units


def dormant_fraction(h: Tensor, tau: float = 0.025) -> Tensor:
    """Share of units with s_u <= tau, s_u = E|h_u| / mean_k E|h_k|.

    Source: Sokar et al. 2023, arXiv 2302.12902, section 3.
    """
    activity = _by_unit(h).abs().mean(1)
    return (activity <= tau * activity.mean()).float().mean()


def dead_fraction(h: Tensor) -> Tensor:
    """Share of ReLU units that are 0 on the whole batch (Lyle et al. 2024, arXiv 2407.01800, figure 2)."""
    return (_by_unit(h) <= 0).all(1).float().mean()


def _by_unit(h: Tensor) -> Tensor:
    return h.transpose(0, 1).flatten(1)


# Features


def feature_rank(h: Tensor, delta: float = 0.01) -> Tensor:
    """srank: the least k with s_1 + ... + s_k >= (1 - delta) sum(s), s the singular values of h as a matrix [B, -1].

    Source: Kumar et al. 2021, arXiv 2010.14498, equation 1.
    """
    rows = h.flatten(1).double()
    # s^2 are the eigenvalues of the smaller Gram matrix, which costs less than the singular values of a wide matrix.
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    s = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt().flip(0)
    share = s.cumsum(0) / s.sum()
    rank: Tensor = (share < 1.0 - delta).sum() + 1.0
    return rank


def feature_norm(h: Tensor) -> Tensor:
    """Mean over the batch of ||h_b||_2."""
    norms: Tensor = torch.linalg.vector_norm(h.flatten(1), dim=1)
    return norms.mean()


# Functions


def jvp(network: nn.Module, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x), J v) in one forward pass, [B, ...] each; J = df/dx of each row of x, v its direction.

    Raises:
        ValueError: the output does not depend on the input.
    """
    with forward_ad.dual_level():
        dual: Tensor = forward_ad.make_dual(x, direction)  # type: ignore[no-untyped-call]
        outputs, tangent = _primal_and_tangent(network(dual))
    if tangent is None:
        raise ValueError("The network's output does not depend on its input, so it has no Jacobian.")
    return outputs, tangent


def jacobian_norm(tangent: Tensor) -> Tensor:
    """sqrt(mean_b ||J_b v_b||^2); for v ~ N(0, I) it estimates sqrt(mean_b ||J_b||_F^2).

    E ||J v||^2 = ||J||_F^2 (Hutchinson 1989). Lyle et al. 2024, arXiv 2407.01800, figure 1, show this norm.
    """
    return tangent.flatten(1).square().sum(1).mean().sqrt()


def churn(before: Tensor, after: Tensor) -> Tensor:
    """Mean |after - before| of the outputs in states that an update did not learn from.

    Source: Schaul et al. 2022, arXiv 2206.00730; Tang & Berseth 2024, arXiv 2409.04792.
    """
    return (after - before).abs().mean()


def hessian_max(loss: Tensor, parameters: Sequence[Tensor], generator: torch.Generator, iterations: int = 20) -> Tensor:
    """Largest eigenvalue of the Hessian H of `loss`, by power iteration on Hessian-vector products.

    v <- H v / ||H v|| converges to the eigenvalue of the largest magnitude, l. If l < 0, a second iteration on H - l I,
    whose eigenvalues are all 0 or more, finds the largest. The estimate never exceeds the largest eigenvalue, but for
    rounding. Lost plasticity shows as fewer directions of curvature (Lewandowski et al., arXiv 2312.00246; Klein et
    al., arXiv 2411.04832, review it).

    Args:
        loss: of no dimension, with a graph to `parameters` that can be differentiated twice.
        generator: draws the first v, on the parameters' device.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    if not any(gradient.requires_grad for gradient in gradients):  # a linear loss
        return loss.new_zeros(())

    def product(v: list[Tensor]) -> list[Tensor]:
        curved = [(g, d) for g, d in zip(gradients, v, strict=True) if g.requires_grad]
        outputs, directions = zip(*curved, strict=True)
        return list(torch.autograd.grad(outputs, parameters, directions, retain_graph=True, materialize_grads=True))

    def dominant(shift: Tensor | float) -> Tensor:
        v = [torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype) for p in parameters]
        v = _normalized(v)
        value = loss.new_zeros(())
        for _ in range(iterations):
            image = [hv - shift * d for hv, d in zip(product(v), v, strict=True)]
            value = _inner(v, image)
            v = _normalized(image)
        return value + shift

    largest = dominant(0.0)
    return largest if float(largest) >= 0.0 else dominant(largest)


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def _normalized(v: Sequence[Tensor]) -> list[Tensor]:
    norm = _inner(v, v).sqrt().clamp_min(torch.finfo(v[0].dtype).tiny)
    return [x / norm for x in v]


# Activations of a forward pass


@contextmanager
def activations(network: nn.Module, *, free: Collection[str] = ()) -> Iterator[dict[str, Tensor]]:
    """Yields a dict that every forward pass within fills: name of an activation module -> its output, detached.

    Args:
        free: paths of submodules to leave out.
    """
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, args: Any, h: Tensor) -> None:
            outputs[name] = _primal_and_tangent(h.detach())[0]

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in network.named_modules()
        if isinstance(module, ACTIVATIONS) and not within(name, free)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def layers_of_activations(network: nn.Module, layers: Sequence[str]) -> dict[str, str]:
    """Name of each activation module -> the one of `layers` that stands last before it, in the order of definition.

    A second activation of the same layer, and one before every layer, keeps its own name.
    """
    names: dict[str, str] = {}
    last = ""
    for name, module in network.named_modules():
        if name in layers:
            last = name
        elif isinstance(module, ACTIVATIONS):
            names[name] = name if last == "" or last in names.values() else last
    return names


def _primal_and_tangent(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Both parts of a dual number; the tangent is None where forward-mode differentiation is off."""
    primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return primal, tangent
