# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Sheets of nearest images, and the features of patches as colours."""

import numpy as np
import PIL.Image
import pytest
import torch

from hf_mae.evaluation.feature_sheets import nearest_images, neighbor_sheet, patch_colors, pca_sheet

COLORS = ["red", "lime", "blue", "black", "yellow"]


# ----------------------------------------------------------------------------------------------------------------------
# Nearest images


def test_nearest__are_those_of_the_cosine_of_standardised_features():
    features = np.random.default_rng(0).normal(3, 1, (40, 6))
    features[:, 0] *= 1000  # would decide everything, were it not for the standardisation
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    standard /= np.linalg.norm(standard, axis=1, keepdims=True)
    cosines = standard[[7, 3]] @ standard.T
    cosines[0, 7] = cosines[1, 3] = -2  # not itself
    found, distances = nearest_images(torch.from_numpy(features).float(), [7, 3], num_neighbors=5)
    expected = np.argsort(-cosines, axis=1)[:, :5]
    assert (found.numpy() == expected).all()
    assert distances.numpy() == pytest.approx(np.take_along_axis(cosines, expected, axis=1), abs=1e-5)


def test_nearest__are_no_near_duplicates_and_may_be_few():
    features = torch.randn(4, 8, dtype=torch.float64)
    features = torch.cat([features, features[:1] + 1e-6])
    found, cosines = nearest_images(features, [0], num_neighbors=6)
    assert sorted(found[0, :3].tolist()) == [1, 2, 3]
    assert found[0, 3:].tolist() == [-1, -1, -1]
    assert cosines[0, 3:].isnan().all()


def test_nearest__of_features_that_are_all_alike_are_all_equally_far():
    found, cosines = nearest_images(torch.ones(5, 3), [2], num_neighbors=4)
    assert found[0].tolist() == [0, 1, 3, 4]
    assert (cosines == 0).all()


def test_neighbor_sheet__has_a_row_for_each_query():
    features = torch.tensor([[1.0, 0.1], [0.9, -0.1], [-1, 0.1], [-0.9, -0.1], [0.1, 0.7]])
    calls = []

    def picture(index):
        calls.append(index)
        return PIL.Image.new("RGB", (10, 20) if index == 4 else (300, 300), COLORS[index])

    sheet = neighbor_sheet(features, picture, [0, 4], num_neighbors=2, side=50)
    nearest = nearest_images(features, [0, 4], 2)[0].tolist()
    assert sorted(calls) == sorted([0, 4, *sum(nearest, [])])
    assert sheet.size == (50 + 20 + 2 * 54, 16 + 2 * 66)
    for row, (query, others) in enumerate(zip([0, 4], nearest, strict=True)):
        shown = [sheet.getpixel((x, 16 + 66 * row + 25)) for x in (25, 70 + 25, 70 + 54 + 25)]
        assert shown == [PIL.ImageColor.getrgb(COLORS[index]) for index in (query, *others)]
    assert sheet.getpixel((3, 16 + 66 + 25)) == (255, 255, 255)  # a narrow picture keeps its shape


# ----------------------------------------------------------------------------------------------------------------------
# Colours of patches


def features_of_patches(num_images=16, width=24, position=0.0):
    """Features of patches, each image with an object of 3 x 3 patches, and where the objects are.

    There are two weaker directions that differ from patch to patch, and a pattern by position if asked for.
    """
    rng = np.random.default_rng(0)
    features = 0.1 * rng.normal(size=(num_images, 6, 6, width))
    directions = np.linalg.qr(rng.normal(size=(width, 4)))[0].T
    inside = np.zeros((num_images, 6, 6), dtype=bool)
    for image, (row, column) in zip(inside, rng.integers(0, 4, (num_images, 2)), strict=True):
        image[row : row + 3, column : column + 3] = True
    features += 3 * inside[..., None] * directions[0]
    features += rng.exponential(0.8, (num_images, 6, 6, 1)) * directions[1]
    features += rng.exponential(0.4, (num_images, 6, 6, 1)) * directions[2]
    features += position * rng.normal(size=(6, 6, 1)) * directions[3]
    return torch.from_numpy(features).float(), torch.from_numpy(inside)


