# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Every pixel is what the file says, or the file is refused by name."""

import io
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import write_few_bits

from hf_mae import MAEImageProcessor
from hf_mae.data.decoding import UnreadableImagesError, crop_and_resize
from hf_mae.modeling.reading_mae import (
    ReadingSettings,
    UnsuitableImageError,
    fill_missing,
    num_pages,
    open_image,
    page_of,
    read_stored,
    to_byte_range,
)
from hf_mae.modeling.tiff_mae import TiffFile

tifffile = pytest.importorskip("tifffile")


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


# ----------------------------------------------------------------------------------------------------------------------
# TIFF


TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("bands", "options"),
    [
        *((bands, "contig") for bands in (1, 2, 3, 4, 5, 13)),
        *((bands, options) for bands in (1, 3) for options in ("big-endian", "bigtiff", "deflate", "lzw tiles")),
        *((bands, "separate") for bands in (2, 3, 4, 5)),
    ],
)
def test_tiff__of_every_type_and_layout_gives_its_values(tmp_path, dtype, bands, options):
    if options == "lzw tiles":
        pytest.importorskip("imagecodecs")  # tifffile writes LZW by it
    array, path = values(dtype, bands), tmp_path / "image.tif"
    keywords = {
        "contig": {},
        "separate": {"planarconfig": "separate"} if bands > 1 else {},
        "big-endian": {"byteorder": ">"},
        "bigtiff": {"bigtiff": True},
        "deflate": {"compression": "deflate", "predictor": dtype[0] != "f"},
        "lzw tiles": {"compression": "lzw", "tile": (16, 16)},
    }[options]
    interleaved = options != "separate" and bands > 1
    given = array.transpose(1, 2, 0) if interleaved else array if bands > 1 else array[0]
    photometric = "rgb" if bands in (3, 4) and dtype in ("uint8", "uint16") else "minisblack"
    if interleaved or bands == 1:
        keywords.setdefault("planarconfig", "contig" if bands > 1 else None)
    tifffile.imwrite(path, given, photometric=photometric, metadata=None, extrasamples=None, **keywords)
    read = stored(path, bands)
    assert read.pixels.dtype == np.dtype(dtype)
    assert np.array_equal(read.pixels, array)
    try:
        image = PIL.Image.open(path)
    except PIL.UnidentifiedImageError:
        return
    assert np.array_equal(read_stored(image, bands).pixels, array)  # whoever opened it


def test_tiff__signed_values_need_a_range_and_get_it(tmp_path):
    ct = np.array([[-1000, 31], [0, 3000]], np.int16)
    tifffile.imwrite(tmp_path / "ct.tif", ct)
    np.save(tmp_path / "ct.npy", ct)
    for name in ("ct.tif", "ct.npy"):
        with pytest.raises(UnsuitableImageError, match="int16 values from -1000 to 3000.*value_range"):
            scaled(tmp_path / name, 1)
        pixels = scaled(tmp_path / name, 1, value_range=(-1000, 1000))
        torch.testing.assert_close(pixels[0], torch.tensor([[0, 1031 / 2000], [0.5, 1.0]]) * 255)


def test_tiff__range_of_each_channel(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", values("int32", 2).clip(0, 100), planarconfig="separate", photometric="minisblack"
    )
    read = stored(tmp_path / "a.tif", 2)
    pixels = scaled(tmp_path / "a.tif", 2, value_range=((0, 100), (0, 200)))
    torch.testing.assert_close(pixels[0], torch.from_numpy(read.pixels[0]) * 2.55)
    torch.testing.assert_close(pixels[1], torch.from_numpy(read.pixels[1]) * 1.275)
    with pytest.raises(UnsuitableImageError, match="2 pairs for 1 channels"):
        scaled(tmp_path / "a.tif", 1, value_range=((0, 1), (0, 2)), bands=(1,))


def test_tiff__pages_are_not_guessed(tmp_path):
    pages = values("uint8", 5)
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    with pytest.raises(UnsuitableImageError, match="5 pages.*`pages`"):
        stored(tmp_path / "stack.tif", 5)
    assert np.array_equal(stored(tmp_path / "stack.tif", 5, pages="channels").pixels, pages)
    assert np.array_equal(stored(tmp_path / "stack.tif", 1, pages="first").pixels, pages[:1])
    opened = open_image(str(tmp_path / "stack.tif"))
    assert num_pages(opened) == 5
    assert np.array_equal(read_stored(page_of(opened, 3), 1).pixels, pages[3:4])


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_tiff__channels_named_by_the_file_are_bands(tmp_path, kind):
    array, path = values("uint16", 3), tmp_path / f"cells.{'ome.' if kind == 'ome' else ''}tif"
    tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": "CYX"}, imagej=kind == "imagej")
    assert np.array_equal(stored(path, 3).pixels, array)
    tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": "ZYX"}, imagej=kind == "imagej")
    with pytest.raises(UnsuitableImageError, match="3 pages"):
        stored(path, 3)


def test_tiff__pyramid_levels_and_thumbnails_are_not_pages(tmp_path):
    array = values("uint8", 3, (64, 64)).transpose(1, 2, 0)
    for subifds in (0, 1):
        with tifffile.TiffWriter(tmp_path / "pyramid.tif") as tiff:
            tiff.write(array, photometric="rgb", subifds=subifds, tile=(16, 16))
            tiff.write(array[::2, ::2], photometric="rgb", subfiletype=1, tile=(16, 16))
        assert num_pages(open_image(str(tmp_path / "pyramid.tif"))) == 1
        assert np.array_equal(stored(tmp_path / "pyramid.tif", 3).pixels, array.transpose(2, 0, 1))


def test_tiff__near_infrared_is_a_band_and_opacity_is_not(tmp_path):
    array = values("uint8", 4).transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "nir.tif", array, photometric="rgb", extrasamples=["unspecified"])
    tifffile.imwrite(tmp_path / "alpha.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(stored(tmp_path / "nir.tif", 4).pixels, array.transpose(2, 0, 1))
    with pytest.raises(UnsuitableImageError, match="4 band"):
        stored(tmp_path / "nir.tif", 3)
    assert np.array_equal(stored(tmp_path / "nir.tif", 3, bands=(4, 1, 2)).pixels, array.transpose(2, 0, 1)[[3, 0, 1]])
    assert np.array_equal(stored(tmp_path / "alpha.tif", 4).pixels, array.transpose(2, 0, 1))
    opacity = array[..., 3:] / 255.0
    expected = array[..., :3] * opacity + 255 * (1 - opacity)
    assert np.abs(stored(tmp_path / "alpha.tif", 3).pixels.transpose(1, 2, 0) - expected).max() <= 1


def test_tiff__alpha_of_16_bits_and_premultiplied(tmp_path):
    array = values("uint16", 4).transpose(1, 2, 0)
    for kind in ("unassalpha", "assocalpha"):
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=[kind])
        opacity = array[..., 3:] / 65535.0
        colours = array[..., :3] * (opacity if kind == "unassalpha" else 1)
        expected = (colours + 65535 * (1 - opacity)).clip(0, 65535)
        assert np.abs(stored(tmp_path / "a.tif", 3).pixels.transpose(1, 2, 0) - expected).max() <= 1
        black = stored(tmp_path / "a.tif", 3, background=0).pixels.transpose(1, 2, 0)
        assert np.abs(black - colours).max() <= 1


def test_tiff__min_is_white_12_bits_bilevel_and_palettes(tmp_path):
    grey = values("uint16")[0]
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    torch.testing.assert_close(scaled(tmp_path / "white.tif", 1)[0], 255 - torch.from_numpy(grey).float() / 257)
    bits = grey > 30000
    PIL.Image.fromarray(bits).save(tmp_path / "bits.tif", compression="group4")
    assert np.array_equal(scaled(tmp_path / "bits.tif", 1)[0].numpy(), bits * 255)
    palette = np.random.default_rng(1).integers(0, 65536, (3, 256), dtype=np.uint16)
    index = values("uint8")[0]
    tifffile.imwrite(tmp_path / "palette.tif", index, photometric="palette", colormap=palette)
    expected = palette[:, index] >> 8
    assert np.array_equal(scaled(tmp_path / "palette.tif", 3).numpy(), expected)


def test_tiff__no_data_that_the_file_declares_is_filled_and_marked(tmp_path):
    array = values("float32", 2)
    array[0, 2, 3] = array[1, 2, 3] = -9999
    extratags = [(42113, "s", 0, "-9999", True)]
    tifffile.imwrite(tmp_path / "a.tif", array, planarconfig="separate", photometric="minisblack", extratags=extratags)
    pixels = scaled(tmp_path / "a.tif", 2)
    missing = torch.zeros(2, 9, 13, dtype=torch.bool)
    missing[:, 2, 3] = True
    assert torch.equal(pixels.isnan(), missing)
    filled, where = fill_missing(pixels, ReadingSettings(fill=(10.0, 20.0)))
    assert filled[:, 2, 3].tolist() == [10, 20]
    assert torch.equal(where, missing[0])


def test_tiff__no_data_of_a_palette_is_an_index(tmp_path):
    """Pillow and tifffile give colours, in which the index is not to be looked for."""
    index = np.arange(4, dtype=np.uint8).repeat(4).reshape(4, 4)
    palette = np.zeros((3, 256), dtype=np.uint16)
    palette[:, :4] = np.array([[10, 20, 30], [255, 0, 0], [0, 255, 0], [255, 255, 255]]).T * 256
    options = {"photometric": "palette", "colormap": palette, "extratags": [(42113, "s", 2, "0", True)]}
    tifffile.imwrite(tmp_path / "pillow.tif", index, **options)
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([index, index]), **options)  # Pillow does not read these
    for name in ("pillow.tif", "pages.tif"):
        pixels = scaled(tmp_path / name, 3, pages="first")
        assert pixels.isnan().all(dim=0).tolist() == (index == 0).tolist()
        assert pixels[:, 1, 0].tolist() == [255, 0, 0]
        assert scaled(tmp_path / name, 3, pages="first", nodata=3).isnan().all(dim=0).tolist() == (index == 3).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_tiff__no_data_of_min_is_white_is_a_stored_value(tmp_path, dtype):
    """Pillow inverts the values of 8 bits as it reads them."""
    array = np.array([[255, 255], [0, 100]], dtype=dtype)
    options = {"photometric": "miniswhite", "extratags": [(42113, "s", 4, "255", True)]}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    pixels = scaled(tmp_path / "a.tif", 3)
    assert pixels.isnan().any(dim=0).tolist() == [[True, True], [False, False]]
    white = np.iinfo(dtype).max
    torch.testing.assert_close(pixels[0, 1], torch.tensor([255.0, 255 - 100 * 255 / white]))


