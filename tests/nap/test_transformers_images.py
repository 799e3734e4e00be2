"""Networks for images from transformers are normalised and trained unchanged; every layer's role is stated."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nap_rl.nap import Projector, normalize
from nap_rl.nap.roles import assign_roles

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # importing transformers takes seconds

X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4


def resnet(kind: str) -> nn.Module:
    widths = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2]}
    config = transformers.ResNetConfig(**widths, layer_type=kind, num_labels=4, hidden_act="relu")
    return transformers.ResNetForImageClassification(config)  # type: ignore[no-any-return]


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=4,
    )
    return transformers.ViTForImageClassification(config)  # type: ignore[no-any-return]


def convnext() -> nn.Module:
    """Blocks end in LayerScale, a gain of 1e-6 a channel."""
    sizes = {"patch_size": 2, "hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2}
    config = transformers.ConvNextConfig(**sizes, num_labels=4, layer_scale_init_value=1e-6)
    return transformers.ConvNextForImageClassification(config)  # type: ignore[no-any-return]


def made(build: Any, **options: Any) -> tuple[nn.Module, Counter[str], set[str]]:
    """A normalised network, how many layers have each role, and which are not invariant."""
    torch.manual_seed(0)
    network = build()
    names = set(dict(network.named_parameters()))
    normalize(network, X, **options)
    assert {name for name in names if name.endswith("weight")} <= set(network.state_dict())  # no weight is renamed
    roles = assign_roles(network, X)
    return network, Counter(roles.values()), {name for name, role in roles.items() if role != "invariant"}


def train(network: nn.Module) -> None:
    """Learns eight images by heart with every projected norm where it began."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    projector = Projector(network, optimizer)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(X).logits, Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert projector.max_relative_drift() < 1e-6


@pytest.mark.parametrize("existing", ["keep", "replace"])
@pytest.mark.parametrize(("kind", "invariant"), [("basic", 10), ("bottleneck", 14)])
def test_resnet_with_batch_norm_kept_and_replaced(kind: str, invariant: int, existing: str) -> None:
    network, roles, others = made(lambda: resnet(kind), existing=existing)
    assert roles == {"invariant": invariant, "output": 1} and others == {"classifier.1"}
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == (existing == "keep")
    train(network)


def test_vit() -> None:
    network, roles, others = made(vit)
    # A patch embedding; two layers of query, key, value, output and two of the MLP.
    assert roles == {"invariant": 1 + 2 * 6, "output": 1} and others == {"classifier"}
    train(network)


def test_convnext_with_layer_scale() -> None:
    network, roles, others = made(convnext)
    # A patch embedding; four blocks of a depthwise convolution and two linear layers; one halving in between.
    assert roles == {"invariant": 1 + 4 * 3 + 1, "output": 1} and others == {"classifier"}
    train(network)
