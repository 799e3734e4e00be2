"""A run says once of each layer that it learns no more."""

from __future__ import annotations

import pytest

from nap_rl.agents.signs import Signs

ALIVE = {
    "train/learning_rate": 1e-3,
    "plasticity/dormant/torso.0": 0.98,
    "nap/rotation/torso.0": 1e-2,
    "nap/rotation/torso.2": None,
}


def test_a_layer_that_learns_is_no_sign() -> None:
    assert Signs().new(ALIVE) == []


def test_a_dead_layer_is_told_once_with_what_prevents_it() -> None:
    signs = Signs()
    (sentence,) = signs.new({**ALIVE, "plasticity/dormant/torso.0": 1.0})
    assert "layer torso.0: all units are dead" in sentence and "nap.affine=omit" in sentence
    assert signs.new({**ALIVE, "plasticity/dormant/torso.0": 1.0}) == []
    assert len(signs.new({**ALIVE, "plasticity/dormant/torso.2": 1.0})) == 1


@pytest.mark.parametrize(("rate", "told"), [(1e-3, 1), (1e-8, 0), (None, 0)])
def test_a_layer_that_turns_no_more_is_told_unless_the_rate_is_tiny(rate: float | None, told: int) -> None:
    row = {**ALIVE, "train/learning_rate": rate, "nap/rotation/torso.0": 0.0}
    sentences = Signs().new(row)
    assert len(sentences) == told and all("layer torso.0" in sentence for sentence in sentences)
