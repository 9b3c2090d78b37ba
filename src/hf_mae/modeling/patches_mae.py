# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images to patches and back, the position tables, and checks of values: functions without weights.

*Patch* indices never count class tokens. Shapes in comments: B batch, C channels, P pixels of a patch (height times
width), N patches of an image, K requested ones, D width.
"""

import torch
from torch import nn


def patchify(pixel_values: torch.Tensor, patch_size: tuple[int, int], ids: torch.Tensor | None = None) -> torch.Tensor:
    """Cuts images into patches: all of them in raster order, or only the requested ones.

    Only the pixels of the requested patches are read.

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
    """Assembles images from all their patches; the inverse of [`patchify`].

    Args:
        patches (`torch.Tensor` of shape `(batch, num_patches, patch_height * patch_width * channels)`): As
            [`patchify`] returns them.
        patch_size (`(height, width)`): Pixels of a patch.
        grid_size (`(rows, columns)`): Patches of an image.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`.
    """
    rows, columns = grid_size
    images = patches.reshape(patches.shape[0], rows, columns, *patch_size, -1)
    images = images.permute(0, 5, 1, 3, 2, 4)  # (B, C, rows, P height, columns, P width)
    return images.reshape(images.shape[0], images.shape[1], rows * patch_size[0], columns * patch_size[1])


def sincos_position_table(width: int, grid_size: tuple[int, int], num_class_tokens: int = 1) -> torch.Tensor:
    """Returns the fixed two-dimensional sine-cosine table in the layout of the official checkpoints.

    The first half of the channels encodes the column, the second half the row. Each half holds the sines, then the
    cosines of `position / 10000**(i / (width / 4))`. Source: Vaswani et al. 2017, section 3.5, for each coordinate. The
    order of the coordinates is that of the official code, because its weights depend on it.

    Args:
        width (`int`): Channels, divisible by 4.
        grid_size (`(rows, columns)`): Patches of an image.
        num_class_tokens (`int`, *optional*, defaults to 1): Class tokens.

    Returns:
        `torch.DoubleTensor` of shape `(1, num_class_tokens + rows * columns, width)`: a row of zeros for each class
        token, then one row for each patch in raster order.
    """
    # Always on the CPU: models are often constructed on the device "meta", where nothing can be computed.
    double = {"dtype": torch.float64, "device": "cpu"}
    frequencies = 10000 ** -(torch.arange(width // 4, **double) / (width // 4))
    rows, columns = (torch.arange(size, **double) for size in grid_size)
    y, x = (coordinate.reshape(-1, 1) * frequencies for coordinate in torch.meshgrid(rows, columns, indexing="ij"))
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)  # (N, D)
    return torch.cat([table.new_zeros(num_class_tokens, width), table])[None]  # (1, class tokens + N, D)


def resample_position_table(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Resamples a position table to another grid in two dimensions (bicubic, corners not aligned).

    Args:
        table (`torch.Tensor` of shape `(1, num_class_tokens + rows * columns, width)`): The first rows belong to the
            class tokens and are kept. Gradients reach the table.
        old (`(rows, columns)`): Grid of the table.
        new (`(rows, columns)`): Requested grid. For the same grid the table itself is returned.

    Returns:
        `torch.Tensor` of shape `(1, num_class_tokens + new_rows * new_columns, width)`, of the dtype of `table`.
    """
    # An export for images of any size has to resample at every size. For the same grid the values stay the same.
    if not any(isinstance(side, torch.SymInt) for side in new) and old == new:
        return table
    num_class_tokens = table.shape[1] - old[0] * old[1]
    patches = table[:, num_class_tokens:].unflatten(1, old).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    patches = nn.functional.interpolate(at_least_float32(patches), size=new, mode="bicubic", align_corners=False)
    patches = patches.flatten(2).transpose(1, 2).to(table.dtype)
    return torch.cat([table[:, :num_class_tokens], patches], dim=1)


def patch_resampling(old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Returns the matrix that resizes patches, as rows of pixels, from one size to another (bicubic).

    Args:
        old (`(height, width)`): Pixels of the patches that are multiplied by the matrix.
        new (`(height, width)`): Pixels of the resized patches.

    Returns:
        `torch.DoubleTensor` of shape `(old_height * old_width, new_height * new_width)`.
    """
    pixels = torch.eye(old[0] * old[1], dtype=torch.float64, device="cpu").unflatten(1, (1, *old))
    options = {"mode": "bicubic", "align_corners": False, "antialias": new[0] < old[0] or new[1] < old[1]}
    return nn.functional.interpolate(pixels, size=new, **options).flatten(1)


def patch_grid(pixel_values: torch.Tensor, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the number of patches of images `(batch, channels, height, width)` as (rows, columns)."""
    return pixel_values.shape[2] // patch_size[0], pixel_values.shape[3] // patch_size[1]


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Returns half-precision tensors as float32 and others unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_values(fits: torch.Tensor, message: str):
    """Raises `ValueError` with a message if `fits`, one bool, is false.

    On a GPU the error comes later, from the device: looking at the value here would wait for it.
    """
    if fits.device.type != "cpu":
        torch._assert_async(fits, message)
    elif not fits:
        raise ValueError(message)


__all__ = [
    "at_least_float32",
    "check_values",
    "patch_grid",
    "patch_resampling",
    "patchify",
    "resample_position_table",
    "sincos_position_table",
    "unpatchify",
]
