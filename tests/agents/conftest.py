"""An agent small enough for a test: frames of a few pixels, a torso that flattens the newest one. And tiny runs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nap_rl import checkpoint, cli
from nap_rl.agents import Checkpointer, CheckpointRhythm, Trainer, ValueAgent
from nap_rl.agents.checkpointer import restore
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config
from nap_rl.logging import Progress, RunLog
from nap_rl.nap import Projector, normalize
from nap_rl.nn import Categorical, DataEfficientTorso, ExpectedValue, Head, QNetwork, QuantileEmbedding, Streams
from nap_rl.plasticity import make_method, method_named
from nap_rl.replay import Replay


class NewestFrame(nn.Module):
    """[B, C, *frame] -> [B, pixels] of the newest frame: the state of a Markov chain."""

    def forward(self, stacks: Tensor) -> Tensor:
        return stacks[:, -1].flatten(1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors of a few numbers: on a busy machine, threads that wait for each other take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _torch_adam(network: QNetwork) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=1e-4, eps=1.5e-4, fused=True)


@pytest.fixture
def rainbow() -> Callable[..., ValueAgent]:
    """A small noisy, dueling, categorical network with NaP over real convolutions, and a replay of noise pictures."""

    def make(
        optimize: Callable[[QNetwork], torch.optim.Optimizer] = _torch_adam, hidden: int = 32, **settings: Any
    ) -> ValueAgent:
        torch.manual_seed(0)
        head, torso = Categorical(), DataEfficientTorso()
        network = QNetwork(torso, Streams(torso.features, 4, head.outputs, hidden, True, 0.1), head)
        normalize(network, torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8))
        with torch.no_grad():  # one action is clearly the best: of two that are nearly equal, rounding would choose
            bias = network.streams.advantage.output.bias_mu
            assert isinstance(bias, Tensor)
            bias[: head.outputs] += torch.linspace(0, 2, head.outputs)
        replay, rng = Replay(200, 2), np.random.default_rng(0)
        for k in range(90):
            frames = rng.integers(0, 256, (2, 84, 84)).astype(np.uint8)
            replay.add(frames, rng.integers(0, 4, 2), rng.normal(size=2), np.ones(2), np.full(2, k % 30 == 0))
        optimizer = optimize(network)
        projector = Projector(network, optimizer)
        return ValueAgent(network, optimizer, replay, projector=projector, batch_size=8, **settings)

    return make


@pytest.fixture(scope="session")
def make_agent() -> Callable[..., ValueAgent]:
    def make(
        *,
        head: Head | None = None,
        pixels: int = 2,
        actions: int = 2,
        num_envs: int = 1,
        capacity: int = 1_000,
        n_steps: int = 1,
        discount: float = 0.9,
        sigma0: float | None = None,
        dueling: bool = True,
        hidden: int = 8,
        learning_rate: float = 1e-2,
        exponent: float = 0.5,
        nap: bool = False,
        method: str = "none",
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> ValueAgent:
        head = ExpectedValue() if head is None else head
        torch.manual_seed(0)
        streams = Streams(pixels, actions, head.outputs, hidden, dueling, sigma0)
        embedding = None if head.tau_counts is None else QuantileEmbedding(pixels, 16, head.tau_counts["policy"])
        plain = QNetwork(NewestFrame(), streams, head, embedding)
        example = torch.randint(256, (5, 4, pixels), dtype=torch.uint8)
        network: nn.Module = method_named(method).prepare(plain, example)
        if nap:
            network = normalize(network, example)
        assert isinstance(network, QNetwork)
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        replay = Replay(
            capacity,
            num_envs,
            frame_shape=(pixels,),
            n_steps=n_steps,
            discount=discount,
            reward_clip=None,
            exponent=exponent,
        )
        made = make_method(method, network, optimizer, example_input=example, options=options)
        return ValueAgent(network, optimizer, replay, method=made, **settings)

    return make


class TinyRuns:
    """Runs of 100 steps of real games, put together as train.py does it, without Hydra's folder."""

    small = (
        "agent.torso=data_efficient",
        "agent.hidden=16",
        "agent.batch_size=8",
        "agent.update_every_steps=8",
        "agent.min_replay_steps=40",
        "agent.target_every_updates=7",
        "env.num_envs=2",
        "env.protocol.max_episode_frames=240",
        "replay.capacity=120",
        "logger.every_updates=3",
        "device=cpu",
    )
    atari = (*small, "env=atari", "env.game=asterix", "frames=800")
    one_env = (*atari, "env.num_envs=1")  # opening an emulator costs as much as 400 of its steps
    sequence = (
        *small,
        "env=sequential_atari",
        "env.games=[pong,asterix]",
        "env.frames_per_game=200",
        "env.cycles=2",
    )

    def configured(self, *overrides: str) -> Config:
        return to_config(cli.compose("config", list(overrides)))

    def assemble(
        self, config: Config, folder: Path, saved: checkpoint.Checkpoint | None = None, **rhythm: Any
    ) -> tuple[Trainer, Checkpointer]:
        torch.manual_seed(config.seed)
        env = build.build_env(config)
        agent, _ = build.build_agent(config, env.num_actions, torch.device("cpu"))
        meta = {} if saved is None else saved.meta
        display = Progress(stream=io.StringIO())
        log = RunLog(folder, state=meta.get("log"), frames=meta.get("frames", 0), warn=display.note)
        trainer = Trainer(
            env,
            agent,
            build.build_trainer_config(config),
            log=log,
            display=display,
            evaluator=build.build_evaluator(config, env),
        )
        about = {"config": schema.to_dict(config)}
        checkpointer = Checkpointer(folder, trainer, log, display, CheckpointRhythm(**rhythm), about)
        if saved is not None:
            try:
                restore(trainer, saved)
            except ValueError:
                env.close()
                raise
        return trainer, checkpointer

    def resume(self, config: Config, folder: Path, **rhythm: Any) -> tuple[Trainer, Checkpointer]:
        found = checkpoint.load_newest(folder / "checkpoints")
        assert found is not None
        trainer, checkpointer = self.assemble(config, folder, found[1], **rhythm)
        checkpointer.resumed_from(*found)
        return trainer, checkpointer

    @staticmethod
    def play_to(trainer: Trainer, frames: int) -> None:
        trainer.run(lambda: trainer.frames >= frames)


@pytest.fixture(scope="session")
def tiny() -> TinyRuns:
    schema.register()
    cli.register_resolvers()
    return TinyRuns()
