"""Prioritised replay for SB3's DQN (Schaul et al. 2016, arXiv 1511.05952, proportional variant).

    P(i) ~ |delta_i|^alpha          alpha: `priority_exponent`
    w_i  = P(i)^-beta / max_k P(k)^-beta      beta: `importance`, over the batch's k

`PrioritizedReplayBuffer` draws by P and gives w. `PrioritizedDQN` weighs its loss by w and writes |delta| back.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from nap_rl.agents import Diverged
from nap_rl.replay import Priorities
from nap_rl.schedules import Linear

Indices = npt.NDArray[np.int64]


class PrioritizedSamples(NamedTuple):
    """SB3's `ReplayBufferSamples`, with weights and slots."""

    observations: Tensor  # [B, *shape]
    actions: Tensor  # [B, 1]
    next_observations: Tensor  # [B, *shape]: m steps later, m <= n_steps
    dones: Tensor  # [B, 1] float32: 1 where a terminal state, not a time limit, came first
    rewards: Tensor  # [B, 1] float32: sum_{j<m} gamma^j reward_j
    discounts: Tensor | None  # [B, 1] float32: gamma^m; None for n_steps = 1
    weights: Tensor  # [B, 1] float32: importance weights, the largest is 1
    slots: Tensor  # [B] int64 on the CPU: for `update_priorities`


class PrioritizedReplayBuffer(ReplayBuffer):
    """SB3's replay buffer with prioritised sampling; n-step returns are those of its `NStepReplayBuffer`.

    For `PrioritizedDQN`. SB3's own DQN takes it too, but writes no priorities, and so samples uniformly.

    Args:
        buffer_size, observation_space, action_space, device, n_envs: as in `ReplayBuffer`; any space but a Dict.
        optimize_memory_usage, handle_timeout_termination: as in `ReplayBuffer`; the first with one-step returns alone.
        n_steps, gamma: length and discount of the returns; gamma is not read for n_steps = 1.
        priority_exponent: alpha; 0 samples uniformly.
        importance_initial, importance_final: beta, which `PrioritizedDQN` moves linearly over `learn`.
        uniform_probability: share of uniform draws, so that a priority of zero is sampled too.

    Attributes:
        importance: beta of the next sample.

    Raises:
        ValueError: a setting out of its range, or a Dict of observations.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        priority_exponent: float = 0.6,
        importance_initial: float = 0.4,
        importance_final: float = 1.0,
        uniform_probability: float = 1e-3,
    ) -> None:
        if isinstance(observation_space, spaces.Dict):
            raise ValueError(
                "PrioritizedReplayBuffer takes no Dict of observations: "
                "use nap_rl.sb3.Rainbow('MultiInputPolicy', env), or flatten them"
            )
        if type(n_steps) is not int or n_steps < 1:
            raise ValueError(f"n_steps={n_steps!r:.60}, expected a whole number of 1 or more")
        if optimize_memory_usage and n_steps > 1:
            raise ValueError(f"optimize_memory_usage=True with n_steps={n_steps}, expected n_steps=1")
        for name, value in (("importance_initial", importance_initial), ("importance_final", importance_final)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value!r:.60}, expected a number in [0, 1]")
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage,
            handle_timeout_termination,
        )
        self.n_steps = n_steps
        self.gamma = gamma
        self.importance_exponent = Linear(importance_initial, importance_final)
        self.importance = importance_initial
        # Slot of (time t, environment e): t * n_envs + e.
        self.priorities = Priorities(
            self.buffer_size * n_envs, exponent=priority_exponent, uniform_probability=uniform_probability
        )
        self.largest_priority = torch.ones(())
        self._samples_without_update = 0

    def reset(self) -> None:
        """Forget every transition and priority."""
        super().reset()
        self.priorities.clear()
        self.largest_priority.fill_(1.0)

    def add(
        self,
        obs: npt.NDArray[Any],
        next_obs: npt.NDArray[Any],
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """A step of every environment, with the largest priority so far (1 at first)."""
        written = self._slots(self.pos)
        super().add(obs, next_obs, action, reward, done, infos)
        self.priorities.write(written, self.largest_priority, np.ones(self.n_envs, dtype=bool))
        if self.optimize_memory_usage:  # `next_obs` lies where the oldest observation was
            self.priorities.write(self._slots(self.pos), self.largest_priority, np.zeros(self.n_envs, dtype=bool))

    def sample(  # type: ignore[override]  # fields of SB3's tuple, and two more
        self, batch_size: int, env: VecNormalize | None = None
    ) -> PrioritizedSamples:
        """`batch_size` transitions, drawn with replacement; `env` normalises them as in `ReplayBuffer`.

        Raises ValueError where nothing is stored. Warns once where two samples come without `update_priorities`.
        """
        if not float(self.priorities.valid_counts.sum()):
            raise ValueError("the replay buffer holds no transition that can be sampled yet")
        self._samples_without_update += 1
        if self._samples_without_update == 2:
            warnings.warn(
                "PrioritizedReplayBuffer is sampled uniformly, because nothing updates its priorities: "
                "use nap_rl.sb3.PrioritizedDQN instead of DQN",
                stacklevel=2,
            )
        slots, probabilities = self.priorities.sample(batch_size)
        weights = (probabilities / probabilities.min()).pow(-self.importance)  # of P / min P: no number overflows
        times, envs = (part.numpy() for part in (slots // self.n_envs, slots % self.n_envs))
        return self._gather(times, envs, env, weights.unsqueeze(1), slots)

    def update_priorities(self, slots: Tensor, priorities: Tensor) -> None:
        """New raw priorities |delta|, any shape of B numbers, of the slots [B] of the newest sample.

        Raises ValueError for NaN and infinity.
        """
        raw = priorities.detach().reshape(-1).to("cpu", torch.float32).abs()
        if not raw.isfinite().all():
            raise ValueError(f"a priority is {float(raw[~raw.isfinite()][0])}, expected finite numbers")
        keep = self.priorities.is_valid(slots)
        self.largest_priority.copy_(torch.maximum(self.largest_priority, torch.where(keep, raw, 0.0).max()))
        self.priorities.update(slots, raw, keep)
        self._samples_without_update = 0

    def _gather(
        self, times: Indices, envs: Indices, env: VecNormalize | None, weights: Tensor, slots: Tensor
    ) -> PrioritizedSamples:
        """Returns up to n_steps later, fewer at an episode's end and at the newest transition."""
        steps = (times[:, None] + np.arange(self.n_steps)) % self.buffer_size  # [B, n]
        at = steps, envs[:, None]
        ends = (self.dones[at] > 0) | (self.timeouts[at] > 0) | (steps == (self.pos - 1) % self.buffer_size)
        last = np.where(ends.any(axis=1), ends.argmax(axis=1), self.n_steps - 1)  # m - 1
        powers = (self.gamma ** np.arange(self.n_steps)).astype(np.float32)
        rewards = self._normalize_reward(self.rewards[at], env) * powers * (np.arange(self.n_steps) <= last[:, None])
        end = steps[np.arange(len(times)), last], envs
        if self.optimize_memory_usage:
            next_obs = self.observations[(end[0] + 1) % self.buffer_size, envs]
        else:
            next_obs = self.next_observations[end]
        discounts = None
        if self.n_steps > 1:
            discounts = self.to_torch((self.gamma ** (last + 1.0)).astype(np.float32)[:, None])
        return PrioritizedSamples(
            self.to_torch(self._normalize_obs(self.observations[times, envs], env)),  # type: ignore[arg-type]
            self.to_torch(self.actions[times, envs]),
            self.to_torch(self._normalize_obs(next_obs, env)),  # type: ignore[arg-type]
            self.to_torch((self.dones[end] * (1 - self.timeouts[end]))[:, None]),
            self.to_torch(rewards.sum(axis=1, keepdims=True)),
            discounts,
            weights.to(self.device),
            slots,
        )

    def _slots(self, time: int) -> Indices:
        return time * self.n_envs + np.arange(self.n_envs)


