# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Measures how badly a model predicts each image, and each patch of it: what is odd, and what to train on more often.

Every image gets the same masks. They are fixed by a seed, so that losses of images and of models can be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from ..data.decoding import try_to_read
from ..data.image_source import ImageSource
from ..modeling.modeling_mae import MAEForPreTraining
from ..modeling.patches_mae import patch_grid
from ..modeling.reading_mae import OpenedImage
from ..publishing.records import save_picture
from ..training.arguments import fit_values, parse_arguments
from ..training.checkpointing import hash_of_weights
from .feature_sheets import fitted
from .features import FeatureFile
from .inference import (
    InferenceArguments,
    ReadableImages,
    SourceArguments,
    check_source,
    choose_device,
    describe_rows,
    open_source,
    printable,
)
from .visualization import load_with_processor, loss_maps

_GAP, _LINE = 4, 16  # pixels between pictures, and of a line of text
_COLUMNS, _SIDE = 8, 112  # of a sheet
_NAMED = 3  # images with the highest and the lowest loss, whose names are printed
_DESCRIPTION = """Write the loss of a pre-trained model on each image to a file, and draw the highest and the lowest.

  hf-mae score --model out --data path/to/images
  hf-mae score --model out --data path/to/images --maps        # the loss of each patch, too
  hf-mae pretrain --data path/to/images --sample_by_loss scores.parquet

All images get the same masks. The file has a row for each image, in the order of the source: name, index, loss (the
mean over the masks) and mask_losses. Images that cannot be read, or show no data, have the loss NaN. The sheet, a
picture next to the file, shows the images with the highest and the lowest loss."""


@dataclass
class ScoringArguments(InferenceArguments, SourceArguments):
    """Settings of [`score_images`]."""

    model: str | None = HfArg(default=None, help="Folder or name on the Hub of a pre-trained model with its decoder.")
    output: str = HfArg(default="scores.parquet", help="File to write, .parquet; the sheet is .png.")
    overwrite: bool = HfArg(default=False, help="Replace the file if it is there.")
    num_masks: int = HfArg(default=4, help="Masks that each image is predicted with.")
    mask_ratio: float | None = HfArg(default=None, help="Share of hidden patches. Default: that of the checkpoint.")
    seed: int = HfArg(default=0, help="Seed of the masks.")
    maps: bool = HfArg(default=False, help="Write the loss of each patch, too, and draw heat maps on the sheet.")
    sheet_images: int = HfArg(
        default=24, help="Images on the sheet with the highest loss, and as many with the lowest; 0: no sheet."
    )
    image_size: int | None = HfArg(default=None, help="Pixels, a multiple of the patch. Default: the checkpoint's.")

    def __post_init__(self):
        fit_values(self)
        if self.model is None:
            raise ValueError("`model` is missing: a folder or a name on the Hub with a pre-trained model of hf_mae.")
        if Path(self.output).suffix != ".parquet":
            raise ValueError(f"`output` {self.output}: the name must end in .parquet.")
        if Path(self.output).exists() and not self.overwrite:
            raise ValueError(f"`output` {self.output} is there already. Name another file, or set `overwrite`.")
        self.check_not_data(Path(self.output))
        if self.sheet is not None:
            self._check_sheet(self.sheet)
        if self.sheet_images < 0:
            raise ValueError(f"`sheet_images` must be at least 0, got {self.sheet_images}.")
        self.device, self.dataloader_num_workers = choose_device(self.device, self.dataloader_num_workers)

    @property
    def sheet(self) -> Path | None:
        """The picture next to the file, `None` if there is to be none."""
        return Path(self.output).with_suffix(".png") if self.sheet_images > 0 else None

    def _check_sheet(self, sheet: Path):
        """Refuses a sheet that replaces another picture, or would be one of the images the next time they are read."""
        if sheet.exists() and not self.overwrite:
            raise ValueError(
                f"The sheet {sheet} is there already. Name another `output`, set `overwrite`, or `sheet_images` to 0."
            )
        self.check_not_data(sheet)
        if self.data is not None and Path(self.data).resolve() in sheet.resolve().parents:
            raise ValueError(
                f"The sheet {sheet} would become one of the images of `data` {self.data}. Name an `output` outside of "
                "that folder, or set `sheet_images` to 0."
            )


