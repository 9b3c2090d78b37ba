# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Weights of Pixio become ours and ours become those of Pixio: transformers' classes and the official files."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import TINY, picture
from foreign_models import EXACT, perturbed, same_weights
from safetensors.torch import load_file, save_file
from transformers import PixioBackbone, PixioConfig, PixioModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # in 5.17 also without torchvision

import hf_mae
from hf_mae import (
    MAEBackbone,
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEImageProcessor,
    MAEModel,
)
from hf_mae.conversion import detect_layout, names_in
from hf_mae.conversion.command import convert_checkpoint, convert_command
from hf_mae.evaluation.encoders import load_encoder
from hf_mae.publishing.licenses import license_of
from hf_mae.publishing.model_cards import write_model_card

ENCODER = {name: value for name, value in TINY.items() if not name.startswith(("decoder_", "intermediate"))}
SIZES = {
    "eight class tokens": {"n_cls_tokens": 8},
    "one class token": {"n_cls_tokens": 1, "mlp_ratio": 1, "qkv_bias": False},
    "one channel, other norms": {"n_cls_tokens": 3, "num_channels": 1, "layer_norm_eps": 1e-3, "hidden_act": "relu"},
}
PIXIO = {"num_class_tokens": 3, "position_embedding": "learned", "pooling": "class"}


def images(size=32, channels=3):
    return torch.randn(2, channels, *((size, size) if isinstance(size, int) else size))


def stock_model(model_class=PixioModel, **fields):
    return perturbed(model_class(PixioConfig(**{**ENCODER, "mlp_ratio": 2, "n_cls_tokens": 3, **fields})))


def our_model(model_class=MAEModel, **fields):
    return perturbed(model_class(MAEConfig(**{**TINY, **PIXIO, **fields})))


@torch.no_grad()
def assert_same(ours, stock, pixel_values):
    """Everything that transformers' Pixio returns: the states of all blocks, the last one after the norm, the mean of
    the class tokens."""
    found, expected = (model(pixel_values, output_hidden_states=True) for model in (ours, stock))
    assert len(found.hidden_states) == len(expected.hidden_states) == ours.config.num_hidden_layers + 1
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, **EXACT)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, **EXACT)


# ----------------------------------------------------------------------------------------------------------------------
# transformers' folders


@pytest.mark.parametrize("fields", SIZES.values(), ids=SIZES)
def test_import__computes_what_the_stock_model_computes(tmp_path, fields):
    stock = stock_model(**fields)
    stock.save_pretrained(tmp_path)
    ours = hf_mae.import_checkpoint(tmp_path)
    assert type(ours) is MAEModel
    assert (ours.config.position_embedding, ours.config.pooling) == ("learned", "class")
    assert ours.config.num_class_tokens == fields["n_cls_tokens"]
    for size in (32, 48, (24, 64)):  # others resample the positions: rows of class tokens stay, without antialias
        assert_same(ours, stock, images(size, ours.config.num_channels))


@pytest.mark.parametrize("fields", SIZES.values(), ids=SIZES)
def test_export__the_stock_model_computes_the_same(tmp_path, fields):
    fields = dict(fields)
    sizes = {"num_class_tokens": fields.pop("n_cls_tokens"), "intermediate_size": 32 * fields.pop("mlp_ratio", 2)}
    ours = our_model(**sizes, **fields)
    hf_mae.export_checkpoint(ours, tmp_path / "out", "pixio")
    stock, info = PixioModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for size in (32, 48, (24, 64)):
        assert_same(ours, stock.eval(), images(size, ours.config.num_channels))


def published(name):
    """The name of a tensor of `PixioModel` in the files on the Hub, from its conversion script."""
    renamed = {"layers.": "encoder.layer.", "q_proj": "attention.query", "k_proj": "attention.key"}
    renamed |= {"v_proj": "attention.value", "o_proj": "output.dense"}
    renamed |= {"layernorm_before": "norm1", "layernorm_after": "norm2"}
    for one, other in renamed.items():
        name = name.replace(one, other)
    return name


