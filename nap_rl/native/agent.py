"""The one door to native code: `accelerate`."""

from __future__ import annotations

import torch
from torch import Tensor

from nap_rl.agents import ValueAgent
from nap_rl.nap import Projector
from nap_rl.native.adam import NativeAdam, NativeProjector
from nap_rl.native.build import library
from nap_rl.native.layers import replace_layers


class NativeValueAgent(ValueAgent):
    """A `ValueAgent` with a `NativeAdam`, which clips, steps and projects in one pass."""

    optimizer: NativeAdam

    def clip_and_step(self) -> Tensor:
        """As `ValueAgent.clip_and_step`."""
        self.optimizer.max_norm = self.max_grad_norm
        self.optimizer.step()
        return torch.tensor(self.optimizer.grad_norm)


def accelerate(agent: ValueAgent) -> ValueAgent:
    """Give the agent, its networks, its optimiser and its projector their native subclasses, in place.

    Only the classes of the objects change: weights, moments, hooks and names stay. What there is no native code for
    stays plain: layers of other kinds, optimisers other than Adam, and everything on a GPU or without a C++ compiler.

    Returns:
        `agent`.
    """
    if agent.device.type != "cpu" or library() is None:
        return agent
    replace_layers(agent.network)
    replace_layers(agent.target)
    if NativeAdam.can_replace(agent.optimizer):
        optimizer = NativeAdam.of(agent.optimizer)
        if type(agent.projector) is Projector:
            agent.projector.__class__ = NativeProjector
            assert isinstance(agent.projector, NativeProjector)
            optimizer.projector = agent.projector
        agent.__class__ = NativeValueAgent
    return agent
