"""Which runs a sweep stands for, and what their folders are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig

from nap_rl import cli
from nap_rl.conf import schema
from nap_rl.conf.check import to_config
from nap_rl.sweep import grammar, trials

SMALL = ["replay.capacity=2000", "agent.min_replay_steps=1000"]


@pytest.fixture(autouse=True)
def _types() -> None:
    schema.register()
    cli.register_resolvers()


def test_expand_reads_hydras_sweep_syntax_in_order() -> None:
    found = list(grammar.expand(["method=none,redo", "seed=range(2)", "nap=true"]))
    assert [combination.overrides for combination in found] == [
        ("method=none", "seed=0", "nap=True"),
        ("method=none", "seed=1", "nap=True"),
        ("method=redo", "seed=0", "nap=True"),
        ("method=redo", "seed=1", "nap=True"),
    ]
    assert [combination.differing for combination in found][1] == ("method=none", "seed=1")


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("seed=0..3", "0 1 2 3"),
        ("seed=-1..1,7", "-1 0 1 7"),
        ("seed=range(0,6,2)", "0 2 4"),
        ("agent.nap=true,false", "True False"),
        ("schedule.start=choice(1e-3,1e-4)", "0.001 0.0001"),
        ("agent.init_from='runs/a..b/0..3'", "'runs/a..b/0..3'"),
        ("env.games=[pong,breakout]", "[pong,breakout]"),
    ],
)
def test_spans_ranges_and_choices_are_values(typed: str, values: str) -> None:
    assert [override.partition("=")[2] for override in grammar.values_of(typed).overrides] == values.split()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("seed=4..0", "seed=4..0 has no value: 4..0 ends before it begins"),
        ("seed=range(3,3)", "seed=range(3,3) has no value: a sweep over it is empty"),
        ("seed=0..10000000", "seed=0..10000000 has more than 1,000,000 values"),
        ("agent.learning_rate=interval(0,1)", "agent.learning_rate=interval(0,1) is a range of numbers"),
    ],
)
def test_a_grid_without_an_end_or_a_beginning_is_refused(typed: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        grammar.values_of(typed)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("differing", "names"),
    [
        ([("seed=0", "agent.nap=true"), ("seed=1", "agent.nap=true")], ["seed=0,nap=true", "seed=1,nap=true"]),
        ([("agent/head=quantile",), ("agent/head=expected",)], ["head=quantile", "head=expected"]),
        ([("agent.epsilon.start=1", "agent.importance_exponent.start=0")], None),
        (
            [("agent.init_from='a/b c.zip'",), ("env.games=[pong,breakout]",)],
            ["init_from=a_b_c.zip", "games=_pong_breakout_"],
        ),
        ([("name=a b",), ("name=a/b",)], ["name=a_b", "name=a_b-2"]),
        ([()], ["run"]),
    ],
)
def test_folders_are_named_by_what_differs(differing: list[tuple[str, ...]], names: list[str] | None) -> None:
    found = trials.folder_names(differing)
    assert found == (names or ["agent.epsilon.start=1,agent.importance_exponent.start=0"])


def plan(*typed: str) -> list[trials.Trial]:
    return trials.plan(cli.parse(typed), "config", to_config)


def test_every_run_is_composed_and_gets_its_folder(tmp_path: Path) -> None:
    found = plan("-m", "seed=0,1", "agent.nap=true,false", *SMALL, f"hydra.sweep.dir={tmp_path}")
    assert [trial.folder.relative_to(tmp_path).as_posix() for trial in found] == [
        "seed=0,nap=true",
        "seed=0,nap=false",
        "seed=1,nap=true",
        "seed=1,nap=false",
    ]
    assert (found[1].arm, found[1].seed) == ("agent.nap=False", 0)
    assert found[1].differing == ("seed=0", "agent.nap=False") and "replay.capacity=2000" in found[1].arguments


def test_all_runs_of_a_sweep_lie_in_one_folder_below_their_name() -> None:
    first, second = plan("-m", "seed=0,1", "name=mine", *SMALL)
    assert first.folder.parent == second.folder.parent and first.folder.parent.parent == Path("runs/mine")


@pytest.mark.parametrize("config_dir", [False, True])
@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("env.game=pong,pnog", "run 2 of 2 (env.game=pnog): unknown game 'pnog': did you mean 'pong'?"),
        ("env.game=Pong,pong", "run 1 of 2 (env.game=Pong): unknown game 'Pong': did you mean 'pong'?"),
        ("agent.naap=true,false", "run 1 of 2 (agent.naap=True): there is no key 'agent.naap': did you mean"),
        ("seed=0,-1", "run 2 of 2 (seed=-1): seed=-1, expected 0 or more"),
        ("seed=0,(1", "seed=0,(1 cannot be read as it is"),
    ],
)
def test_one_bad_run_refuses_the_sweep_in_one_sentence(
    override: str, sentence: str, config_dir: bool, tmp_path: Path
) -> None:
    flags = [f"--config-dir={tmp_path}"] if config_dir else []
    with pytest.raises(ValueError) as error:
        plan("-m", *flags, override, *SMALL)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_holds_a_run_refuses_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "seed=1").mkdir()
    (tmp_path / "seed=1" / "metrics.csv").write_text("updates\n1\n")
    with pytest.raises(ValueError, match=r"run 2 of 2 \(seed=1\): .* holds a run already"):
        plan("-m", "seed=0,1", *SMALL, f"hydra.sweep.dir={tmp_path}")


def test_a_name_for_folders_may_be_typed(tmp_path: Path) -> None:
    subdir = "hydra.sweep.subdir=run-${hydra.job.num}"
    found = plan("-m", "seed=5,6", *SMALL, f"hydra.sweep.dir={tmp_path}", subdir)
    assert [trial.folder.name for trial in found] == ["run-0", "run-1"]


def test_settings_reach_the_check_as_they_were_typed() -> None:
    seen: list[DictConfig] = []
    trials.plan(cli.parse(["-m", "frames=1e6,2e6", *SMALL]), "config", seen.append)
    assert [node.frames for node in seen] == [1_000_000, 2_000_000]
