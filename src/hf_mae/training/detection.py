# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains a detector, D-FINE or DEIMv2, on a pre-trained encoder and measures its average precision."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import ModelCardData
from transformers import (
    Deimv2Config,
    Deimv2ForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    PreTrainedModel,
    set_seed,
)
from transformers.hf_argparser import HfArg

from ..data.augmentation import RandomOrientation
from ..data.box_files import open_annotated
from ..data.boxes import BoxedImages, DetectionDataset, check_boxes, collate_boxes, number_classes, sample_scenes
from ..data.held_out import choose_held_out
from ..evaluation.detection_metrics import BoxFigures, check_libraries, detection_sheet
from ..modeling.configuration_mae import MAEConfig, _pair
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae_downstream import load_encoder
from ..publishing import license_of
from .arguments import parse_arguments
from .finetuning import (
    FineTuned,
    FineTuningArguments,
    FineTuningTrainer,
    OrientationArguments,
    ReadingArguments,
    check_experiment,
    check_sources,
    weights_fingerprint,
)
from .head_settings import settle_head
from .run_log import run_record

_DESCRIPTION = """Train a detector, D-FINE or DEIMv2, on a pre-trained encoder.

  hf-mae detect                                                                 # generated scenes, minutes on a CPU
  hf-mae detect --model_name_or_path out --data path/to/folder --image_size 640 --output_dir detector
  hf-mae detect --model_name_or_path out --data images --annotations train.json --eval_annotations val.json
  hf-mae detect --model_name_or_path out --data path/to/folder --from_scratch      # the same without pre-training
  hf-mae detect --preset small --data path/to/folder --held_out 0                  # does it learn these pictures?

Boxes are COCO files, YOLO folders (images/ and labels/), Pascal VOC files, or a column of objects in metadata.jsonl, in
parquet files or on the Hub; the format is found by a look. Without --data scenes are made of the embedded pictures of
clothes. The same command continues an interrupted run. Needs pip install hf-mae[detect]."""

_HEADS: dict[str, tuple[type, type]] = {
    "dfine": (DFineConfig, DFineForObjectDetection),
    "deimv2": (Deimv2Config, Deimv2ForObjectDetection),
}
_LEVELS = ["p3", "p4", "p5"]  # maps at twice, once and half the grid of patches: each halves the one before
_SAMPLE_SIDE, _SAMPLE_COUNTS = 64, {"train": 512, "val": 64}
# Checkpoints for the sample, in the order of preference: what `hf-mae pretrain` leaves, and the one in the repository.
_SAMPLE_CHECKPOINTS = ("runs/fashion_mnist_sample", "model_cards/mae-fashion-mnist")
_EPOCHS, _FEWEST_STEPS = 50, 300
_DRAWN = 8  # pictures of the sheet
_MARK = "<!-- Written by hf_mae"  # at the end of cards that nobody has edited


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

    model_name_or_path: str | None = HfArg(default=None, help="Folder or name on the Hub of any model of hf_mae.")
    from_scratch: bool = HfArg(default=False, help="Take the checkpoint's configuration but fresh weights, to compare.")
    preset: str | None = HfArg(
        default=None, help="Without a checkpoint: tiny, small, base, large or huge, with fresh weights."
    )
    head: Literal["dfine", "deimv2"] = HfArg(default="dfine", help="The detector: D-FINE or DEIMv2.")
    image_size: list[int] | None = HfArg(
        default=None, help="Side, or height and width, in pixels, rounded up to twice the patch. Default: the model's."
    )
    head_size: int | None = HfArg(
        default=None, help="Channels of pyramid and detector, a multiple of 8. Default: the encoder's, at most 256."
    )
    decoder_layers: int = HfArg(default=3, help="Layers of the detector's decoder.")
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
        default=0, help=f"Passes over the images. Default: {_EPOCHS}, or what makes {_FEWEST_STEPS} steps."
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

    output_dir: str | None = HfArg(default="runs/detector", help="Folder for checkpoints and the final model.")

    def __post_init__(self):
        self.batch_eval_metrics = True  # boxes are collected batch by batch
        self.ddp_find_unused_parameters = True  # a batch without boxes does not use the embedding of noisy ones
        self.load_best_model_at_end = "no" not in (str(self.eval_strategy), str(self.save_strategy))
        self.metric_for_best_model, self.greater_is_better = "map", True
        super().__post_init__()
        if self.data is None and (self.annotations or self.eval_annotations):
            raise ValueError("`annotations` needs `data`: the folder of the images.")
        if self.eval_annotations and not self.annotations:
            raise ValueError("`eval_annotations` needs `annotations`: the COCO file to train on.")
        if self.data is None and not (self.model_name_or_path or self.preset):
            self.model_name_or_path = next((path for path in _SAMPLE_CHECKPOINTS if Path(path).is_dir()), None)
            self.preset = None if self.model_name_or_path else "tiny"
        settle_head(self)
        if self.layer_decay is None:  # fresh blocks have to learn as much as the head
            self.layer_decay = 0.8 if self.model_name_or_path and not self.from_scratch else 1.0
        if self.decoder_layers < 2:
            raise ValueError(f"`decoder_layers` must be at least 2, got {self.decoder_layers}: one corrects another.")
        for name in ("annotations", "eval_annotations"):
            if getattr(self, name) is not None:
                setattr(self, name, os.fspath(getattr(self, name)))


