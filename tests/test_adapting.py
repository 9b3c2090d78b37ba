# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""A pre-trained model made to fit: other channels, adapters, export, small numbers, Trainer."""

import pytest
import torch
from conftest import picture
from torch import nn
from transformers import AutoModel, Trainer, TrainingArguments

from hf_mae import MAEBackbone, MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel

PIXELS = torch.linspace(-2, 2, 4 * 3 * 32 * 32).sin().view(4, 3, 32, 32)
LABELS = torch.tensor([0, 1, 2, 3])
NOISE = torch.linspace(0, 9, 4 * 16).sin().view(4, 16)


@pytest.fixture
def pretrained(tiny_model, tmp_path):
    """A folder with a pre-trained model, and the model."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "pretrained")
    MAEImageProcessor.for_image_size(32).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained", model


# ----------------------------------------------------------------------------------------------------------------------
# Channels


def test_channels__copies_of_the_old_ones_give_what_the_old_ones_gave(pretrained):
    """Twice the channels, each twice: `repeat` and its scale."""
    folder, model = pretrained
    wide = MAEForPreTraining.from_pretrained(folder, num_channels=6).eval()
    assert wide.config.num_channels == 6
    doubled = torch.cat([PIXELS, PIXELS], dim=1)
    torch.testing.assert_close(wide.mae(doubled).last_hidden_state, model.mae(PIXELS).last_hidden_state)
    narrow, both = model(PIXELS, noise=NOISE), wide(doubled, noise=NOISE)
    torch.testing.assert_close(both.loss, narrow.loss)  # the head predicts both copies alike
    patches = both.logits.unflatten(-1, (-1, 6))
    torch.testing.assert_close(patches[..., :3], narrow.logits.unflatten(-1, (-1, 3)))
    torch.testing.assert_close(patches[..., 3:], patches[..., :3])


def test_channels__zero_computes_from_the_old_ones_alone(pretrained):
    folder, model = pretrained
    wide = MAEForPreTraining.from_pretrained(folder, num_channels=13, channel_init="zero").eval()
    more = torch.cat([PIXELS, torch.randn(4, 10, 32, 32)], dim=1)
    torch.testing.assert_close(wide.mae(more).pooler_output, model.mae(PIXELS).pooler_output)
    assert wide(more, noise=NOISE).logits.unflatten(-1, (-1, 13))[..., 3:].abs().max() == 0


def test_channels__mean_of_the_old_ones(pretrained):
    folder, model = pretrained
    wide = MAEModel.from_pretrained(folder, num_channels=4, channel_init="mean")
    old, new = (m.embeddings.patch_embeddings.weight.unflatten(1, (64, -1)) for m in (model.mae, wide))
    torch.testing.assert_close(new[..., :3], old * 3 / 4)
    torch.testing.assert_close(new[..., 3], old.mean(dim=-1) * 3 / 4)


@pytest.mark.parametrize("channel_init", ["repeat", "mean", "zero"])
def test_channels__one_grey_channel_gives_what_its_copies_gave(pretrained, channel_init):
    folder, model = pretrained
    grey = MAEModel.from_pretrained(folder, num_channels=1, channel_init=channel_init).eval()
    pixels = PIXELS[:, :1]
    expected = model.mae(pixels.expand(-1, 3, -1, -1)).last_hidden_state
    torch.testing.assert_close(grey(pixels).last_hidden_state, expected)


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_channels__with_another_size_in_every_class_and_saved(pretrained, tmp_path, model_class):
    folder, _ = pretrained
    model = model_class.from_pretrained(folder, num_channels=5, image_size=(48, 32)).eval()
    model.save_pretrained(tmp_path / "wide")
    again = model_class.from_pretrained(tmp_path / "wide").eval()
    assert (again.config.num_channels, again.config.image_size) == (5, [48, 32])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    again(torch.randn(1, 5, 48, 32))


def test_offloaded_model__is_not_resized_by_halves(pretrained, tmp_path):
    device_map = {"embeddings": "disk", "layers": "cpu", "layernorm": "cpu"}
    options = {"device_map": device_map, "offload_folder": tmp_path / "offload"}
    assert MAEModel.from_pretrained(pretrained[0], **options)(PIXELS).pooler_output.shape == (4, 32)
    for change in ({"image_size": 64}, {"num_channels": 4}):
        with pytest.raises(ValueError, match="offloaded"):
            MAEModel.from_pretrained(pretrained[0], **options, **change)


def test_channels__unknown_way(pretrained):
    with pytest.raises(ValueError, match="channel_init.*'repeat', 'mean' or 'zero', got 'average'"):
        MAEModel.from_pretrained(pretrained[0], num_channels=4, channel_init="average")


# ----------------------------------------------------------------------------------------------------------------------
# Adapters


def test_lora__on_the_fused_projection(pretrained, tmp_path):
    """Trained, saved, loaded, merged: as the README of PEFT says, with our names of modules."""
    peft = pytest.importorskip("peft")
    folder, _ = pretrained
    model = MAEForImageClassification.from_pretrained(folder, num_labels=4)
    settings = peft.LoraConfig(r=4, target_modules=["qkv"], modules_to_save=["classifier", "fc_norm"])
    adapted = peft.get_peft_model(model, settings)
    frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = adapted.train()(PIXELS, labels=LABELS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in adapted.named_parameters() if name in frozen)
    expected = adapted.eval()(PIXELS).logits
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = MAEForImageClassification.from_pretrained(folder, num_labels=4)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(PIXELS).logits, expected)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(PIXELS).logits, expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    whole = MAEForImageClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(whole(PIXELS).logits, merged(PIXELS).logits)


# ----------------------------------------------------------------------------------------------------------------------
# Export and small numbers


class Only(nn.Module):
    """One output of a model, as a tensor."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name
        self.eval()

    def forward(self, pixel_values):
        return self.model(pixel_values, return_dict=True)[self.name]


