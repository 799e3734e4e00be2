"""What a network has lost of its ability to learn: formulas on tensors, and one pass that measures them all.

The functions return tensors and never read them back; `Diagnostics.measure` reads everything back at once.
Effective learning rate, update ratio and rotation of each layer are `nap_rl.nap.LayerMonitor`'s, whose docstring has
their formulas; `Diagnostics` takes a monitor along.

    h   activations of one layer, [B, U] or [B, U, H, W]; a unit of a convolution is a feature map
    F   features, the last activation, one row an input, [B, D]
    s   singular values of F in descending order, [min(B, D)]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from nap_rl.nap import LayerMonitor
from nap_rl.nap.effective_lr import MEASURES

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh)
TAUS = (0.0, 0.025, 0.1)


# --- units -----------------------------------------------------------------------------------------


def dormant_fraction(h: Tensor, tau: float) -> Tensor:
    """Share of units with s_u <= tau, s_u = E|h_u| / mean_k E|h_k| (Sokar et al. 2023, arXiv 2302.12902,
    section 3)."""
    activity = _by_unit(h).abs().mean(1)
    return (activity <= tau * activity.mean()).float().mean()


def dead_fraction(h: Tensor) -> Tensor:
    """Share of ReLU units that are 0 on the whole batch (Lyle et al. 2024, arXiv 2407.01800, figure 2)."""
    return (_by_unit(h) <= 0).all(1).float().mean()


def linearised_fraction(h: Tensor) -> Tensor:
    """Share of ReLU units that are positive on the whole batch, and so pass everything through unchanged
    (Lyle et al. 2024, arXiv 2402.18762, section 3)."""
    return (_by_unit(h) > 0).all(1).float().mean()


def _by_unit(h: Tensor) -> Tensor:
    return h.transpose(0, 1).flatten(1)


# --- rank ------------------------------------------------------------------------------------------


def srank(s: Tensor, delta: float = 0.01) -> Tensor:
    """srank_delta: the least k with s_1 + ... + s_k >= (1 - delta) sum(s) (Kumar et al. 2021, arXiv
    2010.14498, eq. 1)."""
    share = s.cumsum(0) / s.sum()
    return (share < 1.0 - delta).sum() + 1.0


def stable_rank(s: Tensor) -> Tensor:
    """||F||_F^2 / ||F||_2^2 = sum(s^2) / s_1^2 (Rudelson & Vershynin 2007, arXiv math/0503442)."""
    return s.square().sum() / s[0].square()


def effective_rank(s: Tensor) -> Tensor:
    """exp(-sum p log p), p = s / sum(s) (Roy & Vetterli 2007, The effective rank, definition 2)."""
    entropy: Tensor = torch.special.entr(s / s.sum()).sum()
    return entropy.exp()


# --- functions -------------------------------------------------------------------------------------


def feature_norm(features: Tensor) -> Tensor:
    """Mean over the batch of ||f||_2."""
    norms: Tensor = torch.linalg.vector_norm(features.flatten(1), dim=1)
    return norms.mean()


def jvp(network: nn.Module, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and J v, J = df/dx of each row of x and v its direction: both [B, ...], in one forward pass.

    Raises ValueError where the output does not depend on the input.
    """
    with forward_ad.dual_level():
        dual: Tensor = forward_ad.make_dual(x, direction)  # type: ignore[no-untyped-call]
        outputs, tangent = primal_and_tangent(network(dual))
    if tangent is None:
        raise ValueError("The network's output does not depend on its input, so it has no Jacobian.")
    return outputs, tangent


def jacobian_norm(tangent: Tensor) -> Tensor:
    """sqrt of the batch mean of ||J v||^2; with v ~ N(0, I) that estimates the root mean square of ||J||_F, since
    E||J v||^2 = ||J||_F^2 (Hutchinson 1989; the norm in figure 1 of Lyle et al. 2024, arXiv 2407.01800)."""
    return tangent.flatten(1).square().sum(1).mean().sqrt()


def churn(before: Tensor, after: Tensor) -> Tensor:
    """Mean |after - before| of the outputs on a held-out batch (Schaul et al. 2022, arXiv 2206.00730, and
    Tang & Berseth 2024, arXiv 2409.04792: how far updates elsewhere moved the function here)."""
    return (after - before).abs().mean()


