# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Masked autoencoder (He et al. 2021, arXiv 2111.06377): masking, encoder, decoder.

Written from the paper and checked against the numbers of the official implementation. The same loss and gradients come
from less work: only visible patches are cut out and embedded for the encoder; the decoder keeps its tokens in the order
class, visible, hidden (attention does not mind the order), so nothing is unshuffled; and the queries and MLP of its
last block, its norm, its head and the loss are computed for hidden patches only.

One meaning of mask everywhere: bool, True = hidden from the encoder and predicted. *Patch* indices never count the
class token. Shapes in comments: B batch, C channels, P pixels of a patch (height times width), N patches of an image,
K visible (kept) ones, M hidden ones that are predicted, D width.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs, maybe_install_capturing_hooks

from .configuration_mae import MAEConfig, _pair
from .patches_mae import (
    at_least_float32,
    masking_order,
    patch_grid,
    patchify,
    resample_position_table,
    sincos_position_table,
    unpatchify,
)

if TYPE_CHECKING:
    # Ships these files with every saved model: the copier follows relative imports by their text.
    from .image_processing_mae import MAEImageProcessor  # noqa: F401
    from .modeling_mae_downstream import MAEBackbone, MAEForImageClassification  # noqa: F401

logger = logging.get_logger(__name__)

# What a saved folder offers to `trust_remote_code=True`, whichever class was saved.
_AUTO_MAP = {
    "AutoConfig": "configuration_mae.MAEConfig",
    "AutoModel": "modeling_mae.MAEModel",
    "AutoModelForPreTraining": "modeling_mae.MAEForPreTraining",
    "AutoModelForImageClassification": "modeling_mae_downstream.MAEForImageClassification",
    "AutoBackbone": "modeling_mae_downstream.MAEBackbone",
    "AutoImageProcessor": "image_processing_mae.MAEImageProcessor",
}


class _MaskedOutput(ModelOutput):
    @property
    def mask(self) -> torch.BoolTensor | None:
        """`torch.BoolTensor` of shape `(batch, num_patches)`: True = hidden from the encoder. `None` if unmasked."""
        if self.ids_keep is None:
            return None
        mask = self.ids_keep.new_zeros(len(self.ids_keep), self.ids_keep.shape[1] + self.ids_hidden.shape[1]).bool()
        return mask.scatter(1, self.ids_hidden, True)


@dataclass
class MAEModelOutput(_MaskedOutput):
    """What the encoder gives. The property `mask` makes a bool mask, True = hidden, of the ids.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, 1 + tokens, hidden_size)`): The class token, then the
            patches after the final norm. All of them in raster order, or, when masked, the visible ones in the order
            of `ids_keep` (followed by those of the hidden patches with `mask_tokens_in_encoder`).
        pooler_output (`torch.FloatTensor` of shape `(batch, hidden_size)`): By `config.pooling` the mean of the visible
            patch tokens or the class token.
        ids_keep (`torch.LongTensor` of shape `(batch, num_kept)`): Patch indices of the visible patches in the order
            of their tokens. Only when masked.
        ids_hidden (`torch.LongTensor` of shape `(batch, num_patches - num_kept)`): Patch indices of the hidden
            patches. Only when masked.
        hidden_states (`tuple` of `torch.FloatTensor`): Input and output of each block, with `output_hidden_states`.
        attentions (`tuple` of `torch.FloatTensor`): Attention of each block of shape `(batch, heads, tokens, tokens)`,
            with `output_attentions`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    ids_keep: torch.LongTensor | None = None
    ids_hidden: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class MAEForPreTrainingOutput(_MaskedOutput):
    """What pre-training gives. The property `mask` makes a bool mask, True = hidden, of the ids.

    Args:
        loss (`torch.FloatTensor` of shape `()`): Mean squared error over the predicted patches, in float32 or better.
        logits (`torch.FloatTensor` of shape `(batch, num_predicted, patch_height * patch_width * channels)`):
            Predictions for the patches `ids_hidden` (their first ones with `prediction_ratio` below 1; the patches
            `ids_keep` when none is hidden). The elements of a patch are in the order row, column, channel: pixels in
            the scale of `pixel_values`, or, with `norm_pix_loss`, normalised by patch. For pictures see
            [`MAEForPreTraining.reconstruct`].
        ids_keep (`torch.LongTensor` of shape `(batch, num_kept)`): Patch indices of the visible patches.
        ids_hidden (`torch.LongTensor` of shape `(batch, num_patches - num_kept)`): Patch indices of the hidden ones.
        hidden_states, attentions (`tuple` of `torch.FloatTensor`): The encoder's, when asked for.
        decoder_output ([`~transformers.modeling_outputs.BaseModelOutput`]): `hidden_states` and `attentions` of the
            decoder, when asked for: tokens in the order class, visible, hidden; the last block has queries and outputs
            for the predicted ones only.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    ids_keep: torch.LongTensor | None = None
    ids_hidden: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    decoder_output: BaseModelOutput | None = None


