"""The arithmetic of the benchmarks: turns, medians, ratios, rates, tables."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from benchmarks import measure


class Clock:
    """Passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_variants_run_in_turn_and_the_warm_up_does_not_count(clock: Clock) -> None:
    order: list[str] = []
    seconds = {name: itertools.count(start) for name, start in (("a", 1), ("b", 10))}

    def run(name: str) -> None:
        order.append(name)
        clock.sleep(next(seconds[name]))

    times = measure.interleaved({name: lambda name=name: run(name) for name in "ab"}, 3, warm_up=2)
    assert "".join(order) == "ab" * 5
    assert times == {"a": [3e3, 4e3, 5e3], "b": [12e3, 13e3, 14e3]}


def test_a_ratio_is_the_median_within_turns_and_not_the_ratio_of_medians() -> None:
    times = {"a": [1.0, 10.0, 100.0], "b": [2.0, 5.0, 100.0], "c": [2.0, 5.0, 300.0]}
    assert measure.ratio(times, "a", "b") == 1.0
    assert measure.ratio(times, "a", "b", "c") == 0.25  # 1 / 4, 10 / 10, 100 / 400
    drifting = {"a": [1.0, 2.0, 4.0, 8.0], "b": [2.0, 4.0, 8.0, 16.0]}  # a machine that slows down
    assert measure.ratio(drifting, "a", "b") == 0.5
    assert measure.median(drifting, "a") == 3.0


def test_a_rate_is_what_was_done_and_not_what_was_asked_for(clock: Clock) -> None:
    calls: list[int] = []

    def eight_at_a_time(units: int) -> int:
        calls.append(units)
        done = -(-units // 8) * 8
        clock.sleep(done * 0.01)
        return done

    found = measure.rates({"a": eight_at_a_time}, seconds=5.0, turns=2)
    assert found["a"] == pytest.approx([100.0, 100.0])
    assert calls[-2:] == [500, 500]  # so many fill five seconds


def test_a_table_is_markdown_with_three_figures() -> None:
    text = measure.table(["name", "ms"], [["a", 0.12345], ["longer", 1.2345], ["b", 12.345], ["c", 12345.6], ["d", 7]])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["name", "ms"] and set("".join(cells[1])) == {"-"}
    assert cells[2:] == [["a", "0.123"], ["longer", "1.23"], ["b", "12.3"], ["c", "12,346"], ["d", "7"]]


def test_resident_memory_grows_with_what_is_touched() -> None:
    before = measure.resident()
    if before == 0:
        pytest.skip("this system does not tell")
    array = np.ones(1 << 24)  # 128 MiB
    assert 0.8 * array.nbytes < measure.resident() - before < 1.5 * array.nbytes


def test_versions_names_what_is_not_there() -> None:
    text = measure.versions("numpy", "no-such-package")
    assert f"numpy {np.__version__}" in text and "no-such-package not installed" in text
    assert "cores" in measure.machine()