@pytest.fixture(params=["encoder", "classifier", "attentive classifier", "pixio"])
def exportable(request, pretrained, tiny_config):
    folder, _ = pretrained
    if request.param == "pixio":
        fields = {"num_class_tokens": 3, "position_embedding": "learned", "mask_block_size": 2, "pooling": "class"}
        return Only(MAEForImageClassification(tiny_config(**fields, num_labels=4)), "logits")
    if request.param == "encoder":
        return Only(MAEModel.from_pretrained(folder), "last_hidden_state")
    pooling = "attentive" if request.param.startswith("attentive") else "mean"
    return Only(MAEForImageClassification.from_pretrained(folder, num_labels=4, pooling=pooling), "logits")


@pytest.mark.slow
def test_export__any_batch(exportable):
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(exportable, (PIXELS,), dynamic_shapes={"pixel_values": {0: batch}})
    more = torch.randn(7, 3, 32, 32)
    torch.testing.assert_close(program.module()(more), exportable(more))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (48, 24)], ids=["own size", "another"])
def test_export__any_size(pretrained, size):
    """Whichever size the example has: at the model's own the positions are those stored, at others resampled ones."""
    model = Only(MAEModel.from_pretrained(pretrained[0]), "last_hidden_state")
    sides = {axis: 8 * torch.export.Dim(name, min=1, max=64) for axis, name in ((2, "rows"), (3, "columns"))}
    program = torch.export.export(model, (torch.randn(2, 3, *size),), dynamic_shapes={"pixel_values": sides})
    for other in [(32, 32), (16, 40), (64, 64)]:
        pixels = torch.randn(2, 3, *other)
        torch.testing.assert_close(program.module()(pixels), model(pixels))


@pytest.mark.slow
def test_onnx__agrees_with_torch(exportable, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        exportable,
        (PIXELS,),
        path,
        input_names=["pixel_values"],
        output_names=["output"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}},
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = torch.randn(3, 3, 32, 32)
    (output,) = session.run(["output"], {"pixel_values": more.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), exportable(more).detach(), rtol=1e-4, atol=1e-5)


