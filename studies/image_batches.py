"""Batches of images: float32 [B, C, H, W] with mean 0 and variance 1 a channel, and their classes, int64 [B].

    epoch e:   order  = a permutation that (seed, e) decides; the rest behind the last whole batch is left out
    batch b:   indices = order[b * batch_size : (b + 1) * batch_size];  draws of crops and flips: (seed, e, b)
               process r of n takes indices[r::n] and their draws

So a batch is a function of (seed, e, b), whatever number of processes computes and of workers prepares.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from nap_rl.studies.image_sets import Arrays, Files
from nap_rl.studies.ranks import Ranks
from nap_rl.studies.stationary import DataError

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Spec = tuple[int, int]  # epoch, batch
PADDING = 4  # pixels (He et al. 2016, section 4.2)
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random part (Szegedy et al. 2015, arXiv 1409.4842, section 6)
SHORT_SIDE = 256 / 224  # of a test image, to the side of the square in its middle (He et al. 2016)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(Protocol):
    """A set of images from which batches are taken."""

    labels: NDArray[Any]

    def take(self, indices: Indices, draws: Floats | None) -> Tensor:
        """Images [B, C, H, W], float32. `draws` [B, 5], uniform in [0, 1): those of crop and flip; None: the middle."""


class ArrayImages:
    """Images in memory.

    Args:
        crop: "padded" or "none"; `flip`: whether half of the images are mirrored.
        mean, std: by channel, in grey levels; None takes those of these images.
    """

    def __init__(
        self, arrays: Arrays, crop: str, *, flip: bool, mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        self.images, self.labels = torch.from_numpy(arrays.images.copy()), arrays.labels
        self.crop, self.flip = crop, flip
        if mean is None or std is None:
            values = self.images.float()
            mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3)).clamp_min(1e-3)
        self.mean, self.std = mean, std

    def take(self, indices: Indices, draws: Floats | None) -> Tensor:
        x = self.images[torch.from_numpy(indices)].float()
        x = (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        if draws is None:
            return x
        if self.crop == "padded":
            x = shifted(x, torch.from_numpy((draws[:, :2] * (2 * PADDING + 1)).astype(np.int64)))
        if self.flip:
            mirrored = torch.from_numpy(draws[:, 4] < 0.5)
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
        return x


def shifted(x: Tensor, corners: Tensor) -> Tensor:
    """x [B, C, H, W], each image padded by PADDING pixels of 0 and cut out at its corner [B, 2] (row, column)."""
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x, [PADDING] * 4)
    rows = corners[:, :1] + torch.arange(height)  # [B, H]
    columns = corners[:, 1:] + torch.arange(width)
    samples = torch.arange(len(x)).view(-1, 1, 1)
    return padded.movedim(1, 3)[samples, rows[:, :, None], columns[:, None, :]].movedim(3, 1).contiguous()


class FileImages:
    """Images in files, three channels, each cut to `size` x `size` pixels when it is taken.

    Args:
        crop: "resized", a random part of the image, or "none", its middle.
    """

    def __init__(self, files: Files, size: int, crop: str, *, flip: bool) -> None:
        self.paths, self.labels, self.size = files.paths, files.labels, size
        self.crop, self.flip = crop, flip

    def take(self, indices: Indices, draws: Floats | None) -> Tensor:
        pixels = [self.read(int(index), None if draws is None else draws[i]) for i, index in enumerate(indices)]
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        return (x - torch.tensor(IMAGENET_MEAN).view(-1, 1, 1)) / torch.tensor(IMAGENET_STD).view(-1, 1, 1)

    def read(self, index: int, draw: Floats | None) -> NDArray[np.uint8]:
        """One image, [size, size, 3]. Raises DataError."""
        path = self.paths[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd EXIF data, which is not read
                with Image.open(path) as image:
                    part = self.part(image.width, image.height, draw)
                    cut = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR, box=part)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
            raise DataError(f"the image {path} cannot be read: {reason}") from None
        pixels = np.asarray(cut)
        return pixels[:, ::-1] if draw is not None and self.flip and draw[4] < 0.5 else pixels

    def part(self, width: int, height: int, draw: Floats | None) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what is cut out."""
        if draw is not None and self.crop == "resized":
            area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * draw[2])
            aspect = np.exp(np.log(ASPECT[0]) + np.log(ASPECT[1] / ASPECT[0]) * draw[3])
            w, h = min(np.sqrt(area * aspect), width), min(np.sqrt(area / aspect), height)
            left, top = draw[1] * (width - w), draw[0] * (height - h)
            return left, top, left + w, top + h
        side = min(width, height) / SHORT_SIDE
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


