"""What the engines of a sweep add to a shell loop: python -m benchmarks.sweep_overhead [--seconds 120] [--runs 6]

A run sleeps and writes its summary, so other work on the machine hardly matters. Prints the seconds from start to end
of `xargs -P`, of the local engine and of Ray Tune, each in a process of its own, Ray's start and end included. Exit
code 1 if an engine adds 5 % or more. What real runs cost each other is `benchmarks.sweep_cores`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

LIMIT = 1.05
ROOT = Path(__file__).resolve().parent.parent
RUN = """
import json, pathlib, sys, time
settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = pathlib.Path(settings["hydra.run.dir"].strip("'"))
folder.mkdir(parents=True, exist_ok=True)
time.sleep(float(settings["seconds"]))
(folder / "summary.json").write_text(json.dumps({"status": "finished"}))
"""
SWEEP = """
import pathlib, sys
from nap_rl.sweep import local, ray_tune, record, table
from nap_rl.sweep.attempts import Surroundings
from nap_rl.sweep.commands import Command
from nap_rl.sweep.trials import Trial
engine, folder, program, runs, parallel, seconds = sys.argv[1:]
folder = pathlib.Path(folder)
trials = [Trial((f"seconds={seconds}",), (f"seed={i}",), folder / f"seed={i}") for i in range(int(runs))]
sweep = record.Record(folder, Command("train", program, has_status=True), trials, {})
lines = table.Lines(sweep, beginnings=False)
with local.Signals() as signals:
    if engine == "local":
        local.run(sweep, trials, [Surroundings(threads=1)] * int(parallel), lines, signals)
    else:
        with ray_tune.cluster(None, int(parallel), 0):
            ray_tune.run(sweep, trials, ray_tune.Resources(1, 0.0, None), lines, signals)
sys.exit(local.exit_code(sweep, signals))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--parallel", type=int, default=2)
    given = parser.parse_args()
    folder = Path(mkdtemp(prefix="sweep-overhead-"))
    program = folder / "run.py"
    program.write_text(RUN)
    words = [str(given.runs), str(given.parallel), str(given.seconds)]
    line = f"seq {given.runs} | xargs -P {given.parallel} -I@ {sys.executable} {program} seconds={given.seconds}"
    taken = {"shell": timed(["sh", "-c", f"{line} hydra.run.dir={folder}/shell/@"])}
    for engine in ("local", "ray"):
        taken[engine] = timed([sys.executable, "-c", SWEEP, engine, str(folder / engine), str(program), *words])
    for name, seconds in taken.items():
        print(f"{name:<6} {seconds:8.2f} s  {100 * (seconds / taken['shell'] - 1):+.1f} %")
    return int(max(taken.values()) >= LIMIT * taken["shell"])


def timed(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
