"""What a card says of a training run, from the run.json and metrics.jsonl beside the model."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from ..config.arguments import FinetuneArguments, PretrainArguments
from .blocks import escape_markdown, markdown_table
from .provenance import public_name

# Options that say how to train, in the order of the table; those of the other stage are not in a record.
HYPERPARAMETERS = (
    "epochs",
    "warmup_epochs",
    "max_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "base_lr",
    "min_lr",
    "betas",
    "weight_decay",
    "layer_decay",
    "drop_path",
    "mask_ratio",
    "norm_pix_loss",
    "partial_reconstruction",
    "min_crop_scale",
    "horizontal_flip",
    "rand_augment",
    "random_erasing",
    "mixup",
    "cutmix",
    "mixup_prob",
    "label_smoothing",
    "loss",
    "tau",
    "ema",
    "imbalance_factor",
    "mixed_precision",
    "seed",
)
# Where files lie and how a run is watched: they change no result.
_NOT_IN_COMMAND = {"recipe", "config", "resume", "save_every", "save_total_limit", "logging_steps", "num_workers"}
STAGES = {"pretrain": PretrainArguments, "finetune": FinetuneArguments}


def hyperparameters(run: Mapping[str, Any]) -> str:
    """Markdown table of the options that say how the model was trained."""
    arguments = run["arguments"]
    rows = [
        (f"`{name}`", escape_markdown(_word(arguments[name])))
        for name in HYPERPARAMETERS
        if arguments.get(name) is not None and not (name == "epochs" and arguments.get("max_steps"))
    ]
    return markdown_table(("Option", "Value"), [*rows, ("steps", f"{run['steps']:,}")], "lr")


def training_command(stage: str, run: Mapping[str, Any]) -> str:
    """The command that repeats a run: every option that differs from its default, folders by their last part."""
    words, options = ["livt", stage], {}
    for field in dataclasses.fields(STAGES[stage]):
        value = run["arguments"].get(field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is None or value == default or field.name in _NOT_IN_COMMAND:
            continue
        options[field.name] = value
    options |= run.get("training_arguments", {})
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(public_name(_word(word)) for word in values)]
    return shlex.join(words)


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
