from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nap_rl import checkpoint
from nap_rl.checkpoint import store


def contents(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "tensors": {
            "network": {"weight": torch.randn(3, 4, generator=generator), "step": torch.tensor(step)},
            "optimizer": {"exp_avg": torch.randn(5, generator=generator)},
        },
        "blobs": {f"actions-{step}": lambda: bytes(range(step, step + 7))},
        "meta": {"step": step, "rng": [2**127 + step, 0.1], "game": "pong"},
    }


def save(parent: Path, step: int, **options: Any) -> Path:
    return checkpoint.save(parent, f"step-{step:09}", **contents(step), **options)


def assert_holds(path: Path, step: int) -> None:
    found, expected = checkpoint.load(path), contents(step)
    assert found.meta == expected["meta"]
    assert found.tensors.keys() == expected["tensors"].keys()
    for key, group in expected["tensors"].items():
        assert found.tensors[key].keys() == group.keys()
        for name, tensor in group.items():
            assert found.tensors[key][name].dtype == tensor.dtype
            assert torch.equal(found.tensors[key][name], tensor)
    blobs = {key: file.read_bytes() for key, file in found.blobs.items()}
    assert blobs == {key: make() for key, make in expected["blobs"].items()}


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


# What goes in comes out


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    assert_holds(save(tmp_path / "run" / "checkpoints", 12), 12)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 5).t(),
        torch.randn(9)[::2],
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.zeros(0, 3),
        torch.tensor(True),
        torch.tensor([1.5, -0.0, torch.nan], dtype=torch.bfloat16),
        torch.randn(3, requires_grad=True),
        torch.nn.Parameter(torch.randn(2)),
        torch.arange(3, dtype=torch.uint8).expand(2, 3),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}-{tensor.stride()}",
)
def test_tensors_of_any_strides_and_types_come_back_bit_for_bit(tmp_path: Path, tensor: torch.Tensor) -> None:
    path = checkpoint.save(tmp_path, "step-1", tensors={"network": {"x": tensor}}, meta={})
    back = checkpoint.load(path).tensors["network"]
    assert (back["x"].dtype, back["x"].shape) == (tensor.dtype, tensor.shape)
    assert checkpoint.sha256_of(back) == checkpoint.sha256_of({"x": tensor})


def test_tied_weights_and_views_come_back_in_full_each(tmp_path: Path) -> None:
    weight = torch.randn(6, 2)
    group = {"weight": weight, "tied": weight, "row": weight[3], "rows": weight[2:4], "turned": weight.t()}
    back = checkpoint.load(checkpoint.save(tmp_path, "step-1", tensors={"network": group}, meta={}))
    for name, tensor in group.items():
        assert torch.equal(back.tensors["network"][name], tensor)


def test_loaded_tensors_can_be_written_to_without_touching_the_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    found = checkpoint.load(path)
    found.tensors["network"]["weight"].zero_()
    assert_holds(path, 1)


def test_a_checkpoint_outlives_its_deletion_once_it_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    found = checkpoint.load(path)
    shutil.rmtree(path)
    assert torch.equal(found.tensors["network"]["weight"], contents(1)["tensors"]["network"]["weight"])


def test_numbers_of_meta_come_back_exactly(tmp_path: Path) -> None:
    meta = {
        "a": 0.1 + 0.2,
        "b": 5e-324,
        "c": float("inf"),
        "d": 2**128 - 1,
        "e": [None, True],
        "f": "é\ud800",
    }
    assert checkpoint.load(checkpoint.save(tmp_path, "step-1", tensors={}, meta=meta)).meta == meta


