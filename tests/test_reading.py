# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What stored values become: no-data, NaN, axes and ranges, from a path, an object or an array, and in training."""

import io
import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from image_files import png, scaled, values

from hf_mae import MAEImageProcessor
from hf_mae.modeling.reading_mae import (
    ReadingSettings,
    UnsuitableImageError,
    open_image,
    read_stored,
    to_byte_range,
)

tifffile = pytest.importorskip("tifffile")


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


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 3])
def test_nodata__is_what_the_mask_of_an_array_leaves_out(dtype, bands):
    """As rasterio's `read(masked=True)` gives it; the value below may be anything."""
    array = np.ma.masked_array(np.ones((bands, 4, 6), dtype), mask=np.zeros((bands, 4, 6), bool))
    array.mask[-1, 1, 2] = True
    array.data[-1, 1, 2] = np.nan if dtype == "float32" else 7
    expected = torch.full((bands, 4, 6), 127.5)
    expected[-1, 1, 2] = torch.nan
    settings = ReadingSettings(value_range=(0, 2))
    for given in (array, array.transpose(1, 2, 0), *([array[0]] if bands == 1 else [])):
        pixels = to_byte_range(read_stored(given, bands, settings), settings)
        torch.testing.assert_close(pixels, expected, equal_nan=True)
    processor = MAEImageProcessor(num_channels=bands, value_range=(0, 2), do_resize=False, do_center_crop=False)
    valid = processor(array, return_tensors="pt", return_valid=True).valid[0]
    assert (~valid).nonzero().tolist() == [[1, 2]]
    if dtype == "float32":
        array.data[0, 3, 5] = np.inf
        with pytest.raises(UnsuitableImageError, match=r"inf at row 3, column 5, channel 1 \(and 0 more\)"):
            to_byte_range(read_stored(array, bands, settings), settings)


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


@pytest.mark.parametrize("rescaled", [True, False])
def test_nodata__is_filled_with_the_mean_and_the_factor_of_a_call(rescaled):
    image = np.full((1, 8, 8), 0.5, np.float32)
    image[0, :, :4] = np.nan
    plain = {"num_channels": 1, "do_resize": False, "do_center_crop": False, "nodata": "nan"}
    call = {"image_mean": [0.2], "image_std": [0.1], "rescale_factor": 1 / 127.5, "do_rescale": rescaled}
    values = MAEImageProcessor(**plain)(image, return_tensors="pt", **call).pixel_values[0, 0]
    assert values[:, :4].abs().max() < 1e-5
    assert values[0, 4].item() == pytest.approx(8 if rescaled else 3)


def test_nodata__of_values_that_are_not_rescaled_is_filled_with_their_mean():
    array = np.full((1, 4, 4), 700, np.int16)
    array[0, 1] = -999
    plain = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "num_channels": 1}
    processor = MAEImageProcessor(**plain, nodata=-999, image_mean=[500.0], image_std=[100.0])
    pixels = processor(array, return_tensors="pt").pixel_values[0, 0]
    assert pixels[1].tolist() == [0] * 4
    assert pixels[0].tolist() == [2] * 4


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


def test_pages__as_channels_are_the_bands_of_a_file_in_every_format(tmp_path):
    """Bands were taken of each frame of a GIF and then again of all; arrays with an axis of channels were refused."""
    array = values("uint8", 3, (20, 20))
    frames = [PIL.Image.fromarray(np.stack([page, page[::-1], page.T], -1)) for page in array]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    greys = np.stack([frame.convert("L") for frame in frames])
    tifffile.imwrite(tmp_path / "b.tif", array, photometric="minisblack")
    np.save(tmp_path / "c.npy", array[:, None])
    np.savez(tmp_path / "d.npz", *array[..., None])
    settings = ReadingSettings(pages="channels", bands=(3, 1))
    for name, pages in {"a.webp": greys, "b.tif": array, "c.npy": array, "d.npz": array}.items():
        stored = read_stored(open_image(str(tmp_path / name)), 2, settings)
        assert np.array_equal(stored.pixels, pages[[2, 0]])
    np.savez(tmp_path / "e.npz", array[0], array[1].astype(np.uint16))  # 255 is white in one of them
    with pytest.raises(UnsuitableImageError, match="2 pages differ in type"):
        read_stored(open_image(str(tmp_path / "e.npz")), 2, ReadingSettings(pages="channels"))


