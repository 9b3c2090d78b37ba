# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Boxes: files of four formats, what is wrong with them, orientations, and the views that boxes move with."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from transformers.image_transforms import center_to_corners_format

from hf_mae import MAEImageProcessor
from hf_mae.data.augmentation import RandomOrientation
from hf_mae.data.box_files import open_annotated
from hf_mae.data.box_files.stated import AnnotatedImages, StatedBoxes
from hf_mae.data.boxes import (
    BoxedImages,
    Boxes,
    DetectionDataset,
    check_boxes,
    crop_boxes,
    number_classes,
    sample_scenes,
    turn_boxes,
)
from hf_mae.data.sources import open_images

GREY = {"num_channels": 1, "image_mean": [0.0], "image_std": [1.0], "do_center_crop": False}


def painted(size, box, **kwargs):
    """A black picture with a white rectangle, whose pixels are those from left, top up to right, bottom."""
    picture = PIL.Image.new("L", size)
    left, top, right, bottom = box
    PIL.ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return picture


def found(pixels):
    """Left, top, right and bottom of what is bright, as shares of the sides."""
    rows, columns = (np.flatnonzero((pixels > 0.5).any(axis=axis)) for axis in (1, 0))
    edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return np.array(edges) / np.tile(pixels.shape[::-1], 2)


