"""Curves of arms at common frames, against numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_rl.logging import RunLog
from nap_rl.report.curves import Episodes
from nap_rl.report.page import runs
from nap_rl.report.page.runs import Training, TrainingArm
from nap_rl.report.sequence import Switch

NAP = {"agent.nap": True}


def training(seed: int = 0, *, begins: tuple[float, ...] = (0.0,), frames: float = 100.0, **more: Any) -> Training:
    """A run of tasks t0, t1, ... whose episodes end every 10 frames with the frame as their return."""
    ended = np.arange(10.0, frames + 1, 10.0)
    visit = np.searchsorted(begins, ended, side="left") - 1
    episodes = Episodes(ended, ended, tuple(f"t{i}" for i in visit), (0,) * ended.size)
    switches = tuple(Switch(begin, f"t{i}") for i, begin in enumerate(begins))
    values: dict[str, Any] = {"settings": NAP, "summary": {}, "row_frames": ended, "layers": {}, "visits": None}
    values |= {"folder": Path(f"seed_{seed}"), "episodes": episodes, **more}
    return Training(seed=seed, frames=frames, begins=switches, **values)


def test_curves_have_points_that_divide_each_visit_evenly() -> None:
    assert runs.grid(training(begins=(0.0, 40.0), frames=100.0), 4).tolist() == [20, 40, 70, 100]
    assert runs.grid(training(frames=100.0), 4).tolist() == [25, 50, 75, 100]


def test_of_very_many_visits_the_ends_of_equally_many_make_a_point() -> None:
    run = training(begins=tuple(np.arange(0.0, 70.0, 10.0)), frames=70.0)
    assert runs.grid(run, 3).tolist() == [30, 60, 70]
    assert runs.grid(run, 100).size == 7 * 14


def test_a_return_is_the_mean_of_the_visits_last_episodes_and_unknown_before_its_first() -> None:
    run = training(begins=(0.0, 40.0), frames=70.0)
    returns = runs.returns_at(run, np.array([5.0, 20.0, 40.0, 45.0, 60.0, 70.0, 90.0]))
    np.testing.assert_array_equal(returns, [np.nan, 15, 25, np.nan, 55, 60, np.nan])


def test_a_return_is_of_the_last_hundred_episodes() -> None:
    run = training(frames=2_000.0)
    assert runs.returns_at(run, np.array([2_000.0]))[0] == np.arange(1010, 2010, 10).mean()


def test_a_layers_point_is_the_mean_of_the_rows_since_the_point_before() -> None:
    rows, values = np.array([1.0, 10.0, 11.0, 30.0, 99.0]), np.array([2.0, 4.0, np.nan, 7.0, 8.0])
    np.testing.assert_array_equal(runs.mean_within(rows, values, np.array([10.0, 20.0, 40.0])), [3, np.nan, 7])


def test_an_arm_is_the_mean_over_the_runs_that_have_a_row() -> None:
    found = [
        training(seed, row_frames=np.array([10.0, 20.0]), layers={"norm": {"all layers": np.array(norms)}})
        for seed, norms in enumerate([[1.0, 3.0], [2.0, np.nan]])
    ]
    arm = TrainingArm("NaP", [*found, training(2)])
    np.testing.assert_array_equal(arm.layer("norm", "all layers", np.array([10.0, 20.0])), [1.5, 3])
    assert np.isnan(arm.layer("dormant", "all layers", np.array([10.0]))).all()
    assert arm.visited is None


def test_of_two_runs_with_the_same_seed_the_one_that_came_farther_counts() -> None:
    short, long = training(0, frames=50.0), training(0, frames=90.0)
    other = replace(training(1), settings={"agent.nap": False})
    found, left_out = runs.arms([long, short, other])
    assert [(arm.label, list(arm.runs)) for arm in found] == [("agent.nap=true", [long]), ("agent.nap=false", [other])]
    assert left_out == [short]
    with pytest.raises(ValueError, match="one --label for each of the 2 arms"):
        runs.arms([long, other], ["one"])


def test_a_run_in_progress_is_read_and_studies_are_not_found(tmp_path: Path) -> None:
    with RunLog(tmp_path / "a" / "seed_0", tensorboard=False) as log:
        log.metrics(1, 4, 16, {"nap/param_norm/torso": 2.0, "nap/effective_lr/torso": 0.5})
        log.metrics(2, 8, 32, {"nap/param_norm/torso": 3.0, "nap/effective_lr/torso": 0.25})
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "tasks.csv").write_text("task\n0\n")
    (folder,) = runs.find([tmp_path])
    run = runs.read(folder, 0, NAP)
    assert (run.frames, run.episodes, run.visits, run.summary) == (32.0, None, None, {})
    np.testing.assert_array_equal(run.layers["norm"]["torso"], [1, 1.5])
    with pytest.raises(FileNotFoundError, match=r"no metrics\.csv in or below"):
        runs.find([tmp_path / "study"])
