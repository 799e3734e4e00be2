"""Drawing from the replay, reading and updating it, each in one native call where torch makes a dozen. CPU only."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from nap_rl.native.build import kernels, pointer

_INFINITY = float("inf")


def draw(mass: Tensor, leaves: Tensor, valid: Tensor, c: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """Slots [B] int64 and their probabilities [B] float32, as `Priorities.sample` describes.

    Args:
        mass: [blocks] float64, the sums of what slots weigh.
        leaves, valid: [blocks, BLOCK] float32; a slot weighs leaf + c * valid.
        u: [2, B] float64 in [0, 1): for the block and for the leaf.
    """
    u = u.contiguous()
    slots = torch.empty(u.shape[1], dtype=torch.int64)
    probabilities = torch.empty(u.shape[1])
    kernels().replay_draw(
        ctypes.c_int64(leaves.shape[0]),
        ctypes.c_int64(leaves.shape[1]),
        *map(pointer, (mass, leaves, valid)),
        ctypes.c_double(c),
        ctypes.c_int64(len(slots)),
        *map(pointer, (u, slots, probabilities)),
    )
    return slots, probabilities


class Windows(NamedTuple):
    """What `windows` finds."""

    r_t: Tensor  # [B] float32
    discount_t: Tensor  # [B] float32
    stacks: Tensor  # [2, B, C] int64: the slots of the frames of s_tm1 and of s_t


def windows(
    slots: Tensor,
    *,
    length: int,
    stack: int,
    n_steps: int,
    zero_slot: int,
    first: Tensor,
    rewards: Tensor,
    discounts: Tensor,
    discount: float,
    reward_clip: float | None,
) -> Windows:
    """The n-step returns of valid starts, slots [B] int64, and where their frames are; names as in `Replay`."""
    batch = len(slots)
    found = Windows(torch.empty(batch), torch.empty(batch), torch.empty(2, batch, stack, dtype=torch.int64))
    kernels().replay_windows(
        ctypes.c_int64(batch),
        pointer(slots),
        *map(ctypes.c_int64, (length, stack, n_steps, zero_slot)),
        *map(pointer, (first, rewards, discounts)),
        ctypes.c_float(discount),
        ctypes.c_float(_INFINITY if reward_clip is None else reward_clip),
        *map(pointer, found),
    )
    return found


def update(slots: Tensor, entries: Tensor, keep: Tensor, leaves: Tensor, leaf_sums: Tensor) -> None:
    """Write entries [K] float32 into leaves [blocks, BLOCK] at slots [K] where keep [K]; see `Priorities.update`."""
    slots, entries, keep = slots.contiguous(), entries.contiguous(), keep.contiguous()
    kernels().replay_update(
        ctypes.c_int64(len(slots)),
        *map(pointer, (slots, entries, keep)),
        ctypes.c_int64(leaves.shape[1]),
        *map(pointer, (leaves, leaf_sums)),
    )