# What cannot be stored is refused before anything is written


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "final"}, ValueError, "'final'"),
        ({"name": "../step-1"}, ValueError, "'../step-1'"),
        ({"name": "step-1/x-2"}, ValueError, "'step-1/x-2'"),
        ({"name": ".tmp-1"}, ValueError, "'.tmp-1'"),
        ({"keep": 1}, ValueError, "at least 2; got 1|at least 2.*got 1"),
        ({"tensors": {"a/b": {}}}, ValueError, "'a/b'"),
        ({"tensors": {"..": {}}}, ValueError, r"'\.\.'"),
        ({"tensors": {"network": {"x": [1.0]}}}, TypeError, "'x' is a list"),
        ({"tensors": {"network": {"x": torch.eye(2).to_sparse()}}}, TypeError, "'x' is sparse"),
        ({"tensors": {"network": {"x": torch.empty(2, device="meta")}}}, TypeError, "no memory"),
        ({"blobs": {"": bytes}}, ValueError, "''"),
        ({"meta": {"a": {3: 1}}}, TypeError, r"meta\['a'\] has the key 3"),
        ({"meta": {"a": [np.int64(3)]}}, TypeError, r"meta\['a'\]\[0\] is a int64"),
        ({"meta": {"a": object()}}, TypeError, "is a object"),
    ],
)
def test_what_cannot_be_stored_is_named(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    save(tmp_path, 1)
    arguments = {"name": "step-000000002", **contents(2), **change}
    with pytest.raises(error, match=message):
        checkpoint.save(tmp_path, **arguments)
    assert names(tmp_path) == ["step-000000001"]


def test_an_existing_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(FileExistsError, match="never written over"):
        checkpoint.save(tmp_path, "step-000000001", **contents(2))
    assert_holds(tmp_path / "step-000000001", 1)


def test_a_damaged_checkpoint_gives_way_to_a_sound_one_of_its_name(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "meta.json").unlink()
    assert_holds(save(tmp_path, 1), 1)
    assert names(tmp_path) == ["step-000000001"]


@pytest.mark.parametrize("make", [lambda path: path.write_text("notes"), lambda path: path.symlink_to("/")])
def test_a_file_or_a_link_in_the_way_is_left_alone(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "step-000000001")
    with pytest.raises(FileExistsError):
        save(tmp_path, 1)
    assert names(tmp_path) == ["step-000000001"]


# Pruning and finding


def test_the_newest_of_a_kind_are_kept_and_other_kinds_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for kind in ["best", "step2"]:
        checkpoint.save(tmp_path, f"{kind}-1", **contents(1))
    for step in [9, 10, 11, 100]:
        save(tmp_path, step, keep=3)
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path, 101, keep=3)
    assert names(tmp_path) == [
        "best-1", "notes.txt", "step-000000011", "step-000000100", "step-000000101", "step2-1"
    ]  # fmt: skip


def test_steps_are_compared_as_numbers_though_they_are_not_padded(tmp_path: Path) -> None:
    for step in [8, 9, 10]:
        checkpoint.save(tmp_path, f"step-{step}", **contents(step))
    assert names(tmp_path) == ["step-10", "step-9"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-10"


def test_a_new_checkpoint_survives_its_own_pruning_beside_higher_steps(tmp_path: Path) -> None:
    for step in [7, 8, 3]:
        save(tmp_path, step)
    assert names(tmp_path) == ["step-000000003", "step-000000008"]


def test_of_two_kinds_at_one_step_the_later_written_is_the_latest(tmp_path: Path) -> None:
    first = checkpoint.save(tmp_path, "z-5", **contents(5))
    second = checkpoint.save(tmp_path, "a-5", **contents(5))
    os.utime(first, (1, 1))
    assert checkpoint.latest(tmp_path) == second


def test_there_is_no_latest_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "missing") is None


def test_a_damaged_latest_is_named_and_passed_over(tmp_path: Path) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    (newer / "optimizer.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-000000002/optimizer.safetensors"):
        assert checkpoint.latest(tmp_path) == older


def test_temporaries_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, me, parent = store.HOST, os.getpid(), os.getppid()
    gone = [
        f".tmp.{host}.{dead.pid}.0a.0b.step-1",
        f".tmp.{host}.{me}.0a.0b.step-1",
    ]  # the pid came round again
    stay = [
        f".tmp.another-host.{dead.pid}.0a.0b.step-1",
        f".tmp.{host}.{parent}.0a.0b.step-1",
        f".tmp.{host}.{me}.{store.PROCESS}.0b.step-1",
    ]
    for name in gone + stay:
        (tmp_path / name).mkdir()
        (tmp_path / name / "network.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert names(tmp_path) == sorted([*stay, "step-000000001"])


def test_a_checkpoint_that_cannot_be_pruned_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def refuse(path: Path) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(store.shutil, "rmtree", refuse)
    with pytest.warns(UserWarning, match="could not be removed: not yours"):
        assert_holds(save(tmp_path, 3), 3)
    assert "step-000000001" not in names(tmp_path)  # renamed away: never half there under its name


# The hash of weights


def test_the_hash_sees_values_names_shapes_and_types_and_not_order_or_strides() -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.zeros(2)
    same = checkpoint.sha256_of({"a": a, "b": b})
    assert checkpoint.sha256_of({"b": b, "a": a.t().contiguous().t()}) == same
    others = [
        {"a": a, "b": -b},  # -0.0 is another number
        {"a": a.reshape(3, 2), "b": b},
        {"a": a, "c": b},
        {"a": a},
        {"a": a.view(torch.int32), "b": b},
        {"a": a.flatten()[:4], "b": torch.cat([a.flatten()[4:], b])},
    ]
    assert len({same, *map(checkpoint.sha256_of, others)}) == 1 + len(others)


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    expected = hashlib.sha256(b'["w", "torch.float32", [2]]\n' + np.array([1.0, 2.0], "<f4").tobytes()).hexdigest()
    assert checkpoint.sha256_of({"w": torch.tensor([1.0, 2.0])}) == expected
