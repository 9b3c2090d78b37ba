# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Where images come from: a folder, shards (tar, parquet, Arrow), the Hub, or the embedded sample.

Every source gives images by index and knows their number, so that the order of a run is arithmetic (see
[`hf_mae.data.sampling.SampleOrder`]) and any process can read any sample. Nothing is copied or unpacked: a folder is
listed, a tar is indexed, a parquet file is read by row group, Arrow files are mapped into memory.
"""

import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from ..modeling.reading_mae import DEFAULT_SETTINGS, ReadingSettings, extension_of
from .folders import (
    PACKED,
    SHARD_EXTENSIONS,
    TEST,
    TRAIN,
    FolderImages,
    find_splits,
    is_image,
    lies_in_left_behind,
    notes_on_others,
    walk,
)
from .image_source import ImageSource, digest
from .parts import PagedImages, TiledImages
from .shards import DatasetImages, ParquetImages, TarImages, holds_images
from .tables import TABLES

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


class FashionMNISTImages(ImageSource):
    """The embedded sample: 3,000 (train) or 1,000 (test) labelled grey photographs of 28 x 28 pixels, 10 classes."""

    dataset = "zalando-datasets/fashion_mnist"
    license = "MIT"

    def __init__(self, split: str = "train"):
        self.name = f"Fashion-MNIST sample ({split}), embedded"
        mosaic = np.array(PIL.Image.open(Path(__file__).parent / "fashion_mnist" / f"{split}.png"))
        rows, columns = (side // 28 for side in mosaic.shape)
        self.pixels = mosaic.reshape(rows, 28, columns, 28).swapaxes(1, 2).reshape(-1, 28, 28)
        self.labels = np.arange(len(self.pixels)) * 10 // len(self.pixels)  # stored class by class
        names = "T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"
        self.label_names = names.split(", ")
        self.fingerprint = digest(self.pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.pixels[index])


def is_dataset(data) -> bool:
    """Returns whether something is a `Dataset` or a `DatasetDict` of the `datasets` library."""
    if "datasets" not in sys.modules:
        return False
    import datasets

    return isinstance(data, datasets.Dataset | datasets.DatasetDict)


def open_images(
    data: "str | os.PathLike | Dataset | DatasetDict | None" = None,
    split: str = "train",
    streaming: bool = False,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    problem_type: str | None = None,
    dataset_config: str | None = None,
    labels: str = "auto",
    tile: int | None = None,
    reading: ReadingSettings = DEFAULT_SETTINGS,
) -> ImageSource | None:
    """Opens a source of images.

    Args:
        data (`str`, `os.PathLike`, `Dataset` or `DatasetDict`, *optional*): A folder of images, flat or nested, whose
            sub-folders `train` and `val` (also `Training`, `test2017`, `images/train` and the like) are taken for
            splits; an image file; a `.parquet` or uncompressed `.tar` file or a folder of such shards; a folder of
            `.arrow` files or one written by `Dataset.save_to_disk`; the name of a data set on the Hub; or one that is
            loaded. Default: the embedded sample of Fashion-MNIST.
        split (`"train"` or `"test"`, *optional*): Images to train on, or to evaluate on.
        streaming (`bool`, *optional*, defaults to `False`): Read the parquet files of a data set of the Hub over the
            network by row group, instead of downloading it first. Local data are never copied.
        image_column, label_column (`str`, *optional*): Columns of parquet files and data sets, see [`choose_columns`].
        problem_type (`str`, *optional*): Kind of the labels in that column, or in tar files, see [`encode_labels`].
        dataset_config (`str`, *optional*): Configuration of a data set on the Hub that has several.
        labels (`"auto"` or `"none"`, *optional*): Whether images have labels, such as the folders that they lie in.
        tile (`int`, *optional*): Make square windows of this many pixels the images, for scenes too large to decode.
        reading ([`ReadingSettings`], *optional*): With `pages="images"` each page of a file is an image, and windows
            that hold nothing but `nodata` are dropped.

    Returns:
        [`ImageSource`], or `None` if `split` is `"test"` and the source has no such images.

    Raises:
        ValueError: If there are no images in it.
        OSError: If it can't be found or read.
    """
    if labels not in ("auto", "none"):
        raise ValueError(f"`labels` must be 'auto' or 'none', got {labels!r}.")
    is_here = data is None or is_dataset(data) or Path(data).exists()
    if is_here and (streaming or dataset_config is not None):
        name = "streaming" if streaming else "dataset_config"
        raise ValueError(f"`{name}` is for data sets on the Hub, and these images are here. Leave it out.")
    columns = {"image_column": image_column, "label_column": label_column, "problem_type": problem_type}
    images: ImageSource | None
    if data is None:
        images = FashionMNISTImages(split)
    elif is_dataset(data):
        images = _from_datasets("the data set that was passed", split, lambda _: data, columns)
    else:
        images = _open(os.fspath(data), split, streaming, dataset_config, labels, columns)
    if images is None:
        return None
    if image_column is not None and not isinstance(images, DatasetImages | ParquetImages):
        raise ValueError(f"`image_column` names a column, and {images.name} holds files. Leave it out.")
    if labels == "none":
        images.labels = images.label_names = None
    if tile is not None:
        if not isinstance(images, FolderImages):
            raise ValueError(f"`tile` needs a folder of scenes or one scene, {images.name} is neither.")
        return TiledImages(images, tile, reading)
    return PagedImages(images) if reading.pages == "images" else images


def _open(
    data: str, split: str, streaming: bool, config: str | None, labels: str, columns: dict[str, str | None]
) -> ImageSource | None:
    path = Path(data)
    if not path.exists():
        images: ImageSource | None
        if streaming:
            images = _from_hub(data, split, config, columns)
        else:
            images = _from_datasets(data, split, lambda d: d.load_dataset(data, config), columns)
        if images is not None:
            images.dataset = data
        return images
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _from_datasets(data, split, lambda d: d.load_from_disk(data), columns)
    if not path.is_dir():
        return _from_file(path, labels, columns) if split == "train" else None
    splits = find_splits(path)
    if not splits:
        return _from_folder(data, split, labels, columns)
    name = _first_of_split(splits, split)
    if name is None:
        return None
    folder = os.fspath(splits[name])
    if (splits[name] / "state.json").exists():
        return _from_datasets(folder, "train", lambda d: d.load_from_disk(folder), columns)
    images = _from_folder(folder, None, labels, columns)
    images.notes = [*notes_on_others(splits[name]), *images.notes]
    return images


def _from_file(path: Path, labels: str, columns: dict) -> ImageSource:
    """Opens one shard or one image. All other files are refused with the way out."""
    extension = extension_of(path.name)
    if extension in SHARD_EXTENSIONS:
        return _from_shards([os.fspath(path)], os.fspath(path), columns)
    if is_image(path.name):
        return FolderImages(path.parent, [("", [path.name])], labels)
    hint = ""
    if extension in PACKED:
        hint = " Unpack it first; of archives only .tar is read."
    elif extension in (".csv", ".jsonl"):
        hint = f" Give the folder of the images; a table next to them is called {', '.join(TABLES)}."
    shards = ", ".join(SHARD_EXTENSIONS)
    raise ValueError(f"{os.fspath(path)!r} is neither a folder, nor an image, nor a shard ({shards}).{hint}")


def _first_of_split(names: Collection[str], split: str) -> str | None:
    """Returns the name of the split to train on, or of the first split to evaluate on; `None` if there is none."""
    return next((name for name in (("train",) if split == "train" else TEST) if name in names), None)


def _from_folder(folder: str, split: str | None, labels: str, columns: dict) -> ImageSource | None:
    """Opens the images of a folder, or else its shards: those of a split, or all."""
    listing, notes = [], []
    for directory, names in walk(folder, notes):
        listing.append((directory, names))
        if split == "test" and any(is_image(name) for name in names):
            return None  # no need to list the rest again
    shards = [
        os.path.join(folder, directory, name)
        for directory, names in listing
        for name in names
        if name.lower().endswith(SHARD_EXTENSIONS)
        and not lies_in_left_behind(name)
        and not (name.startswith("cache-") and name.endswith(".arrow"))
    ]  # without what `datasets` has kept of maps and filters
    if not shards or any(is_image(name) for _, names in listing for name in names):
        if split == "test":
            return None
        _refuse_two_kinds(folder, shards)
        images = FolderImages(folder, listing, labels)
        images.notes = [*notes, *images.notes]
        return images
    if split is None:
        return _from_shards(shards, folder, columns)
    chosen = _of_split(shards, split, folder)
    if not chosen:
        return None
    source = _from_shards(chosen, f"{folder} ({split})", columns)
    left_out = sorted(set(shards).difference(chosen, _with_words(shards, TEST, folder)))
    if split == "train" and left_out:
        source.notes = [*source.notes, f"{len(left_out)} shards name no split and are left out, first {left_out[0]}."]
    return source


def _refuse_two_kinds(folder: str, shards: Sequence[str]):
    """Refuses parquet files of images next to pictures, such as the banner of a cloned data set of the Hub.

    A `metadata.parquet` is the table of the pictures, as `datasets`' imagefolder has it.
    """
    parquets = [shard for shard in shards if extension_of(shard) == ".parquet" and Path(shard).stem != "metadata"]
    if both := [shard for shard in parquets if holds_images(shard)]:
        raise ValueError(
            f"{folder} has pictures in files, and others in {len(both)} parquet file(s), first {both[0]}. Give the "
            "path of the files, or of the folder, that is meant."
        )


def _of_split(shards: Sequence[str], split: str, folder: str) -> list[str]:
    """Returns the shards to train on, or those of the first split to evaluate on, by the words in their paths.

    If none is called after training, all are to train on that no split to evaluate on is called after.
    """
    if split == "train":
        others = set(_with_words(shards, TEST, folder))
        return _with_words(shards, TRAIN, folder) or [shard for shard in shards if shard not in others]
    return next(filter(None, (_with_words(shards, (word,), folder) for word in TEST)), [])


def _with_words(shards: Sequence[str], words: Sequence[str], folder: str) -> list[str]:
    """Returns the shards that have one of some words in their path below a folder."""
    paths = {shard: os.path.relpath(shard, folder).lower() for shard in shards}
    return [shard for shard, path in paths.items() if not set(words).isdisjoint(re.split(r"[^a-z]+", path))]


def _from_shards(files: list[str], name: str, columns: dict) -> ImageSource:
    kinds = {extension_of(file) for file in files}
    if len(kinds) > 1:
        raise ValueError(
            f"{name} holds shards of several kinds: {', '.join(sorted(kinds))}. Give the path of those of one kind."
        )
    if kinds == {".tar"}:
        return TarImages(files, name, columns["problem_type"])
    if kinds == {".parquet"}:
        return ParquetImages(files, name, **columns)
    import datasets

    return DatasetImages(datasets.concatenate_datasets([_read_arrow(file) for file in files]), name, **columns)


def _read_arrow(file: str) -> "Dataset":
    import datasets
    import pyarrow

    try:
        return datasets.Dataset.from_file(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{file} can't be read as an Arrow stream: {error}. Repair it or, if it has Arrow's file format (Feather), "
            "write the data again by `Dataset.save_to_disk`, or as parquet."
        ) from error


def _from_hub(data: str, split: str, config: str | None, columns: dict) -> ParquetImages | None:
    """Opens the parquet files of a data set of the Hub, which are read where they are."""
    from huggingface_hub import HfFileSystem

    filesystem, folder = HfFileSystem(), f"datasets/{data}"
    try:
        files = sorted(filesystem.glob(f"{folder}/**/*.parquet"))
    except Exception as error:  # of many types: no such name, no network, no permission
        raise OSError(_not_found(data, error)) from error
    places = {file: os.path.relpath(file, folder).split("/")[:-1] for file in files}
    if config is not None:
        files = [file for file in files if config in places[file]]
    if not files:
        where = "" if config is None else f" in the configuration {config!r}"
        raise ValueError(f"{data!r} on the Hub has no parquet files to stream{where}. Leave `streaming` out.")
    no_configs = {"data", *TRAIN, *TEST}
    configs = sorted({place[0] for place in places.values() if place and place[0] not in no_configs})
    if config is None and len(configs) > 1:
        raise ValueError(f"{data!r} has several configurations: {', '.join(configs)}. Choose with `dataset_config`.")
    shards = _of_split(files, split, folder)
    return ParquetImages(shards, f"{data} ({split})", filesystem, **columns) if shards else None


def _from_datasets(data: str, split: str, load: Callable, columns: dict) -> DatasetImages | None:
    import datasets

    try:
        dataset = load(datasets)
    except Exception as error:  # of many types: no such name, no network, no permission, broken file
        raise OSError(_not_found(data, error)) from error
    if isinstance(dataset, dict):
        found = _first_of_split(dataset, split)
        if found is None and split == "train":
            raise ValueError(f"{data!r} has no split 'train', only {', '.join(dataset)}.")
        return None if found is None else DatasetImages(dataset[found], f"{data} ({found})", **columns)
    return DatasetImages(dataset, data, **columns) if split == "train" else None


def _not_found(data: str, error: Exception) -> str:
    return (
        f"{data!r} is no folder or file here, and could not be loaded as a data set of the Hub or from disk: "
        f"{type(error).__name__}: {str(error)[:300]}"
    )


__all__ = ["FashionMNISTImages", "FolderImages", "ImageSource", "is_dataset", "open_images"]
