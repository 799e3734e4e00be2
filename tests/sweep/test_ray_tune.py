"""The runs of a sweep on Ray Tune: the same ends as without it, on the loopback interface, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from nap_rl.sweep import ray_tune, record

HERE = Path(__file__).resolve().parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not ray_tune.is_installed(), reason="needs the extra ray")]

SWEEP = """
import sys, pathlib
sys.path[:0] = [{root!r}, {here!r}]
from nap_rl.sweep import halving, live, local, ray_tune, record, sharing
from nap_rl.sweep.commands import Command
from nap_rl.sweep.trials import Trial
folder, codes = pathlib.Path({folder!r}), {codes!r}
command = Command("train", {program!r}, has_status=True, resume="resume", together="seeds")
seeds = [f"seed={{i}}" for i in range(len(codes))]
planned = [Trial((f"code={{c}}", s), (s,), folder / s, seed=i) for i, (s, c) in enumerate(zip(seeds, codes))]
planned = sharing.share(planned, folder, lambda arm: {most}, {{}})
sweep = record.Record(folder, command, planned, {{}})
rules = halving.Halving("score", grace=200, longest=1000)
judge = halving.Judge(rules, [trial.folder for trial in planned]) if {judged!r} else None
with local.Signals() as signals, live.LiveTable(sweep) as lines, ray_tune.cluster({address!r}, 2, 0) as there:
    takes = ray_tune.Resources(1, 0.0, 1 if judge else None)
    ray_tune.run(sweep, sweep.unfinished(), takes, lines, signals, judge)
sys.exit(local.exit_code(sweep, signals))
"""


def driver(
    folder: Path, *codes: str, address: str | None = None, judged: bool = False, most: int = 1
) -> subprocess.Popen[str]:
    """A sweep in a process of its own, with as many as `most` runs of the same code in a process."""
    values = {"root": str(HERE.parents[1]), "here": str(HERE), "program": str(HERE / "fake_run.py")}
    more = {"codes": codes, "address": address, "judged": judged, "most": most}
    script = textwrap.dedent(SWEEP).format(folder=str(folder / "sweep"), **more, **values)
    home = {**os.environ, "HOME": str(folder / "home"), "PYTHONPATH": values["root"]}
    (folder / "home").mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=home)


def rows(folder: Path) -> list[tuple[str, int]]:
    plain = json.loads((folder / "sweep" / record.NAME).read_text())
    return [(row["status"], row["starts"]) for row in plain["runs"]]


def processes_of(folder: Path) -> dict[int, str]:
    """Everything that was started with this home folder."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and f"HOME={folder / 'home'}\0" in (path / "environ").read_text():
                found[int(path.name)] = (path / "cmdline").read_text()
        except (OSError, ValueError):
            continue
    return found


def listening_addresses(pids: set[int]) -> set[str]:
    """Addresses on which these processes accept connections of the network."""
    inodes = set()
    for pid in pids:
        try:
            for descriptor in (Path("/proc") / str(pid) / "fd").iterdir():
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
        except OSError:
            continue
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and cells[9] in inodes:
                words = bytes.fromhex(cells[1].split(":")[0])  # 32-bit words in the machine's order
                swapped = struct.pack(f">{len(words) // 4}I", *struct.unpack(f"<{len(words) // 4}I", words))
                found.add(socket.inet_ntop(family, swapped))
    return found


def wait_until(what: object, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_runs_end_as_without_ray_and_nothing_is_left(tmp_path: Path) -> None:
    sweep = driver(tmp_path, "killed", "3", "0")
    out, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 3, out
    assert rows(tmp_path) == [("finished", 2), ("diverged", 1), ("finished", 1)]
    assert len([line for line in out.splitlines() if line.startswith("[")]) == 3
    assert list((tmp_path / "home").iterdir()) == []
    assert list(Path(tempfile.gettempdir()).glob(f"{ray_tune.PREFIX}{sweep.pid}-*")) == []
    assert not (tmp_path / "sweep" / ray_tune.STATE).exists()
    wait_until(lambda: not processes_of(tmp_path), 30)


def test_a_signal_stops_all_runs_and_ray_listens_on_loopback_alone(tmp_path: Path) -> None:
    sweep = driver(tmp_path, "wait", "wait", "0")
    begun = [tmp_path / "sweep" / f"seed={i}" / "begun" for i in (0, 1)]
    wait_until(lambda: all(path.exists() for path in begun))
    addresses = listening_addresses(set(processes_of(tmp_path)))
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(120) == 143
    assert [row[0] for row in rows(tmp_path)] == ["interrupted", "interrupted", "waiting"]
    assert addresses and addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_everything_ends_with_a_killed_driver_and_the_next_one_takes_over(tmp_path: Path) -> None:
    sweep = driver(tmp_path, "wait", "0")
    place = tmp_path / "sweep" / "seed=0"
    wait_until((place / "begun").exists)
    sweep.kill()
    wait_until(lambda: not processes_of(tmp_path))
    (place / "checkpoints" / "1" / "code").write_text("0")
    assert driver(tmp_path, "wait", "0").wait(240) == 0
    assert [row[0] for row in rows(tmp_path)] == ["finished", "finished"] and rows(tmp_path)[0][1] == 2


def test_runs_that_share_a_process_have_their_own_ends(tmp_path: Path) -> None:
    sweep = driver(tmp_path, "mixed", "mixed", "mixed", "half", "half", most=3)
    out, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 3, out
    assert rows(tmp_path) == [("finished", 1), ("diverged", 1), ("finished", 1), ("finished", 1), ("finished", 2)]


def test_the_next_driver_keeps_the_verdicts_of_a_killed_one(tmp_path: Path) -> None:
    sweep = driver(tmp_path, "score-5", "score-1", "wait", judged=True)
    place = tmp_path / "sweep" / "seed=2"
    wait_until((place / "begun").exists)
    sweep.kill()
    wait_until(lambda: not processes_of(tmp_path))
    (tmp_path / "sweep" / record.NAME).unlink()
    (place / "checkpoints" / "1" / "code").write_text("score-3")
    sweep = driver(tmp_path, "score-5", "score-1", "wait", judged=True)
    out, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, out
    assert rows(tmp_path) == [("finished", 1), ("stopped", 1), ("stopped", 2)]


def test_a_lost_node_of_a_cluster_loses_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)  # or it writes one into the home folder
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        other = cluster.add_node(num_cpus=1)
        sweep = driver(tmp_path, "slow", "slow", "slow", "slow", address=cluster.address)
        begun = [tmp_path / "sweep" / f"seed={i}" / "begun" for i in range(4)]
        wait_until(lambda: begun[0].exists() and begun[1].exists())
        assert begun[0].read_text() != begun[1].read_text()
        cluster.remove_node(other, allow_graceful=False)
        assert sweep.wait(240) == 0
        assert [row[0] for row in rows(tmp_path)] == ["finished"] * 4
        assert sum(row[1] for row in rows(tmp_path)) == 5
        assert len({path.read_text() for path in begun}) == 1  # all ended on the node that stayed
    finally:
        cluster.shutdown()
