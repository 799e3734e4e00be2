"""Runs that differ in their seed alone, several to a process: `train.py seeds=[0,1,2]` stacks their small networks.

sweep folder/
    nap=true,seed=0..2/              of the process: its output
        seed_0/ seed_1/ seed_2/      of the runs
    nap=false,seed=7/                a run with a process of its own
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nap_rl.cli import key_of
from nap_rl.sweep.trials import SUBDIR, Trial, folder_names

SEED = "seed"
MOST = 5  # of sweep.seeds_per_process=auto


def processes(trials: Sequence[Trial]) -> list[tuple[Trial, ...]]:
    """The runs by process, in the order of the first of each."""
    found: dict[Path, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.together or trial.folder, []).append(trial)
    return [tuple(each) for each in found.values()]


def share(
    trials: Sequence[Trial],
    folder: Path,
    most: Callable[[Sequence[Trial]], int],
    known: Mapping[frozenset[str], Trial],
) -> list[Trial]:
    """The runs with the folders of shared processes.

    Args:
        trials: of a sweep in `folder`, each with a process of its own.
        most: of runs that differ in their seed alone, how many can share a process.
        known: runs by their settings that have their folders already.
    """
    moved: dict[Path, Trial] = {}
    arms: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        if (old := known.get(frozenset(trial.arguments))) is not None:
            moved[trial.folder] = replace(trial, folder=old.folder, together=old.together)
        elif trial.seed is not None and not any(key_of(text) == SUBDIR for text in trial.arguments):
            arms.setdefault(without_seed(trial.arguments), []).append(trial)
    several = [runs for runs in arms.values() if 1 < len(runs) == len({run.seed for run in runs})]
    shared = [part for runs in several for part in even_parts(runs, most(runs)) if len(part) > 1]
    for part, name in zip(shared, folder_names([_differing(part) for part in shared]), strict=True):
        for trial in part:
            place = folder / name
            moved[trial.folder] = replace(trial, folder=place / f"seed_{trial.seed}", together=place)
    return [moved.get(trial.folder, trial) for trial in trials]


def even_parts(runs: Sequence[Trial], most: int) -> list[Sequence[Trial]]:
    """As few parts of at most `most` runs as there can be, their lengths one apart: 6 by 5 is 3 + 3."""
    count = -(-len(runs) // most)
    bounds = [len(runs) * part // count for part in range(count + 1)]
    return [runs[low:high] for low, high in zip(bounds, bounds[1:], strict=False)]


def without_seed(arguments: Sequence[str]) -> tuple[str, ...]:
    """The settings but for the seed."""
    return tuple(text for text in arguments if key_of(text) != SEED)


def _differing(part: Sequence[Trial]) -> list[str]:
    """Of a process: what its runs have in common, and their seeds, such as seed=0..4 or seed=1,5,7."""
    seeds = [run.seed for run in part if run.seed is not None]
    span = list(range(seeds[0], seeds[0] + len(seeds)))
    written = f"{seeds[0]}..{seeds[-1]}" if seeds == span else ",".join(map(str, seeds))
    return [f"{SEED}={written}" if key_of(text) == SEED else text for text in part[0].differing]
