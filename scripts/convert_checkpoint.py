#!/usr/bin/env python
"""An official checkpoint or a timm model into a folder for transformers: the same as `livt convert`."""

import sys

from livt_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
