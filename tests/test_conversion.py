# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Weights of other implementations: in, out, and from files to files."""

import argparse
import json
import os
import pathlib
import pickle
import re
import shlex

import pytest
import torch
from conftest import OFFICIAL_HEADS, TINY, picture
from safetensors.torch import load_file, save_file
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

import hf_mae
from hf_mae import MAEBackbone, MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.conversion import convert_checkpoint, convert_command

PIXELS, NOISE = torch.linspace(-2, 2, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32), torch.rand(2, 16)
EXACT = {"rtol": 0, "atol": 1e-5}
VIT = {name: value for name, value in TINY.items() if not name.startswith("decoder_")}
STOCK = {
    "ViTModel": lambda: ViTModel(ViTConfig(**VIT)),
    "ViTForImageClassification": lambda: ViTForImageClassification(ViTConfig(**VIT, id2label={0: "cat", 1: "dog"})),
    "ViTMAEModel": lambda: ViTMAEModel(ViTMAEConfig(**VIT, mask_ratio=0.0)),
    "ViTMAEForPreTraining": lambda: ViTMAEForPreTraining(ViTMAEConfig(**TINY, norm_pix_loss=True, mask_ratio=0.5)),
}
OUR_CLASS = dict(zip(STOCK, (MAEModel, MAEForImageClassification, MAEModel, MAEForPreTraining), strict=True))


