"""study=language from the command line: three arms, refusals, exact resume after a kill, broken data."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nap_rl import checkpoint
from nap_rl.nn.transformer import SIZES
from nap_rl.studies.language_config import MODELS
from tests.studies.study_runs import study_py, summary_of
from tests.text import corpus_files

pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
TINY = ["study=language", "vocabulary=300", "context=16", "batch_size=4", "tokens=640", "warmup_updates=2", "threads=1"]
SMALL = [*TINY, "device=cpu", "score_tokens=200", "log_every=2", "shuffle=10"]


@pytest.fixture
def c4(tmp_path: Path) -> list[str]:
    return ["data=c4", f"data.root={corpus_files.write_c4(tmp_path / 'c4')}"]


@pytest.mark.parametrize("variant", ["baseline", "norm", "nap"])
def test_each_arm_trains_and_is_scored(
    variant: str, c4: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lambada = tmp_path / "run", tmp_path / "lambada_test.jsonl"
    lambada.write_text('{"text": "the cat sat on the mat"}\n' * 3)
    more = [f"variant={variant}", f"scores.lambada={lambada}", f"hydra.run.dir={folder}"]
    assert study_py(monkeypatch, *SMALL, *c4, *more) == 0
    summary = summary_of(folder)
    assert summary["updates"] == 10 and summary["config"]["variant"] == variant
    assert set(summary["scores"]) == {
        f"{name}/{key}" for name in ("held_out", "lambada") for key in ("accuracy", "loss")
    }
    assert 0 < summary["scores"]["held_out/loss"] < 7
    assert (summary["norm_drift"] < 1e-6) == (variant == "nap")
    assert (folder / "tokenizer.json").is_file()


def test_a_text_folder_and_a_tokenizer_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus_files.write_text_folder(tmp_path / "text", files=8)
    first, second = tmp_path / "1", tmp_path / "2"
    root = f"data.root={text}"
    assert study_py(monkeypatch, *SMALL, root, f"hydra.run.dir={first}") == 0
    assert study_py(monkeypatch, *SMALL, root, f"tokenizer={first}/tokenizer.json", f"hydra.run.dir={second}") == 0
    assert summary_of(first)["weights_sha256"] == summary_of(second)["weights_sha256"]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("data.root=null", "data=c4 needs data.root=FOLDER, the folder of the corpus"),
        ("data.root=/nowhere", "finds no c4-train.*.json.gz in /nowhere: put the files there as published"),
        ("data=text", "holds no text: data=text reads files called .txt"),
        ("tokens=100", "tokens=100 make 1 updates of batch_size=4 rows with context=16 tokens"),
        ("norm=batch", "norm=batch would mix tokens"),
        ("model=transformer_huge", "model=transformer_huge is not one of transformer_tiny, transformer_400m"),
        ("context=129", "context=129 is more than the 128 tokens of model=transformer_tiny"),
        ("vocabulary=100", "vocabulary=100, expected a number of 257 or more"),
        ("tokenizer=/nowhere.json", "tokenizer=/nowhere.json is no file"),
        ("scores.piqa=/nowhere", "scores.piqa=/nowhere is no file"),
        ("variant=project", "variant=project needs a norm behind every hidden layer, which the decoder lacks"),
        ("variant=nop", "variant=nop is not one of baseline, norm, project, nap"),
    ],
)
def test_a_slip_is_one_sentence_and_exit_code_2(
    argument: str,
    sentence: str,
    c4: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert study_py(monkeypatch, *SMALL, *c4, f"hydra.run.dir={tmp_path / 'run'}", argument) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and said.startswith("study.py: ") and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_models_of_the_settings_are_those_that_there_are() -> None:
    assert set(MODELS) == set(SIZES)
    assert {name: SIZES[name].context for name in MODELS} == MODELS


def test_a_broken_line_ends_the_run_with_a_checkpoint_and_the_mended_run_equals_an_unbroken_one(
    c4: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, whole, broken = (tmp_path / name for name in ("first", "whole", "broken"))
    assert study_py(monkeypatch, *SMALL, *c4, f"hydra.run.dir={first}") == 0
    more = [*SMALL, *c4, "tokens=3200", "shuffle=3", f"tokenizer={first}/tokenizer.json"]
    assert study_py(monkeypatch, *more, f"hydra.run.dir={whole}") == 0
    path = tmp_path / "c4" / "c4-train.00001-of-00003.json.gz"
    sound = path.read_bytes()
    lines = gzip.decompress(sound).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join([*lines[:15], b'{"text": "cut\n', *lines[16:]])))
    capsys.readouterr()
    assert study_py(monkeypatch, *more, f"hydra.run.dir={broken}") == 2
    said = capsys.readouterr()
    assert "line 16, is no JSON" in said.out + said.err
    found = checkpoint.latest_meta(broken / "checkpoints")
    assert found is not None and 0 < found["updates"] < 50
    path.write_bytes(sound)
    assert study_py(monkeypatch, *more, f"hydra.run.dir={broken}") == 0
    assert summary_of(broken)["weights_sha256"] == summary_of(whole)["weights_sha256"]
    assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(c4: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [*SMALL, *c4, "tokens=25600", "save_every=20"]
    assert study_py(monkeypatch, *more, f"hydra.run.dir={tmp_path / 'whole'}") == 0
    folder = tmp_path / "killed"
    command = [sys.executable, "study.py", *more, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while not list(folder.glob("checkpoints/update-*")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()
    assert study_py(monkeypatch, *more, f"hydra.run.dir={folder}") == 0
    for name in ("metrics.csv", "evaluations.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert summary_of(folder)["weights_sha256"] == summary_of(tmp_path / "whole")["weights_sha256"]
