"""What a person sees of runs at hand, and what ends a sweep: read from the runs' files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from nap_rl.sweep import live, record, summary
from nap_rl.sweep.attempts import Outcome
from nap_rl.sweep.commands import TRAIN
from nap_rl.sweep.live import Progress
from nap_rl.sweep.trials import Trial

NAMES = "updates,frames,rollout/ep_rew_mean,time/fps\n"


@pytest.mark.parametrize(
    ("rows", "progress"),
    [
        ("", Progress()),
        ("100,400,0.5,20.0\n", Progress(400, 20.0, 0.5)),
        ("100,400,0.5,20.0\n200,800,,\n", Progress(800, None, None)),
        ("100,400,0.5,20.0\n200,8", Progress(400, 20.0, 0.5)),
        ("100,400,0.5,20.0\n" * 5000 + "200,800,1,30\n", Progress(800, 30.0, 1.0)),
    ],
)
def test_progress_is_the_last_whole_row(rows: str, progress: Progress, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(NAMES + rows)
    assert live.progress_of(tmp_path) == progress
    assert live.progress_of(tmp_path / "nowhere") == Progress()


def test_a_row_says_how_far_a_run_is_and_when_it_ends(tmp_path: Path) -> None:
    trial = Trial((), (), tmp_path, arm="agent.nap=True", seed=3, frames=4000)
    assert live.cells(trial, Progress(400, 1.0, 0.5)) == ("agent.nap=True", "3", "400 of 4,000", "0.50", "1", "1:00:00")
    assert live.cells(trial, Progress())[2:] == ("-", "-", "-", "-")


def test_its_rows_can_be_pickled_while_it_is_on_the_screen(tmp_path: Path) -> None:
    """Ray Tune does."""
    sweep = record.Record(tmp_path, TRAIN, [Trial((), (), tmp_path / "a")], {})
    with live.LiveTable(sweep) as table:
        table.begins(sweep.trials[0])
        copy = pickle.loads(pickle.dumps(table))
    assert copy.table().title == table.table().title == "0 done, 1 at hand, 0 waiting"


def sweep_of(folder: Path, late: dict[str, list[float]]) -> record.Record:
    """A finished sweep: arm -> the late return of each seed, in each of 20 visits."""
    trials = []
    for arm, scores in late.items():
        for seed, score in enumerate(scores):
            trial = Trial((f"x={arm}", f"seed={seed}"), (), folder / f"{arm}-{seed}", arm=f"x={arm}", seed=seed)
            trial.folder.mkdir(parents=True)
            visit = {"task": "t", "cycle": 0, "frames": 1, "mean_return": score, "late_return": score, "auc_return": 0}
            whole = {"status": "finished", "visits": [visit] * 20}
            (trial.folder / "summary.json").write_text(json.dumps(whole))
            lines = ["updates,frames,task/index,nap/param_norm/a,nap/effective_lr/a", "1,1,0,1,1"]
            (trial.folder / "metrics.csv").write_text("\n".join(lines) + "\n")
            trials.append(trial)
    sweep = record.Record(folder, TRAIN, trials, {})
    sweep.outcomes.update({trial.folder: Outcome("finished", 0) for trial in trials})
    return sweep


def test_a_sweep_ends_in_a_table_by_arm_and_a_picture(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"a": [1.0, 2.0, 3.0, 4.0], "b": [0.5]})
    text = summary.write(sweep)
    assert text is not None
    first, second = [line.split() for line in text.splitlines() if line.startswith("x=")]
    assert first[:4] == ["x=a", "4", "20", "2.50"] and second[:4] == ["x=b", "1", "20", "0.50"]
    assert {"arms.csv", "arms.md", "visits.csv", "visits.png"} <= {path.name for path in tmp_path.iterdir()}


def test_a_sweep_in_which_nothing_finished_has_no_table(tmp_path: Path) -> None:
    assert summary.write(record.Record(tmp_path, TRAIN, [Trial((), (), tmp_path / "a")], {})) is None
