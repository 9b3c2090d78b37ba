# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads boxes of a column: of a table next to the images, of parquet files, or of a data set."""

import json
import os
from pathlib import Path

from ..folders import WORDS_OF_SPLITS, FolderImages, folders_of_split
from ..shards import DatasetImages, ParquetImages, names_of_classes
from ..sources import open_images
from ..tables import columns_of, find_table, read_table, values_of_files
from .stated import AnnotatedImages, Label, StatedBoxes, floats, from_corner_and_size

_CROWD = ("iscrowd", "is_crowd", "crowd", "difficult")  # boxes that do not count
_CATEGORIES = ("category", "categories", "label", "labels", "class", "category_id")


def is_table_of_boxes(root: Path, column: str) -> bool:
    """Returns whether a table of a folder or of its splits has a column of boxes."""
    places = [root, *(place for split in WORDS_OF_SPLITS for place in folders_of_split(root, split))]
    tables = [find_table(place) for place in places if place.is_dir()]
    return any(table is not None and column in columns_of(read_table(table)) for table in tables)


def open_table(root: Path, split: str, column: str, box_format: str) -> AnnotatedImages | None:
    """Opens a folder of images whose metadata.jsonl has a column of boxes."""
    images = open_images(os.fspath(root), "train" if split == "train" else "test", labels="none")
    if images is None:
        return None
    assert isinstance(images, FolderImages)
    table = find_table(images.folder)
    if table is None:
        what = "train" if split == "train" else "evaluate"
        raise ValueError(f"The images to {what} on are those of {images.folder}, which has no table with their boxes.")
    rows = read_table(table)
    files = [images.describe(index) for index in range(len(images))]
    cells = [cell for (cell,) in values_of_files(table, rows, [column], files)]
    stated = _stated_in_cells(cells, [f"{table}, {file}" for file in files], box_format)
    return AnnotatedImages(images, stated, None, f"column {column} of {table.name}", list(images.notes))


def read_column(images: ParquetImages | DatasetImages, column: str, box_format: str) -> AnnotatedImages:
    """Reads a column of a data set, which is read without the images."""
    cells = images.values_of(column, "objects_column")
    stated = _stated_in_cells(cells, [images.describe(index) for index in range(len(images))], box_format)
    names = _names_in_column(images.feature_of(column))
    return AnnotatedImages(images, stated, names, f"column {column}", list(images.notes))


def _names_in_column(feature) -> dict[Label, str] | None:
    """Returns the names of classes that a column of boxes declares, in either layout."""
    feature = getattr(feature, "feature", feature)  # of a list of objects
    if not isinstance(feature, dict):
        return None
    inner = next((feature[key] for key in _CATEGORIES if key in feature), None)
    names = names_of_classes(inner)
    return None if names is None else dict(enumerate(names))


def _stated_in_cells(cells: list, files: list[str], box_format: str) -> list[StatedBoxes]:
    """Returns what the cells of a column state, objects as a dictionary of lists or as a list of dictionaries."""
    stated = []
    for cell, file in zip(cells, files, strict=True):
        boxes = StatedBoxes(file)
        for thing in _objects_of(cell, file):
            values = next((thing[key] for key in ("bbox", "box", "boxes") if key in thing), ())
            box = from_corner_and_size(values) if box_format == "xywh" else floats(values)
            label = next((thing[key] for key in _CATEGORIES if thing.get(key) is not None), -1)
            crowd = any(thing.get(key) for key in _CROWD)
            boxes.add(box, label if isinstance(label, str) else int(label), crowd)
        stated.append(boxes)
    return stated


def _objects_of(cell, file: str) -> list[dict]:
    """Returns the objects in a cell: a list of dictionaries, a dictionary of lists, either as JSON, or nothing."""
    try:
        cell = json.loads(cell) if isinstance(cell, str) and cell else cell
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: its objects are no JSON ({error}).") from error
    if isinstance(cell, list) and all(isinstance(thing, dict) for thing in cell):
        return cell
    cell = cell or {}
    if not isinstance(cell, dict):
        raise ValueError(f"{file}: its objects must be a list of dictionaries or a dictionary of lists, got {cell!r}.")
    lists = {key: values for key, values in cell.items() if isinstance(values, list)}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{len(values)} in {key}" for key, values in lists.items())
        raise ValueError(f"{file}: its lists of objects have different lengths: {counts}.")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


__all__ = ["is_table_of_boxes", "open_table", "read_column"]
