# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The batch, the learning rate as a function of the step, and which parameters are decayed."""

import math

from torch import nn


def scaled_learning_rate(base_learning_rate: float, effective_batch_size: int) -> float:
    """Returns the absolute rate: `base * batch / 256`. Source: He et al. 2021, appendix A.1 (Goyal et al. 2017).

    Args:
        base_learning_rate (`float`): Rate per 256 images.
        effective_batch_size (`int`): Images of one optimizer step, over all processes and accumulated batches.
    """
    return base_learning_rate * effective_batch_size / 256


def default_effective_batch_size(num_images: int) -> int:
    """Returns the paper's 4096, or less for few images: the power of two, at least 32, that makes 16 steps an epoch.

    Source: He et al. 2021, Table 8, for 1.28 million images; the rest is ours. It depends on the images alone, so that
    a run is the same on any number of processes.

    Args:
        num_images (`int`): Images of the source.
    """
    return min(max(2 ** int(math.log2(max(num_images // 16, 1))), 32), 4096)


def learning_rate_at(
    step: int, max_steps: int, warmup_steps: int, learning_rate: float, min_learning_rate: float = 0.0
) -> float:
    """Returns the rate of one step: linear from 0 during warm-up, then half a cosine down to the minimum.

    Args:
        step (`int`): Global optimizer step, from 0. The first step of a warm-up has rate 0, as in the official code.
        max_steps (`int`): Steps of the whole run.
        warmup_steps (`int`): Steps of the warm-up, fewer than `max_steps`.
        learning_rate (`float`): Rate at the end of the warm-up.
        min_learning_rate (`float`, *optional*, defaults to 0.0): Rate that the cosine ends at.

    Source: He et al. 2021, Table 8 (cosine decay: Loshchilov & Hutter 2016; warm-up: Goyal et al. 2017).
    """
    if step < warmup_steps:
        return learning_rate * step / warmup_steps
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return min_learning_rate + (learning_rate - min_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Returns groups for an optimizer: all trainable parameters, decayed unless they are one-dimensional.

    Norms and biases are one-dimensional; class and mask tokens are not and are decayed, as in the official code.

    Args:
        model (`nn.Module`): Its parameters that require no gradient, such as position tables, are left out.
        weight_decay (`float`): For the decayed group. The paper uses 0.05 (Table 8).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


__all__ = ["default_effective_batch_size", "learning_rate_at", "parameter_groups", "scaled_learning_rate"]
