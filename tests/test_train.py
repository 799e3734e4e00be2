"""train.py from the command line to its files: four short trainings, shared by all tests."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nap_rl import checkpoint
from nap_rl.conf.load import load_network
from nap_rl.logging.tags import TAGS

ROOT = Path(__file__).resolve().parents[1]
LAYERS = 6  # two convolutions, and two layers in each of the two streams
TINY = [
    "env=sequential_atari",
    "experiment=quick",
    "agent.torso=data_efficient",
    "agent.hidden=32",
    "agent.update_every_steps=16",
    "agent.batch_size=8",
    "agent.min_replay_steps=64",
    "agent.target_every_updates=20",
    "env.frames_per_game=800",
    "env.num_envs=2",
    "env.protocol.max_episode_frames=240",
    "replay.capacity=1000",
    "logger.every_updates=5",
    "device=cpu",
    "threads=1",
]
Command = Callable[..., tuple[int, str, str]]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "train.py", *TINY, f"hydra.run.dir={folder}", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@dataclass
class Finished:
    folder: Path
    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    def rows(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / name).open()))


def finish(folder: Path, process: subprocess.Popen[str]) -> Finished:
    out, err = process.communicate(timeout=600)
    return Finished(folder, process.returncode, out, err)


def trained(folder: Path, *arguments: str) -> Finished:
    return finish(folder, start(folder, *arguments))


@pytest.fixture(scope="session")
def nap(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return trained(tmp_path_factory.mktemp("nap"), "agent.nap=true")


@pytest.fixture(scope="session")
def nap_again(tmp_path_factory: pytest.TempPathFactory, train_here: Command) -> Finished:
    """The same run, evaluated while it trains."""
    evaluations = ["eval.every=990", "eval.episodes=2", "eval.num_envs=1", "eval.epsilon=0.1"]
    folder = tmp_path_factory.mktemp("again")
    return Finished(folder, *train_here(*TINY, f"hydra.run.dir={folder}", "agent.nap=true", *evaluations))


@pytest.fixture(scope="session")
def nap_other_seed(tmp_path_factory: pytest.TempPathFactory, train_here: Command) -> Finished:
    folder = tmp_path_factory.mktemp("other")
    return Finished(folder, *train_here(*TINY, f"hydra.run.dir={folder}", "agent.nap=true", "seed=1"))


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run without NaP, with a rate at which norms move, and Ctrl-C once it has logged five times."""
    folder = tmp_path_factory.mktemp("interrupted")
    endless = ["env.frames_per_game=4000000", "compile=off", "agent.update_every_steps=4"]
    process = start(folder, *endless, "agent.learning_rate=1e-3")
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        metrics = folder / "metrics.csv"
        if metrics.exists() and metrics.read_text().count("\n") > 5:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    return finish(folder, process)


def test_a_run_ends_with_0_and_says_where_everything_is(nap: Finished) -> None:
    assert nap.code == 0, nap.err
    for name in ("summary.json", "metrics.csv", "episodes.csv"):
        assert str(nap.folder / name) in nap.out
    assert "Traceback" not in nap.err and "Warning" not in nap.err
    assert (nap.folder / ".hydra" / "overrides.yaml").is_file()


def test_the_summary_holds_what_happened(nap: Finished) -> None:
    summary = nap.summary
    assert summary["status"] == "finished" and summary["reason"] is None
    assert summary["frames"] == 3_200 and summary["agent_steps"] == 800
    assert summary["updates"] == (800 - 64) // 16
    assert summary["wall_seconds"] > 0 and summary["fps"] == pytest.approx(3_200 / summary["wall_seconds"])
    visits = summary["visits"]
    assert [(v["game"], v["cycle"], v["frames"]) for v in visits] == [
        ("breakout", 0, 800),
        ("asterix", 0, 800),
        ("breakout", 1, 800),
        ("asterix", 1, 800),
    ]
    for visit in visits:
        assert (visit["mean_return"] is None) == (visit["episodes"] == 0)
    assert summary["nap"] == {
        "enabled": True,
        "normalize": True,
        "project": True,
        "max_relative_norm_drift": summary["nap"]["max_relative_norm_drift"],
    }
    assert 0 <= summary["nap"]["max_relative_norm_drift"] <= 1e-5
    assert summary["seed"] == 0 and summary["device"] == "cpu" and summary["versions"]["torch"] == torch.__version__


