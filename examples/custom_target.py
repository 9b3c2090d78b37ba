# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pre-trains with another target than pixels: for each hidden patch a histogram of the directions of its gradients.

    python examples/custom_target.py [folder of images]

Such targets were studied by Wei et al. 2021 (arXiv 2112.09133). A target is a subclass of `MAEForPreTraining` that says
how many values it has for a patch and computes them; the width of the decoder's head follows. There is no way back from
a histogram to pixels, so the run draws no reconstructions. The encoder loads as any other: `AutoModel.from_pretrained`.
"""

import sys

import torch
from torch.nn.functional import normalize, one_hot, pad

import hf_mae
from hf_mae import MAEConfig, MAEForPreTraining
from hf_mae.modeling.patches_mae import patchify


class HistogramMAE(MAEForPreTraining):
    """Predicts a histogram of 9 directions for each patch, weighted by the strength of the gradients, of length 1."""

    num_directions = 9

    def num_target_values(self) -> int:
        return self.num_directions

    def target_values(self, pixel_values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        grey = pad(pixel_values.float().mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        across = grey[:, 0, 1:-1, 2:] - grey[:, 0, 1:-1, :-2]  # (batch, height, width)
        down = grey[:, 0, 2:, 1:-1] - grey[:, 0, :-2, 1:-1]
        direction = torch.atan2(down, across) / torch.pi % 1 * self.num_directions  # opposite directions are the same
        votes = one_hot(direction.long() % self.num_directions, self.num_directions) * across.hypot(down)[..., None]
        patches = patchify(votes.permute(0, 3, 1, 2), self.mae.embeddings.patch_size, ids)
        return normalize(patches.unflatten(-1, (-1, self.num_directions)).sum(dim=-2), dim=-1)


if __name__ == "__main__":
    data = sys.argv[1] if len(sys.argv) > 1 else None
    channels = 1 if data is None else 3  # the embedded sample is grey
    torch.manual_seed(0)  # the same initial weights if the run is interrupted and started again
    model = HistogramMAE(MAEConfig.from_preset("tiny", image_size=32, patch_size=4, num_channels=channels))
    hf_mae.pretrain(data, "histogram-pretrained", model=model, max_steps=500)
