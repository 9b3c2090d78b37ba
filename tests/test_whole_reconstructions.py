# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Masks that complement each other, images in which every patch is predicted from others, and their sheets."""

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import picture

from hf_mae import MAEForPreTraining, MAEImageProcessor
from hf_mae.evaluation.scoring import patch_losses
from hf_mae.evaluation.visualization import anomaly_sheet, loss_maps, reconstruct_command
from hf_mae.modeling.masking_mae import complementary_masks, number_of_masks

# ----------------------------------------------------------------------------------------------------------------------
# Masks


def times_visible(masks, num_patches):
    return torch.cat(masks).bincount(minlength=num_patches)


@pytest.mark.parametrize(
    ("grid_size", "rule"),
    [
        ((8, 8), ()),
        ((4, 8), ()),
        ((8, 8), ("random", 2)),
        ((4, 8), ("grid",)),
        ((8, 8), ("grid",)),
        ((6, 8), ("block",)),
    ],
)
def test_masks__show_each_patch_once_in_four(grid_size, rule):
    masks = complementary_masks(grid_size, 0.75, 8, 3, *rule)
    everything = list(range(grid_size[0] * grid_size[1]))
    assert [len(mask) for mask in masks] == [len(everything) // 4] * 8
    assert torch.cat(masks[:4]).sort().values.tolist() == everything
    assert torch.cat(masks[4:]).sort().values.tolist() == everything


def test_masks__of_cells_show_whole_cells():
    for mask in complementary_masks((8, 4), 0.75, 4, 0, "random", 2):
        shown = torch.zeros(32).scatter(0, mask, 1).reshape(4, 2, 2, 2).mean(dim=(1, 3))
        assert sorted(shown.flatten().tolist()) == [0] * 6 + [1] * 2


def test_masks__of_a_grid_show_one_place_of_each_cell():
    for mask in complementary_masks((4, 6), 0.75, 4, 1, "grid"):
        assert len({(row % 2, column % 2) for row, column in (divmod(patch, 6) for patch in mask.tolist())}) == 1


def test_masks__are_dealt_from_a_new_order_each_time_that_all_patches_were_shown():
    masks = complementary_masks((8, 8), 0.75, 16)
    assert len({tuple(torch.cat(masks[first : first + 4]).tolist()) for first in (0, 4, 8, 12)}) == 4
    assert all(map(torch.equal, masks, complementary_masks((8, 8), 0.75, 16, seed=0)))
    with pytest.raises(ValueError, match=r"`mask_ratio` must be in \[0, 1\), got 1.0"):
        complementary_masks((8, 8), 1.0, 4)


@pytest.mark.parametrize("number", [2, 3, 4, 7, 9, 25])
@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.75, 0.9])
def test_masks__show_all_patches_alike_whatever_the_ratio(ratio, number):
    masks = complementary_masks((7, 7), ratio, number)
    assert all(len(set(mask.tolist())) == len(mask) for mask in masks)
    sizes = {len(mask) for mask in masks}
    assert max(sizes) - min(sizes) <= 1
    assert sum(map(len, masks)) == int(number * 49 * round(1 - ratio, 2) + 1e-6)
    times = times_visible(masks, 49)
    assert times.max() - times.min() <= 1
    assert times.max() < number  # each patch is hidden by one mask at least


def test_masks__of_a_grid_that_four_does_not_divide():
    masks = complementary_masks((7, 7), 0.75, 4)
    assert [len(mask) for mask in masks] == [12, 12, 12, 13]
    assert times_visible(masks, 49).tolist() == [1] * 49
    assert [len(mask) for mask in complementary_masks((6, 6), 0.75, 4, 0, "random", 2)] == [8, 8, 8, 12]  # of 9 cells


def test_masks__depend_on_the_seed_and_their_number_alone():
    for rule in ((0.75, "random"), (0.4, "random"), (0, "random"), (0.75, "grid"), (0.75, "block")):
        few, many, other = (complementary_masks((7, 7), rule[0], *how, rule[1]) for how in ((3, 5), (9, 5), (9, 6)))
        assert all(map(torch.equal, few, many))
        assert not all(map(torch.equal, many, other))
        if rule != (0, "random"):
            assert len({tuple(sorted(mask.tolist())) for mask in many}) > (4 if rule[1] == "grid" else 8) - 1


