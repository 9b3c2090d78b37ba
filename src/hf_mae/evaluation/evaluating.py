# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Compares frozen encoders on the same images: with labels, with masks, or without both; hf-mae evaluate."""

import os
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset
from transformers.hf_argparser import HfArg
from transformers.utils import logging

from ..data.checking import check_embedded, check_images
from ..data.datasets import EvaluationDataset, PretrainingDataset
from ..data.folders import reading_folders_once
from ..data.held_out import SelectedImages, select
from ..data.image_source import ImageSource, digest
from ..data.labels import has_classes, open_with_labels
from ..data.masks import Pair, fingerprint_of_pairs, mask_folders
from ..data.sampling import evenly_spaced, spread_indices
from ..data.sources import open_images
from ..finetuning.classification import ClassificationArguments, finetune
from ..finetuning.segmentation import open_pairs
from ..finetuning.settings import HeldOutArguments, no_test_images, open_classes
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.reading_mae import OpenedImage
from ..publishing.records import save_picture
from ..training.arguments import check_output, fit_values, parse_arguments, read_class_names, recipe_of
from ..training.data_settings import ColumnSettings
from ..training.optimization import default_effective_batch_size
from ..training.run_record import run_record
from .attentive import AttentiveSettings, PatchTokens, attentive_accuracies, choose_attentive_probe
from .comparison import Comparison, Row, as_text, mark_best_blocks, table_of
from .dense import DenseSettings, dense_figures
from .encoders import FrozenEncoder, load_encoder
from .feature_sheets import neighbor_sheet, patch_colors, pca_sheet
from .inference import InferenceArguments, choose_device
from .label_free import collapse, label_free_figures
from .linear import (
    BASE_LEARNING_RATES,
    Features,
    choose_linear_probe,
    hold_out_tenth,
    probe_accuracy,
    readable,
    store_features,
    train_linear_probes,
)
from .monitoring import MAX_TWINS, TwinCrops, knn_accuracy

logger = logging.get_logger(__name__)

_NEIGHBORS, _TEMPERATURE = 20, 0.07  # of k-NN
# Of fine-tuning with few labels, the same for all models: a small budget, without mixing of images.
_FEW_LABELS: dict = {
    "max_steps": 300,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "mixup": 0.0,
    "cutmix": 0.0,
    "rand_augment": 0.0,
    "random_erasing": 0.0,
    "crop_scale_min": 0.5,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 100,
}
_SHEET_QUERIES, _PCA_IMAGES, _PCA_DRAWN = 8, 64, 12
_DESCRIPTION = """Compare what frozen encoders have learned: one table for all models, on the same images.

  hf-mae evaluate --model runs/fashion_mnist_sample                          # on the embedded images
  hf-mae evaluate --model runs/a runs/b facebook/dinov2-small --data path/to/labelled
  hf-mae evaluate --model runs/a --data path/to/labelled --layers 6 9 12     # blocks in the middle, too
  hf-mae evaluate --model runs/a runs/b --data path/to/unlabelled
  hf-mae evaluate --model runs/a --data path/to/folder/with/images/and/masks

A model is a folder or a name on the Hub of any model of hf_mae, weights that hf-mae convert reads, or any model of
transformers that gives a token for each patch, as DINOv2. With labels: k-NN, a linear and an attentive probe. With
masks: k-NN and a linear probe on patches, as mean IoU. Always: effective rank, twin retrieval and mean cosine, and
sheets of nearest images and of patches. Settings are chosen on held-out training images; the images to evaluate on are
used once. The output folder gets evaluation.md, evaluation.json and the sheets."""


