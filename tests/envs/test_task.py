"""Tasks: what transformations do, that seeds decide them, and what cannot be opened."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from nap_rl.envs.registry import CATCH_ID, RANDOM_MDP_ID
from nap_rl.envs.task import Task


def play(env: gymnasium.Env[Any, Any], actions: list[int]) -> list[np.ndarray[Any, Any]]:
    """Observations of the first episode of seed 0."""
    return [env.reset(seed=0)[0], *(env.step(np.int64(action))[0] for action in actions)]


def catch(*redrawn: str, seed: int = 0) -> gymnasium.Env[Any, Any]:
    return Task("catch", CATCH_ID, redrawn=redrawn, seed=seed).open()


def test_a_permutation_of_observations_moves_every_number_to_one_place_for_good() -> None:
    plain, permuted = play(catch(), [0, 0, 2, 1]), play(catch("observations"), [0, 0, 2, 1])
    order = np.random.default_rng([0, 0]).permutation(50)  # seed, place of the transformation
    for one, other in zip(plain, permuted, strict=True):
        assert other.shape == (10, 5) and np.array_equal(other.reshape(-1), one.reshape(-1)[order])
    assert not np.array_equal(plain[0], permuted[0])


def test_a_permutation_of_actions_is_a_bijection_that_the_seed_draws() -> None:
    plain = {play(catch(), [action])[1].tobytes(): action for action in range(3)}
    meanings = {tuple(plain[play(catch("actions", seed=s), [a])[1].tobytes()] for a in range(3)) for s in range(30)}
    assert len(meanings) == 6 and all(sorted(meaning) == [0, 1, 2] for meaning in meanings)


def test_transformations_draw_independently_of_which_others_are_named() -> None:
    alone, together = catch("observations", seed=3), catch("actions", "observations", seed=3)
    assert np.array_equal(play(alone, [])[0], play(together, [])[0])


def test_an_offset_is_added_to_every_observation_and_to_the_bounds() -> None:
    plain = Task("pole", "CartPole-v1").open()
    moved = Task("pole", "CartPole-v1", redrawn=("offset",), offset_std=2.0, seed=5).open()
    offsets = [one - other for one, other in zip(play(moved, [0, 1, 1]), play(plain, [0, 1, 1]), strict=True)]
    assert np.allclose(offsets, offsets[0], atol=1e-5) and 0.1 < np.abs(offsets[0]).max() < 10.0
    assert np.allclose(moved.observation_space.low[0] - plain.observation_space.low[0], offsets[0][0], atol=1e-5)  # type: ignore[attr-defined]


def test_channels_change_places_and_nothing_else() -> None:
    pytest.importorskip("minatar")
    kwargs = {"game": "breakout"}
    plain = play(Task("breakout", "nap_rl/MinAtar-v0", kwargs).open(), [])[0]
    permuted = play(Task("breakout", "nap_rl/MinAtar-v0", kwargs, redrawn=("channels",), seed=1).open(), [])[0]
    assert sorted(c.tobytes() for c in plain.transpose(2, 0, 1)) == sorted(
        c.tobytes() for c in permuted.transpose(2, 0, 1)
    )
    assert not np.array_equal(plain, permuted)


def test_a_task_seed_is_handed_to_environments_that_draw_their_own_rules() -> None:
    rules = [
        Task("mdp", RANDOM_MDP_ID, {"states": 9}, redrawn=("task_seed",), seed=seed).open().unwrapped.rules.rewards  # type: ignore[attr-defined]
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(rules[0], rules[1]) and not np.array_equal(rules[0], rules[2])


def test_a_users_module_registers_ids_and_wrappers_are_applied_from_the_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_envs.py").write_text(
        "import gymnasium\n"
        "from gymnasium.wrappers import TransformReward\n"
        "gymnasium.register('users/Catch-v0', entry_point='nap_rl.envs.catch:Catch')\n"
        "def add_one(env): return TransformReward(env, lambda r: r + 1)\n"
        "def double(env): return TransformReward(env, lambda r: 2 * r)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    wrappers = ("users_envs.add_one", "users_envs.double")
    env = Task("mine", "users/Catch-v0", {"rows": 3}, module="users_envs", wrappers=wrappers).open()
    env.reset(seed=0)
    assert env.step(np.int64(1))[1] == 2.0  # (0 + 1) * 2
    gymnasium.registry.pop("users/Catch-v0")
    sys.modules.pop("users_envs")


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Task("x", "CartPole-v2x"), "gymnasium knows no environment 'CartPole-v2x': did you mean 'CartPole-v"),
        (Task("x", "Nothing-like-it"), "gymnasium knows no environment 'Nothing-like-it'"),
        (Task("x", "my_envs:Own-v0"), "id 'my_envs:Own-v0' names a module: name it as env.module=my_envs"),
        (Task("x", CATCH_ID, {"rows": 0}), f"environment '{CATCH_ID}' cannot be made: Catch has 0 rows"),
        (Task("x", CATCH_ID, {"row": 3}), f"environment '{CATCH_ID}' cannot be made:"),
        (Task("x", "Pendulum-v1"), "has actions of Box(-2.0, 2.0, (1,), float32), expected Discrete"),
        (Task("x", "FrozenLake-v1"), "expected a Box: add a wrapper, for example env.wrappers="),
        (Task("x", "CartPole-v1", module="no_such_module"), "the module 'no_such_module' cannot be imported"),
        (Task("x", "CartPole-v1", wrappers=("math.sqrt",)), "wrapper math.sqrt: must be real number"),
        (Task("x", "CartPole-v1", wrappers=("builtins.id",)), "wrapper builtins.id returns int, expected a gymnasium"),
        (Task("x", CATCH_ID, redrawn=("channels",)), "observations of shape [10, 5] have no channels to permute"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(task: Task, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        task.open()
    assert "\n" not in str(refusal.value)


def test_a_wrapper_flattens_what_is_no_box() -> None:
    env = Task("lake", "FrozenLake-v1", wrappers=("gymnasium.wrappers.FlattenObservation",)).open()
    assert env.observation_space.shape == (16,)
