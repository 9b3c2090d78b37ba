# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images that are parts of files: windows of large scenes, pages of stacks."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..modeling.formats_mae import library, native
from ..modeling.reading_mae import (
    DEFAULT_SETTINGS,
    ImageFile,
    OpenedImage,
    ReadingSettings,
    StoredImage,
    UnsuitableImageError,
    as_tensor,
    extension_of,
    find_missing,
    num_pages,
    page_of,
)
from ..modeling.tiff_mae import TIFF_SIGNATURES, TiffFile
from .decoding import read_image, try_to_read
from .folders import FolderImages
from .image_source import DerivedImages, ImageSource, digest

_OPEN_SCENES = 32  # at most, of one source


class PartsOfImages(DerivedImages):
    """Parts of the images of another source, as images of their own. All parts of an image are held out together.

    Attributes:
        parts (`np.ndarray` of int64, of shape `(len(self), 1 + k)`): For each part the index of its image in `images`,
            and k numbers that say which part of the image it is.
        place_names (`tuple[str, ...]`): What the k numbers of a part are, all counted from 0.
    """

    place_names: tuple[str, ...]

    def __init__(self, images: ImageSource, parts: Sequence[tuple[int, ...]], kind: str):
        self.parts = np.array(parts, dtype=np.int64)
        super().__init__(images, self.parts[:, 0])
        self.fingerprint = digest(images.fingerprint, kind, self.parts)

    def file_of(self, index: int) -> str:
        """Returns the name of the image that part `index` is a part of."""
        return super().describe(index)


def files_of(images: ImageSource) -> ImageSource:
    """Returns the source of the files that windows or pages come from, and any other source as it is."""
    return images.images if isinstance(images, PartsOfImages) else images


class PagedImages(PartsOfImages):
    """The pages, frames or slices of all files of a source. `parts` holds (image, page)."""

    place_names = ("page",)

    def __init__(self, images: ImageSource):
        """
        Args:
            images ([`ImageSource`]): The files. All of them are opened, which takes about a millisecond each.
        """
        parts, unreadable = set(), {}
        for index in range(len(images)):
            count, read, failed = read_image(images, index, num_pages)
            parts.update((read, page) for page in range(count))
            unreadable.update(failed)
        super().__init__(images, sorted(parts), "pages")
        self.notes.extend(f"Skipped {name}, which can't be read: {reason}" for name, reason in unreadable.items())
        if len(parts) > len(images):
            self.notes.append(f"{len(images):,} files have {len(parts):,} pages, each of which is an image.")

    def __getitem__(self, index: int) -> OpenedImage:
        image, page = (int(value) for value in self.parts[index])
        return page_of(self.images[image], page)

    def describe(self, index: int) -> str:
        return f"{self.file_of(index)}, page {self.parts[index, 1] + 1}"


class Window(ImageFile):
    """A part of a scene; only the tiles or strips of the file that it lies in are decoded."""

    num_pages = 1

    def __init__(self, scene: TiffFile | StoredImage, rows: slice, columns: slice):
        super().__init__(getattr(scene, "file", b""))
        self.scene, self.rows, self.columns = scene, rows, columns
        self.size = rows.stop - rows.start, columns.stop - columns.start

    @classmethod
    def of_whole(cls, scene: TiffFile | StoredImage) -> "Window":
        """Returns the window that a scene fills."""
        height, width = scene.size
        return cls(scene, slice(0, height), slice(0, width))

    def read(self, page: int = 0) -> StoredImage:
        if isinstance(self.scene, TiffFile):
            return self.scene.read_window(self.rows, self.columns)
        part = self.scene.crop(self.rows, self.columns)
        return replace(part, pixels=native(part.pixels))


class _Scenes(ImageSource):
    """The scenes of a folder, each opened as a window of all of it."""

    def __init__(self, images: FolderImages, reading: ReadingSettings):
        self.images, self.reading = images, reading

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Window:
        return Window.of_whole(open_scene(self.images.describe(index), self.reading))

    def describe(self, index: int) -> str:
        return self.images.describe(index)


