"""The weights of a zip for a network of any configuration: what is kept, what is fresh, what that changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from nap_rl.agents import ValueAgent
from nap_rl.nn import Categorical, ExpectedValue, QNetwork, Quantile
from nap_rl.sb3.model import Model, load_moments

TORSO = "torso."
HEADS = {"expected": ExpectedValue, "categorical": Categorical, "quantile": Quantile}


class Fit(NamedTuple):
    """How a zip's tensors went into a network; names of tensors."""

    fresh: list[str]  # the network's that stay as initialised
    dropped: list[str]  # the zip's that are left out

    @property
    def exact(self) -> bool:
        """The network is that of the zip."""
        return not self.fresh and not self.dropped


def initialize(model: Model, network: QNetwork) -> Fit:
    """Copy into a freshly built network what fits: all of it, or the torso if the streams are others.

    NaP's normalisations are fresh, and the biases in front of them are left out.

    Raises:
        ValueError: a weight of the torso does not fit.
    """
    theirs, ours = model.network, network.state_dict()
    fits = {name for name in theirs if name in ours and theirs[name].shape == ours[name].shape}
    for name in theirs:
        if name.startswith(TORSO) and name not in fits and not (name.endswith(".bias") and name not in ours):
            here = "missing" if name not in ours else "x".join(map(str, ours[name].shape))
            raise ValueError(
                f"its torso is another one ({name} is {'x'.join(map(str, theirs[name].shape))} there and {here} here): "
                f"use agent.torso={model.spec.torso} agent.net_arch={list(model.spec.net_arch)}"
            )
    weights = {name for name in theirs if not name.startswith(TORSO) and name.endswith("weight")}
    if not (_same_head(model, network) and weights <= fits and network.streams.actions == model.actions):
        fits = {name for name in fits if name.startswith(TORSO)}
    network.load_state_dict({**ours, **{name: theirs[name] for name in fits}})
    return Fit(sorted(set(ours) - fits), sorted(set(theirs) - fits))


def continue_learning(model: Model, agent: ValueAgent) -> None:
    """Target network and, for Adam, the moments of the zip, for an agent whose network `initialize` fitted exactly."""
    agent.target.load_state_dict(model.target)
    if isinstance(agent.optimizer, torch.optim.Adam):
        load_moments(agent.optimizer, agent.network, model.moments)


def describe(
    model: Model, network: QNetwork, fit: Fit, stacks: Callable[[QNetwork], npt.NDArray[np.uint8]]
) -> str | None:
    """What is not as in the zip, in one sentence; None where everything is.

    Args:
        stacks: plays with the zip's network, and gives real observations [N, 4, 84, 84] uint8.
    """
    if fit.exact:
        return None
    layers = ", ".join(sorted({name.rsplit(".", 1)[0] for name in fit.fresh}))
    if {name for name in model.network if name.startswith("streams.") and "weight" in name} & set(fit.dropped):
        return f"only the torso of the {model.algorithm} zip is kept, without Adam's moments; FRESH are {layers}"
    before = model.build()
    observations = stacks(before)
    same = agreement(before, network, observations)
    return (
        f"normalisations were put into the network of the {model.algorithm} zip, which CHANGES what it computes: on "
        f"{len(observations):,} real observations {same:.1%} of its greedy actions stay; without Adam's moments"
    )


@torch.no_grad()
def agreement(one: QNetwork, other: QNetwork, stacks: npt.NDArray[np.uint8]) -> float:
    """Share of observations [N, 4, 84, 84] uint8 in which both networks choose the same action."""
    same = [
        one.q_values(batch).argmax(dim=1) == other.q_values(batch).argmax(dim=1)
        for batch in torch.split(torch.from_numpy(stacks), 100)
    ]
    return float(torch.cat(same).float().mean())


def _same_head(model: Model, network: QNetwork) -> bool:
    head, spec = network.head, model.spec
    if not isinstance(head, HEADS[spec.head]) or head.outputs != spec.outputs:
        return False
    if not isinstance(head, Categorical):
        return True
    return (spec.v_min, spec.v_max) == (float(head.support[0]), float(head.support[-1]))
