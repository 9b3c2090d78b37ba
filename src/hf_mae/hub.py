# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Publishing: model cards from the record of a run, and pushes to the Hub that never end a run."""

import json
import os
import queue
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData, get_token

from .configuration_mae import MAEConfig
from .modeling_mae import MAEForPreTraining, MAEModel
from .modeling_mae_downstream import MAEForImageClassification
from .visualization import loss_curve

_TEMPLATE = Path(__file__).parent / "model_card.md"
_MARK = "<!-- Written by hf_mae"  # on cards that no one has changed
# What of a folder is for others: no optimizer, no samples, no pickles, nothing of folders in it.
_PUBLISHED = ("*.safetensors", "*.json", "*.py", "*.png", "README.md", "recipe.yaml", "metrics.jsonl")
_NOT_PUBLISHED = ("optimizer*", "manifest.json", "training_state.json", "trainer_state.json")
_RESULTS = {
    "step": "steps",
    "loss": "training loss",
    "eval_loss": "loss on the evaluation images",
    "knn_accuracy": "k-NN accuracy of the features (k = 20)",
    "linear_accuracy": "accuracy of a linear probe (of several rates the best on these images)",
    "finetuned_accuracy": "accuracy after fine-tuning",
    "eval_accuracy": "accuracy",
    "eval_top5_accuracy": "accuracy, among the first five",
}
_ACCURACIES = {"knn_accuracy", "linear_accuracy", "finetuned_accuracy", "eval_accuracy"}
_META_LICENSE = "cc-by-nc-4.0"
# Weights published by Meta, under whichever roof.
_META = r"(^|/)facebook/vit-mae-|mae_(pretrain|visualize|finetuned?)_vit|(^|/)timm/vit_\w+\.mae"


def redact(text: str) -> str:
    """Returns a text without access tokens: what follows `--hub_token`, what looks like one, and the one in use."""
    text = re.sub(r"(--\w*token[= ])\S+", r"\1***", text)
    text = re.sub(r"\bhf_[A-Za-z0-9]{16,}", "hf_***", text)
    token = get_token()
    return text.replace(token, "***") if token else text


def license_of(source: str | os.PathLike | None) -> str | None:
    """Returns the licence of weights to start from, if it binds what is made of them: Meta's non-commercial one.

    Args:
        source (`str` or `os.PathLike`, *optional*): File, folder, or name on the Hub.
    """
    if source is None:
        return None
    stated = _json(Path(source) / "run.json").get("license")
    return _META_LICENSE if stated == _META_LICENSE or re.search(_META, os.fspath(source)) else None


# ----------------------------------------------------------------------------------------------------------------------
# Model cards


def write_model_card(folder: str | os.PathLike, repo_id: str | None = None):
    """Writes `README.md` of a saved model, and `loss.png` if there is a log, from the files in its folder.

    A card that someone has changed (its last line is gone) is left as it is; so is the folder of another model.

    Args:
        folder (`str` or `os.PathLike`): Has `config.json`; `run.json` (see [`hf_mae.training.run_record`]) and
            `metrics.jsonl` are used as far as they are there. Of the record: `data`, `num_images`, `held_out`, `hours`,
            `metrics`, the recipe and machine; `license` (of the weights, an identifier of the Hub), `dataset` (its name
            on the Hub), `data_license`; `converted_from` and `flavour`.
        repo_id (`str`, *optional*): Name on the Hub. Defaults to that of the folder.
    """
    folder = Path(folder)
    card = folder / "README.md"
    if card.exists() and _MARK not in card.read_text(encoding="utf-8"):
        return
    if _json(folder / "config.json").get("model_type") != MAEConfig.model_type:
        return  # a model with our encoder as its backbone
    record = _json(folder / "run.json")
    config = MAEConfig.from_pretrained(folder)
    architecture = (config.architectures or ["MAEModel"])[0]
    classes = {each.__name__: each for each in (MAEModel, MAEForPreTraining, MAEForImageClassification)}
    with torch.device("meta"):
        model = classes.get(architecture, MAEModel)(config)
    has_decoder, has_classifier = isinstance(model, MAEForPreTraining), isinstance(model, MAEForImageClassification)
    metrics = record.get("metrics") or {}
    title = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    log = folder / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    points = [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]
    if len(points) > 1:
        loss_curve(points).save(folder / "loss.png")
    sizes = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
    rows, columns = config.grid_size
    text = ModelCard.from_template(
        _metadata(record, title, has_classifier),
        template_path=_TEMPLATE,
        title=title,
        repo_id=repo_id or title,
        summary=_summary(record, has_classifier, has_decoder),
        config=config,
        has_decoder=has_decoder,
        auto_class="AutoModelForImageClassification" if has_classifier else "AutoModel",
        stock="timm" if has_classifier and config.pooling == "mean" else "vit",
        sheet=has_decoder and (folder / "reconstructions.png").exists(),
        visible=f"{1 - config.mask_ratio:.0%}",
        held_out={True: ", for images that were held out", False: ", for images of the training set"}.get(
            record.get("held_out"), ""
        ),
        tokens=1 + rows * columns,
        small_images=max(sizes) < 128,
        encoder_parameters=model.base_model.num_parameters() / 1e6,
        decoder_parameters=model.decoder.num_parameters() / 1e6 if has_decoder else 0,
        loss_curve=len(points) > 1,
        classes=", ".join(config.id2label.values()) if has_classifier and config.num_labels <= 20 else None,
        results={_RESULTS[name]: _number(value) for name, value in metrics.items() if name in _RESULTS},
        licence=_licence(record.get("license")),
        **_training(folder, record),
    )
    text = re.sub(r"\n{3,}", "\n\n", str(text).strip())  # where parts were left out
    card.write_text(f"{text}\n", encoding="utf-8")


