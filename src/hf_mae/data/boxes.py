# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Images with boxes: checked against the pictures, numbered by class, and the views that a detector is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from ..modeling.formats_mae import ORIENTATIONS, exif_orientation
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.reading_mae import OpenedImage, fill_missing, read_stored, to_byte_range
from .augmentation import RandomOrientation, ScaledView
from .box_files import AnnotatedImages, Label, StatedBoxes
from .box_files.stated import NOT_A_BOX
from .datasets import warn_of_unreadable
from .decoding import displayed_size, read_image, read_in_threads, try_to_read
from .folders import FolderImages
from .held_out import select
from .image_source import ImageSource, digest
from .sources import FashionMNISTImages

_TOLERANCE = 0.01  # share of a side by which boxes may protrude, and at least
_TOLERANCE_PIXELS = 2  # pixels: what programs make by rounding
_SHOWN = 5  # faults that a message lists
MIN_VISIBLE = 0.3  # share of a box's area that a view must show, or the box is left out of it
BROKEN = ("refuse", "clip", "drop")


@dataclass
class Boxes:
    """Holds the boxes of one image.

    Attributes:
        corners (`np.ndarray` of float32, of shape `(boxes, 4)`): Left, top, right and bottom as shares of the sides of
            the image as it is displayed, in [0, 1].
        classes (`np.ndarray` of int64, of shape `(boxes,)`): Numbers of the classes.
        crowd (`np.ndarray` of bool, of shape `(boxes,)`): Boxes that do not count: not trained on, and neither asked
            for nor counted against the model in evaluation.
        size (`(width, height)`): Pixels of the image as it is displayed.
    """

    corners: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    size: tuple[int, int]


@dataclass
class BoxedImages:
    """Holds images with their boxes.

    Attributes:
        images ([`ImageSource`]): The images.
        boxes (`list[Boxes]`): One for each image.
        names (`list[str]`): Names of the classes.
        kind (`str`): Format of the boxes.
        notes (`list[str]`): What was turned, clipped or left out, to be printed.
    """

    images: ImageSource
    boxes: list[Boxes]
    names: list[str]
    kind: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def counts(self) -> np.ndarray:
        """Boxes of each class that count, int64 `(classes,)`."""
        classes = np.concatenate([boxes.classes[~boxes.crowd] for boxes in self.boxes] or [np.zeros(0, dtype=np.int64)])
        return np.bincount(classes, minlength=len(self.names))

    @property
    def fingerprint(self) -> str:
        """A text that changes with the images and their boxes."""
        parts = [array for boxes in self.boxes for array in (boxes.corners, boxes.classes, boxes.crowd)]
        return digest(self.images.fingerprint, "\n".join(self.names), *parts)

    def select(self, chosen: np.ndarray) -> "BoxedImages":
        """Returns some of the images. `chosen` is bool `(images,)`."""
        boxes = [boxes for boxes, here in zip(self.boxes, chosen, strict=True) if here]
        return replace(self, images=select(self.images, chosen), boxes=boxes)


# ----------------------------------------------------------------------------------------------------------------------
# Checking


def number_classes(
    splits: Sequence[AnnotatedImages], class_names: list[str] | None = None, known: list[str] | None = None
) -> tuple[list[str], dict[Label, int]]:
    """Returns the names of the classes and the number of each class, by what the files call it, alike in all splits.

    Classes that files list come in the order of the list, COCO's by their ids; others in the order of their names. A
    class that is listed twice counts once: some programs list the data set itself, under the name of its only class.

    Args:
        splits (`Sequence[AnnotatedImages]`): All splits.
        class_names (`list[str]`, *optional*): Names of the classes 0, 1, ..., for files that number them without names,
            or those of the named classes in another order.
        known (`list[str]`, *optional*): Names of the classes of a trained model. They are taken, in its order, if they
            include all that there are; numbers without names are then its numbers.

    Returns:
        `(names, numbers)`: `list[str]` and `dict`.

    Raises:
        ValueError: If the splits list different classes, names do not fit, or classes of one name have boxes.
    """
    stated = [split.names for split in splits if split.names is not None]
    if any(names != stated[0] for names in stated):
        raise ValueError(
            f"The splits list different classes: {list(stated[0].items())} and {list(stated[1].items())}. They must "
            "have the same numbers and names."
        )
    shown = sorted({label for split in splits for each in split.stated for label in each.labels}, key=_by_type)
    if stated:
        names, numbers = _number_listed(stated[0], shown, class_names)
    else:
        names, numbers = _number_shown(shown, class_names, known)
    if known is None or not set(names) <= set(known):
        return names, numbers
    return known, {label: known.index(names[number]) for label, number in numbers.items()}


