"""The interface between a learner and what it plays: N environments that step together.

`VectorEnv` plays one task. `TaskStream` plays one task after another; a single task is a stream of one visit. The
trainer, the collector and the evaluation know these two and nothing else about an environment.

    frame        one tick of what is played; the clock of a run counts frames
    agent step   one action in one environment: `frame_skip` frames
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Observations = npt.NDArray[Any]
"""[N, *observation_shape] of the environment's dtype: one observation an environment, unstacked."""
Frames = npt.NDArray[np.uint8]
"""[N, H, W]: observations that are grey pictures."""
Flags = npt.NDArray[np.bool_]
"""[N]"""
Actions = npt.NDArray[np.int64]
"""[N]"""


class Episode(NamedTuple):
    """A finished episode, whatever lives were lost in it."""

    env: int  # 0 to N - 1
    score: float  # sum of unclipped rewards
    frames: int


class Step(NamedTuple):
    """What one action in each of N environments led to."""

    observations: Observations  # [N, ...]: what to act on next; the first of a new episode where one ended
    last_observations: Observations  # [N, ...]: what the action led to; differs only where an episode ended
    rewards: npt.NDArray[np.float32]  # [N], raw
    discounts: npt.NDArray[np.float32]  # [N]: 0 at a terminal state and, if the protocol says so, a lost life; else 1
    terminated: Flags  # [N]: the episode ended by itself
    ended: Flags  # [N]: terminated, or truncated by a time limit or a task switch
    episodes: list[Episode]  # that ended in this step; an episode cut by a task switch is left out


class Visit(NamedTuple):
    """One stay in one task."""

    number: int  # in the run, from 0
    task: str
    cycle: int  # how often the list of tasks was gone through before, from 0
    begin: int  # first frame of the run that belongs to it
    end: int


class VectorEnv(Protocol):
    """N environments of one task that step together.

    Attributes:
        num_envs: N.
        num_actions: actions are 0 to num_actions - 1.
        observation_shape, observation_dtype: of one observation, unstacked.
        stack: newest observations that a network sees at a time; 1 where one observation says everything.
        frame_skip: frames to an agent step.
    """

    num_envs: int
    num_actions: int
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype[Any]
    stack: int
    frame_skip: int

    def reset(self) -> Observations:
        """Begin an episode in every environment."""

    def step(self, actions: Actions) -> Step:
        """One agent step in every environment; where an episode ends, the next begins at once."""

    def send(self, actions: Actions) -> None:
        """First half of `step`. The environments may play in threads of their own until `recv`."""

    def recv(self) -> Step:
        """Second half of `step`."""

    def episode_seed(self, env: int, episode: int) -> int:
        """Seed of the `episode`-th episode of environment `env`; with its actions it replays the episode."""

    def extra_scores(self, score: float) -> dict[str, float]:
        """A mean score on other scales, by their names, for example {"human_normalized": 0.8}; {} without any."""

    def state_dict(self) -> dict[str, Any]:
        """State between two steps: dicts, lists, arrays and numbers. Episodes go on in the middle."""

    def load_state_dict(self, state: Mapping[str, Any]) -> Observations:
        """Into a new object of the same settings: the observations to act on. Raises ValueError for other settings."""

    def close(self) -> None:
        """Free processes, threads and emulators."""


class TaskStream(VectorEnv, Protocol):
    """Tasks one after another, all with the same observations and actions.

    A switch happens in the first step that reaches the end of a visit: it ends every episode and keeps their discounts.

    Attributes:
        visits: the plan.
        visit: the one that is played.
    """

    visits: Sequence[Visit]
    visit: Visit

    @property
    def switch_is_due(self) -> bool:
        """True only right after loading the state of a stream that had ended, into a longer one."""

    def switch(self) -> Observations:
        """Begin the next visit: its first observations."""
