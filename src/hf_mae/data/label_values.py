# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Turns values of a column or a table into labels: classes, several classes an image, or numbers."""

import re
from collections.abc import Sequence

import numpy as np

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)


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
        problem_type (`str`, *optional*): Kind of the labels, one of `single_label_classification`,
            `multi_label_classification` and `regression`. Default: lists are several classes, floats are numbers, all
            else is a class. In texts several classes are separated by `;` or `|`.
        columns (`Sequence[str]`, *optional*): Names of the columns that the values come from.
        from_text (`bool`, *optional*, defaults to `False`): Whether the values are texts that may mean numbers.
        names (`list[str]`, *optional*): Names of the classes, where integers are their numbers.

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
        return _encode_several(values, names)
    wrong = [value for value in given if not isinstance(value, str | int)]
    if wrong:
        raise ValueError(f"A class in {', '.join(columns)} must be a text or an integer, got {wrong[0]!r}.")
    if all(isinstance(value, int) for value in given):
        return np.array([-1 if value is None else value for value in values], dtype=np.int64), names
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


def _encode_several(values: Sequence, names: list[str] | None) -> tuple[np.ndarray, list[str]]:
    lists = [
        [part.strip() for part in re.split(r"[;|]", value) if part.strip()] if isinstance(value, str) else value
        for value in values
    ]
    lists = [each if each is None or isinstance(each, list | tuple) else [each] for each in lists]
    found = {label for each in lists if each is not None for label in each}
    if names is None:
        names = (
            list(map(str, sorted(found))) if all(isinstance(each, int) for each in found) else sorted(map(str, found))
        )
        numbers = {name: number for number, name in enumerate(names)}
    else:
        numbers = {str(number): number for number in range(len(names))}
    labels = np.zeros((len(lists), len(names)), dtype=np.float32)
    for row, each in zip(labels, lists, strict=True):
        row[...] = np.nan if each is None else 0
        row[[numbers[str(label)] for label in each or ()]] = 1
    return labels, names


__all__ = ["MULTI", "PROBLEM_TYPES", "REGRESSION", "SINGLE", "encode_labels"]
