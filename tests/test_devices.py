# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Everything works on a device that is not the CPU. Without such a device torch's PrivateUse1 stands in for one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_other_device__model_training_and_evaluation():
    """Runs on_other_device.py, which says what is tested, in a process of its own: its default device changes for good."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "on_other_device.py")]
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "ACCELERATE_USE_CPU": "false"}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), done.stdout  # none was left out
