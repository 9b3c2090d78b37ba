# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pixio's recipe (arXiv 2512.15715): mask cells, several class tokens, learned positions, drop path by sample."""

import json
import signal

import pytest
import torch
from conftest import SMALL, STEPS, SignalAt, metrics, picture, same_tensors, samples
from torch import nn

from hf_mae import MAEBackbone, MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.data.datasets import PretrainingCollator, PretrainingDataset
from hf_mae.data.sources import ImageSource
from hf_mae.evaluation.encoders import FrozenEncoder
from hf_mae.evaluation.features import compute_features
from hf_mae.evaluation.visualization import attention_rollout, attention_sheet
from hf_mae.modeling.masking_mae import num_kept_patches
from hf_mae.modeling.patches_mae import resample_position_table, sincos_position_table
from hf_mae.pretraining.command import PretrainingSettings, pretrain
from hf_mae.pretraining.initial_model import build_model
from hf_mae.training.optimization import layer_decay_parameter_groups, parameter_groups
from hf_mae.training.step_guard import RunStopped

PIXIO = {"num_class_tokens": 3, "position_embedding": "learned", "mask_block_size": 2, "norm_pix_loss": True}
PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))  # 4 x 4 patches, 2 x 2 cells


@pytest.fixture
def model(tiny_model):
    return tiny_model(**PIXIO)


@pytest.fixture
def pretrained(model, tmp_path):
    model.save_pretrained(tmp_path / "pixio")
    return tmp_path / "pixio"


# ----------------------------------------------------------------------------------------------------------------------
# The whole, as the paper has it


def visible_cells(noise, rows, columns, size, ratio):
    """The rule, written out: cells of `size` x `size` patches, of which those with the least noise are kept whole."""
    cells = [(top, left) for top in range(0, rows, size) for left in range(0, columns, size)]
    cells.sort(key=lambda cell: noise[cell[0] * columns + cell[1]])
    kept = cells[: int(len(cells) * (1 - ratio))]
    return [(top + y) * columns + left + x for top, left in kept for y in range(size) for x in range(size)]


def loss_as_published(model, pixels, noise):
    """Every step with all tokens in raster order, class tokens first, and nothing left out for speed."""
    config, encoder, decoder = model.config, model.mae, model.decoder
    count = config.num_class_tokens
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # (B, N, P * C)
    kept = torch.tensor([visible_cells(row, 4, 4, config.mask_block_size, config.mask_ratio) for row in noise.tolist()])
    batch = torch.arange(len(pixels))[:, None]
    positions = encoder.embeddings.position_embeddings
    tokens = encoder.embeddings.patch_embeddings(patches) + positions[:, count:]
    classes = (encoder.embeddings.cls_token + positions[:, :count]).expand(len(pixels), -1, -1)
    tokens = torch.cat([classes, tokens[batch, kept]], dim=1)
    for layer in encoder.layers:
        tokens = layer(tokens)[0]
    tokens = decoder.embed(encoder.layernorm(tokens))
    everything = decoder.mask_token.expand(len(pixels), 16, -1).clone()
    everything[batch, kept] = tokens[:, count:]
    tokens = torch.cat([tokens[:, :count], everything], dim=1) + decoder.position_embeddings
    for layer in decoder.layers:
        tokens = layer(tokens)[0]
    predicted = decoder.head(decoder.layernorm(tokens))[:, count:]
    target = (patches - patches.mean(dim=-1, keepdim=True)) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    hidden = torch.ones(len(pixels), 16).scatter(1, kept, 0.0)
    return ((predicted - target).square().mean(dim=-1) * hidden).sum() / hidden.sum()


