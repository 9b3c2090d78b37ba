# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Opens TIFF files of any type, bands, pages and compression, whole or in windows.

Pillow reads those that it keeps exactly, tifffile (optional) all others.
"""

import io
import math
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import PIL.Image

from .formats_mae import (
    EXIF_ORIENTATION,
    ImageFile,
    StoredImage,
    UnsuitableImageError,
    library,
    native,
    oriented,
    reopened,
)

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_VIRTUAL_SLIDES = ("svs", "ndpi", "scn", "philips", "bif", "avs")
# Tags and their values. Source: TIFF 6.0; GDAL's GTiff driver for _NODATA.
_NODATA, _PALETTE, _YCBCR, _JPEG = 42113, 3, 6, 7
_PLAIN_PHOTOMETRICS = (0, 1, 2, _PALETTE, 34892)  # min is white, min is black, RGB, palette, linear raw


def tiff_tag(image: PIL.Image.Image, number: int):
    value = image.tag_v2.get(number) if hasattr(image, "tag_v2") else None
    return (value,) if isinstance(value, int) else value


def declared_nodata(image: PIL.Image.Image) -> float | None:
    return _parse_nodata(tiff_tag(image, _NODATA)) if image.format == "TIFF" else None


def _parse_nodata(text) -> float | None:
    try:
        return float(str(text).strip("\0 "))
    except ValueError:  # there is none
        return None


def open_tiff(file: str | bytes) -> PIL.Image.Image | ImageFile:
    """Opens a TIFF with Pillow where it reads all of it exactly, else with tifffile."""
    try:
        image = PIL.Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except PIL.UnidentifiedImageError:
        image = None
    if image is not None and _pillow_is_exact(image) and not _has_further_pages(image):
        return image
    if image is not None:
        image.close()
    return _with_tifffile(file)


def exact_tiff(image: PIL.Image.Image) -> PIL.Image.Image | ImageFile:
    """Returns a TIFF that somebody else opened with Pillow as [`open_tiff`] would have opened it.

    Raises:
        UnsuitableImageError: If Pillow has already decoded it to something else than is stored.
    """
    if getattr(image, "is_animated", False) and _has_further_pages(image):
        return _with_tifffile(reopened(image).getvalue())
    turned = (tiff_tag(image, EXIF_ORIENTATION) or (1,))[0] > 4 and bool(image.tile)
    if _pillow_is_exact(image) and not turned:
        return image
    if not image.tile or image.fp is None:
        raise UnsuitableImageError("Pillow has decoded it already, and lost a part of it. Give the path instead.")
    content = reopened(image).getvalue()
    # From memory, since Pillow 13 mixes up rows and columns of turned files that it maps into memory.
    return PIL.Image.open(io.BytesIO(content)) if _pillow_is_exact(image) else _with_tifffile(content)


def _with_tifffile(file: str | bytes) -> ImageFile:
    library("tifffile", "tiff", "This kind of TIFF (its type, number of bands, pages or compression)")
    return TiffFile(file)


def pages_of_tiff(image: PIL.Image.Image) -> list[int]:
    """Returns the numbers of the pages of a TIFF of Pillow that are neither smaller copies nor masks."""
    number, pages = 0, []
    while _seek(image, number):
        if not (tiff_tag(image, 254) or (0,))[0] & 5:
            pages.append(number)
        number += 1
    image.seek(0)
    return pages or [0]


def _seek(image: PIL.Image.Image, page: int) -> bool:
    """Goes to a page of a TIFF and reads its tags. Returns whether there is such a page."""
    try:
        image.seek(page)
    except EOFError:
        return False
    except SyntaxError:  # Pillow can't decode it, such as GDAL's masks; its tags are there
        pass
    return True


def _pillow_is_exact(image: PIL.Image.Image) -> bool:
    """Returns whether Pillow gives all bands of a TIFF's first page with the values that are stored."""
    bits, formats = tiff_tag(image, 258) or (1,), set(tiff_tag(image, 339) or (1,))
    samples, extra = (tiff_tag(image, 277) or (1,))[0], tiff_tag(image, 338) or ()
    if (tiff_tag(image, 284) or (1,))[0] == 2 and max(bits) > 8:
        return False  # band after band, even if there is one: Pillow fails to decode them
    if image.mode.startswith("I;16"):
        return samples == 1 and formats <= {1, 4} and len(set(bits)) == 1
    if image.mode == "I":
        return samples == 1 and formats == {2}
    if image.mode == "F":
        return samples == 1 and formats == {3} and bits == (32,)
    names = {"RGBX": 4, "PA": 2}
    bands = names.get(image.mode, len(image.getbands()))
    return (
        max(bits) <= 8
        and formats <= {1, 4}
        and samples == bands
        and image.mode != "RGBX"
        and 1 not in extra
        and (0 not in extra)
    )


