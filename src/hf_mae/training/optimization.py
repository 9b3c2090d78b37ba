# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Sets up optimization: batch size, learning rates by step and by layer, groups of parameters, optimizers, LARS."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from ..modeling.modeling_mae import MAEAttention, MAELayer, MAEModel
from .muon import Muon


def scaled_learning_rate(base_learning_rate: float, effective_batch_size: int) -> float:
    """Returns the absolute learning rate, `base * batch / 256`.

    Source: He et al. 2021, appendix A.1 (Goyal et al. 2017).

    Args:
        base_learning_rate (`float`): Learning rate per 256 images.
        effective_batch_size (`int`): Images of one optimizer step, over all processes and accumulated batches.
    """
    return base_learning_rate * effective_batch_size / 256


def default_effective_batch_size(num_images: int, largest: int = 4096) -> int:
    """Returns the batch size of the paper, 4096, or a smaller one for few images.

    For few images it is the power of two, at least 32, with which an epoch has 16 steps. It depends only on the number
    of images, so that a run is the same on any number of processes. Source: He et al. 2021, Table 8, for 1.28 million
    images; the rest is ours.

    Args:
        num_images (`int`): Number of images of the source.
        largest (`int`, *optional*, defaults to 4096): The largest one. Linear probing has 16384 (Table 10).
    """
    return min(max(2 ** int(math.log2(max(num_images // 16, 1))), 32), largest)


def learning_rate_at(
    step: int, max_steps: int, warmup_steps: int, learning_rate: float, min_learning_rate: float = 0.0
) -> float:
    """Returns the learning rate of one step: linear from 0 during warm-up, then half a cosine down to the minimum.

    Args:
        step (`int`): Global optimizer step, from 0. The first step of a warm-up has rate 0, as in the official code.
        max_steps (`int`): Steps of the whole run.
        warmup_steps (`int`): Steps of the warm-up, fewer than `max_steps`.
        learning_rate (`float`): Rate at the end of the warm-up.
        min_learning_rate (`float`, *optional*, defaults to 0.0): Rate at the end of the cosine.

    Source: He et al. 2021, Table 8 (cosine decay: Loshchilov & Hutter 2016; warm-up: Goyal et al. 2017).
    """
    if step < warmup_steps:
        return learning_rate * step / warmup_steps
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return min_learning_rate + (learning_rate - min_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Returns groups for an optimizer: all trainable parameters, decayed unless they are one-dimensional.

    Norms and biases are one-dimensional. Class and mask tokens and learned position tables are not; they are decayed,
    as in the official code of MAE and of Pixio (arXiv 2512.15715).

    Args:
        model (`nn.Module`): The model. Parameters that require no gradient, such as fixed positions, are left out.
        weight_decay (`float`): Weight decay of the first group. The paper uses 0.05 (Table 8).
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def muon_parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Returns groups for [`Muon`]: the matrices of blocks, of encoder and decoder, and the others for AdamW.

    Queries, keys and values are three matrices, each by itself, although one product computes them. The first and the
    last layer, the tokens and what is one-dimensional are left to AdamW. Source: Jordan et al. 2024
    (kellerjordan.github.io/posts/muon).

    Args:
        model (`nn.Module`): The model; sharded (FSDP2) before. A matrix is of a block if it is the weight of a linear
            layer in an `MAELayer`. Parameters that require no gradient are left out.
        weight_decay (`float`): Weight decay of all that is not one-dimensional.
    """
    matrices = {}  # how many of them a parameter stacks
    for block in (module for module in model.modules() if isinstance(module, MAELayer)):
        matrices.update((module.weight, 1) for module in block.modules() if isinstance(module, nn.Linear))
        matrices.update((module.qkv.weight, 3) for module in block.modules() if isinstance(module, MAEAttention))
    groups = parameter_groups(model, weight_decay)
    trainable = groups[0]["params"]
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in matrices]
    for count in (1, 3):
        stacks = [parameter for parameter in trainable if matrices.get(parameter) == count]
        groups.insert(0, {"params": stacks, "weight_decay": weight_decay, "matrices": count})
    return groups


def build_optimizer(
    name: str, model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Returns the optimizer of a pre-training run. On every device it leaves out bad steps without waiting for it.

    Args:
        name (`str`): `adamw`, torch's fused one, or `muon`, see [`Muon`].
        model (`nn.Module`): On its device, and sharded (FSDP2) before.
        learning_rate (`float`): Learning rate.
        weight_decay (`float`): Weight decay of all parameters that are not one-dimensional.
        betas (`tuple[float, float]`): Of AdamW, also for what [`Muon`] leaves to it.

    Raises:
        ValueError: If there is no optimizer of this name.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameter_groups(model, weight_decay), learning_rate, betas, fused=True)
    if name == "muon":
        return Muon(muon_parameter_groups(model, weight_decay), learning_rate, betas)
    raise ValueError(f"`optimizer` must be adamw or muon, got {name}.")


def layer_decay_parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict]:
    """Returns groups for fine-tuning, whose learning rate falls by a factor from each block to the one before.

    The final norm and the heads learn at the full rate, the last of L blocks at `layer_decay` times that, and the
    embeddings, before the first block, at `layer_decay ** (L + 1)` times that. One-dimensional
    parameters, the class tokens and the position table are not decayed. Source: He et al. 2021, Table 9 (layer-wise
    decay: Clark et al. 2020, arXiv 2003.10555; Bao et al. 2021); which layer has which rate: the official code.

    Args:
        model (`nn.Module`): Holds one [`MAEModel`], at any depth. All other modules count as heads. Frozen parameters
            are left out.
        learning_rate (`float`): Full rate.
        weight_decay (`float`): Weight decay of the decayed groups. The paper uses 0.05.
        layer_decay (`float`): Factor in (0, 1]; the paper uses 0.75, the official base recipe 0.65.

    Raises:
        ValueError: If there is no encoder, or the factor is out of range.
    """
    encoder = next((module for module in model.modules() if isinstance(module, MAEModel)), None)
    if encoder is None or not 0 < layer_decay <= 1:
        raise ValueError(
            f"`layer_decay` must be in (0, 1], got {layer_decay}, and {type(model).__name__} must hold an MAEModel."
        )
    depths = dict.fromkeys(encoder.embeddings.parameters(), 0)
    for depth, layer in enumerate(encoder.layers, start=1):
        depths.update((parameter, depth) for parameter in layer.parameters())
    no_decay = {encoder.embeddings.cls_token, encoder.embeddings.position_embeddings}
    groups = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            depth = depths.get(parameter, len(encoder.layers) + 1)
            decayed = parameter.ndim > 1 and parameter not in no_decay
            groups.setdefault((depth, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (len(encoder.layers) + 1 - depth),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (depth, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


class LARS(torch.optim.Optimizer):
    """Takes steps of SGD with momentum that are scaled to the norm of each matrix, for very large batches.

    `d = g + weight_decay * w`, `v = momentum * v + trust_coefficient * |w| / |d| * d`, `w = w - lr * v`. Parameters of
    one dimension are neither decayed nor scaled, those of three are stacks of matrices, each with norms and perhaps a
    rate of its own. Source: You et al. 2017 (arXiv 1708.03888), Algorithm 1; used by He et al. 2021, Table 10.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | torch.Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ):
        """
        Args:
            params (`Iterable`): Parameters or groups of them.
            lr (`float` or `torch.Tensor`): Learning rate; of a stack also one for each matrix `(matrices, 1, 1)`.
            momentum (`float`, *optional*, defaults to 0.9): Momentum of the scaled updates.
            weight_decay (`float`, *optional*, defaults to 0.0): Added to the gradients of matrices.
            trust_coefficient (`float`, *optional*, defaults to 0.001): Size of a step relative to the norm of the
                weights, at a learning rate of 1.
        """
        settings = {"momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        super().__init__(params, {"lr": lr, **settings})

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Makes one step. `closure` may compute the loss anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    norms = [torch.linalg.matrix_norm(each, keepdim=True) for each in (parameter, update)]
                    ratio = group["trust_coefficient"] * norms[0] / norms[1]
                    # Zero weights or gradients have no direction to scale.
                    update = update * torch.where(ratio.isfinite() & (ratio > 0), ratio, torch.ones_like(ratio))
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                parameter.sub_(buffer * group["lr"])
        return loss


__all__ = [
    "LARS",
    "build_optimizer",
    "default_effective_batch_size",
    "layer_decay_parameter_groups",
    "learning_rate_at",
    "muon_parameter_groups",
    "parameter_groups",
    "scaled_learning_rate",
]
