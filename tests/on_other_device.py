# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What must hold on a device that is not the CPU. test_devices.py runs it with pytest in a process of its own."""

import shutil
from types import SimpleNamespace

import numpy as np
import other_device
import pytest
import torch
from conftest import SMALL, TINY, metrics, same_tensors

from hf_mae import (
    MAEBackbone,
    MAEConfig,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEImageProcessor,
    MAEModel,
    pretrain,
)
from hf_mae.data.augmentation import BatchAugmentation
from hf_mae.data.datasets import PretrainingDataset
from hf_mae.data.masks import Pair, sample_pairs
from hf_mae.data.sources import open_images
from hf_mae.data.windows import PictureStrips
from hf_mae.evaluation.attentive import AttentiveSettings, PatchTokens, choose_attentive_probe, with_attentive_probe
from hf_mae.evaluation.dense import DenseSettings, dense_figures
from hf_mae.evaluation.encoders import FrozenEncoder
from hf_mae.evaluation.features import compute_features, compute_patch_maps
from hf_mae.evaluation.label_free import label_free_figures
from hf_mae.evaluation.linear import LinearProbe, train_linear_probes
from hf_mae.evaluation.monitoring import Evaluation, knn_accuracy
from hf_mae.evaluation.scoring import ScoredBatch, Scorer, patch_losses
from hf_mae.evaluation.segmentation_metrics import ConfusionMatrix
from hf_mae.evaluation.visualization import anomaly_sheet, attention_sheet, reconstruction_sheet
from hf_mae.finetuning.classification import ClassificationArguments, ClassificationTrainer, finetune_command
from hf_mae.finetuning.segmentation_maps import blended_logits
from hf_mae.modeling import modeling_mae
from hf_mae.pretraining.run import PretrainingRun
from hf_mae.training.checkpointing import load_optimizer, save_checkpoint
from hf_mae.training.optimization import LARS, build_optimizer, layer_decay_parameter_groups, parameter_groups
from hf_mae.training.step_guard import StepGuard

other_device.register()


@pytest.fixture(autouse=True)
def device():
    with other_device.in_use() as device:
        yield device


@pytest.fixture
def images(device):
    """Pixel values of four images, on the device."""
    return torch.randn(4, 3, 32, 32).to(device)


@pytest.fixture
def model(device):
    """Makes a small pre-training model on the device."""
    return lambda **fields: MAEForPreTraining(MAEConfig(**{**TINY, **fields})).to(device)


def tensors_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


# ----------------------------------------------------------------------------------------------------------------------
# The device itself


def test_device__is_one_of_its_own(device):
    tensor = torch.ones(2, device=device)
    assert tensor.device == device != torch.device("cpu")
    assert (tensor + 1).sum().cpu() == 4
    with pytest.raises(RuntimeError, match="two devices"):
        tensor + torch.ones(2)
    assert (torch.ones(()) + tensor).device == device
    with pytest.raises(RuntimeError, match="two devices"):
        torch.zeros(()).add_(tensor.sum())
    with pytest.raises(RuntimeError, match="two devices"):
        torch.zeros(3)[[0, 1]] = tensor
    with pytest.raises(RuntimeError, match="two devices"):
        torch.stack([tensor.sum(), torch.ones(())])
    tensor[torch.tensor([1])] = 5.0
    assert tensor.cpu().tolist() == [1, 5]


def test_device__reading_a_value_waits(device):
    total = torch.ones(2).to(device, non_blocking=True).sum()
    assert not other_device.waits
    assert total.item() == 2
    assert sum(other_device.waits.values()) == 1


def test_device__a_copy_waits_unless_it_may_go_on_alone(device):
    tensor = torch.ones(2).to(device, non_blocking=True)
    assert not other_device.waits
    tensor.to(device)
    assert not other_device.waits
    torch.ones(2).to(device)
    assert sum(other_device.waits.values()) == 1
    tensor[torch.tensor([1])]  # whose index is copied first
    assert sum(other_device.waits.values()) == 2


# ----------------------------------------------------------------------------------------------------------------------
# Models


