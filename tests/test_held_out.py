# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""A share of the images is held out by their names or groups: the same one in all commands, never trained on."""

import json
import pickle
import shutil
import tarfile
from hashlib import blake2b
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SMALL, STEPS, picture
from PIL import Image

from hf_mae import MAEImageProcessor
from hf_mae.data.held_out import SelectedImages, choose_held_out, default_share, hold_out
from hf_mae.data.image_source import ImageSource
from hf_mae.data.labels import open_labelled
from hf_mae.data.sampling import SampleOrder
from hf_mae.data.sources import open_images
from hf_mae.evaluation.evaluating import EvaluationArguments
from hf_mae.finetuning.detection import DetectionArguments, open_boxes
from hf_mae.finetuning.segmentation import SegmentationArguments, open_pairs
from hf_mae.finetuning.settings import warn_of_divided_groups
from hf_mae.modeling.reading_mae import ReadingSettings
from hf_mae.pretraining.command import pretrain
from hf_mae.pretraining.images import open_run_images
from hf_mae.pretraining.settings import PretrainingSettings


class Named(ImageSource):
    """Images that are called as one likes."""

    def __init__(self, keys, labels=None, row_groups=None):
        self.keys, self.name, self.fingerprint = list(keys), "mine", "of mine"
        self.labels = None if labels is None else np.array(labels)
        self.row_groups = None if row_groups is None else np.array(row_groups)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return picture(index, (8, 8))

    def key(self, index):
        return self.keys[index]


def in_order(names):
    """Returns names as the rule orders them: by the first 64 bits of BLAKE2b, most significant byte first."""
    return sorted(names, key=lambda name: blake2b(name.encode(), digest_size=8).digest())


def names_of(images, root):
    return {images.describe(index).removeprefix(f"{root}/") for index in range(len(images))}


def held(images, share=0.1, *args, **options):
    """Returns the keys of what is held out."""
    chosen = choose_held_out(images, share, *args, **options).chosen
    return {images.key(index) for index in np.flatnonzero(chosen)}


def write_pictures(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, (12, 10)).save(folder / name)
    return folder


# ----------------------------------------------------------------------------------------------------------------------
# Which images


def test_rule__takes_the_first_by_hash_whatever_the_order_of_listing():
    keys = [f"scans/{number}.png" for number in range(120)]
    for order in (keys, keys[::-1]):
        assert held(Named(order), 0.1) == set(in_order(keys)[:12])
    note = choose_held_out(Named(keys), 0.1).note
    assert note.startswith("12 of 120 images are held out for evaluation, chosen by their names. Figures on so few")
    assert choose_held_out(Named(keys), 0.2).note.endswith("are held out for evaluation, chosen by their names.")


def test_rule__accents_are_one_letter_or_two_to_file_systems_but_not_to_it():
    names = [f"é{number}.png" for number in range(20)]
    chosen = [
        choose_held_out(Named(some), 0.3).chosen.tolist()
        for some in (names, [n.replace("é", "e\u0301") for n in names])
    ]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("count", "share", "at_most", "expected"),
    [
        (3000, 0.01, None, 30),
        (3000, 0.01, 20, 20),
        (10, 0.01, None, 1),
        (2, 0.9, None, 1),
        (1, 0.5, None, 0),
        (9, 0, None, 0),
    ],
)
def test_number__is_the_share_at_least_one_and_never_all(count, share, at_most, expected):
    keys = [str(number) for number in range(count)]
    assert held(Named(keys), share, at_most=at_most) == set(in_order(keys)[:expected])


def test_share__that_is_none_is_refused():
    for share in (1, -0.1, 10):
        with pytest.raises(ValueError, match=rf"`held_out` must be a share of the images in \[0, 1\), got {share}"):
            choose_held_out(Named("ab"), share)


def test_smaller_share__is_part_of_a_larger_one():
    images = Named(map(str, range(500)))
    parts = [held(images, share) for share in (0.002, 0.01, 0.1, 0.5)]
    assert all(small < large for small, large in zip(parts, parts[1:], strict=False))


@pytest.mark.parametrize(
    ("images", "held_out"), [(40, 4), (1000, 100), (3000, 300), (20_000, 300), (60_000, 600), (1_280_000, 12_800)]
)
def test_default_share__leaves_enough_to_judge_by_and_most_to_train_on(images, held_out):
    """A hundredth of many, 300 where that is no more than a tenth, else a tenth. A run takes at most 1,000."""
    assert default_share(images) * images == pytest.approx(held_out)


