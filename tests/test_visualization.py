# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Attention maps, sheets of reconstructions, the picture of a run, and the two commands that draw sheets."""

import tarfile

import numpy as np
import PIL.Image
import PIL.ImageFont
import pytest
import torch
from conftest import no_room_beyond, picture

from hf_mae import MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.evaluation.baselines import interpolate_hidden
from hf_mae.evaluation.classification_metrics import confusion_sheet
from hf_mae.evaluation.progress import loss_curve, progress_picture, round_values
from hf_mae.evaluation.visualization import (
    attention_command,
    attention_rollout,
    attention_sheet,
    drawable_names,
    reconstruct_command,
    reconstruction_sheet,
)

# ----------------------------------------------------------------------------------------------------------------------
# Attention


def test_attentions__are_the_same_whatever_the_implementation(tiny_config):
    config, attentions, pixel_values = tiny_config(), {}, torch.randn(2, 3, 32, 32)
    weights = MAEModel(config).state_dict()
    for implementation in ("eager", "sdpa"):
        model = MAEModel._from_config(config, attn_implementation=implementation).eval()
        model.load_state_dict(weights)
        assert model.config._attn_implementation == implementation
        attentions[implementation] = model(pixel_values, output_attentions=True).attentions
    assert len(attentions["eager"]) == len(attentions["sdpa"]) == 2
    for eager, sdpa in zip(attentions["eager"], attentions["sdpa"], strict=True):
        assert eager.shape == (2, 4, 17, 17)
        torch.testing.assert_close(sdpa, eager)
        torch.testing.assert_close(sdpa.sum(dim=-1), torch.ones(2, 4, 17))