def _metadata(record: dict, title: str, has_classifier: bool) -> ModelCardData:
    dataset = record.get("dataset")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=record.get("data", dataset),
            metric_type="accuracy",
            metric_name=_RESULTS[name],
            metric_value=round(value, 4),
        )
        for name, value in (record.get("metrics") or {}).items()
        if name in _ACCURACIES and dataset
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification" if has_classifier else "image-feature-extraction",
        tags=["masked-autoencoder", "mae", "vit", "self-supervised-learning"],
        license=record.get("license"),
        datasets=[dataset] if dataset else None,
        model_name=title if results else None,  # with it the Hub wants results
        eval_results=results or None,
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if value % 1 else f"{value:,.0f}"


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _summary(record: dict, has_classifier: bool, has_decoder: bool) -> str:
    paper = "[He et al. 2021](https://arxiv.org/abs/2111.06377)"
    kind = "the encoder of a masked autoencoder"
    if has_classifier:
        kind = "a classifier on the encoder of a masked autoencoder"
    elif has_decoder:
        kind = "a masked autoencoder"
    done = "trained" if has_classifier else "pre-trained"
    if record.get("converted_from"):
        done = "converted"
    data = f" on {record['data']}" if record.get("data") else ""
    return f"{kind[0].upper()}{kind[1:]} ({paper}), {done} with hf_mae{data}."


def _training(folder: Path, record: dict) -> dict:
    names = ("data", "num_images", "data_license", "machine", "hours", "commit", "converted_from", "flavour")
    told = {name: record[name] for name in (*names, "command") if name in record}
    if "command" in told:
        told["command"] = redact(told["command"])
    if "versions" in record:
        told["versions"] = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    files = {"recipe.yaml": "recipe", "run.json": "record", "metrics.jsonl": "log"}
    told["recipe"] = ", ".join(f"{what} in `{file}`" for file, what in files.items() if (folder / file).exists())
    told["model_name_or_path"] = (record.get("recipe") or {}).get("model_name_or_path")
    return told


def _licence(license_: str | None) -> str:
    code = "The code in this repository is under Apache-2.0."
    if license_ == _META_LICENSE:
        return f"The weights were made by Meta and are under CC-BY-NC 4.0: no commercial use. {code}"
    if license_:
        return f"The weights are under `{license_}`. {code}"
    return f"{code} No licence of the weights is stated: whoever publishes them should state one that the data allow."


# ----------------------------------------------------------------------------------------------------------------------
# Pushes


def push_folder(
    folder: str | os.PathLike, repo_id: str, private: bool | None = None, message: str = "Upload model"
) -> str:
    """Pushes a saved model in one commit and returns its address. Files that are there already are not sent again.

    What lands: weights, configuration, image processor, code, card, recipe, log, record and pictures; not checkpoints,
    optimizer states, or anything in folders below.

    Args:
        folder (`str` or `os.PathLike`): As `save_pretrained` or a script of ours leaves it.
        repo_id (`str`): Name on the Hub, `organisation/name` or `name`. Made if it does not exist.
        private (`bool`, *optional*): Whether a new repository is private.
        message (`str`, *optional*): Of the commit.

    Raises:
        OSError: If the folder holds no model, or the Hub can't be reached or refuses.
    """
    folder = Path(folder)
    published_files(folder)  # before a repository is made
    try:
        api = HfApi()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        write_model_card(folder, repo_id)  # now that the owner is known
        operations = [CommitOperationAdd(name, path) for name, path in published_files(folder).items()]
        api.create_commit(repo_id, operations, commit_message=message)
    except Exception as error:  # of many kinds: of HTTP, of the connection, of the names
        reason = redact(str(error)).strip().splitlines() or [type(error).__name__]
        # Not with `from`: the request in the chain carries the token.
        raise OSError(f"{folder} could not be pushed to {repo_id}: {reason[0]}") from None
    return f"{api.endpoint}/{repo_id}"


