# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What `gpu.py` measures. Each function takes a case and an `add`, which keeps values as soon as they are there.

Without a GPU the same code runs on the CPU, so that nothing but the device is new on the day there is one.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from measuring import in_turns, matmul_rate, ratio, seconds
from peers import all_peers, ours
from PIL import Image
from training_step import Step, inputs, operations

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor, pretrain
from hf_mae.pretraining.run import PretrainingRun
from hf_mae.training.arguments import text_of_changes
from hf_mae.training.distributed import has_bf16

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16  # of autocast
AT_ONCE = max((os.cpu_count() or 1) // 3, 1)  # processes that share the machine, of what is not timed
ROOT = Path(__file__).parents[1]
REFERENCE = "timm-block reference"  # the official algorithm, written out in peers.py

# A run that is over in seconds on any device.
SHORT_RUN = {"preset": "tiny", "max_steps": 12, "effective_batch_size": 32, "per_device_train_batch_size": 16}
SHORT_RUN.update(logging_steps=4, save_steps=6, eval_steps=6, eval_images=50)
SMALL_FIELDS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
SMALL_FIELDS.update(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
SMALL_FIELDS.update(decoder_intermediate_size=64)
BATCH_SIZES = {"tiny": 1024, "small": 512, "base": 256, "large": 128, "huge": 64}

Add = Callable[..., None]


def run_settings(smoke: bool) -> dict:
    if not smoke:
        return SHORT_RUN
    overrides = text_of_changes(SMALL_FIELDS)
    return {**SHORT_RUN, "max_steps": 2, "logging_steps": 1, "config_overrides": overrides, "dataloader_num_workers": 0}


def make_model(preset: str, smoke: bool) -> MAEForPreTraining:
    torch.manual_seed(0)
    fields = {"image_size": 32, **SMALL_FIELDS} if smoke else {}
    return MAEForPreTraining(MAEConfig.from_preset(preset, norm_pix_loss=True, **fields))


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


# ----------------------------------------------------------------------------------------------------------------------
# The device: context, copies, image processor


def measure_device(case: str, add: Add, smoke: bool):
    """Measures the device itself, the image processor on it, or where a step of training waits for it."""
    {"context": measure_context, "processor": measure_processor, "waits": measure_waits}[case](add, smoke)


def measure_context(add: Add, smoke: bool):
    """Rates of the device, and whether copies from pinned memory run while the host goes on."""
    started = time.perf_counter()
    torch.zeros(1, device=DEVICE)
    synchronize()
    add(context_seconds=time.perf_counter() - started, bf16=has_bf16(DEVICE))
    if CUDA:
        properties = torch.cuda.get_device_properties(0)
        add(
            name=properties.name,
            capability=[properties.major, properties.minor],
            memory_gb=properties.total_memory / 1e9,
        )
        add(arch_list=torch.cuda.get_arch_list(), cuda=torch.version.cuda, nccl=list(torch.cuda.nccl.version()))
    for dtype in (torch.float32, torch.bfloat16):
        if CUDA or dtype == torch.float32:
            add(**{f"matmul_tflops_{dtype}".replace("torch.", ""): matmul_rate(dtype, DEVICE) / 1e12})
    size = 2**20 if smoke else 2**28
    there, here = torch.empty(size, dtype=torch.uint8, device=DEVICE), torch.empty(size, dtype=torch.uint8)
    sources = {
        "on the device": torch.empty_like(there),
        "pageable": here,
        "pinned": here.pin_memory() if CUDA else here,
    }
    for name, source in sources.items():
        taken = min(seconds(partial(there.copy_, source, non_blocking=True), DEVICE) for _ in range(5))
        before = time.perf_counter()
        there.copy_(source, non_blocking=True)
        returned = time.perf_counter() - before
        synchronize()
        add(**{f"copy, {name}": {"gb_per_second": size / taken / 1e9, "share_of_host_time": returned / taken}})


def measure_processor(add: Add, smoke: bool):
    """Images of bytes on the device: same values as on the CPU, and the rate of normalising a batch."""
    processor = MAEImageProcessor.for_image_size(32 if smoke else 224)
    image = (torch.linspace(0, 255, 3 * 300 * 400).reshape(3, 300, 400)).byte()
    expected = processor(image, return_tensors="pt").pixel_values
    for name, given in {"image on the device": image.to(DEVICE), "image to be moved": image}.items():
        pixels = processor(given, return_tensors="pt", device=DEVICE).pixel_values
        difference = (pixels.cpu() - expected).abs().max().item()
        add(**{name: {"device": str(pixels.device), "largest_difference": difference}})
    batch = torch.zeros(8 if smoke else 256, 3, *processor.crop_height_width, dtype=torch.uint8, device=DEVICE)
    taken = min(seconds(partial(processor.rescale_and_normalize, batch), DEVICE) for _ in range(5))
    add(images_normalized_per_second=len(batch) / taken)


# ----------------------------------------------------------------------------------------------------------------------
# Runs: waits in the step, processes


def measure_waits(add: Add, smoke: bool):
    """Counts by line how often a step of pre-training makes the host wait for the device."""
    found, take_step = Counter(), PretrainingRun.take_step

    def watched(run: PretrainingRun):
        with warnings.catch_warnings(record=True) as caught, _sync_debug_mode():
            warnings.simplefilter("always")
            take_step(run)
        waits = [warning for warning in caught if "prototype" not in str(warning.message)]  # that the mode is new
        found.update(f"{Path(each.filename).name}:{each.lineno} {str(each.message)[:80]}" for each in waits)

    with mock.patch.object(PretrainingRun, "take_step", watched), tempfile.TemporaryDirectory() as folder:
        result = pretrain(None, folder, **run_settings(smoke))
    add(waits=dict(found), metrics=result.metrics)


@contextmanager
def _sync_debug_mode() -> Iterator[None]:
    """Makes torch warn of each wait."""
    if CUDA:
        torch.cuda.set_sync_debug_mode("warn")
    yield
    if CUDA:
        torch.cuda.set_sync_debug_mode("default")


PROCESS_VARIABLES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
PROCESS_VARIABLES.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
ENGINES = {
    "alone": {},
    "ddp": PROCESS_VARIABLES,
    "fsdp2": {**PROCESS_VARIABLES, "MASTER_PORT": "29518", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
}


def measure_engine(case: str, add: Add, smoke: bool):
    """Pre-trains for some steps in one process: alone, with DDP or with FSDP2. The losses should be the same."""
    variables = ENGINES[case] if CUDA else {**ENGINES[case], "ACCELERATE_USE_CPU": "true"}
    with mock.patch.dict(os.environ, variables), tempfile.TemporaryDirectory() as folder:
        result = pretrain(None, folder, **run_settings(smoke))
        add(metrics=result.metrics)
    if CUDA:
        add(peak_memory_gb=torch.cuda.max_memory_allocated() / 1e9)


# ----------------------------------------------------------------------------------------------------------------------
# Commands

_MODEL = str(ROOT / "model_cards" / "mae-fashion-mnist")
_STEPS = ["--max_steps", "12"]
# In short on the embedded images; what they print, warnings among it, is kept.
COMMANDS = {
    "pretrain": ["pretrain", *_STEPS],
    "pretrain tiny": ["pretrain", "--preset", "tiny", *_STEPS],  # for which the number of images is found by trials
    "pretrain muon": ["pretrain", "--preset", "tiny", "--optimizer", "muon", *_STEPS],
    "pretrain muon compiled": ["pretrain", "--preset", "tiny", "--optimizer", "muon", "--torch_compile", *_STEPS],
    "pretrain pixio": ["pretrain", "--preset", "pixio-tiny", "--image_size", "32", *_STEPS],
    "pretrain in a time budget": ["pretrain", "--time_budget", "60s"],
    "finetune": ["finetune", "--model_name_or_path", _MODEL, *_STEPS],
    "finetune mixed": ["finetune", "--model_name_or_path", _MODEL, "--mixup", "0.8", "--cutmix", "1", *_STEPS],
    "segment": ["segment", "--model_name_or_path", _MODEL, *_STEPS],
    "detect": ["detect", "--model_name_or_path", _MODEL, *_STEPS],
    "probe": ["probe", "--model_name_or_path", _MODEL, "--fast", "--num_train_epochs", "2"],
    "probe attentive": [
        *["probe", "--model_name_or_path", _MODEL, "--fast", "--num_train_epochs", "2", "--pooling", "attentive"]
    ],
    "evaluate": ["evaluate", "--model", _MODEL, "--max_train_images", "500"],
    "features": ["features", "--model_name_or_path", _MODEL, "--output", "features.parquet"],
    "score": ["score", "--model", _MODEL, "--output", "scores.parquet"],
    "reconstruct": ["reconstruct", _MODEL, "--anomaly"],
    "attention": ["attention", _MODEL],
}


def run_command(case: str, add: Add, smoke: bool):
    """Runs a command of hf_mae as a user would, and keeps the end of what it prints."""
    command = [sys.executable, "-m", "hf_mae", *COMMANDS[case]]
    if COMMANDS[case][0] in ("pretrain", "finetune", "segment", "detect", "probe", "evaluate"):
        command += ["--output_dir", "out"]
    with tempfile.TemporaryDirectory() as folder:
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(
            command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines = [line for line in re.split("[\r\n]+", done.stdout) if "%|" not in line]  # no progress bars
        add(exit_status=done.returncode, printed="\n".join(lines)[-4000:])
    if done.returncode:
        raise SystemExit(f"{case} failed")


# ----------------------------------------------------------------------------------------------------------------------
# The training step


def compiled_loss(peer, smoke: bool, mode: str = "default"):
    """Returns a peer whose loss is compiled; in small it is traced only."""
    options = {"backend": "eager"} if smoke else {"mode": mode}
    return peer._replace(loss=torch.compile(peer.loss, **options))


def measure_compilation(case: str, add: Add, smoke: bool):
    """Compiles one implementation, and leaves the result in the cache of the machine for [`measure_peers`].

    Those who time compiled steps would otherwise spend most of their time on one core, compiling one after the other.
    `case` is a preset and the name of a peer: `base, hf_mae`.
    """
    preset, name = case.split(", ")
    model, batch_size = make_model(preset, smoke), 2 if smoke else BATCH_SIZES[preset]
    images, noise = inputs(model.config, batch_size, DEVICE)
    peers, missing = all_peers(model, None, [name])
    if name in missing:
        add(missing=missing[name])
        return
    peer = peers[name]
    peer.model.to(DEVICE)
    add(**try_step(compiled_loss(peer, smoke), images, noise)[1])


def measure_peers(case: str, add: Add, smoke: bool, compiled: bool = False):
    """Times a step of all implementations in turns, with the same weights, images and masks; `case` is a preset."""
    model, batch_size = make_model(case, smoke), 2 if smoke else BATCH_SIZES[case]
    images, noise = inputs(model.config, batch_size, DEVICE)
    peers, missing = all_peers(model, None)
    add(batch_size=batch_size, dtype=str(DTYPE), missing=missing)
    steps = {}
    for name in list(peers):  # the official algorithm has attention written out, which may need too much memory
        peer = peers.pop(name)
        peer.model.to(DEVICE)
        gflop = operations(peer, images[:1], noise[:1]) / 1e9
        step, problem = try_step(compiled_loss(peer, smoke) if compiled else peer, images, noise)
        add(**{name: {"gflop_per_image": gflop, **problem}})
        if step is not None:
            steps[name] = partial(step, images, noise)
            add(**{name: {"gflop_per_image": gflop, "peak_memory_gb": peak_of(step, steps[name])}})
    times = in_turns(steps, 2 if smoke else 10, 1, DEVICE)
    for name, values in times.items():
        add(**{name: {"images_per_second": batch_size / statistics.median(values), "seconds": values}})
        if REFERENCE in times:
            add(**{name: {"ratio_to_reference": ratio(values, times[REFERENCE])}})
    if CUDA:  # in bfloat16 CPUs may be very slow
        add(matmul_tflops=matmul_rate(DTYPE, DEVICE) / 1e12)


def try_step(peer, images: torch.Tensor, noise: torch.Tensor) -> tuple[Step | None, dict]:
    """Takes a first step. Returns it, or `None` and why it failed."""
    started = time.perf_counter()
    step = Step(peer, DTYPE, DEVICE, None)
    try:
        step(images, noise)
        synchronize()
    except torch.OutOfMemoryError:
        step.optimizer.zero_grad()
        torch.cuda.empty_cache()
        return None, {"failed": "out of memory"}
    return step, {"first_step_seconds": time.perf_counter() - started}


def peak_of(step: Step, call: Callable[[], None]) -> float | None:
    """Returns the GB that a step needs with its weights and optimizer state, without those of others on the device."""
    if not CUDA:
        return None
    state = sum(value.nbytes for values in step.optimizer.state.values() for value in values.values())
    own = state + sum(parameter.nbytes for parameter in step.model.parameters())
    synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (own + torch.cuda.max_memory_allocated() - before) / 1e9


def measure_option(case: str, add: Add, smoke: bool):
    """Times a step of ours with one option against the eager one: a compile mode, a bf16 residual stream."""
    preset = "base"
    mode = {"reduce-overhead": "reduce-overhead", "max-autotune": "max-autotune-no-cudagraphs"}.get(case, "default")
    images, noise = inputs(make_model(preset, smoke).config, 2 if smoke else BATCH_SIZES[preset], DEVICE)
    models = {"plain": make_model(preset, smoke), case: make_model(preset, smoke)}
    if "bf16 residual" in case:
        keep_residual_in_bf16(models[case])
    peers = {name: ours(model.to(DEVICE)) for name, model in models.items()}
    with torch.no_grad(), torch.autocast(DEVICE.type, DTYPE):
        add(losses={name: peer.loss(peer.model, images, noise).item() for name, peer in peers.items()})
    if case != "bf16 residual":
        peers[case] = compiled_loss(peers[case], smoke, mode)
    steps = {name: try_step(peer, images, noise) for name, peer in peers.items()}
    calls = {name: partial(step, images, noise) for name, (step, _) in steps.items() if step is not None}
    times = in_turns(calls, 2 if smoke else 10, 2, DEVICE)
    add(**{name: {**steps[name][1], "peak_memory_gb": peak_of(steps[name][0], calls[name])} for name in calls})
    for name, values in times.items():
        add(**{name: {"images_per_second": len(images) / statistics.median(values), "seconds": values}})
    if len(times) == 2:
        add(ratio_to_plain=ratio(times[case], times["plain"]))


def keep_residual_in_bf16(model: MAEForPreTraining):
    """Casts what enters the first blocks to bfloat16, so that all sums of residuals are in bfloat16."""
    cast = lambda module, args: (args[0].bfloat16(), *args[1:])  # noqa: E731
    for layers in (model.mae.layers, model.decoder.layers):
        layers[0].register_forward_pre_hook(cast)


def measure_small(case: str, add: Add, smoke: bool):
    """Times steps of runs with a small model on small images, how long the host takes to order them, and how long the
    device works on them.

    Where the host takes as long as the whole, it limits the speed. `case` has an optimizer, the images of a step
    and the mode of `torch.compile` or `eager`: `muon, 1024, reduce-overhead`.
    """
    optimizer, batch_size, mode = case.split(", ")
    fields = {"image_size": 32, "patch_size": 4, **(SMALL_FIELDS if smoke else {})}
    settings = {"preset": "tiny", "config_overrides": text_of_changes(fields)}
    settings.update(optimizer=optimizer, torch_compile_mode=None if mode == "eager" else mode, norm_pix_loss=True)
    batch_size = 16 if smoke else int(batch_size)
    settings.update(effective_batch_size=batch_size, per_device_train_batch_size=batch_size, eval_images=50)
    first, count, take_step, moments = *((1, 2) if smoke else (20, 30)), PretrainingRun.take_step, []

    def timed(run: PretrainingRun):
        if run.step == first:
            synchronize()
            moments.append(time.perf_counter())
        if run.step == first + count:
            moments.append(time.perf_counter())
            synchronize()
            moments.append(time.perf_counter())
            with torch.profiler.profile(acc_events=True) as profile:
                take_step(run)
                synchronize()
            add(device_seconds=_device_seconds(profile))
        else:
            take_step(run)

    # In small nothing is compiled.
    compiling = mock.patch.object(torch, "compile", lambda call, mode: call) if smoke else nullcontext()
    with mock.patch.object(PretrainingRun, "take_step", timed), compiling, tempfile.TemporaryDirectory() as folder:
        steps = dict.fromkeys(("max_steps", "logging_steps", "eval_steps"), first + count + 1)
        pictures = _pictures_of_noise(Path(folder) / "images", 400 if smoke else 4096)
        result = pretrain(pictures, Path(folder) / "out", **settings, **steps)
    start, ordered, ended = moments
    add(batch_size=batch_size, images_per_second=count * batch_size / (ended - start))
    add(seconds=(ended - start) / count, host_seconds=(ordered - start) / count, loss=result.metrics["loss"])


def _device_seconds(profile: torch.profiler.profile) -> float | None:
    """Returns how long kernels were at work; ranges that the profiler puts around several of them would count twice."""
    kind = torch.autograd.DeviceType.CUDA
    kernels = [each for each in profile.key_averages() if each.device_type == kind and not each.is_user_annotation]
    return sum(each.self_device_time_total for each in kernels) / 1e6 if CUDA else None


def _pictures_of_noise(folder: Path, count: int, side: int = 32) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def measure_batch_sizes(case: str, add: Add, smoke: bool):
    """Finds the batch from which images/s of eager steps no longer grow; `case` is a preset."""
    sizes = (2, 4) if smoke else (32, 64, 128, 256, 512, 1024, 2048)
    for batch_size in sizes:
        model = make_model(case, smoke)
        images, noise = inputs(model.config, batch_size, DEVICE)
        step, tried = try_step(ours(model), images, noise)
        if step is None:
            add(**{str(batch_size): tried})
            break
        call = partial(step, images, noise)
        values = in_turns({"": call}, 2 if smoke else 5, 1, DEVICE)[""]
        speed = batch_size / statistics.median(values)
        add(**{str(batch_size): {"images_per_second": speed, "peak_memory_gb": peak_of(step, call)}})


# ----------------------------------------------------------------------------------------------------------------------
# Data, tests


def measure_data(case: str, add: Add, smoke: bool):
    """Reads JPEG files of 500 x 375 while it trains; `case` is a preset."""
    from input_path import make_photographs  # needs `datasets`, which the other parts do without

    settings = {"preset": case, "dry_run": True, "per_device_train_batch_size": 256, "effective_batch_size": 256}
    settings.update({"torch_compile": CUDA} if not smoke else {**run_settings(True), "preset": case})
    pictures, copies = (4, 4) if smoke else (64, 64)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        made.mkdir()
        make_photographs(made, pictures, (60, 80) if smoke else (375, 500))
        for picture in list(made.iterdir()):
            for number in range(1, copies):
                os.link(picture, made / f"{picture.stem}-{number}.jpg")
        add(pictures=pictures * copies, cores=len(os.sched_getaffinity(0)))
        add(metrics=pretrain(made, Path(folder) / "out", **settings).metrics)


def run_tests(case: str, add: Add, smoke: bool):
    """Runs the test suite, and keeps the names of the tests that failed."""
    several = ["--numprocesses", str(AT_ONCE), "--dist", "loadfile"]
    chosen = ["tests/test_masking.py"] if smoke else ["-m", "not slow and not long", *several]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *chosen]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:  # as they come: the part may be cut off
        lines.append(line.rstrip())
        add(tail=lines[-60:], failed=[each for each in lines if each.startswith(("FAILED", "ERROR"))])
    add(exit_status=process.wait())
    if process.returncode not in (0, 1):  # 1: tests have failed, which is a result
        raise SystemExit("no tests were run")
