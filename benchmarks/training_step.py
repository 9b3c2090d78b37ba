# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Compares a training step (forward, backward, AdamW) with the peers: images/s, memory, operations, matmul rate.

    python benchmarks/training_step.py --presets tiny small base --batch_size 8
    python benchmarks/training_step.py --presets base --batch_size 1024 --dtype bfloat16 --compile
    python benchmarks/training_step.py --official path/to/facebookresearch/mae

All have the same weights, images and masks, and their losses are compared before anything is timed. They take turns
round by round (A B C A B C); the first rounds are warm-up, and recompiling after them is an error. On a CPU the CPU
time of the process counts, which is less disturbed by other processes; on a GPU the time between synchronisations.
AdamW is fused for those whose authors train with it (ours, transformers), else torch's default.
"""

import argparse
import copy
import statistics
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from measuring import in_turns, matmul_rate, peak_memory, ratio, report, table
from peers import all_peers, ours
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

from hf_mae import MAEConfig, MAEForPreTraining

PARTIAL = "hf_mae, prediction_ratio 0.25"


class Step:
    """One training step of a peer."""

    def __init__(self, peer, dtype: torch.dtype, device: torch.device, compile_mode: str | None):
        self.model = peer.model.train().to(device)
        self.loss = torch.compile(peer.loss, mode=compile_mode) if compile_mode else peer.loss
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        fused = {"fused": True} if peer.fused_adamw else {}
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, **fused)
        self.autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()

    def __call__(self, images: torch.Tensor, noise: torch.Tensor):
        with self.autocast:
            loss = self.loss(self.model, images, noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def operations(peer, images: torch.Tensor, noise: torch.Tensor) -> float:
    """Counts operations of one image, forward and backward, with torch's counter and unfused attention."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        peer.loss(peer.model.train(), images, noise).backward()
    peer.model.zero_grad()
    return counter.get_total_flops() / len(images)


def inputs(config: MAEConfig, batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, columns = config.grid_size
    images = torch.randn(batch_size, 3, config.image_size, config.image_size, generator=generator)
    return images.to(device), torch.rand(batch_size, rows * columns, generator=generator).to(device)


def make_model(preset: str) -> MAEForPreTraining:
    torch.manual_seed(0)
    return MAEForPreTraining(MAEConfig.from_preset(preset, norm_pix_loss=True))


def measure(preset: str, args, device: torch.device, dtype: torch.dtype) -> dict:
    model = make_model(preset)
    peers, missing = all_peers(copy.deepcopy(model), args.official, args.peers)
    images, noise = inputs(model.config, args.batch_size, device)
    with torch.no_grad():  # there is no dropout
        losses = {name: peer.loss(peer.model.to(device).train(), images, noise).item() for name, peer in peers.items()}
    first = losses["hf_mae"]
    if worst := {name: loss for name, loss in losses.items() if abs(loss - first) > 1e-3 * abs(first)}:
        raise SystemExit(f"Not the same work: losses {worst} against {first}.")
    if args.peers is None or PARTIAL in args.peers:
        peers[PARTIAL] = ours(copy.deepcopy(model).to(device), 0.25)
    counted = {name: operations(peer, images[:1], noise[:1]) for name, peer in peers.items()}
    steps = {name: Step(peer, dtype, device, args.compile) for name, peer in peers.items()}
    calls = {name: partial(step, images, noise) for name, step in steps.items()}
    in_turns(calls, args.warmup, 0, device)
    with torch.compiler.set_stance("fail_on_recompile") if args.compile else nullcontext():
        times = in_turns(calls, args.rounds, 0, device)
    rate = matmul_rate(dtype, device)
    for models in (steps, calls, peers):  # the processes that measure memory need it
        models.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    base = next((name for name in ("official code", "timm-block reference") if name in times), "hf_mae")
    rows = {}
    for name, values in times.items():
        median = statistics.median(values)
        rows[name] = {
            "images_per_second": args.batch_size / median,
            f"ratio to {base}": ratio(values, times[base]),
            "gflop_per_image": counted[name] / 1e9,
            "share_of_matmul_rate": counted[name] * args.batch_size / median / rate,
            "peak_memory_mb": memory(name, args, preset) / 1e6 if args.memory else None,
            "seconds": values,
        }
    return {"preset": preset, "matmul_gflops": rate / 1e9, "losses": losses, "missing": missing, "rows": rows}


def memory(name: str, args, preset: str) -> float:
    """Returns the peak memory of a step in bytes, measured in a new process."""
    command = [sys.executable, __file__, "--presets", preset, "--batch_size", str(args.batch_size), "--memory_of", name]
    command += ["--official", args.official] if args.official else []
    command += ["--compile", args.compile] if args.compile else []
    done = subprocess.run([*command, "--dtype", args.dtype], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def memory_of(name: str, preset: str, args, device: torch.device, dtype: torch.dtype):
    model = make_model(preset)
    peers, _ = all_peers(model, args.official, [name])
    peer = ours(model, 0.25) if name == PARTIAL else peers.pop(name)
    peers.clear()
    images, noise = inputs(model.config, args.batch_size, device)
    # The weights exist already, so this counts activations, gradients and the optimizer's state.
    print(peak_memory(partial(Step(peer, dtype, device, args.compile), images, noise), device))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small"])
    parser.add_argument("--peers", nargs="+", help="Only these, next to hf_mae, if memory is short.")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=("default", "reduce-overhead", "max-autotune"),
        help="Compile all peers, in this mode of torch.compile.",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--official", help="Checkout of facebookresearch/mae.")
    parser.add_argument("--memory", action="store_true", help="Measure the peak memory, too, each in a new process.")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="File for the results; .json and .md are written.")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, args.dtype)
    if args.memory_of:
        memory_of(args.memory_of, args.presets[0], args, device, dtype)
        return
    results = [measure(preset, args, device, dtype) for preset in args.presets]
    tables = []
    for result in results:
        tables.append(f"## {result['preset']}: matrix product {result['matmul_gflops']:,.0f} GFLOP/s")
        columns = [name for name, value in result["rows"]["hf_mae"].items() if name != "seconds" and value is not None]
        head = ["", *(column.replace("_", " ") for column in columns)]
        tables.append(table(head, [[peer, *(row[c] for c in columns)] for peer, row in result["rows"].items()]))
        tables.extend(f"{peer} is missing: {why}" for peer, why in result["missing"].items())
    how = f"compiled ({args.compile})" if args.compile else "eager"
    report(f"Training step, batch {args.batch_size}, {args.dtype}, {how}", tables, results, device, args.output)


if __name__ == "__main__":
    main()
