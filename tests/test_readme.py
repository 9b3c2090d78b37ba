# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What the README and the pages of docs/ say is so: code runs, commands parse, links and figures are right."""

import functools
import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

import hf_mae
from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.cli import CommandParser
from hf_mae.data.datasets import PretrainingDataset, collate
from hf_mae.data.sampling import SampleOrder, StepBatchSampler
from hf_mae.data.sources import open_images
from hf_mae.evaluation.visualization import reconstruct_command
from hf_mae.training.arguments import RECIPES
from hf_mae_command import COMMANDS, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
LAUNCHERS = ("python -m hf_mae", "torchrun", "accelerate launch", "sbatch", "python examples/run_")
SCRIPTS = {
    "examples/run_pretraining.py": "pretrain",
    "examples/run_image_classification.py": "finetune",
    "examples/run_linear_probing.py": "probe",
    "examples/run_semantic_segmentation.py": "segment",
    "examples/run_object_detection.py": "detect",
}


def blocks_of(text: str, *languages: str) -> list[str]:
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", text, re.DOTALL)


# ----------------------------------------------------------------------------------------------------------------------
# Python

# Up to 5.17 the name in transformers itself is a dummy where torchvision is missing, as the README says.
AUTO = (
    "from transformers.models.auto.image_processing_auto import AutoImageProcessor\nfrom transformers import AutoModel"
)


