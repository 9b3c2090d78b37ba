# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Labels: tables, several an image, numbers, weights of classes; figures; evaluation of a finished classifier."""

import csv
import errno
import io
import json
import re
import shutil
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import picture
from PIL import Image

from hf_mae import MAEForImageClassification, MAEImageProcessor
from hf_mae.data.label_values import encode_labels
from hf_mae.data.labels import (
    align_all_labels,
    has_label,
    names_of_labels,
    number_labels,
    open_labelled,
    open_with_labels,
)
from hf_mae.data.sources import open_images
from hf_mae.evaluation.classification_metrics import (
    average_precision,
    confusion_sheet,
    multi_label_figures,
    regression_figures,
)
from hf_mae.finetuning import classification
from hf_mae.finetuning.classification import balanced_weights, finetune_command, weighted_loss
from hf_mae.modeling.reading_mae import ReadingSettings

# ----------------------------------------------------------------------------------------------------------------------
# Evaluation of a finished classifier


def test_confusions__of_two_classes_leave_room_for_the_title():
    """The names of the columns were written over it, and it was cut off at the edge."""
    sheets = [
        np.array(confusion_sheet(np.array(counts), ["0", "1"])) for counts in ([[3, 0], [0, 1]], [[0, 3], [1, 0]])
    ]
    assert np.array_equal(sheets[0][:18], sheets[1][:18])
    title = np.flatnonzero((sheets[0][:18] < 128).any(axis=(0, 2)))
    longer = np.array(confusion_sheet(np.eye(9, dtype=int), [f"a long name {number}" for number in range(9)]))
    assert np.array_equal(title, np.flatnonzero((longer[:18] < 128).any(axis=(0, 2))))  # all of it, and nothing else


@pytest.fixture
def classifier(call, short, tmp_path):
    call(finetune_command, *short, "--num_train_epochs", 6, "--learning_rate", "1e-2", "--eval_strategy", "no")
    return tmp_path / "out"


def read_predictions(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_eval_only__gives_figures_confusions_and_predictions(call, classifier, folder, tmp_path):
    shutil.rmtree(folder / "val" / "blue")  # the numbers of the classes still are the model's
    (folder / "val" / "red" / "0.png").rename(folder / "val" / "green" / "wrong.png")
    (folder / "val" / "green" / "broken.png").write_bytes(b"no picture")
    arguments = ["--model_name_or_path", classifier, "--data", folder, "--eval_only", "--output_dir", tmp_path / "eval"]
    printed = call(finetune_command, *arguments)
    figures = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["metrics"]
    assert figures["eval_accuracy"] == pytest.approx(7 / 8)
    assert figures["eval_accuracy_green"] == pytest.approx(4 / 5)
    assert figures["eval_accuracy_red"] == 1
    assert figures["eval_balanced_accuracy"] == pytest.approx(0.9)
    assert figures["eval_accuracy_blue"] is None
    assert "8 images, 8 with a label" in printed
    rows = read_predictions(tmp_path / "eval")
    assert len(rows) == 8
    wrong = next(row for row in rows if row["file"].endswith("wrong.png"))
    assert (wrong["label"], wrong["prediction"]) == ("green", "red")
    assert sum(float(wrong[name]) for name in ("blue", "green", "red")) == pytest.approx(1, abs=1e-4)
    assert Image.open(tmp_path / "eval" / "confusion.png").width > 100
    assert not list((tmp_path / "eval").glob("*.safetensors"))


@pytest.mark.slow
def test_eval_only__predicts_pictures_without_labels(call, classifier, folder, tmp_path):
    for number, name in enumerate(("blue", "red")):
        shutil.copy(folder / "val" / name / "1.png", tmp_path / f"{number}.png")
    (tmp_path / "new").mkdir()
    for number in (0, 1):
        (tmp_path / f"{number}.png").rename(tmp_path / "new" / f"{number}.png")
    arguments = ["--model_name_or_path", classifier, "--data", tmp_path / "new", "--eval_only"]
    call(finetune_command, *arguments, "--output_dir", tmp_path / "eval")
    rows = read_predictions(tmp_path / "eval")
    assert [row["prediction"] for row in rows] == ["blue", "red"]
    assert "label" not in rows[0]
    assert not (tmp_path / "eval" / "evaluation.json").exists()


@pytest.mark.slow
def test_eval_only__says_that_the_model_was_trained_on_these_images(call, classifier, folder, tmp_path, log):
    """Without splits all images are evaluated on, and their accuracy was taken for that of new images."""
    arguments = ["--model_name_or_path", classifier, "--eval_only", "--output_dir", tmp_path / "eval"]
    call(finetune_command, *arguments, "--data", folder)
    call(finetune_command, *arguments, "--data", folder / "val")
    assert "was trained on" not in log()
    call(finetune_command, *arguments, "--data", f"{folder / 'train'}/")
    assert f"also those that {classifier} was trained on. Their figures are higher than those of new images" in log()


def test_eval_only__says_the_figures_although_the_disk_is_full(tiny_config, folder, tmp_path, monkeypatch, capsys):
    names = ("blue", "green", "red")
    config = tiny_config(id2label=dict(enumerate(names)), label2id={name: n for n, name in enumerate(names)})
    MAEForImageClassification(config).save_pretrained(tmp_path / "model")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "model")

    def full(*others):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(classification, "_write_predictions", full)
    arguments = ["--model_name_or_path", tmp_path / "model", "--data", folder, "--output_dir", tmp_path / "eval"]
    with pytest.raises(OSError, match="No space left"):
        finetune_command([*map(str, arguments), "--eval_only", "--use_cpu"], prog="hf-mae finetune")
    assert re.search(r"^eval_accuracy +[01]\.\d{4}$", capsys.readouterr().out, re.M)


