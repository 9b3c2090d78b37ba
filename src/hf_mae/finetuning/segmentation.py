# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains UperNet on a pre-trained encoder for semantic segmentation and measures the mean IoU."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import UperNetConfig, UperNetForSemanticSegmentation, set_seed
from transformers.trainer_utils import EvalLoopOutput

from ..cli import in_flags
from ..data.augmentation import RandomOrientation
from ..data.held_out import check_not_held_out, choose_held_out
from ..data.image_source import ImageSource
from ..data.masks import (
    IGNORED,
    SPLITS,
    Pair,
    SegmentationDataset,
    fingerprint_of_pairs,
    folder_pairs,
    read_pair,
    sample_pairs,
)
from ..data.sources import open_images
from ..data.windows import PictureStrips, sizes_of, whole_pictures
from ..evaluation.segmentation_metrics import ConfusionMatrix, segmentation_sheet
from ..modeling.configuration_mae import MAEConfig, height_width
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae_downstream import load_encoder
from ..publishing.records import save_picture
from ..training.arguments import class_names_of, parse_arguments
from ..training.run_record import run_record
from ..training.step_guard import with_prepared_workers
from .experiment import check_experiment, weights_fingerprint
from .heads import evaluate_head, load_head, say, train_head, trained_head, whole_image_processor
from .segmentation_maps import blended_logits, open_pictures, write_class_maps
from .segmentation_settings import SegmentationArguments
from .settings import limit_batch_size, warn_of_divided_groups
from .trainer import FineTuned, FineTuningTrainer

_DESCRIPTION = """Train UperNet on a pre-trained encoder for semantic segmentation.

  hf-mae segment --model_name_or_path runs/fashion_mnist_sample --num_train_epochs 10 --learning_rate 1e-3
  hf-mae segment --model_name_or_path out --data path/to/folder --image_size 512 --class_names names.txt
  hf-mae segment --model_name_or_path out --data path/to/folder --from_scratch     # the same without pre-training
  hf-mae segment --preset small --data path/to/folder                              # without any checkpoint
  hf-mae segment --model_name_or_path segmenter --data path/to/folder --eval_only  # figures of a trained model
  hf-mae segment --model_name_or_path segmenter --data path/to/pictures --predict_only --output_dir maps

The folder holds images/ and masks/, perhaps below train/ and val/: for each image a mask of the same name, a PNG or
TIFF of one channel or a .npy file with the class of each pixel, 255 where it does not count. Without --data a sample is
made of the embedded images. The same command continues an interrupted run.

With --predict_only a model that this command has trained writes the class of each pixel of any pictures: PNG files, and
for TIFFs TIFFs, which lie at the same place on the earth. Scenes of any size are trained on in windows with --tile.

In evaluation and prediction pictures that are larger than those trained on are cut into windows of that size, which
overlap and are blended. Figures are counted at the size of the files."""


# ----------------------------------------------------------------------------------------------------------------------
# Images with masks


def open_pairs(
    args: SegmentationArguments, image_processor: MAEImageProcessor
) -> tuple[list[Pair], list[Pair], list[str]]:
    """Returns what to train on, what to evaluate on, and the names of the classes. Reads everything once, to check it.

    Args:
        args ([`SegmentationArguments`]): `data`, `class_names`, `reduce_labels`, `sample_side`.
        image_processor ([`MAEImageProcessor`]): Says how files are read.

    Raises:
        OSError: If an image or a mask cannot be read.
        ValueError: If the masks do not fit the images or the names, or do not show the classes.
    """
    names = args.class_names if args.data is not None else ["background", *open_images().label_names]
    pairs = {split: _open_split(args, split, image_processor) for split in SPLITS}
    counts = {split: _count_pixels(some, image_processor, args.reduce_labels) for split, some in pairs.items()}
    num_labels = len(names) if names else max(map(_num_shown, counts.values()))
    for split, some in pairs.items():
        _check_classes(args, some, counts[split], num_labels)
    has_split = bool(pairs["val"])
    if not has_split:
        pairs, counts = _hold_out(args, pairs["train"], counts["train"])
    else:
        say(args, *check_not_held_out(args.held_out, args.group_by, args.data))
    pairs = {split: _counted_pairs(args, some, counts[split], split) for split, some in pairs.items()}
    if num_labels < 2 or not all(pairs.values()):
        advice = " Without a folder val, `held_out` keeps back whole images and scenes: two are needed, or set it to 0."
        raise ValueError(
            f"{args.data} has {num_labels} class(es), {len(pairs['train'])} images to train on and "
            f"{len(pairs['val'])} to evaluate on. Expected at least two classes, numbered from 0 (255 means that a "
            "pixel does not count: masks of two classes hold 0 and 1), and some images for both."
            f"{'' if has_split else advice}"
        )
    names = names or [str(number + args.reduce_labels) for number in range(num_labels)]  # as in the masks
    _check_shown_classes(args, counts, names, has_split)
    return pairs["train"], pairs["val"], names


