# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""docs/heads.md: every head of its table takes our encoder and its weights, and its code runs."""

import re
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
import transformers
from transformers import ConvNextConfig, DFineConfig, UperNetConfig
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from hf_mae import MAEConfig, MAEForPreTraining, MAEImageProcessor, load_encoder
from hf_mae.finetuning.heads import evaluate_head, trained_head

PAGE = (Path(__file__).parents[1] / "docs" / "heads.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)

ENCODER = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
ENCODER |= {"image_size": 64, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
ENCODER |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
LAST = {}
BLOCKS = {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False, "apply_layernorm": False}
FOUR, THREE = ({"feature_pyramid_size": 32, "out_features": levels} for levels in (None, ["p3", "p4", "p5"]))

HEADS_OF_ATTENTION = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
LAYERS = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 5}
DETR = {"d_model": 32, "encoder_layers": 1, **HEADS_OF_ATTENTION, **LAYERS}
DAB = {name: value for name, value in DETR.items() if name != "d_model"} | {"hidden_size": 32}
RT_DETR = {"encoder_hidden_dim": 32, "d_model": 32, "decoder_in_channels": [32] * 3, "num_feature_levels": 3}
RT_DETR |= {"feat_strides": [4, 8, 16], "num_denoising": 5, **HEADS_OF_ATTENTION, **LAYERS}
MASKS = {"mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 4, "encoder_layers": 1, "decoder_layers": 2}
MASKS |= {"encoder_feedforward_dim": 32, "dim_feedforward": 32, "num_queries": 10}
ONE = {name: value for name, value in MASKS.items() if name != "mask_feature_size"} | {"conv_dim": 32, "mask_dim": 32}
ONE |= {"query_dec_layers": 1, "text_encoder_width": 32, "text_encoder_num_layers": 1, "text_encoder_vocab_size": 50}
ONE |= {"text_encoder_proj_layers": 1, "text_encoder_context_length": 8, "task_seq_len": 8}
DPT = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16}
MATTE = {"hidden_size": 32, "convstream_hidden_sizes": [8] * 3, "fusion_hidden_sizes": [16, 16, 16, 8]}
INNER = {**DETR, "backbone_config": MAEConfig(**ENCODER, patch_size=8)}

# Of each head: fields of the encoder, and of its configuration.
HEADS = {
    "DetrForObjectDetection": (LAST, DETR),
    "ConditionalDetrForObjectDetection": (LAST, DETR),
    "DabDetrForObjectDetection": (LAST, DAB),
    "TableTransformerForObjectDetection": (LAST, DETR),
    "DeformableDetrForObjectDetection": (THREE, {**DETR, "num_feature_levels": 3}),
    "RTDetrForObjectDetection": (THREE, RT_DETR),
    "RTDetrV2ForObjectDetection": (THREE, RT_DETR),
    "DFineForObjectDetection": (THREE, RT_DETR),
    "Deimv2ForObjectDetection": (THREE, RT_DETR),
    "Mask2FormerForUniversalSegmentation": (FOUR, {"feature_size": 32, **MASKS}),
    "MaskFormerForInstanceSegmentation": (
        FOUR,
        {"decoder_config": INNER, "fpn_feature_size": 32, "mask_feature_size": 32},
    ),
    "OneFormerForUniversalSegmentation": (FOUR, {"is_training": False, **ONE}),
    "DetrForSegmentation": (FOUR, {**DETR, "encoder_attention_heads": 8, "decoder_attention_heads": 8}),
    "UperNetForSemanticSegmentation": (FOUR, {"hidden_size": 16, "auxiliary_channels": 16}),
    "DPTForDepthEstimation": (BLOCKS, DPT),
    "DepthAnythingForDepthEstimation": (
        BLOCKS,
        {**DPT, "patch_size": 8, "reassemble_hidden_size": 32, "head_hidden_size": 16},
    ),
    "ZoeDepthForDepthEstimation": (
        BLOCKS,
        {**DPT, "backbone_hidden_size": 32, "bottleneck_features": 16, "num_relative_features": 8},
    ),
    "VitMatteForImageMatting": ({"patch_size": 16, "num_channels": 4}, MATTE),
}
# One of each kind of maps. Commands and the code of the page build D-FINE, DEIMv2, UperNet, Mask2Former and DPT.
QUICK = ("DetrForObjectDetection", "MaskFormerForInstanceSegmentation", "DepthAnythingForDepthEstimation")


def build(name, encoder, fields):
    model_class = getattr(transformers, name)
    config = dict(fields)
    if "decoder_config" in config:
        config["decoder_config"] = transformers.DetrConfig(**config["decoder_config"])
    return model_class(model_class.config_class(backbone_config=encoder, **config)).eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of pre-trained encoders by patch and channels."""
    folder = tmp_path_factory.mktemp("encoders")
    for patch, channels in ((8, 3), (16, 4)):
        model = MAEForPreTraining(MAEConfig(**ENCODER, patch_size=patch, num_channels=channels))
        model.save_pretrained(folder / f"{patch}-{channels}")
    return folder


def test_table__names_the_heads_that_are_built_here():
    assert sorted(TABLE) == sorted(HEADS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow, pytest.mark.long)) for name in HEADS]
)
def test_table__head_takes_the_encoder_and_its_weights(checkpoints, name):
    fields, config = HEADS[name]
    patch, channels = fields.get("patch_size", 8), fields.get("num_channels", 3)
    folder = checkpoints / f"{patch}-{channels}"
    model = build(name, MAEConfig.from_pretrained(folder, **{**fields, "patch_size": patch}), config)
    encoder = load_encoder(model, folder)
    weights = MAEForPreTraining.from_pretrained(folder).mae.state_dict()
    loaded = encoder.mae.state_dict()
    assert all(torch.equal(weights[key], loaded[key]) for key in loaded)
    more = {"task_inputs": torch.zeros(1, 8)} if name.startswith("OneFormer") else {}
    outputs = model(torch.randn(1, channels, 64, 64), **more)
    first = next(iter(outputs.values()))
    first.float().std().backward()  # what it gives depends on the encoder, from its first layer on
    assert encoder.mae.embeddings.patch_embeddings.weight.grad.abs().sum() > 0


def test_heads__that_ignore_the_encoder_are_refused(checkpoints):
    fields = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    encoder = MAEConfig.from_pretrained(checkpoints / "8-3", **BLOCKS)
    model = build("DPTForSemanticSegmentation", encoder, {**DPT, **fields, "backbone_out_indices": [0, 1, 2, 3]})
    with pytest.raises(ValueError, match="DPTForSemanticSegmentation has no MAEBackbone"):
        load_encoder(model, checkpoints / "8-3")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["Mask2Former", "DPT"])
def test_page__code_builds_loads_trains_and_predicts(tiny_model, tmp_path, monkeypatch, number):
    if number == 0:
        pytest.importorskip("scipy")
    monkeypatch.chdir(tmp_path)
    model = tiny_model(image_size=28, patch_size=4, num_channels=1, num_hidden_layers=4)
    model.save_pretrained("runs/fashion_mnist_sample")
    MAEImageProcessor.for_image_size(28, num_channels=1).save_pretrained("runs/fashion_mnist_sample")
    PIL.Image.radial_gradient("L").resize((90, 70)).save("picture.jpg")
    names = {}
    exec(compile(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[number], "heads.md", "exec"), names)
    assert names["loss"].isfinite()
    result = names["depth"] if number else names["found"]["segmentation"]
    assert result.shape == (70, 90)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("UperNetForSemanticSegmentation", "image-segmentation"),
        ("DFineForObjectDetection", "object-detection"),
        ("DPTForDepthEstimation", "depth-estimation"),
    ],
)
def test_pipeline__of_a_head_runs_without_a_question(tmp_path, monkeypatch, name, task):
    encoder, fields = HEADS[name]
    build(name, MAEConfig(**ENCODER, patch_size=8, **encoder), fields).save_pretrained(tmp_path)
    MAEImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    questions = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "n")
    loaded = transformers.pipeline(task, model=str(tmp_path))
    assert questions == []
    found = loaded(PIL.Image.new("RGB", (70, 50)))
    assert task != "image-segmentation" or {one["mask"].size for one in found} == {(70, 50)}
    assert task != "depth-estimation" or found["depth"].size == found["predicted_depth"].shape[::-1] == (70, 50)
    with pytest.raises(ValueError, match="no video processor"):
        AutoVideoProcessor.from_pretrained(tmp_path)


def test_trained_head__of_the_hub_is_asked_for_once_and_of_a_folder_each_time(tmp_path, monkeypatch):
    asked, fields = [], DFineConfig(backbone_config=MAEConfig()).to_dict()
    monkeypatch.setattr(MAEConfig, "get_config_dict", lambda name: asked.append(name) or (fields, {}))
    for name in ("me/detector", "me/detector", str(tmp_path), str(tmp_path)):
        assert trained_head(name, DFineConfig).model_type == "d_fine"
    assert asked == ["me/detector", str(tmp_path), str(tmp_path)]


def test_evaluation__makes_its_folder_before_the_work(tmp_path):
    (tmp_path / "file").write_text("no folder")
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=tmp_path / "file"), is_world_process_zero=lambda: True, evaluate=pytest.fail
    )
    with pytest.raises(FileExistsError):
        evaluate_head(trainer, {}, "sheet.png")


def test_trained_head__of_another_encoder_is_refused(tmp_path):
    UperNetConfig(backbone_config=ConvNextConfig(out_features=["stage4"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a upernet on an encoder that is none of hf_mae"):
        trained_head(str(tmp_path), UperNetConfig)
    assert trained_head(str(tmp_path), DFineConfig) is None
    assert trained_head(None, UperNetConfig) is None
