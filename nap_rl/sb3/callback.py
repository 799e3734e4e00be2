"""Normalize-and-Project for the algorithms of Stable-Baselines3: DQN, QR-DQN, PPO, A2C, SAC (and TD3, DDPG)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor, nn

from nap_rl.nap import Projector, normalize
from nap_rl.nap.project import Affine

# What policies of SB3 build their networks with, each before its optimiser.
MAKERS = ("make_q_net", "make_quantile_net", "make_actor", "make_critic")


def nap_policy(algorithm: type[BaseAlgorithm], policy: str, **options: Any) -> type[BasePolicy]:
    """The policy class of that name with normalisations in front of every nonlinearity.

        model = PPO(nap_policy(PPO, "MlpPolicy"), env)
        model.learn(100_000, callback=NaPCallback())

    The norms are in the networks before the optimiser is made, so that it owns their gains and offsets.

    Args:
        algorithm: such as stable_baselines3.DQN.
        policy: "MlpPolicy" or "CnnPolicy".
        options: of `nap_rl.nap.normalize`: norm, axes, affine.

    Raises:
        ValueError: the algorithm has no such policy.
    """
    if policy not in algorithm.policy_aliases or "MultiInput" in policy:
        raise ValueError(f"{algorithm.__name__} has no policy '{policy}' here: use MlpPolicy or CnnPolicy")
    base = algorithm.policy_aliases[policy]
    makers: dict[str, Callable[..., Any]] = {
        name: _normalizing(getattr(base, name), options) for name in MAKERS if hasattr(base, name)
    }
    if issubclass(base, ActorCriticPolicy):
        makers["_build"] = _building_normalized(base._build, options)
    return type(f"NaP{base.__name__}", (base,), makers)


class NaPCallback(BaseCallback):
    """Projects, after every step of each optimiser, the weights that this optimiser owns.

    Give it to `learn`, with a policy of `nap_policy`. The initial norms are those at the start of the first `learn`.

    Args:
        every: updates between two projections.
        affine: of gains and offsets: "regularize", "project" or "free"; see `nap_rl.nap.Projector`.

    Attributes:
        projectors: one for each optimiser, by the name of its module ("policy", "actor", "critic").

    Raises:
        ValueError: at the start of `learn`, if the policy has no normalisations.
    """

    def __init__(self, every: int = 1, affine: Affine = "regularize", verbose: int = 0) -> None:
        super().__init__(verbose)
        self.every = every
        self.affine: Affine = affine
        self.projectors: dict[str, Projector] = {}

    def _on_training_start(self) -> None:
        if self.projectors:
            return
        for name, module in {"policy": self.model.policy, **dict(self.model.policy.named_children())}.items():
            optimizer = getattr(module, "optimizer", None)
            if isinstance(optimizer, torch.optim.Optimizer):
                try:
                    self.projectors[name] = Projector(module, optimizer, every=self.every, affine=self.affine)
                except ValueError as error:
                    kind = type(self.model).__name__
                    raise ValueError(
                        f"NaPCallback cannot project the {name} of {kind}: {error} Make the model with "
                        f"{kind}(nap_policy({kind}, 'MlpPolicy'), env), say."
                    ) from None

    def _on_rollout_end(self) -> None:
        self.logger.record("nap/norm_drift", self.max_relative_drift())

    def _on_step(self) -> bool:
        return True

    def max_relative_drift(self) -> float:
        """The largest | ||W|| / ||W_0|| - 1 | of all that is projected."""
        return max(float(projector.max_relative_drift()) for projector in self.projectors.values())


class _ActorAndCritic(nn.Module):
    """One pass through an ActorCriticPolicy: means or logits of the actions, and values, without a draw."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        policy = self.policy
        features = policy.extract_features(observation)
        if policy.share_features_extractor:
            pi, vf = policy.mlp_extractor(features)
        else:
            pi, vf = policy.mlp_extractor.forward_actor(features[0]), policy.mlp_extractor.forward_critic(features[1])
        return policy.action_net(pi), policy.value_net(vf)


class _Means(nn.Module):
    """One pass through SAC's actor: means and log standard deviations, without a draw."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std, _ = self.actor.get_action_dist_params(observation)
        return mean, log_std


def _normalizing(make: Callable[..., nn.Module], options: dict[str, Any]) -> Callable[..., nn.Module]:
    def made(self: BasePolicy, *args: Any, **kwargs: Any) -> nn.Module:
        network = make(self, *args, **kwargs)
        if make.__name__ == "make_critic":
            normalize(network, (_example(self.observation_space), _example(self.action_space)), **options)
        elif hasattr(network, "get_action_dist_params"):
            normalize(_Means(network), _example(self.observation_space), **options)
        else:
            normalize(network, _example(self.observation_space), **options)
        return network

    return made


def _building_normalized(build: Callable[..., None], options: dict[str, Any]) -> Callable[..., None]:
    def built(self: ActorCriticPolicy, lr_schedule: Callable[[float], float]) -> None:
        build(self, lr_schedule)
        normalize(_ActorAndCritic(self), _example(self.observation_space), **options)
        # The one that was just made knows neither the norms nor that biases are gone.
        optimizer_class: Callable[..., torch.optim.Optimizer] = self.optimizer_class
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    return built


def _example(space: spaces.Space[Any]) -> Tensor:
    """A few samples, drawn from a copy of the space: the space's own generator is SB3's."""
    if not isinstance(space, spaces.Box):
        raise ValueError(f"nap_policy needs observations (and for SAC, actions) of a Box, not {space}")
    drawn = copy.deepcopy(space)
    drawn.seed(0)
    return torch.as_tensor(np.stack([drawn.sample() for _ in range(4)]))