def test_bfloat16__inference(pretrained):
    folder, model = pretrained
    small = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    output = small(PIXELS).pooler_output  # pixels are cast
    assert output.dtype == torch.bfloat16
    cosine = nn.functional.cosine_similarity(output.float(), model.mae(PIXELS).pooler_output)
    assert cosine.min() > 0.999


@pytest.mark.filterwarnings("ignore")
def test_int8__inference(tiny_config):
    quantization = pytest.importorskip("torchao.quantization")
    model = MAEForImageClassification(tiny_config(hidden_size=64, intermediate_size=256)).eval()
    expected = model.pool(PIXELS)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    weight = model.mae.layers[0].mlp.fc1.weight
    assert type(weight) is not nn.Parameter
    assert not torch.equal(model.pool(PIXELS), expected)  # it is quantised indeed
    assert nn.functional.cosine_similarity(model.pool(PIXELS), expected).min() > 0.999


# ----------------------------------------------------------------------------------------------------------------------
# Trainer and compilation


@pytest.mark.slow
def test_trainer__pretrains_as_it_is(tiny_model, tmp_path):
    """Loss falls, evaluation has a loss, a label column changes nothing, the checkpoint loads."""
    processor = MAEImageProcessor.for_image_size(32)
    pixels = [processor(picture(number), return_tensors="pt").pixel_values[0] for number in range(8)]
    dataset = [{"pixel_values": pixel_values, "labels": 0} for pixel_values in pixels]
    results = []
    for accumulation in (1, 2):
        torch.manual_seed(0)
        model = tiny_model(norm_pix_loss=True)
        model.save_pretrained(tmp_path / "fresh")
        args = TrainingArguments(
            output_dir=tmp_path / f"run-{accumulation}",
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=30,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=30,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model, args, train_dataset=dataset, eval_dataset=dataset, processing_class=processor)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[-1] < 0.95 * losses[0]
        assert trainer.state.log_history[-2]["eval_loss"] == pytest.approx(losses[-1], rel=0.3)
        results.append(losses[0])
    assert results[0] == pytest.approx(results[1], rel=0.1)  # accumulated losses are divided
    again = AutoModel.from_pretrained(tmp_path / "run-2" / "checkpoint-30")
    trained = trainer.model.mae.layers[0].mlp.fc1.weight
    assert torch.equal(again.layers[0].mlp.fc1.weight, trained)
    assert torch.equal(again.embeddings.position_embeddings, model.mae.embeddings.position_embeddings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "attentive classifier", "backbone", "pyramid"])
def test_compile__without_a_graph_break(tiny_config, kind):
    if kind.endswith("classifier"):
        pooling = "attentive" if kind.startswith("attentive") else "mean"
        model, arguments = MAEForImageClassification(tiny_config(num_labels=4, pooling=pooling)), {"labels": LABELS}
    else:
        model = MAEBackbone(tiny_config(feature_pyramid_size=8 if kind == "pyramid" else None))
        arguments = {}
    model = model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output, expected = compiled(PIXELS, **arguments), model(PIXELS, **arguments)
    for key, value in expected.items():
        torch.testing.assert_close(output[key], value)


@pytest.mark.parametrize("kind", ["classifier", "backbone"])
def test_gradient_checkpointing__same_gradients(tiny_config, kind):
    gradients = []
    torch.manual_seed(1)
    if kind == "classifier":
        model = MAEForImageClassification(tiny_config(num_labels=4))
        nn.init.normal_(model.classifier.weight)
    else:
        model = MAEBackbone(tiny_config(out_indices=[1, 2]))
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        if kind == "classifier":
            loss = model(PIXELS, labels=LABELS).loss
        else:
            loss = sum(maps.pow(3).mean() for maps in model(PIXELS).feature_maps)
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
