# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Writes image files for tests, and reads them as the package does."""

import struct
import zlib

import numpy as np
import pytest

from hf_mae.modeling.reading_mae import ReadingSettings, open_image, read_stored, to_byte_range


def values(dtype, bands=1, size=(9, 13)):
    """Random values over the whole range of a type, (bands, height, width); floats in [0, 1]."""
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.random((bands, *size)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (bands, *size), dtype=dtype, endpoint=True)


def stored(path, num_channels, **settings):
    return read_stored(open_image(str(path)), num_channels, ReadingSettings(**settings))


def scaled(path, num_channels, **settings):
    return to_byte_range(stored(path, num_channels, **settings), ReadingSettings(**settings))


def write_few_bits(path, array, bits, photometric="minisblack", nodata=None):
    """Writes a TIFF of 1, 2 or 4 bits, several values to a byte, of a width that fills all bytes."""
    planes = np.unpackbits(array[..., None], axis=2)[..., -bits:]
    content = np.packbits(planes.reshape(len(array), -1), axis=1).tobytes()
    white = {"miniswhite": 0, "minisblack": 1, "palette": 3}[photometric]
    tags = {256: (4, array.shape[1]), 257: (4, len(array)), 258: (3, bits), 259: (3, 1), 262: (3, white)}
    tags |= {273: (4, 8), 277: (3, 1), 278: (4, len(array)), 279: (4, len(content))}
    after = 8 + len(content)
    if photometric == "palette":
        colours = np.arange(3 * 2**bits, dtype="<u2") * 1000
        content += colours.tobytes()
        tags[320] = (3, after, colours.size)
        after = 8 + len(content)
    entries = b"".join(
        struct.pack("<HHI", number, kind, n[0] if n else 1) + struct.pack("<I", value)
        for number, (kind, value, *n) in sorted(tags.items())
    )
    if nodata is not None:
        entries += struct.pack("<HHI4s", 42113, 2, 2, f"{nodata}\0".encode())
    header = struct.pack("<2sHI", b"II", 42, after)
    path.write_bytes(header + content + struct.pack("<H", len(entries) // 12) + entries + bytes(4))


def png(array, depth, colour, extra=b""):
    """A PNG of any depth and colour type, (height, width, bands) of unsigned integers."""
    if depth < 8:
        rows = [b"".join(f"{v:0{depth}b}".encode() for v in row[:, 0]) for row in array]
        rows = [int(r.ljust(-(-len(r) // 8) * 8, b"0"), 2).to_bytes(-(-len(r) // 8), "big") for r in rows]
    else:
        rows = [row.astype(f">u{depth // 8}").tobytes() for row in array]

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def dicom(path, array, **elements):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.dataset.Dataset()
    data.file_meta = meta
    data.Rows, data.Columns = array.shape[-2:] if array.shape[-1] != 3 else array.shape[:2]
    data.SamplesPerPixel = 3 if array.shape[-1] == 3 else 1
    data.BitsAllocated = 8 * array.dtype.itemsize
    data.BitsStored, data.HighBit = data.BitsAllocated, data.BitsAllocated - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.PixelData = array.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
