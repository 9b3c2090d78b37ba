# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Settings of detection, in groups."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers.hf_argparser import HfArg

from .heads import settle_head
from .settings import FineTuningArguments, OrientationArguments, ReadingArguments

# Checkpoints for the sample, in the order of preference: what `hf-mae pretrain` leaves, and the one in the repository.
_SAMPLE_CHECKPOINTS = ("runs/fashion_mnist_sample", "model_cards/mae-fashion-mnist")
EPOCHS, FEWEST_STEPS = 50, 300  # the default length of a run, whichever is longer


@dataclass
class BoxArguments:
    """Images and boxes."""

    data: str | None = HfArg(default=None, help="Folder, parquet files or Hub name. Default: generated scenes.")
    annotations: str | None = HfArg(
        default=None, help="COCO file of the images in data, where it is not found by itself."
    )
    eval_annotations: str | None = HfArg(
        default=None, help="COCO file of those to evaluate on. Default: held-out ones."
    )
    objects_column: str = HfArg(default="objects", help="Column with the boxes, in data sets and metadata.jsonl.")
    box_format: Literal["xywh", "xyxy"] = HfArg(
        default="xywh", help="Numbers in that column: left, top, width, height, or left, top, right, bottom."
    )
    class_names: list[str] | None = HfArg(
        default=None, help="Names of the classes 0, 1, ..., or a file with one in each line, if the data name none."
    )
    broken_boxes: Literal["refuse", "clip", "drop"] = HfArg(
        default="refuse",
        help="Boxes outside of the picture, without a known class, ...: name them, cut them, drop them.",
    )
    box_orientation: Literal["auto", "displayed", "stored"] = HfArg(
        default="auto",
        help="What boxes of pictures with an EXIF orientation refer to. Default: the displayed picture, "
        "unless annotations state the size of the stored one.",
    )
    min_scale: float = HfArg(default=1.0, help="Smallest factor by which training pictures are resized.")
    max_scale: float = HfArg(default=1.0, help="Largest factor. Then they are cropped or padded to the image size.")


@dataclass
class DetectorArguments:
    """Model."""

    model_name_or_path: str | None = HfArg(
        default=None,
        help="Folder or name on the Hub of any model of hf_mae, also of a detector, which is then trained on.",
    )
    from_scratch: bool = HfArg(default=False, help="Take the checkpoint's configuration but fresh weights, to compare.")
    preset: str | None = HfArg(
        default=None, help="Without a checkpoint: tiny, small, base, large or huge, with fresh weights."
    )
    head: Literal["dfine", "deimv2"] | None = HfArg(
        default=None, help="The detector: D-FINE or DEIMv2. Default: dfine, or that of a trained detector."
    )
    image_size: list[int] | None = HfArg(
        default=None, help="Side, or height and width, in pixels, rounded up to twice the patch. Default: the model's."
    )
    head_size: int | None = HfArg(
        default=None,
        help="Channels of pyramid and detector, a multiple of 8. Default: the encoder's, at most 256, or the "
        "detector's.",
    )
    decoder_layers: int | None = HfArg(
        default=None, help="Layers of the detector's decoder. Default: 3, or those of a trained detector."
    )
    num_queries: int | None = HfArg(
        default=None, help="Boxes that are predicted. Default: twice the most of a picture, in [50, 300]."
    )
    drop_path_rate: float = HfArg(default=0.0, help="Drop path of the last block; it rises from 0 at the first.")


@dataclass
class DetectorTrainingArguments:
    """Optimization."""

    learning_rate: float = HfArg(default=5e-4, help="Learning rate of everything after the encoder's blocks.")
    layer_decay: float | None = HfArg(
        default=None,
        help="Factor of the learning rate from each block to the one before. Default: 0.8; fresh weights: 1.",
    )
    max_grad_norm: float = HfArg(default=0.1, help="Gradients are clipped to this norm. 0: never.")
    num_train_epochs: float = HfArg(
        default=0, help=f"Passes over the images. Default: {EPOCHS}, or what makes {FEWEST_STEPS} steps."
    )
    per_device_train_batch_size: int = HfArg(default=8, help="Images of one forward pass on one device.")
    per_device_eval_batch_size: int = HfArg(default=16, help="The same in evaluation.")
    lr_scheduler_type: str = HfArg(default="cosine", help="Schedule of the learning rate.")
    warmup_steps: float = HfArg(default=0.05, help="Steps with a rising rate; below 1: their share.")
    eval_strategy: str = HfArg(default="steps", help="When to evaluate: no, steps or epoch.")
    eval_steps: float | None = HfArg(default=0.1, help="Steps between two evaluations; below 1: their share.")
    save_strategy: str = HfArg(default="steps", help="When to save: no, steps or epoch. With the best mAP kept.")
    save_steps: float = HfArg(default=0.1, help="Steps between two checkpoints; below 1: their share.")
    save_total_limit: int | None = HfArg(default=1, help="Number of checkpoints to keep, beyond the best one.")
    load_best_model_at_end: bool | None = HfArg(
        default=None, help="Keep the best model of all evaluations. Default: where models are evaluated and saved."
    )
    metric_for_best_model: str = HfArg(default="map", help="Figure by which it is the best: map, map50, loss, ...")


@dataclass
class DetectionArguments(
    BoxArguments,
    ReadingArguments,
    OrientationArguments,
    DetectorArguments,
    DetectorTrainingArguments,
    FineTuningArguments,
):
    """Settings of [`detect`]: groups of its own and those of [`FineTuningArguments`]."""

    output_dir: str | None = HfArg(
        default=None,
        help="Folder for checkpoints and the final model, or for figures. Default: runs/detector, or runs/evaluation "
        "with eval_only.",
    )
    eval_only: bool = HfArg(default=False, help="Train nothing. Evaluate a detector on any images with boxes.")

    def __post_init__(self):
        self.output_dir = self.output_dir or ("runs/evaluation" if self.eval_only else "runs/detector")
        self.batch_eval_metrics = True  # boxes are collected batch by batch
        self.ddp_find_unused_parameters = True  # a batch without boxes does not use the embedding of noisy ones
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = "no" not in (str(self.eval_strategy), str(self.save_strategy))
        super().__post_init__()
        if self.data is None and (self.annotations or self.eval_annotations):
            raise ValueError("`annotations` needs `data`: the folder of the images.")
        if self.eval_annotations and not self.annotations:
            raise ValueError("`eval_annotations` needs `annotations`: the COCO file to train on.")
        if self.eval_only and not self.model_name_or_path:
            raise ValueError("`eval_only` needs `model_name_or_path`, a trained detector.")
        if self.data is None and not (self.model_name_or_path or self.preset):
            self.model_name_or_path = next((path for path in _SAMPLE_CHECKPOINTS if Path(path).is_dir()), None)
            self.preset = None if self.model_name_or_path else "tiny"
        settle_head(self)
        if self.layer_decay is None:  # fresh blocks have to learn as much as the head
            self.layer_decay = 0.8 if self.model_name_or_path and not self.from_scratch else 1.0
        if (self.head_size or 8) % 8:
            raise ValueError(
                f"`head_size` must be a multiple of 8, which is the number of heads, got {self.head_size}."
            )
        if self.decoder_layers is not None and self.decoder_layers < 2:
            raise ValueError(f"`decoder_layers` must be at least 2, got {self.decoder_layers}: one corrects another.")
        for name in ("annotations", "eval_annotations"):
            if getattr(self, name) is not None:
                setattr(self, name, os.fspath(getattr(self, name)))


__all__ = ["EPOCHS", "FEWEST_STEPS", "DetectionArguments"]
