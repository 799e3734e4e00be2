"""Tiny sets of images in their published formats, written by hand."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def idx(array: NDArray[np.uint8]) -> bytes:
    """The bytes of an idx file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def fashion_mnist(folder: Path, train: int = 64, test: int = 20) -> Path:
    """Four files: images of class c are bright in row c."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = generator.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 2 * labels] = 250
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def cifar10(root: Path, images: int = 4) -> Path:
    """The binary version's six files, each of so many images; image i of a file is filled with i."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        records = np.repeat(np.arange(images, dtype=np.uint8)[:, None], 3073, axis=1)
        records[:, 0] = (np.arange(images) + number) % 10
        records[:, 1 + 1024 : 1 + 2048] += 100  # green
        (folder / name).write_bytes(records.tobytes())
    return root


def class_folders(root: Path, images: int = 6, size: tuple[int, int] = (40, 30)) -> Path:
    """train and val with classes cat (red) and dog (blue), as JPEG, and one PNG with transparency."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, colour in (("cat", (220, 20, 20)), ("dog", (20, 20, 220))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(images):
                noise = generator.integers(-20, 20, (*size[::-1], 3))
                Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(folder / f"{i}.jpg", quality=95)
        Image.new("RGBA", size, (220, 20, 20, 255)).save(root / split / "cat" / "clear.png")
    return root
