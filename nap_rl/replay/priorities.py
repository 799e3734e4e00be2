"""Prioritised sampling in two levels: block sums, and the leaves of the blocks that were drawn.

A binary tree needs log2(n) dependent steps an item and drifts, since it adds differences. Here the slots are seen as a
table of blocks x 128 leaves: sampling is one search over the block sums and one over the leaves of each drawn block,
and every change recomputes the sums of the blocks that it touched from their leaves, so that sums are always exact.
A dozen tensor calls for any batch size, the same on CPU and GPU, and no host sync.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128
"""Leaves to a block. A batch of B from N slots reads N / BLOCK + B BLOCK numbers: least near 64 to 180 for 1M slots."""


class Draw(NamedTuple):
    """`slots` [B] int64, drawn with replacement; `probabilities` [B] float32, of each under the whole distribution."""

    slots: Tensor
    probabilities: Tensor


class Priorities:
    """Sampling weights of `capacity` slots, of which only the valid ones can be drawn.

    P(i) = (1 - u) p_i^alpha / sum_k p_k^alpha + u / V over the V valid slots (Schaul et al. 2016, arXiv 1511.05952,
    equation 1, with dqn_zoo's uniform share u). Slots start invalid, with priority zero.

    Args:
        capacity: number of slots.
        exponent: alpha, applied once, when a priority is written. 0 makes sampling uniform.
        uniform_probability: u in [0, 1].
    """

    def __init__(
        self,
        capacity: int,
        *,
        exponent: float = 0.5,
        uniform_probability: float = 1e-3,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, expected 1 slot or more")
        if not 0.0 <= uniform_probability <= 1.0:
            raise ValueError(f"uniform_probability is {uniform_probability}, expected a number in [0, 1]")
        if exponent < 0.0:
            raise ValueError(f"priority exponent is {exponent}, expected 0 or more")
        blocks = -(-capacity // BLOCK)
        self.exponent = exponent
        self.uniform_probability = uniform_probability
        self.leaves = torch.zeros(blocks, BLOCK, device=device)  # p^alpha
        self.valid = torch.zeros(blocks, BLOCK, device=device)  # 1 where the slot can be drawn
        self.leaf_sums = torch.zeros(blocks, dtype=torch.float64, device=device)
        self.valid_counts = torch.zeros(blocks, dtype=torch.float64, device=device)

    def state_dict(self) -> dict[str, Tensor]:
        """Leaves and sums, to the bit."""
        return {name: getattr(self, name).clone() for name in ("leaves", "valid", "leaf_sums", "valid_counts")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Of as many slots as there are here."""
        for name, tensor in state.items():
            getattr(self, name).copy_(tensor)

    def write(self, slots: Tensor, priorities: Tensor, valid: Tensor) -> None:
        """Set raw priorities and whether slots can be drawn: slots [K] int64, all different, [K] float32, [K] bool."""
        self.valid.view(-1)[slots] = valid.to(self.valid.dtype)
        self.leaves.view(-1)[slots] = torch.where(valid, priorities.pow(self.exponent), 0.0)
        blocks = slots // BLOCK
        self.valid_counts[blocks] = self.valid[blocks].sum(dim=1, dtype=torch.float64)
        self._sum_leaves(blocks)

    def update(self, slots: Tensor, priorities: Tensor, keep: Tensor) -> None:
        """New raw priorities of valid slots: [K] int64, [K] float32, [K] bool; entries not kept change nothing.

        Where a slot stands several times, its largest kept entry counts, so the result does not depend on the order.
        """
        leaves = self.leaves.view(-1)
        before = leaves[slots]
        entries = torch.where(keep, priorities.pow(self.exponent), -1.0)  # -1 loses to every real entry
        leaves.scatter_reduce_(0, slots, entries, reduce="amax", include_self=False)
        largest = leaves[slots]
        leaves[slots] = torch.where(largest < 0.0, before, largest)
        self._sum_leaves(slots // BLOCK)

    def _sum_leaves(self, blocks: Tensor) -> None:
        self.leaf_sums[blocks] = self.leaves[blocks].sum(dim=1, dtype=torch.float64)

    def is_valid(self, slots: Tensor) -> Tensor:
        """[K] int64 -> [K] bool."""
        return self.valid.view(-1)[slots] > 0

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Draw:
        """Draw `batch` slots independently, uniformly where every priority is zero. At least one slot must be valid."""
        # Density of a block or a leaf under the mixture: a * (its p^alpha) + b * (its valid slots), which sums to 1.
        total = self.leaf_sums.sum()
        some = (total > 0.0).double()  # 0 where every priority is zero: sampling is uniform then
        uniform = 1.0 - some * (1.0 - self.uniform_probability)
        a = (1.0 - uniform) / total.clamp_min(1e-300)
        b = uniform / self.valid_counts.sum()
        u = torch.rand(2, batch, dtype=torch.float64, generator=generator, device=self.leaves.device)
        block = _search(a * self.leaf_sums + b * self.valid_counts, u[0])
        density = a * self.leaves[block].double() + b * self.valid[block].double()  # [B, BLOCK]
        leaf = _search(density, u[1])
        probabilities = density.gather(1, leaf[:, None]).squeeze(1)
        return Draw(block * BLOCK + leaf, probabilities.float())


def _search(weights: Tensor, u: Tensor) -> Tensor:
    """Index of the weight that u in [0, 1) falls on: weights [K] or [B, K] float64, u [B] float64 -> [B] int64.

    The first index whose cumulative weight is *above* the target has a weight above zero: an item of weight zero is
    never drawn. Keeping the target below the last cumulative weight holds this through rounding.
    """
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[..., -1]
    target = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    if weights.dim() == 1:
        return torch.searchsorted(cumulative, target, right=True)
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)