def _has_further_pages(image: PIL.Image.Image) -> bool:
    """Returns whether a TIFF has another page that is not a smaller copy of the first: an image, or a mask."""
    page, further = 1, False
    while not further and _seek(image, page):
        kind = (tiff_tag(image, 254) or (0,))[0]
        further = not kind & 1 or bool(kind & 4)
        page += 1
    image.seek(0)
    return further


class TiffFile(ImageFile):
    """A TIFF of any type, bands and pages, by tifffile.

    Channels that OME or ImageJ metadata name as such are bands of one image, unless `pages` is set.
    """

    def __init__(self, file: str | bytes):
        super().__init__(file)
        with library("tifffile", "tiff", "A TIFF").TiffFile(self._stream()) as tiff:
            series = tiff.series[0]
            pages = _tiff_pages(tiff)
            self.num_pages = len(pages)
            self.size = pages[0].imagelength, pages[0].imagewidth
            if 0 in self.size:  # tifffile takes a header of nothing but zeros for one without tags
                raise OSError("its header states no rows or columns")
            whole = math.prod(series.shape) // max(math.prod(pages[0].shape), 1)
            # ImageJ and others write one page for a stack; the rest follows in the file.
            self._in_one_block = len(pages) == 1 and whole > 1
            self.num_pages = whole if self._in_one_block else len(pages)
            kind = series.kind in ("ome", "imagej") and len(tiff.series) == 1
            axes = dict(zip(series.axes, series.shape, strict=True))
            self.named_channels = kind and axes.get("C", 1) == self.num_pages
            tags = pages[0].tags
            self.nodata = _parse_nodata(tags[_NODATA].value) if _NODATA in tags else None
            self.turned = EXIF_ORIENTATION in tags and tags[EXIF_ORIENTATION].value != 1
            self.declares_nodata = _NODATA in tags or any(page.aspage().subfiletype & 4 for page in tiff.pages)
        self._open: dict = {}

    def read(self, page: int = 0) -> StoredImage:
        with library("tifffile", "tiff", "A TIFF").TiffFile(self._stream()) as tiff:
            pages = _tiff_pages(tiff)
            first = pages[0 if self._in_one_block else page]
            if self._in_one_block:
                array = tiff.series[0].asarray(maxworkers=1).reshape(self.num_pages, *first.shape)[page]
            else:
                array = _decode_tiff(lambda: first.asarray(maxworkers=1))
            tag = first.tags.get(EXIF_ORIENTATION)
            return oriented(_interpret_tiff(first, array, tiff), tag and tag.value)

    def read_window(self, rows: slice, columns: slice) -> StoredImage:
        """Returns a part of the first page, for which only the tiles or strips that it lies in are decoded."""
        tiff, page = self._opened()
        image = _interpret_tiff(page, self.read_numbers(rows, columns), tiff, rows, columns)
        return replace(image, origin=(rows.start, columns.start))

    def read_numbers(self, rows: slice, columns: slice) -> np.ndarray:
        """Returns a part of the first page as it is stored, in the order of its axes: of a palette the indices."""
        _, page = self._opened()
        if page.compression == _JPEG and page.axes == "SYX" and page.photometric > 1:
            raise UnsuitableImageError("Windows can't be read of colours that are stored apart and compressed as JPEG.")
        return _decode_tiff(lambda: _read_segments(page, rows, columns))

    def _opened(self) -> tuple:
        """Returns the file, opened by this process, and its first page."""
        opened = self._open.get(os.getpid())  # forked processes share the position of an open file
        if opened is None:
            tiff = library("tifffile", "tiff", "A TIFF").TiffFile(self._stream())
            tiff.filehandle.set_lock(True)  # as do threads
            opened = tiff, _tiff_pages(tiff)[0]
            self._open = {os.getpid(): opened}
        return opened

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


