# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Writes model cards from the record of a run, and pushes models to the Hub without ever ending a run."""

import json
import math
import os
import queue
import re
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData, get_token, metadata_load
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file

from .cli import CommandParser
from .evaluation.progress import loss_curve
from .modeling.auto_mae import class_of_architecture
from .modeling.configuration_mae import MAEConfig, _pair
from .modeling.modeling_mae import MAEForPreTraining, MAEPreTrainedModel
from .modeling.modeling_mae_downstream import MAEForImageClassification
from .modeling.saving_mae import has_config, no_model_in

_TEMPLATE = Path(__file__).parent / "model_card.md"
_CODE = Path(__file__).parent / "modeling"
_MARK = "<!-- Written by hf_mae"  # at the end of cards that nobody has edited
# Files that are pushed: no optimizer state, no samples, no pickles, nothing in folders below.
_PUBLISHED = ("*.safetensors", "*.json", "*.py", "*.png", "README.md", "recipe.yaml", "metrics.jsonl")
_NOT_PUBLISHED = ("optimizer*", "manifest.json", "training_state.json", "trainer_state.json")
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
_ACCURACIES = {"knn_accuracy", "linear_accuracy", "attentive_accuracy", "finetuned_accuracy", "eval_accuracy"}
_META_LICENSE = "cc-by-nc-4.0"
_PIXIO_LICENSE = "fair-noncommercial-research-license"
# Weights that Meta published, wherever they are: names on the Hub, folders of its cache, files.
_META = {
    _META_LICENSE: (
        r"(^|/|--)facebook(/|--)vit-mae-|(^|[/:]|--)timm(/|--)vit_\w+\.mae|"
        r"mae_(pretrain|visualize|finetuned?)_vit[^/]*$"
    ),
    _PIXIO_LICENSE: r"(^|/|--)facebook(/|--)pixio-|(^|/)pixio_vit\w*\.pth$",
}
_LICENSE_NAMES = {_META_LICENSE: "CC-BY-NC 4.0", _PIXIO_LICENSE: "the FAIR Noncommercial Research License"}
_NON_COMMERCIAL = r"(^|-)nc(-|$)|non-?commercial"  # in identifiers of licences


def redact(text: str) -> str:
    """Replaces access tokens in a text by `***`: values of `--hub_token`, what looks like a token, the one in use."""
    text = re.sub(r"(--[\w-]*tok\w*[= ])\S+", r"\1***", text)
    text = re.sub(r"\bhf_[A-Za-z0-9]{16,}", "hf_***", text)
    token = get_token()
    return text.replace(token, "***") if token else text


def license_of(source: str | os.PathLike | None) -> str | None:
    """Returns the licence that weights pass on to models made from them: a non-commercial one, or `None`.

    It is known of the weights that Meta published, and otherwise read from the record or the card next to the weights.

    Args:
        source (`str` or `os.PathLike`, *optional*): File, folder, or name on the Hub of the weights.
    """
    if source is None:
        return None
    source = os.fspath(source)
    if (known := _license_of_meta(source)) is not None:
        return known
    here, above = Path(source), Path(source).parent
    # The record is in the folder itself, or above a file or a checkpoint in it.
    places = {"run.json": [here, above], "README.md": [here if here.is_dir() else above]}
    paths = [place / name for name, folders in places.items() for place in folders]
    if not here.exists():
        with suppress(OSError):
            found = [cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in places]
            paths = [Path(path) for path in found if path is not None]
    facts = [_read_json(path) if path.suffix == ".json" else _read_card(path) for path in paths]
    stated = [str(each.get(name)) for each in facts for name in ("license", "license_name")]
    return next((license_ for license_ in stated if re.search(_NON_COMMERCIAL, license_.lower())), None)


def _license_of_meta(source: str) -> str | None:
    """Returns the licence of weights that Meta published, by their name, or `None` if it is another name."""
    return next((license_ for license_, names in _META.items() if re.search(names, source.rstrip("/"))), None)


def _read_card(path: Path) -> dict:
    """Returns the metadata of a model card; without any, they are empty."""
    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