def test_predictions__that_cannot_be_written_leave_the_table_before(tmp_path):
    path, names = tmp_path / "predictions.csv", ["a", "b"]
    path.write_text("whole")
    with pytest.raises(ValueError, match="shorter"):  # after a row
        classification._write_predictions(
            path, ["0.png", "1.png"], np.array([[0.25, 0.75]]), None, names, classification.SINGLE
        )
    assert path.read_text() == "whole"


def test_eval_only__gives_figures_also_of_images_of_one_class(tiny_config, folder, tmp_path):
    """They were predicted as if they had no label."""
    for name in ("blue", "green"):
        shutil.rmtree(folder / "val" / name)
    names = {"id2label": dict(enumerate(("blue", "green", "red"))), "label2id": {"blue": 0, "green": 1, "red": 2}}
    MAEForImageClassification(tiny_config(**names)).save_pretrained(tmp_path / "classifier")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "classifier")
    arguments = ["--model_name_or_path", tmp_path / "classifier", "--data", folder, "--output_dir", tmp_path / "eval"]
    finetune_command([*map(str, arguments), "--eval_only", "--use_cpu"], prog="hf-mae finetune")
    rows = read_predictions(tmp_path / "eval")
    assert [row["label"] for row in rows] == ["red"] * 4
    figures = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["metrics"]
    assert figures["eval_accuracy"] == sum(row["prediction"] == "red" for row in rows) / 4


# ----------------------------------------------------------------------------------------------------------------------
# Labels of other kinds


def write_table(folder, rows, name="metadata.csv"):
    """Moves the pictures of each split into one folder, with a table of what `rows` makes of colour and number."""
    for split in ("train", "val"):
        table = []
        for path in sorted((folder / split).rglob("*.png")):
            colour, new = path.parent.name, f"{path.parent.name}-{path.name}"
            path.rename(folder / split / new)
            table.append({"file_name": new, **rows(colour, int(path.stem))})
        for place in [path for path in (folder / split).iterdir() if path.is_dir()]:
            place.rmdir()
        with open(folder / split / name, "w") as file:
            if name.endswith(".csv"):
                writer = csv.DictWriter(file, list(table[0]))
                writer.writeheader()
                writer.writerows(table)
            else:
                file.writelines(json.dumps(row) + "\n" for row in table)


def test_eval_only__columns_of_some_of_several_classes_are_refused(tiny_config, folder, tmp_path):
    """A class without a column was taken for absent from all pictures: finding it counted as a mistake."""
    write_table(folder, lambda colour, number: {name: int(name == colour) for name in ("red", "blue", "green")})
    names = {"id2label": dict(enumerate(("blue", "green", "red"))), "problem_type": "multi_label_classification"}
    MAEForImageClassification(tiny_config(**names)).save_pretrained(tmp_path / "classifier")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "classifier")
    arguments = ["--model_name_or_path", tmp_path / "classifier", "--data", folder, "--output_dir", tmp_path / "eval"]
    arguments = [*map(str, arguments), "--eval_only", "--use_cpu", "--label_column", "red", "blue"]
    with pytest.raises(ValueError, match=r"`label_column` lacks green, which .*classifier has\."):
        finetune_command(arguments, prog="hf-mae finetune")
    finetune_command([*arguments, "green"], prog="hf-mae finetune")  # in another order
    assert [row["label"] for row in read_predictions(tmp_path / "eval")] == ["blue"] * 4 + ["green"] * 4 + ["red"] * 4