def perturbed(model):
    """With every parameter at random, so that a wrong name shows; in evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def stock_folder(name, path):
    model = perturbed(STOCK[name]())
    model.save_pretrained(path)
    return model


@torch.no_grad()
def computed(model):
    """What a model, ours or another, makes of PIXELS: of all patches, or with NOISE what it predicts of them."""
    if isinstance(model, ViTMAEForPreTraining | MAEForPreTraining):
        return model(pixel_values=PIXELS, noise=NOISE).loss
    if isinstance(model, ViTMAEModel):  # mask_ratio 0, and a noise that does not shuffle
        return model(PIXELS, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    outputs = model(PIXELS)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def encoder_only(weights):
    return {name: tensor for name, tensor in weights.items() if "decoder" not in name and name != "mask_token"}


# ----------------------------------------------------------------------------------------------------------------------
# Official files


def test_class_and_sizes__follow_from_the_content(official_weights, log):
    model = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS)
    assert type(model) is MAEForPreTraining
    assert not model.training
    config = model.config
    assert (config.image_size, config.patch_size, config.num_channels) == (32, 4, 3)
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (64, 3, 256)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (32, 2)
    assert "the official MAE code: encoder and decoder, 74 tensors" in log()
    assert "does not say whether its decoder predicts pixels or normalised patches" in log()
    encoder = hf_mae.import_checkpoint(encoder_only(official_weights), num_attention_heads=4)
    assert type(encoder) is MAEModel
    assert "the official MAE code or timm: encoder" in log()
    assert torch.equal(encoder(PIXELS).last_hidden_state, model.mae(PIXELS).last_hidden_state)


@pytest.mark.parametrize("layout", ["bare.pth", "with arguments.pth", "of lightning.ckpt", "weights.safetensors"])
def test_files__of_every_layout(official, official_weights, tmp_path, layout):
    path, config = tmp_path / layout, {"norm_pix_loss": True, **OFFICIAL_HEADS}
    if layout == "bare.pth":
        torch.save(official_weights, path)
    elif layout == "weights.safetensors":
        save_file(official_weights, path)
    elif layout == "of lightning.ckpt":
        wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in official_weights.items()}
        torch.save({"state_dict": wrapped, "global_step": 3}, path)
    else:  # as the official training script saves; its arguments state the target
        del config["norm_pix_loss"]
        arguments = argparse.Namespace(norm_pix_loss=True, mask_ratio=0.75, batch_size=64)
        torch.save({"model": official_weights, "optimizer": {"state": {}}, "epoch": 3, "args": arguments}, path)
    model = hf_mae.import_checkpoint(path, **config).double()
    loss = model(official["images"].double(), noise=official["noise"]).loss
    torch.testing.assert_close(loss, official["norm_pix_1.ratio_0.75.loss"].squeeze())


def test_heads__of_published_sizes_are_known(tmp_path):
    """Files with the widths of ViT-Tiny (and of the small decoder) need no keyword."""
    model = MAEForPreTraining(MAEConfig.from_preset("tiny", decoder_hidden_size=256, decoder_num_attention_heads=8))
    hf_mae.export_checkpoint(model, tmp_path / "tiny.pth", "official")
    weights = torch.load(tmp_path / "tiny.pth")["model"]
    assert weights["patch_embed.proj.weight"].shape == (192, 3, 16, 16)
    config = hf_mae.import_checkpoint(weights).config
    assert (config.num_attention_heads, config.decoder_num_attention_heads) == (3, 8)
    assert config.image_size == 224


def test_heads__that_cannot_be_told_are_asked_for(official_weights):
    with pytest.raises(ValueError, match="num_attention_heads.*pass num_attention_heads="):
        hf_mae.import_checkpoint(official_weights)
    with pytest.raises(ValueError, match="pass decoder_num_attention_heads="):
        hf_mae.import_checkpoint(official_weights, num_attention_heads=4)


def test_image_size__tells_the_grid_or_resamples_the_table(official_weights):
    model = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS, image_size=(16, 64))
    assert model.config.grid_size == (4, 16)
    assert torch.equal(model.mae.embeddings.position_embeddings, official_weights["pos_embed"])
    model = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS, image_size=(64, 48), num_channels=1)
    assert model.config.grid_size == (16, 12)
    assert model.mae.embeddings.position_embeddings.shape == (1, 193, 64)
    assert model(torch.randn(1, 1, 64, 48)).loss.isfinite()


def test_patch_size__that_differs_resamples_the_weights(official_weights):
    model = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS)
    larger = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS, patch_size=8)
    assert (larger.config.patch_size, larger.config.image_size, larger.config.grid_size) == (8, 32, (4, 4))
    expected = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS)
    expected.resize_patches(8)
    assert same_weights(larger, expected)
    assert not same_weights(larger, model)


def test_missing_tensors__are_named(official_weights):
    for name in ("blocks.1.attn.proj.bias", "decoder_pos_embed"):
        weights = {other: tensor for other, tensor in official_weights.items() if other != name}
        ours = {"blocks.1.attn.proj.bias": "mae.layers.1.attention.proj.bias"}.get(name, "decoder.position_embeddings")
        with pytest.raises(ValueError, match=f"missing: {ours}"):
            hf_mae.import_checkpoint(weights, **OFFICIAL_HEADS)
    weights = {name: tensor for name, tensor in official_weights.items() if name != "patch_embed.proj.weight"}
    with pytest.raises(ValueError, match="the official MAE code, but there is no patch_embed.proj.weight"):
        hf_mae.import_checkpoint(weights, **OFFICIAL_HEADS)


def test_tensors_of_another_shape__are_named(official_weights):
    weights = {**official_weights, "norm.weight": torch.ones(7)}
    with pytest.raises(ValueError, match=r"mae.layernorm.weight: expected \(64,\), got \(7,\)"):
        hf_mae.import_checkpoint(weights, **OFFICIAL_HEADS)


def test_left_over_tensors__are_named(official_weights, log):
    heads = {"extra_head.weight": torch.zeros(10, 64), "projector.0.bias": torch.zeros(10)}
    weights = {**encoder_only(official_weights), **heads}
    assert type(hf_mae.import_checkpoint(weights, num_attention_heads=4)) is MAEModel
    assert "no place for them: extra_head.weight, projector.0.bias" in log()
    hf_mae.import_checkpoint({**official_weights, "head.weight": torch.zeros(10, 64)}, **OFFICIAL_HEADS)
    assert "no place for them: classifier.weight" in log()


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_encoder_alone__into_a_larger_model_says_what_is_new(official_weights, log, model_class):
    encoder = hf_mae.import_checkpoint(encoder_only(official_weights), num_attention_heads=4)
    model = hf_mae.import_checkpoint(encoder_only(official_weights), model_class, num_attention_heads=4)
    assert type(model) is model_class
    assert torch.equal(model.mae.layers[2].mlp.fc2.weight, encoder.layers[2].mlp.fc2.weight)
    new = {
        MAEForPreTraining: "new, to be trained: decoder",
        MAEForImageClassification: "new, to be trained: classifier",
    }
    assert new.get(model_class, "encoder") in log()


def test_fine_tuned_encoder__without_its_classifier(official_weights, log):
    """As timm leaves it with `num_classes=0`: the norm after the mean says what it is."""
    weights = encoder_only(official_weights)
    weights = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in weights.items()
    }
    model = hf_mae.import_checkpoint(weights, num_attention_heads=4, num_labels=3)
    assert type(model) is MAEForImageClassification
    assert torch.equal(model.fc_norm.weight, official_weights["norm.weight"])
    assert model(PIXELS).logits.shape == (2, 3)
    assert "new, to be trained: classifier." in log()


@pytest.mark.parametrize("content", [{"conv1.weight": torch.zeros(64, 3, 7, 7)}, {"patch_embed.x": torch.zeros(3)}])
def test_another_architecture__is_refused(content):
    with pytest.raises(ValueError, match="not known.*official MAE code; timm; .*(conv1|patch_emb)"):
        hf_mae.import_checkpoint(content)


@pytest.mark.parametrize(
    "name",
    [
        *("blocks.0.ls1.gamma", "reg_token", "norm_pre.weight", "blocks.1.attn.q_norm.weight", "rel_pos_bias.table"),
        *("patch_embed.backbone.stem.weight", "patch_embed.norm.weight"),
        # Embeddings of bands, of times, of scales, and anything else that nobody has thought of.
        *(
            "channel_embed",
            "temporal_embed",
            "pos_embed_spatial",
            "scale_embed.weight",
            "level_embedding",
            "adapter.0.bias",
        ),
    ],
)
def test_another_encoder__under_the_same_names_is_refused(official_weights, name):
    """It would load, and compute something else."""
    with pytest.raises(ValueError, match=f"another architecture: it has {name}"):
        hf_mae.import_checkpoint({**encoder_only(official_weights), name: torch.zeros(64)}, num_attention_heads=4)


@pytest.mark.parametrize("name", ["decoder_channel_embed", "decoder_blocks.0.ls1.gamma", "decoder.extra.weight"])
def test_another_decoder__under_the_same_names_is_refused(official_weights, name, log):
    weights = {**official_weights, name: torch.zeros(64)}
    with pytest.raises(ValueError, match=f"another architecture: it has {name}.*remove them from the state dict"):
        hf_mae.import_checkpoint(weights, **OFFICIAL_HEADS)
    del weights["decoder_embed.weight"]  # an encoder, next to parts of a decoder that is not used
    assert type(hf_mae.import_checkpoint(weights, num_attention_heads=4)) is MAEModel
    assert name in log()


def test_two_last_norms__are_refused(official_weights):
    """The mean of normalised patches, normalised again, is no model of ours."""
    norms = {"fc_norm.weight": torch.ones(64), "fc_norm.bias": torch.zeros(64)}
    head = {"head.weight": torch.zeros(3, 64), "head.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match="another architecture.*norm"):
        hf_mae.import_checkpoint({**encoder_only(official_weights), **norms, **head}, num_attention_heads=4)


@pytest.mark.parametrize("name", ["pre_logits.fc.weight", "attn_pool.q.weight", "head_dist.weight"])
def test_another_classifier__on_the_same_encoder_is_refused(official_weights, name):
    head = {"head.weight": torch.zeros(3, 64), "head.bias": torch.zeros(3)}
    weights = {**encoder_only(official_weights), **head}
    assert type(hf_mae.import_checkpoint(weights, num_attention_heads=4)) is MAEForImageClassification
    with pytest.raises(ValueError, match=f"another architecture: it has {name}"):
        hf_mae.import_checkpoint({**weights, name: torch.zeros(64)}, num_attention_heads=4)


def test_own_weights__want_their_folder(tiny_model, tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match="weights of hf_mae itself: load the folder"):
        hf_mae.import_checkpoint(model.state_dict())
    model.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        again = hf_mae.import_checkpoint(path)
        assert type(again) is MAEForPreTraining
        assert same_weights(again, model)
    assert type(hf_mae.import_checkpoint(tmp_path, MAEModel)) is MAEModel


class Payload:
    """What a pickle can do to whoever loads it: run a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return (os.system, (self.command,))


