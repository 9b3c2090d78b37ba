# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""How fine-tuning starts, ends and goes on: other runs in the folder, broken checkpoints, signals, divergence."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import PLAIN, locked_by_another_process, picture, run_two_forks
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Trainer

from hf_mae import MAEImageProcessor
from hf_mae.data import shards
from hf_mae.evaluation.probing import probe_command
from hf_mae.finetuning.classification import ClassificationTrainer, finetune_command
from hf_mae.finetuning.experiment import latest_complete_checkpoint
from hf_mae.finetuning.trainer import FineTuningTrainer
from hf_mae.training.step_guard import RunStopped

# ----------------------------------------------------------------------------------------------------------------------
# The output folder


@pytest.mark.slow
def test_folder_of_another_run__is_refused_with_the_differences(call, short, pretrained, folder, tmp_path):
    call(finetune_command, *short)
    with pytest.raises(ValueError, match="(?s)out holds another run.*from_scratch: the default there, True now"):
        call(finetune_command, *short, "--from_scratch")
    with pytest.raises(ValueError, match="(?s)learning_rate: 0.001 there, 0.01 now.*`overwrite_output_dir`"):
        call(finetune_command, *short, "--learning_rate", "1e-2")
    call(finetune_command, *short, "--logging_steps", 1, "--save_total_limit", 1)  # still the same run
    nan = [*short, "--max_steps", 1, "--nodata", "nan", "--overwrite_output_dir"]
    call(finetune_command, *nan)
    call(finetune_command, *nan[:-1])  # NaN is not equal to itself
    call(finetune_command, *short, "--overwrite_output_dir")
    weights = load_file(pretrained / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, pretrained / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="initial weights: "):
        call(finetune_command, *short)
    save_file(weights, pretrained / "model.safetensors", {"format": "pt"})
    (folder / "train" / "red" / "0.png").rename(folder / "train" / "blue" / "100.png")
    with pytest.raises(ValueError, match="\n  images: .* there, .* now\n  labels: "):
        call(finetune_command, *short)


@pytest.mark.slow
def test_run__does_not_delete_what_it_starts_from(call, short, pretrained):
    with pytest.raises(ValueError, match="`overwrite_output_dir` would delete .*pretrained"):
        call(finetune_command, *short, "--output_dir", pretrained, "--overwrite_output_dir")
    assert (pretrained / "model.safetensors").exists()


@pytest.mark.parametrize("command", [finetune_command, probe_command])
def test_run__that_cannot_start_deletes_nothing(call, tiny_model, folder, tmp_path, command):
    (tmp_path / "out").mkdir()
    for name in ("experiment.json", "model.safetensors"):  # what an earlier run has left
        (tmp_path / "out" / name).write_text("{}")
    common = ["--data", folder, "--output_dir", tmp_path / "out", "--overwrite_output_dir"]
    for fields, flags, message in (
        ({"num_channels": 5}, [], "has 3 band"),
        ({"image_size": (32, 64)}, ["--rotate90"], "`rotate90` needs square images"),
    ):
        tiny_model(**fields).save_pretrained(tmp_path / "model")
        size, channels = fields.get("image_size", 32), fields.get("num_channels", 3)
        MAEImageProcessor.for_image_size(size, num_channels=channels).save_pretrained(tmp_path / "model")
        with pytest.raises(ValueError, match=message):
            call(command, "--model_name_or_path", tmp_path / "model", *common, *flags)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["experiment.json", "model.safetensors"]


