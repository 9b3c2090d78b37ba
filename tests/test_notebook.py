# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The notebook of examples/: its code runs in order, its file is valid and small, its links lead somewhere."""

import json
import re
from pathlib import Path

import PIL.Image
import pytest
from conftest import PLAIN, SMALL, picture

from hf_mae import MAEForImageClassification, MAEForPreTraining

FILE = Path(__file__).parents[1] / "examples" / "own_images.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CELLS = {cell["id"]: cell for cell in NOTEBOOK["cells"]}


def source_of(cell) -> str:
    return "".join(cell["source"])


def run(until=None, **parameters):
    """Runs the code cells in one namespace, with other parameters, and returns the namespace.

    What a cell ends with is shown by a notebook, and stands under the name of the cell here.
    """
    names = {}
    for name, cell in CELLS.items():
        if name == until:
            break
        if cell["cell_type"] != "code":
            continue
        *statements, last = re.split(r"\n(?=\S)", source_of(cell))
        exec(compile("\n".join(statements), name, "exec"), names)
        try:
            names[name] = eval(compile(last, name, "eval"), names)
        except SyntaxError:  # no expression
            exec(compile(last, name, "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(parameters) <= set(names)
            names.update(parameters)
    return names


@pytest.fixture
def two_steps(tmp_path, monkeypatch):
    """Parameters with which each part takes two steps."""
    monkeypatch.chdir(tmp_path)
    options = dict(zip([name.removeprefix("--") for name in PLAIN[::2]], map(float, PLAIN[1::2]), strict=True))
    sizes = {"preset": "tiny", "image_size": 32, "patch_size": 8, "config_overrides": SMALL}
    return {
        "OUTPUT": "out",
        "PRETRAINING": {"max_steps": 2, "effective_batch_size": 8, "eval_images": 20, **sizes},
        "FINETUNING": {"max_steps": 2, "per_device_train_batch_size": 8, "save_strategy": "no", **options},
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_notebook__makes_a_classifier_of_a_folder_with_classes(folder, two_steps, capsys):
    names = run(DATA=folder, **two_steps)
    assert capsys.readouterr().out.count("was taken for") == 5
    assert len(names["images"]) == 24
    assert len(names["held_out"]) == 12
    assert names["draw-progress"].size == (1200, 474)
    assert names["draw-reconstructions"].height > 3 * 112  # three rows of two pictures
    assert names["draw-neighbours"].height > 5 * 84
    assert names["probes"].keys() == {"untrained", "pretrained"}
    assert {answer["label"] for answer in names["classify"](picture())} == {"blue", "green", "red"}
    pretrained = MAEForPreTraining.from_pretrained("out/pretrained")
    assert pretrained.config.image_size == MAEForImageClassification.from_pretrained("out/classifier").config.image_size


@pytest.mark.slow
def test_notebook__draws_pictures_without_classes_of_which_a_tenth_is_kept_back(tmp_path, two_steps, capsys):
    (tmp_path / "flat").mkdir()
    for number in range(30):
        picture(number).save(tmp_path / "flat" / f"{number}.png")
    names = run(until="run-probe", DATA=str(tmp_path / "flat"), **two_steps)
    out = capsys.readouterr().out
    assert "Classes: none" in out
    assert out.count("3 of 30 images are held out") == 2  # here, and the same ones in the run
    assert isinstance(names["draw-neighbours"], PIL.Image.Image)
    with pytest.raises(ValueError, match="no labels|no classes"):
        exec(compile(source_of(CELLS["run-probe"]), "run-probe", "exec"), names)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_notebook__as_it_is_teaches_the_encoder_and_the_classifier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run()
    probes, classifier = names["probes"], names["classifier"]
    assert probes["pretrained"]["knn_accuracy"] > probes["untrained"]["knn_accuracy"]
    assert probes["pretrained"]["linear_accuracy"] > probes["untrained"]["linear_accuracy"]
    assert classifier.metrics["eval_accuracy"] > max(probes["untrained"]["linear_accuracy"], 0.7)
    boot = names["held_out"][len(names["held_out"]) - 1]
    assert names["classify"](boot)[0]["label"] in ("ankle boot", "sneaker", "sandal")


# ----------------------------------------------------------------------------------------------------------------------
# The file


def test_file__is_a_notebook_of_format_4():
    """The required fields of nbformat's schema 4.5."""
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert len(CELLS) == len(NOTEBOOK["cells"])  # each has an id of its own
    for name, cell in CELLS.items():
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name)
        assert all(isinstance(line, str) for line in cell["source"])
        parts = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert cell.keys() == parts | {"execution_count", "outputs"}
            assert all(check_output(output) for output in cell["outputs"])
        else:
            assert cell["cell_type"] == "markdown"
            assert cell.keys() == parts


def check_output(output) -> bool:
    if output["output_type"] == "stream":
        return output.keys() == {"output_type", "name", "text"} and output["name"] in ("stdout", "stderr")
    assert output["output_type"] == "execute_result"
    return output.keys() == {"output_type", "data", "metadata", "execution_count"}


def test_file__is_small_and_shows_pictures_without_traces_of_a_machine():
    assert FILE.stat().st_size < 300_000
    shown = [output for cell in CELLS.values() for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
    for output in shown:
        text = "".join(output.get("text", [])) + "".join(output.get("data", {}).get("text/plain", []))
        assert not re.search(r"/(home|tmp|root|work|usr)/|\d (s|ms|min)\b|/s\b|it/s|0x[0-9a-f]{6}", text), text


def test_file__begins_with_the_parameters_that_a_reader_changes():
    code = [cell for cell in CELLS.values() if cell["cell_type"] == "code"]
    assert code[1]["metadata"] == {"tags": ["parameters"]}
    names = {}
    exec(source_of(code[1]), names)
    assert {"DATA": None, "PUSH_TO": None}.items() <= names.items()
    assert all("\n!" not in "\n" + source_of(cell) and "\n%" not in "\n" + source_of(cell) for cell in code)


def test_file__links_lead_somewhere():
    text = "\n".join(source_of(cell) for cell in CELLS.values() if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 5
    assert [link for link in links if not link.startswith("https://") and not (FILE.parent / link).exists()] == []
