# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Keeps records of runs, and fills the tables of the pages from them, so that no figure is stale.

    python experiments/report.py show runs/cifar10        # tables of your runs and of experiments/cifar10/
    python experiments/report.py collect runs/cifar10     # copies the record of each run to experiments/cifar10/
    python experiments/report.py                          # fills the tables; experiments/plots.py draws the plots
    python experiments/report.py check                    # fails if a page is stale

A record is the `run.json` of a run (recipe, command, commit, machine, versions, seed, results). Pre-training adds its
`metrics.jsonl` and loss curve, the longest runs also a picture of reconstructions, `hf-mae evaluate` its
`evaluation.json`. Weights are not kept.
"""

import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

RECORDS = Path(__file__).parent
RESULTS = RECORDS.parent / "benchmarks" / "results"
DOCS = RECORDS.parent / "docs"
PAGES = [RECORDS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
BENCHMARKS = (
    "cpu_loss_curves",
    "cpu_equal_time",
    "cpu_modules_base",
    "cpu_input_path",
    "cpu_inference",
    "cpu_growth",
    "memory",
)
KEPT = ("metrics.jsonl", "recipe.yaml")
LONGEST = ("pretrained",)  # runs whose pictures are kept
PICTURES = ("loss.png", "reconstructions.png")

# Runs by the setting that they vary: label, and the paper's fine-tuning and linear probing accuracy (ViT-L, 800 epochs
# of ImageNet). Source: He et al. 2021, Table 1; it has no other mask ratios, which Fig. 5 only plots.
ABLATIONS = {
    "mask ratio": {
        "mask_25": ("0.25", None, None),
        "mask_50": ("0.5", None, None),
        "default": ("0.75", 84.9, 73.5),
        "mask_90": ("0.9", None, None),
    },
    "decoder depth": {
        "decoder_depth_1": ("1 block", 84.8, 65.5),
        "default": ("2 blocks", 84.9, 70.0),
        "decoder_depth_4": ("4 blocks", 84.9, 71.9),
    },
    "decoder width": {
        "decoder_width_32": ("32 of 128", 84.8, 71.3),
        "default": ("64 of 128", 84.9, 73.5),
        "decoder_width_128": ("128 of 128", 84.3, 73.1),
    },
    "mask tokens": {
        "default": ("in the decoder only", 84.9, 73.5),
        "mask_tokens_in_encoder": ("in the encoder, too", 84.2, 59.6),
    },
    "target": {
        "default": ("pixels", 84.9, 73.5),
        "normalised_target": ("pixels, normalised by patch", 85.4, 73.9),
    },
    "augmentation": {
        "no_augmentation": ("none", 84.0, 65.7),
        "default": ("crop, flip", 84.9, 73.5),
        "color_jitter": ("crop, flip, colours", 84.3, 71.9),
    },
    "mask sampling": {
        "default": ("random, 0.75", 84.9, 73.5),
        "block_50": ("block, 0.5", 83.9, 72.3),
        "block_75": ("block, 0.75", 82.8, 63.9),
        "grid_75": ("grid, 0.75", 84.0, 66.0),
    },
}


def read(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def collect(runs: Path):
    """Copies the records of a folder of runs, including those of probes in the folders of the runs."""
    for found in sorted(runs.rglob("run.json")):
        run = found.parent
        if any(part.startswith("checkpoint-") for part in run.parts):
            continue
        target = RECORDS / runs.name / run.relative_to(runs)
        target.mkdir(parents=True, exist_ok=True)
        for name in (*KEPT, *PICTURES) if run.name in LONGEST else KEPT:
            if not (run / name).exists():
                continue
            if name.endswith(".png"):  # 256 colours: a third of the size
                PIL.Image.open(run / name).convert("RGB").quantize().save(target / name, optimize=True)
            else:
                shutil.copyfile(run / name, target / name)
        _copy_without_paths(found, target / "run.json")
        if (run / "evaluation" / "evaluation.json").exists():
            _copy_without_paths(run / "evaluation" / "evaluation.json", target / "evaluation.json")
        print(target.relative_to(RECORDS.parent))


def _copy_without_paths(source: Path, target: Path):
    """Copies a JSON file. Paths of the machine are cut to file names."""
    target.write_text(re.sub(r"(?<![\w.:])/(?:[\w.-]+/)+", "", source.read_text()))


def mean_and_deviation(values: list[float]) -> str:
    """Returns mean and standard deviation over seeds, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(line) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def finetuning_table(runs: Path) -> str:
    """Returns a table of the accuracy by number of labels, pre-trained and from scratch, over seeds."""
    found = {}
    for run in sorted(runs.glob("*-*-seed*")):
        start, labels, _ = run.name.split("-")
        record = read(run)
        found.setdefault((int(labels), record["recipe"]["num_train_epochs"]), {}).setdefault(start, []).append(
            record["metrics"]["eval_accuracy"]
        )
    rows = []
    for (labels, epochs), starts in sorted(found.items()):
        pretrained, scratch = starts.get("pretrained", []), starts.get("scratch", [])
        if len(pretrained) != len(scratch):
            sys.exit(
                f"{runs}: {len(pretrained)} runs pre-trained and {len(scratch)} from scratch with {labels} labels."
            )
        gain = 100 * (statistics.mean(pretrained) - statistics.mean(scratch))
        cells = [f"{labels:,}", f"{epochs:g}", str(len(pretrained))]
        rows.append([*cells, mean_and_deviation(pretrained), mean_and_deviation(scratch), f"{gain:+.1f}"])
    text = table(["labels", "epochs", "seeds", "pre-trained", "from scratch", "gain"], rows)
    probe = runs / "probe"
    if probe.exists():
        metrics = read(probe)["metrics"]
        linear, knn = (mean_and_deviation([metrics[name]]) for name in ("linear_accuracy", "knn_accuracy"))
        text += f"\n\nFrozen features (mean of the patches), all labels: linear probe {linear}, k-NN (k = 20) {knn}"
        if (runs / "attentive_probe").exists():
            pooled = mean_and_deviation([read(runs / "attentive_probe")["metrics"]["attentive_accuracy"]])
            text += f"; attentive probe {pooled}"
        text += "."
    return text


