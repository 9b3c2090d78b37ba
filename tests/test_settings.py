# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Settings mean the same from flags, a recipe and Python, and a value that does not fit is refused by name."""

import dataclasses
import os
import signal
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import SMALL, SignalAt, picture

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor, MAEModel, pretrain
from hf_mae.data.sources import open_images
from hf_mae.evaluation.evaluating import EvaluationArguments
from hf_mae.evaluation.features import ExtractionArguments
from hf_mae.finetuning.classification import ClassificationArguments
from hf_mae.pretraining.initial_model import config_of
from hf_mae.pretraining.settings import PretrainingSettings
from hf_mae.training.arguments import load_recipe, override, parse_arguments, recipe_of
from hf_mae.training.step_guard import RunStopped

FITS = {
    "max_steps": [(1000.0, 1000), ("1e3", 1000), (np.int64(7), 7), (None, -1)],
    "seed": [(2**60 + 1, 2**60 + 1)],
    "base_learning_rate": [("1e-3", 1e-3), (np.float32(0.5), 0.5), (1, 1)],
    "max_grad_norm": [(None, 0.0)],  # left empty in a file
    "horizontal_flip": [("false", False), ("yes", True), (0, False), (np.bool_(True), True)],
    "norm_pix_loss": [("no", False), (None, None)],
    "image_mean": [
        (["5e-1", "0.25"], [0.5, 0.25]),
        (0.5, [0.5]),
        ((0.5, 0.25), [0.5, 0.25]),
        (np.ones(2) / 2, [0.5, 0.5]),
    ],
    "bands": [("3", [3]), ((1.0, 2.0), [1, 2])],
    "data": [(Path("folder"), "folder"), ("~/images", os.path.expanduser("~/images")), (5, "5")],
    "time_budget": [("8h", "8h"), (3600, 3600)],
    "schedule": [("wsd", "wsd")],
    "report_to": [("none", None)],
    "config_overrides": [({"hidden_size": 64, "image_size": [28, 56]}, "hidden_size=64,image_size=[28, 56]")],
}
DOES_NOT_FIT = {
    "max_steps": ["many", 1.5, True, [1], "inf"],
    "base_learning_rate": ["fast", False],
    "num_train_epochs": [float("inf"), 0],
    "horizontal_flip": ["maybe", 2],
    "image_mean": ["grey", [[0.5]]],
    "image_std": [[0.5, 0.0]],
    "schedule": ["WSD", "linear"],
    "on_save_error": ["Stop"],
    "data": [["a", "b"], True],
    "warmup_ratio": [1.5],
}


def cases(values):
    return [(name, value) for name, several in values.items() for value in several]


@pytest.mark.parametrize(("name", "case"), cases(FITS))
def test_value__gets_the_type_of_its_setting(name, case):
    given, expected = case
    found = getattr(PretrainingSettings(**{name: given}), name)
    assert found == expected
    assert type(found) is type(expected)
    assert getattr(PretrainingSettings(**load_recipe({name: given}, PretrainingSettings)), name) == expected


@pytest.mark.parametrize(("name", "value"), cases(DOES_NOT_FIT))
def test_value__that_does_not_fit_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        PretrainingSettings(**{name: value})


