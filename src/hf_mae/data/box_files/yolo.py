# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads boxes of YOLO files: a text file for each image, and data.yaml."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..folders import WORDS_OF_SPLITS, folders_of_split
from .stated import (
    NOT_A_BOX,
    AnnotatedImages,
    Label,
    StatedBoxes,
    first_named,
    floats,
    images_below,
    lines_of,
    open_files,
    splits_of,
)


def find_yolo(root: Path, split: str) -> AnnotatedImages | None:
    """Finds the images and labels of a split, and the names of classes in data.yaml."""
    settings = _yolo_settings(root)
    places = _yolo_places(root, split, settings)
    if not places or not (settings or any(file for place in places for file in _labels_of(place).rglob("*.txt"))):
        return None
    return read_yolo(places, _yolo_names(root, settings), bool(settings.get("kpt_shape")))


def _yolo_settings(root: Path) -> dict:
    """Returns the content of data.yaml or of the one file like it, all in texts, empty if there is none."""
    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")], key=lambda file: (file.stem != "data", file.name)):
        try:
            # Not the usual loader, for which a class called `no` is `False`.
            content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} can't be read as YAML: {error}") from error
        if isinstance(content, dict) and "names" in content:
            return content
    return {}


def _yolo_names(root: Path, settings: dict) -> dict[Label, str] | None:
    """Returns the names of classes by number: of a list, of a table in either direction, or of a file of lines."""
    stated = settings.get("names")
    if not stated:
        return None
    if isinstance(stated, str):
        if not (root / stated).is_file():
            raise ValueError(f"data.yaml in {root} says that the names of classes are in {stated}, which is not there.")
        stated = lines_of(root / stated)
    numbered = dict(stated) if isinstance(stated, dict) else {str(number): name for number, name in enumerate(stated)}
    if not all(map(str.isdecimal, numbered)):
        numbered = {str(number): name for name, number in numbered.items()}
    if not all(map(str.isdecimal, numbered)):
        raise ValueError(f"data.yaml in {root} must name the classes as a list, or by their numbers, got {stated}.")
    return {int(number): str(numbered[number]) for number in sorted(numbered, key=int)}


def _yolo_places(root: Path, split: str, settings: dict) -> list[Path]:
    """Returns the folders of the images of a split, or files that list them.

    They are what data.yaml says, else what is called after the split, else all images if nothing tells splits.

    Raises:
        ValueError: If data.yaml names something that is not there. Other images would be taken for those of the split.
    """
    name = next((name for name in WORDS_OF_SPLITS[split] if settings.get(name)), None)
    if name is not None:
        stated = settings[name] if isinstance(settings[name], list) else [settings[name]]
        places = [_yolo_place(root, settings, text) for text in stated]
        if None in places:
            raise ValueError(
                f"data.yaml in {root} names {stated[places.index(None)]} for {name}, which is not there. Correct it, "
                "or take the line out."
            )
        return [place for place in places if place is not None]
    if found := [path / "images" for path in folders_of_split(root, split) if (path / "images").is_dir()]:
        return found[:1]
    below = sorted(path for path in (root / "images").glob("*") if path.is_dir() and splits_of(path.name))
    if below:
        return first_named([path for path in below if split in splits_of(path.name)], split)
    return [root / "images"] if split == "train" and (root / "images").is_dir() else []


def _yolo_place(root: Path, settings: dict, stated: str) -> Path | None:
    """Returns where a path of data.yaml is, which often was written for another place."""
    parts = [part for part in Path(stated).parts if part not in ("..", ".", "/")]
    places = [root / (settings.get("path") or "") / stated, root.joinpath(*parts)]  # an absolute path stays as it is
    return next((place for place in places if place.is_dir() or place.suffix == ".txt" and place.is_file()), None)


def _yolo_label(image: Path) -> Path:
    """Returns the file of an image: `labels` in place of the last `images` of its path, else beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
        if Path(*parts).parent.is_dir():
            return Path(*parts).with_suffix(".txt")
    return image.with_suffix(".txt")


def _labels_of(folder: Path) -> Path:
    """Returns the folder of the files of labels of a folder of images."""
    return _yolo_label(folder / "image").parent


def _yolo_images(place: Path) -> list[Path]:
    """Returns the images of a folder, or those that a file lists, by paths from there or from the root."""
    if place.is_dir():
        return [place / name for name in images_below(place)]
    lines = lines_of(place)
    if missing := [line for line in lines if not (place.parent / line).is_file()]:
        raise ValueError(f"{place} lists {missing[0]}, which is not there. Lists have paths from their folder.")
    return [place.parent / line for line in lines]


def read_yolo(places: Sequence[Path], names: dict[Label, str] | None, pose: bool = False) -> AnnotatedImages:
    """Reads YOLO files: a line for each object, its class and centre, width and height as shares of the sides.

    More than four numbers are a polygon, which becomes the box around it. An image without a file has no object.

    Args:
        places (`Sequence[Path]`): Folders of the images, or files that list them.
        names (`dict[int | str, str]`, *optional*): Names of the classes.
        pose (`bool`, *optional*, defaults to `False`): Whether points of a pose follow the box.
    """
    notes: list[str] = []
    found = [Path(os.path.normpath(image)) for place in places for image in _yolo_images(place)]
    tops = [place for place in places if place.is_dir()] or [image.parent for image in found]
    folder = Path(os.path.commonpath(tops))
    images, paths = open_files(folder, {os.path.relpath(image, folder) for image in found}, notes)
    used, stated, without = set(), [], 0
    for path in paths:
        file = _yolo_label(folder / path)
        boxes = StatedBoxes(os.fspath(file), relative=True)
        if file.is_file():
            used.add(file)
            for line in lines_of(file):
                boxes.add(*_yolo_line(line, pose))
        else:
            without += 1
        stated.append(boxes)
    if without:
        notes.append(f"{without:,} of {len(paths):,} images in {folder} have no file of labels: no object is there.")
    folders = {_labels_of(place) for place in places if place.is_dir()}
    files = {file for labels in folders for file in labels.rglob("*.txt")}
    if unused := files - used - {labels / "classes.txt" for labels in folders}:
        notes.append(f"{len(unused):,} files of labels belong to no image, first {min(unused)}: left out.")
    return AnnotatedImages(images, stated, names, "YOLO", notes)


def _yolo_line(line: str, pose: bool) -> tuple[tuple[float, ...], Label]:
    """Returns box and class of a line: class, then centre, width and height, or the points of a polygon."""
    label, *rest = line.split()
    numbers = floats(rest)
    number: Label = int(label) if re.fullmatch(r"[+-]?\d+", label) else label
    if len(numbers) == 5 or (pose and len(numbers) > 4):  # with the confidence of a prediction, or with points
        numbers = numbers[:4]
    if len(numbers) == 4:
        x, y, width, height = numbers
        return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), number
    if len(numbers) < 6 or len(numbers) % 2:
        return NOT_A_BOX, number
    columns, rows = numbers[::2], numbers[1::2]
    return (min(columns), min(rows), max(columns), max(rows)), number


__all__ = ["find_yolo", "read_yolo"]
