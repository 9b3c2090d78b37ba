# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Dense probes of patch features: against scikit-learn, and on features whose figure is known."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from hf_mae import MAEImageProcessor
from hf_mae.data.masks import IGNORED, Pair, folder_pairs, sample_pairs
from hf_mae.evaluation.dense import (
    DenseKNN,
    DenseLinear,
    DenseSettings,
    LabelledPatches,
    Standardization,
    classes_of_patches,
    collect_patches,
    dense_figures,
    held_out_pairs,
)

QUICK = DenseSettings(num_neighbors=(1, 5), strengths=(0.01, 10.0))


def patches_of(features, classes, images=None):
    """Patches of features (M, D) and classes (M,) or (M, pixels)."""
    classes = torch.as_tensor(classes, dtype=torch.uint8)
    images = torch.arange(len(classes)) if images is None else images
    features = torch.as_tensor(features, dtype=torch.float32)
    return LabelledPatches(features, classes.reshape(len(classes), -1), images)


def synthetic():
    """Training features (60, 5) of three overlapping classes, their classes, and 16 more features; other scales."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 5))
    classes = rng.integers(0, 3, 60)
    scale, shift = [1, 10, 0.1, 3, 1], [0, 50, 0, 0, -7]
    features = (centers[classes] + rng.normal(size=(60, 5))) * scale + shift
    queries = (centers[rng.integers(0, 3, 16)] + rng.normal(size=(16, 5))) * scale + shift
    return features, classes, queries


# ----------------------------------------------------------------------------------------------------------------------
# Against scikit-learn 1.9.1, on `synthetic`


@pytest.mark.parametrize(
    ("neighbors", "expected"),
    # KNeighborsClassifier(k, metric="cosine") behind StandardScaler
    [(1, "1122202002120012"), (5, "1122212002122102"), (10, "1122212002122102"), (30, "1122212202122112")],
)
def test_knn__predicts_as_scikit_learn(neighbors, expected):
    features, classes, queries = synthetic()
    probe = DenseKNN(patches_of(features, classes))
    maps = torch.as_tensor(queries, dtype=torch.float32).view(1, 4, 4, 5)
    _, predicted = probe.predict(maps, (4, 4), (3, neighbors))
    assert "".join(map(str, predicted.flatten().tolist())) == expected


def test_knn__takes_numbers_of_neighbours_in_any_order_and_at_most_all():
    features, classes, queries = synthetic()
    probe = DenseKNN(patches_of(features, classes))
    maps = torch.as_tensor(queries, dtype=torch.float32).view(1, 4, 4, 5)
    most, all_of_them, one = probe.predict(maps, (4, 4), (30, 1000, 1))
    assert "".join(map(str, most.flatten().tolist())) == "1122212202122112"
    assert "".join(map(str, one.flatten().tolist())) == "1122202002120012"
    assert all_of_them.unique().tolist() == [np.bincount(classes).argmax()]


# LogisticRegression(C=C, tol=1e-10, max_iter=10000) behind StandardScaler; intercepts without their mean
WEIGHTS = {
    0.01: [
        [0.0033, -0.0518, 0.0774, 0.0352, 0.0668],
        [0.0538, 0.1315, 0.1212, -0.0640, -0.0471],
        [-0.0571, -0.0797, -0.1986, 0.0288, -0.0197],
    ],
    1.0: [
        [0.2630, -0.7099, 1.1137, 0.3261, 0.6000],
        [0.1696, 0.8580, 1.0337, -0.6301, -0.4038],
        [-0.4326, -0.1481, -2.1474, 0.3041, -0.1962],
    ],
}
BIASES = {0.01: [-0.2512, 0.1966, 0.0546], 1.0: [-0.1075, 0.3133, -0.2057]}


@pytest.mark.parametrize("strengths", [[0.01], [1.0], [0.01, 1.0]])
def test_linear__has_the_weights_of_scikit_learn(strengths):
    """Whether a strength is the first or starts from the solution of the one before."""
    features, classes, _ = synthetic()
    probe = DenseLinear(patches_of(features, classes), strengths)
    for strength in strengths:
        weight, bias = probe.classifiers[strength]
        torch.testing.assert_close(weight, torch.tensor(WEIGHTS[strength]), rtol=0, atol=5e-4)
        torch.testing.assert_close(bias - bias.mean(), torch.tensor(BIASES[strength]), rtol=0, atol=5e-4)


def test_linear__patches_of_several_classes_weigh_by_their_pixels():
    """A patch with 3 pixels of one class and 1 of another is as 3 patches and 1 patch, each of a quarter's weight."""
    features, classes, _ = synthetic()
    mixed = np.stack([classes, classes, classes, (classes + 1) % 3], axis=1)
    together = DenseLinear(patches_of(features, mixed), [1.0])
    apart = DenseLinear(patches_of(np.repeat(features, 4, axis=0), mixed.flatten()), [0.25])
    for ours, theirs in zip(together.classifiers[1.0], apart.classifiers[0.25], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_linear__pixels_that_do_not_count_have_no_weight_and_leave_that_of_the_others():
    """Every pixel weighs alike, as in the mean IoU: a patch of which half does not count weighs half."""
    features, classes, _ = synthetic()
    partly = np.stack([classes, np.full(60, IGNORED)], axis=1)
    half = DenseLinear(patches_of(features, partly), [1.0]).classifiers[1.0]
    expected = DenseLinear(patches_of(features, classes), [0.5]).classifiers[0.5]  # half of the loss
    torch.testing.assert_close(half[0], expected[0], rtol=0, atol=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# Pixels


def test_classes_of_patches__are_the_pixels_in_raster_order():
    labels = torch.arange(2 * 4 * 6).view(2, 4, 6)
    patches = classes_of_patches(labels, (2, 2))
    assert patches.shape == (2, 2, 2, 6)
    assert patches[0, 0, 1].tolist() == [3, 4, 5, 9, 10, 11]
    with pytest.raises(ValueError, match="4 x 6 pixels cannot be cut into 3 x 2 patches"):
        classes_of_patches(labels, (3, 2))


def test_knn__votes_for_each_pixel_of_the_patch():
    """Two patches like the query and one unlike it: what the two show, pixel by pixel; 255 has no vote."""
    classes = [[0, 1, 2, IGNORED], [0, 1, 2, 1], [3, 3, 3, 3]]
    probe = DenseKNN(patches_of([[1, 0], [0.9, 0], [-1, 0.5]], classes))
    (two,) = probe.predict(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), (2, 2), [2])
    assert two.tolist() == [[[0, 1], [2, 1]]]


def test_knn__ties_go_to_the_class_that_fills_more_of_the_patches_then_to_the_lower_one():
    classes = [[2, 2, 2, 0], [1, 2, 0, 1]]
    probe = DenseKNN(patches_of([[1, 0], [0.9, 0.1]], classes))
    (predicted,) = probe.predict(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), (2, 2), [2])
    assert predicted.tolist() == [[[2, 2], [2, 0]]]  # in the last pixel classes 0 and 1 have two votes in the patches