def test_episodes_csv_and_the_summary_count_the_same_episodes(nap: Finished) -> None:
    rows = nap.rows("episodes.csv")
    assert rows
    for visit in nap.summary["visits"]:
        mine = [row for row in rows if (row["game"], int(row["cycle"])) == (visit["game"], visit["cycle"])]
        assert len(mine) == visit["episodes"]
        if mine:
            assert visit["mean_return"] == pytest.approx(sum(float(row["return"]) for row in mine) / len(mine))
    assert all(0 < int(row["length_frames"]) <= 240 for row in rows)


def test_metrics_csv_has_the_first_update_and_every_fifth_with_every_layer(nap: Finished) -> None:
    rows = nap.rows("metrics.csv")
    assert [int(row["updates"]) for row in rows] == [1, *range(5, 47, 5)]
    for row in rows:
        assert int(row["frames"]) == 4 * int(row["agent_steps"])
        assert math.isfinite(float(row["train/loss"])) and float(row["nap/norm_drift"]) <= 1e-5
    for kind in ("param_norm", "grad_norm", "effective_lr", "update_ratio", "rotation"):
        assert sum(tag.startswith(f"nap/{kind}/") for tag in rows[0]) == LAYERS


def test_tensorboards_own_reader_finds_the_tags_and_agrees_with_metrics_csv(nap: Finished) -> None:
    events = EventAccumulator(str(nap.folder), size_guidance={"scalars": 0})
    events.Reload()
    rows = nap.rows("metrics.csv")
    tags = set(rows[0]) - {"updates", "agent_steps", "frames"}
    assert set(events.Tags()["scalars"]) == tags
    named = {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/fps",
        "train/loss",
        "train/learning_rate",
        "task/index",
    }
    assert named | {"task/breakout/return", "task/asterix/return", "nap/norm_drift"} <= tags
    for tag in tags:
        scalars = events.Scalars(tag)
        filled = [row for row in rows if row[tag]]  # no episode has ended yet, or the row has no diagnostics
        assert filled == rows or tag.startswith(("rollout/", "task/", "plasticity/"))
        assert [scalar.step for scalar in scalars] == [int(row["frames"]) for row in filled]
        expected = [float(row[tag]) for row in filled]
        assert [scalar.value for scalar in scalars] == pytest.approx(expected, rel=1e-6)
    played = [[bool(row[f"task/{game}/return"]) for game in ("breakout", "asterix")] for row in rows]
    assert [True, True] not in played and [True, False] in played and [False, True] in played


def test_a_run_with_evaluations_has_every_tag_of_the_log_and_no_other(nap_again: Finished) -> None:
    events = EventAccumulator(str(nap_again.folder), size_guidance={"scalars": 0})
    events.Reload()
    written = set(events.Tags()["scalars"])
    forms = {tag: re.compile(re.sub("<(?:layer|task)>", ".+", tag) + "$") for tag in TAGS}
    assert [tag for tag, form in forms.items() if not any(map(form.match, written))] == []
    assert [tag for tag in written if not any(form.match(tag) for form in forms.values())] == []


def test_the_checkpoint_is_the_network_that_was_trained(nap: Finished) -> None:
    network, config = load_network(nap.folder)
    assert checkpoint.sha256_of(network.state_dict()) == nap.summary["weights_sha256"]
    assert config.agent.nap and config.env.name == "sequential_atari" and config.frames == 3_200
    assert network.q_values(torch.zeros(1, 4, 84, 84, dtype=torch.uint8)).shape == (1, 18)
    assert [path.name for path in sorted((nap.folder / "checkpoints").iterdir())] == [
        "frames-000000000000",  # written at the start: a disk that takes none is known at once
        "frames-000000003200",
    ]
    folder = nap.folder / "checkpoints" / "frames-000000003200"
    saved = checkpoint.load(folder)
    assert saved.meta["updates"] == nap.summary["updates"] and saved.meta["frames"] == 3_200
    assert {"network", "target", "optimizer", "projector", "replay", "env"} <= set(saved.tensors)
    assert load_network(folder)[1] == config


