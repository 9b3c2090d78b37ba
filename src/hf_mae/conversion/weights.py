# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Converts weights from and to other implementations. Their names are in names.py."""

import errno
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers.utils import logging

from ..modeling.auto_mae import class_of_architecture
from ..modeling.configuration_mae import PRESETS, MAEConfig, height_width
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.loading_mae import HUB_KWARGS, OF_TRANSFORMERS
from ..modeling.modeling_mae import MAEForPreTraining, MAEModel, MAEPreTrainedModel
from ..modeling.modeling_mae_downstream import MAEForImageClassification, fold_batch_norm
from ..modeling.patches_mae import sincos_position_table
from .files import (
    FIELDS,
    NOT_FIELDS,
    WEIGHT_FILES,
    as_value_error,
    folder_of,
    read_checkpoint,
    write_folder,
    written_whole,
)
from .image_processors import timm_transform, write_stock_processor
from .names import (
    LAYOUTS,
    PIXIO_LAYOUTS,
    find_probe,
    merge_backbone_norms,
    names_in,
    recognise,
    rename,
)

logger = logging.get_logger(__name__)

_RANKS = {
    "mae.embeddings.cls_token": 3,
    "mae.embeddings.position_embeddings": 3,
    "mae.embeddings.patch_embeddings.weight": 4,
    "mae.layers.0.mlp.fc1.weight": 2,
    "decoder.embed.weight": 2,
    "decoder.layers.0.mlp.fc1.weight": 2,
    "classifier.weight": 2,
}
# Fields that the shapes of tensors show, whatever else is stated.
_CERTAIN = (
    *("num_channels", "patch_size", "hidden_size", "num_class_tokens", "num_hidden_layers", "intermediate_size"),
    "qkv_bias",
)
# Heads by width and depth where no preset has them: Pixio-1B and Pixio-5B (arXiv 2512.15715, Table 8).
_OTHER_HEADS = {(1536, 48): 24, (3072, 48): 32}
_NEEDED = (
    "mae.embeddings.cls_token",
    "mae.embeddings.position_embeddings",
    "mae.embeddings.patch_embeddings.weight",
    "mae.layers.0.attention.qkv.weight",
    "mae.layers.0.mlp.fc1.weight",
)
# Unknown tensors that may be left out, since they come after the encoder or are only used in training. Every other one
# may change what the encoder computes (channel_embed, layer scale, register tokens, norm_pre, ...) and is refused.
_DECODER = r"decoder\w*|neck"
_CLASSIFIER = r"pre_logits|attn_pool|head_dist"
_LEFT_OUT = (
    rf"((vit\.)?\w+\.)?({_DECODER}|{_CLASSIFIER}|\w*heads?|fc|fc_norm|\w*classifier\w*|pooler|projector|"
    r"projection_head|proj_head|predictor|mask_token|data_preprocessor|criterion|loss\w*|logit_scale)(\.|$)"
)


# ----------------------------------------------------------------------------------------------------------------------
# In


def detect_layout(checkpoint: str | os.PathLike | Mapping[str, torch.Tensor]) -> str:
    """Returns the layout of a checkpoint: a key of `LAYOUTS`, or `"mae"` for a folder of hf_mae.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): As in [`import_checkpoint`].

    Raises:
        OSError: If it cannot be read, or holds anything but tensors and training arguments.
        ValueError: If the layout is not known.
    """
    state_dict, stated = read_checkpoint(folder_of(checkpoint))
    if stated.get("model_type") == MAEConfig.model_type:
        return MAEConfig.model_type
    return recognise(merge_backbone_norms(state_dict)[0], _stated_layout(stated))[0]