@pytest.mark.parametrize("names", ["as published", "as saved", "in memory"])
def test_import__knows_all_spellings(tmp_path, names):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    file, weights = tmp_path / "model.safetensors", dict(stock.state_dict())
    if names == "as published":
        save_file({published(name): tensor for name, tensor in weights.items()}, file)
        assert "encoder.layer.1.mlp.fc1.weight" in load_file(file)
    elif names == "in memory":
        save_file(weights, file)
        assert "layers.1.mlp.fc1.weight" in load_file(file)
        bare = hf_mae.import_checkpoint(
            {f"model.{name}": each for name, each in weights.items()}, num_attention_heads=4
        )
        assert_same(bare, stock, images())  # the class tokens tell Pixio from ViT, which has the same names
    else:
        assert "encoder.layer.1.intermediate.dense.weight" in load_file(file)
    assert detect_layout(tmp_path) == "pixio"
    assert_same(hf_mae.import_checkpoint(tmp_path), stock, images())


def test_import__one_class_token_in_memory_is_a_vit_unless_stated():
    weights = stock_model(n_cls_tokens=1).state_dict()
    assert detect_layout(weights) == "vit_mae"  # as before: it has the names of three models


@pytest.mark.parametrize("model_class", [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_from_pretrained__takes_pixio_folders(tmp_path, model_class):
    stock = stock_model(drop_path_rate=0.1)
    stock.save_pretrained(tmp_path / "stock")
    model = model_class.from_pretrained(tmp_path / "stock").eval()
    assert_same(model.base_model, stock, images())
    config = model.config
    assert (config.num_class_tokens, config.image_size, config.patch_size, config.intermediate_size) == (3, 32, 8, 64)
    assert (config.drop_path_rate, config.layer_norm_eps, config.position_embedding) == (0.1, 1e-6, "learned")
    model.save_pretrained(tmp_path / "ours")
    again = model_class.from_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "mae"
    assert same_weights(again, model)


def test_from_pretrained__at_other_sizes(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    model = MAEModel.from_pretrained(tmp_path, image_size=48)
    assert model.embeddings.position_embeddings.shape == (1, 3 + 36, 32)
    assert_same(model.eval(), stock, images(48))
    model = MAEForPreTraining.from_pretrained(tmp_path, image_size=64, mask_block_size=4, decoder_num_hidden_layers=3)
    assert (model.config.mask_block_size, len(model.decoder.layers)) == (4, 3)
    assert model(images(64)).loss.isfinite()


def test_configuration__of_a_pixio_folder_has_our_names(tmp_path):
    """Fine-tuning and segmentation read it by itself. What it leaves out are Pixio's defaults, not ours."""
    stock_model().save_pretrained(tmp_path)
    config = MAEConfig.from_pretrained(tmp_path, image_size=64)
    assert (config.num_class_tokens, config.intermediate_size, config.image_size) == (3, 64, 64)
    assert (config.position_embedding, config.pooling, config.out_features) == ("learned", "class", ["stage2"])
    assert MAEBackbone.from_pretrained(tmp_path, config=config).base_model.embeddings.cls_token.shape[1] == 3
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "pixio", "patch_size": 8}))
    config = MAEConfig.from_pretrained(tmp_path)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (1280, 32, 16)
    assert (config.num_class_tokens, config.intermediate_size, config.image_size) == (8, 5120, 256)


# ----------------------------------------------------------------------------------------------------------------------
# The backbone and its own norm


@torch.no_grad()
def assert_same_maps(ours, stock):
    for size in (32, (24, 64)):
        pixel_values = images(size)
        found, expected = ours(pixel_values).feature_maps, stock(pixel_values).feature_maps
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, **EXACT)


BACKBONES = {
    "last": {},
    "several": {"out_features": ["stem", "stage1", "stage2"]},
    "tokens": {"reshape_hidden_states": False},
    "no norm": {"apply_layernorm": False, "out_indices": [1]},
}


@pytest.mark.parametrize("names", ["as saved", "in memory"])
@pytest.mark.parametrize("fields", BACKBONES.values(), ids=BACKBONES)
def test_backbone__import_has_the_norm_of_its_maps(tmp_path, log, fields, names):
    """transformers itself exchanges the two norms of a backbone when it loads what it saved (5.17 to 5.24)."""
    stock = stock_model(PixioBackbone, **fields)
    assert not torch.equal(stock.layernorm.weight, stock.pixio.layernorm.weight)
    stock.save_pretrained(tmp_path)
    if names == "in memory":
        save_file(dict(stock.state_dict()), tmp_path / "model.safetensors")
    ours = MAEBackbone.from_pretrained(tmp_path).eval()
    assert ours.out_features == stock.out_features
    assert_same_maps(ours, stock)
    assert "two final norms that differ" in log()
    model = hf_mae.import_checkpoint(tmp_path)
    kept = stock.layernorm if fields.get("apply_layernorm", True) else stock.pixio.layernorm
    assert torch.equal(model.layernorm.weight, kept.weight)
    assert torch.equal(model.layernorm.bias, kept.bias)
    other = MAEBackbone.from_pretrained(tmp_path, out_indices=[0, 2])
    assert other.out_features == ["stem", "stage2"]


