"""The stacks that the network acts on equal the stacks that the replay returns."""

from __future__ import annotations

import numpy as np
import torch

from nap_rl.agents import FrameStack
from nap_rl.replay import Replay


def test_oldest_first_zeros_before_the_first_frame_and_nothing_of_the_episode_before() -> None:
    stack = FrameStack(2, stack=3, shape=(1,))
    pushes = [([1, 10], [True, True]), ([2, 20], [False, False]), ([3, 30], [False, True]), ([4, 40], [False, False])]
    for frames, first in pushes:
        stacks = stack.push(np.array(frames, dtype=np.uint8)[:, None], np.array(first))
    assert stacks[:, :, 0].tolist() == [[2, 3, 4], [0, 30, 40]]


def test_acting_and_learning_see_the_same_stacks() -> None:
    rng = np.random.default_rng(0)
    replay = Replay(200, 2, frame_shape=(1,), n_steps=1)
    stack = FrameStack(2, stack=4, shape=(1,))
    acted, first = [], np.array([True, True])
    for _ in range(60):
        frames = rng.integers(1, 256, (2, 1)).astype(np.uint8)
        slots = np.arange(2) * replay.length + replay.counts % replay.length
        acted += list(zip(slots.tolist(), stack.push(frames, first).copy(), strict=True))
        ended = rng.random(2) < 0.15
        replay.add(frames, np.zeros(2, dtype=np.int64), np.zeros(2), np.ones(2), first)
        if ended.any():
            replay.end_episode(rng.integers(1, 256, (int(ended.sum()), 1)).astype(np.uint8), np.flatnonzero(ended))
        first = ended
    valid = [(slot, stacked) for slot, stacked in acted if replay.valid[slot]]
    assert len(valid) > 100
    s_tm1 = replay.gather(torch.tensor([slot for slot, _ in valid]))[0]
    assert np.array_equal(s_tm1.numpy(), np.stack([stacked for _, stacked in valid]))