# ----------------------------------------------------------------------------------------------------------------------
# Images with boxes


def open_boxes(args: DetectionArguments, image_processor: MAEImageProcessor) -> tuple[BoxedImages, BoxedImages]:
    """Returns what to train on and what to evaluate on. Looks at all boxes, and at the size of every picture.

    Args:
        args ([`DetectionArguments`]): The settings of images and boxes.
        image_processor ([`MAEImageProcessor`]): Says how files are read.

    Raises:
        OSError: If a file can't be found or read.
        ValueError: If there are no boxes, some are broken, or the splits do not fit each other.
    """
    if args.data is None:
        train, val = (sample_scenes(split, count, _SAMPLE_SIDE) for split, count in _SAMPLE_COUNTS.items())
        return train, val
    columns = (args.objects_column, args.box_format, args.image_column, args.dataset_config)
    if args.annotations is not None and args.eval_annotations is None:
        files = {"train": args.annotations}
    else:
        files = {"train": args.annotations, "val": args.eval_annotations}
    opened = {split: open_annotated(args.data, split, file, *columns) for split, file in files.items()}
    found = {split: annotated for split, annotated in opened.items() if annotated is not None}
    names, numbers = number_classes(list(found.values()), args.class_names)
    checked = {}
    for split, annotated in found.items():
        settings = (image_processor, args.broken_boxes, args.box_orientation)
        checked[split] = check_boxes(annotated, names, numbers, *settings)
        _say(args, _describe(checked[split], split))
    train, val = _with_held_out(args, checked["train"], checked.get("val"))
    _check_counts(args, train, val)
    check_sources(image_processor, train.images, val.images)
    return train, val


def _describe(boxed: BoxedImages, split: str) -> str:
    without = sum(boxes.crowd.all() for boxes in boxed.boxes)
    text = f"{boxed.kind}, {split}: {len(boxed):,} pictures with {boxed.counts.sum():,} boxes"
    text += f", {without:,} of them without any" if without else ""
    ignored = sum(int(boxes.crowd.sum()) for boxes in boxed.boxes)
    text += f"; {ignored:,} boxes of crowds or difficult objects do not count" if ignored else ""
    return "\n".join([f"{text}.", *boxed.notes])


def _with_held_out(
    args: DetectionArguments, train: BoxedImages, val: BoxedImages | None
) -> tuple[BoxedImages, BoxedImages]:
    """Returns pictures to train and to evaluate on: of a second split, held out, or with `held_out` 0 the same ones."""
    if val is not None:
        return train, val
    chosen, note = choose_held_out(train.images, args.held_out, args.group_by)
    if args.held_out == 0:
        _say(args, "`held_out` is 0: figures are those of the training pictures, and say nothing about others.")
        return train, train
    _say(args, f"No second split in {args.data}. {note}")
    if not chosen.any():
        raise ValueError(
            f"{args.data} has {len(train)} picture(s), of which none can be held out for evaluation. Add some, or set "
            "`held_out` to 0 to evaluate on those it is trained on."
        )
    return train.select(~chosen), train.select(chosen)


def _check_counts(args: DetectionArguments, train: BoxedImages, val: BoxedImages):
    """Raises `ValueError` if there is nothing to learn or to measure, and names classes that are on one side only."""
    counts = {"train": train.counts, "evaluate": val.counts}
    for what, count in counts.items():
        if not count.any():
            raise ValueError(f"{args.data} has no boxes to {what} on. Check the annotations, or change `held_out`.")
        if absent := [name for name, number in zip(train.names, count, strict=True) if not number]:
            shown = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
            _say(args, f"{len(absent)} of {len(train.names)} classes have no box to {what} on: {shown}.")


