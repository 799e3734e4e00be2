"""Prioritised replay for SB3's DQN, against closed forms, SB3's own buffers and SB3's own updates."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from nap_rl.agents import Diverged
from nap_rl.sb3 import PrioritizedDQN, PrioritizedReplayBuffer, load

VECTOR, ACTIONS = spaces.Box(-1e6, 1e6, (1,), np.float32), spaces.Discrete(3)
SMALL: dict[str, Any] = {"learning_starts": 40, "buffer_size": 400, "batch_size": 8, "seed": 3, "device": "cpu"}


def fill(buffer: ReplayBuffer, steps: int, dones: dict[int, bool] | None = None, start: int = 0) -> None:
    """Step t of environment e is seen as 10 t + e, whose reward is its sine; dones: {step: by a time limit}."""
    rng = np.random.default_rng(1)
    for t in range(start, start + steps):
        seen = (10.0 * t + np.arange(buffer.n_envs)).reshape(-1, 1)
        done, limit = t in (dones or {}), (dones or {}).get(t, False)
        infos = [{"TimeLimit.truncated": limit} for _ in range(buffer.n_envs)]
        actions = rng.integers(0, 3, buffer.n_envs)
        buffer.add(seen, seen + 10.0, actions, np.sin(seen[:, 0]), np.full(buffer.n_envs, done), infos)


def slots_of(buffer: PrioritizedReplayBuffer, observations: torch.Tensor) -> torch.Tensor:
    """Slot t * n_envs + e of what `fill` stored as 10 t + e in the first lap."""
    seen = observations[:, 0].long()
    return seen // 10 * buffer.n_envs + seen % 10


@pytest.mark.parametrize(("exponent", "uniform"), [(0.6, 0.0), (1.0, 0.25), (0.0, 0.0)])
def test_draws_and_weights_have_the_closed_form(exponent: float, uniform: float) -> None:
    buffer = PrioritizedReplayBuffer(
        8, VECTOR, ACTIONS, "cpu", 2, priority_exponent=exponent, uniform_probability=uniform
    )
    fill(buffer, 3)  # six transitions in eight slots
    raw = np.array([0.5, 2.0, 1.0, 4.0, 0.1, 3.0])
    buffer.update_priorities(torch.arange(6), -torch.from_numpy(raw))
    expected = (1 - uniform) * raw**exponent / (raw**exponent).sum() + uniform / 6
    torch.manual_seed(0)
    buffer.importance = 0.7
    batch = buffer.sample(20_000)
    assert torch.equal(batch.slots, slots_of(buffer, batch.observations))
    drawn = np.bincount(batch.slots, minlength=8) / 20_000
    assert np.abs(drawn[:6] - expected).max() < 4 * np.sqrt(0.25 / 20_000) and not drawn[6:].any()
    weights = (6 * expected) ** -0.7
    weights /= weights.max()
    assert np.allclose(batch.weights[:, 0].numpy(), weights[batch.slots], rtol=1e-5)


def test_a_new_transition_gets_the_largest_priority_so_far() -> None:
    buffer = PrioritizedReplayBuffer(4, VECTOR, ACTIONS, priority_exponent=1.0, uniform_probability=0.0)
    fill(buffer, 3)
    assert buffer.priorities.leaves[0, :4].tolist() == [1, 1, 1, 0]
    buffer.update_priorities(torch.tensor([0, 1, 1]), torch.tensor([[7.0], [-0.5], [0.25]]))
    fill(buffer, 2, start=3)  # the second overwrites the oldest, whose 7 stays the largest
    assert buffer.priorities.leaves[0, :5].tolist() == [7, 0.5, 1, 7, 0]
    buffer.reset()
    with pytest.raises(ValueError, match="holds no transition"):
        buffer.sample(1)


@pytest.mark.parametrize("steps", [5, 12, 19])  # not full, just full (position 0), in the second lap
@pytest.mark.parametrize("n_steps", [1, 3])
def test_every_transition_is_as_in_sb3s_buffers(n_steps: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dones = {2: False, 6: True, 9: False, 13: True, 15: True}
    ours = PrioritizedReplayBuffer(24, VECTOR, ACTIONS, "cpu", 2, n_steps=n_steps, gamma=0.9)
    theirs: ReplayBuffer = ReplayBuffer(24, VECTOR, ACTIONS, "cpu", 2)
    if n_steps > 1:
        theirs = NStepReplayBuffer(24, VECTOR, ACTIONS, "cpu", 2, n_steps=n_steps, gamma=0.9)
    for buffer in (ours, theirs):
        fill(buffer, steps, dones)
    batch = ours.sample(500)
    times, envs = batch.slots.numpy() // 2, batch.slots.numpy() % 2
    assert len(set(batch.slots.tolist())) == 2 * min(steps, 12)
    monkeypatch.setattr(np.random, "randint", lambda *args, **kwargs: envs)  # what SB3 draws environments with
    expected = theirs._get_samples(times)
    assert (batch.discounts is None) == (expected.discounts is None) == (n_steps == 1)
    for name in expected._fields:
        value, reference = getattr(batch, name), getattr(expected, name)
        if reference is not None:
            assert value.dtype == reference.dtype and value.shape == reference.shape, name
            torch.testing.assert_close(value, reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [3, 4, 7])
def test_in_half_the_memory_what_was_overwritten_is_never_drawn(steps: int) -> None:
    buffer = PrioritizedReplayBuffer(
        8, VECTOR, ACTIONS, "cpu", 2, optimize_memory_usage=True, handle_timeout_termination=False
    )
    fill(buffer, steps)
    buffer.update_priorities(torch.arange(8), torch.full((8,), 5.0))  # of slots that are not valid too
    batch = buffer.sample(500)
    expected = {10 * t + e for t in range(max(steps - 3, 0), steps) for e in range(2)}
    assert {int(seen) for seen in batch.observations[:, 0]} == expected
    assert torch.equal(batch.next_observations, batch.observations + 10)


@pytest.mark.parametrize(
    "space",
    [spaces.Box(0, 255, (3, 8, 8), np.uint8), spaces.Discrete(5), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3)],
)
def test_observations_of_every_space_but_a_dict_come_back(space: spaces.Space[Any]) -> None:
    ours, theirs = PrioritizedReplayBuffer(6, space, ACTIONS, n_envs=2), ReplayBuffer(6, space, ACTIONS, n_envs=2)
    space.seed(0)
    for _ in range(3):
        seen, later = (np.stack([space.sample() for _ in range(2)]) for _ in range(2))
        for buffer in (ours, theirs):
            buffer.add(seen, later, np.array([1, 2]), np.zeros(2), np.zeros(2), [{}, {}])
    batch = ours.sample(20)
    for row, (time, env) in enumerate(zip(batch.slots // 2, batch.slots % 2, strict=True)):
        assert np.array_equal(batch.observations[row], theirs.observations[time, env])
        assert np.array_equal(batch.next_observations[row], theirs.next_observations[time, env])
    assert batch.observations.dtype == theirs.sample(1).observations.dtype


def test_normalized_observations_and_rewards_are_vec_normalizes() -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0))
    model = PrioritizedDQN("MlpPolicy", env, n_steps=2, **SMALL)
    model.learn(100)
    batch = model.replay_buffer.sample(50, env=env)
    raw = model.replay_buffer.observations[batch.slots.numpy() // 2, batch.slots.numpy() % 2]
    assert np.allclose(batch.observations, env.normalize_obs(raw))
    reward = env.normalize_reward(np.ones(1))[0]
    one, two = (np.isclose(batch.rewards, reward * steps) for steps in (1.0, 1.99))
    assert (one | two).all() and two.any()


def huber_step(model: DQN, batch: Any, weights: torch.Tensor) -> torch.Tensor:
    """SB3's update by hand, with a weight a sample: the parameters it leads to are left in the model."""
    with torch.no_grad():
        next_values = model.q_net_target(batch.next_observations).max(dim=1).values[:, None]
        targets = batch.rewards + (1 - batch.dones) * 0.99 * next_values
    values = model.q_net(batch.observations).gather(1, batch.actions.long())
    losses = torch.stack([F.smooth_l1_loss(v, t) for v, t in zip(values, targets, strict=True)])
    model.policy.optimizer.zero_grad()
    (losses * weights[:, 0]).mean().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
    model.policy.optimizer.step()
    return (targets - values).detach().abs()[:, 0]


