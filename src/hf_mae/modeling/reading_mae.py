# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads images as they are stored, and turns stored values into the range that a model takes.

Training and the image processor both read with these functions, so that they see the same pixels. What is special about
a format is in pictures_mae.py, tiff_mae.py and formats_mae.py.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import PIL.Image
import torch

from .formats_mae import (
    ArrayFile,
    DicomFile,
    FitsFile,
    ImageFile,
    ImagePage,
    NiftiFile,
    StoredImage,
    UnsuitableImageError,
    exif_orientation,
    extension_by_content,
    joined,
    native,
    open_arrays,
    oriented,
    reopened,
)
from .pictures_mae import PICTURE_EXTENSIONS, frame_of, num_frames, open_picture, read_picture
from .tiff_mae import TIFF_SIGNATURES, exact_tiff, open_tiff, pages_of_tiff

_DICOM = (".dcm", ".dicom", ".ima")
_SLIDES = (".ndpi", ".scn", ".svs")  # TIFFs of scanners
IMAGE_EXTENSIONS = (*PICTURE_EXTENSIONS, *_DICOM, ".fit", ".fits", ".nii", ".nii.gz", ".npy", ".npz", *_SLIDES)


@dataclass(frozen=True)
class ReadingSettings:
    """Says how stored values become the values of a model. [`MAEImageProcessor`] saves them with the model.

    Args:
        value_range (`(low, high)`, *optional*): Stored values that become black and white; values beyond are clipped.
            One pair, or one for each channel. Default: the range of the type, for unsigned integers, and [0, 1] for
            floats. Other types have no default.
        bands (`tuple[int]`, *optional*): Bands that become the channels, in this order, counted from 1. Default: all.
        nodata (`float`, *optional*): Stored value of pixels without data, of a TIFF with a palette the index, of DICOM,
            NIfTI and FITS the rescaled value. A value that could be data, since it lies in `value_range` or the range
            of the type, means no data only where all bands have it. NaN and infinities then count as no data, too.
            Default: what the file itself declares.
        pages (`str`, *optional*): What to do with several pages, frames or slices in one file: `"first"` takes the
            first, `"channels"` makes channels of them, `"images"` makes an image of each. Default: refuse such files.
        channels_first (`bool`, *optional*): Which axis of an array holds the channels. Default: the axis whose length
            fits; arrays where both fit are refused.
        background (`int`, *optional*, defaults to 255): Grey level in [0, 255] that shows through transparent pixels: 0
            is the black of `value_range` or of the type, 255 the white.
        fill (`tuple[float]`, *optional*, defaults to `(127.5,)`): What takes the place of no-data, in [0, 255]: one
            value, or one for each channel. The image processor gives its mean.
    """

    value_range: tuple | None = None
    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    pages: str | None = None
    channels_first: bool | None = None
    background: int = 255
    fill: tuple[float, ...] = (127.5,)

    def __post_init__(self):
        if self.pages not in (None, "first", "channels", "images"):
            raise ValueError(f"`pages` must be 'first', 'channels' or 'images', got {self.pages!r}.")
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise ValueError(f"`bands` count from 1, got {list(self.bands)}.")
        if not 0 <= self.background <= 255:
            raise ValueError(f"`background` must be in [0, 255], got {self.background}.")
        for pair in self.value_ranges or ():
            if len(pair) != 2 or not pair[0] < pair[1]:
                raise ValueError(
                    f"`value_range` must be (low, high) with low < high, or one such pair for each channel, got "
                    f"{self.value_range}."
                )

    @property
    def value_ranges(self) -> tuple[tuple[float, float], ...] | None:
        """The pairs (low, high): one, or one for each channel; `None` if there is no `value_range`."""
        if self.value_range is None:
            return None
        nested = all(isinstance(pair, Sequence) for pair in self.value_range)
        return tuple(map(tuple, self.value_range)) if nested else (tuple(self.value_range),)


DEFAULT_SETTINGS = ReadingSettings()

OpenedImage = PIL.Image.Image | np.ndarray | ImageFile


# ----------------------------------------------------------------------------------------------------------------------
# Opening


def extension_of(name: str) -> str:
    """Returns the extension of a file's name in lower case, `.nii.gz` as one."""
    name = os.path.basename(name).lower()
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]


