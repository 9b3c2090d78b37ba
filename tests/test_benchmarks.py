# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What the benchmarks time does the same work. No times are asserted."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peers

    verbosity = logging.get_verbosity()
    yield peers
    logging.set_verbosity(verbosity)  # the scripts are quieter


def test_peers__same_loss_and_gradients(peers, tiny_config):
    """Of the same weights, images and masks; lightly and the official code where they are at hand."""
    from hf_mae import MAEForPreTraining

    model = MAEForPreTraining(tiny_config(norm_pix_loss=True, intermediate_size=128, decoder_intermediate_size=64))
    with torch.no_grad():  # so that a wrong name shows
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    found, missing = peers.all_peers(model, checkout=None)
    assert {"hf_mae", "timm-block reference", "transformers ViTMAE"} <= set(found)
    assert "official code" in missing
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    gradients = {}
    for name, peer in found.items():
        loss = peer.loss(peer.model.train(), images, noise)
        loss.backward()
        torch.testing.assert_close(loss, model(images, noise=noise).loss, rtol=1e-5, atol=1e-6)
        (weight,) = (
            p for n, p in peer.model.named_parameters() if n.endswith(("decoder_embed.weight", "embed.weight"))
        )
        gradients[name] = weight.grad
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients["hf_mae"], rtol=1e-4, atol=1e-6, msg=name)


def test_training_step__writes_table_and_file(peers, tmp_path, monkeypatch, capsys):
    import training_step

    from hf_mae import MAEConfig

    sizes = {"image_size": 32, "num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
    preset = MAEConfig.from_preset
    monkeypatch.setattr(MAEConfig, "from_preset", lambda name, **fields: preset(name, **{**sizes, **fields}))
    command = "training_step.py --presets tiny --batch_size 2 --rounds 2 --warmup 1 --output"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(tmp_path / "out.json")])
    training_step.main()
    printed = capsys.readouterr().out
    assert "| transformers ViTMAE |" in printed
    assert "official code is missing: no --official checkout was given" in printed
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    rows = result["rows"]
    assert rows["hf_mae"]["gflop_per_image"] < rows["timm-block reference"]["gflop_per_image"]
    assert rows[training_step.PARTIAL]["gflop_per_image"] < rows["hf_mae"]["gflop_per_image"]
    assert all(len(row["seconds"]) == 2 for row in rows.values())
    assert len(set(map("{:.4f}".format, result["losses"].values()))) == 1
