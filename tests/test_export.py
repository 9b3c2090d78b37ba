# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Our weights become those of other implementations, and files become files: `hf-mae convert`."""

import json
import pathlib
import re
import shlex

import PIL.Image
import pytest
import torch
from conftest import OFFICIAL_HEADS, TINY, picture
from foreign_models import EXACT, PIXELS, computed, perturbed, same_weights
from safetensors.torch import save_file
from transformers import (
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

import hf_mae
from hf_mae import MAEBackbone, MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.conversion.command import convert_checkpoint, convert_command
from hf_mae.conversion.image_processors import find_image_processor

# ----------------------------------------------------------------------------------------------------------------------
# Out


def models():
    return {
        "encoder": MAEModel(MAEConfig(**TINY)),
        "encoder, class token": MAEModel(MAEConfig(**TINY, pooling="class", qkv_bias=False)),
        "rectangular encoder": MAEModel(MAEConfig(**{**TINY, "image_size": (16, 64), "patch_size": (4, 16)})),
        "pre-training": MAEForPreTraining(MAEConfig(**TINY, norm_pix_loss=True, mask_ratio=0.5)),
        "classifier": MAEForImageClassification(MAEConfig(**TINY, id2label={0: "cat", 1: "dog", 2: "cow"})),
        "classifier, class token": MAEForImageClassification(MAEConfig(**TINY, num_labels=2, pooling="class")),
    }


IMPOSSIBLE = {
    ("rectangular encoder", "vit_mae"): "takes square images and patches only",
    ("classifier", "vit"): "classifies by the class token, this model by the mean",
    **{(name, "vit_mae"): "has no classifier" for name in ("classifier", "classifier, class token")},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["official", "timm", "vit", "vit_mae", "mmpretrain"])
@pytest.mark.parametrize("name", models())
def test_export__round_trip_is_exact(tmp_path, log, name, layout):
    path = tmp_path / ("out.pth" if layout in ("official", "mmpretrain") else "out")
    model = perturbed(models()[name])
    if (name, layout) in IMPOSSIBLE:
        with pytest.raises(ValueError, match=IMPOSSIBLE[name, layout]):
            hf_mae.export_checkpoint(model, path, layout)
        assert not path.exists()
        return
    hf_mae.export_checkpoint(model, path, layout)
    again = hf_mae.import_checkpoint(path)
    if name == "pre-training" and layout in ("timm", "vit"):
        assert "has no place for it: decoder." in log()
        model = model.mae
    assert type(again) is type(model)
    assert same_weights(again, model)
    fields = set(again.config.to_dict()) - {"_name_or_path", "dtype", "transformers_version", "architectures"}
    if layout == "timm":
        fields -= {each for each in fields if each.startswith("decoder_")} | {"mask_ratio", "norm_pix_loss"}
    assert {each: getattr(again.config, each) for each in fields} == {
        each: getattr(model.config, each) for each in fields
    }
    with pytest.raises(OSError, match="exists already"):
        hf_mae.export_checkpoint(model, path, layout)


def test_export__fine_tuned_by_stock_transformers_comes_back(tmp_path):
    """Its configuration says still how the encoder pooled that it was made of."""
    hf_mae.export_checkpoint(MAEModel(MAEConfig(**TINY, pooling="mean")), tmp_path / "encoder", "vit")
    stock = perturbed(ViTForImageClassification.from_pretrained(tmp_path / "encoder", num_labels=3))
    stock.save_pretrained(tmp_path / "fine-tuned")
    ours = hf_mae.import_checkpoint(tmp_path / "fine-tuned")
    assert (type(ours), ours.config.pooling) == (MAEForImageClassification, "class")
    torch.testing.assert_close(computed(ours), computed(stock), **EXACT)


@pytest.mark.parametrize("layout", ["vit", "timm"])
def test_export__encoder_that_knew_mask_tokens(tmp_path, layout):
    model = MAEForPreTraining(MAEConfig(**TINY, mask_tokens_in_encoder=True)).eval()
    hf_mae.export_checkpoint(model, tmp_path / "out", layout)
    again = hf_mae.import_checkpoint(tmp_path / "out")
    assert torch.equal(computed(again), computed(model.mae))


@pytest.mark.parametrize(
    ("name", "stock_class"),
    [
        ("encoder", ViTModel),
        ("pre-training", ViTModel),
        ("classifier, class token", ViTForImageClassification),
        ("encoder", ViTMAEModel),
        ("pre-training", ViTMAEForPreTraining),
    ],
)
def test_export__stock_classes_compute_the_same(tmp_path, name, stock_class):
    model, layout = perturbed(models()[name]), "vit_mae" if "MAE" in stock_class.__name__ else "vit"
    hf_mae.export_checkpoint(model, tmp_path / "out", layout)
    options = {"add_pooling_layer": False} if stock_class is ViTModel else {}
    if stock_class is ViTMAEModel:
        options["mask_ratio"] = 0.0
    stock, info = stock_class.from_pretrained(tmp_path / "out", output_loading_info=True, **options)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = model.mae if stock_class is ViTModel and name == "pre-training" else model
    torch.testing.assert_close(computed(stock.eval()), computed(expected), **EXACT)


@pytest.mark.parametrize("name", ["encoder", "encoder, class token", "classifier", "classifier, class token"])
def test_export__timm_computes_the_same(tmp_path, name):
    timm = pytest.importorskip("timm")
    model = perturbed(models()[name])
    hf_mae.export_checkpoint(model, tmp_path / "out", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        outputs = model(PIXELS)
        expected = outputs.logits if "logits" in outputs else outputs.pooler_output
        torch.testing.assert_close(theirs(PIXELS), expected, **EXACT)


def test_export__timm_keeps_learned_positions_learned(tiny_config, tmp_path):
    """No tensor shows it, and a run that went on from the weights would not train them."""
    hf_mae.export_checkpoint(MAEModel(tiny_config(position_embedding="learned")), tmp_path / "out", "timm")
    assert hf_mae.import_checkpoint(tmp_path / "out").config.position_embedding == "learned"


def test_export__official_names_come_back(official_weights, tmp_path):
    model = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS, norm_pix_loss=True)
    hf_mae.export_checkpoint(model, tmp_path / "out.pth", "official")
    content = torch.load(tmp_path / "out.pth")  # by default tensors and plain values only
    assert content["model"].keys() == official_weights.keys()
    assert all(torch.equal(content["model"][name], official_weights[name]) for name in official_weights)
    assert content["args"]["norm_pix_loss"] is True


def test_export__lightly_names(official_weights, tmp_path):
    """The names of its example: a timm encoder as `backbone.vit`, the decoder as `decoder`."""
    model = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS)
    hf_mae.export_checkpoint(model, tmp_path / "out.pth", "lightly")
    names = torch.load(tmp_path / "out.pth")
    assert {"backbone.vit.blocks.2.attn.qkv.weight", "decoder.mask_token", "decoder.decoder_blocks.1.norm1.bias"} < set(
        names
    )
    assert same_weights(hf_mae.import_checkpoint(names, **OFFICIAL_HEADS), model)


