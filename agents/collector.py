"""Plays N environments with an agent and stores every transition in the agent's replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nap_rl.agents.frame_stack import FrameStack
from nap_rl.agents.value_agent import ValueAgent
from nap_rl.envs.step import Actions, Flags, Observations, Step, TaskStream


class Collector:
    """Steps and stores: `stacks`, `send`, then `recv`. In between, the environments may play in threads of their own.

    Raises:
        ValueError: the agent's replay is of other observations than the environment's.

    Attributes:
        agent_steps: transitions so far, over all environments.
        observations: what to act on next.
        first: where that begins an episode.
    """

    def __init__(self, env: TaskStream, agent: ValueAgent) -> None:
        replay = agent.replay
        shapes = (env.stack, *env.observation_shape), (replay.stack, *replay.frames.shape[1:])
        if shapes[0] != shapes[1]:
            raise ValueError(f"the environment shows stacks of shape {shapes[0]}, the replay holds {shapes[1]}")
        self.env = env
        self.agent = agent
        self.stack = FrameStack.of(env)
        self.agent_steps = 0
        self.observations: Observations = self.stack.stacks[:, -1].copy()
        self.first: Flags = np.ones(env.num_envs, dtype=bool)
        self._actions: Actions = np.zeros(env.num_envs, dtype=np.int64)

    @property
    def frames(self) -> int:
        """Frames played, over all environments."""
        return self.agent_steps * self.env.frame_skip

    def begin(self) -> None:
        """Begin the first episodes."""
        self.observations = self.env.reset()

    def stacks(self) -> Observations:
        """[N, C, *frame]: what to act on. Once before each `send`."""
        return self.stack.push(self.observations, self.first)

    def send(self, actions: Actions) -> None:
        """Begin a step of the environments."""
        self._actions = actions
        self.env.send(actions)
        self.agent_steps += self.env.num_envs

    def recv(self) -> Step:
        """End the step and store it."""
        step, replay = self.env.recv(), self.agent.replay
        replay.add(self.observations, self._actions, step.rewards, step.discounts, self.first)
        if step.ended.any():
            envs = np.flatnonzero(step.ended)
            replay.end_episode(step.last_observations[envs], envs)
        self.observations, self.first = step.observations, step.ended
        return step

    def switch(self) -> None:
        """End all episodes and begin the next visit, where a stream goes on that had ended here."""
        running = np.flatnonzero(~self.first)
        self.agent.replay.end_episode(self.observations[running], running)
        self.observations, self.first = self.env.switch(), np.ones(self.env.num_envs, dtype=bool)

    def state_dict(self) -> dict[str, Any]:
        """State between two steps, without the environment's and the replay's."""
        return {
            "agent_steps": self.agent_steps,
            "frames": self.observations,
            "first": self.first,
            "stacks": self.stack.stacks,
        }

    def load_state_dict(self, state: Mapping[str, Any], env: Mapping[str, Any]) -> None:
        """Go on from `state`, and the environment from `env`.

        Raises:
            ValueError: the environment does not show what it showed.
        """
        self.observations, self.first = self.env.load_state_dict(env), state["first"].numpy().copy()
        if not np.array_equal(self.observations, state["frames"]):
            raise ValueError(
                "the emulators do not show what they showed at the checkpoint: is ale-py of another version?"
            )
        self.stack.stacks[:] = state["stacks"]
        self.agent_steps = state["agent_steps"]
