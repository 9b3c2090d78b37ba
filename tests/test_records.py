# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The figures of the pages are those of the records, and the records say how to repeat the runs."""

import gzip
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from hf_mae import MAEConfig, MAEForImageClassification
from hf_mae.data.sources import open_images
from hf_mae.evaluation.evaluating import EvaluationArguments
from hf_mae.evaluation.probing import ProbingArguments
from hf_mae.finetuning.classification import ClassificationArguments
from hf_mae.pretraining.settings import PretrainingSettings
from hf_mae.training.arguments import config_changes, parse_arguments

ROOT = Path(__file__).parent.parent
RUNS = sorted(path.parent for path in (ROOT / "experiments").rglob("run.json"))


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import report

    return report


PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("ablations", "classification", "faster", "is_it_learning", "performance")),
]


@pytest.mark.parametrize("page", PAGES)
def test_pages__have_the_figures_of_the_records(report, page):
    text = (ROOT / page).read_text()
    assert "<!-- from records:" in text
    assert report.fill(text) == text, "stale: run experiments/report.py"
    figure = re.compile(r"\d+\.\d").search(text, text.index("<!-- from records:"))
    assert report.fill(text[: figure.start()] + "12.3" + text[figure.end() :]) == text


@pytest.mark.parametrize("name", ["ablations.png", "loss_curves.png"])
def test_plots__show_the_figures_of_the_records(report, name):
    import plots

    make, _ = plots.PLOTS[name]
    figures = make()
    drawn = PIL.Image.open(ROOT / "docs" / name).text["figures"]
    assert drawn == plots.digest(figures), "stale: run experiments/plots.py"
    assert plots.digest({**figures, "more": 1}) != drawn


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(ROOT / "experiments")))
def test_records__say_how_to_repeat_the_run(run):
    record = json.loads((run / "run.json").read_text())
    assert len(record["commit"]) == 40  # of a tree without changes
    assert record["command"].startswith(("python examples/", "python experiments/", "hf-mae "))
    assert record["metrics"]
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    assert not any(f'"/{folder}/' in json.dumps(record) for folder in ("tmp", "home", "work", "root"))


