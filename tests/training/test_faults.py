"""kill -9 at random moments, also while a checkpoint is being written: the result is bit-identical to a run left alone.

Each run is a forked copy of the test process, so that a kill costs no new start of Python.
"""

import functools
import json
import os
import random
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.processes import exit_status
from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.files import incompleteness
from livt_hf.training.checkpoint import list_checkpoints
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("unrendered")

TINY = {
    "dataset": "digits",
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "batch_size": 32,
    "max_steps": 24,
    "epochs": 100,
    "warmup_epochs": 10,
    "num_workers": 0,
    "save_every": 3,
    "logging_steps": 4,
}


def run_pretraining(output_dir: Path) -> None:
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    pretrain(PretrainArguments(**TINY, **decoder, output_dir=str(output_dir)))


def run_finetuning(output_dir: Path) -> None:
    finetune(FinetuneArguments(**TINY, drop_path=0.3, output_dir=str(output_dir)), {"disable_tqdm": True})


def start(run: Callable[[Path], None], output_dir: Path) -> tuple[int, int]:
    """Process id of a forked child that runs to its end and leaves with status 0, and a pipe that it then closes."""
    alive, held = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            run(output_dir)
            status = 0
        finally:
            os._exit(status)
    os.close(held)
    return child, alive


def wait_or_kill(
    run: Callable[[Path], None], output_dir: Path, seconds: float, begin: Callable[[], bool] = lambda: True
) -> int | None:
    """Exit status of a run that ended by itself, None if it had to be killed, so long after ``begin`` came true."""
    child, alive = start(run, output_dir)
    ended = False
    while not (ended or begin()):
        ended = bool(select.select([alive], [], [], 0.005)[0])
    ended = ended or bool(select.select([alive], [], [], seconds)[0])
    os.close(alive)
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = exit_status(child)
    return status if ended else None


def has_checkpoint(output_dir: Path) -> bool:
    return any(incompleteness(path) is None for _, path in list_checkpoints(output_dir))


def log_lines(output_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def survive(run: Callable[[Path], None], folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill runs until there were so many kills; how many came while a checkpoint was being written, and resumes."""
    left_alone = folder / "alone"
    run(left_alone)  # here, so that forked runs need not import anything
    begin = time.monotonic()
    assert wait_or_kill(run, folder / "forked", 300) == 0
    duration = time.monotonic() - begin
    generator = random.Random(seed)
    killed = while_writing = resumes = 0
    for attempt in range(50):
        output_dir = folder / f"killed-{attempt}"
        ended = False
        while not ended:
            # Every other kill waits for a checkpoint, however busy the machine is; the rest come at any moment.
            begin = functools.partial(has_checkpoint, output_dir) if killed % 2 == 0 else (lambda: True)
            seconds = generator.uniform(0.0, 0.7) * duration if killed < kills else 300
            status = wait_or_kill(run, output_dir, seconds, begin)
            ended = status is not None
            if ended:
                assert status == 0
            else:
                killed += 1
                while_writing += any(path.name.startswith(".") for path in output_dir.glob(".*"))
                resumes += has_checkpoint(output_dir)
        same = (output_dir / "model.safetensors").read_bytes() == (left_alone / "model.safetensors").read_bytes()
        assert same, f"attempt {attempt} gave other weights"
        assert log_lines(output_dir) == log_lines(left_alone)
        if killed >= kills:
            return while_writing, resumes
    raise AssertionError(f"only {killed} of {kills} runs were killed before their end")


@pytest.mark.parametrize("run", [run_pretraining, run_finetuning])
def test_three_kills_change_nothing(run, tmp_path):
    _, resumes = survive(run, tmp_path, kills=3, seed=0)
    assert resumes > 0


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_pretraining, run_finetuning])
def test_twenty_kills_change_nothing(run, tmp_path):
    while_writing, resumes = survive(run, tmp_path, kills=24, seed=1)
    print(f"\n{run.__name__}: 24 kills, {while_writing} while a checkpoint was being written, {resumes} resumed")
    assert resumes >= 10
