# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Decoding, random crops, and the order of samples, which is a function of the seed and the global step alone."""

import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from transformers.utils import logging

from .image_processing_mae import MAEImageProcessor, image_to_tensor, resize, to_byte_range
from .sources import ImageSource

try:  # a third less time than PIL's decoder, the same pixels
    import simplejpeg
except ImportError:
    simplejpeg = None

logger = logging.get_logger(__name__)

_JPEG = ("JPEG", "MPO")  # MPO: what phones write, a JPEG with more pictures behind it
_EXIF_ORIENTATION = 0x0112
# (swap rows and columns, then flip rows, flip columns) of each orientation. Source: Exif 2.3, section 4.6.4.
_ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_ATTEMPTS = 10


def decoder_name() -> str:
    """Returns what JPEGs are decoded with: `simplejpeg` where it is installed, else `PIL`."""
    return "PIL" if simplejpeg is None else "simplejpeg"


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_image(images: ImageSource, index: int, load: Callable) -> tuple[object, int, dict[str, str]]:
    """Reads an image, or in its place another one that can be read, always the same.

    Args:
        images ([`ImageSource`]): The images.
        index (`int`): Which one.
        load (`Callable`): Makes of an opened image what is wanted.

    Returns:
        `(result, index, unreadable)`: What `load` gave, of which image, and the names of the images tried before that
        could not be read, with the reasons.

    Raises:
        OSError: If none of ten images, from all over the source, can be read.
    """
    unreadable, attempts = {}, min(_ATTEMPTS, len(images))
    stride = max(int(len(images) * 0.618), 1)  # far away: broken files often lie beside each other
    for attempt in range(attempts):
        candidate = (index + attempt * stride) % len(images)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PIL about what it mends, in every epoch anew
                return load(images[candidate]), candidate, unreadable
        except Exception as error:  # decoders raise what they like for broken files: struct.error, SyntaxError, ...
            unreadable[images.describe(candidate)] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    name, reason = list(unreadable.items())[-1]
    raise OSError(
        f"None of {attempts} images tried could be read. The last one is {name}: {reason}. Remove or repair the "
        "files; if they are fine, their number of channels or their type may not be what the model is set to."
    )


def spread_indices(images: ImageSource, count: int | None = None) -> np.ndarray:
    """Returns indices of at most `count` images, evenly spaced; of sources with blocks, whole blocks that are."""
    if count is None or count >= len(images):
        return np.arange(len(images))
    if images.blocks is None:
        return np.arange(count) * len(images) // count
    # One image of each block would read everything for little.
    num_blocks = min(math.ceil(count / images.blocks.mean()), len(images.blocks))
    chosen = np.arange(num_blocks) * len(images.blocks) // num_blocks
    starts = np.cumsum(images.blocks) - images.blocks
    return np.concatenate([starts[b] + np.arange(images.blocks[b]) for b in chosen])[:count]


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
    crop_height, crop_width = max(min(height, round(width / aspect)), 1), max(min(width, round(height * aspect)), 1)
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def upright(image: PIL.Image.Image | np.ndarray) -> PIL.Image.Image | np.ndarray:
    """Returns a picture turned as its EXIF orientation says; a JPEG as it came: [`crop_and_resize`] turns its crops."""
    if isinstance(image, np.ndarray) or image.format in _JPEG:
        return image
    return PIL.ImageOps.exif_transpose(image)


def image_size(image: PIL.Image.Image | np.ndarray, num_channels: int) -> tuple[int, int]:
    """Returns (height, width) of an image as it is to be seen, after its EXIF orientation."""
    if isinstance(image, np.ndarray):
        return tuple(image_to_tensor(image, num_channels).shape[1:])
    swap, *_ = _orientation(image)
    return image.size if swap else image.size[::-1]


def crop_and_resize(
    image: PIL.Image.Image | np.ndarray,
    boxes: list[tuple[int, int, int, int]],
    target: tuple[int, int],
    num_channels: int,
) -> list[torch.Tensor]:
    """Returns crops of one decode at the size of the model, bicubic and antialiased, each (channels, height, width).

    A JPEG is decoded at a half, a quarter or an eighth of its size where the smallest crop allows, and its orientation
    is applied to the crops, not to the whole picture.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): Of any mode, freshly opened, see [`upright`].
        boxes (`list` of `(top, left, height, width)`): In pixels of the image as it is to be seen, see [`image_size`].
        target (`(height, width)`): Pixels wanted.
        num_channels (`int`): Channels wanted; see [`image_to_tensor`].

    Returns:
        `list[torch.Tensor]`: uint8, or float32 in [0, 255] for images of more than 8 bits.
    """
    swap, flip_rows, flip_columns = _orientation(image)
    height, width = image_size(image, num_channels)
    stored = []  # the boxes in the picture as it is stored
    for top, left, crop_height, crop_width in boxes:
        top = height - top - crop_height if flip_rows else top
        left = width - left - crop_width if flip_columns else left
        stored.append((left, top, crop_width, crop_height) if swap else (top, left, crop_height, crop_width))
    if swap:
        target, (height, width) = target[::-1], (width, height)
    pixels = _decode(image, stored, target, num_channels)
    y, x = pixels.shape[1] / height, pixels.shape[2] / width  # 1 unless decoded at reduced size
    flips = [dim for dim, flip in ((-2, flip_rows), (-1, flip_columns)) if flip]
    crops = []
    for top, left, crop_height, crop_width in stored:
        rows = slice(round(top * y), max(round((top + crop_height) * y), round(top * y) + 1))
        columns = slice(round(left * x), max(round((left + crop_width) * x), round(left * x) + 1))
        crop = resize(to_byte_range(pixels[:, rows, columns]), target).clamp(0, 255)
        crop = crop.transpose(-2, -1) if swap else crop
        crops.append(crop.flip(flips) if flips else crop)
    return crops


