# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The classifier: official numbers, labels of all kinds, what loading says, rates by layer, LARS, probes, freezing."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForImageClassification

import hf_mae
from hf_mae import MAEConfig, MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.conversion.names import rename
from hf_mae.evaluation.linear import LinearProbe, probe_classifier, train_linear_probes
from hf_mae.modeling.modeling_mae import MAEDropPath
from hf_mae.modeling.modeling_mae_downstream import fold_batch_norm
from hf_mae.training.optimization import LARS, layer_decay_parameter_groups, learning_rate_at

EXACT = {"rtol": 1e-10, "atol": 1e-12}
PIXELS = torch.linspace(-2, 2, 4 * 3 * 32 * 32).sin().view(4, 3, 32, 32)


@pytest.fixture
def classifier(tiny_config):
    """Makes a classifier in evaluation mode; its logits are not near zero."""

    def make(**fields):
        model = MAEForImageClassification(tiny_config(**{"num_labels": 5, **fields})).eval()
        torch.nn.init.normal_(model.classifier.weight)
        return model

    return make


def official_classifier(official, official_weights, kind):
    encoder = {name: w for name, w in official_weights.items() if "decoder" not in name and name != "mask_token"}
    if kind == "mean_pool":
        encoder = {name: w for name, w in encoder.items() if not name.startswith("norm.")}
    prefix = f"classifier.{kind}.weights."
    return encoder | {name.removeprefix(prefix): w for name, w in official.items() if name.startswith(prefix)}


# ----------------------------------------------------------------------------------------------------------------------
# Official numbers


@pytest.mark.parametrize(("kind", "pooling"), [("mean_pool", "mean"), ("class_token", "class")])
def test_official_fine_tuned_weights(official, official_weights, kind, pooling):
    weights = official_classifier(official, official_weights, kind)
    model = hf_mae.import_checkpoint(weights, num_attention_heads=4)
    assert type(model) is MAEForImageClassification
    assert (model.config.pooling, model.config.num_labels) == (pooling, 7)
    model, images = model.double(), official["images"].double()
    torch.testing.assert_close(model.pool(images), official[f"classifier.{kind}.features"], **EXACT)
    torch.testing.assert_close(model(images).logits, official[f"classifier.{kind}.logits"], **EXACT)


def test_official_linear_probe__batch_norm_goes_into_the_classifier(official, official_weights):
    weights = official_classifier(official, official_weights, "class_token")
    head = {"head.1.weight": weights.pop("head.weight"), "head.1.bias": weights.pop("head.bias")}
    mean, variance = torch.rand(64), torch.rand(64)
    statistics = {"head.0.running_mean": mean, "head.0.running_var": variance, "head.0.num_batches_tracked": mean[0]}
    model = hf_mae.import_checkpoint({**weights, **head, **statistics}, num_attention_heads=4)
    normalized = F.batch_norm(model.pool(official["images"]), mean, variance, eps=1e-6)
    expected = F.linear(normalized, head["head.1.weight"], head["head.1.bias"])
    torch.testing.assert_close(model(official["images"]).logits, expected)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.3])
def test_layer_decay__official_groups(official, official_weights, drop_path_rate):
    stored = json.loads((Path(__file__).parent / "fixtures" / "official_layer_decay.json").read_text())
    weights = official_classifier(official, official_weights, "mean_pool")
    model = hf_mae.import_checkpoint(weights, num_attention_heads=4, drop_path_rate=drop_path_rate)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = layer_decay_parameter_groups(model, 2.0, stored["weight_decay"], stored["layer_decay"])
    ours = {names[p]: (g["lr"] / 2.0, g["weight_decay"]) for g in groups for p in g["params"]}
    theirs, unknown = rename(stored["groups"], "official")
    assert not unknown
    assert ours == {name: pytest.approx(tuple(values), rel=1e-12) for name, values in theirs.items()}


