# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Scenes from end to end: features of windows and pages, no-data in the held-out loss, class maps of scenes."""

import io
import json
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from image_files import write_few_bits
from safetensors import safe_open
from torch import nn
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hf_mae import MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.data import masks
from hf_mae.data.datasets import EvaluationDataset, PretrainingDataset, collate
from hf_mae.data.sources import open_images
from hf_mae.evaluation.features import features_command
from hf_mae.evaluation.monitoring import Evaluation
from hf_mae.finetuning.segmentation import segment_command
from hf_mae.modeling.reading_mae import ReadingSettings, UnsuitableImageError, read_stored, to_byte_range

tifffile = pytest.importorskip("tifffile")


def write_scene(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, **{"photometric": "minisblack", "metadata": None, **options})


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, 256, shape).astype(np.uint8)


def test_windows__are_the_same_in_threads_and_where_the_file_has_a_mask(tmp_path):
    """Threads share the position of an open file. Of GDAL's mask page, too, only a window is read."""
    scene, mask = random_pixels(100, 120), np.random.default_rng(1).random((100, 120)) > 0.5
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        writer.write(scene, tile=(32, 32), photometric="minisblack", metadata=None)
        writer.write(mask, tile=(32, 32), photometric="mask", subfiletype=4, metadata=None)
    images = open_images(str(tmp_path), tile=40)

    def is_right(index):
        _, top, left = images.parts[index]
        window, stored = (slice(top, top + 40), slice(left, left + 40)), read_stored(images[index], 1)
        return np.array_equal(stored.pixels[0], scene[window]) and np.array_equal(stored.missing[0], ~mask[window])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, 20 * list(range(len(images)))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows__of_turned_scenes_are_parts_of_what_is_to_be_seen(tmp_path, orientation):
    scene = random_pixels(50, 70)
    tags = [(274, "H", 1, orientation, True)]
    for name, array in (("images", scene), ("masks", scene // 2)):
        write_scene(tmp_path / name / "s.tif", array, tile=(16, 16), extratags=tags)
    whole = read_stored(open_images(str(tmp_path / "images"))[0], 1).pixels[0]
    images = open_images(str(tmp_path / "images"), tile=32)
    assert len(images) == 2 * 3
    for (_, top, left), window in zip(images.parts, images, strict=True):
        stored = read_stored(window, 1)
        assert np.array_equal(stored.pixels[0], whole[top : top + 32, left : left + 32])
        assert stored.origin == (top, left)
    for pair in masks.folder_pairs(str(tmp_path), "train", tile=32):
        pixels, classes = masks.read_pair(pair, MAEImageProcessor(num_channels=1))
        assert np.array_equal(classes, pixels[0].numpy() // 2)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_windows__of_palettes_of_few_bits_are_read_as_the_whole_is(tmp_path, bits):
    array = np.random.default_rng(0).integers(0, 2**bits, (40, 48)).astype(np.uint8)
    write_few_bits(tmp_path / "s.tif", array, bits, "palette")
    whole = read_stored(open_images(str(tmp_path))[0], 3).pixels
    assert len(np.unique(whole)) > 2
    windows = open_images(str(tmp_path), tile=32)
    for (_, top, left), window in zip(windows.parts, windows, strict=True):
        assert np.array_equal(read_stored(window, 3).pixels, whole[:, top : top + 32, left : left + 32])


def write_jpeg_scene(path, picture, compression, row_of_blocks):
    """Writes a TIFF whose strips (of the old way, 6) or tiles (of Hamamatsu's slides, 7) are parts of one JPEG."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95, subsampling=0, restart_marker_blocks=row_of_blocks)
    content, stated = stream.getvalue(), picture.height if compression == 7 else 8
    scan = content.index(b"\xff\xda")
    starts = [scan + 2 + int.from_bytes(content[scan + 2 : scan + 4], "big")]
    starts += [starts[0] + found.end() for found in re.finditer(rb"\xff[\xd0-\xd7]", content[starts[0] :])]
    tags = {256: [picture.width], 257: [picture.height], 258: [8] * 3, 259: [compression], 262: [6], 277: [3]}
    tags |= {278: [stated], 279: [len(content)]}
    tags |= {271: [0], 65420: [1], 65426: starts} if compression == 7 else {279: [9] * len(starts)}
    place = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = [place] if compression == 7 else [place + start for start in starts]
    entries, arrays, after = b"", b"", place + len(content)
    for number, found in sorted(tags.items()):
        values = struct.pack(f"<{len(found)}I", *found)
        entries += struct.pack("<HHI", number, 4, len(found))
        entries += values if len(found) == 1 else struct.pack("<I", after + len(arrays))
        arrays += values if len(found) > 1 else b""
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    path.write_bytes(header + entries + bytes(4) + content + arrays)
    return np.asarray(PIL.Image.open(stream)).transpose(2, 0, 1)


def test_windows__of_slides_whose_tiles_are_parts_of_one_jpeg(tmp_path):
    pytest.importorskip("imagecodecs")
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)).resize((96, 64))
    whole = write_jpeg_scene(tmp_path / "s.tif", picture, 7, row_of_blocks=4)
    windows = open_images(str(tmp_path), tile=40)
    for (_, top, left), window in zip(windows.parts, windows, strict=True):
        assert np.array_equal(read_stored(window, 3).pixels, whole[:, top : top + 40, left : left + 40])


def test_windows__of_jpeg_of_the_old_kind_are_refused(tmp_path):
    write_jpeg_scene(tmp_path / "s.tif", PIL.Image.new("RGB", (96, 64)), 6, row_of_blocks=12)
    (window, *_) = open_images(str(tmp_path), tile=40)
    with pytest.raises(UnsuitableImageError, match="JPEG in the old way. Convert it"):
        read_stored(window, 3)


def write_broken_scenes(folder):
    """Files that are broken in all ways, and a good one, from which some are cut."""
    array = np.random.default_rng(0).integers(1, 255, (64, 64)).astype(np.uint8)
    write_scene(folder / "good.tif", array, tile=(16, 16), compression="deflate")
    np.save(folder / "good.npy", array)
    content = (folder / "good.tif").read_bytes()
    with tifffile.TiffFile(folder / "good.tif") as tiff:
        start = tiff.pages[0].dataoffsets[3]
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:999])
    (folder / "empty.tif").write_bytes(b"")
    (folder / "header.tif").write_bytes(content[:8] + bytes(len(content) - 8))
    (folder / "link.tif").symlink_to(folder / "nowhere")
    (folder / "tags.tif").write_bytes(content[:8] + b"\xff" * 500)
    (folder / "tile.tif").write_bytes(content[:start] + bytes(50) + content[start + 50 :])
    return array


def test_windows__are_of_all_scenes_but_broken_ones_which_are_named(tmp_path):
    write_broken_scenes(tmp_path)
    for reading, broken in (
        (ReadingSettings(), ("cut.npy", "empty.tif", "header.tif", "link.tif", "tags.tif")),
        (ReadingSettings(nodata=0), ("cut.npy", "empty.tif", "header.tif", "link.tif", "tags.tif", "tile.tif")),
    ):
        images = open_images(str(tmp_path), tile=32, reading=reading)
        assert [note.split(", which can't be read: ")[0] for note in images.notes[:-1]] == [
            f"Skipped {tmp_path / name}" for name in broken
        ]
        assert f"{8 - len(broken)} scene(s) have {4 * (8 - len(broken))} windows" in images.notes[-1]
        named = {os.path.basename(images.file_of(index)) for index in range(len(images))}
        assert named == {"good.npy", "good.tif", "tile.tif"}.difference(broken)
    dataset = PretrainingDataset(open_images(str(tmp_path), tile=32), (16, 16), 4, 1)  # one of tile.tif is broken
    batch = collate([dataset[0, index, 0] for index in range(12)])
    assert [name.rsplit("/")[-1] for name in batch["unreadable"]] == ["tile.tif, row 0, column 32"]
    for name in ("good.npy", "good.tif", "tile.tif"):
        (tmp_path / name).unlink()
    with pytest.raises(OSError, match="None of the 5 scenes of .* The first is .*cut.npy: ValueError: .*Repair"):
        open_images(str(tmp_path), tile=32)


def test_windows__of_arrays_are_read_as_the_whole_is(tmp_path):
    big = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(">u2")
    for name, array in (("big", big), ("bool", big > 30000)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "s.npy", array)
        whole = read_stored(open_images(str(tmp_path / name))[0], 1).pixels
        windows = open_images(str(tmp_path / name), tile=32)
        for (_, top, left), window in zip(windows.parts, windows, strict=True):
            stored = read_stored(window, 1)
            assert stored.pixels.dtype == whole.dtype
            assert np.array_equal(stored.pixels, whole[:, top : top + 32, left : left + 32])
            assert stored.origin == (top, left)
            assert to_byte_range(stored).max() > 200


@pytest.mark.parametrize("shape", [(9,), (2, 3, 40, 50), (0, 40)])
def test_windows__of_arrays_that_are_no_scene_are_refused_by_name(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UnsuitableImageError, match=r"a.npy: its shape \(.*own file"):
        open_images(str(tmp_path), tile=32)


# ----------------------------------------------------------------------------------------------------------------------
# Features


@pytest.fixture
def encoder(tiny_config, tmp_path):
    """Saves an encoder of one channel, whose processor takes 0 for no-data, and returns both and the folder."""
    model, folder = MAEModel(tiny_config(num_channels=1)).eval(), tmp_path / "encoder"
    processor = MAEImageProcessor.for_image_size(32, num_channels=1, nodata=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


def extract(folder, *arguments):
    features_command(["--model_name_or_path", str(folder), *map(str, arguments)], prog="hf-mae features")


def pooled(model, processor, *arrays):
    with torch.no_grad():
        return model(processor(list(arrays), return_tensors="pt").pixel_values).pooler_output


def test_features__of_windows_have_file_row_and_column(encoder, tmp_path, capsys):
    model, processor, folder = encoder
    first, second = random_pixels(64, 64), random_pixels(40, 64, seed=1)
    first[:32, 32:] = 0  # a window without data, which is left out
    write_scene(tmp_path / "scenes" / "a.tif", first, tile=(16, 16))
    write_scene(tmp_path / "scenes" / "b.tif", second)
    output = tmp_path / "features.parquet"
    extract(folder, "--data", tmp_path / "scenes", "--tile", 32, "--output", output, "--batch_size", 3)
    table = pq.read_table(output)
    assert table.schema.names == ["name", "file", "index", "row", "column", "pooler"]
    places = list(zip(*(table[name].to_pylist() for name in ("file", "row", "column")), strict=True))
    names = [str(tmp_path / "scenes" / name) for name in ("a.tif", "b.tif")]
    expected = [(names[0], 0, 0), (names[0], 32, 0), (names[0], 32, 32)]
    assert places == [*expected, *((names[1], row, column) for row in (0, 8) for column in (0, 32))]
    assert table["name"].to_pylist()[1] == f"{names[0]}, row 32, column 0"
    scenes = dict(zip(names, (first, second), strict=True))
    windows = [scenes[file][row : row + 32, column : column + 32] for file, row, column in places]
    values = torch.tensor(table["pooler"].combine_chunks().flatten().to_numpy()).reshape(7, -1)
    torch.testing.assert_close(values, pooled(model, processor, *windows))
    assert "1 without data" in capsys.readouterr().out


def test_features__of_pages_have_file_and_page(encoder, tmp_path):
    model, processor, folder = encoder
    stack = random_pixels(3, 40, 40)
    write_scene(tmp_path / "stacks" / "a.tif", stack)
    write_scene(tmp_path / "stacks" / "b.tif", stack[0])
    output = tmp_path / "features.safetensors"
    extract(folder, "--data", tmp_path / "stacks", "--pages", "images", "--output", output)
    with safe_open(output, "pt") as file:
        files = json.loads(file.get_tensor("files").numpy().tobytes())
        assert [name[-5:] for name in files] == ["a.tif"] * 3 + ["b.tif"]
        assert file.get_tensor("page").tolist() == [0, 1, 2, 0]
        torch.testing.assert_close(file.get_tensor("pooler"), pooled(model, processor, *stack, stack[0]))


# ----------------------------------------------------------------------------------------------------------------------
# No-data in evaluation


def test_image_processor__returns_where_a_crop_shows_no_data_if_asked():
    processor = MAEImageProcessor(size=32, num_channels=1, nodata=0)
    array = random_pixels(64, 64)
    array[:16, 32:] = 0
    features = processor([array, random_pixels(64, 64)], return_tensors="pt", return_valid=True)
    expected = torch.ones(2, 32, 32, dtype=torch.bool)
    expected[0, :8, 16:] = False
    away = torch.ones(32, 32, dtype=torch.bool)  # from the edge, where pixels show both
    away[7:9, 15:], away[:9, 15:17] = False, False
    assert torch.equal(features.valid[:, away], expected[:, away])
    assert not features.valid[0, :8, 16:].any()
    plain = processor([array, random_pixels(64, 64)], return_tensors="pt")
    assert list(plain) == ["pixel_values"]
    assert torch.equal(plain.pixel_values, features.pixel_values)
    assert features.pixel_values[0, 0, :5, 20:].abs().max() < 1e-4  # the mean


def test_image_processor__map_of_no_data_is_cropped_and_padded_as_the_image():
    array = random_pixels(20, 40)
    array[:, :20] = 0
    settings = {"num_channels": 1, "nodata": 0, "do_resize": False, "crop_size": {"height": 24, "width": 24}}
    features = MAEImageProcessor(**settings)(array, return_tensors="pt", return_valid=True)
    valid = features.valid[0]
    assert not valid[2:22, :12].any()
    assert valid[2:22, 12:].all()
    (valid,) = MAEImageProcessor(**settings, do_center_crop=False)(array, return_valid=True).valid
    assert torch.equal(valid, torch.from_numpy(array > 0))


@pytest.fixture
def scenes_with_gaps(tmp_path):
    """Three images: one half without data, one with data everywhere, one without any."""
    arrays = [random_pixels(32, 32, seed=seed) for seed in range(3)]
    arrays[0][:, :16] = 0
    arrays[2][:] = 0
    for number, array in enumerate(arrays):
        write_scene(tmp_path / "scenes" / f"{number}.tif", array)
    return open_images(str(tmp_path / "scenes"))


def test_held_out_loss__leaves_no_data_out(tiny_config, scenes_with_gaps):
    """An image's loss is the mean over its hidden patches that have data, and images weigh alike."""
    model = MAEForPreTraining(tiny_config(num_channels=1)).eval()
    processor = MAEImageProcessor(size=32, num_channels=1, nodata=0)
    measured = Evaluation(scenes_with_gaps, scenes_with_gaps, processor, max_images=15, batch_size=2)(model)
    noise = torch.from_numpy(np.random.default_rng(0).random((3, 16), dtype=np.float32))
    losses = []
    for number, mask in enumerate(noise):
        features = processor(scenes_with_gaps[number], return_tensors="pt", return_valid=True)
        with torch.no_grad():
            outputs = model(features.pixel_values, noise=mask[None])
        patches = features.valid[0].unflatten(1, (4, 8)).unflatten(0, (4, 8)).all(dim=3).all(dim=1).flatten()
        target = model.target_values(features.pixel_values, outputs.ids_hidden)
        errors = (outputs.logits - target).square().mean(dim=2)[0][patches[outputs.ids_hidden[0]]]
        losses.append(errors.mean().item() if len(errors) else 0.0)
    assert losses[2] == 0
    assert measured["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_held_out_loss__without_no_data_is_that_of_a_processor_that_knows_none(tiny_config, scenes_with_gaps):
    model = MAEForPreTraining(tiny_config(num_channels=1)).eval()
    losses = []
    for nodata in (None, 999):
        processor = MAEImageProcessor(size=32, num_channels=1, nodata=nodata)
        assert all("valid" not in EvaluationDataset(scenes_with_gaps, processor)[index] for index in range(3))
        losses.append(Evaluation(scenes_with_gaps, None, processor, batch_size=2)(model)["eval_loss"])
    assert losses[0] == losses[1]


# ----------------------------------------------------------------------------------------------------------------------
# Segmentation

GEOGRAPHIC_TAGS = {
    33550: (12, 3, (10.0, 10.0, 0.0)),  # pixels of 10 m
    33922: (12, 6, (0.0, 0.0, 0.0, 399960.0, 5100000.0, 0.0)),
    34735: (3, 12, (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32632)),
    34736: (12, 1, (6378137.0,)),
    34737: (2, 0, "WGS 84 / UTM zone 32N|"),
}


def write_geotiff(path, array, **options):
    tags = [(code, dtype, count, value, True) for code, (dtype, count, value) in GEOGRAPHIC_TAGS.items()]
    write_scene(path, array, extratags=tags, **options)


def write_mask(path, classes):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, classes)
    elif path.suffix == ".png":
        PIL.Image.fromarray(classes).save(path)
    elif path.stem == "palette":
        tifffile.imwrite(path, classes, photometric="palette", colormap=np.zeros((3, 256), np.uint16), metadata=None)
    else:
        write_scene(path, classes, tile=(16, 16))


@pytest.mark.parametrize("name", ["s.tif", "s.npy", "s.png", "palette.tif"])
def test_windows__of_image_and_mask_are_the_same_place(tmp_path, name):
    scene = random_pixels(50, 70)
    write_scene(tmp_path / "images" / f"{name.split('.')[0]}.tif", scene, tile=(16, 16))
    write_mask(tmp_path / "masks" / name, scene // 2)
    pairs = masks.folder_pairs(str(tmp_path), "train", tile=32)
    assert len(pairs) == 2 * 3
    for pair in pairs:
        pixels, classes = masks.read_pair(pair, MAEImageProcessor(num_channels=1))
        assert classes.shape == (32, 32)
        assert np.array_equal(classes, pixels[0].numpy() // 2)


def test_windows__of_a_mask_of_another_size_are_refused(tmp_path):
    write_scene(tmp_path / "images" / "s.tif", random_pixels(64, 64))
    write_mask(tmp_path / "masks" / "s.tif", random_pixels(64, 80))
    pair = masks.folder_pairs(str(tmp_path), "train", tile=32)[0]
    with pytest.raises(ValueError, match=r"s.tif .*\(64, 80\).*\(64, 64\)"):
        masks.read_pair(pair, MAEImageProcessor(num_channels=1))


def test_windows__of_a_labelled_scene_that_is_broken_are_an_error_by_name(tmp_path):
    """As its image would be without windows: what is labelled is not left out."""
    for name in ("a", "b"):
        write_scene(tmp_path / "images" / f"{name}.tif", random_pixels(64, 64))
        write_mask(tmp_path / "masks" / f"{name}.tif", random_pixels(64, 64))
    (tmp_path / "images" / "b.tif").write_bytes(b"")
    with pytest.raises(OSError, match="b.tif can't be read: OSError: .* Mend it, or take it and its mask out"):
        masks.folder_pairs(str(tmp_path), "train", tile=32)


SMALL = ["--head_size", "16", "--feature_pyramid_size", "16", "--disable_tqdm", "true", "--use_cpu", "true"]


def segment(*arguments):
    segment_command([*map(str, arguments), *SMALL], prog="hf-mae segment")


@pytest.mark.slow
def test_training__on_windows_keeps_those_of_a_scene_together(encoder, tmp_path, capsys):
    for number in range(3):
        classes = (np.indices((64, 64)).sum(axis=0) // 16 % 2).astype(np.uint8)
        write_scene(tmp_path / "data" / "images" / f"{number}.tif", classes * 200 + 20, tile=(16, 16))
        write_mask(tmp_path / "data" / "masks" / f"{number}.tif", classes)
    output = tmp_path / "segmenter"
    arguments = ["--data", tmp_path / "data", "--tile", 32, "--output_dir", output, "--max_steps", 2]
    segment("--model_name_or_path", encoder[2], *arguments, "--per_device_train_batch_size", 4)
    printed = capsys.readouterr().out
    assert "4 of 12 images are held out for evaluation" in printed
    assert "8 and 1 to evaluate on" in printed  # four windows are one scene
    assert json.loads((output / "eval_results.json").read_text())["eval_mean_iou"] >= 0
    segment(
        "--model_name_or_path",
        output,
        "--data",
        tmp_path / "data" / "images",
        "--predict_only",
        "--tile",
        32,
        "--output_dir",
        tmp_path / "maps",
    )
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["0.tif", "1.tif", "2.tif"]


@pytest.fixture
def segmenter(tiny_config, tmp_path):
    """Saves UperNet for pictures of one channel in which 0 is no-data, and returns a function and the folder.

    The function gives the class of each pixel of an array, predicted as a whole, or of windows, blended.
    """
    folder = tmp_path / "segmenter"
    encoder = tiny_config(num_channels=1, feature_pyramid_size=16)
    sizes = {"hidden_size": 16, "auxiliary_channels": 16, "num_labels": 5}
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=encoder, **sizes)).eval()
    size = {"height": 32, "width": 32}
    processor = MAEImageProcessor(size=size, crop_size=size, do_center_crop=False, num_channels=1, nodata=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    def predict(array, side=None, tops=(0,), lefts=(0,)):
        height, width = (side, side) if side else array.shape
        slopes = [torch.minimum(torch.arange(each) + 0.5, each - torch.arange(each) - 0.5) for each in (height, width)]
        total = torch.zeros(5, *array.shape)
        for top, left in ((top, left) for top in tops for left in lefts):
            place = slice(top, top + height), slice(left, left + width)
            with torch.no_grad():
                logits = model(processor(array[place], return_tensors="pt").pixel_values).logits
            logits = nn.functional.interpolate(logits, size=(height, width), mode="bilinear")[0]
            total[(slice(None), *place)] += logits * slopes[0][:, None] * slopes[1]
        return np.where(array == 0, 255, total.argmax(dim=0).numpy())

    return predict, folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_prediction__writes_a_scene_as_one_map_with_its_place_on_earth(segmenter, tmp_path, workers):
    predict, folder = segmenter
    scene = random_pixels(80, 112)
    scene[:48, :48], scene[60:63, 100:] = 0, 0  # a window without data, and a gap
    write_geotiff(tmp_path / "scenes" / "north" / "s.tif", scene, tile=(16, 16))
    write_geotiff(tmp_path / "scenes" / "t.tif", np.zeros((48, 48), np.uint8))
    output = tmp_path / "maps"
    segment(
        "--model_name_or_path",
        folder,
        "--data",
        tmp_path / "scenes",
        "--predict_only",
        "--tile",
        48,
        "--output_dir",
        output,
        "--per_device_eval_batch_size",
        4,
        "--dataloader_num_workers",
        workers,
    )
    expected = predict(scene, 48, (0, 32), (0, 32, 64))  # at most 32 pixels apart: two thirds of 48
    with tifffile.TiffFile(output / "north" / "s.tif") as tiff:
        page = tiff.pages[0]
        classes = page.asarray()
        for code, (_, _, value) in GEOGRAPHIC_TAGS.items():
            found = page.tags[code].value
            assert (found if isinstance(found, tuple | str) else (found,)) == value
        assert page.tags[42113].value == "255"
    assert classes.dtype == np.uint8
    assert (classes == 255).sum() == (scene == 0).sum()
    assert (classes != expected).mean() < 0.001  # ties of float32, in batches of another size
    assert (tifffile.imread(output / "t.tif") == 255).all()
    assert len(np.unique(classes)) > 2


def test_prediction__writes_png_for_pictures_and_names_broken_ones(segmenter, tmp_path, capsys):
    predict, folder = segmenter
    (tmp_path / "pictures").mkdir()
    arrays = {"a.png": random_pixels(40, 60), "b.png": random_pixels(30, 30), "b.bmp": random_pixels(50, 20)}
    for name, array in arrays.items():
        PIL.Image.fromarray(array).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "c.png").write_bytes((tmp_path / "pictures" / "a.png").read_bytes()[:300])
    output = tmp_path / "maps"
    segment("--model_name_or_path", folder, "--data", tmp_path / "pictures", "--predict_only", "--output_dir", output)
    maps = {"a.png": "a.png", "b.png": "b.png.png", "b.bmp": "b.bmp.png"}  # two pictures have the name b
    assert sorted(path.name for path in output.iterdir()) == sorted(maps.values())
    for name, array in arrays.items():
        picture = PIL.Image.open(output / maps[name])
        assert picture.mode == "L"
        assert (np.array(picture) != predict(array)).mean() < 0.001
    assert "c.png, which can't be read" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--tile", 32], []])
def test_prediction__writes_maps_of_all_scenes_but_broken_ones(segmenter, tmp_path, capsys, options):
    predict, folder = segmenter
    scene = write_broken_scenes(tmp_path / "scenes")
    output = tmp_path / "maps"
    given = ["--data", tmp_path / "scenes", "--predict_only", "--output_dir", output]
    segment("--model_name_or_path", folder, *given, *options)
    assert sorted(path.name for path in output.iterdir()) == ["good.png", "good.tif"]
    expected = predict(scene, 32, (0, 16, 32), (0, 16, 32)) if options else predict(scene)
    assert (tifffile.imread(output / "good.tif") != expected).mean() < 0.001
    printed = capsys.readouterr().out
    for name in ("cut.npy", "empty.tif", "header.tif", "link.tif", "tags.tif", "tile.tif"):
        assert f"Skipped {tmp_path / 'scenes' / name}, which can't be read: " in printed


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("encoder", "pictures", "does not segment"),
        ("segmenter", "nothing", "nothing does not exist"),
        ("segmenter", None, "`predict_only` needs .*`data`"),
    ],
)
def test_prediction__mistakes_are_named(segmenter, encoder, tmp_path, model, data, message):
    (tmp_path / "pictures").mkdir()
    given = [] if data is None else ["--data", tmp_path / data]
    with pytest.raises((ValueError, OSError), match=message):
        segment("--model_name_or_path", tmp_path / model, "--predict_only", *given)
