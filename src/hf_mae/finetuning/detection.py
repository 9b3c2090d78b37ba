# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains a detector, D-FINE or DEIMv2, on a pre-trained encoder and measures its average precision."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCardData
from transformers import (
    Deimv2Config,
    Deimv2ForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)

from ..data.augmentation import RandomOrientation
from ..data.box_files import open_annotated
from ..data.boxes import BoxedImages, DetectionDataset, check_boxes, collate_boxes, number_classes, sample_scenes
from ..data.folders import FolderImages
from ..data.held_out import check_not_held_out, choose_held_out
from ..data.sampling import evenly_spaced
from ..evaluation.detection_metrics import BoxFigures, check_libraries, detection_sheet
from ..modeling.configuration_mae import MAEConfig, height_width
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae_downstream import load_encoder
from ..publishing.licenses import license_of
from ..publishing.model_cards import MARK, is_edited
from ..publishing.records import save_picture, write_text
from ..training.arguments import class_names_of, parse_arguments
from ..training.run_record import run_record
from .detection_settings import EPOCHS, FEWEST_STEPS, DetectionArguments
from .experiment import check_experiment, weights_fingerprint
from .heads import evaluate_head, load_head, say, train_head, trained_head, whole_image_processor
from .settings import check_sources, warn_of_divided_groups
from .trainer import FineTuned, FineTuningTrainer

_DESCRIPTION = """Train a detector, D-FINE or DEIMv2, on a pre-trained encoder.

  hf-mae detect                                                                 # generated scenes, minutes on a CPU
  hf-mae detect --model_name_or_path out --data path/to/folder --image_size 640 --output_dir detector
  hf-mae detect --model_name_or_path out --data images --annotations train.json --eval_annotations val.json
  hf-mae detect --model_name_or_path out --data path/to/folder --from_scratch      # the same without pre-training
  hf-mae detect --preset small --data path/to/folder --held_out 0                  # does it learn these pictures?
  hf-mae detect --model_name_or_path detector --data path/to/folder                # goes on with a detector
  hf-mae detect --model_name_or_path detector --data path/to/folder --eval_only    # figures of a detector

Boxes are COCO files, YOLO folders (images/ and labels/), Pascal VOC files, or a column of objects in metadata.jsonl, in
parquet files or on the Hub; the format is found by a look. Without --data scenes are made of the embedded pictures of
clothes. The same command continues an interrupted run. Needs pip install "hf-mae[detect]".
"""

_HEADS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "dfine": (DFineConfig, DFineForObjectDetection),
    "deimv2": (Deimv2Config, Deimv2ForObjectDetection),
}
_OF_CLASSES = ("class_embed", "enc_score_head")  # parts of the names of weights that depend on the classes
_LEVELS = ["p3", "p4", "p5"]  # maps at twice, once and half the grid of patches: each halves the one before
_SAMPLE_SIDE, _SAMPLE_COUNTS = 64, {"train": 512, "val": 64}
_DRAWN = 8  # pictures of the sheet


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
    checked = _open_splits(args, image_processor, "train", "val")
    if "train" not in checked:
        raise ValueError(f"{args.data} has pictures to evaluate on alone. Add some to train on, or set `eval_only`.")
    train, val = _with_held_out(args, checked["train"], checked.get("val"))
    _check_counts(args, train, val)
    check_sources(image_processor, train.images, val.images)
    return train, val


def _open_splits(args: DetectionArguments, image_processor: MAEImageProcessor, *splits: str) -> dict[str, BoxedImages]:
    """Returns images with boxes of splits, if they are there. Classes are those of a trained detector if it has all.

    Raises:
        OSError: If a file can't be found or read.
        ValueError: If boxes are broken, or the splits do not fit each other.
    """
    if args.data is None:
        return {split: sample_scenes(split, _SAMPLE_COUNTS[split], _SAMPLE_SIDE) for split in splits}
    columns = (args.objects_column, args.box_format, args.image_column, args.dataset_config)
    files, found = {"train": args.annotations, "val": args.eval_annotations}, {}
    for split in splits:
        if split == "val" and args.annotations and not args.eval_annotations:
            continue  # what could be found by itself are boxes of other images
        annotated = open_annotated(args.data, split, files[split], *columns)
        if annotated is not None:
            found[split] = annotated
    if not found:
        return {}
    trained = trained_detector(args.model_name_or_path)
    known = class_names_of(trained) if trained is not None else None
    names, numbers = number_classes(list(found.values()), args.class_names, known)
    checked, settings = {}, (image_processor, args.broken_boxes, args.box_orientation)
    for split, annotated in found.items():
        checked[split] = check_boxes(annotated, names, numbers, *settings)
        say(args, _describe(checked[split], split))
    return checked


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
        say(args, *check_not_held_out(args.held_out, args.group_by, args.data))
        _say_if_shared(args, train, val)
        return train, val
    if args.held_out == 0:
        say(args, "`held_out` is 0: figures are those of the training pictures, and say nothing about others.")
        return train, train
    chosen, note = choose_held_out(train.images, args.held_out, args.group_by)
    say(args, f"No second split in {args.data}. {note}")
    warn_of_divided_groups(args)
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
            say(args, f"{len(absent)} of {len(train.names)} classes have no box to {what} on: {shown}.")


