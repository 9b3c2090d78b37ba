# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Publishes: the record of a run, model cards, and pushes to the Hub."""
