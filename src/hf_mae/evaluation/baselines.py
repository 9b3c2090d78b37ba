# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Losses of predictors that need no training: what a loss of pre-training has to be compared with."""

from typing import NamedTuple

import torch
from torch import nn

from ..modeling.masking_mae import choose_mask
from ..modeling.modeling_mae import MAEForPreTraining
from ..modeling.patches_mae import at_least_float32, patch_grid
from ..modeling.targets_mae import valid_patches

PREDICTORS = ("constant", "visible_mean", "interpolation")
# Lowers the error of the interpolation by a fifth on photographs and on Fashion-MNIST; twice as many by little more.
_SMOOTHINGS = 4


class _Targets(NamedTuple):
    """Holds the targets of a batch of B images, M hidden patches each, V values a patch.

    Attributes:
        target (`torch.Tensor` of shape `(B, M, V)`): Of the hidden patches.
        visible_mean (`torch.Tensor` of shape `(B, 1, V)`): The mean over the visible patches.
        interpolated (`torch.Tensor` of shape `(B, M, V)`): Of the hidden patches of the interpolated image.
        counts (`torch.BoolTensor` of shape `(B, M)` or `None`): Which hidden patches count; `None`: all.
    """

    target: torch.Tensor
    visible_mean: torch.Tensor
    interpolated: torch.Tensor
    counts: torch.Tensor | None


