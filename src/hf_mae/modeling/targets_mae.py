# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What pre-training predicts for a hidden patch, its loss, and the way back from predictions to pixels.

For another target, make a subclass of [`MAEForPreTraining`] and override `num_target_values` and `target_values`, and
where they differ `target_loss` and `predictions_to_pixels`. examples/custom_target.py is such a class.
"""

from collections.abc import Callable

import torch
from torch import nn

from .configuration_mae import height_width
from .patches_mae import at_least_float32, patch_grid, patchify


class PixelTarget:
    """Predicts the pixels of a patch, with `config.norm_pix_loss` normalised by the patch's own mean and variance.

    [`MAEForPreTraining`] inherits from this class. Shapes: M is the number of patches that are predicted of an image.
    """

    def num_target_values(self) -> int:
        """Returns how many values are predicted for a patch: the width of the decoder's head."""
        height, width = height_width(self.config.patch_size)
        return height * width * self.config.num_channels

    def target_values(self, pixel_values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Returns what should be predicted, in float32 or better.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            ids (`torch.LongTensor` of shape `(batch, M)`): Patch indices of the patches to predict.

        Returns:
            `torch.Tensor` of shape `(batch, M, num_target_values)`.
        """
        patch_size = height_width(self.config.patch_size)
        target = at_least_float32(patchify(pixel_values, patch_size, ids))
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(pixel_values, patch_size, ids)
            target = (target - mean).div_(std)  # in place, because memory use is at its peak here
        return target

    def target_loss(
        self, predictions: torch.Tensor, target: torch.Tensor, valid: torch.BoolTensor | None = None
    ) -> torch.Tensor:
        """Returns the loss, a scalar: the mean squared error.

        Args:
            predictions (`torch.Tensor` of shape `(batch, M, num_target_values)`): Predictions in any float dtype.
            target (`torch.Tensor` of shape `(batch, M, num_target_values)`): As [`PixelTarget.target_values`] gives it.
            valid (`torch.BoolTensor` of shape `(batch, M)`, *optional*): Patches that count; the others have no-data.
                An image's loss is then the mean over its own valid patches, 0 if there are none, and images weigh
                alike. Default: all patches.
        """
        if valid is None:
            return nn.functional.mse_loss(at_least_float32(predictions), target)
        losses = nn.functional.mse_loss(at_least_float32(predictions), target, reduction="none").mean(dim=-1)  # (B, M)
        return (losses.where(valid, 0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()

    def predictions_to_pixels(
        self, predictions: torch.Tensor, pixel_values: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Returns predictions as pixels in the scale of `pixel_values`.

        Args:
            predictions (`torch.Tensor` of shape `(batch, M, num_target_values)`): Predictions.
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The images. With
                `config.norm_pix_loss` the mean and variance of each patch are taken from them.
            ids (`torch.LongTensor` of shape `(batch, M)`): Patch indices of the predictions.

        Returns:
            `torch.Tensor` of shape `(batch, M, patch_height * patch_width * channels)`.

        Raises:
            NotImplementedError: If a subclass has another target and does not override this method.
        """
        if not self.predicts_pixels:
            raise NotImplementedError(
                f"{type(self).__name__} does not predict pixels, so there is no picture of its predictions. Override "
                "`predictions_to_pixels` if there is a way back from its target to pixels."
            )
        if not self.config.norm_pix_loss:
            return predictions
        mean, std = patch_statistics(pixel_values, height_width(self.config.patch_size), ids)
        return predictions * std + mean

    @property
    def predicts_pixels(self) -> bool:
        """Whether the target is the pixels of a patch. Not where a subclass overrides `target_values`."""
        return type(self).target_values is PixelTarget.target_values

    def resize_head(self, head: nn.Linear, resize: Callable[[torch.Tensor], torch.Tensor]):
        """Fits the decoder's head to another patch size or number of channels, in place.

        A head that predicts pixels is resized. Another head is kept if its width does not depend on the sizes, and
        else has to be learnt anew.

        Args:
            head (`nn.Linear`): The head.
            resize (`Callable`): Takes tensors of shape `(..., old values of a patch)` to `(..., new values)`.
        """
        weight, bias = head.weight, head.bias
        if self.predicts_pixels:
            new_weight, new_bias = resize(weight.T).T.contiguous(), resize(bias)
        elif self.num_target_values() != head.out_features:
            new_bias = bias.new_zeros(self.num_target_values())
            new_weight = nn.init.xavier_uniform_(weight.new_empty(len(new_bias), weight.shape[1]))
        else:
            return
        head.weight = nn.Parameter(new_weight, weight.requires_grad)
        head.bias = nn.Parameter(new_bias, bias.requires_grad)
        head.out_features = len(new_bias)


def patch_statistics(
    pixel_values: torch.Tensor, patch_size: tuple[int, int], ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean and the standard deviation of patches, each of shape `(batch, M, 1)`, for `norm_pix_loss`.

    The deviation is the root of the unbiased variance plus 1e-6, as in the official code. Both are computed on the
    image as it lies in memory: on patches that were cut out of it, compiled code would cut three times.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Images.
        patch_size (`(height, width)`): Pixels of a patch.
        ids (`torch.LongTensor` of shape `(batch, M)`): Patch indices.
    """
    (rows, columns), (height, width) = patch_grid(pixel_values, patch_size), patch_size
    patches = at_least_float32(pixel_values).unflatten(3, (columns, width)).unflatten(2, (rows, height))
    mean = patches.mean(dim=(1, 3, 5), keepdim=True)  # (B, 1, rows, 1, columns, 1)
    # Takes a third of the time of torch.var_mean, which reads the elements one by one on a CPU.
    squares = torch.linalg.vector_norm(patches - mean, dim=(1, 3, 5)).square()  # (B, rows, columns)
    std = (squares / (pixel_values.shape[1] * height * width - 1) + 1e-6).sqrt()
    return tuple(each.flatten(1).gather(1, ids)[..., None] for each in (mean, std))


def valid_patches(
    valid: torch.BoolTensor, pixel_values: torch.Tensor, patch_size: tuple[int, int], ids: torch.Tensor
) -> torch.BoolTensor:
    """Returns which patches have no pixel without data, bool of shape `(batch, M)`.

    Args:
        valid (`torch.BoolTensor` of shape `(batch, height, width)`): False where pixels are no-data.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The images.
        patch_size (`(height, width)`): Pixels of a patch.
        ids (`torch.LongTensor` of shape `(batch, M)`): Patch indices.

    Raises:
        ValueError: If `valid` has another shape: the indices would be those of other patches.
    """
    if valid.shape != (expected := (len(pixel_values), *pixel_values.shape[2:])):
        raise ValueError(f"`valid` must have the shape (batch, height, width) = {expected}, got {tuple(valid.shape)}.")
    return patchify(valid[:, None].float(), patch_size, ids).amin(dim=-1) > 0


__all__ = ["PixelTarget", "patch_statistics", "valid_patches"]
