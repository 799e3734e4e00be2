"""Free memory and disk space, and flushing of denormal numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nap_rl.machine import free_space


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    there, below = free_space(tmp_path), free_space(tmp_path / "not" / "yet")
    assert there is not None and below is not None and abs(there - below) < 1 << 30 and there > 0


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush denormals")
def test_denormals_are_zero_in_every_thread_of_torch() -> None:
    """A product large enough to be shared out among threads, each of which has a flag of its own."""
    code = """
import os, torch
from nap_rl.machine import flush_denormals
torch.set_num_threads(4)
if os.fork():  # no thread has begun yet: the child computes without the call, and then this process with it
    os.wait()
    flush_denormals()
print(int((torch.full((1 << 20,), 1e-39) * 1.0).count_nonzero()), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert list(map(int, done.stdout.split())) == [1 << 20, 0]
