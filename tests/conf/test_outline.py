"""The line at a run's start: its numbers against those worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from nap_rl import cli
from nap_rl.conf import schema
from nap_rl.conf.check import to_config
from nap_rl.conf.environments import ATARI, Observations
from nap_rl.conf.outline import outline


def line(observations: Observations, *settings: str) -> str:
    schema.register()
    cli.register_resolvers()
    return outline(
        to_config(cli.compose("config", [*settings, "logger.tensorboard=false"])), observations, Path("here")
    )


def test_a_run_says_its_frames_updates_memory_and_folder() -> None:
    # 4M frames are 1M steps; after 20,000 of them an update to each 4; 84 x 84 bytes and 34 beside them for each
    said = line(ATARI, "env.game=pong", "agent=rainbow", "frames=4_000_000")
    assert said.startswith("4,000,000 frames, about 245,000 updates, a replay of 7.1 GB -> here (")


def test_a_short_run_fills_no_more_of_the_replay_than_it_plays() -> None:
    said = line(ATARI, "env.game=pong", "agent=rainbow", "frames=4000")
    assert said.endswith("known)") and ", a replay of 7 MB -> here (" in said


def test_a_run_that_ends_before_learning_begins_says_so() -> None:
    said = line(ATARI, "env.game=pong", "agent=rainbow", "frames=20000")
    assert "20,000 frames, no update (learning begins at 80,000 frames: agent.min_replay_steps=20000), a" in said
    said = line(ATARI, "env.game=pong", "agent=rainbow", "frames=20000", "agent.min_replay_steps=1000")
    assert "20,000 frames, about 1,000 updates, a" in said


@pytest.mark.parametrize("words", ["frames= makes it shorter", "time left"])
def test_a_run_says_how_to_shorten_it_and_where_the_time_will_stand(words: str) -> None:
    assert words in line(ATARI, "env.game=pong")
