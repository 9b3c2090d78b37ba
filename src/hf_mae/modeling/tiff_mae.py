# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Opens TIFF files of any type, bands, pages and compression, whole or in windows.

Pillow reads those that it keeps exactly, tifffile (optional) all others.
"""

import io
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import dropwhile, product, takewhile

import numpy as np
import PIL.Image
from PIL.ExifTags import Base as Tag

from .formats_mae import (
    EXIF_ORIENTATION,
    ORIENTATIONS,
    ImageFile,
    StoredImage,
    UnsuitableImageError,
    joined,
    library,
    native,
    oriented,
    reopened,
)

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_VIRTUAL_SLIDES = ("svs", "ndpi", "scn", "philips", "bif", "avs")
_NODATA = 42113  # a tag of GDAL's GTiff driver
_SMALLER, _MASK = 1, 4  # bits of NewSubfileType. Source of the values of tags: TIFF 6.0
_PALETTE, _SEPARATED, _YCBCR = 3, 5, 6  # ways to state colours
_INK_SET = 332  # 1: cyan, magenta, yellow and black
_OLD_JPEG, _JPEG, _WEBP, _LERC = 6, 7, 50001, 34887  # ways to compress
_APERIO_YCBCR = 33003  # JPEG 2000 of Aperio's slides, whose code stream does not say that it holds YCbCr
_LERC_PARAMETERS = 50674  # the version, and whether the content is compressed once more: 0 no, 1 deflate, 2 Zstandard
_LERC_MASK = (
    "LERC keeps its opacity or no-data as a mask of its own, which is read only of floats. Compress it otherwise: "
    "gdal_translate -co COMPRESS=DEFLATE."
)
_JPEGS = (_OLD_JPEG, _JPEG)
_FAXES = (2, 3, 4)
_METAMORPH = 33629  # has an entry for each plane
_PLAIN_PHOTOMETRICS = (0, 1, 2, _PALETTE, 34892)  # min is white, min is black, RGB, palette, linear raw


def tag_values(image: PIL.Image.Image, tag: int, default: tuple = ()) -> tuple:
    """Returns the values of a tag of a TIFF that Pillow has opened, `default` if there is no such tag."""
    value = getattr(image, "tag_v2", {}).get(tag, ())
    # Values of one byte each come as bytes.
    return (tuple(value) if isinstance(value, tuple | bytes) else (value,)) or default


def tag_value(image: PIL.Image.Image, tag: int, default: int | None = None) -> int | None:
    """Returns the first value of a tag of a TIFF that Pillow has opened, `default` if there is no such tag."""
    return tag_values(image, tag, (default,))[0]


def white_is_zero(photometric: int | None, compression: int) -> bool:
    """Returns whether 0 is white. Of files that do not say it, though they must, it is in faxes, as libtiff has it."""
    return photometric == 0 or (photometric is None and compression in _FAXES)


def declared_nodata(image: PIL.Image.Image) -> float | None:
    """Returns the value that a TIFF of Pillow declares for pixels without data; `None` for other pictures."""
    return _parse_nodata(getattr(image, "tag_v2", {}).get(_NODATA)) if image.format == "TIFF" else None


def _parse_nodata(text) -> float | None:
    try:
        return float(str(text).strip("\0 "))
    except ValueError:  # there is none
        return None


def open_tiff(file: str | bytes) -> PIL.Image.Image | ImageFile:
    """Opens a TIFF with Pillow where it reads all of it exactly, else with tifffile."""
    log, nothing = logging.getLogger("PIL.TiffImagePlugin"), lambda record: False
    log.addFilter(nothing)  # it prints an error where there are more bands than Pillow takes, which tifffile does
    try:
        image = PIL.Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except PIL.UnidentifiedImageError:
        image = None
    finally:
        log.removeFilter(nothing)
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
    turned = tag_value(image, EXIF_ORIENTATION, 1) > 4 and bool(image.tile)
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


def _parsed(file: str | io.BytesIO):
    """Returns a TIFF opened by tifffile, without other files that OME metadata name as parts of one image."""
    return library("tifffile", "tiff", "A TIFF").TiffFile(file, _multifile=False)


def pages_of_tiff(image: PIL.Image.Image) -> list[int]:
    """Returns the numbers of the pages of a TIFF of Pillow that are neither smaller copies nor masks."""
    number, pages = 0, []
    while _seek(image, number):
        if not tag_value(image, Tag.NewSubfileType, 0) & (_SMALLER | _MASK):
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
    bits, formats = tag_values(image, Tag.BitsPerSample, (1,)), set(tag_values(image, Tag.SampleFormat, (1,)))
    samples, extra = tag_value(image, Tag.SamplesPerPixel, 1), set(tag_values(image, Tag.ExtraSamples))
    kind, compression = (tag_value(image, tag, 1) for tag in (Tag.PhotometricInterpretation, Tag.Compression))
    byte_counts = tag_values(image, Tag.StripByteCounts) or tag_values(image, Tag.TileByteCounts)
    if compression == _WEBP or (kind == _YCBCR and compression not in _JPEGS) or 0 in byte_counts:
        return False  # Pillow opens these and fails to decode them; a strip of no bytes holds nothing but no-data
    if compression in _JPEGS and max(bits) > 8:
        return False  # as above
    if tag_value(image, Tag.TileWidth) and len(tag_values(image, Tag.TileOffsets)) != _num_tiles(image):
        return False  # Pillow takes tiles that are listed as strips for such, and lays surplus ones over the first
    if kind == _PALETTE and max(tag_values(image, Tag.ColorMap, (256,))) < 256:
        return False  # Pillow takes the high byte of each entry, and these have but a low one
    if kind == _SEPARATED and tag_value(image, _INK_SET, 1) != 1:
        return False  # inks that Pillow takes for cyan, magenta, yellow and black
    if _is_stack_in_one_block(image) or _is_thumbnail(image):
        return False
    if _is_planar(image) and (max(bits) > 8 or image.mode in ("LA", "PA")):
        return False  # band after band, even if there is one: Pillow fails to decode them
    if image.mode.startswith("I;16"):
        return samples == 1 and formats <= {1, 4} and len(set(bits)) == 1
    if image.mode in ("I", "F"):  # big-endian values that were compressed are in the order of the machine once decoded
        swapped = image.tag_v2.prefix == b"MM" and compression != 1
        return samples == 1 and not swapped and (formats == {2} or (formats == {3} and bits == (32,)))
    if max(bits) > 8 or not formats <= {1, 4} or samples != len(image.getbands()) or image.mode == "RGBX":
        return False
    if not extra:  # Pillow takes a band that nothing is said of for opacity
        return image.mode not in ("LA", "PA", "RGBA")
    return not extra & {0, 1}  # of no stated meaning; an opacity by which the colours are multiplied


def _is_stack_in_one_block(image: PIL.Image.Image) -> bool:
    """Returns whether further planes may follow the first page of a TIFF, of which Pillow knows nothing.

    So ImageJ writes stacks of more than 4 GB, tifffile those that it calls truncated, and MetaMorph all.
    """
    description = str(image.tag_v2.get(Tag.ImageDescription, ""))
    of_imagej = description.startswith("ImageJ=") and re.search(r"^images=(?!1\s*$)", description, re.MULTILINE)
    return bool(of_imagej) or '"truncated": true' in description or _METAMORPH in image.tag_v2


def _is_thumbnail(image: PIL.Image.Image) -> bool:
    """Returns whether the first page of a TIFF is a smaller copy of an image below it, as cameras write it."""
    return bool(tag_value(image, Tag.NewSubfileType, 0) & _SMALLER) and Tag.SubIFDs in image.tag_v2


def _is_planar(image: PIL.Image.Image) -> bool:
    """Returns whether the bands of a TIFF are stored one after the other."""
    return tag_value(image, Tag.PlanarConfiguration, 1) == 2


def _num_tiles(image: PIL.Image.Image) -> int:
    tile = (tag_value(image, tag) for tag in (Tag.TileWidth, Tag.TileLength))
    columns, rows = (math.ceil(side / part) for side, part in zip(image.size, tile, strict=True))
    return rows * columns * (tag_value(image, Tag.SamplesPerPixel, 1) if _is_planar(image) else 1)


def _has_further_pages(image: PIL.Image.Image) -> bool:
    """Returns whether a TIFF has another page that is not a smaller copy of the first: an image, or a mask."""
    page, further = 1, False
    while not further and _seek(image, page):
        kind = tag_value(image, Tag.NewSubfileType, 0)
        further = not kind & _SMALLER or bool(kind & _MASK)
        page += 1
    image.seek(0)
    return further


class TiffFile(ImageFile):
    """A TIFF of any type, bands and pages, by tifffile.

    Channels that OME or ImageJ metadata name as such are bands of one image, unless `pages` is set.
    """

    def __init__(self, file: str | bytes):
        super().__init__(file)
        with _parsed(self._stream()) as tiff:
            series = tiff.series[0]
            pages, every = _tiff_pages(tiff)
            self.size = pages[0].imagelength, pages[0].imagewidth
            if 0 in self.size:  # tifffile takes a header of nothing but zeros for one without tags
                raise OSError("its header states no rows or columns")
            whole = math.prod(series.shape) // max(math.prod(pages[0].shape), 1)
            # ImageJ and others write one page for a stack; the rest follows in the file.
            self._in_one_block = len(pages) == 1 and whole > 1 and series.dataoffset is not None
            self.num_pages = whole if self._in_one_block else len(pages)
            kind = series.kind in ("ome", "imagej") and len(tiff.series) == 1
            axes = dict(zip(series.axes, series.shape, strict=True))
            self.named_channels = kind and axes.get("C", 1) == self.num_pages
            tags = pages[0].tags
            self._orientation = tags[EXIF_ORIENTATION].value if EXIF_ORIENTATION in tags else 1
            if ORIENTATIONS.get(self._orientation, (False,))[0]:
                self.size = self.size[::-1]
            self.declares_nodata = _NODATA in tags or any(page.subfiletype & _MASK for page in every)
        self._open: dict = {}

    def read(self, page: int = 0) -> StoredImage:
        return self._read([page])[0]

    def read_all(self) -> StoredImage:
        return joined(self._read(range(self.num_pages)))

    def _read(self, numbers: Sequence[int]) -> list[StoredImage]:
        """Returns pages of a file, which is parsed once for all of them: parsing takes time for every page in it."""
        with _parsed(self._stream()) as tiff:
            (shown, every), images = _tiff_pages(tiff), []
            for number in numbers:
                page = shown[0 if self._in_one_block else number]
                if self._in_one_block:
                    array = _plane_of_block(tiff, page.shape, number)
                else:
                    array = _decode_tiff(partial(_read_part, page))
                tag = page.tags.get(EXIF_ORIENTATION)
                images.append(oriented(_interpret_tiff(page, array, every), tag and tag.value))
            return images

    def read_window(self, rows: slice, columns: slice) -> StoredImage:
        """Returns a part of the first page, for which only the tiles or strips that it lies in are decoded.

        Args:
            rows, columns (`slice`): Of the image after its orientation is applied.
        """
        page, every = self._opened()
        stored = self._in_file(rows, columns)
        if page.compression == _JPEG and page.axes == "SYX" and page.photometric > 1:
            raise UnsuitableImageError("Windows can't be read of colours that are stored apart and compressed as JPEG.")
        if page.compression == _OLD_JPEG and len(page.dataoffsets) > 1:
            raise UnsuitableImageError(
                "Windows can't be read of strips that are compressed as JPEG in the old way. Convert it, for example "
                "by gdal_translate -co COMPRESS=DEFLATE -co TILED=YES."
            )
        array = _decode_tiff(partial(_read_part, page, *stored))
        image = oriented(_interpret_tiff(page, array, every, *stored), self._orientation)
        return replace(image, origin=(rows.start, columns.start))

    def _in_file(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Returns where a window of the oriented image lies in the file."""
        swap, *flips = ORIENTATIONS.get(self._orientation, (False, False, False))
        parts = [
            slice(side - part.stop, side - part.start) if flip else part
            for part, side, flip in zip((rows, columns), self.size, flips, strict=True)
        ]
        return (parts[1], parts[0]) if swap else (parts[0], parts[1])

    def _opened(self) -> tuple:
        """Returns the first image of the file, opened by this process, and all pages."""
        opened = self._open.get(os.getpid())  # forked processes share the position of an open file
        if opened is None:
            tiff = _parsed(self._stream())
            tiff.filehandle.set_lock(True)  # as do threads
            shown, every = _tiff_pages(tiff)
            opened = shown[0], every
            self._open = {os.getpid(): opened}
        return opened

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


