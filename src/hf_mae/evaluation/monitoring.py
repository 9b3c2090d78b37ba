# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Measures a model during a run: its loss on fixed images with fixed masks, and nearest neighbours of its features."""

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from ..data.datasets import EvaluationDataset, collate_evaluation
from ..data.labels import has_classes
from ..data.sampling import even_slice
from ..data.sources import ImageSource
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining


class Evaluation:
    """Measures the model of a pre-training run, always on the same images with the same masks.

    Each process measures a share of the images. All processes get the whole result.
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
            train_images ([`ImageSource`]): The k-NN bank, if they have labels; without `test_images` the queries, too.
            test_images ([`ImageSource`], *optional*): Held-out images for the loss and as queries.
            image_processor ([`MAEImageProcessor`]): Makes pixel values of them.
            max_images (`int`, *optional*, defaults to 5000): Maximum size of the k-NN bank. Loss and queries take at
                most a fifth of it.
            batch_size (`int`, *optional*, defaults to 64): Images of one forward pass of a process.
            process_index, num_processes (`int`, *optional*): The share of this process.
            seed (`int`, *optional*, defaults to 0): Seed of the masks.
            **loader_options: Arguments of `DataLoader`, such as `num_workers`.
        """
        self.held_out = test_images is not None
        self.has_labels = all(has_classes(images) for images in (train_images, test_images or train_images))
        if self.has_labels and np.median(np.unique(train_images.labels, return_counts=True)[1]) < 5:
            self.has_labels = False  # folders of patients or dates, say: no classes that neighbours could share
        self.images = EvaluationDataset(test_images or train_images, image_processor, max(max_images // 5, 1))
        self.neighbors = EvaluationDataset(train_images, image_processor, max_images)
        self.batch_size, self.process_index, self.num_processes = batch_size, process_index, num_processes
        self.seed, self.loader_options = seed, loader_options

    def __call__(self, model: MAEForPreTraining) -> dict[str, float]:
        """Returns `eval_loss` and, if both kinds of images have labels, `knn_accuracy` in [0, 1] of pooled features.

        No-data is left out of the loss, as in training.
        """
        was_training = model.training
        model.eval()
        separate_queries = self.has_labels and self.held_out
        loss, *queries = self._pass(model, self.images, with_loss=True, with_features=separate_queries)
        results = {"eval_loss": loss}
        if self.has_labels:
            _, *bank = self._pass(model, self.neighbors, with_loss=False, with_features=True)
            bank, queries = _labelled(*bank), _labelled(*queries) if separate_queries else []
            if len(bank[0]) > 1 and (not separate_queries or len(queries[0]) > 0):
                results["knn_accuracy"] = knn_accuracy(*bank, *queries)
        model.train(was_training)
        return results

    @torch.no_grad()
    def _pass(self, model, images: EvaluationDataset, with_loss: bool, with_features: bool):
        """Returns the mean loss, the pooled features (images, D) and the labels (images,), on the CPU."""
        if with_loss:
            rows, columns = model.config.grid_size
            noise = np.random.default_rng(self.seed).random((len(images), rows * columns), dtype=np.float32)
        shares = self._shares(len(images))
        # Ranks with an empty share run a dummy forward, since FSDP2's collectives need every rank.
        batches = [share or [0] for share in shares]
        loader = DataLoader(images, batch_sampler=batches, collate_fn=collate_evaluation, **self.loader_options)
        loss = torch.zeros((), device=model.device)
        features = torch.zeros(len(images), model.config.hidden_size, device=model.device)
        labels = torch.zeros(len(images), device=model.device, dtype=torch.int64)
        for batch, share in zip(loader, shares, strict=True):
            pixel_values, positions = batch["pixel_values"].to(model.device), batch["position"]
            if with_loss:
                masks = torch.from_numpy(noise[positions.numpy()]).to(model.device)
                valid = {"valid": batch["valid"].to(model.device)} if "valid" in batch else {}
                loss += model(pixel_values, noise=masks, **valid).loss.float() * len(share)
            if with_features:
                pooled = model.mae(pixel_values).pooler_output.float()
                if share:
                    features[positions], labels[positions] = pooled, batch["label"].to(model.device)
        if self.num_processes > 1:
            for values in (loss, features, labels):  # each process has filled in its rows
                dist.all_reduce(values)
        return loss.item() / len(images), features.cpu(), labels.cpu()

    def _shares(self, num_images: int) -> list[list[int]]:
        """Returns the positions of this process, batch by batch. The last batch may be empty."""
        together = self.batch_size * self.num_processes
        shares = []
        for start in range(0, num_images, together):
            size = min(together, num_images - start)
            part = even_slice(size, self.process_index, self.num_processes)
            shares.append([start + place for place in part])
        return shares


def _labelled(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the features and labels of images that have one: a negative label means that there is none."""
    return features[labels >= 0], labels[labels >= 0]


def knn_accuracy(
    features: torch.Tensor,
    labels: torch.Tensor,
    query_features: torch.Tensor | None = None,
    query_labels: torch.Tensor | None = None,
    num_neighbors: int = 20,
    temperature: float = 0.07,
) -> float:
    """Returns the share of queries, in [0, 1], whose class wins the weighted vote of their nearest neighbours.

    Each of the nearest features votes for its class with the weight `exp(cosine / temperature)`. Source: Wu et al. 2018
    (arXiv 1805.01978), section 3.4.

    Args:
        features (`torch.Tensor` of shape `(images, width)`): The bank.
        labels (`torch.LongTensor` of shape `(images,)`): Their classes, from 0.
        query_features, query_labels (*optional*): The queries. By default every image of the bank is a query to all the
            others.
        num_neighbors (`int`, *optional*, defaults to 20): Number of neighbours that vote.
        temperature (`float`, *optional*, defaults to 0.07): A smaller one gives more weight to the nearest.
    """
    features = torch.nn.functional.normalize(features, dim=1)
    leave_one_out = query_features is None
    queries = features if leave_one_out else torch.nn.functional.normalize(query_features, dim=1)
    query_labels = labels if leave_one_out else query_labels
    num_neighbors = min(num_neighbors, len(features) - leave_one_out)
    correct = 0
    for start in range(0, len(queries), 1024):  # so that the table of similarities stays small
        with torch.autocast(
            features.device.type, enabled=False
        ):  # in bf16 many neighbours would have the same distance
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
