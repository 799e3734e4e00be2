"""The frame ring against a slow oracle: lists of transitions and loops in float64, written from the papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_rl.replay import Replay, priorities

STACK = 4


@dataclass
class Slot:
    frame: int
    action: int = 0
    reward: float = 0.0
    discount: float = 1.0
    last: bool = False


@dataclass
class Oracle:
    """One environment: every slot ever written, and for each the index at which its episode began."""

    slots: list[Slot] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    forgotten: int = 0  # slots before this one were cleared

    def append(self, slot: Slot, first: bool) -> None:
        self.begins.append(len(self.slots) if first else self.begins[-1])
        self.slots.append(slot)

    def steps(self, t: int, n: int) -> int | None:
        """Steps from t to its bootstrap state; None if it cannot start a transition (yet)."""
        if self.slots[t].last:
            return None
        for m in range(1, n + 1):
            if t + m >= len(self.slots):
                return None
            if self.slots[t + m].last:
                return m
        return n

    def starts(self, n: int, window: int) -> set[int]:
        oldest = max(len(self.slots) - window, self.forgotten)
        return {t for t in range(oldest, len(self.slots)) if self.steps(t, n) is not None}

    def stacked(self, t: int) -> list[int]:
        return [self.slots[k].frame if k >= self.begins[t] else 0 for k in range(t - STACK + 1, t + 1)]

    def transition(self, t: int, n: int, gamma: float, clip: float) -> tuple[list[int], int, float, float, list[int]]:
        m = self.steps(t, n)
        assert m is not None
        total, product = 0.0, 1.0
        for k in range(t, t + m):
            total += product * min(max(self.slots[k].reward, -clip), clip)
            product *= gamma * self.slots[k].discount
        return self.stacked(t), self.slots[t].action, total, product, self.stacked(t + m)


class Episode(NamedTuple):
    length: int
    end: str  # "terminal" | "truncated"
    lost: list[int]  # steps on which a life was lost


@dataclass
class History:
    """What N environments play, all stepping together, each with its own phase."""

    n: int
    window: int
    episodes: list[list[Episode]]  # by environment
    switches: list[int]  # steps after which the task changes: every episode is cut
    clears: bool  # whether a switch empties the replay


@st.composite
def histories(draw: st.DrawFn) -> History:
    n = draw(st.integers(1, 5))
    episode = st.builds(
        Episode,
        st.integers(1, 60),
        st.sampled_from(["terminal", "truncated"]),
        st.lists(st.integers(0, 59), max_size=3),
    )
    return History(
        n,
        draw(st.integers(n + 1, 40)),
        draw(st.lists(st.lists(episode, min_size=1, max_size=4), min_size=1, max_size=3)),
        draw(st.lists(st.integers(0, 120), max_size=3)),
        draw(st.booleans()),
    )


def play(history: History) -> tuple[Replay, list[Oracle]]:
    """Drive the replay as the trainer does."""
    envs, window = len(history.episodes), history.window
    replay = Replay(window * envs, envs, frame_shape=(1,), frame_dtype=torch.int64, n_steps=history.n, stack=STACK)
    oracles = [Oracle() for _ in range(envs)]
    frame = iter(range(1, 10**9))
    rng = np.random.default_rng(history.n * 1000 + window)
    queues = [list(episodes) for episodes in history.episodes]
    age = [0] * envs
    for t in range(240):
        if not all(queues):
            break
        now = [queue[0] for queue in queues]
        frames = np.array([next(frame) for _ in now])
        actions, rewards = rng.integers(0, 18, envs), rng.normal(0, 2, envs)
        first = np.array([k == 0 for k in age])
        over = np.array([k == episode.length - 1 for k, episode in zip(age, now, strict=True)])
        terminal = over & np.array([episode.end == "terminal" for episode in now])
        lost = np.array([k in episode.lost for k, episode in zip(age, now, strict=True)])
        discounts = np.where(terminal | lost, 0.0, 1.0)
        replay.add(frames[:, None], actions, rewards, discounts, first)
        for e in range(envs):
            slot = Slot(int(frames[e]), int(actions[e]), float(np.float32(rewards[e])), float(discounts[e]))
            oracles[e].append(slot, bool(first[e]))
        ended = np.flatnonzero(over | (t in history.switches))
        if len(ended):
            last = np.array([next(frame) for _ in ended])
            replay.end_episode(last[:, None], ended)
            for e, f in zip(ended, last, strict=True):
                oracles[e].append(Slot(int(f), last=True), first=False)
        for e in range(envs):
            age[e] += 1
            if e in ended:
                queues[e].pop(0)
                age[e] = 0
        if t in history.switches and history.clears:
            replay.clear()
            for oracle in oracles:
                oracle.forgotten = len(oracle.slots)
    return replay, oracles


@settings(max_examples=150, deadline=None)
@given(histories())
def test_every_valid_start_equals_the_oracle_and_no_other_can_be_drawn(history: History) -> None:
    n = history.n
    replay, oracles = play(history)
    expected = {}
    for e, oracle in enumerate(oracles):
        for t in oracle.starts(n, history.window):
            expected[e * replay.length + t % replay.length] = (e, t)
    valid = replay.priorities.valid.view(-1).nonzero().squeeze(1)
    assert set(valid.tolist()) == set(expected)
    assert set(np.flatnonzero(replay.valid).tolist()) == set(expected)
    assert len(replay) == len(expected)
    if not expected:
        return
    batch = replay.sample(64)
    assert set(batch.slots.tolist()) <= set(expected)
    slots = torch.cat([valid, batch.slots])
    columns = replay.gather(valid), batch[:5]
    s_tm1, a_tm1, r_t, discount_t, s_t = (torch.cat(pair).numpy() for pair in zip(*columns, strict=True))
    rows = [oracles[e].transition(t, n, 0.99, 1.0) for e, t in map(expected.__getitem__, slots.tolist())]
    stacks, actions, totals, products, bootstraps = map(np.array, zip(*rows, strict=True))
    np.testing.assert_array_equal(s_tm1[:, :, 0], stacks)
    np.testing.assert_array_equal(a_tm1, actions)
    np.testing.assert_allclose(r_t, totals, rtol=0, atol=1e-5)
    np.testing.assert_allclose(discount_t, products, rtol=0, atol=1e-6)
    goes_on = products > 0.0  # what a zero discount bootstraps from does not matter
    np.testing.assert_array_equal(s_t[goes_on, :, 0], bootstraps[goes_on])


def steps(replay: Replay, count: int, *, end: str | None = None, env: int = 0, start: int = 1) -> None:
    """One episode of `count` steps with frames start, start + 1, ... and reward = frame / 100."""
    for k in range(count):
        discount = 0.0 if end == "terminal" and k == count - 1 else 1.0
        frame = np.array([[start + k]])
        replay.add(frame, np.array([k % 18]), frame[:, 0] / 100, np.array([discount]), np.array([k == 0]))
    if end is not None:
        replay.end_episode(np.array([[start + count]]), np.array([env]))


def small(n: int = 3, capacity: int = 50) -> Replay:
    return Replay(capacity, 1, frame_shape=(1,), frame_dtype=torch.int64, n_steps=n)


def test_bootstraps_from_s_t_plus_n_and_not_from_s_t_plus_1() -> None:
    replay = small()
    steps(replay, 10)
    *_, s_t = replay.gather(torch.tensor([4]))
    assert s_t[0, :, 0].tolist() == [
        5,
        6,
        7,
        8,
    ]  # start 4 is frame 5; three steps later the newest frame is 8


def test_a_truncated_episode_bootstraps_from_its_own_last_frame_with_gamma_to_its_real_length() -> None:
    replay = small()
    steps(replay, 5, end="truncated")
    steps(replay, 5, start=100)
    _, _, r_t, discount_t, s_t = replay.gather(torch.tensor([3]))  # two steps before the cut
    assert s_t[0, :, 0].tolist() == [3, 4, 5, 6]
    assert float(discount_t[0]) == pytest.approx(0.99**2)
    assert float(r_t[0]) == pytest.approx(0.04 + 0.99 * 0.05)


def test_the_last_n_minus_1_starts_before_a_terminal_are_kept() -> None:
    replay = small()
    steps(replay, 5, end="terminal")
    assert replay.priorities.valid.view(-1)[:6].tolist() == [1, 1, 1, 1, 1, 0]
    assert replay.gather(torch.arange(5))[3].tolist() == pytest.approx([0.99**3, 0.99**3, 0, 0, 0])


def test_windows_of_an_ended_episode_ignore_what_an_older_lap_left_ahead_of_the_newest_slot() -> None:
    replay = small(capacity=8)
    steps(replay, 30, start=1)  # several laps of one long episode: stale slots ahead say "not first"
    steps(replay, 3, end="truncated", start=100)
    newest = int(replay.counts[0]) - 1
    slot = torch.tensor([(newest - 1) % replay.length])
    *_, discount_t, s_t = replay.gather(slot)
    assert float(discount_t[0]) == pytest.approx(0.99)
    assert s_t[0, :, 0].tolist() == [100, 101, 102, 103]


def test_life_loss_zeroes_the_discount_but_the_game_goes_on() -> None:
    replay = small()
    for k in range(8):
        replay.add(
            np.array([[k + 1]]),
            np.array([0]),
            np.array([0.5]),
            np.array([0.0 if k == 3 else 1.0]),
            np.array([k == 0]),
        )
    s_tm1, _, r_t, discount_t, _ = replay.gather(torch.tensor([2, 4]))
    assert discount_t.tolist() == pytest.approx([0.0, 0.99**3])
    assert float(r_t[0]) == pytest.approx(0.5 + 0.99 * 0.5)  # nothing after the lost life counts
    assert s_tm1[1, :, 0].tolist() == [2, 3, 4, 5]  # the stack reaches back over the lost life


def test_rewards_stay_raw_in_the_ring_and_are_clipped_one_by_one_when_sampled() -> None:
    replay = small()
    for k, reward in enumerate([5.0, -7.0, 0.25, 0.0, 0.0]):
        replay.add(np.array([[k]]), np.array([0]), np.array([reward]), np.array([1.0]), np.array([k == 0]))
    assert replay.rewards[:3].tolist() == [5.0, -7.0, 0.25]
    assert float(replay.gather(torch.tensor([0]))[2][0]) == pytest.approx(1 - 0.99 + 0.99**2 * 0.25)


def test_new_transitions_get_the_largest_priority_seen() -> None:
    replay = small()
    steps(replay, 10)
    assert set(replay.priorities.leaves.view(-1)[:7].tolist()) == {1.0}
    slots = torch.tensor([0, 1])
    replay.update(slots, replay.serials[slots], torch.tensor([9.0, 4.0]))
    replay.add(np.array([[0]]), np.array([0]), np.array([0.0]), np.array([1.0]), np.array([False]))
    assert replay.priorities.leaves.view(-1)[[0, 1, 7]].tolist() == [
        3.0,
        2.0,
        3.0,
    ]  # square roots: the exponent, once


def test_a_priority_for_a_slot_that_was_overwritten_since_is_dropped() -> None:
    replay = small(capacity=8)
    steps(replay, 12)
    batch = replay.sample(4)
    steps(replay, replay.length)  # one whole lap
    before = replay.priorities.leaves.clone()
    replay.update(batch.slots, batch.serials, torch.full((4,), 50.0))
    assert torch.equal(before, replay.priorities.leaves)
    assert float(replay.largest_priority) == 1.0


def test_weights_are_divided_by_the_batch_maximum_and_follow_the_exponent() -> None:
    replay = Replay(50, 1, frame_shape=(1,), frame_dtype=torch.int64, uniform_probability=0.0)
    steps(replay, 20)
    slots = torch.arange(10)
    replay.update(slots, replay.serials[slots], torch.linspace(0.1, 5.0, 10))
    for beta in (0.0, 0.4, 1.0):
        batch = replay.sample(64, beta)
        p = replay.priorities.leaves.view(-1)[batch.slots].double()
        expected = (p / p.min()) ** -beta
        assert torch.allclose(batch.weights.double(), expected, rtol=1e-5)


def test_environments_share_one_distribution_and_not_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priorities, "BLOCK", 8)  # several blocks to a column
    replay = Replay(60, 3, frame_shape=(1,), frame_dtype=torch.int64, n_steps=1, uniform_probability=0.1)
    zero, one = np.zeros(1), np.ones(1)
    for env, steps in enumerate((16, 4, 9)):  # 15, 3 and 8 starts: columns of different fill
        for k in range(steps):
            replay.add(np.array([[k]]), zero, zero, one, np.array([k == 0]), np.array([env]))
    slots = torch.from_numpy(np.flatnonzero(replay.valid))
    raw = torch.linspace(0.2, 6.0, len(slots))
    replay.update(slots, replay.serials[slots], raw)
    powered = raw.double().sqrt()
    expected = 0.9 * powered / powered.sum() + 0.1 / len(slots)
    draws = torch.cat([replay.sample(4_000).slots for _ in range(10)])
    counts = torch.stack([(draws == slot).sum() for slot in slots]).double()
    mean = expected * len(draws)
    assert len(slots) == 26 and counts.sum() == len(draws)
    assert float(((counts - mean) ** 2 / mean).sum()) < 25 + 5 * (2 * 25) ** 0.5  # chi-square, 25 degrees of freedom


def test_no_priority_is_clipped_below_the_loss_that_a_fresh_c51_begins_with() -> None:
    replay, fresh = small(), math.log(51)
    steps(replay, 10)
    slots = torch.arange(3)
    replay.update(slots, replay.serials[slots], torch.tensor([fresh, 2 * fresh, 99.0]))
    assert replay.priorities.leaves.view(-1)[:3].tolist() == pytest.approx([fresh**0.5, (2 * fresh) ** 0.5, 99**0.5])


def test_clear_forgets_every_transition_and_the_ring_goes_on() -> None:
    replay = small()
    steps(replay, 10)
    replay.clear()
    assert len(replay) == 0
    with pytest.raises(ValueError, match="no complete transition"):
        replay.sample(2)
    steps(replay, 5, end="truncated", start=200)
    assert len(replay) == 5
    assert replay.sample(16).s_tm1.max() >= 200


def test_a_ring_too_small_for_the_return_is_refused() -> None:
    with pytest.raises(ValueError, match="too few for 3-step returns"):
        Replay(8, 4)


def test_what_the_learner_reads_moves_to_its_device_and_what_the_replay_reads_stays() -> None:
    replay = small()
    steps(replay, 20)
    batch = replay.sample(4)
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))  # a device without memory
    assert [tensor.device.type for tensor in moved] == 6 * ["meta"] + 2 * ["cpu"]
    assert [tensor.shape for tensor in moved] == [tensor.shape for tensor in batch]
    assert moved.slots is batch.slots and moved.serials is batch.serials


def test_priorities_that_are_not_numbers_are_dropped_and_infinite_ones_clipped() -> None:
    replay = Replay(50, 1, frame_shape=(1,), n_steps=1, max_priority=100.0)
    for k in range(30):
        replay.add(np.zeros((1, 1), np.uint8), np.zeros(1), np.zeros(1), np.ones(1), np.array([k == 0]))
    slots = torch.from_numpy(np.flatnonzero(replay.valid)[:3])
    before = replay.priorities.leaves.view(-1)[slots].clone()
    replay.update(slots, replay.serials[slots], torch.tensor([float("nan"), float("inf"), 4.0]))
    leaves = replay.priorities.leaves.view(-1)[slots]
    assert leaves.tolist() == pytest.approx([float(before[0]), 10.0, 2.0])
    assert float(replay.largest_priority) == 100.0
    assert len(replay.sample(64).slots) == 64
