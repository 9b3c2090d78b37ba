# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Predicts the memory that a training step needs on a GPU, by model and batch size, without a GPU.

    python benchmarks/memory.py --presets tiny small base large huge --output benchmarks/results/memory.json

A step is taken with fake tensors, which have a type and a size but no values: eager, bfloat16 autocast, fused AdamW,
attention without a stored matrix, as `hf-mae pretrain` does it on one GPU. What is live at once is counted, in blocks
of 512 bytes as torch's allocator hands them out. The libraries and the context of a GPU take 0.5 to 1 GB more, and the
allocator loses some space between blocks, so that the largest batches are those that fill nine tenths of a GPU.
"""

import argparse
import weakref
from pathlib import Path

import torch
from measuring import report, table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.pretraining.initial_model import checkpoint_activations
from hf_mae.training.optimization import parameter_groups
from hf_mae.training.step_guard import StepGuard

BLOCK = 512  # bytes
GPUS = {"24 GB": 24e9, "80 GB": 80e9, "141 GB": 141e9}
FILLED = 0.9  # share of a GPU that can be used
BATCH_SIZES = (64, 256, 1024)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are live, and the highest count.

    Attributes:
        now (`int`): Bytes that are live.
        peak (`int`): The most that were live at once.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._live: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage):
        key = id(storage)
        if key in self._live:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK

        def drop(_):
            del self._live[key]
            self.now -= size

        self._live[key] = weakref.ref(storage, drop)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_of_step(config: MAEConfig, batch_size: int, gradient_checkpointing: bool = False) -> int:
    """Returns the largest number of bytes that a step of pre-training needs, weights and optimizer state included.

    Args:
        config ([`MAEConfig`]): The model.
        batch_size (`int`): Images of a step.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): Whether blocks are computed twice.
    """
    with torch.device("meta"):
        model = MAEForPreTraining(config)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as memory:
        model = model.to_empty(device="cpu").train()
        if gradient_checkpointing:
            checkpoint_activations(model)
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-3, fused=True)
        guard, processor = StepGuard(optimizer), MAEImageProcessor.for_image_size(config.image_size)
        for _ in range(2):  # the first one makes the optimizer's state
            memory.peak = memory.now
            rows, columns = config.grid_size
            stored = torch.empty(
                batch_size, config.num_channels, config.image_size, config.image_size, dtype=torch.uint8
            )
            pixel_values, noise = processor.rescale_and_normalize(stored), torch.empty(batch_size, rows * columns)
            del stored
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(pixel_values, noise=noise).loss
            loss.backward()
            guard.step(loss.detach())
            optimizer.zero_grad()
            del loss, pixel_values, noise
    return memory.peak


def largest_batch(first: tuple[int, float], second: tuple[int, float], available: float) -> int:
    """Returns the largest batch that fits, by a line through two pairs of batch size and bytes; 0 if none does."""
    per_image = (second[1] - first[1]) / (second[0] - first[0])
    return max(0, int((available - first[1]) / per_image + first[0]))


def measure(preset: str, gradient_checkpointing: bool) -> dict:
    config = MAEConfig.from_preset(preset, norm_pix_loss=True)
    peaks = {size: peak_of_step(config, size, gradient_checkpointing) for size in BATCH_SIZES}
    pairs = [*peaks.items()][1:]
    return {
        "preset": preset,
        "gradient_checkpointing": gradient_checkpointing,
        "peak_gb": {size: peak / 1e9 for size, peak in peaks.items()},
        "largest_batch": {name: largest_batch(*pairs, FILLED * size) for name, size in GPUS.items()},
    }


def memory_table(rows: list[dict]) -> str:
    head = ["preset", "gradient checkpointing", *(f"GB at batch {size}" for size in BATCH_SIZES)]
    head += [f"largest batch, {name}" for name in GPUS]
    body = [
        [row["preset"], "yes" if row["gradient_checkpointing"] else "no"]
        + [*row["peak_gb"].values(), *row["largest_batch"].values()]
        for row in rows
    ]
    return table(head, body)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small", "base", "large", "huge"])
    parser.add_argument("--output", type=Path, help="File for the results; .json and .md are written.")
    args = parser.parse_args()
    rows = [measure(preset, checkpointing) for checkpointing in (False, True) for preset in args.presets]
    title = "Predicted memory of a step, eager, bf16 autocast, AdamW"
    report(title, [memory_table(rows)], rows, torch.device("cpu"), args.output)


if __name__ == "__main__":
    main()
