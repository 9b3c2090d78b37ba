# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""All classes of the model by Auto class. A new head is added here, and nowhere else.

hf_mae registers these classes with the Auto classes, and the `auto_map` of saved folders points into this file.
"""

from .configuration_mae import MAEConfig
from .image_processing_mae import MAEImageProcessor
from .modeling_mae import MAEForPreTraining, MAEModel
from .modeling_mae_downstream import MAEBackbone, MAEForImageClassification
from .saving_mae import SavesCode

MODEL_CLASSES = {
    "AutoModel": MAEModel,
    "AutoModelForPreTraining": MAEForPreTraining,
    "AutoModelForImageClassification": MAEForImageClassification,
    "AutoBackbone": MAEBackbone,
}
AUTO_CLASSES = {"AutoConfig": MAEConfig, "AutoImageProcessor": MAEImageProcessor, **MODEL_CLASSES}

SavesCode._full_auto_map = {name: f"auto_mae.{each.__name__}" for name, each in AUTO_CLASSES.items()}


def class_of_architecture(architecture: str | None) -> type:
    """Returns the model class that `architectures` of a saved configuration names, [`MAEModel`] if it is not ours.

    Args:
        architecture (`str`, *optional*): Such as `"MAEForPreTraining"`.
    """
    return {each.__name__: each for each in MODEL_CLASSES.values()}.get(architecture, MAEModel)


__all__ = [
    "AUTO_CLASSES",
    "MODEL_CLASSES",
    "MAEBackbone",
    "MAEConfig",
    "MAEForImageClassification",
    "MAEForPreTraining",
    "MAEImageProcessor",
    "MAEModel",
    "class_of_architecture",
]
