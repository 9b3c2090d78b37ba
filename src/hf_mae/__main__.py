# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Runs a command: `python -m hf_mae <command>`, the same as `hf-mae <command>`."""

from hf_mae_command import main

if __name__ == "__main__":
    main()
