"""Tasks one after another, each in environments of its own (a `TaskStream`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nap_rl.envs.step import Actions, Observations, Step, VectorEnv, Visit

Order = str  # "fixed" or "drawn"


def plan(
    tasks: Sequence[str], frames: Sequence[int], cycles: int, order: Order = "fixed", seed: int = 0
) -> list[Visit]:
    """The visits of a sequence: every task once a cycle, `frames[i]` long each, summed over all environments.

    With order="drawn" each cycle has an order of its own, drawn from `seed`.
    """
    visits: list[Visit] = []
    begin = 0
    for cycle in range(cycles):
        drawn = np.random.default_rng([seed, cycle]).permutation(len(tasks))
        for task in drawn if order == "drawn" else range(len(tasks)):
            visits.append(Visit(len(visits), tasks[task], cycle, begin, begin + frames[task]))
            begin += frames[task]
    return visits


class TaskSequence:
    """Plays the visits of a plan in turn. The last task goes on after its visit.

    A switch happens in the first step that reaches the end of a visit: it truncates every episode.

    Args:
        visits: the plan, one visit or more.
        open_visit: opens the environments of a visit. All have the same number, observations, actions and frame skip;
            seeds have to differ by visit, or the second visit of a task replays the episodes of the first.

    Raises:
        ValueError: a visit is shorter than one step, or its environments are of another shape.
    """

    def __init__(self, visits: Sequence[Visit], open_visit: Callable[[Visit], VectorEnv]) -> None:
        self.visits = visits
        self.visit = visits[0]
        self.frames = 0  # played, over all environments
        self._open_visit = open_visit
        self._envs = open_visit(self.visit)
        self.num_envs = self._envs.num_envs
        self.num_actions = self._envs.num_actions
        self.observation_shape = self._envs.observation_shape
        self.observation_dtype = self._envs.observation_dtype
        self.stack = self._envs.stack
        self.frame_skip = self._envs.frame_skip
        for visit in visits:
            if visit.end - visit.begin < self.num_envs * self.frame_skip:
                raise ValueError(
                    f"a visit of {visit.end - visit.begin} frames is less than one step of {self.num_envs} "
                    f"environments ({self.num_envs * self.frame_skip} frames)"
                )

    def reset(self) -> Observations:
        """Begin an episode of the first task in every environment."""
        return self._envs.reset()

    def step(self, actions: Actions) -> Step:
        """One agent step; at a switch every environment ends its episode and keeps its discount."""
        self.send(actions)
        return self.recv()

    def send(self, actions: Actions) -> None:
        """The first half of `step`."""
        self._envs.send(actions)

    def recv(self) -> Step:
        """The second half of `step`."""
        step = self._envs.recv()
        self.frames += self.num_envs * self.frame_skip
        if not self.switch_is_due:
            return step
        return step._replace(observations=self.switch(), ended=np.ones(self.num_envs, dtype=bool))

    @property
    def switch_is_due(self) -> bool:
        """True between steps only after loading the state of a sequence that had ended, into a longer one."""
        return self.frames >= self.visit.end and self.visit is not self.visits[-1]

    def switch(self) -> Observations:
        """Begin the next visit: its first observations."""
        self._enter(self.visit.number + 1)
        return self._envs.reset()

    def episode_seed(self, env: int, episode: int) -> int:
        """Seed of an episode of the current visit; episodes count from its beginning."""
        return self._envs.episode_seed(env, episode)

    def extra_scores(self, score: float) -> dict[str, float]:
        """A mean score of the current task on other scales."""
        return self._envs.extra_scores(score)

    def state_dict(self) -> dict[str, Any]:
        """The sequence's clock, its visit, and the state of the running episodes."""
        return {"frames": self.frames, "visit": self.visit.number, "envs": self._envs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Observations:
        """Go on from `state`: the observations to act on. Raises ValueError if the sequence has no such visit."""
        if state["visit"] >= len(self.visits):
            raise ValueError(f"the run was in visit {state['visit']}, but the sequence has {len(self.visits)}")
        self.frames = int(state["frames"])
        self._enter(int(state["visit"]))
        return self._envs.load_state_dict(state["envs"])

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def _enter(self, number: int) -> None:
        self._envs.close()
        self.visit = self.visits[number]
        self._envs = envs = self._open_visit(self.visit)
        if (shape := _shape(envs)) != (expected := _shape(self)):
            raise ValueError(f"task {self.visit.task} has {shape}, but the sequence began with {expected}")


def _shape(envs: VectorEnv | TaskSequence) -> str:
    observations = f"observations {list(envs.observation_shape)} {envs.observation_dtype}"
    return f"{observations} and {envs.num_actions} actions in {envs.num_envs} environments"
