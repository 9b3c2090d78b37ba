# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Masked autoencoders (He et al. 2021) for the Hugging Face ecosystem. Importing this registers the Auto classes."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m hf_mae`: this file runs before __main__.py, and nothing has loaded torch yet
    from hf_mae_command import begin, end_silently_at_ctrl_c

    begin()
    end_silently_at_ctrl_c(True)

import transformers

# Not from `transformers` itself: up to 5.17 these names are dummies where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from .conversion.weights import export_checkpoint, import_checkpoint
from .modeling.auto_mae import (
    MODEL_CLASSES,
    MAEBackbone,
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEImageProcessor,
    MAEModel,
)
from .modeling.modeling_mae_downstream import load_encoder

__version__ = "0.1.0"

transformers.AutoConfig.register(MAEConfig.model_type, MAEConfig)
for _auto_class, _model_class in MODEL_CLASSES.items():
    getattr(transformers, _auto_class).register(MAEConfig, _model_class)
# One class, in plain torch, serves both back ends.
AutoImageProcessor.register(
    MAEConfig, image_processor_classes={"pil": MAEImageProcessor, "torchvision": MAEImageProcessor}
)


class MAEVideoProcessor:
    """Says that there is none.

    `pipeline` looks for the video processor that is called like the saved image processor, also next to a head of
    transformers, and without this class asks whether it may run the code that is saved with the latter.
    """

    @classmethod
    def from_pretrained(cls, name, *args, **kwargs):
        """Raises `ValueError`, which `pipeline` takes for an answer."""
        raise ValueError(f"{name} has no video processor: its model takes images.")


AutoVideoProcessor.register(MAEConfig, MAEVideoProcessor)


def __getattr__(name: str):
    """Loads the training code when it is asked for: what only needs a model does not have to load it."""
    if name == "pretrain":
        from .pretraining.command import pretrain

        return pretrain
    raise AttributeError(f"module 'hf_mae' has no attribute {name!r}")


__all__ = [
    "MAEBackbone",
    "MAEConfig",
    "MAEForImageClassification",
    "MAEForPreTraining",
    "MAEImageProcessor",
    "MAEModel",
    "export_checkpoint",
    "import_checkpoint",
    "load_encoder",
    "pretrain",
]