def open_image(file: str | bytes, extension: str | None = None) -> OpenedImage:
    """Opens an image file without decoding its pixels.

    Args:
        file (`str` or `bytes`): The path, or the content.
        extension (`str`, *optional*): The extension of the name, if `file` is the content.

    Returns:
        `PIL.Image.Image` if Pillow reads the file exactly, `np.ndarray` for `.npy` and [`ImageFile`] for others.

    Raises:
        UnsuitableImageError: If the library that reads it is not installed.
        Exception: Of any type, if the file is broken.
    """
    start = _first_bytes(file)
    extension = (extension_of(file) if extension is None else extension) or extension_by_content(start)
    if extension in (".npy", ".npz"):
        return open_arrays(file, extension)
    if start[128:132] == b"DICM" or extension in _DICOM:
        return DicomFile(file)
    if extension in (".nii", ".nii.gz"):
        return NiftiFile(file)
    if start.startswith(b"SIMPLE  ="):
        return FitsFile(file)
    try:
        if start.startswith(TIFF_SIGNATURES):
            return open_tiff(file)
        return open_picture(file)
    except PIL.Image.DecompressionBombError as error:
        # Its header may be broken, so that it is not taken for unsuitable.
        raise OSError(
            f"{str(error).split(',')[0]}. Read it in windows (`tile`) as a TIFF, or make it smaller"
        ) from error


def _first_bytes(file: str | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:1024]
    with open(file, "rb") as stream:
        return stream.read(1024)


def num_pages(image: OpenedImage) -> int:
    """Returns the number of pages, frames or slices of an opened image."""
    if isinstance(image, ImageFile):
        return image.num_pages
    if isinstance(image, PIL.Image.Image) and image.format == "TIFF":
        return len(pages_of_tiff(image)) if getattr(image, "is_animated", False) else 1
    return num_frames(image) if isinstance(image, PIL.Image.Image) else 1


def page_of(image: OpenedImage, page: int) -> OpenedImage:
    """Returns one page of an opened image as an image of its own."""
    if isinstance(image, ArrayFile):
        return image.arrays[page]
    if isinstance(image, ImageFile):
        return ImagePage(image, page)
    if num_pages(image) == 1:
        return image
    if image.format == "TIFF":  # a copy of Pillow's would lose what the tags say of the values
        return ImagePage(exact_tiff(image), page)
    return frame_of(image, page)


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def read_stored(
    image: OpenedImage | StoredImage | torch.Tensor,
    num_channels: int,
    settings: ReadingSettings = DEFAULT_SETTINGS,
    orient: bool = True,
) -> StoredImage:
    """Returns the stored values of an opened image in the channels of a model.

    Args:
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, [`ImageFile`] or [`StoredImage`]): The image, arrays as
            HW, HWC or CHW.
        num_channels (`int`): Channels wanted. One grey channel is repeated into three, and 8-bit pictures of Pillow
            are converted from colour to grey. Otherwise the image must have this number, after `settings.bands`.
        settings ([`ReadingSettings`], *optional*): Pages, bands, axes and background.
        orient (`bool`, *optional*, defaults to `True`): Whether to apply the EXIF orientation.

    Raises:
        UnsuitableImageError: If pages, bands or type do not fit.
    """
    if isinstance(image, StoredImage):
        return _select_channels(image, num_channels, settings)
    if isinstance(image, PIL.Image.Image):
        image = _exact(image)
    joins_pages = _joins_pages(image, settings)
    if isinstance(image, ArrayFile) and not joins_pages:
        image = image.arrays[0]
    if isinstance(image, PIL.Image.Image):
        if joins_pages:
            pages, whole = [page_of(image, page) for page in range(num_pages(image))], replace(settings, bands=None)
            stored = joined([read_stored(page, 1, whole, orient=False) for page in pages])
        else:
            stored = read_picture(image, num_channels, as_stored=settings.bands is not None)
        if orient:  # after reading: Pillow has then turned a TIFF by itself, and says that nothing is left to do
            stored = oriented(stored, exif_orientation(image))
    elif isinstance(image, ArrayFile):
        stored = joined([StoredImage(_channels_to_front(array, 1, settings)) for array in image.arrays])
    elif isinstance(image, ImageFile):
        stored = image.read_all() if joins_pages else image.read()
    else:
        array = _channels_to_front(image, num_channels, settings)
        masked = isinstance(array, np.ma.MaskedArray)  # as rasterio gives it
        stored = StoredImage(array.data if masked else array, missing=np.ma.getmaskarray(array) if masked else None)
    return _select_channels(stored, num_channels, settings)


