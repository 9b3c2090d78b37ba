# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images to pixel values and back, in plain torch: the same numbers with and without torchvision, on any device."""

import base64
import copy
import math
import os
import urllib.request
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from torch import nn
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import IMAGE_PROCESSOR_NAME

from .reading_mae import (
    ImageFile,
    OpenedImage,
    ReadingSettings,
    StoredImage,
    UnsuitableImageError,
    as_tensor,
    fill_missing,
    find_missing,
    num_pages,
    open_image,
    page_of,
    read_stored,
    to_byte_range,
)
from .saving_mae import SavesCode, check_is_object, explaining_missing

_INTERPOLATION = {
    PIL.Image.Resampling.NEAREST: "nearest-exact",
    PIL.Image.Resampling.BILINEAR: "bilinear",
    PIL.Image.Resampling.BICUBIC: "bicubic",
}
# A picture this many times larger than its crop is cut before it is resized: else a strip of 4 x 20,000 pixels would be
# enlarged to gigabytes first.
_LARGEST_RESIZE = 16
# Largest share of no-data in a resized pixel that counts as valid: more than errors of rounding.
NO_DATA_SHARE = 1e-3
# Arguments of transformers that are not implemented, and the values with which nothing needs to be done.
_WITHOUT_EFFECT = {"data_format": (None, "channels_first"), "do_pad": (None, False), "pad_size": (None,)}


class MAEImageProcessorKwargs(ImagesKwargs, total=False):
    r"""Arguments beyond the usual ones, see [`MAEImageProcessor`] and [`ReadingSettings`].

    num_channels (`int`, *optional*, defaults to 3): Channels of the pixel values.
    value_range (`(low, high)`, *optional*): Stored values that become black and white.
    bands (`list[int]`, *optional*): Bands of a file that become the channels, counted from 1.
    nodata (`float` or `"nan"`, *optional*): Stored value of pixels without data.
    pages (`str`, *optional*): `"first"`, `"channels"` or `"images"`, for files of several pages.
    background (`int`, *optional*, defaults to 255): Grey level that shows through transparent pixels.
    display_bands (`list[int]`, *optional*): One or three channels that pictures show, counted from 1.
    sample_type (`str`, *optional*): Type of the values that the model was trained on, such as `"uint16"`.
    return_valid (`bool`, *optional*): Whether to return `valid`, too.
    """

    num_channels: int
    value_range: list | tuple | None
    bands: list[int] | tuple[int, ...] | None
    nodata: float | int | str | None
    pages: str | None
    background: int | None
    display_bands: list[int] | tuple[int, ...] | None
    sample_type: str | None
    return_valid: bool | None


def resize(image: torch.Tensor, size: tuple[int, int], mode: str = "bicubic") -> torch.Tensor:
    """Resizes `(..., channels, height, width)` to `size` = (height, width), antialiased; rounds for uint8.

    For uint8 the algorithm is that of PIL's `resize`: nearly all pixels agree, the others to two grey levels.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    images = image if image.ndim == 4 else image[None]
    if images.dtype == torch.uint8 and images.device.type != "cpu":
        images = _resize_bytes_as_floats(images, size, mode)
    else:
        images = _interpolate(images, size, mode)
    return images if image.ndim == 4 else images[0]


def _interpolate(images: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    antialias = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
    return nn.functional.interpolate(images, size=size, mode=mode, **antialias)


def _resize_bytes_as_floats(images: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Resizes uint8 images on devices whose antialiased kernels take only floats, to within one grey level."""
    return _interpolate(images.float(), size, mode).round().clamp(0, 255).to(torch.uint8)


_SHALLOW = (
    "The image has 8 bits, the model was trained on deeper values. Pipelines of transformers convert files to 8-bit "
    "RGB before the image processor sees them. Give the path or an array of the stored values to the image processor, "
    "and its output to the model."
)


