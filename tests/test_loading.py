# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Checkpoints as people have them: saved from wrapped models, with adapters, at another patch size, pickled."""

import copy
import io
import os

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageClassification, pipeline

import hf_mae
from hf_mae import MAEBackbone, MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.evaluation.encoders import load_encoder as load_any_encoder
from hf_mae.modeling.patches_mae import patchify, unpatchify

PIXELS = torch.linspace(-2, 2, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32)
NOISE = torch.linspace(0, 9, 2 * 16).sin().view(2, 16)


def test_mask_cells__that_fit_the_size_that_is_wanted(tiny_model, tmp_path):
    """Neither the size alone nor the cells alone fit the model: 4 x 4 patches are no cells of 3 x 3."""
    tiny_model(mask_block_size=2).save_pretrained(tmp_path)
    for config in (None, MAEConfig.from_pretrained(tmp_path, image_size=24, mask_block_size=3)):
        fields = {"config": config} if config else {"image_size": 24, "mask_block_size": 3}
        model = MAEForPreTraining.from_pretrained(tmp_path, **fields)
        assert (model.config.image_size, model.config.mask_block_size) == (24, 3)
        assert model(torch.rand(1, 3, 24, 24), mask_ratio=0.0).loss.isfinite()
    assert MAEForPreTraining.from_pretrained(tmp_path).config.mask_block_size == 2
    with pytest.raises(ValueError, match="`mask_block_size` 2 does not divide 3 x 3 patches"):
        MAEForPreTraining.from_pretrained(tmp_path, image_size=24)
    blocks = MAEForPreTraining.from_pretrained(tmp_path, mask_block_size=1, mask_sampling="block").config
    assert (blocks.mask_block_size, blocks.mask_sampling) == (1, "block")


def test_configuration__by_its_folder_is_the_one_by_its_object(tiny_model, tmp_path):
    """Its cells of masks were left out in silence, and its sizes gave an error that says that they may differ."""
    tiny_model().save_pretrained(tmp_path / "model")
    given = {"image_size": 48, "num_channels": 4, "mask_block_size": 2, "mask_ratio": 0.5, "norm_pix_loss": True}
    wanted = MAEConfig.from_pretrained(tmp_path / "model", **given)
    wanted.save_pretrained(tmp_path / "config")
    by_object = MAEForPreTraining.from_pretrained(tmp_path / "model", config=wanted)
    for folder in (tmp_path / "config", str(tmp_path / "config")):
        by_folder = MAEForPreTraining.from_pretrained(tmp_path / "model", config=folder)
        assert {name: getattr(by_folder.config, name) for name in given} == given
        for name, tensor in by_object.state_dict().items():
            assert torch.equal(by_folder.state_dict()[name], tensor)
    options = {"mask_ratio": 0.25, "dtype": torch.bfloat16, "attn_implementation": "eager", "output_loading_info": True}
    other, info = MAEForPreTraining.from_pretrained(tmp_path / "model", config=tmp_path / "config", **options)
    assert (other.config.mask_ratio, other.config.image_size, other.dtype) == (0.25, 48, torch.bfloat16)
    assert other.config._attn_implementation == "eager"
    assert not info["missing_keys"]


# ----------------------------------------------------------------------------------------------------------------------
# Names


def rename_tensors(folder, rename):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {rename(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )


WRAPPERS = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DistributedDataParallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "compiled blocks": lambda name: name.replace("layers.0.", "layers.0._orig_mod."),
    "checkpointed blocks": lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
    "compiled encoder": lambda name: name.replace("mae.", "mae._orig_mod."),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEModel])
def test_names_of_a_wrapper__are_understood(tiny_model, tmp_path, wrapper, model_class):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    rename_tensors(tmp_path, WRAPPERS[wrapper])
    loaded = model_class.from_pretrained(tmp_path)
    expected = model if model_class is MAEForPreTraining else model.mae
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(expected.state_dict())


