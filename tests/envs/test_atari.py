"""Real ROMs, briefly: what a step says, what an episode is, what its seed fixes."""

from __future__ import annotations

from collections.abc import Iterator

import ale_py
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from nap_rl.envs import AtariEnvs, Protocol, Resize, Step, check_game, check_games
from nap_rl.envs.atari import episode_seed


def play(envs: AtariEnvs, steps: int, seed: int = 0) -> Iterator[tuple[npt.NDArray[np.int64], Step]]:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        actions = rng.integers(0, envs.num_actions, envs.num_envs)
        yield actions, envs.step(actions)


def test_rewards_are_raw_and_not_clipped() -> None:
    envs = AtariEnvs("asterix", 2, seed=1)
    envs.reset()
    rewards = np.concatenate([step.rewards for _, step in play(envs, 150)])
    envs.close()
    assert set(np.unique(rewards).tolist()) == {0.0, 50.0}
    assert rewards.dtype == np.float32


@pytest.mark.parametrize("zeroes", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_lost_life_zeroes_the_discount_and_does_not_end_the_episode(zeroes: bool) -> None:
    envs = AtariEnvs("breakout", 2, Protocol(life_loss_ends_value=zeroes, fire_on_reset=True), seed=0)
    envs.reset()
    lost = terminals = 0
    for _, step in play(envs, 500):
        assert not (step.discounts[step.terminated] > 0).any()
        if zeroes:
            lost += int(((step.discounts == 0) & ~step.ended).sum())
        else:
            assert np.array_equal(step.discounts == 0, step.terminated)
        terminals += int(step.terminated.sum())
    envs.close()
    assert terminals > 0
    if zeroes:
        assert 4 * terminals <= lost <= 4 * (terminals + 2)  # five lives: four lost ones to a game that ends


def test_score_and_length_are_of_the_whole_game_whatever_lives_were_lost() -> None:
    envs = AtariEnvs("breakout", 2, Protocol(fire_on_reset=True), seed=0)
    envs.reset()
    scores, lengths, games = np.zeros(2), np.zeros(2, dtype=int), 0
    for _, step in play(envs, 700):
        scores += step.rewards
        lengths += 4
        assert [episode.env for episode in step.episodes] == np.flatnonzero(step.ended).tolist()
        for env, score, frames in step.episodes:
            assert score == scores[env] and frames == lengths[env]
            scores[env] = lengths[env] = 0
            games += 1
    envs.close()
    assert games >= 4


def record(seed: int, steps: int = 120) -> list[tuple[int, list[npt.NDArray[np.uint8]], list[int], list[float]]]:
    """(env, frames, actions, rewards) of each finished episode of three sticky Breakouts under random actions."""
    protocol = Protocol(sticky_actions=0.25, fire_on_reset=True, max_episode_frames=160)
    envs = AtariEnvs("breakout", 3, protocol, seed=seed)
    frames = envs.reset()
    shown: list[list[npt.NDArray[np.uint8]]] = [[frame] for frame in frames]
    actions: list[list[int]] = [[], [], []]
    rewards: list[list[float]] = [[], [], []]
    finished = []
    for acted, step in play(envs, steps):
        for env in range(3):
            actions[env].append(int(acted[env]))
            rewards[env].append(float(step.rewards[env]))
            if step.ended[env]:
                finished.append((env, shown[env], actions[env], rewards[env]))
                shown[env], actions[env], rewards[env] = [], [], []
            shown[env].append(step.observations[env])
    envs.close()
    return finished


@pytest.mark.slow
def test_an_episode_is_a_function_of_its_seed_and_its_actions_with_sticky_actions_too() -> None:
    finished = record(seed=3)
    assert len(finished) >= 6
    began = dict.fromkeys(range(3), 0)
    vector = ale_py.AtariVectorEnv(
        "breakout",
        1,
        stack_num=1,
        reward_clipping=False,
        use_fire_reset=True,
        repeat_action_probability=0.25,
        max_num_frames_per_episode=160,
        num_threads=1,
    )
    for env, shown, actions, rewards in finished:
        frames, _ = vector.reset(seed=np.array([episode_seed(3, env, began[env])]))
        began[env] += 1
        for t, action in enumerate(actions):
            assert np.array_equal(frames[0, 0], shown[t])
            frames, reward, *_ = vector.step(np.array([action]))
            assert reward[0] == rewards[t]


def test_a_seed_repeats_the_whole_run_and_another_does_not() -> None:
    runs = []
    for seed in (3, 3, 4):
        envs = AtariEnvs("breakout", 2, Protocol(sticky_actions=0.25), seed=seed)
        pictures = [envs.reset()] + [step.observations for _, step in play(envs, 60)]
        envs.close()
        runs.append(np.stack(pictures))
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize(("resize", "interpolation"), [("area", cv2.INTER_AREA), ("linear", cv2.INTER_LINEAR)])
def test_a_frame_is_the_maximum_of_the_last_two_screens_made_smaller(resize: str, interpolation: int) -> None:
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(str(ale_py.roms.get_rom_path("kung_fu_master")))
    envs = AtariEnvs("kung_fu_master", 1, Protocol(noop_max=1, resize=Resize(resize)))  # no no-ops
    first = envs.reset()
    assert np.array_equal(first[0], cv2.resize(ale.getScreenGrayscale(), (84, 84), interpolation=interpolation))
    legal = ale.getMinimalActionSet()
    for actions, step in play(envs, 150):
        screens = []
        for _ in range(4):
            ale.act(legal[actions[0]])
            screens.append(ale.getScreenGrayscale())
        smaller = cv2.resize(np.maximum(screens[2], screens[3]), (84, 84), interpolation=interpolation)
        assert step.observations.shape == (1, 84, 84) and step.observations.dtype == np.uint8
        assert np.array_equal(step.observations[0], smaller)
        assert not step.ended.any()
    envs.close()


def test_a_step_in_two_halves_is_the_same_step() -> None:
    whole, halves = (AtariEnvs("breakout", 1, seed=3) for _ in range(2))
    assert np.array_equal(whole.reset(), halves.reset())
    for actions, step in play(whole, 200):
        halves.send(actions)
        for one, other in zip(halves.recv(), step, strict=True):
            assert np.array_equal(one, other)
    whole.close()
    halves.close()


def test_environments_and_episodes_have_seeds_of_their_own() -> None:
    seeds = {episode_seed(seed, env, episode) for seed in range(10) for env in range(10) for episode in range(10)}
    assert len(seeds) == 1_000
    assert all(0 <= seed < 2**31 for seed in seeds)
    envs = AtariEnvs("asterix", 6, seed=0)
    envs.reset()
    for _ in range(10):
        frames = envs.step(np.zeros(6, dtype=np.int64)).observations
    envs.close()
    assert len({frame.tobytes() for frame in frames}) >= 4  # other no-op starts, other pictures


@pytest.mark.parametrize("reseed_steps", [0, 100])
def test_the_episodes_of_one_environment_do_not_repeat_each_other(reseed_steps: int) -> None:
    # No-op starts are one of 30, so that two episodes of six agree now and then: under this seed none do.
    envs = AtariEnvs("asterix", 1, Protocol(max_episode_frames=160), seed=3, reseed_steps=reseed_steps)
    episodes, frames = [b""], envs.reset()
    for _ in range(200):
        step = envs.step(np.zeros(1, dtype=np.int64))
        episodes[-1] += frames.tobytes()
        frames = step.observations
        if step.ended[0]:
            episodes.append(b"")
    envs.close()
    assert len(episodes) >= 5 and len(set(episodes)) == len(episodes)


def test_the_first_frame_of_the_next_episode_is_not_the_last_one_of_the_old() -> None:
    envs = AtariEnvs("breakout", 2, Protocol(max_episode_frames=200), seed=0)
    envs.reset()
    ends = 0
    for _, step in play(envs, 120):
        same = (step.observations == step.last_observations).all(axis=(1, 2))
        assert same[~step.ended].all() and not same[step.ended].any()
        ends += int(step.ended.sum())
    envs.close()
    assert ends >= 4


def test_the_frame_cap_truncates_with_its_discount_kept() -> None:
    envs = AtariEnvs("breakout", 2, Protocol(max_episode_frames=200, noop_max=1), seed=0)
    envs.reset()
    lengths = []
    for _ in range(120):
        step = envs.step(np.zeros(2, dtype=np.int64))  # no FIRE: no ball, no life lost
        assert not step.terminated.any() and (step.discounts == 1.0).all()
        lengths += [episode.frames for episode in step.episodes]
    envs.close()
    assert lengths == [200] * len(lengths) and len(lengths) == 4


def test_minimal_and_full_action_sets() -> None:
    for full, count in ((False, 4), (True, 18)):
        envs = AtariEnvs("breakout", 1, Protocol(full_action_set=full))
        assert envs.num_actions == count
        envs.close()


def test_no_step_between_two_episodes_that_is_no_transition() -> None:
    envs = AtariEnvs("breakout", 1, Protocol(max_episode_frames=80, noop_max=1), seed=0)
    envs.reset()
    ends = [t for t in range(1, 101) if envs.step(np.zeros(1, dtype=np.int64)).ended[0]]
    envs.close()
    assert np.diff(ends).tolist() == [20] * (len(ends) - 1) and len(ends) == 5


@pytest.mark.parametrize(
    ("name", "near"),
    [("pogn", "pong"), ("Space Invaders", "space_invaders"), ("ms-pacman", "ms_pacman"), ("Breakout", "breakout")],
)
def test_an_unknown_game_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown game '{name}': did you mean '{near}'"):
        AtariEnvs(name, 1)


def test_a_name_near_to_nothing_is_answered_with_an_example() -> None:
    with pytest.raises(ValueError, match=r"unknown game '!': ale-py knows \d+ games, for example 'pong'"):
        check_game("!")
    with pytest.raises(ValueError, match="env.games is empty"):
        check_games([])
    assert check_games(("pong", "asterix")) == ["pong", "asterix"]


def test_no_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="env.num_envs is 0, expected 1 or more"):
        AtariEnvs("pong", 0)
