#!/usr/bin/env python
"""Evaluation of a trained classifier: the same as `livt evaluate` (not named evaluate.py: that hides a library)."""

import sys

from livt_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
