# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import pytest

from hf_mae.training.optimization import (
    default_effective_batch_size,
    learning_rate_at,
    parameter_groups,
    scaled_learning_rate,
)


def test_learning_rate__rises_and_falls_once():
    rates = [learning_rate_at(step, 100, 10, 1.0) for step in range(101)]
    assert rates[0] == 0
    assert rates[5] == 0.5
    assert max(rates) == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate_at(0, 10, 0, 1.0) == 1.0
    assert scaled_learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)


def test_effective_batch__follows_from_the_images_alone():
    sizes = {10: 32, 1000: 32, 3000: 128, 50_000: 2048, 1_281_167: 4096}
    assert {images: default_effective_batch_size(images) for images in sizes} == sizes


def test_parameter_groups__decay_all_but_one_dimensional_tensors(tiny_model):
    model = tiny_model()
    decayed, others = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight", "cls_token", "mask_token"}
    assert all(p.ndim == 1 for p in others["params"])
    assert sum(p.requires_grad for p in model.parameters()) == len(decayed["params"]) + len(others["params"])
