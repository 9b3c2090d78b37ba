# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Tries a pre-training run for some steps: how fast it is, how much memory it takes, how long it would last."""

import copy
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from ..training.distributed import call_in_main_process
from ..training.step_guard import RunStopped
from .batches import PREFETCH
from .log import PretrainingResult
from .run import PretrainingRun
from .summary import in_words


class DryRun(PretrainingRun):
    """Takes the first steps of a run in a folder that is deleted afterwards, and prints what they tell of the run."""

    def run(self) -> PretrainingResult:
        """Returns `images_per_second`, `data_wait` and `hours` as the metrics."""
        self.settings.push_to_hub = False
        self.given_model = copy.deepcopy(self.given_model)  # whose weights the steps change
        with tempfile.TemporaryDirectory(prefix="hf_mae-dry-run-") as folder:
            self.output_dir = Path(folder)
            return super().run()

    def _choose_batch_size(self):
        super()._choose_batch_size()
        plan = self.schedule
        self.samples_of_run, self.samples_of_step = plan.max_steps * plan.batch_size, plan.batch_size
        # Accumulation changes neither speed nor memory.
        plan.batch_size = min(plan.batch_size, self.batch_size * self.accelerator.num_processes)

    def _plan_time(self):
        """Leaves the plan open: [`DryRun.finish`] says what fits."""

    def train(self):
        """Takes steps until the loader has handed over all that it had ready, and then measures."""
        self.start_clock()
        self.bar.close()
        self.print("Takes some steps to measure them; none of them is kept.")
        self._take_steps(self.workers * PREFETCH + 2)
        self.throughput.read(0)
        started = time.perf_counter()
        self._take_steps(3)
        wanted = 2 if self.device.type == "cpu" else 30  # seconds
        pace = (time.perf_counter() - started) / 3
        more = call_in_main_process(lambda: min(int(wanted / pace), 500))  # the same in all processes
        self._take_steps(more)
        self.speed = self.throughput.read((3 + more) * self.schedule.batch_size)

    def _take_steps(self, count: int):
        for _ in range(count):
            self.take_step()
            if self.guard.stop_signal:
                self.end_processes()
                raise RunStopped("The dry run was stopped.", 128 + self.guard.stop_signal)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def finish(self) -> PretrainingResult:
        """Prints the results."""
        speed, waiting = self.speed["images_per_second"], self.speed["data_wait"]
        hours = self.samples_of_run / speed / 3600
        length = f"the run would take {hours:,.1f} hours, without evaluations"
        if self.budget is not None:
            hours, length = self.budget.seconds / 3600, self._what_fits(self.samples_of_step / speed)
        self.print(
            f"Dry run  {speed:,.1f} images/s, {waiting:.0%} of the time waiting for data, {peak_memory(self.device)} "
            f"per process; {length}"
        )
        self.end_processes()
        return PretrainingResult(self.output_dir, {**self.speed, "hours": hours}, None)

    def _what_fits(self, pace: float) -> str:
        plan = replace(self.schedule, batch_size=self.samples_of_step)
        plan = call_in_main_process(lambda: self.first_plan(plan, pace))
        cooldown = round(self.settings.cooldown_ratio * plan.max_steps)
        return (
            f"{in_words(self.budget.seconds)} have room for about {plan.max_steps:,} steps, "
            f"{plan.max_steps / plan.steps_per_epoch:.1f} epochs: {plan.warmup_steps:,} of warm-up, {cooldown:,} of "
            f"cool-down, an evaluation every {plan.eval_steps:,}"
        )


def peak_memory(device: torch.device) -> str:
    """Returns the largest amount of memory that this process had, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB of GPU memory"
    try:
        import resource
    except ImportError:  # Windows
        return "an unknown amount of memory"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of memory"


__all__ = ["DryRun"]