def test_run__that_cannot_push_deletes_nothing(call, short, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mae.publishing.hub.get_token", lambda: None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="Pushing to the Hub needs an access token"):
        call(finetune_command, *short, "--push_to_hub", "--overwrite_output_dir")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_probe__that_fails_leaves_its_folder_to_others(call, short, tmp_path, monkeypatch):
    """The process may go on, as that of a notebook does."""

    def fail(*args):
        assert (tmp_path / "out" / ".lock").exists()
        raise MemoryError

    monkeypatch.setattr("hf_mae.evaluation.probing.probe_features", fail)
    with pytest.raises(MemoryError):
        call(probe_command, *short[:4], "--fast", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out" / ".lock").exists()


@pytest.mark.slow
def test_run__without_images_to_evaluate_on_ends_well(call, short, folder, tmp_path):
    shutil.rmtree(folder / "val")
    call(finetune_command, *short, "--held_out", 0, "--num_train_epochs", 1)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["metrics"] == {}
    assert (tmp_path / "out" / "README.md").exists()


@pytest.mark.slow
def test_run__whose_files_were_cut_off_writes_them_again_or_names_them(call, short, tmp_path):
    """transformers reads all_results.json before it writes it: the run trained, and failed at its last file."""
    call(finetune_command, *short)
    figures = (tmp_path / "out" / "eval_results.json").read_text()
    for name in ("eval_results.json", "all_results.json", "run.json"):
        (tmp_path / "out" / name).write_text('{"eval')
    call(finetune_command, *short)
    before, after = (json.loads(text) for text in (figures, (tmp_path / "out" / "all_results.json").read_text()))
    assert before["eval_accuracy"] == after["eval_accuracy"]
    (tmp_path / "out" / "experiment.json").write_text("")
    with pytest.raises(ValueError, match="experiment.json is no JSON .* take it away"):
        call(finetune_command, *short)


@pytest.mark.slow
def test_run__that_goes_on_adds_up_its_hours(call, short, tmp_path, monkeypatch):
    call(finetune_command, *short)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (seconds,) = [
        json.loads(path.read_text()) for path in (tmp_path / "out").glob("checkpoint-6/training_seconds.json")
    ]
    assert 0 < seconds / 3600 <= record["hours"]
    call(finetune_command, *short)  # it is finished
    assert json.loads((tmp_path / "out" / "run.json").read_text())["hours"] >= seconds / 3600


@pytest.mark.slow
def test_run__that_ended_within_an_epoch_stays_as_it_is_when_it_is_started_again(call, short, tmp_path):
    """Trainer looks whether it is at the end after a step only, and would take a third one."""
    said = call(finetune_command, *short, "--max_steps", 2)
    assert f"Done: model, card and eval_results.json are in {tmp_path / 'out'}." in said
    weights = load_file(tmp_path / "out" / "model.safetensors")
    call(finetune_command, *short, "--max_steps", 2)
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [finetune_command, probe_command])
def test_run__is_alone_in_its_folder_until_its_end(call, short, tmp_path, command):
    """Another process is refused before anything is changed; a run that is refused or has ended keeps nobody out."""
    (tmp_path / "out").mkdir()
    arguments = short if command == finetune_command else [*short[:6], "--fast"]
    with locked_by_another_process(tmp_path / "out"):
        with pytest.raises(ValueError, match="Another run writes into"):
            call(command, *arguments, "--overwrite_output_dir")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    call(command, *arguments)
    assert not (tmp_path / "out" / ".lock").exists()
    with pytest.raises(ValueError, match="holds another run"):
        call(command, *arguments, "--seed", 7)
    assert not (tmp_path / "out" / ".lock").exists()


@pytest.mark.slow
def test_folder_of_another_run__can_be_overwritten(call, short, tmp_path):
    call(finetune_command, *short)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    call(finetune_command, *short, "--from_scratch", "--overwrite_output_dir", "--max_steps", 1)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["recipe"]["from_scratch"] is True
    assert (tmp_path / "out" / "notes.txt").exists()


@pytest.mark.slow
def test_parquet__is_read_by_row_group_and_not_a_row_group_for_each_image(
    call, pretrained, tmp_path, monkeypatch, folder
):
    """In an order that is random altogether, nearly every image would cost a row group of 4."""
    import datasets

    pictures = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    pictures = datasets.concatenate_datasets([pictures] * 4)  # 96 pictures
    (tmp_path / "files").mkdir()
    for split in ("train", "test"):
        pictures.shuffle(seed=0).to_parquet(tmp_path / "files" / f"{split}-0.parquet", batch_size=4)
    monkeypatch.setattr(shards, "_CACHED_ROW_GROUPS", 2)
    reads, read = [], shards.ParquetImages._read
    monkeypatch.setattr(shards.ParquetImages, "_read", lambda images, group: reads.append(group) or read(images, group))
    arguments = ["--model_name_or_path", pretrained, "--data", tmp_path / "files", *PLAIN]
    arguments += ["--per_device_train_batch_size", 8, "--num_train_epochs", 2, "--eval_strategy", "no"]
    call(finetune_command, *arguments, "--output_dir", tmp_path / "out")
    in_order, first = len(reads), list(reads)
    call(finetune_command, *arguments, "--data_seed", 5, "--output_dir", tmp_path / "other")
    assert reads[in_order:] != first
    del reads[in_order:]
    monkeypatch.setattr(FineTuningTrainer, "_get_train_sampler", Trainer._get_train_sampler)
    call(finetune_command, *arguments, "--output_dir", tmp_path / "random")
    assert len(reads) - in_order > in_order + 96  # of two epochs


@pytest.mark.slow
def test_parquet__a_choice_of_images_is_read_by_row_group_too(call, pretrained, tmp_path, monkeypatch):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [picture(number) for number in range(96)], "label": [0, 1] * 48}
    (tmp_path / "files").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "files" / "train.parquet", batch_size=4)
    monkeypatch.setattr(shards, "_CACHED_ROW_GROUPS", 2)
    chosen = np.random.default_rng(0).permutation(96)[:48]
    reads, read, train = [], shards.ParquetImages._read, FineTuningTrainer._train_until_stopped
    monkeypatch.setattr(shards.ParquetImages, "_read", lambda images, group: reads.append(group) or read(images, group))

    def count(*arguments):
        reads.clear()
        seconds = train(*arguments)
        reads_of_training.extend(reads)
        return seconds

    reads_of_training = []
    monkeypatch.setattr(FineTuningTrainer, "_train_until_stopped", count)
    arguments = ["--model_name_or_path", pretrained, "--data", tmp_path / "files", *PLAIN, "--held_out", 0]
    arguments += ["--max_train_images", 48, "--seed", 0, "--num_train_epochs", 1, "--per_device_train_batch_size", 8]
    call(finetune_command, *arguments, "--output_dir", tmp_path / "out")
    assert sorted(reads_of_training) == np.unique(chosen // 4).tolist()


def test_folder_of_a_model__is_no_place_for_a_run(call, short, pretrained):
    common = ["--output_dir", pretrained]
    for command, arguments in (
        (finetune_command, short),
        (probe_command, [*short[:4], "--fast", "--base_learning_rates", 1]),
    ):
        with pytest.raises(ValueError, match="pretrained holds a model .*`output_dir`"):
            call(command, *arguments, *common)


@pytest.mark.slow
def test_probe_in_the_folder_of_another__is_refused(call, pretrained, folder, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--output_dir", tmp_path / "out", "--fast"]
    arguments += ["--base_learning_rates", 1, "--num_neighbors", 3]
    for epochs in (5, 5):  # the same probe may be trained again
        call(probe_command, *arguments, "--num_train_epochs", epochs)
    with pytest.raises(ValueError, match="num_train_epochs: 5.0 there, 6.0 now"):
        call(probe_command, *arguments, "--num_train_epochs", 6)
    with pytest.raises(ValueError, match="task: probe there, finetune now"):
        call(finetune_command, *arguments[:6], "--num_train_epochs", 5)


# ----------------------------------------------------------------------------------------------------------------------
# How runs end, and go on


@pytest.mark.slow
def test_checkpoint__that_is_incomplete_is_passed_over(call, short, tmp_path, log):
    call(finetune_command, *short)
    whole, out = load_file(tmp_path / "out" / "model.safetensors"), tmp_path / "out"
    for damaged in ("manifest.json", "optimizer.pt", "model.safetensors"):
        content = (out / "checkpoint-6" / damaged).read_bytes()
        (out / "checkpoint-6" / damaged).write_bytes(content[: len(content) // 2])
        assert latest_complete_checkpoint(out).name == "checkpoint-3", damaged
        (out / "checkpoint-6" / damaged).write_bytes(content)
    assert latest_complete_checkpoint(out).name == "checkpoint-6"
    (out / "checkpoint-6" / "optimizer.pt").unlink()
    assert f"Continues from {out / 'checkpoint-3'}." in call(finetune_command, *short)
    assert "checkpoint-6 is broken" in log()
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_checkpoint__of_weights_alone_is_nothing_to_go_on_from(call, short, tmp_path):
    """Trainer would go on with a fresh optimizer, and with learning rates from the first one on."""
    call(finetune_command, *short, "--save_only_model")
    whole, out = load_file(tmp_path / "out" / "model.safetensors"), tmp_path / "out"
    shutil.rmtree(out / "checkpoint-6")
    assert latest_complete_checkpoint(out) is None
    assert "Continues from" not in call(finetune_command, *short)
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_batch_size__that_changes_during_a_run_is_refused(call, short, tmp_path):
    """The learning rate would stay that of larger batches, and the record would state those."""
    with pytest.raises(ValueError, match="`auto_find_batch_size` .* set `per_device_train_batch_size` .* and `grad"):
        call(finetune_command, *short, "--auto_find_batch_size")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["_save_checkpoint", "save_model"])
@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),  # of torch.save
    ],
)
def test_full_disk__ends_the_run_with_what_to_do(call, short, tmp_path, monkeypatch, when, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Trainer, when, fail)
    strategy = "epoch" if when == "_save_checkpoint" else "no"
    arguments = [*short, "--max_steps", 1, "--eval_strategy", "no", "--save_strategy", strategy]
    with pytest.raises(
        RunStopped, match="could not be saved in .*out.* MB are free: .*: make room, and the same command begins anew"
    ) as stop:
        call(finetune_command, *arguments)
    assert stop.value.exit_status == 1
    monkeypatch.undo()
    call(finetune_command, *arguments)
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_full_disk__is_not_kept_full_by_what_was_saved_of_a_checkpoint(call, short, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", fail)  # after the weights
    with pytest.raises(RunStopped, match="No space left"):
        call(finetune_command, *short)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["experiment.json"]


@pytest.mark.slow
def test_full_disk__at_the_end_names_the_checkpoint_to_go_on_from(call, short, tmp_path, monkeypatch):
    save_model = Trainer.save_model

    def fail_at_the_end(trainer, folder=None, **kwargs):
        if folder is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_model(trainer, folder, **kwargs)

    monkeypatch.setattr(Trainer, "save_model", fail_at_the_end)
    with pytest.raises(RunStopped, match="Complete checkpoints stay: make room, and the same command goes on"):
        call(finetune_command, *short)


@pytest.mark.slow
def test_killed_while_saving__leaves_the_checkpoint_before(call, short, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(trainer, output_dir):
        if trainer.state.global_step == 6:
            raise Killed

    monkeypatch.setattr(FineTuningTrainer, "_save_rng_state", die)
    with pytest.raises(Killed):
        call(finetune_command, *short, "--save_total_limit", 1)
    assert (tmp_path / "out" / "checkpoint-6" / "model.safetensors").exists()
    assert latest_complete_checkpoint(tmp_path / "out").name == "checkpoint-3"
    monkeypatch.undo()
    call(finetune_command, *short, "--save_total_limit", 1)
    assert latest_complete_checkpoint(tmp_path / "out").name == "checkpoint-6"
    assert not (tmp_path / "out" / "checkpoint-3").exists()


@pytest.fixture
def signal_at(monkeypatch):
    """Makes runs of Trainer receive signals at some steps."""

    def arrange(signals):
        step = FineTuningTrainer.training_step

        def training_step(trainer, *args, **kwargs):
            for number in signals.get(trainer.state.global_step, ()):
                os.kill(os.getpid(), number)
            return step(trainer, *args, **kwargs)

        monkeypatch.setattr(FineTuningTrainer, "training_step", training_step)

    return arrange


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stop_signal__saves_ends_and_the_same_command_gives_the_same_model(
    call, short, tmp_path, monkeypatch, signal_at, number
):
    call(finetune_command, *short, "--rand_augment", 5, "--output_dir", tmp_path / "whole")
    before = signal.getsignal(number)
    signal_at({4: [number]})
    with pytest.raises(RunStopped, match="after step 5 of 6") as stopped:
        call(finetune_command, *short, "--rand_augment", 5)
    assert stopped.value.exit_status == 128 + number
    assert signal.getsignal(number) == before
    assert not (tmp_path / "out" / "run.json").exists()
    monkeypatch.undo()
    assert "checkpoint-5." in call(finetune_command, *short, "--rand_augment", 5)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.slow
def test_stop_signal__saves_also_where_a_later_checkpoint_is_broken(call, short, tmp_path, signal_at, monkeypatch):
    """It counted as the newest: with room for one, what had just been saved was deleted, and each run began anew."""
    out, limit = tmp_path / "out", ["--save_total_limit", 1]
    call(finetune_command, *short, *limit)
    whole = load_file(out / "model.safetensors")
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"]
    (out / "checkpoint-6" / "manifest.json").unlink()
    signal_at({3: [signal.SIGTERM]})
    with pytest.raises(RunStopped, match="after step 4 of 6"):
        call(finetune_command, *short, *limit)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert latest_complete_checkpoint(out).name == "checkpoint-4"
    monkeypatch.undo()
    assert "checkpoint-4." in call(finetune_command, *short, *limit)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"]
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "way_on"),
    [
        ("--overwrite_output_dir", "The same command, without `overwrite_output_dir`, goes on from there."),
        ("--save_only_model", "The same command begins anew, as `save_only_model` saves weights alone."),
    ],
)
def test_stop_signal__names_the_command_that_goes_on(call, short, signal_at, flag, way_on):
    """As it was given it would delete the run, or begin anew."""
    signal_at({1: [signal.SIGTERM]})
    with pytest.raises(RunStopped, match=way_on):
        call(finetune_command, *short, flag)


