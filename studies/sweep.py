"""Many studies in parallel processes, and only those that have not finished.

sweep folder/
  method=redo,nap=true,seed=0/    named by its overrides; finished when summary.json is there
  method=redo,nap=true,seed=1/    begun: goes on from its newest checkpoint
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from nap_rl.studies import job
from nap_rl.sweep.trials import expand


def run(overrides: list[str], folder: Path) -> int:
    """Runs what `overrides` expand to, `jobs` at a time; prints a line for each. Returns how many failed.

    Raises ValueError or FileNotFoundError, before anything runs, if a combination cannot be run or its folder
    holds another config.
    """
    todo = []
    for combination in (combinations := list(expand(overrides))):
        arguments = list(combination.overrides)
        path = folder / folder_name(arguments)
        config = job.check(job.compose(arguments))
        if not job.finished(path, config):
            todo.append((arguments, path))
    print(f"{len(combinations)} studies, {len(combinations) - len(todo)} finished already", flush=True)
    failed = 0
    # spawn: forking a process in which torch has run may hang in its thread pools
    with ProcessPoolExecutor(config.jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(work, arguments, path): path for arguments, path in todo}
        try:
            for number, future in enumerate(as_completed(running), start=1):
                error = future.exception()
                failed += error is not None
                print(f"[{number}/{len(todo)}] {running[future]}: {error or 'done'}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)  # begun ones go on from their checkpoints, next time
            raise
    return failed


def folder_name(arguments: list[str]) -> str:
    """What was given on the command line; `jobs` is no part of a study."""
    given = [a.lstrip("+").replace("/", "_") for a in arguments if not a.startswith("jobs=")]
    return ",".join(given) or "default"


def work(arguments: list[str], folder: Path) -> None:
    """In a worker process: one study."""
    job.register_schema()
    job.run(job.typed(job.compose(arguments)), folder)
