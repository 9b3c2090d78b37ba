# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Lists the settings of a pre-training run, in the groups of `hf-mae pretrain --help`."""

from dataclasses import dataclass
from typing import Literal

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from transformers.hf_argparser import HfArg

from ..training.arguments import check_output, config_changes, fit_values, parse_duration, text_of_changes
from ..training.data_settings import ColumnSettings, HeldOutSettings, StoredValueSettings

CompileMode = Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"]  # torch's
_SHORTEST_BUDGET = 30  # seconds: a shorter one would be over before the pace is known


@dataclass
class SourceSettings(ColumnSettings):
    """Images."""

    data: str | None = HfArg(
        default=None, help="Folder, .tar or .parquet file, or Hub name. Default: the embedded images."
    )
    label_column: str | None = HfArg(default=None, help="Column with the classes. Default: label, or the only one.")
    labels: Literal["auto", "none"] = HfArg(
        default="auto", help="Whether folders or columns are labels, for the k-NN accuracy alone."
    )
    streaming: bool = HfArg(default=False, help="Read a data set of the Hub over the network, without a download.")
    sample_by_loss: str | None = HfArg(
        default=None,
        help="Draw images by min(loss, 1), from a file of hf-mae score. Default: each once an epoch.",
    )
    max_unreadable: float = HfArg(default=0.1, help="Share of the images that may be unreadable before the run ends.")
    compute_statistics: bool = HfArg(default=False, help="Take mean and deviation from (10,000 of) the images.")


@dataclass
class FileSettings(StoredValueSettings):
    """How stored values are read (saved in the image processor). Default: as the checkpoint says."""

    value_percentiles: list[float] | None = HfArg(
        default=None, help="Two percentiles of the images' values as value_range, such as 0.1 99.9."
    )
    tile: int | None = HfArg(default=None, help="Side in pixels of the windows that large scenes are cut into.")
    channels_first: bool | None = HfArg(default=None, help="Whether channels come first in arrays. Default: by size.")
    background: int | None = HfArg(default=None, help="Grey behind transparent pixels, in [0, 255]. Default: 255.")
    display_bands: list[int] | None = HfArg(
        default=None,
        help="One or three channels of pictures, from 1 on. Default: the first three, or one.",
    )


@dataclass
class CropSettings:
    """What the model sees of an image."""

    image_mean: list[float] | None = HfArg(
        default=None,
        help="Means in [0, 1]. Default: the checkpoint's; else ImageNet's of 3 channels, or 0.5.",
    )
    image_std: list[float] | None = HfArg(default=None, help="Deviations. Default: as for the mean.")
    crop_scale_min: float | None = HfArg(
        default=None, help="Smallest share of an image that a crop keeps. Default: 0.2, or by time_budget."
    )
    horizontal_flip: bool = HfArg(default=True, help="Mirror half of the crops.")
    vertical_flip: bool = HfArg(default=False, help="Turn half of the crops upside down.")
    rotate90: bool = HfArg(default=False, help="Turn crops by random multiples of 90 degrees.")
    color_jitter: float = HfArg(default=0.0, help="Strength of random brightness, contrast and saturation, in [0, 1].")
    views_per_image: int | None = HfArg(
        default=None, help="Crops of one decode, each a sample of the epoch. Default: 1, or by time_budget."
    )


@dataclass
class ModelSettings:
    """Model."""

    model_name_or_path: str | None = HfArg(default=None, help="Checkpoint to start from. Default: fresh weights.")
    preset: str | None = HfArg(
        default=None,
        help="tiny, small, base, large or huge, or pixio- and one of these. Default: base, or by time_budget.",
    )
    image_size: int | None = HfArg(
        default=None, help="Pixels of the crops. Default: the model's (base: 224), or by time_budget."
    )
    patch_size: int | None = HfArg(
        default=None, help="Pixels of a patch. Default: the model's (base: 16), or by time_budget."
    )
    num_channels: int | None = HfArg(
        default=None, help="Channels of the images. Default: the model's (a new one: 3), or by time_budget."
    )
    mask_ratio: float | None = HfArg(
        default=None, help="Share of hidden patches. Default: the model's (a new one: 0.75)."
    )
    norm_pix_loss: bool | None = HfArg(
        default=None, help="Predict normalised patches. Default: true, or as the checkpoint does."
    )
    config_overrides: str | None = HfArg(
        default=None, help="Other fields of MAEConfig: 'hidden_size=128,num_hidden_layers=4'."
    )