def ntk(network: nn.Module, inputs: Tensor) -> Tensor:
    """Gram matrix [B, B] of the empirical neural tangent kernel, G_ij = <grad f(x_i), grad f(x_j)>, f the sum
    of the outputs (Jacot et al. 2018, arXiv 1806.07572). Holds B gradients of the whole network: keep B
    small."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def f(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(network, (parameters, buffers), (x.unsqueeze(0),))
        return output.sum()

    gradients = vmap(grad(f), in_dims=(None, 0))(parameters, inputs)
    rows = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    return rows @ rows.T


def ntk_rank(gram: Tensor, tolerance: float = 1e-3) -> Tensor:
    """Number of eigenvalues above `tolerance` times the greatest (the empirical kernel as a sign of lost plasticity:
    Lyle et al. 2024, arXiv 2402.18762; the tolerance is our choice)."""
    eigenvalues = torch.linalg.eigvalsh(gram)
    rank: Tensor = (eigenvalues > tolerance * eigenvalues[-1]).sum()
    return rank.float()


def ntk_condition(gram: Tensor) -> Tensor:
    """Greatest eigenvalue over the least; inf where the least is not positive in this precision (Xiao et al. 2020,
    arXiv 1912.13053: it bounds how fast gradient descent learns)."""
    eigenvalues = torch.linalg.eigvalsh(gram)
    return torch.where(eigenvalues[0] > 0, eigenvalues[-1] / eigenvalues[0], torch.inf)


# --- all in one pass -------------------------------------------------------------------------------


@contextmanager
def activations(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yields a dict that every forward pass within fills: name of the activation -> its output, detached, in
    order."""
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, args: Any, h: Tensor) -> None:
            outputs[name] = primal_and_tangent(h.detach())[0]

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in network.named_modules()
        if isinstance(module, ACTIVATIONS)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def primal_and_tangent(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A dual number's two parts; the tangent is None where forward-mode differentiation is off."""
    primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    return primal, tangent


class Diagnostics:
    """Measures a network on one held-out batch.

    Args:
        network: its activations must be submodules of the classes in ACTIVATIONS.
        inputs: the held-out batch, [B, ...]; integers are turned to float, as pixels are divided by the
        network.
        monitor: of the same network, whose `snapshot()` is called before the update that is to be measured; None leaves
            its measures out.
        ntk_inputs: of how many of the inputs the neural tangent kernel is taken; 0 leaves it out.
        seed: of the directions of the Jacobian estimate.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Tensor,
        *,
        monitor: LayerMonitor | None = None,
        ntk_inputs: int = 0,
        seed: int = 0,
    ) -> None:
        self.network = network
        self.inputs = inputs if inputs.is_floating_point() else inputs.float()
        self.monitor = monitor
        self.ntk_inputs = ntk_inputs
        self.initial = {name: p.detach().clone() for name, p in network.named_parameters()}
        self.generator = torch.Generator(inputs.device).manual_seed(seed)
        self.before: Tensor | None = None

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """One forward pass (and the gradients of the kernel) and one host sync. Each name below has `plasticity/` in
        front of it; L is each activation, P each parameter, W each weight layer:

            dormant_{tau}/L, dead/L, linearised/L           shares of units
            srank, stable_rank, effective_rank              of the features, the last activation
            feature_norm
            jacobian_norm                                   from one JVP
            churn                                           since the last call; 0 at the first
            weight_norm/P, grad_norm/P, distance/P          ||p||, ||dL/dp||, ||p - p_0||
            param_norm/W, effective_lr/W, update_ratio/W, rotation/W ...    the monitor's, see LayerMonitor
            ntk_rank, ntk_condition                         with ntk_inputs
        """
        direction = torch.randn(
            self.inputs.shape, generator=self.generator, device=self.inputs.device, dtype=self.inputs.dtype
        )
        with activations(self.network) as hidden:
            outputs, tangent = jvp(self.network, self.inputs, direction)
        if not hidden:
            raise ValueError("The network has no activation submodule, so there is nothing to measure.")
        features = list(hidden.values())[-1].flatten(1)
        s = torch.linalg.svdvals(features)
        found: dict[str, Tensor] = {}
        for layer, h in hidden.items():
            for tau in TAUS:
                found[f"dormant_{tau:g}/{layer}"] = dormant_fraction(h, tau)
            found[f"dead/{layer}"] = dead_fraction(h)
            found[f"linearised/{layer}"] = linearised_fraction(h)
        found["srank"] = srank(s)
        found["stable_rank"] = stable_rank(s)
        found["effective_rank"] = effective_rank(s)
        found["feature_norm"] = feature_norm(features)
        found["jacobian_norm"] = jacobian_norm(tangent)
        found["churn"] = churn(outputs if self.before is None else self.before, outputs)
        self.before = outputs.clone()
        for name, p in self.network.named_parameters():
            found[f"weight_norm/{name}"] = p.norm()
            found[f"distance/{name}"] = (p - self.initial[name]).norm()
            if p.grad is not None:
                found[f"grad_norm/{name}"] = p.grad.norm()
        if self.monitor is not None:
            for layer, row in zip(self.monitor.names, self.monitor.columns(), strict=True):
                found |= {f"{measure}/{layer}": value for measure, value in zip(MEASURES, row, strict=True)}
        if self.ntk_inputs:
            gram = ntk(self.network, self.inputs[: self.ntk_inputs])
            found["ntk_rank"], found["ntk_condition"] = ntk_rank(gram), ntk_condition(gram)
        values = torch.stack([value.double() for value in found.values()]).tolist()
        return {f"plasticity/{name}": value for name, value in zip(found, values, strict=True)}
