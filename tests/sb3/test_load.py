"""Zips of SB3 become agents that act and learn on exactly as in SB3."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from nap_rl.replay import Transitions
from nap_rl.sb3 import LoadedPolicy, ZipError, load

Observations = npt.NDArray[np.uint8]
Sb3Zip = tuple[Any, Path]


def open_in_sb3(sb3_zip: Sb3Zip) -> Any:
    algorithm, path = sb3_zip
    return algorithm.load(path, buffer_size=10, device="cpu")


def q_values(model: Any, stacks: Tensor) -> Tensor:
    with torch.no_grad():
        return model.q_net(stacks) if isinstance(model, DQN) else model.quantile_net(stacks).mean(dim=1)


def test_actions_and_q_values_agree_on_1000_real_observations(sb3_zip: Sb3Zip, observations: Observations) -> None:
    theirs, ours = open_in_sb3(sb3_zip), load(sb3_zip[1])
    expected, _ = theirs.predict(observations, deterministic=True)
    actions, state = ours.predict(observations)
    assert state is None and actions.shape == (1000,)
    assert int((actions == expected).sum()) == 1000
    stacks = torch.from_numpy(np.moveaxis(observations, -1, 1).copy())
    with torch.no_grad():
        q = ours.agent.network.q_values(stacks)
        q_target = ours.agent.target.q_values(stacks[:50])
    assert (q - q_values(theirs, stacks)).abs().max() <= 1e-5
    assert not torch.equal(q[:50], q_target)  # the target network is one of its own


class OneBatch:
    """In the place of either library's replay: the same batch, always."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        return self.batch

    def update(self, *args: Any) -> None:
        pass


def one_batch(observations: Observations) -> tuple[Transitions, ReplayBufferSamples]:
    """The same 32 transitions, terminals among them, for both libraries."""
    rng = np.random.default_rng(0)
    stacks = torch.from_numpy(np.moveaxis(observations, -1, 1).copy())
    s_tm1, s_t = stacks[rng.integers(0, 1000, 32)], stacks[rng.integers(0, 1000, 32)]
    a_tm1 = torch.from_numpy(rng.integers(0, 6, 32))
    r_t = torch.from_numpy(rng.choice([-1.0, 0.0, 1.0], 32)).float()
    done = torch.from_numpy(rng.random(32) < 0.2).float()
    none = torch.zeros(32, dtype=torch.int64)
    ours = Transitions(s_tm1, a_tm1, r_t, 0.99 * (1 - done), s_t, torch.ones(32), none, none)
    theirs = ReplayBufferSamples(s_tm1, a_tm1[:, None], s_t, done[:, None], r_t[:, None], None)
    return ours, theirs


def test_a_further_gradient_step_gives_the_same_weights(sb3_zip: Sb3Zip, observations: Observations) -> None:
    theirs, ours = open_in_sb3(sb3_zip), load(sb3_zip[1])
    batch, sb3_batch = one_batch(observations)
    before = copy.deepcopy(ours.agent.network.state_dict())
    ours.agent.replay = OneBatch(batch)  # type: ignore[assignment]
    theirs.replay_buffer = OneBatch(sb3_batch)
    theirs.set_logger(SimpleNamespace(record=lambda *args, **kwargs: None))
    ours.agent.update()
    theirs.train(gradient_steps=1, batch_size=32)
    moved = max(float((ours.agent.network.state_dict()[name] - w).abs().max()) for name, w in before.items())
    assert moved > 1e-5  # a step was made
    saved = sb3_zip[1].with_name("further.zip")
    theirs.save(saved)
    further = load(saved).agent
    for name, weight in further.network.state_dict().items():
        assert (weight - ours.agent.network.state_dict()[name]).abs().max() <= 1e-6, name
    states = [agent.optimizer.state_dict()["state"].values() for agent in (further, ours.agent)]
    for theirs_moments, our_moments in zip(*states, strict=True):
        assert theirs_moments["step"] == our_moments["step"] > 1
        for kind in ("exp_avg", "exp_avg_sq"):
            assert torch.allclose(theirs_moments[kind], our_moments[kind], atol=1e-6)


