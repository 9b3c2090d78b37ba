# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Compares what a training step of recipes costs, so that runs of equal time can be planned.

    python benchmarks/recipe_speed.py ablations/default ablations/cells_2 ablations/decoder_depth_8
    python benchmarks/recipe_speed.py cifar10_small cifar10_small:optimizer=muon cifar10_small:prediction_ratio=0.5

After a colon stand settings, or fields of the configuration, that differ. The models of the recipes take steps
(forward, backward, the recipe's optimizer) on random images, in turns, each with the batch of its recipe. Loading
images is not part of it. On a CPU the CPU time of the process counts.
"""

import argparse
import math
import statistics
from pathlib import Path

import torch
import yaml
from measuring import in_turns, ratio, report, table

from hf_mae.pretraining.initial_model import build_model
from hf_mae.pretraining.settings import PretrainingSettings
from hf_mae.training.arguments import load_recipe, names_of
from hf_mae.training.optimization import build_optimizer


def settings_of(name: str) -> PretrainingSettings:
    recipe, _, changes = name.partition(":")
    settings = load_recipe(recipe, PretrainingSettings)
    for change in filter(None, changes.split(",")):
        field, _, value = change.partition("=")
        if field in names_of(PretrainingSettings):
            settings[field] = yaml.safe_load(value)
        else:
            settings["config_overrides"] = f"{settings['config_overrides']},{change}"
    return PretrainingSettings(**settings)


class Step:
    """One training step of a recipe."""

    def __init__(self, name: str, device: torch.device):
        settings = settings_of(name)
        torch.manual_seed(0)
        model, image_processor = build_model(settings)
        self.model, (height, width) = model.train().to(device), image_processor.crop_height_width
        betas = (settings.adam_beta1, settings.adam_beta2)
        self.optimizer = build_optimizer(settings.optimizer or "adamw", self.model, 1e-4, settings.weight_decay, betas)
        config, self.batch_size = self.model.config, settings.per_device_train_batch_size or 64
        self.images = torch.randn(self.batch_size, config.num_channels, height, width, device=device)
        self.noise = torch.rand(self.batch_size, math.prod(config.grid_size), device=device)

    def __call__(self):
        self.model(pixel_values=self.images, noise=self.noise).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="Names or paths; the first is what the others are compared with.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--output", type=Path, help="File for the results; .json and .md are written.")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = {name: Step(name, device) for name in args.recipes}
    times = in_turns(steps, args.rounds, args.warmup, device)
    per_image = {name: [value / steps[name].batch_size for value in values] for name, values in times.items()}
    results = {
        name: {
            "images_per_second": 1 / statistics.median(values),
            "speed to the first": ratio(values, per_image[args.recipes[0]]),
            "batch_size": steps[name].batch_size,
            "seconds": times[name],
        }
        for name, values in per_image.items()
    }
    rows = [
        [name, row["batch_size"], row["images_per_second"], row["speed to the first"]] for name, row in results.items()
    ]
    head = ["recipe", "batch", "images/s", f"speed, {args.recipes[0]} is 1"]
    report("Training steps of recipes", [table(head, rows)], results, device, args.output)


if __name__ == "__main__":
    main()
