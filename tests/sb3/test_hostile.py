"""Files from outside: refused in one sentence, nothing in them run, in little memory.

The corpus is made of real zips of SB3 and of Rainbow with something done to them.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from stable_baselines3 import DQN

from nap_rl.sb3 import Rainbow, ZipError, load

Members = dict[str, bytes]


class Payload:
    """Makes the file `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


class Big:
    """A gigabyte or more when it is unpickled, from a few bytes; torch's own list of safe names has bytearray."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (3 << 30,)


def read(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pth(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def state_dict(member: bytes) -> dict[str, Any]:
    return dict(torch.load(io.BytesIO(member), weights_only=True))


def serialized(value: object) -> dict[str, str]:
    return {":type:": "<class 'float'>", ":serialized:": base64.b64encode(pickle.dumps(value)).decode()}


def changed(member: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    value = state_dict(member)
    change(value)
    return pth(value)


def fields_changed(member: bytes, **fields: Any) -> bytes:
    return json.dumps({**json.loads(member), **fields}).encode()


def repacked(member: bytes, records: Callable[[Members], Members], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A .pth whose records have been changed."""
    with zipfile.ZipFile(io.BytesIO(member)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=1) as archive:
        for name, data in records(content).items():
            archive.writestr(name, data)
    return buffer.getvalue()


def with_structure(member: bytes, pickled: bytes) -> bytes:
    """A .pth with another data.pkl."""
    return repacked(
        member, lambda records: {n: pickled if n.endswith("/data.pkl") else data for n, data in records.items()}
    )


def corpus(good: Path, folder: Path, marker: Path) -> Iterator[Path]:
    """Each file under its own name, which says what is wrong with it; `good` is a sound zip of DQN."""
    members = read(good)
    payload = pickle.dumps(Payload(marker))
    first = next(iter(state_dict(members["policy.pth"])))
    folder.mkdir(parents=True, exist_ok=True)

    def file(name: str, changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
        content = {n: c for n, c in {**members, **changes}.items() if c is not None}
        return write(folder / f"{name}.zip", content, compression)

    # A pickle in the place of every plain field, and of every member.
    for field, value in json.loads(members["data"]).items():
        if not isinstance(value, (dict, list, str)) and field not in ALWAYS_PICKLED:
            data = fields_changed(members["data"], **{field: serialized(Payload(marker))})
            yield file(f"pickle in field {field}", {"data": data})
    for name in [name for name in members if name.endswith((".pth", "data"))]:
        yield file(f"pickle as {name}", {name: payload})
    for name in [name for name in members if name.endswith(".pth")]:
        inside = with_structure(members[name], payload)
        yield file(f"pickle within {name}", {name: inside})
        legacy = io.BytesIO()
        torch.save(Payload(marker), legacy, _use_new_zipfile_serialization=False)
        yield file(f"legacy pickle as {name}", {name: legacy.getvalue()})
        yield file(f"bytearray bomb in {name}", {name: with_structure(members[name], pickle.dumps(Big(), protocol=2))})

    # Names.
    for name in ("../../evil", "/etc/evil", "..\\evil", "C:\\evil", "data/../evil", "policy.pth/", "evil.pth", "."):
        yield file(f"name {name.replace('/', '_').replace(chr(92), '_')}", {name: b"evil"})
    path = folder / "double members.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for name, content in [*members.items(), ("policy.pth", payload)]:
            archive.writestr(name, content)
    yield path

    # Sizes.
    zeros = bytes(140 << 20)
    yield file("bomb in data", {"data": zeros}, zipfile.ZIP_DEFLATED)
    yield file("bomb in policy", {"policy.pth": zeros}, zipfile.ZIP_DEFLATED)
    path = file("bomb with a modest header", {"system_info.txt": None, "data": zeros}, zipfile.ZIP_DEFLATED)
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", len(zeros)), struct.pack("<L", 1000)))
    yield path
    nested = repacked(members["policy.pth"], lambda records: {**records, "archive/data/0": zeros}, zipfile.ZIP_DEFLATED)
    yield file("bomb within policy.pth", {"policy.pth": nested})
    yield file("lists without end in data", {"data": b"{" + b'"a":' + b"[" * (4 << 20)})
    path = folder / "a million members.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(60_000):
            archive.writestr(f"{i}", b"")
    yield path

    def unfolded(value: Any) -> Any:
        for _ in range(60):
            value = [value, value]
        return value

    yield file("lists that hold each other", {"policy.optimizer.pth": pth({"state": unfolded([])})})

    # Damage.
    whole = good.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        path = folder / f"cut at {share}.zip"
        path.write_bytes(whole[: int(share * len(whole))])
        yield path
    for name in members:
        if name.endswith((".pth", "data")):
            yield file(f"cut {name}", {name: members[name][: len(members[name]) // 2]})
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    path = folder / "one bit.zip"
    path.write_bytes(bytes(flipped))
    yield path
    path = folder / "text.zip"
    path.write_text("weights, honestly\n" * 100)
    yield path
    for name in ("data", "policy.pth"):
        yield file(f"without {name}", {name: None})
    yield file("data is a list", {"data": b"[1, 2]"})
    yield file("data is no JSON", {"data": b"\xff\xfe{"})

    # Tensors.
    def policy(name: str, change: Callable[[dict[str, Any]], None]) -> Path:
        return file(name, {"policy.pth": changed(members["policy.pth"], change)})

    yield policy("transposed weight", lambda s: s.update({first: s[first].transpose(0, 1).contiguous()}))
    yield policy("flat weight", lambda s: s.update({first: s[first].flatten()}))
    yield policy("missing weight", lambda s: s.pop(first))
    yield policy("one weight more", lambda s: s.update({"q_net.evil.weight": torch.zeros(3)}))
    yield policy("a network more", lambda s: s.update({"evil.weight": torch.zeros(3)}))
    yield policy("doubles", lambda s: s.update({first: s[first].double()}))
    yield policy("text for a weight", lambda s: s.update({first: "evil"}))
    yield policy("expanded weight", lambda s: s.update({first: torch.zeros(1).expand(1 << 40)}))
    yield policy("complex weight", lambda s: s.update({first: s[first] * 1j}))
    yield policy("sparse weight", lambda s: s.update({first: s[first].to_sparse()}))
    for bad in (float("nan"), float("inf")):
        yield policy(f"{bad} weight", lambda s, bad=bad: s.update({first: torch.full_like(s[first], bad)}))  # type: ignore[misc]
    yield policy("no weights", lambda s: s.clear())

    def optimizer(name: str, change: Callable[[dict[str, Any]], None]) -> Path:
        return file(name, {"policy.optimizer.pth": changed(members["policy.optimizer.pth"], change)})

    yield optimizer("NaN moments", lambda s: s["state"][0]["exp_avg"].fill_(float("nan")))
    yield optimizer("moments of another shape", lambda s: s["state"][0].update(exp_avg_sq=torch.zeros(2)))
    yield optimizer("missing moments", lambda s: s["state"].pop(0))
    yield optimizer("eps is text", lambda s: s["param_groups"][0].update(eps="evil"))
    yield optimizer("negative rate", lambda s: s["param_groups"][0].update(lr=-1.0))

    # A storage that says it is longer than its record: reading on would give other memory.
    def longer(records: Members) -> Members:
        return {n: data[:16] if n.endswith("data/0") else data for n, data in records.items()}

    yield file("storage longer than its record", {"policy.pth": repacked(members["policy.pth"], longer)})
    empty = OrderedDict({first: torch.zeros(0)})
    yield file("empty weight", {"policy.pth": pth(empty)})

    # Numbers.
    for field, value in (
        ("gamma", "0.99"),
        ("gamma", 7.0),
        ("gamma", float("nan")),
        ("batch_size", 0),
        ("n_steps", -1),
    ):
        yield file(f"{field} is {value}", {"data": fields_changed(members["data"], **{field: value})})


# Fields that SB3 pickles, always or where they are set: dropped unread. (None: not set in this zip.)
ALWAYS_PICKLED = {"action_noise", "tensorboard_log", "learning_rate"}


def rainbow_corpus(good: Path, folder: Path, marker: Path) -> Iterator[Path]:
    """The same for what only a zip of Rainbow says."""
    members = read(good)
    folder.mkdir(parents=True, exist_ok=True)
    data = json.loads(members["data"])

    def file(name: str, **fields: Any) -> Path:
        return write(folder / f"{name}.zip", {**members, "data": fields_changed(members["data"], **fields)})

    for field in data:
        yield file(f"pickle in field {field}", **{field: serialized(Payload(marker))})
    ours = data["nap_rl"]
    for name, value in (
        ("hidden", 1 << 40),
        ("hidden", 1 << 19),
        ("hidden", "evil"),
        ("net_arch", [1 << 20] * 60),
        ("net_arch", [1] * 10_000),
        ("outputs", 1 << 20),
        ("v_min", float("nan")),
        ("noisy_sigma0", -1.0),
        ("head", "evil"),
        ("torso", "../evil"),
        ("norm", "batch"),
        ("dueling", None),
    ):
        network = {**ours["network"], name: value}
        yield file(f"network {name} is {str(value)[:20].replace('/', '_')}", nap_rl={**ours, "network": network})
    for name, value in (
        ("stack", 1 << 30),
        ("actions", -1),
        ("actions", 10**18),
        ("frame_shape", [1 << 20, 1 << 20, 1 << 20]),
        ("frame_shape", "evil"),
        ("network", []),
    ):
        yield file(f"{name} is {str(value)[:30]}", nap_rl={**ours, name: value})
    yield file("nap_rl is a list", nap_rl=[])


# Reads each file named on standard input with each reader, in a process of its own whose memory is watched.
READER = r"""
import json, re, resource, sys
from pathlib import Path
from nap_rl.sb3 import Rainbow, load
refusals = []
for line in sys.stdin:
    path = line.rstrip()
    for reader in sys.argv[1:]:
        try:
            {"load": load, "Rainbow.load": Rainbow.load}[reader](path)
            refusals.append([reader, path, None, None])
        except Exception as error:
            refusals.append([reader, path, type(error).__name__, str(error)])
status = Path("/proc/self/status")  # getrusage's figure begins with that of the process that forked this one
peak = re.search(r"VmHWM:\s*(\d+)", status.read_text())[1] if status.exists() else resource.getrusage(0).ru_maxrss
print(json.dumps([refusals, int(peak) * 1024]))
"""


def check(readers: list[str], paths: list[Path], marker: Path) -> None:
    names = "".join(f"{path}\n" for path in paths)
    command = [sys.executable, "-c", READER, *readers]
    done = subprocess.run(command, input=names, capture_output=True, text=True, check=True)
    found, peak_bytes = json.loads(done.stdout)
    assert len(found) == len(readers) * len(paths)
    assert not marker.exists()  # no payload has run
    for reader, name, kind, sentence in found:
        assert kind == "ZipError", (reader, name, kind, sentence)
        assert sentence.startswith(name), (reader, name, sentence)
        assert "\n" not in sentence and len(sentence) < 500, (reader, name, sentence)
    assert peak_bytes < 1e9, f"{peak_bytes / 1e6:.0f} MB"


@pytest.fixture(scope="module")
def rainbow_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rainbow") / "rainbow.zip"
    model = Rainbow("MlpPolicy", "CartPole-v1", nap=True, learning_starts=20, buffer_size=100, seed=0)
    model.learn(60)
    model.save(path)
    return path


@pytest.fixture(scope="module")
def mlp_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlp") / "dqn.zip"
    model = DQN("MlpPolicy", "CartPole-v1", learning_starts=20, buffer_size=100, seed=0)
    model.learn(60)
    model.save(path)
    return path


def test_hostile_zips_are_refused(mlp_zip: Path, tmp_path: Path) -> None:
    assert load(mlp_zip)
    marker = tmp_path / "payload-was-run"
    check(["load"], list(corpus(mlp_zip, tmp_path / "corpus", marker)), marker)


def test_hostile_zips_of_rainbow_are_refused(rainbow_zip: Path, tmp_path: Path) -> None:
    assert Rainbow.load(rainbow_zip).num_timesteps == 60 and load(rainbow_zip)
    marker = tmp_path / "payload-was-run"
    files = list(rainbow_corpus(rainbow_zip, tmp_path / "corpus", marker))
    check(["load", "Rainbow.load"], files, marker)


def test_the_payload_would_run_if_it_were_unpickled(dqn_zip: Path, tmp_path: Path) -> None:
    """The other tests can fail: SB3 itself runs what stands in a field."""
    members, marker = read(dqn_zip), tmp_path / "payload-was-run"
    members["data"] = fields_changed(members["data"], gamma=serialized(Payload(marker)))
    DQN.load(write(tmp_path / "evil.zip", members), buffer_size=10)
    assert marker.exists()


def test_what_sb3_itself_pickles_is_dropped_unread(dqn_zip: Path, tmp_path: Path) -> None:
    """In these fields every zip of SB3 has a pickle; whatever stands there, the zip loads and nothing runs."""
    members, marker = read(dqn_zip), tmp_path / "payload-was-run"
    fields = json.loads(members["data"])
    pickled = [name for name, value in fields.items() if isinstance(value, dict) and ":serialized:" in value]
    assert {"policy_class", "lr_schedule", "observation_space", "action_space"} <= set(pickled)
    payload = serialized(Payload(marker))
    members["data"] = fields_changed(members["data"], **dict.fromkeys(pickled, payload))
    load(write(tmp_path / "evil.zip", members))
    assert not marker.exists()


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.zip"):
        with pytest.raises(FileNotFoundError, match=str(path)):
            load(path)


def test_rainbow_names_the_zip_that_is_anothers(dqn_zip: Path) -> None:
    with pytest.raises(ZipError, match="of DQN"):
        Rainbow.load(dqn_zip, env=gymnasium.make("CartPole-v1"))
