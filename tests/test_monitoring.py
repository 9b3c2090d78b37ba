# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""How a run is judged while it goes on: figures without labels, twins, comparison with trivial predictors, alarms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture

from hf_mae import MAEForPreTraining, MAEImageProcessor
from hf_mae.data.datasets import PretrainingDataset
from hf_mae.data.image_source import ImageSource
from hf_mae.data.sources import open_images
from hf_mae.evaluation.baselines import PREDICTORS
from hf_mae.evaluation.label_free import collapse, effective_rank, label_free_figures, mean_cosine, twin_retrieval
from hf_mae.evaluation.monitoring import Evaluation, TwinCrops
from hf_mae.pretraining.evaluation import Alarms, describe, num_twins
from hf_mae.pretraining.schedule import Plan

RELEASED = Path(__file__).parents[1] / "model_cards" / "mae-fashion-mnist"

# ----------------------------------------------------------------------------------------------------------------------
# Figures without labels


def spread(*singular_values):
    """Features of four images, centred, with these (at most three) singular values and zeros."""
    left = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])[:, : len(singular_values)] / 2
    directions, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    return left.double() * torch.tensor(singular_values) @ directions[: len(singular_values)]


def test_effective_rank__counts_equal_directions_and_less_of_weaker_ones():
    assert effective_rank(spread(2.0)) == pytest.approx(1)
    assert effective_rank(spread(2.0, 2.0)) == pytest.approx(2)
    assert effective_rank(spread(2.0, 2.0, 2.0)) == pytest.approx(3)
    assert effective_rank(spread(3.0, 1.0)) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))


def test_effective_rank__depends_on_neither_mean_nor_scale():
    features = spread(3.0, 2.0, 1.0)
    assert effective_rank(7 * features + 5) == pytest.approx(effective_rank(features))


def test_effective_rank__is_at_most_the_images_less_one():
    assert effective_rank(torch.eye(5)) == pytest.approx(4)
    assert effective_rank(torch.randn(20, 64)) < 19


def test_effective_rank__of_one_point_is_1_whatever_rounding_adds():
    point = torch.randn(1, 8).expand(50, 8)
    assert effective_rank(point) == 1
    assert effective_rank(point * (1 + 1e-7 * torch.randn(50, 8))) == 1


def test_twins__are_found_where_crops_differ_less_than_images():
    images = torch.randn(50, 16)
    assert twin_retrieval(images, images + 0.1 * torch.randn(50, 16)) == 1
    assert twin_retrieval(images, images.roll(1, 0)) == 0
    assert twin_retrieval(images + 1000, images + 1000) == 1  # what all have in common does not count
    half_way = torch.cat([images[:25], images[25:].roll(1, 0)])
    assert twin_retrieval(images, half_way) == 0.5


def test_twins__are_looked_for_in_both_directions():
    """Directions in degrees, with their opposites, which bring the mean to 0. The nearest second of -80 is -30 and that
    of 0 is 20, both their twins; but the nearest first of -30 is 0."""
    first, second = (torch.tensor(degrees) * math.pi / 180 for degrees in ((-80.0, 0.0), (-30.0, 20.0)))
    first, second = (torch.stack([each.cos(), each.sin()], dim=1) for each in (first, second))
    first, second = torch.cat([first, -first]), torch.cat([second, -second])
    assert twin_retrieval(first, second) == twin_retrieval(second, first) == 0.75
    common = torch.tensor([3.0, -5.0])
    assert twin_retrieval(first + common, second + common) == 0.75


def test_twins__are_found_by_chance_in_noise_and_in_one_point():
    assert twin_retrieval(torch.randn(300, 16), torch.randn(300, 16)) == pytest.approx(1 / 300, abs=0.01)
    assert twin_retrieval(torch.ones(20, 8), torch.ones(20, 8)) == 1 / 20


def test_mean_cosine__is_that_of_all_pairs():
    features = torch.randn(30, 8) + 1
    pairs = [torch.cosine_similarity(features[i], features[j], dim=0) for i in range(30) for j in range(30) if i != j]
    assert mean_cosine(features) == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    assert mean_cosine(torch.eye(4)) == 0
    assert mean_cosine(torch.tensor([[1.0], [3.0]])) == pytest.approx(1)
    assert mean_cosine(torch.tensor([[1.0, 0], [-2.0, 0]])) == pytest.approx(-1)


def test_figures__of_features_that_are_not_finite_are_not_a_number():
    features = torch.randn(6, 4)
    features[2, 1] = math.inf
    assert all(math.isnan(value) for value in label_free_figures(features, features).values())


@pytest.mark.parametrize("features", [torch.ones(1, 4), torch.ones(4)])
def test_figures__need_two_images(features):
    for figure in (effective_rank, mean_cosine, lambda each: twin_retrieval(each, each)):
        with pytest.raises(ValueError, match="at least two images"):
            figure(features)


