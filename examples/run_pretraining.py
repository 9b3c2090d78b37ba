# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Pre-trains a masked autoencoder; the same as `hf-mae pretrain`, for launchers that want a script.

python examples/run_pretraining.py                                          # embedded images, minutes on a CPU
python examples/run_pretraining.py --data path/to/images --output_dir out   # ViT-B/16 on your images
accelerate launch --config_file examples/accelerate/eight_gpus.yaml examples/run_pretraining.py ...
ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/run_pretraining.py ...   # two processes on a CPU
"""

import sys

from hf_mae_command import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
