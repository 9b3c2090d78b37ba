# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Dense probes: what the patch features of a frozen encoder say about the class of each pixel, by mean IoU.

Two probes without any training of the encoder: k-NN among the patches of training images, and logistic regression. The
protocol is close to that of CAPI (Darcet et al. 2025, arXiv 2502.08769): whole images at the size of the encoder,
features standardised on training patches, settings chosen on held-out training images.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..data.masks import IGNORED, Pair, SegmentationDataset
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.patches_mae import patchify, unpatchify
from .segmentation_metrics import intersection_over_union

# Pixel values (B, C, H, W) on the device -> features (B, rows, columns, D), one for each block that is looked at.
EncodeMaps = Callable[[torch.Tensor], Sequence[torch.Tensor]]

NUM_NEIGHBORS = (1, 3, 10, 30)  # as in CAPI
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of scikit-learn
_QUERIES_AT_ONCE = 256  # of k-NN: votes take queries x classes x pixels of a patch


class LabelledPatches(NamedTuple):
    """Holds features of patches and the classes of their pixels.

    Attributes:
        features (`torch.Tensor` of shape `(patches, D)`): Float32.
        classes (`torch.Tensor` of shape `(patches, pixels)`): Class of each pixel, uint8, 255 where it does not count.
        images (`torch.LongTensor` of shape `(patches,)`): Which image a patch comes from.
    """

    features: torch.Tensor
    classes: torch.Tensor
    images: torch.Tensor

    def at(self, chosen: torch.Tensor) -> "LabelledPatches":
        """Returns some of the patches, by indices or a mask."""
        return LabelledPatches(*(each[chosen] for each in self))

    @property
    def num_classes(self) -> int:
        """The largest class that occurs, plus one."""
        return int(self.classes[self.classes != IGNORED].max()) + 1


