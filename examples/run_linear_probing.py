# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Probes a frozen encoder; the same as `hf-mae probe`, for launchers that want a script.

python examples/run_linear_probing.py --model_name_or_path out --data path/to/images --fast
accelerate launch --config_file examples/accelerate/eight_gpus.yaml examples/run_linear_probing.py ...
"""

import sys

from hf_mae_command import main

if __name__ == "__main__":
    main(["probe", *sys.argv[1:]])
