"""Sampling in two levels against plain numpy: frequencies, edges, duplicates, sums."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nap_rl.replay import Replay
from nap_rl.replay import priorities as module
from nap_rl.replay.priorities import Priorities

BLOCK, REAL_BLOCK = 16, module.BLOCK


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks of few leaves: every path of the real ones, a hundred times faster."""
    monkeypatch.setattr(module, "BLOCK", BLOCK)


def filled(values: Sequence[float], *, exponent: float = 0.5, uniform: float = 0.0) -> Priorities:
    """Slot i has priority values[i]; a negative one means that it is not valid."""
    priorities = Priorities(len(values), exponent=exponent, uniform_probability=uniform)
    raw = torch.tensor(values, dtype=torch.float32)
    priorities.write(np.arange(len(values)), raw.clamp(min=0.0), (raw >= 0).numpy())
    return priorities


def chi_square_is_plausible(slots: Tensor, expected: npt.NDArray[np.float64]) -> bool:
    """Counts against probabilities; slots expected less than 5 times are put together."""
    counts = np.bincount(slots.numpy(), minlength=len(expected)).astype(float)
    mean = expected * len(slots)
    rare = mean < 5
    if mean[rare].sum() > 0:
        counts = np.append(counts[~rare], counts[rare].sum())
        mean = np.append(mean[~rare], mean[rare].sum())
    else:
        assert counts[rare].sum() == 0, "a slot of probability zero was drawn"
        counts, mean = counts[~rare], mean[~rare]
    statistic, freedom = ((counts - mean) ** 2 / mean).sum(), len(mean) - 1
    return bool(abs(statistic - freedom) <= 5 * np.sqrt(2 * freedom))


def mixture(
    raw: npt.NDArray[np.float64], valid: npt.NDArray[np.bool_], alpha: float, u: float
) -> npt.NDArray[np.float64]:
    powered = np.where(valid, raw**alpha, 0.0)
    return (1 - u) * powered / powered.sum() + u * valid / valid.sum()


@pytest.mark.parametrize(
    ("alpha", "u"), [(0.5, 0.0), (0.5, 1e-3), (1.0, 0.3), (0.0, 0.0), (0.7, 1.0)], ids=lambda x: f"{x:g}"
)
def test_frequencies_are_those_of_the_mixture_of_p_to_the_alpha_and_uniform(alpha: float, u: float) -> None:
    rng = np.random.default_rng(0)
    n = 5 * BLOCK + 7
    raw, valid = rng.gamma(0.5, 2.0, n).astype(np.float32).astype(float), rng.random(n) < 0.6
    priorities = filled(np.where(valid, raw, -1.0).tolist(), exponent=alpha, uniform=u)
    generator = torch.Generator().manual_seed(1)
    draws = [priorities.sample(4_000, generator) for _ in range(10)]
    slots, probabilities = torch.cat([draw.slots for draw in draws]), torch.cat([draw.probabilities for draw in draws])
    expected = mixture(raw, valid, alpha, u)
    assert chi_square_is_plausible(slots, expected)
    assert np.allclose(probabilities, expected[slots], rtol=1e-5)


def test_the_exponent_is_applied_once_in_write_and_once_in_update() -> None:
    priorities = filled([16.0, 1.0], exponent=0.5)
    assert priorities.leaves[0, :2].tolist() == [4.0, 1.0]
    priorities.update(torch.tensor([1]), torch.tensor([81.0]), torch.tensor([True]))
    assert priorities.leaves[0, :2].tolist() == [4.0, 9.0]
    draw = priorities.sample(1000, torch.Generator().manual_seed(0))
    assert np.allclose(draw.probabilities, np.array([4 / 13, 9 / 13])[draw.slots])


def edges(cumulative: npt.NDArray[np.float64]) -> list[float]:
    """Values of u in [0, 1) on, just below and just above every step of a cumulative sum, and both ends."""
    steps = cumulative / cumulative[-1]
    near = np.concatenate([steps, np.nextafter(steps, 0), np.nextafter(steps, 1), [0.0, 5e-324, 1 - 2**-53]])
    return [float(u) for u in near if 0.0 <= u < 1.0]


