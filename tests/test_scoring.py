# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The loss of each image and each patch with fixed masks, and runs that draw their images by it."""

import json
import signal
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SMALL, STEPS, SignalAt, metrics, picture, same_tensors, samples

from hf_mae import MAEForPreTraining, MAEImageProcessor, pretrain
from hf_mae.data.held_out import hold_out
from hf_mae.data.sampling import SampleOrder, StepBatchSampler, systematic_counts
from hf_mae.data.scores import read_losses, weights_by_loss
from hf_mae.data.sources import open_images
from hf_mae.evaluation.scoring import Scorer, patch_losses, score_command
from hf_mae.modeling.masking_mae import complementary_masks
from hf_mae.training.step_guard import RunStopped

# ----------------------------------------------------------------------------------------------------------------------
# Masks and losses


@pytest.mark.parametrize("fields", [{}, {"mask_block_size": 2}, {"mask_sampling": "block"}, {"norm_pix_loss": True}])
def test_patch_losses__have_the_loss_of_the_model_as_their_mean(tiny_model, fields):
    model, images = tiny_model(**fields), torch.randn(3, 3, 32, 32)
    losses = patch_losses(model, images, num_masks=3, seed=1)
    rule = (model.config.mask_sampling, model.config.mask_block_size)
    masks = complementary_masks((4, 4), 0.75, 3, 1, *rule)
    assert losses.shape == (3, 3, 16)
    for image in range(3):
        for mask in range(3):
            output = model(images[image : image + 1], ids_keep=masks[mask][None])
            assert torch.equal(losses[image, mask].isnan(), ~output.mask[0])
            assert losses[image, mask].nanmean().item() == pytest.approx(output.loss.item(), rel=1e-5)


def test_patch_losses__are_the_squared_errors_of_the_patch(tiny_model):
    model, images = tiny_model(norm_pix_loss=False), torch.randn(2, 3, 32, 32)
    losses = patch_losses(model, images, num_masks=1)
    (mask,) = complementary_masks((4, 4), 0.75, num_masks=1)
    shown = model.reconstruct(images, ids_keep=mask.expand(2, -1)).reconstruction
    errors = (shown - images).square().unflatten(3, (4, 8)).unflatten(2, (4, 8)).mean(dim=(1, 3, 5)).flatten(1)
    hidden = losses[:, 0].isfinite()
    assert losses[:, 0][hidden].tolist() == pytest.approx(errors[hidden].tolist(), rel=1e-4)


def test_patch_losses__of_an_image_of_which_nothing_is_hidden_are_those_of_all_patches(tiny_model):
    model, images = tiny_model(), torch.randn(2, 3, 32, 32)
    losses = patch_losses(model, images, num_masks=1, mask_ratio=0)
    assert losses.shape == (2, 1, 16)
    assert losses.mean().item() == pytest.approx(model(images, mask_ratio=0).loss.item(), rel=1e-5)


def test_patch_losses__leave_no_data_out(tiny_model):
    model, images = tiny_model(), torch.randn(2, 3, 32, 32)
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    valid[0, 9, 20] = False  # in the patch of the second row, third column
    losses = patch_losses(model, images, valid=valid)
    assert torch.equal(losses[0].isnan().all(dim=0), torch.arange(16) == 6)
    assert not losses[1].isnan().all(dim=0).any()
    for mask, ids_keep in enumerate(complementary_masks((4, 4), 0.75, num_masks=4)):
        expected = model(images[:1], ids_keep=ids_keep[None], valid=valid[:1]).loss.item()
        assert losses[0, mask].nanmean().item() == pytest.approx(expected, rel=1e-5)