def longer_scratch_table() -> str:
    """Returns the accuracy on photographs of training from scratch for longer, next to that of short runs of both."""
    rows = []
    for labels in (307, 3068):
        patterns = [f"clothing/pretrained-{labels}-seed*", f"clothing/scratch-{labels}-seed*"]
        patterns.append(f"clothing_scratch/scratch_long-{labels}-seed*")
        epochs = [read(next(RECORDS.glob(pattern)))["recipe"]["num_train_epochs"] for pattern in patterns]
        cells = [f"{number:g}: {finetuned(pattern)}" for number, pattern in zip(epochs, patterns, strict=True)]
        rows.append([f"{labels:,}", *cells])
    return table(["labels", "pre-trained, epochs", "from scratch, epochs", "from scratch for longer, epochs"], rows)


def finetuned(pattern: str) -> str:
    """Returns the accuracy of fine-tuned runs, by the pattern of their folders."""
    return mean_and_deviation([read(run)["metrics"]["eval_accuracy"] for run in sorted(RECORDS.glob(pattern))])


def ablation(name: str, runs: Path = RECORDS / "ablations") -> dict[str, list[float]]:
    """Returns the results of a recipe, one value per seed: metrics of the probe, and the speed of pre-training."""
    probes = sorted(runs.glob(f"{name}-seed*/probe"))
    if not probes:
        sys.exit(f"{runs} has no run of {name}.yaml with a probe: experiments/ablations.sh makes them.")
    found = [{**read(probe)["metrics"], "images_per_second": median_speed(probe.parent)} for probe in probes]
    return {key: [metrics[key] for metrics in found] for key in found[0]}


