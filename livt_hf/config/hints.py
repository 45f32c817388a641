"""What to use instead of options that other libraries have, or that one may look for."""

from __future__ import annotations

import dataclasses

from .arguments import FinetuneArguments, StageArguments
from .options import Options

BOTH_STAGES = {
    "hub_token": "log in with `hf auth login`, or set HF_TOKEN (a command is recorded in cards)",
    **dict.fromkeys(("img_size", "imgsz", "input_size", "resolution"), "use --image_size"),
    **dict.fromkeys(("amp", "precision", "half"), "use --mixed_precision bf16"),
    **dict.fromkeys(
        ("val_split", "validation_split", "val_ratio", "val_size"),
        "use --val_fraction 0.1, which holds out images of the training split",
    ),
    **dict.fromkeys(
        ("n_gpu", "num_gpus", "gpus", "devices"), "use `accelerate launch`, which starts a process per GPU"
    ),
}
FINETUNING = {
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "save_best"),
        "use --keep_best accuracy (or many, medium, few, macro); by default the last epoch is kept, as in the paper",
    ),
    **dict.fromkeys(
        ("early_stopping_patience", "early_stopping_threshold", "patience"),
        "use --early_stopping N, the evaluations to wait for a better result",
    ),
    **dict.fromkeys(
        ("class_weight", "weighted_ce", "weighted_loss", "loss_weights", "pos_weight"),
        "use --class_weights balanced with --loss ce, or a balanced loss such as --loss bal_bce",
    ),
    **dict.fromkeys(
        ("freeze", "freeze_backbone", "freeze_encoder"),
        "use --adapter lora, or --stage probe, which trains a classifier on frozen features",
    ),
    **dict.fromkeys(
        ("linear_probe", "linear_probing"), "use --stage probe, which trains a classifier on frozen features"
    ),
}


def replaced_names(options: type[Options]) -> dict[str, str]:
    """Names that are not options of ours -> what to use instead, in words."""
    own = {entry.name for entry in dataclasses.fields(options)}
    wished = BOTH_STAGES if issubclass(options, StageArguments) else {}
    wished = wished | (FINETUNING if issubclass(options, FinetuneArguments) else {})
    declared = {
        theirs: f"use --{entry.name}{note}"
        for entry in dataclasses.fields(options)
        for theirs, note in entry.metadata["replaces"].items()
    }
    return {name: hint for name, hint in {**wished, **declared}.items() if name not in own}


def refuse_replaced(name: str, options: type[Options]) -> None:
    """ValueError that says what to use if the option ``name`` is one of `replaced_names`."""
    if hint := replaced_names(options).get(name):
        raise ValueError(f"--{name} is not an option here: {hint}")
