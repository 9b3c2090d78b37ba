# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images to pixel values and back, in plain torch: the same numbers with and without torchvision, on any device."""

import numpy as np
import PIL.Image
import PIL.ImageCms
import torch
from torch import nn
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageInput, SizeDict
from transformers.processing_utils import ImagesKwargs

_INTERPOLATION = {
    PIL.Image.Resampling.NEAREST: "nearest-exact",
    PIL.Image.Resampling.BILINEAR: "bilinear",
    PIL.Image.Resampling.BICUBIC: "bicubic",
}
_PIL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class MAEImageProcessorKwargs(ImagesKwargs, total=False):
    r"""Arguments beyond the usual ones.

    num_channels (`int`, *optional*, defaults to 3): Channels of the pixel values. PIL images are converted to it where
        a mode exists (1 grey, 2 grey and alpha, 3 RGB, 4 RGBA); in arrays it tells which axis holds the channels.
    """

    num_channels: int


def image_to_tensor(image: ImageInput, num_channels: int, channels_first: bool | None = None) -> torch.Tensor:
    """Returns one image as a tensor of shape `(channels, height, width)`, values as they were stored.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): A PIL image of any mode, or an array HW, HWC or CHW.
        num_channels (`int`): Channels wanted. PIL images are converted; one grey channel is repeated; any other count
            must be there.
        channels_first (`bool`, *optional*): Which axis of an array holds the channels, for arrays where both could:
            then the last of a numpy array and the first of a tensor are taken unless told.

    Raises:
        ValueError: If the image has another number of channels.
    """
    if isinstance(image, PIL.Image.Image):
        if image.mode == "LAB":  # the one mode that convert() does not know the way from
            lab, rgb = PIL.ImageCms.createProfile("LAB"), PIL.ImageCms.createProfile("sRGB")
            image = PIL.ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        deep = image.mode.startswith(("I", "F"))  # 16 or 32 bits, which convert() would clip
        if not deep and num_channels in _PIL_MODES and image.mode != _PIL_MODES[num_channels]:
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert(_PIL_MODES[num_channels])
        image, channels_first = np.array(image, dtype=np.uint16 if image.mode == "I" else None), False
    if isinstance(image, np.ndarray):
        channels_first = bool(channels_first)
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        if image.dtype == np.bool_:
            image = image.astype(np.uint8) * np.uint8(255)
        image = torch.from_numpy(np.ascontiguousarray(image))
    elif channels_first is None:
        channels_first = True
    if image.ndim == 2:
        image = image[None]
    elif image.ndim == 3:
        first, last = (image.shape[axis] == num_channels for axis in (0, 2))
        if not first and not last:  # perhaps a grey image
            first, last = image.shape[0] == 1, image.shape[2] == 1
        if last and not (first and channels_first):
            image = image.permute(2, 0, 1)
        elif not first:
            raise ValueError(_channels_error(image, num_channels))
    else:
        raise ValueError(_channels_error(image, num_channels))
    if image.shape[0] == 1 and num_channels > 1:
        image = image.expand(num_channels, -1, -1)
    if image.shape[0] != num_channels:
        raise ValueError(_channels_error(image, num_channels))
    return image


def _channels_error(image: torch.Tensor, num_channels: int) -> str:
    return (
        f"Expected an image of {num_channels} channels, or grey, as HW, HWC or CHW; got shape {tuple(image.shape)}. "
        "Set num_channels of the image processor (and the model) to the number of channels of the data."
    )


def to_byte_range(image: torch.Tensor) -> torch.Tensor:
    """Returns an image as uint8, or as float32 in [0, 255] where it came with more than 8 bits or as floats in [0, 1].

    Raises:
        ValueError: If the type is another, or floats are not in [0, 1].
    """
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.uint16:
        return image.float() / 257
    low, high = (value.item() for value in image.float().aminmax())
    if not image.is_floating_point() or low < 0 or high > 1:
        raise ValueError(
            f"Images must be uint8, uint16 or floats in [0, 1]; got {image.dtype} with values from {low:g} to "
            f"{high:g}. Convert them, or pass do_rescale=False to the image processor to take the values as they are."
        )
    return image.float() * 255