class MAEImageProcessor(SavesCode, BaseImageProcessor):
    r"""Turns images into `pixel_values` and reconstructions into pictures.

    The default is the evaluation transform of the official code: resize the shorter side to 256 (bicubic, antialiased),
    crop the central 224, scale values to [0, 1], normalise with ImageNet's mean and deviation.

    Images may be paths, PIL images, arrays or tensors; the same picture gives the same values. Files are read as they
    are stored, at any depth. uint8 and uint16 are scaled by the range of the type and floats must be in [0, 1], unless
    `value_range` says which stored values become black and white.

    Args:
        size (`dict`, *optional*, defaults to `{"shortest_edge": 256}`): `{"shortest_edge": s}` keeps the aspect: the
            image covers `crop_size` scaled such that its shorter side is `s`. `{"height": h, "width": w}` does not.
        crop_size (`dict`, *optional*, defaults to `{"height": 224, "width": 224}`): Pixels of the centre crop; smaller
            images are padded with 0. Where only a `size` of one number or of height and width is given, it is that:
            here, in `from_pretrained` and in a call.
        resample (`int`, *optional*, defaults to 3): PIL's number of the filter: 0 nearest, 2 bilinear, 3 bicubic.
        image_mean, image_std (`tuple[float]`, *optional*): Per channel, for values in [0, 1]. Default to ImageNet's for
            3 channels and to 0.5 otherwise.
        num_channels (`int`, *optional*, defaults to 3): Channels of the pixel values. Grey is repeated into three
            channels, pictures of 8 bits are converted between colour and grey, and any other number of bands is
            refused. Follows from `image_mean` where that is given.
        value_range, bands, nodata, pages, background (*optional*): How stored values become the values of the model,
            see [`ReadingSettings`]. `nodata` may be `"nan"`. No-data is filled with `image_mean`.
        input_data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`, for arrays where both could be.
        display_bands (`list[int]`, *optional*): Channels that pictures show, one or three, counted from 1. Default: the
            first three, the first one of two, or all four of 8 bits.
        sample_type (`str`, *optional*): Type of the values that the model was trained on, such as `"uint16"`. 8-bit
            pictures are then refused, and pictures are stretched.
        return_valid (`bool`, *optional*): Whether to return `valid`, too: for each image a bool map `(height, width)`,
            False where a pixel of `pixel_values` shows no-data.
        do_resize, do_center_crop, do_rescale, do_normalize (`bool`, *optional*, default to `True`): The steps.
    """

    valid_kwargs = MAEImageProcessorKwargs
    model_input_names = ["pixel_values"]
    default_to_square = False  # an integer size is the shorter side
    do_resize = True
    size = {"shortest_edge": 256}
    resample = PIL.Image.Resampling.BICUBIC
    do_center_crop = True
    crop_size = {"height": 224, "width": 224}
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = None
    image_std = None
    num_channels = 3
    value_range = None
    bands = None
    nodata = None
    pages = None
    background = 255
    display_bands = None
    sample_type = None
    return_valid = None

    def __init__(self, **kwargs):
        # Processors of other models resize to the size itself and do not tell the channels.
        kwargs, mean = _with_crop(kwargs), kwargs.get("image_mean")
        if "num_channels" not in kwargs and isinstance(mean, list | tuple):
            kwargs["num_channels"] = len(mean)
        if isinstance(kwargs.get("nodata"), float) and math.isnan(kwargs["nodata"]):
            kwargs["nodata"] = "nan"  # JSON knows no NaN
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        if self.image_mean is None:
            self.image_mean = tuple(IMAGENET_DEFAULT_MEAN) if self.num_channels == 3 else (0.5,) * self.num_channels
        if self.image_std is None:
            self.image_std = tuple(IMAGENET_DEFAULT_STD) if self.num_channels == 3 else (0.5,) * self.num_channels
        shown = [1] if self.display_bands is None else list(self.display_bands)
        if len(shown) not in (1, 3) or not set(shown) <= set(range(1, self.num_channels + 1)):
            raise ValueError(
                f"`display_bands` must be one or three of the channels 1 to {self.num_channels}, got {shown}."
            )
        self._reading()  # raises if the settings make no sense
        steps = (self.do_resize, self.size, self.do_center_crop, self.crop_size)
        _check_steps(*steps, self.image_mean, self.image_std)

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        check_is_object(pretrained_model_name_or_path, kwargs.get("subfolder"), IMAGE_PROCESSOR_NAME)
        with explaining_missing(pretrained_model_name_or_path, kwargs.get("subfolder")):
            return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs):
        return super().from_dict(image_processor_dict, **_with_crop(kwargs))  # not the saved crop of another size

    def preprocess(self, images: ImageInput, *args, **kwargs) -> BatchFeature:
        images = self._prepare_images_structure(images)
        if kwargs.get("pages", self.pages) == "images":
            images = [page for image in images for page in _pages(image)]
        # transformers takes the sizes of a processor in a constructor, but not in a call.
        kwargs = {name: dict(value) if isinstance(value, SizeDict) else value for name, value in kwargs.items()}
        return super().preprocess(images, *args, **_with_crop(kwargs))

    @classmethod
    def for_image_size(cls, image_size: int | tuple[int, int], **kwargs) -> "MAEImageProcessor":
        """Returns the processor for a model's `image_size`, with the official ratio of resize to crop, 256 : 224.

        Args:
            image_size (`int` or `(height, width)`): Pixels of the crop.
            **kwargs: Other arguments of the processor, such as `num_channels`.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        size = {"shortest_edge": round(min(height, width) * 256 / 224)}
        return cls(size=size, crop_size={"height": height, "width": width}, **kwargs)

    def with_image_size(self, image_size: int | tuple[int, int]) -> "MAEImageProcessor":
        """Returns the processor for another size, which takes the same part of an image and the same steps.

        Args:
            image_size (`int` or `(height, width)`): Pixels of the crop.
        """
        official, other = self.for_image_size(image_size), copy.deepcopy(self)
        old, new = self.crop_height_width, official.crop_height_width
        other.crop_size, other.size = official.crop_size, official.size
        if self.size.height and self.size.width:  # the whole image, or a part of it without its aspect
            sides = self.size.height, self.size.width
            height, width = (round(side * b / a) for side, a, b in zip(sides, old, new, strict=True))
            other.size = SizeDict(height=height, width=width)
        elif self.size != self.for_image_size(old).size:  # of another model, whose ratio of resize to crop is another
            other.size = SizeDict(shortest_edge=round(self.size.shortest_edge * min(new) / min(old)))
        return other

    @property
    def reading(self) -> ReadingSettings:
        """How files are read, for those who read them without the processor, as training does."""
        return self._reading()

    def _reading(self, **given) -> ReadingSettings:
        """Returns how files are read, by the arguments of a call where it has them, else by those of the processor."""
        names = ("value_range", "bands", "nodata", "pages", "background", "input_data_format")
        value_range, bands, nodata, pages, background, order = (
            given.get(name, getattr(self, name, None)) for name in names
        )
        return ReadingSettings(
            value_range=None if value_range is None else tuple(value_range),
            bands=None if bands is None else tuple(bands),
            nodata=None if nodata is None else float(nodata),
            pages=pages,
            channels_first=None if order is None else ChannelDimension(order) == ChannelDimension.FIRST,
            background=background,
            fill=_fill(self.image_mean, self.rescale_factor),
        )

    @property
    def is_deep(self) -> bool:
        """Whether the model was trained on values that 8 bits do not hold."""
        return _is_deep(self.sample_type, self.reading)

    def _auto_map_to_save(self) -> dict[str, str]:
        return {name: each for name, each in super()._auto_map_to_save().items() if name == "AutoImageProcessor"}

    @property
    def backend(self) -> str:
        return "torch"

    @property
    def crop_height_width(self) -> tuple[int, int]:
        """Pixels of `pixel_values`, (height, width)."""
        return self.crop_size.height, self.crop_size.width

    def _prepare_images_structure(self, images, expected_ndims: int = 3) -> list:
        """Returns a flat list of images; the library's own does not know arrays without channels."""
        images = self.fetch_images(images)
        if isinstance(images, list | tuple):
            return [image for part in images for image in self._prepare_images_structure(part)]
        return list(images) if getattr(images, "ndim", expected_ndims) == 4 else [images]

    def fetch_images(self, images):
        """Opens paths, URLs and base64 strings, with all bits and bands; transformers would convert them to 8-bit RGB.

        Args:
            images (`str`, `os.PathLike`, an image, or lists of them): What to open. Images are returned as they are.
        """
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, str | os.PathLike):
            images = _open(os.fspath(images))
        elif not isinstance(images, PIL.Image.Image | np.ndarray | torch.Tensor | ImageFile | StoredImage):
            raise TypeError(
                f"Expected paths, PIL images, arrays, tensors or lists of them, got {type(images).__name__}."
            )
        return images

    def process_image(
        self,
        image: "ImageInput | ImageFile",
        num_channels: int,
        do_rescale: bool,
        device: "torch.device | None" = None,
        sample_type: str | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Returns one image as `(channels, height, width)`: uint8, or floats in [0, 255] if it is to be rescaled.

        No-data is NaN.
        """
        settings = self._reading(**kwargs)
        try:
            stored = read_stored(image, num_channels, settings)
            if _is_deep(sample_type, settings) and stored.type_name == "uint8":
                raise UnsuitableImageError(_SHALLOW)
            values = to_byte_range(stored, settings) if do_rescale else _as_stored(stored, settings)
        except UnsuitableImageError as error:
            name = getattr(image, "filename", None) or getattr(image, "file", None)
            raise error.of_file(name if isinstance(name, str) else "") from error
        return values.to(device)

    def _standardize_kwargs(self, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        for name, values in _WITHOUT_EFFECT.items():
            if kwargs.get(name) not in values:
                raise ValueError(
                    f"`{name}` must be {' or '.join(map(repr, values))}, got {kwargs[name]!r}: pixel values have their "
                    "channels first, and images are padded to `crop_size` alone."
                )
        for name in ("image_mean", "image_std"):
            value, channels = kwargs.get(name), kwargs.get("num_channels")
            if isinstance(value, tuple) and channels and len(value) not in (1, channels):
                raise ValueError(
                    f"{name} has {len(value)} values for {channels} channels: {value}. Give one for each channel, as "
                    "`compute_statistics` does, or one for all."
                )
        return kwargs

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: int,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | tuple[float, ...],
        image_std: float | tuple[float, ...],
        return_tensors: str | None = None,
        return_valid: bool | None = None,
        **kwargs,
    ) -> BatchFeature:
        if do_resize and resample not in _INTERPOLATION:
            raise ValueError(f"resample must be 0 (nearest), 2 (bilinear) or 3 (bicubic), got {resample}.")
        _check_steps(do_resize, size, do_center_crop, crop_size, image_mean, image_std)
        size, crop = size if do_resize else None, (crop_size.height, crop_size.width) if do_center_crop else None
        settings = ReadingSettings(fill=_fill(image_mean, rescale_factor if do_rescale else 1))
        pixel_values, valid = [], []
        for image in images:
            image, missing = fill_missing(image, settings)
            image = _fit(image, size, crop, _INTERPOLATION.get(resample, ""))
            if size is not None and image.is_floating_point() and do_rescale:
                image = image.clamp(0, 255)  # bicubic overshoots; uint8 is clamped by itself
            pixel_values.append(
                self.rescale_and_normalize(image, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            )
            if return_valid:
                valid.append(_valid_after_fit(missing, image, size, crop))
        if return_tensors is not None and len({image.shape for image in pixel_values}) > 1:
            raise ValueError("Images of different sizes can't be stacked; let do_resize and do_center_crop be True.")
        data = {"pixel_values": pixel_values, **({"valid": valid} if return_valid else {})}
        return BatchFeature(data, tensor_type=return_tensors)

    def rescale_and_normalize(
        self,
        images: torch.Tensor,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | tuple[float, ...] | None = None,
        image_std: float | tuple[float, ...] | None = None,
    ) -> torch.Tensor:
        """Returns float32 pixel values of images that have the right size, on their device; arguments default to self.

        Args:
            images (`torch.Tensor` of shape `(..., channels, height, width)`): Values in [0, 255], uint8 or float.
        """
        do_rescale = self.do_rescale if do_rescale is None else do_rescale
        rescale_factor = self.rescale_factor if rescale_factor is None else rescale_factor
        do_normalize = self.do_normalize if do_normalize is None else do_normalize
        image_mean = self.image_mean if image_mean is None else image_mean
        image_std = self.image_std if image_std is None else image_std
        images = images.float()
        if do_rescale:
            images = images * rescale_factor
        if do_normalize:
            images = (images - _per_channel(image_mean, images)) / _per_channel(image_std, images)
        return images

    def post_process_reconstruction(self, pixel_values: torch.Tensor) -> list[PIL.Image.Image]:
        """Returns pictures of normalised pixel values; the way back of this processor.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): For example `reconstruction` or
                `masked` of `MAEForPreTraining.reconstruct`. Shown are the channels `display_bands`. Images of more than
                8 bits are stretched to 2.5 deviations around the mean, since their values fill little of the range.
        """
        images = pixel_values.detach().float().cpu()
        mean, std = (torch.as_tensor(value).float().reshape(-1, 1, 1) for value in (self.image_mean, self.image_std))
        if self.do_normalize:
            images = images * std + mean
        # Of values that are not rescaled, 255 is white where they are bytes, else 1.
        white = 255 if self.sample_type == "uint8" or mean.max() > 1 else 1
        scale = 1 / self.rescale_factor if self.do_rescale else 255 / white
        if self.is_deep and self.do_normalize:
            low, high = mean - 2.5 * std, mean + 2.5 * std
            if self.do_rescale:  # else the values may lie anywhere
                low, high = low.clamp(min=0), high.clamp(max=255 * self.rescale_factor)
            images, scale = (images - low) / (high - low), 255
        images = (images * scale).round().clamp(0, 255).byte()
        # Four channels of 8 bits are colours with an opacity, four of more bits are bands.
        channels = {1: 1, 2: 1, 4: 3 if self.is_deep else 4}.get(images.shape[1], 3)
        bands = [band - 1 for band in self.display_bands or range(1, channels + 1)]
        images = images[:, bands].permute(0, 2, 3, 1).numpy()
        return [PIL.Image.fromarray(image[..., 0] if len(bands) == 1 else image) for image in images]

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """Returns the class of each pixel, as transformers' segmentation pipeline asks for it.

        Args:
            outputs (`ModelOutput`): Of a head such as UperNet; `logits` `(batch, num_labels, height, width)`.
            target_sizes (`list` of `(height, width)`, *optional*): Pixels of each map, such as those of the picture;
                the logits are resized (bilinear). Without it maps have the size of the logits.

        Returns:
            `list[torch.LongTensor]`: A map `(height, width)` for each image.

        Raises:
            ValueError: If there are not as many sizes as images.
        """
        logits = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        _check_target_sizes(target_sizes, len(logits))
        return [
            nn.functional.interpolate(image[None].float(), size=tuple(map(int, size)), mode="bilinear")[0].argmax(dim=0)
            for image, size in zip(logits, target_sizes, strict=True)
        ]

    def post_process_depth_estimation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Returns the depth of each pixel, as transformers' depth-estimation pipeline asks for it.

        Args:
            outputs (`ModelOutput`): Of a head such as DPT; `predicted_depth` `(batch, height, width)`.
            target_sizes (`list` of `(height, width)`, *optional*): Pixels of each map, such as those of the picture;
                the depths are resized (bilinear). Without it maps have the size of the output.

        Returns:
            `list[dict]`: For each image `predicted_depth` `(height, width)`, in the units of the head.

        Raises:
            ValueError: If there are not as many sizes as images.
        """
        depths = outputs.predicted_depth
        sizes = [depths.shape[1:]] * len(depths) if target_sizes is None else target_sizes
        _check_target_sizes(sizes, len(depths))
        return [
            {"predicted_depth": resize(depth[None].float(), tuple(map(int, size)), "bilinear")[0]}
            for depth, size in zip(depths, sizes, strict=True)
        ]

    def post_process_object_detection(
        self,
        outputs,
        threshold: float = 0.5,
        target_sizes: "torch.Tensor | list[tuple[int, int]] | None" = None,
        top_k: int = 100,
    ) -> list[dict[str, torch.Tensor]]:
        """Returns what a detector found, as transformers' object-detection pipeline asks for it.

        For heads whose classes are independent (D-FINE, DEIMv2, RT-DETR, Deformable DETR): the sigmoid of each query
        and class is a score, and the highest `top_k` of an image count, so that a query may count for two classes.

        Args:
            outputs (`ModelOutput`): `logits` `(batch, queries, classes)` and `pred_boxes` `(batch, queries, 4)`: centre
                x, centre y, width and height in shares of the image.
            threshold (`float`, *optional*, defaults to 0.5): Lowest score that is returned, in [0, 1].
            target_sizes (`torch.Tensor` or `list` of `(height, width)`, *optional*): Pixels of each picture. Without it
                boxes are in shares.
            top_k (`int`, *optional*, defaults to 100): Most boxes of an image; 100 is what COCO evaluates.

        Returns:
            `list[dict]`: For each image `scores` `(boxes,)`, highest first, `labels` `(boxes,)`, and `boxes` `(boxes,
            4)`: left, top, right and bottom.

        Raises:
            ValueError: If there are not as many sizes as images.
        """
        logits, boxes = outputs.logits.float(), outputs.pred_boxes.float()
        scores, places = logits.sigmoid().flatten(1).topk(min(top_k, logits[0].numel()), dim=1)
        queries, labels = places // logits.shape[2], places % logits.shape[2]
        centres, sides = boxes[..., :2], boxes[..., 2:]
        corners = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)
        corners = corners.gather(1, queries[..., None].expand(-1, -1, 4))
        if target_sizes is not None:
            _check_target_sizes(target_sizes, len(logits))
            sizes = torch.as_tensor(target_sizes, dtype=corners.dtype)
            corners = corners * sizes[:, None, [1, 0, 1, 0]].to(corners.device)
        return [
            {"scores": score[score > threshold], "labels": label[score > threshold], "boxes": box[score > threshold]}
            for score, label, box in zip(scores, labels, corners, strict=True)
        ]


