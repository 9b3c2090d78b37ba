# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import errno
import hashlib
import io
import math
import struct
import threading
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import picture
from torch.utils.data import DataLoader

import hf_mae.data.decoding
from hf_mae.data.datasets import EvaluationDataset, PretrainingDataset, are_counted, channel_statistics, collate
from hf_mae.data.decoding import (
    crop_and_resize,
    decode_unless_jpeg,
    jitter_colors,
    oriented_size,
    random_crop_box,
    read_image,
    read_in_threads,
    try_to_read,
)
from hf_mae.data.sampling import RowGroupSampler, SampleOrder, StepBatchSampler, check_readers, spread_indices
from hf_mae.data.sources import FolderImages, ImageSource, open_images
from hf_mae.modeling.image_processing_mae import MAEImageProcessor
from hf_mae.modeling.reading_mae import ReadingSettings, UnsuitableImageError

# ----------------------------------------------------------------------------------------------------------------------
# Crops


def test_crop_box__is_distributed_as_the_official_one():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box((375, 500), (224, 224), (0.2, 1.0), rng) for _ in range(5000)], dtype=float)
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 375).all()
    assert (left + width <= 500).all()
    area, aspect = height * width / (375 * 500), np.log(width / height)
    assert 0.195 < area.min() < 0.21
    assert 0 <= np.median(aspect) < 0.1  # the wide picture makes wide crops fit a little more often
    assert aspect.min() == pytest.approx(math.log(3 / 4), abs=0.02)
    assert aspect.max() == pytest.approx(math.log(4 / 3), abs=0.02)
    assert np.mean(left / (500 - width + 1e-9)) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10), (1, 1)])
def test_crop_box__always_fits(size):
    for seed in range(20):
        top, left, height, width = random_crop_box(size, (32, 64), (0.2, 1.0), np.random.default_rng(seed))
        assert 0 <= top <= top + height <= size[0]
        assert 0 <= left <= left + width <= size[1]
        assert min(height, width) >= 1


