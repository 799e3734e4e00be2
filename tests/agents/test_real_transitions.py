"""Transitions stored from real games, against a list of every frame, action and reward."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nap_rl import cli
from nap_rl.agents import Trainer
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.envs import Step
from nap_rl.logging import Progress, RunLog

Frame = npt.NDArray[np.uint8]
GAMMA, N, STACK = 0.99, 3, 4
SETTINGS = [
    *("env=sequential_atari", "env.games=[breakout,asterix]", "env.frames_per_game=2400", "env.cycles=1"),
    *("env.num_envs=2", "env.protocol.max_episode_frames=900", "env.protocol.fire_on_reset=true"),
    *("agent.torso=data_efficient", "agent.hidden=8", "agent.min_replay_steps=150", "agent.update_every_steps=1e9"),
    *("compile=off", "replay.capacity=300", "agent.epsilon.start=1", "agent.epsilon.end=1"),
]


@pytest.fixture(autouse=True)
def _types() -> None:
    schema.register()
    cli.register_resolvers()


class Seen(NamedTuple):
    """One step of one environment."""

    frame: Frame  # acted on
    action: int
    reward: float
    discount: float
    last: Frame | None  # what it led to, where the episode ended


def stacked(steps: list[Seen], t: int) -> list[Frame]:
    """The last four frames up to step t of its own episode; black ones before its first."""
    frames = [steps[t].frame]
    while len(frames) < STACK and t > 0 and steps[t - 1].last is None:
        t -= 1
        frames.insert(0, steps[t].frame)
    return [np.zeros((84, 84), dtype=np.uint8)] * (STACK - len(frames)) + frames


def transition(steps: list[Seen], t: int) -> tuple[list[Frame], int, float, float, list[Frame]]:
    total, product = 0.0, 1.0
    for k in range(t, t + N):
        total += product * min(max(steps[k].reward, -1.0), 1.0)
        product *= GAMMA * steps[k].discount
        if (last := steps[k].last) is not None:
            return stacked(steps, t), steps[t].action, total, product, [*stacked(steps, k)[1:], last]
    return stacked(steps, t), steps[t].action, total, product, stacked(steps, t + N)


@pytest.mark.parametrize("overlap", [pytest.param(False, marks=pytest.mark.slow), True])
def test_stored_transitions_of_two_games_with_lost_lives_caps_and_a_switch_are_those_that_happened(
    tmp_path: Path, overlap: bool
) -> None:
    config = to_config(cli.compose("config", SETTINGS))
    env = build.build_env(config)
    agent, _ = build.build_agent(config, env.num_actions, torch.device("cpu"))
    steps: list[list[Seen]] = [[], []]
    shown = np.zeros((2, 84, 84), dtype=np.uint8)
    reset, send, recv = env.reset, env.send, env.recv
    sent = np.zeros(2, dtype=np.int64)

    def watched_reset() -> Frame:
        shown[:] = reset()
        return shown.copy()

    def watched_send(actions: npt.NDArray[np.int64]) -> None:
        sent[:] = actions
        send(actions)

    def watched_recv() -> Step:
        result = recv()
        for e in range(2):
            last = result.last_observations[e].copy() if result.ended[e] else None
            seen = Seen(shown[e].copy(), int(sent[e]), float(result.rewards[e]), float(result.discounts[e]), last)
            steps[e].append(seen)
        shown[:] = result.observations
        return result

    watched: Any = {"reset": watched_reset, "send": watched_send, "recv": watched_recv}
    for name, method in watched.items():
        setattr(env, name, method)
    with RunLog(tmp_path, tensorboard=False) as log:
        display = Progress(stream=io.StringIO())
        settings = build.build_trainer_config(config)
        trainer = Trainer(env, agent, settings, log=log, display=display)
        trainer.overlap = overlap
        trainer.run()
    env.close()

    everything = [seen for of_env in steps for seen in of_env]
    assert len(everything) == 1_200 and sum(seen.last is not None for seen in everything) >= 6
    assert any(seen.discount == 0 and seen.last is None for seen in everything)  # a lost life and the game went on
    assert any(seen.discount == 1 and seen.last is not None for seen in everything)  # the cap or the switch
    assert any(seen.discount == 0 and seen.last is not None for seen in everything)  # a game that ended
    assert max(seen.reward for seen in everything) > 1.0

    # Each column holds the newest slots: a step is one, and so is an episode's last frame. Counting them back from the
    # newest says which step a slot is of.
    replay, expected = agent.replay, {}
    for e, of_env in enumerate(steps):
        serial = 0
        for t, seen in enumerate(of_env):
            expected[e, serial] = t
            serial += 1 if seen.last is None else 2
        assert serial == replay.counts[e]
    valid = torch.from_numpy(np.flatnonzero(replay.valid))
    assert len(valid) > 250
    s_tm1, a_tm1, r_t, discount_t, s_t = replay.gather(valid)
    for row, slot in enumerate(valid.tolist()):
        e = slot // replay.length
        stack, action, total, product, bootstrap = transition(steps[e], expected[e, int(replay.serials[slot])])
        assert np.array_equal(s_tm1[row].numpy(), np.stack(stack))
        assert int(a_tm1[row]) == action
        assert float(r_t[row]) == pytest.approx(total, abs=1e-6)
        assert float(discount_t[row]) == pytest.approx(product, abs=1e-6)
        if product > 0:
            assert np.array_equal(s_t[row].numpy(), np.stack(bootstrap))
