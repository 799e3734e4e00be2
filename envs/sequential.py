"""Atari games one after another, in cycles: the stream on which networks lose plasticity.

The agent is not told that the game changes. To it, a switch is the truncation of every episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nap_rl.envs.atari import FRAME_SKIP, AtariEnvs, Protocol
from nap_rl.envs.games import check_games
from nap_rl.envs.sequence import TaskSequence, plan
from nap_rl.envs.step import Visit

RESEED_STEPS = 5_000
"""Agent steps between two seeds of an emulator. A resumed run replays at most these and one episode."""


class SequentialAtari(TaskSequence):
    """N environments that play `games` in turn, `frames_per_game` frames each, `cycles` times.

    Several games are played with all 18 actions, so that an action means the same in each. The last game goes on after
    its visit. A single game is a sequence of one visit.

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
        names = check_games(games)
        protocol = Protocol() if protocol is None else protocol
        several = len(set(games)) > 1
        self.protocol = replace(protocol, full_action_set=several or protocol.full_action_set)

        def open_visit(visit: Visit) -> AtariEnvs:
            # Seeds differ by visit: the second visit of a game must not replay the episodes of the first.
            visit_seed = int(np.random.SeedSequence([seed, visit.number]).generate_state(1)[0])
            return AtariEnvs(
                visit.task, num_envs, self.protocol, seed=visit_seed, reseed_steps=RESEED_STEPS, threads=threads
            )

        super().__init__(plan(names, [frames_per_game] * len(names), cycles), open_visit)
