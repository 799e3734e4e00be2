"""Sweeps that have a name: conf/sweep/<name>.yaml, or a file of the user's.

    command: train
    settings: [experiment=permuted_catch]          of every run
    arms:                                          what is compared; "arm=NaP,fresh" chooses some of them
      fresh: [env.on_switch.network=reset]
      NaP: [agent.nap=true]
    grid: [seed=0..2]                              every arm with every combination
    sweep: {cpus_per_run: 1}                       settings of the sweep, below what is typed

A setting that is typed takes the place of the same one in the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nap_rl.cli import CONF, group_options, key_of
from nap_rl.sweep.commands import COMMANDS
from nap_rl.sweep.grammar import Combination, expand, values_of

GROUP = "sweep"
ARM = "arm"


@dataclass(frozen=True)
class NamedSweep:
    """The content of such a file."""

    command: str
    settings: Sequence[str] = ()
    arms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    grid: Sequence[str] = ()
    sweep: Mapping[str, Any] = field(default_factory=dict)


def read(name: str, config_dirs: Sequence[str] = ()) -> NamedSweep:
    """The sweep called `name`, or that in the file of this path.

    Raises:
        ValueError: there is none, or its file does not say what it should.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ValueError(f"sweep={name} is no file")
        text = Path(name).read_text(encoding="utf-8")
    else:
        options = group_options(GROUP, config_dirs=config_dirs)
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
            meant = f": did you mean sweep={near[0]}?" if near else ""
            raise ValueError(f"sweep={name} does not exist: the options are {', '.join(options)}{meant}")
        roots = [Path(folder) for folder in config_dirs]
        own = next((p for root in roots if (p := root / GROUP / f"{name}.yaml").is_file()), None)
        text = (own or files(CONF).joinpath(f"{GROUP}/{name}.yaml")).read_text(encoding="utf-8")
    return _checked(name, text)


def _checked(name: str, text: str) -> NamedSweep:
    try:
        plain = OmegaConf.to_container(OmegaConf.create(text))
        found = NamedSweep(**plain)  # type: ignore[arg-type]
    except Exception as error:  # what YAML's parser raises has no type that is ours to import
        raise ValueError(f"sweep={name} cannot be read: {' '.join(str(error).split())}") from None
    if found.command not in COMMANDS:
        raise ValueError(f"sweep={name}: command is {found.command}, expected one of {', '.join(COMMANDS)}")
    lists = {"settings": found.settings, "grid": found.grid, **{f"arm {a}": each for a, each in found.arms.items()}}
    for where, each in lists.items():
        if not isinstance(each, (list, tuple)) or not all(isinstance(text, str) for text in each):
            raise ValueError(f"sweep={name}: {where} is {each}, expected a list of key=value")
    return found


def combinations(
    sweep: NamedSweep, typed: Sequence[str], expand: Callable[[Sequence[str]], Iterable[Combination]] = expand
) -> list[Combination]:
    """The runs of a named sweep, under what was typed; `expand` makes them of the settings of each arm.

    Raises:
        ValueError: an arm that it does not have, or a setting that cannot be read.
    """
    chosen, rest = list(sweep.arms) or [""], []
    for text in typed:
        if key_of(text) == ARM:
            chosen = [value.partition("=")[2].strip("'\"") for value in values_of(text).overrides]
        else:
            rest.append(text)
    if missing := [arm for arm in chosen if arm and arm not in sweep.arms]:
        raise ValueError(f"{ARM}={missing[0]} is none of {', '.join(sweep.arms)}")
    found = []
    for arm in chosen:
        arms = sweep.arms.get(arm, ())
        for each in expand(_last_of_each_key([*sweep.settings, *arms, *sweep.grid, *rest])):
            name = (f"{ARM}={arm}",) if arm else ()
            found.append(Combination(each.overrides, (*name, *each.differing)))
    return found


def _last_of_each_key(overrides: Sequence[str]) -> list[str]:
    last = {key_of(text): place for place, text in enumerate(overrides)}
    return [text for place, text in enumerate(overrides) if last[key_of(text)] == place]
