# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Tries a pre-training run for some steps: how fast it is, how much memory it takes, how long it would last."""

import sys
import tempfile
import time
from pathlib import Path

import torch

from .distributed import call_in_main_process
from .pretraining_run import PretrainingResult, PretrainingRun
from .run_batches import PREFETCH
from .step_guard import RunStopped


class DryRun(PretrainingRun):
    """Takes the first steps of a run in a folder that is deleted afterwards, and prints what they tell of the run."""

    def run(self) -> PretrainingResult:
        """Returns `images_per_second`, `data_wait` and `hours` as the metrics."""
        self.settings.push_to_hub = False
        with tempfile.TemporaryDirectory(prefix="hf_mae-dry-run-") as folder:
            self.output_dir = Path(folder)
            return super().run()

    def _choose_batch_size(self):
        super()._choose_batch_size()
        plan = self.schedule
        self.samples_of_run = plan.max_steps * plan.batch_size
        # Accumulation changes neither speed nor memory.
        largest = self.batch_size * self.accelerator.num_processes
        plan.batch_size, plan.max_steps = min(plan.batch_size, largest), 10**6

    def train(self):
        """Takes steps until the loader has handed over all that it had ready, and then measures."""
        self.start_clock()
        self.bar.close()
        self._take_steps(self.workers * PREFETCH + 2)
        self.throughput.read(0)
        started = time.perf_counter()
        self._take_steps(3)
        seconds = (2 if self.device.type == "cpu" else 30) / (time.perf_counter() - started) * 3
        more = call_in_main_process(lambda: int(min(max(seconds, 2), 500)))  # the same in all processes
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
        self.print(
            f"Dry run  {speed:,.1f} images/s, {waiting:.0%} of the time waiting for data, {peak_memory(self.device)} "
            f"per process; the run would take {hours:,.1f} hours, without evaluations"
        )
        self.end_processes()
        return PretrainingResult(self.output_dir, {**self.speed, "hours": hours}, None)


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
