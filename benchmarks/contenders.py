"""What the benchmarks compare: our agents as the configuration builds them, and Stable-Baselines3's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

from nap_rl import cli
from nap_rl.agents import Trainer
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.logging import Progress, RunLog
from nap_rl.machine import pick_device
from nap_rl.replay import Replay

VARIANTS = {
    "fp32": ("precision=fp32", "compile=off", "native=off"),
    "compiled fp32": ("precision=fp32", "compile=on", "native=off"),
    "compiled fp32, native": ("precision=fp32", "compile=on", "native=on"),
    "compiled bf16": ("precision=bf16", "compile=on", "native=off"),
    "compiled bf16, native": ("precision=bf16", "compile=on", "native=on"),
}
"""How an update of ours is computed."""


def variants(compiled: bool) -> dict[str, tuple[str, ...]]:
    """The variants, those with torch.compile only where they are asked for."""
    return {name: settings for name, settings in VARIANTS.items() if compiled or "compiled" not in name}


def compose(*overrides: str) -> schema.Config:
    """The checked configuration of `python train.py ...` with these overrides."""
    schema.register()
    cli.register_resolvers()
    return to_config(cli.compose("config", list(overrides)))


def trainer(folder: Path, *overrides: str) -> Trainer:
    """A whole training run of ours, which writes its CSV files into `folder`."""
    config = compose(*overrides)
    env = build.build_env(config)
    agent, _ = build.build_agent(config, env.num_actions, pick_device(config.device.name))
    return Trainer(
        env,
        agent,
        build.build_trainer_config(config),
        log=RunLog(folder, tensorboard=False),
        display=Progress(plain_every_seconds=1e9),
    )


def fill(replay: Replay, steps: int, frames: int = 512) -> None:
    """`steps` steps of noise in every environment, in episodes of 500 steps."""
    random, num_envs = np.random.default_rng(0), len(replay.counts)
    pool = random.integers(0, 256, (frames, *replay.frames.shape[1:]), dtype=np.uint8)
    ones, first = np.ones(num_envs, dtype=np.float32), np.ones(num_envs, dtype=bool)
    for step in range(steps):
        chosen = pool[(step * num_envs + np.arange(num_envs)) % frames]
        actions, rewards = random.integers(0, 4, num_envs), random.normal(size=num_envs).astype(np.float32)
        replay.add(chosen, actions, rewards, ones, first)
        first = np.full(num_envs, step % 500 == 499)
        if first[0]:
            replay.end_episode(chosen, np.arange(num_envs))


def sb3_env(game: str, num_envs: int, subprocesses: bool = False) -> VecEnv:
    """SB3's own Atari preprocessing and frame stack."""
    gymnasium.register_envs(ale_py)
    kind: type[Any] = SubprocVecEnv if subprocesses else DummyVecEnv
    kwargs = {"start_method": "fork"} if subprocesses else {}
    env_id = "".join(word.capitalize() for word in game.split("_")) + "NoFrameskip-v4"
    return VecFrameStack(make_atari_env(env_id, num_envs, seed=0, vec_env_cls=kind, vec_env_kwargs=kwargs), 4)


def sb3(
    kind: type[DQN] | type[QRDQN],
    env: VecEnv,
    *,
    capacity: int,
    batch: int,
    learning_starts: int,
    device: str = "cpu",
) -> Any:
    """SB3's agent with its own network, at one update for 4 transitions: its `train_freq` counts vector steps."""
    n = env.num_envs
    if n > 4 and n % 4:
        raise ValueError(f"{n} environments cannot learn once every 4 transitions: use 1, 2, 4 or a multiple of 4")
    return kind(
        "CnnPolicy",
        env,
        learning_rate=6.25e-5,
        buffer_size=capacity,
        learning_starts=learning_starts,
        batch_size=batch,
        train_freq=max(4 // n, 1),
        gradient_steps=max(n // 4, 1),
        target_update_interval=10_000,
        exploration_initial_eps=0.05,  # acting goes through the network, as later in a run
        exploration_final_eps=0.05,
        seed=0,
        device=device,
    )
