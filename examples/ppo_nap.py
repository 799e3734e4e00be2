"""PPO with Normalize-and-Project on CartPole, in one file: python examples/ppo_nap.py --steps 100000

The algorithm is PPO (Schulman et al. 2017, arXiv 1707.06347) with a network for the policy and one for the values. The
lines that end in `# NaP: ...` are all that Normalize-and-Project adds.
"""

from __future__ import annotations

import argparse
from collections import deque
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor, nn
from torch.distributions import Categorical

from nap_rl.nap import Projector, normalize

NUM_ENVS, ROLLOUT, EPOCHS, MINIBATCHES = 4, 128, 4, 4
LEARNING_RATE, GAMMA, GAE_LAMBDA = 2.5e-4, 0.99, 0.95
CLIP, VALUE_COEFFICIENT, ENTROPY_COEFFICIENT, MAX_GRAD_NORM = 0.2, 0.5, 0.01, 0.5


class ActorCritic(nn.Module):
    """Observations [B, D] -> (logits [B, A], values [B])."""

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.actor = self.perceptron(observations, actions)
        self.critic = self.perceptron(observations, 1)

    def perceptron(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(observations), self.critic(observations).squeeze(-1)


class Rollout(NamedTuple):
    """[T, N] each, and s [T, N, D]."""

    s: Tensor
    a: Tensor
    log_prob: Tensor
    advantage: Tensor
    returns: Tensor


def collect(envs: Any, network: ActorCritic, s: Tensor, scores: deque[float]) -> tuple[Rollout, Tensor]:
    """ROLLOUT steps of all environments from `s` on, with advantages (GAE); and where they ended."""
    steps: list[tuple[Tensor, ...]] = []
    for _ in range(ROLLOUT):
        with torch.no_grad():
            logits, v = network(s)
        policy = Categorical(logits=logits)
        a = policy.sample()
        observations, rewards, terminated, truncated, info = envs.step(a.numpy())
        r = torch.as_tensor(rewards, dtype=torch.float32)
        if truncated.any():  # the episode would have gone on: its value stands for the rest
            last = torch.as_tensor(np.stack(info["final_obs"][truncated]))
            with torch.no_grad():
                r[torch.as_tensor(truncated)] += GAMMA * network(last)[1]
        if "episode" in info:
            scores.extend(info["episode"]["r"][info["_episode"]].tolist())
        ended = torch.as_tensor(terminated | truncated, dtype=torch.float32)
        steps.append((s, a, policy.log_prob(a), v, r, ended))
        s = torch.as_tensor(observations)
    s_t, a_t, log_prob, v_t, r_t, ended_t = (torch.stack(column) for column in zip(*steps, strict=True))
    with torch.no_grad():
        v_next = network(s)[1]
    advantage, running = torch.zeros_like(r_t), torch.zeros(len(v_next))
    for t in reversed(range(ROLLOUT)):
        delta = r_t[t] + GAMMA * v_next * (1 - ended_t[t]) - v_t[t]
        running = delta + GAMMA * GAE_LAMBDA * (1 - ended_t[t]) * running
        advantage[t], v_next = running, v_t[t]
    return Rollout(s_t, a_t, log_prob, advantage, advantage + v_t), s


def loss_of(network: ActorCritic, batch: Rollout) -> Tensor:
    """PPO's clipped loss of a minibatch, a scalar."""
    logits, v = network(batch.s)
    policy = Categorical(logits=logits)
    ratio = (policy.log_prob(batch.a) - batch.log_prob).exp()
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    policy_loss = -torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
    value_loss = 0.5 * (v - batch.returns).square().mean()
    return policy_loss + VALUE_COEFFICIENT * value_loss - ENTROPY_COEFFICIENT * policy.entropy().mean()


def train(steps: int, seed: int, nap: bool) -> float:
    """The mean return of the last 100 episodes."""
    torch.manual_seed(seed)
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    vector = gymnasium.make_vec("CartPole-v1", NUM_ENVS, vectorization_mode="sync", vector_kwargs=same_step)
    envs: Any = RecordEpisodeStatistics(vector)
    s = torch.as_tensor(envs.reset(seed=seed)[0])
    network = ActorCritic(envs.single_observation_space.shape[0], int(envs.single_action_space.n))
    if nap:
        normalize(network, s)  # NaP: a LayerNorm in front of every nonlinearity
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, eps=1e-5)
    projector = Projector(network, optimizer) if nap else None  # NaP: from now on optimizer.step() projects
    scores: deque[float] = deque(maxlen=100)
    rollouts = max(steps // (NUM_ENVS * ROLLOUT), 1)
    for number in range(rollouts):
        for group in optimizer.param_groups:
            # With NaP the learning rate falls by its schedule alone: growing weights do not lower it.
            group["lr"] = LEARNING_RATE * (1 - number / rollouts)
        rollout, s = collect(envs, network, s, scores)
        flat = Rollout(*(column.flatten(0, 1) for column in rollout))
        for _ in range(EPOCHS):
            for rows in torch.randperm(NUM_ENVS * ROLLOUT).chunk(MINIBATCHES):
                optimizer.zero_grad()
                loss_of(network, Rollout(*(column[rows] for column in flat))).backward()
                nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM)
                optimizer.step()
        if (number + 1) % 10 == 0 or number + 1 == rollouts:
            drift = "" if projector is None else f", norm drift {float(projector.max_relative_drift()):.1e}"
            mean = np.mean(scores) if scores else float("nan")
            print(f"{(number + 1) * NUM_ENVS * ROLLOUT:,} steps: mean return {mean:.1f}{drift}", flush=True)
    envs.close()
    return float(np.mean(scores)) if scores else float("nan")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="of all environments together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-nap", action="store_true", help="the same without Normalize-and-Project")
    typed = parser.parse_args()
    torch.set_num_threads(1)  # small networks: more threads only wait for each other
    train(typed.steps, typed.seed, nap=not typed.no_nap)
