"""Pairs of runs in one folder, the second started at a random moment: one is undisturbed, the other says so."""

import os
import random
import time

import pytest

from helpers.cli import words
from helpers.processes import exit_status, forked
from helpers.training import FINETUNE, PRETRAIN, log_lines
from livt_hf.cli import main

pytestmark = pytest.mark.usefixtures("unrendered")

STAGES = {"pretrain": PRETRAIN, "finetune": FINETUNE}
SHORT = {"max_steps": 6, "save_every": 2, "logging_steps": 1}


def command(stage, folder):
    return words(stage, **{**STAGES[stage], **SHORT, "output_dir": folder})


def outcome(folder):
    return (folder / "model.safetensors").read_bytes(), log_lines(folder)


def run_pairs(tmp_path, number, seed):
    """How many of the second runs were refused, and how many found nothing to do."""
    generator, alone, duration = random.Random(seed), {}, {}
    for stage in STAGES:
        assert main(command(stage, tmp_path / "here" / stage)) == 0  # forked runs then need not import anything
        begin = time.monotonic()
        assert exit_status(forked(lambda stage=stage: main(command(stage, tmp_path / stage)))) == 0
        duration[stage], alone[stage] = time.monotonic() - begin, outcome(tmp_path / stage)
    refused = nothing_to_do = 0
    for pair in range(number):
        stage, folder = ("pretrain", "finetune")[pair % 2], tmp_path / f"pair-{pair}"
        logs = [tmp_path / f"log-{pair}-{run}" for run in range(2)]
        children = [forked(lambda: main(command(stage, folder)), logs[0])]  # noqa: B023  # is called before the next
        # Every fourth at the same moment, and some after the first has ended.
        begin = time.monotonic() + generator.choice((0.0, 0.5, 1.0, 1.6)) * generator.random() * duration[stage]
        while time.monotonic() < begin:
            os.sched_yield()
        children.append(forked(lambda: main(command(stage, folder)), logs[1]))  # noqa: B023
        statuses = [exit_status(child) for child in children]
        assert outcome(folder) == alone[stage]
        assert (folder / "README.md").exists()
        assert not (folder / ".lock").exists()
        if sorted(statuses) == [0, 2]:
            refused += 1
            lines = logs[statuses.index(2)].read_text().splitlines()
            assert len(lines) == 1
            assert lines[0].startswith(f"error: output_dir: '{folder}' is in use by another run (process ")
            assert f"(process {children[statuses.index(0)]} on " in lines[0] or "has just begun or ended" in lines[0]
        else:
            assert statuses == [0, 0]
            nothing_to_do += 1
            assert "finished after 6 steps; nothing to do" in logs[1].read_text()
    return refused, nothing_to_do


def test_three_pairs(tmp_path):
    refused, _ = run_pairs(tmp_path, 3, seed=0)
    assert refused


@pytest.mark.slow
def test_twenty_pairs(tmp_path):
    refused, nothing_to_do = run_pairs(tmp_path, 20, seed=1)
    print(f"\n20 pairs: {refused} second runs were refused, {nothing_to_do} found nothing to do")
    assert refused >= 5
    assert nothing_to_do