def _open_split(args: SegmentationArguments, split: str, image_processor: MAEImageProcessor) -> list[Pair]:
    """Returns the images with masks of a split, none if there is no such split, and prints what was left out."""
    if args.data is None:
        return sample_pairs(split, args.sample_side)
    pairs = folder_pairs(args.data, split, args.tile, image_processor.reading)
    if pairs:
        say(args, *_source_of(pairs).notes)
    return pairs


def _source_of(pairs: list[Pair]) -> ImageSource:
    """Returns the source of all images of a folder, which are in its order."""
    assert isinstance(pairs[0].images, ImageSource)
    return pairs[0].images


def _check_shown_classes(args: SegmentationArguments, counts: dict[str, np.ndarray], names: list[str], has_split: bool):
    """Names classes that no mask to train or to evaluate on shows.

    Raises:
        ValueError: If fewer than two classes are shown, or a number without a name of its own nowhere.
    """
    shown = {split: (count.sum(axis=0) > 0).tolist() for split, count in counts.items()}
    absent = {split: [name for name, some in zip(names, shown[split], strict=False) if not some] for split in shown}
    nowhere = [name for name in absent["train"] if name in absent["val"]]
    if len(names) - len(nowhere) < 2:
        raise ValueError(
            f"The masks of {args.data} show {len(names) - len(nowhere)} of {len(names)} classes; two are needed. A "
            "value of 255 is no class, but says that a pixel does not count: masks of two classes hold 0 and 1, not 0 "
            "and 255."
        )
    if nowhere and not args.class_names:
        raise ValueError(
            f"No mask of {args.data} shows the class(es) {', '.join(nowhere)}, but higher ones are there. Check the "
            "values of the masks and renumber them, or set `class_names` to the names of all classes."
        )
    for split, what in (("train", "train"), ("val", "evaluate")):
        if absent[split]:
            some = ", ".join(absent[split][:10]) + (", ..." if len(absent[split]) > 10 else "")
            advice = "" if has_split or args.held_out == 0 else " Perhaps change `held_out`."
            say(args, f"No mask to {what} on shows {len(absent[split])} of {len(names)} classes: {some}.{advice}")


def _hold_out(
    args: SegmentationArguments, pairs: list[Pair], counts: np.ndarray
) -> tuple[dict[str, list[Pair]], dict[str, np.ndarray]]:
    """Returns all pairs of a source and the counts of their pixels, divided. Windows of a scene stay together."""
    if args.held_out == 0:
        say(args, "`held_out` is 0: figures are those of the training images, and say nothing about others.")
        return {"train": pairs, "val": pairs}, {"train": counts, "val": counts}
    chosen, note = choose_held_out(_source_of(pairs), args.held_out, args.group_by, counted=counts.sum(axis=1) > 0)
    say(args, f"No folder val in {args.data}. {note}")
    warn_of_divided_groups(args)
    parts = {"train": ~chosen, "val": chosen}
    divided = {split: [pair for pair, here in zip(pairs, part, strict=True) if here] for split, part in parts.items()}
    return divided, {split: counts[part] for split, part in parts.items()}


def _counted_pairs(args: SegmentationArguments, pairs: list[Pair], counts: np.ndarray, what: str) -> list[Pair]:
    """Returns the pairs whose masks have a pixel that counts, by [`_count_pixels`], and says how many have none."""
    shown = np.any(counts, axis=1)
    if not shown.all():
        say(args, f"{(~shown).sum()} masks of {what} have no pixel that counts: left out.")
    return [pair for pair, counted in zip(pairs, shown, strict=True) if counted]


