# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import pytest
import torch

from hf_mae.modeling.masking_mae import check_mask_cells, masking_order, num_kept_patches

IMAGES = torch.randn(6, 3, 32, 64, generator=torch.Generator().manual_seed(1))  # 4 x 8 patches
GRID, N = (4, 8), 32


@pytest.fixture(params=["random", "block", "grid"])
def model(request, tiny_model):
    return tiny_model(image_size=(32, 64), mask_sampling=request.param)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 0.9])
def test_count__is_the_official_formula_for_every_image(model, ratio):
    output = model(IMAGES, mask_ratio=ratio)
    assert (output.mask.sum(dim=1) == N - int(N * (1 - ratio))).all()
    assert output.mask.dtype == torch.bool
    ids = torch.cat([output.ids_keep, output.ids_hidden], dim=1).sort(dim=1).values
    assert torch.equal(ids, torch.arange(N).expand(6, N))  # a partition of the patches
    assert not output.mask.gather(1, output.ids_keep).any()


def test_noise__decides_alone(model):
    noise = torch.rand(6, N)
    first, second = (model(IMAGES, noise=noise) for _ in range(2))
    assert torch.equal(first.ids_keep, second.ids_keep)
    assert torch.equal(first.loss, second.loss)
    assert not torch.equal(first.ids_keep, model(IMAGES, noise=torch.rand(6, N)).ids_keep)


def test_without_noise__every_image_and_call_has_a_mask_of_its_own(tiny_model):
    model = tiny_model(image_size=(32, 64))
    masks = [model(IMAGES).mask for _ in range(2)]
    assert len({tuple(mask.tolist()) for mask in torch.cat(masks)}) == 12
    torch.manual_seed(3)
    seeded = model(IMAGES).mask
    torch.manual_seed(3)
    assert torch.equal(model(IMAGES).mask, seeded)


def test_random__keeps_the_least_noise(tiny_model):
    noise = torch.rand(6, N)
    output = tiny_model(image_size=(32, 64))(IMAGES, noise=noise, mask_ratio=0.75)
    assert torch.equal(output.ids_keep, noise.argsort(dim=1)[:, :8])


def test_grid__keeps_one_of_every_four(tiny_model):
    kept = ~tiny_model(image_size=(32, 64), mask_sampling="grid")(IMAGES, mask_ratio=0.75).mask.view(6, *GRID)
    cells = kept.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)  # (B, 2, 4, 4)
    assert (cells.sum(dim=-1) == 1).all()
    assert (cells == cells[:, :1, :1]).all()  # at the same place in each cell


def test_grid__of_any_shape_keeps_the_position_with_the_least_noise_in_the_first_cell():
    """The positions of the first cell are the patches 0, 1, 8 and 9 of 4 x 8."""
    noise = 1 + torch.rand(1, N)
    noise[0, [0, 1, 8, 9]] = torch.tensor([0.4, 0.9, 0.1, 0.6])
    kept = masking_order(noise, GRID, "grid").argsort(dim=1)[0, :16]
    assert sorted(kept[:8].tolist()) == [8, 10, 12, 14, 24, 26, 28, 30]
    assert sorted(kept[8:].tolist()) == [0, 2, 4, 6, 16, 18, 20, 22]
    assert all(torch.equal(part, part[noise[0, part].argsort()]) for part in kept.split(8))  # the least noise first


def test_block__hides_what_lies_together():
    grid, noise = (14, 14), torch.rand(64, 196)

    def neighbours_alike(sampling):
        order = masking_order(noise, grid, sampling).argsort(dim=1)
        hidden = torch.zeros(64, 196).scatter(1, order[:, 98:], 1.0).view(64, *grid)
        return (hidden[:, 1:] == hidden[:, :-1]).float().mean().item()

    assert neighbours_alike("random") == pytest.approx(0.5, abs=0.03)
    assert neighbours_alike("block") > 0.85
    assert neighbours_alike("grid") < 0.52


def test_block__rectangles_cover_a_quarter_with_the_sides_that_the_noise_says():
    """Of 8 x 12 patches a quarter are 24: sides of sqrt(24 * a) and sqrt(24 / a), at the first and the second centre.

    The rank of patch 0, 48 of 96, says a = 0.3 ** 0 for the first, that of patch 1, 72 of 96, a = 0.3 ** 0.5 for the
    second: 4.9 x 4.9 patches around row 3 and column 4, then 3.6 x 6.6 around row 7 and column 8.
    """
    order = [40, 92, *(patch for patch in range(2, 96) if patch not in (40, 92))]
    order.insert(48, 0)
    order.insert(72, 1)
    hidden = masking_order(torch.tensor(order).argsort()[None].float(), (8, 12), "block").argsort(dim=1)[0].flip(0)
    first = {12 * row + column for row in range(1, 6) for column in range(2, 7)}
    second = {12 * row + column for row in (6, 7) for column in range(5, 12)}
    assert set(hidden[:25].tolist()) == first
    assert set(hidden[:39].tolist()) == first | second


