# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Scenes from end to end: features of windows and pages, no-data in the held-out loss, class maps of scenes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from hf_mae import MAEImageProcessor, MAEModel
from hf_mae.evaluation.features import features_command

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