def _count_pixels(pairs: list[Pair], image_processor: MAEImageProcessor, reduce_labels: bool) -> np.ndarray:
    """Returns the pixels of each class (pairs, IGNORED), without those that do not count."""

    def count(pair: Pair) -> np.ndarray:
        return np.bincount(read_pair(pair, image_processor, reduce_labels)[1].ravel(), minlength=256)[:IGNORED]

    with ThreadPoolExecutor() as pool:  # decoders work in parallel
        return np.stack(list(pool.map(count, pairs))) if pairs else np.zeros((0, IGNORED), dtype=np.int64)


def _num_shown(counts: np.ndarray) -> int:
    """Returns the number of the largest class that masks show, plus one; 0 if they show none."""
    return int(np.flatnonzero(counts.any(axis=0)).max(initial=-1)) + 1


def _check_classes(args: SegmentationArguments, pairs: list[Pair], counts: np.ndarray, num_labels: int):
    """Raises `ValueError` if a mask shows a class that has no name."""
    beyond = counts[:, num_labels:].any(axis=1)
    if not beyond.any():
        return
    wrong, first = int(beyond.argmax()), int(args.reduce_labels)
    raise ValueError(
        f"The mask {pairs[wrong].mask} has the class {counts[wrong].nonzero()[0][-1] + first}, but there are "
        f"{num_labels} `class_names`: classes are numbers in [{first}, {num_labels + first}), or "
        f"{'0 and 255' if args.reduce_labels else '255'} where pixels don't count. Name more, correct the masks, or "
        "see `reduce_labels`."
    )


# ----------------------------------------------------------------------------------------------------------------------
# Model and run


