"""Implicit quantiles: the embedding of levels, and the network around it, against plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nap_rl.nap import normalize, scale_invariance
from nap_rl.nn import DataEfficientTorso, ImplicitQuantile, QNetwork, QuantileEmbedding, Streams


def network(sigma0: float | None = None, dueling: bool = True) -> QNetwork:
    torch.manual_seed(0)
    head, streams = ImplicitQuantile(5, 7, 3), Streams(6, 2, 1, 4, dueling, sigma0)
    return QNetwork(nn.Sequential(nn.Flatten()), streams, head, QuantileEmbedding(6, 8, samples=3))


def states(rows: int = 4) -> Tensor:
    return torch.rand(rows, 1, 6, generator=torch.Generator().manual_seed(1))


def test_the_embedding_is_relu_of_weighted_cosines_from_frequency_0_on() -> None:
    torch.manual_seed(0)
    embedding = QuantileEmbedding(features=3, cosines=5)
    taus = [0.0, 0.31, 1.0]
    phi = embedding(torch.tensor(taus))
    weight, bias = embedding.linear.weight.tolist(), embedding.linear.bias.tolist()
    for k, tau in enumerate(taus):
        for j in range(3):
            z = bias[j] + sum(math.cos(math.pi * i * tau) * weight[j][i] for i in range(5))
            assert float(phi[k, j].detach()) == pytest.approx(max(z, 0.0), abs=1e-5)


def test_the_output_at_a_level_is_that_of_the_features_times_its_embedding() -> None:
    net, x = network(), states()
    taus = net.sample_taus("s_tm1", 4, torch.Generator().manual_seed(2))
    assert taus is not None and taus.shape == (4, 5)
    outputs = net(x, None, taus)
    assert outputs.shape == (4, 2, 5)
    for b in range(4):
        for i in range(5):
            features = x[b].flatten() * net.embedding(taus[b, i : i + 1])[0]  # type: ignore[misc]
            assert torch.allclose(outputs[b, :, i], net.streams(features[None])[0, :, 0], atol=1e-6)


def test_levels_are_uniform_and_independent_for_each_row_and_pass() -> None:
    net, g = network(), torch.Generator().manual_seed(0)
    draws = [net.sample_taus(use, 1000, g) for use in ("s_tm1", "s_t", "policy")]  # type: ignore[arg-type]
    assert [draw.shape[1] for draw in draws] == [5, 7, 3]  # type: ignore[union-attr]
    everything = torch.cat([draw.flatten() for draw in draws]).sort().values  # type: ignore[union-attr]
    assert (everything - torch.linspace(0, 1, len(everything))).abs().max() < 0.02  # Kolmogorov, 15,000 draws
    assert len(everything.unique()) > 14_900


def test_without_levels_a_pass_takes_the_middles_of_equal_shares() -> None:
    net, x = network(), states()
    assert torch.equal(net(x), net(x, None, torch.tensor([1 / 6, 3 / 6, 5 / 6]).expand(4, 3)))


def test_noise_of_a_row_is_that_of_all_its_levels() -> None:
    net, x = network(sigma0=0.5), states()
    g = torch.Generator().manual_seed(3)
    noise, taus = net.sample_noise(g, rows=4), net.sample_taus("policy", 4, g)
    assert noise is not None and taus is not None
    together = net(x, noise, taus)
    for b in range(4):
        alone = net(x[b : b + 1], [(i[b], o[b]) for i, o in noise], taus[b : b + 1])
        assert torch.allclose(together[b], alone[0], atol=1e-6)


@pytest.mark.parametrize("sigma0", [None, 0.5])
@pytest.mark.parametrize("dueling", [True, False])
def test_with_nap_the_scale_of_every_layer_but_the_outputs_is_free_the_embeddings_too(
    sigma0: float | None, dueling: bool
) -> None:
    torch.manual_seed(0)
    torso = DataEfficientTorso()
    head, streams = ImplicitQuantile(), Streams(torso.features, 3, 1, 16, dueling, sigma0)
    stacks = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net = normalize(QNetwork(torso, streams, head, QuantileEmbedding(torso.features)), stacks)
    changes = scale_invariance(net, stacks)
    assert changes.pop("embedding.linear") < 1e-4
    for name, change in changes.items():
        assert (change > 0.5) if name.endswith("output") else (change < 1e-4), name
