"""Heads: what the outputs [B, A, N] of a value network mean.

A head knows its loss, its expected value and how many outputs an action needs. No other code asks which head it is.
Heads have no parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from nap_rl.losses import categorical_projection, check_tensor, cross_entropy, huber, quantile_huber

TauUse = Literal["s_tm1", "s_t", "policy"]
"""What the quantile levels of a pass are for: the estimate that learns, the values bootstrapped from, or a choice."""


class Target(NamedTuple):
    """What Q(s_tm1, a_tm1) is to become: r_t + discount_t Q'(s_t, a_t). Without gradients."""

    r_t: Tensor  # [B] float32, n-step return
    discount_t: Tensor  # [B] float32, product of the n discounts
    outputs_t: Tensor  # [B, A, N] float32, target network at s_t
    a_t: Tensor  # [B] int64, the action to bootstrap from (the online network's choice for double Q-learning)


class HeadLoss(NamedTuple):
    """Both [B] float32."""

    loss: Tensor
    priority: Tensor  # non-negative, detached; importance weights are never part of it


def select(outputs: Tensor, actions: Tensor) -> Tensor:
    """outputs [B, A, N], actions [B] int64 -> the outputs of those actions, [B, N]."""
    b, a, n = outputs.shape
    rows = torch.arange(b, device=outputs.device) * a + actions
    # For outputs[arange, actions], torch 2.11 generates C++ that does not compile on CPUs with AVX-512.
    return outputs.reshape(b * a, n).index_select(0, rows)


