"""What is printed at the end of a run never changes how the run ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
from nap_rl.logging.console import say
for _ in range(3):
    say("finished: runs/\\u6a21\\u578b, f\\u00fcr immer")
raise SystemExit(7)
"""


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("ascii", "runs/??, f?r immer"), ("latin-1", "runs/??, für immer"), ("utf-8", "runs/模型, für")],
)
def test_letters_that_the_terminal_lacks_are_replaced(encoding: str, text: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=False)
    assert done.returncode == 7 and not done.stderr
    assert text in done.stdout.decode(encoding)


def test_a_closed_pipe_and_a_full_disk_are_silent_and_leave_the_exit_code() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    for output in (writing, full):
        done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=output, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 7 and not done.stderr
        os.close(output)