CLASSES = [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone]


@pytest.mark.parametrize("model_class", CLASSES)
def test_model__same_output_as_on_the_cpu(device, model_class):
    """And no tensor of model or output is left on the CPU."""
    model, pixels, noise = model_class(MAEConfig(**TINY)).eval(), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    given = {"noise": noise} if model_class is MAEForPreTraining else {}
    with torch.no_grad():
        expected = model(pixels, **given)[0]
    model = model.to(device)
    output = model(pixels.to(device), **{name: value.to(device) for name, value in given.items()})[0]
    for result, value in zip(output, expected, strict=True) if model_class is MAEBackbone else [(output, expected)]:
        assert result.device == device
        torch.testing.assert_close(result.cpu(), value)
    assert {tensor.device for tensor in tensors_of(model)} == {device}


OPTIONS = [
    {},
    {"norm_pix_loss": True},
    {"mask_sampling": "block"},
    {"mask_sampling": "grid"},
    {"mask_block_size": 2},
    {"mask_tokens_in_encoder": True},
    {"prediction_ratio": 0.5},
    {"mask_ratio": 0.0},
    {"drop_path_rate": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_step__does_not_wait_for_the_device(device, model, options):
    """From bytes to new weights; only reading the log waits, once."""
    model = model(**options).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-3, fused=True)
    guard, processor = StepGuard(optimizer, max_grad_norm=1.0), MAEImageProcessor.for_image_size(32)
    before = [parameter.detach().cpu().clone() for parameter in model.parameters()]
    stored, noise = (torch.rand(4, 3, 32, 32) * 255).byte().to(device), torch.rand(4, 16).to(device)
    other_device.waits.clear()
    for given in ({"noise": noise}, {}):  # a mask from the loader, and one drawn by the model
        loss = model(processor.rescale_and_normalize(stored), **given).loss
        loss.backward()
        guard.step(loss)
        optimizer.zero_grad()
    assert not other_device.waits
    values, longest_row = guard.read()
    assert other_device.waits == {"tolist": 1}
    assert (values["skipped"], longest_row) == (0, 0)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    changed = [not torch.equal(old, new.cpu()) for old, new in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * sum(trained)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_guard__leaves_out_a_bad_step_on_the_device(model, images, name):
    model = model().train()
    optimizer = build_optimizer(name, model, 1e-3, 0.05, (0.9, 0.95))
    guard, kept = StepGuard(optimizer), []
    for factor in (1.0, float("nan"), 1.0):
        before = [parameter.detach().cpu().clone() for parameter in guard.parameters]
        other_device.waits.clear()
        loss = model(images).loss * factor
        loss.backward()
        guard.step(loss)
        optimizer.zero_grad()
        assert not other_device.waits
        kept.append(all(map(torch.equal, before, (parameter.detach().cpu() for parameter in guard.parameters))))
    assert kept == [False, True, False]
    assert guard.read()[0]["skipped"] == 1


@pytest.mark.parametrize("pooling", ["mean", "attentive"])
def test_classifier__trains(device, images, pooling):
    config = MAEConfig(**TINY, num_labels=5, drop_path_rate=0.1, pooling=pooling)
    classifier = MAEForImageClassification(config).train().to(device)
    optimizer = torch.optim.AdamW(layer_decay_parameter_groups(classifier, 1e-3, 0.05, 0.75), fused=True)
    loss = classifier(images, labels=torch.arange(4).to(device)).loss
    loss.backward()
    optimizer.step()
    assert loss.device == device


def test_position_tables__are_resized_on_the_device(device, model):
    model = model()
    model.resize_position_embeddings(64)
    model.resize_patches(16)
    assert {tensor.device for tensor in tensors_of(model)} == {device}
    assert model(torch.randn(1, 3, 64, 64).to(device)).loss.isfinite()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_checkpoint__optimizer_state_comes_back_to_the_device(device, model, images, tmp_path, name):
    model = model().train()
    optimizer = build_optimizer(name, model, 1e-3, 0.05, (0.9, 0.95))
    model(images).loss.backward()
    optimizer.step()
    checkpoint = save_checkpoint(tmp_path, 1, model, MAEImageProcessor.for_image_size(32), optimizer, {"recipe": {}})
    loaded = MAEForPreTraining.from_pretrained(checkpoint).train().to(device)
    restored = build_optimizer(name, loaded, 1e-3, 0.05, (0.9, 0.95))
    load_optimizer(checkpoint, loaded, restored)
    assert {value.device for state in restored.state.values() for value in state.values()} == {device}
    loaded(images).loss.backward()
    restored.step()


# ----------------------------------------------------------------------------------------------------------------------
# Images, evaluation, probing


def test_processor__bytes_and_floats_on_the_device(device):
    """Same pixel values as on the CPU, whether an image is there already or is to be moved."""
    processor = MAEImageProcessor.for_image_size(32)
    smooth = torch.linspace(0, 1, 3 * 50 * 60).reshape(3, 50, 60)
    for image in ((smooth * 255).byte(), smooth):
        expected = processor(image, return_tensors="pt").pixel_values
        moved = processor(image, return_tensors="pt", device=device).pixel_values
        there = processor(image.to(device), return_tensors="pt").pixel_values
        assert moved.device == there.device == device
        # Bytes may be rounded to another of the 256 levels, and the smallest deviation of a channel is 0.224.
        torch.testing.assert_close(moved.cpu(), expected, atol=1.1 / 255 / 0.224, rtol=0)
        assert torch.equal(there.cpu(), moved.cpu())


def test_processor__no_data_and_ranges_on_the_device(device):
    """And the boxes of a detector in the pixels of pictures."""
    processor = MAEImageProcessor.for_image_size(32, nodata=700, value_range=[[0, 1000], [0, 2000], [0, 4000]])
    image = torch.arange(3 * 32 * 32, dtype=torch.int32).reshape(3, 32, 32)
    image[:, 16, 16:18] = 700
    expected = processor(image, return_tensors="pt", return_valid=True)
    there = processor(image.to(device), return_tensors="pt", return_valid=True)
    assert not expected.valid.all()
    for name, values in expected.items():
        assert there[name].device == device
        torch.testing.assert_close(there[name].cpu(), values)
    processor = MAEImageProcessor.for_image_size(32)
    assert processor(image.byte().to(device), return_tensors="pt", return_valid=True).valid.device == device
    found = SimpleNamespace(logits=torch.randn(1, 4, 2), pred_boxes=torch.rand(1, 4, 4))
    there = SimpleNamespace(**{name: values.to(device) for name, values in vars(found).items()})
    given = {"threshold": 0.5, "target_sizes": [(100, 200)]}
    ((ours,), (expected,)) = (processor.post_process_object_detection(each, **given) for each in (there, found))
    torch.testing.assert_close({name: values.cpu() for name, values in ours.items()}, expected)


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"erasing": 1.0}], ids=str)
def test_augmentation__same_as_on_the_cpu(device, settings):
    pytest.importorskip("kornia")
    augmentation = BatchAugmentation(MAEImageProcessor.for_image_size(32), 3, **settings)
    batch = {"pixel_values": (torch.rand(4, 3, 32, 32) * 255).byte(), "labels": torch.tensor([0, 1, 2, 0])}
    torch.manual_seed(0)
    expected = augmentation(**batch)
    torch.manual_seed(0)
    ours = augmentation(**{name: values.to(device) for name, values in batch.items()})
    assert {values.device for values in ours.values()} == {device}
    torch.testing.assert_close({name: values.cpu() for name, values in ours.items()}, expected)


