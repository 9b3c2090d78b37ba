# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The configuration of a masked autoencoder (He et al. 2021, arXiv 2111.06377)."""

import os

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .masking_mae import MASK_SAMPLINGS
from .saving_mae import SavesCode

# Note for maintainers: `from __future__ import annotations` would silently switch off the type
# checks of `@strict`, which skip annotations that are strings.

# Encoders: Dosovitskiy et al. 2020 (arXiv 2010.11929), Table 1; tiny and small: Touvron et al. 2020
# (arXiv 2012.12877), Table 1. Decoder of base, large and huge: He et al. 2021, section 4.1 and
# Table 1 (8 blocks, 512 wide). Those of tiny and small are ours: about the same share of the
# encoder's width, heads of 32 channels as in the paper's decoder.
_PRESETS = {
    #         patch width depth heads  mlp | decoder: width depth heads  mlp
    "tiny": (16, 192, 12, 3, 768, 128, 4, 4, 512),
    "small": (16, 384, 12, 6, 1536, 256, 4, 8, 1024),
    "base": (16, 768, 12, 12, 3072, 512, 8, 16, 2048),
    "large": (16, 1024, 24, 16, 4096, 512, 8, 16, 2048),
    "huge": (14, 1280, 32, 16, 5120, 512, 8, 16, 2048),
}
_PRESET_FIELDS = (
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


@strict
class MAEConfig(SavesCode, BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of all MAE models. The defaults are ViT-B/16 at 224 px.

    Args:
        image_size (`int` or `(height, width)`, *optional*, defaults to 224): Pixels of the images that the position
            tables are made for. Other sizes work: the tables are resampled.
        patch_size (`int` or `(height, width)`, *optional*, defaults to 16): Pixels of one patch. Must divide
            `image_size`.
        num_channels (`int`, *optional*, defaults to 3): Channels of the images, any number from 1.
        hidden_size (`int`, *optional*, defaults to 768): Width of the encoder. Must be divisible by
            `num_attention_heads`, and by 4 for the two-dimensional sin-cos position table.
        num_hidden_layers (`int`, *optional*, defaults to 12): Blocks of the encoder.
        num_attention_heads (`int`, *optional*, defaults to 12): Attention heads of the encoder.
        intermediate_size (`int`, *optional*, defaults to 3072): Width of the encoder's MLPs.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of all MLPs.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout after attention and MLP, in [0, 1].
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout of attention weights, in [0, 1].
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of fresh class and mask tokens.
            Linear layers start from Xavier's uniform distribution. Source: He et al. 2021, appendix A.1.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of all layer norms.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        pooling (`"mean"` or `"class"`, *optional*, defaults to `"mean"`): What `pooler_output` is: the mean of the
            visible patch tokens or the class token, both after the final norm. In [`MAEForImageClassification`] a norm
            of its own follows the mean, in place of the final one.
        drop_path_rate (`float`, *optional*, defaults to 0.0): Probability in [0, 1) with which the last block of the
            encoder is skipped for an image in training; it rises linearly from 0 at the first block. Fine-tuning uses
            0.1 to 0.3 (Table 9, official notes; stochastic depth: Huang et al. 2016, arXiv 1603.09382).
        label_smoothing (`float`, *optional*, defaults to 0.0): Share in [0, 1) of the target of classification that is
            spread evenly over all classes in training. Fine-tuning uses 0.1 (Table 9).
        decoder_hidden_size (`int`, *optional*, defaults to 512): Width of the decoder (Table 1b). Same divisibility as
            `hidden_size`.
        decoder_num_hidden_layers (`int`, *optional*, defaults to 8): Blocks of the decoder, at least 1 (Table 1a).
        decoder_num_attention_heads (`int`, *optional*, defaults to 16): Attention heads of the decoder.
        decoder_intermediate_size (`int`, *optional*, defaults to 2048): Width of the decoder's MLPs.
        mask_ratio (`float`, *optional*, defaults to 0.75): Fraction of patches hidden from the encoder, in [0, 1).
            `int(num_patches * (1 - mask_ratio))` stay visible. Source: Fig. 5.
        mask_sampling (`"random"`, `"block"` or `"grid"`, *optional*, defaults to `"random"`): How hidden patches are
            chosen: evenly at random, in large rectangles, or so that the visible ones form a regular grid (Table 1f).
        mask_tokens_in_encoder (`bool`, *optional*, defaults to `False`): Give the encoder mask tokens in place of the
            hidden patches instead of leaving those out (Table 1c: slower and worse; for ablations).
        prediction_ratio (`float`, *optional*, defaults to 1.0): Fraction of the hidden patches that are decoded and
            predicted in training mode, in (0, 1]. 1 is the paper; less is faster. Evaluation predicts all.
        norm_pix_loss (`bool`, *optional*, defaults to `False`): Predict each patch normalised by its own mean and
            variance (Table 1d: better features) instead of pixels.
        out_features, out_indices (`list[str]`, `list[int]`, *optional*): The stages whose maps [`MAEBackbone`] gives,
            by name or number: `"stem"` (the embedded patches), `"stage1"`, `"stage2"`, ... after each block, or with
            `feature_pyramid_size` the levels `"p2"` to `"p5"`. Default to the last stage, or to all levels.
        apply_layernorm (`bool`, *optional*, defaults to `True`): Whether the maps of a backbone pass the final norm.
        reshape_hidden_states (`bool`, *optional*, defaults to `True`): Whether a backbone gives maps `(batch, channels,
            rows, columns)`. Otherwise it gives tokens with the class token, as the heads of the DPT family want them.
        feature_pyramid_size (`int`, *optional*): Channels of the simple feature pyramid that a backbone makes of its
            last map; its levels p2 to p5 have 1/4, 1/2, 1 and 2 times the stride of the patches: 4, 8, 16, 32 for
            patches of 16. 256 in the paper (Li et al. 2022, arXiv 2203.16527, section 3). Default: no pyramid.

    Example:

    ```python
    >>> from hf_mae import MAEConfig, MAEForPreTraining

    >>> config = MAEConfig.from_preset("small", image_size=(64, 128), patch_size=8, num_channels=1)
    >>> model = MAEForPreTraining(config)
    ```
    """

    model_type = "mae"
    # Not part of an output to gather when Trainer evaluates: their second dimension differs.
    keys_to_ignore_at_inference = ["ids_keep", "ids_hidden", "hidden_states", "attentions", "decoder_output"]

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    hidden_size: int = 768
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
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float | int = 0.75
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
        if self.id2label is None and self.label2id is not None:  # which would be overwritten
            self.id2label = {index: label for label, index in self.label2id.items()}
        self.check()
        super().__post_init__(**kwargs)
        self.set_output_features_output_indices(out_features, out_indices)

    @classmethod
    def from_preset(cls, name: str, **kwargs) -> "MAEConfig":
        """Returns the configuration of a published size; any field can be overridden by keyword.

        Args:
            name (`str`): `"tiny"`, `"small"`, `"base"`, `"large"` (patch 16) or `"huge"` (patch 14), at 224 px.
            **kwargs: Fields of the configuration that differ from the preset.

        Raises:
            ValueError: If there is no such preset.
        """
        if name not in _PRESETS:
            raise ValueError(f"There is no preset {name!r}; choose one of {', '.join(_PRESETS)}.")
        return cls(**{**dict(zip(_PRESET_FIELDS, _PRESETS[name], strict=True)), **kwargs})

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        if os.path.isabs(pretrained_model_name_or_path) and not os.path.exists(pretrained_model_name_or_path):
            raise OSError(f"There is no folder {os.fspath(pretrained_model_name_or_path)!r}.")  # nor a name on the Hub
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches of an image of `image_size`, (rows, columns)."""
        (height, width), (patch_height, patch_width) = _pair(self.image_size), _pair(self.patch_size)
        return height // patch_height, width // patch_width

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "MAEConfig":
        # Overrides are set one by one: stages are chosen when depth and pyramid are known.
        stages = {name: kwargs.pop(name) for name in ("out_features", "out_indices") if name in kwargs}
        return super().from_dict(config_dict, **kwargs, **stages)

    @property
    def stage_names(self) -> list[str]:
        """Names of what [`MAEBackbone`] can give. A property, since fields may be overridden after construction."""
        if self.feature_pyramid_size is not None:
            return ["p2", "p3", "p4", "p5"]
        return ["stem", *(f"stage{block}" for block in range(1, self.num_hidden_layers + 1))]

    def set_output_features_output_indices(self, out_features: list[str] | None, out_indices: list[int] | None):
        """Chooses the stages of a backbone, by name or by number; by default the last, or all levels of the pyramid."""
        stages = self.stage_names
        if any(not -len(stages) <= index < len(stages) for index in out_indices or ()):
            raise ValueError(f"out_indices must be in [0, {len(stages) - 1}], the stages {stages}; got {out_indices}.")
        self._default_stages = out_features is None and out_indices is None
        if self._default_stages and self.feature_pyramid_size is not None:
            out_features = stages
        super().set_output_features_output_indices(out_features, out_indices)

    def update_default_stages(self):
        """Chooses the default again if nothing else was chosen: depth or pyramid may have been overridden since."""
        if self._default_stages:
            self.set_output_features_output_indices(None, None)

    def to_dict(self) -> dict:
        fields = super().to_dict()
        if fields.pop("_default_stages"):
            del fields["out_features"], fields["out_indices"]
        return fields

    def _auto_map_to_save(self) -> dict[str, str]:
        auto_map = super()._auto_map_to_save()
        classes = {reference.split(".")[1] for reference in auto_map.values()}
        if not set(self.architectures or ()) <= classes:  # a subclass, whose decoder may predict something else
            auto_map.pop("AutoModelForPreTraining", None)
        return auto_map

    def check_labels(self):
        """Makes `id2label` and `label2id` agree where only one of them was given. Called by the classifier.

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
                f"id2label and label2id disagree: {id2label} and {label2id}. Pass one of them, or both alike."
            )
        self.id2label, self.label2id = id2label, label2id

    def check(self):
        """Raises `ValueError` for values that cannot work. Called on construction and by every model.

        Not left to `@strict`, which would wrap the error in one that is no `ValueError`, and which does not look at
        fields that `from_pretrained(..., image_size=...)` overrides.
        """
        (height, width), (patch_height, patch_width) = _pair(self.image_size), _pair(self.patch_size)
        for name in ("image_size", "patch_size", "num_channels", "hidden_size", "decoder_hidden_size"):
            if min(_pair(getattr(self, name))) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if height % patch_height or width % patch_width:
            nearest = [max(round(s / p), 1) * p for s, p in ((height, patch_height), (width, patch_width))]
            raise ValueError(
                f"image_size {(height, width)} is not a multiple of patch_size {(patch_height, patch_width)}. "
                f"The nearest size that fits is {tuple(nearest)}."
            )
        for prefix in ("", "decoder_"):
            size, heads, layers = (
                getattr(self, prefix + name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
            )
            if heads < 1 or size % heads:
                raise ValueError(f"{prefix}hidden_size {size} is not divisible by {prefix}num_attention_heads {heads}.")
            if size % 4:
                raise ValueError(
                    f"{prefix}hidden_size {size} is not divisible by 4, as the sines and cosines of two coordinates "
                    f"need. The next that is: {size + 4 - size % 4}."
                )
            if layers < 1:
                raise ValueError(f"{prefix}num_hidden_layers must be at least 1, got {layers}.")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in [0, 1), got {self.mask_ratio}. The paper uses 0.75.")
        if not 0 < self.prediction_ratio <= 1:
            raise ValueError(f"prediction_ratio must be in (0, 1], got {self.prediction_ratio}. The paper uses 1.")
        for name in ("drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}.")
        if self.feature_pyramid_size is not None and (self.feature_pyramid_size < 1 or not self.reshape_hidden_states):
            raise ValueError(
                "feature_pyramid_size must be positive and needs reshape_hidden_states=True, got "
                f"{self.feature_pyramid_size} and {self.reshape_hidden_states}."
            )
        for name, choices in (("mask_sampling", tuple(MASK_SAMPLINGS)), ("pooling", ("mean", "class"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")


def _pair(size: int | list[int]) -> tuple[int, ...]:
    """(height, width) of a size given as one integer or as two."""
    return (size, size) if isinstance(size, int) else tuple(size)


__all__ = ["MAEConfig"]
