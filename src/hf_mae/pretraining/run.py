# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Runs pre-training: [`PretrainingRun`], whose methods are the phases of a run in the order in which they happen."""

import math
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from safetensors import SafetensorError
from tqdm.auto import tqdm

from ..evaluation.monitoring import Evaluation
from ..modeling.configuration_mae import MAEConfig
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining
from ..modeling.reading_mae import ReadingSettings
from ..publishing.hub import HubPush, link_files
from ..publishing.model_cards import write_model_card
from ..publishing.records import save_record
from ..training.arguments import parse_duration, recipe_of
from ..training.checkpointing import (
    cut_back,
    delete_run,
    latest_checkpoint,
    list_checkpoints,
    load_optimizer,
    load_training_state,
    load_weights,
    lock_run,
    save_checkpoint,
    unlock_run,
)
from ..training.distributed import (
    call_in_main_process,
    chosen_precision,
    gather_from_processes,
    gather_model,
    join_processes,
    shard_model,
)
from ..training.optimization import build_optimizer
from ..training.run_record import run_record
from ..training.step_guard import RunStopped, StepGuard, StopSignals, end_workers
from .batch_size import choose_batch_size
from .batches import PREFETCH, RunBatches, choose_num_workers, failure_of_loader
from .choices import recorded_choices, settle_settings
from .compilation import choose_compile_mode, compile_model
from .evaluation import RunEvaluation, num_twins
from .images import look_at_images, open_run_images
from .initial_model import build_model, checkpoint_activations, reading_of_run, stored_processor
from .log import MetricsLog, PretrainingResult, SampleLog, Throughput, UnreadableImages, last_metrics, progress_bars_off
from .position import defining_recipe, find_position, is_written
from .schedule import Plan, plan_steps
from .settings import MACHINE_SETTINGS, PretrainingSettings
from .speed import Speed
from .summary import describe_cooldown, summary_of_run
from .time_budget import TimeBudget, measure_pace

_NO_END = 10**9  # steps: batches of a run whose end is open


