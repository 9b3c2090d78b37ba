# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Joins the processes of a run, lets one decide for all, shards a model over them (FSDP2) and gathers it again."""

import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..data.sampling import default_num_workers, usable_cpus
from ..modeling.modeling_mae import MAEForPreTraining, MAELayer
from .step_guard import STOP_SIGNALS

Result = TypeVar("Result")
_PATIENCE = 30.0  # seconds until a process that waits for the others says so
_LONGEST_WAIT = timedelta(minutes=30)  # the main process may be busy: listing a million files, hashing a checkpoint
# What errors about the variables of a launcher say, whatever their type.
_OF_A_LAUNCHER = ("MASTER_ADDR", "rendezvous", "invalid literal for int", "port must have value")
# What Accelerate's launcher can be asked for, by the variable that it sets, and no command works with.
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}
# What it can be asked for with FSDP and `shard_model` does not do.
_UNUSED_WITH_FSDP = {
    "FSDP_OFFLOAD_PARAMS": "weights stay on the GPU; `gradient_checkpointing` saves memory",
    "FSDP_ACTIVATION_CHECKPOINTING": "set `gradient_checkpointing` instead",
    "ACCELERATE_DYNAMO_BACKEND": "set `torch_compile` instead",
}
_joined = 0  # how often this process has looked for others

# ----------------------------------------------------------------------------------------------------------------------
# Start


def uses_cpu() -> bool:
    """Returns whether a run is on the CPU by the environment, or because a launcher started it where there is no GPU.

    Without a GPU Accelerate joins launched processes only if it has been asked for the CPU. Else each would take itself
    for the whole run, and all would write into the same folder.
    """
    has_gpu = torch.accelerator.is_available() and not torch.backends.mps.is_available()  # of which a Mac has one
    return parse_flag_from_env("ACCELERATE_USE_CPU") or ("LOCAL_RANK" in os.environ and not has_gpu)


def join_processes() -> PartialState:
    """Starts the communication of the processes that a launcher has started, if one has."""
    with joining_processes():
        return PartialState(cpu=uses_cpu(), timeout=_LONGEST_WAIT)


@contextmanager
def joining_processes() -> Iterator[None]:
    """Says what a process waits for that does not find the others, lets signals end it, and what to do about errors.

    torch waits for half an hour without a word, and in it no handler of a signal is called.

    Raises:
        ValueError: If the processes do not meet, or if their launcher was asked for an engine that is not supported.
    """
    for variable, engine in _ENGINES.items():
        if parse_flag_from_env(variable):
            raise ValueError(
                f"{engine} is not supported, and {variable} asks for it. `accelerate launch` sets that if its "
                "configuration says so: take one of examples/accelerate, with DDP (MULTI_GPU) or FSDP2 (FSDP)."
            )
    way_out = (
        "A launcher such as torchrun sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. If none started "
        "this process, they are left over from another run: unset them."
    )
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    text = f"Waiting for the other processes of {os.environ.get('WORLD_SIZE')}, which meet at {place}. {way_out}"
    reminder = threading.Timer(_PATIENCE, lambda: print(text, file=sys.stderr, flush=True))
    reminder.daemon = True
    reminder.start()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in set(STOP_SIGNALS) if in_main_thread}
    try:
        _join_again()
        yield
    except (ValueError, dist.DistError) as error:
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in _OF_A_LAUNCHER):
            raise  # of other settings
        raise ValueError(f"The processes of this run could not meet: {str(error).rstrip('.')}. {way_out}") from error
    finally:
        reminder.cancel()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _join_again():
    """Joins the processes of a second run in the same Python processes, under torchrun.

    Its store outlives the first run, and the addresses that the processes had then are still in it: a process that is
    faster than the others would take those for the new ones.
    """
    global _joined
    _joined += 1
    if _joined == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    port, rank, count = (int(os.environ[name]) for name in ("MASTER_PORT", "RANK", "WORLD_SIZE"))
    store = dist.PrefixStore(
        f"hf_mae-{_joined}", dist.TCPStore(os.environ["MASTER_ADDR"], port, count, timeout=_LONGEST_WAIT)
    )
    dist.init_process_group(store=store, rank=rank, world_size=count, timeout=_LONGEST_WAIT)


# ----------------------------------------------------------------------------------------------------------------------
# Sharded models


