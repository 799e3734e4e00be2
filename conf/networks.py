"""From a configuration to its network."""

from __future__ import annotations

import torch
from torch import nn

from nap_rl.conf import schema
from nap_rl.conf.environments import ATARI, Observations
from nap_rl.conf.schema import Config
from nap_rl.conf.seeds import seeds
from nap_rl.nap import normalize
from nap_rl.nn import NetworkSpec, QNetwork
from nap_rl.plasticity import method_named


def network_spec(config: Config) -> NetworkSpec:
    """What the configuration's network is made of."""
    plain = schema.to_dict(config)
    return NetworkSpec.from_config(plain["agent"], plain["nap"])


def build_network(
    config: Config, num_actions: int, observations: Observations = ATARI, *, seed: int | None = None
) -> QNetwork:
    """A freshly initialised network: spec, then the plasticity method's changes, then NaP's norms.

    Args:
        seed: of the initial weights; None for the run's own.

    Raises:
        ValueError: the network cannot look at such observations.
    """
    spec = network_spec(config)
    example = example_input(spec, observations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds(config.seed).network if seed is None else seed)
        network: nn.Module = spec.build(observations.shape, observations.stack, num_actions)
        network = method_named(config.plasticity.name).prepare(network, example)
    if spec.norm is not None:
        network = normalize(network, example, **spec.norms)
    assert isinstance(network, QNetwork)
    return network


def check_network(config: Config, num_actions: int, observations: Observations) -> None:
    """Raises ValueError unless the configuration's torso can look at such observations. A user's torso is run once."""
    try:
        spec = network_spec(config)
        if "." in spec.torso:
            with torch.random.fork_rng(devices=[]):
                spec.build(observations.shape, observations.stack, num_actions)
        else:
            spec.shapes(observations.shape, observations.stack, num_actions)
    except ValueError as error:
        hint = "" if observations.dtype == "uint8" else ": use agent=dqn_small, agent=rainbow_small or agent.torso=mlp"
        raise ValueError(f"agent.torso={config.agent.torso}: {error}{hint}") from None


def example_input(spec: NetworkSpec, observations: Observations = ATARI) -> torch.Tensor:
    """Eight stacks of noise: on black ones every feature is zero, and no weight would seem to matter."""
    return spec.example_input(observations.shape, observations.stack, pixels=observations.dtype == "uint8")
