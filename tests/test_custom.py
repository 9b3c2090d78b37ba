# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The examples of extending the package from outside."""

import importlib.util
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, SignalAt, picture
from transformers import AutoModel

import hf_mae
from hf_mae import MAEForPreTraining
from hf_mae.data.datasets import PretrainingCollator, PretrainingDataset
from hf_mae.data.sources import FolderImages, open_images
from hf_mae.modeling.image_processing_mae import MAEImageProcessor
from hf_mae.training.step_guard import RunStopped

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    """A script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_trainer__learns_from_the_pretraining_dataset(tmp_path):
    trainer = example("custom_trainer").pretrain_with_trainer(None, str(tmp_path), max_steps=10, batch_size=8)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert type(hf_mae.MAEForPreTraining.from_pretrained(tmp_path)) is MAEForPreTraining
    assert MAEImageProcessor.from_pretrained(tmp_path).num_channels == 1


def test_integer_index__is_view_0_of_the_epoch_that_is_set():
    dataset = PretrainingDataset(open_images(), (28, 28), 49, 1)
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        assert dataset[np.int64(7)]["sample"].tolist() == [epoch, 7, 0]
        assert torch.equal(dataset[7]["pixel_values"], dataset[epoch, 7, 0]["pixel_values"])
    assert [sample["sample"].tolist() for sample in dataset.__getitems__([2, 9])] == [[3, 2, 0], [3, 9, 0]]


def test_integer_index__names_unreadable_pictures_in_the_log(tmp_path, log):
    (tmp_path / "broken.png").write_bytes(b"")
    picture(1).save(tmp_path / "good.png")
    PretrainingDataset(FolderImages(tmp_path), (16, 16), 4)[0]
    assert "broken.png" in log()


def test_collator__normalises_and_keeps_what_the_model_takes(tiny_model):
    images, processor = open_images(), MAEImageProcessor.for_image_size(32, num_channels=1)
    dataset = PretrainingDataset(images, (32, 32), 16, 1)
    samples = [dataset[index] for index in range(3)]
    batch = PretrainingCollator(processor)(samples)
    expected = (samples[2]["pixel_values"].float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(batch["pixel_values"][2], expected)
    assert tiny_model(num_channels=1)(**batch).loss.isfinite()


@pytest.mark.slow
def test_target__of_a_user_is_stopped_continued_as_its_class_and_evaluated(tmp_path, capsys):
    histogram_mae = example("custom_target").HistogramMAE

    def make():
        torch.manual_seed(0)
        return histogram_mae(hf_mae.MAEConfig(**{**TINY, "num_channels": 1}))

    options = {"max_steps": 4, "logging_steps": 1, "effective_batch_size": 8, "eval_images": 20}
    with pytest.raises(RunStopped, match="saved at step 3"):
        hf_mae.pretrain(None, tmp_path, model=make(), trackers=[SignalAt(2, signal.SIGTERM)], **options)
    assert "75% hidden, target: that of HistogramMAE\n" in capsys.readouterr().out  # and not pixels
    result = hf_mae.pretrain(None, tmp_path, model=make(), **options)
    assert type(result.model) is histogram_mae
    assert result.model.decoder.head.out_features == 9
    assert result.metrics["step"] == 4
    assert {"eval_loss", "knn_accuracy"} <= set(result.metrics)
    assert not (tmp_path / "reconstructions.png").exists()  # there is no way back to pixels
    assert histogram_mae.from_pretrained(tmp_path).decoder.head.out_features == 9
    assert AutoModel.from_pretrained(tmp_path).config.hidden_size == TINY["hidden_size"]


@pytest.mark.slow
def test_source__of_a_zip_file_trains(tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for number in range(8):
            picture(number).save(tmp_path / "picture.png")
            archive.write(tmp_path / "picture.png", f"folder/{number}.png")
    images = example("custom_source").ZipImages(str(tmp_path / "pictures.zip"))
    assert len(images) == 8
    assert np.array_equal(np.array(images[3]), np.array(picture(3)))
    config = hf_mae.MAEConfig(**TINY)
    hf_mae.pretrain(images, tmp_path / "out", model=config, max_steps=2, effective_batch_size=4)
    assert MAEForPreTraining.from_pretrained(tmp_path / "out").config.hidden_size == TINY["hidden_size"]


def test_source__of_a_zip_file_tells_other_pictures_of_the_same_names(tmp_path):
    fingerprints = set()
    for number in range(2):
        picture(number).save(tmp_path / "picture.png")
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.write(tmp_path / "picture.png", "a.png")
        fingerprints.add(example("custom_source").ZipImages(str(tmp_path / f"{number}.zip")).fingerprint)
    assert len(fingerprints) == 2