def test_linear__logits_are_resized_bilinearly():
    """Between a patch of class 0 and one of class 1 the border is in the middle, wherever the patches end."""
    probe = DenseLinear(patches_of([[-1.0], [1.0]] * 5, [0, 1] * 5), [1.0])
    (predicted,) = probe.predict(torch.tensor([-3.0, 1.0]).view(1, 1, 2, 1), (1, 8), [1.0])
    # At the middles of pixels the feature is -3, -3, -2.5, -1.5, -0.5, 0.5, 1, 1.
    assert predicted.tolist() == [[[0, 0, 0, 0, 0, 1, 1, 1]]]


def test_standardization__a_constant_dimension_becomes_zero():
    features = torch.randn(1000, 3) * torch.tensor([1.0, 1e-9, 5]) + torch.tensor([0.0, 7, 100])
    standardized = Standardization.of(features)(features)
    torch.testing.assert_close(standardized.mean(dim=0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(standardized.std(dim=0, correction=0), torch.tensor([1.0, 0, 1]), rtol=0, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# Which images and patches


def test_held_out__windows_of_a_scene_stay_together():
    pairs = [Pair([], 0, Path(f"masks/{scene}.png"), "") for scene in range(5) for _ in range(4)]
    held_out = held_out_pairs(pairs).reshape(5, 4)
    assert held_out.sum() == 4
    assert held_out.all(axis=1).sum() == 1
    with pytest.raises(ValueError, match="at least 2, got 1"):
        held_out_pairs(pairs[:4])


def batches_of(*labels, width=2):
    """Maps of one block that hold the index of each patch, and label maps of 8 x 8 pixels in 4 x 4 patches."""
    for number, each in enumerate(labels):
        maps = torch.full((1, 4, 4, width), float(number))
        maps[..., 0] = torch.arange(16.0).view(4, 4)
        yield [maps], each


def test_collected_patches__are_spread_over_images_and_have_labels():
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    half = label.clone()
    half[:, :4] = IGNORED
    (all_of_them,) = collect_patches(batches_of(label, half, label), 3, 1000)
    assert all_of_them.images.bincount().tolist() == [16, 8, 16]
    assert all_of_them.features[all_of_them.images == 1, 0].tolist() == list(range(8, 16))
    (some,) = collect_patches(batches_of(label, half, label), 3, 15)
    assert some.images.bincount().tolist() == [5, 5, 5]
    (few,) = collect_patches(batches_of(label, label, label), 3, 2)
    assert len(few.images.unique()) == len(few.images) == 2
    together = torch.cat([label, torch.full_like(label, IGNORED), label])
    maps = torch.arange(48.0).view(3, 4, 4, 1)
    (others,) = collect_patches(iter([([maps], together)]), 3, 1000)
    assert others.features.flatten().tolist() == [*range(16), *range(32, 48)]
    first, again, other = (collect_patches(iter([([maps], together)]), 3, 9, seed)[0].features for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="No pixel of the training images has a class"):
        collect_patches(batches_of(torch.full_like(label, IGNORED)), 1, 10)


# ----------------------------------------------------------------------------------------------------------------------
# Figures on images


@pytest.fixture
def processor():
    return MAEImageProcessor.for_image_size(32)


def make_pairs(count, seed=0):
    """Images of 4 x 4 squares, the colour of which is their class: 0 black, 1 red, 2 green."""
    rng = np.random.default_rng(seed)
    classes = [rng.integers(0, 3, (4, 4)) for _ in range(count)]
    masks = [PIL.Image.fromarray(np.kron(each, np.ones((8, 8))).astype(np.uint8)) for each in classes]
    palette = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]], dtype=np.uint8)
    images = [PIL.Image.fromarray(palette[np.array(mask)]) for mask in masks]
    return [Pair(images, index, mask, f"image {index}") for index, mask in enumerate(masks)]


