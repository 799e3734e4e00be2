"""`schedule=` to rates: by hand from files of a few rows, and one sentence for files that do not fit."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from nap_rl.conf import build, environments, learning_rates
from nap_rl.conf.learning_rates import KEPT
from nap_rl.nap import weight_groups
from tests.conf.checked import checked

# 1,000 agent steps of learning, after 100 that fill the replay; a frame is a step.
CATCH = [
    *("env=catch", "agent=dqn_small", "agent.hidden=8", "agent.net_arch=[8]", "env.num_envs=1"),
    *("agent.min_replay_steps=100", "replay.capacity=1000", "frames=1100", "agent.learning_rate=0.01"),
]
VISITS = [
    *("env=permuted_catch", *CATCH[1:4], "env.visits=3", "env.frames_per_task=500", "env.on_switch.replay=keep"),
    *("env.on_switch.schedule=restart", *CATCH[5:7], "agent.learning_rate=0.01", "env.num_envs=1"),
]
EFFECTIVE, NORM, RATE = "nap/effective_lr/", "nap/param_norm/", "train/learning_rate"
RECORDED: dict[str, list[float]] = {  # norms of 3 and 4 at the beginning, and a learning rate that is halved at the end
    "updates": [1, 100, 200],
    "frames": [500, 1_000, 1_500],
    RATE: [0.02, 0.02, 0.01],
    f"{EFFECTIVE}torso.1": [0.02, 0.01, 0.0025],
    f"{EFFECTIVE}streams.advantage.hidden": [0.02, 0.016, 0.005],
    f"{EFFECTIVE}streams.advantage.output": [0.02, 0.0001, 0.0001],
    f"{NORM}torso.1": [3.0, 6.0, 12.0],
    f"{NORM}streams.advantage.hidden": [4.0, 5.0, 8.0],
    f"{NORM}streams.advantage.output": [1.0, 9.0, 9.0],
}


def table(path: Path, columns: dict[str, list[float]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def rates(*overrides: str, at: tuple[float, ...], folder: Path | None = None) -> list[float]:
    config = checked(*overrides)
    assert config.frames is not None
    return [learning_rates.build(config, config.frames, folder).schedule(progress) for progress in at]


# Recorded


def test_one_global_rate_weighs_a_layer_by_its_squared_norm(tmp_path: Path) -> None:
    table(tmp_path / "run" / "metrics.csv", RECORDED)
    for file in (tmp_path / "run", tmp_path / "run" / "metrics.csv"):
        found = rates(*CATCH, "agent.nap=true", "schedule=recorded", f"schedule.file={file}", at=(0.0, 0.5, 0.75, 1.0))
        half, end = 0.01 * math.sqrt(25 / (9 / 0.5**2 + 16 / 0.8**2)), 0.01 * math.sqrt(25 / (9 * 8**2 + 16 * 4**2))
        assert found == pytest.approx([0.01, half, (half + end) / 2, end])


def test_the_global_rate_is_eta_times_the_norms_of_all_layers_then_and_now(tmp_path: Path) -> None:
    table(tmp_path / "metrics.csv", RECORDED)  # ||rho|| = 5; ||W||^2 = 6^2 + 5^2, and 12^2 + 8^2 at half the rate
    found = rates(*CATCH, "agent.nap=true", "schedule=recorded", f"schedule.file={tmp_path}", at=(0.5, 1.0))
    assert found == pytest.approx([0.01 * 5 / math.sqrt(61), 0.005 * 5 / math.sqrt(208)])


def test_each_layer_has_its_own_rate_and_all_else_the_learning_rates(tmp_path: Path) -> None:
    table(tmp_path / "metrics.csv", RECORDED)
    settings = [*CATCH, "agent.nap=true", "schedule=recorded", f"schedule.file={tmp_path}", "schedule.scope=layer"]
    config = checked(*settings)
    found = build.build_trainer_config(config)
    assert found.layer_factors is not None
    for progress, rate, torso, hidden in [(0.0, 1, 1, 1), (0.5, 1, 0.5, 0.8), (1.0, 0.5, 0.25, 0.5)]:
        assert found.learning_rate(progress) == pytest.approx(0.01 * rate)
        factors = found.layer_factors(progress)
        assert factors == pytest.approx({"torso.1": torso, "streams.advantage.hidden": hidden})
    observations, actions = environments.shown(config.env, 0)
    agent, projector = build.build_agent(config, actions, torch.device("cpu"), observations)
    agent.set_learning_rate(0.005, {"torso.1": 0.25, "streams.advantage.hidden": 0.5})
    by_parameter = {p: group["lr"] for group in agent.optimizer.param_groups for p in group["params"]}
    own = {name: by_parameter[weights[0]] for name, weights in weight_groups(agent.network).items()}
    assert projector is not None
    assert own == {"torso.1": 0.00125, "streams.advantage.hidden": 0.0025, "streams.advantage.output": 0.005}
    assert sum(rate != 0.005 for rate in by_parameter.values()) == 2
    assert all(a is b for a, b in zip(by_parameter, agent.network.parameters(), strict=True))


def test_layers_with_rates_of_their_own_are_no_single_function_and_it_says_why(tmp_path: Path) -> None:
    table(tmp_path / "metrics.csv", RECORDED)
    settings = [*CATCH, "agent.nap=true", "schedule=recorded", f"schedule.file={tmp_path}"]
    assert build.stack_refusal(checked(*settings)) is None
    reason = build.stack_refusal(checked(*settings, "schedule.scope=layer"))
    assert reason == "layers have learning rates of their own (schedule.scope=layer)"


def test_a_rate_that_was_0_is_0_and_leaves_the_layers_alone(tmp_path: Path) -> None:
    ended = {**RECORDED, RATE: [0.02, 0.02, 0.0]}
    ended |= {name: [*values[:2], 0.0] for name, values in RECORDED.items() if name.startswith(EFFECTIVE)}
    table(tmp_path / "metrics.csv", ended)
    settings = [*CATCH, "agent.nap=true", "schedule=recorded", f"schedule.file={tmp_path}"]
    assert rates(*settings, at=(1.0,)) == [0.0]
    found = learning_rates.build(checked(*settings, "schedule.scope=layer"), 1_100)
    assert found.layer_factors is not None and found.schedule(1.0) == 0.0
    assert found.layer_factors(1.0) == {"torso.1": 1.0, "streams.advantage.hidden": 1.0}


def test_a_warmup_takes_the_place_of_what_was_recorded(tmp_path: Path) -> None:
    table(tmp_path / "metrics.csv", RECORDED)
    warm = ["schedule.warmup_frames=500", "schedule.warmup_start=0.001"]
    settings = [*CATCH, "agent.nap=true", "schedule=recorded", f"schedule.file={tmp_path}", *warm]
    half = 0.01 * 5 / math.sqrt(61)
    end = 0.005 * 5 / math.sqrt(208)
    assert rates(*settings, at=(0.0, 0.25, 0.5, 1.0)) == pytest.approx([0.001, (0.001 + half) / 2, half, end])


@pytest.mark.parametrize(
    ("changes", "overrides", "sentence"),
    [
        ({"frames": [500, 700, 900]}, [], "records 400 frames of learning and this run has 1,000: record a longer run"),
        ({"frames": [500, 700, 700]}, [], "has a column frames that does not rise"),
        ({f"{EFFECTIVE}torso.2": [1, 1, 1], f"{NORM}torso.2": [1, 1, 1]}, [], "layer torso.2 is in the file alone"),
        ({}, ["agent.net_arch=[8,8]"], "layer torso.3 is in this run alone"),
        ({RATE: None}, [], f"has no column {RATE}, expected the metrics.csv of a run"),
        ({f"{NORM}torso.1": None}, [], f"has no column {NORM}torso.1"),
        ({f"{EFFECTIVE}torso.1": [0.0, 1, 1]}, [], f"has {EFFECTIVE}torso.1=0, expected a first value above 0"),
        ({f"{EFFECTIVE}torso.1": [1, math.nan, 1]}, [], "holds a number that is not finite"),
        ({f"{EFFECTIVE}torso.1": [1, "much", 1]}, [], "is no table of numbers: could not convert string to float"),
        ({}, ["agent.nap=false"], "rate of layers in front of a normalisation: add agent.nap=true"),
        ({}, ["nap=project_only", "nap.affine=free"], "add agent.nap=true, and not nap=project_only"),
        ({}, ["schedule.scope=all"], "schedule.scope"),
        (
            {},
            ["schedule.warmup_frames=1000"],
            "warmup_frames=1000, expected less than the schedule's own length of 1000",
        ),
    ],
)
def test_a_recording_that_does_not_fit_is_one_sentence(
    changes: dict[str, list[float] | None], overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    columns = {name: values for name, values in {**RECORDED, **changes}.items() if values is not None}
    table(tmp_path / "metrics.csv", columns)
    with pytest.raises(ValueError) as error:
        checked(*CATCH, "agent.nap=true", "schedule=recorded", f"schedule.file={tmp_path}", *overrides)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("schedule", ["recorded", "piecewise"])
def test_a_missing_file_is_one_sentence(schedule: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="schedule.file has no value"):
        checked(*CATCH, "agent.nap=true", f"schedule={schedule}")
    with pytest.raises(OSError, match="is no file, expected a CSV file or the folder of a run"):
        checked(*CATCH, "agent.nap=true", f"schedule={schedule}", f"schedule.file={tmp_path / 'none'}")


# Piecewise


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"progress": [0, 0.5, 1], "rate": [0.1, 0.3, 0.2]}, [0.1, 0.2, 0.3, 0.2]),
        ({"progress": [0, 0.5, 1], "factor": [1, 3, 2]}, [0.01, 0.02, 0.03, 0.02]),
        ({"frame": [100, 600, 1_100], "rate": [0.1, 0.3, 0.2]}, [0.1, 0.2, 0.3, 0.2]),  # learning begins at frame 100
        ({"frame": [600], "factor": [0.5]}, [0.005] * 4),
    ],
)
def test_rates_of_a_file_by_progress_or_frame(
    columns: dict[str, list[float]], expected: list[float], tmp_path: Path
) -> None:
    file = table(tmp_path / "rates.csv", columns)
    found = rates(*CATCH, "schedule=piecewise", f"schedule.file={file}", at=(0.0, 0.25, 0.5, 1.0))
    assert found == pytest.approx(expected)


def test_a_schedule_that_restarts_has_frames_of_the_visit(tmp_path: Path) -> None:
    file = table(tmp_path / "rates.csv", {"frame": [0, 250, 500], "factor": [1, 0.5, 0.1]})
    found = rates(*VISITS, "schedule=piecewise", f"schedule.file={file}", at=(0.0, 0.5, 1.0))
    assert found == pytest.approx([0.01, 0.005, 0.001])


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            {"time": [0, 1], "rate": [1, 1]},
            "has the columns time, rate, expected progress or frame, and rate or factor",
        ),
        ({"frame": [0, 1], "progress": [0, 1], "rate": [1, 1]}, "has the columns frame, progress, rate, expected"),
        ({"frame": [1, 1], "rate": [1, 1]}, "has a column frame that does not rise"),
        ({"progress": [0, 2], "rate": [1, 1]}, "has progress=2, expected numbers in [0, 1]"),
        ({"progress": [0, 1], "rate": [1, 1.5]}, "has rate=1.5, expected numbers in [0, 1]"),
        ({"progress": [0, 1], "factor": [1, -1]}, "has factor=-1, expected numbers of 0 or more"),
        ({"progress": [], "rate": []}, "has no row yet"),
    ],
)
def test_a_file_of_other_columns_or_numbers_is_one_sentence(
    columns: dict[str, list[float]], sentence: str, tmp_path: Path
) -> None:
    file = table(tmp_path / "rates.csv", columns)
    with pytest.raises(ValueError) as error:
        checked(*CATCH, "schedule=piecewise", f"schedule.file={file}")
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["recorded", "piecewise"])
def test_a_runs_folder_keeps_the_rates_to_the_last_bit(name: str, tmp_path: Path) -> None:
    columns = RECORDED if name == "recorded" else {"progress": [0.1, 1 / 3, 1], "rate": [0.1, 2 / 3, 1e-17]}
    file = table(tmp_path / "metrics.csv", columns)
    settings, at = [*CATCH, "agent.nap=true", f"schedule={name}", f"schedule.file={file}"], (0.0, 0.37, 0.99)
    config, before = checked(*settings), rates(*settings, at=at)
    learning_rates.keep(config, tmp_path / "run")
    assert (tmp_path / "run" / KEPT).is_file()
    file.write_text("gone")
    found = learning_rates.build(config, 1_100, tmp_path / "run").schedule
    assert [found(progress) for progress in at] == before


# Restarts, re-warming, presets


def test_restarts_share_the_span_and_follow_a_warmup() -> None:
    settings = [*CATCH, "schedule=restarts", "schedule.end=0", "schedule.cycles=2", "schedule.growth=3"]
    assert rates(*settings, at=(0.0, 0.125, 0.25, 0.625, 1.0)) == pytest.approx(
        [0.01, 0.005, 0.01, 0.005, 0], abs=1e-12
    )
    warm = [*settings, "schedule.warmup_frames=550", "schedule.warmup_start=0"]
    assert rates(*warm, at=(0.0, 0.25, 0.5, 0.625, 1.0)) == pytest.approx([0, 0.005, 0.01, 0.01, 0], abs=1e-12)


def test_rewarming_has_cycles_of_a_tenth_and_half_of_it_as_patience() -> None:
    found = build.build_trainer_config(checked(*CATCH, "schedule=rewarm")).rewarming
    assert found is not None
    assert (found.cycle_frames, found.patience_frames, found.tolerance) == (100, 50, 0.05)
    settings = [*CATCH, "schedule=rewarm", "schedule.cycle_frames=80", "schedule.patience_frames=7"]
    config = build.build_trainer_config(checked(*settings, "schedule.warmup_frames=20", "schedule.warmup_start=0"))
    assert config.rewarming is not None
    assert (config.rewarming.cycle_frames, config.rewarming.patience_frames) == (80, 7)
    assert [config.learning_rate(p) for p in (0.0, 0.125, 0.25)] == pytest.approx([0, 0.005, 0.01])
    with pytest.raises(ValueError, match="warmup_frames=80, expected less than the schedule's own length of 80"):
        checked(*settings, "schedule.warmup_frames=80")


def test_the_papers_curves_have_names() -> None:
    line = rates(*CATCH, "schedule=paper_single_task", at=(0.0, 0.5, 1.0))
    assert line == pytest.approx([6.25e-5, 3.175e-5, 1e-6])
    cosine = rates(
        "env=sequential_atari", "env.on_switch.schedule=restart", "replay.capacity=2000", "agent.min_replay_steps=1000",
        "schedule=paper_sequence", at=(0.0, 16_000 / 20e6, 1.0),
    )  # fmt: skip
    assert cosine == pytest.approx([1e-8, 6.25e-4, 1e-6])
