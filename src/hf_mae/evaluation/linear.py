# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains linear probes on features of a frozen encoder: a batch norm without weights and a linear classifier.

Source: He et al. 2021, appendix A.1, Linear probing. Several learning rates are trained at the same time on the same
features, since encoding images costs far more than a probe.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.modeling_outputs import ImageClassifierOutput

from ..data.datasets import EvaluationDataset, collate_evaluation
from ..modeling.modeling_mae_downstream import PROBE_BATCH_NORM_EPS, MAEForImageClassification, fold_batch_norm
from ..training.optimization import LARS, learning_rate_at, scaled_learning_rate

BASE_LEARNING_RATES = (0.1, 0.3, 1, 3, 10, 30, 100, 300)  # per 256 images


# ----------------------------------------------------------------------------------------------------------------------
# The probe


def probe_classifier(hidden_size: int, num_labels: int) -> nn.Linear:
    """Returns a fresh linear layer of a probe, with the weights of the official code.

    Args:
        hidden_size (`int`): Width of the features.
        num_labels (`int`): Number of classes.
    """
    classifier = nn.Linear(hidden_size, num_labels)
    nn.init.trunc_normal_(classifier.weight, std=0.01)  # steps of LARS grow with the norm, which must not be 0
    nn.init.zeros_(classifier.bias)
    return classifier


