# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Frozen encoders of all kinds behind one interface; the table of hf-mae evaluate, whose figures tell models apart."""

import errno
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import picture
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_mae import (
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEImageProcessor,
    MAEModel,
    export_checkpoint,
)
from hf_mae.data.sources import open_images
from hf_mae.evaluation.comparison import Row, as_markdown, mark_best_blocks, table_of
from hf_mae.evaluation.encoders import load_encoder
from hf_mae.evaluation.evaluating import EvaluationArguments, Judge, evaluate, evaluate_command, open_evaluated
from hf_mae.finetuning.classification import build_classifier

RELEASED = Path(__file__).parents[1] / "model_cards" / "mae-fashion-mnist"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def dino(folder, registers=0):
    """Saves a DINOv2 with random weights and its image processor, as the Hub has them."""
    if registers:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=registers))
    else:
        model = Dinov2Model(Dinov2Config(**SIZES))
    model.eval().save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return model


# ----------------------------------------------------------------------------------------------------------------------
# Encoders


@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2__tokens_are_those_of_the_model_split_into_prefix_and_patches(tmp_path, registers):
    model, encoder = dino(tmp_path / "dino", registers), load_encoder(tmp_path / "dino")
    pixel_values = torch.randn(2, 3, 28, 42)  # not the size it is made for
    first, last = encoder(pixel_values, [1, -1])
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True)
    assert first.grid_size == last.grid_size == (2, 3)
    assert last.patches.shape == (2, 6, 32)
    assert last.prefix.shape == (2, 1 + registers, 32)
    torch.testing.assert_close(torch.cat([last.prefix, last.patches], dim=1), outputs.last_hidden_state)
    middle = model.layernorm(outputs.hidden_states[1])  # every block gets the final norm
    torch.testing.assert_close(torch.cat([first.prefix, first.patches], dim=1), middle)
    pooled = encoder.pooled(last)
    torch.testing.assert_close(pooled["class"], outputs.last_hidden_state[:, 0])  # without the registers
    torch.testing.assert_close(pooled["mean"], outputs.last_hidden_state[:, 1 + registers :].mean(dim=1))


def test_image_processor_of_others__same_pixel_values_and_our_reader(tmp_path):
    dino(tmp_path / "dino")
    ours, theirs = load_encoder(tmp_path / "dino").image_processor, BitImageProcessor.from_pretrained(tmp_path / "dino")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = torch.as_tensor(theirs(pixels, return_tensors="pt").pixel_values)
    torch.testing.assert_close(ours(pixels, return_tensors="pt").pixel_values, expected, atol=0.05, rtol=0)
    deep = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40) * 40  # 16 bits, of which the upper 8 are the grey level
    shallow = np.repeat((deep / 257).round().astype(np.uint8)[..., None], 3, axis=2)
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    found = ours(str(tmp_path / "deep.png"), return_tensors="pt").pixel_values
    torch.testing.assert_close(found, ours(shallow, return_tensors="pt").pixel_values, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="5"):
        ours(np.zeros((40, 40, 5), dtype=np.uint8), return_tensors="pt")


def test_our_models__every_kind_of_folder_and_file_gives_the_same_tokens(tiny_model, tmp_path):
    model, pixel_values = tiny_model(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = model.mae(pixel_values, output_hidden_states=True)
    expected = [model.mae.layernorm(outputs.hidden_states[1]), outputs.last_hidden_state]
    model.save_pretrained(tmp_path / "whole")
    MAEModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "encoder")
    for name in ("whole", "encoder"):
        MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / name)
    for layout in ("timm", "vit_mae"):
        export_checkpoint(model, tmp_path / layout, layout=layout)
    for name in ("whole", "encoder", "timm", "vit_mae"):
        encoder = load_encoder(tmp_path / name)
        assert (encoder.depth, encoder.hidden_size, encoder.patch_size) == (2, 32, (8, 8))
        for found, wanted in zip(encoder(pixel_values, [1, 2]), expected, strict=True):
            torch.testing.assert_close(torch.cat([found.prefix, found.patches], dim=1), wanted, atol=1e-4, rtol=1e-4)
        assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_file_of_the_official_code__has_the_same_tokens(tmp_path):
    model, pixel_values = MAEModel.from_pretrained(RELEASED).eval(), torch.randn(2, 1, 28, 28)
    export_checkpoint(model, tmp_path / "official.pth", layout="official")
    found = load_encoder(tmp_path / "official.pth")(pixel_values)[0]
    with torch.no_grad():
        expected = model(pixel_values).last_hidden_state
    torch.testing.assert_close(torch.cat([found.prefix, found.patches], dim=1), expected, atol=1e-4, rtol=1e-4)


