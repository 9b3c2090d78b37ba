# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains: pre-training, fine-tuning, and what a run leaves."""
