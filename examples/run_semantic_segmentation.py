# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Trains UperNet on a pre-trained encoder; the same as `hf-mae segment`, for launchers that want a script.

python examples/run_semantic_segmentation.py --model_name_or_path out --data path/to/folder --image_size 512
accelerate launch --config_file examples/accelerate/eight_gpus.yaml examples/run_semantic_segmentation.py ...
"""

import sys

from hf_mae_command import main

if __name__ == "__main__":
    main(["segment", *sys.argv[1:]])
