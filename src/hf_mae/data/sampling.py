# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Computes the order of a run's samples as a function of seed and step."""

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from .image_source import ImageSource

# Files may be sorted by class: a selection is from a row group for each 64 of its images, up to 16, or from more.
_FEWEST_ROW_GROUPS, _IMAGES_OF_EACH = 16, 64


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Returns at most `count` evenly spaced positions in [0, length), in order and none of them twice.

    Args:
        length (`int`): Of the sequence.
        count (`int`): Maximum number of positions.
    """
    count = min(count, length)
    return np.arange(count) * length // count


def spread_indices(images: ImageSource, count: int | None = None) -> np.ndarray:
    """Returns the indices of at most `count` evenly spaced images, in order.

    Where there are row groups, they are evenly spaced within some evenly spaced row groups.

    Args:
        images ([`ImageSource`]): The source.
        count (`int`, *optional*): Maximum number of indices. Default: all images.
    """
    if count is None or count >= len(images):
        return np.arange(len(images))
    if images.row_groups is None:
        return evenly_spaced(len(images), count)
    # Single images from all over the source would make the reader load every row group.
    needed = math.ceil(count / images.row_groups.mean())
    wanted = min(math.ceil(count / _IMAGES_OF_EACH), _FEWEST_ROW_GROUPS, images.row_groups_at_once)
    num_row_groups = min(max(needed, wanted), len(images.row_groups))
    chosen = evenly_spaced(len(images.row_groups), num_row_groups)
    starts = np.cumsum(images.row_groups) - images.row_groups
    rows = np.concatenate([starts[g] + np.arange(images.row_groups[g]) for g in chosen])
    return rows[evenly_spaced(len(rows), count)]  # fewer if the groups chosen are smaller than others


class SampleOrder:
    """Lists the samples of a run, epoch after epoch, each epoch in a new order.

    The order of an epoch depends on (seed, epoch) alone. Any part of the sequence can be computed without the parts
    before it, so that a checkpoint need not save a position in the data. Sources that are read by row group are
    shuffled by row group, so that each reader (a process or a loader worker) holds few of them at a time, see
    [`SampleOrder._by_row_groups`].

    With weights an epoch has as many samples, drawn anew for each epoch by [`systematic_counts`]. An image that is
    drawn several times in an epoch has further views, so that its crops and masks differ.
    """

    def __init__(
        self,
        images: ImageSource | int,
        seed: int,
        views_per_image: int = 1,
        effective_batch_size: int | None = None,
        weights: np.ndarray | None = None,
    ):
        """
        Args:
            images ([`ImageSource`] or `int`): The source, or its number of images.
            seed (`int`): Seed of the run.
            views_per_image (`int`, *optional*, defaults to 1): Consecutive samples that are views of one image
                (repeated augmentation; Hoffer et al. 2019, arXiv 1901.09335).
            effective_batch_size (`int`, *optional*): Samples of a step. Required for sources with row groups.
            weights (`np.ndarray` of shape `(num_images,)`, *optional*): In which proportion images are drawn, not
                negative, at most 1. Default: each image once an epoch. Not for sources with row groups.
        """
        self.num_images = images if isinstance(images, int) else len(images)
        self.row_groups = None if isinstance(images, int) else images.row_groups
        self.row_groups_at_once = 64 if isinstance(images, int) else images.row_groups_at_once
        self.seed, self.views_per_image, self.effective_batch_size = seed, views_per_image, effective_batch_size
        self.weights = weights
        self._permutations: dict[int, np.ndarray] = {}

    def __getitem__(self, samples: slice) -> list[tuple[int, int, int]]:
        """Returns (epoch, index, view) of the samples from `start` to `stop` (exclusive) of the run."""
        result = []
        for sample in range(samples.start, samples.stop):
            position, view = divmod(sample, self.views_per_image)
            epoch, place = divmod(position, self.num_images)
            copy, index = divmod(int(self._permutation(epoch)[place]), self.num_images)
            result.append((epoch, index, copy * self.views_per_image + view))
        return result

    def _permutation(self, epoch: int) -> np.ndarray:
        """Returns the images of an epoch in their order. Further copies of image `i` are i + num_images and so on."""
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            rng = np.random.default_rng([self.seed, epoch])
            if self.weights is not None:
                order = self._by_weight(rng)
            elif self.row_groups is not None and len(self.row_groups) > 1:
                order = self._by_row_groups(epoch, rng)
            else:
                order = rng.permutation(self.num_images)
            self._permutations[epoch] = order
        return self._permutations[epoch]

    def _by_weight(self, rng: np.random.Generator) -> np.ndarray:
        """Returns an order in which each image occurs as often as it is drawn."""
        counts = systematic_counts(self.weights, rng.random())
        copies = np.arange(self.num_images) - np.repeat(np.cumsum(counts) - counts, counts)
        return rng.permutation(np.repeat(np.arange(self.num_images), counts) + copies * self.num_images)

    def _by_row_groups(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """Returns an order in which 64 lanes each read their own row groups, one after the other.

        A batch is divided into up to eight parts, and up to eight consecutive batches take turns, which makes up to 64
        lanes. A process reads some parts of every batch, and a loader worker reads every n-th batch, so with up to
        eight processes of up to eight workers no two readers need the same row group (except where a lane ends), while
        images of 64 row groups are mixed at any time.

        Neighbouring lanes share the row group in which one ends. Every other lane is read from its end, so that both
        are in it at the same time: a reader of all lanes that held it from the beginning of one lane to the end of the
        other would have to drop row groups that are needed again at once.
        """
        starts = np.cumsum(self.row_groups) - self.row_groups
        shuffled = [starts[g] + rng.permutation(self.row_groups[g]) for g in rng.permutation(len(self.row_groups))]
        lanes = 2 ** int(math.log2(min(len(self.row_groups), self.row_groups_at_once)))
        parts = 2 ** math.ceil(math.log2(lanes) / 2)
        first_view = (epoch * self.num_images + np.arange(self.num_images)) * self.views_per_image
        step, place = np.divmod(first_view, self.effective_batch_size)
        lane = step % (lanes // parts) * parts + place * parts // self.effective_batch_size
        order, places = np.empty(self.num_images, dtype=np.int64), np.arange(self.num_images)
        order[np.lexsort((np.where(lane % 2, -places, places), lane))] = np.concatenate(shuffled)
        return order


def systematic_counts(weights: np.ndarray, offset: float) -> np.ndarray:
    """Draws as many samples as there are weights, and returns how often each was drawn: systematic resampling.

    Each weight has a share of a line, as long as its expected number n * weight / sum(weights). The samples are n
    points at distances of 1, the first at `offset`. So a number drawn is the expected one, rounded down or up, and over
    all offsets its mean is exactly that. Source: Carpenter, Clifford and Fearnhead 1999 (doi
    10.1049/ip-rsn:19990255).

    Args:
        weights (`np.ndarray` of shape `(n,)`): Weights in [0, 1], not all 0. They are rounded to multiples of 2**-32.
        offset (`float`): A random number in [0, 1).

    Returns:
        `np.ndarray` of int64, of shape `(n,)`, with the sum n.
    """
    # Whole samples are counted in integers: where all weights are equal, each is drawn exactly once.
    units = np.round(np.asarray(weights, dtype=np.float64) * 2**32).astype(np.int64)
    whole, rest = np.divmod(units * len(units), units.sum())
    ends = np.cumsum(rest / units.sum())
    ends = np.minimum(ends, len(units) - whole.sum())  # what the last one is, but for rounding
    ends[-1:] = len(units) - whole.sum()
    return whole + np.diff(np.ceil(ends - offset), prepend=0).astype(np.int64)


def even_slice(size: int, number: int, pieces: int) -> range:
    """Returns piece `number` of `range(size)` divided into `pieces` pieces, whose sizes differ by at most one."""
    return range(size * number // pieces, size * (number + 1) // pieces)


class StepBatchSampler(Sampler):
    """Yields the batches of one process, starting at any global step.

    The samples of a step are a slice of the [`SampleOrder`] that does not depend on the number of processes. It is
    divided into pieces whose sizes differ by at most one sample. Each process takes as many pieces as it accumulates
    gradients over.
    """

    def __init__(
        self,
        order: SampleOrder,
        effective_batch_size: int,
        per_device_batch_size: int,
        steps: range,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        """
        Args:
            order ([`SampleOrder`]): The samples of the run.
            effective_batch_size (`int`): Samples of an optimizer step over all processes.
            per_device_batch_size (`int`): Maximum number of samples of one forward pass.
            steps (`range`): The global steps to yield batches for.
            process_index, num_processes (`int`, *optional*): The share of this process.

        Raises:
            ValueError: If there are fewer samples than processes.
        """
        if effective_batch_size < num_processes:
            raise ValueError(
                f"An effective batch of {effective_batch_size} can't be shared by {num_processes} processes. Start "
                f"fewer processes, or set `effective_batch_size` to {num_processes} or more."
            )
        if per_device_batch_size < 1:
            raise ValueError(f"`per_device_batch_size` must be at least 1, got {per_device_batch_size}.")
        self.order, self.steps, self.process_index = order, steps, process_index
        self.effective_batch_size, self.num_processes = effective_batch_size, num_processes
        self.accumulation = min(
            math.ceil(effective_batch_size / (per_device_batch_size * num_processes)),
            effective_batch_size // num_processes,
        )

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        pieces = self.num_processes * self.accumulation
        mine = range(self.process_index * self.accumulation, (self.process_index + 1) * self.accumulation)
        for step in self.steps:
            for number in mine:
                piece, first = even_slice(self.effective_batch_size, number, pieces), step * self.effective_batch_size
                yield self.order[first + piece.start : first + piece.stop]


class RowGroupSampler(Sampler):
    """Yields the indices of an epoch by row group, for the loaders of transformers' `Trainer`.

    In an order that is random altogether, a reader would read a whole row group for nearly every image. See
    [`SampleOrder`] for what it is here; it depends on (seed, epoch) alone.
    """

    def __init__(self, images: ImageSource, seed: int, batch_size: int, epoch: Callable[[], int]):
        """
        Args:
            images ([`ImageSource`]): A source with row groups.
            seed (`int`): Seed of the run.
            batch_size (`int`): Images that all processes together take at a time, from consecutive batches.
            epoch (`Callable[[], int]`): Returns the epoch, from 0, that an iteration begins.
        """
        self.images, self.seed, self.batch_size, self.epoch = images, seed, batch_size, epoch

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[int]:
        # Trainer begins each epoch with a full batch. So each has an order of its own, whose parts fit its batches.
        (seed,) = np.random.SeedSequence([self.seed, self.epoch()]).generate_state(1)
        order = SampleOrder(self.images, int(seed), effective_batch_size=self.batch_size)
        yield from order._permutation(0).tolist()


def check_readers(images: ImageSource, num_processes: int, num_workers: int):
    """Checks that a source has at least one row group for every reader.

    With fewer row groups several readers would download the same ones, again and again. (Every sample would still be
    used exactly once an epoch.)

    Args:
        images ([`ImageSource`]): The source.
        num_processes (`int`): Number of processes.
        num_workers (`int`): Loader workers of each process. 0: the process reads the images itself.

    Raises:
        ValueError: If there are fewer row groups than readers.
    """
    readers = num_processes * max(num_workers, 1)
    if images.row_groups is not None and len(images.row_groups) < readers:
        raise ValueError(
            f"{images.name} has {len(images.row_groups)} row groups for {readers} readers ({num_processes} process(es) "
            f"x {max(num_workers, 1)} worker(s)), which would download the same ones again and again. Lower "
            "`dataloader_num_workers`, leave `streaming` out, or write smaller row groups."
        )


def default_num_workers(usable: Sequence[Collection[int]] = ()) -> int:
    """Returns the default number of loader workers of a process: its share of the CPUs of its machine, at most 16.

    Args:
        usable (`Sequence[Collection[int]]`, *optional*): Numbers of the CPUs that each process of this machine may run
            on. Slurm gives each process CPUs of its own, torchrun gives all processes all of them. Default: those of
            this process, as the only one.
    """
    usable = usable or [usable_cpus()]
    return max(min(len(set().union(*usable)) // len(usable), 16), 1)


def usable_cpus() -> set[int]:
    """Returns the numbers of the CPUs that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


__all__ = [
    "RowGroupSampler",
    "SampleOrder",
    "StepBatchSampler",
    "check_readers",
    "default_num_workers",
    "even_slice",
    "evenly_spaced",
    "spread_indices",
    "systematic_counts",
    "usable_cpus",
]
