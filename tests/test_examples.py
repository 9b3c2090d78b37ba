# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The scripts, run as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT = str(EXAMPLES / "run_pretraining.py")
SMALL = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32,decoder_hidden_size=16,"
SMALL += "decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=16"
STEPS = ["--config_overrides", SMALL, "--max_steps", "12", "--effective_batch_size", "24", "--eval_images", "50"]
STEPS += [
    "--learning_rate",
    "3e-3",
    "--per_device_train_batch_size",
    "24",
    "--logging_steps",
    "1",
    "--eval_steps",
    "6",
    "--save_steps",
    "5",
]
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


def test_pretraining__says_what_it_chose_and_leaves_a_model(finished):
    output_dir, printed = finished
    assert "3,000 from Fashion-MNIST sample (train), embedded, 10 classes" in printed
    assert "28 x 28 pixels, 7 x 7 patches, 75% hidden, target: pixels" in printed
    assert "24 = 24 x 1 process(es) x 1 accumulated" in printed
    left = {path.name for path in output_dir.iterdir()}
    assert left == {
        *("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "reconstructions.png"),
        *("metrics.jsonl", "run.json", "checkpoint-10", "checkpoint-12"),
        *("configuration_mae.py", "image_processing_mae.py", "modeling_mae.py"),
    }
    losses = metrics(output_dir, "loss")
    assert list(losses) == list(range(1, 13))
    evaluated = metrics(output_dir, "eval_loss")
    assert evaluated[12] < evaluated[6] < losses[1]
    assert list(metrics(output_dir, "knn_accuracy")) == [6, 12]
    assert Image.open(output_dir / "reconstructions.png").size[0] > 1000
    record = json.loads((output_dir / "run.json").read_text())
    assert record["recipe"]["effective_batch_size"] == 24
    assert f"| training loss | {losses[12]:g} |" in (output_dir / "README.md").read_text()


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
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() or len(metrics(tmp_path, "loss")) < 3:
        assert time.monotonic() < deadline, "no step was taken"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err[-3000:]
    assert "Stopped and saved at step" in out
    assert not (tmp_path / "model.safetensors").exists()
    assert "going on from checkpoint-" in run(SCRIPT, *STEPS, "--output_dir", tmp_path)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, finished[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(tmp_path, "loss") == metrics(finished[0], "loss")


@pytest.mark.parametrize("processes", [1, 2])
def test_pretraining__processes_and_accumulation_change_nothing(finished, tmp_path, processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
    arguments = [
        *STEPS,
        "--output_dir",
        tmp_path,
        "--per_device_train_batch_size",
        "6",
        "--dataloader_num_workers",
        "1",
    ]
    printed = run(SCRIPT, *arguments, launcher=launcher)
    assert f"24 = 6 x {processes} process(es) x {4 // processes} accumulated" in printed
    ours, theirs = metrics(tmp_path, "loss"), metrics(finished[0], "loss")
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-4)


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
    assert "was trained with norm_pix_loss=False, this run uses True" in printed
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
        (["--effective_batch_size", "100"], "The effective batch size 100 is not a multiple of 64"),
    ],
)
def test_pretraining__mistakes_are_told(tmp_path, arguments, message):
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    printed = run(SCRIPT, *arguments, "--output_dir", tmp_path / "run", code=1)
    assert message in printed
