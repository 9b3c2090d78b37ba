# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads boxes as their files state them: COCO, YOLO, Pascal VOC, a column of a table or of a data set."""

import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .folders import FolderImages, is_image, walk
from .image_source import ImageSource
from .masks import SPLITS
from .shards import DatasetImages, ParquetImages
from .sources import open_images
from .tables import find_table, read_table, values_of_files

_CROWD = ("iscrowd", "is_crowd", "crowd", "difficult")  # boxes that do not count
_CATEGORIES = ("category", "categories", "label", "labels", "class", "category_id")
_NOT_A_BOX = (math.nan,) * 4

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


def open_annotated(
    data: str,
    split: str,
    annotations: str | None = None,
    objects_column: str = "objects",
    box_format: str = "xywh",
    image_column: str | None = None,
    dataset_config: str | None = None,
) -> AnnotatedImages | None:
    """Opens images and reads their boxes, in the format that is found. No image is decoded.

    Args:
        data (`str`): A folder, parquet files, or a data set on the Hub.
        split (`str`): `train` or `val`.
        annotations (`str`, *optional*): COCO file of the images in `data`, instead of a look for one.
        objects_column (`str`, *optional*, defaults to `"objects"`): Column with the boxes, of data sets and tables.
        box_format (`str`, *optional*, defaults to `"xywh"`): What the numbers in that column are: `"xywh"` (left, top,
            width, height) or `"xyxy"` (left, top, right, bottom).
        image_column, dataset_config (*optional*): See [`open_images`].

    Returns:
        [`AnnotatedImages`], or `None` if there is no such split.

    Raises:
        OSError: If a file can't be found or read.
        ValueError: If no boxes are found, or several files could be meant.
    """
    root = Path(data)
    column = (objects_column, box_format)
    if annotations is not None:
        return read_coco(Path(annotations), root)
    if root.is_dir():
        found = _find_coco(root, split) or _find_yolo(root, split) or _find_voc(root, split)
        if found is not None:
            return found
        if _is_table_of_boxes(root, objects_column):
            return _open_table(root, split, *column)
        if split == "val" and any(find(root, "train") for find in (_find_coco, _find_yolo, _find_voc)):
            return None
    images = open_images(
        data,
        "train" if split == "train" else "test",
        image_column=image_column,
        dataset_config=dataset_config,
        labels="none",
    )
    if images is None:
        return None
    if not isinstance(images, ParquetImages | DatasetImages):
        raise ValueError(
            f"Found no boxes in {data}. Expected a COCO file (.json with images, annotations and categories), YOLO "
            "files (images/ and labels/), Pascal VOC files (Annotations/*.xml), or metadata.jsonl with a column "
            f"{objects_column!r}. A COCO file that lies elsewhere is named by `annotations`."
        )
    return _read_column(images, *column)


def _floats(values: Iterable) -> tuple[float, ...]:
    """Returns numbers, or NaN if one is none."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return _NOT_A_BOX
    return numbers if numbers else _NOT_A_BOX


def _from_corner_and_size(values: Iterable) -> tuple[float, ...]:
    """Returns left, top, right and bottom of a box given as left, top, width and height."""
    numbers = _floats(values)
    if len(numbers) != 4:
        return _NOT_A_BOX
    left, top, width, height = numbers
    return left, top, left + width, top + height


def _splits_of(name: str) -> set[str]:
    """Returns the splits that the words of a file's or folder's name tell."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return {split for split, names in SPLITS.items() if words.intersection(names)}


def _folder_images(folder: Path, names: Iterable[str], notes: list[str]) -> tuple[ImageSource, list[str]]:
    """Opens files of a folder, and returns the source and the name of each of its images below the folder."""
    listing: dict[str, list[str]] = {}
    for name in sorted(names):
        directory, _, file = name.rpartition("/")
        listing.setdefault(directory, []).append(file)
    images = FolderImages(folder, list(listing.items()), labels="none")
    notes.extend(images.notes)
    return images, [os.path.relpath(images.describe(i), folder).replace(os.sep, "/") for i in range(len(images))]


def _images_below(folder: Path) -> list[str]:
    """Returns the paths of all images below a folder, relative to it."""
    return [
        f"{directory}/{name}".lstrip("/").replace(os.sep, "/")
        for directory, names in walk(os.fspath(folder))
        for name in names
        if is_image(name)
    ]


# ----------------------------------------------------------------------------------------------------------------------
# COCO


