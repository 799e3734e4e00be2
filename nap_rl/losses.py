"""Losses of value-based agents: pure functions on tensors, shape-checked, no state, no host sync.

B is the batch, N (or M) the atoms or quantiles. Tensors are float32 unless said otherwise. Losses are [B], one an item:
the caller applies importance weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def check_shape(name: str, tensor: Tensor, *shape: int) -> None:
    """ValueError unless `tensor` has exactly this shape."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> None:
    """ValueError unless `tensor` has this dtype and shape; None stands for any size."""
    fits = tensor.dim() == len(shape) and all(b in (None, a) for a, b in zip(tensor.shape, shape, strict=True))
    if not fits or tensor.dtype is not dtype:
        sizes = ["any" if size is None else size for size in shape]
        raise ValueError(f"{name} is {tensor.dtype} of shape {list(tensor.shape)}, expected {dtype} of shape {sizes}")


def categorical_projection(target_support: Tensor, target_probs: Tensor, support: Tensor) -> Tensor:
    """Project a distribution onto the atoms of `support` (Bellemare et al. 2017, equation 7).

    Each target atom shares its mass among the two support atoms around it, in proportion to its nearness. Atoms beyond
    either end give all of it to that end. The shares are a triangular kernel: an atom exactly on a support atom needs
    no special case, and no mass is lost.

    Args:
        target_support: [B, N], where the mass is; target_probs: [B, N], the mass.
        support: [N], evenly spaced and ascending, N >= 2.

    Returns:
        [B, N], summing to what `target_probs` sums to.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    atoms = support.shape[0]
    check_shape("support", support, atoms)
    check_shape("target_support", target_support, target_support.shape[0], atoms)
    check_shape("target_probs", target_probs, *target_support.shape)
    v_min, v_max = support[0], support[-1]
    delta_z = (v_max - v_min) / (atoms - 1)
    clipped = target_support.clamp(v_min, v_max)
    # share[b, i, j]: support atom i's share of target atom j; 1 at distance 0, 0 at distance delta_z or more.
    distance = (clipped[:, None, :] - support[None, :, None]).abs() / delta_z
    share = (1.0 - distance).clamp(0.0, 1.0)
    return torch.bmm(share, target_probs[:, :, None]).squeeze(2)


def cross_entropy(logits: Tensor, target_probs: Tensor) -> Tensor:
    """-sum_i p_i log softmax(logits)_i: [B, N], [B, N] -> [B].

    It equals KL(p || q) plus the entropy of p, which has no gradient. Rainbow's text says KL; public implementations
    use the cross-entropy as the priority.
    """
    check_shape("target_probs", target_probs, *logits.shape)
    return -(target_probs * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def huber(td_errors: Tensor, delta: float = 1.0) -> Tensor:
    """0.5 x^2 inside |x| <= delta, delta (|x| - delta / 2) outside; elementwise (Mnih et al. 2015)."""
    return F.huber_loss(td_errors, torch.zeros_like(td_errors), reduction="none", delta=delta)


def quantile_huber(quantiles: Tensor, taus: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
    """Quantile Huber loss (Dabney et al. 2018a, arXiv 1710.10044, equation 10): sum over quantiles, mean over targets.

    Args:
        quantiles: [B, N], the estimates; taus: [B, N], their levels in (0, 1); targets: [B, M], samples or quantiles.
        kappa: width of the quadratic part.
    """
    check_shape("taus", taus, *quantiles.shape)
    check_shape("targets", targets, quantiles.shape[0], targets.shape[-1])
    u = targets[:, None, :] - quantiles[:, :, None]  # [B, N, M]
    asymmetry = (taus[:, :, None] - (u.detach() < 0).float()).abs()
    return (asymmetry * huber(u, kappa) / kappa).sum(dim=1).mean(dim=1)


@dataclass(frozen=True)
class Munchausen:
    """The log-policy as reward: Munchausen RL (Vieillard et al. 2020, arXiv 2007.14430, equation 3).

    With pi = softmax(q / temperature) of the target network:

        reward           r + alpha * clip(temperature log pi(a|s), clip, 0)
        bootstrap value  sum_a pi(a|s') (z(s', a) - temperature log pi(a|s'))

    Returns z of several quantiles are bootstrapped quantile by quantile. With n-step returns r, only the log-policy of
    their first action is added (as in Clark et al. 2024, arXiv 2411.03820, appendix E).
    """

    alpha: float = 0.9
    temperature: float = 0.03
    clip: float = -1.0

    def scaled_log_policy(self, q: Tensor) -> Tensor:
        """temperature log pi, [B, A] -> [B, A]; finite also where pi is 0 in float32."""
        return self.temperature * F.log_softmax(q / self.temperature, dim=1)

    def reward(self, r_t: Tensor, q_tm1: Tensor, a_tm1: Tensor) -> Tensor:
        """r_t [B], q_tm1 [B, A] of the target network at s_tm1, a_tm1 [B] int64 -> [B]."""
        check_shape("r_t", r_t, q_tm1.shape[0])
        check_shape("a_tm1", a_tm1, q_tm1.shape[0])
        scaled = self.scaled_log_policy(q_tm1).gather(1, a_tm1[:, None]).squeeze(1)
        return r_t + self.alpha * scaled.clamp(self.clip, 0.0)

    def bootstrap(self, outputs_t: Tensor, q_t: Tensor) -> Tensor:
        """outputs_t [B, A, N] of the target network at s_t, q_t [B, A] for its policy -> [B, N]."""
        check_shape("q_t", q_t, *outputs_t.shape[:2])
        scaled = self.scaled_log_policy(q_t)
        policy = (q_t / self.temperature).softmax(dim=1)
        return (policy[:, :, None] * (outputs_t - scaled[:, :, None])).sum(dim=1)
