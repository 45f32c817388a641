"""What is answered to options that other libraries have."""

import dataclasses

import pytest

from livt_hf.config.arguments import FinetuneArguments
from livt_hf.config.hints import replaced_names
from livt_hf.config.parsing import parse_arguments


def test_names_that_are_replaced_are_not_ours():
    own = {entry.name for entry in dataclasses.fields(FinetuneArguments)}
    assert not set(replaced_names(FinetuneArguments)) & own


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--lr", "use --base_lr (it is scaled with the batch)"),
        ("--dropout", "use --drop_path"),
        ("--workers", "use --num_workers"),
        ("--early_stopping_patience", "use --early_stopping N, the evaluations to wait for a better result"),
        ("--load_best_model_at_end", "use --keep_best accuracy (or many, medium, few, macro); by default the last"),
        ("--lora-r", "use --adapter_rank"),
        ("--use_peft", "use --adapter lora"),
        ("--freeze_backbone", "use --adapter lora, or --stage probe, which trains a classifier on frozen features"),
        ("--weighted_ce", "use --class_weights balanced with --loss ce, or a balanced loss such as --loss bal_bce"),
        ("--val_split", "use --val_fraction 0.1, which holds out images of the training split"),
        ("--imgsz", "use --image_size"),
    ],
)
def test_options_of_other_libraries_are_answered(option, hint):
    with pytest.raises(ValueError, match=".") as error:
        parse_arguments(FinetuneArguments, [option, "1"])
    name = option.replace("-", "_").replace("__", "--")
    assert str(error.value).startswith(f"{name} is not an option here: {hint}")
