"""The record of a run (run.json), and whether the options of a new command are compatible with it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from ..config.arguments import StageArguments
from ..config.options import options_that
from ..files import read_run
from ..reporting.provenance import public_name

# Fields of `TrainingArguments` that do not affect the result.
_WITHOUT_EFFECT = {
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "logging_first_step",
    "logging_strategy",
    "per_device_eval_batch_size",
    "project",
    "report_to",
    "run_name",
}


@dataclass(frozen=True)
class RunOptions:
    """All options of a run, to be recorded and compared.

    Attributes:
        args: options of the stage.
        training_arguments: further fields of `TrainingArguments` given by the user.
    """

    args: StageArguments
    training_arguments: dict[str, Any] = field(default_factory=dict)

    def record(self, steps: int) -> dict[str, Any]:
        """The content of run.json for a run of ``steps`` optimizer steps."""
        training_arguments = {
            name: value for name, value in self.training_arguments.items() if name not in _WITHOUT_EFFECT
        }
        return {
            "steps": steps,
            "command": training_command(self.args, training_arguments),
            "arguments": dataclasses.asdict(self.args),
            "training_arguments": training_arguments,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def changes(self, record: Mapping[str, Any]) -> list[str]:
        """One line per option that differs from a record and can affect the result.

        Options that are missing in the record, because they are newer, had their default. Records that are older than
        the key ``training_arguments`` do not restrict these.
        """
        given = self.training_arguments
        given_before = record.get("training_arguments", given)
        defaults = dataclasses.asdict(type(self.args)())
        before = {**defaults, **record["arguments"], **given_before}
        now = {**dataclasses.asdict(self.args), **given}
        free = {*options_that(type(self.args), changes="nothing"), *_WITHOUT_EFFECT}
        pairs = {name: (before.get(name, "default"), now.get(name, "default")) for name in {**now, **given_before}}
        return [
            f"{name}: {old} -> {new}"
            for name, (old, new) in pairs.items()
            if name not in free and old != new and not _is_public(old, new)
        ]

    def check_resume(self, record: Mapping[str, Any], step: int, steps: int) -> list[str]:
        """The `changes` of a run that resumes at ``step`` of ``steps`` from a checkpoint with this record.

        Raises:
            ValueError: an option that defines the model has changed, or no steps are left to train with the change.
        """
        changed = self.changes(record)
        model_options = options_that(type(self.args), changes="model")
        fixed = [line for line in changed if line.split(":")[0] in model_options]
        folder, advice = self.args.output_dir, "choose another output_dir, delete it, or keep the options"
        if fixed:
            raise ValueError(
                f"output_dir: {folder!r} contains a run with different options: {'; '.join(fixed)}; {advice}"
            )
        if changed and step >= steps:
            raise ValueError(
                f"output_dir: {folder!r} contains a run at step {step} of {steps}, with no steps left to train with "
                f"different options: {'; '.join(changed)}; {advice}"
            )
        return changed

    def check_overwrite(self, steps: int, checkpoint: Path | None) -> None:
        """ValueError if the run would replace the finished model of a different run in its folder, or a README.md.

        Exceptions are a longer run that resumes from a checkpoint, and ``--resume never``.
        """
        folder = Path(self.args.output_dir)
        record = read_run(folder)
        if self.args.resume == "never":
            return
        if record is None:
            if checkpoint is None and (folder / "README.md").exists():  # a run writes it after its record
                raise ValueError(
                    f"output_dir: {self.args.output_dir!r} contains a README.md, and no record of a run (run.json); "
                    "name another output_dir, or replace it with --resume never"
                )
            return
        found = f"output_dir: {self.args.output_dir!r} contains the finished model of"
        if stage_of(record["arguments"]) != stage_of(vars(self.args)):
            raise ValueError(f"{found} the other stage; name another folder")
        changed = self.changes(record)
        if changed and (checkpoint is None or steps <= record["steps"]):
            raise ValueError(
                f"{found} a run with different options: {'; '.join(changed)}; name another output_dir, keep the "
                "options, or replace the model with --resume never"
            )

    def completed_steps(self) -> int | None:
        """Steps of the finished run in the output folder; None if there is none with the same options."""
        record = read_run(Path(self.args.output_dir))
        return None if record is None or self.changes(record) else record["steps"]


def training_command(args: StageArguments, training_arguments: Mapping[str, Any]) -> str:
    """The command that repeats a run: all non-default options, local paths reduced to their last component."""
    options, defaults = dataclasses.asdict(args), dataclasses.asdict(type(args)())
    words, repeated = ["livt", stage_of(options)], options_that(type(args), in_command=True)
    given = {
        name: value
        for name, value in options.items()
        if value is not None and value != defaults[name] and name in repeated
    }
    for name, value in {**given, **training_arguments}.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(public_name(f"{v:g}" if isinstance(v, float) else v) for v in values)]
    return shlex.join(words)


def _is_public(old: Any, new: Any) -> bool:
    """Whether ``old``, from a record that was uploaded, is the name of the local path ``new``."""
    return isinstance(new, str) and old == public_name(new)


def stage_of(arguments: Mapping[str, Any]) -> str:
    """ "pretrain" or "finetune": the stage with these options."""
    return "pretrain" if "mask_ratio" in arguments else "finetune"


def read_checkpoint_record(checkpoint: Path, file: str) -> dict[str, Any]:
    """A JSON file of a checkpoint; ValueError if the checkpoint is of the other stage, which has no such file."""
    try:
        return json.loads((checkpoint / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"resume: {str(checkpoint)!r} is a checkpoint of another stage (it has no {file}); choose another "
            "output_dir or checkpoint"
        ) from None
    except ValueError:
        raise ValueError(
            f"resume: {str(checkpoint / file)!r} is damaged; delete that checkpoint to continue from an earlier one"
        ) from None
