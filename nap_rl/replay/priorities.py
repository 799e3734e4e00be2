"""Prioritised sampling in two levels: a block by the block sums, then a leaf within the block.

The slots are a table of blocks x 128 leaves. Sampling is one search over the block sums and one over the leaves of each
drawn block. A change sums its blocks anew from their leaves, so sums are exact. (A binary tree takes log2(n) dependent
steps an item, and it drifts, since it adds differences.) A dozen tensor calls for any batch size, no host sync.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nap_rl.replay.slots import Indices, put, row_sums

BLOCK = 128
"""Leaves of a block. A sample of B from N slots reads N/BLOCK block sums + B*BLOCK leaves: fewest at BLOCK = sqrt(N/B),
about 180 for N = 1M, B = 32."""


class SampledSlots(NamedTuple):
    """Slots drawn with replacement."""

    slots: Tensor  # [B] int64
    probabilities: Tensor  # [B] float32, of each slot under the whole distribution


class Priorities:
    """Sampling weights of `capacity` slots, of which only the valid ones can be drawn.

    P(i) = (1 - u) p_i^alpha / sum_k p_k^alpha + u / V over the V valid slots (Schaul et al. 2016, arXiv 1511.05952,
    equation 1, with dqn_zoo's uniform share u). Slots start invalid, with priority zero.

    Args:
        capacity: number of slots.
        exponent: alpha, applied once, when a priority is written. 0 makes sampling uniform.
        uniform_probability: u in [0, 1].
    """

    TENSORS = ("leaves", "valid", "leaf_sums", "valid_counts")

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
        """Leaves and sums, exact."""
        return {name: getattr(self, name).clone() for name in self.TENSORS}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of as many slots."""
        for name, tensor in state.items():
            getattr(self, name).copy_(tensor)

    def clear(self) -> None:
        """No slot can be drawn."""
        for name in self.TENSORS:
            getattr(self, name).zero_()

    def write(self, slots: Indices, priorities: Tensor, valid: npt.NDArray[np.bool_]) -> None:
        """Set raw priorities, [K] or one for all, and whether slots can be drawn; slots [K], all different."""
        put(self.valid.view(-1), slots, valid)
        put(self.leaves.view(-1), slots, priorities.pow(self.exponent))
        put(self.leaves.view(-1), slots[~valid], np.float32(0.0))
        blocks = slots // BLOCK
        put(self.valid_counts, blocks, row_sums(self.valid, blocks))
        put(self.leaf_sums, blocks, row_sums(self.leaves, blocks))

    def update(self, slots: Tensor, priorities: Tensor, keep: Tensor) -> None:
        """New raw priorities of valid slots: [K] int64, [K] float32, [K] bool; entries not kept change nothing.

        Of several entries of one slot the largest kept one counts, so their order does not matter.
        """
        leaves = self.leaves.view(-1)
        before = leaves[slots]
        entries = torch.where(keep, priorities.pow(self.exponent), -1.0)  # -1 loses to every real entry
        leaves.scatter_reduce_(0, slots, entries, reduce="amax", include_self=False)
        largest = leaves[slots]
        leaves[slots] = torch.where(largest < 0.0, before, largest)
        blocks = slots // BLOCK
        self.leaf_sums[blocks] = self.leaves.index_select(0, blocks).sum(dim=1, dtype=torch.float64)

    def is_valid(self, slots: Tensor) -> Tensor:
        """[K] int64 -> [K] bool."""
        return self.valid.view(-1)[slots] > 0

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """[2, batch] float64 ~ U[0, 1): the random part of `sample`."""
        u = torch.rand(2, batch, dtype=torch.float64, generator=generator, device=self.leaves.device)
        return u.clamp_(max=1.0 - 2.0**-52)  # so u * total < total after rounding too

    def sample(self, batch: int, generator: torch.Generator | None = None) -> SampledSlots:
        """Draw `batch` slots independently, uniformly where every priority is zero. At least one slot must be valid."""
        return self.sample_at(self.draw(batch, generator))

    def sample_at(self, u: Tensor) -> SampledSlots:
        """The slots of a draw u [2, B]: block by u[0], leaf by u[1].

        Taken is the first slot whose cumulative weight is *above* a target in [0, total). So its own weight is above
        zero: a slot of weight zero is never drawn.
        """
        # Unnormalised density under the mixture, of a block or a leaf: its p^alpha + c * its valid slots.
        total, valid = self.leaf_sums.sum(), self.valid_counts.sum()
        if self.uniform_probability < 1.0:
            c = total * (self.uniform_probability / (1.0 - self.uniform_probability)) / valid
            c = torch.where(total > 0.0, c, 1.0)  # where every priority is zero, sampling is uniform
            mass, leaves = self.leaf_sums + c * self.valid_counts, self.leaves
        else:
            c, mass, leaves = torch.zeros_like(total), self.valid_counts, self.valid
        cumulative = mass.cumsum(0)
        block = torch.searchsorted(cumulative, u[0] * cumulative[-1], right=True)
        density = leaves.index_select(0, block).double()  # [B, BLOCK]
        density = density + c * self.valid.index_select(0, block).double()
        leaf_cumulative = density.cumsum(1)
        targets = u[1, :, None] * leaf_cumulative[:, -1:]
        leaf = torch.searchsorted(leaf_cumulative, targets, right=True)
        probabilities = density.gather(1, leaf).squeeze(1) / cumulative[-1]
        return SampledSlots(torch.add(leaf.squeeze(1), block, alpha=BLOCK), probabilities.float())
