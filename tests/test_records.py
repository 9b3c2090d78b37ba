# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The figures of the pages are those of the records, and the records tell how to repeat the runs."""

import json
import re
from pathlib import Path

import pytest
import yaml

from hf_mae.recipes import config_changes

ROOT = Path(__file__).parent.parent
RUNS = sorted(path.parent for path in (ROOT / "records").rglob("run.json"))


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "records")
    import report

    return report


@pytest.mark.parametrize("page", ["README.md", "docs/classification.md", "docs/performance.md"])
def test_pages__have_the_figures_of_the_records(report, page):
    text = (ROOT / page).read_text()
    assert "<!-- from records:" in text
    assert report.fill(text) == text, "stale: run records/report.py"
    figure = re.compile(r"\d+\.\d").search(text, text.index("<!-- from records:"))
    assert report.fill(text[: figure.start()] + "12.3" + text[figure.end() :]) == text


@pytest.mark.parametrize("run", RUNS, ids=lambda run: str(run.relative_to(ROOT / "records")))
def test_records__tell_how_to_repeat_the_run(run):
    record = json.loads((run / "run.json").read_text())
    assert len(record["commit"]) == 40  # of a tree without changes
    assert record["command"].startswith("python examples/")
    assert record["metrics"]
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    assert not any(f'"/{folder}/' in json.dumps(record) for folder in ("tmp", "home", "work", "root"))


def test_records__are_small():
    files = [path for path in (ROOT / "records").rglob("*") if path.is_file()]
    assert not any(path.suffix in (".safetensors", ".pt", ".bin") for path in files)
    assert sum(path.stat().st_size for path in files) < 2e6


def test_collect__leaves_out_weights_and_folders_of_the_machine(report, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "made" / "one-seed0"
    (run / "checkpoint-5").mkdir(parents=True)
    record = {"command": "python x.py --data /tmp/here/data", "data": "/a/b (train)"}
    for folder in (run, run / "checkpoint-5"):
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "model.safetensors").write_text("weights")
    monkeypatch.setattr(report, "RECORDS", tmp_path / "records")
    report.collect(run.parent)
    kept = [path.relative_to(tmp_path / "records") for path in (tmp_path / "records").rglob("*") if path.is_file()]
    assert kept == [Path("made/one-seed0/run.json")]
    kept = report.read(tmp_path / "records" / "made" / "one-seed0")
    assert kept == {"command": "python x.py --data data", "data": "b (train)"}


def test_ablations__differ_from_the_default_in_one_respect():
    folder = ROOT / "examples" / "recipes" / "ablations"
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
