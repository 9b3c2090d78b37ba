# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads boxes of Pascal VOC files: an XML file for each image, and lists of splits."""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..folders import TEST, TRAIN, folders_of_split
from .stated import NOT_A_BOX, AnnotatedImages, StatedBoxes, floats, images_below, lines_of, open_files, size_of


def find_voc(root: Path, split: str) -> AnnotatedImages | None:
    """Finds the XML files of a split: in its folder, or in Annotations/ with lists in ImageSets/Main/."""
    inside = folders_of_split(root, split)
    folders = [place / name for place in (*inside, root) for name in ("Annotations", "annotations")] + inside
    for folder in [*folders, root] if split == "train" else folders:
        files = sorted(folder.glob("*.xml"))
        if not any(_is_voc(file) for file in files[:20]):  # of which some may be broken
            continue
        top = folder.parent if folder.name.lower() == "annotations" else folder
        chosen = _voc_chosen(top, files, split)
        if chosen is None and split == "val" and top == root:  # all are to train on
            continue
        files = [file for file in files if chosen is None or file in chosen]
        return read_voc(files, [top / name for name in ("JPEGImages", "images", "")])
    return None


def _voc_chosen(top: Path, files: Sequence[Path], split: str) -> set[Path] | None:
    """Returns the files of a split by the lists in ImageSets/Main/, `None` if these say nothing of it."""
    held_out = _voc_listed(top, files, TEST)
    if split == "val":
        return held_out
    chosen = _voc_listed(top, files, (*TRAIN, "trainval"))
    if held_out is None:
        return chosen
    return (set(files) if chosen is None else chosen) - held_out  # trainval.txt holds both


def _voc_listed(top: Path, files: Sequence[Path], names: Iterable[str]) -> set[Path] | None:
    """Returns the files that the first list of some names in ImageSets/Main/ holds, `None` if there is none."""
    lists = (top / "ImageSets" / "Main" / f"{name}.txt" for name in names)
    listed = next((file for file in lists if file.is_file()), None)
    if listed is None:
        return None
    by_stem = {file.stem: file for file in files}
    found = set()
    for line in lines_of(listed):  # mostly a stem; some have an ending, blanks, or another column
        forms = (line, Path(line).stem, line.split()[0], Path(line.split()[0]).stem)
        found |= {by_stem[form] for form in forms if form in by_stem}
    if not found:
        raise ValueError(
            f"{listed} names none of the {len(files):,} files in {files[0].parent}, but {lines_of(listed)[:1]}."
        )
    return found


def _is_voc(file: Path) -> bool:
    try:
        return ElementTree.parse(file).getroot().tag == "annotation"
    except (ElementTree.ParseError, ValueError, LookupError):
        return False


def read_voc(files: Sequence[Path], folders: Sequence[Path]) -> AnnotatedImages:
    """Reads Pascal VOC files: corners of boxes in pixels that count from 1, names of classes.

    Pixel 1 begins at 0, and the last pixel of a box belongs to it: so 1 to `width` is the whole picture. Objects marked
    as difficult do not count.

    Args:
        files (`Sequence[Path]`): The XML files, one for each image.
        folders (`Sequence[Path]`): Where the images may be.

    Raises:
        ValueError: If a file can't be read, or an image is missing.
    """
    folder = next(folder for folder in folders if folder.is_dir())
    by_stem: dict[str, list[str]] = {}
    for name in images_below(folder):
        by_stem.setdefault(Path(name).stem, []).append(name)
    notes: list[str] = []
    stated, missing = {}, []
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two for an unknown encoding
            raise ValueError(f"{file} can't be read as XML: {error}. Mend it or take it out.") from error
        filename = root.findtext("filename") or ""
        names = by_stem.get(file.stem) or by_stem.get(Path(filename).stem) or []
        names = [name for name in names if name == filename or name.endswith(f"/{filename}")] or names
        if not names:
            missing.append(file)
            continue
        if len(names) > 1 or names[0] in stated:
            raise ValueError(f"{file} does not tell which image it is of, or is not the only one: {', '.join(names)}.")
        stated[names[0]] = _voc_boxes(file, root)
    if missing:
        raise ValueError(
            f"{len(missing):,} of {len(files):,} images are not in {folder}, first that of {missing[0]}. Add the "
            "images, or take these files out."
        )
    if unused := sum(map(len, by_stem.values())) - len(stated):
        notes.append(f"{unused:,} images in {folder} belong to no file that was read: left out.")
    images, names = open_files(folder, stated, notes)
    return AnnotatedImages(images, [stated[name] for name in names], None, "Pascal VOC", notes)


def _voc_boxes(file: Path, root: ElementTree.Element) -> StatedBoxes:
    stated = StatedBoxes(os.fspath(file), size=size_of(root.findtext("size/width"), root.findtext("size/height")))
    for thing in root.iter("object"):
        corners = floats(thing.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax"))
        left, top, right, bottom = corners if len(corners) == 4 else NOT_A_BOX
        difficult = (thing.findtext("difficult") or "0").strip() == "1"
        stated.add((left - 1, top - 1, right, bottom), (thing.findtext("name") or "").strip(), difficult)
    return stated


__all__ = ["find_voc", "read_voc"]
