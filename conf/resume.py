"""`resume=<run folder>` and `resume=auto`: which run goes on, with which settings, and what of them may differ.

A resumed run is composed from the settings stored in its checkpoint and from what is typed now: preset files, folders
given by --config-dir and sources of weights are not asked for again. A group typed now (schedule=linear) is read from
its file, under the values that the run was started with. What then differs from the stored settings is refused unless
`resume.allow=[...]` names it (a key, or a section). Free are only

    frames                  more than were played: the run goes on beyond its end
    env.cycles              more than before: the sequence goes on
    eval.*, checkpoint.*, logger.diagnostics_every_updates    the training does not depend on them
    logger.tensorboard, logger.wandb, logger.mlflow           likewise
    threads                 numbers may differ in their last digits, which the run says

Lines over the whole run (the importance exponent, a learning rate without schedule.over_frames) keep the length that
the run began with: beyond it they stay at their end. `schedule.over_frames=... resume.allow=[schedule.over_frames]`
draws the learning rate's line anew.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from nap_rl import cli
from nap_rl.cli import Arguments, check_folder, key_of
from nap_rl.conf import environments, schema
from nap_rl.conf.check import check_space, to_config
from nap_rl.conf.schema import Config
from nap_rl.process import sole_owner

RUN_DIR = "hydra.run.dir"
STORED = "stored"  # name of the stored settings, as a root of Hydra's
AUTO = ("auto", "latest", "last", "newest")
# Beginnings of keys that may always differ.
TRACKERS = ("logger.tensorboard", "logger.wandb", "logger.mlflow")
FREE = ("checkpoint.", "eval.", "logger.diagnostics_every_updates", *TRACKERS, "threads")


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


def check_run(node: DictConfig, resume: Resume) -> Config:
    """The checked configuration of a run that can begin or go on in its folder.

    Raises:
        ValueError, OSError: it cannot; one sentence.
    """
    folder = Path(node.hydra.run.dir)
    new = resume.folder is None
    check_folder(folder, new=new)
    config = to_config(node, begins=new)
    resume.check(config)
    if not resume.is_finished(config):
        check_space(config, folder)
    if resume.folder is not None:
        with sole_owner(resume.folder):
            pass
    return config


def plan(arguments: Arguments) -> tuple[Resume, DictConfig]:
    """What goes on, and the composed configuration, Hydra's own part included.

    Raises:
        ValueError: there is no such run, the settings do not compose, or the command cannot mean a run.
    """
    asked, overrides = _split(arguments.overrides)
    if asked and arguments.multirun:
        raise ValueError("resume= goes with a single run, without -m")
    if "resume" not in asked:
        if asked:
            raise ValueError("resume.allow needs resume=<run folder> or resume=auto beside it")
        return Resume(), _compose(overrides, arguments)
    allow = tuple(key.strip() for key in asked.get("resume.allow", "").strip("[]").split(",") if key.strip())
    if asked["resume"] == "auto":
        return _plan_auto(overrides, allow, arguments)
    folder = Path(asked["resume"])
    meta = _meta(folder)
    typed = [override for override in overrides if key_of(override) != RUN_DIR]
    return Resume(folder, allow, meta), _compose_stored(meta, typed, folder, arguments)


def check_changes(meta: Mapping[str, Any], config: Config, allow: tuple[str, ...]) -> None:
    """Raises ValueError with a sentence that lists every setting that differs from `meta` and may not."""
    stored = schema.to_dict(schema.from_dict(meta["config"]))
    before, now = dict(schema.leaves(stored)), dict(schema.leaves(schema.to_dict(config)))
    keys = sorted({*before, *now})
    sections = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    for name in allow:
        if name not in sections and name not in keys:
            near = difflib.get_close_matches(name, [*keys, *sections], n=1, cutoff=0.0)[0]
            raise ValueError(f"resume.allow names '{name}', which is no setting: did you mean '{near}'?")
    assert config.frames is not None
    if config.frames < min(meta["frames"], stored["frames"]):  # the last step may have gone beyond the end
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


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(resume and resume.allow, the settings)."""
    asked = dict(o.split("=", 1) for o in overrides if o.startswith(("resume=", "resume.allow=")))
    return asked, [o for o in overrides if not o.startswith(("resume=", "resume.allow="))]


def _plan_auto(overrides: list[str], allow: tuple[str, ...], arguments: Arguments) -> tuple[Resume, DictConfig]:
    """The newest unfinished run of exactly these settings beside which a new one would lie, else a new one.

    With hydra.run.dir given it is that folder, if a run is in it.
    """
    from nap_rl import checkpoint

    node = _compose(overrides, arguments)
    config, new = to_config(node, begins=False), Path(node.hydra.run.dir)
    if config.seeds is not None:  # each run of theirs is looked for when they are trained
        if RUN_DIR not in map(key_of, overrides):
            raise ValueError("resume=auto with seeds= needs hydra.run.dir=FOLDER, in which the runs are")
        return Resume(), node
    if any(key_of(override) == RUN_DIR for override in overrides):
        folder = new if checkpoint.latest_meta(new / "checkpoints") else None
    else:
        folder = _newest_unfinished(new.parent, config)
    if folder is None:
        place = new if RUN_DIR in map(key_of, overrides) else new.parent
        print(f"resume=auto: no unfinished run of these settings in {place}: a new one begins", flush=True)
        return Resume(), node
    _set(node, RUN_DIR, str(folder))
    return Resume(folder, allow, _meta(folder)), node


