# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Lists the settings of segmentation, in the groups of `hf-mae segment --help`."""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from ..data.windows import STRIDE, check_stride
from .heads import settle_head
from .settings import FineTuningArguments, OrientationArguments, ReadingArguments


@dataclass
class MaskArguments:
    """Images and masks."""

    data: str | None = HfArg(
        default=None,
        help="Folder with images/ and masks/, or with predict_only of pictures. Default: a sample of embedded images.",
    )
    class_names: list[str] | None = HfArg(
        default=None, help="Names of the classes 0, 1, ..., or a file with one in each line. Default: their numbers."
    )
    reduce_labels: bool = HfArg(
        default=False, help="0 means that a pixel does not count, and classes count from 1, as in masks of ADE20K."
    )
    tile: int | None = HfArg(
        default=None,
        help="Side in pixels of windows: of scenes in training, of all larger pictures in evaluation and prediction. "
        "Default: whole pictures in training, then the largest sides of these.",
    )
    stride: float = HfArg(
        default=STRIDE, help="Largest distance of the windows in evaluation and prediction, as a share of their side."
    )
    whole_pictures: bool = HfArg(
        default=False, help="Evaluate and predict pictures of any size as a whole, resized to the size of the model."
    )
    sample_side: int = HfArg(default=1, help="Rows and columns of pictures of 28 pixels in an image of the sample.")
    min_scale: float = HfArg(default=0.5, help="Smallest factor by which training images are resized.")
    max_scale: float = HfArg(default=2.0, help="Largest factor. Then they are cropped or padded to the image size.")


@dataclass
class SegmenterArguments:
    """Model."""

    model_name_or_path: str | None = HfArg(
        default=None, help="Folder or name on the Hub of any model of hf_mae, or of a segmenter to train further."
    )
    from_scratch: bool = HfArg(default=False, help="Take the checkpoint's configuration but fresh weights, to compare.")
    preset: str | None = HfArg(
        default=None, help="Without a checkpoint: tiny, small, base, large or huge, with fresh weights."
    )
    image_size: list[int] | None = HfArg(
        default=None, help="Side, or height and width, in pixels. Default: the model's or the sample's."
    )
    feature_pyramid_size: int | None = HfArg(
        default=None, help="Channels of the pyramid. Default: the encoder's, at most 256, or the segmenter's."
    )
    head_size: int | None = HfArg(
        default=None, help="Channels of UperNet. Default: the encoder's, at most 512, or the segmenter's."
    )
    drop_path_rate: float = HfArg(default=0.1, help="Drop path of the last block; it rises from 0 at the first.")


@dataclass
class SegmenterTrainingArguments:
    """Optimization."""

    learning_rate: float = HfArg(default=1e-4, help="Learning rate of everything after the encoder's blocks.")
    layer_decay: float = HfArg(default=0.65, help="Factor of the learning rate from each block to the one before.")
    num_train_epochs: float = HfArg(default=100, help="Passes over the images.")
    per_device_train_batch_size: int = HfArg(default=16, help="Images of one forward pass on one device, at least 2.")
    per_device_eval_batch_size: int = HfArg(default=16, help="The same in evaluation.")
    lr_scheduler_type: str = HfArg(default="linear", help="Schedule of the learning rate.")
    warmup_steps: float = HfArg(default=0.01, help="Steps with a rising rate; below 1: their share.")
    save_total_limit: int | None = HfArg(default=1, help="Number of checkpoints to keep.")


@dataclass
class SegmentationArguments(
    MaskArguments,
    ReadingArguments,
    OrientationArguments,
    SegmenterArguments,
    SegmenterTrainingArguments,
    FineTuningArguments,
):
    """Settings of [`segment`]: groups of its own and those of [`FineTuningArguments`]."""

    output_dir: str | None = HfArg(
        default=None,
        help="Folder for checkpoints and the final model, or for figures or maps. Default: runs/segmenter, or "
        "runs/evaluation with eval_only, or runs/class_maps with predict_only.",
    )
    overwrite_output_dir: bool = HfArg(
        default=False, help="Delete the run that the output folder holds, or replace the files that maps are named as."
    )
    eval_only: bool = HfArg(default=False, help="Train nothing. Evaluate a segmenter on any images with masks.")
    predict_only: bool = HfArg(default=False, help="Train nothing. Write a class map of each picture in the data.")

    def __post_init__(self):
        kind = "class_maps" if self.predict_only else "evaluation" if self.eval_only else "segmenter"
        self.output_dir = self.output_dir or f"runs/{kind}"
        super().__post_init__()
        check_stride(self.stride)
        if self.tile is not None and self.whole_pictures:
            raise ValueError("`tile` cuts pictures into windows, `whole_pictures` does not. Set one of them.")
        if self.tile is not None and self.data is None:
            raise ValueError("`tile` needs `data`: scenes of your own.")
        if self.sample_side != 1 and self.data is not None:
            raise ValueError("`sample_side` is for the sample that is made without `data`. Leave one of them out.")
        if self.pages == "images" and not self.predict_only:
            raise ValueError(
                "`pages` images makes a picture of each page, which has no mask of its own: it is for `predict_only`. "
                "To train on pages save each in a file."
            )
        if self.predict_only and not (self.model_name_or_path and self.data):
            raise ValueError("`predict_only` needs `model_name_or_path`, a trained segmenter, and `data`, pictures.")
        if self.eval_only and (self.predict_only or not self.model_name_or_path):
            raise ValueError("`eval_only` needs `model_name_or_path`, a trained segmenter, and no `predict_only`.")
        if self.class_names and (self.eval_only or self.predict_only):
            raise ValueError("`class_names` are those of the segmenter where nothing is trained. Leave them out.")
        settle_head(self)


__all__ = ["SegmentationArguments"]