@pytest.mark.slow
def test_second_signal__ends_at_once(call, short, tmp_path, signal_at):
    signal_at({1: [signal.SIGTERM, signal.SIGTERM]})
    with pytest.raises(KeyboardInterrupt):
        call(finetune_command, *short)
    assert latest_complete_checkpoint(tmp_path / "out") is None


@pytest.mark.slow
def test_loss_that_is_not_finite__ends_the_run_and_publishes_nothing(call, short, pretrained, tmp_path):
    weights = load_file(pretrained / "model.safetensors")
    weights["mae.layers.0.mlp.fc1.bias"][0] = torch.nan
    save_file(weights, pretrained / "model.safetensors", {"format": "pt"})
    with pytest.raises(FloatingPointError, match="at step 1: .*learning rate.*`max_grad_norm`"):
        call(finetune_command, *short)
    assert not list((tmp_path / "out").glob("**/*.safetensors"))
    assert not (tmp_path / "out" / "run.json").exists()


def test_image_with_nan__is_named_before_the_first_step(call, short, folder, tmp_path):
    pixels = np.full((40, 40, 3), 0.5, dtype=np.float32)
    pixels[7, 11, 0] = np.nan
    np.save(folder / "train" / "red" / "bad.npy", pixels)
    for arguments in (short, [*short[:4], "--output_dir", tmp_path / "probe", "--fast"]):
        command = probe_command if "--fast" in arguments else finetune_command
        with pytest.raises(ValueError, match="bad.npy: .*row 7, column 11"):
            call(command, *arguments)
    assert not list(tmp_path.glob("*/checkpoint-*"))


