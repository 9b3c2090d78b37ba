# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Draws what features see: the nearest images of some queries, and the features of patches as colours."""

import itertools
from collections.abc import Callable, Sequence

import PIL.Image
import PIL.ImageDraw
import torch

from .visualization import enlarged, picture_sheet

_MARGIN, _LINE = 4, 16  # pixels between pictures, and of a line of text
_DEVIATIONS_SHOWN = 2.5  # from the middle of a colour to its end


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
    features = features.double().cpu()
    centered = features - features.mean(dim=0)
    deviation = centered.square().mean(dim=0).sqrt()
    features = torch.nn.functional.normalize(centered / deviation.clamp(min=1e-12), dim=1)
    rows = torch.as_tensor(list(queries))
    cosines = features[rows] @ features.T  # (Q, N)
    cosines[torch.arange(len(rows)), rows] = torch.nan
    cosines[cosines > near_duplicate] = torch.nan
    missing = max(num_neighbors - cosines.shape[1], 0)
    cosines = torch.nn.functional.pad(cosines, (0, missing), value=torch.nan)
    order = cosines.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)[:, :num_neighbors]
    nearest = cosines.gather(1, order)
    return order.masked_fill(nearest.isnan(), -1), nearest


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
            called only for images that are drawn.
        queries (`Sequence[int]`): Indices of the queries.
        num_neighbors (`int`, *optional*, defaults to 8): Neighbours of a query.
        side (`int`, *optional*, defaults to 84): Pixels of the longer side of a picture in the sheet.
    """
    indices, cosines = nearest_images(features, queries, num_neighbors)
    width, height, left = side + _MARGIN, side + _LINE, side + 5 * _MARGIN  # left: where the neighbours start
    sheet = PIL.Image.new("RGB", (left + num_neighbors * width, _LINE + len(queries) * height), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((2, 2), "query", fill="black")
    draw.text((left + 2, 2), "nearest images, with 1 - cosine of their features", fill="black")
    for row, query in enumerate(queries):
        y = _LINE + row * height
        sheet.paste(fitted(pictures(query), side), (0, y))
        for place, (index, cosine) in enumerate(zip(indices[row].tolist(), cosines[row].tolist(), strict=True)):
            if index >= 0:
                x = left + place * width
                sheet.paste(fitted(pictures(index), side), (x, y))
                draw.text((x + side // 2, y + side + 2), f"{1 - cosine:.2f}", fill="black", anchor="mt")
    return sheet


def fitted(picture: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Puts a picture into a white square: reduced smoothly, or enlarged by a whole factor with its pixels visible.

    Args:
        picture (`PIL.Image.Image`): The picture.
        side (`int`): Pixels of the square.
    """
    picture = picture.convert("RGB")
    factor = side / max(picture.size)
    if factor < 1:
        picture.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    else:
        size = (picture.width * int(factor), picture.height * int(factor))
        picture = picture.resize(size, PIL.Image.Resampling.NEAREST)
    square = PIL.Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


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
    content = _without_positions(patches.double().cpu())
    flat = content.flatten(0, 2)  # (P, D)
    flat = flat - flat.mean(dim=0)
    variances, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))  # in ascending order
    projections = flat @ vectors[:, -3:].flip(1)  # (P, 3)
    deviations = variances[-3:].flip(0).clamp(min=0).sqrt()
    # Patches that are all alike have no deviation but that of rounding, which must not become colours.
    smallest = 1e-6 * patches.double().square().mean().sqrt().item()
    projections = torch.where(deviations > smallest, projections / deviations.clamp(min=1e-300), 0)
    projections = projections * torch.where(projections.pow(3).sum(dim=0) < 0, -1, 1)  # skewed to the right
    if previous is not None and previous.shape == (*patches.shape[:3], 3):
        projections = _aligned(projections, previous.to(projections).flatten(0, 2))
    projections = projections.unflatten(0, patches.shape[:3]).float()
    return (0.5 + projections / (2 * _DEVIATIONS_SHOWN)).clamp(0, 1), projections


def _without_positions(patches: torch.Tensor) -> torch.Tensor:
    """Subtracts from patches (B, rows, columns, D) what is common to all images at a position.

    The mean over images at a position is an estimate of that, with the error of a mean over B images. It is shrunk
    towards the mean over positions by the share of its variance that this error explains (as the estimator of James and
    Stein 1961 does), so that in a few images little of their content is taken for a pattern; in a single one nothing.
    """
    num_images = len(patches)
    if num_images == 1:
        return patches
    pattern = patches.mean(dim=0)
    error = (patches - pattern).square().sum() / (num_images * (num_images - 1))
    pattern = pattern - pattern.mean(dim=(0, 1))
    return patches - pattern * (1 - error / pattern.square().sum().clamp(min=1e-300)).clamp(min=0)


def _aligned(projections: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    """Brings components (P, 3) into the order and signs in which they correlate best with the previous ones (P, 3)."""
    correlations = previous.T @ projections / len(projections)  # of each previous one with each new one
    sizes = correlations.abs().tolist()
    order = max(itertools.permutations(range(3)), key=lambda order: sum(map(list.__getitem__, sizes, order)))
    signs = correlations[torch.arange(3), list(order)]
    return projections[:, list(order)] * torch.where(signs < 0, -1, 1)


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
    size = enlarged(pictures[0].size, min_side)
    maps = [PIL.Image.fromarray((each * 255).round().byte().numpy()) for each in colors[: len(pictures)]]
    return picture_sheet(list(zip(pictures, maps, strict=True)), ("image", "patches"), size, columns)


__all__ = ["fitted", "nearest_images", "neighbor_sheet", "patch_colors", "pca_sheet"]
