"""Many studies in parallel processes, and only those that have not finished.

sweep folder/
  method=redo,nap=true,seed=0/    named by its overrides; finished when summary.json is there
  method=redo,nap=true,seed=1/    begun: goes on from its newest checkpoint
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from nap_rl import cli
from nap_rl.studies import job


def expand(overrides: list[str]) -> Iterator[dict[str, str]]:
    """Every combination of Hydra's sweep syntax (`seed=0,1`, `seed=range(3)`), as key -> value.

    Raises ValueError for an override that Hydra's grammar does not read.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    choices = []
    for override in parsed:
        key = override.get_key_element()
        if override.is_sweep_override():
            choices.append([(key, value) for value in override.sweep_string_iterator()])
        else:
            choices.append([(key, override.get_value_element_as_str())])
    for combination in itertools.product(*choices):
        yield dict(combination)


def run(overrides: list[str], folder: Path) -> int:
    """Runs what `overrides` expand to, `jobs` at a time; prints a line for each. Returns how many failed.

    Raises ValueError or FileNotFoundError, before anything runs, if a combination cannot be run or its folder
    holds another config.
    """
    todo = []
    for combination in (combinations := list(expand(overrides))):
        arguments = [f"{key}={value}" for key, value in combination.items()]
        path = folder / folder_name(arguments)
        config = job.check(cli.compose(job.CONFIG_NAME, arguments))
        if not job.finished(path, config):
            todo.append((arguments, path))
    print(f"{len(combinations)} studies, {len(combinations) - len(todo)} finished already", flush=True)
    failed = 0
    # spawn: forking a process in which torch has run may hang in its thread pools
    with ProcessPoolExecutor(config.jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(work, arguments, path): path for arguments, path in todo}
        for number, future in enumerate(as_completed(running), start=1):
            error = future.exception()
            failed += error is not None
            print(f"[{number}/{len(todo)}] {running[future]}: {error or 'done'}", flush=True)
    return failed


def folder_name(arguments: list[str]) -> str:
    """What was given on the command line; `jobs` is no part of a study."""
    given = [a.lstrip("+").replace("/", "_") for a in arguments if not a.startswith("jobs=")]
    return ",".join(given) or "default"


def work(arguments: list[str], folder: Path) -> None:
    """In a worker process: one study."""
    job.register_schema()
    job.run(job.typed(cli.compose(job.CONFIG_NAME, arguments)), folder)