def plain_crops(image, seed, count):
    """The official augmentation written out with PIL, as torchvision's RandomResizedCrop(scale=(0.2, 1), bicubic)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        while True:
            area, ratio = 0.2 + 0.8 * rng.random(), (3 / 4) * (16 / 9) ** rng.random()
            width, height = (round(math.sqrt(image.width * image.height * area * r)) for r in (ratio, 1 / ratio))
            if width <= image.width and height <= image.height:
                break
        left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
        crop = image.crop((left, top, left + width, top + height)).resize((8, 8), PIL.Image.Resampling.BICUBIC)
        yield (top, left, height, width), np.asarray(crop if rng.random() < 0.5 else PIL.ImageOps.mirror(crop))


@pytest.mark.slow
def test_crops__are_distributed_as_a_plain_implementation_makes_them(tmp_path):
    """Boxes: quantiles within 2 % of the side; mean and deviation of every pixel: within 3 grey levels."""
    ramp = np.stack(np.meshgrid(np.linspace(0, 255, 120), np.linspace(0, 255, 90)), axis=-1)
    image = PIL.Image.fromarray(np.dstack([ramp, 255 - ramp[..., :1]]).astype(np.uint8))
    image.save(tmp_path / "ramp.png")
    dataset = PretrainingDataset(FolderImages(tmp_path), (8, 8), 4)
    ours = dataset.__getitems__([(0, 0, view) for view in range(4000)])
    boxes, crops = zip(*plain_crops(image, 0, 4000), strict=True)
    ours_boxes = np.stack([sample["crop_box"] for sample in ours])
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    difference = np.quantile(ours_boxes, levels, axis=0) - np.quantile(np.array(boxes), levels, axis=0)
    assert np.abs(difference / [90, 120, 90, 120]).max() < 0.02
    ours_crops = np.stack([sample["pixel_values"].permute(1, 2, 0) for sample in ours]).astype(float)
    crops = np.stack(crops).astype(float)
    assert np.abs(ours_crops.mean(axis=0) - crops.mean(axis=0)).max() < 3
    assert np.abs(ours_crops.std(axis=0) - crops.std(axis=0)).max() < 3


def test_crop_and_resize__gives_the_pixels_of_pil():
    image = picture(size=(60, 40)).resize((300, 200), PIL.Image.Resampling.BICUBIC)
    boxes = [(20, 40, 100, 150), (0, 0, 200, 300), (7, 3, 51, 60)]
    for box, ours in zip(boxes, crop_and_resize(image, boxes, (48, 64), 3), strict=True):
        top, left, height, width = box
        expected = image.crop((left, top, left + width, top + height)).resize((64, 48), PIL.Image.Resampling.BICUBIC)
        assert ours.dtype == torch.uint8
        difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected).astype(int))
        assert difference.max() <= 2
        assert (difference > 1).mean() < 0.01


def jpeg(size, mode="RGB", **options):
    """A smooth JPEG, not yet decoded."""
    small = picture(5, (8, 6)).resize(size, PIL.Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=95, **options)
    return PIL.Image.open(buffer)


def test_crop_and_resize__decodes_large_jpegs_at_reduced_size(monkeypatch):
    boxes = [(300, 400, 600, 800), (0, 0, 1200, 1600)]
    image = jpeg((1600, 1200))
    small = crop_and_resize(image, boxes, (48, 64), 3)
    assert image.size == (200, 150)  # an eighth: the smaller crop still has 100 x 75 pixels
    exact = crop_and_resize(PIL.Image.fromarray(np.array(jpeg((1600, 1200)))), boxes, (48, 64), 3)
    assert all((a.int() - b.int()).abs().max() <= 6 for a, b in zip(small, exact, strict=True))
    image = jpeg((1600, 1200))
    crop_and_resize(image, [(0, 0, 60, 80), boxes[1]], (48, 64), 3)
    assert image.size == (1600, 1200)  # the small crop has no pixel to spare


@pytest.mark.parametrize("decoder", ["simplejpeg", "PIL"])
@pytest.mark.parametrize("size", [(1600, 1200), (1601, 1201)])
def test_crop_and_resize__of_a_reduced_size_lies_where_the_box_does(monkeypatch, size, decoder):
    """The last row and column of 1,201 by 1,601 pixels, decoded at an eighth, stand for a single one of them."""
    if decoder == "PIL":
        monkeypatch.setattr(hf_mae.data.decoding, "simplejpeg", None)
    rows, columns = np.mgrid[: size[1], : size[0]]
    waves = (127.5 + 60 * np.sin(rows / 12) + 60 * np.sin(columns / 12)).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(waves).save(buffer, "JPEG", quality=95)
    box = (800, 1200, 400, 400)
    (crop,) = crop_and_resize(PIL.Image.open(buffer), [box], (50, 50), 1)
    (exact,) = crop_and_resize(waves, [box], (50, 50), 1)
    assert (crop.int() - exact.int()).abs().float().mean() < 3


@pytest.mark.parametrize("decoder", ["simplejpeg", "PIL"])
def test_crop_and_resize__of_a_jpeg_that_a_source_decoded_or_gives_again_is_no_other(monkeypatch, decoder):
    if decoder == "PIL":
        monkeypatch.setattr(hf_mae.data.decoding, "simplejpeg", None)
    tag = PIL.Image.Exif()
    tag[0x0112] = 6

    def crop(image, side):
        return crop_and_resize(image, [(0, 0, 480, 320)], (side, side), 3)[0]

    expected = crop(jpeg((480, 640), exif=tag), 300)
    decoded = jpeg((480, 640), exif=tag)
    decoded.load()
    assert (crop(decoded, 300).int() - expected.int()).abs().max() <= 2  # turned before it is resized
    again = jpeg((480, 640), exif=tag)
    crop(again, 40)  # at an eighth
    if decoder == "simplejpeg":
        assert torch.equal(crop(again, 300), expected)
    else:
        with pytest.raises(OSError, match="reduced size before; a source must open"):
            crop(again, 300)


@pytest.mark.parametrize("decoder", ["simplejpeg", "PIL"])
def test_crop_and_resize__leaves_no_data_of_a_jpeg_out_before_it_is_made_smaller(monkeypatch, decoder):
    if decoder == "PIL":
        monkeypatch.setattr(hf_mae.data.decoding, "simplejpeg", None)
    grey = np.full((640, 640), 200, np.uint8)
    grey[:, :316] = 0  # half of a pixel of the crop, which is left out: 316 is no multiple of 8
    buffer, reading = io.BytesIO(), ReadingSettings(nodata=0)
    PIL.Image.fromarray(grey).save(buffer, "JPEG", quality=100)
    whole = [(0, 0, 640, 640)]
    (crop,) = crop_and_resize(PIL.Image.open(buffer), whole, (80, 80), 1, reading)
    (exact,) = crop_and_resize(np.array(PIL.Image.open(buffer)), whole, (80, 80), 1, reading)
    assert torch.equal(crop.isnan(), exact.isnan())
    assert crop[0, 40].isnan().any()
    assert crop[~crop.isnan()].min() > 150


@pytest.mark.skipif(hf_mae.data.decoding.simplejpeg is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("size", [(500, 375), (1600, 1201)])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 3), ("RGB", 1), ("L", 1), ("CMYK", 3)])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_simplejpeg__gives_the_same_pixels_as_pil(monkeypatch, size, mode, channels, subsampling):
    boxes = [(30, 40, 300, 333)]
    options = {} if mode == "L" else {"subsampling": subsampling}
    (fast,) = crop_and_resize(jpeg(size, mode, **options), boxes, (48, 64), channels)
    monkeypatch.setattr(hf_mae.data.decoding, "simplejpeg", None)
    (plain,) = crop_and_resize(jpeg(size, mode, **options), boxes, (48, 64), channels)
    assert torch.equal(fast, plain)


def test_sample__is_a_function_of_seed_epoch_index_and_view():
    images = open_images()
    samples = {}
    keys = [(0, 0, 5, 0), (0, 0, 5, 0), (1, 0, 5, 0), (0, 1, 5, 0), (0, 0, 6, 0), (0, 0, 5, 1)]
    for seed, epoch, index, view in keys:
        sample = PretrainingDataset(images, (28, 28), 49, num_channels=1, seed=seed)[epoch, index, view]
        assert sample["sample"].tolist() == [epoch, index, view]
        digest = hashlib.sha256(sample["pixel_values"].numpy().tobytes() + sample["noise"].numpy().tobytes()).digest()
        samples.setdefault((seed, epoch, index, view), set()).add(digest)
    assert all(len(digests) == 1 for digests in samples.values())
    assert len(set.union(*samples.values())) == 5
    assert sample["pixel_values"].dtype == torch.uint8
    assert sorted(sample["noise"].tolist()) == pytest.approx([i / 49 for i in range(49)])  # no ties


def test_views__of_an_image_share_one_decode_and_equal_single_ones():
    class Counting(ImageSource):
        name, opened = "counting", 0

        def __len__(self):
            return 5

        def __getitem__(self, index):
            self.opened += 1
            return picture(index)

    images = Counting()
    dataset = PretrainingDataset(images, (16, 16), 4)
    samples = [(0, 3, 0), (0, 3, 1), (0, 3, 2), (0, 1, 0)]
    together = dataset.__getitems__(samples)
    assert images.opened == 2
    for sample, one in zip(samples, together, strict=True):
        assert torch.equal(dataset[sample]["pixel_values"], one["pixel_values"])
        assert torch.equal(dataset[sample]["noise"], one["noise"])
    assert not torch.equal(together[0]["pixel_values"], together[1]["pixel_values"])


def test_color_jitter__changes_colours_and_nothing_else():
    """As torchvision's three operations, one after the other; crop, flip and mask are as without."""
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    image = torch.randint(64, 128, (3, 8, 8), generator=torch.manual_seed(0), dtype=torch.uint8)
    jittered = jitter_colors(image, 0.4, rng)
    brightness, contrast, saturation = again.uniform(0.6, 1.4, size=3)
    luma = lambda pixels: (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0)  # noqa: E731
    expected = image * brightness
    expected = contrast * expected + (1 - contrast) * luma(expected).mean()
    expected = saturation * expected + (1 - saturation) * luma(expected)
    assert jittered.dtype == torch.uint8
    assert torch.equal(jittered, expected.round().to(torch.uint8))
    assert torch.equal(jitter_colors(image, 0.0, rng), image)
    four_channels = jitter_colors(torch.rand(4, 8, 8) * 255, 1.0, rng)
    assert four_channels.shape == (4, 8, 8)
    assert four_channels.amin() >= 0
    assert four_channels.amax() <= 255

    images = open_images()
    plain, colourful = (PretrainingDataset(images, (28, 28), 49, 1, color_jitter=j)[0, 5, 0] for j in (0.0, 0.5))
    assert not torch.equal(plain["pixel_values"], colourful["pixel_values"])
    for name in ("noise", "crop_box", "flipped"):
        assert torch.equal(plain[name], colourful[name])


