# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Turns images into samples and batches: random crops to pre-train on, images to evaluate on, labelled crops."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers.utils import logging

from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.reading_mae import (
    DEFAULT_SETTINGS,
    ReadingSettings,
    as_tensor,
    fill_missing,
    read_stored,
    to_byte_range,
)
from .decoding import crop_and_resize, decode_unless_jpeg, jitter_colors, oriented_size, random_crop_box, read_image
from .image_source import ImageSource
from .labels import check_labels
from .sampling import spread_indices

logger = logging.get_logger(__name__)

NOT_COUNTED = -100  # label of an image that another stands in for


class PretrainingDataset(Dataset):
    """Yields random crops and the noise of their masks, each a function of (seed, epoch, index, view).

    A sample's index is (epoch, index, view), which [`StepBatchSampler`] yields. An integer index, as the samplers of
    PyTorch and of transformers' `Trainer` yield it, stands for (`epoch`, index, 0), see `set_epoch`.
    """

    def __init__(
        self,
        images: ImageSource,
        image_size: tuple[int, int],
        num_patches: int,
        num_channels: int = 3,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        horizontal_flip: bool = True,
        color_jitter: float = 0.0,
        seed: int = 0,
        reading: ReadingSettings = DEFAULT_SETTINGS,
        vertical_flip: bool = False,
        rotate90: bool = False,
        num_layers: int = 0,
        replace_unsuitable: bool = False,
    ):
        """
        Args:
            images ([`ImageSource`]): The images.
            image_size (`(height, width)`): Pixels of the crops.
            num_patches (`int`): Patches of a crop, which is the length of the noise.
            num_channels (`int`, *optional*, defaults to 3): Channels of the crops.
            crop_scale (`(low, high)`, *optional*, defaults to `(0.2, 1.0)`): Range of a crop's share of the image's
                area, in (0, 1].
            horizontal_flip (`bool`, *optional*, defaults to `True`): Whether to mirror half of the crops.
            color_jitter (`float`, *optional*, defaults to 0.0): Strength of [`jitter_colors`], in [0, 1].
            seed (`int`, *optional*, defaults to 0): Seed of the run.
            reading ([`ReadingSettings`], *optional*): How to read files, `image_processor.reading`.
            vertical_flip (`bool`, *optional*, defaults to `False`): Whether to turn half of the crops upside down.
            rotate90 (`bool`, *optional*, defaults to `False`): Whether to turn crops by multiples of 90 degrees.
            num_layers (`int`, *optional*, defaults to 0): Blocks of an encoder with drop path, for which
                `drop_path_noise` is drawn. 0: none is.
            replace_unsuitable (`bool`, *optional*, defaults to `False`): Replace images that do not suit the settings
                like unreadable ones, see [`try_to_read`].

        Raises:
            ValueError: If crops are to be turned by 90 degrees and are not square.
        """
        if rotate90 and image_size[0] != image_size[1]:
            raise ValueError(f"`rotate90` needs square crops, these are {image_size[0]} x {image_size[1]} pixels.")
        self.images, self.reading, self.replace_unsuitable = images, reading, replace_unsuitable
        self.image_size, self.num_patches, self.num_channels = image_size, num_patches, num_channels
        self.crop_scale, self.color_jitter, self.num_layers = crop_scale, color_jitter, num_layers
        self.horizontal_flip, self.vertical_flip, self.rotate90 = horizontal_flip, vertical_flip, rotate90
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int):
        """Sets the epoch of integer indices. Accelerate's loaders, and so `Trainer`, call it when an epoch begins."""
        self.epoch = epoch

    def __getitem__(self, sample: int | tuple[int, int, int]) -> dict:
        """Returns one sample, see [`PretrainingDataset.__getitems__`]."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[int | tuple[int, int, int]]) -> list[dict]:
        """Returns a list of samples. Consecutive views of an image are cropped from one decoded picture.

        Args:
            samples (`list` of `(epoch, index, view)` or of `int`): Which samples.

        Returns:
            `list[dict]`: Of each sample `pixel_values` (channels, height, width), uint8, or float32 in [0, 255] for
            images of more than 8 bits; `noise` (num_patches,), float32 in [0, 1); `sample` (epoch, index, view),
            `crop_box` (top, left, height, width) and `flipped`, int64; and `unreadable`, a dictionary from the names
            of unreadable pictures to the reasons. An unreadable picture is replaced by a readable one. If pixels are
            no-data, they are filled, and `valid` (height, width), bool, is False there. With `num_layers` there is
            `drop_path_noise` (num_layers, 2), float32 in [0, 1), see [`MAEModel.forward`].
        """
        plain = [sample for sample in samples if not isinstance(sample, tuple | list)]
        triples = [sample if isinstance(sample, tuple | list) else (self.epoch, sample, 0) for sample in samples]
        results = []
        for (epoch, index), group in itertools.groupby(triples, key=lambda sample: tuple(sample[:2])):
            results.extend(self._views(epoch, index, [view for _, _, view in group]))
        if plain:  # Trainer keeps only what the model takes as an argument, so nobody else would report them
            warn_of_unreadable({name: reason for sample in results for name, reason in sample["unreadable"].items()})
        return results

    def _views(self, epoch: int, index: int, views: list[int]) -> list[dict]:
        """Returns the samples (epoch, index, view) of one image."""

        def load(image):
            rngs = [np.random.default_rng([self.seed, epoch, index, view]) for view in views]
            image = decode_unless_jpeg(image, self.num_channels, self.reading)
            size = oriented_size(image)
            boxes = [random_crop_box(size, self.image_size, self.crop_scale, rng) for rng in rngs]
            return rngs, boxes, crop_and_resize(image, boxes, self.image_size, self.num_channels, self.reading)

        (rngs, boxes, crops), _, unreadable = read_image(self.images, index, load, self.replace_unsuitable)
        samples = []
        for view, rng, box, crop in zip(views, rngs, boxes, crops, strict=True):
            flipped = self.horizontal_flip and rng.random() < 0.5
            # A permutation has no ties, whose order would depend on the device and the batch.
            noise = rng.permutation(self.num_patches).astype(np.float32) / self.num_patches
            crop = crop.flip(-1) if flipped else crop
            if self.vertical_flip and rng.random() < 0.5:
                crop = crop.flip(-2)
            if self.rotate90:
                crop = crop.rot90(int(rng.integers(4)), (-2, -1))
            crop, missing = fill_missing(crop, self.reading)
            crop = jitter_colors(crop, self.color_jitter, rng) if self.color_jitter else crop
            sample = {
                "pixel_values": crop,
                "noise": torch.from_numpy(noise),
                "sample": torch.tensor([epoch, index, view]),
                "crop_box": torch.tensor(box),
                "flipped": torch.tensor(int(flipped)),
                "unreadable": unreadable,
            }
            if missing is not None:
                sample["valid"] = ~missing
            if self.num_layers:  # drawn last, so that crops and masks are the same with and without drop path
                sample["drop_path_noise"] = torch.from_numpy(rng.random((self.num_layers, 2), dtype=np.float32))
            samples.append(sample)
        return samples


class PretrainingCollator:
    """Makes batches of a [`PretrainingDataset`] for transformers' `Trainer`, which feeds the model with them directly.

    The package's own training loop uses [`collate`] instead and normalises uint8 pixels on the device, which transfers
    a quarter of the bytes.
    """

    def __init__(self, image_processor: MAEImageProcessor):
        """
        Args:
            image_processor ([`MAEImageProcessor`]): Normalises the pixels.
        """
        self.image_processor = image_processor

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        """Returns the arguments of the model: normalised `pixel_values` and the others that the samples have."""
        pixel_values = torch.stack([sample["pixel_values"].float() for sample in samples])
        noise = [name for name in ("noise", "drop_path_noise") if name in samples[0]]
        return {
            "pixel_values": self.image_processor.rescale_and_normalize(pixel_values),
            **{name: torch.stack([sample[name] for sample in samples]) for name in noise},
            **_stack_valid(samples),
        }


def _stack_pixels(samples: list[dict]) -> torch.Tensor:
    """Returns `pixel_values` (batch, channels, height, width): uint8, or float32 if an image has more than 8 bits."""
    pixel_values = [sample["pixel_values"] for sample in samples]
    if any(pixels.is_floating_point() for pixels in pixel_values):
        pixel_values = [pixels.float() for pixels in pixel_values]
    return default_collate(pixel_values)  # which stacks directly into shared memory in a loader worker


def _stack_valid(samples: list[dict]) -> dict[str, torch.Tensor]:
    """Returns `valid` (batch, height, width) if any sample has some no-data, else nothing."""
    if not any("valid" in sample for sample in samples):
        return {}
    everywhere = torch.ones(samples[0]["pixel_values"].shape[-2:], dtype=torch.bool)
    return {"valid": torch.stack([sample.get("valid", everywhere) for sample in samples])}


class EvaluationDataset(Dataset):
    """Yields images as the image processor makes them at inference, with their labels."""

    def __init__(
        self,
        images: ImageSource,
        image_processor: MAEImageProcessor,
        max_images: int | None = None,
        replace_unsuitable: bool = False,
    ):
        """
        Args:
            images ([`ImageSource`]): The images.
            image_processor ([`MAEImageProcessor`]): Makes pixel values of the images.
            max_images (`int`, *optional*): Maximum number of images, see [`spread_indices`]. Default: all.
            replace_unsuitable (`bool`, *optional*, defaults to `False`): Replace images that do not suit the settings
                like unreadable ones, see [`try_to_read`].
        """
        self.indices = spread_indices(images, max_images)
        self.images, self.image_processor, self.replace_unsuitable = images, image_processor, replace_unsuitable

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict:
        """Returns `pixel_values` (channels, height, width), float32, `label` (-1 if there is none) and `position`.

        Where the image shows no-data there is `valid` (height, width), too, bool. An unreadable picture is replaced by
        a readable one and named in the log. Its label is then `NOT_COUNTED`, or NaN among labels that are no integers,
        so that no figure of labels counts the other one twice.
        """

        def load(image):
            features = self.image_processor(image, return_tensors="pt", return_valid=True)
            return features.pixel_values[0], features.valid[0]

        place = int(self.indices[position])
        (pixel_values, valid), index, unreadable = read_image(self.images, place, load, self.replace_unsuitable)
        warn_of_unreadable(unreadable)
        label = torch.tensor(-1) if self.images.labels is None else torch.as_tensor(self.images.labels[index])
        if index != place and self.images.labels is not None:
            label = torch.full_like(label, math.nan if label.is_floating_point() else NOT_COUNTED)
        sample = {"pixel_values": pixel_values, "label": label, "position": position}
        return sample if valid.all() else {**sample, "valid": valid}


class ClassificationDataset(Dataset):
    """Yields random crops with their labels, for fine-tuning and probing.

    The randomness comes from torch's generator, which `Trainer` seeds.
    """

    def __init__(
        self,
        images: ImageSource,
        image_size: tuple[int, int],
        num_labels: int,
        num_channels: int = 3,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        horizontal_flip: bool = True,
        transform: Callable | None = None,
        reading: ReadingSettings = DEFAULT_SETTINGS,
    ):
        """
        Args:
            images ([`ImageSource`]): Labelled images.
            image_size (`(height, width)`): Pixels of the crops.
            num_labels (`int`): Number of classes. All labels must be smaller.
            num_channels (`int`, *optional*, defaults to 3): Channels of the crops.
            crop_scale (`(low, high)`, *optional*, defaults to `(0.08, 1.0)`): Range of a crop's share of the image's
                area. Source: He et al. 2021, Tables 9 and 10 (RandomResizedCrop's defaults).
            horizontal_flip (`bool`, *optional*, defaults to `True`): Whether to mirror half of the crops.
            transform (`Callable`, *optional*): Takes and returns a crop (channels, height, width), values in [0, 255].
            reading ([`ReadingSettings`], *optional*): How to read files, `image_processor.reading`.

        Raises:
            ValueError: If an image has no label, or one outside [0, num_labels).
        """
        check_labels(images, num_labels)
        self.images, self.image_size, self.num_channels = images, image_size, num_channels
        self.crop_scale, self.horizontal_flip, self.transform = crop_scale, horizontal_flip, transform
        self.reading = reading

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        """Returns `pixel_values` (channels, height, width), values in [0, 255], and `label`.

        An unreadable picture is replaced by a readable one and named in the log.
        """
        rng = np.random.default_rng(torch.randint(2**62, ()).item())

        def load(image):
            image = decode_unless_jpeg(image, self.num_channels, self.reading)
            box = random_crop_box(oriented_size(image), self.image_size, self.crop_scale, rng)
            return crop_and_resize(image, [box], self.image_size, self.num_channels, self.reading)[0]

        crop, index, unreadable = read_image(self.images, index, load)
        warn_of_unreadable(unreadable)
        if self.horizontal_flip and rng.random() < 0.5:
            crop = crop.flip(-1)
        crop, _ = fill_missing(crop, self.reading)
        if self.transform is not None:
            crop = self.transform(crop)
        return {"pixel_values": crop, "label": torch.as_tensor(self.images.labels[index])}


def warn_of_unreadable(unreadable: dict[str, str]):
    """Names pictures that can't be read in the log, each once, by their names and the reasons."""
    for name, reason in unreadable.items():
        logger.warning_once(f"Skipped {name}, which can't be read: {reason}")


def are_counted(labels: torch.Tensor) -> torch.Tensor:
    """Returns of which images of an [`EvaluationDataset`] the labels are their own, bool `(images,)`."""
    missing = labels.isnan() if labels.is_floating_point() else labels == NOT_COUNTED
    return ~missing.reshape(len(labels), -1).any(dim=1)


def collate_labelled(samples: list[dict]) -> dict[str, torch.Tensor]:
    """Stacks samples of a [`ClassificationDataset`] or [`EvaluationDataset`] into `pixel_values` and `labels`."""
    return {"pixel_values": _stack_pixels(samples), "labels": default_collate([sample["label"] for sample in samples])}


def collate_evaluation(samples: list[dict]) -> dict[str, torch.Tensor]:
    """Stacks samples of an [`EvaluationDataset`], with `valid` if one of the images has some no-data."""
    names = ("pixel_values", "label", "position")
    return {**{name: default_collate([sample[name] for sample in samples]) for name in names}, **_stack_valid(samples)}


def collate(samples: list[dict]) -> dict:
    """Stacks samples of a [`PretrainingDataset`]; pixel values are float32 if any image has more than 8 bits."""
    names = [name for name in samples[0] if name not in ("pixel_values", "unreadable", "valid")]
    return {
        "pixel_values": _stack_pixels(samples),
        **{name: default_collate([sample[name] for sample in samples]) for name in names},
        **_stack_valid(samples),
        "unreadable": {name: reason for sample in samples for name, reason in sample["unreadable"].items()},
    }


def channel_statistics(
    images: ImageSource,
    num_channels: int,
    max_images: int = 10000,
    num_workers: int = 0,
    reading: ReadingSettings = DEFAULT_SETTINGS,
) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation per channel of a source, for values in [0, 1].

    Every image has the same weight, whatever its size, as in training.

    Args:
        images ([`ImageSource`]): The images. Unreadable ones are replaced.
        num_channels (`int`): Channels of the model.
        max_images (`int`, *optional*, defaults to 10000): Maximum number of images read, see [`spread_indices`].
        num_workers (`int`, *optional*, defaults to 0): Number of processes that read.
        reading ([`ReadingSettings`], *optional*): How to read files, `image_processor.reading`. No-data is left out,
            and so is what is fully transparent.

    Raises:
        ValueError: If a channel is constant, or nothing but no-data.
    """
    loader = DataLoader(
        _Moments(images, num_channels, max_images, reading),
        batch_size=32,
        num_workers=num_workers,
        collate_fn=torch.stack,
    )
    moments = torch.cat(list(loader)).nanmean(dim=0)  # (2, C)
    if moments.isnan().any():
        raise ValueError(f"A channel of {images.name} holds nothing but no-data in all images that were looked at.")
    mean, std = moments[0], (moments[1] - moments[0].square()).clamp(min=0).sqrt()
    if (std < 1e-6).any():  # what is left of rounding, and 0 where it is written down
        raise ValueError(
            f"Channel {int(std.argmin()) + 1} of {images.name} has the same value everywhere and can't be normalised. "
            "Remove the channel, or give `image_mean` and `image_std`."
        )
    return [round(value, 6) for value in mean.tolist()], [round(value, 6) for value in std.tolist()]


class _Moments(Dataset):
    """Yields of each image the mean of its values and of their squares, per channel: (2, C)."""

    def __init__(self, images: ImageSource, num_channels: int, max_images: int, reading: ReadingSettings):
        self.reading = reading
        self.images, self.num_channels, self.indices = images, num_channels, spread_indices(images, max_images)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> torch.Tensor:
        def load(image):
            stored = read_stored(image, self.num_channels, self.reading)
            pixels = to_byte_range(stored, self.reading).double() / 255
            if stored.transparent is not None:  # the background is no value of the data
                pixels = pixels.masked_fill(as_tensor(stored.transparent), torch.nan)
            pixels = pixels.flatten(1)
            return torch.stack([pixels.nanmean(dim=1), pixels.square().nanmean(dim=1)])

        return read_image(self.images, int(self.indices[position]), load)[0]


__all__ = [
    "NOT_COUNTED",
    "ClassificationDataset",
    "EvaluationDataset",
    "PretrainingCollator",
    "PretrainingDataset",
    "are_counted",
    "channel_statistics",
    "collate",
    "collate_evaluation",
    "collate_labelled",
    "warn_of_unreadable",
]
