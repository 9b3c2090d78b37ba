# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Measures and draws the model of a pre-training run, always on the same images with the same masks."""

import math
import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..data.datasets import collate_evaluation
from ..data.sampling import evenly_spaced
from ..evaluation.feature_sheets import neighbor_sheet, patch_colors, pca_sheet
from ..evaluation.label_free import collapse, label_free_figures
from ..evaluation.monitoring import MAX_TWINS, Evaluation
from ..evaluation.progress import progress_picture
from ..evaluation.visualization import reconstruction_sheet
from ..modeling.modeling_mae import MAEForPreTraining
from ..modeling.saving_mae import keeping_permissions
from .schedule import Plan

_RECONSTRUCTED, _COLORED, _QUERIES = 24, 12, 8  # images on the sheets
_IMAGES_OF_COLORS = 64  # whose patches have the same principal components; few images would each have their own
_NAMES = {"constant": "a constant", "visible_mean": "the visible mean", "interpolation": "interpolation"}


def num_twins(schedule: Plan) -> int:
    """Returns how many images an evaluation crops twice: 1,000, or so many that their cost is about 1 % of the run.

    Encoding two whole images takes about as long as training on one or two samples, so there is one such image for a
    hundred samples between two evaluations, but at least 100: a rank or a share of fewer would say little.

    Args:
        schedule ([`Plan`]): Steps between evaluations, and images of a step.
    """
    return min(max(schedule.eval_steps * schedule.batch_size // 100, 100), MAX_TWINS)


class RunEvaluation:
    """Measures the model of a run, says whether it learns, and draws what it does into the folder `sheets`."""

    def __init__(
        self,
        model: MAEForPreTraining,
        evaluation: Evaluation,
        accelerator: Accelerator,
        output_dir: Path,
        warmup_steps: int,
    ):
        """
        Args:
            model ([`MAEForPreTraining`]): The model, which may be sharded. Every process calls the methods together.
            evaluation ([`Evaluation`]): What measures it.
            accelerator (`Accelerator`): Precision and trackers.
            output_dir (`Path`): Folder of the run.
            warmup_steps (`int`): Steps without alarms.
        """
        self.model, self.evaluation, self.accelerator = model, evaluation, accelerator
        self.output_dir, self.alarms = output_dir, Alarms(warmup_steps)
        self.trivial: dict[str, float] = {}
        self._projections: torch.Tensor | None = None
        images, rng = evaluation.images, np.random.default_rng(evaluation.seed)
        spread = evenly_spaced(len(images), _IMAGES_OF_COLORS)
        # In random order, so that the first of them are from everywhere, too.
        batch = collate_evaluation([images[int(place)] for place in rng.permutation(spread)])
        self.images, valid = batch["pixel_values"], batch.get("valid")
        generator = torch.Generator().manual_seed(evaluation.seed)
        noise = torch.rand(len(spread), math.prod(model.config.grid_size), generator=generator)
        masks = {"noise": noise} if valid is None else {"noise": noise, "valid": valid}
        self.masks = {name: values[:_RECONSTRUCTED].to(accelerator.device) for name, values in masks.items()}

    @property
    def held_out(self) -> bool:
        """Whether the loss is measured on images that are not trained on."""
        return self.evaluation.held_out

    @contextmanager
    def _as_in_training(self):
        with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):  # compiling pays for many calls
            yield

    # ------------------------------------------------------------------------------------------------------------------
    # Figures

    def compare(self) -> str | None:
        """Measures predictors that learn nothing, and returns a line of their losses, `None` if no loss is a number."""
        losses = self.evaluation.trivial_losses(self.model)
        self.trivial = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
        if not self.trivial:
            return None
        found = ", ".join(f"{_NAMES[name]} {loss:.4f}" for name, loss in self.trivial.items())
        return f"To beat: {found} (losses of predictors that learn nothing, on the evaluation images and masks)"

    def measure(self, step: int) -> dict[str, float]:
        """Returns the figures of the model, the same in all processes, and draws the sheets of a step.

        `eval_seconds` is the time of that.
        """
        started = time.perf_counter()
        with self._as_in_training():
            results = self.evaluation(self.model)
            results.update({f"eval_loss_{name}": loss for name, loss in self.trivial.items()})
            features = None
            if self.evaluation.twins is not None and len(self.evaluation.twins) > 2:
                features, others = self.evaluation.encode_twins(self.model)
                results.update(label_free_figures(features, others))
            self._draw_sheets(step, features)
        return {**results, "eval_seconds": time.perf_counter() - started}

    def report(self, step: int, results: dict[str, float]) -> list[str]:
        """Returns a line of the figures, and lines of what is newly wrong."""
        twins = len(self.evaluation.twins) // 2 if self.evaluation.twins is not None else 0
        line = describe(results, self.model.config.hidden_size, twins)
        return [f"step {step}: {line}", *self.alarms(step, results, twins)]

    # ------------------------------------------------------------------------------------------------------------------
    # Pictures

    def draw_reconstructions(self) -> PIL.Image.Image | None:
        """Returns a sheet of reconstructions, or `None` if the target has no way back to pixels."""
        images = self.images[:_RECONSTRUCTED]
        with self._as_in_training(), suppress(NotImplementedError):
            return reconstruction_sheet(self.model, self._processor, images, columns=3, **self.masks)
        return None

    def draw_progress(self, lines: Sequence[dict[str, float]]):
        """Draws `progress.png` from the log so far and the newest sheet, in the main process."""
        path = self._newest("step") or self._newest("patches")
        sheet = PIL.Image.open(path) if path else None
        self._save(progress_picture(lines, sheet), self.output_dir / "progress.png")

    def copy_pictures(self, folder: Path):
        """Copies the newest sheet of reconstructions and the progress into a folder to push."""
        pictures = {"reconstructions.png": self._newest("step"), "progress.png": self.output_dir / "progress.png"}
        for name, path in pictures.items():
            if path is not None and path.exists():
                shutil.copy2(path, folder / name)

    def _newest(self, kind: str) -> Path | None:
        """Returns the newest sheet of a kind that was saved."""
        return max((self.output_dir / "sheets").glob(f"{kind}-*.png"), default=None)

    @property
    def _processor(self):
        return self.evaluation.images.image_processor

    def _draw_sheets(self, step: int, features: torch.Tensor | None):
        sheets = {"reconstructions": self.draw_reconstructions(), "patches": self._draw_patches()}
        if not self.accelerator.is_main_process:
            return
        if features is not None and features.isfinite().all():
            queries = evenly_spaced(len(features), _QUERIES)
            sheets["neighbors"] = neighbor_sheet(features, self.evaluation.twins.picture, queries.tolist())
        for name, sheet in sheets.items():
            if sheet is not None:
                self._track(name, sheet, step)
                kind = "step" if name == "reconstructions" else name
                self._save(sheet, self.output_dir / "sheets" / f"{kind}-{step:07}.png")

    @torch.no_grad()
    def _draw_patches(self) -> PIL.Image.Image | None:
        """Returns the sheet of patches in the main process."""
        was_training, grid_size = self.model.training, self.model.config.grid_size
        self.model.eval()
        batches = self.images.split(self.evaluation.batch_size)
        states = [self.model.mae(batch.to(self.model.device)).last_hidden_state for batch in batches]
        self.model.train(was_training)
        patches = torch.cat(states)[:, -math.prod(grid_size) :].float().unflatten(1, grid_size)
        if not self.accelerator.is_main_process or not patches.isfinite().all():
            return None
        path = self.output_dir / "sheets" / "patches.safetensors"  # so that a run that goes on keeps its colours
        if self._projections is None and path.exists():
            with suppress(OSError, SafetensorError):  # a full disk or the end of the power may have cut it
                self._projections = load_file(path)["projections"]
        colors, self._projections = patch_colors(patches, self._projections)
        with suppress(OSError, SafetensorError), keeping_permissions(path):
            save_file({"projections": self._projections.contiguous()}, path)
        return pca_sheet(self._processor.post_process_reconstruction(self.images[:_COLORED]), colors)

    def _save(self, picture: PIL.Image.Image, path: Path):
        """Saves a picture that may be open somewhere, or be replaced in mid-write."""
        partial = path.with_suffix(".partial")
        with suppress(OSError):  # a full disk is reported where it matters, when saving
            picture.save(partial, "PNG")
            partial.replace(path)

    def _track(self, name: str, picture: PIL.Image.Image, step: int):
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: np.array(picture)[None]}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: [picture]}, step=step)


