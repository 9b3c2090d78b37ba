# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Profiles a training step by part of the model and by operation, and compares it with a lower bound.

    python benchmarks/modules.py --preset base --batch_size 8
    python benchmarks/modules.py --preset large --batch_size 512 --dtype bfloat16

Backward time counts for the part whose forward operation it belongs to. The floor of a part is the time that its matrix
products would take at the rate of one large product, measured in the same run. Parts without products have none.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from measuring import matmul_rate, report, table
from peers import ours
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode
from training_step import Step, inputs, make_model

from hf_mae import MAEForPreTraining

REST, OPTIMIZER = "mask, positions, residual sums, target, loss", "AdamW"
# Kinds of operations by words in their names; the first that fits counts.
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "linear", "gemm", "cutlass", "nvjet"),
    "attention": ("attention", "softmax", "flash", "fmha"),
    "norms and GELU": ("layer_norm", "gelu"),
    "AdamW": ("adam",),
}


def parts_of(model: MAEForPreTraining) -> dict[str, str]:
    """Returns the part of the step for each module's name."""
    parts = {"mae.embeddings": "patch embedding", "decoder.embed": "decoder embedding", "decoder.head": "head"}
    for name, _ in model.named_modules():
        side = "encoder" if name.startswith("mae.") else "decoder"
        if name.endswith(".attention"):
            parts[name] = f"{side} attention"
        elif name.endswith(".mlp"):
            parts[name] = f"{side} MLPs"
        elif "layernorm" in name:
            parts[name] = f"{side} norms"
    return parts


def operations_by_part(model: MAEForPreTraining, parts: dict[str, str], images, noise) -> Counter:
    """Counts operations of one image by part, forward and backward, with unfused attention.

    Only the forward pass is run. Each product needs two of its size backward, except the patch embedding, whose input
    needs no gradient.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images[:1], noise=noise[:1])
    counts = Counter()
    for name, by_operation in counter.get_flop_counts().items():
        part = parts.get(name.removeprefix("MAEForPreTraining."))
        if part:
            counts[part] += (2 if part == "patch embedding" else 3) * sum(by_operation.values())
    return counts


def mark_parts(model: MAEForPreTraining, parts: dict[str, str]):
    """Makes the forward of each named module appear in profiles as its part."""
    ranges = {}
    for name, part in parts.items():
        module = model.get_submodule(name)

        def start(module, _, part=part):
            ranges[module] = record_function(f"part: {part}")
            ranges[module].__enter__()

        module.register_forward_pre_hook(start)
        module.register_forward_hook(lambda module, *_: ranges.pop(module).__exit__(None, None, None))


def time_by_part(events, device: torch.device, steps: int) -> tuple[Counter, Counter, float]:
    """Returns milliseconds of a step: forward by part, backward by part, and the total."""
    total = "device_time_total" if device.type == "cuda" else "cpu_time_total"
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"

    def part_of(event) -> str:
        while event is not None:
            if event.name.startswith("part: "):
                return event.name.removeprefix("part: ")
            if "AdamW" in event.name:
                return OPTIMIZER
            event = event.cpu_parent
        return REST

    events = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    nodes = {}  # the part of each sequence number, which a forward operation shares with its backward one
    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.sequence_nr >= 0 and not in_backward(event):
            nodes[event.sequence_nr] = part_of(event)
    forward, backward, whole = Counter(), Counter(), 0.0
    for event in events:
        whole += getattr(event, own)
        if event.name.startswith("autograd::engine::evaluate_function"):
            backward[nodes.get(event.sequence_nr, REST)] += getattr(event, total) / steps / 1e3
        elif not in_backward(event):
            forward[part_of(event)] += getattr(event, own) / steps / 1e3
    return forward, backward, whole / steps / 1e3


def in_backward(event) -> bool:
    while event is not None:
        if event.name.startswith("autograd::engine::evaluate_function"):
            return True
        event = event.cpu_parent
    return False


def time_by_operation(averages, device: torch.device, steps: int) -> Counter:
    """Returns milliseconds of a step by kind of operation."""
    kinds = Counter()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    for event in averages:
        is_kernel = event.device_type != torch.autograd.DeviceType.CPU  # counted in the operation that started it
        if is_kernel or event.key.startswith("part: "):
            continue
        kind = next((k for k, words in KINDS.items() if any(word in event.key.lower() for word in words)), "the rest")
        kinds[kind] += getattr(event, own) / steps / 1e3
    return kinds


def rows_by_part(
    forward: Counter, backward: Counter, whole: float, counts: Counter, batch_size: int, rate: float
) -> dict[str, dict[str, float]]:
    """Returns the columns of the table for each part, the slowest part first.

    Args:
        forward, backward (`Counter`): Milliseconds of a step by part.
        whole (`float`): Milliseconds of a step.
        counts (`Counter`): Operations of one image by part, forward and backward.
        batch_size (`int`): Images of a step.
        rate (`float`): Operations per second of a large matrix product.
    """
    rows = {}
    for part in sorted(set(forward) | set(backward), key=lambda p: -forward[p] - backward[p]):
        taken, floor = forward[part] + backward[part], counts[part] * batch_size / rate * 1e3
        rows[part] = {
            "forward_ms": forward[part],
            "backward_ms": backward[part],
            "share": taken / whole,
            "gflop_per_image": counts[part] / 1e9,
            "floor_ms": floor,
            "share_of_matmul_rate": floor / taken,
        }
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, help="File for the results; .json and .md are written.")
    args = parser.parse_args()
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, args.dtype)
    model = make_model(args.preset).to(device)
    images, noise = inputs(model.config, args.batch_size, device)
    parts = parts_of(model)
    counts = operations_by_part(model, parts, images, noise)
    step = Step(ours(model), dtype, device, None)
    for _ in range(2):
        step(images, noise)
    mark_parts(model, parts)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")) as profiler:
        for _ in range(args.steps):
            step(images, noise)

    forward, backward, whole = time_by_part(profiler.events(), device, args.steps)
    kinds = time_by_operation(profiler.key_averages(), device, args.steps)
    rate = matmul_rate(dtype, device)
    rows = rows_by_part(forward, backward, whole, counts, args.batch_size, rate)
    floor = sum(row["floor_ms"] for row in rows.values())
    head = ["part", *(column.replace("_", " ") for column in next(iter(rows.values())))]
    body = [[part, *row.values()] for part, row in rows.items()]
    total = [sum(forward.values()), sum(backward.values()), 1.0, sum(counts.values()) / 1e9, floor, floor / whole]
    body.append(["all", *total])
    tables = [
        f"Matrix product {rate / 1e9:,.0f} GFLOP/s; a step takes {whole:,.0f} ms, of which {floor:,.0f} are the floor.",
        table(head, body),
        table(["operation", "ms", "share"], [[k, v, v / sum(kinds.values())] for k, v in kinds.most_common()]),
    ]
    results = {"matmul_gflops": rate / 1e9, "step_ms": whole, "floor_ms": floor, "parts": rows, "operations_ms": kinds}
    title = f"Where the time goes: {args.preset}, batch {args.batch_size}, {args.dtype}, eager"
    report(title, tables, results, device, args.output)


if __name__ == "__main__":
    main()