def test_classifier_by_the_mean__tokens_without_a_norm_that_was_never_trained(tiny_config, tmp_path):
    MAEForImageClassification(tiny_config(pooling="mean")).save_pretrained(tmp_path)
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path)
    encoder, pixel_values = load_encoder(tmp_path), torch.randn(1, 3, 32, 32)
    states = encoder.model(pixel_values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(encoder(pixel_values)[0].patches, states[-1][:, 1:])


def test_models_without_tokens_of_patches__are_refused_by_name(tmp_path, tiny_config):
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    ResNetModel(ResNetConfig(**sizes)).save_pretrained(tmp_path / "resnet")
    BitImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match="resnet.*no patch_size"):
        load_encoder(tmp_path / "resnet")
    dino(tmp_path / "dino")
    config = json.loads((tmp_path / "dino" / "config.json").read_text())
    (tmp_path / "dino" / "config.json").write_text(json.dumps({**config, "num_register_tokens": 2}))
    with pytest.raises(ValueError, match="gives 5 tokens for 4 patches and states 3"):
        load_encoder(tmp_path / "dino")
    with pytest.raises(ValueError, match="multiple of the patch"):
        load_encoder(tmp_path / "dino", image_size=32)
    sizes = {"hidden_size": 16, "num_labels": 3, "use_auxiliary_head": False}
    config = UperNetConfig(backbone_config=tiny_config(out_indices=[1, 2]), **sizes)
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path / "segmenter")
    with pytest.raises(ValueError, match=r"segmenter is a model for segmentation.*its run started from\.$"):
        load_encoder(tmp_path / "segmenter")
    with pytest.raises(OSError, match="nowhere"):
        load_encoder(tmp_path / "nowhere")
    dino(tmp_path / "other")
    with pytest.raises(ValueError, match="`layers` 3: .*other has 2 blocks"):
        load_encoder(tmp_path / "other").block_numbers([1, 3])


# ----------------------------------------------------------------------------------------------------------------------
# The table


def test_table__titles_dashes_and_the_block_that_held_out_images_prefer():
    rows = [
        Row("a", 1, 64, {"knn_accuracy": 0.5, "effective_rank": 12.34}, {"held_out": 0.7}),
        Row("a", 2, 64, {"knn_accuracy": 0.6, "effective_rank": 5.0, "finetuned_accuracy_10": 0.25}, {"held_out": 0.6}),
        Row("b|c", 2, 32, {"knn_accuracy": float("nan")}, {"held_out": 0.9}),
    ]
    mark_best_blocks(rows)  # b has one block only
    lines = table_of(rows)
    assert lines[0] == ["model", "block", "k-NN", "fine-tuned, 10 a class", "rank"]
    assert lines[1] == ["a", "1*", "50.0%", "-", "12.3 of 64"]
    assert lines[2] == ["a", "2", "60.0%", "25.0%", "5.0 of 64"]
    assert lines[3] == ["b|c", "2", "-", "-", "-"]
    assert as_markdown(lines).splitlines()[1:3] == ["|---|---:|---:|---:|---:|", "| a | 1* | 50.0% | - | 12.3 of 64 |"]
    assert "b\\|c" in as_markdown(lines)


# ----------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command and returns what it printed, and the content of evaluation.json."""

    def run(*arguments):
        arguments = [*map(str, arguments), "--disable_tqdm", "--device", "cpu", "--output_dir", str(tmp_path / "out")]
        evaluate_command(arguments, prog="hf-mae evaluate")
        return capsys.readouterr().out, json.loads((tmp_path / "out" / "evaluation.json").read_text())

    return run


