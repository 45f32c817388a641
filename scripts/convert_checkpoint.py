#!/usr/bin/env python
"""An official checkpoint or a timm model into a folder for transformers: the same as `livt convert`."""

import sys

from livt_hf.cli import run, run_convert

if __name__ == "__main__":
    sys.exit(run(run_convert))
