"""Nested dicts split into tensor files and JSON, and put together again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nap_rl.checkpoint import nested


def test_a_tree_comes_back_with_its_tensors_where_they_were() -> None:
    state: dict[str, Any] = {
        "network": {"torso.0.weight": torch.ones(2), "deep": {"er": {"x": torch.arange(3)}}},
        "trainer": {"steps": 3, "first": np.array([True, False]), "list": [1, [2.5, None]], "empty": {}},
        "projector": None,
    }
    tensors, rest = nested.flatten(state)
    assert set(tensors) == {"network", "trainer"}
    assert set(tensors["network"]) == {"torso.0.weight", "deep/er/x"}
    assert rest == {
        "network": {"deep": {"er": {}}},
        "trainer": {"steps": 3, "list": [1, [2.5, None]], "empty": {}},
        "projector": None,
    }
    back = nested.unflatten(tensors, rest)
    assert torch.equal(back["network"]["deep"]["er"]["x"], torch.arange(3))
    assert back["trainer"]["first"].tolist() == [True, False] and back["trainer"]["list"] == [1, [2.5, None]]
    assert back["projector"] is None and list(rest["network"]["deep"]["er"]) == []  # the given one is left as it was


def test_keys_with_slashes_and_tensors_outside_of_sections_are_refused() -> None:
    with pytest.raises(ValueError, match="'a/b' holds a slash"):
        nested.flatten({"s": {"a/b": 1}})
    with pytest.raises(ValueError, match="'x' is in no section"):
        nested.flatten({"x": torch.ones(1)})