@pytest.mark.slow
def test_labels__two_kinds_of_models_and_two_blocks_in_one_table(run, pretrained, folder, tmp_path):
    dino(tmp_path / "dino")
    models = [pretrained, tmp_path / "dino"]
    printed, content = run("--model", *models, "--data", folder, "--layers", 1, 2, "--add_to_card")
    assert [(row["model"], row["block"]) for row in content["rows"]] == [
        (str(model), block) for model in models for block in (1, 2)
    ]
    for row in content["rows"]:
        assert {"knn_accuracy", "linear_accuracy", "attentive_accuracy", "effective_rank"} <= set(row["figures"])
        assert row["figures"]["linear_accuracy"] == 1.0  # the classes are three colours
    for model in models:
        assert sum(row["is_best"] for row in content["rows"] if row["model"] == str(model)) == 1
    assert "12 images of 3 classes" in content["data"]
    assert content["fingerprints"]["labels"]
    assert {"torch", "transformers"} <= set(content["versions"])
    assert content["protocol"]
    page = (tmp_path / "out" / "evaluation.md").read_text()
    assert "| model | block | k-NN | linear | attentive | rank | twins | cosine |" in page
    assert "dino" in printed
    for sheet in (tmp_path / "out").glob("*.png"):
        assert f"({sheet.name})" in page
    assert len(list((tmp_path / "out").glob("*.png"))) == 8  # neighbours and patches of two blocks of two models
    card = (pretrained / "README.md").read_text()
    assert "12 images of 3 classes" in card
    assert "| block | k-NN | linear | attentive |" in card
    assert not (tmp_path / "dino" / "README.md").exists()


@pytest.mark.slow
def test_few_labels__models_of_ours_are_fine_tuned_on_the_same_images(run, pretrained, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mae.evaluation.evaluating._FEW_LABELS", {"max_steps": 2, "learning_rate": 1e-3})
    dino(tmp_path / "dino")
    models = ("--model", pretrained, tmp_path / "dino", "--attentive", "false")
    printed, content = run(*models, "--data", folder, "--few_labels", 2)
    ours, theirs = (row["figures"] for row in content["rows"])
    assert 0 <= ours["finetuned_accuracy_2"] <= 1
    assert "finetuned_accuracy_2" not in theirs
    assert "not fine-tuned" in printed
    record = json.loads(next((tmp_path / "out" / "finetuned").glob("*/run.json")).read_text())
    assert record["num_images"] == 6  # two of each of three classes


def test_few_labels__do_not_begin_with_a_classifier_that_has_learned_from_more(
    tiny_config, folder, tmp_path, monkeypatch
):
    names = ["blue", "green", "red"]
    config = tiny_config(pooling="mean", id2label=dict(enumerate(names)))
    trained, begun = MAEForImageClassification(config), []
    torch.nn.init.ones_(trained.classifier.bias)
    trained.save_pretrained(tmp_path / "classifier")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "classifier")

    def finetune(args, images):
        begun.append(build_classifier(args, images[0]))
        return SimpleNamespace(metrics={"eval_accuracy": 0.5})

    monkeypatch.setattr("hf_mae.evaluation.evaluating.finetune", finetune)
    model = str(tmp_path / "classifier")
    args = EvaluationArguments(model=[model], data=str(folder), output_dir=str(tmp_path / "out"), device="cpu")
    encoder = load_encoder(model)
    rows = [Row(model, 2, 32)]
    Judge(args, open_evaluated(args, encoder.image_processor))._fine_tune(rows, encoder, 2)
    assert list(begun[0].config.id2label.values()) == names
    assert not begun[0].classifier.bias.any()
    assert not torch.equal(begun[0].classifier.weight, trained.classifier.weight)
    torch.testing.assert_close(begun[0].mae.state_dict(), trained.mae.state_dict())
    assert rows[0].figures == {"finetuned_accuracy_2": 0.5}


@pytest.mark.slow
def test_few_labels__stand_with_the_last_block_in_whatever_order(run, pretrained, folder, monkeypatch):
    tuned = SimpleNamespace(metrics={"eval_accuracy": 0.5})
    monkeypatch.setattr("hf_mae.evaluation.evaluating.finetune", lambda args, images: tuned)
    arguments = ["--model", pretrained, "--data", folder, "--attentive", "false", "--few_labels", 2]
    _, content = run(*arguments, "--layers", 2, 1)
    assert [(row["block"], row["figures"].get("finetuned_accuracy_2")) for row in content["rows"]] == [
        (2, 0.5),
        (1, None),
    ]


@pytest.mark.slow
def test_images_alone__figures_and_sheets_without_labels(run, pretrained, folder, tmp_path):
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(tmp_path / "flat" / f"{number}.png")
    printed, content = run("--model", pretrained, "--data", tmp_path / "flat")
    assert set(content["rows"][0]["figures"]) == {"effective_rank", "twin_retrieval", "mean_cosine"}
    assert "without labels" in content["data"]
    assert "k-NN" not in printed
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