class ImageBatches:
    """Endless shuffled batches of a training set, this process's share of each; a `stationary.Batches`.

    Args:
        chosen: indices of the images that are trained on.
        batch_size: of all processes together.
        workers: processes that prepare batches ahead; 0: this one does.
    """

    def __init__(
        self, images: Images, chosen: Indices, batch_size: int, seed: int, ranks: Ranks, *, workers: int
    ) -> None:
        self.prepared = PreparedBatches(images, chosen, batch_size, seed, ranks)
        self.workers = workers
        self.given = 0  # batches so far
        self.coming: Iterator[tuple[Tensor, Tensor] | str] | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if self.coming is None:
            order = From(self.given, self.prepared.batches)
            self.coming = iter(loader(self.prepared, self.workers, order))
        batch = next(self.coming)
        if isinstance(batch, str):
            self.coming = None
            raise DataError(batch)
        self.given += 1
        return tuple(batch)

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.given, self.coming = state["given"], None


class From(Sampler[Spec]):
    """(epoch, batch), from a batch on, without end."""

    def __init__(self, given: int, batches: int) -> None:
        self.given, self.batches = given, batches

    def __iter__(self) -> Iterator[Spec]:
        return (divmod(number, self.batches) for number in count(self.given))


class PreparedBatches(Dataset[tuple[Tensor, Tensor] | str]):
    """(epoch, batch) -> images and classes, or the sentence of a DataError: an exception loses it between processes."""

    def __init__(self, images: Images, chosen: Indices, batch_size: int, seed: int, ranks: Ranks) -> None:
        self.images, self.chosen, self.batch_size, self.seed, self.ranks = images, chosen, batch_size, seed, ranks
        self.batches = len(chosen) // batch_size  # of an epoch
        self.order: tuple[int, Indices] = (-1, chosen)

    def __getitem__(self, spec: Spec) -> tuple[Tensor, Tensor] | str:
        epoch, batch = spec
        if self.order[0] != epoch:
            self.order = epoch, self.chosen[np.random.default_rng((self.seed, epoch)).permutation(len(self.chosen))]
        indices = self.order[1][batch * self.batch_size : (batch + 1) * self.batch_size]
        draws = np.random.default_rng((self.seed, epoch, batch)).random((self.batch_size, 5))
        mine = slice(self.ranks.rank, None, self.ranks.processes)
        try:
            x = self.images.take(indices[mine], draws[mine])
        except DataError as error:
            return str(error)
        return x, torch.from_numpy(self.images.labels[indices[mine]].astype(np.int64))


def loader(
    prepared: Dataset[tuple[Tensor, Tensor] | str], workers: int, order: Sampler[Spec] | None = None
) -> DataLoader[tuple[Tensor, Tensor] | str]:
    """Whole batches, each prepared by one of the workers. It draws no number from torch's own generator."""
    return DataLoader(
        prepared,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def in_order(images: Images, size: int, ranks: Ranks, *, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of a set, in order, not augmented. Raises DataError."""
    for batch in loader(Shares(images, size, ranks), workers):
        if isinstance(batch, str):
            raise DataError(batch, of_test=True)
        yield batch[0], batch[1]


class Shares(Dataset[tuple[Tensor, Tensor] | str]):
    """This process's share of a set, in batches of `size`."""

    def __init__(self, images: Images, size: int, ranks: Ranks) -> None:
        self.images, self.size = images, size
        self.indices = np.arange(ranks.rank, len(images.labels), ranks.processes)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.size)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | str:
        indices = self.indices[number * self.size : (number + 1) * self.size]
        try:
            x = self.images.take(indices, None)
        except DataError as error:
            return str(error)
        return x, torch.from_numpy(self.images.labels[indices].astype(np.int64))
