# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import hashlib
import math
import os

import numpy as np
import PIL.Image
import pytest
import torch

from hf_mae.data import (
    FolderImages,
    PretrainingDataset,
    SampleOrder,
    StepBatchSampler,
    crop_and_resize,
    open_images,
    random_crop_box,
)


def picture(number=0, size=(40, 30), mode="RGB"):
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


# ----------------------------------------------------------------------------------------------------------------------
# Sources


def test_embedded_images__are_balanced_and_labelled():
    train, test = open_images(), open_images(split="test")
    assert (len(train), len(test)) == (3000, 1000)
    for images in (train, test):
        assert np.bincount(images.labels).tolist() == [len(images) // 10] * 10
        assert images[0].size == (28, 28)
    digests = [{hashlib.sha256(images[i].tobytes()).digest() for i in range(len(images))} for images in (train, test)]
    assert len(digests[0] & digests[1]) <= 2  # Fashion-MNIST has a few twins; the splits must not be mixed
    # Trousers (1) are narrow and bags (8) wide: labels fit the pictures.
    width = {
        c: np.mean([(np.array(train[i]) > 0).any(axis=0).sum() for i in range(c * 300, c * 300 + 50)]) for c in (1, 8)
    }
    assert width[1] < width[8] - 5


def test_folder__is_read_at_any_depth_in_order_whatever_the_format(tmp_path):
    names = ["b/two.JPG", "a/deep/down/one.png", "zero.webp", "c/three.tiff", "c/four.bmp"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"no image either")
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    images = open_images(str(tmp_path))
    assert images.paths == ["zero.webp", "a/deep/down/one.png", "b/two.JPG", "c/four.bmp", "c/three.tiff"]
    assert all(images[index].convert("RGB").size == (40, 30) for index in range(5))
    assert images.labels is None
    assert open_images(str(tmp_path), "test") is None


def test_folder__of_classes_gives_labels_and_splits(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                picture(number).save(tmp_path / split / name / f"{number}.png")
    assert open_images(str(tmp_path)).labels == [0, 0, 0, 1, 1, 1]
    assert open_images(str(tmp_path), "test").labels == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["parquet file", "parquet folder", "arrow folder"])
def test_data_sets__parquet_and_arrow(tmp_path, kind):
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"picture": [picture(number) for number in range(6)], "label": [0, 1, 0, 1, 0, 1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    path = tmp_path / "data"
    if kind == "parquet file":
        path = tmp_path / "data.parquet"
        dataset.to_parquet(path)
    elif kind == "parquet folder":
        path.mkdir()
        dataset.select(range(4)).to_parquet(path / "train-00000-of-00001.parquet")
        dataset.select(range(4, 6)).to_parquet(path / "test-00000-of-00001.parquet")
    else:
        dataset.save_to_disk(path)
    images, test = open_images(str(path)), open_images(str(path), "test")
    assert len(images) == (4 if kind == "parquet folder" else 6)
    assert images.labels == [0, 1, 0, 1, 0, 1][: len(images)]
    assert np.array_equal(np.array(images[3]), np.array(picture(3)))
    assert (len(test) == 2) if kind == "parquet folder" else (test is None)


def test_bad_sources__say_what_is_wrong(tmp_path):
    import datasets

    with pytest.raises(ValueError, match="Found no images in .*none at all.*Expected some of .bmp, .jpeg"):
        open_images(str(tmp_path))
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "README").write_text("hello")
    with pytest.raises(ValueError, match=r"by extension: 1 x .csv, 1 x none"):
        open_images(str(tmp_path))
    with pytest.raises(ValueError, match="neither a folder nor a .parquet file"):
        open_images(str(tmp_path / "table.csv"))
    with pytest.raises(OSError, match="'no/such-data' is no folder or file here, and could not be loaded"):
        open_images("no/such-data")
    datasets.Dataset.from_dict({"text": ["a"], "length": [1]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(
        ValueError, match=r"No column of .*text.parquet.* holds images. Columns: text .*, length .*cast_column"
    ):
        open_images(str(tmp_path / "text.parquet"))


def test_unreadable_folder__is_an_error_not_an_empty_one(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def locked(path):  # chmod does not keep root out
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match="locked"):
        FolderImages(tmp_path)


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


def test_crop_and_resize__gives_the_pixels_of_pil():
    image = picture(size=(300, 200)).resize((300, 200), PIL.Image.Resampling.BOX)
    box = (20, 40, 100, 150)
    expected = image.resize((64, 48), PIL.Image.Resampling.BICUBIC, box=(40, 20, 190, 120))
    ours = crop_and_resize(image, box, (48, 64), 3)
    assert ours.dtype == torch.uint8
    difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected).astype(int))
    assert difference[4:-4, 4:-4].max() <= 2  # pixels beyond the box are seen by PIL at its border only


def test_crop_and_resize__decodes_large_jpegs_at_reduced_size(tmp_path):
    gradient = np.add.outer(np.arange(1200) / 1200, np.arange(1600) / 1600) * 127
    PIL.Image.fromarray(gradient.astype(np.uint8)).save(tmp_path / "large.jpg", quality=95)
    image = PIL.Image.open(tmp_path / "large.jpg")
    small = crop_and_resize(image, (300, 400, 600, 800), (48, 64), 1)
    assert image.size == (200, 150)  # an eighth
    exact = crop_and_resize(PIL.Image.fromarray(gradient.astype(np.uint8)), (300, 400, 600, 800), (48, 64), 1)
    assert (small.int() - exact.int()).abs().max() <= 4


def test_sample__is_a_function_of_seed_epoch_and_index():
    images = open_images()
    samples = {}
    for seed, epoch, index in [(0, 0, 5), (0, 0, 5), (1, 0, 5), (0, 1, 5), (0, 0, 6)]:
        sample = PretrainingDataset(images, (28, 28), 49, num_channels=1, seed=seed)[epoch, index]
        key = hashlib.sha256(sample["pixel_values"].numpy().tobytes() + sample["noise"].numpy().tobytes()).digest()
        samples.setdefault((seed, epoch, index), set()).add(key)
    assert all(len(keys) == 1 for keys in samples.values())
    assert len(set.union(*samples.values())) == 4
    assert sample["pixel_values"].dtype == torch.uint8
    assert sample["noise"].shape == (49,)


def test_exif_orientation__is_applied(tmp_path):
    image = PIL.Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 20))  # left half white
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: the left half comes on top
    image.save(tmp_path / "turned.jpg", exif=exif)
    dataset = PretrainingDataset(FolderImages(tmp_path), (40, 20), 8, 1, crop_scale=(1.0, 1.0))
    pixels = dataset[0, 0]["pixel_values"][0].float()
    assert pixels[:15].mean() > 240
    assert pixels[25:].mean() < 15


