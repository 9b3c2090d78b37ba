# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Lists settings of images that several commands share."""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg


@dataclass
class ColumnSettings:
    """Images."""

    image_column: str | None = HfArg(
        default=None, help="Column with the images. Default: image, img, pixel_values or the only one."
    )
    dataset_config: str | None = HfArg(default=None, help="Configuration of a data set on the Hub that has several.")


@dataclass
class HeldOutSettings:
    """Held-out images, where the data have no second split."""

    held_out: float | None = HfArg(
        default=None,
        help="Share of the images, at most 1,000, kept back to evaluate on, by a hash of their names. Default: a "
        "hundredth, of few images more: 300 or a tenth.",
    )
    group_by: str | None = HfArg(
        default=None, help="What is kept back as a whole: folder, or a column of the data such as patient or scene."
    )


@dataclass
class StoredValueSettings:
    """How stored values are read (saved in the image processor). Default: as the checkpoint says."""

    value_range: list[float] | None = HfArg(
        default=None, help="Two values that become black and white. Without a checkpoint: the type's range."
    )
    bands: list[int] | None = HfArg(
        default=None, help="Bands that become channels, counted from 1. Without a checkpoint: all."
    )
    nodata: float | None = HfArg(
        default=None,
        help="Stored value without data, in place of the one that files declare. A value within the range of the data "
        "means it only where all bands have it.",
    )
    pages: Literal["first", "channels", "images"] | None = HfArg(
        default=None, help="What the pages of a file are. Without a checkpoint files of several pages are refused."
    )


__all__ = [
    "ColumnSettings",
    "HeldOutSettings",
    "StoredValueSettings",
]
