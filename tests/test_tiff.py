# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""TIFF: every type, layout, compression and tag gives the values that the file states, whole and in windows."""

import struct
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from image_files import scaled, stored, values, write_few_bits

from hf_mae.modeling import tiff_mae
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


def test_tiff__of_many_bands_is_read_without_a_message_of_pillow(tmp_path, caplog):
    array = values("uint16", 13)
    tifffile.imwrite(tmp_path / "13.tif", array.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    assert np.array_equal(stored(tmp_path / "13.tif", 13).pixels, array)
    assert not caplog.records
    with pytest.raises(PIL.UnidentifiedImageError):
        PIL.Image.open(tmp_path / "13.tif")
    assert "More samples per pixel than can be decoded" in caplog.text  # the log of others stays as it is


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


def test_tiff__all_pages_are_read_in_one_go(tmp_path, monkeypatch):
    """Parsing a file takes a time for each of its pages; once for each page would take minutes for a long stack."""
    stack, parsed, parse = values("uint16", 9), [], tiff_mae._parsed
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    image = open_image(str(tmp_path / "stack.tif"))
    monkeypatch.setattr(tiff_mae, "_parsed", lambda file: parsed.append(file) or parse(file))
    assert np.array_equal(read_stored(image, 9, ReadingSettings(pages="channels")).pixels, stack)
    assert len(parsed) == 1


@pytest.mark.parametrize("imagej", [True, False])
def test_tiff__planes_that_follow_the_only_page_are_pages(tmp_path, monkeypatch, imagej):
    """So ImageJ writes stacks of more than 4 GB; of each page no more than its own bytes is read."""
    stack, path = values("uint16", 4), tmp_path / "stack.tif"
    options = {"metadata": {"axes": "ZYX"}, "imagej": imagej, "truncate": True}
    tifffile.imwrite(path, stack, photometric="minisblack", **options)
    with pytest.raises(UnsuitableImageError, match="4 pages"):
        stored(path, 1)
    assert np.array_equal(stored(path, 4, pages="channels").pixels, stack)
    with PIL.Image.open(path) as opened, pytest.raises(UnsuitableImageError, match="4 pages"):
        read_stored(opened, 1)
    read, counts = tifffile.FileHandle.read_array, []
    monkeypatch.setattr(
        tifffile.FileHandle,
        "read_array",
        lambda file, kind, count, *rest: counts.append(count) or read(file, kind, count, *rest),
    )
    assert np.array_equal(read_stored(page_of(open_image(str(path)), 2), 1).pixels, stack[2:3])
    assert counts == [stack[2].size]


def test_tiff__pyramid_levels_and_thumbnails_are_not_pages(tmp_path):
    array = values("uint8", 3, (64, 64)).transpose(1, 2, 0)
    for subifds in (0, 1):
        with tifffile.TiffWriter(tmp_path / "pyramid.tif") as tiff:
            tiff.write(array, photometric="rgb", subifds=subifds, tile=(16, 16))
            tiff.write(array[::2, ::2], photometric="rgb", subfiletype=1, tile=(16, 16))
        assert num_pages(open_image(str(tmp_path / "pyramid.tif"))) == 1
        assert np.array_equal(stored(tmp_path / "pyramid.tif", 3).pixels, array.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_tiff__an_image_below_a_thumbnail_is_the_image(tmp_path, dtype):
    array = values(dtype, size=(64, 64))[0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(array[::4, ::4].copy(), subfiletype=1, subifds=1, metadata=None)
        tiff.write(array, metadata=None)
    assert np.array_equal(stored(tmp_path / "a.tif", 1).pixels[0], array)
    with PIL.Image.open(tmp_path / "a.tif") as opened:
        assert np.array_equal(read_stored(opened, 1).pixels[0], array)
    window = TiffFile(str(tmp_path / "a.tif")).read_window(slice(40, 64), slice(0, 9))
    assert np.array_equal(window.pixels[0], array[40:, :9])


def test_tiff__of_a_slide_of_leica_the_slide_is_read_and_not_the_overview_in_front(tmp_path):
    overview, slide = (values("uint8", 3, size).transpose(1, 2, 0) for size in ((32, 16), (64, 64)))
    images = "".join(
        f'<image name="{name}"><pixels><dimension sizeX="{size}" sizeY="{size}" r="0" ifd="{number}"/></pixels></image>'
        for number, (name, size) in enumerate([("overview", 16), ("slide", 64)])
    )
    scn = f'<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection>{images}</collection></scn>'
    with tifffile.TiffWriter(tmp_path / "a.scn", bigtiff=True) as tiff:
        tiff.write(overview, photometric="rgb", tile=(16, 16), description=scn, metadata=None)
        tiff.write(slide, photometric="rgb", tile=(16, 16), metadata=None)
    assert np.array_equal(stored(tmp_path / "a.scn", 3).pixels, slide.transpose(2, 0, 1))
    assert TiffFile(str(tmp_path / "a.scn")).size == (64, 64)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_tiff__jpeg2000_of_aperio_that_holds_ycbcr_becomes_rgb(tmp_path, photometric):
    """As OpenSlide has it, which goes by the compression and not by the photometric interpretation."""
    imagecodecs, path = pytest.importorskip("imagecodecs"), tmp_path / "a.svs"
    rows, columns = np.mgrid[:64, :64]
    array = np.stack([rows * 4, columns * 4, 255 - rows * 2], axis=-1).astype(np.uint8)
    tile = np.asarray(PIL.Image.fromarray(array).convert("YCbCr"))
    tile = imagecodecs.jpeg2k_encode(tile, reversible=True, mct=False, codecformat="j2k")
    options = {"photometric": photometric, "tile": (64, 64), "compression": 33005, "metadata": None}
    options |= {"subsampling": (1, 1)} if photometric == "ycbcr" else {}
    tifffile.imwrite(path, iter([tile]), shape=array.shape, dtype=np.uint8, **options)
    old, new = (struct.pack("<HHIH", 259, 3, 1, compression) for compression in (33005, 33003))
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    for opened in (open_image(str(path)), TiffFile(str(path)).read_window(slice(0, 64), slice(0, 64))):
        assert np.abs(read_stored(opened, 3).pixels.transpose(1, 2, 0) - array.astype(int)).max() <= 3


def test_tiff__channels_are_in_the_order_that_ome_metadata_give_the_pages(tmp_path):
    array, places = values("uint16", 3), (2, 0, 1)
    planes = "".join(f'<TiffData FirstC="{channel}" IFD="{place}"/>' for channel, place in enumerate(places))
    ome = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="13" SizeY="9" SizeC="3" SizeZ="1" '
        f'SizeT="1">{planes}</Pixels></Image></OME>'
    )
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
        for place, page in enumerate(array[np.argsort(places)]):
            tiff.write(page, description=ome if place == 0 else None, metadata=None, contiguous=False)
    assert np.array_equal(stored(tmp_path / "a.ome.tif", 3).pixels, array)
    assert np.array_equal(stored(tmp_path / "a.ome.tif", 1, pages="first").pixels, array[:1])


def test_tiff__inks_that_are_not_those_of_cmyk_are_refused(tmp_path):
    """Pillow takes them for those."""
    array, inks = values("uint8", 4).transpose(1, 2, 0), [(332, "H", 1, 2, True)]
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="separated", extratags=inks, metadata=None)
    with pytest.raises(UnsuitableImageError, match="colours are SEPARATED"):
        stored(tmp_path / "a.tif", 3)


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


@pytest.mark.parametrize("in_windows", [False, True])
def test_tiff__of_signed_values_in_few_bits_is_unsuitable_and_not_empty(tmp_path, in_windows):
    tifffile.imwrite(tmp_path / "a.tif", values("int16")[0], metadata=None)
    bits, content = struct.pack("<HHI", 258, 3, 1), (tmp_path / "a.tif").read_bytes()
    assert content.count(bits) == 1
    (tmp_path / "a.tif").write_bytes(content.replace(bits + b"\x10", bits + b"\x0c"))
    opened = TiffFile(str(tmp_path / "a.tif"))
    with pytest.raises(UnsuitableImageError, match=r"can't be decoded .*12-bit.*Convert it"):
        opened.read_window(slice(0, 9), slice(0, 13)) if in_windows else opened.read()


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
