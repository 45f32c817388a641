#!/usr/bin/env python
"""Stage 1, masked generative pretraining: `accelerate launch scripts/run_mae.py --recipe digits --output_dir OUT`."""

import sys

from livt_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
