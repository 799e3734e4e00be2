"""How many updates a run makes, against runs whose updates were counted."""

from __future__ import annotations

import pytest

from nap_rl.conf.updates import updates_of
from tests.conf.checked import checked


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["experiment=permuted_catch", "env.visits=100"],
            95_000,
        ),  # a visit of 4,000 steps, 200 of which fill the replay; one to 4 steps
        (["experiment=random_mdps", "env.visits=10"], 10 * 450),
        (["experiment=permuted_catch", "env.on_switch.replay=keep"], (300 * 4000 - 200) // 4),
        (["experiment=permuted_catch", "frames=10000"], 950 + 950 + 450),
        (["env=atari", "env.game=pong", "frames=1000000", "agent.min_replay_steps=50000"], (250_000 - 50_000) // 4),
        (["env=catch", "agent=dqn_small", "frames=100", "agent.min_replay_steps=100"], 0),
    ],
)
def test_updates_are_not_made_while_an_empty_replay_fills(overrides: list[str], expected: int) -> None:
    assert updates_of(checked(*overrides)) == expected