# ----------------------------------------------------------------------------------------------------------------------
# Pictures of all kinds


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "webp"])
def test_exif_orientation__is_applied_to_crops(tmp_path, kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}
    path = tmp_path / f"turned.{kind}"
    picture(1, (8, 6)).resize((160, 120), PIL.Image.Resampling.BICUBIC).save(path, exif=exif, **options)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(path))
    image = decode_unless_jpeg(PIL.Image.open(path), 3)
    assert oriented_size(image) == expected.size[::-1]
    (crop,) = crop_and_resize(image, [(5, 11, 60, 40)], (60, 40), 3)
    assert torch.equal(crop, torch.from_numpy(np.array(expected)).permute(2, 0, 1)[:, 5:65, 11:51])


def whole(path, num_channels=3):
    """The pixels (channels, height, width) of a file as the whole of it is given to a model."""
    dataset = PretrainingDataset(FolderImages(path.parent), (30, 40), 4, num_channels, crop_scale=(1.0, 1.0), seed=3)
    sample = dataset[0, 0, 0]
    assert not sample["unreadable"]
    pixels = sample["pixel_values"]
    return pixels.flip(-1) if sample["flipped"] else pixels


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *(("CMYK", "tiff"), ("CMYK", "jpg"), ("LAB", "tiff"), ("YCbCr", "jpg")),
    ],
)
def test_modes__are_converted_to_colour_and_to_grey(tmp_path, mode, suffix):
    path = tmp_path / f"red.{suffix}"
    image = PIL.Image.new("RGB", (40, 30), (230, 20, 20))
    if mode == "LAB":
        image = PIL.Image.new("LAB", (40, 30), (123, 195, 175))  # red
    elif mode == "P":
        image = image.quantize(4)
        image.info["transparency"] = 3
    image = image if image.mode == mode else image.convert(mode)
    image.save(path)
    colour, grey = whole(path), whole(path, 1)
    red, green, blue = colour.float().mean(dim=(1, 2)).tolist()
    assert grey.shape == (1, 30, 40)
    if mode in ("1", "L", "LA"):
        assert red == green == blue
    else:
        assert red > 190 > 80 > max(green, blue)
        assert 50 < grey.float().mean() < 110


