"""Heads: what the outputs [B, A, N] of a value network mean.

A head knows its loss, its expected value and how many outputs an action needs; nothing else in the code asks which
head it is. Heads have no parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from nap_rl.losses import categorical_projection, cross_entropy, huber, quantile_huber

Part = Literal["online", "target", "acting"]
"""What a pass is for: the estimate that learns, the values bootstrapped from, or the choice of an action."""


class HeadLoss(NamedTuple):
    """What a head says of a batch; both [B] float32."""

    loss: Tensor
    priority: Tensor  # non-negative, detached; importance weights are never part of it


def select(outputs: Tensor, actions: Tensor) -> Tensor:
    """outputs [B, A, N], actions [B] int64 -> the outputs of those actions, [B, N]."""
    b, a, n = outputs.shape
    rows = torch.arange(b, device=outputs.device) * a + actions
    # Not outputs[arange, actions], for which torch 2.11 generates C++ that does not compile where there is AVX-512.
    return outputs.reshape(b * a, n).index_select(0, rows)


class Head(nn.Module):
    """`outputs`: N; `q_values`: [B, A, N] -> [B, A]; `loss`: how far outputs_tm1[a_tm1] is from its target."""

    outputs: int
    levels: Mapping[Part, int] | None = None
    """Quantile levels that a pass draws for each state, by its part; None where outputs are not at drawn levels."""

    def q_values(self, outputs: Tensor) -> Tensor:
        """Expected returns: [B, A, N] -> [B, A]."""
        raise NotImplementedError

    def loss(
        self,
        outputs_tm1: Tensor,
        a_tm1: Tensor,
        r_t: Tensor,
        discount_t: Tensor,
        outputs_t: Tensor,
        a_t: Tensor,
        taus: Tensor | None = None,
    ) -> HeadLoss:
        """Loss of Q(s_tm1, a_tm1) against r_t + discount_t Q'(s_t, a_t).

        Args:
            outputs_tm1: [B, A, N], online network at s_tm1 (carries the gradient).
            a_tm1: [B] int64; r_t: [B], n-step return; discount_t: [B], product of the n discounts.
            outputs_t: [B, A, N], target network at s_t (no gradient).
            a_t: [B] int64, the action to bootstrap from (the online network's choice for double Q-learning).
            taus: [B, N], the levels of outputs_tm1 where they were drawn (see `levels`), else None.
        """
        raise NotImplementedError


class ExpectedValue(Head):
    """One output an action: its expected return. Huber loss (Mnih et al. 2015); priority |TD error|."""

    outputs = 1

    def q_values(self, outputs: Tensor) -> Tensor:
        return outputs.squeeze(-1)

    def loss(
        self,
        outputs_tm1: Tensor,
        a_tm1: Tensor,
        r_t: Tensor,
        discount_t: Tensor,
        outputs_t: Tensor,
        a_t: Tensor,
        taus: Tensor | None = None,
    ) -> HeadLoss:
        q_tm1 = select(outputs_tm1, a_tm1).squeeze(-1)
        target = r_t + discount_t * select(outputs_t, a_t).squeeze(-1)
        td_error = target.detach() - q_tm1
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
        self.register_buffer("support", torch.linspace(v_min, v_max, atoms), persistent=False)

    def q_values(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=-1) @ self.support

    def loss(
        self,
        outputs_tm1: Tensor,
        a_tm1: Tensor,
        r_t: Tensor,
        discount_t: Tensor,
        outputs_t: Tensor,
        a_t: Tensor,
        taus: Tensor | None = None,
    ) -> HeadLoss:
        target_support = r_t[:, None] + discount_t[:, None] * self.support
        target_probs = select(outputs_t, a_t).softmax(dim=-1)
        target = categorical_projection(target_support, target_probs, self.support).detach()
        loss = cross_entropy(select(outputs_tm1, a_tm1), target)
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

    def loss(
        self,
        outputs_tm1: Tensor,
        a_tm1: Tensor,
        r_t: Tensor,
        discount_t: Tensor,
        outputs_t: Tensor,
        a_t: Tensor,
        taus: Tensor | None = None,
    ) -> HeadLoss:
        quantiles = select(outputs_tm1, a_tm1)
        targets = r_t[:, None] + discount_t[:, None] * select(outputs_t, a_t)
        loss = quantile_huber(quantiles, self.taus.expand_as(quantiles), targets.detach(), self.kappa)
        return HeadLoss(loss, loss.detach())


class ImplicitQuantile(Head):
    """IQN: the return at any level tau, learnt at random ones (Dabney et al. 2018b, arXiv 1806.06923, equation 3).

    One output for each action and level: the network needs a `QuantileEmbedding`, which brings the levels in. The
    priority is the loss.

    Args:
        samples: N, levels of the estimate in an update; target_samples: N', of the bootstrap values; acting_samples: K,
            levels whose mean chooses an action.
        kappa: width of the Huber loss's quadratic part.
    """

    outputs = 1

    def __init__(
        self, samples: int = 64, target_samples: int = 64, acting_samples: int = 32, kappa: float = 1.0
    ) -> None:
        super().__init__()
        self.levels: Mapping[Part, int] = {"online": samples, "target": target_samples, "acting": acting_samples}
        self.kappa = kappa

    def q_values(self, outputs: Tensor) -> Tensor:
        return outputs.mean(dim=-1)

    def loss(
        self,
        outputs_tm1: Tensor,
        a_tm1: Tensor,
        r_t: Tensor,
        discount_t: Tensor,
        outputs_t: Tensor,
        a_t: Tensor,
        taus: Tensor | None = None,
    ) -> HeadLoss:
        if taus is None:
            raise ValueError("an implicit quantile head needs the levels (taus) of outputs_tm1")
        targets = r_t[:, None] + discount_t[:, None] * select(outputs_t, a_t)
        loss = quantile_huber(select(outputs_tm1, a_tm1), taus, targets.detach(), self.kappa)
        return HeadLoss(loss, loss.detach())