def test_layer_decay__frozen_parameters_are_left_out_and_mistakes_named(classifier):
    model = classifier()
    model.freeze_encoder(1)
    groups = layer_decay_parameter_groups(model, 1.0, 0.05, 0.5)
    trained = {parameter for group in groups for parameter in group["params"]}
    assert trained == {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert {group["lr"] for group in groups} == {1.0, 0.5}
    with pytest.raises(ValueError, match="`layer_decay` must be in"):
        layer_decay_parameter_groups(model, 1.0, 0.05, 1.5)
    with pytest.raises(ValueError, match="Linear must hold an MAEModel"):
        layer_decay_parameter_groups(torch.nn.Linear(2, 2), 1.0, 0.05, 0.5)


def test_lars__official_steps(official):
    weight, bias = (torch.nn.Parameter(official[f"lars.{name}0"].double()) for name in ("weight", "bias"))
    optimizer = LARS([weight, bias], lr=0.3, weight_decay=0.01, momentum=0.9, trust_coefficient=0.001)
    for step in range(3):
        weight.grad = official["lars.weight_grads"][step].double()
        bias.grad = official["lars.bias_grads"][step].double()
        optimizer.step()
    torch.testing.assert_close(weight.data, official["lars.weight3"].double(), **EXACT)
    torch.testing.assert_close(bias.data, official["lars.bias3"].double(), **EXACT)


def test_lars__zero_weights_move():
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    weight.grad = torch.ones(3, 2)
    LARS([weight], lr=0.1).step()
    torch.testing.assert_close(weight.data, torch.full((3, 2), -0.1))


# ----------------------------------------------------------------------------------------------------------------------
# Labels


def test_soft_targets__are_the_mixture_of_hard_ones(classifier):
    model = classifier()
    first, second = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 4, 0, 1])
    mixed = 0.3 * F.one_hot(first, 5) + 0.7 * F.one_hot(second, 5)
    expected = 0.3 * model(PIXELS, labels=first).loss + 0.7 * model(PIXELS, labels=second).loss
    torch.testing.assert_close(model(PIXELS, labels=mixed).loss, expected)


def test_label_smoothing__in_training_only(classifier):
    model, labels = classifier(label_smoothing=0.1), torch.tensor([0, 1, 2, 3])
    logits = model(PIXELS).logits
    torch.testing.assert_close(model(PIXELS, labels=labels).loss, F.cross_entropy(logits, labels))
    targets = 0.9 * F.one_hot(labels, 5) + 0.1 / 5
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(model.train()(PIXELS, labels=labels).loss, expected)


def test_problem_types(classifier):
    model, targets = classifier(problem_type="multi_label_classification"), torch.ones(4, 5)
    logits = model(PIXELS).logits
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(model(PIXELS, labels=targets.long()).loss, expected)
    model, values = classifier(num_labels=1), torch.randn(4)
    torch.testing.assert_close(model(PIXELS, labels=values).loss, F.mse_loss(model(PIXELS).logits.squeeze(1), values))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 5, 1, 1]), r"Labels must be in \[0, 5\), got 0 to 5"),
        (torch.tensor([0, -1, 1, 1]), r"got -1 to 1.*without a label"),
        (torch.tensor([0, 1]), "4 class indices or probabilities of shape"),
        (torch.ones(4, 5), "problem_type='multi_label_classification'"),
        (torch.rand(4, 3), r"got torch.float32 of shape \(4, 3\)"),
    ],
)
def test_wrong_labels__are_refused(classifier, labels, message):
    with pytest.raises(ValueError, match=message):
        classifier()(PIXELS, labels=labels)


def test_wrong_labels__of_other_problem_types(classifier):
    for labels in (torch.full((4, 5), -1.0), torch.full((4, 5), 255), torch.full((4, 5), torch.nan)):
        with pytest.raises(ValueError, match=r"in \[0, 1\] with problem_type='multi_label_classification'"):
            classifier(problem_type="multi_label_classification")(PIXELS, labels=labels)
    with pytest.raises(ValueError, match="do not fit problem_type='multi_label_classification'"):
        classifier(problem_type="multi_label_classification")(PIXELS, labels=torch.zeros(4, 3))


def test_label_maps__that_disagree_are_refused(tiny_config):
    with pytest.raises(ValueError, match="id2label.*label2id.*disagree"):
        MAEForImageClassification(tiny_config(id2label={0: "cat", 1: "dog"}, label2id={"dog": 0, "cat": 1}))


@pytest.mark.parametrize("given", [{"id2label": {0: "cat", 1: "dog"}}, {"label2id": {"cat": 0, "dog": 1}}])
def test_label_maps__one_tells_the_other(tiny_config, tiny_model, tmp_path, given):
    tiny_model().save_pretrained(tmp_path)
    models = (
        MAEForImageClassification(tiny_config(**given)),
        MAEForImageClassification.from_pretrained(tmp_path, **given),
    )
    for model in models:
        assert (model.config.id2label, model.config.label2id) == ({0: "cat", 1: "dog"}, {"cat": 0, "dog": 1})


# ----------------------------------------------------------------------------------------------------------------------
# The model


def test_mean_pooling__own_norm_after_the_mean_and_none_before(tiny_config):
    model = MAEForImageClassification(tiny_config(num_labels=5)).eval()
    torch.nn.init.normal_(model.fc_norm.weight)
    tokens = model.mae(PIXELS, output_hidden_states=True).hidden_states[-1]
    expected = F.layer_norm(tokens[:, 1:].mean(dim=1), (32,), model.fc_norm.weight, model.fc_norm.bias, eps=1e-6)
    torch.testing.assert_close(model.pool(PIXELS), expected)


