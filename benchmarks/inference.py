# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Features of whole images, beside stock ViT and timm with the same weights; and the time from_pretrained takes.

    python benchmarks/inference.py --presets tiny base [--compile]

The outputs are compared before anything is timed; the models take turns round by round. Start-up is the time of a new
process from its first line to the first feature, imports included.
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
import transformers
from measuring import machine, save, seconds
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
    parser.add_argument("--output", type=Path, help="JSON file for the results.")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    for preset in args.presets:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(preset, args, device, Path(folder)))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(f"{machine(device)}; {versions}; compiled: {args.compile}")
    print("| preset | batch | " + " | ".join(f"{n}, images/s" for n in results[0]["models"]) + " | ratio to stock |")
    print("|---" * (3 + len(results[0]["models"])) + "|")
    for result in results:
        for batch_size, row in result["batches"].items():
            speeds = " | ".join(f"{speed:,.1f}" for speed in row["images_per_second"].values())
            print(f"| {result['preset']} | {batch_size} | {speeds} | {row['ratio_to_stock']:.2f} |")
        started = ", ".join(f"{n} {seconds:.2f} s" for n, seconds in result["start_up"].items())
        print(f"start-up of {result['preset']}: {started}")
        for peer, why in result["missing"].items():
            print(f"{peer} is missing: {why}")
    content = {"machine": machine(device), "versions": versions, "compiled": args.compile, "results": results}
    save(args.output, content)


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

    def features(model, images):
        if type(model).__module__.startswith("timm"):
            return model.forward_features(images)
        return model(images).last_hidden_state

    batches = {}
    with torch.inference_mode():
        images = torch.randn(2, 3, 224, 224)
        expected = features(ours, images)
        for model in models.values():
            torch.testing.assert_close(features(model, images), expected, rtol=0, atol=1e-4)
        for batch_size in args.batch_sizes:
            images = torch.randn(batch_size, 3, 224, 224, device=device)
            calls = {name: torch.compile(features) if args.compile else features for name in models}
            times = {name: [] for name in models}
            for number in range(args.warmup + args.rounds):
                for name, model in models.items():
                    model.to(device)
                    taken = seconds(partial(calls[name], model, images), device)
                    if number >= args.warmup:
                        times[name].append(taken)
            stock = times["transformers ViT"]
            batches[batch_size] = {
                "images_per_second": {name: batch_size / statistics.median(values) for name, values in times.items()},
                "ratio_to_stock": statistics.median(b / a for a, b in zip(times["hf_mae"], stock, strict=True)),
                "seconds": times,
            }
    return {
        "preset": preset,
        "models": list(models),
        "missing": missing,
        "batches": batches,
        "start_up": {name: start_up(line, folder) for name, line in START.items()},
    }


def start_up(line: str, folder: Path) -> float:
    """Seconds of a new process, the least of three."""
    command = [sys.executable, "-c", f"{line}; model(torch.zeros(1, 3, 224, 224))"]
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return min(taken)


if __name__ == "__main__":
    main()
