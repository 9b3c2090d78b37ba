# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains attentive probes on the patch tokens of a frozen encoder: learned queries, a batch norm, a linear classifier.

Source: efficient probing (Psomas et al. 2025, arXiv 2506.10178). Several learning rates are trained at the same time on
the same tokens, since encoding images costs far more than a probe.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.datasets import collate_labelled
from ..data.image_source import ImageSource
from ..data.sampling import RowGroupSampler
from ..modeling.modeling_mae_downstream import (
    PROBE_BATCH_NORM_EPS,
    MAEAttentivePooling,
    MAEForImageClassification,
    fold_batch_norm,
)
from ..training.optimization import default_effective_batch_size, learning_rate_at
from .linear import probe_classifier

Encode = Callable[[torch.Tensor], torch.Tensor]

LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class AttentiveSettings:
    """Holds the settings of attentive probes.

    The source trains for 90 epochs by LARS. Here it is AdamW with the betas and the warm-up of CAPI (Darcet et al.
    2025, arXiv 2502.08769): on a few thousand images it was as good in 30 epochs, over a wide range of rates.

    Args:
        num_queries (`int`, *optional*): See [`AttentiveProbe`].
        num_epochs (`int`, *optional*, defaults to 30): Passes over the images.
        batch_size (`int`, *optional*): Images of a step, at least 2. Default: 1024, or such that an epoch has at least
            16 steps, see [`default_effective_batch_size`].
        weight_decay (`float`, *optional*, defaults to 0.0): Weight decay, as in the source.
        seed (`int`, *optional*, defaults to 0): Seed of weights and order.
    """

    num_queries: int | None = None
    num_epochs: int = 30
    batch_size: int | None = None
    weight_decay: float = 0.0
    seed: int = 0

    def order(self, indices: torch.Tensor, images: ImageSource | None = None) -> list[torch.Tensor]:
        """Returns the images of each step. What an epoch leaves over is taken by the next, in another order.

        Args:
            indices (`torch.LongTensor`): The images to train on.
            images ([`ImageSource`], *optional*): Where they are read in this order. If it has row groups they are mixed
                as in pre-training, see [`RowGroupSampler`].
        """
        size = self.batch_size or default_effective_batch_size(len(indices), largest=1024)
        size = max(min(size, len(indices)), 2)
        if images is None or images.row_groups is None:
            epochs = [indices[torch.randperm(len(indices))] for _ in range(self.num_epochs)]
        else:
            samplers = [RowGroupSampler(images, self.seed, size, partial(int, n)) for n in range(self.num_epochs)]
            orders = [torch.tensor(list(sampler)) for sampler in samplers]
            epochs = [order[torch.isin(order, indices)] for order in orders]
        return [batch for epoch in epochs for batch in epoch.split(size) if len(batch) == size]


