"""The loop that images and language share: resumed exactly, the same in one process and in two."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl import checkpoint
from nap_rl.studies import arms, stationary
from nap_rl.studies.ranks import Ranks, total
from nap_rl.studies.stationary import DataError, Task, Training
from nap_rl.studies.stationary_config import EVALUATIONS, METRICS, TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
UPDATES = 20
CONFIG = TrainingConfig(
    study="toy",
    learning_rate=0.05,
    batch_size=8,
    log_every=4,
    save_every=8,
    warmup_updates=3,
    device="cpu",
    threads="1",
)


class ToyBatches:
    """Batches that the update alone decides; each process takes its part."""

    def __init__(self, ranks: Ranks, breaks_at: int | None = None) -> None:
        self.ranks, self.breaks_at, self.given = ranks, breaks_at, 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if self.given == self.breaks_at:
            raise DataError("the file toy.bin is torn")
        generator = torch.Generator().manual_seed(self.given)
        x = torch.randn(8, 6, generator=generator)
        self.given += 1
        part = slice(self.ranks.rank, None, self.ranks.processes)
        return x[part], x.sum(1).gt(0).long()[part]

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.given = state["given"]


def toy_task(ranks: Ranks, device: torch.device, breaks_at: int | None = None) -> Task:
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1 if ranks.processes == 1 else 0.0), nn.Linear(16, 2)
    )
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(99))

    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(module(batch[0]), batch[1])

    def evaluate(module: nn.Module) -> dict[str, float]:
        mine = x[ranks.rank :: ranks.processes]
        right = total((module(mine).argmax(1) == mine.sum(1).gt(0)).double().sum())
        return {"accuracy": float(right) / len(x)}

    return Task(model, x[:4], ToyBatches(ranks, breaks_at), loss, evaluate, UPDATES, eval_every=10, samples=8)


def trained(folder: Path, config: TrainingConfig = CONFIG, breaks_at: int | None = None) -> int:
    return stationary.run(config, folder, lambda ranks, device: toy_task(ranks, device, breaks_at))


def stopped_after(folder: Path, updates: int, config: TrainingConfig = CONFIG) -> int:
    """As `stationary.run`, with a SIGTERM after so many updates."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(config.seed)
    training = Training(config, folder, toy_task(Ranks(), CPU), Ranks(), CPU)
    training.resume()
    return training.run(lambda: 15 if training.updates >= updates else None)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def files(folder: Path) -> dict[str, object]:
    summary = json.loads((folder / "summary.json").read_text())
    written = {name: (folder / name).read_text() for name in (METRICS, EVALUATIONS)}
    return {**written, "weights": summary["weights_sha256"], "scores": summary["scores"]}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("variant", ["baseline", "norm", "nap"])
def test_a_run_stopped_anywhere_writes_the_same_files(variant: str, optimizer: str, tmp_path: Path) -> None:
    config = replace(CONFIG, variant=variant, optimizer=optimizer, learning_rate=0.01)
    assert trained(tmp_path / "whole", config) == 0
    for updates in (5, 8, 19):
        assert stopped_after(tmp_path / "parts", updates, config) == 128 + 15
    assert trained(tmp_path / "parts", config) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_what_a_killed_process_wrote_behind_its_checkpoint_is_written_again(tmp_path: Path) -> None:
    assert trained(tmp_path / "whole") == 0
    assert trained(tmp_path / "killed") == 0
    (tmp_path / "killed" / "summary.json").unlink()
    newest = checkpoint.latest(tmp_path / "killed" / "checkpoints")
    assert newest is not None and newest.name == "update-000000000020"
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()  # as if killed between update 16 and the end
    assert trained(tmp_path / "killed") == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_run_killed_before_its_summary_writes_it(tmp_path: Path) -> None:
    assert trained(tmp_path) == 0
    before = files(tmp_path)
    (tmp_path / "summary.json").unlink()
    assert trained(tmp_path) == 0
    assert files(tmp_path) == before


