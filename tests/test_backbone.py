# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The backbone: which maps, where each patch goes, the pyramid, and what is refused."""

import pytest
import torch
from transformers import AutoBackbone

from hf_mae import MAEBackbone, MAEConfig


@pytest.fixture
def backbone(tiny_config):
    """Makes a small backbone in evaluation mode; fields of the configuration by keyword."""
    return lambda **fields: MAEBackbone(tiny_config(**fields)).eval()


def test_maps__are_the_tokens_of_the_chosen_blocks_in_their_places(backbone):
    model = backbone(out_indices=[0, 1, 2])
    pixels = torch.randn(2, 3, 24, 40)
    maps = model(pixels).feature_maps
    states = model.mae(pixels, output_hidden_states=True).hidden_states
    for feature_map, state in zip(maps, states, strict=True):
        assert feature_map.shape == (2, 32, 3, 5)
        tokens = model.mae.layernorm(state)
        torch.testing.assert_close(feature_map[:, :, 2, 3], tokens[:, 1 + 2 * 5 + 3])
    torch.testing.assert_close(maps[-1][:, :, 0, 0], model.mae(pixels).last_hidden_state[:, 1])


def test_maps__depend_on_what_is_in_their_place(backbone):
    """A change of one patch changes the stem's map there and nowhere else."""
    model = backbone(out_features=["stem", "stage2"], apply_layernorm=False)
    pixels = torch.randn(1, 3, 32, 32)
    changed = pixels.clone()
    changed[:, :, 8:16, 24:32] += 1
    differs = [
        (a != b).any(dim=1)[0] for a, b in zip(model(pixels).feature_maps, model(changed).feature_maps, strict=True)
    ]
    assert differs[0].nonzero().tolist() == [[1, 3]]
    assert differs[1].all()


def test_stages__default_to_the_last_and_follow_the_depth(backbone, tiny_model, tmp_path):
    assert backbone().out_features == ["stage2"]
    assert backbone(out_features=["stem", "stage1"]).out_indices == [0, 1]
    assert backbone(out_indices=[-1]).channels == [32]
    tiny_model().save_pretrained(tmp_path)
    assert MAEBackbone.from_pretrained(tmp_path, num_hidden_layers=1).out_features == ["stage1"]


def test_stages__are_chosen_after_depth_and_pyramid_whatever_the_order(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = MAEBackbone.from_pretrained(tmp_path, out_indices=[1, 3], feature_pyramid_size=8)
    assert model.out_features == ["p3", "p5"]
    assert MAEConfig.from_pretrained(tmp_path, out_features=["stage4"], num_hidden_layers=4).out_indices == [4]


def test_stages__are_saved_when_chosen(backbone, tmp_path):
    backbone(out_indices=[1, 2]).save_pretrained(tmp_path)
    assert MAEBackbone.from_pretrained(tmp_path).out_features == ["stage1", "stage2"]
    assert "out_features" not in MAEConfig().to_dict()


def test_without_final_norm(backbone):
    model = backbone(apply_layernorm=False)
    pixels = torch.randn(1, 3, 32, 32)
    state = model.mae(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model(pixels).feature_maps[0], state[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    assert not any("mae.layernorm." in name for name, _ in model.named_parameters())  # no parameter is left unused


def test_tokens__for_heads_that_reshape_themselves(backbone):
    model = backbone(reshape_hidden_states=False)
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(pixels).feature_maps[0], model.mae(pixels).last_hidden_state)


def test_pyramid__four_scales_of_the_last_map(backbone):
    model = backbone(feature_pyramid_size=12)
    pixels = torch.randn(1, 3, 64, 96)
    maps = model(pixels).feature_maps
    assert [tuple(level.shape[1:]) for level in maps] == [(12, 32, 48), (12, 16, 24), (12, 8, 12), (12, 4, 6)]
    assert (model.out_features, model.channels) == (["p2", "p3", "p4", "p5"], [12] * 4)
    sum(level.sum() for level in maps).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    # Levels 2 to 4 alone, as detectors want them
    torch.testing.assert_close(backbone_like(model, out_features=["p3", "p5"])(pixels).feature_maps, (maps[1], maps[3]))
    assert [tuple(level.shape[2:]) for level in model(torch.randn(1, 3, 8, 24)).feature_maps][-1] == (1, 2)


def backbone_like(model, **fields):
    other = MAEBackbone(MAEConfig.from_dict(model.config.to_dict() | fields)).eval()
    there = other.state_dict()  # of a pyramid only the levels that are asked for
    other.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in there})
    return other


def test_pyramid__each_scale_lies_where_the_image_does(backbone):
    """A change in the right lower corner moves the maps there more than in the left upper one."""
    model = backbone(feature_pyramid_size=12, num_hidden_layers=1, apply_layernorm=False)
    pixels = torch.randn(1, 3, 64, 64)
    changed = pixels.clone()
    changed[..., 48:, 48:] += 3
    for before, after in zip(model(pixels).feature_maps, model(changed).feature_maps, strict=True):
        difference = (before - after).abs().mean(dim=(0, 1))
        half = len(difference) // 2
        assert difference[half:, half:].mean() > difference[:half, :half].mean()


