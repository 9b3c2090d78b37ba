# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Weights and image processors from and to other implementations."""

from .names import names_in
from .weights import detect_layout, export_checkpoint, import_checkpoint

__all__ = ["detect_layout", "export_checkpoint", "import_checkpoint", "names_in"]
