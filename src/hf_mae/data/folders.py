# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images in the files of a folder: which files are images, which folders are classes."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO

import numpy as np

from ..modeling.reading_mae import IMAGE_EXTENSIONS, OpenedImage, extension_of, open_image
from .image_source import ImageSource, digest
from .sampling import spread_indices
from .tables import TABLES, columns_of, find_table, read_table, values_of_files

SHARD_EXTENSIONS = (".arrow", ".parquet", ".tar")
TRAIN, TEST = ("train", "training"), ("validation", "valid", "val", "dev", "test", "testing")  # words of splits
WORDS_OF_SPLITS = {"train": TRAIN, "val": TEST}
# What may follow the word in the name of a folder: train2017, test_images, Training Set. No class is a train station.
_AFTER_SPLIT = r"[-_ ]?(\d*|set|data|images|imgs)"
_EXTENSIONS = frozenset(IMAGE_EXTENSIONS)
PACKED = (".gz", ".tgz", ".zip", ".zst")
# Left behind by programs and file servers, together with everything whose name begins with a dot.
_LEFT_BEHIND = {
    *("$recycle.bin", "#recycle", "#snapshot", "@eadir", "@recycle", "@recently-snapshot", "__macosx", "__pycache__"),
    *("lost+found", "network trash folder", "system volume information", "temporary items", "thumbs.db", "ehthumbs.db"),
    *("desktop.ini", "icon\r"),
}
_RUN_FILES = frozenset({"metrics.jsonl", "experiment.json", "evaluation.json"})  # pre-training, fine-tuning, evaluation
# Folders of masks are left out where a folder of pictures lies next to them.
_PICTURES = {
    *("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "leftimg8bit"),
    *("imagestr", "imagests"),  # for training and testing, as nnU-Net and the Medical Segmentation Decathlon have them
}
_MASKS = {
    *("masks", "mask", "annotations", "annotation", "labels", "label", "gt", "ground_truth", "groundtruth", "gtfine"),
    *("segmentation", "segmentations", "segmentationclass", "segmentationobject", "trimaps", "labelids", "seg"),
    *("labelstr", "labelsts"),
}
_SEGMENTATIONS = ("_seg", "-seg", "_segmentation")
MASK_SUFFIXES = ("_mask", "-mask", "_masks", "_gt", *_SEGMENTATIONS, "_annotation")
_FINGERPRINTED = 1000  # files whose size is a part of the fingerprint: an instant, also on a file server
_names: ContextVar[dict | None] = ContextVar("names", default=None)  # in folders that were read
_MOST_STRAY_FILES = 0.1  # share of files outside the class folders, beyond which the folders are no classes


class FolderImages(ImageSource):
    """Image files below a folder, at any depth, folder by folder, in the order of their names.

    The first folders below the root are the classes, if there are several and (nearly) all images lie in one, as
    `imagefolder` of `datasets` has it. A stray file next to them has the label -1.
    """

    notes: list[str]

    def __init__(
        self,
        folder: str | os.PathLike,
        listing: list[tuple[str, list[str]]] | None = None,
        labels: str = "auto",
    ):
        """
        Args:
            folder (`str` or `os.PathLike`): The folder. Links are followed, each folder is entered once.
            listing (`list` of (path below the folder, names of files), *optional*): Its content, if that is known.
            labels (`"auto"` or `"none"`, *optional*): Whether folders may be classes.

        Raises:
            ValueError: If there is no image in it.
            OSError: If it can't be read.
        """
        self.folder, self.name, self.notes = Path(folder), os.fspath(folder), []
        paths, parents, others = [], [], Counter()
        for directory, names in walk(self.name, self.notes) if listing is None else listing:
            prefix = os.path.join(directory, "") if directory else ""
            images, masks = _images_of(os.path.join(self.name, directory), names)
            paths.extend(prefix + name for name in images)
            parents.extend([(directory, len(images))] if images else [])
            others["masks by their names"] += masks
            if len(images) < len(names):
                left_out = set(names).difference(images, () if directory else TABLES)
                others.update(extension_of(name) or "none" for name in left_out if not _is_left_behind(name))
        self._paths = Names(paths)
        seen = list_counts(others)
        if not paths:
            packed = " Unpack them first; of archives only .tar is read." if set(others) & set(PACKED) else ""
            raise ValueError(
                f"Found no images in {self.name!r}. Files by extension: {seen or 'none at all'}. Expected images "
                f"(.jpg, .png, .tif, .dcm, .npy or one of {len(IMAGE_EXTENSIONS) - 5} other extensions) at any depth, "
                f"or shards ({', '.join(SHARD_EXTENSIONS)}).{packed}"
            )
        if seen:
            self.notes.append(f"{len(paths):,} images in {self.name}; other files there are left out: {seen}.")
        self.fingerprint = digest(self._paths.digest(), self._sizes())
        directories = [directory for directory, _ in parents]
        self._common = os.path.join(os.path.commonpath(directories), "") if all(directories) else ""
        if labels != "none":
            self._label(parents)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> OpenedImage:
        return open_image(self.describe(index))

    def describe(self, index: int) -> str:
        return os.path.join(self.folder, self._paths[index])

    def _sizes(self) -> np.ndarray:
        """Returns the bytes of some files from all over the folder, which tell it from another with the same names."""
        sizes = []
        for index in spread_indices(self, _FINGERPRINTED):
            try:
                sizes.append(os.stat(self.describe(int(index))).st_size)
            except OSError:  # a broken link
                sizes.append(-1)
        return np.array(sizes, dtype=np.int64)

    def label_by(self, label_names: Sequence[str]):
        """Takes the first folders below the root for classes where they are called so, whichever of them are there.

        Args:
            label_names (`Sequence[str]`): Names of the classes, as another split has them.
        """
        numbers = {name: number for number, name in enumerate(label_names)}
        labels = [numbers.get(self._paths[index].split(os.sep)[0], -1) for index in range(len(self))]
        if max(labels) >= 0:
            self.labels, self.label_names = np.array(labels, dtype=np.int64), list(label_names)

    def key(self, index: int) -> str:
        """Returns the path below the first folder that does not hold all images, so that it is the same from above."""
        return self._paths[index][len(self._common) :].replace(os.sep, "/")

    def groups(self, group_by: str) -> Sequence:
        """Returns the folder of each image, or its value in a column of `metadata.csv` or `metadata.jsonl`."""
        if group_by == "folder":
            return [self.key(index).rpartition("/")[0] or "." for index in range(len(self))]
        table = find_table(self.folder)
        if table is None:
            raise ValueError(f"`group_by` {group_by!r} needs a table {' or '.join(TABLES)} in {self.name}.")
        rows = read_table(table)
        if not {"file_name", group_by} <= set(columns_of(rows)):
            raise ValueError(
                f"{table} must have the columns file_name and {group_by} (`group_by`), it has "
                f"{', '.join(columns_of(rows)) or 'no rows'}."
            )
        files = [self.describe(index) for index in range(len(self))]
        return [value for (value,) in values_of_files(table, rows, [group_by], files)]

    def _label(self, parents: list[tuple[str, int]]):
        """Sets labels and their names.

        Args:
            parents (`list` of (path below the folder, number of images in it)): In the order of the images.
        """
        parts = [(directory.split(os.sep) if directory else [], count) for directory, count in parents]
        while len({tuple(part[:1]) for part, _ in parts}) == 1 and parts[0][0]:  # all lie in one folder: look below it
            parts = [(part[1:], count) for part, count in parts]
        classes = sorted({part[0] for part, _ in parts if part})
        if all(split_of(name) for name in classes):
            if classes:
                self.notes.append(
                    f"The folders {', '.join(classes)} of {self.name} are no classes but splits, all of which are "
                    "taken. Give the path of the folder that holds them, or of one of them."
                )
            return
        stray, total = sum(count for part, count in parts if not part), len(self)
        if len(classes) < 2 or stray > _MOST_STRAY_FILES * total:
            return
        numbers = {name: number for number, name in enumerate(classes)}
        self.label_names = classes
        self.labels = np.repeat([numbers[part[0]] if part else -1 for part, _ in parts], [count for _, count in parts])
        shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        self.notes.append(
            f"{len(classes)} folders of {self.name} are taken for classes ({shown}). If they are none: "
            "`labels` none in pre-training; elsewhere a column `label` of a table counts before them."
        )
        if stray:
            first = self.describe(int(np.flatnonzero(self.labels < 0)[0]))
            self.notes.append(f"{stray} image(s) lie next to the class folders and have no label, first {first}.")


def list_counts(counts: Counter[str]) -> str:
    """Returns a line such as `1 x .csv, 3 x link`, which is empty if nothing was counted."""
    return ", ".join(f"{count} x {kind}" for kind, count in sorted((+counts).items()))


def split_of(folder: str) -> str | None:
    """Returns which split a folder is by its name, without its path: `"train"`, a word of `TEST`, or `None`."""
    found = re.fullmatch(f"({'|'.join((*TRAIN, *TEST))}){_AFTER_SPLIT}", folder.lower())
    return None if found is None else "train" if found[1] in TRAIN else found[1]


def find_splits(folder: Path) -> dict[str, Path]:
    """Returns the folders of splits by what [`split_of`] says: in a folder, or in the only one that holds all images.

    Without a folder to train on there are none, and a single one next to others may be the class of trains.
    """
    for _ in range(3):
        files, below = _names_in(os.fspath(folder))
        below = [name for name in below if not _is_left_behind(name)]
        splits = {split: folder / name for name in sorted(below, reverse=True) if (split := split_of(name))}
        if "train" in splits and (len(splits) > 1 or len(below) == 1 or not set(TRAIN).isdisjoint(below)):
            return splits
        pictures = [name for name in below if name.lower() in _PICTURES] or below
        if len(pictures) != 1 or any(map(is_image, files)):
            return {}
        folder /= pictures[0]
    return {}


def notes_on_others(folder: Path) -> list[str]:
    """Returns notes on folders next to that of a split which are not read: others of the same split, or of none.

    Those of none are named with the split to train on only, so that they are named once.
    """
    split, parent = split_of(folder.name), folder.parent
    others = sorted(set(_names_in(os.fspath(parent))[1]) - {folder.name})
    others = [name for name in others if not _is_left_behind(name)]
    same, none = ([name for name in others if split_of(name) == each] for each in (split, None))
    notes = [f"Left out, since {folder.name} is taken: {', '.join(same)} in {parent}."] if same else []
    return notes + ([f"No splits and left out: {', '.join(none)} in {parent}."] if none and split == "train" else [])


def folders_of_split(folder: Path, split: str) -> list[Path]:
    """Returns the folders in a folder that are named by a split, `train` or `val`; those for validation before test."""
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [path for name in WORDS_OF_SPLITS[split] for path in below if split_of(path.name) == name]


def walk(folder: str, notes: list[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yields (path below the folder, sorted names of its files), a folder before those in it.

    Links are followed, and each folder is entered once. What programs leave behind, masks next to pictures and folders
    of runs, whose sheets are no images to learn from, are not entered. A folder that can't be read is an error. Unlike
    `os.walk` it makes no path of a file that is not asked for: a million files are listed in seconds.

    Args:
        folder (`str`): Where to begin.
        notes (`list[str]`, *optional*): What was left out is added to it.
    """
    entered, pending = set(), [""]
    while pending:
        directory = pending.pop()
        status = os.stat(os.path.join(folder, directory))
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        files, below = _names_in(os.path.join(folder, directory))
        if directory and not _RUN_FILES.isdisjoint(files):
            if notes is not None:
                notes.append(f"{os.path.join(folder, directory)} is the folder of a run: left out.")
            continue
        yield directory, sorted(files)
        left_out = [name for name in below if _is_left_behind(name)]
        if any(name.lower() in _PICTURES or split_of(name) for name in below):
            left_out += [name for name in below if name.lower() in _MASKS]
        if left_out and notes is not None:
            where = os.path.join(folder, directory)
            notes.append(f"Folders of {where} that are left out: {', '.join(sorted(left_out))}.")
        below = sorted(set(below).difference(left_out), reverse=True)
        pending.extend(os.path.join(directory, name) for name in below)


@contextmanager
def reading_folders_once() -> Iterator[None]:
    """Keeps the names in folders, for several calls of [`open_images`] that look into the same ones.

    A million files on a file server take minutes to be listed.
    """
    known = _names.get()
    token = _names.set({} if known is None else known)
    try:
        yield
    finally:
        _names.reset(token)


def _names_in(folder: str) -> tuple[list[str], list[str]]:
    """Returns the names of the files in a folder, and those of the folders in it."""
    known, folder = _names.get(), os.path.normpath(folder)
    if known is not None and folder in known:
        return known[folder]
    files: list[str] = []
    below: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry):
                below.append(entry.name)
            elif entry.is_file(follow_symlinks=False) or entry.is_symlink():  # to open a pipe would wait for ever
                files.append(entry.name)
    if known is not None:
        known[folder] = files, below
    return files, below


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_image(name: str) -> bool:
    """Returns whether a file is an image, by its name without a folder."""
    # Faster than splitext, for millions of files. No image extension is among what programs leave behind.
    extension = name[name.rfind(".") :].lower()
    return (extension in _EXTENSIONS or (extension == ".gz" and extension_of(name) == ".nii.gz")) and name[0] != "."


def _is_left_behind(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def lies_in_left_behind(path: str) -> bool:
    """Returns whether programs left a file behind, or one of its folders, by its path with `/`."""
    return any(_is_left_behind(part) for part in path.split("/") if part not in (".", ".."))


def _images_of(directory: str, names: list[str]) -> tuple[list[str], int]:
    """Returns the names of the images in one folder, and how many masks were left out next to them."""
    images = [name for name in names if is_image(name)]
    if len(images) < len(names):
        unnamed = [name for name in names if has_no_extension(name) and not _is_left_behind(name)]
        if any(_is_dicom(os.path.join(directory, name)) for name in unnamed[:3]):  # scanners write no extension
            images = sorted([*images, *(name for name in unnamed if _is_dicom(os.path.join(directory, name)))])
    kept = without_masks(images)
    return kept, len(images) - len(kept)


def without_masks(images: Sequence[str]) -> list[str]:
    """Returns the names of images that are no masks of others.

    `a_mask.png` is left out if there is an `a.jpg`, and `a_seg.nii.gz` also if there is an `a_t1.nii.gz`, as in BraTS.

    Args:
        images (`Sequence[str]`): Names, with or without a folder.
    """
    together = "\n".join(images).lower()
    if not any(suffix + "." in together for suffix in MASK_SUFFIXES):
        return list(images)
    stem_of = {name: name[: len(name) - len(extension_of(name))].lower() for name in images}
    stems = set(stem_of.values())
    masks = {stem + suffix for suffix in MASK_SUFFIXES for stem in stems}
    patients = {re.sub("[-_][^-_]*$", "", stem) for stem in stems if not stem.endswith(MASK_SUFFIXES)}
    masks |= {patient + suffix for suffix in _SEGMENTATIONS for patient in patients}
    return [name for name in images if stem_of[name] not in masks]


def has_no_extension(name: str) -> bool:
    """Returns whether a file has no extension, as scanners write DICOM, by its name without a folder.

    A `DICOMDIR` is no such file: it lists the images of a disc and begins as they do.
    """
    extension = extension_of(name)
    # Numbers are parts of identifiers such as 1.2.840.
    return (not extension or extension[1:].isdigit()) and name.upper() != "DICOMDIR"


def begins_as_dicom(stream: IO[bytes]) -> bool:
    """Returns whether an open file begins as a DICOM file does."""
    return stream.read(132)[128:] == b"DICM"


def _is_dicom(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return begins_as_dicom(stream)
    except OSError:
        return False


class Names(Sequence):
    """Strings in one block of memory: a list of a million would be copied into each loader worker as it is counted."""

    def __init__(self, names: list[str]):
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])

    def digest(self) -> str:
        return digest(self._bytes, self._ends)


__all__ = [
    "MASK_SUFFIXES",
    "SHARD_EXTENSIONS",
    "TEST",
    "TRAIN",
    "WORDS_OF_SPLITS",
    "FolderImages",
    "Names",
    "begins_as_dicom",
    "find_splits",
    "folders_of_split",
    "has_no_extension",
    "is_image",
    "list_counts",
    "lies_in_left_behind",
    "notes_on_others",
    "reading_folders_once",
    "split_of",
    "walk",
    "without_masks",
]
