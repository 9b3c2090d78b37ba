# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Models that use a pre-trained encoder: a classifier, and a backbone for the heads of other tasks."""

import os

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_mae import MAEConfig, check_pooling_queries
from .modeling_mae import MAEModel, MAEPreTrainedModel, choose_states
from .outputs_mae import MAEModelOutput
from .patches_mae import at_least_float32, check_values, patch_grid


class MAEAttentivePooling(nn.Module):
    """Pools patch tokens by learned queries: each takes another weighted mean of the tokens, for its own channels.

    The weights of query q_j are `softmax(q_j x_n / sqrt(D))` over the patches n. The values are `W x_n`, cut into as
    many slices of channels as there are queries, and query j averages slice j; the slices are joined again. There is no
    projection of keys. Source: efficient probing (Psomas et al. 2025, arXiv 2506.10178) and its code
    (github.com/billpsomas/efficient-probing, `poolings/ep.py`).

    W is applied to the means of the tokens, not to the tokens: the result is the same and takes a fraction of the time.
    """

    def __init__(self, hidden_size: int, num_queries: int):
        """
        Args:
            hidden_size (`int`): D, the width of the tokens.
            num_queries (`int`): Number of queries.

        Raises:
            ValueError: If the number of queries does not divide the width.
        """
        super().__init__()
        check_pooling_queries(hidden_size, num_queries)
        self.queries = nn.Parameter(torch.empty(num_queries, hidden_size))
        self.value_weight = nn.Parameter(torch.empty(hidden_size, hidden_size))  # W
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02):
        """Makes fresh weights: queries from a normal distribution, values as all linear layers of these models.

        Args:
            std (`float`, *optional*, defaults to 0.02): Standard deviation of the queries. The default is the source's.
        """
        init.normal_(self.queries, std=std)
        init.xavier_uniform_(self.value_weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the pooled tokens (B, D) of patch tokens (B, N, D). Their order does not matter."""
        means = self.attention(tokens) @ tokens  # (B, queries, D)
        slices = self.value_weight.unflatten(0, (len(self.queries), -1))  # (queries, D / queries, D)
        return torch.einsum("bqd,qcd->bqc", means, slices).flatten(1)

    def attention(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the weights of patch tokens (B, N, D) for each query, (B, queries, N), which add up to 1."""
        scores = self.queries @ tokens.transpose(1, 2) * tokens.shape[-1] ** -0.5
        return scores.softmax(dim=-1, dtype=at_least_float32(scores).dtype).to(tokens.dtype)


class MAEForImageClassification(MAEPreTrainedModel):
    """The encoder with a linear classifier, as in the paper's end-to-end fine-tuning (He et al. 2021, appendix A.1).

    With `config.pooling="mean"` the patch tokens of the last block are averaged and then normalised by `fc_norm`; the
    encoder has no final norm. With `"class"` the classifier gets the class token after the final norm, the mean of them
    if there are several, with `"attentive"` the patch tokens after the final norm, pooled by [`MAEAttentivePooling`].
    """

    _is_fine_tuned = True

    def __init__(self, config: MAEConfig):
        """Makes a classifier with fresh weights.

        Args:
            config ([`MAEConfig`]): Sizes and options; `num_labels` or `id2label` gives the classes.

        Raises:
            ValueError: If `id2label` and `label2id` disagree.
        """
        super().__init__(config)
        config.check_labels()
        mean = config.pooling == "mean"
        self.mae = MAEModel(config, final_norm=not mean)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if mean else nn.Identity()
        attentive, sizes = config.pooling == "attentive", (config.hidden_size, config.num_pooling_queries)
        self.attentive_pooling = MAEAttentivePooling(*sizes) if attentive else None
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self.classifier:  # near zero, as in the official fine-tuning
            init.trunc_normal_(module.weight, std=2e-5)
        elif isinstance(module, MAEAttentivePooling):
            module.reset_parameters(self.config.initializer_range)

    def pool(self, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        """Returns the input of the classifier, `(batch, hidden_size)`. Arguments as in [`MAEModel.forward`]."""
        return self.pool_outputs(self.mae(pixel_values, return_dict=True, **kwargs))

    def pool_outputs(self, outputs: MAEModelOutput) -> torch.Tensor:
        """Returns the input of the classifier, `(batch, hidden_size)`, for outputs of its encoder `mae`."""
        if self.attentive_pooling is None:
            return self.fc_norm(outputs.pooler_output)
        start = self.config.num_class_tokens
        end = None if outputs.ids_keep is None else start + outputs.ids_keep.shape[1]  # mask tokens come last
        return self.attentive_pooling(outputs.last_hidden_state[:, start:end])

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images, see
                [`MAEModel.forward`].
            labels (*optional*): Without `config.problem_type`: class indices `(batch,)` in [0, num_labels), or class
                probabilities `(batch, num_labels)`, as mixup makes them. With `"multi_label_classification"`: 0 or 1
                `(batch, num_labels)`; with `"regression"` (the default for one label): values `(batch,)` or `(batch,
                num_labels)`.
            interpolate_pos_encoding (`bool`, *optional*, defaults to `True`): As in [`MAEModel.forward`].
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and arguments of the attention.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`]: `logits` `(batch, num_labels)`; `loss` in float32
            or better, smoothed by `config.label_smoothing` in training.

        Raises:
            ValueError: If the labels do not fit.
        """
        outputs = self.mae(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs)
        logits = self.classifier(self.pool_outputs(outputs))
        return ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # Not `self.loss_function`, which supports neither soft targets nor label smoothing.
        logits = at_least_float32(logits)
        num_labels = self.config.num_labels
        problem_type = self.config.problem_type or ("regression" if num_labels == 1 else "single_label_classification")
        if problem_type == "single_label_classification":
            if not labels.is_floating_point():
                labels = labels.reshape(-1)
            self._check_labels(labels, len(logits))  # before they are moved: errors name the values only on the CPU
            smoothing = self.config.label_smoothing if self.training else 0.0
            labels = labels.to(logits.device, logits.dtype if labels.is_floating_point() else torch.long)
            return nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        if labels.numel() != logits.numel():
            raise ValueError(
                f"`labels` of shape {tuple(labels.shape)} do not fit problem_type={problem_type!r} with {len(logits)} "
                f"images and {num_labels} labels: the shape {tuple(logits.shape)} is expected."
            )
        labels = labels.reshape(logits.shape).to(logits)
        if problem_type == "regression":
            return nn.functional.mse_loss(logits, labels)
        if not torch.compiler.is_compiling():  # compiled code can't look at the values
            check_values(
                ((labels - 0.5).abs() < 0.51).all(),  # a mixture of ones may be slightly more
                f"Labels must be in [0, 1] with problem_type={problem_type!r}: 1 for a class that the image has, else "
                "0. For numbers set problem_type='regression' in the configuration.",
            )
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)

    def _check_labels(self, labels: torch.Tensor, num_images: int):
        num_labels, soft = self.config.num_labels, labels.is_floating_point()
        if labels.shape != ((num_images, num_labels) if soft else (num_images,)):
            raise ValueError(
                f"`labels` must be {num_images} class indices or probabilities of shape ({num_images}, {num_labels}), "
                f"got {labels.dtype} of shape {tuple(labels.shape)}."
            )
        if torch.compiler.is_compiling():  # compiled code can't look at the values
            return
        if soft:
            fits = ((labels.sum(dim=1) - 1).abs() < 1e-2).all()
            message = (
                "Float labels are read as class probabilities, but those of at least one image do not add up to 1. For "
                "images with several classes set problem_type='multi_label_classification' in the configuration."
            )
        else:  # a GPU would abort without saying why
            fits = ((labels >= 0) & (labels < num_labels)).all()
            shown = labels.device.type == "cpu" and len(labels)
            got = f", got {labels.min().item()} to {labels.max().item()}" if shown else ""
            message = (
                f"Labels must be in [0, {num_labels}){got}. Leave out images without a label (-1); for more classes "
                "load the model with `num_labels`."
            )
        check_values(fits, message)


class MAELayerNorm2d(nn.LayerNorm):
    """Normalises the channels at each position of maps (B, C, rows, columns)."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


PROBE_BATCH_NORM_EPS = 1e-6  # of the batch norm in linear probes, as in the official code


def fold_batch_norm(
    weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns weight and bias of a linear classifier that includes the batch norm before it, as linear probes have it.

    Args:
        weight (`torch.Tensor` of shape `(num_labels, hidden_size)`): Weight of the classifier behind the norm.
        bias (`torch.Tensor` of shape `(num_labels,)`): Its bias.
        mean, variance (`torch.Tensor` of shape `(hidden_size,)`): Running statistics of the norm, which has no weights.
    """
    weight = weight / (variance + PROBE_BATCH_NORM_EPS).sqrt()
    return weight, bias - weight @ mean


class MAEFeaturePyramid(nn.Module):
    """Makes maps of up to four scales from one map: the simple feature pyramid.

    Source: Li et al. 2022 (arXiv 2203.16527), section 3.
    """

    def __init__(self, config: MAEConfig):
        """
        Args:
            config ([`MAEConfig`]): Sizes; only the levels in `out_indices` are built, since DistributedDataParallel
                would wait for gradients of the others.
        """
        super().__init__()
        width, size, eps = config.hidden_size, config.feature_pyramid_size, config.layer_norm_eps

        def level(channels: int, *scale: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                *scale,
                nn.Conv2d(channels, size, 1, bias=False),
                MAELayerNorm2d(size, eps=eps),
                nn.Conv2d(size, size, 3, padding=1, bias=False),
                MAELayerNorm2d(size, eps=eps),
            )

        def upsample(channels: int) -> nn.Module:
            return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)

        def quadruple() -> tuple[nn.Module, ...]:
            return upsample(width), MAELayerNorm2d(width // 2, eps=eps), ACT2FN["gelu"], upsample(width // 2)

        levels = (
            lambda: level(width // 4, *quadruple()),
            lambda: level(width // 2, upsample(width)),
            lambda: level(width),
            lambda: level(width, nn.MaxPool2d(2, ceil_mode=True)),
        )
        # By name, so that the names of weights do not depend on which levels there are.
        self.levels = nn.ModuleDict({str(i % len(levels)): levels[i]() for i in config.out_indices})

    def forward(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """Returns maps with 4, 2, 1 or 1/2 (index 0 to 3) times the rows and columns of `maps`, finest first."""
        return [level(maps) for level in self.levels.values()]


class MAEBackbone(BackboneMixin, MAEPreTrainedModel):
    """The encoder as a backbone: maps of chosen blocks, or a pyramid of four scales, for images of any size.

    Blocks after the last of the chosen ones are not run and not trained.

    Example:

    ```python
    >>> backbone = MAEBackbone.from_pretrained(folder, out_indices=[3, 6, 9, 12])
    >>> backbone(pixel_values).feature_maps  # four of (batch, hidden_size, height / patch, width / patch)
    >>> backbone = MAEBackbone.from_pretrained(folder, feature_pyramid_size=256)
    >>> backbone(pixel_values).feature_maps  # strides 4, 8, 16 and 32 for patches of 16
    ```
    """

    _is_fine_tuned = True

    def __init__(self, config: MAEConfig):
        """Makes a backbone with fresh weights.

        Args:
            config ([`MAEConfig`]): Sizes; `out_features` or `out_indices`, `apply_layernorm`, `reshape_hidden_states`,
                `feature_pyramid_size`.
        """
        config.update_default_stages()
        super().__init__(config)
        pyramid = config.feature_pyramid_size is not None
        self.mae = MAEModel(config, final_norm=config.apply_layernorm)
        self.feature_pyramid = MAEFeaturePyramid(config) if pyramid else None
        self.num_features = [config.feature_pyramid_size if pyramid else config.hidden_size] * len(self.stage_names)
        self.post_init()

    def _num_layers(self) -> int:
        """Returns how many blocks the chosen stages need."""
        return super()._num_layers() if self.feature_pyramid is not None else max(self.out_indices)

    def _set_trainable(self):
        super()._set_trainable()
        for layer in self.mae.layers[self._num_layers() :]:
            layer.requires_grad_(False)  # DistributedDataParallel would wait for their gradients

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BackboneOutput:
        """Returns feature maps.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images of any size
                that the patch divides.
            output_hidden_states (`bool`, *optional*): Whether to return the hidden states of all blocks. All blocks are
                run then.
            **kwargs: `output_attentions`, `return_dict`, and arguments of the attention.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`]: `feature_maps`, one for each of `out_features`, of shape
            `(batch, channels, height / patch_height, width / patch_width)`, or at the scales of the pyramid. With
            `reshape_hidden_states=False` tokens `(batch, num_class_tokens + patches, hidden_size)`.

        Raises:
            ValueError: If `pixel_values` are integers, the patch does not divide the images, or patches are to be
                hidden.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        num_layers = self._num_layers() if output_hidden_states is False else None
        outputs = self.mae(pixel_values, num_layers=num_layers, output_hidden_states=True, return_dict=True, **kwargs)
        if outputs.ids_keep is not None:
            raise ValueError("The maps of a backbone have all patches: give it neither a mask nor a `mask_ratio`.")
        if self.feature_pyramid is not None:
            maps = self._to_maps(outputs.last_hidden_state, pixel_values)
            feature_maps = self.feature_pyramid(maps)
        else:
            stages = [outputs.hidden_states[index] for index in self.out_indices]
            feature_maps = [self._to_maps(self.mae.layernorm(tokens), pixel_values) for tokens in stages]
        hidden_states = choose_states(outputs.hidden_states, output_hidden_states)
        return BackboneOutput(tuple(feature_maps), hidden_states, outputs.attentions)

    def _to_maps(self, tokens: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        if not self.config.reshape_hidden_states:
            return tokens
        grid_size = patch_grid(pixel_values, self.mae.embeddings.patch_size)
        return tokens[:, self.config.num_class_tokens :].transpose(1, 2).unflatten(2, grid_size).contiguous()


def find_backbone(head: nn.Module) -> MAEBackbone:
    """Returns our encoder in a head of another library, wherever it is kept there.

    Args:
        head (`nn.Module`): A model that was made with `backbone_config`.

    Raises:
        ValueError: If there is none.
    """
    for module in head.modules():
        if isinstance(module, MAEBackbone):
            return module
    raise ValueError(
        f"{type(head).__name__} has no MAEBackbone: it ignores `backbone_config`, or that is of another model. Take a "
        "head that takes one, such as UperNet, Mask2Former, D-FINE or DPTForDepthEstimation."
    )


def load_encoder(head: nn.Module, pretrained_model_name_or_path: str | os.PathLike) -> MAEBackbone:
    """Loads pre-trained weights into the encoder of a head, which transformers has made with random ones.

    Whatever a checkpoint has no weights for, such as a feature pyramid, is new; the log says so.

    Args:
        head (`nn.Module`): A model that was made with `backbone_config`, such as UperNet, D-FINE, Mask2Former or DPT.
        pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or name on the Hub of any model of hf_mae.

    Returns:
        [`MAEBackbone`]: The encoder, as a part of the head.

    Raises:
        OSError: If there is no such checkpoint.
        ValueError: If the head has no encoder of ours, or the checkpoint does not fit its configuration.
    """
    backbone = find_backbone(head)
    pretrained = MAEBackbone.from_pretrained(pretrained_model_name_or_path, config=backbone.config, dtype=torch.float32)
    backbone.load_state_dict(pretrained.state_dict())
    return backbone


__all__ = ["MAEAttentivePooling", "MAEBackbone", "MAEForImageClassification", "find_backbone", "load_encoder"]