def test_class_token__ignores_the_norm_of_means(tiny_config):
    model = MAEForImageClassification(tiny_config(num_labels=5, pooling="class")).eval()
    torch.testing.assert_close(model.pool(PIXELS), model.mae(PIXELS).last_hidden_state[:, 0])


@pytest.mark.parametrize(
    "fields", [{"pooling": "mean"}, {"pooling": "class"}, {"pooling": "attentive"}, {"mask_tokens_in_encoder": True}]
)
def test_gradients__reach_every_parameter(classifier, fields):
    """Also the position table; and nothing is left without, which several processes could not train."""
    model = classifier(**fields).train()
    model(PIXELS, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen <= {"mae.embeddings.mask_token"}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == frozen
    assert model.mae.embeddings.position_embeddings.grad.abs().sum() > 0


def test_new_classifier__starts_near_zero(tiny_config):
    weight = MAEForImageClassification(tiny_config(num_labels=50)).classifier.weight
    assert weight.std().item() == pytest.approx(2e-5, rel=0.1)


def test_drop_path__rises_over_the_encoder_and_only_there(tiny_config):
    model = MAEForPreTraining(tiny_config(drop_path_rate=0.3, num_hidden_layers=4))
    assert [layer.drop_path.probability for layer in model.mae.layers] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert {layer.drop_path.probability for layer in model.decoder.layers} == {0}


def test_drop_path__drops_whole_images_and_keeps_the_mean():
    drop_path, ones = MAEDropPath(0.25), torch.ones(4000, 3, 2)
    assert drop_path.eval()(ones) is ones
    dropped = drop_path.train()(ones)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("trainable", "layers"), [(0, ()), (1, (1,)), (2, (0, 1))])
def test_freeze_encoder__all_but_the_last_blocks(classifier, trainable, layers):
    model = classifier(pooling="class")
    model.freeze_encoder(trainable)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {"classifier.weight", "classifier.bias"}
    if layers:
        expected |= {"mae.layernorm.weight", "mae.layernorm.bias"}
    expected |= {
        name for name, _ in model.named_parameters() if name.startswith(tuple(f"mae.layers.{n}." for n in layers))
    }
    assert names == expected


def test_freeze_encoder__half_a_block_is_its_mlp(classifier):
    model = classifier()
    model.freeze_encoder(0.5)
    names = {name for name, parameter in model.mae.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 2)[0] for name in names} == {"layers.1.mlp", "layers.1"}
    assert not any("attention" in name or "before" in name for name in names)
    for wrong in (0.3, 3, -1):
        with pytest.raises(ValueError, match=re.escape("a multiple of 0.5 in [0, 2]")):
            model.freeze_encoder(wrong)


# ----------------------------------------------------------------------------------------------------------------------
# From one model to another


def test_loading__a_pretrained_encoder_and_one_line(tiny_model, tmp_path, log):
    source = tiny_model()
    source.save_pretrained(tmp_path)
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert type(model) is MAEForImageClassification
    for name, tensor in model.mae.state_dict().items():
        assert torch.equal(tensor, source.mae.state_dict()[name])
    assert model.mae.embeddings.position_embeddings.requires_grad
    assert set(info["missing_keys"]) == {
        f"{part}.{kind}" for part in ("classifier", "fc_norm") for kind in ("weight", "bias")
    }
    line = "MAEForImageClassification: new, to be trained: classifier, fc_norm; left out of the checkpoint: "
    assert line + "decoder, layernorm." in log()
    assert "LOAD REPORT" not in log()


def test_loading__a_trained_classifier_says_nothing(classifier, tmp_path, log):
    model = classifier()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again(PIXELS).logits, model(PIXELS).logits)
    assert "new" not in log()
    encoder = MAEModel.from_pretrained(tmp_path)
    assert "MAEModel: new, to be trained: layernorm; left out of the checkpoint: classifier, fc_norm." in log()
    assert torch.equal(encoder.layers[0].mlp.fc1.weight, model.mae.layers[0].mlp.fc1.weight)


def test_loading__a_checkpoint_without_its_encoder_is_refused(tiny_model, classifier, tmp_path):
    model = tiny_model()
    decoder = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("decoder.")}
    model.save_pretrained(tmp_path, state_dict=decoder)
    for model_class in (MAEForImageClassification, MAEModel, MAEForPreTraining):
        with pytest.raises(ValueError, match="holds no encoder"):
            model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "load", [MAEForImageClassification, MAEImageProcessor, MAEConfig], ids=lambda load: load.__name__
)
def test_loading__says_that_there_is_no_such_folder(load, tmp_path):
    for name in (tmp_path / "nowhere", "./runs/nowhere", "runs/pretrained/nowhere"):  # no name on the Hub looks so
        with pytest.raises(OSError, match="^There is no folder '.*nowhere'.$"):
            load.from_pretrained(name)
    with pytest.raises(
        OSError, match="^There is no folder 'runs/pretrained', and the Hub has given no model of this name: "
    ):
        load.from_pretrained("runs/pretrained")


