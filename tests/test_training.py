# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import json

import pytest
import torch

from hf_mae import MAEForPreTraining, MAEImageProcessor
from hf_mae.optimization import learning_rate_at, parameter_groups, scaled_learning_rate
from hf_mae.training import (
    MetricsLog,
    check_output_dir,
    delete_run,
    latest_checkpoint,
    load_optimizer,
    load_training_state,
    run_record,
    save_checkpoint,
)

RECIPE = {"data": None, "seed": 0}


def make(tiny_model):
    model = tiny_model().train()
    return model, torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-3)


def train(model, optimizer, steps):
    for step in steps:
        noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(step))
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(pixels, noise=noise).loss.backward()
        optimizer.step()


def save(folder, step, model, optimizer, **kwargs):
    return save_checkpoint(folder, step, model, MAEImageProcessor(), optimizer, {"recipe": RECIPE}, **kwargs)


def test_checkpoint__resumed_run_equals_the_uninterrupted_one_bit_for_bit(tiny_model, tmp_path):
    model, optimizer = make(tiny_model)
    train(model, optimizer, range(3))
    checkpoint = save(tmp_path, 3, model, optimizer)
    train(model, optimizer, range(3, 6))

    resumed = MAEForPreTraining.from_pretrained(checkpoint).train()
    fresh = torch.optim.AdamW(parameter_groups(resumed, 0.05), lr=1e-3)
    load_optimizer(checkpoint, resumed, fresh)
    assert load_training_state(checkpoint)["step"] == 3
    train(resumed, fresh, range(3, 6))
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad == theirs.requires_grad
        if ours.requires_grad:
            for key in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(fresh.state[ours][key], optimizer.state[theirs][key])


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest"])
def test_checkpoint__broken_is_refused_and_the_one_before_used(tiny_model, tmp_path, damage):
    model, optimizer = make(tiny_model)
    good, bad = save(tmp_path, 5, model, optimizer), save(tmp_path, 10, model, optimizer)
    assert latest_checkpoint(tmp_path) == bad
    weights = bad / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "remove":
        weights.unlink()
    else:
        (bad / "manifest.json").write_text("{")
    assert latest_checkpoint(tmp_path) == good


def test_checkpoint__interrupted_save_leaves_the_one_before(tiny_model, tmp_path, monkeypatch):
    model, optimizer = make(tiny_model)
    good = save(tmp_path, 5, model, optimizer)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_mae.training.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 10, model, optimizer)
    assert latest_checkpoint(tmp_path) == good
    monkeypatch.undo()
    assert save(tmp_path, 10, model, optimizer) == latest_checkpoint(tmp_path)


def test_checkpoint__total_limit_keeps_the_newest(tiny_model, tmp_path):
    model, optimizer = make(tiny_model)
    for step in (9, 10, 100):
        save(tmp_path, step, model, optimizer, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]


def test_checkpoint__holds_no_pickle(tiny_model, tmp_path):
    model, optimizer = make(tiny_model)
    train(model, optimizer, range(1))
    suffixes = {path.suffix for path in save(tmp_path, 1, model, optimizer).iterdir()}
    assert suffixes == {".json", ".py", ".safetensors"}


def test_output_dir__of_another_run_is_refused(tiny_model, tmp_path):
    assert check_output_dir(tmp_path / "new", RECIPE, resume=True) is None
    checkpoint = save(tmp_path, 5, *make(tiny_model))
    assert check_output_dir(tmp_path, RECIPE, resume=True) == checkpoint
    with pytest.raises(ValueError, match=r"holds another run. It differs in\s+seed: 0 there, 1 now\s+Choose another"):
        check_output_dir(tmp_path, {**RECIPE, "seed": 1}, resume=True)
    with pytest.raises(ValueError, match="holds a run at checkpoint-5, and --resume is never"):
        check_output_dir(tmp_path, RECIPE, resume=False)
    (tmp_path / "mine.txt").write_text("keep")
    delete_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a model or broken checkpoints, but none to go on from"):
        check_output_dir(tmp_path, RECIPE, resume=True)
    with pytest.raises(ValueError, match="is a file"):
        check_output_dir(tmp_path / "mine.txt", RECIPE, resume=True)


def test_metrics__of_steps_taken_again_are_dropped(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write(step, loss=1 / step)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    log = MetricsLog(tmp_path, step=20)
    log.write(30, loss=0.5, knn_accuracy=0.25)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert log.last() == {"step": 30, "loss": 0.5, "knn_accuracy": 0.25}


def test_record__can_be_written_as_json():
    record = json.loads(json.dumps(run_record(RECIPE)))
    assert record["recipe"] == RECIPE
    assert record["versions"]["torch"] == torch.__version__


def test_learning_rate__rises_and_falls_once():
    rates = [learning_rate_at(step, 100, 10, 1.0) for step in range(101)]
    assert rates[0] == 0
    assert rates[5] == 0.5
    assert max(rates) == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate_at(0, 10, 0, 1.0) == 1.0
    assert scaled_learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)


def test_parameter_groups__decay_all_but_one_dimensional_tensors(tiny_model):
    model = tiny_model()
    decayed, others = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight", "cls_token", "mask_token"}
    assert all(p.ndim == 1 for p in others["params"])
    assert sum(p.requires_grad for p in model.parameters()) == len(decayed["params"]) + len(others["params"])
