"""evaluate.py from the command line to its files, on real games and untrained networks."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import evaluate
from nap_rl import checkpoint, cli
from nap_rl.conf import evaluation, networks, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config
from nap_rl.envs.human import human_normalized

ROOT = Path(__file__).resolve().parents[1]
TINY = ["agent.torso=data_efficient", "agent.hidden=8", "replay.capacity=2000", "agent.min_replay_steps=1000"]
SHORT = ["env.protocol.max_episode_frames=120", "num_envs=1", "device=cpu"]


@pytest.fixture(scope="module", autouse=True)
def _types() -> None:
    schema.register()
    evaluation.register()
    cli.register_resolvers()


def make_run(folder: Path, actions: int, *overrides: str, frames: int = 400) -> Path:
    """A run's folder with a checkpoint of an untrained network, as train.py leaves it."""
    config: Config = to_config(cli.compose("config", [*TINY, "frames=400", *overrides]))
    network = networks.build_network(config, actions)
    checkpoint.save(
        folder / "checkpoints",
        "frames-000000000400",
        tensors={"network": network.state_dict()},
        meta={"config": schema.to_dict(config), "num_actions": actions, "frames": frames, "updates": 3},
    )
    return folder


@pytest.fixture(scope="module")
def breakout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("breakout"), 4, "env.game=breakout")


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = ["env=sequential_atari", "env.games=[asterix,breakout,asterix]", "agent.nap=true"]
    return make_run(tmp_path_factory.mktemp("sequence"), 18, *overrides)


def evaluated(out: Path, *arguments: object) -> dict[str, Any]:
    assert evaluate.run([*SHORT, *map(str, arguments), f"out={out}"]) == 0
    summary: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return summary


