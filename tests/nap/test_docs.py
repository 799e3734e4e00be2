"""The example in docs/guides/nap.md runs as it stands."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from nap_rl import nap

DOC = (Path(__file__).parents[2] / "docs" / "guides" / "nap.md").read_text()


def test_example_is_short_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    assert len(examples) == 1
    assert len(examples[0].splitlines()) <= 20
    scope: dict[str, object] = {}
    exec(compile(examples[0], "docs/guides/nap.md", "exec"), scope)
    assert capsys.readouterr().out.count("param_norm") == 1
    assert float(scope["projector"].max_relative_drift()) < 1e-6  # type: ignore[attr-defined]


def test_every_option_is_described() -> None:
    for function in (nap.normalize, nap.Projector.__init__, nap.normalize_and_project):
        options = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert [name for name in options if f"`{name}`" not in DOC and f"{name}=" not in DOC] == []
