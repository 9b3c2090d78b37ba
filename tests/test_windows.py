# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pictures larger than the model: where windows lie, how they are blended, and what is evaluated and written."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hf_mae import MAEImageProcessor, MAEModel
from hf_mae.data import masks
from hf_mae.data.folders import FolderImages
from hf_mae.data.masks import Pair
from hf_mae.data.windows import PictureStrips, WindowGrid, window_starts
from hf_mae.evaluation import features
from hf_mae.finetuning.segmentation import segment_command
from hf_mae.finetuning.segmentation_maps import blended_logits, open_pictures, write_class_maps
from hf_mae.modeling.image_processing_mae import resize


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, 256, shape).astype(np.uint8)


# ----------------------------------------------------------------------------------------------------------------------
# Where they lie


@pytest.mark.parametrize("side", [1, 29, 30, 31, 45, 100, 997])
@pytest.mark.parametrize("stride", [0.3, 1 / 2, 2 / 3, 1.0])
def test_starts__cover_the_side_at_even_distances(side, stride):
    starts = window_starts(side, 30, stride)
    assert starts[0] == 0
    assert starts[-1] == max(side - 30, 0)
    gaps = np.diff(starts)
    assert gaps.max(initial=0) <= max(int(30 * stride), 1)
    assert gaps.max(initial=0) - gaps.min(initial=30) <= 1
    assert len(starts) == 1 or (len(starts) - 2) * int(30 * stride) < side - 30  # no window too many


def test_weights__add_up_to_one_and_fall_towards_the_border():
    grid = WindowGrid.of_picture((100, 64), (30, 64))
    assert (grid.window, grid.lefts) == ((30, 64), [0])
    total = torch.zeros(100, 64)
    vertical, horizontal = grid.weights
    for top, weights in zip(grid.tops, vertical, strict=True):
        total[top : top + 30] += weights[:, None] * horizontal[0]
    torch.testing.assert_close(total, torch.ones(100, 64))
    second = vertical[1]
    assert 0 < second[0] < 0.1
    assert (second[:10].diff() > 0).all()
    assert (second.flip(0)[:10].diff() > 0).all()
    assert vertical[0][0] == 1  # nothing else sees the border of the picture


# ----------------------------------------------------------------------------------------------------------------------
# How they are blended

PROCESSOR = {"num_channels": 1, "do_center_crop": False, "image_mean": [0.0], "image_std": [1.0]}


def processor_of(height, width, **options):
    return MAEImageProcessor(size={"height": height, "width": width}, **PROCESSOR, **options)


