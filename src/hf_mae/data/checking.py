# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Looks at images before the first step, so that a run on unsuitable ones ends at once and not after hours."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.reading_mae import (
    DEFAULT_SETTINGS,
    OpenedImage,
    ReadingSettings,
    UnsuitableImageError,
    as_tensor,
    find_missing,
    num_pages,
    read_stored,
    to_byte_range,
)
from .decoding import read_image
from .image_source import ImageSource
from .sampling import spread_indices
from .sources import FashionMNISTImages

_MOST_PIXELS = 5 * 10**8  # that are decoded for the check: seconds to a minute
_PIXELS_OF_EACH = 4096  # image, for the percentiles of their values
_DECODED_OF_EACH = 8  # format of 8 bits
_SHALLOW_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB")


@dataclass
class CheckedImages:
    """What was found in a source.

    Attributes:
        sample_type (`str` or `None`): Type of the stored values, such as `"uint16"`. `None` if images differ in it.
        unreadable (`dict[str, str]`): Names of unreadable images, with the reasons.
        notes (`list[str]`): What a user should know, to be printed.
    """

    sample_type: str | None
    unreadable: dict[str, str]
    notes: list[str]


def check_images(
    images: ImageSource,
    num_channels: int,
    reading: ReadingSettings = DEFAULT_SETTINGS,
    max_images: int = 1000,
) -> CheckedImages:
    """Reads images that are spread over a source and refuses those that do not suit the settings.

    Of pictures of 8 bits only the headers are read, if nothing but the header can be wrong. The first few of each
    format are decoded all the same, because this machine may have no decoder for it. Other images are decoded, up to
    500 million pixels, in an order that is spread over the source.

    Args:
        images ([`ImageSource`]): The source.
        num_channels (`int`): Channels of the model.
        reading ([`ReadingSettings`], *optional*): How to read files, `image_processor.reading`.
        max_images (`int`, *optional*, defaults to 1000): Maximum number of images, see [`spread_indices`].

    Returns:
        [`CheckedImages`].

    Raises:
        UnsuitableImageError: If an image does not suit the settings; it is named.
        OSError: If ten images in a row can't be read.
    """
    types, unreadable, pixels, decoded = Counter(), {}, 0, Counter()

    def look(image: OpenedImage) -> tuple[str | None, int]:
        """Returns the type of the stored values, `None` if it stays unknown, and the number of pixels decoded."""
        plain, form = _needs_only_header(image, num_channels, reading), getattr(image, "format", None)
        if pixels > _MOST_PIXELS or (plain and decoded[form] >= _DECODED_OF_EACH):
            return "uint8" if plain else None, 0
        stored = read_stored(image, num_channels, reading)
        to_byte_range(stored, reading)
        decoded[form] += 1
        return stored.type_name, stored.size[0] * stored.size[1]

    for index in _mixed(images, spread_indices(images, max_images)):
        (kind, count), _, failed = read_image(images, int(index), look)
        types.update([] if kind is None else [kind])
        unreadable.update(failed)
        pixels += count
    notes = list(images.notes)
    if len(types) > 1:
        found = ", ".join(f"{count} x {kind}" for kind, count in types.most_common())
        notes.append(f"Images of {images.name} differ in the type of their values: {found}.")
    return CheckedImages(next(iter(types)) if len(types) == 1 else None, unreadable, notes)


def _mixed(images: ImageSource, indices: np.ndarray) -> np.ndarray:
    """Returns indices in an order whose beginnings are spread like the whole; one row group comes after the other."""
    rng = np.random.default_rng(0)
    indices = rng.permutation(indices)
    if images.row_groups is None:
        return indices
    groups = np.searchsorted(np.cumsum(images.row_groups), indices, side="right")
    return indices[np.argsort(rng.permutation(len(images.row_groups))[groups], kind="stable")]


