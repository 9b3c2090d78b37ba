# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains all implementations alike: same images, masks, initial weights and optimizer. Do we learn what they learn?

    python benchmarks/loss_curves.py --data path/to/cifar10 --official path/to/facebookresearch/mae

All peers take each step on the same batch. The table shows by how much their losses differ; in float64 the difference
is rounding only.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from measuring import report, table
from peers import all_peers
from transformers.utils import logging

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.data.datasets import PretrainingDataset, collate
from hf_mae.data.sampling import SampleOrder
from hf_mae.data.sources import ImageSource, open_images
from hf_mae.training.arguments import config_changes
from hf_mae.training.optimization import learning_rate_at

# The model of the recipe cifar10_small, with a decoder of two blocks.
MODEL = (
    "hidden_size=128,num_hidden_layers=4,num_attention_heads=4,intermediate_size=512,decoder_hidden_size=64,"
    "decoder_num_hidden_layers=2,decoder_num_attention_heads=4,decoder_intermediate_size=256"
)
LEARNING_RATE = 1e-3


def small_config() -> MAEConfig:
    return MAEConfig.from_preset("tiny", image_size=32, patch_size=4, **config_changes(MODEL), norm_pix_loss=True)


class Batches:
    """Returns batch n of a run, always the same: normalised pixels and the noise of the masks."""

    def __init__(self, images: ImageSource, config: MAEConfig, batch_size: int, views: int = 1, seed: int = 0):
        side, channels = config.image_size, config.num_channels
        patches = config.grid_size[0] * config.grid_size[1]
        self.dataset = PretrainingDataset(images, (side, side), patches, channels, crop_scale=(0.5, 1.0), seed=seed)
        self.processor = MAEImageProcessor.for_image_size(side, num_channels=channels)
        self.order, self.batch_size = SampleOrder(images, seed, views, batch_size), batch_size

    def __call__(self, number: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        samples = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        batch = collate(self.dataset.__getitems__(samples))
        return self.processor.rescale_and_normalize(batch["pixel_values"]).to(dtype), batch["noise"].to(dtype)


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05)


def train_step(peer, optimizer, batch, step: int, max_steps: int) -> float:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, max_steps, max_steps // 20, LEARNING_RATE)
    loss = peer.loss(peer.model, *batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def compare_peers(model: MAEForPreTraining, batches: Batches, steps: int, checkout: str | None, dtype: torch.dtype):
    """Returns the losses of all peers, and why some are missing."""
    peers, missing = all_peers(copy.deepcopy(model), checkout)
    optimizers = {}
    for name, peer in peers.items():
        peer.model.train().to(dtype)
        optimizers[name] = optimizer_of(peer.model)
    losses = {name: [] for name in peers}
    for step in range(steps):
        batch = batches(step, dtype)
        for name, peer in peers.items():
            losses[name].append(train_step(peer, optimizers[name], batch, step, steps))
    return losses, missing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="Folder, .tar or .parquet file, Hub name, of colour images of 32 pixels.")
    parser.add_argument("--official", help="Checkout of facebookresearch/mae.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--output", type=Path, help="File for the results; .json and .md are written.")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = MAEForPreTraining(small_config())
    batches = Batches(open_images(args.data), model.config, args.batch_size)
    losses, missing = compare_peers(model, batches, args.steps, args.official, getattr(torch, args.dtype))
    first = np.array(losses["hf_mae"])
    rows = [
        [name, values[0], values[-1], f"{np.abs(np.array(values) / first - 1).max():.1e}"]
        for name, values in losses.items()
    ]
    tables = [
        table(["", "loss of the first step", f"of step {args.steps}", "largest relative difference to ours"], rows),
        *(f"{peer} is missing: {why}" for peer, why in missing.items()),
    ]
    results = {"losses": losses, "missing": missing}
    report(f"Loss curves, {args.dtype}", tables, results, torch.device("cpu"), args.output)


if __name__ == "__main__":
    main()
