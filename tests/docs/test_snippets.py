"""The Python blocks of README and guides run as they stand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent))
from commands import PAGES, ROOT, blocks  # noqa: E402

ELSEWHERE = {"nap.md": "tests/nap/test_docs.py", "sb3.md": "tests/sb3/test_docs.py"}  # with the fixtures they need
HERE = [(page, number) for page in PAGES for number in range(len(blocks(page, "python"))) if page.name not in ELSEWHERE]


def given() -> dict[str, Any]:
    """What a reader has at hand: a model, an example of its input, and an optimiser."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    return {
        "model": model,
        "example_input": torch.randn(5, 4),
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
    }


@pytest.mark.parametrize(("page", "number"), HERE, ids=[f"{page.stem}-{number}" for page, number in HERE])
def test_every_python_block_runs(page: Path, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(page, "python")[number], f"{page.name}, block {number + 1}", "exec"), given())


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_other_pages_are_run_by_a_test_of_their_own(name: str) -> None:
    assert f'"{name}"' in (ROOT / ELSEWHERE[name]).read_text()
