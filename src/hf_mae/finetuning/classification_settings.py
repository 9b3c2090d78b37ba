# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Lists the settings of classification, in the groups of `hf-mae finetune --help`."""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from ..data.label_values import REGRESSION
from .settings import FineTuningArguments, OrientationArguments, ReadingArguments


@dataclass
class ClassifierModelArguments:
    """Model."""

    model_name_or_path: str | None = HfArg(default=None, help="Folder or name on the Hub of any model of hf_mae.")
    from_scratch: bool = HfArg(default=False, help="Take the checkpoint's configuration but fresh weights, to compare.")
    new_classifier: bool = HfArg(
        default=False, help="Begin with a new classifier, also where the checkpoint has one of the same classes."
    )
    image_size: int | None = HfArg(default=None, help="Pixels; positions are resampled. Default: the checkpoint's.")
    pooling: Literal["mean", "class", "attentive"] = HfArg(
        default="mean", help="Mean of the patches, class token, or learned queries that attend to the patches."
    )
    num_pooling_queries: int | None = HfArg(
        default=None, help="Queries of attentive pooling, a divisor of the width. Default: the checkpoint's, or 32."
    )
    drop_path_rate: float = HfArg(default=0.1, help="Drop path of the last block; it rises from 0 at the first.")
    num_trainable_layers: float | None = HfArg(
        default=None, help="Train only this number of last blocks; a half is the MLP of one. Default: all."
    )


@dataclass
class LabelArguments:
    """Images and labels."""

    data: str | None = HfArg(
        default=None, help="Folder, .tar or .parquet file, or Hub name. Default: the embedded images."
    )
    label_column: list[str] | None = HfArg(
        default=None,
        help="Column of the table or data set with the labels, or several of a table: several classes or numbers. "
        "Default: label, or the only one.",
    )
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = HfArg(
        default=None, help="What labels are: one class, several classes, or numbers. Default: as the labels look."
    )
    max_train_images: int | None = HfArg(
        default=None, help="Train on this number of images, the same for a seed. Default: all."
    )
    class_weights: Literal["none", "balanced"] = HfArg(
        default="none", help="balanced: classes count alike in the loss, however many images they have."
    )
    eval_only: bool = HfArg(
        default=False, help="Train nothing. Evaluate a classifier on any labelled images, or predict unlabelled ones."
    )


@dataclass
class ImageAugmentationArguments:
    """Augmentation."""

    crop_scale_min: float = HfArg(default=0.08, help="Smallest share of an image that a random crop keeps.")
    rand_augment: float = HfArg(default=9.0, help="Magnitude of random augmentation, below 10. 0: none.")
    random_erasing: float = HfArg(default=0.25, help="Share of the images that lose a rectangle.")
    mixup: float | None = HfArg(
        default=None, help="Parameter of the distribution. 0: no mixup. Default: 0.8, and 0 for numbers."
    )
    cutmix: float | None = HfArg(
        default=None, help="Parameter of the distribution. 0: no cutmix. Default: 1, and 0 for numbers."
    )


@dataclass
class ClassifierTrainingArguments:
    """Optimization."""

    base_learning_rate: float = HfArg(default=1e-3, help="Learning rate per 256 images of a step over all devices.")
    learning_rate: float | None = HfArg(default=None, help="Absolute learning rate. Default: by the base rate.")
    label_smoothing: float = HfArg(default=0.1, help="Share of the target that is spread over all classes.")
    num_train_epochs: float = HfArg(default=100, help="Passes over the images.")
    per_device_train_batch_size: int = HfArg(default=64, help="Images of one forward pass on one device.")
    per_device_eval_batch_size: int = HfArg(default=64, help="The same in evaluation.")
    lr_scheduler_type: str = HfArg(default="cosine", help="Schedule of the learning rate.")
    warmup_steps: float = HfArg(default=0.05, help="Steps with a rising rate; below 1: their share.")


@dataclass
class ClassificationArguments(
    ClassifierModelArguments,
    LabelArguments,
    ReadingArguments,
    OrientationArguments,
    ImageAugmentationArguments,
    ClassifierTrainingArguments,
    FineTuningArguments,
):
    """Settings of [`finetune`]: groups of its own and those of [`FineTuningArguments`]."""

    output_dir: str | None = HfArg(
        default=None, help="Folder for the results. Default: runs/classifier, or runs/evaluation with eval_only."
    )

    def __post_init__(self):
        self.output_dir = self.output_dir or ("runs/evaluation" if self.eval_only else "runs/classifier")
        super().__post_init__()
        if self.model_name_or_path is None:
            raise ValueError("`model_name_or_path` is missing: a folder or a name on the Hub with a model of hf_mae.")
        if self.max_train_images is not None and self.max_train_images < 1:
            raise ValueError(f"`max_train_images` must be at least 1, got {self.max_train_images}.")
        if self.eval_only:
            self.refuse_for_finished("from_scratch", "new_classifier", "max_train_images")
        if self.num_pooling_queries is not None and self.pooling != "attentive":
            raise ValueError(f"`num_pooling_queries` is for `pooling` attentive, which is {self.pooling}.")

    def check_problem_type(self, problem_type: str):
        """Refuses settings that need classes where labels are numbers.

        Args:
            problem_type (`str`): Kind of the labels.

        Raises:
            ValueError: If rectangles of images are to be mixed, or classes weighted.
        """
        if problem_type == REGRESSION and self.cutmix:
            raise ValueError("`cutmix` needs classes: part of a picture has no part of a number. Set it to 0.")
        if problem_type == REGRESSION and self.class_weights != "none":
            raise ValueError("`class_weights` needs classes, and these labels are numbers.")

    def share_of_mixing(self, problem_type: str) -> dict[str, float]:
        """Returns the parameters `mixup` and `cutmix` for a kind of labels."""
        mixup, cutmix = (0.0, 0.0) if problem_type == REGRESSION else (0.8, 1.0)
        return {
            "mixup": mixup if self.mixup is None else self.mixup,
            "cutmix": cutmix if self.cutmix is None else self.cutmix,
        }


__all__ = ["ClassificationArguments"]
