# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Measures whether predicting fewer patches, or cutting several crops of a decoded image, pays off at equal time.

    python benchmarks/equal_time.py --data path/to/cifar10

With `prediction_ratio` below 1 or `views_per_image` above 1 a step is cheaper but teaches less. First the settings take
timed steps in turns, reading included. Then each setting is trained twice: for as many steps as the default, and for as
many as fit into the time of the default. Loss over all hidden patches and k-NN accuracy are those of held-out images.
"""

import argparse
import statistics
from pathlib import Path

import torch
from loss_curves import Batches, optimizer_of, small_config, train_step
from measuring import in_turns, report, table
from peers import ours
from transformers.utils import logging

from hf_mae import MAEForPreTraining
from hf_mae.data.sources import open_images
from hf_mae.evaluation.monitoring import Evaluation


class Training:
    """Trains a model. Each call takes one step."""

    def __init__(self, data: str | None, batch_size: int, max_steps: int, seed: int, ratio: float, views: int):
        torch.manual_seed(seed)
        self.peer = ours(MAEForPreTraining(small_config()).train(), ratio)
        self.optimizer = optimizer_of(self.peer.model)
        self.batches = Batches(open_images(data), self.peer.model.config, batch_size, views, seed)
        self.step, self.max_steps = 0, max_steps

    def __call__(self):
        train_step(self.peer, self.optimizer, self.batches(self.step), self.step, self.max_steps)
        self.step += 1

    def result(self, evaluation: Evaluation) -> dict[str, float]:
        for _ in range(self.max_steps - self.step):
            self()
        return evaluation(self.peer.model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="Folder, .tar or .parquet file, Hub name, of images of 32 pixels.")
    parser.add_argument("--steps", type=int, default=1000, help="Steps of the default setting.")
    parser.add_argument("--timed_steps", type=int, default=100, help="Steps by which the time of a step is measured.")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--prediction_ratios", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--views_per_image", nargs="*", type=int, default=[2, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument(
        "--eval_images", type=int, default=25000, help="Maximum size of the k-NN bank. A fifth of it is evaluated."
    )
    parser.add_argument("--output", type=Path, help="File for the results; .json and .md are written.")
    args = parser.parse_args()
    logging.set_verbosity_error()
    device = torch.device("cpu")
    default = (1.0, 1)
    settings = [default, *((ratio, 1) for ratio in args.prediction_ratios), *((1.0, v) for v in args.views_per_image)]

    timed = {setting: Training(args.data, args.batch_size, 10**6, 0, *setting) for setting in settings}
    times = in_turns(timed, args.timed_steps, warmup=3, device=device)
    # Sums, not medians: now and then a step reads a row group of images for many steps to come.
    costs = {setting: sum(taken) / sum(times[default]) for setting, taken in times.items()}

    train_images, test_images = (open_images(args.data, split) for split in ("train", "test"))
    processor = timed[default].batches.processor
    evaluation = Evaluation(train_images, test_images, processor, args.eval_images, batch_size=256)
    rows, runs = [], []
    for setting in settings:
        for equal in ("steps", "time") if setting != default else ("steps",):
            steps = args.steps if equal == "steps" else round(args.steps / costs[setting])
            trainings = [Training(args.data, args.batch_size, steps, seed, *setting) for seed in args.seeds]
            results = [training.result(evaluation) for training in trainings]
            loss, accuracy = (statistics.mean(r[key] for r in results) for key in ("eval_loss", "knn_accuracy"))
            runs.append({"setting": setting, "cost": costs[setting], "steps": steps, "seeds": results})
            rows.append([*setting, costs[setting], steps, loss, f"{100 * accuracy:.1f}"])
            print(rows[-1], results, flush=True)
    head = ["prediction ratio", "views", "time of a step", "steps", "held-out loss", "k-NN accuracy, %"]
    seeds = f"Means over {len(args.seeds)} seeds; the time of a step, reading included, is relative to the default."
    report("Equal steps, equal time", [table(head, rows), seeds], runs, device, args.output)


if __name__ == "__main__":
    main()