@pytest.mark.parametrize(("ratio", "number"), [(0.75, 4), (0.5, 2), (0.8, 5), (0.9, 10), (2 / 3, 3)])
def test_number_of_masks__follows_from_the_visible_share(ratio, number):
    assert number_of_masks(ratio) == number
    assert times_visible(complementary_masks((6, 10), ratio, number), 60).tolist() == [1] * 60


@pytest.mark.parametrize(
    ("ratio", "number", "message"),
    [
        (0.6, None, "the visible share is 0.4, not one over a whole number.* Give any from 2 on"),
        (0.25, None, "Give any from 4 on"),
        (0.75, 1, "must be at least 2 with `mask_ratio` 0.75, got 1: fewer masks cannot hide every patch"),
        (0.3, 3, "must be at least 4"),
        (0, 4, "hides nothing"),
        (1, 4, r"must be in \[0, 1\), got 1"),
    ],
)
def test_number_of_masks__says_what_is_missing(ratio, number, message):
    with pytest.raises(ValueError, match=message):
        number_of_masks(ratio, number)


# ----------------------------------------------------------------------------------------------------------------------
# Images


def as_patches(images):
    """Returns the pixels of the patches of 8 x 8 (images, patches, values), in the order row, column, channel."""
    rows, columns = images.shape[2] // 8, images.shape[3] // 8
    return images.unflatten(3, (columns, 8)).unflatten(2, (rows, 8)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"norm_pix_loss": False},
        {"norm_pix_loss": True},
        {"num_channels": 1, "image_size": (16, 48), "mask_sampling": "grid"},
        {"num_channels": 5, "image_size": (32, 64), "mask_block_size": 2},
    ],
)
def test_whole_reconstruction__is_the_mean_of_those_that_hide_a_patch(tiny_model, fields):
    model = tiny_model(**fields)
    size = model.config.image_size if isinstance(model.config.image_size, tuple) else (32, 32)
    images, grid_size = torch.randn(2, model.config.num_channels, *size), (size[0] // 8, size[1] // 8)
    rule = (model.config.mask_sampling, model.config.mask_block_size)
    total = torch.zeros_like(as_patches(images))
    times = torch.zeros(total.shape[1])
    for ids_keep in complementary_masks(grid_size, 0.75, 4, 7, *rule):
        shown = model.reconstruct(images, ids_keep=ids_keep.expand(2, -1))
        total += as_patches(shown.reconstruction).where(shown.mask[..., None], 0)
        times += shown.mask[0]
    assert times.tolist() == [3] * total.shape[1]
    whole = model.reconstruct_all(images, seed=7)
    torch.testing.assert_close(as_patches(whole.reconstruction), total / 3)
    losses = patch_losses(model, images, num_masks=4, seed=7)
    torch.testing.assert_close(whole.patch_losses, losses.nanmean(dim=1).unflatten(1, grid_size))


def test_whole_reconstruction__of_a_patch_does_not_see_the_patch(tiny_model):
    model, images = tiny_model(norm_pix_loss=False), torch.randn(2, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 8:16, 16:24] += 3
    before, after = (as_patches(model.reconstruct_all(each).reconstruction)[:, 6] for each in (images, changed))
    torch.testing.assert_close(before, after)


def test_whole_reconstruction__is_the_same_for_an_image_in_any_batch_and_another_for_another_seed(tiny_model):
    model, images = tiny_model(), torch.randn(3, 3, 32, 48)  # not the size of the model
    first, alone, other = (
        model.reconstruct_all(images),
        model.reconstruct_all(images[1:2]),
        model.reconstruct_all(images, seed=1),
    )
    for name in first:
        assert torch.equal(first[name], model.reconstruct_all(images)[name])
        torch.testing.assert_close(first[name][1:2], alone[name])
        assert not torch.allclose(first[name], other[name])


def test_whole_reconstruction__with_another_ratio(tiny_model):
    model, images = tiny_model(), torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="`num_masks` is missing"):
        model.reconstruct_all(images, mask_ratio=0.4)
    whole = model.reconstruct_all(images, num_masks=3, mask_ratio=0.4)
    assert whole.reconstruction.isfinite().all()
    assert whole.patch_losses.isfinite().all()
    tiny = tiny_model(mask_block_size=2)
    with pytest.raises(ValueError, match="`mask_block_size` 2 does not divide 3 x 4 patches"):
        tiny.reconstruct_all(torch.randn(1, 3, 24, 32))


