# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains a pre-trained encoder for a task: classification, segmentation, detection."""