class TrivialPredictors:
    """Measures what three predictors that know nothing of the data but the visible patches reach on given images.

    They are measured with the masks, the target and the loss of a model, so that its `eval_loss` can be compared:

    * `constant`: the mean target of all hidden patches of all images, the same for every patch. With normalised pixels
      its loss is about 1, and lower by the share of patches without any contrast, whose target is 0.
    * `visible_mean`: the mean target of the image's own visible patches, the same for all its hidden patches.
    * `interpolation`: the target of the patch in the image whose hidden patches are filled by [`interpolate_hidden`],
      moved towards the constant by the one factor for all patches that is best in the sense of least squares. Without
      that factor it would claim a contrast that it cannot know, since normalised pixels give every filled patch the
      same contrast, however faint it is.

    Constant and factor are fitted on the images on which the losses are measured, so two passes over them are needed:

    ```py
    predictors = TrivialPredictors(model)
    for batch in batches:
        predictors.add(batch.pixel_values, batch.noise)
    # with several processes: dist.all_reduce(predictors.sums)
    losses = [predictors.losses(batch.pixel_values, batch.noise) for batch in batches]
    ```
    """

    def __init__(self, model: MAEForPreTraining):
        """
        Args:
            model ([`MAEForPreTraining`]): Gives masks, target and loss. Its weights do not matter. A target of a
                subclass is served if it is floating-point and has the shape of the predictions; the loss of others is
                NaN.
        """
        self.model = model
        width = model.num_target_values()
        # The sums of targets (width) and of interpolated targets (width), of their product and of the square of the
        # latter, each as a mean over the patches of an image; the number of images. They add up over processes.
        dtype = torch.float32 if model.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
        self.sums = torch.zeros(2 * width + 3, dtype=dtype, device=model.device)

    def add(self, pixel_values: torch.Tensor, noise: torch.Tensor, valid: torch.BoolTensor | None = None):
        """Takes images into account for the constant and the factor.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            noise (`torch.Tensor` of shape `(batch, num_patches)`): Decides which patches are hidden.
            valid (`torch.BoolTensor` of shape `(batch, height, width)`, *optional*): False where pixels are no-data.
        """
        found = self._targets(pixel_values, noise, valid)
        if found is None:
            self.sums.fill_(torch.nan)
            return
        counts = torch.ones_like(found.target[..., 0]) if found.counts is None else found.counts
        weights = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).to(self.sums.dtype)  # (B, M), of an image 1
        target, interpolated = found.target.to(weights.dtype), found.interpolated.to(weights.dtype)
        means = [torch.einsum("bm,bmv->v", weights, values) for values in (target, interpolated)]
        products = [torch.einsum("bm,bmv->", weights, interpolated * values) for values in (target, interpolated)]
        self.sums += torch.cat([*means, torch.stack([*products, weights.sum()])])

    def losses(
        self, pixel_values: torch.Tensor, noise: torch.Tensor, valid: torch.BoolTensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns the loss of each of `PREDICTORS` on images, a scalar in float32 or better, as the model's loss.

        Args:
            pixel_values, noise, valid: As in [`TrivialPredictors.add`], which must have seen all images before.
        """
        found = self._targets(pixel_values, noise, valid)
        if found is None:
            return {name: self.sums.new_full((), torch.nan) for name in PREDICTORS}
        constant, factor = (values.to(found.target.dtype) for values in self._fit())
        predictions = (constant, found.visible_mean, constant + factor * (found.interpolated - constant))
        return {
            name: self.model.target_loss(prediction.expand_as(found.target), found.target, found.counts)
            for name, prediction in zip(PREDICTORS, predictions, strict=True)
        }

    def _fit(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the constant (width,) and the factor of the interpolation, a scalar, from the sums."""
        width = (len(self.sums) - 3) // 2
        target, interpolated, (with_target, with_itself, num_images) = self.sums.split([width, width, 3])
        constant = target / num_images.clamp(min=1)
        # Of the differences to the constant, with sum((a - c) (b - c)) = sum(a b) - c sum(a) - c sum(b) + n c c.
        common = num_images * constant @ constant - constant @ interpolated
        covariance = with_target + common - constant @ target
        variance = with_itself + common - constant @ interpolated
        return constant, covariance / variance.clamp(min=1e-12)

    @torch.no_grad()
    def _targets(
        self, pixel_values: torch.Tensor, noise: torch.Tensor, valid: torch.BoolTensor | None
    ) -> "_Targets | None":
        """Returns the targets of images, or `None` if they can't be averaged."""
        model, config = self.model, self.model.config
        patch_size = model.mae.embeddings.patch_size
        grid_size = patch_grid(pixel_values, patch_size)
        rule = (config.mask_sampling, config.mask_block_size, config.mask_ratio)
        ids_keep, ids_hidden = choose_mask(pixel_values, grid_size, *rule, noise)
        hidden = torch.ones_like(noise, dtype=torch.bool).scatter(1, ids_keep, False)
        ids = ids_hidden if ids_hidden.shape[1] > 0 else ids_keep  # with nothing hidden all patches are predicted
        target = model.target_values(pixel_values, ids)
        if not target.is_floating_point() or target.shape != (*ids.shape, model.num_target_values()):
            return None
        filled = interpolate_hidden(pixel_values, hidden, patch_size, valid)
        interpolated = model.target_values(filled, ids)
        visible = model.target_values(pixel_values, ids_keep)
        if valid is None:
            return _Targets(target, visible.mean(dim=1, keepdim=True), interpolated, None)
        counts, seen = (valid_patches(valid, pixel_values, patch_size, each) for each in (ids, ids_keep))
        total = visible.where(seen[..., None], 0).sum(dim=1, keepdim=True)
        return _Targets(target, total / seen.sum(dim=1).clamp(min=1)[:, None, None], interpolated, counts)


def interpolate_hidden(
    pixel_values: torch.Tensor,
    hidden: torch.BoolTensor,
    patch_size: tuple[int, int],
    valid: torch.BoolTensor | None = None,
) -> torch.Tensor:
    """Fills the hidden patches of images from their visible pixels, smoothly.

    Averages of the visible pixels are taken at halved resolutions until there are some everywhere. On the way back the
    gaps of each resolution are filled from the coarser one, and smoothed. Source: the pull-push algorithm of Gortler et
    al. 1996 (The Lumigraph, SIGGRAPH), here with averages of 2 x 2 pixels, bilinear enlargement, and `_SMOOTHINGS`
    rounds of averages over 3 x 3 pixels in the gaps of each resolution, as in a multigrid solver.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Images of any size.
        hidden (`torch.BoolTensor` of shape `(batch, num_patches)`): True where a patch is hidden.
        patch_size (`(height, width)`): Pixels of a patch.
        valid (`torch.BoolTensor` of shape `(batch, height, width)`, *optional*): False where pixels are no-data; they
            are filled, too, and do not count as visible.

    Returns:
        `torch.Tensor` of the shape of `pixel_values`, in float32 or better: visible pixels are unchanged. An image
        without any visible pixel becomes 0, the mean of normalised pixel values.
    """
    seen = ~hidden.unflatten(1, patch_grid(pixel_values, patch_size))[:, None]  # (B, 1, rows, columns)
    seen = seen.repeat_interleave(patch_size[0], dim=2).repeat_interleave(patch_size[1], dim=3)
    if valid is not None:
        seen = seen & valid[:, None]
    pixel_values = at_least_float32(pixel_values)
    return _pull_push(pixel_values.where(seen, 0), seen.to(pixel_values.dtype))


def _pull_push(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Fills values (B, C, H, W) where weights (B, 1, H, W) are below 1 from a coarser level, which is filled first."""
    height, width = values.shape[-2:]
    if max(height, width) == 1:
        return values
    odd = (0, width % 2, 0, height % 2)  # a row or column without weight
    total = 4 * nn.functional.avg_pool2d(nn.functional.pad(weights, odd), 2)
    coarse = 4 * nn.functional.avg_pool2d(nn.functional.pad(values * weights, odd), 2)
    coarse = _pull_push(coarse / total.clamp(min=1e-6), total.clamp(max=1))
    finer = nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    filled = torch.lerp(finer[..., :height, :width], values, weights)
    for _ in range(_SMOOTHINGS):
        around = nn.functional.pad(filled, (1, 1, 1, 1), mode="replicate")
        around = around[..., :-2, :] + around[..., 1:-1, :] + around[..., 2:, :]
        around = around[..., :-2] + around[..., 1:-1] + around[..., 2:]  # by sums: avg_pool2d is slower on a CPU
        filled = torch.lerp(around / 9, values, weights)
    return filled


__all__ = ["PREDICTORS", "TrivialPredictors", "interpolate_hidden"]
