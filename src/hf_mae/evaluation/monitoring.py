# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Measures a model during a run, on fixed images: its loss, nearest neighbours, features of two crops of an image."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from ..data.datasets import EvaluationDataset, PretrainingDataset, collate_evaluation
from ..data.labels import has_classes
from ..data.sampling import even_slice, spread_indices
from ..data.sources import ImageSource
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining
from .baselines import PREDICTORS, TrivialPredictors

MAX_TWINS = 1000  # images; twin retrieval can only be compared for as many, and a rank needs four times its dimensions
_EPOCH_OF_TWINS = 2**32 - 1  # no run gets there, so no crop of the training is among them


class TwinCrops(Dataset):
    """Yields two random crops of each of some images, made as in training, and the same ones each time.

    The crops of image `i` have the positions `2 * i` and `2 * i + 1`.
    """

    def __init__(self, crops: PretrainingDataset, image_processor: MAEImageProcessor, max_images: int = MAX_TWINS):
        """
        Args:
            crops ([`PretrainingDataset`]): Makes the crops.
            image_processor ([`MAEImageProcessor`]): Normalises them.
            max_images (`int`, *optional*, defaults to 1000): Maximum number of images, see [`spread_indices`].
        """
        self.crops, self.image_processor = crops, image_processor
        self.indices = spread_indices(crops.images, max_images)

    def __len__(self) -> int:
        return 2 * len(self.indices)

    def __getitem__(self, position: int) -> dict:
        """Returns one crop, see [`TwinCrops.__getitems__`]."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict]:
        """Returns crops as [`EvaluationDataset`] returns images, without labels. Twins in a row are decoded once."""
        triples = [(_EPOCH_OF_TWINS, int(self.indices[position // 2]), position % 2) for position in positions]
        samples = []
        for position, crop in zip(positions, self.crops.__getitems__(triples), strict=True):
            pixel_values = self.image_processor.rescale_and_normalize(crop["pixel_values"].float())
            valid = {"valid": crop["valid"]} if "valid" in crop else {}
            samples.append({"pixel_values": pixel_values, "label": torch.tensor(-1), "position": position, **valid})
        return samples

    def picture(self, number: int) -> PIL.Image.Image:
        """Returns the first crop of an image, counted from 0, as a picture."""
        return self.image_processor.post_process_reconstruction(self[2 * number]["pixel_values"][None])[0]


class _Measured(NamedTuple):
    """Holds the mean loss of images, their pooled features (images, D) and their labels (images,), on the CPU."""

    loss: float
    features: torch.Tensor
    labels: torch.Tensor

    def labelled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns features and labels of images that have one: a negative label means that there is none."""
        return self.features[self.labels >= 0], self.labels[self.labels >= 0]


