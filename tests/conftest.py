"""What tests share: no network, one thread a process, so that parallel tests do not fight, no GPU but for tests marked
`gpu`, a Hugging Face cache of their own, and a small dataset."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="livt_hf_tests_")

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from livt_hf.cli.console import show_messages

pytest_plugins = ["helpers.gpu"]
pytest.register_assert_rewrite("helpers")
torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
show_messages()  # as the command does, for tests that call a stage directly
# torch waits 5 seconds for the workers of a loader that is left in the middle, before it ends them.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2
# `datasets` waits 5 seconds after each pass over a shuffled stream, for threads that may still read a file.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1
# The first backward pass of a process decides whether forked copies of it can have any (`helpers.processes`): not if it
# comes after a test has used another device, such as "meta".
if not torch.cuda.is_available():
    torch.ones(1, requires_grad=True).sum().backward()


def pytest_collection_finish():
    """Garbage collection, of which every run has one, skips the modules that are imported by now."""
    gc.collect()
    gc.freeze()


class _OnePixel:
    """In place of matplotlib's canvas: a picture of one pixel."""

    def __init__(self, figure):
        pass

    def draw(self):
        pass

    def buffer_rgba(self):
        return np.zeros((1, 1, 4), dtype=np.uint8)


@pytest.fixture(scope="module")
def unrendered_reports():
    """Reports of evaluations have pictures of one pixel; rendered ones take more than half the time of a short run."""

    def one_pixel(*arguments):
        path = next(argument for argument in arguments if isinstance(argument, Path))
        PIL.Image.new("RGB", (1, 1)).save(path)
        return "<svg></svg>"

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_chart", "plot_thumbnails"):
            patch.setattr(f"livt_hf.reporting.evaluation_report.{name}", one_pixel)
        yield


@pytest.fixture(scope="module")
def unrendered(unrendered_reports):
    """Nor are other charts rendered, though they are still built: for modules that look at none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("livt_hf.reporting.chart_style.FigureCanvasAgg", _OnePixel)
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: file.write("<svg></svg>"))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 8 training images of 2 classes and one test image of each; no validation split."""
    from helpers.images import write_images  # once asserts of helpers are rewritten

    folder = tmp_path_factory.mktemp("data")
    write_images(folder)
    return folder