@dataclass
class OptimizationSettings:
    """Steps and learning rate."""

    num_train_epochs: float = HfArg(default=400.0, help="Crops per image in the run, unless max_steps is given.")
    max_steps: int = HfArg(default=-1, help="Optimizer steps. Default: those of num_train_epochs.")
    effective_batch_size: int | None = HfArg(
        default=None, help="Images of a step. Default: 4096, or less for few images, or by time_budget."
    )
    optimizer: Literal["adamw", "muon"] | None = HfArg(
        default=None,
        help="muon is for the matrices of blocks, the rest follows AdamW. Default: adamw, or by time_budget.",
    )
    base_learning_rate: float | None = HfArg(
        default=None, help="Learning rate per 256 images of the batch. Default: 1.5e-4, or by time_budget."
    )
    learning_rate: float | None = HfArg(default=None, help="Absolute learning rate. Default: by base_learning_rate.")
    warmup_ratio: float = HfArg(default=0.05, help="Share of the steps with a rising learning rate.")
    schedule: Literal["cosine", "wsd"] | None = HfArg(
        default=None, help="Fall of the rate: cosine, or wsd, only at the end. Default: cosine; wsd with time_budget."
    )
    cooldown_ratio: float = HfArg(default=0.2, help="Share of the steps in which the rate falls with wsd.")
    weight_decay: float = HfArg(default=0.05, help="Decay of all parameters that are not one-dimensional.")
    adam_beta1: float = HfArg(default=0.9, help="First beta of AdamW.")
    adam_beta2: float = HfArg(default=0.95, help="Second beta of AdamW.")
    max_grad_norm: float = HfArg(default=0.0, help="Clip gradients to this norm; 0, as in the paper, does not.")
    seed: int = HfArg(default=0, help="Seed of weights, order, crops and masks.")


@dataclass
class LengthSettings:
    """Steps and learning rate."""

    time_budget: float | str | None = HfArg(
        default=None, help="Time that the run takes in all, such as 90m, 8h or 2d, in place of num_train_epochs."
    )
    extend_to: int | None = HfArg(default=None, help="Make a run with wsd longer, up to this number of steps.")


@dataclass
class DeviceSettings:
    """Speed and memory."""

    per_device_train_batch_size: int | None = HfArg(
        default=None, help="Most images of one forward pass. Default: as many as fit on a GPU, 64 on a CPU."
    )
    bf16: bool | None = HfArg(default=None, help="Mixed precision. Default: on GPUs that have it.")
    gradient_checkpointing: bool = HfArg(default=False, help="Use less memory and a third more time.")
    torch_compile: bool | None = HfArg(
        default=None, help="Compile the model. Default: on a GPU in runs of ten minutes or of 10,000 steps."
    )
    torch_compile_mode: CompileMode | None = HfArg(
        default=None, help="How to compile. Default: with CUDA graphs (reduce-overhead) where steps are small."
    )
    dataloader_num_workers: int | None = HfArg(
        default=None, help="Loader processes. Default: one per CPU core and process, at most 16; on a CPU none."
    )


