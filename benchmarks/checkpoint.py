"""What a checkpoint costs: seconds and bytes with a full replay, and its share of training at the default interval.

    python -m benchmarks.checkpoint [--transitions 100000 1000000] [--folder FOLDER] [--updates 60] [--rate STEPS]

Rainbow with NaP as configured by default (6.9M weights), on the CPU. The ring is filled with the frames of 20,000 real
steps of Ms. Pac-Man (of five games tried the one whose frames shrink least), over and over. Training
speed is measured first; then four intervals are played (as many new transitions as 20 minutes of training make), with a
checkpoint after each: the first writes the whole ring, the second copies it once more, from the third on only what is
new is written. The last is what a long run pays.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nap_rl import checkpoint, cli
from nap_rl.agents import Checkpointer, Trainer
from nap_rl.agents.checkpointer import restore
from nap_rl.agents.trainer import Clock
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.intervals import parse_every
from nap_rl.conf.schema import Config
from nap_rl.envs.atari import Frames
from nap_rl.logging import Progress, RunLog
from nap_rl.machine import keep_freed_memory

REAL_STEPS = 20_000


def configured(transitions: int) -> Config:
    overrides = ["env.game=ms_pacman", "agent.nap=true", f"replay.capacity={transitions}", "device=cpu"]
    return to_config(cli.compose("config", overrides))


def assemble(config: Config, folder: Path) -> tuple[Trainer, Checkpointer]:
    env = build.build_env(config)
    agent, _ = build.build_agent(config, env.num_actions, torch.device("cpu"))
    log, display = RunLog(folder), Progress()
    settings = build.build_trainer_config(config)
    trainer = Trainer(env, agent, settings, log=log, display=display)
    about = {"config": schema.to_dict(config)}
    return trainer, Checkpointer(folder, trainer, log, display, build.build_rhythm(config), about)


class Stream:
    """Real frames of N environments, over and over."""

    def __init__(self, config: Config) -> None:
        env, rng = build.build_env(config), np.random.default_rng(0)
        self.num_envs = env.num_envs
        self.frames: list[Frames] = [env.reset()]
        while len(self.frames) * env.num_envs < REAL_STEPS:
            self.frames.append(env.step(rng.integers(0, env.num_actions, env.num_envs)).observations)
        env.close()
        self.rng, self.at = rng, 0

    def play(self, trainer: Trainer, transitions: int) -> None:
        """Into the replay, as the trainer would."""
        for _ in range(transitions // self.num_envs):
            frames, first = self.frames[self.at % len(self.frames)], np.full(self.num_envs, self.at % 500 == 0)
            actions, rewards = self.rng.integers(0, 9, self.num_envs), self.rng.integers(0, 2, self.num_envs)
            trainer.agent.replay.add(frames, actions, rewards, np.ones(self.num_envs), first)
            trainer.collector.agent_steps += self.num_envs
            self.at += 1


def steps_per_second(trainer: Trainer, updates: int) -> float:
    """Agent steps a second, all of training included."""
    trainer.clock = Clock(trainer.agent_steps, 0, 0)  # no updates for the steps before
    trainer.run(lambda: trainer.agent.updates >= 5)
    steps, began = trainer.agent_steps, time.perf_counter()
    trainer.run(lambda: trainer.agent.updates >= 5 + updates)
    return (trainer.agent_steps - steps) / (time.perf_counter() - began)


def written(folder: Path, before: set[int]) -> int:
    """Bytes of files that are not links to earlier ones."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.stat().st_ino not in before)


def measure(transitions: int, folder: Path, updates: int, rate: float | None) -> None:
    config = configured(transitions)
    trainer, checkpointer = assemble(config, folder)
    stream = Stream(config)
    stream.play(trainer, transitions + 8 * config.env.num_envs)
    measured = steps_per_second(trainer, updates)
    rate = measured if rate is None else rate
    _, interval = parse_every(config.checkpoint.every)
    assert interval is not None
    new = int(rate * interval)
    print(
        f"{transitions:,} transitions; {rate:.0f} agent steps/s (measured {measured:.0f}), "
        f"{new:,} in {interval / 60:.0f} minutes"
    )
    for number in range(4):
        stream.play(trainer, new if number else 0)
        before = {file.stat().st_ino for file in folder.glob("checkpoints/*/*")}
        began, cpu = time.perf_counter(), time.process_time()
        path = checkpointer.save()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert path is not None
        size = sum(file.stat().st_size for file in path.iterdir())
        print(
            f"  checkpoint {number + 1}: {seconds:6.2f} s, of CPU {cpu:6.2f} s, {written(path, before) / 1e6:7.1f} MB "
            f"written of {size / 1e6:7.1f} MB, {seconds / interval:.2%} of the interval"
        )
    trainer.env.close()
    began = time.perf_counter()
    again, _ = assemble(config, folder / "again")
    newest = checkpoint.load_newest(folder / "checkpoints")
    assert newest is not None
    restore(again, newest[1])
    print(f"  restoring it: {time.perf_counter() - began:.2f} s")
    again.env.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--transitions", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--updates", type=int, default=60, help="over which training speed is measured")
    parser.add_argument("--rate", type=float, default=None, help="agent steps a second, instead of measuring them")
    parser.add_argument(
        "--folder", type=Path, default=None, help="on the disk to measure; a temporary folder by default"
    )
    arguments = parser.parse_args()
    schema.register()
    cli.register_resolvers()
    keep_freed_memory()
    for transitions in arguments.transitions:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            measure(transitions, Path(folder), arguments.updates, arguments.rate)


if __name__ == "__main__":
    main()
