# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What all readers of image files share, and those of formats that Pillow does not read.

DICOM by pydicom and NIfTI by nibabel, both of them optional; FITS and arrays without another library. Pictures are in
pictures_mae.py and TIFF in tiff_mae.py. A file whose pixels would be changed, dropped or made up is refused by
[`UnsuitableImageError`]. reading_mae.py decides which reader a file goes to.
"""

import gzip
import importlib
import io
import math
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import PIL.Image
import torch

EXIF_ORIENTATION = 0x0112
# (swap rows and columns, then flip rows, flip columns) of each orientation. Source: Exif 2.3, section 4.6.4.
ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class UnsuitableImageError(ValueError):
    """Raised for a file that is intact but can't be used with these settings: its type, bands, pages or NaN.

    Unlike an unreadable file it is not replaced by another one, since all others may be of the same kind. Only a
    pre-training run does so, once it has looked at some images.
    """

    def __init__(self, message: str):
        # A loader worker passes errors on with their whole traceback in the message; its last line is the message.
        super().__init__(message.rsplit("UnsuitableImageError: ", 1)[-1].strip())

    def of_file(self, name: str) -> "UnsuitableImageError":
        """Returns the same error with the name of the file in front, if that is not named yet."""
        return UnsuitableImageError(str(self) if not name or name in str(self) else f"{name}: {self}")


@dataclass
class StoredImage:
    """An image with the values of its file.

    Attributes:
        pixels (`np.ndarray` or `torch.Tensor` of shape `(channels, height, width)`): Of any type.
        limit (`float`, *optional*): Value that means white, such as 4095 for 12 bits. Default: the type's largest.
        nodata (`float`, *optional*): Value that the file declares for pixels without data.
        missing (`np.ndarray` of shape `(1 or channels, height, width)`, *optional*): True where the file's mask says no
            data.
        numbers (`np.ndarray` of shape `(1 or channels, height, width)`, *optional*): The stored values, with which
            no-data is compared, if `pixels` hold other values: colours of a palette, or colours mixed with a
            background.
        transparent (`np.ndarray` of shape `(1 or channels, height, width)`, *optional*): True where `pixels` are
            nothing but background.
        inverted (`bool`): Whether the smallest value is white.
        alpha (`bool`): Whether the last channel is the opacity.
        premultiplied (`bool`): Whether the colours are multiplied by the opacity.
        origin (`(row, column)`): Where the first pixel lies in the file, for messages.
    """

    pixels: np.ndarray | torch.Tensor
    limit: float | None = None
    nodata: float | None = None
    missing: np.ndarray | None = None
    numbers: np.ndarray | None = None
    transparent: np.ndarray | None = None
    inverted: bool = False
    alpha: bool = False
    premultiplied: bool = False
    origin: tuple[int, int] = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return tuple(self.pixels.shape[1:])

    @property
    def type_name(self) -> str:
        """The type of the values, such as `"uint16"`."""
        return str(self.pixels.dtype).removeprefix("torch.")

    def crop(self, rows: slice, columns: slice) -> "StoredImage":
        """Returns a part of the image; nothing is copied."""
        origin = (self.origin[0] + (rows.start or 0), self.origin[1] + (columns.start or 0))
        return replace(self.of_all_maps(lambda each: each[:, rows, columns]), origin=origin)

    def with_channels(self, chosen: Sequence[int] | slice) -> "StoredImage":
        """Returns the image with some of its channels, counted from 0; maps that all channels share are kept."""
        count = len(self.pixels)
        return self.of_all_maps(lambda each: each[chosen] if len(each) == count else each)

    def of_all_maps(self, change: Callable) -> "StoredImage":
        """Returns the image with `change` applied to all that it holds of shape `(channels, height, width)`."""
        maps = {name: getattr(self, name) for name in ("pixels", "missing", "numbers", "transparent")}
        return replace(self, **{name: change(each) for name, each in maps.items() if each is not None})


class ImageFile:
    """An image file that is opened by another library than Pillow; its pixels are decoded by `read`.

    No handle is kept open, since the position of a file is shared by forked processes.

    Attributes:
        num_pages (`int`): Pages, frames or slices.
        named_channels (`bool`): Whether the file says that its pages are channels of one image.
    """

    num_pages: int
    named_channels = False

    def __init__(self, file: str | bytes):
        self.file = file

    def read(self, page: int = 0) -> StoredImage:
        """Returns one page."""
        raise NotImplementedError

    def read_all(self) -> StoredImage:
        """Returns all pages, their channels one after the other."""
        pages = [self.read(page) for page in range(self.num_pages)]
        return joined(pages)

    def _stream(self):
        return io.BytesIO(self.file) if isinstance(self.file, bytes) else self.file


class ImagePage(ImageFile):
    """One page of a file, as an image of its own."""

    num_pages = 1

    def __init__(self, file: ImageFile, page: int):
        super().__init__(file)
        self.page = page

    def read(self, page: int = 0) -> StoredImage:
        return self.file.read(self.page)


def library(name: str, extra: str, purpose: str) -> ModuleType:
    """Imports an optional library when a file needs it, which takes up to half a second.

    Args:
        name (`str`): The module.
        extra (`str`): Extra of hf-mae that installs it.
        purpose (`str`): Which files need it, as the subject of a sentence.

    Raises:
        UnsuitableImageError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise UnsuitableImageError(f"{purpose} needs {package}: pip install 'hf-mae[{extra}]'.") from error


