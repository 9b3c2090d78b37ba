# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pairs images with masks: where they lie, how they are read, and the views that a segmentation model is trained on."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch.utils.data import Dataset

from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.reading_mae import (
    DEFAULT_SETTINGS,
    ReadingSettings,
    StoredImage,
    UnsuitableImageError,
    fill_missing,
    num_pages,
    open_image,
    read_stored,
    to_byte_range,
)
from ..modeling.tiff_mae import declared_nodata
from .augmentation import RandomOrientation, ScaledView
from .folders import (
    MASK_SUFFIXES,
    WORDS_OF_SPLITS,
    FolderImages,
    find_splits,
    is_image,
    notes_on_others,
    split_of,
    walk,
)
from .image_source import ImageSource, digest
from .parts import TiledImages, Window, open_scene
from .sources import open_images

IGNORED = 255  # loss_ignore_index of UperNetConfig
_NUMBERS = ReadingSettings(bands=(1,), pages="first")  # of the first page, as stored
SPLITS = ("train", "val")


@dataclass
class Pair:
    """Holds an image and its mask, opened when they are read.

    Attributes:
        images ([`ImageSource`] or `Sequence`): Source of the image.
        index (`int`): Position of the image in it.
        mask (`Path` or `PIL.Image.Image`): The mask, or where it is. If the image is a window, the mask of its
            scene. `None` if there is none.
        name (`str`): What messages call the image.
    """

    images: Sequence
    index: int
    mask: Path | PIL.Image.Image | None
    name: str