def test_choices__are_checked_for_every_task():
    args = {"model_name_or_path": "model", "data": "data", "use_cpu": True}
    with pytest.raises(ValueError, match="`class_weights` must be one of none, balanced, got 'Balanced'"):
        ClassificationArguments(class_weights="Balanced", **args)
    assert (
        ClassificationArguments(learning_rate="1e-3", data=Path("data"), model_name_or_path="m").learning_rate == 1e-3
    )
    for wrong in ({"max_train_images": 0}, {"crop_scale_min": 2}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            ClassificationArguments(**args, **wrong)


@pytest.mark.parametrize(
    "arguments", [PretrainingSettings, ClassificationArguments, ExtractionArguments, EvaluationArguments]
)
def test_image_column__has_in_each_help_all_columns_that_are_found_without_it(arguments):
    (help_text,) = (each.metadata["help"] for each in dataclasses.fields(arguments) if each.name == "image_column")
    assert all(name in help_text for name in ("image", "img", "pixel_values"))


def test_none__keeps_its_own_meaning():
    args = {"model_name_or_path": "model", "data": "data", "use_cpu": True}
    assert ClassificationArguments(save_total_limit=None, **args).save_total_limit is None  # all checkpoints are kept
    assert ClassificationArguments(max_grad_norm=None, **args).max_grad_norm == 0


def test_rectangles__are_sizes_in_python():
    config = config_of(
        PretrainingSettings(preset="tiny", image_size=(28, 56), patch_size=(7, 14), config_overrides=SMALL)
    )
    assert (config.image_size, config.patch_size, config.hidden_size) == ([28, 56], [7, 14], 32)


def test_recipe__of_any_settings_makes_the_same_again():
    given = {"image_mean": (0.1, 0.2, 0.3), "image_std": np.full(3, 0.5, np.float32), "image_size": (32, 64)}
    settings = PretrainingSettings(
        preset="tiny", config_overrides={"hidden_size": 16, "num_attention_heads": 4}, **given
    )
    again = PretrainingSettings(**load_recipe(recipe_of(settings), PretrainingSettings))
    assert again == settings
    assert config_of(again).hidden_size == 16


def test_recipe__that_is_no_yaml_says_so(tmp_path):
    (tmp_path / "recipe.yaml").write_text("max_steps:\t3\n\t- 1")
    with pytest.raises(ValueError, match="recipe.yaml is no YAML"):
        load_recipe(tmp_path / "recipe.yaml", PretrainingSettings)
    with pytest.raises(ValueError, match="There is no setting epochs. Did you mean num_train_epochs?"):
        load_recipe({"epochs": 3}, PretrainingSettings)


def of_flags(*argv):
    return parse_arguments(PretrainingSettings, argv, "test", "A test.", "fashion_mnist_sample")


def test_flag__of_one_field_keeps_the_others_of_the_recipe():
    config = config_of(
        of_flags("--data", "x", "--recipe", "cifar10_muon", "--config_overrides", "prediction_ratio=0.5")
    )
    expected = config_of(of_flags("--data", "x", "--recipe", "cifar10_muon"))
    assert config.prediction_ratio == 0.5 != expected.prediction_ratio
    assert config.hidden_size == expected.hidden_size == 128


def test_flag__replaces_what_a_recipe_says_otherwise():
    base = config_of(of_flags("--data", "x", "--recipe", "cifar10_muon", "--preset", "base"))
    assert (base.hidden_size, base.num_hidden_layers, base.image_size) == (768, 12, 32)
    assert config_of(of_flags("--preset", "small")).hidden_size == 384  # of the sample's recipe
    assert of_flags("--model_name_or_path", "out").preset is None
    recipe = {"max_steps": 5, "learning_rate": 1e-3, "value_percentiles": [1, 99], "seed": 3}
    given = {"num_train_epochs": 2, "base_learning_rate": 1e-4, "value_range": [0, 1]}
    assert override(recipe, given) == {**given, "seed": 3}
    assert override(recipe, {"num_train_epochs": None}) == {**recipe, "num_train_epochs": None}
    sizes = {"config_overrides": SMALL}  # without a preset of its own
    assert override(sizes, {"preset": "tiny"}) == {**sizes, "preset": "tiny"}


def test_flag__and_config_overrides_of_a_recipe_replace_each_other(tmp_path):
    """A field that is a setting, too, was that of `config_overrides`, whichever of them was the flag."""
    recipe = tmp_path / "recipe.yaml"  # as a run in Python with image_size=(96, 192) leaves it
    recipe.write_text("preset: tiny\nconfig_overrides: image_size=[96,192],hidden_size=96\nmask_ratio: 0.5\n")
    config = config_of(of_flags("--data", "x", "--recipe", str(recipe), "--image_size", "64"))
    assert (config.image_size, config.hidden_size, config.mask_ratio) == (64, 96, 0.5)
    flags = ("--data", "x", "--recipe", str(recipe), "--config_overrides", "mask_ratio=0.9")
    assert (config_of(of_flags(*flags)).image_size, config_of(of_flags(*flags)).mask_ratio) == ([96, 192], 0.9)


def test_flag__by_itself_is_true_also_where_nothing_is_the_default():
    """As `--torch_compile` is for transformers' Trainer."""
    settings = of_flags("--torch_compile", "--bf16", "--norm_pix_loss", "--max_steps", "3")
    assert settings.torch_compile is settings.bf16 is settings.norm_pix_loss is True
    assert of_flags("--torch_compile", "false").torch_compile is False
    assert of_flags("--max_steps", "3").torch_compile is None


def test_settings__that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="`preset` is for fresh weights"):
        PretrainingSettings(preset="large", model_name_or_path="out")
    with pytest.raises(ValueError, match=r"`image_size` is 64, and \[96, 192\] in `config_overrides`. Leave one"):
        PretrainingSettings(image_size=64, config_overrides="image_size=[96,192]")