def test_reconstruct__images_come_back_to_the_host(device, model, images):
    output = model(norm_pix_loss=True).eval().reconstruct(images)
    assert output.mask.device == device
    assert len(MAEImageProcessor.for_image_size(32).post_process_reconstruction(output.reconstruction)) == 4


def test_evaluation__same_figures_as_on_the_cpu(device):
    """Loss, nearest neighbours, features of twins and trivial predictors of the embedded images."""
    model = MAEForPreTraining(MAEConfig(**{**TINY, "num_channels": 1, "image_size": 28, "patch_size": 7}))
    processor = MAEImageProcessor.for_image_size(28, image_mean=[0.5], image_std=[0.5])
    train, test = (open_images(None, split) for split in ("train", "test"))
    crops = PretrainingDataset(train, (28, 28), 16, num_channels=1)
    evaluation = Evaluation(train, test, processor, max_images=100, crops=crops)

    def figures(model):
        features = label_free_figures(*evaluation.encode_twins(model))
        return {**evaluation(model), **evaluation.trivial_losses(model), **features}

    expected = figures(model)
    assert figures(model.to(device)) == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_knn__same_accuracy_as_on_the_cpu(device):
    features, labels = torch.randn(60, 8), torch.arange(60) % 3
    expected = knn_accuracy(features, labels, num_neighbors=5)
    assert knn_accuracy(features.to(device), labels.to(device), num_neighbors=5) == expected