def save_pictures(folder, *names, size=(40, 30)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", size).save(folder / name)


def coco(folder, boxes, name="instances.json", ids=(3, 17, 90), **fields):
    """Writes a COCO file of pictures of 40 x 30 pixels. `boxes` holds (name of the picture, id of the class, box)."""
    names = sorted({name for name, *_ in boxes})
    images = [{"id": 50 + 7 * i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)]
    annotations = [
        {"id": i, "image_id": 50 + 7 * names.index(name), "category_id": label, "bbox": box, **more}
        for i, (name, label, box, *rest) in enumerate(boxes)
        for more in [rest[0] if rest else {}]
        if box is not None
    ]
    categories = [{"id": number, "name": f"class {number}"} for number in reversed(ids)]
    content = {"images": images, "annotations": annotations, "categories": categories, **fields}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def checked(data, split="train", names=None, processor=None, broken="refuse", orientation="auto", **options):
    annotated = open_annotated(str(data), split, **options)
    numbers = number_classes([annotated], names)
    return check_boxes(annotated, *numbers, processor or MAEImageProcessor(**GREY), broken, orientation)


def in_pixels(boxed, index=0):
    boxes = boxed.boxes[index]
    return (boxes.corners * np.tile(boxes.size, 2)).round(3).tolist()


# ----------------------------------------------------------------------------------------------------------------------
# Formats


def test_coco__ids_with_gaps_crowds_and_empty_boxes(tmp_path):
    save_pictures(tmp_path / "images", "a.png", "b.png", "below/c.png")
    boxes = [("b.png", 90, [1, 2, 10, 20]), ("b.png", 3, [0, 0, 40, 30], {"iscrowd": 1}), ("a.png", 17, None)]
    boxes += [("below/c.png", 17, [5, 5, 0, 3]), ("below/c.png", 17, [5, 5, 4, 3])]
    coco(tmp_path, boxes)
    boxed = checked(tmp_path)
    assert boxed.names == ["class 3", "class 17", "class 90"]  # in the order of the ids, not of the file
    assert [boxed.images.key(index) for index in range(3)] == ["a.png", "b.png", "below/c.png"]
    assert [boxes.classes.tolist() for boxes in boxed.boxes] == [[], [2, 0], [1]]
    assert in_pixels(boxed, 1) == [[1, 2, 11, 22], [0, 0, 40, 30]]
    assert boxed.boxes[1].crowd.tolist() == [False, True]
    assert boxed.counts.tolist() == [0, 1, 1]
    assert "1 boxes without an area are left out." in boxed.notes
    sample = DetectionDataset(boxed, MAEImageProcessor(size={"height": 30, "width": 40}, **GREY))[1]
    assert sample["labels"]["class_labels"].tolist() == [2]  # crowds are not trained on
    assert sample["labels"]["boxes"].tolist() == [pytest.approx([6 / 40, 12 / 30, 10 / 40, 20 / 30])]
    assert DetectionDataset(boxed, MAEImageProcessor(size={"height": 30, "width": 40}, **GREY))[0]["labels"][
        "boxes"
    ].shape == (0, 4)


def test_coco__of_many_images_is_found(tmp_path):
    """Only the first 64 kilobytes were searched for the annotations, which come after all images."""
    save_pictures(tmp_path, "a.png")
    file = coco(tmp_path, [("a.png", 3, [1, 2, 10, 20])])
    content = json.loads(file.read_text())
    content["images"][0]["more"] = "x" * 10**5
    file.write_text(json.dumps(content))
    assert in_pixels(checked(tmp_path)) == [[1, 2, 11, 22]]


def test_coco__category_listed_twice_counts_once_unless_both_have_boxes(tmp_path):
    """Roboflow lists the data set, too, which may be called like its only class."""
    save_pictures(tmp_path / "images", "a.png")
    categories = [{"id": 0, "name": "car"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "car"}]
    coco(tmp_path, [("a.png", 2, [1, 2, 10, 20]), ("a.png", 1, [1, 2, 5, 5])], categories=categories)
    boxed = checked(tmp_path)
    assert boxed.names == ["car", "dog"]
    assert boxed.boxes[0].classes.tolist() == [0, 1]
    coco(tmp_path, [("a.png", 2, [1, 2, 10, 20]), ("a.png", 0, [1, 2, 5, 5])], categories=categories)
    with pytest.raises(ValueError, match="boxes of 2 classes that are called car: 0, 2. Give each another name"):
        checked(tmp_path)


def test_coco__splits_are_found_where_tools_write_them(tmp_path):
    for split, name in (
        ("train", "annotations/instances_train2017.json"),
        ("val", "annotations/instances_val2017.json"),
    ):
        save_pictures(tmp_path / f"{split}2017", f"{split}.png")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        coco(tmp_path, [(f"{split}.png", 3, [1, 1, 2, 2])], name)
        coco(tmp_path, [(f"{split}.png", 3, None)], name.replace("instances", "captions"))
    roboflow = tmp_path / "roboflow"
    for split in ("train", "valid"):
        save_pictures(roboflow / split, f"{split}.png")
        coco(roboflow / split, [(f"{split}.png", 3, [1, 1, 2, 2])], "_annotations.coco.json")
    assert [checked(tmp_path, split).images.key(0) for split in ("train", "val")] == ["train.png", "val.png"]
    assert [checked(roboflow, split).images.key(0) for split in ("train", "val")] == ["train.png", "valid.png"]
    save_pictures(tmp_path / "one", "a.png")
    file = coco(tmp_path / "one", [("a.png", 3, [1, 1, 2, 2])], "instances_default.json")
    assert open_annotated(str(tmp_path / "one"), "val") is None
    assert len(checked(tmp_path / "one", annotations=str(file))) == 1


def test_coco__equal_names_in_splits_go_by_the_split_of_the_file(tmp_path):
    """Counters start again in each split: `000001.png` is in all of them."""
    (tmp_path / "annotations").mkdir()
    for split, box in (("train", [1, 1, 2, 2]), ("val", [5, 5, 2, 2])):
        save_pictures(tmp_path / split, "1.png")
        coco(tmp_path, [("1.png", 3, box)], f"annotations/instances_{split}.json")
    for split in ("train", "val"):
        assert checked(tmp_path, split).images.describe(0) == str(tmp_path / split / "1.png")
        named = checked(tmp_path, split, annotations=str(tmp_path / "annotations" / f"instances_{split}.json"))
        assert named.images.describe(0) == str(tmp_path / split / "1.png")
    (tmp_path / "annotations" / "instances_val.json").rename(tmp_path / "boxes.json")
    with pytest.raises(ValueError, match=r"are in .*train and in .*val. Call the file after its split"):
        checked(tmp_path, annotations=str(tmp_path / "boxes.json"))


@pytest.mark.parametrize(("train", "val"), [("Training", "dev"), ("train2014", "Testing"), ("train_images", "Val")])
def test_splits__are_found_by_any_usual_name(tmp_path, train, val):
    for split, kind in ((train, "coco"), (val, "coco"), (train, "yolo"), (val, "yolo")):
        folder = tmp_path / kind / split
        save_pictures(folder / "images" if kind == "yolo" else folder, f"{split}.png")
        if kind == "yolo":
            (folder / "labels").mkdir()
            (folder / "labels" / f"{split}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        else:
            coco(folder, [(f"{split}.png", 3, [1, 1, 2, 2])], "_annotations.coco.json")
    for kind in ("coco", "yolo"):
        found = [checked(tmp_path / kind, split).images.key(0) for split in ("train", "val")]
        assert [Path(name).name for name in found] == [f"{train}.png", f"{val}.png"]


def test_coco__of_three_splits_evaluates_on_the_validation(tmp_path):
    for split in ("train", "valid", "test"):
        save_pictures(tmp_path / split, f"{split}.png")
        coco(tmp_path / split, [(f"{split}.png", 3, [1, 1, 2, 2])], "_annotations.coco.json")
    assert checked(tmp_path, "val").images.key(0) == "valid.png"


def test_coco__a_file_that_is_cut_off_is_named_and_no_other_split_takes_its_place(tmp_path):
    for split in ("train", "valid", "test"):
        save_pictures(tmp_path / split, f"{split}.png")
        coco(tmp_path / split, [(f"{split}.png", 3, [1, 1, 2, 2])], "_annotations.coco.json")
    (tmp_path / "valid" / "captions.json").write_text('{"images": []}')  # whole, and no boxes
    assert checked(tmp_path, "val").images.key(0) == "valid.png"
    file = tmp_path / "valid" / "_annotations.coco.json"
    file.write_text(file.read_text()[:80])
    with pytest.raises(ValueError, match="valid/_annotations.coco.json is no whole JSON file"):
        open_annotated(str(tmp_path), "val")


def test_coco__paths_of_other_systems_texts_for_sizes_and_images_listed_twice(tmp_path):
    save_pictures(tmp_path / "images", "below/a.png", "b.png")
    file = coco(tmp_path, [("a", 3, [1, 1, 2, 2]), ("b", 17, [3, 3, 4, 4]), ("c", 90, [5, 5, 6, 6])])
    content = json.loads(file.read_text())
    names = [r"below\a.png", str(tmp_path / "images" / "b.png"), str(tmp_path / "images" / "b.png")]
    for row, name in zip(content["images"], names, strict=True):
        row.update(file_name=name, width="40", height="30")
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"are not in .*, first"):  # a path below `data` and one below images/
        checked(tmp_path)
    content["images"][0]["file_name"] = r"images\below\a.png"
    file.write_text(json.dumps(content))
    boxed = checked(tmp_path)
    assert {boxed.images.key(i): in_pixels(boxed, i) for i in range(2)} == {
        "below/a.png": [[1, 1, 3, 3]],
        "b.png": [[3, 3, 7, 7], [5, 5, 11, 11]],
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content.update(images=[]), "lists no images"),
        (lambda content: content["images"].append(content["images"][0]), "several images of the id 50"),
        (lambda content: content["categories"][0].update(id="90"), "ids are texts"),
        (lambda content: content["images"][0].update(file_name="/elsewhere/a.png"), "not in .*paths below `data`"),
    ],
)
def test_coco__faults_are_named(tmp_path, change, problem):
    save_pictures(tmp_path, "a.png")
    file = coco(tmp_path, [("a.png", 3, [1, 1, 2, 2])])
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=problem):
        checked(tmp_path)


