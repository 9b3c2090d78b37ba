# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Says in a few lines what a pre-training run is about to do."""

from pathlib import Path

import numpy as np
import torch

from ..data.decoding import decoder_name
from ..data.image_source import ImageSource
from ..data.labels import has_classes
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining
from .pretraining_settings import Plan, PretrainingSettings


def summary_of_run(
    settings: PretrainingSettings,
    schedule: Plan,
    images: ImageSource,
    model: MAEForPreTraining,
    image_processor: MAEImageProcessor,
    *,
    device: torch.device,
    num_processes: int,
    num_workers: int,
    batch_size: int,
    accumulation: int,
    checkpoint: Path | None,
) -> str:
    """Returns a line for each of images, model, batch, rate, steps, device and output.

    Args:
        settings ([`PretrainingSettings`]): The settings.
        schedule ([`Plan`]): Steps and learning rate.
        images ([`ImageSource`]): Images to train on.
        model ([`MAEForPreTraining`]): The model, not sharded and not wrapped by DDP.
        image_processor ([`MAEImageProcessor`]): The image processor.
        device (`torch.device`): Device of this process.
        num_processes (`int`): Number of processes.
        num_workers (`int`): Loader workers of each process.
        batch_size (`int`): Maximum number of images of one forward pass.
        accumulation (`int`): Forward passes of a step of each process.
        checkpoint (`Path` or `None`): Where the run continues from.
    """
    config, parameters = model.config, sum(parameter.numel() for parameter in model.parameters()) / 1e6
    classes = f"{len(np.unique(images.labels[images.labels >= 0]))} classes" if has_classes(images) else "no labels"
    statistics = (image_processor.image_mean, image_processor.image_std)
    mean, deviation = (", ".join(f"{value:.3g}" for value in values) for values in statistics)
    (height, width), (rows, columns) = image_processor.crop_height_width, config.grid_size
    target = "normalised patches" if config.norm_pix_loss else "pixels"
    cells = f" in cells {config.mask_block_size} patches wide" if config.mask_block_size > 1 else ""
    views = f", {settings.views_per_image} views of an image" if settings.views_per_image > 1 else ""
    chosen = "" if settings.effective_batch_size else " (chosen for the number of images)"
    faster = "" if decoder_name() == "simplejpeg" else " (pip install simplejpeg: faster)"
    resumed = f", continued from {checkpoint.name}" if checkpoint else ""
    lines = {
        "Images": f"{len(images):,} from {images.name}, {classes}; mean {mean}, deviation {deviation}",
        "Model": f"{parameters:.1f} M parameters, {height} x {width} pixels, {rows} x {columns} patches, "
        f"{config.mask_ratio:.0%} hidden{cells}, target: {target}",
        "Batch": f"{schedule.batch_size} over {num_processes} process(es), {accumulation} accumulated, "
        f"up to {batch_size} at once{views}{chosen}",
        "Rate": f"{schedule.learning_rate:.3g}, {schedule.warmup_steps} steps of warm-up, then half a cosine",
        "Steps": f"{schedule.max_steps:,}, {schedule.max_steps / schedule.steps_per_epoch:.1f} epochs",
        "Device": f"{device}, {'bf16' if settings.bf16 else 'float32'}, {num_workers} loader worker(s), "
        f"JPEGs by {decoder_name()}{faster}",
        "Output": f"{Path(settings.output_dir)}{resumed}",
    }
    return "\n".join(f"{name:8} {text}" for name, text in lines.items())


__all__ = ["summary_of_run"]
