"""train.py's answers to mistakes on the command line; a refused command leaves no files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from nap_rl import cli, train
from nap_rl.conf import schema
from nap_rl.conf.check import to_config

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["replay.capacity=2000", "agent.min_replay_steps=1000"]


@pytest.fixture(autouse=True)
def _types() -> Iterator[None]:
    schema.register()
    yield


def typed_arguments(monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 0) -> tuple[int, list[DictConfig]]:
    """(exit code, configs that the job was started with) of `train.py ARGUMENTS` with a job that ends with `code`."""
    started: list[DictConfig] = []

    def job(config: DictConfig, folder: Path) -> int:
        started.append(config)
        return code

    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.run(job, "config", check=to_config)
    assert isinstance(end.value.code, int)
    return end.value.code, started


@pytest.mark.parametrize("code", [0, 3, cli.INTERRUPTED])
def test_the_exit_code_is_the_jobs(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, started = typed_arguments(monkeypatch, *SMALL, f"hydra.run.dir={tmp_path / 'run'}", "seed=7", code=code)
    assert ended == code and len(started) == 1 and started[0].seed == 7
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()


@pytest.mark.parametrize(
    "argument", ["seed=3.5", "agent.nap=ture", "+agent.nop=true", "env.game=pogn", "frames=-1", "seed=[", "agent=x"]
)
def test_bad_input_starts_and_writes_nothing_and_says_one_line(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, started = typed_arguments(monkeypatch, *SMALL, f"hydra.run.dir={tmp_path / 'run'}", argument)
    captured = capsys.readouterr()
    assert ended == cli.USAGE_ERROR == 2 and started == []
    assert captured.out == "" and captured.err.startswith("train.py: ") and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["file/run", "file"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_starts(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    ended, started = typed_arguments(monkeypatch, *SMALL, f"hydra.run.dir={tmp_path / below}")
    assert ended == 2 and started == []
    assert "cannot write the run's folder" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir(mode=0o500)
    ended, started = typed_arguments(monkeypatch, *SMALL, f"hydra.run.dir={tmp_path / 'mine' / 'run'}")
    assert ended == 2 and started == []
    assert "Permission denied" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_already_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("updates\n1\n")
    ended, started = typed_arguments(monkeypatch, *SMALL, f"hydra.run.dir={tmp_path}")
    assert ended == 2 and started == []
    assert "holds a run already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_two_runs_that_start_in_one_second_get_folders_of_their_own() -> None:
    cli.register_resolvers()
    folders = {cli.compose("config", SMALL).hydra.run.dir for _ in range(4)}
    assert len(folders) == 4
    assert all("/pong-rainbow/0-" in folder for folder in folders)
    assert "/pong-rainbow-nap/" in cli.compose("config", [*SMALL, "agent.nap=true"]).hydra.run.dir


def train_py(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", f"hydra.run.dir={folder}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_the_real_command_ends_with_2_and_leaves_nothing(tmp_path: Path) -> None:
    done = train_py(tmp_path / "run", "env=sequential_atari", "agent.nap=ture")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "train.py: agent.nap=ture is not true or false\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("left", "code"),
    [
        (["metrics.csv", "checkpoints/.tmp.host.1.ab.cd.frames-0/meta.json"], 0),  # killed before the first checkpoint
        (["metrics.csv", "checkpoints/frames-000000000000/meta.json"], 2),
    ],
)
def test_a_folder_in_which_nothing_was_played_yet_is_taken_again(
    left: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    ended, started = typed_arguments(monkeypatch, *SMALL, f"hydra.run.dir={tmp_path}")
    assert ended == code and len(started) == (code == 0)


def test_a_run_brings_no_compiler_and_no_plots_along() -> None:
    unwanted = ("torch._dynamo", "sympy", "matplotlib", "stable_baselines3")
    code = f"import sys, nap_rl.training; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_in_plain_words(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.command([option]) == 0
    out = capsys.readouterr().out
    for command in ("train.py", "evaluate.py", "report.py", "study.py", "bootstrap.py"):
        assert command in out
    for words in ("resume=auto", "128 + signal", "metrics.csv", "hydra.run.dir", "agent.learning_rate", "rainbow"):
        assert words in out
    assert "schema" not in out


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--seed=3", "there is no option --seed: settings are written without dashes, as seed=3"),
        ("--multi", "there is no option --multi: did you mean --multirun?"),
        ("--config-dir", "--config-dir needs a folder"),
        ("--config-dir=/nowhere", "--config-dir=/nowhere is no folder"),
    ],
)
def test_an_option_that_does_not_exist_is_one_sentence(
    typed: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, started = typed_arguments(monkeypatch, typed)
    err = capsys.readouterr().err
    assert ended == 2 and started == [] and sentence in err and err.count("\n") == 1


def test_a_folder_of_further_presets_is_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
    arguments = [f"--config-dir={tmp_path}", "experiment=mine", f"hydra.run.dir={tmp_path / 'run'}"]
    ended, started = typed_arguments(monkeypatch, *SMALL, *arguments)
    assert ended == 0 and started[0].seed == 77


def test_without_tensorboard_one_sentence_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nap_rl.conf.check.find_spec", lambda name: None)
    ended, started = typed_arguments(monkeypatch, *SMALL, f"hydra.run.dir={tmp_path / 'run'}")
    assert ended == 2 and started == [] and not (tmp_path / "run").exists()
    assert "tensorboard is not installed: add logger.tensorboard=false" in capsys.readouterr().err
    run = f"hydra.run.dir={tmp_path / 'run'}"
    assert typed_arguments(monkeypatch, *SMALL, run, "logger.tensorboard=false")[0] == 0


def test_hydra_answers_what_starts_no_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ended, started = typed_arguments(monkeypatch, "--cfg", "job", "seed=7")
    assert ended == 0 and started == [] and "seed: 7" in capsys.readouterr().out
    ended, started = typed_arguments(monkeypatch, "--cfg", "job", "seeed=7")
    assert ended == 2 and "did you mean 'seed'?" in capsys.readouterr().err
