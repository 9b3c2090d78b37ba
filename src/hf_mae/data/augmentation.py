# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Augments images for fine-tuning.

The settings for classifiers are those of He et al. 2021, Table 9. Random augmentation and erasing are those of kornia
(`pip install kornia`), which needs no torchvision, and differ from those of the official code (timm): two distinct
operations of a fixed magnitude, where the official one varies it, fill with black; erased rectangles are filled with
the mean colour and not with noise. What Table 9 states is the same: number and magnitude of the operations,
distributions of mixup and cutmix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..modeling.image_processing_mae import MAEImageProcessor, resize


def _kornia():
    """Imports kornia, which only random augmentation and erasing need."""
    try:
        import kornia.augmentation
        import kornia.augmentation.auto
    except ImportError as error:
        raise ImportError(
            "Random augmentation and erasing need kornia: pip install kornia. Without it set `rand_augment` and "
            "`random_erasing` to 0."
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
            ImportError: If images are to lose rectangles and kornia is missing.
        """
        super().__init__()
        self.image_processor, self.num_labels, self.mixup, self.cutmix = image_processor, num_labels, mixup, cutmix
        self.erasing = None
        if erasing:
            self.erasing = _kornia().RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), p=erasing)

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
        if not (self.mixup or self.cutmix):
            return {"pixel_values": pixel_values, "labels": labels}
        # Random numbers are drawn on the CPU, and the device is not waited for.
        pairs = torch.randperm(len(labels)).to(labels.device, non_blocking=True)
        mix = self._mix_up if self.mixup and (not self.cutmix or torch.rand(()) < 0.5) else self._cut_and_paste
        pixel_values, shares = mix(pixel_values, pixel_values[pairs])
        if not labels.is_floating_point():
            labels = nn.functional.one_hot(labels, self.num_labels).float()
        return {"pixel_values": pixel_values, "labels": labels.lerp(labels[pairs], shares[:, None].to(labels.dtype))}

    def _mix_up(self, pixel_values: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns weighted means of images and others, and the shares (batch,) of the others."""
        shares = _draw_shares(self.mixup, len(others)).to(others.device, non_blocking=True)
        return pixel_values.lerp(others, shares[:, None, None, None]), shares

    def _cut_and_paste(self, pixel_values: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns images with a rectangle of the others, which lies within them, and the shares (batch,) of it."""
        sides = _draw_shares(self.cutmix, len(others)).sqrt()
        starts = (1 - sides) * torch.rand(2, len(sides))
        starts_and_ends = torch.stack([starts, starts + sides])[..., None]  # (2, 2, batch, 1): of rows and columns
        starts, ends = starts_and_ends.to(others.device, non_blocking=True)
        inside = []
        for start, end, size in zip(starts, ends, others.shape[-2:], strict=True):
            centres = (torch.arange(size, device=others.device) + 0.5) / size
            inside.append((start <= centres) & (centres < end))
        pasted = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(pasted, others, pixel_values), pasted.float().mean(dim=(1, 2, 3))


def _draw_shares(parameter: float, count: int) -> torch.Tensor:
    """Returns shares (count,) from the beta distribution, both of whose parameters are the one given."""
    return torch.distributions.Beta(parameter, parameter).sample((count,))


__all__ = ["BatchAugmentation", "Compose", "RandomAugmentation", "RandomOrientation", "ScaledView"]
