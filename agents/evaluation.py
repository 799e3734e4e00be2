"""Scores any policy in a fixed number of whole episodes, several at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from nap_rl.agents.frame_stack import FrameStack
from nap_rl.envs.film import Expected
from nap_rl.envs.step import Actions, VectorEnv, Visit
from nap_rl.nn import QNetwork

Stacks = npt.NDArray[Any]
"""[N, C, *observation_shape], oldest observation first."""


class Policy(Protocol):
    """Anything that acts: stacks [N, C, *shape] -> actions [N]. N may differ from call to call."""

    def act(self, stacks: Stacks) -> Actions: ...


class NetworkPolicy:
    """Greedy in a value network, on the network's device.

    With `noisy`, every row has fresh noise and fresh quantile levels, from this policy's own generator.
    """

    def __init__(self, network: QNetwork, *, noisy: bool, seed: int) -> None:
        self.network = network
        self.noisy = noisy
        self.device = next(network.parameters()).device
        self.generator = torch.Generator(device=self.device).manual_seed(seed)

    @torch.no_grad()
    def act(self, stacks: Stacks) -> Actions:
        """stacks [N, C, *shape] -> actions [N]."""
        noise = taus = None
        if self.noisy:
            noise = self.network.sample_noise(self.generator, rows=len(stacks))
            taus = self.network.sample_taus("policy", len(stacks), self.generator)
        self._outputs = self.network(torch.as_tensor(stacks, device=self.device), noise, taus)
        actions: Actions = self.network.head.q_values(self._outputs).argmax(dim=1).cpu().numpy()
        return actions

    def expected(self) -> Expected:
        """What the network expected in the first row of the last `act`."""
        head, outputs = self.network.head, self._outputs[:1].float()
        q = head.q_values(outputs)[0]
        greedy, distribution = int(q.argmax()), head.distribution(outputs)
        if distribution is None:
            return Expected(q.cpu().numpy(), greedy)
        returns, probabilities = (each[0, greedy].cpu().numpy() for each in distribution)
        return Expected(q.cpu().numpy(), greedy, returns, probabilities)


class EpsilonGreedy:
    """`policy`, but with probability `epsilon` a uniformly random one of `num_actions` actions."""

    def __init__(self, policy: Policy, epsilon: float, num_actions: int, *, seed: int) -> None:
        self.policy = policy
        self.epsilon = epsilon
        self.num_actions = num_actions
        self.rng = np.random.default_rng(seed)

    def act(self, stacks: Stacks) -> Actions:
        """stacks [N, C, *shape] -> actions [N]."""
        random = self.rng.integers(0, self.num_actions, len(stacks))
        explore = self.rng.random(len(stacks)) < self.epsilon
        return np.where(explore, random, self.policy.act(stacks))


@dataclass(frozen=True)
class Played:
    """A whole episode. `seed` and `actions` replay it in the same environment."""

    seed: int
    score: float  # sum of unclipped rewards
    frames: int
    actions: tuple[int, ...]


class Evaluation(NamedTuple):
    """A network's episodes in one task, and their mean score on other scales (see `VectorEnv.extra_scores`)."""

    played: list[Played]
    extra_scores: dict[str, float]

    @property
    def mean_return(self) -> float:
        """Mean score of the episodes."""
        return mean_score(self.played)


def mean_score(played: list[Played]) -> float:
    """Mean score of one episode or more."""
    return sum(episode.score for episode in played) / len(played)


def play_episodes(
    policy: Policy,
    envs: VectorEnv,
    episodes: int,
    watch: Callable[[int], None] = lambda ended: None,
    film: Callable[[], None] = lambda: None,
) -> list[Played]:
    """Exactly `episodes` whole episodes, ordered by environment and number.

    The share of each environment is fixed before the first step. (The first `episodes` to finish would be short ones.)
    An environment that has played its share waits for the others.

    Args:
        policy: acts in the environments that still play.
        envs: not yet reset; N of them, of which min(N, episodes) play.
        watch: called after each step with the number of episodes that have ended.
        film: called in the first of the returned episodes after each call of the policy, whose row 0 is of it.
    """
    shares = [len(range(env, episodes, envs.num_envs)) for env in range(envs.num_envs)]
    played: list[list[Played]] = [[] for _ in shares]
    actions_of: list[list[int]] = [[] for _ in shares]
    stack = FrameStack.of(envs)
    observations, first = envs.reset(), np.ones(envs.num_envs, dtype=bool)
    while playing := [env for env, share in enumerate(shares) if len(played[env]) < share]:
        stacks = stack.push(observations, first)
        actions = np.zeros(envs.num_envs, dtype=np.int64)
        actions[playing] = policy.act(stacks[playing])
        if not played[0]:
            film()
        for env in playing:
            actions_of[env].append(int(actions[env]))
        step = envs.step(actions)
        for env, score, length in step.episodes:
            if len(played[env]) < shares[env]:
                seed = envs.episode_seed(env, len(played[env]))
                played[env].append(Played(seed, score, length, tuple(actions_of[env])))
                actions_of[env].clear()
        observations, first = step.observations, step.ended
        watch(sum(map(len, played)))
    return [episode for of_env in played for episode in of_env]


def evaluated_tasks(tasks: str, visits: Sequence[Visit], now: Visit) -> list[str]:
    """What is played in an evaluation during the visit `now`: its task first, then others in the order of the plan.

    "current" is its task alone, "seen" the tasks of all visits up to it, "all" those of the whole plan.
    """
    if tasks == "current":
        return [now.task]
    known = [visit.task for visit in visits if tasks == "all" or visit.number <= now.number]
    return list(dict.fromkeys([now.task, *known]))


@dataclass(frozen=True)
class Evaluator:
    """Scores a network during training and leaves the training as it was.

    It plays a copy of the network, in its own environments, with its own generators. A run with evaluations has the
    same weights, to the bit, as one without. Each evaluation has new seeds.

    Attributes:
        every: frames of the run between two evaluations.
        episodes: whole episodes of an evaluation, `num_envs` at a time.
        open_envs: (task, number of environments, seed) -> the environments, where each episode has its own seed.
        epsilon, noisy: share of uniformly random actions; whether noisy layers act under noise.
        tasks: see `evaluated_tasks`.
    """

    every: int
    episodes: int
    num_envs: int
    open_envs: Callable[[str, int, int], VectorEnv]
    epsilon: float
    noisy: bool
    seed: int
    tasks: str = "current"

    def is_due(self, before: int, now: int) -> bool:
        """Whether a multiple of `every` lies in (before, now], in frames."""
        return now // self.every > before // self.every

    def __call__(self, network: QNetwork, task: str, frames: int) -> Evaluation:
        """Play `task`. The seeds follow from `frames`, the run's clock."""
        env_seed, noise_seed, exploration_seed = (
            int(word) for word in np.random.SeedSequence([self.seed, frames]).generate_state(3)
        )
        envs = self.open_envs(task, min(self.num_envs, self.episodes), env_seed)
        try:
            greedy = NetworkPolicy(copy.deepcopy(network).eval(), noisy=self.noisy, seed=noise_seed)
            policy = EpsilonGreedy(greedy, self.epsilon, envs.num_actions, seed=exploration_seed)
            played = play_episodes(policy, envs, self.episodes)
            return Evaluation(played, envs.extra_scores(mean_score(played)))
        finally:
            envs.close()
