"""The runs of a sweep as processes: exit codes, deaths, signals, what is printed and what is recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nap_rl.sweep import attempts, commands, record, serial
from nap_rl.sweep.commands import Command
from nap_rl.sweep.trials import Trial

HERE = Path(__file__).resolve().parent
COMMAND = Command("train", str(HERE / "fake_run.py"), has_status=True, resume="resume")


def trials(folder: Path, *codes: str) -> list[Trial]:
    return [Trial((f"code={code}",), (f"seed={i}",), folder / f"seed={i}") for i, code in enumerate(codes)]


def rows(folder: Path) -> list[tuple[str, int, object]]:
    """(status, starts, reason) of each run in sweep.json."""
    plain = json.loads((folder / record.NAME).read_text())
    return [(row["status"], row["starts"], row["reason"]) for row in plain["runs"]]


def test_every_run_has_its_chance_and_the_exit_code_is_the_worst_ones(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert serial.run(trials(tmp_path, "3", "0", "4", "killed"), COMMAND) == 4
    assert rows(tmp_path) == [
        ("diverged", 1, "why"),
        ("finished", 1, None),
        ("failed", 1, "why"),
        ("finished", 2, None),
    ]
    out = capfd.readouterr().out
    assert f"[1/4] seed=0 -> {tmp_path / 'seed=0'}" in out and "[4/4] seed=3 -> " in out
    header, *lines = out.splitlines()[-5:]
    assert header.split() == ["run", "ended", "code", "frames", "return", "folder"]
    assert lines[1].split() == ["seed=1", "finished", "0", "8,000", "2.50", str(tmp_path / "seed=1")]


def test_a_run_that_dies_without_getting_on_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "DEATHS", 2)
    assert serial.run(trials(tmp_path, "doomed"), COMMAND) == 137
    status, starts, reason = rows(tmp_path)[0]
    assert (status, starts) == ("failed", 2) and "died 2 times in a row without a new checkpoint" in str(reason)


SWEEP = """
import sys, pathlib
sys.path[:0] = [{root!r}, {here!r}]
import test_local as t
folder = pathlib.Path({folder!r})
planned = t.trials(folder, *{codes!r})
sweep = t.record.Record(folder, t.COMMAND, planned, {{}})
from nap_rl.sweep import local, table
with local.Signals() as signals:
    places = [t.attempts.Surroundings(threads=1) for _ in range({parallel})]
    local.run(sweep, sweep.unfinished(), places, table.Lines(sweep, beginnings=False), signals)
sys.exit(local.exit_code(sweep, signals))
"""


def driver(folder: Path, *codes: str, parallel: int = 1) -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    root = str(HERE.parents[1])
    script = textwrap.dedent(SWEEP).format(
        root=root, here=str(HERE), folder=str(folder), codes=codes, parallel=parallel
    )
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_stops_the_runs_at_hand_and_the_sweep(number: signal.Signals, code: int, tmp_path: Path) -> None:
    sweep = driver(tmp_path, "wait", "wait", "0", parallel=2)
    wait_for(tmp_path / "seed=0" / "begun", tmp_path / "seed=1" / "begun")
    os.kill(sweep.pid, number)
    sweep.communicate(timeout=60)
    assert sweep.returncode == code
    assert not (tmp_path / "seed=2").exists()
    assert rows(tmp_path)[0] == ("interrupted", 1, None) and rows(tmp_path)[2] == ("waiting", 0, None)
    assert (tmp_path / "seed=0" / commands.OUTPUT).read_text() == "at work 1 on None\n"


def test_runs_end_with_a_killed_driver_and_the_next_driver_starts_what_is_not_finished(tmp_path: Path) -> None:
    sweep = driver(tmp_path, "0", "wait")
    wait_for(tmp_path / "seed=1" / "begun")
    assert attempts.is_held(tmp_path / "seed=1")
    sweep.kill()
    sweep.wait()
    deadline = time.monotonic() + 20
    while attempts.is_held(tmp_path / "seed=1") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not attempts.is_held(tmp_path / "seed=1")
    (tmp_path / "seed=1" / "checkpoints" / "1" / "code").write_text("0")
    assert driver(tmp_path, "0", "wait").wait(60) == 0
    assert [row[:2] for row in rows(tmp_path)] == [("finished", 1), ("finished", 2)]


def test_a_run_that_somebody_else_stops_stops_the_sweep(tmp_path: Path) -> None:
    assert serial.run(trials(tmp_path, "143", "0"), COMMAND) == 143
    assert not (tmp_path / "seed=1").exists()


def test_a_run_whose_checkpoints_hold_no_replay_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "seed=0"
    (folder / "checkpoints" / "1").mkdir(parents=True)
    (folder / "checkpoints" / "1" / "code").write_text("4")
    commands.note_start(folder, "host")
    assert serial.run([Trial(("code=0",), ("seed=0",), folder, resumes=False)], COMMAND) == 0
    assert rows(tmp_path) == [("finished", 2, None)]
