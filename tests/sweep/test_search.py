"""Random search: draws are the seed's, numbers lie where they should, and every draw runs with every seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nap_rl.sweep import search

LOG = "schedule.start=tag(log,interval(1e-5,1e-1))"


def values(overrides: list[str], samples: int, seed: int = 0) -> list[dict[str, str]]:
    found = search.random(overrides, samples, seed)
    return [dict(text.split("=", 1) for text in combination.overrides) for combination in found]


def test_every_draw_runs_with_every_seed() -> None:
    found = search.random([LOG, "seed=0..2", "frames=100"], 4, 0)
    assert len(found) == 12 and len({each.overrides[0] for each in found}) == 4
    assert [each.differing[1] for each in found[:3]] == ["seed=0", "seed=1", "seed=2"]
    assert all(len(each.differing) == 2 and each.overrides[1] == "frames=100" for each in found)


def test_the_same_seed_draws_the_same() -> None:
    assert search.random([LOG], 5, 3) == search.random([LOG], 5, 3) != search.random([LOG], 5, 4)


def test_a_logarithmic_range_has_as_much_in_each_decade_and_a_linear_one_in_each_piece() -> None:
    drawn = values([LOG, "x=interval(-1,3)"], 4000)
    decades = np.histogram([math.log10(float(each["schedule.start"])) for each in drawn], bins=4, range=(-5, -1))[0]
    quarters = np.histogram([float(each["x"]) for each in drawn], bins=4, range=(-1, 3))[0]
    assert decades.sum() == quarters.sum() == 4000
    assert np.abs(np.concatenate([decades, quarters]) - 1000).max() < 5 * math.sqrt(4000 * 0.25 * 0.75)


def test_choices_and_ranges_are_drawn_from() -> None:
    drawn = values(["agent=dqn,rainbow", "n=range(0,3)", "m=5..6"], 200)
    assert {each["agent"] for each in drawn} == {"dqn", "rainbow"}
    assert {each["n"] for each in drawn} == {"0", "1", "2"} and {each["m"] for each in drawn} == {"5", "6"}


@pytest.mark.parametrize("text", ["x=interval(1,1)", "x=interval(2,1)", "x=tag(log,interval(0,1))"])
def test_a_range_without_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="low < high"):
        search.random([text], 1, 0)


def test_optuna_finds_the_best_rate_from_what_it_is_told() -> None:
    pytest.importorskip("optuna")
    from nap_rl.sweep.optuna_search import OptunaSearch

    def score(rate: str) -> float:
        return -((math.log10(float(rate)) + 3) ** 2)

    told: list[tuple[str, ...]] = []
    for draw in range(30):  # as if the driver was killed after each draw
        finder = OptunaSearch([LOG, "agent=dqn,rainbow", "frames=10", "seed=0..1"], draw)
        for overrides in told:
            finder.tell(overrides, score(overrides[0].partition("=")[2]))
        first, second = finder.ask(1)
        assert first.overrides[:3] == second.overrides[:3] and first.overrides[2] == "frames=10"
        assert [each.differing[-1] for each in (first, second)] == ["seed=0", "seed=1"] and len(first.differing) == 3
        told.append(first.overrides)
    rates = [overrides[0].partition("=")[2] for overrides in told]
    assert np.mean([score(rate) for rate in rates[15:]]) > np.mean([score(rate) for rate in rates[:10]])
    assert max(map(score, rates)) > -0.05
