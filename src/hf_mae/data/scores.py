# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads the losses that `hf-mae score` has written, and turns them into the weights by which a run draws its images."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .held_out import SelectedImages
from .image_source import ImageSource


def read_losses(scores: str | os.PathLike, images: ImageSource) -> np.ndarray:
    """Returns the loss of each image of a source, float64 of shape `(len(images),)`, NaN where it has none.

    Args:
        scores (`str` or `os.PathLike`): A parquet file of `hf-mae score`.
        images ([`ImageSource`]): The images that were scored, or some of them, as [`hold_out`] returns them.

    Raises:
        ValueError: If the file holds no scores, or those of other images.
        OSError: If it can't be read.
    """
    if not os.path.isfile(scores):
        raise OSError(f"There is no file {os.fspath(scores)} (`sample_by_loss`). Write it by hf-mae score.")
    try:
        schema = pq.read_schema(scores)
        metadata = {name.decode(): value for name, value in (schema.metadata or {}).items()}
        source, fingerprint = (json.loads(metadata[name]) for name in ("source", "fingerprint"))
        table = pq.read_table(scores, columns=["index", "loss"])
        index, loss = (table[name].to_numpy() for name in ("index", "loss"))
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(scores)} is no file of hf-mae score ({type(error).__name__}: {error})."
        ) from error
    chosen = _indices_in(images, fingerprint)
    if chosen is None:
        raise ValueError(
            f"{os.fspath(scores)} holds the losses of {len(index):,} images of {source}, with the fingerprint "
            f"{fingerprint}. These are {len(images):,} images of {images.name} with {images.fingerprint}: others, or "
            "more or fewer, or changed since. Score the images themselves by hf-mae score, with the same `data`."
        )
    losses = np.full(len(index), np.nan)
    losses[index] = loss
    return losses[chosen]


def _indices_in(images: ImageSource, fingerprint: str) -> np.ndarray | None:
    """Returns which images of the source with a fingerprint these are, or `None` if they are others."""
    if images.fingerprint == fingerprint:
        return np.arange(len(images))
    if not isinstance(images, SelectedImages):
        return None
    whole = _indices_in(images.images, fingerprint)
    return None if whole is None else whole[images.indices]


def weights_by_loss(scores: str | os.PathLike, images: ImageSource) -> np.ndarray:
    """Returns the weight of each image, min(loss, 1), float64 of shape `(len(images),)`; 0 for those without a loss.

    Source: Pixio (arXiv 2512.15715), section 3.3, where an image is accepted with this probability.

    Args:
        scores, images: As in [`read_losses`]. Images without a loss can't be read, or show no data.

    Raises:
        ValueError: As in [`read_losses`]; or if the images are read by row group, or no image has a positive loss.
        OSError: If the file can't be read.
    """
    if images.row_groups is not None:
        raise ValueError(
            f"`sample_by_loss` draws single images from all over the data, but {images.name} is read by row group, "
            "and whole ones would be read for each image. Write the images to a folder or to .tar files."
        )
    losses = read_losses(scores, images)
    losses = np.where(np.isfinite(losses), losses, 0)
    if losses.min() < 0 or losses.max() == 0:
        what = "negative losses" if losses.min() < 0 else "no positive loss"
        raise ValueError(f"{os.fspath(scores)} has {what} for {images.name}: nothing can be drawn by it.")
    return np.minimum(losses, 1)


def describe_weights(weights: np.ndarray) -> str:
    """Returns in a sentence how often images are drawn by weights `(images,)`."""
    most, never = weights.max() / weights.mean(), int((weights == 0).sum())
    return (
        f"Images are drawn by their loss: in an epoch of {len(weights):,} on average up to {most:.2f} times each; "
        f"{(weights < 0.5 * weights.max()).sum():,} less than half as often, {never:,} never."
    )


__all__ = ["describe_weights", "read_losses", "weights_by_loss"]
