# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Muon: what a step does, to which parameters, and that nothing around it notices the difference to AdamW."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from conftest import SMALL, STEPS, SignalAt, metrics, run_two_forks, same_tensors
from safetensors.torch import load_file, save_file

from hf_mae import MAEForPreTraining, MAEImageProcessor, pretrain
from hf_mae.training.checkpointing import check_output_dir, load_optimizer, save_checkpoint
from hf_mae.training.distributed import place_like, shard_model
from hf_mae.training.muon import Muon, newton_schulz
from hf_mae.training.optimization import build_optimizer, muon_parameter_groups, parameter_groups
from hf_mae.training.step_guard import RunStopped, StepGuard

BLOCK_MATRICES = ("attention.qkv.weight", "attention.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def by_svd(matrix):
    """The result of Newton-Schulz by its meaning: singular values follow a polynomial, singular vectors stay."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


def set_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def muon(model, learning_rate=1e-2):
    return build_optimizer("muon", model, learning_rate, 0.05, (0.9, 0.95))


def test_newton_schulz__brings_singular_values_near_one_and_keeps_the_vectors():
    matrices = torch.randn(3, 6, 10, dtype=torch.float64)
    found = newton_schulz(matrices)
    assert torch.allclose(found, torch.stack([by_svd(matrix) for matrix in matrices]), atol=1e-10)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.68
    assert values.max() < 1.21
    assert torch.equal(newton_schulz(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_groups__hold_the_matrices_of_blocks_for_muon_and_all_else_for_adamw(tiny_model):
    model = tiny_model()
    model.decoder.layers[1].mlp.requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = muon_parameter_groups(model, 0.05)
    stacks, matrices, decayed, others = ({names[parameter] for parameter in group["params"]} for group in groups)
    blocks = [f"{part}.layers.{number}." for part in ("mae", "decoder") for number in (0, 1)]
    assert [group.get("matrices", 0) for group in groups] == [3, 1, 0, 0]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.05, 0.05, 0]
    assert stacks == {block + BLOCK_MATRICES[0] for block in blocks}
    expected = {block + name for block in blocks for name in BLOCK_MATRICES[1:]}
    assert matrices == {name for name in expected if not name.startswith("decoder.layers.1.mlp")}
    tokens = {"mae.embeddings.cls_token", "decoder.mask_token"}
    assert decayed == tokens | {f"{name}.weight" for name in ("mae.embeddings.patch_embeddings", "decoder.embed")} | {
        "decoder.head.weight"
    }
    assert all(name.endswith("bias") or "layernorm" in name for name in others)
    assert stacks | matrices | decayed | others == {names[each] for each in names if each.requires_grad}


def test_groups__whose_parameters_stack_no_matrices_are_refused():
    for shape in ((4, 3), (3, 3, 3)):
        with pytest.raises(ValueError, match=r"does not stack 3 matrices\. Put it into a group with `matrices` 0"):
            Muon([{"params": [torch.nn.Parameter(torch.zeros(shape))], "matrices": 3}], 1e-3)


def test_step__is_the_formula_for_matrices_and_torchs_adamw_for_the_others(tiny_model):
    model = tiny_model()
    expected, averages = {}, {}
    for name, parameter in model.named_parameters():
        if name.endswith(BLOCK_MATRICES):
            # Queries, keys and values are separate matrices.
            expected[name] = list(parameter.detach().double().chunk(3 if "qkv" in name else 1))
            averages[name] = [torch.zeros_like(matrix) for matrix in expected[name]]
    other = copy.deepcopy(model)
    ours, adamw = muon(model), torch.optim.AdamW(parameter_groups(other, 0.05), 1e-2, (0.9, 0.95), fused=True)
    for step in range(3):
        set_gradients(model, step)
        set_gradients(other, step)
        for name in expected:
            gradients = model.get_parameter(name).grad.double().chunk(len(expected[name]))
            for number, (weight, gradient) in enumerate(zip(expected[name], gradients, strict=True)):
                average = averages[name][number] = 0.95 * averages[name][number] + 0.05 * gradient
                update = by_svd(0.95 * average + 0.05 * gradient) * 0.2 * math.sqrt(max(weight.shape))
                expected[name][number] = (1 - 1e-2 * 0.05) * weight - 1e-2 * update
        ours.step()
        adamw.step()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.double(), torch.cat(expected[name]), atol=1e-6)
        else:
            assert torch.equal(parameter, other.get_parameter(name))
    assert sum(name in expected for name, _ in model.named_parameters()) == 16


def test_step__is_the_same_where_matrices_are_too_large_to_be_multiplied_together(tiny_model, monkeypatch):
    together = tiny_model()
    apart = copy.deepcopy(together)
    for model, most in ((together, 2**26), (apart, 1)):
        monkeypatch.setattr("hf_mae.training.muon._MOST_ELEMENTS", most)
        set_gradients(model, 0)
        muon(model).step()
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_step__leaves_out_parameters_without_gradient(tiny_model):
    model = tiny_model()
    optimizer, before = muon(model), copy.deepcopy(model)
    model.mae.layers[0].mlp.fc1.weight.grad = torch.randn(64, 32)
    optimizer.step()
    changed = [name for name, each in model.named_parameters() if not torch.equal(each, before.get_parameter(name))]
    assert changed == ["mae.layers.0.mlp.fc1.weight"]
    assert len(optimizer.state) == 1


@pytest.mark.parametrize(
    ("place", "value", "bad_step"),
    [
        ("mae.layers.0.mlp.fc1.weight", "nan", 2),
        ("decoder.layers.1.attention.qkv.weight", "inf", 0),
        ("decoder.head.weight", "nan", 0),
        ("mae.layernorm.bias", "inf", 2),
    ],
)
def test_bad_step__changes_nothing_and_is_forgotten(tiny_model, place, value, bad_step):
    """Also if it is the first one. Seen from the weights, averages and step counts after the next good steps, too."""
    model = tiny_model()
    without = copy.deepcopy(model)
    guards = [StepGuard(muon(each)) for each in (model, without)]

    def assert_same():
        for ours, theirs in zip(*(guard.parameters for guard in guards), strict=True):
            states = [guard.optimizer.state[each] for guard, each in zip(guards, (ours, theirs), strict=True)]
            assert torch.equal(ours, theirs)
            assert all(torch.equal(states[0][key], value) for key, value in states[1].items())

    for step in range(4):
        if step == bad_step:
            set_gradients(model, 99)
            model.get_parameter(place).grad[1] = float(value)
            guards[0].step(torch.tensor(1.0))
            assert_same()
        for each, guard in zip((model, without), guards, strict=True):
            set_gradients(each, step)
            guard.step(torch.tensor(1.0))
    assert_same()
    assert guards[0].read()[0]["skipped"] == 1


def saved(folder, model, optimizer):
    return save_checkpoint(folder, 3, model, MAEImageProcessor.for_image_size(32), optimizer, {"recipe": {"seed": 0}})


def test_checkpoint__gives_the_state_back_and_that_of_another_optimizer_is_refused(tiny_model, tmp_path):
    model = tiny_model()
    optimizer = muon(model)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step()
    checkpoint = saved(tmp_path / "muon", model, optimizer)
    resumed = MAEForPreTraining.from_pretrained(checkpoint)
    fresh = muon(resumed)
    load_optimizer(checkpoint, resumed, fresh)
    for each, its_optimizer in ((model, optimizer), (resumed, fresh)):
        set_gradients(each, 3)
        its_optimizer.step()
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))

    adamw = build_optimizer("adamw", model, 1e-2, 0.05, (0.9, 0.95))
    with pytest.raises(
        ValueError, match="holds the state of muon, which adamw can't go on from. Set `optimizer` to muon"
    ):
        load_optimizer(checkpoint, model, adamw)
    checkpoint = saved(tmp_path / "adamw", model, adamw)
    for name in ("as it is", "without the name"):
        with pytest.raises(ValueError, match="holds the state of adamw, which muon can't go on from"):
            load_optimizer(checkpoint, model, optimizer)
        if name == "as it is":
            save_file(load_file(checkpoint / "optimizer.safetensors"), checkpoint / "optimizer.safetensors")


def test_run__from_before_there_was_a_choice_is_one_of_adamw(tiny_model, tmp_path):
    model = tiny_model()
    checkpoint = saved(tmp_path, model, build_optimizer("adamw", model, 1e-2, 0.05, (0.9, 0.95)))
    assert check_output_dir(tmp_path, {"seed": 0, "optimizer": "adamw"}, resume=True) == checkpoint
    with pytest.raises(ValueError, match="optimizer: adamw there, muon now"):
        check_output_dir(tmp_path, {"seed": 0, "optimizer": "muon"}, resume=True)


def test_optimizer__of_another_name_is_refused(tiny_model):
    with pytest.raises(ValueError, match="`optimizer` must be adamw or muon, got sgd"):
        build_optimizer("sgd", tiny_model(), 1e-2, 0.05, (0.9, 0.95))


@pytest.mark.slow
def test_run__by_muon_continues_to_the_same_weights_and_knows_its_optimizer(pretrained, tmp_path, capsys):
    settings = {**STEPS, "max_steps": 4, "eval_steps": 4, "config_overrides": None, "optimizer": "muon"}
    settings["model_name_or_path"] = str(pretrained)
    pretrain(None, tmp_path / "whole", **settings)
    note = f"Muon goes on from {pretrained}. It suits weights that AdamW has trained less"
    assert capsys.readouterr().out.count(note) == 1
    with pytest.raises(RunStopped):
        pretrain(None, tmp_path / "parts", trackers=[SignalAt(2, signal.SIGUSR1)], **settings)
    pretrain(None, tmp_path / "parts", **settings)
    assert capsys.readouterr().out.count(note) == 1
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert same_tensors(file, *(tmp_path / name / "checkpoint-4" for name in ("parts", "whole")))
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["recipe"]["optimizer"] == "muon"
    with pytest.raises(ValueError, match="optimizer: muon there, adamw now"):
        pretrain(None, tmp_path / "whole", **{**settings, "optimizer": "adamw"})


# ----------------------------------------------------------------------------------------------------------------------
# Several processes


def take_steps(config, shard=False):
    """Four steps, of which the second is bad."""
    torch.manual_seed(0)
    model, found_inf = MAEForPreTraining(config), torch.zeros(())
    whole = copy.deepcopy(model)
    optimizer = muon(shard_model(model) if shard else model)
    for step in range(4):
        set_gradients(whole, step)  # as DDP leaves them, the same in all processes
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradient = whole.get_parameter(name).grad * (math.nan if step == 1 else 1)
                parameter.grad = place_like(gradient, parameter)
        optimizer.found_inf = found_inf + float(step == 1)
        optimizer.step()
    return model, optimizer


def be_one_of_two(rank, config, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a user would see it again and again
        model, _ = take_steps(config)
    save_file(model.state_dict(), folder / f"replicated-{rank}.safetensors")
    saved(folder / "sharded", *take_steps(config, shard=True))
    dist.barrier()
    os._exit(0)  # of a fork: what pytest would do at the end is not for this process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, which is much faster than starting Python")
def test_two_processes__take_the_steps_of_one(tiny_config, tmp_path):
    """Replicated (DDP) with bit-equal weights in both, and sharded (FSDP2), where matrices are cut unevenly."""
    # Half of 45 or 27 rows is no whole number, and half of the rows of q, k and v ends within k.
    config = tiny_config(hidden_size=36, intermediate_size=45, decoder_intermediate_size=27)
    run_two_forks(be_one_of_two, config, tmp_path)
    model, optimizer = take_steps(config)
    first, second = (load_file(tmp_path / f"replicated-{rank}.safetensors") for rank in (0, 1))
    sharded = MAEForPreTraining.from_pretrained(tmp_path / "sharded" / "checkpoint-3")
    its_optimizer = muon(sharded)
    load_optimizer(tmp_path / "sharded" / "checkpoint-3", sharded, its_optimizer)
    for name, parameter in model.named_parameters():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], parameter, atol=1e-6)
        assert torch.allclose(sharded.get_parameter(name), parameter, atol=1e-6)
        for key, value in optimizer.state.get(parameter, {}).items():
            assert torch.allclose(its_optimizer.state[sharded.get_parameter(name)][key], value, atol=1e-6)


@pytest.mark.slow
@pytest.mark.long
def test_run__in_two_processes_has_the_losses_of_one(tmp_path):
    settings = {**STEPS, "config_overrides": SMALL, "max_steps": 4, "eval_steps": 4, "optimizer": "muon"}
    pretrain(None, tmp_path / "one", **settings)
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hf_mae"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(
        [*command, "pretrain", *flags, "--output_dir", tmp_path / "two"], env=environment, check=True, timeout=240
    )
    ours, theirs = (list(metrics(tmp_path / name, "loss").values()) for name in ("two", "one"))
    assert len(ours) == 4
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
@pytest.mark.long
def test_newton_schulz__compiles_as_one_graph():
    matrices = torch.randn(3, 6, 10)
    assert torch.allclose(torch.compile(newton_schulz, fullgraph=True)(matrices), newton_schulz(matrices), atol=1e-5)