@pytest.mark.slow
def test_names_of_a_compiled_model__as_save_pretrained_writes_them(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, state_dict=torch.compile(model).state_dict())
    assert torch.equal(
        MAEForPreTraining.from_pretrained(tmp_path)(PIXELS, noise=NOISE).loss, model(PIXELS, noise=NOISE).loss
    )


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_saved_weights__may_be_read_by_whoever_may_read_the_configuration(tiny_model, tmp_path, mask):
    """safetensors lets only their owner read them, so that nobody else on a machine could load the model."""
    model, before = tiny_model(), os.umask(mask)
    try:
        model.save_pretrained(tmp_path / "whole")
        model.mae.save_pretrained(tmp_path / "split", max_shard_size="20KB")
        for layout in ("timm", "vit_mae"):
            hf_mae.export_checkpoint(model, tmp_path / layout, layout=layout)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.glob("*/*") if path.suffix in (".safetensors", ".json")]
    assert len(files) > 10
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


@pytest.mark.parametrize("kept", [0, 1000, None])
def test_weights_that_are_no_weights__are_an_error_that_names_their_folder(tiny_model, tmp_path, kept):
    """A download may be cut off, and a clone of a repository of the Hub may hold a pointer of Git LFS instead."""
    tiny_model().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 400000\n"
    file.write_bytes(pointer if kept is None else file.read_bytes()[:kept])
    for model_class in (MAEModel, MAEForPreTraining, MAEForImageClassification):
        with pytest.raises(OSError, match=r"The weights of .*model can't be read: .* get it again"):
            model_class.from_pretrained(tmp_path / "model")


def test_folder_without_a_model__is_an_error_that_names_it(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"empty.* holds no model: there is no config\.json"):
        MAEModel.from_pretrained(tmp_path / "empty")
    with pytest.raises(OSError, match=r"here.nowhere holds no model: there is no config\.json"):
        MAEModel.from_pretrained(tmp_path / "here", subfolder="nowhere")
    for loaded in (MAEConfig, MAEImageProcessor):  # of transformers a default configuration, ViT-B
        with pytest.raises(OSError, match=r"here.nowhere holds no model: there is no config\.json"):
            loaded.from_pretrained(tmp_path / "here", subfolder="nowhere")
    assert type(MAEModel.from_pretrained(tmp_path, subfolder="here")) is MAEModel


def test_other_widths__are_refused_with_the_fields_that_may_differ(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    for model_class in (MAEForPreTraining, MAEModel):
        with pytest.raises(ValueError, match="other shapes than .*only `image_size`, .* such as `hidden_size`"):
            model_class.from_pretrained(tmp_path, hidden_size=64)


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEModel, MAEForImageClassification, MAEBackbone])
def test_unknown_names__are_an_error_never_random_weights(tiny_model, tmp_path, model_class):
    tiny_model().save_pretrained(tmp_path)
    rename_tensors(tmp_path, lambda name: f"student.{name}")
    with pytest.raises(ValueError, match="holds no encoder.*student.*`key_mapping`"):
        model_class.from_pretrained(tmp_path)
    renamed = model_class.from_pretrained(tmp_path, key_mapping={r"^student\.": ""})
    assert renamed.base_model.layers[0].mlp.fc1.weight.std() > 0