@dataclass
class MAEReconstructionOutput(ModelOutput):
    """Pictures in the scale of `pixel_values`, each of shape `(batch, channels, height, width)`.

    Args:
        reconstruction (`torch.FloatTensor`): Visible patches as they came, hidden ones as predicted.
        masked (`torch.FloatTensor`): The image with hidden patches set to 0, the mean colour of normalised pixels.
        mask (`torch.BoolTensor` of shape `(batch, num_patches)`): True = hidden.
    """

    reconstruction: torch.FloatTensor | None = None
    masked: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None


# ----------------------------------------------------------------------------------------------------------------------
# Blocks


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for `attn_implementation="eager"`; all tensors `(batch, heads, tokens, channels)`."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = at_least_float32(weights).softmax(dim=-1).to(query.dtype)
    output = torch.matmul(nn.functional.dropout(weights, p=dropout, training=module.training), value)
    return output.transpose(1, 2).contiguous(), weights


class MAEAttention(nn.Module):
    """Multi-head self-attention with queries, keys and values from one product."""

    def __init__(self, config: MAEConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, query_start: int = 0, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # Cut first and shaped then: the gradients are put together in one copy, not two.
        parts = self.qkv(hidden_states).chunk(3, dim=-1)  # each (B, tokens, D)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        # Only eager attention can show its weights.
        implementation = "eager" if kwargs.get("output_attentions") else self.config._attn_implementation
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query[:, :, query_start:],
            key,
            value,
            None,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.proj(output.flatten(2)), weights


class MAEMLP(nn.Module):
    def __init__(self, config: MAEConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class MAEDropPath(nn.Module):
    """Skips a branch of a block for an image at random, in training. Source: Huang et al. 2016 (arXiv 1603.09382)."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.probability == 0:
            return hidden_states
        kept = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(1 - self.probability)
        return hidden_states * (kept / (1 - self.probability))

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3g}"


class MAELayer(GradientCheckpointingLayer):
    """A pre-norm transformer block, of the encoder or the decoder."""

    def __init__(
        self,
        config: MAEConfig,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = MAEAttention(config, hidden_size, num_attention_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = MAEMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = MAEDropPath(drop_path)

    def forward(
        self, hidden_states: torch.Tensor, query_start: int = 0, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Returns the block's output for the tokens from `query_start` on; the others are only attended to."""
        attention_output, _ = self.attention(self.layernorm_before(hidden_states), query_start, **kwargs)
        hidden_states = hidden_states[:, query_start:] + self.drop_path(self.dropout(attention_output))
        return hidden_states + self.drop_path(self.dropout(self.mlp(self.layernorm_after(hidden_states))))


class MAEEmbeddings(nn.Module):
    """Class token, embedded patches (and mask tokens in their place, when the encoder is to see those), positions."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        self.patch_size = _pair(config.patch_size)
        self.grid_size = config.grid_size
        patch_elements = self.patch_size[0] * self.patch_size[1] * config.num_channels
        # The official convolution with its weights in the order of `patchify`: a product over the visible patches only.
        self.patch_embeddings = nn.Linear(patch_elements, config.hidden_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.mask_tokens_in_encoder else None
        self.position_embeddings = _empty_position_table(config.hidden_size, self.grid_size)

    def forward(
        self,
        pixel_values: torch.Tensor,
        grid_size: tuple[int, int],
        ids_keep: torch.Tensor | None,
        ids_hidden: torch.Tensor | None,
    ) -> torch.Tensor:
        # Not the dtype of the weight, which is another when quantised.
        patches = patchify(pixel_values, self.patch_size, ids_keep).to(self.cls_token.dtype)
        tokens = self.patch_embeddings(patches)  # (B, N or K, D)
        positions = resample_position_table(self.position_embeddings, self.grid_size, grid_size)
        class_token = (self.cls_token + positions[:, :1]).expand(tokens.shape[0], -1, -1)
        if ids_keep is None:
            return torch.cat([class_token, tokens + positions[:, 1:]], dim=1)
        tokens = [class_token, tokens + _rows(positions, ids_keep)]
        if self.mask_token is not None:
            tokens.append(self.mask_token + _rows(positions, ids_hidden))
        return torch.cat(tokens, dim=1)


def _empty_position_table(width: int, grid_size: tuple[int, int]) -> nn.Parameter:
    # A parameter, not a buffer: it is saved, may be fine-tuned, and is listed by name with the rest.
    return nn.Parameter(torch.empty(1, 1 + grid_size[0] * grid_size[1], width), requires_grad=False)


def _rows(positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a position table (1, 1 + N, D) for patch indices (B, K): (B, K, D)."""
    return nn.functional.embedding(ids, positions[0, 1:])


# ----------------------------------------------------------------------------------------------------------------------
# Models


class MAEPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving of all MAE models."""

    config: MAEConfig
    base_model_prefix = "mae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else Trainer, when accumulating, takes the loss for one that is divided already
    _no_split_modules = ["MAEEmbeddings", "MAELayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": MAELayer, "attentions": MAEAttention}
    _input_embed_layer = "patch_embeddings"
    # Fine-tuning trains the position tables, as the official code does, and has no use for a mask token.
    _is_fine_tuned = False
    # Reads repositories of transformers' ViTMAE and ViT: set by checkpoints.py, which does not ship with the weights.
    _from_repository = None

    def __init__(self, config: MAEConfig, *inputs, **kwargs):
        config.check()
        super().__init__(config, *inputs, **kwargs)

    def post_init(self):
        super().post_init()
        self._set_trainable()

    def _set_trainable(self):
        for module in self._modules_with_positions():
            module.position_embeddings.requires_grad_(self._is_fine_tuned)
            if module.mask_token is not None:
                module.mask_token.requires_grad_(not self._is_fine_tuned)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialises one module the official way (He et al. 2021, appendix A.1: Xavier's uniform distribution).

        Only through `init`, which leaves loaded tensors alone. Position tables are set here so that they are right on
        every road into a model: constructor, meta device, and checkpoints that lack them.
        """
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, MAEEmbeddings | MAEDecoder):
            for token in (getattr(module, "cls_token", None), module.mask_token):
                if token is not None:
                    init.normal_(token, std=self.config.initializer_range)
            table = module.position_embeddings
            init.copy_(table, sincos_position_table(table.shape[-1], module.grid_size).to(table.dtype))

    def resize_position_embeddings(self, image_size: int | tuple[int, int]):
        """Resamples the position tables of encoder and decoder to another image size, in place.

        Args:
            image_size (`int` or `(height, width)`): Pixels, multiples of the patch. Becomes `config.image_size`.

        Raises:
            ValueError: If the patch does not divide it, or parts of the model are offloaded.
        """
        self._check_in_memory()
        self.config.image_size = image_size if isinstance(image_size, int) else list(image_size)
        self.config.check()
        for module in self._modules_with_positions():
            table = module.position_embeddings
            resampled = resample_position_table(table.detach(), module.grid_size, self.config.grid_size)
            module.position_embeddings = nn.Parameter(resampled, requires_grad=table.requires_grad)
            module.grid_size = self.config.grid_size

    @torch.no_grad()
    def resize_channels(self, num_channels: int, channel_init: str = "repeat"):
        """Makes a pre-trained model one for another number of channels, in place: patch embedding and decoder head.

        Args:
            num_channels (`int`): Channels wanted. Becomes `config.num_channels`.
            channel_init (`"repeat"`, `"mean"` or `"zero"`): What the channels beyond the old ones start from: the old
                ones, over and over; their mean; or zero. With `"repeat"` and `"mean"` the patch embedding is scaled by
                old / new, so that its output keeps its scale (as timm does); with `"zero"` the model computes from the
                old channels what it did. Fewer channels than before all get the scaled mean: one grey channel gives
                what its copies in all the old ones gave.

        Raises:
            ValueError: If `channel_init` or `num_channels` is none of these, or parts of the model are offloaded.
        """
        if channel_init not in ("repeat", "mean", "zero"):
            raise ValueError(f"channel_init must be 'repeat', 'mean' or 'zero', got {channel_init!r}.")
        self._check_in_memory()
        old, self.config.num_channels = self.config.num_channels, num_channels
        self.config.check()

        def resized(weights: torch.Tensor) -> torch.Tensor:
            """Of weights (..., P * C), each patch element's channels beside each other."""
            weights = weights.unflatten(-1, (-1, old))
            mean = weights.mean(dim=-1, keepdim=True)
            if num_channels < old:
                weights = mean.expand(*mean.shape[:-1], num_channels)
            elif channel_init == "repeat":
                weights = weights[..., torch.arange(num_channels) % old]
            else:
                new = mean if channel_init == "mean" else torch.zeros_like(mean)
                weights = torch.cat([weights, new.expand(*mean.shape[:-1], num_channels - old)], dim=-1)
            return weights.flatten(-2)

        for module in self.modules():
            if isinstance(module, MAEEmbeddings):
                layer = module.patch_embeddings
                scale = 1 if channel_init == "zero" and num_channels > old else old / num_channels
                layer.weight = nn.Parameter(resized(layer.weight) * scale, layer.weight.requires_grad)
                layer.in_features = layer.weight.shape[1]
            elif isinstance(module, MAEDecoder):
                layer = module.head
                layer.weight = nn.Parameter(resized(layer.weight.T).T.contiguous(), layer.weight.requires_grad)
                layer.bias = nn.Parameter(resized(layer.bias), layer.bias.requires_grad)
                layer.out_features = len(layer.bias)

    def freeze_encoder(self, num_trainable_layers: float = 0):
        """Freezes the encoder but for its last blocks: partial fine-tuning, or with 0 a probe.

        Args:
            num_trainable_layers (`float`, *optional*, defaults to 0): Blocks that stay trainable, with the final norm.
                A half is the MLP of a block, with its norm. Source: He et al. 2021, Fig. 9.

        Raises:
            ValueError: If it is no multiple of a half or more than there are.
        """
        encoder = self.base_model
        depth = len(encoder.layers)
        if not 0 <= num_trainable_layers <= depth or num_trainable_layers * 2 % 1:
            raise ValueError(
                f"num_trainable_layers must be a multiple of 0.5 in [0, {depth}], got {num_trainable_layers}."
            )
        encoder.requires_grad_(False)
        whole = int(num_trainable_layers)
        trainable = list(encoder.layers[depth - whole :])
        if num_trainable_layers % 1:
            layer = encoder.layers[depth - whole - 1]
            trainable += [layer.layernorm_after, layer.mlp]
        for module in [*trainable, *([encoder.layernorm] if trainable else [])]:
            module.requires_grad_(True)

    def _check_in_memory(self):
        if getattr(self, "hf_device_map", None) and any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError(
                "Parts of the model are offloaded and can't be resized. Load it into memory at the new image_size or "
                "num_channels, save it, and load that with device_map."
            )

    def _modules_with_positions(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, MAEEmbeddings | MAEDecoder)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, channel_init="repeat", **kwargs):
        """Loads a model as [`~transformers.PreTrainedModel.from_pretrained`] does, from the checkpoint of any of ours.

        One line of the log tells what is new and what was left out.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or name on the Hub.
            config (`MAEConfig`, *optional*): Defaults to the one of the checkpoint.
            channel_init (`"repeat"`, `"mean"` or `"zero"`): How weights for another `num_channels` are made, see
                [`MAEPreTrainedModel.resize_channels`].
            **kwargs: Of `from_pretrained`, or fields of the configuration that shall differ. With another `image_size`
                the position tables are resampled (see [`resample_position_table`]).

        Raises:
            ValueError: If the checkpoint is of another architecture or has no encoder.
        """
        load, source = super().from_pretrained, pretrained_model_name_or_path
        hub_kwargs = {name: kwargs[name] for name in _HUB_KWARGS if name in kwargs}
        if source is None:  # weights come as `state_dict`
            stored = config.to_dict()
        else:
            stored, _ = cls.config_class.get_config_dict(source, **hub_kwargs)
        if stored.get("model_type") in ("vit_mae", "vit") and cls._from_repository is not None:
            # Not by a registered mapping of names, with which new models would be saved under the foreign ones.
            stored, tensors = cls._from_repository(source, **hub_kwargs)
            dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or "auto"
            if not isinstance(config, PreTrainedConfig):
                config, kwargs = cls.config_class.from_dict(dict(stored), return_unused_kwargs=True, **kwargs)
            kwargs["dtype"] = next(iter(tensors.values())).dtype if dtype == "auto" else dtype
            source, kwargs["state_dict"] = None, tensors
        elif stored.get("model_type") != cls.config_class.model_type:
            raise ValueError(
                f"{source} holds a checkpoint of model type {stored.get('model_type')!r}, but {cls.__name__} loads "
                f"{cls.config_class.model_type!r}. Weights of the official MAE code, timm and transformers' ViTMAE are "
                "read by `hf_mae.import_checkpoint`."
            )
        # Tables and weights are loaded at the sizes they were saved with, then made to fit.
        saved, wanted = {}, {}
        config = copy.deepcopy(config) if isinstance(config, PreTrainedConfig) else config
        for name in ("image_size", "num_channels"):
            saved[name] = stored.get(name, getattr(cls.config_class, name))
            if isinstance(config, PreTrainedConfig):
                wanted[name] = getattr(config, name)
                setattr(config, name, saved[name])
            else:
                wanted[name] = kwargs.pop(name, saved[name])
        with_info = kwargs.pop("output_loading_info", False)
        model, info = load(source, *model_args, config=config, output_loading_info=True, **kwargs)
        new_tensors, left_out = (model.__dict__.pop(name, set()) for name in ("_new_tensors", "_left_out"))
        info["missing_keys"] |= new_tensors
        loaded = set(model.state_dict()) - set(info["missing_keys"])
        has_encoder = any(".attention." in name and not name.startswith("decoder.") for name in loaded)
        # What is no model of ours at all is left to the library, which names every tensor.
        if not has_encoder and (loaded or left_out & _PARTS):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds no encoder, only other parts of a model: {cls.__name__} can't "
                "start from it. Save whole models with save_pretrained."
            )
        model._set_trainable()  # the loader makes every parameter trainable
        target = bool(stored.get("norm_pix_loss", False))
        if model.config.norm_pix_loss != target and any(name.startswith("decoder.") for name in loaded):
            logger.warning(
                f"{pretrained_model_name_or_path} was trained with norm_pix_loss={target}, and it is {not target} now: "
                "its decoder has to learn another target. Leave norm_pix_loss out to keep that of the checkpoint."
            )
        if _pair(wanted["image_size"]) != _pair(saved["image_size"]):
            model.resize_position_embeddings(wanted["image_size"])
        if wanted["num_channels"] != saved["num_channels"]:
            logger.warning(
                f"{cls.__name__}: from {saved['num_channels']} to {wanted['num_channels']} channels, by "
                f"channel_init={channel_init!r}. Give the image processor a mean and deviation for each."
            )
            model.resize_channels(wanted["num_channels"], channel_init)
        return (model, info) if with_info else model

    def _adjust_missing_and_unexpected_keys(self, loading_info):
        """Tells in one line of parts that are new or left out as a whole; the rest stays for the library's table."""
        super()._adjust_missing_and_unexpected_keys(loading_info)

        def part(name: str) -> str:
            return name.removeprefix("mae.").split(".")[0]

        missing, unexpected = loading_info.missing_keys, loading_info.unexpected_keys
        parts = {part(name) for name in self.state_dict()}
        partly = {part(name) for name in self.state_dict() if name not in missing} | {"embeddings", "layers"}
        self._new_tensors = {name for name in missing if part(name) not in partly}
        self._left_out = {part(name) for name in unexpected if part(name) not in parts}
        missing -= self._new_tensors
        unexpected -= {name for name in unexpected if part(name) in self._left_out}
        new = {part(name) for name in self._new_tensors}
        is_head = self.base_model is not self  # that an encoder leaves out the decoder needs no word
        if new or (is_head and self._left_out):
            told = (("new, to be trained", new), ("left out of the checkpoint", self._left_out))
            line = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in told if names)
            logger.warning(f"{type(self).__name__}: {line}.")

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves as [`~transformers.PreTrainedModel.save_pretrained`] does, with the code and a full `auto_map`.

        The folder then loads through every Auto class with `trust_remote_code=True` where hf_mae is not installed.
        """
        if self.is_remote_code():
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **_AUTO_MAP}
        super().save_pretrained(save_directory, *args, **kwargs)


_PARTS = {"decoder", "classifier", "fc_norm", "feature_pyramid"}  # of our models, beside the encoder
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class MAEModel(MAEPreTrainedModel):
    """The encoder. Sees every patch and is deterministic, unless a mask is asked for."""

    def __init__(self, config: MAEConfig, final_norm: bool = True):
        """
        Args:
            config ([`MAEConfig`]): Sizes and options.
            final_norm (`bool`, *optional*, defaults to `True`): Whether the last block is followed by a norm. Not where
                a head has one of its own.
        """
        super().__init__(config)
        self.embeddings = MAEEmbeddings(config)
        sizes = (config.hidden_size, config.num_attention_heads, config.intermediate_size)
        drop_paths = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList([MAELayer(config, *sizes, drop_path) for drop_path in drop_paths])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if final_norm else nn.Identity()
        self.post_init()
        maybe_install_capturing_hooks(self)  # now, since doing so later would break the graph of torch.compile

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_ratio: float | None = None,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        ids_keep: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MAEModelOutput:
        """Encodes images. Without any of the four masking arguments all patches are seen, in raster order.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images. Any size that
                the patch divides; any float dtype.
            mask_ratio (`float`, *optional*): Fraction of patches to hide, in [0, 1), chosen by `config.mask_sampling`.
                `int(num_patches * (1 - mask_ratio))` stay visible. With `noise`, defaults to `config.mask_ratio`.
            noise (`torch.Tensor` of shape `(batch, num_patches)`, *optional*): Makes the choice replayable: sorted in
                ascending order, the first patches stay visible (after [`masking_order`] for `block` and `grid`). Not
                used where the mask itself is given.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch, num_patches)`, *optional*): The mask itself, True =
                hidden, with the same number of hidden patches in each image.
            ids_keep (`torch.LongTensor` of shape `(batch, num_kept)`, *optional*): Patch indices to stay visible, those
                of an image distinct.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `True`): Whether images of another size than
                `config.image_size` are welcome. The position table is then resampled.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and arguments of the attention.

        Returns:
            [`MAEModelOutput`]

        Raises:
            ValueError: If a shape or a ratio does not fit, or more than one way of masking is given.
        """
        grid_size = self._check_images(pixel_values, interpolate_pos_encoding)
        ids_keep, ids_hidden = self._choose_mask(pixel_values, grid_size, mask_ratio, noise, bool_masked_pos, ids_keep)
        hidden_states = self.embeddings(pixel_values, grid_size, ids_keep, ids_hidden)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        if self.config.pooling == "class":
            pooled = hidden_states[:, 0]
        else:
            visible = grid_size[0] * grid_size[1] if ids_keep is None else ids_keep.shape[1]
            pooled = hidden_states[:, 1 : 1 + visible].mean(dim=1)
        return MAEModelOutput(hidden_states, pooled, ids_keep, ids_hidden)

    def _check_images(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> tuple[int, int]:
        """Returns the grid of the images, (rows, columns)."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must have the shape (batch, {self.config.num_channels} channels, height, width), got "
                f"{tuple(pixel_values.shape)}. The image processor makes them so with num_channels="
                f"{self.config.num_channels}."
            )
        size, patch_size = tuple(pixel_values.shape[2:]), self.embeddings.patch_size
        if size[0] % patch_size[0] or size[1] % patch_size[1] or 0 in size:
            raise ValueError(
                f"Images of {size} pixels can't be cut into patches of {patch_size}: resize, crop or pad them to "
                "multiples of the patch."
            )
        if not interpolate_pos_encoding and size != _pair(self.config.image_size):
            raise ValueError(
                f"Images of {size} pixels, but the model is made for {_pair(self.config.image_size)} and "
                "interpolate_pos_encoding=False forbids resampling its positions. Resize the images or allow it."
            )
        return patch_grid(pixel_values, patch_size)

    def _choose_mask(
        self, pixel_values, grid_size, mask_ratio, noise, bool_masked_pos, ids_keep
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Returns indices of the visible patches (B, K) and of the hidden ones (B, N - K), or None if unmasked."""
        if sum(given is not None for given in (mask_ratio, bool_masked_pos, ids_keep)) > 1:
            raise ValueError("Give one of mask_ratio, bool_masked_pos and ids_keep: each tells the whole mask.")
        num_images, num_patches = pixel_values.shape[0], grid_size[0] * grid_size[1]
        for name, given in (("noise", noise), ("bool_masked_pos", bool_masked_pos)):
            if given is not None and given.shape != (num_images, num_patches):
                raise ValueError(
                    f"{name} must have the shape (batch, patches) = {(num_images, num_patches)} for images of "
                    f"{grid_size[0]} x {grid_size[1]} patches, got {tuple(given.shape)}. The class token has no place."
                )
        if bool_masked_pos is None and ids_keep is None and (mask_ratio is not None or noise is not None):
            mask_ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
            if not 0 <= mask_ratio < 1:
                raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}.")
            num_kept = int(num_patches * (1 - mask_ratio))
            if noise is None:
                noise = torch.rand(num_images, num_patches, device=pixel_values.device)
            order = masking_order(noise, grid_size, self.config.mask_sampling).argsort(dim=1)
        elif bool_masked_pos is not None:
            counts = bool_masked_pos.bool().logical_not().sum(dim=1)
            num_kept = int(counts[0])
            if (counts != num_kept).any():
                raise ValueError(
                    "bool_masked_pos must hide the same number of patches in each image, as images are stacked; got "
                    f"{(num_patches - counts).tolist()}. Pass images of other counts in batches of their own."
                )
            order = bool_masked_pos.byte().argsort(dim=1, stable=True)  # visible ones first, each in raster order
        elif ids_keep is not None:
            if ids_keep.ndim != 2 or ids_keep.shape[0] != num_images or ids_keep.shape[1] > num_patches:
                raise ValueError(
                    f"ids_keep must have the shape (batch, at most patches) = ({num_images}, <= {num_patches}), got "
                    f"{tuple(ids_keep.shape)}."
                )
            num_kept = ids_keep.shape[1]
            hidden = torch.ones(num_images, num_patches, dtype=torch.uint8, device=ids_keep.device)
            hidden = hidden.scatter(1, ids_keep, 0).argsort(dim=1, stable=True)[:, num_kept:]
            order = torch.cat([ids_keep, hidden], dim=1)
        else:
            return None, None
        if num_kept == 0:
            raise ValueError(f"The mask hides all {num_patches} patches; leave at least one visible.")
        return order[:, :num_kept], order[:, num_kept:]


class MAEDecoder(MAEPreTrainedModel):
    """Predicts hidden patches from the encoder's tokens. Part of [`MAEForPreTraining`]."""

    def __init__(self, config: MAEConfig):
        """
        Args:
            config ([`MAEConfig`]): Sizes and options.
        """
        super().__init__(config)
        patch_height, patch_width = _pair(config.patch_size)
        width = config.decoder_hidden_size
        self.grid_size = config.grid_size
        self.embed = nn.Linear(config.hidden_size, width)
        # With mask tokens in the encoder the decoder gets a token for every patch from there.
        self.mask_token = None if config.mask_tokens_in_encoder else nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = _empty_position_table(width, self.grid_size)
        sizes = (width, config.decoder_num_attention_heads, config.decoder_intermediate_size)
        self.layers = nn.ModuleList([MAELayer(config, *sizes) for _ in range(config.decoder_num_hidden_layers)])
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, patch_height * patch_width * config.num_channels)
        self.post_init()
        maybe_install_capturing_hooks(self)  # as in the encoder

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        hidden_states: torch.Tensor,
        ids_keep: torch.LongTensor,
        ids_predict: torch.LongTensor | None,
        grid_size: tuple[int, int],
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Predicts patches.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, 1 + tokens, hidden_size)`): The encoder's class token and
                visible patches (and, with `mask_tokens_in_encoder`, hidden ones).
            ids_keep (`torch.LongTensor` of shape `(batch, num_kept)`): Patch indices of the visible patches.
            ids_predict (`torch.LongTensor` of shape `(batch, num_predicted)`): Patch indices of the hidden patches to
                predict, or `None` to predict the visible ones.
            grid_size (`(rows, columns)`): Patches of an image.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and arguments of the attention.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutput`] whose `last_hidden_state` has the shape `(batch,
            num_predicted, patch_height * patch_width * channels)`.
        """
        positions = resample_position_table(self.position_embeddings, self.grid_size, grid_size)
        ids = ids_keep
        tokens = self.embed(hidden_states)
        if ids_predict is not None and self.mask_token is None:
            ids = torch.cat([ids_keep, ids_predict], dim=1)
            tokens = tokens[:, : 1 + ids.shape[1]]
        class_position = positions[:, :1].expand(tokens.shape[0], -1, -1)
        tokens = tokens + torch.cat([class_position, _rows(positions, ids)], dim=1)
        if ids_predict is not None and self.mask_token is not None:
            tokens = torch.cat([tokens, self.mask_token + _rows(positions, ids_predict)], dim=1)  # (B, 1 + K + M, D)
        for layer in self.layers[:-1]:
            tokens = layer(tokens, **kwargs)
        first_predicted = 1 if ids_predict is None else 1 + ids_keep.shape[1]
        tokens = self.layers[-1](tokens, first_predicted, **kwargs)  # (B, M, D)
        return BaseModelOutput(self.head(self.layernorm(tokens)))


class MAEForPreTraining(MAEPreTrainedModel):
    """Encoder and decoder: hides patches of images and predicts them."""

    def __init__(self, config: MAEConfig):
        """
        Args:
            config ([`MAEConfig`]): Sizes and options.
        """
        super().__init__(config)
        self.mae = MAEModel(config)
        self.decoder = MAEDecoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_ratio: float | None = None,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        ids_keep: torch.LongTensor | None = None,
        prediction_ratio: float | None = None,
        interpolate_pos_encoding: bool = True,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MAEForPreTrainingOutput:
        """Hides patches and predicts them. Masks are random in evaluation too; `noise` makes a call replayable.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images. Any size that
                the patch divides; any float dtype. The loss is computed in float32 or better.
            mask_ratio (`float`, *optional*): Fraction of patches to hide, in [0, 1), defaults to `config.mask_ratio`.
                With 0 nothing is hidden and all patches are predicted.
            noise, bool_masked_pos, ids_keep: The mask, as in [`MAEModel.forward`].
            prediction_ratio (`float`, *optional*): Fraction of the hidden patches to predict, in (0, 1]. Defaults to
                `config.prediction_ratio` in training mode and to 1 in evaluation.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `True`): Whether images of another size than
                `config.image_size` are welcome.
            return_loss (`bool`, *optional*, defaults to `True`): Whether to compute the loss.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and arguments of the attention.

        Returns:
            [`MAEForPreTrainingOutput`]

        Raises:
            ValueError: If a shape or a ratio does not fit, or more than one way of masking is given.
        """
        if mask_ratio is None and bool_masked_pos is None and ids_keep is None:
            mask_ratio = self.config.mask_ratio
        encoded = self.mae(
            pixel_values, mask_ratio, noise, bool_masked_pos, ids_keep, interpolate_pos_encoding, **kwargs
        )
        ids_keep, ids_hidden = encoded.ids_keep, encoded.ids_hidden

        if prediction_ratio is None:
            prediction_ratio = self.config.prediction_ratio if self.training else 1.0
        if not 0 < prediction_ratio <= 1:
            raise ValueError(f"prediction_ratio must be in (0, 1], got {prediction_ratio}.")
        ids_predict = None  # nothing is hidden: the visible patches are predicted
        if ids_hidden.shape[1] > 0:
            ids_predict = ids_hidden[:, : max(round(ids_hidden.shape[1] * prediction_ratio), 1)]

        patch_size = self.mae.embeddings.patch_size
        grid_size = patch_grid(pixel_values, patch_size)
        decoded = self.decoder(encoded.last_hidden_state, ids_keep, ids_predict, grid_size, **kwargs)
        predictions = decoded.last_hidden_state
        loss = None
        if return_loss:
            ids_predict = ids_keep if ids_predict is None else ids_predict
            target = at_least_float32(patchify(pixel_values, patch_size, ids_predict))  # (B, M, P * C)
            if self.config.norm_pix_loss:
                mean, std = _patch_statistics(pixel_values, patch_size, ids_predict)
                target = (target - mean).div_(std)  # in place, as memory is at its peak here
            loss = nn.functional.mse_loss(at_least_float32(predictions), target)
        states = None
        if decoded.hidden_states is not None or decoded.attentions is not None:
            states = BaseModelOutput(hidden_states=decoded.hidden_states, attentions=decoded.attentions)
        return MAEForPreTrainingOutput(
            loss=loss,
            logits=predictions,
            ids_keep=ids_keep,
            ids_hidden=ids_hidden,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            decoder_output=states,
        )

    @torch.no_grad()
    def reconstruct(self, pixel_values: torch.Tensor, **kwargs) -> MAEReconstructionOutput:
        """Returns pictures: the visible patches as they are, the hidden ones as predicted.

        With `norm_pix_loss` the predictions are brought back to pixels with the mean and variance of the hidden patch
        itself. Such a picture thus shows more than the model knows: brightness and contrast of each patch are given.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            **kwargs: The mask and other arguments of [`MAEForPreTraining.forward`].

        Returns:
            [`MAEReconstructionOutput`]: `MAEImageProcessor.post_process_reconstruction` makes PIL pictures of it.
        """
        output = self(pixel_values, **{"prediction_ratio": 1.0, **kwargs, "return_loss": False, "return_dict": True})
        patch_size = self.mae.embeddings.patch_size
        patches = at_least_float32(patchify(pixel_values, patch_size))  # (B, N, P * C)
        predictions = output.logits.to(patches.dtype)
        ids_predict = output.ids_hidden if output.ids_hidden.shape[1] > 0 else output.ids_keep
        index = ids_predict[:, : predictions.shape[1], None].expand_as(predictions)
        if self.config.norm_pix_loss:
            mean, std = _patch_statistics(pixel_values, patch_size, ids_predict[:, : predictions.shape[1]])
            predictions = predictions * std + mean
        grid_size = patch_grid(pixel_values, patch_size)
        reconstruction = unpatchify(patches.scatter(1, index, predictions), patch_size, grid_size)
        masked = unpatchify(patches.masked_fill(output.mask[..., None], 0), patch_size, grid_size)
        return MAEReconstructionOutput(reconstruction, masked, output.mask)


def _patch_statistics(
    pixel_values: torch.Tensor, patch_size: tuple[int, int], ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (B, M, 1) of patches for `norm_pix_loss`: unbiased variance plus 1e-6 (official code).

    From the image as it lies in memory: three passes over patches cut out of it would, compiled, cut three times.
    """
    (rows, columns), (height, width) = patch_grid(pixel_values, patch_size), patch_size
    patches = at_least_float32(pixel_values).unflatten(3, (columns, width)).unflatten(2, (rows, height))
    mean = patches.mean(dim=(1, 3, 5), keepdim=True)  # (B, 1, rows, 1, columns, 1)
    # A third of the time of torch.var_mean, which takes the elements one by one on a CPU.
    squares = torch.linalg.vector_norm(patches - mean, dim=(1, 3, 5)).square()  # (B, rows, columns)
    std = (squares / (pixel_values.shape[1] * height * width - 1) + 1e-6).sqrt()
    return tuple(each.flatten(1).gather(1, ids)[..., None] for each in (mean, std))


__all__ = [
    "MAEForPreTraining",
    "MAEForPreTrainingOutput",
    "MAEModel",
    "MAEModelOutput",
    "MAEPreTrainedModel",
    "MAEReconstructionOutput",
]
