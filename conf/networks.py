"""From a configuration to its network, and from its one seed to all seeds."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import torch
from torch import nn

from nap_rl.conf.schema import (
    Affine,
    CategoricalHead,
    Config,
    ImplicitQuantileHead,
    QuantileHead,
    Torso,
)
from nap_rl.nap import normalize
from nap_rl.nap.layers import Axes, NormKind
from nap_rl.nn import (
    Categorical,
    DataEfficientTorso,
    ExpectedValue,
    Head,
    ImpalaTorso,
    ImplicitQuantile,
    NatureTorso,
    QNetwork,
    Quantile,
    QuantileEmbedding,
    Streams,
)
from nap_rl.plasticity import method_named

STACK = 4
TORSOS: dict[Torso, type[NatureTorso] | type[DataEfficientTorso] | type[ImpalaTorso]] = {
    Torso.nature: NatureTorso,
    Torso.data_efficient: DataEfficientTorso,
    Torso.impala: ImpalaTorso,
}


class Seeds(NamedTuple):
    """Independent seeds for whatever draws at random."""

    network: int
    noise: int
    replay: int
    env: int
    plasticity: int
    evaluation: int


def seeds(seed: int) -> Seeds:
    """All of a run's seeds from its one."""
    return Seeds(*(int(word) for word in np.random.SeedSequence(seed).generate_state(len(Seeds._fields))))


def build_network(config: Config, num_actions: int) -> QNetwork:
    """A freshly initialised network, with NaP's normalisations in front of its nonlinearities if it has them."""
    agent, nap = config.agent, config.nap
    head = _head(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds(config.seed).network)
        torso = TORSOS[agent.torso](STACK)
        streams = Streams(torso.features, num_actions, head.outputs, agent.hidden, agent.dueling, agent.noisy_sigma0)
        network: nn.Module = QNetwork(torso, streams, head, _embedding(config, torso.features))
        network = method_named(config.plasticity.name).prepare(network, example_input())
    if agent.nap and nap.normalize:
        network = normalize(
            network,
            example_input(),
            norm=cast(NormKind, nap.norm.name),
            axes=cast(Axes, nap.axes.name),
            affine=nap.affine is not Affine.omit,
        )
    assert isinstance(network, QNetwork)
    return network


def example_input() -> torch.Tensor:
    """Noise pictures: on black ones every feature is zero and no weight would seem to matter."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, STACK, 84, 84), dtype=torch.uint8, generator=generator)


def _embedding(config: Config, features: int) -> QuantileEmbedding | None:
    head = config.agent.head
    if isinstance(head, ImplicitQuantileHead):
        return QuantileEmbedding(features, head.cosines, head.acting_samples)
    return None


def _head(config: Config) -> Head:
    head = config.agent.head
    if isinstance(head, CategoricalHead):
        return Categorical(head.atoms, head.v_min, head.v_max)
    if isinstance(head, QuantileHead):
        return Quantile(head.quantiles, head.kappa)
    if isinstance(head, ImplicitQuantileHead):
        return ImplicitQuantile(head.samples, head.target_samples, head.acting_samples, head.kappa)
    return ExpectedValue()
