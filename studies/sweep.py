"""`study.py -m`: many studies, `jobs` at a time, and only those that have not finished.

sweep folder/
  method=redo,nap=true,seed=0/    named by its overrides; finished when summary.json is there
  method=redo,nap=true,seed=1/    begun: goes on from its newest checkpoint
"""

from __future__ import annotations

from pathlib import Path

from nap_rl.studies import job
from nap_rl.sweep import local
from nap_rl.sweep.attempts import Outcome, Surroundings
from nap_rl.sweep.commands import STUDY
from nap_rl.sweep.grammar import expand
from nap_rl.sweep.record import Record
from nap_rl.sweep.trials import Trial

NEEDS = {"bytes_per_run": 1, "on_gpu": False}  # studies are small


def run(overrides: list[str], folder: Path) -> int:
    """Runs what `overrides` expand to, each in a process; prints a line for each. Returns the exit code.

    A signal stops all studies, and those begun go on from their checkpoints next time.

    Raises ValueError or FileNotFoundError, before anything runs, if a combination cannot be run or its folder
    holds another config.
    """
    trials = []
    for combination in expand(overrides):
        arguments = list(combination.overrides)
        config = job.check(job.compose(arguments))
        trials.append(Trial(combination.overrides, combination.differing, folder / folder_name(arguments)))
        job.finished(trials[-1].folder, config)  # raises for another config
    record = Record(folder, STUDY, trials, {"typed": {"parallel": config.jobs}, "needs": NEEDS})
    todo = record.unfinished()
    print(f"{len(trials)} studies, {len(trials) - len(todo)} finished already", flush=True)
    places = [Surroundings(threads=1) for _ in range(config.jobs)]
    with local.Signals() as signals:
        local.run(record, todo, places, _Lines(len(todo)), signals)
    return local.exit_code(record, signals)


class _Lines:
    """A line for each study that ends."""

    def __init__(self, studies: int) -> None:
        self.studies, self.ended = studies, 0

    def begins(self, trial: Trial) -> None:
        pass

    def ends(self, trial: Trial, outcome: Outcome) -> None:
        self.ended += 1
        how = "done" if outcome.status == "finished" else f"{outcome.status}: {outcome.reason or outcome.code}"
        print(f"[{self.ended}/{self.studies}] {trial.folder}: {how}", flush=True)

    def looks(self) -> None:
        pass


def folder_name(arguments: list[str]) -> str:
    """What was given on the command line; `jobs` is no part of a study."""
    given = [a.lstrip("+").replace("/", "_") for a in arguments if not a.startswith("jobs=")]
    return ",".join(given) or "default"