def test_whole_reconstruction__in_bfloat16_is_in_float32(tiny_model):
    model, images = tiny_model().bfloat16(), torch.randn(1, 3, 32, 32)
    whole = model.reconstruct_all(images.bfloat16())
    assert (whole.reconstruction.dtype, whole.patch_losses.dtype) == (torch.float32, torch.float32)
    exact = model.float().reconstruct_all(images)
    torch.testing.assert_close(whole.patch_losses, exact.patch_losses, rtol=0.05, atol=0.05)


def test_whole_reconstruction__has_no_loss_without_data(tiny_model):
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[1, 30, 3] = False  # in the patch of the last row, first column
    losses = tiny_model().reconstruct_all(torch.randn(2, 3, 32, 32), valid=valid).patch_losses
    assert losses.isnan().nonzero().tolist() == [[1, 3, 0]]


def test_whole_reconstruction__of_another_target_is_refused(tiny_config):
    class Halved(MAEForPreTraining):
        def target_values(self, pixel_values, ids):
            return super().target_values(pixel_values, ids) / 2

    with pytest.raises(NotImplementedError, match="does not predict pixels"):
        Halved(tiny_config()).eval().reconstruct_all(torch.randn(1, 3, 32, 32))


# ----------------------------------------------------------------------------------------------------------------------
# Sheets


def test_loss_maps__have_one_range_of_colours():
    losses = torch.zeros(2, 4, 4)
    losses[0, 1, 2], losses[1, 0, 0], losses[1, 3, 3] = 2, 1, torch.nan
    maps, limits = loss_maps(losses, (64, 64))
    assert limits == (0, 2)
    high, low, middle, nothing = (
        maps[0].getpixel((40, 24)),
        maps[0].getpixel((8, 56)),
        *map(maps[1].getpixel, ((8, 8), (56, 56))),
    )
    assert high[0] > 240
    assert high[1] > 200
    assert low == nothing == (0, 0, 4)
    assert sum(low) < sum(middle) < sum(high)
    assert loss_maps(torch.full((1, 2, 2), torch.nan), (16, 16))[1] == (0, 0)


def test_anomaly_sheet__shows_original_whole_reconstruction_and_losses(tiny_model):
    model, processor = tiny_model(), MAEImageProcessor.for_image_size(32)
    images = torch.randn(3, 3, 32, 32)
    sheet = anomaly_sheet(model, processor, images, columns=2, min_side=32, seed=4)
    assert sheet.size == (2 * (3 * 36 + 12) - 12, 16 + 2 * 36)
    whole = model.reconstruct_all(images, seed=4)
    maps, _ = loss_maps(whole.patch_losses, (32, 32))
    first = [processor.post_process_reconstruction(each)[0] for each in (images, whole.reconstruction)] + maps[:1]
    for place, expected in enumerate(first):
        shown = sheet.crop((36 * place, 16, 36 * place + 32, 48))
        assert np.array_equal(np.array(shown), np.array(expected.convert("RGB")))


@pytest.mark.slow
def test_reconstruct_command__draws_anomalies(pretrained, tmp_path, capsys):
    picture(0).save(tmp_path / "one.png")
    output = tmp_path / "sheet.png"
    arguments = [str(pretrained), str(tmp_path / "one.png"), "--anomaly", "--output", str(output)]
    sheets = []
    for more in ([], ["--num_masks", "4"], ["--seed", "1"]):
        reconstruct_command([*arguments, *more], prog="hf-mae")
        sheets.append(PIL.Image.open(output).tobytes())
    assert sheets[0] == sheets[1] != sheets[2]
    assert PIL.Image.open(output).size == (3 * (128 + 4), 16 + 128 + 4)
    assert f"loss of the patches of 1 pictures: {output}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`num_masks` is missing"):
        reconstruct_command([*arguments, "--mask_ratio", "0.6"], prog="hf-mae")
    with pytest.raises(ValueError, match="`num_masks` goes with `anomaly`"):
        reconstruct_command([str(pretrained), "--num_masks", "4"], prog="hf-mae")
