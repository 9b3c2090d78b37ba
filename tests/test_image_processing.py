# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import json
import math
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.image_utils import ChannelDimension
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_mae import MAEImageProcessor
from hf_mae.modeling.image_processing_mae import _resize_bytes_as_floats, resize
from hf_mae.modeling.reading_mae import UnsuitableImageError


def photograph(height=300, width=400, channels=3):
    """Smooth in places, noisy in others, uint8 HWC."""
    y, x = np.mgrid[0:height, 0:width] / 40
    waves = [np.sin(x * (c + 1)) * np.cos(y * (c + 2)) for c in range(channels)]
    noise = np.random.default_rng(0).normal(0, 0.1, (height, width, channels)) * (x > 4)[..., None]
    return ((0.5 * np.stack(waves, -1) + noise).clip(-1, 1) * 127.5 + 127.5).round().astype(np.uint8)


def process(image, **arguments):
    return MAEImageProcessor(**arguments)(image, return_tensors="pt").pixel_values


@pytest.mark.parametrize("size", [(300, 400), (500, 375), (240, 1000), (100, 80), (256, 256)])
def test_evaluation_transform__is_the_official_one(size):
    """Resize(256, bicubic), CenterCrop(224), ToTensor, Normalize, written with PIL; nearly all pixels agree."""
    image = PIL.Image.fromarray(photograph(*size))
    short = min(size)
    resized = image.resize((int(256 * size[1] / short), int(256 * size[0] / short)), PIL.Image.Resampling.BICUBIC)
    top, left = round((resized.height - 224) / 2), round((resized.width - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float64)
    ours = process(image)
    assert ours.shape == (1, 3, 224, 224)
    assert ours.dtype == torch.float32
    grey_levels = (ours[0].permute(1, 2, 0).numpy() * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255
    difference = np.abs(grey_levels - expected)
    assert difference.max() < 2.01
    assert (difference > 0.5).mean() < 0.01


@pytest.mark.parametrize("image_size", [224, 28, (64, 128), (512, 256)])
def test_for_image_size__keeps_the_ratio(image_size):
    processor = MAEImageProcessor.for_image_size(image_size)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert processor.size.shortest_edge == round(min(height, width) * 8 / 7)
    for size in ((300, 400), (400, 300), (50, 700)):
        assert processor(photograph(*size), return_tensors="pt").pixel_values.shape == (1, 3, height, width)


def test_rectangles__are_covered_not_stretched():
    """A picture of the crop's aspect loses an eighth on each side, no more."""
    image = np.zeros((70, 140, 3), np.uint8)
    image[:, :5] = image[:, -5:] = 255  # inside the margin that the crop takes away
    pixels = process(image, size=80, crop_size=(70, 140), do_normalize=False)
    assert pixels[..., 2:-2].max() < 0.05


@pytest.mark.parametrize(("size", "covering"), [((100, 400), (12, 48)), ((400, 100), (96, 24))])
def test_rectangles__are_cut_from_the_middle_of_a_picture_that_just_covers_them(size, covering):
    """A crop of 10 x 20 for a shortest edge of 12 needs 12 x 24, and pictures keep their ratio.

    Along each side the values rise from 0 to 1, and the crop shows its part of them.
    """
    settings = {"size": {"shortest_edge": 12}, "crop_size": {"height": 10, "width": 20}, "do_normalize": False}
    for axis, crop in ((0, 10), (1, 20)):
        ramp = np.linspace(0, 255, size[axis]).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        shown = process(np.broadcast_to(ramp, (*size, 3)).astype(np.uint8), **settings)
        assert (shown.max() - shown.min()).item() == pytest.approx((crop - 1) / covering[axis], abs=0.02)


def test_crop__of_a_smaller_picture_has_black_around_it():
    settings = {"crop_size": {"height": 6, "width": 4}, "do_resize": False, "do_normalize": False}
    shown = process(PIL.Image.new("RGB", (6, 3), "white"), **settings)[0, 0]
    assert shown.tolist() == [[0] * 4, *[[1] * 4] * 3, [0] * 4, [0] * 4]  # a row above, two below


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "PA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pil_modes__all_give_the_same_picture(mode, channels):
    grey = photograph(channels=1)[..., 0]
    image = PIL.Image.fromarray(grey)
    if mode == "I;16":
        image = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode in ("LAB", "HSV"):
        image = (
            image.convert("RGB").convert(mode) if mode == "HSV" else PIL.Image.new("LAB", image.size, (128, 128, 128))
        )
    elif mode == "PA":
        image = image.convert("P").convert("PA")
    else:
        image = image.convert(mode)
    pixels = process(image, num_channels=channels, do_normalize=False)
    assert pixels.shape == (1, channels, 224, 224)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    if mode in ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "P"):
        expected = process(grey, num_channels=1, do_normalize=False)
        torch.testing.assert_close(pixels[:, :1], expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", ["HWC", "CHW", "tensor", "float", "uint16", "tensor HWC"])
def test_arrays__of_every_layout_agree(kind):
    image = photograph()
    given = {
        "HWC": image,
        "CHW": image.transpose(2, 0, 1),
        "tensor": torch.from_numpy(image).permute(2, 0, 1),
        "tensor HWC": torch.from_numpy(image),
        "float": (image / 255).astype(np.float32),
        "uint16": image.astype(np.uint16) * 257,
    }[kind]
    tolerance = 0.02 if kind in ("float", "uint16") else 0  # uint8 is rounded while resizing: a grey level
    torch.testing.assert_close(process(given), process(PIL.Image.fromarray(image)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_channels__any_number(channels):
    image = photograph(channels=channels)
    processor = MAEImageProcessor(num_channels=channels)
    expected = processor(image, return_tensors="pt").pixel_values
    assert expected.shape == (1, channels, 224, 224)
    assert torch.equal(processor(image.transpose(2, 0, 1), return_tensors="pt").pixel_values, expected)
    assert len(processor.image_mean) == len(processor.image_std) == channels


@pytest.mark.parametrize("layout", ["channels_first", "channels_last", *ChannelDimension])
@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("saved", [True, False])
def test_channels__of_arrays_where_both_axes_fit_must_be_named(layout, kind, saved):
    image = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    given = torch.from_numpy(image) if kind == "tensor" else image
    plain = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}
    with pytest.raises(UnsuitableImageError, match="input_data_format"):
        process(given, **plain)
    processor = MAEImageProcessor(**plain, **({"input_data_format": layout} if saved else {}))
    call = {} if saved else {"input_data_format": layout}
    pixels = processor(given, return_tensors="pt", **call).pixel_values[0]
    expected = image if ChannelDimension(layout) == ChannelDimension.FIRST else image.transpose(2, 0, 1)
    assert np.array_equal(pixels.numpy(), expected)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 2), ("L", 4), ("RGB", 2), ("RGB", 4), ("RGB", 5), ("CMYK", 4), ("RGBA", 2), ("P", 4)]
)
def test_channels__are_not_made_up(mode, channels):
    with pytest.raises(UnsuitableImageError, match=f"{channels} channels.*bands.*num_channels"):
        process(PIL.Image.new(mode, (40, 30)), num_channels=channels)