LEARN = ["--num_train_epochs", 8, "--learning_rate", "1e-2", "--eval_strategy", "no", "--save_strategy", "no"]


@pytest.mark.slow
def test_table__of_class_names_and_pictures_without_a_label(call, short, folder, tmp_path, log):
    write_table(folder, lambda colour, number: {"what": "" if number == 3 else colour.upper()})
    call(finetune_command, *short, *LEARN, "--label_column", "what")
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_accuracy"] == 1.0
    assert "3 of 24 images" in log()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["num_images"] == 21
    assert MAEForImageClassification.from_pretrained(tmp_path / "out").config.label2id["RED"] == 2


def labels_of(images):
    """What each picture is labelled by, as its file is called."""
    names = images.label_names or [str(number) for number in range(10)]
    return {images.describe(i).rsplit("/", 1)[-1]: names[label] for i, label in enumerate(images.labels)}


def test_table__kind_of_the_labels_is_that_of_the_training_images(folder):
    """Texts that are all integers in one split only, and ages that are whole in one split only."""
    write_table(folder, lambda colour, number: {"label": "unknown" if number > 5 else number})
    train, val = open_labelled(str(folder))
    assert train.label_names == ["0", "1", "2", "3", "4", "5", "unknown"]
    number_labels(train.label_names, train, val)
    assert labels_of(val)["red-3.png"] == "3"
    (folder / "train" / "metadata.csv").write_text(
        (folder / "train" / "metadata.csv").read_text().replace("unknown", "6.5")
    )
    train, val = open_labelled(str(folder))
    assert (train.labels.dtype, val.labels.dtype) == (np.float32, np.float32)
    assert val.labels.reshape(-1).tolist() == [0, 1, 2, 3] * 3


