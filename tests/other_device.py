# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""A device that is not the CPU, for machines that have none: its tensors say `elsewhere:0`, and the CPU computes them.

As on a GPU, an operation on tensors of both devices raises, and whatever needs a value on the host has to wait for the
device. Such waits are counted. This is torch's PrivateUse1 device with a backend in Python. Registering it changes the
default device of the process for good, so that tests use it in a process of their own: see test_devices.py.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = torch.device("cpu")  # until it is registered
waits = Counter()  # operations that waited for the device, by name

# These take CPU tensors together with those of a GPU: copies, and the indices of these, which are copied to the device.
_COPIES = {"aten::copy_", "aten::_to_copy"}
_INDEX = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _OtherTensor(torch.Tensor):
    """Holds a CPU tensor and says that it is on the other device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "_OtherTensor":
        options = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), **options, layout=held.layout, device=DEVICE)

    def __init__(self, held: torch.Tensor):
        self.held = held

    def tolist(self) -> list:
        waits["tolist"] += 1
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the operations, too, that have no tensor of the other device yet: those that make one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


def _is_elsewhere(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _compute(func, args: tuple, kwargs: dict):
    """Computes an operation on the CPU. The result is on the device that the operation would have put it on."""
    values, structure = tree_flatten((args, kwargs))
    others = [value for value in values if isinstance(value, _OtherTensor)]
    device = kwargs.get("device")
    if not others and not _is_elsewhere(device):
        return func(*args, **kwargs)
    name = func._schema.name
    if name == "aten::_fused_sdp_choice":
        return 0  # attention written out: no fused kernel is registered for this device
    if others:
        _check_devices(func, args, kwargs)
        to_host = name == "aten::_to_copy" and device is not None and not _is_elsewhere(device)
        is_indexed_from_host = name in _INDEX and any(_is_on_cpu(index) for index in args[1])
        if to_host or is_indexed_from_host or torch.Tag.data_dependent_output in func.tags:
            waits[name] += 1
    elif name == "aten::_to_copy" and not kwargs.get("non_blocking"):
        waits["copy to the device"] += 1
    wrappers = {id(other.held): other for other in others}
    held = [value.held if isinstance(value, _OtherTensor) else value for value in values]
    args, kwargs = tree_unflatten(held, structure)
    goes_elsewhere = bool(others) if device is None else _is_elsewhere(device)
    if device is not None:
        kwargs["device"] = torch.device("cpu")

    def wrap(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in wrappers:  # computed in place
            return wrappers[id(tensor)]
        return _OtherTensor(tensor) if goes_elsewhere else tensor

    return tree_map_only(torch.Tensor, wrap, func(*args, **kwargs))


def _is_on_cpu(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, _OtherTensor)


def _check_devices(func, args: tuple, kwargs: dict):
    """Raises if an operation gets tensors of both devices.

    As on a GPU, single numbers on the CPU are taken, but not in lists, and nothing of a GPU is written to them.
    """
    name = func._schema.name
    if name in _COPIES:
        return
    written = args[0] if func._schema.is_mutable else None
    for value in (*args, *kwargs.values()):
        in_list = isinstance(value, (list, tuple)) and name not in _INDEX
        for each in value if in_list else [value]:
            if _is_on_cpu(each) and (each.dim() > 0 or in_list or each is written):
                raise RuntimeError(f"{func}: tensors of two devices, one of shape {tuple(each.shape)} on the CPU")


def register():
    """Adds the device to this process, for good, and makes it Accelerate's choice."""
    global DEVICE
    _setup_privateuseone_for_python_backend("elsewhere", backend_module=_Backend())
    DEVICE = torch.device("elsewhere", 0)
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(DEVICE)


@contextmanager
def in_use() -> Iterator[torch.device]:
    """Makes the device work within a `with` statement; `waits` starts empty."""
    torch.__future__.set_swap_module_params_on_conversion(True)  # `.to` keeps the parameters that an optimizer has
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes the tensor on the CPU and copies it
    waits.clear()
    try:
        with _Mode():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_swap_module_params_on_conversion(False)