def test_probes__train_on_stored_features(device):
    features, labels = torch.randn(64, 8).to(device), (torch.arange(64) % 3).to(device)
    batch_norm, (probe, _) = train_linear_probes(features, labels, 3, [0.1, 1], num_epochs=2, batch_size=16)
    assert {tensor.device for tensor in (*tensors_of(batch_norm), *tensors_of(probe))} == {device}


def test_probe__trains_and_becomes_a_classifier(device, images):
    probe = LinearProbe(MAEForImageClassification(MAEConfig(**TINY, num_labels=3))).train().to(device)
    optimizer = LARS(probe.classifier.parameters(), lr=0.1)
    probe(images, labels=torch.tensor([0, 1, 2, 0]).to(device)).loss.backward()
    optimizer.step()
    assert probe.to_classifier()(images).logits.device == device


@pytest.mark.parametrize("memory", [0, 2**20])
def test_attentive_probes__train_on_the_device(device, images, memory):
    """Whether the tokens are in memory or encoded in each step."""
    model = MAEForImageClassification(MAEConfig(**TINY, num_labels=3, pooling="class")).eval().to(device)
    dataset = [{"pixel_values": image.cpu(), "label": torch.tensor(number % 3)} for number, image in enumerate(images)]
    tokens = PatchTokens(lambda pixels: model.mae(pixels).last_hidden_state[:, 1:], dataset, device, memory)
    settings = AttentiveSettings(num_epochs=2)
    chosen = choose_attentive_probe(tokens, 3, torch.tensor([1, 3]), [1e-3, 1e-2], settings)
    assert {tensor.device for tensor in tensors_of(chosen.probe)} == {device}
    assert with_attentive_probe(model, chosen.probe)(images).logits.device == device


def test_dense_probes__same_figures_as_on_the_cpu(device):
    processor = MAEImageProcessor.for_image_size(56, num_channels=1, image_mean=[0.0], image_std=[1.0])

    def figures(where):
        def encode(pixels):
            assert pixels.device == torch.device(where)
            return [torch.stack([pixels[:, 0, ::8, ::8], pixels[:, 0, 4::8, 4::8]], dim=-1)]

        settings = DenseSettings(num_neighbors=(1, 3), strengths=(0.1,), device=where)
        return dense_figures(encode, sample_pairs("train")[:10], sample_pairs("val")[:5], processor, settings)[0]

    assert figures(device) == pytest.approx(figures("cpu"), abs=2e-3)


def test_patch_losses__same_as_on_the_cpu(model, images):
    model, valid = model().eval(), torch.rand(4, 32, 32) > 0.002
    ours = patch_losses(model, images, num_masks=2, valid=valid.to(images.device))
    assert ours.device == images.device
    expected = patch_losses(model.cpu(), images.cpu(), num_masks=2, valid=valid)
    torch.testing.assert_close(ours.cpu(), expected, equal_nan=True)