class Stamp(nn.Module):
    """Returns as logits the pixels, and how they lie in the window: what a model sees differently at the border."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, pixel_values):
        self.batches.append(len(pixel_values))
        ramp = torch.linspace(-1, 1, pixel_values.shape[2])[:, None] * torch.linspace(-2, 1, pixel_values.shape[3])
        return SimpleNamespace(logits=torch.cat([pixel_values, pixel_values * 0 + ramp, 1 - pixel_values], dim=1))


def blend(array, processor, window, stride, batch_size=3):
    """Returns the logits of an array and the rows that were yielded at once."""
    strips = PictureStrips([Pair([array], 0, None, "array")], processor, window, stride)
    batches = [[strips[index] for index in batch] for batch in strips.batches(batch_size)]
    model, rows, expected = Stamp(), [], 0
    for _, top, logits in blended_logits(model, batches, strips.grids, batch_size):
        assert top == expected
        expected += logits.shape[1]
        rows.append(logits)
    assert max(model.batches) <= batch_size
    return torch.cat(rows, dim=1), [each.shape[1] for each in rows]


def expected_blend(array, window, stride):
    """The weighted mean, written out: every window counts by the product of the distances from its borders."""
    total, weight = np.zeros((3, *array.shape)), np.zeros(array.shape)
    slopes = [np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) for side in window]
    ramp = np.linspace(-1, 1, window[0])[:, None] * np.linspace(-2, 1, window[1])
    for top in window_starts(array.shape[0], window[0], stride):
        for left in window_starts(array.shape[1], window[1], stride):
            place = slice(top, top + window[0]), slice(left, left + window[1])
            slope, pixels = slopes[0][:, None] * slopes[1], array[place] / 255
            total[(slice(None), *place)] += slope * np.stack([pixels, ramp, 1 - pixels])
            weight[place] += slope
    return total / weight


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((50, 70), (16, 24), 2 / 3), ((50, 70), (16, 24), 0.25), ((16, 60), (16, 24), 1 / 2), ((40, 24), (16, 24), 1.0)],
)
def test_blending__is_the_weighted_mean_of_all_windows(size, window, stride):
    array = random_pixels(*size)
    logits, rows = blend(array, processor_of(*window), window, stride)
    np.testing.assert_allclose(logits.numpy(), expected_blend(array, window, stride), atol=1e-5)
    assert max(rows) <= window[0]  # never more than a row of windows


def test_blending__of_one_window_or_a_whole_picture_is_what_the_processor_and_a_resize_give():
    array, processor = random_pixels(33, 47), processor_of(16, 24)
    pixel_values = processor(array, return_tensors="pt").pixel_values
    expected = nn.functional.interpolate(Stamp()(pixel_values).logits, size=(33, 47), mode="bilinear")[0]
    for window in (None, (100, 100)):
        logits, _ = blend(array, processor, window, 2 / 3)
        torch.testing.assert_close(logits, expected)


def test_blending__of_a_whole_picture_is_resized_in_bands(monkeypatch):
    array, processor = random_pixels(33, 47), processor_of(16, 24)
    whole, rows = blend(array, processor, None, 2 / 3)
    monkeypatch.setattr("hf_mae.finetuning.segmentation_maps._BAND", 3 * 47 * 5)
    banded, rows = blend(array, processor, None, 2 / 3)
    assert rows == [5, 5, 5, 5, 5, 5, 3]
    torch.testing.assert_close(banded, whole)


def test_blending__of_several_pictures_fills_the_batches():
    arrays = [random_pixels(16, 24, seed=seed) for seed in range(5)] + [random_pixels(30, 40)]
    strips = PictureStrips([Pair(arrays, i, None, str(i)) for i in range(6)], processor_of(16, 24), (16, 24), 1.0)
    assert [len(batch) for batch in strips.batches(4)] == [4, 2, 1]  # strips: five of one window, two of two
    model = Stamp()
    batches = [[strips[index] for index in batch] for batch in strips.batches(4)]
    found = list(blended_logits(model, batches, strips.grids, 4))
    assert [strip["picture"] for strip, _, _ in found] == [0, 1, 2, 3, 4, 5, 5]
    assert model.batches == [4, 3, 2]
    torch.testing.assert_close(found[3][2][0], torch.from_numpy(arrays[3] / 255).float())


# ----------------------------------------------------------------------------------------------------------------------
# Files


@pytest.fixture
def segmenter(tiny_config):
    """UperNet for pictures of one channel and five classes, and its processor, for which 0 is no-data."""
    sizes = {"hidden_size": 16, "auxiliary_channels": 16, "num_labels": 5}
    encoder = tiny_config(num_channels=1, feature_pyramid_size=16)
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=encoder, **sizes)).eval()
    return model, processor_of(32, 32, nodata=0)


def segmenter_of(segmenter, images):
    """Returns the first arguments of `write_class_maps`."""
    model, processor = segmenter
    return model, images, processor


def test_maps__of_a_scene_read_in_part_and_of_the_same_picture_are_the_same(segmenter, tmp_path):
    model, processor = segmenter
    array = random_pixels(70, 90)
    array[10:20, 30:60] = 0
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "scene.npy", array)
    PIL.Image.fromarray(array).save(tmp_path / "in" / "picture.png")
    (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in" / "picture.png").read_bytes()[:3000])
    write_class_maps(model, FolderImages(tmp_path / "in", labels="none"), processor, tmp_path / "out", (32, 32))
    maps = {path.name: np.array(PIL.Image.open(path)) for path in (tmp_path / "out").iterdir()}
    assert maps.keys() == {"scene.png", "picture.png"}  # the one that is cut is named and left out
    assert np.array_equal(maps["scene.png"], maps["picture.png"])
    assert np.array_equal(maps["scene.png"] == 255, array == 0)
    assert len(np.unique(maps["scene.png"])) > 2


def test_maps__hold_the_numbers_of_masks_whose_classes_count_from_1(segmenter, tmp_path):
    model, processor = segmenter
    array = random_pixels(20, 30)
    array[:4] = 0
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", array)
    given = segmenter_of(segmenter, FolderImages(tmp_path / "in", labels="none"))
    (plain,) = write_class_maps(*given, tmp_path / "plain")
    model.config.reduce_labels = True
    (reduced,) = write_class_maps(*given, tmp_path / "reduced")
    classes, numbers = (np.array(PIL.Image.open(path)).astype(int) for path in (plain, reduced))
    assert np.array_equal(numbers, np.where(array == 0, 255, classes + 1))
    assert (masks.read_mask(reduced, reduce_labels=True) == masks.read_mask(plain)).all()


def test_maps__of_a_turned_tiff_are_those_of_the_displayed_picture(segmenter, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    array = random_pixels(70, 90)
    (tmp_path / "in").mkdir()
    tags = [(274, "H", 1, 6, True)]  # to be turned by a quarter
    tifffile.imwrite(tmp_path / "in" / "a.tif", array, photometric="minisblack", metadata=None, extratags=tags)
    PIL.Image.fromarray(np.rot90(array, -1)).save(tmp_path / "in" / "b.png")
    model, processor = segmenter
    write_class_maps(model, FolderImages(tmp_path / "in", labels="none"), processor, tmp_path / "out", (32, 32))
    turned, plain = (np.array(PIL.Image.open(tmp_path / "out" / name)) for name in ("a.tif", "b.png"))
    assert turned.shape == (90, 70)
    assert np.array_equal(turned, plain)


@pytest.mark.parametrize("window", [None, 4])
def test_maps__of_a_picture_that_is_named_as_a_tiff_are_those_of_the_picture(segmenter, tmp_path, window):
    pytest.importorskip("tifffile")
    images = pictures(tmp_path / "in", "a.png")
    (tmp_path / "in" / "b.tif").write_bytes((tmp_path / "in" / "a.png").read_bytes())
    images = FolderImages(tmp_path / "in", labels="none")
    paths = write_class_maps(*segmenter_of(segmenter, images), tmp_path / "out", window)
    plain, renamed = (np.array(PIL.Image.open(path)) for path in paths)
    assert [path.name for path in paths] == ["a.png", "b.tif"]
    assert np.array_equal(renamed, plain)


def pictures(folder, *names):
    """Saves small pictures and returns their source."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        PIL.Image.fromarray(random_pixels(8, 8, seed=number)).save(folder / name)
    return FolderImages(folder, labels="none")


