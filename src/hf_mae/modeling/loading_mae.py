# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Loading checkpoints at other sizes and channels, from adapters and from wrapped models; freezing the encoder."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import find_adapter_config_file, is_peft_available, logging

from .configuration_mae import MAEConfig, height_width
from .patches_mae import patch_resampling, resample_position_table
from .saving_mae import no_model_in, share_weights

logger = logging.get_logger(__name__)

Resize = Callable[[torch.Tensor], torch.Tensor]

HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
OF_TRANSFORMERS = ("vit", "vit_mae", "pixio")  # model types whose weights are read, and layouts that are exported
_SIZES = ("image_size", "patch_size", "num_channels", "mask_block_size")
# Names in checkpoints of models that torch.compile or a parallel wrapper has wrapped, as a whole or in part.
_WRAPPER = r"(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
_WRAPPERS = {f"^{_WRAPPER}": "", rf"\.{_WRAPPER}": "."}


@contextmanager
def _explaining_weights(label: str | os.PathLike, stored: dict, class_name: str) -> Iterator[None]:
    """Says which weights can't be read, and which have other shapes than the configuration.

    Args:
        label (`str` or `os.PathLike`): Where they come from.
        stored (`dict`): The configuration that was saved with them.
        class_name (`str`): The class that loads them.
    """
    try:
        yield
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        architecture = (stored.get("architectures") or [class_name])[0]
        raise ValueError(
            f"{label}, saved by {architecture}, holds weights of other shapes than {class_name} has with this "
            "configuration; the table above lists them. Of the fields that decide on shapes only `image_size`, "
            "`patch_size` and `num_channels` may differ from the checkpoint's: leave out others, such as "
            "`hidden_size`. Load a model of another class with that class, or its encoder alone with AutoModel. "
            "Or load what fits, with ignore_mismatched_sizes=True."
        ) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # by its name, since copies on the Hub import no safetensors
            raise
        raise OSError(
            f"The weights of {label} can't be read: {error}. If their file is cut off, or a pointer of Git LFS, get it "
            "again."
        ) from error


class ResizableModule:
    """A module with weights that depend on the sizes of images or patches or on the number of channels."""

    def resize_weights(self, config: MAEConfig, resize_input: Resize | None, resize_output: Resize | None):
        """Fits the weights of this module, without its submodules, to changed sizes, in place.

        Args:
            config (`MAEConfig`): The configuration with the new sizes.
            resize_input (`Callable`, *optional*): Takes weights `(..., old patch elements)` that are multiplied by
                patches to `(..., new patch elements)`. By default the patches are the same.
            resize_output (`Callable`, *optional*): Does so for weights that predict patches.
        """
        raise NotImplementedError

    def resize_positions(self, grid_size: tuple[int, int]):
        """Resamples the position table of this module to another grid, in place."""
        table = self.position_embeddings
        resampled = resample_position_table(table.detach(), self.grid_size, grid_size)
        self.position_embeddings = nn.Parameter(resampled, requires_grad=table.requires_grad)
        self.grid_size = grid_size