def test_table__counts_before_the_names_of_folders(folder, log):
    """Folders may be patients. Without a column of labels they are classes."""
    for split in ("train", "val"):
        names = sorted(str(path.relative_to(folder / split)) for path in (folder / split).rglob("*.png"))
        rows = [f"{name},{'odd' if int(name[-5]) % 2 else 'even'}" for name in names]
        (folder / split / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    images = open_labelled(str(folder))[1]
    assert labels_of(images)["3.png"] == "odd"
    assert "Labels are those of the column label" in log()
    (folder / "val" / "metadata.csv").write_text("file_name,age\n")
    assert open_labelled(str(folder / "val"), held_out=0)[0].label_names == ["blue", "green", "red"]


def test_table__has_the_labels_of_pages_and_windows(tmp_path):
    """They had those of the folders, whatever the table and `label_column` said."""
    pytest.importorskip("tifffile")
    for number in range(4):
        path = tmp_path / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        page = Image.new("L", (8, 8), number)
        page.save(path, save_all=True, append_images=[page] * number)
    rows = [f"{'ab'[number % 2]}/{number}.tif,{number // 2},{3 - number}" for number in range(4)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label,rank", *rows]))

    def opened(**options):
        return open_with_labels(str(tmp_path), "train", **options)

    pages = {"reading": ReadingSettings(pages="images")}
    windows = {"reading": ReadingSettings(pages="first"), "tile": 4}
    assert opened(**pages).labels.tolist() == [0, 1, 1, 1, 0, 0, 1, 1, 1, 1]  # a/0, a/2, b/1, b/3
    assert opened(**pages, label_column=["rank"]).labels.tolist() == [3, 1, 1, 1, 2, 2, 0, 0, 0, 0]
    assert opened(**windows).labels.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="must have the column file_name and other"):
        opened(**pages, label_column=["other"])


def test_split_of_one_class__is_labelled_by_its_folder_also_as_pages_or_windows_or_of_several_classes(tmp_path):
    """Pages and windows had no label, and training images were evaluated on in their place; with several classes an
    image the split had labels of another shape than the training images."""
    pytest.importorskip("tifffile")
    for number, place in enumerate(("train/a", "train/b", "train/a", "train/b", "val/b", "val/b")):
        path = tmp_path / place / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        page = Image.new("L", (8, 8), number)
        page.save(path, save_all=True, append_images=[page])
    kinds = ({"reading": ReadingSettings(pages="images")}, {"reading": ReadingSettings(pages="first"), "tile": 4})
    for options, parts in zip(kinds, (2, 4), strict=True):
        train, test = open_labelled(str(tmp_path), **options)
        assert train.labels.tolist() == [0] * 2 * parts + [1] * 2 * parts
        assert test.label_names == ["a", "b"]
        assert test.labels.tolist() == [1] * 2 * parts
    train, test = open_labelled(str(tmp_path), problem_type="multi_label_classification")
    assert train.labels.tolist() == [[1, 0]] * 2 + [[0, 1]] * 2
    assert test.labels.tolist() == [[0, 1]] * 2


def test_label_column__is_refused_where_no_such_column_is_read(tmp_path):
    """Another column, the `.cls` files or the embedded labels were taken instead, in silence."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    columns = {"image": [buffer.getvalue()] * 2, "cat": [0, 1], "dog": [1, 1], "label": [0, 1]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, content in (("a.png", buffer.getvalue()), ("a.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert open_with_labels(str(tmp_path / "train.parquet"), "train", ["dog"]).labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match="`label_column` must be one column of .*train.parquet, got cat, dog"):
        open_with_labels(str(tmp_path / "train.parquet"), "train", ["cat", "dog"])
    for data in (str(tmp_path / "train.tar"), None):
        with pytest.raises(ValueError, match="`label_column` needs a table"):
            open_with_labels(data, "train", ["cat"])
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,cat\na.png,1")
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train.tar").unlink()
    with pytest.raises(ValueError, match="`label_column` of finetune, probe and evaluate takes"):  # others have none
        open_with_labels(str(tmp_path), "train")


def test_table__may_be_a_parquet_file(folder):
    table = {
        "file_name": [f"{name}/{n}.png" for name in ("blue", "green", "red") for n in range(4)],
        "label": [0, 1] * 6,
    }
    pq.write_table(pa.table(table), folder / "val" / "metadata.parquet")
    images = open_labelled(str(folder / "val"), held_out=0)[0]
    assert dict(zip(table["file_name"], table["label"], strict=True)) == {
        f"{path.parent.name}/{path.name}": int(label)
        for path, label in zip(map(Path, map(images.describe, range(12))), images.labels, strict=True)
    }
    (folder / "val" / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="metadata.parquet"):
        open_labelled(str(folder / "val"), held_out=0)


def test_table__blanks_and_backslashes_do_not_count(folder):
    rows = [rf"blue\{number}.png, " "cat " "" if number else r'blue\0.png,"cat, old"' for number in range(4)]
    for name in ("green", "red"):
        shutil.rmtree(folder / "val" / name)
    (folder / "val" / "metadata.csv").write_text("\n".join(["file_name , label", *rows]))
    images = open_labelled(str(folder / "val"), held_out=0)[0]
    assert labels_of(images) == {"0.png": "cat, old", "1.png": "cat", "2.png": "cat", "3.png": "cat"}


def test_table__accents_may_be_apart_from_their_letters(tmp_path):
    """As files from a Mac have them in their names, and rows that were written elsewhere do not."""
    names = {"Müller.png": "cat", "bär/Bär.png": "dog"}
    for name in names:
        path = tmp_path / unicodedata.normalize("NFD", name)
        path.parent.mkdir(exist_ok=True)
        picture(0).save(path)
    rows = [f"{unicodedata.normalize('NFC', name)},{label}" for name, label in names.items()]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]), encoding="utf-8")
    found = labels_of(open_labelled(str(tmp_path), held_out=0)[0])
    assert {unicodedata.normalize("NFC", name): label for name, label in found.items()} == {
        "Müller.png": "cat",
        "Bär.png": "dog",
    }


def test_table__rows_without_a_file_are_named_and_a_table_that_is_read_is_not_called_left_out(tmp_path, caplog):
    """They were left out in silence. Rows of another split have no file among those of this one, and are no mistake."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        picture(0).save(tmp_path / split / "0.png")
    names = ["train/0.png", "val/0.png", "train/1.png", "train/2.png"]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *(f"{name},cat" for name in names)]))
    assert [len(images) for images in open_labelled(str(tmp_path))] == [1, 1]
    shutil.copy(tmp_path / "metadata.csv", tmp_path / "train" / "metadata.csv")
    assert open_images(str(tmp_path / "train")).notes == []
    (said,) = [message for message in caplog.messages if "rows" in message]
    assert said.startswith(f"2 rows of {tmp_path / 'metadata.csv'} name no image that is there, first train/1.png")


