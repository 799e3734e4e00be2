"""resume= finds the run and its settings before anything starts, or refuses in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nap_rl import checkpoint, cli
from nap_rl.conf import build, schema
from nap_rl.conf.check import check_space, to_config
from nap_rl.conf.resume import plan
from nap_rl.conf.schema import Config

SMALL = ["replay.capacity=2000", "agent.min_replay_steps=1000", "schedule=linear", "frames=8000"]


def configured(overrides: list[str]) -> Config:
    return to_config(cli.compose("config", overrides))


def left_by_a_run(folder: Path, frames: int, overrides: list[str], **meta: Any) -> Path:
    """The folder of a run that got to `frames`, as far as `plan` reads it."""
    state = {
        "config": schema.to_dict(configured(overrides)),
        "overrides": overrides,
        "frames": frames,
        "has_replay": True,
        **meta,
    }
    checkpoint.save(folder / "checkpoints", f"frames-{frames:012d}", tensors={}, meta=state)
    return folder


def resumed(*arguments: str) -> tuple[Path | None, Config]:
    """What train.py would go on with: the folder, and the checked configuration."""
    overrides, resume = plan(list(arguments))
    config = configured(overrides)
    resume.check(config)
    return resume.folder, config


def test_a_run_goes_on_with_what_it_was_started_with(tmp_path: Path) -> None:
    folder = left_by_a_run(tmp_path / "it's, = odd", 4_000, [*SMALL, "seed=3", "agent=dqn"])
    found, config = resumed(f"resume={folder}")
    assert found == folder and config.seed == 3 and config.agent.name == "dqn" and config.frames == 8_000
    overrides, _ = plan([f"resume={folder}"])
    assert cli.compose("config", overrides).hydra.run.dir == str(folder)


def test_what_is_typed_again_takes_the_place_of_what_was_typed_before(tmp_path: Path) -> None:
    folder = left_by_a_run(tmp_path, 4_000, [*SMALL, "agent=dqn"])
    overrides, _ = plan([f"resume={folder}", "agent=rainbow", "frames=9000"])
    assert [o for o in overrides if o.startswith("agent=")] == ["agent=rainbow"]
    assert [o for o in overrides if o.startswith("frames=")] == ["frames=9000"]


@pytest.mark.parametrize(
    "change", ["frames=9000", "checkpoint.every=1000", "checkpoint.keep=5", "eval.every=400", "frames=5000"]
)
def test_what_no_number_depends_on_may_change(change: str, tmp_path: Path) -> None:
    resumed(f"resume={left_by_a_run(tmp_path, 4_000, SMALL)}", change)


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


def test_folders_without_a_run_and_allow_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no checkpoint: expected the folder of a run"):
        plan([f"resume={tmp_path}"])
    with pytest.raises(ValueError, match=r"resume.allow needs resume="):
        plan(["resume.allow=[seed]"])
    left_by_a_run(tmp_path, 400, SMALL, has_replay=False)
    with pytest.raises(ValueError, match="its checkpoints hold no replay"):
        plan([f"resume={tmp_path}"])


def test_the_settings_are_read_from_the_newest_checkpoint_that_is_sound(tmp_path: Path) -> None:
    left_by_a_run(tmp_path, 400, SMALL)
    left_by_a_run(tmp_path, 800, SMALL)
    (tmp_path / "checkpoints" / "frames-000000000800" / "meta.json").write_text("{}")
    assert plan([f"resume={tmp_path}"])[1].meta["frames"] == 400


def test_auto_finds_the_newest_unfinished_run_of_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan([*SMALL, "resume=auto"])[1].folder is None  # none yet: a new one begins
    runs = tmp_path / "runs" / "default" / "pong-rainbow"
    left_by_a_run(runs / "0-finished", 8_000, SMALL)
    left_by_a_run(runs / "1-other", 4_000, [*SMALL, "seed=1"])
    assert plan([*SMALL, "resume=auto"])[1].folder is None
    left_by_a_run(runs / "0-older", 4_000, SMALL)
    left_by_a_run(runs / "0-newer", 2_000, SMALL)
    found = plan([*SMALL, "resume=auto", "checkpoint.keep=4"])[1].folder
    assert found is not None and found.name == "0-newer"
    assert plan([*SMALL, "seed=1", "resume=auto"])[1].folder == Path("runs/default/pong-rainbow/1-other")
    here = plan([*SMALL, "resume=auto", f"hydra.run.dir={runs / '0-older'}"])[1].folder
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
            build.parse_every(every)
    else:
        assert build.parse_every(every) == expected


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
