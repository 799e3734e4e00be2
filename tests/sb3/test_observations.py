"""Whatever dtype or container a user's environment returns, Rainbow takes: the space decides."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common import preprocessing
from stable_baselines3.common.vec_env import DummyVecEnv

from nap_rl.agents import Diverged
from nap_rl.sb3 import Rainbow, load
from nap_rl.sb3.observations import Observations, is_image_space, plain_space, space_from_plain
from tests.sb3.envs import AsReturned, Returns

SMALL: dict[str, Any] = {"learning_starts": 20, "buffer_size": 200, "batch_size": 4, "seed": 3, "device": "cpu"}
SMALL["policy_kwargs"] = {"net_arch": [8], "hidden": 8, "outputs": 5}


def vector(dtype: Any) -> spaces.Space[Any]:
    whole = np.dtype(dtype).kind in "iub"
    return spaces.Box(0 if whole else -1, 1 if np.dtype(dtype).kind == "b" else 9 if whole else 1, (4,), dtype)


DTYPES = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ring_has_the_dtype_of_the_space(dtype: str) -> None:
    space = vector(np.dtype(dtype).type)
    model = Rainbow("MlpPolicy", AsReturned([lambda: Returns(space)] * 2), **SMALL)
    model.learn(40)
    assert model._n_updates > 0
    ring = model.agent.replay.frames.numpy().dtype
    assert ring == {"uint16": np.int32, "uint32": np.int64}.get(dtype, np.dtype(dtype))


@pytest.mark.parametrize(
    "observe",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float16),
        lambda x: x.tolist(),
        lambda x: x.astype(object),
        lambda x: np.ma.masked_array(x),
        lambda x: torch.from_numpy(x).numpy()[::-1],
        lambda x: np.round(x).astype(np.int64),
    ],
)
def test_any_container_is_cast_on_the_way_in_also_at_an_end_and_in_zips(observe: Any, tmp_path: Path) -> None:
    env = AsReturned([lambda: Returns(vector(np.float32), observe)] * 2)
    model = Rainbow("MlpPolicy", env, **SMALL)
    model.learn(40)
    assert model._n_updates > 0 and model.agent.replay.frames.dtype == torch.float32
    model.save(tmp_path / "model")
    again = Rainbow.load(tmp_path / "model", env=env, force_reset=False)
    assert np.array_equal(again._last_obs, np.asarray(model._last_obs, dtype=np.float32))  # type: ignore[arg-type]
    again.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize(
    "pay", [int, np.float16, Decimal, lambda r: np.array([r]), lambda r: np.ma.masked_array(float(r)), bool, np.int8]
)
@pytest.mark.parametrize("wrap", [DummyVecEnv, AsReturned])
def test_rewards_may_be_numbers_of_any_type(pay: Any, wrap: Any) -> None:
    if wrap is DummyVecEnv and isinstance(pay(1), np.ndarray) and pay(1).ndim:
        pytest.skip("SB3's own DummyVecEnv takes no rewards of shape [1]")
    model = Rainbow("MlpPolicy", wrap([lambda: Returns(vector(np.float32), pay=pay)] * 2), **SMALL)
    model.learn(40)
    expected = {1.0} if pay is bool else {1.0, 2.0, 3.0, 4.0, 5.0}
    assert expected <= set(model.agent.replay.rewards.tolist())


SPACES = {
    "Discrete": (spaces.Discrete(6), 6),
    "Discrete from 2": (spaces.Discrete(4, start=2), 4),
    "MultiDiscrete": (spaces.MultiDiscrete([3, 4]), 7),
    "MultiBinary": (spaces.MultiBinary(5), 5),
    "MultiBinary 2x3": (spaces.MultiBinary([2, 3]), 6),
    "matrix": (spaces.Box(-1, 1, (2, 3)), 6),
    "number": (spaces.Box(-1, 1, ()), 1),
    "Dict": (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2, 2), np.float64), c=spaces.MultiBinary(2)), 9),
}


@pytest.mark.parametrize("name", SPACES)
def test_spaces_that_sb3_takes_are_learnt_on_saved_and_loaded(name: str, tmp_path: Path) -> None:
    space, inputs = SPACES[name]
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    env = DummyVecEnv([lambda: Returns(space)] * 2)
    model = Rainbow(policy, env, **SMALL)
    model.learn(40)
    assert model._n_updates > 0
    assert next(model.policy.q_net.parameters()).shape[1] == inputs
    model.save(tmp_path / "model")
    observation = env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    again = Rainbow.load(tmp_path / "model", env=env, force_reset=False)
    assert again.observation_space == space
    assert np.array_equal(again.predict(observation, deterministic=True)[0], expected)
    assert np.array_equal(load(tmp_path / "model.zip").predict(observation)[0], expected)
    assert torch.equal(model.policy(model.policy.obs_to_tensor(observation)[0]), torch.from_numpy(expected))
    one = {key: value[0] for key, value in observation.items()} if isinstance(observation, dict) else observation[0]
    assert again.predict(one, deterministic=True)[0] == expected[0]
    again.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize("name", ["Discrete", "MultiDiscrete", "MultiBinary", "matrix"])
def test_zips_of_dqn_on_these_spaces_act_as_in_sb3(name: str, tmp_path: Path) -> None:
    space, _ = SPACES[name]
    env = DummyVecEnv([lambda: Returns(space)] * 4)
    theirs = DQN("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, seed=0, device="cpu")
    theirs.save(tmp_path / "model")
    ours = load(tmp_path / "model.zip", capacity=100)
    for _ in range(5):
        observation = env.reset()
        assert np.array_equal(ours.predict(observation)[0], theirs.predict(observation, deterministic=True)[0])


@pytest.mark.parametrize("space", [space for space, _ in SPACES.values()])
def test_a_space_goes_through_json_and_back(space: spaces.Space[Any]) -> None:
    assert space_from_plain(json.loads(json.dumps(plain_space(space)))) == space


def test_one_hot_vectors_are_those_of_sb3() -> None:
    from stable_baselines3.common.preprocessing import preprocess_obs

    space = spaces.MultiDiscrete([3, 4])
    values = np.array([[0, 3], [2, 1]])
    expected = preprocess_obs(torch.from_numpy(values), space)
    encoded, batched = Observations.of(space, 1, (7,)).encode(values)
    assert batched and np.array_equal(encoded[:, 0], expected.numpy())  # type: ignore[union-attr]


def test_a_value_that_the_space_does_not_contain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"an observation is \[6\], which the space does not contain"):
        Observations.of(spaces.Discrete(6), 1, (6,)).encode(6)


class NoTerminalObservation(AsReturned):
    """A vector environment that does not say what its episodes ended with."""

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        return observations, rewards, dones, [{} for _ in infos]


def test_without_a_terminal_observation_the_next_one_stands_in_as_in_sb3() -> None:
    model = Rainbow("MlpPolicy", NoTerminalObservation([lambda: Returns(vector(np.float32))] * 2), **SMALL)
    model.learn(40)
    assert model._n_updates > 0


def late(value: float, at: int = 30) -> Any:
    """Observations or rewards that are `value` from call `at` on."""
    calls = iter(range(10_000))

    def change(x: Any) -> Any:
        return x if next(calls) < at else np.asarray(x, np.float64) * value

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("wrap", [DummyVecEnv, AsReturned])
@pytest.mark.parametrize("what", ["observe", "pay"])
def test_what_is_not_finite_ends_learning_with_the_step(wrap: Any, value: float, what: str) -> None:
    env = wrap([lambda: Returns(vector(np.float64), **{what: late(value)})])
    model = Rainbow("MlpPolicy", env, **SMALL)
    sentence = r"^diverged at step (\d+): (an observation has|a reward is) (nan|-?inf)"
    with pytest.raises(Diverged, match=sentence) as told:
        model.learn(100)
    assert 20 < model.num_timesteps < 40 and f"step {model.num_timesteps}:" in str(told.value)


def test_a_loss_that_is_not_finite_ends_learning_with_the_step() -> None:
    model = Rainbow("MlpPolicy", Returns(vector(np.float32)), **SMALL)
    model.learn(30)
    with torch.no_grad():
        next(model.policy.q_net.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match=r"^diverged at step \d+: the loss is nan"):
        model.learn(30)


def test_loaded_policies_refuse_observations_that_are_not_finite(tmp_path: Path) -> None:
    DQN("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "model")
    policy = load(tmp_path / "model.zip", capacity=100)
    policy.predict(np.zeros(4))
    with pytest.raises(Diverged, match="diverged at step 2: an observation has nan"):
        policy.predict([0.0, float("nan"), 0.0, 0.0])


def test_own_loops_over_a_loaded_agent_diverge_in_words(tmp_path: Path) -> None:
    DQN("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "model")
    agent = load(tmp_path / "model.zip", capacity=100).agent
    bad = np.full((1, 4), np.nan, np.float32)
    for i in range(20):
        agent.replay.add(bad, np.array([0]), np.array([1.0]), np.array([1.0]), np.array([i == 0]))
    with pytest.raises(Diverged, match="the loss is nan"):
        agent.update()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (3, 36, 36), np.uint8),
        spaces.Box(0, 255, (36, 36), np.uint8),
        spaces.Box(0, 254, (3, 36, 36), np.uint8),
        spaces.Box(1, 255, (3, 36, 36), np.uint8),
        spaces.Box(0, 255, (3, 36, 36), np.int16),
        spaces.Box(0.0, 1.0, (3, 36, 36)),
        spaces.Discrete(3),
    ],
    ids=str,
)
def test_images_are_what_sb3_takes_for_images(space: spaces.Space[Any]) -> None:
    assert is_image_space(space) == preprocessing.is_image_space(space)
