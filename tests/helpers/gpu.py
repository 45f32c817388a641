"""A plugin of pytest: tests marked `gpu` run in a process of their own that sees the GPU; all other tests see none.

So the numbers of the rest of the suite are those of a CPU on every machine, and CUDA, once started in a process, does
not disturb the tests that fork. Workers of pytest-xdist inherit what was found when the plugin was first imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEVICES = "LIVT_TEST_GPUS"  # the GPUs that were visible, as CUDA_VISIBLE_DEVICES names them
ALONE = "LIVT_TEST_ON_GPU"  # set in the process of a test
SKIPPED = "no CUDA device"

on_gpu = pytest.mark.gpu
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])


def hide_gpu() -> None:
    """Hide the GPU from this process and its children, unless it runs a single GPU test."""
    if ALONE in os.environ:
        return
    if DEVICES not in os.environ:
        visible = ",".join(map(str, range(torch.cuda.device_count())))  # without starting CUDA
        os.environ[DEVICES] = visible and os.environ.get("CUDA_VISIBLE_DEVICES", visible)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def has_gpu() -> bool:
    """Whether there is a GPU that tests can use, hidden or not."""
    return ALONE in os.environ or bool(os.environ[DEVICES])


def is_alone() -> bool:
    """Whether this is the process of a single GPU test."""
    return ALONE in os.environ


def run_alone(test: str, root: Path) -> None:
    """Run a test, named by its node id, in a process that sees the GPU."""
    environment = {**os.environ, ALONE: "1", "CUDA_VISIBLE_DEVICES": os.environ[DEVICES]}
    # deterministic matrix products, where a test asks for deterministic kernels; read when CUDA starts
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "-rP", test]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=95, check=False)
    if run.returncode:
        pytest.fail(f"{run.stdout[-8000:]}\n{run.stderr[-2000:]}", pytrace=False)
    print(run.stdout)


def pytest_collection_modifyitems(items):
    if not has_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=SKIPPED))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if pyfuncitem.get_closest_marker("gpu") is None or is_alone():
        return None
    run_alone(pyfuncitem.nodeid, pyfuncitem.config.rootpath)
    return True  # it has been called


def pytest_terminal_summary(terminalreporter):
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if SKIPPED in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} GPU tests skipped: {SKIPPED}")


hide_gpu()
