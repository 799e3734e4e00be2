"""What a run is going to do, in one line for its start."""

from __future__ import annotations

from pathlib import Path

from nap_rl.conf.environments import Observations, frame_skip
from nap_rl.conf.memory import frame_bytes
from nap_rl.conf.schema import Config
from nap_rl.replay import Replay


def outline(config: Config, observations: Observations, folder: Path) -> str:
    """Length, updates and memory of the run in `folder`, and how to make it shorter."""
    assert config.frames is not None
    steps = config.frames // frame_skip(config.env)
    first = config.agent.min_replay_steps
    updates = max(steps - first, 0) / config.agent.update_every_steps
    size = Replay.nbytes(min(config.replay.capacity, steps), frame_bytes(observations))
    memory = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{max(size / 1e6, 1):.0f} MB"
    begins = f"learning begins at {first * frame_skip(config.env):,} frames: agent.min_replay_steps={first}"
    return (
        f"{config.frames:,} frames, {f'about {updates:,.0f} updates' if updates else f'no update ({begins})'}, "
        f"a replay of {memory} -> {folder} "
        "(frames= makes it shorter; the time left stands in the line below once it is known)"
    )
