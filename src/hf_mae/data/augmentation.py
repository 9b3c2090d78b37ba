# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Augments images for fine-tuning: classifiers with kornia (`pip install kornia`), which needs no torchvision.

Their settings are those of He et al. 2021, Table 9. The operations are kornia's and differ from those of the official
code (timm): random augmentation draws two distinct operations of a fixed magnitude, where the official one varies it,
and fills with black; erased rectangles are filled with the mean colour and not with noise. What Table 9 states is the
same: number and magnitude of the operations, distributions of mixup and cutmix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..modeling.image_processing_mae import MAEImageProcessor, resize


def _kornia():
    """Imports kornia, which only those need who augment with it."""
    try:
        import kornia.augmentation
        import kornia.augmentation.auto
    except ImportError as error:
        raise ImportError(
            "Random augmentation, erasing, mixup and cutmix need kornia: pip install kornia. Without it set "
            "`rand_augment`, `random_erasing`, `mixup` and `cutmix` to 0."
        ) from error
    return kornia.augmentation


class Compose:
    """Applies several transforms one after the other."""

    def __init__(self, *transforms: Callable):
        """
        Args:
            *transforms (`Callable`): Each takes and returns an image (channels, height, width).
        """
        self.transforms = transforms

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        for transform in self.transforms:
            image = transform(image)
        return image


@dataclass(frozen=True)
class ScaledView:
    """A view of a picture resized by a factor: a part of it where it has become larger, else all of it with a margin.

    Attributes:
        box (`(top, left, height, width)`): What of the picture is shown, in its pixels.
        target (`(height, width)`): Pixels that the box is resized to.
        margin (`(left, right, top, bottom)`): Pixels around it, in the order of [`torch.nn.functional.pad`].
    """

    box: tuple[int, int, int, int]
    target: tuple[int, int]
    margin: tuple[int, int, int, int]

    @classmethod
    def draw(
        cls, picture: Sequence[int], size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
    ) -> "ScaledView":
        """Draws a view: the factor, and the place of the box in the picture or of the picture in the margin.

        Args:
            picture (`(height, width)`): Pixels of the picture.
            size (`(height, width)`): Pixels of the view with its margin. At a factor of 1 it shows the whole picture.
            scale (`(low, high)`): Range of the factor.
            rng (`np.random.Generator`): The source of randomness.
        """
        factor = rng.uniform(*scale)
        height, width = (max(round(side / max(factor, 1)), 1) for side in picture)
        target_height, target_width = (max(round(side * min(factor, 1)), 1) for side in size)
        top, left = int(rng.integers(picture[0] - height + 1)), int(rng.integers(picture[1] - width + 1))
        below, right = size[0] - target_height, size[1] - target_width
        above, before = int(rng.integers(below + 1)), int(rng.integers(right + 1))
        margin = (before, right - before, above, below - above)
        return cls((top, left, height, width), (target_height, target_width), margin)

    def crop(self, pixels: torch.Tensor, mode: str = "bicubic") -> torch.Tensor:
        """Returns the box of a picture (channels, height, width), resized, without the margin."""
        top, left, height, width = self.box
        return resize(pixels[..., top : top + height, left : left + width], self.target, mode)

    def pad(self, cropped: torch.Tensor, value: float = 0) -> torch.Tensor:
        """Returns what [`ScaledView.crop`] has returned, or (height, width) of it, with a margin of one value."""
        return nn.functional.pad(cropped, self.margin, value=value)