class SegmentationTrainer(FineTuningTrainer):
    """Trains UperNet, whose batch norms need two images and whose loss is the mean of a batch."""

    drops_last_batch = True  # one image has no statistics for the norms

    eval_dataset: PictureStrips

    def __init__(self, *args, class_names: list[str], drawn: SegmentationDataset, **kwargs):
        """
        Args:
            class_names (`list[str]`): Names of the classes.
            drawn ([`SegmentationDataset`]): Images of which some are drawn at the end.
            *args, **kwargs: Arguments of [`~transformers.Trainer`]; `eval_dataset` is a [`PictureStrips`].
        """
        self.class_names, self.drawn, self.iou = class_names, drawn, torch.zeros(len(class_names))
        super().__init__(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Returns the loader of the strips of pictures that this process evaluates."""
        strips = self.eval_dataset
        pictures = range(self.args.process_index, len(strips.pairs), self.args.world_size)
        batches = strips.batches(self.args.per_device_eval_batch_size, pictures)
        options = {"num_workers": self.args.dataloader_num_workers, "pin_memory": self.args.dataloader_pin_memory}
        return with_prepared_workers(
            DataLoader(strips, batch_sampler=batches, collate_fn=list, **options)  # type: ignore[arg-type]
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Returns loss, mean IoU and pixel accuracy over all pixels of the pictures, at the size of these."""
        model, strips, size = self.model.eval(), self.eval_dataset, self.args.per_device_eval_batch_size
        counted = ConfusionMatrix(len(self.class_names), self.args.device)
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        batches, bf16 = self._with_progress(dataloader), bool(self.args.bf16)
        for strip, top, logits in blended_logits(model, batches, strips.grids, size, bf16):
            if logits is None:
                name = strips.pairs[strip["picture"]].name
                raise OSError(f"{name} or its mask can't be read: {strip['failure']}. Mend both or take both out.")
            first = top - strip["top"]
            classes = strip["classes"][first : first + logits.shape[1]].to(logits.device).long()
            counted.add(logits.argmax(dim=0), classes)
            losses = nn.functional.cross_entropy(logits[None], classes[None], ignore_index=IGNORED, reduction="sum")
            total += losses
        counted.matrix = self.accelerator.reduce(counted.matrix, "sum")
        total = self.accelerator.reduce(total, "sum")
        figures, self.iou = counted.figures()
        figures = {"loss": (total / counted.matrix.sum()).item(), **figures}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(predictions=(), label_ids=None, metrics=metrics, num_samples=len(strips.pairs))

    def _with_progress(self, dataloader: DataLoader) -> Iterator[list[dict]]:
        for batch in dataloader:
            yield batch
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def describe_results(self, metrics: dict) -> dict:
        """Adds the IoU of each class, prints them, and draws images, masks and predictions."""
        folder, by_class = Path(self.args.output_dir), {}
        for name, iou in zip(self.class_names, self.iou.tolist(), strict=True):
            by_class[f"eval_iou_{name}"] = None if math.isnan(iou) else iou
            print(f"  {name:30} {'does not occur' if math.isnan(iou) else format(iou, '.4f')}")
        save_picture(folder / "segmentation.png", segmentation_sheet(self.model, self.drawn, self.class_names))
        return {**metrics, **by_class}


def build_encoder_config(args: SegmentationArguments) -> MAEConfig:
    """Returns the configuration of the encoder with a feature pyramid.

    Args:
        args ([`SegmentationArguments`]): The settings of the model.

    Raises:
        ValueError: If they do not fit each other.
    """
    path = args.model_name_or_path
    fields: dict[str, Any] = {"drop_path_rate": args.drop_path_rate}
    if size := args.image_size or ([28 * args.sample_side] if args.data is None else None):
        fields["image_size"] = size[0] if len(size) == 1 else size
    stored = trained_head(path, UperNetConfig)
    if stored is not None:
        fields = {**stored.backbone_config.to_dict(), **fields}
        config = MAEConfig.from_dict(fields)
    else:
        config = MAEConfig.from_pretrained(path, **fields) if path else MAEConfig.from_preset(args.preset, **fields)
        config.feature_pyramid_size = min(config.hidden_size, 256)
    config.feature_pyramid_size = args.feature_pyramid_size or config.feature_pyramid_size
    config.set_output_features_output_indices(None, None)
    config.dtype = torch.float32  # whatever the checkpoint has, or the encoder alone would have another than its head
    config.check()  # from_pretrained does not check the fields it is given
    return config


def build_segmenter(args: SegmentationArguments, config: MAEConfig, names: list[str]) -> UperNetForSemanticSegmentation:
    """Returns UperNet on the feature pyramid of the encoder.

    Args:
        args ([`SegmentationArguments`]): The settings of the model.
        config ([`MAEConfig`]): See [`build_encoder_config`].
        names (`list[str]`): Names of the classes.
    """
    stored = trained_head(args.model_name_or_path, UperNetConfig)
    head_size = args.head_size or (min(config.hidden_size, 512) if stored is None else stored.hidden_size)
    torch.manual_seed(args.seed)
    model = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=config,
            hidden_size=head_size,
            auxiliary_channels=min(head_size, 256),
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
    )
    if stored is not None and not args.from_scratch:
        load_head(model, args.model_name_or_path, [".classifier."], "`feature_pyramid_size` and `head_size`")
    elif args.model_name_or_path and not args.from_scratch:
        load_encoder(model, args.model_name_or_path)
    model.supports_gradient_checkpointing = True  # UperNet says no, but the blocks of the encoder do
    return model


