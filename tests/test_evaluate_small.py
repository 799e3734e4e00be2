"""evaluate.py on runs outside Atari: the tasks of a sequence, under their own names."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import report

Command = Callable[..., tuple[int, str, str]]
TRAIN = [
    "experiment=permuted_catch",
    "env.visits=2",
    "env.num_envs=2",
    "env.frames_per_task=60",
    "agent.min_replay_steps=16",
    "compile=off",
    "device=cpu",
    "logger.tensorboard=false",
    "eval.every=60",
    "eval.tasks=all",
    "eval.episodes=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, train_here: Command) -> Path:
    folder = tmp_path_factory.mktemp("catch") / "run"
    code, _, err = train_here(*TRAIN, f"hydra.run.dir={folder}")
    assert code == 0, err
    return folder


def test_every_task_of_a_sequence_is_scored_under_its_name(run: Path, tmp_path: Path, evaluate_here: Command) -> None:
    code, _, err = evaluate_here(str(run), "episodes=3", f"out={tmp_path / 'out'}")
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "out" / "episodes.csv").open()))
    assert [row["game"] for row in rows] == ["catch-0"] * 3 + ["catch-1"] * 3
    assert {row["return"] for row in rows} <= {"1.0", "-1.0"} and {row["length_frames"] for row in rows} == {"9"}
    assert len(json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]) == 2


def test_all_tasks_are_evaluated_during_training_and_the_report_reads_them(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader((run / "evaluations.csv").open()))
    assert [(row["frames"], row["game"]) for row in rows[::2]] == [
        ("60", "catch-0"),
        ("60", "catch-1"),
        ("120", "catch-1"),
        ("120", "catch-0"),
    ]
    assert report.main(["continual", str(run)]) == 0 and "forgetting" in capsys.readouterr().out
    assert (run / "continual.png").is_file() and (run / "continual.csv").is_file()


def test_the_task_at_hand_alone_is_scored_where_that_is_asked_for(
    run: Path, tmp_path: Path, evaluate_here: Command
) -> None:
    code, _, err = evaluate_here(str(run), "episodes=1", "tasks=current", f"out={tmp_path / 'out'}")
    assert code == 0, err
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]
    assert [result["game"] for result in results] == ["catch-1"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["env.game=pong"], "env.game=pong is no task of the run: did you mean 'catch-"),
        (["env.protocol.noop_max=3"], "env.protocol is of Atari games, but the run plays permuted_catch"),
        (["tasks=every"], "tasks=every"),
        (["video=true"], "video=true films Atari games"),
    ],
)
def test_what_such_a_run_does_not_have_is_one_sentence(
    run: Path, arguments: list[str], sentence: str, evaluate_here: Command
) -> None:
    code, _, err = evaluate_here(str(run), *arguments)
    assert code == 2 and sentence in err and len(err.splitlines()) == 1


def test_summary_lists_task_cycle_frames_episodes_and_returns_of_each_visit(run: Path) -> None:
    visits = json.loads((run / "summary.json").read_text())["visits"]
    assert [visit["task"] for visit in visits] == ["catch-0", "catch-1"]
    for visit in visits:
        assert {"cycle", "frames", "episodes", "mean_return", "late_return"} <= set(visit)
        assert (visit["cycle"], visit["frames"], visit["episodes"]) == (
            0,
            60,
            6,
        )  # 30 steps, 9 an episode, 2 environments
