# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""What pre-training, fine-tuning and probing share: settings, processes, optimizers, checkpoints."""
