# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The page on which a model is tried: what its clicks do, the page itself in a browser, and the Space of it."""

import errno
import importlib.util
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from conftest import picture

from hf_mae import MAEImageProcessor
from hf_mae.data.sources import open_images
from hf_mae.demo import GRADIO, DemoArguments, Explorer, _add_controls, build_demo, demo_command, load_explorer
from hf_mae.evaluation.inference import ReadableImages
from hf_mae.evaluation.visualization import loss_maps

HIDDEN = (124, 116, 104)  # ImageNet's mean colour
MASK = (0.75, "random", 0)  # ratio, kind, seed


def click(*place):
    return SimpleNamespace(index=place[0] if len(place) == 1 else place)


def patches_of(picture, rows, columns):
    """Returns the colour in the middle of each patch."""
    width, height = picture.width // columns, picture.height // rows
    return [
        picture.getpixel((column * width + width // 2, row * height + height // 2))
        for row in range(rows)
        for column in range(columns)
    ]


@pytest.fixture
def explorer(tiny_model):
    return Explorer(tiny_model(image_size=(32, 64)), MAEImageProcessor.for_image_size((32, 64)))


@pytest.fixture
def opened(explorer, tmp_path):
    """What the page shows of a picture without the mean colour in it."""
    PIL.Image.new("RGB", (64, 32), "white").save(tmp_path / "white.png")
    return explorer.upload(str(tmp_path / "white.png"), *MASK)


def test_upload__shows_original_mask_and_reconstruction_enlarged(opened):
    view, original, seen, reconstruction, status, attention, whole, losses, whole_status, nearest = opened
    assert {each.size for each in (original, seen, reconstruction, attention)} == {(64 * 11, 32 * 11)}
    assert view.mask.sum() == 24
    assert [colour == HIDDEN for colour in patches_of(seen, 4, 8)] == view.mask[0].tolist()
    assert status == "24 of 32 patches are hidden (75%)."
    assert set(patches_of(original, 4, 8)) == {(255, 255, 255)}
    assert (whole, losses, whole_status, nearest) == (None, None, "", [])


def test_click__hides_and_shows_the_patch_under_it(explorer, opened):
    view = opened[0]
    for place, patch in (((0, 0), 0), ((87, 87), 0), ((88, 87), 1), ((703, 351), 31), ((300, 200), 2 * 8 + 3)):
        changed, seen, _, _ = explorer.toggle(view, click(*place))
        assert (changed.mask != view.mask).nonzero().tolist() == [[0, patch]]
        assert (patches_of(seen, 4, 8)[patch] == HIDDEN) == bool(changed.mask[0, patch])
        again, *_ = explorer.toggle(changed, click(*place))
        assert torch.equal(again.mask, view.mask)


def test_click__leaves_a_patch_visible_and_shows_the_picture_where_nothing_is_hidden(explorer, opened):
    view, original = opened[:2]
    one = type(view)(view.pixel_values, torch.arange(32)[None] > 0)
    with pytest.raises(ValueError, match="hides all 32 patches"):
        explorer.toggle(one, click(5, 5))
    _, _, shown, status = explorer.hide(view, 0, "random", 0)
    assert np.array_equal(np.array(shown), np.array(original))
    assert status.startswith("0 of 32")
    for handler in (lambda: explorer.hide(None, *MASK), lambda: explorer.predict_all(None, 0.75, 4)):
        with pytest.raises(ValueError, match="Choose or upload a picture first"):
            handler()


@pytest.mark.parametrize("kind", ["random", "block", "grid", "cells"])
def test_mask__is_of_the_kind_that_was_chosen(explorer, opened, kind):
    view = opened[0]
    masks = [explorer.hide(view, 0.75, kind, seed)[0].mask[0] for seed in (0, 0, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not all(torch.equal(masks[0], mask) for mask in masks[2:])
    cells = masks[0].reshape(2, 2, 4, 2).permute(0, 2, 1, 3).flatten(2).sum(dim=2).flatten().tolist()  # of 2 x 2
    assert sum(cells) == 24
    assert kind != "grid" or cells == [3] * 8
    assert kind != "cells" or sorted(cells) == [0, 0] + [4] * 6


def test_mask_kinds__have_cells_only_where_they_fit(tiny_model):
    def kinds(size, **fields):
        explorer = Explorer(tiny_model(image_size=size, **fields), MAEImageProcessor.for_image_size(size))
        return list(explorer.mask_kinds), explorer.usual_kind

    assert kinds(24) == (["random", "block", "grid"], "random")
    assert kinds(48, mask_block_size=3) == (["random", "block", "grid", "cells"], "cells")
    assert kinds(32, mask_sampling="block")[1] == "block"


def test_attention__is_that_of_the_clicked_patch(explorer, opened):
    view = opened[0]
    view = type(view)(torch.randn(1, 3, 32, 64), view.mask)
    original, attention = explorer.attend(view, click(300, 200))
    weights = explorer.model.mae(view.pixel_values, output_attentions=True).attentions[-1][0].mean(dim=0)
    values = weights[1 + 19, 1:]
    colours = patches_of(attention, 4, 8)
    assert colours[int(values.argmax())][0] > 240
    assert sum(colours[int(values.argmin())]) < 100
    frame = (3 * 88, 2 * 88)
    assert original.getpixel(frame) == attention.getpixel(frame) == (0, 190, 255)
    assert explorer.attend(view)[0].getpixel(frame) != (0, 190, 255)


def test_predict_all__is_the_whole_reconstruction(explorer, opened):
    view = opened[0]
    view = type(view)(torch.randn(1, 3, 32, 64), view.mask)
    shown, losses, status = explorer.predict_all(view, 0.75, 4)
    whole = explorer.model.reconstruct_all(view.pixel_values)
    (expected,) = explorer.image_processor.post_process_reconstruction(whole.reconstruction)
    assert np.array_equal(np.array(shown)[5::11, 5::11], np.array(expected))
    (drawn,), (low, high) = loss_maps(whole.patch_losses, losses.size)
    assert np.array_equal(np.array(losses), np.array(drawn))
    assert f"from {low:.2f} (black) to {high:.2f}" in status
    with pytest.raises(ValueError, match="`num_masks` must be at least 5"):
        explorer.predict_all(view, 0.2, 4)


def test_predict_all__can_be_done_with_every_share_of_the_slider(explorer, opened):
    page = MagicMock()
    _add_controls(page, explorer)
    (least, _, share), (_, most, _) = (call.args for call in page.Slider.call_args_list)
    assert share == 0.75
    assert explorer.predict_all(opened[0], least, most)[2].startswith("16 masks")


def test_predict_all__says_nothing_of_patches_without_data(tiny_model, tmp_path):
    """As anomaly maps of files do. The border of no-data had the highest loss of the picture."""
    processor = MAEImageProcessor.for_image_size(32, num_channels=1, nodata=0)
    pixels = np.random.default_rng(0).integers(1, 255, (37, 37), dtype=np.uint8)
    pixels[:20] = 0
    PIL.Image.fromarray(pixels).save(tmp_path / "half.png")
    explorer = Explorer(tiny_model(num_channels=1), processor, ReadableImages(open_images(str(tmp_path)), processor))
    explorer.pictures_to_choose()
    inputs = processor(str(tmp_path / "half.png"), return_tensors="pt", return_valid=True)
    expected = explorer.model.reconstruct_all(inputs.pixel_values, valid=inputs.valid).patch_losses
    assert expected.isnan().sum() == 12  # 3 of 4 rows
    for view in (explorer.upload(str(tmp_path / "half.png"), *MASK)[0], explorer.choose(*MASK, click(0))[0]):
        status = explorer.predict_all(view, 0.75, 4)[2]
        low, high = np.nanmin(expected), np.nanmax(expected)
        assert status == f"4 masks; losses of patches from {low:.2f} (black) to {high:.2f} (yellow)."


def test_upload__says_by_its_name_what_is_wrong_with_a_file(explorer, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    np.save(tmp_path / "bands.npy", np.zeros((5, 40, 40), dtype=np.uint8))
    for name, reason in (("text.jpg", "cannot identify image file 'text.jpg'"), ("bands.npy", "The image's shape is")):
        with pytest.raises(ValueError, match=rf"^{name} can't be shown: {reason}") as found:
            explorer.upload(str(tmp_path / name), *MASK)
        assert str(tmp_path) not in str(found.value)


@pytest.mark.parametrize("channels", [1, 5])
def test_pictures__of_any_number_of_channels(tiny_model, channels, tmp_path):
    processor = MAEImageProcessor.for_image_size(32, num_channels=channels)
    np.save(tmp_path / "bands.npy", np.random.default_rng(0).integers(0, 255, (channels, 40, 40), dtype=np.uint8))
    explorer = Explorer(tiny_model(num_channels=channels), processor)
    view, *shown = explorer.upload(str(tmp_path / "bands.npy"), *MASK)
    pictures = [*shown[:3], *explorer.predict_all(view, 0.5, 2)[:2], *explorer.attend(view, click(9, 9))]
    assert {(each.mode, each.size) for each in pictures} == {("RGB", (352, 352))}


def test_nearest__of_the_only_picture_is_not_itself(tiny_model, tmp_path):
    picture(0, (32, 32)).save(tmp_path / "only.png")
    images = ReadableImages(open_images(str(tmp_path)), MAEImageProcessor.for_image_size(32))
    explorer = Explorer(tiny_model(), images.image_processor, images, with_neighbors=True)
    assert explorer.choose(*MASK, click(0))[-1] == []


def test_nearest__are_other_pictures_of_the_folder(tiny_model, tmp_path, capsys):
    for number in range(12):
        picture(number, (32, 32)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "03.png").write_bytes(b"no picture")
    images = ReadableImages(open_images(str(tmp_path)), MAEImageProcessor.for_image_size(32))
    explorer = Explorer(tiny_model(), images.image_processor, images, with_neighbors=True)
    assert explorer.bank == [0, 1, 2, *range(4, 12)]
    assert "Skipped" in (printed := capsys.readouterr().out)
    assert "03.png, which can't be read" in printed
    assert [each.size for each in explorer.pictures_to_choose()] == [(96, 96)] * 9  # ten places, one unreadable
    *_, nearest = explorer.choose(*MASK, click(4))
    distances = [float(text) for _, text in nearest]
    assert len(nearest) == 8
    assert distances == sorted(distances)
    shown = explorer._picture(images[explorer.choices[4]].pixel_values[None], 96)
    assert all(each.tobytes() != shown.tobytes() for each, _ in nearest)


# ----------------------------------------------------------------------------------------------------------------------
# The page and the Space


@pytest.mark.slow
def test_embedded_pictures__are_offered_where_they_suit_the_model(tiny_model, pretrained, tmp_path):
    assert len(load_explorer(DemoArguments(model=str(pretrained), device="cpu")).pictures_to_choose()) == 10
    tiny_model(num_channels=5).save_pretrained(tmp_path / "bands")
    MAEImageProcessor.for_image_size(32, num_channels=5).save_pretrained(tmp_path / "bands")
    assert load_explorer(DemoArguments(model=str(tmp_path / "bands"), device="cpu")).choices == []


def test_command__names_the_extra_and_what_is_missing(monkeypatch, pretrained, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'pip install "hf-mae\[demo\]"'):
        demo_command(["--model", str(pretrained)], prog="hf-mae demo")
    with pytest.raises(ValueError, match="`model` is missing"):
        demo_command([], prog="hf-mae demo")


def test_space__holds_all_that_the_hub_asks_for(folder, tmp_path, capsys):
    space = tmp_path / "space"
    demo_command(["--model", "org/name", "--data", "org/pictures", "--space", str(space)], prog="hf-mae demo")
    assert f"hf upload org/name {space} --repo-type space" in capsys.readouterr().out
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    card = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert card["sdk"] == "gradio"
    assert card["sdk_version"] == GRADIO
    assert f"gradio=={GRADIO}\n" in (Path(__file__).parent.parent / "constraints.txt").read_text()
    assert (space / card["app_file"]).is_file()
    assert card["models"] == ["org/name"]
    assert "DemoArguments(model='org/name', data='org/pictures')" in (space / "app.py").read_text()
    assert "gradio" not in (space / "requirements.txt").read_text()
    compile((space / "app.py").read_text(), "app.py", "exec")
    for options, message in ((["--space", str(space)], "is not empty"), (["--data", str(folder)], "on this machine")):
        with pytest.raises(ValueError, match=message):
            demo_command(["--model", "org/name", "--space", str(tmp_path / "b"), *options], prog="hf-mae demo")


def test_space__has_the_settings_of_the_page(tmp_path):
    settings = {"data": "org/data", "split": "test", "image_column": "photo", "dataset_config": "big", "tile": 64}
    settings |= {"pages": "first", "image_size": 48, "num_images": 50}
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    here = ["--space", str(tmp_path / "space"), "--port", "7000", "--share", "--device", "cpu"]
    demo_command(["--model", "org/name", *flags, *here], prog="hf-mae demo")
    written = {"DemoArguments": DemoArguments}
    call = re.search(r"build_demo\((.*)\)\n", (tmp_path / "space" / "app.py").read_text())[1]
    assert eval(call, written) == DemoArguments(model="org/name", **settings)


def test_space__is_not_written_of_a_model_that_its_page_could_not_show(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_model().mae.save_pretrained(tmp_path / "encoder")
    for name, flags, message in (
        ("encoder", [], "holds no decoder"),
        ("model", ["--image_size", "30"], "not a multiple of `patch_size`"),
    ):
        with pytest.raises(ValueError, match=message):
            demo_command(["--model", str(tmp_path / name), "--space", str(tmp_path / "space"), *flags], "hf-mae demo")
        assert not (tmp_path / "space").exists()


def test_space__is_not_written_of_an_adapter_or_of_a_folder_that_is_not_there(save_adapter, tmp_path):
    save_adapter(tmp_path / "adapter")
    for name, message in (("adapter", "holds an adapter, and no model"), ("gone", "There is no folder '.*gone'")):
        with pytest.raises(OSError, match=message):
            demo_command(["--model", str(tmp_path / name), "--space", str(tmp_path / "space")], "hf-mae demo")
        assert not (tmp_path / "space").exists()


def test_space__that_a_full_disk_cuts_off_is_removed(pretrained, tmp_path, monkeypatch):
    """Its weights, cut off, would be there under their final name, and the same command would refuse the folder."""

    def full(file, target):
        (target / file.name).write_bytes(file.read_bytes()[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy", full)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(OSError, match="No space left"):
            demo_command(["--model", str(pretrained), "--space", str(tmp_path / name)], prog="hf-mae demo")
    assert not (tmp_path / "new").exists()
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.slow
def test_space__of_a_folder_holds_the_model_and_builds_its_page(pretrained, tmp_path):
    gradio = pytest.importorskip("gradio")
    (pretrained / "checkpoint-5").mkdir()
    demo_command(["--model", str(pretrained), "--space", str(tmp_path / "local")], prog="hf-mae demo")
    names = {path.name for path in (tmp_path / "local" / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    shutil.rmtree(pretrained)
    demo = runpy.run_path(str(tmp_path / "local" / "app.py"))["demo"]
    assert isinstance(demo, gradio.Blocks)
    names = {function.name for function in demo.fns.values()}
    assert {"upload", "choose", "hide", "toggle", "attend", "predict_all"} <= names


def test_page__keeps_its_pictures_where_a_click_cannot_be_answered(pretrained, monkeypatch):
    gradio, warnings = pytest.importorskip("gradio"), []
    monkeypatch.setattr(gradio, "Warning", warnings.append)
    demo = build_demo(DemoArguments(model=str(pretrained), device="cpu"))
    handlers = {function.name: function for function in demo.fns.values()}
    assert handlers["predict_all"].fn(None, 0.75, 4) == gradio.skip()
    assert handlers["toggle"].fn(None, click(5, 5)) == gradio.skip()
    assert warnings == ["Choose or upload a picture first."] * 2
    assert {name for name, handler in handlers.items() if handler.collects_event_data} == {"choose", "toggle", "attend"}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs playwright")
def test_page__answers_clicks_in_a_browser(tiny_model, tmp_path):
    pytest.importorskip("gradio")
    from playwright.sync_api import sync_playwright

    tiny_model(num_channels=1).save_pretrained(tmp_path / "model")
    MAEImageProcessor.for_image_size(32, num_channels=1).save_pretrained(tmp_path / "model")
    demo = build_demo(DemoArguments(model=str(tmp_path / "model"), device="cpu"))
    _, url, _ = demo.launch(prevent_thread_lock=True, show_error=True, quiet=True)
    wait = {"timeout": 240_000}
    try:
        with sync_playwright() as engine:
            browser = engine.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1300, "height": 1000})
            page.goto(url, **wait)
            page.get_by_text("12 of 16 patches are hidden").wait_for(**wait)
            mask = (
                load_explorer(DemoArguments(model=str(tmp_path / "model"), device="cpu"))
                .choose(*MASK, click(0))[0]
                .mask
            )
            seen = page.locator("#seen img")
            width = seen.bounding_box()["width"]
            row, column = divmod(int(mask[0].byte().argmax()), 4)  # the first hidden patch
            seen.click(position={"x": (column + 0.5) * width / 4, "y": (row + 0.5) * width / 4})
            page.get_by_text("11 of 16 patches are hidden").wait_for(**wait)
            page.locator("#predict-all").click()
            page.get_by_text("4 masks; losses of patches from").wait_for(**wait)
            page.locator("#losses img").wait_for(**wait)
            page.screenshot(path=tmp_path / "page.png", full_page=True)
            browser.close()
    finally:
        demo.close()
    colours = PIL.Image.open(tmp_path / "page.png").convert("RGB")
    assert colours.width == 1300
    assert {(0, 0, 4), (252, 255, 164)} <= {colour for _, colour in colours.getcolors(2**24)}  # ends of a heat map
