# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Files that Pillow opens: every pixel is what the file says, or the file is refused by name."""

import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
from image_files import png, scaled, stored, values

from hf_mae import MAEImageProcessor
from hf_mae.data.decoding import UnreadableImagesError, crop_and_resize
from hf_mae.modeling.reading_mae import UnsuitableImageError, open_image, page_of, read_stored, to_byte_range


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


def test_pgm__whose_header_is_too_long_is_not_read_with_a_part_of_its_white(tmp_path):
    pixels = np.arange(4, dtype=">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 #".ljust(4091, b"x") + b"\n65535\n" + pixels)  # 4,096 bytes end in 6553
    with pytest.raises(ValueError, match="header"):
        scaled(tmp_path / "a.pgm", 1)


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
    if kind == "tiff":
        pytest.importorskip("tifffile")
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


def dds(codec, masks=()):
    """A DDS of 4 x 4 pixels, in a DXGI format or of 32 bits that `masks` divide into colours."""
    form = struct.pack("<II4s5I", 32, 4, b"DX10", *[0] * 5) if codec else struct.pack("<8I", 32, 64, 0, 32, *masks, 0)
    header = struct.pack("<4s4I56x", b"DDS ", 124, 4103, 4, 4) + form + struct.pack("<I16x", 4096)
    return header + (struct.pack("<5I", codec, 3, 0, 1, 0) if codec else b"") + bytes(range(64))


def sun(width, bits, compressed):
    return struct.pack(">8I", 0x59A66A95, width, 4, bits, 0, 1 + compressed, 0, 0) + bytes(range(1, 99))


def xpm(colour):
    return f'/* XPM */\nstatic char *a[] = {{\n"1 1 1 1",\n"a c {colour}",\n"a"}};\n'.encode()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (dds(28), None),  # 8 bits
        (dds(None, (255 << 16, 255 << 8, 255)), None),
        (dds(95), "DDS files of more than 8 bits"),  # half floats
        (dds(None, (1023 << 20, 1023 << 10, 1023)), "DDS files of more than 8 bits"),
        (sun(4, 8, compressed=True), None),
        (sun(5, 8, compressed=False), None),
        (sun(5, 8, compressed=True), "Sun rasters of .* an odd length"),
        (sun(4, 32, compressed=False), "Sun rasters of 32 bits"),
        (xpm("#102030"), None),
        (xpm("#111122223333"), "XPM files whose colours"),
        (xpm("#123"), "XPM files whose colours"),
    ],
)
def test_pictures__that_pillow_misreads_are_refused(tmp_path, content, kind):
    (tmp_path / "a").write_bytes(content)
    if kind is None:
        assert stored(tmp_path / "a", 3).size[0] in (1, 4)
    else:
        with pytest.raises(UnsuitableImageError, match=f"{kind}.*can't be read right. Convert it"):
            stored(tmp_path / "a", 3)


def test_psd__of_several_inks_is_refused_of_which_pillow_reads_the_first(tmp_path):
    array = values("uint8", 3)
    for inks in (1, 3):
        (tmp_path / f"{inks}.psd").write_bytes(psd(array[:inks], bits=8, colours=7))
    assert np.array_equal(stored(tmp_path / "1.psd", 1).pixels, array[:1])
    with pytest.raises(UnsuitableImageError, match="several inks"):
        stored(tmp_path / "3.psd", 1)


