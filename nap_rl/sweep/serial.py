"""The runs of `train.py -m` and `study.py -m`: planned elsewhere, brought to their ends here, summed up in a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nap_rl.sweep import local, table
from nap_rl.sweep.attempts import Surroundings
from nap_rl.sweep.commands import Command
from nap_rl.sweep.record import Record
from nap_rl.sweep.trials import Trial


def run(trials: Sequence[Trial], command: Command) -> int:
    """Run all trials one after the other, their output on this terminal; a line before each, a table at the end.

    A signal stops the run at hand, with its checkpoint, and the sweep. A run that fails does not.

    Returns:
        128 + signal, else the highest exit code of a run.
    """
    folder = Path(os.path.commonpath([trial.folder.absolute().parent for trial in trials]))
    record = Record(folder, command, trials, {"typed": {}, "needs": {"bytes_per_run": 1, "on_gpu": True}})
    with local.Signals() as signals:
        local.run(record, trials, [Surroundings(show=True)], table.Lines(record, beginnings=True), signals)
    print(f"\n{table.runs(record)}", flush=True)
    return local.exit_code(record, signals)
