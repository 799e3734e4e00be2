"""Stable-Baselines3's PPO with Normalize-and-Project on CartPole: python examples/sb3_nap.py --steps 100000

Two changes to a script of SB3: the policy comes from `nap_policy`, and `learn` gets a `NaPCallback`.
"""

from __future__ import annotations

import argparse

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from nap_rl.sb3 import NaPCallback, nap_policy


def linear(progress_remaining: float) -> float:
    """The learning rate. NaP keeps the effective rate equal to it, so it has to fall by itself."""
    return 1e-3 * progress_remaining


def train(steps: int, seed: int) -> float:
    """The mean return over 20 episodes of the trained policy."""
    env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
    policy = nap_policy(PPO, "MlpPolicy")  # a norm in front of every nonlinearity
    model = PPO(policy, env, n_steps=128, batch_size=256, learning_rate=linear, seed=seed, device="cpu")
    callback = NaPCallback(affine="regularize")  # projects after each step; the paper's choice for Tanh
    model.learn(steps, callback=callback)
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=20)
    print(f"return {mean:.1f} +- {deviation:.1f}, largest norm drift {callback.max_relative_drift():.1e}")
    env.close()
    return float(mean)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000, help="of all environments together")
    parser.add_argument("--seed", type=int, default=0)
    typed = parser.parse_args()
    torch.set_num_threads(1)
    train(typed.steps, typed.seed)
