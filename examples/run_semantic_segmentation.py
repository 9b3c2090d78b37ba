# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
r"""Trains UperNet on a pre-trained encoder for semantic segmentation, with Trainer, and reports the mean IoU.

    python examples/run_semantic_segmentation.py --model_name_or_path runs/fashion_mnist_sample --num_train_epochs 10 \
        --learning_rate 1e-3                                                     # a generated sample
    python examples/run_semantic_segmentation.py --model_name_or_path out --data path/to/folder --image_size 512
    python examples/run_semantic_segmentation.py --model_name_or_path out --data ... --class_names names.txt
    python examples/run_semantic_segmentation.py ... --from_scratch              # the same without pre-training
    python examples/run_semantic_segmentation.py --preset small --data ...       # without any checkpoint
    accelerate launch --config_file examples/accelerate/eight_gpus.yaml examples/run_semantic_segmentation.py ...

The folder holds `images/` and `masks/`, perhaps below `train/` and `val/`: for each image a mask of the same name,
a PNG of one channel with the class of each pixel, 255 where it is not to count. All flags of TrainingArguments work.
The same command continues an interrupted run from its last checkpoint. docs/segmentation.md tells the rest.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, UperNetConfig, UperNetForSemanticSegmentation, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_mae import MAEBackbone, MAEConfig, MAEImageProcessor
from hf_mae.data.sources import FolderImages, open_images
from hf_mae.modeling.image_processing_mae import image_to_tensor, resize, to_byte_range
from hf_mae.training.arguments import parse_arguments, recipe_of, setting
from hf_mae.training.finetuning import FineTuningArguments, FineTuningTrainer
from hf_mae.training.run_log import run_record

IGNORED = 255  # UperNetConfig's loss_ignore_index
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


@dataclass
class SegmentationArguments(FineTuningArguments):
    output_dir: str = setting("runs/segmenter", "Folder for checkpoints and the final model.")
    model_name_or_path: str | None = setting(None, "Checkpoint of any MAE model, ours.")
    data: str | None = setting(None, "Folder with images/ and masks/. Nothing: a sample made of the embedded images.")
    sample_side: int = setting(1, "Pictures beside and below each other in an image of the sample, 28 pixels each.")
    class_names: list[str] | None = setting(None, "Names of the classes 0, 1, ..., or a file with one in each line.")
    reduce_labels: bool = setting(False, "0 means ignored and classes count from 1, as in the masks of ADE20K.")
    from_scratch: bool = setting(False, "Take the configuration of the checkpoint but fresh weights, to compare.")
    preset: str | None = setting(None, "Without a checkpoint: tiny, small, base, large or huge, with fresh weights.")
    image_size: list[int] | None = setting(None, "Side, or height and width, if not the model's or the sample's.")
    feature_pyramid_size: int | None = setting(None, "Channels of the pyramid. Nothing: the encoder's, at most 256.")
    head_size: int | None = setting(None, "Channels of UperNet. Nothing: the encoder's, at most 512.")
    drop_path_rate: float = setting(0.1, "Of the last block; it rises from 0 at the first.")
    layer_decay: float = setting(0.65, "Factor of the learning rate from each block to the one before.")
    min_scale: float = setting(0.5, "Training images are resized by at least this factor,")
    max_scale: float = setting(2.0, "at most this one, and then cropped or padded to --image_size.")
    horizontal_flip: bool = setting(True, "Mirror half of the training images.")
    # Of TrainingArguments
    learning_rate: float = setting(1e-4, "Rate of all that follows the encoder's blocks.")
    num_train_epochs: float = setting(100, "Passes over the images.")
    per_device_train_batch_size: int = setting(16, "Images of one forward pass on one device, at least 2.")
    per_device_eval_batch_size: int = setting(16, "The same in evaluation.")
    lr_scheduler_type: str = setting("linear", "Schedule of the learning rate.")
    warmup_steps: float = setting(0.01, "Steps with a rising rate, below 1: their share.")
    save_total_limit: int | None = setting(1, "Checkpoints to keep.")
    batch_eval_metrics: bool = setting(True, "Must be true here: predictions are counted and not kept.")


# ----------------------------------------------------------------------------------------------------------------------
# Images with masks


def sample_pairs(split: str, side: int = 2) -> list[tuple[PIL.Image.Image, PIL.Image.Image]]:
    """Squares of `side` x `side` embedded pictures; masks are 0 for background, else the class of the garment + 1."""
    source = open_images(None, "train" if split == "train" else "test")
    order = np.random.default_rng(0).permutation(len(source))[: len(source) // side**2 * side**2]
    pixels = np.stack([np.array(source[index]) for index in order])  # (N, 28, 28)
    masks = np.where(pixels > 20, source.labels[order][:, None, None] + 1, 0).astype(np.uint8)
    squares = [
        array.reshape(-1, side, side, 28, 28).swapaxes(2, 3).reshape(-1, 28 * side, 28 * side)
        for array in (pixels, masks)
    ]
    return [(PIL.Image.fromarray(image), PIL.Image.fromarray(mask)) for image, mask in zip(*squares, strict=True)]


def folder_pairs(data: str, split: str) -> list[tuple[Path, Path]]:
    """Paths of images and their masks; none if the folder has no such split. Without splits, all are of `train`."""
    folder = next((Path(data) / name for name in SPLITS[split] if (Path(data) / name / "images").is_dir()), None)
    if folder is None and split == "val":
        return []
    folder = folder or Path(data)
    stems = []
    for name in ("images", "masks"):
        if not (folder / name).is_dir():
            raise OSError(f"{folder} has no folder {name!r}. Expected images/ and masks/, or train/images/ and so on.")
        files = FolderImages(folder / name)
        paths = [Path(files.describe(number)) for number in range(len(files))]
        stems.append({path.relative_to(folder / name).with_suffix(""): path for path in paths})
    images, masks = stems
    if missing := [stem for stem in images if stem not in masks]:
        raise ValueError(
            f"{len(missing)} of {len(images)} images have no mask, first {images[missing[0]]}: expected "
            f"{folder / 'masks' / missing[0]}.png. Add the masks, or take these images out."
        )
    return [(path, masks[stem]) for stem, path in images.items()]


def read_pair(pair: tuple, reduce_labels: bool) -> tuple[PIL.Image.Image | np.ndarray, np.ndarray]:
    """Returns an an upright image and its mask (height, width), uint8; raises `ValueError` if they don't fit."""
    image, mask = pair
    try:
        mask = PIL.Image.open(mask) if isinstance(mask, Path) else mask
        if isinstance(image, Path):
            image = np.load(image, allow_pickle=False) if image.suffix == ".npy" else PIL.Image.open(image)
        image = image if isinstance(image, np.ndarray) else PIL.ImageOps.exif_transpose(image)
        classes = np.array(mask).astype(np.uint8)
    except Exception as error:  # decoders raise what they like for broken files
        raise OSError(f"{pair[0]} or its mask can't be read: {error}. Mend both or take both out.") from error
    if mask.mode not in ("1", "L", "P") or mask.format == "JPEG":
        raise ValueError(
            f"The mask {pair[1]} has format {mask.format} and mode {mask.mode}. Expected a PNG of one channel and 8 "
            "bits (L or P) that holds the numbers of the classes, not their colours."
        )
    size = image.size[::-1] if isinstance(image, PIL.Image.Image) else image.shape
    if classes.shape not in (size[:2], size[-2:]):  # arrays have their channels first or last
        raise ValueError(f"The mask {pair[1]} has shape {classes.shape}, its image {size}. Make both of one size.")
    return image, np.where(classes % IGNORED, classes - 1, IGNORED).astype(np.uint8) if reduce_labels else classes


