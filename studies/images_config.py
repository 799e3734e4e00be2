"""The settings of study=images, and what can be checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from nap_rl.studies import image_sets
from nap_rl.studies.stationary_config import TrainingConfig, check_numbers

CHOICES = {
    "data.name": image_sets.SETS,
    "data.crop": ("auto", "padded", "resized", "none"),
    "stem": ("auto", "small", "strided", "large"),
    "model_norm": ("batch", "none"),
}
DEPTHS = (18, 34, 50)
LARGE = 96  # pixels, from which stem=auto is large


@dataclass
class ImageDataConfig:
    name: str = "fashion_mnist"  # fashion_mnist | cifar10 | imagenet | folder
    root: str | None = None  # the folder that holds it
    size: int = 224  # pixels of a side, of sets in class folders
    crop: str = "auto"  # padded: by 4 pixels, then cut out at random | resized: a random part | none | auto
    flip: bool = True  # left and right, half of the time
    images: int | None = None  # of the training set, drawn by the seed; None: all


@dataclass
class ImagesConfig(TrainingConfig):
    study: str = "images"
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    depth: int = 18  # of the ResNet: 18 | 34 | 50
    width: int = 64  # channels of its first stage
    stem: str = "auto"  # small: 3x3 | strided: 3x3 with stride 2 | large: 7x7 and a pool | auto: by the images' size
    model_norm: str = "batch"  # the network's own norms: batch | none
    channels_last: bool = False
    epochs: int = 200
    workers: int = 0  # processes that prepare batches; 0: this one

    def validate(self) -> None:
        """Raises ValueError, one sentence, for settings that cannot run."""
        super().validate()
        values = {"data.name": self.data.name, "data.crop": self.data.crop, "stem": self.stem}
        for key, value in {**values, "model_norm": self.model_norm}.items():
            if value not in CHOICES[key]:
                raise ValueError(f"{key}={value} is not one of {', '.join(CHOICES[key])}")
        if self.variant == "project" and self.model_norm == "none":
            raise ValueError("variant=project projects what the network's own norms follow: take model_norm=batch")
        if self.depth not in DEPTHS:
            raise ValueError(f"depth={self.depth} is not one of {', '.join(map(str, DEPTHS))}")
        check_numbers(self, ("width", "epochs"), "of 1 or more", lambda value: value >= 1)
        check_numbers(self, ("workers",), "of 0 or more", lambda value: value >= 0)
        if not 8 <= self.data.size <= 4096:
            raise ValueError(f"data.size={self.data.size}, expected pixels from 8 to 4096")
        if self.in_folders and self.data.crop == "padded":
            raise ValueError(f"data.crop=padded needs images of one size, which data={self.data.name} has not")
        if not self.in_folders and self.data.crop == "resized":
            raise ValueError(f"data.crop=resized is for images in folders: take data.crop=padded for {self.data.name}")
        if self.data.images is not None and self.data.images < 1:
            raise ValueError(f"data.images={self.data.images}, expected a number of 1 or more")

    def check_data(self) -> None:
        """Read or list the set. Raises ValueError or OSError, one sentence, for what cannot be read."""
        data = self.data
        if self.in_folders:
            train, test = (image_sets.list_files(data.name, data.root, split) for split in ("train", "test"))
            image_sets.check_same_classes(data.root, train, test)
            count = len(train.paths)
        else:
            image_sets.read_arrays(data.name, data.root, "test")
            count = len(image_sets.read_arrays(data.name, data.root, "train").labels)
        if (data.images or 0) > count:
            raise ValueError(f"data.images={data.images}, but data={data.name} has {count} images for training")
        used = data.images or count
        if self.batch_size > used:
            raise ValueError(f"batch_size={self.batch_size} is more than the {used} images for training")
        if self.warmup_updates >= (updates := self.epochs * (used // self.batch_size)):
            raise ValueError(f"warmup_updates={self.warmup_updates} leaves nothing of the run's {updates} updates")

    @property
    def in_folders(self) -> bool:
        return self.data.name in ("folder", "imagenet")

    @property
    def crop(self) -> str:
        """padded, resized or none."""
        if self.data.crop != "auto":
            return self.data.crop
        return "resized" if self.in_folders else "padded"
