# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Makes samples of images: crops to pre-train on, images to evaluate, labelled crops; and their batches."""

import itertools
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers.utils import logging

from ..modeling.image_processing_mae import MAEImageProcessor, image_to_tensor, to_byte_range
from .decoding import apply_orientation, crop_and_resize, jitter_colors, oriented_size, random_crop_box, read_image
from .sampling import spread_indices
from .sources import ImageSource

logger = logging.get_logger(__name__)


class PretrainingDataset(Dataset):
    """Random crops with the noise that their masks are made of, each a function of (seed, epoch, index, view)."""

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
    ):
        """
        Args:
            images ([`ImageSource`]): The images.
            image_size (`(height, width)`): Pixels of the crops.
            num_patches (`int`): Patches of a crop, the length of the noise.
            num_channels (`int`, *optional*, defaults to 3): Channels of the crops.
            crop_scale (`(low, high)`, *optional*, defaults to `(0.2, 1.0)`): Share of the area that a crop may have.
            horizontal_flip (`bool`, *optional*, defaults to `True`): Whether half of the crops are mirrored.
            color_jitter (`float`, *optional*, defaults to 0.0): Strength of [`jitter_colors`], in [0, 1].
            seed (`int`, *optional*, defaults to 0): Seed of the run.
        """
        self.images, self.seed, self.num_patches = images, seed, num_patches
        self.image_size, self.num_channels = image_size, num_channels
        self.crop_scale, self.horizontal_flip, self.color_jitter = crop_scale, horizontal_flip, color_jitter

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: tuple[int, int, int]) -> dict:
        """Returns one sample, see [`PretrainingDataset.__getitems__`]."""
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[tuple[int, int, int]]) -> list[dict]:
        """Returns the samples (epoch, index, view); consecutive views of an image share one decode.

        Each has `pixel_values` (channels, height, width), uint8; `noise` (num_patches,), float32 in [0, 1); `sample`
        (epoch, index, view), `crop_box` (top, left, height, width) and `flipped`, int64; and `unreadable`, a dictionary
        of pictures that can't be read and the reasons. Such a picture is replaced by another one that can be.
        """
        results = []
        for (epoch, index), group in itertools.groupby(samples, key=lambda sample: sample[:2]):
            views = [view for _, _, view in group]

            def load(image, key=(self.seed, epoch, index), views=views):
                image = apply_orientation(image)
                rngs = [np.random.default_rng([*key, view]) for view in views]
                size = oriented_size(image, self.num_channels)
                boxes = [random_crop_box(size, self.image_size, self.crop_scale, rng) for rng in rngs]
                return rngs, boxes, crop_and_resize(image, boxes, self.image_size, self.num_channels)

            (rngs, boxes, crops), _, unreadable = read_image(self.images, index, load)
            for view, rng, box, crop in zip(views, rngs, boxes, crops, strict=True):
                flipped = self.horizontal_flip and rng.random() < 0.5
                # Noise without ties, whose order would depend on the device and the batch.
                noise = rng.permutation(self.num_patches).astype(np.float32) / self.num_patches
                crop = crop.flip(-1) if flipped else crop
                results.append(
                    {
                        "pixel_values": jitter_colors(crop, self.color_jitter, rng) if self.color_jitter else crop,
                        "noise": torch.from_numpy(noise),
                        "sample": torch.tensor([epoch, index, view]),
                        "crop_box": torch.tensor(box),
                        "flipped": torch.tensor(int(flipped)),
                        "unreadable": unreadable,
                    }
                )
        return results


