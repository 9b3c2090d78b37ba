# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Folders, shards and data sets as people have them: splits by any name, masks, caches, files of two kinds."""

import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import make, names_of, picture

from hf_mae.data.labels import open_labelled
from hf_mae.data.sources import open_images
from hf_mae.modeling.reading_mae import ReadingSettings
from hf_mae.pretraining.images import open_run_images
from hf_mae.pretraining.settings import PretrainingSettings

# ----------------------------------------------------------------------------------------------------------------------
# Splits


@pytest.mark.parametrize(
    ("train", "test", "beside"),
    [
        ("Training", "Testing", "readme.txt"),
        ("train2017", "val2017", "annotations/x.png"),
        ("images/train", "images/val", "labels/train/a/1.txt"),
        ("archive/dataset/train", "archive/dataset/valid", "archive/LICENSE"),
        ("Train Images", "Test Images", "__MACOSX/x.png"),
        ("train_set", "test_set", "a.txt"),
    ],
)
def test_splits__by_any_usual_name_are_not_trained_on_and_are_no_classes(tmp_path, train, test, beside):
    make(tmp_path, *(f"{split}/{name}/{number}.png" for split in (train, test) for name in "ab" for number in (1, 2)))
    (tmp_path / beside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / beside).write_bytes(b"")
    for split, folder in (("train", train), ("test", test)):
        images = open_images(str(tmp_path), split)
        assert images.name == str(tmp_path / folder)
        assert names_of(images) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
        assert images.label_names == ["a", "b"]


def test_splits__what_lies_next_to_them_is_named_where_it_is_left_out(tmp_path):
    """A second folder to train on and one of no split were left out in silence."""
    make(tmp_path, *(f"{name}/1.png" for name in ("train2014", "train2017", "val2017", "unlabeled2017", "__MACOSX")))
    images = open_images(str(tmp_path))
    assert images.name == str(tmp_path / "train2014")
    assert images.notes[:2] == [
        f"Left out, since train2014 is taken: train2017 in {tmp_path}.",
        f"No splits and left out: unlabeled2017 in {tmp_path}.",
    ]
    assert not open_images(str(tmp_path), "test").notes


@pytest.mark.parametrize("names", [["bus", "car", "Train"], ["airport", "train station"], ["dev kit", "test tube"]])
def test_splits__classes_whose_names_are_like_theirs_are_classes(tmp_path, names):
    make(tmp_path, *(f"{name}/{number}.png" for name in names for number in range(2)))
    images = open_images(str(tmp_path))
    assert images.label_names == sorted(names)
    assert open_images(str(tmp_path), "test") is None


def test_splits__that_are_not_found_are_no_classes(tmp_path):
    make(tmp_path, "a/b/c/d/train/1.png", "a/b/c/d/val/1.png")
    images = open_images(str(tmp_path))
    assert images.labels is None
    assert any("are no classes but splits" in note for note in images.notes)


def test_splits__one_with_a_single_class_has_labels_in_evaluation(tmp_path, log):
    make(tmp_path, *(f"train/{name}/{number}.png" for name in "abc" for number in range(4)), "val/b/1.png")
    train, test = open_labelled(str(tmp_path))
    assert len(train) == 12
    assert [test.label_names[label] for label in test.labels] == ["b"]
    make(tmp_path, "val/b/2.png")
    (tmp_path / "val" / "b").rename(tmp_path / "val" / "unknown")
    train, test = open_labelled(str(tmp_path))
    assert "None of the 2 images of" in log()
    assert "nothing is evaluated on them" in log()


# ----------------------------------------------------------------------------------------------------------------------
# What is an image of the data


def test_masks__of_the_medical_segmentation_decathlon_are_left_out(tmp_path):
    make(tmp_path, "imagesTr/1.png", "labelsTr/1.png", "imagesTs/2.png", "labelsTs/2.png")
    images = open_images(str(tmp_path))
    assert names_of(images) == ["imagesTr/1.png", "imagesTs/2.png"]
    assert any("left out: labelsTr, labelsTs" in note for note in images.notes)


