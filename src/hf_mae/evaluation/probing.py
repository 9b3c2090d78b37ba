# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Probes a frozen encoder, on stored features or with crops by Trainer: linear and attentive probes, k-NN.

Source of the settings: He et al. 2021, appendix A.1, Linear probing, and Table 10.
"""

from argparse import SUPPRESS
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction, set_seed
from transformers.hf_argparser import HfArg

from ..data.augmentation import RandomOrientation
from ..data.datasets import ClassificationDataset, EvaluationDataset, collate_labelled
from ..data.image_source import ImageSource
from ..finetuning.experiment import check_experiment, labelled_fingerprints
from ..finetuning.settings import (
    FineTuningArguments,
    OrientationArguments,
    ReadingArguments,
    check_sources,
    limit_batch_size,
    open_classes,
)
from ..finetuning.trainer import FineTuned, FineTuningTrainer, counted, write_record
from ..modeling.configuration_mae import MAEConfig
from ..modeling.image_processing_mae import MAEImageProcessor
from ..modeling.modeling_mae_downstream import MAEForImageClassification
from ..publishing.hub import HubPush
from ..training.arguments import parse_arguments
from ..training.checkpointing import unlock_run
from ..training.optimization import LARS, default_effective_batch_size, scaled_learning_rate
from ..training.run_record import run_record
from .attentive import (
    LEARNING_RATES,
    AttentiveSettings,
    PatchTokens,
    attentive_accuracies,
    choose_attentive_probe,
    with_attentive_probe,
)
from .linear import (
    BASE_LEARNING_RATES,
    LinearProbe,
    choose_linear_probe,
    hold_out_tenth,
    probe_accuracy,
    readable,
    store_features,
    train_linear_probes,
    with_classifier,
)
from .monitoring import knn_accuracy

_DESCRIPTION = """Train a linear classifier on the features of a frozen encoder, to see how good they are.

  hf-mae probe --model_name_or_path runs/fashion_mnist_sample --fast              # on the embedded images
  hf-mae probe --model_name_or_path out --data path/to/images --fast              # a grid of learning rates
  hf-mae probe --model_name_or_path out --data path/to/images --fast --pooling attentive
  hf-mae probe --model_name_or_path out --data path/to/images --base_learning_rates 0.1

