# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The settings that all tasks share, with the defaults of the paper, and what follows from them for the images."""

import os
from argparse import SUPPRESS
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from ..conversion.image_processors import load_image_processor
from ..data.checking import check_images
from ..data.held_out import DEFAULT_SHARE
from ..data.image_source import ImageSource
from ..data.label_values import SINGLE
from ..data.labels import names_of_labels, number_labels, open_labelled
from ..modeling.image_processing_mae import MAEImageProcessor
from ..publishing.hub import HubPush
from ..publishing.records import read_record
from ..training.arguments import check_compile_mode, check_output, fit_values, names_of, recipe_of
from ..training.data_settings import ColumnSettings, HeldOutSettings, StoredValueSettings
from ..training.distributed import (
    call_in_main_process,
    chosen_precision,
    joining_processes,
    local_num_workers,
    uses_cpu,
)

logger = logging.get_logger(__name__)

# What follows from the machine or the task is no part of a recipe.
_NOT_IN_RECIPE = {"output_dir", "data", "overwrite_output_dir", "bf16", "use_cpu", "batch_eval_metrics"}
_NOT_IN_RECIPE |= {"dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"}


@dataclass
class FineTuningArguments(TrainingArguments):
    """Training, saving and logging.

    AdamW with the weight decay of He et al. 2021, Table 9; the other defaults are ours.

    Args:
        layer_decay (`float`, *optional*, defaults to 0.75): Factor of the learning rate from each block of the encoder
            to the one before, see [`layer_decay_parameter_groups`].
        **kwargs: Arguments of [`~transformers.TrainingArguments`].
    """

    overwrite_output_dir: bool = HfArg(default=False, help="Delete the run that the output folder holds.")
    layer_decay: float = HfArg(default=0.75, help="Factor of the learning rate from each block to the one before.")
    weight_decay: float = HfArg(default=0.05, help="Weight decay of matrices.")
    adam_beta2: float = HfArg(default=0.999, help="Second beta of AdamW.")
    max_grad_norm: float = HfArg(default=0.0, help="Gradients are clipped to this norm. 0, as in the paper: never.")
    bf16: bool | None = HfArg(default=None, help="Mixed precision. Default: where a GPU has it.")
    eval_strategy: str = HfArg(default="epoch", help="When to evaluate: no, steps or epoch.")
    save_strategy: str = HfArg(default="epoch", help="When to save: no, steps or epoch.")
    save_total_limit: int | None = HfArg(default=2, help="Number of checkpoints to keep.")
    logging_steps: float = HfArg(default=20, help="Steps between two lines of the log.")
    dataloader_num_workers: int | None = HfArg(
        default=None, help="Loader processes. Default: one per CPU core with a GPU, none without."
    )
    report_to: str = HfArg(default="none", help="Trackers: tensorboard, trackio, wandb, ...")
    # Not shown in the help, as there is no reason to change them.
    logging_nan_inf_filter: bool = HfArg(default=False, help=SUPPRESS)  # a loss that is not finite ends the run
    dataloader_pin_memory: bool | None = HfArg(default=None, help=SUPPRESS)
    dataloader_persistent_workers: bool | None = HfArg(default=None, help=SUPPRESS)
    ddp_find_unused_parameters: bool = HfArg(default=False, help=SUPPRESS)  # all have a gradient
    remove_unused_columns: bool = HfArg(default=False, help=SUPPRESS)  # our data sets have only what is used

    def __post_init__(self):
        fit_values(self)
        check_output(getattr(self, "data", None), self.output_dir)
        if self.fsdp or self.deepspeed or parse_flag_from_env("ACCELERATE_USE_FSDP"):  # Trainer ends without a model
            raise ValueError(
                "Models are sharded in pre-training only. Leave out `fsdp` and `deepspeed`, and start processes with "
                "torchrun, or with a configuration such as examples/accelerate/eight_gpus.yaml."
            )
        if self.resume_from_checkpoint is not None:
            raise ValueError(
                "`resume_from_checkpoint` is not needed: a run goes on from the newest complete checkpoint in "
                "`output_dir`. Leave it out."
            )
        # What depends on the machine is asked here and not at import, which should not touch a GPU.
        # transformers does not look at the environment in a run of one process, Accelerate does.
        # Where there is nothing but a CPU, transformers wants to be told so before it computes in bfloat16.
        self.use_cpu: bool = self.use_cpu or uses_cpu() or not torch.accelerator.is_available()
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        if self.bf16 is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
            precision = "fp16" if self.fp16 else chosen_precision(device, ("no", "bf16", "fp16"))
            self.fp16: bool = precision == "fp16"
            self.bf16 = precision == "bf16"
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = on_gpu
        if self.accelerator_config is None:  # batches are copied while the device computes
            self.accelerator_config: dict | None = {"non_blocking": self.dataloader_pin_memory}
        workers = self.dataloader_num_workers
        self.dataloader_num_workers = int(on_gpu) if workers is None else workers
        check_compile_mode(
            self.torch_compile_mode,
            self.gradient_accumulation_steps,
            "`gradient_accumulation_steps` 1 and a larger `per_device_train_batch_size`",
        )
        self.check_best()
        if self.label_smoothing_factor:
            raise ValueError(
                "`label_smoothing_factor` cannot handle the labels of these tasks. Leave it out, or in fine-tuning for "
                "classes set `label_smoothing`."
            )
        with joining_processes():
            super().__post_init__()
        self.mixed_precision = "fp16" if self.fp16 else "bf16" if self.bf16 else "no"  # not the launcher's any more
        if "tensorboard" in self.report_to and not is_tensorboard_available():  # transformers would blame torch
            raise ValueError("`report_to` tensorboard: it is not installed (pip install tensorboard).")
        if workers is None and on_gpu:  # on a CPU the model has better use for the cores
            self.dataloader_num_workers = local_num_workers()
        # DataLoader refuses persistent workers where there are none.
        self.dataloader_persistent_workers = (
            self.dataloader_persistent_workers is not False and self.dataloader_num_workers > 0
        )
        if self.hub_token:  # else it would be pickled with the arguments into the folder of the model
            os.environ["HF_TOKEN"] = self.hub_token
            self.hub_token: str | None = None
        if self.push_to_hub:  # refuses at once what would fail when the trainer is made, after an old run is deleted
            HubPush(self.output_dir, self.hub_model_id, self.hub_private_repo)

    def check_best(self):
        """Refuses to keep the best model where none is evaluated.

        Raises:
            ValueError: If `eval_strategy` is no, and the best model is to be saved or loaded.
        """
        wanted = self.load_best_model_at_end or self.save_strategy == SaveStrategy.BEST
        if wanted and self.eval_strategy == IntervalStrategy.NO:
            raise ValueError(
                "No model is evaluated during the run, so that none is the best. Set `eval_strategy` to steps or epoch "
                "and have images to evaluate on, or leave out `load_best_model_at_end` and `save_strategy` best."
            )

    def refuse_for_finished(self, *names: str):
        """Refuses settings of training where a finished model is taken as it is.

        Args:
            *names (`str`): Settings that are `None` or `False` where they are not given.

        Raises:
            ValueError: If one of them is given.
        """
        for name in names:
            if getattr(self, name):
                raise ValueError(f"`{name}` is for training, and the model is taken as it is here. Leave it out.")

    def warn_of_training_images(self):
        """Warns if a model is evaluated on all images of the data that it was trained on, because they have no splits.

        Whether they are the same is seen by the path in the model's record.
        """
        recorded = _record_of(self.model_name_or_path).get("data")
        if recorded is not None and os.path.realpath(recorded) == os.path.realpath(self.data):
            logger.warning(
                f"{self.data} has no splits, so these are all its images, also those that {self.model_name_or_path} "
                "was trained on. Their figures are higher than those of new images. Give other images as `data`."
            )

    @property
    def effective_batch_size(self) -> int:
        """Images of one optimizer step, over all devices and accumulated batches."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def recipe(self) -> dict:
        """Returns the settings that make the run repeatable: those that differ from the defaults."""
        return recipe_of(self, _NOT_IN_RECIPE)


@dataclass
class OrientationArguments:
    """Orientation of training images."""

    horizontal_flip: bool = HfArg(default=True, help="Mirror half of the images left to right.")
    vertical_flip: bool = HfArg(default=False, help="Mirror half of the images top to bottom.")
    rotate90: bool = HfArg(default=False, help="Rotate images by 0, 90, 180 or 270 degrees.")

    def check_rotation(self, size: tuple[int, int]):
        """Refuses to rotate images that would then have another size.

        Args:
            size (`(height, width)`): Pixels of the model's images.

        Raises:
            ValueError: If images are to be rotated and are not square.
        """
        if self.rotate90 and size[0] != size[1]:
            raise ValueError(f"`rotate90` needs square images, got {size[0]} x {size[1]} pixels.")


@dataclass
class HeldOutArguments(HeldOutSettings):
    """Held-out images, where the data have no second split."""

    held_out: float = HfArg(
        default=DEFAULT_SHARE, help="Share of the images kept back to evaluate on, by a hash of their names."
    )

    @property
    def held_out_options(self) -> dict:
        """The arguments of [`open_labelled`] that say what is kept back."""
        return {"held_out": self.held_out, "group_by": self.group_by}


@dataclass
class ReadingArguments(HeldOutArguments, ColumnSettings, StoredValueSettings):
    """What an image is, how its values are read, and which images are held out."""

    def load_image_processor(self, model_name_or_path: str | None, **changes) -> MAEImageProcessor:
        """Returns the image processor of a checkpoint, or a new one, that reads images as these settings say.

        Args:
            model_name_or_path (`str`, *optional*): Folder or name on the Hub.
            **changes: Other arguments of [`MAEImageProcessor`].
        """
        names = names_of(StoredValueSettings)
        changes.update({name: getattr(self, name) for name in names if getattr(self, name) is not None})
        if model_name_or_path is None:
            return MAEImageProcessor(**changes)
        return load_image_processor(model_name_or_path, **changes)

    def source_options(self, image_processor: MAEImageProcessor) -> dict:
        """Returns the arguments of [`open_images`] that say what an image is."""
        columns = {name: getattr(self, name) for name in names_of(ColumnSettings)}
        return {**columns, "reading": image_processor.reading}


def check_sources(image_processor: MAEImageProcessor, *sources: ImageSource | None):
    """Reads some images of each source and refuses those that do not suit the model, see [`check_images`].

    Args:
        image_processor ([`MAEImageProcessor`]): Says how many channels the model has and how files are read.
        *sources ([`ImageSource`] or `None`): The images.
    """
    channels, reading = image_processor.num_channels, image_processor.reading
    for images in sources:
        if images is not None:
            checked = call_in_main_process(partial(check_images, images, channels, reading))
            for note in checked.notes[len(images.notes) :]:  # which were said when the source was opened
                logger.warning_once(note)


def warn_of_divided_groups(args):
    """Says so if single images are held out, and a model was trained with whole groups of images held out.

    Args:
        args: Settings with `group_by`, and `model_name_or_path` or a list `model`.
    """
    models = [getattr(args, "model_name_or_path", None), *getattr(args, "model", [])]
    for name in [] if args.group_by else filter(None, models):
        if group_by := _record_of(name).get("recipe", {}).get("group_by"):
            logger.warning(
                f"{name} was trained with `group_by` {group_by}, and here images are held out one by one. Where "
                "several belong together, some are trained on and others evaluated on, and figures are too good. Set "
                f"`group_by` to {group_by}."
            )


def _record_of(model_name_or_path: str | os.PathLike) -> dict:
    """Returns the record of the run that made a model, which lies next to its checkpoints."""
    folder = Path(model_name_or_path)
    return read_record(folder.parent if folder.name.startswith("checkpoint-") else folder)


def open_classes(args, **options) -> tuple[ImageSource, ImageSource, list[str]]:
    """Returns the images to train and to evaluate a probe on, labelled by one class each, and the names of the classes.

    Args:
        args ([`ProbingArguments`] or [`EvaluationArguments`]): `data`, `label_column` and which images are held out.
        **options: Other arguments of [`open_labelled`].

    Raises:
        ValueError: If there are no images to evaluate on, or labels do not fit.
    """
    train_images, test_images = open_labelled(args.data, args.label_column, SINGLE, **args.held_out_options, **options)
    if train_images.num_held_out:
        warn_of_divided_groups(args)
    if test_images is None:
        raise no_test_images(train_images.name)
    names = names_of_labels(train_images)
    number_labels(names, train_images, test_images)
    return train_images, test_images, names


def no_test_images(name: str) -> ValueError:
    """Returns the error of a source without images to evaluate on."""
    return ValueError(f"{name} has no images to evaluate on: set `held_out`, or put some below a folder `val`.")


def limit_batch_size(args: FineTuningArguments, num_images: int):
    """Lowers the size of training batches to what there is, for models that normalise over a batch.

    Args:
        args ([`FineTuningArguments`]): `per_device_train_batch_size` is changed.
        num_images (`int`): Number of training images.

    Raises:
        ValueError: If a batch would have fewer than two images.
    """
    size = min(args.per_device_train_batch_size, num_images // args.world_size)
    if size < 2:
        raise ValueError(
            f"The model normalises over a batch and needs 2 images on each of {args.world_size} device(s), got "
            f"{num_images} in all and `per_device_train_batch_size` {args.per_device_train_batch_size}."
        )
    args.per_device_train_batch_size = size


__all__ = [
    "FineTuningArguments",
    "HeldOutArguments",
    "OrientationArguments",
    "ReadingArguments",
    "check_sources",
    "limit_batch_size",
    "no_test_images",
    "open_classes",
    "warn_of_divided_groups",
]