def _say(args: DetectionArguments, text: str):
    if args.process_index == 0:
        print(text, flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# Model


def build_encoder_config(args: DetectionArguments) -> MAEConfig:
    """Returns the configuration of the encoder with the three levels of the pyramid that the detectors take.

    Args:
        args ([`DetectionArguments`]): The settings of the model.

    Raises:
        ValueError: If they do not fit each other.
    """
    path = args.model_name_or_path
    fields: dict[str, Any] = {"drop_path_rate": args.drop_path_rate}
    config = MAEConfig.from_pretrained(path, **fields) if path else MAEConfig.from_preset(args.preset, **fields)
    sample = [_SAMPLE_SIDE] if args.data is None else None
    wanted = _pair(args.image_size or sample or config.image_size)
    wanted = wanted * 2 if len(wanted) == 1 else wanted
    # The coarsest map has a cell for 2 x 2 patches, and the detector needs maps that halve exactly.
    sides = [-(-side // (2 * patch)) * 2 * patch for side, patch in zip(wanted, _pair(config.patch_size), strict=True)]
    if tuple(sides) != tuple(wanted):
        _say(args, f"`image_size` {wanted[0]} x {wanted[1]} is rounded up to {sides[0]} x {sides[1]}: twice the patch.")
    config.image_size = sides[0] if sides[0] == sides[1] else sides
    config.feature_pyramid_size = args.head_size or min(config.hidden_size // 8 * 8, 256)
    config.set_output_features_output_indices(_LEVELS, None)
    config.check()  # from_pretrained does not check the fields it is given
    return config


def build_detector(args: DetectionArguments, config: MAEConfig, names: list[str], num_queries: int) -> PreTrainedModel:
    """Returns a detector on the feature pyramid of the encoder.

    Args:
        args ([`DetectionArguments`]): The settings of the model.
        config ([`MAEConfig`]): See [`build_encoder_config`].
        names (`list[str]`): Names of the classes.
        num_queries (`int`): Boxes that are predicted, at most as many as the maps have cells.
    """
    config_class, model_class = _HEADS[args.head]
    size, (patch, _) = config.feature_pyramid_size, _pair(config.patch_size)
    torch.manual_seed(args.seed)
    model = model_class(
        config_class(
            backbone_config=config,
            encoder_hidden_dim=size,
            d_model=size,
            decoder_in_channels=[size] * len(_LEVELS),
            num_feature_levels=len(_LEVELS),
            feat_strides=[max(patch // 2, 1), patch, 2 * patch],
            encoder_ffn_dim=4 * size,
            decoder_ffn_dim=4 * size,
            decoder_layers=args.decoder_layers,
            num_queries=num_queries,
            num_denoising=num_queries,
            # Width and depth of the small models of D-FINE (Peng et al. 2024, arXiv 2410.13842), for small heads.
            hidden_expansion=0.5 if size < 256 else 1.0,
            depth_mult=0.34 if size < 256 else 1.0,
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
    )
    if args.model_name_or_path and not args.from_scratch:
        load_encoder(model, args.model_name_or_path)
    return model


def choose_num_queries(args: DetectionArguments, config: MAEConfig, *splits: BoxedImages) -> int:
    """Returns `num_queries`, or twice the largest number of boxes in a picture, in [50, 300].

    Args:
        args ([`DetectionArguments`]): `num_queries`.
        config ([`MAEConfig`]): Says how many cells the maps have.
        *splits ([`BoxedImages`]): All pictures.

    Raises:
        ValueError: If they are more than the maps have cells.
    """
    rows, columns = config.grid_size
    cells = 4 * rows * columns + rows * columns + rows * columns // 4
    most = max(len(boxes.classes) for boxed in splits for boxes in boxed.boxes)
    number = args.num_queries or min(max(50, 2 * most), 300, cells)
    if not 1 <= number <= cells:
        raise ValueError(
            f"`num_queries` must be in [1, {cells}], the cells of the maps at {_pair(config.image_size)} pixels, got "
            f"{number}. Raise `image_size`."
        )
    if number < most:
        _say(args, f"A picture has {most} boxes, more than the {number} queries: some of them cannot be found.")
    return number


def _build_image_processor(args: DetectionArguments, config: MAEConfig) -> MAEImageProcessor:
    """Returns the checkpoint's processor, but one that resizes the whole image to the size of the model."""
    height, width = _pair(config.image_size)
    size = {"height": height, "width": width}
    changes = {"size": size, "crop_size": size, "do_center_crop": False}
    if args.model_name_or_path is None:
        changes["num_channels"] = config.num_channels
    return args.load_image_processor(args.model_name_or_path, **changes)


# ----------------------------------------------------------------------------------------------------------------------
# Run


class DetectionTrainer(FineTuningTrainer):
    """Trains a detector, and evaluates the boxes that it finds."""

    def __init__(self, *args, **kwargs):
        """
        Args:
            *args, **kwargs: Arguments of [`~transformers.Trainer`]; the data sets are [`DetectionDataset`].
        """
        self.figures = BoxFigures(kwargs["eval_dataset"].boxed)
        super().__init__(*args, **kwargs, data_collator=collate_boxes, compute_metrics=self.figures)
        # The loss is a mean over the boxes of each batch; Trainer divides it by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Loads weights by `from_pretrained`: files of detectors have other names for some than the model in memory.

        Trainer compares names alone, and leaves what does not match as it was.
        """
        model = self.accelerator.unwrap_model(self.model if model is None else model)
        model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint).state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns the loss, the best 100 boxes of each picture `(batch, boxes, 6)`, and the indices of the pictures."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        found = torch.stack(_best_boxes(self.processing_class, outputs))
        indices = torch.stack([label["image_id"] for label in inputs["labels"]])
        return outputs.loss.detach().float(), found, indices

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Returns the figures, with the statistics of the norms that are saved: those of the first process."""
        self.share_buffers()
        return super().evaluate(*args, **kwargs)

    def describe_results(self, metrics: dict) -> dict:
        """Adds the AP of each class, prints them, draws pictures with their boxes, and writes a card."""
        folder, by_class = Path(self.args.output_dir), {}
        boxed = self.eval_dataset.boxed
        for name, value, count in zip(boxed.names, self.figures.by_class.tolist(), boxed.counts, strict=True):
            by_class[f"eval_map_{name}"] = None if value != value else value
            print(f"  {name:30} {'does not occur' if value != value else format(value, '.4f')}  ({count:,} boxes)")
        draw_detections(self.model, self.eval_dataset).save(folder / "detections.png")
        write_card(folder, self.model, {**metrics, **by_class}, self.args.model_name_or_path)
        return {**metrics, **by_class}


def _best_boxes(image_processor: MAEImageProcessor, outputs) -> list[torch.Tensor]:
    """Returns of each picture `(boxes, 6)`: score, class, left, top, right, bottom in shares, the best 100."""
    found = image_processor.post_process_object_detection(outputs, threshold=-1.0)
    return [torch.cat([one["scores"][:, None], one["labels"][:, None], one["boxes"]], dim=1) for one in found]


@torch.no_grad()
def draw_detections(model: PreTrainedModel, dataset: DetectionDataset, count: int = _DRAWN):
    """Draws pictures with their boxes next to what the model finds, see [`detection_sheet`].

    Args:
        model ([`~transformers.PreTrainedModel`]): The detector.
        dataset ([`DetectionDataset`]): Pictures, spread over which some are drawn.
        count (`int`, *optional*, defaults to 8): Number of pictures.
    """
    count = min(count, len(dataset))
    indices = [number * len(dataset) // count for number in range(count)]
    pixel_values = torch.stack([dataset[index]["pixel_values"] for index in indices])
    outputs = model.eval()(pixel_values.to(model.device))
    found = [boxes.float().cpu().numpy() for boxes in _best_boxes(dataset.image_processor, outputs)]
    true = [dataset.boxed.boxes[index] for index in indices]
    truth = [np.concatenate([boxes.classes[:, None], boxes.corners], axis=1) for boxes in true]
    pictures = dataset.image_processor.post_process_reconstruction(pixel_values)
    return detection_sheet(pictures, truth, found, dataset.boxed.names)


def write_card(folder: Path, model: PreTrainedModel, metrics: dict, source: str | os.PathLike | None):
    """Writes `README.md` of a detector, unless somebody has edited it. It says how the model is loaded.

    Args:
        folder (`Path`): Folder of the model.
        model ([`~transformers.PreTrainedModel`]): The detector.
        metrics (`dict`): Figures on the evaluation pictures.
        source (`str` or `os.PathLike`, *optional*): Where the encoder comes from, whose licence may bind.
    """
    card, name = folder / "README.md", folder.resolve().name
    if card.exists() and _MARK not in card.read_text(encoding="utf-8"):
        return
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["masked-autoencoder", "mae", "vit", "object-detection"],
        license=license_of(source),
    )
    rows = [
        f"| {figure.removeprefix('eval_')} | {value:.4f} |"
        for figure, value in metrics.items()
        if figure.startswith("eval_map") and value is not None
    ]
    text = f"""---
{data.to_yaml()}
---

# {name}

{type(model).__name__} on the encoder of a masked autoencoder, trained with hf_mae (`pip install hf-mae`). It finds
{", ".join(model.config.id2label.values())}.

```python
import hf_mae  # registers the encoder; without it transformers does not know `mae`
from transformers import pipeline

detector = pipeline("object-detection", model="{name}")
detector("picture.jpg", threshold=0.4)  # a list of score, label and box in pixels
```

hf_mae must be installed: transformers does not find code for an encoder within another model, with or without
`trust_remote_code`.

| on the evaluation pictures | |
|---|---|
{chr(10).join(rows)}

{_MARK}. Remove this line to keep your own changes. -->
"""
    card.write_text(text, encoding="utf-8")


def detect(args: DetectionArguments) -> FineTuned:
    """Trains a detector.

    Args:
        args ([`DetectionArguments`]): The settings.

    Returns:
        [`FineTuned`]: The model, its figures on the evaluation pictures, and the folder that holds it.

    Raises:
        ImportError: If scipy or faster-coco-eval is missing.
        OSError: If a file can't be found or read.
        ValueError: If images, boxes and settings do not fit, or the folder holds another run.
        RunStopped: If a signal stopped the run, which has saved a checkpoint.
        FloatingPointError: If a loss or a gradient was not finite.
    """
    check_libraries()
    set_seed(args.seed)  # fresh weights are made before Trainer sets the seed
    recipe = args.recipe()
    config = build_encoder_config(args)
    image_processor = _build_image_processor(args, config)
    train, val = open_boxes(args, image_processor)
    fingerprints = {
        "images and boxes": train.fingerprint,
        "evaluation images and boxes": val.fingerprint,
        "initial weights": weights_fingerprint(args.model_name_or_path),
    }
    model = build_detector(args, config, train.names, choose_num_queries(args, config, train, val))
    checkpoint = check_experiment(args, "detect", fingerprints)  # a folder is taken only by what can be built
    if not args.num_train_epochs:
        args.num_train_epochs = max(_EPOCHS, _FEWEST_STEPS * args.effective_batch_size / len(train))
    size = image_processor.size.height, image_processor.size.width
    orientation = RandomOrientation(args.horizontal_flip, args.vertical_flip, args.check_rotation(size))
    scale = (args.min_scale, args.max_scale)
    trainer = DetectionTrainer(
        model=model,
        args=args,
        train_dataset=DetectionDataset(train, image_processor, scale, orientation),
        eval_dataset=DetectionDataset(val, image_processor),
        processing_class=image_processor,
    )
    _say(args, _plan(args, model, train, val))
    metrics = trainer.run({**run_record(recipe), "num_images": len(train)}, checkpoint)
    _say(args, f"Done: model, eval_results.json and detections.png are in {args.output_dir}.")
    return FineTuned(model, metrics, Path(args.output_dir))


def _plan(args: DetectionArguments, model: PreTrainedModel, train: BoxedImages, val: BoxedImages) -> str:
    config = model.config.backbone_config
    rows, columns = config.grid_size
    height, width = _pair(config.image_size)
    fresh = args.from_scratch or not args.model_name_or_path
    names = train.names
    return (
        f"Images   {len(train):,} and {len(val):,} to evaluate on, {args.data or 'generated'}\n"
        f"Classes  {len(names)}: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}\n"
        f"Model    {model.num_parameters() / 1e6:.1f} M parameters, {height} x {width} pixels, {rows} x {columns} "
        f"patches; {args.head} of {model.config.d_model} channels, {model.config.num_queries} queries\n"
        f"Weights  {'fresh' if fresh else 'encoder of ' + args.model_name_or_path + ', the rest fresh'}\n"
        f"Batch    {args.effective_batch_size} over {args.world_size} process(es)\n"
        f"Rate     {args.learning_rate:.3g}, times {args.layer_decay:g} from each block to the one before\n"
        f"Output   {args.output_dir}"
    )


def detect_command(argv: list[str], prog: str):
    """Runs `hf-mae detect`.

    Args:
        argv (`list[str]`): Arguments of the command.
        prog (`str`): What the command is called.
    """
    detect(parse_arguments(DetectionArguments, argv, prog=prog, description=_DESCRIPTION))


__all__ = [
    "DetectionArguments",
    "DetectionTrainer",
    "build_detector",
    "build_encoder_config",
    "choose_num_queries",
    "detect",
    "detect_command",
    "draw_detections",
    "open_boxes",
    "write_card",
]