@pytest.mark.slow
def test_masks__dense_probes(run, pretrained, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for number in range(count):
            mask = np.repeat(np.repeat(rng.integers(0, 2, (4, 4)), 8, axis=0), 8, axis=1).astype(np.uint8)
            pixels = np.where(mask[..., None] == 1, (200, 60, 60), (60, 60, 200)).astype(np.uint8)
            for name, array in (("images", pixels), ("masks", mask)):
                (tmp_path / "data" / split / name).mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(array).save(tmp_path / "data" / split / name / f"{number}.png")
    _, content = run("--model", pretrained, "--data", tmp_path / "data", "--layers", 1, 2)
    for row in content["rows"]:
        assert row["figures"]["dense_linear_iou"] > 0.9  # logits are interpolated across the borders
        assert row["figures"]["dense_knn_iou"] > 0.99
        assert row["choices"]["constant_iou"] < 0.5
        assert {"effective_rank", "mean_cosine"} <= set(row["figures"])
    assert sum(row["is_best"] for row in content["rows"]) == 1
    assert "4 images with masks of 2 classes" in content["data"]


@pytest.fixture
def flat(tmp_path):
    """A folder of five pictures without labels."""
    (tmp_path / "flat").mkdir()
    for number in range(5):
        picture(number).save(tmp_path / "flat" / f"{number}.png")
    return tmp_path / "flat"


def test_models__that_divide_files_into_other_images_are_not_compared(run, pretrained, flat, tmp_path):
    """The first decided how many images there are."""
    shutil.copytree(pretrained, tmp_path / "pages")
    MAEImageProcessor.from_pretrained(pretrained, pages="images").save_pretrained(tmp_path / "pages")
    for models in ([pretrained, tmp_path / "pages"], [tmp_path / "pages", pretrained]):
        with pytest.raises(ValueError, match="each page of a file as an image"):
            run("--model", *models, "--data", flat)


def test_sheets__of_models_with_like_names_are_all_there_and_have_short_names(run, pretrained, flat, tmp_path):
    """Sheets of a/b and a-b would have one name, and a long path would be none."""
    models = [tmp_path / "a" / "b", tmp_path / "a-b", tmp_path / ("d" * 90) / ("e" * 90)]
    for model in models:
        shutil.copytree(pretrained, model)
    run("--model", *models, "--data", flat)
    page = (tmp_path / "out" / "evaluation.md").read_text()
    sheets = [path.name for path in (tmp_path / "out").glob("*.png")]
    assert len(sheets) == 6
    assert all(page.count(f"({name})") == 1 for name in sheets)
    assert max(map(len, sheets)) <= 100


def test_sheets__show_each_of_few_images_once(run, pretrained, flat, monkeypatch):
    shown = []

    def sheet(pictures, *others):
        shown.extend(each.tobytes() for each in pictures)
        return pictures[0]

    def rows(features, pictures, queries):
        assert queries == list(range(5))
        return pictures(0)

    monkeypatch.setattr("hf_mae.evaluation.evaluating.pca_sheet", sheet)
    monkeypatch.setattr("hf_mae.evaluation.evaluating.neighbor_sheet", rows)
    run("--model", pretrained, "--data", flat)
    assert len(shown) == len(set(shown)) == 5


def test_images_alone__need_no_table_of_labels(run, pretrained, flat):
    """A table may say other things of the images, or of some of them."""
    (flat / "metadata.csv").write_text("file_name,patient\n0.png,ann\n")
    with pytest.raises(ValueError, match="must have the column file_name and label"):
        run("--model", pretrained, "--data", flat)
    _, content = run("--model", pretrained, "--data", flat, "--task", "images")
    assert content["data"].startswith("5 images")
    assert content["rows"][0]["figures"].keys() == {"effective_rank", "twin_retrieval", "mean_cosine"}


def test_model_that_fails_late__costs_no_other_its_figures(run, pretrained, flat, tmp_path, monkeypatch):
    shutil.copytree(pretrained, tmp_path / "second")
    draw = Judge._draw

    def fails(judge, encoder, *others):
        if encoder.name.endswith("second"):
            raise OSError("The disk is full.")
        draw(judge, encoder, *others)

    monkeypatch.setattr(Judge, "_draw", fails)
    with pytest.raises(OSError, match="disk is full"):
        run("--model", pretrained, tmp_path / "second", "--data", flat)
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["model"] for row in content["rows"]] == [str(pretrained)]
    assert "effective_rank" in content["rows"][0]["figures"]
    assert str(pretrained) in (tmp_path / "out" / "evaluation.md").read_text()