def test_rank_correlation__is_spearmans(report):
    assert report.rank_correlation([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert report.rank_correlation([1, 2, 3, 4], [0.4, 0.3, 0.2, 0.1]) == pytest.approx(-1)
    # 1 - 6 * (1 + 1 + 4 + 4) / (5 * 24)
    assert report.rank_correlation([1, 2, 3, 4, 5], [2, 1, 5, 4, 3]) == pytest.approx(0.5)
    # Equal values share a rank: 0, 1.5, 1.5, 3 against 0, 1, 2, 3.
    assert report.rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_records__are_small():
    files = [path for path in (ROOT / "experiments").rglob("*") if path.is_file()]
    assert not any(path.suffix in (".safetensors", ".pt", ".bin") for path in files)
    assert sum(path.stat().st_size for path in files) < 2e6


def test_collect__leaves_out_weights_and_folders_of_the_machine(report, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "made" / "one-seed0"
    (run / "checkpoint-5").mkdir(parents=True)
    record = {"command": "python x.py --data /tmp/here/data", "data": "/a/b (train)"}
    for folder in (run, run / "checkpoint-5"):
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "model.safetensors").write_text("weights")
    monkeypatch.setattr(report, "RECORDS", tmp_path / "experiments")
    report.collect(run.parent)
    kept = [
        path.relative_to(tmp_path / "experiments") for path in (tmp_path / "experiments").rglob("*") if path.is_file()
    ]
    assert kept == [Path("made/one-seed0/run.json")]
    kept = report.read(tmp_path / "experiments" / "made" / "one-seed0")
    assert kept == {"command": "python x.py --data data", "data": "b (train)"}


SETTINGS = {
    "pretrain": PretrainingSettings,
    "probe": ProbingArguments,
    "finetune": ClassificationArguments,
    "evaluate": EvaluationArguments,
}
RECIPES = list((ROOT / "src/hf_mae/training/recipes/ablations").glob("*.yaml"))
TWICE = 2 * len(RECIPES)  # each is pre-trained and probed


@pytest.mark.parametrize(
    ("script", "runs"),
    [
        ("cifar10.sh", 21),
        ("fashion_mnist.sh", 8),
        ("clothing.sh", 15),
        ("ablations.sh", TWICE + 2 * 2 * 5),  # five of them with three seeds
        ("label_free.sh", TWICE + 2 * 2),  # the default with three seeds
        ("small_data.sh", 10),
        ("clothing_ablations.sh", 18),
        ("clothing_choices.sh", 30),
    ],
)
def test_scripts__give_commands_that_work(script, runs, tmp_path):
    """Each run has a folder of its own, settings that exist, and a checkpoint that exists or was made before."""
    environment = {**os.environ, "PYTHON": "echo RUN", "RUNS": str(tmp_path), "JOBS": "1"}
    command = ["bash", f"experiments/{script}", "DATA"]
    printed = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    commands = [line.removeprefix("RUN -m hf_mae ").split() for line in printed.splitlines() if "RUN" in line]
    made = []
    for name, *arguments in commands:
        settings = parse_arguments(SETTINGS[name], arguments, prog=name, description="")
        assert settings.data == "DATA"
        if name != "pretrain":
            models = settings.model if name == "evaluate" else [settings.model_name_or_path]
            assert all(model in made or (ROOT / model).exists() for model in models)
        made.append(settings.output_dir)
    assert len(made) == len(set(made)) == runs
    finetuned = [arguments for name, *arguments in commands if name == "finetune"]
    # Each is compared with training from scratch, but for two schedules of pre-training with each other.
    compared = 0 if script == "clothing_choices.sh" else len(finetuned)
    assert sum("--from_scratch" in arguments for arguments in finetuned) * 2 == compared


@pytest.fixture
def prepare(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import prepare

    return prepare


def test_prepare__cifar10(prepare, tmp_path):
    images = np.random.default_rng(0).integers(256, size=(4, 32, 32, 3), dtype=np.uint8)
    labels = np.array([3, 9, 0, 1], dtype=np.uint8)
    rows = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(4, -1)], axis=1)
    for name, part in (("data_batch_2.bin", rows[2:3]), ("data_batch_1.bin", rows[:2]), ("test_batch.bin", rows[3:])):
        part.tofile(tmp_path / name)
    prepare.main(tmp_path, tmp_path / "out")
    for split, expected in (("train", [0, 1, 2]), ("test", [3])):
        source = open_images(str(tmp_path / "out"), split)
        assert source.labels.tolist() == labels[expected].tolist()
        assert source.label_names[9] == "truck"
        assert all((np.array(source[place]) == images[number]).all() for place, number in enumerate(expected))


def test_prepare__fashion_mnist(prepare, tmp_path):
    images = np.random.default_rng(0).integers(256, size=(2, 28, 28), dtype=np.uint8)
    for split, part in (("train", images[:1]), ("t10k", images[1:])):
        head = bytes([0, 0, 8, 3]) + np.array(part.shape, dtype=">u4").tobytes()
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + part.tobytes()))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 8])))
    prepare.main(tmp_path, tmp_path / "out")
    for split, image in zip(("train", "test"), images, strict=True):
        source = open_images(str(tmp_path / "out"), split)
        assert [source.label_names[label] for label in source.labels] == ["Bag"]
        assert (np.array(source[0]) == image).all()


def test_prepare__says_what_is_missing(prepare, tmp_path):
    with pytest.raises(SystemExit, match="neither data_batch_1.bin"):
        prepare.main(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cifar10_on_a_gpu__is_no_larger_than_the_published_model():
    recipe = yaml.safe_load((ROOT / "src/hf_mae/training/recipes" / "cifar10.yaml").read_text())
    sizes = {name: recipe[name] for name in ("image_size", "patch_size")}
    labels = {number: str(number) for number in range(10)}
    changes = config_changes(recipe["config_overrides"])
    config = MAEConfig.from_preset(recipe["preset"], **sizes, **changes, id2label=labels)
    model = MAEForImageClassification(config)
    assert model(torch.zeros(1, 3, 36, 36)).logits.shape == (1, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3.65e6


def test_ablations__differ_from_the_default_in_one_respect():
    folder = ROOT / "src/hf_mae/training/recipes" / "ablations"
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    for recipe in recipes.values():
        recipe.update(config_changes(recipe.pop("config_overrides")))
    default = recipes.pop("default")
    together = (  # one respect, two fields
        {"decoder_hidden_size", "decoder_intermediate_size"},
        {"crop_scale_min", "horizontal_flip"},
        {"mask_ratio", "mask_sampling"},
    )
    for name, recipe in recipes.items():
        changed = {key for key in recipe.keys() | default if recipe.get(key) != default.get(key)}
        assert len(changed) == 1 or changed in together, name