class Standardization(NamedTuple):
    """Brings each dimension to mean 0 and deviation 1; one that is constant becomes 0."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> "Standardization":
        """Returns the standardisation of features `(patches, D)`, computed in float64."""
        mean = features.mean(dim=0, dtype=torch.float64)
        deviation = (features - mean.to(features.dtype)).double().square_().mean(dim=0).sqrt_()
        constant = deviation <= 1e-6 * mean.abs()  # what is left is rounding, which must not become a feature
        deviation = deviation.masked_fill(constant, math.inf)
        return cls(mean.to(features.dtype), deviation.to(features.dtype))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.deviation


def classes_of_patches(labels: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Returns the pixels of each patch of label maps `(B, H, W)`, as `(B, rows, columns, pixels)`.

    Args:
        labels (`torch.Tensor` of shape `(B, H, W)`): Classes.
        grid_size (`(rows, columns)`): Patches of an image.

    Raises:
        ValueError: If the patches do not divide the maps.
    """
    (height, width), (rows, columns) = labels.shape[1:], grid_size
    if height % rows or width % columns:
        raise ValueError(f"Label maps of {height} x {width} pixels cannot be cut into {rows} x {columns} patches.")
    return patchify(labels[:, None], (height // rows, width // columns)).unflatten(1, grid_size)


# ----------------------------------------------------------------------------------------------------------------------
# The probes


class DenseKNN:
    """Predicts the class of a pixel by a vote of the pixels at the same place in the nearest training patches.

    Nearest is by the cosine of standardised features. Each neighbour has one vote, unless its pixel does not count. Of
    classes with equal votes the one wins that has more votes in the whole patch, then the lower number.
    """

    def __init__(self, patches: LabelledPatches):
        """
        Args:
            patches ([`LabelledPatches`]): The bank, on the device to search on.
        """
        self.num_classes = patches.num_classes
        self.standardization = Standardization.of(patches.features)
        self.bank = nn.functional.normalize(self.standardization(patches.features), dim=1)
        classes = patches.classes.long()
        self.classes = torch.where(classes == IGNORED, self.num_classes, classes)  # a column of its own, not used

    def predict(self, maps: torch.Tensor, size: tuple[int, int], num_neighbors: Sequence[int]) -> list[torch.Tensor]:
        """Returns classes `(B, H, W)`, int64, for each number of neighbours.

        Args:
            maps (`torch.Tensor` of shape `(B, rows, columns, D)`): Features of images.
            size (`(H, W)`): Pixels of an image.
            num_neighbors (`Sequence[int]`): Numbers of neighbours; where the bank is smaller, all of it.
        """
        queries = nn.functional.normalize(self.standardization(maps.flatten(0, 2)), dim=1)
        parts = [self._vote(part, num_neighbors) for part in queries.split(_QUERIES_AT_ONCE)]
        num_images, *grid_size = maps.shape[:3]
        patch_size = size[0] // grid_size[0], size[1] // grid_size[1]
        pixels = (torch.cat(each).unflatten(0, (num_images, -1)) for each in zip(*parts, strict=True))
        return [unpatchify(each, patch_size, grid_size)[:, 0] for each in pixels]

    def _vote(self, queries: torch.Tensor, num_neighbors: Sequence[int]) -> list[torch.Tensor]:
        """Returns classes (queries, pixels) for each number of neighbours."""
        largest = min(max(num_neighbors), len(self.bank))
        nearest = (queries @ self.bank.T).topk(largest, dim=1).indices
        classes = self.classes[nearest]  # (queries, k, pixels)
        count, _, pixels = classes.shape
        votes = torch.zeros(count, self.num_classes + 1, pixels, dtype=torch.int32, device=queries.device)
        predictions, start = {}, 0
        for neighbors in sorted(set(num_neighbors)):
            more = classes[:, start:neighbors]
            votes.scatter_add_(1, more, torch.ones_like(more, dtype=torch.int32))
            start = neighbors
            counted = votes[:, : self.num_classes]
            in_patch = counted.sum(dim=2, keepdim=True, dtype=torch.int32)
            # The first of equal values is the lower class.
            predictions[neighbors] = (counted * (neighbors * pixels + 1) + in_patch).argmax(dim=1)
        return [predictions[neighbors] for neighbors in num_neighbors]


class DenseLinear:
    """Predicts the class of a pixel by logistic regression on standardised features, with bilinearly resized logits.

    The loss of a patch is the cross-entropy of its logits, added up over its pixels that count, which need not be of
    one class, and divided by the number of all its pixels. So every pixel weighs alike, as in the mean IoU, and a patch
    of which half does not count weighs half. For patches of one class each it is scikit-learn's `LogisticRegression`:
    the sum of the losses times C, plus half the square of the weights without the biases.
    """

    def __init__(self, patches: LabelledPatches, strengths: Sequence[float] = STRENGTHS, max_steps: int = 200):
        """Trains a classifier for each strength by L-BFGS, in rising order, each from the one before.

        Args:
            patches ([`LabelledPatches`]): Training patches, on the device to train on.
            strengths (`Sequence[float]`, *optional*): Values of C: larger ones regularise less.
            max_steps (`int`, *optional*, defaults to 200): Maximum number of steps for each strength.
        """
        self.standardization = Standardization.of(patches.features)
        features = self.standardization(patches.features)
        shares = torch.stack([(patches.classes == each).float().mean(dim=1) for each in range(patches.num_classes)], 1)
        weight = features.new_zeros(patches.num_classes, features.shape[1]).requires_grad_()
        bias = features.new_zeros(patches.num_classes).requires_grad_()
        self.classifiers = {}
        for strength in sorted(strengths):
            _fit(features, shares, weight, bias, strength, max_steps)
            self.classifiers[strength] = weight.detach().clone(), bias.detach().clone()

    def predict(self, maps: torch.Tensor, size: tuple[int, int], strengths: Sequence[float]) -> list[torch.Tensor]:
        """Returns classes `(B, H, W)`, int64, for each strength. Arguments as in [`DenseKNN.predict`]."""
        features, predictions = self.standardization(maps), []
        for strength in strengths:
            weight, bias = self.classifiers[strength]
            logits = nn.functional.linear(features, weight, bias).permute(0, 3, 1, 2)
            logits = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
            predictions.append(logits.argmax(dim=1))
        return predictions


def _fit(
    features: torch.Tensor,
    shares: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    strength: float,
    max_steps: int,
):
    """Minimises the mean over patches of the loss, plus |W|^2 / (2 C patches), in place."""
    count = len(features)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_steps,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimizer.zero_grad()
        logits = nn.functional.linear(features, weight, bias)
        value = nn.functional.cross_entropy(logits, shares) + weight.square().sum() / (2 * strength * count)
        value.backward()
        return value

    optimizer.step(loss)


# ----------------------------------------------------------------------------------------------------------------------
# From images with masks to figures


class DenseFigures(NamedTuple):
    """Holds what the dense probes of one block give.

    Attributes:
        knn_iou, linear_iou (`float`): Mean IoU on the test images, in [0, 1].
        num_neighbors, strength (`int`, `float`): The settings, which held-out training images chose.
        knn_held_out, linear_held_out (`float`): Mean IoU on those images, with which blocks can be chosen.
        constant_iou (`float`): Mean IoU on the test images of the class that is the most frequent in training.
    """

    knn_iou: float
    linear_iou: float
    num_neighbors: int
    strength: float
    knn_held_out: float
    linear_held_out: float
    constant_iou: float


@dataclass(frozen=True)
class DenseSettings:
    """Holds the settings of dense probes.

    Args:
        num_neighbors (`tuple[int, ...]`, *optional*): Numbers of neighbours to choose from.
        strengths (`tuple[float, ...]`, *optional*): Values of C to choose from, see [`DenseLinear`].
        max_patches (`int`, *optional*, defaults to 50,000): Training patches that are kept, alike of all images. More
            of them give higher figures: compare only with the same number.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where all of it happens.
        batch_size (`int`, *optional*, defaults to 16): Images that are encoded at once.
        num_workers (`int`, *optional*, defaults to 0): Processes that read images.
        seed (`int`, *optional*, defaults to 0): Seed of the choices of images and patches.
        progress (`bool`, *optional*, defaults to `False`): Whether to show progress bars.
    """

    num_neighbors: tuple[int, ...] = NUM_NEIGHBORS
    strengths: tuple[float, ...] = STRENGTHS
    max_patches: int = 50_000
    device: str | torch.device = "cpu"
    batch_size: int = 16
    num_workers: int = 0
    seed: int = 0
    progress: bool = False

    @torch.no_grad()
    def encode(
        self, encode: EncodeMaps, dataset: Dataset, title: str
    ) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        """Yields maps `(B, rows, columns, D)` of each block and labels `(B, H, W)`, on the device."""
        loader = DataLoader(dataset, self.batch_size, num_workers=self.num_workers)
        for batch in tqdm(loader, title, unit="batch", disable=not self.progress):
            maps = [each.float() for each in encode(batch["pixel_values"].to(self.device))]
            yield maps, batch["labels"].to(self.device)


def held_out_pairs(pairs: Sequence[Pair], seed: int = 0) -> np.ndarray:
    """Returns which of the training images are held out to choose settings: a tenth of the scenes, at least one.

    Windows of one scene, which have one mask, stay together.

    Args:
        pairs (`Sequence` of [`Pair`]): Training images with masks.
        seed (`int`, *optional*, defaults to 0): Seed of the choice.

    Raises:
        ValueError: If there is only one scene.
    """
    scenes = [str(pair.mask if isinstance(pair.mask, Path) else index) for index, pair in enumerate(pairs)]
    _, numbers = np.unique(scenes, return_inverse=True)
    count = numbers.max() + 1
    if count < 2:
        raise ValueError(f"Dense probes choose settings on held-out images and need at least 2, got {count}.")
    return np.isin(numbers, np.random.default_rng(seed).permutation(count)[: -(-count // 10)])


def collect_patches(
    batches: Iterator[tuple[list[torch.Tensor], torch.Tensor]], num_images: int, max_patches: int, seed: int = 0
) -> list[LabelledPatches]:
    """Returns patches of images for each block: all that have a labelled pixel, or a random part, alike of all images.

    Args:
        batches (`Iterator`): Gives maps `(B, rows, columns, D)` of each block, and labels `(B, H, W)`.
        num_images (`int`): How many images there are.
        max_patches (`int`): Maximum number of patches.
        seed (`int`, *optional*, defaults to 0): Seed of the choice.

    Raises:
        ValueError: If no pixel of any image counts.
    """
    rng = np.random.default_rng(seed)
    taken = np.zeros(num_images, dtype=bool)
    taken[rng.permutation(num_images)[:max_patches]] = True
    most = max(max_patches // num_images, 1)
    blocks, start = [], 0
    for maps, labels in batches:
        classes = classes_of_patches(labels.to(torch.uint8), tuple(maps[0].shape[1:3])).flatten(1, 2)
        labelled = (classes != IGNORED).any(dim=2).cpu().numpy()  # (B, patches)
        chosen = [np.sort(rng.permutation(np.flatnonzero(each))[:most]) for each in labelled]
        for offset, patches in enumerate(chosen):
            if not taken[start + offset] or not len(patches):
                continue
            index = torch.from_numpy(patches).to(classes.device)
            of_layers = [each[offset].flatten(0, 1)[index] for each in maps]
            blocks.append((of_layers, classes[offset, index], torch.full_like(index, start + offset)))
        start += len(labels)
    if not blocks:
        raise ValueError("No pixel of the training images has a class: all are 255, or 0 with `reduce_labels`.")
    features, *rest = zip(*blocks, strict=True)
    all_classes, all_images = (torch.cat(each) for each in rest)
    return [LabelledPatches(torch.cat(each), all_classes, all_images) for each in zip(*features, strict=True)]


class _Probes(NamedTuple):
    """Holds both probes of a block, and the settings with which they predict."""

    knn: DenseKNN
    linear: DenseLinear
    num_neighbors: Sequence[int]
    strengths: Sequence[float]

    @classmethod
    def of(cls, patches: LabelledPatches, num_neighbors: Sequence[int], strengths: Sequence[float]) -> "_Probes":
        return cls(DenseKNN(patches), DenseLinear(patches, strengths), num_neighbors, strengths)

    def predict(self, maps: torch.Tensor, size: tuple[int, int]) -> dict[tuple[str, float], torch.Tensor]:
        """Returns classes (B, H, W) by the kind of the probe, `knn` or `linear`, and its setting."""
        by_neighbors = zip(self.num_neighbors, self.knn.predict(maps, size, self.num_neighbors), strict=True)
        by_strength = zip(self.strengths, self.linear.predict(maps, size, self.strengths), strict=True)
        classes = {("knn", number): predicted for number, predicted in by_neighbors}
        return classes | {("linear", strength): predicted for strength, predicted in by_strength}


class _Confusions:
    """Counts pixels by true and predicted class, of which there may be 255, for each block, probe and setting."""

    def __init__(self, probes: list[_Probes], batches: Iterator[tuple[list[torch.Tensor], torch.Tensor]]):
        self._matrices: dict[tuple[int, str, float], torch.Tensor] = {}
        for maps, labels in batches:
            counted, size = labels != IGNORED, tuple(labels.shape[1:])
            rows = labels[counted].long() * IGNORED
            for block, (both, of_block) in enumerate(zip(probes, maps, strict=True)):
                for (kind, setting), predicted in both.predict(of_block, size).items():
                    matrix = torch.bincount(rows + predicted[counted], minlength=IGNORED**2).view(IGNORED, IGNORED)
                    name = (block, kind, setting)
                    self._matrices[name] = matrix + self._matrices.get(name, 0)

    def mean_iou(self, block: int, kind: str, setting: float) -> float:
        """Returns the mean over the classes that occur in the images or in their predictions, all images together."""
        return intersection_over_union(self._matrices[block, kind, setting].double()).nanmean().item()

    def mean_iou_of(self, constant: int) -> float:
        """Returns the mean IoU of one class everywhere."""
        matrix = next(iter(self._matrices.values()))
        everywhere = torch.zeros_like(matrix)
        everywhere[:, constant] = matrix.sum(dim=1)
        return intersection_over_union(everywhere.double()).nanmean().item()


class _Choice(NamedTuple):
    """Holds the settings of a block that held-out images chose, and the mean IoU of both probes on these."""

    num_neighbors: int
    strength: float
    knn_iou: float
    linear_iou: float


def dense_figures(
    encode: EncodeMaps,
    train_pairs: Sequence[Pair],
    test_pairs: Sequence[Pair],
    image_processor: MAEImageProcessor,
    settings: DenseSettings = DenseSettings(),
    held_out: np.ndarray | None = None,
    reduce_labels: bool = False,
) -> list[DenseFigures]:
    """Measures the dense probes of blocks of a frozen encoder. The test images are looked at once.

    Images and masks are resized as a whole to the size of the image processor, and compared there; of scenes give
    windows, see [`folder_pairs`]. The mean IoU is over the classes that occur in the test images or the predictions,
    with the pixels of all test images together. Training patches of all blocks are in the memory of the device.

    Args:
        encode (`Callable`): Takes pixel values `(B, channels, H, W)` on the device and returns features `(B, rows,
            columns, D)` of each block to be looked at. It is called without gradients.
        train_pairs, test_pairs (`Sequence` of [`Pair`]): Images with masks.
        image_processor ([`MAEImageProcessor`]): That of the encoder.
        settings ([`DenseSettings`], *optional*): The settings.
        held_out (`np.ndarray` of bool, *optional*): Which training images choose. Default: see [`held_out_pairs`].
        reduce_labels (`bool`, *optional*, defaults to `False`): Whether 0 does not count and classes count from 1.

    Returns:
        [`DenseFigures`] of each block.

    Raises:
        OSError: If an image or a mask cannot be read.
        ValueError: If they do not fit each other, there are too few images, or nothing is labelled.
    """
    image_processor = copy.copy(image_processor)
    image_processor.size = image_processor.crop_size  # images are resized as a whole, and nothing is cropped
    train, test = (
        SegmentationDataset(list(each), image_processor, reduce_labels) for each in (train_pairs, test_pairs)
    )
    held_out = held_out_pairs(train_pairs, settings.seed) if held_out is None else held_out
    batches = settings.encode(encode, train, "Training patches")
    patches = collect_patches(batches, len(train), settings.max_patches, settings.seed)
    to_train_on = ~torch.from_numpy(held_out).to(settings.device)[patches[0].images]
    held_out_images = Subset(train, np.flatnonzero(held_out).tolist())
    batches = settings.encode(encode, held_out_images, "Choice of settings")
    choices = _choose(settings, [each.at(to_train_on) for each in patches], batches)
    return _test_figures(patches, choices, settings.encode(encode, test, "Test images"))


def _choose(settings: DenseSettings, patches: list[LabelledPatches], batches: Iterator) -> list[_Choice]:
    """Returns the best settings of each block; of equal ones the first."""
    probes = [_Probes.of(each, settings.num_neighbors, settings.strengths) for each in patches]
    confusions, choices = _Confusions(probes, batches), []
    for block in range(len(patches)):
        knn = {number: confusions.mean_iou(block, "knn", number) for number in settings.num_neighbors}
        linear = {strength: confusions.mean_iou(block, "linear", strength) for strength in settings.strengths}
        number, strength = max(knn, key=knn.__getitem__), max(linear, key=linear.__getitem__)
        choices.append(_Choice(number, strength, knn[number], linear[strength]))
    return choices


def _test_figures(patches: list[LabelledPatches], choices: list[_Choice], batches: Iterator) -> list[DenseFigures]:
    """Returns the figures of each block on the test images, with the settings that were chosen for it."""
    probes = [
        _Probes.of(each, [choice.num_neighbors], [choice.strength])
        for each, choice in zip(patches, choices, strict=True)
    ]
    confusions = _Confusions(probes, batches)
    most_frequent = patches[0].classes[patches[0].classes != IGNORED].long().bincount().argmax()
    return [
        DenseFigures(
            knn_iou=confusions.mean_iou(block, "knn", choice.num_neighbors),
            linear_iou=confusions.mean_iou(block, "linear", choice.strength),
            num_neighbors=choice.num_neighbors,
            strength=choice.strength,
            knn_held_out=choice.knn_iou,
            linear_held_out=choice.linear_iou,
            constant_iou=confusions.mean_iou_of(int(most_frequent)),
        )
        for block, choice in enumerate(choices)
    ]


__all__ = [
    "NUM_NEIGHBORS",
    "STRENGTHS",
    "DenseFigures",
    "DenseKNN",
    "DenseLinear",
    "DenseSettings",
    "LabelledPatches",
    "Standardization",
    "classes_of_patches",
    "collect_patches",
    "dense_figures",
    "held_out_pairs",
]
