"""Every kind of environment trains, stops in the middle of episodes, and goes on to the last bit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from nap_rl import checkpoint, cli
from nap_rl.agents import Checkpointer, CheckpointRhythm, Trainer
from nap_rl.agents.checkpointer import restore
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.networks import Observations
from nap_rl.conf.schema import Config
from nap_rl.logging import Progress, RunLog

TINY = [
    "env.num_envs=2",
    "agent.net_arch=[6]",
    "agent.hidden=5",
    "agent.min_replay_steps=16",
    "agent.update_every_steps=4",
    "agent.target_every_updates=7",
    "replay.capacity=60",
    "compile=off",
    "device=cpu",
    "logger.tensorboard=false",
    "logger.every_updates=9",
]
MINATAR = ["agent=dqn_small", "agent.torso=minatar"]
SEQUENCE = ["agent=dqn_small", "agent.nap=true", "env.frames_per_task=66"]
CASES = {
    "gym": ["env=gym", "agent=dqn_small", "env.stack=2"],
    "catch": ["env=catch", "agent=dqn_small", "agent.nap=true"],
    "label_mdp": ["env=label_mdp", "agent=rainbow_small"],
    "random_mdp": ["env=random_mdp", "agent=dqn_small", "eval.every=60", "eval.episodes=2"],
    "minatar": ["env=minatar", "env.game=space_invaders", *MINATAR],
    "permuted_catch": ["env=permuted_catch", "env.visits=3", *SEQUENCE],
    "fresh network at each visit": ["env=permuted_catch", "env.visits=3", *SEQUENCE, "env.on_switch.network=reset"],
    "offset_cartpole": ["env=offset_cartpole", "env.visits=3", "env.order=drawn", *SEQUENCE],
}
FRAMES = 180
STOPS = (30, 66, 94)  # in the first visit, on a switch, in the second visit
EVERYWHERE = "permuted_catch"  # the case that the quick suite stops at all of them


def assemble(config: Config, folder: Path, saved: checkpoint.Checkpoint | None = None) -> tuple[Trainer, Checkpointer]:
    env = build.build_env(config)
    observations = Observations.of(env)
    agent, _ = build.build_agent(config, env.num_actions, torch.device("cpu"), observations)
    display = Progress(stream=io.StringIO())
    log = RunLog(folder, tensorboard=False, state=None if saved is None else saved.meta["log"])
    trainer = Trainer(
        env,
        agent,
        build.build_trainer_config(config),
        log=log,
        display=display,
        evaluator=build.build_evaluator(config, env),
        renew=build.build_renewal(config, observations),
    )
    if saved is not None:
        restore(trainer, saved)
    return trainer, Checkpointer(folder, trainer, log, display, CheckpointRhythm(), {})


@pytest.mark.parametrize(
    ("case", "stops"),
    [
        *((case, STOPS if case == EVERYWHERE else STOPS[1:2]) for case in CASES),
        *(pytest.param(case, STOPS, marks=pytest.mark.slow) for case in CASES if case != EVERYWHERE),
    ],
)
def test_a_resumed_run_is_the_run_that_was_never_stopped(case: str, stops: tuple[int, ...], tmp_path: Path) -> None:
    if case == "minatar":
        pytest.importorskip("minatar")
    schema.register()
    cli.register_resolvers()
    config = to_config(cli.compose("config", [*CASES[case], *TINY, f"frames={FRAMES}"]))
    whole, _ = assemble(config, tmp_path / "whole")
    whole.run()
    for stop in stops:
        folder = tmp_path / str(stop)
        trainer, checkpointer = assemble(config, folder)
        trainer.run(lambda stop=stop, trainer=trainer: trainer.frames >= stop)  # type: ignore[misc]
        checkpointer.save()
        trainer.run(lambda stop=stop, trainer=trainer: trainer.frames >= stop + 20)  # type: ignore[misc]
        found = checkpoint.load_newest(folder / "checkpoints")
        assert found is not None
        trainer, _ = assemble(config, folder, found[1])
        assert trainer.frames == stop
        trainer.run()
        one, other = whole.agent.network.state_dict(), trainer.agent.network.state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert [vars(record) for record in trainer.records.visits] == [vars(record) for record in whole.records.visits]
        assert np.array_equal(trainer.collector.observations, whole.collector.observations)
        assert torch.equal(trainer.agent.replay.rewards, whole.agent.replay.rewards)
    assert whole.agent.updates > 20 and sum(len(record.returns) for record in whole.records.visits) > 0