def jitter_colors(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Changes brightness, contrast and saturation of a picture at random; of other than three channels no saturation.

    Not in the paper's recipe: He et al. 2021, Table 1e, find that it hurts.

    Args:
        image (`torch.Tensor` of shape `(channels, height, width)`): Values in [0, 255]; the type is kept.
        strength (`float`): Each factor is uniform in [1 - strength, 1 + strength]; at most 1.
        rng (`np.random.Generator`): The source of randomness.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    # Luma: ITU-R BT.601, section 2.5.1.
    weights = torch.tensor([0.299, 0.587, 0.114] if len(image) == 3 else [1 / len(image)] * len(image))[:, None, None]
    pixels = image.float() * brightness
    pixels = torch.lerp((pixels * weights).sum(dim=0).mean(), pixels, float(contrast))
    if len(image) == 3:
        pixels = torch.lerp((pixels * weights).sum(dim=0), pixels, float(saturation))
    pixels = pixels.clamp(0, 255)
    return pixels if image.is_floating_point() else pixels.round().to(image.dtype)


def _orientation(image: PIL.Image.Image | np.ndarray) -> tuple[bool, bool, bool]:
    jpeg = isinstance(image, PIL.Image.Image) and image.format in _JPEG
    return _ORIENTATIONS.get(image.getexif().get(_EXIF_ORIENTATION) if jpeg else None, (False, False, False))


def _decode(
    image: PIL.Image.Image | np.ndarray, boxes: list[tuple], target: tuple[int, int], num_channels: int
) -> torch.Tensor:
    """Returns (channels, height, width) of the whole picture, of a JPEG perhaps at reduced size."""
    if isinstance(image, np.ndarray):
        return image_to_tensor(image, num_channels)
    if image.format in _JPEG:
        smallest_height, smallest_width = (min(box[side] for box in boxes) for side in (2, 3))
        wanted = (image.width * target[1] / smallest_width, image.height * target[0] / smallest_height)
        image.draft(None, tuple(math.ceil(side) for side in wanted))
        if simplejpeg is not None and image.mode in ("L", "RGB"):
            # At the size that PIL would decode it to, which gives the same pixels.
            size = {"min_width": image.width, "min_height": image.height}
            image.fp.seek(0)
            try:
                array = simplejpeg.decode_jpeg(image.fp.read(), "GRAY" if image.mode == "L" else "RGB", **size)
            except ValueError:  # broken, or only unusual: PIL decides
                image.fp.seek(0)
            else:
                if array.shape[2] == num_channels:
                    return torch.from_numpy(array).permute(2, 0, 1)
                image = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    return image_to_tensor(image, num_channels)


# ----------------------------------------------------------------------------------------------------------------------
# Data sets


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
                image = upright(image)
                rngs = [np.random.default_rng([*key, view]) for view in views]
                size = image_size(image, self.num_channels)
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
            image = upright(image)
            box = random_crop_box(image_size(image, self.num_channels), self.image_size, self.crop_scale, rng)
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


# ----------------------------------------------------------------------------------------------------------------------
# Order


class SampleOrder:
    """The endless sequence of samples of a run: all images in one order, then in another, and so on.

    The order of an epoch is made from (seed, epoch), so any part of the sequence can be had without the rest, and no
    state of it need be saved. Sources that are read in blocks are shuffled block by block, such that each reader (a
    process, or a loader worker of one) needs few blocks at a time: see [`SampleOrder._by_blocks`].
    """

    def __init__(
        self, images: ImageSource | int, seed: int, views_per_image: int = 1, effective_batch_size: int | None = None
    ):
        """
        Args:
            images ([`ImageSource`] or `int`): The source, or how many images it has.
            seed (`int`): Seed of the run.
            views_per_image (`int`, *optional*, defaults to 1): Consecutive samples that are views of one image
                (repeated augmentation; Hoffer et al. 2019, arXiv 1901.09335).
            effective_batch_size (`int`, *optional*): Samples of a step. Needed for sources with blocks.
        """
        self.num_images = images if isinstance(images, int) else len(images)
        self.blocks = None if isinstance(images, int) else images.blocks
        self.seed, self.views_per_image, self.effective_batch_size = seed, views_per_image, effective_batch_size
        self._permutations: dict[int, np.ndarray] = {}

    def __getitem__(self, samples: slice) -> list[tuple[int, int, int]]:
        """Returns (epoch, index, view) of the samples `start` to `stop` of the run."""
        result = []
        for sample in range(samples.start, samples.stop):
            position, view = divmod(sample, self.views_per_image)
            epoch, place = divmod(position, self.num_images)
            result.append((epoch, int(self._permutation(epoch)[place]), view))
        return result

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            rng = np.random.default_rng([self.seed, epoch])
            blockwise = self.blocks is not None and len(self.blocks) > 1
            self._permutations[epoch] = self._by_blocks(epoch, rng) if blockwise else rng.permutation(self.num_images)
        return self._permutations[epoch]

    def _by_blocks(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """An order in which every place of a batch goes through shuffled blocks one after the other.

        A batch is cut into up to eight parts, and up to eight batches in a row take turns: that makes 64 lanes, of
        which each reads its own share of the blocks. A process owns parts and a worker turns, so with up to eight of
        each no two read the same block (but for those at the ends of lanes), while 64 blocks mix at any time.
        """
        starts = np.cumsum(self.blocks) - self.blocks
        shuffled = [starts[b] + rng.permutation(self.blocks[b]) for b in rng.permutation(len(self.blocks))]
        lanes = 2 ** int(math.log2(min(len(self.blocks), 64)))
        parts = 2 ** math.ceil(math.log2(lanes) / 2)
        first_view = (epoch * self.num_images + np.arange(self.num_images)) * self.views_per_image
        step, place = np.divmod(first_view, self.effective_batch_size)
        lane = step % (lanes // parts) * parts + place * parts // self.effective_batch_size
        order = np.empty(self.num_images, dtype=np.int64)
        order[np.argsort(lane, kind="stable")] = np.concatenate(shuffled)
        return order


def equal_piece(size: int, number: int, pieces: int) -> range:
    """Returns piece `number` of `range(size)`, cut into so many pieces that are equal to one item."""
    return range(size * number // pieces, size * (number + 1) // pieces)


class StepBatchSampler(Sampler):
    """Batches of one process, from any global step on.

    The samples of a step are a slice of the [`SampleOrder`] that does not depend on the number of processes. It is cut
    into equal pieces (to one sample), as many for each process as gradients are accumulated over.
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
            effective_batch_size (`int`): Samples of an optimizer step over all processes.
            per_device_batch_size (`int`): Samples of one forward pass at most.
            steps (`range`): The global steps to go through.
            process_index, num_processes (`int`, *optional*): Which share to take.

        Raises:
            ValueError: If there are fewer samples than processes.
        """
        if effective_batch_size < num_processes:
            raise ValueError(
                f"An effective batch of {effective_batch_size} can't be shared by {num_processes} processes. Start "
                f"fewer, or set --effective_batch_size to {num_processes} or more."
            )
        if per_device_batch_size < 1:
            raise ValueError(f"The batch of a device must be at least 1, got {per_device_batch_size}.")
        self.order, self.steps, self.process_index = order, steps, process_index
        self.effective_batch_size, self.num_processes = effective_batch_size, num_processes
        self.accumulation = min(
            math.ceil(effective_batch_size / (per_device_batch_size * num_processes)),
            effective_batch_size // num_processes,
        )

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        pieces = self.num_processes * self.accumulation
        mine = range(self.process_index * self.accumulation, (self.process_index + 1) * self.accumulation)
        for step in self.steps:
            for number in mine:
                piece, first = equal_piece(self.effective_batch_size, number, pieces), step * self.effective_batch_size
                yield self.order[first + piece.start : first + piece.stop]


def check_readers(images: ImageSource, num_processes: int, num_workers: int):
    """Raises `ValueError` if a source has fewer blocks than readers, which would then fetch the same ones.

    Every sample is seen once an epoch all the same; it is the network that would carry blocks over and over.

    Args:
        images ([`ImageSource`]): The source.
        num_processes, num_workers (`int`): Processes, and loader workers of each (0: the process reads itself).
    """
    readers = num_processes * max(num_workers, 1)
    if images.blocks is not None and len(images.blocks) < readers:
        raise ValueError(
            f"{images.name} has {len(images.blocks)} row groups for {readers} readers ({num_processes} process(es) x "
            f"{max(num_workers, 1)} worker(s)), which would fetch the same ones over and over. Lower "
            "--dataloader_num_workers, leave --streaming out, or write smaller row groups."
        )


def default_num_workers(num_local_processes: int = 1) -> int:
    """Returns how many loader workers suit a process: its share of the usable cores, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(min(cores // num_local_processes, 16), 1)


__all__ = [
    "EvaluationDataset",
    "PretrainingDataset",
    "SampleOrder",
    "StepBatchSampler",
    "channel_statistics",
    "check_readers",
    "collate",
    "crop_and_resize",
    "decoder_name",
    "default_num_workers",
    "equal_piece",
    "image_size",
    "jitter_colors",
    "random_crop_box",
    "read_image",
    "spread_indices",
    "upright",
]