def test_settings_are_those_of_the_zip(sb3_zip: Sb3Zip) -> None:
    theirs, ours = open_in_sb3(sb3_zip), load(sb3_zip[1])
    group, expected = ours.agent.optimizer.param_groups[0], theirs.policy.optimizer.param_groups[0]
    assert [group[name] for name in ("lr", "betas", "eps")] == [expected[name] for name in ("lr", "betas", "eps")]
    assert ours.agent.max_grad_norm == theirs.max_grad_norm
    assert ours.agent.updates == theirs._n_updates > 0
    assert ours.agent.target_every_updates == 60 // 4
    assert (ours.agent.replay.discount, ours.agent.replay.n_steps, ours.agent.batch_size) == (0.99, 1, 32)
    assert ours.exploration_rate == theirs.exploration_rate > 0


def test_trap_the_newest_frame_is_the_last_channel(dqn_zip: Path, observations: Observations) -> None:
    ours = load(dqn_zip).agent
    with torch.no_grad():
        right = ours.network.q_values(torch.from_numpy(np.moveaxis(observations, -1, 1).copy()))
        reversed_ = ours.network.q_values(torch.from_numpy(np.moveaxis(observations[..., ::-1], -1, 1).copy()))
    assert (right - reversed_).abs().max() > 1e-3


def test_predict_takes_one_or_many_with_channels_first_or_last(dqn_zip: Path, observations: Observations) -> None:
    policy = load(dqn_zip)
    many, _ = policy.predict(observations[:5])
    first, _ = policy.predict(np.moveaxis(observations[:5], -1, 1))
    assert np.array_equal(many, first)
    one, state = policy.predict(observations[0], state=None, episode_start=np.array([True]))
    assert one.shape == () and one == many[0] and state is None
    with pytest.raises(ValueError, match=r"shape \[84, 84\], expected \[4, 84, 84\]"):
        policy.predict(observations[0, ..., 0])


def test_predict_explores_at_the_saved_rate_if_asked_to(dqn_zip: Path, observations: Observations) -> None:
    policy = load(dqn_zip)
    loud = LoadedPolicy(policy.agent, policy.model, exploration_rate=0.6)
    greedy, _ = loud.predict(observations)
    explored, _ = loud.predict(observations, deterministic=False)
    assert 0.4 < (greedy != explored).mean() < 0.6  # 5 of 6 random actions are others


def test_sb3_evaluates_the_loaded_policy(tmp_path: Path) -> None:
    theirs = DQN("MlpPolicy", "CartPole-v1", seed=0)
    theirs.save(tmp_path / "cartpole")
    env = make_vec_env("CartPole-v1", n_envs=2, seed=1)
    ours = evaluate_policy(load(tmp_path / "cartpole.zip"), env, n_eval_episodes=6, return_episode_rewards=True)  # type: ignore[arg-type]
    env.seed(1)
    assert ours == evaluate_policy(theirs, env, n_eval_episodes=6, return_episode_rewards=True)


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
@pytest.mark.parametrize("widths", [[], [8], [16, 12, 8]])
def test_mlp_policies_load_as_well(algorithm: Any, widths: list[int], tmp_path: Path) -> None:
    theirs = algorithm(
        "MlpPolicy", "CartPole-v1", learning_starts=20, buffer_size=100, policy_kwargs={"net_arch": widths}, seed=0
    )
    theirs.learn(60)
    theirs.save(tmp_path / "mlp")
    observation = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    ours = load(tmp_path / "mlp.zip")
    with torch.no_grad():
        q = ours.agent.network.q_values(torch.from_numpy(observation)[:, None])
    assert (q - q_values(theirs, torch.from_numpy(observation))).abs().max() <= 1e-5
    assert np.array_equal(ours.predict(observation)[0], theirs.predict(observation, deterministic=True)[0])


class Bytes(gymnasium.Env[Any, Any]):
    """Bytes that are no picture, such as the memory of a console."""

    observation_space = gymnasium.spaces.Box(0, 255, (6,), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)


