# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What the benchmarks share: the clock, the name of the machine, the file of results."""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of a call: on a GPU between synchronisations; on a CPU of its own time, which other processes disturb less."""
    if device.type != "cuda":
        started = time.process_time()
        call()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    return f"{platform.machine()}, {os.cpu_count()} cores, {name}"


def save(path: Path | None, content: dict):
    """Writes results as JSON, if a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
