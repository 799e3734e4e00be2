"""Evaluation plays exactly the episodes that were fixed in advance; policies draw from random streams of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_rl.agents import ValueAgent
from nap_rl.agents.evaluation import (
    EpsilonGreedy,
    Evaluator,
    NetworkPolicy,
    Played,
    evaluated_tasks,
    play_episodes,
)
from nap_rl.envs import AtariEnvs, Episode, Protocol, Step, Visit
from nap_rl.nn import Categorical, ExpectedValue, Head, ImplicitQuantile, Quantile

Make = Callable[..., ValueAgent]


class Scripted:
    """Environment e plays episodes of lengths[e][0], lengths[e][1], ... steps, then of one; score = its length."""

    stack, observation_shape, observation_dtype = 4, (84, 84), np.uint8

    def episode_seed(self, env: int, episode: int) -> int:
        return 1_000 * env + episode

    def __init__(self, lengths: list[list[int]]) -> None:
        self.lengths = lengths
        self.num_envs = len(lengths)
        self.begun = [0] * self.num_envs
        self.age = [0] * self.num_envs

    def length(self, env: int) -> int:
        return self.lengths[env][self.begun[env]] if self.begun[env] < len(self.lengths[env]) else 1

    def frames(self) -> npt.NDArray[np.uint8]:
        """Pixel 0 numbers the episode, pixel 1 the step in it."""
        frames = np.zeros((self.num_envs, 84, 84), dtype=np.uint8)
        frames[:, 0, 0], frames[:, 0, 1] = np.add(self.begun, 1), np.add(self.age, 1)
        return frames

    def reset(self) -> npt.NDArray[np.uint8]:
        return self.frames()

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        episodes = []
        for env in range(self.num_envs):
            self.age[env] += 1
            if self.age[env] == self.length(env):
                episodes.append(Episode(env, float(self.length(env)), 4 * self.length(env)))
                self.begun[env], self.age[env] = self.begun[env] + 1, 0
        ended = np.zeros(self.num_envs, dtype=bool)
        ended[[episode.env for episode in episodes]] = True
        zeros = np.zeros(self.num_envs, dtype=np.float32)
        return Step(self.frames(), self.frames(), zeros, zeros, ended, ended, episodes)


class Watcher:
    """Keeps the stacks that it is shown; acts by the step's number."""

    def __init__(self) -> None:
        self.shown: list[npt.NDArray[np.uint8]] = []

    def act(self, stacks: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        self.shown.append(stacks.copy())
        return stacks[:, -1, 0, 1].astype(np.int64)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 14))
def test_the_counted_episodes_are_fixed_in_advance_however_long_they_are(lengths: list[list[int]], count: int) -> None:
    envs = len(lengths)
    expected = [lengths[e][k] if k < 6 else 1 for e in range(envs) for k in range(len(range(e, count, envs)))]
    watcher = Watcher()
    played = play_episodes(watcher, Scripted(lengths), count)  # type: ignore[arg-type]
    assert [episode.score for episode in played] == expected and len(played) == count
    assert [episode.frames for episode in played] == [4 * length for length in expected]
    assert [list(episode.actions) for episode in played] == [list(range(1, length + 1)) for length in expected]
    seeds = [1_000 * e + k for e in range(envs) for k in range(len(range(e, count, envs)))]
    assert [episode.seed for episode in played] == seeds and len(set(seeds)) == count
    assert sum(len(stacks) for stacks in watcher.shown) == sum(expected)  # who has played its share is not asked


def test_stacks_begin_anew_with_each_episode() -> None:
    watcher = Watcher()
    play_episodes(watcher, Scripted([[3, 5]]), 2)  # type: ignore[arg-type]
    steps = [stacks[0, :, 0, 1].tolist() for stacks in watcher.shown]
    assert steps[:4] == [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [0, 0, 0, 1]] and steps[7] == [2, 3, 4, 5]


def test_the_number_of_ended_episodes_is_told_after_each_step() -> None:
    told: list[int] = []
    play_episodes(Watcher(), Scripted([[2, 3], [1]]), 3, told.append)  # type: ignore[arg-type]
    assert told == [1, 2, 2, 2, 3]


def test_the_first_returned_episode_is_filmed_and_no_other() -> None:
    watcher, filmed = Watcher(), list[list[int]]()
    # Environment 1 ends earlier; environment 0 plays three episodes in all.
    envs = Scripted([[4, 2, 3], [2, 2]])
    played = play_episodes(
        watcher,
        envs,  # type: ignore[arg-type]
        5,
        film=lambda: filmed.append(watcher.shown[-1][0, -1, 0, :2].tolist()),
    )
    assert filmed == [[1, step] for step in range(1, 5)] and len(filmed) == len(played[0].actions)


