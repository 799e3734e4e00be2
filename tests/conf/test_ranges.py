"""Every number of the configuration has a range, and a number outside of it is one sentence that names its key."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf import OmegaConf, open_dict, read_write

from nap_rl import cli
from nap_rl.conf import check, evaluation, schema
from nap_rl.conf.agent_schema import HEADS
from nap_rl.conf.check import to_config
from nap_rl.conf.env_schema import ENVS
from nap_rl.conf.ranges import RANGES, Range, numbers, range_of
from nap_rl.conf.schema import Config
from nap_rl.studies import job
from tests.conf.checked import SMALL

CONF = Path(check.__file__).parent
# Groups whose options have numbers of their own, each with what it needs.
CHOICES = [
    ["agent=rainbow"],
    *(["agent=dqn", f"agent/head={head}"] for head in ("expected", "categorical", "quantile", "implicit_quantile")),
    ["env.frames_per_game=20000", "env=sequential_atari"],
    ["schedule=linear"],
    ["schedule=cosine"],
    ["schedule=restarts"],
    ["schedule=rewarm"],
    *(
        ["agent.nap=true", f"env={'sequential_atari' if path.stem == 'fire' else 'atari'}", f"plasticity={path.stem}"]
        for path in sorted((CONF / "plasticity").glob("*.yaml"))
    ),
]
OTHERS = ("agent.head.", "env.", "schedule.", "plasticity.")  # have choices of their own
WHOLE = [10**40]
REAL = [-1e300, math.nan]


def composed(*overrides: str) -> Config:
    return to_config(cli.compose("config", [*SMALL, *overrides]))


def numeric_keys(kind: type[Any], path: str = "") -> set[str]:
    """Keys of a type whose value is a whole number or a number, also an optional one."""
    found = set()
    for field in fields(kind):
        hint = get_type_hints(kind)[field.name]
        if is_dataclass(hint):
            found |= numeric_keys(hint, f"{path}{field.name}.")  # type: ignore[arg-type]
        elif {int, float} & {hint, *get_args(hint)}:
            found.add(f"{path}{field.name}")
    return found


def test_the_table_has_every_number_of_the_types_and_no_other() -> None:
    kinds = {
        "": Config,
        "env.": ENVS,
        "agent.head.": HEADS,
        "schedule.": tuple(schema.SCHEDULES.values()),
        "optimizer.": tuple(schema.OPTIMIZERS.values()),
    }
    keys = set()
    for path, kind in kinds.items():
        for each in kind if isinstance(kind, tuple) else (kind,):
            keys |= numeric_keys(each, path)
    assert keys == set(RANGES)


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_any_number_is_a_configuration_or_one_sentence_that_names_its_key(choice: list[str]) -> None:
    node = cli.compose("config", [*SMALL, *choice])
    group = choice[-1].split("=")[0].replace("/", ".") + "."
    for key, before in list(numbers(to_config(node))):
        if not (not key.startswith(OTHERS) if choice == CHOICES[0] else key.startswith(group)):
            continue
        for value in WHOLE if isinstance(before, int) else REAL:
            changed = node.copy()
            with read_write(changed), open_dict(changed):
                OmegaConf.update(changed, key, value)
            try:
                config = to_config(changed)
            except (ValueError, OSError) as error:
                assert key in str(error) and "\n" not in str(error), (key, value, str(error))
            else:
                assert dict(numbers(config))[key] == value and (math.isfinite(value) or key.endswith(".clip"))


@pytest.mark.parametrize("key", sorted(RANGES))
@pytest.mark.parametrize("value", [math.nan, math.inf, 10**40, -(10**40)])
def test_no_range_takes_a_number_that_is_none_or_too_large(key: str, value: float) -> None:
    if (key, value) == ("agent.munchausen.clip", -(10**40)):
        return  # no clipping
    assert RANGES[key].refusal(value) is not None


@pytest.mark.parametrize(
    ("bounds", "value", "expected"),
    [
        (Range(1, 10), 0, "expected 1 or more"),
        (Range(1, 10), 11, "expected 10 or less"),
        (Range(0.0, 5.0, open=True), 0.0, "expected a number above 0"),
        (Range(0.0, 1.0), 1.5, "expected a number in [0, 1]"),
        (Range(0.0, 1.0), math.nan, "expected a number in [0, 1]"),
        (Range(0.0, 5.0), -1.0, "expected a number of 0 or more"),
        (Range(1, 10), 10, None),
    ],
)
def test_a_refusal_says_what_is_expected(bounds: Range, value: float, expected: str | None) -> None:
    assert bounds.refusal(value) == expected


def test_a_number_that_the_table_leaves_out_has_the_bounds_of_its_type() -> None:
    assert range_of("plasticity.every", 3).high == 2**63 - 1
    assert range_of("plasticity.tau", 0.5).high == 3.4e38


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("episodes=1e30", "expected 1000000000 or less"),
        ("num_envs=5000", "num_envs=5000, expected 4096 or less"),
        ("seed=-1", "seed=-1, expected 0 or more"),
        ("epsilon=nan", "epsilon=nan, expected a number in [0, 1]"),
        ("env.protocol.noop_max=3000000000", "env.protocol.noop_max=3000000000, expected 2147483647 or less"),
    ],
)
def test_numbers_of_an_evaluation_have_the_same_ranges(typed: str, sentence: str) -> None:
    evaluation.register()
    with pytest.raises(ValueError) as error:
        evaluation.read_settings([typed])
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["agent.net_arch=[64,2000000]"], "agent.net_arch=2000000, expected 1048576 or less"),
        (["agent.net_arch=[0]"], "agent.net_arch=0, expected 1 or more"),
        ([f"agent.net_arch={[8] * 65}"], "agent.net_arch has 65 layers, expected 64 or fewer"),
        (["env.protocol.noop_max=200000"], "noop_max=200000, expected 108000 or less: env.protocol.max_episode_frames"),
        (
            ["env=sequential_atari", "env.cycles=1000000", "env.frames_per_game=1000000000000"],
            "frames=10000000000000000000, expected 1000000000000000 or less",
        ),
    ],
)
def test_numbers_that_together_are_too_large_are_said(typed: list[str], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        composed(*typed)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "typed",
    [
        *("learning_rate=inf", "learning_rate=nan", "tasks=1e30", "seed=-1e30", "width=2000000", "depth=1001"),
        *("jobs=5000", "batch_size=2000000", "project_every=1e16", "steps_per_task=1e16", "save_every=1e16"),
        *("measure_every=1e16", "regularize_coefficient=1e16", "affine_rate=1e16"),
    ],
)
def test_numbers_of_a_study_are_bounded(typed: str) -> None:
    job.register_schema()
    with pytest.raises(ValueError, match=f"{typed.split('=')[0]} must be a number of at most"):
        job.typed(job.compose([typed]))


@pytest.mark.parametrize(
    ("typed", "frames"), [("1e6", 1_000_000), ("2.5e3", 2_500), ("1000000.0", 1_000_000), ("64", 64)]
)
def test_a_whole_number_may_be_written_as_a_power_of_ten(typed: str, frames: int) -> None:
    assert composed(f"frames={typed}").frames == frames


@pytest.mark.parametrize("typed", ["1e-3", "2.5", "1e400", "1.23456789e3"])
def test_what_is_no_whole_number_is_said(typed: str) -> None:
    with pytest.raises(ValueError, match="frames=.* is not a whole number"):
        composed(f"frames={typed}")