def import_checkpoint(
    checkpoint: str | os.PathLike | Mapping[str, torch.Tensor],
    model_class: type[MAEPreTrainedModel] | None = None,
    **config,
) -> MAEPreTrainedModel:
    """Builds a model from weights of MAE's official code, timm, transformers, mmpretrain, lightly, Pixio, or hf_mae.

    The names of the tensors show which implementation they come from; the log says which. Sizes are read from the
    tensors. What these do not show (heads, `norm_pix_loss`, a grid that is not square) comes from `config`, from what
    is stated next to the weights (`config.json`, training arguments), or from the preset of the same widths. Prefixes
    such as `module.`, `_orig_mod.`, `model.` or `backbone.` are removed.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): A `.pth` file (bare, or under `"model"` or
            `"state_dict"`), a `.safetensors` file, a folder, a name on the Hub, or a state dict. Files are never
            unpickled beyond tensors and plain containers.
        model_class (`type`, *optional*): A model class of hf_mae. Parts that the checkpoint lacks are initialised, and
            the log says which. Defaults to the class that fits the content.
        **config: Fields of [`MAEConfig`] that the tensors do not show, or that are to differ. Another `image_size`,
            `patch_size` or `num_channels` resizes the weights. `revision`, `token`, `cache_dir`, ... are those of
            `from_pretrained`.

    Returns:
        By default [`MAEForPreTraining`] if the checkpoint holds a decoder, [`MAEForImageClassification`] if it holds a
        classifier (fine-tuned, or a linear probe, whose batch norm is folded into the classifier), with
        `pooling="mean"` if there is a `fc_norm`; else [`MAEModel`]. In float32 and evaluation mode.

    Raises:
        OSError: If the checkpoint cannot be read, or holds anything but tensors and training arguments.
        TypeError: If `model_class` is no class.
        ValueError: If it is of another architecture, tensors are missing or do not fit, the number of heads is not
            known, or a field does not exist.
    """
    if not (model_class is None or isinstance(model_class, type)):
        raise TypeError(f"`model_class` must be a class of hf_mae, such as MAEModel, got {model_class!r}.")
    checkpoint = folder_of(checkpoint)
    if unknown := [name for name in config if name not in (*FIELDS, *HUB_KWARGS)]:
        raise ValueError(f"MAEConfig has no field {', '.join(unknown)}.")
    hub_kwargs = {name: config.pop(name) for name in HUB_KWARGS if name in config}
    state_dict, stated = read_checkpoint(checkpoint, **hub_kwargs)
    if stated.get("model_type") == MAEConfig.model_type:
        architecture = (stated.get("architectures") or [MAEModel.__name__])[0]
        if model_class is None and class_of_architecture(architecture).__name__ != architecture:
            logger.warning(
                f"{checkpoint} was saved by {architecture}, which hf_mae does not know: only its encoder is taken. "
                "Pass that class as `model_class` to take all of it."
            )
        model_class = model_class or class_of_architecture(architecture)
        return model_class.from_pretrained(checkpoint, dtype=torch.float32, **config, **hub_kwargs).eval()
    wanted = {name: config.pop(name) for name in ("image_size", "patch_size", "num_channels") if name in config}
    content_class, fields, tensors = _convert(state_dict, stated, config, wanted.get("image_size"))
    load = (model_class or content_class).from_pretrained
    model = load(None, config=MAEConfig(**fields), state_dict=tensors, dtype=torch.float32)
    sizes = {name: wanted.get(name, getattr(model.config, name)) for name in ("patch_size", "image_size")}
    if any(height_width(size) != height_width(getattr(model.config, name)) for name, size in sizes.items()):
        model.resize_patches(**sizes)
    if wanted.get("num_channels", model.config.num_channels) != model.config.num_channels:
        model.resize_channels(wanted["num_channels"])
    return model.eval()


def _from_repository(name: str | os.PathLike, **hub_kwargs) -> tuple[dict, dict[str, torch.Tensor]]:
    """Reads a repository of transformers' ViTMAE, ViT or Pixio for [`MAEPreTrainedModel.from_pretrained`]."""
    _, fields, tensors = _convert(*read_checkpoint(name, **hub_kwargs), {})
    return fields, tensors


MAEPreTrainedModel._from_repository = staticmethod(_from_repository)