@pytest.mark.slow
def test_export__mmpretrain_names(official_weights, tmp_path):
    """Those of its MAEViT and MAEPretrainDecoder, all of them and no others; its loader looks under "state_dict"."""
    model = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS)
    hf_mae.export_checkpoint(model, tmp_path / "out.pth", "mmpretrain")
    weights = torch.load(tmp_path / "out.pth")["state_dict"]
    block = ["ln1", "attn.qkv", "attn.proj", "ln2", "ffn.layers.0.0", "ffn.layers.1"]
    modules = ["backbone.patch_embed.projection", "backbone.ln1", "neck.decoder_embed", "neck.ln1", "neck.decoder_pred"]
    modules += [f"backbone.layers.{number}.{name}" for number in range(3) for name in block]
    modules += [f"neck.decoder_blocks.{number}.{name}" for number in range(2) for name in block]
    tensors = {"backbone.cls_token", "backbone.pos_embed", "neck.mask_token", "neck.decoder_pos_embed"}
    assert set(weights) == tensors | {f"{name}.{part}" for name in modules for part in ("weight", "bias")}
    convolution = weights["backbone.patch_embed.projection.weight"]
    assert torch.equal(convolution, official_weights["patch_embed.proj.weight"])
    assert same_weights(hf_mae.import_checkpoint(weights, **OFFICIAL_HEADS), model)
    encoder = hf_mae.import_checkpoint({n: t for n, t in weights.items() if "neck" not in n}, num_attention_heads=4)
    assert type(encoder) is MAEModel
    alone = {n.removeprefix("backbone."): t for n, t in weights.items() if n.startswith("backbone.")}
    assert same_weights(hf_mae.import_checkpoint(alone, num_attention_heads=4), encoder)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_mmpretrain__classifiers(official_weights, tmp_path, pooling):
    """Its `LinearClsHead` is `head.fc`, its `VisionTransformerClsHead` `head.layers.head`; `ln2` follows the mean."""
    model = perturbed(MAEForImageClassification(MAEConfig(**TINY, num_labels=3, pooling=pooling)))
    hf_mae.export_checkpoint(model, tmp_path / "out.pth", "mmpretrain")
    weights = torch.load(tmp_path / "out.pth")["state_dict"]
    assert ("backbone.ln2.weight" in weights, "backbone.ln1.weight" in weights) == (
        pooling == "mean",
        pooling == "class",
    )
    other_head = {name.replace("head.fc", "head.layers.head"): tensor for name, tensor in weights.items()}
    for content in (weights, other_head):
        assert same_weights(hf_mae.import_checkpoint(content, num_attention_heads=4), model)
    scale = {"backbone.layers.0.attn.gamma1.weight": torch.ones(32)}
    with pytest.raises(ValueError, match="mmpretrain, but the model is of another architecture"):
        hf_mae.import_checkpoint({**weights, **scale}, num_attention_heads=4)