# ----------------------------------------------------------------------------------------------------------------------
# Records


def save_record(folder: str | os.PathLike, record: dict):
    """Writes the record of a finished run, `run.json`, into its folder."""
    write_json(Path(folder) / "run.json", record)


def write_json(path: Path, content: dict):
    """Writes a JSON object for people to read. Values of other types become texts, numbers that are not finite null."""
    path.write_text(json.dumps(_finite(content), indent=2, default=str) + "\n", encoding="utf-8")


def _finite(content):
    """Returns a value with `None` for numbers that are not finite, which JSON has no words for."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_record(folder: str | os.PathLike) -> dict:
    """Reads the record of a finished run; without one it is empty."""
    return _read_json(Path(folder) / "run.json")


def add_to_record(folder: str | os.PathLike, facts: dict, evaluations: Sequence[str | os.PathLike] = ()):
    """Adds facts that no run knows, and accuracies that later runs found, to the record of a model.

    Args:
        folder (`str` or `os.PathLike`): Folder of the model.
        facts (`dict`): Entries of the record, such as `license`; see [`write_model_card`].
        evaluations (`Sequence[str | os.PathLike]`, *optional*): Folders of probes and fine-tuned models of it. Their
            accuracies are added to the metrics.

    Raises:
        OSError: If the folder holds no model, or an evaluation has no record.
        ValueError: If an evaluation has no accuracy.
    """
    _check_is_model(Path(folder))
    record = read_record(folder)
    metrics = dict(record.get("metrics") or {})
    for evaluation in evaluations:
        if not (Path(evaluation) / "run.json").exists():
            raise OSError(f"`evaluation`: {evaluation} is not the folder of a finished run, it has no run.json.")
        found = read_record(evaluation).get("metrics") or {}
        named = {name.replace("eval_", "finetuned_"): value for name, value in found.items()}
        accuracies = {name: value for name, value in named.items() if name in _ACCURACIES}
        if not accuracies:
            raise ValueError(
                f"`evaluation`: {evaluation} has no accuracy that the card could show, only "
                f"{', '.join(found) or 'nothing'}. State such figures with `notes`."
            )
        metrics |= accuracies
    if evaluations:
        facts = {**facts, "metrics": metrics}
    if facts:
        save_record(folder, {**record, **facts})


def json_lines(path: str | os.PathLike) -> list[dict]:
    """Reads the lines of a log that are JSON objects. The last line of a process that was killed may be broken."""
    path, lines = Path(path), []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). Mend it, or take it away.") from error


def is_model_of_ours(folder: str | os.PathLike) -> bool:
    """Returns whether a folder holds a model of hf_mae, and not, say, one with our encoder as its backbone."""
    return _read_json(Path(folder) / "config.json").get("model_type") == MAEConfig.model_type


# ----------------------------------------------------------------------------------------------------------------------
# Model cards


def write_model_card(folder: str | os.PathLike, repo_id: str | None = None):
    """Writes `README.md` of a saved model, and `loss.png` if there is a log, from the files in its folder.

    A card that somebody has edited (its last line is gone) is left as it is, and so is the folder of another model.

    Args:
        folder (`str` or `os.PathLike`): Has `config.json`, and perhaps `metrics.jsonl` and `run.json` (see
            [`hf_mae.training.run_log.run_record`]). The card shows these entries of the record: `data`, `num_images`,
            `num_held_out`, `held_out`, `hours`, `metrics`, `notes` on the metrics, recipe, command, commit, machine,
            versions; `license` (of the weights, an identifier of the Hub), `dataset` (its name on the Hub),
            `data_license`; `converted_from` and `layout`.
        repo_id (`str`, *optional*): Name on the Hub. Defaults to the name of the folder.
    """
    folder = Path(folder)
    card = folder / "README.md"
    if card.exists() and _MARK not in card.read_text(encoding="utf-8"):
        return
    record = read_record(folder)
    title = repo_id.split("/")[-1] if repo_id else folder.resolve().name
    if not is_model_of_ours(folder):
        if "converted_from" in record:  # else it is a model with our encoder as its backbone
            card.write_text(_card_of_converted(record, title), encoding="utf-8", errors="backslashreplace")
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
        licence=_licence(record),
        **_model_facts(model),
        **_training_facts(folder, record),
    )
    text = re.sub(r"\n{3,}", "\n\n", str(text).strip())  # where parts of the template were left out
    card.unlink(missing_ok=True)  # it may be a link to the card of a run
    card.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")  # names are any bytes


def _card_of_converted(record: dict, title: str) -> str:
    """Returns the card of weights in the layout of another library: where they come from, and their licence."""
    metadata = ModelCardData(license=record.get("license"), tags=["masked-autoencoder", "mae", "vit"])
    source = f"`{record['converted_from']}` (in the layout {record.get('layout')})"
    text = f"# {title}\n\nWeights that hf_mae has converted from {source}.\n\n{_licence(record)}"
    return f"---\n{metadata}\n---\n\n{text}\n\n{_MARK} -->\n"


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
    (folder / "loss.png").unlink(missing_ok=True)  # it may be a link to the picture of a run
    loss_curve(points).save(folder / "loss.png")
    return True


def _model_facts(model: MAEPreTrainedModel) -> dict:
    config = model.config
    has_decoder, has_classifier = isinstance(model, MAEForPreTraining), isinstance(model, MAEForImageClassification)
    rows, columns = config.grid_size
    many = config.num_class_tokens if config.num_class_tokens > 1 else None
    stock = {"mean": "timm", "attentive": None}.get(config.pooling, "vit") if has_classifier else "vit"
    class_pooling = f"the mean of the {many} class tokens" if many else "the class token"
    return {
        "config": config,
        "has_decoder": has_decoder,
        "auto_class": "AutoModelForImageClassification" if has_classifier else "AutoModel",
        "stock": _stock_of_pixio(config, has_classifier) if many else stock,
        "visible": f"{1 - config.mask_ratio:.0%}",
        "tokens": config.num_class_tokens + rows * columns,
        "patches": rows * columns,
        "class_tokens": f"{many} class tokens" if many else "the class token",
        "pooled": class_pooling if config.pooling == "class" else "the mean of the patches",
        "small_images": max(_pair(config.image_size)) < 128,
        "encoder_parameters": model.base_model.num_parameters() / 1e6,
        "decoder_parameters": model.decoder.num_parameters() / 1e6 if has_decoder else 0,
        "classes": ", ".join(config.id2label.values()) if has_classifier and config.num_labels <= 20 else None,
    }


def _metadata(record: dict, title: str, has_classifier: bool) -> ModelCardData:
    dataset = record.get("dataset")
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=(record.get("data") or dataset).removesuffix(" (train)"),
            dataset_split="train" if record.get("held_out") is False or record.get("num_held_out") else "test",
            metric_type="accuracy",
            metric_name=_RESULTS[name],
            metric_value=round(value, 4),
        )
        for name, value in _metrics(record).items()
        if name in _ACCURACIES and dataset
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


def _stock_of_pixio(config: MAEConfig, has_classifier: bool) -> str | None:
    """Returns the layout of others that has several class tokens, or `None` if it cannot hold the model."""
    is_square = all(len(set(_pair(size))) == 1 for size in (config.image_size, config.patch_size))
    fits = is_square and not config.intermediate_size % config.hidden_size
    return "pixio" if fits and not has_classifier else None


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
    facts["model_name_or_path"] = _initial_weights(record)
    images = {True: "images that were held out", False: "images of the training set"}.get(record.get("held_out"))
    facts["held_out"] = f", for {images}" if images else ""
    return facts


def _initial_weights(record: dict) -> str | None:
    return (record.get("recipe") or {}).get("model_name_or_path")


def _licence(record: dict) -> str:
    license_, source = record.get("license"), record.get("converted_from") or _initial_weights(record) or ""
    code = "The code in this repository is under Apache-2.0."
    if license_ in _LICENSE_NAMES:
        meta = "come from those that Meta published and " if _license_of_meta(source) is not None else ""
        return f"The weights {meta}are under {_LICENSE_NAMES[license_]}: no commercial use. {code}"
    if license_:
        return f"The weights are under `{license_}`. {code}"
    return f"{code} No licence of the weights is stated: whoever publishes them should state one that the data allow."


# ----------------------------------------------------------------------------------------------------------------------
# Pushes


def push_folder(
    folder: str | os.PathLike, repo_id: str, private: bool | None = None, message: str = "Upload model"
) -> str:
    """Pushes a saved model in one commit and returns its address. Files that are there already are not sent again, and
    a card that was edited in the repository stays.

    Pushed are weights, configuration, image processor, code, card, recipe, log, record and pictures; not checkpoints,
    optimizer states, or files in folders below.

    Args:
        folder (`str` or `os.PathLike`): What a run of hf_mae or `save_pretrained` left.
        repo_id (`str`): Name on the Hub, `organisation/name` or `name`. It is made if it does not exist.
        private (`bool`, *optional*): Whether a new repository is private.
        message (`str`, *optional*): Title of the commit.

    Raises:
        OSError: If the folder holds no model, or the Hub cannot be reached or refuses.
    """
    folder = Path(folder)
    _check_is_model(folder)  # before a repository is made
    try:
        api = HfApi()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        write_model_card(folder, repo_id)  # now that the owner is known
        files = published_files(folder)
        if _has_edited_card(api, repo_id):
            files.pop("README.md", None)
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        api.create_commit(repo_id, operations, commit_message=message)
    except Exception as error:  # errors of HTTP, of the connection, of names, of files have no common class
        reason = redact(str(error)).strip().splitlines() or [type(error).__name__]
        # Not chained: the request in the chain contains the token.
        raise OSError(f"{folder} could not be pushed to {repo_id}: {reason[0]}") from None
    return f"{api.endpoint}/{repo_id}"


def _has_edited_card(api: HfApi, repo_id: str) -> bool:
    """Returns whether a repository has a card that somebody else has written or edited, on the Hub or elsewhere."""
    if not api.file_exists(repo_id, "README.md"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        card = Path(api.hf_hub_download(repo_id, "README.md", local_dir=folder))
        return _MARK not in card.read_text(encoding="utf-8")


def published_files(folder: str | os.PathLike) -> dict[str, Path]:
    """Returns the files of a saved model that are pushed, by name. Code that the folder lacks comes from the package.

    Args:
        folder (`str` or `os.PathLike`): What a run of hf_mae or `save_pretrained` left.

    Raises:
        OSError: If it holds no model.
    """
    folder = Path(folder)
    _check_is_model(folder)
    found = {path.name: path for path in _CODE.glob("*_mae*.py") if is_model_of_ours(folder)}
    for path in sorted(folder.iterdir()):
        published = any(path.match(pattern) for pattern in _PUBLISHED)
        if path.is_file() and published and not any(path.match(pattern) for pattern in _NOT_PUBLISHED):
            found[path.name] = path
    return found


def _check_is_model(folder: Path):
    if not has_config(folder):
        raise no_model_in(folder)


class HubPush:
    """Pushes the current state of a run in the background, one commit each; failures become messages."""

    def __init__(self, output_dir: str | os.PathLike, repo_id: str | None = None, private: bool | None = None):
        """
        Args:
            output_dir (`str` or `os.PathLike`): Folder of the run.
            repo_id (`str`, *optional*): Name on the Hub. Defaults to the name of the folder.
            private (`bool`, *optional*): Whether a new repository is private.

        Raises:
            ValueError: If there is no access token, or the Hub does not allow such a name.
        """
        if get_token() is None:
            raise ValueError(
                "Pushing to the Hub needs an access token with permission to write: run `hf auth login`, or set "
                "HF_TOKEN."
            )
        self.output_dir, self.private = Path(output_dir), private
        self.repo_id = repo_id or self.output_dir.resolve().name
        validate_repo_id(self.repo_id)
        self._thread: threading.Thread | None = None
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self, stage: Callable[[Path], None], message: str):
        """Starts a push, unless one is under way: then the next push brings what this one would have brought.

        Args:
            stage (`Callable[[Path], None]`): Puts the files into an empty folder, before this returns.
            message (`str`): Title of the commit.
        """
        if self._thread is not None and self._thread.is_alive():
            self._messages.put(f"The previous push is still under way: {message!r} is left to the next one.")
            return
        folder = self.output_dir / ".push"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            stage(folder)
        except Exception as error:  # no error of a push is worth the run
            self._messages.put(f"Nothing was pushed: {redact(str(error))}. The next push tries again.")
            return
        # A daemon, so that a run that is stopped does not wait for it.
        self._thread = threading.Thread(target=self._push, args=(folder, message), daemon=True)
        self._thread.start()

    def _push(self, folder: Path, message: str):
        try:
            self._messages.put(f"Pushed {message!r} to {push_folder(folder, self.repo_id, self.private, message)}")
        except Exception as error:  # no error of a push is worth the run
            command = shlex.join(["hf-mae", "push", str(self.output_dir), self.repo_id])
            self._messages.put(f"{redact(str(error))} The next push tries again. To push by hand: {command}")
        shutil.rmtree(folder, ignore_errors=True)

    def push(self, folder: str | os.PathLike, message: str) -> list[str]:
        """Pushes the files of a folder, waits until that is done, and returns the messages."""
        self.finish()
        self.start(lambda staging: link_files(folder, staging), message)
        self.finish()
        return self.messages()

    def finish(self):
        """Waits for the push under way."""
        if self._thread is not None:
            self._thread.join()

    def messages(self) -> list[str]:
        """Returns a line for each thing that has happened since the last call."""
        lines = []
        while not self._messages.empty():
            lines.append(self._messages.get())
        return lines


def link_files(source: str | os.PathLike, target: str | os.PathLike):
    """Links [`published_files`] into another folder; copies them where links are not possible."""
    for name, path in published_files(source).items():
        try:
            os.link(path, Path(target) / name)
        except OSError:
            shutil.copy2(path, Path(target) / name)


# ----------------------------------------------------------------------------------------------------------------------
# Command


def push_command(argv: list[str], prog: str) -> None:
    """Runs `hf-mae push`: completes the record, writes the model card and pushes the model."""
    args = _push_parser(prog).parse(argv)
    names = ("license", "dataset", "data", "data_license", "notes")
    facts = {name: getattr(args, name) for name in names if getattr(args, name)}
    add_to_record(args.folder, facts, args.evaluation)
    if args.repo_id is None:
        write_model_card(args.folder)
        print(f"The card is {args.folder / 'README.md'}. Nothing was pushed, as no name on the Hub was given.")
        return
    print(f"Pushed {args.folder} to {push_folder(args.folder, args.repo_id, args.private, args.message)}")


def _push_parser(prog: str) -> CommandParser:
    parser = CommandParser(
        prog=prog,
        description="Writes the model card of a finished model and pushes it to the Hub in one commit: weights, "
        "configuration,\ncode, card, recipe, log and pictures. Run `hf auth login` once before, or set HF_TOKEN.\n"
        "After an interruption repeat the command: files that have arrived are not sent again.",
    )
    parser.add_argument("folder", type=Path, help="Folder of a finished run, or of save_pretrained.")
    parser.add_argument("repo_id", nargs="?", help="Name on the Hub: organisation/name, or name. Default: no push.")
    parser.add_argument("--license", help="Licence of the weights as the Hub calls it: apache-2.0, mit, ...")
    parser.add_argument("--dataset", help="Name on the Hub of the data set that it was trained on.")
    parser.add_argument("--data", help="What the card calls the data. Default: the path in the record.")
    parser.add_argument("--data_license", help="Licence of the data.")
    parser.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        help="Folder of a probe or of a fine-tuned model, whose accuracy the card shows. May be repeated.",
    )
    parser.add_argument("--notes", help="What the card says about the results.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--message", default="Upload model", help="Title of the commit.")
    return parser


__all__ = [
    "HubPush",
    "add_to_record",
    "is_model_of_ours",
    "json_lines",
    "license_of",
    "link_files",
    "published_files",
    "push_command",
    "push_folder",
    "read_record",
    "redact",
    "save_record",
    "write_json",
    "write_model_card",
]