def _decode_tiff(decode: Callable[[], np.ndarray]) -> np.ndarray:
    try:
        return decode()
    except (NotImplementedError, ValueError) as error:
        if "imagecodecs" in str(error):
            raise UnsuitableImageError(
                f"The image's compression needs imagecodecs: pip install 'hf-mae[tiff]' ({error})."
            ) from error
        if "not supported" in str(error):
            raise UnsuitableImageError(
                f"The image can't be decoded ({error}). Convert it, for example by gdal_translate -co COMPRESS=DEFLATE."
            ) from error
        raise


def _plane_of_block(tiff, shape: tuple[int, ...], number: int) -> np.ndarray:
    """Returns one plane of a stack that is stored in one block."""
    kind = np.dtype(tiff.byteorder + tiff.series[0].dtype.char)
    count = math.prod(shape)
    offset = tiff.series[0].dataoffset + number * count * kind.itemsize
    return tiff.filehandle.read_array(kind, count, offset).reshape(shape)


def _tiff_pages(tiff) -> tuple[list, list]:
    """Returns the pages that are images, not masks, smaller copies, thumbnails or labels, and all pages."""
    series = tiff.series[0]  # before the pages, which takes half the time
    every = [page.aspage() for page in tiff.pages]
    if series.kind == "scn":  # of Leica, which begins with an overview of the glass
        series = max(tiff.series, key=lambda each: math.prod(each.shape))
    if series.kind in _VIRTUAL_SLIDES:
        return list(series.levels[0].pages), every
    shown = _whole_images(every)
    if series.kind == "ome":  # whose metadata say which page is which channel
        places = {page.offset: place for place, page in enumerate(series.pages) if page is not None}
        shown.sort(key=lambda page: places.get(page.offset, len(every)))
    if not shown:  # the only page is a thumbnail, see `_is_thumbnail`
        shown = _whole_images([below.aspage() for page in every for below in page.pages or ()])
    return shown or every[:1], every


