"""`python -m livt_hf` is `livt`."""

import sys

from .cli import main

sys.exit(main())
