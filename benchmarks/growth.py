# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Measures how speed and memory grow with batch, image size, model size and number of processes.

    python benchmarks/growth.py --preset tiny --batch_sizes 4 16 64 --image_sizes 224 384 512 768 1024

Each measurement runs in a process of its own and is timed by wall clock. With several processes each has the same batch
size, they exchange gradients (DistributedDataParallel), and on a CPU each has one thread. The exchange is also timed
alone; from it and the speed of one process the speed of several is predicted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from measuring import peak_memory, report, table
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from hf_mae import MAEConfig, MAEForPreTraining

COLUMNS = ["preset", "batch_size", "image_size", "processes", "images_per_second", "peak_memory_mb"]


def work(rank: int, processes: int, preset: str, batch_size: int, image_size: int, steps: int, port: int, results):
    """Trains in one of the processes. Rank 0 puts speed, peak memory and the time of the exchange into `results`."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    model = MAEForPreTraining(MAEConfig.from_preset(preset, image_size=image_size)).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    exchange = 0.0
    if processes > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("nccl" if cuda else "gloo", address, rank=rank, world_size=processes)
        gradients = torch.zeros(sum(parameter.numel() for parameter in trained), device=device)
        exchange = median_seconds(partial(dist.all_reduce, gradients), steps, cuda)
        del gradients
        model = DistributedDataParallel(model, device_ids=[rank] if cuda else None)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = model(images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    memory = peak_memory(step, device)
    taken = median_seconds(step, steps, cuda)
    if rank == 0:
        rate = processes * batch_size / taken
        results.put({"images_per_second": rate, "peak_memory_mb": memory / 1e6, "exchange_ms": exchange * 1e3})
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def median_seconds(call: Callable[[], object], steps: int, cuda: bool) -> float:
    """Returns the median wall-clock time of a call, not counting the first one."""
    taken = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def measure(preset: str, batch_size: int, image_size: int, processes: int, steps: int) -> dict:
    """Measures in a new process, so that the peak memory is that of this measurement alone."""
    settings = {"preset": preset, "batch_size": batch_size, "image_size": image_size, "processes": processes}
    command = [sys.executable, __file__, "--measure", json.dumps({**settings, "steps": steps})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = "out of memory" if "OutOfMemory" in done.stderr or done.returncode == -9 else done.stderr[-500:]
        return {**settings, "failed": why}
    return {**settings, **json.loads(done.stdout.splitlines()[-1])}


def measure_here(settings: dict):
    """Measures in this process and those that it starts, and prints the result as JSON."""
    context = multiprocessing.get_context("spawn")
    results, processes = context.SimpleQueue(), settings.pop("processes")
    arguments = (processes, *settings.values(), 20000 + os.getpid() % 20000, results)
    multiprocessing.spawn(work, arguments, nprocs=processes)
    print(json.dumps(results.get()))


def predict_speed(row: dict, single: dict) -> float:
    """Predicts images/s of several processes from the speed of one and the time of the exchange alone.

    The exchange of gradients overlaps with the backward pass, which is two thirds of a step.
    """
    compute = single["batch_size"] / single["images_per_second"]
    step = compute + max(0.0, row["exchange_ms"] / 1e3 - compute * 2 / 3)
    return row["processes"] * row["batch_size"] / step


def growth_table(what: str, rows: list[dict]) -> str:
    head = [column.replace("_", " ") for column in COLUMNS]
    body = [[row.get(column, row.get("failed")) for column in COLUMNS] for row in rows]
    if what == "processes":
        head += ["exchange alone, ms", "predicted images/s"]
        for cells, row in zip(body, rows, strict=True):
            measured = "failed" not in row and "failed" not in rows[0]
            cells += [row.get("exchange_ms"), predict_speed(row, rows[0]) if measured else None]
    return table(head, body)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", help="For batches, image sizes and processes.")
    parser.add_argument("--batch_sizes", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--image_sizes", nargs="*", type=int, default=[224, 384, 512, 768, 1024])
    parser.add_argument("--presets", nargs="*", default=["tiny", "small", "base"])
    parser.add_argument("--batch_size", type=int, default=8, help="For image sizes, model sizes and processes.")
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2], help="1 first: the others are compared.")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="File for the results; .json and .md are written.")
    args = parser.parse_args()
    if args.measure:
        measure_here(args.measure)
        return
    preset, size, steps = args.preset, args.batch_size, args.steps
    results = {
        "batch": [measure(preset, batch, 224, 1, steps) for batch in args.batch_sizes],
        "image size": [measure(preset, size, pixels, 1, steps) for pixels in args.image_sizes],
        "model": [measure(name, size, 224, 1, steps) for name in args.presets],
        "processes": [measure(preset, size, 224, processes, steps) for processes in args.processes],
    }
    tables = [f"## By {what}\n\n{growth_table(what, rows)}" for what, rows in results.items() if rows]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report("Growth", tables, results, device, args.output)


if __name__ == "__main__":
    main()