def test_features_and_scores__same_as_on_the_cpu(device, model):
    """Of images that are on the CPU, as loaders and processors give them."""
    model, processor = model().eval(), MAEImageProcessor.for_image_size(32)
    images, large = torch.randn(2, 3, 32, 32), torch.randn(1, 3, 48, 64)
    batch = ScoredBatch(["a", "b", "c"], torch.tensor([True, False, True]), images, torch.rand(2, 32, 32) > 0.002, [])

    def found(where):
        args = SimpleNamespace(device=where, num_masks=2, seed=0, mask_ratio=0.75)
        scores = Scorer(model, args)(batch)  # moves the model
        (encoded,) = FrozenEncoder(model, processor, "")(images)
        features = compute_features(model.mae, images, ["pooler", "patches"]) | compute_patch_maps(model.mae, large)
        features |= {"encoded": encoded.patches}
        assert {values.device for values in features.values()} == {torch.device(where)}
        return {**scores, **{name: values.cpu() for name, values in features.items()}}

    expected = found("cpu")
    for name, values in found(device).items():
        torch.testing.assert_close(values, expected[name], equal_nan=True)


@pytest.mark.parametrize("draw", [reconstruction_sheet, anomaly_sheet, attention_sheet])
def test_sheets__same_as_on_the_cpu(model, images, draw):
    model, processor = model().eval(), MAEImageProcessor.for_image_size(32)
    given = {"noise": torch.rand(4, 16)} if draw is reconstruction_sheet else {}
    ours = draw(model, processor, images.cpu(), **{name: values.to(images.device) for name, values in given.items()})
    expected = draw(model.cpu(), processor, images.cpu(), **given)
    np.testing.assert_allclose(np.array(ours, float), np.array(expected, float), atol=1)  # the last bit of a byte


def test_segmentation_maps__same_as_on_the_cpu(device):
    """Blended of the windows of a picture, and counted."""

    class Segmenter(torch.nn.Conv2d):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=super().forward(pixel_values))

    model = Segmenter(1, 3, 4, stride=4)
    size = {"height": 32, "width": 32}
    processor = MAEImageProcessor(size=size, num_channels=1, do_center_crop=False, image_mean=[0.0], image_std=[1.0])
    picture = (np.random.default_rng(0).random((50, 40)) * 255).astype(np.uint8)
    strips = PictureStrips([Pair([picture], 0, None, "")], processor, (32, 32), 2 / 3)

    def figures(where):
        batches = [[strips[index] for index in batch] for batch in strips.batches(2)]
        found = [logits for _, _, logits in blended_logits(model.to(where), batches, strips.grids, 2)]
        assert {logits.device for logits in found} == {torch.device(where)}
        classes = torch.cat(found, dim=1).argmax(dim=0)
        counted = ConfusionMatrix(3, where)
        counted.add(classes, (torch.arange(50 * 40) % 3).reshape(50, 40).to(where))
        return counted.figures()[0]

    assert figures(device) == pytest.approx(figures("cpu"))


def test_whole_reconstructions__same_as_on_the_cpu(model, images):
    model = model().eval()
    ours = model.reconstruct_all(images)
    assert {each.device for each in ours.values()} == {images.device}
    expected = model.cpu().reconstruct_all(images.cpu())
    for name, values in ours.items():
        torch.testing.assert_close(values.cpu(), expected[name])


# ----------------------------------------------------------------------------------------------------------------------
# A whole run


def test_pretrain__runs_from_images_to_the_finished_folder(device, tmp_path, monkeypatch):
    """With evaluation and checkpoints; a run that goes on from a checkpoint gives the same weights."""
    waits, take_step = [], PretrainingRun.take_step

    def counted(run):
        other_device.waits.clear()
        take_step(run)
        waits.append(sum(other_device.waits.values()))

    monkeypatch.setattr(PretrainingRun, "take_step", counted)
    options = {"max_steps": 4, "effective_batch_size": 16, "per_device_train_batch_size": 8, "config_overrides": SMALL}
    options.update(logging_steps=2, save_steps=2, eval_steps=4, eval_images=40, dataloader_num_workers=0, nodata=3)
    result = pretrain(None, tmp_path / "out", **options)
    assert waits == [0] * 4
    assert {tensor.device for tensor in tensors_of(result.model)} == {device}
    assert list(metrics(tmp_path / "out", "loss")) == [2, 4]
    assert set(metrics(tmp_path / "out", "eval_loss")) == {4}
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-4")
    pretrain(None, tmp_path / "again", **options)
    assert len(waits) == 6
    assert same_tensors("model.safetensors", tmp_path / "out", tmp_path / "again")