def test_maps__every_picture_has_its_own(segmenter, tmp_path):
    images = pictures(tmp_path / "in", "x.jpg", "x.png", "x.jpg.png", "y.jpg")
    paths = write_class_maps(*segmenter_of(segmenter, images), tmp_path / "out")
    assert [path.name for path in paths] == ["x.jpg.png", "x.jpg.png.png", "x.png.png", "y.png"]
    assert all(path.exists() for path in paths)


def test_maps__never_replace_pictures_and_other_files_only_if_asked(segmenter, tmp_path):
    images = pictures(tmp_path / "in", "a.png", "b.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    given = segmenter_of(segmenter, images)
    before = [Path(path).read_bytes() for path in map(images.describe, range(2))]
    for folder in ("in", "link"):
        with pytest.raises(ValueError, match=f"`output_dir` .*{folder} would replace pictures .*Choose another folder"):
            write_class_maps(*given, tmp_path / folder, overwrite_output_dir=True)
    assert [Path(path).read_bytes() for path in map(images.describe, range(2))] == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.png").write_text("a mask")
    with pytest.raises(ValueError, match=r"1 of 2 maps would replace files, first .*b\.png.*`overwrite_output_dir`"):
        write_class_maps(*given, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]  # refused before anything is written
    write_class_maps(*given, tmp_path / "out", overwrite_output_dir=True)
    assert PIL.Image.open(tmp_path / "out" / "b.png").size == (8, 8)


def test_maps__of_a_folder_by_its_path_and_of_square_windows(segmenter, tmp_path):
    (tmp_path / "in").mkdir()
    PIL.Image.fromarray(random_pixels(50, 40)).save(tmp_path / "in" / "a.png")
    model, processor = segmenter
    (first,) = write_class_maps(model, tmp_path / "in", processor, tmp_path / "out", 32)
    images = FolderImages(tmp_path / "in", labels="none")
    (second,) = write_class_maps(model, images, processor, tmp_path / "again", (32, 32))
    assert first.read_bytes() == second.read_bytes()


def test_maps__of_stacks_have_their_pages(segmenter, tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    stack = random_pixels(3, 40, 50)
    for folder in ("in", "single"):
        (tmp_path / folder).mkdir()
    tifffile.imwrite(tmp_path / "in" / "stack.tif", stack, photometric="minisblack", metadata=None)
    frames = [PIL.Image.fromarray(page) for page in stack]
    frames[0].save(tmp_path / "in" / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "in" / "one.png")
    (tmp_path / "in" / "cut.png").write_bytes(b"no picture")
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "single" / f"{number}.png")
    model, _ = segmenter
    processor = processor_of(32, 32, nodata=0, pages="images")
    paths = write_class_maps(model, tmp_path / "in", processor, tmp_path / "out", 32)
    assert sorted(path.name for path in paths) == ["moving.tif", "one.png", "stack.tif"]
    assert f"Skipped {tmp_path / 'in' / 'cut.png'}, which can't be read" in capsys.readouterr().out
    singles = write_class_maps(model, tmp_path / "single", processor, tmp_path / "out single", 32)
    expected = np.stack([np.array(PIL.Image.open(path)) for path in singles])
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "stack.tif"), expected)
    assert np.array_equal(np.array(PIL.Image.open(tmp_path / "out" / "one.png")), expected[0])


