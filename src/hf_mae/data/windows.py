# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pictures of any size in overlapping windows: where these lie, how much each counts, and their pixels, row by row."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from ..modeling.image_processing_mae import MAEImageProcessor, resize
from ..modeling.reading_mae import (
    OpenedImage,
    ReadingSettings,
    StoredImage,
    fill_missing,
    read_stored,
    to_byte_range,
)
from ..modeling.tiff_mae import TiffFile
from .decoding import displayed_size, read_in_threads, try_to_read
from .folders import FolderImages
from .image_source import ImageSource
from .masks import Pair, ignore_where, read_mask
from .parts import TiledImages, Window, open_scene

# Distance of windows as a share of their side. With 2/3 every pixel that is not at the border of the picture lies at
# least a sixth of a window away from the border of some window, for 2.25 times the work of windows side by side; with
# 1/2 it is a quarter, for four times the work. Source: mmsegmentation's MAE on ADE20K, windows of 512 every 341 pixels.
STRIDE = 2 / 3

# Reads some rows of a picture: their stored values, and their classes if the picture has a mask.
_RowsOf = Callable[[slice], tuple[StoredImage, np.ndarray | None]]


def check_stride(stride: float) -> float:
    """Returns a stride that windows can have.

    Args:
        stride (`float`): Distance of windows as a share of their side.

    Raises:
        ValueError: If it is not in (0, 1].
    """
    if not 0 < stride <= 1:
        raise ValueError(
            f"`stride` is the distance of windows as a share of their side: it must be in (0, 1], got {stride:g}."
        )
    return stride


def window_starts(side: int, window: int, stride: float = STRIDE) -> list[int]:
    """Returns where windows start along a side: at even distances, so that they cover it and end with it.

    Args:
        side (`int`): Length of the side, in pixels or patches.
        window (`int`): Length of a window. Where it is longer than the side, there is one window.
        stride (`float`, *optional*, defaults to 2/3): Largest distance, as a share of the window.
    """
    last = max(side - window, 0)
    count = math.ceil(last / max(math.floor(stride * window), 1))
    return [round(number * last / max(count, 1)) for number in range(count + 1)]


def window_weights(starts: Sequence[int], window: int, side: int) -> torch.Tensor:
    """Returns how much each window counts at each of its positions (windows, window), float32.

    The weights fall linearly from the middle of a window to its ends, where it sees least of what is around a pixel.
    At every position of the side they add up to 1, so that one window changes into the next without a seam.

    Args:
        starts (`Sequence[int]`): See [`window_starts`].
        window (`int`): Length of a window, at most `side`.
        side (`int`): Length of the side.
    """
    inward = torch.arange(window) + 0.5
    slope = torch.minimum(inward, window - inward)
    total = torch.zeros(side)
    for start in starts:
        total[start : start + window] += slope
    return torch.stack([slope / total[start : start + window] for start in starts])


@dataclass(frozen=True)
class WindowGrid:
    """Windows in rows and columns that overlap and cover a picture.

    Attributes:
        size (`(height, width)`): The picture's.
        window (`(height, width)`): The windows', at most `size`.
        stride (`float`): Largest distance of windows, as a share of their sides.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    stride: float = STRIDE

    @classmethod
    def of_picture(
        cls, size: tuple[int, int], window: tuple[int, int] | None = None, stride: float = STRIDE
    ) -> "WindowGrid":
        """Returns the windows of a picture. A picture that is smaller than a window is a window itself.

        Args:
            size (`(height, width)`): The picture's.
            window (`(height, width)`, *optional*): The windows'. Default: the whole picture.
            stride (`float`, *optional*, defaults to 2/3): See [`window_starts`].
        """
        height, width = (min(sides) for sides in zip(size, window or size, strict=True))
        return cls(size, (height, width), stride)

    @cached_property
    def tops(self) -> list[int]:
        return window_starts(self.size[0], self.window[0], self.stride)

    @cached_property
    def lefts(self) -> list[int]:
        return window_starts(self.size[1], self.window[1], self.stride)

    @cached_property
    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the rows of windows and of the columns, see [`window_weights`]. A window has their product."""
        starts = zip((self.tops, self.lefts), self.window, self.size, strict=True)
        vertical, horizontal = (window_weights(*each) for each in starts)
        return vertical, horizontal

    @cached_property
    def finished(self) -> list[int]:
        """Of each row of windows, how many of its rows of pixels no later one reaches."""
        return [below - top for top, below in pairwise(self.tops)] + [self.window[0]]


