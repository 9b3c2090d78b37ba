# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What segmentation and detection share beyond what all fine-tuning does: settings, messages, trained heads."""

import copy
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..cli import in_flags
from ..modeling.configuration_mae import MAEConfig, height_width
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae_downstream import find_backbone
from ..publishing.records import write_json
from ..training.arguments import read_class_names
from ..training.run_record import run_record
from .settings import FineTuningArguments
from .trainer import FineTuned, FineTuningTrainer


def settle_head(args):
    """Reads `class_names` from a file if one is named, and refuses settings that make no sense.

    Args:
        args ([`SegmentationArguments`] or [`DetectionArguments`]): The settings, which are changed.

    Raises:
        ValueError: If the model is missing, or a size, a scale or the names of classes make no sense.
        OSError: If there is no file with the names.
    """
    if not (args.model_name_or_path or args.preset):
        raise ValueError(
            "`model_name_or_path` is missing: a folder or a name on the Hub with a model of hf_mae. Without any "
            "pre-training set `preset` to tiny, small, base, large or huge."
        )
    if args.image_size is not None and (len(args.image_size) not in (1, 2) or min(args.image_size) < 1):
        raise ValueError(f"`image_size` must be a side, or height and width, in pixels, got {args.image_size}.")
    if args.eval_only or getattr(args, "predict_only", False):
        args.refuse_for_finished("image_size", "from_scratch")
    if not 0 < args.min_scale <= args.max_scale:
        raise ValueError(f"`min_scale` {args.min_scale} must be positive and at most `max_scale` {args.max_scale}.")
    args.class_names = read_class_names(args.class_names)


def say(args: FineTuningArguments, *texts: str):
    """Prints texts in the main process, each in a line of its own, with parameters in backticks as flags.

    Args:
        args ([`FineTuningArguments`]): Says which process this is.
        *texts (`str`): What to print.
    """
    if args.process_index == 0:
        for text in texts:
            print(in_flags(text), flush=True)


def whole_image_processor(args, config: MAEConfig) -> MAEImageProcessor:
    """Returns the checkpoint's image processor, or a new one, that resizes whole images to the size of the model.

    Args:
        args ([`SegmentationArguments`] or [`DetectionArguments`]): Says which checkpoint, and how files are read.
        config ([`MAEConfig`]): Size and channels of the model.
    """
    height, width = height_width(config.image_size)
    size = {"height": height, "width": width}
    changes = {"size": size, "crop_size": size, "do_center_crop": False}
    if args.model_name_or_path is None:
        changes["num_channels"] = config.num_channels
    return args.load_image_processor(args.model_name_or_path, **changes)


def trained_head(model_name_or_path: str | None, *config_classes: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    """Returns the configuration of a trained head with its encoder, `None` if there is another model or none.

    Args:
        model_name_or_path (`str`, *optional*): Folder or name on the Hub.
        *config_classes (`type`): Kinds of heads.

    Raises:
        OSError: If there is no such model.
        ValueError: If it is such a head on an encoder that is none of hf_mae.
    """
    if model_name_or_path is None:
        return None
    if os.path.exists(model_name_or_path):  # a folder may hold another model the next time
        fields, _ = MAEConfig.get_config_dict(model_name_or_path)
    else:
        fields = copy.deepcopy(_fields_on_hub(model_name_or_path))
    config_class = {each.model_type: each for each in config_classes}.get(fields.get("model_type"))
    if config_class is None:
        return None
    config = config_class.from_dict(fields)
    if not isinstance(config.backbone_config, MAEConfig):
        raise ValueError(
            f"{model_name_or_path} is a {config.model_type} on an encoder that is none of hf_mae. Start from a model "
            "that hf_mae has trained."
        )
    return config


@cache
def _fields_on_hub(name: str) -> dict:
    """Returns a configuration of the Hub. A run asks for it several times, each of which would be a request."""
    return MAEConfig.get_config_dict(name)[0]


def load_head(model: PreTrainedModel, model_name_or_path: str, of_classes: Sequence[str], sizes: str):
    """Loads the weights of a trained head and its encoder. Layers for the classes start anew if these are others.

    Args:
        model ([`~transformers.PreTrainedModel`]): Gets the weights; its images may have another size.
        model_name_or_path (`str`): Folder or name on the Hub of a model of the same class.
        of_classes (`Sequence[str]`): Parts of the names of weights that depend on the classes.
        sizes (`str`): Names of the settings that decide on the sizes of the head, for messages.

    Raises:
        ValueError: If the head has other sizes.
    """
    trained = type(model).from_pretrained(model_name_or_path, dtype=torch.float32)
    find_backbone(trained).resize_position_embeddings(find_backbone(model).config.image_size)
    weights, places = trained.state_dict(), model.state_dict()
    if trained.config.id2label != model.config.id2label:
        print(f"The classes differ from the {trained.config.num_labels} that the model knows: they start anew.")
        weights, places = (
            {name: weight for name, weight in some.items() if not any(part in name for part in of_classes)}
            for some in (weights, places)
        )
    shapes, wanted = ({name: weight.shape for name, weight in some.items()} for some in (weights, places))
    others = [name for name in {**shapes, **wanted} if shapes.get(name) != wanted.get(name)]
    if others:
        raise ValueError(
            f"{model_name_or_path} has other sizes than {sizes} say, first in {others[0]}. Leave these settings out, "
            "or set `from_scratch`."
        )
    model.load_state_dict(weights, strict=False)


def train_head(
    trainer: FineTuningTrainer, recipe: dict, num_images: int, checkpoint: Path | None, sheet: str
) -> FineTuned:
    """Trains a head to its end and leaves model, figures, record, card and a sheet in the output folder.

    Args:
        trainer ([`FineTuningTrainer`]): Has the model and the images. Its `args` have `data`.
        recipe (`dict`): The settings of the run, as they were given.
        num_images (`int`): Number of training images.
        checkpoint (`Path` or `None`): Where to go on, see [`check_experiment`].
        sheet (`str`): File name of the sheet that the trainer draws.
    """
    args = trainer.args
    data = {"data": args.data} if args.data else {}
    metrics = trainer.run({**run_record(recipe), **data, "num_images": num_images}, checkpoint)
    say(args, f"Done: model, eval_results.json and {sheet} are in {args.output_dir}.")
    return FineTuned(trainer.model, metrics, Path(args.output_dir))


def evaluate_head(trainer: FineTuningTrainer, record: dict, sheet: str) -> FineTuned:
    """Evaluates a trained head and writes `evaluation.json` and a sheet into the output folder.

    Args:
        trainer ([`FineTuningTrainer`]): Has the model and the images.
        record (`dict`): Describes how the figures were made, see [`hf_mae.training.run_record.run_record`].
        sheet (`str`): File name of the sheet that the trainer draws.
    """
    folder = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)  # before the work, which would be lost if that fails
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        trainer.log_metrics("eval", metrics)
        metrics = trainer.describe_results(metrics)
        write_json(folder / "evaluation.json", {**record, "metrics": metrics})
        print(f"Done: evaluation.json and {sheet} are in {folder}.")
    return FineTuned(trainer.model, metrics, folder)


__all__ = ["evaluate_head", "load_head", "say", "settle_head", "train_head", "trained_head", "whole_image_processor"]