def test_loss_and_gradients__are_those_of_the_whole_computation(model):
    noise, gradients = torch.rand(4, 16), []
    for loss in (model(PIXELS, noise=noise).loss, loss_as_published(model, PIXELS, noise)):
        model.zero_grad()
        loss.backward()
        gradients.append((loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compile__without_a_graph_break(tiny_model):
    model, noise = tiny_model(**PIXIO, drop_path_rate=0.5).train(), torch.rand(4, 16)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    arguments = {"noise": noise, "drop_path_noise": torch.rand(4, 2, 2)}
    output = compiled(PIXELS, **arguments)
    torch.testing.assert_close(output.loss, model(PIXELS, **arguments).loss)
    output.loss.backward()
    assert model.mae.embeddings.position_embeddings.grad is not None


# ----------------------------------------------------------------------------------------------------------------------
# Class tokens


def test_class_tokens__differ_from_the_start_and_come_first(tiny_model):
    model = tiny_model(num_class_tokens=3)
    output = model.mae(PIXELS)
    assert output.last_hidden_state.shape == (4, 3 + 16, 32)
    first = output.last_hidden_state[:, :3]
    assert (first[:, 0] - first[:, 1]).abs().max() > 1e-3
    turned = model.mae(PIXELS.flip(-1)).last_hidden_state
    assert not torch.allclose(turned[:, 3:], output.last_hidden_state[:, 3:], atol=1e-3)  # patches have places
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 3:].mean(dim=1))


@pytest.mark.parametrize("ids_keep", [None, torch.tensor([[7, 0, 2]]).repeat(4, 1)])
def test_pooling__by_class_is_their_mean(tiny_config, ids_keep):
    config = tiny_config(num_class_tokens=3, pooling="class", num_labels=5)
    classifier = MAEForImageClassification(config).eval()
    tokens = classifier.mae(PIXELS, ids_keep=ids_keep).last_hidden_state
    expected = (tokens[:, 0] + tokens[:, 1] + tokens[:, 2]) / 3
    torch.testing.assert_close(classifier.mae(PIXELS, ids_keep=ids_keep).pooler_output, expected)
    torch.testing.assert_close(classifier.pool(PIXELS, ids_keep=ids_keep), expected)
    attentive = MAEForImageClassification(tiny_config(num_class_tokens=3, pooling="attentive")).eval()
    patches = attentive.mae(PIXELS, ids_keep=ids_keep).last_hidden_state[:, 3:]
    torch.testing.assert_close(attentive.pool(PIXELS, ids_keep=ids_keep), attentive.attentive_pooling(patches))


def test_backbone__has_maps_of_patches_alone(tiny_config):
    backbone = MAEBackbone(tiny_config(num_class_tokens=3, out_indices=[1, 2])).eval()
    tokens = backbone.mae.layernorm(backbone.mae(PIXELS, output_hidden_states=True).hidden_states[1])
    maps = backbone(PIXELS).feature_maps[0]
    assert torch.equal(maps[:, :, 1, 2], tokens[:, 3 + 4 * 1 + 2])
    assert backbone(torch.randn(1, 3, 48, 16)).feature_maps[1].shape == (1, 32, 6, 2)
    backbone.config.reshape_hidden_states = False
    assert torch.equal(backbone(PIXELS).feature_maps[0], tokens)


def test_features_and_encoders__take_the_mean_of_class_tokens(model):
    encoder, pixels = model.mae, PIXELS
    tokens = encoder(pixels).last_hidden_state
    features = compute_features(encoder, pixels, ["class_token", "mean", "patches"])
    torch.testing.assert_close(features["class_token"], tokens[:, :3].mean(dim=1))
    torch.testing.assert_close(features["mean"], tokens[:, 3:].mean(dim=1))
    assert torch.equal(features["patches"][:, :, 3, 0], tokens[:, 3 + 12])
    frozen = FrozenEncoder(model, MAEImageProcessor.for_image_size(32), "pixio")
    (encoded,) = frozen(pixels)
    assert torch.equal(encoded.patches, tokens[:, 3:])
    torch.testing.assert_close(frozen.pooled(encoded)["class"], tokens[:, :3].mean(dim=1))


def test_attention__is_that_of_all_class_tokens(tiny_model):
    model = tiny_model(num_class_tokens=2, num_hidden_layers=1)
    (attention,) = model.mae(PIXELS, output_attentions=True).attentions
    first, second = attention.mean(dim=1)[:, 0, 2:], attention.mean(dim=1)[:, 1, 2:]
    expected = (first + second) / (first + second).sum(dim=1, keepdim=True)  # one block: in proportion to its attention
    rollout = attention_rollout([attention], model.config.num_class_tokens)
    assert rollout.shape == (len(PIXELS), attention.shape[-1] - 2)
    torch.testing.assert_close(rollout, expected)
    sheet = attention_sheet(model, MAEImageProcessor.for_image_size(32), PIXELS[:1], columns=1, min_side=64)
    brightest = [int(row.argmax()) for row in (first + second)[:1]]
    for place in (1, 2):
        y, x = divmod(brightest[0], 4)
        red, green, _ = sheet.getpixel((place * (64 + 4) + 16 * x + 8, 16 + 16 * y + 8))
        assert red > 240
        assert green > 200


