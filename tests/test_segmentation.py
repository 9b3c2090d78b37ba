# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Segmentation: pairs of images and masks, views, the mean IoU, runs, and what errors say."""

import json
import os
import re
import shutil
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from image_files import write_few_bits
from transformers import TrainingArguments, UperNetConfig, UperNetForSemanticSegmentation
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_mae import MAEImageProcessor, MAEModel
from hf_mae.data import masks
from hf_mae.data.augmentation import RandomOrientation
from hf_mae.data.folders import FolderImages
from hf_mae.data.masks import Pair
from hf_mae.data.parts import Window, open_scene
from hf_mae.data.sources import open_images
from hf_mae.evaluation.segmentation_metrics import ConfusionMatrix
from hf_mae.finetuning import segmentation as script
from hf_mae.finetuning.detection import DetectionArguments
from hf_mae.training.step_guard import RunStopped

tifffile = pytest.importorskip("tifffile")

ROOT = Path(__file__).parent.parent
SMALL = ["--head_size", "16", "--feature_pyramid_size", "16", "--disable_tqdm", "true", "--use_cpu", "true"]

# transformers 5.17 has the older name only, and newer versions warn of it.
CHECKPOINTING = (
    f"--{'activation' if hasattr(TrainingArguments, 'activation_checkpointing') else 'gradient'}_checkpointing"
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Models as small as these are faster so, many times where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    """Saves a small pre-trained model; fields of its configuration by keyword."""

    def save(**fields):
        model, folder = tiny_model(**fields), tmp_path / "checkpoint"
        model.save_pretrained(folder)
        MAEImageProcessor.for_image_size(
            model.config.image_size, num_channels=model.config.num_channels
        ).save_pretrained(folder)
        return folder

    return save


def run(*arguments):
    """Runs the command in this process."""
    script.segment_command([*map(str, arguments), *SMALL], prog="hf-mae segment")


def shapes(folder, count, seed=0, size=(48, 40)):
    """Pictures of a red square and a green disc on grey, their masks 1 and 2 on 0, a strip at the left ignored."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image, mask = PIL.Image.new("RGB", size, (90, 90, 90)), PIL.Image.new("L", size)
        for value, colour, shape in ((1, "red", "rectangle"), (2, "lime", "ellipse")):
            x, y = (int(rng.integers(side - 20)) for side in size)
            for picture, fill in ((image, colour), (mask, value)):
                getattr(PIL.ImageDraw.Draw(picture), shape)((x, y, x + 19, y + 19), fill=fill)
        mask.paste(255, (0, 0, 3, size[1]))
        image.save(folder / "images" / f"{number}.png")
        mask.save(folder / "masks" / f"{number}.png")
    return folder


# ----------------------------------------------------------------------------------------------------------------------
# The figures


def test_mean_iou__of_a_case_worked_out_by_hand():
    figures = ConfusionMatrix(4)
    figures.add(torch.tensor([[0, 1], [1, 3]]), torch.tensor([[0, 0], [1, 255]]))
    figures.add(torch.tensor([[2, 0]]), torch.tensor([[2, 2]]))
    result, iou = figures.figures()
    # Class 0: 1 in both, 2 true, 2 predicted. 1: 1, 1, 2. 2: 1, 2, 1. Class 3 is only predicted where nothing counts.
    assert iou.tolist()[:3] == pytest.approx([1 / 3, 1 / 2, 1 / 2])
    assert iou[3].isnan()
    assert result == pytest.approx({"mean_iou": 4 / 9, "pixel_accuracy": 3 / 5})


def test_mean_iou__a_class_that_is_only_predicted_counts_as_missed():
    figures = ConfusionMatrix(2)
    figures.add(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert figures.figures()[0] == pytest.approx({"mean_iou": 1 / 4, "pixel_accuracy": 1 / 2})


# ----------------------------------------------------------------------------------------------------------------------
# Images and masks


@pytest.mark.parametrize("turned", [RandomOrientation(True), RandomOrientation(True, True, True)])
def test_views__move_image_and_mask_alike(turned):
    """The picture is its mask, so each view must be its labels: the same scale, place, padding and mirror."""
    mask = PIL.Image.new("L", (60, 44))
    PIL.ImageDraw.Draw(mask).polygon([(5, 3), (40, 10), (12, 40)], fill=1)
    pair = Pair([mask.point([20, 220, *[0] * 254])], 0, mask, "shape")
    processor = MAEImageProcessor(size={"height": 24, "width": 32}, num_channels=1, image_mean=[0.0], image_std=[1.0])
    dataset = masks.SegmentationDataset([pair], processor, scale=(0.5, 2.0), orientation=turned)
    padded, centres = 0, set()
    for _ in range(60):
        sample = dataset[0]
        pixels, labels = sample["pixel_values"][0], sample["labels"]
        assert pixels.shape == labels.shape == (24, 32)
        assert bool((pixels[labels == 255] == 0).all())
        agree = (pixels > 0.47)[labels != 255] == (labels == 1)[labels != 255]
        assert agree.float().mean() > 0.93  # filters of image and mask differ at the edge
        padded += bool((labels == 255).any())
        centres.add(round((labels == 1).nonzero().float().mean(dim=0)[1].item()))
    assert 5 < padded < 55
    assert len(centres) > 10


def test_views__of_the_size_itself_show_all_of_a_picture_that_is_not_square():
    mask = PIL.Image.fromarray(np.kron(np.arange(12).reshape(3, 4), np.ones((10, 15))).astype(np.uint8))
    processor = MAEImageProcessor(size={"height": 6, "width": 8}, num_channels=1)
    labels = masks.SegmentationDataset([Pair([mask], 0, mask, "tiles")], processor, scale=(1.0, 1.0))[0]["labels"]
    assert torch.equal(labels, torch.arange(12).view(3, 4).repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_evaluation__shows_the_whole_image_each_time():
    image = PIL.Image.radial_gradient("L")
    mask = image.point(lambda value: value > 128)
    pair = Pair([image], 0, mask, "gradient")
    processor = MAEImageProcessor(size={"height": 32, "width": 64}, num_channels=1, do_center_crop=False)
    first, second = (masks.SegmentationDataset([pair], processor)[0] for _ in range(2))
    assert torch.equal(first["pixel_values"], processor(image, return_tensors="pt").pixel_values[0])
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["labels"].float().mean() == pytest.approx(np.array(mask).mean(), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("side", [1, 2, 3])
def test_sample__labels_each_part_with_its_garment(side):
    for split, source in (("train", open_images(None, "train")), ("val", open_images(None, "test"))):
        pairs = masks.sample_pairs(split, side)
        assert len(pairs) == len(source) // side**2
        known = {source[index].tobytes(): source.labels[index] for index in range(len(source))}
        for image, mask in [(pair.images[pair.index], pair.mask) for pair in pairs[:20]]:
            for part in range(side**2):
                x, y = 28 * (part % side), 28 * (part // side)
                garment, classes = (picture.crop((x, y, x + 28, y + 28)) for picture in (image, mask))
                expected = np.where(np.array(garment) > 20, known[garment.tobytes()] + 1, 0)
                assert np.array_equal(np.array(classes), expected)


def test_masks__turned_pictures_palettes_and_reduced_labels(tmp_path):
    image, exif = PIL.Image.new("RGB", (8, 6)), PIL.Image.Exif()
    exif[0x0112] = 6  # lies on its side
    image.save(tmp_path / "image.jpg", exif=exif)
    pair = Pair(FolderImages(tmp_path), 0, tmp_path / "mask.png", "image.jpg")
    mask = PIL.Image.fromarray(np.tile(np.array([0, 1, 2, 255, 7, 0], dtype=np.uint8), (8, 1)))
    mask.putpalette(list(range(255, -1, -1)) * 3)
    mask.save(tmp_path / "mask.png")
    read, classes = masks.read_pair(pair, MAEImageProcessor(), False)
    assert read.shape == (3, 8, 6)
    assert classes[0].tolist() == [0, 1, 2, 255, 7, 0]
    _, classes = masks.read_pair(pair, MAEImageProcessor(), True)
    assert classes[0].tolist() == [255, 0, 1, 255, 6, 255]


def test_data__splits_names_and_masks_without_labels(tmp_path, capsys):
    def opened(**fields):
        args = script.SegmentationArguments(data=str(tmp_path), preset="tiny", **fields)
        return script.open_pairs(args, MAEImageProcessor())

    shapes(tmp_path, 21)
    PIL.Image.new("L", (48, 40), 255).save(tmp_path / "masks" / "3.png")
    train, val, names = opened()
    assert (len(train), len(val), names) == (18, 2, ["0", "1", "2"])  # a tenth of the 20 that show something
    assert not {pair.name for pair in train} & {pair.name for pair in val}
    printed = capsys.readouterr().out
    assert "No folder val" in printed
    assert "2 of 20 images with a label are held out for evaluation, chosen by their names" in printed
    assert "1 masks of train have no pixel that counts: left out" in printed
    (tmp_path / "names.txt").write_text("\ufeffwall\nsquare\ndisc\n")
    assert opened(class_names=[str(tmp_path / "names.txt")])[2] == ["wall", "square", "disc"]
    (tmp_path / "train").mkdir()
    for name in ("images", "masks"):
        (tmp_path / name).rename(tmp_path / "train" / name)
    shapes(tmp_path / "validation", 2)
    train, val, _ = opened()
    assert (len(train), len(val)) == (20, 2)


def test_data__absent_classes_with_names_are_a_warning(tmp_path, capsys):
    def opened(names):
        args = script.SegmentationArguments(data=tmp_path, preset="tiny", class_names=names)
        names = script.open_pairs(args, MAEImageProcessor())[2]
        return names, capsys.readouterr().out

    shapes(tmp_path / "train", 3)
    shapes(tmp_path / "val", 2)
    change_masks(tmp_path / "train", lambda mask: np.where(mask == 2, 0, mask))
    names, printed = opened(["wall", "square", "disc", "sky"])
    assert names == ["wall", "square", "disc", "sky"]
    assert "No mask to train on shows 2 of 4 classes: disc, sky.\n" in printed
    assert "No mask to evaluate on shows 1 of 4 classes: sky.\n" in printed
    names, printed = opened(None)  # the highest class is shown in `val` alone
    assert names == ["0", "1", "2"]
    assert "No mask to train on shows 1 of 3 classes: 2.\n" in printed


# ----------------------------------------------------------------------------------------------------------------------
# Models and runs


def test_model__starts_from_the_encoder_and_its_resampled_positions(checkpoint):
    folder = checkpoint()
    for scratch in (False, True):
        options = {"model_name_or_path": str(folder), "image_size": [64, 32], "from_scratch": scratch}
        args = script.SegmentationArguments(data="somewhere", **options)
        model = script.build_segmenter(args, script.build_encoder_config(args), ["a", "b"])
        ours = model.backbone.mae.state_dict()
        theirs = MAEModel.from_pretrained(folder, image_size=(64, 32)).state_dict()
        assert ours.keys() == theirs.keys()
        same = [
            torch.equal(ours[name], theirs[name]) for name in ours if name.endswith("weight") and "norm" not in name
        ]
        assert all(same) is not scratch
        assert ours["embeddings.position_embeddings"].std() > 0.1
    maps = model.backbone(torch.zeros(1, 3, 64, 32)).feature_maps
    assert [tuple(each.shape[2:]) for each in maps] == [(32, 16), (16, 8), (8, 4), (4, 2)]  # strides 2 to 16, patch 8


def sum_of_losses(logits, mask):
    """Adds up the cross-entropy of all pixels of a picture that count, at its own size."""
    logits = torch.nn.functional.interpolate(logits, mask.shape, mode="bilinear")
    truth = torch.from_numpy(mask.astype(np.int64))[None]
    return torch.nn.functional.cross_entropy(logits, truth, ignore_index=255, reduction="sum").item()


@pytest.mark.slow
def test_run__learns_and_reports_what_the_saved_model_does(checkpoint, tmp_path, capsys):
    data = tmp_path / "data"
    shapes(data / "train", 9)
    shapes(data / "val", 7)  # of the same seed: can be learned by heart
    arguments = ["--model_name_or_path", checkpoint(), "--data", data, "--class_names", "wall", "square", "disc"]
    arguments += ["--max_steps", 50, "--learning_rate", "1e-2", "--per_device_train_batch_size", 4, "--min_scale", 1]
    arguments += ["--max_scale", 1.2, "--gradient_accumulation_steps", 2, "--logging_steps", 1, "--drop_path_rate", 0]
    arguments += ["--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", 50]
    run(*arguments, "--output_dir", tmp_path / "out", "--per_device_eval_batch_size", 3, CHECKPOINTING)
    printed = capsys.readouterr().out
    assert "3: wall, square, disc" in printed
    assert "Batch    8 over 1 process(es)" in printed
    assert "32 x 32 pixels, 4 x 4 patches" in printed

    state = json.loads((tmp_path / "out" / "checkpoint-50" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses[0] == pytest.approx(1.4 * np.log(3), rel=0.2)  # of guesses, twice with the auxiliary head's 0.4
    assert losses[-1] < losses[0] / 2

    model = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "wall", 1: "square", 2: "disc"}
    both, either, sums = np.zeros(3), np.zeros(3), np.zeros(3)
    for number in range(7):
        pixel_values = processor(PIL.Image.open(data / f"val/images/{number}.png"), return_tensors="pt").pixel_values
        mask = np.array(PIL.Image.open(data / f"val/masks/{number}.png"))
        with torch.no_grad():
            outputs = model(pixel_values)
        predicted = processor.post_process_semantic_segmentation(outputs, [mask.shape])[0].numpy()
        for index in range(3):
            both[index] += ((predicted == index) & (mask == index)).sum()
            either[index] += (((predicted == index) | (mask == index)) & (mask != 255)).sum()
        sums += [(predicted == mask).sum(), sum_of_losses(outputs.logits, mask), (mask != 255).sum()]
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    expected = {f"eval_iou_{name}": iou for name, iou in zip(("wall", "square", "disc"), both / either, strict=True)}
    expected |= {
        "eval_mean_iou": (both / either).mean(),
        "eval_pixel_accuracy": sums[0] / sums[2],
        "eval_loss": sums[1] / sums[2],
    }
    assert {name: results[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert results["eval_mean_iou"] > 0.6  # background alone gives 0.2
    assert PIL.Image.open(tmp_path / "out" / "segmentation.png").size == (6 * 128 + 40, 4 * 132 + 40)

    again = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    again.save_pretrained(tmp_path / "copy")
    copy = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "copy").eval()
    assert torch.equal(copy(pixel_values).logits, model(pixel_values).logits)

    run(*arguments, "--output_dir", tmp_path / "out")
    assert "Continues from" in capsys.readouterr().out


@pytest.mark.slow
def test_run__of_the_sample_with_one_channel(checkpoint, tmp_path, capsys):
    folder = checkpoint(image_size=28, patch_size=4, num_channels=1)
    arguments = ["--model_name_or_path", folder, "--max_steps", 1, "--eval_strategy", "no", "--save_strategy", "no"]
    arguments += ["--sample_side", 2]
    run(*arguments, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "750 and 250 to evaluate on, generated" in printed
    assert "11: background, T-shirt, trouser" in printed
    assert "56 x 56 pixels, 14 x 14 patches" in printed
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert 0 <= results["eval_mean_iou"] <= 1
    assert 0 <= results["eval_pixel_accuracy"] <= 1


@pytest.mark.slow
def test_documentation__python_block_runs(checkpoint, tmp_path, monkeypatch):
    checkpoint(image_size=28, patch_size=4, num_channels=1).rename(tmp_path / "fashion_mnist_sample")
    (tmp_path / "runs").mkdir()
    (tmp_path / "fashion_mnist_sample").rename(tmp_path / "runs" / "fashion_mnist_sample")
    PIL.Image.radial_gradient("L").resize((90, 70)).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "segmentation.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(block, "segmentation.md", "exec"), names)
    assert names["classes"].shape == (70, 90)


@pytest.mark.slow
def test_run__stops_at_a_signal_goes_on_and_refuses_another(checkpoint, tmp_path, monkeypatch):
    shapes(tmp_path / "data", 10)
    arguments = ["--model_name_or_path", checkpoint(), "--data", tmp_path / "data", "--per_device_train_batch_size", 3]
    arguments += ["--max_steps", 4, "--output_dir", tmp_path / "out", "--eval_strategy", "no"]
    step = script.SegmentationTrainer.training_step

    def training_step(trainer, *args, **kwargs):
        if trainer.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(script.SegmentationTrainer, "training_step", training_step)
    with pytest.raises(RunStopped, match="step 2 of 4") as stopped:
        run(*arguments)
    assert stopped.value.exit_status == 128 + signal.SIGTERM
    assert not (tmp_path / "out" / "eval_results.json").exists()
    with pytest.raises(ValueError, match="(?s)out holds another run.*from_scratch: the default there, True now"):
        run(*arguments, "--from_scratch")
    path = tmp_path / "data" / "masks" / "3.png"
    mask = np.array(PIL.Image.open(path))
    PIL.Image.fromarray(np.where(mask == 1, 2, mask)).save(path)
    with pytest.raises(ValueError, match="(?s)out holds another run.*images: "):
        run(*arguments)
    PIL.Image.fromarray(mask).save(path)
    run(*arguments)
    assert (tmp_path / "out" / "eval_results.json").exists()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["data"] == os.fspath(tmp_path / "data")


@pytest.fixture
def segmenter(tiny_config, tmp_path):
    """Saves a segmenter of three named classes whose masks count from 1, and returns its folder."""
    names = dict(enumerate(("wall", "square", "disc")))
    sizes = {"hidden_size": 16, "auxiliary_channels": 16, "id2label": names}
    encoder = tiny_config(feature_pyramid_size=16)
    config = UperNetConfig(backbone_config=encoder, **sizes, reduce_labels=True, window_size=(32, 32))
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path / "segmenter")
    size = {"height": 32, "width": 32}
    MAEImageProcessor(size=size, do_center_crop=False).save_pretrained(tmp_path / "segmenter")
    return tmp_path / "segmenter"


def counted_from_1(folder):
    change_masks(folder, lambda mask: np.where(mask == 255, 255, mask + 1).astype(np.uint8))


def test_eval_only__gives_the_figures_of_the_maps(segmenter, tmp_path, capsys, log):
    counted_from_1(shapes(tmp_path / "data" / "train", 2))
    counted_from_1(shapes(tmp_path / "data" / "val", 3))
    given = ["--model_name_or_path", segmenter]
    (tmp_path / "data" / "val" / "masks" / "spare.png").write_bytes(b"")
    run(*given, "--data", tmp_path / "data", "--eval_only", "--output_dir", tmp_path / "out")
    assert "1 masks in" in capsys.readouterr().out  # has no image
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json", "segmentation.png"]
    run(*given, "--data", tmp_path / "data" / "val" / "images", "--predict_only", "--output_dir", tmp_path / "maps")
    figures = ConfusionMatrix(3)
    for number in range(3):
        map_and_mask = (tmp_path / "maps" / f"{number}.png", tmp_path / "data" / "val" / "masks" / f"{number}.png")
        figures.add(*(torch.from_numpy(masks.read_mask(path, reduce_labels=True)).long() for path in map_and_mask))
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["num_images"] == 3
    expected, by_class = figures.figures()
    assert {name: found["metrics"][f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["metrics"]["eval_iou_disc"] == pytest.approx(by_class[2].item(), abs=1e-6)
    assert "was trained on" not in log()
    (segmenter / "run.json").write_text(json.dumps({"data": os.fspath(tmp_path / "data" / "val")}))
    run(*given, "--data", tmp_path / "data" / "val", "--eval_only", "--output_dir", tmp_path / "again")
    assert f"also those that {segmenter} was trained on" in log()


def test_segmenter__is_trained_further_with_all_its_weights(segmenter, tmp_path, capsys):
    def built(**settings):
        args = script.SegmentationArguments(model_name_or_path=segmenter, data=tmp_path, **settings)
        config = script.build_encoder_config(args)
        model = script.build_segmenter(args, config, settings.get("class_names") or ["wall", "square", "disc"])
        return model.state_dict(), capsys.readouterr().out

    before = UperNetForSemanticSegmentation.from_pretrained(segmenter).state_dict()
    same, printed = built()
    assert same.keys() == before.keys()
    assert all(torch.equal(same[name], before[name]) for name in before)
    assert "start anew" not in printed
    other, printed = built(class_names=["a", "b"], image_size=64)
    assert other["decode_head.classifier.weight"].shape[0] == 2
    changed = {name for name in before if not torch.equal(other[name], before[name])}
    assert {name for name in changed if ".classifier." not in name} == {"backbone.mae.embeddings.position_embeddings"}
    assert "The classes differ from the 3 that the model knows: they start anew" in printed
    fresh, _ = built(from_scratch=True)
    assert not torch.equal(fresh["decode_head.bottleneck.conv.weight"], before["decode_head.bottleneck.conv.weight"])
    with pytest.raises(ValueError, match="other sizes than `feature_pyramid_size` and `head_size` say"):
        built(head_size=24)


@pytest.mark.slow
def test_run__from_a_segmenter_keeps_its_classes_and_the_numbers_of_its_masks(segmenter, tmp_path):
    counted_from_1(shapes(tmp_path / "data", 5))
    arguments = ["--data", tmp_path / "data", "--max_steps", 1, "--eval_strategy", "no", "--save_strategy", "no"]
    arguments += ["--per_device_train_batch_size", 2, "--output_dir", tmp_path / "out"]
    run("--model_name_or_path", segmenter, *arguments)
    config = UperNetConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == {0: "wall", 1: "square", 2: "disc"}
    assert config.reduce_labels is True


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


def change_masks(folder, change):
    for path in (folder / "masks").iterdir():
        PIL.Image.fromarray(change(np.array(PIL.Image.open(path)))).save(path)


def remove(paths):
    for path in list(paths):
        path.unlink()


def change_mask(folder, change):
    mask = folder / "masks" / "1.png"
    change(PIL.Image.open(mask)).save(mask)


BROKEN = {
    "": lambda folder: None,
    "cut": lambda folder: (folder / "images" / "1.png").write_bytes((folder / "images" / "1.png").read_bytes()[:60]),
    "no mask": lambda folder: remove([folder / "masks" / "1.png"]),
    "no images": lambda folder: remove((folder / "images").iterdir()),
    "no masks": lambda folder: (folder / "masks").rename(folder / "labels"),
    "other size": lambda folder: change_mask(folder, lambda mask: mask.resize((40, 48))),
    "colours": lambda folder: change_mask(folder, lambda mask: mask.convert("RGB")),
    "binary": lambda folder: change_masks(folder, lambda mask: np.where(mask == 1, 255, 0).astype(np.uint8)),
    "two classes of three": lambda folder: change_masks(folder, lambda mask: np.where(mask == 1, 0, mask)),
    "one image": lambda folder: remove([*folder.glob("images/[1-9].png"), *folder.glob("masks/[1-9].png")]),
}


@pytest.mark.parametrize(
    ("how", "arguments", "error", "message"),
    [
        ("cut", [], OSError, r"images/1.png or its mask can't be read"),
        ("no mask", [], ValueError, r"1 of 4 images .*1.png: expected .*masks/1.png"),
        ("no images", [], ValueError, r"no images in .*images'"),
        ("no masks", [], OSError, r"no folder 'masks'"),
        ("other size", [], ValueError, r"masks/1.png .*\(48, 40\).*\(40, 48\)"),
        ("colours", [], ValueError, r"masks/1.png has format PNG and mode RGB"),
        ("binary", [], ValueError, r"1 class\(es\).*two classes hold 0 and 1"),
        ("one image", [], ValueError, r"3 class\(es\), 1 images to train on and 0 to evaluate on.* two are needed"),
        ("", ["--class_names", "a", "b"], ValueError, r"has the class 2, .*2 `class_names`.*\[0, 2\)"),
        ("", ["--class_names", "none.txt"], OSError, r"none\.txt"),
        ("", ["--class_names", "a", "b", "a"], ValueError, r"`class_names` has a more than once"),
        ("binary", ["--class_names", "a", "b"], ValueError, r"1 of 2 classes; two are needed.* not 0 and 255"),
        ("", ["--reduce_labels", "--class_names", "a"], ValueError, r"class 2, .*1 .*\[1, 2\), or 0 and 255 where"),
        ("two classes of three", [], ValueError, r"No mask .* shows the class\(es\) 1, but higher"),
        ("", ["--image_size", "30"], ValueError, r"\(30, 30\) is not a multiple .*\(8, 8\).*\(32, 32\)"),
        ("", ["--image_size", "32", "64", "--rotate90"], ValueError, r"`rotate90` .*32 x 64"),
        ("", ["--per_device_train_batch_size", "1"], ValueError, r"needs 2 images on each of 1 device"),
        ("", ["--eval_only"], ValueError, "checkpoint does not segment. Train it first"),
        ("", ["--eval_only", "--class_names", "a"], ValueError, "`class_names` are those of the segmenter"),
        ("", ["--eval_only", "--predict_only"], ValueError, "`eval_only` needs .* and no `predict_only`"),
        ("", ["--model_name_or_path", ""], ValueError, r"`model_name_or_path` is missing: .*`preset`"),
    ],
)
def test_mistakes__are_named(checkpoint, tmp_path, how, arguments, error, message):
    BROKEN[how](shapes(tmp_path / "data", 4))
    given = ["--model_name_or_path", checkpoint(), "--data", tmp_path / "data", "--output_dir", tmp_path / "out"]
    with pytest.raises(error, match=message):
        run(*given, *arguments)


def test_settings__of_python_code_are_those_of_the_command(tmp_path):
    (tmp_path / "names.txt").write_text("wall\nsquare\n")
    for arguments_class in (script.SegmentationArguments, DetectionArguments):
        given = {"data": tmp_path, "model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "out"}
        for names in (
            tmp_path / "names.txt",
            str(tmp_path / "names.txt"),
            ("wall", "square"),
        ):
            args = arguments_class(**given, image_size=64, class_names=names)
            assert args.class_names == ["wall", "square"]
        assert args.image_size == [64]
        assert arguments_class(**given, image_size=(64, 32)).image_size == [64, 32]
        assert {name: getattr(args, name) for name in given} == {name: str(path) for name, path in given.items()}


@pytest.mark.parametrize("arguments_class", [script.SegmentationArguments, DetectionArguments])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_scale": 2, "max_scale": 1}, "`min_scale` 2 must be positive and at most `max_scale` 1"),
        ({"min_scale": 0}, "`min_scale` 0 must be positive"),
        ({"image_size": [1, 2, 3]}, r"`image_size` must be a side, or height and width, .*\[1, 2, 3\]"),
        ({"image_size": 0}, r"`image_size` must be a side, .*got \[0\]"),
        ({"class_names": {1: "a", 2: "b"}}, "`class_names` must be a list, each a text, got {1: 'a', 2: 'b'}"),
    ],
)
def test_settings__that_make_no_sense_are_refused(arguments_class, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments_class(data="somewhere", preset="tiny", **settings)


def test_segmenter__is_in_float32_whatever_its_checkpoint_is(tiny_model, tmp_path):
    """The encoder alone would have the type of the checkpoint, and could not be run with the head."""
    tiny_model().bfloat16().save_pretrained(tmp_path / "model")
    args = script.SegmentationArguments(model_name_or_path=str(tmp_path / "model"), data="x", head_size=16)
    model = script.build_segmenter(args, script.build_encoder_config(args), ["a", "b"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("settings", [{"image_size": [64]}, {"from_scratch": True}])
def test_evaluation__refuses_settings_of_training(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is for training"):
        script.SegmentationArguments(model_name_or_path="model", data="x", eval_only=True, **settings)


def test_held_out__0_evaluates_on_the_training_images(tmp_path, capsys):
    shapes(tmp_path, 3)
    args = script.SegmentationArguments(data=tmp_path, preset="tiny", held_out=0)
    train, val, _ = script.open_pairs(args, MAEImageProcessor())
    assert len(train) == 3
    assert train == val
    assert "`held_out` is 0: figures are those of the training images" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# Masks of other kinds


def test_masks__of_python_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "mask.npy", np.array([{"harm": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        masks.read_mask(tmp_path / "mask.npy")


def test_masks__of_16_bits_and_arrays_hold_the_same_classes(tmp_path):
    classes = np.tile(np.array([0, 1, 200, 255], dtype=np.uint8), (3, 1))
    deep = classes.astype(np.uint16)
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    np.save(tmp_path / "array.npy", np.where(classes == 255, -1, classes.astype(np.int32)))
    PIL.Image.fromarray(np.where(deep == 255, 65535, deep)).save(tmp_path / "ones.png")
    for name in ("deep.png", "array.npy", "ones.png"):
        assert np.array_equal(masks.read_mask(tmp_path / name), classes), name
    np.save(tmp_path / "many.npy", np.array([[0, 300]]))
    np.save(tmp_path / "floats.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="many.npy has the class 300"):
        masks.read_mask(tmp_path / "many.npy")
    with pytest.raises(ValueError, match="floats.npy has .*float64"):
        masks.read_mask(tmp_path / "floats.npy")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks__of_few_bits_hold_numbers_and_not_greys(tmp_path, bits):
    """A PNG of grey by hand: Pillow writes none of 2 or 4 bits, and stretches what it reads to 8."""
    classes = (np.arange(8) % 2**bits).astype(np.uint8).reshape(2, 4)
    packed = np.packbits(np.unpackbits(classes[..., None], axis=2)[..., -bits:].reshape(2, -1), axis=1)
    header = struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    ]
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert masks.read_mask(tmp_path / "mask.png").tolist() == classes.tolist()


def window_of(path, rows, columns):
    scene = open_scene(str(path))
    return Window(scene, rows, columns)


MASKS = {
    "big-endian.tif": ("uint16", {"byteorder": ">", "compression": "deflate"}),
    "signed.tif": ("int32", {"byteorder": ">", "compression": "deflate"}),
    "long.tif": ("int64", {}),
    "unsigned.tif": ("uint64", {}),
    "white.tif": ("uint8", {"photometric": "miniswhite"}),
    "palette.tif": ("uint8", {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}),
    "turned.tif": ("uint8", {"extratags": [(274, "H", 1, 6, True)]}),
    "1.tif": (1, "minisblack"),
    "2.tif": (2, "minisblack"),
    "4.tif": (4, "miniswhite"),
    "bits.tif": (1, "palette"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks__of_every_tiff_hold_the_numbers_of_the_file_whole_and_in_windows(tmp_path, name):
    (kind, options), path = MASKS[name], tmp_path / name
    classes = np.random.default_rng(0).integers(0, 2**kind if isinstance(kind, int) else 200, (12, 16)).astype(np.uint8)
    if isinstance(kind, int):
        write_few_bits(path, classes, kind, options)
    else:
        tifffile.imwrite(path, classes.astype(kind), metadata=None, **options)
    classes = np.rot90(classes, -1) if name == "turned.tif" else classes
    assert np.array_equal(masks.read_mask(path), classes)
    rows, columns = slice(2, 9), slice(5, 11)
    assert np.array_equal(masks.read_mask(path, window=window_of(path, rows, columns)), classes[rows, columns])


def test_masks__of_colours_are_refused_whoever_reads_them(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8, 3), np.uint16), photometric="rgb")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        with pytest.raises(masks.MaskError, match=f"{name} has .*not their colours"):
            masks.read_mask(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.gif", "a.npz"])
def test_masks__of_several_pages_are_refused_each_of_which_may_be_a_class(tmp_path, name):
    classes = np.repeat(np.eye(3, 4, dtype=np.uint8)[:, None], 2, axis=1)
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, classes, photometric="minisblack")
    elif name == "a.npz":
        np.savez(tmp_path / name, *classes)
    else:
        pages = [PIL.Image.fromarray(page) for page in classes]
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.raises(masks.MaskError, match=f"{name} has 3 pages"):
        masks.read_mask(tmp_path / name)
    if name != "a.npz":
        assert np.array_equal(masks.read_mask(tmp_path / name, pages="first"), classes[0])


def test_masks__do_not_count_where_a_mask_of_their_own_leaves_pixels_out(tmp_path):
    """As GDAL writes no-data of a file."""
    classes, known = np.array([[1, 1, 0], [0, 2, 0]], np.uint8), np.array([[True, False, True], [True, True, False]])
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(classes, photometric="minisblack", metadata=None)
        tiff.write(known, photometric="mask", subfiletype=4, metadata=None)
    assert masks.read_mask(tmp_path / "a.tif").tolist() == [[1, 255, 0], [0, 2, 255]]
    assert masks.read_mask(tmp_path / "a.tif", reduce_labels=True).tolist() == [[0, 255, 255], [255, 1, 255]]


def test_masks__are_turned_as_their_own_orientation_says(tmp_path):
    classes, tag = np.array([[0, 1], [2, 3]], dtype=np.uint8), PIL.Image.Exif()
    tag[0x0112] = 6
    PIL.Image.fromarray(classes).save(tmp_path / "mask.png", exif=tag)
    assert masks.read_mask(tmp_path / "mask.png").tolist() == [[2, 0], [3, 1]]


def test_folder__pairs_images_with_masks_of_any_kind(tmp_path):
    shapes(tmp_path, 3)
    before = masks.read_pair(masks.folder_pairs(str(tmp_path), "train")[1], MAEImageProcessor())[1]
    np.save(tmp_path / "masks" / "1.npy", np.array(PIL.Image.open(tmp_path / "masks" / "1.png")))
    (tmp_path / "masks" / "1.png").unlink()
    pairs = masks.folder_pairs(str(tmp_path), "train")
    assert [pair.mask.name for pair in pairs] == ["0.png", "1.npy", "2.png"]
    assert np.array_equal(masks.read_pair(pairs[1], MAEImageProcessor())[1], before)
    (tmp_path / "masks" / "1.npy").rename(tmp_path / "masks" / "1.NPY")
    (tmp_path / "masks" / "1.xml").write_text("<annotation/>")  # what tools leave beside masks is none
    assert np.array_equal(
        masks.read_pair(masks.folder_pairs(str(tmp_path), "train")[1], MAEImageProcessor())[1], before
    )
    PIL.Image.new("L", (8, 8)).save(tmp_path / "masks" / "1.png")
    with pytest.raises(ValueError, match=r"1\.NPY and .*1\.png are masks of one image"):
        masks.folder_pairs(str(tmp_path), "train")


def test_folder__masks_may_be_called_mask(tmp_path):
    """As in ISIC and many others. A mask that is called as its image is counts before."""
    folder = shapes(tmp_path, 2) / "masks"
    (folder / "0.png").rename(folder / "0_segmentation.png")
    shutil.copy(folder / "1.png", folder / "1_mask.png")
    pairs = masks.folder_pairs(str(tmp_path), "train")
    assert [pair.mask.name for pair in pairs] == ["0_segmentation.png", "1.png"]
    assert "1 masks in" in pairs[0].images.notes[-1]
    shutil.copy(folder / "1.png", folder / "0_gt.png")
    with pytest.raises(ValueError, match="0_gt.png and .*0_segmentation.png are masks of one image"):
        masks.folder_pairs(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train/{}", "validation/{}"),
        ("Train/{}", "Val/{}"),
        ("training_set/{}", "test2017/{}"),
        ("{}/train", "{}/val"),
        ("{}/Training", "{}/Validation"),
        ("set/{}/train", "set/{}/valid"),
    ],
)
def test_folder__splits_are_found_in_both_layouts_by_any_usual_name(tmp_path, train, val):
    shapes(tmp_path / "a", 3)
    shapes(tmp_path / "b", 2)
    for kind in ("images", "masks"):
        for source, layout in (("a", train), ("b", val)):
            place = tmp_path / "data" / layout.format(kind)
            place.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / source / kind).rename(place)
    for split, layout, count in (("train", train, 3), ("val", val, 2)):
        pairs = masks.folder_pairs(str(tmp_path / "data"), split)
        places = [tmp_path / "data" / layout.format(kind) for kind in ("images", "masks")]
        assert [Path(pair.name) for pair in pairs] == [places[0] / f"{number}.png" for number in range(count)]
        assert [pair.mask for pair in pairs] == [places[1] / f"{number}.png" for number in range(count)]


def test_folder__names_in_capitals_and_what_is_missing(tmp_path):
    shapes(tmp_path, 2)
    (tmp_path / "images").rename(tmp_path / "Images")
    assert len(masks.folder_pairs(str(tmp_path), "train")) == 2
    assert masks.folder_pairs(str(tmp_path), "val") == []
    (tmp_path / "masks").rename(tmp_path / "other")
    for folder, missing in ((tmp_path, "masks"), (tmp_path / "nowhere", "images")):
        with pytest.raises(OSError, match=f"{folder} has no folder '{missing}'. Expected .*images/train/"):
            masks.folder_pairs(str(folder), "train")


def test_folder__what_is_left_out_is_said(tmp_path, capsys):
    shapes(tmp_path, 4)
    (tmp_path / "images" / "3.png").unlink()
    (tmp_path / "images" / "4.heic").write_text("no kind of image that is read")
    (tmp_path / "images" / "0_mask.png").write_bytes((tmp_path / "masks" / "0.png").read_bytes())
    (tmp_path / "masks" / "0_mask.png").write_bytes((tmp_path / "masks" / "0.png").read_bytes())
    args = script.SegmentationArguments(data=str(tmp_path), preset="tiny", held_out=0.3)
    script.open_pairs(args, MAEImageProcessor())
    printed = capsys.readouterr().out
    assert "3 images in" in printed
    assert "other files there are left out: 1 x .heic, 1 x .png, 1 x masks by their names" in printed
    assert f"2 masks in {tmp_path / 'masks'} have no image, first {tmp_path / 'masks' / '0_mask.png'}" in printed


def test_folder__what_lies_beside_splits_is_named(tmp_path):
    shapes(tmp_path / "a", 2)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "street").mkdir(parents=True)
        (tmp_path / "a" / kind).rename(tmp_path / "data" / kind / "train")
    pairs = masks.folder_pairs(str(tmp_path / "data"), "train")
    assert len(pairs) == 2
    assert pairs[0].images.notes == [f"No splits and left out: street in {tmp_path / 'data' / 'images'}."]


def test_folder__two_images_with_one_mask_are_refused(tmp_path):
    shapes(tmp_path, 2)
    PIL.Image.new("RGB", (48, 40)).save(tmp_path / "images" / "1.jpg")
    with pytest.raises(ValueError, match=r"1\.jpg and .*1\.png have one mask, .*masks/1\.png"):
        masks.folder_pairs(str(tmp_path), "train")


def test_folder__masks_lie_below_linked_folders_as_images_do(tmp_path):
    shapes(tmp_path / "far", 2)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "north").symlink_to(tmp_path / "far" / name)
    pairs = masks.folder_pairs(str(tmp_path / "data"), "train")
    expected = masks.folder_pairs(str(tmp_path / "far"), "train")
    for ours, theirs in zip(pairs, expected, strict=True):
        assert ours.mask.samefile(theirs.mask)
        assert os.path.samefile(ours.name, theirs.name)


def test_fingerprint__changes_with_images_masks_and_their_choice_and_not_with_their_place(tmp_path):
    def fingerprint(folder=tmp_path / "data", **options):
        return masks.fingerprint_of_pairs(masks.folder_pairs(str(folder), "train", **options))

    shapes(tmp_path / "data", 3)
    first = fingerprint()
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == first
    image, mask = (tmp_path / "data" / name / "1.png" for name in ("images", "masks"))
    found = [first, masks.fingerprint_of_pairs(masks.folder_pairs(str(tmp_path / "data"), "train")[:2])]
    for path in (image, mask):
        before = path.read_bytes()
        PIL.Image.effect_noise((48, 40), 50).save(path)  # another content of the same name
        found.append(fingerprint())
        path.write_bytes(before)
    assert fingerprint() == first
    for name in ("images", "masks"):  # another path with the same name at its end
        (tmp_path / "data" / name / "north").mkdir()
        (tmp_path / "data" / name / "0.png").rename(tmp_path / "data" / name / "north" / "0.png")
    found.append(fingerprint())
    assert len(set(found)) == len(found)


def test_images__of_any_kind_are_read_as_their_processor_says(tmp_path):
    """CT slices: signed values, whose range is a setting of the processor."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "images" / "slice.npy", np.array([[-1000, 0], [1000, 0]], dtype=np.int16))
    np.save(tmp_path / "masks" / "slice.npy", np.array([[0, 1], [1, 0]]))
    (pair,) = masks.folder_pairs(str(tmp_path), "train")
    processor = MAEImageProcessor(num_channels=1, value_range=[-1000, 1000])
    assert masks.read_pair(pair, processor)[0].tolist() == [[[0, 127.5], [255, 127.5]]]
    with pytest.raises(ValueError, match="slice.npy: .*int16 .*`value_range`"):
        masks.read_pair(pair, MAEImageProcessor(num_channels=1))