def colours(pixel_values):
    """Mean colour of each square: features that are the labels."""
    return torch.nn.functional.avg_pool2d(pixel_values, 8).permute(0, 2, 3, 1)


def test_figures__features_that_are_the_labels_are_perfect(processor):
    train, test = make_pairs(20), make_pairs(10, 1)
    (figures,) = dense_figures(lambda pixels: [colours(pixels)], train, test, processor, QUICK)
    assert figures.knn_iou == 1
    assert figures.knn_held_out == 1
    assert figures.linear_iou > 0.8  # resized logits blur the borders of single patches
    most_frequent = np.bincount(np.ravel([pair.mask for pair in train])).argmax()
    share = np.mean(np.array([pair.mask for pair in test]) == most_frequent)
    assert figures.constant_iou == pytest.approx(share / 3)  # two of three classes are never predicted


def test_figures__tell_a_good_encoder_from_a_random_and_a_collapsed_one(processor):
    generator = torch.Generator().manual_seed(0)

    def encode(pixels):
        noise = torch.randn(len(pixels), 4, 4, 3, generator=generator)
        return [colours(pixels), colours(pixels) + noise, noise, torch.ones_like(noise)]

    settings = DenseSettings(num_neighbors=(5,), strengths=(1.0,))
    good, noisy, random, collapsed = dense_figures(encode, make_pairs(20), make_pairs(10, 1), processor, settings)
    assert good.knn_iou > noisy.knn_iou + 0.1 > random.knn_iou + 0.4
    assert good.linear_iou > noisy.linear_iou + 0.1 > random.linear_iou + 0.3
    # Chance: a guess is right for 1/3 of the pixels, 1/9 of all, over the union of 5/9.
    assert random.knn_iou == pytest.approx(0.2, abs=0.06)
    assert collapsed.linear_iou == pytest.approx(collapsed.constant_iou)
    assert collapsed.knn_iou < 0.25


