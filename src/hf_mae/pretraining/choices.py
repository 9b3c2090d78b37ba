# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Chooses the settings of pre-training that a user leaves open, from the images, the speed of the device and the time.

All of it is rules of thumb. They lead to the runs for which there are records wherever such a run fits, and say what
they were led by.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL.Image
import torch

from ..data.decoding import try_to_read
from ..data.image_source import ImageSource
from ..data.sampling import spread_indices
from ..modeling.configuration_mae import MAEConfig, height_width
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae import MAEForPreTraining
from ..modeling.reading_mae import OpenedImage
from ..training.arguments import config_changes, parse_duration
from ..training.checkpointing import list_checkpoints, load_training_state
from ..training.distributed import call_in_main_process
from ..training.optimization import default_effective_batch_size, scaled_learning_rate
from .initial_model import config_of
from .schedule import plan_steps
from .settings import PretrainingSettings
from .speed import flops_per_sample, num_parameters

_MOST_EVALUATED = 5000  # images of an evaluation
# What is left open and not chosen: as in He et al. 2021, Table 8 and section 4, whose smallest model is ViT-B.
DEFAULTS = {
    "preset": "base",
    "optimizer": "adamw",
    "views_per_image": 1,
    "crop_scale_min": 0.2,
    "base_learning_rate": 1.5e-4,
    "eval_images": _MOST_EVALUATED,
}


@dataclass(frozen=True)
class Size:
    """A size of the model, with a batch and a rate.

    Args:
        words (`str`): What it is.
        preset (`str`): Name of a preset.
        changes (`str`): Fields of the configuration that differ from it.
        batch_size (`int`): Samples of a step.
        base_learning_rate (`float`): Learning rate of AdamW per 256 of them.
        source (`str`): Whose batch and rate these are.
        optimizer (`str`, *optional*, defaults to `"adamw"`): What learns more in the same time, where that is known.
    """

    words: str
    preset: str
    changes: str
    batch_size: int
    base_learning_rate: float
    source: str
    optimizer: str = "adamw"


_FOUR_BLOCKS = (
    "hidden_size=128,num_hidden_layers=4,num_attention_heads=4,intermediate_size=512,decoder_hidden_size=64,"
    "decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=256"
)
_SIX_BLOCKS = "num_hidden_layers=6,decoder_num_hidden_layers=2"
_BETWEEN = "between those of smaller and larger models, of which there are records"
# From small to large, each a few times the work of the one before. The paper's huge fits few devices: who has one asks
# for it. The paper: He et al. 2021, Table 8.
SIZES = (
    Size(
        "4 blocks of 128", "tiny", _FOUR_BLOCKS, 128, 2e-3, "as in the recipes cifar10_small and cifar10_muon", "muon"
    ),
    Size("6 blocks of 192", "tiny", _SIX_BLOCKS, 256, 1.5e-3, _BETWEEN, "muon"),
    Size("12 blocks of 192", "tiny", "", 512, 1e-3, _BETWEEN, "muon"),  # experiments/cifar10_gpu
    Size("12 blocks of 384", "small", "", 1024, 5e-4, _BETWEEN),
    Size("12 blocks of 768", "base", "", 4096, 1.5e-4, "as in the paper"),
    Size("24 blocks of 1024", "large", "", 4096, 1.5e-4, "as in the paper"),
)
# Samples that a model is worth training on, for each of its parameters. Runs with good figures have 1.6 (the recipe
# cifar10_small), 2 (fashion_mnist), 4.6 (the paper's base, 400 epochs of 1.28 million) and 1.6 (its huge, 800 epochs).
SAMPLES_PER_PARAMETER = 2
# Parameters of an encoder that an image can feed: the paper's huge one has 492 for each image and gains from its size.
PARAMETERS_PER_IMAGE = 500
# Crops for pictures whose shorter side has at least as many pixels. The last ones are those of MNIST and CIFAR.
IMAGE_SIZES = (224, 160, 128, 96, 64, 32, 28)
_FEWEST_PATCHES, _LARGEST_PATCH = 7, 16  # of a side: 7 of 4 pixels, the recipe fashion_mnist; 16 pixels, the paper
# Pixels of the smallest crops of large pictures: their patches are as many, so that there is less to save. The smallest
# model learns more from 96 pixels in patches of 12 than from 128 in patches of 16 (experiments/automatic).
_COARSE, _COARSE_FOR_SMALLEST = 128, 96
# Steps below which a smaller batch does more. The smallest batch with a record is that of fashion_mnist_sample: 64.
FEWEST_STEPS, _SMALLEST_BATCH = 2000, 64
_FEW_STEPS, _TINY_BATCH = 200, 16  # where even that is a matter of minutes, so that a run is a run at all
# The highest rates with a record: the paper's, 1.5e-4 * 4096 / 256, and that of the recipe cifar10_muon. (The recipe
# cifar10 has 6e-3, for batches of 1,024.)
_HIGHEST_RATES = {"adamw": 2.4e-3, "muon": 4e-3}
_FASTER_BY_MUON = 4  # how many times AdamW's rate Muon has in the recipes for CIFAR-10
TRAINING_SHARE = 0.85  # of the time. The rest is for looking, measuring, evaluating and saving.
_LOADING_SHARE = 0.25  # of the time, above which several crops are taken of a decode
_MOST_VIEWS = 4  # benchmarks/equal_time.py: as good at equal steps
_EVALUATION_SHARE, _FEWEST_EVALUATED = 0.01, 200  # of the samples, images: ten evaluations take a tenth of the time
LONG_RUN = 3 * 86400  # seconds, after which a run that was not given a time budget should not come as a surprise
_SLOWEST_DEVICE = 1e9  # operations a second; runs that are short even there need no measurement


