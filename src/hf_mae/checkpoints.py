# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Weights of other implementations: tables of names, and what the tensors tell about the model."""

import argparse
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.utils import logging

from .configuration_mae import _PRESETS, MAEConfig
from .modeling_mae import MAEForPreTraining, MAEModel, MAEPreTrainedModel
from .modeling_mae_downstream import MAEForImageClassification
from .probing import fold_batch_norm

logger = logging.get_logger(__name__)

# Official names (facebookresearch/mae; timm's for the encoder) and ours. `{}` is the number of a block.
_OFFICIAL_BLOCK = {
    "norm1": "layernorm_before",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_OFFICIAL = {
    "cls_token": "mae.embeddings.cls_token",
    "pos_embed": "mae.embeddings.position_embeddings",
    "patch_embed.proj": "mae.embeddings.patch_embeddings",
    **{f"blocks.{{}}.{theirs}": f"mae.layers.{{}}.{ours}" for theirs, ours in _OFFICIAL_BLOCK.items()},
    "norm": "mae.layernorm",
    "decoder_embed": "decoder.embed",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.position_embeddings",
    **{f"decoder_blocks.{{}}.{theirs}": f"decoder.layers.{{}}.{ours}" for theirs, ours in _OFFICIAL_BLOCK.items()},
    "decoder_norm": "decoder.layernorm",
    "decoder_pred": "decoder.head",
    "fc_norm": "fc_norm",
    "head": "classifier",
}


def load_checkpoint(
    checkpoint: str | os.PathLike | Mapping[str, torch.Tensor], **config
) -> MAEModel | MAEForPreTraining | MAEForImageClassification:
    """Builds a model from weights in the layout of the official MAE code.

    Sizes are read off the tensors. What they cannot tell (heads, `norm_pix_loss`, a grid that is not square) comes from
    `config`, from the training arguments in the file, or from the preset of the same widths.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): A `.pth` file (bare or under `"model"`), a
            `.safetensors` file, or a state dict. Files are never unpickled beyond tensors and plain containers.
        **config: Fields of [`MAEConfig`] that the tensors do not tell or that shall differ.

    Returns:
        [`MAEForPreTraining`] if there is a decoder in the checkpoint, [`MAEForImageClassification`] if there is a
        classifier (fine-tuned, or of a linear probe, whose batch norm goes into the classifier's weights), with
        `pooling="mean"` if there is a `fc_norm`; else [`MAEModel`]. float32, in evaluation mode.

    Raises:
        OSError: If the file can't be read, or holds anything but tensors and training arguments.
        ValueError: If it is of another architecture, tensors are missing or do not fit, or heads can't be told.
    """
    state_dict, arguments = _read(checkpoint)
    converted, left_over = _rename(_without_batch_norm(state_dict), _OFFICIAL)
    missing = [name for name in ("cls_token", "pos_embed", "patch_embed.proj.weight") if name not in state_dict]
    if missing or "mae.layers.0.attention.qkv.weight" not in converted:
        raise ValueError(
            "This is not a checkpoint of the official MAE code: it lacks "
            f"{', '.join(missing or ['blocks.0.attn.qkv.weight'])}. It has, among others: "
            f"{', '.join(list(state_dict)[:5])}."
        )
    if converted["mae.embeddings.patch_embeddings.weight"].ndim != 4:
        raise ValueError("patch_embed.proj.weight must have four dimensions: width, channels, patch height and width.")
    fields = {**_fields_of(converted, arguments), **config}
    for name in ("num_attention_heads", "decoder_num_attention_heads"):
        if name not in fields and ("decoder" not in name or "decoder.embed.weight" in converted):
            raise ValueError(f"The tensors do not tell {name}, and no preset has these widths: pass {name}=...")
    if "decoder.embed.weight" in converted:
        model_class = MAEForPreTraining
    else:
        model_class = MAEForImageClassification if "classifier.weight" in converted else MAEModel
    if model_class is MAEModel:
        converted = {name.removeprefix("mae."): tensor for name, tensor in converted.items()}
    elif model_class is MAEForPreTraining and "norm_pix_loss" not in fields:
        logger.warning(
            "The checkpoint does not say whether its decoder predicts pixels or normalised patches; pixels "
            "(norm_pix_loss=False) are assumed. Pass norm_pix_loss=True for weights that were trained with it."
        )
    return _build(model_class, MAEConfig(**fields), converted, left_over)


def _read(checkpoint) -> tuple[dict[str, torch.Tensor], dict]:
    """Returns the state dict and the training arguments beside it, if any."""
    if isinstance(checkpoint, Mapping):
        content = checkpoint
    elif not Path(checkpoint).is_file():
        raise OSError(f"There is no checkpoint file {os.fspath(checkpoint)!r}.")
    elif Path(checkpoint).suffix == ".safetensors":
        content = load_file(checkpoint)
    else:
        try:
            # The official code saves its parsed arguments beside the weights; nothing else is let in.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise OSError(
                f"{os.fspath(checkpoint)!r} is not a checkpoint of tensors and was not loaded: {str(error)[:300]}"
            ) from error
    arguments = content.get("args") if isinstance(content, Mapping) else None
    state_dict = content.get("model", content) if isinstance(content, Mapping) else content
    is_mapping = isinstance(state_dict, Mapping)
    if not is_mapping or not all(isinstance(tensor, torch.Tensor) for tensor in state_dict.values()):
        raise ValueError("A checkpoint must be a mapping from names to tensors, bare or under the key 'model'.")
    return dict(state_dict), vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def _without_batch_norm(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights of a linear probe with its batch norm, which has no weights of its own, inside the linear."""
    if "head.1.weight" not in state_dict:
        return state_dict
    weight, bias = state_dict["head.1.weight"], state_dict["head.1.bias"]
    weight, bias = fold_batch_norm(weight, bias, state_dict["head.0.running_mean"], state_dict["head.0.running_var"])
    rest = {name: tensor for name, tensor in state_dict.items() if not name.startswith("head.")}
    return {**rest, "head.weight": weight, "head.bias": bias}


def _rename(state_dict: dict[str, torch.Tensor], table: dict[str, str]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the tensors under our names, and the names that the table does not know."""
    renamed, unknown = {}, []
    for name, tensor in state_dict.items():
        parts = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name)
        number = re.search(r"\.(\d+)\.", parts[1] + ".")
        key = parts[1].replace(number[0], ".{}.", 1) if number else parts[1]
        if key in table:
            renamed[table[key].format(number[1] if number else "") + (parts[2] or "")] = tensor
        else:
            unknown.append(name)
    return renamed, unknown


