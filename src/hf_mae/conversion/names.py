# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Names of tensors in other implementations: one table for each, read in both directions."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from ..modeling.configuration_mae import PIXIO_FIELDS

# Each table maps their names to ours, without `.weight` and `.bias`; `{}` stands for the number of a block. If
# several of their names stand for one of ours, the first of them is written.


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
_MMPRETRAIN_BLOCK = {
    "ln1": "layernorm_before",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.proj",
    "ln2": "layernorm_after",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}
# Source: mmpretrain/models/backbones/vision_transformer.py, necks/mae_neck.py and heads/ of open-mmlab/mmpretrain 1.x.
_MMPRETRAIN = {
    "backbone.cls_token": "mae.embeddings.cls_token",
    "backbone.pos_embed": "mae.embeddings.position_embeddings",
    "backbone.patch_embed.projection": "mae.embeddings.patch_embeddings",
    **_blocks("backbone.layers", "mae.layers", _MMPRETRAIN_BLOCK),
    "backbone.ln1": "mae.layernorm",
    "backbone.ln2": "fc_norm",  # after the mean of the patches
    "head.fc": "classifier",
    "head.layers.head": "classifier",
    "neck.decoder_embed": "decoder.embed",
    "neck.mask_token": "decoder.mask_token",
    "neck.decoder_pos_embed": "decoder.position_embeddings",
    **_blocks("neck.decoder_blocks", "decoder.layers", _MMPRETRAIN_BLOCK),
    "neck.ln1": "decoder.layernorm",
    "neck.decoder_pred": "decoder.head",
}
# Names in the files of transformers, and those that `state_dict()` has since its version 5.
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
    **_blocks("decoder.decoder_encoder.layer", "decoder.layers", _VIT_BLOCK),  # a mistake of versions since 5.10
    **_blocks("decoder.decoder_layers", "decoder.layers", _VIT_BLOCK_IN_MEMORY),
    "decoder.decoder_norm": "decoder.layernorm",
    "decoder.decoder_pred": "decoder.head",
}
# Names in the published files of Pixio and in those that transformers saves, and those of its `state_dict()`. Source:
# models/pixio of transformers 5.17 to 5.24.
_PIXIO_BLOCK = {
    "norm1": "layernorm_before",
    "attention.attention.query": "attention.query",
    "attention.attention.key": "attention.key",
    "attention.attention.value": "attention.value",
    "attention.output.dense": "attention.proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "intermediate.dense": "mlp.fc1",  # what `save_pretrained` makes of the two
    "output.dense": "mlp.fc2",
}
_PIXIO = {
    "embeddings.cls_token": "mae.embeddings.cls_token",
    "embeddings.position_embeddings": "mae.embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection": "mae.embeddings.patch_embeddings",
    **_blocks("encoder.layer", "mae.layers", _PIXIO_BLOCK),
    **_blocks("layers", "mae.layers", _VIT_BLOCK_IN_MEMORY),
    "layernorm": "mae.layernorm",
}
# Its official code has the names of the official MAE code, with several class tokens and no classifier.
_PIXIO_OFFICIAL = {**{name: ours for name, ours in _TIMM.items() if ours.startswith("mae.")}, **_OFFICIAL_DECODER}


class Layout(NamedTuple):
    """How another implementation stores a model.

    Args:
        title (`str`): Name of the implementation in messages.
        names (`dict[str, str]`): Their names and ours.
        is_folder (`bool`): Whether it saves a folder of `config.json` and `model.safetensors`, or one `.pth` file.
        layer_norm_eps (`float`): Epsilon of its norms, where a file does not say.
        container (`str` or `None`): Key under which its files hold the tensors. `None`: nothing else is in them.
        encoder_prefix (`str`): What the names of the encoder begin with in a whole model. Saved by itself, the encoder
            may lack it.
        fields (`dict`): Fields of our configuration that its models have, where nothing is stated.
    """

    title: str
    names: dict[str, str]
    is_folder: bool = False
    layer_norm_eps: float = 1e-6
    container: str | None = None
    encoder_prefix: str = ""
    fields: Mapping = MappingProxyType({})

    def has(self, name: str) -> bool:
        """Returns whether it has a tensor of ours, by its name without `.weight` and `.bias`."""
        return name in self.names.values()