@pytest.mark.slow
def test_gradient_that_is_not_finite__ends_the_run(call, short, tmp_path, monkeypatch):
    step = FineTuningTrainer.training_step

    def training_step(trainer, *args, **kwargs):
        loss = step(trainer, *args, **kwargs)
        if trainer.state.global_step == 4:
            next(trainer.model.parameters()).grad.view(-1)[0] = torch.inf
        return loss

    monkeypatch.setattr(FineTuningTrainer, "training_step", training_step)
    with pytest.raises(FloatingPointError, match="gradient norm (inf|nan) at step 5"):
        call(finetune_command, *short)
    assert latest_complete_checkpoint(tmp_path / "out").name == "checkpoint-3"


# ----------------------------------------------------------------------------------------------------------------------
# Batches


@pytest.mark.slow
def test_last_batch_of_one__is_left_out_of_the_training_of_a_probe_only(call, pretrained, folder, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--num_train_epochs", 1]
    for number, flags in enumerate((["--per_device_train_batch_size", 23], ["--dataloader_drop_last"])):
        out = tmp_path / str(number)
        flags += ["--per_device_eval_batch_size", 5, "--save_strategy", "epoch"]
        call(probe_command, *arguments, *flags, "--output_dir", out)
        state = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())
        assert state["global_step"] == 1
        correct = json.loads((out / "eval_results.json").read_text())["linear_accuracy"] * 12  # of all 12 images
        assert correct == pytest.approx(round(correct))


