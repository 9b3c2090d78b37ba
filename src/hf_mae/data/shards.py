# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images in shards: tar, parquet and Arrow files, read in place."""

import bisect
import copy
import json
import os
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence

import numpy as np

from ..modeling.reading_mae import OpenedImage, extension_of, open_image
from .folders import (
    Names,
    begins_as_dicom,
    has_no_extension,
    is_image,
    lies_in_left_behind,
    list_counts,
    without_masks,
)
from .image_source import ImageSource, digest
from .label_values import SINGLE, encode_labels
from .sampling import spread_indices

_CACHED_ROW_GROUPS = 64  # maximum for one reader, which drops a row group when it has read all its images
_ROW_GROUP_BYTES = 2 * 10**9  # maximum that the row groups of one reader may take
_FINGERPRINTED = 200  # rows of a data set whose images are a part of the fingerprint
_OPEN_FILES = 128  # of the 1,024 that a process may usually have
_IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels")  # taken if no column is named, in this order


class TarImages(ImageSource):
    """Images in uncompressed tar files (WebDataset), read in place at their offsets.

    The label of `name.jpg` or `name.left.jpg` is the class in `name.cls`, an integer or a name.
    """

    def __init__(self, files: Sequence[str], name: str, problem_type: str | None = None):
        """
        Args:
            files (`list[str]`): The shards, in order.
            name (`str`): Where they come from.
            problem_type (`str`, *optional*): Kind of the labels, see [`encode_labels`]. Default: one class.

        Raises:
            ValueError: If there is no image in them, or a file is not an uncompressed tar.
        """
        self.name, self._files, self._descriptors, self.notes = name, list(files), OrderedDict(), []
        names, places, labels, others = [], [], [], Counter()
        for number, file in enumerate(files):
            try:
                with tarfile.open(file, "r:") as tar:
                    found, classes = _members_of(tar, others)
                    if not _has_end(tar):
                        self.notes.append(f"{file} lacks the zeros that a tar ends with: it may be cut off.")
            except (tarfile.TarError, ValueError) as error:
                raise ValueError(
                    f"{file} can't be read as an uncompressed tar ({error}). Copy or pack it again, or decompress it "
                    "with gunzip: images are read in place."
                ) from error
            pictures = set(without_masks(list(map(_plain, found))))
            kept = [name for name in found if _plain(name) in pictures]
            others["masks by their names"] += len(found) - len(kept)
            names.extend(kept)
            places.extend((number, *found[name]) for name in kept)
            labels.extend(classes.get(os.path.splitext(name)[0], classes.get(_key(name))) for name in kept)
        seen = list_counts(others)
        if not names:
            raise ValueError(f"Found no images in {name}: {len(files)} tar file(s) with {seen or 'nothing'}.")
        if seen:
            self.notes.append(f"{len(names):,} images in {name}; other members are left out: {seen}.")
        self._names, self._places = Names(names), np.array(places, dtype=np.int64)
        missing = labels.count(None)
        if missing < len(names):
            self.labels, self.label_names = encode_labels(labels, problem_type or SINGLE, ["name.cls"], from_text=True)
            self.notes += [f"{missing:,} of {len(names):,} images of {name} have no label."] if missing else []
        self.fingerprint = digest(self._names.digest(), self._places)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> OpenedImage:
        number, offset, size = (int(value) for value in self._places[index])
        # pread needs no position in the file, which forked workers would share with each other.
        descriptor = self._descriptor(number)
        try:
            content = os.pread(descriptor, size, offset)
        except OSError:  # once a file server was away, an open file may stay stale, and one that is opened again is not
            os.close(self._descriptors.pop(number))
            raise
        if len(content) < size:
            raise EOFError(f"the shard ends after {len(content)} of {size} bytes")
        return open_image(content, extension_of(self._names[index]))

    def _descriptor(self, number: int) -> int:
        """Returns an open descriptor of a shard; the one that was not used for longest is closed if there are many."""
        if number not in self._descriptors:
            if len(self._descriptors) >= _OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[number] = os.open(self._files[number], os.O_RDONLY)
        self._descriptors.move_to_end(number)
        return self._descriptors[number]

    def describe(self, index: int) -> str:
        return f"{self._files[self._places[index, 0]]}:{self._names[index]}"

    def key(self, index: int) -> str:
        return self._names[index].removeprefix("./")

    def groups(self, group_by: str) -> Sequence:
        """Returns the folder of each member."""
        if group_by != "folder":
            raise ValueError(f"`group_by` of tar files must be folder, got {group_by!r}: {self.name} has no columns.")
        return [self.key(index).rpartition("/")[0] or "." for index in range(len(self))]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_descriptors": OrderedDict()}


