# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Attentive pooling: what it computes, in a classifier, and how its probes are trained."""

import re

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import TINY

import hf_mae
from hf_mae import MAEConfig, MAEForImageClassification, MAEImageProcessor, MAEModel
from hf_mae.data.datasets import EvaluationDataset
from hf_mae.data.shards import ParquetImages
from hf_mae.data.sources import open_images
from hf_mae.evaluation.attentive import (
    AttentiveProbe,
    AttentiveSettings,
    PatchTokens,
    attentive_accuracies,
    choose_attentive_probe,
    train_attentive_probes,
    with_attentive_probe,
)
from hf_mae.evaluation.probing import probe_command
from hf_mae.finetuning.classification import finetune_command
from hf_mae.modeling.modeling_mae_downstream import MAEAttentivePooling
from hf_mae.training.optimization import layer_decay_parameter_groups

PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pooling():
    """Pools 32 channels by 8 queries, whose weights are large enough to matter."""
    module = MAEAttentivePooling(32, 8)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@pytest.fixture
def attentive(tiny_config):
    """Makes a classifier of 5 classes in evaluation mode, whose classifier is not near zero."""

    def make(**fields):
        torch.manual_seed(0)
        model = MAEForImageClassification(tiny_config(num_labels=5, pooling="attentive", **fields)).eval()
        torch.nn.init.normal_(model.classifier.weight)
        return model

    return make


# ----------------------------------------------------------------------------------------------------------------------
# The module


def pooled_by_loops(tokens, queries, value_weight):
    """The definition of arXiv 2506.10178, one number after another, for the tokens (N, D) of one image."""
    count, width = queries.shape
    pooled = np.zeros(width)
    for channel in range(width):
        query = queries[channel // (width // count)]
        scores = [sum(query[d] * token[d] for d in range(width)) / width**0.5 for token in tokens]
        weights = [np.exp(score - max(scores)) for score in scores]
        for token, weight in zip(tokens, weights, strict=True):
            pooled[channel] += weight / sum(weights) * sum(value_weight[channel, d] * token[d] for d in range(width))
    return pooled


def test_pooling__is_the_definition(pooling):
    tokens = torch.randn(2, 6, 32)
    queries, value_weight = (each.detach().double().numpy() for each in (pooling.queries, pooling.value_weight))
    expected = [pooled_by_loops(image.double().numpy(), queries, value_weight) for image in tokens]
    np.testing.assert_allclose(pooling(tokens).detach().numpy(), expected, rtol=2e-5, atol=1e-5)


def test_pooling__gradients_are_those_of_finite_differences(pooling):
    pooling = pooling.double()
    tokens = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*pooling.named_parameters(), strict=True)

    def pool(tokens, *parameters):
        return torch.func.functional_call(pooling, dict(zip(names, parameters, strict=True)), tokens)[:, ::7]

    assert torch.autograd.gradcheck(pool, (tokens, *parameters), fast_mode=True)


def test_pooling__does_not_depend_on_the_order_of_patches(pooling):
    tokens = torch.randn(2, 16, 32)
    torch.testing.assert_close(pooling(tokens[:, torch.randperm(16)]), pooling(tokens))


def test_pooling__zero_queries_see_all_patches_alike(pooling):
    torch.nn.init.zeros_(pooling.queries)
    tokens = torch.randn(2, 16, 32)
    torch.testing.assert_close(pooling.attention(tokens), torch.full((2, 8, 16), 1 / 16))
    torch.testing.assert_close(pooling(tokens), tokens.mean(dim=1) @ pooling.value_weight.T)


def test_pooling__a_long_query_takes_the_patch_that_is_most_like_it(pooling):
    tokens = torch.nn.functional.normalize(torch.randn(1, 16, 32), dim=-1)
    with torch.no_grad():
        pooling.queries.copy_(1e4 * tokens[0, :8])
    torch.testing.assert_close(pooling.attention(tokens)[0], torch.eye(8, 16))


def test_vit_b__has_as_many_parameters_as_published():
    """24,576 of queries, 589,824 of values, 769,000 of the classifier of 1,000 classes (arXiv 2506.10178, EP-32)."""
    with torch.device("meta"):
        model = MAEForImageClassification(MAEConfig.from_preset("base", pooling="attentive", num_labels=1000))
    assert sum(parameter.numel() for parameter in model.parameters()) - model.mae.num_parameters() == 1_383_400


# ----------------------------------------------------------------------------------------------------------------------
# The classifier