def _number_shown(
    shown: list[Label], class_names: list[str] | None, known: list[str] | None
) -> tuple[list[str], dict[Label, int]]:
    """Returns names and numbers of classes that nothing lists, of which `shown` have boxes."""
    labels: Sequence[Label] = [label for label in shown if label not in ("", -1)]
    has_names = any(isinstance(label, str) for label in shown)
    if class_names is None and known is not None and not has_names and max(map(int, labels), default=0) < len(known):
        class_names = known
    if class_names is not None:
        names, labels = class_names, class_names if has_names else range(len(class_names))
    else:
        names = [str(label) for label in labels]
    if len(set(names)) < len(names):
        raise ValueError(f"Some of the classes have the same name: {names}. Every class needs another one.")
    return names, {label: number for number, label in enumerate(labels)}


def _number_listed(
    listed: dict[Label, str], shown: list[Label], class_names: list[str] | None
) -> tuple[list[str], dict[Label, int]]:
    """Returns names and numbers of classes that files list, of which `shown` have boxes."""
    names = list(dict.fromkeys(listed.values()))
    for name in names:
        alike = [str(label) for label in shown if listed.get(label) == name]
        if len(alike) > 1:
            raise ValueError(
                f"There are boxes of {len(alike)} classes that are called {name}: {', '.join(alike)}. Give each "
                "another name, or their boxes one number."
            )
    if class_names is not None and class_names != names:
        raise ValueError(f"`class_names` are {class_names}, but the files name them {names}. Leave `class_names` out.")
    return names, {label: names.index(name) for label, name in listed.items()}


def _by_type(label: Label) -> tuple:
    return isinstance(label, str), label


def check_boxes(
    annotated: AnnotatedImages,
    names: list[str],
    numbers: dict[Label, int],
    image_processor: MAEImageProcessor,
    broken: str = "refuse",
    orientation: str = "auto",
) -> BoxedImages:
    """Checks boxes against the sizes of their images, which it reads, and returns boxes as shares of the sides.

    Boxes that protrude by up to a hundredth of the side, and at least two pixels, are clipped, as programs round. Boxes
    without an area are left out and counted.

    Args:
        annotated ([`AnnotatedImages`]): Images and what is stated about them.
        names (`list[str]`): Names of the classes.
        numbers (`dict`): Number of each class by what the files call it, see [`number_classes`].
        image_processor ([`MAEImageProcessor`]): Says how files are read.
        broken (`str`, *optional*, defaults to `"refuse"`): What to do with boxes that are no four finite numbers, have
            a negative side, protrude further or have a class that is not listed: `"refuse"` names them, `"drop"` leaves
            them out, and `"clip"` cuts those that protrude and leaves out the others.
        orientation (`str`, *optional*, defaults to `"auto"`): What boxes of pictures with an EXIF orientation refer to:
            `"displayed"`, the picture as viewers turn it, or `"stored"`. `"auto"` takes `"displayed"` unless the size
            that an annotation states is that of the stored picture.

    Raises:
        OSError: If an image can't be read.
        ValueError: If there are broken boxes, or an annotation states another size than its image has.
    """
    pictures = _look_at(annotated.images, image_processor)
    _check_stated_sizes(annotated, pictures)
    stored = _refer_to_stored(annotated, pictures, orientation)
    found, result = _Findings(), []
    for stated, picture, of_stored in zip(annotated.stated, pictures, stored, strict=True):
        corners = _in_shares(stated, picture.size, picture.exif if of_stored else 1)
        kept = _keep(stated, corners, numbers, picture.size, broken == "clip", found)
        clipped = corners[kept].clip(0, 1).astype(np.float32)
        classes = np.array([numbers.get(label, -1) for label in stated.labels], dtype=np.int64)[kept]
        crowd = np.array(stated.crowd, dtype=bool)[kept]
        result.append(Boxes(clipped, classes, crowd, picture.size))
    if found.faults and broken == "refuse":
        raise ValueError(_message(found.faults, annotated))
    notes = [*annotated.notes, *_notes_on_orientation(pictures, stored), *found.notes()]
    return BoxedImages(annotated.images, result, names, annotated.kind, notes)


