"""A run's checkpoints under faults: kills at every call, flipped bytes, full disks, weights that are not finite."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nap_rl import checkpoint
from nap_rl.agents import CheckpointsFailed, Diverged
from nap_rl.agents.checkpointer import report_divergence
from tests.fingerprint import fingerprint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def played(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the checkpoints of frames 400 and 600."""
    folder = tmp_path_factory.mktemp("played")
    trainer, checkpointer = tiny.assemble(tiny.configured(*tiny.one_env, "agent.nap=true"), folder)
    for frames in (200, 400, 600):
        tiny.play_to(trainer, frames)
        checkpointer.save()
    trainer.env.close()
    return folder


def test_what_is_due_is_written_and_so_many_are_kept(tiny: Any, tmp_path: Path) -> None:
    trainer, checkpointer = tiny.assemble(tiny.configured(*tiny.one_env), tmp_path, every_frames=160, keep=3)

    def stop() -> bool:
        checkpointer.save_if_due()
        return False

    trainer.run(stop)
    trainer.env.close()
    assert names(tmp_path / "checkpoints") == [f"frames-{frames:012d}" for frames in (320, 480, 640)]
    assert checkpointer.save() is not None  # the last step's
    assert checkpointer.save() == checkpointer.last  # and not again
    assert trainer.records.checkpoint_seconds > 0


def test_each_is_announced_and_later_ones_with_their_share_of_the_time(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, checkpointer = tiny.assemble(tiny.configured(*tiny.one_env), tmp_path)
    said: list[str] = []
    monkeypatch.setattr(checkpointer.display, "note", said.append)
    for frames in (0, 16):
        tiny.play_to(trainer, frames)
        checkpointer.save()
    trainer.env.close()
    first, second = said
    assert re.fullmatch(r"checkpoint frames-000000000000: \d+\.\d\d s", first)
    assert re.fullmatch(r"checkpoint frames-000000000016: \d+\.\d\d s, \d+\.\d% of the time so far", second)


def test_time_makes_one_due_too(tiny: Any, tmp_path: Path) -> None:
    trainer, checkpointer = tiny.assemble(tiny.configured(*tiny.one_env), tmp_path, every_seconds=1e-9)
    tiny.play_to(trainer, 8)
    for _ in range(2):
        checkpointer.save_if_due()
        tiny.play_to(trainer, trainer.frames + 8)
    trainer.env.close()
    assert names(tmp_path / "checkpoints") == ["frames-000000000008", "frames-000000000016"]


def test_only_new_slots_are_written_and_the_newest_two_share_nothing(played: Path) -> None:
    older, newer = ((played / "checkpoints" / f"frames-{frames:012d}") for frames in (400, 600))
    blobs = {folder: {path.name: path.stat().st_ino for path in folder.glob("*.bin")} for folder in (older, newer)}
    both = blobs[older].keys() & blobs[newer].keys()
    assert both  # the ring of 120 steps still holds what frame 400 had
    assert all(blobs[older][name] != blobs[newer][name] for name in both)
    linked = [path for path in newer.glob("*.bin") if path.stat().st_nlink > 1]
    assert not linked  # their other names went with the checkpoint of frame 200


class Killed:
    """Kills the process at the `at`-th call that reaches the disk: before it, or in the middle of a write."""

    CALLS = ("open", "write", "fsync", "rename", "mkdir", "link", "rmdir", "unlink", "ftruncate")

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0
        for name in self.CALLS:
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                if name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call


@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_call_of_a_checkpoint_loses_none(stride: int, tiny: Any, played: Path, tmp_path: Path) -> None:
    """At every call in the slow suite, at every eighth in the quick one."""
    config = tiny.configured(*tiny.one_env, "agent.nap=true")
    folder = tmp_path / "run"
    shutil.copytree(played, folder)
    trainer, checkpointer = tiny.resume(config, folder)
    tiny.play_to(trainer, 720)
    pristine = tmp_path / "pristine"
    shutil.copytree(folder, pristine)
    outcomes, at = [], 0
    while not outcomes or outcomes[-1][0] == "killed":
        at += stride
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)
        child = os.fork()
        if child == 0:  # nothing but the checkpoint happens here
            Killed(at)
            checkpointer.save()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing half-made has a final name
            newest = checkpoint.latest(folder / "checkpoints")
        assert newest is not None
        outcomes.append(("killed" if os.WIFSIGNALED(status) else "done", newest.name))
        meta = checkpoint.load(newest).meta
        assert meta["frames"] == int(newest.name.removeprefix("frames-")) in (600, 720)
        for name, state in meta["log"].items():  # the tables hold what this checkpoint says
            if name != "tags" and state["bytes"]:
                assert (folder / f"{name}.csv").stat().st_size >= state["bytes"]
        assert len([name for name in names(folder / "checkpoints") if name.startswith("frames-")]) >= 2
    trainer.env.close()
    assert outcomes[-1] == ("done", "frames-000000000720")
    kinds = {name for _, name in outcomes}
    assert kinds == {"frames-000000000600", "frames-000000000720"} and len(outcomes) > 60 // stride


