# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains a detector on a pre-trained encoder; the same as `hf-mae detect`, for launchers that want a script.

python examples/run_object_detection.py --model_name_or_path out --data path/to/folder --image_size 640
accelerate launch --config_file examples/accelerate/eight_gpus.yaml examples/run_object_detection.py ...
"""

import sys

from hf_mae_command import main

if __name__ == "__main__":
    main(["detect", *sys.argv[1:]])
