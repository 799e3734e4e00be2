"""The decoder: causal, with relative positions, counted, and wholly normalised and projected but for its head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW
from torch.utils.flop_counter import FlopCounterMode

from nap_rl.nap import Projector, normalize, scale_invariance
from nap_rl.nn.transformer import SIZES, Rotary, Transformer, TransformerSize, count_parameters, training_flops

SMALL = TransformerSize(layers=2, width=32, heads=4, hidden=48, context=16)
VOCABULARY = 64


def tokens(rows: int = 3, length: int = 16) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))


def decoder(**options: Any) -> Transformer:
    torch.manual_seed(0)
    size = replace(SMALL, feedforward=options.pop("feedforward", "swiglu"))
    return Transformer(size, VOCABULARY, **options)


def test_a_token_changes_the_logits_from_its_place_on_and_none_before() -> None:
    model, x = decoder(), tokens(1)
    y = x.clone()
    y[0, 9] = (y[0, 9] + 1) % VOCABULARY
    with torch.no_grad():
        changed = (model(x) - model(y)).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False] * 9 + [True] * 7


def test_rotated_products_depend_on_the_distance_alone() -> None:
    rotary = Rotary(8, 16)
    q, k = torch.randn(8), torch.randn(8)
    scores = rotary(q.expand(1, 1, 16, 8))[0, 0] @ rotary(k.expand(1, 1, 16, 8))[0, 0].T
    for distance in range(-15, 16):
        line = scores.diagonal(distance)
        assert torch.allclose(line, line[:1].expand_as(line), atol=1e-5)
    assert torch.allclose(scores.diagonal(), q @ k)
    assert not torch.allclose(scores[0, 1], scores[0, 2], atol=1e-3)


@pytest.mark.parametrize("feedforward", ["swiglu", "gelu"])
@pytest.mark.parametrize("pre_norm", ["rms", "layer"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_but_the_head_is_projected(feedforward: str, pre_norm: str, tied: bool) -> None:
    model, x = decoder(feedforward=feedforward, norm=pre_norm, tied=tied), tokens()
    normalize(model, x)
    roles = {name: each.nap_role for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    assert roles.pop("head") == "output"
    assert set(roles.values()) == {"invariant"} and len(roles) == 2 * (7 if feedforward == "swiglu" else 6)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    projector = Projector(model, optimizer)
    assert set(projector.groups) == set(roles)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
        optimizer.step()
    assert float(projector.max_relative_drift()) < 1e-5
    changes = scale_invariance(model, x)
    assert max(changes[name] for name in roles) < 1e-2 < changes.pop("head")


def test_without_affine_there_are_no_gains_and_offsets() -> None:
    model = decoder(affine=False, norm="layer")
    normalize(model, tokens(), affine=False)
    assert all(parameter.ndim == 2 for parameter in model.parameters())


@pytest.mark.parametrize("feedforward", ["swiglu", "gelu"])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_those_of_the_model(feedforward: str, tied: bool) -> None:
    model = decoder(feedforward=feedforward, tied=tied, affine=False)
    count = count_parameters(model.size, VOCABULARY, tied=tied)
    assert sum(count.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_transformer_400m_has_411_million_weights() -> None:
    with torch.device("meta"):
        model = Transformer(SIZES["transformer_400m"], 50_304)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 411e6 < count < 412e6
    assert count - 49 * 1024 == sum(count_parameters(SIZES["transformer_400m"], 50_304).values())


@pytest.mark.parametrize("feedforward", ["swiglu", "gelu"])
def test_operations_are_those_that_torch_counts(feedforward: str) -> None:
    model, x = decoder(feedforward=feedforward), tokens()
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    products = counter.get_flop_counts()["Global"]
    counted = sum(flops for name, flops in products.items() if "attention" not in str(name))
    parts = training_flops(model.size, VOCABULARY, x.shape[1])
    assert counted == (sum(parts.values()) - parts["scores"]) * x.numel()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layers": 0}, "layers must be at least 1; got 0"),
        ({"heads": 3}, "heads=3 heads takes an equal, even share of width=32"),
        ({"width": 12}, "heads=4 heads takes an equal, even share of width=12"),
    ],
)
def test_sizes_that_do_not_fit_are_sentences(changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL, **changes)


def test_more_tokens_than_the_context_are_a_sentence() -> None:
    with pytest.raises(ValueError, match="17 tokens are more than the context of 16"):
        decoder()(tokens(1, 17))
