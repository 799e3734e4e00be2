"""What the tests of studies share: the command, and what a run leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_rl import study
from nap_rl.studies.config import SUMMARY


def study_py(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of `python study.py ARGUMENTS`; torch's threads stay as they were."""
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as end:
            study.main()
    finally:
        torch.set_num_threads(threads)
    assert isinstance(end.value.code, int)
    return end.value.code


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    return found