def shard_model(model: MAEForPreTraining) -> MAEForPreTraining:
    """Shards weights, gradients and optimizer state over all processes (FSDP2), in place.

    Must be called before the optimizer is made. The units are the blocks, the encoder, which the evaluation calls
    alone, and the decoder. Accelerate does not do it, since it would shard the patch embedding a second time (1.15).

    Weights are gathered in float32, and autocast casts them, as it does under DDP: with weights gathered in bfloat16
    the sums that pass from block to block would be bfloat16, too, and twice as far from the exact ones.

    Args:
        model ([`MAEForPreTraining`]): On its device.

    Raises:
        ValueError: If the launcher was asked for something that is not done here.
    """
    for variable, way_out in _UNUSED_WITH_FSDP.items():
        if os.environ.get(variable, "no").lower() not in ("no", "false"):
            raise ValueError(f"The launcher sets {variable} to {os.environ[variable]}, which has no effect: {way_out}.")
    # Of every forward pass. It is about changing an output in place, which nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    layers = [module for module in model.modules() if isinstance(module, MAELayer)]
    for unit in (*layers, model.mae, model.decoder, model):
        fully_shard(unit, mesh=mesh)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Returns whether parameters of a model are sharded by FSDP2."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gather_model(model: MAEForPreTraining) -> MAEForPreTraining | None:
    """Returns the model itself, or, if it is sharded, a full copy on the CPU of the main process and `None` elsewhere.

    If the model is sharded, every process must call this.
    """
    if not is_sharded(model):
        return model
    is_main, weights = dist.get_rank() == 0, {}
    for name, tensor in model.state_dict().items():  # one by one, since all of them may not fit on a device
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_main:
            weights[name] = tensor.cpu()
    if not is_main:
        return None
    with torch.device("meta"):
        gathered = _unsharded_class(model)(model.config)
    gathered.load_state_dict(weights, assign=True)
    return gathered.train(model.training)


def _unsharded_class(model: nn.Module) -> type[MAEForPreTraining]:
    """Returns the class of a model before `fully_shard`, which replaced it by a subclass."""
    classes = type(model).__mro__
    return next(each for each in classes if issubclass(each, nn.Module) and not issubclass(each, FSDPModule))


def place_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Returns a tensor on the device of a parameter, and sharded like it unless the tensor is a single number."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and tensor.ndim > 0:
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor


# ----------------------------------------------------------------------------------------------------------------------
# Decisions


def call_in_main_process(function: Callable[[], Result]) -> Result:
    """Calls a function in the main process only. Every process gets its result, or raises its error.

    Args:
        function (`Callable`): Takes nothing. Its result must be picklable. Of its errors `OSError` and `ValueError`
            reach the other processes.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return function()
    outcome: list = [None, None]  # result and error
    if dist.get_rank() == 0:
        try:
            outcome[0] = function()
        except (OSError, ValueError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def call_in_all_processes(function: Callable[[], Result]) -> Result:
    """Calls a function in every process. Where it fails in one, all raise an error, and none waits for the others.

    Args:
        function (`Callable`): Takes nothing, and does not exchange anything with other processes. `OSError` and
            `ValueError` are its errors that reach the other processes.
    """
    result, error = None, None
    try:
        result = function()
    except (OSError, ValueError) as raised:
        error = raised
    errors = gather_from_processes(None if error is None else str(error))
    if error is not None:
        raise error
    for number, message in enumerate(errors):
        if message is not None:
            raise ValueError(f"Process {number} has ended: {message}")
    return result


def check_agreement(facts: dict):
    """Refuses a run whose processes have different images or settings. Every process must call this.

    Args:
        facts (`dict`): What defines the run, by name.

    Raises:
        ValueError: If a process has other facts than the first one.
    """
    (first, its_machine), *others = gather_from_processes((facts, platform.node()))
    for number, (theirs, machine) in enumerate(others, start=1):
        names = [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
        lines = [f"{name}: {first.get(name)} and {theirs.get(name)}" for name in names]
        if lines:
            where = f"Process 0 (on {its_machine}) and process {number} (on {machine})"
            raise ValueError(
                "\n  ".join([f"{where} of this run differ in", *lines]) + "\nAll need the same images under the same "
                "names and the same settings. Look for a disk that is not mounted, or a copy that is not complete."
            )


def gather_from_processes(value: Result) -> list[Result]:
    """Returns what every process passed, in the order of the processes. Every process must call this.

    Args:
        value: Anything that can be pickled.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def local_num_workers() -> int:
    """Returns the default number of loader workers of this process, see [`default_num_workers`].

    Every process must call this.
    """
    machine = platform.node()
    everywhere = gather_from_processes((machine, usable_cpus()))
    return default_num_workers([cpus for where, cpus in everywhere if where == machine])


def chosen_precision(device: torch.device, known: Collection[str]) -> str:
    """Returns the precision of a run whose settings leave it open: the launcher's, else bf16 where a GPU has it.

    A launcher also says "no" if nobody has asked it for a precision, so that decides nothing.

    Args:
        device (`torch.device`): The device that the model is on.
        known (`Collection[str]`): What the run can have.

    Raises:
        ValueError: If the launcher asks for another one.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in known:
        raise ValueError(
            f"The launcher asks for mixed_precision {asked!r} (ACCELERATE_MIXED_PRECISION), and this run can have "
            f"{' or '.join(map(repr, known))}. Ask for one of these, or set `bf16`."
        )
    return asked if asked != "no" else "bf16" if has_bf16(device) else "no"


def has_bf16(device: torch.device) -> bool:
    """Returns whether a device computes in bfloat16 and is a GPU: on CPUs it is seldom faster.

    Args:
        device (`torch.device`): The device that the model is on. Only this one is asked.
    """
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


__all__ = [
    "call_in_all_processes",
    "call_in_main_process",
    "check_agreement",
    "chosen_precision",
    "gather_from_processes",
    "gather_model",
    "has_bf16",
    "is_sharded",
    "join_processes",
    "joining_processes",
    "local_num_workers",
    "place_like",
    "shard_model",
    "uses_cpu",
]