def test_block__hides_every_place_now_and_then():
    order = masking_order(torch.rand(4096, 64), (8, 8), "block").argsort(dim=1)
    hidden = torch.zeros(4096, 64).scatter(1, order[:, 32:], 1.0).mean(dim=0)
    assert hidden.min() > 0.2  # the corners: fewer rectangles reach them
    assert hidden.max() < 0.8


# grid, side of a cell, ratio, and how many cells of how many the published rule keeps: int(cells * (1 - ratio))
CELLS = [
    ((16, 16), 4, 0.75, 4, 16),
    ((16, 16), 8, 0.75, 1, 4),
    ((16, 16), 4, 0.625, 6, 16),
    ((12, 12), 4, 0.75, 2, 9),  # 0.778 of the patches are hidden
    ((14, 14), 2, 0.75, 12, 49),
    ((10, 10), 2, 0.8, 4, 25),  # not 5: 25 * (1 - 0.8) is 4.999...
    ((4, 8), 2, 0.5, 4, 8),
    ((6, 15), 3, 0.0, 10, 10),
    ((7, 7), 1, 0.75, 12, 49),
]


@pytest.mark.parametrize(("grid", "side", "ratio", "kept", "cells"), CELLS)
def test_cells__are_kept_or_hidden_as_a_whole(tiny_model, grid, side, ratio, kept, cells):
    model = tiny_model(image_size=tuple(8 * patches for patches in grid), mask_block_size=side)
    output = model.mae(torch.zeros(3, 3, 8 * grid[0], 8 * grid[1]), mask_ratio=ratio)
    assert output.ids_keep.shape[1] == num_kept_patches(grid, ratio, side) == kept * side**2
    visible = ~output.mask.view(3, grid[0] // side, side, grid[1] // side, side).transpose(2, 3)
    assert num_kept_patches(grid, ratio) == int(grid[0] * grid[1] * (1 - ratio))  # of patches that are no cells
    in_cell = visible.flatten(3).sum(dim=3)
    assert set(in_cell.unique().tolist()) <= {0, side**2}
    assert (in_cell.flatten(1).bool().sum(dim=1) == kept).all()
    assert in_cell[0].numel() == cells


def test_cells__are_ordered_by_the_noise_of_their_first_patch():
    """Cells of 2 x 2 in a grid of 4 x 6 begin at the patches 0, 2, 4, 12, 14 and 16."""
    noise = torch.rand(1, 24)
    noise[0, [0, 2, 4, 12, 14, 16]] = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7, 0.2])
    order = masking_order(noise, (4, 6), "random", 2).argsort(dim=1)
    assert order[0, :8].tolist() == [2, 3, 8, 9, 16, 17, 22, 23]
    assert order[0, 8:12].tolist() == [12, 13, 18, 19]
    assert order[0, -4:].tolist() == [4, 5, 10, 11]
    other = torch.where(torch.isin(torch.arange(24), torch.tensor([0, 2, 4, 12, 14, 16])), noise, 1 - noise)
    assert torch.equal(masking_order(other, (4, 6), "random", 2), masking_order(noise, (4, 6), "random", 2))


def test_cells__are_all_equally_likely(tiny_model):
    model = tiny_model(mask_block_size=2)
    kept = ~model.mae(torch.zeros(4000, 3, 32, 32), mask_ratio=0.75).mask.view(4000, 4, 4)
    torch.testing.assert_close(kept.float().mean(dim=0), torch.full((4, 4), 0.25), rtol=0, atol=0.03)


def test_cells__of_another_image_size(tiny_model):
    model = tiny_model(mask_block_size=2)
    assert model(torch.randn(1, 3, 48, 64)).ids_keep.shape == (1, 12)
    with pytest.raises(ValueError, match=r"2 does not divide 5 x 4 .* multiple of 16 x 16 .* 32 x 32 or 48 x 32"):
        model(torch.randn(1, 3, 40, 32))
    odd = torch.randn(1, 3, 40, 32)
    assert model.mae(odd).last_hidden_state.shape == (1, 21, 32)  # nothing is hidden
    assert model(odd, ids_keep=torch.arange(5)[None]).loss.isfinite()  # the mask itself is given
    with pytest.raises(ValueError, match="hides all 16 patches"):
        model(torch.randn(1, 3, 32, 32), mask_ratio=0.8)  # one of four cells would be too many


def test_cells__that_do_not_fill_the_grid_say_what_would():
    """Patches of 8 x 16 pixels: cells of 2 x 2 patches have 16 x 32."""
    with pytest.raises(ValueError, match=r"divide 5 x 3 .* multiple of 16 x 32 pixels, such as 32 x 32 or 48 x 64, or"):
        check_mask_cells("random", 2, (5, 3), (8, 16))


