"""Reads a Stable-Baselines3 zip that need not be trusted: nothing in it is unpickled, run or believed. And writes one.

    model.zip
      data                   JSON, with pickles in it (see `data_json`)
      policy.pth             state dict, itself a zip of torch.save (see `tensor_structure` and `tensor_file`)
      policy.optimizer.pth   state dict of the optimiser
      pytorch_variables.pth  further tensors
      _stable_baselines3_version, system_info.txt

Sizes are checked before anything is read.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from nap_rl.files import write_atomic
from nap_rl.sb3 import data_json, tensor_structure

if TYPE_CHECKING:  # what is no sound zip is refused before torch is imported
    from torch import Tensor

MIB = 1 << 20
# Member -> the most bytes that it may have when compressed, or stored. SB3 stores its members: no larger than the file.
MEMBERS = {
    "data": (8 * MIB, 1 << 50),
    "policy.pth": (128 * MIB, 2048 * MIB),
    "policy.optimizer.pth": (128 * MIB, 2048 * MIB),
    "pytorch_variables.pth": (32 * MIB, 32 * MIB),
    "_stable_baselines3_version": (MIB, MIB),
    "system_info.txt": (MIB, MIB),
}
VERSION = "_stable_baselines3_version"
REQUIRED = ("data", "policy.pth")
ACTOR_CRITIC = ("actor.optimizer.pth", "critic.optimizer.pth", "ent_coef_optimizer.pth")
# Fields of `data` by which SB3's other algorithms are told apart.
OTHERS = {
    "cg_max_steps": "TRPO",
    "n_delta": "ARS",
    "clip_range": "PPO",
    "normalize_advantage": "A2C",
    "top_quantiles_to_drop_per_net": "TQC",
    "target_policy_noise": "TD3",
    "ent_coef": "SAC",
}
LONGEST_READ = MIB
LFS = b"version https://git-lfs.github.com/spec/"


class ZipError(ValueError):
    """A zip that is damaged, hostile, or of no kind that is read here; one sentence that names the file."""


class Archive(NamedTuple):
    """What a zip holds: finite tensors on the CPU, and the plain part of `data` as hints to be checked."""

    path: Path
    hints: dict[str, Any]
    dropped: dict[str, str]  # fields of `data` whose number was numpy's, and its type
    version: tuple[int, ...]  # of SB3, such as (2, 3); () where the zip does not say
    policy: dict[str, Tensor]
    optimizer: dict[str, Any]  # {} where there is none
    variables: dict[str, Any]


class Members(NamedTuple):
    """What a zip tells without torch."""

    names: set[str]
    hints: dict[str, Any]
    dropped: dict[str, str]
    version: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]  # of the policy's tensors; {} where only torch can tell


def check(path: str | Path) -> Members:
    """Refuses whatever can be refused without torch, which takes a second to import; `read` refuses the rest.

    Raises:
        FileNotFoundError: there is no such file.
        ZipError: it is no SB3 zip, not a sound one, or one of an actor-critic algorithm.
    """
    with _opened(Path(path)) as archive:
        return _check(archive)


def read(path: str | Path) -> Archive:
    """Read an SB3 zip.

    Raises:
        FileNotFoundError: there is no such file.
        ZipError: it is no SB3 zip, not a sound one, or one of an actor-critic algorithm.
    """
    path = Path(path)
    with _opened(path) as archive:
        names, hints, dropped, version, _ = _check(archive)
        from torch import Tensor

        from nap_rl.sb3 import tensor_file

        trees = {
            name: tensor_file.parse(_member(archive, name), _SmallReads) for name in names if name.endswith(".pth")
        }
        policy = trees["policy.pth"]
        if not isinstance(policy, dict) or not all(isinstance(value, Tensor) for value in policy.values()):
            raise ZipError("has a policy.pth that is no state dict")
        optimizer, variables = (trees.get(name) or {} for name in ("policy.optimizer.pth", "pytorch_variables.pth"))
        if not isinstance(optimizer, dict) or not isinstance(variables, dict):
            raise ZipError("has an optimizer or variables that are no dictionaries")
        return Archive(path, hints, dropped, version, policy, optimizer, variables)


def with_suffix(path: str | Path) -> Path:
    """The path, with ".zip" where only that is there: SB3 adds it when it saves, and when it loads."""
    path = Path(path)
    longer = path.with_name(f"{path.name}.zip")
    return longer if longer.is_file() and not path.is_file() else path


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip to read from; whatever its readers come upon becomes a ZipError that begins with the file's name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    try:
        with open(path, "rb") as file:
            if file.read(len(LFS)) == LFS:
                raise ZipError("is a pointer of Git LFS and not the zip itself: fetch it with git lfs pull")
            with zipfile.ZipFile(_SmallReads(file)) as archive:
                yield archive
    except (ZipError, data_json.DataError, tensor_structure.TensorError) as error:
        raise ZipError(f"{path} {error}") from None
    except zipfile.BadZipFile as error:
        raise ZipError(f"{path} is not a sound zip: {str(error).rstrip('.')}") from None
    except Exception as error:
        what = " ".join(str(error).split())[:100] or type(error).__name__
        raise ZipError(f"{path} cannot be read as an SB3 zip: {what}") from None


def _check(archive: zipfile.ZipFile) -> Members:
    """All members, as far as that goes without torch."""
    names = _check_members(archive)
    hints, dropped = data_json.parse(_chunks(archive, "data"))
    version = _version(_member(archive, VERSION)) if VERSION in names else ()
    shapes = {
        name: tensor_structure.check(_member(archive, name), _SmallReads) for name in names if name.endswith(".pth")
    }
    if {"action_net", "actor"} & {name.split(".", 1)[0] for name in shapes["policy.pth"]}:
        other = next((name for field, name in OTHERS.items() if field in hints), "actor-critic")
        article = "an" if other[0] in "aA" else "a"
        raise ZipError(f"holds {article} {other} policy: DQN, QR-DQN and Rainbow are read")
    return Members(names, hints, dropped, version, shapes["policy.pth"])


class _SmallReads:
    """A file of which one call reads 1 MiB at most, so that no length in a header makes its reader take more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(LONGEST_READ + 1 if size < 0 else min(size, LONGEST_READ + 1))
        if len(data) > LONGEST_READ:
            raise ZipError("has a longer directory than any SB3 zip")
        return data