def _members_of(tar: tarfile.TarFile, others: Counter) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Returns the (offset, size) of each image in a tar by its name, and the content of `.cls` members by their stems.

    Args:
        tar (`tarfile.TarFile`): The tar, freshly opened.
        others (`Counter`): What is left out is counted in it.

    Raises:
        tarfile.ReadError: If an image is not stored as it is.
    """
    found: dict[str, tuple[int, int]] = {}
    classes = {}
    for member in tar:
        vars(tar)["members"].clear()  # all are kept there, which takes gigabytes for millions of images
        stem, extension = os.path.splitext(member.name)
        if member.islnk() and member.linkname in found:  # a file with two names is packed once
            found[member.name] = found[member.linkname]
        elif member.issym() or member.islnk():
            others["link"] += 1
        elif not member.isfile():
            continue
        elif extension == ".cls":
            classes[stem] = tar.extractfile(member).read().decode().strip()
        elif lies_in_left_behind(member.name):
            others["left behind by programs"] += 1
        elif _is_image_in(tar, member):
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is packed without its zeros, by tar --sparse")
            found[member.name] = (member.offset_data, member.size)
        else:
            others[extension or "none"] += 1
    return found, classes


def _has_end(tar: tarfile.TarFile) -> bool:
    """Returns whether zeros follow the last member, as in every tar that is complete.

    Raises:
        tarfile.ReadError: If something else follows, which tarfile takes for the end in silence.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    length = 0
    while rest := tar.fileobj.read(2**20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError(
                f"after byte {tar.offset:,}, where no member begins, there is more: it is damaged, or several in one"
            )
        length += len(rest)
    return length > 0


def _is_image_in(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    """Returns whether a member is an image: by its name or, where that has no extension, as a DICOM file."""
    name = os.path.basename(member.name)
    if is_image(name) or not has_no_extension(name):
        return is_image(name)
    content = tar.extractfile(member)
    return content is not None and begins_as_dicom(content)


def _key(name: str) -> str:
    """Returns what the members of a sample share, as WebDataset has it: the path up to the first dot of the name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".")[0]


def _plain(name: str) -> str:
    """Returns the name of a member with its parts joined as those of files are: `0.seg.png` is the mask `0_seg.png`."""
    stem = name[: len(name) - len(extension_of(name))]
    return _key(stem) + stem[len(_key(stem)) :].replace(".", "_") + extension_of(name)


class ParquetImages(ImageSource):
    """Images in a column of parquet files, here or on the Hub, read by row group and not copied."""

    notes: list[str]

    def __init__(
        self,
        files: Sequence[str],
        name: str,
        filesystem=None,
        image_column: str | None = None,
        label_column: str | None = None,
        problem_type: str | None = None,
    ):
        """
        Args:
            files (`list[str]`): The shards, in order.
            name (`str`): Where they come from.
            filesystem (`fsspec.AbstractFileSystem`, *optional*): Where the files are, if not on this machine. Labels
                are not read from there, which would take a request for each row group.
            image_column, label_column (`str`, *optional*): Columns to take, see [`choose_columns`].
            problem_type (`str`, *optional*): Kind of the labels, see [`encode_labels`].

        Raises:
            ValueError: If no column holds images, several do and none is chosen, or a file is not parquet.
        """
        import pyarrow.parquet

        self.name, self._files, self._filesystem, self.notes = name, list(files), filesystem, []
        self._open: dict = {}
        self._cache: OrderedDict = OrderedDict()
        groups, labels, sizes, self._column = [], [], [], None
        self._first_rows = [0]  # of each file, and after the last one the number of all
        for number, file in enumerate(files):
            try:
                parquet = self._parquet(number)
            except (pyarrow.lib.ArrowInvalid, OSError) as error:
                raise ValueError(f"{file} can't be read as parquet: {error}. Remove or repair it.") from error
            features = _features(parquet.schema_arrow)
            if self._column is None:
                self._column, self._label = choose_columns(features, name, image_column, label_column, self.notes)
                self._type, label_names = features[self._column], names_of_classes(features.get(self._label))
            self._check_file(file, features, label_names)
            self._first_rows.append(self._first_rows[-1] + parquet.metadata.num_rows)
            sizes.extend(_group_bytes(parquet, g, self._column) for g in range(parquet.num_row_groups))
            groups.extend((number, g, parquet.metadata.row_group(g).num_rows) for g in range(parquet.num_row_groups))
            if filesystem is None and self._label:
                labels.extend(parquet.read([self._label], use_threads=False)[self._label].to_pylist())
        groups = [group for group in groups if group[2] > 0]
        if not groups:
            raise ValueError(f"Found no images in {name}: {len(files)} parquet file(s) without rows.")
        self._groups = np.array(groups, dtype=np.int64)
        self.row_groups = self._groups[:, 2]
        self._ends, self._reads = np.cumsum(self.row_groups), self.row_groups
        self._short_names = _below_common_folder(files)
        if labels:
            self.labels, self.label_names = encode_labels(labels, problem_type, [self._label], names=label_names)
        self._bound_memory(max(sizes))
        names = json.dumps([self._column, *(os.path.basename(file) for file in files)])
        self.fingerprint = digest(names, self._groups, np.array(sizes, dtype=np.int64))

    def _check_file(self, file: str, features: dict, label_names: list[str] | None):
        """Refuses a file that lacks a column of the first one, or numbers the classes in another way."""
        for column in filter(None, (self._column, self._label)):
            if column not in features:
                raise ValueError(
                    f"{file} has no column {column!r}, which {self._files[0]} has, only {', '.join(features)}. Give "
                    "the path of files that have the same columns."
                )
        if names_of_classes(features.get(self._label)) != label_names:
            raise ValueError(
                f"The classes in the column {self._label} of {file} are others than those of {self._files[0]}, or in "
                "another order. Write all files with one list of names."
            )

    def _bound_memory(self, largest: int):
        """Lets a run mix only as many row groups as fit into memory, given the bytes of the largest one."""
        self.row_groups_at_once = int(min(max(_ROW_GROUP_BYTES // max(largest, 1), 1), _CACHED_ROW_GROUPS))
        if self.row_groups_at_once < 8:
            self.notes.append(
                f"Row groups of {self.name} have up to {largest / 1e9:.1f} GB, so only {self.row_groups_at_once} are "
                "mixed at a time, and each loader worker holds one. Write the files again with smaller ones: "
                "`pyarrow.parquet.write_table(table, file, row_group_size=100)`."
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> OpenedImage:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self._ends, index, side="right"))
        rows, unread = self._cache.pop(group, None) or (self._read(group), int(self._reads[group]))
        row = rows[index - int(self._ends[group] - self.row_groups[group])].as_py()
        if unread > 1:  # each row, or each of those in `restricted_to`, is read once an epoch, by one reader
            self._cache[group] = (rows, unread - 1)
        if len(self._cache) > self.row_groups_at_once:
            self._cache.popitem(last=False)
        folder = os.path.dirname(self._files[int(self._groups[group, 0])]) if self._filesystem is None else ""
        return _open_cell(row, self._type, folder)

    def describe(self, index: int) -> str:
        number, row = self._row_of(index)
        return f"{self._files[number]}:{row}"

    def key(self, index: int) -> str:
        """Returns the number of the row and, if there are several files, the path of the file below their folder."""
        number, row = self._row_of(index)
        return str(row) if len(self._files) == 1 else f"{self._short_names[number]}:{row}"

    def groups(self, group_by: str) -> Sequence:
        """Returns the value of each row in a column."""
        return self.values_of(group_by, "group_by")

    def values_of(self, column: str, setting: str) -> list:
        """Returns the value of each row in a column, which is read without the images and was chosen by a setting."""
        parquets = [self._parquet(number) for number in range(len(self._files))]
        _check_column(column, parquets[0].schema_arrow.names, self.name, setting)
        tables = (parquet.read([column], use_threads=False) for parquet in parquets)
        return [value for table in tables for value in table[column].to_pylist()]

    def feature_of(self, column: str):
        """Returns the type of a column: a feature of `datasets`, or an Arrow type where the files name none."""
        return _features(self._parquet(0).schema_arrow)[column]

    def restricted_to(self, indices: np.ndarray) -> "ParquetImages":
        other = copy.copy(self)
        other._open, other._cache = {}, OrderedDict()
        other._reads = np.bincount(np.searchsorted(self._ends, indices, side="right"), minlength=len(self._ends))
        return other

    def _row_of(self, index: int) -> tuple[int, int]:
        """Returns the number of an image's file, and its row in that."""
        number = bisect.bisect_right(self._first_rows, index) - 1
        return number, index - self._first_rows[number]

    def _read(self, group: int):
        number, group_of_file = (int(value) for value in self._groups[group, :2])
        # No threads: there are several loader workers, which are forked.
        return self._parquet(number).read_row_group(group_of_file, columns=[self._column], use_threads=False)[
            self._column
        ]

    def _parquet(self, number: int):
        import pyarrow.parquet

        # A remote file is opened again in a worker, since forked processes share the position of a file.
        key = number if self._filesystem is None else (os.getpid(), number)
        if key not in self._open and len(self._open) > _CACHED_ROW_GROUPS:
            self._open.clear()
        if self._filesystem is None:
            # Not mapped into memory, where a file that is cut, or a file server that is away, would kill the process.
            # Opened for each read, since an open file holds memory of its last one; only what its end says is kept.
            parquet = pyarrow.parquet.ParquetFile(self._files[number], metadata=self._open.get(key))
            self._open[key] = parquet.metadata
            return parquet
        if key not in self._open:
            self._open[key] = pyarrow.parquet.ParquetFile(self._filesystem.open(self._files[number]))
        return self._open[key]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}, "_cache": OrderedDict()}


