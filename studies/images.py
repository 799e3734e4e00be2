"""study=images: a ResNet learns to name images, with or without Normalize-and-Project (the paper's Table 1)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nap_rl.nn.resnet import Norm, ResNet, Stem
from nap_rl.studies import image_sets, stationary
from nap_rl.studies.image_batches import ArrayImages, FileImages, ImageBatches, Images, in_order
from nap_rl.studies.images_config import LARGE, ImagesConfig
from nap_rl.studies.ranks import Ranks, total
from nap_rl.studies.stationary import Batch, Task

EXAMPLES = 8  # images for `normalize`
TOP5_FROM = 20  # classes


def run(config: ImagesConfig, folder: Path) -> int:
    """Train and test a network in `folder`; returns the exit code. Arguments and errors as `stationary.run`."""
    return stationary.run(config, folder, lambda ranks, device: build_task(config, ranks, device))


def build_task(config: ImagesConfig, ranks: Ranks, device: torch.device) -> Task:
    """The task of this process."""
    train, test, classes = open_sets(config)
    chosen = np.arange(len(train.labels))
    if config.data.images is not None:
        chosen = np.random.default_rng(config.seed).permutation(len(chosen))[: config.data.images]
    batches = ImageBatches(train, chosen, config.batch_size, config.seed, ranks, workers=config.workers)
    example = train.take(chosen[np.linspace(0, len(chosen) - 1, EXAMPLES).astype(np.int64)], None)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = ResNet(
        config.depth,
        classes,
        channels=example.shape[1],
        width=config.width,
        stem=stem_of(config, example.shape[-1]),
        norm=cast(Norm, config.model_norm),
    ).to(memory_format=layout)  # type: ignore[call-overload]

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        return F.cross_entropy(module(x.to(memory_format=layout)), y, label_smoothing=config.label_smoothing)

    def evaluate(module: nn.Module) -> dict[str, float]:
        """Top-1 accuracy, top-5 with many classes, and mean cross-entropy without label smoothing."""
        sums = torch.zeros(4, dtype=torch.float64, device=device)  # right, right among five, loss, images
        for x, y in in_order(test, config.eval_batch_size, ranks, workers=config.workers):
            logits = module(x.to(device).to(memory_format=layout)).float()
            best = logits.topk(min(5, classes)).indices == y.to(device)[:, None]
            nats = F.cross_entropy(logits, y.to(device), reduction="sum")
            sums += torch.stack([best[:, 0].sum(), best.sum(), nats, torch.tensor(len(y), device=device)]).double()
        right, among_five, nats_sum, count = total(sums).tolist()
        top5 = {"top5": among_five / count} if classes >= TOP5_FROM else {}
        return {"accuracy": right / count, **top5, "loss": nats_sum / count}

    epoch = batches.prepared.batches
    return Task(
        model=model,
        example=example.to(memory_format=layout),
        batches=batches,
        loss=loss,
        evaluate=evaluate,
        updates=config.epochs * epoch,
        eval_every=config.eval_every or epoch,
        samples=config.batch_size,
    )


def open_sets(config: ImagesConfig) -> tuple[Images, Images, int]:
    """Training set, test set, number of classes."""
    data = config.data
    if config.in_folders:
        files = [image_sets.list_files(data.name, data.root, split) for split in ("train", "test")]
        train, test = (FileImages(each, data.size, config.crop, flip=data.flip) for each in files)
        return train, test, len(files[0].classes)
    arrays = [image_sets.read_arrays(data.name, data.root, split) for split in ("train", "test")]
    learnt = ArrayImages(arrays[0], config.crop, flip=data.flip)
    tested = ArrayImages(arrays[1], "none", flip=False, mean=learnt.mean, std=learnt.std)
    return learnt, tested, int(max(each.labels.max() for each in arrays)) + 1


def stem_of(config: ImagesConfig, size: int) -> Stem:
    """The stem for images of `size` pixels."""
    if config.stem == "auto":
        return "large" if size >= LARGE else "small"
    return cast(Stem, config.stem)
