# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Builds other implementations of the masked autoencoder with the weights of a model of ours, so that all do the same.

A peer is a model and its `loss(model, pixel_values, noise)`; the same noise gives the same visible patches. Peers that
can't be imported are left out, and `missing` says why.
"""

import importlib
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import ViTMAEForPreTraining

from hf_mae import MAEForPreTraining, export_checkpoint
from hf_mae.modeling.masking_mae import num_kept_patches


class Peer(NamedTuple):
    model: nn.Module
    loss: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
    fused_adamw: bool  # whether its authors train with fused AdamW


# ----------------------------------------------------------------------------------------------------------------------
# The algorithm as the official code runs it: all patches embedded, tokens shuffled and put back, everything decoded.
# Written from the paper. The blocks compute what those of timm 0.3.2 do, with unfused attention.


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """With the signature that the official code calls."""

    def __init__(self, dim, num_heads, mlp_ratio=4.0, qkv_bias=True, qk_scale=None, norm_layer=nn.LayerNorm):
        super().__init__()
        self.norm1, self.attn = norm_layer(dim), Attention(dim, num_heads)
        self.norm2, self.mlp = norm_layer(dim), MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """With the signature that the official code calls."""

    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=768):
        super().__init__()
        self.patch_size, self.num_patches = (patch_size, patch_size), (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Reference(nn.Module):
    """Modules by the official names, so that official weights load."""

    def __init__(self, config):
        super().__init__()
        width, decoder_width, patch = config.hidden_size, config.decoder_hidden_size, config.patch_size
        norm = lambda size: nn.LayerNorm(size, eps=config.layer_norm_eps)  # noqa: E731
        ratio = config.intermediate_size / width
        self.patch_embed = PatchEmbed(config.image_size, patch, config.num_channels, width)
        num_patches = self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, width), requires_grad=False)
        heads, depth = config.num_attention_heads, config.num_hidden_layers
        self.blocks = nn.ModuleList([Block(width, heads, ratio, norm_layer=norm) for _ in range(depth)])
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, decoder_width), requires_grad=False)
        heads, depth = config.decoder_num_attention_heads, config.decoder_num_hidden_layers
        ratio = config.decoder_intermediate_size / decoder_width
        self.decoder_blocks = nn.ModuleList([Block(decoder_width, heads, ratio, norm_layer=norm) for _ in range(depth)])
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, patch**2 * config.num_channels)
        self.num_kept = num_kept_patches(config.grid_size, config.mask_ratio)

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        order = noise.argsort(dim=1)
        restore = order.argsort(dim=1)
        x = x.gather(1, order[:, : self.num_kept, None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        hidden = self.mask_token.expand(len(x), noise.shape[1] - self.num_kept, -1)
        patches = torch.cat([x[:, 1:], hidden], dim=1).gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        target, side = images, self.patch_embed.patch_size[0]
        target = target.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        error = (predicted - (target - mean) / (variance + 1e-6) ** 0.5).square().mean(dim=-1)
        mask = (restore >= self.num_kept).to(error.dtype)
        return (error * mask).sum() / mask.sum()


# ----------------------------------------------------------------------------------------------------------------------
# Peers


def ours(model: MAEForPreTraining, prediction_ratio: float = 1.0) -> Peer:
    loss = lambda m, images, noise: m(images, noise=noise, prediction_ratio=prediction_ratio).loss  # noqa: E731
    return Peer(model, loss, fused_adamw=True)


def reference(model: MAEForPreTraining) -> Peer:
    peer = Reference(model.config)
    peer.load_state_dict(_official_weights(model))
    return Peer(peer, lambda m, images, noise: m(images, noise), fused_adamw=False)


def transformers(model: MAEForPreTraining) -> Peer:
    """Stock ViTMAE with our weights and tables: made by itself its position tables are zero, and it could not learn."""
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(model, Path(folder) / "out", "vit_mae")
        peer = ViTMAEForPreTraining.from_pretrained(Path(folder) / "out")
    for table in (peer.vit.embeddings.position_embeddings, peer.decoder.decoder_pos_embed):
        table.requires_grad_(False)  # from_pretrained made them trainable
    return Peer(peer, lambda m, images, noise: m(images, noise=noise).loss, fused_adamw=True)


def official(model: MAEForPreTraining, checkout: str) -> Peer:
    """Imports the official code from a checkout, with the blocks above instead of timm 0.3.2, which it pins."""
    timm = types.ModuleType("timm.models.vision_transformer")
    timm.PatchEmbed, timm.Block = PatchEmbed, Block
    names = {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models"), timm.__name__: timm}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    sys.path.insert(0, checkout)
    vars(np).setdefault("float", float)  # the official code uses an alias that numpy has dropped
    try:
        models_mae = importlib.import_module("models_mae")
    finally:
        sys.path.remove(checkout)
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    config = model.config
    peer = models_mae.MaskedAutoencoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        decoder_embed_dim=config.decoder_hidden_size,
        decoder_depth=config.decoder_num_hidden_layers,
        decoder_num_heads=config.decoder_num_attention_heads,
        mlp_ratio=4,
        norm_layer=lambda size: nn.LayerNorm(size, eps=1e-6),
        norm_pix_loss=config.norm_pix_loss,
    )
    peer.load_state_dict(_official_weights(model))

    def loss(m, images, noise):
        draw, torch.rand = torch.rand, lambda *shape, **_: noise  # the model draws its noise itself
        try:
            return m(images, mask_ratio=config.mask_ratio)[0]
        finally:
            torch.rand = draw

    return Peer(peer, loss, fused_adamw=False)


def lightly(model: MAEForPreTraining) -> Peer:
    """Builds the model of lightly's MAE example, with a timm backbone."""
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    config = model.config
    vit = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=0,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
    )
    peer = nn.ModuleDict({"backbone": MaskedVisionTransformerTIMM(vit=vit)})
    peer["decoder"] = MAEDecoderTIMM(
        num_patches=vit.patch_embed.num_patches,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        decoder_embed_dim=config.decoder_hidden_size,
        decoder_depth=config.decoder_num_hidden_layers,
        decoder_num_heads=config.decoder_num_attention_heads,
        mlp_ratio=config.decoder_intermediate_size / config.decoder_hidden_size,
        proj_drop_rate=0.0,
        attn_drop_rate=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(model, Path(folder) / "out.pth", "lightly")
        left = peer.load_state_dict(torch.load(Path(folder) / "out.pth"), strict=False)
    if left.unexpected_keys or set(left.missing_keys) - {"backbone.mask_token"}:
        raise RuntimeError(f"The weights do not fit lightly's model: {left}.")
    num_kept = num_kept_patches(config.grid_size, config.mask_ratio)

    def loss(m, images, noise):
        order = noise.argsort(dim=1) + 1  # lightly's token indices count the class token
        kept, hidden = torch.cat([torch.zeros_like(order[:, :1]), order[:, :num_kept]], dim=1), order[:, num_kept:]
        encoded = m["decoder"].embed(m["backbone"].encode(images=images, idx_keep=kept))
        tokens = utils.repeat_token(m["decoder"].mask_token, (len(images), order.shape[1] + 1))
        tokens = utils.set_at_index(tokens, kept, encoded.type_as(tokens))
        predicted = m["decoder"].predict(utils.get_at_index(m["decoder"].decode(tokens), hidden))
        target = utils.get_at_index(utils.patchify(images, config.patch_size), hidden - 1)
        target = utils.normalize_mean_var(target) if hasattr(utils, "normalize_mean_var") else _normalised(target)
        return nn.functional.mse_loss(predicted, target)

    return Peer(peer, loss, fused_adamw=False)


def _normalised(target: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    return (target - mean) / (variance + 1e-6).sqrt()


def _official_weights(model: MAEForPreTraining) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        export_checkpoint(model, Path(folder) / "out.pth", "official")
        return torch.load(Path(folder) / "out.pth")["model"]


# What needs no checkout of the official code. Ours comes before them.
MAKERS = {"transformers ViTMAE": transformers, "lightly": lightly, "timm-block reference": reference}


def all_peers(
    model: MAEForPreTraining, checkout: str | None, chosen: list[str] | None = None
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Returns the peers by name, ours first and always, and why others are missing.

    Args:
        model ([`MAEForPreTraining`]): All peers get its weights.
        checkout (`str`, *optional*): Folder of the official code.
        chosen (`list[str]`, *optional*): Names of the peers to build, to save memory. Default: all.
    """
    makers = {
        "official code": (lambda m: official(m, checkout)) if checkout else None,
        **MAKERS,
    }
    found, missing = {"hf_mae": ours(model)}, {}
    for name, make in makers.items():
        if chosen is not None and name not in chosen:
            continue
        if make is None:
            missing[name] = "no --official checkout was given"
            continue
        try:
            found[name] = make(model)
        except ImportError as error:
            missing[name] = str(error)
    return found, missing
