# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What annotations state about images, whatever the format, and what their readers share."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..folders import WORDS_OF_SPLITS, FolderImages, is_image, walk
from ..image_source import ImageSource

NOT_A_BOX = (math.nan,) * 4

Label = int | str


@dataclass
class StatedBoxes:
    """Holds what an annotation states about one image.

    Attributes:
        file (`str`): Where it is stated, for messages.
        boxes (`list[tuple[float, ...]]`): Left, top, right and bottom of each box, from the left upper corner of the
            image, NaN where the file states no numbers.
        labels (`list[int | str]`): Class of each box, as the file calls it.
        crowd (`list[bool]`): Whether a box does not count: a crowd, or an object marked as difficult.
        size (`(width, height)`, *optional*): Pixels of the image, if the annotation states them.
        relative (`bool`): Whether boxes are shares of the sides of the image and not pixels.
    """

    file: str
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    size: tuple[int, int] | None = None
    relative: bool = False

    def add(self, box: tuple[float, ...], label: Label, crowd: bool = False):
        """Adds one box."""
        self.boxes.append(box)
        self.labels.append(label)
        self.crowd.append(crowd)


@dataclass
class AnnotatedImages:
    """Holds the images of one split and what is stated about each.

    Attributes:
        images ([`ImageSource`]): The images.
        stated (`list[StatedBoxes]`): One for each image.
        names (`dict[int | str, str]`, *optional*): Name of each class, by what the files call it, in the order of the
            classes. `None` if nothing lists the classes.
        kind (`str`): The format that was found.
        notes (`list[str]`): What was left out, to be printed.
    """

    images: ImageSource
    stated: list[StatedBoxes]
    names: dict[Label, str] | None
    kind: str
    notes: list[str] = field(default_factory=list)


def floats(values: Iterable) -> tuple[float, ...]:
    """Returns numbers, or NaN if one is none."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return NOT_A_BOX
    return numbers if numbers else NOT_A_BOX


def from_corner_and_size(values: Iterable) -> tuple[float, ...]:
    """Returns left, top, right and bottom of a box given as left, top, width and height."""
    numbers = floats(values)
    if len(numbers) != 4:
        return NOT_A_BOX
    left, top, width, height = numbers
    return left, top, left + width, top + height


def splits_of(name: str) -> set[str]:
    """Returns the splits that the words of a file's or folder's name tell."""
    return {split for split, names in WORDS_OF_SPLITS.items() if _words(name).intersection(names)}


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


def first_named(paths: Sequence[Path], split: str) -> list[Path]:
    """Returns the paths that the first of a split's words names: those of `val`, not of `test`, if there are both."""
    for word in WORDS_OF_SPLITS[split]:
        if found := [path for path in paths if word in _words(path.name) | _words(path.parent.name)]:
            return found
    return list(paths)


def size_of(width, height) -> tuple[int, int] | None:
    """Returns the size that an annotation states, `None` if it states none; some programs write 0."""
    sides = floats([width, height])
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 and min(sides) > 0 else None


def open_files(folder: Path, names: Iterable[str], notes: list[str]) -> tuple[ImageSource, list[str]]:
    """Opens files of a folder, and returns the source and the name of each of its images below the folder."""
    listing: dict[str, list[str]] = {}
    for name in sorted(names):
        directory, _, file = name.rpartition("/")
        listing.setdefault(directory, []).append(file)
    images = FolderImages(folder, list(listing.items()), labels="none")
    notes.extend(images.notes)
    return images, [os.path.relpath(images.describe(i), folder).replace(os.sep, "/") for i in range(len(images))]


def images_below(folder: Path) -> list[str]:
    """Returns the paths of all images below a folder, relative to it."""
    return [
        f"{directory}/{name}".lstrip("/").replace(os.sep, "/")
        for directory, names in walk(os.fspath(folder))
        for name in names
        if is_image(name)
    ]


def lines_of(file: Path) -> list[str]:
    """Returns the lines of a file that are not empty, without blanks at their ends."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error}). Save it in that encoding.") from error


__all__ = [
    "NOT_A_BOX",
    "AnnotatedImages",
    "Label",
    "StatedBoxes",
    "first_named",
    "floats",
    "from_corner_and_size",
    "images_below",
    "lines_of",
    "open_files",
    "size_of",
    "splits_of",
]
