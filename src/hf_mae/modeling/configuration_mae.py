# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The configuration of a masked autoencoder (He et al. 2021, arXiv 2111.06377)."""

import math
import os

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .masking_mae import MASK_SAMPLINGS, check_mask_cells
from .saving_mae import SavesCode, check_is_object, explaining_missing, has_config, no_model_in

# Note for maintainers: `from __future__ import annotations` would silently switch off the type checks of `@strict`,
# which skips annotations that are strings.

# Encoders: Dosovitskiy et al. 2020 (arXiv 2010.11929), Table 1; tiny and small: Touvron et al. 2020 (arXiv 2012.12877),
# Table 1. Decoders of base, large and huge: He et al. 2021, section 4.1 and Table 1 (8 blocks, width 512). The decoders
# of tiny and small are ours: about the same fraction of the encoder's width, heads of 32 channels as in the paper.
# Pixio: arXiv 2512.15715, Table 8 (base, large, huge) and Table 10 (a decoder of 32 blocks for all sizes). pixio-small
# is ours, small with that decoder, and so is pixio-tiny: tiny with twice as deep a decoder, which at ViT-H gives nearly
# all that four times the depth gives (Table 13: 55.1 and 55.8 % k-NN, 35.3 without).
PRESETS = {
    #         patch width depth heads  mlp | decoder: width depth heads  mlp
    "tiny": (16, 192, 12, 3, 768, 128, 4, 4, 512),
    "small": (16, 384, 12, 6, 1536, 256, 4, 8, 1024),
    "base": (16, 768, 12, 12, 3072, 512, 8, 16, 2048),
    "large": (16, 1024, 24, 16, 4096, 512, 8, 16, 2048),
    "huge": (14, 1280, 32, 16, 5120, 512, 8, 16, 2048),
    "pixio-tiny": (4, 192, 12, 3, 768, 128, 8, 4, 512),
    "pixio-small": (16, 384, 12, 6, 1536, 512, 32, 16, 2048),
    "pixio-base": (16, 768, 12, 12, 3072, 512, 32, 16, 2048),
    "pixio-large": (16, 1024, 24, 16, 4096, 512, 32, 16, 2048),
    "pixio-huge": (16, 1280, 32, 16, 5120, 512, 32, 16, 2048),
}
PRESET_FIELDS = (
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)
PIXIO_FIELDS = {"position_embedding": "learned", "pooling": "class"}
# pixio-tiny is matched for small pictures: 8 x 8 patches in cells of 2 x 2 are 16 cells, of which four stay visible, as
# of Pixio's 16 x 16 patches in cells of 4 x 4. With cells of 2 x 2, four class tokens did as well as eight (Table 15).
_PRESET_CHANGES = {
    "pixio-tiny": {**PIXIO_FIELDS, "image_size": 32, "num_class_tokens": 4, "mask_block_size": 2},
    **{
        f"pixio-{size}": {**PIXIO_FIELDS, "image_size": 256, "num_class_tokens": 8, "mask_block_size": 4}
        for size in ("small", "base", "large", "huge")
    },
}


