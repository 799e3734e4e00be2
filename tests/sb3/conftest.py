"""Zips that Stable-Baselines3 itself wrote, after short trainings on real Pong, and 1,000 real observations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from omegaconf import DictConfig
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from nap_rl import checkpoint, cli
from nap_rl.agents import ValueAgent
from nap_rl.checkpoint import nested
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.nap import Projector
from nap_rl.replay import Transitions

gymnasium.register_envs(ale_py)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks: on a busy machine, threads that wait for each other take many times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_pong(num_envs: int = 1) -> VecEnv:
    """Pong as SB3's users have it: Monitor, AtariWrapper, DummyVecEnv, VecFrameStack."""
    return VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=num_envs, seed=0), 4)


@pytest.fixture(scope="session")
def pong() -> Callable[..., VecEnv]:
    return make_pong


@pytest.fixture(scope="session")
def observations() -> npt.NDArray[np.uint8]:
    """[1000, 84, 84, 4] uint8 of random play, channels last, as a VecFrameStack gives them."""
    env, rng = make_pong(4), np.random.default_rng(0)
    seen = [env.reset()]
    while len(seen) < 250:
        seen.append(env.step(rng.integers(0, 6, 4))[0])
    env.close()
    frames: npt.NDArray[np.uint8] = np.concatenate(seen)
    assert frames.shape == (1000, 84, 84, 4)
    return frames


def train(algorithm: type[DQN] | type[QRDQN], folder: Path, **settings: Any) -> Path:
    env = make_pong()
    model = algorithm(
        "CnnPolicy",
        env,
        buffer_size=300,
        learning_starts=40,
        learning_rate=1e-3,
        target_update_interval=60,
        seed=1,
        device="cpu",
        **settings,
    )
    model.learn(130)  # the target is not the online network, and Adam has moments
    path = folder / f"{algorithm.__name__}.zip"
    model.save(path)
    env.close()
    return path


@pytest.fixture(scope="session")
def dqn_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(DQN, tmp_path_factory.mktemp("dqn"))


@pytest.fixture(scope="session")
def qr_dqn_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(QRDQN, tmp_path_factory.mktemp("qr_dqn"), policy_kwargs={"n_quantiles": 50})


@pytest.fixture(params=["dqn", "qr_dqn"])
def sb3_zip(request: pytest.FixtureRequest) -> tuple[Any, Path]:
    """(the algorithm's class, its zip)."""
    algorithm = {"dqn": DQN, "qr_dqn": QRDQN}[request.param]
    return algorithm, request.getfixturevalue(f"{request.param}_zip")


SMALL = ["replay.capacity=1000", "agent.min_replay_steps=100", "compile=off", "device=cpu"]


def write_checkpoint(folder: Path, *overrides: str) -> tuple[ValueAgent, Projector | None]:
    """An agent after three updates, and a checkpoint of it as train.py writes them."""
    schema.register()
    cli.register_resolvers()
    node: DictConfig = cli.compose("config", [*SMALL, *overrides])
    config = to_config(node)
    agent, projector = build.build_agent(config, 6, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        stacks = torch.randint(0, 256, (2, 8, 4, 84, 84), dtype=torch.uint8, generator=generator)
        none = torch.zeros(8, dtype=torch.int64)
        batch = Transitions(stacks[0], none, torch.ones(8), torch.ones(8), stacks[1], torch.ones(8), none, none)
        loss = agent.losses(batch, agent.draw(8))[0].mean()
        agent.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        agent.optimizer.step()
        agent.updates += 1
    state = agent.state_dict()
    tensors, _ = nested.flatten({name: state[name] for name in ("network", "target", "optimizer")})
    checkpoint.save(
        folder / "checkpoints",
        "frames-000000000400",
        tensors=tensors,
        meta={"config": schema.to_dict(config), "num_actions": 6, "agent_steps": 100, "updates": agent.updates},
    )
    return agent, projector


@pytest.fixture(scope="session")
def checkpoint_of() -> Callable[..., tuple[ValueAgent, Projector | None]]:
    return write_checkpoint
