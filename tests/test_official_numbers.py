# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The model computes what the official implementation computes; float64 throughout."""

import pytest
import torch
from conftest import OFFICIAL_HEADS

import hf_mae
from hf_mae.conversion import names_in
from hf_mae.modeling.patches_mae import resample_position_table, sincos_position_table
from hf_mae.training.optimization import learning_rate_at, parameter_groups

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def load(weights, **config):
    return hf_mae.import_checkpoint(weights, **OFFICIAL_HEADS, **config).double()


def products(tensor):
    """What the fixtures keep of a matrix: its products with two fixed vectors, in which every element shows."""
    matrix = tensor.flatten(1) if tensor.ndim in (2, 4) else tensor.reshape(-1, 1)
    rows, columns = (torch.arange(1, size + 1).double().sin() for size in matrix.shape)
    return {"rows": matrix @ columns, "columns": rows @ matrix}


def assert_official(tensors, official, prefix):
    """Compares gradients or weights of all parameters, by our names, with those of the fixtures."""
    theirs = names_in("official", tensors)
    stored = {name for name in official if name.startswith(prefix) and name.endswith(".rows")}
    assert {f"{prefix}.{name}.rows" for names in theirs.values() for name in names} == stored
    for name, tensor in tensors.items():
        if name == "mae.embeddings.patch_embeddings.weight":  # theirs is a convolution's
            tensor = tensor.unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2)
        for kind, product in products(tensor).items():
            torch.testing.assert_close(product, official[f"{prefix}.{theirs[name][0]}.{kind}"], **EXACT)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("ratio", [0.75, 0.5])
def test_forward__loss_prediction_mask_and_latent(official, official_weights, norm_pix_loss, ratio):
    model = load(official_weights, norm_pix_loss=norm_pix_loss)
    images, noise = official["images"].double(), official["noise"]
    output = model(pixel_values=images, noise=noise, mask_ratio=ratio)
    latent = model.mae(images, noise=noise, mask_ratio=ratio).last_hidden_state

    loss = official[f"norm_pix_{int(norm_pix_loss)}.ratio_{ratio}.loss"]
    expected = {name: official[f"norm_pix_0.ratio_{ratio}.{name}"] for name in ("latent", "mask", "pred")}
    index = output.ids_hidden[:2, :, None].expand(-1, -1, 48)  # of two images
    predicted = expected["pred"].gather(1, index)
    torch.testing.assert_close(output.loss, loss.squeeze(), **EXACT)
    torch.testing.assert_close(output.logits[:2], predicted, **EXACT)
    torch.testing.assert_close(latent[:2], expected["latent"], **EXACT)
    assert torch.equal(output.mask, expected["mask"].bool())


def test_backward__every_gradient(official, official_weights):
    model = load(official_weights, norm_pix_loss=True)
    model(official["images"].double(), noise=official["noise"]).loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert_official(ours, official, "grads")


def test_training__ten_steps(official, official_weights):
    """Settings of the reference: 5 epochs of 2 steps, 2 of them warm-up, rate 1e-3 to 1e-5, betas 0.9 and 0.95."""
    model = load(official_weights, norm_pix_loss=True).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05), betas=(0.9, 0.95))
    for step in range(10):
        rate = learning_rate_at(step, max_steps=10, warmup_steps=4, learning_rate=1e-3, min_learning_rate=1e-5)
        assert rate == pytest.approx(official["train.lrs"][step].item(), rel=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(official["images"].double(), noise=official["train.noise"][step]).loss
        torch.testing.assert_close(loss.detach(), official["train.losses"][step], **EXACT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert_official(trained, official, "train.final")


def test_position_table__is_the_official_one(official, official_weights, tiny_config):
    table = sincos_position_table(64, (14, 14))
    torch.testing.assert_close(table[0], official["pos_embed.table_14x14_dim_64"], **EXACT)


def test_position_table__resampled(official, official_weights):
    resampled = resample_position_table(official_weights["pos_embed"], (8, 8), (16, 16))
    torch.testing.assert_close(resampled, official["pos_embed.resampled_2x_bicubic"], rtol=1e-5, atol=1e-6)


def test_float32__agrees_to_1e_5(official, official_weights):
    model = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS, norm_pix_loss=True)
    loss = model(official["images"], noise=official["noise"]).loss
    torch.testing.assert_close(loss.double(), official["norm_pix_1.ratio_0.75.loss"].squeeze(), rtol=1e-5, atol=0)
