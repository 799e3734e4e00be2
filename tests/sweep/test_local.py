"""The runs of a sweep as processes: exit codes, signals, what is printed."""

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

from nap_rl.sweep import local
from nap_rl.sweep.trials import Trial

# Ends with the code that code=N asks for; with code=wait it waits, and a signal is answered with 128 + signal.
RUN = """
import json, pathlib, signal, sys, time
settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = pathlib.Path(settings["hydra.run.dir"].strip("'"))
folder.mkdir(parents=True)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: sys.exit(128 + number))
(folder / "begun").touch()
if settings["code"] == "wait":
    time.sleep(60)
if settings["code"] == "killed":
    signal.raise_signal(signal.SIGKILL)
visits = [{"mean_return": 2.5}]
(folder / "summary.json").write_text(json.dumps({"status": "finished", "frames": 8000, "visits": visits}))
sys.exit(int(settings["code"]))
"""
COMMAND = [sys.executable, "-c", RUN]


def trials(folder: Path, *codes: str) -> list[Trial]:
    return [Trial((f"code={code}",), (f"seed={i}",), folder / f"seed={i}") for i, code in enumerate(codes)]


@pytest.mark.parametrize(
    ("codes", "expected"), [(("0", "0"), 0), (("3", "0"), 3), (("4", "5", "3"), 5), (("killed", "0"), 137)]
)
def test_the_exit_code_is_that_of_the_worst_run_and_all_of_them_run(
    codes: tuple[str, ...], expected: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert local.run(trials(tmp_path, *codes), COMMAND) == expected
    assert len(list(tmp_path.glob("*/begun"))) == len(codes)
    out = capfd.readouterr().out
    assert f"[1/{len(codes)}] seed=0 -> {tmp_path / 'seed=0'}" in out
    assert f"[{len(codes)}/{len(codes)}] seed={len(codes) - 1} -> " in out


def test_a_table_at_the_end_has_a_line_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    local.run(trials(tmp_path, "0", "killed"), COMMAND)
    header, first, second = capfd.readouterr().out.splitlines()[-3:]
    assert header.split() == ["run", "ended", "code", "frames", "return", "folder"]
    assert first.split() == ["seed=0", "finished", "0", "8,000", "2.50", str(tmp_path / "seed=0")]
    assert second.split() == ["seed=1", "failed", "137", "-", "-", str(tmp_path / "seed=1")]


SWEEP = """
import sys, pathlib
sys.path.insert(0, {root!r})
sys.path.insert(0, {here!r})
import test_local as t
sys.exit(t.local.run(t.trials(pathlib.Path({folder!r}), "wait", "0"), t.COMMAND))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_stops_the_run_at_hand_and_the_sweep(number: signal.Signals, code: int, tmp_path: Path) -> None:
    here = Path(__file__).resolve()
    script = textwrap.dedent(SWEEP).format(root=str(here.parents[2]), here=str(here.parent), folder=str(tmp_path))
    sweep = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "seed=0" / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(sweep.pid, number)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == code
    assert not (tmp_path / "seed=1").exists()
    assert "not begun" in out and json.dumps(code) in out


def test_a_run_that_somebody_else_stops_stops_the_sweep(tmp_path: Path) -> None:
    assert local.run(trials(tmp_path, "143", "0"), COMMAND) == 143
    assert not (tmp_path / "seed=1").exists()
