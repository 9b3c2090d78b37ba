# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import pytest
import torch

from hf_mae import MAEImageProcessor
from hf_mae.data.datasets import EvaluationDataset
from hf_mae.data.sources import open_images
from hf_mae.evaluation.attentive import PatchTokens
from hf_mae.evaluation.linear import readable, store_features
from hf_mae.evaluation.monitoring import Evaluation, knn_accuracy


def test_knn__finds_clusters_and_nothing_in_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    noise = torch.randn(400, 16, generator=generator)
    clusters = torch.randn(4, 16, generator=generator)[labels] * 3 + noise
    assert knn_accuracy(clusters, labels) > 0.95
    assert knn_accuracy(clusters[:300], labels[:300], clusters[300:], labels[300:]) > 0.95
    assert knn_accuracy(noise, labels) == pytest.approx(0.25, abs=0.08)


def test_knn__weighs_votes_by_similarity():
    """One very near neighbour of class 1 beats two far ones of class 0."""
    features = torch.tensor([[1.0, 0.05], [0.5, 1.0], [0.4, 1.0]])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_accuracy(features, torch.tensor([1, 0, 0]), query, torch.tensor([1]), num_neighbors=3) == 1.0
    assert knn_accuracy(features, torch.tensor([1, 0, 0]), query, torch.tensor([1]), 3, temperature=100.0) == 0.0


def test_knn__is_exact_under_autocast():
    features, labels = torch.randn(200, 8), torch.arange(200) % 5
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = knn_accuracy(features, labels)
    assert under_autocast == knn_accuracy(features, labels)


def test_knn__leave_one_out_does_not_find_itself():
    features = torch.eye(6)
    assert knn_accuracy(features, torch.arange(6)) == 0.0


def test_evaluation__leaves_out_of_probes_and_knn_what_cannot_be_read(tiny_model, folder, capsys):
    def mean_colours(pixel_values):
        return {"mean": pixel_values.mean(dim=(2, 3))}

    processor, found = MAEImageProcessor.for_image_size(32), []
    for number in range(2):
        images = open_images(str(folder))
        dataset = EvaluationDataset(images, processor)
        features = readable(store_features(mean_colours, dataset, 5), "images")["mean"]
        tokens = PatchTokens(lambda pixel_values: pixel_values.mean(dim=2), dataset, memory=10**9 * number)
        values, labels = zip(*tokens.batches(torch.arange(len(dataset)).split(6)), strict=True)
        accuracy = Evaluation(images, None, processor, batch_size=16)(tiny_model())["knn_accuracy"]
        values = torch.cat(values).half()  # as they are kept in memory
        found.append((*features, values, torch.cat(labels), torch.tensor(accuracy)))
        (folder / "train" / "green" / "00.png").write_bytes(b"")
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)
    assert "1 of 25 images can't be read and are left out" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluation__is_the_same_at_every_call_and_leaves_the_mode(tiny_model):
    model = tiny_model(image_size=28, patch_size=4, num_channels=1).train()
    processor = MAEImageProcessor.for_image_size(28, num_channels=1)
    evaluation = Evaluation(open_images(), open_images(split="test"), processor, max_images=100, batch_size=16)
    first, second = evaluation(model), evaluation(model)
    assert first == second
    assert set(first) == {"eval_loss", "knn_accuracy"}
    assert 0 <= first["knn_accuracy"] <= 1
    assert model.training
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(1.5)
    third = evaluation(model)
    assert third["eval_loss"] != first["eval_loss"]
    assert third["knn_accuracy"] == first["knn_accuracy"]  # features are the encoder's