def test_processor__pages_of_a_call_are_those_of_a_processor(tmp_path):
    """Whether each page is an image was the processor's word alone: three images came where a call asked for one."""
    tifffile.imwrite(tmp_path / "a.tif", values("uint8", 3, (20, 20)), photometric="minisblack")
    np.save(tmp_path / "b.npy", values("uint8", 3, (20, 20))[:, None])
    for image in (tmp_path / "a.tif", PIL.Image.open(tmp_path / "a.tif"), tmp_path / "b.npy"):
        for saved, called in itertools.product(("first", "channels", "images", None), ("first", "channels", "images")):
            count, channels = {"first": (1, 1), "channels": (1, 3), "images": (3, 1)}[called]
            sizes = {"num_channels": channels, "image_mean": [0.5], "image_std": [0.5]}
            processor = MAEImageProcessor.for_image_size(16, **sizes, pages=saved)
            expected = MAEImageProcessor.for_image_size(16, **sizes, pages=called)
            pixel_values = processor(image, pages=called, return_tensors="pt").pixel_values
            assert pixel_values.shape == (count, channels, 16, 16)
            assert torch.equal(pixel_values, expected(image, return_tensors="pt").pixel_values)
    with pytest.raises(UnsuitableImageError, match="3 pages"):
        MAEImageProcessor(pages="images")(tmp_path / "a.tif", pages=None)


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
    for waves in (np.ones((9, 9), np.complex64), torch.ones(9, 9, dtype=torch.complex64)):
        with pytest.raises(UnsuitableImageError, match="complex64. Convert"):
            MAEImageProcessor()(waves, do_rescale=False)


def test_processor__8_bits_are_refused_where_the_model_saw_more(tmp_path):
    rgb = PIL.Image.new("RGB", (40, 30))
    for settings in ({"sample_type": "uint16"}, {"value_range": [-1000, 1000]}):
        processor = MAEImageProcessor.for_image_size(16, num_channels=1, **settings)
        with pytest.raises(UnsuitableImageError, match="8 bits.*path"):
            processor(rgb)
        processor(np.zeros((30, 40), np.uint16))
        with pytest.raises(UnsuitableImageError, match="8 bits.*path"):  # also where the call says so
            MAEImageProcessor.for_image_size(16, num_channels=1)(rgb, **settings)
    MAEImageProcessor.for_image_size(16, num_channels=1, value_range=[0, 200])(rgb)
    shallow = {"value_range": [0, 255], "return_tensors": "pt"}  # of this call's images
    pixel_values = MAEImageProcessor.for_image_size(16, value_range=[0, 4095])(rgb, **shallow).pixel_values
    assert torch.equal(pixel_values, MAEImageProcessor.for_image_size(16)(rgb, return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    "settings",
    [
        {"value_range": [0, 1000], "image_mean": [0.5], "image_std": [0.1]},
        {"value_range": [0, 1000], "image_mean": [1.0], "image_std": [0.2], "rescale_factor": 1 / 127.5},
        {"do_rescale": False, "image_mean": [500.0], "image_std": [100.0]},
    ],
)
def test_processor__pictures_of_deep_values_are_stretched_in_any_scale(settings):
    image = np.linspace(250, 750, 64).reshape(1, 8, 8).astype(np.int16)  # 2.5 deviations around the mean
    plain = {"num_channels": 1, "do_resize": False, "do_center_crop": False, "sample_type": "int16"}
    processor = MAEImageProcessor(**plain, **settings)
    (shown,) = processor.post_process_reconstruction(processor(image, return_tensors="pt").pixel_values)
    np.testing.assert_allclose(np.asarray(shown).ravel(), np.linspace(0, 255, 64), atol=1)


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


@pytest.mark.parametrize("bands", [[6], [0], [1, 2], []])
def test_processor__refuses_display_bands_that_no_picture_has(bands):
    with pytest.raises(ValueError, match="`display_bands` must be one or three of the channels 1 to 5, got"):
        MAEImageProcessor(num_channels=5, display_bands=bands)


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
