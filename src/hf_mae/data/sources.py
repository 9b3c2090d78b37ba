# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Where images come from: a folder, shards (tar, parquet, Arrow), the Hub, or the embedded sample.

Every source gives images by index and knows how many there are, so that the order of a run is arithmetic (see
[`hf_mae.data.sampling.SampleOrder`]) and any process can read any sample. Nothing is copied or unpacked: a folder is
listed, a tar is indexed, a parquet file is read by row group, Arrow files are mapped into memory.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

IMAGE_EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SHARD_EXTENSIONS = (".arrow", ".parquet", ".tar")
_PACKED = (".gz", ".tgz", ".zip", ".zst")
_TRAIN, _TEST = ("train", "training"), ("validation", "valid", "val", "dev", "test", "testing")
_CACHED_ROW_GROUPS = 64  # of a reader; those of which every image was read are dropped before


class ImageSource(Sequence):
    """Images by index, with or without labels.

    Attributes:
        name (`str`): Where they come from, for logs and model cards.
        labels (`np.ndarray` of int64 or `None`): The class of each image, from 0.
        label_names (`list[str]` or `None`): What the classes are called, by their numbers, where that is known.
        row_groups (`np.ndarray` of int64 or `None`): Lengths of the runs of consecutive images that are read
            together, as parquet files are. `None` if any image can be read by itself.
        fingerprint (`str`): Another one if the images, their number or their order are others.
        dataset (`str` or `None`): Their name on the Hub.
        license (`str` or `None`): Their licence, where it is known.
    """

    name: str
    dataset: str | None = None
    license: str | None = None
    labels: np.ndarray | None = None
    label_names: list[str] | None = None
    row_groups: np.ndarray | None = None
    fingerprint: str

    def __getitem__(self, index: int) -> PIL.Image.Image | np.ndarray:
        """Returns image `index`, in [0, len(self)), not yet decoded, of any mode; an array for `.npy`.

        Raises:
            Exception: Of any kind, if it can't be read: libraries raise what they like for broken files.
        """
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Returns what to call image `index` in a message."""
        return f"image {index} of {self.name}"


class FashionMNISTImages(ImageSource):
    """The embedded sample: 3,000 (train) or 1,000 (test) labelled grey photographs of 28 x 28 pixels, 10 classes."""

    dataset = "zalando-datasets/fashion_mnist"
    license = "MIT"

    def __init__(self, split: str = "train"):
        self.name = f"Fashion-MNIST sample ({split}), embedded"
        mosaic = np.array(PIL.Image.open(Path(__file__).parent / "fashion_mnist" / f"{split}.png"))
        rows, columns = (side // 28 for side in mosaic.shape)
        self.pixels = mosaic.reshape(rows, 28, columns, 28).swapaxes(1, 2).reshape(-1, 28, 28)
        self.labels = np.arange(len(self.pixels)) * 10 // len(self.pixels)  # stored class by class
        self.label_names = [
            "T-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ]
        self.fingerprint = _digest(self.pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.pixels[index])


# ----------------------------------------------------------------------------------------------------------------------
# Folders of files


class FolderImages(ImageSource):
    """Image files below a folder, at any depth, folder by folder, in the order of their names.

    Labels are the names of the sub-folders if every image lies in one, directly, and there are several.
    """

    def __init__(self, folder: str | os.PathLike, listing: list[tuple[str, list[str]]] | None = None):
        """
        Args:
            folder (`str` or `os.PathLike`): The folder. Links are followed, each folder is entered once.
            listing (`list` of (path below the folder, names of files), *optional*): What is in it, if that is known.

        Raises:
            ValueError: If there is no image in it.
            OSError: If it can't be read.
        """
        self.folder, self.name = Path(folder), os.fspath(folder)
        paths, parents, others = [], [], Counter()
        for directory, names in listing or _walk(self.name):
            prefix = os.path.join(directory, "") if directory else ""
            images = [name for name in names if _is_image(name)]
            paths.extend(prefix + name for name in images)
            parents.extend([(directory, len(images))] if images else [])
            if len(images) < len(names):
                others.update(_extension(name) or "none" for name in set(names).difference(images))
        if not paths:
            seen = ", ".join(f"{count} x {extension}" for extension, count in sorted(others.items()))
            packed = " Unpack them first; of archives only .tar is read." if set(others) & set(_PACKED) else ""
            raise ValueError(
                f"Found no images in {self.name!r}. Files there, by extension: {seen or 'none at all'}. Expected some "
                f"of {', '.join(IMAGE_EXTENSIONS)} at any depth, or shards ({', '.join(SHARD_EXTENSIONS)}).{packed}"
            )
        self._paths = _Names(paths)
        self.fingerprint = self._paths.digest()
        if len(parents) > 1 and all(directory and os.sep not in directory for directory, _ in parents):
            self.labels = np.repeat(np.arange(len(parents)), [count for _, count in parents])
            self.label_names = [directory for directory, _ in parents]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> PIL.Image.Image | np.ndarray:
        return _open_image(self.describe(index))

    def describe(self, index: int) -> str:
        return os.path.join(self.folder, self._paths[index])


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (path below the folder, sorted names of its files), a folder before those in it.

    Follows links, enters each folder once, and does not pass over what it can't read. Unlike `os.walk` it makes no
    path of a file that is not asked for: a million files are listed in seconds.
    """
    entered, pending = set(), [""]
    while pending:
        directory = pending.pop()
        status = os.stat(os.path.join(folder, directory))
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        files, below = [], []
        with os.scandir(os.path.join(folder, directory)) as entries:
            for entry in entries:
                (below if entry.is_dir() else files).append(entry.name)
        yield directory, sorted(files)
        pending.extend(os.path.join(directory, name) for name in sorted(below, reverse=True))


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_image(name: str) -> bool:
    return _extension(name) in IMAGE_EXTENSIONS and not name.startswith(".")  # not what macOS leaves behind