@dataclass
class EvaluatedArguments(ColumnSettings):
    """Models and images."""

    model: list[str] = HfArg(default_factory=list, help="Folders, files or names on the Hub of models.")
    data: str | None = HfArg(
        default=None, help="Folder, .tar or .parquet file, or Hub name. Default: the embedded images."
    )
    task: Literal["labels", "images", "masks"] | None = HfArg(
        default=None, help="What to evaluate with. Default: masks or labels where there are some, else images alone."
    )
    label_column: list[str] | None = HfArg(default=None, help="Column with the labels. Default: label.")
    tile: int | None = HfArg(default=None, help="Side in pixels of the windows that large scenes are cut into.")
    reduce_labels: bool = HfArg(
        default=False, help="Masks: 0 means that a pixel does not count, and classes count from 1, as in ADE20K."
    )
    class_names: list[str] | None = HfArg(
        default=None,
        help="Masks: names of the classes 0, 1, ..., or a file with one in each line. Default: their numbers.",
    )


@dataclass
class FigureArguments:
    """What is measured."""

    layers: list[int] | None = HfArg(default=None, help="Blocks, 1 is the first, -1 the last. Default: the last.")
    attentive: bool = HfArg(default=True, help="With labels: train attentive probes, too, which takes longest.")
    few_labels: list[int] | None = HfArg(
        default=None, help="Numbers of labelled images of a class to fine-tune models of hf_mae with. Default: none."
    )
    max_train_images: int | None = HfArg(
        default=None, help="Evenly spaced training images to use at most, the same for all models. Default: all."
    )
    max_patches: int = HfArg(
        default=50_000, help="With masks: training patches that probes learn from, alike of all images."
    )
    image_size: int | None = HfArg(default=None, help="Pixels, for all models. Default: what each is made for.")


@dataclass
class EvaluationArguments(EvaluatedArguments, HeldOutArguments, FigureArguments, InferenceArguments):
    """Settings of [`evaluate`]."""

    output_dir: str = HfArg(default="runs/evaluation", help="Folder for table and sheets; older ones are replaced.")
    add_to_card: bool = HfArg(default=False, help="Add the table to the records and cards of folders of hf_mae.")
    seed: int = HfArg(default=0, help="Seed of held-out images, weights, crops and order.")
    disable_tqdm: bool = HfArg(default=False, help="Show no progress bars.")

    def __post_init__(self):
        fit_values(self)
        if not self.model:
            raise ValueError("`model` is missing: one or more folders, files or names on the Hub of models.")
        names = [os.path.normpath(name) for name in self.model]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"`model` has {', '.join(twice)} more than once. Name each model once.")
        if self.max_train_images is not None and self.max_train_images < 20:
            raise ValueError(f"`max_train_images` must be at least 20, got {self.max_train_images}.")
        if self.max_patches < 100:
            raise ValueError(f"`max_patches` must be at least 100, got {self.max_patches}.")
        check_output(self.data, self.output_dir)
        if self.task is not None:
            self.check_task(self.task)
        self.class_names = read_class_names(self.class_names)
        self.device, self.dataloader_num_workers = choose_device(self.device, self.dataloader_num_workers)

    def check_task(self, task: str):
        """Refuses settings that would have no effect, because the figures would not be those that were asked for.

        Args:
            task (`str`): What the images are evaluated with.

        Raises:
            ValueError: If one needs labels or masks, and the images are evaluated without them.
        """
        needed = {"few_labels": "labels", "label_column": "labels", "reduce_labels": "masks", "class_names": "masks"}
        for name, kind in needed.items():
            if getattr(self, name) and task != kind:
                what = "masks" if kind == "masks" else "labels, one class for each image"
                raise ValueError(
                    f"`{name}` needs {what}, but `task` is {task}. Where it is not set the data decide. Leave one out."
                )
        for name in ("max_train_images", "group_by"):
            if getattr(self, name) is not None and task == "images":
                raise ValueError(f"`{name}` is for labels or masks: `task` images trains on none, and holds none out.")

    # What [`open_pairs`] asks for beyond the fields.
    sample_side, process_index = 1, 0


# ----------------------------------------------------------------------------------------------------------------------
# The images


