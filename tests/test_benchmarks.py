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


@pytest.fixture
def small_presets(monkeypatch):
    from hf_mae import MAEConfig

    sizes = {"image_size": 32, "num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
    preset = MAEConfig.from_preset
    monkeypatch.setattr(MAEConfig, "from_preset", lambda name, **fields: preset(name, **{**sizes, **fields}))


def run(monkeypatch, module, command: str, output: Path) -> dict:
    """Runs a benchmark and returns what it wrote."""
    monkeypatch.setattr(sys, "argv", [*command.split(), "--output", str(output)])
    module.main()
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["versions"]["torch"] == torch.__version__
    assert str(output.parent) not in output.with_suffix(".json").read_text()  # no folders of the machine
    return content["results"]


@pytest.mark.slow
def test_training_step__writes_table_and_file(peers, small_presets, tmp_path, monkeypatch, capsys):
    import training_step

    command = "training_step.py --presets tiny --batch_size 2 --rounds 2 --warmup 1"
    (result,) = run(monkeypatch, training_step, command, tmp_path / "out.json")
    printed = capsys.readouterr().out
    assert "| transformers ViTMAE |" in printed
    assert printed.rstrip("\n") == (tmp_path / "out.md").read_text().rstrip("\n")
    assert "official code is missing: no --official checkout was given" in printed
    rows = result["rows"]
    assert rows["hf_mae"]["gflop_per_image"] < rows["timm-block reference"]["gflop_per_image"]
    assert rows[training_step.PARTIAL]["gflop_per_image"] < rows["hf_mae"]["gflop_per_image"]
    assert all(len(row["seconds"]) == 2 for row in rows.values())
    assert len(set(map("{:.4f}".format, result["losses"].values()))) == 1


@pytest.mark.slow
def test_loss_curves__all_take_the_same_training(peers, tmp_path, monkeypatch):
    """Weights, images, masks, optimizer: in float64 losses stay equal to rounding, in float32 nearly."""
    import loss_curves

    largest = {}
    for dtype in ("float32", "float64"):
        command = f"loss_curves.py --steps 4 --batch_size 4 --dtype {dtype}"
        losses = run(monkeypatch, loss_curves, command, tmp_path / "out")["losses"]
        ours = torch.tensor(losses["hf_mae"], dtype=torch.float64)
        assert ours.diff().abs().min() > 1e-3
        differences = [torch.tensor(other, dtype=torch.float64) / ours - 1 for other in losses.values()]
        largest[dtype] = max(difference.abs().max().item() for difference in differences)
    assert largest["float64"] < 1e-13 < largest["float32"] < 1e-4


@pytest.mark.slow
def test_equal_time__cheaper_steps_are_more(peers, tmp_path, monkeypatch):
    import equal_time

    costs = {(1.0, 1): [4.0], (0.5, 1): [3.0], (1.0, 2): [2.0]}
    monkeypatch.setattr(equal_time, "in_turns", lambda calls, rounds, warmup, device: costs)
    command = "equal_time.py --steps 6 --batch_size 8 --prediction_ratios 0.5 --views_per_image 2 --eval_images 20"
    runs = run(monkeypatch, equal_time, command, tmp_path / "out")
    assert [(tuple(run["setting"]), run["steps"]) for run in runs] == [
        ((1.0, 1), 6),
        ((0.5, 1), 6),
        ((0.5, 1), 8),
        ((1.0, 2), 6),
        ((1.0, 2), 12),
    ]
    losses = [result["eval_loss"] for run in runs for result in run["seeds"]]
    assert len(set(losses)) == len(losses) == 10  # every run is another


@pytest.mark.slow
def test_modules__every_part_has_its_share(peers, small_presets, tmp_path, monkeypatch):
    """Of forward and backward time; together with the floor of the products, which is as large as their operations."""
    import modules
    import training_step

    result = run(monkeypatch, modules, "modules.py --preset tiny --batch_size 2 --steps 1", tmp_path / "out")
    parts = result["parts"]
    named = {"patch embedding", "encoder attention", "encoder MLPs", "decoder attention", "decoder MLPs", "head"}
    assert named <= set(parts)
    assert all(parts[name]["backward_ms"] > 0 and parts[name]["gflop_per_image"] > 0 for name in named)
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1, abs=0.02)
    model = training_step.make_model("tiny")
    whole = training_step.operations(peers.ours(model), *training_step.inputs(model.config, 1, torch.device("cpu")))
    assert sum(part["gflop_per_image"] for part in parts.values()) * 1e9 == pytest.approx(whole, rel=1e-3)
    # 4 patches and the class token pass two linear layers of 192 x 768: 2 operations forward, 4 backward.
    assert parts["encoder MLPs"]["gflop_per_image"] * 1e9 == pytest.approx(6 * 2 * 192 * 768 * (1 + 4 // 4))


@pytest.mark.slow
def test_input_path__all_ways_read_the_same_pictures(peers, tmp_path, monkeypatch, capsys):
    import input_path

    import hf_mae.data.decoding

    monkeypatch.setattr(hf_mae.data.decoding, "simplejpeg", hf_mae.data.decoding.simplejpeg)  # set back at the end
    monkeypatch.setattr(input_path, "data_wait", lambda images, preset: {"preset": preset, "data_wait": 0.0})
    command = "input_path.py --sizes 80x60 --images 6 --rounds 1 --workers --train tiny"
    (result,) = run(monkeypatch, input_path, command, tmp_path / "out")["pictures"]
    assert result["first_size"] == "80 x 60"
    assert {"transformers run_mae (datasets)", "hf_mae, PIL", "hf_mae, simplejpeg, 4 views"} <= set(result["rows"])
    from hf_mae.data.sources import FolderImages

    input_path.make_photographs(tmp_path, 2, (60, 80))
    for way in input_path.all_ways(FolderImages(str(tmp_path))).values():
        (samples,) = way.batches(2)
        batch = input_path.make_batch(way, samples)
        pixels = batch["pixel_values"] if isinstance(batch, dict) else batch
        assert pixels.shape == (2 * getattr(way, "views", 1), 3, 224, 224)


def test_growth__exchange_hides_behind_the_backward_pass(peers):
    """Two thirds of a step are the backward pass; only what the exchange takes beyond it makes steps longer."""
    import growth

    single = {"processes": 1, "batch_size": 8, "images_per_second": 80.0}  # 100 ms a step
    for exchange, step in ((0, 0.1), (66, 0.1), (166.67, 0.2)):
        row = {"processes": 4, "batch_size": 8, "exchange_ms": exchange}
        assert growth.predict_speed(row, single) == pytest.approx(32 / step, rel=1e-3)


def test_growth__table_shows_failures(peers):
    import growth

    rows = [
        {"preset": "tiny", "batch_size": 8, "images_per_second": 20.0},
        {"preset": "tiny", "batch_size": 64, "failed": "out of memory"},
    ]
    lines = growth.growth_table("batch", rows).splitlines()
    assert "20" in lines[2]
    assert "out of memory" in lines[3]
