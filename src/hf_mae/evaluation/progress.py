# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Draws the log of a run: one picture to leave open, and the curve of its loss."""

from collections.abc import Mapping, Sequence

import PIL.Image


def progress_picture(
    lines: Sequence[Mapping[str, float]], sheet: PIL.Image.Image | None = None, width: int = 1200
) -> PIL.Image.Image:
    """Draws the loss, the effective rank, twin retrieval and k-NN of a run over its steps, and a sheet below.

    Args:
        lines (`Sequence[Mapping[str, float]]`): Lines of `metrics.jsonl`, each with `step`. What is missing or not
            finite is left out, and a panel without any point says so.
        sheet (`PIL.Image.Image`, *optional*): The newest sheet. A wider one is scaled down.
        width (`int`, *optional*, defaults to 1200): Pixels of the picture.
    """
    raise NotImplementedError


__all__ = ["progress_picture"]
