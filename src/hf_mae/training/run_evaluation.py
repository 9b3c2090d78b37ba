# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Measures and draws the model of a pre-training run, always on the same images with the same masks."""

from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator

from ..evaluation.monitoring import Evaluation
from ..evaluation.visualization import reconstruction_sheet
from ..modeling.modeling_mae import MAEForPreTraining


class RunEvaluation:
    """Measures the model of a run, and draws what it does into the folder `sheets` and for the trackers."""

    def __init__(self, model: MAEForPreTraining, evaluation: Evaluation, accelerator: Accelerator, output_dir: Path):
        """
        Args:
            model ([`MAEForPreTraining`]): The model, which may be sharded. Every process calls the methods.
            evaluation ([`Evaluation`]): What measures it.
            accelerator (`Accelerator`): Precision and trackers.
            output_dir (`Path`): Folder of the run.
        """
        self.model, self.evaluation, self.accelerator, self.output_dir = model, evaluation, accelerator, output_dir
        images = evaluation.images
        count = min(24, len(images))
        self.sheet_images = torch.stack([images[n * len(images) // count]["pixel_values"] for n in range(count)])
        rows, columns = model.config.grid_size
        generator = torch.Generator().manual_seed(evaluation.seed)
        self.sheet_noise = torch.rand(count, rows * columns, generator=generator).to(accelerator.device)

    @property
    def held_out(self) -> bool:
        """Whether the images of the loss are not those that are trained on."""
        return self.evaluation.held_out

    @contextmanager
    def _as_in_training(self):
        with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):  # compiling pays for many calls
            yield

    def measure(self) -> dict[str, float]:
        """Returns the figures of the model, the same in all processes."""
        with self._as_in_training():
            return self.evaluation(self.model)

    def draw(self, step: int):
        """Draws the sheets of a step."""
        sheet = self.draw_reconstructions()
        if self.accelerator.is_main_process and sheet is not None:
            self._track("reconstructions", sheet, step)
            with suppress(OSError):  # a full disk is reported where it matters, when saving
                sheet.save(self.output_dir / "sheets" / f"step-{step:07}.png")

    def draw_reconstructions(self) -> PIL.Image.Image | None:
        """Returns a sheet of reconstructions, or `None` if the target has no way back to pixels."""
        processor = self.evaluation.images.image_processor
        with self._as_in_training(), suppress(NotImplementedError):
            return reconstruction_sheet(self.model, processor, self.sheet_images, noise=self.sheet_noise)
        return None

    def _track(self, name: str, picture: PIL.Image.Image, step: int):
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: np.array(picture)[None]}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: [picture]}, step=step)


__all__ = ["RunEvaluation"]
