# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Reads and writes the files of other implementations. Nothing is ever unpickled."""

import argparse
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING
from transformers.utils import cached_file

from ..modeling.configuration_mae import MAEConfig, fields_of_pixio, height_width
from ..modeling.modeling_mae import MAEForPreTraining, MAEPreTrainedModel
from ..modeling.modeling_mae_downstream import MAEForImageClassification
from ..modeling.saving_mae import no_model_in, share_weights
from ..publishing.records import write_json

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Entries of a config.json that are not fields of the model.
NOT_FIELDS = {"architectures", "auto_map", "dtype", "model_type", "transformers_version"}
# Fields that files and users may state: those of MAEConfig, and of labels.
FIELDS = set(MAEConfig().to_dict()) - NOT_FIELDS | {"id2label", "label2id", "num_labels", "problem_type"}
_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_CLASS_NAMES = {"vit": "ViT", "vit_mae": "ViTMAE", "pixio": "Pixio"}  # of transformers, without "Model" and the like
# Where training code keeps the weights among other things.
_CONTAINERS = ("model", "state_dict", "module", "model_state_dict")
# Parts of names that wrappers add: DistributedDataParallel, torch.compile, FSDP, activation checkpointing, Fabric.
_WRAPPERS = (
    r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_original_module)\."
)


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def folder_of(checkpoint: str | os.PathLike | Mapping) -> str | os.PathLike | Mapping:
    """Returns the folder, if a checkpoint is the weight file of a folder with a configuration; else the checkpoint."""
    if isinstance(checkpoint, str | os.PathLike):
        path = Path(checkpoint)
        if path.name in WEIGHT_FILES and path.is_file() and (path.parent / "config.json").is_file():
            return path.parent
    return checkpoint


def read_checkpoint(
    checkpoint: str | os.PathLike | Mapping[str, torch.Tensor], **hub_kwargs
) -> tuple[dict[str, torch.Tensor], dict]:
    """Reads tensors, and what is stated next to them.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): As in [`import_checkpoint`].
        **hub_kwargs: `revision`, `token`, `cache_dir`, ... as in `from_pretrained`.

    Returns:
        `(state_dict, stated)`: `stated` is the content of `config.json`, or the training arguments in the file. The
        state dict is empty for folders of hf_mae, which load by themselves.

    Raises:
        OSError: If it cannot be read, or holds anything but tensors and training arguments.
        ValueError: If it is not a mapping from names to tensors, or the configuration is broken.
    """
    if isinstance(checkpoint, Mapping):
        return _split_content(checkpoint)
    path = Path(checkpoint)
    if path.is_file():
        return _split_content(_load_file(path))
    if not path.exists() and (path.suffix in _SUFFIXES or path.is_absolute()):
        raise OSError(f"There is no checkpoint {os.fspath(checkpoint)!r}.")
    return _read_folder(os.fspath(checkpoint), **hub_kwargs)


def _read_folder(name: str, **hub_kwargs) -> tuple[dict[str, torch.Tensor], dict]:
    config = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    stated = {} if config is None else read_json(config)
    if stated.get("model_type") == MAEConfig.model_type:
        return {}, stated
    with as_value_error(f"{config} is not a configuration"):
        if stated.get("model_type") in ("vit", "vit_mae"):  # adds the defaults of fields that it leaves out
            stated = CONFIG_MAPPING[stated["model_type"]].from_dict(stated).to_dict()
        elif stated.get("model_type") == "pixio":
            stated = fields_of_pixio(stated)
    for file in WEIGHT_FILES:
        weights = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        if weights is None:
            continue
        shards = _shards(weights) if file.endswith(".json") else [file]
        state_dict = {}
        for shard in shards:
            state_dict.update(_split_content(_load_file(Path(cached_file(name, shard, **hub_kwargs))))[0])
        return state_dict, stated
    if not os.path.exists(name):
        raise OSError(f"There is no folder {name!r}, and the Hub has given no weights of this name.")
    if os.path.exists(os.path.join(name, "adapter_config.json")):
        raise no_model_in(name)
    raise OSError(f"{name} holds no weights: none of {', '.join(WEIGHT_FILES)}.")


def _shards(index: str | os.PathLike) -> list[str]:
    """Returns the files that an index names. Only files next to it are read."""
    places = read_json(index).get("weight_map")
    shards = set(places.values()) if isinstance(places, Mapping) else set()
    if not shards or not all(isinstance(shard, str) and Path(shard).name == shard for shard in shards):
        raise OSError(f"{index} must name files of the same folder under 'weight_map'.")
    return sorted(shards)


def read_json(path: str | os.PathLike) -> dict:
    """Reads a JSON object.

    Raises:
        OSError: If the file holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} must hold an object, got {type(content).__name__}.")
    return content


@contextmanager
def as_value_error(what: str):
    """Turns any error into a `ValueError`: configurations of other libraries raise errors of many kinds."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {error}") from error


