# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pre-trains a masked autoencoder, from a source of images to a finished folder."""

import os
from collections.abc import Sequence

from accelerate.tracking import GeneralTracker

import hf_mae_command

from ..cli import in_flags
from ..data.sources import ImageSource
from ..modeling.configuration_mae import _PRESETS, MAEConfig
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining
from .arguments import load_recipe, parse_arguments
from .dry_run import DryRun
from .pretraining_run import PretrainingRun
from .pretraining_settings import ModelSettings, PretrainingSettings, names_of
from .run_log import PretrainingResult

SAMPLE_RECIPE = "fashion_mnist_sample"


def pretrain(
    data: str | os.PathLike | ImageSource | None,
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
        data (`str`, `os.PathLike`, [`~hf_mae.data.sources.ImageSource`] or `None`): A folder, a shard, a name on the
            Hub, or a source of your own. With `None` the embedded images are used, and the settings start from the
            recipe `"fashion_mnist_sample"`.
        output_dir (`str` or `os.PathLike`): Folder for checkpoints and the final model.
        model (*optional*): Name of a preset (see [`MAEConfig.from_preset`]), folder or Hub name of a checkpoint, a
            configuration, or a model, also of your own class. Its weights are trained in place. To continue a run pass
            a model with the same initial weights: call `torch.manual_seed` before you make it. Defaults to the settings
            `model_name_or_path` and `preset`.
        image_processor ([`MAEImageProcessor`], *optional*): Its mean, deviation and channels are used and saved.
        trackers (`Sequence[GeneralTracker]`, *optional*): Trackers of Accelerate, in addition to `report_to`.
        recipe (`str`, `os.PathLike` or `dict`, *optional*): Name or path of a recipe, or its settings. Keywords
            override it.
        **settings: Fields of [`PretrainingSettings`].

    Returns:
        [`PretrainingResult`]

    Raises:
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
    if isinstance(model, str) and model in _PRESETS:
        given["preset"] = model
    elif isinstance(model, str | os.PathLike):
        given["model_name_or_path"] = os.fspath(model)
    model = model if isinstance(model, MAEConfig | MAEForPreTraining) else None
    replaced = names_of(ModelSettings) if model is not None else set()
    replaced = replaced | ({"image_mean", "image_std"} if image_processor is not None else set())
    if clash := sorted(replaced & set(given)):
        raise ValueError(f"`{clash[0]}` is part of the object that was passed, and cannot be set, too.")
    defaults = {name: value for name, value in defaults.items() if name not in replaced}
    images = data if isinstance(data, ImageSource) else None
    path = None if data is None or isinstance(data, ImageSource) else os.fspath(data)
    given.update(data=path, output_dir=os.fspath(output_dir))
    return _run(PretrainingSettings(**{**defaults, **given}), images, model, image_processor, trackers)


def pretrain_command(argv: list[str], prog: str):
    """Runs `hf-mae pretrain`."""
    description = (
        "Pre-trains a masked autoencoder. The same command continues a run that was interrupted, on any number of\n"
        "processes. Ctrl-C, SIGTERM and SIGUSR1 save and end it. docs/training.md has the details."
    )
    settings = parse_arguments(PretrainingSettings, argv, prog, description, SAMPLE_RECIPE)
    started, hf_mae_command.started = hf_mae_command.started, None
    _run(settings, echo=lambda text: print(in_flags(text), flush=True), started=started)


def _run(settings: PretrainingSettings, *args, **kwargs) -> PretrainingResult:
    return (DryRun if settings.dry_run else PretrainingRun)(settings, *args, **kwargs).run()


__all__ = ["PretrainingResult", "PretrainingRun", "PretrainingSettings", "pretrain", "pretrain_command"]