def test_grey__is_repeated_for_a_colour_model():
    pixels = process(photograph(channels=1)[..., 0], do_normalize=False)
    assert pixels.shape == (1, 3, 224, 224)
    assert torch.equal(pixels[:, 0], pixels[:, 2])


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (
            photograph(channels=4),
            {},
            r"shape is \(300, 400, 4\) and the model has 3 channels.*num_channels",
        ),
        (photograph(), {"num_channels": 13}, "model has 13 channels"),
        (photograph().astype(np.float32), {}, r"float32 values from 21 to 240.*floats in \[0, 1\].*value_range"),
        (photograph().astype(np.int64), {}, "int64 values from 21 to 240"),
        (photograph(), {"image_mean": [0.5, 0.5], "num_channels": 3}, "image_mean has 2 values for 3 channels"),
        (photograph(), {"resample": 1}, r"resample must be 0 \(nearest\), 2 \(bilinear\) or 3 \(bicubic\), got 1"),
    ],
)
def test_bad_images__say_what_is_wrong(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        process(image, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_std": [0.0, 0.5, 0.5]}, "image_std above 0, got .* leave it out"),
        ({"image_std": [0.5, math.nan, 0.5]}, "image_std above 0"),
        ({"image_std": [0.5, -0.5, 0.5]}, "image_std above 0"),
        ({"image_mean": [math.inf, 0.5, 0.5]}, "image_mean must be finite"),
        ({"crop_size": 0}, "crop_size must be at least 1 pixel"),
        ({"crop_size": {"height": -3, "width": 4}}, "crop_size must be at least 1 pixel"),
        ({"crop_size": {"shortest_edge": 20}}, "crop_size must be {'height': h, 'width': w}"),
        ({"size": -1}, "size must be at least 1 pixel"),
        ({"size": {"height": 8, "width": 0}}, "size must be at least 1 pixel"),
    ],
)
def test_steps__that_no_image_can_go_through_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAEImageProcessor(**arguments)
    if not any(math.isnan(value) for name in ("image_mean", "image_std") for value in arguments.get(name, ())):
        with pytest.raises(ValueError, match=message):
            MAEImageProcessor()(PIL.Image.new("RGB", (40, 30)), **arguments)
    MAEImageProcessor(do_resize=False, size=0, do_center_crop=False, crop_size=0)  # which are not used


