# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""DICOM, NIfTI, FITS and arrays: every pixel is what the file says, or the file is refused by name."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch
from image_files import dicom, scaled, stored, values

from hf_mae.modeling.reading_mae import (
    ReadingSettings,
    UnsuitableImageError,
    num_pages,
    open_image,
    page_of,
    read_stored,
)


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


def test_dicom__a_range_means_the_same_brightness_where_0_is_white(tmp_path):
    brightness = np.array([[0, 1000, 2000, 3000, 4095]], dtype=np.uint16)
    bits = {"BitsStored": 12, "HighBit": 11}
    dicom(tmp_path / "1.dcm", 4095 - brightness, PhotometricInterpretation="MONOCHROME1", **bits)
    dicom(tmp_path / "2.dcm", brightness, PhotometricInterpretation="MONOCHROME2", **bits)
    for name in ("1.dcm", "2.dcm"):
        assert scaled(tmp_path / name, 1, value_range=(0, 2000)).flatten().tolist() == [0, 127.5, 255, 255, 255]
    # No-data is a value of the file: 3095 where the brightness is 1000.
    filled = scaled(tmp_path / "1.dcm", 1, value_range=(0, 2000), nodata=3095).flatten()
    assert filled.isnan().tolist() == [False, True, False, False, False]


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


def test_dicom__frames_of_one_bit_may_begin_within_a_byte(tmp_path):
    array = np.random.default_rng(0).integers(0, 2, (3, 11, 13), np.uint8)
    bits = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "NumberOfFrames": 3}
    packed = np.packbits(array, bitorder="little").tobytes()
    dicom(tmp_path / "a.dcm", array, **bits, PixelData=packed + bytes(len(packed) % 2))
    assert np.array_equal(stored(tmp_path / "a.dcm", 3, pages="channels").pixels != 0, array != 0)


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
    image = PIL.Image.open(tmp_path / "a.fits")
    assert np.array_equal(read_stored(image, 1).pixels[0], array[::-1])  # whoever opened it
    image.load()  # to values without their zero, and in another type
    with pytest.raises(UnsuitableImageError, match="Give the path instead"):
        read_stored(image, 1)


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
