# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hf_mae import MAEConfig, MAEForPreTraining, MAEModel


def test_defaults__are_vit_base():
    assert MAEConfig().to_dict() == MAEConfig.from_preset("base").to_dict()


@pytest.mark.parametrize(
    ("name", "encoder_millions"),  # Dosovitskiy et al. 2020, Table 1; Touvron et al. 2020, Table 1, less their heads
    [
        *(("tiny", 5.5), ("small", 21.7), ("base", 85.8), ("large", 303.3), ("huge", 630.8)),
        *(("pixio-tiny", 5.4), ("pixio-small", 21.7), ("pixio-base", 86), ("pixio-large", 303), ("pixio-huge", 631)),
    ],  # Pixio: arXiv 2512.15715, Table 8
)
def test_presets__have_the_published_size(name, encoder_millions):
    import torch

    with torch.device("meta"):
        model = MAEModel(MAEConfig.from_preset(name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(encoder_millions, rel=0.01)


@pytest.mark.parametrize("name", ["base", "large", "huge"])
def test_presets__have_the_papers_decoder(name):
    config = MAEConfig.from_preset(name)
    sizes = (config.decoder_num_hidden_layers, config.decoder_hidden_size, config.decoder_num_attention_heads)
    assert sizes == (8, 512, 16)


@pytest.mark.parametrize("size", ["small", "base", "large", "huge"])
def test_presets__of_pixio(size):
    """arXiv 2512.15715, sections 3.2 and 7.1, Table 10."""
    config = MAEConfig.from_preset(f"pixio-{size}")
    assert (config.image_size, config.patch_size, config.grid_size) == (256, 16, (16, 16))
    assert (config.num_class_tokens, config.mask_block_size, config.mask_ratio) == (8, 4, 0.75)
    assert (config.decoder_num_hidden_layers, config.decoder_hidden_size, config.decoder_intermediate_size) == (
        *(32, 512, 2048),
    )
    assert (config.position_embedding, config.pooling, config.drop_path_rate) == ("learned", "class", 0)


def test_presets__unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="'giant'; choose one of tiny, small, base, large, huge"):
        MAEConfig.from_preset("giant")


def test_saved_and_loaded__equal(tmp_path):
    config = MAEConfig.from_preset("small", image_size=(64, 128), patch_size=(8, 16), num_channels=13, mask_ratio=0.6)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    assert config.grid_size == (8, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 225}, r"image_size.*\(225, 225\).*patch_size.*\(16, 16\).*\(224, 224\)"),
        ({"image_size": (224, 100)}, r"nearest size that fits is \(224, 96\)"),
        ({"hidden_size": 770}, "hidden_size.* 770 .*num_attention_heads.* 12"),
        ({"decoder_hidden_size": 500}, "decoder_hidden_size.* 500 .*decoder_num_attention_heads.* 16"),
        ({"hidden_size": 30, "num_attention_heads": 3}, "hidden_size.* 30 .* 4, .*32"),
        ({"mask_ratio": 1.0}, r"mask_ratio.* in \[0, 1\), got 1.0"),
        ({"mask_ratio": -0.1}, r"mask_ratio.* in \[0, 1\), got -0.1"),
        ({"prediction_ratio": 0}, r"prediction_ratio.* in \(0, 1\], got 0"),
        ({"mask_sampling": "blok"}, r"mask_sampling.*'grid'.*got 'blok'"),
        ({"mask_block_size": 4}, "`mask_block_size` 4 does not divide 14 x 14 .* 192 x 192 or 256 x 256.*1 or 2 or 7"),
        ({"mask_block_size": 3, "image_size": (96, 80)}, r"does not divide 6 x 5 .* 96 x 48 or 96 x 96.* of 1\."),
        ({"mask_block_size": 0}, "mask_block_size.* at least 1, got 0"),
        (
            {"mask_block_size": 2, "mask_sampling": "grid"},
            "mask_block_size.* 2 needs mask_sampling='random', got 'grid'",
        ),
        ({"num_class_tokens": 0}, "num_class_tokens.* positive, got 0"),
        ({"position_embedding": "rotary"}, "position_embedding.*'sincos', 'learned'.*got 'rotary'"),
        ({"pooling": "max"}, "pooling.*'mean', 'class'.*got 'max'"),
        ({"num_channels": 0}, "num_channels.* positive, got 0"),
        ({"decoder_intermediate_size": 0}, "decoder_intermediate_size.* positive, got 0"),
        ({"image_size": [32]}, r"image_size.* one number or \(height, width\), got \(32,\)"),
        ({"patch_size": [8, 8, 8]}, r"patch_size.* one number or \(height, width\), got \(8, 8, 8\)"),
        ({"attention_probs_dropout_prob": -1}, r"attention_probs_dropout_prob.* in \[0, 1\], got -1"),
        ({"patch_size": 1, "num_channels": 1, "norm_pix_loss": True}, "norm_pix_loss.* more than one value"),
        ({"decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers.* at least 1, got 0"),
    ],
)
def test_impossible_values__say_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        MAEConfig(**fields)


def test_problem_type__that_does_not_exist_is_refused():
    """By us or, depending on the versions of the libraries, by `@strict`."""
    with pytest.raises((ValueError, StrictDataclassError), match="problem_type"):
        MAEConfig(problem_type="multi_label")


def test_impossible_values__set_later_are_refused_by_the_model(tiny_config):
    config = tiny_config()
    config.mask_ratio = 1.5
    with pytest.raises(ValueError, match="got 1.5"):
        MAEForPreTraining(config)