@pytest.mark.parametrize("load", [MAEForImageClassification, MAEImageProcessor, MAEConfig])
def test_loading__of_a_file_says_that_a_model_is_a_folder(load, tmp_path):
    """It was said that the weights are no valid JSON."""
    MAEForImageClassification(MAEConfig.from_preset("tiny", num_hidden_layers=1, hidden_size=12)).save_pretrained(
        tmp_path
    )
    with pytest.raises(OSError, match=r"model.safetensors is a file, and a model is a folder .*`hf-mae convert` makes"):
        load.from_pretrained(tmp_path / "model.safetensors")


def test_loading__of_a_folder_without_a_model_gives_no_default(tmp_path):
    with pytest.raises(OSError, match="holds no model: there is no config.json"):
        MAEConfig.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="holds no model: there is no config.json"):
        MAEImageProcessor.from_pretrained(tmp_path)


def test_loading__half_an_encoder_is_reported_by_name(tiny_model, tmp_path, log):
    model = tiny_model()
    first = {name: tensor for name, tensor in model.state_dict().items() if "mae.layers.1" not in name}
    model.save_pretrained(tmp_path, state_dict=first)
    _, info = MAEForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert "mae.layers.1.mlp.fc1.weight" in info["missing_keys"]
    assert "mae.layers.1.mlp.fc1.weight" in log()


# ----------------------------------------------------------------------------------------------------------------------
# Probing


def test_linear_probe__trains_the_classifier_alone(classifier):
    model = classifier(drop_path_rate=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe = LinearProbe(model).train()
    labels = torch.tensor([0, 1, 2, 3])
    optimizer = LARS(probe.classifier.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss = probe(PIXELS, labels).loss
        loss.backward()
        optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.mae.layers[1].drop_path.training
    assert {name for name, parameter in probe.named_parameters() if parameter.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    expected = probe.eval()(PIXELS).logits
    torch.testing.assert_close(probe.to_classifier()(PIXELS).logits, expected, rtol=1e-4, atol=1e-5)


def test_fold_batch_norm():
    norm, linear = torch.nn.BatchNorm1d(6, eps=1e-6, affine=False), torch.nn.Linear(6, 3)
    for _ in range(3):
        norm(torch.randn(50, 6) * 3 + 1)
    weight, bias = fold_batch_norm(linear.weight, linear.bias, norm.running_mean, norm.running_var)
    features = torch.randn(5, 6)
    torch.testing.assert_close(F.linear(features, weight, bias), linear(norm.eval()(features)))


def test_train_linear_probes__separable_classes_and_each_rate_by_itself():
    labels = torch.arange(600) % 3
    features = torch.randn(600, 8) + 4 * F.one_hot(labels, 8)
    settings = {"num_labels": 3, "num_epochs": 10, "batch_size": 64}
    norm, (slow, fast) = train_linear_probes(features, labels, base_learning_rates=[1e-4, 100], **settings)
    accuracies = [(probe(norm(features)).argmax(dim=1) == labels).float().mean() for probe in (slow, fast)]
    assert accuracies[1] > 0.95 > accuracies[0]
    _, (alone,) = train_linear_probes(features, labels, base_learning_rates=[1e-4], **settings)
    assert torch.equal(alone.weight, slow.weight)  # what others learn does not reach it


def test_train_linear_probes__are_as_those_trained_one_by_one():
    """With all images in each batch, by LARS at the rates of the paper's schedule: 3 of 15 epochs are a warm-up."""
    features, labels = torch.randn(64, 8) * 3 + 1, torch.arange(64) % 3
    settings = {"num_epochs": 15, "batch_size": 1000, "warmup_epochs": 10, "weight_decay": 0.1, "seed": 5}
    norm, probes = train_linear_probes(features, labels, 3, [0.4, 20.0], **settings)
    for base_learning_rate, found in zip([0.4, 20.0], probes, strict=True):
        torch.manual_seed(5)
        one, own_norm = probe_classifier(8, 3), torch.nn.BatchNorm1d(8, eps=1e-6, affine=False)
        optimizer = LARS(one.parameters(), lr=0.0, weight_decay=0.1)
        for step in range(15):
            optimizer.param_groups[0]["lr"] = base_learning_rate * 64 / 256 * learning_rate_at(step, 15, 3, 1.0)
            optimizer.zero_grad()
            F.cross_entropy(one(own_norm(features)), labels).backward()
            optimizer.step()
        torch.testing.assert_close(found.weight, one.weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.bias, one.bias, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(norm.running_var, own_norm.running_var)