def joined(pages: Sequence[StoredImage]) -> StoredImage:
    """Returns one image whose channels are those of all pages.

    Raises:
        UnsuitableImageError: If the pages differ in what is said once of an image: size, type, white, no-data.
    """
    facts = {
        "size": {page.size for page in pages},
        "type": {page.type_name for page in pages},
        "white": {(page.limit, page.inverted) for page in pages},
        "no-data": {str(page.nodata): page for page in pages if page.nodata is not None},  # nan is not equal to itself
    }
    if differing := [name for name, found in facts.items() if len(found) > 1]:
        raise UnsuitableImageError(
            f"The {len(pages)} pages differ in {' and '.join(differing)} and can't be channels of one image. Set "
            "`pages` to first or images, or convert the file."
        )

    def of_each_channel(name: str, default: Callable) -> np.ndarray | None:
        maps = [getattr(page, name) for page in pages]
        if all(each is None for each in maps):
            return None
        maps = [default(page) if each is None else each for each, page in zip(maps, pages, strict=True)]
        return np.concatenate(
            [np.broadcast_to(each, page.pixels.shape) for each, page in zip(maps, pages, strict=True)]
        )

    return replace(
        pages[0],
        pixels=np.concatenate([page.pixels for page in pages]),
        missing=of_each_channel("missing", lambda page: np.False_),
        numbers=of_each_channel("numbers", lambda page: page.pixels),
        transparent=of_each_channel("transparent", lambda page: np.False_),
        nodata=next((page.nodata for page in pages if page.nodata is not None), None),
        alpha=False,
    )


def exif_orientation(picture: PIL.Image.Image) -> int | None:
    """Returns the EXIF orientation of a picture, `None` if it has none, or an EXIF that is broken."""
    try:
        return picture.getexif().get(EXIF_ORIENTATION)
    except Exception:  # of any type; the pixels may be intact
        return None


def oriented(image: StoredImage, orientation: int | None) -> StoredImage:
    """Returns an image turned and mirrored by its EXIF orientation, 1 to 8."""
    swap, flip_rows, flip_columns = ORIENTATIONS.get(orientation, (False, False, False))
    axes = [axis for axis, flip in ((-2, flip_rows), (-1, flip_columns)) if flip]

    def turn(array):
        array = array.swapaxes(-1, -2) if swap else array
        return np.flip(array, axes) if axes else array

    return image.of_all_maps(turn)


