# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Another target than pixels is one subclass: it trains, is saved, loads again and is resized."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from hf_mae import MAEForPreTraining, MAEModel
from hf_mae.modeling.auto_mae import AUTO_CLASSES

EXAMPLE = Path(__file__).parent.parent / "examples" / "custom_target.py"


@pytest.fixture
def histogram_mae(monkeypatch):
    """The class of the example, from a module of its own."""
    spec = importlib.util.spec_from_file_location("custom_target", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_target", module)
    spec.loader.exec_module(module)
    return module.HistogramMAE


def steep(angle: float) -> torch.Tensor:
    """One grey image whose brightness rises in one direction."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    angle = torch.tensor(angle)
    return (columns * angle.cos() + rows * angle.sin())[None, None]


def test_example__votes_for_the_direction_of_the_gradient(histogram_mae, tiny_config):
    model = histogram_mae(tiny_config(num_channels=1))
    ids = torch.tensor([[5, 10]])  # away from the border
    for angle, direction in ((0.1, 0), (torch.pi / 2, 4), (torch.pi / 2 + torch.pi, 4), (0.1 + torch.pi, 0)):
        target = model.target_values(steep(angle), ids)
        assert target.shape == (1, 2, 9)
        assert (target.argmax(dim=-1) == direction).all()
        torch.testing.assert_close(target.norm(dim=-1), torch.ones(1, 2))


@pytest.mark.slow
def test_subclass__head_and_loss_follow_from_its_target(histogram_mae, tiny_config):
    model, pixels, noise = histogram_mae(tiny_config()), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    output = model(pixels, noise=noise)
    assert output.logits.shape == (2, 12, 9)
    target = model.target_values(pixels, output.ids_hidden)
    torch.testing.assert_close(output.loss, (output.logits - target).square().mean())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(pixels, noise=noise).loss
        loss.backward()
        optimizer.step()
    assert loss < output.loss
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels, noise=noise).loss, model(pixels, noise=noise).loss)


def test_subclass__without_a_way_back_has_no_pictures(histogram_mae, tiny_config):
    with pytest.raises(NotImplementedError, match="HistogramMAE does not predict pixels.*`predictions_to_pixels`"):
        histogram_mae(tiny_config()).reconstruct(torch.randn(2, 3, 32, 32))


class InvertedMAE(MAEForPreTraining):
    """Predicts the negative of each patch: another target, with a way back."""

    def target_values(self, pixel_values, ids):
        return -super().target_values(pixel_values, ids)

    def predictions_to_pixels(self, predictions, pixel_values, ids):
        return -predictions


def test_subclass__with_a_way_back_has_pictures(tiny_config, monkeypatch):
    model, pixels = InvertedMAE(tiny_config()), torch.randn(2, 3, 32, 32)
    monkeypatch.setattr(model.decoder.head, "forward", lambda tokens: torch.full((2, tokens.shape[1], 192), -7.0))
    output = model.reconstruct(pixels)
    hidden = output.mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(pixels)
    assert (output.reconstruction[hidden] == 7).all()
    assert torch.equal(output.reconstruction[~hidden], pixels[~hidden])


def test_saved__loads_as_its_class_and_as_an_encoder(histogram_mae, tiny_config, tmp_path, log):
    model, pixels, noise = histogram_mae(tiny_config()).eval(), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(pixels, noise=noise).loss, model(pixels, noise=noise).loss)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is MAEModel
    assert torch.equal(encoder(pixels).pooler_output, model.mae(pixels).pooler_output)
    assert "HistogramMAE" not in log()


def test_saved__does_not_claim_that_another_class_loads_its_decoder(histogram_mae, tiny_config, tmp_path):
    histogram_mae(tiny_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["HistogramMAE"]
    assert set(config["auto_map"]) == set(AUTO_CLASSES) - {"AutoModelForPreTraining"}
    with pytest.raises(ValueError, match="saved by HistogramMAE.*other shapes.*MAEForPreTraining"):
        MAEForPreTraining.from_pretrained(tmp_path)
    assert MAEForPreTraining.from_pretrained(tmp_path, ignore_mismatched_sizes=True).decoder.head.out_features == 192


def test_saved__loading_with_another_class_of_the_same_width_warns(tiny_config, tmp_path, log):
    InvertedMAE(tiny_config()).save_pretrained(tmp_path)
    MAEForPreTraining.from_pretrained(tmp_path)
    assert "saved by InvertedMAE, and MAEForPreTraining may predict something else" in log()


@pytest.mark.parametrize("change", [{"num_channels": 5}, {"image_size": 48}, {"patch_size": 4}])
def test_resized__a_head_that_does_not_depend_on_the_sizes_is_kept(histogram_mae, tiny_config, tmp_path, change):
    model = histogram_mae(tiny_config())
    model.save_pretrained(tmp_path)
    resized = histogram_mae.from_pretrained(tmp_path, **change)
    assert torch.equal(resized.decoder.head.weight, model.decoder.head.weight)
    size = change.get("image_size", 32)
    assert resized(torch.randn(1, change.get("num_channels", 3), size, size)).loss.isfinite()


class MeanMAE(MAEForPreTraining):
    """Predicts the mean of each channel of a patch."""

    def num_target_values(self):
        return self.config.num_channels

    def target_values(self, pixel_values, ids):
        patches = super().target_values(pixel_values, ids)
        return patches.unflatten(-1, (-1, self.config.num_channels)).mean(dim=-2)


def test_resized__a_head_of_another_width_is_new(tiny_config, tmp_path):
    MeanMAE(tiny_config()).save_pretrained(tmp_path)
    resized = MeanMAE.from_pretrained(tmp_path, num_channels=5)
    assert resized(torch.randn(2, 5, 32, 32)).logits.shape == (2, 12, 5)
    assert resized.decoder.head.weight.std() > 0.1
    resized.save_pretrained(tmp_path / "resized")
    again = MeanMAE.from_pretrained(tmp_path / "resized")
    assert torch.equal(again.decoder.head.weight, resized.decoder.head.weight)


@pytest.mark.slow
def test_subclass_in_a_script__is_saved_and_loaded(tmp_path):
    script = f"""
import runpy, torch
HistogramMAE = runpy.run_path({str(EXAMPLE)!r})["HistogramMAE"]
HistogramMAE.__module__ = "__main__"
from hf_mae import MAEConfig
sizes = dict(hidden_size=32, num_attention_heads=4, decoder_hidden_size=16, decoder_num_attention_heads=2)
model = HistogramMAE(MAEConfig(image_size=32, patch_size=8, num_hidden_layers=1, decoder_num_hidden_layers=1, **sizes))
model.save_pretrained({str(tmp_path)!r})
again = type(model).from_pretrained({str(tmp_path)!r})
assert torch.equal(again.decoder.head.weight, model.decoder.head.weight)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "can't save the code" not in done.stderr