def test_images_with_one_key__stay_together():
    keys = [f"{number % 50}" for number in range(500)]
    images = Named(keys)
    chosen = choose_held_out(images, 0.1).chosen
    assert {key for key, here in zip(keys, chosen, strict=True) if here} == set(in_order(set(keys))[:5])
    assert chosen.sum() == 50


def test_row_groups__of_a_large_source_are_not_all_read_for_evaluation():
    """1,000 of 20,000 images that lie in 400 row groups come from 64 of them, a smaller share from the same."""
    images = Named(map(str, range(20_000)), row_groups=[50] * 400)
    chosen = choose_held_out(images, 0.06, at_most=1000).chosen
    assert chosen.sum() == 1000
    assert len(np.unique(np.flatnonzero(chosen) // 50)) == 64
    fewer = choose_held_out(images, 0.02).chosen
    assert fewer.sum() == 400
    assert chosen[fewer].all()
    assert choose_held_out(images, 0.1).chosen[chosen].all()


# ----------------------------------------------------------------------------------------------------------------------
# Keys and groups of sources


def test_folders__hold_out_the_same_wherever_they_lie(tmp_path):
    names = [f"{place}/{number}.png" for place in ("a", "b/c") for number in range(10)]
    first = write_pictures(tmp_path / "here", names)
    shutil.copytree(first, tmp_path / "there" / "deep")
    expected = set(in_order(names)[:4])
    for root in (first, tmp_path / "there" / "deep"):
        _, test_images, _ = hold_out(open_images(str(root)), 0.2)
        assert names_of(test_images, root) == expected
    # Opened from above: the folder that all images lie in does not count.
    _, test_images, _ = hold_out(open_images(str(tmp_path / "there")), 0.2)
    assert names_of(test_images, tmp_path / "there" / "deep") == expected


def test_group_by_folder__takes_whole_folders(tmp_path):
    folders = [f"patient{number}" for number in range(6)]
    root = write_pictures(tmp_path, [f"{folder}/{number}.png" for folder in folders for number in range(4)])
    train_images, test_images, note = hold_out(open_images(str(root)), 0.2, "folder")
    expected = in_order(folders)[:2]  # 5 of 24 images are wanted: one folder has 4
    assert names_of(test_images, root) == {f"{folder}/{number}.png" for folder in expected for number in range(4)}
    assert len(train_images) == 16
    assert note.startswith("8 of 24 images are held out for evaluation, 2 of 6 groups by folder. Figures on so few")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "arrow"])
def test_group_by_column__keeps_patients_together(tmp_path, kind):
    import datasets

    names, patients = [f"{number}.png" for number in range(12)], [number % 4 for number in range(12)]
    path = tmp_path / "data"
    if kind in ("csv", "jsonl"):
        write_pictures(path, names)
        rows = list(zip(names, patients, strict=True))
        text = "file_name,patient\n" + "".join(f"{name},{patient}\n" for name, patient in rows)
        if kind == "jsonl":
            text = "".join(json.dumps({"file_name": name, "patient": patient}) + "\n" for name, patient in rows)
        (path / f"metadata.{kind}").write_text(text)
        patients = [patient for _, patient in sorted(rows)]  # images come in the order of their names
    else:
        columns = {"image": [picture(number, (8, 8)) for number in range(12)], "patient": patients}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        path = tmp_path / "data.parquet" if kind == "parquet" else path
        dataset.to_parquet(path) if kind == "parquet" else dataset.save_to_disk(path)
    images = open_images(str(path))
    chosen = choose_held_out(images, 0.4, "patient").chosen
    taken = in_order(map(str, range(4)))[:2]  # 5 of 12 images are wanted, a patient has 3
    assert [str(patient) in taken for patient in patients] == chosen.tolist()
    with pytest.raises(ValueError, match=r"ward'? \(`group_by`\), .* patient"):
        choose_held_out(images, 0.4, "ward")


