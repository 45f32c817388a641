"""What tests share: no network, one thread a process, so that parallel tests do not fight, no GPU but for tests marked
`gpu`, a Hugging Face cache of their own, and a small dataset."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="livt_hf_tests_")

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
# The first backward pass of a process decides whether forked copies of it can have any (`helpers.processes`): not if it
# comes after a test has used another device, such as "meta".
if not torch.cuda.is_available():
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with 8 training images of 2 classes and one test image of each; no validation split."""
    from helpers.images import write_images  # once asserts of helpers are rewritten

    folder = tmp_path_factory.mktemp("data")
    write_images(folder)
    return folder
