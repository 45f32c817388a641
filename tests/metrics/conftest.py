"""Predictions with the metrics of the official implementation."""

import numpy as np
import pytest

from helpers.paths import FIXTURES


@pytest.fixture(scope="module")
def reference():
    with np.load(FIXTURES / "metrics_reference.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}