def test_group_by__without_values_or_with_one_group_is_refused(tmp_path):
    root = write_pictures(tmp_path, [f"{number}.png" for number in range(4)])
    with pytest.raises(ValueError, match=r"`group_by` 'slide' needs a table metadata.csv or metadata.jsonl"):
        choose_held_out(open_images(str(root)), 0.1, "slide")
    (root / "metadata.csv").write_text("file_name,slide\n0.png,a\n1.png,\n2.png,b\n3.png,\n")
    with pytest.raises(ValueError, match=r"2 of 4 images .* have no value of 'slide' \(`group_by`\), first .*1\.png"):
        choose_held_out(open_images(str(root)), 0.1, "slide")
    with pytest.raises(ValueError, match=r"all in one group by `group_by` 'folder'.*`held_out` to 0"):
        choose_held_out(open_images(str(root)), 0.1, "folder")
    with pytest.raises(ValueError, match=r"`group_by` 'slide': the images of mine have no such groups"):
        choose_held_out(Named("ab"), 0.1, "slide")


def test_tar__members_are_known_by_their_names_and_folders(tmp_path):
    names = [f"{folder}/{number}.png" for folder in "abcd" for number in range(5)]
    write_pictures(tmp_path / "files", names)
    for prefix in ("", "./"):  # as `tar -cf x.tar *` and `tar -cf x.tar .` write them
        with tarfile.open(tmp_path / "images.tar", "w") as tar:
            for name in names:
                tar.add(tmp_path / "files" / name, prefix + name)
        images = open_images(str(tmp_path / "images.tar"))
        assert held(images, 0.1) == set(in_order(names)[:2])
        assert held(images, 0.1, "folder") == {f"{in_order('abcd')[0]}/{number}.png" for number in range(5)}
    with pytest.raises(ValueError, match="`group_by` of tar files must be folder, got 'patient'"):
        images.groups("patient")


def write_parquet(path, numbers):
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [picture(number, (8, 8)) for number in numbers], "label": [number % 2 for number in numbers]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    dataset.to_parquet(path, batch_size=4)


def test_parquet__rows_are_known_by_file_and_number(tmp_path):
    for number in range(2):
        write_parquet(tmp_path / "here" / f"part{number}.parquet", range(10))
    one = open_images(str(tmp_path / "here" / "part0.parquet"))
    both = open_images(str(tmp_path / "here"))
    assert held(one, 0.2) == set(in_order([str(row) for row in range(10)])[:2])
    keys = [f"part{number}.parquet:{row}" for number in range(2) for row in range(10)]
    assert held(both, 0.2) == set(in_order(keys)[:4])
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert held(open_images(str(tmp_path / "there")), 0.2) == held(both, 0.2)


def test_windows_and_pages__stay_with_their_file(tmp_path):
    pytest.importorskip("tifffile")
    (tmp_path / "scenes").mkdir()
    for number in range(8):
        np.save(tmp_path / "scenes" / f"{number}.npy", np.full((3, 20, 20), number, dtype=np.uint8))
    names = [f"{number}.npy" for number in range(8)]
    tiled = open_images(str(tmp_path / "scenes"), tile=10)
    chosen = choose_held_out(tiled, 0.2).chosen
    assert chosen.sum() == 8  # 6 of 32 windows are wanted, a scene has 4
    assert {tiled.key(index) for index in np.flatnonzero(chosen)} == set(in_order(names)[:2])
    assert not {tiled.key(index) for index in np.flatnonzero(~chosen)} & set(in_order(names)[:2])
    alone = open_images(str(tmp_path / "scenes" / "3.npy"), tile=10)
    train_images, test_images, note = hold_out(alone, 0.2)
    assert (train_images, test_images) == (alone, None)
    assert "are one image or parts of one: none is held out" in note
    stack = [picture(number, (8, 8)) for number in range(3)]
    (tmp_path / "stacks").mkdir()
    for name in "ab":
        stack[0].save(tmp_path / "stacks" / f"{name}.tif", save_all=True, append_images=stack[1:])
    pages = open_images(str(tmp_path / "stacks"), reading=ReadingSettings(pages="images"))
    first = in_order(["a.tif", "b.tif"])[0] == "a.tif"
    assert choose_held_out(pages, 0.1).chosen.tolist() == [first] * 3 + [not first] * 3


# ----------------------------------------------------------------------------------------------------------------------
# The two parts


def test_parts__are_views_with_all_that_a_source_has(tmp_path):
    write_parquet(tmp_path / "data.parquet", range(10))  # row groups of 4, 4 and 2
    images = open_images(str(tmp_path / "data.parquet"))
    images.license, images.notes = "CC0", ["as they are"]
    chosen = np.isin(np.arange(10), [0, 3, 8, 9])
    part = SelectedImages(images, chosen)
    assert [part.key(index) for index in range(4)] == ["0", "3", "8", "9"]
    assert part.describe(2) == images.describe(8)
    assert np.array_equal(np.array(part[1]), np.array(images[3]))
    assert part.labels.tolist() == [0, 1, 0, 1]
    assert part.row_groups.tolist() == [2, 2]  # of the first and the third
    assert (part.license, part.notes, part.name) == ("CC0", ["as they are"], images.name)
    assert part.groups("label") == [0, 1, 0, 1]
    assert len({part.fingerprint, images.fingerprint, SelectedImages(images, ~chosen).fingerprint}) == 3
    again = pickle.loads(pickle.dumps(part))
    assert np.array_equal(np.array(again[1]), np.array(part[1]))


