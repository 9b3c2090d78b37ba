# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""docs/images.md: its commands train on files of each field that are made here."""

import re
import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import picture
from image_files import dicom

from hf_mae import MAEForPreTraining, MAEImageProcessor
from hf_mae_command import main

tifffile = pytest.importorskip("tifffile")
PAGE = (Path(__file__).parents[1] / "docs" / "images.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
LINES = [shlex.split(line, comments=True)[1:] for line in LINES if line.startswith("hf-mae")]
COMMANDS = [words for words in LINES if words[0] == "pretrain"]
SMALL = {
    **{
        "preset": "tiny",
        "image_size": 16,
        "patch_size": 8,
        "max_steps": 2,
        "effective_batch_size": 4,
        "eval_images": 10,
    },
    "config_overrides": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16,"
    "decoder_hidden_size=16,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=16",
}


def make_scenes(folder, rng):
    scene = rng.integers(100, 4000, (600, 700, 4)).astype(np.uint16)
    scene[:, :90] = 0
    tifffile.imwrite(folder / "a.tif", scene, photometric="minisblack", planarconfig="contig", tile=(128, 128))


def make_slices(folder, rng):
    for number in range(4):
        values = rng.integers(0, 4000, (40, 40)).astype(np.uint16)
        dicom(folder / f"IM{number:04}", values, RescaleSlope=1, RescaleIntercept=-1024, BitsStored=12, HighBit=11)


def make_volumes(folder, rng):
    nibabel = pytest.importorskip("nibabel")
    volume = rng.integers(-1000, 2000, (40, 30, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "a.nii")


def make_xrays(folder, rng):
    for number in range(4):
        values = rng.integers(0, 4096, (40, 30)).astype(np.uint16)
        dicom(folder / f"{number}.dcm", values, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")


def make_cells(folder, rng):
    for number in range(4):
        cells = rng.integers(0, 4096, (3, 40, 40)).astype(np.uint16)
        tifffile.imwrite(folder / f"{number}.ome.tif", cells, photometric="minisblack", metadata={"axes": "CYX"})


def make_stacks(folder, rng):
    tifffile.imwrite(folder / "a.tif", rng.integers(0, 4096, (5, 40, 40)).astype(np.uint16), photometric="minisblack")


def make_parts(folder, rng):
    for number in range(4):
        PIL.Image.fromarray(rng.integers(0, 4096, (20, 500)).astype(np.uint16)).save(folder / f"{number}.png")


def make_photos(folder, rng):
    for number in range(4):
        picture(number).save(folder / f"{number}.jpg")


def test_page__has_a_command_for_each_field():
    fields = {command[command.index("--data") + 1] for command in COMMANDS}
    assert fields == {name.removeprefix("make_") for name in globals() if name.startswith("make_")}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[command.index("--data") + 1])
def test_page__commands_train_on_such_files(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    folder = Path(command[command.index("--data") + 1])
    folder.mkdir()
    globals()[f"make_{folder.name}"](folder, np.random.default_rng(0))
    small = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    main([*command, *small, "--output_dir", "out"])
    model, processor = MAEForPreTraining.from_pretrained("out"), MAEImageProcessor.from_pretrained("out")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert PIL.Image.open("out/reconstructions.png").size[0] > 0
    if "--value_range" in command:
        assert list(processor.value_range) == [
            float(value) for value in command[command.index("--value_range") + 1 :][:2]
        ]
    first = next(path for path in sorted(folder.iterdir()))
    if "--tile" not in command:  # inference reads the same file as training did
        pixels = processor(str(first), return_tensors="pt").pixel_values
        assert pixels.shape[1:] == (model.config.num_channels, 16, 16)
        assert pixels.isfinite().all()


@pytest.mark.slow
def test_page__commands_on_windows_go_on_with_the_model_of_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("scenes", "labelled/images", "labelled/masks"):
        Path(folder).mkdir(parents=True)
    make_scenes(Path("scenes"), rng)
    for name in ("b", "a"):
        make_scenes(Path("labelled/images"), rng)
        Path("labelled/images/a.tif").rename(f"labelled/images/{name}.tif")
        tifffile.imwrite(f"labelled/masks/{name}.tif", rng.integers(0, 2, (600, 700)).astype(np.uint8))
    pretrain = next(command for command in COMMANDS if "--tile" in command)
    small = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    main([*pretrain, *small, "--output_dir", "out"])
    train = ["--image_size", "16", "--head_size", "16", "--feature_pyramid_size", "16", "--max_steps", "1"]
    others = [words for words in LINES if words[0] != "pretrain"]
    assert [words[0] for words in others] == ["features", "segment", "segment"]
    for words in others:
        main([*words, *(train if words[0] == "segment" and "--predict_only" not in words else [])])
    assert Path("features.parquet").exists()
    classes = tifffile.imread("maps/a.tif")
    assert classes.shape == (600, 700)
    assert bool(((classes == 255) == (np.arange(700) < 90)).all())
