"""One signal ends all studies of `study.py -m`; nothing more begins, nothing stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONG = ["data=digits", "data.images=64", "width=4", "tasks=1000000", "steps_per_task=1", "batch_size=16"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_real_command_ends_its_processes(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "study.py", "-m", "seed=0,1,2", "jobs=2", f"hydra.sweep.dir={tmp_path}", *LONG]
    sweeping = subprocess.Popen([*command, "save_every=1"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*/checkpoints/*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        children = set(Path(f"/proc/{sweeping.pid}/task/{sweeping.pid}/children").read_text().split())
        assert len(children) >= 2
        sweeping.send_signal(number)
        _, said = sweeping.communicate(timeout=30)
    finally:
        sweeping.kill()
    assert sweeping.returncode == 128 + number and "Traceback" not in said
    assert not any(is_alive(pid) for pid in children)
    assert not (tmp_path / "seed=2").exists()


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