def test_row_groups__are_dropped_when_what_is_trained_on_is_read(tmp_path):
    write_parquet(tmp_path / "data.parquet", range(40))
    train_images, test_images, _ = hold_out(open_images(str(tmp_path / "data.parquet")), 0.3)
    order = SampleOrder(train_images, 0, 1, 4)
    samples = order[slice(0, len(train_images))]
    assert sorted(index for _, index, _ in samples) == list(range(28))
    for images, indices in ((train_images, [index for _, index, _ in samples]), (test_images, range(12))):
        for index in indices:
            images[index]
        assert len(images.images._cache) == 0
    assert {train_images.key(index) for index in range(28)}.isdisjoint(test_images.key(index) for index in range(12))


# ----------------------------------------------------------------------------------------------------------------------
# Pre-training


def train(data, output_dir, **settings):
    fields = {"config_overrides": SMALL, "image_size": 8, "patch_size": 4, **STEPS, "max_steps": 2, "eval_steps": 2}
    return pretrain(data, output_dir, **{**fields, "effective_batch_size": 16, "bf16": False, **settings})


@pytest.fixture
def photographs(tmp_path):
    """40 pictures in four folders, without splits."""
    return write_pictures(tmp_path / "photographs", [f"{folder}/{n}.png" for folder in "abcd" for n in range(10)])


@pytest.mark.slow
def test_run__never_trains_on_what_it_evaluates(photographs, tmp_path, capsys):
    train(photographs, tmp_path / "out", max_steps=5)  # two epochs
    printed = capsys.readouterr().out
    assert "4 of 40 images are held out for evaluation, chosen by their names." in printed
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["held_out"], record["num_images"], record["num_held_out"]) == (True, 36, 4)
    assert record["recipe"]["held_out"] == 0.1
    assert "knn_accuracy" in record["metrics"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "for images that were held out" in card
    assert "36 images and 4 held out for evaluation" in card
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples-0.jsonl").read_text().splitlines()]
    assert len({line["index"] for line in lines}) == 36
    with pytest.raises(ValueError, match=r"holds another run.*\n +held_out: 0.1 there, 0.2 now"):
        train(photographs, tmp_path / "out", held_out=0.2, max_steps=5)
    with pytest.raises(ValueError, match="group_by: None there, folder now"):
        train(photographs, tmp_path / "out", held_out=0.1, group_by="folder", max_steps=5)


@pytest.mark.slow
def test_run__without_a_share_or_with_a_second_split_holds_nothing_out(photographs, folder, tmp_path, capsys):
    train(photographs, tmp_path / "all", held_out=0)
    record = json.loads((tmp_path / "all" / "run.json").read_text())
    assert (record["held_out"], record["num_images"]) == (False, 40)
    assert "for images of the training set" in (tmp_path / "all" / "README.md").read_text()
    train(folder, tmp_path / "split")
    record = json.loads((tmp_path / "split" / "run.json").read_text())
    assert (record["held_out"], record["num_images"]) == (True, 24)
    assert "num_held_out" not in record
    assert "held out for evaluation" not in capsys.readouterr().out


@pytest.mark.slow
def test_run__on_a_source_of_ones_own_divides_it_by_its_keys(tmp_path, capsys):
    keys = [f"key {number}" for number in range(20)]
    train(Named(keys), tmp_path / "out", held_out=0.2)
    assert "4 of 20 images are held out" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["num_images"] == 16


@pytest.mark.slow
def test_run__goes_on_when_the_model_it_started_from_is_gone(photographs, tmp_path):
    """The image processor of its newest checkpoint says how files are read."""
    train(photographs, tmp_path / "first", image_mean=[0.3] * 3, background=7)
    start = {"model_name_or_path": str(tmp_path / "first"), "image_size": None, "patch_size": None}
    train(photographs, tmp_path / "out", **start, config_overrides=None, dry_run=False)
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "out" / "run.json").unlink()  # as if it had been stopped before the end
    result = train(photographs, tmp_path / "out", **start, config_overrides=None)
    processor = MAEImageProcessor.from_pretrained(result.output_dir)
    assert (list(processor.image_mean), processor.background) == ([0.3] * 3, 7)


