# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pushes models to the Hub, without ever ending a run; hf-mae push."""

import os
import queue
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from ..cli import CommandParser
from .model_cards import is_edited, write_model_card
from .records import add_to_record, check_is_model, is_model_of_ours, redact

_CODE = Path(__file__).parent.parent / "modeling"
# Files that are pushed: no optimizer state, no samples, no pickles, nothing in folders below.
_PUBLISHED = ("*.safetensors", "*.json", "*.py", "*.png", "README.md", "recipe.yaml", "metrics.jsonl")
_NOT_PUBLISHED = ("optimizer*", "manifest.json", "training_state.json", "trainer_state.json")


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
    check_is_model(folder)  # before a repository is made
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
        return is_edited(card)


def published_files(folder: str | os.PathLike) -> dict[str, Path]:
    """Returns the files of a saved model that are pushed, by name. Code that the folder lacks comes from the package.

    Args:
        folder (`str` or `os.PathLike`): What a run of hf_mae or `save_pretrained` left.

    Raises:
        OSError: If it holds no model.
    """
    folder = Path(folder)
    check_is_model(folder)
    found = {path.name: path for path in _CODE.glob("*_mae*.py") if is_model_of_ours(folder)}
    for path in sorted(folder.iterdir()):
        published = any(path.match(pattern) for pattern in _PUBLISHED)
        if path.is_file() and published and not any(path.match(pattern) for pattern in _NOT_PUBLISHED):
            found[path.name] = path
    return found


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
        """Starts a push, unless one is under way: what is new then waits for the next push.

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
    """Puts [`published_files`] into another folder, where what happens to the first does not change them.

    Weights are linked, where links are possible: safetensors replaces them whole. The other files are copied:
    `save_pretrained` empties config.json and writes it anew, and the log grows.
    """
    for name, path in published_files(source).items():
        if path.suffix == ".safetensors":
            with suppress(OSError):
                os.link(path, Path(target) / name)
                continue
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
        "After an interruption repeat the command: files that have arrived are not sent again.\n\n"
        "  hf-mae push out --license mit --dataset me/images         # writes the card alone\n"
        "  hf-mae push out me/my-mae --evaluation runs/probe         # adds the accuracies of a probe, and pushes",
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
    "link_files",
    "published_files",
    "push_command",
    "push_folder",
]