def test_backbone__export_has_the_norm(tmp_path):
    """`PixioBackbone` makes a new norm when it loads the folder of a `PixioModel`, but not of ours."""
    model = our_model()
    hf_mae.export_checkpoint(model, tmp_path / "out", "pixio")
    stock, info = PixioBackbone.from_pretrained(tmp_path / "out", out_indices=[1, 2], output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(stock.layernorm.weight, model.layernorm.weight)
    model.save_pretrained(tmp_path / "ours")
    assert_same_maps(MAEBackbone.from_pretrained(tmp_path / "ours", out_indices=[1, 2]).eval(), stock.eval())


# ----------------------------------------------------------------------------------------------------------------------
# Out and back, and the official files


@pytest.mark.parametrize("layout", ["pixio", "pixio_official"])
@pytest.mark.parametrize("model_class", [MAEModel, MAEForPreTraining])
def test_export__round_trip_is_exact(tmp_path, log, model_class, layout):
    path = tmp_path / ("out" if layout == "pixio" else "out.pth")
    model = our_model(model_class, norm_pix_loss=True, mask_block_size=2, mask_ratio=0.5)
    hf_mae.export_checkpoint(model, path, layout)
    bare = layout == "pixio_official" and model_class is MAEModel
    again = hf_mae.import_checkpoint(path, **({"num_attention_heads": 4} if bare else {}))
    if layout == "pixio" and model_class is MAEForPreTraining:
        assert "transformers' Pixio has no place for it: decoder." in log()
        model = model.mae
    assert type(again) is type(model)
    assert same_weights(again, model)
    if not bare:
        fields = set(again.config.to_dict()) - {"_name_or_path", "dtype", "transformers_version", "architectures"}
        assert {each: getattr(again.config, each) for each in fields} == {
            each: getattr(model.config, each) for each in fields
        }


def test_official_files__have_the_names_of_the_official_code(tmp_path):
    """Published ones are bare encoders, those of training hold a decoder under `model`."""
    hf_mae.export_checkpoint(our_model(), tmp_path / "encoder.pth", "pixio_official")
    weights = torch.load(tmp_path / "encoder.pth", weights_only=True)
    block = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    stems = ["patch_embed.proj", "norm", *(f"blocks.{number}.{name}" for number in (0, 1) for name in block)]
    assert set(weights) == {
        "cls_token",
        "pos_embed",
        *(f"{stem}.{part}" for stem in stems for part in ("weight", "bias")),
    }
    assert weights["cls_token"].shape == (1, 3, 32)
    assert weights["pos_embed"].shape == (1, 3 + 16, 32)
    assert weights["patch_embed.proj.weight"].shape == (32, 3, 8, 8)
    hf_mae.export_checkpoint(our_model(MAEForPreTraining), tmp_path / "training.pth", "pixio_official")
    weights = torch.load(tmp_path / "training.pth", weights_only=True)["model"]
    assert weights["decoder_pos_embed"].shape == (1, 3 + 16, 16)
    assert {"mask_token", "decoder_embed.bias", "decoder_norm.bias", "decoder_pred.bias"} < set(weights)


@torch.no_grad()
def test_official_files__mean_what_transformers_makes_of_them(tmp_path):
    """The conversion script of transformers splits `qkv` into queries, keys and values, in this order."""
    stock = stock_model(n_cls_tokens=8)
    theirs = {name.replace("layers.", "blocks."): tensor for name, tensor in stock.state_dict().items()}
    renamed = {"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed"}
    renamed |= {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm_before": "norm1"}
    renamed |= {"layernorm_after": "norm2", "layernorm": "norm", "attention.o_proj": "attn.proj"}
    weights = {}
    for name, tensor in theirs.items():
        for one, other in renamed.items():
            name = name.replace(one, other)
        weights[name] = tensor
    for number in (0, 1):
        for part in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{number}.attention.{each}_proj.{part}") for each in "qkv"]
            weights[f"blocks.{number}.attn.qkv.{part}"] = torch.cat(parts)
    torch.save(weights, tmp_path / "pixio_vits16.pth")
    assert detect_layout(tmp_path / "pixio_vits16.pth") == "pixio_official"
    ours = hf_mae.import_checkpoint(tmp_path / "pixio_vits16.pth", num_attention_heads=4)
    assert_same(ours, stock, images())
    assert_same(ours, stock, images(48))


def test_official_files__of_training_predict_normalised_patches(tmp_path):
    model = our_model(MAEForPreTraining, norm_pix_loss=True)
    hf_mae.export_checkpoint(model, tmp_path / "training.pth", "pixio_official")
    weights = torch.load(tmp_path / "training.pth", weights_only=True)["model"]
    again = hf_mae.import_checkpoint({"model": weights}, num_attention_heads=4, decoder_num_attention_heads=2)
    assert (again.config.norm_pix_loss, again.config.position_embedding) == (True, "learned")
    pixel_values, noise = images(), torch.rand(2, 16)
    assert torch.equal(again(pixel_values, noise=noise).loss, model(pixel_values, noise=noise).loss)


@pytest.mark.parametrize("width", [1536, 3072])
def test_heads__of_the_largest_published_sizes_are_known(width):
    """Pixio-1B and 5B have no preset. Without the norm, the check after that of the heads fails."""
    with torch.device("meta"):
        model = MAEModel(MAEConfig(**{**TINY, **PIXIO, "hidden_size": width, "num_hidden_layers": 48}))
    weights = {f"mae.{name}": tensor for name, tensor in model.state_dict().items()}
    names = names_in("pixio_official", weights)
    theirs = {names[name][0]: tensor for name, tensor in weights.items()}
    theirs["patch_embed.proj.weight"] = torch.empty(width, 3, 8, 8, device="meta")
    del theirs["norm.weight"]
    with pytest.raises(ValueError, match="missing: mae.layernorm.weight$"):
        hf_mae.import_checkpoint(theirs)


IMPOSSIBLE = {
    "official": ({}, MAEModel, "has one class token, this model 3. Export to 'pixio' or 'pixio_official'"),
    "timm": ({}, MAEModel, "has one class token"),
    "vit": ({}, MAEForImageClassification, "has one class token"),
    "pixio": ({}, MAEForImageClassification, "has no classifier. Export the encoder"),
    "pixio ": ({"image_size": (16, 64)}, MAEModel, "takes square images and patches only"),
    "pixio  ": ({"intermediate_size": 72}, MAEModel, "a multiple of `hidden_size`, this model 72 for 32"),
    "pixio_official": ({"hidden_act": "relu"}, MAEForPreTraining, "'gelu' as its activation"),
    "pixio_official ": ({"mask_tokens_in_encoder": True}, MAEForPreTraining, "no mask tokens in the encoder"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_export__refuses_what_the_other_library_cannot_compute(tmp_path, case):
    fields, model_class, message = IMPOSSIBLE[case]
    layout = case.strip()
    path = tmp_path / ("out.pth" if "official" in layout else "out")
    with pytest.raises(ValueError, match=message):
        hf_mae.export_checkpoint(our_model(model_class, **fields), path, layout)
    assert not path.exists()


def test_export__of_another_pooling_is_warned_of(tmp_path, log):
    hf_mae.export_checkpoint(our_model(pooling="mean"), tmp_path / "out", "pixio")
    assert "pooler_output of transformers' Pixio is the mean of the class tokens" in log()
    assert hf_mae.import_checkpoint(tmp_path / "out").config.pooling == "mean"


# ----------------------------------------------------------------------------------------------------------------------
# Images, commands, licences


def stock_folder(path, **processor):
    model = stock_model()
    model.save_pretrained(path)
    settings = {"do_resize": True, "size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 3}
    settings |= {"do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "do_convert_rgb": True}
    settings |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    settings |= {"image_processor_type": "BitImageProcessor", **processor}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def test_image_processor__resizes_to_the_size_without_a_crop(tmp_path):
    stock_folder(tmp_path / "stock")
    convert_checkpoint(tmp_path / "stock", tmp_path / "ours")
    ours = MAEImageProcessor.from_pretrained(tmp_path / "ours")
    image = picture(size=(50, 36))
    found = ours(image, return_tensors="pt").pixel_values
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "stock", backend="pil")
    expected = torch.as_tensor(np.array(theirs(image, return_tensors="np")["pixel_values"]))
    assert found.shape == expected.shape == (1, 3, 32, 32)
    assert (found - expected).abs().mean() < 0.02  # rounding of greys to bytes
    assert ours.image_mean == pytest.approx([0.485, 0.456, 0.406])
    convert_checkpoint(tmp_path / "ours", tmp_path / "back", to="pixio")
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "back", backend="pil")
    again = torch.as_tensor(np.array(theirs(image, return_tensors="np")["pixel_values"]))
    torch.testing.assert_close(again, expected, **EXACT)


def test_image_processor__of_a_cropping_model_stays(tmp_path):
    model = our_model()
    model.save_pretrained(tmp_path / "ours")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "stock", to="pixio")
    convert_checkpoint(tmp_path / "stock", tmp_path / "again")
    processors = [MAEImageProcessor.from_pretrained(tmp_path / name) for name in ("ours", "again")]
    image = picture(size=(50, 36))
    one, other = (each(image, return_tensors="pt").pixel_values for each in processors)
    torch.testing.assert_close(one, other)


def test_load_encoder__takes_pixio(tmp_path):
    stock = stock_folder(tmp_path)
    encoder = load_encoder(tmp_path)
    assert (encoder.num_class_tokens, encoder.depth, encoder.is_trainable) == (3, 2, True)
    assert encoder.image_processor.crop_height_width == (32, 32)
    pixel_values = images()
    encoded = encoder(pixel_values)[0]
    with torch.no_grad():
        expected = stock(pixel_values)
    torch.testing.assert_close(encoder.pooled(encoded)["class"], expected.pooler_output, **EXACT)
    torch.testing.assert_close(encoded.patches, expected.last_hidden_state[:, 3:], **EXACT)


def test_convert__says_what_tensors_are_called(tmp_path, capsys):
    stock_folder(tmp_path / "stock")
    convert_command([str(tmp_path / "stock"), str(tmp_path / "ours")], prog="hf-mae convert")
    printed = capsys.readouterr().out
    assert "(pixio)" in printed
    assert "encoder.layer.N.attention.attention.{q,k,v}" in printed
    convert_command(
        [str(tmp_path / "ours"), str(tmp_path / "out.pth"), "--to", "pixio_official"], prog="hf-mae convert"
    )
    assert "blocks.N.attn.qkv" in capsys.readouterr().out


@pytest.mark.parametrize("fields", [{}, {"image_size": (16, 64)}], ids=["square", "rectangular"])
def test_card__says_how_to_export(tmp_path, monkeypatch, fields):
    monkeypatch.chdir(tmp_path)
    model = our_model(MAEForPreTraining, **fields)
    model.save_pretrained("ours")
    write_model_card("ours")
    text = (tmp_path / "ours" / "README.md").read_text()
    assert ("PixioModel" in text) == (not fields)
    if not fields:
        export, stock = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.S) if '"pixio"' in block]
        found = {}
        exec(export, {})
        exec(stock, found)
        assert_same(model.mae, found["model"].eval(), images())


CARD = "---\nlicense: {}\n---\n# A model\n"
FAIR = "fair-noncommercial-research-license"
LICENSES = {  # name of the folder, metadata of its card, licence that stays
    "card": ("downloaded", FAIR, FAIR),
    "named": ("downloaded", f"other\nlicense_name: {FAIR}", FAIR),
    "other non-commercial": ("downloaded", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
    "free": ("downloaded", "apache-2.0", None),
    "Hub's cache": ("models--facebook--pixio-vitb16/snapshots/0123", None, FAIR),
    "broken card": ("downloaded", "[", None),
}


@pytest.mark.parametrize(("name", "card", "expected"), LICENSES.values(), ids=LICENSES)
def test_license__that_is_non_commercial_stays_on_the_card(tmp_path, name, card, expected):
    folder = tmp_path / name
    stock_folder(folder)
    if card is not None:
        (folder / "README.md").write_text(CARD.format(card))
    convert_checkpoint(folder, tmp_path / "ours")
    written = (tmp_path / "ours" / "README.md").read_text()
    assert (f"license: {expected}\n" in written) == (expected is not None)
    assert ("no commercial use" in written) == (expected == FAIR)
    assert license_of(tmp_path / "ours") == expected  # and with what is made of these
    assert license_of(tmp_path / "ours" / "model.safetensors") == expected


def test_license__of_published_files():
    assert license_of("facebook/pixio-vitb16") == FAIR
    assert license_of("downloads/pixio_vitb16.pth") == FAIR
    assert license_of("runs/pixio_base") is None
