# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import json
import os
import resource
import signal

import pytest
import torch
from transformers.utils import logging

from hf_mae import MAEForPreTraining, MAEImageProcessor
from hf_mae.training.checkpointing import (
    check_output_dir,
    delete_run,
    latest_checkpoint,
    load_optimizer,
    load_training_state,
    load_weights,
    lock_run,
    save_checkpoint,
    unlock_run,
)
from hf_mae.training.optimization import (
    parameter_groups,
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


def damage_manifest(checkpoint, change):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(change(manifest)))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut weights": (lambda c: os.truncate(c / "model.safetensors", 1000), "model.safetensors has 1,000 bytes"),
    "empty weights": (lambda c: os.truncate(c / "model.safetensors", 0), "model.safetensors has 0 bytes"),
    "flipped bit in weights": (lambda c: flip(c / "model.safetensors", -1), "content of model.safetensors is not what"),
    "flipped bit in optimizer": (lambda c: flip(c / "optimizer.safetensors", 9), "content of optimizer.safetensors"),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no configuration": (lambda c: (c / "config.json").unlink(), "config.json is missing"),
    "a folder for a file": (lambda c: (c / "config.json").rename(c / "x") and (c / "config.json").mkdir(), "missing"),
    "changed state": (lambda c: (c / "training_state.json").write_text("{}"), "training_state.json has 2 bytes"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "manifest.json can't be read"),
    "cut manifest": (lambda c: os.truncate(c / "manifest.json", 20), "manifest.json can't be read"),
    "binary manifest": (lambda c: (c / "manifest.json").write_bytes(b"\xff\x00"), "manifest.json can't be read"),
    "empty manifest": (lambda c: damage_manifest(c, lambda m: {}), "manifest.json names no training_state.json"),
    "list for a manifest": (lambda c: damage_manifest(c, list), "manifest.json can't be read"),
    "manifest without weights": (
        lambda c: damage_manifest(c, lambda m: {n: e for n, e in m.items() if not n.startswith("model.")}),
        "manifest.json names no model*.safetensors",
    ),
    "manifest without sizes": (lambda c: damage_manifest(c, lambda m: dict.fromkeys(m)), "can't be read (TypeError"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoint__broken_is_refused_with_the_reason_and_the_one_before_used(tiny_model, tmp_path, damage, caplog):
    model, optimizer = make(tiny_model)
    train(model, optimizer, range(1))
    good, bad = save(tmp_path, 5, model, optimizer), save(tmp_path, 10, model, optimizer)
    assert latest_checkpoint(tmp_path) == bad
    break_it, reason = DAMAGES[damage]
    break_it(bad)
    logging.get_logger("hf_mae").addHandler(caplog.handler)
    assert latest_checkpoint(tmp_path) == good
    logging.get_logger("hf_mae").removeHandler(caplog.handler)
    assert "checkpoint-10 is broken and not used" in caplog.text
    assert reason in caplog.text
    assert save(tmp_path, 10, model, optimizer) == latest_checkpoint(tmp_path)  # and is mended when it is due again


def test_checkpoint__a_full_disk_leaves_the_one_before(tiny_model, tmp_path):
    model, optimizer = make(tiny_model)
    good = save(tmp_path, 5, model, optimizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in (10, 20_000, (good / "model.safetensors").stat().st_size - 1):  # bytes that a file may have
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(
                OSError, match=r"checkpoint-10 could not be saved: .*intact \(checkpoint-5\). Make room"
            ):
                save(tmp_path, 10, model, optimizer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
        assert latest_checkpoint(tmp_path) == good
    signal.signal(signal.SIGXFSZ, before)
    assert save(tmp_path, 10, model, optimizer) == latest_checkpoint(tmp_path)


def test_checkpoint__what_a_killed_save_left_is_cleared_away(tiny_model, tmp_path):
    model, optimizer = make(tiny_model)
    for name in (".checkpoint-10.partial", ".checkpoint-5.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 10, model, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_checkpoint__a_complete_one_is_not_written_again(tiny_model, tmp_path):
    model, optimizer = make(tiny_model)
    inode = save(tmp_path, 10, model, optimizer).stat().st_ino
    assert save(tmp_path, 10, model, optimizer).stat().st_ino == inode  # nothing to lose if killed meanwhile


def test_checkpoint__weights_go_back_into_the_model(tiny_model, tmp_path):
    model, optimizer = make(tiny_model)
    checkpoint = save(tmp_path, 3, model, optimizer)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, optimizer, range(2))
    load_weights(checkpoint, model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_checkpoint__total_limit_keeps_the_newest(tiny_model, tmp_path):
    model, optimizer = make(tiny_model)
    for step in (9, 10, 100):
        save(tmp_path, step, model, optimizer, save_total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]


def test_checkpoint__total_limit_does_not_take_a_broken_later_one_for_the_newest(tiny_model, tmp_path):
    model, optimizer = make(tiny_model)
    for step in (5, 10):
        save(tmp_path, step, model, optimizer, save_total_limit=2)
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoint-99").write_text("no folder")
    good = save(tmp_path, 7, model, optimizer, save_total_limit=1)
    assert latest_checkpoint(tmp_path) == good
    assert not (tmp_path / "checkpoint-5").exists()


def test_checkpoint__may_be_read_by_others(tiny_model, tmp_path):
    """safetensors lets only the owner of a file read it."""
    before = os.umask(0o027)
    try:
        checkpoint = save(tmp_path, 1, *make(tiny_model))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in checkpoint.iterdir()} == {0o640}


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
    with pytest.raises(ValueError, match="holds a run at checkpoint-5, and `resume` is never"):
        check_output_dir(tmp_path, RECIPE, resume=False)
    (tmp_path / "mine.txt").write_text("keep")
    delete_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a model or broken checkpoints, but none to go on from"):
        check_output_dir(tmp_path, RECIPE, resume=True)


def test_lock__of_a_file_that_a_run_deletes_at_its_end_keeps_others_out(tmp_path, monkeypatch):
    """A run that starts while another ends may open the old file, whose lock would be no more than that."""
    import fcntl

    lock_run(tmp_path)
    lock = fcntl.lockf
    ended = iter([True])

    def lock_after_the_end(file, how):
        if next(ended, False):
            (tmp_path / ".lock").unlink()
        lock(file, how)

    unlock_run(tmp_path)
    monkeypatch.setattr(fcntl, "lockf", lock_after_the_end)
    lock_run(tmp_path)
    assert (tmp_path / ".lock").exists()
    unlock_run(tmp_path)
    assert not (tmp_path / ".lock").exists()
