# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Decodes pictures: JPEGs at reduced size, EXIF orientation, random crops."""

import errno
import math
import re
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
import PIL.Image
import PIL.ImageFile
import torch

from ..modeling.formats_mae import ORIENTATIONS, exif_orientation, reopened
from ..modeling.image_processing_mae import NO_DATA_SHARE, resize
from ..modeling.reading_mae import (
    DEFAULT_SETTINGS,
    OpenedImage,
    ReadingSettings,
    StoredImage,
    UnsuitableImageError,
    fill_missing,
    read_stored,
    to_byte_range,
)
from .image_source import ImageSource

try:  # takes a third less time than PIL's decoder and gives the same pixels
    import simplejpeg
except ImportError:
    simplejpeg = None


Result = TypeVar("Result")

_JPEG = ("JPEG", "MPO")  # MPO: a JPEG followed by further pictures, which phones write
_ATTEMPTS = 10
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # what a file server answers for a moment, at a failover say
_PAUSES = (0.1, 1.0)  # seconds, before an image is read again after such an error


class UnreadableImagesError(OSError):
    """Raised if none of several images from all over a source can be read: all are broken, or the source is gone."""

    def __init__(self, message: str):
        # A loader worker passes errors on with their whole traceback in the message; its last line is the message.
        super().__init__(message.rsplit("UnreadableImagesError: ", 1)[-1].strip())


def decoder_name() -> str:
    """Returns the name of the JPEG decoder: `simplejpeg` if it is installed, else `PIL`."""
    return "PIL" if simplejpeg is None else "simplejpeg"


def read_image(
    images: ImageSource, index: int, load: Callable[[OpenedImage], Result], replace_unsuitable: bool = False
) -> tuple[Result, int, dict[str, str]]:
    """Reads an image. If it is unreadable, reads a replacement, which is always the same one.

    Args:
        images ([`ImageSource`]): The images.
        index (`int`): Which image.
        load (`Callable`): Turns an opened image into the result.
        replace_unsuitable (`bool`, *optional*, defaults to `False`): See [`try_to_read`].

    Returns:
        `(result, index, unreadable)`: The result of `load`, the index of the image that was read, and a dictionary
        from the names of unreadable images to the reasons.

    Raises:
        UnsuitableImageError: If the image is intact but does not suit the settings. By default it is not replaced,
            since all others may be of the same kind.
        UnreadableImagesError: If none of ten images, from all over the source, can be read.
        OSError: If the process has too many open files.
    """
    unreadable, attempts = {}, min(_ATTEMPTS, len(images))
    stride = max(int(len(images) * 0.618), 1)  # far away: broken files are often neighbours
    while math.gcd(stride, len(images)) > 1:  # else it would come back to the first image before it has tried all
        stride += 1
    for attempt in range(attempts):
        candidate = (index + attempt * stride) % len(images)
        result, reason = try_to_read(images, candidate, load, replace_unsuitable)
        if reason is None:
            return result, candidate, unreadable
        unreadable[images.describe(candidate)] = reason
    name, reason = list(unreadable.items())[-1]
    raise UnreadableImagesError(
        f"None of {attempts} images tried could be read. The last one is {name}: {reason}. Remove or repair the files."
    )


def try_to_read(
    images: ImageSource, index: int, load: Callable[[OpenedImage], Result], replace_unsuitable: bool = False
) -> tuple[Result, None] | tuple[None, str]:
    """Reads an image, and returns the result of `load` or why the image is unreadable.

    After an input/output error, as of a file server, it tries again, twice within about a second.

    Args:
        images ([`ImageSource`]): The images.
        index (`int`): Which image.
        load (`Callable`): Turns an opened image into the result.
        replace_unsuitable (`bool`, *optional*, defaults to `False`): Take an unsuitable image for an unreadable one,
            for runs that have looked at some images before: one of another kind should not end them.

    Returns:
        `(result, None)`, or `(None, reason)`.

    Raises:
        UnsuitableImageError: If the image is intact but does not suit the settings, unless `replace_unsuitable`.
        OSError: If the process has too many open files.
    """
    for pause in (*_PAUSES, None):
        image = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of what it corrects, once an epoch
                image = images[index]
                return load(image), None
        except Exception as error:  # decoders raise errors of any type: struct.error, SyntaxError, ...
            if isinstance(error, UnsuitableImageError) and not replace_unsuitable:
                raise error.of_file(images.describe(index)) from error
            of_system = _system_error(error)
            if of_system is not None and of_system.errno in (errno.EMFILE, errno.ENFILE):  # says nothing of a picture
                raise of_system from None
            if isinstance(image, PIL.Image.Image):
                image.close()
            # Without addresses, which differ at each attempt: the log says the same once.
            reason = re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(error).__name__}: {error}").split("\n")[0][:300]
        if pause is None or of_system is None or of_system.errno not in _PASSING:
            break
        time.sleep(pause)
    return None, reason


