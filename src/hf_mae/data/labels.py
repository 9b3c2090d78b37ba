# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Labels of images: from a table next to them, of several kinds, numbered alike in all splits.

Labels are one of three arrays: int64 `(images,)`, a class for each image, negative where there is none; float32
`(images, classes)` of 0 and 1, any number of classes for each image; float32 `(images, values)`, numbers. A row that is
NaN means that an image has no label.
"""

import re
from collections.abc import Sequence

import numpy as np
from transformers.utils import logging

from .folders import FolderImages, reading_folders_once
from .held_out import DEFAULT_SHARE, check_not_held_out, hold_out, select
from .image_source import ImageSource
from .label_values import MULTI, REGRESSION, SINGLE, encode_labels
from .parts import PartsOfImages, files_of
from .shards import LABEL_COLUMNS, DatasetImages, ParquetImages
from .sources import open_images
from .tables import TABLES, columns_of, find_table, read_table, values_of_files

logger = logging.get_logger(__name__)


def problem_type_of(images: ImageSource) -> str:
    """Returns which kind of labels a source has: `single_label_classification`, `multi_label_classification` or
    `regression`, as `problem_type` of transformers' configurations.

    Raises:
        ValueError: If it has no labels.
    """
    _check_has_labels(images)
    if not np.issubdtype(images.labels.dtype, np.floating):
        return SINGLE
    known = images.labels[has_label(images)]
    return MULTI if images.labels.ndim == 2 and np.isin(known, (0, 1)).all() else REGRESSION


def names_of_labels(images: ImageSource) -> list[str]:
    """Returns the names of the classes, or of the numbers, of a source. What has no name is called by its number.

    Classes without names are numbered from 0, and a source may lack some of them. If it lacks 0 (stages 1 to 4, years),
    the integers are names, and there is a class for each that it has.

    Raises:
        ValueError: If it has no labels.
    """
    _check_has_labels(images)
    if images.label_names:
        return images.label_names
    if images.labels.ndim == 2:
        return [str(number) for number in range(images.labels.shape[1])]
    found = np.unique(images.labels[images.labels >= 0]).tolist()
    return [str(label) for label in (range(found[-1] + 1) if 0 in found else found)]


def _check_has_labels(images: ImageSource):
    if images.labels is None:
        raise ValueError(
            f"{images.name} has no labels. Put the images of a folder into sub-folders named by class, or next to a "
            f"{TABLES[0]} with the columns file_name and label. Tar shards need .cls files, parquet files and data "
            "sets a column of class labels."
        )


def has_label(images: ImageSource) -> np.ndarray:
    """Returns for each image whether it has a label, bool `(images,)`."""
    if images.labels is None:
        return np.zeros(len(images), dtype=bool)
    if not np.issubdtype(images.labels.dtype, np.floating):
        return images.labels >= 0
    return ~np.isnan(images.labels.reshape(len(images), -1)).any(axis=1)


def has_classes(images: ImageSource) -> bool:
    """Returns whether images, at least some of them, are labelled by one class each."""
    return images.labels is not None and problem_type_of(images) == SINGLE and bool(has_label(images).any())


def check_labels(images: ImageSource, num_labels: int):
    """Checks that every image has a label in [0, num_labels), if images have one class each.

    Args:
        images ([`ImageSource`]): The source.
        num_labels (`int`): Number of classes.

    Raises:
        ValueError: If the images have no labels, or a class is outside the range.
    """
    _check_has_labels(images)
    if np.issubdtype(images.labels.dtype, np.floating):  # several classes an image, or numbers
        return
    wrong = np.flatnonzero((images.labels < 0) | (images.labels >= num_labels))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(images)} labels are not in [0, {num_labels}), first {images.labels[wrong[0]]} of "
            f"{images.describe(wrong[0])}. Remove these images or correct the labels, which count from 0."
        )


@reading_folders_once()
def open_labelled(
    data: str | None,
    label_column: Sequence[str] | None = None,
    problem_type: str | None = None,
    held_out: float = DEFAULT_SHARE,
    group_by: str | None = None,
    **options,
) -> tuple[ImageSource, ImageSource | None]:
    """Returns the labelled images to train and to evaluate on, `None` if there are none to evaluate on.

    Images without a label are left out, and the log says how many. Where no split is there to evaluate on, some images
    are held out, among them all that pre-training holds out for the same or a smaller share.

    Args:
        data (`str`, *optional*): See [`open_images`].
        label_column (`Sequence[str]`, *optional*): Columns with the labels, of a table (see [`read_label_table`]) or,
            one, of a data set.
        problem_type (`str`, *optional*): See [`encode_labels`].
        held_out (`float`, *optional*, defaults to 0.1): Share of the images that are held out, see [`choose_held_out`].
        group_by (`str`, *optional*): Which images stay together, see [`ImageSource.groups`].
        **options: Other arguments of [`open_images`].

    Raises:
        ValueError: If there are no images to train on that have a label, or they can't be divided by `group_by`.
    """
    train_images = open_with_labels(data, "train", label_column, problem_type, **options)
    if train_images is None:
        raise ValueError(f"{data} has images to evaluate on alone, and none to train on. Add a split `train`.")
    found = problem_type_of(train_images)  # raises if there are no labels
    if problem_type is None and found == REGRESSION:
        _warn_of_whole_numbers(train_images)
    problem_type = problem_type or found  # of all splits: ages of 3.5 and 4 years in one, of 4 and 5 in another
    test_images = open_with_labels(data, "test", label_column, problem_type, **options)
    known = has_label(train_images)
    if not known.any():
        raise ValueError(f"None of the {len(train_images)} images of {train_images.name} has a label.")
    _warn_of_unlabelled(train_images)
    if test_images is not None:
        if train_images.label_names:
            label_by_folders(test_images, train_images.label_names, problem_type)
        if has_label(test_images).any():
            for text in check_not_held_out(held_out, group_by, data):
                logger.warning(text)
            _warn_of_unlabelled(test_images)
            return select(train_images, known), select(test_images, has_label(test_images))
        logger.warning(
            f"None of the {len(test_images)} images of {test_images.name} has a label: nothing is evaluated on them."
        )
    align_all_labels(train_images, names_of_labels(train_images))  # also names of those that only one part shows
    train_images.label_names = names_of_labels(train_images)
    train_images, test_images, note = hold_out(train_images, held_out, group_by, counted=known)
    if note:
        logger.warning(note)
    if test_images is not None and problem_type_of(train_images) != REGRESSION:
        _warn_of_missing_classes(train_images, test_images)
    return train_images, test_images


def label_by_folders(images: ImageSource, label_names: list[str], problem_type: str = SINGLE):
    """Labels a folder without labels if folders in it have the names of classes: a single class is not seen as one.

    Args:
        images ([`ImageSource`]): Its `labels` and `label_names` are changed.
        label_names (`list[str]`): Names of the classes, as another split has them.
        problem_type (`str`, *optional*): Kind of the labels of that split. Names of folders are no numbers.
    """
    files = files_of(images)
    if isinstance(files, FolderImages) and not has_label(images).any() and problem_type != REGRESSION:
        files.label_by(label_names)
        if files.labels is not None:
            _set_labels(images, files.labels, files.label_names)
            _encode_classes_as(images, problem_type)


def _encode_classes_as(images: ImageSource, problem_type: str | None):
    """Turns classes, as folders have them, into the kind of labels that is asked for."""
    if problem_type not in (None, SINGLE):
        values = [None if label < 0 else int(label) for label in images.labels]
        images.labels, images.label_names = encode_labels(values, problem_type, names=images.label_names)


def _set_labels(images: ImageSource, labels: np.ndarray, label_names: list[str] | None):
    """Gives images labels that are known for each file."""
    images.labels = labels[images.indices] if isinstance(images, PartsOfImages) else labels
    images.label_names = label_names


def _warn_of_unlabelled(images: ImageSource):
    if missing := int((~has_label(images)).sum()):
        logger.warning(f"{missing} of {len(images)} images of {images.name} have no label and are left out.")


def _warn_of_whole_numbers(images: ImageSource):
    """Says that labels are taken for numbers where they may be classes: pandas writes 1.0 if others are missing."""
    known = images.labels[has_label(images)]
    if len(known) < len(images) and (known == known.round()).all():
        logger.warning(
            f"The labels of {images.name} are whole numbers written as fractions, of which {len(images) - len(known)} "
            "are missing. They are taken for numbers to predict (regression). If they are classes, set `problem_type` "
            "to single_label_classification."
        )


def _warn_of_missing_classes(train_images: ImageSource, test_images: ImageSource):
    """Names the classes of which all images are on one side."""
    names = np.array(train_images.label_names)
    train, test = (
        np.bincount(images.labels, minlength=len(names)) if images.labels.ndim == 1 else images.labels.sum(axis=0)
        for images in (train_images, test_images)
    )
    for here, there, what in ((train, test, "train"), (test, train, "evaluate")):
        if missing := names[(here == 0) & (there > 0)].tolist():
            shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
            logger.warning(
                f"{len(missing)} of {len(names)} classes have no image to {what} on, since the held-out images are "
                f"chosen without a look at their classes: {shown}. Change `held_out`, or make a folder `val` by hand."
            )


def open_with_labels(
    data: str | None,
    split: str,
    label_column: Sequence[str] | None = None,
    problem_type: str | None = None,
    **options,
) -> ImageSource | None:
    """Opens a source of images, labelled by its table, its column or its folders, if it has any.

    Args:
        data (`str`, *optional*): See [`open_images`].
        split (`str`): `train` or `test`.
        label_column, problem_type (*optional*): See [`open_labelled`].
        **options: Other arguments of [`open_images`].
    """
    single = label_column[0] if label_column is not None and len(label_column) == 1 else None
    images = open_images(data, split, label_column=single, problem_type=problem_type, **options)
    if images is None:
        return None
    has_table = read_label_table(images, label_column, problem_type)
    is_class = not has_table and images.labels is not None and images.labels.dtype == np.int64
    if is_class and problem_type == REGRESSION and images.label_names is not None:
        images.labels = images.label_names = None  # folders of patients or days: their names are no numbers
    elif is_class:  # of folders, which know nothing else
        _encode_classes_as(images, problem_type)
    for note in images.notes:
        logger.warning_once(note)
    return images


# ----------------------------------------------------------------------------------------------------------------------
# Numbers of the classes, which are the same in all splits


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
    """Numbers the labels of a source, whatever their kind, so that equal names have equal numbers: it may lack a class.

    Args:
        images ([`ImageSource`]): Its `labels` and `label_names` are changed. Integers without names may be names, see
            [`_name_integers`]; else what has no names stays as it is.
        label_names (`list[str]`): Names in the wanted order.

    Raises:
        ValueError: If it has labels that are not among them.
    """
    if images.labels is None:
        return
    if images.labels.ndim == 1:
        _name_integers(images, label_names)
    if images.label_names in (None, label_names):
        return
    if images.labels.ndim == 2:
        _align_columns(images, label_names)
        return
    present = {images.label_names[label] for label in np.unique(images.labels) if label >= 0}
    if unknown := sorted(present.difference(label_names)):
        raise ValueError(
            f"{images.name} has the classes {', '.join(unknown)}, which are not among the {len(label_names)} of the "
            f"model or the training images: {', '.join(label_names[:20])}{' ...' if len(label_names) > 20 else ''}."
        )
    _renumber_classes(images, label_names)


def forget_other_classes(images: ImageSource, label_names: list[str] | None):
    """Numbers the classes of a source as others do, by their names, and takes unknown classes for no label.

    Args:
        images ([`ImageSource`]): Images with one class each. Its `labels` and `label_names` are changed, if it has
            names.
        label_names (`list[str]`, *optional*): Names in the wanted order.
    """
    if label_names is None:
        return
    _name_integers(images, label_names)
    if images.label_names is not None:
        _renumber_classes(images, label_names)


def _name_integers(images: ImageSource, label_names: list[str]):
    """Takes integers without names for names if one of the wanted names is an integer.

    A column of texts may hold only integers in one of the splits, where it is then read as integers.
    """
    if images.label_names is None and any(re.fullmatch(r"-?\d+", name) for name in label_names):
        found, numbers = np.unique(images.labels, return_inverse=True)
        images.labels = np.where(images.labels < 0, -1, numbers)
        images.label_names = [str(label) for label in found]


def _renumber_classes(images: ImageSource, label_names: list[str]):
    """Numbers classes by their places among the names; one that is not among them becomes no label."""
    numbers = np.array([label_names.index(name) if name in label_names else -1 for name in images.label_names])
    images.labels, images.label_names = np.where(images.labels < 0, -1, numbers[images.labels]), list(label_names)


def _align_columns(images: ImageSource, label_names: list[str]):
    """Puts labels `(images, values)` into the order of the names. A class that a source lacks is 0 for all its images.

    Raises:
        ValueError: If images have classes that are not among the names, or the source lacks numbers.
    """
    present = {name for name, some in zip(images.label_names, np.any(images.labels > 0, axis=0), strict=True) if some}
    if unknown := sorted(present.difference(label_names)):
        raise ValueError(f"{images.name} has labels that the training images or the model lack: {', '.join(unknown)}.")
    missing = [name for name in label_names if name not in images.label_names]
    if missing and problem_type_of(images) == REGRESSION:
        raise ValueError(f"{images.name} lacks the numbers {', '.join(missing)}, which the model or the training has.")
    absent = np.where(has_label(images), 0, np.nan)
    by_name = dict(zip(images.label_names, images.labels.T, strict=True))
    columns = [by_name.get(name, absent) for name in label_names]
    images.labels, images.label_names = np.stack(columns, axis=1).astype(np.float32), list(label_names)


# ----------------------------------------------------------------------------------------------------------------------
# Tables


def read_label_table(
    images: ImageSource, columns: Sequence[str] | None = None, problem_type: str | None = None
) -> bool:
    """Gives a folder of images the labels of a table, one of `TABLES` in it or in the folder above.

    The convention is that of `datasets`' imagefolder: a column `file_name` holds paths below the folder of the table.
    Pages and windows of files have the labels of their files.

    Args:
        images ([`ImageSource`]): The images. Their `labels` and `label_names` are set.
        columns (`Sequence[str]`, *optional*): Columns with the labels. Several columns are one label each: 0 or 1, or
            numbers. Default: `label` or `labels`; a table with one of them counts, and not the names of folders.
        problem_type (`str`, *optional*): Kind of the labels, see [`encode_labels`].

    Returns:
        `bool`: Whether the labels come from a table.

    Raises:
        ValueError: If a named column or the table is not there, or images are not in the table.
    """
    files = files_of(images)
    table = find_table(files.folder) if isinstance(files, FolderImages) else None
    if table is None:
        _check_without_table(files, columns)
        return False
    rows = read_table(table)
    known = columns_of(rows)
    columns = columns or [name for name in LABEL_COLUMNS if name in known][:1]
    if not columns and images.labels is not None:
        return False
    if "file_name" not in known or not columns or not set(columns) <= set(known):
        raise ValueError(
            f"{table} must have the column file_name and {', '.join(columns or ['label'])}, it has {', '.join(known)}. "
            "Call the column of labels label; `label_column` of finetune, probe and evaluate takes other names, too."
        )
    values = values_of_files(table, rows, columns, [files.describe(index) for index in range(len(files))])
    values = [value[0] for value in values] if len(columns) == 1 else values
    if images.labels is not None:
        note = f"Labels are those of the column {', '.join(columns)} of {table}, not the folders' names."
        images.notes = [*images.notes, note]
    _set_labels(images, *encode_labels(values, problem_type, list(columns), table.suffix == ".csv"))
    return True


def _check_without_table(images: ImageSource, columns: Sequence[str] | None):
    """Refuses columns that were named and are not read. Of shards and data sets one column of labels is read."""
    if columns is None:
        return
    if not isinstance(images, DatasetImages | ParquetImages):
        raise ValueError(f"`label_column` needs a table {' or '.join(TABLES)} in {images.name}, there is none.")
    if len(columns) > 1:
        raise ValueError(
            f"`label_column` must be one column of {images.name}, got {', '.join(columns)}. Several are read only of a "
            "table next to the images of a folder."
        )


__all__ = [
    "align_all_labels",
    "check_labels",
    "forget_other_classes",
    "has_classes",
    "has_label",
    "label_by_folders",
    "names_of_labels",
    "number_labels",
    "open_labelled",
    "open_with_labels",
    "problem_type_of",
    "read_label_table",
]