@dataclass
class OutputSettings:
    """Log and checkpoints."""

    output_dir: str = HfArg(default="mae-pretrained", help="Folder for checkpoints and the final model.")
    logging_steps: int = HfArg(default=10, help="Steps between lines of metrics.jsonl.")
    save_steps: int = HfArg(default=1000, help="Steps between checkpoints.")
    save_total_limit: int = HfArg(default=2, help="Number of checkpoints to keep.")
    on_save_error: Literal["continue", "stop"] = HfArg(default="continue", help="What to do when the disk is full.")
    eval_steps: int | None = HfArg(default=None, help="Steps between evaluations. Default: ten evaluations in a run.")
    eval_images: int | None = HfArg(
        default=None, help="Most images of the k-NN bank; of held-out ones a fifth. Default: 5000, or by time_budget."
    )
    max_bad_steps: int = HfArg(default=10, help="Steps in a row without finite loss before a rollback.")
    report_to: str | None = HfArg(
        default=None, help="tensorboard, trackio or wandb, in addition to metrics.jsonl. Default: none."
    )
    log_samples: bool = HfArg(default=False, help="Write index, crop and mask of every sample to samples-*.jsonl.")
    dry_run: bool = HfArg(default=False, help="Take a few steps, print images/s, memory and hours, leave nothing.")
    resume: Literal["auto", "never"] = HfArg(default="auto", help="Whether to continue a run in output_dir.")
    overwrite_output_dir: bool = HfArg(default=False, help="Delete a run that is in output_dir.")


@dataclass
class HubSettings:
    """Hub."""

    push_to_hub: bool = HfArg(default=False, help="Push model, card and log; needs `hf auth login` or HF_TOKEN.")
    hub_model_id: str | None = HfArg(default=None, help="Name on the Hub. Default: that of output_dir.")
    hub_private_repo: bool | None = HfArg(
        default=None, help="Whether a new repository is private. Default: no, unless the organisation has it so."
    )
    hub_strategy: Literal["end", "every_save"] = HfArg(
        default="end", help="When to push; every_save pushes in the background."
    )


# A run is defined by these. All other settings may change when it is continued.
DEFINING_SETTINGS = (HeldOutSettings, FileSettings, CropSettings, ModelSettings, OptimizationSettings)

# Settings of a machine, which the recipe that is left with the model does not have.
MACHINE_SETTINGS = {
    *("data", "model_name_or_path", "sample_by_loss"),
    *("output_dir", "resume", "overwrite_output_dir", "dry_run", "log_samples"),
    *("dataloader_num_workers", "per_device_train_batch_size"),
}


