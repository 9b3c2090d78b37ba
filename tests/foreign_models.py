# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Models of transformers, and what tests of conversion compute with them and with ours."""

import torch
from conftest import TINY
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from hf_mae import MAEForImageClassification, MAEForPreTraining, MAEModel

PIXELS, NOISE = torch.linspace(-2, 2, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32), torch.rand(2, 16)
EXACT = {"rtol": 0, "atol": 1e-5}
VIT = {name: value for name, value in TINY.items() if not name.startswith("decoder_")}
STOCK = {
    "ViTModel": lambda: ViTModel(ViTConfig(**VIT)),
    "ViTForImageClassification": lambda: ViTForImageClassification(ViTConfig(**VIT, id2label={0: "cat", 1: "dog"})),
    "ViTMAEModel": lambda: ViTMAEModel(ViTMAEConfig(**VIT, mask_ratio=0.0)),
    "ViTMAEForPreTraining": lambda: ViTMAEForPreTraining(ViTMAEConfig(**TINY, norm_pix_loss=True, mask_ratio=0.5)),
}
OUR_CLASS = dict(zip(STOCK, (MAEModel, MAEForImageClassification, MAEModel, MAEForPreTraining), strict=True))


def perturbed(model):
    """With every parameter at random, so that a wrong name shows; in evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def stock_folder(name, path):
    model = perturbed(STOCK[name]())
    model.save_pretrained(path)
    return model


@torch.no_grad()
def computed(model):
    """What a model, ours or another, makes of PIXELS: of all patches, or with NOISE what it predicts of them."""
    if isinstance(model, ViTMAEForPreTraining | MAEForPreTraining):
        return model(pixel_values=PIXELS, noise=NOISE).loss
    if isinstance(model, ViTMAEModel):  # mask_ratio 0, and a noise that does not shuffle
        return model(PIXELS, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    outputs = model(PIXELS)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def encoder_only(weights):
    return {name: tensor for name, tensor in weights.items() if "decoder" not in name and name != "mask_token"}
