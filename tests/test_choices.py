# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What is chosen when data and time are all that is given. The device is imagined, so that its speed is exact."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, picture
from torch.utils.flop_counter import FlopCounterMode

from hf_mae import MAEForPreTraining
from hf_mae.data.sources import ImageSource
from hf_mae.pretraining import run as pretraining_run
from hf_mae.pretraining.choices import Choices, Seen, look_at, recorded_choices, settle_settings
from hf_mae.pretraining.initial_model import config_of
from hf_mae.pretraining.settings import MACHINE_SETTINGS, PretrainingSettings
from hf_mae.pretraining.speed import Speed, flops_per_sample, num_parameters
from hf_mae.training.arguments import recipe_of

HOUR, DAY = 3600, 24 * 3600


class Imagined:
    """A CPU core, or what else, that computes and reads at fixed speeds: operations and images a second.

    Reading and training take turns unless there are workers.
    """

    def __init__(self, flops=4e10, images=500, workers=False):
        self.flops, self.images, self.workers = flops, images, workers
        self.measured = []

    def training(self, config, batch_size):
        self.measured.append((config.hidden_size, config.num_hidden_layers, config.image_size))
        return self.flops / flops_per_sample(config)

    def loading(self, config, crop_scale_min, views):
        return self.images * views

    def together(self, training, loading):
        return min(training, loading) if self.workers else 1 / (1 / training + 1 / loading)


def choose(seen, seconds, speed=None, num_test=None, **given):
    """Returns the settings with what is chosen, and the lines by name."""
    settings, lines = PretrainingSettings(**given), []
    seen = seen if isinstance(seen, Seen) else Seen(count=seen[0], looked_at=200, side=seen[1], all_grey=False)
    made = Choices(settings, seen, seconds, speed or Imagined(), num_test=num_test).make()
    settle_settings(settings, None, None, recorded=[vars(each) for each in made], say=lines.append)
    return settings, {choice.name: str(choice) for choice in made}


def model_of(settings):
    config = config_of(settings)
    return config.hidden_size, config.num_hidden_layers, config.image_size, config.patch_size


# ----------------------------------------------------------------------------------------------------------------------
# By data and time


def test_photos_on_a_cpu_core__a_small_model_since_they_are_few():
    settings, lines = choose((3000, 160), 8 * HOUR)
    assert model_of(settings) == (128, 4, 160, 16)
    assert "6 blocks of 192 want 5,6" in lines["Model"]  # images
    assert config_of(settings).norm_pix_loss
    # The recipe cifar10_muon.
    assert (settings.optimizer, settings.effective_batch_size, settings.base_learning_rate) == ("muon", 128, 8e-3)
    assert settings.crop_scale_min == 0.5  # that of clothing, too


def test_a_million_photos_in_a_week_of_eight_gpus__the_paper():
    device = Imagined(flops=8 * 150e12, images=80_000, workers=True)
    settings, _ = choose((1_281_167, 375), 7 * DAY, device)
    assert model_of(settings) == (1024, 24, 224, 16)
    assert settings.optimizer == "adamw"
    assert (settings.effective_batch_size, settings.base_learning_rate) == (4096, 1.5e-4)
    assert (settings.views_per_image, settings.crop_scale_min) == (1, 0.2)


@pytest.mark.parametrize(("gpus", "preset"), [(1, "small"), (8, "base")])
def test_less_time__a_smaller_model(gpus, preset):
    """In 8 h * 0.85 a GPU takes 64 million samples of ViT-B (57 GFLOP) and 340 million of ViT-S (10.8 GFLOP), and they
    want 2 * 112 and 2 * 25 million; eight take 240 million of ViT-L, which wants 659."""
    device = Imagined(flops=gpus * 150e12, images=80_000, workers=True)
    settings, lines = choose((1_281_167, 375), 8 * HOUR, device)
    assert (settings.preset, settings.config_overrides, settings.image_size) == (preset, None, 224)
    assert "samples, of which" in lines["Model"]


