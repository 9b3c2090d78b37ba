# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Fine-tunes a pre-trained encoder for classification, with Trainer.

    python examples/run_image_classification.py --model_name_or_path runs/fashion_mnist_sample   # embedded images
    python examples/run_image_classification.py --model_name_or_path out --data path/to/images --output_dir classifier
    python examples/run_image_classification.py src/hf_mae/training/recipes/finetune_base.yaml --data ...
    python examples/run_image_classification.py ... --num_trainable_layers 4     # only the last four blocks
    python examples/run_image_classification.py ... --from_scratch               # the same without pre-training
    python examples/run_image_classification.py --model_name_or_path classifier --data ... --eval_only
    accelerate launch --config_file examples/accelerate/eight_gpus.yaml examples/run_image_classification.py ...

Images lie in sub-folders named by class, below `train` and `val`; shards and names of the Hub work as well. All flags
of TrainingArguments work, with the defaults of the paper's end-to-end fine-tuning (He et al. 2021, Table 9) where it
has any. The same command continues an interrupted run from its last checkpoint. docs/classification.md tells the rest.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import EvalPrediction, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_mae import MAEConfig, MAEForImageClassification, MAEImageProcessor
from hf_mae.data.augmentation import BatchAugmentation, RandomAugmentation
from hf_mae.data.datasets import (
    ClassificationDataset,
    EvaluationDataset,
    align_labels,
    check_labels,
    class_names,
    collate_labelled,
)
from hf_mae.data.sources import ImageSource, open_images
from hf_mae.training.arguments import parse_arguments, recipe_of, setting
from hf_mae.training.finetuning import FineTuningArguments, FineTuningTrainer
from hf_mae.training.optimization import scaled_learning_rate
from hf_mae.training.run_log import run_record

SAMPLE_RECIPE = Path(__file__).parents[1] / "src/hf_mae/training/recipes" / "finetune_sample.yaml"


@dataclass
class ClassificationArguments(FineTuningArguments):
    output_dir: str = setting("runs/classifier", "Folder for checkpoints and the final model.")
    model_name_or_path: str | None = setting(None, "Checkpoint of any MAE model, ours.")
    data: str | None = setting(None, "Folder, .tar or .parquet file, Hub name. Nothing: the embedded images.")
    from_scratch: bool = setting(False, "Take the configuration of the checkpoint but fresh weights, to compare.")
    eval_only: bool = setting(False, "Only evaluate a classifier.")
    image_size: int | None = setting(None, "Pixels, if not the checkpoint's: the position table is resampled.")
    pooling: str = setting("mean", "mean: of the patches, or class: the class token.")
    drop_path_rate: float = setting(0.1, "Of the last block; it rises from 0 at the first.")
    label_smoothing: float = setting(0.1, "Share of the target that is spread over all classes.")
    num_trainable_layers: float | None = setting(None, "Train only so many last blocks; a half is an MLP.")
    base_learning_rate: float = setting(1e-3, "Rate per 256 images of a step over all devices; --learning_rate wins.")
    crop_scale_min: float = setting(0.08, "Least share of an image that a random crop keeps.")
    rand_augment: float = setting(9.0, "Magnitude of random augmentation, below 10; 0: none.")
    random_erasing: float = setting(0.25, "Share of the images that lose a rectangle.")
    mixup: float = setting(0.8, "Parameter of the distribution; 0: no mixup.")
    cutmix: float = setting(1.0, "Parameter of the distribution; 0: no cutmix.")
    max_train_images: int | None = setting(None, "Train on so many images, the same ones for a seed.")
    # Of TrainingArguments
    learning_rate: float | None = setting(None, "Absolute rate, in place of --base_learning_rate.")
    num_train_epochs: float = setting(100, "Passes over the images.")
    per_device_train_batch_size: int = setting(64, "Images of one forward pass on one device.")
    per_device_eval_batch_size: int = setting(64, "The same in evaluation.")
    lr_scheduler_type: str = setting("cosine", "Schedule of the learning rate.")
    warmup_steps: float = setting(0.05, "Steps with a rising rate, below 1: their share.")

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError("--label_smoothing_factor knows no mixed labels: use --label_smoothing.")


