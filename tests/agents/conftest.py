"""An agent small enough for a test: frames of a few pixels, a torso that flattens the newest one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nap_rl.agents import ValueAgent
from nap_rl.nap import normalize
from nap_rl.nn import ExpectedValue, Head, QNetwork, QuantileEmbedding, Streams
from nap_rl.plasticity import make_method, method_named
from nap_rl.replay import Replay


class NewestFrame(nn.Module):
    """[B, C, *frame] -> [B, pixels] of the newest frame: the state of a Markov chain."""

    def forward(self, stacks: Tensor) -> Tensor:
        return stacks[:, -1].flatten(1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors of a few numbers: on a busy machine, threads that wait for each other take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_agent() -> Callable[..., ValueAgent]:
    def make(
        *,
        head: Head | None = None,
        pixels: int = 2,
        actions: int = 2,
        num_envs: int = 1,
        capacity: int = 1_000,
        n_steps: int = 1,
        discount: float = 0.9,
        sigma0: float | None = None,
        dueling: bool = True,
        hidden: int = 8,
        learning_rate: float = 1e-2,
        exponent: float = 0.5,
        nap: bool = False,
        method: str = "none",
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> ValueAgent:
        head = ExpectedValue() if head is None else head
        torch.manual_seed(0)
        streams = Streams(pixels, actions, head.outputs, hidden, dueling, sigma0)
        embedding = None if head.levels is None else QuantileEmbedding(pixels, 16, head.levels["acting"])
        plain = QNetwork(NewestFrame(), streams, head, embedding)
        example = torch.randint(256, (5, 4, pixels), dtype=torch.uint8)
        network: nn.Module = method_named(method).prepare(plain, example)
        if nap:
            network = normalize(network, example)
        assert isinstance(network, QNetwork)
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        replay = Replay(
            capacity,
            num_envs,
            frame_shape=(pixels,),
            n_steps=n_steps,
            discount=discount,
            reward_clip=None,
            exponent=exponent,
        )
        made = make_method(method, network, optimizer, example_input=example, options=options)
        return ValueAgent(network, optimizer, replay, method=made, **settings)

    return make