# ----------------------------------------------------------------------------------------------------------------------
# What the choices go by


@dataclass(frozen=True)
class Seen:
    """What a look at the images of a source found.

    Args:
        count (`int`): Images of the source.
        looked_at (`int`): How many were opened.
        side (`int` or `None`): Median of the pixels of their shorter sides.
        all_grey (`bool`): Whether all have one channel.
    """

    count: int
    looked_at: int
    side: int | None
    all_grey: bool


def look_at(images: ImageSource, max_images: int = 200) -> Seen:
    """Opens some images without decoding them.

    Args:
        images ([`ImageSource`]): The source.
        max_images (`int`, *optional*, defaults to 200): How many, spread over it.
    """
    sides, grey = [], True
    for index in spread_indices(images, max_images):
        found, reason = try_to_read(images, int(index), _side_and_grey)
        if reason is None and found[0]:
            sides.append(found[0])
            grey = grey and found[1]
    return Seen(len(images), len(sides), int(np.median(sides)) if sides else None, bool(sides) and grey)


def _side_and_grey(image: OpenedImage) -> tuple[int, bool]:
    """Returns the pixels of the shorter side, 0 if they are not known, and whether there is one channel for sure."""
    if isinstance(image, PIL.Image.Image):
        return min(image.size), image.mode in ("1", "L") or image.mode.startswith(("I", "F"))
    if isinstance(image, np.ndarray | torch.Tensor):  # (H, W), (H, W, C) or (C, H, W)
        return sorted(image.shape)[-2], image.ndim == 2
    return min(getattr(image, "size", (0,))), False


class Measures(Protocol):
    """What [`Speed`] measures, in samples a second of all processes."""

    def training(self, config: MAEConfig, batch_size: int) -> float: ...

    def loading(self, config: MAEConfig, crop_scale_min: float, views: int) -> float: ...

    def together(self, training: float, loading: float) -> float: ...


