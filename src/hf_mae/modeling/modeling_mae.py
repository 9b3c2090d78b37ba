# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Masked autoencoder (He et al. 2021, arXiv 2111.06377): the encoder, the decoder, pre-training, and their parts.

Written from the paper and checked against numbers of the official implementation. The loss and the gradients are the
same but cost less. Only visible patches are cut out of the image and embedded for the encoder. The decoder keeps its
tokens in the order class, visible, hidden, so that nothing has to be put back in place: attention does not depend on
the order. The queries and the MLP of its last block, its norm, its head and the loss are computed only for hidden
patches.

A mask means the same everywhere: bool, True = hidden from the encoder and predicted. *Patch* indices never count the
class tokens. Shapes in comments: B batch, C channels, P pixels of a patch (height times width), N patches of an image,
K visible (kept) patches, M hidden patches that are predicted, T class tokens, D width.

Other files: masking_mae.py chooses masks, targets_mae.py says what is predicted, reconstruction_mae.py makes images of
predictions, loading_mae.py loads at other sizes.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_mae import MAEConfig, height_width
from .loading_mae import LoadingMixin, ResizableModule, Resize
from .masking_mae import choose_mask
from .outputs_mae import MAEForPreTrainingOutput, MAEModelOutput
from .patches_mae import at_least_float32, patch_grid, patchify, resample_position_table, sincos_position_table
from .reconstruction_mae import ReconstructionMixin
from .targets_mae import PixelTarget, valid_patches