class EvaluatedImages(NamedTuple):
    """Holds the images that all models are evaluated on.

    Attributes:
        task (`str`): `labels`, `images` or `masks`.
        train, test ([`ImageSource`] or `None`): Images to train heads on and to evaluate on, labelled or with masks.
            Images alone are all in `test`.
        num_labels (`int`): Number of classes.
        train_pairs, test_pairs (`list[Pair]`): Images with masks.
    """

    task: str
    train: ImageSource | None
    test: ImageSource
    num_labels: int = 0
    train_pairs: list[Pair] | None = None
    test_pairs: list[Pair] | None = None

    def __str__(self) -> str:
        if self.train is None:
            return f"{len(self.test):,} images of {self.test.name}, without labels"
        what = f"images with masks of {self.num_labels}" if self.task == "masks" else f"images of {self.num_labels}"
        return f"{len(self.test):,} {what} classes of {self.test.name}, with {len(self.train):,} to train on"


class ImagesOfPairs(ImageSource):
    """The images of pairs of images and masks."""

    def __init__(self, pairs: list[Pair], name: str):
        """
        Args:
            pairs (`list[Pair]`): The pairs.
            name (`str`): What to call the source.
        """
        self.pairs, self.name, self.fingerprint = pairs, name, fingerprint_of_pairs(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> OpenedImage:
        return self.pairs[index].images[self.pairs[index].index]

    def describe(self, index: int) -> str:
        return self.pairs[index].name


@reading_folders_once()
def open_evaluated(args: EvaluationArguments, image_processor: MAEImageProcessor) -> EvaluatedImages:
    """Opens the images, and decides what they can be evaluated with.

    Args:
        args ([`EvaluationArguments`]): `task`, `data` and how to read and divide it.
        image_processor ([`MAEImageProcessor`]): Says how files are read.

    Raises:
        ValueError: If there are no images to evaluate on, no labels or masks where these are asked for, or settings
            that need them.
    """
    options: dict = {"image_column": args.image_column, "dataset_config": args.dataset_config, "tile": args.tile}
    options["reading"] = image_processor.reading
    if args.task == "masks" or (args.task is None and args.data is not None and _has_masks(Path(args.data))):
        images = _open_masks(args, image_processor)
    elif args.task == "labels":
        images = _open_labels(args, options)
    elif args.task == "images":  # a table need not name all of them
        images = EvaluatedImages("images", None, _open_unlabelled(args, options))
    else:
        open_split = partial(open_with_labels, args.data, label_column=args.label_column, **options)
        found = open_split("train") or open_split("test")
        if has_classes(found):
            images = _open_labels(args, options)
        else:
            images = EvaluatedImages("images", None, open_split("test") or found)
    args.check_task(images.task)
    return images


def _open_masks(args: EvaluationArguments, image_processor: MAEImageProcessor) -> EvaluatedImages:
    train_pairs, test_pairs, class_names = open_pairs(args, image_processor)  # type: ignore[arg-type]
    name = args.data or "the embedded sample"
    if train_pairs == test_pairs:  # `held_out` is 0
        raise no_test_images(name)
    chosen = spread_indices(ImagesOfPairs(train_pairs, name), args.max_train_images)
    train_pairs = [train_pairs[index] for index in chosen]
    sources = ImagesOfPairs(train_pairs, f"{name} (train)"), ImagesOfPairs(test_pairs, name)
    return EvaluatedImages("masks", *sources, len(class_names), train_pairs, test_pairs)


def _open_labels(args: EvaluationArguments, options: dict) -> EvaluatedImages:
    train, test, class_names = open_classes(args, **options)
    train = select(train, np.isin(np.arange(len(train)), spread_indices(train, args.max_train_images)))
    return EvaluatedImages("labels", train, test, len(class_names))


def _open_unlabelled(args: EvaluationArguments, options: dict) -> ImageSource:
    splits = (open_images(args.data, split, labels="none", **options) for split in ("test", "train"))
    images = next(images for images in splits if images is not None)
    for note in images.notes:
        logger.warning_once(note)
    return images


def _has_masks(data: Path) -> bool:
    try:
        return mask_folders(data, "train") is not None
    except OSError:
        return False


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


class Judge:
    """Measures encoders, all on the same images, with the same held-out ones, seeds and settings."""

    def __init__(self, args: EvaluationArguments, images: EvaluatedImages):
        """
        Args:
            args ([`EvaluationArguments`]): The settings.
            images ([`EvaluatedImages`]): The images.

        Raises:
            ValueError: If there is only one image to evaluate on.
        """
        if len(images.test) < 2:
            raise ValueError(
                f"{images.test.name} has only one image to evaluate on, and figures compare at least two: take more "
                "images, or where some are held out a larger share as `held_out`."
            )
        self.args, self.images, self.pictures = args, images, {}
        self._numbers: dict[str, int] = {}  # of the models, by which names of files differ

    def check(self, encoder: FrozenEncoder):
        """Refuses a model that does not suit the images, before any work is done.

        Raises:
            ValueError: If it cannot take them, has no such blocks, or gives no numbers. The message names the model.
        """
        processor = encoder.image_processor
        numbers = encoder.block_numbers(self.args.layers)
        try:
            check_embedded(self.images.test, processor)
            for images in filter(None, (self.images.train, self.images.test)):
                check_images(images, processor.num_channels, processor.reading, max_images=100)
            pixel_values = EvaluationDataset(self.images.test, processor)[0]["pixel_values"]
            tokens = encoder(pixel_values[None], numbers)
        except (ValueError, OSError) as error:
            raise ValueError(f"{encoder.name} does not suit {self.images.test.name}: {error}") from error
        for block, encoded in zip(numbers, tokens, strict=True):
            _check_finite(encoder, block, encoded.patches)

    def __call__(self, encoder: FrozenEncoder) -> list[Row]:
        """Returns what was measured of each block, and draws the sheets."""
        start = time.perf_counter()
        encoder.to(self.args.device)
        rows = [Row(encoder.name, block, encoder.hidden_size) for block in encoder.block_numbers(self.args.layers)]
        measure = {"labels": self._with_labels, "masks": self._with_masks, "images": self._without_labels}
        features = measure[self.images.task](encoder, rows)
        self._without_answers(encoder, rows)
        self._draw(encoder, rows, features)
        encoder.to("cpu")
        for row in rows:
            row.seconds = round(time.perf_counter() - start, 1)
        return rows

    def _store(self, encoder: FrozenEncoder, rows: list[Row], dataset: Dataset, what: str) -> dict[int, dict]:
        """Returns the pooled features of each block, by the kind of token."""
        blocks = [row.block for row in rows]

        def encode(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
            pooled = [encoder.pooled(encoded) for encoded in encoder(pixel_values, blocks)]
            return {f"{kind} {block}": each[kind] for block, each in zip(blocks, pooled, strict=True) for kind in each}

        title = None if self.args.disable_tqdm else f"{encoder.name}, {what}"
        stored = store_features(encode, dataset, self.args.batch_size, self.args.dataloader_num_workers, title)
        for row in rows:
            _check_finite(encoder, row.block, stored[f"mean {row.block}"].values)
        kinds = sorted({name.split()[0] for name in stored})
        return {block: {kind: stored[f"{kind} {block}"] for kind in kinds} for block in blocks}

    # ------------------------------------------------------------------------------------------------------------------
    # With labels

    def _with_labels(self, encoder: FrozenEncoder, rows: list[Row]) -> dict[int, torch.Tensor]:
        train, test = (
            EvaluationDataset(images, encoder.image_processor) for images in (self.images.train, self.images.test)
        )
        train_features = self._store(encoder, rows, train, "training images")
        test_features = self._store(encoder, rows, test, "evaluation images")
        for row in rows:
            first = row is rows[0]  # what can't be read is counted once
            found = (
                readable(train_features[row.block], "training images" if first else None),
                readable(test_features[row.block], "evaluation images" if first else None),
            )
            self._neighbors(row, *found)
            self._linear(row, *found)
            if self.args.attentive:
                self._attentive(row, encoder, train, test)
        for count in self.args.few_labels or ():
            self._fine_tune(rows, encoder, count)
        shown = spread_indices(self.images.test, MAX_TWINS)
        return {block: kinds["mean"].values[shown] for block, kinds in test_features.items()}

    def _neighbors(self, row: Row, train: dict[str, Features], test: dict[str, Features]):
        """Measures k-NN, with the token that is better for held-out training images."""
        by_kind = {}
        for kind, features in train.items():
            features = features.to(self.args.device)
            held_out, bank = (features.at(part) for part in self._tenth(len(features.labels)))
            by_kind[kind] = knn_accuracy(*bank, *held_out, _NEIGHBORS, _TEMPERATURE)
        kind = max(by_kind, key=by_kind.get)
        bank, queries = (features[kind].to(self.args.device) for features in (train, test))
        row.figures["knn_accuracy"] = knn_accuracy(*bank, *queries, _NEIGHBORS, _TEMPERATURE)
        row.choices["knn"] = {"token": kind, "held_out": by_kind}

    def _tenth(self, count: int) -> list[torch.Tensor]:
        return [indices.to(self.args.device) for indices in hold_out_tenth(count, self.args.seed)]

    def _linear(self, row: Row, train: dict[str, Features], test: dict[str, Features]):
        """Measures a linear probe, with the token and the rate that are best for held-out training images."""
        train = {kind: features.to(self.args.device) for kind, features in train.items()}
        count = len(next(iter(train.values())).labels)
        settings = {"batch_size": default_effective_batch_size(count, largest=16384), "seed": self.args.seed}
        chosen = choose_linear_probe(train, self.images.num_labels, BASE_LEARNING_RATES, **settings)[0]
        norm, (classifier,) = train_linear_probes(
            *train[chosen.name], self.images.num_labels, [chosen.rate], **settings
        )
        row.figures["linear_accuracy"] = probe_accuracy(classifier, norm, test[chosen.name].to(self.args.device))
        row.choices["linear"] = {"token": chosen.name, "rate": chosen.rate, "held_out": chosen.accuracy}
        row.choices["held_out"] = chosen.accuracy

    def _attentive(self, row: Row, encoder: FrozenEncoder, train: Dataset, test: Dataset):
        """Measures an attentive probe of the patch tokens, with the rate that is best for held-out training images."""
        args, num_labels = self.args, self.images.num_labels

        def encode(pixel_values: torch.Tensor) -> torch.Tensor:
            return encoder(pixel_values, [row.block])[0].patches

        tokens = []
        for dataset, what in ((train, "training tokens"), (test, "evaluation tokens")):
            title = None if args.disable_tqdm else f"{encoder.name}, {what}"
            options: dict = {"batch_size": args.batch_size, "num_workers": args.dataloader_num_workers}
            tokens.append(PatchTokens(encode, dataset, args.device, progress=title, **options))
        held_out, _ = hold_out_tenth(len(train), args.seed)
        settings = AttentiveSettings(seed=args.seed)
        chosen = choose_attentive_probe(tokens[0], num_labels, held_out, settings=settings)
        (row.figures["attentive_accuracy"],) = attentive_accuracies([chosen.probe], tokens[1])
        row.choices["attentive"] = {"rate": chosen.learning_rate, "held_out": chosen.held_out_accuracy}

    def _fine_tune(self, rows: list[Row], encoder: FrozenEncoder, count: int):
        """Fine-tunes the whole encoder on some images of each class, the same for all models, with the same settings.

        The figure stands with the last block. Only what [`MAEForImageClassification`] loads can be fine-tuned.
        """
        if not encoder.is_trainable:
            print(f"{encoder.name} is no model of hf_mae and not fine-tuned.")
            return
        labels, rng = self.images.train.labels, np.random.default_rng(self.args.seed)
        chosen = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            chosen[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
        args = ClassificationArguments(
            model_name_or_path=encoder.name,
            output_dir=os.fspath(Path(self.args.output_dir) / "finetuned" / f"{self._file_name(encoder)}-{count}"),
            overwrite_output_dir=True,
            new_classifier=True,  # one that is there has learned from more labels
            image_size=self.args.image_size,
            use_cpu=self.args.device == "cpu",
            seed=self.args.seed,
            disable_tqdm=self.args.disable_tqdm,
            **_FEW_LABELS,
        )
        tuned = finetune(args, images=(SelectedImages(self.images.train, chosen), self.images.test))
        last = max(rows, key=lambda row: row.block)
        last.figures[f"finetuned_accuracy_{count}"] = tuned.metrics["eval_accuracy"]

    # ------------------------------------------------------------------------------------------------------------------
    # With masks

    def _with_masks(self, encoder: FrozenEncoder, rows: list[Row]) -> dict[int, torch.Tensor]:
        args = self.args

        def encode(pixel_values: torch.Tensor) -> list[torch.Tensor]:
            found = encoder(pixel_values, [row.block for row in rows])
            return [each.patches.unflatten(1, each.grid_size) for each in found]

        settings = DenseSettings(
            device=args.device,
            batch_size=args.batch_size,
            num_workers=args.dataloader_num_workers,
            max_patches=args.max_patches,
            seed=args.seed,
            progress=not args.disable_tqdm,
        )
        pairs = self.images.train_pairs, self.images.test_pairs
        found = dense_figures(encode, *pairs, encoder.image_processor, settings, reduce_labels=args.reduce_labels)
        for row, dense in zip(rows, found, strict=True):
            row.figures |= {"dense_knn_iou": dense.knn_iou, "dense_linear_iou": dense.linear_iou}
            row.choices["dense_knn"] = {"neighbors": dense.num_neighbors, "held_out": dense.knn_held_out}
            row.choices["dense_linear"] = {"strength": dense.strength, "held_out": dense.linear_held_out}
            row.choices |= {"held_out": dense.linear_held_out, "constant_iou": dense.constant_iou}
        return self._without_labels(encoder, rows)

    # ------------------------------------------------------------------------------------------------------------------
    # Without labels

    def _without_labels(self, encoder: FrozenEncoder, rows: list[Row]) -> dict[int, torch.Tensor]:
        dataset = EvaluationDataset(self.images.test, encoder.image_processor, MAX_TWINS)
        stored = self._store(encoder, rows, dataset, "images")
        return {block: kinds["mean"].values for block, kinds in stored.items()}

    def _without_answers(self, encoder: FrozenEncoder, rows: list[Row]):
        """Measures what needs no labels, on two crops of each image. The log says if features have collapsed."""
        processor = encoder.image_processor
        crops = PretrainingDataset(
            self.images.test,
            processor.crop_height_width,
            num_patches=1,  # the masks are not used
            num_channels=processor.num_channels,
            seed=self.args.seed,
            reading=processor.reading,
        )
        stored = self._store(encoder, rows, TwinCrops(crops, processor, MAX_TWINS), "crops")
        for row in rows:
            features = stored[row.block]["mean"].values
            figures = label_free_figures(features[0::2], features[1::2])
            row.figures |= figures
            if message := collapse(figures, len(features) // 2):
                logger.warning(f"{row.model}, block {row.block}: {message}")

    # ------------------------------------------------------------------------------------------------------------------
    # Sheets

    def _draw(self, encoder: FrozenEncoder, rows: list[Row], features: dict[int, torch.Tensor]):
        """Draws the nearest images and the patches of each block. `features` are means of patches by block."""
        processor = encoder.image_processor
        shown = EvaluationDataset(self.images.test, processor, MAX_TWINS)
        queries = evenly_spaced(len(shown), _SHEET_QUERIES).tolist()

        def picture(position: int) -> PIL.Image.Image:
            return processor.post_process_reconstruction(shown[position]["pixel_values"][None])[0]

        some = EvaluationDataset(self.images.test, processor, _PCA_IMAGES)
        drawn = evenly_spaced(len(some), _PCA_DRAWN).tolist()
        order = drawn + [position for position in range(len(some)) if position not in drawn]
        pixel_values = torch.stack([some[position]["pixel_values"] for position in order])
        pictures = processor.post_process_reconstruction(pixel_values[: len(drawn)])
        tokens = [encoder(part, [row.block for row in rows]) for part in pixel_values.split(self.args.batch_size)]
        for place, row in enumerate(rows):
            grid_size = tokens[0][place].grid_size
            patches = torch.cat([part[place].patches.cpu() for part in tokens]).unflatten(1, grid_size)
            sheets = {
                "neighbors": ("Nearest images", neighbor_sheet(features[row.block], picture, queries)),
                "patches": ("Patches", pca_sheet(pictures, patch_colors(patches)[0])),
            }
            for kind, (title, sheet) in sheets.items():
                path = Path(self.args.output_dir) / f"{kind}-{self._file_name(encoder)}-block-{row.block}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    save_picture(path, sheet)
                except OSError as error:  # of a full disk: no reason to lose what was measured
                    logger.warning(f"{path} could not be written: {error}")
                else:
                    self.pictures[f"{title}, {row.model}, block {row.block}"] = path

    def _file_name(self, encoder: FrozenEncoder) -> str:
        """Returns the number of a model and the end of its name, as part of the name of a file."""
        number = self._numbers.setdefault(encoder.name, len(self._numbers) + 1)
        end = re.sub(r"[^\w.]+", "-", encoder.name)[-60:]
        return f"{number}-{end.strip('-.')}"


def _check_finite(encoder: FrozenEncoder, block: int, features: torch.Tensor):
    if not features.isfinite().all():
        raise ValueError(
            f"{encoder.name}: the features of block {block} are not finite, so that no figure means anything. Its "
            "weights may be those of a run that diverged: take an earlier checkpoint, or leave the model out."
        )


# ----------------------------------------------------------------------------------------------------------------------
# The command


def evaluate(args: EvaluationArguments) -> Comparison:
    """Measures models on the same images and writes the table and the sheets into `output_dir`, after each model anew.

    Args:
        args ([`EvaluationArguments`]): The settings.

    Returns:
        [`Comparison`]: The table, how it was made, and the sheets.

    Raises:
        ValueError: If a model does not suit the images or the settings; all models are checked before the work starts.
        OSError: If a model or an image cannot be read.
    """
    encoders = [load_encoder(name, args.image_size) for name in args.model]
    if len({encoder.image_processor.reading.pages == "images" for encoder in encoders}) > 1:  # the first would decide
        raise ValueError(
            "Some of these models see each page of a file as an image (`pages`). Compare them by themselves."
        )
    images = open_evaluated(args, encoders[0].image_processor)
    judge = Judge(args, images)
    for encoder in encoders:
        judge.check(encoder)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)  # before the work, which would be lost if that fails
    print(f"{len(encoders)} model(s) on {images}, on {args.device}", flush=True)
    fingerprints = {"images": images.test.fingerprint}
    if images.train is not None:
        fingerprints["training_images"] = images.train.fingerprint
    if images.task == "labels":
        fingerprints["labels"] = digest(images.train.labels, images.test.labels)
    record = {**run_record(recipe_of(args), images.train or images.test), "fingerprints": fingerprints}
    rows: list[Row] = []
    try:
        for encoder in encoders:
            rows += judge(encoder)
            mark_best_blocks(rows)
            comparison = Comparison(str(images), rows, describe_protocol(args, images, rows), judge.pictures, record)
            comparison.write(Path(args.output_dir))  # at once, so that nothing is lost if a later model fails
            print(f"{encoder.name}: {rows[-1].seconds:.0f} s", flush=True)
    finally:  # also if the disk is full, or after Ctrl-C: a model may have taken hours
        if rows:
            print(as_text(table_of(rows)), flush=True)
    print(*comparison.protocol, sep="\n")
    if args.add_to_card:
        folders = comparison.add_to_cards()
        print(f"Added to the card of {', '.join(folders)}." if folders else "No model is the folder of a run.")
    print(f"Table and sheets are in {args.output_dir}.")
    return comparison


def describe_protocol(args: EvaluationArguments, images: EvaluatedImages, rows: list[Row]) -> list[str]:
    """Returns how the figures were measured, a text for each kind.

    Args:
        args ([`EvaluationArguments`]): The settings.
        images ([`EvaluatedImages`]): The images.
        rows (`list[Row]`): What was measured.
    """
    texts = [
        "All models are frozen. Tokens of any block are taken after the final norm; `class` is the class token, `mean` "
        "the mean of the patch tokens."
    ]
    if images.task != "images":
        texts[0] += (
            " Settings are chosen on a tenth of the training images, held out with seed "
            f"{args.seed}, and the evaluation images are used once."
        )
    if images.task == "labels":
        error = 100 * (0.25 / len(images.test)) ** 0.5
        texts += [
            f"k-NN: cosine, {_NEIGHBORS} neighbours, votes exp(cosine / {_TEMPERATURE}), the better of both tokens.",
            "linear: batch norm without weights and linear layer, LARS, 90 epochs, 8 rates, the better of both tokens.",
        ]
        if args.attentive:
            texts.append("attentive: learned queries pool the patch tokens (EP, arXiv 2506.10178), AdamW, 30 epochs.")
        if args.few_labels:
            texts.append(
                f"fine-tuned: all weights, {_FEW_LABELS['max_steps']} steps of AdamW, on so many images of each class."
            )
        texts.append(f"The standard error of an accuracy on {len(images.test):,} images is at most {error:.1f} points.")
    if images.task == "masks":
        constant = rows[0].choices["constant_iou"]
        texts.append(
            "dense: mean IoU at the model's image size, whole images or windows resized to it. k-NN: cosine of "
            "standardised patches, majority of the pixels at the same place; linear: logistic regression on patches, "
            f"logits resized; both of at most {args.max_patches:,} training patches. The most frequent class has "
            f"{constant:.1%} everywhere."
        )
    count = min(len(images.test), MAX_TWINS)
    texts.append(
        f"rank: effective rank of centred features of {count:,} crops; twins: share of crops whose nearest of "
        f"{count:,} is the other crop of the same image, by chance {1 / count:.1%}; cosine: mean over pairs of images. "
        "All of the mean of the patch tokens. They show a collapse, not which of two good models is better."
    )
    if any(row.is_best for row in rows):
        texts.append("*: the block that held-out training images prefer, by the linear probe.")
    return texts


def evaluate_command(argv: list[str], prog: str):
    """Runs `hf-mae evaluate`.

    Args:
        argv (`list[str]`): Arguments of the command.
        prog (`str`): What the command is called.
    """
    logging.disable_progress_bar()  # of loading weights
    evaluate(parse_arguments(EvaluationArguments, argv, prog=prog, description=_DESCRIPTION))


__all__ = [
    "EvaluatedImages",
    "EvaluationArguments",
    "ImagesOfPairs",
    "Judge",
    "describe_protocol",
    "evaluate",
    "evaluate_command",
    "open_evaluated",
]
