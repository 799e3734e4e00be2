"""Lines while one call takes its time."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nap_rl.logging.waiting import Counting, Waiting


def test_lines_come_while_a_call_holds_pythons_lock_and_none_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    with Waiting("seeding 256 emulators", 64, every=0.1):
        for _ in range(8):
            ctypes.PyDLL(None).usleep(100_000)  # keeps the lock during the call, as ale-py does
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "seeding 256 emulators, about 64 s" and len(lines) > 1
    assert all(re.fullmatch(r"seeding 256 emulators: \d+ s, of about 64 s", line) for line in lines[1:])
    time.sleep(0.15)
    assert capfd.readouterr().err == ""


def test_a_wait_that_is_longer_than_estimated_gives_no_estimate_any_more(capfd: pytest.CaptureFixture[str]) -> None:
    with Waiting("seeding", 0.1, every=0.1):
        time.sleep(0.5)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) > 1 and all(re.fullmatch(r"seeding: \d+ s", line) for line in lines[1:])


def test_a_short_wait_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Waiting("seeding", 1):
        pass
    assert capfd.readouterr().err == ""


def test_the_lines_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os; from nap_rl.logging.waiting import Waiting; w = Waiting('seeding', 1, every=0.05); "
        "w.__enter__(); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).resolve().parents[2]
    log = tmp_path / "log"
    with log.open("w") as file:
        subprocess.run([sys.executable, "-c", code], cwd=root, stderr=file)
    time.sleep(0.3)
    before = log.read_text()
    time.sleep(0.2)
    assert log.read_text() == before


def test_a_count_is_said_every_five_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    count = Counting("pong", "40 episodes", clock=lambda: now)
    for done in range(40):
        count(done)
        now += 0.4
    assert capsys.readouterr().err.splitlines() == [
        "pong: 13 of 40 episodes, 5 s",
        "pong: 26 of 40 episodes, 10 s",
        "pong: 39 of 40 episodes, 16 s",
    ]
