# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Frozen encoders behind one interface, so that they can be compared: our models, foreign weights that we read, and any
`AutoModel` that gives tokens, such as DINOv2."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # in 5.17 also without torchvision
from transformers.utils import logging

from ..conversion.image_processors import find_image_processor
from ..conversion.weights import import_checkpoint
from ..modeling.configuration_mae import MAEConfig, height_width
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.loading_mae import OF_TRANSFORMERS
from ..modeling.modeling_mae import MAEPreTrainedModel
from ..modeling.patches_mae import patch_grid
from ..modeling.saving_mae import check_is_object, explaining_missing
from .features import block_numbers, load_feature_model

logger = logging.get_logger(__name__)

# How configurations of transformers call the number of class tokens and of other tokens before the patches.
_CLASS_TOKENS = ("num_class_tokens", "n_cls_tokens", "num_cls_tokens")
_OTHER_TOKENS = ("num_register_tokens", "num_registers")
_SETTINGS = (
    *("size", "crop_size", "resample", "do_resize", "do_center_crop", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
)
# Mean difference, in deviations of a picture of noise, that two implementations of one filter do not reach.
_PROCESSING_TOLERANCE = 0.1


class Encoded(NamedTuple):
    """Holds the tokens of one block, after the final norm.

    Attributes:
        prefix (`torch.Tensor` of shape `(batch, P, hidden_size)`): Class tokens, then register tokens; P may be 0.
        patches (`torch.Tensor` of shape `(batch, N, hidden_size)`): Patch tokens in raster order.
        grid_size (`(rows, columns)`): Of the patches, N = rows * columns.
    """

    prefix: torch.Tensor
    patches: torch.Tensor
    grid_size: tuple[int, int]


class FrozenEncoder:
    """Gives the tokens of images from a model that is not trained.

    The final norm is applied to whichever block is asked for, in all models alike: it brings the tokens of middle
    blocks to one scale, as [`MAEBackbone`] and the backbones of transformers do. A classifier that was fine-tuned with
    the mean of the patches has no final norm, and its tokens are taken as they are.

    Attributes:
        name (`str`): What the model is called in tables.
        model (`PreTrainedModel`): In evaluation mode and float32; on CUDA it is run with bfloat16 autocast.
        image_processor ([`MAEImageProcessor`]): Makes pixel values of files and arrays, for foreign models with their
            settings and our reader.
        hidden_size (`int`): Width of the tokens.
        depth (`int`): Number of blocks.
        patch_size (`(height, width)`): In pixels.
        num_class_tokens (`int`): How many of the prefix tokens are class tokens, 0 or more; these come first.
    """

    def __init__(self, model: PreTrainedModel, image_processor: MAEImageProcessor, name: str):
        """
        Args:
            model (`PreTrainedModel`): Any model of hf_mae, or a model whose `last_hidden_state` are tokens.
            image_processor ([`MAEImageProcessor`]): Makes its pixel values.
            name (`str`): What to call it.

        Raises:
            ValueError: If the model gives no tokens of patches.
        """
        self.name, self.image_processor = name, image_processor
        self._is_ours = isinstance(model, MAEPreTrainedModel)
        self.model = (model.base_model if self._is_ours else model).eval().requires_grad_(False)
        config = self.model.config
        if self._is_ours:
            self.patch_size = self.model.embeddings.patch_size
            self.num_class_tokens = self._num_prefix = _stated(config, _CLASS_TOKENS, 1)
            self.final_norm = self.model.layernorm
        else:
            self.patch_size = _patch_size(name, config)
            self.num_class_tokens, self._num_prefix, self.final_norm = _examine(self)
        self.hidden_size, self.depth = config.hidden_size, config.num_hidden_layers

    @property
    def is_trainable(self) -> bool:
        """Whether [`MAEForImageClassification`] loads the same weights by the name."""
        return self._is_ours and not Path(self.name).is_file()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def to(self, device: str | torch.device) -> "FrozenEncoder":
        """Moves the model to a device and returns the encoder."""
        self.model.to(device)
        return self

    def block_numbers(self, layers: Sequence[int] | None) -> list[int]:
        """Returns the numbers of blocks, see [`hf_mae.evaluation.features.block_numbers`].

        Args:
            layers (`Sequence[int]`, *optional*): Blocks, negative ones from the end. Default: the last.

        Raises:
            ValueError: If the model has no such block.
        """
        return block_numbers([self.depth] if layers is None else layers, self.depth, self.name)

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor, layers: Sequence[int] | None = None) -> list[Encoded]:
        """Returns the tokens of each block that is asked for, in float32, on the device of the model.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            layers (`Sequence[int]`, *optional*): See [`FrozenEncoder.block_numbers`].
        """
        numbers = self.block_numbers(layers)
        pixel_values = pixel_values.to(self.device, non_blocking=True)
        grid_size = patch_grid(pixel_values, self.patch_size)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if self._is_ours:  # blocks above are not run
                states = self.model(pixel_values, num_layers=max(numbers), output_hidden_states=True).hidden_states
            else:
                states = self._run(pixel_values).hidden_states
            tokens = [self.final_norm(states[number]).float() for number in numbers]
        return [Encoded(each[:, : self._num_prefix], each[:, self._num_prefix :], grid_size) for each in tokens]

    def _run(self, pixel_values: torch.Tensor):
        sizes = {}
        if "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
            sizes["interpolate_pos_encoding"] = True
        return self.model(pixel_values=pixel_values, output_hidden_states=True, return_dict=True, **sizes)

    def pooled(self, encoded: Encoded) -> dict[str, torch.Tensor]:
        """Returns vectors of images `(batch, hidden_size)`: `class`, if there are class tokens their mean, and `mean`,
        the mean of the patch tokens."""
        kinds = {"mean": encoded.patches.mean(dim=1)}
        if self.num_class_tokens:
            kinds["class"] = encoded.prefix[:, : self.num_class_tokens].mean(dim=1)
        return kinds


