# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Fine-tunes a pre-trained encoder on labelled images: classes, several classes an image, or numbers."""

import copy
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, set_seed

from ..cli import in_flags
from ..data.augmentation import BatchAugmentation, Compose, RandomAugmentation, RandomOrientation
from ..data.datasets import ClassificationDataset, EvaluationDataset, collate_labelled
from ..data.held_out import select
from ..data.image_source import ImageSource
from ..data.label_values import MULTI, REGRESSION, SINGLE
from ..data.labels import (
    align_all_labels,
    check_labels,
    has_label,
    label_by_folders,
    names_of_labels,
    number_labels,
    open_labelled,
    open_with_labels,
    problem_type_of,
)
from ..evaluation.classification_metrics import (
    accuracy_by_class,
    accuracy_figures,
    average_precisions,
    confusion_matrix,
    confusion_sheet,
    multi_label_figures,
    regression_figures,
)
from ..evaluation.features import is_classifier
from ..evaluation.inference import ReadableImages, collate_readable
from ..modeling.configuration_mae import MAEConfig
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae_downstream import MAEForImageClassification
from ..publishing.records import replacing, save_picture, write_json
from ..training.arguments import class_names_of, parse_arguments
from ..training.optimization import scaled_learning_rate
from ..training.run_record import run_record
from .classification_settings import ClassificationArguments
from .experiment import check_experiment, labelled_fingerprints
from .settings import check_sources, no_test_images, warn_of_divided_groups
from .trainer import FineTuned, FineTuningTrainer, counted

_DESCRIPTION = """Fine-tune a pre-trained encoder for classification.

  hf-mae finetune --model_name_or_path runs/fashion_mnist_sample                    # on the embedded images
  hf-mae finetune --model_name_or_path out --data path/to/images --output_dir classifier
  hf-mae finetune --recipe finetune_base --model_name_or_path out --data path/to/imagenet  # the official settings
  hf-mae finetune --model_name_or_path classifier --data path/to/others --eval_only  # figures, or predictions

Images lie in sub-folders named by class, below train and val, or in a folder with metadata.csv or metadata.jsonl: a
column file_name and one of labels. Shards and names of the Hub work as well. The defaults are those of the paper's
end-to-end fine-tuning (He et al. 2021, Table 9) where it has any. The same command continues an interrupted run."""


# ----------------------------------------------------------------------------------------------------------------------
# Training


_LEARNING = "learning_classifier.pt"  # in checkpoints of numbers: the classifier before it gets their scale