With --fast each image goes through the encoder once, uncropped, and classifiers for a grid of learning rates are
trained on the stored features at the same time. Held-out training images choose the rate; k-NN is measured, too.
Without it, images are cropped anew in each epoch, as in the paper (He et al. 2021, Table 10), by Trainer, for one rate.
The output folder gets a classifier that AutoModelForImageClassification loads, the batch norm inside its weights."""


@dataclass
class ProbeArguments:
    """Probe."""

    model_name_or_path: str | None = HfArg(default=None, help="Folder or name on the Hub of any model of hf_mae.")
    data: str | None = HfArg(
        default=None, help="Folder, .tar or .parquet file, or Hub name. Default: the embedded images."
    )
    fast: bool = HfArg(default=False, help="Compute features once, without crops, and train a grid of rates on them.")
    base_learning_rates: list[float] | None = HfArg(
        default=None,
        help="Learning rates per 256 images of a step; one without fast. Default: 0.1, or with fast a grid around it. "
        "With attentive pooling: rates of AdamW.",
    )
    image_size: int | None = HfArg(default=None, help="Pixels; positions are resampled. Default: the checkpoint's.")
    pooling: Literal["class", "mean", "attentive"] = HfArg(
        default="class", help="Class token, mean of the patches, or with fast learned queries that attend to them."
    )
    batch_size: int | None = HfArg(
        default=None, help="With fast: images of a step. Default: 16384, or less for few images."
    )
    num_neighbors: list[int] = HfArg(
        default_factory=lambda: [10, 20, 100], help="With fast: numbers of neighbours of k-NN. Default: 10 20 100."
    )
    crop_scale_min: float = HfArg(default=0.08, help="Smallest share of an image that a random crop keeps.")
    label_column: list[str] | None = HfArg(
        default=None, help="Column of the table or data set with the labels. Default: label, or the only one."
    )


# Settings of AdamW and of an encoder that is trained.
_NOT_OF_PROBES = ["layer_decay", "optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2"]
_NOT_OF_PROBES += ["adam_epsilon", "neftune_noise_alpha", "gradient_checkpointing", "activation_checkpointing"]
# Settings of training with crops by Trainer, which `fast` does not do.
_NOT_FAST = ["max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "rotate90"]
_NOT_FAST += ["max_grad_norm", "crop_scale_min", "horizontal_flip", "vertical_flip", "torch_compile", "report_to"]
_NOT_FAST += ["eval_strategy", "eval_steps", "eval_on_start", "load_best_model_at_end", "save_strategy", "save_steps"]
_NOT_FAST += ["logging_strategy", "logging_steps", "auto_find_batch_size"]
# What Trainer makes of settings that are not given.
_NOT_GIVEN = [("gradient_checkpointing", False), ("activation_checkpointing", False), ("report_to", [])]


@dataclass
class ProbeTrainingArguments:
    """Optimization."""

    num_train_epochs: float = HfArg(default=90, help="Passes over the images.")
    per_device_train_batch_size: int = HfArg(default=512, help="Images of one forward pass on one device.")
    per_device_eval_batch_size: int = HfArg(default=64, help="The same in evaluation and, with fast, for features.")
    learning_rate: float | None = HfArg(default=None, help=SUPPRESS)  # it follows from `base_learning_rates`
    layer_decay: float = HfArg(default=0.75, help=SUPPRESS)  # this one and the next are refused
    adam_beta2: float = HfArg(default=0.999, help=SUPPRESS)
    weight_decay: float = HfArg(default=0.0, help="Weight decay of the linear layer.")
    lr_scheduler_type: str = HfArg(default="cosine", help="Schedule of the learning rate.")
    warmup_steps: float = HfArg(default=1 / 9, help="Steps with a rising rate; below 1: their share.")
    save_strategy: str = HfArg(default="no", help="When to save: no, steps or epoch.")


@dataclass
class ProbingArguments(
    ProbeArguments, ReadingArguments, OrientationArguments, ProbeTrainingArguments, FineTuningArguments
):
    """Settings of [`probe`]: groups of its own and those of [`FineTuningArguments`]."""

    output_dir: str = HfArg(default="runs/probe", help="Folder for the final classifier.")

    def __post_init__(self):
        super().__post_init__()
        if self.model_name_or_path is None:
            raise ValueError("`model_name_or_path` is missing: a folder or a name on the Hub with a model of hf_mae.")
        if self.pooling == "attentive" and not self.fast:
            raise ValueError("Attentive `pooling` is trained on tokens of uncropped images: set `fast`.")
        if self.fast and self.world_size > 1:
            raise ValueError(
                f"`fast` works in one process, and {self.world_size} were started: each would compute all features. "
                "Start it without a launcher, or leave `fast` out."
            )
        self._refuse_unused()
        if self.fast and (self.num_train_epochs < 1 or self.num_train_epochs % 1 or self.warmup_steps >= 1):
            raise ValueError(
                "With `fast`, `num_train_epochs` must be a whole number and `warmup_steps` their share, below 1; got "
                f"{self.num_train_epochs:g} and {self.warmup_steps:g}."
            )
        if self.base_learning_rates is None:
            grid = LEARNING_RATES if self.pooling == "attentive" else BASE_LEARNING_RATES
            self.base_learning_rates = list(grid) if self.fast else [0.1]
        if len(self.base_learning_rates) > 1 and not self.fast:
            raise ValueError("Give one of `base_learning_rates`, or set `fast`: otherwise each takes a run of its own.")

    def _refuse_unused(self):
        unused = dict.fromkeys(_NOT_OF_PROBES, "has no effect in a probe, as LARS trains it on a frozen encoder")
        unused["learning_rate"] = "follows from `base_learning_rates` and the size of batches"
        if self.fast:
            unused |= dict.fromkeys(_NOT_FAST, "has no effect with `fast`, which trains on stored features")
        else:
            unused["batch_size"] = "is for `fast`, in place of `per_device_train_batch_size`"
        if self.pooling == "attentive" or not self.fast:
            unused["num_neighbors"] = "is for k-NN, which `fast` measures with `pooling` class or mean"
        given = {name for name, value in self.recipe().items() if (name, value) not in _NOT_GIVEN}
        for name in [name for name in unused if name in given]:
            raise ValueError(f"`{name}` {unused[name]}. Leave it out.")


# ----------------------------------------------------------------------------------------------------------------------
# On stored features


def probe_features(
    model: MAEForImageClassification, train: EvaluationDataset, test: EvaluationDataset, args: ProbingArguments
) -> tuple[MAEForImageClassification, dict[str, float]]:
    """Trains a probe on features that are computed once, and measures k-NN on them.

    Of several learning rates a tenth of the training images, held out, chooses one. The test images are used once.

    Args:
        model ([`MAEForImageClassification`]): Its encoder is probed, its classifier is replaced.
        train, test ([`EvaluationDataset`]): Labelled images.
        args ([`ProbingArguments`]): The settings.

    Returns:
        The classifier and its `linear_accuracy`, `base_rate` and, for 20 neighbours, `knn_accuracy`.
    """
    model.to(args.device).eval()
    num_labels = model.config.num_labels

    def encode(pixel_values):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            return {args.pooling: model.pool(pixel_values.to(args.device))}

    stored = []
    for name, dataset in (("train", train), ("test", test)):
        title = None if args.disable_tqdm else f"Features, {name}"
        found = store_features(encode, dataset, args.eval_batch_size, args.dataloader_num_workers, title)
        stored.append(readable(found, f"images ({name})")[args.pooling])
    train_features, test_features = stored
    settings = {
        "num_epochs": int(args.num_train_epochs),
        "batch_size": args.batch_size or default_effective_batch_size(len(train), largest=16384),
        "warmup_epochs": round(args.warmup_steps * args.num_train_epochs),
        "weight_decay": args.weight_decay,
        "seed": args.seed,
    }
    on_device = train_features.to(args.device)
    rate = args.base_learning_rates[0]
    if len(args.base_learning_rates) > 1:
        choices = choose_linear_probe({args.pooling: on_device}, num_labels, args.base_learning_rates, **settings)
        for choice in sorted(choices, key=lambda choice: choice.rate):
            print(f"linear probe, base rate {choice.rate:<6g} accuracy {choice.accuracy:.4f} of held-out images")
        rate = choices[0].rate
    batch_norm, (classifier,) = train_linear_probes(on_device.values, on_device.labels, num_labels, [rate], **settings)
    accuracy = probe_accuracy(classifier, batch_norm, test_features.to(args.device))
    metrics = {"linear_accuracy": accuracy, "base_rate": rate}
    print(f"linear probe, base rate {rate:<6g} accuracy {accuracy:.4f} of the test images")
    for neighbors in args.num_neighbors:
        share = knn_accuracy(*train_features, *test_features, neighbors)
        print(f"k-NN, k {min(neighbors, len(train_features.labels)):<4} accuracy {share:.4f}")
        if neighbors == 20:
            metrics["knn_accuracy"] = share
    return with_classifier(model, classifier, batch_norm), metrics


def probe_tokens(
    model: MAEForImageClassification, train: EvaluationDataset, test: EvaluationDataset, args: ProbingArguments
) -> tuple[MAEForImageClassification, dict[str, float]]:
    """Trains an attentive probe on patch tokens, which are kept in memory if they fit.

    Arguments are those of [`probe_features`].

    Returns:
        The classifier, which has attentive pooling, and its `attentive_accuracy` and `learning_rate`.
    """
    model.to(args.device).eval()

    def encode(pixel_values):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            return model.mae(pixel_values).last_hidden_state[:, model.config.num_class_tokens :]

    tokens = []
    for name, dataset in (("train", train), ("test", test)):
        title = None if args.disable_tqdm else f"Tokens, {name}"
        options = {"batch_size": args.eval_batch_size, "num_workers": args.dataloader_num_workers, "progress": title}
        tokens.append(PatchTokens(encode, dataset, args.device, **options))
    settings = AttentiveSettings(None, int(args.num_train_epochs), args.batch_size, args.weight_decay, args.seed)
    held_out, _ = hold_out_tenth(len(train), args.seed)
    chosen = choose_attentive_probe(tokens[0], model.config.num_labels, held_out, args.base_learning_rates, settings)
    (accuracy,) = attentive_accuracies([chosen.probe], tokens[1])
    rate = chosen.learning_rate
    print(f"attentive probe, rate {rate:<6g} accuracy {chosen.held_out_accuracy:.4f} of held-out images")
    print(f"attentive probe, rate {rate:<6g} accuracy {accuracy:.4f} of the test images")
    return with_attentive_probe(model, chosen.probe), {"attentive_accuracy": accuracy, "learning_rate": rate}


# ----------------------------------------------------------------------------------------------------------------------
# With crops


class ProbingTrainer(FineTuningTrainer):
    """Trains a [`LinearProbe`] with LARS, and normalises whole batches on their device."""

    drops_last_batch = True  # one image has no statistics for the batch norm
    loss_is_a_figure = True

    def __init__(self, *args, image_processor: MAEImageProcessor, **kwargs):
        """
        Args:
            image_processor ([`MAEImageProcessor`]): Normalises the pixels of training batches.
            *args, **kwargs: Arguments of [`~transformers.Trainer`].
        """
        super().__init__(*args, compute_metrics=_figures, preprocess_logits_for_metrics=_kept, **kwargs)
        self.image_processor = image_processor

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Makes LARS for the linear layer."""
        if self.optimizer is None:
            parameters = self.model.classifier.parameters()
            self.optimizer = LARS(parameters, lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        return self.optimizer

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Returns the loss of a training batch, whose crops are not normalised yet."""
        inputs["pixel_values"] = self.image_processor.rescale_and_normalize(inputs["pixel_values"])
        return super().compute_loss(model, inputs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the probe into a checkpoint, the classifier that it becomes into the output folder."""
        if output_dir is not None:
            super().save_model(output_dir, _internal_call)
        elif self.is_world_process_zero():
            self.model.to_classifier().save_pretrained(self.args.output_dir)
            self.image_processor.save_pretrained(self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Pushes nothing during the run: a checkpoint holds the probe and no classifier."""

    def describe_results(self, metrics: dict) -> dict:
        """Returns the accuracy under the name that it has in model cards."""
        return {"linear_accuracy": metrics["eval_accuracy"]}


def _kept(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the most probable class and the loss of each image."""
    return logits.argmax(dim=1), cross_entropy(logits, labels, reduction="none")


def _figures(prediction: EvalPrediction) -> dict[str, float]:
    predicted, labels, loss = counted(prediction)
    return {"loss": loss, "accuracy": (predicted == labels).mean().item()}


# ----------------------------------------------------------------------------------------------------------------------
# Runs


def probe(args: ProbingArguments) -> FineTuned:
    """Trains a linear classifier on frozen features.

    Args:
        args ([`ProbingArguments`]): The settings.

    Returns:
        [`FineTuned`]: The classifier, its figures on the test images, and the folder that holds it.

    Raises:
        ValueError: If the settings do not fit the images or the model, or the folder holds another run.
    """
    set_seed(args.seed)  # fresh weights are made before Trainer sets the seed
    recipe = args.recipe()
    image_processor = args.load_image_processor(args.model_name_or_path)
    train_images, test_images, names = open_classes(args, **args.source_options(image_processor))
    if not args.fast:
        limit_batch_size(args, len(train_images))
    fingerprints = labelled_fingerprints(args.model_name_or_path, train_images, test_images)
    model = _build_classifier(args, names)
    image_processor = image_processor.with_image_size(model.config.image_size)
    check_sources(image_processor, train_images, test_images)
    args.check_rotation(image_processor.crop_height_width)
    checkpoint = check_experiment(args, "probe", fingerprints)  # deletes, if it is to, when all else is right
    record = run_record(recipe, train_images)
    if args.fast:
        try:
            model, metrics = _probe_fast(args, model, image_processor, train_images, test_images, record)
        finally:
            unlock_run(args.output_dir)
    else:
        trainer = _build_trainer(args, model, image_processor, train_images, test_images)
        metrics = trainer.run(record, checkpoint)
    if args.process_index == 0:
        print(f"The classifier is in {args.output_dir}.")
    return FineTuned(model, metrics, Path(args.output_dir))


def _build_classifier(args: ProbingArguments, names: list[str]) -> MAEForImageClassification:
    sizes = {} if args.image_size is None else {"image_size": args.image_size}
    MAEConfig.from_pretrained(args.model_name_or_path)  # refuses an adapter, without whose model the probe is lost
    return MAEForImageClassification.from_pretrained(
        args.model_name_or_path,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
        pooling="class" if args.pooling == "attentive" else args.pooling,  # until the queries are trained
        ignore_mismatched_sizes=True,  # a classifier that is there is not used
        dtype=torch.float32,  # the probe would be rounded to what the checkpoint has
        **sizes,
    )


def _build_trainer(
    args: ProbingArguments,
    model: MAEForImageClassification,
    image_processor: MAEImageProcessor,
    train_images: ImageSource,
    test_images: ImageSource,
) -> ProbingTrainer:
    size = image_processor.crop_height_width
    args.learning_rate = scaled_learning_rate(args.base_learning_rates[0], args.effective_batch_size)
    if args.process_index == 0:
        print(f"{args.effective_batch_size} images a step, rate {args.learning_rate:.3g}", flush=True)
    train_dataset = ClassificationDataset(
        train_images,
        size,
        model.config.num_labels,
        model.config.num_channels,
        crop_scale=(args.crop_scale_min, 1.0),
        horizontal_flip=args.horizontal_flip,
        transform=RandomOrientation(False, args.vertical_flip, args.rotate90),
        reading=image_processor.reading,
    )
    return ProbingTrainer(
        model=LinearProbe(model),
        args=args,
        train_dataset=train_dataset,
        eval_dataset=EvaluationDataset(test_images, image_processor),
        data_collator=collate_labelled,
        image_processor=image_processor,
    )


def _probe_fast(
    args: ProbingArguments,
    model: MAEForImageClassification,
    image_processor: MAEImageProcessor,
    train_images: ImageSource,
    test_images: ImageSource,
    record: dict,
) -> tuple[MAEForImageClassification, dict[str, float]]:
    """Trains a probe on features that are stored, and leaves the classifier with its record and card."""
    train, test = (EvaluationDataset(images, image_processor) for images in (train_images, test_images))
    probe_stored = probe_tokens if args.pooling == "attentive" else probe_features
    model, metrics = probe_stored(model, train, test, args)
    model.save_pretrained(args.output_dir)
    image_processor.save_pretrained(args.output_dir)
    write_record(args.output_dir, {**record, "metrics": metrics}, args.hub_model_id)
    if args.push_to_hub:
        hub = HubPush(args.output_dir, args.hub_model_id, args.hub_private_repo)
        print(*hub.push(args.output_dir, "Linear probe"), sep="\n")
    return model, metrics


def probe_command(argv: list[str], prog: str):
    """Runs `hf-mae probe`.

    Args:
        argv (`list[str]`): Arguments of the command.
        prog (`str`): What the command is called.
    """
    probe(parse_arguments(ProbingArguments, argv, prog=prog, description=_DESCRIPTION))


__all__ = ["ProbingArguments", "ProbingTrainer", "probe", "probe_command", "probe_features", "probe_tokens"]