def test_patch_losses__of_another_target(tiny_config):
    class Brightness(MAEForPreTraining):
        """Predicts the mean of a patch, and is punished by the absolute error."""

        def num_target_values(self):
            return 1

        def target_values(self, pixel_values, ids):
            return pixel_values.unflatten(3, (4, 8)).unflatten(2, (4, 8)).mean(dim=(1, 3, 5)).flatten(1).gather(1, ids)

        def target_loss(self, predictions, target, valid=None):
            return (predictions[..., 0] - target).abs().mean()

    model, images = Brightness(tiny_config()).eval(), torch.randn(2, 3, 32, 32)
    losses = patch_losses(model, images, num_masks=2)
    masks = complementary_masks((4, 4), 0.75, num_masks=2)
    expected = [model(images, ids_keep=ids_keep.expand(2, -1)).loss.item() for ids_keep in masks]
    assert losses.nanmean(dim=2).mean(dim=0).tolist() == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def score(pretrained, tmp_path, capsys):
    """Runs `hf-mae score` and returns the rows of the file, its metadata and what was printed."""

    def run(data, *arguments, model=pretrained):
        output = tmp_path / "scores.parquet"
        options = ["--data", data, "--model", model, "--output", output, "--device", "cpu", "--overwrite", *arguments]
        score_command(list(map(str, options)), prog="hf-mae score")
        table = pq.read_table(output)
        metadata = {name.decode(): json.loads(value) for name, value in table.schema.metadata.items()}
        return table.to_pydict(), metadata, capsys.readouterr().out

    return run


@pytest.fixture
def photos(tmp_path):
    """A folder of six pictures, of which the third can't be read."""
    (tmp_path / "photos").mkdir()
    for number in range(6):
        picture(number, (40 + number, 32)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "2.png").write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.mark.slow
def test_score__writes_a_row_for_each_image_in_order(score, photos, pretrained, tmp_path):
    rows, metadata, printed = score(photos, "--batch_size", 2, "--maps", "--sheet_images", 2)
    assert rows["index"] == list(range(6))
    assert rows["name"] == [str(photos / f"{number}.png") for number in range(6)]
    model, processor = (
        MAEForPreTraining.from_pretrained(pretrained).eval(),
        MAEImageProcessor.from_pretrained(pretrained),
    )
    for number in (0, 1, 3, 4, 5):
        losses = patch_losses(model, processor(str(photos / f"{number}.png"), return_tensors="pt").pixel_values)[0]
        assert rows["mask_losses"][number] == pytest.approx(losses.nanmean(dim=1).tolist(), rel=1e-4)
        assert rows["loss"][number] == pytest.approx(losses.nanmean(dim=1).mean().item(), rel=1e-4)
        assert rows["patch_losses"][number] == pytest.approx(losses.nanmean(dim=0).tolist(), rel=1e-4)
    assert np.isnan(rows["loss"][2])
    assert np.isnan(rows["mask_losses"][2]).all()
    assert metadata["fingerprint"] == open_images(str(photos)).fingerprint
    expected = {"num_images": 6, "num_masks": 4, "mask_ratio": 0.75, "seed": 0, "image_size": [32, 32]}
    assert {name: metadata[name] for name in expected} == expected
    assert "1 of them have no loss" in printed
    order = np.argsort([-1 if number == 2 else rows["loss"][number] for number in range(6)])
    assert f"highest {rows['loss'][order[-1]]:.3f}  {order[-1]}: {photos / f'{order[-1]}.png'}" in printed
    assert f"lowest {rows['loss'][order[1]]:.3f}  {order[1]}: {photos / f'{order[1]}.png'}" in printed
    assert PIL.Image.open(tmp_path / "scores.png").size == (4 * 236, 2 * (16 + 128))  # pairs in a row for each end


@pytest.mark.slow
def test_score__the_same_again_and_with_other_batches(score, photos):
    first, second = score(photos, "--sheet_images", 0), score(photos, "--sheet_images", 0, "--batch_size", 5)
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-5, nan_ok=True)
    assert first[1] == second[1]
    assert score(photos, "--seed", 1)[0]["loss"][0] != first[0]["loss"][0]