def _convert(
    state_dict: dict[str, torch.Tensor], stated: dict, config: dict, image_size=None
) -> tuple[type[MAEPreTrainedModel], dict, dict[str, torch.Tensor]]:
    """Returns the class of the content, the fields of its configuration, and all tensors under our names and shapes."""
    state_dict, differ = merge_backbone_norms(state_dict, stated.get("apply_layernorm", True))
    layout, title, state_dict = recognise(state_dict, _stated_layout(stated))
    tensors, left_out = rename(_fold_probe(state_dict), layout)
    _fuse_queries_keys_values(tensors)
    _check_architecture(title, tensors, left_out)
    _check_tensors(layout, title, tensors)
    sizes = _sizes(tensors, image_size)
    fields = {
        "layer_norm_eps": LAYOUTS[layout].layer_norm_eps,
        **LAYOUTS[layout].fields,
        **sizes,
        **_stated_fields(stated, tensors),
        **{name: sizes[name] for name in _CERTAIN},  # a short config.json has been filled with defaults
        "mask_tokens_in_encoder": False,  # no other implementation has them
        **config,
    }
    content_class = _class_of(tensors)
    _check_fields(content_class, fields)
    if layout in ("official", "timm"):
        _warn_of_assumed_pooling(tensors, {*stated, *config})
    # From a convolution's (D, C, height, width) to (D, height * width * C), the order of `patchify`.
    weight = tensors["mae.embeddings.patch_embeddings.weight"]
    tensors["mae.embeddings.patch_embeddings.weight"] = weight.permute(0, 2, 3, 1).flatten(1)
    left_out += _check_complete(content_class, fields, tensors)
    parts = {MAEForPreTraining: "encoder and decoder", MAEForImageClassification: "encoder and classifier"}
    logger.warning(
        f"Weights in the layout of {title}: {parts.get(content_class, 'encoder')}, {len(state_dict)} tensors"
        + (f". Left out, as there is no place for them: {', '.join(left_out)}." if left_out else ".")
    )
    if differ:
        logger.warning(
            "The backbone has two final norms that differ. The one of its maps is taken: its own, or with "
            "apply_layernorm=False that of the model in it."
        )
    return content_class, fields, {name: tensor for name, tensor in tensors.items() if name not in left_out}


def _stated_layout(stated: dict) -> str | None:
    return "timm" if "architecture" in stated else stated.get("model_type")


def _class_of(tensors: dict[str, torch.Tensor]) -> type[MAEPreTrainedModel]:
    if "decoder.embed.weight" in tensors:
        return MAEForPreTraining
    # A `fc_norm` without a classifier belongs to a fine-tuned encoder, whose classifier is then initialised.
    is_classifier = "classifier.weight" in tensors or "fc_norm.weight" in tensors
    return MAEForImageClassification if is_classifier else MAEModel


def _check_architecture(title: str, tensors: dict[str, torch.Tensor], unknown: list[str]):
    """Refuses unknown tensors that may change what the model computes. The weights would load, and be wrong."""
    refused = [name for name in unknown if not re.match(_LEFT_OUT, name)]
    content_class = _class_of(tensors)
    if content_class is MAEForPreTraining:
        refused += [name for name in unknown if re.match(_DECODER, name)]
    elif "classifier.weight" in tensors:
        refused += [name for name in unknown if re.search(_CLASSIFIER, name)]
    if content_class is MAEForImageClassification and {"fc_norm.weight", "mae.layernorm.weight"} <= set(tensors):
        refused.append("a norm before the mean of the patches and one after it")
    if refused:
        raise ValueError(
            f"The names are those of {title}, but the model is of another architecture: it has "
            f"{', '.join(refused[:5])}{', ...' if len(refused) > 5 else ''}. If it computes the same without, remove "
            "them from the state dict and pass that."
        )