def recording(model: PrioritizedDQN, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every batch that the model samples from now on."""
    batches: list[Any] = []
    sample = model.replay_buffer.sample

    def record(*args: Any, **kwargs: Any) -> Any:
        batches.append(sample(*args, **kwargs))
        return batches[-1]

    monkeypatch.setattr(model.replay_buffer, "sample", record)
    return batches


@pytest.mark.parametrize("n_steps", [1, 3])
def test_with_equal_priorities_updates_are_those_of_dqn(n_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_vec_env("CartPole-v1", n_envs=2, seed=5)
    model = PrioritizedDQN("MlpPolicy", env, n_steps=n_steps, replay_buffer_kwargs={"priority_exponent": 0.0}, **SMALL)
    plain = DQN("MlpPolicy", env, n_steps=n_steps, **SMALL)
    plain.policy.load_state_dict(model.policy.state_dict())
    model.learn(60)
    plain._setup_learn(60)
    plain.policy.load_state_dict(model.policy.state_dict())
    plain.policy.optimizer.load_state_dict(copy.deepcopy(model.policy.optimizer.state_dict()))
    batches = recording(model, monkeypatch)
    model.train(20, 16)
    theirs = iter(ReplayBufferSamples(*batch[:6]) for batch in batches)
    monkeypatch.setattr(plain.replay_buffer, "sample", lambda *args, **kwargs: next(theirs))
    plain._current_progress_remaining = model._current_progress_remaining
    plain.train(20, 16)
    assert all(torch.equal(batch.weights, torch.ones(16, 1)) for batch in batches)
    for name, value in plain.q_net.state_dict().items():
        torch.testing.assert_close(model.q_net.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_losses_are_weighted_and_absolute_td_errors_become_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_vec_env("CartPole-v1", n_envs=2, seed=5)
    kwargs = {"priority_exponent": 1.0, "importance_initial": 0.3, "importance_final": 0.3}
    model, plain = (PrioritizedDQN("MlpPolicy", env, replay_buffer_kwargs=kwargs, **SMALL) for _ in range(2))
    model.learn(80)
    plain.policy.load_state_dict(model.policy.state_dict())
    plain.policy.optimizer.load_state_dict(copy.deepcopy(model.policy.optimizer.state_dict()))
    batches = recording(model, monkeypatch)
    model.train(1, 16)
    (batch,) = batches
    assert len(set(batch.weights[:, 0].tolist())) > 3
    errors = huber_step(plain, batch, batch.weights)
    for name, value in plain.q_net.state_dict().items():
        torch.testing.assert_close(model.q_net.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        model.replay_buffer.priorities.leaves.view(-1)[batch.slots], errors, rtol=1e-4, atol=1e-6
    )


def test_the_importance_exponent_moves_over_learn() -> None:
    env = make_vec_env("CartPole-v1", seed=5)
    kwargs = {"importance_initial": 0.2, "importance_final": 0.8}
    model = PrioritizedDQN("MlpPolicy", env, replay_buffer_kwargs=kwargs, train_freq=1, **SMALL)
    assert model.replay_buffer.importance == 0.2
    model.learn(100)
    assert model.replay_buffer.importance == pytest.approx(0.8, abs=0.01)


def test_a_time_limit_is_no_terminal_state() -> None:
    env = make_vec_env(lambda: gymnasium.wrappers.TimeLimit(gymnasium.make("CartPole-v1").unwrapped, 5), n_envs=2)
    model = PrioritizedDQN("MlpPolicy", env, n_steps=3, **SMALL)
    model.learn(60)
    batch = model.replay_buffer.sample(200)
    assert batch.discounts is not None and not batch.dones.any()
    assert sorted({round(float(d), 6) for d in batch.discounts}) == [0.970299, 0.9801, 0.99]
    assert torch.allclose(batch.rewards, (1 - batch.discounts) / (1 - 0.99), atol=1e-4)


def test_save_load_continue_is_an_unbroken_run(tmp_path: Path) -> None:
    """The generators are SB3's global ones, which a zip does not hold: they are carried by hand."""
    results = []
    for broken in (False, True):
        env = make_vec_env("CartPole-v1", n_envs=2, seed=5)
        model = PrioritizedDQN("MlpPolicy", env, n_steps=2, gamma=0.9, **SMALL)
        model.learn(100)
        if broken:
            states = torch.get_rng_state(), np.random.get_state(), model.action_space.np_random.bit_generator.state  # noqa: NPY002
            model.save(tmp_path / "model")
            model.save_replay_buffer(tmp_path / "replay")
            model = PrioritizedDQN.load(tmp_path / "model", env=env, force_reset=False, device="cpu")
            model.load_replay_buffer(tmp_path / "replay")
            torch.set_rng_state(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            model.action_space.np_random.bit_generator.state = states[2]
        model.learn(100, reset_num_timesteps=False)
        assert (model.replay_buffer.n_steps, model.replay_buffer.gamma, model.n_steps) == (2, 0.9, 2)
        results.append((model.q_net.state_dict(), model.replay_buffer.priorities.leaves))
    (unbroken, priorities), (again, priorities_again) = results
    assert all(torch.equal(value, again[name]) for name, value in unbroken.items())
    assert torch.equal(priorities, priorities_again)
    with pytest.warns(UserWarning, match="transitions are drawn uniformly"):
        assert load(tmp_path / "model.zip").agent.network is not None


def test_a_discount_given_at_load_is_that_of_the_returns(tmp_path: Path) -> None:
    PrioritizedDQN("MlpPolicy", "CartPole-v1", n_steps=2, gamma=0.9, **SMALL).save(tmp_path / "model")
    assert PrioritizedDQN.load(tmp_path / "model", gamma=0.5).replay_buffer.gamma == 0.5


def test_sb3s_dqn_takes_the_buffer_and_is_told_that_it_samples_uniformly() -> None:
    env = make_vec_env("CartPole-v1", n_envs=2, seed=5)
    model = DQN("MlpPolicy", env, replay_buffer_class=PrioritizedReplayBuffer, gamma=0.5, **SMALL)
    with pytest.warns(UserWarning, match="sampled uniformly, .* use nap_rl.sb3.PrioritizedDQN"):
        model.learn(100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PrioritizedDQN("MlpPolicy", env, n_steps=3, **SMALL).learn(100)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"priority_exponent": -0.1}, "priority exponent is -0.1, expected 0 or more"),
        ({"uniform_probability": 2.0}, "uniform_probability is 2.0, expected a number in"),
        ({"importance_final": 1.5}, r"importance_final=1.5, expected a number in \[0, 1\]"),
        ({"n_steps": 0}, "n_steps=0, expected a whole number of 1 or more"),
        (
            {"n_steps": 2, "optimize_memory_usage": True, "handle_timeout_termination": False},
            "optimize_memory_usage=True with n_steps=2, expected n_steps=1",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PrioritizedReplayBuffer(8, VECTOR, ACTIONS, **settings)


def test_dicts_other_buffers_and_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="takes no Dict of observations: use nap_rl.sb3.Rainbow"):
        PrioritizedReplayBuffer(8, spaces.Dict({"a": VECTOR}), ACTIONS)
    with pytest.raises(ValueError, match="replay_buffer_class is ReplayBuffer, expected PrioritizedReplayBuffer"):
        PrioritizedDQN("MlpPolicy", "CartPole-v1", replay_buffer_class=ReplayBuffer)
    model = PrioritizedDQN("MlpPolicy", "CartPole-v1", **SMALL)
    model.learn(60)
    with pytest.raises(ValueError, match="a priority is nan, expected finite numbers"):
        model.replay_buffer.update_priorities(torch.tensor([0]), torch.tensor([torch.nan]))
    model.replay_buffer.rewards[:] = np.nan
    with pytest.raises(Diverged, match="diverged at step 60: the loss is nan"):
        model.train(1, 8)


@pytest.mark.slow
def test_it_learns_cartpole() -> None:
    """With rl-zoo3's settings of DQN; 475 is solved."""
    env = make_vec_env("CartPole-v1", seed=0)
    model = PrioritizedDQN(
        "MlpPolicy",
        env,
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1_000,
        target_update_interval=10,
        train_freq=256,
        gradient_steps=128,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        seed=0,
        device="cpu",
    )
    best = 0.0
    for _ in range(10):
        model.learn(5_000, reset_num_timesteps=model.num_timesteps == 0)
        best = max(best, float(evaluate_policy(model, make_vec_env("CartPole-v1", seed=9), n_eval_episodes=10)[0]))
    assert best >= 475
