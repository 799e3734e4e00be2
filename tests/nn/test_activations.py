"""`activation` of a network: which nonlinearities change, and what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from nap_rl.conf import agent_schema
from nap_rl.nap import normalize
from nap_rl.nn import ACTIVATIONS, NetworkSpec
from nap_rl.sb3 import layout

MLP: dict[str, Any] = {"torso": "mlp", "net_arch": (8, 7), "hidden": 6, "dueling": False, "noisy_sigma0": None}
FUNCTIONS = {
    "relu": torch.relu,
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_torso_and_streams_compute_with_the_activation(activation: str) -> None:
    network = NetworkSpec(head="expected", activation=activation, **MLP).build((5,), 1, 3)
    x, function = torch.randn(4, 1, 5), FUNCTIONS[activation]
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    h = x.flatten(1)
    for layer in linear[:-1]:
        h = function(functional.linear(h, layer.weight, layer.bias))
    expected = functional.linear(h, linear[-1].weight, linear[-1].bias)
    torch.testing.assert_close(network(x).squeeze(-1), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_changes_no_initial_weight(activation: str) -> None:
    states = []
    for name in ("relu", activation):
        torch.manual_seed(0)
        states.append(NetworkSpec(torso="data_efficient", activation=name).build((84, 84), 4, 6).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("torso", ["data_efficient", pytest.param("impala", marks=pytest.mark.slow)])
@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_nap_puts_its_norms_in_front_of_every_activation(torso: str, activation: str) -> None:
    norms = []
    for name in ("relu", activation):
        spec = NetworkSpec(torso=torso, activation=name, hidden=16, norm="layer")
        network = normalize(spec.build((84, 84), 4, 6), spec.example_input((84, 84), 4), **spec.norms)
        norms.append([path for path, module in network.named_modules() if "norm" in type(module).__name__.lower()])
    assert norms[0] == norms[1] and norms[0]


class OwnTorso(nn.Sequential):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(nn.Flatten(), nn.Linear(5, 4), nn.ReLU())


def test_a_torso_of_the_users_keeps_its_own() -> None:
    spec = NetworkSpec(**{**MLP, "torso": f"{__name__}.OwnTorso", "net_arch": (3,)}, activation="silu", head="expected")
    kinds = [type(module) for module in spec.build((5,), 1, 2).modules() if not list(module.children())]
    assert kinds.count(nn.ReLU) == 1 and kinds.count(nn.SiLU) == 2


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="activation='swish' is none of relu, leaky_relu, elu, gelu, silu, tanh"):
        NetworkSpec(activation="swish")


def test_configuration_and_zips_know_the_same_names() -> None:
    assert [member.name for member in agent_schema.Activation] == list(ACTIVATIONS)
    assert {kind.__name__: name for name, kind in ACTIVATIONS.items()} == layout.ACTIVATIONS
