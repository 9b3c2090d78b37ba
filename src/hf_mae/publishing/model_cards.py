# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Writes model cards from the record of a run."""

import math
import os
import re
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..conversion.weights import find_obstacle
from ..evaluation.progress import loss_curve
from ..modeling.auto_mae import class_of_architecture
from ..modeling.configuration_mae import MAEConfig, height_width
from ..modeling.modeling_mae import MAEForPreTraining, MAEPreTrainedModel
from ..modeling.modeling_mae_downstream import MAEForImageClassification
from .licenses import describe_license
from .records import (
    ACCURACIES,
    initial_weights,
    is_model_of_ours,
    json_lines,
    read_record,
    redact,
    save_picture,
    write_text,
)

_TEMPLATE = Path(__file__).parent / "model_card.md"
_STOCK_LAYOUTS = ("vit", "timm", "pixio")  # that others load without our code; a card shows the first that fits
MARK = "<!-- Written by hf_mae"  # at the end of cards that nobody has edited
_RESULTS = {
    "step": "steps",
    "loss": "training loss",
    "eval_loss": "loss on the evaluation images",
    "eval_loss_constant": "their loss if the same is predicted for every patch",
    "eval_loss_visible_mean": "their loss if the mean of the visible patches is predicted",
    "eval_loss_interpolation": "their loss if the visible pixels are interpolated",
    "knn_accuracy": "k-NN accuracy of the features (k = 20)",
    "effective_rank": "effective rank of the features",
    "twin_retrieval": "crops whose nearest is the other crop of their image",
    "linear_accuracy": "accuracy of a linear probe",
    "attentive_accuracy": "accuracy of an attentive probe",
    "finetuned_accuracy": "accuracy after fine-tuning",
    "eval_accuracy": "accuracy",
    "eval_top5_accuracy": "accuracy, among the first five",
}


def write_model_card(folder: str | os.PathLike, repo_id: str | None = None):
    """Writes `README.md` of a saved model, and `loss.png` if there is a log, from the files in its folder.

    A card that somebody has edited (its last line is gone) is left as it is, and so is the folder of another model.

    Args:
        folder (`str` or `os.PathLike`): Has `config.json`, and perhaps `metrics.jsonl` and `run.json` (see
            [`hf_mae.training.run_record.run_record`]). The card shows these entries of the record: `data`,
            `num_images`, `num_held_out`, `held_out`, `hours`, `metrics`, `notes` on the metrics, recipe, command,
            commit, machine, versions; `license` (of the weights, an identifier of the Hub), `dataset` (its name on the
            Hub), `data_license`; `splits` (which split a metric is of, if it is not that of the run); `converted_from`
            and `layout`.
        repo_id (`str`, *optional*): Name on the Hub. Defaults to the name of the folder.
    """
    folder = Path(folder)
    card = folder / "README.md"
    if card.exists() and is_edited(card):
        return
    record = read_record(folder)
    title = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    if not is_model_of_ours(folder):
        if "converted_from" in record:  # else it is a model with our encoder as its backbone
            write_text(card, _card_of_converted(record, title))
        return
    model = _empty_model(folder)
    text = ModelCard.from_template(
        _metadata(record, title, isinstance(model, MAEForImageClassification)),
        template_path=os.fspath(_TEMPLATE),
        title=title,
        repo_id=repo_id or title,
        summary=_summary(record, model),
        loss_curve=_draw_loss(folder),
        sheet=isinstance(model, MAEForPreTraining) and (folder / "reconstructions.png").exists(),
        results={_RESULTS[name]: _format(value) for name, value in _metrics(record).items() if name in _RESULTS},
        meanings=_meanings(record, model),
        notes=record.get("notes") or "",
        evaluations=record.get("evaluations") or {},
        licence=describe_license(record),
        **_model_facts(model),
        **_training_facts(folder, record),
    )
    text = re.sub(r"\n{3,}", "\n\n", str(text).strip())  # where parts of the template were left out
    write_text(card, f"{text}\n")  # whole: one that is cut off has lost its mark, and would be taken for an edited one


def is_edited(card: Path) -> bool:
    """Returns whether somebody has written a card, or edited one that was written here."""
    return MARK not in card.read_text(encoding="utf-8")


def _card_of_converted(record: dict, title: str) -> str:
    """Returns the card of weights in the layout of another library: where they come from, and their licence."""
    metadata = ModelCardData(license=record.get("license"), tags=["masked-autoencoder", "mae", "vit"])
    source = f"`{record['converted_from']}` (in the layout {record.get('layout')})"
    text = f"# {title}\n\nWeights that hf_mae has converted from {source}.\n\n{describe_license(record)}"
    return f"---\n{metadata}\n---\n\n{text}\n\n{MARK} -->\n"


def _empty_model(folder: Path) -> MAEPreTrainedModel:
    """Returns the model of a folder without weights; only its encoder, if the class is not one of ours."""
    config = MAEConfig.from_pretrained(folder)
    with torch.device("meta"):
        return class_of_architecture((config.architectures or [None])[0])(config)