TABLES = {
    "two rows for 0.png": "file_name,label\n0.png,cat\n0.png,dog\n",
    "cells are separated by semicolons": "file_name;label\n0.png;cat\n",
    "line 2 has more cells": "file_name,label\n0.png,cat,dog\n",
    "1 of 2 rows .* have no file_name": "file_name,label\n0.png,cat\n,dog\n",
    "it has name, label": "name,label\n0.png,cat\n",
}


@pytest.mark.parametrize("problem", TABLES)
def test_table__faults_are_named(problem, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "metadata.csv").write_text(TABLES[problem])
    with pytest.raises(ValueError, match=problem):
        open_labelled(str(tmp_path))


def test_labels__that_are_missing_are_asked_for(tmp_path):
    """Whether or not the kind is known: probes want classes."""
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    for problem_type in (None, "single_label_classification"):
        with pytest.raises(ValueError, match="has no labels.* or next to a metadata.csv"):
            open_labelled(str(tmp_path), problem_type=problem_type)


def test_table__that_can_not_be_read_is_named(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "metadata.csv").write_bytes("file_name,label\n0.png,gr\u00fcn\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata\.csv is not in UTF-8"):
        open_labelled(str(tmp_path))
    (tmp_path / "metadata.csv").unlink()
    for text, problem in (('{"file_name": "0.png"}\n{no', "line 2 is no JSON"), ("[1]", "line 1 is no JSON object")):
        (tmp_path / "metadata.jsonl").write_text(text)
        with pytest.raises(ValueError, match=rf"metadata\.jsonl: {problem}"):
            open_labelled(str(tmp_path))


@pytest.mark.slow
def test_table__of_several_labels_an_image(call, short, folder, tmp_path):
    def labels(colour, number):
        return {"labels": {"blue": ["cold"], "green": ["cold", "plant"], "red": []}[colour]}

    write_table(folder, labels, "metadata.jsonl")
    call(finetune_command, *short, *LEARN, "--mixup", 0.2)
    model = MAEForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == {0: "cold", 1: "plant"}
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_mean_average_precision"] == pytest.approx(1)
    assert results["eval_f1"] > 0.9
    assert results["eval_average_precision_plant"] == pytest.approx(1)
    arguments = ["--model_name_or_path", tmp_path / "out", "--data", folder, "--eval_only"]
    call(finetune_command, *arguments, "--output_dir", tmp_path / "eval")
    again = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["metrics"]
    assert again["eval_f1"] == pytest.approx(results["eval_f1"], abs=1e-4)


@pytest.mark.slow
def test_table__of_numbers_in_their_own_unit(call, short, folder, tmp_path):
    write_table(folder, lambda colour, number: {"age": {"blue": 1000.5, "green": 2000.5, "red": 3000.5}[colour]})
    printed = call(finetune_command, *short[:-6], "--per_device_train_batch_size", 8, *LEARN, "--label_column", "age")
    assert "1 number(s)" in printed
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_r2"] > 0.9
    assert results["eval_mae"] < 250
    assert results["eval_mae_age"] == pytest.approx(results["eval_mae"])
    arguments = ["--model_name_or_path", tmp_path / "out", "--data", folder, "--label_column", "age", "--eval_only"]
    call(finetune_command, *arguments, "--output_dir", tmp_path / "eval")
    again = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["metrics"]
    assert again["eval_mae"] == pytest.approx(results["eval_mae"], rel=1e-3)
    row = read_predictions(tmp_path / "eval")[0]
    assert float(row["age"]) == pytest.approx(float(row["label"]), abs=1000)


def test_numbers__are_neither_cut_nor_weighted(call, short, folder, tmp_path):
    """And an earlier run stays, though it was to be overwritten."""
    write_table(folder, lambda colour, number: {"label": number + 0.5})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="`cutmix` needs classes"):
        call(finetune_command, *short, "--cutmix", 1, "--overwrite_output_dir")
    with pytest.raises(ValueError, match="`class_weights` needs classes"):
        call(finetune_command, *short, "--class_weights", "balanced", "--overwrite_output_dir")
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_balanced_weights__make_rare_classes_count(call, pretrained, folder, tmp_path):
    for path in [*(folder / "train" / "red").iterdir()][1:]:
        path.unlink()
    labels = np.repeat([0, 1, 2], [8, 8, 1])
    weights = balanced_weights(labels, "single_label_classification", 3)
    assert [
        weights[labels == each].sum() if False else float(weights[each] * (labels == each).sum()) for each in range(3)
    ] == (pytest.approx([17 / 3] * 3))
    several = balanced_weights(
        np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=np.float32), "multi_label_classification", 2
    )
    assert several.tolist() == pytest.approx([1 / 3, 3])
    logits, target = torch.tensor([[2.0, 0, 0], [0, 1, 0]]), torch.tensor([0, 2])
    each = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    expected = (each * torch.tensor([1.0, 3.0])).mean()
    torch.testing.assert_close(weighted_loss(logits, target, torch.tensor([1.0, 2, 3]), 0.0), expected)
    arguments = [
        "--model_name_or_path",
        pretrained,
        "--data",
        folder,
        "--output_dir",
        tmp_path / "out",
        "--max_steps",
        1,
    ]
    call(finetune_command, *arguments, "--class_weights", "balanced", "--per_device_train_batch_size", 8)


