# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import errno
import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from conftest import make, names_of, picture
from torch.utils.data import DataLoader

import hf_mae.data.shards
from hf_mae.data.datasets import PretrainingDataset, collate
from hf_mae.data.sampling import SampleOrder
from hf_mae.data.shards import ParquetImages
from hf_mae.data.sources import FashionMNISTImages, FolderImages, open_images
from hf_mae.modeling.reading_mae import ReadingSettings, UnsuitableImageError, read_stored
from hf_mae.pretraining.images import open_run_images
from hf_mae.pretraining.settings import PretrainingSettings


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


@pytest.mark.parametrize(
    ("name", "way_out"),
    [("photos.zip", "Unpack it first"), ("photos.tar.gz", "Unpack it first"), ("labels.csv", "called metadata.csv, ")],
)
def test_file__that_is_packed_or_a_table_is_refused_with_the_way_out(tmp_path, name, way_out):
    (tmp_path / name).write_bytes(b"file_name,label")
    with pytest.raises(ValueError, match=f"{name}' is neither a folder, .*{way_out}"):
        open_images(tmp_path / name)


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


def test_tar__takes_and_leaves_out_what_a_folder_does(tmp_path):
    made = tmp_path / "made"
    make(made, "cat/1.png", "cat/@eaDir/1.png", "__MACOSX/cat/1.png", ".ipynb_checkpoints/1.png", "cat/._2.png")
    for name in ("IM000001", "1.2.840.113", "notes", "a.IMA", "b.txt"):
        (made / "cat" / name).write_bytes(bytes(128) + (b"none" if name in ("notes", "b.txt") else b"DICM"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(made, ".")
    images, folder = open_images(str(tmp_path / "a.tar")), open_images(str(made))
    assert {images.key(index) for index in range(len(images))} == set(names_of(folder))
    assert len(images) == 4
    assert images.notes[0].endswith("left out: 1 x .txt, 4 x left behind by programs, 1 x none.")


def test_tar__labels_may_be_names(tmp_path):
    write_tar(tmp_path / "a.tar", {"x": picture(1), "y": picture(2)}, {"x": "dog", "y": "cat\n"})
    images = open_images(str(tmp_path / "a.tar"))
    assert (images.labels.tolist(), images.label_names) == ([1, 0], ["cat", "dog"])


def test_tar__labels_are_of_the_kind_that_is_asked_for(tmp_path):
    write_tar(tmp_path / "a.tar", {"x": picture(1), "y": picture(2)}, {"x": -5, "y": 2.5})
    assert open_images(str(tmp_path / "a.tar"), problem_type="regression").labels.tolist() == [[-5], [2.5]]


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


def test_tar__with_more_after_its_last_member_is_refused_and_without_an_end_noted(tmp_path):
    write_tar(tmp_path / "a.tar", {"one": picture(1), "two": picture(2), "three": picture(3)})
    content = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        _, second, *_, end = *(member.offset for member in tar), tar.offset
    broken = {
        "damaged": content[:second] + b"x" * 512 + content[second + 512 :],
        "cut": content[: second + 100],
        "two": content + content,
    }
    for name, kept in broken.items():
        (tmp_path / f"{name}.tar").write_bytes(kept)
        with pytest.raises(ValueError, match=f"{name}.tar can't be read .*it is damaged, or several in one"):
            open_images(str(tmp_path / f"{name}.tar"))
    for stop in (second, end):  # between two members nothing tells what is missing, but that there is no end
        (tmp_path / "short.tar").write_bytes(content[:stop])
        assert "short.tar lacks the zeros" in open_images(str(tmp_path / "short.tar")).notes[0]
    assert not any("lacks" in note for note in open_images(str(tmp_path / "a.tar")).notes)


def test_tar__files_with_two_names_are_two_images_and_other_links_are_counted(tmp_path):
    make(tmp_path / "made", "1.png")
    os.link(tmp_path / "made" / "1.png", tmp_path / "made" / "2.png")
    os.symlink("1.png", tmp_path / "made" / "3.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "made", ".")
    images = open_images(str(tmp_path / "a.tar"))
    assert sorted(images.key(index) for index in range(len(images))) == ["1.png", "2.png"]
    assert np.array_equal(np.array(images[0]), np.array(images[1]))
    assert images.notes[0].endswith("left out: 1 x link.")


def test_tar__members_are_not_kept_in_memory(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", {str(number): picture(number) for number in range(9)})
    opened, open_tar = [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args: opened.append(open_tar(*args)) or opened[-1])
    assert len(open_images(str(tmp_path / "a.tar"))) == 9
    assert len(opened[0].members) <= 1


def test_tar__without_the_zeros_of_its_files_is_refused(tmp_path):
    array, content = np.full((1, 64, 64), 7, np.uint8), io.BytesIO()
    np.save(content, array)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:  # as tar --sparse writes it: the first bytes, and how many more
        info = tarfile.TarInfo("a.npy")
        info.size, info.pax_headers = 128, {"GNU.sparse.size": str(len(content.getvalue())), "GNU.sparse.map": "0,128"}
        tar.addfile(info, io.BytesIO(content.getvalue()[:128]))
        info = tarfile.TarInfo("b.npy")  # whose bytes would be taken for the rest
        info.size = len(content.getvalue())
        tar.addfile(info, io.BytesIO(content.getvalue()))
    with pytest.raises(ValueError, match="a.npy is packed without its zeros"):
        open_images(str(tmp_path / "a.tar"))


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
    places = [f"{tmp_path}/train-{number}.parquet:{row}" for number, rows in ((0, 7), (1, 5)) for row in range(rows)]
    assert [images.describe(index) for index in range(12)] == places
    read = []
    monkeypatch.setattr(
        ParquetImages, "_read", lambda self, block, r=ParquetImages._read: read.append(block) or r(self, block)
    )
    for index in [4, 7, 3, 5, 11, 10, 9, 8]:
        assert np.array_equal(np.array(images[index]), np.array(picture(index)))
    assert read == [1, 3]
    assert np.array_equal(np.array(pickle.loads(pickle.dumps(images))[11]), np.array(picture(11)))


@pytest.mark.parametrize("effective_batch_size", [8, 16])
def test_parquet__a_reader_of_all_that_is_mixed_reads_each_row_group_once(tmp_path, monkeypatch, effective_batch_size):
    """Row groups in which one lane ends and another begins were dropped, and with them others that were in use."""
    write_parquet(tmp_path / "train-0.parquet", range(240), 3)
    monkeypatch.setattr(hf_mae.data.shards, "_CACHED_ROW_GROUPS", 16)
    images, read = open_images(str(tmp_path)), []
    monkeypatch.setattr(
        ParquetImages, "_read", lambda self, block, r=ParquetImages._read: read.append(block) or r(self, block)
    )
    order = SampleOrder(images, seed=0, effective_batch_size=effective_batch_size)
    indices = [index for _, index, _ in order[slice(0, 240)]]
    assert sorted(indices) == list(range(240))
    for index in indices:
        assert images[index] is not None
    assert sorted(read) == list(range(80))
    assert len({index // 3 for index in indices[:64]}) > 16  # which are from all over the source, still


def test_parquet__that_is_cut_while_it_is_read_raises_an_error(tmp_path):
    """Were it mapped into memory, the process would be killed."""
    write_parquet(tmp_path / "a.parquet", range(6), 3)
    images = open_images(str(tmp_path / "a.parquet"))
    assert np.array_equal(np.array(images[0]), np.array(picture(0)))
    os.truncate(tmp_path / "a.parquet", 100)
    with pytest.raises((OSError, ValueError), match="(?i)file|stream"):
        images[5]


def test_parquet__holds_no_memory_of_row_groups_that_are_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    for number in range(8):
        noise = np.random.default_rng(number).bytes(10**6)
        pyarrow.parquet.write_table(pa.table({"image": [noise]}), tmp_path / f"{number}.parquet")
    images = open_images(str(tmp_path))
    before = pa.total_allocated_bytes()
    for index in range(8):
        with pytest.raises(OSError, match="cannot identify image"):
            images[index]
    assert pa.total_allocated_bytes() - before < 2 * 10**6


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


def test_parquet__columns_of_numbered_values_are_read_as_their_values(tmp_path):
    """As pandas writes a `Categorical`."""
    import pyarrow as pa
    import pyarrow.parquet

    buffers = [io.BytesIO() for _ in range(4)]
    for number, buffer in enumerate(buffers):
        picture(number % 3).save(buffer, "PNG")
    contents, classes = pa.array([buffer.getvalue() for buffer in buffers]), pa.array(["dog", "cat", None, "dog"])
    table = pa.table({"image": contents.dictionary_encode(), "label": classes.dictionary_encode()})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    images = open_images(str(tmp_path / "a.parquet"))
    assert (images.labels.tolist(), images.label_names) == ([1, 0, -1, 1], ["cat", "dog"])
    assert np.array_equal(np.array(images[3]), np.array(picture(0)))


@pytest.mark.parametrize("name", ["a.parquet", "a.tar"])
def test_shards__that_a_mac_left_behind_are_left_out(tmp_path, name):
    if name == "a.tar":
        write_tar(tmp_path / name, {"x": picture(1)})
    else:
        write_parquet(tmp_path / name, [1], 1)
    (tmp_path / f"._{name}").write_bytes(b"\0\5\26\7")
    assert len(open_images(str(tmp_path))) == 1


def test_shards__of_no_split_are_named_where_others_are_called_after_one(tmp_path):
    """They were left out in silence."""
    write_tar(tmp_path / "train-0.tar", {"a": picture(1)})
    write_tar(tmp_path / "test-0.tar", {"b": picture(2)})
    write_tar(tmp_path / "unlabeled-0.tar", {"c": picture(3)})
    assert [len(open_images(str(tmp_path), split)) for split in ("train", "test")] == [1, 1]
    note = f"1 shards name no split and are left out, first {tmp_path / 'unlabeled-0.tar'}."
    assert note in open_images(str(tmp_path)).notes
    (tmp_path / "train-0.tar").unlink()
    images = open_images(str(tmp_path))
    assert images.describe(0) == f"{tmp_path / 'unlabeled-0.tar'}:c.png"
    assert not any("no split" in note for note in images.notes)


def test_arrow__files_that_are_no_stream_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.feather

    pyarrow.feather.write_feather(pa.table({"image": [b"x"]}), str(tmp_path / "feather.arrow"))
    (tmp_path / "empty.arrow").touch()
    for name in ("feather", "empty"):
        with pytest.raises(ValueError, match=rf"{name}.arrow can't be read as an Arrow stream.*save_to_disk"):
            open_images(str(tmp_path / f"{name}.arrow"))


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


# ----------------------------------------------------------------------------------------------------------------------
# What is an image, and what is a class


@pytest.mark.parametrize(
    "left_behind",
    [
        ".ipynb_checkpoints",
        "__MACOSX",
        "@eaDir",
        ".thumbnails",
        ".AppleDouble",
        "$RECYCLE.BIN",
        "#recycle",
        "lost+found",
    ],
)
def test_folder__what_programs_leave_behind_is_no_class_and_no_image(tmp_path, left_behind):
    make(tmp_path, "cat/1.png", "dog/1.png", f"{left_behind}/x.png", f"cat/{left_behind}/1-checkpoint.png")
    (tmp_path / "cat" / "._1.png").write_bytes(b"x")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    images = open_images(str(tmp_path))
    assert names_of(images) == ["cat/1.png", "dog/1.png"]
    assert images.labels.tolist() == [0, 1]
    assert images.label_names == ["cat", "dog"]
    assert any(left_behind in note for note in images.notes)


def test_folder__takes_every_raster_format_and_counts_the_rest(tmp_path):
    make(tmp_path, "a.jfif", "b.gif", "c.jp2", "d.tga", "e.avif", "f.PNG", "g.apng", "h.dds", "i.ico", "j.pcx", "k.sgi")
    for name in ("l.SVS", "m.ndpi", "n.scn"):  # TIFFs of scanners
        picture().save(tmp_path / name, "TIFF")
    for name in ("x.txt", "y.eps", "z.ps", "w.svg", "v.heic", "u.mp4", "none"):
        (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    images = open_images(str(tmp_path))
    assert len(images) == 14
    assert all(images[index].convert("RGB").size[0] for index in range(14))
    (note,) = images.notes
    for extension in ("txt", "eps", "ps", "svg", "heic", "mp4"):
        assert f"1 x .{extension}" in note


def test_folder__dicom_files_need_no_extension(tmp_path):
    (tmp_path / "IM000001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "1.2.840.113").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "DICOMDIR.txt").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "README").write_text("hello")
    assert names_of(open_images(str(tmp_path))) == ["1.2.840.113", "IM000001"]


def test_folder__the_list_of_a_dicom_disc_is_no_image(tmp_path):
    (tmp_path / "disc" / "P1").mkdir(parents=True)
    for name in ("DICOMDIR", "P1/IM000001"):
        (tmp_path / "disc" / name).write_bytes(bytes(128) + b"DICM")
    with tarfile.open(tmp_path / "disc.tar", "w") as tar:
        tar.add(tmp_path / "disc", ".")
    folder, shard = open_images(str(tmp_path / "disc")), open_images(str(tmp_path / "disc.tar"))
    assert names_of(folder) == [shard.key(0)] == ["P1/IM000001"]
    assert len(shard) == 1
    assert "left out: 1 x none" in folder.notes[0]


def test_folder__the_first_folder_below_the_root_is_the_class(tmp_path):
    make(tmp_path, "cat/1.png", "cat/deep/er/2.png", "dog/a/1.png", "dog/b/2.png", *(f"cow/{n}.png" for n in range(16)))
    images = open_images(str(tmp_path))
    assert images.label_names == ["cat", "cow", "dog"]
    assert [images.label_names[label] for label in images.labels] == [name.split("/")[0] for name in names_of(images)]
    make(tmp_path, "stray.png")
    images = open_images(str(tmp_path))
    assert images.labels.tolist() == [-1, 0, 0, *[1] * 16, 2, 2]
    assert any("stray.png" in note for note in images.notes)
    assert open_images(str(tmp_path), labels="none").labels is None


def test_folder__many_files_next_to_few_folders_are_no_classes(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png", *(f"{n}.png" for n in range(5)))
    assert open_images(str(tmp_path)).labels is None


def test_folder__below_a_single_folder_are_the_classes(tmp_path):
    make(tmp_path, "data/images/cat/1.png", "data/images/dog/1.png", "data/masks/cat/1.png", "data/masks/dog/1.png")
    images = open_images(str(tmp_path))
    assert names_of(images) == ["data/images/cat/1.png", "data/images/dog/1.png"]
    assert images.label_names == ["cat", "dog"]


@pytest.mark.parametrize("masks", ["masks", "annotations", "labels", "SegmentationClass", "gt"])
def test_folder__masks_next_to_images_are_not_trained_on(tmp_path, masks):
    make(tmp_path, "images/1.png", f"{masks}/1.png")
    images = open_images(str(tmp_path))
    assert names_of(images) == ["images/1.png"]
    assert images.labels is None
    assert any(masks in note for note in images.notes)
    assert names_of(open_images(str(tmp_path / masks))) == ["1.png"]  # if that is what is asked for


def test_folder__masks_by_their_names_are_not_trained_on(tmp_path):
    make(tmp_path, "1.png", "1_mask.png", "2.png", "2_mask.png", "death_mask.png")
    images = open_images(str(tmp_path))
    assert names_of(images) == ["1.png", "2.png", "death_mask.png"]
    assert "2 x masks" in images.notes[0]


def test_file__a_single_image_is_a_source(tmp_path):
    make(tmp_path, "a.png", "b.png")
    assert names_of(open_images(str(tmp_path / "a.png"))) == ["a.png"]
    assert open_images(str(tmp_path / "a.png"), "test") is None


# ----------------------------------------------------------------------------------------------------------------------
# Columns


def two_columns(**features):
    """A data set of pictures and masks, and classes of two kinds."""
    import datasets

    rows = {"annotation": [picture(9, mode="L")] * 3, "image": [picture(number) for number in range(3)]}
    rows |= {"fine": [2, 0, 1], "label": [1, 0, 1], "text": ["b", "a", "b"], "score": [0.5, 1.5, None]}
    features = {
        "annotation": datasets.Image(),
        "image": datasets.Image(),
        "fine": datasets.ClassLabel(names=["x", "y", "z"]),
        "label": datasets.Value("int64"),
        "text": datasets.Value("string"),
        "score": datasets.Value("float32"),
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_columns__of_images_that_have_none_are_refused(tmp_path):
    picture(0).save(tmp_path / "a.png")
    for data in (str(tmp_path), None):
        with pytest.raises(ValueError, match="`image_column` names a column, and .* holds files. Leave it out."):
            open_images(data, image_column="annotation")
        with pytest.raises(ValueError, match="`dataset_config` is for data sets on the Hub"):
            open_images(data, dataset_config="small")
        with pytest.raises(ValueError, match="`streaming` is for data sets on the Hub"):
            open_images(data, streaming=True)
    for reading in (ReadingSettings(), ReadingSettings(pages="images")):
        with pytest.raises(ValueError, match="`label_column` names a column, and .* holds files. Leave it out"):
            open_run_images(PretrainingSettings(data=str(tmp_path), label_column="kind"), None, reading)
    with pytest.raises(ValueError, match="`label_column` names the labels, and `labels` none leaves them out"):
        PretrainingSettings(label_column="kind", labels="none")
    with pytest.raises(ValueError, match="`label_column` names the labels, and `streaming` leaves them out"):
        PretrainingSettings(label_column="kind", streaming=True)


def test_columns_of_labels__are_read_also_where_pages_are_images():
    """The run was refused, as if the data set held files."""
    settings = PretrainingSettings(label_column="fine", held_out=0)
    found = open_run_images(settings, two_columns(), ReadingSettings(pages="images"))
    assert found.train.label_names == ["x", "y", "z"]
    assert found.train.labels.tolist() == open_images(two_columns(), label_column="fine").labels.tolist()


def test_evaluation_images_of_one_class__have_the_number_that_it_has_in_training(tmp_path):
    """One class alone was taken for none, and the run gave no k-NN accuracy."""
    for name in ("train/a/0.png", "train/b/0.png", "val/b/0.png", "val/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0).save(tmp_path / name)
    found = open_run_images(PretrainingSettings(data=str(tmp_path)), None, ReadingSettings())
    assert found.train.labels.tolist() == [0, 1]
    assert found.test.labels.tolist() == [1, 1]
    unlabelled = open_run_images(PretrainingSettings(data=str(tmp_path), labels="none"), None, ReadingSettings())
    assert unlabelled.test.labels is None


def test_fingerprint_of_a_data_set__is_that_of_its_images_and_not_of_their_labels():
    """Scores of the same images were refused as those of others, and a run was not continued with other labels."""
    data = two_columns()
    fingerprints = {open_images(data, label_column=column).fingerprint for column in (None, "fine", "text", "score")}
    assert len(fingerprints) == 1
    assert open_images(data.select([0, 1])).fingerprint not in fingerprints
    assert open_images(data, image_column="annotation").fingerprint not in fingerprints


@pytest.mark.parametrize(
    "settings",
    [{"tile": 8}, {"labels": "none"}, {"label_column": "kind"}, {"image_column": "left"}, {"streaming": True}],
)
def test_settings_of_a_path__are_refused_for_a_source_of_its_own(settings):
    """They had no effect, in silence: a source with classes was measured by these although `labels` was none."""
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is for images that a path or a data set names"):
        open_run_images(PretrainingSettings(**settings), FashionMNISTImages(), ReadingSettings())


@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_columns__are_chosen_by_name_and_the_choice_is_noted(tmp_path, kind):
    path = tmp_path / ("data.parquet" if kind == "parquet" else "data")
    (two_columns().to_parquet if kind == "parquet" else two_columns().save_to_disk)(path)
    images = open_images(str(path))
    assert np.array_equal(np.array(images[1]), np.array(picture(1)))
    assert images.labels.tolist() == [1, 0, 1]
    assert any("annotation" in note and "image" in note for note in images.notes)
    masks = open_images(str(path), image_column="annotation", label_column="text")
    assert masks[0].mode == "L"
    assert masks.labels.tolist() == [1, 0, 1]
    assert masks.label_names == ["a", "b"]
    assert open_images(str(path), label_column="fine").label_names == ["x", "y", "z"]
    scores = open_images(str(path), label_column="score").labels
    assert np.array_equal(scores.ravel(), np.array([0.5, 1.5, np.nan], np.float32), equal_nan=True)
    assert open_images(str(path), labels="none").labels is None
    with pytest.raises(ValueError, match="no column 'picture'.*image_column.*annotation"):
        open_images(str(path), image_column="picture")


def test_columns__that_are_not_clear_are_refused(tmp_path):
    two_columns().rename_column("image", "photo").to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="annotation, photo.*`image_column`"):
        open_images(str(tmp_path / "data.parquet"))


@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_columns__of_arrays_keep_their_type(tmp_path, kind):
    import datasets

    arrays = np.random.default_rng(0).integers(-1000, 1000, (3, 5, 6, 7)).astype(np.int16)
    features = datasets.Features({"pixel_values": datasets.Array3D((5, 6, 7), "int16")})
    dataset = datasets.Dataset.from_dict({"pixel_values": list(arrays)}, features=features)
    path = tmp_path / ("data.parquet" if kind == "parquet" else "data")
    (dataset.to_parquet if kind == "parquet" else dataset.save_to_disk)(path)
    images = open_images(str(path))
    assert images[2].dtype == np.int16
    assert np.array_equal(images[2], arrays[2])


# ----------------------------------------------------------------------------------------------------------------------
# Many files, large row groups


def test_tar__many_shards_need_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_mae.data.shards, "_OPEN_FILES", 4)
    for shard in range(12):
        write_tar(tmp_path / f"{shard:02}.tar", {"a": picture(shard)})
    images = open_images(str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    for index in [*range(12), 0, 11, 3]:
        assert np.array_equal(np.array(images[index]), np.array(picture(index)))
    assert len(os.listdir("/proc/self/fd")) - before <= 4


def test_parquet__of_paths_starts_at_its_own_folder(tmp_path, monkeypatch):
    make(tmp_path / "data", "pictures/0.png", "pictures/1.png")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = ["pictures/0.png", str(tmp_path / "data" / "pictures" / "1.png")]
    parquet.write_table(pyarrow.table({"image": names}), tmp_path / "data" / "train.parquet")
    images = open_images(str(tmp_path / "data" / "train.parquet"), image_column="image")
    assert [np.array_equal(np.array(images[n]), np.array(picture(n))) for n in (0, 1)] == [True, True]
    # A path that is not there starts where the command was started.
    (tmp_path / "data" / "train.parquet").rename(tmp_path / "train.parquet")
    monkeypatch.chdir(tmp_path / "data")
    assert np.array_equal(
        np.array(open_images(str(tmp_path / "train.parquet"), image_column="image")[0]), np.array(picture(0))
    )


def test_tar__that_became_stale_is_opened_again(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", {"one": picture(1)})
    images, read, stale = open_images(str(tmp_path / "a.tar")), os.pread, []

    def stale_at_first(descriptor, *args):
        stale.append(descriptor)
        if len(stale) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(descriptor, *args)

    monkeypatch.setattr(os, "pread", stale_at_first)
    with pytest.raises(OSError, match="Stale"):
        images[0]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(stale[0])
    assert np.array_equal(np.array(images[0]), np.array(picture(1)))


def test_parquet__large_row_groups_are_bounded_and_told(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", range(12), 3)
    assert open_images(str(tmp_path)).row_groups_at_once == 64
    monkeypatch.setattr(hf_mae.data.shards, "_group_bytes", lambda *_: 10)
    monkeypatch.setattr(hf_mae.data.shards, "_ROW_GROUP_BYTES", 25)
    images = open_images(str(tmp_path))
    assert images.row_groups_at_once == 2
    assert any("row_group_size" in note for note in images.notes)
    order = SampleOrder(images, 0, 1, 4)[slice(0, 12)]
    assert sorted(index for _, index, _ in order) == list(range(12))
    read = []
    monkeypatch.setattr(ParquetImages, "_read", lambda self, g, r=ParquetImages._read: read.append(g) or r(self, g))
    for _, index, _ in order:
        images[index]
    assert sorted(read) == [0, 1, 2, 3]  # once each, although no more than two are kept


# ----------------------------------------------------------------------------------------------------------------------
# Windows and pages


def write_scene(path, array, **options):
    tifffile = pytest.importorskip("tifffile")
    photometric = {"photometric": "minisblack", "metadata": None}
    tifffile.imwrite(path, array, **{**photometric, **options})


LAYOUTS = {
    "tiles": {"tile": (32, 48)},
    "deflate tiles": {"tile": (32, 16), "compression": "deflate"},
    "strips": {"rowsperstrip": 7},
    "one strip": {},
    "planes": {"tile": (16, 16), "planarconfig": "separate"},
    "plane strips": {"rowsperstrip": 5, "planarconfig": "separate"},
    "big endian": {"tile": (16, 16), "byteorder": ">", "bigtiff": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tile__windows_of_a_scene_are_images(tmp_path, layout):
    array = np.random.default_rng(0).integers(0, 65536, (4, 100, 130)).astype(np.uint16)
    options = {"planarconfig": "contig", **LAYOUTS[layout]}
    write_scene(
        tmp_path / "s.tif", array if options["planarconfig"] == "separate" else array.transpose(1, 2, 0), **options
    )
    images = open_images(str(tmp_path), tile=40)
    assert len(images) == 3 * 4
    covered = np.zeros((100, 130), bool)
    for copy in (images, pickle.loads(pickle.dumps(images))):
        for index in range(len(copy)):
            _, top, left = copy.parts[index]
            stored = read_stored(copy[index], 4)
            assert np.array_equal(stored.pixels, array[:, top : top + 40, left : left + 40])
            covered[top : top + 40, left : left + 40] = True
    assert covered.all()
    assert f"row {images.parts[5, 1]}, column {images.parts[5, 2]}" in images.describe(5)


def test_tile__is_the_same_in_forked_workers(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.uint8)
    write_scene(tmp_path / "s.tif", array, tile=(64, 64), compression="deflate")
    dataset = PretrainingDataset(open_images(str(tmp_path), tile=64), (64, 64), 16, 1, crop_scale=(1, 1))
    dataset[0]  # opens the file before the fork
    batches = [list(DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=collate)) for workers in (0, 2)]
    for ours, theirs in zip(*batches, strict=True):
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


def test_tile__windows_without_data_are_dropped_and_counted(tmp_path):
    array = np.random.default_rng(0).integers(1, 100, (64, 64)).astype(np.int16)
    array[:32] = -999
    extratags = [(42113, "s", 0, "-999", True)]
    write_scene(tmp_path / "s.tif", array, tile=(16, 16), extratags=extratags)
    images = open_images(str(tmp_path), tile=16)
    assert len(images) == 8
    assert images.parts[:, 1].min() == 32
    assert "8 without data" in images.notes[-1]
    assert len(open_images(str(tmp_path), tile=16, reading=ReadingSettings(nodata=-1))) == 16
    array[:] = -999
    write_scene(tmp_path / "s.tif", array, extratags=extratags)
    with pytest.raises(ValueError, match="nothing but no-data"):
        open_images(str(tmp_path), tile=16)


def test_tile__small_scenes_arrays_and_what_can_not_be_read_in_part(tmp_path):
    np.save(tmp_path / "s.npy", np.arange(2 * 30 * 50, dtype=np.uint16).reshape(2, 30, 50))
    images = open_images(str(tmp_path), tile=40)
    assert [tuple(part[1:]) for part in images.parts] == [(0, 0), (0, 10)]
    assert read_stored(images[1], 2).size == (30, 40)
    make(tmp_path, "a.png")
    with pytest.raises(UnsuitableImageError, match="a.png.*TIFF or .npy"):
        open_images(str(tmp_path), tile=40)


def test_tile__keeps_the_labels_of_the_scenes(tmp_path):
    for name in ("forest", "sea"):
        (tmp_path / name).mkdir()
        write_scene(tmp_path / name / "s.tif", np.zeros((32, 32), np.uint8), tile=(16, 16))
    images = open_images(str(tmp_path), tile=16)
    assert images.labels.tolist() == [0] * 4 + [1] * 4
    assert images.fingerprint != open_images(str(tmp_path), tile=32).fingerprint


def test_pages__of_files_are_images(tmp_path):
    stack = np.random.default_rng(0).integers(0, 256, (3, 20, 20)).astype(np.uint8)
    write_scene(tmp_path / "a.tif", stack)
    write_scene(tmp_path / "b.tif", stack[0])
    images = open_images(str(tmp_path), reading=ReadingSettings(pages="images"))
    assert len(images) == 4
    assert np.array_equal(read_stored(images[2], 1).pixels[0], stack[2])
    assert "a.tif, page 3" in images.describe(2)
    dataset = PretrainingDataset(images, (16, 16), 4, 1, reading=ReadingSettings(pages="images"))
    assert dataset[2]["pixel_values"].shape == (1, 16, 16)
