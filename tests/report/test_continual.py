"""CORA's metrics against numbers worked out by hand, on curves that say what they should be."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from nap_rl.logging import RunLog
from nap_rl.report import continual_report
from nap_rl.report.continual import Evaluations, continual, read_evaluations, scales
from nap_rl.report.visits import Arm, Run

NAN = np.nan


def run_of(folder: Path, tasks: tuple[str, ...], *, cycles: int = 1, frames: int = 100, seed: int = 0) -> Run:
    n = len(tasks) * cycles
    return Run(
        folder=folder,
        seed=seed,
        settings={},
        tasks=tasks * cycles,
        cycles=tuple(i // len(tasks) for i in range(n)),
        frames=(frames,) * n,
        scores={},
        layers={},
    )


def test_forgetting_and_transfer_are_changes_over_a_visit_in_shares_of_the_best_return(tmp_path: Path) -> None:
    """Task a is learnt, half lost in b and the rest in c; c gains 1 in a and loses 3 in b before it is trained."""
    evaluations = Evaluations(
        ("a", "b", "c"),
        np.array([50.0, 100.0, 200.0, 300.0]),
        np.array([[0.0, 8.0, 4.0, 0.0], [0.0, 0.0, 2.0, 2.0], [0.0, 1.0, -2.0, -4.0]]),
    )
    found = continual(run_of(tmp_path, ("a", "b", "c")), evaluations, scales([evaluations]))
    np.testing.assert_allclose(found.forgetting, [[NAN, 0.5, 0.5], [NAN, NAN, 0.0], [NAN, NAN, NAN]])
    np.testing.assert_allclose(found.transfer, [[NAN, NAN, NAN], [0.0, NAN, NAN], [0.25, -0.75, NAN]])
    assert found.mean_forgetting == pytest.approx(1 / 3)
    assert found.mean_transfer == pytest.approx(-1 / 6)
    np.testing.assert_allclose(found.evaluation, [0.0, (1 + 0 + 0.25) / 3, (0.5 + 1 - 0.5) / 3, (0 + 1 - 1) / 3])


def test_a_network_that_keeps_everything_forgets_nothing_and_one_that_learns_backwards_forgets_less_than_nothing(
    tmp_path: Path,
) -> None:
    for later, forgotten in ((5.0, 0.0), (10.0, -0.5)):
        evaluations = Evaluations(("a", "b"), np.array([100.0, 200.0]), np.array([[5.0, later], [0.0, 3.0]]))
        found = continual(run_of(tmp_path, ("a", "b")), evaluations, scales([evaluations]))
        assert found.mean_forgetting == forgotten


def test_the_last_evaluation_within_a_visit_counts_and_the_first_of_the_run_is_the_beginning() -> None:
    evaluations = Evaluations(
        ("a",), np.array([10.0, 90.0, 100.0, 110.0, 200.0, 201.0]), np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    )
    np.testing.assert_array_equal(evaluations.at_ends([100.0, 200.0, 300.0]), [[1.0, 3.0, 5.0, 6.0]])
    np.testing.assert_array_equal(evaluations.at_ends([5.0, 10.0]), [[1.0, NAN, 1.0]])


def test_only_the_first_cycle_counts_and_tasks_that_were_not_yet_seen_have_no_transfer(tmp_path: Path) -> None:
    """As with eval.tasks=seen: b has no return before its own visit."""
    evaluations = Evaluations(
        ("a", "b"), np.array([100.0, 200.0, 300.0, 400.0]), np.array([[2.0, 1.0, 2.0, 0.0], [NAN, 4.0, 0.0, 4.0]])
    )
    found = continual(run_of(tmp_path, ("a", "b"), cycles=2), evaluations, scales([evaluations]))
    np.testing.assert_allclose(found.forgetting, [[NAN, 0.5], [NAN, NAN]])
    assert np.isnan(found.transfer).all() and np.isnan(found.mean_transfer)
    np.testing.assert_allclose(found.evaluation, [1.0, 0.75, 0.5, 0.5])


def test_the_scale_is_the_largest_return_in_size_over_the_runs_of_the_arm_and_zero_is_no_scale(tmp_path: Path) -> None:
    one = Evaluations(("a", "b"), np.array([100.0]), np.array([[1.0], [0.0]]))
    other = Evaluations(("a", "b"), np.array([100.0]), np.array([[-4.0], [0.0]]))
    scale = scales([one, other])
    assert scale == {"a": 4.0, "b": 0.0}
    found = continual(run_of(tmp_path, ("a", "b")), one, scale)
    np.testing.assert_allclose(found.evaluation, [0.25])


def write_evaluations(folder: Path, returns: dict[str, list[float]]) -> Path:
    with RunLog(folder, tensorboard=False) as log:
        for k, frames in enumerate((100, 200)):
            for task, values in returns.items():
                episodes = [(0, values[k] - 1.0, 9), (1, values[k] + 1.0, 9)]
                log.evaluation(frames=frames, game=task, cycle=0, episodes=episodes, frame_skip=1, scalars={})
    return folder


def test_evaluations_are_read_as_the_log_writes_them_and_the_report_has_a_line_an_arm(tmp_path: Path) -> None:
    tasks = ("a", "b")
    arms = []
    for name, lost in (("keeps", 4.0), ("forgets", 0.0)):
        runs = [run_of(write_evaluations(tmp_path / f"{name}{s}", {"a": [4.0, lost], "b": [0.0, 2.0]}), tasks, seed=s)
                for s in range(2)]  # fmt: skip
        arms.append(Arm(name, {}, runs))
    read = read_evaluations(tmp_path / "forgets0")
    assert read.tasks == tasks
    np.testing.assert_array_equal(read.returns, [[4.0, 0.0], [0.0, 2.0]])
    measured = continual_report.measure(arms)
    lines = continual_report.text(measured).splitlines()
    assert [line.split()[:3] for line in lines[2:]] == [["keeps", "2", "0.00"], ["forgets", "2", "1.00"]]
    rows = list(csv.DictReader(continual_report.long_csv(measured).splitlines()))
    forgotten = [row for row in rows if row["metric"] == "forgetting" and row["arm"] == "forgets"]
    assert [(row["seed"], row["task"], row["trained"], float(row["value"])) for row in forgotten] == [
        ("0", "a", "b", 1.0),
        ("1", "a", "b", 1.0),
    ]
    assert continual_report.draw(measured, tmp_path / "c.png").stat().st_size > 10_000


def test_a_run_without_evaluations_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"evaluations\.csv: train with eval\.every=FRAMES and eval\.tasks=all"):
        read_evaluations(tmp_path)