@pytest.mark.slow
def test_score__deep_images_of_two_bands_with_no_data(score, tiny_model, tmp_path):
    tiny_model(num_channels=2).save_pretrained(tmp_path / "bands")
    options = {
        "num_channels": 2,
        "value_range": [0, 1000],
        "nodata": -1,
        "image_mean": [0.5] * 2,
        "image_std": [0.3] * 2,
    }
    processor = MAEImageProcessor.for_image_size(32, **options)
    processor.save_pretrained(tmp_path / "bands")
    (tmp_path / "tiles").mkdir()
    pixels = np.random.default_rng(0).uniform(0, 1000, (3, 2, 32, 32)).astype(np.float32)
    pixels[1, :, :8, :16] = -1
    pixels[2] = -1
    for number in range(3):
        np.save(tmp_path / "tiles" / f"{number}.npy", pixels[number])
    rows, _, printed = score(tmp_path / "tiles", "--maps", model=tmp_path / "bands")
    assert np.isfinite(rows["loss"]).tolist() == [True, True, False]
    valid = processor(str(tmp_path / "tiles" / "1.npy"), return_tensors="pt", return_valid=True).valid[0]
    expected = ~valid.unflatten(1, (4, 8)).unflatten(0, (4, 8)).all(dim=3).all(dim=1).flatten()
    assert np.isnan(rows["patch_losses"][1]).tolist() == expected.tolist()
    assert expected[:2].all()
    assert not expected[8:].any()
    assert "can't be read, or show no data" in printed


@pytest.mark.slow
def test_score__mistakes_are_named(score, pretrained, photos, tmp_path):
    for options, message in (
        (["--output", "scores.csv"], "must end in .parquet"),
        (["--num_masks", 0], "`num_masks` must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            score(photos, *options)
    with pytest.raises(ValueError, match="`model` is missing"):
        score_command([], prog="hf-mae score")
    MAEForPreTraining.from_pretrained(pretrained).mae.save_pretrained(tmp_path / "encoder")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="holds no decoder"):
        score(photos, model=tmp_path / "encoder")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="None of the images of .* has a loss"):
        score(tmp_path / "broken")


def test_score__names_the_labels_whose_numbers_it_writes(score, folder):
    rows, metadata, _ = score(folder, "--sheet_images", 0)
    assert metadata["label_names"] == ["blue", "green", "red"]
    names = [metadata["label_names"][label] for label in rows["label"]]
    assert names == [Path(name).parent.name for name in rows["name"]]


def test_score__never_writes_over_the_images_nor_among_them(pretrained, photos, tmp_path):
    """A sheet among the images would change their fingerprint, so that no run could take the scores."""

    def score(data, output, *arguments):
        options = ["--model", pretrained, "--data", data, "--output", output, "--device", "cpu", *arguments]
        score_command(list(map(str, options)), prog="hf-mae score")

    before = {path: path.read_bytes() for path in photos.iterdir()}
    with pytest.raises(ValueError, match=r"The sheet .*0\.png is there already.*`overwrite`"):
        score(photos / "0.png", photos / "0.parquet")
    with pytest.raises(ValueError, match=r"`data` .*0\.png would be replaced"):
        score(photos / "0.png", photos / "0.parquet", "--overwrite")
    with pytest.raises(ValueError, match=r"scores\.png would become one of the images of `data`.*`sheet_images` to 0"):
        score(photos, photos / "new" / "scores.parquet")
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    score(photos, photos / "scores.parquet", "--sheet_images", 0)
    assert len(weights_by_loss(photos / "scores.parquet", open_images(str(photos)))) == 6
    shard = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"image": [(photos / "0.png").read_bytes()]}), shard)
    before = shard.read_bytes()
    with pytest.raises(ValueError, match=r"`data` .*shard\.parquet would be replaced"):
        score(shard, shard, "--overwrite")
    assert shard.read_bytes() == before


def test_score__unsuitable_images_are_found_before_the_work(score, photos, tiny_model, tmp_path, monkeypatch):
    pytest.importorskip("tifffile")
    monkeypatch.setattr(Scorer, "__call__", lambda *given: pytest.fail("the work has started"))
    picture(6).save(photos / "9.tif", save_all=True, append_images=[picture(7)])
    with pytest.raises(ValueError, match=r"9\.tif: The image has 2 pages"):
        score(photos, "--batch_size", 1)
    assert not list(tmp_path.glob("scores*"))
    tiny_model(num_channels=4).save_pretrained(tmp_path / "bands")
    MAEImageProcessor.for_image_size(32, num_channels=4).save_pretrained(tmp_path / "bands")
    with pytest.raises(ValueError, match="The embedded images are grey, of 8 bits.*Name pictures of your own"):
        score_command(
            ["--model", str(tmp_path / "bands"), "--output", str(tmp_path / "x.parquet")], prog="hf-mae score"
        )


