# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Weights of other implementations become ours."""

import argparse
import errno
import json
import os
import pathlib
import pickle

import pytest
import torch
from conftest import OFFICIAL_HEADS, TINY, no_room_beyond
from foreign_models import (
    EXACT,
    OUR_CLASS,
    PIXELS,
    STOCK,
    VIT,
    computed,
    encoder_only,
    perturbed,
    same_weights,
    stock_folder,
)
from safetensors.torch import load_file, save_file
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
)

import hf_mae
from hf_mae import MAEBackbone, MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEModel
from hf_mae.conversion import command as conversion_command
from hf_mae.conversion.command import convert_checkpoint
from hf_mae.modeling.patches_mae import sincos_position_table

# ----------------------------------------------------------------------------------------------------------------------
# Official files


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="num_attention_heads.*pass num_attention_heads=.* --config_overrides num_att"):
        hf_mae.import_checkpoint(official_weights)
    with pytest.raises(ValueError, match="pass decoder_num_attention_heads="):
        hf_mae.import_checkpoint(official_weights, num_attention_heads=4)


def test_image_size__tells_the_grid_or_resamples_the_table(official_weights):
    """As many patches may be another grid: 8 x 8 are as many as 4 x 16, and their fixed tables differ."""
    square = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS)
    square.resize_position_embeddings((16, 64))
    resampled = hf_mae.import_checkpoint(official_weights, **OFFICIAL_HEADS, image_size=(16, 64))
    assert resampled.config.grid_size == (4, 16)
    assert same_weights(resampled, square)
    tables = {
        name: sincos_position_table(official_weights[name].shape[2], (4, 16)).float()
        for name in ("pos_embed", "decoder_pos_embed")
    }
    model = hf_mae.import_checkpoint({**official_weights, **tables}, **OFFICIAL_HEADS, image_size=(16, 64))
    assert model.config.grid_size == (4, 16)
    assert torch.equal(model.mae.embeddings.position_embeddings, tables["pos_embed"])
    cut = {name: official_weights[name][:, :-4] for name in tables}  # 60 patches
    with pytest.raises(
        ValueError, match=r"60 .* no square: pass image_size=\(height, width\) .* image_size=\[height,width\]"
    ):
        hf_mae.import_checkpoint({**official_weights, **cut}, **OFFICIAL_HEADS)
    assert hf_mae.import_checkpoint(
        {**official_weights, **cut}, **OFFICIAL_HEADS, image_size=(24, 40)
    ).config.grid_size == (6, 10)
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


@pytest.mark.slow
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


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
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
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.warns(match="TorchScript"), pytest.raises(OSError, match="it is a program of TorchScript") as error:
        hf_mae.import_checkpoint(tmp_path / "program.pt")
    assert "weights_only" not in str(error.value)


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
    with pytest.raises(OSError, match="There is no folder 'runs/missing', and the Hub has given no weights of this"):
        hf_mae.import_checkpoint("runs/missing")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(OSError, match=r"was not loaded: it is no file of torch\.save"):
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", torch.float32, None])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype__of_stock_repositories(tmp_path, dtype, name):
    perturbed(STOCK["ViTModel"]()).to(torch.bfloat16).save_pretrained(tmp_path)
    for ours in (MAEModel, MAEForPreTraining):
        model = ours.from_pretrained(tmp_path, **({} if dtype is None else {name: dtype}))
        assert model.dtype == (torch.float32 if dtype == torch.float32 else torch.bfloat16)


def test_target__comes_with_the_checkpoint(tmp_path, log):
    stock_folder("ViTMAEForPreTraining", tmp_path)
    model = MAEForPreTraining.from_pretrained(tmp_path)
    assert model.config.norm_pix_loss
    assert model.name_or_path == model.config.name_or_path == str(tmp_path)  # adapters name their base by it
    assert "another target" not in log()
    assert not MAEForPreTraining.from_pretrained(tmp_path, norm_pix_loss=False).config.norm_pix_loss
    assert f"{tmp_path} was trained with norm_pix_loss=True, and it is False now" in log()


def test_configuration__that_says_little_has_the_defaults_of_its_library(tmp_path):
    stock = ViTForImageClassification(ViTConfig(**{**VIT, "hidden_size": 48, "num_attention_heads": 12}))
    save_file(perturbed(stock).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 32}))
    model = hf_mae.import_checkpoint(tmp_path)
    assert (model.config.patch_size, model.config.hidden_size, model.config.num_hidden_layers) == (8, 48, 2)
    assert (model.config.num_attention_heads, model.config.layer_norm_eps) == (12, 1e-12)
    torch.testing.assert_close(computed(model), computed(stock), **EXACT)


def test_pooling__that_a_bare_state_dict_does_not_say_is_assumed_aloud(tmp_path, log):
    said = "does not say what its classifier pools; the class token (pooling='class') is assumed"
    for pooling in ("mean", "class"):
        model, folder = MAEForImageClassification(MAEConfig(**TINY, pooling=pooling)), tmp_path / pooling
        hf_mae.export_checkpoint(model, folder, "timm")
        hf_mae.import_checkpoint(folder)
        assert said not in log()  # config.json says it
        assert (
            hf_mae.import_checkpoint(load_file(folder / "model.safetensors"), num_attention_heads=2).config.pooling
            == pooling
        )
        assert (said in log()) == (pooling == "class")  # with the mean there is a `fc_norm`


