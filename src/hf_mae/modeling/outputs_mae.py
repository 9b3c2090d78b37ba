# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What the encoder, pre-training and reconstruction return."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput


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
    """Holds the output of the encoder. The property `mask` is the bool mask, True = hidden, that belongs to the ids.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, num_class_tokens + tokens, hidden_size)`): The tokens
            after the final norm: class tokens, then all patches in raster order. With a mask only visible patches, in
            the order of `ids_keep` (and after them those of the hidden patches with `mask_tokens_in_encoder`).
        pooler_output (`torch.FloatTensor` of shape `(batch, hidden_size)`): The mean of the visible patch
            tokens or of the class tokens, see `config.pooling`.
        ids_keep (`torch.LongTensor` of shape `(batch, num_kept)`): Patch indices of the visible patches in the order
            of their tokens. Only with a mask.
        ids_hidden (`torch.LongTensor` of shape `(batch, num_patches - num_kept)`): Patch indices of the hidden
            patches. Only with a mask.
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
    """Holds the output of pre-training. The property `mask` is the bool mask, True = hidden, that belongs to the ids.

    Args:
        loss (`torch.FloatTensor` of shape `()`): Mean squared error of the predicted patches, in float32 or better.
        logits (`torch.FloatTensor` of shape `(batch, num_predicted, patch_height * patch_width * channels)`):
            Predictions for the patches `ids_predicted`. The elements of a patch are in the order row, column, channel.
            They are pixels in the scale of `pixel_values`, or, with `norm_pix_loss`, pixels normalised by patch.
            [`MAEForPreTraining.reconstruct`] returns images. A subclass with another target has other predictions.
        ids_keep (`torch.LongTensor` of shape `(batch, num_kept)`): Patch indices of the visible patches.
        ids_hidden (`torch.LongTensor` of shape `(batch, num_patches - num_kept)`): Patch indices of the hidden ones.
        hidden_states, attentions (`tuple` of `torch.FloatTensor`): Those of the encoder, if requested.
        decoder_output ([`~transformers.modeling_outputs.BaseModelOutput`]): `hidden_states` and `attentions` of the
            decoder, if requested. Its tokens are in the order class, visible, hidden; the last block has queries and
            outputs only for the predicted patches.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    ids_keep: torch.LongTensor | None = None
    ids_hidden: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    decoder_output: BaseModelOutput | None = None

    @property
    def ids_predicted(self) -> torch.LongTensor:
        """`torch.LongTensor` of shape `(batch, num_predicted)`: Patch indices of `logits`.

        Those of the hidden patches, with a `prediction_ratio` below 1 of the first of them; if none is hidden, those of
        the visible patches.
        """
        ids = self.ids_hidden if self.ids_hidden.shape[1] > 0 else self.ids_keep
        return ids[:, : self.logits.shape[1]]


@dataclass
class MAEReconstructionOutput(ModelOutput):
    """Holds images in the scale of `pixel_values`, each of shape `(batch, channels, height, width)`.

    Args:
        reconstruction (`torch.FloatTensor`): The visible patches unchanged, the hidden ones as predicted.
        masked (`torch.FloatTensor`): The images with hidden patches set to 0, which is the mean colour of normalised
            pixels.
        mask (`torch.BoolTensor` of shape `(batch, num_patches)`): True = hidden.
    """

    reconstruction: torch.FloatTensor | None = None
    masked: torch.FloatTensor | None = None
    mask: torch.BoolTensor | None = None


@dataclass
class MAEWholeReconstructionOutput(ModelOutput):
    """Holds images in which every patch is predicted from others, and the losses of the patches.

    Args:
        reconstruction (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Every patch as the mean of its
            predictions with the masks that hide it, in the scale of `pixel_values`.
        patch_losses (`torch.FloatTensor` of shape `(batch, rows, columns)`): The mean loss of each patch with the
            masks that hide it: a map of anomalies. NaN where a patch has no-data.
    """

    reconstruction: torch.FloatTensor | None = None
    patch_losses: torch.FloatTensor | None = None


__all__ = [
    "MAEForPreTrainingOutput",
    "MAEModelOutput",
    "MAEReconstructionOutput",
    "MAEWholeReconstructionOutput",
]