def _is_deep(sample_type: str | None, settings: ReadingSettings) -> bool:
    """Returns whether values of a type, or in the range that settings give, are more than 8 bits hold."""
    if sample_type is not None:
        return sample_type != "uint8"
    return any(low < 0 or high > 255 for low, high in settings.value_ranges or ())


def _check_target_sizes(target_sizes: Sequence | torch.Tensor, num_images: int):
    """Raises `ValueError` if there are not as many sizes as images."""
    if len(target_sizes) != num_images:
        raise ValueError(f"Got {len(target_sizes)} target_sizes for {num_images} images; give one for each.")


def _check_steps(do_resize, size: SizeDict, do_center_crop, crop_size: SizeDict, image_mean, image_std):
    """Raises `ValueError` if sides are no pixels, or values can't be normalised."""
    for name, sides in (("size", size if do_resize else {}), ("crop_size", crop_size if do_center_crop else {})):
        if any(side is not None and side < 1 for side in dict(sides).values()):
            raise ValueError(f"{name} must be at least 1 pixel, got {dict(sides)}.")
    if do_center_crop and not (crop_size.height and crop_size.width):
        raise ValueError(f"crop_size must be {{'height': h, 'width': w}}, got {dict(crop_size)}.")
    mean, std = (np.asarray(value, dtype=np.float64) for value in (image_mean, image_std))
    if not np.isfinite(mean).all() or not (np.isfinite(std) & (std > 0)).all():
        raise ValueError(
            f"image_mean must be finite and image_std above 0, got {image_mean} and {image_std}. A channel that has "
            "the same value everywhere can't be normalised: leave it out."
        )