def segment(args: SegmentationArguments) -> FineTuned:
    """Trains a model for semantic segmentation, or with `eval_only` evaluates one, see [`evaluate_segmenter`].

    Args:
        args ([`SegmentationArguments`]): The settings.

    Returns:
        [`FineTuned`]: The model, its figures on the evaluation images, and the folder that holds it.

    Raises:
        OSError: If an image or a mask cannot be read.
        ValueError: If images, masks and settings do not fit, or the folder holds another run.
        RunStopped: If a signal stopped the run, which has saved a checkpoint.
        FloatingPointError: If a loss or a gradient was not finite.
    """
    if args.eval_only:
        return evaluate_segmenter(args)
    set_seed(args.seed)  # fresh weights are made before Trainer sets the seed
    recipe = args.recipe()
    stored = trained_head(args.model_name_or_path, UperNetConfig)
    if stored is not None and args.class_names is None:  # goes on with the classes that it knows
        args.class_names = class_names_of(stored)
        args.reduce_labels = args.reduce_labels or getattr(stored, "reduce_labels", False)
    config = build_encoder_config(args)
    image_processor = whole_image_processor(args, config)
    train_pairs, val_pairs, names = open_pairs(args, image_processor)
    limit_batch_size(args, len(train_pairs))
    model = build_segmenter(args, config, names)
    # Saved with the model, whose maps are then made of windows of this size and hold the numbers of the masks.
    model.config.window_size = _window_size(args, train_pairs, image_processor)
    model.config.reduce_labels = args.reduce_labels
    window = None if args.whole_pictures else model.config.window_size
    strips = PictureStrips(whole_pictures(val_pairs), image_processor, window, args.stride, args.reduce_labels)
    args.check_rotation(image_processor.crop_height_width)
    orientation = RandomOrientation(args.horizontal_flip, args.vertical_flip, args.rotate90)
    fingerprints = {
        "images": fingerprint_of_pairs(train_pairs),
        "evaluation images": fingerprint_of_pairs(val_pairs),
        "initial weights": weights_fingerprint(args.model_name_or_path),
    }
    checkpoint = check_experiment(args, "segment", fingerprints)
    scale = (args.min_scale, args.max_scale)
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        train_dataset=SegmentationDataset(train_pairs, image_processor, args.reduce_labels, scale, orientation),
        eval_dataset=strips,
        processing_class=image_processor,
        class_names=names,
        drawn=SegmentationDataset(val_pairs, image_processor, args.reduce_labels),
    )
    say(args, _plan(args, model, names, len(train_pairs), strips))
    return train_head(trainer, recipe, len(train_pairs), checkpoint, "segmentation.png")


def evaluate_segmenter(args: SegmentationArguments) -> FineTuned:
    """Evaluates a trained segmenter on any images with masks.

    Of data with splits the evaluation images are taken, else all. `output_dir` gets `evaluation.json` and
    `segmentation.png`.

    Args:
        args ([`SegmentationArguments`]): `model_name_or_path`, `data`, `reduce_labels`, `tile`, `stride`,
            `whole_pictures`, `output_dir` and the size of batches. The names of the classes are those of the model.

    Raises:
        OSError: If an image or a mask cannot be read.
        ValueError: If the model does not segment, or the masks do not fit its classes.
    """
    model, window = _load_trained(args)
    args.class_names = class_names_of(model.config)
    args.reduce_labels = model.config.reduce_labels
    image_processor = args.load_image_processor(args.model_name_or_path)
    pairs = _open_split(args, "val", image_processor)
    if not pairs:
        args.warn_of_training_images()
        pairs = _open_split(args, "train", image_processor)
    counts = _count_pixels(pairs, image_processor, args.reduce_labels)
    _check_classes(args, pairs, counts, len(args.class_names))
    pairs = _counted_pairs(args, pairs, counts, "the evaluation")
    if not pairs:
        raise ValueError(f"No mask of {args.data} has a pixel that counts: all are 255, or 0 with `reduce_labels`.")
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        eval_dataset=PictureStrips(whole_pictures(pairs), image_processor, window, args.stride, args.reduce_labels),
        processing_class=image_processor,
        class_names=args.class_names,
        drawn=SegmentationDataset(pairs, image_processor, args.reduce_labels),
    )
    record = {**run_record(args.recipe()), "num_images": len(pairs), "images": fingerprint_of_pairs(pairs)}
    return evaluate_head(trainer, record, "segmentation.png")


def _load_trained(args: SegmentationArguments) -> tuple[UperNetForSemanticSegmentation, tuple[int, int] | None]:
    """Returns a trained segmenter and the windows that larger pictures are cut into, `None` for whole pictures.

    Raises:
        ValueError: If the model does not segment.
    """
    config = trained_head(args.model_name_or_path, UperNetConfig)
    if config is None:
        raise ValueError(
            f"{args.model_name_or_path} does not segment. Train it first, without `predict_only` and `eval_only`."
        )
    model = UperNetForSemanticSegmentation.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    model.config.reduce_labels = args.reduce_labels or getattr(config, "reduce_labels", False)  # older ones don't say
    window = (args.tile, args.tile) if args.tile else getattr(config, "window_size", None)
    return model.to(args.device), None if args.whole_pictures or window is None else (window[0], window[1])