def test_auto_class_and_loading(tiny_model, tmp_path):
    pretrained = tiny_model()
    pretrained.save_pretrained(tmp_path)
    model = MAEBackbone.from_pretrained(tmp_path, image_size=64, feature_pyramid_size=8).eval()
    assert model.mae.embeddings.position_embeddings.shape[1] == 1 + 64
    assert torch.equal(model.mae.layers[0].mlp.fc1.weight, pretrained.mae.layers[0].mlp.fc1.weight)
    assert type(AutoBackbone.from_config(model.config)) is MAEBackbone
    model.save_pretrained(tmp_path / "backbone")
    pixels = torch.randn(1, 3, 64, 64)
    again = MAEBackbone.from_pretrained(tmp_path / "backbone")
    assert all(map(torch.equal, again(pixels).feature_maps, model(pixels).feature_maps))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"out_indices": [3]}, r"out_indices.* in \[0, 2\]"),
        ({"out_indices": [-9]}, "out_indices.* in "),
        ({"out_features": ["stage9"]}, "out_features must be a subset of stage_names"),
        ({"out_features": ["p6"], "feature_pyramid_size": 8}, "out_features must be a subset"),
        ({"feature_pyramid_size": 8, "reshape_hidden_states": False}, "needs reshape_hidden_states=True"),
        ({"hidden_act": "swoosh"}, "`hidden_act` must be one of .*'gelu'.*, got 'swoosh'"),
        ({"feature_pyramid_size": 0}, "feature_pyramid_size.* positive"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate.* in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing.* in \[0, 1\)"),
    ],
)
def test_wrong_stages__are_refused(tiny_config, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(("given", "meant"), [([-1], [2]), ([0, -1], [0, 2]), ([-2, -1], [1, 2])])
def test_stages__counted_from_the_end_are_the_same(tiny_model, tmp_path, given, meant):
    tiny_model().save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 32, 32)
    model, expected = (MAEBackbone.from_pretrained(tmp_path, out_indices=indices) for indices in (given, meant))
    assert all(map(torch.equal, model(pixels).feature_maps, expected(pixels).feature_maps))
    assert [parameter.requires_grad for parameter in model.parameters()] == [
        parameter.requires_grad for parameter in expected.parameters()
    ]


@pytest.mark.parametrize("size", [(30, 32), (4, 4)])
def test_images_that_cannot_be_cut__are_refused_with_the_way_out(backbone, size):
    with pytest.raises(ValueError, match="resize, crop or pad them to multiples of the patch"):
        backbone()(torch.randn(1, 3, *size))


def test_mask__is_refused_as_maps_have_all_patches(backbone):
    pixels, noise = torch.randn(1, 3, 32, 32), torch.rand(1, 16)
    for hiding in ({"mask_ratio": 0.5}, {"noise": noise}, {"bool_masked_pos": noise > noise.median()}):
        with pytest.raises(ValueError, match="neither a mask nor a `mask_ratio`"):
            backbone()(pixels, **hiding)


@pytest.mark.parametrize("out_indices", [[0], [1], [0, 2]])
def test_early_stages__later_blocks_are_neither_run_nor_trained(backbone, tmp_path, out_indices):
    model = backbone(num_hidden_layers=4, out_indices=out_indices).train()
    runs = []
    for number, layer in enumerate(model.mae.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: runs.append(number))
    pixels = torch.randn(2, 3, 32, 32)
    maps = model(pixels).feature_maps
    assert runs == list(range(1, max(out_indices) + 1))
    sum(each.pow(3).sum() for each in maps).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.requires_grad for layer in model.mae.layers[: max(out_indices)] for p in layer.parameters())
    for trainable in (0.5, max(out_indices)) if max(out_indices) else ():
        model.freeze_encoder(trainable)  # counts from the last block that is run
        last = model.mae.layers[max(out_indices) - 1]
        assert all(p.requires_grad for p in last.mlp.parameters())
        assert not any(p.requires_grad for layer in model.mae.layers[max(out_indices) :] for p in layer.parameters())
    with pytest.raises(ValueError, match=rf"in \[0, {max(out_indices)}\], got 4"):
        model.freeze_encoder(4)
    output = model(pixels, output_hidden_states=True)  # a request for all states runs all blocks
    assert len(output.hidden_states) == 5
    for one, other in zip(output.feature_maps, maps, strict=True):
        torch.testing.assert_close(one, other)
    model.save_pretrained(tmp_path)  # nothing is lost
    assert len(MAEBackbone.from_pretrained(tmp_path, out_indices=[4]).mae.layers) == 4