def _decode_tiff(decode: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return decode()
    except ValueError as error:
        if "imagecodecs" in str(error):
            raise UnsuitableImageError(
                f"The image's compression needs imagecodecs: pip install 'hf-mae[tiff]' ({error})."
            ) from error
        raise


def _tiff_pages(tiff) -> list:
    """Returns the pages that are images, not masks, smaller copies, thumbnails or labels."""
    if tiff.series[0].kind in _VIRTUAL_SLIDES:
        return list(tiff.series[0].levels[0].pages)
    pages = [page.aspage() for page in tiff.pages]
    return [page for page in pages if not page.subfiletype & 5] or pages[:1]


def _interpret_tiff(page, array: np.ndarray, tiff, rows=slice(None), columns=slice(None)) -> StoredImage:
    """Returns the values of a page as (bands, height, width), with what its tags say of them."""
    if page.axes not in ("YX", "YXS", "SYX"):
        raise UnsuitableImageError(f"Its pages have the axes {page.axes}; only images of rows and columns are read.")
    array = array[None] if page.axes == "YX" else array.transpose(2, 0, 1) if page.axes == "YXS" else array
    array = native(array)
    bits, limit, indices = page.bitspersample, None, None
    if page.photometric == _PALETTE:
        indices = array[0]
        array = (np.asarray(page.colormap) >> 8).astype(np.uint8)[:, indices]  # as Pillow reads them
    elif array.dtype.kind == "u" and bits < 8 * array.dtype.itemsize and array.dtype != np.bool_ and page.dtype != bool:
        limit = 2**bits - 1
    if page.photometric not in _PLAIN_PHOTOMETRICS and (page.photometric, page.compression) != (_YCBCR, _JPEG):
        raise UnsuitableImageError(
            f"The image's colours are {page.photometric.name} of {bits} bits. Convert it to RGB."
        )
    if page.compression == _JPEG and page.samplesperpixel == 3 and (page.photometric == 1 or page.axes == "SYX"):
        raise UnsuitableImageError(
            "Three bands that are no colours, or stored apart, are compressed as JPEG. Convert it."
        )
    extra = [int(kind) for kind in page.extrasamples or ()]
    return StoredImage(
        array,
        limit,
        nodata=_parse_nodata(page.tags[_NODATA].value) if _NODATA in page.tags else None,
        missing=_tiff_mask(page, tiff, rows, columns),
        indices=indices,
        inverted=page.photometric == 0,
        alpha=bool(extra) and extra[-1] in (1, 2),
        premultiplied=extra[-1:] == [1],
    )


def _tiff_mask(page, tiff, rows: slice, columns: slice) -> np.ndarray | None:
    """Returns where GDAL's mask page says that there are no data."""
    for other in tiff.pages:
        other = other.aspage()
        if other.subfiletype & 4 and other.shape[-2:] == (page.imagelength, page.imagewidth):
            whole = rows == slice(None) and columns == slice(None)
            return (other.asarray(maxworkers=1) if whole else _read_segments(other, rows, columns)) == 0
    return None


def _read_segments(page, rows: slice, columns: slice) -> np.ndarray:
    """Returns a window of a page in the order of its axes, decoding only the tiles or strips that it lies in."""
    separate = page.axes == "SYX"
    samples = page.samplesperpixel
    height, width = rows.stop - rows.start, columns.stop - columns.start
    fill = page.nodata if _NODATA in page.tags else 0
    window = np.full((samples, height, width), fill, dtype=page.dtype)
    tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    tile = min(tile[0], page.imagelength), tile[1]
    across, down = math.ceil(page.imagewidth / tile[1]), math.ceil(page.imagelength / tile[0])
    tables = page.jpegtables if hasattr(page, "jpegtables") else None
    for plane in range(samples if separate else 1):
        for y in range(rows.start // tile[0], math.ceil(rows.stop / tile[0])):
            for x in range(columns.start // tile[1], math.ceil(columns.stop / tile[1])):
                index = plane * across * down + y * across + x
                if not page.databytecounts[index]:
                    continue  # sparse: nothing is stored, so nothing is there
                with page.parent.filehandle.lock:
                    page.parent.filehandle.seek(page.dataoffsets[index])
                    data = page.parent.filehandle.read(page.databytecounts[index])
                segment, _, shape = page.decode(data, index, jpegtables=tables)
                segment = segment[0, : shape[1], : shape[2]]  # (rows, columns, samples)
                top, left = y * tile[0], x * tile[1]
                part = segment[
                    max(rows.start - top, 0) : rows.stop - top, max(columns.start - left, 0) : columns.stop - left
                ].transpose(2, 0, 1)
                i, j = max(top - rows.start, 0), max(left - columns.start, 0)
                target = slice(plane, plane + 1) if separate else slice(None)
                window[target, i : i + part.shape[1], j : j + part.shape[2]] = part
    return {"YX": window[0], "SYX": window, "YXS": window.transpose(1, 2, 0)}[page.axes]