def _exact(image: PIL.Image.Image) -> PIL.Image.Image | ImageFile:
    """Returns an image that somebody else opened with Pillow as [`open_image`] would have opened it.

    Raises:
        UnsuitableImageError: If Pillow has already decoded it to something else than is stored.
    """
    if image.format == "TIFF":
        return exact_tiff(image)
    if image.format == "FITS":
        if image.fp is None:
            raise UnsuitableImageError("Pillow has decoded it already, to other values. Give the path instead.")
        return FitsFile(reopened(image).getvalue())
    return image


def _joins_pages(image: OpenedImage | torch.Tensor, settings: ReadingSettings) -> bool:
    """Returns whether the pages of an image become channels of one image; else its first page is read.

    Raises:
        UnsuitableImageError: If there are several pages, and `settings.pages` asks for neither of the two.
    """
    pages = num_pages(image)
    if pages == 1:
        return False
    are_channels = isinstance(image, ImageFile) and image.named_channels
    wanted = settings.pages or ("channels" if are_channels else None)
    if wanted not in ("first", "channels"):
        raise UnsuitableImageError(
            f"The image has {pages} pages. Set `pages` to 'first' (only the first is used), 'channels' (they become "
            "channels of one image) or 'images' (each is an image)."
        )
    return wanted == "channels"


def _select_channels(image: StoredImage, num_channels: int, settings: ReadingSettings) -> StoredImage:
    """Returns the bands wanted; composites an alpha band that is not; repeats grey."""
    count = len(image.pixels)
    if settings.bands is not None:
        if max(settings.bands) > count:
            raise UnsuitableImageError(f"The image has {count} bands; `bands` asks for {list(settings.bands)}.")
        image = replace(image.with_channels([band - 1 for band in settings.bands]), alpha=False)
    elif image.alpha and (count, num_channels) == (2, 4):
        image = image.with_channels([0, 0, 0, 1])
    elif image.alpha and (count == num_channels + 1 or (count, num_channels) == (2, 3)):
        image = _composite(image, settings)
    count = len(image.pixels)
    if (count, num_channels) == (1, 3):
        repeat = torch.broadcast_to if isinstance(image.pixels, torch.Tensor) else np.broadcast_to
        image = replace(image, pixels=repeat(image.pixels, (3, *image.size)))
    elif count != num_channels:
        raise UnsuitableImageError(
            f"The image has {count} band(s), the model {num_channels} channels. Choose with `bands`, for example "
            f"{' '.join(map(str, range(1, min(count, num_channels) + 1)))}, or set `num_channels` to {count}. An "
            "opacity is never made up, and only grey is repeated, into three channels."
        )
    return image


def _composite(image: StoredImage, settings: ReadingSettings) -> StoredImage:
    """Returns the colours of an image over a uniform background. No-data is still one of the stored values."""
    colours, alpha = image.pixels[:-1], image.pixels[-1:]
    kind, whole = np.result_type(colours.dtype, np.float32), colours.dtype.kind in "ui"  # exact for 16 bits, or wider
    opacity = alpha[0].astype(kind) / kind.type(_opaque(alpha, image.limit))
    low, high = 0, image.limit or (np.iinfo(colours.dtype).max if whole else 1)
    if settings.value_ranges is not None and len(settings.value_ranges) in (1, len(colours)):
        low, high = np.array(settings.value_ranges).T
    level = (255 - settings.background if image.inverted else settings.background) / 255
    behind = np.broadcast_to(low + level * (np.asarray(high) - low), len(colours)).astype(kind)
    mixed, through = np.empty_like(colours), 1 - opacity
    for number, colour in enumerate(colours):  # one by one is three times as fast as all at once
        values = (colour if image.premultiplied else colour * opacity) + behind[number] * through
        if whole:
            limits = np.iinfo(colours.dtype).min, image.limit or np.iinfo(colours.dtype).max
            values = np.rint(values).clip(*limits)
        mixed[number] = values
    image = image.with_channels(slice(-1))
    numbers = colours if image.numbers is None else image.numbers
    return replace(image, pixels=mixed, numbers=numbers, transparent=alpha == 0, alpha=False, premultiplied=False)


def _opaque(alpha: np.ndarray, limit: float | None) -> float:
    """Returns the value of an opacity band that means opaque.

    Of values deeper than 8 bits it is 255 for GDAL, and 1 or the largest of the type for others.
    """
    if alpha.dtype.kind == "f":
        return 255 if alpha.size and np.nanmax(alpha) > 1 else 1
    deep = alpha.dtype.itemsize > 1 and (not alpha.size or alpha.max() <= 255)
    return 255 if deep else limit or np.iinfo(alpha.dtype).max