class _Picture(NamedTuple):
    """Holds what is known of a picture without its pixels.

    Attributes:
        width, height (`int`): Pixels of its sides as it is displayed.
        exif (`int`): The orientation in which it is stored, as EXIF numbers them. 1: as it is displayed.
    """

    width: int
    height: int
    exif: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def swaps(self) -> bool:
        """Whether the sides are stored in the other order."""
        return self.exif != 1 and ORIENTATIONS[self.exif][0]


@dataclass
class _Findings:
    """Collects faults of boxes: descriptions of broken ones, and how many are without an area, clipped or cut off."""

    faults: list[str] = field(default_factory=list)
    empty: int = 0
    clipped: int = 0
    cut: int = 0

    def notes(self) -> list[str]:
        broken = f"broken boxes are left out, such as {self.faults[0]}." if self.faults else ""
        counts = {
            broken: len(self.faults),
            "boxes without an area are left out.": self.empty,
            "boxes that protrude from their picture a little are clipped.": self.clipped,
            "boxes that protrude from their picture are cut off at its edge.": self.cut,
        }
        return [f"{count:,} {text}" for text, count in counts.items() if count]


def _message(faults: list[str], annotated: AnnotatedImages) -> str:
    total = sum(len(stated.boxes) for stated in annotated.stated)
    more = f"\n  and {len(faults) - _SHOWN:,} more" if len(faults) > _SHOWN else ""
    return (
        f"{len(faults):,} of {total:,} boxes ({annotated.kind}) are broken:\n  "
        + "\n  ".join(faults[:_SHOWN])
        + f"{more}\nShown are left, top, right and bottom. Correct them, set `broken_boxes` to drop (leave them out) "
        "or clip (cut off what protrudes). If most are broken, the format may be another one: see `box_format`, "
        "`box_orientation` and `class_names`."
    )


def _look_at(images: ImageSource, image_processor: MAEImageProcessor) -> list[_Picture]:
    """Returns the size and the orientation of each image.

    Raises:
        OSError: If an image can't be read.
    """

    def look(image: OpenedImage) -> _Picture:
        exif = exif_orientation(image) if isinstance(image, PIL.Image.Image) else 1
        height, width = displayed_size(image, image_processor.num_channels, image_processor.reading)
        return _Picture(width, height, exif if exif in ORIENTATIONS else 1)

    def read(index: int) -> _Picture:
        picture, reason = try_to_read(images, index, look)
        if picture is None:
            raise OSError(f"{images.describe(index)} can't be read: {reason}. Mend it or take it out.")
        return picture

    if isinstance(images, FolderImages):
        return read_in_threads(read, len(images))
    return [read(index) for index in range(len(images))]  # readers of shards are not made for threads


def _check_stated_sizes(annotated: AnnotatedImages, pictures: list[_Picture]):
    """Refuses annotations whose stated size is neither the size of the displayed picture nor of the stored one."""
    wrong = [
        index
        for index, (stated, picture) in enumerate(zip(annotated.stated, pictures, strict=True))
        if stated.size not in (None, picture.size, picture.size[::-1] if picture.swaps else None)
    ]
    if wrong:
        stated, picture = annotated.stated[wrong[0]], pictures[wrong[0]]
        raise ValueError(
            f"{len(wrong):,} of {len(pictures):,} annotations state another size than their images have, first "
            f"{stated.file}: {stated.size[0]} x {stated.size[1]} for {annotated.images.describe(wrong[0])} of "
            f"{picture.width} x {picture.height} pixels (width x height). Their boxes would be in wrong places."
        )


def _refer_to_stored(annotated: AnnotatedImages, pictures: list[_Picture], orientation: str) -> list[bool]:
    """Returns for each image whether its boxes refer to the stored picture, and not to the displayed one."""
    if orientation != "auto":
        return [orientation == "stored"] * len(pictures)
    known = {
        index: stated.size == picture.size[::-1]
        for index, (stated, picture) in enumerate(zip(annotated.stated, pictures, strict=True))
        if picture.swaps and stated.size is not None and picture.width != picture.height
    }
    by_default = bool(known) and all(known.values())  # of pictures whose sizes do not tell, such as mirrored ones
    return [known.get(index, by_default) for index in range(len(pictures))]


