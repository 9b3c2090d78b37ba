# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Draws the log of a run: one picture to leave open, and the curve of its loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

_COLORS = {"evaluation": "#d55e00", "k-NN": "#d55e00"}  # by curve, others are navy: colours that all eyes tell apart
_FINER = 2  # pictures are drawn in twice their size and reduced, which makes lines and letters smooth
_FONT, _TITLE = 13, 16  # pixels
_SHEET = 480  # pixels of a sheet below, at most
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 150, 34, 26  # pixels around a plot: ticks, labels, title, ticks


@dataclass
class Panel:
    """A plot: curves over steps, and constants as dashed lines. Each has its name and newest value at its right end."""

    title: str
    curves: dict[str, list[tuple[float, float]]]  # by name: (step, value) in ascending order of steps
    constants: dict[str, float] = field(default_factory=dict)
    low: float | None = None  # the lower end of the axis; by default the lowest value
    highest: float = math.inf  # points above it are drawn at it
    unit: str = ""

    def limits(self) -> tuple[float, float]:
        """Returns the lowest and the highest value, with some room."""
        values = [min(value, self.highest) for points in self.curves.values() for _, value in points]
        values += self.constants.values()
        low, high = min(values) if self.low is None else self.low, max(values)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1
        return low - (room if self.low is None else 0), high + room


def progress_picture(
    lines: Sequence[Mapping[str, float]], sheet: PIL.Image.Image | None = None, width: int = 1200
) -> PIL.Image.Image:
    """Draws the loss, the effective rank, twin retrieval and k-NN of a run over its steps, and a sheet below.

    Args:
        lines (`Sequence[Mapping[str, float]]`): Lines of `metrics.jsonl`, each with `step`. What is missing or not
            finite is left out, and a panel without any point says so. Losses of more than twice their median are
            drawn at the upper end, so that a spike leaves the rest readable.
        sheet (`PIL.Image.Image`, *optional*): The newest sheet. A wider one is reduced, and of a long one only the
            first rows are shown, so that the whole fits on a screen.
        width (`int`, *optional*, defaults to 1200): Pixels of the picture, at least 800.
    """
    head, height = 34, 440
    canvas = _Canvas(width, head + height)
    last = {name: value for line in lines for name, value in line.items()}
    epoch = f", epoch {last['epoch']:.4g}" if "epoch" in last else ""
    canvas.text((12, 10), f"Step {last.get('step', 0):,.0f}{epoch}", size=_TITLE)
    steps = [line["step"] for line in lines if "step" in line]
    ends = (min(steps), max(steps)) if steps else (0, 0)
    middle, half = round(0.56 * width), height // 2
    canvas.panel((0, head, middle, head + height), _loss_panel(lines), ends)
    rank = Panel("Effective rank of the features", _curves(lines, {"effective_rank": "rank"}), low=0)
    canvas.panel((middle, head, width, head + half), rank, ends)
    found = _curves(lines, {"twin_retrieval": "twins", "knn_accuracy": "k-NN"}, factor=100)
    names = " and ".join({"twins": "Twins found", "k-NN": "k-NN accuracy"}[name] for name in found) or "Twins found"
    canvas.panel((middle, head + half, width, head + height), Panel(names, found, low=0, unit=" %"), ends)
    picture = canvas.reduced()
    return picture if sheet is None else _above(picture, sheet)


def loss_curve(points: Sequence[tuple[float, float]], size: tuple[int, int] = (640, 320)) -> PIL.Image.Image:
    """Draws a training loss over steps.

    Args:
        points (`Sequence[tuple[float, float]]`): Steps in ascending order and losses.
        size (`(width, height)`, *optional*, defaults to `(640, 320)`): Pixels.
    """
    canvas = _Canvas(*size)
    panel = _loss_panel([{"step": step, "loss": loss} for step, loss in points])
    canvas.panel((0, 0, *size), panel, (points[0][0], points[-1][0]))
    return canvas.reduced()


