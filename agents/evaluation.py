"""Scoring whatever acts on stacks of frames: exactly so many whole episodes, several at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from nap_rl.agents.frame_stack import FrameStack
from nap_rl.envs import atari
from nap_rl.envs.atari import AtariEnvs, episode_seed
from nap_rl.nn import QNetwork

STACK = 4


class Policy(Protocol):
    """Anything that acts: stacks [N, 4, 84, 84] uint8, oldest frame first -> actions [N] int64. N varies."""

    def act(self, stacks: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]: ...


class NetworkPolicy:
    """Greedy in a value network, on the network's device.

    With `noisy`, under fresh noise (and quantile levels) for every row. It draws from a generator of its own, so that
    evaluating during training leaves the training as it was.
    """

    def __init__(self, network: QNetwork, *, noisy: bool, seed: int) -> None:
        self.network = network
        self.noisy = noisy
        self.device = next(network.parameters()).device
        self.generator = torch.Generator(device=self.device).manual_seed(seed)

    @torch.no_grad()
    def act(self, stacks: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """stacks [N, 4, 84, 84] uint8 -> actions [N] int64."""
        noise = taus = None
        if self.noisy:
            noise = self.network.sample_noise(self.generator, rows=len(stacks))
            taus = self.network.sample_taus("policy", len(stacks), self.generator)
        q = self.network.q_values(torch.as_tensor(stacks, device=self.device), noise, taus)
        actions: npt.NDArray[np.int64] = q.argmax(dim=1).cpu().numpy()
        return actions


class EpsilonGreedy:
    """`policy`, but with probability `epsilon` any of `num_actions` actions, each as likely."""

    def __init__(self, policy: Policy, epsilon: float, num_actions: int, *, seed: int) -> None:
        self.policy = policy
        self.epsilon = epsilon
        self.num_actions = num_actions
        self.rng = np.random.default_rng(seed)

    def act(self, stacks: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """stacks [N, 4, 84, 84] uint8 -> actions [N] int64."""
        random = self.rng.integers(0, self.num_actions, len(stacks))
        explore = self.rng.random(len(stacks)) < self.epsilon
        return np.where(explore, random, self.policy.act(stacks))


@dataclass(frozen=True)
class Played:
    """A whole episode: with its game and protocol, `seed` and `actions` replay it frame by frame."""

    seed: int  # of the emulator
    score: float  # raw
    frames: int  # emulator frames acted in
    actions: tuple[int, ...]


def play_episodes(policy: Policy, envs: AtariEnvs, episodes: int) -> list[Played]:
    """Exactly `episodes` whole episodes, in the order of environment and number.

    Which episodes count is settled before the first step: environment e plays its share, however long its episodes
    are. (The first `episodes` to finish would be the short ones.) Environments that have played their share stand by.

    Args:
        policy: acts in those environments that still play.
        envs: not yet reset; N of them, of which min(N, episodes) play.
    """
    shares = [len(range(env, episodes, envs.num_envs)) for env in range(envs.num_envs)]
    played: list[list[Played]] = [[] for _ in shares]
    actions_of: list[list[int]] = [[] for _ in shares]
    stack = FrameStack(envs.num_envs, STACK)
    frames, first = envs.reset(), np.ones(envs.num_envs, dtype=bool)
    while playing := [env for env, share in enumerate(shares) if len(played[env]) < share]:
        stacks = stack.push(frames, first)
        actions = np.zeros(envs.num_envs, dtype=np.int64)
        actions[playing] = policy.act(stacks[playing])
        for env in playing:
            actions_of[env].append(int(actions[env]))
        step = envs.step(actions)
        for env, score, length in step.episodes:
            if len(played[env]) < shares[env]:
                seed = episode_seed(envs.seed, env, len(played[env]))
                played[env].append(Played(seed, score, length, tuple(actions_of[env])))
                actions_of[env].clear()
        frames, first = step.frames, step.ended
    return [episode for of_env in played for episode in of_env]


@dataclass(frozen=True)
class Evaluator:
    """Scores a network during its training, every `every` emulator frames, and leaves the training as it was.

    It plays a copy of the network, in environments of its own, under generators of its own: a run with evaluations has
    the same weights, to the bit, as one without. Each evaluation has new seeds.

    Attributes:
        every: emulator frames of the run between two evaluations.
        episodes: whole episodes an evaluation, `num_envs` at a time.
        epsilon, noisy: share of uniformly random actions; whether noisy layers are.
    """

    every: int
    episodes: int
    num_envs: int
    protocol: atari.Protocol
    epsilon: float
    noisy: bool
    seed: int

    def is_due(self, before: int, now: int) -> bool:
        """Whether a multiple of `every` lies in (before, now], in emulator frames."""
        return now // self.every > before // self.every

    def __call__(self, network: QNetwork, game: str, frames: int) -> list[Played]:
        """Play `game`; `frames` is the run's clock, from which the seeds follow."""
        env_seed, noise_seed, exploration_seed = (
            int(word) for word in np.random.SeedSequence([self.seed, frames]).generate_state(3)
        )
        envs = AtariEnvs(game, min(self.num_envs, self.episodes), self.protocol, seed=env_seed)
        greedy = NetworkPolicy(copy.deepcopy(network).eval(), noisy=self.noisy, seed=noise_seed)
        try:
            policy = EpsilonGreedy(greedy, self.epsilon, envs.num_actions, seed=exploration_seed)
            return play_episodes(policy, envs, self.episodes)
        finally:
            envs.close()
