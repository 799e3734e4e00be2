"""docs/traps.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_test_that_the_table_of_traps_names_is_there() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "traps.md").read_text())
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", sources, re.M))
    assert len(named) > 50
    assert sorted(set(named) - defined) == []
