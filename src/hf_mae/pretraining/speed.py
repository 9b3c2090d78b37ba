# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Measures how fast a device trains a model and how fast images are read, and counts the work of a sample."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch

from ..data.datasets import PretrainingDataset
from ..data.image_source import ImageSource
from ..data.sampling import spread_indices
from ..modeling.configuration_mae import MAEConfig, height_width
from ..modeling.masking_mae import num_kept_patches
from ..modeling.modeling_mae import MAEForPreTraining
from ..modeling.reading_mae import ReadingSettings
from ..training.arguments import parse_duration
from ..training.distributed import call_in_main_process, gather_from_processes
from .settings import PretrainingSettings

_SECONDS, _SHARE_OF_BUDGET = 1.0, 0.005  # that a measurement takes; a dozen may be made
_FLOP_OF_A_TRIAL = 3e10  # on a CPU: under a second on a slow core, and enough products to fill its caches
_LARGEST_TRIAL = {"cpu": 16, "cuda": 256}  # images: from there on speed hardly grows


class Speed:
    """Measures on this device, with all processes of a run. Every process must call the methods, and gets the same."""

    def __init__(
        self,
        images: ImageSource,
        reading: ReadingSettings,
        device: torch.device,
        settings: PretrainingSettings,
        num_processes: int = 1,
        num_workers: int = 0,
    ):
        """
        Args:
            images ([`ImageSource`]): Images of the run.
            reading ([`ReadingSettings`]): How they are read.
            device (`torch.device`): Device of this process.
            settings ([`PretrainingSettings`]): Precision, and the time of the run: measurements are shorter for short
                runs.
            num_processes (`int`, *optional*, defaults to 1): Processes of the run.
            num_workers (`int`, *optional*, defaults to 0): Loader workers of each process. With 0 reading and training
                take turns.
        """
        self.images, self.reading, self.device, self.bf16 = images, reading, device, bool(settings.bf16)
        self.num_processes, self.num_workers, self.seconds = num_processes, num_workers, _SECONDS
        if settings.time_budget is not None:
            self.seconds = min(_SECONDS, _SHARE_OF_BUDGET * parse_duration(settings.time_budget))

    def training(self, config: MAEConfig, batch_size: int) -> float:
        """Returns how many samples a second all processes train on, forward and backward, with random pixels.

        Args:
            config ([`MAEConfig`]): The model, which is made for it and dropped.
            batch_size (`int`): Samples of a step over all processes.
        """
        size = max(min(batch_size // self.num_processes, _LARGEST_TRIAL.get(self.device.type, 16)), 1)
        if self.device.type == "cpu":
            size = max(min(size, int(_FLOP_OF_A_TRIAL / flops_per_sample(config))), 1)
        rate = 1e-9  # if not even one image fits
        while size:
            with suppress(torch.OutOfMemoryError):
                rate = self._train(config, size)
                break
            size //= 2
        return min(gather_from_processes(rate)) * self.num_processes  # all wait for the slowest one

    def _train(self, config: MAEConfig, size: int) -> float:
        model = MAEForPreTraining(config).to(self.device).train()
        pixels = torch.rand(size, config.num_channels, *height_width(config.image_size), device=self.device)

        def step():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = model(pixel_values=pixels).loss
            loss.backward()
            model.zero_grad()

        return size * _times_a_second(step, self.seconds, self.device)

    def loading(self, config: MAEConfig, crop_scale_min: float, views: int) -> float:
        """Returns how many samples a second all loaders of a run hand over.

        Args:
            config ([`MAEConfig`]): Says the size and the channels of the crops.
            crop_scale_min (`float`): As in the settings.
            views (`int`): Crops of one decode.
        """
        rate = call_in_main_process(lambda: self._load(config, crop_scale_min, views))
        return rate * self.num_processes * max(self.num_workers, 1)

    def _load(self, config: MAEConfig, crop_scale_min: float, views: int) -> float:
        size, patches = height_width(config.image_size), math.prod(config.grid_size)
        scale = (crop_scale_min, 1.0)
        dataset = PretrainingDataset(self.images, size, patches, config.num_channels, scale, reading=self.reading)
        indices = spread_indices(self.images, 64)
        position = iter(range(10**9))

        def read():
            index = int(indices[next(position) % len(indices)])
            dataset.__getitems__([(0, index, view) for view in range(views)])

        return views * _times_a_second(read, self.seconds, torch.device("cpu"))

    def together(self, training: float, loading: float) -> float:
        """Returns the samples a second of a run: workers read while the model trains, without them both take turns."""
        return min(training, loading) if self.num_workers else 1 / (1 / training + 1 / loading)


def _times_a_second(action: Callable[[], None], seconds: float, device: torch.device) -> float:
    """Returns how often something can be done in a second. The first time, which prepares much, does not count."""
    action()
    count = taken = 0.0
    while taken < seconds:
        _wait_for(device)
        started = time.perf_counter()
        action()
        _wait_for(device)
        count, taken = count + 1, taken + time.perf_counter() - started
    return count / taken


def _wait_for(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_per_sample(config: MAEConfig) -> float:
    """Returns the floating-point operations of the matrix products of one sample, forward and backward.

    The backward pass takes twice the products of the forward pass, for the gradients of both factors; those of the
    pixels are not needed. The encoder works on class tokens and visible patches, the decoder on all that it gets, its
    last block only for those that are predicted.

    Args:
        config ([`MAEConfig`]): The model.
    """
    patches = math.prod(config.grid_size)
    kept = num_kept_patches(config.grid_size, config.mask_ratio, config.mask_block_size)
    hidden = patches - kept
    predicted = max(round(hidden * config.prediction_ratio), 1) if hidden else kept
    class_tokens, width, narrow = config.num_class_tokens, config.hidden_size, config.decoder_hidden_size
    seen = class_tokens + (patches if config.mask_tokens_in_encoder else kept)
    decoded = class_tokens + kept + (predicted if hidden else 0)
    values = math.prod(height_width(config.patch_size)) * config.num_channels
    embedding = 2 * kept * values * width
    encoder = config.num_hidden_layers * _flops_of_block(seen, seen, width, config.intermediate_size)
    sizes = (narrow, config.decoder_intermediate_size)
    decoder = (config.decoder_num_hidden_layers - 1) * _flops_of_block(decoded, decoded, *sizes)
    decoder += _flops_of_block(decoded, predicted if hidden else kept, *sizes)
    ends = 2 * seen * width * narrow + 2 * predicted * narrow * values
    return 2 * embedding + 3 * (encoder + decoder + ends)


def _flops_of_block(tokens: int, queries: int, width: int, intermediate: int) -> int:
    """Returns the operations of a block, forward: queries, keys, values; attention; its output; the MLP."""
    products = 3 * tokens * width**2 + 2 * queries * tokens * width + queries * width**2
    return 2 * (products + 2 * queries * width * intermediate)


class Parameters(NamedTuple):
    """Numbers of parameters, positions included.

    Args:
        encoder (`int`): Those of the encoder.
        whole (`int`): Those of encoder and decoder.
    """

    encoder: int
    whole: int


def num_parameters(config: MAEConfig) -> Parameters:
    """Returns how many parameters a model has, trained or not. It is made without memory for them.

    Args:
        config ([`MAEConfig`]): The model.
    """
    with torch.device("meta"):
        model = MAEForPreTraining(config)
    return Parameters(model.mae.num_parameters(), model.num_parameters())


__all__ = ["Parameters", "Speed", "flops_per_sample", "num_parameters"]
