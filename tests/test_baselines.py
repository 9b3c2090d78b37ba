# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Losses of predictors that need no training, and the interpolation of hidden patches."""

import numpy as np
import pytest
import torch

from hf_mae import MAEForPreTraining
from hf_mae.evaluation.baselines import PREDICTORS, TrivialPredictors, interpolate_hidden
from hf_mae.modeling.patches_mae import patchify


def smooth_images(count=6, size=64, channels=3):
    """Images of slow waves around a point each."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(9 * np.hypot(x - a, y - b)) for a, b in rng.uniform(0, 1, (count, 2))]
    return torch.from_numpy(np.stack(waves)).float()[:, None].repeat(1, channels, 1, 1)


def noise_of(images, num_patches=16):
    return torch.rand(len(images), num_patches, generator=torch.Generator().manual_seed(1))


def trivial_losses(model, pixel_values, noise, valid=None):
    predictors = TrivialPredictors(model)
    predictors.add(pixel_values, noise, valid)
    return {name: loss.item() for name, loss in predictors.losses(pixel_values, noise, valid).items()}


# ----------------------------------------------------------------------------------------------------------------------
# Interpolation


def test_interpolation__leaves_visible_pixels_and_fills_hidden_ones_from_them():
    images = torch.tensor([3.0, -1.0]).reshape(2, 1, 1, 1) * torch.ones(2, 2, 12, 20)
    hidden = torch.rand(2, 15, generator=torch.Generator().manual_seed(0)) < 0.7
    shown = images.clone()
    shown[:, :, 1, 1] += 1  # in a patch that is hidden: it must not matter
    hidden[:, 0] = True
    filled = interpolate_hidden(shown, hidden, (4, 4))
    torch.testing.assert_close(filled, images)  # one colour stays that colour


def test_interpolation__of_a_hidden_patch_between_two_colours_is_in_between():
    image = torch.zeros(1, 1, 4, 12)
    image[..., 8:] = 1
    filled = interpolate_hidden(image, torch.tensor([[False, True, False]]), (4, 4))[0, 0]
    torch.testing.assert_close(filled[:, :4], image[0, 0, :, :4])
    torch.testing.assert_close(filled[:, 8:], image[0, 0, :, 8:])
    columns = filled[:, 4:8]
    assert (columns.diff(dim=1) > 0).all()  # rises from left to right
    assert 0 < columns.min() < columns.max() < 1


def test_interpolation__does_not_see_no_data_and_is_zero_without_any_data():
    images = torch.full((3, 1, 8, 8), 2.0)
    images[:, :, :4, :4] = 1000
    valid = torch.ones(3, 8, 8, dtype=torch.bool)
    valid[:, :4, :4] = False
    valid[2] = False
    hidden = torch.tensor([[False, True, False, False], [True, True, True, True], [False] * 4])
    filled = interpolate_hidden(images, hidden, (4, 4), valid)
    torch.testing.assert_close(filled[0], torch.full((1, 8, 8), 2.0))
    assert (filled[1:] == 0).all()


def test_interpolation__is_close_for_smooth_images_of_any_size():
    image = smooth_images(1)[..., :63, :50]
    hidden = torch.rand(1, 21 * 10, generator=torch.Generator().manual_seed(0)) < 0.5
    error = (interpolate_hidden(image, hidden, (3, 5)) - image).square().mean()
    assert error < 0.02 * image.var()


# ----------------------------------------------------------------------------------------------------------------------
# Losses


@pytest.mark.parametrize("sampling", ["random", "block", "grid"])
def test_losses__are_those_computed_by_hand(tiny_model, sampling):
    model = tiny_model(mask_sampling=sampling)
    images, noise = torch.randn(3, 3, 32, 32), noise_of(range(3))
    mask = model(images, noise=noise).mask.numpy()
    patches = patchify(images, (8, 8)).double().numpy()
    filled = patchify(interpolate_hidden(images, torch.from_numpy(mask), (8, 8)), (8, 8)).double().numpy()
    constant = patches[mask].mean(axis=0)
    visible = [[image[~hidden].mean(axis=0)] * hidden.sum() for image, hidden in zip(patches, mask, strict=True)]
    p, t = filled[mask] - constant, patches[mask] - constant
    factor = (p * t).sum() / (p * p).sum()
    expected = {
        "constant": (t**2).mean(),
        "visible_mean": ((patches[mask] - np.concatenate(visible)) ** 2).mean(),
        "interpolation": ((t - factor * p) ** 2).mean(),
    }
    assert trivial_losses(model, images, noise) == pytest.approx(expected, rel=1e-5)


def test_losses__of_normalised_noise_are_one_and_nothing_beats_the_constant(tiny_model):
    images = torch.randn(30, 3, 32, 32)
    losses = trivial_losses(tiny_model(norm_pix_loss=True), images, noise_of(images))
    assert losses["constant"] == pytest.approx(1, abs=0.02)
    assert losses["interpolation"] == pytest.approx(losses["constant"], rel=1e-3)
    # The mean of 4 visible patches that tell nothing is wrong by a quarter of their variance more.
    assert losses["visible_mean"] == pytest.approx(1.25, abs=0.02)


@pytest.mark.parametrize(("norm_pix_loss", "share"), [(False, 0.1), (True, 0.5)])
def test_losses__of_smooth_images_are_least_for_the_interpolation(tiny_model, norm_pix_loss, share):
    model = tiny_model(image_size=64, patch_size=4, norm_pix_loss=norm_pix_loss, mask_ratio=0.5)
    images = smooth_images()
    losses = trivial_losses(model, images, noise_of(images, 256))
    assert losses["interpolation"] < share * min(losses["constant"], losses["visible_mean"])


def test_losses__are_the_same_in_parts_as_at_once(tiny_model):
    model, images = tiny_model(norm_pix_loss=True), torch.randn(6, 3, 32, 32)
    noise = noise_of(images)
    shares = [slice(0, 1), slice(1, 3), slice(3, 6)]
    parts = [TrivialPredictors(model) for _ in shares]  # one for each process, say
    for predictors, share in zip(parts, shares, strict=True):
        predictors.add(images[share], noise[share])
    total = sum(predictors.sums for predictors in parts)
    together = dict.fromkeys(PREDICTORS, 0.0)
    for predictors, share in zip(parts, shares, strict=True):
        predictors.sums = total
        for name, loss in predictors.losses(images[share], noise[share]).items():
            together[name] += loss.item() * len(images[share]) / len(images)
    assert together == pytest.approx(trivial_losses(model, images, noise), rel=1e-5)


def test_losses__leave_out_no_data_as_the_model_does(tiny_model):
    model, images = tiny_model(), torch.randn(4, 3, 32, 32)
    noise = noise_of(images)
    valid = torch.ones(4, 32, 32, dtype=torch.bool)
    valid[:2, :16] = False
    changed = images.where(valid[:, None], 99.0)
    losses = trivial_losses(model, images, noise, valid)
    assert trivial_losses(model, changed, noise, valid) == pytest.approx(losses, rel=1e-5)
    # The constant weighs images as the loss does, so that no other constant is better.
    predictors = TrivialPredictors(model)
    predictors.add(images, noise, valid)
    for offset in (-0.01, 0.01):
        other = TrivialPredictors(model)
        other.sums = predictors.sums.clone()
        other.sums[0] += offset * other.sums[-1]
        assert other.losses(images, noise, valid)["constant"] > losses["constant"]


class MeanColour(MAEForPreTraining):
    """Predicts the mean of each channel of a patch."""

    def num_target_values(self):
        return self.config.num_channels

    def target_values(self, pixel_values, ids):
        return patchify(pixel_values, self.mae.embeddings.patch_size, ids).unflatten(-1, (-1, 3)).mean(dim=-2)


def test_losses__of_a_target_of_the_users_own(tiny_config):
    model, images = MeanColour(tiny_config(image_size=64)).eval(), smooth_images()
    noise = noise_of(images, 64)
    losses = trivial_losses(model, images, noise)
    means = images.unflatten(3, (8, 8)).unflatten(2, (8, 8)).mean(dim=(3, 5)).flatten(2)  # (B, C, N)
    hidden = means.transpose(1, 2)[model(images, noise=noise).mask]
    assert losses["constant"] == pytest.approx((hidden - hidden.mean(dim=0)).square().mean().item(), rel=1e-5)
    assert losses["interpolation"] < 0.5 * losses["constant"]


def test_losses__of_a_target_without_a_mean_are_not_known(tiny_model):
    model = tiny_model()
    model.target_values = lambda pixel_values, ids: ids % 5  # classes
    assert np.isnan(list(trivial_losses(model, torch.randn(2, 3, 32, 32), noise_of(range(2))).values())).all()


def test_losses__with_nothing_hidden_are_of_all_patches(tiny_model):
    images = torch.randn(2, 3, 32, 32)
    losses = trivial_losses(tiny_model(mask_ratio=0.0), images, noise_of(images))
    assert losses["interpolation"] == pytest.approx(0, abs=1e-6)
    assert losses["constant"] > 0.5
