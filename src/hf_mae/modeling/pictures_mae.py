# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Opens and reads pictures with Pillow: PNG, JPEG, WebP, GIF, BMP, TGA, PGM, JPEG 2000, PSD and others.

Values that Pillow would change, by cutting, stretching or taking a band for an opacity, are read here in full, or the
file is refused by [`UnsuitableImageError`]. tiff_mae.py decides which TIFFs Pillow may read.
"""

import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageFile
from PIL.ExifTags import Base as Tag

from .formats_mae import (
    ImageFile,
    StoredImage,
    UnsuitableImageError,
    exif_orientation,
    native,
    oriented,
    reopened,
)
from .tiff_mae import declared_nodata, tag_value, white_is_zero

# What Pillow decodes by itself: no EPS or PS, which start another program, and none of its stubs.
_PICTURES = """
    .apng .avif .avifs .blp .bmp .bw .cur .dcx .dds .dib .flc .fli .ftc .ftu .gbr .gif .icb .icns .ico .iim .im .j2c
    .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .msp .pbm .pcd .pcx .pfm .pgm .png .pnm .ppm .psd .pxr .qoi
    .ras .rgb .rgba .sgi .tga .tif .tiff .vda .vst .webp .xbm .xpm
"""
PICTURE_EXTENSIONS = tuple(_PICTURES.split())
# Formats whose further pictures are not pages: other views of a photograph, sizes of an icon, layers of a drawing.
_ONE_PICTURE = ("MPO", "ICO", "ICNS", "CUR", "PSD")
_OPACITY = "opacity of the JPEG 2000"  # 0: none, 1: there is one, 2: by which the colours are multiplied
_MULTICHANNEL = 7  # as a PSD writes it
_EIGHT_BITS = 7  # as JPEG 2000 writes it: without a sign, and one less


def open_picture(file: str | bytes) -> "PIL.Image.Image | DeepPicture":
    """Opens a picture without decoding it: with Pillow, unless that would change its values.

    Args:
        file (`str` or `bytes`): The path, or the content.

    Raises:
        UnsuitableImageError: If it is of a kind that Pillow does not open.
        Exception: Of any type, if the file is broken.
    """
    try:
        image = PIL.Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except (OSError, ValueError) as error:
        with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream:
            if "MAX_TEXT" in str(error) and (short := _without_texts(content := stream.read())) != content:
                return open_picture(short)
            kind = _unopened_kind(stream, str(error))
        if kind is None:
            raise
        raise UnsuitableImageError(f"The image is a {kind}, which Pillow can't read. Convert it to TIFF.") from error
    palette = image.palette if image.format == "TGA" else None
    if palette is not None and (image.mode not in ("L", "P") or not image.tile or palette.rawmode == "BGRA"):
        raise UnsuitableImageError("The palette of this TGA is one that Pillow can't read. Convert it to TIFF.")
    if not is_deep(image):
        return image
    image.close()
    return DeepPicture(file, image)


def num_frames(image: PIL.Image.Image) -> int:
    """Returns the number of frames of a picture, each of which is a page."""
    if image.format in _ONE_PICTURE or not getattr(image, "is_animated", False):
        return 1
    return getattr(image, "n_frames", 1)


def frame_of(image: PIL.Image.Image, number: int) -> PIL.Image.Image:
    """Returns one frame of a picture as a picture of its own."""
    if image.format == "PNG" and image.fp is not None:  # it is given up once the frames are read
        check_png(image)
    image.seek(number)
    return image.copy()


def read_picture(image: PIL.Image.Image, num_channels: int, as_stored: bool = False) -> StoredImage:
    """Returns the values of a picture.

    Args:
        image (`PIL.Image.Image`): The picture, which may be a TIFF that Pillow reads exactly.
        num_channels (`int`): Channels of the model. 8-bit colours become grey for one, and RGB for others.
        as_stored (`bool`, *optional*, defaults to `False`): Keep the bands of 8-bit colours, to choose from.

    Raises:
        UnsuitableImageError: If its values can't be read as they are stored.
    """
    if is_deep(image):
        return read_deep(image)
    bits = _bits_of_grey(image)
    opaque = _prepare(image) if getattr(image, "tile", None) else False
    _load(image)  # before its size is asked for: Pillow turns a TIFF when it loads it
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        return _read_grey(image, bits)
    if opaque:
        image = image.convert(image.mode.removesuffix("A"))
    numbers = np.asarray(image.getchannel(0))[None] if image.format == "TIFF" and image.mode in ("P", "PA") else None
    image_in_mode = _with_mode(image, num_channels, as_stored)
    array = np.asarray(image_in_mode)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    opacity = image.info.get(_OPACITY, 1)
    alpha = image_in_mode.mode in ("LA", "RGBA") and opacity > 0
    on_white = alpha and image.format == "PSD"  # its colours are, so that without the white they are premultiplied
    if on_white and not as_stored:
        array = np.concatenate([array[:-1] - np.minimum(array[:-1], 255 - array[-1:]), array[-1:]])
    premultiplied = on_white or opacity == 2
    return StoredImage(array, nodata=declared_nodata(image), numbers=numbers, alpha=alpha, premultiplied=premultiplied)


def _prepare(image: PIL.Image.Image) -> bool:
    """Makes sure that Pillow will decode a picture right, and returns whether what it takes for its opacity is none.

    Raises:
        UnsuitableImageError: If Pillow would not.
        OSError: If the file is damaged.
    """
    if kind := _misread_kind(image):
        raise UnsuitableImageError(f"{kind} can't be read right. Convert it to PNG or TIFF.")
    if image.format == "PNG":
        check_png(image)
    if image.format == "JPEG2000":
        _prepare_jpeg2000(image)
    if image.format == "PSD":
        return not _prepare_psd(image)
    return image.format == "TGA" and _is_opaque_tga(image)


def _misread_kind(image: PIL.Image.Image) -> str | None:
    """Returns what a picture is that Pillow would decode to wrong values or cut, or `None` for others."""
    codec, _, _, args = image.tile[0]
    if image.format == "SGI" and (codec == "SGI16" or args[-1] == 2):
        return "16 bits in SGI files"
    if image.format == "BMP" and image.info.get("compression") == 2:
        return "BMP files compressed as RLE4"
    if image.format == "DDS" and (codec == "bcn" and args[0] == 6 or codec == "dds_rgb" and _most_bits(args[1]) > 8):
        return "DDS files of more than 8 bits"
    if image.format == "SUN":
        length = math.ceil(image.width * {"1": 1, "RGB": 24}.get(image.mode, 8) / 8)
        if "X" in str(args) or (codec == "sun_rle" and length % 2):  # where the padding is; that there is one
            return "Sun rasters of 32 bits, or compressed with rows of an odd length,"
    if image.format == "XPM" and re.search(rb"\sc\s+#(?![0-9a-fA-F]{6}[\s\"])", reopened(image).getvalue()):
        return "XPM files whose colours have not two digits each"
    return None


def _most_bits(masks: tuple[int, ...]) -> int:
    return max(mask.bit_count() for mask in masks)


def _load(image: PIL.Image.Image):
    """Decodes a picture. A long text that follows the pixels of a PNG, see [`_without_texts`], does not count."""
    try:
        image.load()
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise


def _bits_of_grey(image: PIL.Image.Image) -> int:
    """Returns the bits of a value in the file of a picture of one band, which Pillow may not have decoded yet."""
    if image.format == "TIFF":
        return tag_value(image, Tag.BitsPerSample, 1)
    if image.mode == "L":
        mode = image.tile[0][3] if getattr(image, "tile", None) else ""  # as the file stores it
        return {"L;2": 2, "L;4": 4}.get(mode if isinstance(mode, str) else "", 8)
    return {"1": 1, "I": 32, "F": 32}.get(image.mode, 16)


def _read_grey(image: PIL.Image.Image, bits: int) -> StoredImage:
    """Returns the values of a picture of one band as stored. Pillow stretches those of fewer bits to 8."""
    array, white, tiff = native(np.array(image)), 2**bits - 1, image.format == "TIFF"
    photometric, compression = (tag_value(image, tag) for tag in (Tag.PhotometricInterpretation, Tag.Compression))
    inverted = tiff and white_is_zero(photometric, compression)
    inverted |= image.mode == "1" and image.format in ("PSD", "XBM")  # whose zeros are white; Pillow does not say it
    if image.mode in ("1", "L"):
        array = array // np.uint8(255 // white) if bits < 8 else array
        if tiff and not photometric:  # Pillow has inverted the values already; no-data is one of those that are stored
            array = np.uint8(white) - array
    elif image.mode == "I" and (image.format == "PNG" or bits == 16):
        array = array.astype(np.int16 if tiff else np.uint16)
    pixels, key = array[None], image.info.get("transparency")
    limit = white if array.dtype.kind == "u" and bits < 8 * array.dtype.itemsize else None
    if isinstance(key, int) and array.dtype.kind == "u":
        key = min(key, 1) if image.mode == "1" else key
        pixels = with_opacity(pixels, key, limit or np.iinfo(array.dtype).max)
    return StoredImage(pixels, limit, declared_nodata(image), inverted=inverted, alpha=len(pixels) == 2)


def _with_mode(image: PIL.Image.Image, num_channels: int, as_stored: bool) -> PIL.Image.Image:
    """Returns an 8-bit picture of colours in the mode that has the channels of the model, and its opacity if any."""
    if image.mode == "LAB" and as_stored:
        raise UnsuitableImageError(
            "`bands` can't choose from the colours of CIELAB, two of which have a sign. Leave it out, and they become "
            "RGB, or convert the file."
        )
    if image.mode == "LAB":  # the one mode that convert() can't convert from
        lab, rgb = PIL.ImageCms.createProfile("LAB"), PIL.ImageCms.createProfile("sRGB")
        image = PIL.ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    transparent = image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info
    if as_stored:  # a palette has none, and a colour that stands for transparency one
        made = image.mode in ("P", "PA") or "transparency" in image.info
        return image.convert("RGBA" if transparent else "RGB") if made else image
    wanted = "L" if num_channels == 1 or image.mode in ("LA", "La") else "RGB"
    wanted += "A" if transparent else ""
    return image if image.mode == wanted else image.convert(wanted)


# ----------------------------------------------------------------------------------------------------------------------
# Pictures whose values Pillow would cut to 8 bits, or shift or stretch to 8 or 16 bits


class DeepPicture(ImageFile):
    """A picture that Pillow opens but would cut to 8 bits, or shift or stretch to 8 or 16 bits."""

    def __init__(self, file: str | bytes, image: PIL.Image.Image):
        super().__init__(file)
        self.size, self.num_pages = image.size[::-1], num_frames(image)

    def read(self, page: int = 0) -> StoredImage:
        if page > 0:
            raise UnsuitableImageError("Of a PNG of 16 bits only the first frame can be read: set `pages` to first.")
        with PIL.Image.open(self._stream()) as image:
            stored = read_deep(image)
            if image.format == "PNG":
                _load(image)  # its EXIF may follow the pixels
            return oriented(stored, exif_orientation(image))


def is_deep(image: PIL.Image.Image) -> bool:
    """Returns whether Pillow, which has opened a picture but not decoded it, would change its values."""
    if image.format == "PNG":
        if not image.tile and image.mode in ("RGB", "RGBA") and _png_depth(image) == 16:
            raise UnsuitableImageError("Pillow has decoded it already, to 8 of its 16 bits. Give the path instead.")
        mode = str(image.tile[0][3]) if image.tile else ""
        return mode.endswith(";16B") and not mode.startswith("I")
    if image.format == "PPM" and image.tile:
        return _pnm_header(image)[2] not in (0, 255)
    if image.format != "JPEG2000" or not image.tile or image.mode == "P":
        return False
    return any(kind != _EIGHT_BITS for kind in _jpeg2000_components(image.fp))


def read_deep(image: PIL.Image.Image) -> StoredImage:
    """Returns the values of a picture for which [`is_deep`] is true."""
    return {"PNG": _read_deep_png, "PPM": _read_deep_pnm, "JPEG2000": _read_deep_jpeg2000}[image.format](image)


# ----------------------------------------------------------------------------------------------------------------------
# PNG


def check_png(image: PIL.Image.Image):
    """Raises an error if the pixels of a PNG are damaged. Pillow takes what comes once it has all rows.

    Raises:
        OSError: If a checksum does not agree.
    """
    if PIL.ImageFile.LOAD_TRUNCATED_IMAGES:
        return
    for chunk in _png_chunks(reopened(image).getbuffer()):
        if chunk[4:8] in (b"IDAT", b"fdAT") and zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != chunk[-4:]:
            raise OSError("its pixels are damaged: a checksum of the PNG does not agree")


def _png_chunks(content: bytes | memoryview) -> Iterator[memoryview]:
    """Yields the chunks of a PNG: each the length of its data, its kind, the data, and a checksum."""
    content, position = memoryview(content), 8
    while position + 12 <= len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        yield content[position:end]
        position = end


def _without_texts(content: bytes) -> bytes:
    """Returns a PNG without its texts and profiles, of which Pillow reads no more than a megabyte each.

    They change nothing, but for the two kinds that may hold an EXIF orientation.
    """
    kinds, kept = (b"tEXt", b"zTXt", b"iTXt", b"iCCP"), (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
    chunks = map(bytes, _png_chunks(content))
    return content[:8] + b"".join(each for each in chunks if each[4:8] not in kinds or each[8:].startswith(kept))


def _png_depth(image: PIL.Image.Image) -> int | None:
    """Returns the bits of a value in the file of a PNG that Pillow has decoded, if the file is known."""
    name = getattr(image, "filename", "")
    if not isinstance(name, str) or not os.path.isfile(name):
        return None
    with open(name, "rb") as stream:
        header = stream.read(25)
    return header[24] if header[12:16] == b"IHDR" else None


def _read_deep_png(image: PIL.Image.Image) -> StoredImage:
    """Returns a PNG of 16 bits and several bands, of which Pillow would keep the high bytes only."""
    check_png(image)
    mode, parts = str(image.tile[0][3]), []
    # Pillow's reader of little-endian values takes the byte that is the lower one here. Grey with opacity has four
    # bytes a pixel, as RGBA has.
    for reading in ("RGBA",) if mode == "LA;16B" else (mode, mode.replace(";16B", ";16L")):
        part = PIL.Image.open(io.BytesIO(_without_texts(reopened(image).getvalue())))
        part.tile = [part.tile[0]._replace(args=reading)]
        parts.append(np.asarray(part).astype(np.uint16))
    high, low = (parts[0][..., 0::2], parts[0][..., 1::2]) if mode == "LA;16B" else parts
    pixels, key = (high * 256 + low).transpose(2, 0, 1), image.info.get("transparency")
    if mode == "RGB;16B" and isinstance(key, tuple):
        pixels = with_opacity(pixels, key, 65535)
    return StoredImage(pixels, alpha=len(pixels) in (2, 4))


def with_opacity(pixels: np.ndarray, key: int | tuple[int, ...], white: int) -> np.ndarray:
    """Returns pixels (bands, height, width) and their opacity: 0 where they are the key of a PNG, else `white`."""
    opaque = (pixels != np.reshape(key, (-1, 1, 1))).any(axis=0, keepdims=True)
    return np.concatenate([pixels, opaque.astype(pixels.dtype) * pixels.dtype.type(white)])


# ----------------------------------------------------------------------------------------------------------------------
# PGM and PPM


def _pnm_header(image: PIL.Image.Image) -> tuple[int, int, int, int]:
    """Returns width, height, largest value, and where the values begin; 0 as largest value if it has none."""
    image.fp.seek(0)
    content = image.fp.read(4096)
    if content[:2] not in (b"P2", b"P3", b"P5", b"P6"):
        return *image.size, 0, 0
    number = rb"(?:\s|#[^\n]*\n)+(\d+)"  # with a space, or comments, in front
    header = re.match(rb"P\d" + 3 * number + rb"(?=[\s#])", content)
    if header is None:
        raise ValueError("its header is not one of a PGM or PPM, or longer than 4,096 bytes")
    width, height, largest = map(int, header.groups())
    return width, height, largest, header.end() + 1


def _read_deep_pnm(image: PIL.Image.Image) -> StoredImage:
    """Returns a PGM or PPM whose white is not 255 as stored. Pillow would keep 8 bits or stretch the values."""
    width, height, largest, start = _pnm_header(image)
    content = reopened(image).getvalue()
    shape = (height, width, 3 if content[:2] in (b"P3", b"P6") else 1)
    if content[:2] in (b"P5", b"P6"):
        pixels = np.frombuffer(content, ">u2" if largest > 255 else "u1", math.prod(shape), start)
    else:
        words = re.sub(rb"#[^\r\n]*", b" ", content[start:]).split()  # comments may lie among the values
        pixels = np.array(words[: math.prod(shape)], dtype=np.uint16)
    pixels = pixels.astype(np.uint16 if largest > 255 else np.uint8)
    return StoredImage(pixels.reshape(shape).transpose(2, 0, 1), limit=largest)


# ----------------------------------------------------------------------------------------------------------------------
# JPEG 2000


def _jpeg2000_components(stream: IO[bytes]) -> bytes:
    """Returns a byte for each component of a JPEG 2000: its bits minus 1, plus 128 if it is signed; none if not found.

    Source: ISO/IEC 15444-1, annexes A.5.1 and I.4.
    """
    position, length, kind = 0, 12, b"jP  "
    stream.seek(0)
    if stream.read(4) != b"\xff\x4f\xff\x51":  # boxes, one of which holds the pictures, after metadata of any length
        while kind != b"jp2c":
            position += length
            stream.seek(position)
            header = stream.read(16)
            if len(header) < 16 or length < 8:
                return b""
            length, kind = struct.unpack_from(">I4s", header)
            start = position + 8
            if length == 1:
                length, start = int.from_bytes(header[8:], "big"), position + 16
        position = start
    stream.seek(position + 40)
    (count,) = struct.unpack(">H", stream.read(2))
    return stream.read(3 * count)[::3]


def _read_deep_jpeg2000(image: PIL.Image.Image) -> StoredImage:
    """Returns grey JPEG 2000 as stored, which Pillow shifts up to 8 or 16 bits; refuses signed values and colours."""
    kinds = _jpeg2000_components(image.fp)
    bits, signed = (kinds[0] & 127) + 1, any(kind > 127 for kind in kinds)
    if len(kinds) > 1 or signed or bits > 16:
        raise UnsuitableImageError(
            f"The image is {'signed ' if signed else ''}JPEG 2000 of {bits} bits and {len(kinds)} band(s), which "
            "Pillow can't read in full. Convert it to TIFF."
        )
    pixels = np.asarray(PIL.Image.open(reopened(image)))
    return StoredImage((pixels >> ((8 if bits <= 8 else 16) - bits))[None], limit=2**bits - 1)


def _prepare_jpeg2000(image: PIL.Image.Image):
    """Notes in `info` what a JPEG 2000 says of its opacity, for which Pillow takes any second or fourth band.

    Gives it all colours of its palette, too: Pillow leaves out those that are there twice, and moves the others.
    Source: ISO/IEC 15444-1, annexes I.5.3.4 and I.5.3.6.

    Raises:
        UnsuitableImageError: If the channels are in another order than colours are, which Pillow does not look at.
    """
    boxes = _jpeg2000_header(reopened(image).getvalue())
    channels = list(struct.iter_unpack(">HHH", boxes.get(b"cdef", b"")[2:]))
    image.info[_OPACITY] = next((kind for _, kind, _ in channels if kind in (1, 2)), 0)
    if any(kind == 0 and 0 < colour < 65535 and colour != channel + 1 for channel, kind, colour in channels):
        raise UnsuitableImageError("The channels of this JPEG 2000 are in an unusual order. Convert it to TIFF.")
    if image.mode == "P" and b"pclr" in boxes:
        count, bands = struct.unpack_from(">HB", boxes[b"pclr"])
        if {3: "RGB", 4: "RGBA"}.get(bands) == image.palette.mode:
            image.putpalette(boxes[b"pclr"][3 + bands :][: count * bands], image.palette.mode)


def _jpeg2000_header(content: bytes) -> dict[bytes, bytes]:
    """Returns the contents of the boxes in the header of a JPEG 2000, by their kinds."""
    boxes, position, end = {}, 0, len(content)
    while position + 8 <= end:
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"jp2h":  # the others lie in it
            position, end = position + 8, position + length
        elif length >= 8:
            boxes[kind] = content[position + 8 : position + length]
            position += length
        else:  # no boxes, or one that is larger than any of the header
            break
    return boxes


# ----------------------------------------------------------------------------------------------------------------------
# PSD and TGA


def _prepare_psd(image: PIL.Image.Image) -> bool:
    """Puts right where the bands of a PSD begin, and returns whether it says that the fourth is the opacity.

    Else that is a selection that somebody saved. Source: Adobe Photoshop File Formats Specification.

    Raises:
        UnsuitableImageError: If the file holds several inks; or nothing but layers, with white or black in place of the
            picture.
    """
    if any(number == 1057 and data[4:5] == b"\0" for number, _, data in image.resources):
        raise UnsuitableImageError(
            "The file holds layers, but not the picture that they make. Save it with 'maximize compatibility', or as "
            "PNG."
        )
    image.fp.seek(12)
    further = int.from_bytes(image.fp.read(2), "big") - len(image.tile)
    image.fp.seek(25)
    if further and image.fp.read(1)[0] == _MULTICHANNEL:
        raise UnsuitableImageError("The file holds several inks, of which Pillow reads the first. Convert it to RGB.")
    if image.tile[0][0] == "packbits":  # all bands have lengths of rows in front, also those that Pillow leaves out
        skipped = 2 * image.height * further
        image.tile = [tile._replace(offset=tile.offset + skipped) for tile in image.tile]
    image.fp.seek(26)
    for _ in range(2):  # colours, resources
        image.fp.seek(int.from_bytes(image.fp.read(4), "big"), os.SEEK_CUR)
    length, layers, number = struct.unpack(">IIh", image.fp.read(10).ljust(10, b"\0"))
    return length > 0 and layers > 0 and number < 0


def _is_opaque_tga(image: PIL.Image.Image) -> bool:
    """Returns whether a TGA says that its fourth byte is no opacity, which Pillow takes it for. It is often 0."""
    image.fp.seek(17)
    return image.mode in ("LA", "RGBA") and image.fp.read(1)[0] & 15 == 0


# ----------------------------------------------------------------------------------------------------------------------
# Kinds that Pillow does not open


def _unopened_kind(stream: IO[bytes], reason: str) -> str | None:
    """Returns what a file is that Pillow does not open though it is an image, or `None` for others.

    Args:
        stream (`IO[bytes]`): The file.
        reason (`str`): Why Pillow does not open it.
    """
    stream.seek(0)
    start = stream.read(24).ljust(24, b"\0")
    if re.match("Unsupported BMP (pixel|compression|bitfields)|unknown PCX mode", reason):
        return f"{'PCX' if 'PCX' in reason else 'BMP'} of a rare kind ({reason})"
    if start[1] < 2 and start[2] & ~8 in (1, 2, 3) and 15 in (start[16], start[1] * start[7]):
        return "TGA of 15 bits"
    if start[:4] == b"8BPS" and (bits := start[23]) > 8:
        return f"PSD of {bits} bits"
    if start[:3] in (b"PF\n", b"PF ", b"PF\r"):
        return "PFM of colours"
    if start[4:8] == b"jP  " or start[:4] == b"\xff\x4f\xff\x51":
        kinds = _jpeg2000_components(stream)
        return f"JPEG 2000 of {len(kinds)} bands" if len(kinds) > 4 else None
    bits = _jpeg_bits(stream) if start[:3] == b"\xff\xd8\xff" else 8
    return None if bits == 8 else f"JPEG of {bits} bits"


def _jpeg_bits(stream: IO[bytes]) -> int:
    """Returns the bits of the values in a JPEG, 8 if it does not say. Source: ITU-T T.81, annex B.2.2."""
    position = 2
    while True:
        stream.seek(position)
        segment = stream.read(5)
        if len(segment) < 5 or segment[0] != 0xFF:
            return 8
        if 0xC0 <= segment[1] <= 0xCF and segment[1] not in (0xC4, 0xC8, 0xCC):  # those are tables
            return segment[4]
        position += 2 + int.from_bytes(segment[2:4], "big")