def open_data(args: SegmentationArguments) -> tuple[list[tuple], list[tuple], list[str]]:
    """Pairs to train on, pairs to evaluate on, and the names of the classes. Reads everything once, to check it."""
    names, say = args.class_names, print if args.process_index == 0 else lambda text: None
    if names is not None and len(names) == 1 and Path(names[0]).is_file():
        names = [line.strip() for line in Path(names[0]).read_text(encoding="utf-8").splitlines() if line.strip()]
    if args.data is None:
        pairs = {split: sample_pairs(split, args.sample_side) for split in SPLITS}
        names = ["background", *open_images().label_names]
    else:
        pairs = {split: folder_pairs(args.data, split) for split in SPLITS}
    if not pairs["val"]:
        say(f"No folder val in {args.data}: every tenth image is kept from training and evaluated on.")
        pairs = {"train": [p for n, p in enumerate(pairs["train"]) if n % 10], "val": pairs["train"][::10]}

    def count(pair: tuple) -> np.ndarray:
        return np.bincount(read_pair(pair, args.reduce_labels)[1].ravel(), minlength=256)[:IGNORED]

    num_labels = len(names) if names is not None else 0
    for split, all_pairs in pairs.items():
        with ThreadPoolExecutor() as pool:  # decoders work in parallel
            counts = np.stack(list(pool.map(count, all_pairs))) if all_pairs else np.zeros((0, IGNORED))
        if names is not None and counts[:, num_labels:].any():
            wrong = int(counts[:, num_labels:].any(axis=1).argmax())
            raise ValueError(
                f"The mask {all_pairs[wrong][1]} has the class {counts[wrong].nonzero()[0][-1]}, but there are "
                f"{num_labels} --class_names: classes are numbers in [0, {num_labels}), or 255 where pixels don't "
                "count. Name more, mend the masks, or see --reduce_labels."
            )
        num_labels = max(num_labels, int(counts.any(axis=0).nonzero()[0].max(initial=-1)) + 1)
        pairs[split] = [pair for pair, some in zip(all_pairs, counts.any(axis=1), strict=True) if some]
        if len(pairs[split]) < len(all_pairs):
            say(f"{len(all_pairs) - len(pairs[split])} masks of {split} have no pixel that counts: left out.")
    if num_labels < 2 or not all(pairs.values()):
        raise ValueError(
            f"{args.data} has {num_labels} class(es), {len(pairs['train'])} images to train on and "
            f"{len(pairs['val'])} to evaluate on. Expected at least two classes, numbered from 0 (255 means that a "
            "pixel does not count: masks of two classes hold 0 and 1), and some images for both."
        )
    return pairs["train"], pairs["val"], names or [str(number) for number in range(num_labels)]