@pytest.mark.parametrize(
    "arguments", [{"data_format": "channels_last"}, {"do_pad": True}, {"pad_size": {"height": 64, "width": 64}}]
)
def test_arguments__that_would_have_no_effect_are_refused(arguments):
    image, (name,) = photograph(40, 30), arguments
    with pytest.raises(ValueError, match=f"`{name}` must be .*channels first.*padded to `crop_size`"):
        MAEImageProcessor(**arguments)
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        MAEImageProcessor()(image, **arguments)
    stock = {"data_format": ChannelDimension.FIRST, "do_pad": False, "pad_size": None}  # as other processors have them
    assert torch.equal(process(image, **stock), process(image))


def test_images_of_different_sizes__cannot_be_stacked():
    with pytest.raises(ValueError, match="can't be stacked"):
        process([photograph(40, 40), photograph(50, 40)], do_resize=False, do_center_crop=False)


def test_do_rescale_false__takes_values_as_they_are():
    image = np.random.default_rng(0).normal(size=(224, 224, 3)).astype(np.float32)
    pixels = process(image, do_resize=False, do_rescale=False, do_normalize=False)
    assert torch.equal(pixels[0], torch.from_numpy(image).permute(2, 0, 1))


def test_batches__equal_single_images():
    images = [photograph(300, 400), photograph(224, 224), photograph(100, 900)]
    assert torch.equal(process(images), torch.cat([process(image) for image in images]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_way_back__is_exact(channels):
    image = photograph(64, 64, channels)
    arguments = {"do_resize": False, "do_center_crop": False, "num_channels": channels}
    processor = MAEImageProcessor(**arguments)
    (picture,) = processor.post_process_reconstruction(processor(image, return_tensors="pt").pixel_values)
    assert picture.mode == {1: "L", 2: "L", 3: "RGB", 4: "RGBA", 13: "RGB"}[channels]
    shown = np.asarray(picture).reshape(64, 64, -1)
    assert np.array_equal(shown, image[..., : shown.shape[-1]])


@pytest.mark.parametrize(
    "settings",
    [{"image_mean": [120.0] * 3, "image_std": [60.0] * 3}, {"sample_type": "uint8"}, {"image_mean": 120.0}],
)
@pytest.mark.parametrize("do_normalize", [True, False])
def test_way_back__of_bytes_that_are_not_rescaled_is_exact(settings, do_normalize):
    """Their pictures were white: 1 was taken for white."""
    image, steps = photograph(64, 64), {"do_resize": False, "do_center_crop": False, "do_rescale": False}
    processor = MAEImageProcessor(do_normalize=do_normalize, **steps, **settings)
    (picture,) = processor.post_process_reconstruction(processor(image, return_tensors="pt").pixel_values)
    assert np.array_equal(np.asarray(picture), image)
    shares = (image / 255).astype(np.float32)
    processor = MAEImageProcessor(do_normalize=do_normalize, **steps)
    (picture,) = processor.post_process_reconstruction(processor(shares, return_tensors="pt").pixel_values)
    assert np.array_equal(np.asarray(picture), image)


@pytest.mark.parametrize("backend", [None, "pil", "torchvision"])
def test_saved_and_loaded__by_the_auto_class_with_and_without_torchvision(tmp_path, backend):
    processor = MAEImageProcessor.for_image_size((28, 56), num_channels=1, image_mean=[0.3], image_std=[0.2])
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is MAEImageProcessor
    image = photograph(channels=1)
    expected = processor(image, return_tensors="pt").pixel_values
    assert torch.equal(loaded(image, return_tensors="pt").pixel_values, expected)


@pytest.mark.slow
def test_pipeline__gives_features_of_a_file(tiny_model, tmp_path):
    from transformers import pipeline

    model = tiny_model()
    model.save_pretrained(tmp_path)
    processor = MAEImageProcessor.for_image_size(32)
    processor.save_pretrained(tmp_path)
    PIL.Image.fromarray(photograph()).save(tmp_path / "picture.png")
    extract = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    features = extract(str(tmp_path / "picture.png"), return_tensors=True)
    pixels = processor(PIL.Image.fromarray(photograph()), return_tensors="pt").pixel_values
    torch.testing.assert_close(features, model.mae(pixels).last_hidden_state)
    assert len(extract(str(tmp_path / "picture.png"), pool=True)[0]) == 32


def test_pipeline__refuses_files_whose_depth_it_has_thrown_away(tiny_model, tmp_path):
    """It converts to 8-bit RGB before the processor; the path given to the processor itself is the way out."""
    from transformers import pipeline

    tiny_model(num_channels=1).save_pretrained(tmp_path)
    processor = MAEImageProcessor.for_image_size(32, num_channels=1, sample_type="uint16")
    processor.save_pretrained(tmp_path)
    PIL.Image.fromarray(photograph(channels=1)[..., 0].astype(np.uint16) * 16).save(tmp_path / "deep.png")
    extract = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    with pytest.raises(UnsuitableImageError, match="8 bits.*path"):
        extract(str(tmp_path / "deep.png"))
    assert processor(str(tmp_path / "deep.png"), return_tensors="pt").pixel_values.shape == (1, 1, 32, 32)


def test_post_process_semantic_segmentation__classes_at_the_size_of_the_picture():
    processor = MAEImageProcessor()
    logits = torch.zeros(2, 3, 4, 4)
    logits[0, 0, :, :2] = logits[0, 1, :, 2:] = 9  # class 1 on the right
    logits[1, 2, :2] = logits[1, 0, 2:] = 9  # class 2 above
    outputs = SimpleNamespace(logits=logits)
    right, above = processor.post_process_semantic_segmentation(outputs, [(8, 12), (6, 4)])
    assert torch.equal(right, torch.tensor([0] * 6 + [1] * 6).expand(8, 12))
    assert torch.equal(above, torch.tensor([2] * 3 + [0] * 3)[:, None].expand(6, 4))
    assert torch.equal(processor.post_process_semantic_segmentation(outputs)[1], logits[1].argmax(dim=0))
    with pytest.raises(ValueError, match="Got 1 target_sizes for 2 images"):
        processor.post_process_semantic_segmentation(outputs, [(8, 12)])


@pytest.mark.parametrize("size", [28, {"height": 28, "width": 28}])
def test_processors_of_stock_models__keep_their_size_and_channels(tmp_path, size):
    """They resize to `size` itself, and have neither a crop nor `num_channels`."""
    content = {"image_processor_type": "ViTImageProcessor", "size": size, "image_mean": [0.2], "image_std": [0.3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**content, "resample": 3}))
    processor = MAEImageProcessor.from_pretrained(tmp_path)
    picture = PIL.Image.new("L", (28, 28), 51)
    pixels = processor(picture, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 1, 28, 28)
    torch.testing.assert_close(pixels, torch.zeros(1, 1, 28, 28), rtol=0, atol=1e-6)
    assert processor(PIL.Image.new("L", (70, 40)), return_tensors="pt").pixel_values.shape == (1, 1, 28, 28)


def test_post_process_depth_estimation__depths_at_the_size_of_the_picture():
    processor, depths = MAEImageProcessor(), torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]])
    outputs = SimpleNamespace(predicted_depth=depths)
    assert [one["predicted_depth"].tolist() for one in processor.post_process_depth_estimation(outputs)] == [
        [[1, 3]],
        [[2, 2]],
    ]
    first, second = processor.post_process_depth_estimation(outputs, [(2, 4), (3, 1)])
    assert first["predicted_depth"].tolist() == [[1, 1.5, 2.5, 3]] * 2
    assert second["predicted_depth"].tolist() == [[2]] * 3
    with pytest.raises(ValueError, match="Got 1 target_sizes for 2 images"):
        processor.post_process_depth_estimation(outputs, [(2, 4)])


