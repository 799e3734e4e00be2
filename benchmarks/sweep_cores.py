"""What runs beside each other cost: python -m benchmarks.sweep_cores [--runs 2] [--repetitions 3] [SETTING ...]

Trains one run alone on one core, and RUNS runs at once on as many cores, by turns; all by sweep.py without Ray. Prints
the seconds of a run between its first and its last step, and from the start to the end of the sweep. Exit code 1 if a
run beside others takes more than 1.15 times as long as alone. Needs an idle machine.

SETTINGs take the place of: experiment=pong_cpu frames=24000 eval.every=null.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ("experiment=pong_cpu", "frames=24000", "eval.every=null")
ALWAYS = ("logger.tensorboard=false", "sweep.engine=local", "sweep.cpus_per_run=1", "sweep.seeds_per_process=1")
LIMIT = 1.15


class Seconds(NamedTuple):
    """Of each run, and of the whole sweep."""

    runs: list[float]
    sweep: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", default=SETTINGS, metavar="SETTING")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    folder, load = Path(mkdtemp(prefix="sweep-cores-")), os.getloadavg()[0]
    if load > 0.5:
        print(f"the load of the machine is {load:.1f}: what else runs will be measured too", flush=True)
    alone, beside = [], []
    for number in range(given.repetitions):
        alone.append(measured(given.settings, 1, folder / f"{number}-alone"))
        beside.append(measured(given.settings, given.runs, folder / f"{number}-beside"))
        print(f"alone {alone[-1]}\n{given.runs} at once {beside[-1]}", flush=True)
    one = statistics.median(seconds for each in alone for seconds in each.runs)
    slowest = statistics.median(max(each.runs) for each in beside)
    sweeps = [statistics.median(each.sweep for each in both) for both in (alone, beside)]
    print(f"\na run alone {one:.1f} s, the slowest of {given.runs} {slowest:.1f} s: {slowest / one:.3f} times")
    print(f"with start and end {sweeps[0]:.1f} s and {sweeps[1]:.1f} s: {sweeps[1] / sweeps[0]:.3f} times")
    return int(slowest > LIMIT * one)


def measured(settings: tuple[str, ...], runs: int, folder: Path) -> Seconds:
    """Train `runs` seeds at once."""
    seeds = f"seed=0..{runs - 1}"
    command = [sys.executable, "sweep.py", "train", *settings, *ALWAYS, seeds, f"sweep.parallel={runs}"]
    began = time.monotonic()
    subprocess.run([*command, f"sweep.dir={folder}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - began
    rows = json.loads((folder / "sweep.json").read_text())["runs"]
    walls = [json.loads((folder / row["folder"] / "summary.json").read_text())["wall_seconds"] for row in rows]
    return Seconds(walls, took)


if __name__ == "__main__":
    sys.exit(main())