class MAEPreTrainedModel(LoadingMixin, PreTrainedModel):
    """Base class of all MAE models: initialisation, and loading and resizing by [`LoadingMixin`]."""

    config: MAEConfig
    base_model_prefix = "mae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # Without this, Trainer assumes that the loss is already divided by the accumulation steps.
    accepts_loss_kwargs = False
    _no_split_modules = ["MAEEmbeddings", "MAELayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "patch_embeddings"

    def __init__(self, config: MAEConfig, *inputs, **kwargs):
        config.check()
        super().__init__(config, *inputs, **kwargs)

    def post_init(self):
        super().post_init()
        self._set_trainable()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialises one module as the official code does: Xavier's uniform distribution (He et al. 2021, app. A.1).

        Only through `init`, which does not touch loaded tensors. Position tables are set here so that they are right
        however a model is made: by the constructor, on the meta device, and from checkpoints that lack them.
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
            if self.config.position_embedding == "learned":
                init.trunc_normal_(table, std=self.config.initializer_range)
            else:
                sincos = sincos_position_table(table.shape[-1], module.grid_size, self.config.num_class_tokens)
                init.copy_(table, sincos.to(table.dtype))


# ----------------------------------------------------------------------------------------------------------------------
# Encoder


class MAEModel(MAEPreTrainedModel):
    """The encoder. It sees every patch and is deterministic, unless it is called with a mask."""

    def __init__(self, config: MAEConfig, final_norm: bool = True):
        """Makes an encoder with fresh weights.

        Args:
            config ([`MAEConfig`]): Sizes and options.
            final_norm (`bool`, *optional*, defaults to `True`): Whether a norm follows the last block. `False` for
                heads with a norm of their own.
        """
        super().__init__(config)
        self.embeddings = MAEEmbeddings(config)
        sizes = (config.hidden_size, config.num_attention_heads, config.intermediate_size)
        drop_paths = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList([MAELayer(config, *sizes, drop_path) for drop_path in drop_paths])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if final_norm else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_ratio: float | None = None,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        ids_keep: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = True,
        num_layers: int | None = None,
        drop_path_noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MAEModelOutput:
        """Encodes images. Without any of the four masking arguments it sees all patches, in raster order.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images of any size
                that the patch divides, in any float dtype.
            mask_ratio (`float`, *optional*): Fraction of patches to hide, in [0, 1), chosen by `config.mask_sampling`.
                `int(num_patches * (1 - mask_ratio))` stay visible, or with `config.mask_block_size` as many whole
                cells as [`num_kept_patches`] says. With `noise`, defaults to `config.mask_ratio`.
            noise (`torch.Tensor` of shape `(batch, num_patches)`, *optional*): Makes the choice reproducible: the
                patches with the lowest noise stay visible (for `block`, `grid` and cells see [`masking_order`]).
                Ignored if the mask itself is given.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch, num_patches)`, *optional*): The mask itself, True =
                hidden, with the same number of hidden patches in each image.
            ids_keep (`torch.LongTensor` of shape `(batch, num_kept)`, *optional*): Patch indices of the patches that
                stay visible, distinct within an image.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `True`): Whether images may have another size than
                `config.image_size`. The position table is then resampled.
            num_layers (`int`, *optional*): Number of blocks to run. All by default.
            drop_path_noise (`torch.Tensor` of shape `(batch, num_hidden_layers, 2)`, *optional*): Makes drop path
                reproducible: in training the attention and the MLP of a block are skipped for an image where its
                numbers, in [0, 1), are below the probability of the block. Drawn at random by default.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and arguments of the attention.

        Returns:
            [`MAEModelOutput`]

        Raises:
            ValueError: If `pixel_values` are integers, if a shape or a ratio does not fit, or if more than one way of
                masking is given.
        """
        grid_size = self._check_images(pixel_values, interpolate_pos_encoding)
        if noise is not None and mask_ratio is None and bool_masked_pos is None and ids_keep is None:
            mask_ratio = self.config.mask_ratio
        rule = (self.config.mask_sampling, self.config.mask_block_size)
        ids_keep, ids_hidden = choose_mask(pixel_values, grid_size, *rule, mask_ratio, noise, bool_masked_pos, ids_keep)
        self._check_drop_path_noise(drop_path_noise, pixel_values)
        tokens = self.embeddings(pixel_values, grid_size, ids_keep, ids_hidden)
        tokens, hidden_states, attentions = run_layers(
            self.layers[:num_layers], tokens, self.config, drop_path_noise=drop_path_noise, **kwargs
        )
        tokens = self.layernorm(tokens)
        num_visible = grid_size[0] * grid_size[1] if ids_keep is None else ids_keep.shape[1]
        pooled = self._pool(tokens, num_visible)
        return MAEModelOutput(tokens, pooled, ids_keep, ids_hidden, hidden_states, attentions)

    def _pool(self, tokens: torch.Tensor, num_visible: int) -> torch.Tensor:
        """Returns the mean of the class tokens or of the visible patches (B, D) of all tokens (B, tokens, D)."""
        num_class_tokens = self.config.num_class_tokens
        if self.config.pooling == "class":
            return tokens[:, :num_class_tokens].mean(dim=1)
        return tokens[:, num_class_tokens : num_class_tokens + num_visible].mean(dim=1)

    def _check_drop_path_noise(self, noise: torch.Tensor | None, pixel_values: torch.Tensor):
        """Raises `ValueError` if the shape of the noise does not fit."""
        expected = (pixel_values.shape[0], self.config.num_hidden_layers, 2)
        if noise is not None and noise.shape != expected:
            raise ValueError(
                f"`drop_path_noise` must have the shape (batch, blocks, 2) = {expected}, got {tuple(noise.shape)}."
            )

    def _check_images(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> tuple[int, int]:
        """Returns the grid of the images, (rows, columns), or raises `ValueError`."""
        if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
            got = pixel_values.dtype if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
            raise ValueError(
                f"`pixel_values` must be normalised floats, got {got}. The image processor makes them "
                'of images: processor(images, return_tensors="pt").pixel_values, or of a batch of the right size: '
                "processor.rescale_and_normalize(batch)."
            )
        if not torch.compiler.is_compiling() and len(pixel_values) == 0:  # else an exported graph would fix the number
            raise ValueError(f"`pixel_values` must hold at least one image, got the shape {tuple(pixel_values.shape)}.")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"`pixel_values` must have the shape (batch, {self.config.num_channels} channels, height, width), got "
                f"{tuple(pixel_values.shape)}. An image processor with num_channels={self.config.num_channels} returns "
                "them in this shape."
            )
        size, patch_size = tuple(pixel_values.shape[2:]), self.embeddings.patch_size
        if size[0] % patch_size[0] or size[1] % patch_size[1] or 0 in size:
            raise ValueError(
                f"Images of {size} pixels can't be cut into patches of {patch_size}: resize, crop or pad them to "
                "multiples of the patch."
            )
        if not interpolate_pos_encoding and size != height_width(self.config.image_size):
            raise ValueError(
                f"Images of {size} pixels, but the model is made for {height_width(self.config.image_size)} and "
                "interpolate_pos_encoding=False forbids resampling its positions. Resize the images or allow it."
            )
        return patch_grid(pixel_values, patch_size)


# ----------------------------------------------------------------------------------------------------------------------
# Decoder


class MAEDecoder(ResizableModule, MAEPreTrainedModel):
    """Predicts hidden patches from the encoder's tokens. Part of [`MAEForPreTraining`]."""

    def __init__(self, config: MAEConfig, num_values: int):
        """Makes a decoder with fresh weights.

        Args:
            config ([`MAEConfig`]): Sizes and options.
            num_values (`int`): How many values are predicted for a patch.
        """
        super().__init__(config)
        width = config.decoder_hidden_size
        self.grid_size = config.grid_size
        self.embed = nn.Linear(config.hidden_size, width)
        # With mask tokens in the encoder, the decoder gets a token for every patch from there.
        self.mask_token = None if config.mask_tokens_in_encoder else nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = _empty_position_table(config, width)
        sizes = (width, config.decoder_num_attention_heads, config.decoder_intermediate_size)
        self.layers = nn.ModuleList([MAELayer(config, *sizes) for _ in range(config.decoder_num_hidden_layers)])
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, num_values)
        self.post_init()

    def resize_weights(self, config: MAEConfig, resize_input: Resize | None, resize_output: Resize | None):
        self.resize_positions(config.grid_size)  # the head belongs to the target

    @can_return_tuple
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
            hidden_states (`torch.Tensor` of shape `(batch, num_class_tokens + tokens, hidden_size)`): The encoder's
                class tokens and visible patches (and, with `mask_tokens_in_encoder`, hidden ones).
            ids_keep (`torch.LongTensor` of shape `(batch, num_kept)`): Patch indices of the visible patches.
            ids_predict (`torch.LongTensor` of shape `(batch, num_predicted)`): Patch indices of the hidden patches to
                predict, or `None` to predict the visible ones.
            grid_size (`(rows, columns)`): Patches of an image.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and arguments of the attention.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutput`] whose `last_hidden_state` has the shape `(batch,
            num_predicted, num_values)`.
        """
        ids_masked = ids_keep[:, :0] if ids_predict is None else ids_predict
        tokens = self._embed_tokens(hidden_states, ids_keep, ids_masked, grid_size)  # (B, T + K + M, D)
        first_predicted = self.config.num_class_tokens + (0 if ids_predict is None else ids_keep.shape[1])
        tokens, states, attentions = run_layers(self.layers, tokens, self.config, first_predicted, **kwargs)
        return BaseModelOutput(self.head(self.layernorm(tokens)), states, attentions)

    def _embed_tokens(
        self, hidden_states: torch.Tensor, ids_keep: torch.Tensor, ids_masked: torch.Tensor, grid_size: tuple[int, int]
    ) -> torch.Tensor:
        """Returns tokens with positions in the order class, visible, masked."""
        num_class_tokens = self.config.num_class_tokens
        positions = resample_position_table(self.position_embeddings, self.grid_size, grid_size)
        class_positions, positions = positions.split([num_class_tokens, grid_size[0] * grid_size[1]], dim=1)
        tokens = self.embed(hidden_states)
        class_positions = class_positions.expand(tokens.shape[0], -1, -1)
        if self.mask_token is None:  # the encoder's tokens of all hidden patches, of which some are to be predicted
            ids = torch.cat([ids_keep, ids_masked], dim=1)
            tokens = tokens[:, : num_class_tokens + ids.shape[1]]
            return tokens + torch.cat([class_positions, _rows(positions, ids)], dim=1)
        tokens = tokens + torch.cat([class_positions, _rows(positions, ids_keep)], dim=1)
        # Also when nothing is masked: DistributedDataParallel needs a gradient of the mask token in every step.
        return torch.cat([tokens, self.mask_token + _rows(positions, ids_masked)], dim=1)


# ----------------------------------------------------------------------------------------------------------------------
# Pre-training


class MAEForPreTraining(PixelTarget, ReconstructionMixin, ResizableModule, MAEPreTrainedModel):
    """Encoder and decoder: hides patches of images and predicts them. [`PixelTarget`] defines what is predicted.

    [`ReconstructionMixin`] brings `reconstruct` and `reconstruct_all`, which turn predictions into images.
    """

    def __init__(self, config: MAEConfig):
        """Makes a model with fresh weights.

        Args:
            config ([`MAEConfig`]): Sizes and options.
        """
        super().__init__(config)
        self.mae = MAEModel(config)
        self.decoder = MAEDecoder(config, self.num_target_values())
        self.post_init()

    def resize_weights(self, config: MAEConfig, resize_input: Resize | None, resize_output: Resize | None):
        if resize_output is not None:
            self.resize_head(self.decoder.head, resize_output)

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
        valid: torch.BoolTensor | None = None,
        drop_path_noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MAEForPreTrainingOutput:
        """Hides patches and predicts them. Masks are random in evaluation mode too; `noise` makes them reproducible.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images of any size
                that the patch divides, in any float dtype. The loss is computed in float32 or better.
            mask_ratio (`float`, *optional*): Fraction of patches to hide, in [0, 1), defaults to `config.mask_ratio`.
                With 0 nothing is hidden and all patches are predicted.
            noise, bool_masked_pos, ids_keep: The mask, as in [`MAEModel.forward`].
            prediction_ratio (`float`, *optional*): Fraction of the hidden patches to predict, in (0, 1]. Defaults to
                `config.prediction_ratio` in training mode and to 1 in evaluation mode.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `True`): Whether images may have another size than
                `config.image_size`.
            return_loss (`bool`, *optional*, defaults to `True`): Whether to compute the loss.
            valid (`torch.BoolTensor` of shape `(batch, height, width)`, *optional*): False where pixels are no-data.
                Patches with such pixels are left out of the loss, see [`PixelTarget.target_loss`].
            drop_path_noise: As in [`MAEModel.forward`].
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and arguments of the attention.

        Returns:
            [`MAEForPreTrainingOutput`]

        Raises:
            ValueError: If `pixel_values` are integers, if a shape or a ratio does not fit, or if more than one way of
                masking is given.
        """
        if mask_ratio is None and bool_masked_pos is None and ids_keep is None:
            mask_ratio = self.config.mask_ratio
        mask = (mask_ratio, noise, bool_masked_pos, ids_keep)
        encoded = self.mae(
            pixel_values, *mask, interpolate_pos_encoding, drop_path_noise=drop_path_noise, return_dict=True, **kwargs
        )
        ids_keep, ids_hidden = encoded.ids_keep, encoded.ids_hidden
        ids_predict = self._choose_predicted(ids_hidden, prediction_ratio)
        grid_size = patch_grid(pixel_values, self.mae.embeddings.patch_size)
        decoded = self.decoder(encoded.last_hidden_state, ids_keep, ids_predict, grid_size, return_dict=True, **kwargs)
        loss = None
        if return_loss:
            loss = self._loss(
                decoded.last_hidden_state, pixel_values, ids_keep if ids_predict is None else ids_predict, valid
            )
        return MAEForPreTrainingOutput(
            loss=loss,
            logits=decoded.last_hidden_state,
            ids_keep=ids_keep,
            ids_hidden=ids_hidden,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            decoder_output=_recorded_states(decoded),
        )

    def _loss(
        self, predictions: torch.Tensor, pixel_values: torch.Tensor, ids: torch.Tensor, valid: torch.BoolTensor | None
    ) -> torch.Tensor:
        """Returns the loss of the patches `ids` (B, M)."""
        target = self.target_values(pixel_values, ids)
        if valid is None:
            return self.target_loss(predictions, target)
        valid = valid_patches(valid, pixel_values, self.mae.embeddings.patch_size, ids)
        return self.target_loss(predictions, target, valid)

    def _choose_predicted(self, ids_hidden: torch.Tensor, prediction_ratio: float | None) -> torch.Tensor | None:
        """Returns patch indices of the hidden patches to predict (B, M), or `None` if nothing is hidden."""
        if prediction_ratio is None:
            prediction_ratio = self.config.prediction_ratio if self.training else 1.0
        if not 0 < prediction_ratio <= 1:
            raise ValueError(f"`prediction_ratio` must be in (0, 1], got {prediction_ratio}.")
        if ids_hidden.shape[1] == 0:
            return None
        return ids_hidden[:, : max(round(ids_hidden.shape[1] * prediction_ratio), 1)]


def _recorded_states(decoded: BaseModelOutput) -> BaseModelOutput | None:
    """Returns the hidden states and attentions of the decoder, or `None` if they were not requested."""
    if decoded.hidden_states is None and decoded.attentions is None:
        return None
    return BaseModelOutput(hidden_states=decoded.hidden_states, attentions=decoded.attentions)


# ----------------------------------------------------------------------------------------------------------------------
# Parts of encoder and decoder


class MAEEmbeddings(ResizableModule, nn.Module):
    """Class tokens, embedded patches and positions (and mask tokens, if the encoder is to see those)."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        self.patch_size = height_width(config.patch_size)
        self.grid_size = config.grid_size
        patch_elements = self.patch_size[0] * self.patch_size[1] * config.num_channels
        # The official convolution, with its weights in the order of `patchify`: one product, for visible patches only.
        self.patch_embeddings = nn.Linear(patch_elements, config.hidden_size)
        self.cls_token = nn.Parameter(torch.empty(1, config.num_class_tokens, config.hidden_size))
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size)) if config.mask_tokens_in_encoder else None
        self.position_embeddings = _empty_position_table(config, config.hidden_size)

    def resize_weights(self, config: MAEConfig, resize_input: Resize | None, resize_output: Resize | None):
        self.patch_size = height_width(config.patch_size)
        self.resize_positions(config.grid_size)
        if resize_input is not None:
            layer = self.patch_embeddings
            layer.weight = nn.Parameter(resize_input(layer.weight), layer.weight.requires_grad)
            layer.in_features = layer.weight.shape[1]

    def forward(
        self,
        pixel_values: torch.Tensor,
        grid_size: tuple[int, int],
        ids_keep: torch.Tensor | None,
        ids_hidden: torch.Tensor | None,
    ) -> torch.Tensor:
        # Not the dtype of the weight, which differs when the model is quantised.
        patches = patchify(pixel_values, self.patch_size, ids_keep).to(self.cls_token.dtype)
        tokens = self.patch_embeddings(patches)  # (B, N or K, D)
        positions = resample_position_table(self.position_embeddings, self.grid_size, grid_size)
        class_positions, positions = positions.split([self.cls_token.shape[1], grid_size[0] * grid_size[1]], dim=1)
        class_tokens = (self.cls_token + class_positions).expand(tokens.shape[0], -1, -1)
        if ids_keep is None:
            return torch.cat([class_tokens, tokens + positions], dim=1)
        tokens = [class_tokens, tokens + _rows(positions, ids_keep)]
        if self.mask_token is not None:
            tokens.append(self.mask_token + _rows(positions, ids_hidden))
        return torch.cat(tokens, dim=1)


def _empty_position_table(config: MAEConfig, width: int) -> nn.Parameter:
    # A parameter, not a buffer: it is saved, may be fine-tuned, and is listed by name with the other weights.
    rows, columns = config.grid_size
    return nn.Parameter(torch.empty(1, config.num_class_tokens + rows * columns, width), requires_grad=False)


def _rows(positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Returns the positions (1, N, D) of patches that belong to patch indices (B, K): (B, K, D)."""
    return nn.functional.embedding(ids, positions[0])


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
        self,
        hidden_states: torch.Tensor,
        query_start: int = 0,
        drop_path_noise: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the output for the tokens from `query_start` on, and the attention weights if they are at hand.

        The tokens before `query_start` are only attended to. `drop_path_noise` (B, 2) decides which images skip the
        attention and the MLP.
        """
        skips_attention, skips_mlp = (None, None) if drop_path_noise is None else drop_path_noise.unbind(dim=1)
        attention_output, weights = self.attention(self.layernorm_before(hidden_states), query_start, **kwargs)
        attention_output = self.drop_path(self.dropout(attention_output), skips_attention)
        hidden_states = hidden_states[:, query_start:] + attention_output
        mlp_output = self.dropout(self.mlp(self.layernorm_after(hidden_states)))
        return hidden_states + self.drop_path(mlp_output, skips_mlp), weights


def run_layers(
    layers: nn.ModuleList,
    tokens: torch.Tensor,
    config: MAEConfig,
    last_query_start: int = 0,
    output_hidden_states: bool | int | list[int] | None = None,
    output_attentions: bool | None = None,
    drop_path_noise: torch.Tensor | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
    """Runs tokens through blocks, and records what each block returns if that is requested.

    By plain code, not by the hooks of transformers: models with hooks can't be pickled, and FSDP2 renames the classes
    by which these hooks are found.

    Args:
        layers (`nn.ModuleList`): Blocks.
        tokens (`torch.Tensor` of shape `(batch, tokens, width)`): Input of the first block.
        config ([`MAEConfig`]): Says whether to record, where the arguments do not.
        last_query_start (`int`): First token that the last block returns.
        output_hidden_states (`bool`, `int` or `list[int]`, *optional*): Whether to return the input and the output of
            each block, or which of them.
        output_attentions (`bool`, *optional*): Whether to return the attention weights of each block.
        drop_path_noise (`torch.Tensor` of shape `(batch, blocks, 2)`, *optional*): See [`MAEModel.forward`].
        **kwargs: Arguments of the attention.

    Returns:
        The output of the last block, the hidden states or `None`, and the attention weights or `None`.
    """
    if output_hidden_states is None:
        output_hidden_states = config.output_hidden_states
    if output_attentions is None:
        output_attentions = config.output_attentions
    states, attentions = (tokens,), ()
    for index, layer in enumerate(layers):
        query_start = last_query_start if index == len(layers) - 1 else 0
        noise = None if drop_path_noise is None else drop_path_noise[:, index]
        if layer.gradient_checkpointing and not tokens.requires_grad:
            tokens = _with_gradient(tokens, layer)
        tokens, weights = layer(tokens, query_start, noise, output_attentions=output_attentions, **kwargs)
        if output_hidden_states is not False:
            states += (tokens,)
        if output_attentions:
            attentions += (weights,)
    return tokens, choose_states(states, output_hidden_states), attentions if output_attentions else None


def _with_gradient(tokens: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Returns the input of a block after frozen ones so that `use_reentrant` gives the block's weights a gradient.

    Compiled code does that by itself.
    """
    is_trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in layer.parameters())
    return tokens.detach().requires_grad_() if is_trained and not torch.compiler.is_compiling() else tokens


def choose_states(
    states: tuple[torch.Tensor, ...], output_hidden_states: bool | int | list[int]
) -> tuple[torch.Tensor | None, ...] | None:
    """Returns all hidden states, or those with the requested numbers and `None` for the others, or nothing."""
    if isinstance(output_hidden_states, bool):
        return states if output_hidden_states else None
    numbers = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
    chosen = {number % len(states) for number in numbers if -len(states) <= number < len(states)}
    return tuple(state if number in chosen else None for number, state in enumerate(states))


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
        # Split q, k and v before reshaping into heads, so that backward concatenates the gradients once.
        parts = self.qkv(hidden_states).chunk(3, dim=-1)  # each (B, tokens, D)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        # Only eager attention can return its weights.
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
    """Computes attention in plain torch for `attn_implementation="eager"`; tensors are `(batch, heads, tokens, D)`."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = at_least_float32(weights).softmax(dim=-1).to(query.dtype)
    output = torch.matmul(nn.functional.dropout(weights, p=dropout, training=module.training), value)
    return output.transpose(1, 2).contiguous(), weights


class MAEMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: MAEConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class MAEDropPath(nn.Module):
    """Skips a branch of a block at random for each image, in training. Source: Huang et al. 2016 (arXiv 1603.09382)."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, hidden_states: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        if not self.training or self.probability == 0:
            return hidden_states
        if noise is None:
            kept = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(1 - self.probability)
        else:
            kept = (noise >= self.probability).to(hidden_states.dtype)[:, None, None]
        return hidden_states * (kept / (1 - self.probability))

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3g}"


__all__ = [
    "MAEForPreTraining",
    "MAEForPreTrainingOutput",
    "MAEModel",
    "MAEModelOutput",
    "MAEPreTrainedModel",
]
