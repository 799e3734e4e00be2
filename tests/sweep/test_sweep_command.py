"""sweep.py from the command line: refusals before anything starts, a sweep of real runs, going on with one."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from nap_rl import sweep_command, threads
from nap_rl.sweep import record, resources, settings
from nap_rl.sweep.commands import TRAIN
from nap_rl.sweep.trials import Trial

TINY = ["experiment=permuted_catch", "env.visits=2", "logger.tensorboard=false"]


def sweep_py(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of `python sweep.py ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
    with pytest.raises(SystemExit) as end:
        sweep_command.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["seed=0,1"], "name a command first, one of train, study, evaluate"),
        (["trian", "seed=0,1"], "there is no command 'trian'"),
        (["train", "agent.naap=true,false"], "run 1 of 2 (agent.naap=True): there is no key 'agent.naap'"),
        (["train", "seed=3..1"], "seed=3..1 has no value"),
        (["train", "schedule.start=1e-3,-1"], "run 2 of 2 (schedule.start=-1): schedule.start=-1"),
        (["train", "sweep.paralel=2"], "there is no key 'sweep.paralel': did you mean 'sweep.parallel'?"),
        (["train", "sweep.parallel=two"], "sweep.parallel=two is not a whole number"),
        (["train", "sweep.parallel=0"], "sweep.parallel=0, expected 1 or more"),
        (["train", "sweep.cpus_per_run=99999"], "sweep.cpus_per_run=99999, but this machine has"),
        (["train", "sweep.gpus_per_run=1.5"], "sweep.gpus_per_run=1.5, expected a share of one GPU"),
        (["train", "sweep.gpus_per_run=512"], "sweep.gpus_per_run=512, but this machine has"),
        (["train", "sweep.parallel=99999"], "sweep.parallel=99999 runs take"),
        (["study", "sweep.search=optuna", "nap=true,false"], "sweep.search=optuna needs scores of trainings"),
        (["train", "sweep.search=optuna", "seed=0,1"], "sweep.search=optuna has nothing to draw from"),
        (["train", "sweep.search=rand"], "sweep.search=rand, expected one of grid, random"),
        (["train", "sweep.search=random"], "sweep.search=random has nothing to draw from"),
        (["train", "sweep.stop=asha", "sweep.metric=reward"], "sweep.metric=reward is no column of metrics.csv"),
        (["train", "sweep.stop=asha", "sweep.seeds_per_process=2"], "leave out sweep.seeds_per_process=2"),
        (["train", "sweep.seeds_per_process=0"], "sweep.seeds_per_process=0, expected 1 or more"),
        (
            ["train", "optimizer=sgd", "seed=0,1", "sweep.seeds_per_process=2"],
            "cannot share a process, because the",
        ),
        (["evaluate", "episodes=1"], "sweep.py evaluate needs the folders of runs"),
        (["resume=/nowhere"], "/nowhere holds no sweep"),
    ],
)
def test_a_slip_is_one_sentence_and_nothing_is_written(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments[:2] == ["train", "sweep.search=optuna"]:
        pytest.importorskip("optuna")
    place = [] if arguments[0].startswith("resume") else [f"sweep.dir={tmp_path / 's'}"]
    small = TINY if arguments[0] == "train" else []
    assert sweep_py(monkeypatch, *arguments, *small, *place) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and said.startswith("sweep.py: ") and "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_sweep_is_refused_and_that_of_the_same_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [*TINY, f"sweep.dir={tmp_path}"]
    other = Trial((*TINY, "seed=7"), ("seed=7",), tmp_path / "seed=7")
    record.Record(tmp_path, TRAIN, [other], {"typed": {}, "needs": {}}).write(now=True)
    assert sweep_py(monkeypatch, "train", "seed=0,1", *typed) == 2
    assert f"{tmp_path} holds another sweep, of train.py with the run seed=7" in capsys.readouterr().err
    assert record.check_same(tmp_path, TRAIN, [other]) == {}


def test_a_sweep_needs_its_cores_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    asked = settings.sort(["sweep.cpus_per_run=2"]).settings
    places = resources.share_out(asked, 1, on_gpu=False)
    assert [place.threads for place in places] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("per_run", "visible"), [("0.5", ["0", "1", "0", "1"]), ("1", ["0", "1"]), ("2", ["0,1"]), ("0.25", ["0", "1"] * 4)]
)
def test_runs_share_gpus(per_run: str, visible: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 64)
    monkeypatch.setattr(resources.machine, "gpu_ids", lambda: ["0", "1"])
    asked = settings.sort([f"sweep.gpus_per_run={per_run}"]).settings
    places = resources.share_out(asked, 1, on_gpu=True)
    assert [dict(place.environment or {})["CUDA_VISIBLE_DEVICES"] for place in places] == visible


@pytest.mark.slow  # two trainings
def test_a_sweep_trains_and_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    typed = ["train", *TINY, "env.visits=1", "seed=0..1", f"sweep.dir={tmp_path}", "sweep.engine=local"]
    assert sweep_py(monkeypatch, *typed) == 0
    rows = json.loads((tmp_path / record.NAME).read_text())["runs"]
    assert [(row["folder"], row["seed"], row["status"], row["starts"]) for row in rows] == [
        ("seed=0", 0, "finished", 1),
        ("seed=1", 1, "finished", 1),
    ]
    (tmp_path / "seed=1" / "summary.json").unlink()  # as if killed just before its end
    assert sweep_py(monkeypatch, f"resume={tmp_path}") == 0
    assert "2 runs, 1 done already" in capfd.readouterr().out
    rows = json.loads((tmp_path / record.NAME).read_text())["runs"]
    assert [row["starts"] for row in rows] == [1, 2]
    assert json.loads((tmp_path / "seed=1" / "summary.json").read_text())["status"] == "finished"


def test_a_stopped_sweep_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from nap_rl.sweep import local

    def stopped(*given: Any) -> None:
        (signals,) = [each for each in given if isinstance(each, local.Signals)]
        signals.received.append(signal.SIGINT)

    monkeypatch.setattr(local, "run", stopped)
    folder = tmp_path / "a sweep"
    assert sweep_py(monkeypatch, "train", *TINY, "seed=0..1", f"sweep.dir={folder}", "sweep.engine=local") == 130
    assert capfd.readouterr().out.endswith(f"go on with: resume='{folder}'\n")


@pytest.mark.slow  # two trainings
def test_a_search_learns_from_its_runs_and_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    rate = "agent.learning_rate=tag(log,interval(1e-4,1e-2))"
    typed = ["train", *TINY, "env.visits=1", rate, "sweep.search=optuna", "sweep.engine=local", "sweep.parallel=1"]
    assert sweep_py(monkeypatch, *typed, "sweep.samples=1", f"sweep.dir={tmp_path}") == 0
    assert sweep_py(monkeypatch, f"resume={tmp_path}", "sweep.samples=2") == 0
    rows = json.loads((tmp_path / record.NAME).read_text())["runs"]
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert len({row["folder"] for row in rows}) == 2 and (tmp_path / "arms.csv").is_file()