def _load_file(path: Path):
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The official code saves its parsed arguments next to the weights. Nothing else is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Not the message of torch, which advises to unpickle everything.
        held, reason = re.search(r"GLOBAL (\S+)", str(error)), _last_line(error)
        if held:
            reason = f"it holds {held[1]}, which is neither tensor nor plain value"
        elif "TorchScript" in str(error):
            reason = (
                "it is a program of TorchScript; save its state dict: torch.save(torch.jit.load(path).state_dict())"
            )
        elif isinstance(error, pickle.UnpicklingError | LookupError | EOFError):
            reason = "it is no file of torch.save, or holds more than tensors and plain values"
        raise OSError(f"{os.fspath(path)!r} is not a checkpoint of tensors and was not loaded: {reason}.") from None


def _last_line(error: Exception) -> str:
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[-1][:300].rstrip(".")


def _split_content(content) -> tuple[dict[str, torch.Tensor], dict]:
    """Splits the content of a file into tensors by name and training arguments."""
    state_dict, arguments = content, {}
    if isinstance(content, Mapping):
        state_dict = next((content[name] for name in _CONTAINERS if isinstance(content.get(name), Mapping)), content)
        arguments = content.get("args")
    is_mapping = isinstance(state_dict, Mapping)
    if not is_mapping or not all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in state_dict.items()):
        raise ValueError("A checkpoint must be a mapping from names to tensors, bare or under the key 'model'.")
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    arguments = arguments if isinstance(arguments, Mapping) else {}
    arguments = {name: value for name, value in arguments.items() if name in FIELDS and value is not None}
    tensors = {re.sub(_WRAPPERS, "", name): tensor for name, tensor in state_dict.items()}
    if len(tensors) < len(state_dict):
        raise ValueError("Some tensors are there twice, with and without 'module.' or the like. Pass one state dict.")
    return tensors, arguments


# ----------------------------------------------------------------------------------------------------------------------
# Writing


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives the place to write a file or a folder to, which gets its name when it is complete.

    If a full disk or the end of the process cut it off, it would seem complete, and the same command would refuse to
    write over it.

    Args:
        path (`Path`): File or folder that is being made. A folder with other files in it is written to directly: these
            stay, and the others are removed if an error ends the writing.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    before = set(path.glob("*"))
    if before:
        try:
            yield path
        except BaseException:
            for each in set(path.glob("*")) - before:
                with suppress(OSError):
                    shutil.rmtree(each) if each.is_dir() else each.unlink()
            raise
        return
    beside = path if path.is_dir() else path.parent  # an empty folder stays: it may be a disk
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=beside, ignore_cleanup_errors=True) as folder:
        place = Path(folder) / path.name  # which the card has as its title
        yield place
        if path.is_dir():
            for each in place.iterdir():
                os.replace(each, path / each.name)
        else:
            os.replace(place, path)


def write_folder(
    model: MAEPreTrainedModel,
    path: Path,
    layout: str,
    tensors: dict[str, torch.Tensor],
    transform: dict,
):
    """Writes a folder of weights and configuration that another library loads.

    Args:
        model ([`MAEPreTrainedModel`]): The model.
        path (`Path`): Folder to make.
        layout (`str`): `"vit"`, `"vit_mae"`, `"pixio"` or `"timm"`.
        tensors (`dict[str, torch.Tensor]`): The weights under the names of the layout.
        transform (`dict`): What timm states about images in the configuration.
    """
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = _timm_config(model, transform) if layout == "timm" else _transformers_config(model, layout)
    write_json(path / "config.json", config)
    share_weights(path)


def _transformers_config(model: MAEPreTrainedModel, layout: str) -> dict:
    kind = "Model"
    if isinstance(model, MAEForPreTraining) and layout == "vit_mae":  # the others have no decoder
        kind = "ForPreTraining"
    elif isinstance(model, MAEForImageClassification):
        kind = "ForImageClassification"
    fields = {name: value for name, value in model.config.to_dict().items() if name not in NOT_FIELDS}
    fields.update(model_type=layout, architectures=[_CLASS_NAMES[layout] + kind])
    if layout == "pixio":
        mlp_ratio = model.config.intermediate_size // model.config.hidden_size
        fields.update(n_cls_tokens=model.config.num_class_tokens, mlp_ratio=mlp_ratio)
    return fields


def _timm_config(model: MAEPreTrainedModel, transform: dict) -> dict:
    """Returns a `config.json` of timm: one of its architectures, and all differences from it as `model_args`."""
    config, has_classifier = model.config, isinstance(model, MAEForImageClassification)
    num_classes = config.num_labels if has_classifier else 0
    pooling = "token" if config.pooling == "class" else "avg"
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
        "input_size": [config.num_channels, *height_width(config.image_size)],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "num_classes": num_classes,
        **transform,
    }
    labels = {"label_names": [config.id2label[index] for index in range(num_classes)]} if has_classifier else {}
    return {
        "architecture": "vit_base_patch16_224",
        "num_classes": num_classes,
        "num_features": config.hidden_size,
        "global_pool": pooling,
        "position_embedding": config.position_embedding,  # timm does not read it, and no tensor shows it
        "model_args": arguments,
        "pretrained_cfg": weights,
        **labels,
    }


__all__ = [
    "FIELDS",
    "NOT_FIELDS",
    "WEIGHT_FILES",
    "as_value_error",
    "folder_of",
    "read_checkpoint",
    "read_json",
    "write_folder",
    "written_whole",
]