class SegmentationDataset(Dataset):
    """`pixel_values` (channels, height, width), float32, and `labels` (height, width), int64, 255 for ignored.

    With `scale` images are resized by a random factor, cropped or padded at a random place, half of them mirrored if
    `flip`, and masks alike; the randomness is torch's, as Trainer seeds it. Else they are resized as a whole.
    """

    def __init__(self, pairs: list[tuple], image_processor: MAEImageProcessor, reduce_labels=False, scale=None, flip=0):
        self.pairs, self.image_processor, self.reduce_labels = pairs, image_processor, reduce_labels
        self.scale, self.flip = scale or (1.0, 1.0), flip
        self.size = image_processor.size.height, image_processor.size.width

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, mask = read_pair(self.pairs[index], self.reduce_labels)
        pixels = to_byte_range(image_to_tensor(image, self.image_processor.num_channels))
        rng = np.random.default_rng(torch.randint(2**62, ()).item())
        for _ in range(10):  # a view that shows nothing labelled teaches nothing
            view, labels = self._view(pixels, torch.from_numpy(mask)[None], rng.uniform(*self.scale), rng)
            if (labels != IGNORED).any():
                break
        if self.flip and rng.random() < 0.5:
            view, labels = view.flip(-1), labels.flip(-1)
        return {"pixel_values": view, "labels": labels.long()}

    def _view(self, pixels: torch.Tensor, mask: torch.Tensor, factor: float, rng: np.random.Generator) -> tuple:
        """What `size` shows of the image at `factor` times that size; outside of it 0, the mean, and `IGNORED`."""
        box = [max(round(side / max(factor, 1)), 1) for side in mask.shape[1:]]  # in pixels of the file
        target = [max(round(side * min(factor, 1)), 1) for side in self.size]
        top, left = (int(rng.integers(side - part + 1)) for side, part in zip(mask.shape[1:], box, strict=True))
        area = (..., slice(top, top + box[0]), slice(left, left + box[1]))
        view = self.image_processor.rescale_and_normalize(resize(pixels[area], target).clamp(0, 255))
        labels = resize(mask[area], target, "nearest-exact")[0]
        below, right = (wanted - side for wanted, side in zip(self.size, target, strict=True))
        above, before = int(rng.integers(below + 1)), int(rng.integers(right + 1))
        padding = (before, right - before, above, below - above)
        return torch.nn.functional.pad(view, padding), torch.nn.functional.pad(labels, padding, value=IGNORED)


# ----------------------------------------------------------------------------------------------------------------------
# Figures and pictures


