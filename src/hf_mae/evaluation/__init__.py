# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Judges: figures, probes, features and pictures."""
