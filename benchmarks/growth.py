# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""How speed and memory grow with batch, image size, model size and processes; and on paper, for many GPUs.

    python benchmarks/growth.py --preset tiny --batch_sizes 4 16 64 --image_sizes 224 384 512 768 1024

Each measurement is a process of its own and has its time by the clock on the wall. Several processes have the same
batch each and exchange gradients (DistributedDataParallel); on a CPU each has one thread. What the exchange takes alone
is measured beside, and with it the speed of several processes is predicted.

On paper: `--gpu_rates` are images/s of one GPU (from training_step.py, or an assumption, as the defaults are).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from measuring import peak_memory, report, table
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from hf_mae import MAEConfig, MAEForPreTraining

BYTES_OF_A_GRADIENT = 4  # float32, also under autocast
KILOBYTES_OF_AN_IMAGE = 110  # a JPEG of ImageNet
IMAGES_PER_CORE = 700  # of ImageNet's size, about what a server core decodes and crops; input_path.py measures it
GPUS_OF_A_MACHINE = 8
PAPER_BATCH = 4096  # He et al. 2021, Table 8


def work(rank: int, processes: int, preset: str, batch_size: int, image_size: int, steps: int, port: int, results):
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


def median_seconds(call, steps: int, cuda: bool) -> float:
    taken = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def measure(preset: str, batch_size: int, image_size: int, processes: int, steps: int) -> dict:
    """In a process of its own, so that the memory is that of this one alone."""
    settings = {"preset": preset, "batch_size": batch_size, "image_size": image_size, "processes": processes}
    command = [sys.executable, __file__, "--measure", json.dumps({**settings, "steps": steps})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = "out of memory" if "OutOfMemory" in done.stderr or done.returncode == -9 else done.stderr[-500:]
        return {**settings, "failed": why}
    return {**settings, **json.loads(done.stdout.splitlines()[-1])}


def measure_here(settings: dict):
    context = multiprocessing.get_context("spawn")
    results, processes = context.SimpleQueue(), settings.pop("processes")
    arguments = (processes, *settings.values(), 20000 + os.getpid() % 20000, results)
    multiprocessing.spawn(work, arguments, nprocs=processes)
    print(json.dumps(results.get()))


def step_seconds(compute: float, exchange: float) -> float:
    """Of a step with an exchange of gradients, which hides behind the backward pass, two thirds of the rest."""
    return compute + max(0.0, exchange - compute * 2 / 3)


def on_paper(preset: str, rate: float, gpus: int, effective: int, local: float, between: float) -> dict:
    """A step of many GPUs from the speed of one. A ring sends 2 (n - 1) / n of the gradients."""
    with torch.device("meta"):
        model = MAEForPreTraining(MAEConfig.from_preset(preset))
    gradient = sum(p.numel() for p in model.parameters() if p.requires_grad) * BYTES_OF_A_GRADIENT
    compute = effective / gpus / rate
    sent = 2 * (gpus - 1) / gpus * gradient
    exchange = sent / ((local if gpus <= GPUS_OF_A_MACHINE else between) * 1e9)
    step = step_seconds(compute, exchange)
    return {
        "preset": preset,
        "GPUs": gpus,
        "batch": effective,
        "of a GPU": effective // gpus,
        "compute, ms": compute * 1e3,
        "sent by a GPU, MB": sent / 1e6,
        "exchange, ms": exchange * 1e3,
        "share of linear": compute / step,
        "images/s": effective / step,
        "JPEGs, GB/s": effective / step * KILOBYTES_OF_AN_IMAGE / 1e6,
        "decoding cores of a GPU": effective / step / gpus / IMAGES_PER_CORE,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", help="For batches, image sizes and processes.")
    parser.add_argument("--batch_sizes", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--image_sizes", nargs="*", type=int, default=[224, 384, 512, 768, 1024])
    parser.add_argument("--presets", nargs="*", default=["tiny", "small", "base"])
    parser.add_argument("--batch_size", type=int, default=8, help="For image sizes, model sizes and processes.")
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--gpu_rates", nargs=3, type=float, default=[6200, 3500, 1580], help="base, large, huge.")
    parser.add_argument("--local", type=float, default=300, help="GB/s that a GPU exchanges within a machine of eight.")
    parser.add_argument("--between", type=float, default=40, help="GB/s that a GPU exchanges between machines.")
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
    paper = [
        on_paper(name, rate, gpus, effective, args.local, args.between)
        for name, rate in zip(("base", "large", "huge"), args.gpu_rates, strict=True)
        for gpus, effective in ((8, PAPER_BATCH), (64, PAPER_BATCH), (64, 4 * PAPER_BATCH), (512, 4 * PAPER_BATCH))
    ]
    tables, columns = [], ["preset", "batch_size", "image_size", "processes", "images_per_second", "peak_memory_mb"]
    for what, rows in results.items():
        if not rows:
            continue
        head = [column.replace("_", " ") for column in columns]
        body = [[row.get(column, row.get("failed")) for column in columns] for row in rows]
        if what == "processes":
            head += ["exchange alone, ms", "predicted images/s"]
            for line, row in zip(body, rows, strict=True):
                measured = "failed" not in row and "failed" not in rows[0]
                line += [row.get("exchange_ms"), predicted(row, rows[0]) if measured else None]
        tables += [f"## By {what}", table(head, body)]
    tables += ["## On paper", table(list(paper[0]), [list(row.values()) for row in paper])]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report("Growth", tables, {**results, "on paper": paper}, device, args.output)


def predicted(row: dict, first: dict) -> float:
    """Images/s from those of one process and the time of the exchange alone."""
    compute = first["batch_size"] * first["processes"] / first["images_per_second"]
    return row["processes"] * row["batch_size"] / step_seconds(compute, row["exchange_ms"] / 1e3)


if __name__ == "__main__":
    main()