def _notes_on_orientation(pictures: list[_Picture], stored: list[bool]) -> list[str]:
    """Returns a note on what boxes are taken to refer to, if pictures are stored in another orientation."""
    turned = [of_stored for picture, of_stored in zip(pictures, stored, strict=True) if picture.exif != 1]
    if not turned:
        return []
    return [
        f"{len(turned):,} pictures have an EXIF orientation. Boxes of {turned.count(False):,} of them are taken to "
        f"refer to the displayed picture, of {turned.count(True):,} to the stored one, and are turned. "
        "`box_orientation` chooses."
    ]


def _in_shares(stated: StatedBoxes, size: tuple[int, int], exif: int) -> np.ndarray:
    """Returns corners (boxes, 4), float64, as shares of the sides of the displayed image; boxes may still be broken."""
    corners = np.array([box if len(box) == 4 else NOT_A_BOX for box in stated.boxes], dtype=np.float64)
    corners = corners.reshape(-1, 4)
    swap, flip_rows, flip_columns = ORIENTATIONS.get(exif, (False, False, False))
    if not stated.relative:
        corners = corners / np.tile(size[::-1] if swap else size, 2)
    if swap:
        corners = corners[:, [1, 0, 3, 2]]
    return turn_boxes(corners, [dim for dim, flip in ((-1, flip_columns), (-2, flip_rows)) if flip], quarters=0)


def _keep(
    stated: StatedBoxes,
    corners: np.ndarray,
    numbers: dict[Label, int],
    size: tuple[int, int],
    clip: bool,
    found: _Findings,
) -> np.ndarray:
    """Returns which boxes are used, bool (boxes,). Adds to `found` what is wrong and what is changed."""
    pixels = corners * np.tile(size, 2)
    tolerance = np.maximum(np.array(size) * _TOLERANCE, _TOLERANCE_PIXELS)
    beyond = np.maximum(-pixels[:, :2], pixels[:, 2:] - size)
    finite = np.isfinite(corners.sum(axis=1))
    negative = ((corners[:, 2:] - corners[:, :2]) < 0).any(axis=1)
    protrudes = finite & (beyond > tolerance).any(axis=1)
    known = np.array([label in numbers for label in stated.labels], dtype=bool).reshape(-1)
    broken = ~finite | negative | ~known | (protrudes & (not clip))
    for index in np.flatnonzero(broken).tolist():
        found.faults.append(_fault_of(stated, index, corners[index], numbers, size))
    inside = corners.clip(0, 1)
    empty = ~broken & (inside[:, 2:] <= inside[:, :2]).any(axis=1)
    kept = ~broken & ~empty
    found.empty += int(empty.sum())
    found.cut += int((kept & protrudes).sum())
    found.clipped += int((kept & ~protrudes & (beyond > 0.01).any(axis=1)).sum())
    return kept


def _fault_of(
    stated: StatedBoxes, index: int, corners: np.ndarray, numbers: dict[Label, int], size: tuple[int, int]
) -> str:
    """Returns where a broken box is and what is wrong with it."""
    numbers_of_box = ", ".join(f"{value:.4g}" for value in stated.boxes[index])
    where, label = f"{stated.file}, box {index + 1} ({numbers_of_box})", stated.labels[index]
    if not np.isfinite(corners).all():
        return f"{where} is not four finite numbers"
    if (corners[2:] < corners[:2]).any():
        return f"{where} has a negative width or height"
    if label not in numbers:
        labels = list(numbers)
        listed = ", ".join(map(repr, labels[:8])) + (", ..." if len(labels) > 8 else "")
        return f"{where} has the class {label!r}, which is not among {listed}"
    return f"{where} lies (partly) outside of its picture of {size[0]} x {size[1]} pixels"


# ----------------------------------------------------------------------------------------------------------------------
# Moving boxes