_HF_VIT: dict = {"is_folder": True, "layer_norm_eps": 1e-12, "encoder_prefix": "vit."}
LAYOUTS = {
    "official": Layout("the official MAE code", {**_TIMM, **_OFFICIAL_DECODER}, container="model"),
    "timm": Layout("timm", _TIMM, is_folder=True),
    "vit_mae": Layout("transformers' ViTMAE", {**_VIT_ENCODER, **_VIT_MAE_DECODER}, **_HF_VIT),
    "vit": Layout("transformers' ViT", {**_VIT_ENCODER, "classifier": "classifier"}, **_HF_VIT),
    "mmpretrain": Layout("mmpretrain", _MMPRETRAIN, container="state_dict", encoder_prefix="backbone."),
    "lightly": Layout("lightly", _LIGHTLY),
    "pixio": Layout("transformers' Pixio", _PIXIO, is_folder=True, fields=PIXIO_FIELDS),
    "pixio_official": Layout(
        "the official Pixio code",
        _PIXIO_OFFICIAL,
        container="model",
        fields={**PIXIO_FIELDS, "norm_pix_loss": True},
    ),
}
PIXIO_LAYOUTS = ("pixio", "pixio_official")  # those that know several class tokens
# Batch norm and classifier of linear probes, and the classifier that stands for both.
_PROBES = (("head.0", "head.1", "head"), ("neck.bn", "head.fc", "head.fc"), ("neck.bn", "head.layers.head", "head.fc"))


def _split_number(name: str) -> tuple[str, str, str]:
    """Splits a name into its pattern, with `{}` for the block, the block's number, and `.weight` or `.bias`."""
    stem, suffix = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name).groups(default="")
    number = re.search(r"(?<=\.)\d+(?=\.)", stem)
    return (stem, "", suffix) if number is None else (re.sub(r"\.\d+\.", ".{}.", stem, count=1), number[0], suffix)


def our_name(name: str, layout: str) -> str | None:
    """Returns our name of a tensor, or `None` if the layout has no such tensor."""
    pattern, number, suffix = _split_number(name)
    names, prefix = LAYOUTS[layout].names, LAYOUTS[layout].encoder_prefix
    ours = names.get(pattern) or names.get(prefix + pattern)
    return None if ours is None else ours.format(number) + suffix


