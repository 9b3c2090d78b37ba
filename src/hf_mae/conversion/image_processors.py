# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Image processors of other implementations: ours from what lies next to their weights, and theirs from ours."""

import math
import os
from pathlib import Path

from transformers.utils import cached_file, logging

from ..modeling.configuration_mae import MAEConfig, height_width
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.loading_mae import OF_TRANSFORMERS
from ..publishing.records import write_json
from .files import read_json
from .names import PIXIO_LAYOUTS

logger = logging.get_logger(__name__)

_STEPS = ("do_rescale", "rescale_factor", "do_normalize")
_FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # that our image processor has: names of timm, numbers of PIL
# How files are read: what image processors of transformers, which are given 8-bit RGB, have no settings for.
_READING = ("value_range", "bands", "nodata", "pages")


def find_image_processor(source: str | os.PathLike, layout: str, config: MAEConfig) -> MAEImageProcessor:
    """Returns the image processor of a checkpoint of hf_mae, or one with the numbers that are next to the weights.

    Where there is no mean, that of ImageNet is taken, and the log says so. A crop that is stated is taken with its size
    and filter: one of transformers' image processors, or timm's `crop_pct` and `crop_mode`. Otherwise the central part
    of an image is cropped, as the official MAE code does, or the image is resized as a whole for Pixio, and for a ViT
    of transformers whose image processor does that.

    Args:
        source (`str` or `os.PathLike`): File, folder or name on the Hub of the weights.
        layout (`str`): See [`hf_mae.conversion.detect_layout`].
        config ([`MAEConfig`]): Says the sizes.
    """
    folder = os.fspath(Path(source).parent if Path(source).is_file() else source)
    stated, of_model = (_read(folder, name) for name in ("preprocessor_config.json", "config.json"))
    if layout == "mae" and "image_processor_type" in stated:
        return _of_hf_mae(folder, config)
    options = {name: stated[name] for name in _STEPS if stated.get(name) is not None}
    statistics = _statistics(stated, of_model, config.num_channels)
    if not statistics:
        logger.warning(
            "There are no mean and deviation next to the weights: those of ImageNet are taken (0.5 unless there are 3 "
            "channels). Change them in preprocessor_config.json if the model was trained with others."
        )
    options.update(num_channels=config.num_channels, **statistics)
    if steps := _stated_crop(stated, of_model.get("pretrained_cfg") or {}, config):
        return MAEImageProcessor(**options, **steps).with_image_size(config.image_size)
    size = _stated_sides(stated.get("size"))
    stretches = layout == "vit" and stated.get("do_resize", bool(stated)) and "shortest_edge" not in size
    if (stretches or layout in PIXIO_LAYOUTS) and not stated.get("do_center_crop"):
        if stretches and stated.get("resample") in _FILTERS.values():  # MAE's and Pixio's is bicubic, whatever is said
            options["resample"] = stated["resample"]
        height, width = height_width(config.image_size)
        return MAEImageProcessor(size={"height": height, "width": width}, **options)
    return MAEImageProcessor.for_image_size(config.image_size, **options)


def load_image_processor(name: str | os.PathLike, **changes) -> MAEImageProcessor:
    """Returns the image processor of a model that `from_pretrained` loads, one of transformers' included.

    Next to weights of transformers it is the one that their conversion gives, so that a model has the same features
    before and after. Read as one of ours, a `preprocessor_config.json` of theirs may mean other steps.

    Args:
        name (`str` or `os.PathLike`): Folder or name on the Hub.
        **changes: Other arguments of [`MAEImageProcessor`].

    Raises:
        OSError: If there is none.
        ValueError: If the model is one of timm, which has to be converted.
    """
    stated, _ = MAEConfig.get_config_dict(name)
    if "architecture" in stated:
        raise ValueError(f"{name} holds weights of timm. `hf-mae convert` makes a model of hf_mae of them.")
    if stated.get("model_type") not in OF_TRANSFORMERS:
        return MAEImageProcessor.from_pretrained(name, **changes)
    processor = find_image_processor(name, stated["model_type"], MAEConfig.from_dict(stated))
    return MAEImageProcessor.from_dict(processor.to_dict(), **changes)


def _read(folder: str, name: str) -> dict:
    path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False)
    return {} if path is None else read_json(path)


def _stated_sides(size) -> dict:
    """Returns the sides that a size states. A single number, as in old files, does not say which side it is."""
    return {side: value for side, value in size.items() if value} if isinstance(size, dict) else {}


def _stated_crop(stated: dict, of_timm: dict, config: MAEConfig) -> dict:
    """Returns size, crop and filter, if a crop is stated."""
    sides, crop_pct = height_width(config.image_size), of_timm.get("crop_pct")
    size, crop = (_stated_sides(stated.get(name)) for name in ("size", "crop_size"))
    resample = stated.get("resample")
    if crop_pct:
        height, width = (math.floor(side / crop_pct) for side in sides)
        squashes = of_timm.get("crop_mode") == "squash"
        size = {"height": height, "width": width} if squashes else {"shortest_edge": min(height, width)}
        crop, resample = {"height": sides[0], "width": sides[1]}, _FILTERS.get(of_timm.get("interpolation", ""))
    elif not stated.get("do_center_crop") or len(crop) != 2 or set(size) not in ({"shortest_edge"}, set(crop)):
        return {}
    return {"size": size, "crop_size": crop, **({"resample": resample} if resample in _FILTERS.values() else {})}


