# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What the README says is so."""

import re
from pathlib import Path

import PIL.Image
import pytest
import torch

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks__run(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(image_size=28, patch_size=4, num_channels=1).save_pretrained("runs/fashion_mnist_sample")
    MAEImageProcessor.for_image_size(28, num_channels=1).save_pretrained("runs/fashion_mnist_sample")
    PIL.Image.new("RGB", (50, 40), "red").save("picture.jpg")
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        # Up to 5.17 the name in transformers itself is a dummy where torchvision is missing, as the README says.
        names = {}
        exec(
            compile(
                block.replace("import AutoImageProcessor, AutoModel", "import AutoModel\n" + AUTO), "README", "exec"
            ),
            names,
        )
    assert names["pictures"].reconstruction.shape == (2, 4, 64, 128)
    assert Path("reconstruction.png").exists()


AUTO = "from transformers.models.auto.image_processing_auto import AutoImageProcessor"


def test_file_map__is_the_tree():
    listed = set(re.findall(r"^\| `([^`]+)` \|", README.split("## Files")[1].split("## Limits")[0], re.MULTILINE))
    assert all((ROOT / name).exists() for name in listed)
    modules = {f"src/hf_mae/{path.name}" for path in (ROOT / "src/hf_mae").glob("*.py") if path.name != "__init__.py"}
    scripts = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert modules | scripts <= listed


@pytest.mark.parametrize("name", ["tiny", "small", "base", "large", "huge"])
def test_preset_table__is_right(name):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
    config = MAEConfig.from_preset(name)
    with torch.device("meta"):
        model = MAEForPreTraining(config)
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.mae, model.decoder)]
    assert f"{config.num_hidden_layers} x {config.hidden_size}, {config.num_attention_heads} |" in row
    decoder = (config.decoder_num_hidden_layers, config.decoder_hidden_size, config.decoder_num_attention_heads)
    assert "{} x {}, {}".format(*decoder) in row
    assert f"{millions[0]:.1f} M + {millions[1]:.1f} M |" in row


def test_recipes__have_known_settings():
    import sys

    import yaml

    sys.path.insert(0, str(ROOT / "examples"))
    from run_pretraining import PretrainingArguments

    known = set(PretrainingArguments.__dataclass_fields__)
    recipes = list((ROOT / "examples" / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert set(yaml.safe_load(recipe.read_text())) <= known
