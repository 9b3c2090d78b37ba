# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pre-trains a masked autoencoder.

    python examples/run_pretraining.py                                          # embedded images, minutes on a CPU
    python examples/run_pretraining.py --data path/to/images --output_dir out   # ViT-B/16 on your images
    python examples/run_pretraining.py --data path/to/images --dry_run          # how fast, how much memory, how long
    python examples/run_pretraining.py src/hf_mae/training/recipes/pretrain_imagenet.yaml --data path/to/imagenet
    accelerate launch --config_file examples/accelerate/eight_gpus.yaml examples/run_pretraining.py ...
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/run_pretraining.py ...   # two processes on a CPU

A recipe is a YAML file of the same names as the flags; flags override it. The same command continues a run that was
interrupted, on any number of processes. `--output_dir` ends up with the model, its image processor, card, log and a
sheet of reconstructions. SIGINT (Ctrl-C), SIGTERM and SIGUSR1 save and end the run with the status 128 + signal.
docs/training.md tells the rest.
"""

import math
import os
import resource
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.data.datasets import PretrainingDataset, channel_statistics, collate
from hf_mae.data.decoding import decoder_name
from hf_mae.data.sampling import SampleOrder, StepBatchSampler, check_readers, default_num_workers
from hf_mae.data.sources import ImageSource, open_images
from hf_mae.evaluation.monitoring import Evaluation
from hf_mae.evaluation.visualization import reconstruction_sheet
from hf_mae.publishing import HubPush, link_files, write_model_card
from hf_mae.training.arguments import config_changes, parse_arguments, recipe_of, setting
from hf_mae.training.checkpointing import (
    check_output_dir,
    delete_run,
    latest_checkpoint,
    load_optimizer,
    load_training_state,
    load_weights,
    save_checkpoint,
)
from hf_mae.training.distributed import gather_model, has_bf16, shard_model
from hf_mae.training.optimization import (
    default_effective_batch_size,
    learning_rate_at,
    parameter_groups,
    scaled_learning_rate,
)
from hf_mae.training.run_log import MetricsLog, SampleLog, Throughput, UnreadableImages, run_record, save_record
from hf_mae.training.step_guard import StepGuard, StopSignals

SAMPLE_RECIPE = Path(__file__).parents[1] / "src/hf_mae/training/recipes" / "fashion_mnist_sample.yaml"

# Settings that may differ when a run is continued; all others make it another run.
MAY_CHANGE = {
    "output_dir",
    "data",  # may have moved: the fingerprint tells whether it is the same
    "streaming",
    "compute_statistics",  # what was computed is in the checkpoint
    "per_device_train_batch_size",
    "bf16",
    "gradient_checkpointing",
    "torch_compile",
    "dataloader_num_workers",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "on_save_error",
    "eval_steps",
    "eval_images",
    "max_unreadable",
    "max_bad_steps",
    "log_samples",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "dry_run",
    "resume",
    "overwrite_output_dir",
}

# Settings that tell of a machine and its folders, not of a run: not part of the recipe that is left with the model.
MACHINE = {"output_dir", "data", "model_name_or_path", "resume", "overwrite_output_dir", "dry_run", "log_samples"}

AT_LEAST_1 = (
    *("views_per_image", "per_device_train_batch_size", "effective_batch_size", "max_bad_steps"),
    *("logging_steps", "save_steps", "save_total_limit", "eval_steps", "eval_images"),
)


@dataclass
class PretrainingArguments:
    output_dir: str = setting("mae-pretrained", "Folder for checkpoints and the final model.")
    data: str | None = setting(None, "Folder, .tar or .parquet file, Hub name. Nothing: the embedded images.")
    streaming: bool = setting(False, "Read a data set of the Hub over the network, without downloading it first.")
    max_unreadable: float = setting(0.1, "Share of the images that may be unreadable; past it the run ends.")
    model_name_or_path: str | None = setting(None, "Checkpoint to start from. Nothing: fresh weights of --preset.")
    preset: str = setting("base", "tiny, small, base, large or huge.")
    image_size: int | None = setting(None, "Pixels of the crops, if not the model's.")
    patch_size: int | None = setting(None, "Pixels of a patch, if not the preset's.")
    num_channels: int | None = setting(None, "Channels of the images, if not the model's.")
    mask_ratio: float | None = setting(None, "Share of hidden patches, if not the model's.")
    norm_pix_loss: bool | None = setting(None, "Predict normalised patches. Nothing: true, or as the checkpoint does.")
    config_overrides: str | None = setting(None, "Other fields of MAEConfig: 'hidden_size=128,num_hidden_layers=4'.")
    image_mean: list[float] | None = setting(None, "Mean per channel in [0, 1], if not ImageNet's.")
    image_std: list[float] | None = setting(None, "Deviation per channel, if not ImageNet's.")
    compute_statistics: bool = setting(False, "Take mean and deviation from (10,000 of) the images.")
    crop_scale_min: float = setting(0.2, "Least share of an image that a random crop keeps.")
    horizontal_flip: bool = setting(True, "Mirror half of the crops.")
    color_jitter: float = setting(0.0, "Strength of random brightness, contrast and saturation, in [0, 1].")
    views_per_image: int = setting(1, "Crops taken of one decode; each counts as a sample of the epoch.")
    num_train_epochs: float = setting(400.0, "Crops per image in the run, unless --max_steps is given.")
    max_steps: int = setting(-1, "Optimizer steps.")
    per_device_train_batch_size: int = setting(64, "Images of one forward pass on one device at most.")
    effective_batch_size: int | None = setting(
        None, "Images of a step over all devices; accumulation follows. Nothing: 4096, or less for few images."
    )
    base_learning_rate: float = setting(1.5e-4, "Rate per 256 images of the effective batch.")
    learning_rate: float | None = setting(None, "Absolute rate, in place of --base_learning_rate.")
    warmup_ratio: float = setting(0.05, "Share of the steps with a rising rate.")
    weight_decay: float = setting(0.05, "Of all parameters that are not one-dimensional.")
    adam_beta1: float = setting(0.9, "AdamW's first beta.")
    adam_beta2: float = setting(0.95, "AdamW's second beta.")
    max_grad_norm: float = setting(0.0, "Clip gradients to this norm; 0, as in the paper: do not.")
    max_bad_steps: int = setting(10, "So many steps in a row without finite loss: back to the last checkpoint.")
    seed: int = setting(0, "Of weights, order, crops and masks.")
    bf16: bool | None = setting(None, "Nothing: where the device is a GPU that has it.")
    gradient_checkpointing: bool = setting(False, "Less memory, a third slower.")
    torch_compile: bool = setting(False, "Faster after the minutes that compiling takes.")
    dataloader_num_workers: int | None = setting(None, "Nothing: one per CPU core and process, at most 16.")
    logging_steps: int = setting(10, "Steps between lines of metrics.jsonl.")
    save_steps: int = setting(1000, "Steps between checkpoints.")
    save_total_limit: int = setting(2, "Checkpoints to keep.")
    on_save_error: Literal["continue", "stop"] = setting("continue", "What to do when the disk is full.")
    eval_steps: int | None = setting(None, "Steps between evaluations and sheets. Nothing: ten in a run.")
    eval_images: int = setting(5000, "So many neighbours at most; of the held-out images a fifth of it.")
    report_to: str | None = setting(None, "tensorboard, trackio or wandb, beside metrics.jsonl.")
    log_samples: bool = setting(False, "Write index, crop box and mask of every sample to samples-<process>.jsonl.")
    push_to_hub: bool = setting(False, "Push model, card and log to the Hub; needs `hf auth login` or HF_TOKEN.")
    hub_model_id: str | None = setting(None, "Name there. Nothing: that of --output_dir.")
    hub_private_repo: bool | None = setting(None, "Whether a new repository is private.")
    hub_strategy: Literal["end", "every_save"] = setting("end", "When to push; every_save: in the background.")
    dry_run: bool = setting(False, "Take a few steps, tell images/s, memory and hours, leave nothing.")
    resume: Literal["auto", "never"] = setting(
        "auto", "auto: continue a run that is in --output_dir; never: refuse to."
    )
    overwrite_output_dir: bool = setting(False, "Delete a run that is in --output_dir.")

    def __post_init__(self):
        for name in AT_LEAST_1:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("max_unreadable", "color_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must be in [0, 1], got {getattr(self, name)}.")


def build_model(args: PretrainingArguments) -> tuple[MAEForPreTraining, MAEImageProcessor]:
    """A fresh model or one to continue from, and its image processor."""
    names = ("image_size", "patch_size", "num_channels", "mask_ratio", "norm_pix_loss")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    changes.update(config_changes(args.config_overrides))
    statistics = {"image_mean": args.image_mean, "image_std": args.image_std}
    if args.model_name_or_path:
        model = MAEForPreTraining.from_pretrained(args.model_name_or_path, dtype=torch.float32, **changes)
        if not args.compute_statistics:  # else they would be in the way of another number of channels
            processor = MAEImageProcessor.from_pretrained(args.model_name_or_path)
            statistics = {name: value or getattr(processor, name) for name, value in statistics.items()}
    else:
        model = MAEForPreTraining(MAEConfig.from_preset(args.preset, **{"norm_pix_loss": True, **changes}))
    config = model.config
    return model, MAEImageProcessor.for_image_size(config.image_size, num_channels=config.num_channels, **statistics)


def from_main(accelerator: Accelerator, function):
    """Calls a function in the main process alone; all get its result, or its error."""
    outcome = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except (OSError, ValueError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def start_accelerator(args: PretrainingArguments) -> Accelerator:
    """Devices, processes, precision and trackers."""
    name, available = args.report_to, [tracker.value for tracker in get_available_trackers()]
    if name is not None and name not in available:
        raise ValueError(f"--report_to {name}: Accelerate knows no such tracker, or `pip install {name}` is missing.")
    if args.bf16 is None:
        args.bf16 = has_bf16()
    return Accelerator(
        mixed_precision="bf16" if args.bf16 else "no",
        log_with=name,
        project_dir=args.output_dir,
        # The main process may be busy for long: listing a million files, hashing a large checkpoint.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=30))],
    )


def loader_workers(args: PretrainingArguments, accelerator: Accelerator, images: ImageSource) -> int:
    """As many as are asked for or suit the machine, and the source if it is read over the network."""
    workers = args.dataloader_num_workers
    if workers is None:  # on a CPU the model has better use for the cores
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        workers = 0 if accelerator.device.type == "cpu" else default_num_workers(local_processes)
        if args.streaming and images.row_groups is not None:
            workers = min(workers, len(images.row_groups) // accelerator.num_processes)
    if args.streaming:
        check_readers(images, accelerator.num_processes, workers)
    return workers


def peak_memory(device: torch.device) -> str:
    """Of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB of GPU memory"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of memory"


