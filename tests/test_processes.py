# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Training in processes of its own, as a user starts it: launchers, kills, signals, Slurm."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SMALL, STEPS, metrics, patience, picture, same_tensors, samples
from forked import ForkedPython

from hf_mae import MAEForPreTraining
from hf_mae.evaluation.baselines import PREDICTORS
from hf_mae.finetuning.experiment import latest_complete_checkpoint
from hf_mae.training.checkpointing import latest_checkpoint, load_optimizer, load_training_state
from hf_mae.training.optimization import parameter_groups
from hf_mae.training.step_guard import StepGuard

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCRIPT = str(EXAMPLES / "run_pretraining.py")
FLAGS = ["--config_overrides", SMALL]
FLAGS += [text for name, value in STEPS.items() for text in (f"--{name}", str(value))]
# One thread: sums in the same order, so that runs can be compared bit for bit.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]

pytestmark = pytest.mark.slow


def start(*arguments, **options):
    return ForkedPython(*arguments, environment=ENVIRONMENT, **options)


def start_ranks(count, *arguments):
    """Starts processes that train together, as launchers do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    each = arguments if isinstance(arguments[0], list) else [arguments] * count  # for each process, or for all
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)} for rank in range(count)]
    return [
        ForkedPython(*its, environment={**ENVIRONMENT, **shared, **rank}) for its, rank in zip(each, ranks, strict=True)
    ]


def end(process, code=0):
    """Waits for the end of a process, checks its status and returns what it printed."""
    printed = "".join(process.communicate(timeout=patience(300)))
    assert process.returncode == code, printed[-3000:]
    return printed


def run(*arguments):
    return end(start(*arguments))


def launch(processes, *arguments):
    """Runs a command in several processes by torchrun."""
    command = [sys.executable, *TORCHRUN, str(processes), *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=patience(300))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on the embedded images from beginning to end, and what it printed."""
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    return output_dir, run(SCRIPT, *FLAGS, "--output_dir", output_dir)


def wait_for_steps(output_dir, steps, process=None):
    started = time.monotonic()
    while not (output_dir / "metrics.jsonl").exists() or len(metrics(output_dir, "loss")) < steps:
        assert process is None or process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() - started < patience(120), "no step was taken"
        time.sleep(0.01)


def test_pretrained__can_be_loaded_by_the_other_script(finished):
    printed = run(EXAMPLES / "load_pretrained.py", finished[0])
    assert "last_hidden_state (1, 50, 32)" in printed
    assert "pooler_output     (1, 32)" in printed


def test_command__stopped_ends_with_128_plus_signal_and_continues(finished, tmp_path):
    process = start(SCRIPT, *FLAGS, "--output_dir", tmp_path)
    wait_for_steps(tmp_path, 3, process)
    process.send_signal(signal.SIGTERM)
    printed = end(process, 128 + signal.SIGTERM)
    assert "saved at step" in printed
    assert "Traceback" not in printed
    assert "continued from checkpoint-" in run(SCRIPT, *FLAGS, "--output_dir", tmp_path)
    assert same_tensors("model.safetensors", tmp_path, finished[0])


def test_killed_at_any_moment__gives_the_same_weights_and_optimizer(finished, tmp_path):
    """As many kills as HF_MAE_KILLS says, at random moments from the start on, also while saving; 100 were tried."""
    steps = [*FLAGS, "--output_dir", tmp_path, "--save_steps", "1"]
    rng = random.Random(int(os.environ.get("HF_MAE_SEED", "0")))
    kills, moments = int(os.environ.get("HF_MAE_KILLS", "2")), set()
    while kills > 0:
        process = start(SCRIPT, *steps)
        started = time.monotonic()
        while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < started + 60:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 8 if kills % 4 == 0 else 1.5 + (kills % 4)))
        process.kill()
        process.communicate()
        kills -= 1
        moments.update(path.name for path in tmp_path.iterdir())
        if (tmp_path / "run.json").exists():  # it was faster: it starts again
            if not same_tensors("model.safetensors", tmp_path, finished[0]):
                break
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
    run(SCRIPT, *steps)
    assert same_tensors("model.safetensors", tmp_path, finished[0])
    assert same_tensors("optimizer.safetensors", tmp_path / "checkpoint-12", finished[0] / "checkpoint-12")
    assert metrics(tmp_path, "loss") == metrics(finished[0], "loss")
    if "HF_MAE_KILLS" in os.environ:
        print("seen on the way:", *sorted(moments))