def test_alpha__shows_white_behind_or_is_a_channel(tmp_path):
    PIL.Image.new("RGBA", (40, 30), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    assert whole(tmp_path / "clear.png")[:, 3, 3].tolist() == [255, 255, 255]
    assert whole(tmp_path / "clear.png", 4)[:, 3, 3].tolist() == [200, 100, 50, 0]


@pytest.mark.parametrize("kind", ["png", "tiff", "npy"])
def test_16_bit_images__keep_their_depth_also_beside_others(tmp_path, kind):
    deep = np.full((30, 40), 1000, np.uint16)
    np.save(tmp_path / "deep.npy", deep) if kind == "npy" else PIL.Image.fromarray(deep).save(tmp_path / f"deep.{kind}")
    pixels = whole(tmp_path / f"deep.{kind}", 1)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, torch.full((1, 30, 40), 1000 / 257))
    PIL.Image.new("L", (40, 30), 9).save(tmp_path / "plain.bmp")
    dataset = PretrainingDataset(FolderImages(tmp_path), (16, 16), 4, 1)
    for workers in (0, 1):
        (batch,) = DataLoader(dataset, batch_sampler=[[(0, 0, 0), (0, 1, 0)]], num_workers=workers, collate_fn=collate)
        torch.testing.assert_close(batch["pixel_values"][:, 0, 0, 0], torch.tensor([1000 / 257, 9.0]))