def test_bool_masked_pos__is_taken_as_it_is(tiny_model):
    model = tiny_model(image_size=(32, 64))
    mask = torch.rand(6, N).argsort(dim=1) < 10
    output = model(IMAGES, bool_masked_pos=mask)
    assert torch.equal(output.mask, mask)
    assert torch.equal(output.ids_keep.sort(dim=1).values, output.ids_keep)  # raster order
    assert output.logits.shape == (6, 10, 8 * 8 * 3)


@pytest.mark.parametrize("hidden", [0.5, 1.0, 256, -1], ids=str)
def test_bool_masked_pos__of_another_type_hides_what_is_not_zero(tiny_model, hidden):
    """Also where the number is no byte: of 0.5 and 256 a byte would be 0."""
    mask = torch.arange(N).expand(6, N) < 10
    output = tiny_model(image_size=(32, 64))(IMAGES, bool_masked_pos=mask * hidden)
    assert torch.equal(output.mask, mask)


def test_three_ways_to_say_the_same_mask__same_loss(tiny_model):
    model = tiny_model(image_size=(32, 64))
    by_noise = model(IMAGES, noise=torch.rand(6, N))
    by_mask = model(IMAGES, bool_masked_pos=by_noise.mask)
    by_ids = model(IMAGES, ids_keep=by_noise.ids_keep)
    torch.testing.assert_close(by_noise.loss, by_mask.loss)
    torch.testing.assert_close(by_noise.loss, by_ids.loss)
    assert torch.equal(by_ids.mask, by_noise.mask)


def test_ratio_zero__finite_loss_over_all_patches(model):
    output = model(IMAGES, mask_ratio=0)
    assert output.loss.isfinite()
    assert output.logits.shape[1] == N
    assert not output.mask.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1.0}, r"mask_ratio.* in \[0, 1\), got 1.0"),
        ({"mask_ratio": -0.5}, r"mask_ratio.* in \[0, 1\), got -0.5"),
        ({"mask_ratio": 0.99}, "hides all 32 patches"),
        ({"noise": torch.rand(6, N + 1)}, r"noise.*\(batch, patches\) = \(6, 32\).*got \(6, 33\)"),
        ({"noise": torch.rand(5, N)}, r"got \(5, 32\)"),
        ({"bool_masked_pos": torch.zeros(6, 4, 8).bool()}, r"bool_masked_pos.*got \(6, 4, 8\)"),
        ({"bool_masked_pos": torch.ones(6, N).bool()}, "hides all 32 patches"),
        ({"bool_masked_pos": torch.arange(6)[:, None] > torch.arange(N)}, r"bool_masked_pos.*\[0, 1, 2, 3, 4, 5\]"),
        ({"ids_keep": torch.arange(33).expand(6, 33)}, r"ids_keep.*got \(6, 33\)"),
        ({"ids_keep": torch.arange(6)}, r"ids_keep.*got \(6,\)"),
        ({"ids_keep": torch.tensor([[3, 3]] * 6)}, r"ids_keep.*different patches in \[0, 32\)"),
        ({"ids_keep": torch.tensor([[3, 32]] * 6)}, r"ids_keep.*different patches in \[0, 32\)"),
        ({"ids_keep": torch.tensor([[0.0, 1.0]] * 6)}, r"ids_keep.* integers .*got torch.float32: ids_keep.long\(\)"),
        ({"noise": torch.rand(6, N).numpy()}, r"noise.*tensor, got ndarray: torch.as_tensor\(noise\)"),
        ({"ids_keep": [[0, 1]] * 6}, "ids_keep.*tensor, got list"),
        (
            {"bool_masked_pos": torch.zeros(6, N).bool(), "mask_ratio": 0.5},
            "one of `mask_ratio`, `bool_masked_pos` and `ids_keep`",
        ),
        (
            {"valid": torch.ones(6, 64, 32).bool()},
            r"valid.*\(batch, height, width\) = \(6, 32, 64\), got \(6, 64, 32\)",
        ),
        ({"prediction_ratio": 0.0}, r"prediction_ratio.* in \(0, 1\], got 0.0"),
    ],
)
def test_bad_masks__say_what_is_wrong(tiny_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(image_size=(32, 64))(IMAGES, **arguments)


def test_unknown_sampling__is_an_error():
    with pytest.raises(ValueError, match="`mask_sampling` must be one of.*'random', 'block', 'grid'.*got 'blok'"):
        masking_order(torch.rand(2, N), GRID, "blok")


@pytest.mark.parametrize(
    "mask",
    [
        {"noise": torch.rand(6, N)},
        {"bool_masked_pos": torch.rand(6, N).argsort(dim=1) < 10},
        {"ids_keep": torch.arange(8).expand(6, 8)},
    ],
)
def test_mask_on_another_device__says_so(tiny_model, mask):
    ((name, given),) = mask.items()
    with pytest.raises(ValueError, match=f"`{name}` is on meta and the images are on cpu"):
        tiny_model(image_size=(32, 64))(IMAGES, **{name: given.to("meta")})