@pytest.fixture
def folder_of_a_reader(tiny_model, tmp_path, monkeypatch):
    """A working folder with a pre-trained model, images and a picture, as after `hf-mae pretrain`."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model(image_size=28, patch_size=4, num_channels=1, num_hidden_layers=4)
    model.save_pretrained("runs/fashion_mnist_sample")
    MAEImageProcessor.for_image_size(28, num_channels=1).save_pretrained("runs/fashion_mnist_sample")
    PIL.Image.new("RGB", (50, 40), "red").save("picture.jpg")
    Path("path/to/images").mkdir(parents=True)
    for colour in ("red", "green", "blue", "white"):
        PIL.Image.new("RGB", (120, 100), colour).save(f"path/to/images/{colour}.png")
    return tmp_path


@pytest.mark.slow
def test_readme__python_blocks_run(folder_of_a_reader, monkeypatch):
    monkeypatch.setitem(
        vars(hf_mae), "pretrain", functools.partial(hf_mae.pretrain, max_steps=1, effective_batch_size=2)
    )
    blocks = blocks_of(README, "python")
    assert len(blocks) == 2
    for block in blocks:
        names = {}
        code = block.replace("from transformers import AutoImageProcessor, AutoModel", AUTO)
        exec(compile(code, "README", "exec"), names)
    assert names["pictures"].reconstruction.shape == (2, 4, 64, 128)
    assert Path("reconstruction.png").exists()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(path.name, marks=pytest.mark.slow if path.name == "adapting.md" else ())  # ONNX
        for path in sorted((ROOT / "docs").glob("*.md"))
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_docs__python_blocks_run(page, folder_of_a_reader):
    for name in ("peft", "onnxscript") if page == "adapting.md" else ():
        pytest.importorskip(name)
    names = {}
    for block in blocks_of((ROOT / "docs" / page).read_text(encoding="utf-8"), "python"):
        exec(compile(block, page, "exec"), names)


# ----------------------------------------------------------------------------------------------------------------------
# Commands


class Parsed(Exception):  # noqa: N818 - it says that all went well
    pass


def commands_of(text: str) -> list[list[str]]:
    """Returns the words of every `hf-mae` command in the shell blocks of a page, whichever way it is started."""
    lines = "".join(blocks_of(text, "bash", "sh")).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables of the environment
            words = words[1:]
        if words[:1] == ["hf-mae"]:
            found.append(words[1:])
        elif line.startswith(LAUNCHERS) or "-m hf_mae" in line:
            found.append(_without_launcher(words))
    return found


def _without_launcher(words: list[str]) -> list[str]:
    for place, word in enumerate(words):
        if word.startswith("examples/"):
            assert (ROOT / word).exists(), word
        if word in SCRIPTS:
            return [SCRIPTS[word], *words[place + 1 :]]
        if word == "hf_mae" or word.endswith(".sbatch"):
            return words[place + 1 :]
    raise AssertionError(f"{shlex.join(words)} starts nothing of ours.")


def parse(words: list[str]) -> CommandParser:
    """Parses a command as it is parsed when it runs, and returns its parser. `...` stands for what was left out."""
    command, *arguments = [word for word in words if word != "..."]
    is_complete, parsed, real = "..." not in words, [], CommandParser.parse

    def parse_and_stop(self, argv):
        if not is_complete:
            for action in self._actions:
                action.required = False
                action.nargs = action.nargs if action.option_strings else "*"
        real(self, argv)
        parsed.append(self)
        raise Parsed

    module, function = COMMANDS[command][0].split(":")
    run = getattr(importlib.import_module(module), function)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommandParser, "parse", parse_and_stop)
        with pytest.raises(Parsed):
            run(arguments, prog=f"hf-mae {command}")
    return parsed[0]


@pytest.mark.parametrize("page", PAGES)
def test_pages__commands_parse(page):
    """Commands and flags exist, values have the right type, recipes and launch files are there."""
    for words in commands_of(PAGES[page].read_text(encoding="utf-8")):
        assert words[0] in COMMANDS, words
        parse(words)


def help_of(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help__shows_commands_that_parse(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    examples = re.findall(r"^  (hf-mae .*)$", help_of(command, capsys), re.MULTILINE)
    assert len(examples) >= 2
    for words in commands_of("```bash\n{}\n```".format("\n".join(examples))):
        parse(words)


def test_help__says_what_a_list_holds_by_default_and_which_recipes_there_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert "Features to write, see above. Default: pooler.\n" in help_of("features", capsys)
    assert " Names: linear_probe_imagenet. " in " ".join(help_of("probe", capsys).split())
    names = " ".join(help_of("pretrain", capsys).split())
    assert "Names: cifar10, cifar10_muon, " in names
    assert "finetune_" not in names
    assert "Names:" not in help_of("features", capsys)


def test_commands_of__a_wrong_flag_is_found():
    command = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m hf_mae pretrain \\\n    --mask_rato 0.5  # x"
    page = f"```bash\n{command}\n```"
    assert commands_of(page) == [["pretrain", "--mask_rato", "0.5"]]
    with pytest.raises(ValueError, match="--mask_ratio"):
        parse(commands_of(page)[0])


@pytest.fixture(scope="module")
def known_flags():
    """All flags of our commands, and of the scripts in benchmarks/."""
    parsers = [parse([command, "..."]) for command in COMMANDS]
    flags = {name for parser in parsers for action in parser._actions for name in action.option_strings}
    for script in (ROOT / "benchmarks").glob("*.py"):
        flags |= set(re.findall(r'"(--\w+)"', script.read_text(encoding="utf-8")))
    return flags | {"--traceback", "--version"}


@pytest.mark.parametrize("page", PAGES)
def test_pages__name_flags_and_commands_that_exist(page, known_flags):
    text = PAGES[page].read_text(encoding="utf-8")
    spans = re.findall(r"`((?:--|hf-mae )[^`\n]+)`", text)
    named = {flag for words in spans for flag in re.findall(r"(?:^| )(--\w+)", words)}
    assert named <= known_flags
    assert set(re.findall(r"`hf-mae (\w+)", text)) <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_pages__links_lead_somewhere(page):
    text = PAGES[page].read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = PAGES[page].parent / path if path else PAGES[page]
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


# Commands of the pages that need nothing but the embedded images and what the commands before them have left.
ON_THE_SAMPLE = {
    "hf-mae pretrain": ["--max_steps", "2", "--eval_images", "50"],
    "hf-mae reconstruct runs/fashion_mnist_sample": [],
    "hf-mae attention runs/fashion_mnist_sample picture.jpg": [],
    "hf-mae finetune --model_name_or_path runs/fashion_mnist_sample": ["--max_steps", "1", "--eval_strategy", "no"],
    "hf-mae probe --model_name_or_path runs/fashion_mnist_sample --fast": ["--num_train_epochs", "1"],
    "hf-mae features --model_name_or_path runs/fashion_mnist_sample --output features.parquet": ["--split", "test"],
    "hf-mae convert runs/fashion_mnist_sample vit-sample --to vit": [],
}


def test_pages__show_the_commands_that_are_run_here():
    shown = [words for page in PAGES.values() for words in commands_of(page.read_text(encoding="utf-8"))]
    assert [command for command in ON_THE_SAMPLE if shlex.split(command)[1:] not in shown] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_commands__of_the_pages_run_on_the_sample(tmp_path, monkeypatch):
    pytest.importorskip("kornia")
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (50, 40), "red").save("picture.jpg")
    for command, shortened in ON_THE_SAMPLE.items():
        main([*shlex.split(command)[1:], *shortened])
    left = {"runs/fashion_mnist_sample", "runs/classifier", "runs/probe", "features.parquet", "vit-sample"}
    assert all(Path(name).exists() for name in left | {"reconstructions.png", "attention.png"})


def test_recipes__have_known_settings():
    recipes = list(RECIPES.rglob("*.yaml"))
    assert recipes
    for recipe in recipes:
        command = {"finetune": "finetune", "linear": "probe"}.get(recipe.name.split("_")[0], "pretrain")
        parse([command, "...", "--recipe", str(recipe.relative_to(RECIPES).with_suffix(""))])


# ----------------------------------------------------------------------------------------------------------------------
# Figures


@pytest.mark.parametrize(
    ("page", "mark", "picture"),
    [
        ("features.md", "picture of the README", "clothes.png"),
        ("gallery.md", "picture of three garments", "reconstructions.png"),
    ],
)
def test_picture__is_what_the_released_checkpoint_draws(page, mark, picture, tmp_path, monkeypatch):
    """The page says how it was made."""
    monkeypatch.chdir(tmp_path)
    Path("model_cards").symlink_to(ROOT / "model_cards")
    how = (ROOT / "docs" / page).read_text().partition(f"<!-- {mark} -->")[2].partition("![")[0]
    for code in blocks_of(how, "py"):
        exec(code, {})
    (words,) = commands_of(f"```bash\n{blocks_of(how, 'bash')[0]}```")
    Path("docs").mkdir()
    reconstruct_command(words[1:], prog="hf-mae reconstruct")
    drawn, shown = (PIL.Image.open(root / "docs" / picture) for root in (tmp_path, ROOT))
    differences = np.abs(np.array(drawn.convert("RGB"), dtype=int) - np.array(shown.convert("RGB"), dtype=int))
    if shown.mode == "P":  # kept with 128 colours
        assert differences.mean() < 4
    else:
        assert differences.max() <= 2  # rounding differs between machines


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


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_docs__table_of_steps_is_that_of_every_layout(layout):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert page.split("<!-- steps -->\n")[1].split("\n<!-- /steps -->")[0] == step_table(LAYOUTS[layout])