class ClassificationTrainer(FineTuningTrainer):
    """Trains a classifier: augments whole batches on their device, weights classes, scales numbers."""

    loss_is_a_figure = True

    def __init__(self, *args, augmentation: BatchAugmentation, train_labels: np.ndarray, **kwargs):
        """
        Args:
            augmentation ([`BatchAugmentation`]): Makes pixel values and labels of a training batch.
            train_labels (`np.ndarray`): Labels of the training images, for the weights of classes and the scale of
                numbers.
            *args, **kwargs: Arguments of [`~transformers.Trainer`].
        """
        self.augmentation = augmentation
        self.problem_type = kwargs["model"].config.problem_type or SINGLE
        # Numbers are learned with mean 0 and deviation 1. What is saved has the scale in its classifier.
        self.scale, self.offset, self.weights = torch.ones(()), torch.zeros(()), None
        if self.problem_type == REGRESSION:
            std = train_labels.std(axis=0)
            self.scale = torch.from_numpy(np.where(std > 0, std, 1.0).astype(np.float32))
            self.offset = torch.from_numpy(train_labels.mean(axis=0).astype(np.float32))
            _change_scale(kwargs["model"].classifier, self.scale, self.offset)
        if kwargs["args"].class_weights == "balanced":
            self.weights = balanced_weights(train_labels, self.problem_type, kwargs["model"].config.num_labels)
        super().__init__(*args, **kwargs, compute_metrics=self._figures, preprocess_logits_for_metrics=self._kept)

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Returns the loss of a training batch, whose images it augments."""
        if self.problem_type == REGRESSION:
            device = inputs["labels"].device
            scale, offset = (value.to(device, non_blocking=True) for value in (self.scale, self.offset))
            inputs = {**inputs, "labels": (inputs["labels"] - offset) / scale}
        inputs = self.augmentation(**inputs)
        if self.weights is not None:
            logits = model(pixel_values=inputs["pixel_values"]).logits.float()
            weights = self.weights.to(logits.device, non_blocking=True)
            smoothing = self.model.config.label_smoothing if self.problem_type == SINGLE else None
            return weighted_loss(logits, inputs["labels"], weights, smoothing)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _kept(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the five most probable classes, probabilities, or numbers, and the loss of each image."""
        if self.problem_type == SINGLE:
            return logits.topk(min(5, logits.shape[1])).indices, cross_entropy(logits, labels, reduction="none")
        labels = labels.reshape(logits.shape).to(logits)
        if self.problem_type == MULTI:
            losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            return logits.sigmoid(), losses.mean(dim=1)
        scale, offset = self.scale.to(logits.device), self.offset.to(logits.device)
        return logits * scale + offset, (logits - (labels - offset) / scale).square().mean(dim=1)

    def _figures(self, prediction: EvalPrediction) -> dict[str, float]:
        predicted, labels, loss = counted(prediction)
        self.last = predicted, labels  # for `describe_results`
        return {"loss": loss, **figures(*self.last, self.problem_type, self.model.config.num_labels)}

    @torch.no_grad()
    def _put_scale_into_classifier(self):
        classifier = self.accelerator.unwrap_model(self.model).classifier
        scale, offset = (value.to(classifier.weight.device) for value in (self.scale, self.offset))
        classifier.weight.mul_(scale[:, None])
        classifier.bias.mul_(scale).add_(offset)

    def finish_model(self):
        """Puts the scale of numbers into the classifier, which then gives them as the data have them."""
        if self.problem_type == REGRESSION:
            self._put_scale_into_classifier()
            self.scale, self.offset = torch.ones_like(self.scale), torch.zeros_like(self.offset)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        """Saves a model that gives numbers of the data, and into a checkpoint also the classifier as it learns."""
        if self.problem_type != REGRESSION or not self.args.should_save or output_dir in (None, self.args.output_dir):
            super()._save(output_dir, state_dict)
            return
        classifier = self.accelerator.unwrap_model(self.model).classifier
        learning = copy.deepcopy(classifier.state_dict())
        self._put_scale_into_classifier()
        super()._save(output_dir, state_dict)
        classifier.load_state_dict(learning)
        torch.save(learning, Path(output_dir) / _LEARNING)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_learning(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_learning(str(self.state.best_model_checkpoint))

    def _load_learning(self, checkpoint: str):
        if (path := Path(checkpoint) / _LEARNING).exists():
            classifier = self.accelerator.unwrap_model(self.model).classifier
            classifier.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def describe_results(self, metrics: dict) -> dict:
        """Adds the figures of each class, prints them, and draws confusions."""
        if self.eval_dataset is None:
            return metrics
        names = class_names_of(self.model.config)
        return {**metrics, **describe_figures(*self.last, self.problem_type, names, Path(self.args.output_dir))}


@torch.no_grad()
def _change_scale(classifier: nn.Linear, scale: torch.Tensor, offset: torch.Tensor):
    """Changes a classifier of numbers of the data to scaled numbers, which are learned. A fresh one stays as it is."""
    if classifier.bias.any():
        classifier.weight.div_(scale[:, None])
        classifier.bias.sub_(offset).div_(scale)


def balanced_weights(labels: np.ndarray, problem_type: str, num_labels: int) -> torch.Tensor:
    """Returns weights with which every class has the same sum over the training images, and images 1 on average.

    With several classes an image it is the weight of a class where it is there, relative to where it is not.

    Args:
        labels (`np.ndarray`): Labels of the training images.
        problem_type (`str`): Kind of the labels, which are no numbers.
        num_labels (`int`): Number of classes.
    """
    if problem_type == MULTI:
        counts = labels.sum(axis=0)
        return torch.from_numpy(((len(labels) - counts) / np.maximum(counts, 1)).astype(np.float32))
    counts = np.bincount(labels, minlength=num_labels)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(weights.astype(np.float32))


def weighted_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smoothing: float | None
) -> torch.Tensor:
    """Returns the mean loss of a batch with weighted classes.

    Args:
        logits (`torch.Tensor` of shape `(batch, num_labels)`): Of the model.
        labels (`torch.Tensor`): Classes `(batch,)`, or probabilities or 0 and 1 `(batch, num_labels)`.
        weights (`torch.Tensor` of shape `(num_labels,)`): See [`balanced_weights`].
        smoothing (`float`, *optional*): Label smoothing of one class an image; `None` for several.
    """
    if smoothing is None:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
    if not labels.is_floating_point():  # else torch divides by the weights of the batch, which then are no weights
        labels = nn.functional.one_hot(labels, logits.shape[1]).float()
    return nn.functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)


