"""How many updates a configuration makes."""

from __future__ import annotations

from nap_rl.conf.env_schema import AtSwitch, SequenceConfig, SequentialConfig
from nap_rl.conf.environments import frame_skip, planned
from nap_rl.conf.schema import Config


def updates_of(config: Config) -> int:
    """Updates of a whole run: those for which an empty replay is filled, at its start or at a switch, are not made.

    To a few: environments step together, and a switch happens in the first step that reaches it.
    """
    assert config.frames is not None
    agent, env, skip = config.agent, config.env, frame_skip(config.env)
    cleared = isinstance(env, (SequenceConfig, SequentialConfig)) and env.on_switch.replay is AtSwitch.reset
    lengths = [visit.end - visit.begin for visit in planned(config)] if cleared else [config.frames]
    left, updates = config.frames, 0
    for length in lengths:
        steps = min(length, left) // skip - agent.min_replay_steps
        updates += max(int(steps / agent.update_every_steps), 0)
        left = max(left - length, 0)
    return updates
