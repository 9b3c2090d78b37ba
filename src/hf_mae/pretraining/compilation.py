# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Decides whether the model of a run is compiled, and how: with CUDA graphs where the host would limit the speed."""

import os
import shutil
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from ..modeling.configuration_mae import MAEConfig
from ..training.arguments import check_compile_mode, parse_duration
from ..training.step_guard import RunStopped
from .settings import PretrainingSettings
from .speed import flops_per_sample

# Seconds, and steps of at least 45 ms each, which is what a host takes to order one of `tiny` that is not compiled.
# Compiling takes about a minute; then a step is 1.2 to 3.3 times as fast on an H200 (docs/performance.md).
_WORTH_COMPILING, _STEPS_WORTH_COMPILING = 600, 10_000
# Floating-point operations of a step. On an H200 the host takes 30 ms to order a compiled step of 12 blocks and 4 of
# the decoder; the GPU takes 10 ms for one of 1e12 and 44 ms for one of 3e12 (docs/performance.md).
_LIMITED_BY_HOST = 2e12


def compiling_pays(device: torch.device, time_budget: float | str | None, max_steps: int) -> bool:
    """Returns whether a model should be compiled if that is left open, see `_WORTH_COMPILING`.

    Args:
        device (`torch.device`): The device that the model is on. Only GPUs gain by it.
        time_budget (`float` or `str`, *optional*): Time of the run.
        max_steps (`int`): Steps of the run. They count if there is no time budget.
    """
    if time_budget is not None:
        is_long = parse_duration(time_budget) >= _WORTH_COMPILING
    else:
        is_long = max_steps >= _STEPS_WORTH_COMPILING
    return device.type == "cuda" and is_long and _can_compile(device)


def _can_compile(device: torch.device) -> bool:
    """Returns whether Triton is there, and what it needs: a GPU that it knows, a C compiler and Python's headers."""
    compilers = filter(None, (os.environ.get("CC"), "gcc", "clang"))
    headers = Path(sysconfig.get_path("include"), "Python.h")  # not there where Debian's python3-dev is missing
    is_there = find_spec("triton") is not None and any(map(shutil.which, compilers)) and headers.exists()
    return is_there and torch.cuda.get_device_capability(device) >= (7, 0)


def choose_compile_mode(
    settings: PretrainingSettings,
    device: torch.device,
    config: MAEConfig,
    batch_size: int,
    accumulation: int,
    max_steps: int,
    *,
    num_processes: int,
    is_sharded: bool,
) -> str | None:
    """Returns the mode of `torch.compile` for the steps of a run, `None` if they are not compiled.

    The mode reduce-overhead records the operations of a step as CUDA graphs and replays them, so that the host orders
    them all at once. It is chosen where the host would take longer than the GPU, see `_LIMITED_BY_HOST`, and where the
    gradients are right, see [`~hf_mae.training.arguments.check_compile_mode`].

    Args:
        settings ([`PretrainingSettings`]): The settings.
        device (`torch.device`): The device that the model is on.
        config ([`MAEConfig`]): The model.
        batch_size (`int`): Images of a forward pass.
        accumulation (`int`): Forward passes of a step.
        max_steps (`int`): Steps of the run.
        num_processes (`int`): Number of processes.
        is_sharded (`bool`): Whether each process holds a part of the model. Such runs are compiled, and those of
            several processes use graphs, only if they are told to: neither was tried on GPUs.

    Raises:
        ValueError: If the given mode uses CUDA graphs and a step has several forward passes.
    """
    compiled = settings.torch_compile
    if compiled is None:
        compiled = not is_sharded and compiling_pays(device, settings.time_budget, max_steps)
    if not compiled:
        return None
    if settings.torch_compile_mode is not None:
        way_out = f"a smaller `effective_batch_size`: a process takes at most {batch_size} images at once"
        check_compile_mode(settings.torch_compile_mode, accumulation, way_out)
        return settings.torch_compile_mode
    is_plain = num_processes == accumulation == 1 and not is_sharded and not settings.gradient_checkpointing
    is_small = batch_size * flops_per_sample(config) < _LIMITED_BY_HOST
    return "reduce-overhead" if device.type == "cuda" and is_plain and is_small else "default"


def compile_model(model: nn.Module, mode: str, is_chosen: bool, say: Callable[[str], None]):
    """Compiles a model in place. If that fails, which its first call shows, and nobody has asked for it, the model goes
    on without; else the call raises [`~hf_mae.training.step_guard.RunStopped`].

    Args:
        model (`nn.Module`): The model.
        mode (`str`): Of `torch.compile`.
        is_chosen (`bool`): Whether compiling was chosen, and not asked for. Then `say` gets the reason of a failure.
        say (`Callable[[str], None]`): Takes a message.
    """
    model.compile(mode=mode)
    compiled = model._compiled_call_impl

    def call(*args, **kwargs):
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as error:
            reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0].removesuffix(".")
            if not is_chosen:
                way_out = "Set `torch_compile` to false."
                raise RunStopped(f"The model can't be compiled here: {reason}. {way_out}") from error
            say(f"The model can't be compiled here, and is trained without that: {reason}.")
            model._compiled_call_impl = None
            return model(*args, **kwargs)

    model._compiled_call_impl = call


__all__ = ["choose_compile_mode", "compile_model", "compiling_pays"]