class _Pictures(ImageSource):
    """Opens pictures. Those in `in_part` can be read in part, and are opened as scenes."""

    def __init__(self, pairs: list[Pair], reading: ReadingSettings):
        self.pairs, self.reading = pairs, reading
        self.in_part: set[int] = set()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> OpenedImage:
        pair = self.pairs[index]
        scene = self.scene(index) if index in self.in_part else None
        return pair.images[pair.index] if scene is None else Window.of_whole(scene)

    def describe(self, index: int) -> str:
        return self.pairs[index].name

    def scene(self, index: int) -> TiffFile | StoredImage | None:
        """Returns a file that can be read in part, or `None`.

        Other files are read as a whole, and [`try_to_read`] then says if one can't be opened.
        """
        pair = self.pairs[index]
        if not isinstance(pair.images, FolderImages):
            return None
        try:
            return open_scene(pair.images.describe(pair.index), self.reading)
        except Exception:  # of another type, without its optional library, or broken, for which there are many errors
            return None


class PictureStrips(Dataset):
    """Gives pictures in strips: a row of windows each, from the top of a picture to its bottom.

    A sample has `picture` (the index), `row` (that of the windows), `top` (its first row of pixels), `pixel_values`
    (windows, channels, height, width), each window resized to the size of the model, and of the rows of pixels that are
    finished with this strip (see [`WindowGrid`]) `no_data` (bool, or `None`) and `classes` (uint8, 255 where they do
    not count or there is no data, or `None` without masks). Of a picture that can't be read it has `picture`, `row` and
    `failure`, the reason. The last picture is kept, so read strips in order.

    Attributes:
        grids (`list[WindowGrid]`): The windows of each picture; of one that can't be opened a single pixel.
        strips (`list[(picture, row)]`): All strips.
    """

    def __init__(
        self,
        pairs: list[Pair],
        image_processor: MAEImageProcessor,
        window: tuple[int, int] | None = None,
        stride: float = STRIDE,
        reduce_labels: bool = False,
    ):
        """
        Args:
            pairs (`list[Pair]`): Pictures, perhaps with masks. The headers of all files are read.
            image_processor ([`MAEImageProcessor`]): Says how files are read. Its `size` is that of the model.
            window (`(height, width)`, *optional*): Pixels of windows in larger pictures. Default: whole pictures.
            stride (`float`, *optional*, defaults to 2/3): Largest distance of windows, as a share of their sides.
            reduce_labels (`bool`, *optional*, defaults to `False`): See [`read_mask`].
        """
        self.pairs, self.image_processor, self.reduce_labels = pairs, image_processor, reduce_labels
        self.pictures = _Pictures(pairs, image_processor.reading)
        check_stride(stride)
        sizes = sizes_of(pairs, image_processor)
        self.grids = [WindowGrid.of_picture(size or (1, 1), window, stride) for size in sizes]
        self.pictures.in_part = {picture for picture, grid in enumerate(self.grids) if len(grid.tops) > 1}
        self.strips = [(picture, row) for picture, grid in enumerate(self.grids) for row in range(len(grid.tops))]
        self._last: tuple[int, _RowsOf] | None = None

    def __len__(self) -> int:
        return len(self.strips)

    def num_windows(self, index: int) -> int:
        """Returns the number of windows of strip `index`."""
        return len(self.grids[self.strips[index][0]].lefts)

    def batches(self, num_windows: int, pictures: Iterable[int] | None = None) -> list[list[int]]:
        """Returns indices of strips in groups, in order. A group has at most `num_windows`, or it is one strip.

        Args:
            num_windows (`int`): Windows of one forward pass.
            pictures (`Iterable[int]`, *optional*): Whose strips. Default: those of all pictures.
        """
        chosen = set(range(len(self.pairs)) if pictures is None else pictures)
        batches: list[list[int]] = []
        room = 0
        for index in (index for index, (picture, _) in enumerate(self.strips) if picture in chosen):
            count = self.num_windows(index)
            if count > room:
                batches.append([])
                room = num_windows
            batches[-1].append(index)
            room -= count
        return batches

    def __getitem__(self, index: int) -> dict:
        picture, row = self.strips[index]
        sample, failure = try_to_read(self.pictures, picture, partial(self._strip, picture, row))
        return {"picture": picture, "row": row, **({"failure": failure} if sample is None else sample)}

    def _strip(self, picture: int, row: int, opened: OpenedImage) -> dict:
        if self._last is None or self._last[0] != picture:
            self._last = picture, self._reader(opened, self.pairs[picture].mask)
        grid, processor, (_, rows_of) = self.grids[picture], self.image_processor, self._last
        (height, width), top = grid.window, grid.tops[row]
        stored, classes = rows_of(slice(top, top + height))
        pixels, no_data = fill_missing(to_byte_range(stored, processor.reading), processor.reading)
        classes = None if classes is None else ignore_where(no_data, classes)
        size = processor.size.height, processor.size.width
        windows = [resize(pixels[..., left : left + width], size).clamp(0, 255) for left in grid.lefts]
        finished = slice(grid.finished[row])
        return {
            "pixel_values": processor.rescale_and_normalize(torch.stack(windows)),
            "top": top,
            "no_data": None if no_data is None else no_data[finished],
            "classes": None if classes is None else torch.from_numpy(classes[finished]),
        }

    def _reader(self, opened: OpenedImage, mask: Path | PIL.Image.Image | None) -> _RowsOf:
        """Returns what reads rows of a picture and of its mask: of a scene these alone, else both are decoded now."""
        if isinstance(opened, Window):
            return partial(self._rows_of_scene, opened, mask)
        reading = self.image_processor.reading
        stored = read_stored(opened, self.image_processor.num_channels, reading)
        classes = None if mask is None else read_mask(mask, self.reduce_labels, pages=reading.pages)
        if classes is not None and classes.shape != stored.size:
            raise ValueError(f"The mask {mask} has shape {classes.shape}, its image {stored.size}.")
        columns = slice(0, stored.size[1])
        return lambda rows: (stored.crop(rows, columns), None if classes is None else classes[rows])

    def _rows_of_scene(
        self, scene: Window, mask: Path | PIL.Image.Image | None, rows: slice
    ) -> tuple[StoredImage, np.ndarray | None]:
        window, reading = Window(scene.scene, rows, scene.columns), self.image_processor.reading
        stored = read_stored(window, self.image_processor.num_channels, reading)
        return stored, None if mask is None else read_mask(mask, self.reduce_labels, window, reading.pages)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_last": None}


