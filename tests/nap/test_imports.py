"""nap_rl.nap is a library of its own."""

from __future__ import annotations

import subprocess
import sys


def test_nap_loads_nothing_else_of_the_project() -> None:
    code = "import sys, nap_rl.nap\nprint(*(name for name in sys.modules if name.startswith('nap_rl')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert "nap_rl.nap.project" in found
    assert [name for name in found if name != "nap_rl" and name.split(".")[1] != "nap"] == []
