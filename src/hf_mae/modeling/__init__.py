# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The model, its configuration and its image processor: the files that ship with the weights."""
