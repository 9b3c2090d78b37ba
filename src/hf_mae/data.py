# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Image sources, random crops, and the order of samples, which is a function of the seed and the global step alone."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch.utils.data import Dataset, Sampler
from transformers.utils import logging

from .image_processing_mae import MAEImageProcessor, image_to_tensor, resize, to_byte_range

logger = logging.get_logger(__name__)

IMAGE_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_EXIF_ORIENTATION = 0x0112
_SPLITS = {"train": ("train",), "test": ("validation", "val", "test")}


# ----------------------------------------------------------------------------------------------------------------------
# Sources


class ImageSource(Sequence):
    """Images by index, with or without labels.

    Attributes:
        name (`str`): Where they come from, for logs and model cards.
        labels (`list[int]` or `None`): The class of each image, from 0.
    """

    name: str
    labels: list[int] | None = None

    def __getitem__(self, index: int) -> PIL.Image.Image:
        """Returns image `index`, in [0, len(self)), of any mode.

        Raises:
            OSError: If it can't be read.
        """
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Returns what to call image `index` in a message."""
        return f"image {index} of {self.name}"


class FashionMNISTImages(ImageSource):
    """The embedded sample: 3,000 (train) or 1,000 (test) labelled grey photographs of 28 x 28 pixels, 10 classes."""

    def __init__(self, split: str = "train"):
        self.name = f"Fashion-MNIST sample ({split}), embedded"
        mosaic = np.array(PIL.Image.open(Path(__file__).parent / "fashion_mnist" / f"{split}.png"))
        rows, columns = (side // 28 for side in mosaic.shape)
        self.pixels = mosaic.reshape(rows, 28, columns, 28).swapaxes(1, 2).reshape(-1, 28, 28)
        self.labels = [index * 10 // len(self.pixels) for index in range(len(self.pixels))]  # stored class by class

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.pixels[index])


class FolderImages(ImageSource):
    """All images below a folder, at any depth, in the order of their paths.

    Labels are the names of the sub-folders if every image lies in one, directly, and there are several.
    """

    def __init__(self, folder: str | os.PathLike):
        """
        Args:
            folder (`str` or `os.PathLike`): The folder. Links are followed.

        Raises:
            ValueError: If there is no image in it.
            OSError: If it can't be read.
        """
        self.folder, self.name = Path(folder), os.fspath(folder)
        self.paths, others = [], {}
        for directory, subdirectories, files in _walk(folder):
            subdirectories.sort()
            for file in sorted(files):
                extension = Path(file).suffix.lower()
                if extension in IMAGE_EXTENSIONS and not file.startswith("."):
                    self.paths.append(os.path.relpath(os.path.join(directory, file), folder))
                else:
                    others[extension or "none"] = others.get(extension or "none", 0) + 1
        if not self.paths:
            seen = ", ".join(f"{count} x {extension}" for extension, count in sorted(others.items()))
            raise ValueError(
                f"Found no images in {self.name!r}. Files there, by extension: {seen or 'none at all'}. "
                f"Expected some of {', '.join(IMAGE_EXTENSIONS)} at any depth, or .parquet files."
            )
        parents = [Path(path).parts[:-1] for path in self.paths]
        classes = sorted(set(parents))
        if len(classes) > 1 and all(len(parts) == 1 for parts in classes):
            numbers = {parts: number for number, parts in enumerate(classes)}
            self.labels = [numbers[parts] for parts in parents]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        return PIL.Image.open(self.folder / self.paths[index])

    def describe(self, index: int) -> str:
        return os.fspath(self.folder / self.paths[index])


class DatasetImages(ImageSource):
    """The image column of a data set of the `datasets` library."""

    def __init__(self, dataset, name: str):
        """
        Args:
            dataset (`datasets.Dataset`): With a column of images. A column of class labels is used if there is one.
            name (`str`): Where it comes from.

        Raises:
            ValueError: If no column holds images.
        """
        import datasets

        columns = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        if not columns:
            found = ", ".join(f"{column} ({feature})" for column, feature in dataset.features.items())
            raise ValueError(
                f"No column of {name} holds images. Columns: {found}. Cast one with "
                "`dataset.cast_column(name, datasets.Image())` and save the data set again."
            )
        self.name, self.column, self.dataset = name, columns[0], dataset.select_columns(columns[:1])
        for column, feature in dataset.features.items():
            if isinstance(feature, datasets.ClassLabel) or (column == "label" and str(feature.dtype).startswith("int")):
                self.labels = list(dataset[column])
                break

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        return self.dataset[index][self.column]


def open_images(data: str | None = None, split: str = "train") -> ImageSource | None:
    """Opens a source of images.

    Args:
        data (`str`, *optional*): A folder of images (flat or nested; `train` and `val` below it are taken for splits),
            a `.parquet` file or a folder of such, a folder written by `Dataset.save_to_disk`, or the name of a data set
            on the Hub. Without it the embedded sample of Fashion-MNIST is opened.
        split (`"train"` or `"test"`, *optional*): Images to train on, or to evaluate on.

    Returns:
        [`ImageSource`], or `None` if `split` is `"test"` and the source has none.

    Raises:
        ValueError: If there are no images in it.
        OSError: If it can't be found or read.
    """
    if data is None:
        return FashionMNISTImages(split)
    path = Path(data)
    if not path.exists():
        return _from_datasets(data, split, lambda datasets: datasets.load_dataset(data))
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _from_datasets(data, split, lambda datasets: datasets.load_from_disk(data))
    if path.suffix == ".parquet":
        return _from_datasets(data, split, lambda datasets: datasets.load_dataset("parquet", data_files=data))
    if next(path.glob("**/*.parquet"), None):  # `datasets` tells splits by the names of files and folders
        return _from_datasets(data, split, lambda datasets: datasets.load_dataset("parquet", data_dir=data))
    if not path.is_dir():
        raise ValueError(f"{data!r} is neither a folder nor a .parquet file.")
    if (path / "train").is_dir():
        path = next((path / name for name in _SPLITS[split] if (path / name).is_dir()), None)
        return None if path is None else FolderImages(path)
    return FolderImages(path) if split == "train" else None


def _from_datasets(data: str, split: str, load) -> DatasetImages | None:
    import datasets

    try:
        dataset = load(datasets)
    except Exception as error:  # of many kinds: no such name, no network, no permission, broken file
        raise OSError(
            f"{data!r} is no folder or file here, and could not be loaded as a data set of the Hub or from disk: "
            f"{type(error).__name__}: {str(error)[:300]}"
        ) from error
    if isinstance(dataset, dict):
        found = next((name for name in _SPLITS[split] if name in dataset), None)
        if found is None and split == "train":
            raise ValueError(f"{data!r} has no split 'train', only {', '.join(dataset)}.")
        return None if found is None else DatasetImages(dataset[found], f"{data} ({found})")
    return DatasetImages(dataset, data) if split == "train" else None


def _walk(folder: str | os.PathLike) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` that follows links, but enters each folder once, and does not pass over what it can't read."""

    def fail(error: OSError):
        raise error

    entered = set()
    for directory, subdirectories, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(directory)
        if real in entered:
            subdirectories.clear()
            continue
        entered.add(real)
        yield directory, subdirectories, files