class Constant:
    def act(self, stacks: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        return np.full(len(stacks), 2)


def test_real_episodes_differ_from_each_other_and_repeat_with_their_seed() -> None:
    def played(seed: int) -> list[Played]:
        envs = AtariEnvs("asterix", 2, Protocol(max_episode_frames=300), seed=seed)
        episodes = play_episodes(EpsilonGreedy(Constant(), 0.5, envs.num_actions, seed=seed), envs, 3)
        envs.close()
        return episodes

    first = played(0)
    assert first == played(0) and not {e.seed for e in first} & {e.seed for e in played(1)}
    assert len({e.seed for e in first}) == len({e.actions for e in first}) == 3


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_is_the_share_of_uniformly_random_actions_of_any_policy(epsilon: float) -> None:
    policy = EpsilonGreedy(Constant(), epsilon, 4, seed=0)
    actions = policy.act(np.zeros((40_000, 4, 1, 1), dtype=np.uint8))
    expected = np.full(4, epsilon / 4) + (1 - epsilon) * (np.arange(4) == 2)
    assert (np.bincount(actions, minlength=4) / 40_000).tolist() == pytest.approx(expected.tolist(), abs=0.01)


def test_a_network_policy_is_noisy_only_when_told_and_leaves_all_other_generators_alone(make_agent: Make) -> None:
    agent = make_agent(sigma0=5.0)
    stacks = np.full((64, 4, 2), 100, dtype=np.uint8)
    before = agent.generator.get_state(), torch.get_rng_state()
    noisy = NetworkPolicy(agent.network, noisy=True, seed=0)
    assert 5 < noisy.act(stacks).sum() < 59
    assert len(set(NetworkPolicy(agent.network, noisy=False, seed=0).act(stacks).tolist())) == 1
    again = NetworkPolicy(agent.network, noisy=True, seed=0)
    noisy.act(stacks)
    assert again.act(stacks).tolist() != noisy.act(stacks).tolist()
    assert torch.equal(before[0], agent.generator.get_state()) and torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize("head", [ExpectedValue(), Categorical(), Quantile(), ImplicitQuantile()])
def test_what_a_policy_expected_is_of_the_first_row_that_it_saw(make_agent: Make, head: Head) -> None:
    agent = make_agent(head=head)
    policy = NetworkPolicy(agent.network, noisy=False, seed=0)
    stacks = np.random.default_rng(0).integers(0, 256, (3, 4, 2), dtype=np.uint8)
    actions, expected = policy.act(stacks), policy.expected()
    with torch.no_grad():
        outputs = agent.network(torch.as_tensor(stacks))
    q = agent.network.head.q_values(outputs)[0].numpy()
    np.testing.assert_allclose(expected.q, q, atol=1e-5)
    assert expected.greedy == actions[0] == q.argmax()
    assert (expected.returns is None) == isinstance(head, ExpectedValue)
    if expected.returns is not None and expected.probabilities is not None:
        assert expected.probabilities.sum() == pytest.approx(1.0, rel=1e-5)
        assert expected.returns @ expected.probabilities == pytest.approx(q.max(), abs=1e-5)


@given(st.integers(1, 100), st.lists(st.integers(1, 60), min_size=1, max_size=50))
def test_an_evaluation_is_due_once_for_each_multiple_passed(every: int, steps: list[int]) -> None:
    evaluator = Evaluator(every, 1, 1, AtariEnvs, 0.0, False, 0)  # type: ignore[arg-type]
    clock, due = 0, 0
    for step in steps:
        crossed = any(k % every == 0 for k in range(clock + 1, clock + step + 1))
        assert evaluator.is_due(clock, clock + step) == crossed
        clock += step
        due += crossed
    assert due <= clock // every


@pytest.mark.parametrize(
    ("tasks", "number", "played"),
    [
        ("current", 1, ["b"]),
        ("seen", 0, ["a"]),
        ("seen", 1, ["b", "a"]),
        ("seen", 3, ["a", "b", "c"]),
        ("all", 0, ["a", "b", "c"]),
        ("all", 2, ["c", "a", "b"]),
    ],
)
def test_an_evaluation_plays_the_task_at_hand_first_and_each_other_that_is_asked_for_once(
    tasks: str, number: int, played: list[str]
) -> None:
    visits = [Visit(i, "abc"[i % 3], i // 3, 10 * i, 10 * i + 10) for i in range(6)]
    assert evaluated_tasks(tasks, visits, visits[number]) == played