def sizes_of(pairs: list[Pair], image_processor: MAEImageProcessor) -> list[tuple[int, int] | None]:
    """Returns the (height, width) of pictures as they are displayed, `None` where it can't be read.

    Args:
        pairs (`list[Pair]`): The pictures.
        image_processor ([`MAEImageProcessor`]): Says how files are read.
    """
    pictures, reading = _Pictures(pairs, image_processor.reading), image_processor.reading
    size = partial(displayed_size, num_channels=image_processor.num_channels, reading=reading)

    def read(index: int) -> tuple[int, int] | None:
        scene = pictures.scene(index)
        return try_to_read(pictures, index, size)[0] if scene is None else scene.size

    return read_in_threads(read, len(pairs))


def whole_pictures(pairs: list[Pair]) -> list[Pair]:
    """Returns the scenes that windows belong to, each once, and other pictures as they are.

    Args:
        pairs (`list[Pair]`): Pictures, or windows of scenes.
    """
    pictures: dict = {}
    for pair in pairs:
        if isinstance(pair.images, TiledImages):
            scenes, index = pair.images.images, int(pair.images.parts[pair.index, 0])
            pictures.setdefault((id(scenes), index), Pair(scenes, index, pair.mask, scenes.describe(index)))
        else:
            pictures[id(pair)] = pair
    return list(pictures.values())


__all__ = [
    "STRIDE",
    "PictureStrips",
    "WindowGrid",
    "check_stride",
    "sizes_of",
    "whole_pictures",
    "window_starts",
    "window_weights",
]
