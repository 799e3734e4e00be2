"""A replay put back from its records and its state samples as the original does, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nap_rl.replay import Replay


def make(capacity: int = 60, num_envs: int = 3) -> Replay:
    return Replay(capacity, num_envs, frame_shape=(2, 3), n_steps=3, seed=4)


def play(replay: Replay, steps: int, seed: int) -> None:
    """Steps with episodes of different phase, truncated and terminal ones."""
    rng = np.random.default_rng(seed)
    first = np.ones(len(replay.counts), dtype=bool)
    for _ in range(steps):
        frames = rng.integers(0, 256, (len(first), 2, 3)).astype(np.uint8)
        ended = rng.random(len(first)) < 0.1
        over = ended & (rng.random(len(first)) < 0.5)
        replay.add(frames, rng.integers(0, 9, len(first)), rng.normal(size=len(first)), ~over, first)
        if ended.any():
            replay.end_episode(frames[ended], np.flatnonzero(ended))
        first = ended
        if len(replay):
            batch = replay.sample(4, 0.5)
            replay.update(batch.slots, batch.serials, torch.rand(4, generator=torch.Generator().manual_seed(steps)))


def all_records(replay: Replay) -> np.ndarray:
    oldest = replay.oldest()
    pairs = [(e, s) for e in range(len(oldest)) for s in range(oldest[e], replay.counts[e])]
    envs, serials = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return replay.records(envs, serials)


@pytest.mark.parametrize("steps", [0, 1, 3, 17, 40, 150])
def test_it_goes_on_as_if_nothing_had_happened(steps: int) -> None:
    original, restored = make(), make()
    play(original, steps, seed=1)
    state = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    restored.load_state_dict(state)
    restored.frames[:-1].fill_(77)  # what is in memory that was never written must not matter
    restored.load_records(all_records(original))
    for replay in (original, restored):
        play(replay, 60, seed=2)
    assert len(original) == len(restored) > 0
    for _ in range(20):
        for one, two in zip(original.sample(16, 0.7), restored.sample(16, 0.7), strict=True):
            assert torch.equal(one, two)
    assert all(torch.equal(t, restored.state_dict()[name]) for name, t in original.state_dict().items())


def test_a_state_is_left_as_it_is_by_the_replay_that_goes_on_from_it() -> None:
    original, restored = make(), make()
    play(original, 40, seed=1)
    state = original.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    restored.load_state_dict(state)
    restored.load_records(all_records(original))
    for replay in (original, restored):
        slots = torch.from_numpy(np.flatnonzero(replay.valid)[:4])
        replay.update(slots, replay.serials[slots], torch.full((4,), 50.0))
        play(replay, 20, seed=2)
    assert float(restored.largest_priority) == 50.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_every_slot_that_can_be_sampled_is_among_the_records_with_its_stack() -> None:
    replay = make()
    play(replay, 150, seed=1)
    saved = {(int(r["env"]), int(r["serial"])) for r in all_records(replay)}
    for slot in np.flatnonzero(replay.valid):
        env, serial = slot // replay.length, int(replay.serials[slot])
        assert {(env, serial - k) for k in range(replay.stack)} <= saved
    assert len(saved) == 3 * (replay.window + replay.stack - 1)


def test_records_too_old_to_be_read_are_left_out() -> None:
    replay, restored = make(), make()
    play(replay, 10, seed=1)
    old = all_records(replay)
    play(replay, 150, seed=2)
    restored.load_state_dict(replay.state_dict())
    restored.load_records(old)
    assert (restored.serials == -1).all()


def test_a_replay_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="the saved replay has 3 environments and .* slots, this one 2 and"):
        make(num_envs=2).load_state_dict(make().state_dict())
    with pytest.raises(ValueError, match="capacity"):
        make(capacity=70).load_state_dict(make().state_dict())


def test_a_replay_that_adopts_another_samples_as_that_one_from_memory_of_its_own() -> None:
    original, other = make(), make()
    play(original, 150, seed=1)
    play(other, 30, seed=3)
    memory = {name: tensor.data_ptr() for name, tensor in other.tensors().items()}
    other.adopt(original)
    assert memory == {name: tensor.data_ptr() for name, tensor in other.tensors().items()}
    for replay in (original, other):
        play(replay, 60, seed=2)
    for one, two in zip(original.sample(64, 0.7), other.sample(64, 0.7), strict=True):
        assert torch.equal(one, two)
