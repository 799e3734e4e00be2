"""Generated spaces and dtypes through Rainbow, and generated zips of SB3 through load."""

from __future__ import annotations

import tempfile
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from nap_rl.sb3 import Rainbow, load
from tests.sb3.envs import AsReturned, Pictures, Returns

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
DTYPES = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"]
SMALL: dict[str, Any] = {"learning_starts": 6, "buffer_size": 60, "batch_size": 3, "seed": 0, "device": "cpu"}


@st.composite
def boxes(draw: st.DrawFn) -> spaces.Space[Any]:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    low = 0 if dtype.kind in "ub" else draw(st.integers(-100, 0))
    high = 1 if dtype.kind == "b" else draw(st.integers(1, 100))
    if dtype.kind == "f" and draw(st.booleans()):
        return spaces.Box(-np.inf, np.inf, shape, dtype.type)
    return spaces.Box(low, high, shape, dtype.type)


VECTORS = st.one_of(
    boxes(),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-3, 3)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=4)),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 6), st.lists(st.integers(1, 3), min_size=1, max_size=3))),
)
DICTS = st.dictionaries(st.text("abc", min_size=1, max_size=3), VECTORS, min_size=1, max_size=3).map(spaces.Dict)
CONTAINERS = {
    "as sampled": lambda x: x,
    "float64": lambda x: np.asarray(x, dtype=np.float64),
    "list": lambda x: np.asarray(x).tolist(),
    "objects": lambda x: np.asarray(x).astype(object),
    "masked": np.ma.masked_array,
    "tensor": lambda x: torch.tensor(np.asarray(x).astype(np.float64)).numpy(),
}
PAYS = [float, int, np.float16, np.int8, bool, Decimal, np.ma.masked_array, lambda r: np.array([r])]


@pytest.mark.slow
@FUZZ
@given(
    space=st.one_of(VECTORS, DICTS),
    container=st.sampled_from(sorted(CONTAINERS)),
    pay=st.sampled_from(PAYS),
    num_envs=st.integers(1, 3),
    nap=st.booleans(),
)
def test_rainbow_takes_every_space_dtype_and_container(
    space: spaces.Space[Any], container: str, pay: Any, num_envs: int, nap: bool
) -> None:
    entries = isinstance(space, spaces.Dict)
    observe = (lambda x: x) if entries else CONTAINERS[container]
    pay = float if entries else pay
    vector = DummyVecEnv if entries else AsReturned
    env = vector([lambda: Returns(space, observe, pay)] * num_envs)
    kwargs = {"net_arch": [4], "hidden": 4, "outputs": 3}
    model = Rainbow(
        "MultiInputPolicy" if entries else "MlpPolicy", env, nap=nap, policy_kwargs=kwargs, n_steps=2, **SMALL
    )
    model.learn(36)
    assert model._n_updates > 0
    observation = env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        again = Rainbow.load(Path(folder) / "model", env=env)
        policy = load(Path(folder) / "model.zip", capacity=60)
    assert np.array_equal(again.predict(observation, deterministic=True)[0], expected)
    assert np.array_equal(policy.predict(observation)[0], expected)


NUMPY = st.sampled_from([lambda x: x, np.float32, np.float64])


@pytest.mark.slow
@FUZZ
@given(
    algorithm=st.sampled_from([DQN, QRDQN]),
    images=st.booleans(),
    shape=st.tuples(st.integers(36, 90), st.integers(36, 90), st.sampled_from([1, 3])),
    stack=st.integers(1, 8),
    net_arch=st.lists(st.integers(1, 16), max_size=4),
    quantiles=st.integers(1, 7),
    number=NUMPY,
    tau=st.sampled_from([1.0, 0.5, 0.005]),
    interval=st.sampled_from([1, 2, 100, 10_000]),
    gradient_steps=st.sampled_from([1, 2, 4, -1]),
    optimizer=st.sampled_from([torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop]),
    schedule=st.booleans(),
    n_steps=st.sampled_from([1, 3]),
)
def test_every_zip_that_sb3_writes_loads_and_acts_as_there(
    algorithm: Any,
    images: bool,
    shape: tuple[int, int, int],
    stack: int,
    net_arch: list[int],
    quantiles: int,
    number: Any,
    tau: float,
    interval: int,
    gradient_steps: int,
    optimizer: Any,
    schedule: bool,
    n_steps: int,
) -> None:
    assume(images or net_arch or shape[2] == 1)
    kwargs: dict[str, Any] = {"net_arch": net_arch, "optimizer_class": optimizer}
    if images:
        kwargs["features_extractor_kwargs"] = {"features_dim": 8}
    if algorithm is QRDQN:
        kwargs["n_quantiles"] = quantiles
    space = spaces.Box(-1, 1, shape[2:] * 2, np.float32)
    env: Any = DummyVecEnv([(lambda: Pictures(shape)) if images else (lambda: Returns(space))] * 2)
    env = VecFrameStack(env, stack) if images and stack > 1 else env
    model = algorithm(
        "CnnPolicy" if images else "MlpPolicy",
        env,
        policy_kwargs=kwargs,
        learning_rate=(lambda left: 1e-3 * (left - 0.5)) if schedule and optimizer is torch.optim.Adam else 1e-3,
        gamma=number(0.9),
        max_grad_norm=number(5.0),
        tau=tau,
        target_update_interval=interval,
        gradient_steps=gradient_steps,
        n_steps=n_steps,
        train_freq=2,
        learning_starts=4,
        buffer_size=20,
        batch_size=2,
        seed=0,
        device="cpu",
    )
    model.learn(16)
    observation = env.reset()
    expected, _ = model.predict(observation, deterministic=True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(Path(folder) / "model")
        policy = load(Path(folder) / "model.zip", capacity=60)
    assert np.array_equal(policy.predict(observation)[0], expected)
    agent, encode = policy.agent, policy.model.observations.encode
    assert (agent.tau, agent.replay.n_steps) == (tau, n_steps)
    one = np.ones(1)
    for i in range(10):
        frame = encode(observation)[0][:1, -1]
        agent.replay.add(frame, np.array([i % 2]), one, one, np.array([i == 0]))
    agent.update()
    assert all(bool(torch.isfinite(p).all()) for p in agent.network.parameters())