@dataclass(frozen=True)
class Choice:
    """A choice, as it is printed and stored with the run.

    Args:
        name (`str`): What was chosen, in a word.
        values (`dict`): Settings and their values.
        reason (`str`): Why.
    """

    name: str
    values: dict
    reason: str

    def __str__(self) -> str:
        shown = {**self.values, "config_overrides": "as in recipe.yaml"} if len(str(self.values)) > 100 else self.values
        values = ", ".join(f"`{name}` {value}" for name, value in shown.items())
        return f"{self.name:8} {values}: {self.reason}"


# ----------------------------------------------------------------------------------------------------------------------
# Choosing


class Choices:
    """Makes the choices for a run, one after the other. Settings that are given stay as they are."""

    def __init__(
        self,
        settings: PretrainingSettings,
        seen: Seen,
        seconds: float,
        speed: Measures,
        model: MAEConfig | MAEForPreTraining | None = None,
        image_processor: MAEImageProcessor | None = None,
        num_test: int | None = None,
    ):
        """
        Args:
            settings ([`PretrainingSettings`]): The settings, which stay as they are.
            seen ([`Seen`]): The images.
            seconds (`float`): Time of the run.
            speed ([`Measures`]): Measures the device.
            model ([`MAEConfig`] or [`MAEForPreTraining`], *optional*): A model that was passed as an object.
            image_processor ([`MAEImageProcessor`], *optional*): An image processor that was passed as an object.
            num_test (`int`, *optional*): Number of images to evaluate on. Default: those to train on.
        """
        self.most_evaluated = min(_MOST_EVALUATED, seen.count if num_test is None else num_test)
        self.settings, self.seen, self.speed, self.model = settings, seen, speed, model
        self.image_processor = image_processor
        self.seconds, self.made, self.rates = seconds * TRAINING_SHARE, [], {}
        changes = config_changes(settings.config_overrides)
        self.given = {name for name, value in asdict(settings).items() if value is not None} | set(changes)
        self.has_model = model is not None or settings.model_name_or_path is not None
        self.has_size = self.has_model or not self.given.isdisjoint({"preset", "hidden_size"})

    def make(self) -> list[Choice]:
        """Returns the choices."""
        self._choose_channels()
        self._choose_model()
        self._choose_crop_scale()
        self._choose_views()
        self._choose_optimizer()
        self._choose_batch()
        self._choose_rate()
        self._choose_evaluation()
        return self.made

    def _add(self, name: str, values: dict, reason: str):
        self.made.append(Choice(name, values, reason))
        self.settings = _with(self.settings, values)

    def _choose_channels(self):
        names = {"num_channels", "bands", "pages", "image_mean", "image_std"}
        if self.seen.all_grey and self.image_processor is None and not self.has_model and names.isdisjoint(self.given):
            self._add("Channels", {"num_channels": 1}, f"all of {self.seen.looked_at} images looked at are grey")

    # ------------------------------------------------------------------------------------------------------------------
    # The model and its images

    def _choose_model(self):
        """Chooses the largest images that the time allows with the smallest model, and then the largest model."""
        self.size = None if self.has_size else SIZES[0]
        if not self.has_model:
            self._choose_image_size()
        if self.size is not None:
            self.size, reason = self._largest_size()
            self._add("Model", _values_of(self.size), reason)
        elif self.settings.preset is None:
            self.settings = _with(self.settings, {"preset": DEFAULTS["preset"]})
        self.config = config_of(self.settings, self.model)
        self.size = self.size or _nearest_size(self.config)

    def _of_size(self, size: Size | None) -> PretrainingSettings:
        """Returns the settings with a size of the model; without one they have it, or its width."""
        return _with(self.settings, {"preset": DEFAULTS["preset"]} if size is None else _values_of(size))

    def _largest_size(self) -> tuple[Size, str]:
        """Returns the largest size that images and time are enough for, and why it is no larger one."""
        chosen, ending = SIZES[0], "larger ones are left to users"
        parameters, samples = 0, 0.0
        for size in SIZES:
            config = config_of(self._of_size(size))
            needed = num_parameters(config)
            wanted, images = SAMPLES_PER_PARAMETER * needed.whole, needed.encoder / PARAMETERS_PER_IMAGE
            if size is not SIZES[0] and images > self.seen.count:
                ending = f"{size.words} want {images:,.0f} images"
                break
            possible, _ = self._samples(config, size)
            if size is not SIZES[0] and possible < wanted:
                ending = f"{size.words} want {_in_words(wanted)} samples, of which {_in_words(possible)} would fit"
                break
            chosen, parameters, samples = size, needed.whole, possible
            if possible < wanted:
                ending = "there is no smaller size"
                break
        wanted = SAMPLES_PER_PARAMETER * parameters
        fitting = f"{'and' if samples >= wanted else 'but only'} {_in_words(samples)} fit into the time"
        reason = f"{chosen.words}, whose {_in_words(parameters)} parameters want {_in_words(wanted)} samples, {fitting}"
        return chosen, f"{reason}; {ending}"

    def _samples(self, config: MAEConfig, size: Size, views: int | None = None) -> tuple[float, float]:
        """Returns how many samples fit into the time, and the share of the time that training waits for images."""
        views = self.settings.views_per_image or views or _MOST_VIEWS  # as many as may be chosen later
        training = self._measure("training", config, self._batch_of(size))
        crop_scale_min = self.settings.crop_scale_min or DEFAULTS["crop_scale_min"]  # it is chosen after the model
        loading = self._measure("loading", config, crop_scale_min, views)
        rate = self.speed.together(training, loading)
        return self.seconds * rate, 1 - rate / training

    def _measure(self, kind: str, config: MAEConfig, *arguments) -> float:
        """Measures each thing once. Reading depends on nothing but the size of crops."""
        fields = (str(config.image_size), config.num_channels)
        key = (kind, fields if kind == "loading" else config.to_json_string(), arguments)
        if key not in self.rates:
            self.rates[key] = getattr(self.speed, kind)(config, *arguments)
        return self.rates[key]

    def _choose_image_size(self):
        """Chooses the largest images that the time is enough for with this model, else the smallest."""
        candidates = self._image_sizes()
        for values in candidates:
            config = config_of(_with(self._of_size(self.size), values))
            samples, _ = self._samples(config, self.size or _nearest_size(config))
            if samples >= SAMPLES_PER_PARAMETER * num_parameters(config).whole:
                break
        if not values:
            return
        reason = "the size of the images is not known"
        if "image_size" not in values:
            reason = f"the largest patch of at most {_LARGEST_PATCH} pixels that leaves {_FEWEST_PATCHES} to a side"
        elif self.seen.side is not None:
            reason = f"the shorter side of half of the images has {self.seen.side} pixels or more"
        if values is not candidates[0]:
            reason += f", and with {candidates[0].get('image_size', 'more')} the time is too short"
        self._add("Pixels", values, reason)

    def _image_sizes(self) -> list[dict]:
        """Returns what `image_size` and `patch_size` may be, the most patches first; `[{}]` if both are given."""
        settings = self._of_size(self.size)
        stated = {"image_size": settings.image_size, "patch_size": settings.patch_size}
        stated.update(config_changes(settings.config_overrides))
        given = {name: stated[name] for name in ("image_size", "patch_size") if stated[name] is not None}
        if {"image_size", "patch_size"} <= given.keys():
            return [{}]
        own = MAEConfig.from_preset(settings.preset)
        if "image_size" in given:
            sizes = [given["image_size"]]
        else:
            coarsest = _COARSE_FOR_SMALLEST if self.size is SIZES[0] else _COARSE
            sizes = _sizes_for(self.seen.side, own.image_size, given.get("patch_size"), coarsest)
        found = []
        for size in sizes:
            patch = own.patch_size if _suits(own.patch_size, size) else _patch_for(size)
            values = {"image_size": size, "patch_size": given.get("patch_size") or patch}
            values = {name: value for name, value in values.items() if name not in given}
            with suppress(ValueError):  # cells of patches may not fit
                config_of(_with(settings, values))
                found.append(values)
        return found or [{}]

    def _choose_crop_scale(self):
        if "crop_scale_min" in self.given:
            return
        if self.seen.side is not None and self.seen.side < 64:
            reason = f"a fifth of {self.seen.side} pixels, as for photographs, shows too little"
            self._add("Crops", {"crop_scale_min": 0.5}, reason)
        elif self.size is SIZES[0]:  # experiments/clothing_choices, experiments/automatic
            reason = "as in the recipe clothing: so small a model learns a little more from larger crops"
            self._add("Crops", {"crop_scale_min": 0.5}, reason)
        else:
            self._add("Crops", {"crop_scale_min": DEFAULTS["crop_scale_min"]}, "the paper's, for photographs")

    # ------------------------------------------------------------------------------------------------------------------
    # Steps

    def _choose_views(self):
        """Takes several crops of a decode where decoding would otherwise take much of the time."""
        if "views_per_image" in self.given:
            self.samples, _ = self._samples(self.config, self.size)
            return
        _, alone = self._samples(self.config, self.size, 1)
        for views in (1, 2, _MOST_VIEWS):
            self.samples, share = self._samples(self.config, self.size, views)
            if share <= _LOADING_SHARE:
                break
        reason = f"waiting for images would take {alone:.0%} of the time" + (f", so {share:.0%}" if views > 1 else "")
        self._add("Views", {"views_per_image": views}, reason)

    def _batch_of(self, size: Size) -> int:
        if self.settings.effective_batch_size is not None:
            return self.settings.effective_batch_size
        return min(size.batch_size, default_effective_batch_size(self.seen.count))

    def _choose_batch(self):
        self.batch_size = self._batch_of(self.size)
        if "effective_batch_size" in self.given:
            return
        reason = self.size.source
        if self.batch_size < self.size.batch_size:
            reason = f"an epoch of {self.seen.count:,} images has 16 steps then, or a step at least 32 images"
        for fewest_steps, smallest_batch in ((FEWEST_STEPS, _SMALLEST_BATCH), (_FEW_STEPS, _TINY_BATCH)):
            while self.samples / self.batch_size < fewest_steps and self.batch_size > smallest_batch:
                self.batch_size //= 2
                reason = f"more steps do more: about {self.samples / self.batch_size:,.0f} fit into the time"
        self._add("Batch", {"effective_batch_size": self.batch_size}, reason)

    def _choose_optimizer(self):
        if "optimizer" not in self.given and not self.has_model:
            reason = "it learns more in the same time"
            if self.size.optimizer == "adamw":
                reason = "the paper's; no other has a record at this size"
            self._add("Steps by", {"optimizer": self.size.optimizer}, reason)

    def _choose_rate(self):
        if {"base_learning_rate", "learning_rate"} & self.given:
            return
        size, batch_size, optimizer = self.size, self.batch_size, self.settings.optimizer or DEFAULTS["optimizer"]
        own = size.base_learning_rate
        if optimizer == size.optimizer == "muon":
            own *= _FASTER_BY_MUON
        # Rates of small batches: fashion_mnist_sample has that of twice the batch. See `_SMALLEST_BATCH`.
        base, reason = own * min(max(size.batch_size / batch_size, 1), 2), size.source
        highest = _HIGHEST_RATES[optimizer]
        if base * batch_size / 256 > highest:
            base, reason = highest * 256 / batch_size, "no higher one has a record for such batches"
        elif batch_size < size.batch_size:
            reason = f"batches of {size.batch_size} have {_rate(own, size.batch_size)}, {size.source}"
        base = float(f"{base:.3g}")
        reason = f"{_rate(base, batch_size)} for a batch of {batch_size}; {reason}"
        self._add("Rate", {"base_learning_rate": base}, reason)

    def _choose_evaluation(self):
        images = round(max(_EVALUATION_SHARE * self.samples, _FEWEST_EVALUATED) / 100) * 100
        if "eval_images" not in self.given and images < self.most_evaluated:
            reason = "a hundredth of the samples" if images > _FEWEST_EVALUATED else "fewer would tell little"
            self._add("Judging", {"eval_images": images}, f"more would take long; {reason}")