def test_a_file_without_tensors__is_an_error_but_an_empty_state_dict_asks_for_a_new_model(tiny_model, tmp_path):
    config = tiny_model().config
    new, info = MAEForPreTraining.from_pretrained(None, config=config, state_dict={}, output_loading_info=True)
    assert info["missing_keys"] == set(new.state_dict())
    assert torch.equal(new.decoder.position_embeddings, tiny_model().decoder.position_embeddings)
    assert new(PIXELS, noise=NOISE).loss.isfinite()
    new.save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="holds no encoder"):
        MAEForPreTraining.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`state_dict` holds no encoder"):
        MAEForPreTraining.from_pretrained(None, config=config, state_dict={"student.bias": torch.zeros(1)})


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEModel])
def test_unknown_names__of_one_block_are_an_error(tiny_model, tmp_path, model_class):
    tiny_model().save_pretrained(tmp_path)
    rename_tensors(tmp_path, lambda name: name.replace("layers.1.mlp.", "layers.1.feed_forward."))
    with pytest.raises(
        ValueError, match=r"not hold .*layers\.1\.mlp\.fc1\.bias but .*feed_forward\.fc1\.bias.*`key_mapping`"
    ):
        model_class.from_pretrained(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# Another patch size


def resized_patches(pixels, old, new):
    """The images with each patch resized on its own."""
    rows, columns = pixels.shape[2] // old, pixels.shape[3] // old
    patches = patchify(pixels, (old, old)).unflatten(-1, (old, old, -1)).flatten(0, 1).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(patches, size=(new, new), mode="bicubic", antialias=new < old)
    patches = patches.permute(0, 2, 3, 1).flatten(1).unflatten(0, (len(pixels), -1))
    return unpatchify(patches, (new, new), (rows, columns))


def test_patch_size__enlarged_patches_give_the_same_tokens_and_predictions(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    large = MAEForPreTraining.from_pretrained(tmp_path, patch_size=16, image_size=64).eval()
    assert (large.config.patch_size, large.config.image_size) == (16, 64)
    pixels = resized_patches(PIXELS, 8, 16)
    torch.testing.assert_close(
        large.mae(pixels).last_hidden_state, model.mae(PIXELS).last_hidden_state, rtol=1e-3, atol=1e-4
    )
    before, after = (each.reconstruct(images, noise=NOISE) for each, images in ((model, PIXELS), (large, pixels)))
    expected = resized_patches(before.reconstruction, 8, 16)
    torch.testing.assert_close(after.reconstruction, expected, rtol=1e-3, atol=1e-4)


def test_patch_size__smaller_patches_of_the_same_images_change_little(tiny_model, tmp_path):
    """Half the patch on images of half the size: smooth images keep their tokens nearly."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    small = MAEModel.from_pretrained(tmp_path, patch_size=4, image_size=16).eval()
    smooth = nn.functional.interpolate(torch.randn(2, 3, 4, 4), size=32, mode="bicubic")
    before, after = model.mae(smooth).last_hidden_state, small(resized_patches(smooth, 8, 4)).last_hidden_state
    assert nn.functional.cosine_similarity(before, after, dim=-1).min() > 0.95


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_patch_size__alone_makes_a_finer_grid_in_every_class(tiny_model, tmp_path, model_class):
    tiny_model().save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, patch_size=(4, 8), num_channels=5).eval()
    assert model.base_model.embeddings.grid_size == (8, 4)
    model(torch.randn(1, 5, 32, 32))
    model.save_pretrained(tmp_path / "again")
    again = model_class.from_pretrained(tmp_path / "again")
    assert again.config.patch_size == [4, 8]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_patch_size__that_does_not_divide_the_image_is_refused_and_changes_nothing(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"image_size.*patch_size` \(5, 5\)"):
        model.resize_patches(5)
    assert model.config.patch_size == 8
    assert model(PIXELS).loss.isfinite()


# ----------------------------------------------------------------------------------------------------------------------
# Adapters


# Older versions do not find the trained heads of an adapter; loading must say so.
OLD_TRANSFORMERS = pytest.mark.xfail(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23),
    raises=ValueError,
    strict=False,
    reason="no trained heads",
)


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """The folder of an adapter with a classifier, and the model with it."""
    peft = pytest.importorskip("peft")
    tiny_model().save_pretrained(tmp_path / "base")
    model = MAEForImageClassification.from_pretrained(tmp_path / "base", num_labels=3)
    settings = peft.LoraConfig(r=4, target_modules=["qkv"], modules_to_save=["classifier", "fc_norm"])
    adapted = peft.get_peft_model(model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    return tmp_path / "adapter", adapted.eval()


@OLD_TRANSFORMERS
def test_adapter__its_folder_gives_the_base_with_the_adapter(adapter):
    folder, adapted = adapter
    loaded = MAEForImageClassification.from_pretrained(folder, num_labels=3)
    torch.testing.assert_close(loaded(PIXELS).logits, adapted(PIXELS).logits)


@OLD_TRANSFORMERS
def test_adapter__with_the_auto_class(adapter):
    folder, adapted = adapter
    loaded = AutoModelForImageClassification.from_pretrained(folder, num_labels=3)
    torch.testing.assert_close(loaded(PIXELS).logits, adapted(PIXELS).logits)


@OLD_TRANSFORMERS
def test_adapter__at_another_size(adapter):
    folder, adapted = adapter
    loaded = MAEForImageClassification.from_pretrained(folder, num_labels=3, image_size=64)
    assert loaded.config.image_size == 64
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded(pixels).logits, adapted(pixels).logits, rtol=1e-4, atol=1e-5)


def test_adapter__of_another_class_is_refused_by_what_it_lacks(adapter):
    folder, _ = adapter
    with pytest.raises(ValueError, match=r"holds no decoder\..*lora.* MAEForPreTraining has\. If it was trained"):
        MAEForPreTraining.from_pretrained(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Pickling and copying


@pytest.mark.parametrize("model_class", [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_models__can_be_pickled_and_copied(tiny_config, model_class):
    model = model_class(tiny_config()).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torch.manual_seed(0)
    expected = model(PIXELS)[0]
    for again in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        torch.manual_seed(0)
        torch.testing.assert_close(again(PIXELS)[0], expected)
        states = again(PIXELS, output_hidden_states=True).hidden_states
        assert len(states) == 3


# ----------------------------------------------------------------------------------------------------------------------
# Tuples by configuration


@pytest.mark.parametrize("model_class", [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_return_dict_false_in_the_configuration__gives_tuples(tiny_config, model_class):
    model = model_class(tiny_config(return_dict=False, num_labels=3)).eval()
    arguments = {"noise": NOISE} if model_class is MAEForPreTraining else {}
    output = model(PIXELS, **arguments)
    assert type(output) is tuple
    expected = model(PIXELS, **arguments, return_dict=True).to_tuple()
    for one, other in zip(output, expected, strict=True):
        torch.testing.assert_close(one, other)
    if model_class is MAEForPreTraining:
        assert model.reconstruct(PIXELS).mask.shape == (2, 16)
    if model_class is MAEForImageClassification:
        assert model.pool(PIXELS).shape == (2, 32)
        assert model(PIXELS, labels=torch.tensor([0, 2]))[0].isfinite()


# ----------------------------------------------------------------------------------------------------------------------
# Pipelines


@pytest.mark.parametrize("task", ["image-classification", "image-feature-extraction"])
def test_pipeline__takes_the_registered_classes_without_asking(tiny_config, tmp_path, monkeypatch, task):
    MAEForImageClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path)

    questions = []  # an exception here would be swallowed by the pipeline
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "n")
    pipe = pipeline(task, model=str(tmp_path), device="cpu")
    assert type(pipe.model) is (MAEForImageClassification if task == "image-classification" else MAEModel)
    assert type(pipe.image_processor) is MAEImageProcessor
    assert questions == []


@pytest.mark.parametrize("text", ["[]", "3", '"text"'])
def test_from_pretrained__names_a_json_file_that_holds_no_object(tmp_path, text):
    for name, classes in {
        "config.json": (MAEConfig, MAEForPreTraining),
        "preprocessor_config.json": (MAEImageProcessor,),
    }.items():
        (tmp_path / name).write_text(text)
        for each in classes:
            with pytest.raises(OSError, match=f"{name} must hold a JSON object, got (list|int|str)"):
                each.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="config.json must hold a JSON object"):
        load_any_encoder(tmp_path)