@pytest.mark.parametrize("uniform", [0.0, 1e-3])
def test_a_slot_of_zero_priority_or_not_valid_is_never_drawn_even_at_the_edges_of_u(
    uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.full(3 * BLOCK + 5, -1.0)  # the first and the last block hold nothing; so does most of the others
    values[[BLOCK, BLOCK + 1, BLOCK + 7, 2 * BLOCK - 1, 2 * BLOCK + 3]] = [0.1, 1e-9, 3.0, 7.0, 1e4]
    values[[BLOCK + 3, 2 * BLOCK]] = 0.0  # valid, priority zero
    priorities = filled(values.tolist(), uniform=uniform)
    allowed = set(np.flatnonzero(values > 0 if uniform == 0.0 else values >= 0).tolist())
    density = mixture(np.maximum(values, 0.0), values >= 0, 0.5, uniform)
    us = edges(np.array([density[i * BLOCK : (i + 1) * BLOCK].sum() for i in range(4)]).cumsum())
    for block in (1, 2):
        inner = edges(density[block * BLOCK : (block + 1) * BLOCK].cumsum())
        pairs = np.array(list(itertools.product(us, inner))).T
        with monkeypatch.context() as patched:
            patched.setattr(torch, "rand", lambda *size, pairs=pairs, **kwargs: torch.tensor(pairs))
            drawn = priorities.sample(pairs.shape[1]).slots
        assert set(drawn.tolist()) <= allowed
    assert set(priorities.sample(1000).slots.tolist()) <= allowed


def test_a_slot_made_invalid_is_never_drawn_again_and_comes_back_when_it_is_valid() -> None:
    priorities = filled([1.0] * 10, uniform=0.5)
    slots = np.array([3, 7])
    priorities.write(slots, torch.tensor([100.0, 100.0]), np.array([False, False]))
    assert not set(priorities.sample(2000).slots.tolist()) & {3, 7}
    assert not priorities.is_valid(slots).any() and priorities.is_valid(torch.tensor([0, 9])).all()
    priorities.write(slots[:1], torch.tensor([100.0]), np.array([True]))
    drawn = set(priorities.sample(2000).slots.tolist())
    assert 3 in drawn and 7 not in drawn


def test_a_priority_for_a_slot_that_was_retired_but_not_overwritten_since_is_dropped() -> None:
    replay = Replay(8, 1, frame_shape=(1,), n_steps=1, uniform_probability=0.5)

    def add(first: bool = False) -> None:
        one = np.ones(1)
        replay.add(np.zeros((1, 1), dtype=np.uint8), np.zeros(1, dtype=np.int64), one, one, np.array([first]))

    for k in range(12):
        add(first=k == 0)
    (oldest,) = torch.from_numpy(np.flatnonzero(replay.valid)).unbind()[:1]
    serials = replay.serials[oldest[None]].clone()
    add()
    assert not replay.valid[oldest] and torch.equal(
        replay.serials[oldest[None]], serials
    )  # left the window, not the ring
    replay.update(oldest[None], serials, torch.tensor([50.0]))
    assert float(replay.priorities.leaves.view(-1)[oldest]) == 0.0
    assert float(replay.largest_priority) == 1.0
    assert int(oldest) not in replay.priorities.sample(500).slots.tolist()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100, width=32), st.booleans()), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_duplicates_in_an_update_leave_the_largest_whatever_their_order(
    entries: list[tuple[int, float, bool]], random: object
) -> None:
    def updated(rows: list[tuple[int, float, bool]]) -> list[float]:
        priorities = filled([9.0] * 6, exponent=1.0)
        slots, values, keep = zip(*rows, strict=True)
        priorities.update(torch.tensor(slots), torch.tensor(values), torch.tensor(keep))
        assert float(priorities.leaf_sums[0]) == float(priorities.leaves.double().sum())
        result: list[float] = priorities.leaves[0, :6].tolist()
        return result

    shuffled = list(entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    expected = [9.0] * 6
    for slot in range(6):
        kept = [value for s, value, keep in entries if s == slot and keep]
        if kept:
            expected[slot] = max(kept)
    assert updated(entries) == updated(shuffled) == pytest.approx(expected)


def check_sums(priorities: Priorities, raw: npt.NDArray[np.float64], valid: npt.NDArray[np.bool_]) -> None:
    fresh = priorities.leaves.sum(dim=1, dtype=torch.float64)
    assert torch.allclose(priorities.leaf_sums, fresh, rtol=1e-14, atol=0.0)
    assert torch.equal(priorities.valid_counts, priorities.valid.sum(dim=1, dtype=torch.float64))
    flat = priorities.leaves.view(-1).numpy()
    assert np.allclose(flat[: len(raw)], np.where(valid, raw**priorities.exponent, 0.0), rtol=1e-6)
    assert np.array_equal(priorities.valid.view(-1).numpy()[: len(raw)] > 0, valid)
    assert not flat[len(raw) :].any()


def many_updates(calls: int, batch: int, capacity: int) -> None:
    rng = np.random.default_rng(0)
    priorities = Priorities(capacity, exponent=0.5)
    raw, valid = np.zeros(capacity), np.zeros(capacity, dtype=bool)
    for call in range(calls):
        values = (10.0 ** rng.uniform(-6, 2, batch)).astype(np.float32)
        if call % 3 == 0:
            slots = rng.choice(capacity, batch, replace=False)
            now = rng.random(batch) < 0.7
            priorities.write(slots, torch.from_numpy(values), now)
            raw[slots], valid[slots] = values, now
        else:
            slots = rng.integers(0, capacity, batch)
            keep = valid[slots] & (rng.random(batch) < 0.8)
            priorities.update(torch.from_numpy(slots), torch.from_numpy(values), torch.from_numpy(keep))
            raw[slots[keep]] = -1.0
            np.maximum.at(raw, slots[keep], values[keep].astype(float))
        if call % (calls // 5) == 0:
            check_sums(priorities, raw, valid)
    check_sums(priorities, raw, valid)


def test_sums_do_not_drift_over_100_thousand_updates() -> None:
    many_updates(calls=200, batch=500, capacity=300 * BLOCK + 3)


@pytest.mark.slow
def test_sums_do_not_drift_over_10_million_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", REAL_BLOCK)
    many_updates(calls=5_000, batch=2_000, capacity=2**20 + 1)


@pytest.mark.parametrize("capacity", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_slots_beyond_a_capacity_that_fills_no_whole_block_are_never_drawn(capacity: int) -> None:
    priorities = Priorities(capacity, uniform_probability=0.5)
    slots = np.arange(capacity)
    priorities.write(slots, torch.ones(()), np.ones(capacity, dtype=bool))
    draw = priorities.sample(3_000, torch.Generator().manual_seed(0))
    assert int(draw.slots.min()) >= 0 and int(draw.slots.max()) < capacity
    assert torch.allclose(draw.probabilities, torch.tensor(1 / capacity))
    assert chi_square_is_plausible(draw.slots, np.full(capacity, 1 / capacity))
    priorities.write(slots[:-1], torch.zeros(()), np.zeros(capacity - 1, dtype=bool))
    assert set(priorities.sample(100).slots.tolist()) == {capacity - 1}


def test_real_blocks_of_1024_sample_the_whole_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 1024)
    values = np.arange(3_000.0)
    draw = filled(values.tolist(), exponent=1.0).sample(1_000, torch.Generator().manual_seed(0))
    assert np.allclose(draw.probabilities, values[draw.slots] / values.sum(), rtol=1e-5)
    assert float(draw.slots.double().mean()) == pytest.approx(2_000, abs=120)  # the mean of i under P(i) ~ i


def test_a_single_slot_is_drawn_with_probability_one() -> None:
    draw = filled([0.25], uniform=1e-3).sample(5)
    assert draw.slots.tolist() == [0] * 5
    assert draw.probabilities.tolist() == pytest.approx([1.0] * 5)


def test_priorities_of_twelve_orders_of_magnitude_are_drawn_as_they_should_be() -> None:
    priorities = filled([1e-6, 1e6, 1e6, 1e-6], exponent=1.0)
    draw = priorities.sample(2_000, torch.Generator().manual_seed(0))
    assert set(draw.slots.tolist()) == {1, 2}
    assert float(priorities.leaf_sums[0]) == pytest.approx(2e6 + 2e-6, rel=1e-12)


def test_the_draw_is_a_function_of_the_generator() -> None:
    priorities = filled(np.random.default_rng(0).random(3000).tolist())
    first, again, other = (
        priorities.sample(64, torch.Generator().manual_seed(seed)).slots.tolist() for seed in (5, 5, 6)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"capacity": 0}, "capacity is 0, expected 1 slot or more"),
        ({"capacity": 4, "uniform_probability": 1.5}, "uniform_probability is 1.5"),
        ({"capacity": 4, "uniform_probability": -0.1}, "uniform_probability is -0.1"),
        ({"capacity": 4, "exponent": -1.0}, "priority exponent is -1.0, expected 0 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Priorities(**settings)  # type: ignore[arg-type]


def test_sampling_is_uniform_where_every_priority_is_zero() -> None:
    priorities = Priorities(10, exponent=0.5, uniform_probability=0.0)
    priorities.write(np.array([2, 5]), torch.zeros(()), np.array([True, True]))
    draw = priorities.sample(100)
    assert set(draw.slots.tolist()) == {2, 5}
    assert draw.probabilities.tolist() == [0.5] * 100
