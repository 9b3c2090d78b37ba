# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""When and how pre-training is compiled. Nothing is compiled here."""

import pytest
import torch
from conftest import SMALL, STEPS, same_tensors

from hf_mae import MAEConfig, pretrain
from hf_mae.pretraining import run as pretraining_run
from hf_mae.pretraining.compilation import choose_compile_mode, compiling_pays
from hf_mae.pretraining.run import PretrainingRun
from hf_mae.pretraining.settings import PretrainingSettings
from hf_mae.training.step_guard import RunStopped

HOUR = 3600
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
SMALL_IMAGES = MAEConfig.from_preset("tiny", image_size=32, patch_size=4)  # 0.9 GFLOP an image


@pytest.fixture
def found(monkeypatch, tmp_path):
    """What an imagined machine with a GPU has; all that compiling takes, at first."""
    found = {"triton", "gcc", "tensor cores", "headers"}
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / ("" if "headers" in found else "none")))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("hf_mae.pretraining.compilation.find_spec", lambda name: name if name in found else None)
    monkeypatch.setattr("shutil.which", lambda name: name if name in found else None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7 if "tensor cores" in found else 6, 0))
    return found


def test_compiling__is_chosen_on_a_gpu_where_the_time_pays_for_it(found):
    """It takes Triton, a C compiler, Python's headers and a GPU that Triton knows."""
    assert all(compiling_pays(GPU, time, 0) for time in ("10m", 8 * HOUR))
    assert not any(compiling_pays(device, time, 0) for device, time in ((GPU, "9m"), (CPU, "8h")))
    for lacking in list(found):
        found.remove(lacking)
        assert not compiling_pays(GPU, "8h", 0)
        found.add(lacking)


def test_compiling__is_chosen_for_many_steps_if_there_is_no_time_budget(found):
    assert compiling_pays(GPU, None, 10_000)
    assert not compiling_pays(GPU, None, 9_999)
    assert not compiling_pays(CPU, None, 10**6)
    assert not compiling_pays(GPU, "5m", 10**6)


def test_compiling__is_as_it_is_given(found):
    assert mode(torch_compile=False, max_steps=10**6) is None
    assert mode(torch_compile=True, max_steps=1) is not None
    assert mode(torch_compile=None, max_steps=10_000) is not None
    assert mode(torch_compile=None, max_steps=1) is None
    assert mode(torch_compile=None, max_steps=10_000, is_sharded=True) is None


def mode(config=SMALL_IMAGES, batch_size=256, accumulation=1, *, max_steps=1, device=GPU, processes=1, **given):
    place = {"num_processes": processes, "is_sharded": given.pop("is_sharded", False)}
    settings = PretrainingSettings(**{"torch_compile": True, **given})
    return choose_compile_mode(settings, device, config, batch_size, accumulation, max_steps, **place)


def test_cuda_graphs__are_used_where_the_host_would_limit_a_step():
    """1,024 images of 32 pixels take 0.9e12 operations, 1,024 of 224 pixels 3e12, 256 of base 15e12."""
    assert mode() == mode(batch_size=1024) == "reduce-overhead"
    assert mode(MAEConfig.from_preset("tiny"), 1024) == mode(MAEConfig.from_preset("base"), 256) == "default"
    assert mode(MAEConfig.from_preset("base"), 32) == "reduce-overhead"


def test_cuda_graphs__are_not_used_where_they_have_not_been_proven():
    assert mode(device=CPU) == mode(processes=2) == mode(is_sharded=True) == "default"
    assert mode(gradient_checkpointing=True) == "default"


def test_cuda_graphs__add_up_no_gradients():
    """With several forward passes a step they would be wrong."""
    assert mode(accumulation=2) == "default"
    for given in ("reduce-overhead", "max-autotune"):
        with pytest.raises(ValueError, match=f"`torch_compile_mode` {given} .* has 2\\..*at most 256 images"):
            mode(accumulation=2, torch_compile_mode=given)
    assert mode(accumulation=2, torch_compile_mode="max-autotune-no-cudagraphs") == "max-autotune-no-cudagraphs"


def test_mode__that_is_given_is_used_and_says_that_the_model_is_compiled():
    assert mode(MAEConfig.from_preset("base"), 1024, torch_compile_mode="reduce-overhead") == "reduce-overhead"
    assert mode(torch_compile_mode="default") == "default"
    assert PretrainingSettings(torch_compile_mode="default").torch_compile is True
    with pytest.raises(ValueError, match="`torch_compile_mode` has no effect with `torch_compile` false"):
        PretrainingSettings(torch_compile=False, torch_compile_mode="default")
    with pytest.raises(ValueError, match="`torch_compile_mode`.*fastest"):
        PretrainingSettings(torch_compile_mode="fastest")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"torch_compile_mode": "reduce-overhead"},
            "float32, compiled with CUDA graphs (which takes the first step about a minute), ",
        ),
        ({"torch_compile_mode": "max-autotune"}, "float32, compiled with max-autotune ("),
        ({"torch_compile": True}, "float32, compiled (which takes the first step about a minute), 0 loader"),
        ({}, "float32, 0 loader"),
    ],
)
def test_run__is_compiled_in_the_mode_and_says_so(tmp_path, capsys, monkeypatch, given, words):
    modes = []
    compile_by = lambda call, mode: modes.append(mode) or call  # noqa: E731
    monkeypatch.setattr("torch.compile", compile_by)
    pretrain(None, tmp_path, **{**STEPS, "max_steps": 1, **given})
    assert words in capsys.readouterr().out
    assert modes == [given.get("torch_compile_mode", "default")] * bool(given)


def broken(graph, inputs):
    raise OSError("there is no compiler")


def test_compiling__that_fails_ends_a_run_only_if_it_was_asked_for(tmp_path, capsys, monkeypatch):
    compile_by = torch.compile
    monkeypatch.setattr("torch.compile", lambda call, mode: compile_by(call, backend=broken))
    monkeypatch.setattr("hf_mae.pretraining.compilation.compiling_pays", lambda *args: True)
    expected = pretrain(None, tmp_path / "plain", torch_compile=False, **STEPS)
    result = pretrain(None, tmp_path / "chosen", **STEPS)
    assert "The model can't be compiled here, and is trained without that: " in (printed := capsys.readouterr().out)
    assert printed.count("there is no compiler") == 1
    assert same_tensors("model.safetensors", expected.output_dir, result.output_dir)
    with pytest.raises(RunStopped, match="can't be compiled here: .*no compiler.* Set `torch_compile` to false"):
        pretrain(None, tmp_path / "asked", torch_compile=True, **STEPS)


def test_trial_of_the_pace__adds_up_no_gradients(tmp_path, monkeypatch):
    """CUDA graphs have them in memory that the next pass writes to."""
    found, backward = [], PretrainingRun._backward

    def watched(run, *args, **kwargs):
        found.append([name for name, each in run.plain_model.named_parameters() if each.grad is not None])
        return backward(run, *args, **kwargs)

    def measure(take_batch, *_):
        take_batch()
        take_batch()
        raise InterruptedError

    monkeypatch.setattr(PretrainingRun, "_backward", watched)
    monkeypatch.setattr(pretraining_run, "measure_pace", measure)
    settings = {**STEPS, "config_overrides": SMALL, "max_steps": -1, "time_budget": 60, "views_per_image": 1}
    with pytest.raises(InterruptedError):
        pretrain(None, tmp_path, **settings)
    assert found == [[], []]
