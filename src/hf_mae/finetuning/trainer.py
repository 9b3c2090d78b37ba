# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains what is built on a pre-trained encoder: Trainer with the paper's defaults, and what all tasks share.

A task (see `classification.py` and `segmentation.py`) brings its data, its model and a [`FineTuningTrainer`]. Shared
are the settings, in `settings.py`, and here the layer-wise learning rates, complete checkpoints, the end of a run that
is stopped or diverges, and what is left behind: model, figures, record and card. `experiment.py` checks the output
folder.
"""

import json
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy

from ..data.datasets import are_counted
from ..data.sampling import RowGroupSampler
from ..modeling.saving_mae import share_weights
from ..publishing.hub import HubPush, link_files
from ..publishing.model_cards import write_model_card
from ..publishing.records import save_record, write_json
from ..training.checkpointing import (
    list_checkpoints,
    naming_failed_saves,
    remove_checkpoint,
    unlock_run,
    write_manifest,
)
from ..training.optimization import layer_decay_parameter_groups
from ..training.step_guard import RunStopped, StopSignals, end_workers, with_prepared_workers

_SECONDS = "training_seconds.json"  # in checkpoints: the time until then


@dataclass
class FineTuned:
    """Holds what a run gives.

    Attributes:
        model (`nn.Module`): The trained model, as it is saved.
        metrics (`dict[str, float]`): Figures on the evaluation images.
        output_dir (`Path`): Folder that holds the model.
    """

    model: nn.Module
    metrics: dict
    output_dir: Path


class _StopAtSignal(TrainerCallback):
    """Saves and ends a run at the first step after a stop signal came to one of its processes."""

    def __init__(self, signals: StopSignals):
        self.signals, self.number = signals, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.number = self.signals.number
        if args.world_size > 1:
            number = torch.tensor(self.number, device=args.device)
            dist.all_reduce(number, dist.ReduceOp.MAX)
            self.number = int(number)
        if self.number:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.number:  # the step has saved, and there is no time to evaluate
            control.should_save = control.should_evaluate = False
        return control


class _FindBest(TrainerCallback):
    """Looks for the best model in the folder of the run, which may have been moved since it was saved."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.best_global_step:
            state.best_model_checkpoint = os.path.join(args.output_dir, f"checkpoint-{state.best_global_step}")


class _EndIfNotFinite(TrainerCallback):
    """Ends a run before the step whose loss or gradient is not finite, since its weights would be lost."""

    loss: torch.Tensor

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        loss, norm = self.loss.float(), torch.zeros((), device=args.device)
        if not args.fp16:  # there the scaler leaves out such steps and lowers its scale
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        loss, norm = torch.stack([loss, norm.float()]).tolist()  # waits for the device, once
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise FloatingPointError(
                f"Loss {loss:g} and gradient norm {norm:g} at step {state.global_step + 1}: training ends "
                "before this step, and nothing is published. The last checkpoint stays. Look for images whose values "
                "are not finite; otherwise lower the learning rate, set `max_grad_norm` to 1, or set `bf16` to false."
            )
        return control


