"""The runs that a command with several values stands for: `seed=0,1 agent.nap=true,false` is four.

sweep folder/
    seed=0,nap=true/     named by what differs
    seed=0,nap=false/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from nap_rl import cli
from nap_rl.cli import sentences
from nap_rl.sweep.grammar import Combination, expand

SUBDIR = "hydra.sweep.subdir"
MOST_LETTERS = 200  # of a folder's name; file systems take 255


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        arguments: of its command, but for the folder.
        differing: the settings that tell it from the others.
        arm: what it is compared by: the differing settings without the seed.
        seed: of the run, None where its command has no such setting.
        resumes: whether its checkpoints hold all that it needs to go on.
        frames: its length, where that is known.
        together: the folder of the process that it shares with the other runs of this folder; None: it has its own.
    """

    arguments: tuple[str, ...]
    differing: tuple[str, ...]
    folder: Path
    arm: str = ""
    seed: int | None = None
    resumes: bool = True
    frames: int | None = None
    together: Path | None = None


def plan(
    arguments: cli.Arguments,
    config_name: str | Callable[[Sequence[str]], str],
    check: Callable[[DictConfig], object],
    *,
    module: str = cli.CONF,
    folder: Path | None = None,
    combinations: Sequence[Combination] | None = None,
) -> list[Trial]:
    """All runs of a sweep, each composed and checked.

    Args:
        config_name: of the root config, or what finds it from a run's settings.
        check: raises ValueError or OSError for a configuration that cannot run; returns the checked one.
        module: the package that holds the YAML files.
        folder: of the sweep; None: hydra.sweep.dir, where no run may lie yet.
        combinations: of settings; None: those that `arguments` stand for.

    Raises:
        ValueError, OSError: one of them cannot run; says which, and why.
    """
    chosen = list(expand(arguments.overrides)) if combinations is None else list(combinations)
    flags = tuple(f"--config-dir={directory}" for directory in arguments.config_dirs)
    names = folder_names([combination.differing for combination in chosen])
    trials: list[Trial] = []
    parent = folder
    for number, (combination, name) in enumerate(zip(chosen, names, strict=True)):
        try:
            root = config_name if isinstance(config_name, str) else config_name(combination.overrides)
            node = cli.compose(root, combination.overrides, module=module, config_dirs=arguments.config_dirs)
            checked = check(node)
            parent = parent or Path(node.hydra.sweep.dir)  # it holds the time
            place = parent / (_chosen_name(node, number) if _names_folders(combination) else name)
            cli.check_folder(place, new=folder is None)
        except (ValueError, OSError) as error:
            which = f"run {number + 1} of {len(chosen)} ({' '.join(combination.differing)}): "
            raise ValueError(f"{which if len(chosen) > 1 else ''}{error}") from None
        trials.append(_trial((*flags, *combination.overrides), combination.differing, place, node, checked))
    return trials


def _trial(
    arguments: tuple[str, ...], differing: tuple[str, ...], folder: Path, node: DictConfig, checked: object
) -> Trial:
    seed, replay = OmegaConf.select(node, "seed"), OmegaConf.select(node, "checkpoint.replay")
    return Trial(
        arguments,
        differing,
        folder,
        arm=" ".join(override for override in differing if sentences.key_of(override) != "seed"),
        seed=seed if isinstance(seed, int) else None,
        resumes=replay is not False,
        frames=getattr(checked, "frames", None),
    )


def folder_names(differing: Sequence[Sequence[str]]) -> list[str]:
    """A name for each run: its differing settings, of each key the last part unless two keys share it."""
    keys = {sentences.key_of(override) for overrides in differing for override in overrides}
    lasts = [re.split(r"[./]", key)[-1] for key in keys]

    def short(override: str) -> str:
        key, last = sentences.key_of(override), re.split(r"[./]", sentences.key_of(override))[-1]
        value = override.partition("=")[2].strip("'\"")
        value = value.lower() if value in ("True", "False") else value  # as Hydra writes true and false
        return _plain(f"{last if lasts.count(last) == 1 else key}={value}")

    taken: dict[str, int] = {}
    names = []
    for overrides in differing:
        name = ",".join(map(short, overrides))[:MOST_LETTERS] or "run"
        taken[name] = taken.get(name, 0) + 1
        names.append(name if taken[name] == 1 else f"{name}-{taken[name]}")
    return names


def _plain(text: str) -> str:
    """Letters that need no quotes in a shell or in Hydra's grammar."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text)


def _names_folders(combination: Combination) -> bool:
    return any(sentences.key_of(override) == SUBDIR for override in combination.overrides)


def _chosen_name(node: DictConfig, number: int) -> str:
    with read_write(node.hydra.job), open_dict(node.hydra.job):
        node.hydra.job.num = number
    return str(node.hydra.sweep.subdir)
