#!/usr/bin/env python
"""Evaluation of a trained classifier: the same as `livt evaluate` (not named evaluate.py: that hides a library)."""

import sys

from livt_hf.cli import run, run_evaluate

if __name__ == "__main__":
    sys.exit(run(run_evaluate))
