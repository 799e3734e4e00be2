"""Runs of ours become zips that SB3's own `load` opens, or those of Rainbow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN

from nap_rl import checkpoint, cli
from nap_rl.agents import ValueAgent
from nap_rl.conf import build, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.environments import Observations as Seen
from nap_rl.nap import Projector
from nap_rl.sb3 import Rainbow, export, load

Observations = npt.NDArray[np.uint8]
Checkpointed = Callable[..., tuple[ValueAgent, Projector | None]]


@pytest.mark.parametrize(("name", "algorithm"), [("dqn", DQN), pytest.param("qr_dqn", QRDQN, marks=pytest.mark.slow)])
def test_sb3_opens_what_is_its_own(
    checkpoint_of: Checkpointed, name: str, algorithm: Any, tmp_path: Path, observations: Observations
) -> None:
    agent, _ = checkpoint_of(tmp_path, f"agent={name}", "agent.noisy_sigma0=null")
    assert export(tmp_path, tmp_path / "model.zip") == algorithm.__name__
    theirs = algorithm.load(tmp_path / "model.zip", device="cpu")
    stacks = torch.from_numpy(np.moveaxis(observations[:200], -1, 1).copy())
    with torch.no_grad():
        q = agent.network.q_values(stacks)
        expected = theirs.q_net(stacks) if name == "dqn" else theirs.quantile_net(stacks).mean(dim=1)
        target = theirs.q_net_target(stacks) if name == "dqn" else theirs.quantile_net_target(stacks).mean(dim=1)
        assert (agent.target.q_values(stacks) - target).abs().max() <= 1e-5
    assert (q - expected).abs().max() <= 1e-5
    actions = theirs.predict(observations[:200], deterministic=True)[0]
    assert np.array_equal(q.argmax(dim=1).numpy(), actions)
    assert (theirs.num_timesteps, theirs._n_updates, theirs.gamma) == (100, 3, 0.99)
    group = theirs.policy.optimizer.param_groups[0]
    assert group["eps"] == agent.optimizer.param_groups[0]["eps"]
    # And back: what a zip says is what was exported, moments included.
    again = load(tmp_path / "model.zip").agent
    assert all(torch.equal(t, again.network.state_dict()[n]) for n, t in agent.network.state_dict().items())
    for index, state in agent.optimizer.state_dict()["state"].items():
        for kind, value in state.items():
            assert torch.equal(value, again.optimizer.state_dict()["state"][index][kind])


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["agent=rainbow", "agent.nap=true", "agent.hidden=64"], marks=pytest.mark.slow),
        ["agent=c51", "agent.nap=true", "nap.norm=rms", "agent.torso=data_efficient"],
        pytest.param(["agent=dqn", "agent.nap=true", "nap=norm_only"], marks=pytest.mark.slow),
    ],
)
def test_everything_else_is_a_zip_of_rainbow(
    checkpoint_of: Checkpointed, overrides: list[str], tmp_path: Path, observations: Observations
) -> None:
    agent, projector = checkpoint_of(tmp_path, *overrides)
    assert export(tmp_path, tmp_path / "model.zip") == "Rainbow"
    stacks = np.moveaxis(observations[:100], -1, 1).copy()
    expected = agent.act(stacks, noisy=False)
    model = Rainbow.load(tmp_path / "model.zip", device="cpu")
    assert np.array_equal(model.predict(observations[:100], deterministic=True)[0], expected)
    assert np.array_equal(load(tmp_path / "model.zip").predict(observations[:100])[0], expected)
    assert (model.projector is None) == (projector is None)
    if projector is not None and model.projector is not None:
        for name, norm in projector.groups.items():
            assert float(model.projector.groups[name]) == pytest.approx(float(norm), rel=1e-6)
    moments = model.policy.optimizer.state_dict()["state"]
    assert len(moments) == len(list(agent.network.parameters()))
    assert all(torch.equal(moments[0][kind], v) for kind, v in agent.optimizer.state_dict()["state"][0].items())


@pytest.mark.parametrize(
    ("overrides", "shape", "stack", "space"),
    [
        (["env=gym"], (4,), 1, (4,)),
        (["env=gym", "env.stack=3"], (4,), 3, (12,)),
        (["env=catch", "agent.nap=true"], (10, 5), 1, (10, 5)),
        (["env=minatar", "agent.torso=minatar"], (10, 10, 10), 1, (10, 10, 10)),
    ],
)
def test_agents_of_vectors_and_boards_are_zips_too(
    overrides: list[str], shape: tuple[int, ...], stack: int, space: tuple[int, ...], tmp_path: Path
) -> None:
    if "env=minatar" in overrides:
        pytest.importorskip("minatar")
    agent = checkpoint_of_small(tmp_path, "agent=dqn_small", *overrides)
    assert export(tmp_path, tmp_path / "model.zip") == "Rainbow"
    model = Rainbow.load(tmp_path / "model.zip", device="cpu")
    assert model.observation_space.shape == space
    dtype = np.int8 if "env=minatar" in overrides else np.float32
    stacks = np.random.default_rng(0).integers(0, 2, (64, stack, *shape)).astype(dtype)
    expected = agent.act(stacks, noisy=False)
    assert np.array_equal(model.predict(stacks.reshape(64, *space), deterministic=True)[0], expected)
    assert np.array_equal(load(tmp_path / "model.zip").predict(stacks.reshape(64, *space))[0], expected)


def checkpoint_of_small(folder: Path, *overrides: str) -> ValueAgent:
    """A checkpoint of a fresh agent of an environment outside Atari, as a run writes it at its beginning."""
    schema.register()
    cli.register_resolvers()
    config = to_config(cli.compose("config", [*overrides, "compile=off", "device=cpu", "frames=1000"]))
    env = build.build_env(config)
    seen = Seen.of(env)
    env.close()
    agent, _ = build.build_agent(config, env.num_actions, torch.device("cpu"), seen)
    meta = {
        "config": schema.to_dict(config),
        "num_actions": env.num_actions,
        "observations": {"shape": list(seen.shape), "dtype": seen.dtype, "stack": seen.stack},
        "agent_steps": 0,
        "updates": 0,
    }
    state = agent.state_dict()
    tensors = {"network": state["network"], "target": state["target"], "optimizer": {}}
    checkpoint.save(folder / "checkpoints", "frames-000000000000", tensors=tensors, meta=meta)
    return agent


def test_what_no_zip_can_hold_is_refused(checkpoint_of: Checkpointed, tmp_path: Path) -> None:
    checkpoint_of(tmp_path / "iqn", "agent=iqn")
    with pytest.raises(ValueError, match="is in no SB3 zip"):
        export(tmp_path / "iqn", tmp_path / "model.zip")
    for method in ("leaky_relu", "injection"):
        checkpoint_of(tmp_path / method, "agent=dqn", f"plasticity={method}")
        with pytest.raises(ValueError, match=f"plasticity={method} changes the network"):
            export(tmp_path / method, tmp_path / "model.zip")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        export(tmp_path / "nothing", tmp_path / "model.zip")
    assert not (tmp_path / "model.zip").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_another_optimizer_is_named_and_the_weights_are_exported(
    checkpoint_of: Checkpointed, optimizer: str, tmp_path: Path
) -> None:
    agent, _ = checkpoint_of(tmp_path, "agent=dqn", f"optimizer={optimizer}")
    with pytest.warns(UserWarning, match=f"optimizer={optimizer} is in no SB3 zip: the weights are exported, and"):
        assert export(tmp_path, tmp_path / "model.zip") == "DQN"
    theirs = DQN.load(tmp_path / "model.zip", device="cpu", buffer_size=10)
    assert not theirs.policy.optimizer.state_dict()["state"]
    stacks = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        assert (agent.network.q_values(stacks) - theirs.q_net(stacks)).abs().max() <= 1e-5
