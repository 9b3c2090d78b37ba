# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Gives the commands that take all images of a source through a model what they share: settings, images, rows."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch.utils.data import Dataset
from transformers.hf_argparser import HfArg

from ..cli import in_flags
from ..data.checking import check_embedded, check_images
from ..data.decoding import try_to_read
from ..data.image_source import ImageSource
from ..data.labels import read_label_table
from ..data.parts import PartsOfImages
from ..data.sampling import default_num_workers
from ..data.sources import open_images
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.reading_mae import OpenedImage
from ..training.data_settings import ColumnSettings


@dataclass
class SourceArguments(ColumnSettings):
    """Images."""

    data: str | None = HfArg(
        default=None, help="Folder, .tar or .parquet file, or Hub name. Default: the embedded images."
    )
    split: Literal["train", "test"] = HfArg(default="train", help="Which images of the data.")
    tile: int | None = HfArg(default=None, help="Side in pixels of the windows that large scenes are cut into.")
    pages: Literal["first", "channels", "images"] | None = HfArg(
        default=None, help="What the pages of a file are. Default: what the image processor of the model says."
    )

    def check_not_data(self, file: Path):
        """Refuses to write to the file that is `data`, which would be lost.

        Args:
            file (`Path`): The file.

        Raises:
            ValueError: If it is.
        """
        if self.data is not None and file.exists() and file.resolve() == Path(self.data).resolve():
            raise ValueError(f"`data` {self.data} would be replaced by what is written. Name another `output`.")


@dataclass
class InferenceArguments:
    """Settings.

    Of commands that take all images through a model. The help lists them with the settings of the command itself.
    """

    batch_size: int = HfArg(default=64, help="Images of one forward pass.")
    device: str | None = HfArg(
        default=None, help="Device, with bfloat16 autocast on cuda. Default: cuda if there is a GPU, else cpu."
    )
    dataloader_num_workers: int | None = HfArg(
        default=None, help="Loader processes. Default: one per CPU core, at most 16; none without a GPU."
    )


def choose_device(device: str | None, num_workers: int | None) -> tuple[str, int]:
    """Returns device and number of loader workers, chosen for this machine where they are `None`.

    Args:
        device (`str`, *optional*): Default: cuda if there is a GPU, else cpu.
        num_workers (`int`, *optional*): Default: one per CPU core, at most 16; none without a GPU.

    Raises:
        ValueError: If there is no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        way_out = "Name another, such as cpu, cuda or cuda:1, or leave it out."
        raise ValueError(f"`device` {device} can't be used: {str(error).splitlines()[0]}. {way_out}") from error
    if num_workers is None:  # on a CPU the model has better use for the cores
        num_workers = 0 if device == "cpu" else default_num_workers()
    return device, num_workers


def open_source(args: SourceArguments, image_processor: MAEImageProcessor) -> ImageSource:
    """Opens the images and prints what was chosen or left out. Sets `pages` of the image processor, where it is given.

    Labels are those that `hf-mae evaluate` and `hf-mae finetune` take, see [`read_label_table`]. They are not needed:
    where a table does not suit the images there are none, and what is printed says why.

    Args:
        args ([`SourceArguments`]): Which images.
        image_processor ([`MAEImageProcessor`]): Says how files are read.

    Raises:
        ValueError: If there are no images.
    """
    if args.pages is not None:
        image_processor.pages = args.pages
    options: dict = {"image_column": args.image_column, "dataset_config": args.dataset_config, "tile": args.tile}
    images = open_images(args.data, args.split, reading=image_processor.reading, **options)
    if images is None:
        raise ValueError(f"{args.data} has no images for `split` {args.split}.")
    try:
        read_label_table(images)
    except ValueError as error:
        images.labels = images.label_names = None
        images.notes = [*images.notes, f"The images have no labels: {error}"]
    for note in images.notes:
        print(in_flags(printable(note)))
    return images


def check_source(images: ImageSource, image_processor: MAEImageProcessor):
    """Refuses images that do not suit the model before the work starts, see [`check_images`].

    Args:
        images ([`ImageSource`]): The images. Those that can't be read are no mistake here.
        image_processor ([`MAEImageProcessor`]): Says how many channels the model has and how files are read.

    Raises:
        ValueError: If one does not suit the model; it is named.
    """
    check_embedded(images, image_processor)
    with suppress(OSError):  # many in a row can't be read: each is named later
        check_images(images, image_processor.num_channels, image_processor.reading)


class ReadImage(NamedTuple):
    """Holds an image of a source.

    Attributes:
        position (`int`): Where it is in the source.
        name (`str`): Its name.
        pixel_values (`torch.Tensor` of shape `(channels, height, width)` or `None`): As the image processor makes them.
        message (`str` or `None`): Why there are none.
    """

    position: int
    name: str
    pixel_values: torch.Tensor | None
    message: str | None


class ReadBatch(NamedTuple):
    """Holds those images of a batch that can be read.

    Attributes:
        indices (`list[int]`): Their positions in the source.
        names (`list[str]`): Their names.
        pixel_values (`torch.Tensor` of shape `(images, channels, height, width)` or `None`): `None` if there are none.
        messages (`list[str]`): Why others can't be read.
    """

    indices: list[int]
    names: list[str]
    pixel_values: torch.Tensor | None
    messages: list[str]


class ReadableImages(Dataset):
    """Gives images as the image processor makes them. One that cannot be read is not replaced by another."""

    def __init__(self, images: ImageSource, image_processor: MAEImageProcessor):
        """
        Args:
            images ([`ImageSource`]): The images.
            image_processor ([`MAEImageProcessor`]): Makes pixel values of them.
        """
        self.images, self.image_processor = images, image_processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ReadImage:
        name = printable(self.images.describe(index))
        pixel_values, reason = try_to_read(self.images, index, self._load)
        message = None if reason is None else f"Skipped {name}, which can't be read: {reason}"
        return ReadImage(index, name, pixel_values, message)

    def _load(self, image: OpenedImage) -> torch.Tensor:
        return self.image_processor(image, return_tensors="pt").pixel_values[0]


def collate_readable(images: list[ReadImage]) -> ReadBatch:
    """Makes a batch of images of [`ReadableImages`]."""
    messages = [image.message for image in images if image.message is not None]
    images = [image for image in images if image.pixel_values is not None]
    pixel_values = torch.stack([image.pixel_values for image in images]) if images else None
    return ReadBatch([image.position for image in images], [image.name for image in images], pixel_values, messages)


def describe_rows(images: ImageSource, indices: list[int]) -> tuple[dict[str, torch.Tensor], list[str] | None]:
    """Returns columns that name the image of each row, and the names of the files if images are parts of files.

    Args:
        images ([`ImageSource`]): The source.
        indices (`list[int]`): An image for each row.
    """
    columns = {"index": torch.tensor(indices)}
    if images.labels is not None:
        columns["label"] = torch.from_numpy(images.labels[indices])
    if not isinstance(images, PartsOfImages):
        return columns, None
    for place, name in enumerate(images.place_names, start=1):
        columns[name] = torch.from_numpy(images.parts[indices, place])
    return columns, [printable(images.file_of(index)) for index in indices]


def printable(name: str) -> str:
    """Returns the name of a file in UTF-8, in which it may not be."""
    return os.fsencode(name).decode(errors="replace")


__all__ = [
    "InferenceArguments",
    "ReadBatch",
    "ReadImage",
    "ReadableImages",
    "SourceArguments",
    "check_source",
    "choose_device",
    "collate_readable",
    "describe_rows",
    "open_source",
    "printable",
]