def test_yolo__folders_polygons_and_pictures_without_a_file(tmp_path):
    for split in ("train", "valid"):
        save_pictures(tmp_path / split / "images", "a.png", "b.png", "c.png")
        (tmp_path / split / "labels").mkdir()
    labels = tmp_path / "train" / "labels"
    (labels / "a.txt").write_text("1 0.5 0.5 0.25 0.2\n0 0.1 0.2 0.3 0.2 0.3 0.6\n\n")
    (labels / "b.txt").write_text("")
    (labels / "z.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: {1: dog, 0: cat}\n")
    boxed = checked(tmp_path)
    assert boxed.names == ["cat", "dog"]
    assert boxed.boxes[0].classes.tolist() == [1, 0]
    assert in_pixels(boxed) == [[15, 12, 25, 18], pytest.approx([4, 6, 12, 18])]
    assert [len(boxes.classes) for boxes in boxed.boxes] == [2, 0, 0]
    assert any(note.startswith("1 of 3 images") and "no object" in note for note in boxed.notes)
    assert any("1 files" in note and "z.txt" in note for note in boxed.notes)
    assert len(checked(tmp_path, "val")) == 3
    (tmp_path / "data.yaml").unlink()  # then nothing names the classes
    assert checked(tmp_path).names == ["0", "1"]
    assert checked(tmp_path, names=["cat", "dog", "cow"]).names == ["cat", "dog", "cow"]


def test_yolo__images_and_labels_divided_below(tmp_path):
    save_pictures(tmp_path / "images" / "train", "a.png")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 1 1")
    assert in_pixels(checked(tmp_path)) == [[0, 0, 40, 30]]
    assert open_annotated(str(tmp_path), "val") is None