class ConfusionMatrix:
    """Counts pixels by true class (rows) and predicted class (columns), batch by batch, as Trainer asks for it."""

    def __init__(self, num_labels: int):
        self.num_labels, self.matrix, self.iou = num_labels, 0, None

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Adds a batch of predicted and true classes; at the last one returns the figures and starts anew."""
        predicted, true = (torch.as_tensor(classes).cpu() for classes in (prediction.predictions, prediction.label_ids))
        pairs = (true * self.num_labels + predicted)[true != IGNORED]
        self.matrix += torch.bincount(pairs, minlength=self.num_labels**2).reshape(self.num_labels, -1).double()
        if not compute_result:
            return {}
        matrix, self.matrix = self.matrix, 0
        self.iou = intersection_over_union(matrix)
        return {"mean_iou": self.iou.nanmean().item(), "pixel_accuracy": (matrix.trace() / matrix.sum()).item()}


def intersection_over_union(matrix: torch.Tensor) -> torch.Tensor:
    """Returns of each class: pixels in truth and prediction over pixels in either; NaN if it is in neither."""
    both = matrix.diagonal()
    return both / (matrix.sum(dim=0) + matrix.sum(dim=1) - both)


def likeliest(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What Trainer keeps of the logits of a batch: the classes."""
    return logits.argmax(dim=1)