def test_maps__that_lie_below_the_pictures_are_no_pictures(segmenter, tmp_path):
    pictures(tmp_path / "in", "a.png", "b.jpg")
    output = tmp_path / "in" / "deep" / "maps"
    for _ in range(2):
        images = open_pictures(tmp_path / "in", output)
        assert len(images) == 2
        write_class_maps(*segmenter_of(segmenter, images), output, overwrite_output_dir=True)
    assert len(open_pictures(tmp_path / "in", tmp_path)) == 4
    assert len(open_pictures(tmp_path / "in" / "a.png", tmp_path / "in")) == 1


@pytest.mark.parametrize("in_windows", [False, True])
def test_masks__what_a_geotiff_declares_as_no_data_does_not_count(tmp_path, in_windows):
    tifffile = pytest.importorskip("tifffile")
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    classes = random_pixels(40, 40) % 4
    tags = [(42113, "s", 0, "3", True)]
    tifffile.imwrite(tmp_path / "masks" / "a.tif", classes, photometric="minisblack", metadata=None, extratags=tags)
    tifffile.imwrite(tmp_path / "images" / "a.tif", classes, photometric="minisblack", metadata=None)
    for pair in masks.folder_pairs(str(tmp_path), "train", tile=32 if in_windows else None):
        pixels, found = masks.read_pair(pair, MAEImageProcessor(num_channels=1))
        assert np.array_equal(found, np.where(pixels[0] == 3, 255, pixels[0]))