def test_rollout__is_the_product_computed_by_hand():
    first = torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    last = torch.tensor([[0.5, 0, 0.5], [1, 0, 0], [0, 0, 1]])
    apart = torch.tensor([[-0.1, 0.1, 0], [0, 0, 0], [0.2, 0, -0.2]])  # two heads around their mean
    attentions = [torch.stack([weights + apart, weights - apart])[None] for weights in (first, last)]
    # With half of each token kept the first rows are (3/4, 1/4, 0) and (3/4, 0, 1/4). Their product is
    # 3/4 (3/4, 1/4, 0) + 1/4 (0, 0, 1) = (9, 3, 4) / 16, of which the patches have 3 : 4.
    torch.testing.assert_close(attention_rollout(attentions, 1), torch.tensor([[3 / 7, 4 / 7]]))
    torch.testing.assert_close(attention_rollout(attentions[1:], 1), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rollout__is_a_distribution(tiny_config, dtype):
    model = MAEModel(tiny_config(num_hidden_layers=5)).eval().to(dtype)
    rollout = attention_rollout(model(torch.randn(2, 3, 32, 64), output_attentions=True).attentions, 1)
    assert rollout.shape == (2, 32)
    assert rollout.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert (rollout > 0).all()
    torch.testing.assert_close(rollout.sum(dim=1), torch.ones(2, dtype=rollout.dtype))


def test_rollout__without_whole_attentions_is_refused(tiny_model):
    model, pixel_values = tiny_model(), torch.randn(1, 3, 32, 32)
    for missing in ((), model.mae(pixel_values).attentions):
        with pytest.raises(ValueError, match="call the model with output_attentions=True"):
            attention_rollout(missing, 1)
    decoder = model(pixel_values, output_attentions=True).decoder_output.attentions
    with pytest.raises(ValueError, match=r"got \(1, 2, 12, 17\)"):
        attention_rollout(decoder, 1)


def test_attention_sheet__is_bright_where_the_class_token_looks(tiny_model):
    model = tiny_model(image_size=(32, 64), num_hidden_layers=1)
    processor, pixel_values = MAEImageProcessor.for_image_size((32, 64)), torch.randn(3, 3, 32, 64)
    sheet = attention_sheet(model, processor, pixel_values, columns=2, min_side=64)
    assert sheet.size == (2 * (3 * (128 + 4) + 12) - 12, 16 + 2 * (64 + 4))
    attention = model.mae(pixel_values, output_attentions=True).attentions[0][0].mean(dim=0)[0, 1:]
    for place in (1, 2):  # one block: its attention and the rollout have their maxima in the same patch
        left = place * (128 + 4)
        for patch, bright in ((int(attention.argmax()), True), (int(attention.argmin()), False)):
            row, column = divmod(patch, 8)
            red, green, _ = sheet.getpixel((left + 16 * column + 8, 16 + 16 * row + 8))
            assert (red > 240 and green > 200) if bright else red < 60


# ----------------------------------------------------------------------------------------------------------------------
# Sheets


def test_sheet__shows_original_masked_interpolation_and_reconstruction(tiny_model):
    model = tiny_model(image_size=(32, 64))
    processor = MAEImageProcessor.for_image_size((32, 64))
    pixels = torch.full((3, 3, 32, 64), 1.0)
    sheet = reconstruction_sheet(model, processor, pixels, columns=2, min_side=64)
    assert sheet.mode == "RGB"
    (white,) = {colour for _, colour in processor.post_process_reconstruction(pixels)[0].getcolors()}
    assert sheet.getpixel((5, 30)) == white  # the original, at twice its size: 128 x 64
    masked = {sheet.getpixel((132 + 16 * column + 8, 16 + 16 * row + 8)) for row in range(4) for column in range(8)}
    assert masked == {white, (124, 116, 104)}  # ImageNet's mean colour where patches are hidden
    assert sheet.getpixel((2 * 132 + 5, 30)) == white  # what lies between white patches is white
    assert sheet.size == (2 * (4 * 132 + 12) - 12, 16 + 2 * 68)


def test_sheet__interpolates_under_the_mask_that_is_shown(tiny_model):
    model, processor = tiny_model(), MAEImageProcessor.for_image_size(32)
    pixels, noise = torch.rand(1, 3, 32, 32), torch.rand(1, 16)
    sheet = reconstruction_sheet(model, processor, pixels, columns=1, min_side=32, noise=noise)
    filled = interpolate_hidden(pixels, model(pixels, noise=noise).mask, (8, 8))
    shown = sheet.crop((2 * 36, 16, 2 * 36 + 32, 48))
    assert shown.tobytes() == processor.post_process_reconstruction(filled)[0].tobytes()


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_sheet__is_drawn_for_any_number_of_channels(tiny_model, channels, norm_pix_loss):
    model = tiny_model(num_channels=channels, norm_pix_loss=norm_pix_loss)
    processor = MAEImageProcessor.for_image_size(32, num_channels=channels)
    sheet = reconstruction_sheet(model, processor, torch.rand(2, channels, 32, 32), columns=1, min_side=32)
    assert (sheet.mode, sheet.size) == ("RGB", (4 * (32 + 4), 16 + 2 * (32 + 4)))


# ----------------------------------------------------------------------------------------------------------------------
# The picture of a run

NAVY, ORANGE = (0, 0, 128), (213, 94, 0)


def places_of(picture, color, box):
    """Returns the pixels (x, y) of one colour in a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    found = (np.array(picture)[top:bottom, left:right] == color).all(axis=-1)
    return [(left + x, top + y) for x, y in np.argwhere(found.T).tolist()]


def test_loss_curve__falls_where_the_loss_does():
    curve = loss_curve([(0, 1.0), (50, 0.7), (100, 0.6)], size=(400, 200))
    line = places_of(curve, NAVY, (52, 0, 250, 200))
    assert min(line)[1] < 60 < 130 < max(line)[1]
    assert curve.size == (400, 200)


def test_progress__shows_each_value_in_its_panel():
    lines = [{"step": step, "loss": 1 - step / 200, "epoch": step / 10} for step in range(0, 101, 10)]
    lines += [{"step": 50, "eval_loss": 0.8, "eval_loss_constant": 0.95}, {"step": 100, "eval_loss": 0.55}]
    loss, rank, found = (52, 68, 522, 448), (724, 68, 1050, 228), (724, 288, 1050, 448)
    only_losses = progress_picture(lines)
    assert only_losses.size == (1200, 474)
    assert places_of(only_losses, NAVY, loss)
    assert places_of(only_losses, ORANGE, loss)
    assert places_of(only_losses, NAVY, rank) == places_of(only_losses, NAVY, found) == []
    whole = progress_picture([*lines, {"step": 100, "effective_rank": 20.0, "twin_retrieval": 0.1}])
    assert places_of(whole, NAVY, rank)
    assert places_of(whole, NAVY, found)
    constant = [y for _, y in places_of(whole, (105, 105, 105), loss)]  # dashes, between 1 and 0.5
    assert 68 < min(constant) == max(constant) < 150


def test_progress__survives_missing_values_spikes_and_single_points():
    values = [0.9, float("nan"), 1e9, None, float("inf"), 0.6, 0.6, 0.6]
    progress_picture([{"step": step, "loss": value} for step, value in enumerate(values)])
    progress_picture([{"step": 3, "eval_loss": 0.0}])
    assert progress_picture([]).size == (1200, 474)


def test_loss_curve__of_negative_losses_falls_too():
    """As those of a target of one's own may be."""
    line = places_of(loss_curve([(0, -0.5), (50, -1.0), (100, -2.0)], size=(400, 200)), NAVY, (52, 0, 250, 200))
    assert min(line)[1] < 60 < 130 < max(line)[1]


@pytest.fixture
def written(monkeypatch):
    """The texts of the pictures that are drawn."""
    texts = []
    monkeypatch.setattr(
        "hf_mae.evaluation.progress._Canvas.text", lambda canvas, place, text, *_, **__: texts.append(text)
    )
    return texts


def test_progress__names_the_newest_value_also_of_a_run_that_diverges(written):
    progress_picture([{"step": step, "loss": loss} for step, loss in enumerate([0.9, 0.8, 0.7, 0.8, 50.0])])
    assert "training 50" in written
    assert "1.6" in written  # the axis ends there, at twice the median
    assert "1.8" not in written


def test_progress__has_no_ticks_between_two_steps(written):
    loss_curve([(1, 0.9), (2, 0.8), (3, 0.5)])
    assert [text for text in written if text in "123"] == ["1", "2", "3"]


@pytest.mark.parametrize(("size", "height"), [((300, 100), 100), ((2352, 500), 250)])
def test_progress__has_the_sheet_below(size, height):
    picture = progress_picture([], PIL.Image.new("RGB", size, "red"))
    assert picture.size == (1200, 474 + height + 24)
    assert picture.getpixel((600, 474 + 12 + height // 2)) == (255, 0, 0)


def test_progress__has_the_first_rows_of_a_long_sheet():
    sheet = PIL.Image.new("RGB", (300, 1000), "white")
    for row in range(8):
        sheet.paste("red", (0, 10 + 120 * row, 300, 120 * row + 120))
    picture = progress_picture([], sheet)
    assert 474 + 24 + 370 - 10 <= picture.height <= 474 + 24 + 370  # the three rows that fit into 480 pixels


def test_round_values__are_multiples_of_one_two_or_five():
    assert round_values(0.53, 1.2, 4) == pytest.approx([0.6, 0.8, 1.0, 1.2])
    assert round_values(0, 60, 3) == [0, 20, 40, 60]
    assert round_values(7, 48_000, 5) == [10_000, 20_000, 30_000, 40_000]
    assert round_values(-0.001, 0.0011, 2) == pytest.approx([0])


# ----------------------------------------------------------------------------------------------------------------------
# Commands


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    """Saves a model of 32 pixels and its image processor, and returns the folder."""

    def save(model_class=MAEForPreTraining, **fields):
        config = tiny_config(**fields)
        model_class(config).save_pretrained(tmp_path / "model")
        processor = MAEImageProcessor.for_image_size(32, num_channels=config.num_channels)
        processor.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save


@pytest.fixture
def photos(tmp_path):
    """Paths of a colour picture, a grey one and a JPEG that lies on its side."""
    paths = [str(tmp_path / name) for name in ("colour.png", "grey.png", "turned.jpg")]
    picture(0, (49, 30)).save(paths[0])
    picture(1, (40, 30), "L").save(paths[1])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(2, (64, 48)).save(paths[2], exif=exif)
    return paths


COMMANDS = {"attention.png": attention_command, "reconstructions.png": reconstruct_command}


@pytest.mark.parametrize("output", COMMANDS)
def test_command__draws_embedded_images_into_the_folder_it_runs_in(checkpoint, output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    COMMANDS[output]([checkpoint(num_channels=1), "--num_images", "5"], prog="hf-mae")
    kinds, side = (3, 192) if output == "attention.png" else (4, 128)  # five images are three rows of two
    assert PIL.Image.open(output).size == (2 * (kinds * (side + 4) + 12) - 12, 16 + 3 * (side + 4))
    printed = capsys.readouterr().out
    assert "5 pictures" in printed
    assert output in printed


@pytest.mark.parametrize("output", COMMANDS)
def test_command__a_full_disk_leaves_the_picture_that_was_there(checkpoint, photos, output, tmp_path):
    path, model = tmp_path / output, checkpoint()
    path.write_bytes(b"an older picture")
    with no_room_beyond(1000), pytest.raises(OSError, match="too large"):
        COMMANDS[output]([model, *photos, "--output", str(path)], prog="hf-mae")
    assert path.read_bytes() == b"an older picture"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("output", COMMANDS)
def test_command__draws_pictures_of_its_users(checkpoint, photos, output, tmp_path):
    path = tmp_path / "new folder" / output
    arguments = ["--output", str(path), "--image_size", "176", "--columns", "1"]
    COMMANDS[output]([checkpoint(), *photos, *arguments], prog="hf-mae")
    kinds = 3 if output == "attention.png" else 4
    assert PIL.Image.open(path).size == (kinds * (176 + 4), 16 + 3 * (176 + 4))


@pytest.mark.parametrize("output", COMMANDS)
def test_command__never_replaces_one_of_the_pictures(output, tmp_path):
    path = tmp_path / "below" / "photo.png"
    path.parent.mkdir()
    PIL.Image.new("RGB", (40, 40), "red").save(path)
    for given in (path, tmp_path):
        with pytest.raises(ValueError, match="`output` .*photo.png is one of the pictures and would be replaced"):
            COMMANDS[output](["a model", str(given), "--output", str(path)], prog="hf-mae")
    assert PIL.Image.open(path).size == (40, 40)
    with pytest.raises(ValueError, match="`output` .*sheet.png would be one of the pictures"):
        COMMANDS[output](["a model", str(tmp_path), "--output", str(path.with_name("sheet.png"))], prog="hf-mae")


@pytest.mark.parametrize("output", COMMANDS)
def test_command__turns_pictures_as_their_orientation_says(checkpoint, output, tmp_path):
    lying, exif = PIL.Image.new("RGB", (64, 64), "blue"), PIL.Image.Exif()
    lying.paste("red", (0, 0, 32, 64))  # red on the left, to be seen after a quarter turn to the right
    exif[0x0112] = 6
    lying.save(tmp_path / "turned.png", exif=exif)
    COMMANDS[output]([checkpoint(), str(tmp_path / "turned.png"), "--output", str(tmp_path / output)], prog="hf-mae")
    sheet = PIL.Image.open(tmp_path / output)
    (red, _, blue), (lower_red, _, lower_blue) = sheet.getpixel((60, 30)), sheet.getpixel((60, 135))
    assert red > 200 > 50 > blue
    assert lower_blue > 200 > 50 > lower_red


def test_command__names_a_picture_that_is_missing(checkpoint, photos):
    with pytest.raises(OSError, match="no picture nowhere.png"):
        reconstruct_command([checkpoint(), *photos, "nowhere.png"], prog="hf-mae")


def test_command__names_a_picture_that_is_broken(checkpoint, photos, tmp_path):
    whole = tmp_path / "whole.png"
    PIL.Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "broken.png").write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"broken\.png can't be read"):
        reconstruct_command([checkpoint(), *photos, str(tmp_path / "broken.png")], prog="hf-mae")


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def test_command__names_a_broken_picture_of_any_format(checkpoint, photos, tmp_path):
    """Their decoders raise errors of many types."""
    np.save(tmp_path / "cut.npy", np.zeros((32, 32, 3), np.uint8))
    cut(tmp_path / "cut.npy", 1000)
    PIL.Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "cut.tif")
    cut(tmp_path / "cut.tif", 200)
    for name in ("cut.npy", "cut.tif"):
        with pytest.raises(OSError, match=rf"{name} can't be read: .*Leave it out"):
            reconstruct_command([checkpoint(), *photos, str(tmp_path / name)], prog="hf-mae")
    np.save(tmp_path / "bands.npy", np.zeros((5, 32, 32), np.uint8))
    with pytest.raises(ValueError, match=r"bands\.npy: The image.*5.*3 channels"):
        reconstruct_command([checkpoint(), *photos, str(tmp_path / "bands.npy")], prog="hf-mae")


def test_command__says_that_shards_are_not_drawn(checkpoint, photos, tmp_path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        tar.add(photos[0])
    for path in (tmp_path / "shards", tmp_path / "shards" / "0.tar"):
        with pytest.raises(ValueError, match=f"{path}: pictures in shards .* are not drawn. Unpack some"):
            reconstruct_command([checkpoint(), str(path)], prog="hf-mae")


@pytest.mark.parametrize("command", COMMANDS.values())
def test_command__without_pictures_says_what_the_embedded_ones_are(checkpoint, command, tmp_path):
    """Advice on how to read a file would not help."""
    deep = MAEImageProcessor.for_image_size(32, num_channels=1, sample_type="uint16")
    for channels, processor in ((4, None), (1, deep)):
        folder = checkpoint(num_channels=channels)
        if processor is not None:
            processor.save_pretrained(folder)
        with pytest.raises(ValueError, match="The embedded images are grey, of 8 bits.*Name pictures of your own"):
            command([folder], prog="hf-mae")


def test_command__takes_some_pictures_of_a_folder(checkpoint, tmp_path, capsys):
    (tmp_path / "many").mkdir()
    for number in range(5):
        PIL.Image.new("RGB", (64, 64), (50 * number, 0, 0)).save(tmp_path / "many" / f"{number}.png")
    arguments = [checkpoint(), str(tmp_path / "many"), "--num_images", "2", "--output", str(tmp_path / "sheet.png")]
    reconstruct_command(arguments, prog="hf-mae")
    assert "of 2 pictures" in capsys.readouterr().out


def test_reconstruct__hides_what_seed_and_ratio_say(checkpoint, photos, tmp_path):
    folder, sheets = checkpoint(), {}
    for name, flags in {"0": [], "0 again": [], "1": ["--seed", "1"], "half": ["--mask_ratio", "0.5"]}.items():
        output = tmp_path / f"{name}.png"
        reconstruct_command([folder, photos[0], "--output", str(output), *flags], prog="hf-mae")
        sheets[name] = PIL.Image.open(output)
    assert sheets["0"].tobytes() == sheets["0 again"].tobytes() != sheets["1"].tobytes()
    side = sheets["0"].size[0] // 4 - 4  # of a picture: 4 x 4 patches

    def hidden(sheet):
        places = [
            (side + 4 + side * (2 * column + 1) // 8, 16 + side * (2 * row + 1) // 8)
            for row in range(4)
            for column in range(4)
        ]
        return sum(sheet.getpixel(place) == (124, 116, 104) for place in places)  # ImageNet's mean colour

    assert (hidden(sheets["0"]), hidden(sheets["half"])) == (12, 8)


@pytest.mark.parametrize("model_class", [MAEModel, MAEForImageClassification])
def test_reconstruct__without_a_decoder_is_refused_and_attention_is_not(checkpoint, model_class, tmp_path):
    folder, output = checkpoint(model_class), tmp_path / "sheet.png"
    with pytest.raises(ValueError, match="no decoder"):
        reconstruct_command([folder, "--output", str(output)], prog="hf-mae")
    assert not output.exists()
    attention_command([folder, "--output", str(output), "--num_images", "1"], prog="hf-mae")
    assert output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_images", "0"], "`num_images` must be at least 1"),
        (["--columns", "0"], "`columns` must be at least 1"),
        (["--output", "sheet.xyz"], "`output` sheet.xyz is no name of a picture"),
        (["--image_size", "30"], r"\(30, 30\)"),
        (["--number", "3"], "no argument --number"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS.values())
def test_command__says_what_is_wrong_with_an_argument(checkpoint, command, flags, message):
    with pytest.raises(ValueError, match=message):
        command([checkpoint(), *flags], prog="hf-mae")


def test_names__that_the_font_lacks_are_drawn_without_accents_or_as_numbers():
    """Pillow's font has empty boxes for all that is not ASCII, the same for every letter."""
    font = PIL.ImageFont.load_default()
    assert bytes(font.getmask("\u732b")) == bytes(font.getmask("\u72ac"))
    names = ["cat", "Caf\u00e9", "\u732b", "\u0642\u0637", "\U0001f600", "stra\u00dfe", " "]
    assert drawable_names(names) == ["cat", "Cafe", "2", "3", "4", "5", "6"]
    sheets = [confusion_sheet(np.eye(7, dtype=int), some) for some in (names, drawable_names(names))]
    assert sheets[0].tobytes() == sheets[1].tobytes()


def test_names__of_several_lines_are_drawn_in_one():
    """Folders of classes may have line breaks in their names, and Pillow refuses to measure such a text."""
    assert drawable_names(["rain\ncoat", "\n", "T-shirt"]) == ["rain coat", "1", "T-shirt"]
    assert confusion_sheet(np.eye(2, dtype=int), ["rain\ncoat", "hat"]).width > 0
