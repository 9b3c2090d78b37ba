# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Makes the model and the image processor that a pre-training run starts from."""

import torch
from transformers.image_utils import ChannelDimension

from ..conversion.image_processors import load_image_processor
from ..modeling.configuration_mae import MAEConfig
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining
from ..modeling.reading_mae import ReadingSettings
from ..modeling.saving_mae import no_model_in
from ..training.arguments import config_changes
from .settings import PretrainingSettings

_STEPS = ("do_rescale", "rescale_factor", "do_normalize")
_READING = ("value_range", "bands", "nodata", "pages", "background", "display_bands")


def build_model(
    settings: PretrainingSettings,
    model: MAEConfig | MAEForPreTraining | None = None,
    image_processor: MAEImageProcessor | None = None,
) -> tuple[MAEForPreTraining, MAEImageProcessor]:
    """Returns the model to train and its image processor.

    Args:
        settings ([`PretrainingSettings`]): The settings.
        model ([`MAEConfig`] or [`MAEForPreTraining`], *optional*): Replaces the settings of the model.
        image_processor ([`MAEImageProcessor`], *optional*): Replaces the settings of mean and deviation. Its way of
            reading files is kept where the settings do not change it.
    """
    if isinstance(model, MAEConfig):
        model = MAEForPreTraining(model)
    elif model is None and settings.model_name_or_path:
        changes = _stated_fields(settings)
        _stored_config(settings.model_name_or_path)  # an adapter has none, and would leave nothing to train
        model = MAEForPreTraining.from_pretrained(settings.model_name_or_path, dtype=torch.float32, **changes)
    elif model is None:
        model = MAEForPreTraining(config_of(settings))
    stored = stored_processor(settings, image_processor)
    statistics, steps = {"image_mean": settings.image_mean, "image_std": settings.image_std}, {}
    if stored is not None and not settings.compute_statistics:  # they may be of another number of channels
        statistics = {name: value or getattr(stored, name) for name, value in statistics.items()}
        steps = {name: getattr(stored, name) for name in _STEPS}  # the weights know images that were made by these
    config, reading = model.config, _reading(settings, stored)
    options = {"num_channels": config.num_channels, **statistics, **steps, **reading}
    return model, MAEImageProcessor.for_image_size(config.image_size, **options)


def config_of(settings: PretrainingSettings, model: MAEConfig | MAEForPreTraining | None = None) -> MAEConfig:
    """Returns the configuration of the model that [`build_model`] makes, without making it.

    Args:
        settings ([`PretrainingSettings`]): The settings.
        model ([`MAEConfig`] or [`MAEForPreTraining`], *optional*): Replaces the settings of the model.
    """
    if model is not None:
        return model if isinstance(model, MAEConfig) else model.config
    changes = _stated_fields(settings)
    if settings.model_name_or_path:
        return MAEConfig.from_dict(_stored_config(settings.model_name_or_path), **changes)
    return MAEConfig.from_preset(settings.preset, **{"norm_pix_loss": True, **changes})


def _stored_config(name: str) -> dict:
    """Returns what the configuration of a checkpoint states, or raises `OSError` if it has none."""
    stored, _ = MAEConfig.get_config_dict(name)
    if not stored:
        raise no_model_in(name)
    return stored


def _stated_fields(settings: PretrainingSettings) -> dict:
    """Returns the fields of the configuration that the settings state."""
    names = ("image_size", "patch_size", "num_channels", "mask_ratio", "norm_pix_loss")
    fields = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    return {**fields, **config_changes(settings.config_overrides)}


def reading_of_run(settings: PretrainingSettings, stored: MAEImageProcessor | None) -> ReadingSettings:
    """Returns how the image processor of a run will read files, before there is a model.

    Args:
        settings ([`PretrainingSettings`]): The settings.
        stored ([`MAEImageProcessor`] or `None`): What holds where the settings say nothing.
    """
    return MAEImageProcessor(**_reading(settings, stored)).reading


def stored_processor(settings: PretrainingSettings, given: MAEImageProcessor | None) -> MAEImageProcessor | None:
    """Returns the image processor that was given, or else that of the checkpoint to start from, if there is one."""
    if given is not None or not settings.model_name_or_path:
        return given
    return load_image_processor(settings.model_name_or_path)


def _reading(settings: PretrainingSettings, stored: MAEImageProcessor | None) -> dict:
    """Returns the arguments of an image processor that say how files are read, the settings before what is stored."""
    reading = {} if stored is None else {name: getattr(stored, name) for name in (*_READING, "input_data_format")}
    reading.update({name: getattr(settings, name) for name in _READING if getattr(settings, name) is not None})
    if settings.channels_first is not None:
        channels = ChannelDimension.FIRST if settings.channels_first else ChannelDimension.LAST
        reading["input_data_format"] = channels.value
    return reading


def checkpoint_activations(model: MAEForPreTraining):
    """Lets a model compute its activations again in the backward pass, in place of keeping them."""
    # Transformers 5.17 has the old name alone, of which 5.23 warns.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


__all__ = [
    "build_model",
    "checkpoint_activations",
    "config_of",
    "reading_of_run",
    "stored_processor",
]
