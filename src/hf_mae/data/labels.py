# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Labels of images: from a table next to them, of several kinds, numbered alike in all splits.

Labels are one of three arrays: int64 `(images,)`, a class for each image, negative where there is none; float32
`(images, classes)` of 0 and 1, any number of classes for each image; float32 `(images, values)`, numbers. A row that is
NaN means that an image has no label.
"""

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from transformers.utils import logging

from .datasets import align_labels, check_labels, class_names
from .sources import FolderImages, ImageSource, open_images

logger = logging.get_logger(__name__)

TABLES = ("metadata.csv", "metadata.jsonl")
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)
_COLUMNS = ("label", "labels")  # taken if no column is named


def problem_type_of(images: ImageSource) -> str:
    """Returns which kind of labels a source has: `single_label_classification`, `multi_label_classification` or
    `regression`, as `problem_type` of transformers' configurations.

    Raises:
        ValueError: If it has no labels.
    """
    if images.labels is None:
        class_names(images)  # says how to give labels
    if not np.issubdtype(images.labels.dtype, np.floating):
        return SINGLE
    known = images.labels[has_label(images)]
    return MULTI if images.labels.ndim == 2 and np.isin(known, (0, 1)).all() else REGRESSION


def names_of_labels(images: ImageSource) -> list[str]:
    """Returns the names of the classes, or of the numbers, of a source; numbers from 0 where it names none."""
    if images.labels is None or images.labels.ndim == 1:
        return class_names(images)
    return images.label_names or [str(number) for number in range(images.labels.shape[1])]


def has_label(images: ImageSource) -> np.ndarray:
    """Returns for each image whether it has a label, bool `(images,)`."""
    if images.labels is None:
        return np.zeros(len(images), dtype=bool)
    if not np.issubdtype(images.labels.dtype, np.floating):
        return images.labels >= 0
    return ~np.isnan(images.labels.reshape(len(images), -1)).any(axis=1)


class LabelledImages(ImageSource):
    """The images of a source that have a label."""

    def __init__(self, images: ImageSource):
        """
        Args:
            images ([`ImageSource`]): Some of its images have labels.
        """
        self.images, self.indices = images, np.flatnonzero(has_label(images))
        self.name, self.dataset, self.license = images.name, images.dataset, images.license
        self.labels, self.label_names = images.labels[self.indices], images.label_names
        self.fingerprint = f"{images.fingerprint}-{len(self.indices)}"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> PIL.Image.Image | np.ndarray:
        return self.images[int(self.indices[index])]

    def describe(self, index: int) -> str:
        return self.images.describe(int(self.indices[index]))


def open_labelled(
    data: str | None, label_column: Sequence[str] | None = None, problem_type: str | None = None
) -> tuple[ImageSource, ImageSource | None]:
    """Returns the labelled images to train and to evaluate on, `None` if there are none to evaluate on.

    Images without a label are left out, and the log says how many.

    Args:
        data (`str`, *optional*): See [`open_images`].
        label_column (`Sequence[str]`, *optional*): See [`read_label_table`].
        problem_type (`str`, *optional*): See [`encode_labels`].

    Raises:
        ValueError: If there are no images to train on that have a label.
    """
    train_images, test_images = (open_images(data, split) for split in ("train", "test"))
    for images in (train_images, test_images):
        if images is not None:
            read_label_table(images, label_column, problem_type)
    problem_type_of(train_images)  # raises if there are no labels
    if not has_label(train_images).any():
        raise ValueError(f"None of the {len(train_images)} images of {train_images.name} has a label.")
    if test_images is not None and not has_label(test_images).any():
        test_images = None
    return _labelled(train_images), None if test_images is None else _labelled(test_images)


def _labelled(images: ImageSource) -> ImageSource:
    missing = int((~has_label(images)).sum())
    if missing == 0:
        return images
    logger.warning(f"{missing} of {len(images)} images of {images.name} have no label and are left out.")
    return LabelledImages(images)


def number_labels(label_names: list[str], *sources: ImageSource | None):
    """Numbers the labels of several sources alike, see [`align_all_labels`], and checks them.

    Args:
        label_names (`list[str]`): Names in the wanted order.
        *sources ([`ImageSource`] or `None`): Their `labels` and `label_names` are changed.

    Raises:
        ValueError: If one has labels that are not among the names.
    """
    for images in sources:
        if images is not None:
            align_all_labels(images, label_names)
            check_labels(images, len(label_names))


def align_all_labels(images: ImageSource, label_names: list[str]):
    """Numbers the labels of a source as others do, by their names, whatever their kind; see [`align_labels`].

    Args:
        images ([`ImageSource`]): Its `labels` and `label_names` are changed. Without names they are left as they are.
        label_names (`list[str]`): Names in the wanted order.

    Raises:
        ValueError: If it has labels that are not among them.
    """
    if images.labels is None or images.labels.ndim == 1 or images.label_names in (None, label_names):
        if images.labels is not None:
            align_labels(images, label_names)
        return
    present = {name for name, some in zip(images.label_names, (images.labels > 0).any(axis=0), strict=True) if some}
    if unknown := sorted(present.difference(label_names)):
        raise ValueError(f"{images.name} has labels that the training images or the model lack: {', '.join(unknown)}.")
    absent = np.where(has_label(images), 0, np.nan)
    by_name = dict(zip(images.label_names, images.labels.T, strict=True))
    columns = [by_name.get(name, absent) for name in label_names]
    images.labels, images.label_names = np.stack(columns, axis=1).astype(np.float32), list(label_names)


# ----------------------------------------------------------------------------------------------------------------------
# Tables


def read_label_table(
    images: ImageSource, columns: Sequence[str] | None = None, problem_type: str | None = None
) -> bool:
    """Gives a folder of images the labels of a table: `metadata.csv` or `metadata.jsonl` in it or in the folder above.

    The convention is that of `datasets`' imagefolder: a column `file_name` holds paths below the folder of the table.

    Args:
        images ([`ImageSource`]): The images. Its `labels` and `label_names` are set.
        columns (`Sequence[str]`, *optional*): Columns with the labels. Several columns are one label each: 0 or 1, or
            numbers. Default: `label` or `labels`, if there is a table and the folder itself gives no labels.
        problem_type (`str`, *optional*): Kind of the labels, see [`encode_labels`].

    Returns:
        `bool`: Whether the labels come from a table.

    Raises:
        ValueError: If a named column or the table is not there, or images are not in the table.
    """
    table = _find_table(images) if isinstance(images, FolderImages) else None
    if table is None:
        if columns is not None and isinstance(images, FolderImages):
            raise ValueError(f"`label_column` needs a table {' or '.join(TABLES)} in {images.name}, there is none.")
        return False
    if columns is None and images.labels is not None:
        return False
    rows = _read_table(table)
    known = list(rows[0]) if rows else []
    columns = columns or [name for name in _COLUMNS if name in known][:1]
    if "file_name" not in known or not columns or not set(columns) <= set(known):
        raise ValueError(
            f"{table} must have the column file_name and {', '.join(columns or ['label'])}, it has {', '.join(known)}. "
            "Name the column of labels with `label_column`."
        )
    by_name = {os.path.normpath(str(row["file_name"])): [row.get(name) for name in columns] for row in rows}
    names = [os.path.relpath(images.describe(index), table.parent) for index in range(len(images))]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} images are not in {table}, first {missing[0]}. Add their rows, with an "
            "empty label if they have none, or take the images out."
        )
    values = [by_name[name] for name in names]
    values = [value[0] for value in values] if len(columns) == 1 else values
    images.labels, images.label_names = encode_labels(values, problem_type, list(columns), table.suffix == ".csv")
    return True


def _find_table(images: FolderImages) -> Path | None:
    folder = Path(images.folder)
    return next((place / name for place in (folder, folder.parent) for name in TABLES if (place / name).exists()), None)


def _read_table(table: Path) -> list[dict]:
    with open(table, encoding="utf-8-sig", newline="") as file:
        if table.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file if line.strip()]


def encode_labels(
    values: Sequence, problem_type: str | None = None, columns: Sequence[str] = ("label",), from_text: bool = False
) -> tuple[np.ndarray, list[str] | None]:
    """Returns labels as an array, and their names.

    Args:
        values (`Sequence`): One for each image: a text or an integer for its class, a list of those for several
            classes, a float for a number, a list with a value for each column; `None` or an empty text for no label.
        problem_type (`str`, *optional*): Kind of the labels, one of `single_label_classification`,
            `multi_label_classification` and `regression`. Default: lists are several classes, floats are numbers, all
            else is a class. In texts several classes are separated by `;` or `|`.
        columns (`Sequence[str]`, *optional*): Names of the columns that the values come from.
        from_text (`bool`, *optional*, defaults to `False`): Whether the values are texts that may mean numbers.

    Raises:
        ValueError: If the values are of another kind.
    """
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise ValueError(f"`problem_type` must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}.")
    if len(columns) > 1:
        return _encode_columns(values, columns)
    values = [None if value is None or value == "" or value != value else value for value in values]
    if from_text:
        values = _numbers_of_texts(values, whole=problem_type != REGRESSION)
    given = [value for value in values if value is not None]
    if problem_type is None:
        several = any(isinstance(value, list | tuple) for value in given)
        problem_type = MULTI if several else REGRESSION if any(isinstance(v, float) for v in given) else SINGLE
    if problem_type == REGRESSION:
        return _encode_columns([[value] for value in values], columns)
    if problem_type == MULTI:
        return _encode_several(values)
    if any(isinstance(value, list | float) for value in given):
        wrong = next(value for value in given if isinstance(value, list | float))
        raise ValueError(f"A class must be a text or an integer, got {wrong}.")
    if all(isinstance(value, int) for value in given):
        return np.array([-1 if value is None else value for value in values], dtype=np.int64), None
    names = sorted({str(value) for value in given})
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([-1 if value is None else numbers[str(value)] for value in values], dtype=np.int64), names


def _numbers_of_texts(values: list, whole: bool) -> list:
    """Returns texts as integers or floats if all of them are such, else as they are."""
    for kind in (int, float) if whole else (float,):
        try:
            return [None if value is None else kind(value) for value in values]
        except ValueError:
            continue
    return values


def _encode_columns(values: Sequence[Sequence], columns: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    try:
        rows = [[np.nan if value in (None, "") else float(value) for value in row] for row in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"The columns {', '.join(columns)} must hold numbers: {error}.") from error
    return np.array(rows, dtype=np.float32), list(columns)


def _encode_several(values: Sequence) -> tuple[np.ndarray, list[str]]:
    lists = [
        [part.strip() for part in re.split(r"[;|]", value) if part.strip()] if isinstance(value, str) else value
        for value in values
    ]
    lists = [each if each is None or isinstance(each, list | tuple) else [each] for each in lists]
    found = {label for each in lists if each is not None for label in each}
    names = sorted(found) if all(isinstance(label, int) for label in found) else sorted(map(str, found))
    numbers = {str(name): number for number, name in enumerate(names)}
    labels = np.zeros((len(lists), len(names)), dtype=np.float32)
    for row, each in zip(labels, lists, strict=True):
        row[...] = np.nan if each is None else 0
        row[[numbers[str(label)] for label in each or ()]] = 1
    return labels, [str(name) for name in names]


__all__ = [
    "LabelledImages",
    "align_all_labels",
    "encode_labels",
    "has_label",
    "names_of_labels",
    "number_labels",
    "open_labelled",
    "problem_type_of",
    "read_label_table",
]
