# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Augmentation for fine-tuning, by kornia (`pip install kornia`), which needs no torchvision.

Settings are those of He et al. 2021, Table 9. Operations are kornia's, not those of the official code (timm): random
augmentation draws two distinct ones of a fixed magnitude, where the official varies it, and fills with black; erased
rectangles are filled with the mean colour, not with noise. What Table 9 gives is kept: number and magnitude of the
operations, distributions of mixup and cutmix.
"""

import torch
from torch import nn

try:
    from kornia.augmentation import RandomCutMixV2, RandomErasing, RandomMixUpV2
    from kornia.augmentation.auto import RandAugment
    from kornia.augmentation.auto.rand_augment.rand_augment import default_policy
except ImportError as error:
    raise ImportError("Augmentation needs kornia: pip install kornia") from error


class RandomAugmentation:
    """Two random operations on a picture: rotation, shear, translation, contrast, colour, ... For the loader's workers.

    Source: Cubuk et al. 2019 (arXiv 1909.13719).
    """

    def __init__(self, num_channels: int = 3, num_operations: int = 2, magnitude: float = 9):
        """
        Args:
            num_channels (`int`, *optional*, defaults to 3): Of the pictures; operations on colours need 3.
            num_operations (`int`, *optional*, defaults to 2): Operations on one picture.
            magnitude (`float`, *optional*, defaults to 9): Of the operations, in (0, 10). Table 9: RandAug (9, 0.5).
        """
        if not 0 < magnitude < 10:
            raise ValueError(f"The magnitude of random augmentation must be in (0, 10), got {magnitude}.")
        policy = [entry for entry in default_policy if num_channels == 3 or entry[0][0] != "color"]
        self.operations = RandAugment(num_operations, 3 * magnitude, policy)  # kornia's scale ends at 30

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Returns a picture (channels, height, width) augmented; values in [0, 255], type kept."""
        augmented = self.operations(image[None] / 255)[0] * 255
        return augmented.round().clamp(0, 255).to(image.dtype) if image.dtype == torch.uint8 else augmented


class BatchAugmentation(nn.Module):
    """Normalises a batch on its device, erases rectangles, and mixes pairs of images and of their labels."""

    def __init__(self, image_processor, num_labels: int, erasing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0):
        """
        Args:
            image_processor ([`MAEImageProcessor`]): What normalises the pixels.
            num_labels (`int`): Classes.
            erasing (`float`, *optional*, defaults to 0.0): Share of the images that lose a rectangle (Zhong et al.
                2017, arXiv 1708.04896; 0.25 in the official code).
            mixup (`float`, *optional*, defaults to 0.0): Both parameters of the beta distribution that images are mixed
                by (Zhang et al. 2017, arXiv 1710.09412; 0.8 in Table 9). 0: no mixup.
            cutmix (`float`, *optional*, defaults to 0.0): The same for rectangles of one pasted into the other (Yun et
                al. 2019, arXiv 1905.04899; 1.0 in Table 9). 0: no cutmix. With both, each batch gets one of them.
        """
        super().__init__()
        self.image_processor, self.num_labels = image_processor, num_labels
        self.erasing = RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), p=erasing)
        keys = {"data_keys": ["input", "class"]}
        self.mixup, self.mix = mixup, RandomMixUpV2(**keys)
        self.cutmix = RandomCutMixV2(beta=cutmix, use_correct_lambda=True, **keys) if cutmix else None

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the arguments of the model.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Values in [0, 255].
            labels (`torch.LongTensor` of shape `(batch,)`): Classes.

        Returns:
            `pixel_values`, float32, and `labels`: as given or, if mixed, probabilities `(batch, num_labels)`.
        """
        pixel_values = self.erasing(self.image_processor.rescale_and_normalize(pixel_values))
        if self.mixup and (self.cutmix is None or torch.rand(()) < 0.5):
            parameters = self.mix.forward_parameters(pixel_values.shape)
            # kornia draws them evenly.
            shares = torch.distributions.Beta(self.mixup, self.mixup).sample((len(labels),))
            parameters["mixup_lambdas"] = shares.to(parameters["mixup_lambdas"])
            pixel_values, mixed = self.mix(pixel_values, labels, params=parameters)
            share_of_second = mixed[:, 2:]
        elif self.cutmix is not None:
            # On the device, where the rectangles are drawn; kornia would draw them on the CPU and copy.
            parameters = self.cutmix.forward_parameters(pixel_values.shape)
            parameters = {name: value.to(pixel_values.device) for name, value in parameters.items()}
            pixel_values, (mixed,) = self.cutmix(pixel_values, labels, params=parameters)
            share_of_second = 1 - mixed[:, 2:]  # here kornia's number is the share that stays
        else:
            return {"pixel_values": pixel_values, "labels": labels}
        first, second = (nn.functional.one_hot(mixed[:, place].long(), self.num_labels).float() for place in (0, 1))
        return {"pixel_values": pixel_values, "labels": torch.lerp(first, second, share_of_second.float())}


__all__ = ["BatchAugmentation", "RandomAugmentation"]
