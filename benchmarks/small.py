"""Small networks on one thread: agent steps a second of whole training loops, ours, peers' and ten seeds at once.

    python -m benchmarks.small [--seeds 10] [--seconds 5] [--repetitions 5]

An MLP of 3 x 64, batch 32, one update to four agent steps, uniform replay unless said otherwise, on CartPole-v1 and
MinAtar's Breakout. Everything runs in turns in one process. Updates a second are of updates alone.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn

from benchmarks import measure
from benchmarks.contenders import compose
from nap_rl.agents import Trainer
from nap_rl.agents.stacked import play_together
from nap_rl.conf import build
from nap_rl.conf.environments import Observations, tasks
from nap_rl.conf.schema import Config
from nap_rl.conf.seeds import seeds
from nap_rl.logging import Progress, RunLog
from nap_rl.sb3 import Rainbow

WIDTHS = [64, 64, 64]
BEFORE_LEARNING = 1_000
RATE = 1e-3
ENVS = {
    "CartPole-v1": ("env=gym", "env.id=CartPole-v1"),
    "MinAtar breakout": ("env=minatar", "env.game=breakout"),
}
OURS = {
    "eager": ("agent=dqn_small", "compile=off", "native=off"),
    "compiled": ("agent=dqn_small", "compile=on"),
    "compiled, NaP": ("agent=dqn_small", "compile=on", "agent.nap=true"),
    "compiled, one environment": ("agent=dqn_small", "compile=on", "env.num_envs=1"),
    "rainbow_small, compiled": ("agent=rainbow_small", "compile=on"),
}
Run = Callable[[int], int]
"""Plays so many agent steps; returns how many it played."""


def configured(env: str, *overrides: str) -> Config:
    length = ("frames=1000000000", "replay.capacity=100000", "device=cpu", "logger.tensorboard=false")
    return compose(*ENVS[env], *overrides, "agent.torso=mlp", *length)


def trainer(config: Config, folder: Path, stacked: bool = False) -> Trainer:
    env = build.build_env(config)
    device = torch.device("cpu")
    agent, _ = build.build_agent(config, env.num_actions, device, Observations.of(env), stacked=stacked)
    log, display = RunLog(folder, tensorboard=False), Progress(stream=io.StringIO())
    return Trainer(env, agent, build.build_trainer_config(config), log=log, display=display)


def ours(trainer: Trainer) -> Run:
    def run(steps: int) -> int:
        begin = trainer.agent_steps
        trainer.run(lambda: trainer.agent_steps >= begin + steps)
        return trainer.agent_steps - begin

    return run


def together(trainers: list[Trainer], config: Config) -> Run:
    """All seeds at once; steps are those of all of them."""
    stacked = build.stack(config, [trainer.agent for trainer in trainers])

    def run(steps: int) -> int:
        begin = trainers[0].agent_steps
        enough = begin + steps // len(trainers)
        stops = [lambda each=each: each.agent_steps >= enough for each in trainers]  # type: ignore[misc]
        list(play_together(trainers, stacked, stops))
        return (trainers[0].agent_steps - begin) * len(trainers)

    return run


def single_env(env: str) -> gymnasium.Env[Any, Any]:
    """The environment that ours plays, as gymnasium has it, observations flat and float32."""
    config = configured(env)
    opened = tasks(config.env, seeds(0).env)[0].open()
    flat = gymnasium.wrappers.FlattenObservation(opened)
    return gymnasium.wrappers.DtypeObservation(flat, np.float32)


def sb3(env: str) -> Run:
    """SB3's DQN; after its first call, steps include an update to every fourth."""
    policy: dict[str, Any] = {"net_arch": WIDTHS}
    model = DQN(
        "MlpPolicy",
        single_env(env),
        learning_rate=RATE,
        buffer_size=100_000,
        learning_starts=BEFORE_LEARNING,
        train_freq=4,
        target_update_interval=400,
        policy_kwargs=policy,
        device="cpu",
        seed=0,
    )
    return learner(model)


def rainbow(env: str, nap: bool) -> Run:
    """`nap_rl.sb3.Rainbow`, an algorithm for SB3's users."""
    model = Rainbow(
        "MlpPolicy",
        single_env(env),
        nap=nap,
        compile="on",
        learning_rate=RATE,
        buffer_size=100_000,
        batch_size=32,
        learning_starts=BEFORE_LEARNING,
        train_freq=4,
        target_update_interval=400,
        policy_kwargs={"net_arch": WIDTHS[:-1], "hidden": WIDTHS[-1]},
        device="cpu",
        seed=0,
    )
    return learner(model)