def crop_boxes(corners: np.ndarray, box: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes as shares of a crop, cut off at its edge, and which of them the crop shows well enough.

    Args:
        corners (`np.ndarray` of shape `(boxes, 4)`): Left, top, right and bottom.
        box (`tuple[float, float, float, float]`): The crop, in the same units.

    Returns:
        `(corners, kept)`: All boxes, and bool `(boxes,)`, whether at least `MIN_VISIBLE` of the area is left.
    """
    origin, extent = np.tile(box[:2], 2), np.tile(np.subtract(box[2:], box[:2]), 2)
    moved = (corners - origin) / extent
    cut = moved.clip(0, 1)
    before, after = ((each[:, 2:] - each[:, :2]).clip(0).prod(axis=1) for each in (moved, cut))
    return cut, (after > 0) & (after >= MIN_VISIBLE * before)


def turn_boxes(corners: np.ndarray, dims: Sequence[int], quarters: int) -> np.ndarray:
    """Returns boxes of a picture that was flipped and then rotated, see [`RandomOrientation.draw`].

    Args:
        corners (`np.ndarray` of shape `(boxes, 4)`): Left, top, right and bottom as shares of the sides.
        dims (`Sequence[int]`): -1 if the picture was mirrored left to right, -2 if top to bottom.
        quarters (`int`): Quarters of a rotation, counterclockwise.
    """
    for axis, dim in ((0, -1), (1, -2)):
        if dim in dims:
            corners = corners.copy()
            corners[:, [axis, axis + 2]] = 1 - corners[:, [axis + 2, axis]]
    for _ in range(quarters % 4):  # what was at x, y is at y, 1 - x
        left, top, right, bottom = corners.T
        corners = np.stack([top, 1 - right, bottom, 1 - left], axis=1)
    return corners


def _boxes_in_view(corners: np.ndarray, view: ScaledView, picture: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes of a picture of (height, width) pixels as shares of a view, and which of them it shows well enough.

    Both are as of [`crop_boxes`].
    """
    top, left, height, width = view.box
    box = np.array([left, top, left + width, top + height]) / np.tile(picture[::-1], 2)
    cut, kept = crop_boxes(corners, tuple(box))
    before, after, above, below = view.margin
    inner = np.array(view.target[::-1])
    outer = inner + (before + after, above + below)
    return (cut * np.tile(inner, 2) + np.tile([before, above], 2)) / np.tile(outer, 2), kept


class DetectionDataset(Dataset):
    """Gives `pixel_values` (channels, height, width), float32, and `labels`, as detectors of transformers take them.

    Labels are `class_labels` (boxes,), int64, `boxes` (boxes, 4), float32, as centre x, centre y, width and height in
    shares of the picture, and `image_id`, the index. An unreadable picture is replaced by a readable one with its boxes
    and index, and named in the log.

    For training pictures are resized by a random factor, cropped or padded at a random place and turned, and boxes move
    alike; the randomness is torch's, as Trainer seeds it. For evaluation they are resized as a whole.
    """

    def __init__(
        self,
        boxed: BoxedImages,
        image_processor: MAEImageProcessor,
        scale: tuple[float, float] = (1.0, 1.0),
        orientation: RandomOrientation | None = None,
    ):
        """
        Args:
            boxed ([`BoxedImages`]): Images with boxes. Those of crowds are left out of the labels.
            image_processor ([`MAEImageProcessor`]): Its `size` is that of the pixel values.
            scale (`(low, high)`, *optional*, defaults to `(1.0, 1.0)`): Range of the random factor.
            orientation ([`RandomOrientation`], *optional*): Turns pictures and boxes.
        """
        self.boxed, self.image_processor, self.scale = boxed, image_processor, scale
        self.images = boxed.images
        self.orientation = orientation or RandomOrientation()
        self.size = image_processor.size.height, image_processor.size.width

    def __len__(self) -> int:
        return len(self.boxed)

    def __getitem__(self, index: int) -> dict:
        pixels, index, unreadable = read_image(self.images, index, self._to_pixels)
        warn_of_unreadable(unreadable)
        boxes = self.boxed.boxes[index]
        counted = ~boxes.crowd
        rng = np.random.default_rng(torch.randint(2**62, ()).item())
        view = ScaledView.draw(pixels.shape[1:], self.size, self.scale, rng)
        shown = view.pad(self.image_processor.rescale_and_normalize(view.crop(pixels).clamp(0, 255)))  # 0: the mean
        corners, kept = _boxes_in_view(boxes.corners[counted].astype(np.float64), view, pixels.shape[1:])
        dims, quarters = self.orientation.draw(self.size[0] == self.size[1])
        shown = shown.flip(dims).rot90(quarters, (-2, -1))
        corners = torch.from_numpy(turn_boxes(corners, dims, quarters)[kept]).float()
        first, second = corners[:, :2], corners[:, 2:]
        labels = {
            "class_labels": torch.from_numpy(boxes.classes[counted][kept]),
            "boxes": torch.cat([(first + second) / 2, second - first], dim=1),
            "image_id": torch.tensor(index),
        }
        return {"pixel_values": shown.contiguous(), "labels": labels}

    def _to_pixels(self, image: OpenedImage) -> torch.Tensor:
        """Returns an image (channels, height, width) in [0, 255]."""
        reading = self.image_processor.reading
        stored = read_stored(image, self.image_processor.num_channels, reading)
        return fill_missing(to_byte_range(stored, reading), reading)[0]


def collate_boxes(samples: list[dict]) -> dict:
    """Returns a batch: `pixel_values` `(batch, channels, height, width)`, and `labels` as a list.

    Args:
        samples (`list[dict]`): Of a [`DetectionDataset`].
    """
    pixel_values = torch.stack([sample["pixel_values"] for sample in samples])
    return {"pixel_values": pixel_values, "labels": [sample["labels"] for sample in samples]}


# ----------------------------------------------------------------------------------------------------------------------
# The sample


class SceneImages(ImageSource):
    """Scenes of one to four embedded garments on a noisy canvas, made when they are asked for: seed and index say how.

    Attributes:
        corners, classes (`list[np.ndarray]`): Boxes of the garments in pixels, `(garments, 4)`, and their classes.
    """

    dataset, license = FashionMNISTImages.dataset, FashionMNISTImages.license

    def __init__(self, split: str, count: int, side: int = 64):
        """
        Args:
            split (`str`): `train` or `val`: which of the embedded pictures are used.
            count (`int`): Number of scenes.
            side (`int`, *optional*, defaults to 64): Pixels of a side, at least 56.
        """
        self.garments = FashionMNISTImages("train" if split == "train" else "test")
        self.name, self.label_names = f"scenes of garments ({split}), generated", self.garments.label_names
        self.side, self.seed = side, 0 if split == "train" else 1
        drawn = [self._draw(index) for index in range(count)]
        self.corners = [np.array([corners for _, corners, _ in scene]).reshape(-1, 4) for scene in drawn]
        self.classes = [np.array([label for _, _, label in scene], dtype=np.int64) for scene in drawn]
        self.fingerprint = digest(self.garments.fingerprint, f"{split} {count} {side}")

    def __len__(self) -> int:
        return len(self.corners)

    def _draw(self, index: int) -> list[tuple[int, tuple[int, int, int, int], int]]:
        """Returns the garments of a scene, one to four, in quarters of their own: number, box, class."""
        rng, half = np.random.default_rng([self.seed, index]), self.side // 2
        scene = []
        for quarter in rng.permutation(4)[: rng.integers(1, 5)]:
            number = int(rng.integers(len(self.garments)))
            rows, columns = (np.flatnonzero((self.garments.pixels[number] > 20).any(axis=axis)) for axis in (1, 0))
            sides = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
            room = [half - part for part in sides]
            left, top = (
                int(rng.integers(each + 1)) + half * int(q) for each, q in zip(room, divmod(quarter, 2), strict=True)
            )
            box = left, top, left + int(sides[0]), top + int(sides[1])
            scene.append((number, box, int(self.garments.labels[number])))
        return scene

    def __getitem__(self, index: int) -> PIL.Image.Image:
        canvas = np.random.default_rng([self.seed + 2, index]).integers(0, 60, (self.side, self.side), dtype=np.uint8)
        for number, (left, top, right, bottom), _ in self._draw(index):
            pixels = self.garments.pixels[number]
            rows, columns = (np.flatnonzero((pixels > 20).any(axis=axis))[0] for axis in (1, 0))
            garment = pixels[rows : rows + bottom - top, columns : columns + right - left]
            part = canvas[top:bottom, left:right]
            np.copyto(part, garment, where=garment > 20)
        return PIL.Image.fromarray(canvas)


def sample_scenes(split: str, count: int, side: int = 64) -> BoxedImages:
    """Returns generated scenes of the embedded garments with their boxes, see [`SceneImages`].

    Args:
        split (`str`): `train` or `val`.
        count (`int`): Number of scenes.
        side (`int`, *optional*, defaults to 64): Pixels of a side.
    """
    images = SceneImages(split, count, side)
    boxes = [
        Boxes((corners / side).astype(np.float32), classes, np.zeros(len(classes), dtype=bool), (side, side))
        for corners, classes in zip(images.corners, images.classes, strict=True)
    ]
    return BoxedImages(images, boxes, images.label_names, "generated")


__all__ = [
    "BROKEN",
    "MIN_VISIBLE",
    "BoxedImages",
    "Boxes",
    "DetectionDataset",
    "SceneImages",
    "check_boxes",
    "collate_boxes",
    "crop_boxes",
    "number_classes",
    "sample_scenes",
    "turn_boxes",
]