def median_speed(run: Path) -> float:
    """Returns the median images/s of pre-training."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["images_per_second"] for line in lines if "images_per_second" in line)


def ablation_table(which: str, runs: Path = RECORDS / "ablations") -> str:
    head = [which, "linear probe", "k-NN", "images/s", "paper: linear probe", "paper: fine-tuning"]
    rows = []
    for name, (label, tuned, linear) in ABLATIONS[which].items():
        result = ablation(name, runs)
        cells = [label, mean_and_deviation(result["linear_accuracy"]), mean_and_deviation(result["knn_accuracy"])]
        speed = result["images_per_second"][0]  # of seed 0: those of other seeds shared the machine
        cells += [f"{speed:.0f}", str(linear or ""), str(tuned or "")]
        rows.append(cells)
    return table(head, rows)


# Figures of a finished run that need no labels, and k-NN; whether more is meant to be better; how they are called.
LABEL_FREE = {
    "eval_loss": (-1, "loss"),
    "loss_to_constant": (-1, "loss, as a share of the constant's"),
    "effective_rank": (1, "effective rank"),
    "twin_retrieval": (1, "twin retrieval"),
    "mean_cosine": (-1, "mean cosine (less is better)"),
    "knn_accuracy": (1, "k-NN accuracy, which needs labels"),
}


def label_free_runs() -> dict[str, dict[str, float]]:
    """Returns the last figures of each run of experiments/label_free.sh, and the linear probe of its encoder."""
    found = {}
    for run in runs_of("label_free/*"):
        metrics = read(run)["metrics"]
        loss, of_constant = metrics["eval_loss"], metrics["eval_loss_constant"]
        found[run.name] = {**evaluated(run), "eval_loss": loss, "loss_to_constant": loss / of_constant}
    return found


def rank_correlation(first: list[float], second: list[float]) -> float:
    """Returns Spearman's rank correlation; equal values share the mean of their ranks."""
    ranks = []
    for values in map(np.asarray, (first, second)):
        lower, equal = (compare(values[None], values[:, None]).sum(axis=1) for compare in (np.less, np.equal))
        ranks.append(lower + (equal - 1) / 2)
    return float(np.corrcoef(*ranks)[0, 1])


def label_free_table() -> str:
    """Returns the table of how figures rank runs, over all recipes and over those that mask and predict alike."""
    runs = label_free_runs()
    other_losses = ("mask_25", "mask_50", "mask_90", "block_", "grid_", "cells_", "normalised_target")
    alike = {name: figures for name, figures in runs.items() if not name.startswith(other_losses)}
    rows = []
    for name, (sign, label) in LABEL_FREE.items():
        cells = []
        for some in (runs, alike):
            values, accuracies = ([figures[key] for figures in some.values()] for key in (name, "linear_accuracy"))
            cells.append(f"{rank_correlation([sign * value for value in values], accuracies):+.2f}")
        rows.append([label, *cells])
    head = ["figure", f"all {len(runs)} runs", f"the {len(alike)} with the same masks and target"]
    return table(head, rows)


def label_free_list() -> str:
    """Returns the figures of each of these runs, the best linear probe first."""
    runs = sorted(label_free_runs().items(), key=lambda item: -item[1]["linear_accuracy"])
    head = ["run", "linear probe", "k-NN", "loss", "of the constant's", "rank", "twins", "cosine"]
    names = ("linear_accuracy", "knn_accuracy", "eval_loss", "loss_to_constant")
    names += ("effective_rank", "twin_retrieval", "mean_cosine")
    formats = ("{:.1%}", "{:.1%}", "{:.3f}", "{:.0%}", "{:.1f}", "{:.1%}", "{:.2f}")
    return table(head, [[run, *(f.format(v[n]) for f, n in zip(formats, names, strict=True))] for run, v in runs])


def probe_and_knn(seeds: list[dict[str, float]]) -> list[str]:
    """Returns linear probe and k-NN in percent, over the figures of several seeds; nothing where there are none."""
    names = ("linear_accuracy", "knn_accuracy")
    return [mean_and_deviation([figures[name] for figures in seeds]) if seeds else "" for name in names]


# The parts of Pixio's recipe and what each differs from, in the order of the table.
PIXIO_PARTS = {
    "default": "the default: single patches, 1 class token, fixed positions, a decoder of 2 blocks",
    "cells_2": "cells of 2 x 2 patches",
    "cells_4": "cells of 4 x 4 patches",
    "class_tokens_4": "4 class tokens",
    "class_tokens_8": "8 class tokens",
    "learned_positions": "learned positions",
    "decoder_depth_1": "a decoder of 1 block",
    "decoder_depth_4": "a decoder of 4 blocks",
    "decoder_depth_8": "a decoder of 8 blocks",
}


def gpu_runs_table() -> str:
    """Returns the runs of the recipe cifar10 on GPUs: how they were trained, and the k-NN accuracy at their end."""
    rows = []
    for name in ("adamw-20", "muon-11", "pretrained"):
        run = read(RECORDS / "cifar10_gpu" / name)
        recipe, metrics = run["recipe"], run["metrics"]
        optimizer = {"adamw": "AdamW", "muon": "Muon"}[recipe["optimizer"]]
        batch, machine = recipe["effective_batch_size"], run["machine"].split("NVIDIA ")[1].split()[0]
        rate = f"{recipe['base_learning_rate'] * batch / 256:g}"
        cells = [optimizer, rate, f"{batch:,}", f"{metrics['step']:,}", f"{metrics['epoch']:.0f}", machine]
        rows.append([*cells, percent(metrics["knn_accuracy"])])
    return table(["optimizer", "rate", "batch", "steps", "epochs", "GPU", "k-NN"], rows)