def _find_coco(root: Path, split: str) -> AnnotatedImages | None:
    """Finds the COCO file of a split: in its folder, in annotations/, or in the folder itself."""
    found = []
    inside = [root / name for name in SPLITS[split] if (root / name).is_dir()]
    for folder in (*inside, *sorted(root.glob("*2017")), root / "annotations", root):
        for file in sorted(folder.glob("*.json")):
            told = _splits_of(file.name) or _splits_of(folder.name if folder != root else "")
            if (split in told if told else split == "train") and _is_coco(file):
                found.append(file)
    chosen = [file for file in found if file.name.startswith("instances")] or found
    if len(chosen) > 1:
        names = ", ".join(os.path.relpath(file, root) for file in chosen)
        raise ValueError(f"{root} has several COCO files to {split} on: {names}. Choose one with `annotations`.")
    return read_coco(chosen[0], root) if chosen else None


def _is_coco(file: Path) -> bool:
    """Returns whether a JSON file names images, annotations and categories, by a look at its first part."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            start = stream.read(1 << 16)
            if not start.lstrip().startswith("{"):
                return False
            keys = ('"images"', '"annotations"', '"categories"')
            return sum(key in start for key in keys) > 0 and all(key in start + stream.read() for key in keys)
    except (OSError, UnicodeDecodeError):
        return False


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
    rows = {row["id"]: row for row in content["images"]}
    folder = _folder_of_images(file, root, [str(row["file_name"]) for row in rows.values()])
    images, names = _folder_images(folder, {str(row["file_name"]) for row in rows.values()}, notes)
    by_name = {os.path.normpath(str(row["file_name"])): row for row in rows.values()}
    stated = {}
    for row in rows.values():
        sides = row.get("width"), row.get("height")
        stated[row["id"]] = StatedBoxes(f"{file.name}: {row['file_name']}", size=sides if all(sides) else None)
    lost = 0
    for annotation in content["annotations"]:
        of_image = stated.get(annotation.get("image_id"))
        lost += of_image is None
        if of_image is not None:
            box = _from_corner_and_size(annotation.get("bbox") or ())
            of_image.add(box, annotation.get("category_id", -1), bool(annotation.get("iscrowd", 0)))
    if lost:
        notes.append(f"{lost:,} boxes of {file} belong to no image of the file: left out.")
    if missing := len(by_name) - len(names):
        notes.append(f"{missing:,} images of {file} are of a kind that is not read: left out.")
    classes = {row["id"]: str(row.get("name", row["id"])) for row in sorted(content["categories"], key=_category_id)}
    in_order = [stated[by_name[os.path.normpath(name)]["id"]] for name in names]
    return AnnotatedImages(images, in_order, classes, f"COCO ({file.name})", notes)


def _category_id(row: dict) -> int:
    return row["id"]


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
    return content


def _folder_of_images(file: Path, root: Path, names: list[str]) -> Path:
    """Returns the folder below which the images of a COCO file lie.

    Raises:
        ValueError: If no folder holds all of them.
    """
    tops = [file.parent, root, root / "images", *([file.parent.parent] if file.parent.name == "annotations" else [])]
    below = [path for top in tops if top.is_dir() for path in sorted(top.iterdir()) if path.is_dir()]
    folders = list(dict.fromkeys([top for top in tops if top.is_dir()] + below + [path / "images" for path in below]))
    few = names[:50]
    counts = [sum((folder / name).is_file() for name in few) for folder in folders]
    best = max(range(len(folders)), key=counts.__getitem__)
    missing = [name for name in names if not (folders[best] / name).is_file()]
    if missing:
        raise ValueError(
            f"{len(missing):,} of {len(names):,} images of {file} are not in {folders[best]}, first {missing[0]}. "
            "`data` must be the folder of the images, or the one above it."
        )
    return folders[best]


# ----------------------------------------------------------------------------------------------------------------------
# YOLO


def _find_yolo(root: Path, split: str) -> AnnotatedImages | None:
    """Finds the images and labels of a split, and the names of classes in data.yaml."""
    settings = _yolo_settings(root)
    folder = _yolo_folder(root, split, settings)
    if folder is None:
        return None
    labels = _yolo_labels(folder)
    if not settings and not any(labels.rglob("*.txt")):
        return None
    stated = settings.get("names")
    if stated is None:
        return read_yolo(folder, labels, None)
    numbered = dict(stated) if isinstance(stated, dict) else dict(enumerate(stated))
    return read_yolo(folder, labels, {int(number): str(numbered[number]) for number in sorted(numbered, key=int)})


def _yolo_settings(root: Path) -> dict:
    """Returns the content of data.yaml or of the one file like it, empty if there is none."""
    for file in sorted([*root.glob("*.yaml"), *root.glob("*.yml")], key=lambda file: (file.stem != "data", file.name)):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} can't be read as YAML: {error}") from error
        if isinstance(content, dict) and "names" in content:
            return content
    return {}


def _yolo_folder(root: Path, split: str, settings: dict) -> Path | None:
    """Returns the folder with the images of a split."""
    candidates = []
    for name in SPLITS[split]:
        stated = settings.get(name)
        if isinstance(stated, str):  # often written for another place: only what follows `..` and the root is used
            parts = [part for part in Path(stated).parts if part not in ("..", ".", "/")]
            candidates += [Path(stated)] * Path(stated).is_absolute()
            candidates += [root / str(settings.get("path") or "") / stated, root.joinpath(*parts)]
        candidates += [root / name / "images", root / "images" / name]
    if split == "train":
        candidates.append(root / "images")
    return next((folder for folder in candidates if folder.is_dir() and _yolo_labels(folder).is_dir()), None)


def _yolo_labels(folder: Path) -> Path:
    """Returns the folder of labels of one with images: `labels` in place of the last `images`, or the same folder."""
    parts = list(folder.parts)
    places = [place for place, part in enumerate(parts) if part == "images"]
    if not places:
        return folder
    parts[places[-1]] = "labels"
    return Path(*parts) if Path(*parts).is_dir() else folder


def read_yolo(folder: Path, labels: Path, names: dict[Label, str] | None) -> AnnotatedImages:
    """Reads YOLO files: a line for each object, its class and centre, width and height as shares of the sides.

    More than four numbers are a polygon, which becomes the box around it. An image without a file has no object.

    Args:
        folder (`Path`): Folder of the images.
        labels (`Path`): Folder of the files.
        names (`dict[int | str, str]`, *optional*): Names of the classes.
    """
    notes: list[str] = []
    images, paths = _folder_images(folder, _images_below(folder), notes)
    used, stated, without = set(), [], 0
    for path in paths:
        file = (labels / path).with_suffix(".txt")
        boxes = StatedBoxes(os.fspath(file), relative=True)
        if file.is_file():
            used.add(file)
            for line in file.read_text(encoding="utf-8-sig").splitlines():
                if line.strip():
                    boxes.add(*_yolo_line(line))
        else:
            without += 1
        stated.append(boxes)
    if without:
        notes.append(f"{without:,} of {len(paths):,} images in {folder} have no file in {labels}: no object is there.")
    unused = set(labels.rglob("*.txt")).difference(used) - {labels / "classes.txt"}
    if unused:
        notes.append(f"{len(unused):,} files in {labels} belong to no image, first {min(unused)}: left out.")
    return AnnotatedImages(images, stated, names, "YOLO", notes)


def _yolo_line(line: str) -> tuple[tuple[float, ...], Label]:
    """Returns box and class of a line: class, then centre, width and height, or the points of a polygon."""
    label, *rest = line.split()
    numbers = _floats(rest)
    number: Label = int(label) if re.fullmatch(r"[+-]?\d+", label) else label
    if len(numbers) == 5:  # the box and a confidence, as programs write that predict
        numbers = numbers[:4]
    if len(numbers) == 4:
        x, y, width, height = numbers
        return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), number
    if len(numbers) < 6 or len(numbers) % 2:
        return _NOT_A_BOX, number
    columns, rows = numbers[::2], numbers[1::2]
    return (min(columns), min(rows), max(columns), max(rows)), number


# ----------------------------------------------------------------------------------------------------------------------
# Pascal VOC


def _find_voc(root: Path, split: str) -> AnnotatedImages | None:
    """Finds the XML files of a split: in its folder, or in Annotations/ with lists in ImageSets/Main/."""
    inside = [root / name for name in SPLITS[split] if (root / name).is_dir()]
    whole = [root] * (split == "train")
    for folder in (
        [place / name for place in (*inside, root) for name in ("Annotations", "annotations")] + inside + whole
    ):
        files = sorted(folder.glob("*.xml"))
        if not files or not _is_voc(files[0]):
            continue
        top = folder.parent if folder.name.lower() == "annotations" else folder
        lists = {name: top / "ImageSets" / "Main" / f"{name}.txt" for name in SPLITS[split]}
        listed = next((file for file in lists.values() if file.is_file()), None)
        if listed is not None:
            chosen = {line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()}
            files = [file for file in files if file.stem in chosen]
        elif split == "val" and top == root:
            continue
        return read_voc(files, [top / name for name in ("JPEGImages", "images", "")])
    return None


def _is_voc(file: Path) -> bool:
    try:
        return ElementTree.parse(file).getroot().tag == "annotation"
    except ElementTree.ParseError:
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
    by_stem = {Path(name).stem: name for name in _images_below(folder)}
    notes: list[str] = []
    stated, missing = {}, []
    for file in files:
        try:
            root = ElementTree.parse(file).getroot()
        except ElementTree.ParseError as error:
            raise ValueError(f"{file} can't be read as XML: {error}. Mend it or take it out.") from error
        name = by_stem.get(file.stem) or by_stem.get(Path(root.findtext("filename") or "").stem)
        if name is None:
            missing.append(file)
            continue
        stated[name] = _voc_boxes(file, root)
    if missing:
        raise ValueError(
            f"{len(missing):,} of {len(files):,} images are not in {folder}, first that of {missing[0]}. Add the "
            "images, or take these files out."
        )
    if unused := len(by_stem) - len(stated):
        notes.append(f"{unused:,} images in {folder} belong to no file that was read: left out.")
    images, names = _folder_images(folder, stated, notes)
    return AnnotatedImages(images, [stated[name] for name in names], None, "Pascal VOC", notes)


def _voc_boxes(file: Path, root: ElementTree.Element) -> StatedBoxes:
    sides = _floats([root.findtext("size/width"), root.findtext("size/height")])
    known = len(sides) == 2 and min(sides) > 0  # some programs write 0
    stated = StatedBoxes(os.fspath(file), size=(int(sides[0]), int(sides[1])) if known else None)
    for thing in root.iter("object"):
        corners = _floats(thing.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax"))
        left, top, right, bottom = corners if len(corners) == 4 else _NOT_A_BOX
        difficult = (thing.findtext("difficult") or "0").strip() == "1"
        stated.add((left - 1, top - 1, right, bottom), (thing.findtext("name") or "").strip(), difficult)
    return stated


# ----------------------------------------------------------------------------------------------------------------------
# Columns


def _is_table_of_boxes(root: Path, column: str) -> bool:
    places = [root, *(root / name for names in SPLITS.values() for name in names)]
    tables = [find_table(place) for place in places if place.is_dir()]
    return any(table is not None and column in (read_table(table) or [{}])[0] for table in tables)


def _open_table(root: Path, split: str, column: str, box_format: str) -> AnnotatedImages | None:
    """Opens a folder of images whose metadata.jsonl has a column of boxes."""
    images = open_images(os.fspath(root), "train" if split == "train" else "test", labels="none")
    if images is None:
        return None
    assert isinstance(images, FolderImages)
    table = find_table(images.folder)
    rows = read_table(table)
    files = [images.describe(index) for index in range(len(images))]
    cells = [cell for (cell,) in values_of_files(table, rows, [column], files)]
    stated = _stated_in_cells(cells, [f"{table}, {file}" for file in files], box_format)
    return AnnotatedImages(images, stated, None, f"column {column} of {table.name}", list(images.notes))


def _read_column(images: ParquetImages | DatasetImages, column: str, box_format: str) -> AnnotatedImages:
    """Reads a column of a data set, which is read without the images."""
    cells = list(images.groups(column))  # the values of any column
    stated = _stated_in_cells(cells, [images.describe(index) for index in range(len(images))], box_format)
    names = _names_in_column(images.feature_of(column))
    return AnnotatedImages(images, stated, names, f"column {column}", list(images.notes))


def _names_in_column(feature) -> dict[Label, str] | None:
    """Returns the names of classes that a column of boxes declares, in either layout."""
    feature = getattr(feature, "feature", feature)  # of a list of objects
    if not isinstance(feature, dict):
        return None
    inner = next((feature[key] for key in _CATEGORIES if key in feature), None)
    names = getattr(getattr(inner, "feature", inner), "names", None)
    return None if names is None else dict(enumerate(names))


def _stated_in_cells(cells: list, files: list[str], box_format: str) -> list[StatedBoxes]:
    """Returns what the cells of a column state, objects as a dictionary of lists or as a list of dictionaries."""
    stated = []
    for cell, file in zip(cells, files, strict=True):
        boxes = StatedBoxes(file)
        cell = json.loads(cell) if isinstance(cell, str) and cell else cell or {}
        for thing in _objects_of(cell, file):
            values = next((thing[key] for key in ("bbox", "box", "boxes") if key in thing), ())
            box = _from_corner_and_size(values) if box_format == "xywh" else _floats(values)
            label = next((thing[key] for key in _CATEGORIES if key in thing), -1)
            crowd = any(thing.get(key) for key in _CROWD)
            boxes.add(box, label if isinstance(label, str) else int(label), crowd)
        stated.append(boxes)
    return stated


def _objects_of(cell: dict | list, file: str) -> list[dict]:
    if isinstance(cell, list):
        return cell
    lists = {key: values for key, values in cell.items() if isinstance(values, list)}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{len(values)} in {key}" for key, values in lists.items())
        raise ValueError(f"{file}: its lists of objects have different lengths: {counts}.")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


__all__ = ["AnnotatedImages", "StatedBoxes", "open_annotated", "read_coco", "read_voc", "read_yolo"]
