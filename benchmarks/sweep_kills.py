"""A sweep under fire: python -m benchmarks.sweep_kills [--runs 24] [--kills 12] [--engine ray|local]

Trains RUNS tiny agents twice: without interruption, and with KILLS signals SIGKILL at random runs, at Ray's actors and,
twice, at the driver, which `sweep.py resume=` follows. Says whether every run finished once, whether starts are runs +
kills, and whether all weights are equal. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TINY = ("experiment=permuted_catch", "env.visits=2", "logger.tensorboard=false", "checkpoint.every=1000")
DRIVER_KILLS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--kills", type=int, default=12, help="of runs; the driver's come on top")
    parser.add_argument("--actors", type=int, default=3, help="kills of Ray's actors, with --engine ray")
    parser.add_argument("--engine", choices=("ray", "local"), default="local")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peace", type=Path, help="the folder of an earlier call's uninterrupted sweep")
    given = parser.parse_args()
    folder = Path(mkdtemp(prefix="sweep-kills-"))
    peace, war = given.peace or folder / "peace", folder / "war"
    axes = [*TINY, f"seed=0..{given.runs // 2 - 1}", "agent.nap=true,false", f"sweep.engine={given.engine}"]
    axes.append("sweep.seeds_per_process=1")  # a kill is of one run
    began = time.monotonic()
    if given.peace is None:
        subprocess.run([sys.executable, "sweep.py", "train", *axes, f"sweep.dir={peace}"], cwd=ROOT, check=True)
    quiet_seconds = time.monotonic() - began
    lost = fight(axes, war, given.kills, given.actors if given.engine == "ray" else 0, random.Random(given.seed))
    return report(peace, war, lost, quiet_seconds)


def fight(axes: list[str], war: Path, kills: int, actors: int, rng: random.Random) -> dict[str, int]:
    """Runs the sweep and kills what it can; returns how many starts each kind of kill cost."""
    lost = {"runs": 0, "actors": 0, "driver": 0, "runs that ended with the driver or an actor": 0}
    driver = subprocess.Popen([sys.executable, "sweep.py", "train", *axes, f"sweep.dir={war}"], cwd=ROOT)
    plan = ["runs"] * kills + ["actors"] * actors
    rng.shuffle(plan)
    for place in (len(plan) * 2 // 3, len(plan) // 3):
        plan.insert(place, "driver")
    while plan and driver.poll() is None:
        time.sleep(rng.uniform(0.5, 4.0))
        running = list(children(driver.pid, war))
        if not running:
            continue
        kind = plan[0]
        if kind == "driver":
            hit = [pid for pid, folder in running if freeze(pid, folder)]
            parents = [parent_of(pid) for pid in hit]
            driver.kill()
            driver.wait()
            lost["runs that ended with the driver or an actor"] += len(hit)
            lost["driver"] += 1
            for pid, parent in zip(hit, parents, strict=True):
                wait_for_death(parent)  # it would start a run that dies before it does
                kill(pid)
            driver = subprocess.Popen([sys.executable, "sweep.py", f"resume={war}"], cwd=ROOT)
        else:
            pid, folder = rng.choice(running)
            if not freeze(pid, folder):
                continue
            if kind == "actors":
                kill(parent_of(pid))
                lost["runs that ended with the driver or an actor"] += 1
            kill(pid)
            lost[kind] += 1
        plan.pop(0)
    if driver.wait() != 0 or plan:
        print(f"the driver ended with {driver.returncode}, kills left: {len(plan)}")
    return lost


def freeze(pid: int, folder: Path) -> bool:
    """Stop a process, so that what is seen stays; False if its run is finished or the process is gone."""
    try:
        os.kill(pid, signal.SIGSTOP)
        if status_of(folder) != "finished":
            return True
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass
    return False


def children(driver: int, war: Path) -> Iterator[tuple[int, Path]]:
    """(process, folder) of each run below the driver."""
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "nap_rl.sweep.child" in words and (name := next((w for w in words if str(war) in w), None)):
            yield int(path.name), Path(name.partition("=")[2].strip("'"))


def parent_of(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def kill(pid: int) -> None:
    """Ray may have done it: it ends what a lost actor has started."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_for_death(pid: int) -> None:
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)


def summary_of(folder: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return summary


def status_of(folder: Path) -> object:
    return summary_of(folder).get("status")


def report(peace: Path, war: Path, lost: dict[str, int], quiet_seconds: float) -> int:
    rows = json.loads((war / "sweep.json").read_text())["runs"]
    starts = sum(row["starts"] for row in rows)
    killed = lost["runs"] + lost["runs that ended with the driver or an actor"]
    finished = [row for row in rows if row["status"] == "finished" and status_of(war / row["folder"]) == "finished"]
    names = [row["folder"] for row in rows]
    equal = [n for n in names if summary_of(peace / n)["weights_sha256"] == summary_of(war / n).get("weights_sha256")]
    print(f"\nkills: {lost}" + (f"; the sweep in peace took {quiet_seconds:.0f} s" if quiet_seconds > 1 else ""))
    print(f"{len(finished)} of {len(rows)} finished; {starts} starts = {len(rows)} runs + {killed} kills of a run")
    print(f"{len(equal)} of {len(rows)} have the weights of the run that was never killed")
    good = len(finished) == len(equal) == len(rows) and starts == len(rows) + killed
    print("as it should be" if good else "NOT as it should be")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