def _with_crop(kwargs: dict) -> dict:
    """Returns arguments in which `crop_size` is `size`, if only `size` is given and it states both sides."""
    size = kwargs.get("size")
    if size is None or kwargs.get("crop_size") is not None:
        return kwargs
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, list | tuple):
        sides = (size["height"], size["width"]) if "height" in size and "width" in size else ()
    return {**kwargs, "crop_size": {"height": sides[0], "width": sides[1]}} if len(sides) == 2 else kwargs


def _open(source: str) -> OpenedImage:
    """Opens a file, a URL or a base64 string.

    Raises:
        FileNotFoundError: If it is none of them.
        UnsuitableImageError: If the library that reads it is not installed.
    """
    try:
        if os.path.exists(source):
            return open_image(source)
        if source.startswith(("http://", "https://")):
            with urllib.request.urlopen(source) as response:
                return open_image(response.read(), "")
        encoded = source.split(",")[1] if source.startswith("data:image/") else source
        return open_image(base64.b64decode(encoded, validate=True), "")
    except UnsuitableImageError as error:
        raise error.of_file(source) from error
    except (ValueError, PIL.UnidentifiedImageError) as error:  # many names of files are valid base64
        if os.path.exists(source) or "://" in source:
            raise
        raise FileNotFoundError(f"{source[:200]!r} is no file, URL or base64 string.") from error


