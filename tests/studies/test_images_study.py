"""study=images from the command line: three arms, refusals, exact resume, a report."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nap_rl import checkpoint
from nap_rl.studies import scores
from tests.studies import image_files
from tests.studies.study_runs import study_py, summary_of

ROOT = Path(__file__).resolve().parents[2]
TINY = ["study=images", "recipe=narrow", "width=4", "batch_size=16", "epochs=2", "warmup_updates=1", "device=cpu"]
SMALL = [*TINY, "log_every=2", "threads=1"]


@pytest.fixture
def fashion(tmp_path: Path) -> str:
    return f"data.root={image_files.fashion_mnist(tmp_path / 'fashion')}"


@pytest.mark.parametrize("variant", ["baseline", "norm", "project", "nap"])
def test_each_arm_trains_and_is_tested(
    variant: str, fashion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    assert study_py(monkeypatch, *SMALL, fashion, f"variant={variant}", f"hydra.run.dir={folder}") == 0
    summary = summary_of(folder)
    assert summary["updates"] == 8 and summary["config"]["variant"] == variant
    assert set(summary["scores"]) == {"accuracy", "loss"} and 0 <= summary["scores"]["accuracy"] <= 1
    assert (summary["norm_drift"] < 1e-6) == (variant in ("project", "nap"))
    with (folder / "evaluations.csv").open(newline="") as lines:
        assert [row["update"] for row in csv.DictReader(lines)] == ["4", "8"]
    assert study_py(monkeypatch, *SMALL, fashion, f"variant={variant}", f"hydra.run.dir={folder}") == 0


def test_folders_of_pictures_train_with_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_files.class_folders(tmp_path / "pictures")
    more = ["data=folder", f"data.root={root}", "data.size=16", "batch_size=6", "channels_last=true"]
    arguments = [*SMALL, *more, "existing=replace", "optimizer=adamw", "learning_rate=0.003", "label_smoothing=0.1"]
    for workers in (0, 2):
        assert study_py(monkeypatch, *arguments, f"workers={workers}", f"hydra.run.dir={tmp_path / str(workers)}") == 0
    first, second = (summary_of(tmp_path / str(workers)) for workers in (0, 2))
    assert first["weights_sha256"] == second["weights_sha256"] and first["scores"] == second["scores"]


def test_half_of_the_bits_learn_too(fashion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study_py(monkeypatch, *SMALL, fashion, "precision=bf16", f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert summary_of(tmp_path / "run")["norm_drift"] < 1e-6


@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.slow), "adamw"])
def test_moments_come_back_in_the_layout_of_their_weights(
    optimizer: str, fashion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*SMALL, fashion, f"optimizer={optimizer}", "learning_rate=0.01", "channels_last=true", "save_every=3"]
    assert study_py(monkeypatch, *arguments, f"hydra.run.dir={tmp_path / 'run'}") == 0
    expected = summary_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "update-000000000008")
    (tmp_path / "run" / "summary.json").unlink()  # as if killed after update 6
    assert study_py(monkeypatch, *arguments, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert summary_of(tmp_path / "run")["weights_sha256"] == expected["weights_sha256"]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("data.root=/nowhere", "needs /nowhere/t10k-images-idx3-ubyte.gz: install Debian's package"),
        ("data=cifar10", "data=cifar10 needs data/cifar-10-batches-bin/test_batch.bin: unpack"),
        ("data=imagenet", "data=imagenet needs data.root, a folder that holds train/CLASS/*.jpg"),
        ("variant=nop", "variant=nop is not one of baseline, norm, project, nap"),
        ("data=mnist", "data=mnist does not exist"),
        ("widht=3", "there is no key 'widht': did you mean 'width'?"),
        ("depth=20", "depth=20 is not one of 18, 34, 50"),
        ("learning_rate=0", "learning_rate=0.0, expected a number above 0"),
        ("learning_rate=nan", "learning_rate=nan must be a number"),
        ("momentum=1", "momentum=1.0, expected a number in [0, 1)"),
        ("batch_size=65", "batch_size=65 is more than the 64 images for training"),
        ("warmup_updates=8", "warmup_updates=8 leaves nothing of the run's 8 updates"),
        ("data.images=65", "data.images=65, but data=fashion_mnist has 64 images for training"),
        ("data.crop=resized", "data.crop=resized is for images in folders"),
        ("threads=many", "threads=many, expected auto or a number"),
        ("recipe=cifar", "recipe=cifar does not exist"),
    ],
)
def test_a_slip_is_one_sentence_and_nothing_is_written(
    argument: str,
    sentence: str,
    fashion: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [] if argument.startswith("data.root") or argument in ("data=cifar10", "data=imagenet") else [fashion]
    assert study_py(monkeypatch, *SMALL, *given, f"hydra.run.dir={tmp_path / 'run'}", argument) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and said.startswith("study.py: ") and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_a_projection_of_offsets_needs_the_projection(
    fashion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["variant=norm", "affine=project", f"hydra.run.dir={tmp_path / 'run'}"]
    assert study_py(monkeypatch, *SMALL, fashion, *arguments) == 2
    assert "affine=project is a projection, which variant=norm leaves out" in capsys.readouterr().err


def test_a_projection_without_normalize_needs_norms_of_the_networks_own(
    fashion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["variant=project", "model_norm=none", f"hydra.run.dir={tmp_path / 'run'}"]
    assert study_py(monkeypatch, *SMALL, fashion, *arguments) == 2
    assert (
        "variant=project projects what the network's own norms follow: take model_norm=batch" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_torn_picture_stops_the_run_which_goes_on_when_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_files.class_folders(tmp_path / "pictures")
    torn = root / "train" / "dog" / "2.jpg"
    arguments = [*SMALL, "data=folder", f"data.root={root}", "data.size=16", "batch_size=3"]
    assert study_py(monkeypatch, *arguments, f"hydra.run.dir={tmp_path / 'whole'}") == 0
    content = torn.read_bytes()
    torn.write_bytes(content[:300])
    capsys.readouterr()
    assert study_py(monkeypatch, *arguments, f"hydra.run.dir={tmp_path / 'torn'}") == 2
    said = capsys.readouterr().out.strip().splitlines()[-1]
    assert f"the image {torn} cannot be read: " in said and "the same command goes on from update" in said
    torn.write_bytes(content)
    assert study_py(monkeypatch, *arguments, f"hydra.run.dir={tmp_path / 'torn'}") == 0
    assert summary_of(tmp_path / "torn")["weights_sha256"] == summary_of(tmp_path / "whole")["weights_sha256"]


@pytest.mark.slow  # processes that import torch
def test_a_run_that_is_killed_goes_on_to_the_same_files(fashion: str, tmp_path: Path) -> None:
    command = [sys.executable, "study.py", *TINY, fashion, "log_every=1", "save_every=1", "epochs=12", "threads=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, f"hydra.run.dir={tmp_path / 'whole'}"], cwd=ROOT, env=environment, check=True)
    killed = tmp_path / "killed"
    for _ in range(3):
        before = checkpoint.latest(killed / "checkpoints")
        process = subprocess.Popen([*command, f"hydra.run.dir={killed}"], cwd=ROOT, env=environment)
        deadline = time.monotonic() + 300
        while checkpoint.latest(killed / "checkpoints") == before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, f"hydra.run.dir={killed}"], cwd=ROOT, env=environment, check=True)
    for name in ("metrics.csv", "evaluations.csv"):
        assert (killed / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert summary_of(killed)["weights_sha256"] == summary_of(tmp_path / "whole")["weights_sha256"]


@pytest.mark.slow  # processes that import torch
@pytest.mark.parametrize("variant", ["norm", "nap"])
def test_two_processes_give_the_weights_of_one_after_20_updates(variant: str, fashion: str, tmp_path: Path) -> None:
    arm = [f"variant={variant}", "existing=replace", "model_norm=batch", "epochs=5", "threads=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    starts = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    }
    for name, start in starts.items():
        command = [*start, "study.py", *TINY, fashion, *arm, f"hydra.run.dir={tmp_path / name}"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600)
    one, two = (checkpoint.load(tmp_path / name / "checkpoints" / "update-000000000020") for name in starts)
    for name, weight in one.tensors["network"].items():
        torch.testing.assert_close(two.tensors["network"][name], weight, atol=1e-5, rtol=0)
    assert summary_of(tmp_path / "two")["scores"] == pytest.approx(summary_of(tmp_path / "one")["scores"], abs=1e-4)


@pytest.mark.slow  # each study is a process, which imports torch
def test_a_sweep_ends_with_a_table_by_arm_and_rate(fashion: str, tmp_path: Path) -> None:
    values = ["variant=baseline,nap", "learning_rate=0.01,0.1", "seed=0,1"]
    command = [sys.executable, "sweep.py", "study", *TINY, fashion, *values, f"sweep.dir={tmp_path / 'sweep'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "sweep.engine=local"], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert "| arm | rate | seeds | accuracy [95 %] | loss [95 %] |" in done.stdout
    with (tmp_path / "sweep" / "arms.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["arm"], row["learning_rate"], row["seeds"]) for row in rows] == [
        (arm, rate, "2") for arm in ("baseline", "nap") for rate in ("0.01", "0.1")
    ]
    assert sum(row["best"] == "True" for row in rows) == 2 and (tmp_path / "sweep" / "figure.png").exists()


def test_arms_are_named_by_what_differs() -> None:
    configs = [
        {"variant": variant, "learning_rate": rate, "seed": seed, "data": {"name": "x"}, "existing": existing}
        for variant, existing in (("baseline", "keep"), ("nap", "keep"), ("nap", "replace"))
        for rate, seed in ((0.1, 0), (0.2, 1))
    ]
    names = scores.name_arms(configs)
    assert names[0] == names[1] == "baseline existing=keep" and names[5] == "nap existing=replace"


def test_the_best_rate_is_the_highest_accuracy_or_the_lowest_loss() -> None:
    configs = [{"variant": "nap", "learning_rate": rate} for rate in (0.1, 0.1, 0.2, 0.2)]
    for name, best in (("accuracy", 0.2), ("loss", 0.1)):
        table = scores.rows(["nap"] * 4, configs, [{name: value} for value in (0.1, 0.3, 0.5, 0.7)])
        assert [row["learning_rate"] for row in table if row["best"]] == [best]
        assert table[0][name] == pytest.approx(0.2) and 0.1 <= table[0][f"{name}_low"] < table[0][f"{name}_high"] <= 0.3