def native(array: np.ndarray) -> np.ndarray:
    """Returns an array in the byte order of the machine; booleans become 0 and 255.

    Raises:
        UnsuitableImageError: If the values are no real numbers.
    """
    if array.dtype.kind not in "buif":
        raise UnsuitableImageError(f"The image's values are of type {array.dtype}. Convert them to integers or floats.")
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.itemsize > 8:  # long doubles
        return array.astype(np.float64)
    kind = np.dtype(f"{array.dtype.kind}{array.dtype.itemsize}")  # also of C's long long, which torch does not take
    return array.astype(kind, copy=False).view(kind)


def reopened(image: PIL.Image.Image) -> io.BytesIO:
    """Returns the content of the file that Pillow has opened."""
    position = image.fp.tell()
    image.fp.seek(0)
    content = io.BytesIO(image.fp.read())
    image.fp.seek(position)
    return content


# ----------------------------------------------------------------------------------------------------------------------
# DICOM, NIfTI, FITS, arrays


class DicomFile(ImageFile):
    """A DICOM file, by pydicom: rescaled values (Hounsfield units for CT), colours as RGB, frames as pages."""

    def __init__(self, file: str | bytes):
        super().__init__(file)
        self._header = self._parsed(stop_before_pixels=True)
        if "Rows" not in self._header:
            raise ValueError("the DICOM file holds no image")
        self.num_pages = int(self._header.get("NumberOfFrames") or 1)
        self.size = int(self._header.Rows), int(self._header.Columns)

    def _parsed(self, **options):
        pydicom = library("pydicom", "dicom", "A DICOM file")
        data = pydicom.dcmread(self._stream(), force=True, **options)
        if "TransferSyntaxUID" not in data.file_meta:  # a bare data set, as old programs write it
            implicit = data.original_encoding[0]
            data.file_meta.TransferSyntaxUID = (
                pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
            )
        return data

    def read(self, page: int = 0) -> StoredImage:
        header, array = self._header, native(self._decode(page))
        # Deeper unsigned values, such as doses, have no white of their own.
        bits, missing = int(header.get("BitsStored") or 32), None
        limit = 2**bits - 1 if array.dtype.kind == "u" and bits <= 16 else None
        if header.PhotometricInterpretation == "PALETTE COLOR":
            array, limit = self._colours(array)
        elif array.ndim == 2:
            missing = self._padding(array)
            array, limit = self._rescaled(array, page, limit)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        image = StoredImage(array, limit, missing=missing, inverted=header.PhotometricInterpretation == "MONOCHROME1")
        if image.inverted and limit is not None and array.max(initial=0) <= limit:
            # Turned before a `value_range`, which then means the same brightness in files of both kinds.
            image = replace(image, pixels=(limit - array).astype(array.dtype), numbers=array, inverted=False)
        return image

    def _decode(self, page: int) -> np.ndarray:
        """Returns the stored values of a frame, colours as RGB.

        Raises:
            UnsuitableImageError: If there is no decoder for them.
        """
        try:
            return self._frame(page)
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).lower()
            if not any(word in reason for word in ("transfer syntax", "plugin", "decompress")):
                raise  # broken
            raise UnsuitableImageError(
                "Its pixels can't be decoded. If the decoder is missing, install it: pip install 'hf-mae[dicom]'. Else "
                "try to unpack the file by the command that this installs: gdcmconv --raw OLD NEW. "
                f"{' '.join(str(error).split())[:200]}"
            ) from error

    def _frame(self, page: int) -> np.ndarray:
        pixels, shift = library("pydicom.pixels", "dicom", "A DICOM file"), self._shift()
        if self.num_pages > 1 and self._header.BitsAllocated == 1 and math.prod(self.size) % 8:
            return pixels.pixel_array(self._parsed())[page]  # one by one, frames that begin within a byte are misread
        if self.num_pages > 1 and not shift:
            with suppress(AttributeError, ValueError):  # such as of deflated files, which can't be read in part
                return pixels.pixel_array(self._stream(), index=page)
        data = self._parsed()
        if not shift:
            return pixels.pixel_array(data, index=page)
        data.BitsStored += shift  # else pydicom would cut the highest bits off
        return pixels.pixel_array(data, index=page) >> shift

    def _shift(self) -> int:
        """Returns how many unused bits lie below those of a value. Old files without compression may have some."""
        header = self._header
        shift = int(header.get("HighBit") or 0) + 1 - int(header.get("BitsStored") or 32)
        return 0 if shift <= 0 or header.file_meta.TransferSyntaxUID.is_encapsulated else shift

    def _colours(self, array: np.ndarray) -> tuple[np.ndarray, int]:
        """Returns the colours that the palette has for the stored values, and which of their values is white."""
        pixels = library("pydicom.pixels", "dicom", "A DICOM file")
        entries, first, _ = self._header.RedPaletteColorLookupTableDescriptor
        palette = pixels.apply_color_lut(np.arange(entries or 2**16, dtype=np.int32)[None] + first, self._header)
        # Entries of 16 bits may hold 8, whatever the descriptor says.
        return pixels.apply_color_lut(array, self._header), 255 if palette.max() <= 255 else 65535

    def _padding(self, array: np.ndarray) -> np.ndarray | None:
        """Returns where stored values are padding by the header, and so no data."""
        values = [self._header.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
        if values[0] is None:
            return None
        # In the type of the pixels: many programs write a negative value as one without a sign.
        low, high = sorted(np.array([values[0] if value is None else value for value in values]).astype(array.dtype))
        return ((array >= low) & (array <= high))[None]

    def _rescaled(self, array: np.ndarray, page: int, limit: int | None) -> tuple[np.ndarray, int | None]:
        """Returns the values of a frame in the unit that the header gives them, if any, and which of them is white."""
        header = self._header
        frames, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
        for group in (*(frames[page : page + 1] if frames else ()), *(shared or ())):  # enhanced, of many frames
            if group.get("PixelValueTransformationSequence"):
                header = group.PixelValueTransformationSequence[0]
                break
        if (tables := header.get("ModalityLUTSequence")) and tables[0].get("LUTDescriptor"):
            entries, (_, first, bits) = tables[0].LUTData, tables[0].LUTDescriptor
            if isinstance(entries, bytes):
                entries = np.frombuffer(entries, "<u2" if self._header.original_encoding[1] else ">u2")
            places = (array.astype(np.int64) - first).clip(0, len(entries) - 1)
            return np.asarray(entries, dtype=np.uint16)[places], 2**bits - 1
        # One may be there without the other, or be empty.
        slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
        if (slope, intercept) == (1, 0):
            return array, limit
        return array.astype(np.float64) * slope + intercept, None


class NiftiFile(ImageFile):
    """A NIfTI volume, by nibabel. Its pages are the slices along the third axis (of each point in time)."""

    def __init__(self, file: str | bytes):
        super().__init__(file)
        shape = self._volume().shape
        self.num_pages, self.size = math.prod(shape[2:]), (shape[1], shape[0])

    def read(self, page: int = 0) -> StoredImage:
        volume = self._volume()
        place = np.unravel_index(page, volume.shape[2:], order="F") if volume.ndim > 2 else ()
        array = np.asarray(volume.dataobj[(slice(None), slice(None), *map(int, place))])
        if array.dtype.names:  # RGB
            array = np.stack([array[name] for name in array.dtype.names])
            return StoredImage(array.transpose(0, 2, 1), alpha=len(array) == 4)
        return StoredImage(native(array).T[None])

    def _volume(self):
        nibabel = library("nibabel", "nifti", "A NIfTI file")
        if isinstance(self.file, str):
            return nibabel.load(self.file)
        content = gzip.decompress(self.file) if self.file[:2] == b"\x1f\x8b" else self.file
        kind = nibabel.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Image
        return kind.from_bytes(content)


class FitsFile(ImageFile):
    """The first image of a FITS file, scaled as its header says. Planes of a cube are pages.

    Pillow reads FITS, too, but ignores BZERO, without which unsigned values come out wrong. Source: FITS standard 4.0,
    sections 3.3 and 4.4.1.
    """

    def __init__(self, file: str | bytes):
        super().__init__(file)
        content = self._content()
        self._header, position = {}, 0
        while "END" not in self._header:
            card = content[position : position + 80].decode("ascii", "replace")
            if not card:
                raise ValueError("the FITS header has no end")
            self._header[card[:8].strip()] = card[10:].split("/")[0].strip()
            position += 80
        self._start = math.ceil(position / 2880) * 2880
        axes = [int(self._header[f"NAXIS{axis + 1}"]) for axis in range(int(self._header.get("NAXIS", 0)))]
        if len(axes) < 2:
            raise UnsuitableImageError(
                "The image's first part is no image, and only the first part of FITS files is read. Save the image in "
                "a FITS or TIFF file of its own."
            )
        self.num_pages, self.size = math.prod(axes[2:]), (axes[1], axes[0])

    def read(self, page: int = 0) -> StoredImage:
        kind = {"8": "u1", "16": ">i2", "32": ">i4", "64": ">i8", "-32": ">f4", "-64": ">f8"}[self._header["BITPIX"]]
        count = math.prod(self.size)
        offset = self._start + page * count * np.dtype(kind).itemsize
        array = np.frombuffer(self._content(), kind, count, offset).reshape(self.size)[::-1]  # the first row is below
        scale, zero = (self._number(name, default) for name, default in (("BSCALE", 1.0), ("BZERO", 0.0)))
        if scale == 1 and zero == 2.0 ** (8 * array.dtype.itemsize - 1) and array.dtype.kind == "i":
            # Unsigned integers are stored with an offset, which flips their highest bit.
            unsigned = np.dtype(f"u{array.dtype.itemsize}")
            array = array.astype(array.dtype.newbyteorder("=")).view(unsigned) ^ unsigned.type(zero)
        elif (scale, zero) != (1, 0):
            array = array * scale + zero
        blank = self._number("BLANK")
        nodata = None if blank is None else blank * scale + zero
        return StoredImage(native(array)[None], nodata=nodata)

    def _number(self, name: str, default: float | None = None) -> float | None:
        """Returns a number of the header, whose exponent may be that of Fortran's doubles, `1.0D0`."""
        text = self._header.get(name)
        return default if text is None else float(text.replace("D", "E"))

    def _content(self) -> bytes:
        if isinstance(self.file, bytes):
            return self.file
        with open(self.file, "rb") as stream:
            return stream.read()


class ArrayFile(ImageFile):
    """Arrays of several images: a `.npy` of four axes, or a `.npz` of several arrays. Each is a page."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        super().__init__(b"")
        self.arrays, self.num_pages = arrays, len(arrays)


def extension_by_content(start: bytes) -> str:
    """Returns the extension that readers of arrays and volumes go by, told from the first bytes of a file; else none.

    Args:
        start (`bytes`): At least 352 bytes, which may be compressed.
    """
    if start.startswith(b"\x93NUMPY"):
        return ".npy"
    content = start
    if start.startswith(b"\x1f\x8b"):
        with suppress(zlib.error):
            content = zlib.decompressobj(wbits=31).decompress(start, 352)
    return ".nii" if content[344:348] == b"n+1\0" or content[4:8] == b"n+2\0" else ""


def open_arrays(file: str | bytes, extension: str) -> np.ndarray | ArrayFile:
    """Opens `.npy` (mapped into memory) or `.npz`; nothing is unpickled."""
    if extension == ".npy":
        mapped = isinstance(file, str)
        array = np.load(file if mapped else io.BytesIO(file), mmap_mode="r" if mapped else None, allow_pickle=False)
        return ArrayFile(array) if array.ndim == 4 else array
    with np.load(file if isinstance(file, str) else io.BytesIO(file), allow_pickle=False) as loaded:
        arrays = [loaded[name] for name in loaded.files]
    arrays = [array for array in arrays if array.ndim >= 2]
    if not arrays:
        raise UnsuitableImageError("The image holds no array of at least two axes.")
    return arrays[0] if len(arrays) == 1 else ArrayFile(arrays)
