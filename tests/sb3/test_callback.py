"""NaP for SB3's own algorithms: norms before the optimiser is made, a projection of what each optimiser owns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO, SAC
from torch import nn

from nap_rl.nap import weight_groups
from nap_rl.sb3 import NaPCallback, nap_policy

OFF_POLICY = {"learning_starts": 100, "buffer_size": 2_000, "batch_size": 16, "learning_rate": 1e-2}
ALGORITHMS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "DQN": (DQN, "CartPole-v1", {**OFF_POLICY, "train_freq": 8}),
    "QRDQN": (QRDQN, "CartPole-v1", {**OFF_POLICY, "train_freq": 8, "policy_kwargs": {"n_quantiles": 10}}),
    "PPO": (PPO, "CartPole-v1", {"n_steps": 256, "learning_rate": 1e-2, "n_epochs": 2}),
    "A2C": (A2C, "CartPole-v1", {"learning_rate": 1e-2}),
    "SAC": (SAC, "Pendulum-v1", {**OFF_POLICY, "train_freq": 8, "policy_kwargs": {"net_arch": [32, 32]}}),
}
OUTPUTS = {"action_net", "value_net", "mu", "log_std"}
LAST = ("q_net.4", "quantile_net.4", "qf0.4", "qf1.4")  # of the chains that end in an output


@pytest.mark.parametrize("steps", [600, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_drift_is_below_a_millionth(name: str, steps: int) -> None:
    algorithm, env, settings = ALGORITHMS[name]
    model = algorithm(nap_policy(algorithm, "MlpPolicy"), env, seed=0, device="cpu", **settings)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    callback = NaPCallback()
    model.learn(steps, callback=callback)
    assert callback.max_relative_drift() < 1e-6
    assert set(callback.projectors) == ({"actor", "critic"} if name == "SAC" else {"policy"})
    # Independently of the projector: the norms of all weights but those of the outputs are what they were.
    moved = norms = 0
    for key, value in model.policy.state_dict().items():
        if key.endswith(".weight") and value.dim() == 2 and "target" not in key:
            drift = abs(float(value.double().norm() / before[key].double().norm()) - 1)
            turned = not torch.allclose(value, before[key], atol=1e-3)
            layer = key.removesuffix(".weight")
            output = layer.split(".")[-1] in OUTPUTS or layer.endswith(LAST)
            assert output or drift < 1e-6, key
            moved += turned and not output
            norms += not output
    assert moved == norms >= 2  # and each has learnt


def test_each_optimizer_projects_only_what_it_owns() -> None:
    """Projecting the critic in the actor's step would change weights that autograd still needs: SAC crashed on it."""
    algorithm, env, settings = ALGORITHMS["SAC"]
    model = algorithm(nap_policy(SAC, "MlpPolicy"), env, seed=0, device="cpu", **settings)
    callback = NaPCallback(affine="project")
    model.learn(130, callback=callback)
    for name, module in {"actor": model.actor, "critic": model.critic}.items():
        owned = {parameter for group in module.optimizer.param_groups for parameter in group["params"]}
        projector = callback.projectors[name]
        assert {p for tensors in weight_groups(module).values() for p in tensors} <= owned
        assert projector.optimizer is module.optimizer and len(projector.groups) == (4 if name == "actor" else 8)
    targets = {name: p.clone() for name, p in model.critic_target.named_parameters()}
    for projector in callback.projectors.values():
        projector.project()
    assert all(torch.equal(p, targets[name]) for name, p in model.critic_target.named_parameters())


@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_cnn_policies_are_normalised_and_own_their_gains(name: str, pong: Any) -> None:
    algorithm = ALGORITHMS[name][0]
    env = pong()
    settings = {"buffer_size": 100, "learning_starts": 20} if name == "DQN" else {"n_steps": 16, "batch_size": 8}
    model = algorithm(nap_policy(algorithm, "CnnPolicy"), env, seed=0, device="cpu", **settings)
    norms = [m for m in model.policy.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    owned = {parameter for group in model.policy.optimizer.param_groups for parameter in group["params"]}
    online = norms if name == "PPO" else norms[: len(norms) // 2]
    assert len(online) == 4 and all(norm.weight in owned for norm in online)
    callback = NaPCallback()
    model.learn(32, callback=callback)
    assert callback.max_relative_drift() < 1e-6
    env.close()


def test_a_policy_without_norms_is_refused() -> None:
    model = DQN("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(ValueError, match=r"NaPCallback cannot project the policy of DQN: .*nap_policy\(DQN"):
        model.learn(10, callback=NaPCallback())
    with pytest.raises(ValueError, match="DQN has no policy 'LstmPolicy' here"):
        nap_policy(DQN, "LstmPolicy")


def test_sb3_saves_and_loads_a_normalised_policy(tmp_path: Path) -> None:
    model = PPO(nap_policy(PPO, "MlpPolicy", norm="rms"), "CartPole-v1", n_steps=64, device="cpu", seed=0)
    model.learn(64, callback=NaPCallback())
    model.save(tmp_path / "ppo")
    again = PPO.load(tmp_path / "ppo", device="cpu")
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected = model.predict(observations, deterministic=True)[0]
    assert np.array_equal(again.predict(observations, deterministic=True)[0], expected)


def test_a_second_learn_goes_on_with_the_same_norms() -> None:
    model = A2C(nap_policy(A2C, "MlpPolicy"), "CartPole-v1", device="cpu", seed=0)
    callback = NaPCallback(every=7)
    model.learn(50, callback=callback)
    projectors = dict(callback.projectors)
    model.learn(50, callback=callback, reset_num_timesteps=False)
    assert callback.projectors == projectors and projectors["policy"].updates == 20
