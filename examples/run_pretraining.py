# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pre-trains a masked autoencoder.

    python examples/run_pretraining.py                                          # embedded images, minutes on a CPU
    python examples/run_pretraining.py --data path/to/images --output_dir out   # ViT-B/16 on your images
    python examples/run_pretraining.py examples/recipes/pretrain_imagenet.yaml --data path/to/imagenet
    accelerate launch examples/run_pretraining.py ...                           # all GPUs of a machine
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/run_pretraining.py ...   # two processes on a CPU

A recipe is a YAML file of the same names as the flags; flags override it. The same command continues a run that was
interrupted. `--output_dir` ends up with the model, its image processor, card, log and a sheet of reconstructions.
"""

import argparse
import math
import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import yaml
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.utils import logging

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.data import PretrainingDataset, SampleOrder, StepBatchSampler, open_images
from hf_mae.evaluation import Evaluation
from hf_mae.hub import write_model_card
from hf_mae.optimization import learning_rate_at, parameter_groups, scaled_learning_rate
from hf_mae.training import (
    MetricsLog,
    check_output_dir,
    delete_run,
    load_optimizer,
    load_training_state,
    run_record,
    save_checkpoint,
    save_record,
)
from hf_mae.visualization import reconstruction_sheet

SAMPLE_RECIPE = Path(__file__).parent / "recipes" / "fashion_mnist_sample.yaml"


# Settings that may differ when a run is continued; all others make it another run.
MAY_CHANGE = {
    "output_dir",
    "per_device_train_batch_size",
    "bf16",
    "gradient_checkpointing",
    "torch_compile",
    "dataloader_num_workers",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "eval_images",
    "resume",
    "overwrite_output_dir",
}


def setting(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class PretrainingArguments:
    output_dir: str = setting("mae-pretrained", "Folder for checkpoints and the final model.")
    data: str | None = setting(None, "Folder, .parquet file or Hub name. Nothing: the embedded images.")
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
    crop_scale_min: float = setting(0.2, "Least share of an image that a random crop keeps.")
    num_train_epochs: float = setting(400.0, "Passes over the images, unless --max_steps is given.")
    max_steps: int = setting(-1, "Optimizer steps.")
    per_device_train_batch_size: int = setting(64, "Images of one forward pass on one device.")
    effective_batch_size: int | None = setting(None, "Images of a step over all devices. Nothing: no accumulation.")
    base_learning_rate: float = setting(1.5e-4, "Rate per 256 images of the effective batch.")
    learning_rate: float | None = setting(None, "Absolute rate, in place of --base_learning_rate.")
    warmup_ratio: float = setting(0.05, "Share of the steps with a rising rate.")
    weight_decay: float = setting(0.05, "Of all parameters that are not one-dimensional.")
    adam_beta1: float = setting(0.9, "AdamW's first beta.")
    adam_beta2: float = setting(0.95, "AdamW's second beta.")
    max_grad_norm: float = setting(0.0, "Clip gradients to this norm; 0, as in the paper: do not.")
    seed: int = setting(0, "Of weights, order, crops and masks.")
    bf16: bool | None = setting(None, "Nothing: where the device is a GPU that has it.")
    gradient_checkpointing: bool = setting(False, "Less memory, a third slower.")
    torch_compile: bool = setting(False, "Faster after the minutes that compiling takes.")
    dataloader_num_workers: int | None = setting(None, "Nothing: one per CPU core and process, at most 16.")
    logging_steps: int = setting(10, "Steps between lines of metrics.jsonl.")
    save_steps: int = setting(1000, "Steps between checkpoints.")
    save_total_limit: int = setting(2, "Checkpoints to keep.")
    eval_steps: int | None = setting(None, "Steps between evaluations. Nothing: ten in a run.")
    eval_images: int = setting(5000, "At most so many images for the evaluation, and as neighbours.")
    resume: Literal["auto", "never"] = setting(
        "auto", "auto: continue a run that is in --output_dir; never: refuse to."
    )
    overwrite_output_dir: bool = setting(False, "Delete a run that is in --output_dir.")


def parse_arguments(argv: list[str]) -> PretrainingArguments:
    """Defaults, overridden by a recipe (the first argument), overridden by flags. Without data: the sample's recipe."""
    parser = HfArgumentParser(
        PretrainingArguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipe = argv.pop(0) if argv and argv[0].endswith((".yaml", ".yml")) else None
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    if recipe is None and arguments.data is None:
        recipe = SAMPLE_RECIPE
    if recipe is None:
        return arguments
    settings = yaml.safe_load(Path(recipe).read_text())
    if unknown := sorted(set(settings) - set(asdict(arguments))):
        raise ValueError(f"{recipe} has settings that do not exist: {', '.join(unknown)}. See --help.")
    parser.set_defaults(**settings)
    return parser.parse_args_into_dataclasses(argv)[0]


def build_model(args: PretrainingArguments) -> tuple[MAEForPreTraining, MAEImageProcessor]:
    """A fresh model or one to continue from, and its image processor."""
    names = ("image_size", "patch_size", "num_channels", "mask_ratio", "norm_pix_loss")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.config_overrides:
        pairs = (pair.split("=", 1) for pair in args.config_overrides.split(","))
        changes.update({name.strip(): yaml.safe_load(value) for name, value in pairs})
    if unknown := [name for name in changes if not hasattr(MAEConfig(), name)]:
        raise ValueError(f"--config_overrides: MAEConfig has no field {', '.join(unknown)}.")
    statistics = {"image_mean": args.image_mean, "image_std": args.image_std}
    if args.model_name_or_path:
        model = MAEForPreTraining.from_pretrained(args.model_name_or_path, dtype=torch.float32, **changes)
        before = MAEConfig.from_pretrained(args.model_name_or_path).norm_pix_loss
        if model.config.norm_pix_loss != before:
            logging.get_logger("hf_mae").warning(
                f"{args.model_name_or_path} was trained with norm_pix_loss={before}, this run uses {not before}: its "
                "decoder has to learn another target. Leave --norm_pix_loss out to keep it."
            )
        processor = MAEImageProcessor.from_pretrained(args.model_name_or_path)
        statistics = {name: value or getattr(processor, name) for name, value in statistics.items()}
    else:
        model = MAEForPreTraining(MAEConfig.from_preset(args.preset, **{"norm_pix_loss": True, **changes}))
    config = model.config
    return model, MAEImageProcessor.for_image_size(config.image_size, num_channels=config.num_channels, **statistics)


def ignore_interrupts(worker_id: int):
    """For loader workers: Ctrl-C reaches them too, but the step that is on its way still needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main():
    args = parse_arguments(sys.argv[1:])
    logging.disable_progress_bar()  # of loading and saving weights; the run has one of its own
    use_bf16 = args.bf16 if args.bf16 is not None else torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    accelerator = Accelerator(mixed_precision="bf16" if use_bf16 else "no")
    is_main, output_dir = accelerator.is_main_process, Path(args.output_dir)

    # ------------------------------------------------------------------------------------------------------------------
    # What to train on, and how long
    train_images, test_images = open_images(args.data), open_images(args.data, "test")
    per_pass = args.per_device_train_batch_size * accelerator.num_processes
    batch_size = args.effective_batch_size or per_pass
    accumulation = batch_size // per_pass
    steps_per_epoch = len(train_images) / batch_size
    max_steps = args.max_steps if args.max_steps > 0 else max(round(args.num_train_epochs * steps_per_epoch), 1)
    warmup_steps = round(args.warmup_ratio * max_steps)
    learning_rate = args.learning_rate or scaled_learning_rate(args.base_learning_rate, batch_size)
    eval_steps = args.eval_steps or max(max_steps // 10, 1)

    # ------------------------------------------------------------------------------------------------------------------
    # Where the run stands
    recipe = {name: value for name, value in asdict(args).items() if name not in MAY_CHANGE}
    recipe["effective_batch_size"] = batch_size
    if is_main and args.overwrite_output_dir:
        delete_run(output_dir)
    accelerator.wait_for_everyone()
    checkpoint = check_output_dir(output_dir, recipe, resume=args.resume == "auto")
    state = load_training_state(checkpoint) if checkpoint else {"step": 0, "seconds": 0.0}
    if state["step"] == max_steps and (output_dir / "run.json").exists():
        accelerator.print(f"The run in {output_dir} is finished: {max_steps} steps. Nothing to do.")
        return
    record = run_record(recipe)

    # ------------------------------------------------------------------------------------------------------------------
    # Model, optimizer, loaders. The order of samples is a function of seed and step: nothing of it was saved.
    torch.manual_seed(args.seed)
    if checkpoint:
        plain_model = MAEForPreTraining.from_pretrained(checkpoint, dtype=torch.float32)
        image_processor = MAEImageProcessor.from_pretrained(checkpoint)
    else:
        plain_model, image_processor = build_model(args)
    config = plain_model.config
    if args.gradient_checkpointing:
        plain_model.gradient_checkpointing_enable({"use_reentrant": False})
    groups = parameter_groups(plain_model.train(), args.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(args.adam_beta1, args.adam_beta2), fused=True)
    model, optimizer = accelerator.prepare(plain_model, optimizer)
    if args.torch_compile:
        model.compile()
    if checkpoint:
        load_optimizer(checkpoint, plain_model, optimizer.optimizer)

    (height, width), (rows, columns) = image_processor.crop_height_width, config.grid_size
    dataset = PretrainingDataset(
        train_images,
        (height, width),
        rows * columns,
        num_channels=config.num_channels,
        crop_scale=(args.crop_scale_min, 1.0),
        seed=args.seed,
    )
    sampler = StepBatchSampler(
        SampleOrder(len(train_images), args.seed),
        batch_size,
        args.per_device_train_batch_size,
        range(state["step"], max_steps),
        accelerator.process_index,
        accelerator.num_processes,
    )
    workers = args.dataloader_num_workers
    if workers is None:  # on a CPU the model has better use for the cores
        workers = 0 if accelerator.device.type == "cpu" else min(os.cpu_count() // accelerator.num_processes, 16)
    options = {"num_workers": workers, "worker_init_fn": ignore_interrupts}
    pin_memory = accelerator.device.type == "cuda"
    batches = iter(DataLoader(dataset, batch_sampler=sampler, pin_memory=pin_memory, **options))
    options["batch_size"] = args.per_device_train_batch_size
    evaluation = Evaluation(train_images, test_images, image_processor, args.eval_images, **options)

    # ------------------------------------------------------------------------------------------------------------------
    # What was chosen
    if is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        metrics = MetricsLog(output_dir, state["step"])
    parameters = sum(parameter.numel() for parameter in plain_model.parameters()) / 1e6
    accelerator.print(
        f"Images   {len(train_images):,} from {train_images.name}, "
        f"{f'{len(set(train_images.labels))} classes' if train_images.labels else 'no labels'}\n"
        f"Model    {parameters:.1f} M parameters, {height} x {width} pixels, {rows} x {columns} patches, "
        f"{config.mask_ratio:.0%} hidden, target: {'normalised patches' if config.norm_pix_loss else 'pixels'}\n"
        f"Batch    {batch_size} = {args.per_device_train_batch_size} x {accelerator.num_processes} process(es) x "
        f"{accumulation} accumulated\n"
        f"Rate     {learning_rate:.3g}, {warmup_steps} steps of warm-up, then half a cosine\n"
        f"Steps    {max_steps:,}, {max_steps / steps_per_epoch:.1f} epochs\n"
        f"Device   {accelerator.device}, {'bf16' if use_bf16 else 'float32'}, {workers} loader worker(s)\n"
        f"Output   {output_dir}" + (f", going on from {checkpoint.name}" if checkpoint else "")
    )

    # ------------------------------------------------------------------------------------------------------------------
    # The run
    stop_signals = []

    def stop(number: int, frame):
        if number in stop_signals:
            raise KeyboardInterrupt("Stopped at once; the last checkpoint stays.")
        stop_signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    started = time.perf_counter()

    def save(step: int):
        if is_main:
            standing = {**record, "seconds": state["seconds"] + time.perf_counter() - started}
            save_checkpoint(output_dir, step, plain_model, image_processor, optimizer, standing, args.save_total_limit)

    interval = 0.1 if sys.stderr.isatty() else 30  # seconds: in a log file every update is a line
    options = {"unit": "step", "dynamic_ncols": True, "mininterval": interval, "maxinterval": max(interval, 10)}
    bar = tqdm(total=max_steps, initial=state["step"], disable=not is_main, **options)
    loss_sum, steps_since, waited, since = torch.zeros((), device=accelerator.device), 0, 0.0, time.perf_counter()
    shown = {}
    for step in range(state["step"] + 1, max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step - 1, max_steps, warmup_steps, learning_rate)
        for part in range(accumulation):
            wait_started = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - wait_started
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            pixel_values = image_processor.rescale_and_normalize(batch["pixel_values"])
            with nullcontext() if part == accumulation - 1 else accelerator.no_sync(model):
                loss = model(pixel_values=pixel_values, noise=batch["noise"]).loss / accumulation
                accelerator.backward(loss)
            loss_sum += loss.detach()
        if args.max_grad_norm > 0:
            accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        steps_since += 1
        bar.update()

        last = step == max_steps
        logging_now = step % args.logging_steps == 0 or last
        stopping = bool(stop_signals)
        if accelerator.num_processes > 1:  # processes must agree; they wait for each other when logging anyway
            stopping = logging_now and accelerator.reduce(torch.tensor(float(stopping), device=loss.device)).item() > 0
        if logging_now or stopping:
            mean_loss = accelerator.reduce(loss_sum, reduction="mean").item() / steps_since
            if not math.isfinite(mean_loss):
                raise RuntimeError(
                    f"The loss is {mean_loss} at step {step}. Lower --learning_rate or set --max_grad_norm 1, and "
                    "start in another --output_dir; the last checkpoint is from before."
                )
            seconds = time.perf_counter() - since
            shown = {"loss": mean_loss, "learning_rate": group["lr"], "epoch": step / steps_per_epoch}
            shown.update(images_per_second=steps_since * batch_size / seconds, data_wait=waited / seconds)
            if is_main:
                metrics.write(step, **shown)
            short = {"loss": f"{mean_loss:.4f}", "lr": f"{group['lr']:.2e}", "wait": f"{waited / seconds:.0%}"}
            bar.set_postfix(**short, img_s=f"{shown['images_per_second']:.0f}", refresh=False)
            loss_sum.zero_()
            steps_since, waited, since = 0, 0.0, time.perf_counter()
        if step % eval_steps == 0 or last:
            paused = time.perf_counter()
            if is_main:
                with accelerator.autocast():
                    results = evaluation(plain_model)
                metrics.write(step, **results)
                bar.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in results.items()))
            accelerator.wait_for_everyone()
            since += time.perf_counter() - paused  # the evaluation does not count as slow training
        if step % args.save_steps == 0 or last or stopping:
            save(step)
        if stopping:
            bar.close()
            accelerator.print(f"Stopped and saved at step {step}. The same command goes on from there.")
            accelerator.end_training()
            sys.exit(128 + (stop_signals or [signal.SIGTERM])[0])
    bar.close()

    # ------------------------------------------------------------------------------------------------------------------
    # What it leaves
    if is_main:
        plain_model.eval().save_pretrained(output_dir)
        image_processor.save_pretrained(output_dir)
        count = min(24, len(evaluation.images))
        shown_images = [evaluation.images[n * len(evaluation.images) // count]["pixel_values"] for n in range(count)]
        noise = torch.rand(count, rows * columns, generator=torch.Generator().manual_seed(args.seed))
        noise = noise.to(accelerator.device)
        sheet = reconstruction_sheet(plain_model, image_processor, torch.stack(shown_images), noise=noise)
        sheet.save(output_dir / "reconstructions.png")
        record.update(data=train_images.name, num_images=len(train_images), held_out=evaluation.held_out)
        record.update(hours=(state["seconds"] + time.perf_counter() - started) / 3600, metrics=metrics.last())
        write_model_card(output_dir, plain_model, record)
        save_record(output_dir, record)
        print(f"Done: model, card, log and reconstructions.png are in {output_dir}.")
    accelerator.end_training()


if __name__ == "__main__":
    main()
