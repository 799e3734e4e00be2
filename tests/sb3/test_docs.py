"""The examples in docs/guides/sb3.md run as they stand."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DOC = (Path(__file__).parents[2] / "docs" / "guides" / "sb3.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)


@pytest.mark.parametrize("number", range(5))
def test_examples_are_short_and_run(
    number: int,
    dqn_zip: Path,
    checkpoint_of: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(EXAMPLES) == 5 and len(EXAMPLES[number].splitlines()) <= 12
    if number == 0:
        shutil.copy(dqn_zip, tmp_path / "model.zip")
    if number == 4:
        checkpoint_of(tmp_path / "runs" / "pong-dqn", "agent=dqn")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(EXAMPLES[number], f"docs/guides/sb3.md, example {number + 1}", "exec"), scope)
    assert capsys.readouterr().out
    if number == 2:
        assert scope["callback"].max_relative_drift() < 1e-6
