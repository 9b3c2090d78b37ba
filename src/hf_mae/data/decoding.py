# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Decodes pictures: JPEGs at reduced size, EXIF orientation, random crops."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from ..modeling.image_processing_mae import image_to_tensor, resize, to_byte_range
from .sources import ImageSource

try:  # takes a third less time than PIL's decoder and gives the same pixels
    import simplejpeg
except ImportError:
    simplejpeg = None


_JPEG = ("JPEG", "MPO")  # MPO: a JPEG followed by further pictures, which phones write
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
    """Returns the name of the JPEG decoder: `simplejpeg` if it is installed, else `PIL`."""
    return "PIL" if simplejpeg is None else "simplejpeg"


def read_image(images: ImageSource, index: int, load: Callable) -> tuple[object, int, dict[str, str]]:
    """Reads an image. If it is unreadable, reads a replacement, which is always the same one.

    Args:
        images ([`ImageSource`]): The images.
        index (`int`): Which image.
        load (`Callable`): Turns an opened image into the result.

    Returns:
        `(result, index, unreadable)`: The result of `load`, the index of the image that was read, and a dictionary
        from the names of unreadable images to the reasons.

    Raises:
        OSError: If none of ten images, from all over the source, can be read.
    """
    unreadable, attempts = {}, min(_ATTEMPTS, len(images))
    stride = max(int(len(images) * 0.618), 1)  # far away: broken files are often neighbours
    for attempt in range(attempts):
        candidate = (index + attempt * stride) % len(images)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of what it corrects, once an epoch
                return load(images[candidate]), candidate, unreadable
        except Exception as error:  # decoders raise errors of any type: struct.error, SyntaxError, ...
            unreadable[images.describe(candidate)] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    name, reason = list(unreadable.items())[-1]
    raise OSError(
        f"None of {attempts} images tried could be read. The last one is {name}: {reason}. Remove or repair the "
        "files; if they are fine, their number of channels or their type may not be what the model is set to."
    )


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
            top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
            return int(top), int(left), crop_height, crop_width
    aspect = min(max(width / height, centre * 3 / 4), centre * 4 / 3)
    crop_height, crop_width = max(min(height, round(width / aspect)), 1), max(min(width, round(height * aspect)), 1)
    top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
    return int(top), int(left), crop_height, crop_width


def apply_orientation(image: PIL.Image.Image | np.ndarray) -> PIL.Image.Image | np.ndarray:
    """Returns a picture with its EXIF orientation applied.

    JPEGs are returned unchanged: [`crop_and_resize`] applies their orientation to the crops, which are smaller.
    """
    if isinstance(image, np.ndarray) or image.format in _JPEG:
        return image
    return PIL.ImageOps.exif_transpose(image)


def oriented_size(image: PIL.Image.Image | np.ndarray, num_channels: int) -> tuple[int, int]:
    """Returns (height, width) of an image after its EXIF orientation is applied."""
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
    """Decodes an image once and returns crops of it, resized (bicubic, antialiased) to the size of the model.

    A JPEG is decoded at a half, a quarter or an eighth of its size where the smallest crop allows it, and its
    orientation is applied to the crops instead of the whole picture.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): Of any mode, freshly opened, see [`apply_orientation`].
        boxes (`list` of `(top, left, height, width)`): In pixels of the oriented image, see [`oriented_size`].
        target (`(height, width)`): Pixels of the crops.
        num_channels (`int`): Channels of the crops, see [`image_to_tensor`].

    Returns:
        `list[torch.Tensor]`: Each (channels, height, width), uint8, or float32 in [0, 255] for images of more than 8
        bits.
    """
    swap, flip_rows, flip_columns = _orientation(image)
    height, width = oriented_size(image, num_channels)
    stored = []  # the boxes in the picture as stored
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


def _orientation(image: PIL.Image.Image | np.ndarray) -> tuple[bool, bool, bool]:
    jpeg = isinstance(image, PIL.Image.Image) and image.format in _JPEG
    return _ORIENTATIONS.get(image.getexif().get(_EXIF_ORIENTATION) if jpeg else None, (False, False, False))


def _decode(
    image: PIL.Image.Image | np.ndarray, boxes: list[tuple], target: tuple[int, int], num_channels: int
) -> torch.Tensor:
    """Returns the whole picture (channels, height, width), a JPEG possibly at reduced size."""
    if isinstance(image, np.ndarray):
        return image_to_tensor(image, num_channels)
    if image.format in _JPEG:
        smallest_height, smallest_width = (min(box[side] for box in boxes) for side in (2, 3))
        wanted = (image.width * target[1] / smallest_width, image.height * target[0] / smallest_height)
        image.draft(None, tuple(math.ceil(side) for side in wanted))
        if simplejpeg is not None and image.mode in ("L", "RGB"):
            # The size that PIL would decode at, which gives the same pixels.
            size = {"min_width": image.width, "min_height": image.height}
            image.fp.seek(0)
            try:
                array = simplejpeg.decode_jpeg(image.fp.read(), "GRAY" if image.mode == "L" else "RGB", **size)
            except ValueError:  # broken or merely unusual: PIL decides
                image.fp.seek(0)
            else:
                if array.shape[2] == num_channels:
                    return torch.from_numpy(array).permute(2, 0, 1)
                image = PIL.Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    return image_to_tensor(image, num_channels)


__all__ = [
    "apply_orientation",
    "crop_and_resize",
    "decoder_name",
    "jitter_colors",
    "oriented_size",
    "random_crop_box",
    "read_image",
]
