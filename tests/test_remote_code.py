# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""A saved folder loads in a process that cannot import hf_mae, is trained there, saved, and loaded again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

import hf_mae
from hf_mae import MAEImageProcessor, MAEModel

SHIPPED = Path(hf_mae.__file__).parent / "modeling"
CODE = {path.name for path in SHIPPED.glob("*.py")} - {"__init__.py"}
ALL = {
    *("AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoModelForImageClassification", "AutoBackbone"),
    "AutoImageProcessor",
}
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_mae":
            raise ImportError("blocked by the test")
sys.meta_path.insert(0, Block())
"""
LOAD = (
    BLOCK
    + """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
source, target, noise, expected = sys.argv[1], sys.argv[2], torch.load(sys.argv[3]), torch.load(sys.argv[4])
trust = {"trust_remote_code": True}
pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
encoder = AutoModel.from_pretrained(source, **trust).eval()
assert torch.equal(encoder(pixels).pooler_output, expected["pooled"])
assert AutoConfig.from_pretrained(source, **trust).model_type == "mae"
processor = AutoImageProcessor.from_pretrained(source, **trust)
assert processor(torch.zeros(3, 40, 40, dtype=torch.uint8), return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)
assert AutoModel.from_pretrained(source, image_size=64, **trust).config.image_size == 64
assert pipeline("image-feature-extraction", model=source, device="cpu", **trust) is not None

model = AutoModelForPreTraining.from_pretrained(source, **trust)
if "loss" in expected:
    assert torch.equal(model(pixels, noise=noise).loss, expected["loss"])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(2):
    loss = model.train()(pixels, noise=noise).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.save_pretrained(target)
processor.save_pretrained(target)
again = AutoModelForPreTraining.from_pretrained(target, **trust)
assert torch.equal(again.eval()(pixels, noise=noise).loss, model.eval()(pixels, noise=noise).loss)
assert not torch.equal(again(pixels, noise=noise).loss, loss)

classifier = AutoModelForImageClassification.from_pretrained(source, num_labels=3, pooling="attentive", **trust)
assert torch.equal(classifier.mae.layers[0].mlp.fc1.weight, encoder.layers[0].mlp.fc1.weight)
classifier.train()(pixels, labels=torch.tensor([0, 2])).loss.backward()
classifier.eval().save_pretrained(target + "-classifier")
again = AutoModelForImageClassification.from_pretrained(target + "-classifier", **trust).eval()
assert torch.equal(again(pixels).logits, classifier(pixels).logits)
processor.save_pretrained(target + "-classifier")
assert pipeline("image-classification", model=target + "-classifier", device="cpu", **trust) is not None
from transformers.dynamic_module_utils import get_class_from_dynamic_module
backbone = get_class_from_dynamic_module("auto_mae.MAEBackbone", source).from_pretrained(source)
assert backbone(pixels).feature_maps[0].shape == (2, 32, 4, 4)
print("fine")
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["pre-training model", "encoder"])
def test_folder__loads_trains_and_saves_without_the_package(tiny_model, tmp_path, saved):
    source, target = tmp_path / "source", tmp_path / "target"
    model, noise = tiny_model(), torch.rand(2, 16)
    pixels = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    expected = {"pooled": model.mae(pixels).pooler_output.detach()}
    if saved == "encoder":
        model.mae.save_pretrained(source)
    else:
        model.save_pretrained(source)
        expected["loss"] = model(pixels, noise=noise).loss.detach()
    MAEImageProcessor.for_image_size(32).save_pretrained(source)
    torch.save(noise, tmp_path / "noise.pt")
    torch.save(expected, tmp_path / "expected.pt")

    arguments = [str(tmp_path / name) for name in ("source", "target", "noise.pt", "expected.pt")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", LOAD, *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("fine\n"), done.stderr

    for folder in (source, target, tmp_path / "target-classifier"):
        assert {path.name for path in folder.glob("*.py")} == CODE
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert set(auto_map) == ALL
        assert {reference.split(".")[0] for reference in auto_map.values()} == {"auto_mae"}
    assert type(MAEModel.from_pretrained(target)) is MAEModel  # and back here


def test_shipped_files__need_nothing_but_torch_and_what_comes_with_transformers():
    """Imports inside `try` are optional: transformers does not ask for them."""
    allowed = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"} | set(sys.stdlib_module_names)
    for name in CODE:
        assert set(get_imports(SHIPPED / name)) <= allowed, name


def test_auto_mae__leads_to_every_shipped_file():
    """The Hub's loader follows relative imports from there; another file would be missing."""
    assert {Path(path).name for path in get_relative_import_files(SHIPPED / "auto_mae.py")} | {"auto_mae.py"} == CODE


def test_shipped_files__import_each_other_without_a_circle():
    imports = {name: {f"{module}.py" for module in get_relative_imports(SHIPPED / name)} for name in CODE}
    while imports:
        leaves = {name for name, needed in imports.items() if not needed & set(imports)}
        assert leaves, f"These import each other in a circle: {sorted(imports)}"
        imports = {name: needed for name, needed in imports.items() if name not in leaves}


@pytest.mark.slow
def test_import__needs_nothing_that_only_training_needs():
    """`None` in `sys.modules` makes Python and transformers take a library for missing."""
    script = """
import sys
for name in ("accelerate", "datasets", "kornia", "matplotlib", "pandas", "peft", "pyarrow", "torchvision"):
    sys.modules[name] = None
import hf_mae, torch
config = hf_mae.MAEConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
assert hf_mae.MAEModel(config)(torch.randn(1, 3, 224, 224)).pooler_output.shape == (1, 32)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