def test_classifier__pools_patches_after_the_final_norm(attentive):
    model = attentive()
    torch.nn.init.normal_(model.mae.layernorm.weight)
    tokens = model.mae(PIXELS).last_hidden_state[:, 1:]
    torch.testing.assert_close(model.pool(PIXELS), model.attentive_pooling(tokens))
    torch.testing.assert_close(model(PIXELS).logits, model.classifier(model.attentive_pooling(tokens)))


@pytest.mark.parametrize("in_encoder", [False, True])
def test_classifier__of_a_masked_image_pools_visible_patches(attentive, in_encoder):
    model = attentive(mask_tokens_in_encoder=in_encoder)
    ids_keep = torch.tensor([[3, 0, 7]]).repeat(4, 1)
    tokens = model.mae(PIXELS, ids_keep=ids_keep).last_hidden_state[:, 1:4]
    torch.testing.assert_close(model.pool(PIXELS, ids_keep=ids_keep), model.attentive_pooling(tokens))


def test_weights__start_like_class_tokens_and_linear_layers():
    config = MAEConfig(**{**TINY, "hidden_size": 256}, pooling="attentive", initializer_range=0.05)
    pooling = MAEForImageClassification(config).attentive_pooling
    assert pooling.queries.std().item() == pytest.approx(0.05, rel=0.05)
    bound = (6 / (256 + 256)) ** 0.5  # Xavier's uniform distribution
    assert pooling.value_weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert pooling.value_weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("queries", [0, 5, 64])
def test_number_of_queries__must_divide_the_width(tiny_config, queries):
    with pytest.raises(ValueError, match="must divide `hidden_size` 32, got .*Choose one of 1, 2, 4, 8, 16, 32"):
        tiny_config(pooling="attentive", num_pooling_queries=queries)
    assert tiny_config(pooling="mean", num_pooling_queries=queries)  # not used


def test_encoder__alone_pools_by_the_mean(tiny_config):
    output = MAEModel(tiny_config(pooling="attentive"))(PIXELS)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 1:].mean(dim=1))


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_other_pooling__has_no_queries(tiny_config, pooling):
    model = MAEForImageClassification(tiny_config(pooling=pooling))
    assert not any("attentive" in name for name in model.state_dict())


def test_saving__gives_the_same_classifier(attentive, tmp_path):
    model = attentive(num_pooling_queries=4)
    model.save_pretrained(tmp_path)
    again, info = MAEForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again(PIXELS).logits, model(PIXELS).logits)


def test_loading__pretrained_weights_leave_the_queries_new(pretrained, log):
    model = MAEForImageClassification.from_pretrained(pretrained, pooling="attentive", num_labels=3)
    assert "new, to be trained: attentive_pooling, classifier; left out of the checkpoint: decoder." in log()
    assert model.attentive_pooling.queries.std().item() == pytest.approx(0.02, rel=0.1)


