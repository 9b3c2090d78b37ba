# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from conftest import picture

from hf_mae.data.shards import ParquetImages
from hf_mae.data.sources import FolderImages, open_images


def test_embedded_images__are_balanced_and_labelled():
    train, test = open_images(), open_images(split="test")
    assert (len(train), len(test)) == (3000, 1000)
    for images in (train, test):
        assert np.bincount(images.labels).tolist() == [len(images) // 10] * 10
        assert images[0].size == (28, 28)
    digests = [{hashlib.sha256(images[i].tobytes()).digest() for i in range(len(images))} for images in (train, test)]
    assert len(digests[0] & digests[1]) <= 2  # Fashion-MNIST has a few twins; the splits must not be mixed
    # Trousers (1) are narrow and bags (8) wide: labels fit the pictures.
    width = {
        c: np.mean([(np.array(train[i]) > 0).any(axis=0).sum() for i in range(c * 300, c * 300 + 50)]) for c in (1, 8)
    }
    assert width[1] < width[8] - 5


def test_folder__is_read_at_any_depth_in_order_whatever_the_format(tmp_path):
    names = ["b/two.JPG", "a/deep/down/one.png", "zero.webp", "c/three.tiff", "c/four.bmp"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"no image either")
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    images = open_images(str(tmp_path))
    paths = [os.path.relpath(images.describe(index), tmp_path) for index in range(5)]
    assert paths == [
        "zero.webp",
        "a/deep/down/one.png",
        "b/two.JPG",
        "c/four.bmp",
        "c/three.tiff",
    ]
    assert all(images[index].convert("RGB").size == (40, 30) for index in range(5))
    assert images.labels is None
    assert open_images(str(tmp_path), "test") is None


def test_folder__of_classes_gives_labels_and_splits(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                picture(number).save(tmp_path / split / name / f"{number}.png")
    assert open_images(str(tmp_path)).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert open_images(str(tmp_path), "test").labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["parquet file", "parquet folder", "arrow folder"])
def test_data_sets__parquet_and_arrow(tmp_path, kind):
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"picture": [picture(number) for number in range(6)], "label": [0, 1, 0, 1, 0, 1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    path = tmp_path / "data"
    if kind == "parquet file":
        path = tmp_path / "data.parquet"
        dataset.to_parquet(path)
    elif kind == "parquet folder":
        path.mkdir()
        dataset.select(range(4)).to_parquet(path / "train-00000-of-00001.parquet")
        dataset.select(range(4, 6)).to_parquet(path / "test-00000-of-00001.parquet")
    else:
        dataset.save_to_disk(path)
    images, test = open_images(str(path)), open_images(str(path), "test")
    assert len(images) == (4 if kind == "parquet folder" else 6)
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1][: len(images)]
    assert np.array_equal(np.array(images[3]), np.array(picture(3)))
    assert (len(test) == 2) if kind == "parquet folder" else (test is None)


def test_bad_sources__say_what_is_wrong(tmp_path):
    import datasets

    with pytest.raises(ValueError, match="Found no images in .*none at all.*Expected images"):
        open_images(str(tmp_path))
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "README").write_text("hello")
    with pytest.raises(ValueError, match=r"by extension: 1 x .csv, 1 x none"):
        open_images(str(tmp_path))
    with pytest.raises(ValueError, match="neither a folder, nor an image, nor a shard"):
        open_images(str(tmp_path / "table.csv"))
    with pytest.raises(OSError, match="'no/such-data' is no folder or file here, and could not be loaded"):
        open_images("no/such-data")
    datasets.Dataset.from_dict({"text": ["a"], "length": [1]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(
        ValueError, match=r"No column of .*text.parquet.* holds images. Columns: text .*, length .*cast_column"
    ):
        open_images(str(tmp_path / "text.parquet"))


def test_unreadable_folder__is_an_error_not_an_empty_one(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def locked(path):  # chmod does not keep root out
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match="locked"):
        FolderImages(tmp_path)


def write_tar(path, images, labels=None):
    """A WebDataset shard: name.png, name.cls."""
    with tarfile.open(path, "w") as tar:
        for name, image in images.items():
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            parts = {f"{name}.png": buffer.getvalue(), f"{name}.json": b"{}"}
            if labels is not None:
                parts[f"{name}.cls"] = str(labels[name]).encode()
            for member, content in parts.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_tar__shards_are_read_in_place_with_labels(tmp_path):
    pictures = {f"{shard}/{number}": picture(3 * shard + number) for shard in range(2) for number in range(3)}
    labels = {name: number % 2 for number, name in enumerate(pictures)}
    for shard in range(2):
        part = {name: image for name, image in pictures.items() if name.startswith(f"{shard}/")}
        write_tar(tmp_path / f"train-{shard:06}.tar", part, labels)
    write_tar(tmp_path / "val-000000.tar", {"v": picture(99)})
    images, test = open_images(str(tmp_path)), open_images(str(tmp_path), "test")
    assert (len(images), len(test)) == (6, 1)
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert test.labels is None
    assert images.describe(4) == f"{tmp_path}/train-000001.tar:1/1.png"
    for copy in (images, pickle.loads(pickle.dumps(images))):  # what a spawned worker gets
        for index, expected in enumerate(pictures.values()):
            assert np.array_equal(np.array(copy[index]), np.array(expected))
    assert len(open_images(str(tmp_path / "train-000000.tar"))) == 3


def test_tar__cut_or_compressed_is_told(tmp_path):
    write_tar(tmp_path / "a.tar", {"one": picture(1), "two": picture(2)})
    images = open_images(str(tmp_path / "a.tar"))
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[:2000])  # after it was listed
    with pytest.raises((EOFError, OSError)):
        images[1].load()
    with tarfile.open(tmp_path / "b.tar", "w:gz") as tar:
        tar.add(tmp_path / "a.tar", "x")
    with pytest.raises(ValueError, match="b.tar can't be read as an uncompressed tar .*gunzip"):
        open_images(str(tmp_path / "b.tar"))
    write_tar(tmp_path / "empty.tar", {})
    with pytest.raises(ValueError, match="Found no images in .*empty.tar: 1 tar file"):
        open_images(str(tmp_path / "empty.tar"))


def write_parquet(path, numbers, rows_per_group):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [picture(number) for number in numbers], "label": [number % 2 for number in numbers]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path, batch_size=rows_per_group)