def pixio_table() -> str:
    """Returns the figures of the parts of Pixio's recipe on CIFAR-10 and on photographs, as far as they were run."""
    head, rows = ["recipe"], []
    for data in ("CIFAR-10", "CIFAR-10, H200", "photographs"):
        head += [f"{data}: seeds", "linear probe", "k-NN"]
    for name, label in PIXIO_PARTS.items():
        here, on_gpu = (
            [read(path.parent)["metrics"] for path in RECORDS.glob(f"{folder}/{name}-seed*/probe/run.json")]
            for folder in ("ablations", "ablations_h200")
        )
        photographs = [evaluated(run) for run in runs_of(f"clothing_ablations/{name}-seed*")]
        cells = [label]
        for seeds in (here, on_gpu, photographs):
            cells += [str(len(seeds) or ""), *probe_and_knn(seeds)]
        if any(cells[1:]):
            rows.append(cells)
    return table(head, rows)


# Runs of experiments/small_data.sh in the order of the tables.
SMALL_DATA = {
    "small_data/adamw-seed*": "AdamW, rate 2e-3 for 256 images: the recipe cifar10_small",
    "small_data/adamw_double-seed*": "AdamW, 4e-3",
    "small_data/adamw_quad-seed*": "AdamW, 8e-3",
    "small_data/muon_double-seed*": "Muon, 4e-3",
    "small_data/muon_quad-seed*": "Muon, 8e-3: the recipe cifar10_muon",
    "small_data/muon_quad_wsd-seed*": "Muon, 8e-3, constant with a cool-down (`wsd`)",
}
FASHION_MNIST_CHOICES = {
    "fashion_mnist_choices/adamw-seed*": "AdamW, rate 2e-3 for 256 images: the recipe fashion_mnist",
    "fashion_mnist_choices/adamw_double-seed*": "AdamW, 4e-3",
    "fashion_mnist_choices/adamw_quad-seed*": "AdamW, 8e-3",
    "fashion_mnist_choices/muon_double-seed*": "Muon, 4e-3",
    "fashion_mnist_choices/muon_quad-seed*": "Muon, 8e-3",
    "fashion_mnist_choices/muon_quad_wsd-seed*": "Muon, 8e-3, constant with a cool-down (`wsd`)",
}


def runs_of(pattern: str) -> list[Path]:
    """Returns the folders of runs that have been evaluated."""
    return [path.parent for path in sorted(RECORDS.glob(f"{pattern}/evaluation.json"))]


def evaluated(run: Path) -> dict[str, float]:
    """Returns the figures of the model of a run, by `hf-mae evaluate`."""
    return json.loads((run / "evaluation.json").read_text())["rows"][0]["figures"]


def evaluation_table(head: str, labels: dict[str, str]) -> str:
    """Returns the figures of runs and their loss, by pattern of their folders and label, as far as they were run."""
    rows = []
    for pattern, label in labels.items():
        if runs := runs_of(pattern):
            losses = [read(run)["metrics"].get("eval_loss") for run in runs]  # averaged weights have none
            loss = "" if None in losses else f"{statistics.mean(losses):.3f}"
            rows.append([label, str(len(runs)), *probe_and_knn([evaluated(run) for run in runs]), loss])
    return table([head, "seeds", "linear probe", "k-NN", "loss"], rows)


def schedules_table() -> str:
    """Returns what half of the photographs with labels make of encoders by both schedules, on the other half."""
    rows = []
    for name, label in (("wsd_80", "constant with a cool-down (`wsd`)"), ("muon_80", "cosine")):
        pattern = f"clothing_choices/finetuned_{name}-seed*"
        rows.append([label, str(len(list(RECORDS.glob(pattern)))), finetuned(pattern)])
    return table(["rate in pre-training", "seeds", "fine-tuned"], rows)