def test_full_disk__costs_the_sheets_and_the_files_and_not_the_figures(
    pretrained, flat, tmp_path, monkeypatch, capsys, log
):
    def full(*others, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    args = EvaluationArguments(
        model=[str(pretrained)], data=str(flat), output_dir=str(tmp_path / "out"), device="cpu", disable_tqdm=True
    )
    (row,) = evaluate(args).rows
    assert "patches-1" in log()
    assert "No space left" in log()
    assert "![" not in (tmp_path / "out" / "evaluation.md").read_text()
    capsys.readouterr()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate(args)
    assert f"{row.figures['effective_rank']:.1f} of {row.width}" in capsys.readouterr().out


def test_weights_that_are_no_numbers__get_no_figures(run, pretrained, flat, tmp_path, monkeypatch):
    model = MAEForPreTraining.from_pretrained(pretrained)
    torch.nn.init.constant_(model.mae.layers[1].mlp.fc1.weight, torch.nan)
    model.save_pretrained(tmp_path / "broken")
    shutil.copy(pretrained / "preprocessor_config.json", tmp_path / "broken")
    with pytest.raises(ValueError, match=r"broken: the features of block 2 are not finite"):
        run("--model", tmp_path / "broken", "--data", flat, "--layers", 1, 2)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Judge, "check", lambda judge, encoder: None)  # as if the image that was tried had numbers
    with pytest.raises(ValueError, match=r"broken: the features of block 2 are not finite"):
        run("--model", tmp_path / "broken", "--data", flat, "--layers", 1, 2)


def test_few_images__are_refused_or_said_nothing_of(run, pretrained, flat, log):
    """The rank of three images is 2 at most, whatever the encoder."""
    for number in (3, 4):
        (flat / f"{number}.png").unlink()
    _, content = run("--model", pretrained, "--data", flat)
    assert content["rows"][0]["figures"]["effective_rank"] <= 2
    assert "collapsed" not in log()
    for number in (1, 2):
        (flat / f"{number}.png").unlink()
    with pytest.raises(ValueError, match="flat has only one image to evaluate on.*`held_out`"):
        run("--model", pretrained, "--data", flat)


def test_mistakes__are_found_before_any_work(run, pretrained, folder, tmp_path, tiny_model):
    with pytest.raises(ValueError, match="`model` is missing"):
        EvaluationArguments()
    with pytest.raises(ValueError, match="more than once"):
        EvaluationArguments(model=["a", "a"])
    with pytest.raises(ValueError, match="`model` has a more than once"):
        EvaluationArguments(model=["a", "./a/"])
    with pytest.raises(ValueError, match="`few_labels` needs labels"):
        EvaluationArguments(model=["a"], task="images", few_labels=[5])
    with pytest.raises(OSError, match="nowhere"):
        run("--model", pretrained, tmp_path / "nowhere", "--data", folder)
    tiny_model(num_channels=5).save_pretrained(tmp_path / "deep")  # does not take pictures in colour
    MAEImageProcessor.for_image_size(32, num_channels=5).save_pretrained(tmp_path / "deep")
    with pytest.raises(ValueError, match=r"deep does not suit .*data"):
        run("--model", pretrained, tmp_path / "deep", "--data", folder)
    with pytest.raises(ValueError, match="`layers` 7"):
        run("--model", pretrained, "--data", folder, "--layers", 7)
    assert not (tmp_path / "out").exists()


def opened(data, **settings):
    return open_evaluated(EvaluationArguments(model=["a"], data=str(data), **settings), MAEImageProcessor())


@pytest.fixture
def masked(tmp_path):
    """Returns a function that makes a folder of images with masks of the classes 0 and another."""

    def make(count, other=1):
        for name in ("images", "masks"):
            (tmp_path / "masked" / name).mkdir(parents=True)
            for number in range(count):
                mask = PIL.Image.fromarray(other * np.eye(8, dtype=np.uint8))
                mask.save(tmp_path / "masked" / name / f"{number:02}.png")
        return tmp_path / "masked"

    return make


def test_masks__are_not_evaluated_on_the_images_that_probes_are_trained_on(masked):
    with pytest.raises(ValueError, match="has no images to evaluate on: set `held_out`"):
        opened(masked(3), held_out=0)


def test_masks__classes_may_have_names_so_that_numbers_may_be_left_out(masked, tmp_path):
    data = masked(3, other=2)
    with pytest.raises(ValueError, match="set `class_names`"):
        opened(data)
    (tmp_path / "names.txt").write_text("ground\nwater\ntrees\n")
    assert opened(data, class_names=[str(tmp_path / "names.txt")]).num_labels == 3
    with pytest.raises(ValueError, match="has the class 2, but there are 2 `class_names`"):
        opened(data, class_names=["ground", "water"])


