# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the network, and a test that tries it should fail at once
# Threads only wait for each other in models this small: on a busy machine of two cores forty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is expected here does not depend on a GPU. To see what differs on one: CUDA_VISIBLE_DEVICES=0.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # and idle threads sleep

import multiprocessing
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file
from transformers.utils import logging

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor, cli

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
# A run of twelve steps on the embedded images, in seconds.
SMALL = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,decoder_hidden_size=16,"
SMALL += "decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=16"
STEPS = {
    "max_steps": 12,
    "effective_batch_size": 24,
    "per_device_train_batch_size": 24,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_steps": 5,
    "eval_steps": 6,
    "eval_images": 50,
    "log_samples": True,
}
OFFICIAL_HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 4}


def pytest_collection_modifyitems(items):
    """Begins with files that are slow as a whole: processes that share the files then end at about the same time."""
    items.sort(key=lambda item: item.getparent(pytest.Module).get_closest_marker("slow") is None)


def picture(number=0, size=(40, 30), mode="RGB"):
    """A picture of noise, another for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def make(folder, *names, size=(40, 30)):
    """Saves pictures under names in a folder."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, size).save(folder / name)


@contextmanager
def no_room_beyond(size):
    """Lets writing more than some bytes to a file fail, as on a full disk."""
    import resource  # not on Windows

    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def names_of(images):
    """Returns the paths of the images of a source below its folder."""
    return [os.path.relpath(images.describe(index), images.name) for index in range(len(images))]


def patience(seconds):
    """Returns a time budget that grows with the load of the machine."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def run_two_forks(target, *arguments):
    """Calls a function in two forks of this process, with (rank, *arguments), and checks that both succeed.

    The function must end by `os._exit(0)`: what pytest would do at the end is not for a fork.
    """
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=(rank, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(patience(60))
        process.kill()
        assert process.exitcode == 0


def metrics(output_dir, name):
    """Returns the logged values of one kind by step."""
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def samples(output_dir):
    """Returns the samples of a run from all its processes, each as the line that was logged."""
    return sorted({line for path in output_dir.glob("samples-*.jsonl") for line in path.read_text().splitlines()})


def same_tensors(file, ours, theirs):
    """Returns whether the files of two folders hold the same tensors, bit for bit."""
    ours, theirs = load_file(ours / file), load_file(theirs / file)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@contextmanager
def locked_by_another_process(folder):
    """Holds the lock that a run holds in its folder; the file stays, as after a run that was killed."""
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)"
    code += "; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, folder / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        yield
        other.stdin.close()


class SignalAt(GeneralTracker):
    """Sends signals to this process when a step is logged."""

    name, requires_logging_directory = "signal", False

    def __init__(self, step, *numbers):
        super().__init__()
        self.step, self.numbers = step, numbers

    @property
    def tracker(self):
        return None

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None):
        if step == self.step and "loss" in values:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    torch.manual_seed(0)
    logging.disable_progress_bar()
    cli._flags.clear()  # of commands that other tests of this process have run: messages name parameters in Python


@pytest.fixture
def log(monkeypatch, caplog):
    """Returns the log of the package so far."""
    monkeypatch.setattr(logging.get_logger("hf_mae"), "propagate", True)
    logging.enable_propagation()
    yield lambda: caplog.text
    logging.disable_propagation()


@pytest.fixture
def tiny_config():
    """Makes a configuration of a model that is fast; fields by keyword."""
    return lambda **fields: MAEConfig(**{**TINY, **fields})


@pytest.fixture
def tiny_model(tiny_config):
    """Makes a small pre-training model in evaluation mode; fields of the configuration by keyword."""
    return lambda **fields: MAEForPreTraining(tiny_config(**fields)).eval()


@pytest.fixture
def save_adapter(tiny_model):
    """Writes an adapter of a small pre-training model, which is left in `model` next to it, and an image processor."""
    peft = pytest.importorskip("peft")

    def save(folder):
        tiny_model().save_pretrained(folder.with_name("model"))
        model = MAEForPreTraining.from_pretrained(folder.with_name("model"))
        peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv"])).save_pretrained(folder)
        MAEImageProcessor.for_image_size(32).save_pretrained(folder)

    return save


@pytest.fixture(scope="session")
def official():
    """Numbers of the official code, see fixtures/README.md."""
    return load_file(Path(__file__).parent / "fixtures" / "official_mae_tiny.safetensors")


@pytest.fixture(scope="session")
def official_weights(official):
    return {name.removeprefix("weights."): tensor for name, tensor in official.items() if name.startswith("weights.")}


# ----------------------------------------------------------------------------------------------------------------------
# Fine-tuning on pictures of three colours, which a tiny model learns in a few steps

PLAIN = ["--rand_augment", "0", "--random_erasing", "0", "--mixup", "0", "--cutmix", "0", "--label_smoothing", "0"]
PLAIN += ["--drop_path_rate", "0", "--crop_scale_min", "0.9", "--layer_decay", "1"]


@pytest.fixture
def call(capsys):
    """Runs a command in this process and returns what it printed."""

    def run(command, *arguments):
        command([*map(str, arguments), "--disable_tqdm", "true", "--use_cpu", "true"], prog="hf-mae")
        return capsys.readouterr().out

    return run


@pytest.fixture
def pretrained(tiny_model, tmp_path):
    """A folder with a pre-trained model for pictures of 32 pixels."""
    tiny_model().save_pretrained(tmp_path / "pretrained")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.fixture
def folder(tmp_path):
    """Pictures of three colours in sub-folders named by them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in (("blue", (40, 40, 200)), ("green", (40, 200, 40)), ("red", (200, 40, 40))):
            place = tmp_path / "data" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(picture(number)) * 0.2 + colour + rng.integers(-20, 20), 0, 255)
                PIL.Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def short(pretrained, folder, tmp_path):
    """Arguments of a run of 6 steps, 3 an epoch, without augmentation."""
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--output_dir", tmp_path / "out", *PLAIN]
    return [*arguments, "--per_device_train_batch_size", 8, "--num_train_epochs", 2, "--learning_rate", "1e-3"]
