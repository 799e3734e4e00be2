"""`train.py seeds=[...]`: several runs in one process, each with all that a run alone has."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_rl import checkpoint, cli
from nap_rl.agents import ValueAgent
from nap_rl.agents.divergence import Update
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config

Command = Callable[..., tuple[int, str, str]]
Settings = tuple[str, ...]
COMPARED = ("train/loss", "train/grad_norm", "train/learning_rate", "rollout/ep_rew_mean", "nap/norm_drift")


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def rows(folder: Path) -> list[list[float]]:
    with (folder / "metrics.csv").open() as file:
        return [[float(row[name] or "nan") for name in COMPARED] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, train_here: Command, tiny_catch: Settings) -> Path:
    folder = tmp_path_factory.mktemp("together")
    code, out, err = train_here(*tiny_catch, "seeds=[3,5]", f"hydra.run.dir={folder}")
    assert code == 0, err
    assert "seed 3: finished" in out and "seed 5: finished" in out
    return folder


@pytest.mark.parametrize("seed", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_each_run_is_the_run_alone(
    together: Path, tmp_path: Path, train_here: Command, tiny_catch: Settings, seed: int
) -> None:
    code, _, err = train_here(*tiny_catch, f"seed={seed}", f"hydra.run.dir={tmp_path}")
    assert code == 0, err
    one, alone = together / f"seed_{seed}", tmp_path
    assert (one / "episodes.csv").read_text() == (alone / "episodes.csv").read_text()
    assert rows(one) == pytest.approx([pytest.approx(row, abs=1e-4, nan_ok=True) for row in rows(alone)])
    equal = ("status", "updates", "agent_steps", "frames", "visits", "seed", "nap")
    found, expected = summary(one), summary(alone)
    found["nap"].pop("max_relative_norm_drift"), expected["nap"].pop("max_relative_norm_drift")
    assert {key: found[key] for key in equal} == {key: expected[key] for key in equal}
    metas = [checkpoint.latest_meta(folder / "checkpoints") for folder in (one, alone)]
    assert metas[0] is not None and metas[1] is not None and metas[0]["config"] == metas[1]["config"]


def test_runs_go_on_together_and_alone(
    together: Path, tmp_path: Path, train_here: Command, tiny_catch: Settings
) -> None:
    folder = f"hydra.run.dir={tmp_path}"
    assert train_here(*tiny_catch, "seeds=[3,5]", "frames=160", folder)[0] == 0
    assert train_here(f"resume={tmp_path / 'seed_5'}", "frames=200")[0] == 0
    assert summary(tmp_path / "seed_5")["frames"] == 200
    code, _, err = train_here(*tiny_catch, "seeds=[3,5]", "frames=320", "resume=auto", folder)
    assert code == 0, err
    for seed in (3, 5):
        episodes = (tmp_path / f"seed_{seed}" / "episodes.csv").read_text()
        assert episodes == (together / f"seed_{seed}" / "episodes.csv").read_text()
    code, out, _ = train_here(*tiny_catch, "seeds=[3,5]", "resume=auto", folder)
    assert code == 0 and "is finished" in out


def test_runs_that_died_before_their_summary_write_it_when_gone_on_with(
    together: Path, tmp_path: Path, train_here: Command, tiny_catch: Settings
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(together, folder)
    for left in ([3, 5], [5]):
        for seed in left:
            (folder / f"seed_{seed}" / "summary.json").unlink()
        code, _, err = train_here(*tiny_catch, "seeds=[3,5]", "resume=auto", f"hydra.run.dir={folder}")
        assert code == 0, err
        found, before = ([summary(place / f"seed_{seed}") for seed in (3, 5)] for place in (folder, together))
        for name in ("status", "frames", "weights_sha256"):
            assert [each[name] for each in found] == [each[name] for each in before]


def test_a_run_that_diverges_leaves_the_others_to_their_ends(
    tmp_path: Path, train_here: Command, tiny_catch: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_agent, finish, doomed = build.build_agent, ValueAgent.finish, list[ValueAgent]()

    def build_and_note(config: Config, *rest: Any, **more: Any) -> Any:
        agent, projector = build_agent(config, *rest, **more)
        doomed.extend([agent] if config.seed == 1 else [])
        return agent, projector

    def finish_or_diverge(agent: ValueAgent, update: Update) -> Update:
        if agent in doomed and agent.updates == 20:
            update = update._replace(loss=torch.tensor(float("nan")))
        return finish(agent, update)

    monkeypatch.setattr(build, "build_agent", build_and_note)
    monkeypatch.setattr(ValueAgent, "finish", finish_or_diverge)
    code, out, _ = train_here(*tiny_catch, "seeds=[0,1,2]", f"hydra.run.dir={tmp_path}")
    assert code == 3 and "seed 1: diverged (the loss is nan at update 21," in out
    found = [summary(tmp_path / f"seed_{seed}") for seed in range(3)]
    assert [each["status"] for each in found] == ["finished", "diverged", "finished"]
    assert [each["updates"] for each in found] == [60, 21, 60]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("experiment=permuted_catch",), None),
        (("experiment=permuted_catch", "plasticity=regenerative"), None),
        (("experiment=permuted_catch", "plasticity=injection"), None),
        (("experiment=permuted_catch", "optimizer=sgd"), "the step of SGD runs eagerly"),
        (("experiment=permuted_catch", "agent.net_arch=[1000,1000]"), "weights, more than 500,000"),
        (("agent=rainbow",), "weights, more than 500,000"),
    ],
)
def test_the_settings_say_whether_seeds_can_share_a_process(settings: Settings, reason: str | None) -> None:
    schema.register()
    cli.register_resolvers()
    found = build.stack_refusal(to_config(cli.compose("config", ["logger.tensorboard=false", "device=cpu", *settings])))
    assert found is None if reason is None else reason in str(found)


def test_what_cannot_be_stacked_says_so_and_runs_one_after_another(
    tmp_path: Path, train_here: Command, tiny_catch: Settings
) -> None:
    folder = f"hydra.run.dir={tmp_path}"
    code, out, err = train_here(*tiny_catch, "seeds=[0,1]", "env.visits=1", "optimizer=sgd", folder)
    assert code == 0, err
    assert "one after another: the step of SGD" in out
    assert [summary(tmp_path / f"seed_{seed}")["status"] for seed in (0, 1)] == ["finished"] * 2


def test_seeds_that_make_no_sense_are_refused(
    together: Path, tmp_path: Path, train_here: Command, tiny_catch: Settings
) -> None:
    for seeds in ("[1]", "[1,1]", "[-1,2]"):
        code, _, err = train_here(*tiny_catch, f"seeds={seeds}", f"hydra.run.dir={tmp_path}")
        assert code == 2 and "expected two different numbers of 0 or more" in err
    code, _, err = train_here(*tiny_catch, "seeds=[3,5]", f"hydra.run.dir={together}")
    assert code == 2 and "holds a run already" in err
    code, _, err = train_here(*tiny_catch, "seeds=[3,5]", "resume=auto")
    assert code == 2 and "needs hydra.run.dir" in err
