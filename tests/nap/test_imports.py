"""Importing Normalize-and-Project costs little more than importing torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, torch
before = set(sys.modules)
import nap_rl.nap
new = {name for name in sys.modules if name not in before}
print(sorted(n for n in new if n.partition(".")[0] == "sympy" or n.startswith(("torch._dynamo", "torch._inductor"))))
print(sorted(name for name in new if name.startswith("nap_rl.") and not name.startswith("nap_rl.nap")))
"""


def test_import_brings_no_compiler_and_nothing_else_of_ours() -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]
