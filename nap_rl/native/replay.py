"""Drawing from the replay, reading and updating it, each in one native call where torch makes a dozen. CPU only."""

from __future__ import annotations

import torch
from torch import Tensor

from nap_rl.native.build import operator


def draw(
    u: Tensor, leaves: Tensor, valid: Tensor, leaf_sums: Tensor, valid_counts: Tensor, uniform: float
) -> tuple[Tensor, Tensor]:
    """Slots [B] int64 and their probabilities [B] float32, as `Priorities.sample` describes; names as there.

    Args:
        u: [2, B] float64 in [0, 1]: for the block and for the leaf.
    """
    found: tuple[Tensor, Tensor] = torch.ops.nap_rl.replay_draw.default(
        u, leaves, valid, leaf_sums, valid_counts, uniform
    )
    return found


def gather(
    slots: Tensor,
    frames: Tensor,
    first: Tensor,
    rewards: Tensor,
    discounts: Tensor,
    *,
    length: int,
    stack: int,
    n_steps: int,
    discount: float,
    reward_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of valid starts, slots [B] int64: stacks [2, B, C, *frame], s_tm1 and s_t, r_t and discount_t [B] float32.

    Names as in `Replay`.
    """
    clip = float("inf") if reward_clip is None else reward_clip
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.nap_rl.replay_gather.default(
        slots, frames, first, rewards, discounts, length, stack, n_steps, discount, clip
    )
    return found


def kept(
    slots: Tensor,
    serials: Tensor,
    priorities: Tensor,
    *,
    serials_now: Tensor,
    valid: Tensor,
    max_priority: float,
    largest: Tensor,
) -> tuple[Tensor, Tensor]:
    """Priorities [B], clipped, and which count, [B] bool; `largest` is raised to theirs. See `Replay.update`."""
    found: tuple[Tensor, Tensor] = torch.ops.nap_rl.replay_kept.default(
        slots, serials, priorities, serials_now, valid, max_priority, largest
    )
    return found


def update(slots: Tensor, priorities: Tensor, keep: Tensor, exponent: float, leaves: Tensor, leaf_sums: Tensor) -> None:
    """Write priorities [B] float32 ^ exponent into leaves at slots [B] where keep [B]; see `Priorities.update`."""
    torch.ops.nap_rl.replay_update.default(slots, priorities, keep, exponent, leaves, leaf_sums)


operator(
    "replay_draw",
    "(Tensor u, Tensor leaves, Tensor valid, Tensor leaf_sums, Tensor valid_counts, float uniform) -> (Tensor, Tensor)",
)
operator(
    "replay_gather",
    "(Tensor slots, Tensor frames, Tensor first, Tensor rewards, Tensor discounts, int length, int stack, int n_steps, "
    "float discount, float reward_clip) -> (Tensor, Tensor, Tensor)",
)
operator(
    "replay_kept",
    "(Tensor slots, Tensor serials, Tensor priorities, Tensor serials_now, Tensor valid, float max_priority, "
    "Tensor(a!) largest) -> (Tensor, Tensor)",
)
operator(
    "replay_update",
    "(Tensor slots, Tensor priorities, Tensor keep, float exponent, Tensor(a!) leaves, Tensor(b!) leaf_sums) -> ()",
)
