# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images to patches and back, where patches stand, and which are hidden: functions without weights.

*Patch* indices never count the class token. Shapes in comments: B batch, C channels, P pixels of a patch, N patches of
an image, K those asked for, D width.
"""

import torch
from torch import nn

# ----------------------------------------------------------------------------------------------------------------------
# Patches and positions


def patchify(pixel_values: torch.Tensor, patch_size: tuple[int, int], ids: torch.Tensor | None = None) -> torch.Tensor:
    """Cuts patches out of images, in raster order or those asked for; pixels of other patches are not touched.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Height and width are multiples of
            the patch's.
        patch_size (`(height, width)`): Pixels of a patch.
        ids (`torch.LongTensor` of shape `(batch, num_ids)`, *optional*): Patch indices in [0, num_patches).

    Returns:
        `torch.Tensor` of shape `(batch, num_patches or num_ids, patch_height * patch_width * channels)`: elements of a
        patch in the order row, column, channel (the layout of the official prediction head).
    """
    batch_size, channels = pixel_values.shape[:2]
    rows, columns = patch_grid(pixel_values, patch_size)
    patches = pixel_values.reshape(batch_size, channels, rows, patch_size[0], columns, patch_size[1])
    patches = patches.permute(0, 2, 4, 3, 5, 1)  # (B, rows, columns, P height, P width, C), a view
    if ids is None:
        return patches.reshape(batch_size, rows * columns, -1)  # (B, N, P * C)
    batch = torch.arange(batch_size, device=ids.device)[:, None]
    return patches[batch, ids // columns, ids % columns].flatten(2)  # (B, K, P * C)


def unpatchify(patches: torch.Tensor, patch_size: tuple[int, int], grid_size: tuple[int, int]) -> torch.Tensor:
    """Puts images together from all their patches; the inverse of [`patchify`].

    Args:
        patches (`torch.Tensor` of shape `(batch, num_patches, patch_height * patch_width * channels)`): As cut.
        patch_size (`(height, width)`): Pixels of a patch.
        grid_size (`(rows, columns)`): Patches of an image.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`.
    """
    rows, columns = grid_size
    images = patches.reshape(patches.shape[0], rows, columns, *patch_size, -1)
    images = images.permute(0, 5, 1, 3, 2, 4)  # (B, C, rows, P height, columns, P width)
    return images.reshape(images.shape[0], images.shape[1], rows * patch_size[0], columns * patch_size[1])


def sincos_position_table(width: int, grid_size: tuple[int, int]) -> torch.Tensor:
    """Returns the fixed two-dimensional sine-cosine table in the layout of the official checkpoints.

    The first half of the channels tells the column, the second the row; each half holds the sines, then the cosines of
    `position / 10000**(i / (width / 4))`. Source: Vaswani et al. 2017, section 3.5, per coordinate; the order of
    coordinates is that of the official code, whose weights depend on it.

    Args:
        width (`int`): Channels, divisible by 4.
        grid_size (`(rows, columns)`): Patches of an image.

    Returns:
        `torch.DoubleTensor` of shape `(1, 1 + rows * columns, width)`: a row of zeros for the class token, then the
        patches in raster order.
    """
    # On the CPU whatever the default device: models are constructed on "meta", where nothing can be computed.
    double = {"dtype": torch.float64, "device": "cpu"}
    frequencies = 10000 ** -(torch.arange(width // 4, **double) / (width // 4))
    rows, columns = (torch.arange(size, **double) for size in grid_size)
    y, x = (coordinate.reshape(-1, 1) * frequencies for coordinate in torch.meshgrid(rows, columns, indexing="ij"))
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)  # (N, D)
    return torch.cat([table.new_zeros(1, width), table])[None]  # (1, 1 + N, D)


def resample_position_table(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Resamples a position table to another grid in two dimensions (bicubic, corners not aligned).

    Args:
        table (`torch.Tensor` of shape `(1, 1 + rows * columns, width)`): Row of the class token first; it is kept.
        old (`(rows, columns)`): Grid of the table.
        new (`(rows, columns)`): Grid wanted. The same grid returns the table itself.

    Returns:
        `torch.Tensor` of shape `(1, 1 + new_rows * new_columns, width)`, dtype as given.
    """
    if old == new:
        return table
    patches = table[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    patches = nn.functional.interpolate(at_least_float32(patches), size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def patch_grid(pixel_values: torch.Tensor, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Returns how many patches images `(batch, channels, height, width)` have, (rows, columns)."""
    return pixel_values.shape[2] // patch_size[0], pixel_values.shape[3] // patch_size[1]


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Returns half-precision tensors as float32, others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ----------------------------------------------------------------------------------------------------------------------
# Masking


def masking_order(noise: torch.Tensor, grid_size: tuple[int, int], sampling: str) -> torch.Tensor:
    """Turns noise into scores whose ascending order tells which patches stay visible: the first ones.

    Args:
        noise (`torch.Tensor` of shape `(batch, num_patches)`): Any values; those of an image should differ.
        grid_size (`(rows, columns)`): Patches of an image.
        sampling (`"random"`, `"block"` or `"grid"`): `"random"` returns the noise, which the official code sorts.
            `"grid"` orders the four positions of a 2 x 2 cell by noise and keeps whole positions first: at a ratio of
            0.75 one patch of every four stays, on a regular grid. `"block"` hides rectangles of a quarter of the image
            one after the other (centre and aspect from the noise, aspect between 0.3 and 1 / 0.3 as in BEiT, Bao et
            al. 2021, Algorithm 1) until enough is hidden. Source: He et al. 2021, Fig. 6 and Table 1f.

    Returns:
        `torch.Tensor` of shape `(batch, num_patches)`.
    """
    if sampling == "random":
        return noise
    (rows, columns), num_patches = grid_size, noise.shape[1]
    order = noise.argsort(dim=1)
    rank = order.argsort(dim=1)  # (B, N), 0 to N - 1: the noise as integers, with which ties can be broken exactly
    patch = torch.arange(num_patches, device=noise.device)
    row, column = patch // columns, patch % columns
    if sampling == "grid":
        position_in_cell = row % 2 * columns + column % 2  # the patch of the first cell that stands there
        return rank[:, position_in_cell] * num_patches + rank
    blocks = min(16, num_patches)
    centre = order[:, :blocks, None]  # (B, blocks, 1): distinct patches, each equally likely
    aspect = 0.3 ** (2 * rank[:, :blocks, None] / num_patches - 1)  # log-uniform
    height = (rows * columns / 4 * aspect).sqrt()
    covered = ((row - centre // columns).abs() <= height / 2) & (
        (column - centre % columns).abs() <= height / aspect / 2
    )  # (B, blocks, N)
    first = torch.where(covered, torch.arange(blocks, device=noise.device)[:, None], blocks).amin(dim=1)  # (B, N)
    return (blocks - first) * num_patches + rank


__all__ = [
    "at_least_float32",
    "patch_grid",
    "masking_order",
    "patchify",
    "resample_position_table",
    "sincos_position_table",
    "unpatchify",
]