def yolo(root, *names, label="0 0.5 0.5 1 1"):
    """Writes pictures and labels of images/ and labels/."""
    save_pictures(root / "images", *names)
    for name in names:
        file = (root / "labels" / name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(label)


def keys(boxed):
    return [boxed.images.describe(index).rsplit("/images/", 1)[-1] for index in range(len(boxed))]


def test_yolo__lists_of_folders_and_of_images(tmp_path):
    """The layouts of VOC.yaml and coco.yaml of Ultralytics."""
    yolo(tmp_path, "train2012/a.png", "train2007/b.png", "test2007/c.png")
    names = "names: [cat]\n"
    (tmp_path / "data.yaml").write_text(names + "train: [images/train2012, images/train2007]\nval: [images/test2007]\n")
    assert keys(checked(tmp_path)) == ["train2007/b.png", "train2012/a.png"]
    assert keys(checked(tmp_path, "val")) == ["test2007/c.png"]
    assert in_pixels(checked(tmp_path)) == [[0, 0, 40, 30]]
    (tmp_path / "train.txt").write_text("./images/train2012/a.png\n")
    (tmp_path / "val.txt").write_text("images/train2007/b.png\nimages/test2007/c.png\n")
    (tmp_path / "data.yaml").write_text(names + "train: train.txt\nval: val.txt\n")
    assert keys(checked(tmp_path)) == ["train2012/a.png"]
    assert keys(checked(tmp_path, "val")) == ["test2007/c.png", "train2007/b.png"]
    assert in_pixels(checked(tmp_path, "val"), 1) == [[0, 0, 40, 30]]
    (tmp_path / "data.yaml").unlink()
    assert keys(checked(tmp_path)) == ["train2007/b.png", "train2012/a.png"]  # by the words of their names
    assert keys(checked(tmp_path, "val")) == ["test2007/c.png"]


def test_yolo__a_split_that_is_not_there_is_no_other_one(tmp_path):
    yolo(tmp_path, "train/a.png", "val/b.png")
    (tmp_path / "data.yaml").write_text("train: images/none\nval: images/val\nnames: [cat]\n")
    with pytest.raises(ValueError, match="names images/none for train, which is not there"):
        checked(tmp_path)
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [cat]\n")
    (tmp_path / "train.txt").write_text("images/train/none.png\n")
    with pytest.raises(ValueError, match=r"lists images/train/none\.png, which is not there"):
        checked(tmp_path)


@pytest.mark.parametrize("names", ["[no, yes]", "{0: no, 1: yes}", "{no: 0, yes: 1}", "classes.names"])
def test_yolo__names_in_all_forms(tmp_path, names):
    yolo(tmp_path, "train/a.png", label="1 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text(f"train: images/train\nnames: {names}\n")
    (tmp_path / "classes.names").write_text("no\nyes\n")
    assert checked(tmp_path).names == ["no", "yes"]


def test_yolo__points_of_a_pose_are_no_polygon(tmp_path):
    yolo(tmp_path, "train/a.png", label="0 .5 .5 .2 .4 .45 .45 .55 .55")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat]\nkpt_shape: [2, 2]\n")
    assert in_pixels(checked(tmp_path)) == [[16, 9, 24, 21]]


VOC = """<annotation><filename>{}</filename><size><width>40</width><height>30</height></size>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax>
</bndbox></object><object><name>cat</name><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>20</xmax><ymax>22</ymax></bndbox>
</object></annotation>"""


def test_voc__counts_pixels_from_one_and_difficult_objects_do_not_count(tmp_path):
    save_pictures(tmp_path / "JPEGImages", "a.png", "b.png", "c.png")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for name in "abc":
        (tmp_path / "Annotations" / f"{name}.xml").write_text(VOC.format(f"{name}.png"))
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nc  1\n")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    boxed = checked(tmp_path)
    assert [boxed.images.key(index) for index in range(len(boxed))] == ["a.png", "c.png"]
    assert boxed.names == ["cat", "dog"]  # by name
    assert in_pixels(boxed) == [[0, 0, 40, 30], [10, 20, 20, 22]]  # ten pixels wide, two high
    assert boxed.boxes[0].crowd.tolist() == [True, False]
    assert [checked(tmp_path, "val").images.key(0)] == ["b.png"]
    shutil.rmtree(tmp_path / "ImageSets")
    assert len(checked(tmp_path)) == 3
    assert open_annotated(str(tmp_path), "val") is None


def test_voc__lists_of_training_and_validation_together(tmp_path):
    """trainval.txt holds both; what is evaluated on is not trained on, whichever lists there are."""
    save_pictures(tmp_path / "JPEGImages", "a.png", "b c.png", "d.png")
    (tmp_path / "Annotations").mkdir()
    for name in ("a", "b c", "d"):
        (tmp_path / "Annotations" / f"{name}.xml").write_text(VOC.format(f"{name}.png"))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("d.png\n")
    assert keys_of(tmp_path) == {"train": ["a.png", "b c.png"], "val": ["d.png"]}
    (lists / "trainval.txt").write_text("a\nb c\n")
    (lists / "val.txt").write_text("b c\n")
    assert keys_of(tmp_path) == {"train": ["a.png"], "val": ["b c.png"]}
    (lists / "val.txt").write_text("x\n")
    with pytest.raises(ValueError, match=r"val\.txt names none of the 3 files"):
        checked(tmp_path)


def keys_of(data):
    splits = {split: checked(data, split) for split in ("train", "val")}
    return {split: [boxed.images.key(i) for i in range(len(boxed))] for split, boxed in splits.items()}


def test_voc__pictures_of_one_stem_go_by_their_folder(tmp_path):
    save_pictures(tmp_path / "images", "1/a.png", "2/a.png")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "x.xml").write_text(VOC.format("1/a.png"))
    assert checked(tmp_path).images.describe(0) == str(tmp_path / "images" / "1" / "a.png")
    (tmp_path / "Annotations" / "y.xml").write_text(VOC.format("a.png"))
    with pytest.raises(ValueError, match=r"y\.xml does not tell which image"):
        checked(tmp_path)
    (tmp_path / "Annotations" / "y.xml").write_text('<?xml version="1.0" encoding="gb2312"?>' + VOC.format("2/a.png"))
    with pytest.raises(ValueError, match=r"y\.xml can't be read as XML"):
        checked(tmp_path)