def damaged_at_random(tiny: Any, played: Path, folder: Path, where: float, place: float, bits: int, cut: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(played, folder, copy_function=os.link)  # links of its own, so that only its names change
    newest = folder / "checkpoints" / "frames-000000000600"
    files = sorted(newest.iterdir())
    file = files[int(where * len(files))]
    data = bytearray(file.read_bytes())
    i = int(place * len(data))
    file.unlink()
    if cut:
        file.write_bytes(data[:i])
    else:
        data[i] ^= bits
        file.write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checkpoint.load_newest(folder / "checkpoints")
    assert found is not None and found[1].meta["frames"] == 400
    assert len(caught) == 1 and file.name in str(caught[0].message)
    assert names(folder / "checkpoints") == ["frames-000000000400", "frames-000000000600.damaged"]


DAMAGE = {
    "where": st.floats(0, 1, exclude_max=True),
    "place": st.floats(0, 1, exclude_max=True),
    "bits": st.integers(1, 255),
    "cut": st.booleans(),
}
SHARED = [HealthCheck.function_scoped_fixture]


@settings(max_examples=30, deadline=None, suppress_health_check=SHARED)
@given(**DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tiny: Any, played: Path, tmp_path: Path, **damage: Any
) -> None:
    damaged_at_random(tiny, played, tmp_path / "run", **damage)


@pytest.mark.slow
@settings(max_examples=1_500, deadline=None, suppress_health_check=SHARED)
@given(**DAMAGE)
def test_a_damaged_checkpoint_gives_way_in_fifteen_hundred_ways(
    tiny: Any, played: Path, tmp_path: Path, **damage: Any
) -> None:
    damaged_at_random(tiny, played, tmp_path / "run", **damage)


def test_byte_flips_in_place_leave_the_checkpoint_before_whole(tiny: Any, played: Path, tmp_path: Path) -> None:
    """In place: if the two newest shared a file, this would reach both."""
    shutil.copytree(played, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "frames-000000000600"
    for file in newest.iterdir():
        with open(file, "r+b") as opened:
            opened.write(bytes([opened.read(1)[0] ^ 1]) if opened.seek(0) == 0 and file.stat().st_size else b"")
    with pytest.warns(UserWarning, match="damaged checkpoint is passed over"):
        trainer, _ = tiny.resume(tiny.configured(*tiny.one_env, "agent.nap=true"), tmp_path / "run")
    assert trainer.frames == 400
    trainer.env.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_training_goes_on(tiny: Any, small_disk: Path, tmp_path: Path) -> None:
    config = tiny.configured(*tiny.one_env)
    trainer, checkpointer = tiny.assemble(config, small_disk / "run", max_failures=10)
    tiny.play_to(trainer, 200)
    assert checkpointer.save() is not None
    with open(small_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))
    for frames in (400, 480):
        tiny.play_to(trainer, frames)
        assert checkpointer.save() is None  # and no traceback
        assert names(small_disk / "run" / "checkpoints") == ["frames-000000000200"]
        checkpoint.load(small_disk / "run" / "checkpoints" / "frames-000000000200")
    (small_disk / "filler").unlink()
    trainer.run()
    assert checkpointer.save() is not None and checkpointer.failures == 0
    trainer.env.close()
    undisturbed, checkpointer = tiny.assemble(config, tmp_path / "run")
    undisturbed.run()
    checkpointer.save()
    undisturbed.env.close()
    assert fingerprint(small_disk / "run") == fingerprint(tmp_path / "run")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_run_stops_after_so_many_checkpoints_that_cannot_be_written(
    error: OSError, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, checkpointer = tiny.assemble(tiny.configured(*tiny.one_env), tmp_path, every_frames=80, max_failures=3)
    tiny.play_to(trainer, 8)
    kept = checkpointer.save()
    assert kept is not None

    def refuse(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(os, "mkdir", refuse)

    def stop() -> bool:
        checkpointer.save_if_due()
        return False

    with pytest.raises(CheckpointsFailed, match="3 checkpoints in a row could not be written"):
        trainer.run(stop)
    trainer.env.close()
    assert trainer.frames == 8 + 3 * 80
    assert names(tmp_path / "checkpoints") == [kept.name]
    checkpoint.load(kept)


def test_weights_that_are_not_finite_are_never_saved_and_are_reported(tiny: Any, tmp_path: Path) -> None:
    trainer, checkpointer = tiny.assemble(tiny.configured(*tiny.one_env), tmp_path)
    tiny.play_to(trainer, 400)
    good = checkpointer.save()
    with torch.no_grad():
        next(trainer.agent.network.parameters())[0] = torch.nan
    with pytest.raises(Diverged, match="the loss is nan at update"):
        trainer.run()
    with pytest.raises(Diverged, match="torso.*is not finite at update"):
        checkpointer.save()
    trainer.env.close()
    assert checkpoint.latest(tmp_path / "checkpoints") == good
    report = report_divergence(tmp_path, trainer, "the loss is nan")
    saved = checkpoint.load(report)
    assert saved.meta["reason"] == "the loss is nan" and saved.meta["updates"] == trainer.agent.updates
    assert sum(layer["not_finite"] > 0 for layer in saved.meta["layers"].values()) >= 1
    assert saved.tensors["batch"]["s_tm1"].shape == (8, 4, 84, 84)
    assert len(saved.meta["batch"]["r_t"]) == 8