def test_tiff__mask_pages_of_gdal_mark_no_data(tmp_path):
    array, mask = values("uint8", 3).transpose(1, 2, 0), np.full((9, 13), 255, np.uint8)
    mask[:4] = 0
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(array, photometric="rgb")
        tiff.write(mask, photometric="minisblack", subfiletype=2)
    content = (tmp_path / "a.tif").read_bytes()
    kind, photometric = b"\xfe\x00\x04\x00\x01\x00\x00\x00", b"\x06\x01\x03\x00\x01\x00\x00\x00"
    for tag, old, new in ((kind, b"\x02", b"\x04"), (photometric, b"\x01", b"\x04")):  # tifffile writes no masks
        assert content.count(tag + old) == 1
        content = content.replace(tag + old, tag + new)
    (tmp_path / "a.tif").write_bytes(content)
    pixels = scaled(tmp_path / "a.tif", 3)
    assert pixels[:, :4].isnan().all()
    assert np.array_equal(pixels[:, 4:].numpy(), array.transpose(2, 0, 1)[:, 4:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_tiff__orientation_is_applied_whoever_reads_it(tmp_path, orientation, dtype):
    array = values(dtype)[0]
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=[(274, "H", 1, orientation, True)])
    turned = [array, np.fliplr(array), np.rot90(array, 2), np.flipud(array), array.T, np.rot90(array, -1)]
    turned += [np.rot90(array, 2).T, np.rot90(array)]
    assert np.array_equal(stored(tmp_path / "a.tif", 1).pixels[0], turned[orientation - 1])


@pytest.mark.parametrize("in_windows", [False, True])
def test_tiff__a_palette_keeps_its_opacity_whoever_reads_it(tmp_path, in_windows):
    image = PIL.Image.new("PA", (3, 2))
    image.putpalette([200, 10, 20, 30, 40, 50])
    image.putdata([(0, 255), (1, 255), (1, 0), (0, 0), (1, 100), (0, 100)])
    image.save(tmp_path / "a.tif")
    path = str(tmp_path / "a.tif")
    opened = TiffFile(path).read_window(slice(0, 2), slice(0, 3)) if in_windows else open_image(path)
    pixels = read_stored(opened, 4).pixels
    assert pixels[:, 0, 1].tolist() == [30, 40, 50, 255]
    assert pixels[3].tolist() == [[255, 255, 0], [0, 100, 100]]
    missing = to_byte_range(read_stored(opened, 4), ReadingSettings(nodata=1))[0].isnan()
    assert missing.tolist() == [[False, True, True], [False, True, False]]


def without_tag(path, number):
    """Gives a tag of a small TIFF of tifffile or Pillow a number that nobody knows."""
    content = path.read_bytes()
    tag = struct.pack("<HHI", number, 3, 1)
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag, struct.pack("<H", 65000) + tag[2:]))


@pytest.mark.parametrize("in_windows", [False, True])
@pytest.mark.parametrize("kind", ["fax", "uint8", "float32"])
def test_tiff__that_does_not_say_what_0_is_has_it_black_unless_it_is_a_fax(tmp_path, kind, in_windows):
    """As libtiff has it."""
    array = np.eye(8, dtype="uint8" if kind == "fax" else kind)
    if kind == "fax":
        PIL.Image.fromarray(array.astype(bool)).save(tmp_path / "a.tif", compression="group4")
    else:
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    without_tag(tmp_path / "a.tif", 262)
    path = str(tmp_path / "a.tif")
    opened = TiffFile(path).read_window(slice(0, 8), slice(0, 8)) if in_windows else open_image(path)
    image = read_stored(opened, 1)
    assert np.array_equal(image.pixels[0], array)
    assert image.inverted == (kind == "fax")


def test_tiff__a_band_of_which_nothing_is_said_is_no_opacity(tmp_path):
    array = values("uint8", 4)
    tifffile.imwrite(tmp_path / "a.tif", array.transpose(1, 2, 0), photometric="rgb")
    without_tag(tmp_path / "a.tif", 338)
    assert np.array_equal(stored(tmp_path / "a.tif", 4).pixels, array)
    with pytest.raises(UnsuitableImageError, match="4 band.*the model 3 channels"):
        stored(tmp_path / "a.tif", 3)


@pytest.mark.parametrize("kind", ["listed as strips", "surplus"])
def test_tiff__tiles_that_pillow_would_misplace(tmp_path, kind):
    array = values("uint8", size=(32, 32))[0]
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(16, 16), metadata=None)
    content = (tmp_path / "a.tif").read_bytes()
    if kind == "surplus":  # half of the rows, with all tiles
        height = struct.pack("<HHI", 257, 4, 1)
        changed = content.replace(height + struct.pack("<I", 32), height + struct.pack("<I", 16))
        array = array[:16]
    else:
        changed = content.replace(struct.pack("<HH", 324, 4), struct.pack("<HH", 273, 4))
        changed = changed.replace(struct.pack("<H", 325), struct.pack("<H", 279))
    assert changed != content
    (tmp_path / "a.tif").write_bytes(changed)
    assert np.array_equal(stored(tmp_path / "a.tif", 1).pixels[0], array)


def test_tiff__jpeg_of_16_bits_which_pillow_opens_and_does_not_decode(tmp_path):
    pytest.importorskip("imagecodecs")
    array = values("uint16")[0]
    tifffile.imwrite(tmp_path / "a.tif", array, compression="jpeg", compressionargs={"lossless": True})
    content, bits = (tmp_path / "a.tif").read_bytes(), struct.pack("<HHI", 258, 3, 1)
    content = content.replace(bits + struct.pack("<H", 12), bits + struct.pack("<H", 16))  # tifffile says 12
    (tmp_path / "a.tif").write_bytes(content)
    assert np.array_equal(stored(tmp_path / "a.tif", 1).pixels[0], array)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_tiff__single_bands_that_are_stored_as_planes(tmp_path, dtype):
    """As GDAL writes a band with INTERLEAVE=BAND."""
    array = values(dtype)
    tifffile.imwrite(tmp_path / "a.tif", array[0], metadata=None, extratags=[(284, "H", 1, 2, True)])
    assert np.array_equal(stored(tmp_path / "a.tif", 1).pixels, array)