def _check_tensors(layout: str, title: str, tensors: dict[str, torch.Tensor]):
    """Refuses weights without the tensors that show the sizes, quantised ones, and those of a wrong rank."""
    if missing := [name for name in _NEEDED if name not in tensors]:
        theirs = names_in(layout, missing)
        raise ValueError(
            f"The names are those of {title}, but there is no "
            f"{', '.join(name for names in theirs.values() for name in names)}."
        )
    if quantised := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise ValueError(
            f"{quantised[0]} (as hf_mae calls it) holds {tensors[quantised[0]].dtype}: numbers of steps, whose size is "
            "stated elsewhere. Bring the weights back to floats with the library that made them."
        )
    for name, rank in _RANKS.items():
        if name in tensors and tensors[name].ndim != rank:
            raise ValueError(
                f"{name} (as hf_mae calls it) must have {rank} dimensions, got the shape {tuple(tensors[name].shape)}."
            )


def _check_fields(content_class: type[MAEPreTrainedModel], fields: dict):
    """Raises an error if the number of heads is not known, and warns if the target of the decoder is not."""
    has_decoder = content_class is MAEForPreTraining
    for name in ("num_attention_heads", "decoder_num_attention_heads"):
        if name not in fields and (has_decoder or not name.startswith("decoder")):
            raise ValueError(
                f"The tensors do not show {name}, and no preset has these widths: {_pass_field(name, '...')}."
            )
    if has_decoder and "norm_pix_loss" not in fields:
        logger.warning(
            "The checkpoint does not say whether its decoder predicts pixels or normalised patches; pixels "
            "(norm_pix_loss=False) are assumed, as in the official files mae_visualize_*. For weights that were "
            f"trained with it, as the official mae_pretrain_*_full, {_pass_field('norm_pix_loss', 'True')}."
        )


def _pass_field(name: str, value: str) -> str:
    """Returns the advice to state a field of the configuration, in Python and with the command."""
    flag = value.replace("(", "[").replace(", ", ",").replace(")", "]").lower()
    return f"pass {name}={value} (to hf-mae convert: --config_overrides {name}={flag})"


def _warn_of_assumed_pooling(tensors: dict[str, torch.Tensor], stated: set[str]):
    """Warns if neither tensors nor what is stated say what a classifier in the names of timm pools."""
    says = "fc_norm.weight" in tensors or stated & {"architecture", "global_pool", "model_type", "pooling"}
    if "classifier.weight" in tensors and not says:
        logger.warning(
            "The checkpoint does not say what its classifier pools; the class token (pooling='class') is assumed, as "
            "there is a `norm` and no `fc_norm`. A timm model with global_pool='avg' and fc_norm=False has the same "
            "tensors and another result: load the folder that timm.models.save_for_hf writes, which is then refused."
        )


