# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Shows a model on a page to click: hide patches and see what it makes of the others. Also writes that page as a Space.

What the page does are methods of [`Explorer`], which know nothing of Gradio; [`build_demo`] arranges them. Gradio is an
extra, and is imported only where a page is built.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from types import ModuleType, SimpleNamespace

import PIL.Image
import PIL.ImageDraw
import torch
from huggingface_hub.utils import validate_repo_id
from torch.utils.data import DataLoader, Subset
from transformers.hf_argparser import HfArg
from transformers.image_processing_utils import BatchFeature

from .conversion.files import written_whole
from .data.checking import check_embedded
from .data.decoding import try_to_read
from .data.sampling import spread_indices
from .evaluation.feature_sheets import nearest_images
from .evaluation.features import compute_features
from .evaluation.inference import (
    ReadableImages,
    SourceArguments,
    choose_device,
    collate_readable,
    open_source,
    printable,
)
from .evaluation.visualization import enlarged, heat_map, load_with_processor, loss_maps
from .modeling.image_processing_mae import MAEImageProcessor
from .modeling.masking_mae import choose_mask, number_of_masks
from .modeling.modeling_mae import MAEForPreTraining
from .modeling.reading_mae import OpenedImage
from .modeling.saving_mae import explaining_missing
from .publishing.records import check_is_model
from .training.arguments import fit_values, parse_arguments, recipe_of

_SIDE, _THUMBNAIL = 336, 96  # pixels of the shorter side that smaller pictures are enlarged to
_CHOICES, _NEIGHBORS = 10, 8  # pictures to choose from, and that are near to one
_LINE, _FRAME = (190, 190, 190), (0, 190, 255)  # colours between patches, and around the one that was clicked
_BATCH = 32
_SHARES, _MASKS = (0.1, 0.95), (2, 16)  # of the sliders: the most masks can hide every patch with the smallest share
GRADIO = "6.31.0"  # what a Space runs on: the version that the tests pass with
_DESCRIPTION = """Open a page in the browser on which a model can be tried: hide and show patches, see what it predicts.

  hf-mae demo --model out --data path/to/images
  hf-mae demo --model org/name --space folder     # writes a Space, to be pushed to the Hub as it is

The page shows a picture, what the encoder sees of it and the reconstruction; the attention of a patch; every patch
predicted from others, with its loss; and with --data the pictures that are nearest to it. Needs Gradio:
pip install "hf-mae[demo]"."""


@dataclass
class DemoArguments(SourceArguments):
    """Settings of [`build_demo`]."""

    model: str | None = HfArg(default=None, help="Folder or name on the Hub of a pre-trained model with its decoder.")
    image_size: int | None = HfArg(default=None, help="Pixels, a multiple of the patch. Default: the checkpoint's.")
    num_images: int = HfArg(default=1000, help="Images of --data, evenly spread, among which the nearest are sought.")
    device: str | None = HfArg(default=None, help="Device. Default: cuda if there is a GPU, else cpu.")
    port: int | None = HfArg(default=None, help="Port of the page. Default: the first free one from 7860 on.")
    share: bool = HfArg(default=False, help="Ask Gradio for a public link, for a week. Default: this machine only.")
    space: str | None = HfArg(default=None, help="Folder to write a Space to, instead of opening the page.")

    def __post_init__(self):
        fit_values(self)
        if self.model is None:
            raise ValueError("`model` is missing: a folder or a name on the Hub with a pre-trained model of hf_mae.")
        self.device, _ = choose_device(self.device, 0)


# ----------------------------------------------------------------------------------------------------------------------
# What the page does


@dataclass(frozen=True)
class View:
    """Holds what one visitor looks at.

    Attributes:
        pixel_values (`torch.Tensor` of shape `(1, channels, height, width)`): The picture.
        mask (`torch.BoolTensor` of shape `(1, num_patches)`): True = hidden.
        valid (`torch.BoolTensor` of shape `(1, height, width)`, *optional*): False where pixels are no-data.
    """

    pixel_values: torch.Tensor
    mask: torch.Tensor
    valid: torch.Tensor | None = None


