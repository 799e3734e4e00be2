"""Atari games one after another, again and again: the stream on which plasticity is lost.

The agent is not told when the task changes: a switch looks to it like the truncation of every episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nap_rl.envs.atari import FRAME_SKIP, AtariEnvs, Protocol
from nap_rl.envs.games import check_games
from nap_rl.envs.step import Frames, Step

RESEED_STEPS = 5_000
"""Agent steps of an environment between two seeds of its emulator, which bounds what a resumed run plays again."""


class Visit(NamedTuple):
    """One stay in one game."""

    number: int  # of the visit in the run, from 0
    game: str
    cycle: int  # from 0: how often the list of games has been gone through
    begin: int  # emulator frames of the run at which it begins
    end: int


def visits(games: Sequence[str], frames_per_game: int, cycles: int) -> list[Visit]:
    """The plan of a sequence; frames are emulator frames, summed over all environments."""
    return [
        Visit(i, games[i % len(games)], i // len(games), i * frames_per_game, (i + 1) * frames_per_game)
        for i in range(len(games) * cycles)
    ]


class SequentialAtari:
    """N environments that play `games` in turn, `frames_per_game` emulator frames each, `cycles` times over.

    Several games are played with all 18 actions, so that an action means the same in each. A switch happens at the
    first step that reaches the end of a visit; after the last visit its game goes on. One game is a sequence of one.

    Args: see `AtariEnvs`.

    Raises:
        ValueError: an unknown game, no game, or a visit shorter than one step.
    """

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
        self.visits = visits(check_games(games), frames_per_game, cycles)
        self.num_envs = num_envs
        protocol = Protocol() if protocol is None else protocol
        several = len(set(games)) > 1
        self.protocol = replace(protocol, full_action_set=several or protocol.full_action_set)
        self.seed = seed
        self.threads = threads
        self.frames = 0  # emulator frames played
        self.visit = self.visits[0]
        self._envs = self._open()
        self.num_actions = self._envs.num_actions

    def reset(self) -> Frames:
        """Begin an episode of the first game in every environment: [N, 84, 84] uint8."""
        return self._envs.reset()

    def step(self, actions: npt.NDArray[np.int64]) -> Step:
        """As `AtariEnvs.step`; at a switch every environment ends its episode, with its discount kept."""
        self.send(actions)
        return self.recv()

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """The first half of `step`: see `AtariEnvs.send`."""
        self._envs.send(actions)

    def recv(self) -> Step:
        """The second half of `step`."""
        step = self._envs.recv()
        self.frames += self.num_envs * FRAME_SKIP
        if not self.switch_is_due:
            return step
        return step._replace(frames=self.switch(), ended=np.ones(self.num_envs, dtype=bool))

    @property
    def switch_is_due(self) -> bool:
        """Between steps only where a run goes on whose sequence had ended here."""
        return self.frames >= self.visit.end and self.visit is not self.visits[-1]

    def switch(self) -> Frames:
        """Begin the next visit: its first frames [N, 84, 84]."""
        self._envs.close()
        self.visit = self.visits[self.visit.number + 1]
        self._envs = self._open()
        return self._envs.reset()

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence is, and the episodes that are being played."""
        return {"frames": self.frames, "visit": self.visit.number, "envs": self._envs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Frames:
        """Play on from there: the frames [N, 84, 84] to act on. Raises ValueError if the sequence has no such visit."""
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
        # A visit has seeds of its own: coming back to a game does not replay the episodes of the first visit.
        seed = int(np.random.SeedSequence([self.seed, self.visit.number]).generate_state(1)[0])
        return AtariEnvs(
            self.visit.game,
            self.num_envs,
            self.protocol,
            seed=seed,
            reseed_steps=RESEED_STEPS,
            threads=self.threads,
        )
