"""What a run of a sweep is: a command of this package, and what its folder says of it.

A run's folder alone decides whether it is finished, whether it can go on, and how often it was started. Whatever
dies, the next driver reads it there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nap_rl.cli import quoted

SUMMARY = "summary.json"
STARTS = "starts.csv"
OUTPUT = "output.log"


@dataclass(frozen=True)
class Command:
    """A command that runs in a folder of its own.

    Attributes:
        name: as it is typed after `sweep.py`.
        program: a module, or the path of a script that ends in .py.
        place: the setting that names its folder.
        result: the file that it writes last.
        has_status: whether `result` says by its "status" that the run is finished; else its existence does.
        resume: the setting that goes on with the run in a folder; "": the same command again does.
        threads: the setting for the number of its threads, or "".
        together: the setting that trains several seeds in one process, or "".
    """

    name: str
    program: str
    place: str = "hydra.run.dir"
    result: str = SUMMARY
    has_status: bool = False
    resume: str = ""
    threads: str = ""
    together: str = ""

    def is_finished(self, folder: Path) -> bool:
        """Whether the run in `folder` came to its end."""
        if not self.has_status:
            return (folder / self.result).is_file()
        return summary_of(folder).get("status") == "finished"

    def arguments(self, folder: Path, typed: Sequence[str], threads: int | None) -> list[str]:
        """What to type to begin the run in `folder`, or to go on with it."""
        more = self._threads(typed, threads)
        if self.resume and has_checkpoint(folder):
            return [f"{self.resume}={folder}", *more]  # everything else stands in its checkpoint
        return [*typed, *more, f"{self.place}={quoted(str(folder))}"]

    def arguments_together(
        self, folder: Path, typed: Sequence[str], seeds: Sequence[int | None], threads: int | None
    ) -> list[str]:
        """What to type to begin the runs of `seeds` below `folder`, or to go on; `typed` holds no seed."""
        listed = f"{self.together}=[{','.join(map(str, seeds))}]"
        place = f"{self.place}={quoted(str(folder))}"
        return [*typed, *self._threads(typed, threads), listed, f"{self.resume}=auto", place]

    def _threads(self, typed: Sequence[str], threads: int | None) -> list[str]:
        keys = {argument.split("=", 1)[0] for argument in typed}
        return [f"{self.threads}={threads}"] if self.threads and threads and self.threads not in keys else []


TRAIN = Command("train", "nap_rl.train", has_status=True, resume="resume", threads="threads", together="seeds")
STUDY = Command("study", "nap_rl.study")
EVALUATE = Command("evaluate", "nap_rl.evaluate", place="out", result="evaluation.json")
COMMANDS = {command.name: command for command in (TRAIN, STUDY, EVALUATE)}


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint was published in a run's folder."""
    return newest_checkpoint(folder) is not None


def newest_checkpoint(folder: Path) -> str | None:
    """The name of the newest published checkpoint; None without one."""
    try:
        names = [path.name for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")]
    except OSError:
        return None
    return max(names, default=None)


def summary_of(folder: Path) -> dict[str, Any]:
    """summary.json of a run, {} where there is none that can be read."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def note_start(folder: Path, host: str) -> None:
    """Add a line to starts.csv, before the process is there: a process that is not counted could be killed."""
    path = folder / STARTS
    with open(path, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write("time,host\n")
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')},{host}\n")


def starts_of(folder: Path) -> int:
    """How often the run was started."""
    try:
        return max(len((folder / STARTS).read_text(encoding="utf-8").splitlines()) - 1, 0)
    except OSError:
        return 0


def last_words(folder: Path) -> str | None:
    """The last line that the run wrote to its terminal, or None."""
    try:
        with open(folder / OUTPUT, "rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - 4096, 0))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    except OSError:
        return None
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