class SeededDataset(Dataset):
    """Makes the randomness of each sample a function of seed, epoch and index.

    Then a run that is resumed within an epoch sees the same samples, however many were prepared when it stopped, and so
    does one with another number of loader workers.
    """

    def __init__(self, dataset: Dataset, seed: int):
        """
        Args:
            dataset (`Dataset`): Gives samples by index, with randomness from torch's generator.
            seed (`int`): Seed of the run.
        """
        self.dataset, self.seed = dataset, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that live for several epochs

    def start_epoch(self, epoch: int):
        """Sets the epoch, from 0. Not named `set_epoch`, which Accelerate would call with 0 when a run is resumed."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        (seed,) = np.random.SeedSequence([self.seed, int(self.epoch), index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # `torch.manual_seed` would seek devices of all kinds, which takes as long as half a small sample.
            torch.default_generator.manual_seed(int(seed))
            return self.dataset[index]


class _StartEpoch(TrainerCallback):
    """Tells a [`SeededDataset`] which epoch begins."""

    def __init__(self, dataset: SeededDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.start_epoch(int((state.epoch or 0) + 1e-6))  # of a resumed run it has a fraction


class FineTuningTrainer(Trainer):
    """Trainer with layer-wise learning rates and complete checkpoints; its `args` are [`FineTuningArguments`]."""

    train_dataset: Dataset | None
    optimizer: torch.optim.Optimizer | None
    drops_last_batch = False  # whether the model cannot be trained on a last batch of one image
    loss_is_a_figure = False  # whether `compute_metrics` gives the loss, see [`counted`]

    def __init__(self, *args, **kwargs):
        """
        Args:
            *args, **kwargs: Arguments of [`~transformers.Trainer`].
        """
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # losses are means of a batch, to be divided by the accumulation steps
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = True  # else DDP holds all gradients twice
        if self.train_dataset is not None and not isinstance(self.train_dataset, IterableDataset):
            self.train_dataset = SeededDataset(self.train_dataset, self.args.seed)
            self.add_callback(_StartEpoch(self.train_dataset))
        self.seconds_before, self.started = 0.0, time.perf_counter()
        self._save_total_limit = self.args.save_total_limit
        self._position = (-1, 0)  # step, and which of the batches whose gradients are accumulated
        self._finite = _EndIfNotFinite()
        self.add_callback(self._finite)
        self.add_callback(_FindBest())

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Makes the optimizer, whose learning rate falls from block to block towards the embeddings."""
        if self.optimizer is None:
            args = self.args
            groups = layer_decay_parameter_groups(self.model, args.learning_rate, args.weight_decay, args.layer_decay)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, self.model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _get_learning_rate(self) -> float:
        """Returns the full rate, for the log. Trainer would take that of the first group, the embeddings."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def _determine_best_metric(self, metrics: dict, trial) -> bool:
        """Says whether a model is the best so far."""
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError:
            named = ", ".join(sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_")))
            raise ValueError(
                f"`metric_for_best_model` {self.args.metric_for_best_model} is none of the figures: {named}."
            ) from None

    def _run_epoch(self, *args, **kwargs):
        """Trains for an epoch. Trainer would take a step more if a run that has taken its last is started again."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """Computes the gradients of a batch and returns its loss, which is checked before the optimizer's step."""
        self._seed_part_of_step()
        self._finite.loss = super().training_step(*args, **kwargs)
        return self._finite.loss

    def _seed_part_of_step(self):
        """Makes mixup, cutmix, erasing and drop path a function of the position in the run and of the process."""
        step, (last_step, last_part) = self.state.global_step, self._position
        self._position = (step, last_part + 1 if step == last_step else 0)
        seeds = np.random.SeedSequence([self.args.seed, *self._position, self.args.process_index])
        torch.manual_seed(int(seeds.generate_state(1)[0]))

    # Loaders ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _drop_last(self, drop: bool):
        """Says whether the last, incomplete batch is left out. TrainingArguments has one setting for all loaders."""
        before, self.args.dataloader_drop_last = self.args.dataloader_drop_last, drop
        try:
            yield
        finally:
            self.args.dataloader_drop_last = before

    def get_train_dataloader(self) -> DataLoader:
        """Returns the loader of the training images, in an order that all processes agree on."""
        torch.manual_seed(self.args.seed)
        with self._drop_last(self.args.dataloader_drop_last or self.drops_last_batch):
            return with_prepared_workers(super().get_train_dataloader())

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Returns the order of the training images: random, and by row group where they are read so."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        images = getattr(getattr(dataset, "dataset", None), "images", None)
        if getattr(images, "row_groups", None) is None:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return RowGroupSampler(
            images, seed, self.args.train_batch_size * self.args.world_size, lambda: int(dataset.epoch)
        )

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Returns the loader of the evaluation images, which never leaves out any."""
        with self._drop_last(False):
            return with_prepared_workers(super().get_eval_dataloader(eval_dataset))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns no loss if the figures have it: the loss of the last batch would count the images that fill it up."""
        if not self.loss_is_a_figure:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            return None, model(**inputs).logits.float(), labels

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        share_weights(output_dir or self.args.output_dir)  # of heads, which are models of transformers

    def _save_checkpoint(self, model, trial):
        """Saves a checkpoint and then its manifest, without which it counts as incomplete."""
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero() and checkpoint.exists():  # what an interrupted save left
            remove_checkpoint(checkpoint)
        try:
            with naming_failed_saves(self.args.output_dir, self._same_command):
                super()._save_checkpoint(model, trial)
        except RunStopped:
            shutil.rmtree(checkpoint, ignore_errors=True)  # what is there of it would keep the disk full
            raise
        self.accelerator.wait_for_everyone()  # each process has written its random state
        if self.is_world_process_zero():
            (checkpoint / _SECONDS).write_text(json.dumps(self.seconds) + "\n")
            write_manifest(checkpoint)
            self._remove_old_checkpoints(checkpoint)

    def _remove_old_checkpoints(self, newest: Path):
        """Keeps as many as there may be, and the best. Trainer would count broken ones of later steps as the newest."""
        limit = self._save_total_limit
        kept = {newest.name, Path(self.state.best_model_checkpoint or newest).name}
        done = list_checkpoints(self.args.output_dir, self.state.global_step)
        if limit is not None and limit > 0:
            for old in [path for path in done if path.name not in kept][max(limit - len(kept), 0) :]:
                remove_checkpoint(old)

    # Runs -------------------------------------------------------------------------------------------------------------

    def run(self, record: dict, checkpoint: Path | None = None) -> dict:
        """Trains, evaluates, saves and publishes.

        Args:
            record (`dict`): Describes the run, see [`hf_mae.training.run_record.run_record`].
            checkpoint (`Path`, *optional*): Where to go on, see [`check_experiment`].

        Returns:
            `dict`: Figures on the evaluation images, empty if there are none.

        Raises:
            RunStopped: If a signal stopped the run, which has saved a checkpoint.
            FloatingPointError: If a loss or a gradient was not finite.
        """
        if checkpoint is not None and self.is_world_process_zero():
            print(f"Continues from {checkpoint}.", flush=True)
        there_before = multiprocessing.active_children()
        try:
            if checkpoint is not None and (seconds := checkpoint / _SECONDS).exists():
                self.seconds_before = json.loads(seconds.read_text())
            record = {**record, "hours": self._train_until_stopped(checkpoint) / 3600}
            self.finish_model()
            with naming_failed_saves(self.args.output_dir, self._same_command):
                self.save_model(_internal_call=True)  # it is pushed later, together with its card
            metrics = self.evaluate() if self.eval_dataset is not None else {}
            if self.is_world_process_zero():
                if metrics:
                    self.log_metrics("eval", metrics)
                metrics = self.describe_results(metrics)
                for name in ("eval_results.json", "all_results.json"):  # whole, and also where older ones are cut off
                    write_json(Path(self.args.output_dir) / name, metrics)
            self.publish({**record, "metrics": metrics})
            return metrics
        finally:
            end_workers(there_before)  # else Python, at its end, would wait for workers that ignore its SIGTERM
            unlock_run(self.args.output_dir)

    def _train_until_stopped(self, checkpoint: Path | None) -> float:
        """Trains to the end and returns the seconds of all parts. Raises [`RunStopped`] if a signal came."""
        self.started = time.perf_counter()
        with StopSignals() as signals:
            stop = _StopAtSignal(signals)
            self.add_callback(stop)
            # Old checkpoints go when a new one is complete. With a limit of 1 Trainer would delete all but the best one
            # at the end, also at that of a run that was stopped.
            self.args.save_total_limit = None
            try:
                self.train(resume_from_checkpoint=None if checkpoint is None else os.fspath(checkpoint))
            finally:
                self.args.save_total_limit = self._save_total_limit
                self.remove_callback(stop)
        if stop.number:
            anew = "begins anew, as `save_only_model` saves weights alone." if self.args.save_only_model else ""
            raise RunStopped(
                f"Stopped by {signal.Signals(stop.number).name} after step {self.state.global_step} of "
                f"{self.state.max_steps}, which is saved in {self.args.output_dir}. {self._same_command.capitalize()} "
                f"{anew or 'goes on from there.'}",
                exit_status=128 + stop.number,
            )
        return self.seconds

    @property
    def _same_command(self) -> str:
        """What a run that ended early goes on with. A flag that deletes it must not stay."""
        return f"the same command{', without `overwrite_output_dir`,' * self.args.overwrite_output_dir}"

    @property
    def seconds(self) -> float:
        """Time that the training has taken, with its parts before interruptions."""
        return self.seconds_before + time.perf_counter() - self.started

    def finish_model(self):
        """Changes the trained model to what is saved. To be overridden; by default nothing is changed."""

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Returns the figures, with the statistics of the norms that are saved: those of the first process."""
        self.share_buffers()
        return super().evaluate(*args, **kwargs)

    def share_buffers(self):
        """Gives all processes the buffers of the first, which are saved, such as the statistics of batch norms."""
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)

    def describe_results(self, metrics: dict) -> dict:
        """Leaves pictures and tables of the last evaluation in the output folder and returns the figures to record.

        To be overridden. It is called by the main process only.

        Args:
            metrics (`dict`): Figures of the last evaluation, empty if there was none.
        """
        return metrics

    # The Hub ----------------------------------------------------------------------------------------------------------

    def init_hf_repo(self, *args, **kwargs):
        """Prepares pushes. The first one makes the repository, so that a run can start offline."""
        self._hub = HubPush(self.args.output_dir, self.args.hub_model_id, self.args.hub_private_repo)
        self.hub_model_id = self._hub.repo_id

    def _push_from_checkpoint(self, checkpoint_folder: str):
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            message = f"Step {self.state.global_step} of {self.state.max_steps}"
            self._hub.start(lambda folder: link_files(checkpoint_folder, folder), message)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs):
        """Pushes the output folder and waits for it. A failure is printed with the way to try again."""
        if self.is_world_process_zero():
            print(*self._hub.push(self.args.output_dir, commit_message), sep="\n")

    def publish(self, record: dict):
        """Writes record and model card into the folder of the model, and pushes them if `push_to_hub` is set.

        Args:
            record (`dict`): Made by [`hf_mae.training.run_record.run_record`], with further entries for the card, see
                [`write_model_card`].
        """
        if not self.is_world_process_zero():
            return
        write_record(self.args.output_dir, record, self.args.hub_model_id)
        if self.args.push_to_hub:
            if not (Path(self.args.output_dir) / "README.md").exists():  # our encoder is part of another model
                self.create_model_card()
            self.push_to_hub()


def counted(prediction: EvalPrediction) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns predictions, labels and the mean loss of the images that count, for a trainer whose loss is a figure.

    Args:
        prediction (`EvalPrediction`): `predictions` are predictions and the loss of each image.
    """
    (predicted, losses), labels = prediction.predictions, prediction.label_ids
    known = are_counted(torch.from_numpy(labels)).numpy()
    return predicted[known], labels[known], losses[known].mean(dtype=np.float64).item()


def write_record(output_dir: str | os.PathLike, record: dict, hub_model_id: str | None = None):
    """Writes `run.json` and the model card into the folder of a model.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the model.
        record (`dict`): See [`FineTuningTrainer.publish`].
        hub_model_id (`str`, *optional*): Name of the model on the Hub.
    """
    save_record(output_dir, record)
    write_model_card(output_dir, hub_model_id)


__all__ = ["FineTuned", "FineTuningTrainer", "SeededDataset", "counted", "write_record"]