@pytest.mark.parametrize("auto_class", [MAEImageProcessor, AutoImageProcessor])
@pytest.mark.parametrize(
    ("size", "shape", "share"),
    [
        ({"height": 64, "width": 48}, (64, 48), 0.25),  # of the whole picture
        ((64, 48), (64, 48), 0.25),
        (64, (64, 64), 0.25),
        ({"shortest_edge": 64}, (32, 32), 1.0),  # says how much of the picture the saved crop shows: its middle
    ],
)
def test_size__alone_is_the_crop_too_wherever_it_is_given(tmp_path, auto_class, size, shape, share):
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48, 16:48] = 255
    given = {"return_tensors": "pt", "do_normalize": False}
    loaded = auto_class.from_pretrained(tmp_path, size=size)(picture, **given).pixel_values
    called = auto_class.from_pretrained(tmp_path)(picture, size=size, **given).pixel_values
    assert torch.equal(loaded, called)
    assert loaded.shape[2:] == shape
    assert loaded.mean().item() == pytest.approx(share, abs=0.01)


def test_sizes__of_one_processor_can_be_given_to_another():
    picture, given = photograph(64, 32), {"return_tensors": "pt"}
    for one in (MAEImageProcessor.for_image_size((24, 32)), MAEImageProcessor(size=(40, 24))):
        expected = one(picture, **given).pixel_values
        sizes = {"size": one.size, "crop_size": one.crop_size}
        assert torch.equal(MAEImageProcessor(**sizes)(picture, **given).pixel_values, expected)
        assert torch.equal(MAEImageProcessor()(picture, **sizes, **given).pixel_values, expected)
    assert torch.equal(MAEImageProcessor()(picture, size=one.size, **given).pixel_values, expected)  # the crop, too


