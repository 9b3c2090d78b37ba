# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the network, and a test that tries it should fail at once
# Threads only wait for each other in models this small: on a busy machine of two cores forty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging

from hf_mae import MAEConfig, MAEForPreTraining

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
OFFICIAL_HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 4}


def picture(number=0, size=(40, 30), mode="RGB"):
    """A picture of noise, another for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    torch.manual_seed(0)
    logging.disable_progress_bar()


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


@pytest.fixture(scope="session")
def official():
    """Numbers of the official code, see fixtures/README.md."""
    return load_file(Path(__file__).parent / "fixtures" / "official_mae_tiny.safetensors")


@pytest.fixture(scope="session")
def official_weights(official):
    return {name.removeprefix("weights."): tensor for name, tensor in official.items() if name.startswith("weights.")}
