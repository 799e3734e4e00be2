"""Configurations as train.py composes and checks them, small enough for any machine that runs the tests."""

from __future__ import annotations

from nap_rl import cli
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config

SMALL = ["replay.capacity=2000", "agent.min_replay_steps=1000", "compile=off"]


def checked(*overrides: str) -> Config:
    """The configuration of `train.py OVERRIDES`, and nothing else: `SMALL` has to be among them where it is meant."""
    return to_config(cli.compose("config", list(overrides)))
