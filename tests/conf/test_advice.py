"""A run says at its start what was measured of its schedule and of its scale and offset."""

from __future__ import annotations

import pytest

from nap_rl.conf.advice import advice
from tests.conf.checked import SMALL, checked

NAP = "agent.nap=true"
SEQUENCE = "env=sequential_atari"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["agent.nap=false", "schedule=constant"],
        [NAP, "schedule=linear"],
        [NAP, "schedule=cosine"],
        [NAP, SEQUENCE],
        [NAP, SEQUENCE, "nap.affine=omit"],
        [NAP, "nap=norm_only", "nap.affine=free", SEQUENCE],
    ],
)
def test_nothing_is_said_where_nothing_speaks_against_it(overrides: list[str]) -> None:
    assert advice(checked(*overrides, *SMALL)) == []


def test_a_constant_rate_under_projection_is_advised_against_on_one_task() -> None:
    (sentence,) = advice(checked(NAP, *SMALL))
    assert "schedule=linear did better" in sentence


@pytest.mark.parametrize("affine", ["project", "free"])
def test_offsets_that_are_not_pulled_back_are_advised_against_in_a_sequence(affine: str) -> None:
    (sentence,) = advice(checked(NAP, SEQUENCE, f"nap.affine={affine}", *SMALL))
    assert sentence.startswith(f"nap.affine={affine}: in long sequences offsets sink")


@pytest.mark.parametrize("method", ["redo", "reset_head", "shrink_perturb", "hare_tortoise"])
def test_a_method_whose_first_time_comes_after_the_run_is_said_not_to_act(method: str) -> None:
    run = ["env=catch", "agent=dqn_small", "frames=9000", "agent.min_replay_steps=1000", "agent.update_every_steps=4"]
    late, last = (advice(checked(*run, f"plasticity={method}", f"plasticity.every={n}")) for n in (2001, 2000))
    assert late == [f"plasticity={method} will not act: plasticity.every=2001, and this run has 2000 updates"]
    assert last == []
