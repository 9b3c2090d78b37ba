# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Says what defines a pre-training run, and from which checkpoint and with which plan it goes on."""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from ..data.image_source import digest
from ..modeling.configuration_mae import MAEConfig
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining
from ..publishing.records import read_record
from ..training.arguments import comparable, names_of
from ..training.checkpointing import (
    check_output_dir,
    checkpoint_before_cooldown,
    hash_of_weights,
    load_training_state,
    refuse_to_delete,
)
from ..training.distributed import call_in_main_process
from .images import RunImages
from .schedule import Plan, resume_plan
from .settings import DEFINING_SETTINGS, PretrainingSettings

# Fields of a configuration that saving a model adds, to the object of the user, too.
_WRITTEN = ("architectures", "auto_map", "dtype", "transformers_version")


def defining_recipe(
    settings: PretrainingSettings,
    plan: Plan,
    images: RunImages,
    model: MAEConfig | MAEForPreTraining | None = None,
    image_processor: MAEImageProcessor | None = None,
) -> dict:
    """Returns what defines a run: a folder with another recipe holds another run.

    Args:
        settings ([`PretrainingSettings`]): The settings.
        plan ([`Plan`]): Images of a step.
        images ([`RunImages`]): The images.
        model ([`MAEConfig`] or [`MAEForPreTraining`], *optional*): What replaces the settings of the model.
        image_processor ([`MAEImageProcessor`], *optional*): What replaces the settings of mean and deviation.
    """
    defining = set().union(*map(names_of, DEFINING_SETTINGS))
    recipe = {name: comparable(value) for name, value in asdict(settings).items() if name in defining}
    recipe["schedule"] = "wsd" if settings.has_cooldown else "cosine"
    if not settings.has_cooldown:
        del recipe["cooldown_ratio"]
    if settings.time_budget is not None:
        recipe.update(max_steps=None, num_train_epochs=None)
    recipe.update(
        effective_batch_size=plan.batch_size,
        num_images=len(images.train),
        fingerprint=images.train.fingerprint,
        sample_by_loss=None if images.weights is None else digest(images.weights),
    )
    if settings.compute_statistics:
        recipe["compute_statistics"] = True
    if model is not None:
        config = model if isinstance(model, MAEConfig) else model.config
        recipe["config"] = {name: value for name, value in config.to_diff_dict().items() if name not in _WRITTEN}
    if isinstance(model, MAEForPreTraining):
        recipe["model_class"] = type(model).__qualname__
        recipe["initial_weights"] = hash_of_weights(model)
    if image_processor is not None:
        recipe.update(image_mean=image_processor.image_mean, image_std=image_processor.image_std)
    return recipe


class Position(NamedTuple):
    """Where a run starts or goes on.

    Args:
        checkpoint (`Path` or `None`): The checkpoint to go on from, `None` to start.
        state (`dict`): What the checkpoint holds: `step`, `seconds` and the record.
        plan ([`Plan`]): The plan from there on.
        goes_back (`bool`): Whether the folder holds later steps, which the run is to take in another way.
    """

    checkpoint: Path | None
    state: dict
    plan: Plan
    goes_back: bool


def find_position(output_dir: Path, recipe: dict, plan: Plan, settings: PretrainingSettings) -> Position:
    """Returns where a run starts or goes on. Every process must call this.

    Args:
        output_dir (`Path`): Folder of the run.
        recipe (`dict`): As [`defining_recipe`] returns it.
        plan ([`Plan`]): By the settings alone.
        settings ([`PretrainingSettings`]): Whether to go on, and how long.

    Raises:
        ValueError: If the folder holds another run, or one that cannot go on in this way.
    """
    checkpoint = None
    if settings.overwrite_output_dir:
        refuse_to_delete(output_dir, settings.model_name_or_path)
    else:
        resume = settings.resume == "auto"
        checkpoint = call_in_main_process(lambda: check_output_dir(output_dir, recipe, resume))
    state: dict = load_training_state(checkpoint) if checkpoint else {"step": 0, "seconds": 0.0}
    plan, step = resume_plan(plan, state, settings)
    if step is not None:
        checkpoint = call_in_main_process(lambda: checkpoint_before_cooldown(output_dir, step))
        state = load_training_state(checkpoint)
    return Position(checkpoint, state, plan, goes_back=step is not None)


def is_written(output_dir: Path, plan: Plan) -> bool:
    """Returns whether the end of a run is in its folder: a run that is made longer has left an earlier one there."""
    record = read_record(output_dir) if any(output_dir.glob("model*.safetensors")) else {}
    return bool(record) and record.get("plan", plan.state())["max_steps"] == plan.max_steps


__all__ = ["defining_recipe", "find_position", "is_written"]