class PatchTokens:
    """Gives the patch tokens of labelled images by index: from memory if they fit, else encoded anew each time.

    In memory they are float16.

    Attributes:
        num_patches, hidden_size (`int`): Of one image.
        is_stored (`bool`): Whether the tokens are in memory.
    """

    def __init__(
        self,
        encode: Encode,
        dataset: Dataset,
        device: str | torch.device = "cpu",
        memory: int = 4 * 2**30,
        batch_size: int = 64,
        num_workers: int = 0,
        progress: str | None = None,
    ):
        """
        Args:
            encode (`Callable`): Takes pixel values `(batch, channels, height, width)` on the device and returns patch
                tokens `(batch, patches, hidden_size)`. It is called without gradients.
            dataset (`Dataset`): Gives samples with `pixel_values` and `label`, see [`EvaluationDataset`]. If it draws
                random crops, set `memory` to 0.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where images are encoded.
            memory (`int`, *optional*, defaults to 4 GiB): Bytes that the tokens may take.
            batch_size (`int`, *optional*, defaults to 64): Images that are encoded at once.
            num_workers (`int`, *optional*, defaults to 0): Processes that read images.
            progress (`str`, *optional*): Title of a progress bar of the encoding. Default: none is shown.
        """
        self.encode, self.dataset, self.device = encode, dataset, torch.device(device)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.num_patches, self.hidden_size = self._encode(dataset[0]["pixel_values"][None]).shape[1:]
        self.is_stored = len(dataset) * self.num_patches * self.hidden_size * 2 <= memory
        if self.is_stored:
            self._store(progress)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def read_from(self) -> ImageSource | None:
        """The source of all images if they are read each time, image by image."""
        images = getattr(self.dataset, "images", None)
        return images if not self.is_stored and images is not None and len(images) == len(self) else None

    def batches(self, order: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields tokens `(images, patches, hidden_size)`, float32, and labels `(images,)`, both on the device.

        Images with a negative label, which can't be read, are left out.

        Args:
            order (`Sequence` of `torch.LongTensor`): The indices of the images of each batch.
        """
        if self.is_stored:
            for indices in order:
                indices = indices[self._labels[indices] >= 0]
                yield self._tokens[indices].to(self.device).float(), self._labels[indices].to(self.device)
            return
        for pixel_values, labels in self._read([indices.tolist() for indices in order]):
            pixel_values, labels = pixel_values[labels.cpu() >= 0], labels[labels >= 0]
            yield torch.cat([self._encode(part) for part in pixel_values.split(self.batch_size)]), labels

    def _store(self, progress: str | None):
        order = [indices.tolist() for indices in torch.arange(len(self)).split(self.batch_size)]
        self._tokens = torch.empty(len(self), self.num_patches, self.hidden_size, dtype=torch.float16)
        self._labels = torch.empty(len(self), dtype=torch.int64)
        batches = tqdm(self._read(order), progress, len(order), disable=progress is None)
        for indices, (pixel_values, labels) in zip(order, batches, strict=True):
            self._tokens[indices] = self._encode(pixel_values).to("cpu", torch.float16)
            self._labels[indices] = labels.cpu()

    def _read(self, order: list[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        options = {"num_workers": self.num_workers, "collate_fn": collate_labelled}
        for batch in DataLoader(self.dataset, batch_sampler=order, **options):
            yield batch["pixel_values"], batch["labels"].to(self.device)

    @torch.no_grad()
    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.encode(pixel_values.to(self.device)).float()


class AttentiveProbe(nn.Module):
    """Classifies images by their patch tokens: attentive pooling, a batch norm without weights, a linear layer."""

    def __init__(self, hidden_size: int, num_labels: int, num_queries: int | None = None):
        """Makes a probe with fresh weights.

        Args:
            hidden_size (`int`): Width of the tokens.
            num_labels (`int`): Number of classes.
            num_queries (`int`, *optional*): Queries, a divisor of the width. Default: 32, or if that does not divide
                the width, its largest power of two.

        Raises:
            ValueError: If the number of queries does not divide the width.
        """
        super().__init__()
        self.pooling = MAEAttentivePooling(hidden_size, num_queries or math.gcd(hidden_size, 32))
        self.batch_norm = nn.BatchNorm1d(hidden_size, eps=PROBE_BATCH_NORM_EPS, affine=False)
        self.classifier = probe_classifier(hidden_size, num_labels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits `(batch, num_labels)` of patch tokens `(batch, patches, hidden_size)`."""
        return self.classifier(self.batch_norm(self.pooling(tokens)))


class ChosenProbe(NamedTuple):
    """Holds a probe, the learning rate that was chosen for it, and that rate's accuracy on held-out images."""

    probe: AttentiveProbe
    learning_rate: float
    held_out_accuracy: float


def train_attentive_probes(
    tokens: PatchTokens,
    num_labels: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    indices: torch.Tensor | None = None,
    settings: AttentiveSettings = AttentiveSettings(),
) -> list[AttentiveProbe]:
    """Trains probes on the same batches, one for each learning rate. They start from the same weights.

    Args:
        tokens ([`PatchTokens`]): Tokens of labelled images, labels in [0, num_labels).
        num_labels (`int`): Number of classes.
        learning_rates (`Sequence[float]`, *optional*): Rates of AdamW after the warm-up.
        indices (`torch.LongTensor`, *optional*): Which of the images to train on. Default: all.
        settings ([`AttentiveSettings`], *optional*): The settings.

    Returns:
        The probes, in evaluation mode, on the device of the tokens.

    Raises:
        ValueError: If there are fewer than two images, or the queries do not divide the width.
    """
    indices = torch.arange(len(tokens)) if indices is None else indices.cpu()
    if len(indices) < 2:
        raise ValueError(f"A probe normalises over a batch and needs at least 2 images, got {len(indices)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        probe = AttentiveProbe(tokens.hidden_size, num_labels, settings.num_queries)
        order = settings.order(indices, tokens.read_from)
    probes = nn.ModuleList([copy.deepcopy(probe) for _ in learning_rates]).to(tokens.device).train()
    groups = [{"params": list(probe.parameters())} for probe in probes]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), weight_decay=settings.weight_decay)
    for step, (batch, labels) in enumerate(tokens.batches(order)):
        for group, rate in zip(optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = learning_rate_at(step, len(order), len(order) // 10, rate)
        # In the sum each probe gets the gradient of its own loss alone.
        loss = sum(nn.functional.cross_entropy(probe(batch), labels) for probe in probes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probes.zero_grad()
    return list(probes.eval())


def choose_attentive_probe(
    tokens: PatchTokens,
    num_labels: int,
    held_out: torch.Tensor,
    learning_rates: Sequence[float] = LEARNING_RATES,
    settings: AttentiveSettings = AttentiveSettings(),
) -> ChosenProbe:
    """Trains a probe on all images. A part of them is held out first, to choose the learning rate.

    Args:
        tokens ([`PatchTokens`]): Tokens of the training images.
        num_labels (`int`): Number of classes.
        held_out (`torch.LongTensor`): Indices of the images that choose.
        learning_rates (`Sequence[float]`, *optional*): Rates to choose from.
        settings ([`AttentiveSettings`], *optional*): The settings.

    Raises:
        ValueError: If there are too few images.
    """
    is_rest = torch.ones(len(tokens), dtype=torch.bool)
    is_rest[held_out.cpu()] = False
    probes = train_attentive_probes(tokens, num_labels, learning_rates, is_rest.nonzero()[:, 0], settings)
    shares = attentive_accuracies(probes, tokens, held_out)
    rate = learning_rates[shares.index(max(shares))]
    (probe,) = train_attentive_probes(tokens, num_labels, [rate], None, settings)
    return ChosenProbe(probe, rate, max(shares))


@torch.no_grad()
def attentive_accuracies(
    probes: Sequence[AttentiveProbe], tokens: PatchTokens, indices: torch.Tensor | None = None
) -> list[float]:
    """Returns the share of images that each probe classifies right.

    Args:
        probes (`Sequence` of [`AttentiveProbe`]): In evaluation mode, on the device of the tokens.
        tokens ([`PatchTokens`]): Tokens of labelled images.
        indices (`torch.LongTensor`, *optional*): Which of the images. Default: all.
    """
    indices = torch.arange(len(tokens)) if indices is None else indices.cpu()
    right, count = torch.zeros(len(probes), device=tokens.device), 0
    for batch, labels in tokens.batches(indices.split(tokens.batch_size)):
        right += torch.stack([(probe(batch).argmax(dim=1) == labels).sum() for probe in probes])
        count += len(labels)
    return (right / count).tolist()


def with_attentive_probe(model: MAEForImageClassification, probe: AttentiveProbe) -> MAEForImageClassification:
    """Puts a trained probe into a classifier, in place, which then has `pooling="attentive"`.

    The batch norm goes into the weights of the linear layer.

    Args:
        model ([`MAEForImageClassification`]): The model whose patch tokens, after the final norm, were probed.
        probe ([`AttentiveProbe`]): The probe.

    Raises:
        ValueError: If the model has no final norm.
    """
    if model.config.pooling == "mean":
        raise ValueError("With `pooling` 'mean' a classifier has no final norm. Load it with 'class' or 'attentive'.")
    mean, variance = probe.batch_norm.running_mean, probe.batch_norm.running_var
    weight, bias = fold_batch_norm(probe.classifier.weight, probe.classifier.bias, mean, variance)
    model.classifier.load_state_dict({"weight": weight, "bias": bias})
    num_queries, hidden_size = probe.pooling.queries.shape
    model.attentive_pooling = MAEAttentivePooling(hidden_size, num_queries).to(model.device, model.dtype)
    model.attentive_pooling.load_state_dict(probe.pooling.state_dict())
    model.config.pooling, model.config.num_pooling_queries = "attentive", num_queries
    return model


__all__ = [
    "LEARNING_RATES",
    "AttentiveProbe",
    "AttentiveSettings",
    "ChosenProbe",
    "PatchTokens",
    "attentive_accuracies",
    "choose_attentive_probe",
    "train_attentive_probes",
    "with_attentive_probe",
]
