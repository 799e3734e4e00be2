"""N gymnasium environments behind the trainer's interface, against the same environments stepped one by one."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
import random_envs

from nap_rl.envs.atari import EmulatorError
from nap_rl.envs.task import Task
from nap_rl.envs.vector import GymnasiumEnvs

random_envs.register()


def task(**kwargs: Any) -> Task:
    return Task("random", random_envs.ID, kwargs)


@pytest.mark.parametrize(
    ("shape", "dtype", "stored"),
    [((4,), "float64", "float32"), ((2, 3), "uint8", "uint8"), ((5,), "int64", "float32"), ((3, 2), "int8", "int8")],
)
def test_steps_are_those_of_the_environments_one_by_one(shape: tuple[int, ...], dtype: str, stored: str) -> None:
    envs = GymnasiumEnvs(task(shape=shape, dtype=dtype), 3, seed=5)
    assert (envs.observation_shape, envs.observation_dtype, envs.num_actions) == (shape, np.dtype(stored), 3)
    alone = [gymnasium.make(random_envs.ID, shape=shape, dtype=dtype) for _ in range(3)]
    episodes, scores, lengths = [0] * 3, [0.0] * 3, [0] * 3
    observations = envs.reset()
    for env in range(3):
        assert np.array_equal(observations[env], alone[env].reset(seed=envs.episode_seed(env, 0))[0])
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(0, 3, 3)
        step = envs.step(actions)
        ended = []
        for env in range(3):
            last, reward, terminated, truncated, _ = alone[env].step(np.int64(actions[env] + 2))
            scores[env], lengths[env] = scores[env] + float(reward), lengths[env] + 1
            assert np.array_equal(step.last_observations[env], last) and step.rewards[env] == np.float32(reward)
            assert step.terminated[env] == terminated and step.discounts[env] == 1.0 - terminated
            assert step.ended[env] == (terminated or truncated)
            if step.ended[env]:
                episodes[env] += 1
                ended.append((env, scores[env], lengths[env]))
                scores[env], lengths[env] = 0.0, 0
                last = alone[env].reset(seed=envs.episode_seed(env, episodes[env]))[0]
            assert np.array_equal(step.observations[env], last)
        assert [tuple(episode) for episode in step.episodes] == ended
    assert step.observations.dtype == stored
    envs.close()


def test_what_a_step_returned_does_not_change_later() -> None:
    envs = GymnasiumEnvs(task(), 2)
    envs.reset()
    step = envs.step(np.zeros(2, dtype=np.int64))
    before = [np.copy(part) for part in step[:-1]]
    for _ in range(5):
        envs.step(np.ones(2, dtype=np.int64))
    assert all(np.array_equal(part, copy) for part, copy in zip(step[:-1], before, strict=True))


def test_the_state_is_taken_up_in_the_middle_of_episodes() -> None:
    envs, rng = GymnasiumEnvs(task(longest=30), 4, seed=1), np.random.default_rng(0)
    observations = envs.reset()
    for _ in range(47):
        observations = envs.step(rng.integers(0, 3, 4)).observations
    again = GymnasiumEnvs(task(longest=30), 4, seed=1)
    assert np.array_equal(again.load_state_dict(envs.state_dict()), observations)
    for _ in range(60):
        actions = rng.integers(0, 3, 4)
        one, other = envs.step(actions), again.step(actions)
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_episode_without_an_end_is_truncated_so_that_its_state_stays_small() -> None:
    envs = GymnasiumEnvs(Task("long", random_envs.ID, {"longest": 10**6}, max_episode_steps=5), 1)
    envs.reset()
    steps = [envs.step(np.zeros(1, dtype=np.int64)) for _ in range(5)]
    assert [bool(step.ended[0]) for step in steps] == [False] * 4 + [True]
    assert not steps[-1].terminated[0] and steps[-1].discounts[0] == 1.0
    assert steps[-1].episodes[0].frames == 5


def test_channels_come_first_where_they_were_last() -> None:
    shown = GymnasiumEnvs(task(shape=(4, 5, 3)), 2, seed=3).reset()
    as_is = GymnasiumEnvs(task(shape=(4, 5, 3)), 2, seed=3, channels_first=True).reset()
    assert shown.shape == (2, 3, 4, 5) and np.array_equal(shown, as_is.transpose(0, 3, 1, 2))


def test_another_number_of_environments_is_refused() -> None:
    state = GymnasiumEnvs(task(), 2)
    state.reset()
    with pytest.raises(ValueError, match="env.num_envs is 3, but 2 environments were saved"):
        GymnasiumEnvs(task(), 3).load_state_dict(state.state_dict())


def test_actions_out_of_range_are_refused() -> None:
    envs = GymnasiumEnvs(task(), 2)
    envs.reset()
    with pytest.raises(ValueError, match=re.escape("actions [0, 3] of random, expected 0 to 2")):
        envs.step(np.array([0, 3]))


def test_an_environment_that_raises_is_named_with_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = GymnasiumEnvs(task(), 2, seed=4)
    envs.reset()
    monkeypatch.setattr(random_envs.RandomEnv, "step", lambda self, action: 1 / 0)
    with pytest.raises(
        EmulatorError, match=f"of random failed .*environment 1: seed {envs.episode_seed(1, 0)}, step 0"
    ):
        envs.step(np.zeros(2, dtype=np.int64))
