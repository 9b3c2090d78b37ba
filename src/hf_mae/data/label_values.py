# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Turns values of a column or a table into labels: classes, several classes an image, or numbers."""

import re
from collections.abc import Sequence

import numpy as np

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)
_DIGITS, _INTEGER = re.compile(r"[+-]?\d+"), re.compile(r"[+-]?(0|[1-9]\d*)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def encode_labels(
    values: Sequence,
    problem_type: str | None = None,
    columns: Sequence[str] = ("label",),
    from_text: bool = False,
    names: list[str] | None = None,
) -> tuple[np.ndarray, list[str] | None]:
    """Returns labels as an array, and their names.

    Args:
        values (`Sequence`): One for each image: a text or an integer for its class, a list of those for several
            classes, a float for a number, a list with a value for each column; `None` or an empty text for no label.
            Lists of 0 and 1, all of one length, that hold one of the two twice have a place for each class.
        problem_type (`str`, *optional*): Kind of the labels, one of `single_label_classification`,
            `multi_label_classification` and `regression`. Default: lists are several classes, floats are numbers, all
            else is a class. In texts several classes are separated by `;` or `|`. Lists of numbers are one number for
            each place.
        columns (`Sequence[str]`, *optional*): Names of the columns that the values come from.
        from_text (`bool`, *optional*, defaults to `False`): Whether the values are texts that may mean numbers. Those
            with leading zeros (`01`) are names.
        names (`list[str]`, *optional*): Names of the classes, where integers are their numbers.

    Raises:
        ValueError: If the values are of another kind.
    """
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise ValueError(f"`problem_type` must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}.")
    if len(columns) > 1:
        return _encode_table(values, columns, problem_type)
    values = [None if value is None or value == "" or value != value else value for value in values]
    if from_text and problem_type != REGRESSION:
        values = _numbers_of_texts(values)
    given = [value for value in values if value is not None]
    if problem_type is None:
        several = any(isinstance(value, list | tuple) for value in given)
        problem_type = MULTI if several else REGRESSION if any(isinstance(v, float) for v in given) else SINGLE
    if problem_type == REGRESSION:
        return _encode_numbers(values, columns[0], names)
    if problem_type == MULTI:
        return _encode_several(values, columns[0], names)
    return _encode_classes(values, columns[0], names)


def _numbers_of_texts(values: list) -> list:
    """Returns texts as integers or floats if all of them are such, else as they are."""
    given = [value.strip() for value in values if value is not None]
    numbers = [value for value in given if value.lower() != "nan"]  # as pandas may write a missing value
    if not numbers or not all(map(_NUMBER.fullmatch, numbers)):
        return values
    if all(map(_DIGITS.fullmatch, numbers)) and not all(map(_INTEGER.fullmatch, numbers)):
        return values
    kind = int if all(map(_INTEGER.fullmatch, numbers)) else float
    return [None if value is None or value.strip().lower() == "nan" else kind(value) for value in values]


def _encode_classes(values: list, column: str, names: list[str] | None) -> tuple[np.ndarray, list[str] | None]:
    """Returns the number of each image's class; integers are numbers, else texts are numbered in their order."""
    # Whole floats: what pandas makes of integers when one is missing.
    values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    given = [value for value in values if value is not None]
    wrong = [value for value in given if not isinstance(value, str | int)]
    if wrong:
        raise ValueError(f"A class in {column} must be a text or an integer, got {wrong[0]!r}.")
    if all(isinstance(value, int) for value in given):
        return np.array([-1 if value is None else value for value in values], dtype=np.int64), names
    names = sorted({str(value) for value in given})
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([-1 if value is None else numbers[str(value)] for value in values], dtype=np.int64), names