def _fuse_queries_keys_values(tensors: dict[str, torch.Tensor]):
    """Replaces queries, keys and values that are stored apart by the one tensor of ours, in place."""
    for name in [name for name in tensors if ".attention.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        shapes = {tuple(tensors[part].shape) for part in parts if part in tensors}
        if len(shapes) > 1 or () in shapes:
            raise ValueError(f"The shapes of {', '.join(parts)} differ: {shapes} (names as in hf_mae).")
        if all(part in tensors for part in parts):  # otherwise the fused tensor is reported as missing
            tensors[name.replace(".query.", ".qkv.")] = torch.cat([tensors.pop(part) for part in parts])


def _fold_probe(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Folds the batch norm of a linear probe, which has no weights of its own, into the classifier."""
    probe = find_probe(state_dict)
    if probe is None:
        return state_dict
    norm, linear, classifier = probe
    names = (f"{linear}.weight", f"{linear}.bias", f"{norm}.running_mean", f"{norm}.running_var")
    weight, bias, mean, variance = (state_dict[name] for name in names)
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or not mean.shape == variance.shape == weight.shape[1:]:
        raise ValueError(f"The shapes of {', '.join(names)} do not fit each other.")
    weight, bias = fold_batch_norm(weight, bias, mean, variance)
    rest = {
        name: tensor for name, tensor in state_dict.items() if name not in names and not name.startswith(f"{norm}.")
    }
    return {**rest, f"{classifier}.weight": weight, f"{classifier}.bias": bias}


def _sizes(tensors: dict[str, torch.Tensor], image_size=None) -> dict:
    """Returns the fields that tensors under our names show. `image_size` is used if it fits the number of patches."""
    width, channels, patch_height, patch_width = tensors["mae.embeddings.patch_embeddings.weight"].shape
    fields = {
        "num_channels": channels,
        "patch_size": patch_height if patch_height == patch_width else (patch_height, patch_width),
        "hidden_size": width,
        "num_class_tokens": tensors["mae.embeddings.cls_token"].shape[1],
        "num_hidden_layers": _num_layers(tensors, "mae.layers"),
        "intermediate_size": tensors["mae.layers.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "mae.layers.0.attention.qkv.bias" in tensors,
    }
    if "classifier.weight" in tensors:
        fields.update(num_labels=tensors["classifier.weight"].shape[0], pooling="class")
    if "fc_norm.weight" in tensors:
        fields["pooling"] = "mean"
    positions = tensors["mae.embeddings.position_embeddings"]
    side = math.isqrt(positions.shape[1] - fields["num_class_tokens"])
    size = (side * patch_height, side * patch_width)
    if image_size is not None and _is_grid_of(positions, fields, image_size):
        size = height_width(image_size)
    fields["image_size"] = size[0] if size[0] == size[1] else size
    if "decoder.embed.weight" in tensors:
        fields["decoder_hidden_size"] = tensors["decoder.embed.weight"].shape[0]
        fields["decoder_num_hidden_layers"] = _num_layers(tensors, "decoder.layers")
        if "decoder.layers.0.mlp.fc1.weight" in tensors:
            fields["decoder_intermediate_size"] = tensors["decoder.layers.0.mlp.fc1.weight"].shape[0]
    return {**fields, **_known_heads(fields)}


def _known_heads(fields: dict) -> dict[str, int]:
    """Returns the numbers of heads, which no tensor shows, where the widths of encoder and decoder are known ones."""
    presets = [MAEConfig.from_preset(name) for name in PRESETS]
    heads = {(preset.hidden_size, preset.num_hidden_layers): preset.num_attention_heads for preset in presets}
    heads |= _OTHER_HEADS
    decoder_heads = {preset.decoder_hidden_size: preset.decoder_num_attention_heads for preset in presets}
    known = {
        "num_attention_heads": heads.get((fields["hidden_size"], fields["num_hidden_layers"])),
        "decoder_num_attention_heads": decoder_heads.get(fields.get("decoder_hidden_size")),
    }
    return {name: number for name, number in known.items() if number is not None}


def _is_grid_of(table: torch.Tensor, fields: dict, image_size: int | tuple[int, int]) -> bool:
    """Returns whether a position table is that of an image size that is wanted, and needs no resampling for it.

    As many patches may be of another grid: 14 x 14 are as many as 7 x 28. A square one is taken for a square unless the
    table is the fixed one of the other grid.
    """
    class_tokens = fields["num_class_tokens"]
    sides = zip(height_width(image_size), height_width(fields["patch_size"]), strict=True)
    rows, columns = (size // patch for size, patch in sides)
    if rows * columns != table.shape[1] - class_tokens:
        return False
    if rows == columns or math.isqrt(rows * columns) ** 2 != rows * columns:
        return True
    fixed = sincos_position_table(table.shape[2], (rows, columns), class_tokens)
    is_fixed = torch.allclose(table[:, class_tokens:].double(), fixed[:, class_tokens:].double(), atol=1e-2)
    if not is_fixed:
        side = math.isqrt(rows * columns)
        logger.warning(f"The {side**2} positions are taken as {side} x {side}, and resampled to {rows} x {columns}.")
    return is_fixed


def _stated_fields(stated: dict, tensors: dict[str, torch.Tensor]) -> dict:
    """Returns the fields that a `config.json` or training arguments state."""
    fields = {name: value for name, value in stated.items() if name in FIELDS}
    if stated.get("model_type") == "pixio" and "out_features" in stated:  # of a backbone
        fields["out_features"] = stated["out_features"]
    if "norm_pix_loss" in fields:
        fields["norm_pix_loss"] = bool(fields["norm_pix_loss"])
    if "architecture" in stated:
        fields = {**_fields_of_timm(stated, tensors), **fields}
    if not {"classifier.weight", "fc_norm.weight"}.isdisjoint(tensors):
        fields.pop("pooling", None)  # it may be that of the encoder that the classifier was made from
    if "id2label" in fields:
        fields.pop("num_labels", None)
    return fields


def _fields_of_timm(stated: dict, tensors: dict[str, torch.Tensor]) -> dict:
    """Returns the fields that a `config.json` of timm states under other names than ours.

    Raises:
        ValueError: If the classifier pools in a way that ours can't.
    """
    arguments = stated.get("model_args") or {}
    names = {"num_heads": "num_attention_heads", "img_size": "image_size", "act_layer": "hidden_act"}
    fields = {ours: arguments[theirs] for theirs, ours in names.items() if arguments.get(theirs) is not None}
    if fields.get("hidden_act") == "gelu_tanh":
        fields["hidden_act"] = "gelu_pytorch_tanh"
    if stated.get("label_names"):
        fields["id2label"] = dict(enumerate(stated["label_names"]))
    pooling = arguments.get("global_pool", stated.get("global_pool", "token"))
    if pooling in ("avg", "token"):
        fields["pooling"] = "mean" if pooling == "avg" else "class"
    has_fc_norm = "fc_norm.weight" in tensors
    if "classifier.weight" in tensors and (pooling not in ("avg", "token") or has_fc_norm != (pooling == "avg")):
        raise ValueError(
            f"The timm model pools by {pooling!r} {'before' if has_fc_norm else 'after'} the last norm, which "
            "MAEForImageClassification can't."
        )
    return fields


def _num_layers(tensors: dict[str, torch.Tensor], prefix: str) -> int:
    numbers = {name[len(prefix) + 1 :].split(".")[0] for name in tensors if name.startswith(prefix + ".")}
    return max(map(int, numbers), default=-1) + 1


def _check_complete(model_class: type[MAEPreTrainedModel], fields: dict, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Returns the names that the model has no place for, and refuses tensors that are missing or of another shape."""
    with torch.device("meta"), as_value_error("The configuration does not fit"):
        expected = model_class(MAEConfig(**fields)).state_dict()
    if model_class is MAEModel:
        expected = {f"mae.{name}": tensor for name, tensor in expected.items()}
    may_be_new = "classifier" if "classifier.weight" not in tensors else None
    missing = (name for name in expected if name not in tensors and name.split(".")[0] != may_be_new)
    problems = [f"missing: {name}" for name in missing]
    problems += [
        f"{name}: expected {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if problems:
        patches = tensors["mae.embeddings.position_embeddings"].shape[1] - fields["num_class_tokens"]
        is_square = math.isqrt(patches) ** 2 == patches
        advice = _pass_field("image_size", "(height, width)")
        hint = "" if is_square else f"\n{patches} patches are no square: {advice}."
        raise ValueError("The checkpoint does not fit (names as in hf_mae):\n  " + "\n  ".join(problems) + hint)
    return [name for name in tensors if name not in expected]


# ----------------------------------------------------------------------------------------------------------------------
# Out


def export_checkpoint(
    model: MAEModel | MAEForPreTraining | MAEForImageClassification,
    path: str | os.PathLike,
    layout: str,
    image_processor: MAEImageProcessor | None = None,
):
    """Writes a model for another library, which then loads it without any code of hf_mae.

    | layout | `path` becomes | read there by |
    |---|---|---|
    | `"official"` | a `.pth` file, weights under `"model"` | the official MAE code |
    | `"vit_mae"` | a folder | `transformers.ViTMAEForPreTraining`, `ViTMAEModel` |
    | `"vit"` | a folder | `transformers.ViTModel`, `ViTForImageClassification` |
    | `"timm"` | a folder | `timm.create_model("local-dir:<path>", pretrained=True)` |
    | `"mmpretrain"` | a `.pth` file, weights under `"state_dict"` | `MAEViT`, `VisionTransformer` and their heads |
    | `"lightly"` | a `.pth` file | `load_state_dict` of lightly's MAE with a timm backbone |
    | `"pixio"` | a folder | `transformers.PixioModel`, and `PixioBackbone` with the same norm |
    | `"pixio_official"` | a `.pth` file; an encoder alone bare, otherwise under `"model"` | the official Pixio code |

    The configuration is written too, so that [`import_checkpoint`] gives the same model back; only the bare files hold
    none. `"vit"`, `"timm"` and `"pixio"` have no decoder: it is left out, and the log says so. Everything else that the
    other library cannot compute is refused.

    Args:
        model ([`MAEModel`], [`MAEForPreTraining`] or [`MAEForImageClassification`]): The model, of any dtype.
        path (`str` or `os.PathLike`): File or folder to make.
        layout (`str`): See the table.
        image_processor ([`MAEImageProcessor`], *optional*): Written as that of the other library, where it has one.

    Raises:
        ValueError: If there is no such layout, the other library cannot compute the model, or `path` does not fit.
        OSError: If there is something at `path` already.
    """
    path = Path(path)
    _check_export(model, path, layout)
    theirs, left_out = _their_tensors(model, layout)
    with written_whole(path) as place:
        if LAYOUTS[layout].is_folder:
            transform = timm_transform(image_processor) if layout == "timm" and image_processor is not None else {}
            write_folder(model, place, layout, theirs, transform)
            if image_processor is not None and layout != "timm":  # there the configuration says it
                write_stock_processor(place, layout, image_processor)
        else:
            arguments = {name: value for name, value in model.config.to_dict().items() if name not in NOT_FIELDS}
            container = LAYOUTS[layout].container
            if layout == "pixio_official" and isinstance(model, MAEModel):  # published encoders are bare
                container = None
            try:
                torch.save({container: theirs, "args": arguments} if container else theirs, place)
            except RuntimeError as error:  # in which torch hides that of the disk
                raise OSError(errno.ENOSPC, f"No room to write {path}: {error}") from error
    if left_out:
        parts = sorted({"decoder" if name.startswith("decoder.") else name for name in left_out})
        logger.warning(f"Left out, as {LAYOUTS[layout].title} has no place for it: {', '.join(parts)}.")


def _check_export(model: MAEPreTrainedModel, path: Path, layout: str):
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    target, eps = LAYOUTS[layout], model.config.layer_norm_eps
    if target.is_folder == (path.suffix == ".pth"):
        kind = "folder" if target.is_folder else ".pth file"
        raise ValueError(f"For {target.title} the path must be a {kind}: {path}")
    check_is_free(path)
    if not isinstance(model, MAEModel | MAEForPreTraining | MAEForImageClassification):
        raise ValueError(f"{type(model).__name__} can't be exported, only encoders, pre-training models, classifiers.")
    if isinstance(model, MAEModel) and isinstance(model.layernorm, nn.Identity):
        raise ValueError(
            "This encoder has no final norm, since its classifier normalises the mean of the patches: others would "
            "make a new one. Export the classifier, to 'timm' or 'official', or load the folder with AutoModel."
        )
    if problem := find_obstacle(layout, model):
        raise ValueError(f"{target.title[0].upper()}{target.title[1:]} {problem}")
    if eps != target.layer_norm_eps and layout not in OF_TRANSFORMERS:
        logger.warning(
            f"The norms of {target.title} add {target.layer_norm_eps}, which its files cannot change; this model was "
            f"made with layer_norm_eps={eps}."
        )
    if layout == "pixio" and model.config.pooling != "class":
        logger.warning(
            "The pooler_output of transformers' Pixio is the mean of the class tokens, that of this model the mean of "
            "the patches (pooling='mean')."
        )


def check_is_free(path: Path):
    """Refuses to write over a file, or over what may be the weights that are being converted."""
    if path.is_file() or any((path / name).exists() for name in ("config.json", *WEIGHT_FILES)):
        raise OSError(f"{path} exists already. Choose another path, or remove it.")


def find_obstacle(layout: str, model: MAEPreTrainedModel) -> str | None:
    """Returns why the other library cannot compute what a model computes, or `None` if it can.

    Args:
        layout (`str`): A layout of [`export_checkpoint`].
        model ([`MAEPreTrainedModel`]): The model; its weights may be on the meta device.
    """
    if isinstance(model, MAEForImageClassification) and (problem := _find_head_obstacle(layout, model.config)):
        return problem
    if LAYOUTS[layout].has("decoder.embed") and isinstance(model, MAEForPreTraining):
        if model.config.mask_tokens_in_encoder:
            return "has no mask tokens in the encoder. Export to 'vit' or 'timm', which take the encoder alone."
        if not model.predicts_pixels:
            return f"predicts pixels, {type(model).__name__} something else. Export its encoder, `model.mae`."
    return _find_encoder_obstacle(layout, model.config)


def _find_head_obstacle(layout: str, config: MAEConfig) -> str | None:
    if config.pooling == "attentive":
        return "has no attentive pooling. Export the encoder, `model.mae`."
    if not LAYOUTS[layout].has("classifier"):
        way_out = "the encoder, `model.mae`" if layout in PIXIO_LAYOUTS else "to 'vit' or 'timm'"
        return f"has no classifier. Export {way_out}."
    if layout == "vit" and config.pooling == "mean":
        return "classifies by the class token, this model by the mean of the patches. Export to 'timm' or 'official'."
    return None


def _find_encoder_obstacle(layout: str, config: MAEConfig) -> str | None:
    (height, width), (patch_height, patch_width) = height_width(config.image_size), height_width(config.patch_size)
    if config.num_class_tokens > 1 and layout not in PIXIO_LAYOUTS:
        return f"has one class token, this model {config.num_class_tokens}. Export to 'pixio' or 'pixio_official'."
    if layout in ("vit_mae", *PIXIO_LAYOUTS) and (height != width or patch_height != patch_width):
        hint = "Export to 'vit'." if config.num_class_tokens == 1 else "Resize the model to them, or keep it in hf_mae."
        return f"takes square images and patches only. {hint}"
    if layout == "pixio" and config.intermediate_size % config.hidden_size:
        sizes = f"{config.intermediate_size} for {config.hidden_size}"
        return f"has MLPs whose width is a multiple of `hidden_size`, this model {sizes}. Export to 'pixio_official'."
    if layout not in OF_TRANSFORMERS and config.hidden_act != "gelu":
        return f"has 'gelu' as its activation, this model {config.hidden_act!r}."
    return None


def _their_tensors(model: MAEPreTrainedModel, layout: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the tensors under the names of another layout, and our names of those that it does not have."""
    prefix = "mae." if isinstance(model, MAEModel) else ""
    tensors = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    theirs, left_out = {}, []
    for name, their_names in names_in(layout, tensors).items():
        tensor = tensors[name]
        if name == "mae.embeddings.patch_embeddings.weight":  # back to a convolution's (D, C, height, width)
            sizes = (*height_width(model.config.patch_size), model.config.num_channels)
            tensor = tensor.unflatten(1, sizes).permute(0, 3, 1, 2)
        if not their_names:
            if name.startswith(("mae.", "fc_norm.", "classifier.")) and name != "mae.embeddings.mask_token":
                raise ValueError(
                    f"The model has {name}, for which {LAYOUTS[layout].title} has no place. If it has an adapter, "
                    "export peft.PeftModel.from_pretrained(base_model, adapter).merge_and_unload()."
                )
            left_out.append(name)
            continue
        for their_name, part in zip(their_names, tensor.chunk(len(their_names)), strict=True):
            theirs[their_name] = part.detach().cpu().clone(memory_format=torch.contiguous_format)
    if layout == "pixio":  # PixioBackbone has two final norms, and starts the one that it does not find anew
        norms = {name: tensor.clone() for name, tensor in theirs.items() if name.startswith("layernorm.")}
        theirs |= {f"pixio.{name}": tensor for name, tensor in norms.items()}
    return theirs, left_out


__all__ = ["check_is_free", "detect_layout", "export_checkpoint", "find_obstacle", "import_checkpoint"]