def _pages(image: OpenedImage | StoredImage | torch.Tensor) -> list:
    """Returns each page of an opened image as an image of its own."""
    count = num_pages(image)
    return [image] if count == 1 else [page_of(image, page) for page in range(count)]


def _as_stored(image: StoredImage, settings: ReadingSettings) -> torch.Tensor:
    """Returns the stored values, uint8 or float32, NaN where no data is."""
    values = as_tensor(image.pixels)
    missing = find_missing(image, values, settings)
    values = values if values.dtype == torch.uint8 else values.float()
    return values if missing is None else values.float().masked_fill(missing, torch.nan)


def _fit(image: torch.Tensor, size: SizeDict | None, crop: tuple[int, int] | None, mode: str) -> torch.Tensor:
    """Resizes an image, and cuts or pads it to a crop, where there are such."""
    if size is not None:
        image = _resize_near_center(image, size, crop, mode)
    return image if crop is None else _center_crop(image, crop)


def _valid_after_fit(
    missing: torch.Tensor | None, image: torch.Tensor, size: SizeDict | None, crop: tuple[int, int] | None
) -> torch.Tensor:
    """Returns which pixels of an image after [`_fit`] show no no-data; `missing` is of the image before it."""
    if missing is None:
        return torch.ones(image.shape[-2:], dtype=torch.bool, device=image.device)
    return _fit(missing[None].float(), size, crop, "bilinear")[0] <= NO_DATA_SHARE