def _fields_of(tensors: dict[str, torch.Tensor], arguments: dict) -> dict:
    """Returns the configuration that tensors under our names and the official training arguments tell."""
    width, channels, patch_height, patch_width = tensors["mae.embeddings.patch_embeddings.weight"].shape
    fields = {
        "num_channels": channels,
        "patch_size": patch_height if patch_height == patch_width else (patch_height, patch_width),
        "hidden_size": width,
        "num_hidden_layers": _num_layers(tensors, "mae.layers"),
        "intermediate_size": tensors["mae.layers.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "mae.layers.0.attention.qkv.bias" in tensors,
    }
    if "classifier.weight" in tensors:
        fields["num_labels"] = tensors["classifier.weight"].shape[0]
        fields["pooling"] = "mean" if "fc_norm.weight" in tensors else "class"
    side = math.isqrt(tensors["mae.embeddings.position_embeddings"].shape[1] - 1)
    image_size = (side * patch_height, side * patch_width)
    fields["image_size"] = image_size[0] if image_size[0] == image_size[1] else image_size
    presets = [MAEConfig.from_preset(name) for name in _PRESETS]
    heads = {(preset.hidden_size, preset.num_hidden_layers): preset.num_attention_heads for preset in presets}
    if (width, fields["num_hidden_layers"]) in heads:
        fields["num_attention_heads"] = heads[width, fields["num_hidden_layers"]]
    if "decoder.embed.weight" in tensors:
        decoder_width = tensors["decoder.embed.weight"].shape[0]
        fields["decoder_hidden_size"] = decoder_width
        fields["decoder_num_hidden_layers"] = _num_layers(tensors, "decoder.layers")
        fields["decoder_intermediate_size"] = tensors["decoder.layers.0.mlp.fc1.weight"].shape[0]
        heads = {preset.decoder_hidden_size: preset.decoder_num_attention_heads for preset in presets}
        if decoder_width in heads:
            fields["decoder_num_attention_heads"] = heads[decoder_width]
        fields.update({name: arguments[name] for name in ("norm_pix_loss", "mask_ratio") if name in arguments})
    return fields


def _num_layers(tensors: dict[str, torch.Tensor], prefix: str) -> int:
    numbers = {name[len(prefix) + 1 :].split(".")[0] for name in tensors if name.startswith(prefix + ".")}
    return max(map(int, numbers), default=-1) + 1


def _build(
    model_class: type[MAEPreTrainedModel], config: MAEConfig, tensors: dict[str, torch.Tensor], left_over: list[str]
) -> MAEPreTrainedModel:
    for name, weight in tensors.items():
        if name.endswith("patch_embeddings.weight"):  # a convolution's (D, C, height, width) to (D, height * width * C)
            tensors[name] = weight.permute(0, 2, 3, 1).flatten(1)
    model = model_class(config)
    expected = model.state_dict()
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [
        f"{name}: expected {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if problems:
        raise ValueError("The checkpoint does not fit (names as in hf_mae):\n  " + "\n  ".join(problems))
    left_over = left_over + [name for name in tensors if name not in expected]
    if left_over:
        logger.warning(
            f"{model_class.__name__} has no place for these tensors and left them out: {', '.join(left_over)}"
        )
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in expected})
    return model.eval()


__all__ = ["load_checkpoint"]