def _statistics(stated: dict, of_model: dict, num_channels: int) -> dict:
    """Returns the mean and deviation that are stated for these channels."""
    statistics = {}
    for content in (stated, of_model):
        weights = content.get("pretrained_cfg") or {}  # of timm
        for ours, theirs in (("image_mean", "mean"), ("image_std", "std")):
            value = content.get(ours) or weights.get(theirs)
            value = [value] * num_channels if isinstance(value, int | float) else value
            if value and len(value) == num_channels:
                statistics.setdefault(ours, value)
    return statistics


def _of_hf_mae(folder: str, config: MAEConfig) -> MAEImageProcessor:
    """Returns the image processor of a folder of hf_mae, for the size and the channels of a configuration."""
    processor, channels = MAEImageProcessor.from_pretrained(folder), config.num_channels
    if processor.num_channels != channels:
        pairs = processor.reading.value_ranges or ((0, 1),)
        changes = {"num_channels": channels, "image_mean": None, "image_std": None}
        if len(processor.bands or range(channels)) != channels:
            changes["bands"] = None
        if max(processor.display_bands or (1,)) > channels:
            changes["display_bands"] = None
        if len(pairs) not in (1, channels):
            changes["value_range"] = None
        logger.warning(
            f"The image processor is for {processor.num_channels} channels and the model has {channels} now: "
            f"{', '.join(list(changes)[1:])} are the defaults. Change them in preprocessor_config.json."
        )
        processor = MAEImageProcessor.from_pretrained(folder, **changes)
    same_size = processor.crop_height_width == height_width(config.image_size)
    return processor if same_size else processor.with_image_size(config.image_size)


def timm_transform(image_processor: MAEImageProcessor) -> dict:
    """Returns what a configuration of timm says about images, so that its evaluation transform takes the same steps.

    Args:
        image_processor ([`MAEImageProcessor`]): Ours.
    """
    processor, channels = image_processor, image_processor.num_channels
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)  # timm always divides by 255 and normalises
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    whole = (processor.size.height, processor.size.width) if processor.size.height else None
    crop = whole if whole and not processor.do_center_crop else processor.crop_height_width
    side, resized = (crop[0], whole[0]) if whole else (min(crop), processor.size.shortest_edge)
    if not _reads_bytes(processor) or not processor.do_resize or (whole and whole[0] * crop[1] != whole[1] * crop[0]):
        logger.warning(
            "timm's transform is not that of the image processor: it resizes 8-bit colours, both sides alike. Use the "
            "image processor of hf_mae."
        )
    crop_pct = side / resized
    return {
        "mean": [value / scale for value in _per_channel(mean, channels)],
        "std": [value / scale for value in _per_channel(std, channels)],
        "interpolation": {number: name for name, number in _FILTERS.items()}[processor.resample],
        "crop_mode": "squash" if whole else "center",
        # timm rounds side / crop_pct down, and must not get one pixel less.
        "crop_pct": crop_pct if math.floor(side / crop_pct) == resized else math.nextafter(crop_pct, 0),
    }


def _per_channel(value: float | list | tuple, channels: int) -> list[float]:
    return list(value) if isinstance(value, list | tuple) else [value] * channels


def _reads_bytes(image_processor: MAEImageProcessor) -> bool:
    """Returns whether an image processor takes pictures of 8 bits as they are, like those of other libraries."""
    return not image_processor.is_deep and all(getattr(image_processor, name, None) is None for name in _READING)


def write_stock_processor(folder: Path, layout: str, image_processor: MAEImageProcessor):
    """Writes a `preprocessor_config.json` for an image processor of transformers, which takes the same steps.

    None is written if theirs cannot read what ours does, and the log says so.

    Args:
        folder (`Path`): Folder of the model.
        layout (`str`): `"vit"`, `"vit_mae"` or `"pixio"`.
        image_processor ([`MAEImageProcessor`]): Ours.
    """
    # The class that AutoImageProcessor has for Pixio is BiT's.
    kind, ours = "BitImageProcessor" if layout == "pixio" else "ViTImageProcessor", image_processor.to_dict()
    if not _reads_bytes(image_processor):
        logger.warning(
            f"No image processor is written: {kind} takes 8-bit colours, and the model was trained on values that are "
            "read in another way (value_range, bands, nodata, pages, more than 8 bits). Use that of hf_mae."
        )
        return
    steps = ("do_resize", "size", "resample", "do_center_crop", "crop_size", *_STEPS)
    theirs = {name: ours[name] for name in (*steps, "image_mean", "image_std")}
    height, width = image_processor.crop_height_width
    edge = image_processor.size.shortest_edge
    if edge and height != width:  # theirs would not cover the crop, and pad
        size = {"height": round(height * edge / min(height, width)), "width": round(width * edge / min(height, width))}
        logger.warning(f"{kind} resizes images to {size['height']} x {size['width']}, where hf_mae keeps their aspect.")
        theirs["size"] = size
    write_json(folder / "preprocessor_config.json", {**theirs, "image_processor_type": kind})


__all__ = ["find_image_processor", "load_image_processor", "timm_transform", "write_stock_processor"]
