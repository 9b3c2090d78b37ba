# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Fine-tunes a classifier; the same as `hf-mae finetune`, for launchers that want a script.

python examples/run_image_classification.py --model_name_or_path out --data path/to/images --output_dir classifier
accelerate launch --config_file examples/accelerate/eight_gpus.yaml examples/run_image_classification.py ...
"""

import sys

from hf_mae_command import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