def learner(model: Any) -> Run:
    def run(steps: int) -> int:
        begin = model.num_timesteps
        model.learn(steps, reset_num_timesteps=False)
        return int(model.num_timesteps - begin)

    run(BEFORE_LEARNING + 100)
    return run


def cleanrl(env: str) -> Run:
    """A loop after CleanRL's dqn.py (Huang et al. 2022), on one environment, with SB3's replay as there."""
    played = single_env(env)
    inputs, actions = played.observation_space.shape[0], int(played.action_space.n)  # type: ignore[index, attr-defined]

    def network() -> nn.Module:
        widths = [inputs, *WIDTHS]
        layers = [part for pair in zip(widths, WIDTHS, strict=False) for part in (nn.Linear(*pair), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], actions))

    online, target = network(), network()
    target.load_state_dict(online.state_dict())
    adam = torch.optim.Adam(online.parameters(), lr=RATE)
    buffer = ReplayBuffer(
        100_000, played.observation_space, played.action_space, "cpu", handle_timeout_termination=False
    )
    rng = np.random.default_rng(0)
    state = {"obs": played.reset(seed=0)[0], "step": 0}

    def step() -> None:
        state["step"] += 1
        epsilon = max(1.0 - 0.95 * state["step"] / 10_000, 0.05)
        if rng.random() < epsilon:
            action = int(rng.integers(actions))
        else:
            action = int(torch.argmax(online(torch.Tensor(state["obs"][None])), dim=1))
        obs, reward, terminated, truncated, info = played.step(action)
        buffer.add(
            state["obs"][None], obs[None], np.array([action]), np.array([reward]), np.array([terminated]), [info]
        )
        state["obs"] = played.reset()[0] if terminated or truncated else obs
        if state["step"] > BEFORE_LEARNING and state["step"] % 4 == 0:
            data = buffer.sample(32)
            with torch.no_grad():
                target_max, _ = target(data.next_observations).max(dim=1)
                td_target = data.rewards.flatten() + 0.99 * target_max * (1 - data.dones.flatten())
            old = online(data.observations).gather(1, data.actions).squeeze()
            loss = F.mse_loss(td_target, old)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        if state["step"] % 400 == 0:
            target.load_state_dict(online.state_dict())

    def run(steps: int) -> int:
        for _ in range(steps):
            step()
        return steps

    run(BEFORE_LEARNING + 100)
    return run


def main(arguments: list[str] | None = None) -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn of one variant")
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=list(ENVS))
    options = parser.parse_args(arguments)
    measure.prepare(1)
    seconds = 0.3 if options.quick else options.seconds
    turns = options.repetitions or (1 if options.quick else 5)
    compiled = () if not options.quick else ("compile=off", "native=off")
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for env in options.envs:
            runs: dict[str, Run] = {"SB3's DQN": sb3(env), "CleanRL's DQN": cleanrl(env)}
            for variant, overrides in OURS.items():
                folder = Path(name) / env / variant
                runs[f"ours, {variant}"] = ours(trainer(configured(env, *overrides, *compiled), folder))
            runs["nap_rl.sb3.Rainbow"] = rainbow(env, nap=False)
            runs["nap_rl.sb3.Rainbow, NaP"] = rainbow(env, nap=True)
            config = configured(env, *OURS["compiled, NaP"], *compiled)
            folders = [Path(name) / env / f"seed {seed}" for seed in range(options.seeds)]
            configs = [configured(env, *OURS["compiled, NaP"], *compiled, f"seed={n}") for n in range(options.seeds)]
            trainers = [trainer(each, folder, stacked=True) for each, folder in zip(configs, folders, strict=True)]
            runs[f"ours, compiled, NaP, {options.seeds} seeds"] = together(trainers, config)
            for run in runs.values():
                run(4 * BEFORE_LEARNING if options.quick else 20 * BEFORE_LEARNING)  # compiles, and learns from then on
            measured = measure.rates(runs, seconds, turns)
            for variant in runs:
                against = measure.ratio(measured, variant, "SB3's DQN")
                rows.append([env, variant, measure.median(measured, variant), against])
    print(measure.table(["environment", "variant", "agent steps/s", "against SB3's DQN"], rows))


if __name__ == "__main__":
    main()
