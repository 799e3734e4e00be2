"""The runs that a command with several values stands for: `seed=0,1 agent.nap=true,false` is four.

sweep folder/
    seed=0,nap=true/     named by what differs
    seed=0,nap=false/
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict, read_write

from nap_rl import cli
from nap_rl.cli import sentences

SUBDIR = "hydra.sweep.subdir"
MOST_LETTERS = 200  # of a folder's name; file systems take 255


@dataclass(frozen=True)
class Combination:
    """One choice of all values: the settings, and those of them that differ between the runs."""

    overrides: tuple[str, ...]
    differing: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        arguments: of its command, but for the folder.
        differing: the settings that tell it from the others.
    """

    arguments: tuple[str, ...]
    differing: tuple[str, ...]
    folder: Path


def expand(overrides: Sequence[str]) -> Iterator[Combination]:
    """Every combination of Hydra's sweep syntax: `seed=0,1`, `seed=range(3)`, `agent=dqn,rainbow`.

    Raises:
        ValueError: an override that Hydra's grammar does not read.
    """
    choices: list[list[str]] = []
    differs: list[bool] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            raise ValueError(sentences.unreadable(text)) from None
        several, key = override.is_sweep_override(), override.get_key_element()
        if override.is_delete():
            choices.append([text])
        elif several:
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([f"{key}={override.get_value_element_as_str()}"])
        differs.append(several)
    for chosen in itertools.product(*choices):
        yield Combination(chosen, tuple(itertools.compress(chosen, differs)))


def plan(arguments: cli.Arguments, config_name: str, check: Callable[[DictConfig], object]) -> list[Trial]:
    """All runs of a sweep, each composed and checked.

    Raises:
        ValueError, OSError: one of them cannot run; says which, and why.
    """
    combinations = list(expand(arguments.overrides))
    flags = tuple(f"--config-dir={folder}" for folder in arguments.config_dirs)
    names = folder_names([combination.differing for combination in combinations])
    trials: list[Trial] = []
    parent: Path | None = None
    for number, (combination, name) in enumerate(zip(combinations, names, strict=True)):
        try:
            node = cli.compose(config_name, combination.overrides, config_dirs=arguments.config_dirs)
            check(node)
            parent = parent or Path(node.hydra.sweep.dir)  # it holds the time
            folder = parent / (_chosen_name(node, number) if _names_folders(combination) else name)
            cli.check_folder(folder)
        except (ValueError, OSError) as error:
            which = f"run {number + 1} of {len(combinations)} ({' '.join(combination.differing)}): "
            raise ValueError(f"{which if len(combinations) > 1 else ''}{error}") from None
        trials.append(Trial((*flags, *combination.overrides), combination.differing, folder))
    return trials


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