def test_masks__of_volumes_in_any_case_and_beside_splits_are_left_out(tmp_path):
    make(tmp_path, "a.png", "a_Mask.png", "B.png", "b_mask.png")
    for name in ("case.nii.gz", "case_seg.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    assert names_of(open_images(str(tmp_path))) == ["B.png", "a.png", "case.nii.gz"]
    make(tmp_path / "bottle", "train/good/1.png", "test/broken/1.png", "ground_truth/broken/1_mask.png")
    assert names_of(open_images(str(tmp_path / "bottle"))) == ["good/1.png"]
    assert names_of(open_images(str(tmp_path / "bottle"), "test")) == ["broken/1.png"]
    make(tmp_path / "all", "bottle/train/1.png", "bottle/ground_truth/1.png", "cap/train/1.png")
    assert names_of(open_images(str(tmp_path / "all"))) == ["bottle/train/1.png", "cap/train/1.png"]


@pytest.mark.parametrize("file", ["metrics.jsonl", "experiment.json", "evaluation.json"])
def test_folder__of_a_run_or_an_evaluation_is_left_out(tmp_path, file):
    make(tmp_path, "a/1.png", "b/2.png", "evaluation/confusion.png")
    (tmp_path / "evaluation" / file).write_text("{}")
    images = open_images(tmp_path)
    assert images.label_names == ["a", "b"]
    assert names_of(images) == ["a/1.png", "b/2.png"]
    assert any("evaluation is the folder of a run: left out" in note for note in images.notes)


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["train/a/1.png", "train/b/1.png", "val/a/2.png"]])
def test_folder__is_listed_once_for_all_splits_and_anew_the_next_time(tmp_path, monkeypatch, names):
    """A million files on a file server take minutes to be listed."""
    make(tmp_path, *names)
    settings = PretrainingSettings(data=str(tmp_path), held_out=0)
    scan, scanned = os.scandir, Counter()
    monkeypatch.setattr(os, "scandir", lambda path: scanned.update([str(path)]) or scan(path))
    first = len(open_run_images(settings, None, ReadingSettings()).train)
    assert set(scanned.values()) == {1}
    if len(names) == 3:
        open_labelled(str(tmp_path))
        assert set(scanned.values()) == {2}
    make(tmp_path, names[0].replace("1.png", "3.png"))
    assert len(open_run_images(settings, None, ReadingSettings()).train) == first + 1


def test_folder__a_pipe_is_no_image(tmp_path):
    """To open it would wait for somebody to write into it."""
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "2.png").symlink_to("0.png")
    os.mkfifo(tmp_path / "1.png")
    images = open_images(tmp_path)
    assert [images.key(index) for index in range(len(images))] == ["0.png", "2.png"]


def test_folder__a_link_to_itself_is_a_file_that_is_left_out(tmp_path):
    make(tmp_path, "a.png")
    (tmp_path / "loop").symlink_to("loop")
    assert names_of(open_images(str(tmp_path))) == ["a.png"]


def parquet_of(path, numbers, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"image": datasets.Image(), **{name: feature for name, (feature, _) in columns.items()}}
    rows = {"image": [picture(number, (12, 8)) for number in numbers]}
    rows |= {name: values for name, (_, values) in columns.items()}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)


def test_folder__parquet_of_images_beside_a_banner_is_not_passed_over(tmp_path):
    """As `git clone` of a data set of the Hub leaves it."""
    parquet_of(tmp_path / "data" / "train-00000-of-00001.parquet", range(3))
    make(tmp_path, "assets/banner.png")
    with pytest.raises(ValueError, match=r"others in 1 parquet file\(s\), first .*train-00000.* Give the path"):
        open_images(str(tmp_path))
    assert len(open_images(str(tmp_path / "data"))) == 3