def pair_table() -> str:
    """Returns the linear probe and k-NN of the test images of CIFAR-10, by AdamW and by Muon in half of the epochs."""
    rows = []
    records = RECORDS / "cifar10"
    first = {"cifar10_small": [], "cifar10_muon": [(records / "pretrained", records / "probe")]}
    for name, runs in first.items():
        runs += [(run, run / "probe") for run in sorted(RECORDS.glob(f"cifar10_pair/{name}-seed*"))]
        figures = probe_and_knn([read(probe)["metrics"] for _, probe in runs])
        rows.append([f"`{name}`", f"{read(runs[0][0])['recipe']['num_train_epochs']:g}", str(len(runs)), *figures])
    return table(["recipe", "epochs", "seeds", "linear probe", "k-NN"], rows)


# Runs of experiments/clothing.sh and, of the same length, of one that goes on from other pictures.
CLOTHING_STARTS = {
    "clothing_choices/muon_80-seed0": "the photographs, 80 epochs",
    "clothing_starts/cifar_first-seed*": "CIFAR-10, 12 epochs, then the photographs, 80 epochs",
}


def detection_table() -> str:
    """Returns the figures of detectors of the generated scenes, pre-trained and from scratch, over seeds."""
    rows = []
    for start, label in (("pretrained", "pre-trained"), ("scratch", "from scratch")):
        runs = [read(run) for run in sorted(RECORDS.glob(f"detection/{start}-seed*"))]
        names = ("eval_map", "eval_map50", "eval_map75")
        figures = [mean_and_deviation([run["metrics"][name] for run in runs]) for name in names]
        rows.append([label, f"{runs[0]['recipe']['max_steps']}", str(len(runs)), *figures])
    return table(["encoder", "steps", "seeds", "mAP", "mAP50", "mAP75"], rows)


# Runs of experiments/clothing_choices.sh, and two of 80 epochs.
CLOTHING_CHOICES = {
    "clothing_choices/muon-seed*": "the recipe clothing (Muon, 8e-3, batches of 128, cosine) in 20 epochs",
    "clothing_choices/muon_half-seed*": "Muon, 4e-3",
    "clothing_choices/muon_double-seed*": "Muon, 16e-3",
    "clothing_choices/wsd-seed*": "a constant rate with a cool-down (`wsd`)",
    "clothing_choices/ema-seed*": "`wsd`, average of about the last 50 steps (EMA)",
    "clothing_choices/batch_64-seed*": "batches of 64",
    "clothing_choices/batch_256-seed*": "batches of 256",
    "clothing_choices/views_2-seed*": "two views of each decode",
    "clothing_choices/prediction_50-seed*": "half of the hidden patches predicted",
    "clothing_choices/crops_fifth-seed*": "crops from a fifth of the picture, the paper's, instead of from half",
    "clothing_choices/muon_80-seed*": "the recipe clothing, 80 epochs",
    "clothing_choices/batch_64_80-seed*": "batches of 64, 80 epochs",
    "clothing_choices/crops_fifth_80-seed*": "crops from a fifth, 80 epochs",
    "clothing_choices/wsd_80-seed*": "`wsd`, 80 epochs",
    "clothing_choices/adamw_80-seed*": "AdamW, 4e-3, 80 epochs",
}


# Runs of experiments/clothing_time.sh.
CLOTHING_TIME = {
    "clothing_time/batch_128-seed*": "batches of 128: the recipe clothing",
    "clothing_time/batch_64-seed*": "batches of 64",
}
AUTOMATIC = {
    "automatic/chosen-seed*": "as chosen: 128 pixels in patches of 16, batches of 64, one view, crops from a fifth",
    "automatic/pixels_96-seed*": "96 pixels in patches of 12",
    "automatic/views_2-seed*": "two views of each decode",
    "automatic/crops_50-seed*": "crops from half of the picture",
    "automatic/batch_128-seed*": "batches of 128",
    "automatic/recipe-seed*": "the recipe clothing: 96 pixels, batches of 128, crops from half (two views were chosen)",
}


def automatic_table() -> str:
    """Returns what a quarter of an hour gives by automatic choices and others, and of how many samples."""
    rows = []
    for pattern, label in AUTOMATIC.items():
        for run in runs_of(pattern):
            record = read(run)
            samples = record["metrics"]["step"] * record["recipe"]["effective_batch_size"]
            rows.append([label, f"{samples:,}", *probe_and_knn([evaluated(run)])])
    return table(["variant", "samples", "linear probe", "k-NN"], rows)