class _Names(Sequence):
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
        return _digest(self._bytes, self._ends)


def _digest(*parts: bytes | np.ndarray | str) -> str:
    """Short and the same for the same content."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part) if len(part) else b"")
    return digest.hexdigest()[:16]


def _open_image(file: str | bytes, extension: str | None = None) -> PIL.Image.Image | np.ndarray:
    """Opens a path or the content of a file; pixels of a picture are not decoded yet."""
    extension = _extension(file) if extension is None else extension
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    if extension == ".npy":
        return np.load(file, mmap_mode="r" if isinstance(file, str) else None, allow_pickle=False)
    return PIL.Image.open(file)


# ----------------------------------------------------------------------------------------------------------------------
# Shards


class TarImages(ImageSource):
    """Images in uncompressed tar files (WebDataset), read in place by their offsets.

    The label of `name.jpg` is the integer in `name.cls`, if all images have one.
    """

    def __init__(self, files: Sequence[str], name: str):
        """
        Args:
            files (`list[str]`): The shards, in order.
            name (`str`): Where they come from.

        Raises:
            ValueError: If there is no image in them, or one is no uncompressed tar.
        """
        self.name, self._files, self._descriptors = name, list(files), {}
        names, places, labels = [], [], []
        for number, file in enumerate(files):
            classes, first = {}, len(names)
            try:
                with tarfile.open(file, "r:") as tar:
                    for member in tar:
                        stem, extension = os.path.splitext(member.name)
                        if not member.isfile():
                            continue
                        if extension == ".cls":
                            classes[stem] = int(tar.extractfile(member).read())
                        elif _is_image(os.path.basename(member.name)):
                            names.append(member.name)
                            places.append((number, member.offset_data, member.size))
            except (tarfile.TarError, ValueError) as error:
                raise ValueError(
                    f"{file} can't be read as an uncompressed tar ({error}). Decompress .tar.gz files with gunzip: "
                    "images are read in place."
                ) from error
            labels.extend(classes.get(os.path.splitext(name)[0]) for name in names[first:])
        if not names:
            raise ValueError(f"Found no images in {name}: {len(files)} tar file(s) without {_list(IMAGE_EXTENSIONS)}.")
        self._names, self._places = _Names(names), np.array(places, dtype=np.int64)
        self.labels = None if None in labels else np.array(labels, dtype=np.int64)
        self.fingerprint = _digest(self._names.digest(), self._places)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> PIL.Image.Image | np.ndarray:
        number, offset, size = (int(value) for value in self._places[index])
        if number not in self._descriptors:
            self._descriptors[number] = os.open(self._files[number], os.O_RDONLY)
        # pread has no position of its own, which forked workers would share with each other.
        content = os.pread(self._descriptors[number], size, offset)
        if len(content) < size:
            raise EOFError(f"the shard ends after {len(content)} of {size} bytes")
        return _open_image(content, _extension(self._names[index]))

    def describe(self, index: int) -> str:
        return f"{self._files[self._places[index, 0]]}:{self._names[index]}"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_descriptors": {}}


class ParquetImages(ImageSource):
    """Images in a column of parquet files, here or on the Hub, read by row group and not copied."""

    def __init__(self, files: Sequence[str], name: str, filesystem=None):
        """
        Args:
            files (`list[str]`): The shards, in order.
            name (`str`): Where they come from.
            filesystem (`fsspec.AbstractFileSystem`, *optional*): Where the files are, if not on this machine. Labels
                are not read from there: that would take a request per row group.

        Raises:
            ValueError: If no column holds images, or a file is not parquet.
        """
        import pyarrow.parquet

        self.name, self._files, self._filesystem = name, list(files), filesystem
        self._open: dict = {}
        self._cache: OrderedDict = OrderedDict()
        groups, labels, self._column = [], [], None
        for number, file in enumerate(files):
            try:
                parquet = self._parquet(number)
            except (pyarrow.lib.ArrowInvalid, OSError) as error:
                raise ValueError(f"{file} can't be read as parquet: {error}. Remove or repair it.") from error
            if self._column is None:
                self._column, self._label, label_names = _columns(parquet.schema_arrow, name)
            groups.extend((number, g, parquet.metadata.row_group(g).num_rows) for g in range(parquet.num_row_groups))
            if filesystem is None and self._label:
                labels.append(parquet.read([self._label], use_threads=False)[self._label].to_numpy().astype(np.int64))
        groups = [group for group in groups if group[2] > 0]
        if not groups:
            raise ValueError(f"Found no images in {name}: {len(files)} parquet file(s) without rows.")
        self._groups = np.array(groups, dtype=np.int64)
        self.row_groups = self._groups[:, 2]
        self._ends = np.cumsum(self.row_groups)
        if labels:
            self.labels, self.label_names = np.concatenate(labels), label_names
        self.fingerprint = _digest(json.dumps([os.path.basename(file) for file in files]), self._groups)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> PIL.Image.Image:
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = int(np.searchsorted(self._ends, index, side="right"))
        rows, unread = self._cache.pop(block, None) or (self._read(block), int(self.row_groups[block]))
        row = rows[index - int(self._ends[block] - self.row_groups[block])].as_py()
        if unread > 1:  # each row is read once in a pass, by one reader
            self._cache[block] = (rows, unread - 1)
        if len(self._cache) > _CACHED_ROW_GROUPS:
            self._cache.popitem(last=False)
        content = row["bytes"] if isinstance(row, dict) else row
        if content is None:
            raise ValueError("its row holds no bytes")
        return PIL.Image.open(io.BytesIO(content))

    def describe(self, index: int) -> str:
        file = int(self._groups[np.searchsorted(self._ends, index, side="right"), 0])
        first = int(self.row_groups[self._groups[:, 0] < file].sum())
        return f"{self._files[file]}:{index - first}"

    def _read(self, block: int):
        number, group = (int(value) for value in self._groups[block, :2])
        # Workers are forked and several as it is: no threads.
        return self._parquet(number).read_row_group(group, columns=[self._column], use_threads=False)[self._column]

    def _parquet(self, number: int):
        import pyarrow.parquet

        key = (os.getpid(), number)  # opened anew in a worker: the position of a file is shared across a fork
        if key not in self._open:
            if len(self._open) > _CACHED_ROW_GROUPS:
                self._open.clear()
            path = self._files[number]
            file = path if self._filesystem is None else self._filesystem.open(path)
            self._open[key] = pyarrow.parquet.ParquetFile(file, memory_map=self._filesystem is None)
        return self._open[key]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}, "_cache": OrderedDict()}


def _columns(schema, name: str) -> tuple[str, str | None, list[str] | None]:
    """Names of the columns of images and of labels in a parquet file, and names of the classes."""
    import pyarrow as pa

    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features") or {}
    kinds = {column: feature.get("_type") for column, feature in features.items() if isinstance(feature, dict)}
    images = [column for column in schema.names if kinds.get(column) == "Image"] or [
        field.name
        for field in schema
        if pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
        or (pa.types.is_struct(field.type) and "bytes" in [part.name for part in field.type])
    ]
    if not images:
        raise ValueError(_no_column(name, {field.name: field.type for field in schema}))
    labels = [column for column in schema.names if kinds.get(column) == "ClassLabel"]
    if not labels and "label" in schema.names and pa.types.is_integer(schema.field("label").type):
        labels = ["label"]
    if not labels:
        return images[0], None, None
    return images[0], labels[0], (features.get(labels[0]) or {}).get("names")


class DatasetImages(ImageSource):
    """The image column of a data set of the `datasets` library: mapped Arrow files."""

    def __init__(self, dataset, name: str):
        """
        Args:
            dataset (`datasets.Dataset`): With a column of images. A column of class labels is used if there is one.
            name (`str`): Where it comes from.

        Raises:
            ValueError: If no column holds images.
        """
        import datasets

        columns = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        if not columns:
            raise ValueError(_no_column(name, dataset.features))
        self.name, self.license, self.column = name, dataset.info.license or None, columns[0]
        # Bytes, not pictures: decoding is ours to do, at the size that a crop needs.
        images = dataset.select_columns(columns[:1])
        self.dataset = images.cast_column(self.column, datasets.Image(decode=False))
        for column, feature in dataset.features.items():
            if isinstance(feature, datasets.ClassLabel) or (column == "label" and str(feature.dtype).startswith("int")):
                self.labels = np.array(dataset[column], dtype=np.int64)
                self.label_names = getattr(feature, "names", None)
                break
        self.fingerprint = _digest(f"{len(dataset)} {self.column}", b"" if self.labels is None else self.labels)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> PIL.Image.Image:
        image = self.dataset[index][self.column]
        return PIL.Image.open(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"])


def _no_column(name: str, columns: dict) -> str:
    found = ", ".join(f"{column} ({kind})" for column, kind in columns.items())
    return (
        f"No column of {name} holds images. Columns: {found}. Cast one with "
        "`dataset.cast_column(name, datasets.Image())` and save the data set again."
    )


def _list(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


# ----------------------------------------------------------------------------------------------------------------------
# Which it is


def open_images(data: str | None = None, split: str = "train", streaming: bool = False) -> ImageSource | None:
    """Opens a source of images.

    Args:
        data (`str`, *optional*): A folder of images (flat or nested; `train` and `val` below it are taken for splits),
            a `.parquet` or uncompressed `.tar` file or a folder of such shards, a folder of `.arrow` files or one
            written by `Dataset.save_to_disk`, or the name of a data set on the Hub. Without it the embedded sample of
            Fashion-MNIST is opened.
        split (`"train"` or `"test"`, *optional*): Images to train on, or to evaluate on.
        streaming (`bool`, *optional*, defaults to `False`): Read the parquet files of a data set of the Hub over the
            network by row group, instead of downloading it first. Local data are never copied.

    Returns:
        [`ImageSource`], or `None` if `split` is `"test"` and the source has none.

    Raises:
        ValueError: If there are no images in it.
        OSError: If it can't be found or read.
    """
    if data is None:
        return FashionMNISTImages(split)
    path = Path(data)
    if not path.exists():
        images = _from_hub(data, split) if streaming else _from_datasets(data, split, lambda d: d.load_dataset(data))
        if images is not None:
            images.dataset = data
        return images
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _from_datasets(data, split, lambda d: d.load_from_disk(data))
    if not path.is_dir():
        if path.suffix not in SHARD_EXTENSIONS:
            raise ValueError(f"{data!r} is neither a folder nor a shard ({_list(SHARD_EXTENSIONS)}).")
        return _from_shards([data], data) if split == "train" else None
    train, test = (next((path / n for n in names if (path / n).is_dir()), None) for names in (_TRAIN, _TEST))
    if train is None:
        return _from_folder(data, split)
    chosen = train if split == "train" else test
    return None if chosen is None else _from_folder(os.fspath(chosen))


def _from_folder(folder: str, split: str | None = None) -> ImageSource | None:
    """The images of a folder, or else its shards: those of a split, or all."""
    listing = []
    for directory, names in _walk(folder):
        listing.append((directory, names))
        if split == "test" and any(_is_image(name) for name in names):
            return None  # no need to list the rest once more
    shards = [
        os.path.join(folder, directory, name)
        for directory, names in listing
        for name in names
        if _extension(name) in SHARD_EXTENSIONS
    ]
    if not shards or any(_is_image(name) for _, names in listing for name in names):
        return FolderImages(folder, listing) if split != "test" else None
    if split is not None:
        shards = _of_split(shards, split, folder)
    return _from_shards(shards, folder if split is None else f"{folder} ({split})") if shards else None


def _of_split(shards: Sequence[str], split: str, folder: str = "") -> list[str]:
    """Those of a split, by the words in their paths; for training all that name no other split."""
    words = {shard: re.split(r"[^a-z]+", os.path.relpath(shard, folder or ".").lower()) for shard in shards}
    for names in (_TRAIN,) if split == "train" else tuple((name,) for name in _TEST):
        if found := [shard for shard in shards if any(name in words[shard] for name in names)]:
            return found
    return [shard for shard in shards if not any(name in words[shard] for name in _TEST)] if split == "train" else []


def _from_shards(files: list[str], name: str) -> ImageSource:
    kinds = {_extension(file) for file in files}
    if len(kinds) > 1:
        raise ValueError(f"{name} holds shards of several kinds: {', '.join(sorted(kinds))}. Point to those of one.")
    if kinds == {".tar"}:
        return TarImages(files, name)
    if kinds == {".parquet"}:
        return ParquetImages(files, name)
    import datasets

    return DatasetImages(datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files]), name)


def _from_hub(data: str, split: str) -> ParquetImages | None:
    """The parquet files of a data set of the Hub, left where they are."""
    from huggingface_hub import HfFileSystem

    filesystem = HfFileSystem()
    try:
        files = sorted(filesystem.glob(f"datasets/{data}/**/*.parquet"))
    except Exception as error:  # of many kinds: no such name, no network, no permission
        raise OSError(_not_found(data, error)) from error
    if not files:
        raise ValueError(f"{data!r} on the Hub has no parquet files to stream. Leave --streaming out to download it.")
    shards = _of_split(files, split, f"datasets/{data}")
    return ParquetImages(shards, f"{data} ({split})", filesystem) if shards else None


def _from_datasets(data: str, split: str, load) -> DatasetImages | None:
    import datasets

    try:
        dataset = load(datasets)
    except Exception as error:  # of many kinds: no such name, no network, no permission, broken file
        raise OSError(_not_found(data, error)) from error
    if isinstance(dataset, dict):
        found = next((name for name in (("train",) if split == "train" else _TEST) if name in dataset), None)
        if found is None and split == "train":
            raise ValueError(f"{data!r} has no split 'train', only {', '.join(dataset)}.")
        return None if found is None else DatasetImages(dataset[found], f"{data} ({found})")
    return DatasetImages(dataset, data) if split == "train" else None


def _not_found(data: str, error: Exception) -> str:
    return (
        f"{data!r} is no folder or file here, and could not be loaded as a data set of the Hub or from disk: "
        f"{type(error).__name__}: {str(error)[:300]}"
    )


__all__ = [
    "DatasetImages",
    "FashionMNISTImages",
    "FolderImages",
    "ImageSource",
    "ParquetImages",
    "TarImages",
    "open_images",
]
