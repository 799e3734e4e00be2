"""Measures what a run's network has lost of its ability to learn, around one update every so many."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nap_rl.agents.value_agent import ValueAgent
from nap_rl.diagnostics import (
    activations,
    churn,
    dormant_fraction,
    feature_norm,
    feature_rank,
    hessian_max,
    layers_of_activations,
)
from nap_rl.nap.groups import frozen_paths
from nap_rl.nap.trace import undisturbed
from nap_rl.replay import Transitions

STATES = 256


class Diagnostics:
    """`before_update`, then an update, then `after_update`: the numbers of `nap_rl.logging.tags.DIAGNOSTICS`.

    The states are drawn uniformly from the replay, each time anew. All draws come from generators that the number of
    the update seeds: a run has the same weights, to the bit, with diagnostics and without, and a resumed run needs no
    state of them.

    Args:
        layers: names of the weight layers, as the log has them.
    """

    def __init__(self, agent: ValueAgent, layers: Sequence[str]) -> None:
        self.agent = agent
        self._layers = layers_of_activations(agent.network, layers)
        self._frozen = frozen_paths(agent.network)
        self._batch: Transitions | None = None
        self._q_before = torch.empty(0)
        self._generator = torch.Generator(device=agent.device)

    def before_update(self) -> None:
        """Choose the states, and look at their values."""
        replay, update = self.agent.replay, self.agent.updates + 1
        random = np.random.default_rng(update)
        slots = torch.from_numpy(random.choice(np.flatnonzero(replay.valid), STATES)).to(replay.device)
        gathered = replay.gather(slots)
        ones = torch.ones(STATES, device=replay.device)
        self._batch = Transitions(*gathered, ones, slots, replay.serials.take(slots)).to(self.agent.device)
        self._generator.manual_seed(int(random.integers(1 << 62)))
        with undisturbed(self.agent.network):
            self._q_before = self._q_values(self._batch.s_tm1)

    def after_update(self) -> dict[str, float]:
        """The measures, by tag. One host sync, and one in `hessian_max`."""
        assert self._batch is not None, "before_update chooses the states"
        batch, self._batch = self._batch, None
        with undisturbed(self.agent.network), activations(self.agent.network, free=self._frozen) as hidden:
            q_values = self._q_values(batch.s_tm1)
        found: dict[str, Tensor] = {}
        for name, h in hidden.items():
            found[f"plasticity/dormant/{self._layers[name]}"] = dormant_fraction(h)
        for name, h in hidden.items():
            found[f"plasticity/rank/{self._layers[name]}"] = feature_rank(h)
        if hidden:
            found["plasticity/feature_norm"] = feature_norm([*hidden.values()][-1])
        found["plasticity/churn"] = churn(self._q_before, q_values)
        found["plasticity/hessian_max"] = self._hessian_max(batch)
        values = torch.stack([value.double() for value in found.values()]).tolist()
        return dict(zip(found, values, strict=True))

    @torch.no_grad()
    def _q_values(self, stacks: Tensor) -> Tensor:
        """Expected returns [B, A] in float32, without noise."""
        return self.agent.network.q_values(stacks)

    def _hessian_max(self, batch: Transitions) -> Tensor:
        """For the loss of an update, in float32 and not compiled: a compiled one cannot be differentiated twice."""
        rows = self.agent.batch_size
        agent = copy.copy(self.agent)
        agent.generator = self._generator
        if agent.precision is not torch.float32:
            agent.precision, agent.target = torch.float32, copy.deepcopy(agent.target).float()
        batch = Transitions._make(tensor[:rows] for tensor in batch)
        with undisturbed(agent.network), undisturbed(agent.target):
            losses, _ = ValueAgent.losses(agent, batch, agent.draw(rows))
        parameters = [p for p in agent.network.parameters() if p.requires_grad]
        return hessian_max(losses.mean(), parameters, self._generator)