class Head(nn.Module):
    """A head defines `outputs` (N), `q_values` and `_loss`, for outputs of one action."""

    outputs: int
    tau_counts: Mapping[TauUse, int] | None = None
    """Quantile levels that a pass draws for each state; None where outputs are not at drawn levels."""

    def q_values(self, outputs: Tensor) -> Tensor:
        """Expected returns: [B, A, N] -> [B, A]."""
        raise NotImplementedError

    def distribution(self, outputs: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns and their probabilities, both [B, A, N]; None where only the expected return is known."""
        return None

    def loss(self, outputs_tm1: Tensor, a_tm1: Tensor, target: Target, taus_tm1: Tensor | None = None) -> HeadLoss:
        """How far the outputs of a_tm1 are from their target.

        Args:
            outputs_tm1: [B, A, N] float32, online network at s_tm1 (carries the gradient).
            a_tm1: [B] int64.
            taus_tm1: [B, N] float32, the levels of outputs_tm1 where they were drawn (see `tau_counts`), else None.

        Raises:
            ValueError: a shape or dtype is another.
        """
        for name, tensor in (("outputs_tm1", outputs_tm1), ("outputs_t", target.outputs_t)):
            check_tensor(name, tensor, torch.float32, len(a_tm1), None, None)
        for name, tensor in (("a_tm1", a_tm1), ("a_t", target.a_t)):
            check_tensor(name, tensor, torch.int64, len(a_tm1))
        for name, tensor in (("r_t", target.r_t), ("discount_t", target.discount_t)):
            check_tensor(name, tensor, torch.float32, len(a_tm1))
        z_tm1, z_t = select(outputs_tm1, a_tm1), select(target.outputs_t, target.a_t)
        return self._loss(z_tm1, target.r_t[:, None], target.discount_t[:, None], z_t.detach(), taus_tm1)

    def _loss(self, z_tm1: Tensor, r_t: Tensor, discount_t: Tensor, z_t: Tensor, taus_tm1: Tensor | None) -> HeadLoss:
        """z_tm1 [B, N] and z_t [B, M], outputs of a_tm1 and a_t; r_t and discount_t [B, 1]."""
        raise NotImplementedError


class ExpectedValue(Head):
    """One output an action: its expected return. Huber loss (Mnih et al. 2015); priority |TD error|."""

    outputs = 1

    def q_values(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(-1)

    def _loss(self, z_tm1: Tensor, r_t: Tensor, discount_t: Tensor, z_t: Tensor, taus_tm1: Tensor | None) -> HeadLoss:
        td_error = (r_t + discount_t * z_t - z_tm1).squeeze(-1)
        return HeadLoss(huber(td_error), td_error.detach().abs())


class Categorical(Head):
    """C51: logits over `atoms` returns evenly spaced on [v_min, v_max] (Bellemare et al. 2017, arXiv 1707.06887).

    Loss and priority are the cross-entropy from the projected target distribution.
    """

    support: Tensor

    def __init__(self, atoms: int = 51, v_min: float = -10.0, v_max: float = 10.0) -> None:
        super().__init__()
        if atoms < 2 or not v_min < v_max:
            raise ValueError(
                f"a categorical head needs 2 atoms or more and v_min < v_max, got {atoms} on [{v_min}, {v_max}]"
            )
        self.outputs = atoms
        support = torch.linspace(v_min, v_max, atoms, device="cpu")  # on "meta", torch imports sympy for it
        self.register_buffer("support", support.to(torch.get_default_device()), persistent=False)

    def q_values(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=-1) @ self.support

    def distribution(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.support.expand_as(outputs), outputs.softmax(dim=-1)

    def _loss(self, z_tm1: Tensor, r_t: Tensor, discount_t: Tensor, z_t: Tensor, taus_tm1: Tensor | None) -> HeadLoss:
        target = categorical_projection(r_t + discount_t * self.support, z_t.softmax(dim=-1), self.support)
        loss = cross_entropy(z_tm1, target)
        return HeadLoss(loss, loss.detach())


class Quantile(Head):
    """QR-DQN: N quantiles of the return at the mid-levels (i + 1/2) / N (Dabney et al. 2018, arXiv 1710.10044).

    Quantile Huber loss; the priority is the loss.
    """

    taus: Tensor

    def __init__(self, quantiles: int = 200, kappa: float = 1.0) -> None:
        super().__init__()
        self.outputs = quantiles
        self.kappa = kappa
        self.register_buffer("taus", (torch.arange(quantiles) + 0.5) / quantiles, persistent=False)

    def q_values(self, outputs: Tensor) -> Tensor:
        return outputs.mean(dim=-1)

    def distribution(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return _equally_likely(outputs)

    def _loss(self, z_tm1: Tensor, r_t: Tensor, discount_t: Tensor, z_t: Tensor, taus_tm1: Tensor | None) -> HeadLoss:
        loss = quantile_huber(z_tm1, self.taus.expand_as(z_tm1), r_t + discount_t * z_t, self.kappa)
        return HeadLoss(loss, loss.detach())


class ImplicitQuantile(Head):
    """IQN: the return at any level tau, learnt at random levels (Dabney et al. 2018b, arXiv 1806.06923, equation 3).

    One output for each action and level. The network needs a `QuantileEmbedding`, which takes the levels.

    Args:
        samples: N, levels of the estimate in an update; target_samples: N', of the bootstrap values; acting_samples: K,
            levels whose mean chooses an action.
        kappa: width of the Huber loss's quadratic part.
        priority: "loss", or "td_error" for |TD error|, summed over levels of the estimate, meant over bootstrap values.
    """

    outputs = 1

    def __init__(
        self,
        samples: int = 64,
        target_samples: int = 64,
        acting_samples: int = 32,
        kappa: float = 1.0,
        priority: str = "loss",
    ) -> None:
        super().__init__()
        self.tau_counts: Mapping[TauUse, int] = {
            "s_tm1": samples,
            "s_t": target_samples,
            "policy": acting_samples,
        }
        self.kappa = kappa
        self.priority = priority

    def q_values(self, outputs: Tensor) -> Tensor:
        return outputs.mean(dim=-1)

    def distribution(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return _equally_likely(outputs)

    def _loss(self, z_tm1: Tensor, r_t: Tensor, discount_t: Tensor, z_t: Tensor, taus_tm1: Tensor | None) -> HeadLoss:
        if taus_tm1 is None:
            raise ValueError("an implicit quantile head needs the levels (taus) of outputs_tm1")
        targets = r_t + discount_t * z_t
        loss = quantile_huber(z_tm1, taus_tm1, targets, self.kappa)
        if self.priority == "loss":
            return HeadLoss(loss, loss.detach())
        td_errors = targets[:, None, :] - z_tm1.detach()[:, :, None]  # [B, N, M]
        return HeadLoss(loss, td_errors.abs().sum(dim=1).mean(dim=1))


def _equally_likely(returns: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles [B, A, N] and their probabilities 1 / N."""
    return returns, torch.full_like(returns, 1.0 / returns.shape[-1])
