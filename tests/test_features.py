# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Features into a file and through pipelines."""

import functools
import io
import json
import os
import re
import shlex
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, picture
from safetensors import safe_open
from transformers import AutoModel, ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # in 5.17 also without torchvision

from hf_mae import MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.conversion.command import convert_checkpoint
from hf_mae.data.labels import open_with_labels
from hf_mae.data.sources import open_images
from hf_mae.evaluation import features
from hf_mae.evaluation.visualization import attention_command

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(capsys):
    """Runs `hf-mae features` in this process and returns what it printed."""

    def call(*arguments):
        features.features_command([*map(str, arguments)], prog="hf-mae features")
        return "".join(capsys.readouterr())

    return call


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    """Saves a model of 32 pixels and its processor, whose mean and deviation are its own; returns the folder."""

    def save(model_class=MAEForPreTraining, **fields):
        model_class(tiny_config(**fields)).save_pretrained(tmp_path / "model")
        statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]}
        MAEImageProcessor.for_image_size(32, **statistics).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes with pictures of several sizes and modes, one turned, and two that can't be read."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    for number in range(4):
        mode = "L" if number == 1 else "RGB"
        picture(number, (40 + 9 * number, 30), mode).save(tmp_path / "photos" / "cat" / f"{number}.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(9, (64, 48)).save(tmp_path / "photos" / "dog" / "0.jpg", exif=exif)
    for broken in ("cat/2b.png", "dog/1.png"):
        (tmp_path / "photos" / broken).write_bytes((tmp_path / "photos" / "cat" / "0.png").read_bytes()[:900])
    return tmp_path / "photos"


def read(path):
    """Columns of a file as tensors, names as a list, and the names of the classes."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            label_names = json.loads(file.metadata()["label_names"])
        return {**columns, "names": json.loads(columns["names"].numpy().tobytes())}, label_names
    table = pq.read_table(path)
    columns = {"names": table["name"].to_pylist()}
    for column in table.schema.names[1:]:
        array = table[column].combine_chunks()
        shape = json.loads(table.schema.field(column).metadata[b"shape"])
        values = array.flatten() if shape else array
        columns[column] = torch.tensor(values.to_numpy()).reshape(len(table), *shape)
    return columns, json.loads(table.schema.metadata[b"label_names"])


def expected_features(folder, paths, layers, image_size=32):
    """What AutoModel gives for each picture alone."""
    model = AutoModel.from_pretrained(folder).eval()
    processor = MAEImageProcessor.from_pretrained(folder)
    statistics = {"image_mean": processor.image_mean, "image_std": processor.image_std}
    processor = MAEImageProcessor.for_image_size(image_size, **statistics)
    rows = []
    for path in paths:
        image = PIL.ImageOps.exif_transpose(PIL.Image.open(path))
        with torch.no_grad():
            outputs = model(processor(image, return_tensors="pt").pixel_values, output_hidden_states=True)
        row = {"pooler": outputs.pooler_output[0]}
        for layer in layers:
            tokens = (outputs.last_hidden_state if layer == 2 else outputs.hidden_states[layer])[0]
            row[f"class_token_{layer}"], row[f"mean_{layer}"] = tokens[0], tokens[1:].mean(dim=0)
            row[f"patches_{layer}"] = tokens[1:].T.reshape(32, image_size // 8, image_size // 8)
        rows.append(row)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
@pytest.mark.parametrize(("image_size", "workers"), [(None, 0), (48, 2)])
def test_extraction__stores_what_the_model_gives_for_each_image(
    run, checkpoint, photos, tmp_path, kind, image_size, workers
):
    folder, output = checkpoint(), tmp_path / "new" / f"features.{kind}"
    arguments = ["--features", "class_token", "mean", "patches", "pooler", "--layers", 0, 1, "-1", "--batch_size", 3]
    arguments += [] if image_size is None else ["--image_size", image_size]
    arguments += ["--dataloader_num_workers", workers]
    printed = run("--model_name_or_path", folder, "--data", photos, "--output", output, *arguments)
    columns, label_names = read(output)
    kept = [str(photos / name) for name in ("cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png", "dog/0.jpg")]
    assert columns.pop("names") == kept
    assert columns.pop("index").tolist() == [0, 1, 2, 4, 5]
    assert columns.pop("label").tolist() == [0, 0, 0, 0, 1]
    assert label_names == ["cat", "dog"]
    expected = expected_features(folder, kept, (0, 1, 2), image_size or 32)
    assert columns.keys() == expected.keys()
    for name, values in columns.items():
        torch.testing.assert_close(values, expected[name], msg=lambda text, name=name: f"{name}: {text}")
    assert f"Skipped {photos}/cat/2b.png, which can't be read: " in printed
    assert f"Skipped {photos}/dog/1.png, which can't be read: " in printed
    assert "5 rows in" in printed
    assert "2 unreadable picture(s) left out" in printed


def test_extraction__works_without_progress_bars(run, checkpoint, photos, tmp_path, monkeypatch):
    """So tqdm is where `TQDM_DISABLE` is set, and its clock then stands still."""
    monkeypatch.setattr(features, "tqdm", functools.partial(features.tqdm, disable=True))
    printed = run("--model_name_or_path", checkpoint(), "--data", photos, "--output", tmp_path / "features.parquet")
    assert re.search(r"5 rows in .* [1-9][0-9,]* images/s", printed)


@pytest.mark.parametrize(("kind", "dtype"), [("parquet", "float16"), ("safetensors", "bfloat16")])
def test_extraction__in_half_precision_of_images_without_labels(run, checkpoint, photos, tmp_path, kind, dtype):
    folder, output = checkpoint(MAEModel, pooling="class"), tmp_path / f"features.{kind}"
    common = ["--model_name_or_path", folder, "--data", photos / "cat", "--output", output, "--dtype", dtype]
    run(*common)
    columns, label_names = read(output)
    assert label_names is None
    expected = expected_features(folder, columns.pop("names"), ())["pooler"].to(getattr(torch, dtype))
    assert columns.pop("index").tolist() == [0, 1, 2, 4]
    assert list(columns) == ["pooler"]  # the default, under its plain name
    torch.testing.assert_close(columns["pooler"], expected)


@pytest.mark.slow
def test_extraction__writes_parquet_piece_by_piece(run, checkpoint, tmp_path, monkeypatch):
    output = tmp_path / "features.parquet"
    arguments = ["--model_name_or_path", checkpoint(), "--split", "test", "--output", output, "--batch_size", 100]
    run(*arguments)
    whole, _ = read(output)
    assert pq.ParquetFile(output).num_row_groups == 1
    assert whole["label"].tolist() == open_images(split="test").labels.tolist()
    monkeypatch.setattr(features, "_ROW_GROUP_BYTES", 30_000)
    run(*arguments, "--overwrite")
    pieces, _ = read(output)
    assert pq.ParquetFile(output).num_row_groups == 4  # a batch takes 100 x (32 floats, index and label)
    assert pieces.pop("names") == whole.pop("names")
    assert all(torch.equal(pieces[name], whole[name]) for name in whole)
    run(*arguments[:-2], "--overwrite", "--features", "mean", "class_token")
    assert list(read(output)[0]) == ["names", "index", "label", "class_token", "mean"]


@pytest.mark.parametrize("pooling", ["mean", "class", "attentive"])
def test_extraction__of_a_classifier_gives_what_it_sees(run, checkpoint, photos, tmp_path, pooling):
    folder, output = checkpoint(MAEForImageClassification, pooling=pooling), tmp_path / "features.safetensors"
    model = MAEForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():  # as if it had been trained
        (model.fc_norm if pooling == "mean" else model.mae.layernorm).weight.uniform_(0.5, 2)
    model.save_pretrained(folder)
    arguments = ["--data", photos, "--output", output, "--features", "pooler", "mean"]
    run("--model_name_or_path", folder, *arguments)
    columns, _ = read(output)
    images = [PIL.ImageOps.exif_transpose(PIL.Image.open(path)) for path in columns["names"]]
    pixel_values = MAEImageProcessor.from_pretrained(folder)(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        torch.testing.assert_close(columns["pooler"], model.pool(pixel_values))
        torch.testing.assert_close(columns["mean"], model.mae(pixel_values).last_hidden_state[:, 1:].mean(dim=1))


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_file__may_be_read_by_others(tmp_path, kind):
    """safetensors lets only the owner of a file read it."""
    before = os.umask(0o027)
    try:
        with features.FeatureFile(str(tmp_path / f"features.{kind}"), {}) as file:
            file.add(["a.png"], {"pooler": torch.zeros(1, 4)})
            file.finish()
    finally:
        os.umask(before)
    assert (tmp_path / f"features.{kind}").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_extraction__interrupted_leaves_no_half_file(run, checkpoint, photos, tmp_path, monkeypatch, kind):
    output = tmp_path / "out" / f"features.{kind}"
    arguments = ["--model_name_or_path", checkpoint(), "--data", photos, "--output", output, "--batch_size", 2]
    run(*arguments)
    before = output.read_bytes()
    monkeypatch.setattr(features, "_ROW_GROUP_BYTES", 0)
    compute, calls = features.compute_features, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*given)

    monkeypatch.setattr(features, "compute_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*arguments, "--overwrite")
    assert os.listdir(output.parent) == [output.name]
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "features.csv"], r"features\.csv: .*\.parquet or \.safetensors"),
        (["--output", "{photos}.parquet"], "`output` .*photos.parquet is there already.*`overwrite`"),
        (["--dtype", "bfloat16"], "Parquet has no bfloat16"),
        (["--layers", "3"], "`layers` 3: .* 2 blocks: 0 to 2, or -1 to -3"),
        (["--layers", "0", "-4"], "`layers` -4: the model has 2 blocks"),
        (["--image_size", "44"], r"\(44, 44\) is not a multiple .*\(8, 8\)"),
        (["--split", "test"], "no images for `split` test"),
        (["--data", "{photos}/broken"], "None of the images of .* could be read. Skipped .*1.png"),
    ],
)
def test_extraction__mistakes_are_named(run, checkpoint, photos, tmp_path, arguments, message):
    (tmp_path / "photos.parquet").touch()
    (photos / "broken").mkdir()
    (photos / "dog" / "1.png").rename(photos / "broken" / "1.png")
    arguments = [argument.format(photos=photos) for argument in arguments]
    output = tmp_path / "out" / "features.parquet"
    with pytest.raises(ValueError, match=message):
        run("--model_name_or_path", checkpoint(), "--data", photos, "--output", output, *arguments)
    assert not list(tmp_path.glob("out/*"))


@pytest.fixture
def labelled(tmp_path):
    """Two folders of two pictures, which are patients, and a table with the classes."""
    names = ["ann/0.png", "ann/1.png", "bob/0.png", "bob/1.png"]
    for number, name in enumerate(names):
        (tmp_path / "labelled" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / "labelled" / name)
    lines = ["file_name,label", *map(",".join, zip(names, ("ill", "well", "well", "ill"), strict=True))]
    (tmp_path / "labelled" / "metadata.csv").write_text("\n".join(lines))
    return tmp_path / "labelled"


def test_extraction__labels_are_those_of_the_table_as_in_evaluation(run, checkpoint, labelled, tmp_path):
    output = tmp_path / "features.parquet"
    printed = run("--model_name_or_path", checkpoint(), "--data", labelled, "--output", output)
    columns, label_names = read(output)
    images = open_with_labels(str(labelled), "train")
    assert (columns["label"].tolist(), label_names) == (images.labels.tolist(), images.label_names)
    assert [label_names[label] for label in columns["label"]] == ["ill", "well", "well", "ill"]
    assert "Labels are those of the column label" in printed


def test_extraction__several_labels_of_an_image(run, checkpoint, labelled, tmp_path):
    rows = [{"file_name": f"{name}/{n}.png", "label": ["a", "b"][: n + 1]} for name in ("ann", "bob") for n in (0, 1)]
    (labelled / "metadata.csv").unlink()
    (labelled / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number, flags in enumerate(([], ["--features", "patches", "--in_windows"])):
        output = tmp_path / f"{number}.parquet"
        run("--model_name_or_path", checkpoint(), "--data", labelled, "--output", output, *flags)
        table = pq.read_table(output)
        assert table["label"].to_pylist() == [[1, 0], [1, 1], [1, 0], [1, 1]]
        assert json.loads(table.schema.field("label").metadata[b"shape"]) == [2]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("file_name,label\nann/0.png,ill", "3 of 4 images are not in"),
        ("file_name,label\nann/0.png,ill\nann/0.png,well", "two rows for ann/0.png"),
        ("file,label\nann/0.png,ill", "must have the column file_name"),
    ],
)
def test_extraction__needs_no_labels(run, checkpoint, labelled, tmp_path, table, why):
    (labelled / "metadata.csv").write_text(table)
    printed = run("--model_name_or_path", checkpoint(), "--data", labelled, "--output", tmp_path / "features.parquet")
    columns, label_names = read(tmp_path / "features.parquet")
    assert "label" not in columns
    assert label_names is None
    assert re.search(f"The images have no labels: .*{why}", printed)


def test_extraction__unsuitable_images_are_found_before_the_work(run, checkpoint, labelled, tmp_path, monkeypatch):
    pytest.importorskip("tifffile")
    picture(5).save(labelled / "bob" / "9.tif", save_all=True, append_images=[picture(6)])
    monkeypatch.setattr(features, "compute_features", lambda *given: pytest.fail("the work has started"))
    arguments = ["--output", tmp_path / "features.parquet", "--batch_size", 1]
    with pytest.raises(ValueError, match=r"9\.tif: The image has 2 pages"):
        run("--model_name_or_path", checkpoint(), "--data", labelled, *arguments)
    processor = MAEImageProcessor.for_image_size(32, sample_type="uint16")
    processor.save_pretrained(checkpoint())
    with pytest.raises(ValueError, match="The embedded images are grey, of 8 bits.*Name pictures of your own"):
        run("--model_name_or_path", tmp_path / "model", *arguments)


def test_extraction__says_before_the_work_that_the_file_cannot_be_written(tmp_path):
    (tmp_path / f".{os.getpid()}.partial.features.parquet").mkdir()
    with (
        pytest.raises(OSError, match=r"partial\.features\.parquet"),
        features.FeatureFile(tmp_path / "features.parquet", {}),
    ):
        pytest.fail("the work has started")


@pytest.mark.parametrize("suffix", ["parquet", "safetensors"])
def test_two_processes__that_write_to_one_name_leave_a_whole_file(tmp_path, monkeypatch, suffix):
    output = tmp_path / f"features.{suffix}"
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with features.FeatureFile(output, {}) as first:
        monkeypatch.setattr(os, "getpid", lambda: 2)
        with features.FeatureFile(output, {}) as second:
            for file, name in ((first, "first"), (second, "second")):
                file.add([name], {"feature": torch.ones(1, 3)})
                file.finish()
        assert b"second" in output.read_bytes()
    assert b"first" in output.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_extraction__does_not_replace_the_images(run, checkpoint, tmp_path):
    pq.write_table(pa.table({"image": [b"a picture"]}), tmp_path / "shard.parquet")
    files = ["--data", tmp_path / "shard.parquet", "--output", tmp_path / "shard.parquet"]
    with pytest.raises(ValueError, match=r"`data` .*shard\.parquet would be replaced"):
        run("--model_name_or_path", checkpoint(), *files, "--overwrite")


def test_extraction__folders_of_any_bytes_are_printed(checkpoint, tmp_path, monkeypatch):
    for name in (b"caf\xe9", b"th\xe9"):
        place = os.path.join(os.fsencode(tmp_path), b"data", name)
        os.makedirs(place)
        picture(1).save(tmp_path / "plain.png")
        os.rename(tmp_path / "plain.png", os.path.join(place, b"0.png"))
    strict = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    monkeypatch.setattr("sys.stdout", strict)
    arguments = ["--data", tmp_path / "data", "--output", tmp_path / "features.parquet"]
    features.features_command(
        list(map(str, ["--model_name_or_path", checkpoint(), *arguments])), prog="hf-mae features"
    )
    assert "2 folders of" in strict.buffer.getvalue().decode()


def test_extraction__names_the_features_there_are(run, checkpoint):
    with pytest.raises(ValueError, match="'pooled' .choose from"):
        run("--model_name_or_path", checkpoint(), "--features", "pooled")
    with pytest.raises(ValueError, match="`model_name_or_path` is missing"):
        run("--output", "x.parquet")


# ----------------------------------------------------------------------------------------------------------------------
# Pipelines


def test_pipeline__gives_pooled_features(checkpoint, photos):
    folder, paths = checkpoint(), [str(photos / "cat" / f"{number}.png") for number in range(4)]
    extract = pipeline("image-feature-extraction", model=str(folder), pool=True, device="cpu")
    features = torch.tensor([row[0] for row in extract(paths, batch_size=2)])
    torch.testing.assert_close(features, expected_features(folder, paths, ())["pooler"])


def test_pipeline__classifies(checkpoint, photos):
    labels = {"id2label": {0: "cat", 1: "dog", 2: "fox"}, "label2id": {"cat": 0, "dog": 1, "fox": 2}}
    folder, path = checkpoint(MAEForImageClassification, **labels), photos / "cat" / "0.png"
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    scores = {result["label"]: result["score"] for result in classify(str(path))}
    model, processor = MAEForImageClassification.from_pretrained(folder), MAEImageProcessor.from_pretrained(folder)
    logits = model.eval()(**processor(PIL.Image.open(path), return_tensors="pt")).logits
    assert [scores[name] for name in ("cat", "dog", "fox")] == pytest.approx(logits.softmax(dim=1)[0].tolist())


# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_docs__blocks_run_from_top_to_bottom(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(image_size=28, patch_size=4, num_channels=1).save_pretrained("runs/fashion_mnist_sample")
    MAEImageProcessor.for_image_size(28, num_channels=1).save_pretrained("runs/fashion_mnist_sample")
    picture(0, (50, 40)).save("picture.jpg")
    Path("path/to/pictures").mkdir(parents=True)
    picture(0, (50, 70)).save("path/to/pictures/picture.png")
    commands = {"features": features.features_command, "attention": attention_command}
    names, page = {}, (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    for language, block in re.findall(r"```(python|py|bash)\n(.*?)```", page, re.DOTALL):
        if language != "bash":
            exec(compile(block, "docs/features.md", "exec"), names)
            continue
        for command in block.replace("\\\n", " ").splitlines():
            program, name, *arguments = shlex.split(command, comments=True)
            assert program == "hf-mae"
            # Commands on images of the reader's own are parsed in test_readme; test_visualization runs the others.
            if name in commands and ("--data" not in arguments or "--in_windows" in arguments):
                commands[name](arguments, prog=f"hf-mae {name}")
    assert names["features"].shape == (1000, 32)
    assert names["pooler"].shape == (3000, 32)
    assert names["maps"].shape == (1000, 32, 7, 7)
    assert names["patches"].shape == (32, 18, 12)  # 70 x 50 pixels, of which a patch has 4 x 4
    assert names["names"][0].startswith("image 0 of Fashion-MNIST")
    assert names["label_names"][9] == "ankle boot"
    assert Path("attention.png").exists()


@pytest.mark.parametrize("stock", ["vit", "vit_mae"])
def test_features__of_a_model_of_transformers_are_those_of_its_conversion(run, tmp_path, stock):
    """A size that is one number means a square for ViT, and in our own files the shorter side before a crop."""
    config_class, model_class = {"vit": (ViTConfig, ViTModel), "vit_mae": (ViTMAEConfig, ViTMAEModel)}[stock]
    model_class(config_class(**TINY)).save_pretrained(tmp_path / stock)
    stated = {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2}
    stated |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]}
    (tmp_path / stock / "preprocessor_config.json").write_text(json.dumps(stated))
    (tmp_path / "photos").mkdir()
    picture(size=(64, 40)).save(tmp_path / "photos" / "wide.png")
    convert_checkpoint(tmp_path / stock, tmp_path / "converted")
    rows = []
    for name in (stock, "converted"):
        output = tmp_path / f"{name}.parquet"
        run("--model_name_or_path", tmp_path / name, "--data", tmp_path / "photos", "--output", output)
        rows.append(torch.tensor(pq.read_table(output)["pooler"].to_pylist()))
    torch.testing.assert_close(rows[0], rows[1])
    if stock == "vit":
        processor = AutoImageProcessor.from_pretrained(tmp_path / stock, backend="pil")
        pixel_values = processor(PIL.Image.open(tmp_path / "photos" / "wide.png"), return_tensors="pt").pixel_values
        with torch.no_grad():
            expected = ViTModel.from_pretrained(tmp_path / stock).eval()(pixel_values).last_hidden_state[:, 1:].mean(1)
        torch.testing.assert_close(rows[0], expected, rtol=0, atol=0.01)  # of a crop they differ by 1


def test_features__of_weights_of_timm_name_the_conversion(run, photos, tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224"}))
    with pytest.raises(ValueError, match="timm holds weights of timm. `hf-mae convert`"):
        run("--model_name_or_path", tmp_path / "timm", "--data", photos)