def _draw_loss(folder: Path) -> bool:
    """Draws `loss.png` from the log of a run, and returns whether there was enough of a log."""
    lines = json_lines(folder / "metrics.jsonl")
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line and "step" in line]
    if len(points) < 2:
        return False
    save_picture(folder / "loss.png", loss_curve(points))
    return True


def _model_facts(model: MAEPreTrainedModel) -> dict:
    config = model.config
    has_decoder, has_classifier = isinstance(model, MAEForPreTraining), isinstance(model, MAEForImageClassification)
    rows, columns = config.grid_size
    many = config.num_class_tokens if config.num_class_tokens > 1 else None
    class_pooling = f"the mean of the {many} class tokens" if many else "the class token"
    return {
        "config": config,
        "has_decoder": has_decoder,
        "auto_class": "AutoModelForImageClassification" if has_classifier else "AutoModel",
        "stock": next((layout for layout in _STOCK_LAYOUTS if find_obstacle(layout, model) is None), None),
        "visible": f"{1 - config.mask_ratio:.0%}",
        "tokens": config.num_class_tokens + rows * columns,
        "patches": rows * columns,
        "class_tokens": f"{many} class tokens" if many else "the class token",
        "pooled": class_pooling if config.pooling == "class" else "the mean of the patches",
        "small_images": max(height_width(config.image_size)) < 128,
        "encoder_parameters": model.base_model.num_parameters() / 1e6,
        "decoder_parameters": model.decoder.num_parameters() / 1e6 if has_decoder else 0,
        "classes": ", ".join(config.id2label.values()) if has_classifier and config.num_labels <= 20 else None,
    }


def _metadata(record: dict, title: str, has_classifier: bool) -> ModelCardData:
    dataset = record.get("dataset")
    split = "train" if record.get("held_out") is False or record.get("num_held_out") else "test"
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=(record.get("data") or dataset).removesuffix(" (train)"),
            dataset_split=(record.get("splits") or {}).get(name, split),
            metric_type="accuracy",
            metric_name=_RESULTS[name],
            metric_value=round(value, 4),
        )
        for name, value in _metrics(record).items()
        if name in ACCURACIES and dataset
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification" if has_classifier else "image-feature-extraction",
        tags=["masked-autoencoder", "mae", "vit", "self-supervised-learning"],
        license=record.get("license"),
        datasets=[dataset] if dataset else None,
        model_name=title if results else None,  # the Hub wants results of every model with a name
        eval_results=results or None,
    )


def _metrics(record: dict) -> dict[str, float]:
    """Returns the metrics of a record that are finite numbers."""
    metrics = record.get("metrics") or {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}


def _meanings(record: dict, model: MAEPreTrainedModel) -> str:
    """Returns what the less known of the metrics mean, in a sentence or two."""
    metrics, text = _metrics(record), ""
    if "eval_loss_constant" in metrics:
        text += "Predictions that need no training show what the loss is worth: it should be well below theirs. "
    if "effective_rank" in metrics:
        text += (
            "The effective rank says how many directions the features use (exp of the entropy of their centred "
            f"singular values, at most {model.config.hidden_size}). A high rank and many crops that are found show "
            "that the features of images differ, but not how well they serve a task."
        )
    return text.strip()


def _format(value: float) -> str:
    return f"{value:.4g}" if value % 1 else f"{value:,.0f}"


def _summary(record: dict, model: MAEPreTrainedModel) -> str:
    paper = "[He et al. 2021](https://arxiv.org/abs/2111.06377)"
    kind, verb = "The encoder of a masked autoencoder", "pre-trained"
    if isinstance(model, MAEForImageClassification):
        kind, verb = "A classifier on the encoder of a masked autoencoder", "trained"
    elif isinstance(model, MAEForPreTraining):
        kind = "A masked autoencoder"
    if record.get("converted_from"):
        verb = "converted"
    data = f" on {record['data']}" if record.get("data") else ""
    return f"{kind} ({paper}), {verb} with hf_mae{data}."


def _training_facts(folder: Path, record: dict) -> dict:
    data = ("data", "num_images", "num_held_out", "data_license")
    names = (*data, "machine", "hours", "commit", "converted_from", "layout", "command")
    facts = {name: record[name] for name in names if record.get(name) is not None}
    if "machine" in facts:
        facts["commit"] = record.get("commit")
    if "command" in facts:
        facts["command"] = redact(facts["command"])
    if record.get("versions"):
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    files = {"recipe.yaml": "recipe", "run.json": "record", "metrics.jsonl": "log"}
    facts["recipe"] = ", ".join(f"{what} in `{file}`" for file, what in files.items() if (folder / file).exists())
    facts["model_name_or_path"] = initial_weights(record)
    images = {True: "images that were held out", False: "images of the training set"}.get(record.get("held_out"))
    facts["held_out"] = f", for {images}" if images else ""
    return facts


__all__ = [
    "MARK",
    "is_edited",
    "write_model_card",
]