# ----------------------------------------------------------------------------------------------------------------------
# Losses


@torch.no_grad()
def patch_losses(
    model: MAEForPreTraining,
    pixel_values: torch.Tensor,
    num_masks: int = 4,
    seed: int = 0,
    mask_ratio: float | None = None,
    valid: torch.BoolTensor | None = None,
) -> torch.Tensor:
    """Returns the loss of each patch with each of some fixed masks, NaN where it is visible or has no-data.

    The mean of an image over its patches, `losses.nanmean(dim=2)`, is the loss of the model with each mask. The mean
    over the masks, `losses.nanmean(dim=1)`, is the map of anomalies that [`MAEForPreTraining.reconstruct_all`] returns.

    Args:
        model ([`MAEForPreTraining`]): The model, in evaluation mode.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images on its device.
        num_masks (`int`, *optional*, defaults to 4): Number of masks, see [`complementary_masks`].
        seed (`int`, *optional*, defaults to 0): Seed of the masks, which are the same for all images.
        mask_ratio (`float`, *optional*): Fraction of patches to hide, in [0, 1), defaults to `config.mask_ratio`. With
            0 nothing is hidden and the loss is that of visible patches.
        valid (`torch.BoolTensor` of shape `(batch, height, width)`, *optional*): False where pixels are no-data.

    Returns:
        `torch.Tensor` of shape `(batch, num_masks, num_patches)`: In float32 or better, in raster order.
    """
    mask_ratio = model.config.mask_ratio if mask_ratio is None else mask_ratio
    rows, columns = patch_grid(pixel_values, model.mae.embeddings.patch_size)
    result = []
    for ids, _, losses in model.predictions_by_mask(pixel_values, num_masks, mask_ratio, seed, valid):
        by_patch = losses.new_full((len(pixel_values), rows * columns), torch.nan)
        result.append(by_patch.scatter(1, ids, losses))
    return torch.stack(result, dim=1)


# ----------------------------------------------------------------------------------------------------------------------
# All images of a source


class ScoredBatch(NamedTuple):
    """Holds consecutive images of a source.

    Attributes:
        names (`list[str]`): Names of the images.
        readable (`torch.BoolTensor` of shape `(batch,)`): Which images could be read.
        pixel_values (`torch.Tensor` of shape `(readable, channels, height, width)` or `None`): These.
        valid (`torch.BoolTensor` of shape `(readable, height, width)` or `None`): False where their pixels are no-data.
        messages (`list[str]`): Why the others could not be read.
    """

    names: list[str]
    readable: torch.Tensor
    pixel_values: torch.Tensor | None
    valid: torch.Tensor | None
    messages: list[str]


class ImagesToScore(ReadableImages):
    """Gives images as the image processor makes them, with a map of what has data, in batches of one."""

    def __getitem__(self, index: int) -> ScoredBatch:
        """Returns a batch of one image."""
        name = printable(self.images.describe(index))
        loaded, reason = try_to_read(self.images, index, self._load)
        if loaded is None:
            return ScoredBatch([name], torch.tensor([False]), None, None, [f"{name} can't be read: {reason}"])
        return ScoredBatch([name], torch.tensor([True]), *loaded, [])

    def _load(self, image: OpenedImage) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.image_processor(image, return_tensors="pt", return_valid=True)
        return features.pixel_values, features.valid


def _collate(batches: list[ScoredBatch]) -> ScoredBatch:
    read = [batch for batch in batches if batch.pixel_values is not None]
    return ScoredBatch(
        [name for batch in batches for name in batch.names],
        torch.cat([batch.readable for batch in batches]),
        torch.cat([batch.pixel_values for batch in read]) if read else None,
        torch.cat([batch.valid for batch in read]) if read else None,
        [message for batch in batches for message in batch.messages],
    )


