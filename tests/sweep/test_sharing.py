"""Runs that differ in their seed alone and share a process: folders, ends, kills, signals, and real trainings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nap_rl import cli
from nap_rl.conf import schema
from nap_rl.conf.sweeps import Planner
from nap_rl.sweep import commands, local, record, sharing, table
from nap_rl.sweep.attempts import Surroundings
from nap_rl.sweep.commands import STUDY, TRAIN, Command
from nap_rl.sweep.trials import Trial

ROOT = Path(__file__).resolve().parents[2]
FAKE = Command("train", str(Path(__file__).parent / "fake_run.py"), has_status=True, resume="resume", together="seeds")


def runs(folder: Path, code: str, seeds: int) -> list[Trial]:
    return [
        Trial((f"code={code}", f"seed={seed}"), (f"seed={seed}",), folder / f"seed={seed}", seed=seed)
        for seed in range(seeds)
    ]


def shared(folder: Path, code: str, seeds: int, most: int) -> list[Trial]:
    return sharing.share(runs(folder, code, seeds), folder, lambda arm: most, {})


def rows(folder: Path) -> list[tuple[str, int, object]]:
    """(status, starts, reason) of each run in sweep.json."""
    plain = json.loads((folder / record.NAME).read_text())
    return [(row["status"], row["starts"], row["reason"]) for row in plain["runs"]]


def sweep(folder: Path, trials: list[Trial]) -> int:
    found = record.Record(folder, FAKE, trials, {})
    with local.Signals() as signals:
        local.run(found, found.unfinished(), [Surroundings(threads=1)], table.Lines(found, beginnings=False), signals)
    return local.exit_code(found, signals)


@pytest.mark.parametrize(
    ("seeds", "most", "folders"),
    [
        (3, 5, ["seed=0..2/seed_0", "seed=0..2/seed_1", "seed=0..2/seed_2"]),
        (3, 1, ["seed=0", "seed=1", "seed=2"]),
        (3, 2, ["seed=0", "seed=1..2/seed_1", "seed=1..2/seed_2"]),
        (6, 5, [f"seed=0..2/seed_{i}" for i in range(3)] + [f"seed=3..5/seed_{i}" for i in range(3, 6)]),
        (1, 5, ["seed=0"]),
    ],
)
def test_seeds_are_shared_out_evenly(seeds: int, most: int, folders: list[str], tmp_path: Path) -> None:
    found = shared(tmp_path, "0", seeds, most)
    assert [trial.folder.relative_to(tmp_path).as_posix() for trial in found] == folders
    assert sum(map(len, sharing.processes(found))) == seeds
    assert all(len(each) <= most for each in sharing.processes(found))


def test_runs_of_different_settings_share_no_process(tmp_path: Path) -> None:
    typed = [("x=1", "seed=7"), ("x=2", "seed=7"), ("x=1", "seed=9"), ("x=2", "seed=9")]
    trials = [Trial(each, each, tmp_path / ",".join(each), seed=int(each[1][-1])) for each in typed]
    found = sharing.share(trials, tmp_path, lambda arm: 5, {})
    names = [trial.folder.relative_to(tmp_path).as_posix() for trial in found]
    assert names == ["x=1,seed=7_9/seed_7", "x=2,seed=7_9/seed_7", "x=1,seed=7_9/seed_9", "x=2,seed=7_9/seed_9"]
    assert [[trial.seed for trial in each] for each in sharing.processes(found)] == [[7, 9], [7, 9]]


def test_a_sweep_that_goes_on_keeps_its_folders(tmp_path: Path) -> None:
    before = [*shared(tmp_path, "0", 2, 2), *runs(tmp_path, "0", 3)[2:]]
    record.Record(tmp_path, FAKE, before, {}).write(now=True)
    assert record.read(tmp_path).trials == before
    again = sharing.share(runs(tmp_path, "0", 5), tmp_path, lambda arm: 5, record.known(tmp_path))
    names = [trial.folder.relative_to(tmp_path).as_posix() for trial in again]
    assert names == ["seed=0..1/seed_0", "seed=0..1/seed_1", "seed=2", "seed=3..4/seed_3", "seed=3..4/seed_4"]
    plain = json.loads((tmp_path / record.NAME).read_text())
    for row in plain["runs"]:  # as earlier versions wrote it
        del row["together"]
    (tmp_path / record.NAME).write_text(json.dumps(plain))
    assert [trial.together for trial in record.read(tmp_path).trials] == [None] * 3


def test_each_run_of_a_process_has_its_own_end(tmp_path: Path) -> None:
    assert sweep(tmp_path, shared(tmp_path, "mixed", 3, 3)) == 3
    assert rows(tmp_path) == [("finished", 1, None), ("diverged", 1, "why"), ("finished", 1, None)]
    assert (tmp_path / "seed=0..2" / commands.OUTPUT).read_text() == "at work 1 on 0 1 2\n"
    found = record.Record(tmp_path, FAKE, shared(tmp_path, "mixed", 3, 3), {})
    assert found.unfinished() == [] and len(found.outcomes) == 3  # as the folders say


def test_a_killed_process_goes_on_with_the_runs_that_are_left(tmp_path: Path) -> None:
    assert sweep(tmp_path, shared(tmp_path, "half", 3, 3)) == 0
    assert rows(tmp_path) == [("finished", 1, None), ("finished", 2, None), ("finished", 3, None)]
    assert (tmp_path / "seed=0..2" / commands.OUTPUT).read_text() == "at work 1 on 0 1 2\nat work 1 on 1 2\n"
    assert (tmp_path / "seed=0..2" / "seed_2" / commands.OUTPUT).read_text() == "at work 1 on None\n"  # resume=FOLDER


def test_a_refused_process_refuses_its_runs(tmp_path: Path) -> None:
    assert sweep(tmp_path, shared(tmp_path, "2", 2, 2)) == 2
    assert rows(tmp_path) == [("refused", 1, "at work 1 on 0 1")] * 2


def planned(folder: Path, *typed: str, seeds_per_process: int | None = None, at_once: int | None = 2) -> list[str]:
    """Folders of the runs of `sweep.py train experiment=permuted_catch ...`."""
    schema.register()
    cli.register_resolvers()
    planner = Planner(TRAIN, folder, seeds_per_process, at_once)
    small = ("experiment=permuted_catch", "device=cpu", "logger.tensorboard=false")
    found = planner.plan(cli.Arguments((*small, *typed)))
    return [trial.folder.relative_to(folder).as_posix() for trial in found]


def test_auto_fills_the_cores_first_and_stacks_where_it_can(tmp_path: Path) -> None:
    assert planned(tmp_path, "seed=0..4", at_once=1)[4] == "seed=0..4/seed_4"
    assert planned(tmp_path, "seed=0..4", at_once=2)[4] == "seed=2..4/seed_4"
    assert planned(tmp_path, "seed=0..4", at_once=8)[4] == "seed=4"
    assert planned(tmp_path, "seed=0..4", at_once=None)[4] == "seed=4"
    both = planned(tmp_path, "optimizer=adam,sgd", "seed=0..1", at_once=1)
    assert both == [
        "optimizer=adam,seed=0..1/seed_0",
        "optimizer=adam,seed=0..1/seed_1",
        "optimizer=sgd,seed=0",
        "optimizer=sgd,seed=1",
    ]


def test_a_number_is_kept_or_refused(tmp_path: Path) -> None:
    assert planned(tmp_path, "seed=0..2", seeds_per_process=3, at_once=8)[0] == "seed=0..2/seed_0"
    with pytest.raises(ValueError) as error:
        planned(tmp_path, "optimizer=adam,sgd", "seed=0..1", seeds_per_process=2)
    assert str(error.value).startswith("sweep.seeds_per_process=2: runs (optimizer=sgd) cannot share a process")
    with pytest.raises(ValueError, match=r"sweep.seeds_per_process=2 is for trainings, not for study.py"):
        Planner(STUDY, tmp_path, 2)


def test_a_process_of_several_runs_needs_the_memory_of_their_replays(tmp_path: Path) -> None:
    schema.register()
    cli.register_resolvers()
    typed = ("experiment=permuted_catch", "replay.capacity=1_000_000", "logger.tensorboard=false", "device=cpu")
    needed = []
    for seeds in ("0", "0,1"):
        planner = Planner(TRAIN, tmp_path, 2)
        planner.plan(cli.Arguments((*typed, f"seed={seeds}")))
        needed.append(planner.bytes_per_run)
    frames = 1_000_000 * 50 * 4  # float32 of 10 x 5 cells
    assert frames < needed[1] - needed[0] < 1.5 * frames


def sweep_py(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "sweep.py", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def summaries(folder: Path) -> list[dict[str, Any]]:
    plain = json.loads((folder / record.NAME).read_text())
    return [json.loads((folder / row["folder"] / "summary.json").read_text()) for row in plain["runs"]]


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.slow  # four sweeps of three trainings
def test_trainings_that_share_a_process_survive_kills_and_signals(tmp_path: Path) -> None:
    tiny = ("train", "experiment=permuted_catch", "env.visits=1", "logger.tensorboard=false", "device=cpu")
    typed = (*tiny, "seed=0..2", "checkpoint.every=500", "sweep.engine=local", "sweep.seeds_per_process=3")
    peace = sweep_py(*typed, f"sweep.dir={tmp_path / 'peace'}")
    out, _ = peace.communicate(timeout=900)
    assert peace.returncode == 0, out
    assert rows(tmp_path / "peace") == [("finished", 1, None)] * 3
    folder = tmp_path / "war"
    driver = sweep_py(*typed, f"sweep.dir={folder}")
    wait_for_checkpoints(folder, 1000)
    (process,) = children(driver.pid)
    os.kill(process, signal.SIGKILL)  # the process of the runs
    wait_for_checkpoints(folder, 2000)
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, out
    assert rows(folder) == [("interrupted", 2, None)] * 3
    driver = sweep_py(f"resume={folder}")
    wait_for_checkpoints(folder, 3000)
    driver.kill()
    driver.communicate()
    driver = sweep_py(f"resume={folder}")
    out, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, out
    assert rows(folder) == [("finished", 4, None)] * 3
    assert [each["weights_sha256"] for each in summaries(folder)] == [
        each["weights_sha256"] for each in summaries(tmp_path / "peace")
    ]


def wait_for_checkpoints(folder: Path, frames: int) -> None:
    """Until each run has one of so many frames."""
    deadline = time.monotonic() + 300
    newest = [folder / "seed=0..2" / f"seed_{seed}" for seed in range(3)]
    while not all(int((commands.newest_checkpoint(run) or "-0").rpartition("-")[2]) >= frames for run in newest):
        assert time.monotonic() < deadline
        time.sleep(0.02)