class Alarms:
    """Says that a model learns nothing, or that its features have collapsed: once, until it was right in between."""

    def __init__(self, warmup_steps: int):
        """
        Args:
            warmup_steps (`int`): Steps of a rising learning rate, in which there are no alarms.
        """
        self.warmup_steps = warmup_steps
        self._known: dict[str, bool] = {}

    def __call__(self, step: int, results: dict[str, float], num_images: int | None = None) -> list[str]:
        """Returns what is new at this step.

        Args:
            step (`int`): Steps taken.
            results (`dict[str, float]`): As [`RunEvaluation.measure`] returns them.
            num_images (`int`, *optional*): How many images have features, see [`collapse`].
        """
        if step < self.warmup_steps:
            return []
        alarms = {"constant": _not_below_constant(results), "collapse": collapse(results, num_images)}
        new = [f"Step {step}: {text}" for name, text in alarms.items() if text and not self._known.get(name)]
        self._known = {name: text is not None for name, text in alarms.items()}
        return new


def _not_below_constant(results: dict[str, float]) -> str | None:
    loss, constant = results["eval_loss"], results.get("eval_loss_constant")
    # A model that predicts the constant is a little above or below it.
    if constant is None or loss < constant - 0.01 * abs(constant):
        return None
    return (
        f"the loss {loss:.4f} is not below {constant:.4f}, which predicting the same for every patch would give. The "
        "model has learnt nothing yet. If the loss has come to rest there, start again with a lower "
        "`base_learning_rate`; if it is far above and falls slowly, with a higher one."
    )


def describe(results: dict[str, float], width: int, num_twins: int) -> str:
    """Returns the figures of an evaluation in a line to read.

    Args:
        results (`dict[str, float]`): As [`RunEvaluation.measure`] returns them. What is missing is left out.
        width (`int`): Dimensions of the features.
        num_twins (`int`): Images among which twins are looked for.
    """
    loss = results["eval_loss"]
    compared = []
    for name in ("constant", "interpolation"):
        base = results.get(f"eval_loss_{name}", math.nan)
        if base > 0 and math.isfinite(loss):
            compared.append(f"{abs(1 - loss / base):.0%} {'below' if loss <= base else 'above'} {_NAMES[name]}")
    parts = [f"loss {loss:.4f}" + (f" ({', '.join(compared)})" if compared else "")]
    formats = {
        "knn_accuracy": "k-NN {:.1%}",
        "effective_rank": f"rank {{:.1f}} of {width}",
        "twin_retrieval": f"twins {{:.1%}} of {num_twins}",
        "mean_cosine": "cosine {:.2f}",
    }
    return ", ".join(parts + [text.format(results[name]) for name, text in formats.items() if name in results])


__all__ = ["Alarms", "RunEvaluation", "describe", "num_twins"]
