# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Draws the plots of the pages from the records: `python experiments/plots.py`, with matplotlib (`pip install .[dev]`).

The file of a plot holds a digest of the figures that it shows, so that a test can find out whether it is stale.
"""

import hashlib
import io
import json
import statistics
from collections.abc import Callable

import PIL.Image
import PIL.PngImagePlugin
from report import ABLATIONS, DOCS, RESULTS, ablation


def ablation_figures() -> dict[str, dict]:
    """Returns the linear probes of each ablation, ours and the paper's, in points above the default, and the noise.

    The noise is the standard deviation over the seeds of the default.
    """
    default = [100 * value for value in ablation("default")["linear_accuracy"]]
    figures = {"noise": statistics.stdev(default)}
    for which, runs in ABLATIONS.items():
        paper_default = runs["default"][2]
        figures[which] = {
            label: {
                "ours": 100 * statistics.mean(ablation(name)["linear_accuracy"]) - statistics.mean(default),
                "paper": linear and linear - paper_default,
            }
            for name, (label, _, linear) in runs.items()
        }
    return figures


def draw_ablations(figures: dict, pyplot):
    figure, axes = pyplot.subplots(2, 4, figsize=(14, 6.5), layout="constrained")
    noise = figures["noise"]
    for axis, which in zip(axes.flat, ABLATIONS, strict=False):
        rows = figures[which]
        for place, row in enumerate(rows.values()):
            axis.bar(place - 0.2, row["ours"], 0.4, color="tab:blue", yerr=noise, label="ours" if place == 0 else None)
            if row["paper"] is not None:
                axis.bar(place + 0.2, row["paper"], 0.4, color="lightgray", label="the paper" if place == 0 else None)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(which)
        axis.set_xticks(range(len(rows)), [label.replace(", ", ",\n") for label in rows], fontsize=8)
    axes.flat[0].set_ylabel("linear probe, points above the default")
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[1].get_legend_handles_labels(), loc="center", fontsize=12)
    return figure


def loss_figures() -> dict[str, list[float]]:
    """Returns the losses of the training that all implementations took, by step."""
    return json.loads((RESULTS / "cpu_loss_curves.json").read_text())["results"]["losses"]


def draw_losses(figures: dict, pyplot):
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(9, 6), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    ours = figures["hf_mae"]
    for width, (name, losses) in zip((7, 5, 4, 2.5, 1), reversed(figures.items()), strict=True):
        above.plot(range(1, len(losses) + 1), losses, linewidth=width, label=name)
        if name != "hf_mae":
            below.plot(range(1, len(losses) + 1), [a / b - 1 for a, b in zip(losses, ours, strict=True)], linewidth=1)
    above.set_ylabel("loss")
    above.legend()
    below.set_ylabel("difference to ours, relative")
    below.set_xlabel("step")
    return figure


PLOTS: dict[str, tuple[Callable, Callable]] = {
    "ablations.png": (ablation_figures, draw_ablations),
    "loss_curves.png": (loss_figures, draw_losses),
}


def digest(figures: dict) -> str:
    return hashlib.sha256(json.dumps(figures).encode()).hexdigest()


def main():
    from matplotlib import pyplot  # imported here, since the tests check digests without matplotlib

    for name, (make, draw) in PLOTS.items():
        figures = make()
        figure = draw(figures, pyplot)
        drawn, texts = io.BytesIO(), PIL.PngImagePlugin.PngInfo()
        figure.savefig(drawn, dpi=70)
        texts.add_text("figures", digest(figures))
        # 64 colours make the file a third of the size.
        PIL.Image.open(drawn).convert("RGB").quantize(64).save(DOCS / name, pnginfo=texts, optimize=True)
        pyplot.close(figure)


if __name__ == "__main__":
    main()
