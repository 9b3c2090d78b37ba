# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What the settings of heads on our encoder have in common: the forms that Python code may give them in, and checks."""

import os
from collections.abc import Mapping

from .arguments import read_class_names


def settle_head(args):
    """Brings settings into the form that a command gives them in, and refuses those that make no sense.

    Paths become texts, an `image_size` of one number a list, and so do `class_names` of a text or a mapping.

    Args:
        args ([`SegmentationArguments`] or [`DetectionArguments`]): The settings, which are changed.

    Raises:
        ValueError: If the model is missing, or a size, a scale or the names of classes make no sense.
        OSError: If there is no file with the names.
    """
    for name in ("data", "model_name_or_path", "output_dir"):
        if getattr(args, name) is not None:
            setattr(args, name, os.fspath(getattr(args, name)))
    if not (args.model_name_or_path or args.preset):
        raise ValueError(
            "`model_name_or_path` is missing: a folder or a name on the Hub with a model of hf_mae. Without any "
            "pre-training set `preset` to tiny, small, base, large or huge."
        )
    if args.image_size is not None:
        sides = [args.image_size] if isinstance(args.image_size, int) else list(args.image_size)
        if len(sides) not in (1, 2) or min(sides) < 1:
            raise ValueError(f"`image_size` must be a side, or height and width, in pixels, got {args.image_size}.")
        args.image_size = sides
    if not 0 < args.min_scale <= args.max_scale:
        raise ValueError(f"`min_scale` {args.min_scale} must be positive and at most `max_scale` {args.max_scale}.")
    args.class_names = read_class_names(_listed(args.class_names))


def _listed(names: str | os.PathLike | Mapping | list | tuple | None) -> list[str] | None:
    """Returns the names of the classes 0, 1, ... in a list; of a mapping by these numbers, as in `id2label`."""
    if isinstance(names, str | os.PathLike):
        return [os.fspath(names)]
    if isinstance(names, Mapping):
        numbers = sorted(map(int, names))
        if numbers != list(range(len(names))):
            raise ValueError(f"`class_names` must name the classes 0, 1, ..., got {', '.join(map(str, numbers))}.")
        return [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    return None if names is None else list(names)


__all__ = ["settle_head"]
