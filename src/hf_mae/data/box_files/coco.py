# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads boxes of COCO files."""

import json
import os
from collections import Counter
from operator import itemgetter
from pathlib import Path

from ..folders import folders_of_split
from ..tables import normal_path
from .stated import (
    AnnotatedImages,
    StatedBoxes,
    first_named,
    from_corner_and_size,
    open_files,
    size_of,
    splits_of,
)


def find_coco(root: Path, split: str) -> AnnotatedImages | None:
    """Finds the COCO file of a split: in its folder, in annotations/, or in the folder itself."""
    found = []
    for folder in (*folders_of_split(root, split), root / "annotations", root):
        for file in sorted(folder.glob("*.json")):
            named = splits_of(file.name) or splits_of(folder.name if folder != root else "")
            if (split in named if named else split == "train") and _is_coco(file):
                found.append(file)
    chosen = first_named([file for file in found if file.name.startswith("instances")] or found, split)
    if len(chosen) > 1:
        names = ", ".join(os.path.relpath(file, root) for file in chosen)
        raise ValueError(
            f"{root} has several COCO files to {split} on: {names}. Choose one for each split with `annotations` and "
            "`eval_annotations`."
        )
    return read_coco(chosen[0], root) if chosen else None


def _is_coco(file: Path) -> bool:
    """Returns whether a JSON file names images, annotations and categories, by a look at its first part.

    Raises:
        ValueError: If it names some of these and is cut off, say: without it other boxes, or none, would be taken.
    """
    try:
        with open(file, encoding="utf-8-sig") as stream:
            start = stream.read(1 << 16)
            if not start.lstrip().startswith("{"):
                return False
            keys = ('"images"', '"annotations"', '"categories"')
            if not any(key in start for key in keys):
                return False
            content = start + stream.read()
            if all(key in content for key in keys):
                return True
            json.loads(content)  # which fails if it is cut off
            return False
    except (OSError, UnicodeDecodeError):
        return False
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no whole JSON file: {error}. Repair it, or take it out.") from error


def read_coco(file: Path, root: Path) -> AnnotatedImages:
    """Reads a COCO file. Classes are numbered in the order of their ids, which may have gaps.

    Args:
        file (`Path`): The file.
        root (`Path`): Folder of the images or of the data set.

    Raises:
        OSError: If the file is missing.
        ValueError: If it is no COCO file, or images that it names are not found.
    """
    content = _load_coco(file)
    notes: list[str] = []
    by_name: dict[str, StatedBoxes] = {}
    stated = {}
    for row in content["images"]:
        name = _path_below(root, str(row["file_name"]), file)
        boxes = StatedBoxes(f"{file.name}: {row['file_name']}", size=size_of(row.get("width"), row.get("height")))
        stated[row["id"]] = by_name.setdefault(name, boxes)  # an image may be listed twice, with some boxes each time
    images, names = open_files(_folder_of_images(file, root, list(by_name)), by_name, notes)
    lost = 0
    for annotation in content["annotations"]:
        of_image = stated.get(annotation.get("image_id"))
        lost += of_image is None
        if of_image is not None:
            box, label = from_corner_and_size(annotation.get("bbox") or ()), annotation.get("category_id")
            of_image.add(box, -1 if label is None else label, bool(annotation.get("iscrowd", 0)))
    if lost:
        notes.append(f"{lost:,} boxes of {file} belong to no image of the file: left out.")
    if missing := len(by_name) - len(names):
        notes.append(f"{missing:,} images of {file} are of a kind that is not read: left out.")
    categories = sorted(content["categories"], key=itemgetter("id"))
    classes = {row["id"]: str(row.get("name", row["id"])) for row in categories}
    return AnnotatedImages(images, [by_name[name] for name in names], classes, f"COCO ({file.name})", notes)


def _path_below(root: Path, name: str, file: Path) -> str:
    """Returns the path of an image as it is compared: with `/`, and below the folder of the data if it is absolute."""
    path = normal_path(name)
    if not os.path.isabs(path):
        return path
    if not Path(path).is_relative_to(root.absolute()):
        raise ValueError(f"{file} names the image {name}, which is not in {root}. Name images by paths below `data`.")
    return os.path.relpath(path, root.absolute())


def _load_coco(file: Path) -> dict:
    if not file.is_file():
        raise OSError(f"`annotations` {file} does not exist. Give a COCO file, such as instances_train.json.")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        [(row["id"], row["file_name"]) for row in content["images"]]
        [row["id"] for row in content["categories"]]
        list(content["annotations"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no COCO file ({type(error).__name__}: {error}). Expected a JSON object with images (id, "
            "file_name), categories (id, name) and annotations (image_id, category_id, bbox)."
        ) from error
    if not content["images"]:
        raise ValueError(f"{file} lists no images.")
    for kind in ("images", "categories"):
        twice = [number for number, count in Counter(row["id"] for row in content[kind]).items() if count > 1]
        if twice:
            raise ValueError(f"{file} has several {kind} of the id {twice[0]}. Every one needs another id.")
    if len({isinstance(row["id"], str) for row in content["categories"]}) > 1:
        raise ValueError(f"{file} has categories whose ids are texts, and others whose are numbers. Make them alike.")
    return content


def _folder_of_images(file: Path, root: Path, names: list[str]) -> Path:
    """Returns the folder below which the images of a COCO file lie.

    Raises:
        ValueError: If no folder holds all of them.
    """
    tops = [file.parent, root, root / "images", *([file.parent.parent] if file.parent.name == "annotations" else [])]
    below = [path for top in tops if top.is_dir() for path in sorted(top.iterdir()) if path.is_dir()]
    folders = list(dict.fromkeys([top for top in tops if top.is_dir()] + below + [path / "images" for path in below]))
    few, named = names[:50], splits_of(file.name) or splits_of("" if file.parent == root else file.parent.name)

    def fit(folder: Path) -> tuple[int, bool, bool]:
        """How many images it holds, whether the file lies there, and whether it is called after the file's split."""
        count = sum((folder / name).is_file() for name in few)
        return count, folder == file.parent, bool(named & splits_of(os.path.relpath(folder, root)))

    fits = {folder: fit(folder) for folder in folders}
    best = max(folders, key=fits.__getitem__)
    missing = [name for name in names if not (best / name).is_file()]
    if missing:
        raise ValueError(
            f"{len(missing):,} of {len(names):,} images of {file} are not in {best}, first {missing[0]}. `data` must "
            "be the folder of the images, or the one above it."
        )
    if alike := [folder for folder in folders if folder != best and fits[folder] == fits[best]]:
        raise ValueError(
            f"The images of {file} are in {best} and in {alike[0]}. Call the file after its split, such as "
            "instances_train.json, or put it into the folder of its images."
        )
    return best


__all__ = ["find_coco", "read_coco"]
