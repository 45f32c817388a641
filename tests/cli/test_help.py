"""`livt COMMAND --help`: at once, grouped, with every default, and the same from every entry."""

import dataclasses
import subprocess
import sys

import pytest
from transformers import TrainingArguments

from helpers.paths import ROOT
from livt_hf.cli import COMMANDS, command, main
from livt_hf.cli.dataset import InspectArguments, PrepareArguments
from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.config.hints import replaced_names

STAGES = {"pretrain": PretrainArguments, "finetune": FinetuneArguments}


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as exit_:
        main([*argv, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_no_help_loads_a_heavy_library():
    """Loading torch or transformers takes seconds; each help in a new Python takes tenths of one."""
    code = (
        "import contextlib, io, sys\n"
        "from livt_hf.cli import COMMANDS, main\n"
        "for words in [*([name] for name in COMMANDS), ['dataset', 'inspect']]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "        main([*words, '--help'])\n"
        "    assert out.getvalue().count('--') > 1 and words[0] in out.getvalue(), words\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_starts_with_examples_of_the_command(capsys, name):
    if name == "dataset":  # its actions have their own help
        assert main([name, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
    else:
        lines = help_of(capsys, name).splitlines()
    examples = command(name).EXAMPLES
    assert lines[: len(examples)] == list(examples)
    script = {"pretrain": "run_mae", "finetune": "run_finetune"}.get(name)
    assert all(f"livt {name} " in line or f"accelerate launch scripts/{script}.py" in line for line in examples)


@pytest.mark.parametrize("stage", STAGES)
def test_help_groups_the_options_and_shows_every_default(stage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = help_of(capsys, stage)
    for title in ("Dataset:", "Model:", "Optimization:", "Augmentation:", "Run:", "Hub:", STAGES[stage].TITLE + ":"):
        assert f"\n{title}\n" in text
    words = " ".join(text.split())
    for entry in dataclasses.fields(STAGES[stage]):
        assert f"--{entry.name}" in words
        about = entry.metadata["help"].removesuffix(".")
        rest = words.partition(about)[2]
        assert rest, entry.name
        assert "(default" in about or "(required" in about or rest.startswith((" (default: ", " (required)")), (
            entry.name
        )
    assert "--base_lr X Learning rate at an effective batch size of 256; scaled linearly with the batch" in words
    assert "(default: 0.001)." in words if stage == "finetune" else "(default: 0.00015)." in words


def test_help_wraps_to_the_terminal(capsys, monkeypatch):
    for columns in (60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        options = help_of(capsys, "evaluate").split("\n\n", 2)[2]
        assert columns - 15 < max(map(len, options.splitlines())) <= columns


def test_help_all_lists_the_training_arguments(capsys):
    assert "max_grad_norm" not in help_of(capsys, "finetune")
    with pytest.raises(SystemExit):
        main(["finetune", "--help_all"])
    text = " ".join(capsys.readouterr().out.split())
    _, _, others = text.partition("Also accepted, with the meaning that transformers.TrainingArguments gives them:")
    listed = {name.strip(" .") for name in others.split(",")}
    upstream = {entry.name for entry in dataclasses.fields(TrainingArguments) if entry.init}
    own = {entry.name for entry in dataclasses.fields(FinetuneArguments)}
    assert listed == upstream - own - set(replaced_names(FinetuneArguments))
    assert set(replaced_names(FinetuneArguments)) & upstream > {"learning_rate", "bf16", "hub_token"}


def test_each_action_on_a_dataset_shows_its_own_options(capsys):
    inspect, prepare = help_of(capsys, "dataset", "inspect"), help_of(capsys, "dataset", "prepare")
    for options, ours, theirs in ((InspectArguments, inspect, prepare), (PrepareArguments, prepare, inspect)):
        other = PrepareArguments if options is InspectArguments else InspectArguments
        names = {entry.name for entry in dataclasses.fields(options)}
        assert all(f"--{name}" in ours for name in names)
        assert not any(f"--{name} " in theirs for name in names - {entry.name for entry in dataclasses.fields(other)})


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("pretrain", ["scripts/run_mae.py"]),
        ("finetune", ["scripts/run_finetune.py"]),
        ("evaluate", ["scripts/run_evaluation.py"]),
        ("convert", ["scripts/convert_checkpoint.py"]),
        ("push", ["-m", "livt_hf", "push"]),
    ],
)
def test_scripts_and_module_are_the_same_entry(capsys, monkeypatch, name, entry):
    monkeypatch.setenv("COLUMNS", "80")
    run = subprocess.run([sys.executable, *entry, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == help_of(capsys, name)
