"""Agents with small networks over vectors, equal but for their seeds, with a replay of random steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from nap_rl.agents import ValueAgent
from nap_rl.losses import Munchausen
from nap_rl.nap import Projector, normalize
from nap_rl.nn import (
    Categorical,
    ExpectedValue,
    Head,
    ImplicitQuantile,
    MlpTorso,
    QNetwork,
    Quantile,
    QuantileEmbedding,
    Streams,
)
from nap_rl.plasticity import make_method, method_named
from nap_rl.replay import Replay

INPUTS, ACTIONS, ENVS, WIDTH = 5, 3, 2, 12

SETTINGS: dict[str, dict[str, Any]] = {
    "dqn": {},
    "dqn, plain": {"affine": None, "double": False},
    "dqn, clipped, projected every third update": {"max_grad_norm": 0.05, "every": 3},
    "dqn, gains pulled back": {"affine": "regularize"},
    "dqn, gains pulled back and nothing projected": {"affine": "regularize", "every": None},
    "dqn, gains free": {"affine": "free"},
    "dqn, batch norm": {"norm": "batch", "affine": "regularize"},
    "rainbow, batch norm": {"head": Categorical(11, -3.0, 3.0), "sigma0": 0.5, "dueling": True, "norm": "batch"},
    "dqn, units projected": {"affine": "regularize", "scope": "unit"},
    "dqn, units and gains projected every third update": {"scope": "unit", "every": 3},
    "dqn, decoupled weight decay": {"optimizer": torch.optim.AdamW, "decay": 0.1},
    "dqn, weight decay": {"decay": 0.1},
    "dqn, prioritised": {"exponent": 0.6, "n_steps": 3, "soft": 0.1},
    "munchausen": {"munchausen": Munchausen(), "double": False},
    "qr-dqn": {"head": Quantile(7)},
    "iqn, noisy": {"head": ImplicitQuantile(4, 5, 6), "sigma0": 0.5},
    "rainbow, units projected": {"head": Categorical(11, -3.0, 3.0), "sigma0": 0.5, "dueling": True, "scope": "unit"},
    "rainbow": {"head": Categorical(11, -3.0, 3.0), "sigma0": 0.5, "dueling": True, "exponent": 0.5, "n_steps": 3},
}

INSIDE: dict[str, dict[str, float]] = {
    "l2": {"coefficient": 0.1},
    "regenerative": {"coefficient": 0.1},
    "parseval": {"coefficient": 0.1},
    "c_chain": {"coefficient": 1.0},
    "injection": {"at": 2},
    "continual_backprop": {"rate": 0.5, "maturity": 1},
}
"""Methods that change what an update computes, and options at which that shows."""


def small_agent(
    seed: int = 0,
    *,
    head: Head | None = None,
    sigma0: float | None = None,
    dueling: bool = False,
    n_steps: int = 1,
    exponent: float = 0.0,
    affine: Literal["project", "regularize", "free"] | None = "project",
    every: int | None = 1,
    scope: Literal["tensor", "unit"] = "tensor",
    optimizer: type[torch.optim.Adam] = torch.optim.Adam,
    decay: float = 0.0,
    soft: float = 1.0,
    norm: Literal["layer", "batch"] = "layer",
    torso_end: nn.Module | None = None,
    method: str = "none",
    options: Mapping[str, float] | None = None,
    **settings: Any,
) -> ValueAgent:
    head = ExpectedValue() if head is None else head
    torch.manual_seed(seed)
    torso = MlpTorso(INPUTS, [WIDTH])
    if torso_end is not None:
        torso.append(torso_end)
    streams = Streams(torso.features, ACTIONS, head.outputs, WIDTH, dueling, sigma0)
    embedding = None if head.tau_counts is None else QuantileEmbedding(torso.features, 8, head.tau_counts["policy"])
    network = QNetwork(torso, streams, head, embedding)
    example = torch.zeros(2, 1, INPUTS)
    method_named(method).prepare(network, example)
    if affine is not None:
        normalize(network, torch.randn(8, 1, INPUTS), norm=norm)
    adam = optimizer(network.parameters(), lr=1e-2, weight_decay=decay, fused=True)
    projector = None if affine is None else Projector(network, adam, affine=affine, every=every, scope=scope)
    replay = Replay(
        200,
        ENVS,
        frame_shape=(INPUTS,),
        frame_dtype=torch.float32,
        stack=1,
        n_steps=n_steps,
        reward_clip=None,
        exponent=exponent,
        uniform_probability=1e-3 if exponent else 0.0,
        seed=seed,
    )
    agent = ValueAgent(
        network,
        adam,
        replay,
        projector=projector,
        batch_size=8,
        target_every_updates=4,
        tau=soft,
        seed=seed,
        method=make_method(method, network, adam, options=options, example_input=example),
        **{"max_grad_norm": None, **settings},
    )
    fill(agent, seed)
    return agent


def fill(agent: ValueAgent, seed: int, steps: int = 60) -> None:
    """Random steps; an episode ends every 20."""
    rng = np.random.default_rng(seed)
    for k in range(steps):
        frames = rng.normal(size=(ENVS, INPUTS)).astype(np.float32)
        actions, rewards = rng.integers(0, ACTIONS, ENVS), rng.normal(size=ENVS)
        agent.replay.add(frames, actions, rewards, np.full(ENVS, k % 20 != 19), np.full(ENVS, k % 20 == 0))


def largest_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Between two states of agents or replays, over all numbers in them."""
    assert one.keys() == other.keys()
    differences = [0.0]
    for name, value in one.items():
        if isinstance(value, Mapping):
            differences.append(largest_difference(value, other[name]))
        elif isinstance(value, torch.Tensor):
            differences.append(float((value.double() - other[name].double()).abs().max()) if value.numel() else 0.0)
        else:
            assert value == other[name], name
    return max(differences)