def _rate(base: float, batch_size: int) -> str:
    return f"{scaled_learning_rate(base, batch_size):.2g}"


def _values_of(size: Size) -> dict:
    """Returns the settings of a size of the model."""
    return {"preset": size.preset, **({"config_overrides": size.changes} if size.changes else {})}


def _sizes_for(side: int | None, own: int, patch_size: int | None, coarsest: int) -> list[int]:
    """Returns sizes of crops, the largest first: a preset's own and `IMAGE_SIZES`, from the images' side to `coarsest`.

    With a given patch they are multiples of it.
    """
    fitting = [size for size in sorted({*IMAGE_SIZES, own}, reverse=True) if size <= (side or IMAGE_SIZES[0])]
    sizes = [size for size in fitting if size >= coarsest] or fitting[:1] or [max((side or 0) // 4 * 4, 4)]
    if patch_size is None:
        return sizes
    patch = math.lcm(*height_width(patch_size))
    return list(dict.fromkeys(max(size // patch, 1) * patch for size in sizes))


def _suits(patch: int, image_size: int | list[int]) -> bool:
    """Returns whether a preset's patch divides an image into 7 to 16 patches to a side."""
    return all(side % patch == 0 and _FEWEST_PATCHES <= side // patch <= 16 for side in height_width(image_size))


def _patch_for(image_size: int | list[int]) -> int:
    """Returns the largest patch of at most 16 pixels with at least 7 patches to a side, or else 1 pixel."""
    sides = height_width(image_size)
    common = math.gcd(*sides)
    fitting = [patch for patch in range(1, _LARGEST_PATCH + 1) if common % patch == 0]
    return max((patch for patch in fitting if min(sides) // patch >= _FEWEST_PATCHES), default=1)


def _nearest_size(config: MAEConfig) -> Size:
    """Returns the size whose encoder is the nearest one in parameters."""
    wanted = math.log(num_parameters(config).encoder)
    return min(SIZES, key=lambda size: abs(math.log(_encoder_parameters(size)) - wanted))


@cache
def _encoder_parameters(size: Size) -> int:
    """Returns the parameters of the encoder of a size, for which a model is made: it is asked for several times."""
    return num_parameters(MAEConfig.from_preset(size.preset, **config_changes(size.changes))).encoder


def _in_words(number: float) -> str:
    return f"{number / 1e6:,.1f} million" if number >= 1e6 else f"{float(f'{number:.2g}'):,.0f}"


# ----------------------------------------------------------------------------------------------------------------------
# In a run


def settle_settings(
    settings: PretrainingSettings,
    images: ImageSource,
    speed: Measures,
    *,
    model: MAEConfig | MAEForPreTraining | None = None,
    image_processor: MAEImageProcessor | None = None,
    num_test: int | None = None,
    recorded: Sequence[dict] | None = None,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Settles what is open in the settings, in place. Every process must call this, and settles the same.

    With a time budget it is chosen, or taken from the record if the run goes on. Without one it is as in the paper, and
    a warning says so if the run would take more than three days.

    Args:
        settings ([`PretrainingSettings`]): The settings.
        images ([`ImageSource`]): Images to train on.
        speed ([`Measures`]): Measures the device.
        model ([`MAEConfig`] or [`MAEForPreTraining`], *optional*): A model that was passed as an object.
        image_processor ([`MAEImageProcessor`], *optional*): An image processor that was passed as an object.
        num_test (`int`, *optional*): Number of images to evaluate on. Default: those to train on.
        recorded (`Sequence[dict]`, *optional*): What was chosen before, if the run goes on, see [`recorded_choices`].
        say (`Callable[[str], None]`, *optional*, defaults to `print`): Takes the lines that say what was chosen.

    Returns:
        `list[dict]`: The choices, to be stored with the run.
    """
    choices = [Choice(**each) for each in recorded or ()]
    if settings.time_budget is not None and recorded is None:
        seconds = parse_duration(settings.time_budget)
        seen = call_in_main_process(lambda: look_at(images))
        choices = Choices(settings, seen, seconds, speed, model, image_processor, num_test).make()
    if choices:
        say("\n".join(["Chosen, since it was left open:", *map(str, choices)]))
    for choice in choices:
        vars(settings).update(vars(_with(settings, choice.values)))
    for name, value in DEFAULTS.items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    is_planned = settings.time_budget is not None or recorded is not None
    if not is_planned and (warning := warning_of_length(settings, len(images), speed, model)):
        say(warning)
    return [asdict(choice) for choice in choices]


def _with(settings: PretrainingSettings, values: dict) -> PretrainingSettings:
    """Returns settings with those values that are open. Given fields of the configuration come after chosen ones."""
    changes = {}
    for name, value in values.items():
        given = getattr(settings, name)
        if given is None:
            changes[name] = value
        elif name == "config_overrides" and value and not config_changes(value).keys() <= config_changes(given).keys():
            changes[name] = f"{value},{given}"
    return replace(settings, **changes)


def recorded_choices(output_dir: str | Path) -> list[dict] | None:
    """Returns the choices of the run in a folder, by its newest checkpoint that can be read; `None` without a run."""
    for checkpoint in list_checkpoints(output_dir):
        with suppress(OSError, ValueError):
            return load_training_state(checkpoint).get("choices", [])
    return None


def warning_of_length(
    settings: PretrainingSettings,
    count: int,
    speed: Measures,
    model: MAEConfig | MAEForPreTraining | None = None,
) -> str | None:
    """Returns a warning if a run would take more than three days, with the largest settings that take less.

    Args:
        settings ([`PretrainingSettings`]): The settings, with nothing left open.
        count (`int`): Images to train on.
        speed ([`Measures`]): Measures the device.
        model ([`MAEConfig`] or [`MAEForPreTraining`], *optional*): A model that was passed as an object.
    """
    config, plan = config_of(settings, model), plan_steps(settings, count)
    samples, work = plan.max_steps * plan.batch_size, flops_per_sample(config)
    if samples * work / _SLOWEST_DEVICE < LONG_RUN:
        return None
    rate = speed.training(config, plan.batch_size)
    seconds = samples / rate
    if seconds < LONG_RUN:
        return None
    ways = ["`time_budget` 8h, which chooses what fits"]
    if model is None and settings.model_name_or_path is None and settings.config_overrides is None:
        ways = [*_shorter_runs(settings, samples, rate * work), *ways]
    ways += ["fewer `max_steps`" if settings.max_steps > 0 else "fewer `num_train_epochs`"]
    return (
        f"This run would take about {seconds / 86400:,.0f} days: {rate:,.1f} images a second on this machine. "
        f"What takes less: {'; '.join(ways)}."
    )


def _shorter_runs(settings: PretrainingSettings, samples: float, flops_a_second: float) -> list[str]:
    """Returns the largest preset, at the largest image size, that takes less than three days, if there is one."""
    for preset in ("large", "base", "small", "tiny"):
        for image_size in (224, 160, 128):
            config = MAEConfig.from_preset(preset, image_size=image_size, num_channels=settings.num_channels or 3)
            seconds = samples * flops_per_sample(config) / flops_a_second
            if seconds < LONG_RUN:
                return [f"`preset` {preset} with `image_size` {image_size}, about {seconds / 3600:,.0f} hours"]
    return []


__all__ = [
    "DEFAULTS",
    "SIZES",
    "Choice",
    "Choices",
    "Seen",
    "Size",
    "look_at",
    "recorded_choices",
    "settle_settings",
]
