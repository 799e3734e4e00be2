"""The learning rate rises again when the return stops to rise, and layers may have rates of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nap_rl.agents import OnSwitch, ValueAgent
from nap_rl.envs import sequence
from nap_rl.nap import weight_groups
from nap_rl.nap.groups import split_groups
from nap_rl.schedules import Linear, Rewarming, Stall
from tests.agents.test_trainer import CONFIG, Run

Make = Callable[..., ValueAgent]
SETTINGS = Rewarming(cycle_frames=100, patience_frames=50, tolerance=0.1)


def stalls(readings: list[tuple[int, float | None]], settings: Rewarming = SETTINGS, frame: int = 0) -> list[int]:
    """Frames at which learning has stalled, each of which begins a warming."""
    stall, found = Stall(settings, frame), []
    for frame, value in readings:
        if stall(frame, value):
            found.append(frame)
            stall.begin(frame)
    return found


def test_a_return_that_stays_stalls_after_the_cycle_and_the_patience() -> None:
    readings: list[tuple[int, float | None]] = [(frame, 10.0) for frame in range(0, 301, 10)]
    assert stalls(readings) == [100, 200, 300]  # the cycle is longer than the patience
    assert stalls(readings, replace(SETTINGS, patience_frames=130)) == [130, 270]  # what follows a warming is its best
    assert stalls(readings, frame=55) == [160, 260]


def test_a_return_that_rises_by_more_than_the_tolerance_never_stalls() -> None:
    assert stalls([(frame, 1.2 ** (frame / 40)) for frame in range(0, 401, 40)]) == []
    assert stalls([(frame, 1.02 ** (frame / 40)) for frame in range(0, 401, 40)]) == [120, 240, 360]


@pytest.mark.parametrize(("last", "stalled"), [(-9.5, True), (-8.9, False), (-12.0, True)])
def test_below_zero_a_tenth_of_the_size_counts(last: float, stalled: bool) -> None:
    assert (stalls([(0, -10.0), (60, last), (100, last)]) == [100]) is stalled


def test_no_finished_episode_is_no_improvement() -> None:
    assert stalls([(0, None), (90, None), (100, None)]) == [100]


def test_a_state_goes_on_where_it_was() -> None:
    stall = Stall(SETTINGS, 7)
    stall(20, 0.1 + 0.2)
    other = Stall(SETTINGS, 0)
    other.load_state(stall.state())
    assert (other.warmed, other.improved, other.best) == (7, 20, 0.1 + 0.2)


def test_a_run_whose_return_stays_is_warmed_in_every_cycle(make_agent: Make, tmp_path: Path) -> None:
    # Every episode gives 14; the replay is filled after 160 frames.
    rewarming = Rewarming(cycle_frames=400, patience_frames=80, tolerance=0.0)
    config = replace(CONFIG, learning_rate=Linear(1.0, 0.2), rewarming=rewarming)
    run = Run(tmp_path, make_agent(), config, learns=False)
    run.trainer.run()
    for update in run.updates:
        assert update["rate"] == pytest.approx(1.0 - 0.8 * ((update["frames"] - 160) % 400) / 400)


def test_a_switch_begins_a_warming_where_the_schedule_restarts(make_agent: Make, tmp_path: Path) -> None:
    rewarming = Rewarming(cycle_frames=600, patience_frames=80, tolerance=0.0)
    on_switch = OnSwitch(restart_schedule=True)
    config = replace(CONFIG, learning_rate=Linear(1.0, 0.4), rewarming=rewarming, on_switch=on_switch)
    run = Run(tmp_path, make_agent(), config, sequence.plan(["one", "two"], [1_000] * 2, 1), learns=False)
    run.trainer.run()
    for update in run.updates:  # the update of the switching step still belongs to the visit before
        frames = update["frames"]
        begin = 160 if frames < 760 else 760 if frames <= 1_000 else 1_000 if frames < 1_600 else 1_600
        assert update["rate"] == pytest.approx(1.0 - 0.6 * (frames - begin) / 600)


def test_a_layers_rate_is_the_rate_times_its_factor(make_agent: Make, tmp_path: Path) -> None:
    agent = make_agent(nap=True)
    layers = weight_groups(agent.network)
    name = "streams.advantage.hidden"
    split_groups(agent.optimizer, {name: layers[name]})
    config = replace(CONFIG, learning_rate=Linear(1.0, 0.5), layer_factors=lambda progress: {name: 2.0 + progress})
    run = Run(tmp_path, agent, config, learns=False)
    seen = []
    update = agent.update

    def spied(importance: float) -> object:
        rates = {group.get("layer"): group["lr"] for group in agent.optimizer.param_groups}
        seen.append((run.trainer.frames, rates[None], rates[name]))
        return update(importance)

    agent.update = spied  # type: ignore[method-assign, assignment]
    run.trainer.run()
    assert len(seen) > 100
    for frames, rate, own in seen:
        progress = (frames - 160) / 1_840
        assert rate == pytest.approx(1.0 - 0.5 * progress)
        assert own == pytest.approx(rate * (2.0 + progress))
