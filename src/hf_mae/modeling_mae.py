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
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs, maybe_install_capturing_hooks

from .configuration_mae import MAEConfig, _pair

if TYPE_CHECKING:
    # Ships the processor's file with every saved model: the copier follows relative imports by their text.
    from .image_processing_mae import MAEImageProcessor  # noqa: F401

# What a saved folder offers to `trust_remote_code=True`, whichever class was saved.
_AUTO_MAP = {
    "AutoConfig": "configuration_mae.MAEConfig",
    "AutoModel": "modeling_mae.MAEModel",
    "AutoModelForPreTraining": "modeling_mae.MAEForPreTraining",
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
# Patches and positions


def patchify(pixel_values: torch.Tensor, patch_size: tuple[int, int], ids: torch.Tensor | None = None) -> torch.Tensor:
    """Cuts patches out of images, in raster order or those asked for; pixels of other patches are not touched.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Height and width are multiples of
            the patch's.
        patch_size (`(height, width)`): Pixels of a patch.
        ids (`torch.LongTensor` of shape `(batch, num_ids)`, *optional*): Patch indices in [0, num_patches).

    Returns:
        `torch.Tensor` of shape `(batch, num_patches or num_ids, patch_height * patch_width * channels)`: elements of a
        patch in the order row, column, channel (the layout of the official prediction head).
    """
    batch_size, channels = pixel_values.shape[:2]
    rows, columns = _grid_of(pixel_values, patch_size)
    patches = pixel_values.reshape(batch_size, channels, rows, patch_size[0], columns, patch_size[1])
    patches = patches.permute(0, 2, 4, 3, 5, 1)  # (B, rows, columns, P height, P width, C), a view
    if ids is None:
        return patches.reshape(batch_size, rows * columns, -1)  # (B, N, P * C)
    batch = torch.arange(batch_size, device=ids.device)[:, None]
    return patches[batch, ids // columns, ids % columns].flatten(2)  # (B, K, P * C)


def unpatchify(patches: torch.Tensor, patch_size: tuple[int, int], grid_size: tuple[int, int]) -> torch.Tensor:
    """Puts images together from all their patches; the inverse of [`patchify`].

    Args:
        patches (`torch.Tensor` of shape `(batch, num_patches, patch_height * patch_width * channels)`): As cut.
        patch_size (`(height, width)`): Pixels of a patch.
        grid_size (`(rows, columns)`): Patches of an image.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`.
    """
    rows, columns = grid_size
    images = patches.reshape(patches.shape[0], rows, columns, *patch_size, -1)
    images = images.permute(0, 5, 1, 3, 2, 4)  # (B, C, rows, P height, columns, P width)
    return images.reshape(images.shape[0], images.shape[1], rows * patch_size[0], columns * patch_size[1])


def sincos_position_table(width: int, grid_size: tuple[int, int]) -> torch.Tensor:
    """Returns the fixed two-dimensional sine-cosine table in the layout of the official checkpoints.

    The first half of the channels tells the column, the second the row; each half holds the sines, then the cosines of
    `position / 10000**(i / (width / 4))`. Source: Vaswani et al. 2017, section 3.5, per coordinate; the order of
    coordinates is that of the official code, whose weights depend on it.

    Args:
        width (`int`): Channels, divisible by 4.
        grid_size (`(rows, columns)`): Patches of an image.

    Returns:
        `torch.DoubleTensor` of shape `(1, 1 + rows * columns, width)`: a row of zeros for the class token, then the
        patches in raster order.
    """
    # On the CPU whatever the default device: models are constructed on "meta", where nothing can be computed.
    double = {"dtype": torch.float64, "device": "cpu"}
    frequencies = 10000 ** -(torch.arange(width // 4, **double) / (width // 4))
    rows, columns = (torch.arange(size, **double) for size in grid_size)
    y, x = (coordinate.reshape(-1, 1) * frequencies for coordinate in torch.meshgrid(rows, columns, indexing="ij"))
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)  # (N, D)
    return torch.cat([table.new_zeros(1, width), table])[None]  # (1, 1 + N, D)


def resample_position_table(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Resamples a position table to another grid in two dimensions (bicubic, corners not aligned).

    Args:
        table (`torch.Tensor` of shape `(1, 1 + rows * columns, width)`): Row of the class token first; it is kept.
        old (`(rows, columns)`): Grid of the table.
        new (`(rows, columns)`): Grid wanted. The same grid returns the table itself.

    Returns:
        `torch.Tensor` of shape `(1, 1 + new_rows * new_columns, width)`, dtype as given.
    """
    if old == new:
        return table
    patches = table[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    patches = nn.functional.interpolate(_at_least_float32(patches), size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def _grid_of(pixel_values: torch.Tensor, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Patches of the images (B, C, height, width), (rows, columns)."""
    return pixel_values.shape[2] // patch_size[0], pixel_values.shape[3] // patch_size[1]


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ----------------------------------------------------------------------------------------------------------------------
# Masking


def masking_order(noise: torch.Tensor, grid_size: tuple[int, int], sampling: str) -> torch.Tensor:
    """Turns noise into scores whose ascending order tells which patches stay visible: the first ones.

    Args:
        noise (`torch.Tensor` of shape `(batch, num_patches)`): Any values; those of an image should differ.
        grid_size (`(rows, columns)`): Patches of an image.
        sampling (`"random"`, `"block"` or `"grid"`): `"random"` returns the noise, which the official code sorts.
            `"grid"` orders the four positions of a 2 x 2 cell by noise and keeps whole positions first: at a ratio of
            0.75 one patch of every four stays, on a regular grid. `"block"` hides rectangles of a quarter of the image
            one after the other (centre and aspect from the noise, aspect between 0.3 and 1 / 0.3 as in BEiT, Bao et
            al. 2021, Algorithm 1) until enough is hidden. Source: He et al. 2021, Fig. 6 and Table 1f.

    Returns:
        `torch.Tensor` of shape `(batch, num_patches)`.
    """
    if sampling == "random":
        return noise
    (rows, columns), num_patches = grid_size, noise.shape[1]
    order = noise.argsort(dim=1)
    rank = order.argsort(dim=1)  # (B, N), 0 to N - 1: the noise as integers, with which ties can be broken exactly
    patch = torch.arange(num_patches, device=noise.device)
    row, column = patch // columns, patch % columns
    if sampling == "grid":
        position_in_cell = row % 2 * columns + column % 2  # the patch of the first cell that stands there
        return rank[:, position_in_cell] * num_patches + rank
    blocks = min(16, num_patches)
    centre = order[:, :blocks, None]  # (B, blocks, 1): distinct patches, each equally likely
    aspect = 0.3 ** (2 * rank[:, :blocks, None] / num_patches - 1)  # log-uniform
    height = (rows * columns / 4 * aspect).sqrt()
    covered = ((row - centre // columns).abs() <= height / 2) & (
        (column - centre % columns).abs() <= height / aspect / 2
    )  # (B, blocks, N)
    first = torch.where(covered, torch.arange(blocks, device=noise.device)[:, None], blocks).amin(dim=1)  # (B, N)
    return (blocks - first) * num_patches + rank


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
    weights = _at_least_float32(weights).softmax(dim=-1).to(query.dtype)
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
        self, hidden_states: torch.Tensor, first_query: int = 0, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        qkv = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_dim))  # (B, tokens, 3, heads, D / heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # Only eager attention can show its weights.
        implementation = "eager" if kwargs.get("output_attentions") else self.config._attn_implementation
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query[:, :, first_query:],
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


class MAELayer(GradientCheckpointingLayer):
    """A pre-norm transformer block, of the encoder or the decoder."""

    def __init__(self, config: MAEConfig, hidden_size: int, num_attention_heads: int, intermediate_size: int):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = MAEAttention(config, hidden_size, num_attention_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = MAEMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, first_query: int = 0, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Returns the block's output for the tokens from `first_query` on; the others are only attended to."""
        attention_output, _ = self.attention(self.layernorm_before(hidden_states), first_query, **kwargs)
        hidden_states = hidden_states[:, first_query:] + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.layernorm_after(hidden_states)))


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
        patches = patchify(pixel_values, self.patch_size, ids_keep).to(self.patch_embeddings.weight.dtype)
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

    def __init__(self, config: MAEConfig, *inputs, **kwargs):
        config.check()
        super().__init__(config, *inputs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialises one module the official way (He et al. 2021, appendix A.1: Xavier's uniform distribution).

        Only through `init`, which leaves loaded tensors alone. Position tables are set here so that they are right on
        every road into a model: constructor, meta device, and checkpoints that lack them.
        """
        if isinstance(module, nn.Linear):
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
        """
        self.config.image_size = image_size if isinstance(image_size, int) else list(image_size)
        self.config.check()
        for module in self._modules_with_positions():
            table = module.position_embeddings
            resampled = resample_position_table(table.detach(), module.grid_size, self.config.grid_size)
            module.position_embeddings = nn.Parameter(resampled, requires_grad=table.requires_grad)
            module.grid_size = self.config.grid_size

    def _modules_with_positions(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, MAEEmbeddings | MAEDecoder)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Loads a model as [`~transformers.PreTrainedModel.from_pretrained`] does, at any `image_size`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or name on the Hub.
            config (`MAEConfig`, *optional*): Defaults to the one of the checkpoint.
            **kwargs: Of `from_pretrained`, or fields of the configuration that shall differ. With another `image_size`
                the position tables are resampled (see [`resample_position_table`]).

        Raises:
            ValueError: If the checkpoint is of another architecture.
        """
        load = super().from_pretrained
        if pretrained_model_name_or_path is None:
            return load(None, *model_args, config=config, **kwargs)
        hub_kwargs = {name: kwargs[name] for name in _HUB_KWARGS if name in kwargs}
        stored, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
        if stored.get("model_type") != cls.config_class.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a checkpoint of model type {stored.get('model_type')!r}, but "
                f"{cls.__name__} loads {cls.config_class.model_type!r}. Weights of the official MAE code are read by "
                "`hf_mae.load_checkpoint`."
            )
        # The tables are loaded at the size they were saved with, then resampled.
        image_size = stored.get("image_size", cls.config_class.image_size)
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            wanted, config.image_size = config.image_size, image_size
        else:
            wanted = kwargs.pop("image_size", image_size)
        loaded = load(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        for module in model._modules_with_positions():  # the loader makes every parameter trainable
            module.position_embeddings.requires_grad_(False)
        if _pair(wanted) != _pair(image_size):
            model.resize_position_embeddings(wanted)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves as [`~transformers.PreTrainedModel.save_pretrained`] does, with the code and a full `auto_map`.

        The folder then loads through every Auto class with `trust_remote_code=True` where hf_mae is not installed.
        """
        if self.is_remote_code():
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **_AUTO_MAP}
        super().save_pretrained(save_directory, *args, **kwargs)


_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class MAEModel(MAEPreTrainedModel):
    """The encoder. Sees every patch and is deterministic, unless a mask is asked for."""

    # A pre-training checkpoint is loaded without a word about the decoder that is left out.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\."]

    def __init__(self, config: MAEConfig):
        """
        Args:
            config ([`MAEConfig`]): Sizes and options.
        """
        super().__init__(config)
        self.embeddings = MAEEmbeddings(config)
        sizes = (config.hidden_size, config.num_attention_heads, config.intermediate_size)
        self.layers = nn.ModuleList([MAELayer(config, *sizes) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
        return _grid_of(pixel_values, patch_size)

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
        # Inherited from the encoder alone, where it hides that a decoder was left out; here there is one to be filled.
        self._keys_to_ignore_on_load_unexpected = set()

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
        grid_size = _grid_of(pixel_values, patch_size)
        decoded = self.decoder(encoded.last_hidden_state, ids_keep, ids_predict, grid_size, **kwargs)
        predictions = decoded.last_hidden_state
        loss = None
        if return_loss:
            ids_predict = ids_keep if ids_predict is None else ids_predict
            target = _at_least_float32(patchify(pixel_values, patch_size, ids_predict))  # (B, M, P * C)
            if self.config.norm_pix_loss:
                mean, std = _patch_statistics(target)
                target = (target - mean) / std
            loss = (_at_least_float32(predictions) - target).square().mean()
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
        patches = _at_least_float32(patchify(pixel_values, patch_size))  # (B, N, P * C)
        predictions = output.logits.to(patches.dtype)
        ids_predict = output.ids_hidden if output.ids_hidden.shape[1] > 0 else output.ids_keep
        index = ids_predict[:, : predictions.shape[1], None].expand_as(predictions)
        if self.config.norm_pix_loss:
            mean, std = _patch_statistics(patches.gather(1, index))
            predictions = predictions * std + mean
        grid_size = _grid_of(pixel_values, patch_size)
        reconstruction = unpatchify(patches.scatter(1, index, predictions), patch_size, grid_size)
        masked = unpatchify(patches.masked_fill(output.mask[..., None], 0), patch_size, grid_size)
        return MAEReconstructionOutput(reconstruction, masked, output.mask)


def _patch_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of patches (B, M, P * C) for `norm_pix_loss`: unbiased variance plus 1e-6 (official code)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


__all__ = [
    "MAEForPreTraining",
    "MAEForPreTrainingOutput",
    "MAEModel",
    "MAEModelOutput",
    "MAEPreTrainedModel",
    "MAEReconstructionOutput",
    "masking_order",
    "patchify",
    "resample_position_table",
    "sincos_position_table",
    "unpatchify",
]
