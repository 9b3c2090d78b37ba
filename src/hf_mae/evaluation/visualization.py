# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Sheets of pictures: original | masked | reconstruction, what the class token attends to; and the curve of a loss."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining, MAEPreTrainedModel
from ..modeling.patches_mae import at_least_float32, patch_grid

_MARGIN, _HEADING = 4, 16  # pixels
# From little to much. Brightness rises all the way, so that it can be read without colours, too.
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


def reconstruction_sheet(
    model: MAEForPreTraining,
    image_processor: MAEImageProcessor,
    pixel_values: torch.Tensor,
    columns: int = 3,
    min_side: int = 112,
    **kwargs,
) -> PIL.Image.Image:
    """Returns one picture of images beside what the model sees of them and makes of it.

    Args:
        model ([`MAEForPreTraining`]): The model.
        image_processor ([`MAEImageProcessor`]): The one that made the pixel values.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The images.
        columns (`int`, *optional*, defaults to 3): Triples beside each other.
        min_side (`int`, *optional*, defaults to 112): Smaller images are enlarged by a whole factor to this side.
        **kwargs: Of `MAEForPreTraining.reconstruct`, such as `noise`.
    """
    pixel_values = pixel_values.to(model.device)
    output = model.reconstruct(pixel_values, **kwargs)
    kinds = (pixel_values, output.masked, output.reconstruction)
    triples = list(zip(*map(image_processor.post_process_reconstruction, kinds), strict=True))
    size = _enlarged(triples[0][0].size, min_side)
    return _sheet(triples, ("original", "masked", "reconstruction"), size, columns)


@torch.no_grad()
def attention_sheet(
    model: MAEPreTrainedModel,
    image_processor: MAEImageProcessor,
    pixel_values: torch.Tensor,
    columns: int = 3,
    min_side: int = 168,
) -> PIL.Image.Image:
    """Returns one picture of images beside heat maps of what the class token attends to, from black to yellow.

    The first map is the attention of the last block, averaged over heads, the second is [`attention_rollout`]. Each is
    scaled to its own least and largest value and interpolated between the middles of the patches.

    Args:
        model ([`MAEPreTrainedModel`]): Any model of ours; its encoder sees the whole images.
        image_processor ([`MAEImageProcessor`]): The one that made the pixel values.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The images.
        columns (`int`, *optional*, defaults to 3): Triples beside each other.
        min_side (`int`, *optional*, defaults to 168): Smaller images are enlarged by a whole factor to this side.
    """
    encoder = model.base_model
    pixel_values = pixel_values.to(model.device)
    attentions = encoder(pixel_values, output_attentions=True).attentions
    last = attentions[-1].mean(dim=1)[:, 0, 1:]  # (B, N)
    grid_size = patch_grid(pixel_values, encoder.embeddings.patch_size)
    pictures = image_processor.post_process_reconstruction(pixel_values)
    size = _enlarged(pictures[0].size, min_side)
    maps = ([_heat_map(row, grid_size, size) for row in rows] for rows in (last, attention_rollout(attentions)))
    triples = list(zip(pictures, *maps, strict=True))
    return _sheet(triples, ("image", "last block", "rollout"), size, columns)


