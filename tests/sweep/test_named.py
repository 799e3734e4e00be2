"""Sweeps with a name: each run passes the checks, and what is typed takes the place of their settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from nap_rl import cli
from nap_rl.cli import group_options
from nap_rl.conf import schema
from nap_rl.conf.check import to_config
from nap_rl.sweep import named

NAMES = group_options(named.GROUP)


@pytest.mark.slow  # all arms of all sweeps
@pytest.mark.parametrize("name", NAMES)
def test_every_arm_can_run(name: str) -> None:
    schema.register()
    cli.register_resolvers()
    found = named.read(name)
    arms = {combination.differing[0]: combination for combination in named.combinations(found, ["seed=0"])}
    for combination in arms.values():
        to_config(cli.compose("config", combination.overrides))


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("figure6", 75),
        ("figure4", 50),
        ("schedules", 36),
        ("affine", 21),
        ("norms", 24),
        ("frequency", 15),
        ("atari57", 342),
    ],
)
def test_arms_times_grid_are_the_runs(name: str, runs: int) -> None:
    assert len(named.combinations(named.read(name), [])) == runs


def test_what_is_typed_takes_the_place_of_what_the_file_says() -> None:
    found = named.combinations(named.read("figure6"), ["arm=NaP-omit,fresh", "seed=7..8", "env.visits=2"])
    assert [each.differing for each in found] == [
        ("arm=NaP-omit", "seed=7"),
        ("arm=NaP-omit", "seed=8"),
        ("arm=fresh", "seed=7"),
        ("arm=fresh", "seed=8"),
    ]
    assert all("env.visits=2" in each.overrides for each in found)
    assert "env.on_switch.network=reset" in found[2].overrides and "nap=norm_only" not in found[0].overrides


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("command: trian", "command is trian, expected one of train"),
        ("command: train\ngrid: seed=0", "grid is seed=0, expected a list of key=value"),
        ("command: train\narms: {a: [1]}", "arm a is [1], expected a list of key=value"),
        ("command: train\naxes: []", "unexpected keyword argument 'axes'"),
        ("- 1", "cannot be read"),
    ],
)
def test_a_file_of_ones_own_is_read_or_answered_in_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("command: study\nsettings: [study=dead_units]\ngrid: [seed=0..1]\n")
    assert [each.overrides for each in named.combinations(named.read(str(path)), [])] == [
        ("study=dead_units", "seed=0"),
        ("study=dead_units", "seed=1"),
    ]
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        named.read(str(path))
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean sweep=figure6"):
        named.read("figure66")
    with pytest.raises(ValueError, match="arm=LN is none of fresh, none"):
        named.combinations(named.read("figure6"), ["arm=LN"])