def test_a_folder_without_a_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_network(tmp_path / "nothing")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_network(tmp_path)


def timeless(run: Finished) -> list[dict[str, str]]:
    return [{tag: cell for tag, cell in row.items() if not tag.startswith("time/")} for row in run.rows("metrics.csv")]


def test_one_seed_gives_the_same_numbers_to_the_last_digit_evaluated_during_training_or_not(
    nap: Finished, nap_again: Finished
) -> None:
    assert timeless(nap) == timeless(nap_again)
    assert nap.rows("episodes.csv") == nap_again.rows("episodes.csv")
    assert nap.summary["weights_sha256"] == nap_again.summary["weights_sha256"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_too_one_seed_gives_the_same_numbers_to_the_last_digit(precision: str, tmp_path: Path) -> None:
    settings = ("agent.nap=true", "compile=on", f"precision={precision}")
    first, second = (trained(tmp_path / name, *settings) for name in ("first", "second"))
    assert first.code == second.code == 0 and "uncompiled" not in first.err
    assert timeless(first) == timeless(second)
    assert first.rows("episodes.csv") == second.rows("episodes.csv")
    assert first.summary["weights_sha256"] == second.summary["weights_sha256"]


def test_evaluations_during_training_are_whole_episodes_of_the_game_at_hand_in_csv_and_tensorboard(
    nap: Finished, nap_again: Finished
) -> None:
    assert not (nap.folder / "evaluations.csv").exists()
    rows = nap_again.rows("evaluations.csv")
    clock = [(int(row["frames"]), row["game"]) for row in rows]
    games = ["asterix", "breakout", "asterix"]  # visits of 800 frames
    # The first step of 2 environments, 8 frames, at or past each 990.
    assert clock == [(990 * k + -990 * k % 8, game) for k, game in enumerate(games, 1) for _ in range(2)]
    assert len({row["seed"] for row in rows}) == len(rows)
    assert [int(row["episode"]) for row in rows] == [0, 1] * 3
    assert all(0 < int(row["length_frames"]) <= 240 for row in rows)
    events = EventAccumulator(str(nap_again.folder), size_guidance={"scalars": 0})
    events.Reload()
    means = [sum(float(row["return"]) for row in rows[i : i + 2]) / 2 for i in range(0, 6, 2)]
    assert [scalar.value for scalar in events.Scalars("eval/mean_reward")] == pytest.approx(means, rel=1e-6)
    assert [scalar.step for scalar in events.Scalars("eval/breakout/mean_return")] == [1_984]
    normalized = events.Scalars("eval/breakout/human_normalized")[0].value
    assert normalized == pytest.approx((means[1] - 1.7) / 28.8, rel=1e-5)


@pytest.mark.slow  # the quick suite compares seeds in tests/agents/test_resume.py
def test_another_seed_gives_other_numbers(nap: Finished, nap_other_seed: Finished) -> None:
    assert nap_other_seed.code == 0, nap_other_seed.err
    assert nap.rows("metrics.csv")[0]["train/loss"] != nap_other_seed.rows("metrics.csv")[0]["train/loss"]
    assert nap.rows("episodes.csv") != nap_other_seed.rows("episodes.csv")
    assert nap.summary["weights_sha256"] != nap_other_seed.summary["weights_sha256"]


def test_ctrl_c_ends_cleanly_with_a_summary_a_checkpoint_and_130(interrupted: Finished) -> None:
    assert interrupted.code == 130, interrupted.err
    assert "Traceback" not in interrupted.err
    summary = interrupted.summary
    assert summary["status"] == "interrupted"
    assert 0 < summary["frames"] < 16_000_000 and summary["updates"] >= 20
    network, _ = load_network(interrupted.folder)
    assert checkpoint.sha256_of(network.state_dict()) == summary["weights_sha256"]
    assert f"go on with   resume={interrupted.folder}\n" in interrupted.out


def test_without_nap_norms_drift_and_the_summary_says_so(interrupted: Finished) -> None:
    told = interrupted.summary["nap"]
    assert told["enabled"] is told["normalize"] is told["project"] is False
    assert told["max_relative_norm_drift"] > 1e-3
