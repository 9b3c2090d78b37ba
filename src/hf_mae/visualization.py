# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Sheets of pictures: original | masked | reconstruction."""

import math

import PIL.Image
import PIL.ImageDraw
import torch

from .image_processing_mae import MAEImageProcessor
from .modeling_mae import MAEForPreTraining

_MARGIN, _HEADING = 4, 16  # pixels


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
    factor = max(math.ceil(min_side / min(triples[0][0].size)), 1)
    width, height = (side * factor for side in triples[0][0].size)
    columns = min(columns, len(triples))
    step_x, step_y = 3 * (width + _MARGIN) + 3 * _MARGIN, height + _MARGIN
    size = (columns * step_x - 3 * _MARGIN, _HEADING + math.ceil(len(triples) / columns) * step_y)
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, triple in enumerate(triples):
        row, column = divmod(number, columns)
        for place, (picture, title) in enumerate(zip(triple, ("original", "masked", "reconstruction"), strict=True)):
            x = column * step_x + place * (width + _MARGIN)
            if row == 0:
                draw.text((x + 2, 2), title, fill="black")
            picture = picture.convert("RGB").resize((width, height), PIL.Image.Resampling.NEAREST)
            sheet.paste(picture, (x, _HEADING + row * step_y))
    return sheet


__all__ = ["reconstruction_sheet"]