def load_encoder(name_or_path: str | os.PathLike, image_size: int | None = None) -> FrozenEncoder:
    """Loads an encoder from whatever holds one.

    Args:
        name_or_path (`str` or `os.PathLike`): A folder or name on the Hub: of any model of hf_mae, of weights that
            [`import_checkpoint`] reads (or a file of them), or of a model that `AutoModel` loads and that gives tokens.
        image_size (`int`, *optional*): Pixels of the images, a multiple of the patch. Default: the model's.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no encoder whose `last_hidden_state` are tokens of patches. The message names the model.
    """
    name = os.fspath(name_or_path)
    check_is_object(name)
    with explaining_missing(name):
        config = {} if Path(name).is_file() else PreTrainedConfig.get_config_dict(name)[0]
    model_type = config.get("model_type")
    if (config.get("backbone_config") or {}).get("model_type") == MAEConfig.model_type:
        raise ValueError(
            f"{name} is a model for segmentation or detection ({model_type}) and no encoder. Give the folder or name "
            "that its run started from."
        )
    try:
        if model_type == MAEConfig.model_type:
            model, image_processor = load_feature_model(name, image_size)
        elif model_type is None or model_type in OF_TRANSFORMERS or "architecture" in config:
            sizes: dict = {} if image_size is None else {"image_size": image_size}
            model = import_checkpoint(name, **sizes)
            image_processor = find_image_processor(name, model_type or "", model.config)
        else:
            model = AutoModel.from_pretrained(name, dtype=torch.float32)
            model = getattr(model, "vision_model", model)  # of those that have a text model, too
            image_processor = _convert_image_processor(name, AutoImageProcessor.from_pretrained(name))
            if image_size is not None:
                image_processor = image_processor.with_image_size(image_size)
        return FrozenEncoder(model, image_processor, name)
    except Exception as error:  # of many types, and of several models it must be clear which one it was
        if name in str(error) or not isinstance(error, ValueError | OSError):
            raise
        raise type(error)(f"{name}: {error}") from error


# ----------------------------------------------------------------------------------------------------------------------
# Models of others


