"""Catch, the two MDPs over digits and MinAtar: closed forms, and gymnasium's own checker."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from nap_rl.envs import registry
from nap_rl.envs.catch import Catch
from nap_rl.envs.label_mdp import LabelMdp
from nap_rl.envs.minatar import GAMES, MinAtar
from nap_rl.envs.random_mdp import (
    RandomMdp,
    Rules,
    draw_rules,
    optimal_values,
    policy_value,
    share_of_optimum,
)


def needs_minatar() -> None:
    pytest.importorskip("minatar")


def returns(env: gymnasium.Env[Any, Any], policy: Any, episodes: int) -> list[float]:
    total = []
    for episode in range(episodes):
        observation, info = env.reset(seed=episode)
        score, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, info = env.step(policy(observation))
            score, over = score + float(reward), terminated or truncated
        total.append(score)
    return total


@pytest.mark.parametrize("name", sorted(registry.ENTRY_POINTS))
def test_gymnasiums_checker_passes_on_every_registered_id(name: str) -> None:
    if name == registry.MINATAR_ID:
        needs_minatar()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", sorted(registry.ENTRY_POINTS))
def test_an_episode_is_a_function_of_seed_and_actions(name: str) -> None:
    if name == registry.MINATAR_ID:
        needs_minatar()

    def play(env: gymnasium.Env[Any, Any]) -> list[Any]:
        observation, _ = env.reset(seed=7)
        rng, seen = np.random.default_rng(0), [observation]
        for _ in range(40):
            observation, reward, terminated, truncated, _ = env.step(rng.integers(env.action_space.n))  # type: ignore[attr-defined]
            seen += [observation, reward, terminated]
            if terminated or truncated:
                break
        return seen

    env = gymnasium.make(name)
    first = play(env)
    for action in (2, 0, 1):  # what came before must not matter
        env.reset()
        env.step(action)
    again = play(env)
    assert len(first) == len(again)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


# Catch


def follow_the_ball(board: np.ndarray[Any, Any]) -> int:
    ball, paddle = int(board[:-1].sum(axis=0).argmax()), int(board[-1].argmax())
    return 1 + int(np.sign(ball - paddle))


@pytest.mark.parametrize(("rows", "columns"), [(10, 5), (4, 7), (2, 3)])
def test_catch_pays_one_for_every_ball_to_a_paddle_that_follows_it(rows: int, columns: int) -> None:
    assert returns(Catch(rows, columns), follow_the_ball, 30) == [1.0] * 30


def test_a_paddle_that_stays_catches_one_ball_in_five_columns() -> None:
    scores = returns(Catch(), lambda board: 1, 2_000)
    assert set(scores) == {-1.0, 1.0}
    assert np.mean(scores) == pytest.approx(-0.6, abs=0.06)  # 3 standard deviations: 3 * 0.8 / sqrt(2000)


def test_a_ball_falls_one_row_a_step_and_an_episode_has_rows_minus_one_steps() -> None:
    env = Catch(10, 5)
    board, _ = env.reset(seed=0)
    column = int(board[0].argmax())
    for row in range(1, 10):
        board, reward, terminated, truncated, _ = env.step(np.int64(1))
        assert board[row, column] == 1.0 and board[9, 2] == 1.0
        assert board.sum() == (1.0 if (row, column) == (9, 2) else 2.0)
        assert (terminated, truncated) == (row == 9, False) and (reward != 0.0) == (row == 9)


def test_the_paddle_stops_at_the_walls() -> None:
    env = Catch(10, 5)
    env.reset(seed=0)
    for action, column in [(0, 1), (0, 0), (0, 0), (2, 1), (2, 2), (2, 3), (2, 4), (2, 4)]:
        board = env.step(np.int64(action))[0]
        assert board[9].argmax() == column


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (10, 0)])
def test_a_board_without_room_is_refused(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} rows and {columns} columns"):
        Catch(rows, columns)


# The random MDP


def two_states() -> Rules:
    """From 0: stay for 0.5, or go to 1 for -1. From 1: stay for 1, or go to 0 for 0."""
    return Rules(np.array([[0, 1], [1, 0]]), np.array([[0.5, -1.0], [1.0, 0.0]]))


def test_value_iteration_has_the_closed_form_of_a_chain_of_two_states() -> None:
    q = optimal_values(two_states(), discount=0.9)
    # v(1) = 1 / (1 - 0.9) = 10; v(0) = max(0.5 + 0.9 v(0), -1 + 0.9 v(1)) = 8
    assert q == pytest.approx(np.array([[0.5 + 0.9 * 8.0, 8.0], [10.0, 0.9 * 8.0]]))


def test_a_policys_value_is_its_discounted_return_by_rollout() -> None:
    rules, actions, discount = draw_rules(12, 3, task_seed=5), np.arange(12) % 3, 0.8
    total = 0.0
    for start in range(12):
        state = start
        for t in range(200):
            total += discount**t * rules.rewards[state, actions[state]]
            state = int(rules.next_states[state, actions[state]])
    assert policy_value(rules, actions, discount) == pytest.approx(total / 12)


def test_the_share_of_the_optimum_is_one_for_the_best_policy_and_less_for_any_other() -> None:
    rules, discount = draw_rules(5, 2, task_seed=0), 0.9
    best = optimal_values(rules, discount).argmax(axis=1)
    assert share_of_optimum(rules, best, discount) == pytest.approx(1.0)
    others = [np.array(np.unravel_index(i, (2,) * 5)) for i in range(2**5)]
    shares = [share_of_optimum(rules, actions, discount) for actions in others]
    assert max(shares) == pytest.approx(1.0)  # by trying all 32 policies
    assert abs(np.mean(shares)) < 0.5


def test_a_random_mdp_follows_its_table_and_is_truncated_at_its_length() -> None:
    env = RandomMdp(states=16, actions=4, length=7, task_seed=3)
    state_of = {image.tobytes(): state for state, image in enumerate(env.images)}
    state = state_of[env.reset(seed=0)[0].tobytes()]
    for t in range(7):
        observation, reward, terminated, truncated, _ = env.step(np.int64(t % 4))
        assert reward == env.rules.rewards[state, t % 4]
        assert state_of[observation.tobytes()] == env.rules.next_states[state, t % 4]
        state = state_of[observation.tobytes()]
        assert (terminated, truncated) == (False, t == 6)


@pytest.mark.parametrize("kind", [RandomMdp, LabelMdp])
def test_a_task_draws_the_rules_anew_and_keeps_the_images(kind: Any) -> None:
    one, same, other = kind(task_seed=1), kind(task_seed=1), kind(task_seed=2)
    rules = "rules" if kind is RandomMdp else "labels"
    assert np.array_equal(one.images, other.images)
    assert np.array_equal(np.asarray(getattr(one, rules)), np.asarray(getattr(same, rules)))
    assert not np.array_equal(np.asarray(getattr(one, rules)), np.asarray(getattr(other, rules)))


def test_images_of_digits_have_mean_0_variance_1_and_are_all_different() -> None:
    images = RandomMdp().images
    assert images.shape == (64, 8, 8) and images.dtype == np.float32
    assert images.mean() == pytest.approx(0.0, abs=1e-5) and images.std() == pytest.approx(1.0, abs=1e-3)
    assert len({image.tobytes() for image in images}) == 64


# The label MDP


def test_knowing_all_labels_earns_the_whole_length_and_knowing_half_earns_half() -> None:
    env = LabelMdp(states=32, actions=5, length=40, task_seed=0)
    label_of = {image.tobytes(): int(label) for image, label in zip(env.images, env.labels, strict=True)}
    assert returns(env, lambda image: np.int64(label_of[image.tobytes()]), 3) == [40.0] * 3
    known = {image.tobytes() for image in env.images[:16]}
    wrong = {key: label if key in known else (label + 1) % 5 for key, label in label_of.items()}
    scores = returns(env, lambda image: np.int64(wrong[image.tobytes()]), 100)
    assert np.mean(scores) == pytest.approx(20.0, abs=1.0)  # 3 standard deviations: 3 * sqrt(40 / 4) / sqrt(100)


# MinAtar


@pytest.mark.parametrize("game", GAMES)
def test_minatar_shows_the_games_own_state_in_the_first_channels_and_nothing_in_the_others(game: str) -> None:
    needs_minatar()
    env = MinAtar(game)
    observation, _ = env.reset(seed=0)
    for t in range(30):
        shown = env._play.state()
        assert observation.shape == (10, 10, 10) and observation.dtype == np.int8
        assert (
            np.array_equal(observation[:, :, : shown.shape[2]], shown) and not observation[:, :, shown.shape[2] :].any()
        )
        observation, _, terminated, _, _ = env.step(np.int64(t % 6))
        if terminated:
            observation, _ = env.reset()


def test_an_unknown_minatar_game_is_one_sentence_with_all_games() -> None:
    with pytest.raises(ValueError, match="unknown MinAtar game 'pong': there are asterix, breakout"):
        MinAtar("pong")


def test_a_missing_minatar_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "minatar", None)
    with pytest.raises(ValueError, match="MinAtar is not installed: pip install --no-deps minatar"):
        MinAtar("breakout")