def _resize_near_center(image: torch.Tensor, size: SizeDict, crop: tuple[int, int] | None, mode: str) -> torch.Tensor:
    """Resizes an image, of which only the central crop will be kept."""
    sides = image.shape[-2:]
    target = _resized(sides, size, crop)
    if crop is not None and math.prod(target) > _LARGEST_RESIZE * math.prod(crop):
        kept = []
        for side, resized, wanted in zip(sides, target, crop, strict=True):
            scale = resized / side
            margin = math.ceil(4 * max(1 / scale, 1))  # more than the filter reaches
            length = min(math.ceil(wanted / scale) + 2 * margin, side)
            kept.append(length - (side - length) % 2 if length > 1 else length)  # symmetric around the centre
        image = _center_crop(image, tuple(kept))
        target = tuple(max(round(k * t / s), 1) for k, t, s in zip(kept, target, sides, strict=True))
    return resize(image, target, mode)


def _fill(image_mean: float | Sequence[float], rescale_factor: float) -> tuple[float, ...]:
    """Returns the value of each channel, or of all, that rescaling and normalising turn into 0."""
    means = image_mean if isinstance(image_mean, list | tuple) else (image_mean,)
    return tuple(mean / rescale_factor for mean in means)


def _per_channel(value: float | tuple[float, ...], images: torch.Tensor) -> torch.Tensor:
    # Not blocking: a step of training must not wait for the device.
    return torch.as_tensor(value, dtype=images.dtype).reshape(-1, 1, 1).to(images.device, non_blocking=True)


