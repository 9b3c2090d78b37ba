# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Probes a pre-trained encoder: how well does a linear classifier do on its frozen features?

    python examples/run_linear_probing.py --model_name_or_path runs/fashion_mnist_sample --fast       # embedded images
    python examples/run_linear_probing.py --model_name_or_path out --data path/to/images --fast       # a grid of rates
    python examples/run_linear_probing.py --model_name_or_path out --data path/to/images --base_learning_rates 0.1
    accelerate launch --config_file examples/accelerate/eight_gpus.yaml examples/run_linear_probing.py ...

With --fast each image goes through the encoder once, uncropped, and classifiers for a grid of learning rates are
trained on the stored features at the same time. Held-out training images choose the rate; k-NN is measured, too.
Without, images are cropped anew in each epoch, as in the paper (He et al. 2021, Table 10), by Trainer, for one rate.
`--output_dir` ends up with a classifier that AutoModelForImageClassification loads, the batch norm inside its weights.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EvalPrediction, Trainer, set_seed

from hf_mae import MAEForImageClassification, MAEImageProcessor
from hf_mae.data.datasets import (
    ClassificationDataset,
    EvaluationDataset,
    align_labels,
    check_labels,
    class_names,
    collate_labelled,
)
from hf_mae.data.sources import open_images
from hf_mae.evaluation.monitoring import knn_accuracy
from hf_mae.evaluation.probing import LinearProbe, train_linear_probes, with_classifier
from hf_mae.publishing import HubPush, write_model_card
from hf_mae.training.arguments import parse_arguments, recipe_of, setting
from hf_mae.training.finetuning import FineTuningArguments
from hf_mae.training.optimization import LARS, default_effective_batch_size, scaled_learning_rate
from hf_mae.training.run_log import run_record, save_record


@dataclass
class ProbingArguments(FineTuningArguments):
    output_dir: str = setting("runs/probe", "Folder for the final classifier.")
    model_name_or_path: str | None = setting(None, "Checkpoint of any MAE model, ours.")
    data: str | None = setting(None, "Folder, .tar or .parquet file, Hub name. Nothing: the embedded images.")
    fast: bool = setting(False, "Compute features once, without crops, and train a grid of rates on them.")
    base_learning_rates: list[float] | None = setting(
        None, "Rates per 256 images of a step; one without --fast. Nothing: 0.1, or with --fast a grid around it."
    )
    image_size: int | None = setting(None, "Pixels, if not the checkpoint's: the position table is resampled.")
    pooling: str = setting("class", "class: the class token, or mean: of the patches, normalised.")
    batch_size: int | None = setting(None, "With --fast: images of a step. Nothing: 16384, or less for few images.")
    num_neighbors: list[int] = field(default_factory=lambda: [10, 20, 100], metadata={"help": "Of k-NN, with --fast."})
    crop_scale_min: float = setting(0.08, "Least share of an image that a random crop keeps.")
    # Of TrainingArguments
    num_train_epochs: float = setting(90, "Passes over the images.")
    per_device_train_batch_size: int = setting(512, "Images of one forward pass on one device.")
    per_device_eval_batch_size: int = setting(64, "The same in evaluation and, with --fast, for features.")
    weight_decay: float = setting(0.0, "Of the linear layer.")
    lr_scheduler_type: str = setting("cosine", "Schedule of the learning rate.")
    warmup_steps: float = setting(1 / 9, "Steps with a rising rate, below 1: their share.")
    save_strategy: str = setting("no", "When to save.")

    def __post_init__(self):
        super().__post_init__()
        if self.base_learning_rates is None:
            self.base_learning_rates = [0.1, 0.3, 1, 3, 10, 30, 100, 300] if self.fast else [0.1]
        if len(self.base_learning_rates) > 1 and not self.fast:
            raise ValueError("Without --fast give one of --base_learning_rates: each takes a run of its own.")


