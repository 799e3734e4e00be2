"""Rainbow under SB3's own vector environments, callbacks, evaluation and zips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from nap_rl.agents import whole_update
from nap_rl.nap import scale_invariance
from nap_rl.sb3 import Rainbow, load

SMALL: dict[str, Any] = {"learning_starts": 40, "buffer_size": 400, "batch_size": 8, "seed": 3, "device": "cpu"}


def cartpole(num_envs: int = 2, seed: int = 5) -> VecEnv:
    return make_vec_env("CartPole-v1", n_envs=num_envs, seed=seed)


def weights(model: Rainbow) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


class Watch(BaseCallback):
    """Keeps what was acted on and what came of it."""

    def __init__(self) -> None:
        super().__init__()
        self.observations: list[Any] = []
        self.rewards: list[Any] = []
        self.dones: list[Any] = []

    def _on_step(self) -> bool:
        self.observations.append(np.array(self.model._last_obs))  # type: ignore[attr-defined]
        self.rewards.append(np.array(self.locals["rewards"]))
        self.dones.append(np.array(self.locals["dones"]))
        return True


@pytest.mark.parametrize("stacked", [True, False])
def test_replay_gives_back_the_observations_that_the_environment_gave(stacked: bool) -> None:
    """Real Breakout, whose lives end episodes: frames are stored once, stacks come back with their zeros."""
    env = make_atari_env("BreakoutNoFrameskip-v4", n_envs=2, seed=1)
    env = VecFrameStack(env, 4) if stacked else env
    model = Rainbow("CnnPolicy", env, n_steps=3, **{**SMALL, "learning_starts": 400, "policy_kwargs": {"hidden": 16}})
    watch = Watch()
    model.learn(360, callback=watch)
    replay = model.agent.replay
    assert replay.frames.shape[1:] == (84, 84) and replay.stack == (4 if stacked else 1)
    observations, dones, rewards = np.stack(watch.observations), np.stack(watch.dones), np.stack(watch.rewards)
    assert dones.sum() >= 4  # episodes ended on the way
    slots = torch.from_numpy(np.flatnonzero(replay.valid))
    s_tm1, _, r_t, discount_t, s_t = replay.gather(slots)
    seen = 0
    for row, slot in enumerate(slots.tolist()):
        column, serial = divmod(slot, replay.length)
        # A column has one slot more for the last frame of each episode that ended.
        t = int(np.flatnonzero(np.arange(180) + np.concatenate([[0], dones[:-1, column].cumsum()]) == serial)[0])
        assert np.array_equal(s_tm1[row], observations[t, column]), (row, t)
        ends = np.flatnonzero(dones[t : t + 3, column])
        steps = int(ends[0]) + 1 if len(ends) else 3
        expected = sum(0.99**k * np.clip(rewards[t + k, column], -1, 1) for k in range(steps))
        assert float(r_t[row]) == pytest.approx(expected, abs=1e-6)
        assert float(discount_t[row]) == pytest.approx(0.0 if len(ends) else 0.99**3)
        if not len(ends) and t + 3 < 180:
            assert np.array_equal(s_t[row], observations[t + 3, column])
            seen += 1
    assert seen > 200
    env.close()


@pytest.mark.parametrize("nap", [pytest.param(False, marks=pytest.mark.slow), True])
def test_updates_as_one_function_learn_the_same_and_go_through_a_zip(
    nap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)  # operator by operator
    found = []
    for whole in (False, True):
        monkeypatch.setattr(whole_update, "pick_compile", lambda name, updates, whole=whole: whole)
        model = Rainbow("MlpPolicy", cartpole(), nap=nap, **SMALL)
        model.learn(120)
        model.save(tmp_path / "model.zip")
        model.save_replay_buffer(tmp_path / "replay")
        again = Rainbow.load(tmp_path / "model.zip", cartpole())
        again.load_replay_buffer(tmp_path / "replay")
        again.learn(60, reset_num_timesteps=False)
        assert isinstance(again.agent.gradient_step, whole_update.WholeUpdate) == whole
        assert model._n_updates > 5 and (tmp_path / "model.zip").stat().st_size < 2e6
        found.append(weights(again))
    for name, plain in found[0].items():
        torch.testing.assert_close(found[1][name], plain, rtol=1e-4, atol=1e-5)


def test_a_loaded_replay_is_what_a_compiled_update_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)
    model = Rainbow("MlpPolicy", cartpole(), compile="on", **SMALL)
    model.learn(60)
    model.save_replay_buffer(tmp_path / "replay")
    size = len(model.agent.replay)
    model.learn(60, reset_num_timesteps=False)
    model.load_replay_buffer(tmp_path / "replay")
    assert len(model.agent.replay) == size
    priorities = model.agent.replay.state_dict()["priorities.leaves"]
    model.agent.update(0.5)
    assert not torch.equal(model.agent.replay.state_dict()["priorities.leaves"], priorities)


@pytest.mark.parametrize(("setting", "whole"), [("on", True), ("off", False), ("auto", False)])
def test_a_short_run_is_compiled_where_that_is_asked_for(
    setting: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph)
    model = Rainbow("MlpPolicy", cartpole(), compile=setting, **SMALL)
    model.learn(2)
    assert isinstance(model.agent.gradient_step, whole_update.WholeUpdate) == whole


def test_another_word_for_compile_is_refused() -> None:
    with pytest.raises(ValueError, match="compile is 'yes', expected auto, on or off"):
        Rainbow("MlpPolicy", cartpole(), compile="yes", **SMALL)


def test_a_time_limit_is_no_terminal_state() -> None:
    env = make_vec_env(lambda: TimeLimit(gymnasium.make("CartPole-v1").unwrapped, 5), n_envs=2, seed=0)
    model = Rainbow("MlpPolicy", env, **{**SMALL, "learning_starts": 1000})
    watch = Watch()
    model.learn(60, callback=watch)
    assert np.stack(watch.dones).sum() == 12
    replay = model.agent.replay
    _, _, r_t, discount_t, _ = replay.gather(torch.from_numpy(np.flatnonzero(replay.valid)))
    steps = torch.log(discount_t) / np.log(0.99)  # every window bootstraps, from 1 to 3 steps on
    assert sorted({round(float(step), 3) for step in steps}) == [1.0, 2.0, 3.0]
    assert torch.allclose(r_t, (1 - discount_t) / (1 - 0.99), atol=1e-4)  # a reward of 1 a step


@pytest.mark.parametrize("num_envs", [1, 4])
def test_trap_updates_keep_their_ratio_to_transitions(num_envs: int) -> None:
    model = Rainbow("MlpPolicy", cartpole(num_envs), train_freq=8, gradient_steps=2, **SMALL)
    model.learn(200)
    assert model._n_updates == model.agent.updates == 2 * (160 // 8)


@pytest.mark.parametrize(
    ("policy", "nap"),
    [
        ("MlpPolicy", True),
        pytest.param("MlpPolicy", False, marks=pytest.mark.slow),
        pytest.param("CnnPolicy", True, marks=pytest.mark.slow),
    ],
)
def test_save_load_continue_is_an_unbroken_run(
    policy: str, nap: bool, tmp_path: Path, pong: Callable[..., VecEnv]
) -> None:
    make, steps = (cartpole, 100) if policy == "MlpPolicy" else (pong, 40)
    settings = {**SMALL, "learning_starts": 20, "nap": nap, "exploration_final_eps": 0.1}
    settings["policy_kwargs"] = {"hidden": 16} if policy == "CnnPolicy" else {}
    results = []
    for broken in (False, True):
        env = make(2)
        model = Rainbow(policy, env, **settings)
        model.learn(steps)
        if broken:
            model.save(tmp_path / "model")
            model.save_replay_buffer(tmp_path / "replay")
            model = Rainbow.load(tmp_path / "model", env=env, force_reset=False, device="cpu")
            model.load_replay_buffer(tmp_path / "replay")
        model.learn(steps, reset_num_timesteps=False)
        results.append((weights(model), model.num_timesteps, model._n_updates, model._last_obs))
        env.close()
    (unbroken, *counts, observation), (again, *counts_again, observation_again) = results
    assert counts == counts_again == [2 * steps, (2 * steps - 20) // model.settings.train_freq]
    assert np.array_equal(observation, observation_again)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, again[name]) for name, tensor in unbroken.items())


def test_sb3s_callbacks_and_evaluation_run(tmp_path: Path) -> None:
    env = cartpole()
    model = Rainbow("MlpPolicy", env, nap=True, **SMALL)
    folder = str(tmp_path)
    folder, quiet = str(tmp_path), {"log_path": str(tmp_path), "verbose": 0}
    evaluation = EvalCallback(cartpole(1, seed=9), eval_freq=50, best_model_save_path=folder, **quiet)
    checkpoints = CheckpointCallback(50, str(tmp_path), name_prefix="cp", save_replay_buffer=True)
    model.learn(300, callback=[evaluation, checkpoints], progress_bar=True)
    assert len(evaluation.evaluations_timesteps) == 3 and np.isfinite(evaluation.last_mean_reward)
    best = Rainbow.load(tmp_path / "best_model", device="cpu")
    mean, _ = evaluate_policy(best, cartpole(1, seed=9), n_eval_episodes=3)
    assert np.isfinite(mean)
    later = Rainbow.load(tmp_path / "cp_200_steps", env=env, device="cpu")
    later.load_replay_buffer(tmp_path / "cp_replay_buffer_200_steps.pkl")
    assert later.num_timesteps == 200 and len(later.agent.replay) > 150
    later.learn(40, reset_num_timesteps=False)
    # SB3 calls callbacks before a step of the vector is stored: that one is missing after its checkpoint.
    assert later.num_timesteps == 240 and later._n_updates == (240 - 40 - 2) // model.settings.train_freq


def test_the_logger_has_sb3s_names_and_nap_drift() -> None:
    model = Rainbow("MlpPolicy", cartpole(), nap=True, **SMALL)
    rows: list[dict[str, Any]] = []

    class Rows(Logger):
        def dump(self, step: int = 0) -> None:
            rows.append(dict(self.name_to_value))

    model.set_logger(Rows(folder=None, output_formats=[]))
    model.learn(300, log_interval=1)
    names = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/loss", "train/learning_rate"}
    assert names | {"train/n_updates", "rollout/exploration_rate", "train/grad_norm"} <= set(rows[-1])
    assert rows[-1]["nap/norm_drift"] < 1e-6


def test_nap_makes_every_hidden_layer_scale_invariant_and_holds_its_norm() -> None:
    env = cartpole()
    model = Rainbow("MlpPolicy", env, nap=True, learning_rate=1e-2, **SMALL)
    assert model.projector is not None
    before = {name: float(norm) for name, norm in model.projector.groups.items()}
    model.learn(300)
    layers = dict(model.policy.q_net.named_modules())
    change = scale_invariance(model.policy.q_net, torch.randn(8, 1, 4))
    assert len(before) == 3  # hidden layers
    assert max(change[name] for name in before if name in change) < 1e-3
    assert min(change[name] for name in change if name not in before) > 0.1  # outputs
    norms = {name: sum(float(p.detach().norm()) ** 2 for p in layers[name].parameters()) ** 0.5 for name in before}
    assert max(abs(norms[name] / before[name] - 1) for name in before) < 1e-6


def test_deterministic_predictions_have_no_noise_and_others_do() -> None:
    env = cartpole()
    model = Rainbow("MlpPolicy", env, policy_kwargs={"noisy_sigma0": 20.0}, **SMALL)
    observations = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    greedy = [model.predict(observations, deterministic=True)[0] for _ in range(2)]
    noisy = [model.predict(observations)[0] for _ in range(2)]
    assert np.array_equal(*greedy) and not np.array_equal(*noisy)
    assert model.predict(observations[0], deterministic=True)[0].shape == ()


@pytest.mark.slow
def test_subprocess_environments_and_stacked_vectors() -> None:
    env = VecFrameStack(SubprocVecEnv([lambda: gymnasium.make("CartPole-v1")] * 2), 3)
    model = Rainbow("MlpPolicy", env, **SMALL)
    watch = Watch()
    model.learn(120, callback=watch)
    assert (model.frame_stack, model.frame_shape) == (3, (4,))
    replay = model.agent.replay
    s_tm1, *_ = replay.gather(torch.from_numpy(np.flatnonzero(replay.valid)))
    given = {observation.tobytes() for step in watch.observations for observation in step}
    assert len(s_tm1) > 80 and model._n_updates > 0
    assert all(state.numpy().tobytes() in given for state in s_tm1)
    env.close()


class Colours(gymnasium.Env[Any, Any]):
    """36x36 pictures of three channels, channels last; always the same reward."""

    observation_space = gymnasium.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 7, False, {}


@pytest.mark.parametrize("stack", [1, 2])
def test_pictures_of_several_channels_and_another_size(stack: int, tmp_path: Path) -> None:
    env: VecEnv = DummyVecEnv([Colours, Colours])
    env = VecFrameStack(env, stack) if stack > 1 else env
    model = Rainbow("CnnPolicy", env, policy_kwargs={"hidden": 16}, **SMALL)
    assert isinstance(model.env, VecTransposeImage)
    model.learn(80)
    assert model.agent.replay.frames.shape[1:] == (3, 36, 36) and model.frame_stack == stack
    model.save(tmp_path / "colours")
    observations = np.random.default_rng(0).integers(0, 256, (20, 36, 36, 3 * stack), dtype=np.uint8)
    expected = model.predict(observations, deterministic=True)[0]
    assert np.array_equal(Rainbow.load(tmp_path / "colours").predict(observations, deterministic=True)[0], expected)
    assert np.array_equal(load(tmp_path / "colours.zip").predict(observations)[0], expected)


def test_a_model_loaded_to_predict_learns_once_it_has_an_environment(tmp_path: Path) -> None:
    model = Rainbow("MlpPolicy", cartpole(), learning_rate=lambda left: 1e-3 * left, **SMALL)
    model.learn(80)
    model.save(tmp_path / "model.zip")
    loaded = Rainbow.load(tmp_path / "model.zip", batch_size=4, device="cpu")
    assert loaded.env is None and loaded.agent.replay.window == 4 and loaded.agent.batch_size == 4
    assert loaded.settings.learning_rate == model.policy.optimizer.param_groups[0]["lr"]
    other = Rainbow("MlpPolicy", cartpole(), **{**SMALL, "seed": 4})
    other.set_parameters(str(tmp_path / "model.zip"), device="cpu")  # SB3's own way, weights alone
    assert all(torch.equal(tensor, weights(model)[name]) for name, tensor in weights(other).items())
    loaded.set_env(cartpole())
    assert loaded.agent.replay.window == 200
    loaded.learn(80)


class SixChannels(Colours):
    observation_space = gymnasium.spaces.Box(0, 255, (36, 36, 6), np.uint8)


def test_another_frame_stacking_of_the_same_shape_is_refused() -> None:
    """Six channels are two frames of three, or one of six: the replay would make other states of them."""
    stacked = VecFrameStack(DummyVecEnv([Colours, Colours]), 2)
    model = Rainbow("CnnPolicy", stacked, policy_kwargs={"hidden": 16}, **SMALL)
    with pytest.raises(ValueError, match=r"stacks 1 frames of \[6, 36, 36\], but this model was made for 2 of \[3"):
        model.set_env(DummyVecEnv([SixChannels, SixChannels]))


class Camera(Colours):
    observation_space = gymnasium.spaces.Dict(
        camera=gymnasium.spaces.Box(0, 255, (36, 36, 3), np.uint8), speed=gymnasium.spaces.Box(-1, 1, (2,))
    )


@pytest.mark.parametrize(
    ("policy", "env", "settings", "sentence"),
    [
        ("CnnPolicy", "CartPole-v1", {}, "CnnPolicy needs images"),
        ("LstmPolicy", "CartPole-v1", {}, "policy='LstmPolicy' is none of CnnPolicy, MlpPolicy"),
        ("MlpPolicy", "CartPole-v1", {"gama": 0.9}, "no setting 'gama'"),
        ("MlpPolicy", "CartPole-v1", {"gamma": 1.5}, r"gamma=1.5, expected a number in \[0, 1\]"),
        ("MlpPolicy", "CartPole-v1", {"batch_size": 2.5}, "batch_size=2.5, expected a whole number"),
        ("MlpPolicy", "CartPole-v1", {"policy_kwargs": {"breadth": 3}}, "policy_kwargs has 'breadth'"),
        ("MlpPolicy", "CartPole-v1", {"policy_kwargs": {"head": "iqn"}}, "head='iqn' is none of"),
        ("MlpPolicy", "CartPole-v1", {"nap": True, "policy_kwargs": {"norm": None}}, "nap=True projects"),
        ("MlpPolicy", "CartPole-v1", {"buffer_size": 10**11}, "buffer_size=100000000000 needs .* GB of memory"),
        (
            "MultiInputPolicy",
            Camera(),
            {},
            "reads vectors here, but 'camera' of the observations is an image",
        ),
        ("MlpPolicy", VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")])), {}, "VecNormalize"),
        (
            "MlpPolicy",
            VecFrameStack(VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")])), 2),
            {},
            "VecNormalize is not supported",
        ),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(policy: str, env: Any, settings: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        Rainbow(policy, env, **settings)
    assert "\n" not in str(refusal.value)


def test_saving_keeps_the_old_zip_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Rainbow("MlpPolicy", cartpole(), **SMALL)
    path = tmp_path / "model.zip"
    model.save(path)
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        model.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_damaged_replay_file_is_refused(tmp_path: Path) -> None:
    model = Rainbow("MlpPolicy", cartpole(), **SMALL)
    model.learn(60)
    path = tmp_path / "replay"
    model.save_replay_buffer(path)
    path.write_bytes(path.read_bytes()[:-100])
    replay = model.agent.replay
    with pytest.raises(ValueError, match="is no replay that fits this model"):
        model.load_replay_buffer(path)
    assert model.agent.replay is replay


@pytest.mark.slow
def test_cartpole_is_solved_within_60k_steps(tmp_path: Path) -> None:
    """Solved: SB3's EvalCallback sees 475 over 20 episodes, and that model has 475 over 20 others as well.

    The model after all 60k steps is not held to it: docs/guides/sb3.md says what those scored.
    """
    model = Rainbow("MlpPolicy", "CartPole-v1", nap=True, learning_rate=lambda left: 1e-3 * left, seed=0, device="cpu")
    evaluation = EvalCallback(
        cartpole(1, seed=50),
        callback_on_new_best=StopTrainingOnRewardThreshold(475),
        n_eval_episodes=20,
        eval_freq=5_000,
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model.learn(60_000, callback=evaluation)
    best = Rainbow.load(tmp_path / "best_model", device="cpu")
    returns, _ = evaluate_policy(best, cartpole(1, seed=100), n_eval_episodes=20, return_episode_rewards=True)
    print(f"{model.num_timesteps} steps, mean return {np.mean(returns):.1f}, of 20 episodes: {returns}")
    assert np.mean(returns) >= 475
