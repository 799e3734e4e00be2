"""resume= finds the run and its settings before anything starts, or refuses in one sentence."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from nap_rl import checkpoint, cli
from nap_rl.conf import build, schema
from nap_rl.conf.check import check_space, to_config
from nap_rl.conf.intervals import parse_every
from nap_rl.conf.resume import Resume, plan
from nap_rl.conf.schema import Config

SMALL = ["replay.capacity=2000", "agent.min_replay_steps=1000", "schedule=linear", "frames=8000"]


def configured(overrides: list[str]) -> Config:
    return to_config(cli.compose("config", overrides))


@functools.cache
def stored(*overrides: str) -> dict[str, Any]:
    """The configuration as a checkpoint holds it."""
    return schema.to_dict(configured(list(overrides)))


def left_by_a_run(folder: Path, frames: int, overrides: list[str], **meta: Any) -> Path:
    """The folder of a run that got to `frames`, as far as `plan` reads it."""
    state = {
        "config": stored(*overrides),
        "overrides": overrides,
        "frames": frames,
        "has_replay": True,
        **meta,
    }
    checkpoint.save(folder / "checkpoints", f"frames-{frames:012d}", tensors={}, meta=state)
    return folder


def planned(*arguments: str) -> tuple[Resume, DictConfig]:
    return plan(cli.parse(arguments))


def resumed(*arguments: str) -> tuple[Path | None, Config]:
    """What train.py would go on with: the folder, and the checked configuration."""
    resume, node = planned(*arguments)
    config = to_config(node, begins=resume.folder is None)
    resume.check(config)
    return resume.folder, config


def test_a_run_goes_on_with_what_it_was_started_with(tmp_path: Path) -> None:
    folder = left_by_a_run(tmp_path / "it's, = odd", 4_000, [*SMALL, "seed=3", "agent=dqn"])
    found, config = resumed(f"resume={folder}")
    assert found == folder and config.seed == 3 and config.agent.name == "dqn" and config.frames == 8_000
    assert planned(f"resume={folder}")[1].hydra.run.dir == str(folder)


def test_what_is_typed_again_takes_the_place_of_what_was_typed_before(tmp_path: Path) -> None:
    folder = left_by_a_run(tmp_path, 4_000, [*SMALL, "agent=dqn"])
    _, node = planned(f"resume={folder}", "agent=rainbow", "frames=9000")
    assert (node.agent.name, node.agent.n_steps, node.frames) == ("rainbow", 3, 9_000)
    assert node.agent.min_replay_steps == 1_000  # as the run was started with
    overrides = list(node.hydra.overrides.task)
    assert [o for o in overrides if o.startswith("agent=")] == ["agent=rainbow"]
    assert [o for o in overrides if o.startswith("frames=")] == ["frames=9000"]


@pytest.mark.parametrize(
    "change", ["frames=9000", "checkpoint.every=1000", "checkpoint.keep=5", "eval.every=400", "frames=5000"]
)
def test_what_no_number_depends_on_may_change(change: str, tmp_path: Path) -> None:
    resumed(f"resume={left_by_a_run(tmp_path, 4_000, SMALL)}", change)


def test_a_run_whose_last_step_went_beyond_its_end_is_finished(tmp_path: Path) -> None:
    folder = left_by_a_run(tmp_path, 8_016, SMALL)
    resume, node = planned(f"resume={folder}")
    config = to_config(node, begins=False)
    resume.check(config)
    assert config.frames == 8_000 and resume.is_finished(config)


def test_a_sequence_may_get_more_cycles_and_not_fewer(tmp_path: Path) -> None:
    sequence = [*SMALL[:2], "env=sequential_atari", "env.frames_per_game=1000", "env.cycles=2"]
    folder = left_by_a_run(tmp_path, 20_000, sequence)
    assert resumed(f"resume={folder}", "env.cycles=3")[1].frames == 30_000
    with pytest.raises(ValueError, match="frames=10000, but the run has played 20000 already"):
        resumed(f"resume={folder}", "env.cycles=1")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["seed=1"], "seed was 0 and is 1: leave it as it was, or add resume.allow=[seed]"),
        (
            ["agent.discount=0.9", "nap.every=2"],
            "agent.discount was 0.99 and is 0.9, nap.every was 1 and is 2: leave it",
        ),
        (["schedule=constant"], "schedule.end was 1e-06 and is None"),
        (
            ["resume.allow=[agent.discont]"],
            "names 'agent.discont', which is no setting: did you mean 'agent.discount'?",
        ),
        (["frames=2000"], "frames=2000, but the run has played 4000 already"),
        (["-m"], "resume= goes with a single run, without -m"),
    ],
)
def test_what_may_not_change_is_listed(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    folder = left_by_a_run(tmp_path, 4_000, SMALL)
    with pytest.raises(ValueError) as error:
        resumed(f"resume={folder}", *arguments)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_change_that_is_named_is_allowed_by_key_or_by_section(tmp_path: Path) -> None:
    folder = left_by_a_run(tmp_path, 4_000, SMALL)
    changes = ["agent.discount=0.9", "agent.epsilon.start=0.5"]
    assert resumed(f"resume={folder}", "resume.allow=[agent]", *changes)[1].agent.discount == 0.9
    assert resumed(f"resume={folder}", "resume.allow=[agent.discount,agent.epsilon]", *changes)[1].agent.discount == 0.9
    with pytest.raises(ValueError, match="agent.epsilon.start was 0.0 and is 0.5: leave it"):
        resumed(f"resume={folder}", "resume.allow=[agent.discount]", *changes)


def test_a_run_needs_nothing_but_its_folder(tmp_path: Path) -> None:
    """Not the source of its first weights, nor a folder of presets: what was composed is stored."""
    presets = tmp_path / "presets" / "agent"
    presets.mkdir(parents=True)
    text = (Path(schema.__file__).parent / "agent" / "dqn.yaml").read_text().replace("hidden: 512", "hidden: 48")
    (presets / "mine.yaml").write_text(text)
    config = to_config(planned(*SMALL, f"--config-dir={presets.parent}", "agent=mine")[1])
    config.agent.init_from = "weights/that/are/gone"
    overrides = [*SMALL, "agent=mine", "agent.init_from=weights/that/are/gone", "experiment=renamed_since"]
    checkpoint.save(
        tmp_path / "run" / "checkpoints",
        "frames-000000004000",
        tensors={},
        meta={"config": schema.to_dict(config), "overrides": overrides, "frames": 4_000, "has_replay": True},
    )
    shutil.rmtree(presets.parent)
    _, again = resumed(f"resume={tmp_path / 'run'}", "frames=9000")
    assert again.agent.hidden == 48 and again.frames == 9_000
    assert resumed(f"resume={tmp_path / 'run'}", "schedule=constant", "resume.allow=[schedule]")[1].agent.hidden == 48


def test_what_is_typed_beside_resume_is_checked_as_ever(tmp_path: Path) -> None:
    folder = left_by_a_run(tmp_path, 4_000, SMALL)
    for argument, sentence in (
        ("frames=9e3", None),
        ("frames=soon", "frames=soon is not a whole number"),
        ("agent.discount=2", "agent.discount=2.0, expected a number in [0, 1]"),
        ("agent.discont=0.9", "there is no key 'agent.discont': did you mean 'agent.discount'?"),
        ("checkpoint.every=never", "checkpoint.every=never, expected minutes"),
        ("agent=rainbo", "agent=rainbo does not exist"),
    ):
        if sentence is None:
            assert resumed(f"resume={folder}", argument)[1].frames == 9_000
            continue
        with pytest.raises(ValueError) as error:
            resumed(f"resume={folder}", argument)
        assert sentence in str(error.value) and "\n" not in str(error.value)


def test_the_command_that_began_a_run_may_be_typed_again_with_resume(tmp_path: Path) -> None:
    begun = ["experiment=pong_cpu", "replay.capacity=20000", "frames=8000"]
    folder = left_by_a_run(tmp_path, 4_000, begun)
    assert resumed(*begun, f"resume={folder}")[1].agent.n_steps == 10
    assert resumed(f"resume={folder}")[1].agent.n_steps == 10


def test_more_threads_are_no_change_of_settings(tmp_path: Path) -> None:
    assert resumed(f"resume={left_by_a_run(tmp_path, 4_000, SMALL)}", "threads=3")[1].threads == "3"


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    plain = schema.to_dict(configured(SMALL))
    for name in ("threads", "native"):
        del plain[name]
    for name in ("width", "max_pool", "spectral_norm", "activation"):
        del plain["agent"][name]
    del plain["agent"]["epsilon"]["until_frames"]
    left_by_a_run(tmp_path, 4_000, SMALL, config=plain)
    config = resumed(f"resume={tmp_path}")[1]
    assert config.threads == "auto" and config.agent.width == 1 and config.agent.epsilon.until_frames is None


def test_iqn_of_an_earlier_version_has_its_loss_as_priority() -> None:
    plain = schema.to_dict(configured([*SMALL, "agent=iqn"]))
    del plain["agent"]["head"]["priority"]
    assert schema.to_dict(schema.from_dict(plain))["agent"]["head"]["priority"] == "loss"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("latest", "resume=latest is no folder: did you mean resume=auto"),
        ("run/checkpoints/frames-000000004000", "is one checkpoint: expected its run, resume="),
        ("nowhere", "resume=nowhere is no folder: expected the folder of a run"),
    ],
)
def test_what_is_no_run_is_answered_with_what_was_meant(
    asked: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    left_by_a_run(tmp_path / "run", 4_000, SMALL)
    with pytest.raises(ValueError, match=sentence):
        planned(f"resume={asked}")


def test_auto_says_that_it_begins_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    planned(*SMALL, "resume=auto")
    expected = "resume=auto: no unfinished run of these settings in runs/default/pong-rainbow: a new one begins\n"
    assert capsys.readouterr().out == expected


def test_folders_without_a_run_and_allow_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint: expected the folder of a run"):
        planned(f"resume={tmp_path}")
    with pytest.raises(ValueError, match=r"resume.allow needs resume="):
        planned("resume.allow=[seed]")
    left_by_a_run(tmp_path, 400, SMALL, has_replay=False)
    with pytest.raises(ValueError, match="its checkpoints hold no replay"):
        planned(f"resume={tmp_path}")


def test_the_settings_are_read_from_the_newest_checkpoint_that_is_sound(tmp_path: Path) -> None:
    left_by_a_run(tmp_path, 400, SMALL)
    left_by_a_run(tmp_path, 800, SMALL)
    (tmp_path / "checkpoints" / "frames-000000000800" / "meta.json").write_text("{}")
    assert planned(f"resume={tmp_path}")[0].meta["frames"] == 400


def test_auto_finds_the_newest_unfinished_run_of_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert planned(*SMALL, "resume=auto")[0].folder is None  # none yet: a new one begins
    runs = tmp_path / "runs" / "default" / "pong-rainbow"
    left_by_a_run(runs / "0-finished", 8_000, SMALL)
    left_by_a_run(runs / "1-other", 4_000, [*SMALL, "seed=1"])
    assert planned(*SMALL, "resume=auto")[0].folder is None
    older = left_by_a_run(runs / "0-older", 4_000, SMALL)
    newer = left_by_a_run(runs / "0-newer", 2_000, SMALL)
    for folder, hour in ((older, 1), (newer, 2)):  # a file system's clock may not tell two that are written at once
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (hour * 3_600, hour * 3_600))
    found = planned(*SMALL, "resume=auto", "checkpoint.keep=4")[0].folder
    assert found is not None and found.name == "0-newer"
    assert planned(*SMALL, "seed=1", "resume=auto")[0].folder == Path("runs/default/pong-rainbow/1-other")
    here = planned(*SMALL, "resume=auto", f"hydra.run.dir={runs / '0-older'}")[0].folder
    assert here == runs / "0-older"


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (None, (None, None)),
        ("1000000", (1_000_000, None)),
        ("20min", (None, 1_200.0)),
        ("0.5 min", (None, 30.0)),
        *((wrong, None) for wrong in ("soon", "0", "0min", "-5", "1e6", "20 minutes", "", "nan", "1.5")),
    ],
)
def test_an_interval_is_minutes_or_frames(every: str | None, expected: tuple[int | None, float | None] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"checkpoint.every=.*, expected minutes such as 20min"):
            parse_every(every)
    else:
        assert parse_every(every) == expected


def test_lines_over_the_whole_run_keep_the_span_that_it_began_with() -> None:
    longer = build.build_trainer_config(configured([*SMALL, "frames=16000"]), span_frames=8_000)
    assert (longer.frames, longer.schedule_frames, longer.importance_frames) == (16_000, 8_000, 8_000)
    own = build.build_trainer_config(configured([*SMALL, "schedule.over_frames=9000"]), span_frames=8_000)
    assert own.schedule_frames == 9_000


def test_too_little_space_is_refused_with_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(SMALL)
    check_space(config, tmp_path / "not" / "there" / "yet")
    monkeypatch.setattr("nap_rl.conf.check.free_space", lambda folder: 1_000_000)
    with pytest.raises(ValueError, match=r"take about 0\.\d+ GB and 0.00 GB are free under .*: choose another folder"):
        check_space(config, tmp_path)
    monkeypatch.setattr("nap_rl.conf.check.free_space", lambda folder: None)
    check_space(config, tmp_path)