@dataclass
class PretrainingSettings(
    SourceSettings,
    HeldOutSettings,
    FileSettings,
    CropSettings,
    ModelSettings,
    OptimizationSettings,
    LengthSettings,
    DeviceSettings,
    OutputSettings,
    HubSettings,
):
    """Settings of a pre-training run. [`pretrain`] takes them as keywords, `hf-mae pretrain` as flags."""

    def __post_init__(self):
        self._fit_types()
        if self.model_name_or_path == "":
            raise ValueError("`model_name_or_path` is empty. Give it a value, or leave it out for fresh weights.")
        if self.preset is not None and self.model_name_or_path is not None:
            raise ValueError("`preset` is for fresh weights, and `model_name_or_path` has its own sizes. Set one.")
        for name, value in config_changes(self.config_overrides).items():
            if getattr(self, name, None) not in (None, value):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, and {value} in `config_overrides`. Leave one of them out."
                )
        check_output(self.data, self.output_dir)
        self._check_values()
        self._check_length()

    def _fit_types(self):
        """Gives all settings the types of their fields. Sizes of rectangles, from Python, go to `config_overrides`."""
        for name in ("image_size", "patch_size"):
            if isinstance(sides := getattr(self, name), list | tuple):
                changes = {**config_changes(self.config_overrides), name: list(sides)}
                self.config_overrides = text_of_changes(changes)
                setattr(self, name, None)
        fit_values(self)
        self.report_to = None if self.report_to == "none" else self.report_to  # as Trainer has it
        if self.torch_compile_mode is not None and self.torch_compile is None:  # as Trainer has it, too
            self.torch_compile = True

    def _check_values(self):
        """Checks what numbers and names have to be by themselves."""
        for name in ("logging_steps", "save_steps", "save_total_limit", "eval_steps", "eval_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("value_range", "value_percentiles"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 2:
                raise ValueError(f"`{name}` takes two values, low and high, got {getattr(self, name)}.")
        if self.torch_compile_mode is not None and not self.torch_compile:
            raise ValueError("`torch_compile_mode` has no effect with `torch_compile` false. Leave one of them out.")
        if self.value_range is not None and self.value_percentiles is not None:
            raise ValueError("Set `value_range` or `value_percentiles`, not both.")
        if self.label_column is not None and (self.labels == "none" or self.streaming):
            other = "`streaming`" if self.streaming else "`labels` none"
            raise ValueError(f"`label_column` names the labels, and {other} leaves them out. Set one of them.")
        if self.compute_statistics and (self.image_mean or self.image_std):
            raise ValueError(
                "`compute_statistics` measures mean and deviation: leave out `image_mean` and `image_std`."
            )
        if self.report_to is not None and self.report_to not in {str(each.value) for each in get_available_trackers()}:
            known = [tracker.value for tracker in LoggerType if tracker != LoggerType.ALL]
            if self.report_to in known:
                raise ValueError(f"`report_to` {self.report_to}: it is not installed (pip install {self.report_to}).")
            raise ValueError(
                f"`report_to` {self.report_to}: Accelerate knows no such tracker. Choose one of {', '.join(known)}."
            )

    def _check_length(self):
        """Checks what says how long the run is, and when its learning rate rises and falls."""
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"`max_steps` must be at least 1, or -1 for none, got {self.max_steps}.")
        if self.warmup_ratio > 1:
            raise ValueError(f"`warmup_ratio` must be at most 1, got {self.warmup_ratio}.")
        if self.time_budget is not None:
            if (seconds := parse_duration(self.time_budget)) < _SHORTEST_BUDGET:
                raise ValueError(f"`time_budget` must be at least {_SHORTEST_BUDGET} s, got {seconds:g} s.")
            if self.schedule == "cosine":
                raise ValueError(
                    "`time_budget` needs `schedule` wsd: a cosine bends by the number of steps, which is known only at "
                    "the end. Leave `schedule` out, or set `max_steps` in place of `time_budget`."
                )
            if self.max_steps > 0 or self.extend_to is not None:
                name = "max_steps" if self.max_steps > 0 else "extend_to"
                raise ValueError(
                    f"`{name}` and `time_budget` both say how long the run is: set one of them (`max_steps` -1 is "
                    "none). A run with a time budget is made longer by a longer `time_budget`."
                )
        if self.extend_to is not None and not self.has_cooldown:
            raise ValueError(
                "`extend_to` needs a run with `schedule` wsd: the rate of a cosine falls from the start, so that "
                "there is no step to go on from. Start a run in another `output_dir` with `model_name_or_path`."
            )
        if not self.has_cooldown and self.cooldown_ratio != OptimizationSettings.cooldown_ratio:
            raise ValueError("`cooldown_ratio` is for `schedule` wsd: the rate of a cosine falls from the start.")
        if self.has_cooldown and not 0 < self.cooldown_ratio < 1 - self.warmup_ratio:
            raise ValueError(
                f"`cooldown_ratio` must be above 0 and, with `warmup_ratio`, below 1, got {self.cooldown_ratio}."
            )

    @property
    def has_cooldown(self) -> bool:
        """Whether the learning rate is constant and falls at the end, and not by a cosine."""
        return self.schedule == "wsd" or self.time_budget is not None


__all__ = [
    "DEFINING_SETTINGS",
    "MACHINE_SETTINGS",
    "CompileMode",
    "CropSettings",
    "DeviceSettings",
    "FileSettings",
    "HubSettings",
    "LengthSettings",
    "ModelSettings",
    "OptimizationSettings",
    "OutputSettings",
    "PretrainingSettings",
    "SourceSettings",
]