def assert_same_run(ours, theirs):
    """Checks that two runs have seen the same samples, and that they differ by no more than the order of sums."""
    assert len(samples(ours)) == 12 * 24
    assert samples(ours) == samples(theirs)
    measured = (("eval_loss", 1e-4), ("eval_loss_interpolation", 1e-4), ("effective_rank", 1e-3), ("mean_cosine", 1e-3))
    for name, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3), ("learning_rate", 0), *measured):
        ours_by_step, theirs_by_step = metrics(ours, name), metrics(theirs, name)
        assert list(ours_by_step) == list(theirs_by_step)
        assert list(ours_by_step.values()) == pytest.approx(list(theirs_by_step.values()), rel=tolerance)


@pytest.mark.long
@pytest.mark.parametrize(("processes", "per_device", "workers"), [(3, 5, 1), (2, 6, 0)])
def test_processes_and_workers__change_nothing(finished, tmp_path, processes, per_device, workers):
    """As in the following test from the first step on; accumulation and workers of one: in test_pretraining.py."""
    arguments = [*FLAGS, "--output_dir", tmp_path, "--per_device_train_batch_size", per_device]
    arguments += ["--dataloader_num_workers", workers]
    printed = launch(processes, SCRIPT, *arguments)
    pieces = -(-24 // (per_device * processes))
    assert f"24 over {processes} process(es), {pieces} accumulated" in printed
    assert_same_run(tmp_path, finished[0])


@pytest.mark.long
def test_mask_cells_and_drop_path__are_the_same_in_two_processes(tmp_path):
    overrides = f"{SMALL},num_hidden_layers=3,num_class_tokens=2,mask_block_size=2,position_embedding=learned"
    flags = [*FLAGS, "--config_overrides", f"{overrides},drop_path_rate=0.5", "--image_size", 32, "--patch_size", 4]
    flags += ["--max_steps", 4, "--eval_steps", 4]
    for processes in (1, 2):
        launch(processes, "-m", "hf_mae", "pretrain", *flags, "--output_dir", tmp_path / str(processes))
    assert len(samples(tmp_path / "1")) == 4 * 24
    assert samples(tmp_path / "2") == samples(tmp_path / "1")
    ours, theirs = (list(metrics(tmp_path / name, "loss").values()) for name in ("2", "1"))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_stopped_in_one_process_of_two__continues_in_three(finished, tmp_path):
    """The signal reaches one process only; all save the same step, and others go on with workers and accumulation."""
    steps = ["-m", "hf_mae", "pretrain", *FLAGS, "--output_dir", tmp_path, "--save_steps", "1000"]
    first, second = start_ranks(2, *steps)
    wait_for_steps(tmp_path, 2, first)
    second.send_signal(signal.SIGUSR1)
    assert "Stopped by SIGUSR1 and saved at step" in end(first, 128 + signal.SIGUSR1)
    end(second, 128 + signal.SIGUSR1)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    ranks = start_ranks(3, *steps, "--per_device_train_batch_size", 5, "--dataloader_num_workers", 1)
    printed = "".join(end(rank) for rank in ranks)
    assert f"continued from {checkpoint.name}" in printed
    assert "24 over 3 process(es), 2 accumulated" in printed
    assert_same_run(tmp_path, finished[0])


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.long)])
def test_fsdp2__saves_in_shards_and_goes_on_bit_for_bit(tmp_path, processes):
    """And any number of processes can take over; bad steps are left out; the evaluation is the same in all."""
    ranks = start_ranks(processes, Path(__file__).parent / "fsdp2_processes.py", tmp_path)
    for rank in ranks:
        end(rank)
    checkpoint = latest_checkpoint(tmp_path)
    names = {path.name for path in checkpoint.iterdir()}
    assert {f"optimizer-{n + 1:05}-of-{processes:05}.safetensors" for n in range(processes)} < names
    assert {"model.safetensors", "modeling_mae.py", "configuration_mae.py", "image_processing_mae.py"} < names
    results, evaluated = json.loads((tmp_path / "results.json").read_text())
    assert [result["skipped"] for result in results] == [0, 1, 0, 0, 0, 0]
    figures = {"effective_rank", "twin_retrieval", "mean_cosine"}
    assert set(evaluated) == {"eval_loss", "knn_accuracy", *PREDICTORS, *figures}

    model = MAEForPreTraining.from_pretrained(checkpoint).train()  # one process takes over
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-3, fused=True)
    load_optimizer(checkpoint, model, optimizer)
    guard = StepGuard(optimizer, max_grad_norm=1.0)
    for step, expected in ((4, results[4]), (5, results[5])):
        generator = torch.Generator().manual_seed(step)
        loss = model(torch.randn(6, 1, 28, 28, generator=generator), noise=torch.rand(6, 16, generator=generator)).loss
        loss.backward()
        guard.step(loss.detach())
        optimizer.zero_grad()
        values, _ = guard.read()
        assert values["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert values["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# Every failure ends: with loader workers, which ignore the signals that Python ends them with


def worker_run(output_dir, *more, **options):
    """Starts a long run with loader workers in a process group of its own."""
    flags = [*FLAGS, "--output_dir", output_dir, "--max_steps", "5000", "--eval_steps", "10000", *more]
    return start(SCRIPT, *flags, "--dataloader_num_workers", "3", start_new_session=True, **options)


def descendants(pid):
    """Process ids of the children of a process, and of theirs."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [each for child in children for each in descendants(child)]


def ends(process, children):
    """Waits for a process to end, checks that its workers have ended, too, and returns its status and output."""
    out, err = process.communicate(timeout=patience(30))
    for child in children:
        started = time.monotonic()
        while Path(f"/proc/{child}").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
            assert time.monotonic() - started < patience(10), "a loader worker stays alive"
            time.sleep(0.05)
    return process.returncode, out + err


def test_worker_killed__ends_the_run(tmp_path):
    process = worker_run(tmp_path)
    wait_for_steps(tmp_path, 3, process)
    children = descendants(process.pid)
    os.kill(children[0], signal.SIGKILL)
    status, printed = ends(process, children)
    assert status == 1
    assert "A loader worker was killed" in printed
    assert "The run is saved at step" in printed
    assert list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("workers", [0, 1])
def test_files_gone_for_one_process_of_two__save_the_last_step(tmp_path, workers):
    """Those that wait for its gradients save the same step."""
    for number in range(80):
        folder = tmp_path / ("first", "second")[number % 2]  # as two machines have the images
        folder.mkdir(exist_ok=True)
        picture(number // 2).save(folder / f"{number // 2}.png")
    options = {"image_size": 32, "num_channels": 3, "max_steps": 5000, "eval_steps": 10000, "save_steps": 10000}
    options |= {"dataloader_num_workers": workers, "logging_steps": 1, "output_dir": tmp_path / "run"}
    flags = [*FLAGS, *(text for name, value in options.items() for text in (f"--{name}", str(value)))]
    ranks = start_ranks(
        2, *(["-m", "hf_mae", "pretrain", *flags, "--data", tmp_path / name] for name in ("first", "second"))
    )
    wait_for_steps(tmp_path / "run", 3, ranks[0])
    shutil.rmtree(tmp_path / "second")
    for rank in ranks:
        assert "The last step is saved" in end(rank, 1)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert latest_checkpoint(tmp_path / "run") == checkpoint
    assert load_training_state(checkpoint)["step"] == lines[-1]["step"]  # the last one for which both had images
    assert not any(line.get("skipped") for line in lines)


def test_files_gone_in_mid_run__end_the_run(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(40):
        picture(number).save(data / f"{number}.png")
    process = worker_run(tmp_path / "run", "--data", data, "--image_size", 32, "--num_channels", 3)
    wait_for_steps(tmp_path / "run", 3, process)
    children = descendants(process.pid)
    shutil.rmtree(data)
    status, printed = ends(process, children)
    assert status in (1, 2)
    assert "could be read" in printed or "can't be read" in printed


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_two_signals_to_the_group__end_at_once(tmp_path, number):
    """As torchrun, Slurm and a terminal send them: to the workers, too."""
    process = worker_run(tmp_path)
    wait_for_steps(tmp_path, 3, process)
    children = descendants(process.pid)
    os.kill(process.pid, signal.SIGSTOP)  # so that the second arrives before the first is acted upon
    for _ in range(2):
        os.killpg(process.pid, number)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.002)
    status, _ = ends(process, children)
    assert status in (130, 128 + number)


def test_one_signal_to_the_group__saves(tmp_path):
    process = worker_run(tmp_path)
    wait_for_steps(tmp_path, 3, process)
    children = descendants(process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    status, printed = ends(process, children)
    assert status == 128 + signal.SIGTERM, printed[-2000:]
    assert list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("start_method", ["fork", pytest.param("forkserver", marks=pytest.mark.long)])
def test_main_process_killed__workers_end_by_themselves(tmp_path, start_method):
    """However they were started: the default is `forkserver` from Python 3.14 on."""
    process = worker_run(tmp_path, start_method=start_method)
    wait_for_steps(tmp_path, 3, process)
    children = descendants(process.pid)
    process.kill()
    ends(process, children)


def test_fine_tuning_with_workers__saves_and_ends_when_the_group_gets_a_signal(short, tmp_path):
    """A launcher signals all processes: workers, which the step in progress needs, must go on until main has saved."""
    flags = ["--num_train_epochs", "2000", "--dataloader_num_workers", "2", "--eval_strategy", "no"]
    flags += ["--save_strategy", "steps", "--save_steps", "1", "--disable_tqdm", "true", "--use_cpu", "true"]
    process = start("-m", "hf_mae", "finetune", *short, *flags, start_new_session=True)
    started = time.monotonic()
    while latest_complete_checkpoint(tmp_path / "out") is None:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < patience(120), "no step was taken"
        time.sleep(0.01)
    before = latest_complete_checkpoint(tmp_path / "out")
    os.killpg(process.pid, signal.SIGTERM)
    assert "Stopped by SIGTERM" in end(process, 128 + signal.SIGTERM)
    assert latest_complete_checkpoint(tmp_path / "out") != before
    with pytest.raises(ProcessLookupError):  # no worker is left
        os.killpg(process.pid, 0)


# ----------------------------------------------------------------------------------------------------------------------
# Launchers

SRUN = """#!/bin/bash
# Stands in for srun: two tasks, the highest exit status.
shift
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 "$@" & pids[task]=$!
done
echo "${pids[@]}" > "$STUBS/pids"
highest=0
for pid in "${pids[@]}"; do wait "$pid"; status=$?; [ "$status" -gt "$highest" ] && highest=$status; done
exit "$highest"
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost || echo "$@" >> "$STUBS/requeued"
"""


@pytest.mark.long
def test_slurm_script__requeues_itself_before_the_time_limit_and_goes_on(tmp_path):
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost", "STUBS": str(tmp_path)}
    command = ["bash", "examples/slurm/run.sbatch", "pretrain", *FLAGS, "--output_dir", str(tmp_path / "run")]
    command += ["--max_steps", "60", "--eval_steps", "1000"]
    options = {"cwd": ROOT, "env": {**ENVIRONMENT, **slurm, "PATH": path}, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    wait_for_steps(tmp_path / "run", 3, process)
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    printed, _ = process.communicate(timeout=patience(60))
    assert process.returncode == 128 + signal.SIGUSR1, printed[-3000:]
    assert "back into the queue" in printed
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    done = subprocess.run(command, capture_output=True, timeout=patience(120), **options)  # what Slurm does then
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continued from checkpoint-" in done.stdout
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.parametrize("config", sorted((EXAMPLES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs__are_valid(config):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(config))
    assert loaded.num_processes == {"eight_gpus": 8, "fsdp2": 8, "two_nodes": 16}.get(config.stem, 1)


PROBE = """
import builtins, os, sys
seen = []
original = builtins.__import__
def watch(name, *args, **kwargs):
    if name == "torch" and "torch" not in sys.modules:
        print("policy when torch is loaded:", os.environ.get("OMP_WAIT_POLICY"), flush=True)
        if not {"torch.distributed.run", "accelerate.commands.launch"} & set(sys.orig_argv):
            os._exit(0)  # a launcher goes on and starts the process that computes
    return original(name, *args, **kwargs)
builtins.__import__ = watch
"""
WAYS = {
    "command": [str(Path(sys.executable).parent / "hf-mae"), "pretrain"],
    "module": [sys.executable, "-m", "hf_mae", "pretrain"],
    "module, set by the user": [sys.executable, "-m", "hf_mae", "pretrain"],
    "script": [sys.executable, SCRIPT],
    "torchrun": [sys.executable, *TORCHRUN, "1", "-m", "hf_mae", "pretrain"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "-m", "hf_mae", "pretrain"],
}


@pytest.mark.parametrize("way", WAYS)
def test_idle_threads_sleep__however_the_command_is_started(tmp_path, way):
    """OpenMP reads its policy when torch is loaded, so it must stand before; what the user has set stays."""
    (tmp_path / "sitecustomize.py").write_text(PROBE)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    del environment["OMP_WAIT_POLICY"]
    if way == "module, set by the user":
        environment["OMP_WAIT_POLICY"] = "ACTIVE"
    done = subprocess.run(
        [*WAYS[way], "--help"], env=environment, capture_output=True, text=True, timeout=patience(120)
    )
    policies = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("policy when")]
    assert policies, done.stderr[-2000:]
    # Launchers load torch themselves; the process that computes comes last.
    assert policies[-1] == environment.get("OMP_WAIT_POLICY", "PASSIVE")