def _loss_panel(lines: Sequence[Mapping[str, float]]) -> Panel:
    curves = _curves(lines, {"loss": "training", "eval_loss": "evaluation"})
    names = {
        "eval_loss_constant": "constant",
        "eval_loss_visible_mean": "visible mean",
        "eval_loss_interpolation": "interpolation",
    }
    constants = {name: points[-1][1] for name, points in _curves(lines, names).items()}
    medians = [float(np.median([value for _, value in points])) for points in curves.values()]
    # Losses of targets other than pixels may be negative.
    highest = max([*(median + abs(median) for median in medians), *constants.values()], default=math.inf)
    title = "Loss; dashed: predictors that have learnt nothing" if constants else "Loss"
    return Panel(title, curves, constants, highest=highest)


def _curves(
    lines: Sequence[Mapping[str, float]], names: Mapping[str, str], factor: float = 1
) -> dict[str, list[tuple[float, float]]]:
    """Returns the finite points of each kind of value that has any, by its name in the picture."""
    curves = {}
    for key, name in names.items():
        points = [(line["step"], line[key]) for line in lines if "step" in line and line.get(key) is not None]
        if points := [(step, factor * value) for step, value in points if math.isfinite(value)]:
            curves[name] = points
    return curves


def _above(picture: PIL.Image.Image, sheet: PIL.Image.Image) -> PIL.Image.Image:
    """Puts a picture above a sheet, which is reduced if it is wider, and cut between two rows if it is long."""
    margin = 12
    room = picture.width - 2 * margin
    if sheet.width > room:
        sheet = sheet.resize((room, max(round(sheet.height * room / sheet.width), 1)), PIL.Image.Resampling.LANCZOS)
    if sheet.height > _SHEET:
        empty = np.flatnonzero(np.array(sheet.convert("L"))[1:_SHEET].min(axis=1) > 250)  # lines of white
        sheet = sheet.crop((0, 0, sheet.width, empty[-1] + 1 if len(empty) > 0 else _SHEET))
    whole = PIL.Image.new("RGB", (picture.width, picture.height + sheet.height + 2 * margin), "white")
    whole.paste(picture, (0, 0))
    whole.paste(sheet, ((picture.width - sheet.width) // 2, picture.height + margin))
    return whole


class _Canvas:
    """A white picture on which panels are drawn; positions are in pixels of the reduced picture."""

    def __init__(self, width: int, height: int):
        self.picture = PIL.Image.new("RGB", (width * _FINER, height * _FINER), "white")
        self.draw = PIL.ImageDraw.Draw(self.picture)

    def reduced(self) -> PIL.Image.Image:
        return self.picture.reduce(_FINER)

    def text(self, place: tuple[float, float], text: str, color: str = "black", anchor: str = "la", size: int = _FONT):
        place = (place[0] * _FINER, place[1] * _FINER)
        self.draw.text(place, text, fill=color, anchor=anchor, font=_font(size * _FINER))

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1):
        points = [(x * _FINER, y * _FINER) for x, y in points]
        self.draw.line(points, fill=color, width=round(width * _FINER), joint="curve")

    def dashes(self, left: float, right: float, y: float, color: str, dash: float = 6):
        for start in np.arange(left, right, 2 * dash):
            self.line([(start, y), (min(start + dash, right), y)], color)

    def dot(self, x: float, y: float, color: str, radius: float = 3):
        self.draw.ellipse([each * _FINER for each in (x - radius, y - radius, x + radius, y + radius)], fill=color)

    def panel(self, box: tuple[int, int, int, int], panel: Panel, ends: tuple[float, float]):
        """Draws a panel into a box (left, top, right, bottom), with steps from the first to the last of `ends`."""
        left, top, right, bottom = box[0] + _LEFT, box[1] + _TOP, box[2] - _RIGHT, box[3] - _BOTTOM
        self.text((left, top - 10), panel.title, anchor="ls", size=14)
        if not panel.curves:
            self.draw.rectangle([each * _FINER for each in (left, top, right, bottom)], outline="#cccccc")
            self.text(((left + right) / 2, (top + bottom) / 2), "not measured yet", "gray", "mm")
            return
        low, high = panel.limits()
        scale_x = (right - left) / max(ends[1] - ends[0], 1)
        scale_y = (bottom - top) / (high - low)
        self._axes((left, top, right, bottom), (low, high), ends)
        labels = []
        for name, value in panel.constants.items():
            y = bottom - (value - low) * scale_y
            self.dashes(left, right, y, "dimgray")
            labels.append((y, f"{name} {value:.3g}{panel.unit}", "dimgray"))
        for name, points in panel.curves.items():
            color = _COLORS.get(name, "navy")
            shown = [(step, min(value, panel.highest)) for step, value in points]
            places = [(left + (step - ends[0]) * scale_x, bottom - (value - low) * scale_y) for step, value in shown]
            places = _thinned(places)
            if len(places) > 1:
                self.line(places, color, 2)
            self.dot(*places[-1], color)
            labels.append((places[-1][1], f"{name} {points[-1][1]:.3g}{panel.unit}", color))
        for y, text, color in _spread(labels, top, bottom):
            self.text((right + 8, y), text, color, "lm")

    def _axes(self, box: tuple[int, int, int, int], limits: tuple[float, float], ends: tuple[float, float]):
        """Draws the axes of a plot and lines at round values."""
        left, top, right, bottom = box
        for value in round_values(*limits, count=max((bottom - top) // 35, 2)):
            y = bottom - (value - limits[0]) / (limits[1] - limits[0]) * (bottom - top)
            self.line([(left, y), (right, y)], "#e4e4e4")
            self.text((left - 6, y), f"{value:.10g}", "dimgray", "rm")
        steps = round_values(*ends, count=max((right - left) // 90, 2)) if ends[1] > ends[0] else ends[:1]
        for step in (step for step in steps if step == round(step)):  # of two steps there is no half one
            x = left + (step - ends[0]) / max(ends[1] - ends[0], 1) * (right - left)
            self.line([(x, bottom), (x, bottom + 4)], "gray")
            self.text((x, bottom + 7), _short(step), "dimgray", "ma")
        self.line([(left, top), (left, bottom), (right, bottom)], "gray")


@cache
def _font(size: int):
    return PIL.ImageFont.load_default(size)


def round_values(low: float, high: float, count: int) -> list[float]:
    """Returns the multiples of 1, 2 or 5 times a power of ten between two values, at most `count + 1` of them."""
    exact = (high - low) / count
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= exact * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _short(step: float) -> str:
    """Writes a step: 500, 12k, 1.5M."""
    if step >= 1e6:
        return f"{step / 1e6:.4g}M"
    return f"{step / 1e3:.4g}k" if step >= 1e4 else f"{step:,.0f}"


def _thinned(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Averages places (x, y) that share two pixels of x; the last one stays as it is."""
    x, y = np.array(places[:-1]).reshape(-1, 2).T
    _, group, counts = np.unique(x // 2, return_inverse=True, return_counts=True)
    means = (np.bincount(group, each) / counts for each in (x, y))
    return [*zip(*(mean.tolist() for mean in means), strict=True), places[-1]]


def _spread(labels: list[tuple[float, str, str]], top: float, bottom: float) -> list[tuple[float, str, str]]:
    """Moves labels (y, text, colour) apart where they would overlap, and into the plot."""
    labels, height = sorted(labels), _FONT + 3
    places = []
    for y, _, _ in labels:
        places.append(max(y, places[-1] + height if places else top))
    limit = bottom
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - height
    return [(y, text, color) for y, (_, text, color) in zip(places, labels, strict=True)]


__all__ = ["Panel", "loss_curve", "progress_picture", "round_values"]
