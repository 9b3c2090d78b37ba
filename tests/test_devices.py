# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Everything works on a device that is not the CPU, and the benchmarks that wait for a GPU are sound.

Without such a device torch's PrivateUse1 stands in for one.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import patience
from transformers.utils import logging

from hf_mae import MAEForPreTraining

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_other_device__model_training_and_evaluation():
    """Runs on_other_device.py in a process of its own, whose default device is another one for good."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "on_other_device.py")]
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "ACCELERATE_USE_CPU": "false"}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), done.stdout  # none was left out


# ----------------------------------------------------------------------------------------------------------------------
# The benchmarks that wait for a GPU: the same code, in small, on this machine


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark of the first minutes on a GPU."""
    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")
    import gpu

    verbosity = logging.get_verbosity()
    yield gpu
    logging.set_verbosity(verbosity)  # the scripts are quieter


def cases_of(gpu, folder: Path, part: str) -> dict:
    return gpu.Results(folder, part).read()["cases"]


def is_running(pid: str) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"


@pytest.mark.slow
def test_gpu_benchmark__runs_in_small_without_a_gpu(gpu, tmp_path, monkeypatch):
    options = gpu.PARTS["options"]._replace(cases=["bf16 residual", "compiled"])
    monkeypatch.setitem(gpu.PARTS, "options", options)
    few = ["adamw, 256, eager", "adamw, 256, reduce-overhead", "muon, 1024, default"]
    monkeypatch.setitem(gpu.PARTS, "small", gpu.PARTS["small"]._replace(cases=few))
    parts = ["device", "engines", "eager", "small", "options", "batches"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--here", "--output", str(tmp_path), "--parts", *parts])
    gpu.main()
    for part in parts:
        for case in cases_of(gpu, tmp_path, part).values():
            assert {"machine", "versions", "commit"} <= set(case)  # the commit is `None` outside of a checkout
            assert case["state"] == "done"
        assert str(tmp_path) not in gpu.Results(tmp_path, part).path.read_text()  # no folders of the machine
    device, engines = cases_of(gpu, tmp_path, "device"), cases_of(gpu, tmp_path, "engines")
    assert device["waits"]["waits"] == {}
    assert device["processor"]["image on the device"]["largest_difference"] == 0
    assert len({case["metrics"]["loss"] for case in engines.values()}) == 1
    assert set(engines) == {"alone", "ddp", "fsdp2"}
    peers = cases_of(gpu, tmp_path, "eager")["base"]
    assert peers["hf_mae"]["gflop_per_image"] < peers["timm-block reference"]["gflop_per_image"]
    assert {"ratio_to_reference", "images_per_second"} <= set(peers["transformers ViTMAE"])
    small = cases_of(gpu, tmp_path, "small")
    assert list(small) == few
    assert all(0 < case["host_seconds"] <= case["seconds"] for case in small.values())
    assert len({case["loss"] for name, case in small.items() if "adamw" in name}) == 1
    losses = cases_of(gpu, tmp_path, "options")["bf16 residual"]["losses"]
    assert losses["plain"] != losses["bf16 residual"]
    assert losses["plain"] == pytest.approx(losses["bf16 residual"], rel=1e-2)


@pytest.mark.slow
def test_gpu_benchmark__a_case_that_fails_or_hangs_costs_only_itself(gpu, tmp_path, monkeypatch):
    """What was found before stays, and what the case has started is ended."""
    monkeypatch.setattr(gpu, "PARTS", {"part": gpu.Part(None, ["sound", "fails", "hangs", "last"], 60)})
    code = """
import json, pathlib, subprocess, sys, time
folder, case = sys.argv[2], sys.argv[5]
if case == "fails":
    raise RuntimeError("no such kernel")
path = pathlib.Path(folder) / "gpu_part.json"
content = json.loads(path.read_text())
content["cases"][case].update(speed=1, **({} if case == "hangs" else {"state": "done"}))
path.write_text(json.dumps(content))
if case == "hangs":
    child = subprocess.Popen(["sleep", "600"])
    (pathlib.Path(folder) / "child").write_text(str(child.pid))
    time.sleep(600)
"""
    monkeypatch.setattr(gpu, "COMMAND", [sys.executable, "-c", code])
    measure_apart = gpu.measure_apart

    def impatient(folder, part, case, smoke, limit):
        measure_apart(folder, part, case, smoke, patience(3) if case == "hangs" else limit)

    monkeypatch.setattr(gpu, "measure_apart", impatient)
    gpu.measure(tmp_path, ["part"], smoke=False, total=600, here=False)
    cases = cases_of(gpu, tmp_path, "part")
    assert [cases[case]["state"] for case in ("sound", "last")] == ["done", "done"]
    assert cases["fails"]["state"] == "failed with exit status 1"
    assert "no such kernel" in cases["fails"]["errors"]
    assert cases["hangs"]["state"].startswith("cut off")
    assert cases["hangs"]["speed"] == 1
    assert not is_running((tmp_path / "child").read_text())


def test_gpu_benchmark__a_second_call_measures_what_is_not_done(gpu, tmp_path, monkeypatch, capsys):
    measured = []

    def measure(case, add, smoke):
        measured.append(case)
        add(speed={"eager": len(measured)})
        add(speed={"compiled": 2})
        if case == "second" and len(measured) == 2:
            add(speed={"of another machine": 1}, errors="interrupted")
            raise RuntimeError("interrupted")

    monkeypatch.setattr(gpu, "PARTS", {"part": gpu.Part(measure, ["first", "second"], 60)})
    with pytest.raises(RuntimeError):
        gpu.measure(tmp_path, ["part"], smoke=False, total=60, here=True)
    capsys.readouterr()
    gpu.measure(tmp_path, ["part"], smoke=False, total=60, here=True)
    assert measured == ["first", "second", "second"]
    assert capsys.readouterr().out.splitlines() == ["part, first: done before", "part, second: done"]
    second = cases_of(gpu, tmp_path, "part")["second"]
    assert second["speed"] == {"eager": 3, "compiled": 2}  # nothing is left of the first try
    assert "errors" not in second


def test_gpu_benchmark__steps_are_compiled_again_until_they_have_been_timed(gpu, tmp_path):
    """The second call may be on another machine, whose cache is empty."""
    compilation, compiled = (gpu.Results(tmp_path, part) for part in ("compilation", "compiled"))
    for preset in ("base", "tiny"):
        compilation.add(f"{preset}, hf_mae", state="done")
    compiled.add("base", state="done")
    compiled.add("tiny", state="cut off after 113 s")
    assert gpu.is_done(tmp_path, "compilation", "base, hf_mae")
    assert not gpu.is_done(tmp_path, "compilation", "tiny, hf_mae")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, which is much faster than starting Python")
def test_gpu_benchmark__a_case_ends_with_the_call_that_measures(gpu):
    """Also when that is killed: what goes on would take the device from the next call."""
    reading, writing = os.pipe()
    if (caller := os.fork()) == 0:
        try:
            if os.fork() == 0:
                os.setsid()
                os.write(writing, str(subprocess.Popen(["sleep", "600"]).pid).encode())
                gpu.end_without(os.getppid())
            time.sleep(600)
        finally:
            os._exit(1)  # what pytest would do at the end is not for a fork
    child = os.read(reading, 20).decode()
    time.sleep(1)
    assert is_running(child)
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    started = time.monotonic()
    while is_running(child):
        assert time.monotonic() - started < patience(10)
        time.sleep(0.05)


def test_gpu_benchmark__stops_when_the_time_is_over(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PARTS", {"part": gpu.Part(None, ["first"], 60)})
    gpu.measure(tmp_path, ["part"], smoke=False, total=0, here=True)
    assert "no time left" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture
def memory(monkeypatch):
    """The benchmark that predicts memory."""
    monkeypatch.syspath_prepend(TESTS.parent / "benchmarks")
    import memory

    return memory


def test_memory__counts_what_is_live_at_once(memory):
    with memory.LiveMemory() as live:
        first = torch.ones(1000)  # 4000 bytes: 8 blocks of 512
        view = first[:10]
        assert live.now == 4096
        second = first + 1
        del second
        assert (live.now, live.peak) == (4096, 8192)
        del first
        assert live.now == 4096
        del view
        assert live.now == 0


@pytest.mark.slow
@pytest.mark.long
def test_memory__of_a_step_grows_by_the_same_for_every_image(memory, tiny_config):
    """From weights, gradients and two moments of AdamW upwards; gradient checkpointing needs less."""
    config = tiny_config(num_hidden_layers=4)
    parameters = sum(parameter.numel() for parameter in MAEForPreTraining(config).parameters())
    peaks = {size: memory.peak_of_step(config, size) for size in (64, 128, 256)}
    assert peaks[64] > 12 * parameters
    assert peaks[256] - peaks[128] == pytest.approx(2 * (peaks[128] - peaks[64]), rel=0.01)
    assert memory.peak_of_step(config, 256, gradient_checkpointing=True) < 0.8 * peaks[256]


def test_memory__largest_batch_fits(memory):
    assert memory.largest_batch((64, 2e9), (128, 3e9), available=10e9) == 576
    assert memory.largest_batch((64, 2e9), (128, 3e9), available=0.5e9) == 0