@pytest.mark.parametrize("labels", [{"label": [0, 1] * 12}, {}])
def test_data__with_a_split_to_evaluate_on_alone(tmp_path, labels):
    content = io.BytesIO()
    picture().save(content, "PNG")
    table = pa.table({"image": [{"bytes": content.getvalue(), "path": None}] * 24, **labels})
    pq.write_table(table, tmp_path / "test-00000.parquet")
    if labels:
        with pytest.raises(ValueError, match="images to evaluate on alone, and none to train on"):
            opened(tmp_path)
    else:
        assert str(opened(tmp_path)).endswith("(test), without labels")


def test_training_images__are_as_many_as_the_table_says(folder, masked):
    """Probes of labels were trained on fewer than it said, those of masks on more than were asked for."""
    labels, masks = opened(folder, max_train_images=20), opened(masked(24), max_train_images=20)
    assert str(labels).endswith("data/val, with 20 to train on")
    assert str(masks).endswith("masked, with 20 to train on")
    assert len(labels.train) == len(masks.train) == len(masks.train_pairs) == 20
    everything = opened(folder).train
    expected = [everything.describe(index) for index in np.arange(20) * 24 // 20]  # evenly spaced
    assert [labels.train.describe(index) for index in range(20)] == expected


def test_settings__that_nothing_would_be_done_with_are_refused(folder, flat, masked):
    pairs, rows = masked(3), "".join(f"{number}.png,{number + 0.5}\n" for number in range(5))
    (flat / "metadata.csv").write_text(f"file_name,label\n{rows}")  # numbers, and no classes
    for data, settings in (
        (flat, {"few_labels": [5]}),
        (flat, {"label_column": ["label"]}),
        (pairs, {"label_column": ["label"]}),
        (pairs, {"few_labels": [5]}),
        (folder, {"reduce_labels": True}),
        (folder, {"class_names": ["a", "b", "c"]}),
    ):
        (name,) = settings
        with pytest.raises(ValueError, match=f"`{name}` needs (labels|masks).* but `task` is"):
            opened(data, **settings)
    for data, settings in ((flat, {"max_train_images": 20}), (folder, {"group_by": "folder", "task": "images"})):
        with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is for labels or masks"):
            opened(data, **settings)


# ----------------------------------------------------------------------------------------------------------------------
# Known answers


@pytest.fixture
def three_models(tmp_path):
    """Folders of an encoder that gives the same for all images, of one with random weights, and of a trained one."""
    processor = MAEImageProcessor.from_pretrained(RELEASED)
    random = MAEForPreTraining(MAEConfig.from_pretrained(RELEASED))
    collapsed = MAEForPreTraining(MAEConfig.from_pretrained(RELEASED))
    with torch.no_grad():
        collapsed.mae.layernorm.weight.zero_()
        collapsed.mae.layernorm.bias.normal_()
    for name, model in (("collapsed", collapsed), ("random", random)):
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    return [str(tmp_path / "collapsed"), str(tmp_path / "random"), str(RELEASED)]


@pytest.mark.slow
def test_collapsed_random_and_trained__are_told_apart_by_each_figure(three_models, tmp_path, log):
    for split, count in (("train", 12), ("test", 10)):
        images = open_images(split=split)
        for label in range(10):
            place = tmp_path / "data" / {"train": "train", "test": "val"}[split] / str(label)
            place.mkdir(parents=True)
            for index in np.flatnonzero(images.labels == label)[:count]:
                images[index].save(place / f"{index}.png")
    args = {"model": three_models, "data": str(tmp_path / "data"), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    collapsed, random, trained = (row.figures for row in evaluate(EvaluationArguments(**args, disable_tqdm=True)).rows)
    for name in ("knn_accuracy", "linear_accuracy", "attentive_accuracy"):
        assert collapsed[name] == pytest.approx(0.1), name  # one class for all
        assert collapsed[name] + 0.2 < random[name] < trained[name], name
    assert collapsed["effective_rank"] == 1
    assert 5 < random["effective_rank"] < trained["effective_rank"] - 5
    assert collapsed["twin_retrieval"] < random["twin_retrieval"] < trained["twin_retrieval"]
    assert collapsed["mean_cosine"] > 0.999 > random["mean_cosine"] > trained["mean_cosine"]
    assert f"{three_models[0]}, block 4" in log()
    assert f"{three_models[1]}, block" not in log()