@pytest.mark.parametrize("command", [finetune_command, probe_command])
def test_evaluation__leaves_out_what_cannot_be_read(call, pretrained, folder, tmp_path, command):
    """Not that another image is counted twice, in its place."""
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--num_train_epochs", 1]
    arguments += ["--per_device_train_batch_size", 8, "--per_device_eval_batch_size", 20]
    results = []
    for number in range(2):
        call(command, *arguments, "--output_dir", tmp_path / str(number))
        results.append(json.loads((tmp_path / str(number) / "eval_results.json").read_text()))
        for name in ("blue", "red"):
            (folder / "val" / name / "00.png").write_bytes(b"")
    for name in {"eval_loss", "eval_accuracy", "linear_accuracy"} & set(results[0]):
        assert results[0][name] == pytest.approx(results[1][name]), name


def run_as_rank(rank, port, command, arguments):
    """What one of two processes does."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that was forked
    command([*map(str, arguments), "--disable_tqdm", "true", "--use_cpu", "true"], prog="hf-mae")
    os._exit(0)


def evaluations(folder):
    """Returns the loss and the accuracy that a run of a step has logged."""
    state = json.loads((folder / "checkpoint-1" / "trainer_state.json").read_text())
    line = next(line for line in state["log_history"] if "eval_loss" in line)
    return [line["eval_loss"], line["eval_accuracy"]]


@pytest.mark.parametrize("command", [finetune_command, probe_command])
def test_evaluation__weighs_images_alike_whatever_their_batch_is(call, pretrained, folder, tmp_path, command):
    """Also those of batches in which some can't be read."""
    (folder / "val" / "blue" / "0.png").write_bytes(b"")
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--max_steps", 1, "--save_strategy", "epoch"]
    for size in (5, 20):
        sizes = ["--per_device_train_batch_size", 8, "--per_device_eval_batch_size", size]
        call(command, *arguments, *sizes, "--output_dir", tmp_path / str(size))
    assert evaluations(tmp_path / "5") == pytest.approx(evaluations(tmp_path / "20"), rel=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, which is much faster than starting Python")
def test_evaluation__counts_no_image_again_that_fills_up_the_last_batch_of_several_processes(call, short, tmp_path):
    arguments = [*short, "--learning_rate", 0.03, "--warmup_steps", 0, "--max_steps", 1]
    arguments += ["--per_device_eval_batch_size", 5]
    call(finetune_command, *arguments, "--output_dir", tmp_path / "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments += ["--per_device_train_batch_size", 4, "--output_dir", tmp_path / "2"]
    run_two_forks(run_as_rank, port, finetune_command, arguments)
    assert evaluations(tmp_path / "2") == pytest.approx(evaluations(tmp_path / "1"), rel=1e-5)


def test_best_model__by_a_figure_that_there_is_not_names_those_that_there_are(call, short, tmp_path):
    arguments = [*short, "--max_steps", 1, "--load_best_model_at_end", "--metric_for_best_model", "f1"]
    with pytest.raises(ValueError, match="`metric_for_best_model` f1 is none of the figures: accuracy, .*loss"):
        call(finetune_command, *arguments)


BEST = ["--save_total_limit", 1, "--load_best_model_at_end", "--eval_strategy", "steps", "--save_strategy", "steps"]
BEST += ["--eval_steps", 1, "--save_steps", 1, "--metric_for_best_model", "loss", "--greater_is_better", True]


@pytest.mark.slow
def test_best_model__costs_a_run_that_is_stopped_none_of_its_steps(call, short, tmp_path, signal_at, monkeypatch):
    """With room for one checkpoint Trainer deleted all but the best at the end, also what the signal had saved."""
    call(finetune_command, *short, *BEST, "--output_dir", tmp_path / "whole")
    signal_at({4: [signal.SIGTERM]})
    with pytest.raises(RunStopped, match="after step 5 of 6"):
        call(finetune_command, *short, *BEST)
    assert latest_complete_checkpoint(tmp_path / "out").name == "checkpoint-5"
    state = json.loads((tmp_path / "out" / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 1
    monkeypatch.undo()
    call(finetune_command, *short, *BEST)
    (tmp_path / "out").rename(tmp_path / "moved")  # after its last step: the best is found there, too
    call(finetune_command, *short, *BEST, "--output_dir", tmp_path / "moved")
    whole, best = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "moved"))
    assert all(torch.equal(value, best[name]) for name, value in whole.items())
    weights = tmp_path / "moved" / "checkpoint-1" / "model.safetensors"
    for damage in (lambda: weights.write_bytes(weights.read_bytes()[:99]), lambda: shutil.rmtree(weights.parent)):
        damage()  # the last model is not the best one
        with pytest.raises(ValueError, match="(?s)`load_best_model_at_end` needs .*checkpoint-1, .*checkpoint-6, and"):
            call(finetune_command, *short, *BEST, "--output_dir", tmp_path / "moved")


@pytest.mark.slow
def test_log__has_the_full_learning_rate(call, short, tmp_path):
    """That of the heads, which the plan says and the settings name, not that of the embeddings."""
    schedule = ["--lr_scheduler_type", "cosine", "--warmup_steps", 2, "--logging_steps", 1, "--layer_decay", 0.5]
    call(finetune_command, *short, *schedule)
    state = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    rates = [line["learning_rate"] for line in state["log_history"] if "learning_rate" in line]
    assert rates == pytest.approx(
        [1e-3 * share for share in (0, 0.5, 1, *(np.cos(np.pi * np.arange(1, 4) / 4) + 1) / 2)]
    )


@pytest.mark.slow
def test_drop_last__leaves_evaluation_whole(call, short, folder, tmp_path):
    for path in (folder / "val" / "red").iterdir():
        path.unlink()  # a batch of 8 is all that is left: dropping the last would drop blue or green
    (folder / "val" / "red").rmdir()
    call(finetune_command, *short, "--dataloader_drop_last", "--per_device_eval_batch_size", 5)
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_accuracy_red"] is None
    assert results["eval_accuracy_blue"] is not None
    assert results["eval_accuracy_green"] is not None


@pytest.mark.slow
def test_loader_workers__are_gone_at_the_end_of_a_run(call, short, monkeypatch):
    """They ignore SIGTERM, with which Python would end them, and then it would wait for them for ever."""
    call(finetune_command, *short, "--dataloader_num_workers", 2, "--num_train_epochs", 1)
    assert not multiprocessing.active_children()
    monkeypatch.setattr(ClassificationTrainer, "finish_model", lambda trainer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(finetune_command, *short, "--dataloader_num_workers", 2, "--num_train_epochs", 1)
    assert not multiprocessing.active_children()