@pytest.mark.slow
def test_class_weights__are_those_of_the_images_that_are_trained_on(call, short, monkeypatch):
    seen = []

    def weigh(labels, *args):
        seen.append(labels)
        return balanced_weights(labels, *args)

    monkeypatch.setattr(classification, "balanced_weights", weigh)
    arguments = ["--class_weights", "balanced", "--max_train_images", 5, "--max_steps", 1, "--seed", 3]
    call(finetune_command, *short, *arguments)
    chosen = np.random.default_rng(3).permutation(24)[:5]
    assert list(seen[0]) == list(np.repeat([0, 1, 2], 8)[chosen])


def test_values__become_labels_of_the_kind_that_they_look_like():
    classes, names = encode_labels(["dog", None, "cat", "dog"])
    assert (classes.tolist(), names) == ([1, -1, 0, 1], ["cat", "dog"])
    assert encode_labels([3, 0, None])[0].tolist() == [3, 0, -1]
    assert encode_labels(["3", "0", ""], from_text=True)[0].tolist() == [3, 0, -1]
    several, names = encode_labels([["b", "a"], [], None])
    assert names == ["a", "b"]
    assert several[:2].tolist() == [[1, 1], [0, 0]]
    assert np.isnan(several[2]).all()
    texts, names = encode_labels(["b; a", "b"], "multi_label_classification", from_text=True)
    assert (texts.tolist(), names) == ([[1, 1], [0, 1]], ["a", "b"])
    assert encode_labels(["0.5", "2"], from_text=True)[0].tolist() == [[0.5], [2]]
    assert encode_labels(["1", "2"], "regression", from_text=True)[0].tolist() == [[1], [2]]
    columns, names = encode_labels([["0", "1"], ["1", ""]], columns=["mass", "fluid"], from_text=True)
    assert names == ["mass", "fluid"]
    assert columns[0].tolist() == [0, 1]
    assert np.isnan(columns[1, 1])
    with pytest.raises(ValueError, match="`problem_type` must be one of"):
        encode_labels(["a"], "classes")
    with pytest.raises(ValueError, match="must hold numbers"):
        encode_labels(["high"], "regression")


@pytest.mark.parametrize(
    ("texts", "labels", "names"),
    [
        (["1", "-2", "+3"], [1, -2, 3], None),
        (["01", "1", "02"], [0, 2, 1], ["01", "02", "1"]),  # codes, of which two would fall together
        (["1_1", "1_11", "11_1"], [1, 2, 0], ["11_1", "1_1", "1_11"]),
        (["1", "2", "nan"], [1, 2, -1], None),  # as pandas writes what is missing
        (["nan", "nan"], [0, 0], ["nan"]),
        (["1.5", ".5", "1e1"], [[1.5], [0.5], [10]], ["label"]),
        (["1e", "2"], [0, 1], ["1e", "2"]),
    ],
)
def test_texts__are_numbers_where_all_are_written_so(texts, labels, names):
    found, found_names = encode_labels(texts, from_text=True)
    assert (found.tolist(), found_names) == (labels, names)


def test_classes__called_by_numbers_that_do_not_count_from_zero(folder):
    """Stages 1 to 3 or years have no class 0, and none for each number below; equal names are equal classes."""
    write_table(folder, lambda colour, number: {"label": {"blue": 2019, "green": 2021, "red": 2024}[colour]})
    train, test = open_labelled(folder)
    assert names_of_labels(train) == ["2019", "2021", "2024"]
    number_labels(names_of_labels(train), train, test)
    for images in (train, test):
        assert {name: int(label[:4]) for name, label in labels_of(images).items()} == {
            name: {"b": 2019, "g": 2021, "r": 2024}[name[0]] for name in labels_of(images)
        }
    shutil.rmtree(folder / "val")
    train, test = open_labelled(folder, held_out=0.3)
    assert train.label_names == test.label_names == ["2019", "2021", "2024"]
    assert set(train.labels) == {0, 1, 2}