class TiledImages(PartsOfImages):
    """Square windows of the scenes in a folder, each an image. `parts` holds (scene, top row, left column).

    The last windows of a row or column are moved inwards so that all have the same size and together cover the scene. A
    scene that is smaller than a window is one.

    Attributes:
        unreadable (`dict[str, str]`): Names of scenes that can't be read and are left out, with the reasons.
    """

    place_names = ("row", "column")

    def __init__(self, images: FolderImages, tile: int, reading: ReadingSettings, drop_empty: bool = True):
        """
        Args:
            images ([`FolderImages`]): TIFF or `.npy` files, which can be read in part.
            tile (`int`): Pixels of a window's side.
            reading ([`ReadingSettings`]): How to read files.
            drop_empty (`bool`, *optional*, defaults to `True`): Whether to leave out windows that hold nothing but
                no-data. To find them, scenes that may have no-data are read once.

        Raises:
            UnsuitableImageError: If a file can't be read in part.
            OSError: If no scene can be read.
            ValueError: If no window has data.
        """
        if tile < 1:
            raise ValueError(f"`tile` must be at least 1, got {tile}.")
        self.tile, self.reading = tile, reading
        self._opened: dict = {}
        self.unreadable: dict[str, str] = {}
        scenes, parts, dropped = _Scenes(images, reading), [], 0
        for index in range(len(images)):
            found, reason = try_to_read(scenes, index, partial(self._places_in, drop_empty))
            if found is None:
                self.unreadable[images.describe(index)] = reason
                continue
            places, without_data = found
            parts.extend((index, *place) for place in places)
            dropped += without_data
        if len(self.unreadable) == len(images):
            name, reason = next(iter(self.unreadable.items()))
            raise OSError(
                f"None of the {len(images)} scenes of {images.name} can be read. The first is {name}: {reason}. Repair "
                "the files."
            )
        if not parts:
            raise ValueError(f"All {dropped} windows of {images.name} hold nothing but no-data.")
        super().__init__(images, parts, f"windows of {tile}")
        self.notes.extend(f"Skipped {name}, which can't be read: {reason}" for name, reason in self.unreadable.items())
        what = f"{len(images) - len(self.unreadable):,} scene(s) have {len(parts):,} windows of {tile} x {tile} pixels"
        self.notes.append(f"{what}; {dropped:,} without data are left out." if dropped else f"{what}.")

    def __getitem__(self, index: int) -> OpenedImage:
        scene, top, left = (int(value) for value in self.parts[index])
        path = self.images.describe(scene)
        if path not in self._opened:
            if len(self._opened) >= _OPEN_SCENES:
                del self._opened[next(iter(self._opened))]  # that was opened first
            self._opened[path] = open_scene(path, self.reading)
        return self._window(self._opened[path], top, left)

    def describe(self, index: int) -> str:
        _, top, left = self.parts[index]
        return f"{self.file_of(index)}, row {top}, column {left}"

    def _places_in(self, drop_empty: bool, whole: Window) -> tuple[list[tuple[int, int]], int]:
        """Returns where the windows of a scene lie, and how many windows are left out because they have no data."""
        tops, lefts = (_starts(side, self.tile) for side in whole.size)
        places = [(top, left) for top in tops for left in lefts]
        if not drop_empty or not _may_have_no_data(whole.scene, self.reading):
            return places, 0
        kept = [place for place in places if _has_data(self._window(whole.scene, *place), self.reading)]
        return kept, len(places) - len(kept)

    def _window(self, scene: TiffFile | StoredImage, top: int, left: int) -> Window:
        height, width = scene.size
        rows, columns = slice(top, min(top + self.tile, height)), slice(left, min(left + self.tile, width))
        return Window(scene, rows, columns)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": {}}


def _starts(side: int, tile: int) -> list[int]:
    """Returns where windows start along a side. They lie next to each other, and the last one ends with the side."""
    return [*range(0, max(side - tile, 0), tile), max(side - tile, 0)]


def open_scene(path: str, reading: ReadingSettings = DEFAULT_SETTINGS) -> TiffFile | StoredImage:
    """Opens a file that can be read in part, without decoding it.

    Args:
        path (`str`): A TIFF or a `.npy` file.
        reading ([`ReadingSettings`], *optional*): How to read pages and axes.

    Raises:
        UnsuitableImageError: If it is of another kind, a TIFF of several pages, or an array that is no image.
        OSError: If it is named as a TIFF or a `.npy` file and does not begin like one.
    """
    with open(path, "rb") as stream:
        start = stream.read(6)
    if start.startswith(TIFF_SIGNATURES):
        library("tifffile", "tiff", f"{path}: a window of a TIFF")
        scene = TiffFile(path)
        if scene.num_pages > 1 and reading.pages != "first":
            raise UnsuitableImageError(f"{path}: it has {scene.num_pages} pages; set `pages` to first for its first.")
        return scene
    if start.startswith(b"\x93NUMPY"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim not in (2, 3) or 0 in array.shape:
            raise UnsuitableImageError(
                f"{path}: its shape {array.shape} is not that of one scene: HW, HWC or CHW. Save each scene in its own "
                "file."
            )
        if array.ndim == 2:
            return StoredImage(array[None])
        first = reading.channels_first
        if first is None:  # a scene has far fewer bands than pixels
            first = array.shape[0] == min(array.shape)
        return StoredImage(array if first else array.transpose(2, 0, 1))
    extension = extension_of(path)
    if extension in (".tif", ".tiff", ".npy"):
        raise OSError(f"it does not begin as a file {extension} does")
    raise UnsuitableImageError(
        f"{path}: `tile` needs files that can be read in part: TIFF or .npy, not {extension}. "
        "GDAL converts many: gdal_translate -co TILED=YES."
    )


def _may_have_no_data(scene: TiffFile | StoredImage, reading: ReadingSettings) -> bool:
    return reading.nodata is not None or (isinstance(scene, TiffFile) and scene.declares_nodata)


def _has_data(window: Window, reading: ReadingSettings) -> bool:
    image = window.read()
    missing = find_missing(image, as_tensor(image.pixels), reading)
    return missing is None or not bool(missing.expand(image.pixels.shape).all())


__all__ = ["PagedImages", "PartsOfImages", "TiledImages", "Window", "files_of", "open_scene"]