class PrioritizedDQN(DQN):
    """SB3's DQN over a `PrioritizedReplayBuffer`: the same arguments, `save`, `load` and callbacks.

    loss = mean_i w_i huber(delta_i), and |delta_i| is the next priority of transition i. With all priorities equal,
    the updates are DQN's.

        PrioritizedDQN("MlpPolicy", env, n_steps=3, replay_buffer_kwargs={"priority_exponent": 0.5})

    Args:
        n_steps: of the returns; takes effect here, beside a buffer class of one's own.
        replay_buffer_class: `PrioritizedReplayBuffer` (the default) or a subclass.
        replay_buffer_kwargs: its settings.

    Raises:
        ValueError: another buffer class, or what `PrioritizedReplayBuffer` refuses.
        Diverged: in `learn`, the loss is NaN or infinite.
    """

    replay_buffer: PrioritizedReplayBuffer

    def _setup_model(self) -> None:
        self.replay_buffer_class = self.replay_buffer_class or PrioritizedReplayBuffer
        if not issubclass(self.replay_buffer_class, PrioritizedReplayBuffer):
            name = self.replay_buffer_class.__name__
            raise ValueError(f"replay_buffer_class is {name}, expected PrioritizedReplayBuffer")
        # SB3 gives n_steps to its own buffer alone, and warns where the class is another's.
        n_steps, kwargs = self.n_steps, self.replay_buffer_kwargs
        self.replay_buffer_kwargs = {"n_steps": n_steps, "gamma": self.gamma, **kwargs}
        self.n_steps = 1
        super()._setup_model()
        self.n_steps, self.replay_buffer_kwargs = n_steps, kwargs

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """DQN's updates, with weights in the loss and priorities written back."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        buffer, losses = self.replay_buffer, []
        buffer.importance = buffer.importance_exponent(min(1.0 - self._current_progress_remaining, 1.0))
        for _ in range(gradient_steps):
            batch = buffer.sample(batch_size, env=self._vec_normalize_env)
            discounts = self.gamma if batch.discounts is None else batch.discounts
            with torch.no_grad():
                next_values = self.q_net_target(batch.next_observations).max(dim=1, keepdim=True).values
                targets = batch.rewards + (1 - batch.dones) * discounts * next_values  # [B, 1]
            values = self.q_net(batch.observations).gather(1, batch.actions.long())  # [B, 1]
            loss = (batch.weights * F.smooth_l1_loss(values, targets, reduction="none")).mean()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise Diverged(f"diverged at step {self.num_timesteps}: the loss is {losses[-1]}")
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            buffer.update_priorities(batch.slots, targets - values)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(losses))
        self.logger.record("train/importance_exponent", buffer.importance)
