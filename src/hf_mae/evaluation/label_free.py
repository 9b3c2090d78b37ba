# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Says without labels how features spread: effective rank, retrieval of twins, mean cosine, and the alarm of collapse.

All figures are computed in float64, whatever the autocast. They show that something is wrong, not which of two good
models is better: random weights, for example, may have a high rank.
"""

import math

import torch
from torch.nn.functional import normalize

# Images that say anything of few directions, of which there are always fewer than images: twice the ten of `collapse`.
_FEWEST_IMAGES = 20


def effective_rank(features: torch.Tensor) -> float:
    """Returns how many directions features use about equally: the exponential of the entropy of singular values.

    With the singular values s of the centred features and p = s / sum(s) it is exp(-sum(p ln p)), where 0 ln 0 is 0.
    Source: RankMe (Garrido et al. 2022, arXiv 2210.02885), equation 1, which does not centre and adds 1e-7 to p. The
    mean is left out here because it is the same for all images and says nothing of their differences. Code that takes
    eigenvalues of the covariance, the squares of s, computes smaller numbers under the same name.

    Args:
        features (`torch.Tensor` of shape `(images, width)`): Features of at least two images. With four times as many
            images as there are dimensions, the value is close to that of more images.

    Returns:
        `float` in [1, min(images - 1, width)]. 1 where all features are the same but for rounding, NaN where some are
        not finite.

    Raises:
        ValueError: If there are fewer than two images.
    """
    _check_count(features)
    values = features.double()
    if not values.isfinite().all():  # svdvals would raise
        return math.nan
    centred = values - values.mean(dim=0)
    if centred.norm() <= 10 * torch.finfo(features.dtype).eps * values.norm():  # rounding points into all directions
        return 1.0
    singular = torch.linalg.svdvals(centred)
    return torch.special.entr(singular / singular.sum()).sum().exp().item()


def twin_retrieval(first: torch.Tensor, second: torch.Tensor) -> float:
    """Returns the share of crops whose nearest crop among those of all images, by cosine, is of the same image.

    Each of the first crops looks among all second ones, and the other way round. The mean of all features is subtracted
    before. It is the instance discrimination of Wu et al. 2018 (arXiv 1805.01978) as a measurement.

    Args:
        first, second (`torch.Tensor` of shape `(images, width)`): Features of two crops of each image, in the same
            order. At least two images.

    Returns:
        `float` in [0, 1], NaN where features are not finite. By chance it is 1 / images, so it can only be compared for
        the same number of images.

    Raises:
        ValueError: If there are fewer than two images, or the shapes differ.
    """
    _check_count(first)
    if first.shape != second.shape:
        raise ValueError(f"`first` and `second` must have the same shape, got {first.shape} and {second.shape}.")
    both = torch.stack([first, second]).double()
    if not both.isfinite().all():  # any index could be the largest
        return math.nan
    first, second = normalize(both - both.mean(dim=(0, 1)), dim=-1)
    similarity, twins = first @ second.T, torch.arange(len(first), device=first.device)
    found = [similarity.argmax(dim=dim) == twins for dim in (0, 1)]
    return torch.cat(found).double().mean().item()


def mean_cosine(features: torch.Tensor) -> float:
    """Returns the mean cosine of the features of two different images, over all pairs.

    The sum over pairs is that over all ordered pairs, which is the squared length of the sum of all directions, less
    the pairs of an image with itself.

    Args:
        features (`torch.Tensor` of shape `(images, width)`): Features of at least two images. They are not centred.

    Returns:
        `float` in [-1 / (images - 1), 1]: 0 where directions are spread evenly, 1 where there is only one, NaN where
        features are not finite.

    Raises:
        ValueError: If there are fewer than two images.
    """
    _check_count(features)
    directions, count = normalize(features.double(), dim=1), len(features)
    total = directions.sum(dim=0).square().sum() - directions.square().sum()
    return total.item() / (count * (count - 1))


def label_free_figures(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """Returns `effective_rank` and `mean_cosine` of the first features, and `twin_retrieval` of both.

    Args:
        first, second (`torch.Tensor` of shape `(images, width)`): Features of two crops of each image.
    """
    return {
        "effective_rank": effective_rank(first),
        "twin_retrieval": twin_retrieval(first, second),
        "mean_cosine": mean_cosine(first),
    }


def collapse(figures: dict[str, float], num_images: int | None = None) -> str | None:
    """Returns what is wrong if features have collapsed, else `None`.

    They have if there is one direction (a rank below 2), or if all features are nearly the same (a cosine above 0.99)
    and what is left of differences has few directions (a rank below 10). Neither is enough by itself: early in runs
    that went well a model of normalised patches had a cosine of 0.996 with a rank of 22, and one of pixels a rank of 6
    with a cosine of 0.7. Learning rates 50 to 3,000 times too high led to ranks of 3 to 8 with cosines above 0.993;
    random weights had ranks above 17 with cosines below 0.9. The thresholds are ours, from such runs of small models.

    Args:
        figures (`dict[str, float]`): Of [`label_free_figures`]. Without them nothing is wrong.
        num_images (`int`, *optional*): How many images they are of. Fewer than 20 have few directions in any case, and
            nothing is said of them. Default: enough.
    """
    if num_images is not None and num_images < _FEWEST_IMAGES:
        return None
    rank, cosine = figures.get("effective_rank", math.inf), figures.get("mean_cosine", 0.0)
    if not (rank < 2 or (cosine > 0.99 and rank < 10)):
        return None
    return (
        f"the features of all images are nearly alike (effective rank {rank:.1f}, mean cosine {cosine:.3f}): the "
        "encoder has collapsed. If the images are not nearly alike themselves, start again with a lower "
        "`base_learning_rate`, or with `max_grad_norm` 1."
    )


def _check_count(features: torch.Tensor):
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"Features must have the shape (images, width) with at least two images, got {tuple(features.shape)}."
        )


__all__ = ["collapse", "effective_rank", "label_free_figures", "mean_cosine", "twin_retrieval"]
