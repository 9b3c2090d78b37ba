# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Figures of classifiers: accuracy by class, mean average precision, F1, errors of numbers; a picture of confusions."""

import numpy as np
import PIL.Image
import PIL.ImageDraw

from .visualization import drawable_names

_MAX_CLASSES_DRAWN = 40


def accuracy_figures(predicted: np.ndarray, labels: np.ndarray, num_labels: int) -> dict[str, float]:
    """Returns `accuracy`, `top5_accuracy` and `balanced_accuracy`, the mean over the classes that occur.

    Args:
        predicted (`np.ndarray` of shape `(images, k)`): Most probable classes, the most probable first.
        labels (`np.ndarray` of shape `(images,)`): Classes.
        num_labels (`int`): Number of classes.
    """
    correct = predicted == labels[:, None]
    by_class = accuracy_by_class(confusion_matrix(predicted[:, 0], labels, num_labels))
    return {
        "accuracy": correct[:, 0].mean().item(),
        "top5_accuracy": correct[:, :5].any(axis=1).mean().item(),
        "balanced_accuracy": np.nanmean(by_class).item(),
    }


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts images by true class (rows) and predicted class (columns)."""
    counts = np.bincount(labels * num_labels + predicted, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def accuracy_by_class(matrix: np.ndarray) -> np.ndarray:
    """Returns the share of the images of each class that are found, NaN for a class without images."""
    counts = matrix.sum(axis=1)
    return np.where(counts > 0, matrix.diagonal() / np.maximum(counts, 1), np.nan)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the area under precision over recall: the mean precision at the rank of each image that has the label.

    Images of equal score share a rank. Source: the non-interpolated definition, Manning et al. 2008, section 8.4.

    Args:
        scores (`np.ndarray` of shape `(images,)`): Greater means more probable.
        labels (`np.ndarray` of shape `(images,)`): 0 or 1. NaN if there is no 1.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(labels[order])
    last_of_rank = np.append(scores[1:] != scores[:-1], True)
    hits, ranks = hits[last_of_rank], np.flatnonzero(last_of_rank) + 1
    if len(hits) == 0 or hits[-1] == 0:
        return float("nan")
    return float((np.diff(hits, prepend=0) * hits / ranks).sum() / hits[-1])


def multi_label_figures(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns `mean_average_precision` over the classes that occur, `f1` over all decisions, and its mean over classes.

    Args:
        scores (`np.ndarray` of shape `(images, classes)`): Probabilities; above 0.5 a class counts as predicted.
        labels (`np.ndarray` of shape `(images, classes)`): 0 or 1.
    """
    precisions = average_precisions(scores, labels)
    predicted, true = scores > 0.5, labels > 0.5
    hits, total = (predicted & true).sum(axis=0), predicted.sum(axis=0) + true.sum(axis=0)
    by_class = np.where(total > 0, 2 * hits / np.maximum(total, 1), np.nan)
    return {
        "mean_average_precision": _mean(precisions),
        "f1": float(2 * hits.sum() / max(total.sum(), 1)),
        "f1_by_class": _mean(by_class),
    }


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns [`average_precision`] of each class, for arrays of shape `(images, classes)`."""
    return np.array([average_precision(scores[:, index], labels[:, index]) for index in range(labels.shape[1])])


def regression_figures(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns `mae`, the mean absolute error, and `r2`, the share of the variance that is explained.

    Args:
        predicted, labels (`np.ndarray` of shape `(images, values)`): Numbers. With several values the mean over them.
    """
    errors = np.abs(predicted - labels).mean(axis=0)
    residual, total = ((predicted - labels) ** 2).sum(axis=0), ((labels - labels.mean(axis=0)) ** 2).sum(axis=0)
    r2 = np.where(total > 0, 1 - residual / np.maximum(total, 1e-30), np.nan)
    return {"mae": _mean(errors), "r2": _mean(r2)}


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def confusion_sheet(matrix: np.ndarray, names: list[str]) -> PIL.Image.Image:
    """Draws a confusion matrix: rows are true classes, columns predicted ones, dark is a large share of the row.

    Args:
        matrix (`np.ndarray` of shape `(classes, classes)`):
            Counts, see [`confusion_matrix`]. If there are many classes, the most frequent ones are drawn.
        names (`list[str]`): Names of the classes.
    """
    chosen = np.sort(np.argsort(-matrix.sum(axis=1), kind="stable")[:_MAX_CLASSES_DRAWN])
    names = drawable_names(names)
    matrix, names = matrix[np.ix_(chosen, chosen)], [names[index] for index in chosen]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    measure = PIL.ImageDraw.Draw(PIL.Image.new("L", (1, 1)))
    margin = int(max(measure.textlength(name) for name in names)) + 12
    cell, title = 36, "true \\ predicted"
    side = margin + cell * len(names) + 4
    above = margin + 18  # the title has a line of its own, since few short names leave no room beside them
    sheet = PIL.Image.new("RGB", (max(side, int(measure.textlength(title)) + 8), side + 18), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((4, 4), title, fill="black")
    for row, name in enumerate(names):
        draw.text((margin - 6, above + cell * (row + 0.5)), name, fill="black", anchor="rm")
        _draw_upright(sheet, name, (margin + cell * row + cell // 2, above - 6))
        for column, share in enumerate(shares[row]):
            x, y = margin + cell * column, above + cell * row
            shade = round(255 * (1 - share))
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=(shade, shade, 255 - (255 - shade) // 3))
            if matrix[row, column]:
                colour = "white" if share > 0.6 else "black"
                text = str(matrix[row, column])
                draw.text((x + cell / 2 - 1, y + cell / 2 - 1), text, fill=colour, anchor="mm")
    return sheet


def _draw_upright(sheet: PIL.Image.Image, text: str, foot: tuple[int, int]):
    """Writes a text from bottom to top; it ends at its foot."""
    width = int(PIL.ImageDraw.Draw(sheet).textlength(text)) + 2
    strip = PIL.Image.new("RGB", (width, 14), "white")
    PIL.ImageDraw.Draw(strip).text((0, 1), text, fill="black")
    sheet.paste(strip.rotate(90, expand=True), (foot[0] - 7, foot[1] - width))


__all__ = [
    "accuracy_by_class",
    "accuracy_figures",
    "average_precision",
    "average_precisions",
    "confusion_matrix",
    "confusion_sheet",
    "multi_label_figures",
    "regression_figures",
]