def test_trap_bytes_that_are_no_picture_are_not_divided_by_255(tmp_path: Path) -> None:
    theirs = DQN("MlpPolicy", Bytes(), policy_kwargs={"net_arch": [16, 16]}, seed=0)
    theirs.save(tmp_path / "bytes")
    observations = np.random.default_rng(0).integers(0, 256, (300, 6), dtype=np.uint8)
    actions = load(tmp_path / "bytes.zip").predict(observations)[0]
    assert np.array_equal(actions, theirs.predict(observations, deterministic=True)[0])
    assert len(set(actions.tolist())) > 1


@pytest.mark.parametrize("kind", [nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh])
@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_policies_with_another_activation_act_as_in_sb3(algorithm: Any, kind: type[nn.Module], tmp_path: Path) -> None:
    theirs = algorithm("MlpPolicy", "CartPole-v1", policy_kwargs={"activation_fn": kind, "net_arch": [16, 16]})
    theirs.save(tmp_path / "model")
    ours = load(tmp_path / "model.zip")
    x = torch.randn(64, 4) * 3
    with torch.no_grad():
        assert (ours.agent.network.q_values(x.unsqueeze(1)) - q_values(theirs, x)).abs().max() <= 1e-6


def test_an_activation_that_a_cnn_policy_never_uses_does_not_matter(tmp_path: Path) -> None:
    class Images(Bytes):
        observation_space = gymnasium.spaces.Box(0, 255, (4, 36, 36), np.uint8)

    theirs = DQN("CnnPolicy", Images(), policy_kwargs={"activation_fn": nn.Tanh}, buffer_size=10, seed=0)
    theirs.save(tmp_path / "cnn")
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 4, 36, 36), dtype=np.uint8))
    with torch.no_grad():
        assert (load(tmp_path / "cnn.zip").agent.network.q_values(x) - q_values(theirs, x)).abs().max() <= 1e-5
    kwargs = {"activation_fn": nn.Tanh, "net_arch": [16]}
    DQN("CnnPolicy", Images(), policy_kwargs=kwargs, buffer_size=10).save(tmp_path / "mixed")
    with pytest.raises(
        ZipError, match="was trained with activation_fn Tanh behind the ReLUs of NatureCNN, expected ReLU"
    ):
        load(tmp_path / "mixed.zip")


def test_another_optimizer_than_adam_is_said(tmp_path: Path) -> None:
    kwargs = {"optimizer_class": torch.optim.RMSprop, "net_arch": [8]}
    theirs = DQN("MlpPolicy", "CartPole-v1", learning_starts=20, buffer_size=100, policy_kwargs=kwargs)
    theirs.learn(40)
    theirs.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="was trained with .*RMSprop.*: Adam takes its place, without moments"):
        policy = load(tmp_path / "model.zip")
    assert policy.agent.optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize(
    ("algorithm", "kwargs", "sentence"),
    [
        (DQN, {"activation_fn": nn.Mish}, "was trained with activation_fn .*Mish.*, expected one of ReLU, LeakyReLU, "),
        (PPO, {}, "holds a PPO policy: DQN, QR-DQN and Rainbow are read"),
    ],
)
def test_what_would_act_differently_is_refused(algorithm: Any, kwargs: Any, sentence: str, tmp_path: Path) -> None:
    algorithm("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs).save(tmp_path / "model.zip")
    with pytest.raises(ZipError, match=sentence) as refusal:
        load(tmp_path / "model.zip")
    assert str(refusal.value).startswith(str(tmp_path / "model.zip"))


def test_the_optimizer_of_sb3_before_2_4_listed_the_target_too(dqn_zip: Path) -> None:
    from nap_rl.sb3 import archive
    from nap_rl.sb3.model import _moments

    read = archive.read(dqn_zip)
    names = [name for name in read.policy if name.startswith("q_net.")]
    group = read.optimizer["param_groups"][0]
    group["params"] = list(range(2 * len(names)))
    assert set(_moments(read, names, read.policy)) == set(names)