def test_classes__places_from_zero_on_may_be_missing(folder):
    write_table(folder, lambda colour, number: {"label": {"blue": 0, "green": 1, "red": 3}[colour]})
    assert names_of_labels(open_labelled(folder)[0]) == ["0", "1", "2", "3"]


def test_whole_numbers_with_gaps__are_numbers_and_the_log_says_how_they_are_classes(folder, log):
    write_table(folder, lambda colour, number: {"label": "" if number == 0 else {"blue": "1.0"}.get(colour, "2.0")})
    train, _ = open_labelled(folder)
    assert train.labels.dtype == np.float32
    assert "If they are classes, set `problem_type` to single_label_classification" in log()
    assert open_labelled(folder, problem_type="single_label_classification")[0].labels.dtype == np.int64


def test_classes__may_be_whole_floats():
    """What pandas makes of a column of integers when one is missing."""
    assert encode_labels([1.0, 2.0, None], "single_label_classification")[0].tolist() == [1, 2, -1]
    with pytest.raises(ValueError, match=r"got 0\.5"):
        encode_labels([1.0, 0.5], "single_label_classification")
    with pytest.raises(ValueError, match=r"got \['a', 'b'\]"):
        encode_labels([["a", "b"]], "single_label_classification")


def test_lists__of_zeros_and_ones_have_a_place_for_each_class():
    """As a class can't be named twice, `[0, 0, 1]` is no list of classes."""
    labels, names = encode_labels([[1, 0, 1], [0, 0, 1], None])
    assert names == ["0", "1", "2"]
    assert labels[:2].tolist() == [[1, 0, 1], [0, 0, 1]]
    assert np.isnan(labels[2]).all()
    assert encode_labels([[0, 1], [1]])[0].tolist() == [[1, 1], [0, 1]]
    assert encode_labels([[7, 7, 2]])[0].tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="one length: got 2, 3"):
        encode_labels([[1, 0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"by texts or integers, got 0\.1"):
        encode_labels([[0.1, 0.7]], "multi_label_classification")
    with pytest.raises(ValueError, match=r"has the class 2, which is not in \[0, 2\)"):
        encode_labels([[1], [2, 0]], names=["wet", "old"])
    numbers, names = encode_labels([[0.5, 2], None], "regression", ["place"])
    assert names == ["place_0", "place_1"]
    assert numbers[0].tolist() == [0.5, 2]
    assert np.isnan(numbers[1]).all()


def test_several_columns__are_of_the_kind_that_is_asked_for():
    rows = [["0", "1"], ["1", "2"]]
    assert encode_labels(rows, "regression", ["x", "y"])[0].tolist() == [[0, 1], [1, 2]]
    with pytest.raises(ValueError, match="must hold 0 or 1 .*, got 2"):
        encode_labels(rows, "multi_label_classification", ["x", "y"])
    with pytest.raises(ValueError, match="Name one column. Only fine-tuning takes several"):  # no setting of a probe
        encode_labels(rows, "single_label_classification", ["x", "y"])
    with pytest.raises(ValueError, match="infinite"):
        encode_labels(["1", "inf"], "regression")


def test_alignment__goes_by_name_and_keeps_what_has_no_label(folder):
    images = open_images(str(folder), "test")
    images.labels[:2] = -1
    align_all_labels(images, ["red", "brown", "green", "blue"])
    assert images.labels.tolist() == [-1] * 2 + [3] * 2 + [2] * 4 + [0] * 4
    images.labels = np.array([[1, 0]] * 11 + [[np.nan] * 2], dtype=np.float32)
    images.label_names = ["b", "a"]
    align_all_labels(images, ["a", "b", "c"])
    assert images.labels[0].tolist() == [0, 1, 0]
    assert has_label(images).tolist() == [True] * 11 + [False]
    with pytest.raises(ValueError, match="lack: b"):
        align_all_labels(images, ["a", "c"])


def test_alignment__integers_are_names_where_names_are_integers(folder):
    """A split whose texts are all integers is read as such, and another one is not."""
    images = open_images(str(folder), "test")
    images.labels, images.label_names = np.array([1, 2, 3, -1] * 3), None
    align_all_labels(images, ["1", "2", "3", "unknown"])
    assert images.labels.tolist() == [0, 1, 2, -1] * 3
    images.labels, images.label_names = np.array([0, 1, 2] * 4), None
    align_all_labels(images, ["cat", "dog", "fish"])
    assert images.labels.tolist() == [0, 1, 2] * 4
    images.labels, images.label_names = np.array([7, 1, 2] * 4), None
    with pytest.raises(ValueError, match="has the classes 7,"):
        align_all_labels(images, ["0", "1", "2"])


def test_alignment__numbers_that_are_missing_are_not_made_up(folder):
    images = open_images(str(folder), "test")
    images.labels, images.label_names = np.array([[30.5]] * 12, dtype=np.float32), ["age"]
    with pytest.raises(ValueError, match="lacks the numbers height"):
        align_all_labels(images, ["age", "height"])


def test_figures__worked_out_by_hand():
    # Ranks of the hits: 1 and 3, so (1/1 + 2/3) / 2.
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0])) == pytest.approx(5 / 6)
    # Equal scores share the rank 3, at which two of three are hits.
    assert average_precision(np.array([0.5, 0.5, 0.5]), np.array([1, 0, 1])) == pytest.approx(2 / 3)
    assert np.isnan(average_precision(np.array([0.5]), np.array([0])))
    scores = np.array([[0.9, 0.2], [0.8, 0.6], [0.1, 0.7]])
    figures = multi_label_figures(scores, np.array([[1, 0], [0, 1], [0, 0]]))
    assert figures == pytest.approx({"mean_average_precision": (1 + 1 / 2) / 2, "f1": 2 * 2 / 6, "f1_by_class": 2 / 3})
    numbers = regression_figures(np.array([[1.0], [2], [4]]), np.array([[1.0], [2], [3]]))
    assert numbers == pytest.approx({"mae": 1 / 3, "r2": 1 - 1 / 2})


