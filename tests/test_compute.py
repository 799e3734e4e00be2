"""Which precision, whether to compile; and that neither changes what an update learns."""

from __future__ import annotations

import warnings

import pytest
import torch

from nap_rl.compute import WORTH_COMPILING, pick_compile, pick_precision


def test_auto_is_float32_until_there_is_evidence() -> None:
    assert pick_precision("auto") is torch.float32
    assert pick_precision("fp32") is torch.float32
    assert pick_precision("bf16") is torch.bfloat16
    with pytest.raises(ValueError, match="precision is 'fp16', expected auto, fp32 or bf16"):
        pick_precision("fp16")


def test_auto_compiles_long_runs_and_no_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "true")  # a program that is there
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "kept")
    assert not pick_compile("auto", WORTH_COMPILING - 1)
    assert pick_compile("auto", WORTH_COMPILING)
    assert pick_compile("on", 1)
    assert not pick_compile("off", 1e9)
    with pytest.raises(ValueError, match="compile is 'yes', expected auto, on or off"):
        pick_compile("yes", 1)


@pytest.mark.parametrize("name", ["auto", "on"])
def test_a_missing_compiler_is_a_warning_and_no_failure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match="there is no C\\+\\+ compiler 'no-such-compiler'"):
        assert not pick_compile(name, 1e9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not pick_compile("off", 1e9)