@pytest.mark.parametrize("name", ["evil.pth", "pytorch_model.bin", "old.pth"])
def test_pickles__are_refused_and_do_not_run(official_weights, tmp_path, name):
    witness, path = tmp_path / "ran", tmp_path / name
    content = {"model": official_weights, "args": Payload(f"touch {witness}")}
    if name == "old.pth":  # a bare pickle, without torch's container
        path.write_bytes(pickle.dumps({"args": content["args"]}))
    else:
        torch.save(content, path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    for checkpoint in {path, tmp_path} if name == "pytorch_model.bin" else {path}:
        with pytest.raises(OSError, match="not a checkpoint of tensors and was not loaded"):
            hf_mae.import_checkpoint(checkpoint)
    if name == "pytorch_model.bin":
        with pytest.raises(OSError, match="was not loaded"):
            MAEForPreTraining.from_pretrained(tmp_path)
    assert not witness.exists()
    if name != "old.pth":
        torch.load(path, weights_only=False)
        assert witness.exists()  # the payload is a real one


def test_pickles__say_what_they_hold_and_do_not_advise_danger(tmp_path):
    torch.save({"model": {}, "folder": pathlib.PurePosixPath("a")}, tmp_path / "path.pth")
    with pytest.raises(
        OSError, match=r"it holds pathlib\S*PurePosixPath, which is neither tensor nor plain value"
    ) as error:
        hf_mae.import_checkpoint(tmp_path / "path.pth")
    assert "weights_only" not in str(error.value)
    assert error.value.__cause__ is None


BROKEN = {  # file, content, what is said
    "truncated": ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "was not loaded"),
    "no json": ("config.json", b"{", "is not JSON"),
    "a list": ("config.json", b"[1, 2]", "must hold an object, got list"),
    "no map": ("model.safetensors.index.json", b"{}", "weight_map"),
    "elsewhere": ("model.safetensors.index.json", b'{"weight_map": {"a": "../a.safetensors"}}', "weight_map"),
    "wrong type": ("config.json", b'{"model_type": "vit", "hidden_size": "wide"}', "is not a configuration"),
    "wrong value": ("config.json", b'{"model_type": "vit", "hidden_act": "nope", "image_size": 32}', "does not fit"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders__are_refused(tmp_path, kind):
    file, content, message = BROKEN[kind]
    stock_folder("ViTModel", tmp_path)
    if "index" in file:
        (tmp_path / "model.safetensors").unlink()
    if kind == "wrong value":
        content = json.dumps({**json.loads((tmp_path / file).read_text()), **json.loads(content)}).encode()
    (tmp_path / file).write_bytes(content)
    with pytest.raises((OSError, ValueError), match=message):
        hf_mae.import_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "decoder_embed.weight"]
)
def test_tensors_of_another_rank__are_named(official_weights, name):
    with pytest.raises(ValueError, match=r"\(as hf_mae calls it\) must have . dimensions, got the shape \(5,\)"):
        hf_mae.import_checkpoint({**official_weights, name: torch.zeros(5)}, **OFFICIAL_HEADS)


