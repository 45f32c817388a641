#!/usr/bin/env python
"""Stage 2, balanced fine-tuning: `accelerate launch scripts/run_finetune.py --recipe digits --pretrained MAE ...`."""

import sys

from livt_hf.cli import run, run_finetune

if __name__ == "__main__":
    sys.exit(run(run_finetune))
