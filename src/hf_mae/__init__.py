# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Masked autoencoders (He et al. 2021) for the Hugging Face ecosystem. Importing this registers the Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

# Not from `transformers` itself: up to 5.17 that name is a dummy where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .conversion import export_checkpoint, import_checkpoint
from .modeling.configuration_mae import MAEConfig
from .modeling.image_processing_mae import MAEImageProcessor
from .modeling.modeling_mae import MAEForPreTraining, MAEModel
from .modeling.modeling_mae_downstream import MAEBackbone, MAEForImageClassification

__version__ = "0.1.0"

AutoConfig.register(MAEConfig.model_type, MAEConfig)
AutoModel.register(MAEConfig, MAEModel)
AutoModelForPreTraining.register(MAEConfig, MAEForPreTraining)
AutoModelForImageClassification.register(MAEConfig, MAEForImageClassification)
AutoBackbone.register(MAEConfig, MAEBackbone)
# One class, in plain torch, serves both back ends.
AutoImageProcessor.register(
    MAEConfig, image_processor_classes={"pil": MAEImageProcessor, "torchvision": MAEImageProcessor}
)
# Saved folders bring the code with them and load where hf_mae is not installed.
MAEConfig.register_for_auto_class()
MAEModel.register_for_auto_class("AutoModel")
MAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")
MAEForImageClassification.register_for_auto_class("AutoModelForImageClassification")
MAEBackbone.register_for_auto_class("AutoBackbone")
MAEImageProcessor.register_for_auto_class()

__all__ = [
    "MAEBackbone",
    "MAEConfig",
    "MAEForImageClassification",
    "MAEForPreTraining",
    "MAEImageProcessor",
    "MAEModel",
    "export_checkpoint",
    "import_checkpoint",
]