class Scorer:
    """Measures batches of images with a model."""

    def __init__(self, model: MAEForPreTraining, args: ScoringArguments):
        """
        Args:
            model ([`MAEForPreTraining`]): The model, in evaluation mode.
            args ([`ScoringArguments`]): Says how many masks, which and where.
        """
        self.model, self.args = model.to(args.device), args

    def __call__(self, batch: ScoredBatch) -> dict[str, torch.Tensor]:
        """Returns `loss` (batch,), `mask_losses` (batch, masks) and `patch_losses` (batch, rows, columns), on the CPU.

        They are NaN for unreadable images and where nothing that is hidden has data.
        """
        args, device, num_images = self.args, self.model.device, len(batch.names)
        if batch.pixel_values is None:
            rows, columns = self.model.config.grid_size
            losses = torch.full((num_images, args.num_masks, rows * columns), torch.nan)
        else:
            pixel_values, valid = (each.to(device, non_blocking=True) for each in (batch.pixel_values, batch.valid))
            rows, columns = patch_grid(pixel_values, self.model.mae.embeddings.patch_size)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                found = patch_losses(self.model, pixel_values, args.num_masks, args.seed, args.mask_ratio, valid)
            found = found.float().cpu()
            losses = found.new_full((num_images, *found.shape[1:]), torch.nan)
            losses[batch.readable] = found
        by_mask = losses.nanmean(dim=2)
        maps = losses.nanmean(dim=1).unflatten(1, (rows, columns))
        return {"loss": by_mask.nanmean(dim=1), "mask_losses": by_mask, "patch_losses": maps}


def score_images(args: ScoringArguments) -> Path:
    """Writes the loss of each image of a source to a file and returns its path. Prints progress and the extremes.

    The metadata of the file say which images, which model and which masks: `source`, `fingerprint`, `num_images`,
    `label_names`, `model`, `weights` (a hash), `num_masks`, `mask_ratio`, `seed` and `image_size`, each as JSON.

    Args:
        args ([`ScoringArguments`]): The settings.

    Raises:
        ValueError: If there are no images, none can be read, or the model has no decoder.
    """
    assert args.model is not None  # or the settings would have been refused
    model, image_processor = load_with_processor(args.model, args.image_size)
    images = open_source(args, image_processor)
    check_source(images, image_processor)
    if args.mask_ratio is None:
        args.mask_ratio = model.config.mask_ratio
    metadata = {
        "source": images.name,
        "fingerprint": images.fingerprint,
        "num_images": len(images),
        "label_names": images.label_names,
        "model": args.model,
        "weights": hash_of_weights(model),
        "image_size": image_processor.crop_height_width,
        "num_masks": args.num_masks,
        "mask_ratio": args.mask_ratio,
        "seed": args.seed,
    }
    scorer, dataset = Scorer(model, args), ImagesToScore(images, image_processor)
    print(f"{len(images):,} images from {printable(images.name)}, on {args.device}", flush=True)
    losses = _write_scores(scorer, dataset, metadata)
    _print_extremes(images, losses, args.output)
    if args.sheet is not None:
        save_picture(args.sheet, score_sheet(scorer, dataset, losses))
        print(f"The images with the highest and the lowest loss: {args.sheet}")
    return Path(args.output)


def _write_scores(scorer: Scorer, dataset: ImagesToScore, metadata: dict) -> np.ndarray:
    """Writes the file and returns the loss of each image (images,), NaN where there is none."""
    args, images = scorer.args, dataset.images
    options = {"num_workers": args.dataloader_num_workers, "pin_memory": args.device.startswith("cuda")}
    loader, losses = DataLoader(dataset, args.batch_size, collate_fn=_collate, **options), np.full(len(images), np.nan)
    start, message = 0, ""
    with FeatureFile(args.output, metadata) as file, tqdm(total=len(images), unit="image") as bar:
        for batch in loader:
            for message in batch.messages:
                bar.write(message)
            scores, indices = scorer(batch), range(start, start + len(batch.names))
            start = indices.stop
            losses[indices.start : indices.stop] = scores["loss"].numpy()
            if not args.maps:
                del scores["patch_losses"]
            described, files = describe_rows(images, list(indices))
            file.add(batch.names, {**described, **scores}, files)
            bar.update(len(batch.names))
        if np.isnan(losses).all():
            raise ValueError(f"None of the images of {images.name} has a loss. {message}".rstrip())
        file.finish()
    return losses