class PretrainingRun:
    """Pre-trains a model; each method is a phase: plan, build, announce, train, evaluate, save, finish."""

    def __init__(
        self,
        settings: PretrainingSettings,
        images=None,
        model: MAEConfig | MAEForPreTraining | None = None,
        image_processor: MAEImageProcessor | None = None,
        trackers: Sequence[GeneralTracker] | None = None,
        echo: Callable[[str], None] = print,
        started: float | None = None,
    ):
        """
        Args:
            settings ([`PretrainingSettings`]): The settings.
            images ([`ImageSource`], `Dataset` or `DatasetDict`, *optional*): Replaces `settings.data`.
            model ([`MAEConfig`] or [`MAEForPreTraining`], *optional*): Replaces the settings of the model.
            image_processor ([`MAEImageProcessor`], *optional*): Replaces the settings of mean and deviation.
            trackers (`Sequence[GeneralTracker]`, *optional*): Of Accelerate.
            echo (`Callable[[str], None]`, *optional*, defaults to `print`): Takes the messages of the run.
            started (`float`, *optional*): `time.perf_counter` from which the time of the run counts. Default: now.
        """
        self.settings, self.given_model, self.given_processor = settings, model, image_processor
        self.given_images, self.trackers, self._echo = images, list(trackers or ()), echo
        self.output_dir, self.started = Path(settings.output_dir), started or time.perf_counter()
        self.found_unreadable: dict[str, str] = {}
        self.rollbacks: list[Path] = []
        self.problem: str | None = None
        self.bar: tqdm | None = None
        self.step = self.skipped = 0

    def run(self) -> PretrainingResult:
        """Does everything, and cleans up in every case: signal handlers, loader workers, processes, trackers."""
        children = multiprocessing.active_children()
        with progress_bars_off(), StopSignals() as self.stop_signals:
            try:
                self.start()
                if self.plan():
                    return self.load_finished()
                self.build()
                self.announce()
                self.train()
                return self.finish()
            except (RuntimeError, OSError, EOFError) as error:
                end_workers(children)  # else torch raises the error of a dead worker again while the run is saved
                if (failure := failure_of_loader(error, begun=self.bar is not None)) is None:
                    raise
                raise RunStopped(f"{failure} {self._save_alone()}") from error
            finally:
                end_workers(children)
                unlock_run(self.output_dir)
                if self.bar is not None:
                    self.bar.close()

    def _save_alone(self) -> str:
        """Saves the last step when there is no next one, unless others wait for it. Returns how the run goes on."""
        unsaved = self.bar is not None and self.step > 0 and not self.goes_back
        if unsaved and self.accelerator.num_processes == 1 and self.guard.bad_steps_in_a_row == 0 and self.save():
            return f"The run is saved at step {self.step}: the same call or command continues from there."
        return "The same call or command continues from the last checkpoint."

    # ------------------------------------------------------------------------------------------------------------------
    # Plan

    def start(self):
        """Starts Accelerate: devices, processes, precision and trackers."""
        settings = self.settings
        AcceleratorState._reset_state()  # an earlier run of this Python process may have had another precision
        state = join_processes()
        self.of_machine = {"bf16"} if settings.bf16 is None else set()  # what the machine decides, and no recipe
        if settings.bf16 is None:
            settings.bf16 = chosen_precision(state.device, ("no", "bf16")) == "bf16"
        self.accelerator = Accelerator(
            mixed_precision="bf16" if settings.bf16 else "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # whatever the environment says
            log_with=[*([settings.report_to] if settings.report_to else []), *self.trackers] or None,
            project_dir=self.output_dir,
            # Else DDP holds all gradients twice.
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        self.share = {"process_index": index, "num_processes": count}
        pushes = self.is_main and settings.push_to_hub
        self.hub = HubPush(self.output_dir, settings.hub_model_id, settings.hub_private_repo) if pushes else None

    def plan(self) -> bool:
        """Decides what to train on, how long, and from where. Returns whether the run is finished already."""
        settings = self.settings
        reading = reading_of_run(settings, self._newest_processor() or self.start_processor)
        self.images = open_run_images(settings, self.given_images, reading)
        for note in self.images.notes:
            self.print(note)
        self.workers = choose_num_workers(settings, self.images.train, self.device, self.accelerator.num_processes)
        choices = self._settle_settings(reading)
        self.schedule = plan_steps(settings, len(self.images.train))
        self.recipe = defining_recipe(settings, self.schedule, self.images, self.given_model, self.given_processor)
        self._find_position()
        self.record = {**run_record(self.recipe, self.images.train), "choices": choices}
        return self.is_last and is_written(self.output_dir, self.schedule)

    def _find_position(self):
        """Finds the checkpoint to go on from, with the plan that it holds."""
        settings = self.settings
        position = find_position(self.output_dir, self.recipe, self.schedule, settings)
        self.checkpoint, self.state, self.schedule, self.goes_back = position
        self.step, self.seconds_before = int(self.state["step"]), self.state["seconds"]
        self.budget = None
        if settings.time_budget is not None:
            costs = {**self.state.get("time_budget", {}), "seconds": parse_duration(settings.time_budget)}
            self.budget = TimeBudget(costs, settings.cooldown_ratio, settings.save_steps, lambda: self.seconds)

    def _settle_settings(self, reading: ReadingSettings) -> list[dict]:
        """Settles what the settings leave open. A run that goes on takes what was chosen when it started."""
        settings, images = self.settings, self.images.train
        goes_on = settings.resume == "auto" and not settings.overwrite_output_dir
        processes, workers = self.accelerator.num_processes, self.workers
        return settle_settings(
            settings,
            images,
            Speed(images, reading, self.device, settings, num_processes=processes, num_workers=workers),
            model=self.given_model,
            image_processor=self.given_processor,
            num_test=None if self.images.test is None else len(self.images.test),
            recorded=call_in_main_process(lambda: recorded_choices(self.output_dir)) if goes_on else None,
            say=self.print,
        )

    @cached_property
    def start_processor(self) -> MAEImageProcessor | None:
        """The image processor that was given, or else that of the checkpoint to start from, which is read once."""
        return stored_processor(self.settings, self.given_processor)

    def _newest_processor(self) -> MAEImageProcessor | None:
        """Returns the image processor of a run that goes on (what it started from may be gone), `None` if it starts."""
        if self.settings.resume == "never" or self.settings.overwrite_output_dir:
            return None
        for checkpoint in call_in_main_process(lambda: list_checkpoints(self.output_dir)):
            with suppress(OSError, ValueError, AttributeError, TypeError):  # broken: named when its hashes are compared
                return MAEImageProcessor.from_pretrained(checkpoint)
        return None

    def load_finished(self) -> PretrainingResult:
        """Returns what a run that is finished already has left."""
        self.print(f"The run in {self.output_dir} is finished: {self.schedule.max_steps} steps. Nothing to do.")
        model = self._stored_model(self.output_dir)
        self.end_processes(push=True)
        return PretrainingResult(self.output_dir, last_metrics(self.output_dir) if self.is_main else {}, model.eval())

    # ------------------------------------------------------------------------------------------------------------------
    # Build

    def build(self):
        """Makes model, optimizer, loader and evaluation. The order of samples is a function of seed and step."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        if self.checkpoint:
            self.plain_model = self._stored_model(self.checkpoint)
            self.image_processor = MAEImageProcessor.from_pretrained(self.checkpoint)
        else:
            self.plain_model, self.image_processor = build_model(settings, self.given_model, self.start_processor)
            self._look_at_images()
        if settings.gradient_checkpointing:
            checkpoint_activations(self.plain_model)
        self._build_optimizer()
        self._choose_batch_size()
        self._build_loader()
        self._compile()
        self._plan_time()
        self._build_evaluation()

    def _stored_model(self, folder: Path) -> MAEForPreTraining:
        """Returns a model with the weights in a folder. A model that was given gets them: it is trained in place."""
        if not isinstance(self.given_model, MAEForPreTraining):
            return MAEForPreTraining.from_pretrained(folder, dtype=torch.float32)
        load_weights(folder, self.given_model)
        return self.given_model

    def _look_at_images(self):
        """Checks some images before the first step, and computes what the settings want to be computed of them."""
        channels = self.plain_model.config.num_channels
        notes, found = look_at_images(self.settings, self.images, self.image_processor, channels, self.workers)
        for note in notes:
            self.print(note)
        self.found_unreadable.update(found)

    def _build_optimizer(self):
        settings = self.settings
        self.is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if self.is_sharded:
            self.model = shard_model(self.plain_model.train().to(self.device))
        else:
            self.model = self.accelerator.prepare(self.plain_model.train())
        betas, start = (settings.adam_beta1, settings.adam_beta2), settings.model_name_or_path
        options = (self.plain_model, self.schedule.learning_rate, settings.weight_decay, betas)
        self.optimizer = build_optimizer(settings.optimizer, *options)
        if settings.optimizer == "muon" and start and not self.checkpoint:
            self.print(f"Muon goes on from {start}. It suits weights that AdamW has trained less (arXiv 2605.10468).")
        if self.checkpoint:
            load_optimizer(self.checkpoint, self.plain_model, self.optimizer)

    def _choose_batch_size(self):
        """Chooses how many images a forward pass takes, and records it: a run that goes on takes as many."""
        processes, batch_size = self.accelerator.num_processes, self.settings.per_device_train_batch_size
        place = {"machine": self.record["machine"], "num_processes": processes}
        same_place = call_in_main_process(lambda: all(self.state.get(name) == value for name, value in place.items()))
        recorded = self.state.get("per_device_train_batch_size") if same_place else None
        limit = math.ceil(self.schedule.batch_size / processes)
        self.batch_size = choose_batch_size(batch_size, recorded, limit, self.device, self._try_batch)
        self.record.update(place, per_device_train_batch_size=self.batch_size)

    def _try_batch(self, size: int):
        """Computes the gradients of black images, next to the state that the optimizer has from its first step on."""
        groups = [] if self.optimizer.state else self.optimizer.param_groups
        moments = [torch.empty_like(each) for group in groups for each in group["params"] * 2]
        config, (height, width) = self.plain_model.config, self.image_processor.crop_height_width
        images = torch.zeros(size, config.num_channels, height, width, dtype=torch.uint8)
        batch = {"pixel_values": images, "noise": torch.rand(size, math.prod(config.grid_size))}
        with nullcontext() if self.is_sharded else self.accelerator.no_sync(self.model):  # another may have failed
            self._backward(batch)
        self.optimizer.zero_grad()
        del moments

    def _build_loader(self):
        images, model = self.images, (self.image_processor, self.plain_model.config)
        options = {"num_workers": self.workers, "pin_memory": self.device.type == "cuda"}
        self.batches = RunBatches(self.settings, images.train, *model, images.weights, **options)
        self._start_loader()

    def _compile(self):
        """Compiles the model if it is to be, in a mode that suits the forward passes of a step."""
        place = {"num_processes": self.accelerator.num_processes, "is_sharded": self.is_sharded}
        batch_size, steps = min(self.batch_size, self.schedule.batch_size), self.schedule.max_steps
        work = (self.plain_model.config, batch_size, self.batches.accumulation, steps)
        self.compile_mode = choose_compile_mode(self.settings, self.device, *work, **place)
        if self.compile_mode is not None:
            compile_model(self.model, self.compile_mode, self.settings.torch_compile is None, self.print)

    def _start_loader(self):
        """Makes the batches from the present step to the last one, and what watches over the steps."""
        is_open = self.budget is not None or self.settings.dry_run
        steps = range(self.step, _NO_END if is_open else self.schedule.max_steps)
        self.batches.start(steps, self.schedule.batch_size, self.batch_size, self.share)
        self.guard, self.logged_step = StepGuard(self.optimizer, self.settings.max_grad_norm), self.step

    def _plan_time(self):
        """Estimates the steps of a new run with a time budget by some batches, from which nothing is learnt."""
        if self.budget is None or self.schedule.max_steps:
            return

        def try_batch():
            self._backward(next(self.batches))
            self.optimizer.zero_grad()

        ready, parts = self.workers * PREFETCH, self.batches.accumulation
        pace = parts * measure_pace(try_batch, ready, self.budget.seconds, self.device)
        self.schedule = call_in_main_process(lambda: self.first_plan(self.schedule, pace))
        self._start_loader()

    def first_plan(self, plan: Plan, pace: float) -> Plan:
        """Returns the plan of a run with a time budget whose steps take `pace` seconds, see [`TimeBudget`]."""
        settings = self.settings
        bank = min(settings.eval_images, len(self.images.train))
        evaluated = 1.2 * bank + 2 * min(num_twins(plan), bank // 5)
        parameters = self.plain_model.num_parameters()
        return self.budget.first_plan(plan, pace, settings.warmup_ratio, settings.eval_steps, evaluated, parameters)

    def _build_evaluation(self):
        settings = self.settings
        evaluation = Evaluation(
            self.images.train,
            self.images.test,
            self.image_processor,
            settings.eval_images,
            self.batch_size,
            seed=settings.seed,
            crops=self.batches.dataset,
            max_twins=num_twins(self.schedule),
            **self.share,
            **self.batches.loader_options,
        )
        self.evaluation = RunEvaluation(
            self.plain_model, evaluation, self.accelerator, self.output_dir, self.schedule.warmup_steps
        )

    def announce(self):
        """Prints what was chosen, and opens the logs."""
        self.print(
            summary_of_run(
                self.settings,
                self.schedule,
                self.images.train,
                self.plain_model,
                self.image_processor,
                device=self.device,
                num_processes=self.accelerator.num_processes,
                num_workers=self.workers,
                batch_size=self.batch_size,
                accumulation=self.batches.accumulation,
                compile_mode=self.compile_mode,
                checkpoint=self.checkpoint,
            )
        )
        call_in_main_process(self._open_output_dir)
        settings, index = self.settings, self.accelerator.process_index
        self.unreadable = UnreadableImages(self.output_dir, len(self.images.train), settings.max_unreadable)
        self.sample_log = SampleLog(self.output_dir, index) if settings.log_samples else None
        self.accelerator.init_trackers("hf_mae", {name: str(value) for name, value in self.recipe.items()})

    def _open_output_dir(self):
        """Makes the folder ready for this run alone. Nothing is deleted before all else has been found right."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        lock_run(self.output_dir)
        if self.settings.overwrite_output_dir:
            delete_run(self.output_dir)
        (self.output_dir / "sheets").mkdir(exist_ok=True)
        self.metrics = MetricsLog(self.output_dir, self.step, keeps_later=self.goes_back)

    # ------------------------------------------------------------------------------------------------------------------
    # Train

    def train(self):
        """Takes all steps; between them logs, evaluates and saves, and ends the run when it is to stop."""
        self.start_clock()
        with self.throughput.excluded():
            if comparison := self.evaluation.compare():
                self.print(comparison)
            if self._owes_evaluation():
                self.evaluate()
        while not self.is_last:
            self.take_step()
            self.keep_time()
            if self.log_step():
                with self.throughput.excluded():
                    self.evaluate_and_save()
        self.bar.close()

    def _owes_evaluation(self) -> bool:
        """Whether the step where the run goes on is one to evaluate at, but a signal came first."""
        due = self.step > 0 and self._is_to_evaluate
        return due and call_in_main_process(lambda: not self.metrics.has(self.step, "eval_loss"))

    def start_clock(self):
        """Starts to measure the pace, and shows the progress bar."""
        self.throughput, self.next_review = Throughput(), self.step + 1
        interval = 0.1 if sys.stderr.isatty() else 30  # seconds: in a log file every update is a line
        options = {"unit": "step", "dynamic_ncols": True, "mininterval": interval, "maxinterval": max(interval, 10)}
        self.bar = tqdm(total=self.schedule.max_steps, initial=self.step, disable=not self.is_main, **options)

    def take_step(self):
        """Takes one optimizer step over all parts of the effective batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate_at(self.step)
        # Dropout, if there is any, is a function of the position, too.
        seeds = np.random.SeedSequence([self.settings.seed, self.step, self.accelerator.process_index])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        loss_of_step = torch.zeros((), device=self.device)
        for part in range(self.batches.accumulation):
            is_last = part == self.batches.accumulation - 1
            # A sharded model sums each part over processes at once, since no process has room for all gradients.
            with nullcontext() if is_last or self.is_sharded else self.accelerator.no_sync(self.model):
                loss_of_step += self._backward(self._next_batch(), counts=not self.batches.failure)
        self.guard.step(loss_of_step, self.stop_signals.number or self.batches.stop_signal)
        self.optimizer.zero_grad()
        self.step += 1
        self.bar.update()

    def keep_time(self):
        """Lets the time budget decide when it is time to: the main process for all, about once a second."""
        if self.budget is None or self.step < self.next_review:
            return
        budget, before = self.budget, self.schedule.cooldown
        self.schedule, self.next_review = call_in_main_process(lambda: budget.review(self.step, self.schedule))
        if self.schedule.cooldown != before:
            self.print(describe_cooldown(self.schedule, self.step, self.seconds, budget.seconds))
        self.bar.total = self.schedule.max_steps

    def _next_batch(self) -> dict:
        with self.throughput.waiting():
            batch = next(self.batches)
        self.found_unreadable.update(batch["unreadable"])
        if self.sample_log and not self.batches.failure:
            self.sample_log.write(self.step, batch, self.plain_model.config)
        return batch

    def _backward(self, batch: dict, counts: bool = True) -> torch.Tensor:
        """Adds the gradients of one batch and returns its share of the loss. If it does not count both are NaN, so that
        all processes skip the step."""
        names = ("pixel_values", "noise", "valid", "drop_path_noise")
        inputs = {name: batch[name] for name in names if name in batch}
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        pixel_values = self.image_processor.rescale_and_normalize(inputs.pop("pixel_values"))
        # Shares may differ by an image, and the gradients of processes are averaged.
        weight = len(pixel_values) * self.accelerator.num_processes / self.schedule.batch_size if counts else math.nan
        with self.accelerator.autocast():
            loss = self.model(pixel_values=pixel_values, **inputs).loss * weight
        self.accelerator.backward(loss)
        return loss.detach()

    # ------------------------------------------------------------------------------------------------------------------
    # Log

    def log_step(self) -> bool:
        """Logs if it is time to. Returns `False` after a rollback, when there is nothing to evaluate or save."""
        self.problem = None
        due = self.step % self.settings.logging_steps == 0 or self.is_last or self.guard.stop_signal
        if not due or self._report_unreadable():
            return True
        values, longest_row = self.guard.read()
        if values["skipped"] and not self.skipped:
            self.print(f"Steps without finite loss or gradient are skipped, the first up to step {self.step}.")
        self.skipped += int(values["skipped"])
        epoch, learning_rate = self.step / self.schedule.steps_per_epoch, self.optimizer.param_groups[0]["lr"]
        values.update(skipped=self.skipped, learning_rate=learning_rate, epoch=epoch)
        values.update(self.throughput.read((self.step - self.logged_step) * self.schedule.batch_size))
        self.logged_step = self.step
        self.log(**values)
        short = {"loss": f"{values.get('loss', math.nan):.4f}", "lr": f"{learning_rate:.2e}"}
        short.update(wait=f"{values['data_wait']:.0%}", img_s=f"{values['images_per_second']:.0f}")
        self.bar.set_postfix(short, refresh=False)
        if longest_row >= self.settings.max_bad_steps or (self.is_last and self.skipped == self.step):
            self.roll_back(longest_row)
            return False
        return True

    @property
    def is_last(self) -> bool:
        """Whether all steps are taken."""
        return self.step == self.schedule.max_steps and not self.schedule.is_open

    def log(self, **values: float):
        """Writes values of the present step to the log and the trackers."""
        if self.is_main:
            self.metrics.write(self.step, **values)
        self.accelerator.log(values, step=self.step)

    def print(self, text: str):
        """Prints a message in the main process, above the progress bar."""
        if self.is_main:
            with tqdm.external_write_mode(file=sys.stdout):
                self._echo(text.encode(errors="backslashreplace").decode())  # names of files are any bytes

    def _report_unreadable(self) -> bool:
        """Names unreadable images, and returns whether all are gone for a process, so that the run is to end."""
        found = {name: reason for part in gather_from_processes(self.found_unreadable) for name, reason in part.items()}
        self.found_unreadable = {}
        for line in self.unreadable.add(found, self.is_main):
            self.print("Skipped, can't be read: " + line.replace("\t", ": "))
        self.problem = self.unreadable.problem()
        if failure := next(filter(None, gather_from_processes(self.batches.failure)), None):
            self.step, self.problem = self.step - self.guard.bad_steps_in_a_row, failure  # those had no images
        return failure is not None

    def roll_back(self, bad_steps: int):
        """Returns to the last checkpoint after too many bad steps in a row.

        Raises:
            FloatingPointError: If there is no checkpoint, or two rollbacks to it have not helped.
        """
        checkpoint = self.checkpoint
        if not self.goes_back:  # else the newest one is the earlier end of the run, which has not saved a step since
            checkpoint = call_in_main_process(lambda: latest_checkpoint(self.output_dir))
        self.rollbacks.append(checkpoint)
        if checkpoint is None or self.rollbacks.count(checkpoint) > 2:
            raise FloatingPointError(
                f"Loss or gradient was not finite in {bad_steps} steps in a row up to step {self.step}"
                + (f", also after two rollbacks to {checkpoint.name}" if checkpoint else "")
                + ". Start again in another `output_dir` with a lower learning rate, `max_grad_norm` 1 or `bf16` false."
            )
        load_weights(checkpoint, self.plain_model)
        load_optimizer(checkpoint, self.plain_model, self.optimizer)
        self.step = load_training_state(checkpoint)["step"]
        self.print(f"Loss or gradient was not finite in {bad_steps} steps in a row: rollback to {checkpoint.name}.")
        self.bar.n, self.next_review = self.step, self.step + 1
        if self.is_main:
            self.metrics = MetricsLog(self.output_dir, self.step, keeps_later=self.goes_back)
        self._start_loader()

    # ------------------------------------------------------------------------------------------------------------------
    # Evaluate, save, stop

    def evaluate_and_save(self):
        """Evaluates and saves if it is time to, and ends the run if it is to stop."""
        stop_signal, settings = self.guard.stop_signal, self.settings
        if self._is_to_evaluate and not (stop_signal or self.batches.failure):
            with self._measuring("evaluation"):
                self.evaluate()
        saved = True
        if self._is_to_save or stop_signal or self.problem:
            with self._measuring("save"):
                saved = self.save()
            if self.goes_back and saved:  # the old end stays until there is something of the new one
                call_in_main_process(lambda: (cut_back(self.output_dir, self.step), self.metrics.rewrite()))
                self.goes_back = False
        for line in self.hub.messages() if self.hub else ():
            self.print(line)
        if stop_signal or self.problem or (not saved and (self.is_last or settings.on_save_error == "stop")):
            self.stop(stop_signal, saved)

    @property
    def _is_to_evaluate(self) -> bool:
        return self.step % self.schedule.eval_steps == 0 or self.is_last

    @property
    def _is_to_save(self) -> bool:
        if self.is_last or self.step == self.schedule.cooldown_start:
            return True
        # Within a time budget as often as it evaluates, too: a thousand steps may be half of the time.
        due = self.step % self.settings.save_steps == 0 or (self.budget is not None and self._is_to_evaluate)
        # Not within a row of bad steps: a rollback should lead to before it.
        return (due or self.goes_back) and self.guard.bad_steps_in_a_row == 0

    def _measuring(self, cost: str) -> AbstractContextManager:
        return nullcontext() if self.budget is None else self.budget.measuring(cost)

    def evaluate(self):
        """Measures the model on fixed images with fixed masks, and draws sheets and the progress of the run."""
        results = self.evaluation.measure(self.step)
        self.log(**results)
        for line in self.evaluation.report(self.step, results):
            self.print(line)
        if advice := self.throughput.advice(self.workers, self.settings.views_per_image):
            self.print(advice)
        if self.is_main:
            self.evaluation.draw_progress(self.metrics.lines)

    def save(self) -> bool:
        """Saves a checkpoint. Returns whether that worked in all processes."""
        settings, started, failed = self.settings, time.perf_counter(), False
        record = {**self._decisions(), "seconds": self.seconds}
        state = (self.output_dir, self.step, self.plain_model, self.image_processor, self.optimizer)
        try:
            save_checkpoint(*state, record, settings.save_total_limit, self.schedule.cooldown_start)
        except OSError as error:
            failed = True
            self.print(str(error))
        saved = not any(gather_from_processes(failed))
        if advice := self.stop_signals.advice(time.perf_counter() - started):
            self.print(advice)
        if self.hub and saved and settings.hub_strategy == "every_save" and not self.is_last:
            self.hub.start(self._stage_checkpoint, f"Step {self.step} of {self.schedule.max_steps}")
        return saved

    def _decisions(self) -> dict:
        """Returns the record with what the run has decided so far: a run that goes on takes it from there."""
        budget = {} if self.budget is None else {"time_budget": self.budget.costs}
        return {**self.record, "plan": self.schedule.state(), **budget}

    @property
    def seconds(self) -> float:
        """Time that the run has taken, with all its parts before interruptions."""
        return self.seconds_before + time.perf_counter() - self.started

    def _stage_checkpoint(self, folder: Path):
        """Collects what is pushed with the last checkpoint."""
        link_files(self.output_dir / f"checkpoint-{self.step}", folder)
        shutil.copy2(self.metrics.path, folder)
        self.evaluation.copy_pictures(folder)
        self.describe(folder)

    def describe(self, folder: Path):
        """Writes record, recipe and model card of the run so far into a folder."""
        results = {"held_out": self.evaluation.held_out, "metrics": self.metrics.last(), "hours": self.seconds / 3600}
        save_record(folder, {**self._decisions(), **results})
        recipe = yaml.safe_dump(recipe_of(self.settings, MACHINE_SETTINGS | self.of_machine), sort_keys=False)
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        write_model_card(folder, self.settings.hub_model_id)

    def stop(self, stop_signal: int, saved: bool):
        """Ends the run before its last step.

        Raises:
            RunStopped: Always.
        """
        self.bar.close()
        self.end_processes()
        if self.problem or not saved:
            raise RunStopped(self.problem if saved else "The run ends without having saved its last steps.")
        raise RunStopped(
            f"Stopped by {signal.Signals(stop_signal).name} and saved at step {self.step}. The same call or command"
            f"{', without `overwrite_output_dir`,' * self.settings.overwrite_output_dir} continues from there.",
            128 + stop_signal,
        )

    # ------------------------------------------------------------------------------------------------------------------
    # Finish

    def finish(self) -> PretrainingResult:
        """Writes the final model with card, record and pictures, ends the processes, and pushes."""
        sheet, model = self.evaluation.draw_reconstructions(), gather_model(self.plain_model)
        if self.is_main:
            try:
                model.eval().save_pretrained(self.output_dir)
                self.image_processor.save_pretrained(self.output_dir)
                if sheet is not None:
                    sheet.save(self.output_dir / "reconstructions.png")
                self.describe(self.output_dir)
            except (OSError, SafetensorError) as error:
                raise RunStopped(
                    f"The final files could not be written to {self.output_dir}: {error}. The last checkpoint is "
                    "complete: make room, and the same call or command writes them."
                ) from error
            pictures = " and reconstructions.png" if sheet is not None else ""
            self.print(f"Done: model, card, log{pictures} are in {self.output_dir}.")
            if self.skipped:
                self.print(f"{self.skipped} of {self.step} steps were skipped, without finite loss or gradient.")
        self.end_processes(push=True)
        return PretrainingResult(self.output_dir, self.metrics.last() if self.is_main else {}, model)

    def end_processes(self, push: bool = False):
        """Closes trackers and the communication of processes, and then pushes what is finished, if it is asked for."""
        self.accelerator.wait_for_everyone()
        # gloo's thread drops its last tensors only with Python's lock, which the exit holds while it joins that thread.
        time.sleep(0.2)
        self.accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)  # it describes processes that have ended
        if push and self.hub:  # now: a push may take longer than other processes would wait
            for line in self.hub.push(self.output_dir, f"{self.schedule.max_steps} steps of pre-training"):
                self.print(line)


__all__ = ["PretrainingRun"]