class RandomOrientation:
    """Turns a picture to one of the orientations that are equally likely for the data. The randomness is torch's."""

    def __init__(self, horizontal_flip: bool = False, vertical_flip: bool = False, rotate90: bool = False):
        """
        Args:
            horizontal_flip (`bool`, *optional*, defaults to `False`): Mirror half of the pictures left to right.
            vertical_flip (`bool`, *optional*, defaults to `False`): Mirror half of the pictures top to bottom.
            rotate90 (`bool`, *optional*, defaults to `False`): Rotate by 0, 90, 180 or 270 degrees. A picture that is
                not square is rotated by 0 or 180 degrees.
        """
        self.flips = [dim for dim, flip in ((-1, horizontal_flip), (-2, vertical_flip)) if flip]
        self.rotate90 = rotate90

    def draw(self, square: bool) -> tuple[list[int], int]:
        """Returns a random orientation: the dimensions to flip, and then the quarters to rotate counterclockwise.

        Args:
            square (`bool`): Whether the picture is square.
        """
        dims = [dim for dim in self.flips if torch.rand(()) < 0.5]
        quarters = 0
        if self.rotate90:
            quarters = int(torch.randint(4, ())) if square else 2 * int(torch.randint(2, ()))
        return dims, quarters

    def __call__(self, *images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Returns images (..., height, width) turned, all of them alike."""
        dims, quarters = self.draw(images[0].shape[-2] == images[0].shape[-1])
        turned = tuple(image.flip(dims).rot90(quarters, (-2, -1)) for image in images)
        return turned if len(turned) > 1 else turned[0]


class RandomAugmentation:
    """Applies two random operations to a picture: rotation, shear, translation, contrast, colour and others.

    Loader workers do it. Source: Cubuk et al. 2019 (arXiv 1909.13719).
    """

    def __init__(self, num_channels: int = 3, num_operations: int = 2, magnitude: float = 9):
        """
        Args:
            num_channels (`int`, *optional*, defaults to 3): Channels of the pictures; operations on colours need 3.
            num_operations (`int`, *optional*, defaults to 2): Operations on one picture.
            magnitude (`float`, *optional*, defaults to 9): Strength of the operations, in (0, 10). Table 9: RandAug
                (9, 0.5).

        Raises:
            ValueError: If the magnitude is out of range.
            ImportError: If kornia is missing.
        """
        if not 0 < magnitude < 10:
            raise ValueError(f"The magnitude of random augmentation must be in (0, 10), got {magnitude}.")
        auto = _kornia().auto
        policy = auto.rand_augment.rand_augment.default_policy
        policy = [entry for entry in policy if num_channels == 3 or entry[0][0] != "color"]
        self.operations = auto.RandAugment(num_operations, 3 * magnitude, policy)  # kornia's scale ends at 30

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Returns a picture (channels, height, width) augmented; values in [0, 255], type kept.

        The operations (posterize, solarize, brightness, ...) assume values that fill [0, 1]. Deeper data need not: 12
        bits in a file of 16 fill a sixteenth. So a float picture is stretched to its own range and back.
        """
        if image.dtype == torch.uint8:
            return (self.operations(image[None] / 255)[0] * 255).round().clamp(0, 255).to(image.dtype)
        low, high = image.aminmax()
        if low == high:
            return image
        stretched = (image[None] - low) / (high - low)
        return self.operations(stretched)[0].clamp(0, 1) * (high - low) + low


class BatchAugmentation(nn.Module):
    """Normalises a batch on its device, erases rectangles, and mixes pairs of images and of their labels."""

    def __init__(
        self,
        image_processor: MAEImageProcessor,
        num_labels: int,
        erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ):
        """
        Args:
            image_processor ([`MAEImageProcessor`]): Normalises the pixels.
            num_labels (`int`): Number of classes.
            erasing (`float`, *optional*, defaults to 0.0): Share of the images that lose a rectangle (Zhong et al.
                2017, arXiv 1708.04896; 0.25 in the official code).
            mixup (`float`, *optional*, defaults to 0.0): Both parameters of the beta distribution that images are mixed
                by (Zhang et al. 2017, arXiv 1710.09412; 0.8 in Table 9). 0: no mixup.
            cutmix (`float`, *optional*, defaults to 0.0): The same for rectangles of one image pasted into the other
                (Yun et al. 2019, arXiv 1905.04899; 1.0 in Table 9). 0: no cutmix. With both, each batch gets one of
                them.

        Raises:
            ImportError: If something else than 0 is given and kornia is missing.
        """
        super().__init__()
        self.image_processor, self.num_labels, self.mixup = image_processor, num_labels, mixup
        self.erasing = self.mix = self.cutmix = None
        keys = {"data_keys": ["input", "class"]}
        if erasing:
            self.erasing = _kornia().RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), p=erasing)
        if mixup:
            self.mix = _kornia().RandomMixUpV2(**keys)
        if cutmix:
            self.cutmix = _kornia().RandomCutMixV2(beta=cutmix, use_correct_lambda=True, **keys)

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the arguments of the model.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Values in [0, 255].
            labels (`torch.Tensor`): Classes `(batch,)` of an integer type, or floats `(batch, num_labels)`: several
                classes an image, or numbers.

        Returns:
            `pixel_values`, float32, and `labels`: as given or, if images are mixed, floats `(batch, num_labels)` that
            are mixed in the same proportion.
        """
        pixel_values = self.image_processor.rescale_and_normalize(pixel_values)
        if self.erasing is not None:
            pixel_values = self.erasing(pixel_values)
        # Images are mixed with their positions in the batch for labels, which then stand for labels of any kind.
        positions = torch.arange(len(labels), device=pixel_values.device)
        if self.mix is not None and (self.cutmix is None or torch.rand(()) < 0.5):
            pixel_values, pairs, share_of_second = self._mix_up(pixel_values, positions)
        elif self.cutmix is not None:
            pixel_values, pairs, share_of_second = self._cut_and_paste(pixel_values, positions)
        else:
            return {"pixel_values": pixel_values, "labels": labels}
        if not labels.is_floating_point():
            labels = nn.functional.one_hot(labels, self.num_labels).float()
        first, second = (labels[pairs[:, place].long()] for place in (0, 1))
        return {"pixel_values": pixel_values, "labels": torch.lerp(first, second, share_of_second.to(labels.dtype))}

    def _mix_up(self, pixel_values: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns mixed images, positions of both parts (batch, 2), and the share of the second (batch, 1)."""
        parameters = self.mix.forward_parameters(pixel_values.shape)
        # kornia draws shares uniformly.
        shares = torch.distributions.Beta(self.mixup, self.mixup).sample((len(positions),))
        parameters["mixup_lambdas"] = shares.to(parameters["mixup_lambdas"])
        pixel_values, mixed = self.mix(pixel_values, positions, params=parameters)
        return pixel_values, mixed[:, :2], mixed[:, 2:]

    def _cut_and_paste(self, pixel_values: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the same for rectangles of one image in another."""
        # On the device, where the rectangles are drawn; kornia would draw them on the CPU and copy them.
        parameters = self.cutmix.forward_parameters(pixel_values.shape)
        parameters = {name: value.to(pixel_values.device, non_blocking=True) for name, value in parameters.items()}
        pixel_values, (mixed,) = self.cutmix(pixel_values, positions, params=parameters)
        return pixel_values, mixed[:, :2], 1 - mixed[:, 2:]  # here kornia's number is the share that stays


__all__ = ["BatchAugmentation", "Compose", "RandomAugmentation", "RandomOrientation", "ScaledView"]
