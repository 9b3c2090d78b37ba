# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Masking: which patches of an image the encoder sees and which are hidden from it. Functions without weights.

A mask is given as noise, as a bool tensor (True = hidden) or as the indices of the visible patches, or it is drawn at
random. *Patch* indices never count class tokens. Shapes in comments: B batch, N patches of an image, K visible ones.
"""

import math

import numpy as np
import torch

from .patches_mae import check_values


def choose_mask(
    pixel_values: torch.Tensor,
    grid_size: tuple[int, int],
    sampling: str,
    block_size: int,
    mask_ratio: float | None = None,
    noise: torch.Tensor | None = None,
    bool_masked_pos: torch.Tensor | None = None,
    ids_keep: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Returns the patch indices of the visible and of the hidden patches, or `(None, None)` if no mask is given.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The images.
        grid_size (`(rows, columns)`): Patches of an image.
        sampling (`str`), block_size (`int`): How hidden patches are chosen, see [`masking_order`].
        mask_ratio (`float`, *optional*): Fraction of patches to hide, in [0, 1), see [`num_kept_patches`].
        noise (`torch.Tensor` of shape `(batch, num_patches)`, *optional*): Decides which patches are hidden, with
            `mask_ratio`. Drawn from the uniform distribution by default.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch, num_patches)`, *optional*): The mask, True = hidden.
        ids_keep (`torch.LongTensor` of shape `(batch, num_kept)`, *optional*): Patch indices of the visible patches.

    Returns:
        `torch.LongTensor` of shape `(batch, num_kept)` and `torch.LongTensor` of shape `(batch, num_patches -
        num_kept)`.

    Raises:
        ValueError: If a shape, a device or the ratio does not fit, if more than one mask is given, if the mask hides
            everything, or if `block_size` does not divide the grid.
    """
    if sum(given is not None for given in (mask_ratio, bool_masked_pos, ids_keep)) > 1:
        raise ValueError("Give only one of `mask_ratio`, `bool_masked_pos` and `ids_keep`: each determines the mask.")
    _check_mask_arguments(pixel_values, grid_size, noise=noise, bool_masked_pos=bool_masked_pos, ids_keep=ids_keep)
    num_images, num_patches = pixel_values.shape[0], grid_size[0] * grid_size[1]
    if bool_masked_pos is not None:
        order, num_kept = _order_of_mask(bool_masked_pos)
    elif ids_keep is not None:
        order, num_kept = _order_of_ids(ids_keep, num_patches), ids_keep.shape[1]
    elif mask_ratio is not None:
        _check_mask_ratio(mask_ratio)
        height, width = pixel_values.shape[2:]
        check_mask_cells(sampling, block_size, grid_size, (height // grid_size[0], width // grid_size[1]))
        if noise is None:
            noise = torch.rand(num_images, num_patches, device=pixel_values.device)
        order = masking_order(noise, grid_size, sampling, block_size).argsort(dim=1)
        num_kept = num_kept_patches(grid_size, mask_ratio, block_size)
    else:
        return None, None
    if num_kept == 0:
        raise ValueError(f"The mask hides all {num_patches} patches; leave at least one visible.")
    return order[:, :num_kept], order[:, num_kept:]


def num_kept_patches(grid_size: tuple[int, int], mask_ratio: float, block_size: int = 1) -> int:
    """Returns how many patches of an image stay visible: `int(cells * (1 - mask_ratio)) * block_size**2`.

    Cells are hidden or kept as a whole, so the ratio is met as nearly as whole cells allow: of 9 cells at 0.75 two stay
    visible. Sources: the official code of MAE for single patches, that of Pixio (arXiv 2512.15715) for cells.

    Args:
        grid_size (`(rows, columns)`): Patches of an image.
        mask_ratio (`float`): Fraction of patches to hide, in [0, 1).
        block_size (`int`, *optional*, defaults to 1): Patches of a side of a cell, a divisor of rows and columns.
    """
    cells = (grid_size[0] // block_size) * (grid_size[1] // block_size)
    return int(cells * (1 - mask_ratio)) * block_size**2


def _check_mask_ratio(mask_ratio: float):
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"`mask_ratio` must be in [0, 1), got {mask_ratio}.")


def check_mask_cells(sampling: str, block_size: int, grid_size: tuple[int, int], patch_size: tuple[int, int]):
    """Raises `ValueError` if cells of `block_size` x `block_size` patches do not fill the grid or are not drawn."""
    if block_size < 1:
        raise ValueError(f"`mask_block_size` must be at least 1, got {block_size}.")
    if block_size > 1 and sampling != "random":
        raise ValueError(
            f"`mask_block_size` {block_size} needs mask_sampling='random', got {sampling!r}: whole cells are drawn at "
            "random. Change one of the two."
        )
    (rows, columns), cell = grid_size, tuple(block_size * pixels for pixels in patch_size)
    if rows % block_size or columns % block_size:
        below = (rows // block_size * cell[0], columns // block_size * cell[1])
        above = (-(-rows // block_size) * cell[0], -(-columns // block_size) * cell[1])
        sizes = [f"{height} x {width}" for height, width in (below, above) if min(height, width) > 0]
        divisors = [str(size) for size in range(1, rows + 1) if rows % size == columns % size == 0]
        raise ValueError(
            f"`mask_block_size` {block_size} does not divide {rows} x {columns} patches into cells. Choose an image "
            f"size that is a multiple of {cell[0]} x {cell[1]} pixels, such as {' or '.join(sizes)}, or a "
            f"`mask_block_size` of {' or '.join(divisors)}."
        )


def _check_mask_arguments(pixel_values: torch.Tensor, grid_size: tuple[int, int], **arguments: torch.Tensor | None):
    (rows, columns), num_images = grid_size, pixel_values.shape[0]
    for name, given in arguments.items():
        if given is None:
            continue
        if not isinstance(given, torch.Tensor):
            raise ValueError(f"`{name}` must be a tensor, got {type(given).__name__}: torch.as_tensor({name}) is one.")
        if given.device != pixel_values.device:
            raise ValueError(
                f"`{name}` is on {given.device} and the images are on {pixel_values.device}; move it with "
                f"{name}.to(pixel_values.device)."
            )
        if name == "ids_keep":
            if given.dtype not in (torch.int64, torch.int32):
                raise ValueError(f"`ids_keep` must be integers of 64 or 32 bits, got {given.dtype}: ids_keep.long().")
            fits = given.ndim == 2 and given.shape[0] == num_images and given.shape[1] <= rows * columns
            expected = f"(batch, at most the number of patches) = ({num_images}, <= {rows * columns})"
        else:
            fits = given.shape == (num_images, rows * columns)
            expected = f"(batch, patches) = ({num_images}, {rows * columns})"
        if not fits:
            raise ValueError(
                f"`{name}` must have the shape {expected} for images of {rows} x {columns} patches, got "
                f"{tuple(given.shape)}. Class tokens do not count."
            )


def _order_of_mask(mask: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Returns patch indices (B, N), the visible ones first and each group in raster order, and the number of these."""
    mask = mask.bool()  # of other types everything but 0 is hidden
    counts = mask.logical_not().sum(dim=1)
    num_kept = int(counts[0])
    if (counts != num_kept).any():
        raise ValueError(
            "`bool_masked_pos` must hide the same number of patches in each image, because a batch is one tensor; got "
            f"{(mask.shape[1] - counts).tolist()}. Pass images with other numbers in batches of their own."
        )
    return mask.byte().argsort(dim=1, stable=True), num_kept


def _check_ids(ids_keep: torch.Tensor, num_patches: int):
    if torch.compiler.is_compiling():  # compiled code can't look at the values
        return
    ordered = ids_keep.sort(dim=1).values
    fits = ((ordered >= 0) & (ordered < num_patches)).all() & (ordered.diff(dim=1) > 0).all()
    check_values(fits, f"`ids_keep` must hold different patches in [0, {num_patches}) for each image.")


def _order_of_ids(ids_keep: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Returns patch indices (B, N): the visible ones as given, then the others in raster order.

    Raises:
        ValueError: If an index is no patch, or is given twice: then another patch would be neither visible nor hidden.
    """
    _check_ids(ids_keep, num_patches)
    hidden = torch.ones(ids_keep.shape[0], num_patches, dtype=torch.uint8, device=ids_keep.device)
    hidden = hidden.scatter(1, ids_keep, 0).argsort(dim=1, stable=True)[:, ids_keep.shape[1] :]
    return torch.cat([ids_keep, hidden], dim=1)


def masking_order(noise: torch.Tensor, grid_size: tuple[int, int], sampling: str, block_size: int = 1) -> torch.Tensor:
    """Turns noise into scores: the patches with the lowest scores stay visible.

    Args:
        noise (`torch.Tensor` of shape `(batch, num_patches)`): Any values; those of an image should differ.
        grid_size (`(rows, columns)`): Patches of an image.
        sampling (`str`): A key of `MASK_SAMPLINGS`: `"random"`, `"block"` or `"grid"`. Source: He et al. 2021, Fig. 6
            and Table 1f.
        block_size (`int`, *optional*, defaults to 1): Side of aligned cells that are kept or hidden as a whole, in
            patches, see [`check_mask_cells`]. Source: Pixio (arXiv 2512.15715), section 3.2.

    Returns:
        `torch.Tensor` of shape `(batch, num_patches)`.

    Raises:
        ValueError: If there is no such sampling.
    """
    if sampling not in MASK_SAMPLINGS:
        raise ValueError(f"`mask_sampling` must be one of {tuple(MASK_SAMPLINGS)}, got {sampling!r}.")
    return MASK_SAMPLINGS[sampling](noise, grid_size) if block_size == 1 else _cell_order(noise, grid_size, block_size)


def _cell_order(noise: torch.Tensor, grid_size: tuple[int, int], block_size: int) -> torch.Tensor:
    """Orders whole cells by the noise of their first patch, and the patches of a cell in raster order."""
    columns, num_patches, cells_in_row = grid_size[1], noise.shape[1], grid_size[1] // block_size
    cells = noise.unflatten(1, (-1, block_size, cells_in_row, block_size))[:, :, 0, :, 0].flatten(1)  # (B, cells)
    rank = cells.argsort(dim=1).argsort(dim=1)
    patch = torch.arange(num_patches, device=noise.device)
    cell_of_patch = patch // columns // block_size * cells_in_row + patch % columns // block_size
    return rank[:, cell_of_patch] * num_patches + patch


def _random_order(noise: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Returns the noise itself, which the official code sorts."""
    return noise


def _grid_order(noise: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Orders the four positions of a 2 x 2 cell by the noise, the same positions in every cell.

    At a ratio of 0.75 one patch of every four stays visible, and these form a regular grid.
    """
    _, rank, row, column = _ranks_and_places(noise, grid_size)
    position_in_cell = row % 2 * grid_size[1] + column % 2  # the patch of the first cell at this position
    return rank[:, position_in_cell] * noise.shape[1] + rank


def _block_order(noise: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Hides rectangles of a quarter of the image, one after the other, until enough patches are hidden.

    The noise decides the centre and the aspect ratio, which is between 0.3 and 1 / 0.3 as in BEiT (Bao et al. 2021,
    Algorithm 1).
    """
    (rows, columns), num_patches = grid_size, noise.shape[1]
    order, rank, row, column = _ranks_and_places(noise, grid_size)
    num_blocks = min(16, num_patches)
    centre = order[:, :num_blocks, None]  # (B, blocks, 1): distinct patches, each equally likely
    aspect = 0.3 ** (2 * rank[:, :num_blocks, None] / num_patches - 1)  # log-uniform
    height = (rows * columns / 4 * aspect).sqrt()
    covered = ((row - centre // columns).abs() <= height / 2) & (
        (column - centre % columns).abs() <= height / aspect / 2
    )  # (B, blocks, N)
    block = torch.arange(num_blocks, device=noise.device)[:, None]
    first = torch.where(covered, block, num_blocks).amin(dim=1)  # (B, N): the first block that covers the patch
    return (num_blocks - first) * num_patches + rank


def _ranks_and_places(
    noise: torch.Tensor, grid_size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the patches in the order of their noise (B, N), their ranks in it (B, N), their rows and columns (N)."""
    order = noise.argsort(dim=1)
    rank = order.argsort(dim=1)  # integers from 0 to N - 1: with these, ties of scores can be broken exactly
    patch = torch.arange(noise.shape[1], device=noise.device)
    return order, rank, patch // grid_size[1], patch % grid_size[1]


# ----------------------------------------------------------------------------------------------------------------------
# Masks that complement each other

_ROUNDING = 1e-9  # more than errors of the product of a ratio and a number of patches


def complementary_masks(
    grid_size: tuple[int, int],
    mask_ratio: float,
    num_masks: int,
    seed: int = 0,
    sampling: str = "random",
    block_size: int = 1,
) -> list[torch.LongTensor]:
    """Returns the visible patches of masks that together show each patch equally often, or once more than another.

    They are dealt like cards: the patches are put into an order as for one mask, and each mask in turn takes the next
    of them. When none are left, they are put into a new order, in which the patches of the present mask come last. So
    with the usual ratio of 0.75 each patch is visible with one of every four masks. Where the share of visible patches
    is no whole number of patches (of cells, if there are any) the numbers of the masks differ by one: of 49 patches the
    four masks show 12, 12, 12 and 13.

    Args:
        grid_size (`(rows, columns)`): Patches of an image.
        mask_ratio (`float`): Fraction of patches to hide, in [0, 1).
        num_masks (`int`): Number of masks. Further masks do not change the first ones.
        seed (`int`, *optional*, defaults to 0): Decides the masks, on any device.
        sampling (`str`), block_size (`int`): The model's rule, see [`masking_order`]. The masks of `"grid"` show one
            position after the other of each 2 x 2 cell, those of `"block"` coherent parts of the image.

    Returns:
        `list[torch.LongTensor]`: Patch indices, one tensor for each mask, to be passed as `ids_keep`.

    Raises:
        ValueError: If there is no such ratio or sampling.
    """
    _check_mask_ratio(mask_ratio)
    cells = (grid_size[0] // block_size) * (grid_size[1] // block_size)
    dealt = [math.floor(number * (1 - mask_ratio) * cells + _ROUNDING) for number in range(num_masks + 1)]
    masks, turn, left = [], 0, torch.empty(0, dtype=torch.long)
    for number in range(num_masks):
        size = (dealt[number + 1] - dealt[number]) * block_size**2
        if len(left) < size:
            order = _order_of_turn(grid_size, sampling, block_size, seed, turn)
            held = torch.isin(order, left)
            left, turn = torch.cat([left, order[~held], order[held]]), turn + 1
        masks.append(left[:size])
        left = left[size:]
    return masks


def _order_of_turn(
    grid_size: tuple[int, int], sampling: str, block_size: int, seed: int, turn: int
) -> torch.LongTensor:
    """Returns all patch indices (N) in an order that depends on the seed and the turn."""
    cells = (grid_size[0] // block_size, grid_size[1] // block_size)
    rank = np.random.default_rng([seed, turn]).permutation(cells[0] * cells[1]).reshape(cells)
    noise = torch.from_numpy(rank.repeat(block_size, axis=0).repeat(block_size, axis=1)).flatten()
    return masking_order(noise[None], grid_size, sampling, block_size).argsort(dim=1)[0]


def number_of_masks(mask_ratio: float, num_masks: int | None = None) -> int:
    """Returns how many complementary masks hide every patch at least once, and show every patch equally often.

    Args:
        mask_ratio (`float`): Fraction of patches to hide, in (0, 1).
        num_masks (`int`, *optional*): A number to check, with which some patches may be visible once more than others.

    Raises:
        ValueError: If the masks are too few to hide every patch, or the share of visible patches is not one over a
            whole number and `num_masks` is not given.
    """
    _check_mask_ratio(mask_ratio)
    if mask_ratio == 0:
        raise ValueError("`mask_ratio` 0 hides nothing, so that no patch would be predicted from others.")
    least = math.ceil(1 / mask_ratio - _ROUNDING)
    if num_masks is None:
        num_masks = round(1 / (1 - mask_ratio))
        if abs(num_masks * (1 - mask_ratio) - 1) > 1e-6:
            raise ValueError(
                f"`num_masks` is missing: with `mask_ratio` {mask_ratio} the visible share is {1 - mask_ratio:.3g}, "
                f"not one over a whole number, so that no number of masks follows from it. Give any from {least} on."
            )
    if num_masks < least:
        raise ValueError(
            f"`num_masks` must be at least {least} with `mask_ratio` {mask_ratio}, got {num_masks}: fewer masks cannot "
            "hide every patch."
        )
    return num_masks


# What `config.mask_sampling` can be. A new way of masking is one function from (noise, grid_size) to scores.
MASK_SAMPLINGS = {"random": _random_order, "block": _block_order, "grid": _grid_order}

__all__ = [
    "MASK_SAMPLINGS",
    "check_mask_cells",
    "choose_mask",
    "complementary_masks",
    "masking_order",
    "num_kept_patches",
    "number_of_masks",
]