def test_fine_tuning__runs_with_evaluation_and_checkpoints(device, short, tmp_path, monkeypatch):
    """A loss with weights of classes does not wait for the device."""
    waits, compute_loss = [], ClassificationTrainer.compute_loss

    def counted(trainer, model, inputs, *args, **kwargs):
        assert {values.device for values in inputs.values()} == {device}
        other_device.waits.clear()
        loss = compute_loss(trainer, model, inputs, *args, **kwargs)
        if model.training:
            waits.append(sum(other_device.waits.values()))
        return loss

    monkeypatch.setattr(ClassificationTrainer, "compute_loss", counted)
    arguments = [*short, "--max_steps", 2, "--disable_tqdm", "true", "--class_weights", "balanced"]
    finetune_command(list(map(str, arguments)), prog="hf-mae")
    assert waits == [0, 0]
    assert (tmp_path / "out" / "eval_results.json").exists()


def test_fine_tuning__numbers_are_scaled_on_the_device(device, images, tmp_path):
    labels = np.arange(8, dtype=np.float32).reshape(4, 2)
    model = MAEForImageClassification(MAEConfig(**TINY, num_labels=2, problem_type="regression"))
    augmentation = BatchAugmentation(MAEImageProcessor.for_image_size(32), 2)
    args = ClassificationArguments(output_dir=str(tmp_path), model_name_or_path="x", eval_strategy="no")
    trainer = ClassificationTrainer(model=model, args=args, augmentation=augmentation, train_labels=labels)
    given = torch.from_numpy(labels).to(device)
    other_device.waits.clear()
    loss = trainer.compute_loss(trainer.model.train(), {"pixel_values": images, "labels": given})
    assert loss.device == device
    assert not other_device.waits
    trainer.finish_model()
    predicted = trainer.model.eval()(images).logits.cpu()
    assert (predicted - predicted.mean(dim=0)).abs().max() < 10  # of numbers around 3 and 4
    torch.testing.assert_close(predicted.mean(dim=0), torch.tensor([3.0, 4.0]), atol=3, rtol=0)


# ----------------------------------------------------------------------------------------------------------------------
# Faults put in on purpose: each is one that a GPU would show, and that the CPU would not


def test_fault__a_tensor_of_the_model_left_on_the_cpu(model, images):
    model = model()
    table = model.mae.embeddings.position_embeddings
    del model.mae.embeddings.position_embeddings
    model.mae.embeddings.position_embeddings = table.detach().cpu()
    with pytest.raises(RuntimeError, match="two devices"):
        model(images)


def test_fault__a_mask_made_on_the_cpu(model, images, monkeypatch):
    choose = modeling_mae.choose_mask
    monkeypatch.setattr(modeling_mae, "choose_mask", lambda *args: tuple(ids.cpu() for ids in choose(*args)))
    with pytest.raises(RuntimeError, match="two devices"):
        model().train()(images)


@pytest.mark.parametrize("name", ["noise", "bool_masked_pos", "ids_keep"])
def test_fault__a_mask_given_on_the_cpu(model, images, name):
    masks = {"noise": torch.rand(4, 16), "bool_masked_pos": torch.arange(16).expand(4, -1) > 3}
    mask = masks.get(name, torch.arange(4).expand(4, -1))
    with pytest.raises(ValueError, match=f"`{name}` is on cpu and the images are on elsewhere:0"):
        model()(images, **{name: mask})


def test_fault__a_value_read_in_the_step(model, images):
    model = model().train()
    other_device.waits.clear()
    loss = model(images).loss
    assert not other_device.waits
    loss.item()
    assert other_device.waits