@pytest.mark.parametrize("layout", ["dict of lists", "list of dicts"])
@pytest.mark.parametrize("named", [True, False])
def test_objects__of_a_data_set_in_both_layouts(tmp_path, layout, named):
    label = datasets.ClassLabel(names=["cat", "dog"]) if named else datasets.Value("int64")
    box = datasets.List(datasets.Value("float32"))
    inner = {"bbox": box, "category": label}
    lists = {name: datasets.List(feature) for name, feature in inner.items()}
    features = datasets.Features(image=datasets.Image(), objects=lists if layout == "dict of lists" else [inner])
    rows = [{"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "category": [1, 0]}, {"bbox": [], "category": []}]
    if layout == "list of dicts":
        rows = [[dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)] for row in rows]
    columns = {"image": [PIL.Image.new("L", (40, 30))] * 2, "objects": rows}
    data = datasets.Dataset.from_dict(columns, features=features)
    data.to_parquet(tmp_path / "data.parquet")
    data.save_to_disk(tmp_path / "arrow")
    for place in (tmp_path / "data.parquet", tmp_path / "arrow"):
        boxed = checked(place)
        assert boxed.names == (["cat", "dog"] if named else ["0", "1"])
        assert in_pixels(boxed) == [[1, 2, 4, 6], [5, 6, 12, 14]]
        assert boxed.boxes[0].classes.tolist() == [1, 0]
        assert len(boxed.boxes[1].classes) == 0
        assert in_pixels(checked(place, box_format="xyxy")) == [[1, 2, 3, 4], [5, 6, 7, 8]]
        with pytest.raises(ValueError, match=r"has no column 'things' \(`objects_column`\), only image, objects"):
            checked(place, objects_column="things")


def test_objects__in_cells_of_another_kind_are_none_or_refused_by_name(tmp_path):
    """An empty cell of JSON and a list of boxes ended in errors that told nothing."""
    save_pictures(tmp_path, "a.png")
    table = tmp_path / "metadata.csv"
    for cell in ("", "null", "[]", "{}"):
        table.write_text(f"file_name,objects\na.png,{cell}\n")
        assert in_pixels(checked(tmp_path)) == []
    for cell in (3, [[1, 2, 3, 4]], "x"):
        text = json.dumps(cell).replace('"', '""')
        table.write_text(f'file_name,objects\na.png,"{text}"\n')
        with pytest.raises(ValueError, match=r"metadata.csv, .*a.png: its objects must be a list of dictionaries or"):
            checked(tmp_path)


def test_objects__of_a_table_next_to_the_images(tmp_path):
    save_pictures(tmp_path / "train", "a.png", "b.png")
    rows = [{"file_name": "b.png", "objects": {"bbox": [[0, 0, 20, 10]], "categories": ["dog"]}}]
    rows += [{"file_name": "a.png", "objects": {"bbox": [], "categories": []}}]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    boxed = checked(tmp_path)
    assert boxed.names == ["dog"]
    assert [len(boxes.classes) for boxes in boxed.boxes] == [0, 1]
    assert in_pixels(boxed, 1) == [[0, 0, 20, 10]]


def test_classes__are_numbered_alike_in_all_splits(tmp_path):
    for split, label in (("train", "dog"), ("val", "ant")):
        save_pictures(tmp_path / split, f"{split}.png")
        (tmp_path / split / f"{split}.xml").write_text(VOC.format(f"{split}.png").replace("dog", label))
    splits = [open_annotated(str(tmp_path), split) for split in ("train", "val")]
    assert number_classes(splits) == (["ant", "cat", "dog"], {"ant": 0, "cat": 1, "dog": 2})
    splits[0].names, splits[1].names = {0: "ant"}, {0: "bee"}
    with pytest.raises(ValueError, match="splits list different classes"):
        number_classes(splits)


def test_classes__have_the_numbers_of_a_trained_model_that_knows_all():
    def split(*labels, names=None):
        return AnnotatedImages([], [StatedBoxes("file", labels=list(labels))], names, "COCO")

    known = ["ant", "cat", "dog"]
    assert number_classes([split(7, 9, names={7: "dog", 9: "cat"})], known=known) == (known, {7: 2, 9: 1})
    assert number_classes([split("dog")], known=known) == (known, {"dog": 2})
    assert number_classes([split(0, 2)], known=known) == (known, {0: 0, 1: 1, 2: 2})  # numbers alone are its numbers
    assert number_classes([split(0, 1)], ["dog", "ant"], known) == (known, {0: 2, 1: 0})  # unless they are named
    assert number_classes([split(0, 3)], known=known) == (["0", "3"], {0: 0, 3: 1})  # other classes
    assert number_classes([split("dog", "elk")], known=known) == (["dog", "elk"], {"dog": 0, "elk": 1})


# ----------------------------------------------------------------------------------------------------------------------
# What is wrong with boxes


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([30, 5, 20, 5], 3, r"a.png, box 2 \(30, 5, 50, 10\) lies \(partly\) outside of its picture of 40 x 30"),
        ([5, 5, -3, 5], 3, r"box 2 \(5, 5, 2, 10\) has a negative width or height"),
        ([5, 5, float("nan"), 5], 3, r"box 2 \(5, 5, nan, 10\) is not four finite numbers"),
        ([5, 5, 3], 3, r"box 2 .* is not four finite numbers"),
        (["a", 5, 3, 3], 3, r"box 2 .* is not four finite numbers"),
        ([5, 5, 3, 3], 4, r"box 2 .* has the class 4, which is not among 3, 17, 90"),
    ],
)
def test_broken_boxes__are_named_or_left_out(tmp_path, box, label, message):
    save_pictures(tmp_path, "a.png")
    coco(tmp_path, [("a.png", 3, [1, 1, 5, 5]), ("a.png", label, box), ("a.png", 17, [38, 28, 3, 2.5])])
    with pytest.raises(ValueError, match=r"(?s)1 of 3 boxes \(COCO .*" + message + ".*`broken_boxes` to drop"):
        checked(tmp_path)
    boxed = checked(tmp_path, broken="drop")
    assert in_pixels(boxed) == [[1, 1, 6, 6], [38, 28, 40, 30]]  # what protrudes by a pixel is clipped
    assert any(note.startswith("1 broken boxes are left out") for note in boxed.notes)
    assert any(note.startswith("1 boxes that protrude from their picture a little") for note in boxed.notes)


