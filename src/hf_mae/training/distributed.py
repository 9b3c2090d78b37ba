# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Shards a model over processes (FSDP2) and gathers it again."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..modeling.modeling_mae import MAEForPreTraining, MAELayer


def shard_model(model: MAEForPreTraining, bf16: bool = False) -> MAEForPreTraining:
    """Shards weights, and with them gradients and the optimizer's state, over all processes (FSDP2), in place.

    To be called before the optimizer is made. Units are the blocks, the encoder, which the evaluation calls by itself,
    and the decoder. Not left to Accelerate, which would shard the patch embedding a second time (1.15).

    Args:
        model ([`MAEForPreTraining`]): On its device.
        bf16 (`bool`, *optional*, defaults to `False`): Gather weights in bfloat16, for a forward under autocast. Images
            and loss stay float32, and gradients are added up in it.
    """
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    dtype = torch.bfloat16 if bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    blocks = [module for module in model.modules() if isinstance(module, MAELayer)]
    for part in (*blocks, model.mae, model.decoder, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    return model


def gather_model(model: MAEForPreTraining) -> MAEForPreTraining | None:
    """Returns the model itself, or, if it is sharded, a whole copy on the CPU of the main process and `None` elsewhere.

    Of a sharded model it must be called by every process.
    """
    if not _is_sharded(model):
        return model
    is_main, weights = dist.get_rank() == 0, {}
    for name, tensor in model.state_dict().items():  # one by one: the whole need not fit on a device
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_main:
            weights[name] = tensor.cpu()
    if not is_main:
        return None
    with torch.device("meta"):
        whole = MAEForPreTraining(model.config)
    whole.load_state_dict(weights, assign=True)
    return whole.train(model.training)


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _place_like(tensor: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """On the device of a parameter, and sharded as it is unless the tensor is a mere number."""
    tensor = tensor.to(example.device)
    if isinstance(example, DTensor) and tensor.ndim > 0:
        return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)
    return tensor


def has_bf16() -> bool:
    """Whether there is a GPU that computes in bfloat16, and does not only emulate it."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


__all__ = ["has_bf16", "shard_model", "gather_model"]
