# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pushes a finished model to the Hub, in one commit: weights, configuration, code, card, recipe, log, pictures.

    hf auth login                                                        # once, or set HF_TOKEN
    python examples/push_to_hub.py runs/fashion_mnist_sample my-mae --license apache-2.0
    python examples/push_to_hub.py out organisation/mae-vit-base --license mit --dataset organisation/images --private
    python examples/push_to_hub.py out --evaluation probe                # no name: writes the card only

The same command goes on after an interruption: files that are there are not sent again. What is given here goes into
`run.json` and the card; a card that was changed by hand is left as it is.
"""

import argparse
import json
import sys
from pathlib import Path

from hf_mae.publishing import push_folder, write_model_card
from hf_mae.training.run_log import save_record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="What a script of ours or save_pretrained left.")
    parser.add_argument("repo_id", nargs="?", help="Name on the Hub: organisation/name, or name.")
    parser.add_argument("--license", help="Of the weights, as the Hub calls it: apache-2.0, mit, cc-by-nc-4.0, ...")
    parser.add_argument("--dataset", help="Name on the Hub of the data that it was trained on.")
    parser.add_argument("--data", help="What the card is to call the data, in place of its path.")
    parser.add_argument("--data_license", help="Of the data.")
    parser.add_argument(
        "--evaluation", type=Path, action="append", default=[], help="Folder of a probe or a fine-tuned model of it."
    )
    parser.add_argument("--notes", help="What the card is to say of the figures.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--message", default="Upload model", help="Of the commit.")
    args = parser.parse_args()
    if not (args.folder / "config.json").exists():
        sys.exit(f"{args.folder} holds no model: there is no config.json.")
    path = args.folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    names = ("license", "dataset", "data", "data_license", "notes")
    told = {name: getattr(args, name) for name in names if getattr(args, name)}
    for folder in args.evaluation:
        if not (folder / "run.json").exists():
            sys.exit(f"--evaluation: {folder} is no folder of a finished run: there is no run.json.")
        metrics = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("metrics", {})
        metrics = {name.replace("eval_", "finetuned_"): value for name, value in metrics.items() if "accuracy" in name}
        told["metrics"] = {**record.get("metrics", {}), **told.get("metrics", {}), **metrics}
    if told:
        save_record(args.folder, {**record, **told})
    if args.repo_id is None:
        write_model_card(args.folder)
        print(f"The card is {args.folder / 'README.md'}. Nothing was pushed: no name on the Hub was given.")
        return
    try:
        print(f"Pushed {args.folder} to {push_folder(args.folder, args.repo_id, args.private, args.message)}")
    except OSError as error:
        sys.exit(f"{error}\nThe same command goes on from there.")


if __name__ == "__main__":
    main()