def read_in_threads(read: Callable[[int], Result], count: int) -> list[Result]:
    """Returns what a function returns for each index from 0 to `count` (exclusive), called in several threads.

    Args:
        read (`Callable`): Reads image `index`, perhaps with [`try_to_read`]. Its errors are raised.
        count (`int`): Number of images.
    """
    # All threads share the filters of warnings: the last thread to leave try_to_read may restore those of another one.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        return list(pool.map(read, range(count)))


def _system_error(error: BaseException | None) -> OSError | None:
    """Returns the error of the operating system that an error is or comes from, if any."""
    while error is not None and not (isinstance(error, OSError) and error.errno is not None):
        error = error.__cause__ or error.__context__
    return error


def random_crop_box(
    size: tuple[int, int], target: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws the box of a random resized crop, distributed as in the official augmentation (torchvision's).

    Args:
        size (`(height, width)`): Pixels of the image.
        target (`(height, width)`): Pixels that the crop will be resized to. Its aspect is the centre of the range.
        scale (`(low, high)`): Range of the crop's share of the image's area.
        rng (`np.random.Generator`): The source of randomness.

    Returns:
        `(top, left, height, width)`, inside the image. The aspect lies between 3/4 and 4/3 of the target's. If ten
        draws do not fit, the largest box with such an aspect is placed at random along the image's longer side, where
        the official augmentation would always take the centre. Source: Szegedy et al. 2014 (arXiv
        1409.4842), section 6; scale 0.2 to 1: He et al. 2021, appendix A.1.
    """
    height, width = size
    centre = target[1] / target[0]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = centre * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            break
    else:
        aspect = min(max(width / height, centre * 3 / 4), centre * 4 / 3)
        crop_height, crop_width = max(min(height, round(width / aspect)), 1), max(min(width, round(height * aspect)), 1)
    top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
    return int(top), int(left), crop_height, crop_width


def decode_unless_jpeg(
    image: OpenedImage, num_channels: int, reading: ReadingSettings = DEFAULT_SETTINGS
) -> PIL.Image.Image | StoredImage:
    """Returns an image decoded and oriented. A JPEG is returned as it is, to be decoded at the size that crops need.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or [`ImageFile`]): Freshly opened, of any kind.
        num_channels (`int`): Channels of the model.
        reading ([`ReadingSettings`], *optional*): How to read files.
    """
    if isinstance(image, StoredImage):
        return image
    if isinstance(image, PIL.ImageFile.ImageFile) and image.format in _JPEG:
        reduced = image.decoderconfig[:1] not in ((), (1,))  # by an earlier call, since a source gave it once more
        if image.tile:
            return PIL.Image.open(reopened(image)) if reduced else image
        if reduced:
            raise OSError(
                "it was decoded at reduced size before; a source must open an image each time that it gives it"
            )
    return read_stored(image, num_channels, reading)


def oriented_size(image: PIL.Image.Image | StoredImage) -> tuple[int, int]:
    """Returns (height, width) of an image of [`decode_unless_jpeg`], after its EXIF orientation is applied."""
    if isinstance(image, StoredImage):
        return image.size
    swap, *_ = _orientation_of(image)
    return image.size if swap else image.size[::-1]


def displayed_size(
    image: OpenedImage, num_channels: int, reading: ReadingSettings = DEFAULT_SETTINGS
) -> tuple[int, int]:
    """Returns (height, width) of a freshly opened image as it is displayed, and closes its file.

    Of pictures only the header is read. A TIFF is decoded: if it has to be turned, some versions of Pillow state its
    size before that, others after it.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or [`ImageFile`]): The image.
        num_channels (`int`): Channels of the model.
        reading ([`ReadingSettings`], *optional*): How to read files.
    """
    if not isinstance(image, PIL.Image.Image) or image.format == "TIFF":
        return read_stored(image, num_channels, reading).size
    with image if isinstance(image, PIL.ImageFile.ImageFile) else nullcontext():  # one from memory is used again
        return oriented_size(image)


def _orientation_of(image: PIL.Image.Image) -> tuple[bool, bool, bool]:
    """Returns whether the EXIF orientation swaps rows and columns, and then flips the rows, the columns."""
    return ORIENTATIONS.get(exif_orientation(image), (False, False, False))


def crop_and_resize(
    image: OpenedImage | StoredImage,
    boxes: list[tuple[int, int, int, int]],
    target: tuple[int, int],
    num_channels: int,
    reading: ReadingSettings = DEFAULT_SETTINGS,
) -> list[torch.Tensor]:
    """Decodes an image once and returns crops of it, resized (bicubic, antialiased) to the size of the model.

    A JPEG is decoded at a half, a quarter or an eighth of its size where the smallest crop allows it, and its
    orientation is applied to the crops instead of the whole picture.

    Args:
        image (`PIL.Image.Image`, `np.ndarray`, [`ImageFile`] or [`StoredImage`]): Freshly opened, of any kind, or from
            [`decode_unless_jpeg`].
        boxes (`list` of `(top, left, height, width)`): In pixels of the oriented image, see [`oriented_size`].
        target (`(height, width)`): Pixels of the crops.
        num_channels (`int`): Channels of the crops, see [`read_stored`].
        reading ([`ReadingSettings`], *optional*): How stored values become values of the model.

    Returns:
        `list[torch.Tensor]`: Each (channels, height, width), uint8, or float32 in [0, 255] for images of more than 8
        bits, where NaN are pixels that no-data has a part in, see [`fill_missing`].
    """
    image = decode_unless_jpeg(image, num_channels, reading)
    height, width = oriented_size(image)
    swap, flip_rows, flip_columns = (False,) * 3 if isinstance(image, StoredImage) else _orientation_of(image)
    stored = []  # the boxes in the picture as stored
    for top, left, crop_height, crop_width in boxes:
        top = height - top - crop_height if flip_rows else top
        left = width - left - crop_width if flip_columns else left
        stored.append((left, top, crop_width, crop_height) if swap else (top, left, crop_height, crop_width))
    if swap:
        target, (height, width) = target[::-1], (width, height)
    if not isinstance(image, StoredImage):
        image = _decode_jpeg(image, stored, target, num_channels, reading)
    # Not the ratio of the sizes: of a JPEG decoded at an eighth, the last row may stand for one row and not for eight.
    reduced = next(n for n in (1, 2, 4, 8) if image.size == (math.ceil(height / n), math.ceil(width / n)))
    flips = [dim for dim, flip in ((-2, flip_rows), (-1, flip_columns)) if flip]
    crops = []
    for top, left, crop_height, crop_width in stored:
        rows = slice(round(top / reduced), round((top + crop_height) / reduced))
        columns = slice(round(left / reduced), round((left + crop_width) / reduced))
        crop = _resize_known(to_byte_range(image.crop(rows, columns), reading), target, reading)
        crop = crop.transpose(-2, -1) if swap else crop
        crops.append(crop.flip(flips) if flips else crop)
    return crops


def _resize_known(crop: torch.Tensor, target: tuple[int, int], reading: ReadingSettings) -> torch.Tensor:
    """Resizes values in [0, 255]. Pixels that NaN have a part in are NaN, and no others are changed by them."""
    crop, missing = fill_missing(crop, reading)
    crop = resize(crop, target).clamp(0, 255)
    if missing is None:
        return crop
    share = resize(missing[None].float(), target, "bilinear")
    return crop.masked_fill(share > NO_DATA_SHARE, torch.nan)


def jitter_colors(image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Changes brightness, contrast and saturation of a picture at random. Saturation needs three channels.

    The paper's recipe does without: He et al. 2021, Table 1e, find that it hurts.

    Args:
        image (`torch.Tensor` of shape `(channels, height, width)`): Values in [0, 255]. The type is kept.
        strength (`float`): Each factor is uniform in [1 - strength, 1 + strength]. At most 1.
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


def _decode_jpeg(
    image: PIL.Image.Image, boxes: list[tuple], target: tuple[int, int], num_channels: int, reading: ReadingSettings
) -> StoredImage:
    """Returns the whole picture, not oriented, at reduced size where crops and no-data allow it."""
    if reading.nodata is None:  # else it would be mixed with data before it is looked for
        smallest_height, smallest_width = (min(box[side] for box in boxes) for side in (2, 3))
        wanted = (image.width * target[1] / smallest_width, image.height * target[0] / smallest_height)
        image.draft(None, tuple(math.ceil(side) for side in wanted))
    if simplejpeg is not None and image.mode in ("L", "RGB"):
        # The size that PIL would decode at, which gives the same pixels.
        size = {"min_width": image.width, "min_height": image.height}
        assert isinstance(image, PIL.ImageFile.ImageFile)  # opened and not decoded
        image.fp.seek(0)
        try:
            array = simplejpeg.decode_jpeg(image.fp.read(), "GRAY" if image.mode == "L" else "RGB", **size)
        except ValueError:  # broken or merely unusual: PIL decides
            image.fp.seek(0)
        else:
            if array.shape[2] == num_channels and reading.bands is None:
                return StoredImage(array.transpose(2, 0, 1))
            picture = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
            return read_stored(picture, num_channels, reading, orient=False)
    return read_stored(image, num_channels, reading, orient=False)


__all__ = [
    "UnreadableImagesError",
    "crop_and_resize",
    "decode_unless_jpeg",
    "decoder_name",
    "displayed_size",
    "jitter_colors",
    "oriented_size",
    "random_crop_box",
    "read_image",
    "read_in_threads",
    "try_to_read",
]
