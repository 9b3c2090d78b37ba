# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Weights of other implementations, in and out: one table of names for each, and what the tensors tell of the model."""

import argparse
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING
from transformers.utils import cached_file, logging

from .modeling.configuration_mae import _PRESETS, MAEConfig, _pair
from .modeling.image_processing_mae import MAEImageProcessor
from .modeling.modeling_mae import _HUB_KWARGS, MAEForPreTraining, MAEModel, MAEPreTrainedModel
from .modeling.modeling_mae_downstream import MAEForImageClassification, fold_batch_norm

logger = logging.get_logger(__name__)

# ----------------------------------------------------------------------------------------------------------------------
# Names: theirs -> ours. `{}` is the number of a block; of several names for one of ours the first is the one written.


def _blocks(theirs: str, ours: str, names: dict[str, str]) -> dict[str, str]:
    return {f"{theirs}.{{}}.{name}": f"{ours}.{{}}.{our_name}" for name, our_name in names.items()}


_TIMM_BLOCK = {
    "norm1": "layernorm_before",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TIMM = {
    "cls_token": "mae.embeddings.cls_token",
    "pos_embed": "mae.embeddings.position_embeddings",
    "patch_embed.proj": "mae.embeddings.patch_embeddings",
    **_blocks("blocks", "mae.layers", _TIMM_BLOCK),
    "norm": "mae.layernorm",
    "fc_norm": "fc_norm",
    "head": "classifier",
}
_OFFICIAL_DECODER = {
    "decoder_embed": "decoder.embed",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.position_embeddings",
    **_blocks("decoder_blocks", "decoder.layers", _TIMM_BLOCK),
    "decoder_norm": "decoder.layernorm",
    "decoder_pred": "decoder.head",
}
_LIGHTLY = {
    **{f"backbone.vit.{theirs}": ours for theirs, ours in _TIMM.items() if ours.startswith("mae.")},
    **{f"decoder.{theirs}": ours for theirs, ours in _OFFICIAL_DECODER.items()},
}
# transformers' files, then the names that `state_dict()` has since version 5.
_VIT_BLOCK = {
    "layernorm_before": "layernorm_before",
    "attention.attention.query": "attention.query",
    "attention.attention.key": "attention.key",
    "attention.attention.value": "attention.value",
    "attention.output.dense": "attention.proj",
    "layernorm_after": "layernorm_after",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_VIT_BLOCK_IN_MEMORY = {
    "layernorm_before": "layernorm_before",
    "attention.q_proj": "attention.query",
    "attention.k_proj": "attention.key",
    "attention.v_proj": "attention.value",
    "attention.o_proj": "attention.proj",
    "layernorm_after": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_VIT_ENCODER = {
    "vit.embeddings.cls_token": "mae.embeddings.cls_token",
    "vit.embeddings.position_embeddings": "mae.embeddings.position_embeddings",
    "vit.embeddings.patch_embeddings.projection": "mae.embeddings.patch_embeddings",
    **_blocks("vit.encoder.layer", "mae.layers", _VIT_BLOCK),
    **_blocks("vit.layers", "mae.layers", _VIT_BLOCK_IN_MEMORY),
    "vit.layernorm": "mae.layernorm",
}
_VIT_MAE_DECODER = {
    "decoder.decoder_embed": "decoder.embed",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.position_embeddings",
    **_blocks("decoder.decoder_layers", "decoder.layers", _VIT_BLOCK),
    **_blocks("decoder.decoder_encoder.layer", "decoder.layers", _VIT_BLOCK),  # written by 5.10 and later, by mistake
    **_blocks("decoder.decoder_layers", "decoder.layers", _VIT_BLOCK_IN_MEMORY),
    "decoder.decoder_norm": "decoder.layernorm",
    "decoder.decoder_pred": "decoder.head",
}


class _Layout(NamedTuple):
    title: str
    names: dict[str, str]
    has_decoder: bool
    is_folder: bool  # config.json and model.safetensors, or one .pth
    layer_norm_eps: float  # where nothing else tells it


_LAYOUTS = {
    "official": _Layout("the official MAE code", {**_TIMM, **_OFFICIAL_DECODER}, True, False, 1e-6),
    "timm": _Layout("timm", _TIMM, False, True, 1e-6),
    "vit_mae": _Layout("transformers' ViTMAE", {**_VIT_ENCODER, **_VIT_MAE_DECODER}, True, True, 1e-12),
    "vit": _Layout("transformers' ViT", {**_VIT_ENCODER, "classifier": "classifier"}, False, True, 1e-12),
    "lightly": _Layout("lightly", _LIGHTLY, True, False, 1e-6),
}
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# In a config.json, but not fields of the model.
_NOT_FIELDS = {"architectures", "auto_map", "dtype", "model_type", "transformers_version"}
# Tensors that say: the encoder, or what its classifier sees, is something else.
_OTHER_ARCHITECTURE = r"(blocks|layers?)\.\d+\.|(reg|register|dist|distillation)_tokens?$|norm_pre|rel_pos|patch_embed"
_OTHER_CLASSIFIER = r"pre_logits|attn_pool|head_dist"


def _split_number(name: str) -> tuple[str, str, str]:
    """Splits a name into its pattern, with `{}` for the block, the block's number, and `.weight` or `.bias`."""
    stem, suffix = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name).groups(default="")
    number = re.search(r"(?<=\.)\d+(?=\.)", stem)
    return (stem, "", suffix) if number is None else (re.sub(r"\.\d+\.", ".{}.", stem, count=1), number[0], suffix)


def _to_ours(name: str, names: dict[str, str]) -> str | None:
    """Returns our name of a tensor, or `None`."""
    pattern, number, suffix = _split_number(name)
    ours = names.get(pattern) or names.get(f"vit.{pattern}")  # an encoder by itself has no prefix
    return None if ours is None else ours.format(number) + suffix


def _rename(state_dict: dict[str, torch.Tensor], names: dict[str, str]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the tensors under our names, and the names that are not known."""
    renamed, unknown = {}, []
    for name, tensor in state_dict.items():
        our_name = _to_ours(name, names)
        if our_name is None:
            unknown.append(name)
        else:
            renamed[our_name] = tensor
    return renamed, unknown


def names_in(layout: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Tells what tensors of ours are called elsewhere.

    Args:
        layout (`str`): `"official"`, `"timm"`, `"vit"`, `"vit_mae"` or `"lightly"`.
        names (`Iterable[str]`): Names of tensors of [`MAEForPreTraining`] or [`MAEForImageClassification`].

    Returns:
        `dict[str, list[str]]`: For each name theirs: none if they have no such tensor, three if queries, keys and
        values are apart there.
    """
    theirs = {}
    for their_name, our_name in _LAYOUTS[layout].names.items():
        theirs.setdefault(our_name, their_name)
    found, whole = {}, False
    for name in names:
        pattern, number, suffix = _split_number(name)
        parts = [pattern]
        if pattern.endswith(".qkv") and pattern not in theirs:
            parts = [pattern.replace(".qkv", f".{part}") for part in ("query", "key", "value")]
        found[name] = [theirs[part].format(number) + suffix for part in parts if part in theirs]
        whole = whole or bool(found[name]) and not name.startswith("mae.")
    if not whole:  # an encoder by itself
        found = {name: [each.removeprefix("vit.") for each in their_names] for name, their_names in found.items()}
    return found


# ----------------------------------------------------------------------------------------------------------------------
# In


# Fields that weights and users may tell: those of MAEConfig and of labels.
_FIELDS = set(MAEConfig().to_dict()) - _NOT_FIELDS | {"id2label", "label2id", "num_labels", "problem_type"}
_RANKS = {
    "mae.embeddings.cls_token": 3,
    "mae.embeddings.position_embeddings": 3,
    "mae.embeddings.patch_embeddings.weight": 4,
    "mae.layers.0.mlp.fc1.weight": 2,
    "decoder.embed.weight": 2,
    "decoder.layers.0.mlp.fc1.weight": 2,
    "classifier.weight": 2,
}


def detect_layout(checkpoint: str | os.PathLike | Mapping[str, torch.Tensor]) -> str:
    """Tells whose layout a checkpoint has: a key of the layouts, or `"mae"` for a folder of hf_mae.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): As in [`import_checkpoint`].

    Raises:
        OSError: If it can't be read, or holds anything but tensors and training arguments.
        ValueError: If it is none of them.
    """
    state_dict, beside = _read(_folder_of(checkpoint))
    if beside.get("model_type") == MAEConfig.model_type:
        return MAEConfig.model_type
    return _recognise(state_dict, beside)[0]


def import_checkpoint(
    checkpoint: str | os.PathLike | Mapping[str, torch.Tensor],
    model_class: type[MAEPreTrainedModel] | None = None,
    **config,
) -> MAEPreTrainedModel:
    """Builds a model from weights of the official MAE code, timm, transformers (ViTMAE, ViT), lightly, or hf_mae.

    Whose they are is told by the names of the tensors; the log says it. Sizes are read off the tensors. What these
    cannot tell (heads, `norm_pix_loss`, a grid that is not square) comes from `config`, from what is beside the weights
    (`config.json`, training arguments), or from the preset of the same widths.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): A `.pth` file (bare or under `"model"` or
            `"state_dict"`), a `.safetensors` file, a folder, a name on the Hub, or a state dict. Files are never
            unpickled beyond tensors and plain containers.
        model_class (`type`, *optional*): A class of ours. Parts that the checkpoint lacks start anew, the log says
            which. Defaults to the class of the content.
        **config: Fields of [`MAEConfig`] that the tensors do not tell or that shall differ. Another `image_size`
            resamples the position tables. `revision`, `token`, `cache_dir`, ... are those of `from_pretrained`.

    Returns:
        By default [`MAEForPreTraining`] if there is a decoder in the checkpoint, [`MAEForImageClassification`] if there
        is a classifier (fine-tuned, or of a linear probe, whose batch norm goes into the classifier's weights), with
        `pooling="mean"` if there is a `fc_norm`; else [`MAEModel`]. float32, in evaluation mode.

    Raises:
        OSError: If the checkpoint can't be read, or holds anything but tensors and training arguments.
        ValueError: If it is of another architecture, tensors are missing or do not fit, heads can't be told, or a field
            does not exist.
    """
    checkpoint = _folder_of(checkpoint)
    if unknown := [name for name in config if name not in (*_FIELDS, *_HUB_KWARGS)]:
        raise ValueError(f"MAEConfig has no field {', '.join(unknown)}.")
    hub_kwargs = {name: config.pop(name) for name in _HUB_KWARGS if name in config}
    state_dict, beside = _read(checkpoint, **hub_kwargs)
    if beside.get("model_type") == MAEConfig.model_type:
        classes = {each.__name__: each for each in (MAEModel, MAEForPreTraining, MAEForImageClassification)}
        model_class = model_class or classes.get((beside.get("architectures") or [""])[0], MAEModel)
        return model_class.from_pretrained(checkpoint, dtype=torch.float32, **config, **hub_kwargs).eval()
    wanted = {name: config.pop(name) for name in ("image_size", "num_channels") if name in config}
    content_class, fields, tensors = _convert(state_dict, beside, config, wanted.get("image_size"))
    load = (model_class or content_class).from_pretrained
    model = load(None, config=MAEConfig(**fields), state_dict=tensors, dtype=torch.float32)
    if _pair(wanted.get("image_size", model.config.image_size)) != _pair(model.config.image_size):
        model.resize_position_embeddings(wanted["image_size"])
    if wanted.get("num_channels", model.config.num_channels) != model.config.num_channels:
        model.resize_channels(wanted["num_channels"])
    return model.eval()


def _folder_of(checkpoint):
    """Returns the folder of weights beside which there is a configuration; anything else as it is."""
    if isinstance(checkpoint, str | os.PathLike):
        path = Path(checkpoint)
        if path.name in _WEIGHT_FILES and path.is_file() and (path.parent / "config.json").is_file():
            return path.parent
    return checkpoint


def _from_repository(name: str | os.PathLike, **hub_kwargs) -> tuple[dict, dict[str, torch.Tensor]]:
    """Reads a repository of transformers' ViTMAE or ViT for [`MAEPreTrainedModel.from_pretrained`]."""
    _, fields, tensors = _convert(*_read(name, **hub_kwargs), {})
    return fields, tensors


MAEPreTrainedModel._from_repository = staticmethod(_from_repository)


def _read(checkpoint, **hub_kwargs) -> tuple[dict[str, torch.Tensor], dict]:
    """Returns the tensors, and what stands beside them: the content of `config.json`, or arguments of training."""
    if isinstance(checkpoint, Mapping):
        return _tensors_and_arguments(checkpoint)
    path = Path(checkpoint)
    if path.is_file():
        return _tensors_and_arguments(_load_file(path))
    if not path.exists() and (path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".safetensors") or path.is_absolute()):
        raise OSError(f"There is no checkpoint {os.fspath(checkpoint)!r}.")
    name = os.fspath(checkpoint)
    config = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    beside = {} if config is None else _read_json(config)
    if beside.get("model_type") == MAEConfig.model_type:
        return {}, beside
    if beside.get("model_type") in ("vit", "vit_mae"):  # with the defaults of what it does not say
        with _as_value_error(f"{config} is not a configuration"):
            beside = CONFIG_MAPPING[beside["model_type"]].from_dict(beside).to_dict()
    for file in _WEIGHT_FILES:
        weights = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        if weights is None:
            continue
        if not file.endswith(".json"):
            return _tensors_and_arguments(_load_file(Path(weights)))[0], beside
        places = _read_json(weights).get("weight_map")
        shards = set(places.values()) if isinstance(places, Mapping) else set()
        if not shards or not all(isinstance(shard, str) and Path(shard).name == shard for shard in shards):
            raise OSError(f"{weights} does not name files beside it under 'weight_map'.")
        content = {}
        for shard in sorted(shards):
            content.update(_tensors_and_arguments(_load_file(Path(cached_file(name, shard, **hub_kwargs))))[0])
        return content, beside
    raise OSError(f"{name} holds no weights: none of {', '.join(_WEIGHT_FILES)}.")


def _read_json(path: str | os.PathLike) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} must hold an object, got {type(content).__name__}.")
    return content


@contextmanager
def _as_value_error(what: str):
    """Configurations of others raise what they like."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {error}") from error


def _load_file(path: Path):
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The official code saves its parsed arguments beside the weights; nothing else is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Not torch's own words, which advise to unpickle everything.
        reason = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {reason[1]}, which is neither tensor nor plain value" if reason else _last_line(error)
        raise OSError(f"{os.fspath(path)!r} is not a checkpoint of tensors and was not loaded: {reason}.") from None


def _last_line(error: Exception) -> str:
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[-1][:300].rstrip(".")


def _tensors_and_arguments(content) -> tuple[dict[str, torch.Tensor], dict]:
    state_dict, arguments = content, {}
    if isinstance(content, Mapping):
        state_dict = content.get("model", content.get("state_dict", content))
        arguments = content.get("args")
    is_mapping = isinstance(state_dict, Mapping)
    if not is_mapping or not all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in state_dict.items()):
        raise ValueError("A checkpoint must be a mapping from names to tensors, bare or under the key 'model'.")
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    arguments = arguments if isinstance(arguments, Mapping) else {}
    arguments = {name: value for name, value in arguments.items() if name in _FIELDS and value is not None}
    wrappers = r"^(module\.|_orig_mod\.)+"  # of DistributedDataParallel and torch.compile
    return {re.sub(wrappers, "", name): tensor for name, tensor in state_dict.items()}, arguments


def _convert(
    state_dict: dict[str, torch.Tensor], beside: dict, config: dict, image_size=None
) -> tuple[type[MAEPreTrainedModel], dict, dict[str, torch.Tensor]]:
    """Returns the class of the content, the fields of its configuration, and all tensors under our names and shapes."""
    state_dict = _without_batch_norm(state_dict)
    layout, title = _recognise(state_dict, beside)
    tensors, left_over = _rename(state_dict, _LAYOUTS[layout].names)
    other = f"{_OTHER_ARCHITECTURE}|{_OTHER_CLASSIFIER}" if "classifier.weight" in tensors else _OTHER_ARCHITECTURE
    if others := [name for name in left_over if re.search(other, name)]:
        raise ValueError(
            f"The names are those of {title}, but the model is of another architecture: it has "
            f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}."
        )
    _fuse_queries_keys_values(tensors)
    needed = ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.weight")
    needed = [f"mae.{name}" for name in (*needed, "layers.0.attention.qkv.weight", "layers.0.mlp.fc1.weight")]
    if missing := [name for name in needed if name not in tensors]:
        theirs = names_in(layout, missing)
        raise ValueError(
            f"The names are those of {title}, but there is no "
            f"{', '.join(name for names in theirs.values() for name in names)}."
        )
    for name, rank in _RANKS.items():
        if name in tensors and tensors[name].ndim != rank:
            raise ValueError(
                f"{name} (as hf_mae calls it) must have {rank} dimensions, got the shape {tuple(tensors[name].shape)}."
            )
    fields = {
        "layer_norm_eps": _LAYOUTS[layout].layer_norm_eps,
        **_sizes(tensors, image_size),
        **_told(beside, has_fc_norm="fc_norm.weight" in tensors, has_classifier="classifier.weight" in tensors),
        "mask_tokens_in_encoder": False,  # nowhere else
        **config,
    }
    content_class = MAEModel
    if "decoder.embed.weight" in tensors:
        content_class = MAEForPreTraining
        if "norm_pix_loss" not in fields:
            logger.warning(
                "The checkpoint does not say whether its decoder predicts pixels or normalised patches; pixels "
                "(norm_pix_loss=False) are assumed, as in the official files mae_visualize_*. Pass norm_pix_loss=True "
                "for weights that were trained with it, as the official mae_pretrain_*_full."
            )
    elif "classifier.weight" in tensors or "fc_norm.weight" in tensors:  # without its classifier, that one is new
        content_class = MAEForImageClassification
    for name in ("num_attention_heads", "decoder_num_attention_heads"):
        if name not in fields and ("decoder" not in name or content_class is MAEForPreTraining):
            raise ValueError(f"The tensors do not tell {name}, and no preset has these widths: pass {name}=...")
    # A convolution's (D, C, height, width) to (D, height * width * C), the order of `patchify`.
    weight = tensors["mae.embeddings.patch_embeddings.weight"]
    tensors["mae.embeddings.patch_embeddings.weight"] = weight.permute(0, 2, 3, 1).flatten(1)
    left_over += _check_complete(content_class, fields, tensors)
    parts = {"MAEForPreTraining": "encoder and decoder", "MAEForImageClassification": "encoder and classifier"}
    logger.warning(
        f"Weights in the layout of {title}: {parts.get(content_class.__name__, 'encoder')}, {len(state_dict)} tensors"
        + (f". Left out, as there is no place for them: {', '.join(left_over)}." if left_over else ".")
    )
    return content_class, fields, {name: tensor for name, tensor in tensors.items() if name not in left_over}


def _fuse_queries_keys_values(tensors: dict[str, torch.Tensor]):
    for name in [name for name in tensors if ".attention.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        shapes = {tuple(tensors[part].shape) for part in parts if part in tensors}
        if len(shapes) > 1 or () in shapes:
            raise ValueError(f"The shapes of {', '.join(parts)} differ: {shapes} (names as in hf_mae).")
        if all(part in tensors for part in parts):  # else the fused one is named as missing
            tensors[name.replace(".query.", ".qkv.")] = torch.cat([tensors.pop(part) for part in parts])


def _recognise(state_dict: dict[str, torch.Tensor], beside: dict) -> tuple[str, str]:
    """Returns the layout that knows most of the names, and what to call it: several may know all."""
    told = "timm" if "architecture" in beside else beside.get("model_type")
    known = {
        layout: sum(_to_ours(name, each.names) is not None for name in state_dict) for layout, each in _LAYOUTS.items()
    }
    most = max(known.values())
    if most < 2:
        ours = any(re.search(r"(^|\.)layers\.\d+\.attention\.qkv\.", name) for name in state_dict)
        raise ValueError(
            "These are weights of hf_mae itself: load the folder that they were saved in."
            if ours
            else "Not a layout that is known here ("
            + "; ".join(each.title for each in _LAYOUTS.values())
            + f"). Among the names are: {', '.join(list(state_dict)[:5])}."
        )
    best = [layout for layout in _LAYOUTS if known[layout] == most]
    best = [told] if told in best else best
    return best[0], " or ".join(_LAYOUTS[layout].title for layout in best)


def _without_batch_norm(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights of a linear probe with its batch norm, which has no weights of its own, inside the linear."""
    names = ("head.1.weight", "head.1.bias", "head.0.running_mean", "head.0.running_var")
    if any(name not in state_dict for name in names):
        return state_dict
    weight, bias, mean, variance = (state_dict[name] for name in names)
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or not mean.shape == variance.shape == weight.shape[1:]:
        raise ValueError(f"The shapes of {', '.join(names)} do not fit each other.")
    weight, bias = fold_batch_norm(weight, bias, mean, variance)
    rest = {name: tensor for name, tensor in state_dict.items() if not name.startswith("head.")}
    return {**rest, "head.weight": weight, "head.bias": bias}


def _sizes(tensors: dict[str, torch.Tensor], image_size=None) -> dict:
    """Returns the configuration that tensors under our names tell. `image_size` is taken if it fits their number."""
    width, channels, patch_height, patch_width = tensors["mae.embeddings.patch_embeddings.weight"].shape
    depth = _num_layers(tensors, "mae.layers")
    fields = {
        "num_channels": channels,
        "patch_size": patch_height if patch_height == patch_width else (patch_height, patch_width),
        "hidden_size": width,
        "num_hidden_layers": depth,
        "intermediate_size": tensors["mae.layers.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "mae.layers.0.attention.qkv.bias" in tensors,
    }
    if "classifier.weight" in tensors:
        fields.update(num_labels=tensors["classifier.weight"].shape[0], pooling="class")
    if "fc_norm.weight" in tensors:
        fields["pooling"] = "mean"
    num_patches = tensors["mae.embeddings.position_embeddings"].shape[1] - 1
    size = (math.isqrt(num_patches) * patch_height, math.isqrt(num_patches) * patch_width)
    if image_size is not None:
        height, width_ = _pair(image_size)
        if height // patch_height * (width_ // patch_width) == num_patches:
            size = (height, width_)
    fields["image_size"] = size[0] if size[0] == size[1] else size
    presets = [MAEConfig.from_preset(name) for name in _PRESETS]
    heads = {(preset.hidden_size, preset.num_hidden_layers): preset.num_attention_heads for preset in presets}
    if (width, depth) in heads:
        fields["num_attention_heads"] = heads[width, depth]
    if "decoder.embed.weight" in tensors:
        decoder_width = tensors["decoder.embed.weight"].shape[0]
        fields["decoder_hidden_size"] = decoder_width
        fields["decoder_num_hidden_layers"] = _num_layers(tensors, "decoder.layers")
        if "decoder.layers.0.mlp.fc1.weight" in tensors:
            fields["decoder_intermediate_size"] = tensors["decoder.layers.0.mlp.fc1.weight"].shape[0]
        heads = {preset.decoder_hidden_size: preset.decoder_num_attention_heads for preset in presets}
        if decoder_width in heads:
            fields["decoder_num_attention_heads"] = heads[decoder_width]
    return fields


def _told(beside: dict, has_fc_norm: bool, has_classifier: bool) -> dict:
    """Returns the fields that a `config.json` or training arguments tell."""
    fields = {name: value for name, value in beside.items() if name in _FIELDS}
    if "norm_pix_loss" in fields:
        fields["norm_pix_loss"] = bool(fields["norm_pix_loss"])
    if "architecture" in beside:  # timm's config.json
        model_args = beside.get("model_args") or {}
        for theirs, ours in (("num_heads", "num_attention_heads"), ("img_size", "image_size")):
            if theirs in model_args:
                fields.setdefault(ours, model_args[theirs])
        if beside.get("label_names"):
            fields.setdefault("id2label", dict(enumerate(beside["label_names"])))
        pooling = model_args.get("global_pool", beside.get("global_pool", "token"))
        if pooling in ("avg", "token"):
            fields.setdefault("pooling", "mean" if pooling == "avg" else "class")
        if has_classifier and (pooling not in ("avg", "token") or has_fc_norm != (pooling == "avg")):
            raise ValueError(
                f"The timm model pools by {pooling!r} {'before' if has_fc_norm else 'after'} the last norm, which "
                "MAEForImageClassification can't."
            )
    if has_classifier or has_fc_norm:  # what is written there may be of the encoder that it was made of
        fields.pop("pooling", None)
    if "id2label" in fields:
        fields.pop("num_labels", None)
    return fields


def _num_layers(tensors: dict[str, torch.Tensor], prefix: str) -> int:
    numbers = {name[len(prefix) + 1 :].split(".")[0] for name in tensors if name.startswith(prefix + ".")}
    return max(map(int, numbers), default=-1) + 1


def _check_complete(model_class: type[MAEPreTrainedModel], fields: dict, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Returns the names that the model has no place for; raises if one of its own is missing or of another shape."""
    with torch.device("meta"), _as_value_error("The configuration does not fit"):
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
        raise ValueError("The checkpoint does not fit (names as in hf_mae):\n  " + "\n  ".join(problems))
    return [name for name in tensors if name not in expected]


# ----------------------------------------------------------------------------------------------------------------------
# Out


def export_checkpoint(
    model: MAEModel | MAEForPreTraining | MAEForImageClassification,
    path: str | os.PathLike,
    layout: str,
    image_processor: MAEImageProcessor | None = None,
):
    """Writes a model for another library, which then loads it without any code of ours.

    | layout | `path` becomes | read there by |
    |---|---|---|
    | `"official"` | a `.pth` file, weights under `"model"` | the official MAE code |
    | `"vit_mae"` | a folder | `transformers.ViTMAEForPreTraining`, `ViTMAEModel` |
    | `"vit"` | a folder | `transformers.ViTModel`, `ViTForImageClassification` |
    | `"timm"` | a folder | `timm.create_model("local-dir:<path>", pretrained=True)` |
    | `"lightly"` | a `.pth` file | `load_state_dict` of lightly's MAE with a timm backbone |

    The configuration is written too, so that [`import_checkpoint`] gives the same model back. `"vit"` and `"timm"` have
    no decoder: it is left out, and the log says so. Everything else that the other library can't do is refused.

    Args:
        model ([`MAEModel`], [`MAEForPreTraining`] or [`MAEForImageClassification`]): The model; any dtype.
        path (`str` or `os.PathLike`): File or folder to make.
        layout (`str`): See the table.
        image_processor ([`MAEImageProcessor`], *optional*): Written as the other library's, where it has one.

    Raises:
        ValueError: If there is no such layout, the other library can't do what the model does, or `path` does not fit.
        OSError: If there is something at `path` already.
    """
    if layout not in _LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}; choose one of {', '.join(_LAYOUTS)}.")
    target, config, path = _LAYOUTS[layout], model.config, Path(path)
    if target.is_folder == (path.suffix == ".pth"):
        raise ValueError(
            f"For {target.title} the path must be a {'folder' if target.is_folder else '.pth file'}: {path}"
        )
    if (path / "config.json" if target.is_folder else path).exists():
        raise OSError(f"{path} exists already. Choose another path, or remove it.")
    if not isinstance(model, MAEModel | MAEForPreTraining | MAEForImageClassification):
        raise ValueError(f"{type(model).__name__} can't be exported, only encoders, pre-training models, classifiers.")
    if problem := _what_is_impossible(layout, model):
        raise ValueError(f"{target.title[0].upper()}{target.title[1:]} {problem}")
    if config.layer_norm_eps != target.layer_norm_eps and layout not in ("vit", "vit_mae"):
        logger.warning(
            f"The norms of {target.title} add {target.layer_norm_eps} and can't be told otherwise; this model was made "
            f"with layer_norm_eps={config.layer_norm_eps}."
        )
    tensors = {name if not isinstance(model, MAEModel) else f"mae.{name}": t for name, t in model.state_dict().items()}
    theirs, left_out = {}, []
    for name, their_names in names_in(layout, tensors).items():
        tensor = tensors[name]
        if name == "mae.embeddings.patch_embeddings.weight":  # back to a convolution's (D, C, height, width)
            tensor = tensor.unflatten(1, (*_pair(config.patch_size), config.num_channels)).permute(0, 3, 1, 2)
        if not their_names:
            left_out.append(name)
            continue
        for their_name, part in zip(their_names, tensor.chunk(len(their_names)), strict=True):
            theirs[their_name] = part.detach().cpu().clone(memory_format=torch.contiguous_format)
    whole = any(not name.startswith("mae.") for name in tensors if name not in left_out)
    fields = {name: value for name, value in config.to_dict().items() if name not in _NOT_FIELDS}
    path.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_folder:
        torch.save({"model": theirs, "args": fields} if layout == "official" else theirs, path)
    else:
        path.mkdir(exist_ok=True)
        save_file(theirs, path / "model.safetensors", metadata={"format": "pt"})
        if layout == "timm":
            fields = _timm_config(model, image_processor)
        else:
            parts = {MAEModel: "Model", MAEForPreTraining: "ForPreTraining"}
            part = parts.get(type(model), "ForImageClassification") if whole else "Model"
            fields.update(model_type=layout, architectures=[("ViTMAE" if layout == "vit_mae" else "ViT") + part])
            if image_processor is not None:
                _write_json(path / "preprocessor_config.json", _vit_image_processor(image_processor))
        _write_json(path / "config.json", fields)
    if left_out:
        logger.warning(f"Left out, as {target.title} has no place for it: {', '.join(_parts_of(left_out))}.")


def _what_is_impossible(layout: str, model: MAEPreTrainedModel) -> str | None:
    config, has_classifier = model.config, isinstance(model, MAEForImageClassification)
    (height, width), (patch_height, patch_width) = _pair(config.image_size), _pair(config.patch_size)
    if has_classifier and layout in ("vit_mae", "lightly"):
        return "has no classifier. Export to 'vit' or 'timm'."
    if has_classifier and layout == "vit" and config.pooling == "mean":
        return "classifies by the class token, this model by the mean of the patches. Export to 'timm' or 'official'."
    if isinstance(model, MAEForPreTraining) and config.mask_tokens_in_encoder and _LAYOUTS[layout].has_decoder:
        return "has no mask tokens in the encoder. Export to 'vit' or 'timm', which take the encoder alone."
    if layout == "vit_mae" and (height != width or patch_height != patch_width):
        return "takes square images and patches only. Export to 'vit'."
    if layout in ("official", "timm", "lightly") and config.hidden_act != "gelu":
        return f"has 'gelu' as its activation, this model {config.hidden_act!r}."
    return None


def _parts_of(names: list[str]) -> list[str]:
    return sorted({"decoder" if name.startswith("decoder.") else name for name in names})


def _timm_config(model: MAEPreTrainedModel, image_processor: MAEImageProcessor | None) -> dict:
    """Returns a `config.json` of timm: the class by one of its sizes, everything that differs as `model_args`."""
    config, has_classifier = model.config, isinstance(model, MAEForImageClassification)
    num_classes = config.num_labels if has_classifier else 0
    pooling = "avg" if config.pooling == "mean" else "token"
    ratio = config.intermediate_size / config.hidden_size
    arguments = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": ratio if int(config.hidden_size * ratio) == config.intermediate_size else ratio + 1e-9,
        "qkv_bias": config.qkv_bias,
        "global_pool": pooling,
        "fc_norm": has_classifier and pooling == "avg",
    }
    weights = {
        "input_size": [config.num_channels, *_pair(config.image_size)],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "num_classes": num_classes,
    }
    if image_processor is not None:
        weights.update(mean=image_processor.image_mean, std=image_processor.image_std)
        if edge := image_processor.size.shortest_edge:
            weights["crop_pct"] = min(_pair(config.image_size)) / edge
    labels = {"label_names": [config.id2label[index] for index in range(num_classes)]} if has_classifier else {}
    return {
        "architecture": "vit_base_patch16_224",
        "num_classes": num_classes,
        "num_features": config.hidden_size,
        "global_pool": pooling,
        "model_args": arguments,
        "pretrained_cfg": weights,
        **labels,
    }


def _vit_image_processor(image_processor: MAEImageProcessor) -> dict:
    """Returns a `preprocessor_config.json` of transformers' `ViTImageProcessor`, which has our steps."""
    ours = image_processor.to_dict()
    for name in ("auto_map", "num_channels"):
        ours.pop(name, None)
    return {**ours, "image_processor_type": "ViTImageProcessor"}


def _write_json(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["export_checkpoint", "detect_layout", "import_checkpoint", "names_in"]
