"""What tests share: no network, one thread a process, so that parallel tests do not fight, and a small data set."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import PIL.Image
import pytest
import torch

torch.set_num_threads(1)
# torch waits 5 seconds for the workers of a loader that is left in the middle, before it ends them.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2

COUNTS = {"ant": 5, "bee": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 8 training images of 2 classes and one test image of each; no validation split."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0)
    for name, count in COUNTS.items():
        for split, number in (("train", count), ("test", 1)):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                image = PIL.Image.fromarray(pixels.integers(0, 256, (12, 10, 3), dtype=np.uint8))
                image.save(folder / split / name / f"{index}.jpg")
    return folder
