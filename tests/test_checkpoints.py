# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import argparse
import re

import pytest
import torch
from conftest import OFFICIAL_HEADS
from safetensors.torch import save_file

import hf_mae
from hf_mae import MAEForPreTraining, MAEModel
from hf_mae.checkpoints import _OFFICIAL


def encoder_only(weights):
    return {name: tensor for name, tensor in weights.items() if "decoder" not in name and name != "mask_token"}


def test_class_and_sizes__follow_from_the_content(official_weights):
    model = hf_mae.load_checkpoint(official_weights, **OFFICIAL_HEADS)
    assert type(model) is MAEForPreTraining
    assert not model.training
    config = model.config
    assert (config.image_size, config.patch_size, config.num_channels) == (32, 4, 3)
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (64, 3, 256)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (32, 2)
    encoder = hf_mae.load_checkpoint(encoder_only(official_weights), num_attention_heads=4)
    assert type(encoder) is MAEModel
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder(pixels).last_hidden_state, model.mae(pixels).last_hidden_state)


@pytest.mark.parametrize("layout", ["bare.pth", "with arguments.pth", "weights.safetensors"])
def test_files__of_every_layout(official, official_weights, tmp_path, layout):
    path, config = tmp_path / layout, {"norm_pix_loss": True, **OFFICIAL_HEADS}
    if layout == "bare.pth":
        torch.save(official_weights, path)
    elif layout == "weights.safetensors":
        save_file(official_weights, path)
    else:  # as the official training script saves; the target is told by its arguments
        del config["norm_pix_loss"]
        arguments = argparse.Namespace(norm_pix_loss=True, mask_ratio=0.75, batch_size=64)
        torch.save({"model": official_weights, "optimizer": {"state": {}}, "epoch": 3, "args": arguments}, path)
    model = hf_mae.load_checkpoint(path, **config).double()
    loss = model(official["images"].double(), noise=official["noise"]).loss
    torch.testing.assert_close(loss, official["norm_pix_1.ratio_0.75.loss"].squeeze())


def test_heads__of_published_sizes_are_known():
    """A state dict with the widths of ViT-Tiny (and of the small decoder) needs no keyword."""
    with torch.device("meta"):
        model = MAEForPreTraining(hf_mae.MAEConfig.from_preset("tiny", decoder_hidden_size=256))
    ours = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    official = {}
    for theirs, name in _OFFICIAL.items():
        pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d+)") + r"(\.weight|\.bias)?")
        for match in filter(None, map(pattern.fullmatch, ours)):
            *number, suffix = match.groups()
            official[theirs.format(*number) + (suffix or "")] = ours[match[0]]
    official["patch_embed.proj.weight"] = official["patch_embed.proj.weight"].view(192, 3, 16, 16)
    assert len(official) == len(ours)
    config = hf_mae.load_checkpoint(official).config
    assert (config.num_attention_heads, config.decoder_num_attention_heads) == (3, 8)
    assert config.image_size == 224


def test_heads__that_cannot_be_told_are_asked_for(official_weights):
    with pytest.raises(ValueError, match="do not tell num_attention_heads.*pass num_attention_heads="):
        hf_mae.load_checkpoint(official_weights)
    with pytest.raises(ValueError, match="pass decoder_num_attention_heads="):
        hf_mae.load_checkpoint(official_weights, num_attention_heads=4)


def test_rectangles__take_the_grid_from_the_keyword(official_weights):
    model = hf_mae.load_checkpoint(official_weights, **OFFICIAL_HEADS, image_size=(16, 64))
    assert model.config.grid_size == (4, 16)
    assert model(torch.randn(1, 3, 16, 64)).loss.isfinite()


def test_missing_tensors__are_named(official_weights):
    for name in ("blocks.1.attn.proj.bias", "decoder_pos_embed"):
        weights = {other: tensor for other, tensor in official_weights.items() if other != name}
        ours = {"blocks.1.attn.proj.bias": "mae.layers.1.attention.proj.bias"}.get(name, "decoder.position_embeddings")
        with pytest.raises(ValueError, match=f"missing: {ours}"):
            hf_mae.load_checkpoint(weights, **OFFICIAL_HEADS)


def test_tensors_of_another_shape__are_named(official_weights):
    weights = {**official_weights, "norm.weight": torch.ones(7)}
    with pytest.raises(ValueError, match=r"mae.layernorm.weight: expected \(64,\), got \(7,\)"):
        hf_mae.load_checkpoint(weights, **OFFICIAL_HEADS)


def test_left_over_tensors__are_named(official_weights, caplog, monkeypatch):
    from transformers.utils import logging

    monkeypatch.setattr(logging.get_logger("hf_mae.checkpoints"), "propagate", True)
    logging.enable_propagation()
    weights = {
        **encoder_only(official_weights),
        "dist_head.weight": torch.zeros(10, 64),
        "dist_head.bias": torch.zeros(10),
    }
    model = hf_mae.load_checkpoint(weights, num_attention_heads=4)
    logging.disable_propagation()
    assert type(model) is MAEModel
    assert "no place for these tensors and left them out: dist_head.weight, dist_head.bias" in caplog.text


@pytest.mark.parametrize(
    "content", [{"conv1.weight": torch.zeros(64, 3, 7, 7)}, {"mae.layernorm.weight": torch.zeros(3)}]
)
def test_another_architecture__is_refused(content):
    with pytest.raises(ValueError, match="not a checkpoint of the official MAE code: it lacks cls_token"):
        hf_mae.load_checkpoint(content)


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_pickles__are_refused_and_do_not_run(official_weights, tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": official_weights, "args": Payload()}, path)
    with pytest.raises(OSError, match="not a checkpoint of tensors and was not loaded"):
        hf_mae.load_checkpoint(path)
    assert not Payload.ran


def test_files_that_are_none(tmp_path):
    with pytest.raises(OSError, match="no checkpoint file"):
        hf_mae.load_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(OSError, match="was not loaded"):
        hf_mae.load_checkpoint(tmp_path / "text.pth")
    with pytest.raises(ValueError, match="mapping from names to tensors"):
        hf_mae.load_checkpoint({"epoch": 3})