# ----------------------------------------------------------------------------------------------------------------------
# Drawing by weights


def test_systematic_counts__are_the_expected_numbers_rounded_down_or_up():
    """With the weights 1, 2, 3, 6 in twelfths: 4 samples are expected as 1/3, 2/3, 1 and 2 of them."""
    weights = np.array([1, 2, 3, 6]) / 12
    drawn = np.array([systematic_counts(weights, offset) for offset in (np.arange(300) + 0.5) / 300])
    assert drawn.min(axis=0).tolist() == [0, 0, 1, 2]
    assert drawn.max(axis=0).tolist() == [1, 1, 1, 2]
    assert (drawn.sum(axis=1) == 4).all()
    assert drawn.mean(axis=0) == pytest.approx([1 / 3, 2 / 3, 1, 2])


def test_systematic_counts__of_many_weights():
    rng = np.random.default_rng(0)
    for _ in range(50):
        weights = rng.random(500) ** 3
        expected = weights * 500 / weights.sum()
        counts = systematic_counts(weights, rng.random())
        assert counts.sum() == 500
        assert (counts >= np.floor(expected)).all()
        assert (counts <= np.ceil(expected)).all()


@pytest.mark.parametrize("weight", [1, 0.3, 1e-3])
@pytest.mark.parametrize("offset", [0, 0.3, 1 - 2**-53])
def test_systematic_counts__equal_weights_give_each_once(weight, offset):
    assert (systematic_counts(np.full(3001, weight), offset) == 1).all()


def epoch_of(order, number, size):
    return order[slice(number * size, (number + 1) * size)]


def test_order__an_epoch_has_as_many_samples_and_never_two_alike():
    weights = np.array([0, 0.1, 0.5, 1, 1, 0.4])  # in sum half of 6
    order = SampleOrder(6, seed=4, weights=weights)
    seen = np.zeros(6)
    for number in range(300):
        epoch = epoch_of(order, number, 6)
        assert {each for each, _, _ in epoch} == {number}
        assert len(set(epoch)) == 6
        for index in range(6):  # further draws of an image are further views, so that their crops differ
            views = sorted(view for _, i, view in epoch if i == index)
            assert views == list(range(len(views)))
            seen[index] += len(views)
    assert seen[0] == 0
    assert seen / 300 == pytest.approx([0, 0.2, 1, 2, 2, 0.8], abs=0.05)
    assert epoch_of(order, 7, 6) == epoch_of(SampleOrder(6, seed=4, weights=weights), 7, 6)
    assert epoch_of(order, 7, 6) != epoch_of(SampleOrder(6, seed=5, weights=weights), 7, 6)


def test_order__views_of_further_draws_are_others():
    order = SampleOrder(3, seed=0, views_per_image=2, weights=np.array([1.0, 0, 0]))
    assert sorted(order[slice(0, 6)]) == [(0, 0, view) for view in range(6)]
    views = [view for _, _, view in order[slice(0, 6)]]
    assert [first + 1 for first in views[0::2]] == views[1::2]  # two crops of one decoded image


def test_order__equal_weights_take_each_image_once():
    epoch = epoch_of(SampleOrder(100, seed=0, weights=np.full(100, 0.7)), 2, 100)
    assert sorted(epoch) == [(2, index, 0) for index in range(100)]


