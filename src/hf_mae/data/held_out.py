# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Holds images out for evaluation, where the data have no second split: by their names or their groups, not by chance.

A hash of the names orders the images, and the first of them are held out. So every machine, every process and every
command holds out the same ones, wherever the data lie and in whichever order they are listed; a smaller share is part
of a larger one; and what pre-training holds out, fine-tuning with the same or a larger share does not train on.
"""

import unicodedata
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from ..modeling.reading_mae import OpenedImage
from .image_source import DerivedImages, ImageSource, digest

DEFAULT_SHARE = 0.1  # but that of pre-training, see `default_share`
_ROW_GROUPS_TOGETHER = 64  # as many as a run mixes at any time
_FEW = 20  # images, of which one is 5 % of a figure
_ENOUGH = 300  # images, whose accuracies have a standard error of at most 2.9 points


class HeldOut(NamedTuple):
    """Says which images of a source are held out.

    Attributes:
        chosen (`np.ndarray` of bool, of shape `(images,)`): Whether an image is held out.
        note (`str`): How many and why, to be printed.
    """

    chosen: np.ndarray
    note: str


class SelectedImages(DerivedImages):
    """Some images of another source, in its order."""

    def __init__(self, images: ImageSource, chosen: np.ndarray):
        """
        Args:
            images ([`ImageSource`]): The other source.
            chosen (`np.ndarray` of bool, of shape `(len(images),)`): Whether an image is taken, at least one.
        """
        indices = np.flatnonzero(chosen)
        super().__init__(images.restricted_to(indices), indices)
        if images.row_groups is not None:  # in the order of the source they are still runs of consecutive images
            groups = np.repeat(np.arange(len(images.row_groups)), images.row_groups)
            lengths = np.bincount(groups[indices])
            self.row_groups, self.row_groups_at_once = lengths[lengths > 0], images.row_groups_at_once
        self.fingerprint = digest(images.fingerprint, indices)

    def __getitem__(self, index: int) -> OpenedImage:
        return self.images[int(self.indices[index])]


def check_not_held_out(share: float | None, group_by: str | None, name: str | None) -> list[str]:
    """Refuses groups where nothing is held out: that none of them is in both splits is for the data to see to.

    Args:
        share (`float`, *optional*): Share of the images that the settings hold out elsewhere.
        group_by (`str`, *optional*): See [`ImageSource.groups`].
        name (`str`, *optional*): What messages call the data, which have a second split. Default: the embedded sample.

    Returns:
        `list[str]`: Notes to be printed: one if a share was set that has no effect, else none.

    Raises:
        ValueError: If `group_by` is given.
    """
    name = name or "the embedded sample"
    if group_by is not None:
        raise ValueError(
            f"`group_by` {group_by} keeps groups together where images are held out, and none are of {name}, which has "
            "a split to evaluate on. Leave it out, and see to it yourself that no group is in both splits."
        )
    if share in (None, DEFAULT_SHARE):
        return []
    return [f"`held_out` {share:g} has no effect: {name} has a split to evaluate on."]


def choose_held_out(
    images: ImageSource,
    share: float,
    group_by: str | None = None,
    at_most: int | None = None,
    counted: np.ndarray | None = None,
) -> HeldOut:
    """Chooses the images that are held out: `round(share * len(images))` of them, at least one and never all.

    Of sources that are read by row group, the first come from 64 row groups, since images from all over the source
    would make every evaluation read all of it.

    Args:
        images ([`ImageSource`]): The source.
        share (`float`): Share of the images, in [0, 1). 0: none.
        group_by (`str`, *optional*): Groups that stay together, see [`ImageSource.groups`]. Whole ones are taken, in
            the order of the hashes of their names, until the share is reached. Default: images with the same key.
        at_most (`int`, *optional*): Maximum number of images, which only the last group may exceed.
        counted (`np.ndarray` of bool, of shape `(images,)`, *optional*): Whether an image can be used, because it has
            a label, say. Then the share is reached among these and among all.

    Returns:
        [`HeldOut`]. Without `group_by` no image is chosen if all have the same key, as the windows of one scene.

    Raises:
        ValueError: If the share is not in [0, 1), images have no group, or all are in the same one.
    """
    if not 0 <= share < 1:
        raise ValueError(f"`held_out` must be a share of the images in [0, 1), got {share}.")
    if share == 0:
        return HeldOut(np.zeros(len(images), dtype=bool), "")
    counted = np.ones(len(images), dtype=bool) if counted is None else counted
    what = "images" if counted.all() else "images with a label"
    places = _places_of_keys(images) if group_by is None else _places_of_groups(images, group_by)
    _, unit_of, sizes = np.unique(places, return_inverse=True, return_counts=True)
    sizes_counted = np.bincount(unit_of, weights=counted)
    useful = np.flatnonzero(sizes_counted)
    if len(useful) < 2:
        if group_by is not None:
            raise ValueError(
                f"The {what} of {images.name} are all in one group by `group_by` {group_by!r}, so that none can be "
                "held out for evaluation. Choose another `group_by`, or set `held_out` to 0."
            )
        return HeldOut(
            np.zeros(len(images), dtype=bool),
            f"The {what} of {images.name} are one image or parts of one: none is held out for evaluation.",
        )
    taken = max(_units_needed(sizes, share, at_most), _units_needed(sizes_counted, share, at_most))
    taken = min(taken, int(useful[-1]))  # some remain to train on
    chosen = unit_of < taken
    how = "chosen by their names" if group_by is None else f"{taken:,} of {len(sizes):,} groups by {group_by}"
    return HeldOut(chosen, _note(int((chosen & counted).sum()), f"{int(counted.sum()):,} {what}", how))


def default_share(count: int) -> float:
    """Returns which share of the images pre-training holds out: a hundredth, but 300 images or a tenth if that is less.

    Args:
        count (`int`): Number of images.
    """
    return min(max(0.01, _ENOUGH / count), 0.1)


def _note(number: int, of_what: str, how: str) -> str:
    note = f"{number:,} of {of_what} {'is' if number == 1 else 'are'} held out for evaluation, {how}."
    if number < _FEW:
        note += " Figures on so few are noisy: raise `held_out`, or make a second split."
    return note


def hold_out(
    images: ImageSource,
    share: float,
    group_by: str | None = None,
    at_most: int | None = None,
    counted: np.ndarray | None = None,
) -> tuple[ImageSource, ImageSource | None, str]:
    """Divides a source.

    Args:
        images ([`ImageSource`]): All images.
        share, group_by, at_most, counted (*optional*): See [`choose_held_out`].

    Returns:
        The images to train on, those held out or `None` if there are none, and a note to be printed, which is empty if
        none were to be held out. Images that do not count are in neither part.
    """
    chosen, note = choose_held_out(images, share, group_by, at_most, counted)
    counted = np.ones(len(images), dtype=bool) if counted is None else counted
    train_images = select(images, counted & ~chosen)
    if not chosen.any():
        return train_images, None, note
    held_out = SelectedImages(images, counted & chosen)
    held_out.notes = []  # the other part has them
    train_images.num_held_out = len(held_out)
    return train_images, held_out, note


def select(images: ImageSource, chosen: np.ndarray) -> ImageSource:
    """Returns some images of a source, or the source itself if those are all.

    Args:
        images ([`ImageSource`]): The source.
        chosen (`np.ndarray` of bool, of shape `(images,)`): Whether an image is taken.
    """
    return images if chosen.all() else SelectedImages(images, chosen)


def _units_needed(sizes: np.ndarray, share: float, at_most: int | None) -> int:
    """Returns how many units, in their order, hold the share of all images."""
    wanted = max(round(share * sizes.sum()), 1)
    wanted = wanted if at_most is None else min(wanted, at_most)
    return int(np.searchsorted(np.cumsum(sizes), wanted)) + 1


def _places_of_keys(images: ImageSource) -> np.ndarray:
    """Returns the place of each image in the order, uint64; images with the same key have the same."""
    places = np.fromiter((_hash(images.key(index)) for index in range(len(images))), np.uint64, len(images))
    lengths = images.row_groups
    if lengths is None or len(lengths) <= _ROW_GROUPS_TOGETHER or len(np.unique(places)) < len(places):
        return places
    rank = np.argsort(np.argsort(places[np.cumsum(lengths) - lengths]))  # of each row group, by its first image
    turn = np.minimum(rank // _ROW_GROUPS_TOGETHER, 2**16 - 1).astype(np.uint64)
    return (np.repeat(turn, lengths) << np.uint64(48)) | (places >> np.uint64(16))


def _places_of_groups(images: ImageSource, group_by: str) -> np.ndarray:
    """Returns the place of each image's group in the order, uint64.

    Raises:
        ValueError: If images have no group.
    """
    groups = list(images.groups(group_by))
    groups = [None if group in (None, "") or group != group else str(group) for group in groups]  # NaN is not itself
    if missing := groups.count(None):
        first = images.describe(groups.index(None))
        raise ValueError(
            f"{missing:,} of {len(groups):,} images of {images.name} have no value of {group_by!r} (`group_by`), first "
            f"{first}. Fill it in, or take the images out."
        )
    hashes = {group: _hash(group) for group in set(groups)}
    return np.fromiter((hashes[group] for group in groups), np.uint64, len(groups))


def _hash(name: str) -> int:
    """Returns 64 bits that depend on the name alone, on all machines and in all versions of Python."""
    if not name.isascii():  # some file systems take accents apart
        name = unicodedata.normalize("NFC", name)
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


__all__ = [
    "DEFAULT_SHARE",
    "HeldOut",
    "SelectedImages",
    "check_not_held_out",
    "choose_held_out",
    "default_share",
    "hold_out",
    "select",
]
