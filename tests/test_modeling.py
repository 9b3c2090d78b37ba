# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining

from hf_mae import MAEBackbone, MAEForImageClassification, MAEForPreTraining, MAEImageProcessor, MAEModel
from hf_mae.modeling.patches_mae import (
    patch_resampling,
    patchify,
    resample_position_table,
    sincos_position_table,
    unpatchify,
)


def images(*shape):
    return torch.randn(*(shape or (2, 3, 32, 32)))


# ----------------------------------------------------------------------------------------------------------------------
# Patches and positions


@pytest.mark.parametrize("patch_size", [(8, 8), (4, 16), (32, 2)])
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_patchify__and_back_is_exact(patch_size, channels):
    pixels = images(2, channels, 32, 64)
    patches = patchify(pixels, patch_size)
    grid = (32 // patch_size[0], 64 // patch_size[1])
    assert patches.shape == (2, grid[0] * grid[1], patch_size[0] * patch_size[1] * channels)
    assert torch.equal(unpatchify(patches, patch_size, grid), pixels)


def test_patchify__cuts_in_raster_order_row_column_channel():
    pixels = images(1, 3, 8, 8)
    patch = pixels[0, :, 4:8, 0:4]  # row 1, column 0 of 2 x 2 patches
    assert torch.equal(patchify(pixels, (4, 4))[0, 2], patch.permute(1, 2, 0).flatten())


def test_patchify__of_some_patches_is_a_choice_of_all():
    pixels, ids = images(), torch.tensor([[3, 0, 15], [5, 5, 1]])
    chosen = patchify(pixels, (8, 8))[torch.arange(2)[:, None], ids]
    assert torch.equal(patchify(pixels, (8, 8), ids), chosen)


def test_sincos__tells_column_then_row():
    """On a grid that is not square a swap would show."""
    table = sincos_position_table(16, (3, 5))[0, 1:].view(3, 5, 16)
    assert torch.equal(table[0, :, :8], table[2, :, :8])  # the first half does not depend on the row
    assert torch.equal(table[:, 0, 8:], table[:, 4, 8:])  # nor the second on the column
    torch.testing.assert_close(table[0, :, 0], torch.arange(5).double().sin())
    torch.testing.assert_close(table[:, 0, 8], torch.arange(3).double().sin())


def test_resampling__to_the_same_grid_is_the_identity():
    table = sincos_position_table(16, (4, 6))
    assert resample_position_table(table, (4, 6), (4, 6)) is table


@pytest.mark.parametrize("new", [(8, 8), (3, 4), (8, 2)])
def test_resampling__is_two_dimensional(new):
    """A table that holds its own coordinates must come back with the coordinates of the new grid."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    table = torch.cat([torch.full((1, 2), 9.0), torch.stack([rows, columns], dim=-1).view(16, 2)])[None]
    resampled = resample_position_table(table, (4, 4), new)
    assert torch.equal(resampled[:, 0], table[:, 0])  # the class token's row is kept
    grid = resampled[0, 1:].view(*new, 2)
    for axis in (0, 1):
        wanted = ((torch.arange(new[axis]) + 0.5) * 4 / new[axis] - 0.5).view([-1, 1] if axis == 0 else [1, -1])
        assert (grid[..., axis] - wanted).abs().max() < 0.35  # bicubic bends at the border


@pytest.mark.parametrize(("old", "new"), [((4, 32), (4, 2)), ((32, 4), (2, 4)), ((32, 32), (2, 2))])
def test_patch_resampling__to_fewer_pixels_leaves_none_out(old, new):
    """Also where one side alone gets shorter: without a filter for that, pixels between new ones would not count."""
    matrix = patch_resampling(old, new)
    assert matrix.shape == (old[0] * old[1], new[0] * new[1])
    assert (matrix.abs().amax(dim=1) > 0).all()
    torch.testing.assert_close(matrix.sum(dim=0), torch.ones(new[0] * new[1], dtype=torch.float64))


# ----------------------------------------------------------------------------------------------------------------------
# Fresh weights


def from_scratch(tiny_config, tmp_path, road):
    config = tiny_config()
    if road == "constructor":
        return MAEForPreTraining(config)
    if road == "from_config":
        return AutoModelForPreTraining.from_config(config)
    if road == "full checkpoint":
        MAEForPreTraining(config).save_pretrained(tmp_path)
    else:
        MAEModel(config).save_pretrained(tmp_path)
    return MAEForPreTraining.from_pretrained(tmp_path)


@pytest.mark.parametrize("road", ["constructor", "from_config", "full checkpoint", "encoder-only checkpoint"])
def test_position_tables__are_sincos_and_frozen_on_every_road(tiny_config, tmp_path, road):
    model = from_scratch(tiny_config, tmp_path, road)
    for module, width in ((model.mae.embeddings, 32), (model.decoder, 16)):
        table = module.position_embeddings.double()
        torch.testing.assert_close(table, sincos_position_table(width, (4, 4)), rtol=0, atol=1e-6)
        assert not module.position_embeddings.requires_grad
    assert model.mae.embeddings.cls_token.std() > 0.005
    assert model.decoder.mask_token.std() > 0.005
    predictions = model(images()).logits
    assert (predictions[:, 0] - predictions[:, 1]).abs().max() > 1e-3  # hidden patches are told apart


def test_encoder_only_checkpoint__encoder_is_loaded_decoder_is_new(tiny_config, tmp_path):
    encoder = MAEModel(tiny_config())
    encoder.save_pretrained(tmp_path)
    model, info = MAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.mae.state_dict()[name], tensor)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("decoder.")}


def test_tokens__have_the_deviation_of_the_configuration(tiny_config):
    model = MAEForPreTraining(tiny_config(hidden_size=512, decoder_hidden_size=512, num_class_tokens=4))
    for token in (model.mae.embeddings.cls_token, model.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)


def test_linear_layers__are_xavier_uniform(tiny_config):
    model = MAEForPreTraining(tiny_config(hidden_size=256))
    weight = model.mae.layers[0].attention.qkv.weight.detach()
    bound = (6 / (256 + 3 * 256)) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)


# ----------------------------------------------------------------------------------------------------------------------
# Encoder


def test_encoder__sees_all_patches_in_raster_order_deterministically(tiny_config):
    model, pixels = MAEModel(tiny_config()), images()
    output = model(pixels)
    assert output.last_hidden_state.shape == (2, 1 + 16, 32)
    assert output.mask is None
    assert torch.equal(model(pixels).last_hidden_state, output.last_hidden_state)
    changed = pixels.clone()
    changed[:, :, 8:16, 24:32] += 1  # patch 7
    difference = (model.embeddings(changed, (4, 4), None, None) - model.embeddings(pixels, (4, 4), None, None)).abs()
    assert (difference.sum(dim=(0, 2)) > 0).nonzero().flatten().tolist() == [1 + 7]


def test_encoder__shuffled_patches_change_the_output(tiny_config):
    model, pixels = MAEModel(tiny_config()).eval(), images()
    shuffled = unpatchify(patchify(pixels, (8, 8))[:, torch.randperm(16)], (8, 8), (4, 4))
    difference = model(pixels).last_hidden_state[:, 0] - model(shuffled).last_hidden_state[:, 0]
    assert difference.abs().max() > 1e-3


def test_encoder__hidden_pixels_cannot_reach_it(tiny_model):
    model, pixels, noise = tiny_model(), images(), torch.rand(2, 16)
    before = model.mae(pixels, noise=noise)
    patches = patchify(pixels, (8, 8))
    visible = unpatchify(torch.where(before.mask[..., None], patches, patches + 1), (8, 8), (4, 4))
    hidden = unpatchify(torch.where(before.mask[..., None], torch.nan, patches), (8, 8), (4, 4))
    assert torch.equal(model.mae(hidden, noise=noise).last_hidden_state, before.last_hidden_state)
    assert torch.equal(model(hidden, noise=noise).logits, model(pixels, noise=noise).logits)
    assert not torch.allclose(model.mae(visible, noise=noise).last_hidden_state, before.last_hidden_state)


def test_encoder__masked_equals_the_choice_of_embedded_tokens(tiny_config):
    """One block deep nothing but attention mixes tokens: visible ones must attend to visible ones only."""
    model, pixels = MAEModel(tiny_config()).eval(), images()
    ids = torch.tensor([[4, 9, 2], [0, 15, 7]])
    tokens = model.embeddings(pixels, (4, 4), None, None)
    chosen = torch.cat([tokens[:, :1], tokens[:, 1:][torch.arange(2)[:, None], ids]], dim=1)
    for layer in model.layers:
        chosen, _ = layer(chosen)
    torch.testing.assert_close(model(pixels, ids_keep=ids).last_hidden_state, model.layernorm(chosen))


@pytest.mark.parametrize("size", [(32, 32), (64, 16), (16, 64)])
@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_pooler_output__is_what_the_config_says(tiny_config, pooling, size):
    output = MAEModel(tiny_config(pooling=pooling))(images(2, 3, *size))
    tokens = output.last_hidden_state
    torch.testing.assert_close(output.pooler_output, tokens[:, 1:].mean(dim=1) if pooling == "mean" else tokens[:, 0])


# ----------------------------------------------------------------------------------------------------------------------
# Pre-training


def test_loss__is_the_error_of_hidden_patches_only(tiny_model):
    model, pixels = tiny_model(), images()
    output = model(pixels, noise=torch.rand(2, 16))
    target = patchify(pixels, (8, 8))[output.mask].view(2, 12, -1)
    order = output.ids_hidden.argsort(dim=1)[..., None].expand_as(output.logits)
    torch.testing.assert_close(output.loss, (output.logits.gather(1, order) - target).square().mean())


def test_mask_tokens_in_encoder__give_the_encoder_every_place_but_no_hidden_pixel(tiny_model):
    model, pixels, noise = tiny_model(mask_tokens_in_encoder=True), images(), torch.rand(2, 16)
    output = model.mae(pixels, noise=noise)
    assert output.last_hidden_state.shape == (2, 1 + 16, 32)
    patches = patchify(pixels, (8, 8)).masked_fill(output.mask[..., None], torch.nan)
    nothing = unpatchify(patches, (8, 8), (4, 4))
    assert torch.equal(model.mae(nothing, noise=noise).last_hidden_state, output.last_hidden_state)
    loss = model(pixels, noise=noise).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.mae(pixels).last_hidden_state.shape == (2, 1 + 16, 32)


@pytest.mark.parametrize("mask_tokens_in_encoder", [False, True])
def test_prediction_ratio__predicts_a_share_in_training_and_all_in_evaluation(tiny_model, mask_tokens_in_encoder):
    model = tiny_model(prediction_ratio=0.25, mask_tokens_in_encoder=mask_tokens_in_encoder)
    pixels, noise = images(), torch.rand(2, 16)
    assert model(pixels, noise=noise).logits.shape[1] == 12
    output = model.train()(pixels, noise=noise)
    assert output.logits.shape[1] == 3
    assert torch.equal(output.ids_predicted, output.ids_hidden[:, :3])
    assert output.mask.sum(dim=1).tolist() == [12, 12]
    whole = model(pixels, mask_ratio=0)
    assert torch.equal(whole.ids_predicted, whole.ids_keep)
    assert output.loss.isfinite()


def test_every_parameter_gets_a_gradient(tiny_model):
    """DDP without find_unused_parameters needs it."""
    model = tiny_model()
    model(images()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("mask_tokens_in_encoder", [False, True])
def test_every_parameter_gets_a_gradient__also_when_nothing_is_hidden(tiny_model, mask_tokens_in_encoder):
    model = tiny_model(mask_tokens_in_encoder=mask_tokens_in_encoder)
    model(images(), mask_ratio=0).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.slow
def test_one_image__is_overfitted(tiny_config):
    torch.manual_seed(0)
    config = tiny_config(hidden_size=64, decoder_hidden_size=64, intermediate_size=256, decoder_intermediate_size=256)
    model = MAEForPreTraining(config).train()
    rows = torch.linspace(-1, 1, 32)
    pixels = torch.stack([rows[:, None].expand(32, 32), rows.expand(32, 32), (rows[:, None] * rows * 8).sin()])[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = model(pixels).loss.item()
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(pixels).loss
        loss.backward()
        optimizer.step()
    assert first > 0.3
    assert loss.item() < 0.05


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_reconstruct__keeps_visible_patches_and_gives_pixels(tiny_model, norm_pix_loss):
    model, pixels = tiny_model(norm_pix_loss=norm_pix_loss), 5 + 3 * images()
    output = model.reconstruct(pixels, noise=torch.rand(2, 16))
    before, after = patchify(pixels, (8, 8)), patchify(output.reconstruction, (8, 8))
    assert torch.equal(after[~output.mask], before[~output.mask])
    assert not torch.isclose(after[output.mask], before[output.mask]).any(dim=1).all()
    assert (patchify(output.masked, (8, 8))[output.mask] == 0).all()
    if norm_pix_loss:  # predictions come back in the scale of the picture
        assert after[output.mask].mean() == pytest.approx(5, abs=1.5)


def test_reconstruct__shows_what_is_predicted_be_it_all_patches_or_some_hidden_ones(tiny_model):
    model, pixels, noise = tiny_model(), images(), torch.rand(2, 16)
    before = patchify(pixels, (8, 8))
    everything = model(pixels, noise=noise, mask_ratio=0)
    shown = patchify(model.reconstruct(pixels, noise=noise, mask_ratio=0).reconstruction, (8, 8))
    index = everything.ids_keep[..., None].expand_as(everything.logits)
    assert torch.equal(shown.gather(1, index), everything.logits)
    some = model.reconstruct(pixels, noise=noise, prediction_ratio=0.25)
    changed = (patchify(some.reconstruction, (8, 8)) != before).any(dim=2)
    assert changed.sum(dim=1).tolist() == [3, 3]
    assert not (changed & ~some.mask).any()


def test_reconstruct__a_perfect_normalised_prediction_gives_the_image(tiny_model, monkeypatch):
    model, pixels, noise = tiny_model(norm_pix_loss=True), images(), torch.rand(2, 16)
    forward = model.forward

    def perfect(*args, **kwargs):
        output = forward(*args, **kwargs)
        target = patchify(pixels, (8, 8), output.ids_hidden)
        output.logits = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return output

    monkeypatch.setattr(model, "forward", perfect)
    torch.testing.assert_close(model.reconstruct(pixels, noise=noise).reconstruction, pixels)


# ----------------------------------------------------------------------------------------------------------------------
# Sizes


@pytest.mark.parametrize(
    "fields", [{"image_size": (32, 64)}, {"patch_size": (8, 4)}, {"num_channels": 13}, {"num_channels": 1}]
)
def test_rectangles_and_channels__work(tiny_model, fields):
    model = tiny_model(**fields)
    size = fields.get("image_size", (32, 32))
    pixels = images(2, fields.get("num_channels", 3), *size)
    model(pixels).loss.backward()
    assert model.reconstruct(pixels).reconstruction.shape == pixels.shape


def test_other_sizes__are_resampled_per_forward(tiny_model):
    model = tiny_model()
    for height, width in ((64, 64), (16, 48), (8, 128)):  # the last has as many patches, elsewhere
        pixels = images(2, 3, height, width)
        assert model(pixels).loss.isfinite()
        assert model.mae(pixels).last_hidden_state.shape == (2, 1 + height * width // 64, 32)
    assert model.config.image_size == 32


@pytest.mark.parametrize("how", ["keyword", "config", "auto"])
def test_other_sizes__on_loading_equal_those_per_forward(tiny_model, tiny_config, tmp_path, how):
    model, pixels, noise = tiny_model(), images(2, 3, 64, 48), torch.rand(2, 48)
    model.save_pretrained(tmp_path)
    if how == "keyword":
        loaded = MAEForPreTraining.from_pretrained(tmp_path, image_size=(64, 48))
    elif how == "config":
        loaded = MAEForPreTraining.from_pretrained(tmp_path, config=tiny_config(image_size=(64, 48)))
    else:
        loaded = AutoModelForPreTraining.from_pretrained(tmp_path, image_size=(64, 48))
    assert loaded.config.image_size == [64, 48]
    assert loaded.decoder.position_embeddings.shape == (1, 1 + 8 * 6, 16)
    torch.testing.assert_close(loaded(pixels, noise=noise).loss, model(pixels, noise=noise).loss)
    loaded.save_pretrained(tmp_path / "again")
    again = MAEForPreTraining.from_pretrained(tmp_path / "again")
    assert torch.equal(again(pixels, noise=noise).loss, loaded(pixels, noise=noise).loss)


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((2, 1, 32, 32), {}, r"\(batch, 3 channels, height, width\), got \(2, 1, 32, 32\)"),
        ((3, 32, 32), {}, r"got \(3, 32, 32\)"),
        ((0, 3, 32, 32), {}, r"must hold at least one image, got the shape \(0, 3, 32, 32\)"),
        ((2, 3, 36, 32), {}, r"\(36, 32\) pixels can't be cut into patches of \(8, 8\)"),
        (
            (2, 3, 64, 64),
            {"interpolate_pos_encoding": False},
            r"\(64, 64\) pixels, but the model is made for \(32, 32\)",
        ),
    ],
)
@pytest.mark.parametrize("model_class", [MAEModel, MAEForPreTraining])
def test_bad_images__say_what_is_wrong(tiny_config, model_class, shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        model_class(tiny_config())(images(*shape), **arguments)


@pytest.mark.parametrize("size", [(32, 40), (36, 32), (32, 0)])
def test_images__that_patches_which_are_not_square_do_not_divide_are_refused(tiny_config, size):
    with pytest.raises(ValueError, match=rf"\({size[0]}, {size[1]}\) pixels can't be cut into patches of \(8, 16\)"):
        MAEModel(tiny_config(patch_size=(8, 16)))(images(1, 3, *size))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("model_class", [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone])
def test_integer_pixels__are_refused_with_the_way_out(tiny_config, model_class, dtype):
    with pytest.raises(
        ValueError, match=f"`pixel_values` must be normalised floats, got {dtype}.*rescale_and_normalize"
    ):
        model_class(tiny_config())(torch.ones(2, 3, 32, 32, dtype=dtype))


@pytest.mark.parametrize("return_tensors", [None, "np"])
def test_pixels__that_are_no_tensor_are_refused_with_the_way_out(tiny_config, return_tensors):
    picture = np.zeros((32, 32, 3), np.uint8)
    pixel_values = MAEImageProcessor.for_image_size(32)(picture, return_tensors=return_tensors).pixel_values
    for model_class in (MAEModel, MAEForPreTraining, MAEForImageClassification, MAEBackbone):
        with pytest.raises(ValueError, match='must be normalised floats, got (list|ndarray).*return_tensors="pt"'):
            model_class(tiny_config())(pixel_values)


def test_from_pretrained__another_architecture_is_refused(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model type 'dinov2', but MAEModel loads 'mae'.*import_checkpoint"):
        MAEModel.from_pretrained(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# What users of transformers expect


def test_save_and_load__is_exact_and_the_decoder_is_left_out_quietly(tiny_model, tmp_path, caplog):
    model, pixels = tiny_model(), images()
    model.save_pretrained(tmp_path)
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(encoder, MAEModel)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(encoder(pixels).last_hidden_state, model.mae(pixels).last_hidden_state)
    assert not caplog.records


def test_outputs__hidden_states_attentions_and_tuples(tiny_model):
    model, pixels, noise = tiny_model(), images(), torch.rand(2, 16)
    output = model(pixels, noise=noise, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 5, 32)] * 3
    assert [tuple(a.shape) for a in output.attentions] == [(2, 4, 5, 5)] * 2
    assert [tuple(h.shape) for h in output.decoder_output.hidden_states] == [(2, 17, 16), (2, 17, 16), (2, 12, 16)]
    assert [tuple(a.shape) for a in output.decoder_output.attentions] == [(2, 2, 17, 17), (2, 2, 12, 17)]
    torch.testing.assert_close(output.attentions[0].sum(dim=-1), torch.ones(2, 4, 5))
    loss, logits, *_ = model(pixels, noise=noise, return_dict=False)
    torch.testing.assert_close(loss, output.loss)  # with and without eager attention
    torch.testing.assert_close(logits, output.logits)
    assert model(pixels, return_loss=False).loss is None


def test_outputs__by_configuration_and_by_number(tiny_config):
    model = MAEModel(tiny_config(output_hidden_states=True)).eval()
    states = model(images()).hidden_states
    assert len(states) == 3
    assert model(images(), output_hidden_states=False).hidden_states is None
    pixels = images()
    first, middle, last = model(pixels, output_hidden_states=[0, -1]).hidden_states
    assert middle is None
    assert torch.equal(first, model.embeddings(pixels, (4, 4), None, None))
    assert torch.equal(first, model(pixels, output_hidden_states=-3).hidden_states[0])
    assert model(pixels, output_hidden_states=[3, -4]).hidden_states == (None, None, None)  # there are no such
    assert torch.equal(model.layernorm(last), model(pixels).last_hidden_state)


def test_outputs__attentions_by_configuration_are_saved_with_any_implementation(tiny_model, tmp_path):
    model = tiny_model(output_attentions=True).eval()
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    loaded = MAEForPreTraining.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    pixels, noise = images(), torch.rand(2, 16)
    both = (each(pixels, noise=noise).attentions for each in (model, loaded))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.sum(dim=-1), torch.ones(2, 4, 5))


def test_num_layers__runs_the_first_blocks_only(tiny_config):
    model, pixels = MAEModel(tiny_config()).eval(), images()
    state = model(pixels, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(model(pixels, num_layers=1).last_hidden_state, model.layernorm(state))


@pytest.mark.filterwarnings("ignore::UserWarning:torch.nn.attention.flex_attention")
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_attention_back_ends__agree_with_eager(tiny_model, implementation):
    model, pixels, noise = tiny_model(), images(), torch.rand(2, 16)
    model.set_attn_implementation("eager")
    # Flex attention would be compiled for the better part of a minute.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        eager = model(pixels, noise=noise).logits
        model.set_attn_implementation(implementation)
        assert model.decoder.layers[0].attention.config._attn_implementation == implementation  # reaches the decoder
        torch.testing.assert_close(model(pixels, noise=noise).logits, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("num_trainable_layers", [0.5, 1])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradient_checkpointing__trains_blocks_after_frozen_ones(
    tiny_config, use_reentrant, num_trainable_layers, compiled
):
    model = MAEForImageClassification(tiny_config(num_labels=3)).train()
    model.freeze_encoder(num_trainable_layers)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    model(images, labels=labels).loss.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert "mae.layers.1.mlp.fc1.weight" in expected
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    run = torch.compile(model, backend="aot_eager") if compiled else model
    run(images, labels=labels).loss.backward()
    assert all(weight.grad is None for weight in model.mae.layers[0].parameters())
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing__same_gradients_in_encoder_and_decoder(tiny_model, use_reentrant):
    model, pixels, noise = tiny_model().train(), images(), torch.rand(2, 16)
    model(pixels, noise=noise).loss.backward()
    plain = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert all(layer.gradient_checkpointing for layer in [*model.mae.layers, *model.decoder.layers])
    model(pixels, noise=noise).loss.backward()
    for with_checkpointing, without in zip((p.grad for p in model.parameters() if p.requires_grad), plain, strict=True):
        torch.testing.assert_close(with_checkpointing, without)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision__takes_float32_pixels_and_computes_the_loss_in_float32(tiny_model, dtype):
    model, pixels, noise = tiny_model(), images(), torch.rand(2, 16)
    expected = model(pixels, noise=noise).loss
    output = model.to(dtype)(pixels, noise=noise)
    assert (output.logits.dtype, output.loss.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(output.loss, expected, rtol=0.02, atol=0)
    assert model(images(1, 3, 64, 64)).loss.isfinite()  # resampling positions in half precision
    assert model.mae(pixels).last_hidden_state.dtype == dtype


def test_autocast__loss_stays_float32(tiny_model):
    with torch.autocast("cpu", torch.bfloat16):
        output = tiny_model(norm_pix_loss=True)(images())
    assert output.loss.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpointing", "arguments", "backend"),
    [
        (True, {}, "eager"),
        (False, {"output_hidden_states": True, "output_attentions": True}, "eager"),
        pytest.param(True, {}, "aot_eager", marks=pytest.mark.long),
        pytest.param(False, {}, "aot_eager", marks=pytest.mark.long),
    ],
)
def test_compile__without_a_graph_break(tiny_model, checkpointing, arguments, backend):
    model, pixels, noise = tiny_model(mask_sampling="block").train(), images(), torch.rand(2, 16)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    output = compiled(pixels, noise=noise, **arguments)
    torch.testing.assert_close(output.loss, model(pixels, noise=noise).loss)
    output.loss.backward()
    assert compiled(pixels).loss.isfinite()  # and with masks drawn inside
    encoder = torch.compile(model.mae.eval(), fullgraph=True, backend=backend)
    torch.testing.assert_close(encoder(pixels).pooler_output, model.mae(pixels).pooler_output)


def test_dropout__works_where_asked_for(tiny_model):
    model = tiny_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    pixels, noise = images(), torch.rand(2, 16)
    assert not torch.equal(model(pixels, noise=noise).loss, model(pixels, noise=noise).loss)
    model.eval()
    assert torch.equal(model(pixels, noise=noise).loss, model(pixels, noise=noise).loss)