class EvaluationDataset(Dataset):
    """Images through the image processor, as at inference, with their labels."""

    def __init__(self, images: ImageSource, image_processor: MAEImageProcessor, max_images: int | None = None):
        """
        Args:
            images ([`ImageSource`]): The images.
            image_processor ([`MAEImageProcessor`]): What makes pixel values of them.
            max_images (`int`, *optional*): Take no more than so many, see [`spread_indices`].
        """
        self.indices = spread_indices(images, max_images)
        self.images, self.image_processor = images, image_processor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict:
        """Returns `pixel_values` (channels, height, width), float32, `label`, -1 if there is none, and `position`.

        A picture that can't be read is replaced by another one that can be, and named in the log.
        """

        def load(image):
            image = PIL.ImageOps.exif_transpose(image) if isinstance(image, PIL.Image.Image) else image
            return self.image_processor(image, return_tensors="pt").pixel_values[0]

        pixel_values, index, unreadable = read_image(self.images, int(self.indices[position]), load)
        for name, reason in unreadable.items():
            logger.warning_once(f"Evaluation skipped {name}, which can't be read: {reason}")
        label = -1 if self.images.labels is None else int(self.images.labels[index])
        return {"pixel_values": pixel_values, "label": label, "position": position}


class ClassificationDataset(Dataset):
    """Random crops with their labels, for fine-tuning and probing. Their randomness is torch's, as Trainer seeds it."""

    def __init__(
        self,
        images: ImageSource,
        image_size: tuple[int, int],
        num_labels: int,
        num_channels: int = 3,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        horizontal_flip: bool = True,
        transform: Callable | None = None,
    ):
        """
        Args:
            images ([`ImageSource`]): Labelled images.
            image_size (`(height, width)`): Pixels of the crops.
            num_labels (`int`): Classes; the labels must be below.
            num_channels (`int`, *optional*, defaults to 3): Channels of the crops.
            crop_scale (`(low, high)`, *optional*, defaults to `(0.08, 1.0)`): Share of the area that a crop may have.
                Source: He et al. 2021, Tables 9 and 10 (RandomResizedCrop's defaults).
            horizontal_flip (`bool`, *optional*, defaults to `True`): Whether half of the crops are mirrored.
            transform (`Callable`, *optional*): Takes and returns a crop (channels, height, width), values in [0, 255].

        Raises:
            ValueError: If images have no label, or one that is not in [0, num_labels).
        """
        check_labels(images, num_labels)
        self.images, self.image_size, self.num_channels = images, image_size, num_channels
        self.crop_scale, self.horizontal_flip, self.transform = crop_scale, horizontal_flip, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        """Returns `pixel_values` (channels, height, width), values in [0, 255], and `label`.

        A picture that can't be read is replaced by another one that can be, and named in the log.
        """
        rng = np.random.default_rng(torch.randint(2**62, ()).item())

        def load(image):
            image = apply_orientation(image)
            box = random_crop_box(oriented_size(image, self.num_channels), self.image_size, self.crop_scale, rng)
            return crop_and_resize(image, [box], self.image_size, self.num_channels)[0]

        crop, index, unreadable = read_image(self.images, index, load)
        for name, reason in unreadable.items():
            logger.warning_once(f"Skipped {name}, which can't be read: {reason}")
        if self.horizontal_flip and rng.random() < 0.5:
            crop = crop.flip(-1)
        if self.transform is not None:
            crop = self.transform(crop)
        return {"pixel_values": crop, "label": int(self.images.labels[index])}


def class_names(images: ImageSource) -> list[str]:
    """Returns what the classes of a source are called: their numbers if they have no names.

    Raises:
        ValueError: If images have no labels.
    """
    if images.labels is None:
        raise ValueError(
            f"{images.name} has no labels. Put the images of a folder into sub-folders named by class; give tar shards "
            ".cls files, parquet files and data sets a column of class labels."
        )
    return images.label_names or [str(label) for label in range(int(images.labels.max()) + 1)]


def check_labels(images: ImageSource, num_labels: int):
    """Raises `ValueError` if images have no labels, or some that are not in [0, num_labels)."""
    class_names(images)  # raises if there are no labels at all
    wrong = np.flatnonzero((images.labels < 0) | (images.labels >= num_labels))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(images)} labels are not in [0, {num_labels}), first {images.labels[wrong[0]]} of "
            f"{images.describe(wrong[0])}. Leave these images out, or mend the labels: they count from 0."
        )