def test_reconstruction__keeps_what_is_visible(model):
    noise = torch.rand(4, 16)
    output = model.reconstruct(PIXELS, noise=noise)
    pixels = (~output.mask).view(4, 1, 4, 4).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    assert int(pixels[0].sum()) == 16 * 16  # one cell of four
    torch.testing.assert_close(output.reconstruction * pixels, PIXELS * pixels)
    assert not torch.allclose(output.reconstruction, PIXELS)


@pytest.mark.slow
def test_classifier__adapts(tiny_config):
    """What torch.export and ONNX make of it is in test_adapting.py."""
    peft = pytest.importorskip("peft")
    model = MAEForImageClassification(tiny_config(**PIXIO, pooling="class", num_labels=4)).eval()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"], r=2))
    adapted(PIXELS, labels=torch.arange(4)).loss.backward()
    assert adapted.base_model.model.mae.layers[0].attention.qkv.lora_B["default"].weight.grad.abs().max() > 0


# ----------------------------------------------------------------------------------------------------------------------
# Positions


def test_sincos_table__has_a_row_of_zeros_for_each_class_token(tiny_model):
    table = sincos_position_table(16, (3, 5), num_class_tokens=4)
    assert table.shape == (1, 4 + 15, 16)
    assert table[:, :4].abs().max() == 0
    assert torch.equal(table[:, 4:], sincos_position_table(16, (3, 5))[:, 1:])
    model = tiny_model(num_class_tokens=4)
    for part, width in ((model.mae.embeddings, 32), (model.decoder, 16)):
        expected = sincos_position_table(width, (4, 4), 4).float()
        assert torch.equal(part.position_embeddings, expected)
        assert not part.position_embeddings.requires_grad


@pytest.mark.parametrize("num_class_tokens", [1, 8])
def test_learned_tables__start_small_and_are_trained(tiny_config, num_class_tokens):
    fields = {"image_size": 256, "num_class_tokens": num_class_tokens, "position_embedding": "learned"}
    model = MAEForPreTraining(tiny_config(**fields))
    for part in (model.mae.embeddings, model.decoder):
        table = part.position_embeddings
        assert table.shape[1] == num_class_tokens + 32 * 32
        assert table.std().item() == pytest.approx(0.02, rel=0.05)
        assert table[:, :num_class_tokens].abs().min() > 0
        assert table.requires_grad
    decayed, others = parameter_groups(model, 0.05)
    for part in (model.mae.embeddings, model.decoder):
        assert any(part.position_embeddings is each for each in decayed["params"])
    assert all(each.ndim == 1 for each in others["params"])


def test_learned_tables__in_fine_tuning_are_embeddings_without_decay(tiny_config):
    model = MAEForImageClassification(tiny_config(**PIXIO, num_labels=3))
    embeddings = model.mae.embeddings
    for group in layer_decay_parameter_groups(model, 1.0, 0.05, 0.5):
        if any(each is embeddings.position_embeddings for each in group["params"]):
            assert any(each is embeddings.cls_token for each in group["params"])
            assert group["lr"] == pytest.approx(0.5**3)  # before the first of two blocks
            assert group["weight_decay"] == 0
            return
    raise AssertionError("the table is in no group")


def test_learned_table__is_resampled_without_the_class_tokens(model, pretrained):
    table = model.mae.embeddings.position_embeddings.detach()
    patches = table[:, 3:].view(1, 4, 4, 32).permute(0, 3, 1, 2)
    bicubic = nn.functional.interpolate(patches, size=(8, 6), mode="bicubic", align_corners=False)
    expected = torch.cat([table[:, :3], bicubic.permute(0, 2, 3, 1).reshape(1, 48, 32)], dim=1)
    torch.testing.assert_close(resample_position_table(table, (4, 4), (8, 6)), expected)
    large = MAEForPreTraining.from_pretrained(pretrained, image_size=(64, 48)).eval()
    torch.testing.assert_close(large.mae.embeddings.position_embeddings.detach(), expected)
    assert large.mae.embeddings.position_embeddings.requires_grad
    pixels, noise = torch.randn(2, 3, 64, 48), torch.rand(2, 48)
    torch.testing.assert_close(large(pixels, noise=noise).loss, model(pixels, noise=noise).loss)
    model(pixels, noise=noise).loss.backward()  # resampled for this call: gradients reach the table
    for part in (model.mae.embeddings, model.decoder):
        assert (part.position_embeddings.grad.abs().amax(dim=-1) > 0).all()


