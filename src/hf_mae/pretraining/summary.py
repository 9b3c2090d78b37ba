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
from ..training.arguments import parse_duration
from .schedule import Plan
from .settings import PretrainingSettings


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
    compile_mode: str | None,
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
        compile_mode (`str` or `None`): The mode of `torch.compile`, if the model is compiled.
        checkpoint (`Path` or `None`): Where the run continues from.
    """
    config, parameters = model.config, f"{model.num_parameters() / 1e6:.1f} M parameters"
    classes = f"{len(np.unique(images.labels[images.labels >= 0]))} classes" if has_classes(images) else "no labels"
    statistics = (image_processor.image_mean, image_processor.image_std)
    mean, deviation = (", ".join(f"{value:.3g}" for value in values) for values in statistics)
    (height, width), (rows, columns) = image_processor.crop_height_width, config.grid_size
    target = "normalised patches" if config.norm_pix_loss else "pixels"
    if type(model).target_values is not MAEForPreTraining.target_values:  # a target of the user
        target = f"that of {type(model).__name__}"
    cells = f" in cells {config.mask_block_size} patches wide" if config.mask_block_size > 1 else ""
    views = f", {settings.views_per_image} views of an image" if settings.views_per_image > 1 else ""
    chosen = "" if settings.effective_batch_size else " (chosen for the number of images)"
    faster = "" if decoder_name() == "simplejpeg" else " (pip install simplejpeg: faster)"
    optimizer = {"adamw": "AdamW", "muon": "Muon"}[settings.optimizer]
    resumed = f", continued from {checkpoint.name}" if checkpoint else ""
    lines = {
        "Images": f"{len(images):,} from {images.name}, {classes}; mean {mean}, deviation {deviation}",
        "Model": f"{parameters}, {height} x {width} pixels, {rows} x {columns} patches, "
        f"{config.mask_ratio:.0%} hidden{cells}, target: {target}",
        "Batch": f"{schedule.batch_size} over {num_processes} process(es), {accumulation} accumulated, "
        f"up to {batch_size} at once{views}{chosen}",
        "Rate": f"{schedule.learning_rate:.3g}, {optimizer}, {schedule.warmup_steps} steps of warm-up, "
        f"{_fall(schedule)}",
        "Steps": _length(settings, schedule),
        "Device": f"{device}, {'bf16' if settings.bf16 else 'float32'}{_compiled(compile_mode)}, "
        f"{num_workers} loader worker(s), JPEGs by {decoder_name()}{faster}",
        "Output": f"{Path(settings.output_dir)}{resumed}",
    }
    return "\n".join(f"{name:8} {text}" for name, text in lines.items())


def _compiled(mode: str | None) -> str:
    """Returns how the model is compiled."""
    if mode is None:
        return ""
    how = {"default": "", "reduce-overhead": " with CUDA graphs"}.get(mode, f" with {mode}")
    return f", compiled{how} (which takes the first step about a minute)"


def _fall(schedule: Plan) -> str:
    """Returns how the rate falls."""
    if schedule.cooldown is None:
        return "then half a cosine"
    when = (
        "when the time that is left is needed for it" if schedule.is_open else f"from step {schedule.cooldown_start:,}"
    )
    return f"then constant; down to 0 {when}"


def _length(settings: PretrainingSettings, schedule: Plan) -> str:
    """Returns how long the run is."""
    steps = f"{schedule.max_steps:,}, {schedule.max_steps / schedule.steps_per_epoch:.1f} epochs"
    if settings.time_budget is None:
        return steps
    time = in_words(parse_duration(settings.time_budget))
    if not schedule.max_steps:
        return f"as many as fit into {time}"
    return f"{'about ' if schedule.is_open else ''}{steps}, in {time}"


def describe_cooldown(schedule: Plan, step: int, seconds: float, budget: float) -> str:
    """Returns a line on what a time budget has decided.

    Args:
        schedule ([`Plan`]): The plan from now on.
        step (`int`): Steps taken.
        seconds (`float`): Time taken.
        budget (`float`): Time in all.
    """
    end = f"It ends at step {schedule.max_steps:,}, {schedule.max_steps / schedule.steps_per_epoch:.1f} epochs."
    what = "begins to fall" if step == schedule.cooldown_start else "now falls at another pace"
    return f"step {step}: {in_words(seconds)} of {in_words(budget)} are over, the learning rate {what}. {end}"


def in_words(seconds: float) -> str:
    """Returns a time to read, such as `"1 h 30 min"`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


__all__ = ["describe_cooldown", "in_words", "summary_of_run"]