def sample_figures(model):
    """Figures of a model for small grey images on a hundred of the embedded ones."""
    processor = MAEImageProcessor.from_pretrained(RELEASED)
    crops = PretrainingDataset(open_images(), (28, 28), 49, num_channels=1, crop_scale=(0.5, 1.0))
    evaluation = Evaluation(open_images(), None, processor, max_images=500, batch_size=100, crops=crops)
    return label_free_figures(*evaluation.encode_twins(model))


@pytest.mark.slow
def test_figures__tell_a_collapsed_a_random_and_a_trained_encoder_apart():
    trained = MAEForPreTraining.from_pretrained(RELEASED)
    random = MAEForPreTraining(trained.config)
    collapsed = MAEForPreTraining(trained.config)
    torch.nn.init.zeros_(collapsed.mae.embeddings.patch_embeddings.weight)  # it does not see the images
    trained, random, collapsed = (sample_figures(model) for model in (trained, random, collapsed))
    assert collapsed["effective_rank"] == pytest.approx(1)
    assert collapsed["twin_retrieval"] <= 0.05
    assert collapsed["mean_cosine"] == pytest.approx(1)
    assert trained["effective_rank"] > 1.5 * random["effective_rank"] > 15
    assert trained["twin_retrieval"] > random["twin_retrieval"] > 0.1
    assert trained["mean_cosine"] < random["mean_cosine"] - 0.2 < 0.75
    assert collapse(trained) is collapse(random) is None
    assert "has collapsed" in collapse(collapsed)


def test_collapse__needs_few_directions():
    assert collapse({"effective_rank": 22.0, "mean_cosine": 0.996}) is None  # as early in a run that goes well
    assert collapse({"effective_rank": 6.3, "mean_cosine": 0.7}) is None
    assert "(effective rank 3.9, mean cosine 0.996)" in collapse({"effective_rank": 3.9, "mean_cosine": 0.9955})
    assert collapse({"effective_rank": math.nan, "mean_cosine": math.nan}) is None  # is reported as a bad step
    assert collapse({}) is None
    assert collapse({"effective_rank": 1.0, "mean_cosine": 1.0}, num_images=3) is None  # of which no rank is above 2
    assert "has collapsed" in collapse({"effective_rank": 1.0, "mean_cosine": 1.0}, num_images=20)


# ----------------------------------------------------------------------------------------------------------------------
# Twins and trivial predictors in an evaluation


class Pictures(ImageSource):
    """Ten pictures of noise."""

    name, fingerprint = "pictures", "pictures"

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return picture(index)


def crops_of(images, seed=0):
    return PretrainingDataset(images, (32, 32), num_patches=16, crop_scale=(0.2, 0.5), seed=seed)


def evaluation_of(images, max_images=50, batch_size=4, **options):
    return Evaluation(images, None, MAEImageProcessor.for_image_size(32), max_images, batch_size, **options)


def test_twins__are_two_crops_as_in_training_the_same_each_time():
    processor = MAEImageProcessor.for_image_size(32)
    twins = TwinCrops(crops_of(Pictures()), processor, max_images=5)
    assert len(twins) == 10
    first, second = twins.__getitems__([4, 5])
    (crop,) = crops_of(Pictures()).__getitems__([(2**32 - 1, 4, 1)])  # the third of five images spread over ten
    assert torch.equal(second["pixel_values"], processor.rescale_and_normalize(crop["pixel_values"].float()))
    assert torch.equal(twins[5]["pixel_values"], second["pixel_values"])
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    other_run = TwinCrops(crops_of(Pictures(), seed=1), processor, max_images=5)
    assert not torch.equal(other_run[5]["pixel_values"], second["pixel_values"])
    assert np.array(twins.picture(2)).shape == (32, 32, 3)


@pytest.mark.parametrize(("eval_images", "twins"), [(50, 10), (20, 4), (10**6, 10)])
def test_twins__are_as_many_as_the_images_of_the_loss(eval_images, twins):
    evaluation = evaluation_of(Pictures(), eval_images, crops=crops_of(Pictures()))
    assert len(evaluation.twins) == 2 * twins
    assert len(evaluation.images) == twins


@pytest.mark.parametrize(("steps", "batch", "images"), [(2000, 1024, 1000), (470, 64, 300), (6, 24, 100)])
def test_twins__are_fewer_in_a_short_run(steps, batch, images):
    """A hundredth of the samples between two evaluations, but at least 100 and at most 1,000."""
    assert num_twins(Plan(batch, 1.0, 10**5, 0, 1e-3, eval_steps=steps)) == images


def test_twins__are_encoded_whole_in_their_order(tiny_model):
    model = tiny_model().train()
    evaluation = evaluation_of(Pictures(), crops=crops_of(Pictures()))
    first, second = evaluation.encode_twins(model)
    assert model.training
    for features, place in ((first, 0), (second, 1)):
        pixel_values = torch.stack([evaluation.twins[2 * number + place]["pixel_values"] for number in range(10)])
        with torch.no_grad():
            torch.testing.assert_close(features, model.eval().mae(pixel_values).pooler_output)


