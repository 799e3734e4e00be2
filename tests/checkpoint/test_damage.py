"""Damaged and forged checkpoints are refused in a sentence that names the file."""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_rl import checkpoint
from nap_rl.checkpoint import CheckpointError


def save(parent: Path, step: int) -> Path:
    group = {"w": torch.arange(12.0).reshape(3, 4) + step}
    return checkpoint.save(
        parent,
        f"step-{step:09}",
        tensors={"network": group, "optimizer": group},
        blobs={"actions": lambda: bytes(range(7))},
        meta={"step": step},
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("sound"), 1)


FILES = ["manifest.json", "meta.json", "network.safetensors", "optimizer.safetensors", "actions.bin"]


def flip(data: bytes, place: int, bits: int) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, Callable[[bytes], bytes]]:
    name = draw(st.sampled_from(FILES))
    where, bits = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 255))
    kind = draw(st.sampled_from(["flip", "truncate", "append", "insert"]))

    def apply(data: bytes) -> bytes:
        i = int(where * len(data))
        return {
            "flip": flip(data, i, bits),
            "truncate": data[:i],
            "append": data + bytes([bits]),
            "insert": data[:i] + bytes([bits]) + data[i:],
        }[kind]

    return name, apply


def assert_detected(sound: Path, name: str, apply: Callable[[bytes], bytes]) -> None:
    file = sound / name
    data = file.read_bytes()
    try:
        file.write_bytes(apply(data))
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            checkpoint.load(sound)
    finally:
        file.write_bytes(data)


def test_the_files_named_in_these_tests_are_all_there_are(sound: Path) -> None:
    assert sorted(path.name for path in sound.iterdir()) == sorted(FILES)
    assert checkpoint.load(sound).meta == {"step": 1}


@settings(max_examples=300, deadline=None)
@given(change=damage())
def test_any_byte_changed_lost_or_added_is_detected(sound: Path, change: tuple[str, Callable[[bytes], bytes]]) -> None:
    assert_detected(sound, *change)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(change=damage())
def test_any_byte_changed_lost_or_added_is_detected_in_thousands(
    sound: Path, change: tuple[str, Callable[[bytes], bytes]]
) -> None:
    assert_detected(sound, *change)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_single_bit_flip_is_detected(sound: Path, name: str) -> None:
    for place in range((sound / name).stat().st_size):
        for bit in range(8):
            assert_detected(sound, name, functools.partial(flip, place=place, bits=1 << bit))


@pytest.mark.parametrize(
    "apply",
    [
        lambda data: data.replace(b"\n ", b"\n\t", 1),
        lambda data: data.removesuffix(b"\n"),
        lambda data: data.replace(b'"schema"', b'"\\u0073chema"'),
        lambda data: data.replace(b'"schema": 1,', b'"schema": 0,"schema": 1,'),
    ],
)
def test_a_manifest_that_means_the_same_in_other_bytes_is_detected(
    sound: Path, apply: Callable[[bytes], bytes]
) -> None:
    data = (sound / "manifest.json").read_bytes()
    assert apply(data) != data and json.loads(apply(data)) == json.loads(data)
    assert_detected(sound, "manifest.json", apply)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing\.$"):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
        checkpoint.load(tmp_path / "step-1")


# Manifests made with intent: their SHA-256 is right


def forge(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    change(manifest)
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def test_the_forger_can_make_a_manifest_that_passes(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    forge(path, lambda manifest: manifest["versions"].update(torch="9.9"))
    assert checkpoint.load(path).meta == {"step": 1}


@pytest.mark.parametrize(
    "name",
    [
        "../secret.bin",
        "/etc/passwd",
        "a/../../secret.bin",
        "..",
        "",
        ".bin",
        "actions.npy",
        "weights.pkl",
        "x.bin\n",
        "manifest.json",
    ],
)
def test_names_that_lead_elsewhere_or_to_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.bin").write_bytes(b"secret")
    path = save(tmp_path / "parent", 1)
    data = (tmp_path / "secret.bin").read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge(path, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(CheckpointError, match="no file name of a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("size", [float("nan"), float("inf"), -1, 1.5, True, None, "144", 10**400])
def test_sizes_that_are_no_file_size_are_refused(tmp_path: Path, size: object) -> None:
    path = save(tmp_path, 1)
    forge(path, lambda manifest: manifest["files"]["meta.json"].update(bytes=size))
    with pytest.raises(CheckpointError, match="meta.json"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(schema=2),
        lambda manifest: manifest.update(schema=True),
        lambda manifest: manifest.pop("schema"),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest["files"].pop("meta.json"),
        lambda manifest: manifest["files"].update({"meta.json": 3}),
        lambda manifest: manifest["files"]["meta.json"].pop("sha256"),
        lambda manifest: manifest["files"]["meta.json"].update(sha256=None),
    ],
)
def test_manifests_of_another_form_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = save(tmp_path, 1)
    forge(path, change)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}\n", "[" * 100_000, "\xff", "{'a': 1}"])
def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.load(path)


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "parent", 1)
    shutil.move(path / "actions.bin", tmp_path / "actions.bin")
    (path / "actions.bin").symlink_to(tmp_path / "actions.bin")
    with pytest.raises(CheckpointError, match=r"actions\.bin is not a regular file"):
        checkpoint.load(path)


class Trap:
    """Unpickling one writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["network.safetensors", "meta.json"])
def test_nothing_is_unpickled_even_if_the_manifest_vouches_for_it(tmp_path: Path, name: str) -> None:
    path, sprung = save(tmp_path / "parent", 1), tmp_path / "sprung"
    with open(path / name, "wb") as file:
        if name.endswith(".json"):
            pickle.dump(Trap(sprung), file)
        else:
            torch.save(Trap(sprung), file)
    data = (path / name).read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge(path, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        checkpoint.load(path)
    assert not sprung.exists()