def align_labels(images: ImageSource, label_names: list[str]):
    """Numbers the classes of a source as others do, by their names: a split may lack a class.

    Args:
        images ([`ImageSource`]): Its `labels` and `label_names` are changed. Without names they are left as they are.
        label_names (`list[str]`): Names by the numbers wanted.

    Raises:
        ValueError: If it has images of a class that is not among them.
    """
    if images.label_names is None or images.label_names == label_names:
        return
    present = {images.label_names[label] for label in np.unique(images.labels)}
    if unknown := sorted(present.difference(label_names)):
        raise ValueError(
            f"{images.name} has the classes {', '.join(unknown)}, which are not among the {len(label_names)} of the "
            f"model or the training images: {', '.join(label_names[:20])}{' ...' if len(label_names) > 20 else ''}."
        )
    numbers = np.array([label_names.index(name) if name in label_names else -1 for name in images.label_names])
    images.labels, images.label_names = numbers[images.labels], list(label_names)


def collate_labelled(samples: list[dict]) -> dict[str, torch.Tensor]:
    """Stacks samples of a [`ClassificationDataset`] or [`EvaluationDataset`] to `pixel_values` and `labels`."""
    pixel_values = [sample["pixel_values"] for sample in samples]
    if len({pixels.dtype for pixels in pixel_values}) > 1:  # some have more than 8 bits
        pixel_values = [pixels.float() for pixels in pixel_values]
    labels = torch.tensor([sample["label"] for sample in samples])
    return {"pixel_values": torch.stack(pixel_values), "labels": labels}


def collate(samples: list[dict]) -> dict:
    """Stacks samples of a [`PretrainingDataset`]; float32 pixel values if some image has more than 8 bits."""
    pixel_values = [sample["pixel_values"] for sample in samples]
    dtype = torch.float32 if any(pixels.is_floating_point() for pixels in pixel_values) else torch.uint8
    names = [name for name in samples[0] if name not in ("pixel_values", "unreadable")]
    return {
        # In a loader's worker this stacks into shared memory at once.
        "pixel_values": default_collate([pixels.to(dtype) for pixels in pixel_values]),
        **{name: default_collate([sample[name] for sample in samples]) for name in names},
        "unreadable": {name: reason for sample in samples for name, reason in sample["unreadable"].items()},
    }


def channel_statistics(
    images: ImageSource, num_channels: int, max_images: int = 10000, num_workers: int = 0
) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation per channel of a source, for values in [0, 1].

    Every image has the same weight, as in training, whatever its size.

    Args:
        images ([`ImageSource`]): The images. Those that can't be read are passed over.
        num_channels (`int`): Channels to convert them to, any number.
        max_images (`int`, *optional*, defaults to 10000): Look at no more than so many, see [`spread_indices`].
        num_workers (`int`, *optional*, defaults to 0): Processes that read.
    """
    loader = DataLoader(
        _Moments(images, num_channels, max_images), batch_size=32, num_workers=num_workers, collate_fn=torch.stack
    )
    moments = torch.cat(list(loader)).mean(dim=0)  # (2, C)
    mean, std = moments[0], (moments[1] - moments[0].square()).clamp(min=0).sqrt()
    if (std == 0).any():
        raise ValueError(
            f"Channel {int(std.argmin())} of {images.name} has the same value everywhere and can't be normalised. "
            "Drop it, or give --image_mean and --image_std."
        )
    return [round(value, 6) for value in mean.tolist()], [round(value, 6) for value in std.tolist()]


class _Moments(Dataset):
    """Means of the values and of their squares, per channel (2, C), of single images."""

    def __init__(self, images: ImageSource, num_channels: int, max_images: int):
        self.images, self.num_channels, self.indices = images, num_channels, spread_indices(images, max_images)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> torch.Tensor:
        def load(image):
            pixels = to_byte_range(image_to_tensor(image, self.num_channels)).double().flatten(1) / 255
            return torch.stack([pixels.mean(dim=1), pixels.square().mean(dim=1)])

        return read_image(self.images, int(self.indices[position]), load)[0]


__all__ = [
    "ClassificationDataset",
    "EvaluationDataset",
    "PretrainingDataset",
    "align_labels",
    "channel_statistics",
    "check_labels",
    "class_names",
    "collate",
    "collate_labelled",
]