def _below_common_folder(files: Sequence[str]) -> list[str]:
    """Returns the paths of files below the folder that holds all of them, with `/` on all systems."""
    common = os.path.commonpath([os.path.dirname(file) for file in files])
    return [os.path.relpath(file, common or ".").replace(os.sep, "/") for file in files]


def _features(schema) -> dict:
    """Returns the columns of a parquet file by name, as features of `datasets`, or Arrow types where it names none.

    Of a column whose values are numbered, such as a `Categorical` of pandas, it is the type of the values.
    """
    import datasets
    import pyarrow as pa

    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
    known = datasets.Features.from_dict(stored) if stored else {}
    types = {f.name: f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema}
    return {name: known.get(name, kind) for name, kind in types.items()}


def _group_bytes(parquet, group: int, column: str) -> int:
    """Returns the bytes of a column in one row group."""
    row_group = parquet.metadata.row_group(group)
    columns = (row_group.column(number) for number in range(row_group.num_columns))
    return sum(part.total_uncompressed_size for part in columns if part.path_in_schema.split(".")[0] == column)


def holds_images(file: str) -> bool:
    """Returns whether a parquet file has a column of images. One that can't be read has none."""
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (pyarrow.lib.ArrowInvalid, OSError):
        return False
    return any(_holds_images(feature) for feature in _features(schema).values())


