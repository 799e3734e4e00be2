"""Decoders from transformers are normalised and trained unchanged; every layer's role is stated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nap_rl.nap import Projector, normalize, weight_groups
from nap_rl.nap.roles import assign_roles

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # importing transformers takes seconds

TOKENS = torch.randint(64, (4, 12), generator=torch.Generator().manual_seed(0))


def llama(tied: bool = False) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


def gpt_neox() -> nn.Module:
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.GPTNeoXForCausalLM(config)  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
LAYERS: dict[str, tuple[Callable[[], nn.Module], str, set[str]]] = {
    "llama": (
        llama,
        "lm_head",
        {
            f"model.layers.{n}.{name}"
            for n in range(2)
            for name in (
                *(f"self_attn.{each}" for each in PROJECTIONS),
                *(f"mlp.{each}" for each in ("gate_proj", "up_proj", "down_proj")),
            )
        },
    ),
    "llama_tied": (lambda: llama(tied=True), "lm_head", set()),
    # The three projections of a head are one Linear, and of all heads one Conv1D in GPT-2: each is one weight.
    "gpt_neox": (
        gpt_neox,
        "lm_head",
        {
            f"gpt_neox.layers.{n}.{name}"
            for n in range(2)
            for name in ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
        },
    ),
    "gpt2": (
        gpt2,
        "lm_head",
        {
            f"transformer.h.{n}.{name}"
            for n in range(2)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        },
    ),
}
LAYERS["llama_tied"] = (*LAYERS["llama_tied"][:2], LAYERS["llama"][2])


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_layer_but_the_head_is_invariant_and_the_model_trains_with_all_norms_held(name: str) -> None:
    build, head, hidden = LAYERS[name]
    torch.manual_seed(0)
    network = build()
    assert set(weight_groups(network)) == {*hidden, head}
    names = {each for each, _ in network.named_parameters() if each.endswith("weight")}
    normalize(network, TOKENS)
    assert names <= {each for each, _ in network.named_parameters()}  # no weight is renamed
    assert assign_roles(network, TOKENS) == {head: "output", **dict.fromkeys(hidden, "invariant")}
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    projector = Projector(network, optimizer)
    assert set(projector.groups) == hidden
    losses: list[float] = []
    for _ in range(40):
        optimizer.zero_grad()
        logits: Any = network(TOKENS).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert projector.max_relative_drift() < 1e-6
