# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""How good a model is: loss with fixed masks, and nearest neighbours of its features."""

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from ..data.datasets import EvaluationDataset
from ..data.sampling import even_slice
from ..data.sources import ImageSource
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining


class Evaluation:
    """What a pre-training run measures from time to time, always on the same images with the same masks.

    Each process looks at a share of the images; all get the whole result.
    """

    def __init__(
        self,
        train_images: ImageSource,
        test_images: ImageSource | None,
        image_processor: MAEImageProcessor,
        max_images: int = 5000,
        batch_size: int = 64,
        process_index: int = 0,
        num_processes: int = 1,
        seed: int = 0,
        **loader_options,
    ):
        """
        Args:
            train_images ([`ImageSource`]): Neighbours, if they have labels; without `test_images` the queries, too.
            test_images ([`ImageSource`], *optional*): Held-out images: queries, and for the loss.
            image_processor ([`MAEImageProcessor`]): What makes pixel values of them.
            max_images (`int`, *optional*, defaults to 5000): Neighbours at most; of the others a fifth.
            batch_size (`int`, *optional*, defaults to 64): Images of one forward pass of a process.
            process_index, num_processes (`int`, *optional*): Which share to take.
            seed (`int`, *optional*, defaults to 0): Seed of the masks.
            **loader_options: Of `DataLoader`, such as `num_workers`.
        """
        self.held_out = test_images is not None
        self.has_labels = train_images.labels is not None
        self.images = EvaluationDataset(test_images or train_images, image_processor, max(max_images // 5, 1))
        self.neighbors = EvaluationDataset(train_images, image_processor, max_images)
        self.batch_size, self.process_index, self.num_processes = batch_size, process_index, num_processes
        self.seed, self.loader_options = seed, loader_options

    def __call__(self, model: MAEForPreTraining) -> dict[str, float]:
        """Returns `eval_loss` and, for labelled images, `knn_accuracy` in [0, 1] of the pooled features."""
        was_training = model.training
        model.eval()
        separate_queries = self.has_labels and self.held_out
        loss, *queries = self._pass(model, self.images, with_loss=True, with_features=separate_queries)
        results = {"eval_loss": loss}
        if self.has_labels:
            _, *neighbors = self._pass(model, self.neighbors, with_loss=False, with_features=True)
            results["knn_accuracy"] = knn_accuracy(*neighbors, *(queries if separate_queries else ()))
        model.train(was_training)
        return results

    @torch.no_grad()
    def _pass(self, model, images: EvaluationDataset, with_loss: bool, with_features: bool):
        """Returns the mean loss, the pooled features (images, D) and the labels (images,), on the CPU."""
        if with_loss:
            rows, columns = model.config.grid_size
            noise = np.random.default_rng(self.seed).random((len(images), rows * columns), dtype=np.float32)
        shares = self._shares(len(images))
        # Every process takes every turn, if only for show: a sharded model's forward needs them all.
        loader = DataLoader(images, batch_sampler=[share or [0] for share in shares], **self.loader_options)
        loss = torch.zeros((), device=model.device)
        features = torch.zeros(len(images), model.config.hidden_size, device=model.device)
        labels = torch.zeros(len(images), device=model.device, dtype=torch.int64)
        for batch, share in zip(loader, shares, strict=True):
            pixel_values, positions = batch["pixel_values"].to(model.device), batch["position"]
            if with_loss:
                masks = torch.from_numpy(noise[positions.numpy()]).to(model.device)
                loss += model(pixel_values, noise=masks).loss.float() * len(share)
            if with_features:
                pooled = model.mae(pixel_values).pooler_output.float()
                if share:
                    features[positions], labels[positions] = pooled, batch["label"].to(model.device)
        if self.num_processes > 1:
            for values in (loss, features, labels):  # each process has filled in its rows
                dist.all_reduce(values)
        return loss.item() / len(images), features.cpu(), labels.cpu()

    def _shares(self, num_images: int) -> list[list[int]]:
        """The positions of this process, batch by batch; the last may be empty."""
        together = self.batch_size * self.num_processes
        shares = []
        for start in range(0, num_images, together):
            size = min(together, num_images - start)
            piece = even_slice(size, self.process_index, self.num_processes)
            shares.append([start + place for place in piece])
        return shares


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
        votes = torch.zeros(len(similarity), int(labels.max()) + 1, device=similarity.device)
        votes.scatter_add_(1, labels[indices], (nearest / temperature).exp())
        correct += (votes.argmax(dim=1) == query_labels[start : start + 1024]).sum().item()
    return correct / len(queries)


__all__ = ["Evaluation", "knn_accuracy"]
