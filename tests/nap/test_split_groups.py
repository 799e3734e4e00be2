"""Each layer in parameter groups of its own: rates differ, order and results do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nap_rl.nap import Projector, normalize, weight_groups
from nap_rl.nap.groups import split_groups


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_layer_has_groups_that_name_it_and_all_parameters_keep_their_order() -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.5, eps=1e-3)
    layers = weight_groups(module)
    split_groups(optimizer, {name: layers[name] for name in ("0", "2")})
    groups = optimizer.param_groups
    assert [group.get("layer") for group in groups] == ["0", None, "2", None]
    assert [len(group["params"]) for group in groups] == [1, 1, 1, 3]
    assert all(group["lr"] == 0.5 and group["eps"] == 1e-3 for group in groups)
    split = [parameter for group in groups for parameter in group["params"]]
    assert all(a is b for a, b in zip(split, module.parameters(), strict=True))


def test_a_rate_that_is_a_tensor_is_each_groups_own() -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=torch.tensor(0.5))
    split_groups(optimizer, weight_groups(module))
    optimizer.param_groups[0]["lr"].fill_(0.25)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25, *[0.5] * 5]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_at_one_rate_a_split_optimizer_does_what_it_did(kind: Any) -> None:
    weights = []
    for split in (False, True):
        module = normalize(network(), torch.randn(5, 4))
        optimizer = kind(module.parameters(), lr=0.1)
        Projector(module, optimizer)
        if split:
            split_groups(optimizer, weight_groups(module))
        torch.manual_seed(1)
        for _ in range(5):
            optimizer.zero_grad()
            module(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    assert torch.equal(*weights)