PROBES = {"official": ("head.0", "head.1"), "mmpretrain": ("neck.bn", "head.layers.head")}


@pytest.mark.parametrize("layout", PROBES)
def test_linear_probe__has_its_batch_norm_folded(tmp_path, layout):
    model = perturbed(MAEForImageClassification(MAEConfig(**TINY, num_labels=3, pooling="class", layer_norm_eps=1e-6)))
    hf_mae.export_checkpoint(model, tmp_path / "out.pth", layout)
    weights = next(iter(torch.load(tmp_path / "out.pth").values()))
    head = "head" if layout == "official" else "head.fc"
    norm, linear = PROBES[layout]
    mean, variance = torch.randn(32), torch.rand(32) + 0.5
    weights[f"{linear}.weight"], weights[f"{linear}.bias"] = weights.pop(f"{head}.weight"), weights.pop(f"{head}.bias")
    statistics = {"running_mean": mean, "running_var": variance, "num_batches_tracked": torch.tensor(3)}
    weights.update({f"{norm}.{name}": tensor for name, tensor in statistics.items()})
    probe = hf_mae.import_checkpoint(weights, num_attention_heads=4)
    with torch.no_grad():
        features = (model.pool(PIXELS) - mean) / (variance + 1e-6).sqrt()
        torch.testing.assert_close(probe(PIXELS).logits, model.classifier(features))


def test_export__image_processor_of_stock_transformers(tmp_path, tiny_model):
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    processor = MAEImageProcessor.for_image_size(224, image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6))
    hf_mae.export_checkpoint(tiny_model(), tmp_path / "out", "vit", processor)
    stock = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert type(stock).__name__.startswith("ViTImageProcessor")
    picture = torch.randint(0, 256, (3, 300, 300), dtype=torch.uint8)
    ours, theirs = (each(picture, return_tensors="pt").pixel_values for each in (processor, stock))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2 / 255 / 0.4  # two grey levels