def test_arguments_beside_the_weights__are_taken_with_care(official_weights, tmp_path):
    arguments = argparse.Namespace(norm_pix_loss=1, mask_ratio=None, model_type="mae", hidden_act=None, lr=0.1)
    torch.save({"model": official_weights, "args": arguments}, tmp_path / "fork.pth")
    model = hf_mae.import_checkpoint(tmp_path / "fork.pth", **OFFICIAL_HEADS)
    assert model.config.norm_pix_loss is True
    assert model.config.mask_ratio == 0.75
    with pytest.raises(ValueError, match="MAEConfig has no field norm_pix_los"):
        hf_mae.import_checkpoint(tmp_path / "fork.pth", norm_pix_los=True)


def test_files_that_are_none(tmp_path):
    with pytest.raises(OSError, match="There is no checkpoint"):
        hf_mae.import_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(OSError, match="There is no checkpoint 'missing.pth'"):
        hf_mae.import_checkpoint("missing.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(OSError, match="was not loaded"):
        hf_mae.import_checkpoint(tmp_path / "text.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="holds no weights: none of model.safetensors"):
        hf_mae.import_checkpoint(tmp_path / "empty")
    with pytest.raises(ValueError, match="mapping from names to tensors"):
        hf_mae.import_checkpoint({"epoch": 3})


PREFIXES = {
    "module.": "DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "model.": "an attribute of a Lightning module",
    "backbone.": "the encoder of a larger model",
    "net.encoder._orig_mod.": "all of these",
    "_fsdp_wrapped_module.": "FSDP",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("head", ["with the prefix", "without"])
def test_prefixes__are_removed(official_weights, prefix, head):
    heads = {"head.weight": torch.randn(3, 64), "head.bias": torch.randn(3)}
    expected = hf_mae.import_checkpoint({**encoder_only(official_weights), **heads}, num_attention_heads=4)
    weights = {f"{prefix}{name}": tensor for name, tensor in encoder_only(official_weights).items()}
    weights.update({f"{prefix if head == 'with the prefix' else ''}{name}": tensor for name, tensor in heads.items()})
    model = hf_mae.import_checkpoint(weights, num_attention_heads=4)
    assert type(model) is MAEForImageClassification
    assert same_weights(model, expected)


@pytest.mark.parametrize("name", STOCK)
def test_prefixes__of_stock_models_are_removed(name):
    stock, heads = perturbed(STOCK[name]()), {"num_attention_heads": 4, "decoder_num_attention_heads": 2}
    weights = {f"model.{name}": tensor for name, tensor in stock.state_dict().items()}
    model = hf_mae.import_checkpoint(weights, **heads, norm_pix_loss=True, mask_ratio=0.5)
    torch.testing.assert_close(computed(model), computed(stock), **EXACT)


def test_prefixes__that_are_ambiguous_are_refused(official_weights):
    encoder = encoder_only(official_weights)
    two = {f"{part}.{name}": tensor for part in ("student", "teacher") for name, tensor in encoder.items()}
    with pytest.raises(ValueError, match="several encoders.*'student.*'teacher"):
        hf_mae.import_checkpoint(two, num_attention_heads=4)
    twice = {**{f"model.{name}": tensor for name, tensor in encoder.items()}, "norm.weight": torch.ones(64)}
    with pytest.raises(ValueError, match="norm.weight both with and without"):
        hf_mae.import_checkpoint(twice, num_attention_heads=4)
    wrapped = {**encoder, "module.norm.weight": torch.ones(64)}
    with pytest.raises(ValueError, match="there twice"):
        hf_mae.import_checkpoint(wrapped, num_attention_heads=4)


# ----------------------------------------------------------------------------------------------------------------------
# transformers


@pytest.mark.parametrize("names", ["as saved", "as published", "in memory", "sharded", "pytorch_model.bin"])
@pytest.mark.parametrize("name", STOCK)
def test_stock_models__compute_the_same_here(tmp_path, name, names):
    model, checkpoint, config = stock_folder(name, tmp_path), tmp_path, {}
    saved = load_file(tmp_path / "model.safetensors")
    if names == "as published":  # before 5.10 the decoder's blocks kept their name
        if name == "ViTMAEForPreTraining":
            assert any("decoder_encoder" in name for name in saved)
        published = {name.replace("decoder_encoder.layer", "decoder_layers"): t for name, t in saved.items()}
        save_file(published, tmp_path / "model.safetensors")
    elif names == "in memory":
        heads = {"num_attention_heads": 4, "decoder_num_attention_heads": 2}
        checkpoint, config = model.state_dict(), {**heads, "norm_pix_loss": True, "mask_ratio": 0.5}
    elif names == "sharded":
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        (tmp_path / "model.safetensors").unlink()
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    elif names == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(saved, tmp_path / "pytorch_model.bin")
    ours = hf_mae.import_checkpoint(checkpoint, **config)
    assert type(ours) is OUR_CLASS[name]
    torch.testing.assert_close(computed(ours), computed(model), **EXACT)
    if names != "in memory" and "Classification" in name:
        assert ours.config.id2label == {0: "cat", 1: "dog"}


@pytest.mark.parametrize("name", STOCK)
def test_from_pretrained__takes_stock_repositories(tmp_path, log, name):
    model = stock_folder(name, tmp_path / "stock")
    encoder = hf_mae.import_checkpoint(tmp_path / "stock", MAEModel)
    for ours in (MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone):
        loaded = ours.from_pretrained(tmp_path / "stock")
        assert torch.equal(loaded.base_model.layers[1].attention.qkv.weight, encoder.layers[1].attention.qkv.weight)
    loaded = OUR_CLASS[name].from_pretrained(tmp_path / "stock").eval()
    torch.testing.assert_close(computed(loaded), computed(model), **EXACT)
    loaded.save_pretrained(tmp_path / "ours")  # under our names, whatever it came from
    assert "embeddings.patch_embeddings.weight" in "".join(load_file(tmp_path / "ours" / "model.safetensors"))
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "mae"
    assert same_weights(OUR_CLASS[name].from_pretrained(tmp_path / "ours"), loaded)
    loaded = MAEForPreTraining.from_pretrained(tmp_path / "stock", image_size=64, num_channels=1, mask_ratio=0.25)
    assert (loaded.config.grid_size, loaded.config.num_channels, loaded.config.mask_ratio) == ((8, 8), 1, 0.25)
    assert not loaded.mae.embeddings.position_embeddings.requires_grad


@pytest.mark.parametrize("dtype", ["auto", torch.float32, None])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype__of_stock_repositories(tmp_path, dtype, name):
    perturbed(STOCK["ViTModel"]()).to(torch.bfloat16).save_pretrained(tmp_path)
    for ours in (MAEModel, MAEForPreTraining):
        model = ours.from_pretrained(tmp_path, **({} if dtype is None else {name: dtype}))
        assert model.dtype == (torch.float32 if dtype == torch.float32 else torch.bfloat16)


def test_target__comes_with_the_checkpoint(tmp_path, log):
    stock_folder("ViTMAEForPreTraining", tmp_path)
    assert MAEForPreTraining.from_pretrained(tmp_path).config.norm_pix_loss
    assert "another target" not in log()
    assert not MAEForPreTraining.from_pretrained(tmp_path, norm_pix_loss=False).config.norm_pix_loss
    assert "was trained with norm_pix_loss=True, and it is False now" in log()


def test_configuration__that_says_little_has_the_defaults_of_its_library(tmp_path):
    stock = ViTForImageClassification(ViTConfig(**{**VIT, "hidden_size": 48, "num_attention_heads": 12}))
    save_file(perturbed(stock).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 32}))
    model = hf_mae.import_checkpoint(tmp_path)
    assert (model.config.patch_size, model.config.hidden_size, model.config.num_hidden_layers) == (8, 48, 2)
    assert (model.config.num_attention_heads, model.config.layer_norm_eps) == (12, 1e-12)
    torch.testing.assert_close(computed(model), computed(stock), **EXACT)


@pytest.mark.parametrize(("pooling", "has_fc_norm"), [("avg", False), ("token", True), ("map", False)])
def test_timm_pooling__that_is_not_ours_is_refused(tmp_path, pooling, has_fc_norm):
    """Names alone would load these, and the logits be wrong."""
    model = MAEForImageClassification(MAEConfig(**TINY, pooling="mean" if has_fc_norm else "class"))
    hf_mae.export_checkpoint(model, tmp_path / "out", "timm")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["model_args"]["global_pool"] = pooling
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"The timm model pools by '{pooling}'"):
        hf_mae.import_checkpoint(tmp_path / "out")


def test_pooler__is_left_out_by_name(tmp_path, log):
    stock_folder("ViTModel", tmp_path)
    hf_mae.import_checkpoint(tmp_path)
    assert "no place for them: pooler.dense.bias, pooler.dense.weight" in log()


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


def test_convert__to_a_stock_folder_and_its_table(run_folder, tmp_path, capsys):
    convert(run_folder, tmp_path / "vit", "--to", "vit")
    printed = capsys.readouterr().out
    assert re.search(r"mae\.layers\.N\.attention\.qkv +encoder\.layer\.N\.attention\.attention\.\{q,k,v\}", printed)
    assert re.search(r"decoder\.head +- +2 tensors", printed)
    processor = json.loads((tmp_path / "vit" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.1, 0.2, 0.3]


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