def test_tiff__jpeg_of_three_bands_that_are_no_colours_is_refused(tmp_path):
    pytest.importorskip("imagecodecs")
    array = np.zeros((64, 64, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig", compression="jpeg")
    with pytest.raises(UnsuitableImageError, match="JPEG"):
        stored(tmp_path / "a.tif", 3)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "uint32", "float32"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_tiff__big_endian_values_are_right_with_and_without_compression(tmp_path, dtype, compression):
    """Pillow swaps the bytes of compressed ones."""
    array = values(dtype)
    tifffile.imwrite(tmp_path / "a.tif", array[0], byteorder=">", compression=compression)
    assert np.array_equal(stored(tmp_path / "a.tif", 1).pixels, array)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_tiff__grey_and_opacity_that_are_stored_as_planes(tmp_path, compression):
    array = values("uint8", 2)
    options = {"planarconfig": "separate", "photometric": "minisblack", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, **options)
    assert np.array_equal(stored(tmp_path / "a.tif", 2).pixels, array)


@pytest.mark.parametrize(
    ("dtype", "opaque"),
    [
        *(("float32", 1), ("float32", 255), ("int32", 255), ("uint32", 255), ("uint32", 2**32 - 1), ("int16", 32767)),
        *(("int16", 255), ("uint16", 255), ("uint16", 65535)),
    ],
)
def test_tiff__opacity_is_of_255_where_gdal_writes_deep_values(tmp_path, dtype, opaque):
    array = np.full((4, 5, 4), 100, dtype=dtype)
    array[..., 3], array[0, 0, 3] = opaque, 0
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    pixels = scaled(tmp_path / "a.tif", 3, value_range=(0, 200))
    assert pixels[:, 1].unique().tolist() == [127.5]
    assert pixels[:, 0, 0].tolist() == [255] * 3
    half = scaled(tmp_path / "a.tif", 3, value_range=(100, 200), background=51)
    torch.testing.assert_close(half[:, 0, 0], torch.full((3,), 51.0))
    assert half[:, 1].unique().tolist() == [0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("settings", [{}, {"nodata": 0}])
def test_tiff__no_data_is_looked_for_in_what_is_stored_and_not_in_the_background(tmp_path, dtype, settings):
    array = np.full((4, 5, 4), 1, dtype=dtype)
    array[:2] = 0  # a collar without data
    array[3, 0, 3] = 0  # a pixel with data, where the background shows
    tags = [] if settings else [(42113, "s", 0, "0", True)]
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["unassalpha"], extratags=tags)
    pixels = scaled(tmp_path / "a.tif", 3, background=0, **settings)
    assert pixels[:, :2].isnan().all()
    assert not pixels[:, 2:].isnan().any()


def write_gaps(path, content, masked):
    """Writes pages of one value each, and after each a mask that leaves out some of its columns."""
    with tifffile.TiffWriter(path) as tiff:
        for value, columns in zip(content, masked, strict=True):
            mask = np.ones((4, 6), dtype=bool)
            mask[:, columns] = False
            tiff.write(np.full((4, 6), value, np.uint8), photometric="minisblack", metadata=None)
            tiff.write(mask, photometric="mask", subfiletype=4, metadata=None)


def test_tiff__each_page_has_the_mask_that_follows_it(tmp_path):
    write_gaps(tmp_path / "a.tif", (10, 20), (slice(0, 3), slice(3, 6)))
    opened = open_image(str(tmp_path / "a.tif"))
    gaps = [to_byte_range(read_stored(page_of(opened, page), 1))[0, 0].isnan().tolist() for page in range(2)]
    assert gaps == [[True] * 3 + [False] * 3, [False] * 3 + [True] * 3]
    together = scaled(tmp_path / "a.tif", 2, pages="channels")
    assert together[:, 0].isnan().tolist() == gaps
    assert together.nan_to_num(0)[:, 0, [0, 5]].tolist() == [[0, 10], [20, 0]]


@pytest.mark.parametrize("fact", ["type", "white", "no-data", "size"])
def test_tiff__pages_that_differ_are_not_made_channels_of_one_image(tmp_path, fact):
    pages = [{"data": np.zeros((4, 6), np.uint8), "photometric": "minisblack", "metadata": None} for _ in range(2)]
    pages[1].update(
        {
            "type": {"data": np.zeros((4, 6), np.uint16)},
            "white": {"photometric": "miniswhite"},
            "no-data": {"extratags": [(42113, "s", 0, "7", True)]},
            "size": {"data": np.zeros((4, 5), np.uint8)},
        }[fact]
    )
    if fact == "no-data":
        pages[0]["extratags"] = [(42113, "s", 0, "0", True)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for page in pages:
            tiff.write(**page)
    with pytest.raises(UnsuitableImageError, match=f"2 pages differ in {fact} .*`pages`"):
        stored(tmp_path / "a.tif", 2, pages="channels")
    assert stored(tmp_path / "a.tif", 1, pages="first").size == (4, 6)


def test_tiff__a_file_of_an_ome_set_has_only_what_lies_in_it(tmp_path):
    """Its metadata name the other files, which tifffile would open, or make up where they are missing."""
    pages = values("float64", 2)  # which Pillow does not read
    planes = "".join(
        f'<TiffData FirstC="{number}" IFD="0" PlaneCount="1"><UUID FileName="{number}.ome.tif">urn:uuid:'
        f"0000000{number}-0000-0000-0000-000000000000</UUID></TiffData>"
        for number in range(2)
    )
    for number, page in enumerate(pages):
        description = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:0000000{number}-0000-0000-0000-000000000000"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            'DimensionOrder="XYCZT" Type="double" SizeX="13" SizeY="9" SizeC="2" SizeZ="1" SizeT="1"><Channel '
            f'ID="Channel:0:0"/><Channel ID="Channel:0:1"/>{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / f"{number}.ome.tif", page, description=description, metadata=None)
    assert num_pages(open_image(str(tmp_path / "1.ome.tif"))) == 1
    for number in (0, 1):
        assert np.array_equal(stored(tmp_path / f"{number}.ome.tif", 1).pixels, pages[number : number + 1])
    (tmp_path / "0.ome.tif").unlink()
    assert np.array_equal(stored(tmp_path / "1.ome.tif", 1).pixels, pages[1:])
    with pytest.raises(UnsuitableImageError, match="1 band"):
        stored(tmp_path / "1.ome.tif", 2)


def test_tiff__palettes_of_8_bits_in_16_are_taken_as_they_are(tmp_path):
    """Some programs write entries below 256, which the high byte has nothing of."""
    palette = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint16)
    index = values("uint8")[0]
    tifffile.imwrite(tmp_path / "a.tif", index, photometric="palette", colormap=palette)
    assert np.array_equal(stored(tmp_path / "a.tif", 3).pixels, palette[:, index])


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiff__few_bits_are_stored_values_of_black_to_white(tmp_path, bits, photometric):
    array = np.random.default_rng(0).integers(0, 2**bits, (9, 16)).astype(np.uint8)
    write_few_bits(tmp_path / "a.tif", array, bits, photometric, nodata=1)
    white = 2**bits - 1
    read = stored(tmp_path / "a.tif", 1)
    assert np.array_equal(read.pixels[0], array)
    pixels = scaled(tmp_path / "a.tif", 1, value_range=(0, white))[0]
    assert np.array_equal(pixels.isnan(), array == 1)
    shown = array if photometric == "minisblack" else white - array
    assert np.array_equal(pixels[array != 1].numpy(), shown[array != 1] * (255 // white))
    assert torch.equal(scaled(tmp_path / "a.tif", 1)[0].nan_to_num(-1), pixels.nan_to_num(-1))


def test_tiff__a_missing_strip_holds_no_data(tmp_path):
    """As GDAL writes it with SPARSE_OK: of no bytes."""
    array = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tifffile.imwrite(tmp_path / "a.tif", array, rowsperstrip=4, metadata=None, extratags=[(42113, "s", 0, "63", True)])
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        tags = tiff.pages[0].tags
        tags["StripByteCounts"].overwrite((32, 0))
        tags["StripOffsets"].overwrite((tags["StripOffsets"].value[0], 0))
    pixels = scaled(tmp_path / "a.tif", 1)[0]
    assert np.array_equal(pixels[:4], array[:4])
    assert pixels[4:].isnan().all()


def test_tiff__webp_which_pillow_opens_and_does_not_decode(tmp_path):
    pytest.importorskip("imagecodecs")
    array = values("uint8", 3, (16, 16)).transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", compression="webp")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:  # the library's own, which may lose some
        expected = tiff.asarray()
    assert np.array_equal(stored(tmp_path / "a.tif", 3).pixels, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["subsampled", "LogLuv"])
def test_tiff__that_nothing_here_decodes_is_unsuitable_and_not_broken(tmp_path, kind):
    array, photometric = values("uint8", 3).transpose(1, 2, 0), "ycbcr" if kind == "subsampled" else "rgb"
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, compression="deflate")
    if kind == "subsampled":
        old, new = (struct.pack("<HHIHH", 530, 3, 2, share, share) for share in (1, 2))
    else:
        old, new = (struct.pack("<HHIH", 259, 3, 1, number) for number in (32946, 34676))
    content = (tmp_path / "a.tif").read_bytes()
    assert content.count(old) == 1
    (tmp_path / "a.tif").write_bytes(content.replace(old, new))
    with pytest.raises(UnsuitableImageError, match="can't be decoded .*not supported.*Convert it"):
        TiffFile(str(tmp_path / "a.tif")).read()


def test_tiff__lerc_keeps_its_nan(tmp_path):
    pytest.importorskip("imagecodecs")
    array = values("float32", 1, (16, 16))[0]
    array[:5] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", array, compression="lerc", tile=(16, 16))
    assert np.array_equal(stored(tmp_path / "a.tif", 1).pixels[0], array, equal_nan=True)
    with pytest.raises(UnsuitableImageError, match="nan at row 0"):
        scaled(tmp_path / "a.tif", 1)


def test_tiff__lerc_with_a_mask_that_integers_do_not_show_is_refused(tmp_path):
    """As GDAL writes an opacity of 0 and 255: three bands and a mask."""
    imagecodecs = pytest.importorskip("imagecodecs")
    for bands, extra in ((1, []), (4, ["unassalpha"])):
        array = values("uint8", bands, (16, 16)).transpose(1, 2, 0)
        mask = array[..., 0] > 100
        options = {"photometric": "rgb" if bands == 4 else "minisblack", "extrasamples": extra, "tile": (16, 16)}
        tifffile.imwrite(tmp_path / "a.tif", array[..., 0] if bands == 1 else array, compression="lerc", **options)
        content = imagecodecs.lerc_encode(array[..., 0] if bands == 1 else array[..., :3].copy(), masks=mask)
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
            place, tags = tiff.filehandle.size, tiff.pages[0].tags
            tiff.filehandle.seek(place)
            tiff.filehandle.write(content)
            tags["TileOffsets"].overwrite((place,))
            tags["TileByteCounts"].overwrite((len(content),))
        with pytest.raises(UnsuitableImageError, match="LERC keeps .*gdal_translate"):
            stored(tmp_path / "a.tif", bands)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_values_of_64_bits__are_read_from_tiffs_and_arrays(tmp_path, dtype):
    array = np.array([[0, 50], [100, 200]], dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", array)
    np.save(tmp_path / "a.npy", array)
    for name in ("a.tif", "a.npy"):
        pixels = scaled(tmp_path / name, 1, value_range=(0, 100), nodata=200)
        assert pixels[0].nan_to_num(-1).tolist() == [[0, 127.5], [255, -1]]
    long_long = np.array([[1, 2]], dtype=np.ulonglong)
    assert to_byte_range(read_stored(long_long, 1), ReadingSettings(value_range=(1, 2))).tolist() == [[[0, 255]]]


def test_tiff__without_the_library_names_the_extra(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", values("uint16", 5), planarconfig="separate", photometric="minisblack")
    PIL.Image.fromarray(values("uint16")[0]).save(tmp_path / "plain.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnsuitableImageError, match=r"hf-mae\[tiff\]"):
        stored(tmp_path / "a.tif", 5)
    assert np.array_equal(stored(tmp_path / "plain.tif", 1).pixels, values("uint16"))


# ----------------------------------------------------------------------------------------------------------------------
# PNG, PGM and others that Pillow opens


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


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour", "bands"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png__of_every_depth_gives_its_values(tmp_path, depth, colour, bands):
    array = values(f"uint{depth}", bands).transpose(1, 2, 0)
    (tmp_path / "a.png").write_bytes(png(array, depth, colour))
    assert np.array_equal(stored(tmp_path / "a.png", bands).pixels, array.transpose(2, 0, 1))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_png__of_few_bits_spans_black_to_white(tmp_path, depth):
    array = np.random.default_rng(0).integers(0, 2**depth, (9, 13, 1))
    (tmp_path / "a.png").write_bytes(png(array, depth, 0))
    assert np.array_equal(scaled(tmp_path / "a.png", 1)[0].numpy(), array[..., 0] * (255 // (2**depth - 1)))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour", "bands"), [(4, 2), (6, 4)])
def test_png__transparency_shows_white(tmp_path, depth, colour, bands):
    array = values(f"uint{depth}", bands).transpose(1, 2, 0).astype(float)
    (tmp_path / "a.png").write_bytes(png(array, depth, colour))
    opacity, white = array[..., -1:] / (2**depth - 1), 2**depth - 1
    expected = array[..., :-1] * opacity + white * (1 - opacity)
    difference = stored(tmp_path / "a.png", 3).pixels.transpose(1, 2, 0) - expected
    assert np.abs(difference).max() <= 1


def test_png__palette_with_transparency(tmp_path):
    image = PIL.Image.new("P", (4, 3), 0)
    image.putpalette([200, 10, 10, 0, 0, 0])
    image.putpixel((1, 1), 1)
    image.save(tmp_path / "a.png", transparency=1)
    pixels = stored(tmp_path / "a.png", 3).pixels
    assert pixels[:, 1, 1].tolist() == [255, 255, 255]
    assert pixels[:, 0, 0].tolist() == [200, 10, 10]
    assert stored(tmp_path / "a.png", 4).pixels[:, 1, 1].tolist() == [0, 0, 0, 0]


def test_png__a_colour_that_stands_for_transparency_makes_a_band(tmp_path):
    PIL.Image.new("RGB", (4, 3), (200, 10, 10)).save(tmp_path / "a.png", transparency=(200, 10, 10))
    for settings in ({}, {"bands": (1, 2, 3, 4)}):
        assert stored(tmp_path / "a.png", 4, **settings).pixels[:, 0, 0].tolist() == [200, 10, 10, 0]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_png__a_grey_that_stands_for_transparency_is_a_stored_value(tmp_path, depth):
    array = (np.arange(12).reshape(3, 4, 1) % 2**depth).astype(np.uint16)
    key = struct.pack(">H", 1)
    chunk = struct.pack(">I", 2) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    (tmp_path / "a.png").write_bytes(png(array, depth, 0, chunk))
    grey, opacity = stored(tmp_path / "a.png", 2).pixels
    assert np.array_equal(grey, array[..., 0])
    assert np.array_equal(opacity, np.where(array[..., 0] == 1, 0, 2**depth - 1))
    shown = scaled(tmp_path / "a.png", 1)[0]
    assert (shown[array[..., 0] == 1] == 255).all()
    gaps = scaled(tmp_path / "a.png", 1, nodata=1)[0].isnan()
    assert np.array_equal(gaps, array[..., 0] == 1)


def test_png__no_data_is_looked_for_in_its_colours_and_not_in_the_background(tmp_path):
    array = np.full((4, 5, 4), 255, np.uint8)
    array[0] = 0  # without data
    array[1, :, 3] = 0  # transparent
    array[1, :, :3] = 9
    (tmp_path / "a.png").write_bytes(png(array, 8, 6))
    pixels = scaled(tmp_path / "a.png", 3, nodata=0, background=0)
    assert pixels[:, :, 0].isnan().all(dim=0).tolist() == [True, False, False, False]
    assert pixels[:, 1:, 0].tolist() == [[0, 255, 255]] * 3


@pytest.mark.parametrize(("kind", "bands"), [("P5", 1), ("P6", 3), ("P2", 1)])
def test_pgm__of_12_bits_keeps_its_values_and_its_white(tmp_path, kind, bands):
    array = np.random.default_rng(0).integers(0, 4096, (9, 13, bands)).astype(np.uint16)
    body = array.astype(">u2").tobytes() if kind != "P2" else " ".join(map(str, array.ravel())).encode()
    (tmp_path / "a.ppm").write_bytes(f"{kind}\n# made here\n13 9\n4095\n".encode() + body)
    assert np.array_equal(stored(tmp_path / "a.ppm", bands).pixels, array.transpose(2, 0, 1))
    torch.testing.assert_close(
        scaled(tmp_path / "a.ppm", bands)[0], torch.from_numpy(array[..., 0] / 4095 * 255).float()
    )


@pytest.mark.parametrize("largest", [1, 3, 100, 254])
@pytest.mark.parametrize(("kind", "bands"), [("P5", 1), ("P6", 3), ("P2", 1)])
def test_pgm__of_any_white_keeps_its_values(tmp_path, kind, bands, largest):
    array = np.random.default_rng(0).integers(0, largest + 1, (9, 13, bands)).astype(np.uint8)
    words = " ".join(map(str, array.ravel())).replace(" ", "\n# a comment of 7 words\n", 1)
    body = array.tobytes() if kind != "P2" else words.encode()
    (tmp_path / "a.ppm").write_bytes(f"{kind}\n13 9\n{largest}\n".encode() + body)
    read = stored(tmp_path / "a.ppm", bands)
    assert np.array_equal(read.pixels, array.transpose(2, 0, 1))
    expected = torch.from_numpy(array.transpose(2, 0, 1) / largest * 255).float()
    torch.testing.assert_close(scaled(tmp_path / "a.ppm", bands).float(), expected)


@pytest.mark.parametrize(("flags", "bands"), [(0, 3), (8, 4)])
def test_tga__has_an_opacity_only_where_it_says_so(tmp_path, flags, bands):
    """Many programs leave the fourth byte 0, with which everything would be transparent."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 1, 32, flags | 32)
    (tmp_path / "a.tga").write_bytes(header + bytes([3, 2, 1, 0, 6, 5, 4, 0]))
    assert stored(tmp_path / "a.tga", bands).pixels[:3].tolist() == [[[1, 4]], [[2, 5]], [[3, 6]]]
    shown = [[[1, 4]], [[2, 5]], [[3, 6]]] if bands == 3 else [[[255, 255]]] * 3
    assert stored(tmp_path / "a.tga", 3).pixels.tolist() == shown


def test_int32_pictures_of_pillow__need_a_range():
    image = PIL.Image.fromarray(np.array([[70000, -1]], np.int32))
    with pytest.raises(UnsuitableImageError, match="int32 values from -1 to 70000"):
        MAEImageProcessor(num_channels=1)(image)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_frames__are_pages(tmp_path, kind):
    frames = [PIL.Image.new("L", (8, 8), level) for level in (0, 90, 200)]
    frames[0].save(
        tmp_path / f"a.{kind}",
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "webp" else {}),
    )
    with pytest.raises(UnsuitableImageError, match="3 pages"):
        stored(tmp_path / f"a.{kind}", 1)
    assert stored(tmp_path / f"a.{kind}", 1, pages="first").pixels.max() == 0
    opened = open_image(str(tmp_path / f"a.{kind}"))
    assert [int(read_stored(page_of(opened, page), 1).pixels.max()) for page in range(3)] == [0, 90, 200]
    assert stored(tmp_path / f"a.{kind}", 3, pages="channels").pixels[:, 0, 0].tolist() == [0, 90, 200]


def test_mpo__further_pictures_of_a_phone_are_not_pages(tmp_path):
    first, second = PIL.Image.new("RGB", (16, 16), (9, 9, 9)), PIL.Image.new("RGB", (16, 16))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert PIL.Image.open(tmp_path / "a.jpg").n_frames == 2
    assert stored(tmp_path / "a.jpg", 3).pixels.max() == 9


@pytest.mark.parametrize("compressed", [False, True])
def test_sgi__of_16_bits_is_refused(tmp_path, compressed):
    PIL.Image.new("L", (8, 8), 9).save(tmp_path / "a.sgi")
    assert stored(tmp_path / "a.sgi", 1).pixels.max() == 9
    PIL.Image.new("L", (8, 8), 9).save(tmp_path / "a.sgi", bpc=2)
    if compressed:  # Pillow writes none; an image of no rows is as good for this
        content = bytearray((tmp_path / "a.sgi").read_bytes())
        content[2] = 1
        (tmp_path / "a.sgi").write_bytes(content)
    with pytest.raises(UnsuitableImageError, match="16 bits"):
        stored(tmp_path / "a.sgi", 1)


def test_png__that_pillow_has_decoded_to_8_bits_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(values("uint16", 3).transpose(1, 2, 0), 16, 2))
    image = PIL.Image.open(tmp_path / "a.png")
    image.load()
    with pytest.raises(UnsuitableImageError, match="a.png: .*16 bits.*path"):
        MAEImageProcessor()(image)


def test_errors__of_loader_workers_are_one_line():
    message = "Caught UnsuitableImageError in DataLoader worker process 0.\nOriginal Traceback ...\n"
    inner = UnsuitableImageError(f"{message}hf_mae.modeling.formats_mae.UnsuitableImageError: a.tif: The image ...\n")
    assert str(inner) == "a.tif: The image ..."
    message = "Caught UnreadableImagesError in DataLoader worker process 0.\nOriginal Traceback ...\n"
    inner = UnreadableImagesError(f"{message}hf_mae.data.decoding.UnreadableImagesError: None of 10 images ...\n")
    assert str(inner) == "None of 10 images ..."


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 15, 16])
@pytest.mark.parametrize("metadata", [0, 100000])
def test_jpeg2000__of_any_bits_keeps_its_values_and_its_white(tmp_path, bits, metadata):
    imagecodecs = pytest.importorskip("imagecodecs")
    array = np.random.default_rng(0).integers(0, 2**bits, (33, 40)).astype(np.uint8 if bits <= 8 else np.uint16)
    content = imagecodecs.jpeg2k_encode(array, level=0, bitspersample=bits, reversible=True)
    before = content.index(b"jp2c") - 4  # metadata of any length may lie before the pixels
    box = struct.pack(">I4s", 8 + metadata, b"xml ") + bytes(metadata)
    (tmp_path / "a.jp2").write_bytes(content[:before] + box + content[before:])
    assert np.array_equal(stored(tmp_path / "a.jp2", 1).pixels[0], array)
    torch.testing.assert_close(
        scaled(tmp_path / "a.jp2", 1)[0].float(),
        torch.from_numpy(array / (2**bits - 1) * 255).float(),
        atol=1e-3,
        rtol=0,
    )


def test_jpeg2000__with_a_sign_is_refused(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    for dtype in (np.int8, np.int16):
        (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(np.zeros((16, 16), dtype), level=0))
        with pytest.raises(UnsuitableImageError, match="signed JPEG 2000.*Convert"):
            stored(tmp_path / "a.jp2", 1)


def psd(bands, bits=8, colours=3, layers=None, resources=b"", packed=False):
    """Returns a PSD of bands (bands, height, width). `layers` is what stands for their number, negative for opacity."""
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, len(bands), *bands.shape[1:], bits, colours)
    section = b"" if layers is None else struct.pack(">Ih", 2, layers)
    content = np.packbits(bands, axis=2) if bits == 1 else bands
    if packed:  # row by row, their lengths in front
        rows = [bytes([bands.shape[2] - 1]) + row.tobytes() for row in bands.reshape(-1, bands.shape[2])]
        content = np.array([len(row) for row in rows], ">u2").tobytes() + b"".join(rows)
    parts = [struct.pack(">I", len(part)) + part for part in (b"", resources, section)]
    return header + b"".join(parts) + bytes([0, packed]) + bytes(content)


def test_psd__colours_lie_on_white_already(tmp_path):
    opacity = np.array([[0, 51, 255]])
    colours = np.array([[[100, 100, 100]], [[0, 0, 0]], [[200, 200, 200]]])
    on_white = np.rint(colours * opacity / 255 + 255 - opacity).astype(np.uint8)
    (tmp_path / "a.psd").write_bytes(psd(np.concatenate([on_white, opacity[None].astype(np.uint8)]), layers=-1))
    assert np.array_equal(stored(tmp_path / "a.psd", 3).pixels, on_white)
    assert stored(tmp_path / "a.psd", 3, background=0).pixels[:, 0].T.tolist() == [[0] * 3, [20, 0, 40], [100, 0, 200]]
    assert np.array_equal(stored(tmp_path / "a.psd", 4).pixels[3], opacity)


@pytest.mark.parametrize("layers", [None, 2])
def test_psd__a_selection_that_was_saved_is_no_opacity(tmp_path, layers):
    bands = values("uint8", 4)
    (tmp_path / "a.psd").write_bytes(psd(bands, layers=layers))
    assert np.array_equal(stored(tmp_path / "a.psd", 3).pixels, bands[:3])


@pytest.mark.parametrize("further", [0, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_psd__further_bands_do_not_move_the_colours(tmp_path, further, packed):
    bands = values("uint8", 3 + further)
    (tmp_path / "a.psd").write_bytes(psd(bands, packed=packed))
    assert np.array_equal(stored(tmp_path / "a.psd", 3).pixels, bands[:3])


def test_psd__that_holds_nothing_but_layers_is_refused(tmp_path):
    version = struct.pack(">4sHHII?", b"8BIM", 1057, 0, 5, 1, False) + b"\0"
    (tmp_path / "a.psd").write_bytes(psd(values("uint8", 3), layers=1, resources=version))
    with pytest.raises(UnsuitableImageError, match="layers, but not the picture.*maximize compatibility"):
        stored(tmp_path / "a.psd", 3)


@pytest.mark.parametrize("kind", ["psd", "xbm"])
def test_bitmaps__of_psd_and_xbm_have_0_for_white(tmp_path, kind):
    bits = np.eye(8, dtype=np.uint8)
    rows = ",".join(f"0x{1 << row:02x}" for row in range(8))
    text = f"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {{\n{rows}}};\n"
    (tmp_path / f"a.{kind}").write_bytes(psd(bits[None], bits=1, colours=0) if kind == "psd" else text.encode())
    assert np.array_equal(scaled(tmp_path / f"a.{kind}", 1)[0], (1 - bits) * 255)


def test_bmp__of_rle4_which_pillow_mixes_up_is_refused(tmp_path):
    palette, content = bytes(range(64)), b"\0\3\x12\x30\0\1"  # three pixels: 1, 2, 3
    sizes = struct.pack("<IiiHHIIiiII", 40, 3, 1, 1, 4, 2, len(content), 0, 0, 16, 0)
    header = struct.pack("<2sIII", b"BM", 54 + 64 + len(content), 0, 54 + 64)
    (tmp_path / "a.bmp").write_bytes(header + sizes + palette + content)
    with pytest.raises(UnsuitableImageError, match="RLE4.*Convert it to PNG"):
        stored(tmp_path / "a.bmp", 3)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_jpeg2000__a_palette_may_have_a_colour_twice(tmp_path, order):
    """Pillow would leave it out, and take channels that come in another order as they come."""
    array = np.arange(4, dtype=np.uint8).repeat(4).reshape(4, 4)
    PIL.Image.fromarray(array).save(tmp_path / "a.jp2")
    palette = [[0, 0, 0], [0, 0, 0], [9, 8, 7], [1, 2, 3]]
    boxes = [b"xml abcdefghijklmnop"]  # no box of channels
    boxes.append(b"pclr" + struct.pack(">HB", 4, 3) + bytes([7] * 3) + bytes(sum(palette, [])))
    boxes.append(b"cmap" + b"".join(struct.pack(">HBB", 0, 1, band) for band in range(3)))
    channels = b"".join(struct.pack(">HHH", channel, 0, colour) for channel, colour in enumerate(order))
    boxes.append(b"cdef" + struct.pack(">H", 3) + channels)
    added = b"".join(struct.pack(">I", 4 + len(box)) + box for box in boxes)
    content = (tmp_path / "a.jp2").read_bytes().replace(b"colr\1\0\0\0\0\0\x11", b"colr\1\0\0\0\0\0\x10")
    start = content.index(b"jp2h") - 4
    (length,) = struct.unpack_from(">I", content, start)
    head = struct.pack(">I", length + len(added)) + content[start + 4 : start + length]
    (tmp_path / "a.jp2").write_bytes(content[:start] + head + added + content[start + length :])
    if order == (1, 2, 3):
        assert stored(tmp_path / "a.jp2", 3).pixels[:, :, 0].T.tolist() == palette
        return
    with pytest.raises(UnsuitableImageError, match="channels .* unusual order. Convert it to TIFF"):
        stored(tmp_path / "a.jp2", 3)


@pytest.mark.parametrize("depth", [8, 16])
def test_png__whose_pixels_are_damaged_is_broken_though_it_has_all_rows(tmp_path, depth):
    array = np.zeros((9, 13, 3), np.uint16)
    content = png(array, depth, 2)
    rows = zlib.compress(bytes([0]) * 9 * (13 * 3 * depth // 8 + 1))
    assert content.count(rows) == 1
    (tmp_path / "a.png").write_bytes(content.replace(rows, zlib.compress(bytes([0, 99] * 9 * (13 * 3 * depth // 8)))))
    with pytest.raises(OSError, match="damaged: a checksum"):
        stored(tmp_path / "a.png", 3)


def test_png__of_frames_that_are_damaged_is_broken(tmp_path):
    frames = [PIL.Image.fromarray(each) for each in values("uint8", 3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.rindex(b"fdAT") + 20] ^= 1
    opened = open_image(bytes(content), ".png")
    with pytest.raises(OSError, match="damaged: a checksum"):
        page_of(opened, 2)


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_pictures__that_are_too_large_for_pillow_say_the_way_out(tmp_path, monkeypatch, extension):
    PIL.Image.new("L", (8, 4)).save(tmp_path / f"a.{extension}")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match=r"32 pixels\) exceeds .*in windows \(`tile`\) as a TIFF"):
        open_image(str(tmp_path / f"a.{extension}"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "deep PNG"])
def test_pictures__of_an_exif_that_is_broken_are_intact(tmp_path, kind):
    array = values("uint16" if kind == "deep PNG" else "uint8", 3).transpose(1, 2, 0)
    if kind == "JPEG":
        PIL.Image.fromarray(array).save(tmp_path / "a.jpg", exif=b"Exif\0\0Lorem ipsum")
    else:
        content = b"Lorem ipsum"
        chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
        (tmp_path / "a.png").write_bytes(png(array, 16 if kind == "deep PNG" else 8, 2, chunk))
    path = str(next(tmp_path.iterdir()))
    assert read_stored(open_image(path), 3).pixels.shape == (3, 9, 13)
    (crop,) = crop_and_resize(open_image(path), [(0, 0, 9, 13)], (9, 13), 3)
    torch.testing.assert_close(crop, to_byte_range(read_stored(open_image(path), 3)))


@pytest.mark.parametrize("kind", ["JPEG of 12 bits", "JPEG 2000 of 5 bands", "PFM of colours", "PSD of 16 bits"])
def test_pictures__that_pillow_does_not_open_are_not_taken_for_broken(tmp_path, kind):
    if kind.startswith("PFM"):
        content = b"PF\n4 4\n-1.0\n" + bytes(4 * 4 * 3 * 4)
    elif kind.startswith("PSD"):
        content = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 4, 4, 16, 3) + bytes(4 * 4 * 3 * 2 + 14)
    else:
        imagecodecs = pytest.importorskip("imagecodecs")
        content = (
            imagecodecs.ljpeg_encode(np.zeros((16, 16), np.uint16), bitspersample=12)
            if "12" in kind
            else imagecodecs.jpeg2k_encode(np.zeros((16, 16, 5), np.uint8), level=0)
        )
    (tmp_path / "a.jpg").write_bytes(content)
    for file in (str(tmp_path / "a.jpg"), content):
        with pytest.raises(UnsuitableImageError, match=f"{kind}, .*Convert it to TIFF"):
            open_image(file, ".jpg")
    with pytest.raises(PIL.UnidentifiedImageError):
        open_image(content[:2] + bytes(40), ".jpg")


@pytest.mark.parametrize("white", [15, 300])
def test_values__above_the_white_of_the_file_are_refused(tmp_path, white):
    """Else they would wrap around in 8 bits, or be cut off."""
    content = np.array([[3, white + 1]], ">u2" if white > 255 else "u1").tobytes()
    (tmp_path / "a.pgm").write_bytes(f"P5 2 1 {white}\n".encode() + content)
    with pytest.raises(UnsuitableImageError, match=f"values up to {white + 1}.* {white} is white.*`value_range`"):
        scaled(tmp_path / "a.pgm", 1)
    shown = scaled(tmp_path / "a.pgm", 1, value_range=(0, 2 * white))[0, 0]
    torch.testing.assert_close(shown, torch.tensor([3, white + 1]) * 255 / (2 * white))


# ----------------------------------------------------------------------------------------------------------------------
# NaN and no-data


def test_nan__is_refused_with_row_and_column_or_left_out(tmp_path):
    array = values("float32")[0]
    array[4, 7] = np.nan
    array[5, 1] = np.inf
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UnsuitableImageError, match="nan at row 4, column 7.*nodata"):
        scaled(tmp_path / "a.npy", 1)
    missing = scaled(tmp_path / "a.npy", 1, nodata=float("nan")).isnan()[0]
    assert missing.nonzero().tolist() == [[4, 7], [5, 1]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_nodata__of_any_type_is_filled_with_the_mean_before_resizing(tmp_path, dtype):
    array = np.full((32, 32), 1, dtype)
    array[:16] = 0
    np.save(tmp_path / "a.npy", array)
    processor = MAEImageProcessor.for_image_size(
        16, num_channels=1, image_mean=[0.25], image_std=[0.5], value_range=[0, 4], nodata=0
    )
    pixels = processor(str(tmp_path / "a.npy"), return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, torch.zeros_like(pixels))  # 1 of [0, 4] is the mean, and so is what is filled in


@pytest.mark.parametrize(
    ("dtype", "nodata", "value_range", "gaps"),
    [
        ("uint8", 0, None, "all"),  # pure red is a colour
        ("uint8", 255, None, "all"),
        ("uint16", 0, (0, 10000), "all"),
        ("float32", 0, (0, 1), "all"),
        ("int16", -9999, (0, 10000), "any"),  # which is no reflectance
        ("float32", -9999, (0, 1), "any"),
    ],
)
def test_nodata__that_could_be_a_value_is_one_unless_all_bands_have_it(tmp_path, dtype, nodata, value_range, gaps):
    array = np.ones((3, 20, 30), dtype)
    array[0, :5], array[:, 10:15] = nodata, nodata
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="separate")
    found = scaled(tmp_path / "a.tif", 3, nodata=nodata, value_range=value_range).isnan()
    equal = array == nodata
    expected = np.broadcast_to(equal.all(axis=0), equal.shape) if gaps == "all" else equal
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("stored", [-3.4028234663852886e38, -3.4028231e38])
def test_nodata__of_the_least_float_may_lack_digits(tmp_path, stored):
    array = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    array[:2] = stored
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=[(42113, "s", 0, "-3.40282306074e+38", True)])  # by ArcGIS
    assert scaled(tmp_path / "a.tif", 1).isnan()[0].sum() == 60


def test_nodata__of_values_that_are_not_rescaled_is_filled_with_their_mean():
    array = np.full((1, 4, 4), 700, np.int16)
    array[0, 1] = -999
    plain = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "num_channels": 1}
    processor = MAEImageProcessor(**plain, nodata=-999, image_mean=[500.0], image_std=[100.0])
    pixels = processor(array, return_tensors="pt").pixel_values[0, 0]
    assert pixels[1].tolist() == [0] * 4
    assert pixels[0].tolist() == [2] * 4


# ----------------------------------------------------------------------------------------------------------------------
# Medical and other formats


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


def test_dicom__ct_is_in_hounsfield_units(tmp_path):
    array = np.array([[0, 1024], [1055, 4000]], np.uint16)
    dicom(tmp_path / "ct.dcm", array, RescaleSlope=1, RescaleIntercept=-1024, BitsStored=12, HighBit=11)
    assert stored(tmp_path / "ct.dcm", 1).pixels[0].tolist() == [[-1024, 0], [31, 2976]]
    with pytest.raises(UnsuitableImageError, match="values from -1024 to 2976.*value_range"):
        scaled(tmp_path / "ct.dcm", 1)
    pixels = scaled(tmp_path / "ct.dcm", 1, value_range=(-1000, 1000))
    torch.testing.assert_close(pixels[0], torch.tensor([[0, 0.5], [1031 / 2000, 1]]) * 255)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"RescaleIntercept": -1024}, [[-1024, 0], [31, 2976]]),
        ({"RescaleSlope": 2}, [[0, 2048], [2110, 8000]]),
        ({"RescaleSlope": "", "RescaleIntercept": -1}, [[-1, 1023], [1054, 3999]]),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, [[0, 1024], [1055, 4000]]),
    ],
)
def test_dicom__is_rescaled_by_what_there_is(tmp_path, elements, expected):
    dicom(tmp_path / "a.dcm", np.array([[0, 1024], [1055, 4000]], np.uint16), **elements)
    assert stored(tmp_path / "a.dcm", 1).pixels[0].tolist() == expected


@pytest.mark.parametrize(
    ("array", "elements", "padding"),
    [
        ([[-2000, 0, 5, 0]], {"PixelPaddingValue": -2000}, [True, False, False, False]),
        ([[4, 0, 9, 7]], {"PixelPaddingValue": 3, "PixelPaddingRangeLimit": 8}, [True, False, False, True]),
        ([[4, 0, 9, 7]], {"PixelPaddingValue": 4, "PixelPaddingRangeLimit": 0}, [True, True, False, False]),
    ],
)
@pytest.mark.parametrize("rescaled", [{}, {"RescaleIntercept": -1024, "RescaleSlope": 1}])
def test_dicom__padding_that_the_file_declares_is_no_data(tmp_path, array, elements, padding, rescaled):
    dicom(tmp_path / "a.dcm", np.array(array, np.int16), **elements, **rescaled)
    pixels = scaled(tmp_path / "a.dcm", 1, value_range=(-3000, 3000))
    assert pixels.isnan().tolist() == [[padding]]


def test_dicom__padding_that_is_written_without_its_sign(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    dicom(tmp_path / "a.dcm", np.array([[-2000, 0]], np.int16))
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.add_new("PixelPaddingValue", "US", 65536 - 2000)
    data.save_as(tmp_path / "a.dcm")
    assert scaled(tmp_path / "a.dcm", 1, value_range=(-3000, 3000)).isnan().tolist() == [[[True, False]]]


def test_dicom__frames_that_are_rescaled_differently_keep_their_values(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    groups = []
    for slope in (2, 3):
        transformation, group = pydicom.Dataset(), pydicom.Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, -1
        group.PixelValueTransformationSequence = [transformation]
        groups.append(group)
    array = np.full((2, 1, 2), 10, np.uint16)
    dicom(tmp_path / "a.dcm", array, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=groups)
    assert stored(tmp_path / "a.dcm", 2, pages="channels").pixels[:, 0, 0].tolist() == [19, 29]
    groups[1].PixelValueTransformationSequence[0].RescaleSlope = 1
    groups[1].PixelValueTransformationSequence[0].RescaleIntercept = 0
    dicom(tmp_path / "a.dcm", array, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=groups)
    with pytest.raises(UnsuitableImageError, match="2 pages differ in type"):
        stored(tmp_path / "a.dcm", 2, pages="channels")


@pytest.mark.parametrize(
    ("bits", "dtype", "white"), [(8, np.uint8, 255), (8, np.uint16, 255), (16, np.uint16, 65535), (16, np.uint16, 255)]
)
def test_dicom__palettes_of_every_depth_have_their_colours(tmp_path, bits, dtype, white):
    """Old programs write entries of 8 bits into 16, whatever the descriptor says."""
    palette = {}
    for number, name in enumerate(("Red", "Green", "Blue")):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
        entries = np.array([0, number, white // 2, white], dtype)
        palette[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    array = np.array([[0, 1, 2, 3]], np.uint8)
    dicom(tmp_path / "a.dcm", array, PhotometricInterpretation="PALETTE COLOR", **palette)
    expected = torch.tensor([[[0, number / white * 255, white // 2 / white * 255, 255]] for number in range(3)])
    torch.testing.assert_close(scaled(tmp_path / "a.dcm", 3).float(), expected)


@pytest.mark.parametrize("implicit", [True, False])
def test_dicom__without_preamble_and_meta_header(tmp_path, implicit):
    pydicom = pytest.importorskip("pydicom")
    array = values("uint16")[0]
    dicom(tmp_path / "a.dcm", array)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    del data.file_meta
    data.preamble = None
    pydicom.dcmwrite(tmp_path / "bare.dcm", data, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "bare.dcm").read_bytes()[128:132] != b"DICM"
    assert np.array_equal(stored(tmp_path / "bare.dcm", 1).pixels[0], array)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom__x_rays_use_their_bits_and_monochrome1_is_inverted(tmp_path, photometric):
    array = np.random.default_rng(0).integers(0, 4096, (6, 8)).astype(np.uint16)
    dicom(tmp_path / "x.dcm", array, BitsStored=12, HighBit=11, PhotometricInterpretation=photometric)
    expected = torch.from_numpy(array / 4095 * 255).float()
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    torch.testing.assert_close(scaled(tmp_path / "x.dcm", 1)[0], expected)


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("frames", [1, 2])
def test_dicom__values_that_lie_in_the_highest_bits_keep_them(tmp_path, dtype, frames):
    """As older files have them: 12 of 16 bits, the highest of which is the sixteenth."""
    array = (values(dtype, frames) >> 4).astype(dtype)
    elements = {"NumberOfFrames": frames} if frames > 1 else {}
    dicom(tmp_path / "a.dcm", array << 4, BitsStored=12, HighBit=15, **elements)
    image = stored(tmp_path / "a.dcm", frames, pages="channels")
    assert np.array_equal(image.pixels, array)
    assert image.limit == (4095 if dtype == "uint16" else None)


def test_dicom__of_floats_gives_its_values(tmp_path):
    """As parametric maps are, without any bits stored."""
    array = values("float32")[0]
    dicom(tmp_path / "a.dcm", array, FloatPixelData=array.tobytes())
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    del data.PixelData, data.BitsStored, data.HighBit
    data.save_as(tmp_path / "a.dcm")
    assert np.array_equal(stored(tmp_path / "a.dcm", 1).pixels[0], array)


@pytest.mark.parametrize("kind", ["US", "OW"])
def test_dicom__a_table_of_12_bits_gives_values_and_white(tmp_path, kind):
    pydicom = pytest.importorskip("pydicom")
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4, 100, 12])
    entries = [0, 7, 1000, 4095]
    table.add_new("LUTData", kind, entries if kind == "US" else np.array(entries, "<u2").tobytes())
    dicom(tmp_path / "a.dcm", np.array([[0, 100], [101, 102], [103, 999]], np.uint16), ModalityLUTSequence=[table])
    image = stored(tmp_path / "a.dcm", 1)
    assert image.pixels.tolist() == [[[0, 0], [7, 1000], [4095, 4095]]]
    assert image.limit == 4095
    del table.LUTDescriptor, table.LUTData  # an empty table says nothing
    dicom(tmp_path / "a.dcm", np.array([[0, 100]], np.uint16), ModalityLUTSequence=[table])
    assert stored(tmp_path / "a.dcm", 1).pixels.tolist() == [[[0, 100]]]


def test_dicom__that_nothing_here_decodes_says_how_to_unpack_it(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    dicom(tmp_path / "a.dcm", values("uint8")[0])

    def fail(*args, **options):
        raise RuntimeError("Unable to decode as exceptions were raised by all available plugins")

    monkeypatch.setattr(pydicom.pixels, "pixel_array", fail)
    with pytest.raises(UnsuitableImageError, match=r"hf-mae\[dicom\].*gdcmconv --raw OLD NEW"):
        stored(tmp_path / "a.dcm", 1)


def test_dicom__colours_frames_and_files_without_extension(tmp_path):
    colours = values("uint8", 3).transpose(1, 2, 0).copy()
    dicom(tmp_path / "IM0001", colours)
    assert np.array_equal(stored(tmp_path / "IM0001", 3).pixels, colours.transpose(2, 0, 1))
    frames = values("uint8", 4)
    dicom(tmp_path / "frames.dcm", frames, NumberOfFrames=4)
    with pytest.raises(UnsuitableImageError, match="4 pages"):
        stored(tmp_path / "frames.dcm", 1)
    assert np.array_equal(stored(tmp_path / "frames.dcm", 4, pages="channels").pixels, frames)


@pytest.mark.parametrize("name", ["MR_small_bigendian.dcm", "image_dfl.dcm", "SC_rgb_jpeg.dcm", "CT_small.dcm"])
def test_dicom__of_other_programs_has_the_values_of_the_library(name):
    """Big-endian, deflated, JPEG without an offset table, rescaled: files that pydicom brings along."""
    pydicom = pytest.importorskip("pydicom")
    path = pydicom.data.get_testdata_file(name, download=False)
    data = pydicom.dcmread(path)
    expected = pydicom.pixels.apply_modality_lut(data.pixel_array, data)
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    assert np.array_equal(stored(path, len(expected)).pixels, expected)


def test_dicom__doses_of_32_bits_need_a_range(tmp_path):
    dicom(tmp_path / "dose.dcm", values("uint32")[0])
    with pytest.raises(UnsuitableImageError, match="uint32.*value_range"):
        scaled(tmp_path / "dose.dcm", 1)


def test_dicom__without_the_library_names_the_extra(tmp_path, monkeypatch):
    dicom(tmp_path / "a.dcm", values("uint8")[0])
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnsuitableImageError, match=r"hf-mae\[dicom\]"):
        stored(tmp_path / "a.dcm", 1)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti__slices_are_pages_and_values_are_scaled(tmp_path, suffix):
    nibabel = pytest.importorskip("nibabel")
    volume = values("int16", 7, (6, 5))
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"a{suffix}")
    opened = open_image(str(tmp_path / f"a{suffix}"))
    assert num_pages(opened) == 5
    assert np.array_equal(read_stored(page_of(opened, 3), 1).pixels[0], volume[:, :, 3].T)
    content = (tmp_path / f"a{suffix}").read_bytes()
    assert np.array_equal(read_stored(page_of(open_image(content, suffix), 3), 1).pixels[0], volume[:, :, 3].T)


@pytest.mark.parametrize("name", ["a.npy", "a.nii", "a.nii.gz", "two.nii"])
def test_content__says_what_an_array_or_a_volume_is_where_no_name_does(tmp_path, name):
    """As in the cells of a parquet file that holds no paths."""
    array = values("int16")[0]
    if name == "a.npy":
        np.save(tmp_path / name, array)
    else:
        nibabel = pytest.importorskip("nibabel")
        kind = nibabel.Nifti2Image if name == "two.nii" else nibabel.Nifti1Image
        nibabel.save(kind(array.T, np.eye(4)), tmp_path / name)
    assert np.array_equal(read_stored(open_image((tmp_path / name).read_bytes(), ""), 1).pixels[0], array)


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 0), ("int16", 0), ("uint16", 32768), ("float32", 0)])
def test_fits__is_scaled_by_its_header(tmp_path, dtype, zero):
    array = values(dtype)[0]
    file = (array.astype(np.int64) - zero).astype(">i2") if zero else array.astype(np.dtype(dtype).newbyteorder(">"))
    kind = {"uint8": 8, "int16": 16, "uint16": 16, "float32": -32}[dtype]
    cards = {"SIMPLE": "T", "BITPIX": kind, "NAXIS": 2, "NAXIS1": 13, "NAXIS2": 9, "BZERO": zero}
    cards["BSCALE"] = "1.0D0" if dtype == "float32" else 1  # an exponent of Fortran's
    header = "".join(f"{name:8}= {value:>20}".ljust(80) for name, value in cards.items()) + "END".ljust(80)
    (tmp_path / "a.fits").write_bytes(header.ljust(2880).encode() + file.tobytes().ljust(2880, b"\0"))
    read = stored(tmp_path / "a.fits", 1).pixels[0]
    assert read.dtype == np.dtype(dtype)
    assert np.array_equal(read, array[::-1])  # its first row is at the bottom


def test_arrays__of_several_images_are_pages(tmp_path):
    images = values("uint8", 4)
    np.save(tmp_path / "four.npy", images[:, None])
    np.savez(tmp_path / "two.npz", a=images[0], b=images[1], name="text")
    np.savez_compressed(tmp_path / "one.npz", image=images[2])
    assert num_pages(open_image(str(tmp_path / "four.npy"))) == 4
    assert np.array_equal(read_stored(page_of(open_image(str(tmp_path / "four.npy")), 2), 1).pixels[0], images[2])
    assert np.array_equal(stored(tmp_path / "two.npz", 1, pages="first").pixels[0], images[0])
    assert np.array_equal(stored(tmp_path / "two.npz", 2, pages="channels").pixels, images[:2])
    assert np.array_equal(stored(tmp_path / "one.npz", 1).pixels[0], images[2])


@pytest.mark.parametrize(
    "array", [np.zeros((3, 4), complex), np.zeros((3, 4), [("r", "u1")]), np.zeros(5), np.zeros((0, 4))]
)
def test_arrays__that_are_no_images_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UnsuitableImageError):
        stored(tmp_path / "a.npy", 1)


def test_settings__are_checked():
    for wrong in (
        {"value_range": (5, 5)},
        {"value_range": (1, 2, 3)},
        {"bands": (0,)},
        {"pages": "all"},
        {"background": 256},
    ):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            ReadingSettings(**wrong)


# ----------------------------------------------------------------------------------------------------------------------
# Path, object and array


@pytest.mark.parametrize("kind", ["uint8 RGB", "uint8 grey", "uint16 grey", "uint16 RGB png", "float", "oriented"])
@pytest.mark.parametrize("channels", [1, 3])
def test_processor__by_path_by_object_and_by_array_agrees(tmp_path, kind, channels):
    processor, path = MAEImageProcessor.for_image_size(16, num_channels=channels), tmp_path / "a.png"
    if kind.startswith("uint16 RGB"):
        array = values("uint16", 3, (40, 30)).transpose(1, 2, 0)
        path.write_bytes(png(array, 16, 2))
        if channels == 1:
            with pytest.raises(UnsuitableImageError, match="a.png: .*3 band"):
                processor(str(path))
            return
    elif kind == "float":
        array, path = values("float32", 1, (40, 30))[0], tmp_path / "a.tif"
        PIL.Image.fromarray(array).save(path)
    else:
        array = values(kind.split()[0] if "uint" in kind else "uint8", 3, (40, 30)).transpose(1, 2, 0)
        array = array[..., 0] if "grey" in kind or channels == 1 else array
        exif = PIL.Image.Exif()
        if kind == "oriented":
            exif[0x0112] = 6
        PIL.Image.fromarray(array).save(path, exif=exif)
        array = np.rot90(array, -1) if kind == "oriented" else array
    by_path, by_object, by_array = (
        processor(image, return_tensors="pt").pixel_values for image in (str(path), PIL.Image.open(path), array)
    )
    assert torch.equal(by_path, by_array)
    assert torch.equal(by_object, by_array)
    assert torch.equal(processor([path, path], return_tensors="pt").pixel_values[1:], by_array)
    content = __import__("base64").b64encode(path.read_bytes()).decode()
    if path.suffix == ".png":
        assert torch.equal(processor(content, return_tensors="pt").pixel_values, by_array)


def test_processor__each_page_of_a_file_is_an_image_if_it_says_so(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values("uint8", 3, (20, 20)), photometric="minisblack")
    processor = MAEImageProcessor.for_image_size(16, num_channels=1, pages="images")
    by_path = processor(str(tmp_path / "a.tif"), return_tensors="pt").pixel_values
    assert by_path.shape == (3, 1, 16, 16)
    assert torch.equal(processor(PIL.Image.open(tmp_path / "a.tif"), return_tensors="pt").pixel_values, by_path)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_processor__pages_that_pillow_has_opened_keep_what_their_tags_say(tmp_path, is_loaded):
    array = values("uint16", 3, (20, 20))
    array[:, 2, 3] = array[0, 2, 3]
    options = {"photometric": "miniswhite", "extratags": [(42113, "s", 0, str(array[0, 2, 3]), True)]}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    processor = MAEImageProcessor.for_image_size(16, pages="channels", return_valid=True)
    picture = PIL.Image.open(tmp_path / "a.tif")
    if is_loaded:
        picture.load()
    by_path, by_object = (processor(image, return_tensors="pt") for image in (str(tmp_path / "a.tif"), picture))
    assert not by_path.valid.all()
    assert torch.equal(by_object.valid, by_path.valid)
    assert torch.equal(by_object.pixel_values, by_path.pixel_values)


def test_processor__a_path_that_is_missing_is_said_to_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="'images/0' is no file"):  # but it is valid base64
        MAEImageProcessor()("images/0")


def test_processor__settings_are_saved_and_kept_for_other_sizes(tmp_path):
    given = {"value_range": [-1000, 1000], "bands": [3], "nodata": float("nan"), "pages": "first", "background": 0}
    given.update(display_bands=[1], sample_type="int16", input_data_format="channels_first")
    processor = MAEImageProcessor.for_image_size(16, num_channels=1, **given)
    processor.save_pretrained(tmp_path)
    assert "NaN" not in (tmp_path / "preprocessor_config.json").read_text()
    for other in (MAEImageProcessor.from_pretrained(tmp_path), processor.with_image_size(32)):
        assert str(other.reading) == str(processor.reading)  # nan is not equal to itself
        assert (other.display_bands, other.sample_type) == ([1], "int16")
    assert processor.reading.value_range == (-1000, 1000)


def test_processor__refuses_settings_and_inputs_that_make_no_sense():
    with pytest.raises(ValueError, match="`value_range`"):
        MAEImageProcessor(value_range=[5, 1])
    with pytest.raises(ValueError, match="`pages`"):
        MAEImageProcessor()(np.zeros((9, 9, 3), np.uint8), pages="all")
    with pytest.raises(TypeError, match="got int"):
        MAEImageProcessor()([3])


def test_processor__8_bits_are_refused_where_the_model_saw_more(tmp_path):
    rgb = PIL.Image.new("RGB", (40, 30))
    for settings in ({"sample_type": "uint16"}, {"value_range": [-1000, 1000]}):
        processor = MAEImageProcessor.for_image_size(16, num_channels=1, **settings)
        with pytest.raises(UnsuitableImageError, match="8 bits.*path"):
            processor(rgb)
        processor(np.zeros((30, 40), np.uint16))
    MAEImageProcessor.for_image_size(16, num_channels=1, value_range=[0, 200])(rgb)


def test_processor__pictures_of_deep_values_are_stretched():
    image = values("uint16", 1, (16, 16)) >> 4  # 12 bits in 16: black if it were not
    mean, std = image.mean() / 65535, image.std() / 65535
    processor = MAEImageProcessor.for_image_size(
        16, num_channels=1, image_mean=[mean], image_std=[std], sample_type="uint16", do_resize=False
    )
    (shown,) = processor.post_process_reconstruction(processor(image, return_tensors="pt").pixel_values)
    assert np.corrcoef(np.asarray(shown).ravel(), image.ravel())[0, 1] > 0.99
    assert np.asarray(shown).std() > 50
    processor = MAEImageProcessor(num_channels=4, sample_type="uint16")
    assert processor.post_process_reconstruction(torch.zeros(1, 4, 8, 8))[0].mode == "RGB"  # the fourth is no opacity


def test_processor__shows_the_display_bands():
    image = values("uint8", 5, (16, 16))
    processor = MAEImageProcessor(num_channels=5, display_bands=[4, 1, 2], do_resize=False, do_center_crop=False)
    (shown,) = processor.post_process_reconstruction(processor(image, return_tensors="pt").pixel_values)
    assert np.array_equal(np.asarray(shown).transpose(2, 0, 1), image[[3, 0, 1]])


@pytest.mark.parametrize("shape", [(4, 20000), (1, 20000), (30000, 3)])
def test_processor__long_thin_pictures_are_not_enlarged_whole(shape):
    image = np.tile(np.linspace(0, 255, max(shape)).astype(np.uint8), (min(shape), 1))
    image = image if shape[0] < shape[1] else image.T
    tallest = []
    resize = torch.nn.functional.interpolate

    def watch(images, size, **options):
        tallest.append(size[0] * size[1])
        return resize(images, size=size, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "interpolate", watch)
        pixels = MAEImageProcessor(num_channels=1, do_normalize=False)(image, return_tensors="pt").pixel_values
    assert max(tallest) < 12 * 224 * 224
    assert pixels.mean() == pytest.approx(0.5, abs=0.01)  # the centre


def test_processor__of_a_url_reads_what_is_stored(tmp_path):
    array = values("uint16", 1, (20, 20))[0]
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib.request.urlopen", lambda url: io.BytesIO(buffer.getvalue()))
        processor = MAEImageProcessor.for_image_size(16, num_channels=1)
        by_url = processor("https://example.org/a.png", return_tensors="pt").pixel_values
    assert torch.equal(by_url, processor(array, return_tensors="pt").pixel_values)
    with pytest.raises(FileNotFoundError, match="no file"):
        processor(str(tmp_path / "missing.png"))


# ----------------------------------------------------------------------------------------------------------------------
# No-data in training


def test_loss__leaves_patches_with_no_data_out(tiny_model):
    model, images, noise = tiny_model(), torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    plain = model(images, noise=noise).loss
    everywhere = torch.ones(3, 32, 32, dtype=torch.bool)
    torch.testing.assert_close(model(images, noise=noise, valid=everywhere).loss, plain)

    valid = everywhere.clone()
    valid[0, :16] = False
    valid[1] = False
    loss = model(images, noise=noise, valid=valid).loss
    output = model(images, noise=noise)
    errors = (output.logits - model.target_values(images, output.ids_hidden)).square().mean(dim=-1)
    first = errors[0][output.ids_hidden[0] >= 8].mean()  # the lower half of a grid of 4 x 4 patches
    torch.testing.assert_close(loss, (first + 0 + errors[2].mean()) / 3)
    nothing = model(images, noise=noise, valid=torch.zeros_like(valid)).loss
    assert nothing == 0
    nothing.backward()  # gradients of 0, not NaN
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_loss__a_single_pixel_of_no_data_leaves_its_patch_out(tiny_model):
    model, images, noise = tiny_model(), torch.randn(1, 3, 32, 32), torch.rand(1, 16)
    hidden = int(model(images, noise=noise).ids_hidden[0, 0])
    valid = torch.ones(1, 32, 32, dtype=torch.bool)
    valid[0, hidden // 4 * 8 + 5, hidden % 4 * 8 + 2] = False
    assert model(images, noise=noise, valid=valid).loss != model(images, noise=noise).loss


def scene(path, nodata=-9999.0):
    """A float scene whose left half is no-data."""
    array = values("float32", 1, (40, 40))[0]
    array[:, :20] = nodata
    np.save(path, array)


def test_samples__carry_where_there_is_no_data_and_nothing_else_changes(tmp_path):
    from hf_mae.data.datasets import PretrainingDataset, channel_statistics, collate
    from hf_mae.data.sources import FolderImages

    scene(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", values("float32", 1, (40, 40))[0])
    reading = ReadingSettings(nodata=-9999, fill=(77.0,))
    images = FolderImages(tmp_path)
    dataset = PretrainingDataset(images, (16, 16), 4, 1, crop_scale=(1, 1), reading=reading)
    with_gaps, whole = dataset.__getitems__([(0, 0, 0), (0, 1, 0)])
    assert "valid" not in whole
    pixels, valid = with_gaps["pixel_values"], with_gaps["valid"]
    assert valid.shape == (16, 16)
    assert 0.4 < valid.float().mean() < 0.6
    assert (pixels[0][~valid] == 77).all()
    assert 0 <= pixels.min() <= pixels.max() <= 255
    batch = collate([with_gaps, whole])
    assert batch["valid"][0].equal(valid)
    assert batch["valid"][1].all()
    assert "valid" not in collate([whole, whole])
    mean, std = channel_statistics(images, 1, reading=reading)
    assert mean[0] == pytest.approx(0.5, abs=0.03)
    assert std[0] == pytest.approx(12**-0.5, abs=0.03)


def test_statistics__of_nan_are_an_error_by_name(tmp_path):
    from hf_mae.data.datasets import channel_statistics
    from hf_mae.data.sources import FolderImages

    scene(tmp_path / "a.npy", np.nan)
    with pytest.raises(UnsuitableImageError, match="a.npy: nan at row 0, column 0"):
        channel_statistics(FolderImages(tmp_path), 1)
    mean, _ = channel_statistics(FolderImages(tmp_path), 1, reading=ReadingSettings(nodata=float("nan")))
    assert mean[0] == pytest.approx(0.5, abs=0.03)


# ----------------------------------------------------------------------------------------------------------------------
# Checks before the first step


def test_check__names_the_first_unsuitable_image_and_passes_over_broken_ones(tmp_path):
    from hf_mae.data.checking import check_images
    from hf_mae.data.sources import FolderImages

    for number in range(20):
        np.save(tmp_path / f"{number:02}.npy", values("uint16", 1)[0])
    (tmp_path / "99.npy").write_bytes(b"")
    found = check_images(FolderImages(tmp_path), 1)
    assert found.sample_type == "uint16"
    assert list(found.unreadable) == [str(tmp_path / "99.npy")]
    np.save(tmp_path / "17.npy", np.full((4, 4), np.nan))
    with pytest.raises(UnsuitableImageError, match="17.npy: nan"):
        check_images(FolderImages(tmp_path), 1)


def test_check__decodes_a_few_plain_pictures_of_each_format_and_tells_mixed_types(tmp_path, monkeypatch):
    from hf_mae.data import checking
    from hf_mae.data.sources import FolderImages

    monkeypatch.setattr(checking, "_DECODED_OF_EACH", 2)
    for number in range(5):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.jpg")
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    decoded, read = [], checking.read_stored
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "read_stored", lambda image, *rest: decoded.append(image.format) or read(image, *rest))
        found = checking.check_images(FolderImages(tmp_path), 3)
    assert sorted(decoded) == ["JPEG", "JPEG", "PNG", "PNG"]
    assert (found.sample_type, found.notes) == ("uint8", [])
    np.save(tmp_path / "deep.npy", values("uint16", 1)[0])
    found = checking.check_images(FolderImages(tmp_path), 3)
    assert found.sample_type is None
    assert "10 x uint8, 1 x uint16" in found.notes[-1]


def test_check__finds_pictures_that_nothing_here_decodes(tmp_path):
    from hf_mae.data.checking import check_images
    from hf_mae.data.sources import FolderImages

    buffer = io.BytesIO()
    PIL.Image.fromarray(values("uint8", 3, (64, 64)).transpose(1, 2, 0)).save(buffer, "PNG")
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(buffer.getvalue()[:300])
    with pytest.raises(OSError, match="None of 10 images"):
        check_images(FolderImages(tmp_path), 3)


def test_value_range_and_statistics__leave_out_what_is_transparent(tmp_path):
    from hf_mae.data.checking import value_range_of
    from hf_mae.data.datasets import channel_statistics
    from hf_mae.data.sources import FolderImages

    array = np.full((8, 8, 4), 255, np.uint8)
    array[..., :3] = np.arange(64).reshape(8, 8, 1) + 10
    array[:4, :, 3] = 0
    (tmp_path / "a.png").write_bytes(png(array, 8, 6))
    images = FolderImages(tmp_path)
    assert value_range_of(images, 3, (0, 100)) == ((42, 73),) * 3
    assert value_range_of(images, 3, (1, 99)) == ((42, 73),) * 3
    mean, _ = channel_statistics(images, 3)
    assert mean == pytest.approx([57.5 / 255] * 3, abs=1e-5)


def test_check__takes_pictures_that_it_does_not_decode_for_none_of_8_bits(tmp_path, monkeypatch):
    from hf_mae.data import checking
    from hf_mae.data.sources import FolderImages

    monkeypatch.setattr(checking, "_MOST_PIXELS", 20 * 20)
    for number in range(6):
        PIL.Image.fromarray(values("uint16", 1, (20, 20))[0]).save(tmp_path / f"{number}.png")
    found = checking.check_images(FolderImages(tmp_path), 1)
    assert (found.sample_type, found.notes) == ("uint16", [])


def test_check__decodes_pictures_from_all_over_the_source(tmp_path, monkeypatch):
    from hf_mae.data import checking
    from hf_mae.data.sources import FolderImages

    monkeypatch.setattr(checking, "_MOST_PIXELS", 10 * 9 * 13)
    for number in range(40):
        np.save(tmp_path / f"{number:02}.npy", values("uint16" if number < 20 else "int16", 1)[0])
    with pytest.raises(UnsuitableImageError, match="[23][0-9].npy: .*int16"):
        checking.check_images(FolderImages(tmp_path), 1)


def test_check__reads_each_row_group_once():
    from hf_mae.data.checking import check_images
    from hf_mae.data.image_source import ImageSource

    class InRowGroups(ImageSource):
        name, row_groups, opened = "row groups", np.array([5, 1, 7, 3] * 4), []

        def __len__(self):
            return 64

        def __getitem__(self, index):
            self.opened.append(index)
            return values("uint16", 1)[0]

    assert check_images(InRowGroups(), 1).sample_type == "uint16"
    groups = np.repeat(np.arange(16), InRowGroups.row_groups)[InRowGroups.opened]
    assert sorted(InRowGroups.opened) == list(range(64))
    assert (np.diff(groups) != 0).sum() == 15
    assert groups.tolist() != sorted(groups)  # and not in the order of the source


def test_value_range__from_percentiles_of_the_data(tmp_path):
    from hf_mae.data.checking import value_range_of
    from hf_mae.data.sources import FolderImages

    ramp = np.arange(10001, dtype=np.int32).reshape(1, -1) - 5000
    np.save(tmp_path / "a.npy", np.stack([ramp, 2 * ramp]))
    low_high = value_range_of(FolderImages(tmp_path), 2, (10, 90))
    assert low_high == pytest.approx(np.array([(-4000, 4000), (-8000, 8000)]), abs=20)


def test_value_range__sees_all_columns_and_its_ends_all_pixels(tmp_path):
    """A bright stripe of a hundredth of the pixels, and a defect that few pixels belong to."""
    from hf_mae.data.checking import value_range_of
    from hf_mae.data.sources import FolderImages

    for number in range(3):
        image = values("uint16", 1, (1024, 1024))[0] % 1000 + 1000
        image[:, 700:710] = 5000
        image[200, 300] = 60000
        image[201, 300] = 3
        np.save(tmp_path / f"{number}.npy", image)
    images = FolderImages(tmp_path)
    assert value_range_of(images, 1, (0, 100)) == ((3, 60000),)
    ((low, high),) = value_range_of(images, 1, (1, 99.5))
    assert 1000 < low < 1020
    assert high == 5000
    assert value_range_of(images, 1, (1, 99.5)) == ((low, high),)


def test_value_range__leaves_no_data_out_and_names_images_of_nothing_else(tmp_path):
    from hf_mae.data.checking import value_range_of
    from hf_mae.data.sources import FolderImages

    reading = ReadingSettings(nodata=0)
    np.save(tmp_path / "empty.npy", np.zeros((70, 70), np.uint16))
    with pytest.raises(ValueError, match="A channel of .* holds nothing but no-data in all images"):
        value_range_of(FolderImages(tmp_path), 1, (1, 99), reading)
    scene = np.zeros((300, 300), np.uint16)
    scene[7, :100] = np.arange(100) + 1
    np.save(tmp_path / "scene.npy", scene)
    assert value_range_of(FolderImages(tmp_path), 1, (0, 100), reading) == ((1, 100),)
    assert value_range_of(FolderImages(tmp_path), 1, (10, 90), reading) == ((11, 90),)