def windows_table() -> str:
    """Returns the mean IoU of large pictures by the distance of windows, with our weights and with equal ones."""
    found = read(RECORDS / "windows" / "fashion-seed0")["windows"]
    iou = {(row["weights"], row["stride"]): f"{100 * row['mean_iou']:.1f}" for row in found}
    strides = sorted({stride for _, stride in iou}, reverse=True)
    rows = [[weights, *(iou[weights, stride] for stride in strides)] for weights in ("falling", "equal")]
    return table(["weights", *(f"stride {stride:g}" for stride in strides)], rows)


def step_ratios() -> dict[tuple[str, str], dict[str, float]]:
    """Returns how many times faster than the official code a training step is, by (preset, how), by implementation."""
    found = {}
    for path in sorted(RESULTS.glob("*_training_step_*.json")):
        content = json.loads(path.read_text())
        how = "compiled" if "--compile" in content["command"] else "eager"
        for result in content["results"]:
            rows = {name: row["ratio to official code"] for name, row in result["rows"].items()}
            found[result["preset"], how] = {name: ratio for name, ratio in rows.items() if name != "official code"}
    return found


def step_table() -> str:
    """Returns a table of the ratios of all training steps that were timed."""
    ratios = step_ratios()
    names = list(next(iter(ratios.values())))
    rows = [[*measured, *(f"{row[name]:.2f}" for name in names)] for measured, row in ratios.items()]
    return table(["preset", "", *names], rows)


def gpu_cases(part: str) -> dict[str, dict]:
    """Returns what `benchmarks/gpu.py` has found in one part, by case."""
    return json.loads((RESULTS / f"gpu_{part}.json").read_text())["cases"]


def gpu_steps() -> dict[tuple[str, str], dict]:
    """Returns what was timed on a GPU, by preset and way, eager or compiled, of cases in which all were timed."""
    timed = {
        (preset, way): case
        for way in ("eager", "compiled")
        for preset, case in gpu_cases(way).items()
        if "images_per_second" in case["hf_mae"]
    }
    return dict(sorted(timed.items(), key=lambda item: item[0][0]))


def gpu_step_table() -> str:
    """Returns a table of the training steps that were timed on a GPU: images/s, times the reference, memory."""
    rows = []
    for (preset, way), case in gpu_steps().items():
        for name, values in case.items():
            if isinstance(values, dict) and "images_per_second" in values:
                speed, times = values["images_per_second"], values.get("ratio_to_reference")
                figures = [f"{speed:,.0f}", f"{times:.2f}" if times else "", f"{values['peak_memory_gb']:.1f}"]
                share = values["gflop_per_image"] * speed / 1000 / case["matmul_tflops"]
                rows.append([preset, str(case["batch_size"]), way, name, *figures, f"{100 * share:.0f} %"])
    about = {
        f"{case['machine']}; {', '.join(map(' '.join, case['versions'].items()))}" for case in gpu_steps().values()
    }
    if len(about) > 1:
        raise ValueError(f"One table cannot hold what was measured on {' and '.join(sorted(about))}.")
    head = ["preset", "batch", "", "", "images/s", "times the reference", "GB", "of the matmul rate"]
    return f"{about.pop()}; bfloat16\n\n{table(head, rows)}"


def gpu_step_range(name: str) -> str:
    """Returns how many times faster than another implementation our steps are on a GPU, as a range."""
    cases = [case for case in gpu_steps().values() if name in case]
    ratios = [case["hf_mae"]["images_per_second"] / case[name]["images_per_second"] for case in cases]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def gpu_small_table() -> str:
    """Returns a table of the steps of runs with a small model on small images."""
    cases = [(*case.split(", "), values) for case, values in gpu_cases("small").items()]
    rows = []
    for optimizer, images, mode, values in sorted(cases, key=lambda case: (int(case[1]), case[0], -case[3]["seconds"])):
        times = [f"{1000 * values[name]:.0f}" for name in ("seconds", "device_seconds")]
        speed = f"{values['images_per_second']:,.0f}"
        rows.append([images, {"adamw": "AdamW", "muon": "Muon"}[optimizer], mode, *times, speed])
    return table(["images of a step", "", "compiled", "ms", "of which the GPU works", "images/s"], rows)


def gpu_batches_table() -> str:
    """Returns a table of the images/s of eager steps by the number of images."""
    cases = {preset: gpu_cases("batches")[preset] for preset in ("tiny", "base")}
    sizes = [size for size in cases["base"] if size.isdecimal()]
    rows = [[preset, *(f"{case[size]['images_per_second']:,.0f}" for size in sizes)] for preset, case in cases.items()]
    return table(["preset", *sizes], rows)