def test_a_run_is_scored_in_its_own_game_with_files_and_a_film_that_plays(
    breakout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = evaluated(tmp_path / "out", breakout, "episodes=3", "num_envs=2", "video=true")
    (result,) = summary["results"]
    assert result["game"] == "breakout" and result["episodes"] == 3 and summary["aggregate"] is None
    rows = list(csv.DictReader((tmp_path / "out" / "episodes.csv").open()))
    assert [float(row["return"]) for row in rows] == result["returns"] and len({row["seed"] for row in rows}) == 3
    assert result["mean"]["value"] == pytest.approx(sum(result["returns"]) / 3)
    assert result["human_normalized_mean"] == pytest.approx((result["mean"]["value"] - 1.7) / (30.5 - 1.7))
    assert result["protocol"]["sticky_actions"] == 0.0 and result["protocol"]["max_episode_frames"] == 120
    film = cv2.VideoCapture(result["video"])
    assert film.get(cv2.CAP_PROP_FRAME_WIDTH) == 640  # the game, and what the agent expects
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == int(rows[0]["length_frames"]) / 4 and film.read()[0]
    printed = capsys.readouterr().out
    assert f"{result['mean']['value']:.2f}" in printed and str(tmp_path / "out") in printed


@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores_and_another_other_episodes(breakout: Path, tmp_path: Path) -> None:
    settings = ["episodes=2", "epsilon=0.5"]
    returns = [
        evaluated(tmp_path / name, breakout, *settings, f"seed={seed}")["results"][0]["returns"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert returns[0] == returns[1]
    seeds = [[row["seed"] for row in csv.DictReader((tmp_path / n / "episodes.csv").open())] for n in ("a", "b", "c")]
    assert seeds[0] == seeds[1] and not set(seeds[0]) & set(seeds[2])


def test_the_protocol_is_the_runs_unless_overridden_whole_or_in_part(breakout: Path, tmp_path: Path) -> None:
    whole = evaluated(tmp_path / "a", breakout, "env/protocol=hessel2018", "episodes=1")["results"][0]["protocol"]
    part = evaluated(tmp_path / "b", breakout, "env.protocol.sticky_actions=0.25", "episodes=1")["results"][0]
    assert whole["noop_max"] == 30 and whole["sticky_actions"] == 0.0
    assert part["protocol"]["sticky_actions"] == 0.25 and part["protocol"]["noop_max"] == 30
    sticky = make_run(tmp_path / "sticky", 18, "env.game=breakout", "env/protocol=machado2018")
    own = evaluated(tmp_path / "c", sticky, "episodes=1")["results"][0]["protocol"]
    assert own["sticky_actions"] == 0.25 and own["full_action_set"] and not own["life_loss_ends_value"]


def test_a_sequence_is_scored_in_each_of_its_games_once_with_all_18_actions(sequence: Path, tmp_path: Path) -> None:
    summary = evaluated(tmp_path / "out", sequence / "checkpoints" / "frames-000000000400", "episodes=2")
    assert [result["game"] for result in summary["results"]] == ["asterix", "breakout"]
    assert all(result["protocol"]["full_action_set"] for result in summary["results"])
    assert summary["results"][0]["run"] == str(sequence)
    one = evaluated(tmp_path / "one", sequence, "env.game=pong", "episodes=1")
    assert [result["game"] for result in one["results"]] == ["pong"]


def test_several_runs_give_one_aggregate_over_games_and_runs(breakout: Path, sequence: Path, tmp_path: Path) -> None:
    summary = evaluated(tmp_path / "out", breakout, sequence, "episodes=2", "epsilon=1", "noisy=false", "mix=true")
    assert [result["game"] for result in summary["results"]] == ["breakout", "asterix", "breakout"]
    scores = [human_normalized(r["game"], float(np.mean(r["returns"]))) for r in summary["results"]]
    total = summary["aggregate"]
    assert (total["games"], total["runs"]) == (2, 3)
    mean = ((scores[0] + scores[2]) / 2 + scores[1]) / 2  # type: ignore[operator]
    assert total["human_normalized"]["mean"]["value"] == pytest.approx(mean)
    assert total["human_normalized"]["mean"]["low"] is None  # asterix has one run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name what to evaluate"),
        (["nowhere"], "nowhere holds no checkpoint"),
        (["RUN", "episodes=0"], "episodes=0, expected 1 or more"),
        (["RUN", "epsilon=1.5"], r"epsilon=1.5, expected a number in \[0, 1\]"),
        (["RUN", "episode=3"], "no key 'episode': did you mean 'episodes'"),
        (["RUN", "env.game=pogn"], "unknown game 'pogn': did you mean 'pong'"),
        (["RUN", "env.game=pong"], "acts with 4 actions, but env.game=pong has 6"),
        (["RUN", "env/protocol=machado"], "env/protocol=machado does not exist"),
        (["RUN", "env.protocol.sticky_actions=2"], "sticky_actions=2.0, expected a number"),
        (["RUN", "noisy=ja"], "noisy=ja is not true or false"),
        (["RUN", "env.game=joust"], "game 'joust' cannot be played: ale-py has its ROM, but not its rules"),
        (["multirun.yaml"], "multirun.yaml is neither a run's folder nor a zip"),
        (["study"], "study holds checkpoints of a study, not of an agent"),
        (["RUN", "nowhere"], "nowhere holds no checkpoint"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_played(
    arguments: list[str], sentence: str, breakout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("multirun.yaml").touch()
    checkpoint.save(Path("study", "checkpoints"), "task-000000001", tensors={}, meta={"config": {}})
    given = [str(breakout) if argument == "RUN" else argument for argument in arguments]
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        evaluate.run([*given, f"out={tmp_path / 'out'}"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_glob_over_a_sweep_scores_its_runs_in_groups_and_skips_the_rest_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "pong_cpu" / "20260101-120000"
    for nap in ("true", "false"):
        for seed in (0, 1):
            make_run(sweep / f"nap={nap}-{seed}", 6, "env.game=pong", f"agent.nap={nap}", f"seed={seed}")
    (sweep / "multirun.yaml").write_text("agent:\n  nap: true\n")
    (sweep / "notes").mkdir()
    summary = evaluated(tmp_path / "out", *sorted((tmp_path / "pong_cpu").glob("*/*")), "episodes=1")
    assert [(result["seed"], result["frames"], result["updates"]) for result in summary["results"]] == [
        (0, 400, 3),
        (1, 400, 3),
    ] * 2
    assert [total["settings"] for total in summary["aggregates"]] == [{"agent.nap": False}, {"agent.nap": True}]
    shown = capsys.readouterr()
    assert "seeds 0 1, at 400 frames, agent.nap=true:" in shown.out
    assert shown.err.count("\n") == 2
    assert f"skipped: {sweep / 'multirun.yaml'} is neither a run's folder nor a zip" in shown.err
    assert f"skipped: {sweep / 'notes'} holds no checkpoint" in shown.err


def test_an_unfinished_run_and_one_at_frame_0_are_scored_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        make_run(tmp_path / name, 4, "env.game=breakout", f"seed={seed}", frames=frames)
        for seed, (name, frames) in enumerate((("begun", 0), ("half", 200)))
    ]
    summary = evaluated(tmp_path / "out", *runs, "episodes=1")
    assert [result["frames"] for result in summary["results"]] == [0, 200]
    shown = capsys.readouterr().err
    assert f"warning: {runs[0]}: its checkpoint is of frame 0, an untrained network" in shown
    assert f"warning: {runs[1]} is unfinished: its checkpoint is of 200 of 400 frames" in shown


def test_a_run_that_is_named_twice_is_scored_once(
    breakout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = breakout / "checkpoints" / "frames-000000000400"
    summary = evaluated(tmp_path / "out", breakout, again, "episodes=1")
    assert len(summary["results"]) == 1 and f"skipped: {again} is named twice" in capsys.readouterr().err


@pytest.mark.slow
def test_films_of_runs_whose_folders_have_the_same_name_are_different_files(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / sweep / "0", 4, "env.game=breakout", f"seed={i}") for i, sweep in enumerate("ab")]
    summary = evaluated(tmp_path / "out", *runs, "episodes=1", "video=true")
    films = [Path(result["video"]) for result in summary["results"]]
    assert films[0] != films[1] and all(film.is_file() for film in films)


def test_an_earlier_evaluation_is_not_written_over(breakout: Path, tmp_path: Path) -> None:
    evaluated(tmp_path / "out", breakout, "episodes=1")
    with pytest.raises(ValueError, match="holds an evaluation already"):
        evaluated(tmp_path / "out", breakout, "episodes=1")


def test_the_real_command_writes_beside_the_run_and_answers_a_slip_with_2(
    breakout: Path, evaluate_here: Callable[..., tuple[int, str, str]]
) -> None:
    line = [sys.executable, "evaluate.py", str(breakout), *SHORT, "episodes=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    (folder,) = (breakout / "evaluations").iterdir()
    assert (folder / "evaluation.json").is_file() and str(folder) in done.stdout
    slip = evaluate_here(str(breakout), *SHORT, "episodes=x")
    assert slip == (2, "", "evaluate.py: episodes=x is not a whole number\n")
