"""train.py as a process: killed, stopped and resumed; exit codes; refusals."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nap_rl import checkpoint
from nap_rl.process import sole_owner
from tests.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "env=sequential_atari",
    "env/protocol=machado2018",
    "env.games=[pong,asterix]",
    "env.frames_per_game=400",
    "env.cycles=2",
    "env.num_envs=2",
    "env.protocol.max_episode_frames=240",
    "agent.nap=true",
    "agent.torso=data_efficient",
    "agent.hidden=16",
    "agent.batch_size=8",
    "agent.update_every_steps=8",
    "agent.min_replay_steps=40",
    "agent.target_every_updates=7",
    "replay.capacity=200",
    "logger.every_updates=3",
    "checkpoint.every=160",
    "device=cpu",
    "threads=1",
]
Command = Callable[..., tuple[int, str, str]]
FRAMES = 1_600


def start(*arguments: str, limit: Callable[[], None] | None = None, code: str | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *(["train.py"] if code is None else ["-c", code]), *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=limit,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def new(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return start(*TINY, f"hydra.run.dir={folder}", *arguments, **options)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.01)


def name(frames: int) -> str:
    return f"frames-{frames:012d}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, train_here: Command) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code, _, err = train_here(*TINY, f"hydra.run.dir={folder}")
    assert code == 0, err
    return folder


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_kill_9_and_resume_is_the_run_that_was_never_killed(whole: Path, tmp_path: Path, train_here: Command) -> None:
    folder = tmp_path / "it's a, run=1"  # a folder whose name needs quotes
    process = start(*TINY, "hydra.run.dir='" + str(folder).replace("'", r"\'") + "'")
    wait_for(folder / "checkpoints" / name(640), process)
    process.kill()
    process.communicate()
    code, out, err = train_here(f"resume={folder}")
    assert code == 0, err
    assert "resumed from" in err and "Traceback" not in err
    assert fingerprint(folder) == fingerprint(whole)
    assert summary(folder)["weights_sha256"] == summary(whole)["weights_sha256"]
    assert summary(folder)["visits"] == summary(whole)["visits"] and summary(folder)["status"] == "finished"
    code, out, _ = train_here(f"resume={folder}")
    assert code == 0 and f"is finished: {FRAMES:,} frames are played" in out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_too_a_killed_run_is_resumed_to_the_bit(tmp_path: Path) -> None:
    settings, folder = ("compile=on", "precision=bf16"), tmp_path / "killed"
    code, _, err = finish(new(tmp_path / "whole", *settings))
    assert code == 0 and "uncompiled" not in err, err
    process = new(folder, *settings)
    wait_for(folder / "checkpoints" / name(640), process)
    process.kill()
    process.communicate()
    code, _, err = finish(start(f"resume={folder}"))
    assert code == 0, err
    assert fingerprint(folder) == fingerprint(tmp_path / "whole")


@pytest.mark.slow
def test_kills_at_twenty_random_moments_change_nothing(whole: Path, tmp_path: Path) -> None:
    rng, folder, kills, places = random.Random(7), tmp_path / "run", 0, set()
    process = new(folder, "checkpoint.every=32")
    wait_for(folder / "checkpoints" / name(0), process)
    while kills < 25:
        try:
            process.communicate(timeout=rng.uniform(0.01, 0.2))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        kills += 1
        newest = checkpoint.latest(folder / "checkpoints")
        assert newest is not None
        places.add(newest.name)
        process = start(f"resume={folder}")
        _wait_for_a_line(process, "resumed from")
    process.communicate()
    assert process.returncode == 0
    assert kills >= 20 and len(places) >= 5
    assert fingerprint(folder) == fingerprint(whole)


def _wait_for_a_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never said")


@pytest.mark.slow  # the quick suite has Ctrl-C, in test_train.py
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_at_the_next_step_with_a_checkpoint_and_its_own_code(
    number: signal.Signals, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = new(folder, "checkpoint.every=null")
    wait_for(folder / "checkpoints" / name(0), process)
    wait_for(folder / "metrics.csv", process)
    while (folder / "metrics.csv").stat().st_size == 0:
        time.sleep(0.01)
    process.send_signal(number)
    code, out, err = finish(process)
    assert code == 128 + number and "Traceback" not in err
    assert summary(folder)["status"] == "interrupted" and summary(folder)["reason"] == number.name
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None and newest.name == name(summary(folder)["frames"]) != name(0)


def test_a_second_process_on_the_same_run_is_refused(whole: Path, train_here: Command) -> None:
    with sole_owner(whole):  # a lock of an open file: also against this process itself
        code, out, err = train_here(f"resume={whole}", "frames=2000", "env.cycles=3")
    assert (code, out) == (2, "")
    assert f"is in use by another process (process {os.getpid()} on " in err and err.count("\n") == 1


@pytest.mark.slow
def test_changed_settings_are_listed_and_refused_unless_allowed(whole: Path) -> None:
    before = sorted(path.name for path in whole.iterdir())
    code, _, err = finish(start(f"resume={whole}", "agent.learning_rate=1e-3", "schedule=linear"))
    assert code == 2 and err.count("\n") == 1
    assert "agent.learning_rate was 6.25e-05 and is 0.001" in err and "schedule.end was None and is 1e-06" in err
    assert "add resume.allow=[agent.learning_rate,schedule.end" in err
    assert sorted(path.name for path in whole.iterdir()) == before


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_frames(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    single = ["env=atari", "env.game=asterix", "env.num_envs=2", *TINY[7:], "schedule=linear"]
    assert finish(start(*single, "frames=800", f"hydra.run.dir={folder}"))[0] == 0
    code, _, err = finish(start(f"resume={folder}", "frames=1600"))
    assert code == 0, err
    assert summary(folder)["frames"] == 1_600
    rows = (folder / "metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("train/learning_rate")
    rates = [float(line.split(",")[place]) for line in rows[1:]]
    assert rates[0] > 5e-5 and rates[-1] == pytest.approx(1e-6)  # the line that the run began with, and then its end
    assert len({line.split(",")[2] for line in rows[1:]}) == len(rates)  # no row twice


@pytest.mark.slow
def test_auto_resumes_the_run_in_its_folder_and_begins_one_where_there_is_none(tmp_path: Path) -> None:
    first = new(tmp_path / "0-a")
    wait_for(tmp_path / "0-a" / "checkpoints" / name(320), first)
    first.kill()
    first.communicate()
    code, _, err = finish(start(*TINY, "resume=auto", f"hydra.run.dir={tmp_path / '0-a'}", "checkpoint.keep=3"))
    assert code == 0 and f"resumed from {tmp_path / '0-a'}" in err
    code, _, err = finish(start(*TINY, "resume=auto", f"hydra.run.dir={tmp_path / '0-b'}", "env.cycles=1"))
    assert code == 0 and "resumed" not in err  # nothing there yet: a new run
    assert summary(tmp_path / "0-b")["frames"] == 800


@pytest.mark.slow
def test_a_write_limit_stops_the_run_cleanly_and_costs_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    limit = 600_000  # takes the networks, and not Adam's moments beside them

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code, _, err = finish(new(folder, limit=limited))
    assert code == 4, err
    assert "Traceback" not in err and err.count("could not be written, the earlier ones are untouched") == 3
    assert summary(folder)["status"] == "stopped" and "3 checkpoints in a row" in summary(folder)["reason"]
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    code, _, err = finish(start(f"resume={folder}"))
    assert code == 0, err
    assert fingerprint(folder) == fingerprint(whole)


BROKEN = """
import sys, nap_rl.train as train
from nap_rl.agents import ValueAgent
from nap_rl.envs import AtariEnvs
{patch}
sys.argv[0] = "train.py"
train.main()
"""


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_3_and_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    patch = """
update = ValueAgent.update
def poisoned(self, *arguments):
    if self.updates == 20:
        next(self.network.parameters()).data.fill_(float("nan"))
    return update(self, *arguments)
ValueAgent.update = poisoned"""
    code, out, err = finish(new(folder, code=BROKEN.format(patch=patch)))
    assert code == 3 and "Traceback" not in err
    assert "the loss is nan at update 21" in summary(folder)["reason"]
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None and 0 < checkpoint.load(newest).meta["updates"] <= 20
    assert checkpoint.load(folder / "diverged" / "update-000000000021").meta["layers"]


@pytest.mark.slow
def test_an_emulator_that_dies_ends_the_run_with_5_and_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    patch = """
recv, count = AtariEnvs.recv, 0
def dying(self):
    global count
    count += 1
    if count == 30:
        self._envs.recv = lambda: (_ for _ in ()).throw(RuntimeError("worker gone"))
    return recv(self)
AtariEnvs.recv = dying"""
    code, _, err = finish(new(folder, code=BROKEN.format(patch=patch)))
    assert code == 5 and "Traceback" not in err
    assert "an emulator of pong died (environment 0: seed " in summary(folder)["reason"]
    assert checkpoint.latest(folder / "checkpoints") is not None
