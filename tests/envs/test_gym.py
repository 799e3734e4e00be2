"""The gymnasium environment under the checkers of gymnasium and Stable-Baselines3."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from nap_rl.envs.gym import SEQUENCE_ID, SequentialAtariEnv


@pytest.fixture
def env() -> Iterator[gymnasium.Env]:  # type: ignore[type-arg]
    made = gymnasium.make(SEQUENCE_ID, games=("breakout", "asterix"), frames_per_game=400, cycles=2)
    yield made
    made.close()


def test_gymnasiums_checker_passes_on_the_registered_id(env: gymnasium.Env) -> None:  # type: ignore[type-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


def test_stable_baselines3s_checker_passes_on_the_registered_id(env: gymnasium.Env) -> None:  # type: ignore[type-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env)


def test_a_switch_is_a_truncation_and_info_says_where_we_are(env: gymnasium.Env) -> None:  # type: ignore[type-arg]
    _, info = env.reset(seed=0)
    assert info == {"game": "breakout", "cycle": 0, "visit": 0, "frames": 0}
    seen = []
    for k in range(1, 420):
        _, _, terminated, truncated, info = env.step(0)
        assert info["frames"] == 4 * k
        if terminated or truncated:
            if info["frames"] % 400 == 0:
                assert truncated and not terminated
                seen.append((info["game"], info["cycle"], info["visit"]))
            observation, after = env.reset()
            assert after == info and observation.shape == (84, 84, 1)
    assert seen == [("asterix", 0, 1), ("breakout", 1, 2), ("asterix", 1, 3)]


def test_reset_hands_out_the_first_frame_of_the_new_episode_and_loses_none() -> None:
    env = SequentialAtariEnv(("breakout",), frames_per_game=10_000, cycles=1)
    env.reset(seed=0)
    rng, ends = np.random.default_rng(0), 0
    for _ in range(400):
        last, _, terminated, truncated, _ = env.step(rng.integers(env.action_space.n))
        if terminated or truncated:
            first, _ = env.reset()
            assert np.array_equal(first[:, :, 0], env._frame[:, :, 0]) and not np.array_equal(first, last)
            assert env._envs._envs._episodes[0] == ends + 2  # no episode was begun and thrown away
            ends += 1
    env.close()
    assert ends >= 1


def test_a_reset_with_a_seed_begins_the_whole_sequence_anew_and_a_plain_one_does_not(
    env: gymnasium.Env,  # type: ignore[type-arg]
) -> None:
    first, _ = env.reset(seed=5)
    played = [env.step(1)[0] for _ in range(110)]
    again, info = env.reset(seed=5)
    assert info["frames"] == 0 and np.array_equal(first, again)
    assert all(np.array_equal(env.step(1)[0], frame) for frame in played)
    _, info = env.reset()
    assert info["frames"] == 440 and info["game"] == "asterix"


def test_render_is_the_newest_frame_in_three_channels() -> None:
    env = SequentialAtariEnv(("breakout",), frames_per_game=1_000, cycles=1, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (84, 84, 3) and np.array_equal(picture[:, :, 1:2], observation)
    env.close()
