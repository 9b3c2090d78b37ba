# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Opens the images of a pre-training run, and looks at some of them before its first step."""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..data.checking import check_images, value_range_of
from ..data.datasets import channel_statistics
from ..data.folders import reading_folders_once
from ..data.held_out import check_not_held_out, default_share, hold_out
from ..data.image_source import digest
from ..data.labels import forget_other_classes, has_classes, label_by_folders
from ..data.parts import files_of
from ..data.scores import describe_weights, weights_by_loss
from ..data.shards import DatasetImages, ParquetImages
from ..data.sources import ImageSource, open_images
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.reading_mae import ReadingSettings
from ..training.arguments import comparable
from ..training.distributed import call_in_all_processes, call_in_main_process, check_agreement
from .settings import PretrainingSettings

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_MOST_HELD_OUT = 1000  # images: as many as an evaluation takes
# Settings in which the processes of a run may differ: where a machine has its files, and how many of its cores read.
_OF_A_PROCESS = {"data", "output_dir", "sample_by_loss", "dataloader_num_workers"}


@dataclass
class RunImages:
    """The images of a run.

    Args:
        train ([`ImageSource`]): Those to train on.
        test ([`ImageSource`] or `None`): Those to evaluate on. `None`: those to train on.
        weights (`np.ndarray` of shape `(images,)` or `None`): In what proportion images are drawn.
        notes (`list[str]`): What a user should know of them.
    """

    train: ImageSource
    test: ImageSource | None
    weights: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


def open_run_images(
    settings: PretrainingSettings,
    images: "ImageSource | Dataset | DatasetDict | None",
    reading: ReadingSettings | None,
) -> RunImages:
    """Opens the images that the settings name, holds some out, and weighs the others. Every process must call this.

    Args:
        settings ([`PretrainingSettings`]): Source, held-out share (set here where it is open and needed), weights.
        images ([`ImageSource`], `Dataset`, `DatasetDict` or `None`): Replaces the source of the settings.
        reading ([`ReadingSettings`] or `None`): How stored values of the source of the settings are read.

    Raises:
        OSError: If a process finds no images.
        ValueError: If processes have different images or settings.
    """
    found = call_in_all_processes(lambda: _open(settings, images, reading))
    _check_agreement(settings, found)
    return found


@reading_folders_once()
def _open(settings: PretrainingSettings, images, reading: ReadingSettings | None) -> RunImages:
    if isinstance(images, ImageSource):
        _check_source(settings, images)
        found = RunImages(images, None)
    else:
        columns = {name: getattr(settings, name) for name in ("image_column", "label_column", "dataset_config")}
        options = {**columns, "labels": settings.labels, "tile": settings.tile, "reading": reading}
        data = settings.data if images is None else images
        train, test = (open_images(data, split, settings.streaming, **options) for split in ("train", "test"))
        if settings.label_column is not None and not isinstance(files_of(train), DatasetImages | ParquetImages):
            raise ValueError(
                f"`label_column` names a column, and {train.name} holds files. Leave it out: the k-NN accuracy goes by "
                "the folders of the images."
            )
        found = RunImages(train, test)
    if found.test is None:
        if settings.held_out is None:
            settings.held_out = default_share(len(found.train))
        found.train, found.test, note = hold_out(found.train, settings.held_out, settings.group_by, _MOST_HELD_OUT)
        found.notes += [note] if note else []
    else:
        found.notes += check_not_held_out(settings.held_out, settings.group_by, settings.data or found.train.name)
    if found.test is not None and found.train.label_names:
        label_by_folders(found.test, found.train.label_names)
    if found.test is not None and has_classes(found.train) and has_classes(found.test):
        forget_other_classes(found.test, found.train.label_names)
    if settings.sample_by_loss is not None:
        found.weights = weights_by_loss(settings.sample_by_loss, found.train)
        found.notes.append(describe_weights(found.weights))
    return found


def _check_source(settings: PretrainingSettings, images: ImageSource):
    """Refuses settings that describe the images of a path or of a data set: a source passed as an object knows them."""
    given = [name for name in ("tile", "image_column", "label_column", "dataset_config") if getattr(settings, name)]
    given += ["labels"] * (settings.labels == "none") + ["streaming"] * settings.streaming
    if given:
        raise ValueError(
            f"`{given[0]}` is for images that a path or a data set names, and {images.name} is a source of its own. "
            "Leave it out, and let the source do it."
        )


def _check_agreement(settings: PretrainingSettings, images: RunImages):
    """Refuses a run whose processes have different images or settings.

    Nothing else would notice. The main process decides for all from where a run goes on, and a process with other
    images takes them for those of the main process: it makes the batches of a run that nobody asked for.
    """
    facts = {name: comparable(value) for name, value in asdict(settings).items() if name not in _OF_A_PROCESS}
    for what, source in (("images to train on", images.train), ("images to evaluate on", images.test)):
        facts[what] = None if source is None else f"{len(source):,} ({source.fingerprint})"
    facts["weights of images"] = None if images.weights is None else digest(images.weights)
    check_agreement(facts)


def look_at_images(
    settings: PretrainingSettings, images: RunImages, processor: MAEImageProcessor, channels: int, num_workers: int
) -> tuple[list[str], dict[str, str]]:
    """Checks some images, and sets in the image processor what the settings want to be computed of them.

    Every process must call this.

    Args:
        settings ([`PretrainingSettings`]): What to compute.
        images ([`RunImages`]): The images.
        processor ([`MAEImageProcessor`]): Gets range, type of samples, mean and deviation.
        channels (`int`): Channels of the model.
        num_workers (`int`): Processes that may help.

    Returns:
        `(notes, unreadable)`: what a user should know, and reasons by the names of images that cannot be read.
    """
    notes: list[str] = []
    unreadable: dict[str, str] = {}
    if settings.value_percentiles is not None:
        low, high = settings.value_percentiles
        processor.value_range = call_in_main_process(
            lambda: value_range_of(images.train, channels, (low, high), processor.reading)
        )
    for source in (images.train, images.test):
        if source is None:
            continue
        checked = call_in_main_process(partial(check_images, source, channels, processor.reading))
        notes += checked.notes
        if source is images.train:
            unreadable, processor.sample_type = checked.unreadable, checked.sample_type
    if settings.compute_statistics:
        processor.image_mean, processor.image_std = call_in_main_process(
            lambda: channel_statistics(images.train, channels, num_workers=num_workers, reading=processor.reading)
        )
    return notes, unreadable


__all__ = ["RunImages", "look_at_images", "open_run_images"]
