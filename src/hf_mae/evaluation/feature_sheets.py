# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Draws what features see: the nearest images of some queries, and the features of patches as colours."""

from collections.abc import Callable, Sequence

import PIL.Image
import torch


def nearest_images(
    features: torch.Tensor, queries: Sequence[int], num_neighbors: int = 8, near_duplicate: float = 0.99
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the images whose features are nearest to those of some queries, by cosine of standardised features.

    Args:
        features (`torch.Tensor` of shape `(images, width)`): Pooled features, at most some thousand. Each dimension is
            brought to mean 0 and deviation 1 first, since few dimensions of high variance otherwise decide everything.
        queries (`Sequence[int]`): Indices of the queries. A query is not its own neighbour.
        num_neighbors (`int`, *optional*, defaults to 8): Neighbours of a query.
        near_duplicate (`float`, *optional*, defaults to 0.99): Images of a greater cosine to the query are left out.

    Returns:
        `torch.LongTensor` of shape `(queries, num_neighbors)`: Indices, the nearest first, -1 where there are no more.
        `torch.Tensor` of the same shape: Their cosines in [-1, 1], NaN where there are no more.
    """
    raise NotImplementedError


def neighbor_sheet(
    features: torch.Tensor,
    pictures: Callable[[int], PIL.Image.Image],
    queries: Sequence[int],
    num_neighbors: int = 8,
    side: int = 84,
) -> PIL.Image.Image:
    """Draws a row for each query: its picture, then its nearest images with their distances, 1 - cosine.

    Args:
        features (`torch.Tensor` of shape `(images, width)`): Pooled features, see [`nearest_images`].
        pictures (`Callable[[int], PIL.Image.Image]`): Returns the picture of an image by its index, in any size. It is
            called for those that are drawn only.
        queries (`Sequence[int]`): Indices of the queries.
        num_neighbors (`int`, *optional*, defaults to 8): Neighbours of a query.
        side (`int`, *optional*, defaults to 84): Pixels of the longer side of a picture in the sheet.
    """
    raise NotImplementedError


def patch_colors(patches: torch.Tensor, previous: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns features of patches into colours, by their three principal components over all patches of all images.

    Args:
        patches (`torch.Tensor` of shape `(images, rows, columns, width)`): Features, best of some 64 images.
        previous (`torch.Tensor` of shape `(images, rows, columns, 3)`, *optional*): The projections that this function
            returned for the same images at an earlier checkpoint. Components are brought into their order and signs, so
            that colours do not jump from one checkpoint to the next. Projections of another shape are not used.

    Returns:
        `torch.Tensor` of shape `(images, rows, columns, 3)`: Red, green and blue in [0, 1], float32, on the CPU.
        `torch.Tensor` of the same shape: The projections, in units of their deviation, to be passed as `previous`.
    """
    raise NotImplementedError


def pca_sheet(
    pictures: Sequence[PIL.Image.Image], colors: torch.Tensor, columns: int = 4, min_side: int = 112
) -> PIL.Image.Image:
    """Draws each picture next to the colours of its patches.

    Args:
        pictures (`Sequence[PIL.Image.Image]`): Pictures of the first of the images that have colours, of one size.
        colors (`torch.Tensor` of shape `(images, rows, columns, 3)`): As [`patch_colors`] returns them.
        columns (`int`, *optional*, defaults to 4): Images in a row of the sheet, each as a pair of pictures.
        min_side (`int`, *optional*, defaults to 112): Smaller pictures are enlarged by a whole factor to this side.
    """
    raise NotImplementedError


__all__ = ["nearest_images", "neighbor_sheet", "patch_colors", "pca_sheet"]