def test_other_sizes__show_the_same_part_of_a_picture():
    """Whole pictures stay whole, and crops keep their share and are not rounded twice."""
    whole = MAEImageProcessor(size={"height": 32, "width": 64}).with_image_size((64, 128))
    assert (whole.size.height, whole.size.width, whole.size.shortest_edge) == (64, 128, None)
    stock = MAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).with_image_size(48)
    assert (stock.size.shortest_edge, stock.crop_height_width) == (48, (48, 48))
    assert MAEImageProcessor.for_image_size(28).with_image_size(224).to_dict() == MAEImageProcessor().to_dict()
    kept = MAEImageProcessor(do_resize=False, do_center_crop=False).with_image_size(96)
    assert (kept.do_resize, kept.do_center_crop) == (False, False)
    picture = photograph(64, 32)
    small, large = (
        MAEImageProcessor(size={"height": side, "width": side})(picture, return_tensors="pt").pixel_values
        for side in (32, 64)
    )
    resized = MAEImageProcessor(size={"height": 32, "width": 32}).with_image_size(64)
    assert torch.equal(resized(picture, return_tensors="pt").pixel_values, large)
    assert small.shape[-2:] == (32, 32)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest-exact"])
@pytest.mark.parametrize("size", [(150, 90), (600, 500), (299, 401)])
def test_resizing_bytes_as_floats__gives_the_values_of_the_cpu(mode, size):
    """GPUs have no antialiased kernel for bytes; this way is taken there."""
    images = torch.from_numpy(photograph()).permute(2, 0, 1)[None]
    expected = resize(images, size, mode)
    resized = _resize_bytes_as_floats(images, size, mode)
    assert resized.dtype == torch.uint8
    difference = (resized.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.25  # not rounded between rows and columns
