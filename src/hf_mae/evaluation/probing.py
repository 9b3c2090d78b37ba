# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Linear probing: a batch norm without weights and a linear classifier on the features of a frozen encoder.

Source: He et al. 2021, appendix A.1, Linear probing, and Table 10.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from ..modeling.modeling_mae_downstream import PROBE_BATCH_NORM_EPS, MAEForImageClassification, fold_batch_norm
from ..training.optimization import LARS, learning_rate_at, scaled_learning_rate


class LinearProbe(nn.Module):
    """A classifier whose encoder is frozen and always in evaluation mode; only a new linear layer is trained."""

    def __init__(self, model: MAEForImageClassification):
        """
        Args:
            model ([`MAEForImageClassification`]): Its encoder is probed; its classifier starts anew.
        """
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        hidden_size, num_labels = model.config.hidden_size, model.config.num_labels
        self.batch_norm = nn.BatchNorm1d(hidden_size, eps=PROBE_BATCH_NORM_EPS, affine=False)
        self.classifier = _probe(hidden_size, num_labels)

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, labels: torch.LongTensor | None = None) -> ImageClassifierOutput:
        """Classifies images; arguments and output as of [`MAEForImageClassification.forward`]."""
        with torch.no_grad():
            features = self.model.pool(pixel_values)
        logits = self.classifier(self.batch_norm(features.float()))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def to_classifier(self) -> MAEForImageClassification:
        """Returns the model with the trained classifier, the batch norm inside its weights."""
        return with_classifier(self.model, self.classifier, self.batch_norm)


def _probe(hidden_size: int, num_labels: int) -> nn.Linear:
    classifier = nn.Linear(hidden_size, num_labels)
    nn.init.trunc_normal_(classifier.weight, std=0.01)  # official; LARS takes its steps by the norm of the weights
    nn.init.zeros_(classifier.bias)
    return classifier


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
    """Trains probes of stored features, one for each rate, all at the same time.

    Args:
        features (`torch.Tensor` of shape `(images, hidden_size)`): What [`MAEForImageClassification.pool`] gives, on
            the device to train on.
        labels (`torch.LongTensor` of shape `(images,)`): Classes in [0, num_labels).
        num_labels (`int`): Classes.
        base_learning_rates (`Sequence[float]`): Rates per 256 images. The paper uses 0.1 for ImageNet.
        num_epochs (`int`, *optional*, defaults to 90): Passes over the features.
        batch_size (`int`, *optional*, defaults to 16384): Images of a step, at most all.
        warmup_epochs (`int`, *optional*, defaults to 10): Passes with a rising rate, at most a fifth of all.
        weight_decay (`float`, *optional*, defaults to 0.0): Of the linear layers.
        seed (`int`, *optional*, defaults to 0): Of weights and order.

    Returns:
        `(batch_norm, classifiers)`, in evaluation mode: one norm for all, one linear layer for each rate.
    """
    batch_size = min(batch_size, len(features))
    steps_per_epoch = len(features) // batch_size  # what is left over has its turn in another order of the next epoch
    max_steps, warmup_steps = num_epochs * steps_per_epoch, min(warmup_epochs, num_epochs // 5) * steps_per_epoch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = _probe(features.shape[1], num_labels)
        orders = [torch.randperm(len(features)) for _ in range(num_epochs)]
    classifiers = nn.ModuleList([copy.deepcopy(classifier) for _ in base_learning_rates])
    classifiers.to(features.device)
    batch_norm = nn.BatchNorm1d(features.shape[1], eps=PROBE_BATCH_NORM_EPS, affine=False).to(features.device)
    rates = [scaled_learning_rate(rate, batch_size) for rate in base_learning_rates]
    groups = [{"params": list(c.parameters()), "lr": rate} for c, rate in zip(classifiers, rates, strict=True)]
    optimizer = LARS(groups, lr=0.0, weight_decay=weight_decay)
    for step in range(max_steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = learning_rate_at(step, max_steps, warmup_steps, rate)
        start = step % steps_per_epoch * batch_size
        batch = orders[step // steps_per_epoch][start : start + batch_size].to(features.device)
        normalized, target = batch_norm(features[batch].float()), labels[batch].to(features.device)
        # The sum: each classifier gets the gradient of its own loss alone.
        loss = sum(nn.functional.cross_entropy(classifier(normalized), target) for classifier in classifiers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return batch_norm.eval(), list(classifiers.eval())


__all__ = ["LinearProbe", "train_linear_probes", "with_classifier"]