PARAMETERS = {"base": 111.9e6, "large": 329.5e6, "huge": 657.1e6}  # with the decoder


def gpu_speed(preset: str) -> float:
    """Returns the images/s of compiled steps."""
    return gpu_steps()[preset, "compiled"]["hf_mae"]["images_per_second"]


def gpu_scaling(gpus: int, images: int) -> str:
    """Returns the computed share of the ideal speed of some GPUs with some images each, as a range of presets.

    Gradients in float32 pass twice around a ring of the GPUs of each machine, and of the machines. That is hidden as
    long as it takes less than the backward pass, two thirds of a step.
    """
    shares = []
    for preset, parameters in PARAMETERS.items():
        step = images / gpu_speed(preset)
        rings = {300e9: min(gpus, 8), 40e9: gpus // 8}  # bytes/s within a machine and between machines: how many
        exchange = sum(2 * (many - 1) / many * 4 * parameters / speed for speed, many in rings.items() if many)
        shares.append(step / (step + max(exchange - 2 / 3 * step, 0)))
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{high} %" if low == high else f"{low} to {high} %"


def gpu_speeds() -> str:
    """Returns the images/s of compiled steps that the computed scaling is made of."""
    base, large, huge = (f"{gpu_speed(preset):,.0f}" for preset in PARAMETERS)
    return f"{base}, {large} and {huge}"


def gpu_graphs_gain() -> str:
    """Returns how many times as fast as an eager step of 256 small images a compiled one with CUDA graphs is."""
    cases = gpu_cases("small")
    return f"{cases['adamw, 256, eager']['seconds'] / cases['adamw, 256, reduce-overhead']['seconds']:.1f}"


def gpu_small_step(case: str) -> str:
    """Returns the milliseconds of a step of a small model."""
    return f"{1000 * gpu_cases('small')[case]['seconds']:.0f}"


def gpu_data(preset: str) -> str:
    """Returns the images/s of a run on JPEG files and the share of the time that it waits for them."""
    metrics = gpu_cases("data")[preset]["metrics"]
    return f"{metrics['images_per_second']:,.0f} images/s ({metrics['data_wait']:.0%} of the time waiting for them)"


def gpu_option_ratio(option: str) -> str:
    """Returns how many times faster than a plain, eager step one with an option is on a GPU."""
    return f"{gpu_cases('options')[option]['ratio_to_plain']:.2f}"


def step_range(name: str) -> str:
    ratios = [row[name] for row in step_ratios().values()]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def crop_range() -> str:
    """Returns how many times faster than the official way we make crops of a picture of ImageNet's size, as a range."""
    rows = json.loads((RESULTS / "cpu_input_path.json").read_text())["results"]["pictures"][0]["rows"]
    ratios = [row["ratio to official (torchvision)"] for name, row in rows.items() if name.startswith("hf_mae")]
    return f"{min(ratios):.1f} to {max(ratios):.1f}"


def benchmark(name: str) -> str:
    """Returns the tables of a benchmark with the title as a line of text and headings one level lower."""
    title, text = (RESULTS / f"{name}.md").read_text().strip().split("\n", 1)
    return f"{title.removeprefix('# ')}. " + re.sub(r"^## ", "### ", text.strip(), flags=re.MULTILINE)


TABLES: dict[str, Callable[[], str]] = {
    "training step": step_table,
    "gpu step": gpu_step_table,
    "gpu step range": lambda: gpu_step_range("transformers ViTMAE"),
    "gpu bf16 residual": lambda: gpu_option_ratio("bf16 residual"),
    "gpu step range, lightly": lambda: gpu_step_range("lightly"),
    "gpu batches": gpu_batches_table,
    "gpu graphs": gpu_graphs_gain,
    "gpu speeds": gpu_speeds,
    "gpu scaling, one machine": lambda: gpu_scaling(8, 64),
    "gpu scaling, paper's batch": lambda: gpu_scaling(64, 64),
    "gpu scaling, larger batch": lambda: gpu_scaling(64, 256),
    "gpu scaling, many": lambda: gpu_scaling(512, 32),
    "gpu small": gpu_small_table,
    "gpu small step": lambda: gpu_small_step("adamw, 1024, default"),
    "gpu small step, Muon": lambda: gpu_small_step("muon, 1024, default"),
    "gpu data, base": lambda: gpu_data("base"),
    "gpu data, tiny": lambda: gpu_data("tiny"),
    "training step range": lambda: step_range("hf_mae"),
    "partial prediction range": lambda: step_range("hf_mae, prediction_ratio 0.25"),
    "crop range": crop_range,
    **{name: lambda name=name: benchmark(name) for name in BENCHMARKS},
    "cifar10": lambda: finetuning_table(RECORDS / "cifar10"),
    "cifar10 linear": lambda: percent(read(RECORDS / "cifar10" / "probe")["metrics"]["linear_accuracy"]),
    "automatic choices": automatic_table,
    "cifar10 muon": pair_table,
    "cifar10 gpu": lambda: finetuned("cifar10_gpu/finetuned"),
    "cifar10 gpu linear": lambda: percent(read(RECORDS / "cifar10_gpu" / "probe")["metrics"]["linear_accuracy"]),
    "cifar10 gpu k-NN": lambda: percent(read(RECORDS / "cifar10_gpu" / "probe")["metrics"]["knn_accuracy"]),
    "cifar10 gpu epochs": lambda: f"{read(RECORDS / 'cifar10_gpu' / 'pretrained')['metrics']['epoch']:.0f}",
    "cifar10 gpu runs": gpu_runs_table,
    "cifar10 gpu speed": lambda: f"{round(median_speed(RECORDS / 'cifar10_gpu' / 'pretrained'), -3):,.0f}",
    "cifar10 all labels": lambda: finetuned("cifar10/pretrained-50000-seed*"),
    "cifar10 from scratch": lambda: finetuned("cifar10/scratch-50000-seed*"),
    "clothing": lambda: finetuning_table(RECORDS / "clothing"),
    "clothing longer from scratch": longer_scratch_table,
    "clothing from scratch, few labels": lambda: finetuned("clothing_scratch/scratch_long-307-seed*"),
    "clothing from scratch, all labels": lambda: finetuned("clothing_scratch/scratch_long-3068-seed*"),
    "clothing first": lambda: evaluation_table("pre-trained on", CLOTHING_STARTS),
    "clothing choices": lambda: evaluation_table("variant", CLOTHING_CHOICES),
    "clothing schedules": schedules_table,
    "clothing equal time": lambda: evaluation_table("variant", CLOTHING_TIME),
    "clothing wsd, few labels": lambda: finetuned("clothing_wsd/pretrained-307-seed*"),
    "clothing wsd, all labels": lambda: finetuned("clothing_wsd/pretrained-3068-seed*"),
    "detection": detection_table,
    "fashion_mnist": lambda: finetuning_table(RECORDS / "fashion_mnist"),
    "fashion_mnist choices": lambda: evaluation_table("variant", FASHION_MNIST_CHOICES),
    "label-free correlation": label_free_table,
    "label-free runs": label_free_list,
    "pixio parts": pixio_table,
    "windows": windows_table,
    "small data": lambda: evaluation_table("variant", SMALL_DATA),
    **{which: lambda which=which: ablation_table(which) for which in ABLATIONS},
}


def show(runs: Path):
    """Prints the tables of runs and of the records of the same name."""
    for folder in (runs, RECORDS / runs.name):
        if folder.is_dir():
            ablations = (folder / "default-seed0").exists()
            tables = [ablation_table(which, folder) for which in ABLATIONS] if ablations else [finetuning_table(folder)]
            print(f"{folder}\n", *tables, sep="\n", end="\n\n")


def fill(text: str) -> str:
    """Returns a page whose tables and figures between marks are made again from the records."""

    def made(match: re.Match) -> str:
        mark, name, line_break, end = match.groups()
        return f"{mark}{line_break}{TABLES[name]()}{line_break}{end}"

    return re.sub(r"(<!-- from records: (.+?) -->)(\n?).*?(<!-- end -->)", made, text, flags=re.DOTALL)


def main(arguments: list[str]):
    if arguments and (action := {"collect": collect, "show": show}.get(arguments[0])):
        for folder in arguments[1:]:
            action(Path(folder))
        return
    texts = {page: page.read_text() for page in PAGES}
    stale = {page: filled for page, text in texts.items() if (filled := fill(text)) != text}
    if arguments == ["check"]:
        sys.exit(f"Stale: {', '.join(page.name for page in stale)}. Run experiments/report.py." if stale else 0)
    for page, filled in stale.items():
        page.write_text(filled)


if __name__ == "__main__":
    main(sys.argv[1:])