def bomb(side=60000):
    """A small PNG of very many pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(1000)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks.items())


def saved(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


BROKEN = {
    "zero.png": b"",
    "text.jpg": b"<html>not found</html>",
    "bomb.png": bomb(),
    "object.npy": b"\x93NUMPY\x01\x00",
    **{f"cut.{kind}": saved(picture(4, (300, 200)), kind)[:4000] for kind in ("png", "jpeg", "tiff", "bmp", "webp")},
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("decoder", ["installed", "PIL"])
def test_broken_pictures__are_named_and_replaced_by_another(tmp_path, monkeypatch, name, decoder):
    if decoder == "PIL":
        monkeypatch.setattr(hf_mae.data.decoding, "simplejpeg", None)
    (tmp_path / name).write_bytes(BROKEN[name])
    picture(1).save(tmp_path / "~good.png")
    images = FolderImages(tmp_path)
    dataset = PretrainingDataset(images, (16, 16), 4)
    sample = dataset[0, 0, 0]
    (path,) = sample["unreadable"]
    assert path == str(tmp_path / name)
    assert ": " in sample["unreadable"][path]
    assert sample["sample"].tolist() == [0, 0, 0]
    assert sample["pixel_values"].shape == (3, 16, 16)
    assert torch.equal(sample["pixel_values"], dataset[0, 0, 0]["pixel_values"])
    evaluated = EvaluationDataset(images, MAEImageProcessor.for_image_size(16))
    assert torch.equal(evaluated[0]["pixel_values"], evaluated[1]["pixel_values"])
    for labels in (np.array([1, 1]), np.array([[0.5], [0.5]]), np.array([[0.0, 1.0], [1.0, 0.0]])):
        images.labels = labels
        assert are_counted(torch.stack([evaluated[0]["label"], evaluated[1]["label"]])).tolist() == [False, True]
    assert collate([sample, dataset[0, 1, 0]])["unreadable"] == sample["unreadable"]


def test_broken_pictures__that_were_damaged_at_random_never_end_a_run(tmp_path):
    pytest.importorskip("tifffile")
    picture(1).save(tmp_path / "~good.png")
    rng = np.random.default_rng(0)
    for kind in ("png", "jpeg", "tiff", "bmp", "webp", "ppm"):
        content = np.frombuffer(saved(picture(2, (60, 50)), kind), np.uint8)
        for number in range(25):
            damaged = content.copy()
            damaged[rng.integers(0, len(content), 1 + number)] = rng.integers(0, 256, 1 + number)
            (tmp_path / f"{kind}-{number}.{kind}").write_bytes(damaged.tobytes())
            if number % 5 == 4:  # a good one now and then, so that no ten in a row are broken
                picture(number).save(tmp_path / f"{kind}-{number}-good.png")
    images = FolderImages(tmp_path)
    samples = PretrainingDataset(images, (16, 16), 4).__getitems__([(0, index, 0) for index in range(len(images))])
    assert len(samples) == len(images)
    assert collate(samples)["unreadable"]


def test_broken_pictures__beside_each_other_do_not_end_a_run(tmp_path):
    for number in range(100):
        path = tmp_path / f"{number:03}.png"
        picture(1).save(path) if not 20 <= number < 40 else path.write_bytes(b"")
    _, index, unreadable = read_image(FolderImages(tmp_path), 20, lambda image: image)
    assert not 20 <= index < 40
    assert len(unreadable) == 1


def test_broken_pictures__everywhere_are_an_error_with_the_reason(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}.png").write_bytes(b"")
    with pytest.raises(OSError, match="None of 10 images tried could be read. .*03.png: Unidentified"):
        read_image(FolderImages(tmp_path), 0, lambda image: image)


@pytest.mark.parametrize("count", range(1, 11))
def test_broken_pictures__are_replaced_by_the_only_good_one_of_up_to_ten(tmp_path, count):
    """Few images are held out of a small folder, and two broken ones among eight should not end its run."""
    picture(1).save(tmp_path / "0.png")
    for number in range(1, count):
        (tmp_path / f"{number}.png").write_bytes(b"")
    images = FolderImages(tmp_path)
    assert [read_image(images, index, lambda image: image)[1] for index in range(count)] == [0] * count


def test_broken_pictures__in_shards_have_one_reason_however_often_they_are_read(tmp_path):
    """The log names each once, by its reason, in which an address in memory would differ each time."""
    pq.write_table(pa.table({"image": [b"no picture"]}), tmp_path / "shard.parquet")
    images = open_images(str(tmp_path / "shard.parquet"))
    reasons = [try_to_read(images, 0, lambda image: image)[1] for _ in range(3)]
    assert set(reasons) == {"UnidentifiedImageError: cannot identify image file <_io.BytesIO object>"}


def test_unsuitable_pictures__end_a_run_by_name_and_are_not_replaced(tmp_path):
    np.save(tmp_path / "bands.npy", np.zeros((5, 30, 40), np.uint8))
    picture(1).save(tmp_path / "good.png")
    dataset = PretrainingDataset(FolderImages(tmp_path), (16, 16), 4)
    for workers in (0, 1):
        loader = DataLoader(dataset, batch_sampler=[[(0, 0, 0)]], num_workers=workers, collate_fn=collate)
        with pytest.raises(UnsuitableImageError, match="^[^\n]*bands.npy: .*num_channels[^\n]*$"):
            list(loader)


def test_unsuitable_pictures__are_replaced_and_named_where_some_were_looked_at_before(tmp_path):
    np.save(tmp_path / "bands.npy", np.zeros((5, 30, 40), np.uint8))
    picture(1).save(tmp_path / "good.png")
    images = FolderImages(tmp_path)
    bad, good = PretrainingDataset(images, (16, 16), 4, crop_scale=(1, 1), replace_unsuitable=True).__getitems__(
        [(0, 0, 0), (0, 1, 0)]
    )
    (reason,) = bad["unreadable"].values()
    assert list(bad["unreadable"]) == [str(tmp_path / "bands.npy")]
    assert "UnsuitableImageError: " in reason
    assert "`num_channels`" in reason
    assert not good["unreadable"]
    evaluated = EvaluationDataset(images, MAEImageProcessor.for_image_size(16), replace_unsuitable=True)
    assert torch.equal(evaluated[0]["pixel_values"], evaluated[1]["pixel_values"])
    with pytest.raises(UnsuitableImageError, match="bands.npy"):
        EvaluationDataset(images, MAEImageProcessor.for_image_size(16))[0]


@pytest.mark.parametrize(("failures", "number"), [(2, errno.EIO), (1, errno.ESTALE), (3, errno.EIO), (1, errno.EACCES)])
def test_errors_of_a_file_server__are_forgiven_if_they_pass(monkeypatch, tmp_path, failures, number):
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "b.png")
    read, failed = FolderImages.__getitem__, []

    def fail_at_first(self, index):
        if index == 0 and len(failed) < failures:
            failed.append(index)
            raise OSError(number, "Not now")
        return read(self, index)

    monkeypatch.setattr(FolderImages, "__getitem__", fail_at_first)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    _, index, unreadable = read_image(FolderImages(tmp_path), 0, np.asarray)
    passed = failures <= 2 and number != errno.EACCES
    assert (index, len(unreadable)) == ((0, 0) if passed else (1, 1))


def test_threads__leave_the_filters_of_warnings_as_they_are():
    """A thread that entered later took those of the other for its own, and left them to the program."""
    events = [threading.Event() for _ in range(3)]

    def read(index):
        if index == 1:
            events[0].wait()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            events[index].set()
            events[1 if index == 0 else 2].wait()
        events[2].set()
        return index

    before = list(warnings.filters)
    assert read_in_threads(read, 2) == [0, 1]
    assert warnings.filters == before


def test_too_many_open_files__are_no_broken_pictures(monkeypatch, tmp_path):
    picture(1).save(tmp_path / "good.png")
    images = FolderImages(tmp_path)

    def fail(image):
        raise ValueError("can't open") from OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        read_image(images, 0, fail)


# ----------------------------------------------------------------------------------------------------------------------
# Statistics and choices of images


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_statistics__of_any_number_of_channels(tmp_path, channels):
    rng = np.random.default_rng(0)
    for number in range(20):
        pixels = rng.normal(100, 20, (channels, 40, 50)) + 10 * np.arange(channels)[:, None, None]
        np.save(tmp_path / f"{number}.npy", pixels.clip(0, 255).astype(np.uint8))
    (tmp_path / "broken.npy").write_bytes(b"")
    mean, std = channel_statistics(FolderImages(tmp_path), channels)
    assert mean == pytest.approx([(99.5 + 10 * channel) / 255 for channel in range(channels)], abs=0.002)
    assert std == pytest.approx([20 / 255] * channels, abs=0.002)


@pytest.mark.slow
def test_statistics__of_the_embedded_images_are_the_published_ones():
    mean, std = channel_statistics(open_images(), 1)
    assert mean == pytest.approx([0.2860], abs=0.005)
    assert std == pytest.approx([0.3530], abs=0.005)


def test_statistics__of_a_constant_channel_are_refused(tmp_path):
    PIL.Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "flat.png")
    with pytest.raises(ValueError, match="Channel 1 of .* has the same value everywhere"):
        channel_statistics(FolderImages(tmp_path), 3)
    for number in range(4):  # a value of which rounding leaves something when it is squared
        noise = np.random.default_rng(number).integers(0, 256, (9, 9, 4), dtype=np.uint8)
        noise[..., 3] = 77
        PIL.Image.fromarray(noise).save(tmp_path / f"{number}.png")
    (tmp_path / "flat.png").unlink()
    with pytest.raises(ValueError, match="Channel 4 of .* has the same value everywhere"):
        channel_statistics(FolderImages(tmp_path), 4)


def test_spread_indices__take_whole_blocks_where_there_are_some():
    class Blocks(ImageSource):
        row_groups = np.array([4, 4, 4, 4, 2])

        def __len__(self):
            return 18

    assert spread_indices(Blocks(), 7).tolist() == [0, 1, 2, 3, 8, 9, 10]
    assert spread_indices(Blocks(), 100).tolist() == list(range(18))
    assert spread_indices(open_images(), 4).tolist() == [0, 750, 1500, 2250]


@pytest.mark.parametrize("row_groups", [[3000], [1000, 1500, 500], [100] * 30])
def test_spread_indices__of_images_sorted_by_class_are_of_all_classes(row_groups):
    """Ten classes of 300 images each, however the file is divided."""
    chosen = spread_indices(InRowGroups(row_groups), 1000)
    counts = np.bincount(chosen // 300, minlength=10)
    assert counts.sum() == len(set(chosen.tolist())) == 1000
    assert (np.diff(chosen) > 0).all()
    assert counts.min() >= 60


def test_spread_indices__of_large_row_groups_are_of_some_and_of_no_more_than_a_reader_holds():
    images = InRowGroups([5000] * 200)
    for count, expected in ((7, 1), (64, 1), (300, 5), (2000, 16), (10000, 16)):
        chosen = spread_indices(images, count)
        groups = np.unique(chosen // 5000)
        assert (len(chosen), len(groups)) == (count, expected)
        assert groups.tolist() == (np.arange(expected) * 200 // expected).tolist()
    images.row_groups_at_once = 3
    assert len(np.unique(spread_indices(images, 1000) // 5000)) == 3
    assert len(np.unique(spread_indices(images, 20000) // 5000)) == 4  # as many as hold so many images


def test_spread_indices__are_each_once_where_the_row_groups_chosen_are_small():
    assert spread_indices(InRowGroups([1, 9, 1, 9]), 8).tolist() == [0, 10]


# ----------------------------------------------------------------------------------------------------------------------
# Order


def batches(processes, per_device=12, steps=range(0, 7), images=10, batch_size=12, views=1):
    """For every step the samples of all processes together, in the order of the global batch."""
    order = SampleOrder(images, 3, views, batch_size)
    shares = []
    for process in range(processes):
        sampler = StepBatchSampler(order, batch_size, per_device, steps, process, processes)
        parts = list(sampler)
        assert len(parts) == len(sampler)
        assert max(map(len, parts)) <= per_device
        accumulated = sampler.accumulation
        shares.append([sum(parts[i : i + accumulated], []) for i in range(0, len(parts), accumulated)])
    return [sum(step, []) for step in zip(*shares, strict=True)]


class InRowGroups(ImageSource):
    """Images that are read by row group, and what each reader read."""

    name = "blocks"

    def __init__(self, row_groups):
        self.row_groups = np.array(row_groups)

    def __len__(self):
        return int(self.row_groups.sum())


def test_order__every_image_once_an_epoch_in_a_new_order():
    samples = sum(batches(1, steps=range(0, 5)), [])  # 60 samples: 6 epochs of 10
    for epoch in range(6):
        part = samples[epoch * 10 : epoch * 10 + 10]
        assert {e for e, _, _ in part} == {epoch}
        assert sorted(index for _, index, _ in part) == list(range(10))
    assert len({tuple(index for _, index, _ in samples[e * 10 : e * 10 + 10]) for e in range(6)}) == 6


def test_order__views_of_an_image_follow_each_other():
    samples = sum(batches(1, steps=range(0, 5), views=3), [])  # 60 samples: 2 passes of 10 images, 3 views of each
    assert [view for _, _, view in samples] == [0, 1, 2] * 20
    assert all(len({sample[:2] for sample in samples[i : i + 3]}) == 1 for i in range(0, 60, 3))
    assert sorted(index for epoch, index, view in samples if (epoch, view) == (1, 2)) == list(range(10))


SOURCES = {"files": 10, "row groups": InRowGroups([3, 1, 4, 2]), "many row groups": InRowGroups([7] * 90)}


@pytest.mark.slow
@pytest.mark.parametrize("images", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize(("processes", "per_device"), [(2, 6), (3, 4), (1, 3), (2, 2), (5, 2), (12, 1), (7, 12)])
def test_order__does_not_depend_on_processes_or_accumulation(images, processes, per_device):
    assert batches(processes, per_device, images=images) == batches(1, images=images)


def test_order__leaves_no_process_and_no_forward_pass_without_samples():
    """Of five samples for two processes that take one at a time one pass has two, or else one had none."""
    order = SampleOrder(20, 0)
    shares = [list(StepBatchSampler(order, 5, 1, range(1), process, 2)) for process in (0, 1)]
    assert [[len(batch) for batch in share] for share in shares] == [[1, 1], [1, 2]]
    assert [list(StepBatchSampler(order, 2, 8, range(1), process, 2))[0] for process in (0, 1)] == [
        order[0:1],
        order[1:2],
    ]
    with pytest.raises(ValueError, match="`per_device_batch_size` must be at least 1, got 0"):
        StepBatchSampler(order, 5, 0, range(1))


@pytest.mark.parametrize("images", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_order__goes_on_after_any_step(images, stop):
    first, second = (batches(p, steps=steps, images=images) for p, steps in ((2, range(stop)), (3, range(stop, 7))))
    assert first + second == batches(1, images=images)


@pytest.mark.parametrize(("batch_size", "views"), [(16, 1), (24, 3), (13, 2)])
def test_order__of_blocks_gives_every_image_once_an_epoch(batch_size, views):
    images = InRowGroups([7, 3, 9, 1, 5] * 20)
    samples = sum(batches(1, 64, range(0, 2 * 500 * views // batch_size + 2), images, batch_size, views), [])
    for epoch in (0, 1):
        assert sorted(i for e, i, v in samples if (e, v) == (epoch, views - 1)) == list(range(500))


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(("processes", "workers"), [(1, 1), (2, 4), (8, 8)])
def test_order__of_blocks_lets_each_reader_read_few(processes, workers, epoch):
    """All readers together read little more than every block once, and a batch still mixes many row_groups.

    Also in an epoch that begins within a batch: the second one begins in step 199.7.
    """
    images, batch_size = InRowGroups([100] * 255 + [60]), 128
    order = SampleOrder(images, 0, 1, batch_size)
    reads, mixed = 0, []
    for process in range(processes):
        sampler = StepBatchSampler(order, batch_size, 128, range(200 * epoch, 199 + 200 * epoch), process, processes)
        row_groups = [{index // 100 for _, index, _ in batch} for batch in sampler]
        mixed.append(np.mean([len(b) for b in row_groups]) * processes)
        reads += sum(len(set.union(*row_groups[worker::workers])) for worker in range(workers))
    assert 256 <= reads <= 256 + 64
    assert np.mean(mixed) >= 8


@pytest.mark.parametrize("workers", [1, 4, 8])
def test_row_group_sampler__gives_every_image_once_an_epoch_and_each_reader_few_blocks(workers):
    """As Trainer's loaders take them: consecutive batches of 16, each worker every n-th."""
    images, epoch = InRowGroups([10] * 255 + [3]), 0
    sampler = RowGroupSampler(images, seed=5, batch_size=16, epoch=lambda: epoch)
    orders = []
    for number in (0, 1):
        epoch = number
        order = list(sampler)
        assert len(sampler) == len(images)
        assert sorted(order) == list(range(len(images)))
        row_groups = [{index // 10 for index in order[start : start + 16]} for start in range(0, len(order), 16)]
        assert sum(len(set.union(*row_groups[worker::workers])) for worker in range(workers)) <= 256 * 1.4
        assert np.mean([len(each) for each in row_groups]) >= 7
        orders.append(order)
    assert orders[0] != orders[1]
    assert list(sampler) == orders[1]
    assert list(RowGroupSampler(images, 6, 16, lambda: 1)) != orders[1]


def test_order__with_workers_is_the_same_to_the_pixel():
    dataset = PretrainingDataset(open_images(), (28, 28), 49, 1)
    results = []
    for workers in (0, 4):
        sampler = StepBatchSampler(SampleOrder(3000, 0), 20, 5, range(3, 6))
        results.append(list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)))
    for ours, theirs in zip(*results, strict=True):
        for name in ("sample", "crop_box", "flipped", "noise", "pixel_values"):
            assert torch.equal(ours[name], theirs[name])