def test_export__what_cannot_be_is_refused(tmp_path, tiny_model, tiny_config, log):
    with pytest.raises(ValueError, match="no layout 'tensorflow'; choose one of official, timm"):
        hf_mae.export_checkpoint(tiny_model(), tmp_path / "out", "tensorflow")
    with pytest.raises(ValueError, match="path must be a .pth file"):
        hf_mae.export_checkpoint(tiny_model(), tmp_path / "out", "official")
    with pytest.raises(ValueError, match="path must be a folder"):
        hf_mae.export_checkpoint(tiny_model(), tmp_path / "out.pth", "vit")
    with pytest.raises(ValueError, match="no mask tokens in the encoder"):
        hf_mae.export_checkpoint(tiny_model(mask_tokens_in_encoder=True), tmp_path / "out", "vit_mae")
    with pytest.raises(ValueError, match="'gelu' as its activation, this model 'relu'"):
        hf_mae.export_checkpoint(tiny_model(hidden_act="relu"), tmp_path / "out", "timm")
    with pytest.raises(ValueError, match="MAEBackbone can't be exported"):
        hf_mae.export_checkpoint(MAEBackbone(tiny_config()), tmp_path / "out", "vit")

    class OtherTarget(MAEForPreTraining):
        def target_values(self, pixel_values, ids):
            return -super().target_values(pixel_values, ids)

    with pytest.raises(ValueError, match="predicts pixels, OtherTarget something else"):
        hf_mae.export_checkpoint(OtherTarget(tiny_config()), tmp_path / "out.pth", "official")
    assert not list(tmp_path.iterdir())
    hf_mae.export_checkpoint(tiny_model(layer_norm_eps=1e-5), tmp_path / "out", "timm")
    assert "this model was made with layer_norm_eps=1e-05" in log()


def test_export__of_subclasses_names_the_same_classes(tiny_config, tmp_path):
    class OtherPretraining(MAEForPreTraining):
        pass

    class OtherClassifier(MAEForImageClassification):
        pass

    expected = {
        ("vit_mae", OtherPretraining): "ViTMAEForPreTraining",
        ("vit", OtherPretraining): "ViTModel",
        ("vit", OtherClassifier): "ViTForImageClassification",
    }
    for (layout, model_class), name in expected.items():
        path = tmp_path / f"{layout}-{model_class.__name__}"
        hf_mae.export_checkpoint(model_class(tiny_config(pooling="class")), path, layout)
        assert json.loads((path / "config.json").read_text())["architectures"] == [name]


@pytest.mark.parametrize("layout", ["timm", "vit", "official"])
def test_export__adapters_are_merged_first(tmp_path, tiny_config, layout):
    """Without `qkv`, which an adapter renames, the other library would start with new weights."""
    peft = pytest.importorskip("peft")
    model = MAEModel(tiny_config())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False))
    path = tmp_path / ("out.pth" if layout == "official" else "out")
    with pytest.raises(ValueError, match=r"has mae\.layers\.0\.attention\.qkv\..*no place.*merge_and_unload"):
        hf_mae.export_checkpoint(model, path, layout)
    assert not path.exists()
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(OSError, match="adapter holds an adapter, and no model.*merge_and_unload"):
        hf_mae.import_checkpoint(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    hf_mae.export_checkpoint(merged, path, layout)
    again = hf_mae.import_checkpoint(path, num_attention_heads=merged.config.num_attention_heads)
    assert torch.equal(again.layers[0].attention.qkv.weight, merged.layers[0].attention.qkv.weight)


# ----------------------------------------------------------------------------------------------------------------------
# From files to files


@pytest.fixture
def run_folder(tiny_model, tmp_path):
    """Returns a folder as pre-training leaves it."""
    folder = tmp_path / "run"
    tiny_model().save_pretrained(folder)
    MAEImageProcessor.for_image_size(32, image_mean=(0.1, 0.2, 0.3), image_std=(1, 1, 1)).save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({"metrics": {"knn_accuracy": 0.5}}))
    (folder / "metrics.jsonl").write_text('{"step": 10, "loss": 0.9}\n{"step": 20, "loss": 0.51}\n')
    return folder


def convert(*arguments):
    convert_command([*map(str, arguments)], prog="hf-mae convert")


def test_convert__official_file_and_back(official_weights, tmp_path, capsys, log):
    torch.save({"model": official_weights}, tmp_path / "mae.pth")
    overrides = "num_attention_heads=4,decoder_num_attention_heads=4,norm_pix_loss=true"
    convert(tmp_path / "mae.pth", tmp_path / "out", "--config_overrides", overrides, "--license", "mit")
    model = MAEForPreTraining.from_pretrained(tmp_path / "out")
    assert model.config.norm_pix_loss
    assert same_weights(model, hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS))
    assert MAEImageProcessor.from_pretrained(tmp_path / "out").crop_height_width == (32, 32)
    assert "those of ImageNet are taken" in log()
    record = {"converted_from": "mae.pth", "layout": "official", "license": "mit"}
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == record
    assert "converted from `mae.pth` (official)" in (tmp_path / "out" / "README.md").read_text()
    printed = capsys.readouterr().out
    assert "(official) to " in printed
    assert re.search(r"blocks\.N\.attn\.qkv +mae\.layers\.N\.attention\.qkv +6 tensors", printed)
    convert(tmp_path / "out", tmp_path / "again.pth", "--to", "official")
    again = torch.load(tmp_path / "again.pth")["model"]
    assert all(torch.equal(again[name], official_weights[name]) for name in official_weights)