def _stated(config: PreTrainedConfig, names: Sequence[str], default: int | None = None) -> int | None:
    """Returns the first of several fields that a configuration has."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), default)


def _patch_size(name: str, config: PreTrainedConfig) -> tuple[int, int]:
    needed = ("patch_size", "hidden_size", "num_hidden_layers")
    if missing := [field for field in needed if getattr(config, field, None) is None]:
        raise ValueError(
            f"{name} ({config.model_type}) has no {missing[0]} in its configuration. Models that can be compared are "
            "vision transformers, which give one token for each patch."
        )
    return height_width(config.patch_size)


@torch.no_grad()
def _examine(encoder: FrozenEncoder) -> tuple[int, int, nn.Module]:
    """Runs a foreign model once and returns the numbers of its class tokens and of all tokens before the patches, and
    its final norm: the layer that returns `last_hidden_state`, or the identity."""
    model, config, name = encoder.model, encoder.model.config, encoder.name
    height, width = encoder.image_processor.crop_height_width
    if height % encoder.patch_size[0] or width % encoder.patch_size[1]:
        raise ValueError(
            f"{name} has patches of {encoder.patch_size} pixels, and its images have {height} x {width}. Set "
            "`image_size` to a multiple of the patch."
        )
    outputs, norms = [], [module for module in model.modules() if "Norm" in type(module).__name__]
    hooks = [norm.register_forward_hook(lambda norm, _, output: outputs.append((norm, output))) for norm in norms]
    try:
        output = encoder._run(torch.zeros(1, 3, height, width))
    finally:
        for hook in hooks:
            hook.remove()
    tokens, states = getattr(output, "last_hidden_state", None), getattr(output, "hidden_states", None)
    rows, columns = height // encoder.patch_size[0], width // encoder.patch_size[1]
    if tokens is None or tokens.ndim != 3 or states is None or len(states) != config.num_hidden_layers + 1:
        shape = None if tokens is None else tuple(tokens.shape)
        raise ValueError(
            f"{name} ({config.model_type}) gives no tokens of patches for each block: its last_hidden_state has shape "
            f"{shape}. Expected (batch, tokens, width), as of ViT and DINOv2."
        )
    num_class, num_prefix = _count_tokens(name, config, tokens.shape[1], rows * columns)
    final_norm = next((norm for norm, normed in reversed(outputs) if normed is tokens), nn.Identity())
    return num_class, num_prefix, final_norm


def _count_tokens(name: str, config: PreTrainedConfig, num_tokens: int, num_patches: int) -> tuple[int, int]:
    """Returns how many class tokens, and how many tokens in all, stand before the patches.

    What the configuration states must agree with the number of tokens. One that states nothing may have a class token,
    and a second one for distillation.
    """
    num_class, num_other = _stated(config, _CLASS_TOKENS), _stated(config, _OTHER_TOKENS)
    num_prefix = num_tokens - num_patches
    if num_class is None and num_other is None:
        stated, fits = "none", 0 <= num_prefix <= 2
    else:
        expected = (1 if num_class is None else num_class) + (num_other or 0)
        stated, fits = str(expected), num_prefix == expected
    if not fits:
        raise ValueError(
            f"{name} ({config.model_type}) gives {num_tokens} tokens for {num_patches} patches and states {stated} "
            "class and register tokens, so it is not known which tokens are patches."
        )
    return min(num_prefix, 1 if num_class is None else num_class), num_prefix


def _convert_image_processor(name: str, theirs) -> MAEImageProcessor:
    """Returns our image processor with the settings of a foreign one. The log says if it gives other pixel values."""
    settings: dict = {field: getattr(theirs, field) for field in _SETTINGS if getattr(theirs, field, None) is not None}
    for field in {"size", "crop_size"} & settings.keys():
        settings[field] = {side: value for side, value in dict(settings[field]).items() if value is not None}
    if not settings.get("do_center_crop"):
        settings.pop("crop_size", None)  # a default that is not used
        settings.pop("do_center_crop", None)
    ours = MAEImageProcessor(**settings, num_channels=3)
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    expected = torch.as_tensor(np.array(theirs(noise, return_tensors="np")["pixel_values"]))
    found = ours(noise, return_tensors="pt").pixel_values
    if expected.shape != found.shape:
        raise ValueError(
            f"{name}: its image processor ({type(theirs).__name__}) makes images of shape {tuple(expected.shape[1:])}, "
            f"ours with its settings of {tuple(found.shape[1:])}. Set crop_size in its preprocessor_config.json."
        )
    if (difference := ((expected - found).abs().mean() / expected.std()).item()) > _PROCESSING_TOLERANCE:
        logger.warning(
            f"{name}: its image processor ({type(theirs).__name__}) gives pixel values that differ by {difference:.2f} "
            "deviations from ours with its settings, so that it may be at a disadvantage."
        )
    return ours


__all__ = ["Encoded", "FrozenEncoder", "load_encoder"]
