# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Fine-tuning and linear probing, run as a user runs them but in this process; augmentation; labels; how runs end."""

import json
import os
import re
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import PLAIN
from safetensors.torch import load_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification

pytest.importorskip("kornia")

from hf_mae import MAEForImageClassification, MAEForPreTraining, MAEImageProcessor
from hf_mae.data.augmentation import BatchAugmentation, RandomAugmentation, RandomOrientation
from hf_mae.data.datasets import ClassificationDataset, collate_labelled
from hf_mae.data.labels import align_all_labels, check_labels, open_labelled
from hf_mae.data.sources import open_images
from hf_mae.evaluation.probing import ProbingArguments, ProbingTrainer, probe_command
from hf_mae.finetuning.classification import (
    ClassificationArguments,
    ClassificationTrainer,
    build_classifier,
    finetune,
    finetune_command,
)
from hf_mae.finetuning.settings import FineTuningArguments, check_sources
from hf_mae.finetuning.trainer import FineTuningTrainer

# ----------------------------------------------------------------------------------------------------------------------
# Fine-tuning


@pytest.mark.slow
def test_fine_tuning__learns_saves_goes_on_and_evaluates(call, pretrained, folder, tmp_path):
    common = ["--data", folder, "--output_dir", tmp_path / "out", "--per_device_train_batch_size", "8"]
    arguments = ["--model_name_or_path", pretrained, *common, *PLAIN, "--learning_rate", "1e-2", "--warmup_steps", "0"]
    printed = call(finetune_command, *arguments, "--num_train_epochs", "6")
    assert "24 images" in printed
    assert "3 classes" in printed
    metrics = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert metrics["eval_accuracy"] == 1.0
    assert metrics["eval_top5_accuracy"] == 1.0
    model = MAEForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert MAEImageProcessor.from_pretrained(tmp_path / "out").crop_height_width == (32, 32)

    printed = call(finetune_command, *arguments, "--num_train_epochs", "6")
    assert f"Continues from {tmp_path / 'out' / 'checkpoint-18'}" in printed
    assert json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_accuracy"] == 1.0


@pytest.mark.slow
def test_frozen_encoder__also_of_random_weights(call, short):
    """Which shows what pre-training brings to frozen features."""
    arguments = ["--num_trainable_layers", 0, "--max_steps", 1, "--overwrite_output_dir"]
    printed = [call(finetune_command, *short, *arguments, *more) for more in ([], ["--from_scratch"])]
    shares = [re.search(r"([\d.]+) M of [\d.]+ M parameters are trained", text)[1] for text in printed]
    assert shares == ["0.00", "0.00"]


@pytest.mark.slow
def test_fine_tuning__seed_decides_on_everything(call, pretrained, folder, tmp_path):
    """Fresh weights, order, augmentation: the same command gives the same model."""
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--from_scratch", "--max_steps", "2"]
    arguments += ["--per_device_train_batch_size", "6", "--eval_strategy", "no", "--save_strategy", "no"]
    runs = {}
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        torch.manual_seed(len(runs))  # whatever was before
        call(finetune_command, *arguments, "--seed", seed, "--output_dir", tmp_path / name)
        runs[name] = load_file(tmp_path / name / "model.safetensors")
    assert all(torch.equal(value, runs["b"][key]) for key, value in runs["a"].items())
    name = "mae.layers.0.mlp.fc1.weight"
    assert not torch.allclose(runs["a"][name], runs["c"][name], atol=1e-3)


def test_fine_tuning__processes_draw_different_random_numbers(tiny_config, tmp_path, monkeypatch):
    """And the same ones at the same position of a run, whatever was drawn before."""
    model = MAEForImageClassification(tiny_config(num_labels=2, drop_path_rate=0.9))
    trainer = FineTuningTrainer(model, FineTuningArguments(str(tmp_path), use_cpu=True, eval_strategy="no"))
    trainer.current_gradient_accumulation_steps = 1  # which `train` sets
    batch = {"pixel_values": torch.randn(8, 3, 32, 32), "labels": torch.tensor([0, 1] * 4)}

    def losses(process, step):
        monkeypatch.setattr(FineTuningArguments, "process_index", process)
        trainer.state.global_step = step
        return [float(trainer.training_step(trainer.model, batch)) for _ in range(2)]  # two accumulated batches

    first, second = losses(0, step=1), losses(0, step=2)
    assert losses(0, step=1) == first
    assert len({*first, *second, *losses(1, step=2)}) == 6