def test_trivial_losses__are_those_of_the_images_and_masks_of_the_loss(tiny_model):
    """A model whose head predicts the mean target everywhere has the loss of the constant."""
    model, evaluation = tiny_model(norm_pix_loss=True), evaluation_of(Pictures())
    losses = evaluation.trivial_losses(model)
    assert set(losses) == set(PREDICTORS)
    noise = torch.from_numpy(np.random.default_rng(0).random((10, 16), dtype=np.float32))
    pixel_values = torch.stack([evaluation.images[number]["pixel_values"] for number in range(10)])
    with torch.no_grad():
        target = model.target_values(pixel_values, model(pixel_values, noise=noise).ids_hidden)
        model.decoder.head.weight.zero_()
        model.decoder.head.bias.copy_(target.mean(dim=(0, 1)))
    assert evaluation(model)["eval_loss"] == pytest.approx(losses["constant"], rel=1e-5)
    assert losses["constant"] == pytest.approx(target.var(dim=(0, 1), correction=0).mean().item(), rel=1e-5)
    assert losses["interpolation"] == pytest.approx(losses["constant"], rel=0.01)  # nothing is known of noise


@pytest.mark.slow
def test_processes__add_up_to_the_figures_of_one(tiny_model, monkeypatch):
    """Three processes whose sums are exchanged by hand: the last one has no image of some batches."""
    import threading

    import torch.distributed as dist

    model, images = tiny_model(), Pictures()
    barrier, sent, lock = threading.Barrier(3), [], threading.Lock()

    def all_reduce(values):
        with lock:
            sent.append(values.clone())
        barrier.wait()
        total = sum(sent)
        barrier.wait()
        sent.clear()
        barrier.wait()
        values.copy_(total)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    results = {}

    def measure(rank):
        share = {"process_index": rank, "num_processes": 3}
        evaluation = evaluation_of(images, batch_size=3, crops=crops_of(images), **share)
        results[rank] = [evaluation.trivial_losses(model), *evaluation.encode_twins(model)]

    threads = [threading.Thread(target=measure, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = evaluation_of(images, crops=crops_of(images))
    losses, (first, second) = alone.trivial_losses(model), alone.encode_twins(model)
    for found in results.values():
        assert found[0] == pytest.approx(losses, rel=1e-5)
        torch.testing.assert_close(found[1:], [first, second])


# ----------------------------------------------------------------------------------------------------------------------
# What a run says of its figures


def test_line_of_an_evaluation__compares_the_loss_and_leaves_out_what_is_missing():
    figures = {
        "eval_loss": 0.6,
        "eval_loss_constant": 1.0,
        "eval_loss_interpolation": 0.5,
        "eval_loss_visible_mean": 0.9,
    }
    assert describe(figures, 128, 300) == "loss 0.6000 (40% below a constant, 20% above interpolation)"
    more = {"knn_accuracy": 0.712, "effective_rank": 41.31, "twin_retrieval": 0.081, "mean_cosine": 0.564}
    assert describe({"eval_loss": 0.6, **more, "eval_seconds": 3.0}, 128, 300) == (
        "loss 0.6000, k-NN 71.2%, rank 41.3 of 128, twins 8.1% of 300, cosine 0.56"
    )
    assert describe({"eval_loss": math.nan, "eval_loss_constant": 1.0}, 128, 300) == "loss nan"
    assert describe({"eval_loss": -0.6, "eval_loss_constant": -0.5}, 128, 300) == "loss -0.6000"  # a ratio says nothing


def test_alarm__of_a_loss_not_below_the_constant_is_given_once_until_it_was():
    alarms = Alarms(warmup_steps=10)

    def said(step, loss):
        return alarms(step, {"eval_loss": loss, "eval_loss_constant": 1.0})

    assert said(5, 1.2) == []  # in the warm-up
    (alarm,) = said(10, 0.995)
    assert "Step 10: the loss 0.9950 is not below 1.0000" in alarm
    assert "`base_learning_rate`" in alarm
    assert alarm.endswith("with a higher one.")  # the way out, and no page, which an installed package does not have
    assert said(20, 1.1) == []
    assert said(30, 0.9) == []
    assert len(said(40, 1.0)) == 1
    assert Alarms(0)(10, {"eval_loss": 5.0}) == []  # of a target that has no constant


def test_alarm__of_a_collapse_says_what_to_do():
    alarms, features = Alarms(0), {"effective_rank": 1.0, "twin_retrieval": 0.001, "mean_cosine": 1.0}
    (alarm,) = alarms(10, {"eval_loss": 0.5, **features})
    assert "Step 10: the features of all images are nearly alike" in alarm
    assert alarm.endswith("`max_grad_norm` 1.")
    assert Alarms(0)(10, {"eval_loss": 0.5, **features}, num_images=3) == []
    assert alarms(20, {"eval_loss": 0.5, **features}) == []
