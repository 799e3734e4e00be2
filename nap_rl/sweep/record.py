"""sweep.json: which runs a sweep has and how far they are. A picture for people; the runs' own folders decide."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nap_rl.files import write_atomic
from nap_rl.sweep import commands
from nap_rl.sweep.attempts import Outcome, ending_of
from nap_rl.sweep.commands import COMMANDS, Command
from nap_rl.sweep.trials import Trial

NAME = "sweep.json"
VERSION = 1
AT_MOST_EVERY = 1.0  # seconds between two writes, but for the last


class Record:
    """The rows of sweep.json: {folder, overrides, arguments, arm, seed, status, starts, reason} of each run."""

    def __init__(self, folder: Path, command: Command, trials: Sequence[Trial], settings: Mapping[str, Any]) -> None:
        self.folder, self.command, self.trials, self.settings = folder, command, list(trials), dict(settings)
        self.outcomes: dict[Path, Outcome] = {}
        self.running: set[Path] = set()
        self._written = 0.0

    def begins(self, trial: Trial) -> None:
        self.running.add(trial.folder)
        self.write()

    def ends(self, trial: Trial, outcome: Outcome) -> None:
        self.running.discard(trial.folder)
        self.outcomes[trial.folder] = outcome
        self.write()

    def status(self, trial: Trial) -> str:
        """waiting | running | how it ended."""
        if trial.folder in self.outcomes:
            return self.outcomes[trial.folder].status
        return "running" if trial.folder in self.running else "waiting"

    def unfinished(self) -> list[Trial]:
        """Runs to start: those that did not finish, but for diverged ones, which would diverge again."""
        for trial in self.trials:
            if (ending := ending_of(trial, self.command)) is not None:
                self.outcomes[trial.folder] = ending
            elif self.status(trial) not in ("diverged", "stopped"):
                self.outcomes.pop(trial.folder, None)
        return [trial for trial in self.trials if trial.folder not in self.outcomes]

    def write(self, *, now: bool = False) -> None:
        """Write sweep.json, unless that was done just now."""
        if now or time.monotonic() - self._written >= AT_MOST_EVERY:
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
            write_atomic(self.folder / NAME, text)
            self._written = time.monotonic()

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "command": self.command.name,
            "settings": self.settings,
            "runs": [self._row(trial) for trial in self.trials],
        }

    def _row(self, trial: Trial) -> dict[str, Any]:
        outcome = self.outcomes.get(trial.folder)
        return {
            "folder": _relative(trial.folder, self.folder),
            "overrides": list(trial.differing),
            "arguments": list(trial.arguments),
            "together": None if trial.together is None else _relative(trial.together, self.folder),
            "arm": trial.arm,
            "seed": trial.seed,
            "resumes": trial.resumes,
            "frames": trial.frames,
            "status": self.status(trial),
            "starts": commands.starts_of(trial.folder),
            "code": None if outcome is None else outcome.code,
            "reason": None if outcome is None else outcome.reason,
        }


def read(folder: Path) -> Record:
    """The record of the sweep in `folder`.

    Raises:
        ValueError: there is none, or it is damaged or of another version.
    """
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no sweep: expected a folder with {NAME} in it")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["version"] != VERSION:
            raise ValueError(f"{path} is of version {plain['version']}, expected {VERSION}")
        rows = plain["runs"]
        trials = [
            Trial(
                tuple(row["arguments"]),
                tuple(row["overrides"]),
                folder / row["folder"],
                arm=row["arm"],
                seed=row["seed"],
                resumes=row["resumes"],
                frames=row.get("frames"),
                together=folder / row["together"] if row.get("together") else None,
            )
            for row in rows
        ]
        record = Record(folder, COMMANDS[plain["command"]], trials, plain["settings"])
        for trial, row in zip(trials, rows, strict=True):
            if row["code"] is not None:
                record.outcomes[trial.folder] = Outcome(row["status"], row["code"], row["reason"])
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{path} is damaged: it does not list the runs of a sweep") from None
    return record


def known(folder: Path) -> dict[frozenset[str], Trial]:
    """The runs, by their settings, of the sweep in `folder`; {} in a new folder."""
    if not (folder / NAME).exists():
        return {}
    return {frozenset(trial.arguments): trial for trial in read(folder).trials}


def check_same(folder: Path, command: Command, trials: Sequence[Trial]) -> Mapping[Path, Outcome]:
    """How the runs ended that an earlier call of this sweep left in `folder`; {} in a new folder.

    Raises:
        ValueError: the folder holds another sweep.
    """
    if not (folder / NAME).exists():
        return {}
    before, now = read(folder), {trial.folder.absolute(): trial for trial in trials}
    for old in before.trials:
        new = now.get(old.folder.absolute())
        if before.command.name != command.name or new is None or set(new.arguments) != set(old.arguments):
            which = " ".join(old.differing) or old.folder.name
            raise ValueError(
                f"{folder} holds another sweep, of {before.command.name}.py with the run {which}: "
                f"name another folder with sweep.dir=, or go on with sweep.py resume={folder}"
            )
    return {now[path.absolute()].folder: outcome for path, outcome in before.outcomes.items()}


def _relative(path: Path, folder: Path) -> str:
    path, folder = path.absolute(), folder.absolute()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
