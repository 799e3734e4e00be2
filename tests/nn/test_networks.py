"""Torsos, streams and the whole value network."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from nap_rl.nn import (
    Categorical,
    DataEfficientTorso,
    ExpectedValue,
    ImpalaTorso,
    LayerNoise,
    MlpTorso,
    NatureTorso,
    NoisyLinear,
    QNetwork,
    Streams,
)
from nap_rl.nn.torsos import MinAtarTorso, feature_count

TORSOS = [NatureTorso, DataEfficientTorso, ImpalaTorso]


def scale(stacks: Tensor) -> Tensor:
    return QNetwork(nn.Flatten(), Streams(1, 3, 1, 4, False, None), ExpectedValue()).scale(stacks)


@pytest.mark.parametrize("channels", [4, 3])
def test_pixels_are_divided_by_255_whatever_their_layout(channels: int) -> None:
    stacks = torch.arange(2 * channels * 12 * 11).remainder(256).view(2, channels, 12, 11).to(torch.uint8)
    divided = scale(stacks)
    assert divided.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(divided, stacks.float() / 255.0)


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 4, 3, 2, 2)])
def test_observations_of_other_shapes_are_pixels_too(shape: tuple[int, ...]) -> None:
    stacks = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert torch.equal(scale(stacks), stacks.float() / 255.0)


def noisy_streams(dueling: bool = True) -> Streams:
    torch.manual_seed(0)
    return Streams(features=6, actions=3, outputs=4, hidden=5, dueling=dueling, sigma0=0.5)


def test_dueling_subtracts_the_mean_advantage_from_each_atom_by_itself() -> None:
    torch.manual_seed(0)
    streams = Streams(features=6, actions=3, outputs=4, hidden=5, dueling=True, sigma0=None)
    assert streams.value is not None
    x = torch.randn(8, 6)
    with torch.no_grad():
        a, v, y = streams.advantage(x).view(8, 3, 4), streams.value(x), streams(x)
    for b in range(8):
        for atom in range(4):
            mean = sum(float(a[b, i, atom]) for i in range(3)) / 3
            for action in range(3):
                expected = float(v[b, atom]) + float(a[b, action, atom]) - mean
                assert float(y[b, action, atom]) == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(y.mean(dim=1), v, atol=1e-6)


def test_one_stream_is_the_advantage_stream_as_it_is() -> None:
    torch.manual_seed(0)
    streams = Streams(features=6, actions=3, outputs=4, hidden=5, dueling=False, sigma0=None)
    x = torch.randn(8, 6)
    assert torch.equal(streams(x), streams.advantage(x).view(8, 3, 4))
    assert streams.value is None and streams.sample_noise() is None and streams.noisy_layers() == []


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("rows", [None, 2])
def test_each_layer_gets_its_own_noise_in_the_order_of_noisy_layers(dueling: bool, rows: int | None) -> None:
    streams, x = noisy_streams(dueling), torch.randn(2, 6)
    layers = streams.noisy_layers()
    assert len(layers) == (4 if dueling else 2)
    noise = streams.sample_noise(torch.Generator().manual_seed(0))
    assert noise is not None
    for k, (eps_in, eps_out) in enumerate(noise):
        assert eps_in.shape == (layers[k].in_features,) and eps_out.shape == (layers[k].out_features,)
        only = [(i if j == k else 0 * i, o if j == k else 0 * o) for j, (i, o) in enumerate(noise)]
        if rows is not None:
            only = [(i.expand(rows, -1), o.expand(rows, -1)) for i, o in only]
        mean_twin = copy.deepcopy(streams)
        layer = mean_twin.noisy_layers()[k]
        assert layer.bias_mu is not None and layer.bias_sigma is not None
        with torch.no_grad():
            layer.weight_mu += layer.weight_sigma * torch.outer(eps_out, eps_in)
            layer.bias_mu += layer.bias_sigma * eps_out
        assert torch.allclose(streams(x, only), mean_twin(x), atol=1e-5)


def test_the_layers_of_one_draw_have_independent_noise() -> None:
    streams = Streams(features=50, actions=10, outputs=5, hidden=50, dueling=True, sigma0=0.5)
    noise = streams.sample_noise(torch.Generator().manual_seed(0))
    assert noise is not None
    inputs = torch.stack([eps_in for eps_in, _ in noise])
    assert torch.linalg.matrix_rank(inputs) == 4
    assert (torch.corrcoef(inputs) - torch.eye(4)).abs().max() < 0.6


@pytest.mark.parametrize("torso", TORSOS)
def test_a_torso_gives_as_many_features_as_it_says(torso: type[NatureTorso]) -> None:
    assert torso(channels=4)(torch.rand(2, 4, 84, 84)).shape == (2, torso.features)


@pytest.mark.parametrize("size", [(84, 84), (64, 96), (210, 160), (36, 36), (25, 41)])
@pytest.mark.parametrize("torso", [NatureTorso, DataEfficientTorso, ImpalaTorso, MinAtarTorso])
def test_features_are_counted_as_a_pass_counts_them(torso: type[NatureTorso], size: tuple[int, int]) -> None:
    layers = torso(2)
    try:
        expected = layers(torch.rand(1, 2, *size)).shape[1]
    except RuntimeError:
        with pytest.raises(ValueError, match=f"images of {size[0]} x {size[1]} pixels are too small"):
            feature_count(layers, *size)
    else:
        assert feature_count(layers, *size) == expected


@pytest.mark.parametrize("torso", TORSOS)
@pytest.mark.parametrize("dueling", [True, False])
def test_every_relu_is_a_submodule_that_is_used_once(torso: type[NatureTorso], dueling: bool) -> None:
    network = QNetwork(torso(), Streams(torso.features, 3, 1, 8, dueling, None), ExpectedValue())
    used: Counter[nn.Module] = Counter()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            used[module] = 0
            module.register_forward_hook(lambda m, args, output: used.update([m]))
    network(torch.zeros(1, 4, 84, 84, dtype=torch.uint8))
    assert used and set(used.values()) == {1}


def test_a_residual_block_adds_its_branch_to_what_came_in() -> None:
    block = ImpalaTorso()[2]
    x = torch.randn(1, 16, 9, 9)
    assert torch.allclose(block(x) - x, block.branch(x), atol=1e-6)


def test_pixels_are_divided_by_255_once() -> None:
    seen = []
    torso = nn.Sequential(nn.Flatten())
    torso.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    network = QNetwork(torso, Streams(8, 3, 1, 4, False, None), ExpectedValue())
    stacks = torch.tensor([0, 51, 102, 255, 1, 2, 3, 4], dtype=torch.uint8).view(1, 2, 2, 2)
    network(stacks)
    assert seen[0].dtype == torch.float32
    assert seen[0].flatten().tolist() == pytest.approx([0.0, 0.2, 0.4, 1.0, *(k / 255 for k in range(1, 5))])


def network(sigma0: float | None = 0.5) -> QNetwork:
    torch.manual_seed(0)
    return QNetwork(nn.Flatten(), Streams(16, 3, 11, 8, True, sigma0), Categorical(11, -1, 1))


def test_outputs_are_batch_by_actions_by_atoms_and_the_head_reads_them() -> None:
    net, stacks = network(), torch.randint(0, 256, (5, 4, 2, 2), dtype=torch.uint8)
    noise = net.sample_noise(torch.Generator().manual_seed(0))
    assert net(stacks, noise).shape == (5, 3, 11)
    assert torch.equal(net.q_values(stacks, noise), net.head.q_values(net(stacks, noise)))
    assert network(None).sample_noise() is None


def test_noise_is_an_argument_of_the_network_train_and_eval_change_nothing() -> None:
    net, stacks = network(), torch.randint(0, 256, (5, 4, 2, 2), dtype=torch.uint8)
    noise = net.sample_noise(torch.Generator().manual_seed(0))
    assert torch.equal(net.train()(stacks, noise), net.eval()(stacks, noise))
    assert torch.equal(net.train()(stacks), net.eval()(stacks))
    assert not torch.allclose(net(stacks, noise), net(stacks))


def test_noise_for_each_row_of_the_network_is_one_draw_a_row() -> None:
    net, stacks = network(), torch.randint(0, 256, (5, 4, 2, 2), dtype=torch.uint8)
    noise = net.sample_noise(torch.Generator().manual_seed(0), rows=5)
    assert noise is not None
    together = net(stacks, noise)
    for b in range(5):
        alone: list[LayerNoise] = [(eps_in[b], eps_out[b]) for eps_in, eps_out in noise]
        assert torch.allclose(together[b : b + 1], net(stacks[b : b + 1], alone), atol=1e-5)
    same = net(stacks[:1].expand(5, -1, -1, -1), noise)
    assert len({tuple(row.flatten().tolist()) for row in same}) == 5


def test_only_the_streams_are_noisy_and_all_of_their_layers_are() -> None:
    net = network()
    assert [type(m) for m in net.streams.modules() if isinstance(m, (nn.Linear, NoisyLinear))] == [NoisyLinear] * 4
    assert not any(isinstance(m, NoisyLinear) for m in net.torso.modules())


def test_heads_add_nothing_to_the_state_that_is_saved() -> None:
    assert not [name for name in network().state_dict() if name.startswith("head")]


def test_only_pixels_are_divided_by_255() -> None:
    torch.manual_seed(0)
    network = QNetwork(MlpTorso(6, [5]), Streams(5, 3, 1, 4, False, None), ExpectedValue())
    numbers = torch.randint(0, 256, (2, 3, 2), dtype=torch.uint8)
    assert torch.allclose(network(numbers), network(numbers.float() / 255.0))
    assert not torch.allclose(network(numbers), network(numbers.float()))


def test_mlp_torso_flattens_frames_in_their_order() -> None:
    torch.manual_seed(0)
    torso, x = MlpTorso(6, [5, 4]), torch.randn(2, 3, 2)
    assert torso.features == 4
    by_hand = (x.reshape(2, 6) @ torso[1].weight.T + torso[1].bias).clamp(min=0)  # type: ignore[operator,union-attr]
    by_hand = (by_hand @ torso[3].weight.T + torso[3].bias).clamp(min=0)  # type: ignore[operator,union-attr]
    assert torch.allclose(torso(x), by_hand, atol=1e-6)