def test_png__of_16_bits_has_pages_if_it_has_frames(tmp_path):
    array = values("uint16", 3)
    frames = struct.pack(">I4sII", 8, b"acTL", 2, 0)
    frames += struct.pack(">I", zlib.crc32(frames[4:]))
    (tmp_path / "a.png").write_bytes(png(array.transpose(1, 2, 0), 16, 2, frames))
    with pytest.raises(UnsuitableImageError, match=r"\d pages"):
        stored(tmp_path / "a.png", 3)
    assert np.array_equal(stored(tmp_path / "a.png", 3, pages="first").pixels, array)
    with pytest.raises(UnsuitableImageError, match="only the first frame"):
        stored(tmp_path / "a.png", 6, pages="channels")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_jpeg2000__a_last_band_is_an_opacity_only_where_the_file_says_so(tmp_path, mode):
    bands = len(mode)
    array = values("uint8", bands, (32, 32))
    array[:-1] = np.minimum(array[:-1], array[-1])  # so that they may be multiplied by it
    picture = PIL.Image.merge(mode, [PIL.Image.fromarray(band) for band in array])
    picture.save(tmp_path / "a.jp2", irreversible=False)
    content = (tmp_path / "a.jp2").read_bytes()
    opacity = struct.pack(">HHH", bands - 1, 1, 0)
    assert content.count(b"cdef") == content.count(opacity) == 1
    (tmp_path / "band.jp2").write_bytes(content.replace(b"cdef", b"none"))
    (tmp_path / "multiplied.jp2").write_bytes(content.replace(opacity, struct.pack(">HHH", bands - 1, 2, 0)))
    for name in ("a", "band", "multiplied"):
        assert np.array_equal(stored(tmp_path / f"{name}.jp2", bands).pixels, array)
    with pytest.raises(UnsuitableImageError, match=f"{bands} band"):
        stored(tmp_path / "band.jp2", bands - 1)
    share = array[-1:] / 255
    for name, colours in (("a", array[:-1] * share), ("multiplied", array[:-1])):
        expected = colours + 255 * (1 - share)
        assert np.abs(stored(tmp_path / f"{name}.jp2", bands - 1).pixels - expected).max() <= 1


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


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"zTXt behind"])
def test_png__a_text_of_any_length_changes_nothing(tmp_path, kind, depth):
    """Pillow takes a picture with a text or profile of more than a megabyte for broken."""
    content = b"Comment\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + zlib.compress(bytes(2**21))
    orientation = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6" />'
    text, first = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((kind[:4], content), (b"iTXt", orientation))
    )
    array = values(f"uint{depth}", 3)
    behind = kind.endswith(b"behind")  # the pixels
    file = png(array.transpose(1, 2, 0), depth, 2, first + (b"" if behind else text))
    (tmp_path / "a.png").write_bytes(file[:-12] + text + file[-12:] if behind else file)
    assert np.array_equal(stored(tmp_path / "a.png", 3).pixels, np.rot90(array, -1, (1, 2)))


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


def bmp(bits, compression=0, masks=()):
    header = struct.pack("<IiiHHII16x", 40, 8, 2, 1, bits, compression, 0) + struct.pack(f"<{len(masks)}I", *masks)
    return struct.pack("<2sIII", b"BM", 14 + len(header) + 64, 0, 14 + len(header)) + header + bytes(64)


def tga(kind, bits, palette_bits=0):
    header = struct.pack("<BBBHHBHHHHBB", 0, palette_bits > 0, kind, 0, 4, palette_bits, 0, 0, 4, 2, bits, 0)
    return header + bytes(64)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (bmp(2), "BMP .*pixel depth"),
        (bmp(24, compression=4), "BMP .*compression"),
        (bmp(16, 3, masks=(0xF00, 0xF0, 0xF)), "BMP .*bitfields"),
        (struct.pack("<4B6H49xBH60x", 10, 5, 1, 4, 0, 0, 7, 1, 72, 72, 1, 4) + bytes(8), "PCX .*mode"),
        (tga(2, 15), "TGA of 15 bits"),
        (tga(9, 8, palette_bits=15), "TGA of 15 bits"),
        (tga(1, 8, palette_bits=32), "palette of this TGA"),
        (tga(1, 16, palette_bits=24), "palette of this TGA"),
        (tga(2, 24, palette_bits=24), "palette of this TGA"),
    ],
    ids=range(9),
)
def test_pictures__of_rare_kinds_are_unsuitable_and_not_broken(tmp_path, content, kind):
    (tmp_path / "a.tga").write_bytes(content)
    for file in (str(tmp_path / "a.tga"), content):
        with pytest.raises(UnsuitableImageError, match=f"{kind}.*Convert it to TIFF"):
            open_image(file, ".tga")
    for kind in (1, 3):  # a palette of grey pictures does not count
        assert not read_stored(open_image(tga(kind, 8, palette_bits=24), ".tga"), 3).pixels.any()


def test_bands__of_cielab_are_refused_since_two_have_a_sign(tmp_path):
    PIL.Image.new("LAB", (40, 30), (123, 195, 175)).save(tmp_path / "a.tif")
    assert stored(tmp_path / "a.tif", 3).pixels.shape == (3, 30, 40)
    with pytest.raises(UnsuitableImageError, match="`bands` .* CIELAB.* they become RGB"):
        stored(tmp_path / "a.tif", 1, bands=(1,))


@pytest.mark.parametrize("white", [15, 300])
def test_values__above_the_white_of_the_file_are_refused(tmp_path, white):
    """Else they would wrap around in 8 bits, or be cut off."""
    content = np.array([[3, white + 1]], ">u2" if white > 255 else "u1").tobytes()
    (tmp_path / "a.pgm").write_bytes(f"P5 2 1 {white}\n".encode() + content)
    with pytest.raises(UnsuitableImageError, match=f"values up to {white + 1}.* {white} is white.*`value_range`"):
        scaled(tmp_path / "a.pgm", 1)
    shown = scaled(tmp_path / "a.pgm", 1, value_range=(0, 2 * white))[0, 0]
    torch.testing.assert_close(shown, torch.tensor([3, white + 1]) * 255 / (2 * white))