def resize(image: torch.Tensor, size: tuple[int, int], mode: str = "bicubic") -> torch.Tensor:
    """Resizes `(..., channels, height, width)` to `size` = (height, width), antialiased; rounds for uint8.

    For uint8 the algorithm is that of PIL's `resize`: nearly all pixels agree, the others to two grey levels.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    images = image if image.ndim == 4 else image[None]
    antialias = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
    images = nn.functional.interpolate(images, size=size, mode=mode, **antialias)
    return images if image.ndim == 4 else images[0]


class MAEImageProcessor(BaseImageProcessor):
    r"""Turns images into `pixel_values` and reconstructions into pictures.

    The default is the evaluation transform of the official code: the shorter side to 256 (bicubic, antialiased), centre
    crop of 224, values to [0, 1], ImageNet's mean and deviation. uint8 and uint16 are scaled by the range of the type;
    floats must be in [0, 1] unless `do_rescale=False` says that they are to be taken as they are.

    Args:
        size (`dict`, *optional*, defaults to `{"shortest_edge": 256}`): `{"shortest_edge": s}` keeps the aspect: the
            image covers `crop_size` scaled such that its shorter side is `s`. `{"height": h, "width": w}` does not.
        crop_size (`dict`, *optional*, defaults to `{"height": 224, "width": 224}`): Pixels of the centre crop; smaller
            images are padded with 0. Where only a `size` of one number or of height and width is given, it is that.
        resample (`int`, *optional*, defaults to 3): PIL's number of the filter: 0 nearest, 2 bilinear, 3 bicubic.
        image_mean, image_std (`tuple[float]`, *optional*): Per channel, for values in [0, 1]. Default to ImageNet's for
            3 channels and to 0.5 otherwise.
        num_channels (`int`, *optional*, defaults to 3): Channels of the pixel values; see [`image_to_tensor`]. Follows
            from `image_mean` where that is given.
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

    def __init__(self, **kwargs):
        # Processors of other models, which resize to the size itself and do not tell the channels.
        size, mean = kwargs.get("size"), kwargs.get("image_mean")
        if kwargs.get("crop_size") is None and isinstance(size, int):
            kwargs["crop_size"] = {"height": size, "width": size}
        elif kwargs.get("crop_size") is None and "height" in (size or {}):
            kwargs["crop_size"] = dict(size)
        if "num_channels" not in kwargs and isinstance(mean, list | tuple):
            kwargs["num_channels"] = len(mean)
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        if self.image_mean is None:
            self.image_mean = tuple(IMAGENET_DEFAULT_MEAN) if self.num_channels == 3 else (0.5,) * self.num_channels
        if self.image_std is None:
            self.image_std = tuple(IMAGENET_DEFAULT_STD) if self.num_channels == 3 else (0.5,) * self.num_channels

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
        """Returns the processor for another size, with the channels and statistics of this one.

        Args:
            image_size (`int` or `(height, width)`): Pixels of the crop.
        """
        statistics = {"image_mean": self.image_mean, "image_std": self.image_std}
        return self.for_image_size(image_size, num_channels=self.num_channels, **statistics)

    @property
    def backend(self) -> str:
        return "torch"

    @property
    def crop_height_width(self) -> tuple[int, int]:
        """Pixels of `pixel_values`, (height, width)."""
        return self.crop_size.height, self.crop_size.width

    def _prepare_images_structure(self, images, expected_ndims: int = 3) -> list:
        """Returns a flat list of images; the library's own knows no arrays without channels."""
        images = self.fetch_images(images)
        if isinstance(images, list | tuple):
            return [image for part in images for image in self._prepare_images_structure(part)]
        return list(images) if getattr(images, "ndim", expected_ndims) == 4 else [images]

    def process_image(
        self,
        image: ImageInput,
        num_channels: int,
        do_rescale: bool,
        input_data_format: str | None = None,
        device: "torch.device | None" = None,
        **kwargs,
    ) -> torch.Tensor:
        """Returns one image as `(channels, height, width)`: uint8, or floats in [0, 255] if it is to be rescaled."""
        channels_first = None if input_data_format is None else str(input_data_format).endswith("first")
        image = image_to_tensor(image, num_channels, channels_first).to(device)
        if do_rescale:
            return to_byte_range(image)
        return image if image.dtype == torch.uint8 else image.float()

    def _standardize_kwargs(self, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        for name in ("image_mean", "image_std"):
            value, channels = kwargs.get(name), kwargs.get("num_channels")
            if isinstance(value, tuple) and channels and len(value) not in (1, channels):
                raise ValueError(
                    f"{name} has {len(value)} values for {channels} channels: {value}. Give one for each channel, as "
                    "`run_pretraining.py --compute_statistics` does, or one for all."
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
        **kwargs,
    ) -> BatchFeature:
        crop = (crop_size.height, crop_size.width) if do_center_crop else None
        pixel_values = []
        for image in images:
            if do_resize:
                if resample not in _INTERPOLATION:
                    raise ValueError(f"resample must be 0 (nearest), 2 (bilinear) or 3 (bicubic), got {resample}.")
                image = resize(image, _resized(image.shape[-2:], size, crop), _INTERPOLATION[resample])
                if image.is_floating_point() and do_rescale:
                    image = image.clamp(0, 255)  # bicubic overshoots; uint8 is clamped by itself
            if crop is not None:
                image = _center_crop(image, crop)
            pixel_values.append(
                self.rescale_and_normalize(image, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            )
        if return_tensors is not None and len({image.shape for image in pixel_values}) > 1:
            raise ValueError("Images of different sizes can't be stacked; let do_resize and do_center_crop be True.")
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

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
        given = (do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        do_rescale, rescale_factor, do_normalize, image_mean, image_std = (
            getattr(self, name) if value is None else value for name, value in zip(names, given, strict=True)
        )
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
                `masked` of `MAEForPreTraining.reconstruct`. Of two channels the first is shown, of more than four the
                first three.
        """
        images = pixel_values.detach().float().cpu()
        if self.do_normalize:
            images = images * _per_channel(self.image_std, images) + _per_channel(self.image_mean, images)
        scale = 1 / self.rescale_factor if self.do_rescale else 255
        images = (images * scale).round().clamp(0, 255).byte()
        channels = {1: 1, 2: 1, 3: 3, 4: 4}.get(images.shape[1], 3)
        images = images[:, :channels].permute(0, 2, 3, 1).numpy()
        return [PIL.Image.fromarray(image[..., 0] if channels == 1 else image) for image in images]

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
        if len(target_sizes) != len(logits):
            raise ValueError(f"Got {len(target_sizes)} target_sizes for {len(logits)} images; give one for each.")
        return [
            nn.functional.interpolate(image[None].float(), size=tuple(map(int, size)), mode="bilinear")[0].argmax(dim=0)
            for image, size in zip(logits, target_sizes, strict=True)
        ]


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
