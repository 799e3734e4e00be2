"""One description of a network: what it builds, which numbers it draws, what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from nap_rl.nap import normalize
from nap_rl.nn import (
    Categorical,
    DataEfficientTorso,
    ExpectedValue,
    ImpalaTorso,
    ImplicitQuantile,
    MlpTorso,
    NatureTorso,
    NetworkSpec,
    QNetwork,
    Quantile,
    QuantileEmbedding,
    Streams,
)

SMALL = 32  # hidden units


def rainbow() -> QNetwork:
    return QNetwork(NatureTorso(4), Streams(3136, 6, 51, SMALL, True, 0.1), Categorical(51, -10.0, 10.0))


def dqn() -> QNetwork:
    return QNetwork(NatureTorso(4), Streams(3136, 6, 1, SMALL, False, None), ExpectedValue())


def qr_dqn() -> QNetwork:
    return QNetwork(NatureTorso(4), Streams(3136, 6, 200, SMALL, False, None), Quantile(200, 1.0))


def iqn() -> QNetwork:
    torso, streams = NatureTorso(4), Streams(3136, 6, 1, SMALL, False, None)
    return QNetwork(torso, streams, ImplicitQuantile(64, 64, 32, 1.0), QuantileEmbedding(3136, 64, 32))


def data_efficient() -> QNetwork:
    return QNetwork(DataEfficientTorso(4), Streams(576, 6, 51, SMALL, True, 0.1), Categorical(51, -10.0, 10.0))


def impala() -> QNetwork:
    return QNetwork(ImpalaTorso(4), Streams(3872, 6, 1, SMALL, False, None), ExpectedValue())


PLAIN: dict[str, Any] = {"hidden": SMALL, "dueling": False, "noisy_sigma0": None}


@pytest.mark.parametrize(
    ("by_hand", "spec"),
    [
        (rainbow, NetworkSpec(hidden=SMALL)),
        (dqn, NetworkSpec(head="expected", **PLAIN)),
        (qr_dqn, NetworkSpec(head="quantile", outputs=200, **PLAIN)),
        (iqn, NetworkSpec(head="implicit_quantile", **PLAIN)),
        (data_efficient, NetworkSpec(torso="data_efficient", hidden=SMALL)),
        (impala, NetworkSpec(torso="impala", head="expected", **PLAIN)),
    ],
)
def test_a_seed_gives_the_weights_of_a_network_assembled_by_hand(by_hand: Any, spec: NetworkSpec) -> None:
    torch.manual_seed(5)
    expected = by_hand()
    following = torch.rand(3)
    torch.manual_seed(5)
    network = spec.build((84, 84), 4, 6)
    assert torch.equal(torch.rand(3), following)  # as many numbers were drawn
    state = network.state_dict()
    assert list(state) == list(expected.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())
    assert type(network.head) is type(expected.head) and network.head.tau_counts == expected.head.tau_counts
    assert spec.shapes((84, 84), 4, 6) == {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("spec", "frame_shape", "stack"),
    [
        (NetworkSpec(hidden=8), (50, 60), 3),
        (NetworkSpec(hidden=8), (3, 40, 40), 2),
        (NetworkSpec(hidden=8, net_arch=(16, 12)), (84, 84), 4),
        (NetworkSpec(hidden=8, net_arch=(16,)), (3, 36, 36), 1),
        (NetworkSpec(torso="mlp", hidden=8), (2, 3), 4),
        (NetworkSpec(torso="mlp", net_arch=(9, 5), hidden=0, noisy_sigma0=None, dueling=False), (7,), 1),
        (NetworkSpec(torso="mlp", hidden=0, noisy_sigma0=None), (7,), 1),
    ],
)
def test_frames_of_any_shape_and_layers_in_any_number(
    spec: NetworkSpec, frame_shape: tuple[int, ...], stack: int
) -> None:
    network = spec.build(frame_shape, stack, 5)
    example = spec.example_input(frame_shape, stack)
    assert example.shape == (8, stack, *frame_shape) and example.dtype == (
        torch.uint8 if spec.pixels else torch.float32
    )
    assert network(example).shape == (8, 5, 51)
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert all(any(m.out_features == width for m in linear) for width in spec.net_arch)
    assert normalize(network, example, **NetworkSpec(norm="layer").norms) is network


def test_the_example_is_the_same_each_time() -> None:
    for spec in (NetworkSpec(), NetworkSpec(torso="mlp")):
        assert torch.equal(spec.example_input((84, 84), 4), spec.example_input((84, 84), 4))


def test_plain_values_go_through_json_and_back() -> None:
    spec = NetworkSpec(torso="mlp", net_arch=(3, 4), head="implicit_quantile", norm="rms", axes="channels", samples=7)
    assert NetworkSpec.from_plain(json.loads(json.dumps(spec.plain()))) == spec


def test_descriptions_from_before_quantile_options_have_their_defaults() -> None:
    older = {
        "torso": "nature",
        "net_arch": [],
        "hidden": 512,
        "head": "quantile",
        "outputs": 51,
        "v_min": -10.0,
        "v_max": 10.0,
        "dueling": True,
        "noisy_sigma0": 0.1,
        "norm": "layer",
        "axes": "all",
        "affine": True,
    }
    assert NetworkSpec.from_plain(older) == NetworkSpec(head="quantile", norm="layer")


NAP = {"norm": "rms", "axes": "channels", "normalize": True, "affine": "omit"}


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        ({}, {"head": "expected", "outputs": 1}),
        ({"atoms": 21, "v_min": -2.0, "v_max": 3.0}, {"outputs": 21, "v_min": -2.0, "v_max": 3.0}),
        ({"quantiles": 9, "kappa": 0.5}, {"head": "quantile", "outputs": 9, "kappa": 0.5}),
        (
            {"samples": 3, "target_samples": 4, "acting_samples": 5, "cosines": 6, "kappa": 0.5},
            {
                "head": "implicit_quantile",
                "outputs": 1,
                "samples": 3,
                "target_samples": 4,
                "acting_samples": 5,
                "cosines": 6,
                "kappa": 0.5,
            },
        ),
    ],
)
def test_a_configuration_describes_a_network(head: dict[str, Any], fields: dict[str, Any]) -> None:
    agent = {"torso": "impala", "hidden": 7, "dueling": False, "noisy_sigma0": None, "nap": True, "head": head}
    common: dict[str, Any] = {"torso": "impala", "hidden": 7, "dueling": False, "noisy_sigma0": None, "affine": False}
    expected = NetworkSpec(norm="rms", axes="channels", **common, **fields)
    assert NetworkSpec.from_config(agent, NAP) == expected
    for without in ({**agent, "nap": False}, agent):
        nap = NAP if without is not agent else {**NAP, "normalize": False}
        assert NetworkSpec.from_config(without, nap).norm is None


def test_a_head_of_no_known_kind_is_refused() -> None:
    agent = {"torso": "nature", "hidden": 7, "dueling": False, "noisy_sigma0": None, "nap": True, "head": {"bins": 3}}
    with pytest.raises(ValueError, match="a head with bins is of no known kind"):
        NetworkSpec.from_config(agent, NAP)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"torso": "vgg"}, "torso='vgg' is none of nature, data_efficient, impala, mlp"),
        ({"head": "c52"}, "head='c52' is none of"),
        ({"hidden": -1}, "a layer of -1 units"),
        ({"net_arch": [0]}, "a layer of 0 units"),
        ({"net_arch": [8] * 65}, "net_arch has 65 layers"),
        ({"net_arch": ["8"]}, "net_arch of a network holds something else than whole numbers"),
        ({"cosines": 0}, "a layer of 0 units"),
        ({"v_min": 10.0}, "expected numbers with v_min < v_max"),
        ({"kappa": float("nan")}, "kappa=nan, expected a number of 0 or more"),
        ({"noisy_sigma0": -1.0}, "noisy_sigma0=-1.0"),
        ({"hidden": 0}, "hidden=0 needs noisy_sigma0=None"),
        ({"hidden": 8.5}, "hidden of a network is 8.5, expected int"),
        ({"breadth": 8}, "a network is described by torso, net_arch"),
    ],
)
def test_what_describes_no_network_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        NetworkSpec.from_plain({**NetworkSpec().plain(), **change})
    assert "\n" not in str(refusal.value)


def test_images_that_do_not_fit_a_torso_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images of \[8, 8\] pixels are too small for torso='nature'"):
        NetworkSpec().build((8, 8), 4, 6)
    with pytest.raises(ValueError, match=r"frames of shape \[6\] are no images: use MlpPolicy"):
        NetworkSpec().build((6,), 4, 6)


def test_mlp_torso_is_flat_without_layers() -> None:
    assert NetworkSpec(torso="mlp", hidden=SMALL).build((6,), 2, 3).torso.features == MlpTorso(12, ()).features


@pytest.mark.parametrize("norm", ["layer", "rms", "group", "batch"])
@pytest.mark.parametrize("shape", [(10, 5), (4,), (8, 8)])
def test_every_norm_goes_into_every_small_network(norm: str, shape: tuple[int, ...]) -> None:
    """Over two rows a BatchNorm leaves a sign: with an example of two, half of these networks were refused."""
    for seed in range(6):
        torch.manual_seed(seed)
        spec = NetworkSpec(torso="mlp", net_arch=(16,), head="expected", **PLAIN, norm=norm)
        network = normalize(spec.build(shape, 1, 3), spec.example_input(shape, 1), **spec.norms)
        roles = [getattr(m, "nap_role", None) for m in network.modules() if isinstance(m, nn.Linear)]
        assert roles == ["invariant", "invariant", "output"]
