# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The checkpoints in model_cards/ are what their cards say."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForPreTraining
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_mae.data.sources import open_images
from hf_mae.evaluation.monitoring import knn_accuracy

ROOT = Path(__file__).parent.parent
RELEASED = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))
FASHION = ROOT / "model_cards" / "mae-fashion-mnist"


@pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: folder.name)
def test_card_and_record__are_complete(folder):
    card, record = ModelCard.load(folder / "README.md"), json.loads((folder / "run.json").read_text())
    assert card.data.license
    assert card.data.datasets
    assert card.data.eval_results
    assert record["commit"]
    assert "dirty" not in record["commit"]
    for name in ("metrics.jsonl", "recipe.yaml", "reconstructions.png", "loss.png", "preprocessor_config.json"):
        assert (folder / name).exists()
    assert record["command"] in card.text
    assert all((ROOT / path).exists() for path in re.findall(r"(?:experiments|records)/\w+", card.text))
    assert not any(path.suffix == ".py" for path in folder.iterdir())  # a push brings the code of the package
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6


@pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: folder.name)
def test_card__has_the_figures_of_the_probe(folder):
    card = ModelCard.load(folder / "README.md")
    runs = ROOT / "experiments" / folder.name.removeprefix("mae-").replace("-", "_")
    probe = json.loads((runs / "probe" / "run.json").read_text())["metrics"]
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["k-NN accuracy of the features (k = 20)"] == pytest.approx(probe["knn_accuracy"], abs=1e-4)
    assert values["accuracy of a linear probe"] == pytest.approx(probe["linear_accuracy"], abs=1e-4)


def processed(split, step):
    """Returns pixel values and labels of every `step`-th image."""
    images, processor = open_images(split=split), AutoImageProcessor.from_pretrained(FASHION)
    pictures = [images[n] for n in range(0, len(images), step)]
    return processor(pictures, return_tensors="pt").pixel_values, torch.from_numpy(images.labels[::step])


@pytest.mark.slow
@torch.no_grad()
def test_fashion_mnist__loads_offline_and_knows_clothes():
    encoder = AutoModel.from_pretrained(FASHION).eval()
    assert encoder.dtype == torch.float32
    (pixels, labels), (queries, query_labels) = (processed(split, step=3) for split in ("train", "test"))
    features, query_features = (encoder(each).pooler_output for each in (pixels, queries))
    accuracy = knn_accuracy(features, labels, query_features, query_labels)
    assert accuracy > 0.78  # random weights: 0.53; neighbours are sought among 1,000 images, for the card among 60,000


@pytest.mark.slow
@torch.no_grad()
def test_fashion_mnist__predicts_hidden_patches():
    model = AutoModelForPreTraining.from_pretrained(FASHION).eval()
    pixels, _ = processed("test", step=1)
    noise = torch.rand(len(pixels), 49, generator=torch.Generator().manual_seed(0))
    loss = model(pixels, noise=noise).loss
    logged = json.loads((FASHION / "run.json").read_text())["metrics"]["eval_loss"]  # on all 10,000 test images
    assert loss.item() == pytest.approx(logged, rel=0.05)
    shuffled = model(pixels, noise=noise.roll(1, dims=0)).logits  # other patches hidden: other predictions
    assert not torch.allclose(shuffled, model(pixels, noise=noise).logits, atol=0.1)


@pytest.mark.slow
@torch.no_grad()
def test_fashion_mnist__has_the_losses_that_the_page_on_curation_states():
    """The page had figures of another checkpoint, without a record."""
    page = " ".join((ROOT / "docs" / "curation.md").read_text(encoding="utf-8").split())
    mean, black, *shares = re.search(
        r"without in ([\d.]+) % of all pairs.* it is (\d+) %, and .* pixels\) (\d+) %.*"
        r"embedded test images is ([\d.]+), and the loss of a black image is ([\d.]+)\.",
        page,
    ).group(4, 5, 1, 2, 3)
    model, processor = (
        AutoModelForPreTraining.from_pretrained(FASHION).eval(),
        AutoImageProcessor.from_pretrained(FASHION),
    )

    def losses(images):
        return model.reconstruct_all(processor(images, return_tensors="pt").pixel_values).patch_losses.mean(dim=(1, 2))

    source, random = open_images(split="test"), np.random.default_rng(0)
    images = [np.array(source[index]) for index in range(0, 1000, 2)]
    found = losses(images)
    assert found.mean().item() == pytest.approx(float(mean), abs=0.01)
    assert losses([np.zeros((28, 28), dtype=np.uint8)]).item() == pytest.approx(float(black), abs=0.001)
    noisy = [np.clip(image + random.normal(0, 25, image.shape), 0, 255).astype(np.uint8) for image in images]
    turned = [image[::-1].copy() for image in images]
    blurred = [np.array(PIL.Image.fromarray(image).filter(PIL.ImageFilter.BoxBlur(1))) for image in images]
    for changed, share in zip((noisy, turned, blurred), shares, strict=True):
        higher = (losses(changed)[:, None] > found).float().mean().item()
        assert higher == pytest.approx(float(share) / 100, abs=0.015)