class ProbingTrainer(Trainer):
    """Trainer with LARS, and normalisation of whole batches on their device."""

    def __init__(self, *args, image_processor: MAEImageProcessor, **kwargs):
        super().__init__(*args, **kwargs)
        self.image_processor = image_processor

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            parameters = self.model.classifier.parameters()
            self.optimizer = LARS(parameters, lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        return self.optimizer

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            inputs["pixel_values"] = self.image_processor.rescale_and_normalize(inputs["pixel_values"])
        return super().compute_loss(model, inputs, *args, **kwargs)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": (prediction.predictions == prediction.label_ids).mean().item()}


def likeliest(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What Trainer keeps of the logits."""
    return logits.argmax(dim=1)


@torch.no_grad()
def pooled_features(
    model: MAEForImageClassification, dataset: EvaluationDataset, args: ProbingArguments, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier is to see of each image (images, D), float32, and the labels, on the device."""
    options = {"num_workers": args.dataloader_num_workers, "collate_fn": collate_labelled}
    features, labels = [], []
    for batch in tqdm(DataLoader(dataset, args.eval_batch_size, **options), desc=f"Features, {name}", unit="batch"):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            features.append(model.pool(batch["pixel_values"].to(args.device)).float())
        labels.append(batch["labels"].to(args.device))
    return torch.cat(features), torch.cat(labels)


def probe_fast(
    model: MAEForImageClassification, train: EvaluationDataset, test: EvaluationDataset, args: ProbingArguments
) -> tuple[MAEForImageClassification, dict[str, float]]:
    """Trains on stored features and returns the classifier and its metrics.

    Of several rates a tenth of the training images, held out, chooses one. The test images are looked at once.
    """
    model.to(args.device)
    features, labels = pooled_features(model, train, args, "train")
    test_features, test_labels = pooled_features(model, test, args, "test")
    epochs, warmup = int(args.num_train_epochs), round(args.warmup_steps * args.num_train_epochs)

    def probes(rates: list[float], chosen: torch.Tensor) -> tuple[torch.nn.BatchNorm1d, list[torch.nn.Linear]]:
        return train_linear_probes(
            features[chosen],
            labels[chosen],
            model.config.num_labels,
            rates,
            num_epochs=epochs,
            batch_size=args.batch_size or default_effective_batch_size(len(features), largest=16384),
            warmup_epochs=warmup,
            weight_decay=args.weight_decay,
            seed=args.seed,
        )

    @torch.no_grad()
    def accuracy_of(classifier, batch_norm, features: torch.Tensor, labels: torch.Tensor) -> float:
        return (classifier(batch_norm(features)).argmax(dim=1) == labels).float().mean().item()

    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(args.seed)).to(features.device)
    best, best_accuracy = args.base_learning_rates[0], -1.0
    if len(args.base_learning_rates) > 1:
        tenth = -(-len(order) // 10)
        held_out, rest = order[:tenth], order[tenth:]
        batch_norm, classifiers = probes(args.base_learning_rates, rest)
        for rate, classifier in zip(args.base_learning_rates, classifiers, strict=True):
            share = accuracy_of(classifier, batch_norm, features[held_out], labels[held_out])
            print(
                f"linear probe, base rate {rate:<6g} accuracy {share:.4f} of {len(held_out)} held-out training images"
            )
            if share > best_accuracy:
                best, best_accuracy = rate, share
    batch_norm, (classifier,) = probes([best], torch.arange(len(features), device=features.device))
    metrics = {"linear_accuracy": accuracy_of(classifier, batch_norm, test_features, test_labels), "base_rate": best}
    print(f"linear probe, base rate {best:<6g} accuracy {metrics['linear_accuracy']:.4f} of the test images")
    on_cpu = [tensor.cpu() for tensor in (features, labels, test_features, test_labels)]
    for neighbors in args.num_neighbors:
        share = knn_accuracy(*on_cpu, neighbors)
        print(f"k-NN, k {neighbors:<4} accuracy {share:.4f}")
        if neighbors == 20:
            metrics["knn_accuracy"] = share
    return with_classifier(model, classifier, batch_norm), metrics


def main():
    args = parse_arguments(ProbingArguments, __doc__)
    set_seed(args.seed)  # fresh weights are made before Trainer does it
    train_images, test_images = (open_images(args.data, split) for split in ("train", "test"))
    if args.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing: a folder or a name on the Hub with a model of hf_mae.")
    if test_images is None:
        raise ValueError(f"{train_images.name} has no images to evaluate on: put some below a folder `val`.")
    names = class_names(train_images)
    align_labels(test_images, names)
    for images in (train_images, test_images):
        check_labels(images, len(names))
    hub = HubPush(args.output_dir, args.hub_model_id, args.hub_private_repo) if args.push_to_hub else None
    args.push_to_hub = False  # Trainer would push the probe, not the classifier that it becomes
    sizes = {} if args.image_size is None else {"image_size": args.image_size}
    model = MAEForImageClassification.from_pretrained(
        args.model_name_or_path,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
        pooling=args.pooling,
        ignore_mismatched_sizes=True,  # a classifier that is there is not used
        **sizes,
    )
    config = model.config
    image_processor = MAEImageProcessor.from_pretrained(args.model_name_or_path).with_image_size(config.image_size)
    test_dataset = EvaluationDataset(test_images, image_processor)
    if args.fast:
        train_dataset = EvaluationDataset(train_images, image_processor)
        classifier, metrics = probe_fast(model.eval(), train_dataset, test_dataset, args)
    else:
        scale = (args.crop_scale_min, 1.0)
        batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.learning_rate = scaled_learning_rate(args.base_learning_rates[0], batch_size)
        probe = LinearProbe(model)
        trainer = ProbingTrainer(
            model=probe,
            args=args,
            train_dataset=ClassificationDataset(
                train_images, image_processor.crop_height_width, len(names), config.num_channels, scale
            ),
            eval_dataset=test_dataset,
            data_collator=collate_labelled,
            compute_metrics=accuracy,
            preprocess_logits_for_metrics=likeliest,
            image_processor=image_processor,
        )
        print(f"{batch_size} images a step, rate {args.learning_rate:.3g}", file=sys.stderr)
        trainer.train()
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        classifier, metrics = probe.to_classifier(), {"linear_accuracy": metrics["eval_accuracy"]}
    if args.process_index == 0:
        classifier.save_pretrained(args.output_dir)
        image_processor.save_pretrained(args.output_dir)
        record = run_record(recipe_of(args, {"output_dir", "data"}), train_images)
        save_record(args.output_dir, {**record, "metrics": metrics})
        write_model_card(args.output_dir)
        print(f"The classifier is in {Path(args.output_dir)}.")
        if hub:
            print(*hub.push(args.output_dir, "Linear probe"), sep="\n")


if __name__ == "__main__":
    main()
