"""agent.init_from: all weights fit, the torso alone fits, or the run is refused in one sentence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from nap_rl import checkpoint, cli
from nap_rl.conf import build, init_from, networks, schema
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config
from nap_rl.nn import NetworkSpec, QNetwork

TINY = [
    *("agent.torso=data_efficient", "agent.hidden=8", "replay.capacity=2000", "agent.min_replay_steps=1000"),
    "compile=off",
]


def checked(*overrides: str) -> Config:
    return to_config(cli.compose("config", [*TINY, *overrides]))


def saved(folder: Path, *overrides: str, actions: int = 4) -> dict[str, torch.Tensor]:
    """A run's folder with one checkpoint, whose every number is that of another seed; returns its tensors."""
    config = checked("seed=7", *overrides)
    weights = networks.build_network(config, actions).state_dict()
    meta = {"config": schema.to_dict(config)}
    checkpoint.save(folder / "checkpoints", "frames-000000000400", tensors={"network": weights}, meta=meta)
    return weights


@pytest.mark.parametrize("nap", ["true", "false"])
@pytest.mark.parametrize("below", ["", "checkpoints/frames-000000000400"])
def test_all_weights_are_those_of_the_run_in_both_networks_and_the_projection_keeps_their_norms(
    below: str, nap: str, tmp_path: Path
) -> None:
    weights = saved(tmp_path, f"agent.nap={nap}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = checked(f"agent.nap={nap}", f"agent.init_from={tmp_path / below}")
        agent, projector = build.build_agent(config, 4, torch.device("cpu"))
    for network in (agent.network, agent.target):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert agent.updates == 0 and not agent.optimizer.state
    if projector is not None:
        assert float(projector.max_relative_drift()) < 1e-6


@pytest.mark.parametrize(
    ("overrides", "actions"),
    [([], 18), (["agent/head=quantile"], 4), (["agent.dueling=false"], 4), (["agent=iqn"], 4), (["agent.hidden=9"], 4)],
    ids=["actions", "head", "streams", "implicit", "width"],
)
def test_where_only_the_torso_fits_it_is_kept_and_the_rest_is_fresh_and_said(
    overrides: list[str], actions: int, tmp_path: Path
) -> None:
    weights = saved(tmp_path)
    plain = networks.build_network(checked(*overrides), actions).state_dict()
    config = checked(*overrides, f"agent.init_from={tmp_path}")
    with pytest.warns(UserWarning, match=r"only the torso fits and is kept; FRESH are .*streams\.advantage\.hidden"):
        agent, _ = build.build_agent(config, actions, torch.device("cpu"))
    for name, tensor in agent.network.state_dict().items():
        expected = weights[name] if name.startswith("torso.") else plain[name]
        assert torch.equal(tensor, expected), name


def test_an_injected_run_is_refused_and_one_that_is_not_yet_injected_is_taken(tmp_path: Path) -> None:
    injection = ["plasticity=injection", "agent.nap=true"]
    weights = saved(tmp_path / "before", *injection)
    agent, _ = build.build_agent(checked(*injection, f"agent.init_from={tmp_path / 'before'}"), 4, torch.device("cpu"))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in agent.network.state_dict().items())

    meta = {"config": schema.to_dict(checked("seed=7", *injection))}
    weights["streams.value.old.output.weight_mu"] += 1.0
    checkpoint.save(tmp_path / "after" / "checkpoints", "frames-000000000400", tensors={"network": weights}, meta=meta)
    config = checked(*injection, f"agent.init_from={tmp_path / 'after'}")
    with pytest.raises(ValueError, match=r"agent.init_from=.*after: its streams were injected already") as caught:
        build.build_agent(config, 4, torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["agent.torso=nature"], r"its torso is another one \(agent.torso: data_efficient there and nature here\)"),
        (["agent.activation=gelu"], r"its torso is another one \(agent.activation: relu there and gelu here\)"),
        (["agent.nap=true"], r"its torso is another one \(norms by agent.nap: none there and learnable here\)"),
    ],
)
def test_another_torso_is_refused_in_one_sentence_before_anything_starts(
    overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=sentence) as caught:
        checked(f"agent.init_from={tmp_path}", *overrides)
    assert str(caught.value).startswith(f"agent.init_from={tmp_path}: ") and "\n" not in str(caught.value)


def test_nothing_there_and_a_damaged_checkpoint_are_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"agent.init_from=.*nowhere: nothing is there: expected"):
        checked(f"agent.init_from={tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match=r"agent.init_from=.*: .*holds no checkpoint"):
        checked(f"agent.init_from={tmp_path}")
    saved(tmp_path)
    folder = tmp_path / "checkpoints" / "frames-000000000400"
    (folder / "network.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"agent.init_from=.*network.safetensors has 1 bytes instead of"):
        checked(f"agent.init_from={folder}")


def test_a_torso_whose_tensors_differ_in_what_no_setting_tells_is_refused_by_its_shapes(tmp_path: Path) -> None:
    weights = saved(tmp_path)
    network = networks.build_network(checked("agent.torso=nature"), 4)
    with pytest.raises(ValueError, match=r"another one \(torso.0.weight is 32x4x5x5 there and 32x4x8x8 here\)"):
        init_from.transfer(weights, network)
    with pytest.raises(ValueError, match=r"another one \(torso.0.bias is 32 there and missing here\)"):
        init_from.transfer(weights, networks.build_network(checked("agent.nap=true"), 4))


def test_a_check_builds_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    build = NetworkSpec.build

    def on_the_meta_device(*arguments: Any) -> QNetwork:
        assert torch.empty(1).is_meta  # shapes without memory
        return build(*arguments)

    monkeypatch.setattr(NetworkSpec, "build", on_the_meta_device)
    checked(f"agent.init_from={tmp_path}")


def test_a_zip_is_read_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    monkeypatch.setattr("nap_rl.sb3.model.read_model", reads.append)
    (tmp_path / "model.zip").write_bytes(b"first")
    for _ in range(3):
        init_from._read_zip(str(tmp_path / "model.zip"))
    assert len(reads) == 1
    (tmp_path / "model.zip").write_bytes(b"another")
    init_from._read_zip(str(tmp_path / "model.zip"))
    assert len(reads) == 2
