"""Sets of labelled images as they are published, on disk. Nothing is downloaded, nothing is unpickled.

    fashion_mnist    four idx files, gzipped (Xiao et al. 2017, arXiv 1708.07747)
    cifar10          the binary version's six files (Krizhevsky 2009)
    folder           train/CLASS/*.jpg and val/CLASS/*.jpg, also PNG; imagenet: the same with 1,000 classes

Everything that can be wrong with them raises ValueError or FileNotFoundError with one sentence: what to put where.
"""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nap_rl.images import CIFAR10_FILES, CIFAR10_RECORD

Bytes = NDArray[np.uint8]
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
IDX_PREFIXES = {"train": "train", "test": "t10k"}
IDX_MAGIC = {1: 0x801, 3: 0x803}  # unsigned bytes, by number of dimensions
CIFAR10_TEST = ["test_batch.bin"]
CIFAR10_CLASSES = 10
IMAGENET_CLASSES = 1000
SUFFIXES = (".jpg", ".jpeg", ".png")
FOLDERS = {"train": ("train",), "test": ("val", "validation", "test")}  # by split, of a set in class folders
SETS = ("fashion_mnist", "cifar10", "folder", "imagenet")


class Arrays(NamedTuple):
    """Images in memory: [N, C, H, W] and their classes [N]."""

    images: Bytes
    labels: Bytes


@dataclass(frozen=True)
class Files:
    """Images in files: paths, and their classes, int64 [N]."""

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def read_arrays(name: str, root: str | None, split: str) -> Arrays:
    """A split ("train" or "test") of a set that fits into memory; `root` None looks where it usually lies."""
    if name == "fashion_mnist":
        return read_idx_pair(Path(root) if root else FASHION_MNIST, split)
    return read_cifar10(Path(root) if root else Path("data"), split)


@cache  # every run of a sweep is checked by one process
def read_idx_pair(folder: Path, split: str) -> Arrays:
    """Images and labels in two gzipped idx files."""
    prefix = IDX_PREFIXES[split]
    images_file, labels_file = (folder / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    for file in (images_file, labels_file):
        if not file.is_file():
            raise FileNotFoundError(
                f"data=fashion_mnist needs {file}: install Debian's package dataset-fashion-mnist, or let data.root "
                "name the folder that holds its four files"
            )
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise ValueError(f"{images_file} holds {len(images)} images, but {labels_file.name} {len(labels)} labels")
    return Arrays(images[:, None], labels)


def read_idx(file: Path, dimensions: int) -> Bytes:
    """The array of unsigned bytes in a gzipped idx file."""
    try:
        with gzip.open(file) as stream:
            content = stream.read()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file} is no whole gzip file ({error}): copy it again") from None
    head = 4 + 4 * dimensions
    if len(content) < head or int.from_bytes(content[:4], "big") != IDX_MAGIC[dimensions]:
        raise ValueError(f"{file} is no idx file of bytes with {dimensions} dimensions")
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    body = np.frombuffer(content, dtype=np.uint8, offset=head)
    if len(body) != np.prod(shape):
        raise ValueError(f"{file} says that it holds {' x '.join(map(str, shape))} bytes, but holds {len(body)}")
    return body.reshape(shape)


@cache
def read_cifar10(root: Path, split: str) -> Arrays:
    """Images and labels of CIFAR-10's binary version, in `root` or in its folder cifar-10-batches-bin."""
    folder = root if (root / CIFAR10_FILES[0]).is_file() else root / "cifar-10-batches-bin"
    names = CIFAR10_FILES if split == "train" else CIFAR10_TEST
    batches = []
    for name in names:
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(_no_cifar10(root, file))
        content = np.fromfile(file, dtype=np.uint8)
        if len(content) == 0 or len(content) % CIFAR10_RECORD:
            raise ValueError(f"{file} is no whole number of records of {CIFAR10_RECORD} bytes: unpack it again")
        batches.append(content.reshape(-1, CIFAR10_RECORD))
        if len(batches[-1]) != len(batches[0]):
            raise ValueError(
                f"{file} holds {len(batches[-1])} images, but {names[0]} {len(batches[0])}: unpack it again"
            )
        if (label := int(batches[-1][:, 0].max())) >= CIFAR10_CLASSES:
            raise ValueError(f"{file} has the label {label}, but CIFAR-10 has {CIFAR10_CLASSES} classes")
    records = np.concatenate(batches)
    return Arrays(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])


def _no_cifar10(root: Path, file: Path) -> str:
    pickled = [root / "cifar-10-batches-py" / "data_batch_1", root / "data_batch_1"]
    if any(path.is_file() for path in pickled):
        return (
            f"{root} holds CIFAR-10's python version, which is pickled and is never opened: put the binary version, "
            f"cifar-10-binary.tar.gz, there and unpack it, so that there is {file}"
        )
    return (
        f"data=cifar10 needs {file}: unpack cifar-10-binary.tar.gz, the binary version, and let data.root name the "
        "folder that holds cifar-10-batches-bin"
    )


@cache
def list_files(name: str, root: str | None, split: str) -> Files:
    """The image files of a split in class folders, in the order of their names."""
    folder = _split_folder(name, root, split)
    with os.scandir(folder) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder} holds no class folders: put the images of each class into a folder of their own")
    if name == "imagenet" and len(classes) != IMAGENET_CLASSES:
        raise ValueError(f"{folder} holds {len(classes)} class folders, but ImageNet-1k has {IMAGENET_CLASSES}")
    paths: list[str] = []
    labels: list[int] = []
    for label, each in enumerate(classes):
        with os.scandir(folder / each) as entries:
            files = sorted(entry.path for entry in entries if entry.name.lower().endswith(SUFFIXES))
        if not files:
            raise ValueError(f"the class folder {folder / each} holds no {', '.join(SUFFIXES)} file")
        paths += files
        labels += [label] * len(files)
    return Files(tuple(paths), np.array(labels), tuple(classes))


def check_same_classes(root: str | None, train: Files, test: Files) -> None:
    """Raises ValueError if the two splits have other class folders."""
    if missing := sorted(set(train.classes) - set(test.classes)):
        raise ValueError(f"{root} has the class folder '{missing[0]}' for training, but not for the test")
    if missing := sorted(set(test.classes) - set(train.classes)):
        raise ValueError(f"{root} has the class folder '{missing[0]}' for the test, but not for training")


def _split_folder(name: str, root: str | None, split: str) -> Path:
    if root is None:
        raise FileNotFoundError(
            f"data={name} needs data.root, a folder that holds train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    for each in FOLDERS[split]:
        if (Path(root) / each).is_dir():
            return Path(root) / each
    expected = " or ".join(str(Path(root) / each) for each in FOLDERS[split])
    raise FileNotFoundError(f"data={name} finds no folder {expected}: it must hold a folder for each class")
