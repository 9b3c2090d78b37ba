# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Average precision of detected boxes, as COCO measures it, and a sheet of them next to the truth."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
from transformers import EvalPrediction

from ..data.boxes import BoxedImages
from .visualization import drawable_names

_COLOURS = ("red", "lime", "deepskyblue", "orange", "magenta", "yellow", "cyan", "white", "violet", "salmon")


def check_libraries():
    """Raises `ImportError`, with the way out, if a library is missing that detection needs."""
    try:
        import faster_coco_eval  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Detection needs scipy, to match boxes, and faster-coco-eval, for the figures ({error}): "
            'pip install "hf-mae[detect]".'
        ) from error


class BoxFigures:
    """Collects detected boxes batch by batch, as Trainer asks for it, and computes their average precision.

    The average precision (AP) of a class is the area below its curve of precision over recall, interpolated at 101
    recalls, with at most 100 boxes of an image. A detection is right if it overlaps with a box of its class by an
    intersection over union of at least a threshold, and that box is not taken by one with a higher score. mAP is the
    mean over the classes that occur and over ten thresholds, 0.5 to 0.95. Source: the COCO evaluation
    (cocodataset.org/#detection-eval), by faster-coco-eval. Boxes are in pixels of the pictures.
    """

    def __init__(self, boxed: BoxedImages):
        """
        Args:
            boxed ([`BoxedImages`]): The truth.
        """
        self.boxed = boxed
        self.found: dict[int, np.ndarray] = {}
        self.by_class: np.ndarray | None = None

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Adds a batch. At the last one it returns the figures and starts anew.

        Args:
            prediction ([`~transformers.EvalPrediction`]): `predictions` `(batch, boxes, 6)`: score, class, and left,
                top, right and bottom in shares of the picture; `label_ids` `(batch,)`, the indices of the images.
            compute_result (`bool`): Whether it is the last one.
        """
        predictions, indices = (np.asarray(part.cpu()) for part in (prediction.predictions, prediction.label_ids))
        self.found.update(zip(indices.reshape(-1).tolist(), predictions, strict=True))
        if not compute_result:
            return {}
        found, self.found = self.found, {}
        overall, self.by_class = average_precision(self.boxed, found)
        return overall


def average_precision(boxed: BoxedImages, found: dict[int, np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
    """Returns mAP, mAP50 and mAP75, and the AP of each class, NaN for those that do not occur; see [`BoxFigures`].

    Args:
        boxed ([`BoxedImages`]): The truth.
        found (`dict[int, np.ndarray]`): By the index of the image `(boxes, 6)`: score, class, left, top, right, bottom,
            in shares of the picture.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if not boxed.counts.any():
        return dict.fromkeys(("map", "map50", "map75"), 0.0), np.full(len(boxed.names), np.nan)
    truth = COCO(_as_coco(boxed, sorted(found)))
    rows = [row for index, boxes in found.items() for row in _rows(index, boxes, boxed.boxes[index].size)]
    if not rows:
        by_class = np.where(boxed.counts > 0, 0.0, np.nan)
        return dict.fromkeys(("map", "map50", "map75"), 0.0), by_class
    evaluation = COCOeval_faster(truth, truth.loadRes(rows), "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]  # (thresholds, recalls, classes), of all sizes, 100 boxes
    precision = np.where(precision < 0, np.nan, precision).mean(axis=1)  # -1: the class does not occur
    figures = {"map": precision, "map50": precision[0], "map75": precision[5]}
    return {name: float(np.nanmean(values)) for name, values in figures.items()}, precision.mean(axis=0)


def _as_coco(boxed: BoxedImages, indices: Sequence[int]) -> dict:
    """Returns the truth of some images in COCO's format. Ids of boxes count from 1, as 0 means no match."""
    annotations = []
    for index in indices:
        boxes = boxed.boxes[index]
        corners = boxes.corners.astype(np.float64) * np.tile(boxes.size, 2)
        for box, label, crowd in zip(corners, boxes.classes.tolist(), boxes.crowd.tolist(), strict=True):
            sides = (box[2:] - box[:2]).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": label,
                    "bbox": [*box[:2].tolist(), *sides],
                    "area": sides[0] * sides[1],
                    "iscrowd": int(crowd),
                }
            )
    sizes = [
        {"id": index, "width": boxed.boxes[index].size[0], "height": boxed.boxes[index].size[1]} for index in indices
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(boxed.names)]
    return {"images": sizes, "annotations": annotations, "categories": categories, "info": {}, "licenses": []}


def _rows(index: int, boxes: np.ndarray, size: tuple[int, int]) -> list[dict]:
    pixels = boxes[:, 2:].astype(np.float64) * np.tile(size, 2)
    pixels[:, 2:] -= pixels[:, :2]
    return [
        {"image_id": index, "category_id": int(label), "bbox": box, "score": float(score)}
        for (score, label), box in zip(boxes[:, :2].tolist(), pixels.tolist(), strict=True)
    ]


def detection_sheet(
    pictures: Sequence[PIL.Image.Image],
    truth: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    names: list[str],
    threshold: float = 0.4,
) -> PIL.Image.Image:
    """Draws pictures with their true boxes next to the same pictures with detected ones, two in a row.

    Args:
        pictures (`Sequence[PIL.Image.Image]`): All of one size.
        truth (`Sequence[np.ndarray]`): Of each picture `(boxes, 5)`: class, left, top, right and bottom in shares.
        found (`Sequence[np.ndarray]`): Of each picture `(boxes, 6)`: a score before these.
        names (`list[str]`): Names of the classes.
        threshold (`float`, *optional*, defaults to 0.4): Lowest score that is drawn.
    """
    names = drawable_names(names)
    factor = max(round(256 / max(pictures[0].size)), 1)
    width, height = (side * factor for side in pictures[0].size)
    sheet = PIL.Image.new("RGB", (4 * width + 28, (len(pictures) + 1) // 2 * (height + 4) + 20), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, (picture, true, detected) in enumerate(zip(pictures, truth, found, strict=True)):
        large = picture.convert("RGB").resize((width, height), PIL.Image.Resampling.NEAREST)
        detected = detected[detected[:, 0] >= threshold]
        scored = np.concatenate([np.full((len(true), 1), np.nan), true], axis=1)
        for place, (boxes, title) in enumerate(((scored, "truth"), (detected, f"found, score from {threshold:g}"))):
            x, y = number % 2 * (2 * width + 20) + place * (width + 4), 20 + number // 2 * (height + 4)
            sheet.paste(_with_boxes(large, boxes, names), (x, y))
            draw.text((x + 2, 4), title if number < 2 else "", fill="black")
    return sheet


def _with_boxes(picture: PIL.Image.Image, boxes: np.ndarray, names: list[str]) -> PIL.Image.Image:
    picture = picture.copy()
    draw = PIL.ImageDraw.Draw(picture)
    for score, label, *corners in boxes[::-1]:  # the best on top
        colour = _COLOURS[int(label) % len(_COLOURS)]
        left, top, right, bottom = (np.array(corners) * np.tile(picture.size, 2)).tolist()
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        text = names[int(label)] if np.isnan(score) else f"{names[int(label)]} {score:.2f}"
        where = left + 3, max(top, 0) + 2
        draw.rectangle(draw.textbbox(where, text), fill="black")
        draw.text(where, text, fill=colour)
    return picture


__all__ = ["BoxFigures", "average_precision", "check_libraries", "detection_sheet"]
