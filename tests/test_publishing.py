# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Model cards and pushes. Pushes go to a stand-in for the Hub, see hub_stand_in.py, and models are loaded from it."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import TINY, no_room_beyond, picture
from hub_stand_in import HubStandIn
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.utils import cached_file

import hf_mae
from hf_mae import MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.conversion.command import convert_command
from hf_mae.finetuning.classification import finetune_command
from hf_mae.pretraining.command import pretrain_command
from hf_mae.publishing.hub import HubPush, link_files, push_command, push_folder
from hf_mae.publishing.model_cards import write_model_card
from hf_mae.publishing.records import read_record, redact, replacing, save_record
from hf_mae.training.run_record import run_record

ROOT = Path(__file__).parents[1]
CODE = {path.name for path in (ROOT / "src" / "hf_mae" / "modeling").glob("*_mae*.py")}
AUTO = "from transformers.models.auto.image_processing_auto import AutoImageProcessor"
LANDS = {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "run.json", *CODE}


@pytest.fixture
def hub(monkeypatch):
    with HubStandIn() as hub:
        monkeypatch.setenv("HF_TOKEN", hub.token)
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield hub


@pytest.fixture
def saved(tiny_model, tmp_path):
    """Returns a folder as pre-training leaves it, with files in it that are not to be pushed."""
    folder = tmp_path / "mae-tiny"
    tiny_model().save_pretrained(folder)
    MAEImageProcessor.for_image_size(32).save_pretrained(folder)
    metrics = {"step": 20, "loss": 0.51, "knn_accuracy": 0.625}
    save_record(folder, {**run_record({"seed": 0}), "hours": 0.5, "metrics": metrics})
    (folder / "metrics.jsonl").write_text('{"step": 10, "loss": 0.9}\n{"step": 20, "loss": 0.51}\n')
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "optimizer.safetensors").write_bytes(b"large")
    (folder / "checkpoint-20").mkdir()
    (folder / "checkpoint-20" / "config.json").write_text("{}")
    write_model_card(folder)
    return folder


def convert(*arguments):
    convert_command([*map(str, arguments)], prog="hf-mae convert")


def push(*arguments):
    push_command([*map(str, arguments)], prog="hf-mae push")