class Evaluation:
    """Measures the model of a pre-training run, always on the same images with the same masks.

    Each process measures a share of the images. All processes call the methods together and get the whole results.
    Images that do not suit the model are replaced: the run has looked at some, and another one should not end it.
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
        crops: PretrainingDataset | None = None,
        max_twins: int = MAX_TWINS,
        **loader_options,
    ):
        """
        Args:
            train_images ([`ImageSource`]): The k-NN bank, if they have labels; without `test_images` the queries, too.
            test_images ([`ImageSource`], *optional*): Held-out images for the loss and as queries.
            image_processor ([`MAEImageProcessor`]): Makes pixel values of them.
            max_images (`int`, *optional*, defaults to 5000): Maximum size of the k-NN bank. Loss and queries take at
                most a fifth of it, and so do twins.
            batch_size (`int`, *optional*, defaults to 64): Images of one forward pass of a process.
            process_index, num_processes (`int`, *optional*): The share of this process.
            seed (`int`, *optional*, defaults to 0): Seed of the masks.
            crops ([`PretrainingDataset`], *optional*): Makes the crops of [`Evaluation.encode_twins`].
            max_twins (`int`, *optional*, defaults to 1000): Maximum number of images that are cropped twice.
            **loader_options: Arguments of `DataLoader`, such as `num_workers`.
        """
        self.held_out = test_images is not None
        self.has_labels = all(has_classes(images) for images in (train_images, test_images or train_images))
        if self.has_labels and np.median(np.unique(train_images.labels, return_counts=True)[1]) < 5:
            self.has_labels = False  # folders of patients or dates, say: no classes that neighbours could share
        share = max(max_images // 5, 1)
        self.images = EvaluationDataset(test_images or train_images, image_processor, share, replace_unsuitable=True)
        self.neighbors = EvaluationDataset(train_images, image_processor, max_images, replace_unsuitable=True)
        self.twins = TwinCrops(crops, image_processor, min(share, max_twins)) if crops is not None else None
        self.batch_size, self.process_index, self.num_processes = batch_size, process_index, num_processes
        self.seed, self.loader_options = seed, loader_options

    def __call__(self, model: MAEForPreTraining) -> dict[str, float]:
        """Returns `eval_loss` and, if both kinds of images have labels, `knn_accuracy` in [0, 1] of pooled features.

        No-data is left out of the loss, as in training.
        """
        separate_queries = self.has_labels and self.held_out
        measured = self._pass(model, self.images, with_loss=True, with_features=separate_queries)
        results = {"eval_loss": measured.loss}
        if self.has_labels:
            bank = self._pass(model, self.neighbors, with_loss=False, with_features=True).labelled()
            queries = measured.labelled() if separate_queries else ()  # without any, each of the bank to all others
            if len(bank[0]) > 1 and (not queries or len(queries[0]) > 0):
                results["knn_accuracy"] = knn_accuracy(*bank, *queries)
        return results

    def encode_twins(self, model: MAEForPreTraining) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the pooled features (images, width) of the first and of the second crops, on the CPU.

        The encoder sees all patches, and the features are those of the k-NN accuracy.
        """
        features = self._pass(model, self.twins, with_loss=False, with_features=True).features
        return features[0::2], features[1::2]

    @torch.no_grad()
    def trivial_losses(self, model: MAEForPreTraining) -> dict[str, float]:
        """Returns the losses of [`TrivialPredictors`] on the images and masks of `eval_loss`, by the predictor's name.

        The model is asked for its masks, target and loss, not for predictions.
        """
        predictors, noise = TrivialPredictors(model), self._noise(model)
        sums = torch.zeros(len(PREDICTORS), dtype=torch.float64, device=model.device)
        for measures in (False, True):  # the constant must be known before its loss can be measured
            for pixel_values, batch, share in self._batches(model, self.images):
                if not share:
                    continue
                inputs = pixel_values, noise[batch["position"]].to(model.device), batch.get("valid")
                if measures:
                    losses = predictors.losses(*inputs)
                    sums += torch.stack([losses[name].double() for name in PREDICTORS]) * len(share)
                else:
                    predictors.add(*inputs)
            self._add_up(sums if measures else predictors.sums)
        return dict(zip(PREDICTORS, (sums / len(self.images)).tolist(), strict=True))

    @torch.no_grad()
    def _pass(self, model: MAEForPreTraining, images: Dataset, with_loss: bool, with_features: bool) -> "_Measured":
        """Returns what the model gives for images. Loss and features that are not asked for are 0."""
        was_training, noise = model.training, self._noise(model)
        model.eval()
        loss = torch.zeros((), device=model.device)
        features = torch.zeros(len(images), model.config.hidden_size, device=model.device)
        labels = torch.zeros(len(images), device=model.device, dtype=torch.int64)
        for pixel_values, batch, share in self._batches(model, images):
            positions = batch["position"]
            if with_loss:
                valid = {"valid": batch["valid"]} if "valid" in batch else {}
                output = model(pixel_values, noise=noise[positions].to(model.device), **valid)
                loss += output.loss.float() * len(share)
            if with_features:
                pooled = model.mae(pixel_values).pooler_output.float()
                if share:
                    features[positions], labels[positions] = pooled, batch["label"].to(model.device)
        self._add_up(loss, features, labels)  # each process has filled in its rows
        model.train(was_training)
        return _Measured(loss.item() / len(images), features.cpu(), labels.cpu())

    def _noise(self, model: MAEForPreTraining) -> torch.Tensor:
        """Returns what the masks of the loss are made from (images, patches)."""
        rows, columns = model.config.grid_size
        shape = (len(self.images), rows * columns)
        return torch.from_numpy(np.random.default_rng(self.seed).random(shape, dtype=np.float32))

    def _batches(self, model: MAEForPreTraining, images: Dataset) -> Iterator[tuple[torch.Tensor, dict, list[int]]]:
        """Yields the pixel values of each batch of this process, the batch, and the positions that count.

        An empty share comes with one image that does not count, since FSDP2's collectives need every rank.
        """
        shares = self._shares(len(images))
        batches = [share or [0] for share in shares]
        loader = DataLoader(images, batch_sampler=batches, collate_fn=collate_evaluation, **self.loader_options)
        for batch, share in zip(loader, shares, strict=True):
            if "valid" in batch:
                batch["valid"] = batch["valid"].to(model.device)
            yield batch["pixel_values"].to(model.device), batch, share

    def _add_up(self, *sums: torch.Tensor):
        """Adds up, in place, what the processes have each computed."""
        if self.num_processes > 1:
            for values in sums:
                dist.all_reduce(values)

    def _shares(self, num_images: int) -> list[list[int]]:
        """Returns the positions of this process, batch by batch. The last batch may be empty."""
        together = self.batch_size * self.num_processes
        shares = []
        for start in range(0, num_images, together):
            size = min(together, num_images - start)
            part = even_slice(size, self.process_index, self.num_processes)
            shares.append([start + place for place in part])
        return shares


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
    classes, places = labels.unique(return_inverse=True)  # years or numbers of species may be large
    correct = 0
    for start in range(0, len(queries), 1024):  # so that the table of similarities stays small
        with torch.autocast(features.device.type, enabled=False):  # in bf16 many would be at the same distance
            similarity = queries[start : start + 1024] @ features.T
        if leave_one_out:
            rows = torch.arange(len(similarity))
            similarity[rows, start + rows] = -torch.inf
        nearest, indices = similarity.topk(num_neighbors, dim=1)
        votes = torch.zeros(len(similarity), len(classes), device=similarity.device)
        votes.scatter_add_(1, places[indices], (nearest / temperature).exp())
        correct += (classes[votes.argmax(dim=1)] == query_labels[start : start + 1024]).sum().item()
    return correct / len(queries)


__all__ = ["MAX_TWINS", "Evaluation", "TwinCrops", "knn_accuracy"]