def test_disk__what_datasets_has_kept_of_maps_and_filters_is_no_image(tmp_path):
    for split in ("train", "validation"):
        rows = {"image": [picture(number, (12, 8)) for number in range(3)], "number": [0, 1, 2]}
        features = datasets.Features({"image": datasets.Image(), "number": datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / split)
        loaded = datasets.load_from_disk(tmp_path / split)
        loaded.map(lambda row: {"number": row["number"] + 1}, load_from_cache_file=False)
    assert list((tmp_path / "train").glob("cache-*.arrow"))
    assert [len(open_images(str(tmp_path), split)) for split in ("train", "test")] == [3, 3]
    (tmp_path / "train" / "state.json").unlink()  # as in the cache of `datasets`
    assert len(open_images(str(tmp_path / "train"), label_column=None)) == 3


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_disk__a_format_that_was_saved_changes_nothing(tmp_path, kind):
    rows = {"image": [picture(number, (12, 8)) for number in range(3)], "label": [2, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).with_format(kind).save_to_disk(tmp_path / "data")
    images = open_images(str(tmp_path / "data"))
    assert images.labels.tolist() == [2, 0, 1]
    assert np.array_equal(np.array(images[1]), np.array(picture(1, (12, 8))))


# ----------------------------------------------------------------------------------------------------------------------
# Tar files


def tar_of(path, **members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            if not isinstance(content, bytes):
                buffer = io.BytesIO()
                content.save(buffer, "PNG")
                content = buffer.getvalue()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_folder__segmentations_of_the_scans_of_a_patient_are_no_images(tmp_path):
    """As in BraTS, where no scan is called as its patient. Pictures of people with and without masks are all images."""
    make(
        tmp_path, *(f"p1/p1{end}.png" for end in ("_t1", "_t2", "_seg")), *(f"p2/p2-{end}.png" for end in ("t1", "seg"))
    )
    make(tmp_path, "faces/1_mask.png", "faces/1_none.png")
    assert names_of(open_images(tmp_path)) == [
        "faces/1_mask.png",
        "faces/1_none.png",
        "p1/p1_t1.png",
        "p1/p1_t2.png",
        "p2/p2-t1.png",
    ]


def test_tar__members_of_a_sample_share_what_is_before_the_first_dot(tmp_path):
    members = {}
    for number in range(3):
        key = f"{number:04}"
        members |= {f"{key}.left.png": picture(number), f"{key}.cls": str(number % 2).encode()}
        members |= {f"{key}.left.seg.png": picture(9), f"{key}.json": b"{}"}
    tar_of(tmp_path / "a.tar", **members)
    images = open_images(str(tmp_path / "a.tar"))
    assert [images.key(index) for index in range(len(images))] == [f"{number:04}.left.png" for number in range(3)]
    assert images.labels.tolist() == [0, 1, 0]
    assert any("3 x masks by their names" in note for note in images.notes)
    (tmp_path / "a.tar").rename(tmp_path / "A.TAR")
    assert len(open_images(str(tmp_path / "A.TAR"))) == 3


def test_tar__an_image_without_a_class_has_none_and_the_others_keep_theirs(tmp_path):
    tar_of(
        tmp_path / "a.tar", **{"1.png": picture(1), "1.cls": b"cat\n", "2.png": picture(2), "2_mask.png": picture(3)}
    )
    images = open_images(str(tmp_path / "a.tar"))
    assert (images.labels.tolist(), images.label_names) == ([0, -1], ["cat"])
    assert any("1 of 2 images" in note and "no label" in note for note in images.notes)


# ----------------------------------------------------------------------------------------------------------------------
# Columns and fingerprints


def test_parquet__files_that_differ_in_their_columns_are_refused_by_name(tmp_path):
    names = ["cat", "dog"]
    parquet_of(tmp_path / "a.parquet", [1, 2], label=(datasets.ClassLabel(names=names), [0, 0]))
    parquet_of(tmp_path / "b.parquet", [3, 4], label=(datasets.ClassLabel(names=names[::-1]), [1, 1]))
    with pytest.raises(ValueError, match=r"classes in the column label of .*b.parquet .*one list of names"):
        open_images(str(tmp_path))
    parquet_of(tmp_path / "b.parquet", [3, 4])
    with pytest.raises(ValueError, match=r"b.parquet has no column 'label', which .*a.parquet has"):
        open_images(str(tmp_path))


def test_columns__of_paths_are_opened_and_of_lists_refused(tmp_path):
    make(tmp_path / "pictures", "1.png", "2.png", size=(12, 8))
    paths = [str(tmp_path / "pictures" / f"{number}.png") for number in (1, 2)]
    table = datasets.Dataset.from_dict({"where": paths, "numbers": [[1], [2]]})
    table.to_parquet(tmp_path / "data.parquet")
    images = open_images(str(tmp_path / "data.parquet"), image_column="where")
    assert np.array_equal(np.array(images[1]), np.array(picture(1, (12, 8))))
    with pytest.raises(ValueError, match="`image_column` 'numbers' of .* not in each row an image or its path"):
        open_images(str(tmp_path / "data.parquet"), image_column="numbers")


@pytest.mark.parametrize("kind", ["folder", "parquet", "disk", "column"])
def test_fingerprint__tells_other_images_of_the_same_names_and_number(tmp_path, kind):
    def source(numbers, place):
        place.mkdir()
        pictures = [picture(number, (12 + number // 10, 8)) for number in numbers]
        if kind == "folder":
            for number, image in enumerate(pictures):
                image.save(place / f"{number}.bmp")
            return open_images(str(place))
        features = datasets.Features({"image": datasets.Image(), "other": datasets.Image()})
        data = datasets.Dataset.from_dict({"image": pictures, "other": pictures[::-1]}, features=features)
        if kind == "disk":
            data.save_to_disk(place / "data")
            return open_images(str(place / "data"))
        data.to_parquet(place / "data.parquet")
        return open_images(str(place / "data.parquet"), image_column="image")

    first, same, other = (source(numbers, tmp_path / str(n)) for n, numbers in enumerate(([1, 2], [1, 2], [31, 52])))
    if kind == "column":
        other = open_images(str(Path(tmp_path / "0" / "data.parquet")), image_column="other")
    assert first.fingerprint == same.fingerprint  # wherever it lies
    assert first.fingerprint != other.fingerprint
    assert first.fingerprint != source([1, 52], tmp_path / "last").fingerprint  # the last one alone differs