class LoadingMixin:
    """Loading and resizing of all MAE models. A base class of [`MAEPreTrainedModel`]."""

    # Fine-tuning trains the position tables, as the official code does, and does not need a mask token.
    _is_fine_tuned = False
    # Reads repositories of transformers' ViTMAE, ViT and Pixio. Set by hf_mae.conversion, which is not saved with them.
    _from_repository = None

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel"):
        """Does nothing, since the configuration saves the code of all classes (see saving_mae.py)."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """Saves as [`~transformers.PreTrainedModel.save_pretrained`] does, with weights that others may read, too."""
        super().save_pretrained(save_directory, *args, **kwargs)
        share_weights(save_directory)

    # ------------------------------------------------------------------------------------------------------------------
    # Loading

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config: MAEConfig | str | os.PathLike | None = None,
        channel_init: str = "repeat",
        **kwargs,
    ):
        """Loads a model as [`~transformers.PreTrainedModel.from_pretrained`] does, from a checkpoint of any MAE model.

        One line of the log says what is new and what was left out. The folder of a PEFT adapter gives the base model
        with the adapter.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or name on the Hub.
            config (`MAEConfig`, *optional*): Defaults to the one of the checkpoint. With
                `from_pretrained(None, config=config, state_dict={})` all weights are new.
            channel_init (`"repeat"`, `"mean"` or `"zero"`): How weights for another `num_channels` are made, see
                [`LoadingMixin.resize_channels`].
            **kwargs: Arguments of `from_pretrained`, or fields of the configuration to change. With another
                `image_size` the position tables are resampled (see [`LoadingMixin.resize_position_embeddings`]), with
                another `patch_size` the weights for patches (see [`LoadingMixin.resize_patches`]).

        Raises:
            OSError: If it is not there.
            ValueError: If the checkpoint is of another architecture or has no encoder.
        """
        source = pretrained_model_name_or_path
        hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
        if isinstance(config, str | os.PathLike):
            config, kwargs = cls.config_class.from_pretrained(config, return_unused_kwargs=True, **kwargs)
            kwargs.update(hub_kwargs)
        if source is None:  # the weights are given as `state_dict`
            stored = config.to_dict()
        else:
            stored, _ = cls.config_class.get_config_dict(source, **hub_kwargs)
        if not stored and (base := _base_of_adapter(source, hub_kwargs)) is not None:
            kwargs["adapter_kwargs"] = {"_adapter_model_path": source, "revision": kwargs.pop("revision", None)}
            return cls.from_pretrained(base, *model_args, config=config, channel_init=channel_init, **kwargs)
        if not stored:
            raise no_model_in(source, hub_kwargs.get("subfolder"))
        if stored.get("model_type") in OF_TRANSFORMERS and cls._from_repository is not None:
            source, stored, config, kwargs = cls._read_foreign(source, config, kwargs, hub_kwargs)
        elif stored.get("model_type") != cls.config_class.model_type:
            raise ValueError(
                f"{source} holds a checkpoint of model type {stored.get('model_type')!r}, but {cls.__name__} loads "
                f"{cls.config_class.model_type!r}. Weights of the official MAE code, timm, transformers' ViTMAE and "
                "others are read by `hf_mae.import_checkpoint` and `hf-mae convert`."
            )
        config, saved, wanted = cls._separate_sizes(stored, config, kwargs)
        with_info, name = kwargs.pop("output_loading_info", False), pretrained_model_name_or_path
        adapter_kwargs = dict(kwargs.get("adapter_kwargs") or {})
        adapter = adapter_kwargs.pop("_adapter_model_path", None)  # so transformers' Auto classes pass it
        loads_adapter = adapter is not None and adapter != source
        if loads_adapter:  # when the model has its final sizes
            del kwargs["adapter_kwargs"]
        model, info = cls._load_as_saved(source, name, stored, *model_args, config=config, **kwargs)
        model._change_sizes(saved, wanted, channel_init)
        if loads_adapter:
            model._add_adapter(adapter, adapter_kwargs, name)
        return (model, info) if with_info else model

    @classmethod
    def _read_foreign(cls, source, config, kwargs: dict, hub_kwargs: dict) -> tuple:
        """Reads a checkpoint of transformers' ViTMAE, ViT or Pixio: its tensors become the argument `state_dict`."""
        # Not by a registered mapping of names, because new models would then be saved under the foreign names.
        stored, tensors = cls._from_repository(source, **hub_kwargs)
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None) or "auto"
        if not isinstance(config, PreTrainedConfig):
            config, kwargs = cls.config_class.from_dict(dict(stored), return_unused_kwargs=True, **kwargs)
        kwargs["dtype"] = next(iter(tensors.values())).dtype if dtype == "auto" else dtype
        kwargs["state_dict"] = tensors
        return None, stored, config, kwargs

    @classmethod
    def _separate_sizes(cls, stored: dict, config, kwargs: dict) -> tuple:
        """Returns the configuration with the sizes of the checkpoint, these sizes, and the requested ones.

        The size of mask cells is set at the end, because it fits the requested image size and not the saved one.
        """
        saved = {name: stored.get(name, getattr(cls.config_class, name)) for name in _SIZES}
        if not isinstance(config, PreTrainedConfig):
            wanted = {name: kwargs.pop(name, saved[name]) for name in _SIZES}
            kwargs["mask_block_size"] = 1
            return config, saved, wanted
        wanted = {name: getattr(config, name) for name in _SIZES}
        config = copy.deepcopy(config)
        for name in _SIZES:
            setattr(config, name, saved[name])
        config.mask_block_size = 1
        return config, saved, wanted

    @classmethod
    def _load_as_saved(cls, source, name, stored: dict, *model_args, **kwargs) -> tuple:
        """Loads weights at the sizes they were saved with. Returns the model and the loading info.

        Args:
            source: The folder or name on the Hub that transformers loads, `None` if the weights are a `state_dict`.
            name: What the user gave for it.
            stored (`dict`): The configuration in the checkpoint.
        """
        is_new = name is None and kwargs.get("state_dict") == {}  # asks for new weights, so none can be missing
        label = "`state_dict`" if name is None else name
        own_names = kwargs.get("key_mapping") is None
        if own_names:
            kwargs["key_mapping"] = _WRAPPERS
        with _explaining_weights(label, stored, cls.__name__):
            model, info = super().from_pretrained(source, *model_args, output_loading_info=True, **kwargs)
        if own_names:
            model.__dict__.pop("_weight_conversions", None)  # else the model would be saved with the names of a wrapper
        if source is None and name is not None:  # adapters state it as the name of their base
            model.name_or_path = model.config.name_or_path = os.fspath(name)
        model._check_loaded(label, stored, info, is_new)
        model._set_trainable()  # the loader makes every parameter trainable
        return model, info

    def _change_sizes(self, saved: dict, wanted: dict, channel_init: str):
        """Resizes weights from the saved sizes to the requested ones; see `_separate_sizes`."""
        if any(height_width(wanted[size]) != height_width(saved[size]) for size in ("image_size", "patch_size")):
            self.resize_patches(wanted["patch_size"], wanted["image_size"])
        if wanted["num_channels"] != saved["num_channels"]:
            logger.warning(
                f"{type(self).__name__}: from {saved['num_channels']} to {wanted['num_channels']} channels, by "
                f"channel_init={channel_init!r}. Give the image processor a mean and a deviation for each of them."
            )
            self.resize_channels(wanted["num_channels"], channel_init)
        self.config.mask_block_size = wanted["mask_block_size"]
        self._drop_cells_that_do_not_fit(self.config)
        self.config.check()

    def _add_adapter(self, adapter: str | os.PathLike, adapter_kwargs: dict, name: str | os.PathLike):
        """Loads a PEFT adapter into the model of `name`, or raises `ValueError` if tensors of it are not found."""
        missing = self.load_adapter(os.fspath(adapter), adapter_kwargs=adapter_kwargs).missing_keys
        if missing:  # of another class, or up to transformers 5.17 trained heads (`modules_to_save`)
            raise ValueError(
                f"The adapter {adapter} holds no {sorted(missing)[0]}, which {type(self).__name__} has. If it was "
                "trained with another class, load that one. Otherwise this version of transformers does not find what "
                f"it holds: load {type(self).__name__} from {name}, then use peft.PeftModel.from_pretrained(model, "
                "adapter)."
            )

    def _check_loaded(self, source, stored: dict, info: dict, is_new: bool):
        """Completes the loading info, and raises `ValueError` if weights of the encoder were not found."""
        new_tensors, left_out = (self.__dict__.pop(name, set()) for name in ("_new_tensors", "_left_out"))
        info["missing_keys"] |= new_tensors
        loaded = set(self.state_dict()) - set(info["missing_keys"])
        if is_new:
            return
        if not any(".attention." in name and not name.startswith("decoder.") for name in loaded):
            found = sorted({*left_out, *info["unexpected_keys"], *(name.split(".")[0] for name in loaded)})
            raise ValueError(
                f"{source} holds no encoder with the names of {type(self).__name__}; it holds: {', '.join(found[:5])}. "
                "Save whole models with save_pretrained. Tensors with other names can be renamed by the argument "
                "`key_mapping` of from_pretrained."
            )
        missing, unexpected = (
            sorted(name for name in info[kind] if _part(name) in ("embeddings", "layers"))
            for kind in ("missing_keys", "unexpected_keys")
        )
        if missing and unexpected:
            raise ValueError(
                f"{source} does not hold {missing[0]} but {unexpected[0]}: its encoder is different, or its tensors "
                "were renamed. Rename them with the argument `key_mapping` of from_pretrained."
            )
        has_decoder = any(name.startswith("decoder.") for name in loaded)
        target = bool(stored.get("norm_pix_loss", False))
        if has_decoder and self.config.norm_pix_loss != target:
            logger.warning(
                f"{source} was trained with norm_pix_loss={target}, and it is {not target} now: its decoder has to "
                "learn another target. Leave `norm_pix_loss` out to keep the one of the checkpoint."
            )
        architecture = (stored.get("architectures") or [type(self).__name__])[0]
        if has_decoder and architecture != type(self).__name__:
            logger.warning(
                f"{source} was saved by {architecture}, and {type(self).__name__} may predict something else: load it "
                "with its own class, or train the decoder again."
            )

    def _adjust_missing_and_unexpected_keys(self, loading_info):
        """Names new parts and parts that were left out in one line. Single tensors stay for the library's table."""
        super()._adjust_missing_and_unexpected_keys(loading_info)

        missing, unexpected = loading_info.missing_keys, loading_info.unexpected_keys
        parts = {_part(name) for name in self.state_dict()}
        partly = {_part(name) for name in self.state_dict() if name not in missing} | {"embeddings", "layers"}
        self._new_tensors = {name for name in missing if _part(name) not in partly}
        self._left_out = {_part(name) for name in unexpected if _part(name) not in parts}
        missing -= self._new_tensors
        unexpected -= {name for name in unexpected if _part(name) in self._left_out}
        new = {_part(name) for name in self._new_tensors}
        is_head = self.base_model is not self  # an encoder need not mention that it leaves out the decoder
        if new or (is_head and self._left_out):
            groups = (("new, to be trained", new), ("left out of the checkpoint", self._left_out))
            line = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in groups if names)
            logger.warning(f"{type(self).__name__}: {line}.")

    def _set_trainable(self):
        for module in self.modules():
            if isinstance(getattr(module, "position_embeddings", None), nn.Parameter):
                learned = self.config.position_embedding == "learned"
                module.position_embeddings.requires_grad_(self._is_fine_tuned or learned)
                if module.mask_token is not None:
                    module.mask_token.requires_grad_(not self._is_fine_tuned)

    # ------------------------------------------------------------------------------------------------------------------
    # Resizing

    def resize_position_embeddings(self, image_size: int | tuple[int, int]):
        """Resamples the position tables of encoder and decoder to another image size, in place.

        Args:
            image_size (`int` or `(height, width)`): Pixels, multiples of the patch. Becomes `config.image_size`.

        Raises:
            ValueError: If `patch_size` does not divide it, or parts of the model are offloaded.
        """
        self._resize(None, None, image_size=image_size)

    def resize_patches(self, patch_size: int | tuple[int, int], image_size: int | tuple[int, int] | None = None):
        """Resamples the patch embedding, the decoder's head and the position tables to another patch size, in place.

        The embedding is resized such that an enlarged patch (bicubic) gives the same token as the original patch, or
        nearly the same if patches become smaller. Source: FlexiViT (Beyer et al. 2022, arXiv
        2212.08013, section 3.4). The head predicts the patch that it predicted before, resized (bicubic).

        Args:
            patch_size (`int` or `(height, width)`): Pixels. Becomes `config.patch_size`.
            image_size (`int` or `(height, width)`, *optional*): Pixels. Becomes `config.image_size`, which stays as it
                is by default.

        Raises:
            ValueError: If the patch does not divide the image, or parts of the model are offloaded.
        """
        image_size = self.config.image_size if image_size is None else image_size
        old, new = height_width(self.config.patch_size), height_width(patch_size)
        resize_input = resize_output = None
        if old != new:
            matrix = patch_resampling(old, new)  # (old P, new P)
            resize_input, resize_output = _multiply_pixels(torch.linalg.pinv(matrix).T), _multiply_pixels(matrix)
        self._resize(resize_input, resize_output, image_size=image_size, patch_size=patch_size)

    def resize_channels(self, num_channels: int, channel_init: str = "repeat"):
        """Changes the number of channels of a pre-trained model, in place: patch embedding and decoder head.

        Args:
            num_channels (`int`): Number of channels. Becomes `config.num_channels`.
            channel_init (`"repeat"`, `"mean"` or `"zero"`): What the additional channels start from: the old ones,
                repeated; their mean; or zero. With `"repeat"` and `"mean"` the patch embedding is scaled by old / new,
                so that its output keeps its scale (as timm does); with `"zero"` the model computes from the old
                channels what it did before. If there are fewer channels than before, all get the scaled mean: one grey
                channel gives what its copies in all the old channels gave.

        Raises:
            ValueError: If `channel_init` or `num_channels` is none of these, or parts of the model are offloaded.
        """
        if channel_init not in ("repeat", "mean", "zero"):
            raise ValueError(f"`channel_init` must be 'repeat', 'mean' or 'zero', got {channel_init!r}.")
        old = self.config.num_channels

        def resize_and_scale(weights: torch.Tensor) -> torch.Tensor:
            return resize(weights) * (1 if channel_init == "zero" and num_channels > old else old / num_channels)

        def resize(weights: torch.Tensor) -> torch.Tensor:
            weights = weights.unflatten(-1, (-1, old))  # (..., P, C)
            mean = weights.mean(dim=-1, keepdim=True)
            if num_channels < old:
                weights = mean.expand(*mean.shape[:-1], num_channels)
            elif channel_init == "repeat":
                weights = weights[..., torch.arange(num_channels) % old]
            else:
                new = mean if channel_init == "mean" else torch.zeros_like(mean)
                weights = torch.cat([weights, new.expand(*mean.shape[:-1], num_channels - old)], dim=-1)
            return weights.flatten(-2)

        self._resize(resize_and_scale, resize, num_channels=num_channels)

    @torch.no_grad()
    def _resize(self, resize_input: Resize | None, resize_output: Resize | None, **sizes):
        if getattr(self, "hf_device_map", None) and any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError(
                "Parts of the model are offloaded and can't be resized. Load it into memory at the new `image_size`, "
                "`patch_size` or `num_channels`, save it, and load that with `device_map`."
            )
        sizes = {name: list(size) if isinstance(size, tuple) else size for name, size in sizes.items()}
        changed = copy.deepcopy(self.config)
        for config in (changed, self.config):
            for name, size in sizes.items():
                setattr(config, name, size)
            self._drop_cells_that_do_not_fit(config)
            config.check()  # the copy first: if the sizes are refused, the model stays as it is
        for module in self.modules():
            if isinstance(module, ResizableModule):
                module.resize_weights(self.config, resize_input, resize_output)

    def _drop_cells_that_do_not_fit(self, config: MAEConfig):
        """Lets models without a decoder have any grid: that `mask_block_size` divides it matters in pre-training."""
        if not hasattr(self, "decoder") and any(size % config.mask_block_size for size in config.grid_size):
            config.mask_block_size = 1

    # ------------------------------------------------------------------------------------------------------------------
    # Freezing

    def _num_layers(self) -> int:
        """Returns how many blocks of the encoder are run."""
        return len(self.base_model.layers)

    def freeze_encoder(self, num_trainable_layers: float = 0):
        """Freezes the encoder except for its last blocks: for partial fine-tuning, or with 0 for a probe.

        Args:
            num_trainable_layers (`float`, *optional*, defaults to 0): How many blocks stay trainable, together with the
                final norm. They are the last blocks that are run, see [`MAEBackbone`]. A half is the MLP of a block
                with its norm. Source: He et al. 2021, Fig. 9.

        Raises:
            ValueError: If the number is not a multiple of a half or larger than the number of blocks.
        """
        encoder, depth = self.base_model, self._num_layers()
        if not 0 <= num_trainable_layers <= depth or num_trainable_layers * 2 % 1:
            raise ValueError(
                f"`num_trainable_layers` must be a multiple of 0.5 in [0, {depth}], got {num_trainable_layers}."
            )
        encoder.requires_grad_(False)
        whole = int(num_trainable_layers)
        trainable = list(encoder.layers[depth - whole : depth])
        if num_trainable_layers % 1:
            layer = encoder.layers[depth - whole - 1]
            trainable += [layer.layernorm_after, layer.mlp]
        for module in [*trainable, *([encoder.layernorm] if trainable else [])]:
            module.requires_grad_(True)


def _part(name: str) -> str:
    """Returns the part of a model that a tensor belongs to: `embeddings`, `layers`, `decoder` and so on."""
    return name.removeprefix("mae.").split(".")[0]


def _multiply_pixels(matrix: torch.Tensor) -> Resize:
    """Returns a function that multiplies the pixels of weights (..., P * C) by a matrix (P, new P)."""

    def resize(weights: torch.Tensor) -> torch.Tensor:
        pixels = weights.double().unflatten(-1, (len(matrix), -1))  # (..., P, C)
        return torch.einsum("...pc,pq->...qc", pixels, matrix.to(weights.device)).flatten(-2).to(weights.dtype)

    return resize


def _base_of_adapter(source: str | os.PathLike | None, hub_kwargs: dict) -> str | None:
    """Returns the folder or name of the model that a PEFT adapter was made for, or `None` if `source` is no adapter."""
    if not is_peft_available():
        return None
    path = find_adapter_config_file(source, **hub_kwargs)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))["base_model_name_or_path"]


__all__ = ["HUB_KWARGS", "OF_TRANSFORMERS", "LoadingMixin", "ResizableModule"]
