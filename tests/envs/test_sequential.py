"""Games one after another: the plan, the switch, what the agent is shown of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_rl.envs import AtariEnvs, Protocol, SequentialAtari, atari
from nap_rl.envs.sequence import plan


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), st.integers(1, 10**9), st.integers(1, 5))
def test_the_plan_covers_every_frame_once_each_game_for_frames_per_game_in_every_cycle(
    games: list[str], frames: int, cycles: int
) -> None:
    visits = plan(games, [frames] * len(games), cycles)
    assert [visit.number for visit in visits] == list(range(len(games) * cycles))
    assert [visit.task for visit in visits] == games * cycles
    assert [visit.cycle for visit in visits] == [cycle for cycle in range(cycles) for _ in games]
    assert visits[0].begin == 0 and visits[-1].end == frames * len(games) * cycles
    assert all(visit.end - visit.begin == frames for visit in visits)
    assert all(a.end == b.begin for a, b in zip(visits, visits[1:], strict=False))


def actions(envs: SequentialAtari) -> npt.NDArray[np.int64]:
    return np.zeros(envs.num_envs, dtype=np.int64)


def test_the_switch_comes_with_the_first_step_that_reaches_the_end_and_ends_every_episode() -> None:
    envs = SequentialAtari(["pong", "breakout"], 100, 2, 2, seed=0)  # 8 frames a step: switches at 104, 200, 304
    envs.reset()
    switches = []
    for k in range(1, 51):
        before = envs.visit
        step = envs.step(actions(envs))
        assert envs.frames == 8 * k
        if envs.visit is not before:
            switches.append((envs.frames, before.task, envs.visit.task, envs.visit.cycle))
            assert step.ended.all() and not step.terminated.any()
            assert (step.discounts == 1.0).all() and step.episodes == []
        else:
            assert not step.ended.any()
    envs.close()
    assert switches == [(104, "pong", "breakout", 0), (200, "breakout", "pong", 1), (304, "pong", "breakout", 1)]
    assert envs.visit is envs.visits[-1]  # and the last game goes on


def test_at_a_switch_last_observations_show_the_old_game_and_observations_the_new_one() -> None:
    envs = SequentialAtari(["pong", "breakout"], 100, 1, 1, Protocol(noop_max=1), seed=0)
    envs.reset()
    twin = AtariEnvs("pong", 1, Protocol(noop_max=1, full_action_set=True), seed=envs._envs.seed)
    twin.reset()
    for _ in range(25):
        step, expected = envs.step(actions(envs)), twin.step(actions(envs))
        assert np.array_equal(step.last_observations, expected.last_observations)
    assert envs.visit.task == "breakout"
    breakout = AtariEnvs("breakout", 1, Protocol(noop_max=1, full_action_set=True), seed=envs._envs.seed)
    assert np.array_equal(step.observations, breakout.reset())
    assert not np.array_equal(step.observations, step.last_observations)
    for made in (envs, twin, breakout):
        made.close()


def test_opening_and_seeding_many_emulators_is_said_at_every_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def waiting(what: str, about: float) -> AbstractContextManager[None]:
        said.append(what)
        return nullcontext()

    monkeypatch.setattr(atari, "MANY", 2)
    monkeypatch.setattr(atari, "Waiting", waiting)
    envs = SequentialAtari(["pong", "breakout"], 16, 1, 2, seed=0)
    envs.reset()
    assert said == ["opening 2 emulators of pong", "seeding 2 emulators of pong"]
    for _ in range(2):
        envs.step(actions(envs))
    assert said[2:] == ["opening 2 emulators of breakout", "seeding 2 emulators of breakout"]
    envs.close()


def test_every_visit_has_seeds_of_its_own_and_a_seed_repeats_them() -> None:
    def seeds(seed: int) -> list[int]:
        envs = SequentialAtari(["pong", "breakout"], 4, 2, 1, seed=seed)
        envs.reset()
        found = [envs._envs.seed]
        for _ in range(3):
            envs.step(actions(envs))
            found.append(envs._envs.seed)
        envs.close()
        return found

    first = seeds(0)
    assert len(set(first)) == 4
    assert first == seeds(0)
    assert not set(first) & set(seeds(1))


@pytest.mark.parametrize(
    ("games", "full", "count"),
    [(["pong", "breakout"], False, 18), (["breakout"], False, 4), (["breakout"], True, 18), (["pong"] * 2, False, 6)],
)
def test_several_games_share_all_18_actions_and_one_game_keeps_its_own(
    games: list[str], full: bool, count: int
) -> None:
    envs = SequentialAtari(games, 1_000, 1, 1, Protocol(full_action_set=full))
    assert envs.num_actions == count
    envs.close()


@pytest.mark.parametrize(
    ("games", "frames", "cycles", "sentence"),
    [
        (["pong", "brakeout"], 100, 1, "unknown game 'brakeout': did you mean 'breakout'?"),
        ([], 100, 1, "env.games is empty"),
        (["pong"], 100, 0, "env.cycles is 0"),
        (["pong"], 15, 1, "env.frames_per_game is 15: less than one step of 4 environments"),
    ],
)
def test_a_sequence_that_cannot_be_played_is_refused(games: list[str], frames: int, cycles: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        SequentialAtari(games, frames, cycles, 4)
