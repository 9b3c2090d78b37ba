# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The scripts, run as a user runs them."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from conftest import picture
from PIL import Image
from safetensors.torch import load_file

from hf_mae import MAEImageProcessor

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT = str(EXAMPLES / "run_pretraining.py")
SMALL = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,decoder_hidden_size=16,"
SMALL += "decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=16"
STEPS = ["--config_overrides", SMALL, "--max_steps", "12", "--effective_batch_size", "24", "--eval_images", "50"]
STEPS += ["--learning_rate", "3e-3", "--per_device_train_batch_size", "24", "--logging_steps", "1"]
STEPS += ["--eval_steps", "6", "--save_steps", "5", "--log_samples"]
# One thread: sums in the same order, so that runs can be compared bit for bit.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}


def start(*arguments, launcher=()):
    command = [sys.executable, *launcher, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments, launcher=(), code=0):
    process = start(*arguments, launcher=launcher)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    return out + err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on the embedded images from beginning to end, and what it printed."""
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    return output_dir, run(SCRIPT, *STEPS, "--output_dir", output_dir)


def metrics(output_dir, name):
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def wait_for_steps(output_dir, steps):
    deadline = time.monotonic() + 120
    while not (output_dir / "metrics.jsonl").exists() or len(metrics(output_dir, "loss")) < steps:
        assert time.monotonic() < deadline, "no step was taken"
        time.sleep(0.01)


def test_pretraining__says_what_it_chose_and_leaves_a_model(finished):
    output_dir, printed = finished
    assert "3,000 from Fashion-MNIST sample (train), embedded, 10 classes" in printed
    assert "28 x 28 pixels, 7 x 7 patches, 75% hidden, target: pixels" in printed
    assert "24 over 1 process(es), 1 accumulated" in printed
    left = {path.name for path in output_dir.iterdir()}
    assert left == {
        *("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "reconstructions.png"),
        *("metrics.jsonl", "run.json", "checkpoint-10", "checkpoint-12", "samples-0.jsonl", "sheets"),
        *("configuration_mae.py", "image_processing_mae.py", "modeling_mae.py", "modeling_mae_downstream.py"),
        *("patches_mae.py", "recipe.yaml", "loss.png"),
    }
    losses = metrics(output_dir, "loss")
    assert list(losses) == list(range(1, 13))
    evaluated = metrics(output_dir, "eval_loss")
    assert evaluated[12] < evaluated[6] < losses[1]
    assert list(metrics(output_dir, "knn_accuracy")) == [6, 12]
    assert Image.open(output_dir / "reconstructions.png").size[0] > 1000
    record = json.loads((output_dir / "run.json").read_text())
    assert record["recipe"]["effective_batch_size"] == 24
    assert f"| training loss | {losses[12]:.4g} |" in (output_dir / "README.md").read_text()


def test_pretraining__can_be_loaded_by_the_other_script(finished):
    printed = run(EXAMPLES / "load_pretrained.py", finished[0])
    assert "last_hidden_state (1, 50, 32)" in printed
    assert "pooler_output     (1, 32)" in printed


def test_pretraining__finished_is_left_alone_and_another_run_refused(finished):
    output_dir, _ = finished
    weights = (output_dir / "model.safetensors").stat().st_mtime_ns
    assert "is finished: 12 steps. Nothing to do." in run(SCRIPT, *STEPS, "--output_dir", output_dir)
    printed = run(SCRIPT, *STEPS, "--output_dir", output_dir, "--seed", "1", code=1)
    assert "holds another run. It differs in" in printed
    assert "seed: 0 there, 1 now" in printed
    assert (output_dir / "model.safetensors").stat().st_mtime_ns == weights


def test_pretraining__stopped_and_continued_gives_the_same_weights(finished, tmp_path):
    process = start(SCRIPT, *STEPS, "--output_dir", tmp_path)
    wait_for_steps(tmp_path, 3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err[-3000:]
    assert "Stopped and saved at step" in out
    assert not (tmp_path / "model.safetensors").exists()
    assert "going on from checkpoint-" in run(SCRIPT, *STEPS, "--output_dir", tmp_path)
    assert same_tensors("model.safetensors", tmp_path, finished[0])
    assert metrics(tmp_path, "loss") == metrics(finished[0], "loss")
    assert samples(tmp_path) == samples(finished[0])


def same_tensors(file, ours, theirs):
    ours, theirs = load_file(ours / file), load_file(theirs / file)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pretraining__killed_at_any_moment_gives_the_same_weights_and_optimizer(finished, tmp_path):
    """As many kills as HF_MAE_KILLS says, at random moments from the start on, also while saving; 100 were tried."""
    steps = [*STEPS, "--output_dir", tmp_path, "--save_steps", "1"]
    rng = random.Random(int(os.environ.get("HF_MAE_SEED", "0")))
    kills, moments = int(os.environ.get("HF_MAE_KILLS", "3")), set()
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
        if (tmp_path / "run.json").exists():  # it was faster: anew
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


def samples(output_dir):
    """The list of (step, epoch, index, view, crop box, flip, visible patches) of a run, from all its processes."""
    return sorted({line for path in output_dir.glob("samples-*.jsonl") for line in path.read_text().splitlines()})


LAYOUTS = {  # processes, batch of a device, workers
    "accumulated": (1, 7, 0),
    "4 workers": (1, 24, 4),
    "2 processes": (2, 6, 0),
    "3 processes with workers": (3, 5, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pretraining__processes_workers_and_accumulation_change_nothing(finished, tmp_path, layout):
    processes, per_device, workers = LAYOUTS[layout]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    arguments = [*STEPS, "--output_dir", tmp_path, "--per_device_train_batch_size", per_device]
    arguments += ["--dataloader_num_workers", workers]
    printed = run(SCRIPT, *arguments, launcher=launcher if processes > 1 else ())
    pieces = -(-24 // (per_device * processes))
    assert f"24 over {processes} process(es), {pieces} accumulated" in printed
    assert len(samples(tmp_path)) == 12 * 24
    assert samples(tmp_path) == samples(finished[0])
    for name, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3), ("learning_rate", 0), ("eval_loss", 1e-4)):
        ours, theirs = metrics(tmp_path, name), metrics(finished[0], name)
        assert list(ours) == list(theirs)
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=tolerance)


def test_pretraining__stopped_in_one_process_of_two_goes_on_in_three(finished, tmp_path):
    """The signal reaches one process only; all save the same step, and another number of processes takes over."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    steps = [*STEPS, "--output_dir", tmp_path, "--save_steps", "1000"]
    process = start(SCRIPT, *steps, launcher=[*launcher, "2"])
    wait_for_steps(tmp_path, 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert "Stopped and saved at step" in out, err[-3000:]
    assert f"exitcode  : {128 + signal.SIGUSR1}" in err  # what torchrun reports of a process; its own status is 1
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    printed = run(SCRIPT, *steps, "--per_device_train_batch_size", "8", launcher=[*launcher, "3"])
    assert f"going on from {checkpoint.name}" in printed
    assert samples(tmp_path) == samples(finished[0])
    ours, theirs = metrics(tmp_path, "loss"), metrics(finished[0], "loss")
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-4)