def test_broken_pictures__are_replaced_by_the_next_and_many_are_an_error(tmp_path):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "0.png").write_bytes(b"")
    dataset = PretrainingDataset(FolderImages(tmp_path), (16, 16), 4)
    assert dataset[0, 1]["pixel_values"].shape == (3, 16, 16)
    assert dataset[0, 0]["pixel_values"].shape == (3, 16, 16)
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(OSError, match="None of 10 images in a row could be read, the last one is .*png"):
        dataset[0, 0]


def test_16_bit_images__keep_their_depth(tmp_path):
    PIL.Image.fromarray(np.full((20, 20), 1000, np.uint16)).save(tmp_path / "deep.png")
    pixels = PretrainingDataset(FolderImages(tmp_path), (16, 16), 4, 1)[0, 0]["pixel_values"]
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, torch.full((1, 16, 16), 1000 / 257))


# ----------------------------------------------------------------------------------------------------------------------
# Order


def batches(num_processes, accumulation=1, steps=range(0, 7), num_images=10, effective_batch_size=12):
    """For every step the samples of all processes together, in the order of the global batch."""
    order, per_device = SampleOrder(num_images, seed=3), effective_batch_size // num_processes // accumulation
    shares = []
    for process in range(num_processes):
        parts = list(StepBatchSampler(order, effective_batch_size, per_device, steps, process, num_processes))
        assert {len(part) for part in parts} == {per_device}
        per_step = [sum(parts[i : i + accumulation], []) for i in range(0, len(parts), accumulation)]
        shares.append(per_step)
    return [sum(step, []) for step in zip(*shares, strict=True)]


def test_order__every_image_once_an_epoch_in_a_new_order():
    samples = sum(batches(1, steps=range(0, 5)), [])  # 60 samples: 6 epochs of 10
    for epoch in range(6):
        part = samples[epoch * 10 : epoch * 10 + 10]
        assert {e for e, _ in part} == {epoch}
        assert sorted(index for _, index in part) == list(range(10))
    assert len({tuple(samples[e * 10 : e * 10 + 10]) for e in range(6)}) == 6


@pytest.mark.parametrize(("num_processes", "accumulation"), [(2, 1), (3, 1), (1, 4), (2, 3), (4, 3)])
def test_order__does_not_depend_on_processes_or_accumulation(num_processes, accumulation):
    assert batches(num_processes, accumulation) == batches(1)


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_order__goes_on_after_any_step(stop):
    assert batches(2, steps=range(0, stop)) + batches(3, steps=range(stop, 7)) == batches(1)


def test_order__sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"effective batch size 100 is not a multiple of 16 .* 3 process\(es\) = 48"):
        StepBatchSampler(SampleOrder(10, 0), 100, 16, range(1), 0, 3)