def test_checkpoint__loads_into_every_class(model, pretrained):
    again = MAEForPreTraining.from_pretrained(pretrained).eval()
    noise = torch.rand(4, 16)
    assert torch.equal(again(PIXELS, noise=noise).loss, model(PIXELS, noise=noise).loss)
    assert again.decoder.position_embeddings.requires_grad
    for model_class in (MAEModel, MAEForImageClassification, MAEBackbone):
        loaded = model_class.from_pretrained(pretrained)
        assert torch.equal(loaded.base_model.embeddings.cls_token, model.mae.embeddings.cls_token)
        assert loaded.base_model.embeddings.position_embeddings.requires_grad
    wide = MAEModel.from_pretrained(pretrained, num_channels=6).eval()
    expected = model.mae(PIXELS).last_hidden_state
    torch.testing.assert_close(wide(torch.cat([PIXELS, PIXELS], dim=1)).last_hidden_state, expected)


def test_sincos_checkpoint__goes_on_with_learned_positions(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = MAEForPreTraining.from_pretrained(tmp_path, position_embedding="learned")
    table = model.mae.embeddings.position_embeddings
    torch.testing.assert_close(table.detach(), sincos_position_table(32, (4, 4)).float())
    assert table.requires_grad


def test_checkpoint__of_cells_that_do_not_fit_another_size(pretrained):
    with pytest.raises(ValueError, match=r"`mask_block_size` 2 does not divide 5 x 5 patches.* 32 x 32 or 48 x 48"):
        MAEForPreTraining.from_pretrained(pretrained, image_size=40)
    classifier = MAEForImageClassification.from_pretrained(pretrained, image_size=40)  # which hides nothing
    assert classifier.config.mask_block_size == 1
    assert classifier(torch.randn(1, 3, 40, 40)).logits.shape == (1, 2)


# ----------------------------------------------------------------------------------------------------------------------
# Drop path by sample


def test_drop_path_noise__decides_which_branches_run(tiny_model):
    """Two blocks with probabilities 0 and 0.5: what is kept counts twice."""
    model = tiny_model(drop_path_rate=0.5).train()
    encoder = model.mae
    noise = torch.tensor([[0.0, 0.0], [0.4, 0.6]]).expand(4, -1, -1).clone()  # skips the second attention
    noise[3, 1] = torch.tensor([0.5, 0.4])  # and of the last image the MLP
    tokens = encoder.embeddings(PIXELS, (4, 4), None, None)
    tokens = encoder.layers[0](tokens)[0]
    layer = encoder.layers[1]
    attended = tokens + 2 * layer.attention(layer.layernorm_before(tokens))[0]
    expected = torch.cat([(tokens + 2 * layer.mlp(layer.layernorm_after(tokens)))[:3], attended[3:]])
    output = encoder(PIXELS, drop_path_noise=noise).last_hidden_state
    torch.testing.assert_close(output, encoder.layernorm(expected))
    assert not torch.equal(encoder(PIXELS).last_hidden_state, output)  # by chance
    whole = model(
        PIXELS, mask_ratio=0, noise=torch.arange(16.0).expand(4, -1), drop_path_noise=noise, return_loss=False
    )
    decoded = model.decoder(output, whole.ids_keep, None, (4, 4)).last_hidden_state
    torch.testing.assert_close(whole.logits, decoded)
    encoder.eval()
    assert torch.equal(encoder(PIXELS, drop_path_noise=noise).last_hidden_state, encoder(PIXELS).last_hidden_state)
    with pytest.raises(ValueError, match=r"`drop_path_noise`.*\(4, 2, 2\), got \(4, 2\)"):
        encoder(PIXELS, drop_path_noise=noise[..., 0])


class Pictures(ImageSource):
    name, fingerprint = "pictures", "pictures-1"

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return picture(index)


def test_drop_path_noise__is_a_function_of_the_sample_and_changes_nothing_else():
    fields = {"num_patches": 16, "color_jitter": 0.4, "vertical_flip": True, "rotate90": True, "seed": 3}
    plain, dataset = (PretrainingDataset(Pictures(), (32, 32), **fields, num_layers=n) for n in (0, 5))
    wanted = [(0, 1, 0), (0, 1, 1), (1, 1, 0), (0, 2, 0)]
    together = dataset.__getitems__(wanted)
    for sample, other, index in zip(together, plain.__getitems__(wanted), wanted, strict=True):
        assert set(sample) - set(other) == {"drop_path_noise"}
        assert all(torch.equal(sample[name], other[name]) for name in ("pixel_values", "noise", "crop_box", "flipped"))
        assert torch.equal(dataset[index]["drop_path_noise"], sample["drop_path_noise"])
        assert sample["drop_path_noise"].shape == (5, 2)
    assert len({tuple(sample["drop_path_noise"].flatten().tolist()) for sample in together}) == 4
    many = torch.stack([dataset[0, index, view]["drop_path_noise"] for index in range(6) for view in range(50)])
    assert many.mean(dim=0).sub(0.5).abs().max() < 0.1
    assert (many >= 0).all()
    assert (many < 1).all()
    batch = PretrainingCollator(MAEImageProcessor.for_image_size(32))(together)
    assert batch["drop_path_noise"].shape == (4, 5, 2)


# ----------------------------------------------------------------------------------------------------------------------
# Runs

MASKS = ["mask_sampling=random", "mask_sampling=block", "mask_sampling=grid", "mask_block_size=2", "mask_ratio=0"]


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
def test_log_of_samples__names_the_patches_that_the_model_keeps(tmp_path, monkeypatch, mask):
    kept, encode = [], MAEModel.forward

    def forward(self, *args, **kwargs):
        output = encode(self, *args, **kwargs)
        if self.training and len(output.pooler_output) == 24:  # no sheet, no evaluation
            kept.extend(sorted(row) for row in output.ids_keep.tolist())
        return output

    monkeypatch.setattr(MAEModel, "forward", forward)
    overrides = f"{SMALL},{mask}"
    pretrain(
        None, tmp_path, **{**STEPS, "max_steps": 2, "config_overrides": overrides, "image_size": 32, "patch_size": 4}
    )
    lines = [json.loads(line) for line in (tmp_path / "samples-0.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 24
    assert [line["visible"] for line in lines] == kept


@pytest.mark.slow
def test_run__stopped_continues_to_the_same_weights(tmp_path):
    """With mask cells and drop path, and whatever a forward pass takes at once."""
    overrides = f"{SMALL},num_hidden_layers=3,num_class_tokens=2,mask_block_size=2,position_embedding=learned"
    fields = {"config_overrides": f"{overrides},drop_path_rate=0.5", "image_size": 32, "patch_size": 4}
    whole, stopped, parts = tmp_path / "whole", tmp_path / "stopped", tmp_path / "parts"
    settings = {**STEPS, **fields, "max_steps": 6, "eval_steps": 6}
    pretrain(None, whole, **settings)
    with pytest.raises(RunStopped, match="saved at step [45]"):
        pretrain(None, stopped, **settings, trackers=[SignalAt(3, signal.SIGTERM)])
    pretrain(None, stopped, **settings)
    assert same_tensors("model.safetensors", stopped, whole)
    assert samples(stopped) == samples(whole)
    pretrain(None, parts, **{**settings, "per_device_train_batch_size": 7})  # as several processes would share it
    ours, theirs = metrics(parts, "loss"), metrics(whole, "loss")
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-4)


def test_preset__makes_the_model_of_a_run():
    settings = PretrainingSettings(preset="pixio-tiny", num_channels=1, config_overrides="drop_path_rate=0.1")
    model, processor = build_model(settings)
    config = model.config
    assert (config.num_class_tokens, config.position_embedding, config.pooling) == (4, "learned", "class")
    assert (config.norm_pix_loss, config.drop_path_rate, config.num_channels) == (True, 0.1, 1)
    assert processor.crop_height_width == (32, 32)
    assert num_kept_patches(config.grid_size, config.mask_ratio, config.mask_block_size) == 16
