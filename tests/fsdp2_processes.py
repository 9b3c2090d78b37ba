# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What each process of the FSDP2 test in test_processes.py does; its argument is a folder."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import TINY
from safetensors.torch import load_file

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.data.datasets import PretrainingDataset
from hf_mae.data.sources import open_images
from hf_mae.evaluation.label_free import label_free_figures
from hf_mae.evaluation.monitoring import Evaluation
from hf_mae.training.checkpointing import load_optimizer, load_weights, save_checkpoint
from hf_mae.training.distributed import shard_model
from hf_mae.training.optimization import parameter_groups
from hf_mae.training.step_guard import StepGuard


def build(checkpoint=None):
    torch.manual_seed(0)
    config = MAEConfig(**{**TINY, "num_channels": 1, "image_size": 28, "patch_size": 7})
    model = MAEForPreTraining.from_pretrained(checkpoint) if checkpoint else MAEForPreTraining(config)
    shard_model(model.train())
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-3, fused=True)
    if checkpoint:
        load_optimizer(checkpoint, model, optimizer)
    return model, optimizer


def train(model, optimizer, steps, infinite=()):
    """Losses and norms of the steps; in some the loss of the last process is infinite."""
    rank, world_size, results = dist.get_rank(), dist.get_world_size(), []
    guard = StepGuard(optimizer, max_grad_norm=1.0)
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        pixel_values, noise = torch.randn(6, 1, 28, 28, generator=generator), torch.rand(6, 16, generator=generator)
        share = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
        loss = model(pixel_values[share], noise=noise[share]).loss
        loss = loss * float("inf") if step in infinite and rank == world_size - 1 else loss
        loss.backward()
        guard.step(loss.detach())
        optimizer.zero_grad()
        results.append(guard.read()[0])
    return results


def whole(model):
    return {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}


def main(folder: Path):
    dist.init_process_group("gloo")
    model, optimizer = build()
    results = train(model, optimizer, range(4), infinite=(1,))
    saved = whole(model)
    checkpoint = save_checkpoint(
        folder, 4, model, MAEImageProcessor(num_channels=1), optimizer, {"recipe": {"seed": 0}}
    )
    dist.barrier()
    processor = MAEImageProcessor.for_image_size(28, num_channels=1)
    share = {"process_index": dist.get_rank(), "num_processes": dist.get_world_size()}
    share["crops"] = PretrainingDataset(open_images(), (28, 28), 16, num_channels=1)
    # The last batch of the bank is one image: some process has no share of it.
    evaluation = Evaluation(open_images(), open_images(split="test"), processor, 99, 7, **share)
    evaluated = evaluation(model) | evaluation.trivial_losses(model)
    evaluated |= label_free_figures(*evaluation.encode_twins(model))
    results += train(model, optimizer, range(4, 6))

    resumed, its_optimizer = build(checkpoint)
    again = train(resumed, its_optimizer, range(4, 6))
    assert again == results[4:]
    assert all(torch.equal(tensor, whole(resumed)[name]) for name, tensor in whole(model).items())
    load_weights(checkpoint, resumed)  # as a rollback does
    stored = load_file(checkpoint / "model.safetensors")
    for name, tensor in whole(resumed).items():
        assert torch.equal(tensor, stored[name])
        assert torch.equal(tensor, saved[name])

    half, _ = build()
    noise = torch.arange(256).flip(0).reshape(1, 16, 16)[0, :1] / 256 + 0.9  # differs by less than bfloat16 tells apart
    pixel_values = torch.full((1, 1, 28, 28), 1 + 2**-12)
    with torch.autocast("cpu", torch.bfloat16):
        output = half(pixel_values, noise=noise)
    assert output.loss.dtype == torch.float32
    assert torch.equal(output.mask[0], noise[0] > noise[0].sort().values[3])
    output.loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in half.parameters())
    evaluations = [None] * dist.get_world_size()
    dist.all_gather_object(evaluations, evaluated)
    assert all(evaluation == evaluated for evaluation in evaluations)
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps([results, evaluated]))
    dist.barrier()
    sys.stderr.flush()
    # All is asserted. gloo's threads sometimes abort a process that lets go of sharded models or tears down the group
    # (torch 2.13).
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