@strict
class MAEConfig(SavesCode, BackboneConfigMixin, PreTrainedConfig):
    r"""Holds the configuration of all MAE models. The defaults are ViT-B/16 at 224 px.

    Args:
        image_size (`int` or `(height, width)`, *optional*, defaults to 224): Pixels of the images for which the
            position tables are made. Images of other sizes work too: the tables are resampled.
        patch_size (`int` or `(height, width)`, *optional*, defaults to 16): Pixels of one patch. Must divide
            `image_size`.
        num_channels (`int`, *optional*, defaults to 3): Channels of the images, any number from 1.
        hidden_size (`int`, *optional*, defaults to 768): Width of the encoder. Must be divisible by
            `num_attention_heads`, and by 4 for the two-dimensional sin-cos position table.
        num_class_tokens (`int`, *optional*, defaults to 1): Class tokens, each with its own values, before the patches
            in encoder and decoder. Source: Pixio (arXiv 2512.15715), section 3.2, which has 8.
        position_embedding (`"sincos"` or `"learned"`, *optional*, defaults to `"sincos"`): Whether the position tables
            of encoder and decoder are fixed sines and cosines, with zeros for class tokens, or are learned, from a
            truncated normal distribution. Sources: He et al. 2021, appendix A.1; Pixio, Table 10. In fine-tuning both
            are trained.
        num_hidden_layers (`int`, *optional*, defaults to 12): Blocks of the encoder.
        num_attention_heads (`int`, *optional*, defaults to 12): Attention heads of the encoder.
        intermediate_size (`int`, *optional*, defaults to 3072): Width of the encoder's MLPs.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of all MLPs.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout after attention and MLP, in [0, 1].
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout of attention weights, in [0, 1].
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of new class and mask tokens and
            of learned positions. Linear layers start from Xavier's uniform distribution. Source: He et al. 2021,
            appendix A.1.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of all layer norms.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        pooling (`"mean"`, `"class"` or `"attentive"`, *optional*, defaults to `"mean"`): Whether `pooler_output` is
            the mean of the visible patch tokens or that of the class tokens, both after the final norm. In
            [`MAEForImageClassification`] the mean is followed by a norm of its own, which replaces the final one, and
            `"attentive"` pools by learned queries, see [`MAEAttentivePooling`]; elsewhere it is the mean.
        num_pooling_queries (`int`, *optional*, defaults to 32): Learned queries of attentive pooling. Must divide
            `hidden_size`: each pools an equal share of its channels. Source: Psomas et al. 2025 (arXiv 2506.10178).
        drop_path_rate (`float`, *optional*, defaults to 0.0): Probability in [0, 1) that the last block of the
            encoder is skipped for an image in training. It rises linearly from 0 at the first block. Fine-tuning uses
            0.1 to 0.3 (Table 9, official notes). Source: stochastic depth, Huang et al. 2016, arXiv 1603.09382.
        label_smoothing (`float`, *optional*, defaults to 0.0): Fraction in [0, 1) of the classification target that is
            spread evenly over all classes in training. Fine-tuning uses 0.1 (Table 9).
        decoder_hidden_size (`int`, *optional*, defaults to 512): Width of the decoder (Table 1b). Same divisibility as
            `hidden_size`.
        decoder_num_hidden_layers (`int`, *optional*, defaults to 8): Blocks of the decoder, at least 1 (Table 1a).
        decoder_num_attention_heads (`int`, *optional*, defaults to 16): Attention heads of the decoder.
        decoder_intermediate_size (`int`, *optional*, defaults to 2048): Width of the decoder's MLPs.
        mask_ratio (`float`, *optional*, defaults to 0.75): Fraction of patches hidden from the encoder, in [0, 1).
            `int(num_patches * (1 - mask_ratio))` stay visible. Source: Fig. 5.
        mask_block_size (`int`, *optional*, defaults to 1): Patches of a side of the aligned cells that are hidden or
            kept as a whole, `int(cells * (1 - mask_ratio))` of which stay visible. Must divide the rows and columns of
            patches; other than 1 it needs random sampling. Source: Pixio, section 3.2, which has 4.
        mask_sampling (`"random"`, `"block"` or `"grid"`, *optional*, defaults to `"random"`): How hidden patches are
            chosen: uniformly at random, in large rectangles, or such that the visible ones form a regular grid (Table
            1f).
        mask_tokens_in_encoder (`bool`, *optional*, defaults to `False`): Whether the encoder gets mask tokens in
            place of hidden patches, instead of only the visible ones (Table 1c: slower and worse; for ablations).
        prediction_ratio (`float`, *optional*, defaults to 1.0): Fraction of the hidden patches that are predicted in
            training mode, in (0, 1]. The paper uses 1; less is faster. In evaluation mode all are predicted.
        norm_pix_loss (`bool`, *optional*, defaults to `False`): Whether patches are predicted normalised by their own
            mean and variance (Table 1d: better features) instead of as they are.
        out_features, out_indices (`list[str]`, `list[int]`, *optional*): The stages whose maps [`MAEBackbone`] returns,
            by name or number: `"stem"` (the embedded patches), `"stage1"`, `"stage2"` and so on after each block, or
            with `feature_pyramid_size` the levels `"p2"` to `"p5"`. Default: the last stage, or all levels.
        apply_layernorm (`bool`, *optional*, defaults to `True`): Whether the final norm is applied to the maps of a
            backbone.
        reshape_hidden_states (`bool`, *optional*, defaults to `True`): Whether a backbone returns maps `(batch,
            channels, rows, columns)`. Otherwise it returns tokens with the class tokens first, as heads of the DPT
            family need them (with one class token).
        feature_pyramid_size (`int`, *optional*): Channels of the simple feature pyramid that a backbone makes from its
            last map. The strides of its levels p2 to p5 are 1/4, 1/2, 1 and 2 times the patch: 4, 8, 16 and 32 for
            patches of 16. The paper uses 256 (Li et al. 2022, arXiv 2203.16527, section 3). Default: no pyramid.

    Example:

    ```python
    >>> from hf_mae import MAEConfig, MAEForPreTraining

    >>> config = MAEConfig.from_preset("small", image_size=(64, 128), patch_size=8, num_channels=1)
    >>> model = MAEForPreTraining(config)
    ```
    """

    model_type = "mae"
    # Outputs that Trainer must not gather when it evaluates: their second dimension differs between batches.
    keys_to_ignore_at_inference = ["ids_keep", "ids_hidden", "hidden_states", "attentions", "decoder_output"]

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_class_tokens: int = 1
    position_embedding: str = "sincos"
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    pooling: str = "mean"
    num_pooling_queries: int = 32
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float | int = 0.75
    mask_block_size: int = 1
    mask_sampling: str = "random"
    mask_tokens_in_encoder: bool = False
    prediction_ratio: float | int = 1.0
    norm_pix_loss: bool = False
    drop_path_rate: float | int = 0.0
    label_smoothing: float | int = 0.0
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    feature_pyramid_size: int | None = None

    def __post_init__(self, **kwargs):
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        for name in ("image_size", "patch_size"):  # JSON knows no tuples; lists come back equal
            value = getattr(self, name)
            setattr(self, name, list(value) if isinstance(value, tuple) else value)
        if self.id2label is None and self.label2id is not None:  # else transformers would overwrite `label2id`
            self.id2label = {index: label for label, index in self.label2id.items()}
        self.check()
        super().__post_init__(**kwargs)
        self.set_output_features_output_indices(out_features, out_indices)

    @classmethod
    def from_preset(cls, name: str, **kwargs) -> "MAEConfig":
        """Returns the configuration of a published size; any field can be overridden by keyword.

        Args:
            name (`str`): `"tiny"`, `"small"`, `"base"`, `"large"` (patch 16) or `"huge"` (patch 14), at 224 px;
                `"pixio-small"`, `"pixio-base"`, `"pixio-large"` or `"pixio-huge"` (patch 16), at 256 px, or
                `"pixio-tiny"` (patch 4), at 32 px.
            **kwargs: Fields of the configuration that differ from the preset.

        Raises:
            ValueError: If there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
        fields = dict(zip(PRESET_FIELDS, PRESETS[name], strict=True))
        return cls(**{**fields, **_PRESET_CHANGES.get(name, {}), **kwargs})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "MAEConfig":
        name, subfolder = os.fspath(pretrained_model_name_or_path), kwargs.get("subfolder")
        if os.path.isdir(name) and not has_config(name, subfolder):  # transformers would return the default, ViT-B
            raise no_model_in(name, subfolder)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        check_is_object(pretrained_model_name_or_path, kwargs.get("subfolder"))
        with explaining_missing(pretrained_model_name_or_path, kwargs.get("subfolder")):
            stored, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return (fields_of_pixio(stored) if stored.get("model_type") == "pixio" else stored), kwargs

    def validate_output_attentions(self):
        """Allows attention weights with any implementation: the model computes them by `"eager"` where they are asked
        for, and transformers would refuse to save it."""

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches of an image of `image_size`, (rows, columns)."""
        (height, width), (patch_height, patch_width) = height_width(self.image_size), height_width(self.patch_size)
        return height // patch_height, width // patch_width

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "MAEConfig":
        # Overrides are set one by one. Stages come last, because they depend on the depth and the pyramid.
        stages = {name: kwargs.pop(name) for name in ("out_features", "out_indices") if name in kwargs}
        return super().from_dict(config_dict, **kwargs, **stages)

    @property
    def stage_names(self) -> list[str]:
        """Names of all stages of [`MAEBackbone`]. A property, because fields can be overridden after construction."""
        if self.feature_pyramid_size is not None:
            return ["p2", "p3", "p4", "p5"]
        return ["stem", *(f"stage{block}" for block in range(1, self.num_hidden_layers + 1))]

    def set_output_features_output_indices(self, out_features: list[str] | None, out_indices: list[int] | None):
        """Chooses stages of a backbone, by name or number. Default: the last stage, or all levels of the pyramid."""
        stages = self.stage_names
        if any(not -len(stages) <= index < len(stages) for index in out_indices or ()):
            raise ValueError(
                f"`out_indices` must be in [0, {len(stages) - 1}], for the stages {stages}; got {out_indices}."
            )
        if out_indices is not None:  # the last one may be asked for as -1, and is found nowhere under that number
            out_indices = [index % len(stages) for index in out_indices]
        self._default_stages = out_features is None and out_indices is None
        if self._default_stages and self.feature_pyramid_size is not None:
            out_features = stages
        super().set_output_features_output_indices(out_features, out_indices)

    def update_default_stages(self):
        """Chooses the default stages anew, unless others were chosen: depth or pyramid may have been overridden."""
        if self._default_stages:
            self.set_output_features_output_indices(None, None)

    def to_dict(self) -> dict:
        fields = super().to_dict()
        if fields.pop("_default_stages", False):  # a foreign configuration may set the stages by itself
            del fields["out_features"], fields["out_indices"]
        return fields

    def _auto_map_to_save(self) -> dict[str, str]:
        auto_map = super()._auto_map_to_save()
        classes = {reference.split(".")[1] for reference in auto_map.values()}
        if not set(self.architectures or ()) <= classes:  # a subclass, whose decoder may predict something else
            auto_map.pop("AutoModelForPreTraining", None)
        return auto_map

    def check_labels(self):
        """Completes `id2label` from `label2id` or the reverse, if only one of them was given. Called by the classifier.

        Raises:
            ValueError: If both were given and disagree.
        """
        id2label = {int(index): label for index, label in self.id2label.items()}
        label2id = {label: int(index) for label, index in (self.label2id or {}).items()}
        inverse = {index: label for label, index in label2id.items()}
        if all(label == f"LABEL_{index}" for label, index in label2id.items()):  # transformers' default
            label2id = {label: index for index, label in id2label.items()}
        elif all(label == f"LABEL_{index}" for index, label in id2label.items()) and len(inverse) == len(id2label):
            id2label = inverse
        elif inverse != id2label:
            raise ValueError(
                f"`id2label` and `label2id` disagree: {id2label} and {label2id}. Pass only one of them, or equal ones."
            )
        self.id2label, self.label2id = id2label, label2id

    def check(self):
        """Raises `ValueError` for values that cannot work. Called on construction and by every model.

        Not left to `@strict`: it would wrap the error in one that is not a `ValueError`, and it does not look at fields
        that `from_pretrained(..., image_size=...)` overrides.
        """
        self._check_sizes()
        self._check_widths()
        for name, paper in (("mask_ratio", " The paper uses 0.75."), ("drop_path_rate", ""), ("label_smoothing", "")):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.{paper}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        if not 0 < self.prediction_ratio <= 1:
            raise ValueError(f"`prediction_ratio` must be in (0, 1], got {self.prediction_ratio}. The paper uses 1.")
        if self.feature_pyramid_size is not None and (self.feature_pyramid_size < 1 or not self.reshape_hidden_states):
            raise ValueError(
                "`feature_pyramid_size` must be positive and needs reshape_hidden_states=True, got "
                f"{self.feature_pyramid_size} and {self.reshape_hidden_states}."
            )
        allowed = {
            "mask_sampling": tuple(MASK_SAMPLINGS),
            "pooling": ("mean", "class", "attentive"),
            "position_embedding": ("sincos", "learned"),
            "hidden_act": tuple(ACT2FN),
            "problem_type": (None, "single_label_classification", "multi_label_classification", "regression"),
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        if self.norm_pix_loss and math.prod(height_width(self.patch_size)) * self.num_channels == 1:
            raise ValueError("`norm_pix_loss` needs patches of more than one value, which have a variance.")
        check_mask_cells(self.mask_sampling, self.mask_block_size, self.grid_size, height_width(self.patch_size))
        if self.pooling == "attentive":
            check_pooling_queries(self.hidden_size, self.num_pooling_queries)

    def _check_sizes(self):
        size, patch_size = height_width(self.image_size), height_width(self.patch_size)
        for name, sides in (("image_size", size), ("patch_size", patch_size)):
            if len(sides) != 2:
                raise ValueError(f"`{name}` must be one number or (height, width), got {sides}.")
        widths = ("hidden_size", "intermediate_size", "decoder_hidden_size", "decoder_intermediate_size")
        for name in ("image_size", "patch_size", "num_channels", "num_class_tokens", *widths):
            if min(height_width(getattr(self, name))) < 1:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if any(s % p for s, p in zip(size, patch_size, strict=True)):
            nearest = tuple(max(round(s / p), 1) * p for s, p in zip(size, patch_size, strict=True))
            raise ValueError(
                f"`image_size` {size} is not a multiple of `patch_size` {patch_size}. The nearest size that fits is "
                f"{nearest}."
            )

    def _check_widths(self):
        for prefix in ("", "decoder_"):
            size, heads, layers = (
                getattr(self, prefix + name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
            )
            if heads < 1 or size % heads:
                raise ValueError(
                    f"`{prefix}hidden_size` {size} is not divisible by `{prefix}num_attention_heads` {heads}."
                )
            if size % 4 and self.position_embedding == "sincos":
                raise ValueError(
                    f"`{prefix}hidden_size` {size} is not divisible by 4, which the sines and cosines of two "
                    f"coordinates need. The next size that is: {size + 4 - size % 4}."
                )
            if layers < 1:
                raise ValueError(f"`{prefix}num_hidden_layers` must be at least 1, got {layers}.")


def check_pooling_queries(hidden_size: int, num_queries: int):
    """Raises `ValueError` if the queries of attentive pooling cannot share the channels."""
    if num_queries < 1 or hidden_size % num_queries:
        divisors = [str(number) for number in range(1, hidden_size + 1) if hidden_size % number == 0]
        raise ValueError(
            f"`num_pooling_queries` must divide `hidden_size` {hidden_size}, got {num_queries}. Choose one of "
            f"{', '.join(divisors)}."
        )


def fields_of_pixio(stated: dict) -> dict:
    """Returns the content of a `config.json` of transformers' Pixio, completed and with our names of the fields.

    Those of ViTMAE and ViT need no such change: their fields have the same names here.
    """
    fields = {**PIXIO_FIELDS, **CONFIG_MAPPING["pixio"].from_dict(stated).to_dict()}
    fields["num_class_tokens"] = fields.pop("n_cls_tokens")
    fields["intermediate_size"] = int(fields["hidden_size"] * fields.pop("mlp_ratio"))
    del fields["stage_names"], fields["out_indices"]
    if fields["architectures"] != ["PixioBackbone"]:
        del fields["out_features"]
    return fields


def height_width(size: int | list[int]) -> tuple[int, ...]:
    """Returns (height, width) of a size that is given as one integer or as two."""
    return (size, size) if isinstance(size, int) else tuple(size)


__all__ = [
    "PIXIO_FIELDS",
    "PRESETS",
    "PRESET_FIELDS",
    "MAEConfig",
    "check_pooling_queries",
    "fields_of_pixio",
    "height_width",
]
