"""Image sets in their published formats: read to the pixel, or refused in one sentence."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nap_rl.studies import image_sets
from nap_rl.studies.image_batches import ArrayImages, FileImages, ImageBatches, in_order, shifted
from nap_rl.studies.ranks import Ranks
from nap_rl.studies.stationary import DataError
from tests.studies import image_files

FASHION = "train-images-idx3-ubyte.gz"
ALONE = Ranks()


def read_fashion(folder: Path) -> object:
    return image_sets.read_arrays("fashion_mnist", str(folder), "train")


def test_idx_files_are_read_to_the_pixel(tmp_path: Path) -> None:
    images, labels = image_sets.read_arrays("fashion_mnist", str(image_files.fashion_mnist(tmp_path)), "test")
    assert images.shape == (20, 1, 28, 28) and labels.tolist() == [*range(10), *range(10)]
    assert (images[3, 0, 6] == 250).all() and images[3, 0, 7].max() < 60


def test_cifar10_has_red_before_green(tmp_path: Path) -> None:
    images, labels = image_sets.read_arrays("cifar10", str(image_files.cifar10(tmp_path)), "train")
    assert images.shape == (20, 3, 32, 32) and labels.tolist()[:4] == [0, 1, 2, 3] and labels[4] == 1
    assert (images[2, 0] == 2).all() and (images[2, 1] == 102).all()


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(gzip.compress(change(gzip.decompress((folder / name).read_bytes()))))

    return damage


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (without(FASHION), r"needs \S+train-images-idx3-ubyte.gz: install Debian's package dataset-fashion-mnist"),
        (cut(FASHION, 0.5), r"train-images-idx3-ubyte.gz is no whole gzip file \(.*\): copy it again"),
        (cut(FASHION, 0), r"is no idx file of bytes"),
        (rewritten(FASHION, lambda b: b[:-28]), r"says that it holds 64 x 28 x 28 bytes, but holds 50148"),
        (rewritten(FASHION, lambda b: b[4:]), r"is no idx file of bytes with 3 dimensions"),
        (
            rewritten("train-labels-idx1-ubyte.gz", lambda b: b[:7] + bytes([63]) + b[8:-1]),
            r"holds 64 images, but train-labels-idx1-ubyte.gz 63 labels",
        ),
    ],
)
def test_damaged_idx_files_are_refused(damage: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    damage(image_files.fashion_mnist(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        read_fashion(tmp_path)


def test_cifar10s_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04N.")
    with pytest.raises(FileNotFoundError, match=r"python version, which is pickled .* cifar-10-binary.tar.gz, there"):
        image_sets.read_arrays("cifar10", str(tmp_path), "train")


@pytest.mark.parametrize(
    ("name", "keep", "sentence"),
    [
        ("data_batch_3.bin", 0.9, "data_batch_3.bin is no whole number of records of 3073 bytes"),
        ("data_batch_3.bin", 0.5, "data_batch_3.bin holds 2 images, but data_batch_1.bin 4"),
    ],
)
def test_torn_cifar10_is_refused(name: str, keep: float, sentence: str, tmp_path: Path) -> None:
    cut(name, keep)(image_files.cifar10(tmp_path) / "cifar-10-batches-bin")
    with pytest.raises(ValueError, match=sentence):
        image_sets.read_arrays("cifar10", str(tmp_path), "train")


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    file = image_files.cifar10(tmp_path) / "cifar-10-batches-bin" / "test_batch.bin"
    file.write_bytes(b"\x0b" + file.read_bytes()[1:])
    with pytest.raises(ValueError, match="test_batch.bin has the label 11, but CIFAR-10 has 10 classes"):
        image_sets.read_arrays("cifar10", str(tmp_path), "test")


def test_class_folders_are_listed_in_order(tmp_path: Path) -> None:
    files = image_sets.list_files("folder", str(image_files.class_folders(tmp_path)), "test")
    assert files.classes == ("cat", "dog") and files.labels.tolist() == [0] * 7 + [1] * 6
    assert [Path(path).name for path in files.paths[:7]] == [*(f"{i}.jpg" for i in range(6)), "clear.png"]


def test_wrong_class_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="needs data.root, a folder that holds train/CLASS"):
        image_sets.list_files("folder", None, "train")
    with pytest.raises(FileNotFoundError, match=r"finds no folder \S+train: it must hold a folder for each class"):
        image_sets.list_files("folder", str(tmp_path), "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train holds no class folders"):
        image_sets.list_files("folder", str(tmp_path), "train")
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(ValueError, match=r"the class folder \S+train/cat holds no .jpg, .jpeg, .png file"):
        image_sets.list_files("folder", str(tmp_path), "train")
    (tmp_path / "train" / "cat" / "0.JPEG").touch()
    with pytest.raises(ValueError, match="holds 1 class folders, but ImageNet-1k has 1000"):
        image_sets.list_files("imagenet", str(tmp_path), "train")


def test_a_class_folder_missing_in_one_split_is_named(tmp_path: Path) -> None:
    root = image_files.class_folders(tmp_path)
    for path in (root / "val" / "dog").iterdir():
        path.unlink()
    (root / "val" / "dog").rmdir()
    train, test = (image_sets.list_files("folder", str(root), split) for split in ("train", "test"))
    with pytest.raises(ValueError, match="has the class folder 'dog' for training, but not for the test"):
        image_sets.check_same_classes(str(root), train, test)


def test_pictures_are_decoded_and_cut(tmp_path: Path) -> None:
    files = image_sets.list_files("folder", str(image_files.class_folders(tmp_path)), "train")
    images = FileImages(files, 16, "resized", flip=True)
    for draws in (None, np.random.default_rng(0).random((2, 5))):
        x = images.take(np.array([6, 12]), draws)
        assert x.shape == (2, 3, 16, 16)
        assert x[0].mean((1, 2)).argmax() == 0 and x[1].mean((1, 2)).argmax() == 2
    left, top, right, bottom = images.part(400, 300, np.array([0.3, 0.7, 0.5, 0.5, 0.9]))
    assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
    assert (right - left) * (bottom - top) == pytest.approx(0.54 * 400 * 300)


def test_a_picture_that_is_torn_or_none_is_named(tmp_path: Path) -> None:
    root = image_files.class_folders(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    torn, none = root / "train" / "cat" / "0.jpg", root / "train" / "cat" / "1.jpg"
    image_files.Image.fromarray(noise).save(torn)
    torn.write_bytes(torn.read_bytes()[:2000])
    none.write_bytes(b"<html>404</html>")
    images = FileImages(image_sets.list_files("folder", str(root), "train"), 16, "none", flip=False)
    with pytest.raises(DataError, match=r"the image \S+0.jpg cannot be read: image file is truncated"):
        images.take(np.array([0]), None)
    with pytest.raises(DataError, match=r"the image \S+1.jpg cannot be read: it is no image"):
        images.take(np.array([1]), None)


def arrays(tmp_path: Path) -> ArrayImages:
    train = image_sets.read_arrays("fashion_mnist", str(image_files.fashion_mnist(tmp_path)), "train")
    return ArrayImages(train, "padded", flip=True)


def test_images_have_mean_0_and_variance_1(tmp_path: Path) -> None:
    x = arrays(tmp_path).take(np.arange(64), None)
    assert abs(float(x.mean())) < 1e-4 and float(x.std()) == pytest.approx(1, abs=1e-3)


def test_a_shift_moves_pixels_and_fills_with_0() -> None:
    x = torch.arange(1.0, 17).view(1, 1, 4, 4)
    still, down = shifted(x, torch.tensor([[4, 4]])), shifted(x, torch.tensor([[3, 4]]))
    assert torch.equal(still, x)
    assert torch.equal(down[0, 0, 1:], x[0, 0, :3]) and not down[0, 0, 0].any()


def batches(images: ArrayImages, ranks: Ranks = ALONE, workers: int = 0) -> ImageBatches:
    return ImageBatches(images, np.arange(64), 12, 3, ranks, workers=workers)


def test_an_epoch_has_each_image_once_and_every_epoch_another_order(tmp_path: Path) -> None:
    images = arrays(tmp_path)
    images.labels = np.arange(64)
    coming = batches(images)
    epochs = [torch.cat([next(coming)[1] for _ in range(5)]).tolist() for _ in range(2)]
    assert all(len(set(epoch)) == 60 for epoch in epochs) and epochs[0] != epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_where_they_stopped_whatever_prepares_them(workers: int, tmp_path: Path) -> None:
    images = arrays(tmp_path)
    whole = batches(images)
    expected = [next(whole) for _ in range(9)]
    first = batches(images)
    for _ in range(4):
        next(first)
    state = torch.random.get_rng_state()
    second = batches(images, workers=workers)
    second.load_state_dict(first.state_dict())
    for x, y in expected[4:]:
        got = next(second)
        assert torch.equal(got[0], x) and torch.equal(got[1], y)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_processes_share_a_batch_and_the_test_set(tmp_path: Path) -> None:
    images = arrays(tmp_path)
    whole = next(batches(images))
    parts = [next(batches(images, Ranks(rank, 2))) for rank in (0, 1)]
    assert torch.equal(parts[0][0], whole[0][0::2]) and torch.equal(parts[1][0], whole[0][1::2])
    shares = [torch.cat([y for _, y in in_order(images, 7, Ranks(rank, 3), workers=0)]) for rank in range(3)]
    assert sorted(torch.cat(shares).tolist()) == sorted(images.labels.tolist())