# ----------------------------------------------------------------------------------------------------------------------
# Crops


def random_crop_box(
    size: tuple[int, int], target: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws the box of a random resized crop, distributed as in the official augmentation (torchvision's).

    Args:
        size (`(height, width)`): Pixels of the image.
        target (`(height, width)`): Pixels that the crop will be resized to; its aspect is the middle of the range.
        scale (`(low, high)`): Range of the crop's share of the image's area.
        rng (`np.random.Generator`): The source of randomness.

    Returns:
        `(top, left, height, width)`, inside the image. Aspects lie between 3/4 and 4/3 of the target's; after ten draws
        that do not fit, the largest centred box with such an aspect is taken. Source: Szegedy et al. 2014 (arXiv
        1409.4842), section 6; scale 0.2 to 1: He et al. 2021, appendix A.1.
    """
    height, width = size
    middle = target[1] / target[0]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = middle * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
            return int(top), int(left), crop_height, crop_width
    aspect = min(max(width / height, middle * 3 / 4), middle * 4 / 3)
    crop_height, crop_width = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def crop_and_resize(
    image: PIL.Image.Image, box: tuple[int, int, int, int], target: tuple[int, int], num_channels: int
) -> torch.Tensor:
    """Returns a crop at the size of the model, bicubic and antialiased, as (channels, height, width).

    A JPEG that was not yet decoded is decoded at a half, a quarter or an eighth of its size where the crop allows.

    Args:
        image (`PIL.Image.Image`): Of any mode, best freshly opened.
        box (`(top, left, height, width)`): In pixels of the image.
        target (`(height, width)`): Pixels wanted.
        num_channels (`int`): Channels wanted; see [`image_to_tensor`].

    Returns:
        `torch.Tensor`: uint8, or float32 in [0, 255] for images of more than 8 bits.
    """
    top, left, height, width = box
    full_width, full_height = image.size
    image.draft(None, (math.ceil(full_width * target[1] / width), math.ceil(full_height * target[0] / height)))
    x, y = image.width / full_width, image.height / full_height  # 1 unless the draft was taken
    image = image.crop((round(left * x), round(top * y), round((left + width) * x), round((top + height) * y)))
    pixels = to_byte_range(image_to_tensor(image, num_channels))
    return resize(pixels, target).clamp(0, 255)


class PretrainingDataset(Dataset):
    """Random crops with the noise that their masks are made of, each a function of (seed, epoch, index)."""

    def __init__(
        self,
        images: ImageSource,
        image_size: tuple[int, int],
        num_patches: int,
        num_channels: int = 3,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        horizontal_flip: bool = True,
        seed: int = 0,
    ):
        """
        Args:
            images ([`ImageSource`]): The images.
            image_size (`(height, width)`): Pixels of the crops.
            num_patches (`int`): Patches of a crop, the length of the noise.
            num_channels (`int`, *optional*, defaults to 3): Channels of the crops.
            crop_scale (`(low, high)`, *optional*, defaults to `(0.2, 1.0)`): Share of the area that a crop may have.
            horizontal_flip (`bool`, *optional*, defaults to `True`): Whether half of the crops are mirrored.
            seed (`int`, *optional*, defaults to 0): Seed of the run.
        """
        self.images, self.seed, self.num_patches = images, seed, num_patches
        self.image_size, self.num_channels = image_size, num_channels
        self.crop_scale, self.horizontal_flip = crop_scale, horizontal_flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns `pixel_values` (channels, height, width), uint8, and `noise` (num_patches,) of (epoch, index).

        A picture that can't be read is replaced by the next one that can, and named in the log.
        """
        epoch, index = sample
        rng = np.random.default_rng([self.seed, epoch, index, 0])  # the 0 leaves room for a number of views
        for attempt in range(10):
            candidate = (index + attempt) % len(self.images)
            try:
                image = self.images[candidate]
                if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                    image = PIL.ImageOps.exif_transpose(image)
                box = random_crop_box((image.height, image.width), self.image_size, self.crop_scale, rng)
                pixel_values = crop_and_resize(image, box, self.image_size, self.num_channels)
                break
            except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # what PIL raises
                logger.warning(f"Skipped {self.images.describe(candidate)}, which can't be read: {error}")
        else:
            raise OSError(
                f"None of 10 images in a row could be read, the last one is {self.images.describe(candidate)}. Look at "
                "the warnings above; remove or repair the files."
            )
        if self.horizontal_flip and rng.random() < 0.5:
            pixel_values = pixel_values.flip(-1)
        return {"pixel_values": pixel_values, "noise": torch.from_numpy(rng.random(self.num_patches, dtype=np.float32))}


class EvaluationDataset(Dataset):
    """Images through the image processor, as at inference, with their labels."""

    def __init__(self, images: ImageSource, image_processor: MAEImageProcessor, max_images: int | None = None):
        """
        Args:
            images ([`ImageSource`]): The images.
            image_processor ([`MAEImageProcessor`]): What makes pixel values of them.
            max_images (`int`, *optional*): Take no more than so many, evenly spaced.
        """
        count = min(len(images), max_images or len(images))
        self.indices = [position * len(images) // count for position in range(count)]
        self.images, self.image_processor = images, image_processor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict:
        """Returns `pixel_values` (channels, height, width), float32, and `label`, -1 if there is none."""
        index = self.indices[position]
        image = PIL.ImageOps.exif_transpose(self.images[index])
        label = -1 if self.images.labels is None else self.images.labels[index]
        return {"pixel_values": self.image_processor(image, return_tensors="pt").pixel_values[0], "label": label}


# ----------------------------------------------------------------------------------------------------------------------
# Order


class SampleOrder:
    """The endless sequence of samples of a run: one permutation of the images after the other.

    The permutation of an epoch is made from (seed, epoch), so any part of the sequence can be had without the rest.
    """

    def __init__(self, num_images: int, seed: int):
        """
        Args:
            num_images (`int`): Images of the source.
            seed (`int`): Seed of the run.
        """
        self.num_images, self.seed = num_images, seed
        self._permutations: dict[int, np.ndarray] = {}

    def __getitem__(self, samples: slice) -> list[tuple[int, int]]:
        """Returns (epoch, index) of the samples `start` to `stop` of the run."""
        positions = (divmod(sample, self.num_images) for sample in range(samples.start, samples.stop))
        return [(epoch, int(self._permutation(epoch)[place])) for epoch, place in positions]

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
        return self._permutations[epoch]


class StepBatchSampler(Sampler):
    """Batches of one process, from any global step on.

    The batch of a step is a slice of the [`SampleOrder`] that does not depend on the number of processes; each process
    takes its share of it, in as many pieces as gradients are accumulated over.
    """

    def __init__(
        self,
        order: SampleOrder,
        effective_batch_size: int,
        per_device_batch_size: int,
        steps: range,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        """
        Args:
            order ([`SampleOrder`]): The samples of the run.
            effective_batch_size (`int`): Images of an optimizer step over all processes, divisible by
                `per_device_batch_size * num_processes`.
            per_device_batch_size (`int`): Images of one forward pass.
            steps (`range`): The global steps to go through.
            process_index, num_processes (`int`, *optional*): Which share to take.

        Raises:
            ValueError: If the sizes do not divide.
        """
        if effective_batch_size % (per_device_batch_size * num_processes):
            raise ValueError(
                f"The effective batch size {effective_batch_size} is not a multiple of {per_device_batch_size} images "
                f"per device x {num_processes} process(es) = {per_device_batch_size * num_processes}. Change one."
            )
        self.order, self.steps, self.process_index = order, steps, process_index
        self.effective_batch_size, self.per_device_batch_size = effective_batch_size, per_device_batch_size
        self.share = effective_batch_size // num_processes

    def __len__(self) -> int:
        return len(self.steps) * self.share // self.per_device_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            start = step * self.effective_batch_size + self.process_index * self.share
            for first in range(start, start + self.share, self.per_device_batch_size):
                yield self.order[first : first + self.per_device_batch_size]


__all__ = [
    "EvaluationDataset",
    "FolderImages",
    "ImageSource",
    "PretrainingDataset",
    "SampleOrder",
    "StepBatchSampler",
    "open_images",
]