def _resized(shape: tuple[int, int], size: SizeDict, crop: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width after the resize; with a crop and a shortest edge the image covers the scaled crop."""
    if size.height and size.width:
        return size.height, size.width
    if not size.shortest_edge:
        raise ValueError(f"size must be {{'shortest_edge': s}} or {{'height': h, 'width': w}}, got {dict(size)}.")
    height, width = shape
    crop = crop or (1, 1)
    cover = [round(side * size.shortest_edge / min(crop)) for side in crop]
    if cover[0] * width >= cover[1] * height:
        return cover[0], int(cover[0] * width / height)
    return int(cover[1] * height / width), cover[1]


def _center_crop(image: torch.Tensor, crop: tuple[int, int]) -> torch.Tensor:
    missing = [max(wanted - side, 0) for wanted, side in zip(crop, image.shape[-2:], strict=True)]
    if any(missing):
        (above, left), (below, right) = ([m // 2 for m in missing], [m - m // 2 for m in missing])
        image = nn.functional.pad(image, (left, right, above, below))
    # Rounded as torchvision's CenterCrop, which the official code uses.
    top, left = (round((side - wanted) / 2) for side, wanted in zip(image.shape[-2:], crop, strict=True))
    return image[..., top : top + crop[0], left : left + crop[1]]


__all__ = ["MAEImageProcessor"]
