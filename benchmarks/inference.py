# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Compares features of whole images with stock ViT and timm of the same weights, and the time of from_pretrained.

    python benchmarks/inference.py --presets tiny base [--compile]

The outputs are compared before anything is timed, and the models take turns round by round. Start-up is the time of a
new process up to the first feature, imports included.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from measuring import in_turns, ratio, report, table
from transformers import ViTModel
from transformers.utils import logging

from hf_mae import MAEConfig, MAEImageProcessor, MAEModel, export_checkpoint

START = {
    "hf_mae": "import hf_mae, torch; model = hf_mae.MAEModel.from_pretrained('ours').eval()",
    "transformers ViT": (
        "import torch; from transformers import ViTModel; "
        "model = ViTModel.from_pretrained('vit', add_pooling_layer=False).eval()"
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny", "small"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--output", type=Path, help="File for the results; .json and .md are written.")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    for preset in args.presets:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(preset, args, device, Path(folder)))
    rows = [
        [result["preset"], batch_size, name, row["images_per_second"], row["ratio_to_stock"]]
        for result in results
        for batch_size, models in result["batches"].items()
        for name, row in models.items()
    ]
    starts = [[result["preset"], *result["start_up"].values()] for result in results]
    tables = [
        table(["preset", "batch", "model", "images/s", "ratio to transformers ViT"], rows),
        table(["preset", *(f"start-up of {name}, s" for name in START)], starts),
        *{f"{peer} is missing: {why}" for result in results for peer, why in result["missing"].items()},
    ]
    report(f"Features, {'compiled' if args.compile else 'eager'}", tables, results, device, args.output)


def features(model, images: torch.Tensor) -> torch.Tensor:
    if type(model).__module__.startswith("timm"):
        return model.forward_features(images)
    return model(images).last_hidden_state


def measure(preset: str, args, device: torch.device, folder: Path) -> dict:
    torch.manual_seed(0)
    ours = MAEModel(MAEConfig.from_preset(preset)).eval()
    ours.save_pretrained(folder / "ours")
    MAEImageProcessor().save_pretrained(folder / "ours")
    models = {"hf_mae": ours}
    export_checkpoint(ours, folder / "vit", "vit")
    models["transformers ViT"] = ViTModel.from_pretrained(folder / "vit", add_pooling_layer=False).eval()
    missing = {}
    try:
        import timm

        export_checkpoint(ours, folder / "timm", "timm")
        models["timm"] = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
    except ImportError as error:
        missing["timm"] = str(error)

    batches = {}
    with torch.inference_mode():
        images = torch.randn(2, 3, 224, 224)
        expected = features(ours, images)
        for model in models.values():
            torch.testing.assert_close(features(model, images), expected, rtol=0, atol=1e-4)
            model.to(device)
        for batch_size in args.batch_sizes:
            images = torch.randn(batch_size, 3, 224, 224, device=device)
            torch.compiler.reset()  # else the second size would be compiled with dynamic shapes
            calls = {
                name: partial(torch.compile(features) if args.compile else features, model, images)
                for name, model in models.items()
            }
            times = in_turns(calls, args.rounds, args.warmup, device)
            batches[batch_size] = {
                name: {
                    "images_per_second": batch_size / statistics.median(values),
                    "ratio_to_stock": ratio(values, times["transformers ViT"]),
                    "seconds": values,
                }
                for name, values in times.items()
            }
    return {
        "preset": preset,
        "missing": missing,
        "batches": batches,
        "start_up": {name: start_up(line, folder) for name, line in START.items()},
    }


def start_up(line: str, folder: Path) -> float:
    """Returns the seconds of a new process, the shortest of three."""
    command = [sys.executable, "-c", f"{line}; model(torch.zeros(1, 3, 224, 224))"]
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return min(taken)


if __name__ == "__main__":
    main()