def _whole_images(pages: list) -> list:
    return [page for page in pages if not page.subfiletype & (_SMALLER | _MASK)]


def _interpret_tiff(page, array: np.ndarray, every: list, rows=slice(None), columns=slice(None)) -> StoredImage:
    """Returns the values of a page as (bands, height, width), with what its tags say of them."""
    if page.axes not in ("YX", "YXS", "SYX"):
        raise UnsuitableImageError(f"Its pages have the axes {page.axes}; only images of rows and columns are read.")
    array = array[None] if page.axes == "YX" else array.transpose(2, 0, 1) if page.axes == "YXS" else array
    array = native(array.view(np.uint8) if array.dtype == np.bool_ else array)
    bits, limit, numbers = page.bitspersample, None, None
    if page.photometric == _PALETTE:
        numbers, colours = array[:1], np.asarray(page.colormap)
        # Entries have 16 bits, of which the high ones count. Some programs write 8 bits into the low ones.
        colours = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)[:, array[0]]
        array = np.concatenate([colours, (array[1:] * (255 / (2**bits - 1))).astype(np.uint8)])  # with its opacity
    elif array.dtype.kind == "u" and bits < 8 * array.dtype.itemsize:
        limit = 2**bits - 1
    if page.compression == _APERIO_YCBCR and len(array) == 3 and array.dtype == np.uint8:  # whatever the tag says
        colours = PIL.Image.frombytes("YCbCr", array.shape[:0:-1], array.transpose(1, 2, 0).tobytes())
        array = np.asarray(colours.convert("RGB")).transpose(2, 0, 1)
    elif page.photometric not in _PLAIN_PHOTOMETRICS and (page.photometric, page.compression) != (_YCBCR, _JPEG):
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
        missing=_tiff_mask(page, every, rows, columns),
        numbers=numbers,
        inverted=white_is_zero(
            page.photometric if Tag.PhotometricInterpretation in page.tags else None, page.compression
        ),
        alpha=bool(extra) and extra[-1] in (1, 2),
        premultiplied=extra[-1:] == [1],
    )