def _channels_to_front(array: np.ndarray | torch.Tensor, num_channels: int, settings: ReadingSettings):
    """Returns an array as (channels, height, width)."""
    if isinstance(array, np.ndarray):
        array = native(array)
    elif array.dtype.is_complex:
        raise UnsuitableImageError(f"The image's values are of type {array.dtype}. Convert them to integers or floats.")
    elif array.dtype == torch.bool:
        array = array.to(torch.uint8) * 255
    if array.ndim == 2 and 0 not in array.shape:
        return array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise UnsuitableImageError(f"The image's shape {tuple(array.shape)} is not that of one image: HW, HWC or CHW.")
    first = settings.channels_first
    if first is None:
        first = _channels_are_first(tuple(array.shape), num_channels, settings)
    if first:
        return array
    return array.permute(2, 0, 1) if isinstance(array, torch.Tensor) else array.transpose(2, 0, 1)


def _channels_are_first(shape: tuple[int, ...], num_channels: int, settings: ReadingSettings) -> bool:
    """Returns whether the first axis of an array holds the channels, and refuses what is not clear."""
    if settings.bands is not None:  # the number of bands is not known; that they are fewer than the pixels is
        first, last = shape[0] < min(shape[1:]), shape[2] < min(shape[:2])
    else:
        first, last = (shape[axis] == num_channels for axis in (0, 2))
        if not first and not last:  # grey, or colours with an opacity
            first, last = shape[0] == 1, shape[2] == 1
    if first == last:
        reason = "either the first or the last axis may hold the channels" if first else "neither axis fits"
        raise UnsuitableImageError(
            f"The image's shape is {shape} and the model has {num_channels} channels: {reason}. Set `num_channels` to "
            "the number of channels of the data, and where the axis is not clear `input_data_format` to "
            "'channels_first' or 'channels_last'."
        )
    return first


# ----------------------------------------------------------------------------------------------------------------------
# Values


def to_byte_range(image: StoredImage, settings: ReadingSettings = DEFAULT_SETTINGS) -> torch.Tensor:
    """Returns an image in the range of 8 bits: uint8 as it is, others as float32 in [0, 255], NaN where no data is.

    This is the one place where stored values are scaled, for training as for the image processor.

    Args:
        image ([`StoredImage`]): The image or a part of it.
        settings ([`ReadingSettings`], *optional*): Range of values and no-data.

    Raises:
        UnsuitableImageError: If the type needs `value_range`, or there are NaN that nothing declares as no-data.
    """
    pixels = as_tensor(image.pixels)
    missing = find_missing(image, pixels, settings)
    if settings.value_range is not None:
        pairs = torch.tensor(settings.value_ranges, dtype=torch.float64, device=pixels.device)
        if len(pairs) not in (1, len(pixels)):
            raise UnsuitableImageError(f"`value_range` has {len(pairs)} pairs for {len(pixels)} channels.")
        low, high = pairs[:, 0, None, None], pairs[:, 1, None, None]
        values = ((pixels.double() - low) * (255 / (high - low))).clamp(0, 255).float()
    else:
        values = _scaled_by_type(image, pixels, missing)
    if image.inverted:
        values = 255 - values
    return values if missing is None else values.float().masked_fill(missing, torch.nan)