def rename(state_dict: Mapping[str, torch.Tensor], layout: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the tensors under our names, and the names that the layout does not know."""
    renamed, unknown = {}, []
    for name, tensor in state_dict.items():
        ours = our_name(name, layout)
        if ours is None:
            unknown.append(name)
        else:
            renamed[ours] = tensor
    return renamed, unknown


def names_in(layout: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Returns what tensors of ours are called in another layout.

    Args:
        layout (`str`): A key of `LAYOUTS`.
        names (`Iterable[str]`): Names of tensors of [`MAEForPreTraining`] or [`MAEForImageClassification`].

    Returns:
        `dict[str, list[str]]`: Their names for each of ours: none if they have no such tensor, three if they keep
        queries, keys and values apart.
    """
    theirs = {}
    for their_name, our in LAYOUTS[layout].names.items():
        theirs.setdefault(our, their_name)
    found, has_head = {}, False
    for name in names:
        pattern, number, suffix = _split_number(name)
        parts = [pattern]
        if pattern.endswith(".qkv") and pattern not in theirs:
            parts = [pattern.replace(".qkv", f".{part}") for part in ("query", "key", "value")]
        found[name] = [theirs[part].format(number) + suffix for part in parts if part in theirs]
        has_head = has_head or bool(found[name]) and not name.startswith("mae.")
    if LAYOUTS[layout].is_folder and not has_head:  # an encoder by itself
        prefix = LAYOUTS[layout].encoder_prefix
        found = {name: [each.removeprefix(prefix) for each in their_names] for name, their_names in found.items()}
    return found


def recognise(
    state_dict: Mapping[str, torch.Tensor], stated: str | None = None
) -> tuple[str, str, dict[str, torch.Tensor]]:
    """Finds the layout that knows most of the names, and the prefix that the names have in front of it, if any.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): Tensors by name.
        stated (`str`, *optional*): Layout that a configuration states. It decides between layouts that know equally
            many names.

    Returns:
        `(layout, title, state_dict)`: A key of `LAYOUTS`, a title that names every layout that fits equally well, and
        the tensors by their names without the prefix.

    Raises:
        ValueError: If no layout knows at least two of the names, or there are several encoders.
    """
    if any(re.search(r"(^|\.)layers\.\d+\.attention\.qkv\.", name) for name in state_dict):
        raise ValueError("These are weights of hf_mae itself: load the folder that they were saved in.")
    known = {}
    for prefix in _prefixes(state_dict):
        names = [name.removeprefix(prefix) for name in state_dict]
        for layout in LAYOUTS:
            known[prefix, layout] = sum(our_name(name, layout) is not None for name in names)
    most = max(known.values())
    if most < 2:
        raise ValueError(
            f"The layout of these weights is not known. Known are: {'; '.join(each.title for each in LAYOUTS.values())}"
            f". Among the names are: {', '.join(list(state_dict)[:5])}."
        )
    fitting = [prefix for (prefix, _), count in known.items() if count == most]
    prefix = fitting[0]
    if others := [other for other in fitting if not other.startswith(prefix)]:
        raise ValueError(
            f"There are several encoders in these weights, under {prefix!r} and {others[0]!r}. Pass the state dict of "
            "one of them."
        )
    state_dict = _strip(state_dict, prefix)
    best = [layout for layout in LAYOUTS if known[prefix, layout] == most]
    if stated in best:
        best = [stated]
    else:  # what tells Pixio from MAE and ViT under the same names
        several = _has_several_class_tokens(state_dict)
        best = [layout for layout in best if (layout in PIXIO_LAYOUTS) == several] or best
    return best[0], " or ".join(LAYOUTS[layout].title for layout in best), state_dict


def _has_several_class_tokens(state_dict: Mapping[str, torch.Tensor]) -> bool:
    return any(
        name.endswith("cls_token") and tensor.ndim == 3 and tensor.shape[1] > 1 for name, tensor in state_dict.items()
    )


def _prefixes(names: Iterable[str]) -> list[str]:
    """Returns everything that may stand before the names of a layout: none first, then what class tokens have."""
    prefixes = [""]
    for name in names:
        if name.endswith("cls_token"):
            parts = name.split(".")[:-1]
            prefixes += [".".join(parts[:length]) + "." for length in range(1, len(parts) + 1)]
    return sorted(dict.fromkeys(prefixes), key=len)


def _strip(state_dict: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    stripped = {}
    for name, tensor in state_dict.items():
        short = name.removeprefix(prefix)
        if short in stripped:
            raise ValueError(
                f"The weights hold {short} both with and without the prefix {prefix!r}. Pass the state dict of one "
                "model."
            )
        stripped[short] = tensor
    return stripped


def find_probe(state_dict: Mapping[str, torch.Tensor]) -> tuple[str, str, str] | None:
    """Returns the names of batch norm and classifier of a linear probe and of the classifier that stands for both."""
    for norm, linear, classifier in _PROBES:
        if {f"{norm}.running_mean", f"{norm}.running_var", f"{linear}.weight", f"{linear}.bias"} <= set(state_dict):
            return norm, linear, classifier
    return None


def merge_backbone_norms(
    state_dict: Mapping[str, torch.Tensor], keep_own: bool = True
) -> tuple[dict[str, torch.Tensor], bool]:
    """Gives the tensors of a `PixioBackbone` of transformers the names of a `PixioModel`.

    A backbone holds a whole model, under `pixio.` or in some files `encoder.`, and a final norm of its own, with which
    it makes its maps.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): Tensors by name, of a backbone or of anything else.
        keep_own (`bool`, *optional*, defaults to `True`): Whether to keep the norm of the backbone, or that of the
            model in it.

    Returns:
        `(state_dict, differ)`: The tensors with one final norm, and whether there were two that differ. Anything but a
        backbone comes back as it is.
    """
    for name in state_dict:
        match = re.fullmatch(r"(|.*\.)(pixio|encoder)\.layernorm\.weight", name)
        if match and f"{match[1]}layernorm.weight" in state_dict:
            break
    else:
        return dict(state_dict), False
    outer, inner = match[1], f"{match[1]}{match[2]}."
    model = {outer + name.removeprefix(inner): each for name, each in state_dict.items() if name.startswith(inner)}
    own = {name: each for name, each in state_dict.items() if not name.startswith(inner)}
    differ = any(not torch.equal(model[name], own[name]) for name in model.keys() & own.keys())
    return ({**model, **own} if keep_own else {**own, **model}), differ


__all__ = [
    "LAYOUTS",
    "PIXIO_LAYOUTS",
    "Layout",
    "find_probe",
    "merge_backbone_norms",
    "names_in",
    "our_name",
    "recognise",
    "rename",
]