@torch.no_grad()
def segmentation_sheet(model, dataset: SegmentationDataset, names: list[str], count: int = 8) -> PIL.Image.Image:
    """One picture of images beside their masks and what the model makes of them, two in a row, and a legend.

    Classes have the colours of PASCAL VOC: black, dark red, dark green, ...; what does not count is white.
    """
    bits = (np.arange(256)[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3))) & 1  # (256, 8, 3)
    palette = (bits << np.arange(7, -1, -1)[:, None]).sum(axis=1).astype(np.uint8)
    palette[IGNORED] = 255
    count = min(count, len(dataset))
    samples = [dataset[number * len(dataset) // count] for number in range(count)]
    pixel_values = torch.stack([sample["pixel_values"] for sample in samples])
    predicted = model.eval()(pixel_values.to(model.device)).logits.argmax(dim=1).cpu()
    images = dataset.image_processor.post_process_reconstruction(pixel_values)
    factor = max(round(128 / min(images[0].size)), 1)
    width, height = (side * factor for side in images[0].size)
    sheet = PIL.Image.new("RGB", (6 * width + 40, (count + 1) // 2 * (height + 4) + 40), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, (image, sample, classes) in enumerate(zip(images, samples, predicted, strict=True)):
        maps = [PIL.Image.fromarray(palette[values.numpy()]) for values in (sample["labels"], classes)]
        for place, (part, title) in enumerate(zip((image, *maps), ("image", "truth", "prediction"), strict=True)):
            x, y = number % 2 * (3 * width + 28) + place * (width + 4), 20 + number // 2 * (height + 4)
            sheet.paste(part.convert("RGB").resize((width, height), PIL.Image.Resampling.NEAREST), (x, y))
            draw.text((x + 2, 4), title if number < 2 else "", fill="black")
    x, y = 2, sheet.height - 16
    for name, colour in zip(names, palette.tolist(), strict=False):  # as many as there is room for
        draw.rectangle((x, y, x + 10, y + 10), fill=tuple(colour))
        draw.text((x + 14, y), name, fill="black")
        x += 28 + int(draw.textlength(name))
    return sheet


# ----------------------------------------------------------------------------------------------------------------------
# Model and run


class SegmentationTrainer(FineTuningTrainer):
    """Trainer with care for the batch norms of UperNet."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # UperNet's loss is the mean of a batch: when gradients are accumulated Trainer has to divide it.
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader:
        self.args.dataloader_drop_last = True  # one image has no statistics for UperNet's norms
        loader = super().get_train_dataloader()
        self.args.dataloader_drop_last = False  # while evaluation takes every image
        return loader

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        if self.args.world_size > 1:  # each process has gathered statistics of its own; those of the first are saved
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        return super().evaluate(*args, **kwargs)


def build_model(args: SegmentationArguments, names: list[str]) -> UperNetForSemanticSegmentation:
    """UperNet on the feature pyramid of the encoder."""
    path, fields = args.model_name_or_path, {"drop_path_rate": args.drop_path_rate}
    if size := args.image_size or ([28 * args.sample_side] if args.data is None else None):
        fields["image_size"] = size[0] if len(size) == 1 else size
    if path:
        config = MAEConfig.from_pretrained(path, **fields)
    elif args.preset:
        config = MAEConfig.from_preset(args.preset, **fields)
    else:
        raise ValueError(
            "--model_name_or_path is missing: a folder or a name on the Hub with a model of hf_mae. Without any "
            "pre-training give --preset tiny, small, base, large or huge."
        )
    config.feature_pyramid_size = args.feature_pyramid_size or min(config.hidden_size, 256)
    config.set_output_features_output_indices(None, None)
    config.check()  # from_pretrained does not look at the fields it is given
    head_size = args.head_size or min(config.hidden_size, 512)
    torch.manual_seed(args.seed)
    model = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=config,
            hidden_size=head_size,
            auxiliary_channels=min(head_size, 256),
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
    )
    if path and not args.from_scratch:
        pretrained = MAEBackbone.from_pretrained(path, config=config, dtype=torch.float32)
        model.backbone.load_state_dict(pretrained.state_dict())
    model.supports_gradient_checkpointing = True  # UperNet says no, but the blocks of the encoder do
    return model


def main():
    args = parse_arguments(SegmentationArguments, __doc__)
    set_seed(args.seed)  # fresh weights are made before Trainer does it
    train_pairs, val_pairs, names = open_data(args)
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"--class_names has {', '.join(twice)} more than once. Give every class a name of its own.")
    model = build_model(args, names)
    config = model.config.backbone_config
    rows, columns = config.grid_size
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    statistics = {}
    if args.model_name_or_path:
        stored = MAEImageProcessor.from_pretrained(args.model_name_or_path)
        statistics = {"image_mean": stored.image_mean, "image_std": stored.image_std}
    image_processor = MAEImageProcessor(
        size={"height": height, "width": width},
        do_center_crop=False,
        num_channels=config.num_channels,
        **statistics,
    )
    batch_size = min(args.per_device_train_batch_size, len(train_pairs) // args.world_size)
    if batch_size < 2:
        raise ValueError(
            f"UperNet normalises over a batch and needs 2 images on each of {args.world_size} device(s), got "
            f"{len(train_pairs)} in all and --per_device_train_batch_size {args.per_device_train_batch_size}."
        )
    args.per_device_train_batch_size = batch_size
    scale = (args.min_scale, args.max_scale)
    val_dataset = SegmentationDataset(val_pairs, image_processor, args.reduce_labels)
    confusion_matrix = ConfusionMatrix(len(names))
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        train_dataset=SegmentationDataset(
            train_pairs, image_processor, args.reduce_labels, scale, args.horizontal_flip
        ),
        eval_dataset=val_dataset,
        processing_class=image_processor,
        compute_metrics=confusion_matrix,
        preprocess_logits_for_metrics=likeliest,
    )
    is_main = trainer.is_world_process_zero()
    if is_main:
        fresh = args.from_scratch or not args.model_name_or_path
        effective_batch_size = batch_size * args.gradient_accumulation_steps * args.world_size
        print(
            f"Images   {len(train_pairs):,} and {len(val_pairs):,} to evaluate on, {args.data or 'generated'}\n"
            f"Classes  {len(names)}: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}\n"
            f"Model    {model.num_parameters() / 1e6:.1f} M parameters, {height} x {width} pixels, {rows} x {columns} "
            f"patches; pyramid of {config.feature_pyramid_size} channels, UperNet of {model.config.hidden_size}\n"
            f"Weights  {'fresh' if fresh else 'encoder of ' + args.model_name_or_path + ', the rest fresh'}\n"
            f"Batch    {effective_batch_size} over {args.world_size} process(es)\n"
            f"Rate     {args.learning_rate:.3g}, times {args.layer_decay:g} from each block to the one before\n"
            f"Output   {args.output_dir}"
        )
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    if last is not None and is_main:
        print(f"Continues from {last}. Delete {args.output_dir} to start anew.")
    record = {**run_record(recipe_of(args, {"output_dir", "data"})), "num_images": len(train_pairs)}
    record["hours"] = trainer.train(resume_from_checkpoint=last).metrics["train_runtime"] / 3600
    trainer.save_model(_internal_call=True)  # what is pushed is pushed with its card, below
    metrics = trainer.evaluate()
    if is_main:
        trainer.log_metrics("eval", metrics)
        for name, iou in zip(names, confusion_matrix.iou.tolist(), strict=True):
            metrics[f"eval_iou_{name}"] = None if iou != iou else iou
            print(f"  {name:30} {'does not occur' if iou != iou else format(iou, '.4f')}")
        trainer.save_metrics("eval", metrics)
        segmentation_sheet(model, val_dataset, names).save(Path(args.output_dir) / "segmentation.png")
        trainer.publish({**record, "metrics": metrics})
        print(f"Done: model, eval_results.json and segmentation.png are in {args.output_dir}.")


if __name__ == "__main__":
    main()