def _scaled_by_type(image: StoredImage, pixels: torch.Tensor, missing: torch.Tensor | None) -> torch.Tensor:
    """Returns values in [0, 255] by what is white: the image's limit, else the largest uint8 or uint16, else 1."""
    known = pixels if missing is None else pixels[~missing.expand(pixels.shape)]
    white = image.limit or {torch.uint8: 255, torch.uint16: 65535}.get(pixels.dtype)
    if white is None or pixels.is_floating_point():
        low, high = (value.item() for value in known.double().aminmax()) if known.numel() else (0.0, 0.0)
        if not pixels.is_floating_point() or low < 0 or high > 1:
            raise UnsuitableImageError(
                f"The image holds {image.type_name} values from {low:g} to {high:g}; only uint8, uint16 and floats in "
                "[0, 1] have a range by themselves. Set `value_range`, for example to -1000 1000 for CT or 0 10000 for "
                "reflectances, or pass do_rescale=False to the image processor to take values as they are."
            )
        return pixels.float() * 255
    if white < torch.iinfo(pixels.dtype).max and known.numel() and (highest := known.float().max().item()) > white:
        raise UnsuitableImageError(
            f"The image holds values up to {highest:g}, and says that {white:g} is white. Set `value_range`."
        )
    if pixels.dtype == torch.uint8 and 255 % white == 0:  # 1, 2, 4 or 8 bits
        return pixels if white == 255 else pixels * int(255 // white)
    return pixels.float() / (white / 255)


def find_missing(image: StoredImage, pixels: torch.Tensor, settings: ReadingSettings) -> torch.Tensor | None:
    """Returns where values are no data, bool of shape `(channels or 1, height, width)`, or `None` if nowhere.

    Raises:
        UnsuitableImageError: If there are NaN or infinities, and neither settings nor file declare no-data.
    """
    nodata = image.nodata if settings.nodata is None else float(settings.nodata)
    masks = [] if image.missing is None else [as_tensor(image.missing)]
    if pixels.is_floating_point():
        not_finite = ~pixels.isfinite()
        undeclared = not_finite & ~masks[0] if masks else not_finite
        if nodata is None and undeclared.any():
            raise UnsuitableImageError(_not_finite(image, pixels, undeclared))
        masks.append(not_finite)
    if nodata is not None and math.isfinite(nodata):
        masks.append(_equals_nodata(image, pixels, nodata, settings))
    missing = reduce(torch.logical_or, masks) if masks else None
    return missing if missing is not None and bool(missing.any()) else None


def _not_finite(image: StoredImage, pixels: torch.Tensor, undeclared: torch.Tensor) -> str:
    """Returns a message about NaN or infinities that nothing declares as no-data: where they are, and what to do."""
    places = undeclared.nonzero()
    channel, row, column = places[0].tolist()
    return (
        f"{pixels[channel, row, column].item()} at row {row + image.origin[0]}, column {column + image.origin[1]}, "
        f"channel {channel + 1} (and {len(places) - 1} more). Fill such pixels, or set `nodata` to nan to leave them "
        "out."
    )


def _equals_nodata(
    image: StoredImage, pixels: torch.Tensor, nodata: float, settings: ReadingSettings
) -> torch.BoolTensor:
    """Returns where there is no data because the stored values equal `nodata`, `(channels or 1, height, width)`.

    A value that could be data, such as 0 in red, counts only where all bands have it, as in GDAL's mask of a data set.
    """
    numbers = pixels if image.numbers is None else as_tensor(image.numbers)
    if numbers.is_floating_point():
        # Some programs write the least float with fewer digits. GDAL compares floats like this (ARE_REAL_EQUAL).
        sought = torch.tensor(nodata, dtype=numbers.dtype, device=numbers.device)
        equal = torch.isclose(numbers, sought, rtol=4.77e-7, atol=0)
    else:
        equal = numbers.to(torch.float64 if numbers.dtype.itemsize > 2 else torch.float32) == nodata
    low, high = 0, image.limit or (1 if pixels.is_floating_point() else torch.iinfo(pixels.dtype).max)
    if settings.value_range is not None:
        pairs = np.array(settings.value_ranges)
        low, high = pairs.min(), pairs.max()
    return equal.all(dim=0, keepdim=True) if low <= nodata <= high else equal


def fill_missing(values: torch.Tensor, settings: ReadingSettings) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fills no-data, so that it becomes 0 after normalisation and no filter spreads it.

    Args:
        values (`torch.Tensor` of shape `(channels, height, width)`): Of [`to_byte_range`]; NaN is no-data.
        settings ([`ReadingSettings`]): What to fill with.

    Returns:
        `(values, missing)`: Without NaN, and where they were, bool of shape `(height, width)`, or `None` if nowhere.
    """
    missing = values.isnan() if values.is_floating_point() else None
    if missing is None or not missing.any():
        return values, None
    fill = torch.tensor(settings.fill, dtype=values.dtype, device=values.device)[:, None, None]
    return torch.where(missing, fill, values), missing.any(dim=0)


def as_tensor(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Returns a tensor as it is, and an array as a tensor, with the same memory where torch can share it."""
    if isinstance(pixels, torch.Tensor):
        return pixels
    # torch takes no negative strides, and warns of arrays that are read-only.
    usable = pixels.flags.writeable and min(pixels.strides, default=1) >= 0
    return torch.from_numpy(pixels if usable else pixels.copy())


__all__ = [
    "DEFAULT_SETTINGS",
    "IMAGE_EXTENSIONS",
    "ImageFile",
    "ReadingSettings",
    "StoredImage",
    "UnsuitableImageError",
    "as_tensor",
    "extension_of",
    "fill_missing",
    "find_missing",
    "num_pages",
    "open_image",
    "page_of",
    "read_stored",
    "to_byte_range",
]