def test_rows_come_when_they_are_due_and_at_the_end(tmp_path: Path) -> None:
    assert trained(tmp_path, replace(CONFIG, log_every=6)) == 0
    assert [int(row["update"]) for row in rows(tmp_path / METRICS)] == [6, 10, 12, 18, 20]
    assert [int(row["update"]) for row in rows(tmp_path / EVALUATIONS)] == [10, 20]


def test_the_rate_rises_in_the_warm_up_and_falls_to_its_end() -> None:
    schedule = arms.build_schedule(replace(CONFIG, warmup_updates=4, final_share=0.1), 20)
    rates = [schedule(update / 20) for update in range(21)]
    assert rates[0] == 0 and rates[2] == pytest.approx(0.025) and max(rates) == pytest.approx(rates[4]) == 0.05
    assert rates[20] == pytest.approx(0.005) and rates[12] == pytest.approx((0.05 + 0.005) / 2)


def test_vectors_have_no_weight_decay() -> None:
    optimizer = arms.build_optimizer(replace(CONFIG, weight_decay=0.3), nn.Linear(3, 2))
    assert [(group["params"][0].ndim, group["weight_decay"]) for group in optimizer.param_groups] == [(2, 0.3), (1, 0)]


def test_norms_stay_with_projection_and_move_without(tmp_path: Path) -> None:
    drifts = {}
    for variant in ("norm", "nap"):
        assert trained(tmp_path / variant, replace(CONFIG, variant=variant)) == 0
        drifts[variant] = max(float(row["nap/norm_drift"]) for row in rows(tmp_path / variant / METRICS))
    assert drifts["nap"] < 1e-6 < 1e-3 < drifts["norm"]


def test_other_settings_do_not_go_on_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped_after(tmp_path, 8)
    with pytest.raises(SystemExit) as end:
        trained(tmp_path, replace(CONFIG, learning_rate=0.1))
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "holds a run with learning_rate=0.05, not learning_rate=0.1: name another folder" in said
    assert trained(tmp_path, replace(CONFIG, save_every=3)) == 0


def test_torn_data_ends_the_run_with_a_sentence_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(tmp_path / "whole") == 0
    capsys.readouterr()
    assert trained(tmp_path / "torn", breaks_at=13) == stationary.BAD_DATA
    said = capsys.readouterr().out.strip().splitlines()[-1]
    assert said == "the file toy.bin is torn. Mend it, and the same command goes on from update 13"
    assert trained(tmp_path / "torn") == 0
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, variant="baseline", learning_rate=1e12, warmup_updates=0)
    assert trained(tmp_path, config) == stationary.DIVERGED
    assert "diverged: a loss within the last" in capsys.readouterr().out
    assert not (tmp_path / "summary.json").exists()
    assert checkpoint.latest(tmp_path / "checkpoints") is None


def test_a_folder_that_cannot_be_written_ends_the_run_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    assert trained(tmp_path) == stationary.CANNOT_WRITE
    assert "cannot be written: [Errno 28] No space left on device; its last checkpoint is of" in capsys.readouterr().out


TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path({tests!r})))
import test_stationary as toys
from dataclasses import replace
sys.exit(toys.trained(Path({folder!r}), replace(toys.CONFIG, variant={variant!r})))
"""


@pytest.mark.slow  # processes that import torch
@pytest.mark.parametrize("variant", ["norm", "nap"])
def test_two_processes_give_the_weights_of_one(variant: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "two"), variant=variant)
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(torchrun, env=environment, check=True, timeout=300, capture_output=True)
    torch.manual_seed(CONFIG.seed)
    config = replace(CONFIG, variant=variant)
    task = toy_task(Ranks(), CPU)
    task.model[2].p = 0.0
    alone = Training(config, tmp_path, task, Ranks(), CPU)
    assert alone.run(lambda: None) == 0
    newest = checkpoint.latest(tmp_path / "two" / "checkpoints")
    assert newest is not None
    found = checkpoint.load(newest)
    for name, weight in alone.model.state_dict().items():
        torch.testing.assert_close(found.tensors["network"][name], weight, atol=1e-5, rtol=1e-5)
    assert rows(tmp_path / "two" / EVALUATIONS) == rows(tmp_path / EVALUATIONS)