def _newest_unfinished(parent: Path, config: Config) -> Path | None:
    from nap_rl import checkpoint

    wanted, found = _comparable(schema.to_dict(config)), []
    assert config.frames is not None
    for run in parent.glob("*/checkpoints"):
        meta = checkpoint.latest_meta(run)
        if meta and meta["frames"] < config.frames and _comparable_to(meta["config"]) == wanted:
            found.append((run.stat().st_mtime_ns, run.parent))
    return max(found)[1] if found else None


def _meta(folder: Path) -> dict[str, Any]:
    """`meta` of the newest sound checkpoint of the run in `folder`."""
    if not folder.exists() and difflib.get_close_matches(folder.name, AUTO, n=1, cutoff=0.75):
        raise ValueError(f"resume={folder} is no folder: did you mean resume=auto, the newest of its settings?")
    if not folder.is_dir():  # said before torch is imported
        raise ValueError(f"resume={folder} is no folder: expected the folder of a run, with checkpoints/ in it")
    from nap_rl import checkpoint

    if folder.parent.name == "checkpoints" and (folder / checkpoint.MANIFEST).is_file():
        raise ValueError(f"resume={folder} is one checkpoint: expected its run, resume={folder.parent.parent}")
    meta = checkpoint.latest_meta(folder / "checkpoints")
    if meta is None:
        raise ValueError(f"resume={folder} holds no checkpoint: expected the folder of a run, with checkpoints/ in it")
    if not meta.get("has_replay"):
        raise ValueError(f"resume={folder}: its checkpoints hold no replay, without which a run cannot go on")
    return meta


def _compose(overrides: Sequence[str], arguments: Arguments) -> DictConfig:
    return cli.compose("config", overrides, config_dirs=arguments.config_dirs)


def _compose_stored(meta: Mapping[str, Any], typed: list[str], folder: Path, arguments: Arguments) -> DictConfig:
    """The stored settings, under the groups and then the values that were typed now."""
    groups = _groups_of(typed, arguments)
    if "experiment" in map(key_of, groups):  # many settings at once: their files are read again
        node = _compose(_merged(meta["overrides"], typed), arguments)
    else:
        stored = schema.to_node(meta["config"])
        _free_length(stored, typed)
        _choose(stored, groups, meta["overrides"], arguments)
        ConfigStore.instance().store(name=STORED, node=stored)
        node = cli.compose(STORED, [override for override in typed if override not in groups])
    _set(node, RUN_DIR, str(folder))
    _set(node, "hydra.overrides.task", _merged(meta["overrides"], typed))
    return node


def _free_length(stored: DictConfig, typed: list[str]) -> None:
    """A sequence that was played whole grows with its cycles."""
    keys = set(map(key_of, typed))
    whole = environments.sequence_frames(OmegaConf.to_object(stored.env))  # type: ignore[arg-type]
    if stored.frames == whole and "frames" not in keys and "env.cycles" in keys:
        stored.frames = None


def _choose(stored: DictConfig, groups: list[str], before: list[str], arguments: Arguments) -> None:
    """Replace sections of `stored` by the options of `groups`, under the values that `before` gave them."""
    if not groups:
        return
    names = [key_of(group) for group in groups]
    values = [o for o in before if "=" in o and any(_is_below(key_of(o), name) for name in names)]
    chosen = _compose(_merged(values, groups), arguments)
    for name in names:
        path = name.replace("/", ".")
        OmegaConf.update(stored, path, OmegaConf.select(chosen, path), merge=False)


def _groups_of(typed: list[str], arguments: Arguments) -> list[str]:
    return [o for o in typed if cli.group_options(key_of(o), config_dirs=arguments.config_dirs)]


def _merged(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Overrides typed now take the place of earlier ones of the same key."""
    return [override for override in before if key_of(override) not in set(map(key_of, now))] + [*now]


def _set(node: DictConfig, key: str, value: Any) -> None:
    with read_write(node), read_write(node.hydra), open_dict(node.hydra):
        OmegaConf.update(node, key, value)


def _is_below(key: str, group: str) -> bool:
    return key.replace("/", ".").startswith(group.replace("/", ".") + ".")


def _comparable_to(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        return _comparable(schema.to_dict(schema.from_dict(dict(stored))))
    except ValueError:  # of a version that is not known
        return None


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.leaves(config) if not key.startswith(FREE)}
