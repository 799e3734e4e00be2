"""Torsos for small environments: MinAtar's, fully connected ones of any depth, and classes of the user's."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from nap_rl.nap import Projector, normalize
from nap_rl.nn import NetworkSpec

OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], 12), nn.ReLU())

    def forward(self, x):
        return self.layers(x)

class Flat(Own):
    def forward(self, x):
        return self.layers(x).mean()

class Narrow(Own):
    def __init__(self, shape):
        super().__init__((1, 2))

class Double(Own):
    def forward(self, x):
        return self.layers(x).double()

def function(shape):
    return nn.Flatten()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_torsos_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield name  # type: ignore[misc]
    sys.modules.pop(name, None)


def spec(**values: object) -> NetworkSpec:
    return NetworkSpec(**{"head": "expected", "outputs": 1, "hidden": 8, "noisy_sigma0": None, **values})  # type: ignore[arg-type]


def test_minatars_torso_has_16_filters_of_3x3_and_1024_features() -> None:
    network = spec(torso="minatar", hidden=128).build((10, 10, 10), 1, 6)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["torso.1.0.weight"] == (16, 10, 3, 3) and shapes["streams.advantage.hidden.weight"] == (128, 1024)
    q = network.q_values(torch.zeros(5, 1, 10, 10, 10, dtype=torch.int8))
    assert q.shape == (5, 6) and q.dtype == torch.float32


def test_bits_reach_the_network_as_zeros_and_ones_and_pixels_as_shares_of_255() -> None:
    network = spec(torso="mlp", net_arch=(4,)).build((3,), 1, 2)
    bits = torch.tensor([[[0, 1, 1]]], dtype=torch.int8)
    assert torch.equal(network.q_values(bits), network.q_values(bits.float()))
    assert torch.allclose(network.q_values((bits * 127).to(torch.uint8)), network.q_values(bits * (127 / 255)))


@pytest.mark.parametrize("net_arch", [(), (7,), (5, 6, 4, 3)])
def test_an_mlp_has_as_many_hidden_layers_as_asked_for(net_arch: tuple[int, ...]) -> None:
    network = spec(torso="mlp", net_arch=net_arch, dueling=False).build((2, 3), 1, 4)
    widths = [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]
    inputs = (6, *net_arch)
    assert widths == [*((n, m) for m, n in zip(inputs, net_arch, strict=False)), (8, inputs[-1]), (4, 8)]


def test_a_torso_of_the_users_is_built_and_takes_nap(module: str) -> None:
    own = spec(torso=f"{module}.Own", net_arch=(9,))
    network = own.build((5,), 2, 3)
    assert network.q_values(torch.rand(4, 2, 5)).shape == (4, 3)
    network = normalize(network, own.example_input((5,), 2))
    projector = Projector(network, torch.optim.SGD(network.parameters(), lr=0.1))
    assert "torso.0.layers.1" in projector.groups


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Flat", "returns [] for a batch of 2, expected [2, features]"),
        ("Narrow", "fails on inputs [2, 2, 5]"),
        ("Double", "returns torch.float64, expected torch.float32"),
        ("function", "is no class of torch.nn.Module"),
        ("Missing", "has no 'Missing'"),
    ],
)
def test_what_is_no_torso_is_one_sentence(module: str, name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        spec(torso=f"{module}.{name}").build((5,), 2, 3)


def test_a_missing_module_says_where_it_is_looked_for() -> None:
    with pytest.raises(ValueError, match="the module 'nowhere.at_all' cannot be imported .*PYTHONPATH"):
        spec(torso="nowhere.at_all.Torso").build((5,), 2, 3)


def test_a_file_cannot_name_code_to_run() -> None:
    with pytest.raises(ValueError, match="a file cannot say which code is to run"):
        NetworkSpec.from_plain({**NetworkSpec().plain(), "torso": "os.Torso"})
