# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Makes images of predictions: with one mask, or whole, with masks that complement each other."""

from collections.abc import Iterator

import torch

from .configuration_mae import height_width
from .masking_mae import check_mask_cells, complementary_masks, number_of_masks
from .outputs_mae import MAEReconstructionOutput, MAEWholeReconstructionOutput
from .patches_mae import at_least_float32, patch_grid, patchify, unpatchify
from .targets_mae import valid_patches


class ReconstructionMixin:
    """Turns predictions of hidden patches into images. [`MAEForPreTraining`] inherits from this class."""

    @torch.no_grad()
    def reconstruct(self, pixel_values: torch.Tensor, **kwargs) -> MAEReconstructionOutput:
        """Returns images in which the visible patches are unchanged and the hidden ones are as predicted.

        With `norm_pix_loss` the predictions are brought back to pixels with the mean and variance of the hidden patches
        themselves. Such an image thus shows more than the model knows: brightness and contrast of each patch are given.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            **kwargs: The mask and other arguments of [`MAEForPreTraining.forward`].

        Returns:
            [`MAEReconstructionOutput`]: `MAEImageProcessor.post_process_reconstruction` turns it into PIL images.

        Raises:
            NotImplementedError: If the class has another target and no way back to pixels.
        """
        output = self(pixel_values, **{"prediction_ratio": 1.0, **kwargs, "return_loss": False, "return_dict": True})
        patch_size = self.mae.embeddings.patch_size
        grid_size = patch_grid(pixel_values, patch_size)
        patches = at_least_float32(patchify(pixel_values, patch_size))  # (B, N, P * C)
        predicted = self.predictions_to_pixels(output.logits.to(patches.dtype), pixel_values, output.ids_predicted)
        index = output.ids_predicted[..., None].expand_as(predicted)
        reconstruction = unpatchify(patches.scatter(1, index, predicted), patch_size, grid_size)
        masked = unpatchify(patches.masked_fill(output.mask[..., None], 0), patch_size, grid_size)
        return MAEReconstructionOutput(reconstruction, masked, output.mask)

    @torch.no_grad()
    def reconstruct_all(
        self,
        pixel_values: torch.Tensor,
        num_masks: int | None = None,
        mask_ratio: float | None = None,
        seed: int = 0,
        valid: torch.BoolTensor | None = None,
    ) -> MAEWholeReconstructionOutput:
        """Returns images of which every patch is predicted from others, and how badly each patch is predicted.

        The images are predicted with several masks that complement each other, see [`complementary_masks`]: with three
        quarters hidden, each patch is visible with one of four masks, and the mean of its three other predictions is
        shown. With `norm_pix_loss` brightness and contrast of each patch are given, as in `reconstruct`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Normalised images.
            num_masks (`int`, *optional*): Number of masks, each a forward pass. Defaults to one over the share of
                visible patches, where that is a whole number: 4 with a ratio of 0.75. Every patch is visible with as
                many of the masks as every other one, or with one more.
            mask_ratio (`float`, *optional*): Fraction of patches to hide, in (0, 1), defaults to `config.mask_ratio`.
            seed (`int`, *optional*, defaults to 0): Seed of the masks, which are the same for all images.
            valid (`torch.BoolTensor` of shape `(batch, height, width)`, *optional*): False where pixels are no-data.

        Returns:
            [`MAEWholeReconstructionOutput`]: `MAEImageProcessor.post_process_reconstruction` turns its
            `reconstruction` into PIL images.

        Raises:
            ValueError: If the masks are too few to hide every patch once, or the ratio does not say how many are
                needed; or as [`MAEForPreTraining.forward`].
            NotImplementedError: If the class has another target and no way back to pixels.
        """
        mask_ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        num_masks = number_of_masks(mask_ratio, num_masks)
        patch_size = height_width(self.config.patch_size)
        pixels = torch.zeros_like(at_least_float32(patchify(pixel_values, patch_size)))  # (B, N, P * C)
        losses = pixels.new_zeros(pixels.shape[:2])
        counts = torch.zeros_like(losses)
        for ids, predictions, found in self.predictions_by_mask(pixel_values, num_masks, mask_ratio, seed, valid):
            predicted = self.predictions_to_pixels(predictions.to(pixels.dtype), pixel_values, ids)
            pixels.scatter_add_(1, ids[..., None].expand_as(predicted), predicted)
            losses.scatter_add_(1, ids, found.to(losses.dtype))
            counts.scatter_add_(1, ids, torch.ones_like(found, dtype=counts.dtype))
        grid_size = patch_grid(pixel_values, patch_size)
        whole = unpatchify(pixels / counts[..., None], patch_size, grid_size)
        return MAEWholeReconstructionOutput(whole, (losses / counts).unflatten(1, grid_size))

    def predictions_by_mask(
        self,
        pixel_values: torch.Tensor,
        num_masks: int,
        mask_ratio: float,
        seed: int = 0,
        valid: torch.BoolTensor | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Predicts images with each of some masks that complement each other, see [`complementary_masks`].

        Args:
            pixel_values, mask_ratio, seed, valid: As in [`ReconstructionMixin.reconstruct_all`]. With a `mask_ratio` of
                0 nothing is hidden and all patches are predicted.
            num_masks (`int`): Number of masks, at least 1.

        Yields:
            For each mask the patch indices of what it hides `(batch, M)`, the predictions `(batch, M,
            num_target_values)`, and the loss of each of these patches `(batch, M)`, in float32 or better and NaN where
            it has no-data.
        """
        patch_size = height_width(self.config.patch_size)
        rule = self.config.mask_sampling, self.config.mask_block_size
        grid_size = patch_grid(pixel_values, patch_size)
        check_mask_cells(*rule, grid_size, patch_size)
        for ids_keep in complementary_masks(grid_size, mask_ratio, num_masks, seed, *rule):
            ids_keep = ids_keep.to(pixel_values.device, non_blocking=True).expand(len(pixel_values), -1)
            output = self(pixel_values, ids_keep=ids_keep, prediction_ratio=1.0, return_loss=False, return_dict=True)
            ids = output.ids_predicted
            # Each patch is a batch of its own, so that any target's loss, which is a scalar, becomes one of the patch.
            predictions, target = (
                each.flatten(0, 1)[:, None, None] for each in (output.logits, self.target_values(pixel_values, ids))
            )
            losses = torch.vmap(self.target_loss)(predictions, target).unflatten(0, ids.shape)
            if valid is not None:
                losses = losses.where(valid_patches(valid, pixel_values, patch_size, ids), torch.nan)
            yield ids, output.logits, losses


__all__ = ["ReconstructionMixin"]
