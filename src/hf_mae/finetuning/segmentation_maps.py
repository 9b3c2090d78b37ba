# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Predicts the class of each pixel of pictures and scenes of any size, and writes maps of them, as PNG and GeoTIFF."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import UperNetForSemanticSegmentation

from ..cli import in_flags
from ..data.folders import FolderImages, walk
from ..data.masks import IGNORED, Pair
from ..data.parts import PagedImages
from ..data.windows import STRIDE, PictureStrips, WindowGrid
from ..modeling.formats_mae import EXIF_ORIENTATION, library
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.reading_mae import extension_of
from ..modeling.tiff_mae import TIFF_SIGNATURES
from ..publishing.records import replacing

# Where a GeoTIFF lies on the earth. Source: OGC GeoTIFF 1.1, annex D: ModelPixelScale, ModelTiepoint,
# ModelTransformation, GeoKeyDirectory, GeoDoubleParams, GeoAsciiParams.
_GEOGRAPHIC_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
_NODATA = 42113  # GDAL's GTiff driver
_BAND = 2**25  # logits of a whole picture that are resized at once, 128 MB


class _Blender:
    """Adds up the logits of the windows of pictures, strip by strip, each with its weights."""

    def __init__(self, grids: list[WindowGrid]):
        """
        Args:
            grids (`list[WindowGrid]`): The windows of each picture.
        """
        self.grids = grids
        self._below: torch.Tensor | None = None  # what windows so far give to rows that the next strip finishes

    def add(self, strip: dict, logits: Iterator[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields the first of some rows of the picture, and their logits (classes, rows, width).

        Args:
            strip (`dict`): Of [`PictureStrips`].
            logits (`Iterator`): Logits (classes, height, width) of windows. As many are taken as the strip has.
        """
        grid, row = self.grids[strip["picture"]], strip["row"]
        if len(grid.tops) == len(grid.lefts) == 1:
            yield from _in_bands(next(logits), grid.size)
            return
        vertical, horizontal = grid.weights
        (height, width), total = grid.window, None
        for left, weights in zip(grid.lefts, horizontal, strict=True):
            scores = _resized_rows(next(logits), grid.window, 0, height)
            total = scores.new_zeros(len(scores), height, grid.size[1]) if total is None else total
            weights = vertical[row][:, None] * weights
            total[:, :, left : left + width] += scores * weights.to(scores.device, non_blocking=True)
        assert total is not None
        if row and self._below is not None:
            total[:, : self._below.shape[1]] += self._below
        finished = grid.finished[row]
        self._below = total[:, finished:].clone()
        yield grid.tops[row], total[:, :finished]

    def forget(self):
        """Drops what was added up, since a strip can't be read."""
        self._below = None


def _in_bands(logits: torch.Tensor, size: tuple[int, int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields logits (classes, height, width) at another size, some rows at once, since a picture may have many."""
    rows = max(_BAND // (len(logits) * size[1]), 1)
    for top in range(0, size[0], rows):
        yield top, _resized_rows(logits, size, top, min(top + rows, size[0]))


def _resized_rows(logits: torch.Tensor, size: tuple[int, int], start: int, stop: int) -> torch.Tensor:
    """Returns rows `start` to `stop` of logits (classes, height, width) that are resized to `size`, bilinear."""
    if logits.shape[1:] == size:
        return logits[:, start:stop]
    height = logits.shape[1]
    places = (torch.arange(start, stop, device=logits.device) + 0.5) * (height / size[0]) - 0.5
    places = places.clamp(0, height - 1)
    above = places.long()
    rows = torch.lerp(logits[:, above], logits[:, (above + 1).clamp(max=height - 1)], (places - above)[:, None])
    return nn.functional.interpolate(rows[None], size=(stop - start, size[1]), mode="bilinear")[0]


class BlendedRows(NamedTuple):
    """Holds the logits of some rows of a picture.

    Attributes:
        strip (`dict`): The sample of [`PictureStrips`] that finished them.
        top (`int`): The first of the rows.
        logits (`torch.Tensor` of shape `(classes, rows, width)` or `None`): Float32; `None` if the picture can't be
            read.
    """

    strip: dict
    top: int
    logits: torch.Tensor | None


@torch.no_grad()
def blended_logits(
    model: nn.Module, batches: Iterable[list[dict]], grids: list[WindowGrid], batch_size: int, bf16: bool = False
) -> Iterator[BlendedRows]:
    """Yields rows of pictures with their logits, in order: the mean of those of all windows that a pixel lies in.

    A window counts the less, the nearer the pixel lies to its border, see [`hf_mae.data.windows.window_weights`]. Of a
    picture in windows no more is held than the logits of a row of them.

    Args:
        model (`nn.Module`): Returns `logits` (batch, classes, height, width), in evaluation mode.
        batches (`Iterable`): Batches of samples of [`PictureStrips`], all strips of a picture one after the other.
        grids (`list[WindowGrid]`): The windows of each picture.
        batch_size (`int`): Windows of one forward pass.
        bf16 (`bool`, *optional*, defaults to `False`): Whether to compute in bfloat16 where that is safe.

    Yields:
        [`BlendedRows`], of a picture that can't be read without logits.
    """
    device = next(model.parameters()).device

    def predict(pixel_values: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in pixel_values.split(batch_size):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(part.to(device, non_blocking=True)).logits
            yield from logits.float()

    blender = _Blender(grids)
    for strips in batches:
        windows = [strip["pixel_values"] for strip in strips if "failure" not in strip]
        logits = predict(torch.cat(windows)) if windows else iter(())
        for strip in strips:
            if "failure" in strip:
                blender.forget()
                yield BlendedRows(strip, 0, None)
            else:
                for top, rows in blender.add(strip, islice(logits, len(strip["pixel_values"]))):
                    yield BlendedRows(strip, top, rows)


def open_pictures(data: str | os.PathLike, output_dir: str | os.PathLike) -> FolderImages:
    """Opens pictures to make maps of, but not the maps that lie among them from another time.

    Args:
        data (`str`): A folder of pictures, or one picture.
        output_dir (`str`): Folder of the maps, perhaps below that of the pictures.

    Raises:
        OSError: If there is no such folder or picture.
        ValueError: If there is no picture in it.
    """
    folder = Path(data)
    if not folder.exists():
        raise OSError(f"`data` {data} does not exist. Give a folder of pictures, or one picture.")
    if not folder.is_dir():
        return FolderImages(folder.parent, [("", [folder.name])], "none")
    maps, notes = Path(output_dir).resolve(), []
    if folder.resolve() not in maps.parents:
        return FolderImages(folder, labels="none")
    content = walk(os.fspath(folder), notes)
    listing = [(below, names) for below, names in content if not (folder / below).resolve().is_relative_to(maps)]
    images = FolderImages(folder, listing, "none")
    images.notes = [*notes, *images.notes]
    return images


def write_class_maps(
    model: UperNetForSemanticSegmentation,
    images: FolderImages | str | os.PathLike,
    image_processor: MAEImageProcessor,
    output_dir: str | os.PathLike,
    window: int | tuple[int, int] | None = None,
    stride: float = STRIDE,
    batch_size: int = 16,
    num_workers: int = 0,
    bf16: bool = False,
    overwrite_output_dir: bool = False,
) -> list[Path]:
    """Writes a map of the class of each pixel for every picture, and returns the files. Prints what can't be read.

    A map is as large as its picture. TIFF files give TIFF files with the same place on the earth, all others PNG. With
    `pages="images"` in the image processor each page is a picture, and a file of several pages gives a TIFF of as many.
    The values are numbers of classes as in the masks that the model was trained on: with `reduce_labels` in its
    configuration they count from 1. 255 is no data (65535 in maps of 16 bits, for more than 255 classes). A picture is
    never replaced.

    Args:
        model ([`~transformers.UperNetForSemanticSegmentation`]): The model.
        images ([`FolderImages`] or `str`): The pictures or scenes, or a folder of them, or one of them.
        image_processor ([`MAEImageProcessor`]): That of the model.
        output_dir (`str`): Folder for the maps, which lie there as the pictures do in theirs.
        window (`int` or `(height, width)`, *optional*): Pixels of the windows that larger pictures are cut into, see
            [`blended_logits`]. TIFF and `.npy` scenes are read row of windows by row. Default: whole pictures. Windows
            and whole pictures are resized to the size of the model, and their logits back.
        stride (`float`, *optional*, defaults to 2/3): Largest distance of windows, as a share of their sides.
        batch_size (`int`, *optional*, defaults to 16): Windows of one forward pass.
        num_workers (`int`, *optional*, defaults to 0): Number of processes that read.
        bf16 (`bool`, *optional*, defaults to `False`): Whether to compute in bfloat16 where that is safe.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`): Whether to replace files that are named as maps.

    Raises:
        UnsuitableImageError: If a picture does not suit the model.
        ValueError: If no picture can be read, a file would be replaced, or `stride` is not in (0, 1].
    """
    images = images if isinstance(images, FolderImages) else open_pictures(images, output_dir)
    window = (window, window) if isinstance(window, int) else window
    pairs, file_of = _open_pages(images) if image_processor.reading.pages == "images" else _open_files(images)
    paths = [Path(output_dir) / name for name in _names_of_maps(images, Counter(file_of))]
    _refuse_to_replace(paths, images, Path(output_dir), overwrite_output_dir)
    strips = PictureStrips(pairs, image_processor, window, stride)
    groups = strips.batches(batch_size)
    loader = DataLoader(strips, batch_sampler=groups, num_workers=num_workers, collate_fn=list)
    first = int(getattr(model.config, "reduce_labels", False))
    dtype, no_data = (np.uint8, IGNORED) if first + model.config.num_labels <= IGNORED else (np.uint16, 65535)
    parts = blended_logits(model.eval(), tqdm(loader, unit="batch"), strips.grids, batch_size, bf16)
    written = []
    for file, of_file in groupby(parts, lambda part: file_of[part.strip["picture"]]):
        maps, failures = [], []
        for picture, some in groupby(of_file, lambda part: part.strip["picture"]):
            classes, failure = _put_together(some, np.full(strips.grids[picture].size, no_data, dtype), first)
            maps.append(classes)
            if failure is not None:
                failures.append(f"{pairs[picture].name}, which can't be read: {failure}")
        if failures:
            print(f"Skipped {failures[0]}", flush=True)
            continue
        path = paths[file]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            _write_map(partial, maps, images.describe(file), no_data)
        written.append(path)
    if not written:
        raise ValueError(f"None of the {len(images)} pictures of {images.name} could be read.")
    return written


def _open_files(images: FolderImages) -> tuple[list[Pair], list[int]]:
    """Returns the pictures of a source, and the file that each of them is in."""
    files = list(range(len(images)))
    return [Pair(images, file, None, images.describe(file)) for file in files], files


def _open_pages(images: FolderImages) -> tuple[list[Pair], list[int]]:
    """Returns the pages of all files, and the file that each of them is in. Prints which files can't be read."""
    pages = PagedImages(images)
    for note in pages.notes[len(images.notes) :]:
        print(in_flags(note), flush=True)
    files = [int(file) for file, *_ in pages.parts]
    times = Counter(files)
    # A file of one page stays one that may be read in part.
    pairs = [
        Pair(images, file, None, images.describe(file))
        if times[file] == 1
        else Pair(pages, index, None, pages.describe(index))
        for index, file in enumerate(files)
    ]
    return pairs, files


def _names_of_maps(images: FolderImages, num_pages: Mapping[int, int]) -> list[str]:
    """Returns the path of each map below the folder: that of the file, with another extension.

    Where several pictures would get the same one, as a.jpg and a.png, the extension is added to their whole names.
    """
    paths = [os.path.relpath(images.describe(index), images.folder) for index in range(len(images))]
    kinds = [".tif" if _is_tiff(path) or num_pages[file] > 1 else ".png" for file, path in enumerate(paths)]
    stems = [path[: len(path) - len(extension_of(path))] for path in paths]
    while True:
        names = [stem + kind for stem, kind in zip(stems, kinds, strict=True)]
        times = Counter(names)
        # A whole name may be the stem of another picture, such as a.jpg.png. Whole names differ from each other.
        longer = [path if times[name] > 1 else stem for path, name, stem in zip(paths, names, stems, strict=True)]
        if longer == stems:
            return names
        stems = longer


def _refuse_to_replace(maps: list[Path], images: FolderImages, output_dir: Path, overwrite: bool):
    """Raises `ValueError` if maps would replace pictures or become some, or if files are there and must not go."""
    pictures = {os.path.realpath(images.describe(index)) for index in range(len(images))}
    if output_dir.resolve() == images.folder.resolve() or any(os.path.realpath(path) in pictures for path in maps):
        raise ValueError(
            f"Maps in `output_dir` {output_dir} would replace pictures or be taken for pictures the next time. Choose "
            "another folder."
        )
    there = [path for path in maps if path.exists()]
    if there and not overwrite:
        raise ValueError(
            f"{len(there):,} of {len(maps):,} maps would replace files, first {there[0]}. Choose another `output_dir`, "
            "or set `overwrite_output_dir`."
        )


def _is_tiff(path: str) -> bool:
    return extension_of(path) in (".tif", ".tiff")


def _put_together(parts: Iterable[BlendedRows], classes: np.ndarray, first: int) -> tuple[np.ndarray, str | None]:
    """Returns the map of a picture, and why it is not complete.

    Args:
        parts (`Iterable`): Rows of the picture, see [`blended_logits`].
        classes (`np.ndarray` of shape `(height, width)`): The value of no data, in which the map is written.
        first (`int`): Number of the first class.
    """
    failure, no_data = None, classes.flat[0]
    for strip, top, logits in parts:
        if logits is None:
            failure = strip["failure"]
            continue
        rows = slice(top, top + logits.shape[1])
        classes[rows] = logits.argmax(dim=0).add_(first).cpu().numpy()
        if strip["no_data"] is not None:
            above = strip["top"]
            classes[rows][strip["no_data"][top - above : top - above + logits.shape[1]].numpy()] = no_data
    return classes, failure


def _write_map(path: Path, maps: list[np.ndarray], source: str, no_data: int):
    """Writes the map of each page as PNG, or as a tiled TIFF with the geographic tags of its source."""
    if path.suffix != ".tif":
        PIL.Image.fromarray(maps[0]).save(path, format="PNG")
        return
    tifffile = library("tifffile", "tiff", "A map of a TIFF or of several pages")
    options = {"photometric": "minisblack", "metadata": None, "compression": "zlib"}
    tags = [*(_geographic_tags(source) if _is_tiff(source) else []), (_NODATA, "s", 0, str(no_data), True)]
    with tifffile.TiffWriter(path) as file:
        for classes in maps:
            file.write(classes, tile=(256, 256), extratags=tags, **options)


def _geographic_tags(source: str) -> list[tuple]:
    """Returns the tags that say where a TIFF lies, as tifffile writes them; none if the TIFF has to be turned."""
    with open(source, "rb") as file:
        if not file.read(4).startswith(TIFF_SIGNATURES):  # a JPEG, say, that is named as a TIFF
            return []
    with library("tifffile", "tiff", "A map of a TIFF").TiffFile(source) as tiff:
        tags = tiff.pages[0].tags
        with suppress(KeyError):
            if tags[EXIF_ORIENTATION].value != 1:
                return []
        found = [tags[code] for code in _GEOGRAPHIC_TAGS if code in tags]
        return [(tag.code, tag.dtype, tag.count, tag.value, True) for tag in found]


__all__ = ["BlendedRows", "blended_logits", "open_pictures", "write_class_maps"]