# ----------------------------------------------------------------------------------------------------------------------
# Fine-tuning, probing, segmentation


def test_labelled_images__never_train_on_what_pretraining_holds_out(tmp_path):
    """Of 200 images some 20 have labels. Pre-training knows nothing of these."""
    names = [f"{number}.png" for number in range(200)]
    root = write_pictures(tmp_path, names)
    labels = {name: ("cat", "dog")[number % 2] if number % 9 == 0 else "" for number, name in enumerate(names)}
    labels |= dict.fromkeys(in_order(names)[:2], "cat")  # some that pre-training holds out have labels, too
    (root / "metadata.csv").write_text("file_name,label\n" + "".join(f"{n},{label}\n" for n, label in labels.items()))
    _, unseen, _ = hold_out(open_images(str(root)), 0.05)
    train_images, test_images = open_labelled(str(root), held_out=0.1)
    assert names_of(train_images, root).isdisjoint(names_of(unseen, root))
    labelled = {name for name, label in labels.items() if label}
    assert names_of(train_images, root) | names_of(test_images, root) == labelled
    # A tenth of all and of the labelled: whichever needs more.
    number = max(
        20, next(n for n in range(200) if len(labelled & set(in_order(names)[:n])) == round(0.1 * len(labelled)))
    )
    assert names_of(test_images, root) == labelled & set(in_order(names)[:number])


def test_classes__without_images_on_one_side_are_named(tmp_path, log):
    names = [f"{number}.png" for number in range(20)]
    root = write_pictures(tmp_path, names)
    rare = in_order(names)
    classes = dict.fromkeys(names, "common") | {rare[0]: "only held out", rare[-1]: "never held out"}
    (root / "metadata.csv").write_text("file_name,label\n" + "".join(f"{n},{label}\n" for n, label in classes.items()))
    train_images, test_images = open_labelled(str(root), held_out=0.1)
    assert (len(train_images), len(test_images)) == (18, 2)
    assert train_images.label_names == test_images.label_names == ["common", "never held out", "only held out"]
    assert "1 of 3 classes have no image to train on" in log()
    assert "look at their classes: only held out" in log()
    assert "1 of 3 classes have no image to evaluate on" in log()
    assert "2 of 20 images are held out for evaluation" in log()


def test_masks__are_divided_as_pretraining_divides_the_images(tmp_path):
    names = [f"images/{number}.png" for number in range(30)]
    write_pictures(tmp_path, names)
    (tmp_path / "masks").mkdir()
    for number in range(30):
        mask = np.zeros((10, 12), dtype=np.uint8)
        mask[:5] = 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    args = SimpleNamespace(data=str(tmp_path), tile=None, class_names=None, reduce_labels=False, process_index=0)
    args.held_out, args.group_by = 0.1, None
    train_pairs, val_pairs, _ = open_pairs(args, MAEImageProcessor())
    for data in (tmp_path, tmp_path / "images"):
        _, unseen, _ = hold_out(open_images(str(data)), 0.1)
        assert names_of(unseen, tmp_path) == {pair.name.removeprefix(f"{tmp_path}/") for pair in val_pairs}
    assert (len(train_pairs), len(val_pairs)) == (27, 3)
    rows = "".join(f"{number}.png,{number // 10}\n" for number in range(30))
    (tmp_path / "images" / "metadata.csv").write_text("file_name,film\n" + rows)
    args.group_by = "film"
    _, val_pairs, _ = open_pairs(args, MAEImageProcessor())
    first = int(in_order("012")[0])
    assert sorted(int(pair.name.split("/")[-1][:-4]) for pair in val_pairs) == list(range(10 * first, 10 * first + 10))


def test_groups__that_pretraining_kept_together_are_not_divided_in_silence(tmp_path, log):
    (tmp_path / "out" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "out" / "run.json").write_text('{"recipe": {"group_by": "patient"}}')
    warn_of_divided_groups(SimpleNamespace(model_name_or_path=str(tmp_path / "out"), group_by="patient"))
    warn_of_divided_groups(SimpleNamespace(model_name_or_path=str(tmp_path), group_by=None))
    warn_of_divided_groups(SimpleNamespace(model_name_or_path=None, group_by=None))
    assert not log()
    for model in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        warn_of_divided_groups(SimpleNamespace(model_name_or_path=str(model), group_by=None))
        assert f"{model} was trained with `group_by` patient, and here images are held out one by one" in log()
    warn_of_divided_groups(EvaluationArguments(model=[str(tmp_path / "out")]))
    assert "Set `group_by` to patient" in log()


