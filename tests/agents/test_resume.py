"""N + M steps are N, a new process' objects put together from the checkpoint, and M: equal to the last bit."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nap_rl import checkpoint, cli
from nap_rl.agents import Checkpointer, CheckpointRhythm, Trainer
from nap_rl.agents.checkpointer import restore
from nap_rl.agents.fingerprint import fingerprint
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config
from nap_rl.logging import Progress, RunLog

TINY = [
    "agent.torso=data_efficient",
    "agent.hidden=16",
    "agent.batch_size=8",
    "agent.update_every_steps=8",
    "agent.min_replay_steps=40",
    "agent.target_every_updates=7",
    "env.num_envs=2",
    "replay.capacity=120",
    "logger.every_updates=3",
    "device=cpu",
]
ATARI = [*TINY, "env=atari", "env.game=asterix", "frames=800", "env.protocol.max_episode_frames=240"]
SEQUENCE = [*TINY, "env=sequential_atari", "env.games=[pong,asterix]", "env.frames_per_game=200", "env.cycles=2"]
STICKY = "env/protocol=machado2018"


@pytest.fixture(autouse=True)
def _types(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    schema.register()
    cli.register_resolvers()
    monkeypatch.setattr(cli, "CONF", "nap_rl.conf")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def configured(*overrides: str) -> Config:
    return to_config(cli.compose("config", list(overrides)))


def assemble(config: Config, folder: Path, saved: checkpoint.Checkpoint | None = None) -> tuple[Trainer, Checkpointer]:
    """As train.py does it, without Hydra."""
    torch.manual_seed(config.seed)
    env = build.build_env(config)
    agent, projector = build.build_agent(config, env.num_actions, torch.device("cpu"))
    meta = {} if saved is None else saved.meta
    display = Progress(1, stream=io.StringIO())
    trainer = Trainer(
        env,
        agent,
        build.build_trainer_config(config),
        games=[visit.game for visit in env.visits],
        projector=projector,
        log=RunLog(folder, state=meta.get("log"), frames=meta.get("frames", 0)),
        display=display,
        evaluator=build.build_evaluator(config, env),
    )
    checkpointer = Checkpointer(
        folder, trainer, trainer.log, display, CheckpointRhythm(), {"config": schema.to_dict(config)}
    )
    if saved is not None:
        restore(trainer, saved)
    return trainer, checkpointer


def at(frames: int, trainer: Trainer) -> Callable[[], bool]:
    return lambda: trainer.frames >= frames


def run(config: Config, folder: Path, stops: list[int]) -> dict[str, str]:
    """A run that is stopped at each of `stops` (frames); what it does after the checkpoint there is lost."""
    trainer, checkpointer = assemble(config, folder)
    for frames in stops:
        trainer.run(at(frames, trainer))
        checkpointer.save()
        trainer.run(at(frames + 160, trainer))  # rows, events and slots beyond it, as a killed process leaves them
        trainer.env.close()
        found = checkpoint.load_newest(folder / "checkpoints")
        assert found is not None
        trainer, checkpointer = assemble(config, folder, found[1])
        checkpointer.resumed_from(*found)
        assert trainer.frames == frames
    trainer.run()
    checkpointer.save()
    trainer.env.close()
    return fingerprint(folder)


def assert_exact(folder: Path, overrides: list[str], stops: list[int]) -> dict[str, str]:
    config = configured(*overrides)
    whole, parts = run(config, folder / "whole", []), run(config, folder / "parts", stops)
    assert [name for name in whole if whole[name] != parts[name]] == []
    assert whole.keys() == parts.keys() and len(whole) >= 14
    return whole


CASES = {
    "atari": (ATARI, [400]),
    "atari, in the warm-up and between two updates": (ATARI, [80, 408]),
    "sticky actions and NaP": ([*ATARI, STICKY, "agent.nap=true"], [400]),
    "dqn with epsilon": ([*ATARI, "agent=dqn", "agent.epsilon.over_frames=700"], [400]),
    "sequence, across a switch, before and after": ([*SEQUENCE, STICKY, "agent.nap=true"], [192, 208, 640]),
    "sequence, on the switching step": ([*SEQUENCE, "agent.nap=true"], [200, 400]),
    "everything reset at a switch": (
        [*SEQUENCE, *(f"env.on_switch.{name}=reset" for name in ("replay", "optimizer", "target"))],
        [200, 320],
    ),
    "evaluations": ([*ATARI, "eval.every=200", "eval.episodes=2"], [400]),
}


def slow_but(*quick: str) -> Callable[[str], object]:
    return lambda name: name if name in quick else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("case", map(slow_but("sticky actions and NaP", "sequence, on the switching step"), CASES))
def test_a_resumed_run_is_the_run_that_was_never_stopped(case: str, tmp_path: Path) -> None:
    assert_exact(tmp_path, *CASES[case])


SCHEDULES = {
    "linear": ["schedule=linear"],
    "linear over its own frames": ["schedule=linear", "schedule.over_frames=600"],
    "linear, restarted at each switch": ["schedule=linear", "env.on_switch.schedule=restart"],
}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_schedule(schedule: str, tmp_path: Path) -> None:
    assert_exact(tmp_path, [*SEQUENCE, *SCHEDULES[schedule]], [320])


METHODS = {
    "redo": ["plasticity.every=4"],
    "shrink_perturb": ["plasticity.every=4"],
    "reset_head": ["plasticity.every=5"],
    "continual_backprop": ["plasticity.rate=0.02", "plasticity.maturity=2"],
    "layer_norm_l2": ["nap=norm_only"],
    **{name: [] for name in ("regenerative", "l2", "weight_decay", "noisy_updates", "leaky_relu", "crelu")},
}


@pytest.mark.parametrize("method", map(slow_but("continual_backprop"), METHODS))
def test_each_plasticity_method(method: str, tmp_path: Path) -> None:
    assert_exact(tmp_path, [*ATARI, "agent.nap=true", f"plasticity={method}", *METHODS[method]], [400])


def test_the_fingerprint_sees_what_differs(tmp_path: Path) -> None:
    one, two = (run(configured(*ATARI, f"seed={seed}"), tmp_path / str(seed), []) for seed in (0, 1))
    same = {name for name in one if one[name] == two[name]}
    assert same <= {"evaluations.csv"}  # there were none


def test_a_run_that_never_wrote_its_replay_is_not_resumed(tmp_path: Path) -> None:
    trainer, checkpointer = assemble(configured(*ATARI), tmp_path)
    checkpointer.rhythm = CheckpointRhythm(replay=False)
    trainer.run(at(400, trainer))
    path = checkpointer.save()
    trainer.env.close()
    assert path is not None
    with pytest.raises(ValueError, match="holds no replay"):
        restore(trainer, checkpoint.load(path))