def test_order__is_shared_by_processes():
    weights = np.random.default_rng(0).random(50)
    order = SampleOrder(50, seed=1, weights=weights)
    alone = list(StepBatchSampler(order, 12, 12, range(9)))
    parts = [list(StepBatchSampler(order, 12, 12, range(9), process, 2)) for process in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == alone
    assert list(StepBatchSampler(SampleOrder(50, seed=1, weights=weights), 12, 12, range(5, 9))) == alone[5:]


# ----------------------------------------------------------------------------------------------------------------------
# From scores to a run


def write_scores(path, images, losses, **changes):
    """Writes what hf-mae score would, in another order of rows."""
    metadata = {"source": images.name, "fingerprint": images.fingerprint, **changes}
    index = np.random.default_rng(0).permutation(len(losses))
    table = pa.table({"index": index, "loss": np.asarray(losses, dtype=np.float32)[index]})
    pq.write_table(table.replace_schema_metadata({name: json.dumps(value) for name, value in metadata.items()}), path)
    return path


def test_weights__are_the_losses_up_to_one(tmp_path):
    images = open_images()
    losses = np.linspace(0, 2, len(images))
    losses[:3] = np.nan
    scores = write_scores(tmp_path / "scores.parquet", images, losses)
    weights = weights_by_loss(scores, images)
    assert weights[:3].tolist() == [0, 0, 0]
    assert weights[3:] == pytest.approx(np.minimum(losses[3:], 1), rel=1e-6)


def test_weights__of_the_images_that_are_trained_on(tmp_path):
    """The losses are those of all images, and a tenth is held out."""
    images = open_images()
    scores = write_scores(tmp_path / "scores.parquet", images, np.arange(len(images)))
    train, held_out, _ = hold_out(images, 0.1)
    for part in (train, held_out):
        assert [images.key(int(loss)) for loss in read_losses(scores, part)] == [part.key(i) for i in range(len(part))]
    again, _, _ = hold_out(train, 0.5)
    assert [images.key(int(loss)) for loss in read_losses(scores, again)] == [again.key(i) for i in range(len(again))]


def test_weights__of_others_are_refused(tmp_path):
    images, path = open_images(), tmp_path / "scores.parquet"
    losses = np.ones(len(images))
    with pytest.raises(
        ValueError, match="losses of 3,000 images of the moon, with the fingerprint abc. These are 1,000"
    ):
        weights_by_loss(
            write_scores(path, images, losses, source="the moon", fingerprint="abc"), open_images(split="test")
        )
    with pytest.raises(ValueError, match="has no positive loss"):
        weights_by_loss(write_scores(path, images, losses * 0), images)
    with pytest.raises(ValueError, match="has negative losses"):
        weights_by_loss(write_scores(path, images, losses - 2), images)
    with pytest.raises(OSError, match="There is no file"):
        weights_by_loss(tmp_path / "none.parquet", images)
    pq.write_table(pa.table({"loss": losses}), path)
    with pytest.raises(ValueError, match="is no file of hf-mae score"):
        weights_by_loss(path, images)
    path.write_text("index,loss\n")
    with pytest.raises(ValueError, match="is no file of hf-mae score"):
        weights_by_loss(path, images)
    images.row_groups = np.array([1500, 1500])
    with pytest.raises(ValueError, match="is read by row group"):
        weights_by_loss(write_scores(path, images, losses), images)


@pytest.fixture
def halves(tmp_path):
    """Scores by which only even images are drawn, each twice an epoch."""
    images = open_images()
    return write_scores(tmp_path / "halves.parquet", images, np.arange(len(images)) % 2 == 0)


@pytest.mark.slow
def test_run__draws_by_loss_and_continues_exactly(halves, tmp_path, capsys):
    options = {**STEPS, "max_steps": 6, "config_overrides": SMALL, "sample_by_loss": str(halves)}
    pretrain(None, tmp_path / "whole", **options)
    assert (
        "in an epoch of 3,000 on average up to 2.00 times each; 1,500 less than half as often"
        in capsys.readouterr().out
    )
    drawn = [json.loads(line) for line in samples(tmp_path / "whole")]
    assert len(drawn) == 6 * 24
    assert all(sample["index"] % 2 == 0 for sample in drawn)
    with pytest.raises(RunStopped, match="saved at step 4"):
        pretrain(None, tmp_path / "parts", **options, trackers=[SignalAt(3, signal.SIGTERM)])
    with pytest.raises(ValueError, match="holds another run. It differs in\\s+sample_by_loss"):
        pretrain(None, tmp_path / "parts", **{**options, "sample_by_loss": None})
    moved = halves.rename(tmp_path / "moved.parquet")
    pretrain(None, tmp_path / "parts", **{**options, "sample_by_loss": str(moved), "per_device_train_batch_size": 24})
    assert samples(tmp_path / "parts") == samples(tmp_path / "whole")
    assert metrics(tmp_path / "parts", "loss") == metrics(tmp_path / "whole", "loss")
    assert same_tensors("model.safetensors", tmp_path / "parts", tmp_path / "whole")
