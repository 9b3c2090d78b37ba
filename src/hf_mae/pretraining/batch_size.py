# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Finds how many images a forward pass takes: as many as the memory of the GPUs allows."""

import math
from collections.abc import Callable

import torch

from ..training.distributed import gather_from_processes

CPU_BATCH_SIZE = 64
# Of the free memory. The rest is for the communication of processes, for evaluations and for gaps between tensors.
USABLE_SHARE = 0.85


def choose_batch_size(
    given: int | None, recorded: int | None, limit: int, device: torch.device, try_batch: Callable[[int], None]
) -> int:
    """Returns the largest number of images of one forward pass. Every process must call this, and gets the same.

    Args:
        given (`int`, *optional*): What the user has set.
        recorded (`int`, *optional*): What the run had before it was interrupted, on the same machine.
        limit (`int`): More images are never needed.
        device (`torch.device`): The device that the model is on.
        try_batch (`Callable[[int], None]`): Computes the gradients of a number of images.

    Raises:
        ValueError: If not even one image fits.
    """
    if given is not None:
        return given
    if device.type != "cuda":
        return CPU_BATCH_SIZE
    if recorded is not None:
        return recorded
    free, _ = torch.cuda.mem_get_info(device)
    budget = min(gather_from_processes(USABLE_SHARE * (free + torch.cuda.memory_reserved(device))))
    size = largest_batch_size(lambda size: max(gather_from_processes(_peak(try_batch, size, device))), budget, limit)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return size


def largest_batch_size(peak_memory: Callable[[int], float], budget: float, limit: int) -> int:
    """Returns the largest power of two, or `limit` itself, whose memory is within the budget.

    Memory grows linearly with the batch, so that two sizes predict that of the next one. A size that is too large is
    then not even tried: a process without memory would leave the others waiting for it.

    Args:
        peak_memory (`Callable[[int], float]`): Takes a number of images and returns the bytes that a step with them
            needs, `math.inf` if there is not enough memory.
        budget (`float`): Bytes that may be used.
        limit (`int`): Largest number of images that is of use.

    Raises:
        ValueError: If not even one image fits.
    """
    size, memory, growth = 1, peak_memory(1), 0.0
    if memory > budget:
        raise ValueError(
            f"There is no memory for a step with a single image: {memory / 1e9:.1f} GB are needed, "
            f"{budget / 1e9:.1f} GB can be used. Choose a smaller model, set `gradient_checkpointing`, or shard the "
            "model over several GPUs (FSDP2)."
        )
    while size < limit:
        larger = min(2 * size, limit)
        if memory + growth * (larger - size) > budget:
            break
        needed = peak_memory(larger)
        if needed > budget:
            break
        growth = (needed - memory) / (larger - size)
        size, memory = larger, needed
    return size


def _peak(try_batch: Callable[[int], None], size: int, device: torch.device) -> float:
    """Returns the bytes of the device that a trial needs."""
    torch.cuda.empty_cache()  # what smaller trials have left would be counted
    torch.cuda.reset_peak_memory_stats(device)
    try:
        try_batch(size)
    except torch.OutOfMemoryError:
        return math.inf
    return torch.cuda.max_memory_reserved(device)


__all__ = ["choose_batch_size", "largest_batch_size"]
