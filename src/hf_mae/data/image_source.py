# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The interface of all sources of images."""

import hashlib
from collections.abc import Sequence

import numpy as np

from ..modeling.reading_mae import OpenedImage


class ImageSource(Sequence):
    """A sequence of images, with or without labels.

    A source of your own needs `__len__`, `__getitem__`, `name` and `fingerprint`. `key` and `groups` say which images
    are held out together, see [`choose_held_out`].

    Attributes:
        name (`str`): Where the images come from, for logs and model cards.
        labels (`np.ndarray` of int64 or `None`): The class of each image, counted from 0. Negative: no label.
        label_names (`list[str]` or `None`): Names of the classes, where they are known.
        row_groups (`np.ndarray` of int64 or `None`): Lengths of the runs of consecutive images that are read together,
            as in parquet files. `None` if any image can be read by itself.
        row_groups_at_once (`int`): Maximum number of row groups that a run mixes at any time, since a reader holds them
            in memory.
        fingerprint (`str`): Changes whenever the images, their number or their order change.
        dataset (`str` or `None`): Their name on the Hub.
        license (`str` or `None`): Their licence, where it is known.
        notes (`list[str]`): What was chosen or left out when the source was opened, to be printed.
        num_held_out (`int`): Number of images of the same data that are held out of these.
    """

    name: str
    dataset: str | None = None
    license: str | None = None
    labels: np.ndarray | None = None
    label_names: list[str] | None = None
    row_groups: np.ndarray | None = None
    row_groups_at_once: int = 64
    fingerprint: str
    notes: Sequence[str] = ()
    num_held_out: int = 0

    def __getitem__(self, index: int) -> OpenedImage:
        """Returns image `index`, in [0, len(self)), opened but not decoded.

        Raises:
            Exception: Of any type, if it can't be read: libraries raise errors of many types for broken files.
        """
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Returns the name of image `index` for messages."""
        return f"image {index} of {self.name}"

    def key(self, index: int) -> str:
        """Returns what image `index` is called wherever the images lie; those with the same key are held out together.

        Default: the index, for sources whose order never changes.
        """
        return str(index)

    def groups(self, group_by: str) -> Sequence:
        """Returns the name of the group of each image, `None` where it has none.

        Args:
            group_by (`str`): `folder`, for images that lie in one directory, or the name of a column of the data.

        Raises:
            ValueError: If the source knows no such groups.
        """
        raise ValueError(f"`group_by` {group_by!r}: the images of {self.name} have no such groups.")

    def restricted_to(self, indices: np.ndarray) -> "ImageSource":
        """Returns the same images for a reader that takes only some of them. Sources that keep what they read override
        it, to know when they may drop it.

        Args:
            indices (`np.ndarray` of int64): The images that are read.
        """
        return self


class DerivedImages(ImageSource):
    """Images that come from those of another source: a choice of them, or parts of them. They have the same labels.

    Attributes:
        images ([`ImageSource`]): The other source.
        indices (`np.ndarray` of int64, of shape `(len(self),)`): Which image of the other source each comes from.
    """

    notes: list[str]

    def __init__(self, images: ImageSource, indices: np.ndarray):
        self.images, self.indices = images, indices
        self.name, self.dataset, self.license = images.name, images.dataset, images.license
        self.labels = None if images.labels is None else images.labels[indices]
        self.label_names, self.notes = images.label_names, list(images.notes)

    def __len__(self) -> int:
        return len(self.indices)

    def describe(self, index: int) -> str:
        return self.images.describe(int(self.indices[index]))

    def key(self, index: int) -> str:
        return self.images.key(int(self.indices[index]))

    def groups(self, group_by: str) -> Sequence:
        groups = self.images.groups(group_by)
        return [groups[index] for index in self.indices.tolist()]


def digest(*parts: bytes | np.ndarray | str) -> str:
    """Returns a short hash of the content."""
    result = hashlib.sha256()
    for part in parts:
        result.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data if len(part) else b"")
    return result.hexdigest()[:16]


__all__ = ["DerivedImages", "ImageSource", "digest"]
