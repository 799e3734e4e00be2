"""`resume=<run folder>` and `resume=auto`: which run goes on, with which settings, and what of them may differ.

A resumed run is composed from the overrides that it was started with and those typed now. What then differs from the
settings in its checkpoint is refused unless `resume.allow=[...]` names it (a key, or a section). Free are only

    frames                  more than were played: the run goes on beyond its end
    env.cycles              more than before: the sequence goes on
    eval.*, checkpoint.*, logger.diagnostics_every_updates    the training does not depend on them

Lines over the whole run (the importance exponent, a learning rate without schedule.over_frames) keep the length that
the run began with: beyond it they stay at their end. `schedule.over_frames=... resume.allow=[schedule.over_frames]`
draws the learning rate's line anew.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nap_rl import checkpoint, cli
from nap_rl.conf import schema
from nap_rl.conf.check import to_config
from nap_rl.conf.schema import Config

RUN_DIR = "hydra.run.dir"
FREE = ("checkpoint.", "eval.", "logger.diagnostics_every_updates")  # beginnings of keys that may always differ


@dataclass(frozen=True)
class Resume:
    """The run that goes on, None for a new one; `meta` is that of its newest checkpoint."""

    folder: Path | None = None
    allow: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def check(self, config: Config) -> None:
        """Raises ValueError with all settings that differ and may not."""
        if self.folder is not None:
            check_changes(self.meta, config, self.allow)

    def is_finished(self, config: Config) -> bool:
        """Whether there is nothing left to play."""
        assert config.frames is not None
        return self.folder is not None and self.meta["frames"] >= config.frames


def plan(arguments: list[str]) -> tuple[list[str], Resume]:
    """The command line without `resume`, but with all that the resumed run was started with.

    Raises:
        ValueError: there is no such run, or the command cannot mean one.
    """
    asked = dict(argument.split("=", 1) for argument in arguments if argument.startswith(("resume=", "resume.allow=")))
    rest = [argument for argument in arguments if not argument.startswith(("resume=", "resume.allow="))]
    if "resume" not in asked:
        if asked:
            raise ValueError("resume.allow needs resume=<run folder> or resume=auto beside it")
        return rest, Resume()
    if flags := [argument for argument in rest if argument.startswith("-")]:
        raise ValueError(f"resume= goes with a single run, without {flags[0]}")
    folder = _find_run(rest) if asked["resume"] == "auto" else Path(asked["resume"])
    allow = tuple(key.strip() for key in asked.get("resume.allow", "").strip("[]").split(",") if key.strip())
    if folder is None:
        return rest, Resume()
    meta = checkpoint.latest_meta(folder / "checkpoints")
    if meta is None:
        raise ValueError(f"resume={folder} holds no checkpoint: expected the folder of a run, with checkpoints/ in it")
    if not meta.get("has_replay"):
        raise ValueError(f"resume={folder}: its checkpoints hold no replay, without which a run cannot go on")
    overrides = _merged(meta["overrides"], [o for o in rest if not o.startswith(f"{RUN_DIR}=")])
    quoted = str(folder).replace("'", r"\'")
    return [*overrides, f"{RUN_DIR}='{quoted}'"], Resume(folder, allow, meta)


def check_changes(meta: Mapping[str, Any], config: Config, allow: tuple[str, ...]) -> None:
    """Raises ValueError with a sentence that lists every setting that differs from `meta` and may not."""
    before, now = dict(schema.leaves(meta["config"])), dict(schema.leaves(schema.to_dict(config)))
    keys = sorted({*before, *now})
    sections = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    for name in allow:
        if name not in sections and name not in keys:
            near = difflib.get_close_matches(name, [*keys, *sections], n=1, cutoff=0.0)[0]
            raise ValueError(f"resume.allow names '{name}', which is no setting: did you mean '{near}'?")
    assert config.frames is not None
    if config.frames < meta["frames"]:
        raise ValueError(f"frames={config.frames}, but the run has played {meta['frames']} already")
    changed = [key for key in keys if before.get(key) != now.get(key)]
    refused = [
        key
        for key in changed
        if key != "frames"
        and not key.startswith(FREE)
        and not (key == "env.cycles" and key in before and now[key] > before[key])
        and not any(key == name or key.startswith(f"{name}.") for name in allow)
    ]
    if refused:
        listed = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in refused)
        raise ValueError(f"{listed}: leave it as it was, or add resume.allow=[{','.join(refused)}]")


def _find_run(overrides: list[str]) -> Path | None:
    """The newest unfinished run of exactly these settings, beside which a new one would lie, or None.

    With hydra.run.dir given it is that folder, if a run is in it.
    """
    composed = cli.compose("config", overrides)
    config, folder = to_config(composed), Path(composed.hydra.run.dir)
    if any(override.startswith(f"{RUN_DIR}=") for override in overrides):
        return folder if checkpoint.latest_meta(folder / "checkpoints") else None
    wanted, found = _comparable(schema.to_dict(config)), []
    assert config.frames is not None
    for run in folder.parent.glob("*/checkpoints"):
        meta = checkpoint.latest_meta(run)
        if meta and _comparable(meta["config"]) == wanted and meta["frames"] < config.frames:
            found.append((run.stat().st_mtime_ns, run.parent))
    return max(found)[1] if found else None


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.leaves(config) if not key.startswith(FREE)}


def _merged(before: list[str], now: list[str]) -> list[str]:
    """Overrides typed now take the place of earlier ones of the same key."""

    def key(override: str) -> str:
        return override.split("=")[0].lstrip("+~")

    return [override for override in before if key(override) not in set(map(key, now))] + now