def choose_columns(
    features: dict, name: str, image_column: str | None, label_column: str | None, notes: list[str]
) -> tuple[str, str | None]:
    """Returns the columns of images and of labels; the latter is `None` if there is none.

    Without `image_column` it is the only column of images, or the one called image, img or pixel_values. Without
    `label_column` it is the one called label or labels, or the only one of class labels.

    Args:
        features (`dict`): Features of `datasets`, or Arrow types, by column.
        name (`str`): Where they come from.
        image_column, label_column (`str`, *optional*): Columns that the user chose.
        notes (`list[str]`): The choice is added to it, if there was one.

    Raises:
        ValueError: If there is no such column, or it is not clear which one is meant.
    """
    for chosen, setting in ((image_column, "image_column"), (label_column, "label_column")):
        if chosen is not None:
            _check_column(chosen, features, name, setting)
    images = [column for column, feature in features.items() if _holds_images(feature)]
    if image_column is not None and image_column not in images and not _holds_paths(features[image_column]):
        raise ValueError(
            f"`image_column` {image_column!r} of {name} holds {features[image_column]}, and not in each row "
            "an image or its path."
        )
    if image_column is None:
        if not images:
            raise ValueError(_no_column(name, features))
        named = [column for column in _IMAGE_COLUMNS if column in images]
        if len(images) > 1 and not named:
            raise ValueError(f"Several columns of {name} hold images: {', '.join(images)}. Choose with `image_column`.")
        image_column = (named or images)[0]
    if len(images) > 1:
        notes.append(f"Columns {', '.join(images)} of {name} hold images: {image_column} is taken.")
    if label_column is None:
        classes = [column for column, feature in features.items() if names_of_classes(feature) is not None]
        named = [column for column in LABEL_COLUMNS if column in features and _holds_labels(features[column])]
        label_column = (named or classes or [None])[0]
        if len(classes) > 1:
            notes.append(f"Columns {', '.join(classes)} of {name} hold classes: {label_column} is taken.")
    return image_column, label_column


def _check_column(column: str, columns: Collection[str], name: str, setting: str):
    if column not in columns:
        raise ValueError(f"{name} has no column {column!r} (`{setting}`), only {', '.join(columns)}.")


def _holds_images(feature) -> bool:
    """Returns whether values are images, or the contents of files."""
    import datasets
    import pyarrow as pa

    if isinstance(feature, pa.DataType):
        struct = pa.types.is_struct(feature) and "bytes" in [part.name for part in feature]
        return struct or pa.types.is_binary(feature) or pa.types.is_large_binary(feature)
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, datasets.Image | datasets.Array2D | datasets.Array3D)