def test_convert__of_a_run_keeps_its_record_and_halves_its_size(run_folder, tmp_path):
    convert(run_folder, tmp_path / "half", "--dtype", "float16")
    assert (tmp_path / "half" / "run.json").read_text() == (run_folder / "run.json").read_text()
    assert "![loss over steps](loss.png)" in (tmp_path / "half" / "README.md").read_text()
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (run_folder, tmp_path / "half")]
    assert sizes[1] < 0.7 * sizes[0]  # names take some of it
    model = MAEForPreTraining.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.float32
    expected = MAEForPreTraining.from_pretrained(run_folder).decoder.head.weight.half().float()
    assert torch.equal(model.decoder.head.weight, expected)


def test_convert__of_a_run_states_the_licence_that_is_given(run_folder, tmp_path):
    convert(run_folder, tmp_path / "out", "--license", "mit")
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == {
        "metrics": {"knn_accuracy": 0.5},
        "license": "mit",
    }
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()


def test_convert__to_a_stock_folder_and_its_table(run_folder, tmp_path, capsys):
    convert(run_folder, tmp_path / "vit", "--to", "vit")
    printed = capsys.readouterr().out
    assert re.search(r"mae\.layers\.N\.attention\.qkv +encoder\.layer\.N\.attention\.attention\.\{q,k,v\}", printed)
    assert re.search(r"decoder\.head +- +2 tensors", printed)
    processor = json.loads((tmp_path / "vit" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.1, 0.2, 0.3]


def test_convert__carries_the_steps_of_a_foreign_image_processor(tiny_model, tmp_path):
    hf_mae.export_checkpoint(tiny_model().mae, tmp_path / "vit", "vit")
    stated = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32}}
    steps = {
        "resample": 2,
        "do_normalize": False,
        "image_mean": 0.5,
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 127.5,
    }
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps({**stated, **steps}))
    convert(tmp_path / "vit", tmp_path / "ours")
    ours = MAEImageProcessor.from_pretrained(tmp_path / "ours")
    assert (ours.do_normalize, ours.rescale_factor) == (False, 1 / 127.5)
    assert list(ours.image_mean) == [0.5, 0.5, 0.5]
    theirs = ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False, rescale_factor=1 / 127.5)
    image = picture(size=(64, 32))
    expected = theirs(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(ours(image, return_tensors="pt").pixel_values, expected, rtol=0, atol=0.02)


def test_convert__to_other_channels_reads_files_as_before(tiny_model, tmp_path, log):
    tiny_model().save_pretrained(tmp_path / "in")
    reading = {"value_range": [0, 10000], "nodata": 0, "sample_type": "uint16", "bands": [3, 2, 1]}
    MAEImageProcessor.for_image_size(32, **reading).save_pretrained(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", "--config_overrides", "num_channels=4")
    processor = MAEImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.num_channels, processor.value_range, processor.nodata) == (4, [0, 10000], 0)
    assert (processor.sample_type, processor.bands) == ("uint16", None)
    assert "for 3 channels and the model has 4 now: image_mean, image_std, bands are the defaults" in log()


def test_export__image_processors_that_theirs_cannot_be(tiny_model, tmp_path, log):
    """One of 10,000 grey levels is not written; one of rectangles covers them without a black border."""
    scenes = MAEImageProcessor.for_image_size(32, value_range=[0, 10000], sample_type="uint16")
    hf_mae.export_checkpoint(tiny_model().mae, tmp_path / "deep", "vit", scenes)
    assert not (tmp_path / "deep" / "preprocessor_config.json").exists()
    assert "No image processor is written" in log()
    wide = MAEImageProcessor.for_image_size((32, 64))
    hf_mae.export_checkpoint(tiny_model(image_size=(32, 64)).mae, tmp_path / "wide", "vit", wide)
    white = PIL.Image.new("RGB", (50, 50), "white")
    stock = ViTImageProcessor.from_pretrained(tmp_path / "wide")(white, return_tensors="pt").pixel_values
    torch.testing.assert_close(stock, wide(white, return_tensors="pt").pixel_values)


@pytest.mark.parametrize("layout", ["vit", "vit_mae", "timm"])
@pytest.mark.parametrize(
    ("size", "resample"),
    [({"shortest_edge": 32}, 3), ({"shortest_edge": 40}, 2), ({"height": 32, "width": 32}, 3)],
    ids=["no margin", "bilinear", "squashed"],
)
def test_export__image_processors_come_back(tiny_model, tmp_path, layout, size, resample):
    """Their crop, their share of the picture and their filter, not those of the official code."""
    crop = {"height": 32, "width": 32}
    processor = MAEImageProcessor(size=size, crop_size=crop, resample=resample)
    model = tiny_model() if layout == "vit_mae" else tiny_model().mae
    hf_mae.export_checkpoint(model, tmp_path / "out", layout, processor)
    again = find_image_processor(tmp_path / "out", layout, model.config)
    image = picture(size=(70, 50))
    assert torch.equal(*(each(image, return_tensors="pt").pixel_values for each in (again, processor)))
    larger = find_image_processor(tmp_path / "out", layout, tiny_model(image_size=64).config)
    if layout != "timm":  # which states the share, and rounds
        expected = {side: 2 * value for side, value in size.items()}
        assert {side: value for side, value in dict(larger.size).items() if value} == expected
    assert larger.crop_height_width == (64, 64)


@pytest.mark.parametrize(
    "steps",
    [
        {},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": (1, 1, 1), "image_std": (0.5, 1, 2)},
        {"do_rescale": False, "image_mean": (120, 110, 100), "image_std": (50, 60, 70)},
    ],
    ids=str,
)
def test_export__timm_gives_the_same_pixel_values(tiny_model, tmp_path, steps):
    """timm takes (value / 255 - mean) / std, and resizes to the side over `crop_pct`, rounded down."""
    processor = MAEImageProcessor(size={"shortest_edge": 35}, crop_size={"height": 24, "width": 24}, **steps)
    hf_mae.export_checkpoint(tiny_model(image_size=24).mae, tmp_path / "out", "timm", processor)
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    colour = (200, 100, 50)
    mean, std = torch.tensor(stated["mean"]), torch.tensor(stated["std"])
    ours = processor(PIL.Image.new("RGB", (40, 40), colour), return_tensors="pt").pixel_values[0, :, 12, 12]
    torch.testing.assert_close((torch.tensor(colour) / 255 - mean) / std, ours)
    assert (stated["crop_mode"], stated["interpolation"]) == ("center", "bicubic")
    assert int(24 / stated["crop_pct"]) == 35


def test_export__timm_is_told_of_squashed_images_and_not_of_deep_ones(tiny_model, tmp_path, log):
    squashed = MAEImageProcessor(size={"height": 32, "width": 32}, resample=2)
    hf_mae.export_checkpoint(tiny_model().mae, tmp_path / "out", "timm", squashed)
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert (stated["crop_mode"], stated["crop_pct"], stated["interpolation"]) == ("squash", 1, "bilinear")
    assert "timm's transform" not in log()
    scenes = MAEImageProcessor.for_image_size(32, value_range=[0, 10000], sample_type="uint16")
    hf_mae.export_checkpoint(tiny_model().mae, tmp_path / "deep", "timm", scenes)
    assert "timm's transform is not that of the image processor" in log()


def test_export__encoder_without_its_final_norm_is_refused(tiny_config, tmp_path):
    classifier = MAEForImageClassification(tiny_config(pooling="mean", num_labels=3))
    with pytest.raises(ValueError, match="no final norm.* Export the classifier, to 'timm' or 'official'"):
        hf_mae.export_checkpoint(classifier.mae, tmp_path / "out", "vit")


def test_convert__never_writes_over_its_source(official_weights, tmp_path):
    save_file(official_weights, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match="exists already"):
        convert_checkpoint(tmp_path / "model.safetensors", tmp_path, **OFFICIAL_HEADS)
    with pytest.raises(OSError, match="exists already"):
        hf_mae.export_checkpoint(hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS), tmp_path, "vit")
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_convert__of_an_unknown_class_says_that_the_encoder_is_left(tiny_config, tmp_path, log):
    class Subclass(MAEForPreTraining):
        pass

    Subclass(tiny_config()).save_pretrained(tmp_path / "in")
    assert type(hf_mae.import_checkpoint(tmp_path / "in")) is MAEModel
    assert "saved by Subclass, which hf_mae does not know: only its encoder is taken" in log()
    assert type(hf_mae.import_checkpoint(tmp_path / "in", Subclass)) is Subclass


