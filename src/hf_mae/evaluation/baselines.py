# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Losses of predictors that need no training: what a loss of pre-training has to be compared with."""

import torch
from torch import nn

from ..modeling.masking_mae import choose_mask
from ..modeling.modeling_mae import MAEForPreTraining
from ..modeling.patches_mae import at_least_float32, patch_grid
from ..modeling.targets_mae import valid_patches

PREDICTORS = ("constant", "visible_mean", "interpolation")


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
        self.sums = torch.zeros(2 * width + 3, dtype=torch.float64, device=model.device)

    def add(self, pixel_values: torch.Tensor, noise: torch.Tensor, valid: torch.BoolTensor | None = None):
        """Takes images into account for the constant and the factor.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            noise (`torch.Tensor` of shape `(batch, num_patches)`): Decides which patches are hidden.
            valid (`torch.BoolTensor` of shape `(batch, height, width)`, *optional*): False where pixels are no-data.
        """
        raise NotImplementedError

    def losses(
        self, pixel_values: torch.Tensor, noise: torch.Tensor, valid: torch.BoolTensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns the loss of each of `PREDICTORS` on images, a scalar in float32 or better, as the model's loss.

        Args:
            pixel_values, noise, valid: As in [`TrivialPredictors.add`], which must have seen all images before.
        """
        raise NotImplementedError


def interpolate_hidden(
    pixel_values: torch.Tensor,
    hidden: torch.BoolTensor,
    patch_size: tuple[int, int],
    valid: torch.BoolTensor | None = None,
) -> torch.Tensor:
    """Fills the hidden patches of images from their visible pixels, by pull-push.

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
    raise NotImplementedError


__all__ = ["PREDICTORS", "TrivialPredictors", "interpolate_hidden"]