def test_order__masks_differ_between_the_images_of_all_processes():
    dataset = PretrainingDataset(open_images(), (28, 28), 49, 1)
    noise = []
    for process in range(2):
        (batch,) = StepBatchSampler(SampleOrder(3000, 0), 20, 10, range(1), process, 2)
        noise += [tuple(sample["noise"].tolist()) for sample in dataset.__getitems__(batch)]
    assert len(set(noise)) == 20


def test_order__fewer_samples_than_processes_are_refused():
    with pytest.raises(ValueError, match="An effective batch of 2 can't be shared by 3 processes. Start fewer"):
        StepBatchSampler(SampleOrder(10, 0), 2, 16, range(1), 0, 3)


def test_order__fewer_blocks_than_readers_are_refused_for_streams():
    check_readers(InRowGroups([5] * 8), 2, 4)
    check_readers(InRowGroups([5]), 1, 0)
    check_readers(open_images(), 8, 16)  # no row groups: any image is read by itself
    with pytest.raises(ValueError, match=r"has 7 row groups for 8 readers \(2 process\(es\) x 4 worker\(s\)\).*Lower"):
        check_readers(InRowGroups([5] * 7), 2, 4)


def test_pretraining__turns_crops_as_it_is_told():
    """A crop of the whole image comes in exactly the orientations that the settings allow."""
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)

    class OneImage(ImageSource):
        name, fingerprint = "one", "one"

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return pixels

    def orientations(**options):
        dataset = PretrainingDataset(OneImage(), (4, 4), 4, 1, crop_scale=(1.0, 1.0), **options)
        crops = [dataset[(0, 0, view)]["pixel_values"][0] for view in range(100)]
        return {tuple(crop.flatten().tolist()) for crop in crops if len(crop.unique()) == 16}

    turned = {tuple(np.rot90(pixels, number).flatten().tolist()) for number in range(4)}
    assert orientations(horizontal_flip=False) == {tuple(pixels.flatten().tolist())}
    assert orientations(horizontal_flip=False, rotate90=True) == turned
    upside_down = tuple(pixels[::-1].flatten().tolist())
    assert orientations(horizontal_flip=False, vertical_flip=True) == {tuple(pixels.flatten().tolist()), upside_down}
    assert len(orientations(horizontal_flip=True, vertical_flip=True, rotate90=True)) == 8
    with pytest.raises(ValueError, match="`rotate90` needs square crops"):
        PretrainingDataset(OneImage(), (4, 8), 4, 1, rotate90=True)