def test_small_pictures__as_in_the_recipes():
    settings, lines = choose((60_000, 28), HOUR / 2, Imagined(images=4000))
    assert model_of(settings) == (128, 4, 28, 4)
    assert settings.crop_scale_min == 0.5
    assert (settings.effective_batch_size, settings.base_learning_rate) == (128, 8e-3)
    assert "shows too little" in lines["Crops"]


def test_small_pictures_on_a_gpu__by_muon_at_a_rate_with_a_record():
    settings, lines = choose((15_000, 32), HOUR, Imagined(flops=150e12, images=20_000, workers=True))
    assert model_of(settings)[:2] == (192, 12)
    assert settings.optimizer == "muon"
    assert settings.base_learning_rate * settings.effective_batch_size / 256 == pytest.approx(4e-3)
    assert "no higher one has a record for such batches" in lines["Rate"]


def test_twelve_pictures__do_not_break_it():
    settings, _ = choose((12, 300), HOUR)
    assert model_of(settings)[:2] == (128, 4)
    assert settings.effective_batch_size == 32


def test_grey_pictures__have_one_channel():
    grey = Seen(count=60_000, looked_at=200, side=28, all_grey=True)
    settings, lines = choose(grey, HOUR / 2)
    assert settings.num_channels == config_of(settings).num_channels == 1
    assert "all of 200 images" in lines["Channels"]
    assert choose(grey, HOUR / 2, num_channels=3)[0].num_channels == 3
    assert choose(grey, HOUR / 2, pages="channels")[0].num_channels is None


def test_short_of_time__smaller_images_and_more_steps():
    """Three minutes at 40 GFLOP/s are 46,000 samples of the smallest model, 360 batches of 128."""
    settings, lines = choose((3000, 160), 180)
    assert model_of(settings) == (128, 4, 96, 12)
    assert "there is no smaller size" in lines["Model"]
    assert "with 160 the time is too short" in lines["Pixels"]
    assert settings.effective_batch_size == 64
    assert settings.base_learning_rate == 16e-3  # the same rate as for 128, as in the recipe fashion_mnist_sample
    assert settings.eval_images == 500  # a hundredth
    assert choose((3000, 160), 8 * HOUR)[0].eval_images == 5000
    assert "Judging" not in choose((3000, 160), 180, num_test=300)[1]  # there are no more
    assert choose((3000, 160), 45)[0].effective_batch_size == 32  # 180 steps of 64


@pytest.mark.parametrize(
    ("images", "workers", "views"),
    [(10_000, False, 1), (500, False, 2), (100, False, 4), (1000, True, 1), (50, True, 4)],
)
def test_slow_reading__several_views_of_a_decode(images, workers, views):
    """The smallest model trains on 213 samples of 160 pixels a second."""
    settings, lines = choose((3000, 160), 8 * HOUR, Imagined(images=images, workers=workers), image_size=160)
    assert settings.views_per_image == views
    assert ", so " in lines["Views"] or views == 1


# ----------------------------------------------------------------------------------------------------------------------
# What is given stays


def test_given__preset():
    device = Imagined()
    settings, lines = choose((3000, 160), 8 * HOUR, device, preset="small")
    assert model_of(settings) == (384, 12, 128, 16)
    assert "Model" not in lines
    assert {width for width, *_ in device.measured} == {384}


def test_given__preset_with_cells():
    """Cells of 4 x 4 patches must fit: of the sizes for 300 pixels only 128 and Pixio's own 256 are such."""
    settings, _ = choose((3000, 300), 8 * HOUR, preset="pixio-base")
    assert model_of(settings) == (768, 12, 128, 16)
    settings, _ = choose((3000, 300), 8 * HOUR, Imagined(flops=1e17, images=1e7), preset="pixio-base")
    assert model_of(settings) == (768, 12, 256, 16)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"image_size": 96}, (96, 12)),
        ({"image_size": 36}, (36, 4)),
        ({"image_size": 112, "patch_size": 8}, (112, 8)),
        ({"patch_size": 8}, (160, 8)),
        ({"patch_size": 14}, (154, 14)),
        ({"config_overrides": "image_size=[96,192]"}, ([96, 192], 12)),
    ],
)
def test_given__sizes(given, size):
    settings, _ = choose((3000, 160), 20 * DAY, **given)
    assert model_of(settings)[2:] == size
    assert model_of(settings)[:2] == (128, 4)


