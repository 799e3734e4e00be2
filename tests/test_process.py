"""Stop signals, and the lock that gives a run's folder to one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nap_rl.process import RunsHere, StopSignals, sole_owner


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
def test_a_signal_is_noted_and_the_earlier_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
    assert signal.getsignal(number) == before


def test_the_first_signal_counts_and_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert signals.received == signal.SIGTERM
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_folder_has_one_owner_and_none_after_it_was_killed(tmp_path: Path) -> None:
    code = "import sys, time\nfrom pathlib import Path\nfrom nap_rl.process import sole_owner\n"
    code += "with sole_owner(Path(sys.argv[1])):\n    print('mine', flush=True)\n    time.sleep(600)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "mine\n"
    with (
        pytest.raises(BlockingIOError, match=f"in use by another process .process {owner.pid} on "),
        sole_owner(tmp_path),
    ):
        pass
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with sole_owner(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()


RUN = """
import sys, time
from pathlib import Path
from nap_rl.process import RunsHere
with RunsHere(Path(sys.argv[1])) as runs:
    print("counted", flush=True)
    time.sleep(600)
"""


def test_runs_of_a_machine_see_each_other_and_none_that_died(tmp_path: Path) -> None:
    with RunsHere(tmp_path / "runs") as runs:
        assert runs.count() == 1
        other = subprocess.Popen([sys.executable, "-c", RUN, str(runs.folder)], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None and other.stdout.readline() == "counted\n"
        assert runs.count() == 2
        other.kill()
        other.wait()
        other.stdout.close()
        assert runs.count() == 1
        assert [path.name for path in runs.folder.iterdir()] == [f"run-{os.getpid()}"]
    assert list(runs.folder.iterdir()) == []


def test_where_runs_cannot_be_counted_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with RunsHere(tmp_path / "file") as runs:
        assert runs.count() == 1