def predict_class_maps(args: SegmentationArguments) -> list[Path]:
    """Writes the class of each pixel of pictures or scenes into `output_dir`, see [`write_class_maps`].

    Args:
        args ([`SegmentationArguments`]): `model_name_or_path`, `data` (a folder of pictures or one picture), `tile`,
            `stride`, `whole_pictures`, `output_dir` and the size of batches. Without `tile` windows are as large as the
            largest pictures that the model was trained on.

    Returns:
        `list[Path]`: The maps. One process makes them; all others return none.

    Raises:
        OSError: If there are no such pictures.
        ValueError: If the model does not segment, the pictures do not suit it, or maps would replace files.
    """
    model, window = _load_trained(args)
    if args.process_index > 0:
        return []
    image_processor = args.load_image_processor(args.model_name_or_path)
    images = open_pictures(args.data, args.output_dir)
    for note in images.notes:
        print(in_flags(note))
    batch_size = args.per_device_eval_batch_size
    options: dict = {"num_workers": args.dataloader_num_workers, "bf16": bool(args.bf16)}
    options["overwrite_output_dir"] = args.overwrite_output_dir
    maps = write_class_maps(model, images, image_processor, args.output_dir, window, args.stride, batch_size, **options)
    print(f"Done: maps of {len(maps):,} of {len(images):,} pictures are in {args.output_dir}.")
    return maps


def _window_size(args: SegmentationArguments, pairs: list[Pair], image_processor: MAEImageProcessor) -> tuple[int, int]:
    """Returns the height and width of windows: what a training image shows at most, so that the scale is the same."""
    if args.tile is not None:
        return args.tile, args.tile
    heights, widths = zip(*filter(None, sizes_of(pairs, image_processor)), strict=True)
    return max(heights), max(widths)


def _plan(
    args: SegmentationArguments,
    model: UperNetForSemanticSegmentation,
    names: list[str],
    num_train: int,
    strips: PictureStrips,
) -> str:
    config = model.config.backbone_config
    rows, columns = config.grid_size
    height, width = height_width(config.image_size)
    fresh = args.from_scratch or not args.model_name_or_path
    return (
        f"Images   {num_train:,} and {len(strips.pairs):,} to evaluate on, {args.data or 'generated'}\n"
        f"{_describe_windows(model.config.window_size, strips)}"
        f"Classes  {len(names)}: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}\n"
        f"Model    {model.num_parameters() / 1e6:.1f} M parameters, {height} x {width} pixels, {rows} x {columns} "
        f"patches; pyramid of {config.feature_pyramid_size} channels, UperNet of {model.config.hidden_size}\n"
        f"Weights  {'fresh' if fresh else 'of ' + args.model_name_or_path + '; what it does not have is fresh'}\n"
        f"Batch    {args.effective_batch_size} over {args.world_size} process(es)\n"
        f"Rate     {args.learning_rate:.3g}, times {args.layer_decay:g} from each block to the one before\n"
        f"Output   {args.output_dir}"
    )


def _describe_windows(window: tuple[int, int], strips: PictureStrips) -> str:
    """Returns a line about the windows of the evaluation, if there are any."""
    cut = [len(grid.tops) * len(grid.lefts) for grid in strips.grids if len(grid.tops) * len(grid.lefts) > 1]
    if not cut:
        return ""
    return f"Windows  {window[0]} x {window[1]} pixels: {sum(cut):,} in {len(cut):,} larger pictures to evaluate on\n"


def segment_command(argv: list[str], prog: str):
    """Runs `hf-mae segment`.

    Args:
        argv (`list[str]`): Arguments of the command.
        prog (`str`): What the command is called.
    """
    args = parse_arguments(SegmentationArguments, argv, prog=prog, description=_DESCRIPTION)
    if args.predict_only:
        predict_class_maps(args)
    else:
        segment(args)


__all__ = [
    "SegmentationArguments",
    "SegmentationTrainer",
    "build_encoder_config",
    "build_segmenter",
    "evaluate_segmenter",
    "open_pairs",
    "predict_class_maps",
    "segment",
    "segment_command",
]