def test_broken_boxes__that_protrude_may_be_cut_off(tmp_path):
    save_pictures(tmp_path, "a.png")
    beyond = [("a.png", 3, [left, top, 8, 8]) for left, top in ((-9, -9), (44, 5), (5, 36))]  # of 40 x 30 pixels
    coco(tmp_path, [("a.png", 3, [30, 5, 20, 5]), *beyond, ("a.png", 3, [1, 1, -5, 5])])
    assert in_pixels(checked(tmp_path, broken="clip")) == [[30, 5, 40, 10]]


def test_many_broken_boxes__are_counted(tmp_path):
    save_pictures(tmp_path, "a.png")
    coco(tmp_path, [("a.png", 3, [number, 0, -1, 1]) for number in range(12)])
    with pytest.raises(ValueError, match=r"(?s)12 of 12 boxes.*box 5 .*\n  and 7 more\n") as error:
        checked(tmp_path)
    assert "box 6" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda folder: (folder / "instances.json").unlink(),
            ValueError,
            r"Found no boxes in .*COCO.*YOLO.*VOC.*`annotations`",
        ),
        (
            lambda folder: (folder / "a.png").unlink(),
            ValueError,
            r"1 of 1 images of .*instances.json are not in .*a.png",
        ),
        (lambda folder: (folder / "a.png").write_bytes(b"x"), OSError, r"a.png can't be read"),
        (
            lambda folder: save_pictures(folder, "a.png", size=(80, 60)),
            ValueError,
            r"40 x 30 for .*a.png of 80 x 60 pixels",
        ),
        (lambda folder: shutil.copy(folder / "instances.json", folder / "more.json"), ValueError, r""),
    ],
)
def test_files__that_do_not_fit_are_named(tmp_path, change, error, message):
    save_pictures(tmp_path, "a.png")
    coco(tmp_path, [("a.png", 3, [1, 1, 5, 5])])
    change(tmp_path)
    if not message:
        assert len(checked(tmp_path)) == 1  # of several, the one that is called instances
        return
    with pytest.raises(error, match=message):
        checked(tmp_path)


