#!/usr/bin/env python
"""Stage 2, balanced fine-tuning: `accelerate launch scripts/run_finetune.py --recipe digits --pretrained MAE ...`."""

import sys

from livt_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