def _tiff_mask(page, every: list, rows: slice, columns: slice) -> np.ndarray | None:
    """Returns where there are no data by GDAL's mask, a page that follows the page of the image."""
    following = dropwhile(lambda other: other.offset != page.offset, every)
    for other in takewhile(lambda o: o.offset == page.offset or o.subfiletype & (_SMALLER | _MASK), following):
        if other.subfiletype & _MASK and other.shape[-2:] == (page.imagelength, page.imagewidth):
            return (_read_part(other, rows, columns) == 0)[None]
    return None


def _read_part(page, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
    """Returns a window of a page in the order of its axes, decoding only the tiles or strips that it lies in."""
    if rows == columns == slice(None) and page.compression != _LERC and page.dtype is not None:
        return page.asarray(maxworkers=1)
    rows, columns = slice(*rows.indices(page.imagelength)), slice(*columns.indices(page.imagewidth))
    separate = page.axes == "SYX"
    fill = page.nodata if _NODATA in page.tags else 0
    shape = (page.samplesperpixel, rows.stop - rows.start, columns.stop - columns.start)
    window = np.full(shape, fill, dtype=page.dtype)
    tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    tile = min(tile[0], page.imagelength), tile[1]
    across, down = math.ceil(page.imagewidth / tile[1]), math.ceil(page.imagelength / tile[0])
    planes = range(page.samplesperpixel if separate else 1)
    ys = range(rows.start // tile[0], math.ceil(rows.stop / tile[0]))
    xs = range(columns.start // tile[1], math.ceil(columns.stop / tile[1]))
    for plane, y, x in product(planes, ys, xs):
        segment = _decode_segment(page, (plane * down + y) * across + x)
        if segment is None:
            continue
        top, left = y * tile[0] - rows.start, x * tile[1] - columns.start  # of the segment in the window
        part = segment[max(-top, 0) : shape[1] - top, max(-left, 0) : shape[2] - left].transpose(2, 0, 1)
        i, j = max(top, 0), max(left, 0)
        bands = slice(plane, plane + 1) if separate else slice(None)
        window[bands, i : i + part.shape[1], j : j + part.shape[2]] = part
    return {"YX": window[0], "SYX": window, "YXS": window.transpose(1, 2, 0)}[page.axes]


def _decode_segment(page, index: int) -> np.ndarray | None:
    """Returns a tile or strip of a page as (rows, columns, samples), or `None` if nothing is stored of it."""
    if not page.databytecounts[index]:
        return None
    with page.parent.filehandle.lock:
        page.parent.filehandle.seek(page.dataoffsets[index])
        data = page.parent.filehandle.read(page.databytecounts[index])
    if page.compression == _LERC:
        segment, shape = _decode_lerc(page, data, index)
    else:
        segment, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
    return segment[0, : shape[1], : shape[2]]


def _decode_lerc(page, data: bytes, index: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Returns a segment and its shape. Where the mask of the segment leaves pixels out, it is NaN; tifffile gives 0.

    Raises:
        UnsuitableImageError: If the mask is the opacity, or the values know no NaN.
    """
    try:
        segment, _, shape = page.decode(data, index)
    except ValueError as error:
        if "reshape" in str(error) and page.extrasamples:
            raise UnsuitableImageError(_LERC_MASK) from error
        raise
    codecs = library("imagecodecs", "tiff", "A TIFF compressed as LERC")
    further = page.tags[_LERC_PARAMETERS].value[1] if _LERC_PARAMETERS in page.tags else 0
    data = {0: bytes, 1: codecs.zlib_decode, 2: codecs.zstd_decode}[further](data)
    _, masks = codecs.lerc_decode(data, masks=True)
    known = np.ones(segment.shape[:3], dtype=bool) if masks is None else np.asarray(masks).reshape(segment.shape[:3])
    if known.all():
        return segment, shape
    if segment.dtype.kind != "f":
        raise UnsuitableImageError(_LERC_MASK)
    return np.where(known[..., None], segment, segment.dtype.type(np.nan)), shape
