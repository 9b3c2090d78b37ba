# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import json
import subprocess

import pytest
import torch

from hf_mae.training import run_record as module
from hf_mae.training.run_record import run_record

RECIPE = {"data": None, "seed": 0}


def test_record__can_be_written_as_json():
    record = json.loads(json.dumps(run_record(RECIPE)))
    assert record["recipe"] == RECIPE
    assert record["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/opt/site-packages/hf_mae/__main__.py", "hf-mae pretrain --seed 1"),
        ("/opt/bin/hf-mae", "hf-mae pretrain --seed 1"),
        ("examples/custom_target.py", "python examples/custom_target.py pretrain --seed 1"),
    ],
)
def test_record__command_can_be_typed_again(program, command, monkeypatch):
    monkeypatch.setattr("sys.argv", [program, "pretrain", "--seed", "1"])
    assert run_record(RECIPE)["command"] == command


def test_record__has_no_commit_of_somebody_elses_repository(tmp_path, monkeypatch):
    """The package may be installed into an environment that lies inside of a user's repository."""
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "run_record.py"))
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "run_record.py").touch()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "mine"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert run_record(RECIPE)["commit"] is None
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert run_record(RECIPE)["commit"] is not None  # in a checkout of ours it is tracked
