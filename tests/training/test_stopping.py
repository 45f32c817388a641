"""Signals while a step or an evaluation takes long, Ctrl-C, and workers that die."""

import multiprocessing
import os
import signal
import time

import psutil
import pytest
import torch

from helpers.cli import the_error_after_a_bar, words
from helpers.processes import exit_status, forked
from helpers.training import (
    FINETUNE,
    PRETRAIN,
    QUIET,
    finetune_arguments,
    log_lines,
    pretrain_arguments,
    same_weights,
    stop_at,
)
from livt_hf.cli import main
from livt_hf.evaluation.predictions import ProcessorTransform
from livt_hf.training import finetuning, stopping
from livt_hf.training.finetuning import finetune
from livt_hf.training.pretraining import pretrain
from livt_hf.training.stopping import StoppableBatches, Stopped, StopSignal

pytestmark = pytest.mark.usefixtures("unrendered")

STAGES = {"pretrain": PRETRAIN, "finetune": FINETUNE}
EVERY_8_STEPS = {"probe_every": 0.8}


def run_stage(stage, folder, **options):
    if stage == "pretrain":
        return pretrain(pretrain_arguments(folder, **EVERY_8_STEPS, **options))
    return finetune(finetune_arguments(folder, **options), QUIET)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Folders of finished runs of both stages."""
    folders = {stage: tmp_path_factory.mktemp(stage) for stage in STAGES}
    for stage, folder in folders.items():
        run_stage(stage, folder)
    return folders


def at_step(number, action, monkeypatch):
    """Do something before an update of the weights."""
    step, steps = torch.optim.AdamW.step, []

    def act(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == number:
            action()
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", act)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline


# A step that takes long


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("signals", [1, 2])
def test_a_step_without_end_is_ended(tmp_path, monkeypatch, stage, signals):
    """The main thread is in a call that no signal interrupts, as in the compilation of a first step."""
    ready, write = os.pipe()
    never, _keep = os.pipe()

    def hang():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the handler runs in another thread
        os.write(write, b"1")
        os.read(never, 1)

    def run():
        at_step(10, hang, monkeypatch)
        monkeypatch.setattr(stopping, "STEP_SECONDS", 0.3 if signals == 1 else 3000.0)
        run_stage(stage, tmp_path / "run", num_workers=1)

    log = tmp_path / "log"
    child = forked(run, log)
    os.close(write)  # the child's end of it then is the only one: no hang if it dies
    assert os.read(ready, 1) == b"1", log.read_text()
    workers = psutil.Process(child).children()
    assert workers
    for number in range(signals):
        os.kill(child, signal.SIGTERM)
        if number == 0 and signals == 2:
            wait_until(lambda: "stopping after" in log.read_text())
    assert exit_status(child) == 128 + signal.SIGTERM
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    lines = [line for line in log.read_text().replace("\r", "\n").splitlines() if line.startswith("SIGTERM")]
    seconds, why = ("0.3", " because the current step took more than 0.3 seconds") if signals == 1 else ("3000", "")
    assert lines == [
        f"SIGTERM: stopping after the current step; a second signal, or {seconds} seconds, ends at once",
        f"SIGTERM: ended at once{why}; {tmp_path}/run/checkpoint-8 is saved; the same command continues from it",
    ]


def test_the_time_begins_again_with_each_step_and_saving_has_all_of_it():
    """Several processes agree on a stop only every few steps."""
    with StopSignal() as stop:
        stop._seconds = 0.2
        os.kill(os.getpid(), signal.SIGTERM)
        begin = time.monotonic()
        while time.monotonic() < begin + 0.5:
            stop.step_ended()
        stop.saving()
        begin = time.monotonic()
        while time.monotonic() < begin + 0.5:
            pass
    assert stop.received == "SIGTERM"


def test_signals_to_a_forked_worker_are_not_signals_to_the_run():
    def run():
        with StopSignal() as stop:
            worker = os.fork()
            if worker == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            os.waitpid(worker, 0)
        return int(stop.received is not None)

    assert exit_status(forked(run)) == 0


# Evaluations


def test_a_batch_of_an_evaluation_has_less_time_than_a_step(caplog):
    caplog.set_level("INFO")
    with StopSignal() as stop, stop.evaluation():
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_until(lambda: caplog.messages)
        with pytest.raises(Stopped, match="SIGUSR1"):
            list(StoppableBatches([1, 2], stop))
    assert caplog.messages == [
        "SIGUSR1: stopping after the current batch of the evaluation; a second signal, or 10 seconds, ends at once"
    ]


def signal_in_evaluation(number, monkeypatch):
    """SIGTERM between the first two batches of an evaluation, counted from 1."""
    evaluation, check, seen = StopSignal.evaluation, StopSignal.check, []

    def begin(self):
        seen.append(0)
        return evaluation(self)

    def stop_or_go_on(self):
        if len(seen) == number:
            seen[-1] += 1
            if seen[-1] == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        check(self)

    monkeypatch.setattr(StopSignal, "evaluation", begin)
    monkeypatch.setattr(StopSignal, "check", stop_or_go_on)


@pytest.mark.parametrize(
    ("stage", "number", "step"),
    [("pretrain", 1, 0), ("pretrain", 2, 8), ("finetune", 1, 10), ("finetune", 2, 20)],
)
def test_a_signal_stops_an_evaluation_and_a_resume_makes_it_good(
    undisturbed, tmp_path, monkeypatch, capsys, stage, number, step
):
    with monkeypatch.context() as patched:
        signal_in_evaluation(number, patched)
        assert run_stage(stage, tmp_path) is None
    assert f"stopped by SIGTERM after step {step} of 24; repeat the command to continue" in capsys.readouterr().out
    assert (tmp_path / f"checkpoint-{step}").exists() == (step > 0)
    run_stage(stage, tmp_path)
    assert log_lines(tmp_path) == log_lines(undisturbed[stage])
    assert same_weights(tmp_path, undisturbed[stage])


@pytest.mark.parametrize(("stage", "step"), [("pretrain", 8), ("pretrain", 24), ("finetune", 10), ("finetune", 24)])
def test_a_signal_before_an_evaluation_leaves_it_to_the_resumed_run(undisturbed, tmp_path, monkeypatch, stage, step):
    with monkeypatch.context() as patched:
        stop_at(step, patched)
        assert run_stage(stage, tmp_path) is None
    logged = [line["step"] for line in log_lines(tmp_path) if "probe_accuracy" in line or "eval_accuracy" in line]
    assert step not in logged
    run_stage(stage, tmp_path)
    assert log_lines(tmp_path) == log_lines(undisturbed[stage])
    assert same_weights(tmp_path, undisturbed[stage])


def test_the_final_evaluation_ends_at_once_and_is_made_good(undisturbed, tmp_path, monkeypatch):
    ready, write = os.pipe()
    never, _keep = os.pipe()

    def hang(*args, **kwargs):
        os.write(write, b"1")
        os.read(never, 1)

    def run():
        monkeypatch.setattr(finetuning, "evaluate_model", hang)
        run_stage("finetune", tmp_path / "run")

    child = forked(run, tmp_path / "log")
    assert os.read(ready, 1) == b"1"
    os.kill(child, signal.SIGTERM)
    assert exit_status(child) == 128 + signal.SIGTERM
    line = f"SIGTERM: ended at once; the trained model is saved in {tmp_path}/run; the same command does what is left\n"
    assert (tmp_path / "log").read_text().endswith(f"\n{line}")
    results = run_stage("finetune", tmp_path / "run")
    assert results["accuracy"] is not None
    assert same_weights(tmp_path / "run", undisturbed["finetune"])


# Ctrl-C and workers


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("step", "saved"), [(2, False), (10, True)])
def test_ctrl_c_says_what_is_saved(tmp_path, monkeypatch, capsys, stage, step, saved):
    at_step(step, interrupt, monkeypatch)
    assert main(words(stage, **STAGES[stage], output_dir=tmp_path)) == 130
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.splitlines()[-1] == (
        f"interrupted; {tmp_path}/checkpoint-8 is saved; the same command continues from it"
        if saved
        else "interrupted; nothing was saved yet; the same command starts again"
    )


def kill_a_worker():
    workers = [child for child in multiprocessing.active_children() if child.name.startswith("Process")]
    os.kill(max(worker.pid for worker in workers), signal.SIGKILL)
    wait_until(lambda: False)  # torch tells the main process wherever it is


WORKER_FAILED = (
    "num_workers: a process that loads images was killed, most likely because the machine ran out of memory; lower "
    "--num_workers or --batch_size"
)


@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_that_dies_is_one_line(tmp_path, monkeypatch, capsys, stage):
    at_step(10, kill_a_worker, monkeypatch)
    status = main(words(stage, **{**STAGES[stage], "num_workers": 1}, output_dir=tmp_path))
    assert the_error_after_a_bar(capsys, status) == (
        f"{WORKER_FAILED}; {tmp_path}/checkpoint-8 is saved; the same command continues from it"
    )


def test_a_worker_that_dies_in_an_evaluation_is_one_line(undisturbed, tmp_path, monkeypatch, capsys):
    here, transform = os.getpid(), ProcessorTransform.__call__

    def die(self, image):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return transform(self, image)

    monkeypatch.setattr(ProcessorTransform, "__call__", die)
    options = {"model": undisturbed["finetune"], "dataset": "digits", "num_workers": 1, "output_dir": tmp_path}
    assert the_error_after_a_bar(capsys, main(words("evaluate", **options))) == WORKER_FAILED