class LinearProbe(nn.Module):
    """Classifies with a new linear layer on a frozen encoder that stays in evaluation mode."""

    def __init__(self, model: MAEForImageClassification):
        """
        Args:
            model ([`MAEForImageClassification`]): Its encoder is probed. Its own classifier is not used.
        """
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        hidden_size, num_labels = model.config.hidden_size, model.config.num_labels
        self.batch_norm = nn.BatchNorm1d(hidden_size, eps=PROBE_BATCH_NORM_EPS, affine=False)
        self.classifier = probe_classifier(hidden_size, num_labels)

    def train(self, mode: bool = True) -> "LinearProbe":
        """Sets the mode of the batch norm and the linear layer. The encoder stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, labels: torch.LongTensor | None = None) -> ImageClassifierOutput:
        """Classifies images. Arguments and output are those of [`MAEForImageClassification.forward`]."""
        with torch.no_grad():
            features = self.model.pool(pixel_values)
        logits = self.classifier(self.batch_norm(features.float()))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def to_classifier(self) -> MAEForImageClassification:
        """Returns the model with the trained classifier, whose weights include the batch norm."""
        return with_classifier(self.model, self.classifier, self.batch_norm)


@torch.no_grad()
def with_classifier(
    model: MAEForImageClassification, classifier: nn.Linear, batch_norm: nn.BatchNorm1d
) -> MAEForImageClassification:
    """Puts a trained probe into a model, in place.

    Args:
        model ([`MAEForImageClassification`]): The model whose features were probed.
        classifier (`nn.Linear`): The linear layer.
        batch_norm (`nn.BatchNorm1d`): The norm before it, without weights.
    """
    mean, variance = batch_norm.running_mean, batch_norm.running_var
    weight, bias = fold_batch_norm(classifier.weight, classifier.bias, mean, variance)
    model.classifier.weight.copy_(weight)
    model.classifier.bias.copy_(bias)
    return model


def train_linear_probes(
    features: torch.Tensor,
    labels: torch.LongTensor,
    num_labels: int,
    base_learning_rates: Sequence[float],
    num_epochs: int = 90,
    batch_size: int = 16384,
    warmup_epochs: int = 10,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> tuple[nn.BatchNorm1d, list[nn.Linear]]:
    """Trains probes on stored features, one for each learning rate, all at the same time.

    Args:
        features (`torch.Tensor` of shape `(images, hidden_size)`): Output of [`MAEForImageClassification.pool`], on the
            device to train on.
        labels (`torch.LongTensor` of shape `(images,)`): Classes in [0, num_labels).
        num_labels (`int`): Number of classes.
        base_learning_rates (`Sequence[float]`): Rates per 256 images. The paper uses 0.1 for ImageNet.
        num_epochs (`int`, *optional*, defaults to 90): Passes over the features.
        batch_size (`int`, *optional*, defaults to 16384): Images of a step, at most all.
        warmup_epochs (`int`, *optional*, defaults to 10): Passes with a rising rate, at most a fifth of all.
        weight_decay (`float`, *optional*, defaults to 0.0): Weight decay of the linear layers.
        seed (`int`, *optional*, defaults to 0): Seed of weights and order.

    Returns:
        `(batch_norm, classifiers)`, in evaluation mode: one norm for all, one linear layer for each rate.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if len(features) < 2:
        raise ValueError(f"A probe normalises over a batch and needs at least 2 images, got {len(features)}.")
    batch_size = max(min(batch_size, len(features)), 2)
    steps_per_epoch = len(features) // batch_size  # the next epoch, in another order, takes what is left over
    max_steps, warmup_steps = num_epochs * steps_per_epoch, min(warmup_epochs, num_epochs // 5) * steps_per_epoch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = probe_classifier(features.shape[1], num_labels).to(features.device)
        orders = [torch.randperm(len(features)) for _ in range(num_epochs)]
    batch_norm = nn.BatchNorm1d(features.shape[1], eps=PROBE_BATCH_NORM_EPS, affine=False).to(features.device)
    rates = torch.tensor([scaled_learning_rate(rate, batch_size) for rate in base_learning_rates], dtype=torch.float64)
    weights, biases, optimizer = _stack(classifier, len(rates), weight_decay)
    for step in range(max_steps):
        share = learning_rate_at(step, max_steps, warmup_steps, 1.0)
        for group, shape in zip(optimizer.param_groups, ((-1, 1, 1), (-1, 1)), strict=True):
            group["lr"] = (rates * share).to(weights).reshape(shape)
        start = step % steps_per_epoch * batch_size
        batch = orders[step // steps_per_epoch][start : start + batch_size].to(features.device)
        normalized, target = batch_norm(features[batch].float()), labels[batch].to(features.device)
        logits = torch.einsum("bd,rcd->brc", normalized, weights) + biases
        # In the sum over classifiers each gets the gradient of its own loss alone.
        targets = target.repeat_interleave(len(rates))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets) * len(rates)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return batch_norm.eval(), [_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _stack(
    classifier: nn.Linear, count: int, weight_decay: float
) -> tuple[nn.Parameter, nn.Parameter, torch.optim.Optimizer]:
    """Returns weights and biases of several equal classifiers, and LARS for them. Their logits are one product, since a
    step of each classifier alone would be over before the next is launched."""
    weights, biases = (
        nn.Parameter(tensor.detach().expand(count, *tensor.shape).clone()) for tensor in classifier.parameters()
    )
    neither_decayed_nor_scaled = {"weight_decay": 0.0, "trust_coefficient": 0.0}
    groups = [{"params": [weights]}, {"params": [biases], **neither_decayed_nor_scaled}]
    return weights, biases, LARS(groups, lr=0.0, weight_decay=weight_decay)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """Returns a trained layer, in evaluation mode, with weights (classes, width) and biases (classes,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.eval()


# ----------------------------------------------------------------------------------------------------------------------
# On stored features


class Features(NamedTuple):
    """Features of images `(images, hidden_size)`, float32, and their labels `(images,)`."""

    values: torch.Tensor
    labels: torch.Tensor

    def at(self, indices: torch.Tensor) -> "Features":
        """Returns those of some images."""
        return Features(self.values[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Features":
        """Returns them on a device."""
        return Features(self.values.to(device), self.labels.to(device))


@torch.no_grad()
def store_features(
    encode: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    dataset: EvaluationDataset,
    batch_size: int,
    num_workers: int = 0,
    title: str | None = None,
) -> dict[str, Features]:
    """Encodes each image once and keeps its features on the CPU.

    Args:
        encode (`Callable`): Returns features `(batch, hidden_size)` by name for pixel values `(batch, channels, height,
            width)`.
        dataset ([`EvaluationDataset`]): The images. Without labels those of the features are negative, and so are those
            of images that can't be read, see [`readable`].
        batch_size (`int`): Images of one call.
        num_workers (`int`, *optional*, defaults to 0): Loader processes.
        title (`str`, *optional*): What the progress bar says. Default: no bar.

    Returns:
        `dict[str, Features]`: In the order of the images.
    """
    values: dict[str, list[torch.Tensor]] = {}
    labels = []
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=collate_evaluation)
    for batch in tqdm(loader, desc=title, unit="batch", disable=title is None):
        for name, features in encode(batch["pixel_values"]).items():
            values.setdefault(name, []).append(features.float().cpu())
        labels.append(batch["label"])
    return {name: Features(torch.cat(features), torch.cat(labels)) for name, features in values.items()}


def readable(stored: dict[str, Features], what: str | None = None) -> dict[str, Features]:
    """Returns the features of images that have a label. Images that could not be read have none.

    Args:
        stored (`dict[str, Features]`): Of [`store_features`], of labelled images.
        what (`str`, *optional*): What the images are, to print how many are left out.
    """
    known = next(iter(stored.values())).labels >= 0
    if what is not None and not known.all():
        print(f"{int((~known).sum()):,} of {len(known):,} {what} can't be read and are left out.", flush=True)
    return {name: features.at(known) for name, features in stored.items()}


def hold_out_tenth(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the indices of a tenth of the images, which choose settings, and those of the others to train on.

    Args:
        count (`int`): Number of training images.
        seed (`int`, *optional*, defaults to 0): Seed of the choice.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: -(-count // 10)], order[-(-count // 10) :]


class ProbeChoice(NamedTuple):
    """Holds what held-out training images chose.

    Attributes:
        name (`str`): Of the features.
        rate (`float`): Learning rate per 256 images.
        accuracy (`float`): On the held-out images, in [0, 1].
    """

    name: str
    rate: float
    accuracy: float


def choose_linear_probe(
    train: dict[str, Features], num_labels: int, base_learning_rates: Sequence[float], seed: int = 0, **settings
) -> list[ProbeChoice]:
    """Trains a probe for each kind of features and each learning rate on nine tenths of the images.

    Args:
        train (`dict[str, Features]`): Features of the training images by name, on the device to train on.
        num_labels (`int`): Number of classes.
        base_learning_rates (`Sequence[float]`): Rates per 256 images.
        seed (`int`, *optional*, defaults to 0): Seed of the choice of held-out images, of weights and order.
        **settings: Other arguments of [`train_linear_probes`].

    Returns:
        `list[ProbeChoice]`: All of them with their accuracy on the other tenth, the best first.
    """
    choices = []
    for name, features in train.items():
        held_out, rest = (
            features.at(indices.to(features.labels.device)) for indices in hold_out_tenth(len(features.labels), seed)
        )
        trained = train_linear_probes(rest.values, rest.labels, num_labels, base_learning_rates, seed=seed, **settings)
        for rate, classifier in zip(base_learning_rates, trained[1], strict=True):
            choices.append(ProbeChoice(name, rate, probe_accuracy(classifier, trained[0], held_out)))
    return sorted(choices, key=lambda choice: -choice.accuracy)  # of equal ones the first


@torch.no_grad()
def probe_accuracy(classifier: nn.Linear, batch_norm: nn.BatchNorm1d, features: Features) -> float:
    """Returns the share of images, in [0, 1], that a probe classifies right."""
    return (classifier(batch_norm(features.values)).argmax(dim=1) == features.labels).float().mean().item()


__all__ = [
    "BASE_LEARNING_RATES",
    "Features",
    "LinearProbe",
    "ProbeChoice",
    "choose_linear_probe",
    "hold_out_tenth",
    "probe_accuracy",
    "probe_classifier",
    "readable",
    "store_features",
    "train_linear_probes",
    "with_classifier",
]