def _say_if_shared(args: DetectionArguments, train: BoxedImages, val: BoxedImages):
    """Says so if pictures are in both splits, as where data.yaml names the same folder for both."""
    if not (isinstance(train.images, FolderImages) and isinstance(val.images, FolderImages)):
        return
    seen, paths = ([os.path.abspath(each.images.describe(i)) for i in range(len(each))] for each in (train, val))
    if shared := sorted(set(seen).intersection(paths)):
        say(
            args,
            f"{len(shared):,} of {len(val):,} pictures to evaluate on are training pictures, first {shared[0]}: the "
            "figures say little about others. Name others for one of the splits, or only one split.",
        )


# ----------------------------------------------------------------------------------------------------------------------
# Model


def trained_detector(model_name_or_path: str | None) -> PreTrainedConfig | None:
    """Returns the configuration of a trained detector, `None` if there is another model or none.

    Args:
        model_name_or_path (`str`, *optional*): Folder or name on the Hub.

    Raises:
        OSError: If there is no such model.
        ValueError: If its encoder is none of hf_mae.
    """
    return trained_head(model_name_or_path, *(config_class for config_class, _ in _HEADS.values()))


def _head_of(config: PreTrainedConfig) -> str:
    """Returns which of the heads a trained detector is."""
    return next(head for head, (config_class, _) in _HEADS.items() if isinstance(config, config_class))


