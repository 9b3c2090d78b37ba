# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""How many images of a pre-training run go through the model at once."""

import math
import signal

import pytest
import torch
from conftest import SMALL, STEPS, metrics
from test_pretraining import SignalAt, Squares

from hf_mae.pretraining import batch_size
from hf_mae.pretraining import run as pretraining_run
from hf_mae.pretraining.batch_size import choose_batch_size, largest_batch_size
from hf_mae.pretraining.command import pretrain
from hf_mae.training.checkpointing import latest_checkpoint, load_training_state
from hf_mae.training.step_guard import RunStopped

# ----------------------------------------------------------------------------------------------------------------------
# The search


@pytest.mark.parametrize(
    ("budget", "limit", "expected"),
    [
        (100, 1000, 32),  # 45 would fit: powers of two are tried
        (74, 1000, 32),  # just
        (73, 1000, 16),
        (100, 24, 24),  # a step has no more images
        (40, 24, 8),
        (12, 1000, 1),
        (100, 1, 1),
    ],
)
def test_largest_batch__is_the_largest_that_fits_and_larger_ones_are_not_tried(budget, limit, expected):
    tried = []

    def peak_memory(size):
        tried.append(size)
        return 10 + 2 * size

    assert largest_batch_size(peak_memory, budget, limit) == expected
    assert max(tried) == max(expected, min(2, limit))  # of two images nothing is known before they are tried


def test_largest_batch__when_memory_runs_out():
    assert largest_batch_size(lambda size: 1.0 if size < 8 else math.inf, 100, 1000) == 4
    with pytest.raises(ValueError, match="no memory for a step with a single image.*`gradient_checkpointing`"):
        largest_batch_size(lambda size: math.inf, 100, 1000)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on paper with 1,000 bytes, of which 100 are taken by others; an image takes 10, the model 50."""
    used = {"bytes": 0}
    for name, value in {
        "mem_get_info": lambda device: (850, 1000),
        "memory_reserved": lambda device: 50,
        "max_memory_reserved": lambda device: used["bytes"],
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def try_batch(size):
        used["bytes"] = 50 + 10 * size
        if used["bytes"] > 900:
            raise torch.OutOfMemoryError

    return torch.device("cuda", 0), try_batch


def test_choice__on_a_gpu_goes_by_its_free_memory(gpu):
    assert choose_batch_size(None, None, 4096, *gpu) == 64
    assert choose_batch_size(None, None, 70, *gpu) == 70


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        pytest.param([1000, *[0] * 9], 64, id="has more"),
        pytest.param([380, *[0] * 9], 32, id="has less"),
        pytest.param([1000, 0, 0, 0, math.inf], 4, id="runs out of it at the fourth trial"),
    ],
)
def test_choice__is_that_of_the_process_with_the_least_memory(gpu, monkeypatch, theirs, expected):
    """Of another process: first what it may use, then what each of its trials needs."""
    theirs = iter(theirs)
    monkeypatch.setattr(batch_size, "gather_from_processes", lambda mine: [mine, next(theirs)])
    assert choose_batch_size(None, None, 4096, *gpu) == expected


def test_choice__of_the_user_comes_first_then_that_of_the_run_before(gpu):
    assert choose_batch_size(7, 9, 4096, *gpu) == 7
    assert choose_batch_size(None, 9, 4096, *gpu) == 9
    assert choose_batch_size(None, 9, 4096, torch.device("cpu"), None) == 64


# ----------------------------------------------------------------------------------------------------------------------
# In a run


def run(output_dir, **settings):
    settings = {**STEPS, "config_overrides": SMALL, "image_size": 32, "max_steps": 4, "save_steps": 2, **settings}
    return pretrain(Squares(), output_dir, **settings)


@pytest.mark.slow
def test_trial__leaves_no_trace_in_the_run_which_goes_on_with_the_same_batches(tmp_path, monkeypatch):
    run(tmp_path / "given", per_device_train_batch_size=8)
    asked = []

    def choose(given, recorded, limit, device, try_batch):
        asked.append((given, recorded, limit))
        for size in (1, 2):
            try_batch(size)
        return recorded or 8

    monkeypatch.setattr(pretraining_run, "choose_batch_size", choose)
    with pytest.raises(RunStopped):
        run(tmp_path / "found", per_device_train_batch_size=None, trackers=[SignalAt(2, signal.SIGTERM)])
    assert load_training_state(latest_checkpoint(tmp_path / "found"))["per_device_train_batch_size"] == 8
    run(tmp_path / "found", per_device_train_batch_size=None)
    assert asked == [(None, None, 24), (None, 8, 24)]
    for name in ("loss", "grad_norm"):
        assert metrics(tmp_path / "found", name) == metrics(tmp_path / "given", name)


@pytest.mark.slow
def test_run__on_another_machine_chooses_anew(tmp_path, monkeypatch):
    asked, record = [], pretraining_run.run_record

    def choose(given, recorded, *others):
        asked.append(recorded)
        return 8

    monkeypatch.setattr(pretraining_run, "choose_batch_size", choose)
    for step, machine in ((1, "one"), (3, "one"), (5, "another")):
        monkeypatch.setattr(pretraining_run, "run_record", lambda *args, m=machine: {**record(*args), "machine": m})
        with pytest.raises(RunStopped):
            run(tmp_path, max_steps=8, trackers=[SignalAt(step, signal.SIGTERM)])
    assert asked == [None, 8, None]
