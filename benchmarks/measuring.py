# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Gives the benchmarks a clock, the name of the machine, tables and files of results."""

import ctypes
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import psutil
import torch

from hf_mae.training.run_record import run_record


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Returns the time of a call: on a GPU between synchronisations; on a CPU its CPU time, less disturbed by load."""
    if device.type != "cuda":
        started = time.process_time()
        call()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(
    calls: dict[str, Callable[[], object]], rounds: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Returns the seconds of each call in each round, in the order A B C A B C, without the warm-up rounds."""
    times = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            taken = seconds(call, device)
            if number >= warmup:
                times[name].append(taken)
    return times


def ratio(times: list[float], base: list[float]) -> float:
    """Returns how many times faster than the base: the median of ratios by round, as the machine's speed changes."""
    return statistics.median(b / a for a, b in zip(times, base, strict=True))


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Returns operations/s of a large matrix product, the best of twenty; on a CPU per second of CPU time."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best = min(seconds(partial(torch.matmul, a, b), device) for _ in range(20))
    return 2 * size**3 / best


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Returns the peak memory of two calls in bytes; on a CPU without what the process had before.

    A CPU's peak is that of the whole process so far: measure in a new process.
    """
    if device.type != "cuda" and sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # else memory freed by building the model would be reused and not counted
    before = psutil.Process().memory_info().rss
    for _ in range(2):
        call()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss: a new process inherits it from its parent.
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) - before


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpus = Path("/proc/cpuinfo")
        model = re.search(r"model name\s*: (.+)", cpus.read_text()) if cpus.exists() else None
        name = f"{model[1] if model else platform.machine()}, {torch.get_num_threads()} thread(s)"
    return f"{name}, {os.cpu_count()} cores"


def table(head: list[str], rows: list[list]) -> str:
    """Returns a Markdown table; numbers to three digits."""

    def text(cell) -> str:
        if not isinstance(cell, float):
            return "" if cell is None else str(cell)
        return f"{cell:,.0f}" if cell >= 1000 else f"{cell:.3g}"

    lines = [head, ["---"] * len(head), *([text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(title: str, tables: list[str], results: object, device: torch.device, path: Path | None):
    """Prints tables with machine and versions, and writes them and the results to `path`, as `.md` and `.json`."""
    record = run_record({})
    versions = {**record["versions"], "numpy": np.__version__, "PIL": PIL.__version__}
    head = f"{machine(device)}; " + ", ".join(f"{name} {version}" for name, version in versions.items())
    text = "\n\n".join([f"# {title}", head, *tables]) + "\n"
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(Path(word).name for word in sys.argv)  # no folders of this machine
        content = {
            "machine": machine(device),
            "versions": versions,
            "command": command,
            "commit": record["commit"],
            "results": results,
        }
        path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        path.with_suffix(".md").write_text(text)