class ClassificationTrainer(FineTuningTrainer):
    """Trainer with augmentation of whole batches on their device."""

    def __init__(self, *args, augmentation: BatchAugmentation, **kwargs):
        super().__init__(*args, **kwargs)
        self.augmentation = augmentation

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            inputs = self.augmentation(**inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


def largest_five(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What Trainer keeps of the logits: the five likeliest classes, the likeliest first."""
    return logits.topk(min(5, logits.shape[1])).indices


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    correct = prediction.predictions == prediction.label_ids[:, None]
    return {"accuracy": correct[:, 0].mean().item(), "top5_accuracy": correct.any(axis=1).mean().item()}


def build_model(args: ClassificationArguments, train_images: ImageSource) -> MAEForImageClassification:
    """The classifier to train or to evaluate; the images' labels are numbered as its classes are."""
    if args.model_name_or_path is None:
        raise ValueError("--model_name_or_path is missing: a folder or a name on the Hub with a model of hf_mae.")
    stored = MAEConfig.from_pretrained(args.model_name_or_path)
    is_classifier = "MAEForImageClassification" in (stored.architectures or [])
    sizes = {} if args.image_size is None else {"image_size": args.image_size}
    if args.eval_only:
        if not is_classifier:
            raise ValueError(
                f"{args.model_name_or_path} has no classifier to evaluate: train one, without --eval_only."
            )
        return MAEForImageClassification.from_pretrained(args.model_name_or_path, **sizes)
    names = class_names(train_images)
    known = [stored.id2label[index] for index in range(stored.num_labels)] if is_classifier else []
    if is_classifier and set(names) == set(known):
        names = known  # goes on with the classifier that is there
    changes = {
        **sizes,
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
        "pooling": args.pooling,
        "drop_path_rate": args.drop_path_rate,
        "label_smoothing": args.label_smoothing,
        "dtype": torch.float32,
    }
    if args.from_scratch:
        return MAEForImageClassification(MAEConfig.from_pretrained(args.model_name_or_path, **changes))
    if is_classifier and names != known:
        print(f"The classes differ from the {len(known)} that the classifier knows: it starts anew.")
        changes["ignore_mismatched_sizes"] = True
    model = MAEForImageClassification.from_pretrained(args.model_name_or_path, **changes)
    if is_classifier and names != known:
        model.classifier = torch.nn.Linear(model.config.hidden_size, model.config.num_labels)
        model._init_weights(model.classifier)
    if args.num_trainable_layers is not None:
        model.freeze_encoder(args.num_trainable_layers)
    return model


def main():
    args = parse_arguments(ClassificationArguments, __doc__, SAMPLE_RECIPE)
    set_seed(args.seed)  # fresh weights are made before Trainer does it
    train_images, test_images = (open_images(args.data, split) for split in ("train", "test"))
    model = build_model(args, train_images)
    config = model.config
    for images in (train_images, test_images):
        if images is not None:
            align_labels(images, [config.id2label[index] for index in range(config.num_labels)])
            check_labels(images, config.num_labels)
    image_processor = MAEImageProcessor.from_pretrained(args.model_name_or_path).with_image_size(config.image_size)
    test_dataset = None if test_images is None else EvaluationDataset(test_images, image_processor)
    if test_dataset is None:
        args.eval_strategy = "no"
        print(f"{train_images.name} has no images to evaluate on: put some below a folder `val`.", file=sys.stderr)

    train_dataset = ClassificationDataset(
        train_images,
        image_processor.crop_height_width,
        config.num_labels,
        config.num_channels,
        crop_scale=(args.crop_scale_min, 1.0),
        transform=RandomAugmentation(config.num_channels, magnitude=args.rand_augment) if args.rand_augment else None,
    )
    if args.max_train_images is not None:
        chosen = np.random.default_rng(args.seed).permutation(len(train_dataset))[: args.max_train_images]
        train_dataset = Subset(train_dataset, chosen.tolist())
    batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.learning_rate is None:
        args.learning_rate = scaled_learning_rate(args.base_learning_rate, batch_size)
    trainer = ClassificationTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=test_dataset,
        data_collator=collate_labelled,
        processing_class=image_processor,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=largest_five,
        augmentation=BatchAugmentation(
            image_processor, config.num_labels, args.random_erasing, args.mixup, args.cutmix
        ),
    )
    if not args.eval_only:
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if trainer.is_world_process_zero():
            print(
                f"{len(train_dataset):,} images of {train_images.name}, {config.num_labels} classes; {batch_size} "
                f"images a step, rate {args.learning_rate:.3g}, layer decay {args.layer_decay:g}; "
                f"{trainable / 1e6:.2f} M of {model.num_parameters() / 1e6:.2f} M parameters are trained."
            )
        last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        if last is not None:
            print(f"Continues from {last}. Delete {args.output_dir} to start anew.")
        record = {**run_record(recipe_of(args, {"output_dir", "data"}), train_images), "num_images": len(train_dataset)}
        record["hours"] = trainer.train(resume_from_checkpoint=last).metrics["train_runtime"] / 3600
        trainer.save_model(_internal_call=True)  # what is pushed is pushed with its card, below
    metrics = {}
    if test_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
    if not args.eval_only:
        trainer.save_metrics("eval", metrics)
        trainer.publish({**record, "metrics": metrics})


if __name__ == "__main__":
    main()