def test_model_class__that_is_a_name_is_refused(official_weights):
    with pytest.raises(TypeError, match="`model_class` must be a class of hf_mae, such as MAEModel, got 'MAEModel'"):
        hf_mae.import_checkpoint(official_weights, "MAEModel")


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


@pytest.mark.parametrize(("pooling", "ours"), [("avg", "mean"), ("token", "class")])
def test_timm_pooling__of_an_encoder_is_the_one_that_is_stated(tmp_path, pooling, ours):
    hf_mae.export_checkpoint(MAEModel(MAEConfig(**TINY)), tmp_path / "out", "timm")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["model_args"]["global_pool"] = pooling
    path.write_text(json.dumps(config))
    assert hf_mae.import_checkpoint(tmp_path / "out").config.pooling == ours


def test_timm_activation__is_the_one_that_is_stated(tmp_path):
    """The tensors do not show it."""
    hf_mae.export_checkpoint(MAEModel(MAEConfig(**TINY)), tmp_path / "out", "timm")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    for theirs, ours in (("relu", "relu"), ("gelu_tanh", "gelu_pytorch_tanh")):
        config["model_args"]["act_layer"] = theirs
        path.write_text(json.dumps(config))
        assert hf_mae.import_checkpoint(tmp_path / "out").config.hidden_act == ours
    config["model_args"]["act_layer"] = "unheard_of"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="configuration does not fit.*unheard_of"):
        hf_mae.import_checkpoint(tmp_path / "out")


def test_quantised_weights__are_refused(official_weights):
    """Read as they are, they would be a hundred times too large."""
    name = "blocks.0.mlp.fc1.weight"
    weights = {**official_weights, name: (official_weights[name] * 100).to(torch.int8)}
    with pytest.raises(ValueError, match=r"mae\.layers\.0\.mlp\.fc1\.weight.* holds torch\.int8.*back to floats"):
        hf_mae.import_checkpoint(weights, **OFFICIAL_HEADS)


def test_masked_image_model__gives_its_encoder(tmp_path, log):
    stock = perturbed(ViTForMaskedImageModeling(ViTConfig(**VIT, encoder_stride=8)))
    stock.save_pretrained(tmp_path)
    ours = hf_mae.import_checkpoint(tmp_path)
    torch.testing.assert_close(computed(ours), computed(stock.vit), **EXACT)
    assert "no place for them: decoder.0.bias, decoder.0.weight, vit.embeddings.mask_token" in log()


def test_pooler__is_left_out_by_name(tmp_path, log):
    stock_folder("ViTModel", tmp_path)
    hf_mae.import_checkpoint(tmp_path)
    assert "no place for them: pooler.dense.bias, pooler.dense.weight" in log()


@pytest.mark.parametrize("layout", ["mae", "vit_mae", "official"])
def test_convert__a_full_disk_leaves_no_weights_that_are_cut_off(tiny_model, tmp_path, monkeypatch, layout):
    """They would be there under their final name, and the same command would refuse to write over them."""

    def full(_, path, *args, **kwargs):
        pathlib.Path(path).write_bytes(b"cut off")
        raise OSError(errno.ENOSPC, "No space left on device")

    tiny_model().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(hf_mae.MAEImageProcessor, "save_pretrained", lambda _, path: full(_, path / "cut"))
    monkeypatch.setattr("hf_mae.conversion.files.save_file", full)
    monkeypatch.setattr(torch, "save", full)
    target = tmp_path / ("out.pth" if layout == "official" else "out")
    if layout == "vit_mae":
        target.mkdir()
        (target / "notes.txt").touch()
    with pytest.raises(OSError, match="No space left"):
        convert_checkpoint(tmp_path / "model", target, layout)
    assert sorted(path.name for path in tmp_path.rglob("out*/*")) == ["notes.txt"] * (layout == "vit_mae")
    assert target.exists() == (layout == "vit_mae")


@pytest.mark.parametrize("layout", ["mae", "vit", "official"])
def test_convert__a_file_or_folder_gets_its_name_when_it_is_complete(tiny_model, tmp_path, monkeypatch, layout):
    """A kill left a folder without weights, and the same command refused to write over it."""
    tiny_model().save_pretrained(tmp_path / "model")
    target, seen = tmp_path / ("out.pth" if layout == "official" else "out"), []
    module, name = (torch, "save") if layout == "official" else (conversion_command, "write_model_card")
    last = getattr(module, name)

    def watched(*args):
        last(*args)
        seen.append(target.exists())

    monkeypatch.setattr(module, name, watched)
    convert_checkpoint(tmp_path / "model", target, layout)
    assert seen == [False]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model", target.name])
    if layout != "official":
        assert "# out\n" in (target / "README.md").read_text()
        assert target.stat().st_mode == (tmp_path / "model").stat().st_mode
        (tmp_path / "empty").mkdir()
        number = (tmp_path / "empty").stat().st_ino
        convert_checkpoint(tmp_path / "model", tmp_path / "empty", layout)
        assert {path.name for path in target.iterdir()} == {path.name for path in (tmp_path / "empty").iterdir()}
        assert (tmp_path / "empty").stat().st_ino == number


def test_export__a_full_disk_is_named_where_torch_hides_it(tiny_model, tmp_path):
    """`torch.save` raises a RuntimeError, of which the command showed the traceback."""
    with no_room_beyond(20_000), pytest.raises(OSError, match=r"No room to write .*out\.pth") as full:
        hf_mae.export_checkpoint(tiny_model(), tmp_path / "out.pth", "official")
    assert full.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
