# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pre-trains a masked autoencoder, from a source of images to a finished folder."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from accelerate.tracking import GeneralTracker

import hf_mae_command

from ..cli import in_flags
from ..data.sources import ImageSource, is_dataset
from ..modeling.configuration_mae import PRESETS, MAEConfig
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining
from ..training.arguments import load_recipe, names_of, override, parse_arguments
from .dry_run import DryRun
from .log import PretrainingResult
from .run import PretrainingRun
from .settings import ModelSettings, PretrainingSettings

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SAMPLE_RECIPE = "fashion_mnist_sample"


def pretrain(
    data: "str | os.PathLike | ImageSource | Dataset | DatasetDict | None",
    output_dir: str | os.PathLike,
    *,
    model: str | os.PathLike | MAEConfig | MAEForPreTraining | None = None,
    image_processor: MAEImageProcessor | None = None,
    trackers: Sequence[GeneralTracker] | None = None,
    recipe: str | os.PathLike | dict | None = None,
    **settings,
) -> PretrainingResult:
    """Pre-trains a masked autoencoder. The same call continues a run that was interrupted.

    Args:
        data (`str`, `os.PathLike`, `Dataset`, `DatasetDict`, [`~hf_mae.data.sources.ImageSource`] or `None`): A folder,
            a shard, a name on the Hub, a data set of the `datasets` library, or a source of your own. With `None` the
            embedded images are used, and the settings start from the recipe `"fashion_mnist_sample"`.
        output_dir (`str` or `os.PathLike`): Folder for checkpoints and the final model.
        model (*optional*): Name of a preset (see [`MAEConfig.from_preset`]), folder or Hub name of a checkpoint, a
            configuration, or a model, also of your own class. Its weights are trained in place. To continue a run pass
            a model with the same initial weights: call `torch.manual_seed` before you make it. Defaults to the settings
            `model_name_or_path` and `preset`.
        image_processor ([`MAEImageProcessor`], *optional*): Its mean, deviation, channels and way of reading files are
            used and saved.
        trackers (`Sequence[GeneralTracker]`, *optional*): Trackers of Accelerate, in addition to `report_to`.
        recipe (`str`, `os.PathLike` or `dict`, *optional*): Name or path of a recipe, or its settings. Keywords
            override it; what a named recipe says of the model is left out where `model` is an object.
        **settings: Fields of [`PretrainingSettings`].

    Returns:
        [`PretrainingResult`]

    Raises:
        TypeError: If `data`, `model` or `image_processor` is none of these types.
        ValueError: If a setting does not fit, or the folder holds another run.
        OSError: If images or a checkpoint cannot be read.
        RunStopped: If the run was stopped by a signal, or had to end early. It is saved unless the message says
            otherwise, and its `exit_status` is that of a command.
        FloatingPointError: If loss or gradients stay without finite values after two rollbacks.
    """
    if recipe is None and data is None:
        recipe = SAMPLE_RECIPE
    defaults = {} if recipe is None else load_recipe(recipe, PretrainingSettings)
    given = load_recipe(settings, PretrainingSettings)
    _check_types(data, model, image_processor)
    if isinstance(model, str | os.PathLike):
        name = "preset" if model in PRESETS else "model_name_or_path"
        if given.get(name) is not None:
            raise ValueError(f"`model` and `{name}` both name a model. Set one of them.")
        given[name], model = os.fspath(model), None
    replaced = names_of(ModelSettings) if model is not None else set()
    if image_processor is not None:
        replaced |= {"image_mean", "image_std", "num_channels"}
    if clash := sorted(replaced & {*given, *(recipe if isinstance(recipe, Mapping) else ())}):
        raise ValueError(f"`{clash[0]}` is part of the object that was passed, and cannot be set, too.")
    defaults = {name: value for name, value in defaults.items() if name not in replaced}
    if image_processor is not None:
        channels = image_processor.num_channels
        if model is None:
            given["num_channels"] = channels
        elif channels != (wanted := getattr(model, "config", model).num_channels):
            raise ValueError(f"`image_processor` makes {channels} channel(s), but `model` has {wanted}.")
    is_path = isinstance(data, str | os.PathLike)
    given.update(data=data if is_path else None, output_dir=output_dir)
    images = None if is_path else data
    return _run(PretrainingSettings(**override(defaults, given)), images, model, image_processor, trackers)


def _check_types(data, model, image_processor):
    """Refuses objects that would not be used, and says which would."""
    if not (data is None or isinstance(data, str | os.PathLike | ImageSource) or is_dataset(data)):
        raise TypeError(
            f"`data` is a {type(data).__name__}, but must be a path, a name on the Hub, a `Dataset` or `DatasetDict` "
            "of the datasets library, or an `ImageSource`: examples/custom_source.py shows how to write one."
        )
    if not (model is None or isinstance(model, str | os.PathLike | MAEConfig | MAEForPreTraining)):
        raise TypeError(
            f"`model` is a {type(model).__name__}, but must be the name of a preset, the folder or the name on the Hub "
            "of a checkpoint, an `MAEConfig` or an `MAEForPreTraining`."
        )
    if not (image_processor is None or isinstance(image_processor, MAEImageProcessor)):
        raise TypeError(
            f"`image_processor` is a {type(image_processor).__name__}, but must be an `MAEImageProcessor`. To have the "
            "statistics of another, set `image_mean` and `image_std`."
        )


def pretrain_command(argv: list[str], prog: str):
    """Runs `hf-mae pretrain`."""
    description = (
        "Pre-trains a masked autoencoder.\n\n"
        "  hf-mae pretrain                                              # embedded pictures, minutes on a CPU\n"
        "  hf-mae pretrain --data path/to/images --time_budget 8h       # model, batch and rate are chosen to fit\n"
        "  hf-mae pretrain --recipe pretrain_imagenet --data path/to/imagenet\n\n"
        "The same command continues an interrupted run, on any number of processes. Ctrl-C and SIGTERM save and end it."
    )
    settings = parse_arguments(PretrainingSettings, argv, prog, description, SAMPLE_RECIPE)
    _run(settings, echo=lambda text: print(in_flags(text), flush=True), started=hf_mae_command.started)


def _run(settings: PretrainingSettings, *args, **kwargs) -> PretrainingResult:
    return (DryRun if settings.dry_run else PretrainingRun)(settings, *args, **kwargs).run()


__all__ = ["PretrainingResult", "PretrainingRun", "PretrainingSettings", "pretrain", "pretrain_command"]
