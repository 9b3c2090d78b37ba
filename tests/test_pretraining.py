# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The pre-training engine, called from Python. What needs several processes or a kill is in test_processes.py."""

import errno
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, STEPS, SignalAt, locked_by_another_process, metrics, picture, same_tensors, samples
from PIL import Image
from safetensors import SafetensorError

import hf_mae
from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.data.checking import check_images
from hf_mae.data.sampling import spread_indices
from hf_mae.data.sources import ImageSource, open_images
from hf_mae.pretraining import evaluation as run_evaluation
from hf_mae.pretraining import images as run_images
from hf_mae.pretraining.batches import RunBatches, failure_of_loader
from hf_mae.pretraining.choices import DEFAULTS
from hf_mae.pretraining.command import PretrainingRun, PretrainingSettings, pretrain
from hf_mae.pretraining.initial_model import build_model, config_of
from hf_mae.training.step_guard import RunStopped


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on the embedded images from beginning to end: its folder, what it printed, what it returned."""
    output_dir, printed = tmp_path_factory.mktemp("finished") / "run", []
    settings = PretrainingSettings(
        **{**load_sample(), **STEPS, "config_overrides": SMALL, "output_dir": str(output_dir)}
    )
    result = PretrainingRun(settings, echo=printed.append).run()
    return output_dir, "\n".join(printed), result


def load_sample():
    from hf_mae.training.arguments import load_recipe

    return load_recipe("fashion_mnist_sample", PretrainingSettings)


def small(data, output_dir, **settings):
    return pretrain(data, output_dir, **{**STEPS, "config_overrides": SMALL, **settings})


# ----------------------------------------------------------------------------------------------------------------------
# From beginning to end


@pytest.mark.slow
def test_run__says_what_it_chose_and_leaves_a_model(finished):
    output_dir, printed, result = finished
    for fact in (
        "3,000 from Fashion-MNIST sample (train), embedded, 10 classes",
        "28 x 28 pixels, 7 x 7 patches, 75% hidden, target: pixels",
        "24 over 1 process(es), 1 accumulated",
        "To beat: a constant ",
        f"step 12: loss {result.metrics['eval_loss']:.4f} (",
        "of 32, twins ",
    ):
        assert fact in printed
    left = {path.name for path in output_dir.iterdir() if path.suffix != ".py"}
    assert left == {
        *("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "reconstructions.png"),
        *("metrics.jsonl", "run.json", "checkpoint-10", "checkpoint-12", "samples-0.jsonl", "sheets"),
        *("recipe.yaml", "loss.png", "progress.png"),
    }
    losses = metrics(output_dir, "loss")
    assert list(losses) == list(range(1, 13))
    evaluated = metrics(output_dir, "eval_loss")
    assert evaluated[12] < evaluated[6] < losses[1]
    for name in ("knn_accuracy", "effective_rank", "twin_retrieval", "mean_cosine", "eval_seconds"):
        assert list(metrics(output_dir, name)) == [6, 12]
    assert metrics(output_dir, "eval_loss_constant")[6] == metrics(output_dir, "eval_loss_constant")[12]
    kinds = ("step", "neighbors", "patches")
    sheets = {f"{kind}-{step:07}.png" for kind in kinds for step in (6, 12)} | {"patches.safetensors"}
    assert {path.name for path in (output_dir / "sheets").iterdir()} == sheets
    assert len({path.stat().st_mode for path in (output_dir / "sheets").iterdir()}) == 1  # others may read all of them
    assert Image.open(output_dir / "reconstructions.png").size[0] > 1000
    # A recipe is for any machine: precision, compilation, workers and the batch of one device are this machine's.
    machine = {"bf16", "torch_compile", "dataloader_num_workers", "per_device_train_batch_size", "output_dir"}
    assert not machine & set(yaml.safe_load((output_dir / "recipe.yaml").read_text()))
    record = json.loads((output_dir / "run.json").read_text())
    assert record["recipe"]["effective_batch_size"] == 24
    assert f"| training loss | {losses[12]:.4g} |" in (output_dir / "README.md").read_text()
    assert result.output_dir == output_dir
    assert result.metrics["loss"] == losses[12]
    loaded = MAEForPreTraining.from_pretrained(output_dir).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in result.model.state_dict().items())


@pytest.mark.slow
def test_run__finished_is_returned_again_and_another_one_refused(finished, capsys):
    output_dir, _, result = finished
    weights = (output_dir / "model.safetensors").stat().st_mtime_ns
    log = (output_dir / "metrics.jsonl").stat()
    again = small(None, output_dir)
    assert os.path.samestat((output_dir / "metrics.jsonl").stat(), log)  # nothing is written: the disk may be read-only
    assert "is finished: 12 steps. Nothing to do." in capsys.readouterr().out
    assert again.metrics == result.metrics
    assert type(again.model) is MAEForPreTraining
    with pytest.raises(ValueError, match=r"holds another run. It differs in\s+seed: 0 there, 1 now"):
        small(None, output_dir, seed=1)
    assert (output_dir / "model.safetensors").stat().st_mtime_ns == weights


@pytest.mark.slow
def test_run__stopped_by_a_signal_continues_to_the_same_weights(finished, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(RunStopped, match="Stopped by SIGTERM and saved at step 4") as stopped:
        small(None, tmp_path, trackers=[SignalAt(3, signal.SIGTERM)])
    assert stopped.value.exit_status == 128 + signal.SIGTERM
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert not (tmp_path / "model.safetensors").exists()
    result = small(None, tmp_path)
    assert result.metrics["step"] == 12
    assert same_tensors("model.safetensors", tmp_path, finished[0])
    for name in ("loss", "eval_loss", "eval_loss_interpolation", "effective_rank", "twin_retrieval", "mean_cosine"):
        assert metrics(tmp_path, name) == metrics(finished[0], name)
    assert samples(tmp_path) == samples(finished[0])


@pytest.mark.slow
def test_run__stopped_where_it_evaluates_does_so_when_it_goes_on(finished, tmp_path):
    for step in (6, 12):
        with pytest.raises(RunStopped, match=f"saved at step {step}"):
            small(None, tmp_path, trackers=[SignalAt(step - 1, signal.SIGTERM)])
        assert step not in metrics(tmp_path, "eval_loss")
    result = small(None, tmp_path)
    assert metrics(tmp_path, "eval_loss") == metrics(finished[0], "eval_loss")
    assert result.metrics["eval_loss"] == metrics(finished[0], "eval_loss")[12]


@pytest.mark.slow
def test_run__continues_with_the_same_configuration_object(tiny_config, tmp_path, capsys):
    """Which saving has written to, as it does to that of any model."""
    config = tiny_config()
    options = {"model": config, "max_steps": 4, "effective_batch_size": 8}
    with pytest.raises(RunStopped):
        pretrain(Squares(), tmp_path, trackers=[SignalAt(2, signal.SIGTERM)], logging_steps=1, **options)
    pretrain(Squares(), tmp_path, **options)
    pretrain(Squares(), tmp_path, **options)
    assert "Nothing to do." in capsys.readouterr().out
    with pytest.raises(ValueError, match="differs in"):
        pretrain(Squares(), tmp_path, **{**options, "model": tiny_config(hidden_size=64)})


@pytest.mark.slow
def test_run__inside_of_its_images_continues(tmp_path):
    """The pictures that it draws are none of its images."""
    for number in range(12):
        picture(number).save(tmp_path / f"{number}.png")
    options = {"config_overrides": SMALL, "preset": "tiny", "image_size": 28, "patch_size": 4, "max_steps": 12}
    options.update(eval_images=2, eval_steps=3, effective_batch_size=4, logging_steps=1)
    with pytest.raises(RunStopped):
        pretrain(str(tmp_path), tmp_path / "runs" / "a", trackers=[SignalAt(7, signal.SIGTERM)], **options)
    assert pretrain(str(tmp_path), tmp_path / "runs" / "a", **options).metrics["step"] == 12
    assert len(open_images(str(tmp_path))) == 12


@pytest.mark.slow
def test_overwritten_run__stays_until_all_else_is_right(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "mine.txt").write_text("notes")
    with pytest.raises(ValueError, match="band"):
        small(None, tmp_path / "run", overwrite_output_dir=True, num_channels=4)
    assert small(None, tmp_path / "run").metrics["step"] == 12  # finished as before
    with pytest.raises(RunStopped, match="same call or command, without `overwrite_output_dir`, continues"):
        small(None, tmp_path / "run", overwrite_output_dir=True, seed=1, trackers=[SignalAt(4, signal.SIGTERM)])
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"model.safetensors", "config.json", "run.json", "reconstructions.png", "checkpoint-12"}
    assert left >= {"mine.txt", "checkpoint-5"}
    assert list(metrics(tmp_path / "run", "loss")) == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_run__is_alone_in_its_folder(tmp_path):
    """While one process trains another is refused, before it has changed anything; afterwards it is let in."""
    with locked_by_another_process(tmp_path):
        with pytest.raises(ValueError, match="Another run writes into"):
            small(None, tmp_path, max_steps=2)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    small(None, tmp_path, max_steps=2)
    assert not (tmp_path / ".lock").exists()


@pytest.mark.slow
def test_full_disk__ends_no_run_between_checkpoints(finished, tmp_path, monkeypatch):
    """Sheets and their colours can wait. If the last files find no room, the message says that nothing is lost."""

    def no_room(*args, **kwargs):
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr(run_evaluation, "save_file", no_room)
    save, broken = MAEForPreTraining.save_pretrained, [True]

    def save_if_there_is_room(model, folder, *args, **kwargs):
        if broken[0] and Path(folder) == tmp_path:
            no_room()
        save(model, folder, *args, **kwargs)

    monkeypatch.setattr(MAEForPreTraining, "save_pretrained", save_if_there_is_room)
    with pytest.raises(RunStopped, match=r"could not be written .* No space left.*The last checkpoint is complete"):
        small(None, tmp_path)
    (tmp_path / "sheets" / "patches.safetensors").write_bytes(b"")
    broken[0] = False
    small(None, tmp_path)
    assert same_tensors("model.safetensors", tmp_path, finished[0])


@pytest.mark.slow
def test_dry_run__leaves_a_given_model_as_it_is(tiny_model, tmp_path):
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pretrain(Squares(), tmp_path, model=model, dry_run=True, effective_batch_size=8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_steps", 0), ("num_train_epochs", 0), ("learning_rate", 0.0), ("base_learning_rate", -1e-3)],
        *[("warmup_ratio", 1.5), ("warmup_ratio", -0.1), ("weight_decay", -0.05), ("max_grad_norm", -1.0)],
        *[("crop_scale_min", 1.5), ("crop_scale_min", 0.0), ("seed", -1)],
    ],
)
def test_settings__without_a_meaning_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must .*, got {value}"):
        PretrainingSettings(**{name: value})


@pytest.mark.slow
@pytest.mark.parametrize(("per_device", "workers"), [(7, 0), (24, 4)])
def test_accumulation_and_workers__change_nothing(finished, tmp_path, per_device, workers):
    small(None, tmp_path, per_device_train_batch_size=per_device, dataloader_num_workers=workers)
    assert samples(tmp_path) == samples(finished[0])
    for name, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3), ("learning_rate", 0), ("eval_loss", 1e-4)):
        ours, theirs = metrics(tmp_path, name), metrics(finished[0], name)
        assert list(ours) == list(theirs)
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=tolerance)


@pytest.mark.slow
def test_run__in_another_thread_takes_no_signals(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(small(None, tmp_path, max_steps=2)))
    thread.start()
    thread.join()
    assert results[0].metrics["step"] == 2


@pytest.mark.slow
def test_second_signal__ends_at_once_and_leaves_no_worker(tmp_path):
    import multiprocessing

    with pytest.raises(KeyboardInterrupt, match="last checkpoint stays"):
        small(None, tmp_path, dataloader_num_workers=2, trackers=[SignalAt(3, signal.SIGTERM, signal.SIGTERM)])
    assert multiprocessing.active_children() == []


# ----------------------------------------------------------------------------------------------------------------------
# What can be given


class Squares(ImageSource):
    """A source of a user: pictures that are made on the fly."""

    name, fingerprint = "squares", "squares-1"

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return picture(index)


@pytest.mark.slow
def test_pretrain__takes_a_source_a_configuration_and_a_processor(tiny_config, tmp_path):
    processor = MAEImageProcessor(image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.6, 0.7))
    options = {"model": tiny_config(), "image_processor": processor, "max_steps": 2, "effective_batch_size": 8}
    result = pretrain(Squares(), tmp_path / "run", **options)
    assert result.model.config.hidden_size == 32
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"] == "squares"
    saved = MAEImageProcessor.from_pretrained(tmp_path / "run")
    assert tuple(saved.image_mean) == (0.1, 0.2, 0.3)
    assert saved.crop_height_width == (32, 32)
    with pytest.raises(ValueError, match="holds another run"):
        pretrain(Squares(), tmp_path / "run", **{**options, "model": tiny_config(hidden_size=64)})
    with pytest.raises(ValueError, match="`patch_size` is part of the object"):
        pretrain(Squares(), tmp_path / "other", patch_size=4, **options)


class Halved(MAEForPreTraining):
    """A class of a user."""


@pytest.mark.slow
def test_pretrain__trains_a_model_of_another_class_and_continues_it(tiny_config, tmp_path):
    def make(seed, model_class=Halved):
        torch.manual_seed(seed)
        return model_class(tiny_config())

    options = {"max_steps": 4, "effective_batch_size": 8, "logging_steps": 1}
    with pytest.raises(RunStopped):
        pretrain(Squares(), tmp_path, model=make(0), trackers=[SignalAt(2, signal.SIGUSR1)], **options)
    with pytest.raises(ValueError, match=r"differs in\s+initial_weights"):
        pretrain(Squares(), tmp_path, model=make(1), **options)
    with pytest.raises(ValueError, match=r"differs in\s+model_class: Halved there, MAEForPreTraining now"):
        pretrain(Squares(), tmp_path, model=make(0, MAEForPreTraining), **options)
    assert type(pretrain(Squares(), tmp_path, model=make(0), **options).model) is Halved


@pytest.mark.slow
def test_pretrain__names_of_presets_and_checkpoints(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "start")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "start")
    result = pretrain(Squares(), tmp_path / "run", model=tmp_path / "start", max_steps=1, effective_batch_size=8)
    assert result.model.config.hidden_size == 32
    recipe = {"image_size": 32, "patch_size": 16, "config_overrides": SMALL, "max_steps": 5, "effective_batch_size": 8}
    result = pretrain(Squares(), tmp_path / "fresh", model="tiny", recipe=recipe, max_steps=1)
    assert result.metrics["step"] == 1  # keywords override the recipe
    assert result.model.config.hidden_size == 32


@pytest.mark.slow
def test_pretrain__twice_in_one_process_with_other_precision(tmp_path):
    """All matrix products have it, in training and in evaluation."""
    for name, bf16, dtype in (("a", True, torch.bfloat16), ("b", False, torch.float32)):
        computed = set()

        def note(module, inputs, output, computed=computed):
            if isinstance(module, torch.nn.Linear):
                computed.add((module.training, output.dtype))

        hook = torch.nn.modules.module.register_module_forward_hook(note)
        try:
            result = small(Squares(), tmp_path / name, bf16=bf16, image_size=32, max_steps=1)
        finally:
            hook.remove()
        assert result.metrics["step"] == 1
        assert computed == {(True, dtype), (False, dtype)}


def test_pretrain__is_found_in_the_package():
    assert hf_mae.pretrain is pretrain


def test_model__goes_on_from_rgb_weights_on_other_channels(tiny_model, tmp_path):
    """As for satellite images; what is normalised by is then taken from them."""
    tiny_model(num_channels=3).save_pretrained(tmp_path)
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path)
    arguments = {"model_name_or_path": str(tmp_path), "num_channels": 5}
    with pytest.raises(ValueError, match="3 values for 5 channels"):
        build_model(PretrainingSettings(**arguments))
    model, processor = build_model(PretrainingSettings(compute_statistics=True, **arguments))
    assert model.config.num_channels == processor.num_channels == 5
    processor.image_mean, processor.image_std = [0.1] * 5, [0.2] * 5  # as the run then does
    pixel_values = processor(torch.rand(5, 32, 32), return_tensors="pt").pixel_values
    assert model(pixel_values).logits.shape[-1] == 5 * model.config.patch_size**2


def test_model__goes_on_with_the_steps_that_its_weights_know(tiny_model, tmp_path):
    """Foreign weights may know values in [0, 2] that are not normalised, though a mean is stated."""
    tiny_model().save_pretrained(tmp_path)
    steps = {"do_normalize": False, "rescale_factor": 1 / 127.5}
    MAEImageProcessor.for_image_size(32, image_mean=[0.5] * 3, **steps).save_pretrained(tmp_path)
    _, processor = build_model(PretrainingSettings(model_name_or_path=str(tmp_path)))
    assert (processor.do_normalize, processor.rescale_factor) == (False, 1 / 127.5)
    _, processor = build_model(PretrainingSettings(model_name_or_path=str(tmp_path), compute_statistics=True))
    assert (processor.do_normalize, processor.rescale_factor) == (True, 1 / 255)  # statistics are of values in [0, 1]


def test_model__of_an_adapter_is_refused(save_adapter, tmp_path):
    """All parameters of its model are frozen, so there would be nothing to train."""
    save_adapter(tmp_path / "adapter")
    settings = PretrainingSettings(model_name_or_path=str(tmp_path / "adapter"))
    for start in (build_model, config_of):
        with pytest.raises(OSError, match="adapter holds an adapter, and no model.*merge_and_unload"):
            start(settings)


def test_model__of_the_default_preset_predicts_normalised_patches():
    with torch.device("meta"):
        config = MAEConfig.from_preset(DEFAULTS["preset"])
    assert (config.hidden_size, config.num_hidden_layers) == (768, 12)


# ----------------------------------------------------------------------------------------------------------------------
# When something goes wrong


@pytest.mark.slow
def test_run__that_diverges_rolls_back_twice_and_ends(tmp_path, capsys):
    settings = {"learning_rate": 1e30, "warmup_ratio": 0.1, "max_bad_steps": 3, "save_steps": 1}
    with pytest.raises(FloatingPointError, match=r"also after two rollbacks to checkpoint-\d+.*`max_grad_norm` 1"):
        small(None, tmp_path, **settings)
    assert capsys.readouterr().out.count("rollback to checkpoint-") == 2


@pytest.mark.slow
def test_run__that_learns_nothing_fails_and_single_bad_steps_are_said(tmp_path, capsys, monkeypatch):
    forward = MAEForPreTraining.forward

    def bad_at(steps):
        calls = iter(range(1000))

        def spoilt(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            if self.training and next(calls) in steps:
                output.loss = output.loss * float("nan")
            return output

        monkeypatch.setattr(MAEForPreTraining, "forward", spoilt)

    bad_at(range(1000))
    with pytest.raises(FloatingPointError, match="not finite in 6 steps in a row up to step 6"):
        small(Squares(), tmp_path / "a", image_size=32, max_steps=6, save_steps=100)
    bad_at({2, 4})
    small(Squares(), tmp_path / "b", image_size=32, max_steps=6)
    printed = capsys.readouterr().out
    assert "Steps without finite loss or gradient are skipped, the first up to step 3." in printed
    assert "2 of 6 steps were skipped" in printed


@pytest.mark.slow
def test_run__does_not_delete_what_it_starts_from(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for start in (tmp_path / "run", tmp_path / "run" / "checkpoint-12"):
        with pytest.raises(ValueError, match="`overwrite_output_dir` would delete .*Choose another `output_dir`"):
            pretrain(None, tmp_path / "run", model=start, overwrite_output_dir=True, max_steps=1)
    assert same_tensors("model.safetensors", tmp_path / "run", finished[0])


@pytest.mark.slow
def test_run__without_its_weights_writes_them_again(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    small(None, tmp_path / "run")
    assert same_tensors("model.safetensors", tmp_path / "run", finished[0])


@pytest.mark.slow
def test_gradients__are_not_divided_by_what_the_environment_says(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    small(None, tmp_path / "run")
    assert metrics(tmp_path / "run", "grad_norm") == metrics(finished[0], "grad_norm")


def make_shards(folder):
    """Three tar files of twenty JPEGs each, one of which is cut."""
    folder.mkdir()
    for shard in range(3):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for number in range(20 * shard, 20 * shard + 20):
                buffer = io.BytesIO()
                picture(number, (40, 30)).resize((90, 70)).save(buffer, "JPEG")
                content = buffer.getvalue()[: 300 if number % 20 == 7 else None]
                info = tarfile.TarInfo(f"{number:03}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.slow
def test_run__on_shards_with_broken_pictures_statistics_and_views(tmp_path, capsys):
    data = tmp_path / "data"
    make_shards(data)
    settings = {"config_overrides": SMALL, "preset": "tiny", "image_size": 32, "patch_size": 8, "views_per_image": 3}
    settings.update(max_steps=6, effective_batch_size=30, logging_steps=2, save_steps=3, eval_images=40)
    settings.update(compute_statistics=True, held_out=0.01)
    pretrain(data, tmp_path / "run", report_to="tensorboard", **settings)
    printed = capsys.readouterr().out
    assert "1 of 60 images is held out" in printed
    assert "59 from" in printed
    assert "3 views of an image" in printed
    processor = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == pytest.approx([0.5] * 3, abs=0.03)  # of noise, not ImageNet's
    assert f"mean {processor['image_mean'][0]:.3g}" in printed
    named = [line.split("\t")[0] for line in (tmp_path / "run" / "unreadable.txt").read_text().splitlines()]
    assert sorted(named) == [f"{data}/train-{n}.tar:{20 * n + 7:03}.jpg" for n in range(3)]
    assert printed.count("Skipped, can't be read") == 3
    assert any(path.name.startswith("events.out") for path in (tmp_path / "run").rglob("*"))
    assert sorted(path.name for path in (tmp_path / "run" / "sheets").iterdir())[-1] == "step-0000006.png"

    with pytest.raises(RunStopped, match=r"of 59 images can't be read, more than `max_unreadable` 0.01") as stopped:
        pretrain(data, tmp_path / "strict", max_unreadable=0.01, **settings)
    assert stopped.value.exit_status == 1
    assert list((tmp_path / "strict").glob("checkpoint-*"))  # nothing is lost


@pytest.mark.slow
def test_run__replaces_an_unsuitable_picture_that_the_check_did_not_see(tmp_path, monkeypatch):
    """It is trained and evaluated on, and hours may be lost if it ended the run."""
    monkeypatch.setattr(run_images, "check_images", partial(check_images, max_images=30))
    (unseen, *_) = sorted(set(range(40)).difference(spread_indices(Squares(), 30).tolist()))

    class Many(Squares):
        def __getitem__(self, index):
            return np.zeros(9, np.uint8) if index == unseen else picture(index, (9, 9))

    settings = {"config_overrides": SMALL, "preset": "tiny", "image_size": 16, "patch_size": 8, "max_steps": 8}
    settings.update(effective_batch_size=20, per_device_train_batch_size=20, eval_images=200)
    settings.update(logging_steps=1, held_out=0)
    result = pretrain(Many(), tmp_path, **settings)
    assert result.metrics["step"] == 8
    (line,) = (tmp_path / "unreadable.txt").read_text().splitlines()
    assert line.startswith(f"image {unseen} of squares\tUnsuitableImageError: The image's shape (9,)")


def error_of_connection(unread):
    """What the connection to a process that is gone raises, as those of loader workers do."""
    ours, theirs = multiprocessing.Pipe()
    if unread:
        ours.send("unread")
    theirs.close()
    with pytest.raises((EOFError, ConnectionResetError)) as caught:
        ours.recv()
    return caught.value


def test_failures_of_loaders__say_what_to_do():
    no_room = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback ...\nRuntimeError: unable to "
    no_room += "allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)\n"
    killed = "DataLoader worker (pid 7) is killed by signal: Killed."
    assert "no room in shared memory. Lower `data" in failure_of_loader(RuntimeError(no_room), begun=False)
    reset, ended = error_of_connection(unread=True), error_of_connection(unread=False)
    assert (type(reset), type(ended)) == (ConnectionResetError, EOFError)
    for error in (RuntimeError(killed), reset, ended):
        assert "worker was killed, perhaps for lack of memory" in failure_of_loader(error, begun=True)
    for error in (RuntimeError("CUDA out of memory"), OSError(28, "No space left on device")):
        assert failure_of_loader(error, begun=True) is None


def test_error_of_a_tracker__is_not_taken_for_that_of_a_loader(tmp_path):
    class Away(SignalAt):
        def log(self, values, step=None):
            raise ConnectionRefusedError("the tracker is away")

    with pytest.raises(RunStopped, match=r"^A connection has failed: the tracker is away\. The run is saved at step 1"):
        small(None, tmp_path, trackers=[Away(0)])


def test_model__that_is_named_twice_is_refused(tmp_path):
    for model, name in (("tiny", "preset"), (tmp_path / "saved", "model_name_or_path")):
        with pytest.raises(ValueError, match=f"`model` and `{name}` both name a model"):
            pretrain(None, tmp_path / "out", model=model, **{name: "base"})


@pytest.mark.parametrize(("method", "expected"), [("fork", False), ("spawn", True), ("forkserver", True)])
def test_failures_of_loaders__name_what_scripts_need_where_workers_import_them(monkeypatch, method, expected):
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: method)
    message = failure_of_loader(RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), begun=True)
    assert ('if __name__ == "__main__":' in message) is expected


@pytest.mark.slow
def test_run__whose_images_go_away_saves_its_last_step(tmp_path):
    """As those of a file server that is restarted. Hours may lie between two checkpoints."""

    class Away(Squares):
        reads_left = 0

        def __getitem__(self, index):
            Away.reads_left -= 1
            if Away.reads_left < 0:
                raise OSError(errno.ESTALE, "Stale file handle")
            return picture(index)

    settings = {"model": "tiny", "config_overrides": SMALL, "image_size": 16, "patch_size": 8, "held_out": 0}
    settings.update(max_steps=4, effective_batch_size=8, logging_steps=1, eval_images=8, eval_steps=4)
    with pytest.raises(OSError, match="None of 10 images tried"):
        pretrain(Away(), tmp_path / "run", **settings)  # nothing is lost yet: a mistake of the user

    def stop_at_step_2(self, original=RunBatches.__next__):
        taken.append(1)
        Away.reads_left = 0 if len(taken) == 3 else 10**9
        return original(self)

    taken, Away.reads_left = [], 10**9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunBatches, "__next__", stop_at_step_2)
        with pytest.raises(RunStopped, match="None of 10 images tried .* is saved at step 2") as stopped:
            pretrain(Away(), tmp_path / "run", **settings)
    assert stopped.value.exit_status == 1
    Away.reads_left = 10**9
    for name in ("run", "whole"):
        pretrain(Away(), tmp_path / name, **settings)
    assert same_tensors("model.safetensors", tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_run__whose_no_data_is_nan_is_the_same_run(tmp_path, capsys):
    """NaN is not equal to itself, and has no name in JSON."""
    small(None, tmp_path, max_steps=2, nodata=float("nan"))
    small(None, tmp_path, max_steps=2, nodata=float("nan"))
    assert "is finished: 2 steps. Nothing to do." in capsys.readouterr().out
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["nodata"] == "nan"
    with pytest.raises(ValueError, match="nodata: nan there, None now"):
        small(None, tmp_path, max_steps=2)


@pytest.mark.slow
def test_run__of_changed_data_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(40):
        picture(number).save(tmp_path / "data" / f"{number}.png")
    settings = {"image_size": 32, "max_steps": 1, "effective_batch_size": 8}
    small(tmp_path / "data", tmp_path / "run", **settings)
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "data").rename(tmp_path / "moved")  # is the same data
    small(tmp_path / "moved", tmp_path / "run", **settings)
    (tmp_path / "run" / "run.json").unlink()
    picture(99).save(tmp_path / "moved" / "new.png")
    with pytest.raises(ValueError, match="num_images: 36 there, 37 now"):
        small(tmp_path / "moved", tmp_path / "run", **settings)


@pytest.mark.slow
def test_dry_run__prints_speed_and_leaves_nothing(tmp_path, capsys):
    result = small(None, tmp_path / "run", dry_run=True)
    printed = capsys.readouterr().out
    assert re.search(r"Dry run  [\d,.]+ images/s, \d+% of the time waiting for data, [\d.]+ GB of memory", printed)
    assert re.search(r"the run would take [\d.]+ hours", printed)
    assert result.metrics["images_per_second"] > 0
    assert not (tmp_path / "run").exists()
    assert not Path(result.output_dir).exists()


@pytest.mark.slow
def test_run__on_a_folder_from_a_checkpoint_with_a_recipe(finished, tmp_path, capsys, log):
    (tmp_path / "data").mkdir()
    for number in range(8):
        Image.radial_gradient("L").rotate(number * 40).resize((60, 50)).save(tmp_path / "data" / f"{number}.jpg")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_steps: 2\nper_device_train_batch_size: 4\nimage_size: 56\nnum_channels: 1\n")
    options = {"bf16": True, "gradient_checkpointing": True, "max_grad_norm": 1.0, "norm_pix_loss": True}
    pretrain(tmp_path / "data", tmp_path / "run", model=finished[0], recipe=recipe, max_steps=3, **options)
    printed = capsys.readouterr().out
    for fact in ("cpu, bf16", "7 from", "no labels", "56 x 56 pixels, 14 x 14 patches", "Steps    3"):
        assert fact in printed
    assert "norm_pix_loss" in log()
    processor = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.286]  # of the checkpoint


class Labelled(Squares):
    """Squares whose labels can be chosen."""

    def __init__(self, labels, names=None):
        self.labels, self.label_names = labels, names


def test_evaluation__needs_labels_for_knn(tiny_model, tmp_path):
    """Validation images of fewer classes are numbered by name; -1 is no label; without labels there is no figure."""
    from hf_mae.evaluation.monitoring import Evaluation

    model, processor = tiny_model(), MAEImageProcessor.for_image_size(32)
    train = Labelled(np.arange(40) % 2, ["a", "b"])

    def results(test):
        return Evaluation(train, test, processor, max_images=40)(model)

    assert "knn_accuracy" in results(Labelled(np.array([0, 1, -1, -1] * 10)))
    assert "knn_accuracy" not in results(Labelled(np.full(40, -1)))
    assert "knn_accuracy" not in results(Squares())
    patients = Labelled(np.arange(40) // 2)
    assert "knn_accuracy" not in Evaluation(patients, None, processor, max_images=40)(model)


def test_evaluation__of_other_classes_takes_them_for_no_label():
    from hf_mae.data.labels import forget_other_classes

    images = Labelled(np.array([0, 1, 2, -1]), ["zebra", "cat", "dog"])
    forget_other_classes(images, ["cat", "dog"])
    assert images.labels.tolist() == [-1, 0, 1, -1]
    assert images.label_names == ["cat", "dog"]
    images = Labelled(np.array([1, 2, 7]), None)  # texts, which in this split are all integers
    forget_other_classes(images, ["1", "2", "other"])
    assert images.labels.tolist() == [0, 1, -1]
