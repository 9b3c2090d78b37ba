# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Scenes from end to end: features of windows and pages, no-data in the held-out loss, class maps of scenes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from hf_mae import MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.data.datasets import EvaluationDataset
from hf_mae.data.sources import open_images
from hf_mae.evaluation.features import features_command
from hf_mae.evaluation.monitoring import Evaluation

tifffile = pytest.importorskip("tifffile")


def write_scene(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, **{"photometric": "minisblack", "metadata": None, **options})


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, 256, shape).astype(np.uint8)


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