def test_pretraining__that_diverges_goes_back_twice_and_ends(tmp_path):
    arguments = [*STEPS, "--learning_rate", "1e30", "--warmup_ratio", "0.1", "--max_bad_steps", "3"]
    arguments += ["--save_steps", "1"]
    printed = run(SCRIPT, *arguments, "--output_dir", tmp_path, code=1)
    assert printed.count("Loss or gradient was not finite in 3 steps in a row: back to checkpoint-") == 2
    assert "also after going back to checkpoint-" in printed
    assert "Start anew in another --output_dir with a lower learning rate" in printed


def test_pretraining__goes_on_from_rgb_weights_on_other_channels(tiny_model, tmp_path, monkeypatch):
    """As for satellite images; what is normalised by is then taken from them."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import run_pretraining

    tiny_model(num_channels=3).save_pretrained(tmp_path)
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path)
    arguments = {"model_name_or_path": str(tmp_path), "num_channels": 5}
    with pytest.raises(ValueError, match=r"3 values for 5 channels.*--compute_statistics"):
        run_pretraining.build_model(run_pretraining.PretrainingArguments(**arguments))
    arguments["compute_statistics"] = True
    model, processor = run_pretraining.build_model(run_pretraining.PretrainingArguments(**arguments))
    assert model.config.num_channels == processor.num_channels == 5
    processor.image_mean, processor.image_std = [0.1] * 5, [0.2] * 5  # as the run then does
    pixel_values = processor(torch.rand(5, 32, 32), return_tensors="pt").pixel_values
    assert model(pixel_values).logits.shape[-1] == 5 * model.config.patch_size**2


def test_pretraining__on_shards_with_broken_pictures_statistics_and_views(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    content = []
    for number in range(60):
        buffer = io.BytesIO()
        picture(number, (40, 30)).resize((90, 70)).save(buffer, "JPEG")
        content.append(buffer.getvalue()[: 300 if number % 20 == 7 else None])
    for shard in range(3):
        with tarfile.open(data / f"train-{shard}.tar", "w") as tar:
            for number in range(20 * shard, 20 * shard + 20):
                info = tarfile.TarInfo(f"{number:03}.jpg")
                info.size = len(content[number])
                tar.addfile(info, io.BytesIO(content[number]))
    arguments = [*STEPS[:2], "--preset", "tiny", "--image_size", "32", "--patch_size", "8", "--views_per_image", "3"]
    arguments += ["--max_steps", "6", "--effective_batch_size", "30", "--logging_steps", "2", "--save_steps", "3"]
    arguments += ["--compute_statistics", "--data", data, "--output_dir", tmp_path / "run", "--eval_images", "40"]
    printed = run(SCRIPT, *arguments, "--report_to", "tensorboard")
    assert "60 from" in printed
    assert "3 views of an image" in printed
    processor = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == pytest.approx([0.5] * 3, abs=0.03)  # of noise, not ImageNet's
    assert f"mean {processor['image_mean'][0]:.3g}" in printed
    named = [line.split("\t")[0] for line in (tmp_path / "run" / "unreadable.txt").read_text().splitlines()]
    assert sorted(line.split("\t")[0] for line in named) == [
        f"{data}/train-{n}.tar:{20 * n + 7:03}.jpg" for n in range(3)
    ]
    assert printed.count("Skipped, can't be read") == 3
    assert any(path.name.startswith("events.out") for path in (tmp_path / "run").rglob("*"))
    assert sorted(path.name for path in (tmp_path / "run" / "sheets").iterdir())[-1] == "step-0000006.png"

    refused = run(SCRIPT, *arguments[:-4], "--output_dir", tmp_path / "strict", "--max_unreadable", "0.01", code=1)
    assert "of 60 images can't be read, more than --max_unreadable 0.01 allows" in refused
    assert "unreadable.txt. Repair or remove them" in refused
    assert list((tmp_path / "strict").glob("checkpoint-*"))  # nothing is lost


def test_pretraining__of_changed_data_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(40):
        picture(number).save(tmp_path / "data" / f"{number}.png")
    arguments = [*STEPS[:2], "--image_size", "32", "--data", tmp_path / "data", "--output_dir", tmp_path / "run"]
    run(SCRIPT, *arguments, "--max_steps", "1")
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "data").rename(tmp_path / "moved")  # is the same data
    arguments[5] = tmp_path / "moved"
    run(SCRIPT, *arguments, "--max_steps", "1")
    (tmp_path / "run" / "run.json").unlink()
    picture(99).save(tmp_path / "moved" / "new.png")
    assert "num_images: 40 there, 41 now" in run(SCRIPT, *arguments, "--max_steps", "1", code=1)


def test_pretraining__dry_run_tells_speed_and_leaves_nothing(tmp_path):
    printed = run(SCRIPT, *STEPS, "--output_dir", tmp_path / "run", "--dry_run")
    assert re.search(r"Dry run  [\d,.]+ images/s, \d+% of the time waiting for data, [\d.]+ GB of memory", printed)
    assert re.search(r"the run would take [\d.]+ hours", printed)
    assert not (tmp_path / "run").exists()


def test_pretraining__on_a_folder_from_a_checkpoint_with_a_recipe(finished, tmp_path):
    for number in range(8):
        Image.radial_gradient("L").rotate(number * 40).resize((60, 50)).save(tmp_path / f"{number}.jpg")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("max_steps: 2\nper_device_train_batch_size: 4\nimage_size: 56\nnum_channels: 1\n")
    arguments = [recipe, "--data", tmp_path, "--model_name_or_path", finished[0], "--output_dir", tmp_path / "run"]
    arguments += ["--bf16", "true", "--gradient_checkpointing", "--max_grad_norm", "1.0"]
    printed = run(SCRIPT, *arguments, "--norm_pix_loss", "true", "--max_steps", "3")
    assert "cpu, bf16" in printed
    assert "8 from" in printed
    assert "no labels" in printed
    assert "56 x 56 pixels, 14 x 14 patches" in printed
    assert "was trained with norm_pix_loss=False, and it is True now" in printed
    assert "Steps    3" in printed
    processor = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.286]  # of the checkpoint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{tmp}"], "ValueError: Found no images in"),
        (["--data", "no/such-data"], "OSError: 'no/such-data' is no folder or file here"),
        (["--max_stepps", "3"], "Some specified arguments are not used by the HfArgumentParser: ['--max_stepps', '3']"),
        (["{tmp}/recipe.yaml"], "has settings that do not exist: epochs. See --help."),
        (["--config_overrides", "hiden_size=3"], "MAEConfig has no field hiden_size"),
        (["--logging_steps", "0"], "ValueError: --logging_steps must be at least 1, got 0."),
        (["--report_to", "paper"], "--report_to paper: Accelerate knows no such tracker"),
    ],
)
def test_pretraining__mistakes_are_told(tmp_path, arguments, message):
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    printed = run(SCRIPT, *arguments, "--output_dir", tmp_path / "run", code=1)
    assert message in printed


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


def test_slurm_script__requeues_itself_before_the_time_limit_and_goes_on(tmp_path):
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost", "STUBS": str(tmp_path)}
    command = ["bash", "examples/slurm/pretrain.sbatch", *STEPS, "--output_dir", str(tmp_path / "run")]
    command += ["--max_steps", "400", "--eval_steps", "1000"]
    options = {"cwd": EXAMPLES.parent, "env": {**ENVIRONMENT, **slurm, "PATH": path}, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    wait_for_steps(tmp_path / "run", 3)
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, printed[-3000:]
    assert "back into the queue" in printed
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    done = subprocess.run(command, capture_output=True, timeout=120, **options)  # what Slurm does then
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from checkpoint-" in done.stdout
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"


@pytest.mark.parametrize("config", sorted((EXAMPLES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs__are_valid(config):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(config))
    assert loaded.num_processes == {"eight_gpus": 8, "fsdp2": 8, "two_nodes": 16}.get(config.stem, 1)
