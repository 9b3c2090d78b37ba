# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Keeps what tells of runs, and fills the tables of the pages from it, so that no figure can be stale.

    python records/report.py collect runs/cifar10     # copies the record of each run to records/cifar10/
    python records/report.py                          # fills the tables
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
PAGES = [RECORDS.parent / name for name in ("README.md", "docs/classification.md", "docs/performance.md")]
BENCHMARKS = ("cpu_loss_curves", "cpu_modules_base", "cpu_input_path", "cpu_inference", "cpu_growth")
KEPT = ("metrics.jsonl", "loss.png", "recipe.yaml")
LONGEST = ("pretrained",)  # keep their pictures, too


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
        # No folders of the machine.
        (target / "run.json").write_text(re.sub(r"(?<![\w.:])/(?:[\w.-]+/)+", "", found.read_text()))
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
}


def fill(text: str) -> str:
    """Returns a page with the tables between its marks made anew."""

    def table(match: re.Match) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- from records: (.+?) -->)\n.*?\n?(<!-- end -->)", table, text, flags=re.DOTALL)


def main(arguments: list[str]):
    if arguments[:1] == ["collect"]:
        for folder in arguments[1:]:
            collect(Path(folder))
        return
    texts = {page: page.read_text() for page in PAGES}
    stale = {page: filled for page, text in texts.items() if (filled := fill(text)) != text}
    if arguments == ["check"]:
        sys.exit(f"Stale: {', '.join(page.name for page in stale)}. Run records/report.py." if stale else 0)
    for page, filled in stale.items():
        page.write_text(filled)


if __name__ == "__main__":
    main(sys.argv[1:])