def test_parquet__is_read_by_row_group_and_not_copied(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train-0.parquet", range(7), 3)
    write_parquet(tmp_path / "train-1.parquet", range(7, 12), 5)
    images = open_images(str(tmp_path))
    assert images.row_groups.tolist() == [3, 3, 1, 5]
    assert images.labels.tolist() == [0, 1] * 6
    assert images.describe(8) == f"{tmp_path}/train-1.parquet:1"
    read = []
    monkeypatch.setattr(
        ParquetImages, "_read", lambda self, block, r=ParquetImages._read: read.append(block) or r(self, block)
    )
    for index in [4, 7, 3, 5, 11, 10, 9, 8]:
        assert np.array_equal(np.array(images[index]), np.array(picture(index)))
    assert read == [1, 3]
    assert np.array_equal(np.array(pickle.loads(pickle.dumps(images))[11]), np.array(picture(11)))


def test_parquet__over_a_file_system_reads_the_same(tmp_path):
    import fsspec

    write_parquet(tmp_path / "a.parquet", range(6), 2)
    memory = fsspec.filesystem("memory")
    memory.pipe("/data/a.parquet", (tmp_path / "a.parquet").read_bytes())
    images = ParquetImages(["/data/a.parquet"], "remote", memory)
    assert all(np.array_equal(np.array(images[index]), np.array(picture(index))) for index in range(6))
    assert images.labels is None


def test_parquet__of_plain_bytes_and_broken_files(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")
    pyarrow.parquet.write_table(pa.table({"id": [1], "jpg": [buffer.getvalue()]}), tmp_path / "plain.parquet")
    assert np.array_equal(np.array(open_images(str(tmp_path))[0]), np.array(picture(3)))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="broken.parquet can't be read as parquet"):
        open_images(str(tmp_path))


def test_arrow__files_without_a_description(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": [picture(1), picture(2)]}, features=features)
    dataset.save_to_disk(tmp_path / "whole")
    (tmp_path / "bare").mkdir()
    (next((tmp_path / "whole").glob("*.arrow"))).rename(tmp_path / "bare" / "data.arrow")
    assert np.array_equal(np.array(open_images(str(tmp_path / "bare"))[1]), np.array(picture(2)))


def test_folder__names_of_any_bytes_and_arrays_of_any_channels(tmp_path):
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    image = os.fsencode(tmp_path) + b"/caf\xe9/\xff.png"
    picture(1).save(io_path := tmp_path / "plain.png")
    os.rename(io_path, image)
    np.save(tmp_path / "bands.npy", np.full((5, 30, 40), 7, dtype=np.uint8))
    images = FolderImages(tmp_path)
    assert images[0].shape == (5, 30, 40)
    assert images[1].size == (40, 30)
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects|allow_pickle"):  # nothing is unpickled
        FolderImages(tmp_path)[1]


def test_folder__fingerprint_tells_another_list_of_files(tmp_path):
    picture(1).save(tmp_path / "a.png")
    first = FolderImages(tmp_path).fingerprint
    assert FolderImages(tmp_path).fingerprint == first
    picture(2).save(tmp_path / "b.png")
    second = FolderImages(tmp_path).fingerprint
    os.rename(tmp_path / "b.png", tmp_path / "c.png")
    assert len({first, second, FolderImages(tmp_path).fingerprint}) == 3


def test_folder__photos_beside_a_table_are_photos(tmp_path):
    picture(1).save(tmp_path / "a.png")
    write_parquet(tmp_path / "metadata.parquet", [1], 1)
    assert isinstance(open_images(str(tmp_path)), FolderImages)


def test_streaming__of_a_name_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="'no/such-data' is no folder or file here"):
        open_images("no/such-data", streaming=True)