def test_gradients__checkpointed_or_not_reach_every_parameter(attentive):
    def gradients(checkpointing):
        model = attentive().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(PIXELS, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert all(gradient.abs().sum() > 0 for name, gradient in plain.items() if name != "mae.embeddings.mask_token")
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_bfloat16__agrees_with_float32(attentive):
    model = attentive()
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(PIXELS).logits
    expected = model(PIXELS).logits
    torch.testing.assert_close(autocast.float(), expected, rtol=0.05, atol=0.1)
    torch.testing.assert_close(model.bfloat16()(PIXELS.bfloat16()).logits.float(), expected, rtol=0.05, atol=0.1)


def test_lora__keeps_the_trained_queries(pretrained, tmp_path):
    peft = pytest.importorskip("peft")
    fields = {"num_labels": 4, "pooling": "attentive"}
    settings = peft.LoraConfig(r=4, target_modules=["qkv"], modules_to_save=["classifier", "attentive_pooling"])
    adapted = peft.get_peft_model(MAEForImageClassification.from_pretrained(pretrained, **fields), settings)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # in the first step, the classifier near zero gives no gradient to what is before it
        adapted(PIXELS, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        optimizer.step()
    adapted.eval().save_pretrained(tmp_path / "adapter")
    again = MAEForImageClassification.from_pretrained(pretrained, **fields)
    assert not torch.allclose(again(PIXELS).logits, adapted(PIXELS).logits)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(PIXELS).logits, adapted(PIXELS).logits)


@pytest.mark.parametrize("layout", ["official", "timm", "vit", "vit_mae", "mmpretrain"])
def test_export__to_libraries_without_it_is_refused(attentive, tmp_path, layout):
    path = tmp_path / ("out.pth" if layout in ("official", "mmpretrain") else "out")
    with pytest.raises(ValueError, match=re.escape("has no attentive pooling. Export the encoder, `model.mae`.")):
        hf_mae.export_checkpoint(attentive(), path, layout)
    hf_mae.export_checkpoint(attentive().mae, path, layout)
    tokens = hf_mae.import_checkpoint(path)(PIXELS).last_hidden_state
    torch.testing.assert_close(tokens, attentive().mae(PIXELS).last_hidden_state)


def test_layer_decay__queries_and_values_learn_at_the_full_rate(attentive):
    model = attentive()
    groups = layer_decay_parameter_groups(model, 1.0, 0.05, 0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[id(parameter)] for parameter in model.attentive_pooling.parameters()} == {1.0}
    assert {rates[id(parameter)] for parameter in model.mae.layers[-1].parameters()} == {0.5}


@pytest.mark.slow
def test_finetuning__trains_saves_and_goes_on(call, short, tmp_path):
    call(finetune_command, *short, "--pooling", "attentive", "--num_pooling_queries", 8)
    model = MAEForImageClassification.from_pretrained(tmp_path / "out")
    assert (model.config.pooling, model.attentive_pooling.queries.shape) == ("attentive", (8, 32))
    names = ["--model_name_or_path", tmp_path / "out", "--output_dir", tmp_path / "on"]
    call(finetune_command, *short, *names, "--pooling", "attentive")
    again = MAEForImageClassification.from_pretrained(tmp_path / "on")
    assert again.attentive_pooling.queries.shape == (8, 32)
    assert not torch.equal(again.attentive_pooling.queries, model.attentive_pooling.queries)


# ----------------------------------------------------------------------------------------------------------------------
# The training of probes


SHORT = AttentiveSettings(num_epochs=10, batch_size=32)


class Hidden(torch.utils.data.Dataset):
    """Images of 16 patches of noise, one of which, at a random place, has a mark and shows the class, 0 to 3."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(4, (count,), generator=generator)
        self.tokens = torch.randn(count, 16, 32, generator=generator)
        places = torch.randint(16, (count,), generator=generator)
        self.tokens[torch.arange(count), places] = 0.0
        self.tokens[torch.arange(count), places, self.labels] = 4.0
        self.tokens[torch.arange(count), places, 4] = 8.0
        self.tokens = self.tokens.half().float()  # so that storing them loses nothing

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.tokens[index], "label": self.labels[index]}


def unchanged(tokens):
    return tokens


@pytest.mark.slow
def test_probes__find_what_one_patch_shows():
    """The mean of the patches hides it in noise: its probes are right half of the time at best."""
    train, test = (PatchTokens(unchanged, Hidden(count, seed)) for count, seed in ((300, 0), (200, 1)))
    assert max(attentive_accuracies(train_attentive_probes(train, 4, [1e-2, 3e-2], settings=SHORT), test)) > 0.95
    means = Hidden(300, 0).tokens.mean(dim=1), Hidden(200, 1).tokens.mean(dim=1)
    distances = torch.cdist(means[1], torch.stack([means[0][train._labels == label].mean(0) for label in range(4)]))
    assert (distances.argmin(dim=1) == test._labels).float().mean() < 0.7


def test_probes__of_a_collapsed_encoder_are_chance():
    data = Hidden(100, 0)
    (probe,) = train_attentive_probes(PatchTokens(torch.ones_like, data), 4, [1e-2], settings=SHORT)
    shares = data.labels.bincount() / 100
    (accuracy,) = attentive_accuracies([probe], PatchTokens(torch.ones_like, data))
    assert min((shares - accuracy).abs()) < 1e-6  # the same class for all


def test_probes__several_rates_are_trained_as_each_alone():
    tokens = PatchTokens(unchanged, Hidden(64, 0))
    together = train_attentive_probes(tokens, 4, [1e-3, 1e-2], settings=SHORT)
    for rate, probe in zip([1e-3, 1e-2], together, strict=True):
        (alone,) = train_attentive_probes(tokens, 4, [rate], settings=SHORT)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(probe.state_dict()[name], tensor)


def test_probes__are_the_same_from_memory_and_encoded_anew():
    data, encoded = Hidden(64, 0), []

    def encode(tokens):
        encoded.append(len(tokens))
        return tokens

    stored = PatchTokens(encode, data, memory=64 * 16 * 32 * 2)
    assert (stored.is_stored, sum(encoded)) == (True, 64 + 1)  # the first image tells the size
    anew = PatchTokens(encode, data, memory=64 * 16 * 32 * 2 - 1, batch_size=20)
    results = [train_attentive_probes(tokens, 4, [1e-2], settings=SHORT)[0] for tokens in (stored, anew)]
    assert (anew.is_stored, sum(encoded)) == (False, 64 + 1 + 1 + 10 * 64)
    assert max(encoded[2:]) == 20 or 64 in encoded
    for name, tensor in results[0].state_dict().items():
        assert torch.equal(results[1].state_dict()[name], tensor)


def test_probe__that_reads_images_anew_reads_each_row_group_once_an_epoch(tmp_path, monkeypatch):
    """In an order that is random altogether nearly each image would cost a row group of parquet files."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pictures = [PIL.Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(200)]
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 100}, features=features)
    rows.to_parquet(tmp_path / "train.parquet", batch_size=2)
    images, read, read_group = open_images(str(tmp_path)), [], ParquetImages._read
    processor = MAEImageProcessor.for_image_size(4, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    tokens = PatchTokens(lambda pixels: pixels.flatten(2), EvaluationDataset(images, processor), memory=0)
    monkeypatch.setattr(ParquetImages, "_read", lambda self, group: read.append(group) or read_group(self, group))
    chosen = torch.arange(200)[torch.arange(200) % 10 > 0]  # a tenth is held out
    order = AttentiveSettings(num_epochs=2, batch_size=18).order(chosen, tokens.read_from)
    assert [sorted(torch.cat(order[start : start + 10]).tolist()) for start in (0, 10)] == [chosen.tolist()] * 2
    assert not torch.equal(order[0], order[10])
    for values, labels in tokens.batches(order):
        red = (values[:, 0, 0] * 255).round().long()
        assert torch.equal(red % 2, labels)
    assert len(read) <= 2 * 110  # some are read again where lanes of the order meet


@pytest.mark.slow
def test_chosen_probe__is_trained_on_all_images_at_the_best_rate():
    tokens = PatchTokens(unchanged, Hidden(200, 0))
    chosen = choose_attentive_probe(tokens, 4, torch.arange(0, 200, 4), [1e-7, 1e-2], SHORT)
    assert chosen.learning_rate == 1e-2
    assert chosen.held_out_accuracy > 0.5
    (expected,) = train_attentive_probes(tokens, 4, [1e-2], settings=SHORT)
    assert torch.equal(chosen.probe.classifier.weight, expected.classifier.weight)


def test_probe__needs_two_images_and_chooses_queries_that_fit():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        train_attentive_probes(PatchTokens(unchanged, Hidden(1, 0)), 4)
    assert [len(AttentiveProbe(width, 3).pooling.queries) for width in (768, 100, 33)] == [32, 4, 1]
    with pytest.raises(ValueError, match="must divide `hidden_size` 100"):
        AttentiveProbe(100, 3, 32)


def test_probe__becomes_a_classifier(tiny_config, tmp_path):
    model = MAEForImageClassification(tiny_config(num_labels=4, pooling="class")).eval()
    probe = AttentiveProbe(32, 4, 8)
    tokens = model.mae(PIXELS).last_hidden_state[:, 1:].detach()
    for _ in range(20):
        probe(tokens)  # the batch norm learns its statistics
    expected = probe.eval()(tokens)
    assert with_attentive_probe(model, probe) is model
    torch.testing.assert_close(model(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = MAEForImageClassification.from_pretrained(tmp_path)
    assert (again.config.pooling, again.config.num_pooling_queries) == ("attentive", 8)
    assert torch.equal(again(PIXELS).logits, model(PIXELS).logits)
    with pytest.raises(ValueError, match="no final norm"):
        with_attentive_probe(MAEForImageClassification(tiny_config(num_labels=4)), probe)


@pytest.mark.slow
def test_probe_command__saves_a_classifier_with_attentive_pooling(call, pretrained, folder, tmp_path):
    arguments = ["--model_name_or_path", pretrained, "--data", folder, "--output_dir", tmp_path / "out"]
    printed = call(probe_command, *arguments, "--fast", "--pooling", "attentive", "--num_train_epochs", 20)
    assert "of the test images" in printed
    model = MAEForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.pooling == "attentive"
    assert sorted(model.config.label2id) == ["blue", "green", "red"]
    with pytest.raises(ValueError, match="set `fast`"):
        call(probe_command, *arguments, "--pooling", "attentive")
