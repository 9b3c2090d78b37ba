# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Keeps what tells of runs, and fills the tables of the pages from it, so that no figure can be stale.

    python records/report.py collect runs/cifar10     # copies the record of each run to records/cifar10/
    python records/report.py                          # fills the tables, draws the plots
    python records/report.py check                    # says which pages are stale

A record is the `run.json` of a run (recipe, command, commit, machine, versions, seed, results) and, of pre-training,
its `metrics.jsonl`, its curve and, of the longest, its pictures. Weights are not kept.
"""

import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

RECORDS = Path(__file__).parent
RESULTS = RECORDS.parent / "benchmarks" / "results"
PAGES = [RECORDS.parent / "docs" / name for name in ("classification.md", "performance.md")]
BENCHMARKS = ("cpu_modules_base", "cpu_input_path", "cpu_inference", "cpu_growth")
KEPT = ("run.json", "metrics.jsonl", "loss.png", "recipe.yaml")
LONGEST = ("pretrained",)  # keep their pictures, too

# Of ViT-L on ImageNet, 800 epochs: fine-tuning, linear probing. He et al. 2021, Table 1; mask ratios: Fig. 5.
PAPER = {
    "default": (84.9, 73.5),
    "decoder_depth_1": (84.8, 65.5),
    "decoder_depth_4": (84.9, 71.9),
    "mask_tokens_in_encoder": (84.2, 59.6),
    "normalised_target": (85.4, 73.9),
    "no_augmentation": (84.0, 65.7),
    "color_jitter": (84.3, 71.9),
    "block_50": (83.9, 72.3),
    "block_75": (82.8, 63.9),
    "grid_75": (84.0, 66.0),
}
# Table: runs in order, with a name for each.
ABLATIONS = {
    "mask_ratio": {"mask_25": "25 %", "mask_50": "50 %", "default": "75 %", "mask_90": "90 %"},
    "decoder_depth": {"decoder_depth_1": "1 block", "default": "2 blocks", "decoder_depth_4": "4 blocks"},
    "decoder_width": {"decoder_width_32": "32", "default": "64", "decoder_width_128": "128"},
    "mask_tokens": {"default": "in the decoder only", "mask_tokens_in_encoder": "in the encoder, too"},
    "target": {"default": "pixels", "normalised_target": "pixels, normalised by patch"},
    "augmentation": {"no_augmentation": "none", "default": "crop, flip", "color_jitter": "crop, flip, colours"},
    "sampling": {
        "default": "random, 75 %",
        "block_50": "block, 50 %",
        "block_75": "block, 75 %",
        "grid_75": "grid, 75 %",
    },
}


def read(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def collect(runs: Path):
    """Copies the records of a folder of runs, those of probes from the folders in them."""
    for found in sorted(runs.rglob("run.json")):
        run = found.parent
        if any(part.startswith("checkpoint-") for part in run.parts):
            continue
        target = RECORDS / runs.name / run.relative_to(runs)
        target.mkdir(parents=True, exist_ok=True)
        for name in (*KEPT, "reconstructions.png") if run.name in LONGEST else KEPT:
            if (run / name).exists():
                shutil.copyfile(run / name, target / name)
        record = (target / "run.json").read_text()
        (target / "run.json").write_text(re.sub(r"(?<![\w.:])/(?:[\w.-]+/)+", "", record))  # no folders of the machine
        print(target.relative_to(RECORDS.parent))


def mean_and_deviation(values: list[float]) -> str:
    """In percent; the deviation of one run over its seeds."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def finetuning_table(folder: str) -> str:
    """Accuracy by labels, pre-trained and from scratch, over the seeds that were run."""
    found = {}
    for run in sorted((RECORDS / folder).glob("*-*-seed*")):
        start, labels, _ = run.name.split("-")
        record = read(run)
        found.setdefault((int(labels), record["recipe"]["num_train_epochs"]), {}).setdefault(start, []).append(
            record["metrics"]["eval_accuracy"]
        )
    lines = ["| labels | epochs | seeds | pre-trained | from scratch | gain |", "|---|---|---|---|---|---|"]
    for (labels, epochs), starts in sorted(found.items()):
        pretrained, scratch = starts["pretrained"], starts["scratch"]
        gain = 100 * (statistics.mean(pretrained) - statistics.mean(scratch))
        cells = [f"{labels:,}", f"{epochs:g}", str(len(pretrained))]
        cells += [mean_and_deviation(pretrained), mean_and_deviation(scratch), f"{gain:+.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    probe = RECORDS / folder / "probe"
    if probe.exists():
        metrics = read(probe)["metrics"]
        shares = (mean_and_deviation([metrics[name]]) for name in ("linear_accuracy", "knn_accuracy"))
        lines += ["", "Frozen features, all labels: linear probe {}, k-NN (k = 20) {}.".format(*shares)]
    return "\n".join(lines)


def ablation(name: str) -> dict:
    """What the runs of an ablation gave, over their seeds."""
    runs = sorted((RECORDS / "ablations").glob(f"{name}-seed*"))
    probes = [read(run / "probe")["metrics"] for run in runs]
    speeds = [read(run)["metrics"]["images_per_second"] for run in runs]
    return {
        "linear": [probe["linear_accuracy"] for probe in probes],
        "knn": [probe["knn_accuracy"] for probe in probes],
        "images_per_second": statistics.mean(speeds),
    }


def ablation_table(which: str) -> str:
    lines = [
        "| | linear probe | k-NN | images/s | paper: linear probe | paper: fine-tuned |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in ABLATIONS[which].items():
        result = ablation(name)
        # The default of depth and width is another one in the paper.
        known = PAPER.get(name) if not (which.startswith("decoder") and name == "default") else None
        tuned, linear = known or ("", "")
        cells = [label, mean_and_deviation(result["linear"]), mean_and_deviation(result["knn"])]
        cells += [f"{result['images_per_second']:.0f}", str(linear), str(tuned)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def step_table() -> str:
    """Ratios to the official code of all training steps that were timed."""
    lines = []
    for path in sorted(RESULTS.glob("*_training_step_*.json")):
        content = json.loads(path.read_text())
        how = "compiled" if "--compile" in content["command"] else "eager"
        for result in content["results"]:
            rows = result["rows"]
            if not lines:
                names = [name for name in rows if name != "official code"]
                lines = ["| preset | | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
            ratios = (f"{rows[name]['ratio to official code']:.2f}" for name in names)
            lines.append(f"| {result['preset']} | {how} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def benchmark(name: str) -> str:
    """The tables of a benchmark as it wrote them, headings one level down."""
    text = (RESULTS / f"{name}.md").read_text().split("\n", 1)[1].strip()
    return re.sub(r"^## ", "### ", text, flags=re.MULTILINE)


TABLES: dict[str, Callable[[], str]] = {
    "training step": step_table,
    **{name: lambda name=name: benchmark(name) for name in BENCHMARKS},
    "cifar10": lambda: finetuning_table("cifar10"),
    "fashion_mnist": lambda: finetuning_table("fashion_mnist"),
    **{f"ablation {which}": lambda which=which: ablation_table(which) for which in ABLATIONS},
}


def fill(text: str) -> str:
    """Returns a page with the tables between its marks made anew."""

    def table(match: re.Match) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- from records: (.+?) -->)\n.*?\n?(<!-- end -->)", table, text, flags=re.DOTALL)


def draw(path: Path):
    """The linear probe of each ablation, beside the paper's."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(14, 6), layout="constrained")
    noise = statistics.stdev(ablation("default")["linear"]) * 100
    for axis, (which, runs) in zip(axes.flat, ABLATIONS.items(), strict=False):
        values = [100 * statistics.mean(ablation(name)["linear"]) for name in runs]
        axis.bar(list(runs.values()), values, yerr=noise, color="steelblue")
        axis.set_ylim(min(values) - 3, max(values) + 2)
        axis.set_title(which.replace("_", " "))
        axis.tick_params("x", labelrotation=15, labelsize=8)
    axes.flat[-1].axis("off")
    axes.flat[-1].text(0, 0.5, "Linear probe on CIFAR-10, %\nBars: deviation over three\nseeds of the default")
    figure.savefig(path, dpi=70)


def main(arguments: list[str]):
    if arguments[:1] == ["collect"]:
        for folder in arguments[1:]:
            collect(Path(folder))
        return
    stale = [page for page in PAGES if fill(page.read_text()) != page.read_text()]
    if arguments == ["check"]:
        sys.exit(f"Stale: {', '.join(page.name for page in stale)}. Run records/report.py." if stale else 0)
    for page in stale:
        page.write_text(fill(page.read_text()))
    draw(RECORDS.parent / "docs" / "ablations.png")


if __name__ == "__main__":
    main(sys.argv[1:])