def test_figures__labels_of_other_images_are_chance(processor):
    pairs, others = make_pairs(20), make_pairs(20, 2)
    shuffled = [Pair(pair.images, pair.index, other.mask, "") for pair, other in zip(pairs, others, strict=True)]

    def encode(pixels):  # with a little noise, since otherwise all patches of a colour have the same neighbours
        return [colours(pixels) + 0.1 * torch.randn(len(pixels), 4, 4, 3)]

    (figures,) = dense_figures(encode, shuffled, make_pairs(10, 1), processor, QUICK)
    assert figures.knn_iou < 0.3
    assert figures.linear_iou < 0.3


def test_figures__settings_are_chosen_without_the_test_images(processor):
    """Of equal quality on held-out images whatever the test images are, and the given held-out images decide."""
    train, held_out = make_pairs(20), np.arange(20) < 3
    found = [
        dense_figures(lambda pixels: [colours(pixels)], train, test, processor, QUICK, held_out)[0]
        for test in (make_pairs(3, 1), make_pairs(3, 5)[:1])
    ]
    assert len({(each.num_neighbors, each.strength, each.knn_held_out, each.linear_held_out) for each in found}) == 1


def test_figures__pixels_that_do_not_count_change_nothing(processor):
    test = make_pairs(6, 1)
    spoiled = []
    for pair in test:
        mask = np.array(pair.mask)
        image = np.array(pair.images[pair.index])
        mask[:, :8], image[:, :8] = IGNORED, 99
        spoiled.append((PIL.Image.fromarray(image), PIL.Image.fromarray(mask)))
    images = [image for image, _ in spoiled]
    spoiled = [Pair(images, index, mask, "") for index, (_, mask) in enumerate(spoiled)]
    (figures,) = dense_figures(lambda pixels: [colours(pixels)], make_pairs(20), spoiled, processor, QUICK)
    assert figures.knn_iou == 1


def test_figures__windows_of_scenes(tmp_path, processor):
    """Scenes of 64 pixels in windows of 32: each window is an image, and windows of one scene are held out together."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number, pair in enumerate(make_pairs(4)):
        image, mask = (each.resize((64, 64), 0) for each in (pair.images[pair.index], pair.mask))
        np.save(tmp_path / "images" / f"{number}.npy", np.array(image))
        mask.save(tmp_path / "masks" / f"{number}.png")
    pairs = folder_pairs(str(tmp_path), "train", tile=32)
    assert len(pairs) == 16
    assert held_out_pairs(pairs).sum() == 4
    (figures,) = dense_figures(lambda pixels: [colours(pixels)], pairs, pairs, processor, QUICK)
    assert figures.knn_iou == 1


@pytest.mark.slow
def test_figures__on_the_embedded_images():
    """Brightness of a patch alone finds garments on black ground, but hardly which ones."""
    processor = MAEImageProcessor.for_image_size(56, num_channels=1, image_mean=[0.0], image_std=[1.0])

    def brightness(pixels):
        return [torch.nn.functional.avg_pool2d(pixels, 4).permute(0, 2, 3, 1)]

    train, test = sample_pairs("train")[:40], sample_pairs("val")[:20]
    (figures,) = dense_figures(brightness, train, test, processor, QUICK)
    assert figures.constant_iou < figures.linear_iou < 0.3