def sample_pairs(split: str, side: int = 2) -> list[Pair]:
    """Returns images of `side` x `side` embedded pictures. Masks are 0 for background, else the garment's class + 1.

    Args:
        split (`str`): `train` or `val`.
        side (`int`, *optional*, defaults to 2): Rows and columns of pictures in an image.
    """
    source = open_images(None, "train" if split == "train" else "test")
    order = np.random.default_rng(0).permutation(len(source))[: len(source) // side**2 * side**2]
    pixels = np.stack([np.array(source[index]) for index in order])  # (N, 28, 28)
    masks = np.where(pixels > 20, source.labels[order][:, None, None] + 1, 0).astype(np.uint8)
    images, masks = (
        array.reshape(-1, side, side, 28, 28).swapaxes(2, 3).reshape(-1, 28 * side, 28 * side)
        for array in (pixels, masks)
    )
    pictures = [PIL.Image.fromarray(image) for image in images]
    return [
        Pair(pictures, number, PIL.Image.fromarray(mask), f"image {number} of the sample")
        for number, mask in enumerate(masks)
    ]


def folder_pairs(
    data: str, split: str, tile: int | None = None, reading: ReadingSettings = DEFAULT_SETTINGS
) -> list[Pair]:
    """Returns the images of a folder with their masks, none if it has no such split. Without splits all are `train`.

    Args:
        data (`str`): The folder, see [`mask_folders`].
        split (`str`): `train` or `val`.
        tile (`int`, *optional*): Make square windows of this many pixels the images, see [`TiledImages`].
        reading ([`ReadingSettings`], *optional*): How to read scenes.

    Raises:
        OSError: If there are no such folders, or a scene that windows are to be made of can't be read.
        ValueError: If there are no images, or some don't have a mask each.
    """
    folders = mask_folders(data, split)
    if folders is None:
        return []
    images = FolderImages(folders[0], labels="none")
    paths = [Path(images.describe(index)) for index in range(len(images))]
    stems = [path.relative_to(folders[0]).with_suffix("") for path in paths]
    masks = _masks_of(folders[1], paths, stems, images.notes)
    if split_of(folders[0].name):  # images/train
        images.notes.extend(notes_on_others(folders[0]))
    if tile is None:
        return [Pair(images, index, masks[stem], str(paths[index])) for index, stem in enumerate(stems)]
    windows = TiledImages(images, tile, reading)
    for name, reason in windows.unreadable.items():
        raise OSError(f"{name} can't be read: {reason}. Mend it, or take it and its mask out.")
    return [
        Pair(windows, index, masks[stems[scene]], windows.describe(index))
        for index, scene in enumerate(windows.parts[:, 0])
    ]


def mask_folders(data: str | os.PathLike, split: str) -> tuple[Path, Path] | None:
    """Returns the folders of the images and of the masks of a split, `None` if there is no such split.

    Splits are found as for other images, see [`find_splits`]: `train/images` and `train/masks`, or `images/train` and
    `masks/train`. Without any, `train` is all.

    Args:
        data (`str`): Folder with `images/` and `masks/`, or with folders of splits that hold them.
        split (`str`): `train` or `val`.

    Raises:
        OSError: If there are no such folders.
    """
    root = Path(data)
    splits = find_splits(root) if root.is_dir() else {}
    folder = next((splits[name] for name in WORDS_OF_SPLITS[split] if name in splits), None)
    if folder is None and split == "val":
        return None
    folder = folder or root
    below = folder.relative_to(root).parts
    parts = [part.lower() for part in below]
    if "images" in parts:
        above, rest = root.joinpath(*below[: parts.index("images")]), below[parts.index("images") + 1 :]
        images, masks = folder, _folder_called(above, "masks").joinpath(*rest)
    else:
        images, masks = (_folder_called(folder, name) for name in ("images", "masks"))
    for found in (images, masks):
        if not found.is_dir():
            raise OSError(
                f"{found.parent} has no folder {found.name!r}. Expected images/ and masks/, or train/images/ and "
                "train/masks/, or images/train/ and masks/train/."
            )
    return images, masks


def _folder_called(folder: Path, name: str) -> Path:
    """Returns the folder with a name in upper or lower case, or where it would be."""
    below = [path for path in folder.iterdir() if path.name.lower() == name] if folder.is_dir() else []
    return min(below, default=folder / name)


def _masks_of(folder: Path, paths: list[Path], stems: list[Path], notes: list[str]) -> dict[Path, Path]:
    """Returns the masks of images by their paths without extension. What belongs to no image is added to `notes`.

    The mask of `a.jpg` is called `a` or `a_mask`, or has another of [`MASK_SUFFIXES`].

    Raises:
        ValueError: If an image has no mask, or two have the same one, or one has two.
    """
    masks: dict[Path, Path] = {}
    found = walk(os.fspath(folder), notes)  # as it finds the images, through linked folders, too
    for path in (folder / below / name for below, names in found for name in names if is_image(name)):
        other = masks.setdefault(path.relative_to(folder).with_suffix(""), path)
        if other != path:
            raise _two_masks(other, path)
    for stem in set(stems) - masks.keys():
        called = [name for suffix in MASK_SUFFIXES if (name := stem.with_name(stem.name + suffix)) in masks]
        if len(called) > 1:
            raise _two_masks(masks[called[0]], masks[called[1]])
        if called:
            masks[stem] = masks.pop(called[0])
    missing = [(path, stem) for path, stem in zip(paths, stems, strict=True) if stem not in masks]
    if missing:
        path, stem = missing[0]
        raise ValueError(
            f"{len(missing)} of {len(paths)} images have no mask, first {path}: expected "
            f"{folder / stem}.png. Add the masks, or take these images out."
        )
    first: dict[Path, Path] = {}
    for path, stem in zip(paths, stems, strict=True):
        if first.setdefault(stem, path) != path:
            raise ValueError(
                f"{first[stem]} and {path} have one mask, {masks[stem]}. Give each a name of its own, or take one out."
            )
    if unused := sorted(masks.keys() - first.keys()):
        notes.append(f"{len(unused):,} masks in {folder} have no image, first {masks[unused[0]]}: left out.")
    return masks


def _two_masks(one: Path, other: Path) -> ValueError:
    return ValueError(f"{one} and {other} are masks of one image. Take one of them out.")


def fingerprint_of_pairs(pairs: Sequence[Pair]) -> str:
    """Returns a text that changes with the images, with which of them there are, and with the content of the masks.

    Args:
        pairs (`Sequence` of [`Pair`]): Images with masks. Those of a scene follow each other.
    """
    sources = {id(pair.images): pair.images for pair in pairs}.values()
    parts: list[str | bytes] = [source.fingerprint for source in sources if isinstance(source, ImageSource)]
    before = None
    for pair in pairs:
        parts.append(str(pair.index))
        if pair.mask is not None and pair.mask is not before:  # once for all windows of a scene
            parts.append(pair.mask.read_bytes() if isinstance(pair.mask, Path) else pair.mask.tobytes())
        before = pair.mask
    return digest(*parts)


class MaskError(ValueError):
    """Raised for a mask that can be read but does not hold the numbers of classes."""


def read_mask(
    mask: Path | PIL.Image.Image,
    reduce_labels: bool = False,
    window: Window | None = None,
    pages: str | None = None,
) -> np.ndarray:
    """Returns the class of each pixel (height, width), uint8, `IGNORED` where it does not count.

    Args:
        mask (`Path` or `PIL.Image.Image`): A picture of one channel of integers, or a `.npy` file of them. Values
            that do not count are 255, what a file declares as no-data, what its own mask leaves out and, in deeper
            masks, negative ones and 65535.
        reduce_labels (`bool`, *optional*, defaults to `False`): Whether 0 does not count and classes count from 1.
        window ([`Window`], *optional*): Window of the mask's scene, to read only that part of the mask.
        pages (`str`, *optional*): `"first"` takes the first of several pages, as it does of images. Default: refuse
            them, since each may be the mask of a class.

    Raises:
        MaskError: If it holds something else than numbers of classes, or has another size than the scene.
    """
    classes, nodata = _read_numbers(mask, window, pages)
    if classes.dtype == np.bool_:
        classes = classes.astype(np.uint8)
    if classes.ndim != 2 or not np.issubdtype(classes.dtype, np.integer):
        raise MaskError(f"The mask {mask} has shape {classes.shape} and type {classes.dtype}, not integers (H, W).")
    classes = classes.astype(np.int64)
    classes = np.where((classes < 0) | (classes == 65535) | (classes == nodata), IGNORED, classes)
    if classes.max(initial=0) > IGNORED:
        raise MaskError(f"The mask {mask} has the class {classes.max()}. Classes are numbers below {IGNORED}.")
    if reduce_labels:
        classes = np.where(classes % IGNORED, classes - 1, IGNORED)
    return classes.astype(np.uint8)


def _read_numbers(
    mask: Path | PIL.Image.Image, window: Window | None, pages: str | None
) -> tuple[np.ndarray, float | None]:
    """Returns the numbers in a mask or in a window of it, and the number that the file declares as no-data.

    Of TIFF and `.npy` files only the window is read.
    """
    suffix = mask.suffix.lower() if isinstance(mask, Path) else ""
    if window is not None and suffix in (".tif", ".tiff"):
        scene = open_scene(str(mask), ReadingSettings(pages=pages))
        _check_size(mask, scene.size, window)
        return _numbers_of(Window(scene, window.rows, window.columns).read(), mask)
    if suffix == ".npy":
        numbers, nodata = np.load(str(mask), None if window is None else "r"), None
    else:
        numbers, nodata = _read_picture(mask, pages)
    if window is None:
        return numbers, nodata
    _check_size(mask, numbers.shape, window)
    return numbers[window.rows, window.columns], nodata


def _check_size(mask: Path | PIL.Image.Image, size: tuple[int, ...], window: Window):
    if size != window.scene.size:
        raise MaskError(f"The mask {mask} has shape {size}, its scene {window.scene.size}. Make both of one size.")


def _read_picture(mask: Path | PIL.Image.Image, pages: str | None) -> tuple[np.ndarray, float | None]:
    """Returns the numbers in a picture as they are stored, of a palette the indices, and which of them is no-data."""
    picture = open_image(os.fspath(mask)) if isinstance(mask, Path) else mask
    if (count := num_pages(picture)) > 1 and pages != "first":
        raise _not_numbers(mask, f"{count} pages")
    if not isinstance(picture, PIL.Image.Image):
        return _numbers_of(picture.read(), mask)
    with picture if isinstance(mask, Path) else nullcontext():
        if picture.mode not in ("1", "L", "P", "I", "I;16", "I;16B") or picture.format == "JPEG":
            raise _not_numbers(mask, f"format {picture.format} and mode {picture.mode}")
        if picture.mode == "P":
            return np.array(PIL.ImageOps.exif_transpose(picture)), declared_nodata(picture)
        return _numbers_of(read_stored(picture, 1, _NUMBERS), mask)


def _numbers_of(stored: StoredImage, mask: Path | PIL.Image.Image) -> tuple[np.ndarray, float | None]:
    numbers = stored.pixels if stored.numbers is None else stored.numbers
    if len(numbers) != 1:
        raise _not_numbers(mask, f"{len(numbers)} bands")
    if stored.missing is not None:
        numbers = np.where(stored.missing, IGNORED, numbers.astype(np.int64))
    return numbers[0], stored.nodata


def _not_numbers(mask: Path | PIL.Image.Image, found: str) -> MaskError:
    return MaskError(
        f"The mask {mask} has {found}. Expected a PNG of one channel that holds the numbers of the classes, not their "
        "colours."
    )


def read_pair(
    pair: Pair, image_processor: MAEImageProcessor, reduce_labels: bool = False
) -> tuple[torch.Tensor, np.ndarray]:
    """Returns an image (channels, height, width) in [0, 255] and its mask (height, width), see [`read_mask`].

    Where the image has no data its pixels do not count, whatever the mask says.

    Args:
        pair ([`Pair`]): Which one.
        image_processor ([`MAEImageProcessor`]): Says how many channels the model has and how files are read.
        reduce_labels (`bool`, *optional*, defaults to `False`): See [`read_mask`].

    Raises:
        OSError: If one cannot be read.
        ValueError: If they do not fit each other or the model.
    """
    image, reading = None, image_processor.reading
    try:
        image = pair.images[pair.index]
        stored = read_stored(image, image_processor.num_channels, reading)
        pixels, no_data = fill_missing(to_byte_range(stored, reading), reading)
        assert pair.mask is not None
        classes = read_mask(pair.mask, reduce_labels, image if isinstance(image, Window) else None, reading.pages)
    except UnsuitableImageError as error:
        raise error.of_file(pair.name) from error
    except MaskError:
        raise
    except Exception as error:  # decoders raise errors of any type for broken files
        if isinstance(image, PIL.Image.Image):
            image.close()
        raise OSError(f"{pair.name} or its mask can't be read: {error}. Mend both or take both out.") from error
    if classes.shape != pixels.shape[1:]:
        size = tuple(pixels.shape[1:])
        raise ValueError(f"The mask {pair.mask} has shape {classes.shape}, its image {size}. Make both of one size.")
    return pixels, ignore_where(no_data, classes)


def ignore_where(no_data: torch.Tensor | None, classes: np.ndarray) -> np.ndarray:
    """Returns classes (height, width) in which pixels without data do not count.

    Args:
        no_data (`torch.BoolTensor` of shape `(height, width)`, *optional*): Where the image has no data.
        classes (`np.ndarray` of uint8): See [`read_mask`].
    """
    return classes if no_data is None else np.where(no_data.numpy(), np.uint8(IGNORED), classes)


class SegmentationDataset(Dataset):
    """Gives `pixel_values` (channels, height, width), float32, and `labels` (height, width), int64, 255 for ignored.

    For training images are resized by a random factor, cropped or padded at a random place and turned, and masks alike;
    the randomness is torch's, as Trainer seeds it. For evaluation they are resized as a whole.
    """

    def __init__(
        self,
        pairs: list[Pair],
        image_processor: MAEImageProcessor,
        reduce_labels: bool = False,
        scale: tuple[float, float] = (1.0, 1.0),
        orientation: RandomOrientation | None = None,
    ):
        """
        Args:
            pairs (`list[Pair]`): Images and masks.
            image_processor ([`MAEImageProcessor`]): Its `size` is that of the pixel values.
            reduce_labels (`bool`, *optional*, defaults to `False`): See [`read_mask`].
            scale (`(low, high)`, *optional*, defaults to `(1.0, 1.0)`): Range of the random factor.
            orientation ([`RandomOrientation`], *optional*): Turns images and masks.
        """
        self.pairs, self.image_processor, self.reduce_labels = pairs, image_processor, reduce_labels
        self.scale, self.orientation = scale, orientation or RandomOrientation()
        self.size = image_processor.size.height, image_processor.size.width

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixels, mask = read_pair(self.pairs[index], self.image_processor, self.reduce_labels)
        rng = np.random.default_rng(torch.randint(2**62, ()).item())
        for _ in range(10):  # a view that shows nothing labelled teaches nothing
            view = ScaledView.draw(mask.shape, self.size, self.scale, rng)
            labels = view.crop(torch.from_numpy(mask)[None], "nearest-exact")[0]
            if (labels != IGNORED).any():
                break
        shown = self.image_processor.rescale_and_normalize(view.crop(pixels).clamp(0, 255))
        shown, labels = self.orientation(view.pad(shown), view.pad(labels, IGNORED))  # a margin of 0 is the mean
        return {"pixel_values": shown, "labels": labels.long()}


__all__ = [
    "IGNORED",
    "SPLITS",
    "MaskError",
    "Pair",
    "SegmentationDataset",
    "fingerprint_of_pairs",
    "folder_pairs",
    "ignore_where",
    "mask_folders",
    "read_mask",
    "read_pair",
    "sample_pairs",
]