def change_weights(folder, value):
    model = MAEForPreTraining.from_pretrained(folder)
    torch.nn.init.constant_(model.decoder.head.bias, value)
    model.save_pretrained(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Cards


def test_card__metadata_are_those_of_the_hub(saved):
    data = ModelCard.load(saved / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert {"mae", "masked-autoencoder"} <= set(data.tags)
    assert (data.license, data.datasets, data.eval_results) == (None, None, None)
    record = json.loads((saved / "run.json").read_text())
    facts = {"license": "apache-2.0", "dataset": "organisation/images", "data": "images", "data_license": "MIT"}
    save_record(saved, {**record, **facts})
    write_model_card(saved, "me/my-mae")
    card = ModelCard.load(saved / "README.md")
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["organisation/images"])
    (result,) = card.data.eval_results  # written as `model-index`
    assert (card.data.model_name, result.dataset_type) == ("my-mae", "organisation/images")
    assert (result.metric_name, result.metric_value) == ("k-NN accuracy of the features (k = 20)", 0.625)
    assert "images. Licence: MIT" in card.text


def test_record__is_json_where_a_figure_is_no_number(tmp_path):
    """Python reads NaN, other programs do not."""
    save_record(tmp_path, {"metrics": {"eval_loss": math.nan, "worst": [math.inf, 1.5]}, "steps": 3})
    text = (tmp_path / "run.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "metrics": {"eval_loss": None, "worst": [None, 1.5]},
        "steps": 3,
    }


def test_card__says_what_a_loss_and_a_rank_are_worth(saved):
    assert "effective rank" not in (saved / "README.md").read_text()
    record = json.loads((saved / "run.json").read_text())
    figures = {"eval_loss": 0.55, "eval_loss_constant": 0.99, "eval_loss_interpolation": 0.77, "effective_rank": 21.5}
    save_record(saved, {**record, "metrics": {**record["metrics"], **figures}})
    write_model_card(saved)
    text = (saved / "README.md").read_text()
    for row in (
        "| loss on the evaluation images | 0.55 |",
        "| their loss if the same is predicted for every patch | 0.99 |",
        "| their loss if the visible pixels are interpolated | 0.77 |",
        "| effective rank of the features | 21.5 |",
    ):
        assert row in text
    assert "it should be well below theirs. The effective rank says" in text
    assert "at most 32)" in text


def test_card__answers_what_a_stranger_asks(saved, tiny_model):
    text = (saved / "README.md").read_text()
    record = json.loads((saved / "run.json").read_text())
    for fact in (record["command"], record["commit"] or "installed", "0.50 hours", "| training loss | 0.51 |"):
        assert fact in text
    model = tiny_model()
    assert f"| parameters | {model.mae.num_parameters() / 1e6:.2f} M |" in text
    assert "| width | 32 | 16 |" in text
    assert "75 % of the patches hidden" in text
    assert "No licence of the weights is stated" in text
    assert "![loss over steps](loss.png)" in text
    assert (saved / "loss.png").exists()
    assert "reconstructions.png" not in text  # there is none
    assert not re.search(r"\{\{|\}\}|None|Undefined|\n\n\n", text.split("## Citation")[0])


def blocks(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)


@pytest.mark.parametrize("kind", ["pre-training", "classifier"])
def test_card__its_code_runs(saved, tiny_config, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    picture().save("picture.jpg")
    if kind == "classifier":
        MAEForImageClassification(tiny_config(num_labels=3, pooling="class")).save_pretrained(saved)
    write_model_card(saved, "mae-tiny")  # a name on the Hub, and a folder here
    ours, export, stock = blocks(saved)
    found, theirs = {}, {}
    # Up to 5.17 the name in transformers itself is a dummy where torchvision is missing.
    exec(f"{AUTO}\n{ours.replace('import AutoImageProcessor, ', 'import ')}", found)
    exec(export, {})
    exec(stock, theirs)
    inputs = found["image_processor"](picture(), return_tensors="pt")
    outputs = theirs["model"].eval()(**inputs)
    name = "logits" if kind == "classifier" else "last_hidden_state"
    torch.testing.assert_close(outputs[name], found["model"](**inputs)[name], rtol=0, atol=1e-5)
    if kind == "pre-training":
        assert found["outputs"].last_hidden_state.shape == (1, 17, 32)
        assert "(1, 17, 32): the class token, then 16 patches" in ours


def test_card__of_a_classifier(tiny_config, tmp_path):
    MAEForImageClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    save_record(tmp_path, {"metrics": {"eval_accuracy": 0.75}, "dataset": "me/pets", "data": "pets"})
    write_model_card(tmp_path, "me/pets-mae")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [("accuracy", 0.75)]
    assert "AutoModelForImageClassification.from_pretrained" in card.text
    assert 'timm.create_model("local-dir:timm"' in card.text  # the mean of the patches: stock ViT has no such head
    assert "3 classes: LABEL_0, LABEL_1, LABEL_2." in card.text
    assert not re.search(r"\{\{|\}\}|None|Undefined|\n\n\n|^ ", card.text.split("## Citation")[0], re.MULTILINE)


def test_card__shows_no_export_that_would_be_refused(tiny_config, tmp_path):
    model = MAEForImageClassification(tiny_config(num_labels=3, hidden_act="quick_gelu"))
    model.save_pretrained(tmp_path)
    write_model_card(tmp_path)
    assert "AutoModelForImageClassification.from_pretrained" in (text := (tmp_path / "README.md").read_text())
    assert "export_checkpoint" not in text
    with pytest.raises(ValueError, match="has 'gelu' as its activation, this model 'quick_gelu'"):
        hf_mae.export_checkpoint(model, tmp_path / "timm", "timm")


def test_card__of_converted_weights_marks_the_licence(tiny_model, tmp_path):
    model = tiny_model()
    hf_mae.export_checkpoint(model, tmp_path / "mae_pretrain_vit_tiny.pth", "official")
    convert(tmp_path / "mae_pretrain_vit_tiny.pth", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert "come from those that Meta published and are under CC-BY-NC 4.0: no commercial use" in card.text
    assert "converted from `mae_pretrain_vit_tiny.pth` (official)" in card.text
    assert str(tmp_path) not in card.text


def test_card__of_stock_folders_keeps_the_licence(hub, saved, tmp_path):
    save_record(saved, {**read_record(saved), "license": "cc-by-nc-4.0"})
    convert(saved, tmp_path / "vit", "--to", "vit", "--push_to_hub", "me/vit")
    card = ModelCard(hub.repositories["me/vit"]["README.md"].decode())
    assert card.data.license == "cc-by-nc-4.0"
    assert "Weights that hf_mae has converted from `mae-tiny` (in the layout mae)" in card.text
    assert "no commercial use" in card.text


METAS = [
    *("facebook/vit-mae-base", "timm/vit_huge_patch14_224.mae", "hf-hub:timm/vit_base_patch16_224.mae"),
    *("cache/models--facebook--vit-mae-base/snapshots/0123", "downloads/mae_pretrain_vit_base.pth"),
    *("converted", "converted/checkpoint-5", "converted/model.safetensors"),
]


@pytest.mark.parametrize("source", METAS)
def test_license__of_metas_weights_stays_with_what_is_made_of_them(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "converted" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "converted" / "model.safetensors").write_bytes(b"")
    save_record("converted", {"license": "cc-by-nc-4.0"})
    assert run_record({"model_name_or_path": source})["license"] == "cc-by-nc-4.0"


@pytest.mark.parametrize("source", ["ours", "mae_pretrain_vit_mine/out", None])
def test_license__of_others_is_left_to_them(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("ours", "mae_pretrain_vit_mine/out"):
        (tmp_path / folder).mkdir(parents=True)
        save_record(folder, {"license": "mit"})
    assert run_record({"model_name_or_path": source})["license"] is None


def test_license__goes_through_the_hub_and_through_other_layouts(hub, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    save_record(saved, {"license": "cc-by-nc-4.0"})
    push_folder(saved, "me/converted")
    monkeypatch.setattr("hf_mae.publishing.licenses.cached_file", partial(cached_file, cache_dir=tmp_path / "cache"))
    assert run_record({"model_name_or_path": "me/converted"})["license"] == "cc-by-nc-4.0"
    convert(saved, tmp_path / "vit", "--to", "vit")
    assert run_record({"model_name_or_path": str(tmp_path / "vit")})["license"] == "cc-by-nc-4.0"
    assert "under CC-BY-NC 4.0: no commercial use" in (saved / "README.md").read_text()


def test_card__of_a_record_with_holes(saved):
    metrics = {
        "step": 5,
        "loss": float("nan"),
        "knn_accuracy": None,
        "eval_loss": "low",
        "linear_accuracy": float("inf"),
    }
    record = {
        "metrics": metrics,
        "hours": None,
        "versions": None,
        "command": None,
        "dataset": "me/images",
        "data": None,
    }
    save_record(saved, record)
    with open(saved / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "lo')  # by a process that was killed
    write_model_card(saved)
    card = ModelCard.load(saved / "README.md")
    assert card.data.eval_results is None
    assert not re.search("nan|None|null", card.text.split("## Citation")[0])
    assert "loss.png" in card.text


@pytest.mark.parametrize("name", ["{{ 7 * 7 }}", "a: b # c", "| pipe |", "{% raise %}", "naïve 'quoted' \"twice\""])
def test_card__of_odd_names(saved, name):
    save_record(saved, {"data": name, "dataset": "me/images", "command": name, "metrics": {"knn_accuracy": 0.5}})
    write_model_card(saved)
    card = ModelCard.load(saved / "README.md")
    assert card.data.eval_results[0].dataset_name == name
    assert f"`{name}`" in card.text


def test_card__of_classes_and_folders_whose_names_are_no_utf_8(tiny_config, tmp_path):
    """As a zip file from Windows leaves them: the end of a long run is no time to find out."""
    names = ["castle", os.fsdecode(b"schl\xf6sser")]
    MAEForImageClassification(tiny_config(id2label=dict(enumerate(names)))).save_pretrained(tmp_path)
    save_record(tmp_path, {"metrics": {"eval_accuracy": 0.75}, "data": os.fsdecode(b"geb\xe4ude")})
    write_model_card(tmp_path)
    assert r"castle, schl\udcf6sser" in ModelCard.load(tmp_path / "README.md").text


def test_card__changed_by_hand_stays(saved):
    card = saved / "README.md"
    card.write_text(card.read_text().replace("organisation", "us").rsplit("<!--", 1)[0] + "Our own words.\n")
    write_model_card(saved)
    assert card.read_text().endswith("Our own words.\n")


def test_card__of_the_released_model_is_what_the_template_makes(tmp_path):
    released = ROOT / "model_cards" / "mae-fashion-mnist"
    shutil.copytree(released, tmp_path / released.name)
    write_model_card(tmp_path / released.name)
    assert (tmp_path / released.name / "README.md").read_text() == (released / "README.md").read_text()


RECORDS = sorted((ROOT / "experiments").glob("**/run.json"))[::6]


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.parent.name)
def test_card__of_a_run_of_the_experiments(record, tmp_path):
    shutil.copy(ROOT / "model_cards" / "mae-fashion-mnist" / "config.json", tmp_path)
    shutil.copy(record, tmp_path)
    write_model_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert json.loads(record.read_text())["commit"] in text
    assert not re.search("nan|None|Undefined", text.split("## Citation")[0])


def test_template__is_where_one_looks_for_it():
    assert (ROOT / "model_cards" / "template.md").read_text() == (
        ROOT / "src/hf_mae/publishing/model_card.md"
    ).read_text()


# ----------------------------------------------------------------------------------------------------------------------
# Pushes


def test_redact__leaves_no_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-kind")
    text = "--hub_token secret --hub-tok=secret hf_abcdefghijklmnopqrstuv a-token-of-another-kind hf_mae/checkpoints"
    assert redact(text) == "--hub_token *** --hub-tok=*** hf_*** *** hf_mae/checkpoints"


def test_command_of_the_record__has_no_token(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--hub_token", "secret-token", "--seed", "1"])
    assert run_record({})["command"] == "python run.py --hub_token '***' --seed 1".replace("'", "")


def test_push__what_lands(hub, saved):
    assert push_folder(saved, "me/mae", private=True, message="First") == f"{hub.url}/me/mae"
    assert hub.private["me/mae"]
    ((repo_id, title, added),) = hub.commits  # one commit
    assert (repo_id, title) == ("me/mae", "First")
    assert set(added) == set(hub.repositories["me/mae"]) == LANDS | {"metrics.jsonl", "loss.png"}
    assert hub.repositories["me/mae"]["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    auto_map = json.loads(hub.repositories["me/mae"]["config.json"])["auto_map"]
    assert {f"{reference.split('.')[0]}.py" for reference in auto_map.values()} < CODE
    uploads = sum(method == "PUT" for method, _, _ in hub.requests)
    assert uploads == 2  # weights and picture
    (saved / "README.md").write_text("changed\n")
    push_folder(saved, "me/mae")
    assert hub.repositories["me/mae"]["README.md"] == b"changed\n"
    assert sum(method == "PUT" for method, _, _ in hub.requests) == uploads  # what was there is not sent again


def test_push__name_without_an_owner_is_the_users_own(hub, saved):
    assert push_folder(saved, "mae").endswith("/tester/mae")
    assert b'AutoModel.from_pretrained("tester/mae")' in hub.repositories["tester/mae"]["README.md"]


def test_push__code_that_the_folder_lacks_comes_from_the_package(hub, saved):
    for name in CODE:
        (saved / name).unlink()
    push_folder(saved, "me/mae")
    assert set(hub.repositories["me/mae"]) >= CODE


def test_push__dropped_connection(hub, saved, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's own attempts
    hub.drop = 1
    push_folder(saved, "me/mae")  # the client tries again by itself
    change_weights(saved, 1.0)
    hub.drop = 100
    with pytest.raises(OSError, match="could not be pushed to me/mae") as error:
        push_folder(saved, "me/mae")
    assert hub.token not in str(error.value)
    assert error.value.__cause__ is None
    assert len(hub.commits) == 1  # nothing half
    hub.drop = 0
    push_folder(saved, "me/mae")
    assert hub.repositories["me/mae"]["model.safetensors"] == (saved / "model.safetensors").read_bytes()


def test_push__refusals_say_why_without_the_token(hub, saved, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrong")
    with pytest.raises(OSError, match="could not be pushed to me/mae: .*401") as error:
        push_folder(saved, "me/mae")
    assert "wrongwrong" not in str(error.value)
    with pytest.raises(OSError, match="holds no model: there is no config.json"):
        push_folder(tmp_path, "me/mae")
    assert not hub.repositories


@pytest.mark.slow
def test_background__pushes_while_the_run_goes_on(hub, saved):
    hub.delay = 0.3
    push = HubPush(saved.parent, "me/mae")
    start = time.monotonic()
    push.start(lambda folder: link_files(saved, folder), "Step 10")
    assert time.monotonic() - start < 0.3
    push.start(lambda folder: link_files(saved, folder), "Step 20")
    (line,) = push.messages()
    assert "still under way: 'Step 20'" in line
    weights = (saved / "model.safetensors").read_bytes()
    change_weights(saved, 1.0)  # does not reach what is being pushed
    (saved / "model.safetensors").unlink()
    push.finish()
    assert push.messages() == [f"Pushed 'Step 10' to {hub.url}/me/mae"]
    assert [title for _, title, _ in hub.commits] == ["Step 10"]
    assert hub.repositories["me/mae"]["model.safetensors"] == weights
    assert not (saved.parent / ".push").exists()


def test_background__what_the_run_writes_in_place_does_not_reach_a_push(saved, tmp_path):
    staging = tmp_path / ".push"
    staging.mkdir()
    link_files(saved, staging)
    before = {path.name: path.read_bytes() for path in staging.iterdir()}
    assert {"config.json", "metrics.jsonl", "model.safetensors"} <= before.keys()
    assert os.path.samefile(saved / "model.safetensors", staging / "model.safetensors")  # takes no time and no space
    change_weights(saved, 1.0)
    for name in before.keys() - {"model.safetensors"}:
        (saved / name).write_text("")  # as save_pretrained does with its JSON files, for a moment
    assert {path.name: path.read_bytes() for path in staging.iterdir()} == before


def test_background__failure_is_a_message_and_the_next_push_brings_it(hub, saved, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # no one listens
    push = HubPush(saved.parent, "me/mae")
    push.start(lambda folder: link_files(saved, folder), "Step 10")
    push.finish()
    (line,) = push.messages()
    assert re.search(rf"could not be pushed to me/mae: .*hf-mae push {saved.parent} me/mae", line)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    push.start(lambda folder: link_files(saved, folder), "Step 20")
    push.finish()
    assert [title for _, title, _ in hub.commits] == ["Step 20"]
    push.messages()
    push.start(lambda folder: link_files(saved / "nowhere", folder), "Step 30")  # nor does a full disk end a run
    assert "Nothing was pushed" in push.messages()[0]


def test_background__no_error_of_any_kind_leaves_it(hub, saved):
    def stage(folder):
        raise ValueError("odd")

    push = HubPush(saved.parent, "me/mae")
    push.start(stage, "Step 10")
    (line,) = push.messages()
    assert "Nothing was pushed: odd." in line
    (saved / "config.json").write_text("{")
    assert "Nothing was pushed" in push.push(saved, "Step 20")[0]
    with pytest.raises(ValueError, match="Repo id must"):
        HubPush(saved.parent, "a name with spaces")


def test_background__card_of_the_run_is_not_written_through_a_link(hub, saved):
    before = (saved / "README.md").read_text()
    HubPush(saved.parent, "me/mae").push(saved, "Step 10")
    assert (saved / "README.md").read_text() == before
    assert b'from_pretrained("me/mae")' in hub.repositories["me/mae"]["README.md"]


def test_background__wants_a_token_at_the_start(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("hf_mae.publishing.hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="`hf auth login`, or set HF_TOKEN"):
        HubPush(tmp_path, "me/mae")


# ----------------------------------------------------------------------------------------------------------------------
# The commands, and whoever loads what they pushed


def run(hub, tmp_path, *command, code=0):
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "home")}
    variables.update(HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
    command = [sys.executable, *map(str, command)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200)
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert hub.token not in printed
    return printed


def test_push__without_a_name_completes_record_and_card_only(hub, saved, tmp_path, capsys):
    for name, metrics in {
        "probe": {"linear_accuracy": 0.75, "loss": 0.3},
        "classifier": {"eval_accuracy": 0.875},
    }.items():
        (tmp_path / name).mkdir()
        save_record(tmp_path / name, {"metrics": metrics})
    evaluations = ("--evaluation", tmp_path / "probe", "--evaluation", tmp_path / "classifier")
    push(saved, "--license", "mit", "--data_license", "cc0-1.0", "--notes", "One run each.", *evaluations)
    record = read_record(saved)
    assert (record["license"], record["data_license"], record["hours"]) == ("mit", "cc0-1.0", 0.5)
    accuracies = {"knn_accuracy": 0.625, "linear_accuracy": 0.75, "finetuned_accuracy": 0.875}
    assert record["metrics"] == {"step": 20, "loss": 0.51, **accuracies}
    card = (saved / "README.md").read_text()
    for fact in ("license: mit", "| accuracy of a linear probe | 0.75 |", "| accuracy after fine-tuning | 0.875 |"):
        assert fact in card
    assert "One run each." in card
    assert str(saved / "README.md") in capsys.readouterr().out
    assert not hub.repositories


def test_push__a_full_disk_leaves_record_and_card_whole(saved):
    """The record was emptied, and a card without its last line was taken for an edited one, which stays for ever."""
    names = ("run.json", "README.md", "loss.png")
    before = {name: (saved / name).read_bytes() for name in names}
    files = sorted(saved.iterdir())
    for size in (0, len(before["run.json"]) + 200):  # no room for the record, or for the card
        with no_room_beyond(size), pytest.raises(OSError, match="too large"):
            push(saved, "--license", "mit")
        assert (saved / "README.md").read_bytes() == before["README.md"]
        assert read_record(saved)["recipe"] == {"seed": 0}
        assert sorted(saved.iterdir()) == files
    push(saved, "--license", "mit")
    assert ModelCard.load(saved / "README.md").data.license == "mit"


def test_replacing__leaves_what_was_there_until_all_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    file, link = tmp_path / "far" / "a.txt", tmp_path / "link.txt"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    with suppress(KeyboardInterrupt), replacing(link) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    with replacing(link) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert link.is_symlink()
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o640)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "far", "link.txt"]


def test_push__states_the_split_that_each_accuracy_was_measured_on(saved, tmp_path):
    """Accuracies on test images were stated for the training split, where pre-training had held images out."""
    save_record(saved, {**read_record(saved), "dataset": "me/images", "num_held_out": 10, "held_out": True})
    for name, metrics, more in (
        ("probe", {"linear_accuracy": 0.75}, {"num_held_out": 5}),
        ("classifier", {"eval_accuracy": 0.875}, {}),
    ):
        (tmp_path / name).mkdir()
        save_record(tmp_path / name, {"metrics": metrics, **more})
    push(saved, "--evaluation", tmp_path / "probe", "--evaluation", tmp_path / "classifier")
    results = ModelCard.load(saved / "README.md").data.eval_results
    assert {result.metric_name: result.dataset_split for result in results} == {
        "k-NN accuracy of the features (k = 20)": "train",
        "accuracy of a linear probe": "train",
        "accuracy after fine-tuning": "test",
    }


def test_push__says_what_is_missing(saved, tmp_path):
    with pytest.raises(OSError, match="no config.json"):
        push(tmp_path)
    with pytest.raises(OSError, match="`evaluation`: .*no run.json"):
        push(saved, "--evaluation", tmp_path)
    save_record(tmp_path, {"metrics": {"eval_mean_iou": 0.5, "eval_pixel_accuracy": 0.9}})
    with pytest.raises(ValueError, match="`evaluation`: .*only eval_mean_iou, eval_pixel_accuracy. .* `notes`"):
        push(saved, "--evaluation", tmp_path)
    (saved / "run.json").write_text('{"hours": }')
    with pytest.raises(ValueError, match="run.json is no JSON"):
        push(saved)
    (saved / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="run.json must hold a JSON object, got list"):
        push(saved)


def test_push__a_card_that_was_edited_on_the_hub_stays(hub, saved):
    push_folder(saved, "me/edited")
    edited = b"# Mine\n\nWhat I have seen.\n"
    hub._set("me/edited", {**hub.repositories["me/edited"], "README.md": edited})
    change_weights(saved, 1.0)
    push_folder(saved, "me/edited")
    assert hub.repositories["me/edited"]["README.md"] == edited
    weights = (saved / "model.safetensors").read_bytes()
    assert hub.repositories["me/edited"]["model.safetensors"] == weights


def test_docs__commands_of_a_push_run(hub, saved, tmp_path, monkeypatch):
    """In a folder with runs. Those of training, which end in "...", have tests of their own."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    saved.rename("out")
    shutil.copytree("out", "runs/fashion_mnist_sample")
    for name in ("probe", "classifier"):
        Path(name).mkdir()
        save_record(name, {"metrics": {"eval_accuracy": 0.75}})
    page = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    for line in "".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).splitlines():
        program, command, *arguments = shlex.split(line, comments=True)
        if (program, command) == ("hf-mae", "push"):
            push(*arguments)
    assert set(hub.repositories) == {"tester/my-mae", "me/my-mae"}
    card = hub.repositories["me/my-mae"]["README.md"].decode()
    assert "- Data: my images" in card
    assert "| accuracy after fine-tuning | 0.75 |" in card


def assert_no_token(hub, folder):
    for path in folder.rglob("*"):
        assert not path.is_file() or hub.token.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_stock_repositories__load_by_their_name(hub, tmp_path, file):
    stock = ViTMAEForPreTraining(ViTMAEConfig(**TINY, norm_pix_loss=True))
    weights = stock.state_dict()
    stock.config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / file) if file.endswith("safetensors") else torch.save(weights, tmp_path / file)
    HfApi().create_repo("me/vit-mae")
    HfApi().upload_folder(repo_id="me/vit-mae", folder_path=tmp_path)
    model = MAEForPreTraining.from_pretrained("me/vit-mae", cache_dir=tmp_path / "cache")
    again = hf_mae.import_checkpoint("me/vit-mae", cache_dir=tmp_path / "cache")
    assert model.config.norm_pix_loss
    for each in (model, again):
        assert torch.equal(each.decoder.head.weight, weights["decoder.decoder_pred.weight"])
    with pytest.raises(OSError, match="me/missing"):
        hf_mae.import_checkpoint("me/missing", cache_dir=tmp_path / "cache")


LOAD = """
import sys, torch
sys.modules["hf_mae"] = None  # whoever imports it gets an ImportError
from transformers import AutoModel, AutoModelForPreTraining
from transformers.models.auto.image_processing_auto import AutoImageProcessor
name, target = sys.argv[1:]
model = AutoModelForPreTraining.from_pretrained(name, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
pixels = processor(torch.zeros(1, 40, 40, dtype=torch.uint8), return_tensors="pt").pixel_values
loss = model.train()(pixels).loss
loss.backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
model.eval().save_pretrained(target)
processor.save_pretrained(target)
expected = model.mae(pixels).last_hidden_state
model.push_to_hub("me/trained")
processor.push_to_hub("me/trained")
for again in (target, "me/trained"):
    encoder = AutoModel.from_pretrained(again, trust_remote_code=True).eval()
    assert torch.equal(encoder(pixels).last_hidden_state, expected)
print("fine")
"""


@pytest.mark.slow
def test_pretraining__pushes_while_it_runs_and_at_its_end(hub, tmp_path, capfd):
    out = tmp_path / "out"
    sizes = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=32"
    flags = f"--config_overrides {sizes} --max_steps 6 --effective_batch_size 8 --eval_images 40 --logging_steps 1"
    pushes = "--push_to_hub true --hub_model_id me/mae --hub_strategy every_save --hub_private_repo true --save_steps 2"
    hub.drop = 1
    pretrain_command(["--output_dir", str(out), *flags.split(), *pushes.split()], prog="hf-mae pretrain")
    printed = "".join(capfd.readouterr())
    titles = [title for _, title, _ in hub.commits]
    assert titles[-1] == "6 steps of pre-training"
    assert set(titles[:-1]) <= {"Step 2 of 6", "Step 4 of 6"}
    assert f"Pushed '6 steps of pre-training' to {hub.url}/me/mae" in printed
    files = hub.repositories["me/mae"]
    assert set(files) == LANDS | {"metrics.jsonl", "loss.png", "progress.png", "recipe.yaml", "reconstructions.png"}
    assert files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    assert b"max_steps: 6" in files["recipe.yaml"]
    assert b"hub" not in files["recipe.yaml"]
    assert_no_token(hub, out)
    assert all(hub.token.encode() not in content for content in files.values())
    (tmp_path / "load.py").write_text(LOAD)
    assert "fine" in run(hub, tmp_path, tmp_path / "load.py", "me/mae", tmp_path / "trained")


@pytest.mark.slow
def test_pretraining__hub_that_is_gone_ends_no_run(hub, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # no one listens
    out = tmp_path / "out"
    flags = f"--output_dir {out} --max_steps 2 --effective_batch_size 8 --eval_images 40 --push_to_hub true"
    pretrain_command([*flags.split(), "--hub_model_id", "me/mae"], prog="hf-mae pretrain")
    assert "could not be pushed to me/mae" in "".join(capfd.readouterr())
    assert (out / "model.safetensors").exists()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    pretrain_command([*flags.split(), "--hub_model_id", "me/again"], prog="hf-mae pretrain")  # the run is finished
    assert f"Pushed '2 steps of pre-training' to {hub.url}/me/again" in capfd.readouterr().out
    assert hub.repositories["me/again"]["model.safetensors"] == (out / "model.safetensors").read_bytes()
    push(out, "me/mae", "--license", "apache-2.0")
    assert "Pushed" in capfd.readouterr().out
    assert b"license: apache-2.0" in hub.repositories["me/mae"]["README.md"]


@pytest.mark.slow
def test_fine_tuning__pushes_model_card_and_record_but_no_pickle(hub, saved, tmp_path, capfd):
    encoder = MAEModel.from_pretrained(saved, image_size=24, num_channels=1)
    encoder.save_pretrained(tmp_path / "encoder")
    MAEImageProcessor.for_image_size(24, num_channels=1).save_pretrained(tmp_path / "encoder")
    out = tmp_path / "classifier"
    flags = f"--model_name_or_path {tmp_path / 'encoder'} --output_dir {out} --max_steps 2 --max_train_images 64"
    pushes = f"--push_to_hub --hub_model_id me/classifier --hub_token {hub.token}"
    finetune_command([*flags.split(), *pushes.split()], prog="hf-mae finetune")
    printed = "".join(capfd.readouterr())
    assert hub.token not in printed
    assert f"Pushed 'End of training' to {hub.url}/me/classifier" in printed
    files = hub.repositories["me/classifier"]
    assert set(files) >= LANDS
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in files)
    assert json.loads(files["run.json"])["metrics"]["eval_accuracy"] >= 0
    assert b"pipeline_tag: image-classification" in files["README.md"]
    assert_no_token(hub, out)
    assert all(hub.token.encode() not in content for content in files.values())
