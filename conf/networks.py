"""From a configuration to its network, and from a run's one seed to all of its seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from nap_rl.conf import schema
from nap_rl.conf.schema import Config
from nap_rl.envs.atari import FRAME_SHAPE, STACK
from nap_rl.nap import normalize
from nap_rl.nn import NetworkSpec, QNetwork
from nap_rl.plasticity import method_named


class Seeds(NamedTuple):
    """Independent seeds for everything that draws at random."""

    network: int
    noise: int
    replay: int
    env: int
    plasticity: int
    evaluation: int


def seeds(seed: int) -> Seeds:
    """All of a run's seeds from its one."""
    return Seeds(*(int(word) for word in np.random.SeedSequence(seed).generate_state(len(Seeds._fields))))


def network_spec(config: Config) -> NetworkSpec:
    """What the configuration's network is made of."""
    plain = schema.to_dict(config)
    return NetworkSpec.from_config(plain["agent"], plain["nap"])


def build_network(config: Config, num_actions: int) -> QNetwork:
    """A freshly initialised network: spec, then the plasticity method's changes, then NaP's norms."""
    spec = network_spec(config)
    example = example_input(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds(config.seed).network)
        network: nn.Module = spec.build(FRAME_SHAPE, STACK, num_actions)
        network = method_named(config.plasticity.name).prepare(network, example)
    if spec.norm is not None:
        network = normalize(network, example, **spec.norms)
    assert isinstance(network, QNetwork)
    return network


def example_input(spec: NetworkSpec) -> torch.Tensor:
    """Two stacks of noise: on black ones every feature is zero, and no weight would seem to matter."""
    return spec.example_input(FRAME_SHAPE, STACK)