def published_files(folder: str | os.PathLike) -> dict[str, Path]:
    """Returns the files of a saved model that are for others, by name. Code that it needs and lacks is the package's.

    Args:
        folder (`str` or `os.PathLike`): As `save_pretrained` or a script of ours leaves it.

    Raises:
        OSError: If it holds no model.
    """
    folder = Path(folder)
    config = _json(folder / "config.json")
    if not config:
        raise OSError(f"{folder} holds no model: there is no config.json.")
    code = Path(__file__).parent.glob("*_mae*.py") if config.get("model_type") == MAEConfig.model_type else ()
    found = {path.name: path for path in code}
    for path in sorted(folder.iterdir()):
        published = any(path.match(pattern) for pattern in _PUBLISHED)
        if path.is_file() and published and not any(path.match(pattern) for pattern in _NOT_PUBLISHED):
            found[path.name] = path
    return found


class HubPush:
    """Pushes what a run has so far, in the background, one commit each. What fails is told, and tried with the next."""

    def __init__(self, output_dir: str | os.PathLike, repo_id: str | None = None, private: bool | None = None):
        """
        Args:
            output_dir (`str` or `os.PathLike`): Folder of the run.
            repo_id (`str`, *optional*): Name on the Hub. Defaults to that of the folder.
            private (`bool`, *optional*): Whether a new repository is private.

        Raises:
            ValueError: If there is no access token.
        """
        if get_token() is None:
            raise ValueError(
                "Pushing to the Hub needs an access token that may write: run `hf auth login`, or set HF_TOKEN."
            )
        self.output_dir, self.private = Path(output_dir), private
        self.repo_id = repo_id or self.output_dir.resolve().name
        self._thread, self._news = None, queue.SimpleQueue()

    def start(self, stage: Callable[[Path], None], message: str):
        """Starts a push, unless one is under way: then the next one brings what this one would have.

        Args:
            stage (`Callable[[Path], None]`): Puts the files into an empty folder, before this returns.
            message (`str`): Of the commit.
        """
        if self._thread is not None and self._thread.is_alive():
            self._news.put(f"The push before is still under way: {message!r} is left to the next one.")
            return
        folder = self.output_dir / ".push"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            stage(folder)
        except OSError as error:
            self._news.put(f"Nothing was pushed: {error}. The next push tries again.")
            return
        # A daemon: a run that is told to stop does not wait for it.
        self._thread = threading.Thread(target=self._push, args=(folder, message), daemon=True)
        self._thread.start()

    def _push(self, folder: Path, message: str):
        try:
            self._news.put(f"Pushed {message!r} to {push_folder(folder, self.repo_id, self.private, message)}")
        except OSError as error:
            again = f"python examples/push_to_hub.py {self.output_dir} {self.repo_id}"
            self._news.put(f"{error} The next push tries again, or: {again}")
        shutil.rmtree(folder, ignore_errors=True)

    def push(self, folder: str | os.PathLike, message: str) -> list[str]:
        """Pushes the files of a folder that are for others, waits for it, and returns the news, a line each."""
        self.finish()
        self.start(lambda staging: link_files(folder, staging), message)
        self.finish()
        return self.news()

    def finish(self):
        """Waits for the push under way."""
        if self._thread is not None:
            self._thread.join()

    def news(self) -> list[str]:
        """Returns what has happened since the last call, a line each."""
        lines = []
        while not self._news.empty():
            lines.append(self._news.get())
        return lines


def link_files(source: str | os.PathLike, target: str | os.PathLike):
    """Makes [`published_files`] appear in another folder, without copying where that is possible."""
    for name, path in published_files(source).items():
        try:
            os.link(path, Path(target) / name)
        except OSError:
            shutil.copy2(path, Path(target) / name)


__all__ = ["HubPush", "license_of", "link_files", "published_files", "push_folder", "redact", "write_model_card"]