def test_convert__from_python(run_folder, tmp_path):
    model, layout = convert_checkpoint(run_folder, tmp_path / "mm.pth", "mmpretrain")
    assert (type(model), layout) == (MAEForPreTraining, "mae")
    again, layout = convert_checkpoint(tmp_path / "mm.pth", tmp_path / "again", mask_ratio=0.5)
    assert layout == "mmpretrain"
    assert same_weights(again, model)
    assert MAEModel.from_pretrained(tmp_path / "again").config.mask_ratio == 0.5


def test_convert__overrides_reach_model_and_processor(run_folder, tmp_path):
    overrides = "image_size=[64,96],num_channels=1,layer_norm_eps=1e-5"
    convert(run_folder / "model.safetensors", tmp_path / "out", "--config_overrides", overrides)
    model, processor = (each.from_pretrained(tmp_path / "out") for each in (MAEModel, MAEImageProcessor))
    assert (model.config.image_size, model.config.layer_norm_eps) == ([64, 96], 1e-5)
    assert model(**processor(picture(mode="L"), return_tensors="pt")).last_hidden_state.shape == (1, 97, 32)
    convert(run_folder, tmp_path / "larger", "--config_overrides", "image_size=64")
    processor = MAEImageProcessor.from_pretrained(tmp_path / "larger")
    assert (processor.crop_height_width, list(processor.image_mean)) == ((64, 64), [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["run", "out", "--config_overrides", "norm_pix_los=true"], ValueError, "norm_pix_los"),
        (["run", "out", "--config_overrides", "norm_pix_loss"], ValueError, "norm_pix_loss=value"),
        (["run", "out", "--config_overrides", "norm_pix_loss=maybe"], ValueError, "'maybe'"),
        (["run", "out", "--config_overrides", "num_attention_heads=3.0"], ValueError, "3.0"),
        (["run", "out", "--to", "keras"], ValueError, "keras"),
        (["run", "out.pth"], ValueError, "name of a file"),
        (["run", "out.pth", "--to", "official", "--push_to_hub", "me/mae"], ValueError, "`push_to_hub`"),
        (["missing.pth", "out"], OSError, "no checkpoint"),
        (["run", "run"], OSError, "exists already"),
    ],
)
def test_convert__says_what_is_wrong_before_it_writes(run_folder, monkeypatch, arguments, error, message):
    monkeypatch.chdir(run_folder.parent)
    before = sorted(run_folder.parent.rglob("*"))
    with pytest.raises(error, match=message):
        convert(*arguments)
    assert sorted(run_folder.parent.rglob("*")) == before


@pytest.mark.slow
def test_docs__commands_run(run_folder, official_weights, monkeypatch):
    """In a folder with a run and an official file. The one from the Hub is left out: tests have no network."""
    monkeypatch.chdir(run_folder.parent)
    run_folder.rename("fashion_mnist_sample")
    pathlib.Path("runs").mkdir()
    pathlib.Path("fashion_mnist_sample").rename("runs/fashion_mnist_sample")
    model = MAEForPreTraining(MAEConfig.from_preset("tiny", num_hidden_layers=12, decoder_num_hidden_layers=1))
    hf_mae.export_checkpoint(model, "mae_pretrain_vit_base.pth", "official")
    page = (pathlib.Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    commands = re.search(r"```bash\n(.*?)```", page, re.DOTALL)[1].splitlines()
    for line in commands:
        program, command, *arguments = shlex.split(line, comments=True)
        assert (program, command) == ("hf-mae", "convert")
        if not arguments[0].startswith("facebook/"):
            convert(*arguments)
    assert ViTModel.from_pretrained("vit-sample", add_pooling_layer=False)
    assert MAEModel.from_pretrained("half").config.hidden_size == model.config.hidden_size
    assert pathlib.Path("mae.pth").exists()
