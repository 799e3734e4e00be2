"""N gymnasium environments of one task that step together (a `VectorEnv`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from nap_rl.envs.atari import EmulatorError, episode_seed
from nap_rl.envs.step import Actions, Episode, Flags, Observations, Step
from nap_rl.envs.task import Task


class GymnasiumEnvs:
    """N environments of `task`, stepped by gymnasium's `SyncVectorEnv`. An agent step is one frame.

    Every episode has a seed of its own, so that it is a function of the task, its seed and its actions. Observations
    keep the dtype uint8 (pixels) or int8; bool becomes int8, everything else float32.

    Args:
        seed: with the environment's index and the number of its episode, seeds that episode.
        stack: newest observations that a network sees at a time.
        channels_first: whether observations of three axes are [channels, H, W] already; else they are [H, W, channels]
            and are moved.

    Raises:
        ValueError: the task cannot be opened, or num_envs < 1.
    """

    frame_skip = 1

    def __init__(
        self, task: Task, num_envs: int, *, seed: int = 0, stack: int = 1, channels_first: bool = False
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"env.num_envs is {num_envs}, expected 1 or more")
        self.task = task
        self.num_envs = num_envs
        self.seed = seed
        self.stack = stack
        self._envs = SyncVectorEnv([task.open] * num_envs, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        observations, actions = self._envs.single_observation_space, self._envs.single_action_space
        assert isinstance(observations, Box) and isinstance(actions, Discrete)
        self.num_actions = int(actions.n)
        self._first_action = int(actions.start)
        self._moved = len(observations.shape) == 3 and not channels_first
        shape = observations.shape
        self.observation_shape = (shape[2], *shape[:2]) if self._moved else shape
        self.observation_dtype = stored_dtype(observations.dtype)
        self._episodes = np.zeros(num_envs, dtype=np.int64)  # begun so far
        self._scores = np.zeros(num_envs)
        self._actions: list[list[int]] = [[] for _ in range(num_envs)]  # of the running episode
        self._sent: Actions = np.zeros(num_envs, dtype=np.int64)

    def reset(self) -> Observations:
        """Begin an episode in every environment."""
        return self._begin(np.ones(self.num_envs, dtype=bool))

    def step(self, actions: Actions) -> Step:
        """One agent step with actions [N]; where an episode ends, the next begins at once."""
        self.send(actions)
        return self.recv()

    def send(self, actions: Actions) -> None:
        """The first half of `step`: keep the actions. Raises ValueError for an action that there is not."""
        actions = np.asarray(actions, dtype=np.int64)
        if not 0 <= actions.min() <= actions.max() < self.num_actions:
            raise ValueError(f"actions {actions.tolist()} of {self.task.name}, expected 0 to {self.num_actions - 1}")
        self._sent = actions.copy()

    def recv(self) -> Step:
        """The second half of `step`: play them."""
        shown, rewards, terminated, truncated, _ = self._guarded(self._envs.step, self._sent + self._first_action)
        last_observations = self._stored(shown)
        rewards, terminated = rewards.copy(), terminated.copy()
        for played, action in zip(self._actions, self._sent.tolist(), strict=True):
            played.append(action)
        self._scores += rewards
        ended: Flags = terminated | truncated
        episodes = [
            Episode(int(env), float(self._scores[env]), len(self._actions[env])) for env in np.flatnonzero(ended)
        ]
        return Step(
            observations=self._begin(ended) if ended.any() else last_observations,
            last_observations=last_observations,
            rewards=rewards.astype(np.float32),
            discounts=(~terminated).astype(np.float32),
            terminated=terminated,
            ended=ended,
            episodes=episodes,
        )

    def episode_seed(self, env: int, episode: int) -> int:
        """Seed that `reset` gets for the `episode`-th episode of environment `env`."""
        return episode_seed(self.seed, env, episode)

    def extra_scores(self, score: float) -> dict[str, float]:
        """{}: there are no other scales."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Number and actions of each running episode, which is a function of both."""
        return {
            "episodes": self._episodes.tolist(),
            "lengths": [len(played) for played in self._actions],
            "actions": np.array([action for played in self._actions for action in played], dtype=np.int32),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Observations:
        """Play the running episodes again from their seeds: the observations to act on.

        At most `task.max_episode_steps` steps an environment. Raises ValueError for another number of environments.
        """
        if len(state["lengths"]) != self.num_envs:
            raise ValueError(f"env.num_envs is {self.num_envs}, but {len(state['lengths'])} environments were saved")
        running = np.split(np.asarray(state["actions"]), np.cumsum(state["lengths"])[:-1])
        self._episodes[:] = np.array(state["episodes"]) - 1
        observations = self.reset()
        for env, actions in enumerate(running):
            for action in actions.tolist():
                shown, reward, *_ = self._guarded(self._envs.envs[env].step, np.int64(action + self._first_action))
                self._scores[env] += reward
                self._actions[env].append(action)
                observations[env] = self._stored(np.asarray(shown)[None])[0]
        return observations

    def close(self) -> None:
        """Close the environments. Closing twice is harmless."""
        self._envs.close()

    def _begin(self, mask: Flags) -> Observations:
        """Begin new episodes where `mask`; the other environments show what they showed."""
        seeds: list[int | None] = [None] * self.num_envs
        for env in np.flatnonzero(mask):
            seeds[env] = self.episode_seed(int(env), int(self._episodes[env]))
            self._actions[env].clear()
        self._episodes[mask] += 1
        self._scores[mask] = 0.0
        shown, _ = self._guarded(self._envs.reset, seed=seeds, options={"reset_mask": mask})
        return self._stored(shown)

    def _stored(self, shown: npt.NDArray[Any]) -> Observations:
        """A copy [N, *observation_shape] of what the environments show, whose buffer is written again."""
        moved = np.moveaxis(shown, -1, 1) if self._moved else shown
        return np.array(moved, dtype=self.observation_dtype, order="C")

    def _guarded(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The call's result. Raises EmulatorError, which names every episode, for whatever an environment raises."""
        try:
            return call(*arguments, **options)
        except Exception as error:
            playing = [
                f"environment {env}: seed {self.episode_seed(env, int(episode) - 1)}, step {len(played)}"
                for env, (episode, played) in enumerate(zip(self._episodes, self._actions, strict=True))
            ]
            raise EmulatorError(f"an environment of {self.task.name} failed ({'; '.join(playing)}): {error}") from error


def stored_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype in which observations are kept: uint8 for pixels, int8 for bits, float32 for everything else."""
    if dtype == np.uint8:
        return np.dtype(np.uint8)
    return np.dtype(np.int8 if dtype in (np.bool_, np.int8) else np.float32)
