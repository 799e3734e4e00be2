"""Atari games one after another, in cycles: the stream on which networks lose plasticity.

The agent is not told that the game changes. To it, a switch is the truncation of every episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nap_rl.envs.atari import FRAME_SKIP, AtariEnvs, Protocol
from nap_rl.envs.games import check_games
from nap_rl.envs.step import Actions, Frames, Step, Visit

RESEED_STEPS = 5_000
"""Agent steps between two seeds of an emulator. A resumed run replays at most these and one episode."""


def visits(tasks: Sequence[str], frames_per_task: int, cycles: int) -> list[Visit]:
    """The plan of a sequence. Frames are summed over all environments."""
    return [
        Visit(i, tasks[i % len(tasks)], i // len(tasks), i * frames_per_task, (i + 1) * frames_per_task)
        for i in range(len(tasks) * cycles)
    ]


class SequentialAtari:
    """N environments that play `games` in turn, `frames_per_game` frames each, `cycles` times (a `TaskStream`).

    Several games are played with all 18 actions, so that an action means the same in each. The last game goes on after
    its visit. A single game is a sequence of one visit.

    Args: see `AtariEnvs`.

    Raises:
        ValueError: an unknown game, no game, or a visit shorter than one step.
    """

    observation_shape: tuple[int, ...] = AtariEnvs.observation_shape
    observation_dtype = AtariEnvs.observation_dtype
    stack = AtariEnvs.stack
    frame_skip = AtariEnvs.frame_skip

    def __init__(
        self,
        games: Sequence[str],
        frames_per_game: int,
        cycles: int,
        num_envs: int,
        protocol: Protocol | None = None,
        *,
        seed: int = 0,
        threads: int = 0,
    ) -> None:
        if cycles < 1:
            raise ValueError(f"env.cycles is {cycles}, expected 1 or more")
        if frames_per_game < num_envs * FRAME_SKIP:
            raise ValueError(
                f"env.frames_per_game is {frames_per_game}: less than one step of {num_envs} environments "
                f"({num_envs * FRAME_SKIP} frames)"
            )
        self.visits: Sequence[Visit] = visits(check_games(games), frames_per_game, cycles)
        self.num_envs = num_envs
        protocol = Protocol() if protocol is None else protocol
        several = len(set(games)) > 1
        self.protocol = replace(protocol, full_action_set=several or protocol.full_action_set)
        self.seed = seed
        self.threads = threads
        self.frames = 0  # played, over all environments
        self.visit = self.visits[0]
        self._envs = self._open()
        self.num_actions = self._envs.num_actions

    def reset(self) -> Frames:
        """Begin an episode of the first game in every environment: [N, 84, 84] uint8."""
        return self._envs.reset()

    def step(self, actions: Actions) -> Step:
        """As `AtariEnvs.step`; at a switch every environment ends its episode and keeps its discount."""
        self.send(actions)
        return self.recv()

    def send(self, actions: Actions) -> None:
        """The first half of `step`: see `AtariEnvs.send`."""
        self._envs.send(actions)

    def recv(self) -> Step:
        """The second half of `step`."""
        step = self._envs.recv()
        self.frames += self.num_envs * FRAME_SKIP
        if not self.switch_is_due:
            return step
        return step._replace(observations=self.switch(), ended=np.ones(self.num_envs, dtype=bool))

    @property
    def switch_is_due(self) -> bool:
        """True between steps only after loading the state of a sequence that had ended, into a longer one."""
        return self.frames >= self.visit.end and self.visit is not self.visits[-1]

    def switch(self) -> Frames:
        """Begin the next visit: its first frames [N, 84, 84]."""
        self._envs.close()
        self.visit = self.visits[self.visit.number + 1]
        self._envs = self._open()
        return self._envs.reset()

    def episode_seed(self, env: int, episode: int) -> int:
        """See `AtariEnvs.episode_seed`; episodes count from the beginning of the visit."""
        return self._envs.episode_seed(env, episode)

    def extra_scores(self, score: float) -> dict[str, float]:
        """See `AtariEnvs.extra_scores`; of the game that is played."""
        return self._envs.extra_scores(score)

    def state_dict(self) -> dict[str, Any]:
        """The sequence's clock, its visit, and the state of the running episodes."""
        return {"frames": self.frames, "visit": self.visit.number, "envs": self._envs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Frames:
        """Go on from `state`: the frames [N, 84, 84] to act on. Raises ValueError if the sequence has no such visit."""
        if state["visit"] >= len(self.visits):
            raise ValueError(f"the run was in visit {state['visit']}, but the sequence has {len(self.visits)}")
        self._envs.close()
        self.frames = int(state["frames"])
        self.visit = self.visits[int(state["visit"])]
        self._envs = self._open()
        return self._envs.load_state_dict(state["envs"])

    def close(self) -> None:
        """Free the emulators and their threads."""
        self._envs.close()

    def _open(self) -> AtariEnvs:
        # Seeds differ by visit: the second visit of a game must not replay the episodes of the first.
        seed = int(np.random.SeedSequence([self.seed, self.visit.number]).generate_state(1)[0])
        return AtariEnvs(
            self.visit.task,
            self.num_envs,
            self.protocol,
            seed=seed,
            reseed_steps=RESEED_STEPS,
            threads=self.threads,
        )