@pytest.mark.slow
def test_commands__evaluate_on_the_held_out_share(pretrained, folder, tmp_path, call):
    from hf_mae.evaluation.probing import probe_command
    from hf_mae.finetuning.classification import finetune_command

    shutil.move(folder / "train", tmp_path / "all")  # 24 pictures of three colours
    common = ["--model_name_or_path", pretrained, "--data", tmp_path / "all", "--num_train_epochs", 1]
    call(probe_command, *common, "--fast", "--held_out", "0.25", "--output_dir", tmp_path / "probe")
    record = json.loads((tmp_path / "probe" / "run.json").read_text())
    assert (record["num_images"], record["recipe"]["held_out"]) == (18, 0.25)
    assert "linear_accuracy" in record["metrics"]
    call(finetune_command, *common, "--group_by", "folder", "--output_dir", tmp_path / "classifier")
    record = json.loads((tmp_path / "classifier" / "run.json").read_text())
    assert (record["num_images"], record["recipe"]["group_by"]) == (16, "folder")  # a colour that it has never seen
    assert "eval_accuracy" in record["metrics"]
    with pytest.raises(ValueError, match=r"no images to evaluate on: set `held_out`, or put some below a folder `val`"):
        call(probe_command, *common, "--fast", "--held_out", "0", "--output_dir", tmp_path / "none")


def test_groups__of_data_with_a_split_to_evaluate_on_are_refused(tmp_path):
    """Nothing is held out of them, and patients on both sides gave figures that were too good, in silence."""
    write_pictures(
        tmp_path, [f"{split}/{name}/{number}.png" for split in ("train", "val") for name in "ab" for number in "12"]
    )
    message = "`group_by` folder keeps groups together where images are held out, and none are of .*Leave it out"
    with pytest.raises(ValueError, match=message):
        open_labelled(str(tmp_path), group_by="folder")
    with pytest.raises(ValueError, match=message):
        open_run_images(PretrainingSettings(data=tmp_path, group_by="folder"), None, ReadingSettings())
    for split in ("train", "val"):
        (tmp_path / "pairs" / split / "masks").mkdir(parents=True)
        write_pictures(tmp_path / "pairs" / split, ["images/1.png"])
        Image.fromarray(np.eye(10, 12, dtype=np.uint8)).save(tmp_path / "pairs" / split / "masks" / "1.png")
    args = SegmentationArguments(
        preset="tiny", data=str(tmp_path / "pairs"), group_by="folder", output_dir=tmp_path / "out"
    )
    with pytest.raises(ValueError, match=message):
        open_pairs(args, MAEImageProcessor())


def test_share__of_data_with_a_split_to_evaluate_on_is_said_to_have_no_effect(tmp_path, log, capsys):
    """`held_out` 0 shows whether a model learns its images by heart, but figures were those of the second split."""
    write_pictures(
        tmp_path, [f"{split}/{name}/{number}.png" for split in ("train", "val") for name in "ab" for number in "12"]
    )
    data = str(tmp_path)
    message = f"`held_out` 0 has no effect: {data} has a split to evaluate on."
    open_labelled(data)
    assert "no effect" not in log()
    assert len(open_labelled(data, held_out=0)[1]) == 4
    assert message in log()
    images = open_run_images(PretrainingSettings(data=data, held_out=0), None, ReadingSettings())
    assert images.notes.count(message) == 1
    assert open_run_images(PretrainingSettings(data=data), None, ReadingSettings()).notes == []
    annotate = {"categories": [{"id": 1, "name": "a"}], "annotations": [], "images": []}
    for split in ("train", "val"):
        picture = {"id": 1, "file_name": "a/1.png", "width": 12, "height": 10}
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
        (tmp_path / split / "boxes.json").write_text(
            json.dumps({**annotate, "images": [picture], "annotations": [box]})
        )
    args = DetectionArguments(preset="tiny", data=data, held_out=0, output_dir=tmp_path / "out", use_cpu=True)
    open_boxes(args, MAEImageProcessor())
    assert message[10:] in capsys.readouterr().out  # without the name, which a command shows as a flag
