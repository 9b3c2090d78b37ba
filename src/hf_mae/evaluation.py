# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""How good a model is: loss with fixed masks, and nearest neighbours of its features."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from .data import EvaluationDataset, ImageSource
from .image_processing_mae import MAEImageProcessor
from .modeling_mae import MAEForPreTraining, MAEModel


class Evaluation:
    """What a pre-training run measures from time to time, always on the same images with the same masks."""

    def __init__(
        self,
        train_images: ImageSource,
        test_images: ImageSource | None,
        image_processor: MAEImageProcessor,
        max_images: int = 5000,
        **loader_options,
    ):
        """
        Args:
            train_images ([`ImageSource`]): Neighbours, if they have labels; without `test_images` the queries, too.
            test_images ([`ImageSource`], *optional*): Held-out images: queries, and for the loss.
            image_processor ([`MAEImageProcessor`]): What makes pixel values of them.
            max_images (`int`, *optional*, defaults to 5000): Neighbours at most; of the others a fifth.
            **loader_options: Of `DataLoader`, such as `batch_size` and `num_workers`.
        """
        self.held_out = test_images is not None
        self.has_labels = train_images.labels is not None
        self.images = EvaluationDataset(test_images or train_images, image_processor, max(max_images // 5, 1))
        neighbors = EvaluationDataset(train_images, image_processor, max_images)
        self._loader, self._neighbors = (DataLoader(images, **loader_options) for images in (self.images, neighbors))

    def __call__(self, model: MAEForPreTraining) -> dict[str, float]:
        """Returns `eval_loss` and, for labelled images, `knn_accuracy` in [0, 1] of the pooled features."""
        was_training = model.training
        model.eval()
        results = {"eval_loss": reconstruction_loss(model, self._loader)}
        if self.has_labels and self.held_out:
            queries = extract_features(model.mae, self._loader)
            results["knn_accuracy"] = knn_accuracy(*extract_features(model.mae, self._neighbors), *queries)
        elif self.has_labels:
            results["knn_accuracy"] = knn_accuracy(*extract_features(model.mae, self._neighbors))
        model.train(was_training)
        return results


@torch.no_grad()
def reconstruction_loss(model: MAEForPreTraining, loader: DataLoader, seed: int = 0) -> float:
    """Returns the mean loss over all images of a loader, with the same masks at every call.

    Args:
        model ([`MAEForPreTraining`]): In evaluation mode.
        loader (`DataLoader`): Gives `pixel_values`, in the same order at every call.
        seed (`int`, *optional*, defaults to 0): Seed of the masks.
    """
    rows, columns = model.config.grid_size
    rng, total, count = np.random.default_rng(seed), 0.0, 0
    for batch in loader:
        pixel_values = batch["pixel_values"].to(model.device)
        noise = torch.from_numpy(rng.random((len(pixel_values), rows * columns), dtype=np.float32))
        total += model(pixel_values, noise=noise.to(model.device)).loss.item() * len(pixel_values)
        count += len(pixel_values)
    return total / count


@torch.no_grad()
def extract_features(model: MAEModel, loader: DataLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the pooled features of all images of a loader, and their labels.

    Args:
        model ([`MAEModel`]): In evaluation mode.
        loader (`DataLoader`): Gives `pixel_values` and `label`.

    Returns:
        `(features, labels)`: float32 of shape `(images, hidden_size)` and int64 of shape `(images,)`, on the CPU.
    """
    features, labels = [], []
    for batch in loader:
        features.append(model(batch["pixel_values"].to(model.device)).pooler_output.float().cpu())
        labels.append(batch["label"])
    return torch.cat(features), torch.cat(labels)


def knn_accuracy(
    features: torch.Tensor,
    labels: torch.Tensor,
    query_features: torch.Tensor | None = None,
    query_labels: torch.Tensor | None = None,
    num_neighbors: int = 20,
    temperature: float = 0.07,
) -> float:
    """Returns the share of queries whose class the weighted vote of their nearest neighbours finds, in [0, 1].

    Each of the nearest features votes for its class with the weight `exp(cosine / temperature)`. Source: Wu et al. 2018
    (arXiv 1805.01978), section 3.4.

    Args:
        features (`torch.Tensor` of shape `(images, width)`): The neighbours.
        labels (`torch.LongTensor` of shape `(images,)`): Their classes, from 0.
        query_features, query_labels (*optional*): The queries. Without them every image is a query to all the others.
        num_neighbors (`int`, *optional*, defaults to 20): Neighbours that vote.
        temperature (`float`, *optional*, defaults to 0.07): Smaller gives more weight to the nearest.
    """
    features = torch.nn.functional.normalize(features, dim=1)
    leave_one_out = query_features is None
    queries = features if leave_one_out else torch.nn.functional.normalize(query_features, dim=1)
    query_labels = labels if leave_one_out else query_labels
    num_neighbors = min(num_neighbors, len(features) - leave_one_out)
    correct = 0
    for start in range(0, len(queries), 1024):  # so that the table of similarities stays small
        with torch.autocast(features.device.type, enabled=False):  # bf16 would make neighbours equally near
            similarity = queries[start : start + 1024] @ features.T
        if leave_one_out:
            rows = torch.arange(len(similarity))
            similarity[rows, start + rows] = -torch.inf
        nearest, indices = similarity.topk(num_neighbors, dim=1)
        votes = torch.zeros(len(similarity), int(labels.max()) + 1)
        votes.scatter_add_(1, labels[indices], (nearest / temperature).exp())
        correct += (votes.argmax(dim=1) == query_labels[start : start + 1024]).sum().item()
    return correct / len(queries)


__all__ = ["Evaluation", "extract_features", "knn_accuracy", "reconstruction_loss"]