def _print_extremes(images: ImageSource, losses: np.ndarray, output: str):
    order = _order(losses)
    low, middle, high = np.quantile(losses[order], (0, 0.5, 1))
    print(f"{len(losses):,} rows in {output}: losses from {low:.3f} to {high:.3f}, median {middle:.3f}")
    if missing := len(losses) - len(order):
        print(f"{missing:,} of them have no loss: these images can't be read, or show no data.")
    for what, chosen in (("highest", order[::-1][:_NAMED]), ("lowest", order[:_NAMED])):
        for index in chosen:
            print(f"  {what} {losses[index]:.3f}  {index}: {printable(images.describe(int(index)))}")


def _order(losses: np.ndarray) -> np.ndarray:
    """Returns the indices of the images that have a loss, the lowest first."""
    return np.argsort(losses, kind="stable")[: np.isfinite(losses).sum()]


# ----------------------------------------------------------------------------------------------------------------------
# Sheet


def score_sheet(scorer: Scorer, dataset: ImagesToScore, losses: np.ndarray) -> PIL.Image.Image:
    """Draws the images with the highest and with the lowest losses, as the model sees them, with losses and indices.

    With `maps` each is next to the loss of its patches. All of these heat maps have one range of colours, from black
    for the lowest to yellow for the highest loss of a patch on the sheet.

    Args:
        scorer ([`Scorer`]): Measures the patches.
        dataset ([`ImagesToScore`]): The images.
        losses (`np.ndarray` of shape `(images,)`): Their losses. NaN: none.
    """
    order, args = _order(losses), scorer.args
    count = min(args.sheet_images, max(len(order) // 2, 1))
    chosen = {"highest loss": order[::-1][:count].tolist(), "lowest loss": order[:count].tolist()}
    batches = {index: dataset[index] for some in chosen.values() for index in some}
    pictures = {
        index: dataset.image_processor.post_process_reconstruction(batch.pixel_values)
        for index, batch in batches.items()
    }
    ending = ""
    if args.maps:
        by_patch = torch.cat([scorer(batch)["patch_losses"] for batch in batches.values()])
        maps, (low, high) = loss_maps(by_patch, next(iter(pictures.values()))[0].size)
        for some, each in zip(pictures.values(), maps, strict=True):
            some.append(each)
        ending = f", and that of patches from {low:.2f} (black) to {high:.2f} (yellow)"
    rows = {
        what + ending: [(pictures[index], f"{losses[index]:.3f}  #{index}") for index in some]
        for what, some in chosen.items()
    }
    return captioned_sheet(rows)


def captioned_sheet(rows: Mapping[str, Sequence[tuple[Sequence[PIL.Image.Image], str]]]) -> PIL.Image.Image:
    """Draws parts below their titles, each of some rows of pictures with captions below them.

    Args:
        rows (`Mapping`): For each title the pictures that stand next to each other, all as many, with their caption.
    """
    most = max(len(pictures) for part in rows.values() for pictures, _ in part)
    columns = max(_COLUMNS // most, 1)
    width, height = most * (_SIDE + _GAP) + _GAP, _SIDE + _LINE
    lines = {title: -(-len(part) // columns) for title, part in rows.items()}
    sheet = PIL.Image.new("RGB", (columns * width, sum(_LINE + number * height for number in lines.values())), "white")
    draw, top = PIL.ImageDraw.Draw(sheet), 0
    for title, part in rows.items():
        draw.text((2, top + 2), title, fill="black")
        for number, (pictures, caption) in enumerate(part):
            row, column = divmod(number, columns)
            x, y = column * width, top + _LINE + row * height
            for place, picture in enumerate(pictures):
                sheet.paste(fitted(picture, _SIDE), (x + place * (_SIDE + _GAP), y))
            draw.text((x + 2, y + _SIDE + 2), caption, fill="black")
        top += _LINE + lines[title] * height
    return sheet


def score_command(argv: list[str], prog: str) -> None:
    """Runs `hf-mae score`.

    Args:
        argv (`list[str]`): Arguments of the command.
        prog (`str`): What the command is called.
    """
    score_images(parse_arguments(ScoringArguments, argv, prog=prog, description=_DESCRIPTION))


__all__ = [
    "ImagesToScore",
    "ScoredBatch",
    "Scorer",
    "ScoringArguments",
    "captioned_sheet",
    "patch_losses",
    "score_command",
    "score_images",
    "score_sheet",
]
