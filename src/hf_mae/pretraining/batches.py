# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Feeds a pre-training run: the batches of one process, from any step on."""

import math
import multiprocessing
import signal
import traceback
from collections.abc import Mapping

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..data.datasets import PretrainingDataset, collate
from ..data.decoding import UnreadableImagesError
from ..data.sampling import SampleOrder, StepBatchSampler, check_readers
from ..data.sources import ImageSource
from ..modeling.configuration_mae import MAEConfig
from ..modeling.image_processing_mae import MAEImageProcessor
from ..training.distributed import local_num_workers
from ..training.step_guard import start_worker
from .settings import PretrainingSettings

PREFETCH = 4  # batches that each loader worker has ready


class RunBatches:
    """Yields the batches of one process. The samples of a step are a function of seed and step.

    Attributes:
        dataset ([`PretrainingDataset`]): Makes the samples.
        loader_options (`dict`): How loaders of this process work, for those of the evaluation, too.
        accumulation (`int`): Batches of a step. Known when the loader has been started.
        failure (`str` or `None`): Why there are no more batches though other processes wait for this one. They get the
            last batch again, which does not count, until all of them know.
    """

    def __init__(
        self,
        settings: PretrainingSettings,
        images: ImageSource,
        image_processor: MAEImageProcessor,
        config: MAEConfig,
        weights: np.ndarray | None,
        num_workers: int,
        pin_memory: bool,
    ):
        """
        Args:
            settings ([`PretrainingSettings`]): Crops, views and seed.
            images ([`ImageSource`]): Images to train on.
            image_processor ([`MAEImageProcessor`]): Size of the crops, and how stored values are read.
            config ([`MAEConfig`]): Channels, patches and drop path.
            weights (`np.ndarray` of shape `(images,)` or `None`): In what proportion images are drawn.
            num_workers (`int`): Loader workers of this process.
            pin_memory (`bool`): Whether batches lie in memory from which a GPU can copy while it computes.
        """
        self.settings, self.images, self.weights, self.num_workers = settings, images, weights, num_workers
        self.dataset = PretrainingDataset(
            images,
            image_processor.crop_height_width,
            math.prod(config.grid_size),
            num_channels=config.num_channels,
            crop_scale=(settings.crop_scale_min, 1.0),
            horizontal_flip=settings.horizontal_flip,
            color_jitter=settings.color_jitter,
            seed=settings.seed,
            reading=image_processor.reading,
            vertical_flip=settings.vertical_flip,
            rotate90=settings.rotate90,
            num_layers=config.num_hidden_layers if config.drop_path_rate else 0,
            replace_unsuitable=True,  # the run has looked at some images before its first step
        )
        self.loader_options: dict = {
            "num_workers": num_workers,
            "worker_init_fn": start_worker,
            "pin_memory": pin_memory,
        }
        self.accumulation, self.failure, self._last = 0, None, None

    def start(self, steps: range, effective_batch_size: int, batch_size: int, share: Mapping[str, int]):
        """Starts a loader of the batches of some steps, in place of the one before.

        Args:
            steps (`range`): Global steps.
            effective_batch_size (`int`): Images of a step over all processes.
            batch_size (`int`): Most images of one batch.
            share (`Mapping[str, int]`): `process_index` and `num_processes`.
        """
        order = SampleOrder(
            self.images, self.settings.seed, self.settings.views_per_image, effective_batch_size, self.weights
        )
        sampler = StepBatchSampler(order, effective_batch_size, batch_size, steps, **share)
        prefetch = {"prefetch_factor": PREFETCH} if self.num_workers else {}
        loader = DataLoader(self.dataset, batch_sampler=sampler, collate_fn=collate, **prefetch, **self.loader_options)
        self.accumulation, self._batches = sampler.accumulation, iter(loader)
        self._is_alone = share["num_processes"] == 1

    def __next__(self) -> dict:
        """Returns the next batch of [`hf_mae.data.datasets.collate`]."""
        try:
            self._last = next(self._batches) if self.failure is None else self._last
        except UnreadableImagesError as error:
            if self._is_alone or self._last is None:
                raise
            failure = failure_of_loader(error, begun=True)
            self.failure = f"{failure} The last step is saved: the same call or command continues from there."
        return self._last

    @property
    def stop_signal(self) -> int:
        """Number of the signal that stands for a wish of this process to end the run, 0 if it has none."""
        return signal.SIGTERM if self.failure else 0


def choose_num_workers(
    settings: PretrainingSettings, images: ImageSource, device: torch.device, num_processes: int
) -> int:
    """Returns how many loader workers each process has: what the settings say, else one for each core next to a GPU.

    Args:
        settings ([`PretrainingSettings`]): `dataloader_num_workers` and `streaming`.
        images ([`ImageSource`]): The images to train on. Streamed ones need a row group for each worker.
        device (`torch.device`): Where the model is.
        num_processes (`int`): Number of processes.

    Raises:
        ValueError: If streamed images have fewer row groups than workers.
    """
    workers = settings.dataloader_num_workers
    if workers is None:  # on a CPU the model has better use for the cores
        workers = 0 if device.type == "cpu" else local_num_workers()
        if settings.streaming and images.row_groups is not None:
            workers = min(workers, len(images.row_groups) // num_processes)
    if settings.streaming:
        check_readers(images, num_processes, workers)
    return workers


def failure_of_loader(error: Exception, begun: bool) -> str | None:
    """Returns what ended the loader of a run, or a connection, and what to do; `None` if an error is of another kind.

    Args:
        error (`Exception`): What was raised.
        begun (`bool`): Whether steps were taken. Before, images that can't be read are a mistake of the user.
    """
    if isinstance(error, UnreadableImagesError):
        return f"{error} If a disk or a file server is away, wait until it is back." if begun else None
    if isinstance(error, ConnectionError) and not _is_of_worker(error):
        return f"A connection has failed: {str(error).rstrip('.')}." if begun else None
    what = "A loader worker was killed, perhaps for lack of memory or of shared memory"
    if isinstance(error, RuntimeError):  # torch raises it at any time, the queue of a worker that is gone the others
        if "allocate shared memory" in str(error):
            what = "A loader worker found no room in shared memory"
        elif "DataLoader worker (pid" not in str(error):
            return None
    elif not (isinstance(error, ConnectionError | EOFError) and _is_of_worker(error)):
        return None
    way_out = "Lower `dataloader_num_workers`, or give a container more with --shm-size."
    if multiprocessing.get_start_method() != "fork":  # a worker imports the script of the run, which would start again
        way_out += ' A script needs `if __name__ == "__main__":` before the call.'
    return f"{what}. {way_out}"


def _is_of_worker(error: Exception) -> bool:
    """Returns whether the connection to a loader worker raised an error, and not that to a tracker or a server."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(module.startswith("multiprocessing.") for module in modules)


__all__ = ["PREFETCH", "RunBatches", "choose_num_workers", "failure_of_loader"]