def test_files__that_are_missing_or_no_coco(tmp_path):
    save_pictures(tmp_path, "a.png")
    with pytest.raises(OSError, match="`annotations` .*none.json does not exist"):
        open_annotated(str(tmp_path), "train", str(tmp_path / "none.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="list.json is no COCO file"):
        open_annotated(str(tmp_path), "train", str(tmp_path / "list.json"))


# ----------------------------------------------------------------------------------------------------------------------
# Orientation

TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
TURNS |= {7: "TRANSVERSE", 8: "ROTATE_270"}  # from the displayed picture to the stored one, as Pillow calls it


@pytest.mark.parametrize("exif", [1, *TURNS])
@pytest.mark.parametrize("of", ["displayed", "stored"])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_orientation__boxes_of_either_picture_lie_where_the_object_is_seen(tmp_path, exif, of, kind):
    """The same picture is stored in eight orientations; the model sees the same, and the box must be there."""
    seen = painted((40, 30), (4, 6, 14, 11))
    stored = seen.transpose(getattr(PIL.Image.Transpose, TURNS[exif])) if exif in TURNS else seen
    tag = PIL.Image.Exif()
    tag[0x0112] = exif
    stored.save(tmp_path / f"a.{kind}", exif=tag)
    labelled = seen if of == "displayed" else stored
    left, top, right, bottom = found(np.array(labelled) / 255) * np.tile(labelled.size, 2)
    file = coco(tmp_path, [(f"a.{kind}", 3, [left, top, right - left, bottom - top])])
    content = json.loads(file.read_text())
    content["images"][0].update(width=labelled.width, height=labelled.height)
    file.write_text(json.dumps(content))
    # Sizes tell for quarter turns; mirrored pictures need the setting.
    boxed = checked(tmp_path, orientation="auto" if exif > 4 else of)
    assert boxed.boxes[0].size == (40, 30)
    sample = DetectionDataset(boxed, MAEImageProcessor(size={"height": 30, "width": 40}, **GREY))[0]
    expected = found(sample["pixel_values"][0].numpy())
    assert expected.tolist() == pytest.approx([4 / 40, 6 / 30, 14 / 40, 11 / 30])
    assert boxed.boxes[0].corners[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert any("EXIF" in note for note in boxed.notes) == (exif != 1)


def test_orientation__without_a_stated_size_is_that_of_the_displayed_picture(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    tag = PIL.Image.Exif()
    tag[0x0112] = 6
    painted((40, 30), (4, 6, 14, 11)).transpose(PIL.Image.Transpose.ROTATE_90).save(tmp_path / "images/a.png", exif=tag)
    (tmp_path / "labels" / "a.txt").write_text(f"0 {9 / 40} {8.5 / 30} {10 / 40} {5 / 30}")
    assert in_pixels(checked(tmp_path)) == [pytest.approx([4, 6, 14, 11], abs=1e-2)]


def test_unreadable__pictures_are_replaced_with_their_boxes(tmp_path, log):
    """A file that is cut off is found only when it is decoded, perhaps in the middle of a run."""
    noise = PIL.Image.effect_noise((40, 30), 80)
    for name in ("a", "b", "c"):
        noise.save(tmp_path / f"{name}.jpg")
    coco(tmp_path, [(f"{name}.jpg", 3, [number, 0, 10, 10]) for number, name in enumerate("abc")])
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:500])
    dataset = DetectionDataset(checked(tmp_path), MAEImageProcessor(size={"height": 30, "width": 40}, **GREY))
    labels = dataset[1]["labels"]
    assert labels["image_id"] == 2
    assert labels["boxes"][0].tolist() == pytest.approx([7 / 40, 5 / 30, 10 / 40, 10 / 30])
    assert "b.jpg, which can't be read" in log()


# ----------------------------------------------------------------------------------------------------------------------
# Views


@pytest.mark.parametrize(("size", "rotate90"), [((32, 48), False), ((40, 40), True)])
def test_views__boxes_lie_around_what_they_were_drawn_around(size, rotate90):
    """A rectangle is painted and found again in each view, scaled, cropped, padded, mirrored and rotated."""
    corners = np.array([[12, 20, 60, 44]]) / [96, 64, 96, 64]
    boxed = BoxedImages(
        [painted((96, 64), (12, 20, 60, 44))],
        [Boxes(corners.astype(np.float32), np.array([3]), np.zeros(1, dtype=bool), (96, 64))],
        list("abcd"),
        "painted",
    )
    processor = MAEImageProcessor(size={"height": size[0], "width": size[1]}, **GREY)
    orientation = RandomOrientation(True, True, rotate90)
    dataset = DetectionDataset(boxed, processor, (0.5, 2.0), orientation)
    seen, left_out = set(), 0
    for _ in range(80):
        sample = dataset[0]
        labels, pixels = sample["labels"], sample["pixel_values"][0].numpy()
        assert pixels.shape == size
        if not len(labels["boxes"]):
            left_out += 1
            continue
        box = center_to_corners_format(labels["boxes"])[0].numpy()
        assert np.abs((box - found(pixels)) * np.tile(size[::-1], 2)).max() < 1  # pixels of the view
        seen.add(tuple((box * 20).round().astype(int)))
        assert labels["class_labels"].tolist() == [3]
    assert len(seen) > 30
    assert left_out < 40


@pytest.mark.parametrize(("size", "seen_shapes"), [((32, 48), {(12, 24)}), ((48, 48), {(18, 24), (24, 18)})])
def test_views__only_square_ones_are_turned_by_a_quarter(size, seen_shapes):
    """A box of half the width and three eighths of the height, 18 x 24 pixels of 48 x 48, 12 x 24 of 32 x 48."""
    corners = np.array([[0.25, 0.25, 0.75, 0.625]], dtype=np.float32)
    boxes = Boxes(corners, np.array([0]), np.zeros(1, dtype=bool), (96, 64))
    boxed = BoxedImages([painted((96, 64), (24, 16, 72, 40))], [boxes], ["a"], "painted")
    processor = MAEImageProcessor(size={"height": size[0], "width": size[1]}, **GREY)
    dataset = DetectionDataset(boxed, processor, (1.0, 1.0), RandomOrientation(True, True, rotate90=True))
    sides = [dataset[0]["labels"]["boxes"][0, 2:].numpy() * size[::-1] for _ in range(30)]
    assert {(round(height), round(width)) for width, height in sides} == seen_shapes


def test_crop_boxes__cut_and_leave_out_what_is_hardly_visible():
    boxes = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [4, 4, 12, 12], [8, 8, 9, 9]], dtype=float)
    cut, kept = crop_boxes(boxes, (2, 2, 6, 6))
    # Of the first a quarter is seen, of the second all, of the third a sixteenth, of the last nothing.
    assert kept.tolist() == [False, True, False, False]
    assert cut[1].tolist() == [0, 0, 1, 1]
    cut, kept = crop_boxes(boxes, (1, 1, 6, 6))
    assert kept.tolist() == [True, True, False, False]  # 9 of 16
    assert cut[0].tolist() == pytest.approx([0, 0, 0.6, 0.6])


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("dims", [[], [-1], [-2], [-1, -2]])
def test_turn_boxes__as_pictures_turn(dims, quarters):
    picture = np.array(painted((50, 40), (5, 8, 25, 16))) / 255
    turned = torch.from_numpy(picture).flip(dims).rot90(quarters, (-2, -1)).numpy()
    assert turn_boxes(found(picture)[None], dims, quarters)[0].tolist() == pytest.approx(found(turned).tolist())