def build_classifier(args: ClassificationArguments, train_images: ImageSource) -> MAEForImageClassification:
    """Returns the classifier to train, with a class for each name that the training images have.

    Args:
        args ([`ClassificationArguments`]): The settings of the model.
        train_images ([`ImageSource`]): Labelled images.
    """
    stored = MAEConfig.from_pretrained(args.model_name_or_path)
    names = names_of_labels(train_images)
    known = class_names_of(stored) if is_classifier(stored) else []
    if set(names) == set(known):
        names = known  # goes on with the classifier that is there
    problem_type = args.problem_type or problem_type_of(train_images)
    changes = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
        "problem_type": None if problem_type == SINGLE else problem_type,
        "pooling": args.pooling,
        "drop_path_rate": args.drop_path_rate,
        "label_smoothing": args.label_smoothing,
        "dtype": torch.float32,
    }
    for name in ("image_size", "num_pooling_queries"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    same = names == known and args.pooling == stored.pooling  # a classifier of the same classes on the same features
    starts_anew = bool(known) and (args.new_classifier or not same) and not args.from_scratch
    if args.from_scratch:
        model = MAEForImageClassification(MAEConfig.from_pretrained(args.model_name_or_path, **changes))
    else:
        model = MAEForImageClassification.from_pretrained(
            args.model_name_or_path, **changes, ignore_mismatched_sizes=starts_anew
        )
    if starts_anew:
        if names != known:
            print(f"The classes differ from the {len(known)} that the classifier knows: it starts anew.")
        elif not same:
            why = f"The classifier was trained on features of `pooling` {stored.pooling}, not {args.pooling}"
            print(in_flags(f"{why}: it starts anew."))
        model.classifier = nn.Linear(model.config.hidden_size, model.config.num_labels)
        model._init_weights(model.classifier)
    if args.num_trainable_layers is not None:
        model.freeze_encoder(args.num_trainable_layers)
    return model


def _train_dataset(
    args: ClassificationArguments, images: ImageSource, config: MAEConfig, image_processor: MAEImageProcessor
) -> Dataset:
    """Returns random crops."""
    size = image_processor.crop_height_width
    transforms: list[Callable] = [RandomOrientation(False, args.vertical_flip, args.rotate90)]
    if args.rand_augment:
        transforms.append(RandomAugmentation(config.num_channels, magnitude=args.rand_augment))
    return ClassificationDataset(
        images,
        size,
        config.num_labels,
        config.num_channels,
        crop_scale=(args.crop_scale_min, 1.0),
        horizontal_flip=args.horizontal_flip,
        transform=Compose(*transforms),
        reading=image_processor.reading,
    )


def finetune(args: ClassificationArguments, images: tuple[ImageSource, ImageSource | None] | None = None) -> FineTuned:
    """Fine-tunes a classifier, or with `eval_only` evaluates one, see [`evaluate_classifier`].

    Args:
        args ([`ClassificationArguments`]): The settings.
        images (`(train, test)`, *optional*): Labelled images to train and to evaluate on, in place of `args.data`. They
            stay as they are, also where the model numbers the classes in another way.

    Returns:
        [`FineTuned`]: The model, its figures on the evaluation images, and the folder that holds it.

    Raises:
        ValueError: If the settings do not fit the images or the model, or the folder holds another run.
        RunStopped: If a signal stopped the run, which has saved a checkpoint.
        FloatingPointError: If a loss or a gradient was not finite.
    """
    if args.eval_only:
        return evaluate_classifier(args)
    set_seed(args.seed)  # fresh weights are made before Trainer sets the seed
    recipe = args.recipe()
    image_processor = args.load_image_processor(args.model_name_or_path)
    options = args.source_options(image_processor)
    options |= args.held_out_options
    if images is None:
        images = open_labelled(args.data, args.label_column, args.problem_type, **options)
    train_images, test_images = map(copy.copy, images)
    if train_images.num_held_out:
        warn_of_divided_groups(args)
    fingerprints = labelled_fingerprints(args.model_name_or_path, train_images, test_images)
    model = build_classifier(args, train_images)
    config = model.config
    number_labels(class_names_of(config), train_images, test_images)
    image_processor = image_processor.with_image_size(config.image_size)
    check_sources(image_processor, train_images, test_images)
    args.check_rotation(image_processor.crop_height_width)
    args.check_problem_type(config.problem_type or SINGLE)
    if test_images is None:
        args.eval_strategy = "no"
        args.check_best()
    checkpoint = check_experiment(args, "finetune", fingerprints)  # deletes, if it is to, when all else is right
    trainer = _build_trainer(args, model, image_processor, train_images, test_images)
    if trainer.is_world_process_zero():
        _print_plan(args, model, len(trainer.train_dataset), train_images)
    record = {**run_record(recipe, train_images), "num_images": len(trainer.train_dataset)}
    metrics = trainer.run(record, checkpoint)
    if trainer.is_world_process_zero():
        print(f"Done: model, card and eval_results.json are in {args.output_dir}.", flush=True)
    return FineTuned(model, metrics, Path(args.output_dir))


def _build_trainer(
    args: ClassificationArguments,
    model: MAEForImageClassification,
    image_processor: MAEImageProcessor,
    train_images: ImageSource,
    test_images: ImageSource | None,
) -> ClassificationTrainer:
    config = model.config
    if test_images is None:
        print(in_flags(str(no_test_images(train_images.name))), file=sys.stderr)
    if args.learning_rate is None:
        args.learning_rate = scaled_learning_rate(args.base_learning_rate, args.effective_batch_size)
    mixing = args.share_of_mixing(config.problem_type or SINGLE)
    train_labels = train_images.labels
    if args.max_train_images is not None:
        chosen = np.random.default_rng(args.seed).permutation(len(train_images))[: args.max_train_images]
        train_labels = train_labels[chosen]
        train_images = select(train_images, np.isin(np.arange(len(train_images)), chosen))
    return ClassificationTrainer(
        model=model,
        args=args,
        train_dataset=_train_dataset(args, train_images, config, image_processor),
        eval_dataset=None if test_images is None else EvaluationDataset(test_images, image_processor),
        data_collator=collate_labelled,
        processing_class=image_processor,
        augmentation=BatchAugmentation(image_processor, config.num_labels, args.random_erasing, **mixing),
        train_labels=train_labels,
    )


def _print_plan(args: ClassificationArguments, model: MAEForImageClassification, num_images: int, images: ImageSource):
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    what = {None: "classes", MULTI: "classes, any number an image", REGRESSION: "number(s)"}[model.config.problem_type]
    print(
        f"{num_images:,} images of {images.name}, {model.config.num_labels} {what}; {args.effective_batch_size} "
        f"images a step, rate {args.learning_rate:.3g}, layer decay {args.layer_decay:g}; "
        f"{trainable / 1e6:.2f} M of {model.num_parameters() / 1e6:.2f} M parameters are trained.",
        flush=True,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def figures(predicted: np.ndarray, labels: np.ndarray, problem_type: str, num_labels: int) -> dict[str, float]:
    """Returns the figures that suit a kind of labels.

    Args:
        predicted (`np.ndarray`): Most probable classes `(images, k)`, probabilities, or numbers.
        labels (`np.ndarray`): Labels of the same images.
        problem_type (`str`): Kind of the labels.
        num_labels (`int`): Number of classes.
    """
    if problem_type == MULTI:
        return multi_label_figures(predicted, labels)
    if problem_type == REGRESSION:
        return regression_figures(predicted, labels)
    return accuracy_figures(predicted, labels, num_labels)


def describe_figures(
    predicted: np.ndarray, labels: np.ndarray, problem_type: str, names: list[str], folder: Path
) -> dict[str, float | None]:
    """Prints and returns a figure for each class, and draws `confusion.png` into a folder.

    Args:
        predicted, labels (`np.ndarray`): See [`figures`].
        problem_type (`str`): Kind of the labels.
        names (`list[str]`): Names of the classes.
        folder (`Path`): Where the picture goes.
    """
    if problem_type == REGRESSION:
        what, values = "mae", np.abs(predicted - labels).mean(axis=0)
    elif problem_type == MULTI:
        what, values = "average_precision", average_precisions(predicted, labels)
    else:
        matrix = confusion_matrix(predicted[:, 0], labels, len(names))
        what, values = "accuracy", accuracy_by_class(matrix)
        folder.mkdir(parents=True, exist_ok=True)
        save_picture(folder / "confusion.png", confusion_sheet(matrix, names))
    for name, value in zip(names, values, strict=True):
        print(f"  {what} of {name:30} {'does not occur' if np.isnan(value) else format(value, '.4f')}")
    return {
        f"eval_{what}_{name}": None if np.isnan(value) else float(value)
        for name, value in zip(names, values, strict=True)
    }


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation of a finished classifier


def evaluate_classifier(args: ClassificationArguments) -> FineTuned:
    """Evaluates a classifier on any labelled images, or predicts those without labels.

    Of data with splits the evaluation images are taken, else all. `output_dir` gets `predictions.csv` with a row for
    each image and, if there are labels, `evaluation.json` and `confusion.png`. One process does it.

    Args:
        args ([`ClassificationArguments`]): `model_name_or_path`, `data`, `output_dir` and the size of batches.

    Raises:
        ValueError: If the model is no classifier, or no image can be read.
    """
    model = _load_classifier(args)
    problem_type = model.config.problem_type or SINGLE
    image_processor = args.load_image_processor(args.model_name_or_path)
    options = {"label_column": args.label_column, "problem_type": problem_type, **args.source_options(image_processor)}
    images = open_with_labels(args.data, "test", **options)
    if images is None:
        args.warn_of_training_images()
        images = open_with_labels(args.data, "train", **options)
    names = class_names_of(model.config)
    columns = args.label_column or ()
    missing = [name for name in names if name not in columns]
    if len(columns) > 1 and problem_type == MULTI and missing:
        raise ValueError(  # a class without a column is not known to be absent
            f"`label_column` lacks {', '.join(missing)}, which {args.model_name_or_path} has. Name a column for each "
            f"of its {len(names)} labels."
        )
    if args.process_index > 0:
        return FineTuned(model, {}, Path(args.output_dir))
    label_by_folders(images, names, problem_type)
    align_all_labels(images, names)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)  # before the work, which would be lost if that fails
    if args.image_size is not None:
        image_processor = image_processor.with_image_size(args.image_size)
    indices, files, scores = _predict(model, images, image_processor, args)
    labels = None if images.labels is None else images.labels[indices]
    known = has_label(images)[indices]
    metrics = {}
    if known.any():
        check_labels(select(images, has_label(images)), len(names))
        predicted = np.argsort(-scores, axis=1)[:, :5] if problem_type == SINGLE else scores
        found = figures(predicted[known], labels[known], problem_type, len(names))
        metrics = {f"eval_{name}": value for name, value in found.items()}
        print(*(f"{name:28} {value:.4f}" for name, value in metrics.items()), sep="\n", flush=True)
    # After the figures, which a full disk should not cost.
    _write_predictions(folder / "predictions.csv", files, scores, labels, names, problem_type)
    if metrics:
        metrics |= describe_figures(predicted[known], labels[known], problem_type, names, folder)
        write_json(folder / "evaluation.json", {**run_record(args.recipe(), images), "metrics": metrics})
    print(f"{len(files):,} images, {known.sum():,} with a label. Predictions are in {folder / 'predictions.csv'}.")
    return FineTuned(model, metrics, folder)


def _load_classifier(args: ClassificationArguments) -> MAEForImageClassification:
    """Returns a finished classifier.

    Raises:
        ValueError: If the model is none, or another one than the settings say.
    """
    config = MAEConfig.from_pretrained(args.model_name_or_path)
    if not is_classifier(config):
        if (config.architectures or [""])[0].endswith("ForImageClassification"):
            raise ValueError(
                f"{args.model_name_or_path} holds a {config.architectures[0]}. `hf-mae convert` makes a classifier of "
                "hf_mae of it, which can be evaluated."
            )
        raise ValueError(
            f"{args.model_name_or_path} has no classifier to evaluate: train one first, without `eval_only`."
        )
    has = {"problem_type": config.problem_type or SINGLE, "pooling": config.pooling}
    given = {"problem_type": args.problem_type, "pooling": None if args.pooling == "mean" else args.pooling}
    for name, value in given.items():
        if value not in (None, has[name]):
            raise ValueError(f"`{name}` of {args.model_name_or_path} is {has[name]}, got {value}. Leave it out.")
    sizes = {} if args.image_size is None else {"image_size": args.image_size}
    model = MAEForImageClassification.from_pretrained(args.model_name_or_path, dtype=torch.float32, **sizes)
    return model.to(args.device).eval()


@torch.no_grad()
def _predict(
    model: MAEForImageClassification, images: ImageSource, image_processor: MAEImageProcessor, args
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Returns indices and names of the images that can be read, and probabilities or numbers `(images, num_labels)`."""
    loader = DataLoader(
        ReadableImages(images, image_processor),
        args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=collate_readable,
    )
    indices, files, scores = [], [], []
    for batch_indices, names, pixel_values, messages in loader:
        print(in_flags("".join(f"{message}\n" for message in messages)), end="", file=sys.stderr)
        if not batch_indices:
            continue
        with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
            logits = model(pixel_values.to(args.device)).logits.float()
        if model.config.problem_type != REGRESSION:
            logits = logits.sigmoid() if model.config.problem_type == MULTI else logits.softmax(dim=1)
        indices, files, scores = indices + batch_indices, files + names, [*scores, logits.cpu()]
    if not indices:
        raise ValueError(f"None of the images of {images.name} could be read.")
    return np.array(indices), files, torch.cat(scores).numpy()


def _write_predictions(
    path: Path,
    files: list[str],
    scores: np.ndarray,
    labels: np.ndarray | None,
    names: list[str],
    problem_type: str,
):
    """Writes a table: the file, its label, the prediction, and the probability of each class or the numbers."""
    with replacing(path) as partial, open(partial, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        predicted = [] if problem_type == REGRESSION else ["prediction"]
        writer.writerow(["file", *([] if labels is None else ["label"]), *predicted, *names])
        for index, (name, row) in enumerate(zip(files, scores, strict=True)):
            cells = [] if labels is None else [_label_text(labels[index], names, problem_type)]
            if problem_type != REGRESSION:
                cells.append(_label_text(row.argmax() if problem_type == SINGLE else row, names, problem_type))
            writer.writerow([name, *cells, *(f"{value:.6g}" for value in row)])


def _label_text(label: np.ndarray, names: list[str], problem_type: str) -> str:
    """Returns a label, or a prediction, as a cell of the table; it is empty where there is none."""
    if problem_type == SINGLE:
        return names[label] if 0 <= label < len(names) else ""
    if np.isnan(label).any():
        return ""
    if problem_type == MULTI:
        return ";".join(name for name, some in zip(names, label > 0.5, strict=True) if some)
    return ";".join(f"{value:g}" for value in np.atleast_1d(label))


def finetune_command(argv: list[str], prog: str):
    """Runs `hf-mae finetune`.

    Args:
        argv (`list[str]`): Arguments of the command.
        prog (`str`): What the command is called.
    """
    args = parse_arguments(
        ClassificationArguments, argv, prog=prog, description=_DESCRIPTION, sample_recipe="finetune_sample"
    )
    finetune(args)


__all__ = [
    "ClassificationArguments",
    "ClassificationTrainer",
    "balanced_weights",
    "build_classifier",
    "evaluate_classifier",
    "finetune",
    "finetune_command",
    "weighted_loss",
]
