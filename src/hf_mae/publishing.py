# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Publishing: model cards from the record of a run, and pushes to the Hub that never end a run."""

import json
import math
import os
import queue
import re
import shlex
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file

from .evaluation.visualization import loss_curve
from .modeling.configuration_mae import MAEConfig, _pair
from .modeling.modeling_mae import MAEForPreTraining, MAEModel
from .modeling.modeling_mae_downstream import MAEForImageClassification

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
    "linear_accuracy": "accuracy of a linear probe",
    "finetuned_accuracy": "accuracy after fine-tuning",
    "eval_accuracy": "accuracy",
    "eval_top5_accuracy": "accuracy, among the first five",
}
_ACCURACIES = {"knn_accuracy", "linear_accuracy", "finetuned_accuracy", "eval_accuracy"}
_META_LICENSE = "cc-by-nc-4.0"
# Weights published by Meta, under whichever roof: names on the Hub, folders of its cache, files.
_META = (
    r"(^|/|--)facebook(/|--)vit-mae-|(^|[/:]|--)timm(/|--)vit_\w+\.mae|mae_(pretrain|visualize|finetuned?)_vit[^/]*$"
)


def redact(text: str) -> str:
    """Returns a text without access tokens: what follows `--hub_token`, what looks like one, and the one in use."""
    text = re.sub(r"(--[\w-]*tok\w*[= ])\S+", r"\1***", text)
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
    source = os.fspath(source)
    if re.search(_META, source.rstrip("/")):
        return _META_LICENSE
    places = [Path(source) / "run.json", Path(source).parent / "run.json"]  # of a folder; of a file or checkpoint in it
    if not Path(source).exists():
        with suppress(OSError):
            found = cached_file(source, "run.json", _raise_exceptions_for_missing_entries=False)
            places = [] if found is None else [Path(found)]
    stated = (_json(place).get("license") for place in places)
    return _META_LICENSE if _META_LICENSE in stated else None


# ----------------------------------------------------------------------------------------------------------------------
# Model cards


def write_model_card(folder: str | os.PathLike, repo_id: str | None = None):
    """Writes `README.md` of a saved model, and `loss.png` if there is a log, from the files in its folder.

    A card that someone has changed (its last line is gone) is left as it is; so is the folder of another model.

    Args:
        folder (`str` or `os.PathLike`): Has `config.json`; `run.json` (see [`hf_mae.training.run_log.run_record`]) and
            `metrics.jsonl` are used as far as they are there. Of the record: `data`, `num_images`, `held_out`, `hours`,
            `metrics`, `notes` on these, the recipe and machine; `license` (of the weights, an identifier of the Hub),
            `dataset` (its name on the Hub), `data_license`; `converted_from` and `layout`.
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
    metrics = _numbers(record)
    title = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    lines = json_lines(folder / "metrics.jsonl")
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line and "step" in line]
    if len(points) > 1:
        (folder / "loss.png").unlink(missing_ok=True)  # it may be a link to another one
        loss_curve(points).save(folder / "loss.png")
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
        small_images=max(_pair(config.image_size)) < 128,
        encoder_parameters=model.base_model.num_parameters() / 1e6,
        decoder_parameters=model.decoder.num_parameters() / 1e6 if has_decoder else 0,
        loss_curve=len(points) > 1,
        classes=", ".join(config.id2label.values()) if has_classifier and config.num_labels <= 20 else None,
        results={_RESULTS[name]: _number(value) for name, value in metrics.items() if name in _RESULTS},
        notes=record.get("notes") or "",
        licence=_licence(record),
        **_training(folder, record),
    )
    text = re.sub(r"\n{3,}", "\n\n", str(text).strip())  # where parts were left out
    card.unlink(missing_ok=True)  # the same
    card.write_text(f"{text}\n", encoding="utf-8")


def _metadata(record: dict, title: str, has_classifier: bool) -> ModelCardData:
    dataset = record.get("dataset")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=(record.get("data") or dataset).removesuffix(" (train)"),
            dataset_split="train" if record.get("held_out") is False else "test",  # fine-tuning never says
            metric_type="accuracy",
            metric_name=_RESULTS[name],
            metric_value=round(value, 4),
        )
        for name, value in _numbers(record).items()
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


def _numbers(record: dict) -> dict[str, float]:
    """The metrics, as far as they are numbers."""
    metrics = record.get("metrics") or {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}


def _number(value: float) -> str:
    return f"{value:.4g}" if value % 1 else f"{value:,.0f}"


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def json_lines(path: str | os.PathLike) -> list[dict]:
    """Returns the lines of a log that are JSON objects; the last one of a killed process may not be."""
    path, lines = Path(path), []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


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
    names = ("data", "num_images", "data_license", "machine", "hours", "commit", "converted_from", "layout")
    told = {name: record[name] for name in (*names, "command") if record.get(name) is not None}
    if "machine" in told:
        told["commit"] = record.get("commit")
    if "command" in told:
        told["command"] = redact(told["command"])
    if record.get("versions"):
        told["versions"] = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    files = {"recipe.yaml": "recipe", "run.json": "record", "metrics.jsonl": "log"}
    told["recipe"] = ", ".join(f"{what} in `{file}`" for file, what in files.items() if (folder / file).exists())
    told["model_name_or_path"] = _source(record)
    return told


def _source(record: dict) -> str | None:
    return (record.get("recipe") or {}).get("model_name_or_path")


def _licence(record: dict) -> str:
    license_, source = record.get("license"), record.get("converted_from") or _source(record) or ""
    code = "The code in this repository is under Apache-2.0."
    if license_ == _META_LICENSE:
        meta = "come from those that Meta published and " if re.search(_META, source) else ""
        return f"The weights {meta}are under CC-BY-NC 4.0: no commercial use. {code}"
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
    code = (
        (Path(__file__).parent / "modeling").glob("*_mae*.py")
        if config.get("model_type") == MAEConfig.model_type
        else ()
    )
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
            ValueError: If there is no access token, or the Hub takes no such names.
        """
        if get_token() is None:
            raise ValueError(
                "Pushing to the Hub needs an access token that may write: run `hf auth login`, or set HF_TOKEN."
            )
        self.output_dir, self.private = Path(output_dir), private
        self.repo_id = repo_id or self.output_dir.resolve().name
        validate_repo_id(self.repo_id)
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
        except Exception as error:  # whatever it is, the run is worth more
            self._news.put(f"Nothing was pushed: {redact(str(error))}. The next push tries again.")
            return
        # A daemon: a run that is told to stop does not wait for it.
        self._thread = threading.Thread(target=self._push, args=(folder, message), daemon=True)
        self._thread.start()

    def _push(self, folder: Path, message: str):
        try:
            self._news.put(f"Pushed {message!r} to {push_folder(folder, self.repo_id, self.private, message)}")
        except Exception as error:  # the same
            again = shlex.join(["python", "examples/push_to_hub.py", str(self.output_dir), self.repo_id])
            self._news.put(f"{redact(str(error))} The next push tries again, or: {again}")
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


__all__ = [
    "HubPush",
    "json_lines",
    "license_of",
    "link_files",
    "published_files",
    "push_folder",
    "redact",
    "write_model_card",
]