def check_embedded(images: ImageSource, image_processor: MAEImageProcessor):
    """Refuses the embedded images for a model that takes others. Messages of the reader would give advice for files.

    Args:
        images ([`ImageSource`]): Images, which may be others.
        image_processor ([`MAEImageProcessor`]): That of the model.

    Raises:
        ValueError: If they are the embedded images and do not suit it.
    """
    if not isinstance(images, FashionMNISTImages):
        return
    try:
        image_processor(images[0])
    except UnsuitableImageError as error:
        raise ValueError(
            "The embedded images are grey, of 8 bits, and the model takes others. Name pictures of your own."
        ) from error


def _needs_only_header(image: OpenedImage, num_channels: int, reading: ReadingSettings) -> bool:
    """Returns whether an image of 8 bits is sure to become 1 or 3 channels, without decoding it."""
    return (
        isinstance(image, PIL.Image.Image)
        and image.mode in _SHALLOW_MODES
        and num_channels in (1, 3)
        and reading.bands is None
        and (num_pages(image) == 1 or reading.pages == "first")
    )


def value_range_of(
    images: ImageSource,
    num_channels: int,
    percentiles: tuple[float, float],
    reading: ReadingSettings = DEFAULT_SETTINGS,
    max_images: int = 1000,
) -> tuple[tuple[float, float], ...]:
    """Returns a range (low, high) for each channel: percentiles of the stored values of a source.

    Of each image 4,096 pixels are taken from all over it, always the same ones; for 0 and 100 the smallest and the
    largest value of all its pixels.

    Args:
        images ([`ImageSource`]): The source.
        num_channels (`int`): Channels of the model.
        percentiles (`(low, high)`): In [0, 100], such as (0.1, 99.9).
        reading ([`ReadingSettings`], *optional*): How to read files; without its `value_range`. No-data is left out,
            and so is what is fully transparent.
        max_images (`int`, *optional*, defaults to 1000): Maximum number of images, see [`spread_indices`].

    Raises:
        ValueError: If the percentiles are not in order, or a channel has the same value everywhere or nothing but
            no-data.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"Percentiles must be 0 <= low < high <= 100, got {percentiles}.")
    rng = np.random.default_rng(0)

    def sample(image: OpenedImage) -> tuple[np.ndarray, np.ndarray]:
        stored = read_stored(image, num_channels, reading)
        pixels = as_tensor(stored.pixels)
        known = pixels.double()
        for left_out in (find_missing(stored, pixels, reading), stored.transparent):
            known = known if left_out is None else known.masked_fill(as_tensor(left_out), torch.nan)
        values = known.flatten(1).numpy()
        places = np.flatnonzero(~np.isnan(values).all(axis=0))
        if len(places) > _PIXELS_OF_EACH:  # at even distances they would lie in the same few columns of all rows
            shares = (np.arange(_PIXELS_OF_EACH) + rng.random(_PIXELS_OF_EACH)) / _PIXELS_OF_EACH
            places = places[(shares * len(places)).astype(np.int64)]
        # Unlike min and max these pass over NaN, and keep it where there is nothing else.
        return values[:, places], np.stack([np.fmin.reduce(values, axis=1), np.fmax.reduce(values, axis=1)], axis=1)

    samples = [read_image(images, int(index), sample)[0] for index in spread_indices(images, max_images)]
    values, extremes = (np.concatenate(parts, axis=1) for parts in zip(*samples, strict=True))
    known = [extremes if share in (0, 100) else values for share in percentiles]
    if any(np.isnan(each).all(axis=1).any() for each in known):
        raise ValueError(f"A channel of {images.name} holds nothing but no-data in all images that were looked at.")
    low, high = (
        np.nanpercentile(each, share, axis=1, method="nearest") for each, share in zip(known, percentiles, strict=True)
    )
    if (low >= high).any():
        raise ValueError(f"Channel {int((low >= high).argmax()) + 1} of {images.name} has hardly any range.")
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


__all__ = ["CheckedImages", "check_embedded", "check_images", "value_range_of"]