# ----------------------------------------------------------------------------------------------------------------------
# Objects in place of settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": MAEModel}, "`model` is a type"),
        ({"model": {"hidden_size": 32}}, "`model` is a dict.*MAEConfig"),
        ({"image_processor": "vit"}, "`image_processor` is a str.*MAEImageProcessor"),
        ({"data": [picture()]}, "`data` is a list.*ImageSource"),
        ({"data": torch.utils.data.TensorDataset(torch.zeros(3))}, "`data` is a TensorDataset"),
    ],
)
def test_objects__that_would_not_be_used_are_refused(tmp_path, given, message):
    with pytest.raises(TypeError, match=message):
        pretrain(**{"data": None, "output_dir": tmp_path / "run", **given})


def test_objects__and_settings_may_not_contradict(tiny_config, tmp_path):
    grey = MAEImageProcessor.for_image_size(32, num_channels=1)
    with pytest.raises(ValueError, match=r"`image_processor` makes 1 channel\(s\), but `model` has 3"):
        pretrain(None, tmp_path / "run", model=tiny_config(), image_processor=grey)
    with pytest.raises(ValueError, match="`num_channels` is part of the object"):
        pretrain(None, tmp_path / "run", image_processor=grey, num_channels=3)
    with pytest.raises(ValueError, match="`mask_ratio` is part of the object"):
        pretrain(None, tmp_path / "run", model=tiny_config(), recipe={"mask_ratio": 0.5})


@pytest.mark.slow
def test_image_processor__decides_on_the_channels(tmp_path):
    for number in range(12):
        picture(number).save(tmp_path / f"{number}.png")
    settings = {"image_size": 32, "patch_size": 8, "config_overrides": SMALL, "max_steps": 1, "effective_batch_size": 4}
    grey = MAEImageProcessor.for_image_size(32, num_channels=1, image_mean=[0.4], image_std=[0.2])
    pretrain(tmp_path, tmp_path / "run", image_processor=grey, **settings)
    saved = MAEImageProcessor.from_pretrained(tmp_path / "run")
    assert MAEConfig.from_pretrained(tmp_path / "run").num_channels == saved.num_channels == 1
    assert (*saved.image_mean, *saved.image_std) == (0.4, 0.2)


@pytest.mark.slow
def test_dataset__of_the_datasets_library_is_a_source(tiny_config, tmp_path):
    columns = {"image": [picture(number) for number in range(12)], "label": [0, 1] * 6}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict(columns, features)
    images = open_images(data)
    assert (len(images), images.label_names, list(images.labels[:3])) == (12, ["a", "b"], [0, 1, 0])
    assert np.array_equal(np.array(images[5]), np.array(picture(5)))
    splits = datasets.DatasetDict({"train": data.select(range(8)), "test": data.select(range(8, 12))})
    assert [len(open_images(splits, split)) for split in ("train", "test")] == [8, 4]
    options = {"max_steps": 1, "effective_batch_size": 4}
    assert pretrain(splits, tmp_path / "run", model=tiny_config(), **options).metrics["step"] == 1


@pytest.mark.slow
def test_given_model__is_trained_in_place_and_what_is_frozen_stays_so(tiny_config, tmp_path):
    def make():
        torch.manual_seed(0)
        model = MAEForPreTraining(tiny_config())
        model.mae.requires_grad_(False)
        return model

    data = datasets.Dataset.from_dict({"image": [picture(number) for number in range(12)]})
    options = {"max_steps": 4, "effective_batch_size": 8, "logging_steps": 1, "held_out": 0}
    with pytest.raises(RunStopped):
        pretrain(data, tmp_path / "run", model=make(), trackers=[SignalAt(2, signal.SIGINT)], **options)
    model, before = make(), make()
    assert pretrain(data, tmp_path / "run", model=model, **options).model is model
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(model.mae.parameters(), before.mae.parameters(), strict=True)
    )
    assert not torch.equal(model.decoder.head.weight, before.decoder.head.weight)
    assert pretrain(data, tmp_path / "run", model=before, **options).model is before  # finished: it has the weights
    assert torch.equal(model.decoder.head.weight, before.decoder.head.weight)