def build_encoder_config(args: DetectionArguments) -> MAEConfig:
    """Returns the configuration of the encoder with the three levels of the pyramid that the detectors take.

    Args:
        args ([`DetectionArguments`]): The settings of the model.

    Raises:
        ValueError: If they do not fit each other.
    """
    path, trained = args.model_name_or_path, trained_detector(args.model_name_or_path)
    fields: dict[str, Any] = {"drop_path_rate": args.drop_path_rate}
    if trained is not None:
        config = MAEConfig.from_dict({**trained.backbone_config.to_dict(), **fields})
    else:
        config = MAEConfig.from_pretrained(path, **fields) if path else MAEConfig.from_preset(args.preset, **fields)
        config.feature_pyramid_size = min(config.hidden_size // 8 * 8, 256)
    wanted = args.image_size or ([_SAMPLE_SIDE] if args.data is None else height_width(config.image_size))
    wanted = wanted * 2 if len(wanted) == 1 else wanted
    # The coarsest map has a cell for 2 x 2 patches, and the detector needs maps that halve exactly.
    cell = [2 * side for side in height_width(config.patch_size)]
    sides = [-(-side // multiple) * multiple for side, multiple in zip(wanted, cell, strict=True)]
    if tuple(sides) != tuple(wanted):
        say(args, f"`image_size` {wanted[0]} x {wanted[1]} is rounded up to {sides[0]} x {sides[1]}: twice the patch.")
    config.image_size = sides[0] if sides[0] == sides[1] else sides
    config.feature_pyramid_size = args.head_size or config.feature_pyramid_size
    config.set_output_features_output_indices(_LEVELS, None)
    config.dtype = torch.float32  # whatever the checkpoint has, or the encoder alone would have another than its head
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
    trained = trained_detector(args.model_name_or_path)
    head_there = None if trained is None else _head_of(trained)
    head = args.head or head_there or "dfine"
    if head_there not in (None, head) and not args.from_scratch:
        raise ValueError(f"`head` is {head}, but {args.model_name_or_path} is a {head_there}. Leave it out.")
    layers = args.decoder_layers or (3 if trained is None else trained.decoder_layers)
    config_class, model_class = _HEADS[head]
    size, (patch, _) = config.feature_pyramid_size, height_width(config.patch_size)
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
            decoder_layers=layers,
            num_queries=num_queries,
            num_denoising=num_queries,
            # Width and depth of the small models of D-FINE (Peng et al. 2024, arXiv 2410.13842), for small heads.
            hidden_expansion=0.5 if size < 256 else 1.0,
            depth_mult=0.34 if size < 256 else 1.0,
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
    )
    if trained is not None and not args.from_scratch:
        load_head(model, args.model_name_or_path, _OF_CLASSES, "`head_size` and `decoder_layers`")
    elif args.model_name_or_path and not args.from_scratch:
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
            f"`num_queries` must be in [1, {cells}], the cells of the maps at {height_width(config.image_size)} "
            f"pixels, got {number}. Raise `image_size`."
        )
    if number < most:
        say(args, f"A picture has {most} boxes, more than the {number} queries: some of them cannot be found.")
    return number


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
        self.losses: dict[int, list[float]] = {}
        super().__init__(*args, **kwargs, data_collator=collate_boxes, compute_metrics=self._figures)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Loads weights by `from_pretrained`: files of detectors have other names for some than the model in memory.

        Trainer compares names alone, and leaves what does not match as it was.
        """
        model = self.accelerator.unwrap_model(self.model if model is None else model)
        model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint).state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _determine_best_metric(self, metrics: dict, trial) -> bool:
        """Says whether a model is the best so far; of equal ones the last, since few steps may leave all at AP 0."""
        if metrics.get(f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}") == self.state.best_metric:
            self.state.best_metric = None
        return super()._determine_best_metric(metrics, trial)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns the best 100 boxes of each picture `(batch, boxes, 6)`, its loss and its number of boxes, and the
        indices of the pictures. The loss of a batch would depend on which pictures are together in it."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(inputs["pixel_values"])
            losses = [_loss_of_one(self.model, outputs, label, index) for index, label in enumerate(labels)]
        counts = [max(len(label["class_labels"]), 1) for label in labels]
        losses = torch.stack([torch.stack(losses).float(), torch.tensor(counts, device=losses[0].device)], dim=1)
        found = torch.stack(_best_boxes(self.processing_class, outputs))
        return None, (found, losses), torch.stack([label["image_id"] for label in labels])

    def _figures(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Adds a batch; at the last one returns the figures of [`BoxFigures`] and the mean loss over all boxes."""
        (found, losses), indices = prediction.predictions, prediction.label_ids
        self.losses.update(zip(indices.tolist(), losses.tolist(), strict=True))
        figures = self.figures(EvalPrediction(found, indices), compute_result)
        if compute_result:
            values, counts = np.array([*self.losses.values()]).T
            figures, self.losses = {**figures, "loss": float(np.average(values, weights=counts))}, {}
        return figures

    def describe_results(self, metrics: dict) -> dict:
        """Adds the AP of each class, prints them, draws pictures with their boxes, and after training writes a card."""
        folder, by_class = Path(self.args.output_dir), {}
        boxed = self.eval_dataset.boxed
        for name, value, count in zip(boxed.names, self.figures.by_class.tolist(), boxed.counts, strict=True):
            by_class[f"eval_map_{name}"] = None if math.isnan(value) else value
            print(f"  {name:30} {'does not occur' if math.isnan(value) else format(value, '.4f')}  ({count:,} boxes)")
        save_picture(folder / "detections.png", draw_detections(self.model, self.eval_dataset))
        if self.train_dataset is not None:
            write_card(folder, self.model, {**metrics, **by_class}, self.args.model_name_or_path)
        return {**metrics, **by_class}


def _loss_of_one(model: PreTrainedModel, outputs, label: dict, index: int) -> torch.Tensor:
    """Returns the loss of one picture of a batch, as if it was alone in it."""

    def of_one(name: str) -> torch.Tensor:
        return outputs[name][index : index + 1]

    return model.loss_function(
        of_one("logits"),
        [label],
        model.device,
        of_one("pred_boxes"),
        model.config,
        of_one("intermediate_logits"),
        of_one("intermediate_reference_points"),
        enc_topk_logits=of_one("enc_topk_logits"),
        enc_topk_bboxes=of_one("enc_topk_bboxes"),
        predicted_corners=of_one("intermediate_predicted_corners"),
        initial_reference_points=of_one("initial_reference_points"),
    )[0]


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
    indices = evenly_spaced(len(dataset), count).tolist()
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
    if card.exists() and is_edited(card):
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

{MARK}. Remove this line to keep your own changes. -->
"""
    write_text(card, text)


def detect(args: DetectionArguments) -> FineTuned:
    """Trains a detector, or with `eval_only` evaluates one, see [`evaluate_detector`].

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
    if args.eval_only:
        return evaluate_detector(args)
    set_seed(args.seed)  # fresh weights are made before Trainer sets the seed
    recipe = args.recipe()
    config = build_encoder_config(args)
    image_processor = whole_image_processor(args, config)
    train, val = open_boxes(args, image_processor)
    fingerprints = {
        "images and boxes": train.fingerprint,
        "evaluation images and boxes": val.fingerprint,
        "initial weights": weights_fingerprint(args.model_name_or_path),
    }
    model = build_detector(args, config, train.names, choose_num_queries(args, config, train, val))
    args.check_rotation(image_processor.crop_height_width)
    checkpoint = check_experiment(args, "detect", fingerprints)  # deletes, if it is to, when all else is right
    if not args.num_train_epochs:
        args.num_train_epochs = max(EPOCHS, FEWEST_STEPS * args.effective_batch_size / len(train))
    orientation = RandomOrientation(args.horizontal_flip, args.vertical_flip, args.rotate90)
    scale = (args.min_scale, args.max_scale)
    trainer = DetectionTrainer(
        model=model,
        args=args,
        train_dataset=DetectionDataset(train, image_processor, scale, orientation),
        eval_dataset=DetectionDataset(val, image_processor),
        processing_class=image_processor,
    )
    say(args, _plan(args, model, train, val))
    return train_head(trainer, recipe, len(train), checkpoint, "detections.png")


def evaluate_detector(args: DetectionArguments) -> FineTuned:
    """Evaluates a trained detector on any images with boxes.

    Of data with splits the evaluation images are taken, else all. `output_dir` gets `evaluation.json` and
    `detections.png`.

    Args:
        args ([`DetectionArguments`]): `model_name_or_path`, what says which images and boxes, `output_dir` and the size
            of batches. The classes are those of the model.

    Raises:
        OSError: If a file can't be found or read.
        ValueError: If the model does not detect, boxes are broken, or they have classes that the model lacks.
    """
    config = trained_detector(args.model_name_or_path)
    if config is None:
        raise ValueError(f"{args.model_name_or_path} does not detect. Train it first, without `eval_only`.")
    _, model_class = _HEADS[_head_of(config)]
    model = model_class.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    image_processor = args.load_image_processor(args.model_name_or_path)
    splits = _open_splits(args, image_processor, "val")
    if not splits:
        if args.annotations is None:  # which may be those of other images there
            args.warn_of_training_images()
        splits = _open_splits(args, image_processor, "train")
    (boxed,) = splits.values()
    if boxed.names != (known := class_names_of(config)):
        raise ValueError(
            f"The boxes have the classes {', '.join(boxed.names)}, but {args.model_name_or_path} knows "
            f"{', '.join(known)}."
        )
    if not boxed.counts.any():
        raise ValueError(f"{args.data} has no boxes to evaluate on. Check the annotations.")
    check_sources(image_processor, boxed.images)
    dataset = DetectionDataset(boxed, image_processor)
    trainer = DetectionTrainer(model=model, args=args, eval_dataset=dataset, processing_class=image_processor)
    record = {**run_record(args.recipe()), "num_images": len(boxed), "images and boxes": boxed.fingerprint}
    return evaluate_head(trainer, record, "detections.png")


def _plan(args: DetectionArguments, model: PreTrainedModel, train: BoxedImages, val: BoxedImages) -> str:
    config = model.config.backbone_config
    rows, columns = config.grid_size
    height, width = height_width(config.image_size)
    path, names = args.model_name_or_path, train.names
    started = f"of {path}" if trained_detector(path) else f"encoder of {path}, the rest fresh"
    return (
        f"Images   {len(train):,} and {len(val):,} to evaluate on, {args.data or 'generated'}\n"
        f"Classes  {len(names)}: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}\n"
        f"Model    {model.num_parameters() / 1e6:.1f} M parameters, {height} x {width} pixels, {rows} x {columns} "
        f"patches; {type(model).__name__} of {model.config.d_model} channels, {model.config.num_queries} queries\n"
        f"Weights  {'fresh' if args.from_scratch or not path else started}\n"
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
    "evaluate_detector",
    "open_boxes",
    "trained_detector",
    "write_card",
]
