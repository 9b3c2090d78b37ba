# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Figures of segmentation, and pictures next to their masks and predictions."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from transformers import UperNetForSemanticSegmentation

from ..data.masks import IGNORED, SegmentationDataset
from ..data.sampling import evenly_spaced
from .visualization import drawable_names


class ConfusionMatrix:
    """Counts pixels by true class (rows) and predicted class (columns)."""

    def __init__(self, num_labels: int, device: torch.device | str = "cpu"):
        """
        Args:
            num_labels (`int`): Number of classes.
            device (`torch.device`, *optional*, defaults to `"cpu"`): Where the pixels are.
        """
        self.matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)

    def add(self, predicted: torch.Tensor, true: torch.Tensor):
        """Adds pixels.

        Args:
            predicted, true (`torch.Tensor` of int64, of the same shape): Their classes; 255 does not count.
        """
        num_labels = len(self.matrix)
        counted = true != IGNORED
        # Where pixels don't count, the last place: choosing the others would wait for the device.
        places = torch.where(counted, true * num_labels + predicted, num_labels**2).ravel()
        counts = places.new_zeros(num_labels**2 + 1).scatter_add_(0, places, torch.ones_like(places))
        self.matrix += counts[:-1].reshape(num_labels, -1)

    def figures(self) -> tuple[dict[str, float], torch.Tensor]:
        """Returns mean IoU and pixel accuracy, and the IoU of each class, see [`intersection_over_union`]."""
        matrix = self.matrix.double().cpu()
        iou = intersection_over_union(matrix)
        return {"mean_iou": iou.nanmean().item(), "pixel_accuracy": (matrix.trace() / matrix.sum()).item()}, iou


def intersection_over_union(matrix: torch.Tensor) -> torch.Tensor:
    """Returns of each class: pixels in truth and prediction over pixels in either; NaN if it is in neither.

    Args:
        matrix (`torch.Tensor` of shape `(classes, classes)`): Counts by true and predicted class.
    """
    both = matrix.diagonal()
    return both / (matrix.sum(dim=0) + matrix.sum(dim=1) - both)


def _palette() -> np.ndarray:
    """Returns the colours of PASCAL VOC (256, 3): black, dark red, dark green, ...; what does not count is white."""
    bits = (np.arange(256)[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3))) & 1  # (256, 8, 3)
    palette = (bits << np.arange(7, -1, -1)[:, None]).sum(axis=1).astype(np.uint8)
    palette[IGNORED] = 255
    return palette


@torch.no_grad()
def segmentation_sheet(
    model: UperNetForSemanticSegmentation, dataset: SegmentationDataset, names: list[str], count: int = 8
) -> PIL.Image.Image:
    """Draws images next to their masks and to what the model predicts, two in a row, and a legend.

    Args:
        model ([`~transformers.UperNetForSemanticSegmentation`]): The model.
        dataset ([`SegmentationDataset`]): Images, spread over which some are drawn.
        names (`list[str]`): Names of the classes.
        count (`int`, *optional*, defaults to 8): Number of images.
    """
    palette = _palette()
    samples = [dataset[index] for index in evenly_spaced(len(dataset), count).tolist()]
    pixel_values = torch.stack([sample["pixel_values"] for sample in samples])
    predicted = model.eval()(pixel_values.to(model.device)).logits.argmax(dim=1).cpu()
    images = dataset.image_processor.post_process_reconstruction(pixel_values)
    factor = max(round(128 / min(images[0].size)), 1)
    width, height = (side * factor for side in images[0].size)
    sheet = PIL.Image.new("RGB", (6 * width + 40, (len(samples) + 1) // 2 * (height + 4) + 40), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, (image, sample, classes) in enumerate(zip(images, samples, predicted, strict=True)):
        maps = [PIL.Image.fromarray(palette[values.numpy()]) for values in (sample["labels"], classes)]
        for place, (part, title) in enumerate(zip((image, *maps), ("image", "truth", "prediction"), strict=True)):
            x, y = number % 2 * (3 * width + 28) + place * (width + 4), 20 + number // 2 * (height + 4)
            sheet.paste(part.convert("RGB").resize((width, height), PIL.Image.Resampling.NEAREST), (x, y))
            draw.text((x + 2, 4), title if number < 2 else "", fill="black")
    x, y = 2, sheet.height - 16
    for name, colour in zip(drawable_names(names), palette.tolist(), strict=False):  # more classes may not fit
        draw.rectangle((x, y, x + 10, y + 10), fill=tuple(colour))
        draw.text((x + 14, y), name, fill="black")
        x += 28 + int(draw.textlength(name))
    return sheet


__all__ = ["ConfusionMatrix", "intersection_over_union", "segmentation_sheet"]