def correlation(first, second):
    """Returns the correlation of two tensors of any shape."""
    return torch.corrcoef(torch.stack([first.flatten().float(), second.flatten().float()]))[0, 1].item()


def test_colors__are_three_components_without_correlation():
    colors, projections = patch_colors(features_of_patches()[0])
    assert colors.shape == projections.shape == (16, 6, 6, 3)
    assert 0 <= colors.min() < colors.max() <= 1
    flat = projections.flatten(0, 2).numpy()
    assert flat.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-5)
    assert np.cov(flat.T, bias=True) == pytest.approx(np.eye(3), abs=1e-4)
    assert ((flat**3).sum(axis=0) > 0).all()


def test_colors__show_the_object():
    features, inside = features_of_patches()
    _, projections = patch_colors(features)
    # The first component, and bright, since it is the smaller part: the distribution is skewed to the right.
    assert correlation(projections[..., 0], inside) > 0.9


@pytest.mark.parametrize("change", ["sign", "rotation"])
def test_colors__do_not_depend_on_sign_and_rotation_of_features(change):
    features, _ = features_of_patches()
    rotation = torch.linalg.qr(torch.randn(24, 24))[0]
    changed = -features if change == "sign" else features @ rotation + 5
    torch.testing.assert_close(patch_colors(changed)[0], patch_colors(features)[0], atol=1e-3, rtol=0)


def test_colors__keep_order_and_signs_from_one_checkpoint_to_the_next():
    features, _ = features_of_patches()
    _, previous = patch_colors(features)
    swapped = previous[..., [1, 2, 0]] * torch.tensor([-1.0, 1, -1])  # as if at that time they had been otherwise
    colors, projections = patch_colors(features + 0.02 * torch.randn_like(features), swapped)
    assert all(correlation(projections[..., each], swapped[..., each]) > 0.95 for each in range(3))
    torch.testing.assert_close(colors, (0.5 + projections / 5).clamp(0, 1))


def test_colors__are_made_anew_where_the_previous_ones_are_of_other_images():
    features, _ = features_of_patches()
    _, other = patch_colors(features_of_patches(num_images=8)[0])
    assert torch.equal(patch_colors(features, other)[0], patch_colors(features)[0])


def test_colors__leave_out_what_all_images_have_at_a_position():
    (with_pattern, _), (without, _) = (features_of_patches(position=position) for position in (5.0, 0.0))
    for each in range(3):
        assert correlation(patch_colors(with_pattern)[1][..., each], patch_colors(without)[1][..., each]) > 0.98


@pytest.mark.parametrize("num_images", [1, 2, 3, 6])
def test_colors__of_few_images_keep_their_content(num_images):
    features, inside = features_of_patches(num_images)
    # If the plain mean over images were subtracted, it would be 0.81 for two images and 0.77 for three.
    assert correlation(patch_colors(features)[1][..., 0], inside) > 0.9


def test_colors__of_patches_that_are_all_alike_are_grey():
    colors, projections = patch_colors(torch.full((4, 3, 3, 8), 0.1) + 1e-8 * torch.randn(4, 3, 3, 8))
    assert (colors == 0.5).all()
    assert (patch_colors(torch.zeros(4, 3, 3, 8), projections)[0] == 0.5).all()


def test_pca_sheet__shows_pictures_next_to_their_colours():
    colors = torch.zeros(3, 2, 4, 3)
    colors[1, 0, 3] = torch.tensor([1.0, 0.5, 0.0])
    sheet = pca_sheet([PIL.Image.new("L", (16, 8), 200)] * 2, colors, columns=1, min_side=32)
    assert sheet.size == (2 * (64 + 4), 16 + 2 * (32 + 4))
    assert sheet.getpixel((10, 20)) == (200, 200, 200)
    assert sheet.getpixel((68 + 3 * 16 + 8, 16 + 36 + 8)) == (255, 128, 0)
    assert sheet.getpixel((68 + 2 * 16 + 8, 16 + 36 + 8)) == (0, 0, 0)