def _check_members(archive: zipfile.ZipFile) -> set[str]:
    """Names, after what no SB3 zip has was refused: other or double names, members beyond their cap."""
    names: set[str] = set()
    for info in archive.infolist():
        name = info.filename
        if name in ACTOR_CRITIC:
            raise ZipError("holds a policy of SAC, TD3 or their like: DQN, QR-DQN and Rainbow are read")
        if name.endswith("/data.pkl"):
            raise ZipError("is a file of torch.save, as policy.save() writes: save the whole model by model.save()")
        if name not in MEMBERS:
            raise ZipError(f"is no SB3 zip: it has a member {name[:60]!r}")
        if name in names:
            raise ZipError(f"has the member {name!r} twice")
        stored = info.compress_type == zipfile.ZIP_STORED
        most = MEMBERS[name][stored]
        if info.file_size > most:
            raise ZipError(f"has a {name} of {info.file_size:,} bytes; up to {most:,} are read")
        names.add(name)
    for name in REQUIRED:
        if name not in names:
            raise ZipError(f"is no SB3 zip: it has no member {name!r}")
    return names


def _chunks(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    """A member's bytes: what its header promises, however much a compressed stream would give."""
    left = archive.getinfo(name).file_size
    with archive.open(name) as member:
        while left and (chunk := member.read(min(left, LONGEST_READ))):
            left -= len(chunk)
            yield chunk
        if left or member.read(1):
            raise ZipError(f"has a {name} that is not as long as it says")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    return b"".join(_chunks(archive, name))


def _version(text: bytes) -> tuple[int, ...]:
    """(major, minor) of SB3's version; () where it is none."""
    found = re.match(rb"\s*(\d{1,4})\.(\d{1,4})", text)
    return (int(found[1]), int(found[2])) if found else ()


def number(hints: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A hint that is a number in [low, high]; `default` where there is none or it is null. ZipError for all else."""
    value = hints.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ZipError(f"has {name}={value!r:.60}, expected a number in [{low:g}, {high:g}]")
    return value


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """ZipErrors of what is done within begin with the file's name."""
    try:
        yield
    except ZipError as error:
        raise ZipError(f"{path} {error}") from None


def write(
    path: Any,
    data: Mapping[str, Any],
    policy: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    variables: Mapping[str, Any],
) -> None:
    """A zip with SB3's members; `data` is plain JSON. A path without suffix gets ".zip"; a binary file will do."""
    from stable_baselines3.common.save_util import save_to_zip_file

    zipped = io.BytesIO()
    params = {"policy": policy, "policy.optimizer": optimizer}
    save_to_zip_file(zipped, data=dict(data), params=params, pytorch_variables=dict(variables))
    if isinstance(path, (str, Path)) and not Path(path).suffix:
        path = f"{path}.zip"
    write_whole(path, zipped.getvalue())


def write_whole(path: Any, content: bytes) -> None:
    """Writes `content` into a binary file, or to a path."""
    if isinstance(path, (str, Path)):
        write_atomic(path, content)
    else:
        path.write(content)
