# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What the README and the pages of docs/ say is so."""

import re
from pathlib import Path

import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.data.datasets import PretrainingDataset, collate
from hf_mae.data.sampling import SampleOrder, StepBatchSampler
from hf_mae.data.sources import open_images

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks__run(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model_cards").symlink_to(ROOT / "model_cards")
    model = tiny_model(image_size=28, patch_size=4, num_channels=1, num_hidden_layers=4)
    model.save_pretrained("runs/fashion_mnist_sample")
    MAEImageProcessor.for_image_size(28, num_channels=1).save_pretrained("runs/fashion_mnist_sample")
    PIL.Image.new("RGB", (50, 40), "red").save("picture.jpg")
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
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


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
@pytest.mark.filterwarnings("ignore")
def test_docs__python_blocks_run(page, tiny_model, tmp_path, monkeypatch):
    """In a folder with a pre-trained model and a picture, as after `make pretrain`."""
    for name in ("peft", "onnxscript") if page == "adapting.md" else ():
        pytest.importorskip(name)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks or page in ("ablations.md", "performance.md", "training.md")
    monkeypatch.chdir(tmp_path)
    tiny_model(image_size=28, patch_size=4, num_channels=1).save_pretrained("runs/fashion_mnist_sample")
    MAEImageProcessor.for_image_size(28, num_channels=1).save_pretrained("runs/fashion_mnist_sample")
    PIL.Image.new("RGB", (50, 40), "red").save("picture.jpg")
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


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


def step_table(layout):
    """The table of docs/training.md, made of what the processes of a layout are given."""
    processes, per_device, workers, pieces = layout
    dataset = PretrainingDataset(open_images(), (28, 28), 16, num_channels=1)
    lines = set()
    for steps in pieces:
        for process in range(processes):
            sampler = StepBatchSampler(SampleOrder(3000, 0), 4, per_device, steps, process, processes)
            loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
            for number, batch in enumerate(loader):
                step = steps.start + number // sampler.accumulation
                visible = batch["noise"].argsort(dim=1)[:, :4].sort(dim=1).values
                names = ("sample", "crop_box", "flipped")
                for sample, box, flipped, kept in zip(
                    *(batch[n].tolist() for n in names), visible.tolist(), strict=True
                ):
                    flip = "yes" if flipped else "no"
                    cells = (step, sample[1], *(", ".join(map(str, part)) for part in (box, kept)), flip)
                    lines.add("| {0} | {1} | {2} | {4} | {3} |".format(*cells))
    head = "| step | image | crop box (top, left, height, width) | flipped | visible patches |"
    return "\n".join([head, "|---|---|---|---|---|", *sorted(lines)])


LAYOUTS = {
    "as it is": (1, 4, 0, [range(0, 3)]),
    "2 processes, 4 workers": (2, 2, 4, [range(0, 3)]),
    "3 processes": (3, 2, 0, [range(0, 3)]),
    "accumulated": (1, 1, 0, [range(0, 3)]),
    "interrupted": (2, 1, 1, [range(0, 1), range(1, 3)]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_docs__table_of_steps_is_that_of_every_layout(layout):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert page.split("<!-- steps -->\n")[1].split("\n<!-- /steps -->")[0] == step_table(LAYOUTS[layout])


def test_docs__name_flags_that_exist():
    files = [
        *(ROOT / "examples").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
        ROOT / "src/hf_mae/training/finetuning.py",
    ]
    script = "".join(path.read_text(encoding="utf-8") for path in files)
    for page in (README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))):
        for flag in set(re.findall(r"`--(\w+)", page)) - {"help"}:
            ours = re.search(rf'^    {flag}: |"--{flag}"', script, re.MULTILINE)
            assert ours or flag in TrainingArguments.__dataclass_fields__, flag


def test_recipes__have_known_settings():
    import sys

    import yaml

    pytest.importorskip("kornia")
    sys.path.insert(0, str(ROOT / "examples"))
    from run_image_classification import ClassificationArguments
    from run_linear_probing import ProbingArguments
    from run_pretraining import PretrainingArguments

    recipes = list((ROOT / "src/hf_mae/training/recipes").rglob("*.yaml"))
    assert recipes
    for recipe in recipes:
        kind = recipe.name.split("_")[0]
        arguments = {"finetune": ClassificationArguments, "linear": ProbingArguments}.get(kind, PretrainingArguments)
        assert set(yaml.safe_load(recipe.read_text())) <= set(arguments.__dataclass_fields__)
