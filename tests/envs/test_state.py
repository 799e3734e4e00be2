"""Environments in the middle of their episodes, taken up again from seeds and actions alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nap_rl.envs import AtariEnvs, Protocol, SequentialAtari
from nap_rl.envs.atari import EmulatorError, episode_seed


def assert_same_future(ours: Any, theirs: Any, steps: int, num_actions: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(steps):
        actions = rng.integers(0, num_actions, ours.num_envs)
        one, two = ours.step(actions), theirs.step(actions)
        for a, b in zip(one[:-1], two[:-1], strict=True):
            assert np.array_equal(a, b)
        assert one.episodes == two.episodes  # scores and lengths count from the episode's true beginning


@pytest.mark.parametrize(
    ("game", "sticky"),
    [
        ("breakout", 0.25),
        pytest.param("breakout", 0.0, marks=pytest.mark.slow),
        *(pytest.param("asterix", sticky, marks=pytest.mark.slow) for sticky in (0.0, 0.25)),
        *(pytest.param("pong", sticky, marks=pytest.mark.slow) for sticky in (0.0, 0.25)),
    ],
)
def test_episodes_of_different_phase_go_on_frame_by_frame(game: str, sticky: float) -> None:
    protocol = Protocol(sticky_actions=sticky, fire_on_reset=game == "breakout", max_episode_frames=800)
    played = AtariEnvs(game, 2, protocol, seed=5)
    played.reset()
    rng = np.random.default_rng(0)
    last = None
    for _ in range(235):  # beyond the cap of 200 steps, and Breakout's games end on their own
        last = played.step(rng.integers(0, played.num_actions, 2))
    assert last is not None
    state = played.state_dict()
    resumed = AtariEnvs(game, 2, protocol, seed=5)
    assert np.array_equal(resumed.load_state_dict(state), last.observations)
    assert_same_future(played, resumed, 180, played.num_actions)
    played.close()
    resumed.close()


@pytest.mark.parametrize("sticky", [pytest.param(0.0, marks=pytest.mark.slow), 0.25])
@pytest.mark.parametrize(  # 100 steps an episode
    ("steps", "unseeded"), [(150, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in [(335, 0), (480, 1)])]
)
@pytest.mark.slow
def test_several_episodes_of_one_seed_go_on_frame_by_frame(steps: int, unseeded: int, sticky: float) -> None:
    def make() -> AtariEnvs:
        return AtariEnvs("asterix", 2, Protocol(sticky, max_episode_frames=400), seed=5, reseed_steps=250)

    played, rng, ends = make(), np.random.default_rng(0), np.zeros(2, dtype=int)
    played.reset()
    for _ in range(steps):
        last = played.step(rng.integers(0, played.num_actions, 2))
        ends += last.ended
    state = played.state_dict()
    assert (ends + 1 - np.array(state["episodes"]) == unseeded).all()
    resumed = make()
    assert np.array_equal(resumed.load_state_dict(state), last.observations)
    assert_same_future(played, resumed, 180, played.num_actions)
    assert np.array_equal(resumed._seeded, played._seeded) and np.array_equal(resumed._episodes, played._episodes)
    played.close()
    resumed.close()


def test_an_episode_that_has_just_begun_and_a_state_right_after_reset() -> None:
    played = AtariEnvs("pong", 2, seed=1)
    frames = played.reset()
    resumed = AtariEnvs("pong", 2, seed=1)
    assert np.array_equal(resumed.load_state_dict(played.state_dict()), frames)
    assert_same_future(played, resumed, 5, 6)
    played.close()
    resumed.close()


def test_a_sequence_goes_on_in_its_visit_and_over_the_next_switch() -> None:
    def make() -> SequentialAtari:
        return SequentialAtari(["pong", "breakout"], 200, 2, 1, Protocol(sticky_actions=0.25), seed=3)

    played, resumed = make(), make()
    played.reset()
    rng = np.random.default_rng(0)
    for _ in range(70):  # visit 1 begins after 50 steps
        last = played.step(rng.integers(0, 18, 1))
    assert np.array_equal(resumed.load_state_dict(played.state_dict()), last.observations)
    assert resumed.visit == played.visit and resumed.visit.number == 1
    assert_same_future(played, resumed, 60, 18)
    assert resumed.visit.number == 2
    played.close()
    resumed.close()


def test_a_shorter_sequence_or_another_number_of_environments_is_refused() -> None:
    envs = SequentialAtari(["pong"], 400, 1, 1)
    envs.reset()
    state = envs.state_dict()
    with pytest.raises(ValueError, match="was in visit 4, but the sequence has 1"):
        envs.load_state_dict({**state, "visit": 4})
    envs.close()
    two = SequentialAtari(["pong"], 400, 1, 2)
    with pytest.raises(ValueError, match="env.num_envs is 2, but 1 environments were saved"):
        two.load_state_dict(state)
    two.close()


def test_an_emulator_that_dies_is_named_with_its_game_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = AtariEnvs("pong", 2, seed=9)
    envs.reset()
    envs.step(np.array([0, 0]))

    def died(*arguments: Any) -> None:
        raise RuntimeError("worker thread gone")

    monkeypatch.setattr(envs._envs, "recv", died)
    with pytest.raises(EmulatorError) as error:
        envs.step(np.array([0, 0]))
    monkeypatch.undo()
    envs.close()
    assert str(error.value) == (
        f"an emulator of pong died (environment 0: seed {episode_seed(9, 0, 0)}, step 1; "
        f"environment 1: seed {episode_seed(9, 1, 0)}, step 1): worker thread gone"
    )
