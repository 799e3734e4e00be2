"""Containers of an optimiser's state as dicts by text, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from nap_rl.checkpoint import nested
from nap_rl.checkpoint.optimizer_state import decode, encode


@pytest.mark.parametrize(
    "value",
    [
        3,
        "text",
        None,
        [],
        set(),
        {},
        [1, [2.5, "a"], (True, None)],
        {0: {"seen": {3, 1, 2}, "keys": [1]}, "name": {"container": "list"}},
    ],
)
def test_every_value_comes_back_with_its_types_also_through_json(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value and type(back) is type(value)


def test_tensors_in_containers_go_through_a_checkpoints_files() -> None:
    kept = {0: {"Q": [torch.arange(3.0), torch.ones(2, 2)], "step": torch.tensor(4)}}
    tensors, rest = nested.flatten({"optimizer": {"0": {"state": encode(kept)}}})
    assert len(tensors["optimizer"]) == 3
    back = decode(nested.unflatten(tensors, json.loads(json.dumps(rest)))["optimizer"]["0"]["state"])
    assert torch.equal(back[0]["Q"][0], kept[0]["Q"][0]) and torch.equal(back[0]["Q"][1], torch.ones(2, 2))
    assert back.keys() == kept.keys() and int(back[0]["step"]) == 4


@pytest.mark.parametrize(
    ("value", "what"), [(object(), "a object"), ([iter([1])], "a list_iterator"), ({(1, 2): 3}, "a dict by tuple")]
)
def test_what_is_no_plain_container_is_named(value: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        encode(value)