def attention_rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns how much of the class token comes from each patch, followed through all blocks: attention rollout.

    Of each block the heads are averaged, and the residual connection counts as much as the attention: `0.5 * A + 0.5 *
    I`, its rows normalised. The product over the blocks tells what each token is a mixture of. Source: Abnar and
    Zuidema 2020 (arXiv 2005.00928), section 3, equation 1.

    Args:
        attentions (`tuple` of `torch.Tensor` of shape `(batch, heads, tokens, tokens)`): Of each block, from first to
            last, the class token first: `attentions` of an encoder called with `output_attentions=True`.

    Returns:
        `torch.Tensor` of shape `(batch, num_patches)`: Shares of the patches, in the order of their tokens, in float32
        or better. What the class token has of itself is left out, and the rest adds up to 1.

    Raises:
        ValueError: If there are no attentions, or they are not square.
    """
    if attentions is None or len(attentions) == 0:
        raise ValueError("There are no attentions to follow: call the model with output_attentions=True.")
    rollout = None
    for weights in attentions:
        if weights.ndim != 4 or weights.shape[2] != weights.shape[3]:
            raise ValueError(
                "Attention must have the shape (batch, heads, tokens, tokens), every token attending to every one; "
                f"got {tuple(weights.shape)}. That of the encoder has; the last block of the decoder has not."
            )
        mixing = at_least_float32(weights).mean(dim=1)  # (B, tokens, tokens)
        mixing = mixing + torch.eye(mixing.shape[-1], dtype=mixing.dtype, device=mixing.device)
        mixing = mixing / mixing.sum(dim=-1, keepdim=True)  # the half of each; rows of bfloat16 don't add up to 1
        rollout = mixing if rollout is None else mixing @ rollout
    patches = rollout[:, 0, 1:]
    return patches / patches.sum(dim=-1, keepdim=True)


def _heat_map(values: torch.Tensor, grid_size: tuple[int, int], size: tuple[int, int]) -> PIL.Image.Image:
    """A picture of `size` (width, height) of values (N,) in raster order."""
    values = values.float().cpu()
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-12)
    smooth = PIL.Image.fromarray(values.reshape(grid_size).numpy()).resize(size, PIL.Image.Resampling.BICUBIC)
    levels = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(np.array(smooth), levels, _HEAT[:, channel]) for channel in range(3)]  # clips what overshoots
    return PIL.Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def loss_curve(points: Sequence[tuple[int, float]], size: tuple[int, int] = (640, 320)) -> PIL.Image.Image:
    """Returns a picture of a loss over steps, both axes labelled with the least and the largest value.

    Args:
        points (`Sequence[tuple[int, float]]`): Steps in ascending order and losses, at least two.
        size (`(width, height)`, *optional*, defaults to `(640, 320)`): Pixels.
    """
    (width, height), margin = size, 40
    steps, losses = (np.array(values, dtype=float) for values in zip(*points, strict=True))
    x = margin + (steps - steps[0]) / max(steps[-1] - steps[0], 1) * (width - 2 * margin)
    y = height - margin - (losses - losses.min()) / max(np.ptp(losses), 1e-12) * (height - 2 * margin)
    picture = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(picture)
    draw.line([(margin, margin), (margin, height - margin), (width - margin, height - margin)], fill="gray")
    draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill="navy", width=2)
    for loss, place in ((losses.max(), margin), (losses.min(), height - margin)):
        draw.text((margin - 4, place), f"{loss:.3g}", fill="black", anchor="rm")
    for step, place in ((steps[0], margin), (steps[-1], width - margin)):
        draw.text((place, height - margin + 6), f"{step:,.0f}", fill="black", anchor="mt")
    draw.text((width // 2, height - margin + 6), "step", fill="black", anchor="mt")
    draw.text((width // 2, margin // 2), "training loss", fill="black", anchor="mm")
    return picture


def _enlarged(size: tuple[int, int], min_side: int) -> tuple[int, int]:
    """(Width, height) times the least whole factor that brings the shorter side to `min_side`."""
    factor = max(math.ceil(min_side / min(size)), 1)
    return size[0] * factor, size[1] * factor


def _sheet(
    triples: list[tuple[PIL.Image.Image, ...]], titles: tuple[str, ...], size: tuple[int, int], columns: int
) -> PIL.Image.Image:
    """Three pictures of each image beside each other, at `size` (width, height), under their titles."""
    width, height = size
    columns = min(columns, len(triples))
    step_x, step_y = 3 * (width + _MARGIN) + 3 * _MARGIN, height + _MARGIN
    sheet_size = (columns * step_x - 3 * _MARGIN, _HEADING + math.ceil(len(triples) / columns) * step_y)
    sheet = PIL.Image.new("RGB", sheet_size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, triple in enumerate(triples):
        row, column = divmod(number, columns)
        for place, (picture, title) in enumerate(zip(triple, titles, strict=True)):
            x = column * step_x + place * (width + _MARGIN)
            if row == 0:
                draw.text((x + 2, 2), title, fill="black")
            picture = picture.convert("RGB").resize(size, PIL.Image.Resampling.NEAREST)
            sheet.paste(picture, (x, _HEADING + row * step_y))
    return sheet


__all__ = ["attention_rollout", "attention_sheet", "loss_curve", "reconstruction_sheet"]
