# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What the settings of heads on our encoder have in common, beyond what all fine-tuning has."""

from .arguments import read_class_names


def settle_head(args):
    """Reads `class_names` from a file if one is named, and refuses settings that make no sense.

    Args:
        args ([`SegmentationArguments`] or [`DetectionArguments`]): The settings, which are changed.

    Raises:
        ValueError: If the model is missing, or a size, a scale or the names of classes make no sense.
        OSError: If there is no file with the names.
    """
    if not (args.model_name_or_path or args.preset):
        raise ValueError(
            "`model_name_or_path` is missing: a folder or a name on the Hub with a model of hf_mae. Without any "
            "pre-training set `preset` to tiny, small, base, large or huge."
        )
    if args.image_size is not None and (len(args.image_size) not in (1, 2) or min(args.image_size) < 1):
        raise ValueError(f"`image_size` must be a side, or height and width, in pixels, got {args.image_size}.")
    if not 0 < args.min_scale <= args.max_scale:
        raise ValueError(f"`min_scale` {args.min_scale} must be positive and at most `max_scale` {args.max_scale}.")
    args.class_names = read_class_names(args.class_names)


__all__ = ["settle_head"]