def test_evaluation__shows_the_whole_picture_as_the_processor_does():
    picture = painted((90, 60), (9, 6, 45, 30))
    boxes = Boxes(np.array([[0.1, 0.1, 0.5, 0.5]], dtype=np.float32), np.zeros(1, int), np.zeros(1, bool), (90, 60))
    processor = MAEImageProcessor(size={"height": 32, "width": 32}, **GREY)
    sample = DetectionDataset(BoxedImages([picture], [boxes], ["a"], ""), processor)[0]
    assert torch.equal(sample["pixel_values"], processor(picture, return_tensors="pt").pixel_values[0])
    assert sample["labels"]["boxes"].tolist() == [pytest.approx([0.3, 0.3, 0.4, 0.4])]


# ----------------------------------------------------------------------------------------------------------------------
# The sample


def test_scenes__have_boxes_around_their_garments():
    boxed = sample_scenes("val", 20)
    garments = open_images(None, "test")
    assert boxed.names == garments.label_names
    counts = [len(boxes.classes) for boxes in boxed.boxes]
    assert set(counts) == {1, 2, 3, 4}
    for index in range(20):
        picture = np.array(boxed.images[index])
        assert picture.shape == (64, 64)
        for left, top, right, bottom in in_pixels(boxed, index):
            inside = picture[int(top) : int(bottom), int(left) : int(right)]
            assert inside.max() > 60  # the canvas is darker
            assert max(inside.shape) <= 28
    assert np.array_equal(np.array(boxed.images[3]), np.array(sample_scenes("val", 5).images[3]))
    assert boxed.fingerprint != sample_scenes("train", 20).fingerprint