@pytest.mark.parametrize("window", [None, (16, 16)])
def test_masks__do_not_count_where_the_image_has_no_data(tmp_path, window):
    classes = random_pixels(30, 20) % 3
    pixels = classes * 50 + 50
    pixels[:12], pixels[20, 3] = 0, 0
    for name, array in (("images", pixels), ("masks", classes)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", array)
    processor = processor_of(16, 16, nodata=0)
    pairs = masks.folder_pairs(str(tmp_path), "train")
    expected = np.where(pixels == 0, 255, classes)
    assert np.array_equal(masks.read_pair(pairs[0], processor)[1], expected)  # what is trained on
    strips = PictureStrips(pairs, processor, window, 1.0)
    found = [strips[index]["classes"].numpy() for index in range(len(strips))]  # what is evaluated
    assert np.array_equal(np.concatenate(found), expected)


# ----------------------------------------------------------------------------------------------------------------------
# Features


def test_features__of_a_picture_in_windows_are_the_weighted_mean_of_theirs(tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    MAEImageProcessor.for_image_size(32).save_pretrained(folder)
    (tmp_path / "in").mkdir()
    wide, small = random_pixels(50, 70, 3), random_pixels(24, 16, 3, seed=1)  # 6.25 x 8.75 patches, and 3 x 2
    for name, array in (("a", wide), ("b", small)):
        PIL.Image.fromarray(array).save(tmp_path / "in" / f"{name}.png")
    given = ["--model_name_or_path", folder, "--data", tmp_path / "in", "--output", tmp_path / "maps.parquet"]
    given += ["--features", "patches", "--in_windows", "--stride", "0.5", "--batch_size", "4", "--layers", "-1", "1"]
    monkeypatch.setattr(features, "_ROW_GROUP_BYTES", 1)  # a row group for each picture
    features.features_command([*map(str, given)], prog="hf-mae features")
    table = pq.read_table(tmp_path / "maps.parquet")
    assert table["patch_rows"].to_pylist() == [6, 3]
    assert table["patch_columns"].to_pylist() == [9, 2]
    shape = json.loads(table.schema.field("patches_2").metadata[b"shape"])
    assert shape == [32, "patch_rows", "patch_columns"]
    first, second = (np.array(table["patches_2"][row].as_py()) for row in range(2))

    model, processor = MAEModel.from_pretrained(folder).eval(), MAEImageProcessor.from_pretrained(folder)

    def encode(pixels):
        with torch.no_grad():
            return model(pixels[None]).last_hidden_state[0, 1:].T.unflatten(1, [side // 8 for side in pixels.shape[1:]])

    (pixels,) = processor(wide, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    pixels = resize(pixels, (48, 72))
    total, weight, slope = torch.zeros(32, 6, 9), torch.zeros(6, 9), torch.tensor([0.5, 1.5, 1.5, 0.5])
    for top in (0, 2):
        for left in (0, 2, 3, 5):  # in patches: at most two apart, evenly
            place = slice(top, top + 4), slice(left, left + 4)
            window = pixels[:, 8 * top : 8 * top + 32, 8 * left : 8 * left + 32]
            total[(slice(None), *place)] += encode(window) * slope[:, None] * slope
            weight[place] += slope[:, None] * slope
    np.testing.assert_allclose(first.reshape(32, 6, 9), total / weight, atol=1e-5)
    (pixels,) = processor(small, do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
    np.testing.assert_allclose(second.reshape(32, 3, 2), encode(pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--in_windows"], "`in_windows` makes maps: .* got pooler"),
        (["--in_windows", "--features", "patches", "--output", "a.safetensors"], "only a .parquet `output`"),
        (["--stride", "2"], "`stride` .*got 2"),
    ],
)
def test_features__mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        features.features_command(["--model_name_or_path", "out", *arguments], prog="hf-mae features")


# ----------------------------------------------------------------------------------------------------------------------
# Runs


def segment(*arguments):
    sizes = ["--head_size", "16", "--feature_pyramid_size", "16", "--disable_tqdm", "true", "--use_cpu", "true"]
    segment_command([*map(str, arguments), *sizes], prog="hf-mae segment")


def figures(truth, predicted):
    """Mean IoU and accuracy of two classes."""
    counted = truth != 255
    ious = []
    for number in range(2):
        both = ((truth == number) & (predicted == number))[counted].sum()
        ious.append(both / ((truth == number) | (predicted == number))[counted].sum())
    return {"eval_mean_iou": np.mean(ious), "eval_pixel_accuracy": (truth == predicted)[counted].mean()}


@pytest.mark.slow
def test_run__evaluates_and_predicts_larger_pictures_in_windows_of_the_training_size(pretrained, tmp_path, capsys):
    for split, count, size in (("train", 4, (32, 48)), ("val", 2, (70, 100))):
        for number in range(count):
            for name in ("images", "masks"):
                (tmp_path / "data" / split / name).mkdir(parents=True, exist_ok=True)
            classes = np.add.outer(np.arange(size[0]), np.arange(size[1]) + 5 * number) // 16 % 2
            classes = classes.astype(np.uint8)
            PIL.Image.fromarray(classes * 150 + 50).save(tmp_path / "data" / split / "images" / f"{number}.png")
            classes[:3] = 255
            PIL.Image.fromarray(classes).save(tmp_path / "data" / split / "masks" / f"{number}.png")
    given = ["--model_name_or_path", pretrained, "--data", tmp_path / "data", "--output_dir", tmp_path / "out"]
    short = ["--max_steps", 6, "--learning_rate", "1e-2", "--per_device_train_batch_size", 2, "--eval_strategy", "no"]
    segment(*given, *short)
    assert "32 x 48 pixels: 18 in 2 larger pictures to evaluate on" in capsys.readouterr().out  # 3 rows and 3 columns
    model = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert list(model.config.window_size) == [32, 48]

    predict = ["--model_name_or_path", tmp_path / "out", "--data", tmp_path / "data" / "val" / "images"]
    segment(*predict, "--predict_only", "--output_dir", tmp_path / "maps")
    truth, maps = (
        np.stack([np.array(PIL.Image.open(folder / f"{number}.png")) for number in range(2)])
        for folder in (tmp_path / "data" / "val" / "masks", tmp_path / "maps")
    )
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    expected = figures(truth, maps)
    assert {name: results[name] for name in expected} == pytest.approx(expected, abs=1e-3)

    segment(*predict, "--predict_only", "--whole_pictures", "--output_dir", tmp_path / "whole")
    whole = np.array(PIL.Image.open(tmp_path / "whole" / "0.png"))
    processor = MAEImageProcessor.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        outputs = model(processor(tmp_path / "data" / "val" / "images" / "0.png", return_tensors="pt").pixel_values)
    resized = processor.post_process_semantic_segmentation(outputs, [(70, 100)])[0].numpy()
    assert (whole != resized).mean() < 0.001
    assert (whole != maps[0]).mean() > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stride", "0"], r"`stride` .*\(0, 1\], got 0"),
        (["--stride", "1.5"], r"`stride` .*got 1.5"),
        (["--tile", "32", "--whole_pictures"], "`tile` .*`whole_pictures`"),
        (["--pages", "images"], "`pages` images .*no mask of its own"),
    ],
)
def test_mistakes__are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        segment("--preset", "tiny", "--data", "somewhere", *arguments)
