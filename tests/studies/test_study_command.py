"""study.py from the command line: one study, a sweep, a report, and messages for mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nap_rl.studies import sweep
from nap_rl.studies.config import SUMMARY, TASKS
from tests.studies.study_runs import study_py

TINY = ["data=digits", "data.images=16", "width=4", "batch_size=4", "tasks=2", "steps_per_task=2"]


def test_one_study_fills_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    arguments = ["nap=true", "method=redo", "+options.every=2", f"hydra.run.dir={folder}", *TINY]
    assert study_py(monkeypatch, *arguments) == 0
    summary = json.loads((folder / SUMMARY).read_text())
    assert summary["config"]["method"] == "redo" and summary["config"]["options"] == {"every": 2}
    assert len((folder / TASKS).read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("nap=ture", "nap=ture is not true or false"),
        ("learning_rat=1", "there is no key 'learning_rat': did you mean 'learning_rate'?"),
        ("+learning_rat=1", "there is no key 'learning_rat': did you mean 'learning_rate'?"),
        ("study=random_label", "study=random_label does not exist"),
        ("data=mnist", "data=mnist does not exist"),
        ("method=reddo", "no plasticity method 'reddo'; the nearest is 'redo'"),
        ("method=injection", "method=injection changes the streams of a value network, and no study has one"),
        ("+options.tau=1", "method=none has no option 'tau'; it has: none."),
        ("norm=none", "nap=true needs a normalisation"),
        ("optimizer=rmsprop", "optimizer=rmsprop is not one of adam, sgd, momentum"),
        ("tasks=0", "tasks must be at least 1; got 0"),
        ("seed=1.5", "seed=1.5 is not a whole number"),
        ("data.root=/nowhere", "data=digits finds no /nowhere/digits.csv.gz: pip install scikit-learn"),
    ],
)
def test_a_slip_is_one_sentence_and_exit_code_2(
    argument: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = study_py(monkeypatch, *TINY, f"hydra.run.dir={tmp_path / 'run'}", argument)
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert sentence in said
    assert said.startswith("study.py: ") and "\n" not in said


def test_the_same_command_goes_on_with_a_study_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*TINY, "save_every=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert study_py(monkeypatch, *arguments) == 0
    before = (tmp_path / "run" / TASKS).read_bytes()
    (tmp_path / "run" / SUMMARY).unlink()  # as if killed before the end
    (tmp_path / "run" / TASKS).unlink()
    assert study_py(monkeypatch, *arguments) == 0
    assert (tmp_path / "run" / TASKS).read_bytes() == before
    (tmp_path / "run" / SUMMARY).unlink()
    assert study_py(monkeypatch, *arguments, "width=5") == 2


@pytest.mark.slow  # each study is a process, which imports torch
def test_a_second_sweep_runs_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-m", "nap=true,false", "seed=0", f"hydra.sweep.dir={tmp_path}", *TINY]
    assert study_py(monkeypatch, *arguments, "jobs=2") == 0
    folders = sorted(path.parent for path in tmp_path.glob(f"*/{SUMMARY}"))
    assert len(folders) == 2
    before = (folders[1] / TASKS).read_bytes()
    kept = (folders[0] / TASKS).stat().st_mtime_ns
    (folders[1] / SUMMARY).unlink()  # as if killed before the end
    capsys.readouterr()
    assert study_py(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out.startswith("2 studies, 1 finished already\n[1/1]")
    assert (folders[1] / TASKS).read_bytes() == before
    assert (folders[0] / TASKS).stat().st_mtime_ns == kept


def test_sweep_checks_every_combination_before_it_starts_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = study_py(monkeypatch, "-m", "norm=layer,none", f"hydra.sweep.dir={tmp_path / 's'}", *TINY)
    assert code == 2 and "nap=true needs a normalisation" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    assert study_py(monkeypatch, "seed=0,1", "-m", f"hydra.sweep.dir={tmp_path / 's'}", "width") == 2
    assert "width" in capsys.readouterr().err
    assert study_py(monkeypatch, "-m", "seed=0,1", *TINY) == 2
    assert "needs hydra.sweep.dir=FOLDER" in capsys.readouterr().err


def test_sweep_refuses_a_folder_with_results_of_other_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / sweep.folder_name(["seed=0", *TINY])
    folder.mkdir()
    (folder / TASKS).write_text("task\n")
    (folder / SUMMARY).write_text(json.dumps({"config": {"study": "dead_units"}}))
    assert study_py(monkeypatch, "-m", "seed=0", *TINY, f"hydra.sweep.dir={tmp_path}") == 2
    assert "holds a study with study=dead_units, not study=random_labels" in capsys.readouterr().err


def test_one_study_refuses_a_folder_with_another_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / TASKS).write_text("task\n")
    (tmp_path / SUMMARY).write_text(json.dumps({"config": {"study": "dead_units"}}))
    assert study_py(monkeypatch, *TINY, f"hydra.run.dir={tmp_path}") == 2
    assert "holds a study with study=dead_units" in capsys.readouterr().err


def test_report_of_an_empty_folder_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study_py(monkeypatch, "report", str(tmp_path)) == 2
    assert "holds no finished study" in capsys.readouterr().err