def test_columns_of_data_sets__have_the_same_kinds(tmp_path):
    """Parquet files with texts, lists of classes and numbers, of which whole ones look like classes."""
    import datasets

    columns = {
        "kind": datasets.Value("string"),
        "tags": datasets.Sequence(datasets.ClassLabel(names=["wet", "old"])),
        "age": datasets.Value("float32"),
        "count": datasets.Value("int64"),
    }
    rows = {"kind": ["b", "a", None], "tags": [[1], [0, 1], []], "age": [0.5, 2, None], "count": [7, 0, 2]}
    rows["image"] = [Image.new("L", (8, 8))] * 3
    features = datasets.Features({"image": datasets.Image(), **columns})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")

    def opened(column, problem_type=None):
        return open_labelled(str(tmp_path / "train.parquet"), [column], problem_type, held_out=0)[0]

    images = opened("kind")
    assert (images.labels.tolist(), images.label_names, len(images)) == ([1, 0], ["a", "b"], 2)
    images = opened("tags")
    assert (images.labels.tolist(), images.label_names) == ([[0, 1], [1, 1], [0, 0]], ["wet", "old"])
    images = opened("age")
    assert (images.labels.tolist(), images.label_names) == ([[0.5], [2]], ["age"])
    assert opened("count").labels.tolist() == [7, 0, 2]
    assert opened("count", "regression").labels.tolist() == [[7], [0], [2]]
    with pytest.raises(ValueError, match=r"holds classes \(wet, old\)"):
        opened("tags", "regression")


def test_columns_of_parquet__are_read_as_the_kind_that_is_asked_for(tmp_path):
    """Files of pandas and others, which know nothing of `datasets`."""
    picture = tmp_path / "picture.png"
    Image.new("L", (8, 8)).save(picture)
    cell = {"bytes": picture.read_bytes(), "path": "a.png"}
    columns = {"age": ["30", "4.5"], "change": [-5, 3], "tags": ["cat;dog", "dog"], "place": [[0.5, 1.0], [2.0, 3.0]]}
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": pa.array([cell, cell]), **columns}), file)

    def opened(column, problem_type):
        return open_labelled(str(file), [column], problem_type, held_out=0)[0]

    assert opened("age", "regression").labels.tolist() == [[30], [4.5]]
    assert opened("change", "regression").labels.tolist() == [[-5], [3]]
    assert opened("tags", "multi_label_classification").labels.tolist() == [[1, 1], [0, 1]]
    assert opened("place", "regression").labels.tolist() == [[0.5, 1], [2, 3]]
    with pytest.raises(ValueError, match="must be a text or an integer"):
        opened("place", "single_label_classification")
    pq.write_table(pa.table({"image": pa.array([cell, cell])}), file)
    assert open_images(str(file)).labels is None