def _encode_numbers(values: list, column: str, names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Returns a number for each image, or of lists several numbers, which are named by their places."""
    if names is not None:
        raise ValueError(f"{column} holds classes ({', '.join(names[:5])}), not the numbers that `regression` needs.")
    lengths = {len(value) for value in values if isinstance(value, list | tuple)}
    if not lengths:
        return _encode_columns([[value] for value in values], [column])
    if len(lengths) > 1 or any(not isinstance(value, list | tuple | None) for value in values):
        raise ValueError(f"The lists in {column} must all have one length to be numbers, got {sorted(lengths)}.")
    [length] = lengths
    return _encode_columns(values, [f"{column}_{place}" for place in range(length)])


def _encode_table(
    values: Sequence[Sequence], columns: Sequence[str], problem_type: str | None
) -> tuple[np.ndarray, list[str]]:
    """Returns one label for each of several columns: 0 or 1, or a number."""
    if problem_type == SINGLE:
        raise ValueError(
            f"The columns {', '.join(columns)} are several labels, and `single_label_classification` is one "
            "class. Name one column. Only fine-tuning takes several: its `problem_type` is then "
            "multi_label_classification or regression."
        )
    labels, names = _encode_columns(values, columns)
    wrong = labels[~np.isnan(labels) & ~np.isin(labels, (0, 1))]
    if problem_type == MULTI and len(wrong):
        raise ValueError(
            f"The columns {', '.join(columns)} must hold 0 or 1 for `multi_label_classification`, got {wrong[0]:g}."
        )
    return labels, names


def _encode_columns(values: Sequence[Sequence | None], columns: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Returns a number for each column of each image, NaN where there is none, in a cell or in the row."""
    try:
        rows = [[None] * len(columns) if row is None else row for row in values]
        numbers = [[np.nan if value in (None, "") else float(value) for value in row] for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"The columns {', '.join(columns)} must hold numbers: {error}.") from error
    labels = np.array(numbers, dtype=np.float32)
    if np.isinf(labels).any():
        raise ValueError(f"The columns {', '.join(columns)} must hold finite numbers, got one that is infinite.")
    return labels, list(columns)


def _encode_several(values: Sequence, column: str, names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Returns labels of 0 and 1 of lists of classes, of texts that hold such lists, or of single classes."""
    lists = [
        [part.strip() for part in re.split(r"[;|]", value) if part.strip()] if isinstance(value, str) else value
        for value in values
    ]
    lists = [each if each is None or isinstance(each, list | tuple) else [each] for each in lists]
    found = {label for each in lists if each is not None for label in each}
    twice = next((each for each in lists if each is not None and len(set(each)) < len(each)), None)
    if twice is not None and found <= {0, 1}:
        return _encode_places(lists, column, names)
    if fractions := [label for label in found if isinstance(label, float)]:
        raise ValueError(f"A list in {column} names the classes of an image, by texts or integers, got {fractions[0]}.")
    if names is None:
        integers = all(isinstance(label, int) for label in found)
        names = list(map(str, sorted(found))) if integers else sorted(map(str, found))
        numbers = {name: number for number, name in enumerate(names)}
    else:
        numbers = {str(number): number for number in range(len(names))}
    if unknown := sorted(set(map(str, found)).difference(numbers)):
        raise ValueError(f"A list in {column} has the class {unknown[0]}, which is not in [0, {len(names)}).")
    labels = np.zeros((len(lists), len(names)), dtype=np.float32)
    for row, each in zip(labels, lists, strict=True):
        row[...] = np.nan if each is None else 0
        row[[numbers[str(label)] for label in each or ()]] = 1
    return labels, names


def _encode_places(lists: list, column: str, names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Returns labels of lists that say for each class by 0 or 1 whether an image belongs to it."""
    lengths = {len(each) for each in lists if each is not None}
    if len(lengths | {len(names)} if names else lengths) > 1:
        raise ValueError(
            f"Lists of 0 and 1 in {column} with one of them twice have a place for each class, and so one length: got "
            f"{', '.join(map(str, sorted(lengths)))}{f' for {len(names)} classes' if names else ''}."
        )
    [length] = lengths
    return _encode_columns(lists, names or list(map(str, range(length))))


__all__ = ["MULTI", "PROBLEM_TYPES", "REGRESSION", "SINGLE", "encode_labels"]