def test_given__fields_of_the_configuration():
    settings, _ = choose((3000, 160), 8 * HOUR, config_overrides="mask_ratio=0.9")
    assert config_of(settings).mask_ratio == 0.9
    assert model_of(settings)[:2] == (128, 4)
    settings, lines = choose((3000, 160), 8 * HOUR, config_overrides=SMALL)
    assert config_of(settings).hidden_size == 32
    assert (settings.preset, settings.config_overrides) == ("base", SMALL)
    assert "Model" not in lines


def test_given__batch_and_rate():
    settings, _ = choose((3000, 160), 180, effective_batch_size=256, learning_rate=1e-3)
    assert (settings.effective_batch_size, settings.learning_rate) == (256, 1e-3)
    assert settings.base_learning_rate == 1.5e-4  # the default, which the other replaces
    for optimizer, highest in (("adamw", 2.4e-3), ("muon", 4e-3)):  # of the paper, of the recipe cifar10_muon
        settings, _ = choose((3000, 160), 8 * HOUR, effective_batch_size=1024, optimizer=optimizer)
        assert settings.base_learning_rate * 1024 / 256 == pytest.approx(highest)


def test_given__optimizer_has_the_rate_of_its_recipe():
    settings, lines = choose((3000, 160), 8 * HOUR, optimizer="adamw")
    assert (settings.optimizer, settings.base_learning_rate) == ("adamw", 2e-3)  # the recipe cifar10_small
    assert "Steps by" not in lines


def test_given__model_leaves_only_batch_rate_and_views(tiny_config):
    config, settings = tiny_config(), PretrainingSettings()
    seen = Seen(count=3000, looked_at=200, side=160, all_grey=True)
    made = Choices(settings, seen, HOUR, Imagined(), config).make()
    assert [choice.name for choice in made] == ["Crops", "Views", "Batch", "Rate"]


# ----------------------------------------------------------------------------------------------------------------------
# What is looked at and measured


class Pictures(ImageSource):
    name, fingerprint = "pictures", "1"

    def __init__(self, *images):
        self.pictures = images

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index].copy()


def test_look__shorter_sides_and_channels(tmp_path):
    photos = [picture(number, (60 + number, 40)) for number in range(3)]
    assert look_at(Pictures(*photos, picture(0, (30, 90), "L"))) == Seen(4, 4, 40, False)
    assert look_at(Pictures(picture(0, (28, 28), "L"), np.zeros((32, 28)))) == Seen(2, 2, 28, True)
    assert look_at(Pictures(np.zeros((5, 64, 48)), np.zeros((64, 48, 5)))) == Seen(2, 2, 48, False)


def test_look__windows_of_scenes(tmp_path):
    from hf_mae.data.sources import open_images

    np.save(tmp_path / "scene.npy", np.array(picture(0, (300, 200))))
    seen = look_at(open_images(str(tmp_path), tile=64))
    assert (seen.side, seen.count) == (64, 20)
    assert choose(seen, HOUR)[0].image_size == 64


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_class_tokens": 4, "mask_block_size": 2},
        {"prediction_ratio": 0.5, "num_channels": 5},
        {"mask_ratio": 0},
        {"mask_tokens_in_encoder": True, "image_size": [32, 64]},
    ],
)
def test_flops_and_parameters__as_torch_counts_them(tiny_config, fields):
    config = tiny_config(**fields)
    model = MAEForPreTraining._from_config(config, attn_implementation="eager").train()
    height, width = config.image_size if isinstance(config.image_size, list) else (32, 32)
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=torch.rand(3, config.num_channels, height, width)).loss.backward()
    assert flops_per_sample(config) == counter.get_total_flops() / 3
    parts = (model.mae, model)
    assert num_parameters(config) == tuple(sum(each.numel() for each in part.parameters()) for part in parts)


