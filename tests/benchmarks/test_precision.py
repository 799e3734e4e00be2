"""The comparison of precisions, on numbers with a known answer and on a small network."""

from __future__ import annotations

import pytest
import torch

from benchmarks.precision import compare, values
from nap_rl.nn import Categorical, DataEfficientTorso, QNetwork, Streams


def test_distances_are_said_beside_what_separates_actions() -> None:
    exact = torch.tensor([[1.0, 2.0, 0.0], [5.0, 3.0, 4.5]])
    other = torch.tensor([[1.5, 1.5, 0.0], [4.0, 3.0, 4.5]])  # the first may be either action: argmax takes the first
    found = compare(exact, other)
    assert found["difference"] == pytest.approx(((0.25 + 0.25 + 1.0) / 6) ** 0.5)
    assert found["bias"] == pytest.approx(-1.0 / 6)
    assert found["gap"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["same action"] == 0.0
    assert found["lost"] == pytest.approx((1.0 + 0.5) / 2)
    assert compare(exact, exact) == {"difference": 0.0, "bias": 0.0, "gap": 0.75, "same action": 1.0, "lost": 0.0}


@pytest.mark.parametrize("kept", [False, True])
def test_values_in_half_precision_are_near_those_in_single_and_leave_the_network_alone(kept: bool) -> None:
    torch.manual_seed(0)
    head = Categorical()
    network = QNetwork(DataEfficientTorso(), Streams(DataEfficientTorso.features, 4, head.outputs, 32, True, 0.1), head)
    stacks = torch.randint(0, 256, (20, 4, 84, 84), dtype=torch.uint8)
    exact = values(network, stacks, torch.float32)
    assert torch.equal(exact, network.q_values(stacks))
    half = values(network, stacks, torch.bfloat16, kept)
    assert 0 < float((half - exact).abs().max()) < 0.05
    assert all(parameter.dtype is torch.float32 for parameter in network.parameters())