def _holds_paths(feature) -> bool:
    return str(getattr(feature, "dtype", feature)) in ("string", "large_string")


def _holds_labels(feature) -> bool:
    """Returns whether values are classes: class labels, integers or strings."""
    kind = str(getattr(feature, "dtype", feature))
    return kind.startswith(("int", "uint", "string", "large_string", "bool"))


def names_of_classes(feature) -> list[str] | None:
    """Returns the names of the classes in a column of class labels, or of lists of them."""
    import datasets

    feature = getattr(feature, "feature", feature)
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def _open_cell(cell, feature, folder: str = "") -> OpenedImage:
    """Opens the image in a cell: the content of a file, a path, or an array as nested lists.

    A relative path starts at the folder of the shard, or else at that where the command was started.
    """
    extension = extension_of(cell.get("path") or "") if isinstance(cell, dict) else ""
    stored = _content_or_path(cell)
    if stored is None or stored == "":
        raise ValueError("its row holds no image")
    if isinstance(stored, bytes):
        return open_image(stored, extension)
    if isinstance(stored, str):
        below = os.path.join(folder, stored)
        return open_image(below if os.path.exists(below) else stored)
    return np.array(stored, dtype=feature.dtype)


def _content_or_path(cell):
    """Returns the content of a file, or its path where it has none, of a cell that may hold both."""
    if not isinstance(cell, dict):
        return cell
    return cell.get("path") if cell.get("bytes") is None else cell["bytes"]


def _start_of(cell) -> str:
    """Returns what tells the image in a cell from most others, without decoding it."""
    stored = _content_or_path(cell)
    return f"{len(stored)} {stored[:256].hex()}" if isinstance(stored, bytes) else str(stored)[:256]


class DatasetImages(ImageSource):
    """Images in a column of a data set of the `datasets` library, which maps Arrow files into memory."""

    def __init__(
        self,
        dataset,
        name: str,
        image_column: str | None = None,
        label_column: str | None = None,
        problem_type: str | None = None,
    ):
        """
        Args:
            dataset (`datasets.Dataset`): The data set.
            name (`str`): Where it comes from.
            image_column, label_column (`str`, *optional*): Columns to take, see [`choose_columns`].
            problem_type (`str`, *optional*): Kind of the labels, see [`encode_labels`].

        Raises:
            ValueError: If no column holds images, or several do and none is chosen.
        """
        import datasets

        dataset = dataset.with_format(None)  # a format, such as of tensors, is saved with a data set
        self.name, self.license, self.notes = name, dataset.info.license or None, []
        self.column, label = choose_columns(dataset.features, name, image_column, label_column, self.notes)
        images, self._type = dataset.select_columns([self.column]), dataset.features[self.column]
        # Bytes, not pictures: they are decoded here, at the size that a crop needs.
        if isinstance(self._type, datasets.Image):
            images = images.cast_column(self.column, datasets.Image(decode=False))
        self._images, self._dataset = images, dataset
        if label is not None:
            names = names_of_classes(dataset.features[label])
            self.labels, self.label_names = encode_labels(list(dataset[label]), problem_type, [label], names=names)
        shown = spread_indices(self, _FINGERPRINTED)
        seen = digest(*(_start_of(images[int(index)][self.column]) for index in shown))
        self.fingerprint = digest(f"{len(dataset)} {self.column}", seen)  # of images, whichever column labels them

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> OpenedImage:
        return _open_cell(self._images[index][self.column], self._type)

    def groups(self, group_by: str) -> Sequence:
        """Returns the value of each row in a column."""
        return self.values_of(group_by, "group_by")

    def values_of(self, column: str, setting: str) -> list:
        """Returns the value of each row in a column, see [`ParquetImages.values_of`]."""
        _check_column(column, self._dataset.column_names, self.name, setting)
        return list(self._dataset.select_columns([column])[column])

    def feature_of(self, column: str):
        """Returns the type of a column, a feature of `datasets`."""
        return self._dataset.features[column]


def _no_column(name: str, columns: dict) -> str:
    found = ", ".join(f"{column} ({kind})" for column, kind in columns.items())
    return (
        f"No column of {name} holds images. Columns: {found}. Cast one with "
        "`dataset.cast_column(name, datasets.Image())` and save the data set again."
    )


__all__ = ["DatasetImages", "ParquetImages", "TarImages", "choose_columns", "holds_images", "names_of_classes"]