def test_speed__is_measured(tiny_config):
    images = Pictures(*(picture(number) for number in range(4)))
    from hf_mae.modeling.reading_mae import DEFAULT_SETTINGS

    speed = Speed(images, DEFAULT_SETTINGS, torch.device("cpu"), PretrainingSettings(time_budget=30))
    small, large = tiny_config(), tiny_config(hidden_size=256, num_hidden_layers=6, intermediate_size=1024)
    assert speed.training(small, 16) > speed.training(large, 16) > 0
    assert speed.loading(small, 0.2, views=1) > 0
    assert speed.together(100, 25) == 20  # 10 ms and 40 ms a sample, in turns
    speed.num_workers = 2
    assert speed.together(100, 25) == 25


# ----------------------------------------------------------------------------------------------------------------------
# In a run


def settle(count, flops, **given):
    """Returns the settings of a run without a time budget, and what is said of it."""
    settings, lines = PretrainingSettings(**given), []
    settle_settings(settings, range(count), Imagined(flops), say=lines.append)
    return settings, lines


def test_without_a_budget__as_in_the_paper():
    settings, lines = settle(3000, 1e15)
    assert (settings.preset, settings.views_per_image) == ("base", 1)
    assert (settings.crop_scale_min, settings.base_learning_rate) == (0.2, 1.5e-4)
    assert settings.image_size is settings.effective_batch_size is None
    assert settings.eval_images == 5000
    assert lines == []


def test_without_a_budget__a_long_run_says_so():
    """400 epochs of 3,000 images at 57 GFLOP are 20 days at 40 GFLOP/s. ViT-S at 224 pixels takes 10.8 GFLOP, 3.7 days,
    and at 160 pixels half of that."""
    _, (warning,) = settle(3000, 4e10)
    assert "about 20 days" in warning
    assert "`preset` small with `image_size` 160, about 4" in warning
    assert "`time_budget` 8h" in warning
    assert settle(3000, 4e11)[1] == []  # two days
    assert settle(3000, 4e10, max_steps=1000)[1] == []
    assert "fewer `max_steps`" in settle(3000, 4e10, max_steps=10_000)[1][0]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Plans a run on 40 pictures with a time budget, on an imagined device."""
    images = Pictures(*(picture(number) for number in range(40)))

    def plan(device, **given):
        monkeypatch.setattr(pretraining_run, "Speed", lambda *args, **kwargs: device)
        settings = PretrainingSettings(output_dir=str(tmp_path), held_out=0, time_budget="8h", **given)
        run = pretraining_run.PretrainingRun(settings, images)
        run.start()
        run.plan()
        run.end_processes()
        return run

    return plan


def test_run__goes_on_with_what_was_chosen(run, tmp_path, capsys):
    """Also with the recipe that it has left."""
    first = run(Imagined(), config_overrides="mask_ratio=0.6", seed=3)
    assert (first.settings.image_size, first.settings.patch_size) == (28, 4)  # of 40 x 30 pixels
    assert first.settings.config_overrides.endswith(",mask_ratio=0.6")
    assert first.schedule.learning_rate == pytest.approx(16e-3 * 32 / 256)
    printed = capsys.readouterr().out
    assert "`image_size` 28, `patch_size` 4" in printed

    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "training_state.json").write_text(json.dumps({"choices": first.record["choices"]}))
    names = [name for choice in first.record["choices"] for name in choice["values"]]
    assert {"preset", "image_size", "views_per_image", "effective_batch_size"} <= set(names)
    recipe = recipe_of(first.settings, MACHINE_SETTINGS)
    for given in ({"time_budget": "8h", "seed": 3, "config_overrides": "mask_ratio=0.6"}, recipe):
        again = PretrainingSettings(**given)
        settle_settings(again, None, None, recorded=recorded_choices(tmp_path), say=print)
        assert all(getattr(again, name) == getattr(first.settings, name) for name in names)
        assert capsys.readouterr().out == printed


def test_run__before_there_were_choices(tmp_path):
    assert recorded_choices(tmp_path) is None
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "training_state.json").write_text("{}")
    assert recorded_choices(tmp_path) == []