def test_trainer__of_a_data_set_of_ones_own_evaluates_the_loss(tiny_config, tmp_path):
    model = MAEForImageClassification(tiny_config(num_labels=3))
    images = [{"pixel_values": torch.randn(3, 32, 32), "labels": number % 3} for number in range(8)]
    arguments = FineTuningArguments(str(tmp_path), use_cpu=True, per_device_eval_batch_size=4)
    trainer = FineTuningTrainer(model, arguments, train_dataset=images, eval_dataset=images)
    pixel_values = torch.stack([image["pixel_values"] for image in images])
    labels = torch.tensor([image["labels"] for image in images])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(model(pixel_values, labels=labels).loss.item(), rel=1e-5)


def test_saved_heads__have_weights_that_others_may_read(tmp_path):
    """Heads are models of transformers, whose weights only their owner may read as safetensors writes them."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    trainer = FineTuningTrainer(
        Dinov2Model(Dinov2Config(**sizes)), FineTuningArguments(str(tmp_path), use_cpu=True, eval_strategy="no")
    )
    before = os.umask(0o027)
    try:
        trainer.save_model(str(tmp_path / "head"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "head").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == 0o640


@pytest.mark.slow
def test_fine_tuning__with_every_augmentation_and_partly_frozen(call, pretrained, folder, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--output_dir", tmp_path / "out"]
    arguments += ["--per_device_train_batch_size", "6", "--num_train_epochs", "2", "--num_trainable_layers", "1"]
    call(finetune_command, *arguments, "--image_size", "48", "--pooling", "class", "--learning_rate", "1e-3")
    before = MAEForPreTraining.from_pretrained(pretrained).mae.layers
    after = MAEForImageClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(after.mae.layers[0].mlp.fc1.weight, before[0].mlp.fc1.weight)
    assert not torch.equal(after.mae.layers[1].mlp.fc1.weight, before[1].mlp.fc1.weight)
    assert (after.config.image_size, after.config.pooling) == (48, "class")


@pytest.mark.slow
def test_fine_tuning__another_set_of_classes_starts_anew(call, pretrained, folder, tmp_path):
    arguments = ["--data", folder, "--per_device_train_batch_size", "8", *PLAIN, "--max_steps", "1"]
    first = ["--model_name_or_path", pretrained, "--output_dir", tmp_path / "first"]
    call(finetune_command, *arguments, *first, "--learning_rate", "1e-2")
    for split in ("train", "val"):
        (folder / split / "red").rename(folder / split / "crimson")
    second = ["--model_name_or_path", tmp_path / "first", "--output_dir", tmp_path / "second"]
    printed = call(finetune_command, *arguments, *second, "--learning_rate", "1e-9")
    assert "starts anew" in printed
    model = MAEForImageClassification.from_pretrained(tmp_path / "second")
    assert model.config.label2id == {"blue": 0, "crimson": 1, "green": 2}
    assert model.classifier.weight.abs().max() < 1e-4


@pytest.fixture
def ages(tmp_path):
    """Pictures whose brightness is a number near 1000, in a table of each split."""
    for split, count in (("train", 16), ("val", 6)):
        (tmp_path / "ages" / split).mkdir(parents=True)
        rows = ["file_name,age"]
        for number in range(count):
            grey = 255 * number // (count - 1)
            PIL.Image.new("RGB", (40, 40), (grey, grey, grey)).save(tmp_path / "ages" / split / f"{number}.png")
            rows.append(f"{number}.png,{1000 + grey / 20}")
        (tmp_path / "ages" / split / "metadata.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "ages"


def test_numbers__are_those_of_the_data_in_checkpoints_and_where_training_goes_on(call, pretrained, ages, tmp_path):
    """They are learned with mean 0 and deviation 1, of which what is saved and what is loaded knows nothing."""
    common = ["--data", ages, "--label_column", "age", "--problem_type", "regression", "--num_train_epochs", 2, *PLAIN]
    common += ["--per_device_train_batch_size", 8, "--drop_path_rate", 0]

    def run(model, name, *flags):
        call(finetune_command, "--model_name_or_path", model, "--output_dir", tmp_path / name, *common, *flags)
        file = "evaluation.json" if "--eval_only" in flags else "run.json"
        return json.loads((tmp_path / name / file).read_text())["metrics"]["eval_mae"]

    mae = run(pretrained, "first", "--learning_rate", "1e-3")
    assert mae < 6.4  # the range of the numbers is 12.75
    for number, model in enumerate((tmp_path / "first", tmp_path / "first" / "checkpoint-4")):
        assert run(model, f"evaluated-{number}", "--eval_only") == pytest.approx(mae, abs=1e-3)
        assert run(model, f"goes-on-{number}", "--learning_rate", "1e-12") == pytest.approx(mae, abs=1e-3)
    shutil.rmtree(tmp_path / "first" / "checkpoint-4")
    weights = load_file(tmp_path / "first" / "model.safetensors")
    run(pretrained, "first", "--learning_rate", "1e-3")  # the second epoch anew
    again = load_file(tmp_path / "first" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_eval_only__takes_the_classifier_as_it_is_and_refuses_other_words(call, tiny_config, folder, tmp_path):
    """It has class pooling and one class an image, and figures would be taken for those of what was asked for."""
    model = reversed_classifier(tiny_config, tmp_path / "model")
    arguments = ["--model_name_or_path", model, "--data", folder, "--eval_only", "--output_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match="`pooling` of .*model is class, got attentive. Leave it out."):
        call(finetune_command, *arguments, "--pooling", "attentive")
    with pytest.raises(ValueError, match="`problem_type` of .* is single_label_classification, got regression."):
        call(finetune_command, *arguments, "--problem_type", "regression")
    call(finetune_command, *arguments, "--pooling", "class", "--problem_type", "single_label_classification")
    assert (tmp_path / "out" / "evaluation.json").exists()


def reversed_classifier(tiny_config, folder):
    """Saves a classifier of three colours in an order of its own, whose weights are all 1, and returns the folder."""
    names = ["red", "green", "blue"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    model = MAEForImageClassification(tiny_config(pooling="class", **labels))
    nn.init.ones_(model.classifier.weight)
    model.save_pretrained(folder)
    MAEImageProcessor.for_image_size(32).save_pretrained(folder)
    return str(folder)


def test_fine_tuning__given_images_keep_the_numbers_of_their_labels(tiny_config, folder, tmp_path, monkeypatch):
    """In evaluation they are those of the next model, whose training images kept theirs."""
    monkeypatch.setattr("hf_mae.finetuning.classification._build_trainer", lambda *_: pytest.fail("of another order"))
    images = open_labelled(str(folder))
    before = [(each.labels.tolist(), list(each.label_names)) for each in images]
    model = reversed_classifier(tiny_config, tmp_path / "model")
    args = ClassificationArguments(model_name_or_path=model, output_dir=str(tmp_path / "out"), use_cpu=True)
    with pytest.raises(pytest.fail.Exception, match="of another order"):
        finetune(args, images=images)
    assert [(each.labels.tolist(), list(each.label_names)) for each in images] == before
    assert before[0][1] == ["blue", "green", "red"]


def test_fine_tuning__a_classifier_of_other_features_starts_anew(tiny_config, folder, tmp_path, capsys):
    train_images, _ = open_labelled(str(folder))
    model = reversed_classifier(tiny_config, tmp_path / "model")
    for pooling, goes_on in (("class", True), ("mean", False), ("attentive", False)):
        options = {"output_dir": str(tmp_path / "out"), "use_cpu": True, "pooling": pooling}
        built = build_classifier(ClassificationArguments(model_name_or_path=model, **options), train_images)
        assert bool((built.classifier.weight == 1).all()) == goes_on
        assert ("features of `pooling` class" in capsys.readouterr().out) == (not goes_on)
        assert built.config.label2id == {"red": 0, "green": 1, "blue": 2}


def test_fine_tuning__mistakes(call, pretrained, folder, tmp_path):
    with pytest.raises(ValueError, match="`resume_from_checkpoint` is not needed: a run goes on from"):
        ClassificationArguments(model_name_or_path=pretrained, resume_from_checkpoint=tmp_path)
    with pytest.raises(ValueError, match="`model_name_or_path` is missing"):
        call(finetune_command, "--data", folder)
    with pytest.raises(ValueError, match="has no classifier to evaluate"):
        call(finetune_command, "--model_name_or_path", pretrained, "--data", folder, "--eval_only")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    MAEImageProcessor.for_image_size(16).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="holds a ViTForImageClassification. `hf-mae convert` makes a classifier"):
        call(finetune_command, "--model_name_or_path", tmp_path / "vit", "--data", folder, "--eval_only")
    for file in list((folder / "train").rglob("*.png")):
        file.rename(folder / "train" / f"{file.parent.name}-{file.name}")
    with pytest.raises(ValueError, match="has no labels"):
        call(finetune_command, "--model_name_or_path", pretrained, "--data", folder)


@pytest.mark.parametrize("settings", [{"load_best_model_at_end": True}, {"save_strategy": "best"}])
def test_best_model__is_refused_where_none_is_evaluated(call, short, folder, tmp_path, settings):
    """Else the last one would be taken for the best, or no checkpoint be saved."""
    with pytest.raises(ValueError, match="none is the best.*`eval_strategy`"):
        ClassificationArguments(model_name_or_path="model", eval_strategy="no", **settings)
    shutil.rmtree(folder / "val")
    flags = [text for name, value in settings.items() for text in (f"--{name}", value)]
    flags += ["--metric_for_best_model", "accuracy"]
    with pytest.raises(ValueError, match="have images to evaluate on"):
        call(finetune_command, *short, "--held_out", 0, *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.5}, "`learning_rate` follows from `base_learning_rates`"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` cannot handle"),
        ({"fast": True, "max_steps": 5}, "`max_steps` has no effect with `fast`"),
        ({"fast": True, "report_to": "all"}, "`report_to` has no effect with `fast`"),
        ({"fast": True, "save_strategy": "epoch"}, "`save_strategy` has no effect with `fast`"),
        ({"fast": True, "torch_compile": True}, "`torch_compile` has no effect with `fast`"),
        ({"fast": True, "crop_scale_min": 0.5}, "`crop_scale_min` has no effect with `fast`"),
        ({"layer_decay": 0.5}, "`layer_decay` has no effect in a probe, as LARS"),
        ({"fast": True, "adam_beta2": 0.9}, "`adam_beta2` has no effect in a probe"),
        ({"optim": "sgd"}, "`optim` has no effect in a probe"),
        ({"torch_compile_mode": "reduce-overhead", "gradient_accumulation_steps": 2}, "CUDA graphs.* has 2"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` has no effect in a probe"),  # it needs embeddings of text
        ({"gradient_checkpointing": True}, "`gradient_checkpointing` has no effect in a probe"),
        ({"num_neighbors": [5]}, "`num_neighbors` is for k-NN, which `fast` measures"),
        ({"fast": True, "pooling": "attentive", "num_neighbors": [5]}, "`num_neighbors` is for k-NN"),
        ({"fast": True, "num_train_epochs": 0.5}, "must be a whole number.*got 0.5 and 0.111"),
        ({"fast": True, "warmup_steps": 5}, "share, below 1; got 90 and 5"),
    ],
)
def test_linear_probing__settings_without_effect_are_refused(settings, message):
    if "report_to" in settings:
        pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match=message):
        ProbingArguments("out", model_name_or_path="model", use_cpu=True, **settings)


def test_check__adds_to_the_log_only_what_it_finds_itself(folder, log):
    """What a source says, such as which folders are classes, is said when it is opened."""
    pixels = np.zeros((40, 40), np.uint16)
    PIL.Image.fromarray(pixels).save(folder / "train" / "red" / "deep.png")
    sources = open_labelled(str(folder))
    assert log().count(f"folders of {folder / 'train'} are taken for classes") == 1
    check_sources(MAEImageProcessor.for_image_size(32), *sources)
    assert log().count(f"folders of {folder / 'train'} are taken for classes") == 1
    assert "differ in the type of their values: 24 x uint8, 1 x uint16" in log()


def test_labels__of_an_unknown_class_are_refused(folder):
    images = open_images(str(folder), "test")
    with pytest.raises(ValueError, match="has the classes green, red, "):
        align_all_labels(images, ["blue"])
    align_all_labels(images, ["red", "brown", "green", "blue"])
    assert images.labels.tolist() == [3] * 4 + [2] * 4 + [0] * 4
    with pytest.raises(ValueError, match=r"8 of 12 labels are not in \[0, 2\), first 3 of .*blue/0.png"):
        check_labels(images, 2)


# ----------------------------------------------------------------------------------------------------------------------
# Data and augmentation


def test_classification_dataset__crops_with_their_labels(folder):
    images = open_images(str(folder), "train")
    dataset = ClassificationDataset(images, (16, 24), 3)
    samples = [dataset[index] for index in (0, 16)]
    batch = collate_labelled(samples)
    assert batch["pixel_values"].shape == (2, 3, 16, 24)
    assert batch["labels"].tolist() == [0, 2]
    red, blue = (
        batch["pixel_values"][:, 0].float().mean(dim=(1, 2)),
        batch["pixel_values"][:, 2].float().mean(dim=(1, 2)),
    )
    assert (red > blue).tolist() == [False, True]
    torch.manual_seed(1)
    again = dataset[0]["pixel_values"]
    torch.manual_seed(1)
    assert torch.equal(dataset[0]["pixel_values"], again)
    assert not torch.equal(dataset[0]["pixel_values"], again)


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_random_augmentation__changes_the_picture_keeps_its_kind(num_channels):
    augment = RandomAugmentation(num_channels)
    image = (torch.rand(num_channels, 24, 24) * 255).byte()
    results = [augment(image) for _ in range(20)]
    assert {result.dtype for result in results} == {torch.uint8}
    assert {result.shape for result in results} == {image.shape}
    assert sum(torch.equal(result, image) for result in results) < 5
    for magnitude in (0, 10):
        with pytest.raises(ValueError, match=r"must be in \(0, 10\)"):
            RandomAugmentation(magnitude=magnitude)


def test_random_augmentation__works_on_the_range_of_the_data():
    """12 bits in a file of 16 are the same picture at a sixteenth of the values."""
    augment, image = RandomAugmentation(3, magnitude=9), torch.rand(3, 24, 24) * 255
    image.view(-1)[:2] = torch.tensor([0.0, 255])  # the whole range
    changed = 0
    for seed in range(12):
        torch.manual_seed(seed)
        full = augment(image)
        torch.manual_seed(seed)
        torch.testing.assert_close(augment(image / 16), full / 16, rtol=1e-3, atol=0.02)
        changed += not torch.equal(full, image)
    assert changed > 6
    constant = torch.full((3, 8, 8), 3.0)
    assert torch.equal(augment(constant), constant)


@pytest.mark.parametrize("magnitude", [1, 9])
def test_random_augmentation__has_the_share_of_the_largest_magnitude(magnitude):
    """Magnitudes end at 10 here and at 30 in kornia."""
    assert RandomAugmentation(magnitude=magnitude).operations.m == pytest.approx(magnitude / 10 * 30)


def test_random_orientation__reaches_each_orientation_equally():
    image = torch.arange(9.0).view(1, 3, 3)
    counts = {}
    for _ in range(800):
        turned, mask = RandomOrientation(True, True, True)(image, image[0])
        assert torch.equal(turned[0], mask)
        counts[tuple(mask.flatten().tolist())] = counts.get(tuple(mask.flatten().tolist()), 0) + 1
    assert len(counts) == 8
    assert min(counts.values()) > 60
    wide = torch.arange(6.0).view(1, 2, 3)
    results = {tuple(RandomOrientation(rotate90=True)(wide).flatten().tolist()) for _ in range(40)}
    assert results == {(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0)}
    assert torch.equal(RandomOrientation()(wide), wide)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--no_horizontal_flip"], ["--no_horizontal_flip", "--vertical_flip"], ["--rotate90"]]
)
@pytest.mark.parametrize("command", [finetune_command, probe_command])
def test_orientation__is_a_setting_of_every_command(call, pretrained, folder, tmp_path, monkeypatch, command, flags):
    """Pictures are bright at the left and above: where a crop is brightest shows how it was turned."""
    gradient = np.add.outer(np.linspace(120, 0, 40), np.linspace(60, 0, 40))
    for path in (folder / "train").rglob("*.png"):
        PIL.Image.fromarray(np.repeat(gradient[..., None], 3, axis=2).astype(np.uint8)).save(path)
    seen = set()

    def compute_loss(trainer, model, inputs, *args, **kwargs):
        rows, columns = (inputs["pixel_values"].float().mean(dim=(1, axis)) for axis in (3, 2))
        up, left = rows[:, 0] > rows[:, -1], columns[:, 0] > columns[:, -1]
        taller = (rows[:, 0] - rows[:, -1]).abs() > (columns[:, 0] - columns[:, -1]).abs()
        if model.training:
            seen.update(zip(up.tolist(), left.tolist(), taller.tolist(), strict=True))
        return original(trainer, model, inputs, *args, **kwargs)

    trainer_class = ClassificationTrainer if command is finetune_command else ProbingTrainer
    original = trainer_class.compute_loss
    monkeypatch.setattr(trainer_class, "compute_loss", compute_loss)
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--output_dir", tmp_path / "out"]
    arguments += ["--per_device_train_batch_size", 24, "--num_train_epochs", 3, "--eval_strategy", "no"]
    arguments += PLAIN if command is finetune_command else ["--crop_scale_min", "0.95"]
    call(command, *arguments, *flags)
    expected = {
        "--no_horizontal_flip": {(True, True, True)},
        "--vertical_flip": {(True, True, True), (False, True, True)},
    }
    if flags[-1] in expected:
        assert seen == expected[flags[-1]]
    else:
        assert len(seen) == 8


def test_batch_augmentation__mixes_labels_as_it_mixes_images():
    """Images are constant and tell their class, so the mean of a mixed image is its mixed label."""
    processor = MAEImageProcessor.for_image_size(16, num_channels=1)
    levels = torch.linspace(0, 255, 5).byte()
    labels = torch.arange(60) % 5
    pixels = levels[labels].view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    values = processor.rescale_and_normalize(levels.view(-1, 1, 1, 1)).flatten()
    for settings in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}):
        output = BatchAugmentation(processor, 5, **settings)(pixels, labels)
        torch.testing.assert_close(output["labels"].sum(dim=1), torch.ones(60))
        assert ((output["labels"] > 0).sum(dim=1) == 2).float().mean() > 0.5
        mean = output["pixel_values"].mean(dim=(1, 2, 3))
        torch.testing.assert_close(mean, output["labels"] @ values, rtol=1e-4, atol=1e-4)
    plain = BatchAugmentation(processor, 5)(pixels, labels)
    assert torch.equal(plain["labels"], labels)
    torch.testing.assert_close(plain["pixel_values"], processor.rescale_and_normalize(pixels))


def shares_of_first(size, **settings):
    """Mixes 500 images, each of a class of its own, and returns which share of each is left, where it is mixed."""
    processor = MAEImageProcessor.for_image_size(size, num_channels=1)
    pixels = torch.zeros(500, 1, size, size, dtype=torch.uint8)
    shares = BatchAugmentation(processor, 500, **settings)(pixels, torch.arange(500))["labels"].diagonal()
    return shares[shares < 1 - 1e-6]


def test_mixup__draws_shares_from_the_beta_distribution():
    """Beta(a, a) has the variance 1 / (4 (2 a + 1)), the uniform distribution 1 / 12."""
    assert shares_of_first(4, mixup=0.2).var().item() == pytest.approx(1 / 5.6, abs=0.03)
    assert shares_of_first(4, mixup=5.0).var().item() == pytest.approx(1 / 44, abs=0.01)


def test_cutmix__draws_rectangles_by_the_beta_distribution():
    """At 1, which is uniform, a fourth of the images keep less than 0.3, some of that beyond the border."""
    shares = [(shares_of_first(32, cutmix=beta) < 0.3).float().mean().item() for beta in (0.2, 1.0, 5.0)]
    assert shares == pytest.approx([0.5, 0.25, 0.1], abs=0.07)


def test_mixup_and_cutmix__take_turns_at_random():
    """Images are constant, and stay so in mixup; in cutmix most of them do not."""
    processor = MAEImageProcessor.for_image_size(16, num_channels=1)
    pixels = torch.arange(0, 240, 8).byte().view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    augment, cut = BatchAugmentation(processor, 30, mixup=0.8, cutmix=1.0), 0
    for _ in range(30):
        mixed = augment(pixels, torch.arange(30))["pixel_values"].flatten(1)
        cut += bool(((mixed.amax(dim=1) - mixed.amin(dim=1)) > 1e-3).any())
    assert 5 <= cut <= 25


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_batch_augmentation__mixes_numbers_and_several_labels(settings):
    """The value of an image is its label: 0.87 stays a number and does not become a class."""
    processor = MAEImageProcessor.for_image_size(16, num_channels=1, image_mean=[0.0], image_std=[1.0])
    values = torch.linspace(0, 1, 40)
    pixels = (255 * values).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    labels = torch.stack([values, (values > 0.5).float()], dim=1)
    output = BatchAugmentation(processor, 2, **settings)(pixels, labels)
    torch.testing.assert_close(output["pixel_values"].mean(dim=(1, 2, 3)), output["labels"][:, 0], rtol=1e-4, atol=1e-4)
    assert ((output["labels"][:, 1] > 0) & (output["labels"][:, 1] < 1)).any()


def test_batch_augmentation__erases_that_share_of_the_images():
    processor = MAEImageProcessor.for_image_size(32)
    output = BatchAugmentation(processor, 2, erasing=0.25)(
        torch.full((400, 3, 32, 32), 255, dtype=torch.uint8), torch.zeros(400)
    )
    erased = (output["pixel_values"] == 0).any(dim=1).flatten(1)
    assert erased.any(dim=1).float().mean().item() == pytest.approx(0.25, abs=0.08)
    shares = erased.float().mean(dim=1)[erased.any(dim=1)]
    assert 0.01 < shares.min() < shares.max() < 0.36


# ----------------------------------------------------------------------------------------------------------------------
# Linear probing


@pytest.mark.slow
def test_linear_probing__fast_chooses_by_held_out_training_images(call, pretrained, folder, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--output_dir", tmp_path / "probe"]
    grid = ["--base_learning_rates", "1e-6", "30"]
    printed = call(
        probe_command, *arguments, "--fast", *grid, "--num_train_epochs", "100", "--num_neighbors", "3", "50"
    )
    slow, fast, tested = (line for line in printed.splitlines() if line.startswith("linear probe"))
    assert "held-out" in slow
    assert "base rate 30     accuracy 1.0000" in fast
    assert "base rate 30     accuracy 1.0000 of the test images" in tested
    assert json.loads((tmp_path / "probe" / "run.json").read_text())["metrics"]["base_rate"] == 30
    assert "k-NN, k 3    accuracy 1.0000" in printed
    assert "k-NN, k 24   accuracy" in printed  # as many as there are training images
    model = MAEForImageClassification.from_pretrained(tmp_path / "probe").eval()
    before = MAEForPreTraining.from_pretrained(pretrained).mae
    assert torch.equal(model.mae.layers[1].mlp.fc2.weight, before.layers[1].mlp.fc2.weight)
    images, processor = open_images(str(folder), "test"), MAEImageProcessor.from_pretrained(tmp_path / "probe")
    with torch.no_grad():
        logits = model(**processor([images[index] for index in range(len(images))], return_tensors="pt")).logits
    assert logits.argmax(dim=1).tolist() == images.labels.tolist()


@pytest.mark.slow
def test_linear_probing__with_crops(call, pretrained, folder, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--output_dir", tmp_path / "probe"]
    arguments += ["--pooling", "mean", "--base_learning_rates", "100", "--per_device_train_batch_size", "24"]
    call(probe_command, *arguments, "--num_train_epochs", "40", "--eval_strategy", "no")
    assert json.loads((tmp_path / "probe" / "eval_results.json").read_text())["linear_accuracy"] > 0.9
    model = MAEForImageClassification.from_pretrained(tmp_path / "probe")
    assert model.config.pooling == "mean"
    with pytest.raises(ValueError, match="`base_learning_rates`.*`fast`"):
        call(probe_command, *arguments, "--base_learning_rates", "1", "2")


def test_linear_probing__does_not_round_the_probe_to_the_type_of_the_checkpoint(call, tiny_model, folder, tmp_path):
    tiny_model().bfloat16().save_pretrained(tmp_path / "model")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "model")
    model, out = tmp_path / "model", tmp_path / "out"
    call(probe_command, "--model_name_or_path", model, "--data", folder, "--output_dir", out, "--num_train_epochs", 1)
    weight = load_file(out / "model.safetensors")["classifier.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())


def test_linear_probing__of_an_adapter_is_refused(call, save_adapter, folder, tmp_path):
    """The classifier would not be saved with it."""
    save_adapter(tmp_path / "a")
    arguments = ["--model_name_or_path", tmp_path / "a", "--data", folder, "--output_dir", tmp_path / "out"]
    for command, flags in ((probe_command, []), (probe_command, ["--fast"]), (finetune_command, [])):
        with pytest.raises(OSError, match="a holds an adapter, and no model.*merge_and_unload"):
            call(command, *arguments, *flags)
    assert not (tmp_path / "out").exists()


def test_linear_probing__fast_is_refused_in_several_processes(tmp_path, monkeypatch):
    """Each would compute the features of all images, and print the same figures."""
    monkeypatch.setattr(ProbingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="`fast` works in one process, and 2 were started"):
        ProbingArguments(str(tmp_path), model_name_or_path="model", fast=True, use_cpu=True)