def wait_for(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def end(accelerator: Accelerator):
    """Closes trackers and processes."""
    accelerator.wait_for_everyone()
    # gloo's thread drops its last tensors only with Python's lock, which the exit holds while it joins that thread.
    time.sleep(0.2)
    accelerator.end_training()


def show_sheet(accelerator: Accelerator, sheet, step: int):
    """Hands a picture to the trackers that take some."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"reconstructions": np.array(sheet)[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"reconstructions": [sheet]}, step=step)


def main():
    args = parse_arguments(PretrainingArguments, __doc__, SAMPLE_RECIPE)
    logging.disable_progress_bar()  # of loading and saving weights; the run has one of its own
    if args.dry_run:  # the run is the same, in a folder that is thrown away
        scratch = tempfile.TemporaryDirectory(prefix="hf_mae-dry-run-")
        args.output_dir = scratch.name
    stop_signals = StopSignals()
    accelerator = start_accelerator(args)
    device, is_main, output_dir = accelerator.device, accelerator.is_main_process, Path(args.output_dir)
    share = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}

    # ------------------------------------------------------------------------------------------------------------------
    # What to train on, and how long
    train_images, test_images = (open_images(args.data, split, args.streaming) for split in ("train", "test"))
    batch_size = args.effective_batch_size or default_effective_batch_size(len(train_images))
    steps_per_epoch = len(train_images) / batch_size  # an epoch is as many crops as there are images
    max_steps = args.max_steps if args.max_steps > 0 else max(round(args.num_train_epochs * steps_per_epoch), 1)
    warmup_steps = round(args.warmup_ratio * max_steps)
    learning_rate = args.learning_rate or scaled_learning_rate(args.base_learning_rate, batch_size)
    eval_steps = args.eval_steps or max(max_steps // 10, 1)
    samples_of_run = max_steps * batch_size
    if args.dry_run:  # accumulation changes neither speed nor memory
        warm_up, max_steps = (2, 7) if device.type == "cpu" else (10, 50)
        batch_size = min(batch_size, args.per_device_train_batch_size * accelerator.num_processes)

    # ------------------------------------------------------------------------------------------------------------------
    # Where the run stands
    recipe = {name: value for name, value in asdict(args).items() if name not in MAY_CHANGE}
    recipe.update(effective_batch_size=batch_size, num_images=len(train_images), fingerprint=train_images.fingerprint)
    if is_main and args.overwrite_output_dir:
        delete_run(output_dir)
    checkpoint = from_main(accelerator, lambda: check_output_dir(output_dir, recipe, resume=args.resume == "auto"))
    state = load_training_state(checkpoint) if checkpoint else {"step": 0, "seconds": 0.0}
    if state["step"] == max_steps and (output_dir / "run.json").exists():
        accelerator.print(f"The run in {output_dir} is finished: {max_steps} steps. Nothing to do.")
        return
    record = run_record(recipe, train_images)
    pushing = is_main and args.push_to_hub and not args.dry_run
    hub = HubPush(output_dir, args.hub_model_id, args.hub_private_repo) if pushing else None

    # ------------------------------------------------------------------------------------------------------------------
    # Model, optimizer, loaders. The order of samples is a function of seed and step: nothing of it was saved.
    workers = loader_workers(args, accelerator, train_images)
    torch.manual_seed(args.seed)
    if checkpoint:
        plain_model = MAEForPreTraining.from_pretrained(checkpoint, dtype=torch.float32)
        image_processor = MAEImageProcessor.from_pretrained(checkpoint)
    else:
        plain_model, image_processor = build_model(args)
        if args.compute_statistics:
            channels = plain_model.config.num_channels
            image_processor.image_mean, image_processor.image_std = from_main(
                accelerator, lambda: channel_statistics(train_images, channels, num_workers=workers)
            )
    config = plain_model.config
    if args.gradient_checkpointing:
        plain_model.gradient_checkpointing_enable({"use_reentrant": False})
    if accelerator.distributed_type == DistributedType.FSDP:
        model = shard_model(plain_model.train().to(device), args.bf16)
    else:
        model = accelerator.prepare(plain_model.train())
    groups = parameter_groups(plain_model, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(args.adam_beta1, args.adam_beta2), fused=True)
    if args.torch_compile:
        model.compile()
    if checkpoint:
        load_optimizer(checkpoint, plain_model, optimizer)

    (height, width), (rows, columns) = image_processor.crop_height_width, config.grid_size
    dataset = PretrainingDataset(
        train_images,
        (height, width),
        rows * columns,
        num_channels=config.num_channels,
        crop_scale=(args.crop_scale_min, 1.0),
        horizontal_flip=args.horizontal_flip,
        color_jitter=args.color_jitter,
        seed=args.seed,
    )
    order = SampleOrder(train_images, args.seed, args.views_per_image, batch_size)
    loader_options = {"num_workers": workers, "worker_init_fn": StopSignals.ignore, "pin_memory": device.type == "cuda"}

    def batches_from(step: int) -> tuple[StepBatchSampler, DataLoader]:
        sampler = StepBatchSampler(order, batch_size, args.per_device_train_batch_size, range(step, max_steps), **share)
        prefetch = {"prefetch_factor": 4} if workers else {}
        return sampler, DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **prefetch, **loader_options)

    sampler, loader = batches_from(state["step"])
    evaluation = Evaluation(
        train_images,
        test_images,
        image_processor,
        args.eval_images,
        args.per_device_train_batch_size,
        seed=args.seed,
        **share,
        **loader_options,
    )
    count = min(24, len(evaluation.images))
    sheet_images = [evaluation.images[n * len(evaluation.images) // count]["pixel_values"] for n in range(count)]
    sheet_noise = torch.rand(count, rows * columns, generator=torch.Generator().manual_seed(args.seed)).to(device)

    def sheet():
        with accelerator.autocast(), torch.compiler.set_stance("force_eager"):  # compiling pays for many calls
            return reconstruction_sheet(plain_model, image_processor, torch.stack(sheet_images), noise=sheet_noise)

    # ------------------------------------------------------------------------------------------------------------------
    # What was chosen
    parameters = sum(parameter.numel() for parameter in plain_model.parameters()) / 1e6
    classes = "no labels" if train_images.labels is None else f"{len(np.unique(train_images.labels))} classes"
    statistics = (image_processor.image_mean, image_processor.image_std)
    mean, deviation = (", ".join(f"{value:.3g}" for value in values) for values in statistics)
    faster = "" if decoder_name() == "simplejpeg" else " (pip install simplejpeg: faster)"
    accelerator.print(
        f"Images   {len(train_images):,} from {train_images.name}, {classes}; mean {mean}, deviation {deviation}\n"
        f"Model    {parameters:.1f} M parameters, {height} x {width} pixels, {rows} x {columns} patches, "
        f"{config.mask_ratio:.0%} hidden, target: {'normalised patches' if config.norm_pix_loss else 'pixels'}\n"
        f"Batch    {batch_size} over {accelerator.num_processes} process(es), {sampler.accumulation} accumulated"
        f"{f', {args.views_per_image} views of an image' if args.views_per_image > 1 else ''}"
        f"{'' if args.effective_batch_size else ' (chosen for the number of images)'}\n"
        f"Rate     {learning_rate:.3g}, {warmup_steps} steps of warm-up, then half a cosine\n"
        f"Steps    {max_steps:,}, {max_steps / steps_per_epoch:.1f} epochs\n"
        f"Device   {device}, {'bf16' if args.bf16 else 'float32'}, {workers} loader worker(s), "
        f"JPEGs by {decoder_name()}{faster}\n"
        f"Output   {output_dir}" + (f", going on from {checkpoint.name}" if checkpoint else "")
    )
    if is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        metrics = MetricsLog(output_dir, state["step"])
        (output_dir / "sheets").mkdir(exist_ok=True)
    accelerator.wait_for_everyone()
    unreadable = UnreadableImages(output_dir, len(train_images), args.max_unreadable)
    sample_log = SampleLog(output_dir, accelerator.process_index) if args.log_samples else None
    accelerator.init_trackers("hf_mae", {name: str(value) for name, value in recipe.items()})

    # ------------------------------------------------------------------------------------------------------------------
    # The run
    started = time.perf_counter()

    def log(step: int, **values):
        if is_main:
            metrics.write(step, **values)
        accelerator.log(values, step=step)

    def say(text: str):
        if is_main:
            bar.write(text)

    def save(step: int) -> bool:
        standing = {**record, "seconds": state["seconds"] + time.perf_counter() - started}
        problem = None
        try:
            limit = args.save_total_limit
            save_checkpoint(output_dir, step, plain_model, image_processor, optimizer, standing, limit)
        except OSError as error:
            problem = error
            say(str(error))
        return not any(gather_object([problem is not None]))

    def describe(folder: Path):
        """Writes what others want to know of the run so far: record, recipe, card."""
        hours = (state["seconds"] + time.perf_counter() - started) / 3600
        standing = {"held_out": evaluation.held_out, "metrics": metrics.last(), "hours": hours}
        save_record(folder, {**record, **standing})
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_of(args, MACHINE), sort_keys=False))
        write_model_card(folder, args.hub_model_id)

    def stage(folder: Path):
        """Puts together what to push of the last checkpoint."""
        link_files(output_dir / f"checkpoint-{step}", folder)
        shutil.copy2(metrics.path, folder)
        for picture in sorted((output_dir / "sheets").glob("step-*.png"))[-1:]:
            shutil.copy2(picture, folder / "reconstructions.png")
        describe(folder)

    interval = 0.1 if sys.stderr.isatty() else 30  # seconds: in a log file every update is a line
    options = {"unit": "step", "dynamic_ncols": True, "mininterval": interval, "maxinterval": max(interval, 10)}
    bar = tqdm(total=max_steps, initial=state["step"], disable=not is_main, **options)
    guard, batches = StepGuard(optimizer, args.max_grad_norm), iter(loader)
    step, logged_step, found, skipped, gone_back = state["step"], state["step"], {}, 0, []
    meter = Throughput()
    while step < max_steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, max_steps, warmup_steps, learning_rate)
        # Dropout, if there is any, is a function of the position too.
        torch.manual_seed(
            int(np.random.SeedSequence([args.seed, step, accelerator.process_index]).generate_state(1)[0])
        )
        loss_of_step = torch.zeros((), device=device)
        for part in range(sampler.accumulation):
            with meter.waiting():
                batch = next(batches)
            found.update(batch["unreadable"])
            if sample_log:
                sample_log.write(step, batch, int(rows * columns * (1 - config.mask_ratio)))
            pixel_values, noise = (batch[name].to(device, non_blocking=True) for name in ("pixel_values", "noise"))
            pixel_values = image_processor.rescale_and_normalize(pixel_values)
            # Shares may differ by an image, and the gradients of processes are averaged.
            weight = len(pixel_values) * accelerator.num_processes / batch_size
            with nullcontext() if part == sampler.accumulation - 1 else accelerator.no_sync(model):
                with accelerator.autocast():
                    loss = model(pixel_values=pixel_values, noise=noise).loss * weight
                accelerator.backward(loss)
            loss_of_step += loss.detach()
        guard.check(loss_of_step, stop_signals.number)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()

        last, stop_signal, problem = step == max_steps, guard.stop_signal, None
        if args.dry_run:
            if stop_signal:
                sys.exit(128 + stop_signal)
            if step == warm_up:
                wait_for(device)
                meter.read(0)
            continue
        if step % args.logging_steps == 0 or last or stop_signal:
            values, streak = guard.read()
            skipped += values["skipped"]
            values.update(skipped=skipped, learning_rate=group["lr"], epoch=step / steps_per_epoch)
            values.update(meter.read((step - logged_step) * batch_size))
            logged_step = step
            log(step, **values)
            short = {"loss": f"{values.get('loss', math.nan):.4f}", "lr": f"{group['lr']:.2e}"}
            short.update(wait=f"{values['data_wait']:.0%}", img_s=f"{values['images_per_second']:.0f}")
            bar.set_postfix(short, refresh=False)
            for line in unreadable.add({k: v for part in gather_object([found]) for k, v in part.items()}, is_main):
                line = line.replace("\t", ": ").encode(errors="backslashreplace").decode()  # names of any bytes
                say(f"Skipped, can't be read: {line}")
            found, problem = {}, unreadable.problem()
            if streak >= args.max_bad_steps:
                checkpoint = from_main(accelerator, lambda: latest_checkpoint(output_dir))
                gone_back.append(checkpoint)
                if checkpoint is None or gone_back.count(checkpoint) > 2:
                    raise FloatingPointError(
                        f"Loss or gradient was not finite in {streak} steps in a row up to step {step}"
                        + (f", also after going back to {checkpoint.name} twice" if checkpoint else "")
                        + ". Start anew in another --output_dir with a lower learning rate, --max_grad_norm 1 or "
                        "--bf16 false."
                    )
                load_weights(checkpoint, plain_model)
                load_optimizer(checkpoint, plain_model, optimizer)
                step = logged_step = load_training_state(checkpoint)["step"]
                say(f"Loss or gradient was not finite in {streak} steps in a row: back to {checkpoint.name}.")
                bar.n = step
                if is_main:
                    metrics = MetricsLog(output_dir, step)
                batches = iter(batches_from(step)[1])
                guard = StepGuard(optimizer, args.max_grad_norm)
                continue
        with meter.paused():
            if (step % eval_steps == 0 or last) and not stop_signal:
                with accelerator.autocast(), torch.compiler.set_stance("force_eager"):
                    results = evaluation(plain_model)
                picture = sheet()
                log(step, **results)
                say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in results.items()))
                if advice := meter.advice(workers, args.views_per_image):
                    say(advice)
                if is_main:
                    show_sheet(accelerator, picture, step)
                    with suppress(OSError):  # a full disk is told where it matters, when saving
                        picture.save(output_dir / "sheets" / f"step-{step:07}.png")
            saved = True
            # Not within a row of bad steps: going back should lead to before it.
            if last or stop_signal or problem or (step % args.save_steps == 0 and guard.streak == 0):
                saved = save(step)
                if hub and saved and args.hub_strategy == "every_save" and not last:
                    hub.start(stage, f"Step {step} of {max_steps}")
            for line in hub.news() if hub else ():
                say(line)
        if stop_signal or problem or not saved and (last or args.on_save_error == "stop"):
            bar.close()
            end(accelerator)
            if not saved:
                sys.exit("The run ends without having saved its last steps.")
            accelerator.print(f"Stopped and saved at step {step}. The same command goes on from there.")
            sys.exit(problem if problem else 128 + stop_signal)
    bar.close()
    if args.dry_run:
        wait_for(device)
        speed = meter.read((max_steps - warm_up) * batch_size)
        accelerator.print(
            f"Dry run  {speed['images_per_second']:,.1f} images/s, {speed['data_wait']:.0%} of the time waiting for "
            f"data, {peak_memory(device)} per process; the run would take "
            f"{samples_of_run / speed['images_per_second'] / 3600:,.1f} hours, without evaluations"
        )
        end(accelerator)
        return

    # ------------------------------------------------------------------------------------------------------------------
    # What it leaves
    picture = sheet()
    whole = gather_model(plain_model)
    if is_main:
        whole.eval().save_pretrained(output_dir)
        image_processor.save_pretrained(output_dir)
        picture.save(output_dir / "reconstructions.png")
        describe(output_dir)
        print(f"Done: model, card, log and reconstructions.png are in {output_dir}.")
        if hub:
            print(*hub.push(output_dir, f"{max_steps} steps of pre-training"), sep="\n")
    end(accelerator)


if __name__ == "__main__":
    main()