class Explorer:
    """Answers the clicks of a page. Pictures are returned as PIL images, small ones enlarged by a whole factor."""

    def __init__(
        self,
        model: MAEForPreTraining,
        image_processor: MAEImageProcessor,
        images: ReadableImages | None = None,
        with_neighbors: bool = False,
        num_images: int = 1000,
    ):
        """
        Args:
            model ([`MAEForPreTraining`]): The model, in evaluation mode.
            image_processor ([`MAEImageProcessor`]): Its image processor.
            images ([`ReadableImages`], *optional*): Pictures to choose from.
            with_neighbors (`bool`, *optional*, defaults to `False`): Whether the nearest of these are to be found, for
                which their features are computed now.
            num_images (`int`, *optional*, defaults to 1000): Images, evenly spread, among which they are sought.
        """
        self.model, self.image_processor, self.images = model, image_processor, images
        self.choices = [] if images is None else spread_indices(images.images, _CHOICES).tolist()
        self.bank: list[int] = []  # indices of the images that have features
        self.features = torch.empty(0)
        if images is not None and with_neighbors:
            self._compute_features(spread_indices(images.images, num_images).tolist())

    def _compute_features(self, indices: list[int]):
        features = []
        batches = DataLoader(Subset(self.images, indices), _BATCH, collate_fn=collate_readable)
        for found, _, pixel_values, messages in batches:
            for message in messages:
                print(message, flush=True)
            if found:
                self.bank += found
                features.append(self._pooled(pixel_values))
        if not features:
            raise ValueError(f"None of {len(indices)} images of {self.images.images.name} can be read.")
        self.features = torch.cat(features)

    def _pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return compute_features(self.model.mae, pixel_values, ["pooler"])["pooler"].float().cpu()

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_processor.crop_height_width
        patch_height, patch_width = self.model.mae.embeddings.patch_size
        return height // patch_height, width // patch_width

    @property
    def mask_kinds(self) -> dict[str, tuple[str, int]]:
        """Names of the kinds of masks that fit the grid, each with `mask_sampling` and `mask_block_size`."""
        side = max(self.model.config.mask_block_size, 2)
        fits = all(patches % side == 0 for patches in self.grid_size)
        return {
            **{kind: (kind, 1) for kind in ("random", "block", "grid")},
            **({"cells": ("random", side)} if fits else {}),
        }

    @property
    def usual_kind(self) -> str:
        """The kind of mask that the model was trained with."""
        config = self.model.config
        return "cells" if config.mask_block_size > 1 else config.mask_sampling

    def pictures_to_choose(self) -> list[PIL.Image.Image]:
        """Returns small pictures of `choices`. Images that can't be read are taken off the list."""
        images = [image for image in map(self.images.__getitem__, self.choices) if image.pixel_values is not None]
        self.choices = [image.position for image in images]
        return [self._picture(image.pixel_values[None], _THUMBNAIL) for image in images]

    def choose(self, ratio: float, kind: str, seed: float, event) -> tuple:
        """Opens the picture that was clicked in the list.

        Args:
            ratio, kind, seed: The mask, as in [`Explorer.hide`].
            event: What was clicked; its `index` is the place in the list.

        Returns:
            As [`Explorer.upload`].
        """
        features, reason = try_to_read(self.images.images, self.choices[event.index], self._read)
        if features is None:
            raise ValueError(f"The picture can't be read: {reason}")
        return self._opened(features, ratio, kind, seed)

    def upload(self, path: str, ratio: float, kind: str, seed: float) -> tuple:
        """Opens a file, in any format that the image processor reads.

        Args:
            path (`str`): The file.
            ratio, kind, seed: The mask, as in [`Explorer.hide`].

        Returns:
            The view, the original, then as [`Explorer.hide`] without the view, the attention of the class token, two
            empty places for [`Explorer.predict_all`] and its text, and the nearest pictures.

        Raises:
            ValueError: If it can't be read, or does not suit the model.
        """
        try:
            features = self._read(path)
        except Exception as error:  # of any type, as decoders raise them
            name = Path(path).name  # the folder is one of Gradio's
            reason = str(error).replace(path, name).removeprefix(f"{name}: ")
            raise ValueError(f"{name} can't be shown: {reason}") from error
        return self._opened(features, ratio, kind, seed)

    def _read(self, picture: OpenedImage | str) -> BatchFeature:
        return self.image_processor(picture, return_tensors="pt", return_valid=True)

    def _opened(self, features: BatchFeature, ratio: float, kind: str, seed: float) -> tuple:
        pixel_values, valid = (features[name][:1].to(self.model.device) for name in ("pixel_values", "valid"))
        mask = pixel_values.new_zeros(1, self.grid_size[0] * self.grid_size[1], dtype=torch.bool)
        view = View(pixel_values, mask, valid)
        view, *shown = self.hide(view, ratio, kind, seed)
        original, attention = self.attend(view)
        return view, original, *shown, attention, None, None, "", self.nearest(view)

    def hide(self, view: View | None, ratio: float, kind: str, seed: float) -> tuple:
        """Hides patches at random.

        Args:
            view ([`View`]): The picture.
            ratio (`float`): Share of hidden patches, in [0, 1).
            kind (`str`): A key of `mask_kinds`.
            seed (`float`): Decides the mask.

        Returns:
            The view, what the encoder sees, the reconstruction, and how much is hidden.
        """
        pixel_values, sampling = self._checked(view).pixel_values, self.mask_kinds[kind]
        generator = torch.Generator().manual_seed(int(seed or 0))  # None: the field was emptied
        noise = torch.rand(view.mask.shape, generator=generator).to(pixel_values.device)
        _, hidden = choose_mask(pixel_values, self.grid_size, *sampling, ratio, noise)
        return self._shown(replace(view, mask=torch.zeros_like(view.mask).scatter(1, hidden, True)))

    def toggle(self, view: View | None, event) -> tuple:
        """Hides the patch that was clicked if it is visible, else shows it.

        Args:
            view ([`View`]): The picture.
            event: What was clicked; its `index` is the pixel (x, y) of the enlarged picture.

        Returns:
            As [`Explorer.hide`].
        """
        mask, patch = self._checked(view).mask.clone(), self._patch_at(view, event.index)
        mask[0, patch] = ~mask[0, patch]
        return self._shown(replace(view, mask=mask))

    @torch.no_grad()
    def _shown(self, view: View) -> tuple:
        hidden, total = int(view.mask.sum()), view.mask.numel()
        output = self.model.reconstruct(view.pixel_values, bool_masked_pos=view.mask)
        # With nothing hidden the model predicts visible patches, which it was not trained for.
        predicted = output.reconstruction if hidden else view.pixel_values
        seen = self._with_lines(self._picture(output.masked))
        return view, seen, self._picture(predicted), f"{hidden} of {total} patches are hidden ({hidden / total:.0%})."

    @torch.no_grad()
    def attend(self, view: View | None, event=None) -> tuple[PIL.Image.Image, PIL.Image.Image]:
        """Shows what a patch attends to in the last block, the mean over its heads. The encoder sees everything.

        Args:
            view ([`View`]): The picture.
            event (*optional*): As in [`Explorer.toggle`]. Without one the class token is shown.

        Returns:
            The original and the map, from black to yellow, both with a frame around the patch.
        """
        pixel_values, num_class_tokens = self._checked(view).pixel_values, self.model.config.num_class_tokens
        weights = self.model.mae(pixel_values, output_attentions=True).attentions[-1][0].mean(dim=0)  # (tokens, tokens)
        original = self._picture(pixel_values)
        if event is None:
            values = weights[:num_class_tokens, num_class_tokens:].mean(dim=0)
            return original, heat_map(values, self.grid_size, original.size)
        patch = self._patch_at(view, event.index)
        attention = heat_map(weights[num_class_tokens + patch, num_class_tokens:], self.grid_size, original.size)
        return self._framed(original, patch), self._framed(attention, patch)

    def predict_all(
        self, view: View | None, ratio: float, num_masks: float
    ) -> tuple[PIL.Image.Image, PIL.Image.Image, str]:
        """Predicts every patch from others, with masks of the model's own kind that complement each other.

        Args:
            view ([`View`]): The picture.
            ratio (`float`): Share of hidden patches, in (0, 1).
            num_masks (`float`): Number of masks.

        Returns:
            The reconstruction, the loss of each patch from black to yellow, black where there is no data, and the range
            of the losses.
        """
        pixel_values, valid = self._checked(view).pixel_values, view.valid
        number = number_of_masks(ratio, int(num_masks))
        whole = self.model.reconstruct_all(pixel_values, number, ratio, valid=valid)
        picture = self._picture(whole.reconstruction)
        (losses,), (low, high) = loss_maps(whole.patch_losses, picture.size)
        return picture, losses, f"{number} masks; losses of patches from {low:.2f} (black) to {high:.2f} (yellow)."

    def nearest(self, view: View) -> list[tuple[PIL.Image.Image, str]]:
        """Returns the pictures with the nearest features and 1 - cosine of each, none if there are no features.

        Args:
            view ([`View`]): The picture. It is left out if it is one of them.
        """
        if not self.bank:
            return []
        features = torch.cat([self.features, self._pooled(view.pixel_values)])
        (indices,), (cosines,) = nearest_images(features, [len(self.bank)], _NEIGHBORS)
        found = [
            (self.images[self.bank[index]].pixel_values[None], f"{1 - cosine:.2f}")
            for index, cosine in zip(indices, cosines.tolist(), strict=True)
            if index >= 0
        ]
        shown = view.pixel_values.cpu()  # among very few pictures its cosine does not give it away
        return [(self._picture(pixels, _THUMBNAIL), text) for pixels, text in found if not torch.equal(pixels, shown)]

    def _checked(self, view: View | None) -> View:
        if view is None:
            raise ValueError("Choose or upload a picture first.")
        return view

    def _picture(self, pixel_values: torch.Tensor, side: int = _SIDE) -> PIL.Image.Image:
        (picture,) = self.image_processor.post_process_reconstruction(pixel_values)
        return picture.convert("RGB").resize(enlarged(picture.size, side), PIL.Image.Resampling.NEAREST)

    def _patch_at(self, view: View, place: tuple[float, float]) -> int:
        """Returns the patch at (x, y) of the enlarged picture."""
        (rows, columns), (height, width) = self.grid_size, view.pixel_values.shape[2:]
        width, height = enlarged((width, height), _SIDE)
        x, y = place
        row, column = int(y * rows // height), int(x * columns // width)
        return min(max(row, 0), rows - 1) * columns + min(max(column, 0), columns - 1)

    def _with_lines(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        (rows, columns), (width, height), draw = self.grid_size, picture.size, PIL.ImageDraw.Draw(picture)
        for row in range(1, rows):
            draw.line([(0, row * height // rows), (width, row * height // rows)], fill=_LINE)
        for column in range(1, columns):
            draw.line([(column * width // columns, 0), (column * width // columns, height)], fill=_LINE)
        return picture

    def _framed(self, picture: PIL.Image.Image, patch: int) -> PIL.Image.Image:
        (rows, columns), (row, column) = self.grid_size, divmod(patch, self.grid_size[1])
        width, height = picture.width // columns, picture.height // rows
        box = (column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1)
        PIL.ImageDraw.Draw(picture).rectangle(box, outline=_FRAME, width=3)
        return picture


def load_explorer(args: DemoArguments) -> Explorer:
    """Loads the model and opens the images. Prints how many are searched.

    Args:
        args ([`DemoArguments`]): The settings.

    Raises:
        ValueError: If the model has no decoder, or there are no images.
    """
    model, image_processor = load_with_processor(args.model, args.image_size)
    model.to(args.device)
    images = open_source(args, image_processor)
    try:
        check_embedded(images, image_processor)
    except ValueError:  # they are grey, and the model takes bands or 16 bits: pictures can be uploaded
        return Explorer(model, image_processor)
    if args.data is not None:
        print(f"Features of {min(args.num_images, len(images)):,} images from {printable(images.name)}", flush=True)
    readable = ReadableImages(images, image_processor)
    return Explorer(model, image_processor, readable, args.data is not None, args.num_images)


# ----------------------------------------------------------------------------------------------------------------------
# The page


def import_gradio() -> ModuleType:
    """Returns the module, which is an extra, and which sends no statistics from here.

    Raises:
        ImportError: If it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ImportError(f'The page needs Gradio: pip install "hf-mae[demo]" ({error}).') from error
    return gradio


def build_demo(args: DemoArguments):
    """Returns the page, a `gradio.Blocks`, to be opened with its method `launch`.

    Args:
        args ([`DemoArguments`]): The settings.

    Raises:
        ImportError: If Gradio is not installed.
        ValueError: If the model has no decoder, or there are no images.
    """
    gr = import_gradio()
    explorer = load_explorer(args)
    with gr.Blocks(title=f"{args.model}: a masked autoencoder", fill_width=True) as demo:
        view = gr.State()
        gr.Markdown(
            f"## {args.model}\nA masked autoencoder predicts the hidden patches of a picture from the visible ones. "
            "Choose a picture or upload one, then click its patches."
        )
        pictures = explorer.pictures_to_choose()
        gallery = _add_gallery(gr, "choose", pictures, _CHOICES, visible=bool(pictures))
        with gr.Row():
            with gr.Column(scale=1, min_width=250):
                controls = _add_controls(gr, explorer)
            with gr.Column(scale=4):
                shown = _add_pictures(gr, explorer)
        _connect(explorer, demo, view, gallery, controls, shown)
    return demo


def _add_gallery(gr: ModuleType, name: str, pictures: list | None, columns: int, visible: bool):
    options = {"show_label": False, "allow_preview": False, "buttons": [], "format": "png", "object_fit": "contain"}
    return gr.Gallery(
        pictures, elem_id=name, columns=columns, height=150, visible=visible, interactive=False, **options
    )


def _add_controls(gr: ModuleType, explorer: Explorer) -> SimpleNamespace:
    ratio, kinds = explorer.model.config.mask_ratio, list(explorer.mask_kinds)
    controls = SimpleNamespace()
    controls.upload = gr.UploadButton("Upload a picture", elem_id="upload", size="md")
    with gr.Group():
        controls.ratio = gr.Slider(
            *_SHARES, max(ratio, _SHARES[0]), step=0.05, label="Share of hidden patches", buttons=[]
        )
        controls.kind = gr.Radio(kinds, value=explorer.usual_kind, label="Kind of mask")
        controls.seed = gr.Number(0, label="Seed of the mask", precision=0, minimum=0, maximum=2**53)
    with gr.Group():
        controls.masks = gr.Slider(*_MASKS, 4, step=1, label="Number of masks", buttons=[])
        controls.predict_all = gr.Button("Predict every patch", variant="primary", elem_id="predict-all", size="md")
    return controls


def _add_pictures(gr: ModuleType, explorer: Explorer) -> SimpleNamespace:
    def add(name: str, caption: str):
        with gr.Column(min_width=200):
            gr.Markdown(caption)
            # Without a label of its own, which would lie on the patches of the upper left.
            options = {"show_label": False, "buttons": [], "format": "png", "type": "pil", "interactive": False}
            return gr.Image(label=name, elem_id=name, **options)

    shown = SimpleNamespace()
    with gr.Row():
        shown.original = add("original", "**Original**: click a patch for its attention")
        shown.seen = add("seen", "**What the encoder sees**: click to hide or show")
        shown.reconstruction = add("reconstruction", "**Reconstruction** from the visible patches")
    shown.status = gr.Markdown(elem_id="status")
    with gr.Row():
        shown.attention = add("attention", "**Attention** of the class token, or of the clicked patch")
        shown.whole = add("whole", "**Every patch predicted** from others")
        shown.losses = add("losses", "**Loss** of each patch")
    shown.whole_status = gr.Markdown(elem_id="whole-status")
    if explorer.bank:
        gr.Markdown("**Nearest pictures**, with 1 - cosine of their features")
    shown.neighbors = _add_gallery(gr, "neighbors", None, _NEIGHBORS, visible=bool(explorer.bank))
    return shown


def _connect(explorer: Explorer, demo, view, gallery, controls: SimpleNamespace, shown: SimpleNamespace):
    """Lets the parts of the page call the methods of the explorer."""
    from gradio import SelectData  # by this annotation Gradio knows which handlers want to know what was clicked

    mask = [controls.ratio, controls.kind, controls.seed]
    masked = [view, shown.seen, shown.reconstruction, shown.status]
    whole = [shown.whole, shown.losses, shown.whole_status]
    opened = [view, shown.original, *masked[1:], shown.attention, *whole, shown.neighbors]

    def choose(ratio, kind, seed, event: SelectData):
        return explorer.choose(ratio, kind, seed, event)

    def toggle(view, event: SelectData):
        return explorer.toggle(view, event)

    def attend(view, event: SelectData):
        return explorer.attend(view, event)

    if explorer.choices:
        first = SimpleNamespace(index=0)
        demo.load(lambda ratio, kind, seed: explorer.choose(ratio, kind, seed, first), mask, opened)
    gallery.select(_warning(choose), mask, opened)
    controls.upload.upload(_warning(explorer.upload), [controls.upload, *mask], opened)
    for change in (controls.ratio.release, controls.kind.change, controls.seed.change):
        change(_warning(explorer.hide), [view, *mask], masked)
    shown.seen.select(_warning(toggle), view, masked)
    shown.original.select(_warning(attend), view, [shown.original, shown.attention])
    controls.predict_all.click(_warning(explorer.predict_all), [view, controls.ratio, controls.masks], whole)


def _warning(handler: Callable) -> Callable:
    """Returns a handler that warns of a mistake and leaves all pictures, where Gradio would replace them by errors."""
    gr = import_gradio()

    @wraps(handler)  # with its annotations, by which Gradio knows what it takes
    def handle(*values):
        try:
            return handler(*values)
        except (ValueError, OSError) as error:
            gr.Warning(str(error))
            return gr.skip()

    return handle


# ----------------------------------------------------------------------------------------------------------------------
# A Space

_APP = '''"""Shows {model} on a page to click. Written by `hf-mae demo --space`."""

{imports}from hf_mae.demo import DemoArguments, build_demo

demo = build_demo(DemoArguments(model={argument}{settings}))

if __name__ == "__main__":
    demo.launch(show_error=True)
'''
_CARD = """---
title: {title}
emoji: 🧩
colorFrom: blue
colorTo: indigo
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
license: apache-2.0
{models}---

A page to try {model}, a masked autoencoder: hide and show patches of a picture and see what the model predicts for
them, what a patch attends to, and how badly each patch is predicted from others. Made with hf_mae;
the license above is that of this page.
"""
_NOT_OF_A_SPACE = {"model", "space", "port", "share", "device"}  # settings of this machine, and the model itself
_REQUIREMENTS = "hf-mae=={version}\n"  # brings torch. Gradio itself is installed by `sdk_version`.


def write_space(args: DemoArguments) -> Path:
    """Writes a Space with the page and returns its folder. The model stays on the Hub; a folder of one is copied in.

    Args:
        args ([`DemoArguments`]): The settings: `space`, `model`, `data`, which must be a name on the Hub, and what the
            page is to do with them.

    Raises:
        OSError: If there is no such model.
        ValueError: If the folder is not empty, the images are on this machine, or the page could not show the model.
    """
    from . import __version__

    folder = Path(args.space)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"`space` {folder} is not empty. Name another folder.")
    if args.data is not None and Path(args.data).exists():
        raise ValueError(
            f"`data` {args.data} is on this machine, where the Space can't read it. Name a data set on the "
            "Hub, or none."
        )
    if Path(args.model).is_dir():
        check_is_model(Path(args.model))  # an adapter would be copied without its model
        load_with_processor(args.model, args.image_size)  # raises if the page could not show it
    else:
        with explaining_missing(args.model):
            validate_repo_id(args.model)
    with written_whole(folder) as place:
        place.mkdir()
        title, argument, models, imports = args.model, repr(args.model), f"models:\n- {args.model}\n", ""
        if Path(args.model).is_dir():
            title = Path(args.model).resolve().name
            argument, models = 'str(Path(__file__).parent / "model")', ""
            imports = "from pathlib import Path\n\n"
            _copy_model(Path(args.model), place / "model")
        settings = "".join(f", {name}={value!r}" for name, value in recipe_of(args, _NOT_OF_A_SPACE).items())
        texts = {
            "app.py": _APP.format(model=title, argument=argument, settings=settings, imports=imports),
            "README.md": _CARD.format(title=title.split("/")[-1], model=title, gradio=GRADIO, models=models),
            "requirements.txt": _REQUIREMENTS.format(version=__version__),
        }
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
    return folder


def _copy_model(source: Path, target: Path):
    """Copies the files that `from_pretrained` reads, and no checkpoints of a run."""
    target.mkdir()
    for pattern in ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"):
        for file in source.glob(pattern):
            shutil.copy(file, target)


def demo_command(argv: list[str], prog: str) -> None:
    """Runs `hf-mae demo`.

    Args:
        argv (`list[str]`): Arguments of the command.
        prog (`str`): What the command is called.
    """
    args = parse_arguments(DemoArguments, argv, prog=prog, description=_DESCRIPTION)
    if args.space is not None:
        folder = write_space(args)
        print(f"{folder} holds a Space. Push it: hf upload org/name {folder} --repo-type space")
        return
    build_demo(args).launch(server_port=args.port, share=args.share, show_error=True)


__all__ = [
    "GRADIO",
    "DemoArguments",
    "Explorer",
    "View",
    "build_demo",
    "demo_command",
    "import_gradio",
    "load_explorer",
    "write_space",
]
